/**
 * One flow-controlled stream of a session, a Duplex to its user. Owns what its user wrote until it is framed, and
 * what the peer sent until it is read; never more than the credit it gave (RFC 9113 §5.2 has the same rules). It
 * never sees a carrier. Made by native/session/session.ts; for everything that uses a link.
 *
 * While a session has no carrier its streams wait, and nothing fails. `end()` ends our half only. An `error` is always
 * a {@link StreamError} with the reason; it never goes unhandled, for a peer must not be able to end our program.
 */
import { Duplex } from "node:stream";
import { Queue } from "./resend.ts";

/** What the peer may send before we have read anything: the same on both sides, it is not negotiated. */
export const firstCreditBytes = 256 * 1024;
/** What a stream may have under way once its round trip needs as much. */
export const maxCreditBytes = 16 * 1024 * 1024;
/** A credit above that is none (RFC 9113 §6.9.1). */
const maxWindowBytes = 2 ** 31 - 1;
/** What a user may write ahead of the link before `write` says false. */
const writableHighWaterMark = 256 * 1024;
/** A used-up credit grows only when it was used up within so many round trips. */
const growthRoundTrips = 2;
/** Pieces that wait are put together in blocks of at least this size, so that a flood of small ones stays small. */
const unreadBlockBytes = 4 * 1024;

/** Why a stream was cut off, as a number on the wire. A peer may send others. */
export const resetCodes = {
  cancelled: 0,
  refused: 1,
  failed: 2,
  "too-much-unread": 3,
  "link-ended": 4,
} as const;

/** A stream that was cut off: by its user, by the peer, or because the link ended. */
export class StreamError extends Error {
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

/** What a stream asks of its session. */
export interface StreamOwner {
  readonly nowMs: number;
  readonly roundTripMs: number | undefined;
  readonly hasCarrier: boolean;
  /** It has something that may be sent. */
  onReady(stream: Stream): void;
  /** All that its user wrote was framed. */
  onFlushed(): void;
  onCredit(stream: Stream, bytes: number): void;
  /** Its user has done with it, maybe before its time. */
  onDestroyed(stream: Stream, code: number, reason: string): void;
  /** Whether its credit may exceed the first one by `bytes` more; if so, they count as taken. */
  mayGrow(bytes: number): boolean;
  /** So many bytes more (or fewer) wait for users. False: too many in the whole session. */
  onUnread(bytes: number): boolean;
  /** Its user's code has thrown at what it was given. */
  onThrown(stream: Stream, error: unknown): void;
}

type WriteCallback = (error?: Error | null) => void;

/** Bytes that wait for the user. Small pieces are copied: one must not keep the whole chunk that it came in. */
class Unread {
  readonly #pieces = new Queue<Buffer>();
  /** A block of ours with room in it, newer than all pieces. */
  #tail: { block: Buffer; length: number } | undefined;

  get isEmpty(): boolean {
    return this.#pieces.length === 0 && !this.#tail;
  }

