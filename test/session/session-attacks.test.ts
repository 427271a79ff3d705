/** A peer with a good certificate and bad intentions: frames made by hand against a real session. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readOffer } from "../../native/session/carrier.ts";
import {
  encodeCount,
  encodeCredit,
  encodeFinish,
  encodeFrame,
  encodeHello,
  encodeOpen,
  encodeReset,
  frame,
  FrameDecoder,
} from "../../native/session/frame.ts";
import { MemoryBudget } from "../../native/session/memory.ts";
import { maxOwedBytes } from "../../native/session/control-queue.ts";
import { Session } from "../../native/session/session.ts";
import { firstCreditBytes, resetCodes, type Stream } from "../../native/session/stream.ts";
import { carrierPair, endInWords, fingerprints, TestClock, type MemoryCarrier } from "./memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const sessionId = "5e".repeat(16);
const megabyte = 1024 * 1024;

interface Heard {
  type: number;
  stream: number;
  payload: Buffer;
}

/** Begins a session with ours, and says what a test wants. */
class Stranger {
  readonly clock = new TestClock();
  readonly heard: Heard[] = [];
  readonly streams: Stream[] = [];
  carrier!: MemoryCarrier;
  session: Session | undefined;
  ended: string | undefined;
  #memory!: MemoryBudget;

  /** `started`: with `resume` and `start` behind it. */
  static async begin(started = true, memory = new MemoryBudget()): Promise<Stranger> {
    const stranger = new Stranger();
    stranger.#memory = memory;
    stranger.connect();
    stranger.say(hello(1, 0, 1));
    if (started) stranger.say(encodeCount(frame.start, 0));
    await stranger.clock.advance(1);
    return stranger;
  }

  /** Another carrier; what is said next goes there. */
  connect(): void {
    const { alice, bob } = carrierPair(this.clock);
    this.carrier = alice;
    alice.onData = (chunk) => void decoder.push(Buffer.from(chunk));
    const decoder = new FrameDecoder({
      onPiece: (stream, payload) => this.heard.push({ type: frame.data, stream, payload }),
      onFrame: (type, stream, payload) => this.heard.push({ type, stream, payload }),
    });
    readOffer(
      bob,
      (offer) => {
        this.session ??= this.#makeSession();
        this.session.accept(offer);
      },
      (reason) => (this.ended = `refused: ${reason}`),
    );
  }

  say(...frames: Buffer[]): void {
    this.carrier.write(Buffer.concat(frames));
  }

  /** What the session answers to it, or how it ends. */
  async hear(...frames: Buffer[]): Promise<Heard[]> {
    const from = this.heard.length;
    this.say(...frames);
    await this.clock.advance(1_500);
    return this.heard.slice(from);
  }

  count(type: number): number {
    return this.heard.filter((one) => one.type === type).length;
  }

  #makeSession(): Session {
    const session = new Session({
      role: "controlled",
      peer: fingerprints.alice,
      id: sessionId,
      clock: this.clock,
      memory: this.#memory,
    });
    session.onStream = (stream) => this.streams.push(stream);
    session.onEnd = (end) => (this.ended = endInWords(end));
    return session;
  }
}

const hello = (epoch: number, processed = 0, status = 0) =>
  encodeHello(frame.resume, { status, epoch, sessionId, processed });
const open = (stream: number) => encodeOpen(stream, { for: "a test" });
const bytes = (stream: number, length: number) => encodeFrame(frame.data, Buffer.alloc(length), stream);
const end = (stream: number) => encodeFrame(frame.end, Buffer.alloc(0), stream);
const raw = (type: number, length: number) =>
  Buffer.from([type, length >> 16, length >> 8, length, 0, 0, 0, 1]);

