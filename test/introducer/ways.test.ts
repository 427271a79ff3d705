import { expect, setDefaultTimeout, test } from "bun:test";
import { WorkingWays } from "../../native/introducer/ways.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("a way is the pair's, whoever asks, until one of them is gone", () => {
  const ways = new WorkingWays();
  ways.keep(1, 2, "fresh");
  ways.keep(2, 3, "predicted");
  expect([ways.of(1, 2), ways.of(2, 1), ways.of(3, 2), ways.of(1, 3)]).toEqual([
    "fresh",
    "fresh",
    "predicted",
    undefined,
  ]);
  ways.keep(2, 1, "direct");
  expect(ways.of(1, 2)).toBe("direct");
  ways.forget(1);
  expect([ways.of(1, 2), ways.of(2, 1), ways.of(2, 3)]).toEqual([undefined, undefined, "predicted"]);
});

test("of each participant the last sixteen are kept", () => {
  const ways = new WorkingWays();
  ways.keep(99, 100, "fresh");
  for (let id = 1; id <= 16; id++) ways.keep(100, id, "fresh");
  expect([ways.of(100, 99), ways.of(99, 100)]).toEqual([undefined, undefined]);
  expect(Array.from({ length: 16 }, (_, n) => ways.of(n + 1, 100))).toEqual(Array(16).fill("fresh"));
});
