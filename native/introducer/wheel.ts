/**
 * Who is to be looked at when, by the steps of a timer: a step costs as much as is due in it, not as there is. One timer
 * for all, because a timer for each costs memory, and so would walking through all of them at each step cost time: ten
 * thousand connections that say nothing are in no processor's cache. Pure: no clock, no timer, no output. For
 * introducer.ts alone.
 */

/** Nobody else sets its step. */
export interface Due {
  dueStep: number;
}

/** For one that has not been put. */
export const neverDue = Infinity;

export class Deadlines<One extends Due> {
  readonly #stepMs: number;
  readonly #byStep = new Map<number, Set<One>>();
  #step: number;

  constructor(stepMs: number, now: number) {
    this.#stepMs = stepMs;
    this.#step = Math.floor(now / stepMs);
  }

  /** It is to be looked at by then: if that was to be earlier anyway, nothing changes. */
  put(one: One, at: number): void {
    const step = Math.max(this.#step, Math.floor(at / this.#stepMs));
    if (step >= one.dueStep) return;
    this.remove(one);
    one.dueStep = step;
    const others = this.#byStep.get(step);
    if (others) others.add(one);
    else this.#byStep.set(step, new Set([one]));
  }

  remove(one: One): void {
    const others = this.#byStep.get(one.dueStep);
    if (others?.delete(one) && others.size === 0) this.#byStep.delete(one.dueStep);
    one.dueStep = neverDue;
  }

  /** Those whose step has come; whoever still waits for something is to be put again. */
  take(now: number): One[] {
    const taken: One[] = [];
    const first = this.#step;
    this.#step = Math.floor(now / this.#stepMs);
    for (let step = first; step <= this.#step; step++) {
      for (const one of this.#byStep.get(step) ?? []) {
        one.dueStep = neverDue;
        taken.push(one);
      }
      this.#byStep.delete(step);
    }
    return taken;
  }
}
