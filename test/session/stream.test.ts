import { expect, setDefaultTimeout, test } from "bun:test";
import { maxDataBytes } from "../../native/session/frame.ts";
import { firstCreditBytes, resetCodes, type Stream, StreamError } from "../../native/session/stream.ts";
import { maxCreditBytes } from "../../native/session/credit.ts";
import { maxKeptBytes } from "../../native/session/multiplexer.ts";
import { Pair, randomBytes, randomFrom, type MemoryCarrier, type PathOptions } from "./memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** A stream and the peer's end of it; nothing is read at the peer unless a test does. */
async function streamPair(path: PathOptions = {}) {
  const pair = new Pair();
  const accepted: Stream[] = [];
  pair.onSession = (session) => (session.onStream = (stream) => accepted.push(stream));
  const carriers = pair.carrier("alice", path);
  const open = async (): Promise<{ here: Stream; there: Stream }> => {
    const [here, count] = [pair.alice.open({ for: "a test" }), accepted.length];
    await pair.clock.until("the peer has the stream", () => accepted.length > count);
    return { here, there: accepted.at(-1)! };
  };
  return { pair, open, carriers, ...(await open()) };
}

function collect(stream: Stream): {
  bytes: number;
  text: string;
  hasEnded: boolean;
  error: Error | undefined;
} {
  const seen = { bytes: 0, text: "", hasEnded: false, error: undefined as Error | undefined };
  stream.on("data", (chunk: Buffer) => {
    seen.bytes += chunk.length;
    if (seen.text.length < 100) seen.text += chunk.toString("latin1");
  });
  stream.on("end", () => (seen.hasEnded = true));
  stream.on("error", (error) => (seen.error = error));
  return seen;
}

/** Writes as long as the stream takes it; says how much that was. */
function flood(stream: Stream, bytes = Infinity): { written: number } {
  const flooded = { written: 0 };
  const chunk = Buffer.alloc(64 * 1024);
  const more = (): void => {
    while (flooded.written < bytes) {
      flooded.written += chunk.length;
      if (!stream.write(chunk)) return void stream.once("drain", more);
    }
    stream.end();
  };
  more();
  return flooded;
}

test("each half ends by itself, and the stream is forgotten when both have", async () => {
  const { pair, here, there } = await streamPair({ oneWayMs: 5 });
  const [atHere, atThere] = [collect(here), collect(there)];
  here.end("a question");
  await pair.clock.until("the question is over", () => atThere.hasEnded);
  expect(atThere.text).toBe("a question");
  expect([there.writable, here.readableEnded, pair.alice.streamCount]).toEqual([true, false, 1]);
  there.write("an ");
  there.end("answer");
  await pair.clock.until("both ends are closed", () => here.closed && there.closed);
  expect(atHere).toEqual({ bytes: 9, text: "an answer", hasEnded: true, error: undefined });
  expect([pair.alice.streamCount, pair.bob!.streamCount]).toEqual([0, 0]);
});

for (const by of ["here", "there"] as const) {
  test(`a reset ${by} cuts the other end off with the reason, both ways`, async () => {
    const { pair, here, there } = await streamPair({ oneWayMs: 1, bytesPerMs: 10_000 });
    const [cutter, victim] = by === "here" ? [here, there] : [there, here];
    const seen = collect(victim);
    flood(victim);
    flood(cutter);
    await pair.clock.advance(10);
    cutter.reset("the disk is full", 77);
    await pair.clock.until("it is cut off", () => victim.closed);
    expect(seen.error).toBeInstanceOf(StreamError);
    expect(seen.error).toMatchObject({ code: 77, message: "the other side ended it: the disk is full" });
    expect(() => victim.write("more")).not.toThrow();
    await pair.clock.until(
      "both have forgotten it",
      () => pair.alice.streamCount + pair.bob!.streamCount === 0,
    );
    expect(pair.ended).toEqual({});
  });
}

test("a stream that is destroyed at both ends at a time harms nobody", async () => {
  const { pair, here, there, open } = await streamPair({ oneWayMs: 10 });
  flood(here);
  flood(there);
  here.destroy();
  there.destroy(new Error("private"));
  await pair.clock.until(
    "both have forgotten it",
    () => pair.alice.streamCount + pair.bob!.streamCount === 0,
  );
  const next = await open();
  const seen = collect(next.there);
  next.here.end("still here");
  await pair.clock.until("the next one works", () => seen.hasEnded);
  expect(seen.text).toBe("still here");
});

test("the peer does not learn what made our end fail", async () => {
  const { pair, here, there } = await streamPair();
  const seen = collect(there);
  here.destroy(new Error("ENOENT: /home/alice/secret"));
  await pair.clock.until("it is cut off", () => there.closed);
  expect(seen.error?.message).toBe("the other side ended it: it failed at the peer");
  expect(seen.error).toMatchObject({ code: resetCodes.failed });
});