  /** Returns what it costs: the memory that is kept for it. */
  push(piece: Buffer): number {
    if (piece.length >= unreadBlockBytes && piece.length * 2 >= piece.buffer.byteLength) {
      this.#closeTail();
      this.#pieces.push(piece);
      return piece.buffer.byteLength;
    }
    const copied = this.#tail ? piece.copy(this.#tail.block, this.#tail.length) : 0;
    if (this.#tail) this.#tail.length += copied;
    if (copied === piece.length) return 0;
    this.#closeTail();
    const block = Buffer.allocUnsafeSlow(Math.max(piece.length - copied, unreadBlockBytes));
    this.#tail = { block, length: piece.copy(block, 0, copied) };
    return block.length;
  }

  shift(): Buffer | undefined {
    if (this.#pieces.length === 0) this.#closeTail();
    return this.#pieces.shift();
  }

  #closeTail(): void {
    if (this.#tail) this.#pieces.push(this.#tail.block.subarray(0, this.#tail.length));
    this.#tail = undefined;
  }
}

/** A stream of a link. What is marked "for the session" is not for its user. */
export class Stream extends Duplex {
  readonly id: number;
  /** Bytes of the user, without frames. */
  bytesIn = 0;
  bytesOut = 0;
  /** For the session: whether it waits for its turn. */
  isQueued = false;
  /** For the session: whether our `end` or `reset` was sent, and the peer's arrived. */
  isOverHere = false;
  isOverThere = false;
  /** Whether it is counted how many bytes of it the peer has acknowledged; and those. */
  isCounted = false;
  acknowledgedBytes = 0;
  /** They have become more. */
  onAcknowledged: () => void = () => {};
  readonly #owner: StreamOwner;
  // sending
  readonly #chunks = new Queue<Buffer>();
  /** Bytes of the first chunk that were framed. */
  #chunkAt = 0;
  #pendingBytes = 0;
  #credit = firstCreditBytes;
  #onWritten: WriteCallback | undefined;
  #onFinal: WriteCallback | undefined;
  /** Once the session finishes: whether what the Duplex has buffered is still to be taken. */
  #sealed: { takesBuffered: boolean } | undefined;
  // receiving
  readonly #unread = new Unread();
  #unreadCost = 0;
  #isWanted = false;
  #hasEnd = false;
  /** What the peer may have under way, and how much of it is left to it. */
  #window = firstCreditBytes;
  #allowed = firstCreditBytes;
  #consumed = 0;
  #roundBytes = 0;
  #roundAt: number;
  // its end
  #reset: { code: number; reason: string } | undefined;
  /** The session has ended; told once all that came before was read. */
  #linkEnded: StreamError | undefined;

  constructor(owner: StreamOwner, id: number) {
    // 0: read() asks for more only when the user has taken everything, so that credit is given for what was read.
    super({ readableHighWaterMark: 0, writableHighWaterMark });
    this.#owner = owner;
    this.id = id;
    this.#roundAt = owner.nowMs;
    this.on("error", () => {});
  }

  /** Cuts it off, both ways: what is not sent yet is dropped, and the peer's stream fails with the reason. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#reset ??= { code, reason };
    this.destroy();
  }

  /** Whether there is no carrier now, so that nothing comes or goes. */
  get isWaiting(): boolean {
    return !this.#owner.hasCarrier;
  }

  /** For the session: what the peer may still send. */
  get allowedBytes(): number {
    return this.#allowed;
  }

  /** For the session. */
  acknowledged(bytes: number): void {
    this.acknowledgedBytes += bytes;
    this.onAcknowledged();
  }

  /** For the session: what may exceed {@link firstCreditBytes}. */
  get grownBytes(): number {
    return this.#window - firstCreditBytes;
  }

  // --- sending -------------------------------------------------------------------------------------------

  override _write(chunk: Buffer, _encoding: BufferEncoding, written: WriteCallback): void {
    this.#take([chunk], written);
  }
  override _writev(chunks: { chunk: Buffer }[], written: WriteCallback): void {
    this.#take(
      chunks.map(({ chunk }) => chunk),
      written,
    );
  }
  override _final(ended: WriteCallback): void {
    if (this.isOverHere || this.#linkEnded) return ended();
    this.#onFinal = ended;
    this.#owner.onReady(this);
  }

  #take(chunks: Buffer[], written: WriteCallback): void {
    if (this.#sealed && !this.#sealed.takesBuffered) {
      return written(new StreamError(resetCodes["link-ended"], "the link is ending"));
    }
    if (this.#sealed) this.#sealed.takesBuffered = false;
    this.#onWritten = written;
    if (this.#linkEnded) return; // it fails as soon as the user has read what came
    for (const chunk of chunks) {
      if (chunk.length > 0) this.#chunks.push(chunk);
      this.#pendingBytes += chunk.length;
    }
    this.bytesOut += this.#pendingBytes;
    if (this.#pendingBytes === 0) this.#writtenSoon();
    else this.#owner.onReady(this);
  }

  /** For the session: bytes that may be sent now. */
  get sendableBytes(): number {
    return Math.min(this.#pendingBytes, this.#credit);
  }
  /** For the session: whether `end` is what comes next. */
  get mayEnd(): boolean {
    return this.#onFinal !== undefined && this.#pendingBytes === 0 && !this.isOverHere;
  }
  /** For the session: whether nothing that was written is unsent. */
  get isFlushed(): boolean {
    return this.destroyed || (this.writableLength === 0 && this.#pendingBytes === 0 && !this.mayEnd);
  }

  /** For the session: copies what may be sent, at most `most` bytes, and returns how much it was. */
  fill(target: Buffer, at: number, most: number): number {
    const total = Math.min(most, this.sendableBytes);
    for (let left = total; left > 0;) {
      const chunk = this.#chunks.at(0)!;
      const copied = chunk.copy(target, at + total - left, this.#chunkAt, this.#chunkAt + left);
      left -= copied;
      this.#chunkAt += copied;
      if (this.#chunkAt < chunk.length) continue;
      this.#chunks.shift();
      this.#chunkAt = 0;
    }
    this.#pendingBytes -= total;
    this.#credit -= total;
    if (this.#pendingBytes === 0) this.#writtenSoon();
    return total;
  }

  /** Not now: the user's code must not run while a write is put together. */
  #writtenSoon(): void {
    const written = this.#onWritten;
    this.#onWritten = undefined;
    queueMicrotask(() => {
      this.#guard(() => written?.());
      this.#owner.onFlushed();
    });
  }

  /** What listeners throw would else come out of whatever reads or writes the link, or end the program. */
  override emit(event: string | symbol, ...told: unknown[]): boolean {
    try {
      return super.emit(event, ...told);
    } catch (error) {
      this.#owner.onThrown(this, error);
      return true;
    }
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#owner.onThrown(this, error);
    }
  }

  /** For the session: `end` was framed. */
  endSent(): void {
    this.isOverHere = true;
    const ended = this.#onFinal;
    this.#onFinal = undefined;
    queueMicrotask(() => this.#guard(() => ended?.()));
  }

  /** For the session, which finishes: takes no more than what is written already. */
  seal(): void {
    this.#sealed ??= { takesBuffered: this.writableLength > this.#pendingBytes };
  }

  /** For the session. False: more than a window may be (RFC 9113 §6.9.1). */
  receiveCredit(bytes: number): boolean {
    this.#credit += bytes;
    this.#owner.onReady(this);
    return this.#credit <= maxWindowBytes;
  }

  // --- receiving -----------------------------------------------------------------------------------------

  override _read(): void {
    this.#isWanted = true;
    this.#deliver();
  }

  /** For the session. False: the peer has sent more than it may. */
  receive(piece: Buffer): boolean {
    if (piece.length > this.#allowed) return false;
    this.#allowed -= piece.length;
    if (this.destroyed) return true;
    this.bytesIn += piece.length;
    if (this.#isWanted && this.#unread.isEmpty) this.#hand(piece);
    else this.#keep(piece);
    return true;
  }

  /** For the session. */
  receiveEnd(): void {
    this.#hasEnd = true;
    if (this.#isWanted) this.#deliver();
  }

  receiveReset(code: number, reason: string): void {
    this.destroy(new StreamError(code, `the peer cut the stream off: ${reason || "no reason given"}`));
  }

  #keep(piece: Buffer): void {
    const cost = this.#unread.push(piece);
    this.#unreadCost += cost;
    if (this.#owner.onUnread(cost)) return;
    this.reset("too much was sent that nobody reads", resetCodes["too-much-unread"]);
  }

  #deliver(): void {
    while (this.#isWanted && !this.destroyed) {
      const piece = this.#unread.shift();
      if (!piece) return this.#deliverEnd();
      this.#unreadCost -= piece.buffer.byteLength;
      this.#owner.onUnread(-piece.buffer.byteLength);
      this.#hand(piece);
    }
  }

  #deliverEnd(): void {
    if (this.#hasEnd) {
      this.#isWanted = false;
      this.push(null);
    } else if (this.#linkEnded) this.destroy(this.#linkEnded);
  }

  #hand(piece: Buffer): void {
    this.#isWanted = this.push(piece);
    if (!this.isOverThere && !this.#linkEnded) this.#consume(piece.length);
  }

  /** The peer may send as much again, in portions of a quarter of what it may have under way. */
  #consume(bytes: number): void {
    this.#consumed += bytes;
    this.#roundBytes += bytes;
    if (this.#consumed < this.#window / 4) return;
    const granted = this.#consumed + this.#growth();
    this.#consumed = 0;
    this.#allowed += granted;
    this.#owner.onCredit(this, granted);
  }

  /** Doubled whenever all of it was used up within two round trips: the path would have taken more. */
  #growth(): number {
    if (this.#roundBytes < this.#window) return 0;
    const tookMs = this.#owner.nowMs - this.#roundAt;
    this.#roundAt += tookMs;
    this.#roundBytes = 0;
    const { roundTripMs } = this.#owner;
    if (roundTripMs === undefined || tookMs > growthRoundTrips * roundTripMs) return 0;
    const growth = Math.min(this.#window, maxCreditBytes - this.#window);
    if (growth === 0 || !this.#owner.mayGrow(growth)) return 0;
    this.#window += growth;
    return growth;
  }

  // --- its end -------------------------------------------------------------------------------------------

  /** For the session: nothing more is sent or comes. What came is still delivered if the end is an orderly one. */
  linkEnded(reason: string, isOrderly: boolean): void {
    if (this.destroyed) return;
    const error = new StreamError(resetCodes["link-ended"], `the link has ended: ${reason}`);
    const isRead = this.#unread.isEmpty && this.readableLength === 0 && (!this.#hasEnd || this.readableEnded);
    // Whoever writes without ever having read would not learn of it.
    const isDeaf = this.#onWritten !== undefined && this.readableFlowing === null;
    if (!isOrderly || isRead || isDeaf) return void this.destroy(error);
    this.#linkEnded = error;
    this.once("end", () => void (this.writableFinished || this.destroy(error)));
    this.#onFinal?.();
    this.#onFinal = undefined;
  }

  override _destroy(error: Error | null, destroyed: (error?: Error | null) => void): void {
    this.#chunks.clear();
    this.#pendingBytes = 0;
    while (this.#unread.shift());
    this.#owner.onUnread(-this.#unreadCost);
    this.#unreadCost = 0;
    const { code, reason } = this.#reset ?? {
      code: error ? resetCodes.failed : resetCodes.cancelled,
      reason: error ? "it failed at the peer" : "the peer has done with it",
    };
    this.#owner.onDestroyed(this, code, reason);
    destroyed(error);
  }
}
