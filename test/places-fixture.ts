/**
 * Places for tests that run at once. There are few: what is timed in milliseconds comes too late where many programs share
 * two processors.
 */
import { test } from "bun:test";

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

/** `test.concurrent`, of which so many run at once. Its time runs while it waits for its place. */
export function testAtOnce(count: number): typeof test.concurrent {
  const places = new Places(count);
  const placed =
    (body: Body): Body =>
    async (...row) => {
      using _ = await places.take();
      await body(...row);
    };
  const one = (label: string, body: Body, timeoutMs?: number) =>
    test.concurrent(label, placed(body) as () => Promise<void>, timeoutMs);
  const each =
    (rows: never) =>
    (label: string, body: Body, timeoutMs?: number): void =>
      test.concurrent.each(rows)(label, placed(body), timeoutMs);
  return Object.assign(one, { each }) as unknown as typeof test.concurrent;
}
