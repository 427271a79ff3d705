/** Two sessions over carriers in memory and in real time, for what uses a link: its sockets and files are real. */
import { readOffer, systemClock, type Clock } from "../../native/session/carrier.ts";
import { Session } from "../../native/session/session.ts";
import { type Stream } from "../../native/session/stream.ts";
import {
  carrierPair,
  fingerprints,
  type MemoryCarrier,
  type PathOptions,
  type Person,
} from "./memory-fixture.ts";

const clock: Clock = {
  ...systemClock,
  after(delayMs, then) {
    if (delayMs > 0) return systemClock.after(delayMs, then);
    const immediate = setImmediate(then);
    return () => clearImmediate(immediate);
  },
};

type OnStream = (stream: Stream, purpose: Record<string, unknown>) => void;

/** Disposed of, both sessions are abandoned. */
export class Linked implements Disposable {
  readonly alice = new Session({ role: "controlling", peer: fingerprints.bob, clock });
  bob!: Session;
  carriers!: Record<Person, MemoryCarrier>;
  /** What bob does with alice's streams. */
  onStream: OnStream = () => {};
  /** What alice does with bob's. */
  onStreamBack: OnStream = () => {};

  constructor(options: PathOptions = {}) {
    this.alice.onStream = (stream, purpose) => this.onStreamBack(stream, purpose);
    this.reconnect(options);
  }

  /** Another carrier; the one before breaks, wherever it is. */
  reconnect(options: PathOptions = {}): void {
    this.carriers?.alice.cut();
    this.carriers = carrierPair(clock, options);
    readOffer(
      this.carriers.bob,
      (offer) => {
        this.bob ??= this.#bob(offer.hello.sessionId);
        this.bob.accept(offer);
      },
      (reason) => console.error(reason),
    );
    this.alice.attach(this.carriers.alice);
  }

  /** Breaks carriers for as long as that takes, a new one at once each time. Returns how many it were. */
  async shaken<T>(work: Promise<T>, periodMs = 5): Promise<number> {
    let isOver = false;
    const over = () => (isOver = true);
    work.then(over, over);
    let count = 0;
    for (; !isOver; count++) {
      await Bun.sleep(periodMs);
      this.reconnect();
    }
    return count;
  }

  [Symbol.dispose](): void {
    this.alice.abandon("the test is over");
    this.bob?.abandon("the test is over");
  }

  #bob(id: string): Session {
    const session = new Session({ role: "controlled", peer: fingerprints.alice, clock, id });
    session.onStream = (stream, purpose) => this.onStream(stream, purpose);
    return session;
  }
}
