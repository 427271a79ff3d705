import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { type Due, notScheduled, Wheel } from "../../native/introducer/wheel.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function make(...ats: number[]) {
  let now = 1000;
  const wheel = new Wheel(() => now);
  const all: Due[] = ats.map(() => ({ slot: notScheduled, due: () => {} }));
  for (const [index, one] of all.entries()) wheel.put(one, ats[index]!);
  const taken = (at: number) => {
    now = at;
    return wheel.take().map((one) => all.indexOf(one));
  };
  return { wheel, all, taken };
}

describe("what is due", () => {
  test("comes in the step after that time, once, however late the timer is", () => {
    const { taken } = make(1250, 1000, 1950, 900, notScheduled);
    expect([taken(1019), taken(1245), taken(1260), taken(1260), taken(60_000)]).toEqual([
      [1, 3],
      [],
      [0],
      [],
      [2],
    ]);
  });

  test("is kept for the earliest of the times at which it was put", () => {
    const { wheel, all, taken } = make(1500, 1500);
    wheel.put(all[0]!, 1900);
    wheel.put(all[1]!, 1200);
    expect([taken(1250), taken(1550), taken(2000)]).toEqual([[1], [0], []]);
  });

  test("may be put again when it has been taken, also for a time that is over: then it comes at the next look", () => {
    const { wheel, all, taken } = make(1200);
    expect(taken(1205)).toEqual([0]);
    wheel.put(all[0]!, 1100);
    expect([taken(1211), taken(1300)]).toEqual([[0], []]);
  });

  test("is forgotten when removed", () => {
    const { wheel, all, taken } = make(1200, 1200, 1700);
    wheel.remove(all[0]!);
    wheel.remove(all[2]!);
    wheel.remove(all[2]!);
    expect([taken(5000), all.map(({ slot }) => slot)]).toEqual([
      [1],
      [notScheduled, notScheduled, notScheduled],
    ]);
  });

  test("is told so, the soonest first, and not before", async () => {
    const wheel = new Wheel();
    const told: [dueMs: number, toldMs: number][] = [];
    const put = (inMs: number) => {
      const dueMs = wheel.now() + inMs;
      wheel.put({ slot: notScheduled, due: (now) => void told.push([dueMs, now]) }, dueMs);
      return dueMs;
    };
    let steps = 0;
    wheel.start(() => void (steps += 1));
    const [late, soon, again] = [put(300), put(50), put(-1000)];
    await until("all are told", () => told.length === 3);
    wheel.stop();
    expect(told.map(([dueMs]) => dueMs)).toEqual([again!, soon!, late!]);
    expect(told.filter(([dueMs, toldMs]) => toldMs < dueMs)).toEqual([]);
    expect(steps).toBeGreaterThanOrEqual(3);
  });

  test("costs no step in which nothing is due", async () => {
    const wheel = new Wheel();
    let steps = 0;
    let isDue = false;
    wheel.start(() => void (steps += 1));
    wheel.put({ slot: notScheduled, due: () => void (isDue = true) }, wheel.now() + 700);
    await until("it is due", () => isDue);
    wheel.stop();
    expect(steps).toBeLessThan(5); // of 35
  });
});
