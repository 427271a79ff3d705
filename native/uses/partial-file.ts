/**
 * A file that is being received, on the disk: what is there of it, how it is continued, and its name once it is complete.
 * Overwrites nothing, and follows no symbolic link. All names are in a {@link Folder}. For native/uses/receive.ts.
 */
import { constants } from "node:fs";
import { link, lstat, open, rename, statfs, unlink, type FileHandle } from "node:fs/promises";
import { blockBytes, LocalProblem } from "./files.ts";
import { maxNumber, numbered } from "./filename.ts";
import { unlessCode, type Folder } from "./folder.ts";
import { without } from "./message.ts";

/** Of files that differ only by number, so many of the first and so many of the last are compared. */
const maxAlike = 8;

/** What is there of a file: a part of it, or the complete file under its name. */
export interface Have {
  bytes: number;
  /** The hash of these bytes. */
  hash: Bun.CryptoHasher;
  isWhole: boolean;
}

interface Wanted {
  /** The name that it shall get. */
  name: string;
  bytes: number;
  modifiedMs: number;
}

/** Finds the complete file under its name or a numbered one. Another attempt must not make a second one. */
export async function wholeFile(
  folder: Folder,
  { name, bytes, modifiedMs }: Wanted,
): Promise<Have | undefined> {
  const named = (number: number) => numbered(name, number);
  let last = maxNumber;
  for (let number = 1; number <= last; number++) {
    const path = folder.at(named(number));
    const found = await lstat(path).catch(unlessCode("ENOENT"));
    if (!found) return undefined;
    // File systems round times in their own ways.
    const isSame = found.isFile() && found.size === bytes && Math.abs(found.mtimeMs - modifiedMs) < 2;
    if (isSame) return { ...(await hashFile(path, bytes)), isWhole: true };
    if (number !== maxAlike) continue;
    last = (await folder.nextFree(named, number)) - 1;
    number = Math.max(number, last - maxAlike);
  }
  return undefined;
}

/** What an earlier attempt has left. A file with a second name (a hard link) is not ours to write to. */
export async function unfinishedFile(folder: Folder, part: string, bytes: number): Promise<Have> {
  const path = folder.at(part);
  const found = await lstat(path).catch(unlessCode("ENOENT"));
  const length = found?.isFile() && found.nlink === 1 ? Math.min(found.size, bytes) : 0;
  return { ...(await hashFile(path, length)), isWhole: false };
}

/** What there is of a file whose folder is not there. */
export const nothing = (): Have => ({ bytes: 0, hash: new Bun.CryptoHasher("sha256"), isWhole: false });

async function hashFile(path: string, bytes: number): Promise<{ bytes: number; hash: Bun.CryptoHasher }> {
  const hash = new Bun.CryptoHasher("sha256");
  if (bytes === 0) return { bytes, hash };
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
  await using handle = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  const block = Buffer.allocUnsafeSlow(blockBytes);
  let at = 0;
  while (at < bytes) {
    const { bytesRead } = await handle.read(block, 0, Math.min(blockBytes, bytes - at), at);
    if (bytesRead === 0) break;
    hash.update(block.subarray(0, bytesRead));
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

export async function checkSpace(folder: Folder, bytes: number): Promise<void> {
  const { bavail, bsize, blocks } = await statfs(folder.at("."));
  // Some file systems do not say.
  if (blocks === 0 || bavail * bsize >= bytes) return;
  throw new LocalProblem(`the disk is too full: ${bavail * bsize} bytes are free, ${bytes} are needed`);
}

/** Writes all of the pieces from there on. */
export async function writeAt(handle: FileHandle, pieces: readonly Buffer[], at: number): Promise<void> {
  for (let rest = pieces; rest.length > 0;) {
    const { bytesWritten } = await handle.writev(rest, at);
    rest = without(rest, bytesWritten);
    at += bytesWritten;
  }
}

/** Gives a whole file its name, or a numbered one that is free, and never one that is taken. Returns it. */
export async function place(folder: Folder, part: string, name: string): Promise<string> {
  const named = (number: number) => numbered(name, number);
  for (let number = 1; number <= maxNumber; number = await folder.nextFree(named, number)) {
    if (await placeAs(folder.at(part), folder.at(named(number)))) return named(number);
  }
  throw new LocalProblem(`there are ${maxNumber} files of that name`);
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
    if (code === "ENOENT" || code === "ENOSPC") throw error;
  }
  // No hard links on this file system: the name is taken first, for rename() would replace what is there.
  const reserved = await open(target, "wx").catch(unlessCode("EEXIST"));
  if (!reserved) return false;
  await reserved.close();
  await rename(part, target);
  return true;
}
