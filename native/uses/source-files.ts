/**
 * Finds the files and folders that a user wants to send, and their sizes, modes and times at that moment. For native/uses/.
 */
import { constants, type Stats } from "node:fs";
import { access, lstat, readdir, readlink, realpath, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { fileProblem, maxFiles, type FileFailure, type FileNote } from "./files.ts";
import { Exclusion } from "./exclude.ts";
import { numbered } from "./filename.ts";

/** A file of ours, as it was when it was offered. */
export interface SourceFile {
  /** The path on this side. */
  source: string;
  /** The real paths of all that the user has named. Only what lies there is sent. */
  within: readonly string[];
  /** The path on the other side: relative, with slashes. */
  path: string;
  bytes: number;
  mode: number;
  /** As the file system has it. On the wire it is in whole milliseconds. */
  mtimeMs: number;
}

/** A folder of ours. It is told after all that is in it. */
export interface SourceFolder {
  path: string;
  mode: number;
  /** So many of the files come before it. */
  after: number;
}

export interface SourceFiles {
  name: string;
  /** How many files and folders the user has named, without those that are skipped. */
  things: number;
  files: SourceFile[];
  folders: SourceFolder[];
  bytes: number;
  /** What is neither a file nor a folder, can't be read, or leads out. */
  skipped: FileFailure[];
  /** What is sent by another name, because two things have the same. */
  renamed: FileNote[];
}

/** Whether a path is one of these, or below one. */
export const isWithin = (path: string, within: readonly string[]): boolean =>
  within.some((one) => path === one || path.startsWith(one.endsWith("/") ? one : `${one}/`));

interface Named {
  path: string;
  source: string;
  found: Stats;
}

/**
 * Finds what a user wants to send: files, and all files in folders. A link is sent as the file that it leads to, if that
 * file is sent, too: the user has named nothing else. What is excluded is left out without a word. Throws an Error for a path that is not there.
 */
export async function collectFiles(
  paths: readonly string[],
  exclusion = new Exclusion(),
): Promise<SourceFiles> {
  const named = await Promise.all(paths.map(look));
  const roots = named.filter(({ found }) => !found.isSymbolicLink());
  const within = await Promise.all(roots.map(({ source }) => realpath(source)));
  const nameOf = new Map(roots.map(({ source }, index) => [within[index]!, basename(source)]));
  const collecting = new Collecting(nameOf, exclusion);
  for (const one of named) await collecting.add(one);
  return collecting.collected;
}

/** A path that ends in a slash means what a link leads to. */
async function look(path: string): Promise<Named> {
  const source = resolve(path);
  const found = await (path.endsWith("/") ? stat(source) : lstat(source)).catch((error) => {
    throw new Error(`${path}: ${fileProblem(error)}`);
  });
  return { path, source, found };
}

class Collecting {
  readonly collected: SourceFiles = {
    ...{ name: "", things: 0, files: [], folders: [], bytes: 0 },
    ...{ skipped: [], renamed: [] },
  };
  readonly #within: readonly string[];
  /** What the user has called each real path. */
  readonly #nameOf: ReadonlyMap<string, string>;
  readonly #exclusion: Exclusion;
  #first = "";
  readonly #taken = new Set<string>();
  /** The last number that each name got, so that they are not all tried again. */
  readonly #numbers = new Map<string, number>();

  constructor(nameOf: ReadonlyMap<string, string>, exclusion: Exclusion) {
    this.#within = [...nameOf.keys()];
    this.#nameOf = nameOf;
    this.#exclusion = exclusion;
  }

  async add({ path, source, found }: Named): Promise<void> {
    const { collected } = this;
    const base = basename(source) || "root";
    if (this.#exclusion.has(base, found.isDirectory())) return;
    const name = this.#nameFor(base);
    const before = collected.skipped.length;
    if (found.isDirectory()) await this.#folder(source, name, found.mode);
    else await this.#file(source, name, found.isSymbolicLink());
    const isSkipped = collected.skipped.length > before && collected.skipped[before]!.path === name;
    if (isSkipped) return;
    if (name !== base) collected.renamed.push({ path, note: `sent as ${name}` });
    if (collected.things++ === 0) this.#first = name;
    collected.name = collected.things === 1 ? name : `${this.#first} and ${collected.things - 1} more`;
  }

  #nameFor(base: string): string {
    let number = this.#numbers.get(base) ?? 0;
    let name: string;
    do name = numbered(base, ++number);
    while (this.#taken.has(name));
    this.#numbers.set(base, number);
    this.#taken.add(name);
    return name;
  }

  async #folder(source: string, path: string, mode: number): Promise<void> {
    const entries = await readdir(source, { withFileTypes: true }).catch((error) =>
      this.#skip(path, fileProblem(error)),
    );
    if (!entries) return;
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const [from, to] = [join(source, entry.name), `${path}/${entry.name}`];
      if (this.#exclusion.has(to, entry.isDirectory())) continue;
      if (!entry.isDirectory()) await this.#file(from, to, entry.isSymbolicLink());
      else {
        const found = await lstat(from).catch((error) => this.#skip(to, this.#problemOf(entry.name, error)));
        if (found?.isDirectory()) await this.#folder(from, to, found.mode);
      }
    }
    const { files, folders } = this.collected;
    this.#mustFit();
    folders.push({ path, mode: mode & 0o777, after: files.length });
  }

  async #file(source: string, path: string, isLink: boolean): Promise<void> {
    const { files } = this.collected;
    this.#mustFit();
    try {
      const found = await stat(source);
      const problem = (isLink ? await this.#linkProblem(source, found) : undefined) ?? kindProblem(found);
      if (problem !== undefined) return this.#skip(path, problem);
      await access(source, constants.R_OK);
      const { size: bytes, mode, mtimeMs } = found;
      files.push({ source, within: this.#within, path, bytes, mode: mode & 0o777, mtimeMs });
      this.collected.bytes += bytes;
    } catch (error) {
      const isDangling = isLink && (error as NodeJS.ErrnoException).code === "ENOENT";
      this.#skip(
        path,
        isDangling ? "it is a link that leads nowhere" : this.#problemOf(basename(source), error),
      );
    }
  }

  /** Names that are no UTF-8 come with replacement characters, and then they are not there. */
  #problemOf(name: string, error: unknown): string {
    const isGone = (error as NodeJS.ErrnoException).code === "ENOENT";
    return isGone && name.includes("\ufffd") ? "its name is no UTF-8" : fileProblem(error);
  }

  async #linkProblem(source: string, found: Stats): Promise<string | undefined> {
    if (found.isDirectory()) return `it is a link to a folder, ${await readlink(source)}`;
    const real = await realpath(source);
    const root = this.#within.find((one) => isWithin(real, [one]));
    // Else a link would show what is left out.
    if (root !== undefined && this.#exclusion.covers(`${this.#nameOf.get(root)}${real.slice(root.length)}`))
      return `it is a link to what is left out, ${await readlink(source)}`;
    if (root !== undefined) return undefined;
    return `it is a link that leads out, to ${await readlink(source)}`;
  }

  #skip(path: string, reason: string): undefined {
    this.collected.skipped.push({ path, reason });
  }

  #mustFit(): void {
    const { files, folders } = this.collected;
    if (files.length + folders.length >= maxFiles)
      throw new Error(`at most ${maxFiles} files and folders are sent at once`);
  }
}

function kindProblem(found: Stats): string | undefined {
  if (found.isFile()) return undefined;
  if (found.isFIFO()) return "it is a named pipe";
  if (found.isSocket()) return "it is a socket";
  return found.isDirectory() ? "it is a folder now" : "it is a device";
}
