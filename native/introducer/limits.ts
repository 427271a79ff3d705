/**
 * How much of everything an introducer gives, and to whom: the numbers, and what `--help` says of them. For introducer.ts, native/introducer/ and
 * native/terminal/.
 */
import {
  controlSilenceMs,
  introducerPingMs,
  punchDeadlineMs,
  registerDeadlineMs,
  relayOfferMs,
} from "../../protocol.ts";

const mebi = 1024 * 1024;

/** `value`: by default. `help`: what `--help` says of it, `#` being the value; one with a `head` begins a line there. */
interface Limit {
  readonly value: number;
  readonly head?: string;
  readonly help?: string;
}

/** Each limit, once. The unit is in its name. Those with help stand in the order in which they are told. */
const limits = {
  /** Connections in all: an idle participant takes 3 KiB (`bench introducer`), so some 60 MB. */
  sessions: { value: 20_000 },
  /** Connections of one IPv4 address or one IPv6 /64 (RFC 6177: a site has at least that): enough for a large office or a carrier's NAT. */
  sessionsPerAddress: { value: 256 },
  /** Participants of one room: each change is told to all of them, so the cost of a room is its square. */
  roomSize: { value: 256 },
  /** How many of them may come from one address, so that nobody fills a room alone. */
  roomShare: { value: 64 },
  /** How many times the share of an address 127.0.0.1 and ::1 have: only this host's own programs come from there. */
  ownHostShares: { value: Infinity },
  /** Relays offered or under way, in all and of one address. */
  relays: { value: 256 },
  relaysPerAddress: { value: 64 },
  /** Lines of one session that are read at once, then so many a second. A person types far less. */
  messageBurst: { value: 100, head: "lines", help: "# at once, " },
  messagesPerSecond: { value: 50, help: "then # a second of one connection;\n" },
  /** Lines of one session that break the protocol, before it is closed. */
  badLines: { value: 20, help: "closed after # that break the protocol" },
  /** Bytes read of lines that have to wait or are not whole, of one address and all together: one read of Bun's is up to 512 KiB. */
  heldBytesPerAddress: { value: 8 * mebi, head: "bytes waiting", help: "# of one address, " },
  heldBytes: { value: 64 * mebi, help: "# in all;\n" },
  /** Bytes that wait for a slow reader: a full room's snapshot is a third of that. */
  unsentBytes: { value: mebi, help: "# for one that reads too slowly, " },
  /** The same for all of one address, where as many as may be in a room get its snapshot, and for all. */
  unsentBytesPerAddress: { value: 16 * mebi, help: "# for those of\none address, " },
  unsentBytesInAll: { value: 128 * mebi, help: "# for all" },
  /** Milliseconds of processor time that one address may always have in a second; more only while there is some to spare. */
  processorMs: { value: 2, head: "processor", help: "# a second of one address, more while it is idle;\n" },
  /** New connections that one address may always have accepted in a second; more only while there are few others. */
  acceptsPerSecond: { value: 32, help: "# new connections a second of one address, more likewise" },
  registerDeadlineMs: { value: registerDeadlineMs, head: "registering", help: "within #; " },
  silenceMs: { value: controlSilenceMs, help: "closed after # of silence,\n" },
  pingMs: { value: introducerPingMs, help: "asked every #" },
  /** How long a name is kept for the certificate that held it, for such as come back: more than their longest pause. */
  nameKeptMs: {
    value: 30_000,
    head: "names",
    help: "kept for # after leaving a room that is not private, ",
  },
  /** Names kept of those who have left: of those who came from one address, in one room, and in how many rooms. */
  keptNamesPerAddress: { value: 64, help: "# of\none address, " },
  keptNames: { value: 1024, help: "# of a room, " },
  keptNamesRooms: { value: 64, help: "in # rooms and the lobby" },
  /** Introductions one session may ask for. */
  introductionsPerMinute: { value: 120, head: "introductions", help: "# a minute by one participant, " },
  /** Of them those with one peer, and those that one peer gets from all, if that peer has not linked by them. */
  introductionsPerPair: { value: 10, help: "# of them\nto one peer; " },
  introductionsPerTarget: { value: 60, help: "# of one peer by all; " },
  punchDeadlineMs: { value: punchDeadlineMs, help: "# each" },
  /** A birthday takes a thousand sockets and as many entries in a NAT's table: of those with one peer so many a minute. */
  birthdaysPerPair: { value: 30, head: "guessed ports", help: "# a minute with one peer, " },
  /** After one that failed, none with the same peer for so long; and a target gets so many of them in that time. */
  failedBirthdayPauseMs: { value: 60_000, help: "after a failure none for #;\n" },
  failedBirthdaysPerTarget: { value: 10, help: "# failures of one peer in that time" },
  /** Probe connections open at once, of one address and in all; each lasts a round trip. */
  probesPerAddress: { value: 64, head: "probes", help: "# of one address, " },
  probes: { value: 1024, help: "# in all, " },
  /** How long a side may take to measure its mapping, and a probe connection to be closed by its client. */
  measureMs: { value: 3000, help: "for #;\n" },
  /** Connections back under way, in all and to one address: each takes a descriptor for up to {@link connectBackMs}. */
  connectBacks: { value: 64, help: "# connections back at once, " },
  connectBacksPerAddress: { value: 16, help: "# to one address" },
  /** Relays of one member, and how long both may take to come. */
  relaysPerMember: { value: 32, head: "relays", help: "# of one participant; " },
  relayOfferMs: { value: relayOfferMs, help: "both come within #" },
} satisfies Record<string, Limit>;

export type Limits = { [Name in keyof typeof limits]: number };

export const defaultLimits = Object.fromEntries(
  Object.entries(limits).map(([name, { value }]) => [name, value]),
) as Limits;

/** Those that nobody need change, a paragraph each: what it is about, and its lines. `show` writes a value. */
export function limitsHelp(
  show: (name: string, value: number) => string,
): { head: string; lines: string[] }[] {
  const paragraphs: { head: string; text: string }[] = [];
  for (const [name, { value, head, help = "" }] of Object.entries<Limit>(limits)) {
    if (head !== undefined) paragraphs.push({ head, text: "" });
    const last = paragraphs.at(-1);
    if (last) last.text += help.replace("#", show(name, value));
  }
  return paragraphs.map(({ head, text }) => ({ head, lines: text.split("\n") }));
}

/** A participant as JSON at most, and how many there may be of them in a room whatever an operator wants. */
const mostPeerBytes = 1024;
export const mostInRoom = 10_000;

/** A room has place for so many of one address, however full or small it is: of 64 greedy ones it leaves some to others. */
export const leastRoomShare = 2;

/** How long introductions and relayed links under way may take once the introducer is told to end. */
export const drainMs = punchDeadlineMs;

/** A quarter of a room for one address, but a household in any, and as much unsent as its snapshot may take. */
export function roomLimits(size: number): Partial<Limits> {
  const unsentBytes = Math.max(defaultLimits.unsentBytes, 3 * mostPeerBytes * size);
  const unsentBytesPerAddress = Math.max(defaultLimits.unsentBytesPerAddress, 2 * unsentBytes);
  const unsentBytesInAll = Math.max(defaultLimits.unsentBytesInAll, 8 * unsentBytesPerAddress);
  const roomShare = Math.max(leastRoomShare, Math.ceil(size / 4));
  return { roomSize: size, roomShare, unsentBytes, unsentBytesPerAddress, unsentBytesInAll };
}
