/** Stamps follow the host's clock; what lies between two moments does not. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Stamps, stamps } from "../../native/shares/clock.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Clocks of the test's own: both go on, and one can be set. */
function clocks() {
  const time = { now: 1_000, wall: 1_700_000_001_000 };
  const all = new Stamps(
    () => time.now,
    () => Math.floor(time.wall),
    1_700_000_000_000,
  );
  const pass = (ms: number) => void ((time.now += ms), (time.wall += ms));
  return { time, all, pass };
}

test("stamps are those of the host's clock, to a fraction of a millisecond", () => {
  const { all, pass } = clocks();
  expect(all.now).toBe(1_700_000_001_000);
  pass(0.25);
  expect(all.now).toBe(1_700_000_001_000.25);
  const before = Date.now();
  expect(stamps.now).toBeWithin(before - 50, Date.now() + 50);
});

test.each([3_600_000, -3_600_000])(
  "after the clock was set by %i ms they are those of the new one",
  (stepMs) => {
    const { all, time, pass } = clocks();
    const moment = time.now;
    const before = all.of(moment);
    pass(5_000);
    time.wall += stepMs;
    expect(all.now).toBe(1_700_000_006_000 + stepMs);
    expect(all.of(moment)).toBe(before + stepMs); // also of what was before: its age stays
    expect(all.now - all.of(moment)).toBe(5_000);
  },
);

test("after a sleep, in which only the host's clock went on, they are right, too", () => {
  const { all, time } = clocks();
  time.wall += 8 * 3_600_000;
  expect(all.now).toBe(time.wall);
});

test("a clock that is slewed shifts none of them against another", () => {
  const { all, time, pass } = clocks();
  const stamped: number[] = [];
  for (let n = 0; n < 10; n++) {
    stamped.push(all.now);
    pass(100);
    time.wall += 1;
  }
  expect(stamped.map((at) => at - stamped[0]!)).toEqual(Array.from({ length: 10 }, (_, n) => 100 * n));
});

test("nothing but stamps and the times of files asks the host's clock", () => {
  const root = join(import.meta.dir, "../..");
  const files = [
    ...new Bun.Glob("native/**/*.ts").scanSync({ cwd: root }),
    "introducer.ts",
    "participant.ts",
  ];
  const asks = files.filter((file) => /Date\.now\(|timeOrigin/.test(readFileSync(join(root, file), "utf8")));
  expect(asks.sort()).toEqual(["native/shares/clock.ts", "native/uses/unfinished.ts"]);
});
