/** How long a program waits. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { inTime, joinInTime } from "../../native/terminal/running.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const never = new Promise<never>(() => {});
const message = (waiting: Promise<unknown>) => waiting.catch((error: Error) => error.message);

test("the time of --wait counts once, for the introducer and whoever is waited for", async () => {
  const peers = { list: async () => [], nameOf: (word: string) => word };
  const participant = { join: () => never, peers };
  // Nearly all of it was waited for the introducer.
  const startedAt = performance.now() - 100_000;
  const running = { participant, options: { waitMs: 100_001 }, startedAt } as never;
  const late = Bun.sleep(50_000).then(() => "late");
  expect(await Promise.race([message(inTime(running, "bob", never)), late])).toBe(
    "bob did not come within 100.001 s (--wait)",
  );
  expect(await Promise.race([message(joinInTime(running)), late])).toBe(
    "not registered with the introducer within 100.001 s (--wait)",
  );
});
