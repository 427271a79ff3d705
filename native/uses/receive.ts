/**
 * Receives files into one folder. Owns the stream, what it is of, and the names of unfinished files that are claimed. For
 * native/uses/transfers.ts. files.ts describes the wire, destination.ts where files go.
 *
 * Nothing is written outside of the folder or through a symbolic link, and no file is overwritten. Nothing comes that was
 * not offered. A file gets its name once it is complete and compared. Before that it is `NAME.KEY.part` in the same folder.
 * KEY is made of the path, the size and the first bytes: whoever has these may go on with it, and the SHA-256 of the whole
 * decides. So a sender that has lost its key can go on, and nobody who does not know the file learns what there is of it.
 */
import { join, relative } from "node:path";
import { Refusal } from "../../protocol.ts";
import { Arriving, type Announced } from "./arriving.ts";
import { Destination, type Lease } from "./destination.ts";
import {
  Cancelled,
  cancelPatienceMs,
  cutOff,
  fileProblem,
  grewNote,
  shrankNote,
  LocalProblem,
  maxAhead,
  maxPathLength,
  problemOf,
  readParts,
  reasonOf,
  sha256Of,
  storedNote,
  Tally,
  TransferProgress,
  type TransferOutcome,
} from "./files.ts";
import { nameHere, partNameOf, pathProblem } from "./filename.ts";
import type { Folder } from "./folder.ts";
import { encodeMessage, text, wholeNumber, type Message } from "./message.ts";
import { isOneFile, OfferCheck, readOffer, type FileOffer } from "./offer.ts";
import { checkSpace, freeBytes, nothing, unfinishedFile, wholeFile } from "./partial-file.ts";
import { Silence } from "./silence.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";
import { bytesThere, keyOf } from "./unfinished.ts";
import { WhileOpen } from "./while-open.ts";

/** The latest time in ECMAScript (±100 million days). */
const maxTimeMs = 8.64e15;

/** Where files go, or why they are refused. `isReal`: the path had no link in it, and must have none now. */
export type Decision = { directory: string; isReal?: boolean } | { refuse: string };

export interface ReceiveOptions {
  /** SHA-256 of the sender's certificate. */
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
    const decision = await whileOpen.wait(Promise.resolve(options.decide(offer, abort.signal)));
    if ("refuse" in decision) {
      stream.reset(decision.refuse, resetCodes.refused);
      throw new StreamError(resetCodes.refused, decision.refuse);
    }
    const lease = { signal: abort.signal, giveUp: () => giveUp(whileOpen) };
    await using destination = await destinationOf(decision, offer, options, lease);
    const progress = new TransferProgress(offer);
    progress.storedAs = destination.name;
    progress.begin();
    options.onProgress?.(progress, offer);
    const about = { offer, destination, progress, whileOpen };
    await using receiver = (receiving = new Receiving(stream, about, options));
    return await receiver.run(parts, silence);
  } catch (error) {
    throw cutOff(stream, silence.error ?? error);
  } finally {
    options.signal?.removeEventListener("abort", cancel);
  }
}

async function destinationOf(
  place: { directory: string; isReal?: boolean },
  offer: FileOffer,
  { peer: fingerprint, name = "somebody" }: ReceiveOptions,
  lease: Lease,
): Promise<Destination> {
  await checkRoom(place.directory, offer);
  return Destination.open(place, offer, { fingerprint, name }, lease).catch((error) => {
    throw new LocalProblem(`the folder for what comes: ${problemOf(error)}`);
  });
}

/** Whether there is room for what does not have to be there already. Rejects with a {@link LocalProblem} if not. */
export async function checkRoom(directory: string, { name, bytes }: FileOffer): Promise<void> {
  try {
    const lacking = bytes - (await freeBytes(directory));
    if (lacking > 0) await checkSpace(directory, bytes - (await bytesThere(directory, name, bytes)));
  } catch (error) {
    if (error instanceof LocalProblem) throw error;
    throw new LocalProblem(`the folder for what comes: ${fileProblem(error)}`);
  }
}

