/**
 * What a terminal sends, on its way to the line that is being typed. A text that is pasted becomes part of that one line: no
 * line of it runs by itself. Ctrl-R searches what was typed before. For native/terminal/line-editor.ts.
 *
 * Bracketed paste: XTerm Control Sequences, "Bracketed Paste Mode" (`CSI ? 2004 h`).
 */
import { Transform, type TransformCallback } from "node:stream";
import { StringDecoder } from "node:string_decoder";

const pasteStart = "\x1b[200~";
const pasteEnd = "\x1b[201~";
/** A key that begins like a mark is held so long. Then it was a key. */
const heldMs = 50;

const ctrlR = "\x12";
const backspace = "\x7f";
/** Ctrl-C and Ctrl-G: the line is as it was before the search. */
const giveUpKeys = "\x03\x07";

/** The line that is being typed, as a search sees it. */
export interface Searched {
  /** The newest first. */
  readonly history: readonly string[];
  /** What is typed now. */
  readonly line: string;
  /** Draws that line in place of it, behind a prompt; without one, behind the usual prompt. */
  show(line: string, prompt?: string): void;
}

/** A search under way: what was typed before it, what is looked for, and where in the history it is. */
interface Search {
  readonly before: string;
  query: string;
  at: number;
}

/** So much of the end of a text may be the beginning of a mark. */
function heldLength(text: string, mark: string): number {
  for (let length = Math.min(mark.length - 1, text.length); length > 0; length--)
    if (mark.startsWith(text.slice(-length))) return length;
  return 0;
}

/** Pasted text as part of one line. Line ends become blanks; other control characters go. */
export function pasted(text: string): string {
  return text.replace(/[\t\r\n]+/g, " ").replace(/[\x00-\x1f\x7f-\x9f]/g, "");
}

/** Keys in, keys out. It stands for the terminal, so it can set its mode. */
export class Keys extends Transform {
  readonly isTTY = true;
  readonly #line: Searched;
  readonly #decoder = new StringDecoder("utf8");
  #isPasting = false;
  /** The end of a paste so far is a line end, which counts only if more follows: who copies a line often has it. */
  #held = "";
  #timer: NodeJS.Timeout | undefined;
  #search: Search | undefined;

  constructor(line: Searched) {
    super();
    this.#line = line;
  }

  setRawMode(isRaw: boolean): this {
    process.stdin.setRawMode(isRaw);
    return this;
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    clearTimeout(this.#timer);
    let text = this.#held + this.#decoder.write(chunk);
    this.#held = "";
    while (text !== "") text = this.#isPasting ? this.#paste(text) : this.#type(text);
    if (this.#held !== "" && !this.#isPasting) this.#timer = setTimeout(() => this.#release(), heldMs);
    done();
  }

  override _flush(done: TransformCallback): void {
    clearTimeout(this.#timer);
    if (!this.#isPasting) this.#release();
    done();
  }

  /** What was held is a key. */
  #release(): void {
    const held = this.#held;
    this.#held = "";
    this.#pass(held);
  }

  /** What is typed, up to a paste. Returns the rest. */
  #type(text: string): string {
    const start = text.indexOf(pasteStart);
    const held = start < 0 ? heldLength(text, pasteStart) : 0;
    this.#held = text.slice(text.length - held);
    this.#pass(start < 0 ? text.slice(0, text.length - held) : text.slice(0, start));
    if (start < 0) return "";
    this.#isPasting = true;
    return text.slice(start + pasteStart.length);
  }

  /** What is pasted, up to its end. Returns the rest. */
  #paste(text: string): string {
    const end = text.indexOf(pasteEnd);
    const whole = end < 0 ? text.slice(0, text.length - heldLength(text, pasteEnd)) : text.slice(0, end);
    const shown = whole.replace(/[\r\n]+$/, "");
    this.#pass(pasted(shown));
    if (end < 0) this.#held = text.slice(shown.length);
    else this.#isPasting = false;
    return end < 0 ? "" : text.slice(end + pasteEnd.length);
  }

  #pass(keys: string): void {
    if (keys === "") return;
    if (!this.#search && !keys.includes(ctrlR)) return void this.push(keys);
    const typed = [...keys];
    for (const [index, key] of typed.entries()) {
      if (!this.#search && key !== ctrlR) this.push(key);
      else if (!this.#find(key)) return void this.push(typed.slice(index).join(""));
    }
  }

  /** One key of a search. Returns whether the search took it. If not, it is over, and the line stays. */
  #find(key: string): boolean {
    const search = (this.#search ??= { before: this.#line.line, query: "", at: -1 });
    if (giveUpKeys.includes(key)) return this.#endSearch(search.before);
    if (key < " " && key !== ctrlR) return !this.#endSearch(this.#line.line);
    if (key === backspace) search.query = [...search.query].slice(0, -1).join("");
    else if (key !== ctrlR) search.query += key;
    if (key !== ctrlR) search.at = -1;
    const { history } = this.#line;
    const found = history.findIndex((line, at) => at > search.at && line.includes(search.query));
    if (found >= 0 && search.query !== "") search.at = found;
    const isFound = search.query === "" || found >= 0 || search.at >= 0;
    this.#line.show(history[search.at] ?? "", `(search${isFound ? "" : ": nothing"}) ${search.query}: `);
    return true;
  }

  #endSearch(line: string): true {
    this.#search = undefined;
    this.#line.show(line);
    return true;
  }
}
