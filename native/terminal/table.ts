/**
 * Tables of few rows (cli-table3) and of many (padded by hand, by turns). Pure. For native/terminal/.
 */
import { jsonLine } from "../../protocol.ts";
import { byTurns } from "../shares/turns.ts";
import { shorten, wrap } from "./text.ts";

/** From this width on a table has one line a row. */
export const wideColumns = 120;

/** cli-table3's names of the places where a border could be. */
const borderNames =
  "top top-mid top-left top-right bottom bottom-mid bottom-left bottom-right left left-mid mid mid-mid right right-mid middle";
const noBorders = Object.fromEntries(borderNames.split(" ").map((place) => [place, ""]));
const tableModule = () => require("cli-table3") as typeof import("cli-table3");

/** A part of a cell that begins on a line of its own. */
export interface Part {
  text: string;
  paint?: (text: string) => string;
}

export type Cell = (string | Part)[];

export interface Column {
  head: string;
  /** How narrow it can be made; without it, it is as wide as what it holds. */
  least?: number;
  /** Whether what does not fit is cut (`…`); otherwise it goes on in the next line. */
  isCut?: boolean;
  /** Left out where it does not fit, the highest number first. */
  optional?: number;
}

const partOf = (part: string | Part): Part => (typeof part === "string" ? { text: part } : part);

/** How wide a cell is by itself. */
function naturalWidth(cell: Cell): number {
  let widest = 0;
  for (const part of cell) widest = Math.max(widest, Bun.stringWidth(partOf(part).text));
  return widest;
}

/** How wide each column gets of those that it would have; a column that is left out gets 0. */
function fitWidths(columns: Column[], natural: number[], width: number): number[] {
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
    if (widest === 0) break;
    widths[room.indexOf(widest)]!--;
  }
  return widths;
}

/** What a cell shows in so many columns: line by line. */
function fitCell({ isCut }: Column, cell: Cell, width: number): string[] {
  return cell
    .map(partOf)
    .flatMap(({ text, paint = String }) =>
      (isCut ? [shorten(text, width)] : wrap(text, width)).map((line) => paint(line)),
    );
}

const headOf = ({ head }: Column): Cell => head.split("\n");

/** A small table without borders, at most `width` columns wide where its columns can be made so; Infinity cuts nothing. */
export function renderTable(columns: Column[], rows: Cell[][], width: number): string {
  const natural = columns.map((column, index) =>
    Math.max(naturalWidth(headOf(column)), ...rows.map((row) => naturalWidth(row[index]!))),
  );
  const widths = fitWidths(columns, natural, width);
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

/** The lines of one row, each with its end. */
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
 * The same table of any number of rows, made by turns with all else the program does: its pieces, each with the end of
 * its line. cli-table3 takes a fifth of a millisecond for a row, and more the more there are: 20,000 took it 77 s.
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
  const uncut = columns.map((column) => ({ ...column, isCut: false }));
  const pieces = [padRow(uncut, heads, widths)];
  await byTurns(all, (one) => void pieces.push(padRow(columns, cellsOf(one), widths)));
  return pieces;
}

/** One JSON line with the time, in ms since the epoch, and a long list in one of its fields: in pieces, made by turns. */
export async function jsonPieces(event: object, field: string, list: readonly object[]): Promise<string[]> {
  const pieces = [jsonLine(event).replace(/\}$/, `,${JSON.stringify(field)}:[`)];
  await byTurns(list, (one) => void pieces.push(pieces.length > 1 ? "," : "", jsonLine(one)));
  return [...pieces, `],"at":${performance.timeOrigin + performance.now()}}`];
}
