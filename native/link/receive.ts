/**
 * Receives files into one folder. Owns the stream, the descriptor of the file that is being written, and the names of
 * the unfinished ones. For whoever uses a link; the wire is described in native/link/files.ts.
 *
 * Nothing is written outside of the folder, through a symbolic link, or over what is there. A file has its name only
 * once it is whole and compared; before that it is `.KEY.part` beside it, where KEY comes from the sender, the path,
 * the size and the time: what another try of the same file goes on with.
 */
import { lstat, mkdir, realpath, unlink, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Refusal } from "../../protocol.ts";
import {
  blockBytes,
  cutOff,
  fileProblem,
  maxAhead,
  maxPathLength,
  readOffer,
  readParts,
  reasonOf,
  sha256Of,
  Tally,
  TransferProgress,
  type Offer,
  type TransferOutcome,
} from "./files.ts";
import { partNameOf, pathProblem } from "./filename.ts";
import { encodeMessage, text, wholeNumber, type Message } from "./message.ts";
import {
  checkSpace,
  LocalProblem,
  openPart,
  place,
  problemOf,
  unfinishedFile,
  unlessCode,
  wholeFile,
  writeAt,
  type Have,
} from "./part.ts";
import { resetCodes, StreamError, type Stream } from "./stream.ts";
import { WhileOpen } from "./while-open.ts";

/** What ECMAScript takes for a time (±100 million days). */
const maxTimeMs = 8.64e15;

/** Where files go, or why they do not. */
export type Decision = { directory: string } | { refuse: string };

export interface ReceiveOptions {
  /** SHA-256 of the sender's certificate: nobody goes on with the file of another. */
  peer: string;
  /** Asked once; the signal says that the sender waits no more. */
  decide: (offer: Offer, signal: AbortSignal) => Promise<Decision> | Decision;
  /** Called when it begins. */
  onProgress?: (progress: TransferProgress) => void;
}

/**
 * Takes an offer, or refuses it. Resolves when each file is there, or it is known why not; rejects when the offer is
 * refused, malformed or taken back, or the link ends: unfinished files are kept for the next try.
 */
export async function receiveFiles(
  stream: Stream,
  purpose: Record<string, unknown>,
  { peer, decide, onProgress }: ReceiveOptions,
): Promise<TransferOutcome> {
  const abort = new AbortController();
  stream.on("close", () => abort.abort());
  const whileOpen = new WhileOpen(stream);
  try {
    const offer = readOffer(purpose);
    const decision = await whileOpen.wait(Promise.resolve(decide(offer, abort.signal)));
    if ("refuse" in decision) {
      stream.reset(decision.refuse, resetCodes.refused);
      throw new StreamError(resetCodes.refused, decision.refuse);
    }
    const progress = new TransferProgress(offer);
    onProgress?.(progress);
    const root = await realpath(decision.directory).catch((error) => {
      throw new Error(`the folder for what comes: ${fileProblem(error)}`);
    });
    await using receiving = new Receiving(stream, offer, root, peer, progress);
    return await receiving.run();
  } catch (error) {
    throw cutOff(stream, error);
  }
}

/** A file that the sender has announced. */
interface Announced {
  readonly path: string;
  readonly bytes: number;
  readonly mode: number;
  readonly modifiedMs: number;
  readonly folder: string;
  readonly part: string;
  readonly have: Have;
}

/** The one that is being received. */
interface Current {
  readonly file: Announced;
  readonly hash: Bun.CryptoHasher;
  at: number;
  /** What came and is not on the disk yet: one write costs as much as hashing some 64 KiB. */
  unwritten: Buffer[];
  unwrittenBytes: number;
  handle: FileHandle | undefined;
  /** The sender was told that it has failed. */
  isFailed: boolean;
}

async function flush(current: Current): Promise<void> {
  const { handle, at, unwritten, unwrittenBytes } = current;
  current.unwritten = [];
  current.unwrittenBytes = 0;
  if (handle) await writeAt(handle, unwritten, at - unwrittenBytes);
}

