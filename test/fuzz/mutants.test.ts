/** The breaks that `bun run mutate` makes, and one of them made: a test that sees it, and one that can't. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { copyOf, judge, mutantsOf, someMutants, sourcesOf, testsOf } from "./mutants.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("statements are dropped and conditions turned round; what says nothing at run time is left alone", () => {
  const source = [
    'import { a } from "./a.ts";',
    "interface Some {",
    "  size: number;",
    "}",
    "// one && another",
    "export function both(one: number, another: number): boolean {",
    "  let sum: number = one;",
    "  sum += another;",
    "  if (sum < 3) return false;",
    "  return a(sum) && one !== 0;",
    "}",
    "",
  ].join("\n");
  expect(mutantsOf("both.ts", source).map(({ line, is }) => `${line}: ${is}`)).toEqual([
    "8: ;",
    "9: if (sum >= 3) return false;",
    "9: if (!(sum < 3)) return false;",
    "9: ;",
    "10: return a(sum) || one !== 0;",
    "10: return a(sum) && one === 0;",
  ]);
});

test("a seed names its breaks, and none comes twice", async () => {
  const sources = sourcesOf(["native/shares/"]);
  const [some, again] = [await someMutants(50, 3, sources), await someMutants(50, 3, sources)];
  expect(some).toEqual(again);
  expect(new Set(some.map(({ text }) => text)).size).toBe(50);
  expect(await someMutants(50, 4, sources)).not.toEqual(some);
});

test("the tests of a source begin with that of its name", async () => {
  expect((await testsOf("native/shares/fair-share.ts"))[0]).toBe("test/shares/fair-share.test.ts");
  expect((await testsOf("introducer.ts")).filter((one) => /^test\/(?:lab|fuzz)\//.test(one))).toEqual([]);
});

test("a break is seen by the test of what it breaks, and by no other", async () => {
  const [source, own, other] = ["native/shares/fair-share.ts", "fair-share", "turns"] as const;
  const text = await Bun.file(`${import.meta.dir}/../../${source}`).text();
  const dropped = mutantsOf(source, text).find(({ was, is }) => was === "this.#total++;" && is === ";")!;
  using copy = copyOf();
  const judged = (name: string) => judge(copy.path, dropped, [`test/shares/${name}.test.ts`]);
  expect((await judged(own)).killedBy).toBeString();
  expect((await judged(other)).killedBy).toBeUndefined();
  // What fails anyway sees nothing.
  const failing = 'import { test } from "bun:test"; test("it fails", () => { throw new Error("always") });';
  await Bun.write(`${copy.path}/test/shares/failing.test.ts`, failing);
  expect((await judged("failing")).killedBy).toBeUndefined();
  expect(await Bun.file(`${copy.path}/${source}`).text()).toBe(text);
}, 30_000);
