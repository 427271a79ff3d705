/** The units of systemd: their command lines are ones that the programs take, systemd understands them, and they are hardened. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as introducer from "../native/terminal/introducer-arguments.ts";
import * as participant from "../native/terminal/participant-arguments.ts";
import { missing, testNeeding } from "./needing-fixture.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);
const ci = join(import.meta.dir, "..", ".ci");
const units = readdirSync(ci).filter((file) => file.endsWith(".service"));
const textOf = (unit: string) => readFileSync(join(ci, unit), "utf8");
const place = mkdtempSync(join(tmpdir(), "units-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));

const readers = { introducer: introducer.readArguments, participant: participant.readArguments };
const room = "gjec-p272-r0uw-hs8m-z@HOST";

test("there are units for both", () => {
  expect(units.sort()).toEqual(["introducer.service", "participant.service", "participant@.service"]);
});

test.each(units)("%s says what its program takes", (unit) => {
  const text = textOf(unit);
  const [, given = ""] = /OPTIONS=([^\\]*)/.exec(text) ?? [];
  const lines = [...text.matchAll(/^Exec\w+=-?(.*)$/gm)].map(([, line = ""]) => line);
  expect(lines.length).toBeGreaterThan(0);
  const before = process.env.INTRODUCER;
  process.env.INTRODUCER = room;
  try {
    for (const line of lines) {
      const words = line.replace("$OPTIONS", given).replaceAll("%i", "bob").split(" ");
      const at = words.findIndex((word) => /(^|\/)(introducer|participant)$/.test(word));
      const [program, ...args] = words.slice(at);
      const read = readers[program!.replace(/.*\//, "") as keyof typeof readers];
      expect(read(args)).toBeObject();
    }
  } finally {
    if (before === undefined) delete process.env.INTRODUCER;
    else process.env.INTRODUCER = before;
  }
});

/** A copy whose programs are there: systemd looks whether they are. */
function copied(unit: string): string {
  const stub = join(place, "program");
  writeFileSync(stub, "#!/bin/sh\n");
  chmodSync(stub, 0o755);
  const path = join(place, unit);
  writeFileSync(path, textOf(unit).replaceAll(/\/usr\/local\/bin\/(?:introducer|participant)(?= )/g, stub));
  return path;
}

/** It reads units as the manager does, and starts nothing. */
async function analyze(...args: string[]) {
  const env = { ...process.env, XDG_RUNTIME_DIR: place };
  const child = Bun.spawn(["systemd-analyze", ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, stdout, stderr };
}

const needing = testNeeding(missing(["systemd-analyze"], "package systemd"));

needing.each(units)("systemd has nothing to say against %s", async (unit) => {
  const manager = unit === "participant.service" ? "--user" : "--system";
  expect(await analyze(manager, "verify", "--man=no", copied(unit))).toEqual({
    code: 0,
    stdout: "",
    stderr: "",
  });
  const spoilt = copied(unit);
  writeFileSync(spoilt, `${readFileSync(spoilt, "utf8")}\n[Service]\nRestart=sometimes\n`);
  expect((await analyze(manager, "verify", "--man=no", spoilt)).stderr).toContain("sometimes");
});

needing.each(units.filter((unit) => unit !== "participant.service"))("%s may do little", async (unit) => {
  const { code, stdout, stderr } = await analyze("security", "--offline=yes", "--threshold=20", copied(unit));
  expect({ code, stderr }).toMatchObject({ code: 0 });
  expect(stdout).toContain("Overall exposure level");
});
