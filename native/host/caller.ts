/**
 * The folder that the user was in. `bun run` starts a script in the folder of its package, and `--cwd` changes there even
 * before; what the user calls `photos` is in neither. Only Linux shows where that was. For native/terminal/.
 */
import { readFileSync, readlinkSync, realpathSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { parentOf } from "./arguments.ts";

/** `bun run`, and a shell that it may need for the script. */
const maxAncestors = 3;

/** The folder from which `bun run` was called; undefined if we are there, or if it can't be found. */
export function callersFolder(): string | undefined {
  const manifest = process.env.npm_package_json;
  const ours = join(import.meta.dir, "../..");
  if (manifest === undefined || process.cwd() !== ours) return undefined;
  try {
    if (realpathSync(dirname(manifest)) !== ours) return undefined; // another package's script has started us
    const runner = runnerOf(manifest);
    if (runner === undefined) return undefined;
    const { pid, environment } = runner;
    const here = readlinkSync(`/proc/${pid}/cwd`);
    const hasChanged = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").some(isCwd);
    // With --cwd only the shell's own word tells where it was.
    const folder = hasChanged ? environment.get("PWD") : here;
    return folder?.startsWith("/") && folder !== process.cwd() && statSync(folder).isDirectory()
      ? folder
      : undefined;
  } catch {
    return undefined; // no /proc, or not ours to see
  }
}

const isCwd = (argument: string) => argument === "--cwd" || argument.startsWith("--cwd=");

/** The first of those that started us that `bun run` has not told of our package: that is itself. */
function runnerOf(manifest: string): { pid: string; environment: Map<string, string> } | undefined {
  let pid = "self";
  for (let generation = 1; generation <= maxAncestors; generation++) {
    pid = parentOf(pid);
    const lines = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
    const environment = new Map(lines.map((line) => line.split(/=([^]*)/, 2) as [string, string]));
    if (environment.get("npm_package_json") !== manifest) return { pid, environment };
  }
  return undefined;
}