/** Parts that this program writes, so that no two streams write one. */
const claimed = new Set<string>();

class Receiving implements AsyncDisposable {
  readonly #stream: Stream;
  readonly #root: string;
  readonly #peer: string;
  readonly #progress: TransferProgress;
  readonly #tally = new Tally();
  #filesLeft: number;
  #bytesLeft: number;
  readonly #announced: Announced[] = [];
  #current: Current | undefined;

  constructor(stream: Stream, offer: Offer, root: string, peer: string, progress: TransferProgress) {
    this.#stream = stream;
    this.#root = root;
    this.#peer = peer;
    this.#progress = progress;
    this.#filesLeft = offer.files;
    this.#bytesLeft = offer.bytes;
  }

  async run(): Promise<TransferOutcome> {
    this.#say({ type: "accepted" });
    for await (const part of readParts(this.#stream)) {
      if (Buffer.isBuffer(part)) await this.#receive(part);
      else await this.#hear(part);
    }
    if (this.#current || this.#announced.length > 0 || this.#filesLeft > 0) {
      throw new Refusal("bad-line", "the sender ended before its time");
    }
    this.#stream.end();
    return this.#tally;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#current?.handle?.close();
    for (const { part } of this.#announced) claimed.delete(part);
    if (this.#current) claimed.delete(this.#current.file.part);
  }

  #say(message: Message): void {
    this.#stream.write(encodeMessage(message));
  }

  async #hear(message: Message): Promise<void> {
    switch (message.type) {
      case "file":
        return this.#announce(message);
      case "from":
        return this.#begin(wholeNumber(message, "bytes"));
      case "end":
        return this.#end(sha256Of(message));
      case "failed":
        return this.#failedThere(reasonOf(message));
    }
    throw new Refusal("unknown-type", `${message.type} is not for a receiver`);
  }

  // --- what is there already -----------------------------------------------------------------------------

  async #announce(message: Message): Promise<void> {
    const path = text(message, "path", maxPathLength);
    const bytes = wholeNumber(message, "bytes");
    const mode = wholeNumber(message, "mode", 0o777);
    const modifiedMs = wholeNumber(message, "modifiedMs", maxTimeMs, -maxTimeMs);
    this.#bytesLeft -= bytes;
    if (this.#filesLeft-- === 0 || this.#bytesLeft < 0) throw new Refusal("limit", "more than was offered");
    if (this.#announced.length >= maxAhead) throw new Refusal("limit", "too many files announced ahead");
    const problem = pathProblem(path) ?? (await this.#prepare({ path, bytes, mode, modifiedMs }));
    if (problem === undefined) return;
    this.#tally.fail(path, problem);
    this.#progress.filesDone++;
    this.#progress.bytesDone += bytes;
    this.#say({ type: "refused", reason: problem });
  }

  /** Looks what is there of the file, and says so. Resolves to why it is not taken. */
  async #prepare(file: Omit<Announced, "folder" | "part" | "have">): Promise<string | undefined> {
    const folder = join(this.#root, dirname(file.path));
    const identity = [this.#peer, file.path, file.bytes, file.modifiedMs].join("\n");
    const part = join(folder, partNameOf(Bun.SHA256.hash(identity, "hex").slice(0, 24)));
    if (claimed.has(part)) return "it is being received already";
    try {
      await this.#checkFolders(file.path, false);
      const have = (await wholeFile(folder, file)) ?? (await unfinishedFile(part, file.bytes));
      claimed.add(part);
      this.#announced.push({ ...file, folder, part, have });
      this.#say({ type: "have", bytes: have.bytes, sha256: have.hash.copy().digest("hex") });
      return undefined;
    } catch (error) {
      return problemOf(error);
    }
  }

  /** No part of the path may lead elsewhere. Makes what lacks, if asked to. */
  async #checkFolders(path: string, makes: boolean): Promise<void> {
    let folder = this.#root;
    for (const name of path.split("/").slice(0, -1)) {
      folder = join(folder, name);
      if (makes) await mkdir(folder).catch(unlessCode("EEXIST"));
      const found = await lstat(folder).catch(unlessCode("ENOENT"));
      if (!found) return;
      if (found.isSymbolicLink()) throw new LocalProblem(`${name} is a symbolic link`);
      if (!found.isDirectory()) throw new LocalProblem(`${name} is not a folder`);
    }
  }

  // --- one file ------------------------------------------------------------------------------------------

  async #begin(from: number): Promise<void> {
    const { file } = this.#take(from);
    if (from === file.have.bytes && file.have.isWhole) return;
    await this.#unlessFailed(async (current) => {
      await this.#checkFolders(file.path, true);
      await checkSpace(file.folder, file.bytes - from);
      current.handle = await openPart(file.part, from);
    });
  }

