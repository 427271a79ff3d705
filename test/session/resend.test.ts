import { expect, setDefaultTimeout, test } from "bun:test";
import { encodeCount, encodeFrame, frame, ProtocolError } from "../../native/session/frame.ts";
import { Queue, ResendBuffer } from "../../native/session/resend.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Puts `frames` into one write, behind bytes that are not sequenced; returns where they are. */
function put(buffer: ResendBuffer, frames: string[], unsequenced: Buffer = Buffer.alloc(0)): Buffer {
  const room = buffer.reserve(64 * 1024);
  let at = unsequenced.copy(room);
  for (const text of frames) at += encodeFrame(frame.data, Buffer.from(text), 1).copy(room, at);
  buffer.commit(room, unsequenced.length, at, frames.length);
  return room;
}

const texts = (bytes: Buffer | undefined): string[] => {
  const found: string[] = [];
  for (let at = 0; bytes && at < bytes.length;) {
    const length = bytes.readUIntBE(at + 1, 3);
    found.push(bytes.toString("utf8", at + 8, at + 8 + length));
    at += 8 + length;
  }
  return found;
};

test("what is not acknowledged is sent again, from the frame on that lacks, and nothing unsequenced with it", () => {
  const buffer = new ResendBuffer();
  put(buffer, ["a", "bb", "ccc"], encodeCount(frame.ack, 1));
  put(buffer, ["d"]);
  expect([buffer.made, buffer.next, buffer.resend()]).toEqual([4, 4, undefined]);
  buffer.acknowledge(1);
  buffer.rewind();
  expect(buffer.next).toBe(1);
  expect(texts(buffer.resend())).toEqual(["bb", "ccc"]);
  expect(buffer.next).toBe(3);
  buffer.acknowledge(4);
  expect([buffer.next, buffer.resend(), buffer.keptBytes]).toEqual([4, undefined, 0]);
});

test("an acknowledgement moves what is sent next, but never back", () => {
  const buffer = new ResendBuffer();
  for (const text of ["a", "b", "c"]) put(buffer, [text]);
  buffer.rewind();
  buffer.acknowledge(2);
  expect(buffer.next).toBe(2);
  buffer.acknowledge(1);
  expect([buffer.acknowledged, texts(buffer.resend())]).toEqual([2, ["c"]]);
  expect(() => buffer.acknowledge(4)).toThrow(ProtocolError);
});

test("memory is used again once all in it was acknowledged, and never that of what was sent again", () => {
  const buffer = new ResendBuffer();
  const first = put(buffer, ["a"]);
  buffer.acknowledge(1);
  const second = put(buffer, ["b"]);
  expect(second.buffer).toBe(first.buffer);
  expect(second.byteOffset).toBe(first.byteOffset);
  buffer.rewind();
  const repeated = buffer.resend()!;
  buffer.acknowledge(2);
  const blocks = new Set<unknown>();
  for (let count = 3; count < 200; count++) {
    const room = put(buffer, ["x".repeat(16_000)]);
    expect(room.buffer !== repeated.buffer || room.byteOffset > repeated.byteOffset).toBe(true);
    blocks.add(room.buffer);
    buffer.acknowledge(count);
  }
  expect(texts(repeated)).toEqual(["b"]);
  expect(blocks.size).toBeLessThanOrEqual(3);
});

test("a queue gives back what was put in, in order, and keeps little else", () => {
  const queue = new Queue<number>();
  let [pushed, shifted] = [0, 0];
  for (let round = 0; round < 1_000; round++) {
    for (let i = 0; i < round % 7; i++) queue.push(pushed++);
    for (let i = 0; i < round % 6; i++) if (queue.length > 0) expect(queue.shift()).toBe(shifted++);
    expect([queue.length, queue.at(0)]).toEqual([pushed - shifted, pushed > shifted ? shifted : undefined]);
  }
});
