/**
 * Waiting for something else while a stream lives. For what uses streams in native/uses/.
 */
import type { Duplex } from "node:stream";
import { resetCodes, StreamError } from "../session/stream.ts";

/**
 * Ends waits once the stream is over. `Promise.race` with one promise for all of them would keep a reaction of each
 * for as long as the stream lives.
 */
export class WhileOpen {
  readonly #waiting = new Set<(error: Error) => void>();
  #error: Error | undefined;

  constructor(stream: Duplex) {
    stream.on("error", (error) => this.fail(error));
    stream.on("close", () => this.fail(new StreamError(resetCodes.cancelled, "it was broken off")));
  }

  /** Ends waits from now on, as if the stream had failed; the first error is the one that counts. */
  fail(error: Error): void {
    this.#error ??= error;
    for (const reject of this.#waiting) reject(this.#error);
    this.#waiting.clear();
  }

  /** Settles as the promise does, or rejects with why the stream is over, whichever comes first. */
  wait<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      promise.then(resolve, reject).finally(() => this.#waiting.delete(reject));
      if (this.#error) reject(this.#error);
      else this.#waiting.add(reject);
    });
  }
}
