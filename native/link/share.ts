/**
 * What there is a fixed number of, among peers that may take as much as they like: each gets one while it has fewer than
 * are left. So one alone gets half, n together n parts of n + 1, and whoever has none always finds some. Owns no timer;
 * pure. For whoever serves peers.
 */
export class FairShare {
  readonly #held = new Map<string, number>();
  readonly #max: number;
  #total = 0;

  constructor(max: number) {
    this.#max = max;
  }

  /** One more for that holder, and what gives it back, once; undefined when it has its share. */
  take(holder: string): (() => void) | undefined {
    const held = this.#held.get(holder) ?? 0;
    if (held >= this.#max - this.#total) return undefined;
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
