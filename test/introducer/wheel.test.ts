import { describe, expect, test } from "bun:test";
import { Deadlines, notScheduled } from "../../native/introducer/wheel.ts";

function make(...ats: number[]) {
  const deadlines = new Deadlines<{ name: number; slot: number }>(100, 1000);
  const all = ats.map((at, name) => ({ name, at, slot: notScheduled }));
  for (const one of all) deadlines.put(one, one.at);
  const names = (now: number) => deadlines.take(now).map(({ name }) => name);
  return { deadlines, all, names };
}

describe("deadlines", () => {
  test("come in the step they fall into, once, however late the timer is", () => {
    const { names } = make(1250, 1000, 1950, 900, notScheduled);
    expect([names(1099), names(1199), names(1240), names(1240), names(60_000)]).toEqual([
      [1, 3],
      [],
      [0],
      [],
      [2],
    ]);
  });

  test("are kept for the earliest of the times at which one was put", () => {
    const { deadlines, all, names } = make(1500, 1500);
    deadlines.put(all[0]!, 1900);
    deadlines.put(all[1]!, 1200);
    expect([names(1250), names(1550), names(2000)]).toEqual([[1], [0], []]);
  });

  test("may be put again when they have been taken, also for the same step: then they come at the next look", () => {
    const { deadlines, names } = make(1210);
    for (const one of deadlines.take(1205)) deadlines.put(one, 1210);
    expect([names(1211), names(1300)]).toEqual([[0], []]);
  });

  test("are forgotten when removed", () => {
    const { deadlines, all, names } = make(1200, 1200, 1700);
    deadlines.remove(all[0]!);
    deadlines.remove(all[2]!);
    deadlines.remove(all[2]!);
    expect([names(5000), all.map(({ slot }) => slot)]).toEqual([
      [1],
      [notScheduled, notScheduled, notScheduled],
    ]);
  });
});
