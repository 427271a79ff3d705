/** How often a peer can make us ask the introducer, by what it says of itself and by what it cuts. */
import { expect, test } from "bun:test";
import { Seeker } from "../../native/participant/seeker.ts";
import { until } from "../native-fixture.ts";

test("a peer that changes without end is asked for at once, and then every three seconds at most", async () => {
  let seeks = 0;
  const seeker = new Seeker(() => seeks++);
  const startedAt = performance.now();
  seeker.want("direct", true);
  seeker.hurry(true);
  await until("it is sought at once", () => seeks === 1);
  for (let i = 0; i < 100; i++) {
    seeker.hurry(true);
    await Bun.sleep(1);
  }
  expect(seeks).toBeLessThanOrEqual(1 + (performance.now() - startedAt) / 3_000);
  await until("it is sought again, as the last change wants it", () => seeks === 2, 10_000);
  expect(performance.now() - startedAt).toBeGreaterThanOrEqual(2_990);
  seeker.rest();
}, 20_000);

test("what is found and lost without end is sought at once, and then after growing pauses", async () => {
  let seeks = 0;
  const seeker = new Seeker(() => seeks++);
  const waits: number[] = [];
  for (let i = 1; i <= 5; i++) {
    const lostAt = performance.now();
    seeker.want("soon", true);
    await until("it is sought", () => seeks === i, 10_000);
    waits.push(performance.now() - lostAt);
    seeker.rest();
  }
  // 0.25 s doubled each time, and jittered by half.
  for (const [i, leastMs] of [0, 125, 250, 500, 1_000].entries())
    expect(waits[i]).toBeGreaterThanOrEqual(leastMs - 1);
}, 20_000);
