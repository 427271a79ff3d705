/**
 * What of this program's command line other users of the host can see (`ps`, /proc/PID/cmdline), and taking a secret out
 * of it again. Linux only; elsewhere nothing can be taken out. Prints nothing. For participant.ts.
 */
import { readFileSync } from "node:fs";
import { memoryAt } from "./libc.ts";

/** How far up it is looked for: `bun run`, a shell, what started that. */
const maxAncestors = 4;

/**
 * Overwrites each argument that is that value of `option` (`--room`), or ends in `=` and it, where others see it. What has
 * been read of `process.argv` stays. Returns whether somebody may still see it: here, or in what started us.
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

/** Where it is a whole argument, or all that follows `=`. */
function occurrences(shown: Buffer, secret: string): number[] {
  const found: number[] = [];
  const bytes = Buffer.from(`${secret}\0`);
  for (let at = shown.indexOf(bytes); at >= 0; at = shown.indexOf(bytes, at + 1))
    if (at > 0 && (shown[at - 1] === 0 || shown[at - 1] === "=".charCodeAt(0))) found.push(at);
  return found;
}

/** Whether a process that led to us has been given it: as an argument of its own, or in a line for a shell. */
function isShown(pid: string, option: string, secret: string): boolean {
  for (let generation = 1; generation <= maxAncestors && pid !== "0"; generation++) {
    const shown = readFileSync(`/proc/${pid}/cmdline`);
    if (shown.includes(option) && shown.includes(secret)) return true;
    pid = argumentsOf(pid).parent;
  }
  return false;
}

/** proc_pid_stat(5): field 4 is the parent, 48 and 49 are where the arguments begin and end. */
function argumentsOf(pid: string): { parent: string; startsAt: number; bytes: number } {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  // The name before it, in brackets, may have blanks and brackets.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [startsAt, end] = [Number(fields[45]), Number(fields[46])];
  return { parent: fields[1]!, startsAt, bytes: end - startsAt };
}
