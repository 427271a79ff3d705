/**
 * Whether a carrier is alive: it asks for pings, and judges by the answers that are due. Owns the signs of life and the
 * round trip. Closes nothing, and has no timer. For native/session/transport.ts and its parts.
 */
import { type CarrierState } from "./carrier-state.ts";
import { type Clock } from "./carrier.ts";
import { encodeCount, frame } from "./frame.ts";

/** An idle carrier is pinged so often. That keeps NATs from forgetting it, and shows if the peer is dead. */
const keepaliveMs = { max: 15_000, min: 3_000 };
/** A carrier looks dead once an answer has been due for so long, and for so many round trips. */
const patience = { minMs: 2_000, roundTrips: 4 };
/** It is given up after so many times that time. */
const givenUpAfter = 5;

/** `quietMs`: how long an answer has been due. */
export interface Verdict {
  is: "alive" | "looks-dead" | "dead";
  quietMs: number;
}

export interface LivenessOptions {
  clock: Clock;
  /** Whether the peer has frames to acknowledge. */
  isAckDue: () => boolean;
  /** Whether nothing is being read now: then nothing can be heard. */
  isDeaf: () => boolean;
  onPingDue: () => void;
}

export class Liveness {
  /** The latest round trip measured. */
  roundTripMs: number | undefined;
  readonly #options: LivenessOptions;
  #keepaliveMs = keepaliveMs.max;
  #pings = 0;

  constructor(options: LivenessOptions) {
    this.#options = options;
  }

  get #nowMs(): number {
    return this.#options.clock.now();
  }

  get #patienceMs(): number {
    return Math.max(patience.minMs, patience.roundTrips * (this.roundTripMs ?? 0));
  }

  heard({ life }: CarrierState): void {
    life.heardAtMs = this.#nowMs;
  }

  /** Something was sent that must be acknowledged, and nothing was due before. */
  asked({ life }: CarrierState): void {
    life.askedAtMs = this.#nowMs;
  }

  /** Since when an answer has been due; undefined if none is, or if we are not reading. */
  dueSince({ life, incoming }: CarrierState): number | undefined {
    const isDue = typeof life.ping === "object" || this.#options.isAckDue();
    if (!isDue || incoming.reading === "held" || this.#options.isDeaf()) return undefined;
    return Math.max(life.heardAtMs, life.askedAtMs);
  }

  judge(state: CarrierState): Verdict {
    const now = this.#nowMs;
    const quietMs = now - (this.dueSince(state) ?? now);
    const patienceMs = this.#patienceMs;
    if (quietMs >= givenUpAfter * patienceMs) return { is: "dead", quietMs };
    return { is: quietMs >= patienceMs ? "looks-dead" : "alive", quietMs };
  }

  /** Pings a carrier that has been idle for long. */
  keepAlive(state: CarrierState): void {
    const idleMs = this.#nowMs - state.life.heardAtMs;
    if (this.dueSince(state) === undefined && idleMs >= this.#keepaliveMs) this.ping(state);
  }

  /** Whether to tell now that it looks dead, maybe once more. If the answer is true, it counts as told. */
  mayTellDead(state: CarrierState): boolean {
    const now = this.#nowMs;
    if (now - state.life.toldDeadAtMs < this.#patienceMs) return false;
    state.life.toldDeadAtMs = now;
    this.shortenKeepalive(state);
    return true;
  }

  /** It was silent for a while, then dead: probably a NAT forgot it. The next one is pinged more often. */
  shortenKeepalive({ life }: CarrierState): void {
    const idleMs = life.askedAtMs - life.heardAtMs;
    const { min } = keepaliveMs;
    if (idleMs >= min) this.#keepaliveMs = Math.max(min, Math.min(this.#keepaliveMs, idleMs / 2));
  }

  /** Begins to measure the round trip, unless that is under way. */
  ping({ life }: CarrierState): void {
    if (life.ping !== "none") return;
    life.ping = "due";
    this.#options.onPingDue();
  }

  takePing(state: CarrierState): Buffer | undefined {
    if (state.life.ping !== "due") return undefined;
    if (this.dueSince(state) === undefined) this.asked(state);
    state.life.ping = { number: ++this.#pings, sentAtMs: this.#nowMs };
    return encodeCount(frame.ping, this.#pings);
  }

  /** Returns the round trip, if that is the answer to our ping. */
  ponged({ life }: CarrierState, number: number): number | undefined {
    if (typeof life.ping !== "object" || life.ping.number !== number) return undefined;
    this.roundTripMs = this.#nowMs - life.ping.sentAtMs;
    life.ping = "none";
    return this.roundTripMs;
  }
}
