import { expect, setDefaultTimeout, test } from "bun:test";
import { judgeOffer, readOffer, refuseOffer, type Offer } from "../../native/session/carrier.ts";
import { encodeHello, frame, linkVersion, resumedStatus } from "../../native/session/frame.ts";
import { Session } from "../../native/session/session.ts";
import { StreamError, type Stream } from "../../native/session/stream.ts";
import {
  carrierPair,
  fingerprints,
  Pair,
  randomBytes,
  randomFrom,
  TestClock,
  type MemoryCarrier,
  type PathOptions,
} from "./memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const megabyte = 1024 * 1024;

/** A session under load both ways: random bytes without end, until `stop`, and their hashes. */
class Loaded {
  readonly pair = new Pair();
  readonly path: PathOptions;
  first!: { alice: MemoryCarrier; bob: MemoryCarrier };
  readonly #hashes: Bun.CryptoHasher[] = [];
  readonly #random = randomFrom(5);
  #isStopped = false;
  #ended = 0;
  bytesRead = 0;

  private constructor(path: PathOptions) {
    this.path = path;
  }

  static async begin(path: PathOptions): Promise<Loaded> {
    const loaded = new Loaded(path);
    loaded.pair.onSession = (session) => {
      session.onStream = (stream) => {
        loaded.#read(stream);
        loaded.#write(stream);
      };
    };
    loaded.first = loaded.pair.carrier("alice", path);
    const stream = loaded.pair.alice.open({ for: "load" });
    loaded.#read(stream);
    loaded.#write(stream);
    await loaded.flows();
    return loaded;
  }

  /** Bytes that came beside those that were read: frames, and what came twice. */
  get overhead(): number {
    return this.pair.alice.bytesIn + this.pair.bob!.bytesIn - this.bytesRead;
  }

  async flows(bytes = 2 * megabyte): Promise<void> {
    const from = this.bytesRead;
    await this.pair.clock.until("bytes flow", () => this.bytesRead > from + bytes);
  }

