/**
 * The credit that we give the peer for one stream: what it may have under way, which grows where the path takes more
 * (RFC 9113 §6.9). Sends nothing. For native/session/stream.ts.
 */

/** What a stream may have under way once its round trip needs as much. */
export const maxCreditBytes = 16 * 1024 * 1024;
/** A used-up credit grows only when it was used up within so many round trips. */
const growthRoundTrips = 2;

export interface CreditOwner {
  readonly nowMs: number;
  readonly roundTripMs: number | undefined;
  /** Whether it may exceed the first one by `bytes` more; if so, they count as taken. */
  mayGrow(bytes: number): boolean;
}

/** What the peer may have under way. */
export class Credit {
  readonly #owner: CreditOwner;
  readonly #firstBytes: number;
  #window: number;
  /** How much of it is left to the peer. */
  #allowed: number;
  #consumed = 0;
  #roundBytes = 0;
  #roundAt: number;

  constructor(firstBytes: number, owner: CreditOwner) {
    this.#firstBytes = this.#window = this.#allowed = firstBytes;
    this.#owner = owner;
    this.#roundAt = owner.nowMs;
  }

  get allowedBytes(): number {
    return this.#allowed;
  }
  get grownBytes(): number {
    return this.#window - this.#firstBytes;
  }

  /** False: the peer has sent more than it may. */
  spend(bytes: number): boolean {
    if (bytes > this.#allowed) return false;
    this.#allowed -= bytes;
    return true;
  }

  /** So much was read. Returns what the peer may send more, in portions of a quarter of the window; mostly 0. */
  consume(bytes: number): number {
    this.#consumed += bytes;
    this.#roundBytes += bytes;
    if (this.#consumed < this.#window / 4) return 0;
    const granted = this.#consumed + this.#growth();
    this.#consumed = 0;
    this.#allowed += granted;
    return granted;
  }

  /** Doubled whenever all of it was used up within two round trips: the path would have taken more. */
  #growth(): number {
    if (this.#roundBytes < this.#window) return 0;
    const { nowMs, roundTripMs } = this.#owner;
    const tookMs = nowMs - this.#roundAt;
    this.#roundAt = nowMs;
    this.#roundBytes = 0;
    if (roundTripMs === undefined || tookMs > growthRoundTrips * roundTripMs) return 0;
    const growth = Math.min(this.#window, maxCreditBytes - this.#window);
    if (growth === 0 || !this.#owner.mayGrow(growth)) return 0;
    this.#window += growth;
    return growth;
  }
}