for (const [what, frames, reason] of [
  ["a frame of an unknown type", [raw(9, 0)], "a frame of unknown type 9"],
  ["an unsequenced frame of an unknown type", [raw(0x99, 0)], "a frame of unknown type 153"],
  ["a frame that is too large", [open(1), raw(frame.data, 65_537)], "a frame of type 2 with 65537 bytes"],
  ["bytes for a stream that never was", [bytes(1, 1)], "bytes for stream 1, which is not open"],
  ["bytes for a stream that only we could open", [bytes(2, 1)], "bytes for stream 2, which is not open"],
  [
    "bytes after the end of a stream",
    [open(1), end(1), bytes(1, 1)],
    "bytes for stream 1, which is not open",
  ],
  [
    "bytes after a reset",
    [open(1), encodeReset(1, 0, ""), bytes(1, 1)],
    "bytes for stream 1, which is not open",
  ],
  ["a second end", [open(1), end(1), end(1)], "the end of stream 1, which is over"],
  ["credit for a stream that never was", [encodeCredit(3, 1)], "a frame for stream 3, which never was open"],
  ["credit for stream 0", [encodeCredit(0, 1)], "a frame for stream 0, which never was open"],
  ["credit of nothing", [open(1), encodeCredit(1, 0)], "a credit of nothing"],
  ["more credit than a window may have", [open(1), encodeCredit(1, 2 ** 31)], "absurd credit for stream 1"],
  ["a stream that is opened twice", [open(1), open(1)], "a new stream with the number 1"],
  ["a stream with a number of ours", [open(2)], "a new stream with the number 2"],
  ["a stream with a lower number than the last", [open(5), open(3)], "a new stream with the number 3"],
  [
    "a purpose that is no JSON",
    [encodeFrame(frame.open, Buffer.from("{]"), 1)],
    "the purpose of a stream is not JSON",
  ],
  ["an acknowledgement of what was never sent", [encodeCount(frame.ack, 1)], "it acknowledges"],
  [
    "a count beyond all numbers",
    [encodeFrame(frame.ack, Buffer.alloc(8, 0xff))],
    "a count of frames that nobody",
  ],
  ["a start after what never came", [encodeCount(frame.start, 1)], "a `start` after what never came"],
  ["a needless rewind", [encodeCount(frame.rewind, 0)], "a needless `rewind`"],
  ["resume on a carrier in use", [hello(2)], "`resume` on a carrier in use"],
  [
    "an answer to what was not asked",
    [encodeHello(frame.resumed, { status: 0, epoch: 1, sessionId, processed: 0 })],
    "an answer to what was not asked",
  ],
  ["bytes after finish", [open(1), encodeFinish(""), bytes(1, 1)], "bytes after `finish`"],
  ["a new stream after finish", [encodeFinish(""), open(1)], "a new stream after `finish`"],
  ["finish twice", [encodeFinish(""), encodeFinish("")], "a second `finish`"],
] as const) {
  test(`ends the session with the reason: ${what}`, async () => {
    const stranger = await Stranger.begin();
    await stranger.hear(...frames);
    expect(stranger.ended).toStartWith(`protocol: the peer sent ${reason}`);
    expect(stranger.count(frame.finish)).toBe(1);
    expect(stranger.carrier.isClosed).toBe(true);
    for (const stream of stranger.streams) expect(stream.destroyed).toBe(true);
    await stranger.clock.advance(60_000);
    expect(stranger.clock.timerCount).toBe(0);
  });
}

describe("what is thrown ends the session, and comes out nowhere", () => {
  const bug = () => {
    throw new Error("a bug");
  };
  const reason = "protocol: we failed at what the peer sent: a bug";

  test("by whoever is handed a stream, also in the first flight", async () => {
    for (const started of [true, false]) {
      const stranger = await Stranger.begin(started);
      stranger.session!.onStream = bug;
      await stranger.hear(...(started ? [] : [encodeCount(frame.start, 0)]), open(1));
      expect(stranger.ended).toBe(reason);
      expect(stranger.carrier.isClosed).toBe(true);
      await stranger.clock.advance(60_000);
      expect(stranger.clock.timerCount).toBe(0);
    }
  });

  test("in a tick, by whoever is told that the carrier looks dead", async () => {
    const stranger = await Stranger.begin();
    stranger.session!.onCarrier = bug;
    await stranger.clock.advance(20_000);
    expect(stranger.ended).toBe(reason);
    expect(stranger.clock.timerCount).toBe(0);
  });

  test("by whoever is told that the carrier is lost", async () => {
    const stranger = await Stranger.begin();
    stranger.session!.onCarrier = bug;
    stranger.carrier.other.onClose("reset");
    expect(stranger.ended).toBe(reason);
  });

  test("by the carrier, when it is written to", async () => {
    const stranger = await Stranger.begin();
    stranger.carrier.other.write = bug;
    stranger.session!.open({ use: "test" });
    await stranger.clock.advance(1);
    expect(stranger.ended).toBe(reason);
  });
});

