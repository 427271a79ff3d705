/**
 * What was typed at a prompt in earlier runs. Owns one file for each program, in the state folder. Only its user can read
 * it. No words of a room are in it, since those are never typed at the prompt. A file that can't be read or written is no
 * problem: then nothing is remembered. For native/terminal/line-editor.ts.
 */
import {
  appendFileSync,
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { stateFolderOrNone } from "../secure/identity.ts";

/** So many lines are remembered. The file is cut to that when it is read. */
const maxLines = 1000;
const maxFileBytes = 4 * 1024 * 1024;

/** Runs `use` on the open file, and closes it. Undefined if that fails. */
function withFile<T>(file: string | undefined, flags: number, use: (fd: number) => T): T | undefined {
  if (file === undefined) return undefined;
  let fd: number | undefined;
  try {
    // O_NOFOLLOW: a link may lead to a file that somebody else reads. O_NONBLOCK: opening a FIFO would wait.
    const { O_NOFOLLOW = 0, O_NONBLOCK = 0 } = constants;
    fd = openSync(file, flags | O_NOFOLLOW | O_NONBLOCK, 0o600);
    if (!fstatSync(fd).isFile()) return undefined;
    return use(fd);
  } catch {
    return undefined;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

export class History {
  /** Undefined if there is no place for it. */
  readonly #file: string | undefined;
  /** The newest first; no line twice. */
  #lines: string[] = [];

  constructor(program: string, folder = stateFolderOrNone()) {
    this.#file = folder && join(folder, `${program}-history`);
    const text = withFile(this.#file, constants.O_RDONLY, (fd) =>
      fstatSync(fd).size > maxFileBytes ? "" : readFileSync(fd, "utf8"),
    );
    const all = (text ?? "").split("\n").filter(Boolean);
    for (const line of all.slice(-maxLines)) this.#add(line);
    if (all.length > 2 * maxLines) this.#cut();
  }

  get lines(): readonly string[] {
    return this.#lines;
  }

  /** Remembers a line, unless it begins with a blank. */
  add(line: string): void {
    if (line.startsWith(" ") || line === this.#lines[0]) return;
    this.#add(line);
    if (this.#file === undefined) return;
    try {
      mkdirSync(join(this.#file, ".."), { recursive: true, mode: 0o700 });
    } catch {
      return;
    }
    const { O_WRONLY, O_APPEND, O_CREAT } = constants;
    withFile(this.#file, O_WRONLY | O_APPEND | O_CREAT, (fd) => appendFileSync(fd, `${line}\n`));
  }

  #add(line: string): void {
    this.#lines = [line, ...this.#lines.filter((one) => one !== line)].slice(0, maxLines);
  }

  #cut(): void {
    const { O_WRONLY, O_TRUNC } = constants;
    withFile(this.#file, O_WRONLY | O_TRUNC, (fd) =>
      writeFileSync(fd, `${this.#lines.toReversed().join("\n")}\n`),
    );
  }
}
