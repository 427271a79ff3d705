/**
 * What the user of a stream wrote, until it is framed, and how much of it the peer takes. Copies bytes into frames that
 * others make. For native/session/stream.ts.
 */
import { Queue } from "./resend.ts";

/** A credit above that is none (RFC 9113 §6.9.1). */
const maxWindowBytes = 2 ** 31 - 1;

export type WriteCallback = (error?: Error | null) => void;

export interface WrittenOwner {
  /** There is something that may be sent. */
  onReady(): void;
  /** All that the user wrote was framed. */
  onFlushed(): void;
  /** Runs code of the user. */
  guard(work: () => void): void;
}

export class Written {
  /** For the session: whether our `end` or `reset` was sent. */
  isOver = false;
  readonly #owner: WrittenOwner;
  readonly #chunks = new Queue<Buffer>();
  /** Bytes of the first chunk that were framed. */
  #chunkAt = 0;
  #pendingBytes = 0;
  /** Bytes of the write that the Duplex waits for, framed or not. */
  #takenBytes = 0;
  #credit: number;
  #onWritten: WriteCallback | undefined;
  #onFinal: WriteCallback | undefined;
  /** Once the session finishes: whether what the Duplex has buffered is still to be taken. */
  #sealed: { takesBuffered: boolean } | undefined;
  #isClosed = false;
  /** How many of its bytes the peer has acknowledged, if somebody counts them. */
  #acknowledged: { bytes: number; onMore: (bytes: number) => void } | undefined;

  constructor(firstCreditBytes: number, owner: WrittenOwner) {
    this.#credit = firstCreditBytes;
    this.#owner = owner;
  }

  get pendingBytes(): number {
    return this.#pendingBytes;
  }
  /** Bytes that may be sent now. */
  get sendableBytes(): number {
    return Math.min(this.#pendingBytes, this.#credit);
  }
  /** Whether the end of the stream is what comes next. */
  get mayEnd(): boolean {
    return this.#onFinal !== undefined && this.#pendingBytes === 0 && !this.isOver;
  }
  /** Whether someone waits for what was written to be framed. */
  get hasWriter(): boolean {
    return this.#onWritten !== undefined;
  }

  /**
   * Asked once for each write: whether it may still be taken; false when it comes after the session has begun to
   * finish.
   */
  mayTake(): boolean {
    if (!this.#sealed) return true;
    const { takesBuffered } = this.#sealed;
    this.#sealed.takesBuffered = false;
    return takesBuffered;
  }

  take(chunks: Buffer[], written: WriteCallback): void {
    this.#onWritten = written;
    // It fails as soon as the user has read what came.
    if (this.#isClosed) return;
    for (const chunk of chunks) {
      if (chunk.length > 0) this.#chunks.push(chunk);
      this.#pendingBytes += chunk.length;
    }
    this.#takenBytes = this.#pendingBytes;
    if (this.#pendingBytes === 0) this.#writtenSoon();
    else this.#owner.onReady();
  }

  end(ended: WriteCallback): void {
    if (this.isOver || this.#isClosed) return ended();
    this.#onFinal = ended;
    this.#owner.onReady();
  }

  /** Copies what may be sent, at most `max` bytes, and returns how much it was. */
  fill(target: Buffer, at: number, max: number): number {
    const total = Math.min(max, this.sendableBytes);
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
      this.#takenBytes = 0;
      this.#owner.guard(() => written?.());
      this.#owner.onFlushed();
    });
  }

  /** `end` was framed. */
  endSent(): void {
    this.isOver = true;
    const ended = this.#takeFinal();
    queueMicrotask(() => this.#owner.guard(() => ended?.()));
  }

  /** The link has ended: nothing is sent any more. */
  close(): void {
    this.#isClosed = true;
    this.#takeFinal()?.();
  }

  #takeFinal(): WriteCallback | undefined {
    const ended = this.#onFinal;
    this.#onFinal = undefined;
    return ended;
  }

  /** From now on counts how many written bytes the peer has acknowledged. */
  countAcknowledged(onMore: (bytes: number) => void): void {
    this.#acknowledged = { bytes: 0, onMore };
  }
  get isCounted(): boolean {
    return this.#acknowledged !== undefined;
  }

  acknowledged(bytes: number): void {
    const counted = this.#acknowledged!;
    counted.onMore((counted.bytes += bytes));
  }

  /** Takes no more than what is written already; `writableBytes` of that are the Duplex's, or here. */
  seal(writableBytes: number): void {
    this.#sealed ??= { takesBuffered: writableBytes > this.#takenBytes };
  }

  /** False: more than a window may be. */
  addCredit(bytes: number): boolean {
    this.#credit += bytes;
    this.#owner.onReady();
    return this.#credit <= maxWindowBytes;
  }

  drop(): void {
    this.#chunks.clear();
    this.#pendingBytes = 0;
  }
}
