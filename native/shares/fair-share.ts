/**
 * What there is a fixed number of, among peers that may take as much as they like, and that can't be taken back: each
 * gets one while it has fewer than a part of what is left. So what many take one after another leaves some, and less and
 * less of it. Owns no timer; pure. For whoever serves peers.
 */
export class FairShare {
  readonly #held = new Map<string, number>();
  readonly #max: number;
  readonly #part: number;
  #total = 0;

  /** With a part of 1, one alone gets half. */
  constructor(max: number, part = 1) {
    this.#max = max;
    this.#part = part;
  }

  /** One more for that holder, and what gives it back, once; undefined when it has its share. */
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
