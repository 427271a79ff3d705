/**
 * What an operator reads: each event, `list` and `stats`. Pure. For native/terminal/.
 */
import { type HistogramCounts, quantile, type Stats } from "../introducer/metrics.ts";
import { type Cell, type Column, renderRows, wideColumns } from "./table.ts";
import { type Colors, age, count } from "./text.ts";
import { byTurns } from "../shares/turns.ts";
import { isSecretRoom, type Participant } from "../introducer/rooms.ts";
import { failureReasons, printable } from "../../protocol.ts";
import type { Neighbour } from "../introducer/redis/homes.ts";
import type { IntroducerEvent } from "../introducer/events.ts";

/** A room's name, as it is shown. A private room's name is a hash: whoever has all of it can try words against it. */
export function roomName(room: string): string {
  return isSecretRoom(room) ? `${room.slice(0, 8)}…` : room;
}

/** Two lines or more for a participant, in 80 columns. */
const narrowList: Column[] = [
  { head: "id" },
  { head: "name", least: 9, isCut: true },
  { head: "room", least: 9, isCut: true },
  { head: "mapping" },
  { head: "private endpoint\npublic endpoint", least: 21 },
  { head: "linked\npunching", least: 8 },
  { head: "since" },
];

/** One line for a participant. */
const wideList: Column[] = [
  { head: "id" },
  { head: "name", least: 12, isCut: true },
  { head: "room", least: 9, isCut: true },
  { head: "mapping" },
  { head: "private endpoint", optional: 1 },
  { head: "public endpoint" },
  { head: "linked", least: 8 },
  { head: "punching", least: 8 },
  { head: "since" },
];

/** So many ids of others are shown in a line. There may be a whole room of them. */
const shownIds = 6;
const shownRelays = 2;

function idList(ids: number[], most: number): string {
  const more = ids.length > most ? ` +${ids.length - most}` : "";
  return ids.slice(0, most).join(", ") + more || "-";
}

/** `512 B`, `1.5 MiB`. */
export function amount(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** unit).toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

/** The relayed links of a participant: `7 relayed 1.5 MiB`. */
function relayedList({ links }: Participant, most: number): string[] {
  const relayed = links.filter(({ route }) => route === "relay");
  const shown = relayed
    .slice(0, most)
    .map(({ id, relayedBytes = 0 }) => `${id} relayed ${amount(relayedBytes)}`);
  return relayed.length > most ? [...shown, `+${relayed.length - most} relayed`] : shown;
}

function row(one: Participant, width: number, colors: Colors, now: number): Cell[] {
  const isWhole = width === Infinity;
  const [first = "-", ...others] = one.private;
  const more = others.length > 0 ? `+${others.length} more` : "";
  const dim = (text: string) => ({ text, paint: colors.dim });
  const linked = { text: idList(one.linked, isWhole ? Infinity : shownIds), paint: colors.green };
  const punching = { text: idList(one.punching, isWhole ? Infinity : shownIds), paint: colors.yellow };
  const relayed = relayedList(one, isWhole ? Infinity : shownRelays);
  const who = [
    [{ text: String(one.id), paint: colors.bold }],
    [printable(one.name)],
    [printable(roomName(one.room))],
  ];
  const since = [age(now - one.since)];
  if (width < wideColumns) {
    const mapping = one.mapping.split(/(?<=-)/); // endpoint-independent is too wide for this table
    const endpoints = [dim(first), ...(more === "" ? [] : [dim(more)]), one.public];
    const links = [linked, punching, ...relayed.map((text) => ({ text, paint: colors.yellow }))];
    return [...who, mapping, endpoints, links, since];
  }
  const hosts = isWhole ? one.private.join(", ") || first : `${first} ${more}`.trimEnd();
  const all = { ...linked, text: [linked.text, ...relayed].join("; ") };
  return [...who, [one.mapping], [dim(hosts)], [one.public], [all], [punching], since];
}

