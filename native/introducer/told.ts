/**
 * Which tokens were given to which two participants. With such a token each of the two can say once that they are linked;
 * nobody else can. Owns no clock and no timer. Knows no session and no message. For native/introducer/.
 */

/** Two programs, by their instances: these stay when the programs come back with other ids. */
interface Told {
  readonly untilMs: number;
  readonly programs: readonly [string, string];
  /** Those of the two that have not said yet that they are linked. */
  silent: readonly string[];
}

export class ToldTokens {
  readonly #lastsMs: number;
  /** The oldest first. */
  readonly #told = new Map<string, Told>();

  /** A token is forgotten after so many ms. */
  constructor(lastsMs: number) {
    this.#lastsMs = lastsMs;
  }

  add(token: string, a: string, b: string, now: number): void {
    this.forget(now);
    const programs = [a, b] as const;
    this.#told.set(token, { untilMs: now + this.#lastsMs, programs, silent: programs });
  }

  /** Whether `one` may say that it is linked with `other` by that token. If the answer is true, it has said so. */
  take(token: string, one: string, other: string, now: number): boolean {
    this.forget(now);
    const told = this.#told.get(token);
    if (!told?.silent.includes(one) || !told.programs.includes(other) || one === other) return false;
    told.silent = told.silent.filter((program) => program !== one);
    if (told.silent.length === 0) this.#told.delete(token);
    return true;
  }

  /** Forgets tokens that are too old. */
  forget(now: number): void {
    for (const [token, { untilMs }] of this.#told) {
      if (untilMs > now) return;
      this.#told.delete(token);
    }
  }
}
