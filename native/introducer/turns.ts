/**
 * Whose bytes are read, and when: a source that makes us work much waits, others don't. It owns the sessions that wait
 * to be read, and knows what work costs. What lines mean is none of its business. For introducer.ts alone. RFC 6177 (a
 * site's addresses).
 *
 * A chunk is read line by line: as many lines as its session may say now, for as long as others can wait. The rest is held.
 * It is *late* if it is read as soon as others had their turn, and *paused* if it may not be read yet: then TCP makes the
 * sender wait.
 */
import { refill, tryTake } from "../shares/budget.ts";
import { Rounds, sliceMs } from "../shares/turns.ts";
import { segmentsReceived } from "../host/libc.ts";
import { LineDecoder, Refusal } from "../../protocol.ts";
import type { Guard } from "./guard.ts";
import type { Limits } from "./limits.ts";
import type { Outbox } from "./output.ts";
import { segmentMs } from "./copier.ts";
import type { Session } from "./session.ts";
import type { Sources } from "./sources.ts";

/** So often the next line is read of those that have sent too many. */
const resumeMs = 10;
/**
 * What it costs to accept and close a connection, to read from one, to write to one at the end of the tick: mostly in
 * Bun.
 */
const acceptMs = 0.05;
const readMs = 0.01;
const flushMs = 0.01;
/** What one read is charged at most: the compiler takes 14 ms for the first registration, which is not its sender's. */
const mostChargedMs = 2;

/** Gets what is read. */
interface Reader {
  readonly limits: Limits;
  readonly sources: Sources;
  readonly guard: Guard;
  readonly outbox: Outbox;
  line(session: Session, line: string): void;
  /** Bytes after the line that made it one end of a relayed link. */
  relayed(session: Session, bytes: Uint8Array): void;
  /** It will send no more, and all that it has sent was read. */
  ended(session: Session): void;
  /** Too much of its source waits to be read. */
  tooMuch(session: Session): void;
}

export class Turns {
  readonly #reader: Reader;
  readonly #sources: Sources;
  /** Sessions with held bytes that may not be read yet. */
  readonly #paused = new Set<Session>();
  readonly #pausedRounds = this.#roundsOf(this.#paused);
  /** Sessions with held bytes that are read once others have had their turn. */
  readonly #late = new Set<Session>();
  readonly #lateRounds = this.#roundsOf(this.#late);
  /** When the first of the present batch of sessions came. */
  #turnAt: number | undefined;
  #timer: Timer | undefined;

  constructor(reader: Reader) {
    this.#reader = reader;
    this.#sources = reader.sources;
  }

