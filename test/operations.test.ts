/** What an operator installs: the service's unit and the programs as single files. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build, builds, fileName } from "../.ci/build.ts";
import manifest from "../package.json" with { type: "json" };
import { missing, testNeeding } from "./needing-fixture.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

/** A folder that is gone after the test. */
function folder(): Disposable & { path: string } {
  const path = mkdtempSync(join(tmpdir(), "operations-test-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

async function run(...command: string[]): Promise<{ code: number; output: string }> {
  const child = Bun.spawn(command, { stdio: ["ignore", "pipe", "pipe"] });
  const texts = [child.stdout, child.stderr].map((stream) => new Response(stream).text());
  const output = (await Promise.all(texts)).join("");
  return { code: await child.exited, output };
}

const unit = `${import.meta.dir}/../.ci/introducer.service`;
const noSystemd = missing(["systemd-analyze"], "package systemd");

testNeeding(noSystemd)("the unit is one that systemd takes, and leaves little to an intruder", async () => {
  using place = folder();
  const installed = join(place.path, "introducer.service");
  const text = await Bun.file(unit).text();
  // verify wants the program to be there
  await Bun.write(installed, text.replaceAll("/usr/local/bin/introducer", process.execPath));
  expect(await run("systemd-analyze", "verify", installed)).toEqual({ code: 0, output: "" });
  const security = ["security", "--offline=true", "--threshold=20", installed]; // 2.0 of 10
  expect(await run("systemd-analyze", ...security)).toMatchObject({ code: 0 });
});

testNeeding(noSystemd)("the unit of a participant is one that systemd takes for a user", async () => {
  using place = folder();
  const participant = `${import.meta.dir}/../.ci/participant.service`;
  const command = ["env", `XDG_RUNTIME_DIR=${place.path}`, "systemd-analyze", "--user", "verify"];
  expect(await run(...command, participant)).toEqual({ code: 0, output: "" });
});

test("a built introducer runs without Bun, and its sum is that of the file", async () => {
  const here = builds.find(({ program, target }) => program === "introducer" && target === undefined)!;
  using place = folder();
  const sum = await build(here, place.path);
  const file = join(place.path, fileName(here));
  const bytes = await Bun.file(file).bytes();
  expect(sum).toBe(`${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}  ${fileName(here)}\n`);
  expect(await run(file, "--version")).toEqual({ code: 0, output: `${manifest.version}\n` });
});
