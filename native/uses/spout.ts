/**
 * Hands datagrams to a socket, some in each millisecond. What a stall has held up comes in one go: it would overflow what the
 * kernel keeps for a reader (some 200 KiB, each datagram with its own overhead) before that reader had its turn. Owns what
 * waits meanwhile, and one timer. For native/uses/udp.ts and serve-udp.ts.
 */
import { LateQueue, maxWaitMs } from "./late-queue.ts";

/** In one go, and what each datagram counts for besides its bytes: 270 Mbit/s of 1,200 bytes each. */
const goBytes = 48 * 1024;
const costOfOne = 512;
const goMs = 1;

export class Spout {
  readonly #waiting = new LateQueue();
  readonly #send: (datagram: Buffer) => boolean;
  /** The go that is under way: since when, and what it has spent. */
  #go = { sinceMs: -Infinity, spentBytes: 0 };
  #timer: NodeJS.Timeout | undefined;
  /** Runs while something waits for the socket. */
  #late: NodeJS.Timeout | undefined;

  /** `send`: whether it was taken, or can never be. If not, {@link pump} is called later. */
  constructor(send: (datagram: Buffer) => boolean) {
    this.#send = send;
  }

  /** How many were dropped, because they had waited for too long. */
  get dropped(): number {
    return this.#waiting.dropped;
  }

  push(datagram: Buffer): void {
    this.#waiting.push(datagram, performance.now());
    this.pump();
  }

  pump(): void {
    while (!this.#timer) {
      const nowMs = performance.now();
      const next = this.#waiting.next(nowMs);
      if (!next) return;
      if (nowMs - this.#go.sinceMs >= goMs) this.#go = { sinceMs: nowMs, spentBytes: 0 };
      if (this.#go.spentBytes >= goBytes) return this.#pause();
      if (!this.#send(next)) return this.#dropInTime();
      this.#waiting.shift();
      this.#go.spentBytes += next.length + costOfOne;
    }
  }

  /** What waits too long is dropped, also if nothing else happens: a peer could have us keep it in many flows. */
  #dropInTime(): void {
    this.#late ??= setTimeout(() => {
      this.#late = undefined;
      this.pump();
    }, maxWaitMs);
  }

  #pause(): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.pump();
    }, goMs);
  }

  /** Drops what waits. */
  close(): void {
    for (const timer of [this.#timer, this.#late]) clearTimeout(timer);
    this.#timer = this.#late = undefined;
    this.#waiting.clear();
  }
}