test("frames before `start` end the session", async () => {
  const stranger = await Stranger.begin(false);
  await stranger.hear(open(1));
  expect(stranger.ended).toBe("protocol: the peer sent frames before `start`");
});

test("a byte more than the credit ends the session, and all the credit does not", async () => {
  const stranger = await Stranger.begin();
  await stranger.hear(open(1), ...Array.from({ length: 4 }, () => bytes(1, firstCreditBytes / 4)));
  expect(stranger.ended).toBeUndefined();
  await stranger.hear(bytes(1, 1));
  expect(stranger.ended).toBe("protocol: the peer sent more for stream 1 than it has credit for");
});

test("what was under way when we reset a stream is no breach, within its credit", async () => {
  const stranger = await Stranger.begin();
  await stranger.hear(open(1));
  stranger.streams[0]!.reset("no");
  await stranger.hear(bytes(1, 60_000), encodeCredit(1, 5), end(1));
  expect([stranger.ended, stranger.session!.streamCount]).toEqual([undefined, 0]);
  await stranger.hear(bytes(1, 1));
  expect(stranger.ended).toContain("bytes for stream 1, which is not open");
});

test("a million streams: 4096 at once, and the session ends at the next", async () => {
  const stranger = await Stranger.begin();
  let id = -1;
  for (let i = 0; i < 4_096; i += 64) stranger.say(...Array.from({ length: 64 }, () => open((id += 2))));
  await stranger.clock.until("all are open", () => stranger.streams.length === 4_096);
  expect(stranger.ended).toBeUndefined();
  for (let i = 0; i < 1_000_000 && !stranger.ended; i += 64) {
    await stranger.hear(...Array.from({ length: 64 }, () => open((id += 2))));
  }
  expect(stranger.ended).toBe("protocol: the peer sent more than 4096 streams at once");
  expect(stranger.streams).toHaveLength(4_096);
});

test("a stream that ends leaves room for the next, thirty thousand times", async () => {
  const stranger = await Stranger.begin();
  let taken = 0;
  stranger.streams.push = (stream) => {
    stream.end();
    stream.resume();
    return ++taken;
  };
  for (let id = 1; id < 60_000; id += 2_000) {
    const frames = Array.from({ length: 1_000 }, (_, i) => [open(id + 2 * i), end(id + 2 * i)]).flat();
    stranger.say(...frames);
    await stranger.clock.advance(1);
  }
  await stranger.clock.until("all have come", () => taken === 30_000);
  await stranger.clock.advance(1);
  expect([stranger.ended, stranger.session!.streamCount]).toEqual([undefined, 0]);
});

test("what nobody reads is bounded: the stream that exceeds it is reset, the others live", async () => {
  const stranger = await Stranger.begin();
  const full = Array.from({ length: 4 }, () => 64 * 1024);
  let sent = 0;
  for (let id = 1; id < 2 * 1_000; id += 2) {
    await stranger.clock.advance(0);
    stranger.say(open(id), ...full.map((length) => bytes(id, length)));
    sent += firstCreditBytes;
  }
  await stranger.clock.advance(10);
  const kept = stranger.streams.filter((stream) => !stream.destroyed);
  expect(sent).toBeGreaterThan(240 * megabyte);
  expect(kept.length * firstCreditBytes).toBeLessThanOrEqual(128 * megabyte);
  expect(kept.length * firstCreditBytes).toBeGreaterThan(60 * megabyte);
  expect(stranger.ended).toBeUndefined();
  let read = 0;
  kept[0]!.on("data", (chunk: Buffer) => (read += chunk.length));
  await stranger.clock.until("a kept one is read", () => read === firstCreditBytes);
  stranger.session!.abandon("the test is over");
});

