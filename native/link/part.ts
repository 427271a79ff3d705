/**
 * A file that is being received, on the disk: what is there of it, writing on, and its name once it is whole. Writes
 * nothing over what is there, and follows no symbolic link. For native/link/receive.ts.
 */
import { constants } from "node:fs";
import { link, lstat, open, rename, statfs, unlink, type FileHandle } from "node:fs/promises";
import { basename, join } from "node:path";
import { blockBytes, fileProblem } from "./files.ts";
import { maxNumber, numbered } from "./filename.ts";
import { without } from "./message.ts";

/** What is there of a file: as a part, or whole under its name. */
export interface Have {
  bytes: number;
  /** Of these bytes. */
  hash: Bun.CryptoHasher;
  isWhole: boolean;
}

/** What is wrong here, in words for both sides. */
export class LocalProblem extends Error {}

export const problemOf = (error: unknown): string =>
  error instanceof LocalProblem ? error.message : fileProblem(error);

/** Expects that failure. */
export function unlessCode(code: string): (error: NodeJS.ErrnoException) => undefined {
  return (error) => {
    if (error.code !== code) throw error;
    return undefined;
  };
}

/** The same file, whole, under its name or a numbered one: another try must not make a second. */
export async function wholeFile(
  folder: string,
  { path, bytes, modifiedMs }: { path: string; bytes: number; modifiedMs: number },
): Promise<Have | undefined> {
  for (let number = 1; number <= maxNumber; number++) {
    const name = join(folder, numbered(basename(path), number));
    const found = await lstat(name).catch(unlessCode("ENOENT"));
    if (!found) return undefined;
    // File systems round times in their own ways.
    const isSame = found.isFile() && found.size === bytes && Math.abs(found.mtimeMs - modifiedMs) < 2;
    if (isSame) return { ...(await hashFile(name, bytes)), isWhole: true };
  }
  return undefined;
}

/** What a try before this one has left. What has another name, too, is not ours to write to. */
export async function unfinishedFile(part: string, bytes: number): Promise<Have> {
  const found = await lstat(part).catch(unlessCode("ENOENT"));
  const length = found?.isFile() && found.nlink === 1 ? Math.min(found.size, bytes) : 0;
  return { ...(await hashFile(part, length)), isWhole: false };
}

async function hashFile(path: string, bytes: number): Promise<{ bytes: number; hash: Bun.CryptoHasher }> {
  const hash = new Bun.CryptoHasher("sha256");
  if (bytes === 0) return { bytes, hash };
  await using handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
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

export async function openPart(part: string, from: number): Promise<FileHandle> {
  const { O_RDWR, O_CREAT, O_NOFOLLOW, O_EXCL } = constants;
  if (from === 0) await unlink(part).catch(unlessCode("ENOENT"));
  const handle = await open(part, O_RDWR | O_NOFOLLOW | (from === 0 ? O_CREAT | O_EXCL : 0), 0o600);
  try {
    const found = await handle.stat();
    if (!found.isFile() || found.size < from) throw new LocalProblem("its beginning has gone");
    await handle.truncate(from);
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

export async function checkSpace(folder: string, bytes: number): Promise<void> {
  const { bavail, bsize, blocks } = await statfs(folder);
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

/** Gives a whole file its name, or the next that is free, and never one that is taken. */
export async function place(part: string, folder: string, name: string): Promise<void> {
  for (let number = 1; number <= maxNumber; number++) {
    if (await placeAs(part, join(folder, numbered(name, number)))) return;
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
