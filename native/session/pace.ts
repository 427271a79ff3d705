/**
 * How fast one carrier is written to. What waits on the way makes all behind it late: in our kernel, at a narrow place of
 * the path, in a relay. So nothing is written faster than a relay has said that it goes on. And a round trip that takes
 * longer than the shortest one shows that something waits: then nothing is written until that has come through, and then
 * as much as comes through. That is so while small things go beside bulk; by a relay, which may be shared, always, but
 * then much more may wait. The idea is that of RFC 6817. It writes nothing and has no timer. For native/session/sender.ts.
 */

/** What a relay says is a little too much: it counts what TLS adds, too. */
const partOfTold = 0.97;
/** No rate is lower, whatever a relay says or a peer acknowledges: what keeps a link alive must come through. */
export const minRate = 4 * 1024;
/** One write has what goes in so many ms, but not less than so many bytes. */
const batch = { ms: 10, minBytes: 1024 };
/** So much may be written at once after a pause. So a late timer costs no throughput. */
const burstMs = 30;
/** What TLS adds to a write. */
const overheadBytes = 32;
/** Small things go beside bulk if they did so lately. */
const besideMs = 10_000;
/** How often a round trip is measured: while the rate is held, and otherwise. */
const sampleMs = { held: 50, free: 500 };
/** More must not wait on the way: while small things go beside bulk, and otherwise. So much is believed unmeasured. */
const maxQueueMs = { beside: 20, bulk: 100, first: 500 };
const muchMs = 150;
/** So late the peer acknowledges, about. */
const ackMs = 30;
/** With less on the way, what waits is not ours. */
const minBulkBytes = 4 * 1024;
const maxPauseMs = 2_000;
/** What comes through is measured over such a time. After a pause so long it shows the pause. */
const measuredMs = 250;
const acknowledgedEveryMs = 5;
/** Pauses in a row that change nothing, before the one that tells why. */
const maxInVain = 2;
/**
 * After a pause, what came through is written, and not much less than before, for it varies; but if far less came
 * through, that is true.
 */
const after = { through: 0.98, before: 0.85, farLess: 0.7 };
/** As long as nothing waits, so much more is written with each measurement, up to so much of what comes through. */
const growth = {
  usual: { times: 1.03, ahead: 1.06 },
  /** After so many measurements in a row. */
  fast: { from: 10, times: 1.1, ahead: 1.25 },
  /** A relay that may be shared is begun with so much of what it allows, until something waits. */
  first: { part: 0.25, times: 1.25 },
};

/** A pause, for what waited then. `inVain`: how many up to it have changed nothing. */
interface Pause {
  waitingMs: number;
  ms: number;
  untilMs: number;
  /** What came through, in bytes a second. */
  through: number;
  inVain: number;
}

export class CarrierPace {
  /** Bytes a second that the carrier's relay allows; Infinity where there is none. */
  readonly #told: number;
  /** Bytes a second. */
  #rate: number;
  /** When the next write may come. */
  #nextMs = -Infinity;
  #besideUntilMs = -Infinity;
  #pingMs = -Infinity;
  #shortestMs = Infinity;
  /** The latest two round trips that began after the last pause. */
  #latest: number[] = [];
  /** How many in a row were short. */
  #short = 0;
  #pause: Pause | undefined;
  /** How many bytes had been acknowledged, at some times. */
  readonly #acknowledged: { atMs: number; bytes: number }[] = [];

  /** `maxRate`: that of {@link Carrier}. */
  constructor(maxRate: number) {
    this.#told = Math.max(minRate, maxRate * partOfTold);
    this.#rate = Math.max(minRate, this.#told * growth.first.part);
  }

