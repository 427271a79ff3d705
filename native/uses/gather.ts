/**
 * For events that a peer can cause as often as it likes: a flood of them becomes one line a second. The first few are told
 * as they come. After that one a second is told, with how many more there were. Owns timers, which keep no program alive.
 * For native/uses/services.ts and native/participant/takers.ts.
 */

/** So many are told at once. The count starts anew after a second without any. */
const toldAtOnce = 5;
const gatheredForMs = 1_000;

interface Period {
  told: number;
  /** How many were not told. */
  kept: number;
  tellLast: ((more: number) => void) | undefined;
}

export class Gathering {
  /** By peer and kind of event. */
  readonly #periods = new Map<string, Period>();

  /** `tell` tells the event; `more`: how many like it were not told. `key`: the peer and the kind of event. */
  add(key: string, tell: (more: number) => void): void {
    const period = this.#periods.get(key) ?? this.#begin(key, 0);
    if (period.told < toldAtOnce) {
      period.told++;
      return tell(0);
    }
    period.kept++;
    period.tellLast = tell;
  }

  #begin(key: string, told: number): Period {
    const period: Period = { told, kept: 0, tellLast: undefined };
    this.#periods.set(key, period);
    setTimeout(() => this.#over(key, period), gatheredForMs).unref();
    return period;
  }

  #over(key: string, { kept, tellLast }: Period): void {
    this.#periods.delete(key);
    if (!tellLast) return;
    this.#begin(key, toldAtOnce);
    tellLast(kept - 1);
  }
}
