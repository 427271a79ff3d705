/**
 * What of this program's command line other users of the host can see (`ps`, /proc/PID/cmdline), and taking a secret out
 * of it again. Linux only; elsewhere nothing can be taken out. Prints nothing. For participant.ts.
 */
import { readFileSync } from "node:fs";
import { memoryAt } from "./libc.ts";

/** How far up it is looked for: `bun run`, a shell, what started that. */
const maxAncestors = 4;

/**
 * Overwrites each argument that is that text, or ends in `=` and it, where others see it. What has been read of
 * `process.argv` stays. Returns whether somebody may still see it: here, or in what started us.
 */
export function hideArgument(secret: string): boolean {
  try {
    const { startsAt, bytes } = argumentsOf("self");
    overwrite(memoryAt(startsAt, bytes), Buffer.from(secret));
    return isShown(secret);
  } catch {
    return true; // no /proc, or another one than Linux's
  }
}

function overwrite(memory: Uint8Array, secret: Buffer): void {
  const shown = Buffer.from(memory.buffer, memory.byteOffset, memory.length);
  for (let from = 0; from < shown.length;) {
    const end = shown.indexOf(0, from) < 0 ? shown.length : shown.indexOf(0, from);
    const at = end - secret.length;
    const isIt = at === from || (at > from && shown[at - 1] === "=".charCodeAt(0));
    if (isIt && shown.subarray(at, end).equals(secret)) shown.fill("x", at, end);
    from = end + 1;
  }
}

function isShown(secret: string): boolean {
  let pid = "self";
  for (let generation = 0; generation <= maxAncestors && pid !== "0"; generation++) {
    if (readFileSync(`/proc/${pid}/cmdline`).includes(secret)) return true;
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
