/**
 * Receives files into one folder. Owns the stream, the descriptors of the file that is being written and of its folder, and
 * the names of unfinished files. For native/uses/services.ts. files.ts describes the wire, destination.ts where files go.
 *
 * Nothing is written outside of the folder or through a symbolic link, and no file is overwritten. Nothing comes that was
 * not offered. A file gets its name once it is complete and compared. Before that it is `.KEY.part` in the same folder. KEY
 * is made of the sender, the path, the size and the time, so that another attempt at the same file goes on with it.
 */
import { unlink, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { Refusal } from "../../protocol.ts";
import { Destination, keyOf } from "./destination.ts";
import {
  blockBytes,
  Cancelled,
  cancelPatienceMs,
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

/** The latest time in ECMAScript (±100 million days). */
const maxTimeMs = 8.64e15;

/** Where files go, or why they are refused. `isReal`: the path had no link in it, and must have none now. */
export type Decision = { directory: string; isReal?: boolean } | { refuse: string };

export interface ReceiveOptions {
  /** SHA-256 of the sender's certificate. Nobody can go on with a file of somebody else. */
  peer: string;
  /** The sender's name in the room. */
  name?: string;
  /** Called once with the offer. The signal aborts when the sender no longer waits. */
  decide: (offer: FileOffer, signal: AbortSignal) => Promise<Decision> | Decision;
  /** Called when the transfer begins. */
  onProgress?: (progress: TransferProgress, offer: FileOffer) => void;
  /** Whether files that are executable at the sender's are so here. Else no file is. */
  executable?: boolean;
  /** Cancels it. */
  signal?: AbortSignal;
  /** How long the sender may be silent when it is its turn. */
  maxSilenceMs?: number;
}

/**
 * Takes an offer, or refuses it. Resolves once each file has arrived or has failed. Rejects if the offer is refused,
 * malformed or taken back, if the sender falls silent, or if the link ends. Unfinished files are kept for the next
 * attempt.
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
  const cancel = () => whileOpen.fail(new Cancelled("us"));
  options.signal?.addEventListener("abort", cancel);
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
    progress.begin();
    onProgress?.(progress, offer);
    await using receiver = (receiving = new Receiving(stream, offer, destination, progress, options));
    return await receiver.run(parts, silence, whileOpen);
  } catch (error) {
    throw cutOff(stream, silence.error ?? error);
  } finally {
    options.signal?.removeEventListener("abort", cancel);
  }
}

/** A file that the sender has announced. */
interface Announced {
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

/** The file that is being received. */
interface Current {
  readonly file: Announced;
  readonly hash: Bun.CryptoHasher;
  at: number;
  /** Bytes that have come and are not on the disk yet. They are collected: one write costs as much as hashing 64 KiB. */
  unwritten: Buffer[];
  unwrittenBytes: number;
  handle: FileHandle | undefined;
  /** The folder of the file, while there is something to write. */
  folder: Folder | undefined;
  /** Whether the sender was told that the file has failed. */
  isFailed: boolean;
}

async function flush(current: Current): Promise<void> {
  const { handle, at, unwritten, unwrittenBytes } = current;
  current.unwritten = [];
  current.unwrittenBytes = 0;
  if (handle) await writeAt(handle, unwritten, at - unwrittenBytes);
}

/** The parts that this program is writing, so that no two streams write the same one. */
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

  /** Bytes of the largest file that the sender may be reading before it answers. */
  get busyBytes(): number {
    return this.#announced.reduce((most, { bytes }) => Math.max(most, bytes), this.#current?.file.bytes ?? 0);
  }

  async run(
    parts: AsyncGenerator<Message | Buffer, void>,
    silence: Silence,
    whileOpen: WhileOpen,
  ): Promise<TransferOutcome> {
    this.#say({ type: "accepted" });
    try {
      for (;;) {
        const { value: part, done } = await silence.during(whileOpen.wait(parts.next()));
        if (done) break;
        if (Buffer.isBuffer(part)) await this.#receive(part);
        else await this.#hear(part!);
      }
    } catch (error) {
      if (error instanceof Cancelled) await this.#cancelled();
      throw error;
    }
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

  /** Keeps what has come, says how much that is, and waits until the sender knows. */
  async #cancelled(): Promise<void> {
    if (this.#current) await this.#unlessFailed(flush);
    const closed = new Promise<void>((resolve) => void this.#stream.once("close", resolve));
    this.#say({ type: "cancelled", bytes: this.#progress.bytesDone });
    this.#stream.end();
    const patience = setTimeout(() => this.#stream.destroy(), cancelPatienceMs);
    if (!this.#stream.destroyed) await closed;
    clearTimeout(patience);
  }

  #say(message: Message): void {
    this.#stream.write(encodeMessage(message));
  }

  async #hear(message: Message): Promise<void> {
    switch (message.type) {
      case "cancel":
        throw new Cancelled("peer");
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
    this.#progress.bytesFailed += bytes;
    this.#say({ type: "refused", reason: problem });
  }

  /** The mode that our umask leaves, without the executable bits unless they were asked for. */
  #modeOf(mode: number, { isExecutable }: { isExecutable: boolean }): number {
    return mode & ~process.umask() & (this.#mayExecute && isExecutable ? 0o777 : 0o666);
  }

  /** Looks how much of the file is there, and tells the sender. Resolves to why the file is not taken. */
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
      // It was complete. If an attempt died right after naming it, the part may still be there.
      if (!handle || !folder) return this.#dropPart(one);
      await handle.chmod(file.mode);
      const modified = new Date(file.modifiedMs);
      await handle.utimes(modified, modified);
      // On the disk first: the sender may delete its own once we have confirmed.
      await handle.sync();
      const name = await place(folder, file.part, file.name);
      if (this.#isOneFile) this.#progress.storedAs = name;
    });
    await this.#over(current);
  }

  async #failedThere(reason: string): Promise<void> {
    const current = this.#current ?? this.#take(0);
    // What we have may be of another version of the file.
    if (!current.isFailed) {
      current.folder ??= await this.#destination.folder
        .walk(current.file.folders, false)
        .catch(() => undefined);
      await this.#dropPart(current);
    }
    if (!current.isFailed) this.#fail(current, reason);
    await this.#over(current);
  }

  /** Does something for the current file. If it fails, both sides are told, and the rest of the file is ignored. */
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
    if (isFailed) {
      this.#progress.bytesDone -= at;
      this.#progress.bytesFailed += file.bytes;
      return;
    }
    this.#tally.files++;
    this.#say({ type: "received" });
  }
}
