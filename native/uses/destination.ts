/**
 * Where on the disk a transfer goes, and under which name. Owns the folder that is made for it, and a mark by which another
 * attempt at the same transfer finds that folder. For native/uses/receive.ts.
 *
 * One file goes into the folder that the user has named. A folder becomes a new folder there. Several things go into a new
 * folder, named after the sender and the time. So nothing that was sent is mixed with what is there. The mark is a file
 * `.KEY.part` beside the new folder, as long as the transfer is not over. KEY is made of the sender and the offered name.
 */
import { accessSync, constants, mkdirSync, realpathSync } from "node:fs";
import { open, rmdir, unlink } from "node:fs/promises";
import { pathProblem, partNameOf } from "./filename.ts";
import { printable, UserError } from "../../protocol.ts";
import { fileProblem, LocalProblem } from "./files.ts";
import { Folder, unlessCode } from "./folder.ts";
import { isOneFile, storedName, topOf, type FileOffer } from "./offer.ts";

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK, O_WRONLY, O_CREAT, O_EXCL } = constants;
/** A mark holds a name and two numbers. */
const maxMarkBytes = 1024;

export interface Sender {
  /** SHA-256 of its certificate. Nobody can go on with a transfer of somebody else. */
  fingerprint: string;
  /** Its name in the room. */
  name: string;
}

/**
 * The folder that a user means, made if it is not there. Links that are there now are followed; links that come later are
 * not. Throws a {@link UserError} if files can't be put there.
 */
export function folderFor(directory: string): string {
  try {
    mkdirSync(directory, { recursive: true });
    accessSync(directory, constants.W_OK | constants.X_OK);
    return realpathSync(directory);
  } catch (error) {
    throw new UserError(`files can't be put into ${printable(directory)}: ${folderProblem(error)}`);
  }
}

function folderProblem(error: unknown): string {
  return (error as NodeJS.ErrnoException).code === "EEXIST" ? "it is not a folder" : fileProblem(error);
}

/** A hash of these words, in this order: 24 hex digits. */
export const keyOf = (...words: (string | number)[]): string =>
  Bun.SHA256.hash(words.join("\n"), "hex").slice(0, 24);

/** The transfers under way in this program, by their marks. Once the signal is aborted, they are about to be closed. */
const active = new Map<string, { signal: AbortSignal; closed: PromiseWithResolvers<void> }>();
const activeKey = (root: Folder, mark: string): string => `${root.path}\n${mark}`;

export class Destination implements AsyncDisposable {
  /** Paths start here. */
  readonly folder: Folder;
  /** The name in the folder that the user has named. */
  readonly name: string;
  readonly #root: Folder;
  /** Turns an offered path into one that starts in {@link folder}. */
  readonly #inside: (path: string) => string;
  readonly #mark: string | undefined;

  private constructor(
    root: Folder,
    folder: Folder,
    name: string,
    inside: (path: string) => string,
    signal: AbortSignal,
    mark?: string,
  ) {
    this.#root = root;
    this.folder = folder;
    this.name = name;
    this.#inside = inside;
    this.#mark = mark;
    if (mark) active.set(activeKey(root, mark), { signal, closed: Promise.withResolvers() });
  }

  /** Opens a destination in a folder of the user's, and makes the new folder. The signal aborts when nothing more comes. */
  static async open(
    { directory, isReal = false }: { directory: string; isReal?: boolean },
    offer: FileOffer,
    sender: Sender,
    signal: AbortSignal,
  ): Promise<Destination> {
    const root = await Folder.open(directory);
    try {
      if (isReal && (await root.location()) !== directory)
        throw new LocalProblem("somebody has put a link in its place");
      return isOneFile(offer)
        ? await Destination.#file(root, offer, signal)
        : await Destination.#new(root, offer, sender, signal);
    } catch (error) {
      await root[Symbol.asyncDispose]();
      throw error;
    }
  }

  static async #file(
    root: Folder,
    { paths: [path = ""] }: FileOffer,
    signal: AbortSignal,
  ): Promise<Destination> {
    const folder = (await root.enter("."))!;
    return new Destination(root, folder, storedName(path), storedName, signal);
  }

  static async #new(
    root: Folder,
    { things, name: offered }: FileOffer,
    sender: Sender,
    signal: AbortSignal,
  ): Promise<Destination> {
    const top = topOf(offered);
    const inside = (path: string) => (things === 1 ? path.slice(top.length + 1) : path);
    const mark = partNameOf(keyOf(sender.fingerprint, "folder", offered));
    const other = active.get(activeKey(root, mark));
    if (other?.signal.aborted) await other.closed.promise;
    // Two transfers of one name at the same time go to two folders.
    const isSecond = active.has(activeKey(root, mark));
    const found = isSecond ? undefined : await readMark(root, mark);
    if (found) return new Destination(root, found.folder, found.name, inside, signal, mark);
    const name = await root.makeNew(things === 1 ? storedName(top) : senderFolder(sender.name, new Date()));
    const folder = await root.enter(name);
    if (!folder) throw new Error("the folder that was made has gone");
    if (isSecond) return new Destination(root, folder, name, inside, signal);
    try {
      await writeMark(root, mark, [name, await folder.id()].join("\n"));
    } catch (error) {
      await folder[Symbol.asyncDispose]();
      throw error;
    }
    return new Destination(root, folder, name, inside, signal, mark);
  }

  inside(path: string): string {
    return this.#inside(path);
  }

  /** The transfer is complete. What comes under that name from now on is another transfer. */
  async over(): Promise<void> {
    if (this.#mark) await unlink(this.#root.at(this.#mark)).catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.folder[Symbol.asyncDispose]();
    if (this.#mark) {
      const isEmpty = await rmdir(this.#root.at(this.name)).then(
        () => true,
        () => false,
      );
      if (isEmpty) await this.over();
      const key = activeKey(this.#root, this.#mark);
      active.get(key)?.closed.resolve();
      active.delete(key);
    }
    await this.#root[Symbol.asyncDispose]();
  }
}

/** `from-alice-2026-11-28-190753`, in this host's time. */
function senderFolder(name: string, at: Date): string {
  const [date, time] = new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().split(/[T.]/);
  const plain = name.replace(/[^\p{L}\p{M}\p{N}._-]/gu, "_").slice(0, 40);
  return `from-${plain}-${date}-${time!.replaceAll(":", "")}`;
}

// --- the mark --------------------------------------------------------------------------------------------

async function readMark(root: Folder, mark: string): Promise<{ name: string; folder: Folder } | undefined> {
  const text = await ownText(root.at(mark));
  const [name = "", id] = text.split("\n");
  if (pathProblem(name) || name.includes("/")) return undefined;
  const folder = await root.enter(name).catch(() => undefined);
  if (!folder) return undefined;
  if ((await folder.id()) === id) return { name, folder };
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

async function writeMark(root: Folder, mark: string, text: string): Promise<void> {
  await unlink(root.at(mark)).catch(unlessCode("ENOENT"));
  const handle = await open(root.at(mark), O_WRONLY | O_CREAT | O_EXCL, 0o600);
  try {
    await handle.writeFile(text);
  } finally {
    await handle.close();
  }
}
