/**
 * A folder on the disk, held by its descriptor. What is done in it is done in this folder, even if other programs rename it
 * or put another one in its place. Owns the descriptor. From it one can go to folders inside it, one step at a time, and
 * never by a symbolic link. For native/uses/destination.ts, partial-file.ts and receive.ts.
 *
 * Node has no openat(2). On Linux, `/proc/self/fd/N/NAME` is NAME in the folder with the descriptor N; on macOS
 * `/.vol/DEVICE/INODE/NAME`. Where there is neither, the path is used. Then somebody who can write to a folder above could
 * still exchange the folder between two calls.
 */
import { constants } from "node:fs";
import { lstat, mkdir, open, readdir, readlink, realpath, stat, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { LocalProblem } from "./files.ts";
import { maxNumber, numberedFolder, portable } from "./filename.ts";

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants;

/** A handler that ignores errors with this code, and throws others. */
export function unlessCode(code: string): (error: NodeJS.ErrnoException) => undefined {
  return (error) => {
    if (error.code !== code) throw error;
    return undefined;
  };
}

/** Errors of disks that do not take a name. */
const badName: ReadonlySet<string> = new Set(["EINVAL", "EILSEQ", "ENAMETOOLONG"]);

/** Does something with that name, or with a portable one if the disk does not take it. */
export async function withName<T>(name: string, work: (name: string) => Promise<T>): Promise<T> {
  const other = portable(name);
  return work(name).catch((error: NodeJS.ErrnoException) => {
    if (other === name || !badName.has(error.code ?? "")) throw error;
    return work(other);
  });
}

/** Until all of it has come, only we may look into a new folder. */
const newFolderMode = 0o700;

/** Returns a path to the folder of a descriptor that stays right if the folder is renamed. */
export type Hold = (handle: FileHandle, path: string) => string | Promise<string>;

const holdByDescriptor: Hold = async (handle, path) => {
  const { dev, ino } = await handle.stat({ bigint: true });
  const held = process.platform === "darwin" ? `/.vol/${dev}/${ino}` : `/proc/self/fd/${handle.fd}`;
  const found = await stat(held, { bigint: true }).catch(() => undefined);
  return found?.dev === dev && found.ino === ino ? held : path;
};

export class Folder implements AsyncDisposable {
  /** The path when it was opened. It tells folders apart, and is never opened again. */
  readonly path: string;
  readonly #handle: FileHandle;
  readonly #held: string;
  readonly #hold: Hold;

  private constructor(handle: FileHandle, path: string, held: string, hold: Hold) {
    this.#handle = handle;
    this.path = path;
    this.#held = held;
    this.#hold = hold;
  }

  /** Opens the folder that a user has named. Here links are followed. */
  static async open(path: string, hold = holdByDescriptor): Promise<Folder> {
    return Folder.#holding(await open(path, O_RDONLY | O_DIRECTORY), path, hold);
  }

  static async #holding(handle: FileHandle, path: string, hold: Hold): Promise<Folder> {
    try {
      return new Folder(handle, path, await hold(handle, path), hold);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** The path of one name in this folder, for the file system. The caller must not follow a link there. */
  at(name: string): string {
    return `${this.#held}/${name}`; // not join(): it would drop ".", and leave the path of a link
  }

  /** Tells this folder from all others of this host. */
  async id(): Promise<string> {
    const { dev, ino } = await this.#handle.stat({ bigint: true });
    return `${dev}:${ino}`;
  }

  /** The real path of the folder now, without links. */
  async location(): Promise<string> {
    return readlink(`/proc/self/fd/${this.#handle.fd}`).catch(() => realpath(this.path));
  }

  /** Opens the folder of that name in this one; undefined if there is none. The caller closes it. */
  async enter(name: string): Promise<Folder | undefined> {
    try {
      const handle = await open(this.at(name), O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      return await Folder.#holding(handle, join(this.path, name), this.#hold);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "ENOENT") return undefined;
      if (code !== "ENOTDIR" && code !== "ELOOP") throw error;
      const found = await lstat(this.at(name)).catch(() => undefined);
      throw new LocalProblem(`${name} is ${found?.isSymbolicLink() ? "a symbolic link" : "not a folder"}`);
    }
  }

  /** Opens the folder at the end of these names. `makes`: makes what is missing; else undefined. The caller closes it. */
  async walk(names: readonly string[], makes: boolean): Promise<Folder | undefined> {
    let folder = await this.enter(".");
    for (const name of names) {
      if (!folder) return undefined;
      await using above = folder;
      folder = await withName(name, async (one) => {
        if (makes) await mkdir(above.at(one), newFolderMode).catch(unlessCode("EEXIST"));
        return above.enter(one);
      });
    }
    return folder;
  }

  /** Makes a folder that was not there. Returns its name; it has a number if the name was taken. */
  makeNew(wanted: string): Promise<string> {
    return withName(wanted, async (name) => {
      const named = (number: number) => numberedFolder(name, number);
      for (let number = 1; number <= maxNumber; number = await this.nextFree(named, number)) {
        const at = this.at(named(number));
        const isMade = await mkdir(at, newFolderMode).then(() => true, unlessCode("EEXIST"));
        if (isMade) return named(number);
      }
      throw new LocalProblem(`there are ${maxNumber} of that name`);
    });
  }

  /** The rights of the folder itself. */
  async chmod(mode: number): Promise<void> {
    await this.#handle.chmod(mode);
  }

  /** The names in it. */
  names(): Promise<string[]> {
    return readdir(this.at("."));
  }

  /**
   * The next number whose name is free, after a number whose name is taken. If there is none, more than
   * {@link maxNumber}.
   */
  async nextFree(named: (number: number) => string, taken: number): Promise<number> {
    const isFree = async (number: number) =>
      !(await lstat(this.at(named(number))).catch(unlessCode("ENOENT")));
    // Numbers were given in order, so a binary search finds it. Trying one by one would take days for ten thousand files.
    let free = taken + 1;
    for (let step = 1; free <= maxNumber && !(await isFree(free)); step *= 2)
      [taken, free] = [free, free + step];
    free = Math.min(free, maxNumber + 1);
    while (free - taken > 1) {
      const between = (taken + free) >>> 1;
      if (await isFree(between)) free = between;
      else taken = between;
    }
    return free;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }
}
