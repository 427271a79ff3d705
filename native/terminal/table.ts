/**
 * Tables: small ones by cli-table3, and long ones by our own padding, in slices. JSON lines for programs, long ones in
 * slices, too. Pure but for the clock. For native/terminal/.
 */
import { jsonLine, shorten, wrap } from "./text.ts";
import { stamps } from "../shares/clock.ts";
import { byTurns } from "../shares/turns.ts";

/** From this width on a table has one line for each row. */
export const wideColumns = 120;

/** cli-table3's names for the parts of a border. */
const borderNames =
  "top top-mid top-left top-right bottom bottom-mid bottom-left bottom-right left left-mid mid mid-mid right right-mid middle";
const noBorders = Object.fromEntries(borderNames.split(" ").map((place) => [place, ""]));
const tableModule = () => require("cli-table3") as typeof import("cli-table3");

/** A part of a cell. It begins on a new line. */
export interface Part {
  text: string;
  paint?: (text: string) => string;
}

export type Cell = (string | Part)[];

export interface Column {
  head: string;
  /** How narrow the column can be made; undefined: as wide as its contents. */
  least?: number;
  /** Whether what does not fit is cut (`…`). Else it goes on in the next line. */
  isCut?: boolean;
  /** Columns with such a number are left out if they do not fit; the highest number first. */
  optional?: number;
}

const partOf = (part: string | Part): Part => (typeof part === "string" ? { text: part } : part);

/** How wide a cell is by itself. */
function naturalWidth(cell: Cell): number {
  let widest = 0;
  for (const part of cell) widest = Math.max(widest, Bun.stringWidth(partOf(part).text));
  return widest;
}

/** The width that each column gets; 0 if it is left out. Undefined if they do not fit beside each other. */
function fitWidths(columns: Column[], natural: number[], width: number): number[] | undefined {
  const widths = [...natural];
  const excess = (all: number[]) =>
    all.reduce((sum, one) => sum + one, 0) + all.filter(Boolean).length - 1 - width;
  const squeezed = () =>
    widths.map((one, index) => (one === 0 ? 0 : Math.min(one, columns[index]!.least ?? one)));
  const ranks = columns.map(({ optional }) => optional ?? 0);
  for (let rank = Math.max(...ranks); rank > 0 && excess(widths) > 0; rank--) widths[ranks.indexOf(rank)] = 0;
  const least = squeezed();
  while (excess(widths) > 0) {
    const room = widths.map((one, index) => (one > least[index]! ? one : 0));
    const widest = Math.max(...room);
    if (widest === 0) return undefined;
    widths[room.indexOf(widest)]!--;
  }
  return widths;
}

/** The lines of a cell in so many columns. */
function fitCell({ isCut }: Column, cell: Cell, width: number): string[] {
  return cell
    .map(partOf)
    .flatMap(({ text, paint = String }) =>
      (isCut ? [shorten(text, width)] : wrap(text, width)).map((line) => paint(line)),
    );
}

/** A row where the columns do not fit beside each other: a line for each part of a cell. */
function recordOf(columns: Column[], cells: Cell[], width: number): string {
  const lines = cells.flatMap((cell, at) => {
    const { head } = columns[at]!;
    const label = head === "" || head.includes("\n") ? "" : `${head} `;
    const pieces = cell.map(partOf).flatMap(({ text, paint = String }, index) => {
      const first = at === 0 || index > 0 ? "" : label;
      if (text === "") return [];
      return wrap(first + text, Math.max(2, width - 2)).map((line, row) =>
        row === 0 ? first + paint(line.slice(first.length)) : paint(line),
      );
    });
    return pieces.map((line) => (at === 0 ? line : `  ${line}`));
  });
  return lines.map((line) => `${line}\n`).join("");
}

const headOf = ({ head }: Column): Cell => head.split("\n");

/** A small table without borders, at most `width` columns wide if its columns can be. With Infinity nothing is cut. */
export function renderTable(columns: Column[], rows: Cell[][], width: number): string {
  const natural = columns.map((column, index) =>
    Math.max(naturalWidth(headOf(column)), ...rows.map((row) => naturalWidth(row[index]!))),
  );
  const widths = fitWidths(columns, natural, width);
  if (!widths)
    return rows
      .map((row) => recordOf(columns, row, width))
      .join("")
      .trimEnd();
  const isShown = (_: unknown, index: number) => widths[index]! > 0;
  const Table = tableModule();
  const table = new Table({
    head: columns.filter(isShown).map(({ head }) => head),
    colWidths: widths.filter(isShown).map((one) => one + 1),
    chars: noBorders,
    style: { head: [], border: [], "padding-left": 0, "padding-right": 1 },
  });
  for (const row of rows)
    table.push(
      row.map((cell, index) => fitCell(columns[index]!, cell, widths[index]!).join("\n")).filter(isShown),
    );
  return table.toString().replace(/ +$/gm, "");
}

/** The lines of one row, each with its line end. */
function padRow(columns: Column[], cells: Cell[], widths: number[]): string {
  const shown = widths.flatMap((width, index) =>
    width > 0 ? [{ width, lines: fitCell(columns[index]!, cells[index]!, width) }] : [],
  );
  const height = Math.max(...shown.map(({ lines }) => lines.length));
  let text = "";
  for (let at = 0; at < height; at++) {
    let line = "";
    for (const { width, lines } of shown) {
      const { [at]: part = "" } = lines;
      line += part + " ".repeat(Math.max(0, width + 1 - Bun.stringWidth(part)));
    }
    text += `${line.replace(/ +$/, "")}\n`;
  }
  return text;
}

/**
 * The same for any number of rows: the lines as pieces. It is made in slices, so that everything else goes on. Not by
 * cli-table3, which took 77 s for 20,000 rows.
 */
export async function renderRows<T>(
  columns: Column[],
  all: readonly T[],
  cellsOf: (one: T) => Cell[],
  width: number,
): Promise<string[]> {
  const heads = columns.map(headOf);
  const natural = heads.map(naturalWidth);
  await byTurns(all, (one) => {
    for (const [index, cell] of cellsOf(one).entries())
      natural[index] = Math.max(natural[index]!, naturalWidth(cell));
  });
  const widths = fitWidths(columns, natural, width);
  if (!widths) {
    const records = [""];
    await byTurns(all, (one) => void records.push(recordOf(columns, cellsOf(one), width)));
    return records;
  }
  const uncut = columns.map((column) => ({ ...column, isCut: false }));
  const pieces = [padRow(uncut, heads, widths)];
  await byTurns(all, (one) => void pieces.push(padRow(columns, cellsOf(one), widths)));
  return pieces;
}

/** One JSON line, with the time: ms since the epoch, so that events of several programs can be compared. */
export function timed(event: object): string {
  return jsonLine({ ...event, at: stamps.now });
}

/** One JSON line with the time, and a long list in one field. In pieces, made in slices. */
export async function jsonPieces(event: object, field: string, list: readonly object[]): Promise<string[]> {
  const pieces = [jsonLine(event).replace(/\}$/, `,${JSON.stringify(field)}:[`)];
  await byTurns(list, (one) => void pieces.push(pieces.length > 1 ? "," : "", jsonLine(one)));
  return [...pieces, `],"at":${stamps.now}}`];
}
