/**
 * How much of everything an introducer gives, and to whom: the numbers, and the words for them in `--help`. For
 * introducer.ts, native/introducer/ and native/terminal/.
 */
import {
  controlSilenceMs,
  introducerPingMs,
  punchDeadlineMs,
  registerDeadlineMs,
  relayOfferMs,
  type RelayRates,
} from "../../protocol.ts";

const mebi = 1024 * 1024;

/** `value`: the default. `help`: its words in `--help`, where `#` is the value. With a `head` it begins a line there. */
interface Limit {
  readonly value: number;
  readonly head?: string;
  readonly help?: string;
}

/** All limits, each once. The unit is in the name. Those with help stand in the order of `--help`. */
const limits = {
  /** Connections in all. An idle participant takes 3 KiB (`bench introducer`), so all take some 60 MB. */
  sessions: { value: 20_000 },
  /** Connections of one IPv4 address or one IPv6 /64. It is enough for a large office, or a carrier's NAT. */
  sessionsPerAddress: { value: 256 },
  /** Participants of one room. Each change is told to all, so the cost of a room grows by its square. */
  roomSize: { value: 256 },
  /** How many of them may come from one address, so that nobody fills a room alone. */
  roomShare: { value: 64 },
  /** 127.0.0.1 and ::1 may have so many times the share of an address: only programs of this host come from there. */
  ownHostShares: { value: Infinity },
  /** Relays offered or under way, in all and of one address. */
  relays: { value: 256 },
  relaysPerAddress: { value: 64 },
  /** Lines of one session: so many at once, then so many a second. A person types far fewer. */
  messageBurst: { value: 100, head: "lines", help: "# at once, " },
  messagesPerSecond: { value: 50, help: "then # a second of one connection;\n" },
  /** After so many lines that break the protocol, a session is closed. */
  badLines: { value: 20, help: "closed after # that break the protocol" },
  /** Bytes of lines that wait or are not complete: of one address, and in all. One read of Bun's is up to 512 KiB. */
  heldBytesPerAddress: { value: 8 * mebi, head: "bytes waiting", help: "# of one address, " },
  heldBytes: { value: 64 * mebi, help: "# in all;\n" },
  /** Bytes that wait for one slow reader. The snapshot of a full room is a third of that. */
  unsentBytes: { value: mebi, help: "# for one that reads too slowly, " },
  /** The same for all of one address, all of whom may get a snapshot at once; and in all. */
  unsentBytesPerAddress: { value: 16 * mebi, help: "# for those of\none address, " },
  unsentBytesInAll: { value: 128 * mebi, help: "# for all" },
  /** Milliseconds of processor time that one address may always use in a second. More only while there is time to spare. */
  processorMs: { value: 2, head: "processor", help: "# a second of one address, more while it is idle;\n" },
  /** New connections of one address that are always accepted in a second. More only while there are few others. */
  acceptsPerSecond: { value: 32, help: "# new connections a second of one address, more likewise" },
  registerDeadlineMs: { value: registerDeadlineMs, head: "registering", help: "within #; " },
  /** How long the first participant of a room waits for Redis to say where the room lives. */
  homeMs: { value: 1_000 },
  silenceMs: { value: controlSilenceMs, help: "closed after # of silence,\n" },
  pingMs: { value: introducerPingMs, help: "asked every #" },
  /** How long a name is kept for the certificate that had it. It is more than the longest pause before coming back. */
  nameKeptMs: {
    value: 30_000,
    head: "names",
    help: "kept for # after leaving a room that is not private, ",
  },
  /** Names that are kept of those who have left: of one address, of one room; and of so many rooms. */
  keptNamesPerAddress: { value: 64, help: "# of\none address, " },
  keptNames: { value: 1024, help: "# of a room, " },
  keptNamesRooms: { value: 64, help: "in # rooms and the lobby" },
  /** Introductions one session may ask for. */
  introductionsPerMinute: { value: 120, head: "introductions", help: "# a minute by one participant, " },
  /** Of these, with one peer; and those that one peer gets from all, if they led to no link. */
  introductionsPerPair: { value: 10, help: "# of them\nto one peer; " },
  introductionsPerTarget: { value: 60, help: "# of one peer by all; " },
  punchDeadlineMs: { value: punchDeadlineMs, help: "# each;\n" },
  /** How long it is remembered whom somebody wants who is not there, and how many may want one name. */
  wishKeptMs: { value: 600_000, help: "a wish is kept for #, " },
  wishesPerName: { value: 8, help: "# for one name" },
  /** Birthdays a minute with one peer. Each takes a thousand sockets, and as many entries in a NAT's table. */
  birthdaysPerPair: { value: 30, head: "guessed ports", help: "# a minute with one peer, " },
  /**
   * After a birthday that failed there is none with the same peer for so long. One peer gets so many failed ones in
   * that time.
   */
  failedBirthdayPauseMs: { value: 60_000, help: "after a failure none for #;\n" },
  failedBirthdaysPerTarget: { value: 10, help: "# failures of one peer in that time" },
  /** Probe connections at once, of one address and in all. Each lasts a round trip. */
  probesPerAddress: { value: 64, head: "probes", help: "# of one address, " },
  probes: { value: 1024, help: "# in all, " },
  /** How long a side may take to measure its mapping, and a client to close its probe connection. */
  measureMs: { value: 3000, help: "for #;\n" },
  /** Connections back at once, in all and to one address. Each takes a descriptor for up to {@link connectBackMs}. */
  connectBacks: { value: 64, help: "# connections back at once, " },
  connectBacksPerAddress: { value: 16, help: "# to one address" },
  /** Relays of one participant; and how long both sides may take to come. */
  relaysPerMember: { value: 32, head: "relays", help: "# of one participant; " },
  relayOfferMs: { value: relayOfferMs, help: "both come within #" },
} satisfies Record<string, Limit>;

