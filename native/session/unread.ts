/**
 * What came on a stream and waits for its user. Counts the memory that is kept for it. For native/session/stream.ts.
 */
import { Queue } from "./resend.ts";

/** Pieces that wait are put together in blocks of at least this size, so that a flood of small ones stays small. */
const unreadBlockBytes = 4 * 1024;

/** Bytes that wait for the user. Small pieces are copied: one must not keep the whole chunk that it came in. */
export class Unread {
  readonly #pieces = new Queue<Buffer>();
  /** A block of ours with room in it, newer than all pieces. */
  #tail: { block: Buffer; length: number } | undefined;
  #costBytes = 0;

  get isEmpty(): boolean {
    return this.#pieces.length === 0 && !this.#tail;
  }
  /** The memory that is kept for them. */
  get costBytes(): number {
    return this.#costBytes;
  }

  push(piece: Buffer): void {
    if (piece.length >= unreadBlockBytes && piece.length * 2 >= piece.buffer.byteLength) {
      this.#closeTail();
      this.#pieces.push(piece);
      this.#costBytes += piece.buffer.byteLength;
      return;
    }
    const copied = this.#tail ? piece.copy(this.#tail.block, this.#tail.length) : 0;
    if (this.#tail) this.#tail.length += copied;
    if (copied === piece.length) return;
    this.#closeTail();
    const block = Buffer.allocUnsafeSlow(Math.max(piece.length - copied, unreadBlockBytes));
    this.#tail = { block, length: piece.copy(block, 0, copied) };
    this.#costBytes += block.length;
  }

  shift(): Buffer | undefined {
    if (this.#pieces.length === 0) this.#closeTail();
    const piece = this.#pieces.shift();
    if (piece) this.#costBytes -= piece.buffer.byteLength;
    return piece;
  }

  clear(): void {
    this.#pieces.clear();
    this.#tail = undefined;
    this.#costBytes = 0;
  }

  #closeTail(): void {
    if (this.#tail) this.#pieces.push(this.#tail.block.subarray(0, this.#tail.length));
    this.#tail = undefined;
  }
}
