/**
 * A folder on the disk, held by its descriptor: what is done in it stays in it, whatever other programs make of its
 * path meanwhile. Owns that descriptor. It is left for its own folders only, a step at a time, and by no symbolic link.
 * For native/uses/destination.ts, part.ts and receive.ts.
 *
 * Node has no openat(2). Linux takes `/proc/self/fd/N/NAME` for NAME in the folder with the descriptor N, macOS
 * `/.vol/DEVICE/INODE/NAME`. Where neither can be had its path must do: then somebody who can write to a folder above
 * might still exchange it between two calls.
 */
import { constants } from "node:fs";
import { lstat, mkdir, open, readlink, realpath, stat, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { LocalProblem } from "./files.ts";
import { maxNumber } from "./filename.ts";

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants;

/** Expects that failure. */
export function unlessCode(code: string): (error: NodeJS.ErrnoException) => undefined {
  return (error) => {
    if (error.code !== code) throw error;
    return undefined;
  };
}

/** What names the folder of a descriptor, whatever became of its path. */
export type Hold = (handle: FileHandle, path: string) => string | Promise<string>;

const holdByDescriptor: Hold = async (handle, path) => {
  const { dev, ino } = await handle.stat({ bigint: true });
  const held = process.platform === "darwin" ? `/.vol/${dev}/${ino}` : `/proc/self/fd/${handle.fd}`;
  const found = await stat(held, { bigint: true }).catch(() => undefined);
  return found?.dev === dev && found.ino === ino ? held : path;
};

export class Folder implements AsyncDisposable {
  /** Where it was when it was opened; to tell folders apart, never to open anything. */
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

  /** The folder that a user has named, by whatever links. */
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

  /** What to give to the file system for one name in it. The last step must not follow a link. */
  at(name: string): string {
    return `${this.#held}/${name}`; // join() would take "." away, and leave a link
  }

  /** On the disk, among all folders of this host. */
  async id(): Promise<string> {
    const { dev, ino } = await this.#handle.stat({ bigint: true });
    return `${dev}:${ino}`;
  }

  /** Where it is now, by no link. */
  async location(): Promise<string> {
    return readlink(`/proc/self/fd/${this.#handle.fd}`).catch(() => realpath(this.path));
  }

  /** The folder of that name in it, to be closed by the caller; undefined if there is none. */
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

  /** The folder that those names lead to, to be closed by the caller; what lacks is made, or it is undefined. */
  async walk(names: readonly string[], makes: boolean): Promise<Folder | undefined> {
    let folder = await this.enter(".");
    for (const name of names) {
      if (!folder) return undefined;
      await using above = folder;
      if (makes) await mkdir(above.at(name)).catch(unlessCode("EEXIST"));
      folder = await above.enter(name);
    }
    return folder;
  }

  /** Makes one that was not there; returns its name, which has a number where it must. */
  async makeNew(name: string): Promise<string> {
    const named = (number: number) => (number === 1 ? name : `${name} (${number})`);
    for (let number = 1; number <= maxNumber; number = await this.nextFree(named, number)) {
      const isMade = await mkdir(this.at(named(number))).then(() => true, unlessCode("EEXIST"));
      if (isMade) return named(number);
    }
    throw new LocalProblem(`there are ${maxNumber} of that name`);
  }

  /** The next number whose name is free, after one whose name is taken; more than {@link maxNumber}: there is none. */
  async nextFree(named: (number: number) => string, taken: number): Promise<number> {
    const isFree = async (number: number) =>
      !(await lstat(this.at(named(number))).catch(unlessCode("ENOENT")));
    // Numbers are given one after the other: whoever tried them so would need days for some ten thousand files.
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
