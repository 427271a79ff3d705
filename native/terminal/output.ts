/**
 * Standard output and standard error: what waits for its reader, and how it is written. Owns the queue of each. It never
 * changes a flag of the descriptor, since the descriptor is shared with other programs. For native/terminal/terminal.ts.
 */
import { writeSync } from "node:fs";
import { isatty } from "node:tty";
import { canTellWritable, isWritable, unblockedBytes, wasGiven } from "../host/descriptor.ts";

/** So many characters wait for a reader that does not read: some ten thousand events. More is dropped, and counted. */
const maxUnreadLength = 4 * 1024 * 1024;
/** So many characters of a long text are written at once. A terminal has to show them before we go on. */
const partLength = 8 * 1024;
/** How long to wait for a full pipe: at first, and at most. */
const minPauseMs = 1;
const maxPauseMs = 20;

type Written = (error?: Error | null) => void;

/** Writes to a descriptor, one text after the other; the callback comes once the text has been taken. */
type Sink = (text: string, written: Written) => void;

class ClosedError extends Error {
  readonly code = "EBADF";
}

/**
 * Using `process.stdout` or `process.stderr` makes a pipe non-blocking, for its other writers, too, and after our end. So
 * they are used for terminals only, where they do not.
 */
function sinkOf(fd: 1 | 2, onError: (error: Error) => void): Sink {
  if (!wasGiven(fd)) return (_text, written) => queueMicrotask(() => written(new ClosedError()));
  if (!isatty(fd) && canTellWritable()) return (text, written) => writeTo(fd, Buffer.from(text), written);
  const stream = fd === 1 ? process.stdout : process.stderr;
  stream.on("error", onError);
  return (text, written) => void stream.write(text, written);
}

/** Writes only what does not wait: a thread that waits in write(2) would be one that files need. */
function writeTo(fd: number, bytes: Uint8Array, written: Written, pauseMs = minPauseMs): void {
  let rest = bytes;
  try {
    while (rest.length > 0 && isWritable(fd))
      rest = rest.subarray(writeSync(fd, rest.subarray(0, unblockedBytes)));
  } catch (error) {
    // Another program that shares the descriptor has made it non-blocking.
    if ((error as NodeJS.ErrnoException).code !== "EAGAIN")
      return queueMicrotask(() => written(error as Error));
  }
  if (rest.length === 0) return queueMicrotask(written);
  const nextMs = rest.length < bytes.length ? minPauseMs : Math.min(2 * pauseMs, maxPauseMs);
  setTimeout(() => writeTo(fd, rest, written, nextMs), pauseMs);
}

/**
 * One of the two outputs. What waits for its reader is bounded. An error is told once. A long text is written part by part,
 * one in each turn of the event loop.
 */
export class Output {
  readonly #sink: Sink;
  readonly #draw: (write: () => void, isLast: boolean) => void;
  readonly #onError: (error: NodeJS.ErrnoException) => void;
  readonly #onDropped: (lines: number) => void;
  /** The pieces to write; `#next` is the first that is not written yet. */
  #pieces: string[] = [];
  #next = 0;
  /** What is being written now; "" if nothing is. */
  #part = "";
  #unreadLength = 0;
  #dropped = 0;
  #isBroken = false;
  #read = Promise.withResolvers<void>();

  /** `draw` calls `write`, with what has to be done before and after it. */
  constructor(
    fd: 1 | 2,
    draw: (write: () => void, isLast: boolean) => void,
    onError: (error: NodeJS.ErrnoException) => void,
    onDropped: (lines: number) => void,
  ) {
    this.#sink = sinkOf(fd, (error) => this.#fail(error));
    this.#draw = draw;
    this.#onDropped = onDropped;
    this.#onError = onError;
  }

  /** Writes all pieces as one text, with nothing between them. Drops all of them if too much is unread. */
  write(pieces: readonly string[]): void {
    if (this.#isBroken) return;
    if (this.#unreadLength > maxUnreadLength) {
      this.#dropped += linesOf(pieces);
      return;
    }
    for (const piece of pieces) {
      this.#unreadLength += piece.length; // characters: counting bytes would take 20 ms for 20,000 pieces
      this.#pieces.push(piece);
    }
    this.#writeNext();
  }

  /** Resolves once all has been read, or can't be any more. */
  async whenRead(): Promise<void> {
    if (this.#unreadLength > 0 && !this.#isBroken) await this.#read.promise;
  }

  /** The end: waits for the reader, but no longer than until `hurried`. What nobody has read by then is told. */
  async end(hurried: Promise<void>): Promise<void> {
    await Promise.race([this.whenRead(), hurried]);
    if (!this.#isBroken) this.#dropped += linesOf([this.#part, ...this.#pieces.slice(this.#next)]);
    this.#tellDropped();
  }

  #writeNext(): void {
    if (this.#isBroken || this.#part !== "" || this.#next === this.#pieces.length) return;
    let part = this.#pieces[this.#next++]!;
    while (part.length < partLength && this.#next < this.#pieces.length) part += this.#pieces[this.#next++]!;
    const isLast = this.#next === this.#pieces.length;
    if (isLast) [this.#pieces, this.#next] = [[], 0];
    this.#part = part;
    const onWritten = (error?: Error | null) => (error ? this.#fail(error) : this.#taken());
    this.#draw(() => this.#sink(part, onWritten), isLast);
  }

  /** The stream and the write both report the same error. */
  #fail(error: NodeJS.ErrnoException): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#onError(error);
    this.#read.resolve();
  }

  #taken(): void {
    this.#unreadLength -= this.#part.length;
    this.#part = "";
    if (this.#next < this.#pieces.length) return void setImmediate(() => this.#writeNext());
    if (this.#unreadLength > 0) return;
    this.#tellDropped();
    this.#read.resolve();
    this.#read = Promise.withResolvers();
  }

  #tellDropped(): void {
    if (this.#dropped > 0) this.#onDropped(this.#dropped);
    this.#dropped = 0;
  }
}

function linesOf(pieces: readonly string[]): number {
  let lines = 0;
  for (const piece of pieces) lines += piece.split("\n").length - 1;
  return lines;
}
