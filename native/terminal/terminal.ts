/**
 * The terminal: lines that are typed, text that is printed above the prompt, and output that waits for a reader. Owns
 * standard input, output and error of the program. It knows no command, no peer and no protocol. For native/terminal/ and
 * both programs.
 *
 * POSIX.1-2017 §11.1.4 (job control: who may read from and write to the terminal, and what stops whom).
 */
import type * as readline from "node:readline";
import { isatty } from "node:tty";
import { printable } from "../../protocol.ts";
import { type Colors, colorsFor, count, shorten } from "./text.ts";
import { UsageError } from "./command-line.ts";

/** So many characters wait for a reader that does not read: some ten thousand events. More is dropped, and counted. */
const maxUnreadLength = 4 * 1024 * 1024;
/** So many characters of a long text are written at once. A terminal has to show them before we go on. */
const partLength = 8 * 1024;
/** How long the end of the program waits for that reader. */
const endWaitMs = 1000;
/** A second Ctrl-C within this time ends the program. */
const secondInterruptMs = 2000;
/** After a stop we go on by SIGCONT; if there was no stop, after this time. If both come, we go on once. */
const resumeMs = 100;

// Loaded when it is first needed: most starts need no prompt.
const readlineModule = () => require("node:readline") as typeof readline;

// --- types -----------------------------------------------------------------------------------------------

export interface Conversation {
  prompt: string;
  /** Takes a line. Returns whether it was the last one. */
  onLine(line: string): boolean | Promise<boolean>;
  /** The words that the last word of the line may become. */
  complete(line: string): string[];
  /** Why a second Ctrl-C is needed to end; undefined if one is enough. */
  reasonToStay(): string | undefined;
}

/** Gets the lines that are typed. */
interface LineReader {
  prompt: string;
  line(text: string): void;
  /** Ctrl-C on an empty line. */
  interrupt(): void;
  /** Ctrl-D, or the end of the input. */
  end(): void;
  complete?(line: string): string[];
}

// --- output ----------------------------------------------------------------------------------------------

/**
 * One of the two output streams. What waits for its reader is bounded. An error is told once. A long text is written
 * part by part, one in each turn of the event loop.
 */
class Output {
  readonly #stream: NodeJS.WriteStream;
  readonly #draw: (write: () => void, isLast: boolean) => void;
  readonly #onError: (error: NodeJS.ErrnoException) => void;
  readonly #onDropped: (lines: number) => void;
  /** The pieces to write; `#next` is the first that is not written yet. */
  #pieces: string[] = [];
  #next = 0;
  #unreadLength = 0;
  #dropped = 0;
  #isBroken = false;
  #read = Promise.withResolvers<void>();

