/**
 * Loaded before all tests (bunfig.toml), so that what nobody catches fails the run, and a loop that nobody ended, too. In the tests' own process Bun's
 * runner sees to that, as long as it runs: so it stays a moment after the last test. A program goes on by itself, though,
 * while a top-level await is pending, as our programs' is: those that tests start load uncaught-program-fixture.ts.
 */
import { afterAll } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What the last test has left behind may still throw. */
const lingerMs = 200;
/** So often it may still be busy for that long, with garbage and with what ends. Bun gives 5 s to all of it. */
const busyTimes = 15;

const folder = mkdtempSync(join(tmpdir(), "uncaught-"));
const file = join(folder, "programs");
const marks = {
  UNCAUGHT_FILE: file,
  // As --preload, for each program that inherits it, but not for `bun build`, which BUN_OPTIONS would confuse.
  BUN_INSPECT_PRELOAD: `${import.meta.dir}/uncaught-program-fixture.ts`,
  // Where introducers take commands. Those that are killed leave their sockets.
  RUNTIME_DIRECTORY: folder,
};
Object.assign(process.env, marks);

/** Also what is given an environment of its own; without one it gets what this process itself was started with. */
type Start = (command: object, options?: object) => unknown;
const marked = (options: { env?: object } = {}) => ({
  ...options,
  env: { ...marks, ...(options.env ?? process.env) },
});
const marking =
  (start: Start): Start =>
  (command, options) =>
    Array.isArray(command) ? start(command, marked(options)) : start(marked(command));
const { spawn, spawnSync } = Bun;
Bun.spawn = marking(spawn as Start) as typeof spawn;
Bun.spawnSync = marking(spawnSync as Start) as typeof spawnSync;

/** Whether nothing goes on by itself. A loop that a test left takes a processor from all tests that follow. */
async function isIdle(): Promise<boolean> {
  const before = process.cpuUsage();
  await Bun.sleep(lingerMs);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000 < lingerMs / 2;
}

afterAll(async () => {
  let busy = 0;
  while (!(await isIdle())) {
    if (++busy === busyTimes)
      throw new Error("a test has left something that goes on for ever, and keeps a processor busy");
  }
  const found = existsSync(file) ? readFileSync(file, "utf8") : "";
  rmSync(folder, { recursive: true });
  if (found !== "") throw new Error(`programs that tests had started did not catch this:\n${found}`);
});
