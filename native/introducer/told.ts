/**
 * Which tokens two participants have been told to link by: with one of them each of the two can say once that they are
 * linked, and nobody else. It owns no clock and no timer, and knows neither sessions nor messages. For introducer.ts
 * alone.
 */

/** Two programs, by their instances, which stay when they come back with other ids. */
interface Told {
  readonly untilMs: number;
  readonly programs: readonly [string, string];
  /** Those that have not said it yet. */
  silent: readonly string[];
}

export class ToldTokens {
  readonly #lastsMs: number;
  /** The oldest first. */
  readonly #told = new Map<string, Told>();

  /** A token is forgotten so many milliseconds after it was told. */
  constructor(lastsMs: number) {
    this.#lastsMs = lastsMs;
  }

  tell(token: string, a: string, b: string, now: number): void {
    this.forget(now);
    const programs = [a, b] as const;
    this.#told.set(token, { untilMs: now + this.#lastsMs, programs, silent: programs });
  }

  /** Whether `one` may say now that it is linked with `other` by that token: then it has said so. */
  take(token: string, one: string, other: string, now: number): boolean {
    this.forget(now);
    const told = this.#told.get(token);
    if (!told?.silent.includes(one) || !told.programs.includes(other) || one === other) return false;
    told.silent = told.silent.filter((program) => program !== one);
    if (told.silent.length === 0) this.#told.delete(token);
    return true;
  }

  /** Those that are too old. */
  forget(now: number): void {
    for (const [token, { untilMs }] of this.#told) {
      if (untilMs > now) return;
      this.#told.delete(token);
    }
  }
}