test("what nobody reads of one peer leaves others their share of the program's memory, and comes back with its end", async () => {
  const memory = new MemoryBudget(16 * megabyte);
  const [greedy, other] = [await Stranger.begin(true, memory), await Stranger.begin(true, memory)];
  const full = Array.from({ length: 4 }, () => 64 * 1024);
  for (let id = 1; id < 2 * 100; id += 2) {
    greedy.say(open(id), ...full.map((length) => bytes(id, length)));
    await greedy.clock.advance(1);
  }
  await greedy.clock.advance(100);
  expect(greedy.session!.heldBytes).toBeGreaterThan(6 * megabyte);
  expect(greedy.session!.heldBytes).toBeLessThan(9 * megabyte);
  expect(greedy.ended).toBeUndefined();
  await other.hear(open(1), ...full.map((length) => bytes(1, length)));
  const { destroyed, received } = other.streams[0]!;
  expect([destroyed, received.allowedBytes]).toEqual([false, 0]);
  greedy.session!.abandon("the test is over");
  expect(greedy.session!.heldBytes).toBe(0);
  other.session!.abandon("the test is over");
  expect(memory.heldBytes).toBe(0);
});

test("what was not read when a session ended in order is counted until it is", async () => {
  const memory = new MemoryBudget(16 * megabyte);
  const stranger = await Stranger.begin(true, memory);
  await stranger.hear(open(1), bytes(1, 60_000), end(1), encodeFinish(""));
  const sent = stranger.heard.filter(({ type }) => type < 0x80).length;
  await stranger.hear(encodeCount(frame.ack, sent));
  expect(stranger.ended).toBe("peer: ");
  expect(memory.heldBytes).toBeGreaterThan(60_000);
  expect(stranger.streams[0]!.read()).toHaveLength(60_000);
  expect(memory.heldBytes).toBe(0);
});

test("a flood of single bytes that nobody reads costs little more than its bytes", async () => {
  const stranger = await Stranger.begin();
  const before = process.memoryUsage().arrayBuffers;
  for (let id = 1; id < 200; id += 2) {
    stranger.say(open(id), ...Array.from({ length: 4_000 }, () => bytes(id, 1)));
    await stranger.clock.advance(1);
  }
  const came = () =>
    stranger.streams.reduce((sum, { received }) => sum + firstCreditBytes - received.allowedBytes, 0);
  await stranger.clock.until("all have come", () => came() === 400_000);
  Bun.gc(true);
  expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(8 * megabyte);
  stranger.session!.abandon("the test is over");
});

test("pings are answered one at a time while the answers are not taken", async () => {
  const stranger = await Stranger.begin();
  const ours = stranger.carrier.other;
  Object.defineProperty(ours, "queuedBytes", { get: () => 1, set: () => {}, configurable: true });
  for (let i = 0; i < 1_000; i++) {
    stranger.say(...Array.from({ length: 100 }, (_, j) => encodeCount(frame.ping, 100 * i + j)));
  }
  await stranger.clock.advance(5);
  expect(stranger.count(frame.pong)).toBe(0);
  Object.defineProperty(ours, "queuedBytes", { value: 0, writable: true });
  ours.onWritten();
  await stranger.clock.advance(5);
  expect(
    stranger.heard
      .filter(({ type }) => type === frame.pong)
      .map(({ payload }) => Number(payload.readBigUInt64BE())),
  ).toEqual([99_999]);
});

test("answers that are never taken end the session, before they are many", async () => {
  const stranger = await Stranger.begin();
  Object.defineProperty(stranger.carrier.other, "queuedBytes", { get: () => 1, set: () => {} });
  const before = process.memoryUsage().heapUsed;
  let id = -1;
  for (let i = 0; i < 1_000 && !stranger.ended; i++) {
    stranger.say(...Array.from({ length: 500 }, () => [open((id += 2)), encodeReset(id, 0, "")]).flat());
    stranger.streams.length = 0;
    await stranger.clock.advance(1);
  }
  expect(stranger.ended).toBe("protocol: the peer asks for answers and does not take them");
  expect(process.memoryUsage().heapUsed - before).toBeLessThan(200 * megabyte);
});

