/**
 * Who measures when: two measurements from one port at once would take each other's four-tuples, and an introducer could
 * have us make as many probe connections as it likes. Knows nothing of what is measured. For
 * native/participant/situation.ts.
 */

/** Measurements from fresh ports: so many at once, and so many that wait. */
const maxFresh = 8;
const maxWaiting = 64;

export class Measurements {
  #last: Promise<unknown> = Promise.resolve();
  #fresh = 0;
  readonly #waiting: (() => void)[] = [];

  /** From the shared port: after those that were asked for before, whatever became of them. */
  async alone<T>(measure: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(measure, measure);
    this.#last = mine.catch(() => {});
    return mine;
  }

  /** From a fresh port: beside some others. Undefined, at once, where too many wait. */
  async beside<T>(measure: () => Promise<T>): Promise<T | undefined> {
    if (this.#fresh >= maxFresh) {
      if (this.#waiting.length >= maxWaiting) return undefined;
      const turn = Promise.withResolvers<void>();
      this.#waiting.push(turn.resolve);
      await turn.promise;
    } else this.#fresh++;
    try {
      return await measure();
    } finally {
      // Whoever is next takes the place.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#fresh--;
    }
  }
}
