/**
 * Datagrams that wait for a moment. What has waited for too long is dropped, the oldest first, and counted: late is worse
 * than lost. Pure: its owner says what time it is. For native/uses/.
 */
import { Queue } from "../session/resend.ts";

/** The longest that a datagram waits in a queue. */
export const maxWaitMs = 50;
/** What a queue may hold meanwhile, and what each of its datagrams counts for besides its bytes. */
const maxHeldBytes = 1024 * 1024;
const costOfOne = 256;

interface Waiting {
  readonly datagram: Buffer;
  readonly sinceMs: number;
}

export class LateQueue {
  /** How many were dropped so far. */
  dropped = 0;
  readonly #waiting = new Queue<Waiting>();
  #heldBytes = 0;

  get length(): number {
    return this.#waiting.length;
  }

  push(datagram: Buffer, nowMs: number): void {
    this.#waiting.push({ datagram, sinceMs: nowMs });
    this.#heldBytes += datagram.length + costOfOne;
    while (this.#heldBytes > maxHeldBytes) this.#drop();
  }

  /** The next, which stays; undefined if there is none that is not too late. */
  next(nowMs: number): Buffer | undefined {
    while (this.#waiting.length > 0 && nowMs - this.#waiting.at(0)!.sinceMs > maxWaitMs) this.#drop();
    return this.#waiting.at(0)?.datagram;
  }

  /** Takes the next away. */
  shift(): Buffer | undefined {
    const taken = this.#waiting.shift();
    if (taken) this.#heldBytes -= taken.datagram.length + costOfOne;
    return taken?.datagram;
  }

  /** Drops all. */
  clear(): void {
    while (this.#waiting.length > 0) this.#drop();
  }

  #drop(): void {
    this.dropped++;
    this.shift();
  }
}