test("who does not read stalls his own stream alone, at its first credit", async () => {
  const { pair, here, there, open } = await streamPair({ oneWayMs: 5 });
  const stalled = flood(here);
  const other = await open();
  const seen = collect(other.there);
  flood(other.here, 20_000_000);
  await pair.clock.until("the other one is through", () => seen.hasEnded);
  expect(seen.bytes).toBeGreaterThanOrEqual(20_000_000);
  expect(there.received.allowedBytes).toBe(0);
  // What was sent, what the stream takes ahead, and one chunk that its user was too late to keep.
  expect(stalled.written).toBeLessThanOrEqual(firstCreditBytes + here.writableHighWaterMark + 64 * 1024);
  const late = collect(there);
  await pair.clock.until("it goes on when read", () => late.bytes > 10 * firstCreditBytes);
  here.reset("enough");
});

test("bytes that were buffered are read in order, with the end behind them", async () => {
  const { pair, here, there } = await streamPair({ random: randomFrom(7) });
  const bytes = randomBytes(randomFrom(8), 200_000);
  for (let at = 0; at < bytes.length; at += 777) here.write(bytes.subarray(at, at + 777));
  here.end();
  await pair.clock.until("all is there", () => there.received.isOver);
  const chunks: Buffer[] = [];
  for await (const chunk of there) chunks.push(chunk as Buffer);
  expect(Buffer.concat(chunks).equals(bytes)).toBe(true);
});

test("credit grows with the round trip, up to 16 MiB, and not without need", async () => {
  const slow = await streamPair({ oneWayMs: 100 });
  const seen = collect(slow.there);
  await slow.pair.clock.until("the round trip is known", () => slow.pair.bob!.roundTripMs !== undefined);
  flood(slow.here);
  await slow.pair.clock.until(
    "it has grown",
    () => slow.there.received.grownBytes === maxCreditBytes - firstCreditBytes,
    8_000,
  );
  const from = seen.bytes;
  await slow.pair.clock.advance(1_000);
  // A round trip is 200 ms: five full credits a second.
  expect(seen.bytes - from).toBeGreaterThan(4 * maxCreditBytes);
  slow.here.reset("enough");

  const narrow = await streamPair({ oneWayMs: 1, bytesPerMs: 1_000 });
  collect(narrow.there);
  flood(narrow.here, 20_000_000);
  await narrow.pair.clock.until("all is there", () => narrow.there.readableEnded);
  expect(narrow.there.received.grownBytes).toBe(0);
});

test("all credits of a link together grow by 64 MiB, and what a stream had is given back", async () => {
  const { pair, open } = await streamPair({ oneWayMs: 100 });
  const streams: { here: Stream; there: Stream }[] = [];
  for (let i = 0; i < 8; i++) streams.push(await open());
  await pair.clock.until("the round trip is known", () => pair.bob!.roundTripMs !== undefined);
  for (const { here, there } of streams) {
    collect(there);
    flood(here);
  }
  const grown = () => streams.reduce((sum, { there }) => sum + there.received.grownBytes, 0);
  await pair.clock.until("most of it is used", () => grown() > 48 * 1024 * 1024);
  await pair.clock.advance(1_000); // and no more is given
  expect(grown()).toBeLessThanOrEqual(64 * 1024 * 1024);
  for (const { here } of streams) here.reset("enough");
  await pair.clock.until("all are forgotten", () => pair.bob!.streamCount === 1);
  const next = await open();
  collect(next.there);
  flood(next.here);
  await pair.clock.until(
    "a new one may grow",
    () => next.there.received.grownBytes === maxCreditBytes - firstCreditBytes,
  );
  next.here.reset("enough");
});

/** The payloads of `data` in what one end wrote, by stream. */
function turns(carrier: MemoryCarrier): { stream: number; bytes: number }[] {
  const [found, bytes] = [[] as { stream: number; bytes: number }[], Buffer.concat(carrier.written!)];
  for (let at = 0; at < bytes.length;) {
    const length = bytes.readUIntBE(at + 1, 3);
    if (bytes[at] === 2) found.push({ stream: bytes.readUInt32BE(at + 4), bytes: length });
    at += 8 + length;
  }
  return found;
}

test("streams take turns of 16 KiB, and a small one does not wait for those before it", async () => {
  const { pair, open, carriers } = await streamPair({ oneWayMs: 1, bytesPerMs: 10_000 });
  const bulk = [await open(), await open(), await open()];
  const small = await open();
  for (const { there } of bulk) collect(there);
  const seen = collect(small.there);
  for (const { here } of bulk) flood(here);
  await pair.clock.advance(50);
  carriers.alice.written = [];
  small.here.write("x");
  await pair.clock.until("it has come", () => seen.bytes === 1);
  await pair.clock.advance(50);
  const sent = turns(carriers.alice);
  // The write under way, what the carrier takes as one, and then it is the first.
  const waited = sent.findIndex(({ stream }) => stream === small.here.id);
  expect(waited).toBeGreaterThanOrEqual(0);
  expect(waited).toBeLessThanOrEqual(5);
  expect(Math.max(...sent.map(({ bytes }) => bytes))).toBeLessThanOrEqual(16 * 1024 - 8);
  const shares = bulk.map(({ here }) => sent.filter(({ stream }) => stream === here.id).length);
  expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(2);
  for (const { here } of bulk) here.reset("enough");
});

