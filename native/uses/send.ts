/**
 * Sends files: offers them, and sends what the receiver lacks. Owns the stream, and the descriptor of the file that is
 * being read. For native/uses/transfers.ts. files.ts describes the wire.
 */
import type { Stats } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { Refusal } from "../../protocol.ts";
import {
  blockBytes,
  Cancelled,
  cancelPatienceMs,
  cutOff,
  grewNote,
  shrankNote,
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
import type { StreamOpener } from "./forward.ts";
import { encodeChunk, encodeMessage, text, wholeNumber, type Message } from "./message.ts";
import { encodeOffer, isOneFile, offerOf, type FileOffer } from "./offer.ts";
import { hashBeginning, headOf, Ledger, openSource, Outgoing } from "./outgoing.ts";
import { Silence } from "./silence.ts";
import type { SourceFiles, SourceFolder } from "./source-files.ts";
import { StreamError, type Stream } from "../session/stream.ts";
import { Pace } from "../shares/pace.ts";
import { WhileOpen } from "./while-open.ts";

export interface SendOptions {
  progress?: TransferProgress;
  /** Cancels it. */
  signal?: AbortSignal;
  /** Called when the receiver has accepted. */
  onAccepted?: () => void;
  /** How long the receiver may be silent when it is its turn. */
  maxSilenceMs?: number;
  pace?: Pace;
}

/**
 * Offers files and sends them. Resolves once each file is confirmed or has failed. Rejects if the offer is refused, if the
 * receiver has accepted it and then falls silent, if the link ends, or with {@link Cancelled}. The receiver keeps what it
 * has, and the next attempt goes on behind it.
 */
export async function sendFiles(
  link: StreamOpener,
  collection: SourceFiles,
  options: SendOptions = {},
): Promise<TransferOutcome> {
  const { files, bytes } = collection;
  if (collection.things === 0) return new Tally().outcome;
  const offer = offerOf(collection);
  const { purpose, messages } = encodeOffer(offer);
  const { progress = new TransferProgress({ files: files.length, bytes }), pace = new Pace() } = options;
  return new Sending(link.open(purpose), collection, offer, progress, pace).run(messages, options);
}

/** What is sent of a file in one go: from there to there. The hash has what comes before. */
interface Attempt {
  from: number;
  hash: Bun.CryptoHasher;
  before: Stats;
}

class Sending {
  readonly #stream: Stream;
  readonly #collection: SourceFiles;
  readonly #offer: FileOffer;
  readonly #progress: TransferProgress;
  readonly #tally = new Tally();
  /** What ends waiting: the receiver has accepted; it is cancelled, here or there. */
  readonly #told = { accepted: Promise.withResolvers<void>(), cancelled: Promise.withResolvers<never>() };
  readonly #whileOpen: WhileOpen;
  readonly #ledger = new Ledger();
  #silence: Silence | undefined;
  /** Once it is cancelled here, nothing more is sent. */
  #cancelling: NodeJS.Timeout | undefined;
  /** Files announced and not sent yet; those not answered yet; files and folders that wait for their result. In order. */
  readonly #waiting = {
    unsent: [] as Outgoing[],
    unanswered: [] as Outgoing[],
    unconfirmed: [] as Outgoing[],
    folders: [] as SourceFolder[],
  };
  /** How fast, and two blocks: one is being read into while the other is being sent. */
  readonly #flow: { pace: Pace; blocks: readonly [Buffer, Buffer] };

  constructor(
    stream: Stream,
    collection: SourceFiles,
    offer: FileOffer,
    progress: TransferProgress,
    pace: Pace,
  ) {
    this.#flow = { pace, blocks: [Buffer.allocUnsafeSlow(blockBytes), Buffer.allocUnsafeSlow(blockBytes)] };
    this.#stream = stream;
    stream.written.countAcknowledged((bytes) => this.#ledger.acknowledged(bytes));
    this.#collection = collection;
    for (const { path, note } of collection.renamed) this.#tally.note(path, note);
    this.#offer = offer;
    this.#progress = progress;
    this.#whileOpen = new WhileOpen(stream);
    this.#told.cancelled.promise.catch((error) => this.#whileOpen.fail(error));
  }

  async run(
    messages: Message[],
    { signal, onAccepted, maxSilenceMs: maxMs }: SendOptions,
  ): Promise<TransferOutcome> {
    const cancel = () => this.#cancel();
    signal?.addEventListener("abort", cancel);
    try {
      if (signal?.aborted) throw new Cancelled("us");
      for (const message of messages) this.#say(message);
      const heard = this.#listen();
      heard.catch((error) => this.#whileOpen.fail(error));
      await this.#whileOpen.wait(this.#told.accepted.promise); // without a limit: a person may decide
      this.#progress.begin();
      onAccepted?.();
      const busyBytes = () => this.#busyBytes;
      using silence = (this.#silence = new Silence(this.#stream, { busyBytes, maxMs }));
      await this.#sendAll();
      this.#stream.end();
      await silence.during(Promise.race([heard, this.#told.cancelled.promise]));
      return this.#tally.outcome;
    } catch (error) {
      throw cutOff(this.#stream, this.#silence?.error ?? error);
    } finally {
      signal?.removeEventListener("abort", cancel);
      clearTimeout(this.#cancelling);
    }
  }

  async #sendAll(): Promise<void> {
    const { files, folders } = this.#collection;
    let [announced, told] = [0, 0];
    for (let index = 0; index <= files.length; index++) {
      while ((folders[told]?.after ?? Infinity) <= index) await this.#tellFolder(folders[told++]!);
      while (announced < Math.min(files.length, index + maxAhead)) await this.#announce(announced++);
      if (index < files.length) await this.#sendNext();
    }
  }

  /** The receiver says what it has, and that is the end. If it says nothing, we know what it has acknowledged. */
  #cancel(): void {
    const over = () => this.#told.cancelled.reject(new Cancelled("us"));
    if (!this.#progress.begun) return over();
    this.#say({ type: "cancel" });
    this.#cancelling ??= setTimeout(over, cancelPatienceMs);
  }

  /** Bytes of the largest file that the receiver may have to read or write before it answers. */
  get #busyBytes(): number {
    const { unsent, unanswered, unconfirmed } = this.#waiting;
    const all = [...unsent, ...unanswered, ...unconfirmed];
    return all.reduce((max, { file }) => Math.max(max, file.bytes), 0);
  }

  #say(message: Message): void {
    if (!this.#cancelling) this.#write(encodeMessage(message));
  }

  #write(bytes: Buffer, of?: Outgoing): Promise<void> {
    this.#ledger.wrote(bytes.length, of);
    this.#flow.pace.spend(bytes.length);
    return new Promise((resolve) => void this.#stream.write(bytes, () => resolve()));
  }

  // --- hearing the receiver ------------------------------------------------------------------------------

  async #listen(): Promise<void> {
    for await (const part of readParts(this.#stream)) {
      if (Buffer.isBuffer(part)) throw new Refusal("bad-line", "bytes from the receiver");
      this.#silence?.heard();
      this.#hear(part);
    }
    const { unanswered, unconfirmed, folders } = this.#waiting;
    const left = unconfirmed.length + unanswered.length + folders.length;
    if (!this.#stream.writableEnded || left > 0)
      throw new Refusal("bad-line", "the receiver ended before its time");
  }

  #hear(message: Message): void {
    const { unanswered, unconfirmed, folders } = this.#waiting;
    switch (message.type) {
      case "accepted":
        return this.#told.accepted.resolve();
      case "cancelled":
        return this.#cancelled(wholeNumber(message, "bytes", this.#progress.bytes));
      case "have": {
        const answered = next(unanswered);
        const bytes = wholeNumber(message, "bytes", answered.file.bytes);
        const sha256 = sha256Of(message);
        unconfirmed.push(answered);
        return answered.answer.resolve({ bytes, sha256 });
      }
      case "refused": {
        const refused = next(unanswered);
        this.#failed(refused, reasonOf(message));
        return refused.answer.resolve(undefined);
      }
      case "received":
        return this.#arrived(next(unconfirmed), message);
      case "failed":
        return this.#failed(next(unconfirmed), reasonOf(message));
      case "made":
        return void next(folders);
      case "unmade":
        return this.#tally.fail(`${next(folders).path}/`, reasonOf(message), 0);
    }
    throw new Refusal("unknown-type", `${message.type} is no answer`);
  }

  #cancelled(bytesThere: number): void {
    if (!this.#progress.begun) throw new Refusal("bad-line", "it was not accepted");
    this.#ledger.close(); // acknowledgements that come later are in it
    this.#progress.bytesDone = bytesThere;
    this.#told.cancelled.reject(new Cancelled(this.#cancelling ? "us" : "peer"));
  }

  #arrived(arrived: Outgoing, message: Message): void {
    const { path } = arrived.file;
    const as = "as" in message ? text(message, "as", maxPathLength) : undefined;
    if (as !== undefined && isOneFile(this.#offer)) this.#progress.storedAs = as;
    else if (as !== undefined) this.#tally.note(path, storedNote(as));
    if (arrived.grew) this.#tally.note(path, grewNote(arrived.bytes));
    if (arrived.bytes < arrived.file.bytes) this.#tally.note(path, shrankNote(arrived.bytes));
    this.#tally.files++;
    arrived.over(true);
  }

  #failed(failed: Outgoing, reason: string): void {
    this.#tally.fail(failed.file.path, reason, failed.file.bytes);
    failed.over(false);
  }

  // --- sending -------------------------------------------------------------------------------------------

  async #announce(index: number): Promise<void> {
    const outgoing = new Outgoing(this.#collection.files[index]!, this.#progress);
    const { path, bytes, mode, mtimeMs } = outgoing.file;
    const head = await headOf(outgoing.file, this.#flow.blocks[0]!);
    this.#waiting.unsent.push(outgoing);
    this.#waiting.unanswered.push(outgoing);
    const modifiedMs = Math.floor(mtimeMs);
    this.#say({ type: "file", path: path.toWellFormed(), bytes, mode, modifiedMs, head });
  }

  async #tellFolder(folder: SourceFolder): Promise<void> {
    const { path, mode } = folder;
    this.#waiting.folders.push(folder);
    if (this.#cancelling) return;
    const written = this.#write(encodeMessage({ type: "folder", path: path.toWellFormed(), mode }));
    if (this.#stream.writableNeedDrain) await this.#silence!.during(this.#whileOpen.wait(written));
  }

  async #sendNext(): Promise<void> {
    await this.#paced();
    const outgoing = this.#waiting.unsent.shift()!;
    const have = await this.#silence!.during(this.#whileOpen.wait(outgoing.answer.promise));
    if (!have) return;
    this.#progress.path = outgoing.file.path;
    const problem = await this.#sendContent(outgoing, have).catch((error) => {
      if (error instanceof StreamError || error instanceof Refusal || error instanceof Cancelled) throw error;
      return problemOf(error);
    });
    if (problem !== undefined) this.#say({ type: "failed", reason: problem });
  }

  /** Sends one file; once more if it changes meanwhile. Resolves to why it can't be sent completely. */
  async #sendContent(
    outgoing: Outgoing,
    have: { bytes: number; sha256: string },
  ): Promise<string | undefined> {
    const { file } = outgoing;
    await using handle = await openSource(file);
    const before = await handle.stat();
    const isOver = () => this.#stream.destroyed || this.#cancelling !== undefined;
    const hash = await hashBeginning(handle, have, this.#flow.blocks[0]!, isOver);
    const from = hash ? have.bytes : 0;
    this.#say({ type: "from", bytes: from });
    outgoing.beginAt(from);
    let attempt: Attempt = { from, hash: hash ?? new Bun.CryptoHasher("sha256"), before };
    for (let isAgain = false; ; isAgain = true) {
      const isWhole = await this.#sendRest(outgoing, handle, attempt);
      if (outgoing.isOver) return "it has failed there";
      const after = await handle.stat();
      outgoing.grew = after.size > outgoing.bytes;
      const sha256 = attempt.hash.digest("hex");
      const isTrue = outgoing.grew
        ? await hashBeginning(handle, { bytes: outgoing.bytes, sha256 }, this.#flow.blocks[0]!, isOver)
        : isSame(after, attempt.before);
      if (isWhole && isTrue) {
        this.#say({ type: "end", sha256, ...(outgoing.grew && { grew: true }) });
        return undefined;
      }
      if (isAgain) return "it keeps changing while it is being read";
      attempt = this.#again(outgoing, after);
    }
  }

  #again(outgoing: Outgoing, before: Stats): Attempt {
    const bytes = Math.min(before.size, outgoing.file.bytes);
    this.#ledger.forget(outgoing);
    outgoing.restart(bytes);
    this.#say({ type: "again", bytes });
    return { from: 0, hash: new Bun.CryptoHasher("sha256"), before };
  }

  /** Returns whether all of it could be read. */
  async #sendRest(outgoing: Outgoing, handle: FileHandle, { from, hash }: Attempt): Promise<boolean> {
    const { bytes } = outgoing;
    let written: Promise<void> | undefined;
    let at = from;
    for (let turn = 0; at < bytes && !outgoing.isOver; turn ^= 1) {
      const block = this.#flow.blocks[turn]!;
      const { bytesRead } = await handle.read(block, 0, Math.min(blockBytes, bytes - at), at);
      if (bytesRead === 0) break;
      const piece = block.subarray(0, bytesRead);
      hash.update(piece);
      await written;
      written = this.#sendChunk(outgoing, piece);
      // It is awaited at the next turn. Until then it must not count as unhandled.
      written.catch(() => {});
      at += bytesRead;
    }
    await written;
    return at >= bytes;
  }

  async #sendChunk(outgoing: Outgoing, piece: Buffer): Promise<void> {
    for (let at = 0; at < piece.length;) {
      await this.#paced();
      if (this.#cancelling) return this.#whileOpen.wait(new Promise(() => {}));
      const slice = piece.subarray(at, at + this.#flow.pace.slice);
      at += slice.length;
      void this.#write(encodeChunk(slice.length));
      await this.#silence!.during(this.#whileOpen.wait(this.#write(slice, outgoing)));
    }
  }

  /** While we wait for our own limit, it is not the receiver's turn. */
  async #paced(): Promise<void> {
    const ready = this.#flow.pace.ready();
    if (ready) await this.#whileOpen.wait(ready);
  }
}

/** Throws if the receiver answers to nothing. */
function next<T>(waiting: T[]): T {
  const first = waiting.shift();
  if (!first) throw new Refusal("bad-line", "an answer to nothing");
  return first;
}

const isSame = (now: Stats, before: Stats): boolean =>
  now.size === before.size && now.mtimeMs === before.mtimeMs;
