/**
 * How much of everything an introducer gives, and to whom: the numbers alone. For introducer.ts, native/introducer/ and
 * native/terminal/.
 */
import {
  controlSilenceMs,
  introducerPingMs,
  punchDeadlineMs,
  registerDeadlineMs,
  relayOfferMs,
} from "../../protocol.ts";

export const defaultLimits = {
  /** Connections in all: an idle participant takes 3 KiB (`bench introducer`), so some 60 MB. */
  sessions: 20_000,
  /** Connections of one IPv4 address or one IPv6 /64 (RFC 6177: a site has at least that): enough for a large office or a carrier's NAT. */
  sessionsPerAddress: 256,
  /** Participants of one room: each change is told to all of them, so the cost of a room is its square. */
  roomSize: 256,
  /** How many of them may come from one address, so that nobody fills a room alone. */
  roomShare: 64,
  /** Milliseconds of processor time that one address may always have in a second; more only while there is some to spare. */
  processorMs: 2,
  /** New connections that one address may always have accepted in a second; more only while there are few others. */
  acceptsPerSecond: 32,
  /** How many times the share of an address 127.0.0.1 and ::1 have: only this host's own programs come from there. */
  ownHostShares: Infinity,
  /** Lines of one session that are read at once, then so many a second. A person types far less. */
  messageBurst: 100,
  messagesPerSecond: 50,
  /** Bytes read of lines that have to wait or are not whole, all together and of one address: one read of Bun's is up to 512 KiB. */
  heldBytes: 64 * 1024 * 1024,
  heldBytesPerAddress: 8 * 1024 * 1024,
  /** Introductions one session may ask for. */
  introductionsPerMinute: 120,
  /** Of them those with one peer, and those that one peer gets from all, if that peer has not linked by them. */
  introductionsPerPair: 10,
  introductionsPerTarget: 60,
  /** A birthday takes a thousand sockets and as many entries in a NAT's table: of those with one peer so many a minute. */
  birthdaysPerPair: 30,
  /** After one that failed, none with the same peer for so long; and a target gets so many of them in that time. */
  failedBirthdayPauseMs: 60_000,
  failedBirthdaysPerTarget: 10,
  /** Names kept of those who have left: in one room, of those who came from one address, and in how many rooms. */
  keptNames: 1024,
  keptNamesPerAddress: 64,
  keptNamesRooms: 64,
  /** Lines of one session that break the protocol, before it is closed. */
  badLines: 20,
  /** Bytes that wait for a slow reader: a full room's snapshot is a third of that. */
  unsentBytes: 1024 * 1024,
  /** The same for all of one address, where as many as may be in a room get its snapshot, and for all. */
  unsentBytesPerAddress: 16 * 1024 * 1024,
  unsentBytesInAll: 128 * 1024 * 1024,
  registerDeadlineMs,
  pingMs: introducerPingMs,
  silenceMs: controlSilenceMs,
  punchDeadlineMs,
  /** Probe connections open at once, in all and of one address; each lasts a round trip. */
  probes: 1024,
  probesPerAddress: 64,
  /** How long a side may take to measure its mapping, and a probe connection to be closed by its client. */
  measureMs: 3000,
  /** Relays offered or under way: in all, of one address, of one member. */
  relays: 256,
  relaysPerAddress: 64,
  relaysPerMember: 32,
  relayOfferMs,
  /** Connections back under way, in all and to one address: each takes a descriptor for up to {@link connectBackMs}. */
  connectBacks: 64,
  connectBacksPerAddress: 16,
};

export type Limits = typeof defaultLimits;

/** A participant as JSON at most, and how many there may be of them in a room whatever an operator wants. */
const mostPeerBytes = 1024;
export const mostInRoom = 10_000;

/** A room has place for so many of one address, however full or small it is: of 64 greedy ones it leaves some to others. */
export const leastRoomShare = 2;

/** How long a name is kept for the certificate that held it, for such as come back: more than their longest pause. */
export const nameKeptMs = 30_000;

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