  /** `draw` calls `write`, with what has to be done before and after it. */
  constructor(
    stream: NodeJS.WriteStream,
    draw: (write: () => void, isLast: boolean) => void,
    onError: (error: NodeJS.ErrnoException) => void,
    onDropped: (lines: number) => void,
  ) {
    this.#stream = stream;
    this.#draw = draw;
    this.#onDropped = onDropped;
    this.#onError = onError;
    stream.on("error", (error) => this.#fail(error));
  }

  /** Writes all pieces as one text, with nothing between them. Drops all of them if too much is unread. */
  write(pieces: readonly string[]): void {
    if (this.#isBroken) return;
    if (this.#unreadLength > maxUnreadLength) {
      for (const piece of pieces) this.#dropped += piece.split("\n").length - 1;
      return;
    }
    const isFirst = this.#pieces.length === 0;
    for (const piece of pieces) {
      this.#unreadLength += piece.length; // characters: counting bytes would take 20 ms for 20,000 pieces
      this.#pieces.push(piece);
    }
    if (isFirst) this.#writeNext();
  }

  #writeNext(): void {
    if (this.#isBroken) return;
    let part = this.#pieces[this.#next++]!;
    while (part.length < partLength && this.#next < this.#pieces.length) part += this.#pieces[this.#next++]!;
    const isLast = this.#next === this.#pieces.length;
    if (isLast) [this.#pieces, this.#next] = [[], 0];
    else setImmediate(() => this.#writeNext());
    const { length } = part;
    const onWritten = (error: Error | null | undefined) => (error ? this.#fail(error) : this.#taken(length));
    this.#draw(() => this.#stream.write(part, onWritten), isLast);
  }

  /** Resolves once all has been read, at the latest after `ms`. */
  async end(ms: number): Promise<void> {
    const timer = setTimeout(() => this.#read.resolve(), ms);
    if (this.#unreadLength > 0 && !this.#isBroken) await this.#read.promise;
    clearTimeout(timer);
    this.#tellDropped();
  }

  /** The stream and the write both report the same error. */
  #fail(error: NodeJS.ErrnoException): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#onError(error);
    this.#read.resolve();
  }

  #taken(length: number): void {
    this.#unreadLength -= length;
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

const writeErrors: Record<string, string> = {
  EPIPE: "whoever read it is gone",
  ENOSPC: "no space is left on the disk",
};

// --- the terminal ----------------------------------------------------------------------------------------

/** Where both programs read and write. Results go to standard output, the story to standard error. */
export class Terminal {
  // By the descriptor: making `process.stdin` takes longer than all the rest of this.
  readonly isInteractive = isatty(0) && isatty(2);
  readonly storyColors = colorsFor(process.stderr);
  /** Resolves once standard output can't be written any more. */
  readonly broken: Promise<void>;
  isBroken = false;
  /** Whether the story is not printed (--quiet). */
  isQuiet = false;
  /** Made when it is first written to: with `--pipe` standard output belongs to the pipe. */
  #out: Output | undefined;
  readonly #err: Output;
  /** Lines between the story and the prompt: what is under way. */
  #status: string[] = [];
  #statusRows = 0;
  /** Whether status and prompt are drawn now. */
  #isDrawn = false;
  readonly #broken = Promise.withResolvers<void>();
  #reader: readline.Interface | undefined;
  #resumedAt = -Infinity;
  /** The last one gets the lines: a question comes before the commands. */
  readonly #lineReaders: LineReader[] = [];

  constructor() {
    this.broken = this.#broken.promise;
    this.#err = new Output(
      process.stderr,
      (write, isLast) => this.#aroundPrompt(write, isLast),
      () => {},
      (lines) => this.error(`nobody read this: ${count(lines, "line")} dropped`),
    );
  }

  get resultColors(): Colors {
    return colorsFor({ isTTY: isatty(1) });
  }

  #results(): Output {
    const onError = ({ code, message }: NodeJS.ErrnoException) => {
      this.isBroken = true;
      this.error(`cannot write to standard output: ${writeErrors[code ?? ""] ?? message} (${code})`);
      this.#broken.resolve();
    };
    return (this.#out ??= new Output(
      process.stdout,
      (write, isLast) => this.#aroundPrompt(write, isLast),
      onError,
      (lines) => this.error(`nobody read standard output: ${count(lines, "line")} dropped`),
    ));
  }

  /** How wide a table on standard output may be; Infinity if it is no terminal. */
  get width(): number {
    return isatty(1) ? process.stdout.columns || 80 : Infinity;
  }

  /** Prints what was asked for. */
  result(text: string): void {
    this.#results().write([`${text}\n`]);
  }

  /** The same for a long text in pieces. They are written part by part. */
  longResult(pieces: readonly string[]): void {
    this.#results().write(pieces.concat("\n"));
  }

  /** Draws lines that stay just above the prompt, in place of those before. Only on a terminal. */
  status(lines: string[]): void {
    if (this.isQuiet || !isatty(2) || (lines.length === 0 && this.#statusRows === 0)) return;
    this.#erasePrompt();
    this.#status = lines;
    this.#redraw();
  }

  /** Prints what happens. With --quiet, only problems. */
  story(text: string, isProblem = false): void {
    if (isProblem || !this.isQuiet) this.#err.write([`${text}\n`]);
  }

  error(message: string): void {
    this.#err.write([`${this.storyColors.red("error")}: ${printable(message)}\n`]);
  }

  /**
   * Asks until `read` returns something for the answer. Undefined if the user gives up (Ctrl-C, Ctrl-D).
   */
  async ask<T>(question: string, read: (answer: string) => T | undefined): Promise<T | undefined> {
    const { promise, resolve } = Promise.withResolvers<T | undefined>();
    const giveUp = () => resolve(undefined);
    const isAlone = this.#reader === undefined;
    const asking: LineReader = {
      prompt: question,
      line: (text) => {
        const value = read(text.trim());
        if (value !== undefined) resolve(value);
      },
      interrupt: giveUp,
      end: giveUp,
    };
    this.#lineReaders.push(asking);
    this.#open();
    const answer = await promise;
    this.#lineReaders.splice(this.#lineReaders.indexOf(asking), 1);
    if (isAlone) this.close();
    else this.#showPrompt();
    return answer;
  }

  /** The same, but the answer is not shown as it is typed. It must be asked before anything else. */
  async askSecret<T>(question: string, read: (answer: string) => T | undefined): Promise<T | undefined> {
    const { promise, resolve } = Promise.withResolvers<T | undefined>();
    const { Writable } = process.getBuiltinModule("node:stream");
    const output = new Writable({ write: (_chunk, _encoding, written) => written() });
    process.stdin.on("error", () => {}); // its end follows
    const reader = readlineModule().createInterface({ input: process.stdin, output, terminal: true });
    reader.on("line", (text) => {
      process.stderr.write("\n");
      const value = read(text);
      if (value === undefined) process.stderr.write(question);
      else resolve(value);
    });
    for (const event of ["SIGINT", "close"]) reader.on(event, () => resolve(undefined));
    process.stderr.write(question);
    return promise.finally(() => reader.close());
  }

  /** Reads commands until the user ends it. */
  async converse({ prompt, onLine, complete, reasonToStay }: Conversation): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    let interruptedAt = -Infinity;
    const interrupt = () => {
      const reason = reasonToStay();
      const now = performance.now();
      if (reason === undefined || now - interruptedAt < secondInterruptMs) return resolve();
      interruptedAt = now;
      this.#err.write([`${reason}; Ctrl-C again ends it\n`]);
    };
    const line = async (text: string) => {
      if (text.trim() !== "" && (await onLine(text))) resolve();
    };
    this.#lineReaders.push({
      prompt,
      line: (text) => void line(text).catch(reject),
      interrupt,
      end: resolve,
      complete,
    });
    this.#open();
    await promise.finally(() => this.close());
  }

  /** The lines of standard input, if it is no terminal. */
  lines(): AsyncIterable<string> {
    process.stdin.on("error", () => {}); // its end follows
    return readlineModule().createInterface({ input: process.stdin });
  }

  /** Gives the terminal back: without a prompt, and in its former mode. */
  close(): void {
    const reader = this.#reader;
    if (!reader) return;
    this.#erasePrompt();
    this.#reader = undefined;
    this.#lineReaders.length = 0;
    process.off("SIGCONT", this.#resume);
    process.off("SIGTSTP", this.#suspend);
    reader.close();
  }

  /** The last thing that a program does. It waits at most a second for a reader that does not read. */
  async end(): Promise<void> {
    this.close();
    await this.#out?.end(endWaitMs);
    await this.#err.end(this.isBroken ? 0 : endWaitMs);
  }

  #open(): void {
    if (this.#reader) return this.#showPrompt();
    process.stdin.on("error", () => {}); // if the terminal is gone, the end follows
    const reader = readlineModule().createInterface({
      input: process.stdin,
      output: process.stderr,
      completer: (line: string) => this.#complete(line),
    });
    this.#reader = reader;
    reader.on("error", () => {}); // it repeats the errors of its input
    reader.on("line", (text) => {
      this.#lineReaders.at(-1)?.line(text);
      this.#showPrompt();
    });
    reader.on("SIGINT", () => this.#interrupt());
    reader.on("close", () => {
      for (const one of this.#lineReaders.toReversed()) one.end();
    });
    reader.on("SIGTSTP", this.#suspend);
    process.on("SIGTSTP", this.#suspend);
    process.on("SIGCONT", this.#resume);
    this.#showPrompt();
  }

  #showPrompt(): void {
    const prompt = this.#lineReaders.at(-1)?.prompt;
    if (prompt === undefined || !this.#reader) return;
    this.#erasePrompt();
    this.#reader.setPrompt(prompt);
    this.#redraw();
  }

  /** Ctrl-C: first it clears the line that is being typed. */
  #interrupt(): void {
    const reader = this.#reader;
    if (reader?.line === "") return this.#lineReaders.at(-1)?.interrupt();
    reader?.write(null, { ctrl: true, name: "e" });
    reader?.write(null, { ctrl: true, name: "u" });
  }

  #complete(line: string): [string[], string] {
    const words = this.#lineReaders.at(-1)?.complete?.(line) ?? [];
    return [words.map((word) => `${word} `), /\S*$/.exec(line)![0]];
  }

  /** In raw mode Ctrl-Z is only a key. So we do what the terminal would do: stop the whole job. */
  #suspend = (): void => {
    process.stdin.setRawMode(false);
    process.off("SIGTSTP", this.#suspend);
    // 0 is our process group (kill(2)). The `bun` of `bun run` belongs to it, and the shell waits for that.
    process.kill(0, "SIGTSTP");
    // If no shell could continue the group, it is not stopped (POSIX.1-2017 §2.4.3). Then we just go on.
    setTimeout(this.#resume, resumeMs);
  };

  /** The shell has given the terminal back in its own mode. If we are in the background, this stops us (SIGTTOU). */
  #resume = (): void => {
    if (!this.#reader || performance.now() - this.#resumedAt < resumeMs) return;
    process.off("SIGTSTP", this.#suspend).on("SIGTSTP", this.#suspend);
    process.stdin.setRawMode(false);
    process.stdin.setRawMode(true);
    this.#forgetRows();
    this.#reader.prompt(true);
    this.#resumedAt = performance.now();
  };

  /** Writes something above the line that is being typed. */
  #aroundPrompt(write: () => void, isLast: boolean): void {
    this.#erasePrompt();
    write();
    if (isLast) this.#redraw();
  }

  #redraw(): void {
    this.#isDrawn = true;
    const width = (process.stderr.columns || 80) - 1;
    for (const line of this.#status) process.stderr.write(`${shorten(line, width)}\n`);
    this.#statusRows = this.#status.length;
    this.#reader?.prompt(true);
  }

  #erasePrompt(): void {
    if (!this.#isDrawn || (!this.#reader && this.#statusRows === 0)) return;
    this.#isDrawn = false;
    process.stderr.moveCursor(0, -(this.#reader?.getCursorPos().rows ?? 0) - this.#statusRows);
    process.stderr.cursorTo(0);
    process.stderr.clearScreenDown();
    this.#statusRows = 0;
    if (this.#reader) this.#forgetRows();
  }

  /**
   * `prevRows` is where the cursor was. It is public in Node and Bun, but has no type. If it stayed, the prompt would be
   * drawn so many rows higher, over the text that was printed meanwhile.
   */
  #forgetRows(): void {
    (this.#reader as { prevRows?: number }).prevRows = 0;
  }
}

// --- the program -----------------------------------------------------------------------------------------

/**
 * Runs a program and ends it by an exit code: 0 done, 1 failed, 2 wrong usage. Errors of the classes in `expected` are
 * printed by their message. Any other error is a bug, and shows where it happened.
 */
export async function runProgram(
  main: (terminal: Terminal) => Promise<number>,
  expected: (new (message: string) => Error)[],
): Promise<never> {
  const terminal = new Terminal();
  let code: number;
  try {
    code = await main(terminal);
  } catch (error) {
    terminal.close();
    const isUsage = error instanceof UsageError;
    if (!isUsage && !expected.some((kind) => error instanceof kind)) throw error;
    terminal.error(`${(error as Error).message}${isUsage ? "; see --help" : ""}`);
    code = isUsage ? 2 : 1;
  }
  await terminal.end();
  process.exit(terminal.isBroken ? 1 : code);
}
