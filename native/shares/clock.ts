/**
 * Two clocks. Durations, ages and deadlines go by performance.now(), which never steps. Stamps, which people and other
 * programs read, go by the host's clock, also after that was set or the host has slept. So a moment is kept by the first,
 * and shown by the second. Owns how far the two are apart. Anything may import it.
 */

/** What is less is rounding, or the clock being slewed: stamps close together keep their distance. */
const stepMs = 20;

export class Stamps {
  readonly #now: () => number;
  readonly #wall: () => number;
  #offsetMs: number;

  constructor(now = () => performance.now(), wall = () => Date.now(), offsetMs = performance.timeOrigin) {
    this.#now = now;
    this.#wall = wall;
    this.#offsetMs = offsetMs;
  }

  /** A moment of performance.now(), as ms since the epoch by the host's clock as it is now. */
  of(momentMs: number): number {
    const aheadMs = this.#wall() - (this.#offsetMs + this.#now());
    if (Math.abs(aheadMs) > stepMs) this.#offsetMs += aheadMs;
    return this.#offsetMs + momentMs;
  }

  get now(): number {
    return this.of(this.#now());
  }
}

/** Those of this program. */
export const stamps = new Stamps();
