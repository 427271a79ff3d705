/**
 * Copies the bytes of relayed links: each way at no more than a rate, and all of them together at no more than another. It
 * holds no more of them than one read each way: who is not read from is made to wait by TCP. It owns what is held, and the
 * timer of those that wait. It never looks into what it copies. Which links there are is for native/introducer/relay.ts. For
 * native/introducer/. RFC 9293 §3.7.1 (segments).
 */
import type { RelayRates } from "../../protocol.ts";
import { type Bucket, refill } from "../shares/budget.ts";
import { become, type Relay, type RelayConnection, type RelayEnd } from "./relayed.ts";

/** A link that had to wait goes on with a slice: what its rate allows in so many ms. */
const relaySliceMs = 20;
/** Links that wait are looked at so often. */
const relayTurnMs = 5;
/** Each time, writing takes so long at most: it may be one byte for each of hundreds. */
const writingMs = 2;
/** How much may be sent at once after a pause. So a late timer costs no throughput. */
const relayBurstMs = 100;
/**
 * The rates count bytes, but a read costs as much for one byte as for many. So a read of so many bytes, or of a whole
 * slice, costs its address nothing beside the rate. A smaller one costs it a part of its share of the processor.
 */
const paidBytes = 16 * 1024;
/** No path makes smaller segments of a stream (RFC 9293 §3.7.1). Each smaller one costs the kernel so much. */
const minSegmentBytes = 536;
export const segmentMs = 0.0015;
/**
 * Who has used up its share of the processor rests. TCP gathers meanwhile what comes, and so the next read is larger. Each
 * time, so many of those that rest are looked at, and so many are read again.
 */
const readAtOnce = 8;
const lookedAtOnce = 64;
/** A relayed link on which nothing comes for so long is over: participants ping each other far more often. */
const relaySilenceMs = 3 * 60_000;

const nothing = new Uint8Array(0);

/** What it needs of the sessions. */
export interface CopierOwner<Connection> {
  /** Ends a session after what has been written. */
  close(session: Connection, reason: string): void;
  /** Does what serves a session, or nobody in particular: what fails in it costs that one only. */
  serve(session: Connection | undefined, work: () => void): void;
  /** Does some work, and charges its address for it, but for the part, 0 to 1, that `work` returns; and for `moreMs`. */
  charge(session: Connection, work: () => number, moreMs?: number): void;
  /** Whether its address has some of its share of the processor left. */
  mayRead(session: Connection, now: number): boolean;
  /** How many segments have come by its connection; undefined where that can't be known. */
  segments(session: Connection): number | undefined;
  /** How much may wait in the kernel to be read of it. */
  limitUnread(session: Connection, unread: RelayEnd<Connection>["unread"]): void;
}

export class Copier<Connection extends RelayConnection<Connection>> {
  readonly #rates: RelayRates;
  readonly #owner: CopierOwner<Connection>;
  readonly #total: Bucket;
  /** Ends of which something is held until the rates allow more. Who was served last comes last. */
  readonly #waiting = new Set<RelayEnd<Connection>>();
  /** Ends that are not read, because their addresses have made us read enough. Who came first goes on first. */
  readonly #resting = new Set<RelayEnd<Connection>>();
  #timer: Timer | undefined;
  #bytes = 0;

  constructor(rates: RelayRates, owner: CopierOwner<Connection>) {
    this.#rates = rates;
    this.#owner = owner;
    this.#total = { tokens: (rates.total * relaySliceMs) / 1000, at: performance.now() };
  }

