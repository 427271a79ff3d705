/**
 * A file that is being received, on the disk: what is there of it, how it is continued, and its name once it is complete.
 * Overwrites nothing, and follows no symbolic link. All names are in a {@link Folder}. For native/uses/receive.ts.
 */
import { constants } from "node:fs";
import { link, lstat, open, rename, statfs, unlink, type FileHandle } from "node:fs/promises";
import { bytes as sizeOf } from "../shares/sizes.ts";
import { blockBytes, headBytes, LocalProblem } from "./files.ts";
import { maxNumber, numbered } from "./filename.ts";
import { unlessCode, withName, type Folder } from "./folder.ts";
import { without } from "./message.ts";

/** Of files that differ only by number, so many of the first and so many of the last are compared. */
const maxAlike = 8;

/** What is there of a file: a part of it, or the complete file under its name. */
export interface Have {
  bytes: number;
  /** The hash of these bytes. */
  hash: Bun.CryptoHasher;
  isWhole: boolean;
  /** The name of the complete file. */
  name?: string;
}

interface Wanted {
  /** The name that it shall get. */
  name: string;
  bytes: number;
  /** The hash of its first {@link headBytes}. */
  head: string;
}

/** Finds the complete file under its name or a numbered one. Another attempt must not make a second one. */
export const wholeFile = (folder: Folder, { name, ...wanted }: Wanted): Promise<Have | undefined> =>
  withName(name, (one) => wholeFileAs(folder, { name: one, ...wanted }));

async function wholeFileAs(folder: Folder, { name, bytes, head }: Wanted): Promise<Have | undefined> {
  const named = (number: number) => numbered(name, number);
  let last = maxNumber;
  for (let number = 1; number <= last; number++) {
    const path = folder.at(named(number));
    const found = await lstat(path).catch(unlessCode("ENOENT"));
    if (!found) return undefined;
    const have = found.isFile() && found.size === bytes && (await knownFile(path, bytes, head));
    if (have) return { ...have, isWhole: true, name: named(number) };
    if (number !== maxAlike) continue;
    last = (await folder.nextFree(named, number)) - 1;
    number = Math.max(number, last - maxAlike);
  }
  return undefined;
}

/** What an earlier attempt has left. A file with a second name (a hard link) is not ours to write to. */
export async function unfinishedFile(
  folder: Folder,
  part: string,
  { bytes, head }: Pick<Wanted, "bytes" | "head">,
): Promise<Have> {
  const path = folder.at(part);
  const found = await lstat(path).catch(unlessCode("ENOENT"));
  const length = found?.isFile() && found.nlink === 1 ? Math.min(found.size, bytes) : 0;
  const known = length > 0 ? await knownFile(path, length, head) : undefined;
  return known ? { ...known, isWhole: false } : nothing();
}

/** What there is of a file whose folder is not there. */
export const nothing = (): Have => ({ bytes: 0, hash: new Bun.CryptoHasher("sha256"), isWhole: false });

/** The hash of a file's first `length` bytes, if it begins with that head. Of a shorter beginning nothing is said. */
async function knownFile(
  path: string,
  length: number,
  head: string,
): Promise<Omit<Have, "isWhole"> | undefined> {
  const hash = new Bun.CryptoHasher("sha256");
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
  await using handle = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  const block = Buffer.allocUnsafeSlow(Math.min(length, blockBytes));
  let at = 0;
  for (let most = headBytes; at < length; most = blockBytes) {
    const { bytesRead } = await handle.read(block, 0, Math.min(most, length - at), at);
    if (bytesRead === 0) break;
    hash.update(block.subarray(0, bytesRead));
    if (at === 0 && hash.copy().digest("hex") !== head) return undefined;
    at += bytesRead;
  }
  return { bytes: at, hash };
}

export async function openPartial(folder: Folder, part: string, from: number): Promise<FileHandle> {
  const { O_RDWR, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_EXCL } = constants;
  const path = folder.at(part);
  if (from === 0) await unlink(path).catch(unlessCode("ENOENT"));
  const flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | (from === 0 ? O_CREAT | O_EXCL : 0);
  const handle = await open(path, flags, 0o600);
  try {
    const found = await handle.stat();
    if (!found.isFile() || found.nlink !== 1 || found.size < from)
      throw new LocalProblem("its beginning has gone");
    await handle.truncate(from);
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** How much may be written there. */
export async function freeBytes(path: string): Promise<number> {
  const { bavail, bsize, blocks } = await statfs(path);
  return blocks === 0 ? Infinity : bavail * bsize; // some file systems do not say
}

export async function checkSpace(path: string, bytes: number): Promise<void> {
  const free = await freeBytes(path);
  if (free < bytes) throw new LocalProblem(fullDisk(free, bytes));
}

const fullDisk = (free: number, needed: number): string =>
  `the disk is too full: ${sizeOf(free)} are free, ${sizeOf(needed)} are needed`;

/** Writes all of the pieces from there on. */
export async function writeAt(handle: FileHandle, pieces: readonly Buffer[], at: number): Promise<void> {
  for (let rest = pieces; rest.length > 0;) {
    const { bytesWritten } = await handle.writev(rest, at);
    rest = without(rest, bytesWritten);
    at += bytesWritten;
  }
}

/** Gives a whole file its name, or a numbered one that is free, and never one that is taken. Returns it. */
export function place(folder: Folder, part: string, wanted: string): Promise<string> {
  return withName(wanted, async (name) => {
    const named = (number: number) => numbered(name, number);
    for (let number = 1; number <= maxNumber; number = await folder.nextFree(named, number)) {
      if (await placeAs(folder.at(part), folder.at(named(number)))) return named(number);
    }
    throw new LocalProblem(`there are ${maxNumber} files of that name`);
  });
}

/** False: the name is taken. */
async function placeAs(part: string, target: string): Promise<boolean> {
  try {
    await link(part, target);
    await unlink(part);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return false;
    if (code === "ENOENT" || code === "ENOSPC" || code === "EINVAL" || code === "ENAMETOOLONG") throw error;
  }
  // No hard links on this file system: the name is taken first, for rename() would replace what is there.
  const reserved = await open(target, "wx").catch(unlessCode("EEXIST"));
  if (!reserved) return false;
  await reserved.close();
  await rename(part, target);
  return true;
}