  /** The next of the announced files becomes the current one. */
  #take(from: number): Current {
    const file = this.#announced[0];
    if (this.#current || !file) throw new Refusal("bad-line", "bytes of no file");
    if (from !== 0 && from !== file.have.bytes) throw new Refusal("bad-field", "it goes on where nothing is");
    this.#announced.shift();
    const hash = from === file.have.bytes ? file.have.hash : new Bun.CryptoHasher("sha256");
    this.#progress.path = file.path;
    this.#progress.bytesDone += from;
    const nothing = { unwritten: [], unwrittenBytes: 0, handle: undefined, isFailed: false };
    return (this.#current = { file, hash, at: from, ...nothing });
  }

  async #receive(piece: Buffer): Promise<void> {
    const current = this.#current;
    if (!current || current.at + piece.length > current.file.bytes) {
      throw new Refusal("bad-line", "bytes of no file");
    }
    current.at += piece.length;
    this.#progress.bytesDone += piece.length;
    this.#progress.bytesMoved += piece.length;
    if (current.isFailed) return;
    current.hash.update(piece);
    current.unwritten.push(piece);
    current.unwrittenBytes += piece.length;
    if (current.unwrittenBytes >= blockBytes) await this.#unlessFailed(flush);
  }

  async #end(sha256: string): Promise<void> {
    const current = this.#current;
    if (!current || (current.at !== current.file.bytes && !current.isFailed)) {
      throw new Refusal("bad-line", "an end of no file");
    }
    await this.#unlessFailed(async (one) => {
      await flush(one);
      const { handle, hash, file } = one;
      if (hash.digest("hex") !== sha256) throw new LocalProblem("its SHA-256 differs");
      // It was whole; a try that died right after naming it may have left the part.
      if (!handle) return unlink(file.part).catch(() => {});
      await handle.chmod(file.mode);
      const modified = new Date(file.modifiedMs);
      await handle.utimes(modified, modified);
      // The sender may delete its own once we have confirmed.
      await handle.sync();
      await place(file.part, file.folder, basename(file.path));
    });
    await this.#over(current);
  }

  async #failedThere(reason: string): Promise<void> {
    const current = this.#current ?? this.#take(0);
    // Its beginning may be of another version.
    if (!current.isFailed) await unlink(current.file.part).catch(() => {});
    if (!current.isFailed) this.#fail(current, reason);
    await this.#over(current);
  }

  /** Does something for the current file; if that fails, both sides are told, and the rest of it is thrown away. */
  async #unlessFailed(work: (current: Current) => Promise<void>): Promise<void> {
    const current = this.#current!;
    if (current.isFailed) return;
    try {
      await work(current);
    } catch (error) {
      if (current.handle) await unlink(current.file.part).catch(() => {});
      this.#fail(current, problemOf(error));
    }
  }

  #fail(current: Current, reason: string): void {
    current.isFailed = true;
    this.#tally.fail(current.file.path, reason);
    this.#say({ type: "failed", reason });
  }

  async #over(current: Current): Promise<void> {
    const { file, handle, at, isFailed } = current;
    this.#current = undefined;
    claimed.delete(file.part);
    await handle?.close();
    this.#progress.filesDone++;
    this.#progress.bytesDone += file.bytes - at;
    if (isFailed) return;
    this.#tally.files++;
    this.#say({ type: "received" });
  }
}
