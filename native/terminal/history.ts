/**
 * What was typed at a prompt in earlier runs. Owns one file for each program, in the state folder. Only its user can read
 * it. No words of a room are in it, since those are never typed at the prompt. A file that can't be read or written is no
 * problem: then nothing is remembered. For native/terminal/line-editor.ts.
 */
import { orNone, StateFile, stateFolderOrNone } from "../host/state.ts";

/** So many lines are remembered. The file is cut to that when it is read. */
const maxLines = 1000;
const maxFileBytes = 4 * 1024 * 1024;

export class History {
  /** Undefined if there is no place for it. */
  readonly #file: StateFile | undefined;
  /** The newest first; no line twice. */
  #lines: string[] = [];

  constructor(program: string, folder = stateFolderOrNone()) {
    this.#file = folder === undefined ? undefined : new StateFile(folder, `${program}-history`, maxFileBytes);
    const text = orNone(() => this.#file?.read());
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
    orNone(() => this.#file?.append(`${line}\n`));
  }

  #add(line: string): void {
    this.#lines = [line, ...this.#lines.filter((one) => one !== line)].slice(0, maxLines);
  }

  #cut(): void {
    orNone(() => this.#file?.replace(`${this.#lines.toReversed().join("\n")}\n`));
  }
}
