/**
 * Places for tests that run at once. There are few: what is timed in milliseconds comes too late where many programs share
 * two processors.
 */
import { test } from "bun:test";
import { isField } from "./needing-fixture.ts";
import { testMs } from "./patience-fixture.ts";

export class Places {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** Resolves once one is free. It is the next one's when it is disposed of. */
  async take(): Promise<Disposable> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return { [Symbol.dispose]: () => this.#give() };
  }

  #give(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#free++;
  }
}

type Body = (...row: unknown[]) => void | Promise<unknown>;

/** Of a test's body, and of the time that it says that it has. */
type Change = (body: Body, timeoutMs?: number) => Body;

/** `test` or `test.concurrent`, with another body in place of each. `mostMs`: what the runner is told in place of its time. */
export function testWith(
  one: typeof test.concurrent,
  change: Change,
  mostMs?: number,
): typeof test.concurrent {
  const changed = (label: string, body: Body, timeoutMs?: number) =>
    one(label, change(body, timeoutMs) as () => Promise<void>, mostMs ?? timeoutMs);
  const each =
    (rows: never) =>
    (label: string, body: Body, timeoutMs?: number): void =>
      one.each(rows)(label, change(body, timeoutMs), mostMs ?? timeoutMs);
  return Object.assign(changed, { each }) as unknown as typeof test.concurrent;
}

/** Rejects when the work takes longer. */
export async function within(ms: number, work: void | Promise<unknown>): Promise<void> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`this test took more than ${ms} ms`)), ms);
  await Promise.race([work, late.promise]).finally(() => clearTimeout(timer));
}

/** `test.concurrent`, of which so many run at once. Its time begins when it has its place. */
export function testAtOnce(count: number): typeof test.concurrent {
  const places = new Places(count);
  const placed: Change =
    (body, timeoutMs = testMs) =>
    async (...row) => {
      using _ = await places.take();
      await within(timeoutMs, body(...row));
    };
  return testWith(test.concurrent, placed, 0);
}

/** A busy machine loses a race between packets now and then; what is broken loses it each time. */
const raceTries = isField ? 1 : 3;

/** For what races with packets: of so many tries one must be won, and those that were lost are told. */
export function inTries(one: typeof test): typeof test {
  const tries =
    (body: Body): Body =>
    async (...row) => {
      for (let lost = 1; lost < raceTries; lost++) {
        try {
          return await body(...row);
        } catch (error) {
          console.error(`lost ${lost} of ${raceTries} tries: ${Bun.inspect(error)}`);
        }
      }
      await body(...row);
    };
  const concurrent = testWith(one.concurrent, tries);
  return Object.assign(testWith(one, tries), { concurrent }) as unknown as typeof test;
}
