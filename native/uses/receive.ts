/**
 * Receives files into one folder. Owns the stream, the descriptors of the file that is being written and of its folder,
 * and the names of the unfinished ones. For whoever uses a link; the wire is described in native/uses/files.ts, where
 * files go in destination.ts.
 *
 * Nothing is written outside of the folder, through a symbolic link, or over what is there, and nothing comes that was
 * not offered. A file has its name only once it is whole and compared; before that it is `.KEY.part` beside it, where KEY
 * comes from the sender, the path, the size and the time: what another try of the same file goes on with.
 */
import { unlink, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { Refusal } from "../../protocol.ts";
import { Destination, keyOf } from "./destination.ts";
import {
  blockBytes,
  cutOff,
  LocalProblem,
  maxAhead,
  maxPathLength,
  problemOf,
  readParts,
  reasonOf,
  sha256Of,
  Tally,
  TransferProgress,
  type TransferOutcome,
} from "./files.ts";
import { partNameOf, pathProblem } from "./filename.ts";
import type { Folder } from "./folder.ts";
import { encodeMessage, text, wholeNumber, type Message } from "./message.ts";
import { isOneFile, OfferCheck, readOffer, type FileOffer } from "./offer.ts";
import {
  checkSpace,
  nothing,
  openPartial,
  place,
  unfinishedFile,
  wholeFile,
  writeAt,
  type Have,
} from "./partial-file.ts";
import { Silence } from "./silence.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";
import { WhileOpen } from "./while-open.ts";

/** What ECMAScript takes for a time (±100 million days). */
const maxTimeMs = 8.64e15;

/** Where files go, or why they do not. One that `isReal` was by no link, and must not have become one. */
export type Decision = { directory: string; isReal?: boolean } | { refuse: string };

export interface ReceiveOptions {
  /** SHA-256 of the sender's certificate: nobody goes on with the file of another. */
  peer: string;
  /** What the sender is called. */
  name?: string;
  /** Asked once; the signal says that the sender waits no more. */
  decide: (offer: FileOffer, signal: AbortSignal) => Promise<Decision> | Decision;
  /** Called when it begins. */
  onProgress?: (progress: TransferProgress, offer: FileOffer) => void;
  /** Files that can be executed at the sender's can be so here; otherwise none can. */
  executable?: boolean;
  /** How long the sender may do nothing when it is its turn. */
  maxSilenceMs?: number;
}

/**
 * Takes an offer, or refuses it. Resolves when each file is there, or it is known why not; rejects when the offer is
 * refused, malformed or taken back, the sender falls silent, or the link ends: unfinished files are kept for the next try.
 */
export async function receiveFiles(
  stream: Stream,
  purpose: Record<string, unknown>,
  options: ReceiveOptions,
): Promise<TransferOutcome> {
  const { peer: fingerprint, name = "somebody", decide, onProgress } = options;
  const abort = new AbortController();
  stream.on("close", () => abort.abort());
  const whileOpen = new WhileOpen(stream);
  let receiving: Receiving | undefined;
  using silence = new Silence(stream, {
    busyBytes: () => receiving?.busyBytes ?? 0,
    maxMs: options.maxSilenceMs,
  });
  try {
    const parts = readParts(stream);
    const offer = await readOffer(purpose, () => silence.during(parts.next()));
    const decision = await whileOpen.wait(Promise.resolve(decide(offer, abort.signal)));
    if ("refuse" in decision) {
      stream.reset(decision.refuse, resetCodes.refused);
      throw new StreamError(resetCodes.refused, decision.refuse);
    }
    const sender = { fingerprint, name };
    await using destination = await Destination.open(decision, offer, sender, abort.signal).catch((error) => {
      throw new Error(`the folder for what comes: ${problemOf(error)}`);
    });
    const progress = new TransferProgress(offer);
    progress.storedAs = destination.name;
    onProgress?.(progress, offer);
    await using receiver = (receiving = new Receiving(stream, offer, destination, progress, options));
    return await receiver.run(parts, silence);
  } catch (error) {
    throw cutOff(stream, silence.error ?? error);
  }
}

/** A file that the sender has announced. */
interface Announced {
  readonly path: string;
  readonly bytes: number;
  readonly mode: number;
  readonly modifiedMs: number;
  /** From the destination: the folders to it, and what it is to be called. */
  readonly folders: readonly string[];
  readonly name: string;
  readonly part: string;
  /** The path of the part: what is claimed. */
  readonly claim: string;
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
  /** That it is in, as long as there is something to write. */
  folder: Folder | undefined;
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
  readonly #destination: Destination;
  readonly #check: OfferCheck;
  readonly #peer: string;
  readonly #mayExecute: boolean;
  readonly #isOneFile: boolean;
  readonly #progress: TransferProgress;
  readonly #tally = new Tally();
  #filesLeft: number;
  #bytesLeft: number;
  readonly #announced: Announced[] = [];
  #current: Current | undefined;

  constructor(
    stream: Stream,
    offer: FileOffer,
    destination: Destination,
    progress: TransferProgress,
    { peer, executable = false }: ReceiveOptions,
  ) {
    this.#stream = stream;
    this.#destination = destination;
    this.#check = new OfferCheck(offer);
    this.#peer = peer;
    this.#mayExecute = executable;
    this.#isOneFile = isOneFile(offer);
    this.#progress = progress;
    this.#filesLeft = offer.files;
    this.#bytesLeft = offer.bytes;
  }

  /** Of the largest file that the sender may be reading before it says something. */
  get busyBytes(): number {
    return this.#announced.reduce((most, { bytes }) => Math.max(most, bytes), this.#current?.file.bytes ?? 0);
  }

  async run(parts: AsyncGenerator<Message | Buffer, void>, silence: Silence): Promise<TransferOutcome> {
    this.#say({ type: "accepted" });
    silence.begin();
    for await (const part of parts) {
      silence.end();
      if (Buffer.isBuffer(part)) await this.#receive(part);
      else await this.#hear(part);
      silence.begin();
    }
    silence.end();
    if (this.#current || this.#announced.length > 0 || this.#filesLeft > 0) {
      throw new Refusal("bad-line", "the sender ended before its time");
    }
    await this.#destination.over();
    this.#stream.end();
    return this.#tally;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#current?.handle?.close();
    await this.#current?.folder?.[Symbol.asyncDispose]();
    for (const { claim } of this.#announced) claimed.delete(claim);
    if (this.#current) claimed.delete(this.#current.file.claim);
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
    const checked = this.#check.next(path, mode);
    const problem =
      pathProblem(path) ??
      ("problem" in checked
        ? checked.problem
        : await this.#prepare({ path, bytes, modifiedMs, mode: this.#modeOf(mode, checked) }));
    if (problem === undefined) return;
    this.#tally.fail(path, problem);
    this.#progress.filesDone++;
    this.#progress.bytesDone += bytes;
    this.#say({ type: "refused", reason: problem });
  }

  /** What its owner's umask leaves, and nothing that can be executed unless that was asked for. */
  #modeOf(mode: number, { isExecutable }: { isExecutable: boolean }): number {
    return mode & ~process.umask() & (this.#mayExecute && isExecutable ? 0o777 : 0o666);
  }

  /** Looks what is there of the file, and says so. Resolves to why it is not taken. */
  async #prepare(
    file: Pick<Announced, "path" | "bytes" | "mode" | "modifiedMs">,
  ): Promise<string | undefined> {
    const { path, bytes, modifiedMs } = file;
    const folders = this.#destination.inside(path).split("/");
    const name = folders.pop()!;
    const part = partNameOf(keyOf(this.#peer, path, bytes, modifiedMs));
    const claim = join(this.#destination.folder.path, ...folders, part);
    if (claimed.has(claim)) return "it is being received already";
    try {
      await using folder = await this.#destination.folder.walk(folders, false);
      const have = folder
        ? ((await wholeFile(folder, { name, bytes, modifiedMs })) ??
          (await unfinishedFile(folder, part, bytes)))
        : nothing();
      claimed.add(claim);
      this.#announced.push({ ...file, folders, name, part, claim, have });
      this.#say({ type: "have", bytes: have.bytes, sha256: have.hash.copy().digest("hex") });
      return undefined;
    } catch (error) {
      return problemOf(error);
    }
  }

  // --- one file ------------------------------------------------------------------------------------------

  async #begin(from: number): Promise<void> {
    const { file } = this.#take(from);
    const isThere = from === file.have.bytes && file.have.isWhole;
    await this.#unlessFailed(async (current) => {
      const folder = await this.#destination.folder.walk(file.folders, !isThere);
      if (isThere) return void (current.folder = folder);
      if (!folder) throw new LocalProblem("its folder has gone");
      current.folder = folder;
      await checkSpace(folder, file.bytes - from);
      current.handle = await openPartial(folder, file.part, from);
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
    const nothing = {
      unwritten: [],
      unwrittenBytes: 0,
      handle: undefined,
      folder: undefined,
      isFailed: false,
    };
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
      const { handle, folder, hash, file } = one;
      if (hash.digest("hex") !== sha256) throw new LocalProblem("its SHA-256 differs");
      // It was whole; a try that died right after naming it may have left the part.
      if (!handle || !folder) return this.#dropPart(one);
      await handle.chmod(file.mode);
      const modified = new Date(file.modifiedMs);
      await handle.utimes(modified, modified);
      // The sender may delete its own once we have confirmed.
      await handle.sync();
      const name = await place(folder, file.part, file.name);
      if (this.#isOneFile) this.#progress.storedAs = name;
    });
    await this.#over(current);
  }

  async #failedThere(reason: string): Promise<void> {
    const current = this.#current ?? this.#take(0);
    // Its beginning may be of another version.
    if (!current.isFailed) {
      current.folder ??= await this.#destination.folder
        .walk(current.file.folders, false)
        .catch(() => undefined);
      await this.#dropPart(current);
    }
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
      if (current.handle) await this.#dropPart(current);
      this.#fail(current, problemOf(error));
    }
  }

  async #dropPart({ folder, file }: Current): Promise<void> {
    if (folder) await unlink(folder.at(file.part)).catch(() => {});
  }

  #fail(current: Current, reason: string): void {
    current.isFailed = true;
    this.#tally.fail(current.file.path, reason);
    this.#say({ type: "failed", reason });
  }

  async #over(current: Current): Promise<void> {
    const { file, handle, folder, at, isFailed } = current;
    this.#current = undefined;
    claimed.delete(file.claim);
    await handle?.close();
    await folder?.[Symbol.asyncDispose]();
    this.#progress.filesDone++;
    this.#progress.bytesDone += file.bytes - at;
    if (isFailed) return;
    this.#tally.files++;
    this.#say({ type: "received" });
  }
}
