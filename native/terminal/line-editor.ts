/**
 * The bottom of a terminal: what is under way, and the line that is being typed. Owns the mode of the terminal, and gives it
 * back, whatever ends the program. It knows no command, no peer and no protocol. For native/terminal/terminal.ts.
 *
 * POSIX.1-2017 §11.1.4 (job control: who may read from and write to the terminal, and what stops whom).
 */
import type * as readline from "node:readline";
import { isatty } from "node:tty";
import type { History } from "./history.ts";
import type * as keys from "./keys.ts";
import { cursorPosition, fitting, type Line } from "./text.ts";

/** After a stop we go on by SIGCONT; if there was no stop, after this time. If both come, we go on once. */
const resumeMs = 100;

/** The terminal marks what is pasted, from now on; and no more. XTerm Control Sequences, "Bracketed Paste Mode". */
const bracketPastes = "\x1b[?2004h";
const unbracketPastes = "\x1b[?2004l";

/** Signals that end a program at once. A terminal in raw mode would stay so. */
const endingSignals = [
  ...(["SIGHUP", "SIGQUIT", "SIGABRT", "SIGUSR1", "SIGUSR2"] as const),
  ...(["SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGXFSZ", "SIGIO"] as const),
];

// Loaded when they are first needed: most starts need no prompt.
export const readlineModule = () => require("node:readline") as typeof readline;
const keysModule = () => require("./keys.ts") as typeof keys;

/** Gets the lines that are typed. */
export interface LineReader {
  prompt: string;
  line(text: string): void;
  /** Ctrl-C on an empty line. */
  interrupt(): void;
  /** Ctrl-D, or the end of the input. */
  end(): void;
  /** What the end of the line may become, and how much of it was typed. */
  complete?(line: string): { words: string[]; typed: string };
  /** What was typed before; undefined: an answer, which is not remembered. */
  history?: History;
}

/** These are public in Node and Bun, but have no types. */
interface Inside {
  /** The row of the cursor. If it stayed as it was, the prompt would be drawn so many rows higher, over other text. */
  prevRows: number;
  line: string;
  cursor: number;
  /** The newest first. */
  history: string[];
}

export class LineEditor {
  #reader: (readline.Interface & Inside) | undefined;
  #keys: keys.Keys | undefined;
  /** The last one gets the lines: a question comes before the commands. */
  readonly #lineReaders: LineReader[] = [];
  /** Lines between the story and the prompt: what is under way. */
  #status: readonly Line[] = [];
  /** How wide each of those lines was drawn. */
  #drawnStatus: number[] = [];
  /** Whether status and prompt are drawn now. */
  #isDrawn = false;
  #resumedAt = -Infinity;
  readonly #hasScreen = isatty(2);

