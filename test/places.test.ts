import { expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { isField } from "./needing-fixture.ts";
import { inTries, testAtOnce, within } from "./places-fixture.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const alone = testAtOnce(1);
alone("who has the place has it for 100 ms, for example", () => Bun.sleep(100));
alone("who waits for it longer than its own time is not late", () => {}, 50);

test("who takes longer than its time is late", async () => {
  await expect(within(1, new Promise(() => {}))).rejects.toThrow("this test took more than 1 ms");
  const failed = within(1_000, Promise.reject(new Error("it failed")));
  await expect(failed).rejects.toThrow("it failed");
});

const tries = { won: 0, lost: 0, once: 0 };
/** `test`, but what is to fail is no failure here. */
const bodies: (() => Promise<void>)[] = [];
const keeping = Object.assign((_: string, body: () => Promise<void>) => void bodies.push(body), {
  concurrent: test.concurrent,
});
const tried = inTries(keeping as unknown as typeof test);

test("of three tries one must do, and those that failed are told; in the field there is one", async () => {
  tried("won at the first", () => void tries.won++);
  tried("lost each time", () => Promise.reject(new Error(`lost ${++tries.lost}`)));
  tried("lost once", () => {
    if (++tries.once === 1) throw new Error("lost");
  });
  const told: unknown[] = [];
  const spy = spyOn(console, "error").mockImplementation((line) => void told.push(line));
  const ends = await Promise.allSettled(bodies.map((body) => body()));
  spy.mockRestore();
  const statuses = ends.map(({ status }) => status);
  expect({ statuses, tries, told: told.length }).toEqual(
    isField
      ? { statuses: ["fulfilled", "rejected", "rejected"], tries: { won: 1, lost: 1, once: 1 }, told: 0 }
      : { statuses: ["fulfilled", "rejected", "fulfilled"], tries: { won: 1, lost: 3, once: 2 }, told: 3 },
  );
});
