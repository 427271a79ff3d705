/**
 * What the two sides of a transfer of files send to each other, and what they report to their owners. Pure but for the
 * stream that it is given. For native/uses/ and native/terminal/.
 *
 * The purpose of the stream is `{"use":"files","name":…,"files":n,"folders":n,"bytes":n,"digest":…,"things":n,
 * "listed":n,"moreOdd":n}` (native/uses/offer.ts). A refusal resets the stream with the reason.
 *
 *   sender                                          receiver
 *     │ listed {path} … odd {path} … ────────────────► │    as many as `listed` says
 *     │ ◄──────────────────────────────────── accepted │
 *     │ file {path, bytes, mode, modifiedMs, head} ──► │    at most 64 ahead of the one being sent
 *     │ ◄─────────────────────── have {bytes, sha256} │    what is there already; or `refused {reason}`: not that one
 *     │ from {bytes} ────────────────────────────────► │    that many need not be sent: all of `have`, or 0
 *     │ chunk … chunk … ─────────────────────────────► │
 *     │ again {bytes} ───────────────────────────────► │    once a file: it has changed, and comes anew, at most as long
 *     │ end {sha256, grew} ──────────────────────────► │    or `failed {reason}`
 *     │ ◄────────────────────────────── received {as} │    or `failed {reason}`, which may come before the end
 *     │ folder {path, mode} ─────────────────────────► │    after all that is in it
 *     │ ◄──────────────────────────────────────── made │    or `unmade {reason}`
 *
 * `head` is the SHA-256 of the first 64 KiB: only who has them learns what is there, or goes on with it. `as`: the path in
 * the folder that it has got, if it is another one than it was sent with.
 *
 * Answers come in the order of the files, and of the folders. Each file that is not refused gets a `received` or a
 * `failed`; either side may send `failed`. The sender ends its half after the last file, the receiver after the last
 * answer. At any time the sender may `cancel`. Then, or when the receiver cancels, the receiver says `cancelled {bytes}`,
 * which it has then of all, and ends. Who is not answered resets the stream with the code `cancelled`.
 */
import { Refusal } from "../../protocol.ts";
import { bytes } from "../shares/sizes.ts";
import { MessageDecoder, text, type Message } from "./message.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";

/** Files that are announced ahead, so that small files do not take a round trip each. */
export const maxAhead = 64;
/** Bytes that are read, hashed and written at once. */
export const blockBytes = 512 * 1024;
export const maxFiles = 1_000_000;
/** By so many of its first bytes a file is known again. */
export const headBytes = 64 * 1024;
const maxReasonLength = 1024;
/** So long we wait for the peer to take notice, when a transfer is cancelled here. */
export const cancelPatienceMs = 3_000;
export const maxPathLength = 4096;

/** A file that did not arrive, and why. */
export interface FileFailure {
  path: string;
  reason: string;
  bytes?: number;
}

/** What there is to say of a file that has arrived. */
export interface FileNote {
  path: string;
  note: string;
}

/** The outcome of a transfer that came to its end. */
export interface TransferOutcome {
  /** Files that have arrived completely and were compared. */
  files: number;
  /** A thousand of `failed`, the largest first. */
  failures: FileFailure[];
  failed: number;
  /** The first thousand of `noted`: other names, and files that grew or shrank. */
  notes: FileNote[];
  noted: number;
}

/** How far a transfer is. It changes while the transfer goes on. */
export class TransferProgress {
  readonly files: number;
  readonly bytes: number;
  /** By performance.now(). */
  readonly madeMs = performance.now();
  /** Once the receiver has accepted: when, and for how long the link had been broken then. */
  begun: { atMs: number; brokenMs: number } | undefined;
  /** For how long the link has been broken, in all. Its owner sets it. */
  brokenMs: () => number = () => 0;
  /** Files that are over, whole or failed. */
  filesDone = 0;
  /** Bytes that the receiver has, also those that were there already. Not those of files that have failed. */
  bytesDone = 0;
  /** Those of them that this transfer has sent. */
  bytesMoved = 0;
  /** Of files that will not arrive. */
  bytesFailed = 0;
  /** The file that is being sent. */
  path = "";
  /** When receiving: where in the folder is what has come in part. */
  keptAs: string | undefined = undefined;
  /** The name that the file or folder has at the receiver's. */
  storedAs: string | undefined = undefined;

