/**
 * What there is to do for each of many, by turns with everything else the program does: a thousand sessions to end take
 * 15 ms, and whoever says something meanwhile would wait for all of them. It owns neither those nor a timer. For
 * introducer.ts alone.
 */

/** How long others wait at most for what concerns them less. */
export const sliceMs = 0.5;

/** Which goes on after a loop over it was left, unlike a generator. */
type BuiltinIterator<T> = SetIterator<T> | ArrayIterator<T>;

/** Looks at all, as often as it is told to, for {@link sliceMs} at once. Whoever is added to a set meanwhile is looked at, too. */
export class Rounds<T> {
  readonly #all: () => BuiltinIterator<T>;
  readonly #look: (one: T, now: number) => void;
  #isUnderWay = false;

  constructor(all: () => BuiltinIterator<T>, look: (one: T, now: number) => void) {
    this.#all = all;
    this.#look = look;
  }

  /** Begins a round once what is at hand is done, unless one is under way. */
  begin(): void {
    if (this.#isUnderWay) return;
    this.#isUnderWay = true;
    this.#goOn(this.#all());
  }

  #goOn(left: BuiltinIterator<T>): void {
    setImmediate(() => {
      const from = performance.now();
      for (const one of left) {
        this.#look(one, from);
        if (performance.now() - from >= sliceMs) return this.#goOn(left);
      }
      this.#isUnderWay = false;
    });
  }
}
