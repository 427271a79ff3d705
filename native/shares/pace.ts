/**
 * How fast this program sends what has time, such as files and pipes: so many bytes a second in all, or as fast as it can.
 * Owns one bucket, into whose debt each byte goes: whoever has more to send waits until that is paid. So the bytes leave
 * evenly. Pure but for the clock. Anything may import it.
 */
import { type Bucket, refill } from "./budget.ts";

/** So much of a second may leave at once. */
const burstSeconds = 1 / 20;
/** One slice is at most so long, or as long as a burst. */
const sliceBytes = { min: 1024, max: 64 * 1024 };

interface Clock {
  now(): number;
  sleep(ms: number): Promise<unknown>;
}

const clock: Clock = { now: () => performance.now(), sleep: (ms) => Bun.sleep(ms) };

export class Pace {
  readonly #clock: Clock;
  readonly #bucket: Bucket;
  #bytesPerSecond: number | undefined;

  /** Without `bytesPerSecond` nobody waits. */
  constructor(bytesPerSecond?: number, on = clock) {
    this.#clock = on;
    this.#bytesPerSecond = bytesPerSecond;
    this.#bucket = { tokens: 0, at: on.now() };
  }

  get bytesPerSecond(): number | undefined {
    return this.#bytesPerSecond;
  }

  /** It holds within the time of one slice. What was sent too much before is forgotten. */
  set bytesPerSecond(rate: number | undefined) {
    this.#bytesPerSecond = rate;
    Object.assign(this.#bucket, { tokens: 0, at: this.#clock.now() });
  }

  /** The most that is sent in one piece. */
  get slice(): number {
    if (this.#bytesPerSecond === undefined) return Infinity;
    const burst = Math.floor(this.#bytesPerSecond * burstSeconds);
    return Math.min(sliceBytes.max, Math.max(sliceBytes.min, burst));
  }

  /** So many bytes are being sent. */
  spend(bytes: number): void {
    this.#bucket.tokens -= bytes;
  }

  /** Resolves once what was sent is paid for. Undefined if it is. */
  ready(): Promise<void> | undefined {
    return this.#waitMs() > 0 ? this.#wait() : undefined;
  }

  async #wait(): Promise<void> {
    for (let ms = this.#waitMs(); ms > 0; ms = this.#waitMs()) await this.#clock.sleep(ms);
  }

  #waitMs(): number {
    const rate = this.#bytesPerSecond;
    if (rate === undefined) return 0;
    refill(this.#bucket, rate * burstSeconds, rate, this.#clock.now());
    return Math.max(0, Math.ceil((-this.#bucket.tokens / rate) * 1000));
  }
}
