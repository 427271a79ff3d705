/**
 * One file that arrives: its bytes go into its unfinished file, and that gets its name once it is complete and compared.
 * Owns the descriptors of the unfinished file and of its folder. Knows no message. For native/uses/receive.ts.
 */
import { unlink, type FileHandle } from "node:fs/promises";
import { blockBytes, LocalProblem, problemOf } from "./files.ts";
import type { Folder } from "./folder.ts";
import { checkSpace, type Have, openPartial, place, writeAt } from "./partial-file.ts";

/** A file that the sender has announced. */
export interface Announced {
  readonly path: string;
  readonly bytes: number;
  readonly mode: number;
  readonly modifiedMs: number;
  /** From the destination: the folders to the file, and its name. */
  readonly folders: readonly string[];
  readonly name: string;
  readonly part: string;
  /** The full path of the part, by which it is claimed. */
  readonly claim: string;
  readonly have: Have;
}

/** What a full disk says. What has come stays then, for the time when there is room. */
const isFull = (error: unknown): boolean =>
  ["ENOSPC", "EDQUOT"].includes((error as NodeJS.ErrnoException).code ?? "");

export class Arriving implements AsyncDisposable {
  readonly file: Announced;
  /** Bytes that have come or were there; and how many it will have. */
  at: number;
  bytes: number;
  /** Whether the sender was told that it has failed. The rest of it is ignored. */
  isFailed = false;
  /** Whether the sender has begun it anew. */
  isAgain = false;
  #hash: Bun.CryptoHasher;
  /** Bytes that are not on the disk yet. They are collected: one write costs as much as hashing 64 KiB. */
  #unwritten: Buffer[] = [];
  #unwrittenBytes = 0;
  #handle: FileHandle | undefined;
  #folder: Folder | undefined;

  constructor(file: Announced, from: number) {
    this.file = file;
    this.at = from;
    this.bytes = file.bytes;
    this.#hash = from === file.have.bytes ? file.have.hash : new Bun.CryptoHasher("sha256");
  }

  /** Opens what it needs. `walk` makes folders if it is told to. */
  async begin(walk: (makes: boolean) => Promise<Folder | undefined>): Promise<void> {
    const isThere = this.at === this.bytes && this.file.have.isWhole;
    this.#folder = await walk(!isThere);
    if (isThere) return;
    if (!this.#folder) throw new LocalProblem("its folder has gone");
    await checkSpace(this.#folder.at("."), this.bytes - this.at);
    this.#handle = await openPartial(this.#folder, this.file.part, this.at);
  }

  /** It has changed, and comes anew, with so many bytes. */
  restart(bytes: number): void {
    this.isAgain = true;
    this.at = 0;
    this.bytes = bytes;
    this.#hash = new Bun.CryptoHasher("sha256");
    this.#unwritten = [];
    this.#unwrittenBytes = 0;
  }

  /** After {@link restart}. */
  async reopen(walk: (makes: boolean) => Promise<Folder | undefined>): Promise<void> {
    this.#folder ??= await walk(true);
    if (!this.#folder) throw new LocalProblem("its folder has gone");
    await this.#handle?.truncate(0);
    this.#handle ??= await openPartial(this.#folder, this.file.part, 0);
  }

  /** So many bytes of it have come. */
  async take(piece: Buffer): Promise<void> {
    this.#hash.update(piece);
    this.#unwritten.push(piece);
    this.#unwrittenBytes += piece.length;
    if (this.#unwrittenBytes >= blockBytes) await this.flush();
  }

  async flush(): Promise<void> {
    const [pieces, from] = [this.#unwritten, this.at - this.#unwrittenBytes];
    this.#unwritten = [];
    this.#unwrittenBytes = 0;
    if (this.#handle) await writeAt(this.#handle, pieces, from);
  }

  /** Compares it, and gives it its name. Resolves to its path; undefined if its folder has gone. */
  async finish(sha256: string): Promise<string | undefined> {
    await this.flush();
    const { file } = this;
    if (this.#hash.digest("hex") !== sha256) throw new LocalProblem("its SHA-256 differs");
    if (!this.#handle || !this.#folder) {
      // It was complete. If an attempt died right after naming it, the part may still be there.
      await this.drop();
      return this.#folder && `${this.#folder.path}/${file.have.name}`;
    }
    await this.#handle.chmod(file.mode);
    const modified = new Date(file.modifiedMs);
    await this.#handle.utimes(modified, modified);
    // On the disk first: the sender may delete its own once we have confirmed.
    await this.#handle.sync();
    return `${this.#folder.path}/${await place(this.#folder, file.part, file.name)}`;
  }

  /** It has failed here: what has come of it goes, unless only the disk is full. Resolves to why. */
  async failed(error: unknown): Promise<string> {
    this.isFailed = true;
    const reason = problemOf(error);
    if (!this.#handle) return reason;
    if (isFull(error)) return `${reason}; what has come of it is kept`;
    await this.drop();
    return reason;
  }

  /** The sender can't send it: what we have may be of another version of the file. */
  async failedThere(walk: (makes: boolean) => Promise<Folder | undefined>): Promise<void> {
    this.#folder ??= await walk(false).catch(() => undefined);
    await this.drop();
  }

  async drop(): Promise<void> {
    if (this.#folder) await unlink(this.#folder.at(this.file.part)).catch(() => {});
  }

  /** Closes what it has. What has come of it stays, if there is anything. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.isFailed) await this.flush().catch(() => {});
    if (this.#handle && this.at === 0 && this.bytes > 0) await this.drop();
    await this.#handle?.close();
    await this.#folder?.[Symbol.asyncDispose]();
    this.#handle = this.#folder = undefined;
  }
}
