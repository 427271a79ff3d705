/**
 * The relay: copies the bytes of a link that has no direct way, or none yet, between the two connections that come for
 * it. It owns the relays on offer and under way, what is held of them, and the timer of those that wait.
 *
 * It never looks into what it copies, and owns neither sockets nor sessions: it closes them by who made it.
 * introducer.ts alone imports it. No FFI.
 */
import type { Socket } from "bun";
import { encode, Refusal, type Peer, type RelayRates } from "../../protocol.ts";
import { refill, type Shares, type Bucket } from "../shares/budget.ts";

/** Bytes a second that are relayed, of one link in each direction and of all, unless told otherwise. */
export const defaultRelayRates = { rate: 1024 * 1024, total: 16 * 1024 * 1024 };
/**
 * What goes on at once of a relayed link that had to wait, and how often such links are looked at: by turns, lest all
 * of them together hold up the rest.
 */
const relaySliceMs = 20;
const relayTurnMs = 5;
/** Of each turn, writing takes so long at most: it may be one byte for each of hundreds. */
const writingMs = 2;
/** How much may be sent at once after a pause. So a late timer costs no throughput. */
const relayBurstMs = 100;
/**
 * The rates are of bytes, and what costs is a read: one of so many bytes, or of a slice, is paid for by the rates, and of
 * a smaller one the rest is of its address's share of the processor. So are segments smaller than any path makes of a
 * stream (RFC 9293 §3.7.1: 536 bytes), each of which costs the kernel so much. Whoever has used that share up rests: TCP
 * gathers what comes meanwhile, and with the next read it is more. Of those who rest so many are read again in one turn.
 */
const paidBytes = 16 * 1024;
const leastSegmentBytes = 536;
export const segmentMs = 0.0015;
const readAtOnce = 8;
const lookedAtOnce = 64;
/** A relayed link on which nothing comes for so long is over: participants ping each other far more often. */
const relaySilenceMs = 3 * 60_000;

/** How many relays, offered or under way, and how long an offer holds. */
export interface RelayLimits {
  relays: number;
  relaysPerMember: number;
  relayOfferMs: number;
}

/** One of the two who are to be relayed. */
export interface RelayMember {
  readonly peer: Pick<Peer, "id" | "instance">;
  readonly room: string;
  /** Who shares its shares. */
  readonly source: string;
}

/** A connection that may become one end of a relayed link. */
export interface RelayConnection<Self> {
  readonly socket: Pick<Socket, "write" | "pause" | "resume" | "shutdown" | "terminate">;
  relayed: RelayEnd<Self> | undefined;
}

/**
 * open → ended: it will send no more → finished: the other has been told so → gone: its connection is closed. Each only
 * goes forward, and may leave some out.
 */
type Life = "open" | "ended" | "finished" | "gone";
const lives: readonly Life[] = ["open", "ended", "finished", "gone"];

/** One connection of a relayed link. */
export interface RelayEnd<Connection> {
  readonly session: Connection;
  readonly relay: Relay<Connection>;
  other: RelayEnd<Connection> | undefined;
  /**
   * Read from it, and to be written to the other: while there is any, it is not read. At most one read of Bun's, 512
   * KiB.
   */
  held: Uint8Array;
  readonly bucket: Bucket;
  /** How many bytes have come by it. */
  segments: number;
  /** How much may wait in the kernel to be read: little of who rests and sends tiny segments. */
  unread: "little" | "much";
  life: Life;
  isPaused: boolean;
  /** Whether the other takes no more now. */
  isBlocked: boolean;
}

/** A relayed link, from the offer on. */
interface Relay<Connection> {
  readonly token: string;
  readonly members: readonly [RelayMember, RelayMember];
  readonly ends: RelayEnd<Connection>[];
  isPaired: boolean;
  bytes: number;
  /** Until when both must have come; then, until when something must have been relayed. */
  untilMs: number;
}

const nothing = new Uint8Array(0);

/** Alone writes the life of an end. */
function become(end: { life: Life }, life: Life): void {
  if (lives.indexOf(life) > lives.indexOf(end.life)) end.life = life;
}

/** The same for a pair of peers when they have come back with other ids. */
export function relayKey(a: RelayMember, b: RelayMember): string {
  return `${[a.peer.instance, b.peer.instance].sort().join(" ")} ${a.room}`;
}

/** What the relays need of the sessions. */
interface Sessions<Connection> {
  readonly limits: RelayLimits;
  /** Relays of each source: each relay is of two. */
  readonly shares: Shares;
  newToken(): string;
  refuse(session: Connection, refusal: Refusal): void;
  /** Ends a session after what has been written. */
  close(session: Connection, reason: string): void;
  /** Does what serves a session, or nobody in particular: what fails in it costs that one only. */
  serve(session: Connection | undefined, work: () => void): void;
  /** The same, of its address's share of the processor; `work` returns which part of it, 0 to 1, is not. `moreMs` is. */
  charge(session: Connection, work: () => number, moreMs?: number): void;
  /** Whether its address has anything left of that. */
  mayRead(session: Connection, now: number): boolean;
  /** How many segments have come by its connection; undefined where that can't be known. */
  segments(session: Connection): number | undefined;
  /** How much may wait in the kernel to be read of it. */
  limitUnread(session: Connection, unread: RelayEnd<Connection>["unread"]): void;
  emit(event: RelayEvent): void;
}