test("answers that are taken and never acknowledged end it, too", async () => {
  const stranger = await Stranger.begin();
  stranger.session!.onStream = (stream) => stream.reset("x".repeat(256));
  const stream = stranger.session!.open({ for: "bulk" });
  const more = (): void => {
    while (stream.writable && stream.write(Buffer.alloc(megabyte)));
  };
  stream.on("drain", more);
  more();
  stranger.say(encodeCredit(2, 2 ** 30));
  for (let i = 0; i < 100; i++) await stranger.clock.advance(0);
  expect(stranger.ended).toBeUndefined();
  expect(stranger.session!.outstandingBytes).toBeLessThan(65 * megabyte);
  let id = -1;
  for (let i = 0; i < 1_000 && !stranger.ended; i++) {
    stranger.say(...Array.from({ length: 500 }, () => [open((id += 2)), encodeReset(id, 0, "")]).flat());
    stranger.heard.length = 0;
    await stranger.clock.advance(0);
  }
  expect(stranger.ended).toBe("protocol: the peer asks for answers and does not take them");
  expect(id).toBeLessThan(50_000);
});

test("of answers that are never acknowledged a megabyte is kept, and nothing after the end", async () => {
  const stranger = await Stranger.begin();
  stranger.session!.onStream = (stream) => stream.reset("x".repeat(256), resetCodes.refused);
  const empty = stranger.session!.heldBytes;
  let [id, mostOwed, mostHeld] = [-1, 0, 0];
  for (let i = 0; i < 20_000 && !stranger.ended; i++) {
    stranger.say(...Array.from({ length: 50 }, () => [open((id += 2)), end(id)]).flat());
    await stranger.clock.advance(250);
    const { owedBytes, heldBytes, outstandingBytes } = stranger.session!;
    mostOwed = Math.max(mostOwed, owedBytes);
    mostHeld = Math.max(mostHeld, heldBytes - empty, outstandingBytes);
  }
  expect(stranger.ended).toBe("protocol: the peer asks for answers and does not take them");
  expect(mostOwed).toBeGreaterThan(megabyte / 2);
  expect(mostOwed).toBeLessThanOrEqual(maxOwedBytes);
  expect(mostHeld).toBeLessThan(2 * megabyte);
  expect(stranger.session!.heldBytes).toBe(0);
});

test("4096 streams that are refused at once, with the longest reasons, are no attack", async () => {
  const stranger = await Stranger.begin();
  stranger.session!.onStream = (stream) => stream.reset("x".repeat(256), resetCodes.refused);
  let id = -1;
  for (let i = 0; i < 64; i++) stranger.say(...Array.from({ length: 64 }, () => open((id += 2))));
  await stranger.clock.until("all are refused", () => stranger.count(frame.reset) === 4_096);
  expect([stranger.ended, stranger.session!.streamsInUse]).toEqual([undefined, 0]);
  // Of streams that the peer does not end, too, hardly more than a number is kept.
  expect(stranger.session!.heldBytes).toBeLessThan(2 * megabyte);
  stranger.session!.abandon("the test is over");
});

test("who opens streams without end is read at a pace, who is refused at a slower one", async () => {
  for (const [code, burst, perSecond] of [
    [resetCodes.cancelled, 16_384, 10_000],
    [resetCodes.refused, 16_384 / 51, 10_000 / 51],
  ] as const) {
    const stranger = await Stranger.begin();
    let taken = 0;
    stranger.session!.onStream = (stream) => (taken++, stream.reset("", code));
    let id = -1;
    for (let ms = 0; ms < 3_000; ms += 10) {
      if (id / 2 - taken < 3_000)
        stranger.say(...Array.from({ length: 500 }, () => [open((id += 2)), end(id)]).flat());
      stranger.say(encodeCount(frame.ack, stranger.heard.filter(({ type }) => type < 128).length));
      await stranger.clock.advance(10);
    }
    expect(stranger.ended).toBeUndefined();
    expect(taken).toBeGreaterThan(burst + 2 * perSecond);
    expect(taken).toBeLessThan(burst + 3.2 * perSecond);
    stranger.session!.abandon("the test is over");
  }
});

