/** Web streams of a link's stream: each half by itself, what waits, and what cuts it off. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  failedStream,
  firstCreditBytes,
  resetCodes,
  type Stream,
  StreamError,
} from "../../native/session/stream.ts";
import { pairOf, type StreamPair } from "../../native/session/web-pair.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { sha256 } from "../sockets-fixture.ts";
import { Linked } from "./linked-fixture.ts";

setDefaultTimeout(testMs);

/** Both ends of one stream. */
async function pairs() {
  const link = new Linked();
  const taken = Promise.withResolvers<Stream>();
  link.onStream = (stream) => taken.resolve(stream);
  const stream = link.alice.open({ use: "test" });
  const peers = await taken.promise;
  const [here, there] = [pairOf(stream), pairOf(peers)];
  return { stream, peers, here, there, [Symbol.dispose]: () => link[Symbol.dispose]() };
}

const text = (readable: ReadableStream<Uint8Array>) => new Response(readable).text();

async function write({ writable }: StreamPair, ...pieces: (string | Uint8Array)[]): Promise<void> {
  const writer = writable.getWriter();
  for (const piece of pieces) await writer.write(typeof piece === "string" ? Buffer.from(piece) : piece);
  writer.releaseLock();
}

const failure = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "it went well",
    (error: unknown) => error,
  );

/** What `read` and `write` of a pair come to. */
async function fate({ readable, writable }: StreamPair) {
  const writer = writable.getWriter();
  return Promise.all([failure(readable.getReader().read()), failure(writer.closed)]);
}

test("one half ends, and the other goes on", async () => {
  using both = await pairs();
  await write(both.here, "a question");
  await both.here.writable.close();
  expect(await text(both.there.readable)).toBe("a question");
  await write(both.there, "an ", "answer");
  await both.there.writable.close();
  expect(await text(both.here.readable)).toBe("an answer");
  await until("both have forgotten it", () => both.stream.closed && both.peers.closed);
});

test("who writes waits for who reads, and holds no more than the windows", async () => {
  using both = await pairs();
  const [piece, pieces] = [Buffer.alloc(64 * 1024, "x"), 256];
  const writer = both.here.writable.getWriter();
  let written = 0;
  const writing = (async () => {
    for (let count = 0; count < pieces; count++) {
      await writer.write(piece);
      written += piece.length;
    }
    await writer.close();
  })();
  await until("the first credit is used up", () => written >= firstCreditBytes);
  for (let turn = 0; turn < 100; turn++) await new Promise(setImmediate);
  // One piece more waits in the stream; the peer's pair takes one that nobody has read.
  expect(written).toBeLessThanOrEqual(firstCreditBytes + 2 * piece.length);
  const all = await new Response(both.there.readable).arrayBuffer();
  await writing;
  expect(sha256(new Uint8Array(all))).toBe(sha256(Buffer.alloc(pieces * piece.length, "x")));
});

test("a piece may be changed once it is written, whatever its size", async () => {
  using both = await pairs();
  const sizes = [1, 100, 16 * 1024, 16 * 1024 + 1, 200_000];
  const read = new Response(both.there.readable).arrayBuffer();
  const writer = both.here.writable.getWriter();
  for (const size of sizes) {
    const piece = new Uint8Array(size).fill(1);
    await writer.write(piece);
    piece.fill(0);
  }
  await writer.close();
  const all = new Uint8Array(await read);
  expect([all.length, all.every((byte) => byte === 1)]).toEqual([
    sizes.reduce((sum, size) => sum + size),
    true,
  ]);
});

test.each<[string, (pair: StreamPair) => Promise<void>]>([
  ["cancelling what is read", ({ readable }) => readable.cancel("it is not wanted any more")],
  ["aborting what is written", ({ writable }) => writable.abort(new Error("it is not wanted any more"))],
])("%s cuts off both halves at both ends, and says why", async (_, act) => {
  using both = await pairs();
  await write(both.here, "some");
  const atPeers = fate(both.there);
  await act(both.here);
  const [read, closed] = await atPeers;
  // What had come may be read; then it fails.
  const isRead = typeof read === "string";
  for (const error of isRead ? [closed] : [read, closed]) {
    expect(error).toBeInstanceOf(StreamError);
    expect(error).toMatchObject({ code: resetCodes.cancelled, reason: "it is not wanted any more" });
  }
  await until("it is over here, too", () => both.stream.destroyed);
});

test("a peer that resets it fails both halves, and neither waits for ever", async () => {
  using both = await pairs();
  const here = fate(both.here);
  both.peers.reset("enough", resetCodes.failed);
  for (const error of await here) expect(error).toMatchObject({ code: resetCodes.failed, reason: "enough" });
});

test("of a stream that has failed both halves have failed; and what is no bytes is refused", async () => {
  const failed = failedStream("the link has ended");
  for (const error of await fate(pairOf(failed))) expect(String(error)).toContain("the link has ended");
  for (const error of await fate(pairOf(failed))) expect(String(error)).toContain("the link has ended");
  using both = await pairs();
  const writer = both.here.writable.getWriter();
  expect(await failure(writer.write("text" as unknown as Uint8Array))).toBeInstanceOf(TypeError);
  await until("the peer is told", () => both.peers.destroyed);
});
