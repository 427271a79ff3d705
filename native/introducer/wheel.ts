/**
 * Who is to be looked at when. One timer drives it in steps, and a step costs only what is due in it. A timer for each
 * would cost memory. A walk over all at each step would cost time: ten thousand connections that say nothing are in no
 * processor's cache. It owns that timer. For introducer.ts and native/introducer/.
 */
import { Rounds } from "../shares/turns.ts";

/** A punch is agreed to the millisecond, and what is looked at here may come late by so much. */
const stepMs = 20;

/** What can be scheduled. {@link Wheel} alone sets `slot`: the step in which it is due. */
export interface Due {
  slot: number;
  /** It is due, and no more scheduled. What still waits for something puts itself again. */
  due(now: number): void;
}

/** The slot of what is not scheduled. */
export const notScheduled = Infinity;

export class Wheel {
  readonly now: () => number;
  readonly #byStep = new Map<number, Set<Due>>();
  readonly #rounds = new Rounds(
    () => this.take().values(),
    (one) => one.due(this.now()),
  );
  #step: number;
  #timer: Timer | undefined;

  /** It begins to turn with {@link start}. `now`: in ms, from any moment on. */
  constructor(now: () => number = () => performance.now()) {
    this.now = now;
    this.#step = Math.floor(now() / stepMs);
  }

  /** `onStep` gets how late each step is. */
  start(onStep: (lateMs: number) => void): void {
    let steppedAt = this.now();
    this.#timer = setInterval(() => {
      const now = this.now();
      onStep(now - steppedAt - stepMs);
      steppedAt = now;
      this.#rounds.begin();
    }, stepMs);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** Schedules it for `at`, in ms. Changes nothing if it is due earlier anyway. */
  put(one: Due, at: number): void {
    const step = Math.max(this.#step, Math.ceil(at / stepMs));
    if (step >= one.slot) return;
    this.remove(one);
    one.slot = step;
    const others = this.#byStep.get(step);
    if (others) others.add(one);
    else this.#byStep.set(step, new Set([one]));
  }

  remove(one: Due): void {
    const others = this.#byStep.get(one.slot);
    if (others?.delete(one) && others.size === 0) this.#byStep.delete(one.slot);
    one.slot = notScheduled;
  }

  /** Takes out those that are due. */
  take(): Due[] {
    const taken: Due[] = [];
    const first = this.#step;
    this.#step = Math.floor(this.now() / stepMs);
    for (let step = first; step <= this.#step; step++) {
      for (const one of this.#byStep.get(step) ?? []) {
        one.slot = notScheduled;
        taken.push(one);
      }
      this.#byStep.delete(step);
    }
    return taken;
  }
}
