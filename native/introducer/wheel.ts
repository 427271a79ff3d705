/**
 * Who is to be looked at when. One timer drives it in steps, and a step costs only what is due in it. A timer for each
 * would cost memory. A walk over all at each step would cost time: ten thousand connections that say nothing are in no
 * processor's cache. Pure: no clock, no timer, no output. For introducer.ts and native/introducer/.
 */

/** What can be scheduled. {@link Deadlines} alone sets `slot`: the step in which it is due. */
export interface Due {
  slot: number;
}

/** The slot of what is not scheduled. */
export const notScheduled = Infinity;

export class Deadlines<One extends Due> {
  readonly #stepMs: number;
  readonly #byStep = new Map<number, Set<One>>();
  #step: number;

  constructor(stepMs: number, now: number) {
    this.#stepMs = stepMs;
    this.#step = Math.floor(now / stepMs);
  }

  /** Schedules it for `at`, in ms. Changes nothing if it is due earlier anyway. */
  put(one: One, at: number): void {
    const step = Math.max(this.#step, Math.floor(at / this.#stepMs));
    if (step >= one.slot) return;
    this.remove(one);
    one.slot = step;
    const others = this.#byStep.get(step);
    if (others) others.add(one);
    else this.#byStep.set(step, new Set([one]));
  }

  remove(one: One): void {
    const others = this.#byStep.get(one.slot);
    if (others?.delete(one) && others.size === 0) this.#byStep.delete(one.slot);
    one.slot = notScheduled;
  }

  /** Takes out those that are due. What still waits for something has to be put again. */
  take(now: number): One[] {
    const taken: One[] = [];
    const first = this.#step;
    this.#step = Math.floor(now / this.#stepMs);
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
