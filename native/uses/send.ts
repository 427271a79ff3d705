/**
 * Sends files: offers them, and sends what the receiver lacks. Owns the stream, and the descriptor of the file that is
 * being read. For native/uses/services.ts. files.ts describes the wire.
 */
import { constants, type Stats } from "node:fs";
import { open, readlink, realpath, type FileHandle } from "node:fs/promises";
import { Refusal } from "../../protocol.ts";
import {
  blockBytes,
  Cancelled,
  cancelPatienceMs,
  cutOff,
  fileProblem,
  maxAhead,
  readParts,
  reasonOf,
  sha256Of,
  Tally,
  TransferProgress,
  type TransferOutcome,
} from "./files.ts";
import { isWithin, type SourceFiles, type SourceFile } from "./source-files.ts";
import type { StreamOpener } from "./forward.ts";
import { encodeChunk, encodeMessage, wholeNumber, type Message } from "./message.ts";
import { encodeOffer, offerOf } from "./offer.ts";
import { Silence } from "./silence.ts";
import { StreamError, type Stream } from "../session/stream.ts";
import { WhileOpen } from "./while-open.ts";

/** What the receiver has of a file; undefined if it does not want the file. */
type Answer = { bytes: number; sha256: string } | undefined;

/** A file that was announced. */
interface Announced {
  readonly file: SourceFile;
  readonly answer: PromiseWithResolvers<Answer>;
  /** How many of its bytes the receiver had, and has acknowledged since. */
  bytesThere: number;
  bytesMoved: number;
  /** Whether its result is known. */
  isOver: boolean;
}

export interface SendOptions {
  progress?: TransferProgress;
  /** Cancels it. */
  signal?: AbortSignal;
  /** Called when the receiver has accepted. */
  onAccepted?: () => void;
  /** How long the receiver may be silent when it is its turn. */
  maxSilenceMs?: number;
}

/**
 * Offers files and sends them. Resolves once each file is confirmed or has failed. Rejects if the offer is refused, if the
 * receiver has accepted it and then falls silent, if the link ends, or with {@link Cancelled}. The receiver keeps what it has, and the next attempt
 * goes on behind it.
 */
export async function sendFiles(
  link: StreamOpener,
  collection: SourceFiles,
  options: SendOptions = {},
): Promise<TransferOutcome> {
  const { files } = collection;
  if (files.length === 0) return new Tally();
  const { purpose, messages } = encodeOffer(offerOf(collection));
  const { progress = new TransferProgress({ files: files.length, bytes: collection.bytes }) } = options;
  return new Sending(link.open(purpose), files, progress).run(messages, options);
}

class Sending {
  readonly #stream: Stream;
  readonly #files: readonly SourceFile[];
  readonly #progress: TransferProgress;
  readonly #tally = new Tally();
  readonly #accepted = Promise.withResolvers<void>();
  readonly #whileOpen: WhileOpen;
  #silence: Silence | undefined;
  /** Once it is cancelled here, nothing more is sent. */
  #isCancelled = false;
  #giveUp: NodeJS.Timeout | undefined;
  /** Files announced and not sent yet; those of them not answered yet; files that wait for their result. All in order. */
  readonly #unsent: Announced[] = [];
  readonly #unanswered: Announced[] = [];
  readonly #unconfirmed: Announced[] = [];
  /** Bytes of all that was written; and the pieces of files in it, by where they end, until they are acknowledged. */
  #writtenBytes = 0;
  readonly #unacknowledged: { announced: Announced; bytes: number; endsAt: number }[] = [];
  /** Two blocks: one is being read into while the other is being sent. */
  readonly #blocks = [Buffer.allocUnsafeSlow(blockBytes), Buffer.allocUnsafeSlow(blockBytes)];

