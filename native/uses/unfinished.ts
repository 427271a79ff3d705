/**
 * What has come in part, and is left on the disk: unfinished files, and the marks of unfinished folders. Finds it, lists it
 * for the user, and removes what is too old. Follows no link, and reads only what is ours. For native/uses/.
 *
 * A mark is a file `NAME.KEY.folder.part` beside the folder, with a {@link Mark} in it. Another attempt is known by what it
 * offers: the same paths and sizes, or the same name from the same sender.
 */
import { constants, type Stats } from "node:fs";
import { lstat, open, unlink } from "node:fs/promises";
import { pathProblem, unfinished, visible } from "./filename.ts";
import { Folder } from "./folder.ts";

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants;
/** A mark holds some names and numbers. */
const maxMarkBytes = 4 * 1024;
/** So many marks of one name are looked at. */
const maxMarks = 64;
/** What is unfinished goes after so long. */
export const keptDays = 30;
const dayMs = 86_400_000;
/** So many files of a folder are counted, whoever asks how large it is. */
const maxCounted = 100_000;
/** Folders in folders that are looked into. */
const maxDepth = 64;

/** A hash of these words, in this order: 24 hex digits. */
export const keyOf = (...words: (string | number)[]): string =>
  Bun.SHA256.hash(words.join("\n"), "hex").slice(0, 24);

/** What an unfinished folder is known by. */
export interface Mark {
  /** Its name in the offer. */
  offered: string;
  digest: string;
  /** SHA-256 of the certificate of who has sent it. */
  sender: string;
}

/** Something that has come in part. */
export interface Unfinished {
  /** The name that it shall get. */
  name: string;
  /** Where what has come is now: a file or a folder. */
  path: string;
  bytes: number;
  /** The last time that something of it came. */
  atMs: number;
}

// --- finding ---------------------------------------------------------------------------------------------

/** Finds the folder of an earlier attempt. The caller closes it. */
export async function findMark(
  root: Folder,
  top: string,
  { offered, digest, sender }: Mark,
): Promise<{ name: string; folder: Folder; mark: string } | undefined> {
  const names = (await root.names()).filter((name) => {
    const found = unfinished(name);
    return found?.isFolder && found.name === visible(top);
  });
  for (const mark of names.slice(0, maxMarks)) {
    const read = await readMark(root, mark);
    const isSame = (digest !== "" && read?.digest === digest) || read?.sender === sender;
    if (!read || read.offered !== offered || !isSame) continue;
    const folder = await markedFolder(root, read);
    if (folder) return { name: read.name, folder, mark };
  }
  return undefined;
}

type FoundMark = Mark & { name: string; id: string };

/** Undefined if it is none, or not ours. */
async function readMark(root: Folder, mark: string): Promise<FoundMark | undefined> {
  try {
    const found = JSON.parse(await ownText(root.at(mark))) as Record<string, unknown>;
    const { offered, digest, sender, name, id } = found;
    const isText = [offered, digest, sender, name, id].every((one) => typeof one === "string");
    return isText ? (found as unknown as FoundMark) : undefined;
  } catch {
    return undefined;
  }
}

/** The folder of a mark, if it is still that folder. */
async function markedFolder(root: Folder, { name, id }: FoundMark): Promise<Folder | undefined> {
  if (pathProblem(name) || name.includes("/")) return undefined;
  const folder = await root.enter(name).catch(() => undefined);
  if (!folder || (await folder.id()) === id) return folder;
  await folder[Symbol.asyncDispose]();
  return undefined;
}

/** The text of a file; "" if there is none, or if it is not ours. */
async function ownText(path: string): Promise<string> {
  const handle = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch(() => undefined);
  if (!handle) return "";
  try {
    const found = await handle.stat();
    const isOurs = found.isFile() && found.nlink === 1 && found.uid === process.geteuid?.();
    return isOurs && found.size <= maxMarkBytes ? await handle.readFile("utf8") : "";
  } finally {
    await handle.close();
  }
}

