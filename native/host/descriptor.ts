/**
 * Descriptors that were given to us by whoever started the program. They are shared with others, so their flags are left
 * alone: O_NONBLOCK, once set, would be set for the neighbours, too, and stay set after us. For native/terminal/.
 */
import { isSupported, platform, poll } from "./libc.ts";

/** On a pipe with room for one page, a write of so many bytes does not wait (POSIX.1-2017 `poll`, `write`: PIPE_BUF). */
export const unblockedBytes = 4096;

const entry = new Int32Array(2);

/** Whether a write of {@link unblockedBytes} would not wait now. Also if it would fail at once. */
export function isWritable(fd: number): boolean {
  entry[0] = fd;
  entry[1] = platform.POLLOUT;
  return poll(entry, 1) > 0;
}

/** Whether this system tells that. */
export const canTellWritable = isSupported;
