/**
 * Where on the disk a transfer goes, and under which name. Owns the folder that is made for it, and a mark by which another
 * attempt at the same transfer finds that folder. For native/uses/receive.ts.
 *
 * One file goes into the folder that the user has named. A folder becomes a new folder there. Several things go into a new
 * folder, named after the sender and the time. So nothing that was sent is mixed with what is there. The mark is a file
 * `NAME.KEY.folder.part` beside the new folder, as long as the transfer is not over (native/uses/unfinished.ts).
 */
import { accessSync, constants, mkdirSync, realpathSync } from "node:fs";
import { open, rmdir, unlink } from "node:fs/promises";
import { printable, UserError } from "../../protocol.ts";
import { markNameOf } from "./filename.ts";
import { fileProblem, LocalProblem } from "./files.ts";
import { Folder, unlessCode } from "./folder.ts";
import { isOneFile, storedName, topOf, type FileOffer } from "./offer.ts";
import { findMark, keyOf, type Mark, sweep } from "./unfinished.ts";

const { W_OK, X_OK, O_WRONLY, O_CREAT, O_EXCL } = constants;

export interface Sender {
  /** SHA-256 of its certificate. */
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
    accessSync(directory, W_OK | X_OK);
    return realpathSync(directory);
  } catch (error) {
    throw new UserError(`files can't be put into ${printable(directory)}: ${folderProblem(error)}`);
  }
}

function folderProblem(error: unknown): string {
  return (error as NodeJS.ErrnoException).code === "EEXIST" ? "it is not a folder" : fileProblem(error);
}

/** A transfer under way in this program. */
interface Active {
  mark: Mark;
  /** Once it is aborted, the transfer is about to be closed. */
  signal: AbortSignal;
  /** Ends the transfer: another attempt goes on with it. */
  giveUp: () => void;
  closed: PromiseWithResolvers<void>;
}

/** By the folder and the name of the mark. */
const active = new Map<string, Active>();

/** What a destination needs of its transfer. */
export type Lease = Pick<Active, "signal" | "giveUp">;

export class Destination implements AsyncDisposable {
  /** Paths start here. */
  readonly folder: Folder;
  /** The name in the folder that the user has named. */
  readonly name: string;
  readonly #root: Folder;
  /** Turns an offered path into one that starts in {@link folder}. */
  readonly #inside: (path: string) => string;
  /** The name of the mark, and what it is known by in {@link active}. */
  readonly #mark: { name: string; key: string } | undefined;
  #isWanted = false;

  private constructor(
    root: Folder,
    folder: Folder,
    name: string,
    inside: (path: string) => string,
    mark?: { name: string; key: string },
  ) {
    this.#root = root;
    this.folder = folder;
    this.name = name;
    this.#inside = inside;
    this.#mark = mark;
  }

  /** Opens a destination in a folder of the user's, and makes the new folder. */
  static async open(
    { directory, isReal = false }: { directory: string; isReal?: boolean },
    offer: FileOffer,
    sender: Sender,
    lease: Lease,
  ): Promise<Destination> {
    const root = await Folder.open(directory);
    try {
      if (isReal && (await root.location()) !== directory)
        throw new LocalProblem("somebody has put a link in its place");
      await sweep(root);
      if (!isOneFile(offer)) return await Destination.#new(root, offer, sender, lease);
      const name = storedName(offer.paths[0]!);
      return new Destination(root, (await root.enter("."))!, name, storedName);
    } catch (error) {
      await root[Symbol.asyncDispose]();
      throw error;
    }
  }

  static async #new(root: Folder, offer: FileOffer, sender: Sender, lease: Lease): Promise<Destination> {
    const { things, name: offered, digest } = offer;
    const top = topOf(offered);
    const inside = (path: string) => (things === 1 ? path.slice(top.length + 1) : path);
    const wanted = { offered, digest, sender: sender.fingerprint };
    const keyFor = (mark: string) => `${root.path}\n${mark}`;
    let found = await findMark(root, top, wanted);
    const other = found && active.get(keyFor(found.mark));
    if (found && other && !(await gaveWay(other, wanted))) {
      await found.folder[Symbol.asyncDispose]();
      found = undefined;
    }
    const { folder, name, mark } = found ?? (await Destination.#make(root, offer, sender));
    try {
      // Anew, too: it counts from now how long it is kept.
      await writeMark(root, mark, JSON.stringify({ ...wanted, name, id: await folder.id() }));
    } catch (error) {
      await folder[Symbol.asyncDispose]();
      throw error;
    }
    const key = keyFor(mark);
    active.set(key, { ...lease, mark: wanted, closed: Promise.withResolvers() });
    return new Destination(root, folder, name, inside, { name: mark, key });
  }

  static async #make(root: Folder, { things, name: offered, digest }: FileOffer, sender: Sender) {
    const top = topOf(offered);
    const name = await root.makeNew(things === 1 ? storedName(top) : senderFolder(sender.name, new Date()));
    const folder = await root.enter(name);
    if (!folder) throw new Error("the folder that was made has gone");
    // Two transfers of one name at the same time go to two folders, and have two marks.
    return { name, folder, mark: markNameOf(top, keyOf(offered, digest, sender.fingerprint, name)) };
  }

  inside(path: string): string {
    return this.#inside(path);
  }

  /**
   * The transfer is complete. What comes under that name from now on is another transfer. `isWanted`: the folder stays even
   * if there is nothing in it.
   */
  async over(isWanted: boolean): Promise<void> {
    this.#isWanted = isWanted;
    if (this.#mark) await unlink(this.#root.at(this.#mark.name)).catch(() => {});
  }

  /** Gives a folder that we have made ourselves the rights of any other. */
  async openToOthers(): Promise<void> {
    if (this.#mark) await this.folder.chmod(0o777 & ~process.umask());
  }

  async #dropIfEmpty(): Promise<void> {
    const isEmpty = await rmdir(this.#root.at(this.name)).then(
      () => true,
      () => false,
    );
    if (isEmpty) await this.over(false);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.folder[Symbol.asyncDispose]();
    if (this.#mark) {
      if (!this.#isWanted) await this.#dropIfEmpty();
      active.get(this.#mark.key)?.closed.resolve();
      active.delete(this.#mark.key);
    }
    await this.#root[Symbol.asyncDispose]();
  }
}

/** Whether a transfer under way gives way to another attempt at the same: by the same sender, or because it is ending. */
async function gaveWay(other: Active, { digest, sender }: Mark): Promise<boolean> {
  if (!other.signal.aborted) {
    if (other.mark.sender !== sender || other.mark.digest !== digest || digest === "") return false;
    other.giveUp();
  }
  await other.closed.promise;
  return true;
}

/** `from-alice-2026-11-28-190753`, in this host's time. */
function senderFolder(name: string, at: Date): string {
  const [date, time] = new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().split(/[T.]/);
  const plain = name.replace(/[^\p{L}\p{M}\p{N}._-]/gu, "_").slice(0, 40);
  return `from-${plain}-${date}-${time!.replaceAll(":", "")}`;
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
