/** How fast a carrier is written to: what waits on the way, on paths that are computed, without a clock. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { minRate, CarrierPace } from "../../native/session/pace.ts";
import { Pair } from "./memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const mib = 1024 * 1024;
const most = 64 * 1024;
/** An event of a small stream so often. */
const eventMs = 20;
const ackMs = 20;

interface Path {
  /** Bytes a second that the narrowest place takes. */
  rate: number;
  owdMs: number;
  /** Random, of each round trip. */
  jitterMs?: number;
  /** What the kernel has under way at most. */
  windowBytes?: number;
}

/** Bulk that never ends on a path with one narrow place, a ms at a time. */
class Bulk {
  readonly path: Path;
  readonly pace: CarrierPace;
  hasEvents = true;
  now = 0;
  /** At the narrow place. */
  waitingBytes = 0;
  #isEventDue = false;
  #written = 0;
  #through = 0;
  #acknowledged = 0;
  #acks: { atMs: number; bytes: number }[] = [];
  #ping: { behind: number; sentMs: number; backMs?: number } | undefined;
  #seed = 1;

  constructor(path: Path, maxRate = Infinity) {
    this.path = path;
    this.pace = new CarrierPace(maxRate);
    this.pace.begin(0, 0);
    this.pace.measured(2 * path.owdMs, 0, 0); // the ping of every new carrier
  }

