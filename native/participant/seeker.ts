/**
 * When another channel is sought for a link: at once and then ever more seldom, until it is there. Owns a timer; knows
 * no link, and leaves it to its owner to find out whether seeking makes sense at the moment. For
 * native/participant/seeking.ts.
 */

/**
 * Pauses between two attempts: for a link whose channel is lost or looks dead, and for a relayed link. Doubled each
 * time; half of it is random.
 */
const pauses = { soon: { firstMs: 250, maxMs: 2_000 }, direct: { firstMs: 5_000, maxMs: 600_000 } };
/**
 * If a channel is lost again so soon after it was found, the first pause grows each time. Else a peer could have us ask the
 * introducer again and again, and the introducer counts that.
 */
const lastingMs = 10_000;
const maxFlappingMs = 8_000;
/** A change at the peer makes us ask at most so often. */
const hurryEveryMs = 3_000;
/** After so long the other side of a link without a channel asks, too. */
const secondAsksAfterMs = 1_500;

/** What tells the time and wakes us: a test has its own. */
export interface Clock {
  now(): number;
  /** Returns what calls it off. */
  wake(work: () => void, ms: number): () => void;
}

const realClock: Clock = {
  now: () => performance.now(),
  wake(work, ms) {
    const timer = setTimeout(work, Math.max(0, ms));
    return () => clearTimeout(timer);
  },
};

export class Seeker {
  readonly #seek: () => void;
  #wanted: keyof typeof pauses | undefined;
  #pauseMs = 0;
  #restedAtMs = -Infinity;
  #hurriedAtMs = -Infinity;
  /** The latest first pause that had grown so; 0 if the last channel had lasted. */
  #flappingMs = 0;
  #callOff = () => {};
  /** When we seek next, unless something happens before. */
  #dueAtMs = Infinity;
  readonly #clock: Clock;

  constructor(seek: () => void, clock = realClock) {
    this.#seek = seek;
    this.#clock = clock;
  }

  get wanted(): keyof typeof pauses | undefined {
    return this.#wanted;
  }

  /** Calling it again changes nothing. */
  want(what: keyof typeof pauses, isFirst: boolean): void {
    if (this.#wanted === what) return;
    this.#wanted = what;
    this.#pauseMs = pauses[what].firstMs;
    if (what === "soon" && this.#clock.now() - this.#restedAtMs < lastingMs) {
      this.#flappingMs = Math.min(maxFlappingMs, Math.max(this.#pauseMs, 2 * this.#flappingMs));
      this.#pauseMs = this.#flappingMs;
      return this.#in(this.#jittered() + (isFirst ? 0 : secondAsksAfterMs));
    }
    this.#flappingMs = 0;
    this.#in(what === "direct" ? this.#jittered() : isFirst ? 0 : secondAsksAfterMs);
  }

  /** Begins with the shortest pause again, but not each time that the peer says something new. It puts nothing off. */
  hurry(isFirst: boolean): void {
    if (!this.#wanted) return;
    this.#pauseMs = Math.max(this.#flappingMs, pauses[this.#wanted].firstMs);
    const now = this.#clock.now();
    if (this.#hurriedAtMs > now) return; // that is planned already
    const waitMs = Math.max(0, this.#hurriedAtMs + hurryEveryMs - now);
    this.#hurriedAtMs = now + waitMs;
    this.#in(Math.min(this.#dueAtMs - now, waitMs + (isFirst ? 0 : secondAsksAfterMs)));
  }

  /** The attempt has failed. */
  again(): void {
    if (!this.#wanted) return;
    this.#in(this.#jittered());
    this.#pauseMs = Math.max(this.#flappingMs, Math.min(this.#pauseMs * 2, pauses[this.#wanted].maxMs));
  }

  rest(): void {
    this.#restedAtMs = this.#clock.now();
    this.#wanted = undefined;
    this.#callOff();
    this.#dueAtMs = Infinity;
  }

  #jittered(): number {
    return this.#pauseMs * (0.5 + Math.random());
  }

  #in(ms: number): void {
    this.#callOff();
    this.#dueAtMs = this.#clock.now() + ms;
    this.#callOff = this.#clock.wake(() => {
      this.#dueAtMs = Infinity;
      this.#seek();
      // If it could not be sought, because we are not registered or the peer is away, it can be later.
      if (this.#wanted) this.#in(this.#jittered());
    }, ms);
  }
}
