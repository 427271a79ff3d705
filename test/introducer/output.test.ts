/** What is written to a session: in one system call for each tick, unless it is much, and in order behind what waits. */
import { expect, setDefaultTimeout, test } from "bun:test";
import type { Guard } from "../../native/introducer/guard.ts";
import { defaultLimits } from "../../native/introducer/limits.ts";
import { Outbox, Output } from "../../native/introducer/output.ts";
import { Sources } from "../../native/introducer/sources.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** A reader whose kernel takes so much at a time. */
function reader(takes = Infinity) {
  const written: string[] = [];
  const told = { overflows: 0, takes };
  const write = (bytes: string | Uint8Array) => {
    const taken = Buffer.from(bytes as string).subarray(0, told.takes);
    written.push(taken.toString());
    return taken.length;
  };
  const writer = {
    ...{ source: "203.0.113.1", isOver: false, socket: { write }, fail() {} },
    overflowed: () => void told.overflows++,
  };
  const limits = { ...defaultLimits, ownHostShares: 1 };
  const guard = { serve: (_: unknown, work: () => void) => work() } as unknown as Guard;
  const sources = new Sources(limits);
  const output = new Output(writer as never, new Outbox(guard, limits, sources));
  return { output, written, told, unsent: () => sources.unsent.total };
}
const tick = () => new Promise(setImmediate);

test("what is little waits for the end of the tick, and goes as one", async () => {
  const { output, written } = reader();
  for (const text of ["a", "b", "c"]) output.write(text);
  expect(written).toEqual([]);
  await tick();
  expect(written).toEqual(["abc"]);
  await tick();
  expect(written).toHaveLength(1);
});

test("what is much is written at once, so that no tick holds it", async () => {
  const { output, written } = reader();
  const half = "x".repeat(32 * 1024);
  output.write(half);
  expect(written).toEqual([]);
  output.write(half);
  expect(written).toEqual([half + half]);
  await tick();
  expect(written).toHaveLength(1);
});

test("what the kernel does not take is counted, and goes first when it takes more", async () => {
  const { output, written, told, unsent } = reader(2);
  output.write("abcd");
  await tick();
  output.write("ef");
  await tick();
  expect([written, unsent(), output.hasUnsent]).toEqual([["ab"], 4, true]);
  expect([output.sendRest(), written.at(-1), unsent()]).toEqual([false, "cd", 2]);
  told.takes = Infinity;
  expect([output.sendRest(), written.at(-1), unsent(), output.hasUnsent]).toEqual([true, "ef", 0, false]);
  expect(told.overflows).toBe(0);
});

test("too much that waits is forgotten, and told", async () => {
  const { output, told, unsent } = reader(0);
  output.write("x".repeat(defaultLimits.unsentBytes));
  expect([told.overflows, unsent()]).toEqual([0, defaultLimits.unsentBytes]);
  output.write("x".repeat(64 * 1024));
  expect([told.overflows, unsent(), output.hasUnsent]).toEqual([1, 0, false]);
});
