/**
 * The terminal: the prompt above which text is printed, what waits for a reader of standard output, tables, colours,
 * and how a command line is read. It owns standard input, output and error of the program that runs.
 *
 * It knows no command, no peer and no protocol, and imports no FFI: introducer.ts needs none. Only the two programs
 * import it.
 *
 * POSIX.1-2017 §11.1.4 (job control: who may read from and write to the terminal, and what stops whom).
 */
import type * as readline from "node:readline";
import { isatty } from "node:tty";
import { printable } from "../../protocol.ts";
import { type Colors, colorsFor, count, shorten } from "./text.ts";
import { UsageError } from "./command-line.ts";

/** What waits for a reader who does not read, in characters: some ten thousand events. What comes then is dropped, and counted. */
const maxUnreadLength = 4 * 1024 * 1024;
/** What is written at once of a long text: a terminal has to show that much before we go on. */
const partLength = 8 * 1024;
/** How long the end of the program waits for that reader. */
const endWaitMs = 1000;
/** A second Ctrl-C means the end within this time. */
const secondInterruptMs = 2000;
/** After a stop we go on at once by SIGCONT, or after this time when there was no stop; once, when both are late. */
const resumeMs = 100;

// Loaded when first needed: most who start a program are after neither a prompt nor a table.
const readlineModule = () => require("node:readline") as typeof readline;

// --- types -----------------------------------------------------------------------------------------------

export interface Conversation {
  prompt: string;
  /** Whether this was the last line. */
  onLine(line: string): boolean | Promise<boolean>;
  /** Whole words that the last word of the line may become. */
  complete(line: string): string[];
  /** Why a second Ctrl-C is needed to end; undefined when it is not. */
  reasonToStay(): string | undefined;
}

/** Whoever gets the lines that are typed. */
interface LineReader {
  prompt: string;
  line(text: string): void;
  /** Ctrl-C on an empty line. */
  interrupt(): void;
  /** Ctrl-D, or the end of the input. */
  end(): void;
  complete?(line: string): string[];
}

// --- colours and text ------------------------------------------------------------------------------------

// --- tables ----------------------------------------------------------------------------------------------

// --- reading command lines -------------------------------------------------------------------------------

// --- output ----------------------------------------------------------------------------------------------

/**
 * One of the two output streams: what nobody reads is bounded, what can't be written is told once, and of a long text a
 * part is written in each turn.
 */
class Output {
  readonly #stream: NodeJS.WriteStream;
  readonly #draw: (write: () => void, isLast: boolean) => void;
  readonly #onError: (error: NodeJS.ErrnoException) => void;
  readonly #onDropped: (lines: number) => void;
  /** What comes next, from the first that is not written yet on. */
  #pieces: string[] = [];
  #next = 0;
  #unreadLength = 0;
  #dropped = 0;
  #isBroken = false;
  #read = Promise.withResolvers<void>();

  /** `draw` does the writing, with whatever has to be done before and after it. */
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

