import { expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { families, filesOf, rowsOf, summed } from "./run.ts";

test("each family's files are there, and each file here is a family's", () => {
  const named = Object.keys(families).flatMap(filesOf);
  expect(named.filter((file) => !existsSync(join(import.meta.dir, "../../..", file)))).toEqual([]);
  const here = readdirSync(import.meta.dir).filter((file) => file.endsWith(".test.ts"));
  const others = here.filter((file) => file !== "run.test.ts" && !named.includes(`test/lab/field/${file}`));
  expect(others).toEqual([]);
});

test("a row for each test: what it told, that it failed, or why it was skipped", () => {
  const report = `<testsuites><testsuite>
    <testcase name="a &quot;b&quot;" classname="" time="1.25" file="x" />
    <testcase name="c" classname="" time="2" file="x"><failure type="AssertionError" /></testcase>
    <testcase name="d (skipped: not installed: git (package git))" time="0" file="x"><skipped /></testcase>
    <testcase name="e" classname="" time="0.5" file="x" />
  </testsuite></testsuites>`;
  expect(rowsOf("f", report, [{ scenario: "e", what: "300 MB" }])).toEqual([
    { family: "f", file: "x", scenario: 'a "b"', what: "held", seconds: 1.25 },
    { family: "f", file: "x", scenario: "c", what: "FAILED", seconds: 2 },
    { family: "f", file: "x", scenario: "d", what: "skipped: not installed: git (package git)", seconds: 0 },
    { family: "f", file: "x", scenario: "e", what: "300 MB", seconds: 0.5 },
  ]);
});

test("a scenario has a row of its own, another test one with all of its file", () => {
  const row = { family: "f", scenario: "s", what: "held", seconds: 1 };
  const own = { ...row, file: "test/lab/field/f.test.ts" };
  const others = ["held", "FAILED", "skipped: no git"].map((what) => ({
    ...row,
    file: "test/x.test.ts",
    what,
  }));
  const sum = { scenario: "test/x.test.ts: 3 tests", what: "1 FAILED, 1 skipped", seconds: 3 };
  expect(summed([own, ...others])).toEqual([own, { ...row, file: "test/x.test.ts", ...sum }]);
});
