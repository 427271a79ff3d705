/**
 * Finds the files that a user wants to send, and their sizes, modes and times at that moment. Opens none of them. For
 * native/uses/.
 */
import { readdir, realpath, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { fileProblem, maxFiles, type FileFailure } from "./files.ts";
import { numbered } from "./filename.ts";

/** A file of ours, as it was when it was offered. */
export interface SourceFile {
  /** The path on this side. */
  source: string;
  /** The real path of the file or folder that the user has named. Only what lies there is sent. */
  within: string;
  /** The path on the other side: relative, with slashes. */
  path: string;
  bytes: number;
  mode: number;
  /** As the file system has it. On the wire it is in whole milliseconds. */
  mtimeMs: number;
}

export interface SourceFiles {
  name: string;
  /** How many files and folders the user has named. */
  things: number;
  files: SourceFile[];
  bytes: number;
  /** What is neither a file nor a folder, or can't be read. */
  skipped: FileFailure[];
}

/** Whether a path is that, or below it. */
export const isWithin = (path: string, within: string): boolean =>
  path === within || path.startsWith(within.endsWith("/") ? within : `${within}/`);

/**
 * Finds what a user wants to send: files, and all files in folders. A link that the user has named is followed. A link in a
 * folder is followed only to a file of the same folder: the user has named nothing else. Throws an Error for a path that is
 * not there.
 */
export async function collectFiles(paths: readonly string[]): Promise<SourceFiles> {
  const collection: SourceFiles = { name: "", things: paths.length, files: [], bytes: 0, skipped: [] };
  const taken = new Set<string>();
  /** The last number that each name got, so that they are not all tried again. */
  const numbers = new Map<string, number>();
  for (const path of paths) {
    const source = resolve(path);
    const found = await stat(source).catch((error) => {
      throw new Error(`${path}: ${fileProblem(error)}`);
    });
    const base = basename(source) || "root";
    let number = numbers.get(base) ?? 0;
    let name: string;
    do name = numbered(base, ++number);
    while (taken.has(name));
    numbers.set(base, number);
    taken.add(name);
    collection.name ||= paths.length > 1 ? `${name} and ${paths.length - 1} more` : name;
    const within = await realpath(source);
    if (found.isDirectory()) await collectFolder(source, name, within, collection);
    else await collectFile(source, name, within, collection);
  }
  return collection;
}

async function collectFolder(
  source: string,
  path: string,
  within: string,
  collection: SourceFiles,
): Promise<void> {
  const entries = await readdir(source, { withFileTypes: true }).catch((error) => {
    collection.skipped.push({ path, reason: fileProblem(error) });
    return [];
  });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const [from, to] = [join(source, entry.name), `${path}/${entry.name}`];
    if (entry.isDirectory()) await collectFolder(from, to, within, collection);
    else await collectFile(from, to, within, collection, entry.isSymbolicLink());
  }
}

async function collectFile(
  source: string,
  path: string,
  within: string,
  collection: SourceFiles,
  isLink = false,
): Promise<void> {
  const { files, skipped } = collection;
  if (files.length >= maxFiles) throw new Error(`at most ${maxFiles} files are sent at once`);
  try {
    const found = await stat(source);
    if (!found.isFile()) return void skipped.push({ path, reason: "it is not a file" });
    if (isLink && !isWithin(await realpath(source), within))
      return void skipped.push({ path, reason: "it is a link that leads out of the folder" });
    const { size: bytes, mode, mtimeMs } = found;
    files.push({ source, within, path, bytes, mode: mode & 0o777, mtimeMs });
    collection.bytes += bytes;
  } catch (error) {
    skipped.push({ path, reason: fileProblem(error) });
  }
}
