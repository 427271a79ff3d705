/** Carriers in memory and a clock that tests turn, for the tests of sessions. The same seed, the same course. */
import { readOffer, type Carrier, type Clock } from "../../native/session/carrier.ts";
import { type SessionEnd } from "../../native/session/farewell.ts";
import { Session } from "../../native/session/session.ts";
import { type Role } from "../../protocol.ts";

export type Random = () => number;

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
export function randomFrom(seed: number): Random {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function randomBytes(random: Random, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let at = 0; at < length; at += 4) {
    const word = (random() * 2 ** 32) >>> 0;
    for (let i = 0; i < 4 && at + i < length; i++) bytes[at + i] = word >>> (8 * i);
  }
  return bytes;
}

/** All that is to be done now, the microtasks and ticks of streams included. */
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Time stands still unless it is advanced, and then goes from timer to timer. */
export class TestClock implements Clock {
  #nowMs = 0;
  #timers: { atMs: number; number: number; then: () => void }[] = [];
  #number = 0;

  now(): number {
    return this.#nowMs;
  }

  after(delayMs: number, then: () => void): () => void {
    const timer = { atMs: this.#nowMs + delayMs, number: this.#number++, then };
    let [low, high] = [0, this.#timers.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#timers[middle]!.atMs <= timer.atMs) low = middle + 1;
      else high = middle;
    }
    this.#timers.splice(low, 0, timer);
    return () => {
      const at = this.#timers.indexOf(timer);
      if (at >= 0) this.#timers.splice(at, 1);
    };
  }

  endOfTurn(then: () => void): void {
    this.after(0, then);
  }

  get timerCount(): number {
    return this.#timers.length;
  }

  /** Runs until the condition holds; throws when it takes more than `limitMs` of this clock, or nothing is left. */
  async until(what: string, isTrue: () => boolean, limitMs = 600_000): Promise<void> {
    const giveUpAtMs = this.#nowMs + limitMs;
    for (await settled(); !isTrue(); await settled()) {
      if (!this.#turn(giveUpAtMs)) throw new Error(`never happened: ${what} (at ${this.#nowMs} ms)`);
    }
  }

  async advance(durationMs: number): Promise<void> {
    const endMs = this.#nowMs + durationMs;
    do await settled();
    while (this.#turn(endMs));
    this.#nowMs = endMs;
  }

  /** Whether there was a timer until then; all of its moment are run. */
  #turn(untilMs: number): boolean {
    const atMs = this.#timers[0]?.atMs;
    if (atMs === undefined || atMs > untilMs) return false;
    this.#nowMs = atMs;
    while (this.#timers[0]?.atMs === atMs) this.#timers.shift()!.then();
    return true;
  }
}

export interface PathOptions {
  oneWayMs?: number;
  /** Unlimited unless given. */
  bytesPerMs?: number;
  /** With it, chunks are cut anywhere. */
  random?: Random;
  batchBytes?: number;
  maxRate?: number;
  /** Chunks of at most that size when there is no `random`. */
  chunkBytes?: number;
}

/** One end of a pair. */
export class MemoryCarrier implements Carrier {
  readonly peer: string;
  readonly batchBytes: number;
  readonly maxRate: number;
  onData: (chunk: Buffer) => void = () => {};
  onWritten: () => void = () => {};
  onClose: (reason: string) => void = () => {};
  other!: MemoryCarrier;
  queuedBytes = 0;
  isClosed = false;
  /** Nothing arrives here any more, and nobody is told. */
  isDeaf = false;
  /** Breaks the pair once so many bytes have arrived here. */
  cutAfterBytes = Infinity;
  /** All that was written, when asked for. */
  written: Buffer[] | undefined;
  readonly #clock: Clock;
  readonly #options: PathOptions;
  #arrived: Buffer[] = [];
  #isPaused = false;
  #isReset = false;
  /** When all that was written is taken. */
  #freeAtMs = 0;

  constructor(clock: Clock, peer: string, options: PathOptions) {
    this.#clock = clock;
    this.#options = options;
    this.peer = peer;
    this.batchBytes = options.batchBytes ?? 64 * 1024;
    this.maxRate = options.maxRate ?? Infinity;
  }

  write(bytes: Buffer): void {
    if (this.isClosed) throw new Error("written to a carrier that is closed");
    this.queuedBytes += bytes.length;
    // The kernel takes it a little later, and copies.
    const tookMs = bytes.length / (this.#options.bytesPerMs ?? Infinity);
    this.#freeAtMs = Math.max(this.#freeAtMs, this.#clock.now()) + tookMs;
    this.#clock.after(this.#freeAtMs - this.#clock.now(), () => {
      if (this.isClosed) return;
      const sent = Buffer.from(bytes);
      this.written?.push(sent);
      this.queuedBytes -= bytes.length;
      this.#clock.after(this.#options.oneWayMs ?? 0, () => this.#isReset || this.other.#arrive(sent));
      if (this.queuedBytes === 0) this.onWritten();
    });
  }
  pause(): void {
    this.#isPaused = true;
  }
  resume(): void {
    this.#isPaused = false;
    this.#clock.after(0, () => this.#read());
  }
  finish(): void {
    const close = (): void => {
      if (this.queuedBytes > 0) return void this.#clock.after(1, close);
      this.isClosed = true;
      this.#clock.after(this.#options.oneWayMs ?? 0, () => this.other.break("the peer closed it"));
    };
    close();
  }
  /** As with SO_LINGER 0: what has not arrived is lost. */
  destroy(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.#isReset = true;
    this.#clock.after(this.#options.oneWayMs ?? 0, () => this.other.break("the peer closed it"));
  }
  /** As when the network resets it. */
  break(reason: string): void {
    if (this.isClosed || this.isDeaf) return;
    this.isClosed = true;
    this.onClose(reason);
  }
  /** Both ends. */
  cut(): void {
    this.break("cut");
    this.other.break("cut");
  }
  /** As when a NAT forgets: both ends are there, and nothing gets through. */
  blackhole(): void {
    this.isDeaf = this.other.isDeaf = true;
  }

  #arrive(bytes: Buffer): void {
    if (this.isClosed || this.isDeaf) return;
    this.#arrived.push(bytes);
    this.#read();
  }

  #read(): void {
    while (this.#arrived.length > 0 && !this.#isPaused && !this.isClosed) {
      const bytes = this.#arrived.shift()!;
      const length = Math.min(this.#chunkLength(bytes.length), this.cutAfterBytes);
      if (length < bytes.length) this.#arrived.unshift(bytes.subarray(length));
      this.cutAfterBytes -= length;
      if (length > 0) this.onData(Buffer.from(bytes.subarray(0, length)));
      if (this.cutAfterBytes <= 0) this.cut();
    }
  }

  #chunkLength(available: number): number {
    const { random, chunkBytes } = this.#options;
    if (!random) return Math.min(available, chunkBytes ?? available);
    return random() < 0.3
      ? 1 + Math.floor(random() * Math.min(20, available - 1))
      : 1 + Math.floor(random() * available);
  }
}

