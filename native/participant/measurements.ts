/**
 * The order of measurements. Two from one port at the same time would take each other's four-tuples. And without a limit an
 * introducer could have us make any number of probe connections. Knows nothing of what is measured. For
 * native/participant/situation.ts.
 */

/** Measurements from fresh ports: so many at once, and so many that wait. */
const maxFresh = 8;
const maxWaiting = 64;

export class Measurements {
  #last: Promise<unknown> = Promise.resolve();
  #fresh = 0;
  readonly #waiting: (() => void)[] = [];

  /** Measures from the shared port, after all that were asked for before have ended. */
  async alone<T>(measure: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(measure, measure);
    this.#last = mine.catch(() => {});
    return mine;
  }

  /** Measures from a fresh port, while others may, too. Undefined at once if too many wait. */
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
      // The next one that waits takes the place.
      const next = this.#waiting.shift();
      if (next) next();
      else this.#fresh--;
    }
  }
}
