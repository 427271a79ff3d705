/**
 * Where calls come in from outside: from carriers, timers and microtasks. What is thrown there is told to the owner, at
 * most once, and goes nowhere else. Owns no timer. For native/session/.
 */
import { type Clock } from "./carrier.ts";

export class Edge {
  readonly clock: Clock;
  readonly #onThrown: (error: unknown) => void;
  #isClosed = false;

  constructor(clock: Clock, onThrown: (error: unknown) => void) {
    this.clock = clock;
    this.#onThrown = onThrown;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** From now on nobody is told any more. */
  close(): void {
    this.#isClosed = true;
  }

  guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!this.#isClosed) this.#onThrown(error);
    }
  }

  after(delayMs: number, then: () => void): () => void {
    return this.clock.after(delayMs, () => this.guard(then));
  }

  endOfTurn(then: () => void): void {
    this.clock.endOfTurn(() => this.guard(then));
  }

  soon(then: () => void): void {
    queueMicrotask(() => this.guard(then));
  }
}
