/**
 * One flow-controlled stream of a session; to its user a Duplex. Owns what its user wrote until it is framed, and what the
 * peer sent until it is read: never more than the credit that it gave (RFC 9113 §5.2 has the same rules). It never sees a
 * carrier. Made by native/session/multiplexer.ts; for everything that uses a link.
 *
 * While a session has no carrier its streams wait, and nothing fails. `end()` ends our half only. An `error` is always a
 * {@link StreamError} with the reason. It never counts as unhandled, because a peer must not be able to end our program.
 */
import { Duplex } from "node:stream";
import { Credit } from "./credit.ts";
import { type WriteCallback, Written } from "./written.ts";
import { Unread } from "./unread.ts";

/** Bytes that the peer may send before we have read anything. It is the same on both sides, and not negotiated. */
export const firstCreditBytes = 256 * 1024;
/** Bytes that a user may write ahead before `write` returns false. */
const writableHighWaterMark = 256 * 1024;

/** Why a stream was cut off, as a number on the wire. A peer may send other numbers. */
export const resetCodes = {
  cancelled: 0,
  refused: 1,
  failed: 2,
  "too-much-unread": 3,
  "link-ended": 4,
} as const;

/** A stream was cut off: by its user, by the peer, or because the link ended. */
export class StreamError extends Error {
  readonly code: number;
  constructor(code: number, message: string) {
    super(message);
    this.code = code;
  }
}

