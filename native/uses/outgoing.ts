/**
 * One file that is sent: how it is opened, by what the receiver knows it, and what the receiver has acknowledged of it. Owns
 * no descriptor: whoever opens a file closes it. For native/uses/send.ts.
 */
import { constants } from "node:fs";
import { open, readlink, realpath, type FileHandle } from "node:fs/promises";
import { blockBytes, headBytes, LocalProblem, type TransferProgress } from "./files.ts";
import { isWithin, type SourceFile } from "./source-files.ts";

/** What the receiver has of a file; undefined if it does not want the file. */
export type Answer = { bytes: number; sha256: string } | undefined;

/** Opens a file of ours. Rejects if it is none any more, or leads out of what the user has named. */
export async function openSource(file: SourceFile): Promise<FileHandle> {
  // O_NONBLOCK: a named pipe that has taken its place would block.
  const handle = await open(file.source, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const isSame = (await handle.stat()).isFile() && isWithin(await pathOf(handle, file), file.within);
    if (!isSame) throw new LocalProblem("it is another one now");
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** The real path of what was opened: somebody may have put a link in the place of a folder on the way. */
async function pathOf(handle: FileHandle, { source }: SourceFile): Promise<string> {
  return readlink(`/proc/self/fd/${handle.fd}`).catch(() => realpath(source));
}

/** The hash of its first {@link headBytes}. A file that can't be read fails when it is its turn. */
export async function headOf(file: SourceFile, block: Buffer): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  try {
    await using handle = await openSource(file);
    const { bytesRead } = await handle.read(block, 0, Math.min(headBytes, file.bytes), 0);
    hash.update(block.subarray(0, bytesRead));
  } catch {
    // As if it were empty.
  }
  return hash.digest("hex");
}

/** The hash of its beginning, if it is the one that the receiver has; undefined if not, or once `isOver`. */
export async function hashBeginning(
  handle: FileHandle,
  have: { bytes: number; sha256: string },
  block: Buffer,
  isOver: () => boolean,
): Promise<Bun.CryptoHasher | undefined> {
  const hash = new Bun.CryptoHasher("sha256");
  for (let at = 0; at < have.bytes && !isOver();) {
    const { bytesRead } = await handle.read(block, 0, Math.min(blockBytes, have.bytes - at), at);
    if (bytesRead === 0) return undefined;
    hash.update(block.subarray(0, bytesRead));
    at += bytesRead;
  }
  return hash.copy().digest("hex") === have.sha256 ? hash : undefined;
}

/** A file that was announced, and what counts of it. */
export class Outgoing {
  readonly file: SourceFile;
  readonly answer = Promise.withResolvers<Answer>();
  /** Whether its result is known. */
  isOver = false;
  /** Whether the file is longer now than what was sent of it. */
  grew = false;
  /** How many bytes it shall have: fewer than it had if it has become shorter. */
  bytes: number;
  readonly #progress: TransferProgress;
  #there = 0;
  #moved = 0;

  constructor(file: SourceFile, progress: TransferProgress) {
    this.file = file;
    this.bytes = file.bytes;
    this.#progress = progress;
  }

  /** So many bytes need not be sent. */
  beginAt(bytes: number): void {
    this.#there = bytes;
    this.#progress.bytesDone += bytes;
  }

  /** It comes once more, from its beginning. */
  restart(bytes: number): void {
    this.#progress.bytesDone -= this.#there + this.#moved;
    this.#progress.bytesMoved -= this.#moved;
    this.#progress.bytesFailed += this.bytes - bytes;
    this.bytes = bytes;
    this.#there = this.#moved = 0;
  }

  acknowledged(bytes: number): void {
    if (this.isOver) return;
    this.#moved += bytes;
    this.#progress.bytesDone += bytes;
    this.#progress.bytesMoved += bytes;
  }

  over(hasArrived: boolean): void {
    if (hasArrived) this.acknowledged(this.bytes - this.#there - this.#moved);
    else {
      this.#progress.bytesDone -= this.#there + this.#moved;
      this.#progress.bytesFailed += this.bytes;
    }
    this.isOver = true;
    this.#progress.filesDone++;
  }
}

/** Which bytes of a stream were of which file, until the receiver has acknowledged them. */
export class Ledger {
  #writtenBytes = 0;
  #isClosed = false;
  #pieces: { of: Outgoing; bytes: number; endsAt: number }[] = [];

  wrote(bytes: number, of?: Outgoing): void {
    this.#writtenBytes += bytes;
    if (of) this.#pieces.push({ of, bytes, endsAt: this.#writtenBytes });
  }

  /** What was written of that file does not count any more. */
  forget(file: Outgoing): void {
    this.#pieces = this.#pieces.filter(({ of }) => of !== file);
  }

  /** Nothing counts any more. */
  close(): void {
    this.#isClosed = true;
  }

  /** So many bytes in all are with the receiver. */
  acknowledged(bytes: number): void {
    if (this.#isClosed) return;
    for (let [next] = this.#pieces; next && next.endsAt <= bytes; [next] = this.#pieces) {
      this.#pieces.shift();
      next.of.acknowledged(next.bytes);
    }
  }
}
