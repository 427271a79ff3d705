/**
 * What `list` and `forwards` of a participant show. Pure. For native/terminal/ and participant.ts.
 */
import { stamps } from "../shares/clock.ts";
import type { ForwardRow } from "../uses/forwards.ts";
import { keptDays, type Unfinished } from "../uses/unfinished.ts";
import type { PeerRow } from "../participant/peer-events.ts";
import { byTurns } from "../shares/turns.ts";
import { type Cell, type Column, type Part, renderRows, renderTable, wideColumns } from "./table.ts";
import { type Colors, age, bytes, count, ms, named } from "./text.ts";
import { isHidden, printable } from "../../protocol.ts";

const stateLabels: Record<PeerRow["state"], (c: Colors) => (text: string) => string> = {
  linked: (c) => c.green,
  returning: (c) => c.yellow,
  untrusted: (c) => c.red,
  punching: (c) => c.yellow,
  agreeing: (c) => c.yellow,
  known: (c) => c.dim,
  failed: (c) => c.red,
};

const stateMarks: Record<PeerRow["state"], string> = {
  linked: "● linked",
  returning: "◌ coming back",
  punching: "◌ punching",
  agreeing: "◌ agreeing",
  known: "○ known",
  failed: "✗ failed",
  untrusted: "✗ untrusted",
};

/** Two lines or more for a peer: this fits into 80 columns. */
const narrowList: Column[] = [
  { head: "" },
  { head: "id", least: 5 },
  { head: "name", least: 10 },
  { head: "private endpoint\npublic endpoint", least: 21 },
  { head: "link", least: 24 },
];

/** One line for a peer. */
const wideList: Column[] = [
  { head: "" },
  { head: "id" },
  { head: "name", least: 12, isCut: true },
  { head: "private endpoint", optional: 4 },
  { head: "public endpoint" },
  { head: "link" },
  { head: "from", optional: 2 },
  { head: "to", optional: 1 },
  { head: "bytes", optional: 3 },
];

/**
 * The list in pieces, `columns` columns wide; it needs 80. With Infinity, for a pipe, nothing is cut or wrapped. It is
 * made in slices, so that everything else goes on.
 */
export async function renderList(rows: readonly PeerRow[], columns: number, c: Colors): Promise<string[]> {
  if (rows.length === 0)
    return ["Nobody else is in the room. Others join with the same introducer and --room."];
  const isWide = columns >= wideColumns;
  const cells = (row: PeerRow): Cell[] => [
    [{ text: stateMarks[row.state], paint: stateLabels[row.state](c) }],
    [row.present ? String(row.id) : "-"],
    [{ text: printable(row.name), paint: c.bold }],
    ...(isWide ? wideCells(row, columns, c) : narrowCells(row, c)),
  ];
  const pieces = await renderRows(isWide ? wideList : narrowList, rows, cells, columns);
  return [...pieces, total(rows)];
}

function narrowCells(row: PeerRow, c: Colors): Cell[] {
  const [first = "none", ...others] = row.private;
  const more = others.length > 0 ? [`+${others.length} more`] : [];
  const hosts = [first, ...more].map((text) => ({ text, paint: c.dim }));
  const path = row.state === "linked" ? [`${row.local}`, `→ ${row.remote}`] : [];
  const bytes = row.route === undefined ? [] : [traffic(row)];
  return [
    [...hosts, publicWords(row)],
    [linkPart(row, [linkWords(row)], c), ...path, ...bytes, ...lastSeen(row)],
  ];
}

function wideCells(row: PeerRow, columns: number, c: Colors): Cell[] {
  const [first = "none", ...others] = row.private;
  const more = others.length > 0 ? ` +${others.length} more` : "";
  const hosts = columns === Infinity ? row.private.join(", ") || first : `${first}${more}`;
  const isLinked = row.state === "linked";
  const words = [linkWords(row), ...lastSeen(row)];
  return [
    [{ text: hosts, paint: c.dim }],
    [publicWords(row)],
    [linkPart(row, words, c)],
    [isLinked ? `${row.local}` : ""],
    [isLinked ? `→ ${row.remote}` : ""],
    [row.route === undefined ? "" : traffic(row)],
  ];
}

const publicWords = (row: PeerRow): string => (isHidden(row) ? "hidden" : row.public);

/** A relayed route is yellow. */
function linkPart({ route }: PeerRow, words: string[], c: Colors): Part {
  const text = words.filter(Boolean).join(" ");
  return route === "relay" ? { text, paint: c.yellow } : { text };
}

