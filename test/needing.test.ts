import { expect, setDefaultTimeout, test } from "bun:test";
import { Glob } from "bun";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

test("what is skipped says why, however it is made", async () => {
  const folder = mkdtempSync(join(tmpdir(), "needing-test-"));
  const text = `import { describeNeeding, missing, testNeeding } from "${import.meta.dir}/needing-fixture.ts";
    const needing = testNeeding(undefined, missing(["no-such-program", "sh"], "package none"), "another");
    needing("a", () => { throw new Error("it ran") });
    needing.each([1, 2])("b %d", () => { throw new Error("it ran") });
    needing.concurrent("c", () => { throw new Error("it ran") });
    needing.concurrent.each([3])("d %d", () => { throw new Error("it ran") });
    describeNeeding("no reason")("e", () => testNeeding(undefined)("f", () => { throw new Error("it ran") }));
    testNeeding(undefined)("g", () => {});
    describeNeeding(undefined)("h", () => testNeeding(undefined)("i", () => {}));`;
  await Bun.write(join(folder, "one.test.ts"), text);
  await using child = Bun.spawn([process.execPath, "test"], {
    cwd: folder,
    stdout: "ignore",
    stderr: "pipe",
  });
  const said = await child.stderr.text();
  expect(await child.exited).toBe(0);
  rmSync(folder, { recursive: true });
  const why = "(skipped: not installed: no-such-program (package none))";
  const lines = said.split("\n").filter((line) => /^\((pass|skip)\)/.test(line));
  expect(lines.map((line) => line.replace(/ \[[\d.]+ms\]$/, ""))).toEqual([
    `(skip) a ${why}`,
    `(skip) b 1 ${why}`,
    `(skip) b 2 ${why}`,
    `(skip) c ${why}`,
    `(skip) d 3 ${why}`,
    "(skip) e (skipped: no reason) > f",
    "(pass) g",
    "(pass) h > i",
  ]);
});

test("no test is skipped in another way, which would not say it", async () => {
  const found: string[] = [];
  for await (const path of new Glob("**/*.ts").scan(import.meta.dir)) {
    if (path === "needing-fixture.ts" || path === "needing.test.ts") continue;
    const text = await Bun.file(join(import.meta.dir, path)).text();
    if (/\b(test|describe|it)\.(skip|skipIf|todo|todoIf|if|failing)\b/.test(text)) found.push(path);
  }
  expect(found).toEqual([]);
});