  /** All of it, or nothing where too much is unread; the pieces together are one text, in which no other comes between. */
  write(pieces: readonly string[]): void {
    if (this.#isBroken) return;
    if (this.#unreadLength > maxUnreadLength) {
      for (const piece of pieces) this.#dropped += piece.split("\n").length - 1;
      return;
    }
    const isFirst = this.#pieces.length === 0;
    for (const piece of pieces) {
      this.#unreadLength += piece.length; // to count bytes would take 20 ms for twenty thousand pieces
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

  /** Resolves once all has been read, but no later than `ms` from now. */
  async end(ms: number): Promise<void> {
    const timer = setTimeout(() => this.#read.resolve(), ms);
    if (this.#unreadLength > 0 && !this.#isBroken) await this.#read.promise;
    clearTimeout(timer);
    this.#tellDropped();
  }

  /** Called for the same error by the stream and by the write. */
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

/** Where both programs read and write: results on standard output, the story on standard error. */
export class Terminal {
  // Asked of the descriptor: to make `process.stdin` takes longer than all the rest of this.
  readonly isInteractive = isatty(0) && isatty(2);
  readonly storyColors = colorsFor(process.stderr);
  /** Resolves when standard output can't be written any more. */
  readonly broken: Promise<void>;
  isBroken = false;
  /** Whether the story is kept to oneself. */
  isQuiet = false;
  /** Made when it is first written to: with `--pipe` standard output is somebody else's. */
  #out: Output | undefined;
  readonly #err: Output;
  /** Lines below what is told, and above the prompt: what is under way. */
  #status: string[] = [];
  #statusRows = 0;
  /** Whether status and prompt are there, below what was written last. */
  #isDrawn = false;
  readonly #broken = Promise.withResolvers<void>();
  #reader: readline.Interface | undefined;
  #resumedAt = -Infinity;
  /** The last one is asked first: a question comes before the commands. */
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

  /** How wide a table on standard output may be: a pipe is as wide as it takes. */
  get width(): number {
    return isatty(1) ? process.stdout.columns || 80 : Infinity;
  }

  /** Prints what was asked for. */
  result(text: string): void {
    this.#results().write([`${text}\n`]);
  }

  /** The same in pieces, which together are one text: a part of it in each turn. */
  longResult(pieces: readonly string[]): void {
    this.#results().write(pieces.concat("\n"));
  }

  /** Draws lines that stay last, above the prompt, and replaces those of before; on a terminal only. */
  status(lines: string[]): void {
    if (this.isQuiet || !isatty(2) || (lines.length === 0 && this.#statusRows === 0)) return;
    this.#erasePrompt();
    this.#status = lines;
    this.#redraw();
  }

  /** Prints what happens meanwhile; of that, only a problem is worth telling who wants it quiet. */
  story(text: string, isProblem = false): void {
    if (isProblem || !this.isQuiet) this.#err.write([`${text}\n`]);
  }

  error(message: string): void {
    this.#err.write([`${this.storyColors.red("error")}: ${printable(message)}\n`]);
  }

  /**
   * Asks until `read` makes something of the answer; undefined when the user would rather not say (Ctrl-C, Ctrl-D).
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

  /** The same for an answer that is not shown as it is typed; before anything else is asked. */
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

  /** Reads commands until the user wants no more. */
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

  /** The lines of an input that is no terminal. */
  lines(): AsyncIterable<string> {
    process.stdin.on("error", () => {}); // its end follows
    return readlineModule().createInterface({ input: process.stdin });
  }

  /** Gives the terminal back: no prompt, and the mode it had. */
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

  /** The last thing a program does. Whoever does not read holds it up for a second. */
  async end(): Promise<void> {
    this.close();
    await this.#out?.end(endWaitMs);
    await this.#err.end(this.isBroken ? 0 : endWaitMs);
  }

  #open(): void {
    if (this.#reader) return this.#showPrompt();
    process.stdin.on("error", () => {}); // a terminal that is gone says so by its end too
    const reader = readlineModule().createInterface({
      input: process.stdin,
      output: process.stderr,
      completer: (line: string) => this.#complete(line),
    });
    this.#reader = reader;
    reader.on("error", () => {}); // which it says of its input, too
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

  /** Ctrl-C: first for the line that is being typed. */
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

  /** Ctrl-Z in raw mode is a key, so we do what the terminal would have done: stop all of the job. */
  #suspend = (): void => {
    process.stdin.setRawMode(false);
    process.off("SIGTSTP", this.#suspend);
    // 0 is our process group (kill(2)), to which the `bun` of `bun run` belongs: the shell waits for that one.
    process.kill(0, "SIGTSTP");
    // A group without a shell that could continue it is not stopped (POSIX.1-2017 §2.4.3): then we just go on.
    setTimeout(this.#resume, resumeMs);
  };

  /** The shell took the terminal and gave it back in its own mode. In the background this stops us (SIGTTOU). */
  #resume = (): void => {
    if (!this.#reader || performance.now() - this.#resumedAt < resumeMs) return;
    process.off("SIGTSTP", this.#suspend).on("SIGTSTP", this.#suspend);
    process.stdin.setRawMode(false);
    process.stdin.setRawMode(true);
    this.#forgetRows();
    this.#reader.prompt(true);
    this.#resumedAt = performance.now();
  };

  /** What is written comes above the line that is being typed. */
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
   * Untyped but public in Node and Bun: where the cursor was. Left as it is, drawing the prompt anew would begin that
   * many rows higher, over the text printed meanwhile.
   */
  #forgetRows(): void {
    (this.#reader as { prevRows?: number }).prevRows = 0;
  }
}

// --- the program -----------------------------------------------------------------------------------------

/**
 * Runs a program and ends it: 0 done, 1 failed, 2 wrong usage. Of the errors it throws, those in `expected` are told
 * as they are; another one is a mistake of ours and shows where it happened.
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
