/**
 * By which way a pair has linked, if that was not the first way of the plan: it is tried first the next time. It is
 * kept for a few peers of each participant, because one may link with a whole room. Pure. For native/introducer/.
 */
import type { Way } from "../../protocol.ts";

/** So many peers of each participant: those that may be linked with anew soon. */
const mostWays = 16;

export class WorkingWays {
  /** By both ids, in both orders. The oldest comes first. */
  readonly #of = new Map<number, Map<number, Way>>();

  of(a: number, b: number): Way | undefined {
    return this.#of.get(a)?.get(b);
  }

  keep(a: number, b: number, way: Way): void {
    this.#remove(a, b);
    for (const [one, other] of [
      [a, b],
      [b, a],
    ] as const) {
      const ways = this.#of.get(one) ?? new Map<number, Way>();
      this.#of.set(one, ways.set(other, way));
      const [oldest] = ways.keys();
      if (ways.size > mostWays) this.#remove(one, oldest!);
    }
  }

  /** Forgets all of a participant that is gone. */
  forget(id: number): void {
    for (const other of this.#of.get(id)?.keys() ?? []) this.#remove(other, id);
  }

  #remove(a: number, b: number): void {
    for (const [one, other] of [
      [a, b],
      [b, a],
    ] as const) {
      const ways = this.#of.get(one);
      if (ways?.delete(other) && ways.size === 0) this.#of.delete(one);
    }
  }
}
