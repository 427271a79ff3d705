/**
 * When another channel is sought for a link: at once and then ever more seldom, until it is there. Owns a timer; knows
 * no link, and leaves it to its owner to find out whether seeking makes sense at the moment. For native/participant/seeking.ts.
 */

/**
 * Pauses between two tries: for a link that has no channel or fears for it, and for one that is relayed. Doubled each
 * time, and jittered by half.
 */
const pauses = { soon: { firstMs: 250, mostMs: 2_000 }, direct: { firstMs: 5_000, mostMs: 600_000 } };
/**
 * What is lost again so soon after it was found was not worth much: its pauses grow from one time to the next, so that a
 * peer can't have us ask the introducer, which counts, again and again.
 */
const lastingMs = 10_000;
const mostFlappingMs = 8_000;
/** What changes at the peer makes us ask no oftener than that. */
const hurryEveryMs = 3_000;
/** When the other side of a link without a channel asks, too. */
const secondAsksAfterMs = 1_500;

export class Seeker {
  readonly #seek: () => void;
  #wanted: keyof typeof pauses | undefined;
  #pauseMs = 0;
  #restedAtMs = -Infinity;
  #hurriedAtMs = -Infinity;
  /** How long the latest pause was that was due to that; 0 when what was found had lasted. */
  #flappingMs = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(seek: () => void) {
    this.#seek = seek;
  }

  get wanted(): keyof typeof pauses | undefined {
    return this.#wanted;
  }

  /** Said again, it goes on as it was. */
  want(what: keyof typeof pauses, isFirst: boolean): void {
    if (this.#wanted === what) return;
    this.#wanted = what;
    this.#pauseMs = pauses[what].firstMs;
    if (what === "soon" && performance.now() - this.#restedAtMs < lastingMs) {
      this.#flappingMs = Math.min(mostFlappingMs, Math.max(this.#pauseMs, 2 * this.#flappingMs));
      this.#pauseMs = this.#flappingMs;
      return this.#in(this.#jittered() + (isFirst ? 0 : secondAsksAfterMs));
    }
    this.#flappingMs = 0;
    this.#in(what === "direct" ? this.#jittered() : isFirst ? 0 : secondAsksAfterMs);
  }

  /** The pauses begin anew, with the shortest, but not at any time that the peer says something new of itself. */
  hurry(isFirst: boolean): void {
    if (!this.#wanted) return;
    this.#pauseMs = Math.max(this.#flappingMs, pauses[this.#wanted].firstMs);
    const now = performance.now();
    if (this.#hurriedAtMs > now) return; // it will
    const waitMs = Math.max(0, this.#hurriedAtMs + hurryEveryMs - now);
    this.#hurriedAtMs = now + waitMs;
    this.#in(waitMs + (isFirst ? 0 : secondAsksAfterMs));
  }

  /** It came to nothing. */
  again(): void {
    if (!this.#wanted) return;
    this.#in(this.#jittered());
    this.#pauseMs = Math.max(this.#flappingMs, Math.min(this.#pauseMs * 2, pauses[this.#wanted].mostMs));
  }

  rest(): void {
    this.#restedAtMs = performance.now();
    this.#wanted = undefined;
    clearTimeout(this.#timer);
  }

  #jittered(): number {
    return this.#pauseMs * (0.5 + Math.random());
  }

  #in(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#seek();
      // Where it could not be sought, because nobody is registered or the peer is away, it can be later.
      if (this.#wanted) this.#in(this.#jittered());
    }, ms);
  }
}