  /** From now on this one gets the lines. */
  push(reader: LineReader): void {
    this.#lineReaders.push(reader);
    if (this.#reader) this.#showPrompt();
    else this.#open();
  }

  /** From now on the one before it gets the lines; without one the terminal is given back. */
  remove(reader: LineReader): void {
    const index = this.#lineReaders.indexOf(reader);
    if (index >= 0) this.#lineReaders.splice(index, 1);
    if (this.#lineReaders.length > 0) this.#showPrompt();
    else this.close();
  }

  /** Draws lines that stay just above the prompt, in place of those before. */
  status(lines: readonly Line[]): void {
    this.#status = lines;
    if (!this.#hasScreen || (lines.length === 0 && this.#drawnStatus.length === 0)) return;
    this.#erase();
    this.#redraw();
  }

  /** Writes something above the line that is being typed. */
  around(write: () => void, isLast: boolean): void {
    // Without a terminal nothing is drawn, and `process.stderr` is not to be touched: it makes a pipe non-blocking.
    if (!this.#hasScreen) return write();
    this.#erase();
    write();
    if (isLast) this.#redraw();
  }

  /** Gives the terminal back: without a prompt, and in its former mode. */
  close(): void {
    const reader = this.#reader;
    if (!reader) return;
    this.#erase();
    this.#reader = undefined;
    this.#lineReaders.length = 0;
    process.off("SIGCONT", this.#resume);
    process.off("SIGTSTP", this.#suspend);
    for (const signal of endingSignals) process.off(signal, this.#endBy);
    process.stderr.off("resize", this.#resize);
    reader.close();
    process.stdin.unpipe(this.#keys);
    process.stdin.pause();
    process.stderr.write(unbracketPastes);
  }

  #open(): void {
    process.stdin.on("error", () => {}); // if the terminal is gone, the end follows
    this.#keys = new (keysModule().Keys)(this.#searched());
    process.stdin.pipe(this.#keys);
    const reader = readlineModule().createInterface({
      input: this.#keys,
      output: process.stderr,
      completer: (line: string) => this.#complete(line),
    }) as readline.Interface & Inside;
    this.#reader = reader;
    measureByGraphemes(reader);
    reader.on("error", () => {}); // it repeats the errors of its input
    reader.on("line", (text) => this.#line(text));
    // What is under way does not stay above a line that has been entered.
    this.#keys.prependListener("keypress", (_, { name }: readline.Key) => {
      if (name === "return" || name === "enter") this.#drawWithoutStatus();
    });
    reader.on("SIGINT", () => this.#interrupt());
    reader.on("close", () => {
      // The terminal is gone. Its SIGHUP may come later than the end of the input; it counts all the same.
      if (this.#reader && !isatty(0) && process.listeners("SIGHUP").includes(this.#endBy))
        return this.#endBy("SIGHUP");
      for (const one of this.#lineReaders.toReversed()) one.end();
    });
    reader.on("SIGTSTP", this.#suspend);
    process.on("SIGTSTP", this.#suspend);
    process.on("SIGCONT", this.#resume);
    for (const signal of endingSignals)
      if (process.listenerCount(signal) === 0) process.on(signal, this.#endBy);
    process.stderr.prependListener("resize", this.#resize);
    process.stderr.write(bracketPastes);
    this.#showPrompt();
  }

  #line(text: string): void {
    const reader = this.#lineReaders.at(-1);
    if (text.trim() !== "") reader?.history?.add(text);
    reader?.line(text);
    this.#showPrompt();
  }

  #showPrompt(): void {
    const current = this.#lineReaders.at(-1);
    if (!current || !this.#reader) return;
    this.#erase();
    this.#reader.setPrompt(current.prompt);
    this.#reader.history = [...(current.history?.lines ?? [])];
    this.#redraw();
  }

  /** What a search in the history needs of the line. */
  #searched(): keys.Searched {
    const editor = this;
    return {
      get history() {
        return editor.#reader?.history ?? [];
      },
      get line() {
        return editor.#reader?.line ?? "";
      },
      show: (line, prompt) => this.#show(line, prompt),
    };
  }

  #show(line: string, prompt = this.#lineReaders.at(-1)?.prompt ?? ""): void {
    if (!this.#reader) return;
    this.#erase();
    this.#reader.setPrompt(prompt);
    this.#reader.line = line;
    this.#reader.cursor = line.length;
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
    const { words, typed } = this.#lineReaders.at(-1)?.complete?.(line) ?? { words: [], typed: "" };
    return [words, typed];
  }

  /** In raw mode Ctrl-Z is only a key. So we do what the terminal would do: stop the whole job. */
  #suspend = (): void => {
    process.stdin.setRawMode(false);
    process.stderr.write(unbracketPastes);
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
    process.stderr.write(bracketPastes);
    this.#reader.prevRows = 0;
    this.#reader.prompt(true);
    this.#resumedAt = performance.now();
  };

  /** Ends the program as the signal would have done, after giving the terminal back. */
  #endBy = (signal: NodeJS.Signals): void => {
    this.close();
    process.kill(process.pid, signal);
  };

  /** The terminal has wrapped what is drawn anew, for its new width. */
  #resize = (): void => {
    this.#erase();
    // After this readline draws the line that is typed, and not what stands above it.
    setImmediate(() => {
      this.#isDrawn = this.#reader !== undefined;
      this.#redraw();
    });
  };

  #redraw(): void {
    if (this.#isDrawn) this.#erase();
    this.#isDrawn = true;
    const width = (process.stderr.columns || 80) - 1;
    const lines = this.#status.map((line) => fitting(line, width));
    for (const line of lines) process.stderr.write(`${line}\n`);
    this.#drawnStatus = lines.map((line) => Bun.stringWidth(line));
    this.#reader?.prompt(true);
  }

  #drawWithoutStatus(): void {
    if (this.#drawnStatus.length === 0) return;
    const status = this.#status;
    this.#status = [];
    this.#redraw();
    this.#status = status;
  }

  #erase(): void {
    if (!this.#isDrawn || (!this.#reader && this.#drawnStatus.length === 0)) return;
    this.#isDrawn = false;
    const columns = process.stderr.columns || 80;
    const statusRows = this.#drawnStatus.reduce(
      (sum, width) => sum + Math.max(1, Math.ceil(width / columns)),
      0,
    );
    process.stderr.moveCursor(0, -(this.#reader?.getCursorPos().rows ?? 0) - statusRows);
    process.stderr.cursorTo(0);
    process.stderr.clearScreenDown();
    this.#drawnStatus = [];
    if (this.#reader) this.#reader.prevRows = 0;
  }
}

/**
 * readline counts the columns of each code point. What looks like one character may have several, and a person sees the
 * cursor somewhere else. Both Node and Bun ask one method for the place of a text's end.
 */
function measureByGraphemes(reader: readline.Interface): void {
  const value = (text: string) => cursorPosition(text, process.stderr.columns || Infinity);
  for (let holder: object | null = reader; holder !== null; holder = Object.getPrototypeOf(holder)) {
    const key = Object.getOwnPropertySymbols(holder).find((one) => one.description === "_getDisplayPos");
    if (key) return void Object.defineProperty(reader, key, { value });
  }
}