  constructor(stream: Stream, files: readonly SourceFile[], progress: TransferProgress) {
    this.#stream = stream;
    stream.written.countAcknowledged((bytes) => this.#acknowledged(bytes));
    this.#files = files;
    this.#progress = progress;
    this.#whileOpen = new WhileOpen(stream);
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
      await this.#whileOpen.wait(this.#accepted.promise); // without a limit: a person may decide
      this.#progress.begin();
      onAccepted?.();
      const busyBytes = () => this.#busyBytes;
      using silence = (this.#silence = new Silence(this.#stream, { busyBytes, maxMs }));
      let announced = 0;
      for (const index of this.#files.keys()) {
        while (announced < Math.min(this.#files.length, index + maxAhead)) this.#announce(announced++);
        await this.#sendNext();
      }
      this.#stream.end();
      await silence.during(heard);
      return this.#tally;
    } catch (error) {
      throw cutOff(this.#stream, this.#silence?.error ?? error);
    } finally {
      signal?.removeEventListener("abort", cancel);
      clearTimeout(this.#giveUp);
    }
  }

  /** The receiver says what it has, and that is the end. If it says nothing, we know what it has acknowledged. */
  #cancel(): void {
    const over = () => this.#whileOpen.fail(new Cancelled("us"));
    if (!this.#progress.begun) return over();
    this.#say({ type: "cancel" });
    this.#isCancelled = true;
    this.#giveUp = setTimeout(over, cancelPatienceMs);
  }

  /** Bytes of the largest file that the receiver may have to read or write before it answers. */
  get #busyBytes(): number {
    const all = [...this.#unsent, ...this.#unanswered, ...this.#unconfirmed];
    return all.reduce((most, { file }) => Math.max(most, file.bytes), 0);
  }

  #say(message: Message): void {
    if (!this.#isCancelled) this.#write(encodeMessage(message));
  }

  #write(bytes: Buffer, written = () => {}): void {
    this.#writtenBytes += bytes.length;
    this.#stream.write(bytes, () => written());
  }

  // --- hearing the receiver ------------------------------------------------------------------------------

  async #listen(): Promise<void> {
    for await (const part of readParts(this.#stream)) {
      if (Buffer.isBuffer(part)) throw new Refusal("bad-line", "bytes from the receiver");
      this.#silence?.heard();
      this.#hear(part);
    }
    const isOver = this.#stream.writableEnded && this.#unconfirmed.length + this.#unanswered.length === 0;
    if (!isOver) throw new Refusal("bad-line", "the receiver ended before its time");
  }

  #hear(message: Message): void {
    switch (message.type) {
      case "accepted":
        return this.#accepted.resolve();
      case "have": {
        const answered = this.#next(this.#unanswered);
        const bytes = wholeNumber(message, "bytes", answered.file.bytes);
        this.#unconfirmed.push(answered);
        return answered.answer.resolve({ bytes, sha256: sha256Of(message) });
      }
      case "refused": {
        const refused = this.#next(this.#unanswered);
        this.#over(refused, reasonOf(message));
        return refused.answer.resolve(undefined);
      }
      case "cancelled": {
        this.#progress.bytesDone = wholeNumber(message, "bytes", this.#progress.bytes);
        return this.#whileOpen.fail(new Cancelled(this.#isCancelled ? "us" : "peer"));
      }
      case "received":
        return this.#over(this.#next(this.#unconfirmed), undefined);
      case "failed":
        return this.#over(this.#next(this.#unconfirmed), reasonOf(message));
    }
    throw new Refusal("unknown-type", `${message.type} is no answer`);
  }

  #next(waiting: Announced[]): Announced {
    const first = waiting.shift();
    if (!first) throw new Refusal("bad-line", "an answer to nothing");
    return first;
  }

  #over(announced: Announced, reason: string | undefined): void {
    const { file, bytesThere, bytesMoved } = announced;
    if (reason === undefined) {
      this.#count(announced, file.bytes - bytesThere - bytesMoved);
      this.#tally.files++;
    } else {
      this.#progress.bytesDone -= bytesThere + bytesMoved;
      this.#progress.bytesFailed += file.bytes;
      this.#tally.fail(file.path, reason);
    }
    announced.isOver = true;
    this.#progress.filesDone++;
  }

  /** So many bytes in all are with the receiver. */
  #acknowledged(bytes: number): void {
    while (this.#unacknowledged[0]?.endsAt! <= bytes) {
      const { announced, bytes } = this.#unacknowledged.shift()!;
      this.#count(announced, bytes);
    }
  }

