/** Which rounds there are, and where a NAT that counts will stand. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { isAhead, planRounds, predictPort } from "../../native/shares/rounds.ts";
import {
  birthdayPorts,
  formatEndpoint,
  isUntranslated,
  type Mapping,
  mappings,
  type Situation,
  type Way,
} from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const mapped = formatEndpoint("203.0.113.7", 61000);

const sides = {
  translated: (mapping: Mapping, n: number): Situation => ({
    mapping,
    private: [formatEndpoint("10.0.0.4", 40000)],
    public: formatEndpoint(`203.0.113.${n}`, 40000),
  }),
  untranslated: (mapping: Mapping, n: number): Situation => ({
    mapping,
    private: [formatEndpoint(`203.0.113.${n}`, 40000)],
    public: formatEndpoint(`203.0.113.${n}`, 40000),
  }),
};
const withIPv6 = (side: Situation): Situation => ({
  ...side,
  private: [...side.private, formatEndpoint("2001:db8::5", 40000)],
});

const direct: Way[] = ["direct"];
const fresh: Way[] = ["direct", "fresh", "predicted", "fresh"];
const predicted = Array<Way>(3).fill("predicted");
const birthday = Array<Way>(3).fill("birthday");

/** Both orders of a pair plan the same. */
const plans: [a: Mapping, b: Mapping, nat: Way[], untranslated: Way[], alike: Way[]][] = [
  // mappings, both behind NATs, one of them without NAT, behind one NAT or both with IPv6
  ["unknown", "unknown", direct, direct, direct],
  ["unknown", "endpoint-independent", direct, direct, direct],
  ["endpoint-independent", "endpoint-independent", fresh, fresh, fresh],
  [
    "sequential",
    "unknown",
    [...predicted, ...birthday],
    [...predicted, ...birthday],
    [...predicted, ...birthday],
  ],
  [
    "sequential",
    "endpoint-independent",
    [...predicted, ...birthday],
    [...predicted, ...birthday],
    [...predicted, ...birthday],
  ],
  ["random", "unknown", birthday, ["direct", ...birthday], birthday],
  ["random", "endpoint-independent", birthday, ["direct", ...birthday], birthday],
  [
    "sequential",
    "sequential",
    [...predicted, ...predicted],
    [...predicted, ...predicted],
    [...predicted, ...predicted],
  ],
  ["sequential", "random", [], [], direct],
  ["random", "random", [], [], direct],
];

test("every pair of mappings has a row", () => {
  const pairs = mappings.flatMap((a) => mappings.map((b) => [a, b].toSorted().join()));
  expect(new Set(plans.map(([a, b]) => [a, b].toSorted().join()))).toEqual(new Set(pairs));
});

test.each(plans)("%s with %s", (a, b, nat, untranslated, alike) => {
  const { translated, untranslated: open } = sides;
  const plan = (one: Situation, other: Situation) => {
    const both = [planRounds(one, other), planRounds(other, one)];
    expect(both[0]).toEqual(both[1]!);
    return both[0]!;
  };
  expect(plan(translated(a, 1), translated(b, 2))).toEqual(nat);
  expect(plan(open(a, 1), translated(b, 2))).toEqual(untranslated);
  expect(plan(translated(a, 1), open(b, 2))).toEqual(untranslated);
  expect(plan(translated(a, 1), translated(b, 1))).toEqual(alike);
  expect(plan(withIPv6(translated(a, 1)), withIPv6(translated(b, 2)))).toEqual(alike);
  expect(plan(withIPv6(translated(a, 1)), translated(b, 2))).toEqual(nat); // one alone is of no use
});

test("who has a mapped port can be reached, whatever its mapping", () => {
  const [one, other] = [sides.translated("random", 1), sides.translated("random", 2)];
  const plan = (a: Situation, b: Situation) => [planRounds(a, b), planRounds(b, a)];
  const open = (side: Situation): Situation => ({ ...side, mapped });
  const both = (ways: Way[]) => [ways, ways];
  expect(plan(open(one), other)).toEqual(both(["direct"]));
  expect(plan(open(one), open(other))).toEqual(both(["direct"]));
  expect(plan(open(one), sides.translated("sequential", 2))).toEqual(both(["direct"]));
  for (const mapping of ["unknown", "endpoint-independent"] as const) {
    const kept = sides.translated(mapping, 2);
    expect(plan(open(one), kept)).toEqual(both(["direct", ...birthday]));
    expect(plan(one, open(kept))).toEqual(both(["direct", ...birthday]));
  }
  // What works without it is left as it is.
  const kept = sides.translated("endpoint-independent", 1);
  expect(plan(open(kept), sides.translated("endpoint-independent", 2))).toEqual(both(fresh));
  expect(plan(open(kept), sides.translated("sequential", 2))).toEqual(both([...predicted, ...birthday]));
});

test("untranslated is who is seen at an address and port of its own", () => {
  const { translated, untranslated } = sides;
  expect([isUntranslated(translated("unknown", 1)), isUntranslated(untranslated("unknown", 1))]).toEqual([
    false,
    true,
  ]);
  const moved = { ...untranslated("unknown", 1), public: formatEndpoint("203.0.113.1", 40001) };
  expect(isUntranslated(moved)).toBe(false);
});

test.each<[aim: number, now: number, step: number, isSo: boolean, what: string]>([
  [50000, 50000, 1, true, "nobody else has taken any"],
  [50000, 50008, 1, true, "some have been taken"],
  [50000, 50009, 1, false, "too few are left"],
  [50000, 49999, 1, false, "it has gone back"],
  [50000, 50016, 2, true, "some have been taken, by steps of two"],
  [50000, 50001, 2, false, "it stands between two steps"],
  [65530, 1026, 1, true, "it has begun anew"],
])("aiming ahead of %i at a NAT that stands at %i, step %i: %p, %s", (aim, now, step, isSo) => {
  const prediction = (port: number) => ({ endpoint: formatEndpoint("203.0.113.7", port), step });
  expect(isAhead(prediction(aim), prediction(now))).toBe(isSo);
});

const { first, last } = birthdayPorts;
test.each([
  [50000, 1, 1, 50001],
  [50000, 1, 12, 50012],
  [50000, -1, 3, 49997],
  [50000, 256, 2, 50512],
  [50000, 0, 7, 50000],
  [last, 1, 1, first],
  [last - 1, 2, 1, first],
  [first, -1, 1, last],
  [first, -256, 2, last - 511],
  [last, 4096, 12, 50175],
  [first, -4096, 16 * 24, first + ((-4096 * 384) % 64512) + 64512],
  [80, 1, 1, last - (first - 80) + 2],
])("from %i by steps of %i, %i mappings later: port %i", (port, step, count, expected) => {
  const next = predictPort({ endpoint: formatEndpoint("203.0.113.7", port), step }, count);
  expect(next).toBe(expected);
  expect(next >= first && next <= last).toBe(true);
});
