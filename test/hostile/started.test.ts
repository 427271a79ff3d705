/** What lies in the folder that a program is started in, as a peer may have sent it: none of it runs or is read. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build, builds, fileName } from "../../.ci/build.ts";
import { run } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const root = join(import.meta.dir, "../..");
const place = fs.mkdtempSync(join(tmpdir(), "hostile-started-"));
afterAll(() => fs.rmSync(place, { recursive: true, force: true }));

const [folder, mark] = [join(place, "received"), join(place, "mark")];
fs.mkdirSync(join(folder, "node_modules/picocolors"), { recursive: true });
const evil = `require("node:fs").appendFileSync(${JSON.stringify(mark)}, __filename + "\\n");`;
const trap: Record<string, string> = {
  "evil.ts": evil,
  "bunfig.toml": 'preload = ["./evil.ts"]\n[run]\npreload = ["./evil.ts"]\n[test]\npreload = ["./evil.ts"]\n',
  "package.json": '{ "scripts": { "participant": "bun evil.ts", "preparticipant": "bun evil.ts" } }',
  "node_modules/picocolors/package.json": '{ "name": "picocolors", "main": "index.js" }',
  "node_modules/picocolors/index.js": `${evil}module.exports = {};`,
};
for (const name of ["tsconfig.json", "jsconfig.json"])
  trap[name] = '{ "compilerOptions": { "paths": { "*": ["./evil.ts"] } } }';
// Port 9 is nobody's: a program that had read it would say that it can't get there.
for (const name of [".env", ".env.local", ".env.development", ".env.production"])
  trap[name] = "INTRODUCER=127.0.0.1:9\nROOM=read\n";
for (const [path, text] of Object.entries(trap)) fs.writeFileSync(join(folder, path), text);

/** A program that is told no introducer, and asks for one unless it has read one. */
async function starts(...command: string[]): Promise<{ ran: boolean; read: boolean; stderr: string }> {
  fs.rmSync(mark, { force: true });
  const { stderr } = await run(folder, command, { env: { XDG_STATE_HOME: place, PWD: folder } });
  return { ran: fs.existsSync(mark), read: !stderr.includes("which introducer?"), stderr };
}

const safe = { ran: false, read: false };
const bun = process.execPath;
const source = join(root, "participant.ts");

test("the trap is one: plain `bun FILE` runs and reads what lies there", async () => {
  expect(await starts(bun, source)).toMatchObject({ ran: true, read: true });
});

test("the command that `bun link` gives runs and reads nothing of it", async () => {
  const env = { BUN_INSTALL: join(place, "bun"), HOME: place };
  expect(await run(root, [bun, "link"], { env })).toMatchObject({ code: 0 });
  expect(await starts(join(place, "bun/bin/participant"))).toMatchObject(safe);
  await starts(join(place, "bun/bin/introducer"), "--help");
  expect(fs.existsSync(mark)).toBe(false);
});

test("nor does the source, started by `bun run --cwd`, which comes back to that folder", async () => {
  expect(await starts(bun, "run", "--cwd", root, "--silent", "participant")).toMatchObject(safe);
});

test("nor does the built program", async () => {
  const here = builds.find(({ program, target }) => program === "participant" && target === undefined)!;
  await build(here, place);
  const program = join(place, fileName(here));
  expect(await starts(program)).toMatchObject(safe);
  fs.rmSync(program);
}, 30_000);