  #roundsOf(sessions: Set<Session>): Rounds<Session> {
    return new Rounds(
      () => sessions.values(),
      (session, sliceAt) => this.#reader.guard.serve(session, () => this.#goOn(session, sliceAt)),
    );
  }

  /** How many sessions may not be read yet. */
  get waiting(): number {
    return this.#paused.size;
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  // what it costs

  /**
   * Whether a source may have another connection accepted. It does not depend on what was read of the source. Reading can
   * wait, but who is turned away may not come again.
   */
  accepts(source: string): boolean {
    const now = performance.now();
    this.#sources.processor.spend(source, acceptMs, now);
    if (this.#sources.accepted.isOver(source, now)) return false;
    this.#sources.accepted.spend(source, 1, now);
    return true;
  }

  /** Does some work, and charges it to the source's share of the processor. */
  charge({ source }: { readonly source: string }, work: () => void): void {
    const { outbox } = this.#reader;
    const from = performance.now();
    const writes = outbox.size;
    work();
    const now = performance.now();
    const laterMs = (outbox.size - writes) * flushMs;
    this.#sources.processor.spend(source, readMs + Math.min(now - from, mostChargedMs) + laterMs, now);
  }

  /** The same for relayed bytes. They have rates of their own, so the part that `work` returns is not charged. */
  chargeRelayed({ source }: Session, work: () => number, moreMs: number): void {
    const from = performance.now();
    const unpaid = 1 - work();
    const now = performance.now();
    const spentMs = unpaid * (readMs + Math.min(now - from, mostChargedMs)) + moreMs;
    if (spentMs > 0) this.#sources.processor.spend(source, spentMs, now);
  }

  /** Charges a source for lines that will be written to so many sessions. */
  chargeWrites(source: string, sessions: number): void {
    this.#sources.processor.spend(source, sessions * flushMs, performance.now());
  }

  /** Whether its source has used its share of the processor. */
  isOver({ source }: Session, now: number): boolean {
    return this.#sources.processor.isOver(source, now);
  }

  // what is read

  receive(session: Session, chunk: Uint8Array): void {
    const { input, source, heardAt } = session;
    // More may come of one that is late. And Bun hands over what it had read before the socket was paused.
    if (input.held) this.#hold(session, Buffer.concat([input.held, chunk]));
    else if (this.#sources.processor.isOver(source, heardAt)) this.#holdMany(session, chunk);
    else if (this.#isLate(session)) this.#postpone(session, chunk);
    else this.charge(session, () => this.#read(session, chunk, heardAt));
  }

  /** A session that is being closed is still read a little, so that its end is seen at once. */
  receiveNothing({ source, socket, heardAt }: Session): void {
    this.#sources.processor.spend(source, readMs, heardAt);
    if (this.#sources.processor.isBusy(source, heardAt)) socket.pause();
  }

  /** It will send no more. */
  end(session: Session): void {
    session.input.hasEnded = true;
    if (session.input.held === undefined) this.#reader.ended(session);
  }

  /** Drops what is held of it. */
  forget(session: Session): void {
    session.input.decoder = undefined;
    this.#unhold(session);
  }

  /** Whether it must wait until others had their turn: if its batch has taken long, and it sends much. */
  #isLate({ source, heardAt }: Session): boolean {
    if (this.#turnAt === undefined) {
      this.#turnAt = heardAt;
      setImmediate(() => (this.#turnAt = undefined));
    }
    return heardAt - this.#turnAt >= sliceMs && this.#sources.processor.isBusy(source, heardAt);
  }

  #postpone(session: Session, chunk: Uint8Array): void {
    session.input.held = chunk;
    this.#late.add(session);
    this.#lateRounds.begin();
    this.#countHeld(session);
  }

  #read(session: Session, chunk: Uint8Array, startedAt: number): void {
    const { input } = session;
    const decoder = input.decoder ?? new LineDecoder();
    try {
      this.#readLines(session, decoder, chunk, startedAt);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      session.refuse(error);
    }
    input.decoder = decoder.pendingBytes > 0 && !session.isOver ? decoder : undefined;
    this.#countHeld(session);
  }

  /** Reads as many lines as it may send now, while others can wait. Holds the rest. */
  #readLines(session: Session, decoder: LineDecoder, chunk: Uint8Array, startedAt: number): void {
    const { messageBurst, messagesPerSecond } = this.#reader.limits;
    for (let from = 0; from < chunk.length && !session.isOver;) {
      const lf = chunk.indexOf(10, from);
      if (lf === -1) return decoder.hold(chunk.subarray(from));
      if (!tryTake(session.input.lines, messageBurst, messagesPerSecond, performance.now()))
        return this.#hold(session, chunk.subarray(from));
      this.#reader.line(session, decoder.line(chunk.subarray(from, lf)));
      from = lf + 1;
      if (from === chunk.length) return;
      if (session.relayed) return this.#reader.relayed(session, chunk.subarray(from));
      if (!session.isOver && performance.now() - startedAt >= sliceMs)
        return this.#postpone(session, chunk.subarray(from));
    }
  }

  /** The source has used up its share: it is also charged for each segment, for there may be one for each byte. */
  #holdMany(session: Session, chunk: Uint8Array): void {
    const { input, socket, source, heardAt } = session;
    const segments = segmentsReceived(socket.fd) ?? 0;
    const receivedMs = Math.min(mostChargedMs, Math.max(0, segments - input.segments) * segmentMs);
    input.segments = segments;
    this.#sources.processor.spend(source, readMs + receivedMs, heardAt);
    this.#hold(session, chunk);
  }

  /** Too many lines: we stop reading, and TCP makes the sender wait. */
  #hold(session: Session, bytes: Uint8Array): void {
    session.input.held = bytes;
    this.#late.delete(session);
    if (!this.#paused.has(session)) {
      session.socket.pause();
      this.#paused.add(session);
      this.#timer ??= setInterval(() => this.#resume(), resumeMs);
    }
    this.#countHeld(session);
  }

  /** Holds bytes that a session may not send yet, and those of an incomplete line. */
  #countHeld(session: Session): void {
    const { input, source } = session;
    const bytes = (input.held?.length ?? 0) + (input.decoder?.pendingBytes ?? 0);
    const more = bytes - input.heldBytes;
    if (more === 0) return;
    input.heldBytes = bytes;
    if (more < 0) return this.#sources.held.remove(source, -more);
    this.#sources.held.add(source, more);
    if (this.#sources.held.isUsedUp() || this.#sources.held.isOver(source)) this.#reader.tooMuch(session);
  }

  /** Reads those that may be read again. */
  #resume(): void {
    this.#pausedRounds.begin();
    if (this.#paused.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Reads what is held of a session, if it may be read now. */
  #goOn(session: Session, now: number): void {
    const { messageBurst, messagesPerSecond } = this.#reader.limits;
    const { input } = session;
    const bytes = input.held!;
    session.heardAt = now; // what it says may be waiting
    refill(input.lines, messageBurst, messagesPerSecond, now);
    if (input.lines.tokens < 1 || this.isOver(session, now)) return this.#hold(session, bytes);
    input.held = undefined;
    this.#late.delete(session); // so that it comes last if there is more
    if (this.#paused.delete(session)) this.#paused.add(session); // likewise
    this.charge(session, () => this.#read(session, bytes, now));
    if (input.held || session.isOver) return;
    if (this.#paused.has(session) && !session.relayed?.isPaused) session.socket.resume();
    this.#unhold(session);
    if (input.hasEnded) this.#reader.ended(session);
  }

  #unhold(session: Session): void {
    session.input.held = undefined;
    this.#late.delete(session);
    this.#paused.delete(session);
    this.#countHeld(session);
  }
}
