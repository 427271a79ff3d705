/**
 * Descriptors that were given to us by whoever started the program. They are shared with others, so their flags are left
 * alone: O_NONBLOCK, once set, would be set for the neighbours, too, and stay set after us. For native/terminal/.
 */
import { readFileSync } from "node:fs";
import { isSupported, poll } from "./libc.ts";
import { platform } from "./platform.ts";

/** On a pipe with room for one page, a write of so many bytes does not wait (POSIX.1-2017 `poll`, `write`: PIPE_BUF). */
export const unblockedBytes = 4096;

/** O_CLOEXEC, as /proc shows it: Linux include/uapi/asm-generic/fcntl.h. */
const closeOnExec = 0o2000000;

const entry = new Int32Array(2);

/** Whether a write of {@link unblockedBytes} would not wait now. Also if it would fail at once. */
export function isWritable(fd: number): boolean {
  entry[0] = fd;
  entry[1] = platform.POLLOUT;
  return poll(entry, 1) > 0;
}

/** Whether this system tells that. */
export const canTellWritable = isSupported;

/**
 * Whether one of the first three descriptors was open when the program was started. Bun opens /dev/null in place of those
 * that were closed, and what is written there is lost. What is inherited is never closed by exec (POSIX.1-2017 `exec`:
 * FD_CLOEXEC), and what Bun opens is. Only Linux shows it; elsewhere true.
 */
export function wasGiven(fd: 0 | 1 | 2): boolean {
  try {
    const flags = /^flags:\t(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1] ?? "0";
    return (parseInt(flags, 8) & closeOnExec) === 0;
  } catch {
    return true;
  }
}
