/**
 * Text for people: colours, width, wrapping, numbers with their units. Pure. For native/terminal/ and both programs.
 */
import type picocolors from "picocolors";
import { printable } from "../../protocol.ts";

/**
 * When picocolors loads, it looks at `process.stdout`, unless colours are switched off. And using that keeps a duplicate of
 * descriptor 1 that can't be closed: the reader of a pipe would never see its end.
 */
function colorsModule(): typeof picocolors {
  const before = process.env["NO_COLOR"];
  process.env["NO_COLOR"] = "1";
  const module = require("picocolors") as typeof picocolors;
  if (before === undefined) delete process.env["NO_COLOR"];
  else process.env["NO_COLOR"] = before;
  return module;
}

export { bytes } from "../shares/sizes.ts";

export type Colors = ReturnType<typeof picocolors.createColors>;

/** Colours on a terminal only, and not if NO_COLOR is set (no-color.org). */
export function colorsFor(stream: { isTTY?: boolean }): Colors {
  const isWanted = !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb";
  return colorsIf(stream.isTTY === true && isWanted);
}

/** The same for a reader who has said whether he wants any. */
export function colorsIf(isWanted: boolean): Colors {
  return colorsModule().createColors(isWanted);
}

let graphemes: Intl.Segmenter | undefined;

/** Cuts a text into lines of at most `width` columns. What looks like one character is not cut. */
export function wrap(text: string, width: number): string[] {
  if (Bun.stringWidth(text) <= width) return [text];
  const lines = [""];
  graphemes ??= new Intl.Segmenter(undefined, { granularity: "grapheme" });
  for (const { segment } of graphemes.segment(text)) {
    if (Bun.stringWidth(lines.at(-1)! + segment) > width) lines.push("");
    lines[lines.length - 1] += segment;
  }
  return lines;
}

/** Where a text that begins in the first column ends, on a screen so wide. A wide character that does not fit is wrapped. */
export function cursorPosition(text: string, columns: number): { cols: number; rows: number } {
  graphemes ??= new Intl.Segmenter(undefined, { granularity: "grapheme" });
  let [rows, cols] = [0, 0];
  for (const { segment } of graphemes.segment(Bun.stripANSI(text))) {
    const width = Bun.stringWidth(segment);
    if (segment === "\n" || cols + width > columns) (rows++, (cols = 0));
    if (segment !== "\n") cols += width;
  }
  if (cols < columns) return { cols, rows };
  return { cols: 0, rows: rows + 1 };
}

/** A text of at most `width` columns, with `…` if it was longer. */
export function shorten(text: string, width: number): string {
  return Bun.stringWidth(text) <= width ? text : `${wrap(text, width - 1)[0]}…`;
}

/** `1 peer`, `2 peers`. */
export function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

/** A line, or the beginning and the end of one: only the beginning is cut where there is too little room. */
export type Line = string | readonly [string, string];

export function fitting(line: Line, width: number): string {
  if (typeof line === "string") return shorten(line, width);
  const [name, rest] = line;
  return shorten(shorten(name, Math.max(2, width - Bun.stringWidth(rest))) + rest, width);
}

/** `40.1 ms`, `46.2 s`. */
export const ms = (value: number) =>
  value < 1000 ? `${value.toFixed(1)} ms` : `${(value / 1000).toFixed(1)} s`;

/** One JSON line for programs, in which nothing is left that a terminal would obey. */
export function jsonLine(event: object): string {
  const escape = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(event).replace(/[\p{C}\u2028\u2029]/gu, (char) =>
    char.split("").map(escape).join(""),
  );
}

/** `42s`, `7m`, `3h`, `2d`. */
export function age(milliseconds: number): string {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)}h` : `${Math.floor(seconds / 86_400)}d`;
}

/** A peer's name, which a user may have left out. */
export const named = (name: string): string => printable(name) || "whoever is here";
