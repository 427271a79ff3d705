/**
 * Finds the files that a user wants sent, and what they are at that moment. Opens none of them. For
 * native/link/send.ts, and for whoever uses a link.
 */
import { readdir, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { fileProblem, maxFiles, type FileFailure } from "./files.ts";
import { numbered } from "./filename.ts";

/** A file of ours as it was when it was offered. */
export interface SourceFile {
  /** Where it is here. */
  source: string;
  /** Where it goes there: relative, with slashes. */
  path: string;
  bytes: number;
  mode: number;
  /** As the file system says; the wire has whole milliseconds. */
  mtimeMs: number;
}

export interface Collection {
  name: string;
  files: SourceFile[];
  bytes: number;
  /** What is neither file nor folder, or can't be read. */
  skipped: FileFailure[];
}

/**
 * Finds what a user wants sent: files, and folders as their files. A link is followed where it was named and where it
 * leads to a file, but not to a folder. Throws an Error for a path that is not there.
 */
export async function collectFiles(paths: readonly string[]): Promise<Collection> {
  const collection: Collection = { name: "", files: [], bytes: 0, skipped: [] };
  const taken = new Set<string>();
  for (const path of paths) {
    const source = resolve(path);
    const found = await stat(source).catch((error) => {
      throw new Error(`${path}: ${fileProblem(error)}`);
    });
    let name = basename(source) || "root";
    for (let number = 1; taken.has(name); number++) name = numbered(basename(source), number + 1);
    taken.add(name);
    collection.name ||= paths.length > 1 ? `${name} and ${paths.length - 1} more` : name;
    if (found.isDirectory()) await collectFolder(source, name, collection);
    else await collectFile(source, name, collection);
  }
  return collection;
}

async function collectFolder(source: string, path: string, collection: Collection): Promise<void> {
  const entries = await readdir(source, { withFileTypes: true }).catch((error) => {
    collection.skipped.push({ path, reason: fileProblem(error) });
    return [];
  });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const [from, to] = [join(source, entry.name), `${path}/${entry.name}`];
    if (entry.isDirectory()) await collectFolder(from, to, collection);
    else await collectFile(from, to, collection);
  }
}

async function collectFile(source: string, path: string, collection: Collection): Promise<void> {
  const { files, skipped } = collection;
  if (files.length >= maxFiles) throw new Error(`at most ${maxFiles} files are sent at once`);
  try {
    const found = await stat(source);
    if (!found.isFile()) return void skipped.push({ path, reason: "it is not a file" });
    files.push({ source, path, bytes: found.size, mode: found.mode & 0o777, mtimeMs: found.mtimeMs });
    collection.bytes += found.size;
  } catch (error) {
    skipped.push({ path, reason: fileProblem(error) });
  }
}
