/** What is handed to a socket in one go, and what waits for the next. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { maxWaitMs } from "../../native/uses/late-queue.ts";
import { Spout } from "../../native/uses/spout.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("a burst goes out in parts, in order, and nothing of it is lost", async () => {
  const sent: number[] = [];
  const spout = new Spout((datagram) => sent.push(datagram.readUInt32BE()) > 0);
  const burst = Array.from({ length: 200 }, (_, number) => {
    const datagram = Buffer.alloc(16 * 1024);
    datagram.writeUInt32BE(number);
    return datagram;
  });
  for (const datagram of burst) spout.push(datagram);
  expect(sent.length).toBeGreaterThan(0);
  expect(sent.length).toBeLessThan(burst.length);
  await until("the rest has gone, or was too late", () => sent.length + spout.dropped === burst.length);
  expect(sent).toEqual(sent.toSorted((a, b) => a - b));
  spout.close();
});

test("what is not taken waits, and then is dropped", async () => {
  let isFull = true;
  const sent: string[] = [];
  const spout = new Spout((datagram) => (isFull ? false : sent.push(`${datagram}`) > 0));
  spout.push(Buffer.from("late"));
  const since = performance.now();
  await until("it is late", () => performance.now() - since > 2 * maxWaitMs);
  isFull = false;
  spout.pump();
  spout.push(Buffer.from("in time"));
  expect([sent, spout.dropped]).toEqual([["in time"], 1]);
  spout.close();
});

test("what is not taken is dropped in time, also if nothing more comes", async () => {
  const spout = new Spout(() => false);
  for (let number = 0; number < 16; number++) spout.push(Buffer.alloc(16 * 1024));
  await until("all of it was dropped", () => spout.dropped === 16);
  spout.close();
});

test("closed, it sends nothing more", async () => {
  let sent = 0;
  const spout = new Spout(() => ++sent > 0);
  for (let number = 0; number < 40; number++) spout.push(Buffer.alloc(16 * 1024));
  const before = sent;
  spout.close();
  await Bun.sleep(5); // longer than the pause between two goes
  expect([sent, sent + spout.dropped]).toEqual([before, 40]);
});