  #isBeside(now: number): boolean {
    return now < this.#besideUntilMs;
  }

  #isHeld(now: number): boolean {
    return this.#told < Infinity || this.#isBeside(now);
  }

  /** How long the next write must wait, in ms. */
  waitMs(now: number): number {
    return this.#isHeld(now) ? Math.max(0, this.#nextMs - now) : 0;
  }

  /** How many bytes the next write should have, if the carrier takes `most`. */
  batchBytes(most: number, now: number): number {
    if (!this.#isHeld(now)) return most;
    return Math.floor(Math.min(most, Math.max(batch.minBytes, (this.#rate * batch.ms) / 1000)));
  }

  /** Whether a round trip is to be measured with the next write. If the answer is true, it counts as begun. */
  takePing(now: number): boolean {
    if (now - this.#pingMs < (this.#isHeld(now) ? sampleMs.held : sampleMs.free)) return false;
    this.#pingMs = now;
    return true;
  }

  wrote(bytes: number, now: number): void {
    const ms = ((bytes + overheadBytes) * 1000) / this.#rate;
    this.#nextMs = Math.max(this.#nextMs, now - burstMs) + ms;
  }

  /** Something small was written beside bulk, with so many bytes on the way. */
  beside(onTheWay: number, now: number): void {
    const isNew = !this.#isBeside(now);
    this.#besideUntilMs = now + besideMs;
    if (!isNew) return;
    if (this.#told === Infinity) this.#rate = Infinity;
    const through = this.#through ?? Infinity;
    const waitingMs = this.#queueMs(onTheWay, through);
    if (waitingMs > maxQueueMs.bulk)
      this.#drain(Math.min(waitingMs, maxQueueMs.first), onTheWay, through, now);
  }

  /** From now on something is on the way, and nothing was before. `acknowledged`: how many bytes, so far. */
  begin(acknowledged: number, now: number): void {
    this.#acknowledged.length = 0;
    this.acknowledged(acknowledged, now);
  }

  /** So many bytes have been acknowledged so far. */
  acknowledged(bytes: number, now: number): void {
    const all = this.#acknowledged;
    if (now - (all.at(-2)?.atMs ?? -Infinity) < acknowledgedEveryMs) all.pop();
    all.push({ atMs: now, bytes });
    while (all.length > 2 && all[1]!.atMs <= now - measuredMs) all.shift();
  }

  /** Bytes a second that come through; undefined if that is not known. */
  get #through(): number | undefined {
    const [first, last] = [this.#acknowledged[0], this.#acknowledged.at(-1)];
    if (!first || !last || last.atMs - first.atMs < measuredMs / 2) return undefined;
    return ((last.bytes - first.bytes) * 1000) / (last.atMs - first.atMs);
  }

  /** A round trip was measured, with so many bytes on the way. */
  measured(roundTripMs: number, onTheWay: number, now: number): void {
    this.#shortestMs = Math.min(this.#shortestMs, roundTripMs);
    if (this.#pause && now - roundTripMs < this.#pause.untilMs) return; // it shows what the pause was for
    this.#latest = [...this.#latest.slice(-1), roundTripMs];
    if (this.#isHeld(now)) this.#judge(onTheWay, now);
  }

  /** One round trip that is longer says nothing: we, or the peer, may have been busy. Unless it is much longer. */
  #judge(onTheWay: number, now: number): void {
    if (this.#latest.length === 0) return;
    const roundTripMs = Math.min(...this.#latest);
    const waitingMs = roundTripMs - this.#shortestMs;
    if (this.#latest.length < 2 && !(waitingMs > muchMs)) return;
    // As long as much waits, a pause does not show in what comes through.
    const through = this.#hasGoneOn(now) || waitingMs > muchMs ? this.#through : undefined;
    const maxMs = this.#isBeside(now) ? maxQueueMs.beside : maxQueueMs.bulk;
    if (waitingMs <= Math.max(maxMs, (2 * batch.minBytes * 1000) / this.#rate)) this.#grow(through);
    else if (through !== undefined) {
      const ms = Math.min(2 * waitingMs, this.#queueMs(onTheWay, through));
      this.#drain(Math.max(waitingMs, ms), onTheWay, through, now);
    }
  }

  /** Whether the last pause does no longer show in what comes through. */
  #hasGoneOn(now: number): boolean {
    return !this.#pause || now - this.#pause.untilMs >= measuredMs + (this.#latest.at(-1) ?? 0);
  }

  /** What is on the way waits, but for what the path itself takes. Also what was written since the latest round trip. */
  #queueMs(onTheWay: number, through: number): number {
    return (onTheWay * 1000) / Math.max(minRate, through) - this.#shortestMs - ackMs;
  }

  #grow(through: number | undefined): void {
    const { first, fast, usual } = growth;
    if (!this.#pause) return this.#become(this.#rate * first.times);
    this.#pause.inVain = 0;
    const { times, ahead } = ++this.#short > fast.from ? fast : usual;
    if (this.#rate < (through ?? this.#pause.through) * ahead) this.#become(this.#rate * times);
  }

  /**
   * Nothing is written until what waits has come through. If some pauses changed nothing, one is so long that nothing of
   * ours is on the way any more. If that changes nothing either, the path itself has become longer.
   */
  #drain(waitingMs: number, onTheWay: number, through: number, now: number): void {
    if (onTheWay < minBulkBytes) return;
    const last = this.#pause;
    const isInVain = last !== undefined && waitingMs > last.waitingMs - last.ms / 2;
    const inVain = isInVain ? last.inVain + 1 : 0;
    if (inVain > maxInVain) {
      this.#shortestMs += waitingMs;
      last!.inVain = 0;
      return;
    }
    const isFarLess = this.#hasGoneOn(now) && through < after.farLess * this.#rate;
    this.#become(Math.max(through * after.through, isFarLess ? 0 : this.#rate * after.before));
    const isLast = inVain === maxInVain;
    const ms = Math.min(waitingMs + (isLast ? this.#shortestMs + ackMs : 0), maxPauseMs);
    this.#nextMs = Math.max(this.#nextMs, now) + ms;
    this.#pause = { waitingMs, ms, untilMs: now + ms, through, inVain };
    this.#latest = [];
    this.#short = 0;
  }

  #become(rate: number): void {
    this.#rate = Math.min(this.#told, Math.max(minRate, rate));
  }
}
