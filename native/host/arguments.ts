/**
 * What other users of the host can see of this program's command line (`ps`, /proc/PID/cmdline), and how a secret is taken
 * out of it again. Elsewhere than on Linux nothing can be taken out. Prints nothing. For participant.ts.
 */
import { readFileSync } from "node:fs";
import { memoryAt } from "./libc.ts";

/** How many of the processes that started us are looked at: `bun run`, a shell, what started that. */
const maxAncestors = 4;

/**
 * Overwrites the secret in this process's command line: each argument that is the secret, or ends in `=` and the secret.
 * `process.argv` stays as it was read. Returns whether somebody may still see the secret: here, or as the value of `option`
 * (`--room`) in a process that started us.
 */
export function hideArgument(option: string, secret: string): boolean {
  try {
    const { parent, startsAt, bytes } = argumentsOf("self");
    const { buffer, byteOffset, length } = memoryAt(startsAt, bytes);
    const ours = Buffer.from(buffer, byteOffset, length);
    for (const at of occurrences(ours, secret)) ours.fill("x", at, at + Buffer.byteLength(secret));
    return (
      occurrences(readFileSync("/proc/self/cmdline"), secret).length > 0 || isShown(parent, option, secret)
    );
  } catch {
    return true; // no /proc, or another one than Linux's
  }
}

/** Where the secret is a whole argument, or all that follows `=`. */
function occurrences(shown: Buffer, secret: string): number[] {
  const found: number[] = [];
  const bytes = Buffer.from(`${secret}\0`);
  for (let at = shown.indexOf(bytes); at >= 0; at = shown.indexOf(bytes, at + 1))
    if (at > 0 && (shown[at - 1] === 0 || shown[at - 1] === "=".charCodeAt(0))) found.push(at);
  return found;
}

/** Whether a process that started us was given the secret: as an argument, or within a line for a shell. */
function isShown(pid: string, option: string, secret: string): boolean {
  for (let generation = 1; generation <= maxAncestors && pid !== "0"; generation++) {
    const shown = readFileSync(`/proc/${pid}/cmdline`);
    if (shown.includes(option) && shown.includes(secret)) return true;
    pid = argumentsOf(pid).parent;
  }
  return false;
}

/** The id of the process that started that one; "self" is ours. Throws where there is no /proc. */
export function parentOf(pid: string): string {
  return argumentsOf(pid).parent;
}

/** proc_pid_stat(5): field 4 is the parent, 48 and 49 are where the arguments begin and end. */
function argumentsOf(pid: string): { parent: string; startsAt: number; bytes: number } {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  // The process's name comes before, in brackets. It may hold blanks and brackets itself.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [startsAt, end] = [Number(fields[45]), Number(fields[46])];
  return { parent: fields[1]!, startsAt, bytes: end - startsAt };
}
