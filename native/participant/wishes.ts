/**
 * Whom we want to be linked with as soon as we are registered. The introducer is told with `register`, and introduces us
 * without being asked again. Owns the names. A wish counts once: then we are being introduced, or have asked ourselves. For
 * participant.ts.
 */
import { maxWants, nameProblem } from "../../protocol.ts";

export class Wishes {
  readonly #names = new Set<string>();

  /** Words that are no names are ids: nobody knows whose they will be. */
  add(words: readonly string[]): void {
    for (const word of words)
      if (nameProblem(word) === undefined && this.#names.size < maxWants) this.#names.add(word);
  }

  get names(): string[] {
    return [...this.#names];
  }

  has(name: string): boolean {
    return this.#names.has(name);
  }

  /** Returns whether there was such a wish. From now on there is none. */
  take(name: string): boolean {
    return this.#names.delete(name);
  }
}