const drained = (stream: Stream): Promise<void> =>
  new Promise((resolve) => void stream.once("drain", resolve));

const giveUp = (waiting: WhileOpen): void => waiting.fail(new Error("another attempt goes on with it"));

/** The parts that this program is writing, so that no two streams write the same one. */
const claims = new Map<string, Receiving>();

interface About {
  offer: FileOffer;
  destination: Destination;
  progress: TransferProgress;
  whileOpen: WhileOpen;
}

class Receiving implements AsyncDisposable {
  readonly #stream: Stream;
  readonly #offer: FileOffer;
  readonly #destination: Destination;
  readonly #progress: TransferProgress;
  readonly #whileOpen: WhileOpen;
  readonly #options: ReceiveOptions;
  readonly #check: OfferCheck;
  readonly #tally = new Tally();
  readonly #left: { files: number; folders: number; bytes: number };
  readonly #announced: Announced[] = [];
  readonly #closed = Promise.withResolvers<void>();
  #current: Arriving | undefined;

  constructor(stream: Stream, { offer, destination, progress, whileOpen }: About, options: ReceiveOptions) {
    this.#stream = stream;
    this.#offer = offer;
    this.#destination = destination;
    this.#progress = progress;
    this.#whileOpen = whileOpen;
    this.#options = options;
    this.#check = new OfferCheck(offer);
    const { files, folders, bytes } = offer;
    this.#left = { files, folders, bytes };
  }

  /** Bytes of the largest file that the sender may be reading before it answers. */
  get busyBytes(): number {
    return this.#announced.reduce((max, { bytes }) => Math.max(max, bytes), this.#current?.file.bytes ?? 0);
  }