  #count(announced: Announced, bytes: number): void {
    if (announced.isOver) return;
    announced.bytesMoved += bytes;
    this.#progress.bytesDone += bytes;
    this.#progress.bytesMoved += bytes;
  }

  // --- sending -------------------------------------------------------------------------------------------

  #announce(index: number): void {
    const file = this.#files[index]!;
    const announced = {
      file,
      answer: Promise.withResolvers<Answer>(),
      bytesThere: 0,
      bytesMoved: 0,
      isOver: false,
    };
    this.#unsent.push(announced);
    this.#unanswered.push(announced);
    const { path, bytes, mode, mtimeMs } = file;
    this.#say({ type: "file", path: path.toWellFormed(), bytes, mode, modifiedMs: Math.floor(mtimeMs) });
  }

  async #sendNext(): Promise<void> {
    const announced = this.#unsent.shift()!;
    const have = await this.#silence!.during(this.#whileOpen.wait(announced.answer.promise));
    if (!have) return;
    this.#progress.path = announced.file.path;
    const problem = await this.#sendContent(announced, have).catch((error) => {
      if (error instanceof StreamError || error instanceof Refusal) throw error;
      return fileProblem(error);
    });
    if (problem !== undefined) this.#say({ type: "failed", reason: problem });
  }

  /** Sends one file. Resolves to why it can't be sent completely. */
  async #sendContent(
    announced: Announced,
    have: { bytes: number; sha256: string },
  ): Promise<string | undefined> {
    const { file } = announced;
    // O_NONBLOCK: a named pipe that has taken its place would block.
    await using handle = await open(file.source, constants.O_RDONLY | constants.O_NONBLOCK);
    const before = await handle.stat();
    const isSame =
      before.isFile() && isUnchanged(before, file) && isWithin(await pathOf(handle, file), file.within);
    if (!isSame) return "it has changed since it was offered";
    const hash = new Bun.CryptoHasher("sha256");
    const isVerified = await this.#hashBeginning(handle, have.bytes, hash, have.sha256);
    const from = isVerified ? have.bytes : 0;
    this.#say({ type: "from", bytes: from });
    announced.bytesThere = from;
    this.#progress.bytesDone += from;
    const rest = await this.#sendRest(
      announced,
      handle,
      from,
      isVerified ? hash : new Bun.CryptoHasher("sha256"),
    );
    if (announced.isOver) return "it has failed there";
    if (typeof rest === "string") return rest;
    const after = await handle.stat();
    if (after.size > file.bytes) return "it grew while it was being read";
    if (!isUnchanged(after, file)) return "it changed while it was being read";
    this.#say({ type: "end", sha256: rest.digest("hex") });
    return undefined;
  }

  async #hashBeginning(handle: FileHandle, bytes: number, hash: Bun.CryptoHasher, sha256: string) {
    const block = this.#blocks[0]!;
    for (let at = 0; at < bytes && !this.#stream.destroyed;) {
      const { bytesRead } = await handle.read(block, 0, Math.min(blockBytes, bytes - at), at);
      if (bytesRead === 0) return false;
      hash.update(block.subarray(0, bytesRead));
      at += bytesRead;
    }
    return hash.copy().digest("hex") === sha256;
  }

  /** Returns the hash of the whole file, or why there is none. */
  async #sendRest(announced: Announced, handle: FileHandle, from: number, hash: Bun.CryptoHasher) {
    const { bytes } = announced.file;
    let written: Promise<void> | undefined;
    for (let at = from, turn = 0; at < bytes && !announced.isOver; turn ^= 1) {
      const block = this.#blocks[turn]!;
      const { bytesRead } = await handle.read(block, 0, Math.min(blockBytes, bytes - at), at);
      if (bytesRead === 0) return `it shrank from ${bytes} to ${at} bytes while it was being read`;
      const piece = block.subarray(0, bytesRead);
      hash.update(piece);
      await written;
      written = this.#sendChunk(announced, piece);
      // It is awaited at the next turn. Until then it must not count as unhandled.
      written.catch(() => {});
      at += bytesRead;
    }
    await written;
    return hash;
  }

  #sendChunk(announced: Announced, piece: Buffer): Promise<void> {
    if (this.#isCancelled) return this.#whileOpen.wait(new Promise(() => {}));
    this.#write(encodeChunk(piece.length));
    const written = new Promise<void>((resolve) => this.#write(piece, resolve));
    this.#unacknowledged.push({ announced, bytes: piece.length, endsAt: this.#writtenBytes });
    return this.#silence!.during(this.#whileOpen.wait(written));
  }
}

/** The real path of what was opened: somebody may have put a link in the place of a folder on the way. */
async function pathOf(handle: FileHandle, { source }: SourceFile): Promise<string> {
  return readlink(`/proc/self/fd/${handle.fd}`).catch(() => realpath(source));
}

function isUnchanged(now: Stats, { bytes, mtimeMs }: SourceFile): boolean {
  return now.size === bytes && now.mtimeMs === mtimeMs;
}
