/**
 * Who is to be looked at when. One timer drives it in steps, and a step costs only what is due in it. A timer for each
 * would cost memory. A walk over all at each step would cost time: ten thousand connections that say nothing are in no
 * processor's cache. It owns that timer. For introducer.ts and native/introducer/.
 */
import { Rounds } from "../shares/turns.ts";

/** What is looked at here may come late by so much. */
const stepMs = 20;
/** If nothing is due, the timer looks again after so many steps. */
const idleSteps = 25;
/** A timer that is so late says that this process had no processor. */
const stalledMs = 100;

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
  /** The first step that was not taken out to its end. */
  #step: number;
  #timer: Timer | undefined;
  /** The step that the timer waits for. */
  #awaited = -Infinity;
  #onStep: (lateMs: number) => void = () => {};
  #backAt = -Infinity;

  /** It begins to turn with {@link start}. `now`: in ms, from any moment on. */
  constructor(now: () => number = () => performance.now()) {
    this.now = now;
    this.#step = Math.floor(now() / stepMs);
  }

  /** When this process last had a processor again after it had none: what was said meanwhile has not been read by then. */
  get backAt(): number {
    return this.#backAt;
  }

  /** `onStep` gets how late the timer is, each time. */
  start(onStep: (lateMs: number) => void): void {
    this.#onStep = onStep;
    this.#await(this.#nextStep());
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#awaited = -Infinity;
  }

  /** What is over is looked at in the next step: who is late again and again must not keep us busy. */
  #awaitSoonest(step: number): void {
    const soonest = Math.max(step, this.#followingStep);
    if (soonest < this.#awaited) this.#await(soonest);
  }

  get #followingStep(): number {
    return Math.floor(this.now() / stepMs) + 1;
  }

  #await(step: number): void {
    clearTimeout(this.#timer);
    this.#awaited = step;
    const leftMs = Math.max(0, Math.ceil(step * stepMs - this.now()));
    this.#timer = setTimeout(() => this.#turn(), leftMs);
  }

  #turn(): void {
    const now = this.now();
    const lateMs = now - this.#awaited * stepMs;
    if (lateMs > stalledMs) this.#backAt = now;
    this.#onStep(lateMs);
    this.#rounds.begin();
    this.#await(this.#nextStep());
  }

  /** The next step in which something is due, or where we look again. */
  #nextStep(): number {
    const next = this.#followingStep;
    for (let step = this.#step; step < next + idleSteps; step++)
      if (this.#byStep.has(step)) return Math.max(step, next);
    return next + idleSteps;
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
    if (step < this.#awaited) this.#awaitSoonest(step);
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
