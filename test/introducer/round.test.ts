/** How one round is timed, who measures before it, and where it aims when a NAT has gone on. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  aimAnew,
  beginRound,
  roundLength,
  type Side,
  sideOf,
  startDelays,
} from "../../native/introducer/round.ts";
import type { Member } from "../../native/introducer/session.ts";
import { predictedPorts, type Endpoint, type Mapping } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const side = (mapping: Mapping): Side => sideOf({ peer: { mapping } } as unknown as Member);
const at = (port: number, step = 1) => ({ endpoint: `203.0.113.1:${port}` as Endpoint, step });

test("both start at the same moment: the nearer one waits for what the farther one's way takes longer", () => {
  expect(startDelays(40, 100)).toEqual([30, 0]);
  expect(startDelays(100, 40)).toEqual([0, 30]);
  expect(startDelays(undefined, 60)).toEqual([30, 0]);
  expect(startDelays(0, 1e9)).toEqual([2_000, 0]); // whatever it pretends
});

test("a round lasts some round trips, a trial of an open host two; the last has all that is left", () => {
  const plan = ["direct", "birthday", "direct"] as const;
  expect(roundLength(plan, 0, 100, 10_000)).toEqual({ isLast: false, deadlineMs: 2 * 100 + 200 });
  expect(roundLength(plan, 1, 100, 9_000)).toEqual({ isLast: false, deadlineMs: 3 * 100 + 400 });
  expect(roundLength(plan, 2, 100, 8_000)).toEqual({ isLast: true, deadlineMs: 8_000 });
  expect(roundLength(["direct", "direct"], 0, 100, 10_000)).toEqual({ isLast: false, deadlineMs: 900 });
  // Too little would be left for another.
  expect(roundLength(["direct", "direct"], 0, 100, 1_300)).toEqual({ isLast: true, deadlineMs: 1_300 });
  expect(roundLength(["direct"], 0, 100, -50)).toEqual({ isLast: true, deadlineMs: 1 });
});

test("before a predicted round those measure whose ports are counted, or both if neither's are; for fresh ports both", () => {
  const measuring = (way: Parameters<typeof beginRound>[1], ...mappings: Mapping[]) => {
    const sides = mappings.map(side);
    return beginRound(sides, way).map((one) => sides.indexOf(one));
  };
  expect(measuring("predicted", "sequential", "endpoint-independent")).toEqual([0]);
  expect(measuring("predicted", "endpoint-independent", "sequential")).toEqual([1]);
  expect(measuring("predicted", "sequential", "sequential")).toEqual([0, 1]);
  expect(measuring("predicted", "unknown", "endpoint-independent")).toEqual([0, 1]);
  expect(measuring("fresh", "endpoint-independent", "endpoint-independent")).toEqual([0, 1]);
  expect(measuring("direct", "sequential", "sequential")).toEqual([]);
  const [used] = [side("sequential")];
  Object.assign(used!, { report: "failed", prediction: at(1), newer: at(2) });
  beginRound([used!], "direct");
  expect(used).toMatchObject({
    report: undefined,
    prediction: undefined,
    newer: undefined,
    isMeasuring: false,
  });
});

test("it aims at what was measured meanwhile, and beyond that where both NATs have gone on", () => {
  const [one, other] = [side("sequential"), side("endpoint-independent")];
  Object.assign(one, { report: "failed", prediction: at(50_000), newer: at(50_100) });
  Object.assign(other, { prediction: at(7) });
  expect(aimAnew([one, other])).toBe(0);
  expect(one).toMatchObject({ report: undefined, newer: undefined });
  const first = Number(one.prediction!.endpoint.split(":")[1]);
  expect(other.prediction).toEqual(at(7));
  const both = [side("sequential"), side("sequential")];
  for (const each of both) each.newer = at(50_100);
  expect(aimAnew(both)).toBe(predictedPorts);
  for (const { prediction } of both)
    expect(Number(prediction!.endpoint.split(":")[1]) - first).toBe(predictedPorts);
});