test("a carrier that rests is never resumed and paused at once, for then it would keep all that comes", async () => {
  const stranger = await Stranger.begin();
  const ours = stranger.carrier.other;
  const [pause, resume, onData] = [ours.pause.bind(ours), ours.resume.bind(ours), ours.onData];
  let [isResumed, pauses, hasty] = [false, 0, 0];
  ours.resume = () => {
    isResumed = true;
    queueMicrotask(() => (isResumed = false));
    resume();
  };
  ours.onData = (chunk) => {
    isResumed = false;
    onData(chunk);
  };
  ours.pause = () => {
    pauses++;
    if (isResumed) hasty++;
    pause();
  };
  stranger.session!.onStream = (stream) => stream.reset("", resetCodes.refused);
  let id = -1;
  for (let i = 0; i < 40; i++) {
    stranger.say(...Array.from({ length: 200 }, () => [open((id += 2)), end(id)]).flat());
    await stranger.clock.advance(100);
  }
  expect(pauses).toBeGreaterThan(10);
  expect(hasty).toBe(0);
  stranger.session!.abandon("the test is over");
});

test("a resumption after more than was ever sent ends the session, and the peer is told why", async () => {
  const stranger = await Stranger.begin();
  stranger.connect();
  stranger.say(hello(2, 1));
  await stranger.clock.advance(10);
  expect(stranger.ended).toBe("protocol: the peer sent a resumption after more than was ever sent");
  expect(
    stranger.heard.find(({ type, payload }) => type === frame.resumed && payload[1] === 4),
  ).toBeDefined();
});

test("an old epoch is refused, and the session goes on where it was", async () => {
  const stranger = await Stranger.begin();
  const first = stranger.carrier;
  stranger.connect();
  stranger.say(hello(1), encodeCount(frame.start, 7), open(1));
  await stranger.clock.advance(10);
  expect(stranger.heard.findLast(({ type }) => type === frame.resumed)!.payload[1]).toBe(2);
  expect([stranger.ended, stranger.streams.length, stranger.session!.carriersSoFar]).toEqual([
    undefined,
    0,
    1,
  ]);
  stranger.carrier = first;
  await stranger.hear(open(1));
  expect(stranger.streams).toHaveLength(1);
});

test("carriers without end: the oldest are closed, and the session goes on", async () => {
  const stranger = await Stranger.begin();
  const carriers = [stranger.carrier];
  for (let i = 0; i < 100; i++) {
    stranger.connect();
    stranger.say(hello(1));
    carriers.push(stranger.carrier);
    await stranger.clock.advance(1);
  }
  expect(carriers.filter(({ isClosed }) => !isClosed)).toHaveLength(8);
  stranger.carrier = carriers[0]!;
  await stranger.hear(open(1));
  expect([stranger.streams.length, stranger.ended]).toEqual([1, undefined]);
});

test("a carrier that is refused and stays is closed", async () => {
  const stranger = await Stranger.begin();
  const first = stranger.carrier;
  stranger.connect();
  stranger.say(hello(1));
  const answering = async (): Promise<void> => {
    first.write(encodeCount(frame.pong, 0));
    await stranger.clock.advance(1_000);
  };
  for (let i = 0; i < 12; i++) await answering();
  expect([stranger.carrier.isClosed, first.isClosed, stranger.ended]).toEqual([true, false, undefined]);
});

test("absurd epochs end the session", async () => {
  const stranger = await Stranger.begin();
  stranger.connect();
  stranger.say(hello(0xffff_ffff));
  await stranger.clock.advance(10);
  expect(stranger.ended).toStartWith("refused: the peer did not say which link it is for");
});