  constructor({ files, bytes }: { files: number; bytes: number }) {
    this.files = files;
    this.bytes = bytes;
  }

  begin(): void {
    this.begun ??= { atMs: performance.now(), brokenMs: this.brokenMs() };
  }
}

/** A transfer was cancelled, here or at the peer's. */
export class Cancelled extends Error {
  readonly by: "us" | "peer";
  constructor(by: "us" | "peer", message = "it was cancelled") {
    super(message);
    this.by = by;
  }
}

const maxFailures = 1_000;

/** Counts the ends of files, keeps the largest failures, and the first notes. */
export class Tally implements TransferOutcome {
  files = 0;
  failed = 0;
  noted = 0;
  notes: FileNote[] = [];
  #failures: FileFailure[] = [];

  fail(path: string, reason: string, bytes: number): void {
    this.failed++;
    this.#failures.push({ path, reason, bytes });
    if (this.#failures.length >= 2 * maxFailures) this.#failures = this.failures;
  }

  note(path: string, note: string): void {
    if (this.noted++ < maxFailures) this.notes.push({ path, note });
  }

  get failures(): FileFailure[] {
    return this.#failures.toSorted((a, b) => b.bytes! - a.bytes!).slice(0, maxFailures);
  }

  get outcome(): TransferOutcome {
    const { files, failures, failed, notes, noted } = this;
    return { files, failures, failed, notes, noted };
  }
}

/** What both sides say of a file that has got another name, that grew, or that shrank. */
export const storedNote = (as: string): string => `stored as ${as}`;
export const grewNote = (length: number): string =>
  `it grew meanwhile: only its first ${bytes(length)} were sent`;
export const shrankNote = (length: number): string => `it shrank meanwhile: it has ${bytes(length)} now`;

/** The reason in a message; throws a {@link Refusal}. */
export const reasonOf = (message: Message): string => text(message, "reason", maxReasonLength);

/** 64 hex digits; throws a {@link Refusal}. */
export function sha256Of(message: Message, field = "sha256"): string {
  const value = text(message, field, 64);
  if (/^[0-9a-f]{64}$/.test(value)) return value;
  throw new Refusal("bad-field", `${field} must be 64 lower-case hex digits`);
}

/** Messages and raw bytes, until the peer ends its half. Throws a {@link Refusal}, or the error of the stream. */
export async function* readParts(stream: Stream): AsyncGenerator<Message | Buffer, void> {
  const decoder = new MessageDecoder();
  for await (const bytes of stream.iterator({ destroyOnReturn: false })) yield* decoder.push(bytes as Buffer);
  if (!decoder.isBetween) throw new Refusal("bad-line", "it ended within a message");
}

/** Cuts the stream off because of `error`, and returns the error for the owner. */
export function cutOff(stream: Stream, error: unknown): Error {
  const message = error instanceof Error ? error.message : String(error);
  stream.reset(message, error instanceof Cancelled ? resetCodes.cancelled : resetCodes.failed);
  // The peer has cut it off, without a failure of its own.
  if (error instanceof StreamError && error.code === resetCodes.cancelled)
    return new Cancelled("peer", message);
  if (!(error instanceof Refusal)) return error instanceof Error ? error : new Error(message);
  return new StreamError(resetCodes.failed, `the peer does not keep to the protocol: ${message}`);
}

const problems: Readonly<Record<string, string>> = {
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EROFS: "the disk is read-only",
  EFBIG: "it is too large for the file system",
  ENAMETOOLONG: "its name is too long for the file system",
  ENOTDIR: "a file stands where a folder should be",
  ENOENT: "it is not there",
  EIO: "the disk fails",
  EISDIR: "a folder stands where a file should be",
  ELOOP: "its links lead in a circle",
  EMFILE: "this program has too many files open; `ulimit -n` raises the limit",
};

/** What is wrong on this side, in words for both sides. */
export class LocalProblem extends Error {}

export const problemOf = (error: unknown): string =>
  error instanceof LocalProblem ? error.message : fileProblem(error);

/** An error of the file system in words, without paths of this host. */
export function fileProblem(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return (code && (problems[code] ?? code)) || message;
}