/** By the ids of both, and how many bytes it has been. */
export type RelayEvent =
  { event: "relaying"; a: number; b: number } | { event: "relayed"; a: number; b: number; bytes: number };

/**
 * Copies bytes between the two connections of a relayed link, at no more than a rate each way and a rate for all of
 * them, and holds no more of them than one read each way: who is not read from is made to wait by TCP.
 */
export class Relays<Connection extends RelayConnection<Connection>> {
  readonly rates: RelayRates;
  readonly #sessions: Sessions<Connection>;
  readonly #relays = new Map<string, Relay<Connection>>();
  readonly #shares: Shares;
  readonly #perMember = new Map<number, number>();
  readonly #total: Bucket;
  /** Ends with something held that may go on with the next slice; who was served last is served last again. */
  readonly #waiting = new Set<RelayEnd<Connection>>();
  /** Ends that are not read because their addresses have made us read enough; who came first goes on first. */
  readonly #resting = new Set<RelayEnd<Connection>>();
  #timer: Timer | undefined;
  #bytes = 0;

  constructor(rates: RelayRates, sessions: Sessions<Connection>) {
    this.rates = rates;
    this.#sessions = sessions;
    this.#shares = sessions.shares;
    this.#total = { tokens: (rates.total * relaySliceMs) / 1000, at: performance.now() };
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** Offered or under way. */
  get size(): number {
    return this.#relays.size;
  }

  /** Whether any is offered, and still to be taken. */
  get isAwaited(): boolean {
    return this.#relays.values().some(({ isPaired }) => !isPaired);
  }

  /** Relayed links now, and the bytes of all there have been. */
  get totals(): { links: number; bytes: number } {
    const links = [...this.#relays.values()].filter(({ isPaired }) => isPaired).length;
    return { links, bytes: this.#bytes };
  }

  /** Bytes relayed so far of links under way, by {@link relayKey} of the two. */
  bytes(): Map<string, number> {
    const paired = [...this.#relays.values()].filter(({ isPaired }) => isPaired);
    return new Map(paired.map(({ members: [a, b], bytes }) => [relayKey(a, b), bytes]));
  }

  /** A token by which both can come here, once; undefined where they may have no more. */
  offer(a: RelayMember, b: RelayMember): string | undefined {
    const { relays, relaysPerMember } = this.#sessions.limits;
    const isOver = ({ peer, source }: RelayMember) =>
      (this.#perMember.get(peer.id) ?? 0) >= relaysPerMember || this.#shares.isOver(source, 1);
    if (this.#relays.size >= relays || isOver(a) || isOver(b)) return undefined;
    const token = this.#sessions.newToken();
    const untilMs = performance.now() + this.#sessions.limits.relayOfferMs;
    this.#relays.set(token, { token, members: [a, b], ends: [], isPaired: false, bytes: 0, untilMs });
    for (const { peer, source: own } of [a, b]) {
      this.#shares.add(own);
      this.#perMember.set(peer.id, (this.#perMember.get(peer.id) ?? 0) + 1);
    }
    return token;
  }

  /** Takes a connection that has said `relay`; throws a {@link Refusal}. */
  join(session: Connection, token: string): void {
    const relay = this.#relays.get(token);
    if (!relay || relay.isPaired)
      throw new Refusal("bad-field", "token must be of a relay that is still open");
    const now = performance.now();
    const bucket = { tokens: (this.rates.rate * relaySliceMs) / 1000, at: now };
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
    session.relayed = end;
    this.#sessions.limitUnread(session, end.unread);
    relay.ends.push(end);
    if (relay.ends.length === 2) this.#pair(relay, now);
  }

  #pair(relay: Relay<Connection>, now: number): void {
    const [a, b] = relay.ends as [RelayEnd<Connection>, RelayEnd<Connection>];
    [a.other, b.other] = [b, a];
    relay.isPaired = true;
    relay.untilMs = now + relaySilenceMs;
    for (const { session } of relay.ends) session.socket.write(encode({ type: "relaying" }));
    this.#sessions.emit({ event: "relaying", a: relay.members[0].peer.id, b: relay.members[1].peer.id });
    this.#pump(a, b, now);
    this.#pump(b, a, now);
  }

  /** Something has come from one end. */
  data(end: RelayEnd<Connection>, chunk: Uint8Array): void {
    const segments = this.#sessions.segments(end.session) ?? end.segments;
    const tooMany = Math.max(0, segments - end.segments - chunk.length / leastSegmentBytes);
    end.segments = segments;
    const work = () => {
      const now = performance.now();
      if (!this.#sessions.mayRead(end.session, now)) this.#rest(end, tooMany > 0);
      else if (tooMany === 0 && chunk.length >= paidBytes) this.#keepUnread(end, "much");
      this.#read(end, chunk, now);
      return this.#paidPart(chunk.length);
    };
    this.#sessions.charge(end.session, work, tooMany * segmentMs);
  }

  /** Thousands of tiny segments at once would hold up all others. */
  #keepUnread(end: RelayEnd<Connection>, unread: "little" | "much"): void {
    if (end.unread === unread) return;
    end.unread = unread;
    this.#sessions.limitUnread(end.session, unread);
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

  /** Which part of the work is paid for by the bytes, 0 to 1. */
  #paidPart(bytes: number): number {
    return Math.min(1, bytes / Math.min(paidBytes, (this.rates.rate * relaySliceMs) / 1000));
  }

  /** One end takes more again. */
  drained(end: RelayEnd<Connection>): void {
    const { other } = end;
    if (!other) return;
    other.isBlocked = false;
    this.#sessions.charge(end.session, () => this.#paidPart(this.#pump(other, end, performance.now())));
  }

  /** One end will send no more. */
  ended(end: RelayEnd<Connection>): void {
    become(end, "ended");
    if (end.other) return void this.#pump(end, end.other, performance.now());
    this.#withdraw(end);
    this.#sessions.close(end.session, "it did not wait for the other side of the relay");
  }

  /** It came first, and has left again before the other came: it may come again. */
  #withdraw({ relay, session }: RelayEnd<Connection>): void {
    relay.ends.splice(0);
    session.relayed = undefined;
  }

  /** One end is gone: the other gets what that has sent. */
  closed(end: RelayEnd<Connection>): void {
    const { relay, other } = end;
    become(end, "gone");
    this.#resting.delete(end);
    if (!other) return this.#withdraw(end);
    this.#waiting.delete(other);
    if (other.life === "gone") return this.#forget(relay);
    other.held = nothing;
    this.#resume(other); // what it sends now is dropped, but its end must be seen
    this.#pump(end, other, performance.now());
  }

  tick(now: number): void {
    for (const relay of this.#relays.values())
      if (now >= relay.untilMs) this.#sessions.serve(undefined, () => this.#expire(relay));
  }

  #expire(relay: Relay<Connection>): void {
    if (!relay.isPaired) this.#forget(relay);
    for (const { session } of relay.ends) {
      if (relay.isPaired) session.socket.terminate();
      else this.#sessions.serve(session, () => this.#expired(session));
    }
  }

  #expired(session: Connection): void {
    session.relayed = undefined;
    this.#sessions.refuse(session, new Refusal("limit", "the other side did not come", true));
  }

  /** Writes of what one end has sent as much as the rates and the other end allow; returns how much. */
  #pump(end: RelayEnd<Connection>, other: RelayEnd<Connection>, now: number): number {
    if (other.life === "gone" || end.isBlocked) return 0;
    const { relay, bucket } = end;
    const { rate, total } = this.rates;
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
    if (end.life === "gone")
      return this.#sessions.close(other.session, "the other side of the relay is gone");
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
    this.#timer ??= setInterval(() => this.#sessions.serve(undefined, () => this.#turn()), relayTurnMs);
  }

  #turn(): void {
    const now = performance.now();
    this.#goOnReading(now);
    this.#goOnWriting(now);
    if (this.#waiting.size + this.#resting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Has some of those read that rest, if their addresses have something left; the others are looked at later. */
  #goOnReading(now: number): void {
    const most = Math.min(lookedAtOnce, this.#resting.size);
    let read = 0;
    let looked = 0;
    for (const end of this.#resting) {
      this.#resting.delete(end);
      if (!this.#sessions.mayRead(end.session, now)) this.#resting.add(end);
      else if (end.held.length === 0) {
        this.#resume(end);
        read += 1;
      }
      if (read === readAtOnce || ++looked === most) return;
    }
  }

  /** Lets those go on whose next slice is due, as far as the rate of all goes; the rest at the next turn. */
  #goOnWriting(now: number): void {
    const { rate, total } = this.rates;
    const slice = (rate * relaySliceMs) / 1000;
    for (const end of [...this.#waiting]) {
      if (this.#fill(this.#total, total, now) < 1) return;
      const isDue = this.#fill(end.bucket, rate, now) >= Math.min(slice, end.held.length);
      if (!isDue) continue;
      if (performance.now() - now >= writingMs) return;
      this.#sessions.charge(end.session, () => this.#paidPart(this.#pump(end, end.other!, now)));
    }
  }

  #fill(bucket: Bucket, rate: number, now: number): number {
    refill(bucket, (rate * relayBurstMs) / 1000, rate, now);
    return bucket.tokens;
  }

  #forget(relay: Relay<Connection>): void {
    const { token, members, isPaired, bytes } = relay;
    if (!this.#relays.delete(token)) return;
    for (const { peer, source: own } of members) {
      this.#shares.remove(own);
      const count = (this.#perMember.get(peer.id) ?? 0) - 1;
      if (count > 0) this.#perMember.set(peer.id, count);
      else this.#perMember.delete(peer.id);
    }
    if (isPaired)
      this.#sessions.emit({ event: "relayed", a: members[0].peer.id, b: members[1].peer.id, bytes });
  }
}
