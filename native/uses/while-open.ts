/**
 * Waiting for something else while a stream is open. For native/uses/.
 */
import type { Duplex } from "node:stream";
import { resetCodes, StreamError } from "../session/stream.ts";

/**
 * Ends all waits once the stream is over. `Promise.race` with one promise for all waits would keep a reaction of each wait
 * in memory until then.
 */
export class WhileOpen {
  readonly #waiting = new Set<(error: Error) => void>();
  #error: Error | undefined;

  constructor(stream: Duplex) {
    stream.on("error", (error) => this.fail(error));
    stream.on("close", () => this.fail(new StreamError(resetCodes.cancelled, "it was broken off")));
  }

  /** Ends all waits, now and later, as if the stream had failed. The first error counts. */
  fail(error: Error): void {
    this.#error ??= error;
    for (const reject of this.#waiting) reject(this.#error);
    this.#waiting.clear();
  }

  /** Settles as the promise does, or rejects once the stream is over, whichever comes first. */
  wait<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      promise.then(resolve, reject).finally(() => this.#waiting.delete(reject));
      if (this.#error) reject(this.#error);
      else this.#waiting.add(reject);
    });
  }
}
