/** What the peer sends on a stream, until its user reads it. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Credit } from "../../native/session/credit.ts";
import { Received } from "../../native/session/received.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** One that takes so many pieces for each read, and what it was told. */
function receiver(creditBytes: number, mayTake: number) {
  const told = { handed: [] as string[], granted: 0, unread: 0, tooMuch: 0, lasts: 0 };
  let left = 0;
  const credit = new Credit(creditBytes, { nowMs: 0, roundTripMs: undefined, mayGrow: () => false });
  const received = new Received(credit, {
    hand: (piece) => (told.handed.push(piece.toString()), --left > 0),
    onCredit: (bytes) => (told.granted += bytes),
    onUnread: (bytes) => (told.unread += bytes) < 20_000,
    onTooMuch: () => told.tooMuch++,
  });
  const read = () => ((left = mayTake), received.read());
  return { received, told, read };
}
const piece = (text: string) => Buffer.from(text);

test("what comes is kept until it is read, and credit is given for what was read", () => {
  const { received, told, read } = receiver(8, 1);
  expect(["abcd", "efgh", "i"].map((text) => received.receive(piece(text)))).toEqual([true, true, false]);
  expect([told.handed, told.granted, received.allowedBytes]).toEqual([[], 0, 0]);
  read();
  expect([told.handed.join(""), told.granted, told.unread]).toEqual(["abcdefgh", 8, 0]);
});

test("who waits is handed what comes at once, and the end after all that came", () => {
  const { received, told, read } = receiver(1_000, 2);
  read();
  received.receive(piece("first"));
  received.receive(piece("second"));
  received.receive(piece("third"));
  expect([told.handed, received.isEmpty]).toEqual([["first", "second"], false]);
  received.endWith(() => told.lasts++);
  received.endWith(() => (told.lasts += 100)); // the first counts
  expect(told.lasts).toBe(0);
  read();
  expect([told.handed, told.lasts]).toEqual([["first", "second", "third"], 1]);
});

test("nothing is handed on or kept once the user has gone", () => {
  const { received, told, read } = receiver(1_000, 9);
  received.receive(piece("kept"));
  expect(told.unread).toBeGreaterThan(0);
  received.drop();
  expect(told.unread).toBe(0);
  expect(received.receive(piece("late"))).toBe(true);
  read();
  expect([told.handed, told.unread, received.isEmpty]).toEqual([[], 0, true]);
});

test("too much unread is told", () => {
  const { received, told } = receiver(100_000, 1);
  received.receive(Buffer.alloc(10_000));
  expect(told.tooMuch).toBe(0);
  received.receive(Buffer.alloc(12_000));
  expect(told.tooMuch).toBe(1);
});
