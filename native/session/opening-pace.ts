/**
 * How fast the peer may open streams. If it opens more, it is not read until it may again. So it slows down only
 * itself. For native/session/multiplexer.ts.
 */
import { refill, type Bucket } from "../shares/budget.ts";
import { type Clock } from "./carrier.ts";

/**
 * So many at once, then so many a second. That is more than a link can carry of streams that are taken. A stream that is
 * refused counts as many.
 */
const opens = { burst: 16_384, perSecond: 10_000, refused: 50 };

export class OpeningPace {
  readonly #clock: Clock;
  readonly #pause: (forMs: number) => void;
  readonly #bucket: Bucket;

  constructor(clock: Clock, pause: (forMs: number) => void) {
    this.#clock = clock;
    this.#pause = pause;
    this.#bucket = { tokens: opens.burst, at: clock.now() };
  }

  opened(): void {
    this.#spend(1);
  }

  refused(): void {
    this.#spend(opens.refused);
  }

  #spend(amount: number): void {
    refill(this.#bucket, opens.burst, opens.perSecond, this.#clock.now());
    this.#bucket.tokens -= amount;
    if (this.#bucket.tokens < 0) this.#pause((-this.#bucket.tokens / opens.perSecond) * 1000);
  }
}