export type Limits = { [Name in keyof typeof limits]: number };

export const defaultLimits = Object.fromEntries(
  Object.entries(limits).map(([name, { value }]) => [name, value]),
) as Limits;

/** The limits that have no option: for each paragraph of `--help` its head and its lines. `show` writes a value. */
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

/** Those that an operator sets, as they are shown beside what they bound. Rates are bytes a second. */
export interface ShownLimits {
  connections: number;
  connectionsPerAddress: number;
  room: number;
  relays: number;
  relayRate?: number;
  relayTotal?: number;
}

export function shownLimits(
  { sessions, sessionsPerAddress, roomSize, relays }: Limits,
  rates: RelayRates | undefined,
): ShownLimits {
  const all = { connections: sessions, connectionsPerAddress: sessionsPerAddress, room: roomSize };
  return rates ? { ...all, relays, relayRate: rates.rate, relayTotal: rates.total } : { ...all, relays: 0 };
}

/** The longest JSON of a participant; and the most participants of a room that an operator can set. */
const mostPeerBytes = 1024;
export const mostInRoom = 10_000;

/**
 * A room always has place for so many of one address, however full or small it is. 64 greedy addresses leave some for
 * others.
 */
export const minRoomShare = 2;

/** How long introductions and relayed links may still take when the introducer ends. */
export const drainMs = punchDeadlineMs;

/** The limits of rooms of that size: a quarter of it for one address, and room for its snapshot to wait unsent. */
export function roomLimits(size: number): Partial<Limits> {
  const unsentBytes = Math.max(defaultLimits.unsentBytes, 3 * mostPeerBytes * size);
  const unsentBytesPerAddress = Math.max(defaultLimits.unsentBytesPerAddress, 2 * unsentBytes);
  const unsentBytesInAll = Math.max(defaultLimits.unsentBytesInAll, 8 * unsentBytesPerAddress);
  const roomShare = Math.max(minRoomShare, Math.ceil(size / 4));
  return { roomSize: size, roomShare, unsentBytes, unsentBytesPerAddress, unsentBytesInAll };
}
