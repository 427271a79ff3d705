/**
 * Who wants a link with one peer's program: those here who wait for it, and the link of an earlier program, which must
 * learn whether it is over. Owns both. For native/participant/peer.ts.
 */
import type { Link } from "../session/link.ts";
import type { Abortable } from "../shares/abort.ts";

/** `isVerbose`: whether attempts are told. */
export interface Wish extends Abortable {
  isVerbose?: boolean;
}

export class Wanted {
  /** Whether attempts are told: asked for with the last {@link wait}. */
  #isVerbose = false;
  #waiting: { resolve: (link: Link) => void; reject: (error: Error) => void }[] = [];
  /** The link of an earlier program that the introduction is about; unless somebody wants a link with this program. */
  #predecessor: Link | undefined;

  get isVerbose(): boolean {
    return this.#isVerbose;
  }
  get isWaitedFor(): boolean {
    return this.#waiting.length > 0;
  }
  /** Whether the introduction under way is for no link with this program. */
  get isQuiet(): boolean {
    return this.#predecessor !== undefined && !this.isWaitedFor;
  }

  /** `unwanted` is called when its signal has aborted, and nobody else waits. */
  wait({ isVerbose = false, signal }: Wish = {}, unwanted = () => {}): Promise<Link> {
    this.#isVerbose = isVerbose;
    const { promise, resolve, reject } = Promise.withResolvers<Link>();
    const waiting = { resolve, reject };
    this.#waiting.push(waiting);
    const abort = () => {
      this.#waiting = this.#waiting.filter((one) => one !== waiting);
      reject(signal!.reason);
      if (!this.isWaitedFor) unwanted();
    };
    signal?.addEventListener("abort", abort);
    const over = () => signal?.removeEventListener("abort", abort);
    promise.then(over, over);
    return promise;
  }

  askAfter(predecessor: Link): void {
    this.#predecessor = predecessor;
  }

  /** Returned once; undefined if a link with this program is wanted. */
  takePredecessor(): Link | undefined {
    const predecessor = this.isQuiet ? this.#predecessor : undefined;
    this.#predecessor = undefined;
    return predecessor;
  }

  linked(link: Link): void {
    for (const { resolve } of this.#waiting.splice(0)) resolve(link);
  }

  /** Taken out first: a callback may ask again, and must not get this answer. */
  takeWaiting(): (error: Error) => void {
    const waiting = this.#waiting.splice(0);
    return (error) => waiting.forEach(({ reject }) => reject(error));
  }
}
