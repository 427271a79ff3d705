/**
 * Notices that a peer does nothing, though it is its turn and the link is whole. For native/uses/send.ts and receive.ts.
 */
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";

/** A peer of whom nothing is heard for so long, when it is its turn, has left us. */
export const silenceMs = 60_000;
/** It may have to read a file to its end before it answers, or to write one to a slow disk: so much more for each byte. */
const bytesPerMs = 4 * 1024;

export interface SilenceOptions {
  /** Of the largest file that the peer may have to read or write now. */
  busyBytes: () => number;
  maxMs?: number | undefined;
}

/**
 * While {@link during} lasts, or from {@link begin} to {@link end}, it is the peer's turn; if nothing is {@link heard} of it then, the stream is cut off, and
 * {@link error} says why. A link without a connection is no silence: time counts anew when it is back.
 */
export class Silence implements Disposable {
  error: StreamError | undefined;
  #silentMs = 0;
  #turns = 0;
  readonly #timer: NodeJS.Timeout;

  constructor(stream: Stream, { busyBytes, maxMs = silenceMs }: SilenceOptions) {
    const tickMs = Math.min(1_000, maxMs / 8);
    this.#timer = setInterval(() => {
      if (this.#turns === 0 || stream.isWaiting) return void (this.#silentMs = 0);
      // Ticks are counted, not time: a program that was stopped must not blame its peer.
      this.#silentMs += tickMs;
      if (this.#silentMs < maxMs || this.#silentMs < maxMs + busyBytes() / bytesPerMs) return;
      clearInterval(this.#timer);
      const reason = `the peer did nothing for ${Math.round(this.#silentMs / 1_000)} s`;
      this.error = new StreamError(resetCodes.failed, reason);
      stream.reset(reason, resetCodes.failed);
    }, tickMs);
  }

  /** The peer has done something. */
  heard(): void {
    this.#silentMs = 0;
  }

  /** It is the peer's turn. */
  begin(): void {
    if (this.#turns++ === 0) this.heard();
  }
  /** It was. */
  end(): void {
    this.#turns--;
  }

  /** It is the peer's turn until that settles. */
  async during<T>(promise: Promise<T>): Promise<T> {
    this.begin();
    try {
      return await promise;
    } finally {
      this.end();
    }
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
