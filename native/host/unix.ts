/**
 * Sockets that are files of this host (unix(7)). Owns such a file until it is removed. Nobody else may connect to
 * it: its mode is 0600 from the first moment. It never takes the place of something, unless that is a socket of ours at which
 * nobody listens: it was left by a program that was killed. For native/uses/.
 *
 * Whoever may write in a folder on the way can put another one in its place at any time. So the folder is opened once, and
 * what is looked at, removed and made is in that one.
 */
import {
  closeSync,
  constants,
  existsSync,
  fchmodSync,
  lstatSync,
  openSync,
  type Stats,
  unlinkSync,
} from "node:fs";
import { basename, dirname } from "node:path";
import { bind, close, connect, listen, SystemError, unixSocket } from "./libc.ts";
import { encodeUnixPath } from "./sockaddr.ts";

/** What is left of a socket's address behind the folder's descriptor. */
const maxNameBytes = 80;
const ownersOnly = 0o600;
/** What others must not do, as umask(2) has it. */
const othersMask = 0o177;
/** How many may wait to be accepted. The kernel may allow fewer. */
const backlog = 512;

/** Removes the file, if it is still there. */
type Remove = () => void;

/**
 * Listens there, and gives the descriptor to `take`, who owns it from then on unless it throws. Throws an error with a `code`:
 * EADDRINUSE if something is there, or what opening the folder throws.
 */
export function listenAtPath<T>(path: string, take: (fd: number) => T): { taken: T; remove: Remove } {
  const nameBytes = Buffer.byteLength(basename(path));
  if (nameBytes > maxNameBytes)
    throw new Error(`its name has at most ${maxNameBytes} bytes, not ${nameBytes}`);
  const folder = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  const opened = `/proc/self/fd/${folder}`;
  const place = existsSync(opened) ? `${opened}/${basename(path)}` : path;
  let fd: number | undefined;
  let made: Stats | undefined;
  try {
    fd = unixSocket();
    bindPrivately(fd, place);
    made = lstatSync(place);
    listen(fd, backlog);
    const known = made;
    return { taken: take(fd), remove: () => remove(folder, place, known) };
  } catch (error) {
    if (fd !== undefined) close(fd);
    remove(folder, place, made);
    throw error;
  }
}

/** `made`: what was made there, if anything was. */
function remove(folder: number, place: string, made: Stats | undefined): void {
  try {
    const there = lstatSync(place);
    if (there.ino === made?.ino && there.dev === made.dev) unlinkSync(place);
  } catch {
    // It is gone.
  }
  closeSync(folder);
}

function bindPrivately(fd: number, place: string): void {
  // On Linux the file gets the mode of the socket, elsewhere only what umask leaves.
  if (process.platform === "linux") fchmodSync(fd, ownersOnly);
  const address = encodeUnixPath(place);
  const before = process.platform === "linux" ? undefined : process.umask(othersMask);
  try {
    bind(fd, address);
  } catch (error) {
    if (!(error instanceof SystemError) || error.code !== "EADDRINUSE" || !isDead(place)) throw error;
    unlinkSync(place);
    bind(fd, address);
  } finally {
    if (before !== undefined) process.umask(before);
  }
}

/**
 * A connection to what listens at a path. The descriptor is the caller's. Throws a {@link SystemError}. `Bun.connect` with a
 * path fails if the other side closes at once, and loses what it has sent.
 */
export function connectToPath(path: string): number {
  const fd = unixSocket();
  try {
    connect(fd, encodeUnixPath(path));
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

/** Whether a socket of ours is there at which nobody listens. */
function isDead(place: string): boolean {
  const there = lstatSync(place, { throwIfNoEntry: false });
  if (!there?.isSocket() || there.uid !== process.getuid?.()) return false;
  try {
    close(connectToPath(place));
    return false;
  } catch (error) {
    return error instanceof SystemError && error.code === "ECONNREFUSED";
  }
}