/**
 * The participants as a table in pieces, `width` columns wide. With Infinity, for a pipe, nothing is cut. It is made in
 * slices, so that everything else goes on.
 */
export async function renderParticipants(
  participants: readonly Participant[],
  colors: Colors,
  now: number,
  width = 80,
): Promise<string[]> {
  if (participants.length === 0) return ["nobody is here yet"];
  const columns = width < wideColumns ? narrowList : wideList;
  const cells = (one: Participant) => row(one, width, colors, now);
  const pieces = await renderRows(columns, participants, cells, width);
  return [...pieces, await total(participants)];
}

/** `3 participants in 1 room, 1 link`. */
export async function total(participants: readonly Participant[]): Promise<string> {
  const rooms = new Set<string>();
  let [ends, relayed] = [0, 0];
  await byTurns(participants, ({ room, linked, links }) => {
    rooms.add(room);
    ends += linked.length;
    for (const { route } of links) relayed += Number(route === "relay");
  });
  const summary = `${count(participants.length, "participant")} in ${count(rooms.size, "room")}, ${count(Math.ceil(ends / 2), "link")}`;
  return relayed > 0 ? `${summary}, ${Math.ceil(relayed / 2)} relayed` : summary;
}

/** `7 (4 linked direct, 3 peer-left none)`; `0` if there are none. */
function counted(parts: { count: number; what: string }[]): string {
  const all = parts.reduce((sum, part) => sum + part.count, 0);
  const sorted = parts.toSorted((a, b) => b.count - a.count);
  return all === 0 ? "0" : `${all} (${sorted.map((part) => `${part.count} ${part.what}`).join(", ")})`;
}

/** `half within 100 ms, 99 % within 500 ms`. */
function spread(counts: HistogramCounts): string {
  const within = (part: number) => {
    const bound = quantile(counts, part);
    return bound === Infinity ? `beyond ${counts.boundsMs.at(-1)} ms` : `within ${bound} ms`;
  };
  return counts.counts.at(-1) === 0 ? "-" : `half ${within(0.5)}, 99 % ${within(0.99)}`;
}

/** A line for each other introducer. */
export function renderOthers(others: readonly Neighbour[] = []): string[] {
  return others.map(({ address, participants, rooms }) => {
    const who = `${count(participants, "participant")} in ${count(rooms, "room")}`;
    return `at ${printable(address)}: ${who}`;
  });
}

/** What `stats` shows: a line for each kind of thing. */
export function renderStats(stats: Stats): string {
  const { introductions, refusals, residentBytes, relayUses, limits, descriptors } = stats;
  const now = `${count(stats.participants, "participant")} in ${count(stats.rooms, "room")}`;
  const held = `${count(stats.connections, "connection")} of ${limits.connections}, ${stats.waiting} waiting`;
  const ofWays = introductions.map((one) => ({ ...one, what: `${one.outcome} ${one.way}` }));
  const ofCodes = refusals.map((one) => ({ ...one, what: one.code }));
  const rows = [
    ["up", age(stats.uptimeMs)],
    ["now", `${now}, ${held}`],
    ["joins", String(stats.joins)],
    ["introductions", counted(ofWays)],
    ["time to link", spread(stats.linkMs)],
    ["relays", `${stats.relays} of ${limits.relays} now, ${amount(stats.relayedBytes)} in all`],
    [
      "relayed most",
      relayUses.map(({ name, bytes }) => `${printable(name)} ${amount(bytes)}`).join(", ") || "-",
    ],
    ["refusals", counted(ofCodes)],
    ["turned away", count(stats.turnedAway, "connection")],
    ["memory", residentBytes === undefined ? "-" : amount(residentBytes)],
    ["processor", `${((100 * stats.processorMs) / stats.uptimeMs).toFixed(1)} % since the start`],
    ["descriptors", descriptors ? `${descriptors.open} of ${descriptors.most}` : "-"],
    ["timers late", spread(stats.eventLoopDelayMs)],
  ] as const;
  return rows.map(([what, value]) => `${what.padEnd(14)}${value}`).join("\n");
}

