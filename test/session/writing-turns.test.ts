import { expect, setDefaultTimeout, test } from "bun:test";
import { Stream } from "../../native/session/stream.ts";
import { WritingTurns } from "../../native/session/writing-turns.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Streams of one link whose writes are framed by hand. */
function turnsOf() {
  const nothing = () => {};
  const turns = new WritingTurns({ onCounted: nothing, onEnded: nothing });
  const owner = {
    ...{ hasCarrier: true, nowMs: 0, roundTripMs: undefined, mayGrow: () => false, onUnread: () => true },
    ...{ onFlushed: nothing, onCredit: nothing, onDestroyed: nothing, onThrown: nothing },
    onReady: (stream: Stream) => void turns.add(stream),
  };
  let id = -1;
  return {
    open: () => new Stream(owner, (id += 2)),
    /** All that was written is framed; returns in how many writes of how many something little goes beside bulk. */
    async frame() {
      const writes = { all: 0, beside: 0 };
      while (turns.length > 0) {
        const room = Buffer.alloc(64 * 1024);
        const batch = { room, at: 0, max: room.length, frames: 0, hasLittle: false };
        turns.addTo(batch);
        writes.all++;
        writes.beside += Number(batch.hasLittle);
      }
      await Promise.resolve();
      return writes;
    },
  };
}

test("a thousand streams that send little are not little things beside bulk; one beside bulk is", async () => {
  const { open, frame } = turnsOf();
  const small = Array.from({ length: 1000 }, open);
  for (let round = 0; round < 3; round++) {
    for (const stream of small) stream.write(Buffer.alloc(1200));
    const { all, beside } = await frame();
    expect(all).toBeGreaterThan(10);
    expect(beside).toBe(0);
  }
  const bulk = open();
  bulk.write(Buffer.alloc(128 * 1024));
  await frame();
  bulk.write(Buffer.alloc(100 * 1024));
  small[0]!.write(Buffer.alloc(100));
  expect((await frame()).beside).toBe(1);
  // Once bulk is over, nothing is beside it.
  for (let round = 0; round < 3; round++) {
    for (const stream of small) stream.write(Buffer.alloc(1200));
    await frame();
  }
  for (const stream of small) stream.write(Buffer.alloc(1200));
  expect((await frame()).beside).toBe(0);
});