test("what streams are given in one turn of the event loop goes out in one write, each in one frame", async () => {
  const { pair, open, carriers } = await streamPair({ oneWayMs: 1 });
  const others = [await open(), await open(), await open()];
  await pair.clock.advance(100);
  carriers.alice.written = [];
  for (const { here } of others) {
    here.write("a request");
    await Promise.resolve(); // as between the sockets that are read in one turn
  }
  const early = pair.alice.open({ for: "what comes with its first bytes" });
  early.write("a request");
  await pair.clock.advance(10);
  const bytes = [...others.map(({ here }) => here), early].map(({ id: stream }) => ({ stream, bytes: 9 }));
  expect([carriers.alice.written.length, turns(carriers.alice)]).toEqual([1, bytes]);
});

test("a quick exchange sets no timer for each frame", async () => {
  const { pair, here, there } = await streamPair({ oneWayMs: 1 });
  const ackMs = 20;
  let [timers, answers] = [0, 0];
  const { clock } = pair;
  const after = clock.after.bind(clock);
  clock.after = (delayMs, then) => ((timers += Number(delayMs === ackMs)), after(delayMs, then));
  there.on("data", () => there.write("an answer"));
  here.on("data", () => (answers++, here.write("a question")));
  here.write("a question");
  const fromMs = clock.now();
  await clock.until("many were answered", () => answers === 100);
  // Each side has one at a time.
  expect(timers).toBeLessThanOrEqual(2 * (1 + (clock.now() - fromMs) / ackMs));
  expect(timers).toBeGreaterThan(0);
  here.reset("enough");
});

test("without a carrier streams wait, and what is written is bounded", async () => {
  const { pair, here, there, open, carriers } = await streamPair({ oneWayMs: 50 });
  const seen = collect(there);
  const other = await open();
  collect(other.there);
  flood(here);
  flood(other.here);
  await pair.clock.advance(3_000);
  carriers.alice.cut();
  const [before, later] = [pair.alice.outstandingBytes, flood(pair.alice.open({ for: "later" }))];
  await pair.clock.advance(60_000);
  expect(pair.events.alice).toEqual(["lost"]);
  expect(pair.alice.outstandingBytes).toBe(before);
  expect(before).toBeLessThanOrEqual(maxKeptBytes + 1024 * 1024);
  expect(later.written).toBeLessThanOrEqual(here.writableHighWaterMark + 64 * 1024);
  expect([here.destroyed, there.destroyed, pair.ended]).toEqual([false, false, {}]);
  const from = seen.bytes;
  pair.carrier("bob", { oneWayMs: 50 });
  await pair.clock.until("it goes on", () => seen.bytes > from + 10_000_000);
  for (const stream of [here, other.here]) stream.reset("enough");
  pair.alice.abandon("the test is over");
});

test("what a peer does not acknowledge is kept, up to 64 MiB", async () => {
  const { pair, carriers, open } = await streamPair({ oneWayMs: 200 });
  const streams: { here: Stream; there: Stream }[] = [];
  for (let i = 0; i < 8; i++) streams.push(await open());
  for (const { there } of streams) collect(there);
  await pair.clock.until("the round trip is known", () => pair.bob!.roundTripMs !== undefined);
  for (const { here } of streams) flood(here);
  await pair.clock.advance(8_000);
  // From now on the peer is silent, but its kernel takes all.
  carriers.alice.isDeaf = true;
  await pair.clock.advance(1_500);
  expect(pair.alice.outstandingBytes).toBeGreaterThan(maxKeptBytes / 2);
  expect(pair.alice.outstandingBytes).toBeLessThanOrEqual(maxKeptBytes + 1024 * 1024);
  pair.alice.abandon("the test is over");
  pair.bob!.abandon("the test is over");
});

test("a stream that is alone fills a write with frames of 64 KiB at most", async () => {
  const batchBytes = 128 * 1024;
  const { pair, here, there, carriers } = await streamPair({ oneWayMs: 1, batchBytes });
  collect(there);
  carriers.alice.written = [];
  here.write(Buffer.alloc(256 * 1024 - 100));
  await pair.clock.advance(10);
  const sizes = turns(carriers.alice).map(({ bytes }) => bytes);
  expect([sizes.length, sizes[0], sizes[2]]).toEqual([4, maxDataBytes, maxDataBytes]);
  expect(carriers.alice.written.filter(({ length }) => length > maxDataBytes)).toHaveLength(2);
});