function linkWords(row: PeerRow): string {
  if (row.state === "failed") return row.reason ?? "";
  if (row.state === "untrusted") return "proof is wrong";
  if (row.state === "returning") return `was ${row.route}, ${age(row.ageMs ?? 0)}`;
  if (row.state !== "linked") return "";
  const rtt = row.rttMs === undefined ? "" : ` ${ms(row.rttMs)}`;
  return `${row.route}${rtt} ${age(row.ageMs ?? 0)}`;
}

/** What `list -v` adds, for which the table has no room. In pieces, as the list. */
export async function renderDetails(rows: readonly PeerRow[], c: Colors): Promise<string[]> {
  const pieces: string[] = [];
  await byTurns(rows, (row) => void pieces.push(pieces.length > 0 ? "\n" : "", renderDetail(row, c)));
  return pieces;
}

function renderDetail(row: PeerRow, c: Colors): string {
  const toIntroducer = row.roundTripMs === undefined ? "" : `, ${row.roundTripMs} ms from the introducer`;
  const facts: [string, string | undefined][] = [
    ["distrust", row.distrust],
    ["fingerprint", row.fingerprint],
    ["mapping", `${row.mapping}${toIntroducer}`],
    ["mapped port", row.mapped],
    ["private", row.private.join(", ") || "none"],
    ["carriers", row.carriers === undefined ? undefined : `${row.carriers} so far`],
    ["bytes", row.route === undefined ? undefined : traffic(row)],
    ["round trip", row.rttMs === undefined ? undefined : ms(row.rttMs)],
  ];
  const lines = facts.flatMap(([what, value]) =>
    value === undefined ? [] : [`  ${what.padEnd(12)} ${printable(value)}`],
  );
  return [`${c.bold(printable(row.name))} (${row.present ? row.id : "not in the room"})`, ...lines].join(
    "\n",
  );
}

/** For a peer that the introducer does not list now. */
function lastSeen({ present, lastSeenAt }: PeerRow): string[] {
  return present ? [] : [`(last seen ${age(stamps.now - lastSeenAt)} ago)`];
}

function traffic(row: PeerRow): string {
  return `in ${bytes(row.bytesIn ?? 0)} out ${bytes(row.bytesOut ?? 0)}`;
}

/** `3 peers: 2 linked, 1 known`. */
export function total(rows: readonly PeerRow[]): string {
  const states = Object.entries(Object.groupBy(rows, ({ state }) => state));
  return `${count(rows.length, "peer")}: ${states.map(([state, all]) => `${all.length} ${state}`).join(", ")}`;
}

export function renderForwards(rows: ForwardRow[], width: number): string {
  if (rows.length === 0) return "nothing is forwarded; `forward PORT:PEER:PORT` does it";
  const isUdp = rows.some(({ dropped }) => dropped !== undefined);
  const heads = [
    "listen",
    "peer",
    "target",
    "open",
    "total",
    "in",
    "out",
    ...(isUdp ? ["packets", "dropped"] : []),
  ];
  const columns = heads.map((head) => ({ head }));
  const cells = rows.map(({ listen, peer, target, open, total, bytesIn, bytesOut, remote, ...udp }) =>
    [
      printable(listen),
      remote === undefined ? `→ ${named(peer)}` : `→ us${remote === "listening" ? "" : ` (${remote})`}`,
      `→ ${target}`,
      String(open),
      String(total),
      bytes(bytesIn),
      bytes(bytesOut),
      ...(isUdp ? datagramCells(udp) : []),
    ].map((text) => [text]),
  );
  return renderTable(columns, cells, width);
}

function datagramCells({ packetsIn, packetsOut, dropped }: Partial<ForwardRow>): string[] {
  if (dropped === undefined) return ["", ""];
  return [`in ${packetsIn} out ${packetsOut}`, String(dropped)];
}

/** What has come in part: what it will be, and where it is. */
export function renderUnfinished(all: readonly Unfinished[], width: number, now = stamps.now): string {
  if (all.length === 0) return "nothing has come in part";
  const columns = ["", "has", "since", "is in"].map((head) => ({ head }));
  const cells = all.map(({ name, bytes: there, atMs, path }) =>
    [printable(name), bytes(there), `${age(now - atMs)} ago`, printable(path)].map((text) => [text]),
  );
  const rest = `What is sent again goes on there. Each goes after ${keptDays} days.`;
  return `${renderTable(columns, cells, width)}\n${rest}`;
}