test("a start far ahead is held for a second, asked back, and skipped", async () => {
  const stranger = await Stranger.begin();
  stranger.connect();
  stranger.say(hello(2), encodeCount(frame.start, 1_000), open(1), bytes(1, 5));
  await stranger.clock.advance(500);
  expect([stranger.count(frame.rewind), stranger.streams.length]).toEqual([0, 0]);
  await stranger.clock.advance(1_000);
  expect([stranger.count(frame.rewind), stranger.streams.length, stranger.ended]).toEqual([1, 0, undefined]);
  // What it said before it heard that does not count; what it says now does.
  await stranger.hear(bytes(1, 5), encodeCount(frame.start, 0), open(1));
  expect([stranger.count(frame.rewind), stranger.streams.length, stranger.ended]).toEqual([1, 1, undefined]);
});

test("a carrier that breaks just when it has brought all is not asked for again", async () => {
  const stranger = await Stranger.begin();
  const first = stranger.carrier.other;
  stranger.connect();
  stranger.say(hello(2), encodeCount(frame.start, 1), open(3));
  await stranger.clock.advance(10);
  expect(stranger.streams).toHaveLength(0);
  first.onData(open(1));
  first.break("reset by peer");
  await stranger.clock.advance(10);
  expect([stranger.count(frame.rewind), stranger.streams.length, stranger.ended]).toEqual([0, 2, undefined]);
});

test("a rewind is granted once a carrier, so that it cannot make us send for ever", async () => {
  const stranger = await Stranger.begin();
  const stream = stranger.session!.open({ for: "a test" });
  stream.on("error", () => {});
  stream.write("some bytes");
  await stranger.clock.advance(10);
  stranger.connect();
  // The old carrier lives, so what is on it is not repeated: start 2.
  stranger.say(hello(2), encodeCount(frame.start, 0));
  await stranger.clock.advance(10);
  const again = await stranger.hear(encodeCount(frame.rewind, 0));
  expect(again.filter(({ type }) => type === frame.data)).toHaveLength(1);
  await stranger.hear(encodeCount(frame.rewind, 0));
  expect(stranger.ended).toBe("protocol: the peer sent a needless `rewind`");
});

test("a first frame that is no resume closes the carrier", async () => {
  for (const first of [open(1), bytes(1, 1), raw(99, 0), encodeCount(frame.ack, 0)]) {
    const stranger = new Stranger();
    stranger.connect();
    stranger.say(first);
    await stranger.clock.advance(1);
    expect(stranger.ended).toStartWith("refused: the peer did not say which link it is for");
    expect([stranger.carrier.isClosed, stranger.session]).toEqual([true, undefined]);
  }
});

test("a peer that says `old` for ever is offered the carrier a few times", async () => {
  const clock = new TestClock();
  const { alice, bob } = carrierPair(clock);
  const session = new Session({ role: "controlled", peer: fingerprints.bob, id: sessionId, clock });
  let [offers, lost] = [0, ""];
  session.onCarrier = (event) => event.is === "lost" && (lost = event.reason);
  const decoder = new FrameDecoder({
    onPiece: () => {},
    onFrame(type, _stream, payload) {
      if (type !== frame.resume) return;
      offers++;
      bob.write(
        encodeHello(frame.resumed, {
          status: 2,
          epoch: payload.readUInt32BE(2) + 5,
          sessionId,
          processed: 0,
        }),
      );
    },
  });
  bob.onData = (chunk) => void decoder.push(chunk);
  session.attach(alice);
  await clock.until("it is given up", () => lost !== "");
  expect([offers, lost, alice.isClosed]).toEqual([4, "another carrier is in use", true]);
});

test("random bytes in every place end the session or nothing at all", async () => {
  for (let seed = 0; seed < 300; seed++) {
    const stranger = await Stranger.begin();
    const noise = Buffer.from(new Bun.CryptoHasher("sha512").update(`noise ${seed}`).digest());
    if (seed % 2 === 0) noise[0] = [1, 2, 3, 4, 5, 6, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86][seed % 13]!;
    if (seed % 4 === 0) noise.fill(0, 1, 3);
    await stranger.hear(open(1), noise);
    if (stranger.ended) expect(stranger.ended).toMatch(/^(protocol|peer): /);
    stranger.session!.abandon("the test is over");
  }
});
