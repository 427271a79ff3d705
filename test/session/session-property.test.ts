/** Whatever happens to carriers, every stream arrives whole, once and in order. On failure the seed is printed. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { type Session } from "../../native/session/session.ts";
import { type Stream } from "../../native/session/stream.ts";
import {
  Pair,
  randomBytes,
  randomFrom,
  type PathOptions,
  type Person,
  type Random,
} from "./memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const seeds = process.env.SEED ? [Number(process.env.SEED)] : [1, Date.now() >>> 0];
const streamsEachWay = 20;

interface Course {
  /** After so many the streams are ended. */
  cuts: number;
  /** Where the next carrier breaks: bytes that arrive at one of its ends. */
  cutAfterBytes: (random: Random) => number;
  path: (random: Random) => PathOptions;
  /** How often a carrier falls silent instead of breaking, and how often the next one comes before it has broken. */
  silent: number;
  early: number;
}

/** Hashes by stream, of what was written and of what was read. */
class Ledger {
  readonly written = new Map<string, string>();
  readonly read = new Map<string, string>();
  readonly failures: string[] = [];
  bytes = 0;

  /** Writes until `isOver`, as fast as the stream takes it. */
  write(stream: Stream, name: string, random: Random, isOver: () => boolean): void {
    const hash = new Bun.CryptoHasher("sha256");
    const more = (): void => {
      while (!isOver()) {
        const bytes = randomBytes(random, 1 + Math.floor(random() ** 4 * 40_000));
        hash.update(bytes);
        this.bytes += bytes.length;
        if (!stream.write(bytes)) return void stream.once("drain", more);
      }
      this.written.set(name, hash.digest("hex"));
      stream.end();
    };
    stream.on("error", (error) => this.failures.push(`${name}: ${error.message}`));
    more();
  }

  receive(stream: Stream, name: string): void {
    const hash = new Bun.CryptoHasher("sha256");
    stream.on("data", (chunk: Buffer) => hash.update(chunk));
    stream.on("end", () => this.read.set(name, hash.digest("hex")));
    stream.on("error", (error) => this.failures.push(`${name}: ${error.message}`));
  }
}

/** Carriers that break, and those who bring the next. */
class Weather {
  cuts = 0;
  readonly #pair: Pair;
  readonly #course: Course;
  readonly #random: Random;

  constructor(pair: Pair, course: Course, random: Random) {
    this.#pair = pair;
    this.#course = course;
    this.#random = random;
  }

  get isOver(): boolean {
    return this.cuts >= this.#course.cuts;
  }

  watch(session: Session, person: Person): void {
    const record = session.onCarrier;
    session.onCarrier = (event) => {
      record(event);
      if (event.is === "moved") return;
      this.#pair.clock.after(this.#random() * 20, () => {
        if (session.state !== "ended" && (event.is === "looks-dead" || !session.carrier)) this.bring(person);
      });
    };
  }

  bring(by: Person): void {
    const random = this.#random;
    const { alice, bob } = this.#pair.carrier(this.#pair.bob ? by : "alice", this.#course.path(random));
    if (this.isOver) return;
    const victim = random() < 0.5 ? alice : bob;
    const isSilent = random() < this.#course.silent;
    victim.cutAfterBytes = this.#course.cutAfterBytes(random);
    const cut = victim.cut.bind(victim);
    victim.cut = () => {
      this.cuts++;
      if (!isSilent) return cut();
      victim.cutAfterBytes = Infinity;
      victim.blackhole();
    };
    if (random() >= this.#course.early) return;
    this.#pair.clock.after(random() * 50, () => this.bring(random() < 0.5 ? "alice" : "bob"));
  }
}

async function endure(seed: number, course: Course): Promise<void> {
  const random = randomFrom(seed);
  const pair = new Pair();
  const ledger = new Ledger();
  const weather = new Weather(pair, course, random);
  const begin = (session: Session, person: Person) => {
    session.onStream = (stream, purpose) => {
      const name = String(purpose.name);
      ledger.receive(stream, name);
      ledger.write(stream, `${name} back`, randomFrom(random() * 2 ** 32), () => weather.isOver);
    };
    weather.watch(session, person);
  };
  begin(pair.alice, "alice");
  const opened = (session: Session, person: Person) => {
    for (let i = 0; i < streamsEachWay / 2; i++) {
      const name = `${person} ${i}`;
      const stream = session.open({ name });
      ledger.receive(stream, `${name} back`);
      ledger.write(stream, name, randomFrom(random() * 2 ** 32), () => weather.isOver);
    }
  };
  pair.onSession = (session, person) => {
    begin(session, person);
    opened(session, person);
  };
  opened(pair.alice, "alice");
  weather.bring("alice");
  try {
    const hasEnded = () => Object.keys(pair.ended).length > 0 || ledger.read.size === 2 * streamsEachWay;
    await pair.clock.until("all streams have ended", hasEnded, 3_600_000);
    expect(ledger.failures).toEqual([]);
    expect([...ledger.read].sort()).toEqual([...ledger.written].sort());
    expect([pair.alice.streamCount, pair.bob?.streamCount, pair.ended]).toEqual([0, 0, {}]);
  } catch (error) {
    console.error(
      `SEED=${seed}`,
      pair.ended,
      ledger.failures,
      weather.cuts,
      pair.events.alice.slice(-5),
      pair.events.bob.slice(-5),
    );
    throw error;
  } finally {
    pair.alice.abandon("the test is over");
    pair.bob?.abandon("the test is over");
  }
}

const courses: Record<string, Course> = {
  "a thousand carriers that break at any byte": {
    cuts: 1_000,
    cutAfterBytes: (random) => 1 + Math.floor(random() ** 3 * 60_000),
    path: (random) => ({ oneWayMs: random() * 10, bytesPerMs: 100 + random() * 1_000, random }),
    silent: 0.1,
    early: 0.2,
  },
  "a thousand carriers that hardly live": {
    cuts: 1_000,
    cutAfterBytes: (random) => 1 + Math.floor(random() * 300),
    path: (random) => ({ oneWayMs: random() * 10, bytesPerMs: 100 + random() * 1_000, random }),
    silent: 0.1,
    early: 0.5,
  },
  "carriers that differ, and come before the last one has gone": {
    cuts: 200,
    cutAfterBytes: (random) => 1 + Math.floor(random() ** 3 * 600_000),
    path: (random) => ({ oneWayMs: random() * 80, bytesPerMs: 10 + random() * 1_000, random }),
    silent: 0.3,
    early: 0.9,
  },
  "slow carriers, of which a third falls silent": {
    cuts: 100,
    cutAfterBytes: (random) => 1 + Math.floor(random() ** 3 * 200_000),
    path: (random) => ({ oneWayMs: random() * 300, bytesPerMs: 5 + random() * 50, random }),
    silent: 0.3,
    early: 0.5,
  },
};

for (const [what, course] of Object.entries(courses)) {
  for (const seed of seeds) {
    test(`20 streams each way over ${what}`, () => endure(seed, course), 60_000);
  }
}
