/**
 * A fixed number of places for holders who want as many as they can get. A place can't be taken back. So a holder gets
 * one more only while it has fewer than a part of what is left, and some always stay for others. Pure: no timer, no clock.
 * Anything may import it.
 */
export class FairShare {
  readonly #held = new Map<string, number>();
  readonly #max: number;
  readonly #part: number;
  #total = 0;

  /** `max` places in all. `part`: with 1, a holder that is alone gets half of them. */
  constructor(max: number, part = 1) {
    this.#max = max;
    this.#part = part;
  }

  /** Takes one more place. Returns what gives it back, once; undefined if the holder has its share. */
  take(holder: string): (() => void) | undefined {
    const held = this.#held.get(holder) ?? 0;
    if (held >= (this.#max - this.#total) * this.#part) return undefined;
    this.#held.set(holder, held + 1);
    this.#total++;
    let isHeld = true;
    return () => {
      if (isHeld) this.#give(holder);
      isHeld = false;
    };
  }

  #give(holder: string): void {
    const held = this.#held.get(holder)! - 1;
    this.#total--;
    if (held > 0) this.#held.set(holder, held);
    else this.#held.delete(holder);
  }

  get total(): number {
    return this.#total;
  }
}
