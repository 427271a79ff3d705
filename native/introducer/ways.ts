/**
 * The ways by which pairs have linked, where those were not the first of the plan: tried first the next time. It owns
 * nothing but that, and keeps it of so many peers of each, lest somebody who links with a whole room fill memory. For
 * introducer.ts alone. Pure.
 */
import type { Way } from "../../protocol.ts";

/** Kept of each participant: those peers whose link a new address or a broken connection may have sought anew. */
const mostWays = 16;

export class WorkingWays {
  /** By the ids of both, in both orders; the oldest first. */
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

  /** Of one who is gone. */
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
