/**
 * What there is to do for each of many, by turns with everything else the program does: a thousand sessions to end take
 * 15 ms, and whoever says something meanwhile would wait for all of them. It owns neither those nor a timer. For both
 * programs.
 */

/** How long others wait for what concerns them less, or as long as it takes to look at one. */
export const sliceMs = 0.25;

/** Which goes on after a loop over it was left, unlike a generator. */
type BuiltinIterator<T> = SetIterator<T> | ArrayIterator<T>;

/**
 * The rounds under way, each as what it does in one slice, which says whether there is more. An event loop is one for all
 * of a program, and so are its turns: in each of them one round has one slice.
 */
const underWay: (() => boolean)[] = [];

function enqueue(round: () => boolean): void {
  if (underWay.push(round) === 1) setImmediate(takeTurn);
}

function takeTurn(): void {
  let hasMore = true; // if one fails, the others have their turn all the same
  try {
    hasMore = underWay[0]!();
  } finally {
    const round = underWay.shift()!;
    if (hasMore) underWay.push(round);
    if (underWay.length > 0) setImmediate(takeTurn);
  }
}

/** Looks at all, as often as it is told to, a slice at once. Whoever is added to a set meanwhile is looked at, too. */
export class Rounds<T> {
  readonly #all: () => BuiltinIterator<T>;
  readonly #look: (one: T, sliceAt: number) => void;
  #isUnderWay = false;

  /** `look` is told when the slice began. */
  constructor(all: () => BuiltinIterator<T>, look: (one: T, sliceAt: number) => void) {
    this.#all = all;
    this.#look = look;
  }

  /** Begins a round once what is at hand is done, unless one is under way. */
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

/**
 * Does something with each of them, a slice at once; resolves when it has been done with all. What it throws ends that,
 * and rejects.
 */
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