  /** Of all links there have been. */
  get bytes(): number {
    return this.#bytes;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** A connection that has come to be one end. */
  end(session: Connection, relay: Relay<Connection>): RelayEnd<Connection> {
    const bucket = { tokens: (this.#rates.rate * relaySliceMs) / 1000, at: performance.now() };
    const end: RelayEnd<Connection> = {
      session,
      relay,
      other: undefined,
      held: nothing,
      bucket,
      segments: 0,
      unread: "much",
      life: "open",
      isPaused: false,
      isBlocked: false,
    };
    this.#owner.limitUnread(session, end.unread);
    return end;
  }

  /** Both have come: what each has sent meanwhile goes to the other. */
  join(a: RelayEnd<Connection>, b: RelayEnd<Connection>): void {
    const now = performance.now();
    [a.other, b.other] = [b, a];
    a.relay.untilMs = now + relaySilenceMs;
    this.#pump(a, b, now);
    this.#pump(b, a, now);
  }

  /** Something has come from one end. */
  data(end: RelayEnd<Connection>, chunk: Uint8Array): void {
    const segments = this.#owner.segments(end.session) ?? end.segments;
    const tooMany = Math.max(0, segments - end.segments - chunk.length / minSegmentBytes);
    end.segments = segments;
    const work = () => {
      const now = performance.now();
      if (!this.#owner.mayRead(end.session, now)) this.#rest(end, tooMany > 0);
      else if (tooMany === 0 && chunk.length >= paidBytes) this.#keepUnread(end, "much");
      this.#read(end, chunk, now);
      return this.#paidPart(chunk.length);
    };
    this.#owner.charge(end.session, work, tooMany * segmentMs);
  }

  /** Thousands of tiny segments that are read at once would hold up all others. */
  #keepUnread(end: RelayEnd<Connection>, unread: "little" | "much"): void {
    if (end.unread === unread) return;
    end.unread = unread;
    this.#owner.limitUnread(end.session, unread);
  }

  #read(end: RelayEnd<Connection>, chunk: Uint8Array, now: number): void {
    if (end.other?.life !== "gone") {
      end.held = end.held.length > 0 ? Buffer.concat([end.held, chunk]) : chunk;
      if (end.other) this.#pump(end, end.other, now);
    }
    if (end.isPaused || (end.held.length === 0 && !this.#resting.has(end))) return;
    end.session.socket.pause();
    end.isPaused = true;
  }

  /** Which part of the work for so many bytes is not charged, 0 to 1. */
  #paidPart(bytes: number): number {
    return Math.min(1, bytes / Math.min(paidBytes, (this.#rates.rate * relaySliceMs) / 1000));
  }

  /** One end takes more again. */
  drained(end: RelayEnd<Connection>): void {
    const { other } = end;
    if (!other) return;
    other.isBlocked = false;
    this.#owner.charge(end.session, () => this.#paidPart(this.#pump(other, end, performance.now())));
  }

  /** One end will send no more. */
  ended(end: RelayEnd<Connection>): void {
    become(end, "ended");
    if (end.other) this.#pump(end, end.other, performance.now());
  }

  /** One end is gone: the other gets what that has sent. */
  closed(end: RelayEnd<Connection>): void {
    const { other } = end;
    become(end, "gone");
    this.#resting.delete(end);
    if (!other) return;
    this.#waiting.delete(other);
    if (other.life === "gone") return;
    other.held = nothing;
    this.#resume(other); // what it sends now is dropped, but its end must be seen
    this.#pump(end, other, performance.now());
  }

  /** Writes of what one end has sent as much as the rates and the other end allow; returns how much. */
  #pump(end: RelayEnd<Connection>, other: RelayEnd<Connection>, now: number): number {
    if (other.life === "gone" || end.isBlocked) return 0;
    const { relay, bucket } = end;
    const { rate, total } = this.#rates;
    const allowed = Math.min(this.#fill(bucket, rate, now), this.#fill(this.#total, total, now));
    const part = end.held.subarray(0, Math.floor(allowed));
    const written = part.length > 0 ? Math.max(0, other.session.socket.write(part)) : 0;
    bucket.tokens -= written;
    this.#total.tokens -= written;
    relay.bytes += written;
    this.#bytes += written;
    if (written > 0) relay.untilMs = now + relaySilenceMs;
    end.held = end.held.subarray(written);
    end.isBlocked = written < part.length;
    this.#waiting.delete(end);
    if (end.held.length === 0) this.#emptied(end, other);
    else if (!end.isBlocked) this.#wait(end);
    return written;
  }

  /** All that one end has sent so far has been written to the other. */
  #emptied(end: RelayEnd<Connection>, other: RelayEnd<Connection>): void {
    end.held = nothing; // and not a view of what was read
    if (end.life === "open") return this.#resume(end);
    if (end.life === "gone") return this.#owner.close(other.session, "the other side of the relay is gone");
    if (end.life === "ended") other.session.socket.shutdown();
    become(end, "finished");
  }

  #resume(end: RelayEnd<Connection>): void {
    if (this.#resting.has(end)) return;
    if (end.isPaused) end.session.socket.resume();
    end.isPaused = false;
  }

  #wait(end: RelayEnd<Connection>): void {
    this.#waiting.add(end);
    this.#takeTurns();
  }

  #rest(end: RelayEnd<Connection>, isTiny: boolean): void {
    if (isTiny) this.#keepUnread(end, "little");
    this.#resting.add(end);
    this.#takeTurns();
  }

  #takeTurns(): void {
    this.#timer ??= setInterval(() => this.#owner.serve(undefined, () => this.#turn()), relayTurnMs);
  }

  #turn(): void {
    const now = performance.now();
    this.#goOnReading(now);
    this.#goOnWriting(now);
    if (this.#waiting.size + this.#resting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Reads again some of those that rest, if their addresses have some of their share left. */
  #goOnReading(now: number): void {
    const most = Math.min(lookedAtOnce, this.#resting.size);
    let read = 0;
    let looked = 0;
    for (const end of this.#resting) {
      this.#resting.delete(end);
      if (!this.#owner.mayRead(end.session, now)) this.#resting.add(end);
      else if (end.held.length === 0) {
        this.#resume(end);
        read += 1;
      }
      if (read === readAtOnce || ++looked === most) return;
    }
  }

  /** Writes for those whose next slice is due, as far as the rate of all and the time go. The others wait. */
  #goOnWriting(now: number): void {
    const { rate, total } = this.#rates;
    const slice = (rate * relaySliceMs) / 1000;
    for (const end of [...this.#waiting]) {
      if (this.#fill(this.#total, total, now) < 1) return;
      const isDue = this.#fill(end.bucket, rate, now) >= Math.min(slice, end.held.length);
      if (!isDue) continue;
      if (performance.now() - now >= writingMs) return;
      this.#owner.charge(end.session, () => this.#paidPart(this.#pump(end, end.other!, now)));
    }
  }

  #fill(bucket: Bucket, rate: number, now: number): number {
    refill(bucket, (rate * relayBurstMs) / 1000, rate, now);
    return bucket.tokens;
  }
}