/** What a stream needs of its session. */
export interface StreamOwner {
  readonly nowMs: number;
  readonly roundTripMs: number | undefined;
  readonly hasCarrier: boolean;
  /** It has something that may be sent. */
  onReady(stream: Stream): void;
  /** All that its user wrote was framed. */
  onFlushed(): void;
  onCredit(stream: Stream, bytes: number): void;
  /** Its user has finished with it, maybe early. */
  onDestroyed(stream: Stream, code: number, reason: string): void;
  /** Whether its credit may exceed the first one by `bytes` more; if so, they count as taken. */
  mayGrow(bytes: number): boolean;
  /** So many bytes more (or fewer) wait for users. Returns false if the whole session has too many. */
  onUnread(bytes: number): boolean;
  /** Its user threw an error. */
  onThrown(stream: Stream, error: unknown): void;
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
  readonly #owner: StreamOwner;
  readonly #written: Written;
  readonly #unread = new Unread();
  readonly #credit: Credit;
  /** How many of its bytes the peer has acknowledged, if somebody counts them. */
  #acknowledged: { bytes: number; onMore: (bytes: number) => void } | undefined;
  readonly #ends: {
    /** Whether the user has asked for more than has come. */
    isWanted: boolean;
    hasEnd: boolean;
    reset?: { code: number; reason: string };
    /** The session has ended; told once all that came before was read. */
    linkEnded?: StreamError;
  } = { isWanted: false, hasEnd: false };

  constructor(owner: StreamOwner, id: number) {
    // 0: read() asks for more only when the user has taken everything, so that credit is given for what was read.
    super({ readableHighWaterMark: 0, writableHighWaterMark });
    this.#owner = owner;
    this.id = id;
    this.#credit = new Credit(firstCreditBytes, owner);
    this.#written = new Written(firstCreditBytes, {
      onReady: () => owner.onReady(this),
      onFlushed: () => owner.onFlushed(),
      guard: (work) => this.#guard(work),
    });
    this.on("error", () => {});
  }

  /** Cuts it off in both directions. What is not sent yet is dropped, and the peer's stream fails with the reason. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#ends.reset ??= { code, reason };
    this.destroy();
  }

  /** Whether there is no carrier now: nothing comes or goes. */
  get isWaiting(): boolean {
    return !this.#owner.hasCarrier;
  }

  /** From now on counts how many written bytes the peer has acknowledged. */
  countAcknowledged(onMore: (bytes: number) => void): void {
    this.#acknowledged = { bytes: 0, onMore };
  }
  get isCounted(): boolean {
    return this.#acknowledged !== undefined;
  }

  /** For the session. */
  acknowledged(bytes: number): void {
    const counted = this.#acknowledged!;
    counted.onMore((counted.bytes += bytes));
  }

  /** For the session: what the peer may still send. */
  get allowedBytes(): number {
    return this.#credit.allowedBytes;
  }
  /** For the session: what may exceed {@link firstCreditBytes}. */
  get grownBytes(): number {
    return this.#credit.grownBytes;
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
    if (this.isOverHere || this.#ends.linkEnded) return ended();
    this.#written.end(ended);
  }

  #take(chunks: Buffer[], written: WriteCallback): void {
    if (!this.#written.mayTake())
      return written(new StreamError(resetCodes["link-ended"], "the link is ending"));
    // It fails as soon as the user has read what came.
    if (this.#ends.linkEnded) return this.#written.hold(written);
    for (const { length } of chunks) this.bytesOut += length;
    this.#written.take(chunks, written);
  }

  /** For the session: bytes that may be sent now. */
  get sendableBytes(): number {
    return this.#written.sendableBytes;
  }
  /** For the session: whether `end` is what comes next. */
  get mayEnd(): boolean {
    return this.#written.mayEnd && !this.isOverHere;
  }
  /** For the session: whether nothing that was written is unsent. */
  get isFlushed(): boolean {
    return this.destroyed || (this.writableLength === 0 && this.#written.pendingBytes === 0 && !this.mayEnd);
  }

  /** For the session: copies what may be sent, at most `max` bytes, and returns how much it was. */
  fill(target: Buffer, at: number, max: number): number {
    return this.#written.fill(target, at, max);
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
    const ended = this.#written.takeFinal();
    queueMicrotask(() => this.#guard(() => ended?.()));
  }

  /** For the session, which finishes: takes no more than what is written already. */
  seal(): void {
    this.#written.seal(this.writableLength);
  }

  /** For the session. False: more than a window may be (RFC 9113 §6.9.1). */
  receiveCredit(bytes: number): boolean {
    return this.#written.addCredit(bytes);
  }

  // --- receiving -----------------------------------------------------------------------------------------

  override _read(): void {
    this.#ends.isWanted = true;
    this.#deliver();
  }

  /** For the session. False: the peer has sent more than it may. */
  receive(piece: Buffer): boolean {
    if (!this.#credit.spend(piece.length)) return false;
    if (this.destroyed) return true;
    this.bytesIn += piece.length;
    if (this.#ends.isWanted && this.#unread.isEmpty) this.#hand(piece);
    else this.#keep(piece);
    return true;
  }

  /** For the session. */
  receiveEnd(): void {
    this.#ends.hasEnd = true;
    if (this.#ends.isWanted) this.#deliver();
  }

  receiveReset(code: number, reason: string): void {
    this.destroy(new StreamError(code, `the peer cut the stream off: ${reason || "no reason given"}`));
  }

  #keep(piece: Buffer): void {
    const before = this.#unread.costBytes;
    this.#unread.push(piece);
    if (this.#owner.onUnread(this.#unread.costBytes - before)) return;
    this.reset("too much was sent that nobody reads", resetCodes["too-much-unread"]);
  }

  #deliver(): void {
    while (this.#ends.isWanted && !this.destroyed) {
      const piece = this.#unread.shift();
      if (!piece) return this.#deliverEnd();
      this.#owner.onUnread(-piece.buffer.byteLength);
      this.#hand(piece);
    }
  }

  #deliverEnd(): void {
    if (this.#ends.hasEnd) {
      this.#ends.isWanted = false;
      this.push(null);
    } else if (this.#ends.linkEnded) this.destroy(this.#ends.linkEnded);
  }

  #hand(piece: Buffer): void {
    this.#ends.isWanted = this.push(piece);
    if (this.isOverThere || this.#ends.linkEnded) return;
    const granted = this.#credit.consume(piece.length);
    if (granted > 0) this.#owner.onCredit(this, granted);
  }

  // --- its end -------------------------------------------------------------------------------------------

  /** For the session: nothing more is sent or comes. What came is still delivered if the end is an orderly one. */
  linkEnded(reason: string, isOrderly: boolean): void {
    if (this.destroyed) return;
    const error = new StreamError(resetCodes["link-ended"], `the link has ended: ${reason}`);
    const isRead =
      this.#unread.isEmpty && this.readableLength === 0 && (!this.#ends.hasEnd || this.readableEnded);
    // A user that only writes would not learn of it otherwise.
    const isDeaf = this.#written.hasWriter && this.readableFlowing === null;
    if (!isOrderly || isRead || isDeaf) return void this.destroy(error);
    this.#ends.linkEnded = error;
    this.once("end", () => void (this.writableFinished || this.destroy(error)));
    this.#written.takeFinal()?.();
  }

  override _destroy(error: Error | null, destroyed: (error?: Error | null) => void): void {
    const { costBytes } = this.#unread;
    this.#written.drop();
    this.#unread.clear();
    this.#owner.onUnread(-costBytes);
    const { code, reason } = this.#ends.reset ?? {
      code: error ? resetCodes.failed : resetCodes.cancelled,
      reason: error ? "it failed at the peer" : "the peer has done with it",
    };
    this.#owner.onDestroyed(this, code, reason);
    destroyed(error);
  }
}
