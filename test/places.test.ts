import { expect, spyOn, test } from "bun:test";
import { isField } from "./needing-fixture.ts";
import { inTries } from "./places-fixture.ts";

const tries = { won: 0, lost: 0, once: 0 };
/** `test`, but what is to fail is no failure here. */
const bodies: (() => Promise<void>)[] = [];
const keeping = Object.assign((_: string, body: () => Promise<void>) => void bodies.push(body), {
  concurrent: test.concurrent,
});
const tried = inTries(keeping as unknown as typeof test);

test.if(!isField)("of three tries one must do, and those that failed are told", async () => {
  tried("won at the first", () => void tries.won++);
  tried("lost each time", () => Promise.reject(new Error(`lost ${++tries.lost}`)));
  tried("lost once", () => {
    if (++tries.once === 1) throw new Error("lost");
  });
  const told: unknown[] = [];
  const spy = spyOn(console, "error").mockImplementation((line) => void told.push(line));
  const ends = await Promise.allSettled(bodies.map((body) => body()));
  spy.mockRestore();
  expect(ends.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
  expect(tries).toEqual({ won: 1, lost: 3, once: 2 });
  expect(told).toHaveLength(3);
});