/** What `limits` shows: those with an option, by its name. */
export function renderLimits({ limits, connections, relays }: Stats): string {
  const { relayRate, relayTotal } = limits;
  const rows = [
    ["max-connections", limits.connections, `${connections} now`],
    ["max-per-address", limits.connectionsPerAddress, ""],
    ["max-room", limits.room, ""],
    ["max-relays", limits.relays, `${relays} now`],
    ["relay-rate", relayRate && amount(relayRate), "a second of one link, each way"],
    ["relay-total", relayTotal && amount(relayTotal), "a second of all"],
  ] as const;
  const lines = rows.flatMap(([name, value, more]) =>
    value === undefined ? [] : [`${name.padEnd(17)}${String(value).padEnd(10)}${more}`.trimEnd()],
  );
  return lines.join("\n");
}

type EventOf<E extends IntroducerEvent["event"]> = Extract<IntroducerEvent, { event: E }>;

/** What each event says as a log line. */
const logLines: { readonly [E in IntroducerEvent["event"]]: (event: EventOf<E>) => string } = {
  listening: ({ host, port }) => `listening on ${host} port ${port}`,
  joined: ({ id, name, room, public: seen, private: hosts }) =>
    `#${id} ${name} joined ${roomName(room)} from ${seen} (private ${hosts.join(", ") || "none"})`,
  ignored: ({ address, endpoints }) => `${address} offered ${endpoints.join(", ")}, not its own: ignored`,
  left: ({ id, name, reason }) => `#${id} ${name} left: ${reason}`,
  renamed: ({ id, name, was }) => `#${id} ${was} is ${name} now`,
  punch: ({ a, b, way, round }) => `#${a} and #${b} are punching (${way}, round ${round})`,
  mapping: ({ id, mapping }) => `#${id} has ${mapping} mapping`,
  mapped: ({ id, endpoint }) =>
    `#${id} has ${endpoint ? `the mapped port ${endpoint}` : "no mapped port any more"}`,
  relaying: ({ a, b, names: [one, other] }) => `#${a} ${one} and #${b} ${other} are relayed`,
  relayed: ({ a, b, names: [one, other], bytes }) =>
    `#${a} ${one} and #${b} ${other} are relayed no more: ${amount(bytes)}`,
  warning: ({ message }) => message,
  shared: ({ message }) => message,
  draining: ({ participants, punching, relays, reason }) =>
    `${reason}: ${count(participants, "participant")} told to come back, waiting for ${punching} that are punching and ${count(relays, "relay")}`,
  linked: ({ id, peer, route, local, remote }) =>
    `#${id} linked with #${peer} (${route}): ${local} → ${remote}`,
  unlinked: ({ id, peer, reason }) => `#${id} unlinked from #${peer}: ${reason}`,
  failed: ({ id, peer, reason, detail }) =>
    `#${id} failed to link with #${peer}: ${failureReasons[reason]}${detail && ` (${detail})`}`,
  refused: ({ id, address, message, code }) =>
    `refused ${id ? `#${id} ` : ""}${address}: ${message} [${code}]`,
  error: ({ address, message }) => (address ? `an error while serving ${address}: ${message}` : message),
  told: ({ id, name, participants, introducers = 0 }) => {
    const others = introducers > 0 ? `, and those at ${count(introducers, "other introducer")}` : "";
    return id === undefined ? `told ${count(participants, "participant")}${others}` : `told ${name} (${id})`;
  },
  participants: ({ participants }) => `${participants.length} participants`,
  stats: ({ stats }) => `${stats.participants} participants`,
  limits: ({ limits }) => `${limits.connections} connections`,
};

/** One event as a log line. It may hold text from the network: whoever prints it makes it printable. */
export function describe(event: IntroducerEvent): string {
  return (logLines[event.event] as (event: IntroducerEvent) => string)(event);
}