  get #random(): number {
    this.#seed = (this.#seed * 48_271) % 2_147_483_647;
    return this.#seed / 2_147_483_647;
  }

  get #onTheWay(): number {
    return this.#written - this.#acknowledged;
  }

  /** For so long; returns bytes a second that came through, and the most ms of data that waited. */
  run(ms: number): { rate: number; waitingMs: number } {
    const [until, from] = [this.now + ms, this.#through];
    let waitingMs = 0;
    for (; this.now < until; this.now++) {
      this.#write();
      this.#carry();
      this.#hear();
      waitingMs = Math.max(waitingMs, (this.waitingBytes * 1000) / this.path.rate);
    }
    return { rate: ((this.#through - from) * 1000) / ms, waitingMs };
  }

  #write(): void {
    const { windowBytes = 512 * 1024 } = this.path;
    if (this.hasEvents && this.now % eventMs === 0) this.#isEventDue = true;
    while (this.pace.waitMs(this.now) === 0 && this.#onTheWay < windowBytes) {
      if (this.pace.takePing(this.now)) this.#ping ??= { behind: this.#written, sentMs: this.now };
      if (this.#isEventDue) this.pace.beside(this.#onTheWay, this.now);
      this.#isEventDue = false;
      const bytes = this.pace.batchBytes(most, this.now);
      this.pace.wrote(bytes, this.now);
      this.#written += bytes;
      this.waitingBytes += bytes;
    }
  }

  #carry(): void {
    const bytes = Math.min(this.waitingBytes, this.path.rate / 1000);
    this.waitingBytes -= bytes;
    this.#through += bytes;
    const { owdMs, jitterMs = 0 } = this.path;
    if (this.now % ackMs === 0) this.#acks.push({ atMs: this.now + 2 * owdMs, bytes: this.#through });
    const ping = this.#ping;
    if (ping && ping.backMs === undefined && this.#through >= ping.behind)
      ping.backMs = this.now + 2 * owdMs + jitterMs * this.#random;
  }

  #hear(): void {
    while (this.#acks[0] && this.#acks[0].atMs <= this.now) {
      this.#acknowledged = this.#acks.shift()!.bytes;
      this.pace.acknowledged(this.#acknowledged, this.now);
    }
    if (this.#ping?.backMs === undefined || this.#ping.backMs > this.now) return;
    const { sentMs } = this.#ping;
    this.#ping = undefined;
    this.pace.measured(this.now - sentMs, this.#onTheWay, this.now);
  }
}

const isSmall = 50;

describe("what waits on the way", () => {
  test.each([
    ["1 MiB/s", mib],
    ["64 KiB/s", 64 * 1024],
    ["16 MiB/s", 16 * mib],
  ])("is less than 50 ms in a relay that allows %s, from the first byte on", (_, rate) => {
    const bulk = new Bulk({ rate, owdMs: 30, windowBytes: 4 * mib }, rate);
    expect(bulk.run(1_000).waitingMs).toBeLessThan(isSmall);
    const later = bulk.run(10_000);
    expect(later.waitingMs).toBeLessThan(isSmall);
    expect(later.rate / rate).toBeGreaterThan(0.9);
  });

  test("is little by a relay that others share, and whose part of it changes", () => {
    const bulk = new Bulk({ rate: mib / 4, owdMs: 30 }, mib);
    bulk.run(5_000);
    const shared = bulk.run(10_000);
    expect(shared.waitingMs).toBeLessThan(isSmall);
    expect(shared.rate / (mib / 4)).toBeGreaterThan(0.85);
    bulk.path.rate = mib / 8;
    bulk.run(8_000);
    expect(bulk.run(5_000).waitingMs).toBeLessThan(isSmall);
    bulk.path.rate = mib;
    bulk.run(8_000);
    const alone = bulk.run(5_000);
    expect(alone.waitingMs).toBeLessThan(isSmall);
    expect(alone.rate / mib).toBeGreaterThan(0.85);
  });

  test.each([
    ["50 Mbit/s", 6 * mib],
    ["10 Mbit/s", 1.2 * mib],
    ["2 Mbit/s", mib / 4],
  ])("is little on a direct path of %s while small things go beside bulk", (_, rate) => {
    const bulk = new Bulk({ rate, owdMs: 20 });
    bulk.hasEvents = false;
    expect(bulk.run(3_000).waitingMs).toBeGreaterThan(isSmall);
    bulk.hasEvents = true;
    bulk.run(10_000);
    const beside = bulk.run(10_000);
    expect(beside.waitingMs).toBeLessThan(isSmall);
    expect(beside.rate / rate).toBeGreaterThan(0.85);
  });
});

test.each([["a relay", mib] as const, ["no relay", Infinity] as const])(
  "what stands waiting after a while in which nothing came through is not taken for the path: %s",
  (_, told) => {
    const bulk = new Bulk({ rate: mib, owdMs: 30 }, told);
    for (let times = 0; times < 3; times++) {
      bulk.run(8_000);
      bulk.path.rate = 0;
      bulk.run(700);
      bulk.path.rate = mib;
    }
    bulk.run(8_000);
    const later = bulk.run(5_000);
    expect(later.waitingMs).toBeLessThan(2 * isSmall);
    expect(later.rate / mib).toBeGreaterThan(0.85);
  },
);

describe("no throughput is lost", () => {
  test("where nothing small goes beside bulk: then nothing holds it up", () => {
    const { pace } = new Bulk({ rate: mib, owdMs: 20 });
    for (let now = 0; now < 10_000; now++) {
      pace.wrote(pace.batchBytes(most, now), now);
      pace.measured(now, 1e6, now);
      expect([pace.waitMs(now), pace.batchBytes(most, now)]).toEqual([0, most]);
    }
  });

  test.each([["a relay", mib] as const, ["no relay", Infinity] as const])(
    "where round trips vary, by %s",
    (_, told) => {
      const bulk = new Bulk({ rate: mib, owdMs: 30, jitterMs: 60 }, told);
      bulk.run(5_000);
      expect(bulk.run(20_000).rate / mib).toBeGreaterThan(0.7);
    },
  );

  test.each([60, 120, 200])("where the path has become longer, for long: %d ms", (owdMs) => {
    const bulk = new Bulk({ rate: mib, owdMs: 20 });
    bulk.run(5_000);
    bulk.path.owdMs = owdMs;
    bulk.run(5_000);
    expect(bulk.run(10_000).rate / mib).toBeGreaterThan(0.85);
  });
});

describe("a session whose carrier is relayed", () => {
  /** Bulk has been under way for a while. */
  async function loaded(maxRate: number) {
    const pair = new Pair();
    pair.onSession = (session) => (session.onStream = (stream) => void stream.resume());
    const { alice: carrier } = pair.carrier("alice", { oneWayMs: 30, maxRate });
    carrier.written = [];
    const bulk = pair.alice.open({ use: "bulk" });
    const write = () => {
      while (bulk.write(Buffer.alloc(most)));
    };
    bulk.on("drain", write);
    write();
    await pair.clock.advance(5_000);
    return { pair, written: carrier.written };
  }
  const sum = (chunks: Buffer[]) => chunks.reduce((bytes, { length }) => bytes + length, 0);

  test.each([64 * 1024, mib])("writes as fast as that has said, and no faster: %d", async (rate) => {
    const { pair, written } = await loaded(rate);
    for (let times = 0; times < 50; times++) {
      const from = sum(written);
      await pair.clock.advance(100);
      expect(sum(written) - from).toBeLessThanOrEqual((rate * (100 + isSmall)) / 1000);
    }
    expect(sum(written)).toBeWithin(rate * 0.9 * 8, rate * 10);
  });

  test("leaves no timer when it ends, also in the midst of a pause", async () => {
    const { pair } = await loaded(minRate);
    pair.alice.abandon("over");
    await pair.clock.advance(70); // the end has arrived
    expect([pair.clock.timerCount, pair.ended.bob]).toEqual([0, "peer: over"]);
  });

  test.each([64 * 1024, mib])("sends what is small within 50 ms of bulk: %d", async (rate) => {
    const { pair, written } = await loaded(rate);
    const small = pair.alice.open({ use: "small" });
    for (let times = 0; times < 50; times++) {
      const [from, mark] = [written.length, Buffer.alloc(100, `event ${times};`)];
      small.write(mark);
      const sent = () => written.slice(from).findIndex((chunk) => chunk.includes(mark));
      await pair.clock.until("it is sent", () => sent() >= 0, 10_000);
      expect(sum(written.slice(from, from + sent()))).toBeLessThan((rate * isSmall) / 1000);
      await pair.clock.advance(20);
    }
  });
});

describe("a rate that is a lie", () => {
  test.each([1, minRate, 1e9, Number.MAX_SAFE_INTEGER])(
    "%d: the next write comes within a second",
    (told) => {
      const pace = new CarrierPace(told);
      pace.begin(0, 0);
      for (let now = 0; now < 60_000; now += 50) {
        pace.acknowledged(0, now); // and nothing is ever acknowledged
        pace.measured(now, 1e6, now);
        if (pace.waitMs(now) > 0) continue;
        const bytes = pace.batchBytes(most, now);
        expect(bytes).toBeWithin(1024, most + 1);
        expect(Number.isInteger(bytes)).toBe(true);
        pace.wrote(bytes, now);
        expect(pace.waitMs(now)).toBeLessThan(1_000);
      }
    },
  );
});