  /** All that was written has been read, and nothing else. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.pair.clock.until("both directions have ended", () => this.#ended === 2);
    const [a, b, c, d] = this.#hashes.map((hash) => hash.digest("hex"));
    // Alice's reader and writer, then bob's.
    expect([a, c]).toEqual([d, b]);
    expect(this.pair.ended).toEqual({});
  }

  #read(stream: Stream): void {
    const hash = new Bun.CryptoHasher("sha256");
    this.#hashes.push(hash);
    stream.on("data", (chunk: Buffer) => {
      hash.update(chunk);
      this.bytesRead += chunk.length;
    });
    stream.on("end", () => this.#ended++);
  }

  #write(stream: Stream): void {
    const hash = new Bun.CryptoHasher("sha256");
    this.#hashes.push(hash);
    const more = (): void => {
      while (!this.#isStopped) {
        const bytes = randomBytes(this.#random, 1 + Math.floor(this.#random() * 30_000));
        hash.update(bytes);
        if (!stream.write(bytes)) return void stream.once("drain", more);
      }
      stream.end();
    };
    more();
  }
}

const path = { oneWayMs: 20, bytesPerMs: 2_000, random: randomFrom(1) };

for (const by of ["alice", "bob"] as const) {
  test(`a move under load, offered by ${by}: no gap, nothing sent twice, the old carrier closed`, async () => {
    const loaded = await Loaded.begin({ ...path, oneWayMs: 200 });
    const { pair, first } = loaded;
    const before = loaded.overhead;
    const next = pair.carrier(by, { ...path, oneWayMs: 200 });
    await loaded.flows();
    expect(pair.events).toEqual({ alice: ["moved"], bob: ["moved"] });
    expect([pair.alice.carrier, pair.bob!.carrier]).toEqual([next.alice, next.bob]);
    await pair.clock.until("the old one is closed", () => first.alice.isClosed && first.bob.isClosed, 1_000);
    // Ten times as much is under way.
    expect(loaded.overhead - before).toBeLessThan(0.1 * megabyte);
    expect([pair.alice.carriersSoFar, pair.bob!.carriersSoFar]).toEqual([2, 2]);
    await loaded.stop();
  });
}

test("the peer's first data takes no round trip more than its nomination", async () => {
  const pair = new Pair();
  let said = "";
  pair.onSession = (session) =>
    (session.onStream = (stream) => stream.on("data", (chunk) => (said += chunk)));
  pair.carrier("alice", { oneWayMs: 50 });
  pair.alice.open({ for: "lines" }).write("hello");
  await pair.clock.until("it arrives", () => said === "hello");
  expect(pair.clock.now()).toBe(50);
});

test("what was received is acknowledged within 20 ms, also when nothing else is said", async () => {
  const pair = new Pair();
  pair.onSession = (session) => (session.onStream = (stream) => stream.resume());
  pair.carrier("alice", { oneWayMs: 50 });
  await pair.clock.advance(500);
  pair.alice.open({ for: "a test" }).write("hello");
  await pair.clock.advance(100);
  expect(pair.alice.outstandingBytes).toBeGreaterThan(0);
  await pair.clock.advance(21);
  expect(pair.alice.outstandingBytes).toBe(0);
});

test("a broken carrier: both are told, streams wait, and the next one goes on", async () => {
  const loaded = await Loaded.begin(path);
  loaded.first.alice.cut();
  await loaded.pair.clock.advance(100);
  expect(loaded.pair.events).toEqual({ alice: ["lost"], bob: ["lost"] });
  expect(loaded.pair.alice.carrier).toBeUndefined();
  const gaps: number[] = [];
  loaded.pair.alice.onCarrier = (event) => event.is === "moved" && gaps.push(event.gapMs);
  loaded.pair.carrier("alice", path);
  await loaded.flows();
  expect(gaps).toHaveLength(1);
  expect(gaps[0]).toBeGreaterThanOrEqual(140);
  expect(gaps[0]).toBeLessThan(200);
  await loaded.stop();
});

test("a silent carrier looks dead after two seconds, and is kept until the next one has begun", async () => {
  const loaded = await Loaded.begin(path);
  const { pair, first } = loaded;
  first.alice.blackhole();
  const from = pair.clock.now();
  await pair.clock.until("alice is told", () => pair.events.alice.includes("looks-dead"));
  expect(pair.clock.now() - from).toBeGreaterThanOrEqual(2_000 - 2 * 20);
  expect(pair.clock.now() - from).toBeLessThanOrEqual(2_300);
  expect([pair.alice.carrier, first.alice.isClosed]).toEqual([first.alice, false]);
  const offeredAt = pair.clock.now();
  pair.carrier("alice", path);
  await loaded.flows(100_000);
  // Nobody waits for what the dead one might bring.
  expect(pair.clock.now() - offeredAt).toBeLessThan(500);
  expect(pair.events.alice.filter((event) => event === "lost")).toEqual([]);
  await loaded.stop();
});

test("a carrier that looked dead and speaks again simply goes on", async () => {
  const loaded = await Loaded.begin(path);
  loaded.first.alice.pause();
  loaded.first.bob.pause();
  await loaded.pair.clock.until("both are told", () =>
    [loaded.pair.events.alice, loaded.pair.events.bob].every((events) => events.includes("looks-dead")),
  );
  loaded.first.alice.resume();
  loaded.first.bob.resume();
  await loaded.flows();
  expect(loaded.pair.alice.carrier).toBe(loaded.first.alice);
  await loaded.stop();
});

test("an idle carrier that is dead is noticed within 45 s, and given up", async () => {
  const pair = new Pair();
  const { alice } = pair.carrier("alice", { oneWayMs: 20 });
  await pair.clock.advance(60_000);
  expect(pair.events).toEqual({ alice: [], bob: [] });
  alice.blackhole();
  await pair.clock.advance(45_000);
  for (const events of [pair.events.alice, pair.events.bob]) {
    expect(events[0]).toBe("looks-dead");
    expect(events.at(-1)).toBe("lost");
  }
  expect(pair.ended).toEqual({});
});

test("after a carrier that died of silence, none is left silent for so long", async () => {
  const pair = new Pair();
  const { alice } = pair.carrier("alice", { oneWayMs: 20 });
  await pair.clock.advance(1_000);
  alice.blackhole();
  await pair.clock.until("it is missed", () => pair.events.alice.includes("looks-dead"));
  pair.carrier("alice", { oneWayMs: 20 });
  await pair.clock.until("there is another", () => pair.events.alice.includes("moved"));
  let [longestMs, quietMs, before] = [0, 0, pair.alice.bytesIn];
  for (let elapsedMs = 0; elapsedMs < 60_000; elapsedMs += 250) {
    await pair.clock.advance(250);
    quietMs = pair.alice.bytesIn === before ? quietMs + 250 : 0;
    before = pair.alice.bytesIn;
    longestMs = Math.max(longestMs, quietMs);
  }
  expect(longestMs).toBeWithin(3_000, 8_000);
});

test("both sides offer a carrier at once: one move on either side, to the same one", async () => {
  for (const skewMs of [0, 1, 15, 30, 45]) {
    for (const [first, second] of [
      ["alice", "bob"],
      ["bob", "alice"],
    ] as const) {
      const loaded = await Loaded.begin(path);
      const { pair } = loaded;
      const [one, other] = [{ oneWayMs: 20 + skewMs }, { oneWayMs: 20 }];
      const offered = pair.carrier(first, one);
      await pair.clock.advance(skewMs / 3);
      const rival = pair.carrier(second, other);
      await loaded.flows();
      const used = [offered, rival].find(({ alice }) => alice === pair.alice.carrier)!;
      expect(pair.bob!.carrier).toBe(used.bob);
      expect(pair.events).toEqual({ alice: ["moved"], bob: ["moved"] });
      const spare = used === offered ? rival : offered;
      await pair.clock.until(
        "the other one is closed",
        () => spare.alice.isClosed && spare.bob.isClosed,
        1_000,
      );
      await loaded.stop();
    }
  }
});

test("an offer that never arrived does not keep the other side's out", async () => {
  const loaded = await Loaded.begin(path);
  const { pair, first } = loaded;
  pair.carrier("alice", path).alice.blackhole();
  first.alice.cut();
  await pair.clock.advance(10);
  const rescue = pair.carrier("bob", path);
  await loaded.flows();
  expect(pair.alice.carrier).toBe(rescue.alice);
  await loaded.stop();
});

test("a carrier that dies anywhere in the middle of a resumption", async () => {
  const resumption = 38 + 16 * 4;
  for (let bytes = 1; bytes <= resumption; bytes += 3) {
    for (const end of ["alice", "bob"] as const) {
      const loaded = await Loaded.begin({ ...path, oneWayMs: 2 });
      const { pair, first } = loaded;
      const fragile = pair.carrier("alice", { oneWayMs: 2, chunkBytes: 5 });
      fragile[end].cutAfterBytes = bytes;
      await pair.clock.until("it has broken", () => fragile.alice.isClosed);
      if (bytes % 2 === 0) first.alice.cut();
      await pair.clock.advance(50);
      if (!pair.alice.carrier || !pair.bob!.carrier) pair.carrier("alice", path);
      await loaded.flows(100_000);
      await loaded.stop();
    }
  }
});

test("late frames on an old carrier are read, in their place, as long as they come", async () => {
  const loaded = await Loaded.begin({ oneWayMs: 1_800, bytesPerMs: 500 });
  const { pair } = loaded;
  await loaded.flows(10 * megabyte);
  const before = { overhead: loaded.overhead, read: loaded.bytesRead };
  // All on it comes before what is still under way on the old one.
  pair.carrier("alice", { oneWayMs: 20, bytesPerMs: 5_000 });
  await pair.clock.until("both have moved", () => pair.events.alice.length + pair.events.bob.length === 2);
  await pair.clock.advance(1_500);
  expect(loaded.bytesRead - before.read).toBeGreaterThan(megabyte);
  await loaded.flows(10 * megabyte);
  expect(loaded.overhead - before.overhead).toBeLessThan(0.1 * megabyte);
  await loaded.stop();
});

test("a slow old carrier that brings nothing is not waited for longer than a second", async () => {
  const loaded = await Loaded.begin({ oneWayMs: 400, bytesPerMs: 2_000 });
  const { pair, first } = loaded;
  pair.carrier("alice", { oneWayMs: 20, bytesPerMs: 20_000 });
  first.alice.blackhole();
  await pair.clock.advance(1_600);
  const from = loaded.bytesRead;
  await pair.clock.advance(300);
  expect(loaded.bytesRead).toBeGreaterThan(from);
  await loaded.stop();
});

test("what an old carrier took with it is asked for at once", async () => {
  const loaded = await Loaded.begin({ oneWayMs: 400, bytesPerMs: 2_000 });
  const { pair, first } = loaded;
  pair.carrier("alice", { oneWayMs: 20, bytesPerMs: 20_000 });
  await pair.clock.until("both have moved", () => pair.events.alice.length + pair.events.bob.length === 2);
  await pair.clock.advance(50);
  first.alice.cut();
  const from = loaded.bytesRead;
  await pair.clock.advance(200);
  expect(loaded.bytesRead).toBeGreaterThan(from + megabyte);
  await loaded.stop();
});

test("an answer that comes after a better carrier is in use: that one stays, and no frame is lost with the other", async () => {
  const loaded = await Loaded.begin({ ...path, oneWayMs: 100 });
  const { pair } = loaded;
  const before = loaded.overhead;
  pair.carrier("alice", { ...path, oneWayMs: 100 });
  await pair.clock.until("bob has moved", () => pair.events.bob.length === 1);
  await pair.clock.advance(20);
  const better = pair.carrier("bob", { oneWayMs: 5, bytesPerMs: 2_000 });
  await loaded.flows();
  expect(pair.events).toEqual({ alice: ["moved"], bob: ["moved", "moved"] });
  expect([pair.alice.carrier, pair.bob!.carrier]).toEqual([better.alice, better.bob]);
  expect(loaded.overhead - before).toBeLessThan(0.05 * megabyte);
  await loaded.stop();
});

test("an acknowledgement that is lost with the old carrier is said again on the next", async () => {
  const pair = new Pair();
  pair.onSession = (session) => (session.onStream = (stream) => stream.resume());
  const first = pair.carrier("alice", { oneWayMs: 20 });
  await pair.clock.until("bob is there", () => pair.bob !== undefined);
  pair.bob!.onStream = (stream) => stream.resume();
  pair.alice.onStream = (stream) => stream.resume();
  await pair.clock.advance(1_000);
  pair.carrier("alice", { oneWayMs: 300 });
  // Alice hears it after she has said how far she is, and bob hears no more on that carrier.
  pair.bob!.open({ for: "a test" }).write("the last words");
  first.bob.isDeaf = true;
  await pair.clock.until("alice has moved", () => pair.events.alice.includes("moved"));
  await pair.clock.advance(1_000);
  expect(pair.bob!.outstandingBytes).toBe(0);
  expect(pair.events).toEqual({ alice: ["moved"], bob: ["moved"] });
});

test("without a carrier, an old one that speaks again goes on", async () => {
  const loaded = await Loaded.begin(path);
  const { pair, first } = loaded;
  first.alice.pause();
  first.bob.pause();
  await pair.clock.until("alice is told", () => pair.events.alice.includes("looks-dead"));
  // Broken between `resumed` and `start`, so that the old one is still kept.
  const fragile = pair.carrier("alice", { oneWayMs: 5, chunkBytes: 2 });
  fragile.alice.cutAfterBytes = 40;
  await pair.clock.until("alice has none", () => pair.events.alice.includes("lost"));
  first.alice.resume();
  first.bob.resume();
  await loaded.flows();
  expect([pair.alice.carrier, pair.bob!.carrier]).toEqual([first.alice, first.bob]);
  await loaded.stop();
});

test("without another carrier, one that replaced an old one and broke gives way to it again", async () => {
  const loaded = await Loaded.begin({ ...path, oneWayMs: 200 });
  const { pair, first } = loaded;
  const next = pair.carrier("alice", { oneWayMs: 1 });
  await pair.clock.until("both have moved", () => pair.events.alice.length + pair.events.bob.length === 2);
  next.alice.cut();
  await loaded.flows();
  expect([pair.alice.carrier, pair.bob!.carrier]).toEqual([first.alice, first.bob]);
  expect(pair.events.alice).toEqual(["moved", "moved"]);
  await loaded.stop();
});

// --- ends ------------------------------------------------------------------------------------------------

test("an orderly end: all that was written arrives first, then streams fail with the reason", async () => {
  const pair = new Pair();
  const seen = { bytes: 0, ended: false, error: "" };
  let there!: Stream;
  pair.onSession = (session) => (session.onStream = (stream) => void (there = stream));
  pair.carrier("alice", { oneWayMs: 20, bytesPerMs: 1_000 });
  const here = pair.alice.open({ for: "a test" });
  here.write(Buffer.alloc(200_000));
  here.write("last");
  pair.alice.finish("that was all");
  expect(() => pair.alice.open({ for: "another" })).toThrow("the link has ended");
  await pair.clock.until(
    "both have ended",
    () => pair.ended.alice !== undefined && pair.ended.bob !== undefined,
  );
  expect(pair.ended).toEqual({ alice: "us: that was all", bob: "peer: that was all" });
  expect(pair.clock.now()).toBeLessThan(1_000);
  // Bob's user comes late, and still gets it all, and no false end.
  there.on("data", (chunk: Buffer) => (seen.bytes += chunk.length));
  there.on("end", () => (seen.ended = true));
  there.on("error", (error) => (seen.error = error.message));
  await pair.clock.until("it has failed", () => there.closed);
  expect(seen).toEqual({ bytes: 200_004, ended: false, error: "the link has ended: that was all" });
  await pair.clock.advance(1_000);
  expect([here.destroyed, pair.clock.timerCount]).toEqual([true, 0]);
});

test("an orderly end with streams that have ended, too, gives their users the end", async () => {
  const pair = new Pair();
  let there!: Stream;
  pair.onSession = (session) => (session.onStream = (stream) => void (there = stream));
  pair.carrier("alice", { oneWayMs: 20 });
  pair.alice.open({ for: "a test" }).end("all of it");
  pair.alice.finish("done");
  await pair.clock.until("it is over", () => pair.ended.bob !== undefined);
  let [text, isEnded] = ["", false];
  there.on("data", (chunk) => (text += chunk));
  there.on("end", () => (isEnded = true));
  await pair.clock.until("it is closed", () => there.closed);
  expect([text, isEnded]).toEqual(["all of it", true]);
});

test("both sides finish at once", async () => {
  const pair = new Pair();
  pair.carrier("alice", { oneWayMs: 20 });
  await pair.clock.until("bob is there", () => pair.bob !== undefined);
  pair.alice.finish("alice says so");
  pair.bob!.finish("bob says so");
  await pair.clock.until(
    "both have ended",
    () => pair.ended.alice !== undefined && pair.ended.bob !== undefined,
    500,
  );
  expect(pair.ended).toEqual({ alice: "us: alice says so", bob: "us: bob says so" });
});

test("an end is not held up by a reader that stalls, nor by a writer that goes on, nor by a carrier that is away", async () => {
  for (const what of ["stalled", "endless", "away"]) {
    const pair = new Pair();
    pair.onSession = (session) =>
      (session.onStream = (stream) => void (what === "endless" && stream.resume()));
    const { alice } = pair.carrier("alice", { oneWayMs: 20, bytesPerMs: 1_000 });
    const stream = pair.alice.open({ for: "a test" });
    const more = (): void => {
      while (stream.writable && stream.write(Buffer.alloc(100_000)));
    };
    stream.on("drain", more);
    more();
    await pair.clock.advance(1_000);
    if (what === "away") alice.cut();
    pair.alice.finish("enough");
    await pair.clock.until(`it ends: ${what}`, () => pair.ended.alice !== undefined, 12_000);
    expect(pair.ended.alice).toBe("us: enough");
    if (what === "endless") expect(pair.clock.now()).toBeLessThan(3_000);
    pair.bob!.abandon("the test is over");
  }
});

test("an end at once: streams on both sides fail with the reason", async () => {
  const pair = new Pair();
  const errors: Error[] = [];
  pair.onSession = (session) =>
    (session.onStream = (stream) => stream.on("error", (error) => errors.push(error)).resume());
  pair.carrier("alice", { oneWayMs: 20 });
  const here = pair.alice.open({ for: "a test" });
  here.on("error", (error) => errors.push(error));
  await pair.clock.advance(100);
  pair.alice.abandon("the user pressed Ctrl-C");
  await pair.clock.until("both have ended", () => pair.ended.bob !== undefined && errors.length === 2);
  expect(pair.ended).toEqual({ alice: "us: the user pressed Ctrl-C", bob: "peer: the user pressed Ctrl-C" });
  for (const error of errors) {
    expect(error).toBeInstanceOf(StreamError);
    expect(error.message).toBe("the link has ended: the user pressed Ctrl-C");
  }
  await pair.clock.advance(1_000);
  expect(pair.clock.timerCount).toBe(0);
});

// --- who has which session -------------------------------------------------------------------------------

/** What bob's program makes of alice's first frame. */
async function offerTo(clock: TestClock, alice: Session): Promise<Offer> {
  const { alice: here, bob: there } = carrierPair(clock);
  let offer = undefined as Offer | undefined;
  readOffer(
    there,
    (one) => (offer = one),
    (reason) => expect.unreachable(reason),
  );
  alice.attach(here);
  await clock.until("the offer is there", () => offer !== undefined);
  return offer!;
}

test("a program that has restarted does not know the session: streams are reset at once, and told so", async () => {
  const loaded = await Loaded.begin(path);
  const { pair, first } = loaded;
  first.alice.cut();
  let reason = "";
  const stream = pair.alice.open({ for: "later" });
  stream.on("error", (error) => (reason = error.message));
  const offer = await offerTo(pair.clock, pair.alice);
  expect(judgeOffer(offer, undefined, fingerprints.alice)).toBe("refuse");
  refuseOffer(offer, resumedStatus.unknown);
  await pair.clock.until("it has ended", () => pair.ended.alice !== undefined);
  await pair.clock.until("its streams were told", () => reason !== "");
  expect([pair.ended.alice, reason]).toEqual(["restart", "the link has ended: peer-restarted"]);
  pair.bob!.abandon("the test is over");
});

test("which session an offer is for", async () => {
  const clock = new TestClock();
  const begin = (id?: string) =>
    new Session({ role: "controlling", peer: fingerprints.bob, clock, ...(id && { id }) });
  const fresh = await offerTo(clock, begin("bb".repeat(16)));
  const held = (id: string, isConfirmed: boolean, state: Session["state"] = "open") => ({
    id,
    isConfirmed,
    state,
  });
  const judge = (known?: Parameters<typeof judgeOffer>[1]) => judgeOffer(fresh, known, fingerprints.alice);
  expect(judge()).toBe("begin");
  expect(judge(held("bb".repeat(16), true))).toBe("resume");
  expect(judge(held("bb".repeat(16), true, "ended"))).toBe("begin");
  expect(judge(held("aa".repeat(16), true))).toBe("begin");
  // Both begin one at a time: the same one stays on both sides.
  expect(judge(held("aa".repeat(16), false))).toBe("refuse");
  expect(judge(held("cc".repeat(16), false))).toBe("begin");
  expect(judgeOffer(fresh, held("bb".repeat(16), true), fingerprints.bob)).toBe("refuse");
});

test("what may be confirmed no more is no session that a later program of the peer's begins", async () => {
  const clock = new TestClock();
  const session = new Session({ role: "controlling", peer: fingerprints.bob, clock });
  const first = await offerTo(clock, session);
  expect(judgeOffer(first, undefined, fingerprints.alice)).toBe("begin");
  session.confirm();
  const later = await offerTo(clock, session);
  expect(judgeOffer(later, undefined, fingerprints.alice)).toBe("refuse");
  session.abandon("the test is over");
});

test("a first carrier that dies before a word is followed by one that begins the session", async () => {
  const pair = new Pair();
  let said = "";
  pair.onSession = (session) =>
    (session.onStream = (stream) => stream.on("data", (chunk) => (said += chunk)));
  const first = pair.carrier("alice", { oneWayMs: 20 });
  pair.alice.open({ for: "lines" }).write("hello");
  await pair.clock.advance(10);
  first.alice.cut();
  await pair.clock.advance(100);
  expect([pair.bob, pair.events.alice]).toEqual([undefined, ["lost"]]);
  pair.carrier("alice", { oneWayMs: 20 });
  await pair.clock.until("it arrives", () => said === "hello");
  expect(pair.alice.carriersSoFar).toBe(2);
});

test("another version of the link is refused with its number", async () => {
  const clock = new TestClock();
  const { alice, bob } = carrierPair(clock);
  let refused = "";
  readOffer(
    bob,
    () => expect.unreachable(),
    (reason) => (refused = reason),
  );
  const hello = encodeHello(frame.resume, { status: 1, epoch: 1, sessionId: "00".repeat(16), processed: 0 });
  hello[8] = 9;
  const answers: Buffer[] = [];
  alice.onData = (chunk) => answers.push(chunk);
  alice.write(hello);
  await clock.until("it is answered", () => answers.length > 0 && refused !== "");
  expect(refused).toBe(`the peer speaks version 9 of the link, not ${linkVersion}`);
  expect(answers[0]![9]).toBe(resumedStatus.version);
});

test("a carrier to somebody else is not taken", () => {
  const clock = new TestClock();
  const session = new Session({ role: "controlling", peer: fingerprints.bob, clock });
  const { bob } = carrierPair(clock);
  session.attach(bob); // it shows alice's certificate
  expect([bob.isClosed, session.carrier]).toEqual([true, undefined]);
});

test("streams have odd numbers where the session was begun, and even ones where it was not", async () => {
  const pair = new Pair();
  pair.carrier("alice");
  await pair.clock.until("bob is there", () => pair.bob !== undefined);
  const [one, two] = [pair.alice.open({ n: 1 }), pair.bob!.open({ n: 2 })];
  // Whoever nominates a later carrier.
  pair.carrier("bob");
  await pair.clock.until("both have moved", () => pair.events.alice.length + pair.events.bob.length === 2);
  expect([one.id, two.id, pair.alice.open({}).id, pair.bob!.open({}).id]).toEqual([1, 2, 3, 4]);
});

test("the purpose of a stream arrives; one that is too long, and one stream too many, are refused here", async () => {
  const pair = new Pair();
  const purposes: unknown[] = [];
  pair.onSession = (session) => (session.onStream = (_stream, purpose) => purposes.push(purpose));
  pair.carrier("alice");
  const purpose = { for: "files", name: "ä".repeat(2_000) };
  pair.alice.open(purpose);
  expect(() => pair.alice.open({ name: "ä".repeat(2_100) })).toThrow(RangeError);
  await pair.clock.until("it is there", () => purposes.length === 1);
  expect(purposes).toEqual([purpose]);
  for (let i = 1; i < 4_096; i++) pair.alice.open({});
  expect(() => pair.alice.open({})).toThrow("at most 4096 streams");
  await pair.clock.until("all are there", () => purposes.length === 4_096);
  expect(pair.ended).toEqual({});
  pair.alice.abandon("the test is over");
});

test("whoever does not take streams resets them with the reason", async () => {
  const pair = new Pair();
  pair.carrier("alice");
  let reason = "";
  pair.alice.open({ for: "nobody" }).on("error", (error) => (reason = error.message));
  await pair.clock.until("it is refused", () => reason !== "");
  expect(reason).toBe("the other side ended it: nobody takes streams here");
});
