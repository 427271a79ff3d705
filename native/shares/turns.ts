/**
 * Work for each of many, in slices, so that everything else goes on between them. Ending a thousand sessions at once
 * takes 15 ms, and whoever says something meanwhile would wait for all of it. Owns what is under way and no timer.
 * Anything may import it.
 */

/** How long one slice takes, in ms; longer only if its first piece of work does. */
export const sliceMs = 0.25;

/** Unlike a generator, it goes on where a loop over it was left. */
type BuiltinIterator<T> = SetIterator<T> | ArrayIterator<T>;

/**
 * The rounds under way. Each is a function that does one slice and returns whether there is more. A program has one event
 * loop, and so one list of rounds: in each turn of the loop, one of them does one slice.
 */
const underWay: (() => boolean)[] = [];

function enqueue(round: () => boolean): void {
  if (underWay.push(round) === 1) setImmediate(takeTurn);
}

function takeTurn(): void {
  let hasMore = true; // if one throws, the others still have their turn
  try {
    hasMore = underWay[0]!();
  } finally {
    const round = underWay.shift()!;
    if (hasMore) underWay.push(round);
    if (underWay.length > 0) setImmediate(takeTurn);
  }
}

/** Looks at all of them, slice by slice, whenever told to. What is added to a set meanwhile is looked at, too. */
export class Rounds<T> {
  readonly #all: () => BuiltinIterator<T>;
  readonly #look: (one: T, sliceAt: number) => void;
  #isUnderWay = false;

  /** `look` gets the time at which the slice began, in ms. */
  constructor(all: () => BuiltinIterator<T>, look: (one: T, sliceAt: number) => void) {
    this.#all = all;
    this.#look = look;
  }

  /** Begins a round after the current turn of the event loop. Does nothing if one is under way. */
  begin(): void {
    if (this.#isUnderWay) return;
    this.#isUnderWay = true;
    const left = this.#all();
    enqueue(() => (this.#isUnderWay = this.#slice(left)));
  }

  #slice(left: BuiltinIterator<T>): boolean {
    const sliceAt = performance.now();
    for (const one of left) {
      this.#look(one, sliceAt);
      if (performance.now() - sliceAt >= sliceMs) return true;
    }
    return false;
  }
}

/** Does `work` with each of them, slice by slice. Resolves when all are done; rejects with what `work` throws. */
export function byTurns<T>(all: Iterable<T>, work: (one: T) => void): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const left = all[Symbol.iterator]();
  const slice = () => {
    const sliceAt = performance.now();
    do {
      const { done, value } = left.next();
      if (done) return false;
      work(value);
    } while (performance.now() - sliceAt < sliceMs);
    return true;
  };
  enqueue(() => {
    try {
      const hasMore = slice();
      if (!hasMore) resolve();
      return hasMore;
    } catch (error) {
      reject(error);
      return false;
    }
  });
  return promise;
}