export const fingerprints = { alice: "a1".repeat(32), bob: "b0".repeat(32) };
export type Person = keyof typeof fingerprints;

/** A fresh pair: alice's end, which shows bob's certificate, and the other way round. */
export function carrierPair(clock: Clock, options: PathOptions = {}): Record<Person, MemoryCarrier> {
  const alice = new MemoryCarrier(clock, fingerprints.bob, options);
  const bob = new MemoryCarrier(clock, fingerprints.alice, options);
  [alice.other, bob.other] = [bob, alice];
  return { alice, bob };
}

export const endInWords = (end: SessionEnd): string =>
  "reason" in end ? `${end.by}: ${end.reason}` : end.by;

/** Two programs that share a session; alice begins it. */
export class Pair {
  readonly clock = new TestClock();
  readonly alice: Session;
  /** Made by alice's first offer. */
  bob: Session | undefined;
  readonly events: { alice: string[]; bob: string[] } = { alice: [], bob: [] };
  readonly ended: { alice?: string; bob?: string } = {};
  onSession: (session: Session, person: Person) => void = () => {};

  constructor() {
    this.alice = this.#session("controlling", fingerprints.bob, "alice");
  }

  /** A carrier more; `by` nominates it, and speaks first. */
  carrier(by: Person = "alice", options: PathOptions = {}): Record<Person, MemoryCarrier> {
    const pair = carrierPair(this.clock, options);
    const receiver = by === "alice" ? "bob" : "alice";
    readOffer(
      pair[receiver],
      (offer) => {
        if (receiver === "bob")
          this.bob ??= this.#session("controlled", fingerprints.alice, "bob", offer.hello.sessionId);
        this[receiver]?.accept(offer);
      },
      (reason) => this.events[receiver].push(`refused: ${reason}`),
    );
    this[by]!.attach(pair[by]);
    return pair;
  }

  #session(role: Role, peer: string, person: Person, id?: string): Session {
    const session = new Session({ role, peer, clock: this.clock, ...(id && { id }) });
    session.onCarrier = (event) => this.events[person].push(event.is);
    session.onEnd = (end) => (this.ended[person] = endInWords(end));
    this.onSession(session, person);
    return session;
  }
}