// --- listing ---------------------------------------------------------------------------------------------

/** What is unfinished in that folder; `only`: of that visible name. Rejects if it can't be read. */
export async function listUnfinished(directory: string, only?: string): Promise<Unfinished[]> {
  await using root = await Folder.open(directory);
  const listed: Unfinished[] = [];
  for (const name of await root.names()) {
    if (only !== undefined && unfinished(name)?.name !== only) continue;
    const found = await ownUnfinished(root, name);
    if (!found) continue;
    const { size: bytes, mtimeMs: atMs } = found.stat;
    if (!found.isFolder) listed.push({ name: found.name, path: name, bytes, atMs });
    else {
      const mark = await readMark(root, name);
      await using folder = mark && (await markedFolder(root, mark));
      if (folder)
        listed.push({ name: mark!.offered, path: `${mark!.name}/`, ...(await extent(folder, atMs)) });
    }
  }
  return listed;
}

/** What a name in a folder stands for, if it is something unfinished of ours. */
async function ownUnfinished(folder: Folder, name: string) {
  const found = unfinished(name);
  const stat = found && (await lstat(folder.at(name)).catch(() => undefined));
  const isOurs = stat?.isFile() && stat.nlink === 1 && stat.uid === process.geteuid?.();
  return isOurs ? { ...found!, stat: stat! } : undefined;
}

/** The bytes of all files in a folder, and the latest time of one. */
async function extent(folder: Folder, atMs: number): Promise<{ bytes: number; atMs: number }> {
  const all = { bytes: 0, atMs };
  let left = maxCounted;
  await eachFile(folder, 0, async (_, __, found) => {
    all.bytes += found.size;
    all.atMs = Math.max(all.atMs, found.ctimeMs);
    return --left > 0;
  });
  return all;
}

/** Returns whether to go on. */
type Visit = (folder: Folder, name: string, found: Stats) => Promise<boolean>;

async function eachFile(folder: Folder, depth: number, visit: Visit): Promise<boolean> {
  for (const name of await folder.names()) {
    const found = await lstat(folder.at(name)).catch(() => undefined);
    if (found?.isFile() && !(await visit(folder, name, found))) return false;
    if (!found?.isDirectory() || depth >= maxDepth) continue;
    await using below = await folder.enter(name).catch(() => undefined);
    if (below && !(await eachFile(below, depth + 1, visit))) return false;
  }
  return true;
}

/** So many bytes of what is offered under that name are there already, at most. */
export async function bytesThere(directory: string, name: string, bytes: number): Promise<number> {
  const [top = ""] = name.split(/ and \d+ more$/);
  const parts = await listUnfinished(directory, visible(top));
  const there = parts.reduce((sum, one) => sum + one.bytes, 0);
  const whole = await lstat(`${directory}/${top}`).catch(() => undefined);
  return there + (whole?.isFile() && whole.size === bytes ? bytes : 0);
}

// --- what is too old -------------------------------------------------------------------------------------

/** Removes what is unfinished and has been left for too long. What was whole stays. */
export async function sweep(root: Folder, now = Date.now()): Promise<void> {
  for (const name of await root.names()) {
    const found = await ownUnfinished(root, name);
    if (!isTooOld(found, now)) continue;
    if (found!.isFolder) await sweepMarked(root, name, now);
    await unlink(root.at(name)).catch(() => {});
  }
}

const isTooOld = (found: { stat: Stats } | undefined, now: number): boolean =>
  found !== undefined && now - found.stat.mtimeMs >= keptDays * dayMs;

async function sweepMarked(root: Folder, name: string, now: number): Promise<void> {
  const mark = await readMark(root, name);
  await using folder = mark && (await markedFolder(root, mark));
  if (!folder) return;
  await eachFile(folder, 0, async (inside, part) => {
    const found = await ownUnfinished(inside, part);
    if (isTooOld(found, now) && !found!.isFolder) await unlink(inside.at(part)).catch(() => {});
    return true;
  });
}
