/**
 * Notices that a peer does nothing, though it is the peer's turn and the link is not broken. For native/uses/send.ts and
 * receive.ts.
 */
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";

/** If it is the peer's turn and nothing comes for so long, the transfer is given up. */
export const silenceMs = 60_000;
/** More time for each byte: the peer may have to read a whole file before it answers, or to write one to a slow disk. */
const bytesPerMs = 4 * 1024;

export interface SilenceOptions {
  /** Bytes of the largest file that the peer may have to read or write now. */
  busyBytes: () => number;
  maxMs?: number | undefined;
}

/**
 * It is the peer's turn while {@link during} waits, or from {@link begin} to {@link end}. If nothing is {@link heard}
 * of it then, the stream is cut off, and {@link error} says why. While the link is broken, that is no silence: the time
 * begins anew when the link is back.
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
      // Ticks are counted, not time: if our own program was stopped, that is not the peer's silence.
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
  /** It is no longer the peer's turn. */
  end(): void {
    this.#turns--;
  }

  /** It is the peer's turn until the promise settles. */
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
