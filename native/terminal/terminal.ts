/**
 * The terminal: questions and commands that are typed, results, and the story. Owns standard input, output and error of the
 * program. It knows no command, no peer and no protocol. For native/terminal/ and both programs.
 */
import { isatty } from "node:tty";
import { printable, HolePunchError, UserError } from "../../protocol.ts";
import { UsageError } from "./command-line.ts";
import type { History } from "./history.ts";
import { LineEditor, type LineReader, readlineModule } from "./line-editor.ts";
import { Output } from "./output.ts";
import { type Colors, colorsFor, count, type Line } from "./text.ts";

/** How long a program that was told to end waits for a reader that does not read. */
const endWaitMs = 1000;
/** A second Ctrl-C within this time ends the program. */
const secondInterruptMs = 2000;

export interface Conversation {
  prompt: string;
  history: History;
  /** Takes a line. Returns whether it was the last one. */
  onLine(line: string): boolean | Promise<boolean>;
  /** What the end of the line may become, and how much of it was typed. */
  complete(line: string): { words: string[]; typed: string };
  /** Why a second Ctrl-C is needed to end; undefined if one is enough. */
  reasonToStay(): string | undefined;
}

const writeErrors: Record<string, string> = {
  EPIPE: "whoever read it is gone",
  ENOSPC: "no space is left on the disk",
  EBADF: "it is closed",
};

/** Where both programs read and write. Results go to standard output, the story to standard error. */
export class Terminal {
  /** Whether somebody types and reads. Also false where programs read (--json): no prompt is mixed in. */
  // By the descriptor: making `process.stdin` takes longer than all the rest of this.
  isInteractive = isatty(0) && isatty(2);
  readonly storyColors = colorsFor({ isTTY: isatty(2) });
  /** Resolves once standard output can't be written any more. */
  readonly broken: Promise<void>;
  isBroken = false;
  /** Whether the story is not printed (--quiet). */
  isQuiet = false;
  /** Made when it is first written to: with `--pipe` standard output belongs to the pipe. */
  #out: Output | undefined;
  readonly #err: Output;
  readonly #editor = new LineEditor();
  readonly #broken = Promise.withResolvers<void>();
  readonly #hurried = Promise.withResolvers<void>();

  constructor() {
    this.broken = this.#broken.promise;
    this.#err = new Output(
      2,
      (write, isLast) => this.#editor.around(write, isLast),
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
      1,
      (write, isLast) => this.#editor.around(write, isLast),
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

  /** Resolves once all results have been read: whoever makes many waits for it, and none is dropped. */
  async whenRead(): Promise<void> {
    await this.#out?.whenRead();
  }

  /** Draws lines that stay just above the prompt, in place of those before. Only on a terminal. */
  status(lines: readonly Line[]): void {
    if (!this.isQuiet) this.#editor.status(lines);
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
    const asking: LineReader = {
      prompt: question,
      line: (text) => {
        const value = read(text.trim());
        if (value !== undefined) resolve(value);
      },
      interrupt: giveUp,
      end: giveUp,
    };
    this.#editor.push(asking);
    return promise.finally(() => this.#editor.remove(asking));
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
  async converse({ prompt, history, onLine, complete, reasonToStay }: Conversation): Promise<void> {
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
    this.#editor.push({
      prompt,
      history,
      line: (text) => void line(text).catch(reject),
      interrupt,
      end: resolve,
      complete,
    });
    await promise.finally(() => this.close());
  }

  /** The lines of standard input, if it is no terminal. Throws a {@link UserError} if there is none to read. */
  lines(): AsyncIterable<string> {
    try {
      process.stdin.on("error", () => {}); // its end follows
      return readlineModule().createInterface({ input: process.stdin });
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      throw new UserError(`cannot read standard input: ${code === "EISDIR" ? "it is a folder" : message}`);
    }
  }

  /** Gives the terminal back: without a prompt, and in its former mode. */
  close(): void {
    this.#editor.close();
  }

  /** The program was told to end: from now on it waits at most a second for a reader that does not read. */
  hurry(): void {
    setTimeout(() => this.#hurried.resolve(), endWaitMs);
  }

  /** The last thing that a program does. It waits for whoever reads its output. */
  async end(): Promise<void> {
    this.close();
    await this.#out?.end(this.#hurried.promise);
    if (this.isBroken) this.#hurried.resolve();
    await this.#err.end(this.#hurried.promise);
  }
}

// --- the program -----------------------------------------------------------------------------------------

/**
 * Runs a program and ends it by an exit code: 0 done, 1 failed, 2 wrong usage. A {@link HolePunchError} is
 * printed by its message. Any other error is a bug, and shows where it happened.
 */
export async function runProgram(main: (terminal: Terminal) => Promise<number>): Promise<never> {
  const terminal = new Terminal();
  let code: number;
  try {
    code = await main(terminal);
  } catch (error) {
    terminal.close();
    const isUsage = error instanceof UsageError;
    if (!isUsage && !(error instanceof HolePunchError)) throw error;
    terminal.error(`${error.message}${isUsage ? "; see --help" : ""}`);
    code = isUsage ? 2 : 1;
  }
  await terminal.end();
  process.exit(terminal.isBroken ? 1 : code);
}