  async run(parts: AsyncGenerator<Message | Buffer, void>, silence: Silence): Promise<TransferOutcome> {
    this.#say({ type: "accepted" });
    try {
      for (;;) {
        const { value: part, done } = await silence.during(this.#whileOpen.wait(parts.next()));
        if (done) break;
        if (Buffer.isBuffer(part)) await this.#receive(part);
        else await this.#hear(part!);
        // Who does not take answers gets no more of them.
        if (this.#stream.writableNeedDrain) await silence.during(this.#whileOpen.wait(drained(this.#stream)));
      }
    } catch (error) {
      if (error instanceof Cancelled) await this.#cancelled();
      throw error;
    }
    if (this.#current || this.#announced.length + this.#left.files + this.#left.folders > 0) {
      throw new Refusal("bad-line", "the sender ended before its time");
    }
    if (this.#offer.things > 1) await this.#destination.openToOthers();
    await this.#destination.over(this.#offer.folders > 0);
    this.#stream.end();
    return this.#tally.outcome;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#current?.[Symbol.asyncDispose]();
    for (const { claim } of this.#announced) claims.delete(claim);
    if (this.#current) claims.delete(this.#current.file.claim);
    this.#closed.resolve();
  }

  /** Keeps what has come, says how much that is, and waits until the sender knows. */
  async #cancelled(): Promise<void> {
    if (this.#current) await this.#unlessFailed((current) => current.flush());
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
      case "again":
        return this.#again(message);
      case "end":
        return this.#end(message);
      case "failed":
        return this.#failedThere(reasonOf(message));
      case "folder":
        return this.#folder(message);
    }
    throw new Refusal("unknown-type", `${message.type} is not for a receiver`);
  }

  // --- what is there already -----------------------------------------------------------------------------

  async #announce(message: Message): Promise<void> {
    const path = text(message, "path", maxPathLength);
    const bytes = wholeNumber(message, "bytes");
    const mode = wholeNumber(message, "mode", 0o777);
    const modifiedMs = wholeNumber(message, "modifiedMs", maxTimeMs, -maxTimeMs);
    const head = sha256Of(message, "head");
    this.#left.bytes -= bytes;
    if (this.#left.files-- === 0 || this.#left.bytes < 0) throw new Refusal("limit", "more than was offered");
    if (this.#announced.length >= maxAhead) throw new Refusal("limit", "too many files announced ahead");
    const checked = this.#check.next(path, mode);
    const problem =
      pathProblem(path) ??
      ("problem" in checked
        ? checked.problem
        : await this.#prepare({ path, bytes, modifiedMs, mode: this.#modeOf(mode, checked) }, head));
    if (problem === undefined) return;
    this.#tally.fail(path, problem, bytes);
    this.#progress.filesDone++;
    this.#progress.bytesFailed += bytes;
    this.#say({ type: "refused", reason: problem });
  }

  /** The mode that our umask leaves, without the executable bits unless they were asked for. */
  #modeOf(mode: number, { isExecutable }: { isExecutable: boolean }): number {
    const { executable = false } = this.#options;
    return mode & ~process.umask() & (executable && isExecutable ? 0o777 : 0o666);
  }

  /** The names that a path has here, from the destination. */
  #placeOf(path: string): string[] {
    return this.#destination.inside(path).split("/").map(nameHere);
  }

  /** Looks how much of the file is there, and tells the sender. Resolves to why the file is not taken. */
  async #prepare(
    file: Pick<Announced, "path" | "bytes" | "mode" | "modifiedMs">,
    head: string,
  ): Promise<string | undefined> {
    const { path, bytes } = file;
    const folders = this.#placeOf(path);
    const name = folders.pop()!;
    const part = partNameOf(name, keyOf(path, bytes, head));
    const claim = join(this.#destination.folder.path, ...folders, part);
    if (!(await this.#claim(claim))) return "it is being received already";
    try {
      await using folder = await this.#destination.folder.walk(folders, false);
      const have = folder
        ? ((await wholeFile(folder, { name, bytes, head })) ??
          (await unfinishedFile(folder, part, { bytes, head })))
        : nothing();
      this.#announced.push({ ...file, folders, name, part, claim, have });
      this.#say({ type: "have", bytes: have.bytes, sha256: have.hash.copy().digest("hex") });
      return undefined;
    } catch (error) {
      claims.delete(claim);
      return problemOf(error);
    }
  }

  /** Another attempt of the same sender has to give way, and so has one whose link is broken. */
  async #claim(claim: string): Promise<boolean> {
    const other = claims.get(claim);
    if (other === this) return false;
    if (other) {
      if (other.#options.peer !== this.#options.peer && !other.#stream.isWaiting) return false;
      giveUp(other.#whileOpen);
      await this.#whileOpen.wait(other.#closed.promise);
    }
    if (claims.has(claim)) return false;
    claims.set(claim, this);
    return true;
  }

  // --- one file ------------------------------------------------------------------------------------------

  #walk(makes: boolean): Promise<Folder | undefined> {
    return this.#destination.folder.walk(this.#current!.file.folders, makes);
  }

  async #begin(from: number): Promise<void> {
    this.#take(from);
    await this.#unlessFailed((current) => current.begin((makes) => this.#walk(makes)));
  }

  /** The next of the announced files becomes the current one. */
  #take(from: number): Arriving {
    const file = this.#announced[0];
    if (this.#current || !file) throw new Refusal("bad-line", "bytes of no file");
    if (from !== 0 && from !== file.have.bytes) throw new Refusal("bad-field", "it goes on where nothing is");
    this.#announced.shift();
    this.#progress.path = file.path;
    this.#progress.keptAs = isOneFile(this.#offer) ? file.part : `${this.#destination.name}/`;
    this.#progress.bytesDone += from;
    return (this.#current = new Arriving(file, from));
  }

  async #again(message: Message): Promise<void> {
    const current = this.#current;
    if (!current || current.isAgain) throw new Refusal("bad-line", "again, and no file that may come again");
    const bytes = wholeNumber(message, "bytes", current.file.bytes);
    this.#progress.bytesDone -= current.at;
    this.#progress.bytesFailed += current.file.bytes - bytes;
    current.restart(bytes);
    await this.#unlessFailed((one) => one.reopen((makes) => this.#walk(makes)));
  }

  async #receive(piece: Buffer): Promise<void> {
    const current = this.#current;
    if (!current || current.at + piece.length > current.bytes) {
      throw new Refusal("bad-line", "bytes of no file");
    }
    current.at += piece.length;
    this.#progress.bytesDone += piece.length;
    this.#progress.bytesMoved += piece.length;
    await this.#unlessFailed((one) => one.take(piece));
  }

  async #end(message: Message): Promise<void> {
    const current = this.#current;
    const sha256 = sha256Of(message);
    if (!current || (current.at !== current.bytes && !current.isFailed)) {
      throw new Refusal("bad-line", "an end of no file");
    }
    let path: string | undefined;
    await this.#unlessFailed(async (one) => (path = await one.finish(sha256)));
    if (!current.isFailed && message["grew"] === true)
      this.#tally.note(current.file.path, grewNote(current.bytes));
    if (!current.isFailed && current.bytes < current.file.bytes)
      this.#tally.note(current.file.path, shrankNote(current.bytes));
    await this.#over(current, path === undefined ? undefined : this.#storedAs(current.file, path));
  }

  /** Keeps the name that a file has got. Returns it if it is another one than it was sent with. */
  #storedAs({ path: sent }: Announced, path: string): string | undefined {
    const as = relative(this.#destination.folder.path, path);
    if (isOneFile(this.#offer)) {
      this.#progress.storedAs = as;
      return as === sent ? undefined : as;
    }
    if (as === this.#destination.inside(sent)) return undefined;
    this.#tally.note(sent, storedNote(as));
    return as;
  }

  async #failedThere(reason: string): Promise<void> {
    const current = this.#current ?? this.#take(0);
    if (!current.isFailed) {
      await current.failedThere((makes) => this.#walk(makes));
      this.#fail(current, reason);
    }
    await this.#over(current);
  }

  /** Does something for the current file. If it fails, both sides are told, and the rest of the file is ignored. */
  async #unlessFailed(work: (current: Arriving) => Promise<unknown>): Promise<void> {
    const current = this.#current!;
    if (current.isFailed) return;
    try {
      await work(current);
    } catch (error) {
      this.#fail(current, await current.failed(error));
    }
  }

  #fail(current: Arriving, reason: string): void {
    current.isFailed = true;
    this.#tally.fail(current.file.path, reason, current.file.bytes);
    this.#say({ type: "failed", reason });
  }

  async #over(current: Arriving, as?: string): Promise<void> {
    const { file, at, bytes, isFailed } = current;
    this.#current = undefined;
    claims.delete(file.claim);
    await current[Symbol.asyncDispose]();
    this.#progress.filesDone++;
    if (isFailed) {
      this.#progress.bytesDone -= at;
      this.#progress.bytesFailed += bytes;
      return;
    }
    this.#tally.files++;
    this.#say({ type: "received", ...(as !== undefined && { as }) });
  }

  // --- folders -------------------------------------------------------------------------------------------

  /** All of it has come: it gets its rights, which are never wider than they were. */
  async #folder(message: Message): Promise<void> {
    const path = text(message, "path", maxPathLength);
    const mode = wholeNumber(message, "mode", 0o777);
    if (this.#left.folders-- === 0) throw new Refusal("limit", "more than was offered");
    const isTop = this.#offer.things === 1 && path === this.#offer.name;
    const problem = pathProblem(path) ?? this.#check.nextFolder(path);
    const made = problem ?? (await this.#make(isTop ? [] : this.#placeOf(path), mode));
    if (made === undefined) return this.#say({ type: "made" });
    this.#tally.fail(`${path}/`, made, 0);
    this.#say({ type: "unmade", reason: made });
  }

  async #make(names: string[], mode: number): Promise<string | undefined> {
    try {
      await using folder = await this.#destination.folder.walk(names, true);
      await folder?.chmod(mode & ~process.umask());
      return undefined;
    } catch (error) {
      return problemOf(error);
    }
  }
}
