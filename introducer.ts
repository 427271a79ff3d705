/**
 * The introducer: the rendezvous server on a public host. It owns the participants' control connections,
 * tells everyone in a room of everyone else, tells two of them when to punch towards each other, and relays between
 * two who have no direct way, or none yet.
 *
 * It never looks into what it relays, connects to nobody but back to whoever asks for it, and believes nothing it
 * reads: every line is parsed into its exact type or refused, and everything a client can make it hold has a limit.
 *
 * {@link Introducer} has the sessions and the rooms, {@link Introductions} how two members are brought together, and
 * native/introducer/relay.ts the bytes between two connections.
 * Imported by whoever runs an introducer inside a program of his own, never by a participant.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles), RFC 5382 (what NATs do to TCP).
 */
import { closeSync, openSync } from "node:fs";
import { connect } from "node:net";
import { networkInterfaces } from "node:os";
import type { Socket } from "bun";
import {
  fairShare,
  fill,
  fullAt,
  hasShare,
  isOwnHost,
  Shares,
  siteShares,
  subscriber,
  take,
  Usage,
  waitRefusal,
  waitSeconds,
  type Bucket,
} from "./native/shares/budget.ts";
import { Deadlines, neverDue, type Due } from "./native/introducer/wheel.ts";
import { isSupported, limitUnread, segmentsReceived, unlimitUnread } from "./native/host/libc.ts";
import { Listener } from "./native/introducer/listener.ts";
import {
  Metrics,
  MetricsServer,
  quantile,
  renderPrometheus,
  type HistogramCounts,
  type Outcome,
  type OutcomeWay,
  type Stats,
} from "./native/introducer/metrics.ts";
import { defaultRelayRates, relayKey, Relays, segmentMs, type RelayEnd } from "./native/introducer/relay.ts";
import {
  CommandError,
  completions,
  count,
  jsonPieces,
  otherStartedAs,
  readCommand,
  readOptions,
  renderCommands,
  renderRows,
  runProgram,
  startedAs,
  UsageError,
  version,
  wideColumns,
  type Cell,
  type Colors,
  type Column,
  type Command,
  type Terminal,
} from "./native/terminal/terminal.ts";
import { redisUrlProblem } from "./native/introducer/redis/connection.ts";
import { RedisRooms } from "./native/introducer/redis/rooms.ts";
import { byTurns, Rounds, sliceMs } from "./native/shares/turns.ts";
import { ToldTokens } from "./native/introducer/told.ts";
import {
  isSecretRoom,
  KeptNames,
  LocalRooms,
  type Answer,
  type Answers,
  type Guest,
  type Letter,
  type Order,
  type Participant,
  type Question,
  type Report,
  type Rooms,
} from "./native/introducer/rooms.ts";
import { WorkingWays } from "./native/introducer/ways.ts";
import {
  addressScope,
  age,
  canonicalAddress,
  changedPeer,
  controlSilenceMs,
  defaultPort,
  encode,
  failureReasons,
  findByIdOrName,
  formatEndpoint,
  introducerPingMs,
  isAhead,
  jsonLine,
  LineDecoder,
  maxLineBytes,
  maxProbePorts,
  maxReportedLinks,
  mayOffer,
  nameSkeleton,
  numberedName,
  planRounds,
  predictedPorts,
  predictPort,
  printable,
  protocolVersion,
  publicInstance,
  punchDeadlineMs,
  Refusal,
  registerDeadlineMs,
  relayAfterMs,
  relayOfferMs,
  scopeOf,
  splitEndpoint,
  parseEndpoint,
  parseToIntroducer,
  type Endpoint,
  type EndpointParts,
  type FailureReason,
  type Filtering,
  type Mapping,
  type Peer,
  type PeerChange,
  type Prediction,
  type RefusalCode,
  type RelayRates,
  type Role,
  type Route,
  type ToIntroducer,
  type ToParticipant,
  type UnlinkReason,
  type Way,
} from "./protocol.ts";

// --- limits and timers -----------------------------------------------------------------------------------

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
const mostInRoom = 10_000;
/** How often deadlines are looked at. */
const tickMs = 500;
/** How often those that have sent too many lines get the next of them read. */
const resumeMs = 10;
/** What waits to be read of a connection: some lines; of a relayed one what its rate may be over a path of half a second. */
const unreadBytes = 64 * 1024;
const unreadRelayBytes = 1024 * 1024;
/** Connections of one address, beyond those that it may have, that are told why they are closed. */
const refusedAtOnce = 8;
/** A room has place for so many of one address, however full or small it is: of 64 greedy ones it leaves some to others. */
const leastRoomShare = 2;
/** Processor time, of which addresses have shares: some is left for everyone else, and for a load that nobody foresaw. */
const sharedProcessorMs = 50;
const usageWindowMs = 250;
/** Connections accepted in that time, of which addresses have shares: they take 20 ms. */
const acceptedInWindow = 400;
/** What it costs to accept and close a connection, to read from one, to write to one at the end of the tick: mostly in Bun. */
const acceptMs = 0.05;
const readMs = 0.01;
const flushMs = 0.01;
/** What one read is charged at most: the compiler takes 14 ms for the first registration, which is not its sender's. */
const mostChargedMs = 2;
/** How fast an introduction to somebody is forgotten as one that its asker's address had, and when it had none of late. */
const targetWindowMs = 60_000;
const hadNone = 0.5;
/** How often it is looked at whether what somebody got of others has come back. */
const unaskedMs = 10_000;
/** What waits for the end of the tick is written at once beyond this. */
const flushBytes = 64 * 1024;
/** How long a closed session may take to read its last line; closing at once would send a RST that eats it. */
const closeGraceMs = 1500;
/** A report may be under way this long after the punch's deadline. */
const reportGraceMs = 2000;
/** No start is put off longer, whatever round trips a participant feigns. */
const maxStartInMs = 2000;
/** How long a connection back may take: RFC 5382 §4.3 has a NAT hold an unsolicited SYN for 6 s, but a silent one never answers. */
const connectBackMs = 3000;
/** What a RST (ECONNREFUSED, ECONNRESET) and the ICMP errors of RFC 1122 §4.2.3.9 and RFC 4443 §3.1 become in Linux. */
const refusalErrors: ReadonlySet<string> = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EHOSTDOWN",
  "ENETDOWN",
  "ENONET",
  "ENOPROTOOPT",
  "EACCES",
]);
/** A round lasts so many round trips (the sum of both sides', which bounds the one between them), and a little. */
const roundRoundTrips: Record<Way, number> = { direct: 4, predicted: 2, birthday: 3, fresh: 4 };
const roundSpareMs: Record<Way, number> = { direct: 500, predicted: 700, birthday: 400, fresh: 1500 };
const trialSpareMs = 200;
/** What is left after the last round but is too short for another. */
const shortestRoundMs = 500;
/** Failures after which another round may succeed. */
const retriable: ReadonlySet<FailureReason> = new Set<FailureReason>([
  "no-candidate-answered",
  "authentication-failed",
  "handshake-cut",
  "timed-out",
]);
/** Changes of a participant within this time are told in one `updated`. */
const updateDelayMs = 50;
/** Round trips measured at once after registering; the least of them counts. */
const firstPings = 3;
/** How long the addresses of this host count as unchanged. */
const interfacesMs = 10_000;
/** How often a round by predicted ports is begun anew because a NAT has gone on. */
const maxCorrections = 2;
/** Of a token's 32 hex digits. */
const tokenBytes = 16;
/** More than the one line of a probe. */
const maxProbeBytes = 256;

/** How long a name is kept for the certificate that held it, for such as come back: more than their longest pause. */
const nameKeptMs = 30_000;
/** What the names of those in a room look like: asked at each registration there, and long to find out for some. */
const looks = new WeakMap<Peer, string>();
function looksOf(peer: Peer): string {
  const known = looks.get(peer) ?? nameSkeleton(peer.name);
  looks.set(peer, known);
  return known;
}

/** Numbers that are tried for a taken name, one after the other; then random ones, for somebody may have taken thousands. */
const countedNames = 16;
const mostNameNumber = 1_000_000;

/** How long introductions and relayed links under way may take once the introducer is told to end. */
const drainMs = punchDeadlineMs;
/** When participants shall come back then: each after another pause, lest they do as one. */
const leastRetryInMs = 500;
const mostRetryInMs = 3000;

/** What the sender got wrong, as opposed to what the world changed meanwhile. */
const badLineCodes: ReadonlySet<RefusalCode> = new Set<RefusalCode>([
  "bad-line",
  "unknown-type",
  "bad-field",
  "already-registered",
]);

// --- types -----------------------------------------------------------------------------------------------

/** What an operator can be told of; with `--json` these are the lines. */
export type IntroducerEvent =
  | { event: "listening"; host: string; port: number }
  | { event: "joined"; id: number; name: string; room: string; private: Endpoint[]; public: Endpoint }
  | { event: "ignored"; address: Endpoint; endpoints: Endpoint[] }
  | { event: "left"; id: number; name: string; reason: string }
  | { event: "punch"; a: number; b: number; way: Way; round: number }
  | { event: "linked"; id: number; peer: number; route: Route; local: Endpoint; remote: Endpoint }
  | { event: "unlinked"; id: number; peer: number; reason: UnlinkReason }
  | { event: "failed"; id: number; peer: number; reason: FailureReason; detail: string }
  | { event: "refused"; id?: number; address: Endpoint; code: RefusalCode; message: string }
  | { event: "mapping"; id: number; mapping: Mapping }
  | { event: "mapped"; id: number; endpoint?: Endpoint }
  | { event: "relaying"; a: number; b: number }
  | { event: "relayed"; a: number; b: number; bytes: number }
  /** While serving that address; without one, of an operator's command. */
  | { event: "error"; address?: Endpoint; message: string }
  /** So many have got what the operator said. */
  | { event: "told"; participants: number; id?: number; name?: string }
  | { event: "warning"; message: string }
  /** Rooms are shared with other introducers, from now on. */
  | { event: "shared"; message: string }
  | { event: "draining"; reason: string; participants: number; punching: number; relays: number }
  | { event: "participants"; participants: Participant[] }
  | { event: "stats"; stats: Stats; everywhere?: Everywhere };

/** All introducers that share their rooms, as far as they answer. */
export interface Everywhere {
  participants: number;
  introducers: number;
}

export interface IntroducerOptions {
  /** Default: all addresses of this host, IPv6 and IPv4. */
  host?: string;
  /** 0 lets the system choose. */
  port?: number;
  /** Ports for mapping probes; by default the next two, as far as they are free. */
  probePorts?: number[];
  /** Another address of this host, for probes that tell address-dependent mappings. */
  alternate?: string;
  /** Whether to relay links that have no direct way; by default it does. */
  relay?: boolean;
  /** Bytes a second of one relayed link in each direction (1 MiB), and of all together (16 MiB). */
  relayRate?: number;
  relayTotal?: number;
  /** URL of a Redis through which introducers share their rooms: redis: or rediss: (TLS). */
  redis?: string;
  /** The address at which participants of other introducers reach our relay; by default the likeliest of this host's. */
  advertise?: string;
  /** Where Prometheus may ask; by default nowhere. */
  metrics?: { hostname: string; port: number };
  limits?: Partial<Limits>;
  onEvent?: (event: IntroducerEvent) => void;
}

/** A port that was asked for can't answer mapping probes. `message` says which and why. */
class ProbePortError extends Error {}

/** Its name is somebody else's here; the one in `free` is nobody's. */
class NameTaken extends Refusal {
  readonly free: string;
  constructor(name: string, free: string) {
    super("name-taken", `the name ${name} is taken in this room, ${free} is free`);
    this.free = free;
  }
}

/** The metrics can't be shown where they should be. `message` says where and why. */
class MetricsPortError extends Error {}

type MessageOf<T extends ToIntroducer["type"]> = Extract<ToIntroducer, { type: T }>;
type Without<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;
/** A message that shows a peer, without that peer. */
type About = Without<Extract<ToParticipant, { peer: Peer }>, "peer">;

/** What a participant says of a link. The peer's id is of when it was last told: the peer may have come back since. */
interface Link {
  route: Route;
  /** Undefined for one that it said when it registered: anybody can say so, and it counts when the other says so, too. */
  id: number | undefined;
}

/** Bun 1.4.5 has a socket's descriptor, of which bun-types don't know. */
type Connection = Socket<Session | undefined> & { fd: number };

/** A connection to a probe port. */
interface Probe {
  observed: Endpoint;
  subscriber: string;
  hasSpoken: boolean;
  untilMs: number;
}

/** One connection. Small on purpose: what an idle participant doesn't need is made when needed. */
class Session {
  readonly socket: Connection;
  /** Kept from `open`: a closed socket has no remote address. */
  readonly observed: Endpoint;
  /** Who shares its shares: {@link subscriber} of its address. */
  readonly subscriber: string;
  readonly lines: Bucket;
  peer: Peer | undefined = undefined;
  /** {@link peer} as JSON, made when first needed: a room's snapshot is made of them. */
  json = "";
  room = "";
  /** Whether it waits to be registered, until it is known who is in its room elsewhere. */
  isEntering = false;
  closing = false;
  /** Until when it must have registered or, once closing, be gone. */
  deadlineAt: number;
  /** When it is looked at next: native/introducer/wheel.ts. */
  dueStep = neverDue;
  heardAt: number;
  pingId = 0;
  pingSentAt = 0;
  answeredPingId = 0;
  roundTripMs: number | undefined = undefined;
  badLines = 0;
  introductions: Bucket | undefined = undefined;
  /** By the peer's public instance, which stays when its id changes. */
  links: Map<string, Link> | undefined = undefined;
  /** Whether its `mapping` has come. */
  hasMeasured = false;
  /** Where its NAT, which counts, stood when last measured. */
  position: Prediction | undefined = undefined;
  takesRelay = true;
  /** When it is no control connection but one end of a relayed link. */
  relayed: RelayEnd<Session> | undefined = undefined;
  isConnectedBack = false;
  /** What `verify` has to repeat, and `probe`. */
  verifyToken: string | undefined = undefined;
  probeToken: string | undefined = undefined;
  decoder: LineDecoder | undefined = undefined;
  /** Read, but more than it may say now: while there is any, its socket is paused. */
  held: Uint8Array | undefined = undefined;
  /** How many had come by it when that was last looked at. */
  segments = 0;
  /** Of its held bytes and of a line that is not whole. */
  heldBytes = 0;
  hasEnded = false;
  /** Written at the end of the tick. */
  outgoing = "";
  unsent: Uint8Array[] | undefined = undefined;
  unsentBytes = 0;

  constructor(socket: Connection, observed: Endpoint, limits: Limits, now: number) {
    this.socket = socket;
    this.observed = observed;
    this.subscriber = subscriber(splitEndpoint(observed).address);
    this.lines = { tokens: limits.messageBurst, at: now };
    this.deadlineAt = now + limits.registerDeadlineMs;
    this.heardAt = now;
  }
}

/** Whose session is served: its socket. */
interface Served {
  readonly data: Session | undefined;
}
/** Where it is nobody's in particular. */
const nobody: Served = { data: undefined };

/** What was thrown while something was served. */
interface Mistake {
  readonly error: unknown;
}
const none: Mistake = { error: undefined };

/** A session that has registered. */
type Member = Session & { peer: Peer };
/** Somebody in a room, here or at another introducer. */
type Party = Member | Guest;

/** One of the two in an introduction. */
interface Side {
  readonly member: Party;
  /** What it said of the round under way; undefined while that is still to come. */
  report: "linked" | "failed" | undefined;
  isMeasuring: boolean;
  prediction: Prediction | undefined;
  /** What came while it was punching by an older prediction. */
  newer: Prediction | undefined;
  /** Whether it has said that it is linked by relay. */
  isRelayed: boolean;
}

/** How far an introduction is. Only what has been announced by a `punch` can be reported on. */
type Phase =
  | { is: "planning"; untilMs: number }
  | { is: "measuring"; untilMs: number }
  | { is: "punching"; untilMs: number; isLast: boolean }
  /** There is no direct way, and a relay is offered instead. */
  | { is: "relayed"; untilMs: number };

/** Two participants being brought together, in as many rounds as the plan has. */
interface Introduction {
  readonly pair: Pair;
  readonly number: number;
  /** The asker first: it is the controlling side. */
  readonly sides: readonly [Side, Side];
  phase: Phase;
  /** Of the round under way; empty before the first. */
  token: string;
  /** Empty while planning. */
  plan: Way[];
  /** Index in the plan. */
  round: number;
  /** Offered once it is due, never before there has been a direct round. */
  relay: "unwanted" | "wanted" | "due" | "offered";
  relayToken: string;
  hasPunched: boolean;
  /** Whether the round under way goes by predictions that are being measured anew. */
  isByOlder: boolean;
  /** How often it was begun anew because they were wrong. */
  corrections: number;
  /** Whether a birthday has been taken from the budgets, and whether one has been punched. */
  isCounted: boolean;
  hasBirthday: boolean;
  /** Whether the side that did not ask has said that it is linked. */
  isWelcome: boolean;
  /** Whether it has been given back to the budgets. */
  isFree: boolean;
  /** When both had said that they are linked by relay. */
  relayLinkedAt: number | undefined;
  readonly startedAt: number;
  readonly deadlineAt: number;
  readonly expiresAt: number;
}

/** What one member asked of another. */
interface Asked {
  introductions: Bucket;
  birthdays: Bucket;
  birthdayFailedAt: number;
}

/** An introduction that a guest asked for, and that its introducer runs: what we know of it. */
interface Foreign {
  readonly number: number;
  readonly expiresAt: number;
  hasPunched: boolean;
  isLast: boolean;
  relayToken: string;
  /** Of the round that was last announced, and its way. */
  token: string;
  way: Way | undefined;
  /** Whether our side has said what became of it, and whether it has been given back to the budgets. */
  isReported: boolean;
  isFree: boolean;
}

/** What one member got from all others, until that has come back. */
interface Unasked extends Due {
  readonly id: number;
  introductions: Bucket;
  /** Of them, those by each address. */
  perAddress: Usage;
  failedBirthdays: Bucket;
}

/** Two who are being introduced, or have been lately. */
interface Pair extends Due {
  readonly members: readonly [Party, Party];
  introduction: Introduction | undefined;
  foreign: Foreign | undefined;
  /** By the asker's id. */
  readonly asked: Map<number, Asked>;
}

// --- pure functions --------------------------------------------------------------------------------------

/** Of many tokens at once, for thousands a second are made. */
const randomBytes = Buffer.alloc(256 * tokenBytes);
let randomAt = randomBytes.length;

function newToken(): string {
  if (randomAt === randomBytes.length) {
    crypto.getRandomValues(randomBytes);
    randomAt = 0;
  }
  return randomBytes.toString("hex", randomAt, (randomAt += tokenBytes));
}

/** What an attempt to connect says of the filtering there; undefined when it failed for a reason of our own. */
export function filteringOf(code: string | undefined): Filtering | undefined {
  if (code === undefined) return "let-in";
  if (code === "ETIMEDOUT") return "dropped";
  return refusalErrors.has(code) ? "refused" : undefined;
}

/** Bun says ECONNREFUSED, too, when there is no descriptor left for a socket. */
function hasDescriptor(): boolean {
  try {
    closeSync(openSync(process.execPath, "r"));
    return true;
  } catch {
    return false;
  }
}

/** Connects to an endpoint, from that address, only to see what comes back; undefined when it could not be tried. */
function tryConnect({ address, port }: EndpointParts, localAddress?: string): Promise<Filtering | undefined> {
  const { promise, resolve } = Promise.withResolvers<Filtering | undefined>();
  const socket = connect({ host: address, port, ...(localAddress !== undefined && { localAddress }) });
  const timer = setTimeout(() => resolve("dropped"), connectBackMs);
  socket.once("connect", () => resolve(filteringOf(undefined)));
  socket.on("error", ({ code = "unknown" }: NodeJS.ErrnoException) =>
    resolve(hasDescriptor() ? filteringOf(code) : undefined),
  );
  return promise.finally(() => {
    clearTimeout(timer);
    socket.destroy();
  });
}

/** Undefined when the client is gone already. */
function observedEndpoint(socket: Socket<unknown>): Endpoint | undefined {
  const address = canonicalAddress(socket.remoteAddress ?? "")?.address;
  return address === undefined ? undefined : formatEndpoint(address, socket.remotePort);
}

/** Whether it came by an address that only its own network has, such as a link-local one: to its peers it is none. */
function isNoPlace(observed: Endpoint): boolean {
  return scopeOf(observed) === "unusable";
}

/** All addresses of this host; none when the system can't say now. */
function ownAddresses(): { family: 4 | 6; address: string }[] {
  try {
    const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
    return all.flatMap(({ address }) => canonicalAddress(address) ?? []);
  } catch {
    return []; // out of descriptors
  }
}

/** One of these addresses, of that family, that a participant seen at `observed` may well reach. */
function reachable(
  own: ReturnType<typeof ownAddresses>,
  observed: Endpoint,
  family: 4 | 6,
): string | undefined {
  const scope = scopeOf(observed);
  const scopes = scope === "private" ? ["private", "global"] : [scope];
  const fitting = own.filter((one) => one.family === family);
  const ranked = scopes.flatMap((wanted) => fitting.filter((one) => addressScope(one.address) === wanted));
  return ranked[0]?.address;
}

function isGuest(party: Party): party is Guest {
  return "introducer" in party;
}

/** Type, version and peer of a line that may be anything. */
function peek(line: string): { type?: string; version?: number; peer?: number } {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return {};
  }
  const { type, version, peer } = (value ?? {}) as Record<string, unknown>;
  return {
    ...(typeof type === "string" && { type: type.slice(0, 64).toWellFormed() }),
    ...(typeof version === "number" && { version }),
    ...(Number.isSafeInteger(peer) && Number(peer) >= 1 && { peer: Number(peer) }),
  };
}

/** Before anything else is read: another version may have other fields. */
function refuseOtherVersion(line: string): void {
  const { type, version = protocolVersion } = peek(line);
  if (type !== "register" || version === protocolVersion) return;
  const older = version < protocolVersion ? "participant" : "introducer";
  const message = `you speak protocol version ${version}, this introducer version ${protocolVersion}: update the ${older}`;
  throw new Refusal("bad-version", message, true);
}

/** The candidates that may be told to others, without duplicates, and those that may not. */
function sortCandidates(candidates: Endpoint[], observed: Endpoint): [Endpoint[], Endpoint[]] {
  const allowed: Endpoint[] = [];
  const ignored: Endpoint[] = [];
  for (const candidate of new Set(candidates)) {
    if (mayOffer(candidate, observed)) allowed.push(candidate);
    else if (addressScope(splitEndpoint(candidate).address) !== "loopback") ignored.push(candidate);
    else throw new Refusal("bad-field", `private: ${candidate} is a loopback address, useless to a peer`);
  }
  return [allowed, ignored];
}

function jsonOf(member: Party): string {
  return (member.json ||= JSON.stringify(member.peer));
}

/** The line of a message that shows a peer. */
function lineAbout(member: Party, message: About): string {
  return `${JSON.stringify(message).slice(0, -1)},"peer":${jsonOf(member)}}\n`;
}

/** A room's snapshot in lines of at most {@link maxLineBytes}. */
function snapshot(others: Iterable<Party>): string {
  const parts: string[][] = [[]];
  let bytes = 0;
  for (const other of others) {
    const json = jsonOf(other);
    const size = Buffer.byteLength(json) + 1;
    if (bytes + size > maxLineBytes - 64) {
      parts.push([]);
      bytes = 0;
    }
    bytes += size;
    parts.at(-1)!.push(json);
  }
  const line = (part: string[], index: number) =>
    `{"type":"peers","peers":[${part.join(",")}],"more":${index < parts.length - 1}}\n`;
  return parts.map(line).join("");
}

/** After how long one shall come back who is sent away. */
function retryInMs(): number {
  return Math.round(leastRetryInMs + Math.random() * (mostRetryInMs - leastRetryInMs));
}

/** How long the sides wait so that both start at the same moment, for one-way delays from the introducer. */
export function startDelays(a: number | undefined, b: number | undefined): [number, number] {
  const [delayA, delayB] = [Math.round((a ?? 0) / 2), Math.round((b ?? 0) / 2)];
  const last = Math.max(delayA, delayB);
  return [Math.min(last - delayA, maxStartInMs), Math.min(last - delayB, maxStartInMs)];
}

/** How long the round under way may last, and whether no other follows: told in its `punch`, and held to. */
function roundLength({ plan, round, sides, deadlineAt }: Introduction, now: number) {
  const way = plan[round]!;
  const leftMs = deadlineAt - now;
  const roundTripMs = (sides[0].member.roundTripMs ?? 0) + (sides[1].member.roundTripMs ?? 0);
  // An open host accepts within one round trip, or not at all.
  const isTrial = way === "direct" && plan[round + 1] === "birthday";
  const roundMs = isTrial
    ? 2 * roundTripMs + trialSpareMs
    : roundTripMs * roundRoundTrips[way] + roundSpareMs[way];
  const isLast = round === plan.length - 1 || leftMs - roundMs < shortestRoundMs;
  return { isLast, deadlineMs: Math.max(1, Math.round(isLast ? leftMs : roundMs)) };
}

/** How long an introduction may take in all, with what is said of it at the end. */
function introductionMs({ punchDeadlineMs: mostMs }: Limits): number {
  return mostMs + maxStartInMs + reportGraceMs;
}

/** Links by a token are reported within this time: a relay may be offered as the last round ends. */
function reportableMs(limits: Limits): number {
  return introductionMs(limits) + limits.relayOfferMs + reportGraceMs;
}

function foreign(number: number, expiresAt: number): Foreign {
  const none = { relayToken: "", token: "", way: undefined };
  const so = { hasPunched: false, isLast: false, isReported: false, isFree: false };
  return { number, expiresAt, ...none, ...so };
}

/** For whom there is something to do with a pair: the asker, unless that is a guest. */
function whoseTurn({ introduction, members }: Pair): Party | undefined {
  const all = introduction?.sides.map(({ member }) => member) ?? members;
  return all.find((one) => !isGuest(one));
}

/** Whether an introduction is under way that the other side's introducer runs. */
function isOrdered({ foreign: known }: Pair, now: number): boolean {
  return known !== undefined && !known.isReported && now < known.expiresAt;
}

/** Whether the other side says, too, that they are linked: of a guest it can't be known. */
function saysSo(other: Party, { peer }: Member): boolean {
  return isGuest(other) || other.links?.has(peer.instance) === true;
}

/** Whether it is at a participant's own address: nobody is sent to another one. */
function isAt(endpoint: Endpoint, { observed }: Party): boolean {
  return splitEndpoint(endpoint).address === splitEndpoint(observed).address;
}

/** Whether it shows that guest as the room knows it: nobody is sent anywhere else. */
function isOf(order: Order, { peer }: Guest): boolean {
  if (order.type === "failed") return true;
  const { public: observed, instance, fingerprint } = order.peer;
  return observed === peer.public && instance === peer.instance && fingerprint === peer.fingerprint;
}

/** A room's name for people: of a secret one, which is a hash, as much as tells it from others. */
function roomName(room: string): string {
  return isSecretRoom(room) ? `${room.slice(0, 8)}…` : room;
}

// --- what an operator reads ------------------------------------------------------------------------------

/** Two lines a participant and more, in 80 columns. */
const narrowList: Column[] = [
  { head: "id" },
  { head: "name", least: 9, isCut: true },
  { head: "room", least: 9, isCut: true },
  { head: "mapping" },
  { head: "private endpoint\npublic endpoint", least: 21 },
  { head: "linked\npunching", least: 8 },
  { head: "since" },
];
/** One line a participant. */
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
/** Beside the room where several introducers share it: which of them has the participant. */
const atIntroducer: Column = { head: "introducer", least: 9, isCut: true };
/** Ids of others that a line shows; there may be a room full of them. */
const shownIds = 6;
const shownRelays = 2;

function idList(ids: number[], most: number): string {
  const more = ids.length > most ? ` +${ids.length - most}` : "";
  return ids.slice(0, most).join(", ") + more || "-";
}

/** `512 B`, `1.5 MiB`. */
function amount(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** unit).toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

/** Which of its links are relayed: `7 relayed 1.5 MiB`. */
function relayedList({ links }: Participant, most: number): string[] {
  const relayed = links.filter(({ route }) => route === "relay");
  const shown = relayed
    .slice(0, most)
    .map(({ id, relayedBytes = 0 }) => `${id} relayed ${amount(relayedBytes)}`);
  return relayed.length > most ? [...shown, `+${relayed.length - most} relayed`] : shown;
}

function row(one: Participant, width: number, colors: Colors, now: number, isShared: boolean): Cell[] {
  const isWhole = width === Infinity;
  const [first = "-", ...others] = one.private;
  const more = others.length > 0 ? `+${others.length} more` : "";
  const dim = (text: string) => ({ text, paint: colors.dim });
  const linked = { text: idList(one.linked, isWhole ? Infinity : shownIds), paint: colors.green };
  const punching = { text: idList(one.punching, isWhole ? Infinity : shownIds), paint: colors.yellow };
  const relayed = relayedList(one, isWhole ? Infinity : shownRelays);
  const at = isShared ? [dim(one.introducer ?? "here")] : [];
  const who = [
    [{ text: String(one.id), paint: colors.bold }],
    [printable(one.name)],
    [printable(roomName(one.room)), ...(width < wideColumns ? at : [])],
    ...(isShared && width >= wideColumns ? [at] : []),
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
 * The participants as a table, in pieces, made by turns with all else: of at most 80 columns, or as wide as `width`;
 * Infinity, for a pipe, cuts nothing.
 */
export async function renderParticipants(
  participants: readonly Participant[],
  colors: Colors,
  now: number,
  width = 80,
): Promise<string[]> {
  if (participants.length === 0) return ["nobody is here yet"];
  const isShared = participants.some(({ introducer }) => introducer !== undefined);
  const columns = columnsOf(width < wideColumns, isShared);
  const cells = (one: Participant) => row(one, width, colors, now, isShared);
  const pieces = await renderRows(columns, participants, cells, width);
  return [...pieces, await total(participants)];
}

function columnsOf(isNarrow: boolean, isShared: boolean): Column[] {
  if (!isShared) return isNarrow ? narrowList : wideList;
  if (isNarrow) return narrowList.with(2, { ...narrowList[2]!, head: "room\nintroducer" });
  return wideList.toSpliced(3, 0, atIntroducer);
}

/** `3 participants in 1 room, 1 link`. */
async function total(participants: readonly Participant[]): Promise<string> {
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

/** `7 (4 linked direct, 3 peer-left none)`; `0` for none. */
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

function acrossAll({ participants, introducers }: Everywhere): string {
  const where = count(introducers, "introducer");
  return `${count(participants, "participant")} at ${where}; all below is of this one alone`;
}

/** What has been going on since the start, a line each. */
export function renderStats(stats: Stats, everywhere?: Everywhere): string {
  const { introductions, refusals, residentBytes } = stats;
  const now = `${count(stats.participants, "participant")} in ${count(stats.rooms, "room")}`;
  const held = `${count(stats.connections, "connection")}, ${stats.waiting} waiting`;
  const ofWays = introductions.map((one) => ({ ...one, what: `${one.outcome} ${one.way}` }));
  const ofCodes = refusals.map((one) => ({ ...one, what: one.code }));
  const rows = [
    ...(everywhere ? [["everywhere", acrossAll(everywhere)] as const] : []),
    ["up", age(stats.uptimeMs)],
    ["now", `${now}, ${held}`],
    ["joins", String(stats.joins)],
    ["introductions", counted(ofWays)],
    ["time to link", spread(stats.linkMs)],
    ["relays", `${stats.relays} now, ${amount(stats.relayedBytes)} in all`],
    ["refusals", counted(ofCodes)],
    ["turned away", count(stats.turnedAway, "connection")],
    ["memory", residentBytes === undefined ? "-" : amount(residentBytes)],
    ["timers late", spread(stats.eventLoopDelayMs)],
  ] as const;
  return rows.map(([what, value]) => `${what.padEnd(14)}${value}`).join("\n");
}

/** One event as a log line; it may hold text from the network, so it is made printable by whoever prints it. */
function describe(event: IntroducerEvent): string {
  switch (event.event) {
    case "listening":
      return `listening on ${event.host} port ${event.port}`;
    case "joined":
      return `#${event.id} ${event.name} joined ${roomName(event.room)} from ${event.public} (private ${event.private.join(", ") || "none"})`;
    case "ignored":
      return `${event.address} offered ${event.endpoints.join(", ")}, not its own: ignored`;
    case "left":
      return `#${event.id} ${event.name} left: ${event.reason}`;
    case "punch":
      return `#${event.a} and #${event.b} are punching (${event.way}, round ${event.round})`;
    case "mapping":
      return `#${event.id} has ${event.mapping} mapping`;
    case "mapped":
      return `#${event.id} has ${event.endpoint ? `the mapped port ${event.endpoint}` : "no mapped port any more"}`;
    case "relaying":
      return `#${event.a} and #${event.b} are relayed`;
    case "relayed":
      return `#${event.a} and #${event.b} are relayed no more: ${amount(event.bytes)}`;
    case "warning":
    case "shared":
      return event.message;
    case "draining": {
      const { participants, punching, relays, reason } = event;
      const waiting = `waiting for ${punching} that are punching and ${count(relays, "relay")}`;
      return `${reason}: ${count(participants, "participant")} told to come back, ${waiting}`;
    }
    case "linked":
      return `#${event.id} linked with #${event.peer} (${event.route}): ${event.local} → ${event.remote}`;
    case "unlinked":
      return `#${event.id} unlinked from #${event.peer}: ${event.reason}`;
    case "failed":
      return `#${event.id} failed to link with #${event.peer}: ${failureReasons[event.reason]}${event.detail && ` (${event.detail})`}`;
    case "refused":
      return `refused ${event.id ? `#${event.id} ` : ""}${event.address}: ${event.message} [${event.code}]`;
    case "error":
      return event.address ? `an error while serving ${event.address}: ${event.message}` : event.message;
    case "told": {
      const { id, name, participants } = event;
      return id === undefined ? `told ${count(participants, "participant")}` : `told ${name} (${id})`;
    }
    case "participants":
      return `${event.participants.length} participants`;
    case "stats":
      return `${event.stats.participants} participants`;
  }
}

// --- introductions ---------------------------------------------------------------------------------------

/** What the introductions need of the sessions. */
interface Exchange {
  readonly limits: Limits;
  /** Whether there are probe ports, so that participants can say how their NATs map. */
  readonly canMeasure: boolean;
  send(member: Member, message: ToParticipant): void;
  /** Sends a message that shows `about`. */
  show(member: Member, about: Party, message: About): void;
  /** Where its NAT stands has been measured. */
  moved(member: Member): void;
  /** Tells a guest's introducer. */
  post(guest: Guest, letter: Letter): void;
  /** The token of a relay between the two, where there can be one, and where a guest comes to it. */
  offerRelay(a: Party, b: Party): { token: string; endpoint?: Endpoint } | undefined;
  /** Refuses a `connect` that has been accepted before. */
  refuse(member: Member, refusal: Refusal, peer: number): void;
  tell(event: IntroducerEvent): void;
  /** Does what serves a member: what fails in it costs that one only. Of a guest, or of nobody, it costs nobody. */
  serve(member: Party | undefined, work: () => void): void;
  /** An introduction has ended. */
  count(outcome: Outcome, way: OutcomeWay, elapsedMs: number): void;
}

/**
 * Brings two members together: plans the rounds by how their NATs map, tells both when to punch, hears what became of
 * it, and sees to it that nobody is made to punch more than is good for him.
 */
class Introductions {
  readonly #exchange: Exchange;
  /** When each pair is to be looked at next. */
  readonly #duePairs: Deadlines<Pair>;
  readonly #rounds = new Rounds(
    () => this.#duePairs.take(performance.now()).values(),
    (pair, now) => this.#lookAt(pair, now),
  );
  readonly #dueUnasked: Deadlines<Unasked>;
  readonly #unaskedRounds = new Rounds(
    () => this.#dueUnasked.take(performance.now()).values(),
    (unasked, now) => this.#lookAtUnasked(unasked, now),
  );
  readonly #workingWays = new WorkingWays();
  /** By the ids of both. */
  readonly #of = new Map<number, Map<number, Pair>>();
  readonly #byToken = new Map<string, Introduction>();
  /** What each member got from all others, by its id. */
  readonly #unasked = new Map<number, Unasked>();
  /** Those of other introducers for which one of our side shall measure, by that token. */
  readonly #foreign = new Map<string, Pair>();
  readonly #told: ToldTokens;
  #lastNumber = 0;
  /** Those to be offered a relay, and when, the first due first. */
  readonly #relayAt = new Map<Introduction, number>();
  #relayTimer: Timer | undefined;

  /** It is to {@link tick} every `tickMs`. */
  constructor(exchange: Exchange, tickMs: number) {
    this.#exchange = exchange;
    this.#duePairs = new Deadlines(tickMs, performance.now());
    this.#dueUnasked = new Deadlines(tickMs, performance.now());
    this.#told = new ToldTokens(reportableMs(exchange.limits));
  }

  /** The ids that a member is being introduced to. */
  punching(id: number): number[] {
    const pairs = [...(this.#of.get(id) ?? [])];
    const now = performance.now();
    const isUnderWay = (pair: Pair) => pair.introduction !== undefined || isOrdered(pair, now);
    return pairs.filter(([, pair]) => isUnderWay(pair)).map(([peer]) => peer);
  }

  stop(): void {
    clearTimeout(this.#relayTimer);
  }

  /** Throws a {@link Refusal} when there have been too many. */
  ask(asker: Member, target: Party, wantsRelay: boolean): void {
    const now = performance.now();
    const pair = this.#pair(asker, target);
    if (isOrdered(pair, now)) return; // it answers this one, too
    const { introduction } = pair;
    if (introduction && this.#isAnswer(introduction, asker, now)) {
      if (wantsRelay) this.#wantRelay(introduction, now);
      return;
    }
    this.#charge(pair, asker, target, now);
    if (introduction) this.#end(introduction, "superseded");
    pair.introduction = this.#introduction(pair, asker, target, now);
    this.#duePairs.put(pair, pair.introduction.phase.untilMs);
    if (wantsRelay) this.#wantRelay(pair.introduction, now);
    this.#plan(pair.introduction);
  }

  /**
   * What a guest's introducer has to say to one of ours, of an introduction that it runs. Where both have asked at once,
   * at either introducer, that of the lower id goes on: both introducers come to the same.
   */
  ordered(member: Member, guest: Guest, order: Letter & { is: "order" }): void {
    const { introduction: number, lastsMs, message } = order;
    const now = performance.now();
    const pair = this.#pair(member, guest);
    if (pair.foreign?.number !== number) {
      if (message.type === "failed" || this.#isRival(pair, guest, now)) return;
      if (!this.#admit(pair, guest, member, now)) return this.#decline(member, guest, message);
      if (pair.introduction) this.#end(pair.introduction, "superseded");
      this.#forgetForeign(pair);
      pair.foreign = foreign(number, now + Math.min(lastsMs, introductionMs(this.#exchange.limits)));
    }
    this.#note(pair, pair.foreign!, message);
    if (message.type === "failed") return this.#exchange.send(member, message);
    const { viaMs } = guest.peer;
    this.#exchange.send(member, {
      ...message,
      peer: { ...message.peer, ...(viaMs !== undefined && { viaMs }) },
    });
  }

  #isRival({ introduction }: Pair, guest: Guest, now: number): boolean {
    if (!introduction || !this.#isAnswer(introduction, guest, now)) return false;
    return introduction.sides[0].member.peer.id < guest.peer.id;
  }

  /** The same budgets as for those who ask here. */
  #admit(pair: Pair, guest: Guest, member: Member, now: number): boolean {
    try {
      this.#charge(pair, guest, member, now);
      return true;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      return false;
    }
  }

  #decline(member: Member, guest: Guest, { token }: Order): void {
    this.#report(member, guest, { type: "failed", peer: guest.peer.id, token, reason: "refused-by-peer" });
  }

  /** What will be needed to understand what our side says of it. */
  #note(pair: Pair, known: Foreign, message: Order): void {
    if (message.type === "relay") known.relayToken = message.token;
    if (message.type === "relay" || message.type === "punch") this.#tell(message.token, pair.members);
    if (message.type === "punch") [known.hasPunched, known.isLast] = [true, message.last];
    if (message.type === "punch" || message.type === "measure") {
      this.#foreign.delete(known.token);
      [known.token, known.way] = [message.token, message.way];
      this.#foreign.set(message.token, pair);
    } else if (message.type === "failed") this.#forgetForeign(pair);
  }

  #forgetForeign(pair: Pair): void {
    if (pair.foreign) this.#foreign.delete(pair.foreign.token);
    pair.foreign = undefined;
  }

  /** What one of ours says of an introduction that a guest's introducer runs is for that introducer; returns whether it is. */
  #passOn(member: Member, message: MessageOf<"linked" | "failed">): boolean {
    const pair = this.#of.get(member.peer.id)?.get(message.peer);
    const guest = pair?.members.find((one) => one !== member);
    if (!pair?.foreign || !guest || !isGuest(guest)) return false;
    const known = pair.foreign;
    const isRelay = message.token === known.relayToken;
    if (!isRelay && message.token !== known.token) return true; // of an earlier round, or of none
    if (message.type === "linked") {
      if (!isRelay || !known.hasPunched) known.isReported = true;
      if (!known.isFree) this.#refundBoth(pair, guest, member);
      known.isFree = true;
    } else if (!isRelay && (known.isLast || !retriable.has(message.reason))) known.isReported = true;
    this.#report(member, guest, message);
    return true;
  }

  #report(member: Member, guest: Guest, message: Report): void {
    this.#exchange.post(guest, { is: "report", from: member.peer.id, to: guest.peer.id, message });
  }

  /** A member has said how its NAT maps. */
  mapped(member: Party): void {
    for (const { introduction } of this.#of.get(member.peer.id)?.values() ?? []) {
      if (introduction?.phase.is === "planning") this.#plan(introduction);
    }
  }

  /** Where a member's NAT stands now. */
  probed(member: Member, peer: number, prediction: Prediction): void {
    const { introduction, foreign: known } = this.#of.get(member.peer.id)?.get(peer) ?? {};
    if (introduction?.plan[introduction.round] === "predicted")
      this.#measured(introduction, member, prediction);
    else if (known?.way === "predicted")
      this.measured(member, { type: "measured", token: known.token, prediction });
  }

  measured(member: Party, message: MessageOf<"measured">): void {
    const { token, prediction } = message;
    const ordered = this.#foreign.get(token);
    const guest = ordered?.members.includes(member) && ordered.members.find((one) => one !== member);
    if (guest && isGuest(guest) && !isGuest(member)) {
      const isPosition = prediction && ordered?.foreign?.way === "predicted";
      if (isPosition && isAt(prediction.endpoint, member)) this.#standsAt(member, prediction);
      return this.#report(member, guest, message);
    }
    const introduction = this.#byToken.get(token);
    if (introduction) this.#measured(introduction, member, prediction);
  }

  #standsAt(member: Party, position: Prediction): void {
    member.position = position;
    if (!isGuest(member)) this.#exchange.moved(member);
  }

  #measured(introduction: Introduction, member: Party, prediction: Prediction | undefined): void {
    const { sides, plan, round, isByOlder } = introduction;
    const side = sides.find((one) => one.member === member);
    if (!side?.isMeasuring) return; // late: the round has begun without it
    if (prediction && isAt(prediction.endpoint, member)) {
      if (plan[round] === "predicted") this.#standsAt(member, prediction);
      if (isByOlder) side.newer = prediction;
      else side.prediction = prediction;
    }
    side.isMeasuring = false;
    if (sides.some(({ isMeasuring }) => isMeasuring)) return;
    if (!isByOlder) this.#punch(introduction);
    else if (sides.some((one) => one.newer && !isAhead(one.prediction!, one.newer)))
      this.#punchAnew(introduction);
  }

  /** What the round aims at has passed by already. */
  #punchAnew(introduction: Introduction): void {
    const { sides } = introduction;
    this.#newToken(introduction);
    // Where both count, each has used up as many ports as it has tried since it was measured.
    const used = sides.every(({ newer }) => newer) ? predictedPorts : 0;
    for (const side of sides) {
      const { newer } = side;
      side.report = side.newer = undefined;
      if (!newer) continue;
      const { address } = splitEndpoint(newer.endpoint);
      side.prediction = { ...newer, endpoint: formatEndpoint(address, predictPort(newer, used)) };
    }
    // A side that had to try again and again has gone on since, and will say so once more.
    introduction.isByOlder = used === 0 && ++introduction.corrections < maxCorrections;
    for (const side of sides) side.isMeasuring = introduction.isByOlder && side.member.position !== undefined;
    this.#punch(introduction);
  }

  /** Whether that is one of the two who were told that token, and has not said yet that they are linked by it. */
  mayReport({ peer }: Member, other: Party, token: string): boolean {
    return this.#told.take(token, peer.instance, other.peer.instance, performance.now());
  }

  #tell(token: string, [a, b]: readonly Party[]): void {
    this.#told.tell(token, a!.peer.instance, b!.peer.instance, performance.now());
  }

  linked(member: Party, message: MessageOf<"linked">): void {
    const { token } = message;
    const introduction = this.#byToken.get(token);
    if (!introduction && !isGuest(member) && this.#passOn(member, message)) return;
    if (introduction?.relayToken === token) this.#linkedByRelay(introduction, member);
    else this.#linkedDirectly(member, token);
  }

  /** Direct rounds go on meanwhile: it ends none of them. */
  #linkedByRelay(introduction: Introduction, member: Party): void {
    const { sides, phase } = introduction;
    const side = sides.find((one) => one.member === member);
    if (side === sides[1]) this.#refund(introduction);
    if (!side) return;
    side.isRelayed = true;
    if (sides.every(({ isRelayed }) => isRelayed)) introduction.relayLinkedAt ??= performance.now();
    if (phase.is !== "relayed") return;
    side.report = "linked";
    if (sides.every(({ report }) => report === "linked")) this.#end(introduction, "linked");
  }

  #linkedDirectly(member: Party, token: string): void {
    const found = this.#reported(member, token);
    if (!found) return;
    const { introduction, side, other } = found;
    const { plan, round, sides } = introduction;
    side.report = "linked";
    if (round > 0) this.#workingWays.keep(sides[0].member.peer.id, sides[1].member.peer.id, plan[round]!);
    if (side === sides[1]) {
      introduction.isWelcome = true;
      this.#refund(introduction);
    }
    if (other.report === "linked") this.#end(introduction, "linked");
    else if (other.report === "failed") this.#nextRound(introduction);
  }

  failed(member: Party, message: MessageOf<"failed">): void {
    const { token, reason } = message;
    const introduction = this.#byToken.get(token);
    if (!introduction && !isGuest(member) && this.#passOn(member, message)) return;
    if (introduction?.relayToken === token) this.#failedByRelay(introduction, member, reason);
    else this.#failedDirectly(member, token, reason);
  }

  #failedByRelay(introduction: Introduction, member: Party, reason: FailureReason): void {
    const { sides, phase } = introduction;
    const side = sides.find((one) => one.member === member);
    if (!side || side.report !== undefined || phase.is !== "relayed") return;
    side.report = "failed";
    this.#fail(introduction, side, side === sides[0] ? sides[1] : sides[0], reason);
  }

  #failedDirectly(member: Party, token: string, reason: FailureReason): void {
    const found = this.#reported(member, token);
    if (!found) return;
    const { introduction, side, other, phase } = found;
    side.report = "failed";
    if (phase.isLast || !retriable.has(reason)) return this.#fail(introduction, side, other, reason);
    // Whoever fails at once must not have the other side open a second thousand of sockets beside the first.
    const isAlone = other.report === undefined && performance.now() < phase.untilMs;
    if (introduction.plan[introduction.round] === "birthday" && isAlone) return;
    this.#nextRound(introduction);
  }

  /** A member or a guest is gone. */
  left(member: Party, detail: string): void {
    const { id } = member.peer;
    const pairs = [...(this.#of.get(id)?.values() ?? [])];
    for (const pair of pairs) {
      const { introduction } = pair;
      if (introduction) this.#exchange.serve(undefined, () => this.#endWithout(member, introduction, detail));
      this.#forget(pair);
    }
    this.#of.delete(id);
    this.#workingWays.forget(id);
    const unasked = this.#unasked.get(id);
    if (unasked) this.#forgetUnasked(unasked);
  }

  #endWithout(member: Party, introduction: Introduction, detail: string): void {
    this.#end(introduction, "peer-left");
    const side = introduction.sides.find((one) => one.member !== member)!;
    if (side.report !== undefined) return;
    const [{ id }, { id: otherId }] = [member.peer, side.member.peer];
    // Before the first round there is no token yet, and the other side takes any.
    const token = introduction.token || introduction.relayToken || newToken();
    this.#say(introduction, side.member, member, { type: "failed", peer: id, token, reason: "peer-left" });
    this.#exchange.tell({ event: "failed", id: otherId, peer: id, reason: "peer-left", detail });
  }

  tick(): void {
    this.#rounds.begin();
    this.#unaskedRounds.begin();
    this.#told.forget(performance.now());
  }

  #lookAt(pair: Pair, now: number): void {
    if (!this.#isKnown(pair)) return; // one of them has left
    const { introduction } = pair;
    if (introduction) this.#exchange.serve(whoseTurn(pair), () => this.#tickIntroduction(introduction, now));
    else if (now >= this.#isAsNewAt(pair)) this.#forget(pair);
    if (this.#isKnown(pair)) this.#duePairs.put(pair, this.#dueAt(pair, now));
  }

  #isKnown(pair: Pair): boolean {
    const [{ peer: a }, { peer: b }] = pair.members;
    return this.#of.get(a.id)?.get(b.id) === pair;
  }

  #dueAt(pair: Pair, now: number): number {
    if (!pair.introduction) return this.#isAsNewAt(pair);
    const { phase, expiresAt } = pair.introduction;
    return phase.untilMs > now ? Math.min(phase.untilMs, expiresAt) : expiresAt;
  }

  /** When all that was taken will have come back: no pair is remembered for longer than that, or a flood would fill memory. */
  #isAsNewAt({ asked, foreign: known }: Pair): number {
    const { introductionsPerPair, birthdaysPerPair, failedBirthdayPauseMs } = this.#exchange.limits;
    let at = known?.expiresAt ?? -Infinity;
    for (const { introductions, birthdays, birthdayFailedAt } of asked.values()) {
      const isFullAt = Math.max(
        fullAt(introductions, introductionsPerPair),
        fullAt(birthdays, birthdaysPerPair),
      );
      at = Math.max(at, isFullAt, birthdayFailedAt + failedBirthdayPauseMs);
    }
    return at;
  }

  #lookAtUnasked(unasked: Unasked, now: number): void {
    if (this.#unasked.get(unasked.id) !== unasked) return; // it has left
    const { introductionsPerTarget, failedBirthdaysPerTarget } = this.#exchange.limits;
    const { introductions, perAddress, failedBirthdays } = unasked;
    perAddress.tick(now);
    const isFullAt = Math.max(
      fullAt(introductions, introductionsPerTarget),
      fullAt(failedBirthdays, failedBirthdaysPerTarget),
    );
    if (now >= isFullAt && perAddress.size === 0) this.#forgetUnasked(unasked);
    else this.#dueUnasked.put(unasked, Math.max(isFullAt, now + unaskedMs));
  }

  #forgetUnasked(unasked: Unasked): void {
    this.#unasked.delete(unasked.id);
    this.#dueUnasked.remove(unasked);
  }

  #tickIntroduction(introduction: Introduction, now: number): void {
    const { phase, sides, expiresAt } = introduction;
    if (now >= expiresAt) return this.#expire(introduction);
    if (now < phase.untilMs) return;
    if (phase.is === "planning") this.#plan(introduction);
    else if (phase.is === "measuring") this.#punch(introduction);
    else if (phase.is === "punching" && !phase.isLast && sides.some(({ report }) => report === "failed"))
      this.#nextRound(introduction);
  }

  /** Direct rounds have deadlines of which both sides know; of a relay that nobody took they are told. */
  #expire(introduction: Introduction): void {
    const { phase, sides, relayToken: token } = introduction;
    const reason = "timed-out";
    this.#end(introduction, reason);
    if (phase.is !== "relayed") return;
    for (const [one, other] of [sides, [sides[1], sides[0]]] as const) {
      const [id, peer] = [one.member.peer.id, other.member.peer.id];
      if (one.report !== undefined) continue;
      this.#say(introduction, one.member, other.member, { type: "failed", peer, token, reason });
      this.#exchange.tell({ event: "failed", id, peer, reason, detail: "the relay was not taken" });
    }
  }

  /** To one side, by way of its introducer where that is another. */
  #say(introduction: Introduction, to: Party, from: Party, message: Order): void {
    if (!isGuest(to)) return this.#exchange.send(to, message);
    const { number, expiresAt } = introduction;
    const lastsMs = Math.max(0, expiresAt - performance.now());
    const ends = { from: from.peer.id, to: to.peer.id };
    this.#exchange.post(to, { is: "order", ...ends, introduction: number, lastsMs, message });
  }

  /** The same with a message that shows the other side. */
  #show(introduction: Introduction, to: Party, about: Party, message: About): void {
    if (!isGuest(to)) return this.#exchange.show(to, about, message);
    this.#say(introduction, to, about, { ...message, peer: about.peer } as Order);
  }

  #pair(a: Party, b: Party): Pair {
    const known = this.#of.get(a.peer.id)?.get(b.peer.id);
    if (known) return known;
    const pair: Pair = {
      members: [a, b],
      introduction: undefined,
      foreign: undefined,
      asked: new Map(),
      dueStep: neverDue,
    };
    this.#duePairs.put(pair, performance.now());
    for (const [{ peer: one }, { peer: other }] of [
      [a, b],
      [b, a],
    ] as const) {
      const pairs = this.#of.get(one.id) ?? new Map<number, Pair>();
      this.#of.set(one.id, pairs.set(other.id, pair));
    }
    return pair;
  }

  #forget(pair: Pair): void {
    this.#duePairs.remove(pair);
    this.#forgetForeign(pair);
    const [{ peer: a }, { peer: b }] = pair.members;
    for (const [one, other] of [
      [a.id, b.id],
      [b.id, a.id],
    ] as const) {
      const pairs = this.#of.get(one);
      if (pairs?.delete(other) && pairs.size === 0) this.#of.delete(one);
    }
  }

  /**
   * Whether an introduction answers a `connect` that comes later: both may have asked at once. Once a side has reported
   * that it is linked, it knows how that ended, and means another.
   */
  #isAnswer({ sides, expiresAt }: Introduction, asker: Party, now: number): boolean {
    return sides.find(({ member }) => member === asker)!.report !== "linked" && now < expiresAt;
  }

  /** Budgets of what the target has not asked for. */
  #charge(pair: Pair, asker: Party, target: Party, now: number): void {
    const { introductionsPerPair: most, introductionsPerTarget: mostOfAll } = this.#exchange.limits;
    const { introductions } = this.#askedOf(pair, asker, now);
    const { introductions: ofAll, perAddress } = this.#unaskedOf(target, now);
    const ofPairSeconds = waitSeconds(introductions, most, now);
    if (ofPairSeconds > 0) {
      throw waitRefusal(`${most} introductions to one peer a minute are enough`, ofPairSeconds);
    }
    const ofAllSeconds = waitSeconds(ofAll, mostOfAll, now);
    // Whoever has used it up must not keep others from that peer.
    if (ofAllSeconds > 0 && perAddress.hasUsed(asker.subscriber, hadNone, now))
      throw waitRefusal(`that peer gets ${mostOfAll} introductions a minute and no more`, ofAllSeconds);
    introductions.tokens -= 1;
    ofAll.tokens = Math.max(0, ofAll.tokens - 1);
    perAddress.spend(asker.subscriber, 1, now);
  }

  /** The target has linked, so it wanted to, and it costs nobody anything. */
  #refund(introduction: Introduction): void {
    if (introduction.isFree) return;
    introduction.isFree = true;
    const { pair, sides } = introduction;
    this.#refundBoth(pair, sides[0].member, sides[1].member);
  }

  #refundBoth(pair: Pair, asker: Party, target: Party): void {
    const now = performance.now();
    this.#askedOf(pair, asker, now).introductions.tokens += 1;
    const { introductions, perAddress } = this.#unaskedOf(target, now);
    introductions.tokens += 1;
    perAddress.spend(asker.subscriber, -1, now);
  }

  #askedOf({ asked }: Pair, { peer }: Party, now: number): Asked {
    const known = asked.get(peer.id);
    if (known) return known;
    const { introductionsPerPair, birthdaysPerPair } = this.#exchange.limits;
    const fresh: Asked = {
      introductions: { tokens: introductionsPerPair, at: now },
      birthdays: { tokens: birthdaysPerPair, at: now },
      birthdayFailedAt: -Infinity,
    };
    asked.set(peer.id, fresh);
    return fresh;
  }

  #unaskedOf({ peer }: Party, now: number): Unasked {
    const known = this.#unasked.get(peer.id);
    if (known) return known;
    const { introductionsPerTarget, failedBirthdaysPerTarget, ownHostShares } = this.#exchange.limits;
    const fresh: Unasked = {
      id: peer.id,
      dueStep: neverDue,
      introductions: { tokens: introductionsPerTarget, at: now },
      perAddress: new Usage(introductionsPerTarget, 1, targetWindowMs, ownHostShares),
      failedBirthdays: { tokens: failedBirthdaysPerTarget, at: now },
    };
    this.#unasked.set(peer.id, fresh);
    this.#dueUnasked.put(fresh, now + unaskedMs);
    return fresh;
  }

  #introduction(pair: Pair, asker: Member, target: Party, now: number): Introduction {
    const { punchDeadlineMs: mostMs, measureMs } = this.#exchange.limits;
    const side = (member: Party): Side => ({
      member,
      report: undefined,
      isMeasuring: false,
      prediction: undefined,
      newer: undefined,
      isRelayed: false,
    });
    return {
      pair,
      number: ++this.#lastNumber,
      sides: [side(asker), side(target)],
      phase: { is: "planning", untilMs: now + measureMs },
      token: "",
      plan: [],
      round: 0,
      hasPunched: false,
      isByOlder: false,
      corrections: 0,
      isCounted: false,
      hasBirthday: false,
      relay: "unwanted",
      relayToken: "",
      isWelcome: false,
      isFree: false,
      relayLinkedAt: undefined,
      startedAt: now,
      deadlineAt: now + mostMs,
      expiresAt: now + introductionMs(this.#exchange.limits),
    };
  }

  /** Begins once both sides have said how their NATs map: who has just come may still be measuring. */
  #plan(introduction: Introduction): void {
    const { pair, sides, phase } = introduction;
    const isReady = !this.#exchange.canMeasure || sides.every(({ member }) => member.hasMeasured);
    if (!isReady && performance.now() < phase.untilMs) return;
    const [{ member: asker }, { member: target }] = sides;
    const rounds = planRounds(asker.peer, target.peer);
    if (rounds.length === 0) {
      if (!this.#relayInstead(introduction)) this.#refuseIntroduction(introduction);
      return;
    }
    const workingWay = this.#workingWays.of(asker.peer.id, target.peer.id);
    const plan = workingWay ? [workingWay, ...rounds] : rounds;
    if (plan.includes("birthday")) {
      const seconds = this.#birthdayPause(pair, asker, target);
      if (seconds > 0) {
        if (!this.#relayInstead(introduction)) this.#refuseBirthday(introduction, seconds);
        return;
      }
      introduction.isCounted = true;
    }
    introduction.plan = plan;
    this.#startRound(introduction);
  }

  /** Random ports on both sides, or against counted ones: a hundred thousand guesses would be needed. */
  #refuseIntroduction(introduction: Introduction): void {
    const [{ member: asker }, { member: target }] = introduction.sides;
    const [peer, reason] = [target.peer.id, "both-mappings-random" as const];
    this.#end(introduction, reason);
    this.#say(introduction, asker, target, { type: "failed", peer, token: newToken(), reason });
    const detail = `${asker.peer.mapping} and ${target.peer.mapping} mapping`;
    this.#exchange.tell({ event: "failed", id: asker.peer.id, peer, reason, detail });
  }

  /** Seconds until a birthday may begin; 0 when it may now, and then it is counted. */
  #birthdayPause(pair: Pair, asker: Party, target: Party): number {
    const now = performance.now();
    const { birthdaysPerPair, failedBirthdaysPerTarget, failedBirthdayPauseMs } = this.#exchange.limits;
    const { birthdays, birthdayFailedAt } = this.#askedOf(pair, asker, now);
    const { failedBirthdays } = this.#unaskedOf(target, now);
    const seconds = Math.max(
      Math.ceil((birthdayFailedAt + failedBirthdayPauseMs - now) / 1000),
      waitSeconds(birthdays, birthdaysPerPair, now),
      waitSeconds(failedBirthdays, failedBirthdaysPerTarget, now),
    );
    if (seconds > 0) return seconds;
    birthdays.tokens -= 1;
    failedBirthdays.tokens -= 1;
    return 0;
  }

  #refuseBirthday(introduction: Introduction, seconds: number): void {
    const [{ member: asker }, { member: target }] = introduction.sides;
    this.#end(introduction, "refused");
    const { birthdaysPerPair: most, failedBirthdayPauseMs: pauseMs } = this.#exchange.limits;
    const why = `guessing the ports of that peer takes a thousand sockets: ${most} a minute, none for ${pauseMs / 1000} s after a failure`;
    if (!isGuest(asker)) this.#exchange.refuse(asker, waitRefusal(why, seconds), target.peer.id);
  }

  #wantRelay(introduction: Introduction, now: number): void {
    if (introduction.relay !== "unwanted") return;
    introduction.relay = "wanted";
    this.#relayAt.set(introduction, now + relayAfterMs);
    this.#relayTimer ??= setTimeout(() => this.#relayDue(), relayAfterMs);
  }

  #relayDue(): void {
    this.#relayTimer = undefined;
    const now = performance.now();
    for (const [introduction, at] of this.#relayAt) {
      if (at > now) {
        this.#relayTimer = setTimeout(() => this.#relayDue(), Math.ceil(at - now));
        return;
      }
      this.#relayAt.delete(introduction);
      introduction.relay = "due";
      if (!introduction.hasPunched) continue;
      this.#exchange.serve(whoseTurn(introduction.pair), () => void this.#offerRelay(introduction));
    }
  }

  /** Where there is no direct way. */
  #relayInstead(introduction: Introduction): boolean {
    if (introduction.relay === "unwanted" || !this.#offerRelay(introduction)) return false;
    this.#enter(introduction, { is: "relayed", untilMs: introduction.expiresAt });
    return true;
  }

  /** Once for an introduction; returns whether it could be. */
  #offerRelay(introduction: Introduction): boolean {
    if (introduction.relay === "unwanted" || introduction.relay === "offered") return false;
    introduction.relay = "offered";
    this.#relayAt.delete(introduction);
    const [{ member: a }, { member: b }] = introduction.sides;
    const offer = this.#exchange.offerRelay(a, b);
    if (offer === undefined) return false;
    const { token } = offer;
    introduction.relayToken = token;
    this.#byToken.set(token, introduction);
    this.#tell(token, [a, b]);
    this.#show(introduction, a, b, { type: "relay", role: "controlling", token });
    this.#show(introduction, b, a, { type: "relay", role: "controlled", ...offer });
    return true;
  }

  #enter(introduction: Introduction, phase: Phase): void {
    introduction.phase = phase;
    this.#duePairs.put(introduction.pair, Math.min(phase.untilMs, introduction.expiresAt));
  }

  #nextRound(introduction: Introduction): void {
    this.#offerRelay(introduction);
    introduction.round += 1;
    this.#startRound(introduction);
  }

  /** Begins the round that the plan has next: measures first where ports are to be predicted. */
  #startRound(introduction: Introduction): void {
    const { sides, plan, round } = introduction;
    const way = plan[round]!;
    const { token } = this.#newToken(introduction);
    const counts = ({ member }: Side) => member.peer.mapping === "sequential";
    for (const side of sides) {
      side.report = side.prediction = side.newer = undefined;
      side.isMeasuring = way === "fresh" || (way === "predicted" && (counts(side) || !sides.some(counts)));
    }
    const measuring = sides.filter(({ isMeasuring }) => isMeasuring);
    if (measuring.length === 0) return this.#punch(introduction);
    this.#enter(introduction, {
      is: "measuring",
      untilMs: performance.now() + this.#exchange.limits.measureMs,
    });
    for (const { member } of measuring) {
      const other = member === sides[0].member ? sides[1] : sides[0];
      this.#show(introduction, member, other.member, { type: "measure", token, way });
    }
    const isKnown = way === "predicted" && measuring.every((side) => counts(side) && side.member.position);
    // If its NAT has not given many ports since, there is nothing to wait for.
    introduction.isByOlder = isKnown && !introduction.hasPunched;
    if (!introduction.isByOlder) return;
    for (const side of measuring) side.prediction = side.member.position;
    this.#punch(introduction);
  }

  #newToken(introduction: Introduction): Introduction {
    this.#byToken.delete(introduction.token);
    introduction.token = newToken();
    this.#byToken.set(introduction.token, introduction);
    return introduction;
  }

  /** Tells both sides to punch, at the same moment. */
  #punch(introduction: Introduction): void {
    const { sides, plan, round, token } = introduction;
    const [a, b] = sides;
    const now = performance.now();
    const way = plan[round]!;
    const delays = startDelays(a.member.roundTripMs, b.member.roundTripMs);
    const { isLast, deadlineMs } = roundLength(introduction, now);
    this.#enter(introduction, { is: "punching", untilMs: now + Math.max(...delays) + deadlineMs, isLast });
    introduction.hasPunched = true;
    introduction.hasBirthday ||= way === "birthday";
    if (!introduction.isByOlder) a.isMeasuring = b.isMeasuring = false; // the rest is late
    const punch = (to: Side, { member, prediction: theirs }: Side, role: Role, startInMs: number) => {
      const message: Extract<About, { type: "punch" }> = {
        type: "punch",
        role,
        token,
        startInMs,
        way,
        round: round + 1,
        last: isLast,
        deadlineMs,
      };
      if (to.prediction) message.own = to.prediction;
      if (theirs) message.theirs = theirs;
      this.#show(introduction, to.member, member, message);
    };
    this.#tell(token, [a.member, b.member]);
    punch(a, b, "controlling", delays[0]);
    punch(b, a, "controlled", delays[1]);
    this.#exchange.tell({
      event: "punch",
      a: a.member.peer.id,
      b: b.member.peer.id,
      way,
      round: round + 1,
    });
    if (introduction.relay === "due") this.#offerRelay(introduction);
  }

  /** What a report with that token is about: a round that has been announced, and not been reported on by that member. */
  #reported(member: Party, token: string) {
    const introduction = this.#byToken.get(token);
    if (introduction?.token !== token || introduction.phase.is !== "punching") return undefined;
    const { sides, phase } = introduction;
    const side = sides.find((one) => one.member === member);
    if (!side || side.report !== undefined) return undefined;
    return { introduction, phase, side, other: side === sides[0] ? sides[1] : sides[0] };
  }

  #fail(introduction: Introduction, side: Side, other: Side, reason: FailureReason): void {
    if (retriable.has(reason)) this.#offerRelay(introduction);
    const token = introduction.token || introduction.relayToken;
    const [id, peer] = [side.member.peer.id, other.member.peer.id];
    if (other.report === undefined) {
      this.#say(introduction, other.member, side.member, { type: "failed", peer: id, token, reason });
    }
    this.#end(introduction, reason);
    this.#exchange.tell({ event: "failed", id, peer, reason, detail: "" });
  }

  #end(introduction: Introduction, outcome: Outcome): void {
    const { pair, token, relayToken, isCounted } = introduction;
    const now = performance.now();
    this.#count(introduction, outcome, now);
    this.#byToken.delete(token);
    this.#byToken.delete(relayToken);
    this.#relayAt.delete(introduction);
    pair.introduction = undefined;
    if (isCounted) this.#settleBirthday(introduction, now);
    this.#duePairs.put(pair, now);
  }

  /** What failed directly, but is relayed, has linked. */
  #count(
    { plan, round, phase, startedAt, relayLinkedAt }: Introduction,
    outcome: Outcome,
    now: number,
  ): void {
    const isDirect = outcome === "linked" && phase.is !== "relayed";
    if (relayLinkedAt !== undefined && !isDirect)
      return this.#exchange.count("linked", "relay", relayLinkedAt - startedAt);
    this.#exchange.count(
      outcome,
      phase.is === "relayed" ? "relay" : (plan[round] ?? "none"),
      now - startedAt,
    );
  }

  /** Gives back what was taken beforehand, lest many begin at once: one that was not needed, or has linked, is free. */
  #settleBirthday({ pair, sides: [asker, target], hasBirthday, isWelcome }: Introduction, now: number): void {
    const asked = this.#askedOf(pair, asker.member, now);
    if (!hasBirthday) asked.birthdays.tokens += 1;
    if (hasBirthday && !isWelcome) asked.birthdayFailedAt = now;
    else this.#unaskedOf(target.member, now).failedBirthdays.tokens += 1;
  }
}

// --- the introducer --------------------------------------------------------------------------------------

/** A rendezvous server. `start` listens; `stop` tells the participants and ends. */
export class Introducer {
  readonly limits: Limits;
  readonly #onEvent: (event: IntroducerEvent) => void;
  readonly #listener: Listener<Session | undefined>;
  readonly #probeListeners: Listener<Probe | undefined>[];
  readonly #alternate: string | undefined;
  readonly #probes: Shares;
  /** The oldest first, which is due first. */
  readonly #probeSockets = new Set<Socket<Probe | undefined>>();
  #probeTimer: Timer | undefined;
  readonly #timer: Timer;
  readonly #tickMs: number;
  #tickedAt = performance.now();
  readonly #metrics = new Metrics();
  readonly #metricsServer: MetricsServer | undefined;
  readonly #connections = new Set<Session>();
  readonly #deadlines: Deadlines<Session>;
  readonly #rounds = new Rounds(
    () => this.#deadlines.take(performance.now()).values(),
    (session, now) => this.#due(session, now),
  );
  readonly #shares: Shares;
  readonly #processor: Usage;
  readonly #accepted: Usage;
  readonly #members = new Map<number, Member>();
  readonly #rooms = new Map<string, Set<Member>>();
  /** Who else is in them, at other introducers. */
  readonly #elsewhere: Rooms;
  readonly #advertised: string | undefined;
  readonly #introductions: Introductions;
  readonly #relays: Relays<Session> | undefined;
  readonly #keptNames: KeptNames;
  readonly #verifying = new Map<string, Member>();
  readonly #probing = new Map<string, Member>();
  readonly #changed = new Map<Member, PeerChange>();
  /** Sessions with something to write at the end of the tick. */
  #outgoing: Session[] = [];
  /** With something held that may not be read yet. */
  readonly #paused = new Set<Session>();
  readonly #pausedRounds = this.#roundsOf(this.#paused);
  /** With something held that is read as soon as others had their turn. */
  readonly #late = new Set<Session>();
  readonly #lateRounds = this.#roundsOf(this.#late);
  /** When the first came of those who have come together. */
  #turnAt: number | undefined;
  readonly #held: Shares;
  readonly #unsent: Shares;
  #resumeTimer: Timer | undefined;
  #changeTimer: Timer | undefined;
  readonly #connectBacks: Shares;
  /** Of what is being served now; undefined while nothing is. */
  #mistake: Mistake | undefined = undefined;
  #own: { addresses: ReturnType<typeof ownAddresses>; untilMs: number } = { addresses: [], untilMs: 0 };
  /** `isUnderWay`: while those are sent away who may go. */
  #draining: { reason: string; untilMs: number; isUnderWay: boolean; done: () => void } | undefined;
  #drained: Promise<void> | undefined;
  #stopped: Promise<void> | undefined;
  #allGone: (() => void) | undefined;

  /** Throws what `Bun.listen` throws, such as EADDRINUSE, a {@link ProbePortError}, or a TypeError for a wrong option. */
  static start(options: IntroducerOptions = {}): Introducer {
    return new Introducer(options);
  }

  private constructor(options: IntroducerOptions) {
    const redisProblem = options.redis === undefined ? undefined : redisUrlProblem(options.redis);
    if (redisProblem !== undefined) throw new TypeError(`the URL of the Redis is wrong: ${redisProblem}`);
    this.limits = { ...defaultLimits, ...options.limits };
    this.#onEvent = options.onEvent ?? (() => {});
    const { sessions, probes, heldBytes, processorMs, acceptsPerSecond, ownHostShares } = this.limits;
    const { sessionsPerAddress, probesPerAddress, heldBytesPerAddress } = this.limits;
    this.#shares = new Shares(sessions, sessionsPerAddress, ownHostShares);
    this.#probes = new Shares(probes, probesPerAddress, ownHostShares);
    this.#connectBacks = new Shares(
      this.limits.connectBacks,
      this.limits.connectBacksPerAddress,
      ownHostShares,
    );
    this.#held = new Shares(heldBytes, heldBytesPerAddress, ownHostShares);
    const { unsentBytesInAll, unsentBytesPerAddress } = this.limits;
    this.#unsent = new Shares(unsentBytesInAll, unsentBytesPerAddress, ownHostShares);
    const usage = (all: number, eachSecond: number) =>
      new Usage(all, (eachSecond * usageWindowMs) / 1000, usageWindowMs, ownHostShares);
    this.#processor = usage(sharedProcessorMs, processorMs);
    this.#accepted = usage(acceptedInWindow, acceptsPerSecond);
    this.#listener = this.#listen(options.host, options.port ?? defaultPort);
    this.#alternate = options.alternate;
    this.#advertised = options.advertise;
    this.#probeListeners = this.#listenForProbes(options);
    this.#keptNames = new KeptNames(this.limits, nameKeptMs);
    const { registerDeadlineMs: register, pingMs, silenceMs, measureMs } = this.limits;
    this.#tickMs = Math.min(tickMs, Math.min(register, pingMs, silenceMs, measureMs) / 4);
    this.#introductions = new Introductions(
      {
        limits: this.limits,
        canMeasure: this.#probeListeners.length > 0,
        send: (member, message) => this.#send(member, message),
        show: (member, about, message) => this.#write(member, lineAbout(about, message)),
        moved: (member) => this.#elsewhere.put(member),
        post: (guest, letter) => this.#elsewhere.send(guest, letter),
        offerRelay: (a, b) => (a.takesRelay && b.takesRelay ? this.#offerRelay(a, b) : undefined),
        refuse: (member, refusal, peer) => this.#refuse(member, refusal, { request: "connect", peer }),
        tell: (event) => this.#tell(event),
        serve: (member, work) => this.#serve(member && !isGuest(member) ? member.socket : nobody, work),
        count: (outcome, way, elapsedMs) => this.#metrics.introduced(outcome, way, elapsedMs),
      },
      this.#tickMs,
    );
    const { relay = true, relayRate: rate = defaultRelayRates.rate } = options;
    const { relayTotal: total = defaultRelayRates.total } = options;
    if (relay) this.#relays = this.#makeRelays({ rate, total });
    this.#elsewhere = options.redis === undefined ? new LocalRooms() : this.#share(options.redis);
    this.#deadlines = new Deadlines(this.#tickMs, this.#tickedAt);
    this.#timer = setInterval(() => this.#tick(), this.#tickMs);
    this.#metricsServer = options.metrics && this.#showMetrics(options.metrics);
    this.#tell({ event: "listening", host: this.host, port: this.port });
  }

  #makeRelays(rates: RelayRates): Relays<Session> {
    return new Relays(rates, {
      limits: this.limits,
      newToken,
      refuse: (session, refusal) => this.#refuse(session, refusal, { request: "relay" }),
      close: (session, reason) => this.#close(session, reason),
      serve: (session, work) => this.#serve(session?.socket ?? nobody, work),
      charge: (session, work, moreMs = 0) =>
        this.#serve(session.socket, () => this.#chargeRelayed(session, work, moreMs)),
      segments: ({ socket }) => segmentsReceived(socket.fd),
      limitUnread: ({ socket: { fd } }, unread) => {
        if (!isSupported()) return;
        if (unread === "much") unlimitUnread(fd, unreadRelayBytes);
        else limitUnread(fd, unreadBytes);
      },
      mayRead: (session, now) => !this.#processor.isOver(session.subscriber, now),
      tell: (event) => this.#tell(event),
    });
  }

  #share(redis: string): Rooms {
    const unreachable = "its introducer can't be reached";
    return new RedisRooms(redis, {
      joined: (guest) => this.#serve(nobody, () => this.#guestJoined(guest)),
      changed: (guest, change) => this.#serve(nobody, () => this.#guestChanged(guest, change)),
      left: (guest, reason) => this.#serve(nobody, () => this.#guestLeft(guest, reason)),
      displaced: (id, reason) => this.#serve(nobody, () => this.#displace(id, reason)),
      received: (letter) => this.#serve(nobody, () => this.#receive(letter)),
      answer: (question) => this.#answerOther(question),
      undelivered: (guest) => this.#serve(nobody, () => this.#introductions.left(guest, unreachable)),
      sharing: (isShared, message) => this.#tell({ event: isShared ? "shared" : "warning", message }),
    });
  }

  /** Throws a {@link MetricsPortError}, and then has closed what was open. */
  #showMetrics({ hostname, port }: { hostname: string; port: number }): MetricsServer {
    try {
      const page = () => renderPrometheus(this.stats, version);
      return new MetricsServer(hostname, port, page, (error) => this.#complain(error));
    } catch (error) {
      const { code = String(error) } = error as { code?: string };
      void this.stop();
      throw new MetricsPortError(`can't show metrics on ${hostname} port ${port}: ${code}`, { cause: error });
    }
  }

  /** Where the metrics are shown, if they are. */
  get metricsPort(): number | undefined {
    return this.#metricsServer?.port;
  }

  get stats(): Stats {
    const { links: relays, bytes: relayedBytes } = this.#relays?.totals ?? { links: 0, bytes: 0 };
    return this.#metrics.read({
      participants: this.#members.size,
      rooms: this.#rooms.size,
      connections: this.#connections.size,
      waiting: this.#paused.size,
      relays,
      relayedBytes,
      ...(!this.isAlone && { isShared: this.#elsewhere.isShared }),
    });
  }

  /** Whether it shares its rooms with nobody, ever. */
  get isAlone(): boolean {
    return this.#elsewhere instanceof LocalRooms;
  }

  get host(): string {
    return this.#listener.hostname;
  }

  get port(): number {
    return this.#listener.port;
  }

  /** Where mapping probes are answered. */
  get probePorts(): number[] {
    return [...new Set(this.#probeListeners.map(({ port }) => port))];
  }

  /** Everyone who has registered, by id: at once, so where there may be thousands {@link listed} is better. */
  get participants(): Participant[] {
    return [...this.#members.values()].map(this.#shower());
  }

  /** The same by turns with all else, as it is when each has its turn. */
  async listed(): Promise<Participant[]> {
    const all: Participant[] = [];
    const show = this.#shower();
    await byTurns(this.#members.values(), (member) => void all.push(show(member)));
    return all;
  }

  /** How many have registered, and what they are called. */
  get size(): number {
    return this.#members.size;
  }
  *names(): Generator<string, void> {
    for (const { peer } of this.#members.values()) yield peer.name;
  }

  /** Shows one after the other, and looks up what it needs only once. */
  #shower(): (member: Member) => Participant {
    const relayed = this.#relays?.bytes();
    const rooms = new Map<string, Map<string, number>>();
    const idsIn = (room: string) => {
      const known = rooms.get(room);
      if (known) return known;
      const ids = new Map<string, number>();
      for (const { peer } of this.#everyone(room)) ids.set(peer.instance, peer.id);
      rooms.set(room, ids);
      return ids;
    };
    return (member) => {
      const links = [...(member.links ?? [])].flatMap(([instance, { route, id: told }]) => {
        const id = this.#idOf(member.room, instance, told) ?? idsIn(member.room).get(instance);
        const other = id === undefined ? undefined : this.#inRoom(member.room, id);
        if (id === undefined || !other || (told === undefined && !saysSo(other, member))) return [];
        const bytes = route === "relay" ? relayed?.get(relayKey(member, other)) : undefined;
        return [{ id, route, ...(bytes !== undefined && { relayedBytes: bytes }) }];
      });
      const { peer, room } = member;
      const punching = this.#introductions.punching(peer.id);
      return { ...peer, room, linked: links.map(({ id }) => id), links, punching };
    };
  }

  /** That id, if it is still that instance's. */
  #idOf(room: string, instance: string, id = 0): number | undefined {
    return this.#inRoom(room, id)?.peer.instance === instance ? id : undefined;
  }

  #inRoom(room: string, id: number): Party | undefined {
    const member = this.#members.get(id);
    return member?.room === room ? member : this.#elsewhere.guests(room).get(id);
  }

  /** In a room, at whichever introducer. */
  *#everyone(room: string): Generator<Party, void> {
    yield* this.#rooms.get(room) ?? [];
    yield* this.#elsewhere.guests(room).values();
  }

  /** Asks all introducers that share the rooms; our own answer is the first. */
  async ask(question: Question): Promise<Answers> {
    const own = await this.#answer(question);
    const { all, problem } = await this.#elsewhere.ask(question);
    return { all: [own, ...all], ...(problem !== undefined && { problem }) };
  }

  /** Says something to everyone, or to one, wherever they are; resolves to how many could be told. */
  async tell(text: string, to?: number): Promise<{ told: number; problem?: string }> {
    const question = { about: "notice", text, ...(to !== undefined && { to }) } as const;
    if (to !== undefined && this.#members.has(to)) return { told: (await this.#answer(question)).count };
    const { all, ...problem } = await this.ask(question);
    return { told: all.reduce((sum, { count: told }) => sum + told, 0), ...problem };
  }

  /** None, if that fails. */
  async #answerOther(question: Question): Promise<Answer | undefined> {
    try {
      return await this.#answer(question);
    } catch (error) {
      this.#complain(error);
      return undefined;
    }
  }

  async #answer(question: Question): Promise<Answer> {
    const place = formatEndpoint(this.#advertised ?? publicAddress(this.host), this.port);
    const { size } = this.#members;
    if (question.about === "count") return { place, count: size, participants: [] };
    if (question.about === "list") return { place, count: size, participants: await this.listed() };
    return { place, count: await this.#notify(question.text, question.to), participants: [] };
  }

  /** Says something to all, or to one; resolves to how many could be told. */
  async #notify(text: string, to: number | undefined): Promise<number> {
    const line = encode({ type: "notice", text });
    const one = to === undefined ? undefined : this.#members.get(to);
    const whom = to === undefined ? this.#members.values() : one ? [one] : [];
    let told = 0;
    await byTurns(whom, (member) => {
      if (member.closing) return;
      told += 1;
      this.#serve(member.socket, () => {
        this.#write(member, line);
        this.#flush(member); // now, or they would all be flushed in one turn
      });
    });
    return told;
  }

  /**
   * Ends in order: registers nobody any more, tells everyone to come back after a pause, each when no introduction of
   * his is under way, and stops when those and the relayed links are over, or after {@link drainMs}.
   */
  drain(reason = "the introducer is restarted"): Promise<void> {
    return (this.#drained ??= this.#endInOrder(reason));
  }

  async #endInOrder(reason: string): Promise<void> {
    const { promise, resolve: done } = Promise.withResolvers<void>();
    this.#draining = { reason, untilMs: performance.now() + drainMs, isUnderWay: false, done };
    const participants = this.#members.size;
    let punching = 0;
    await byTurns(this.#members.values(), (member) => void (punching += Number(this.#isPunching(member))));
    this.#tell({ event: "draining", reason, participants, punching, relays: this.#relays?.size ?? 0 });
    this.#dismiss();
    await promise;
    await this.stop(reason);
  }

  #isPunching({ peer }: Member): boolean {
    return this.#introductions.punching(peer.id).length > 0;
  }

  /** While it drains: sends away whoever waits for nothing here, by turns, all being silenced before the first leaves. */
  #dismiss(): void {
    if (!this.#draining || this.#draining.isUnderWay) return;
    this.#draining.isUnderWay = true;
    const { reason, untilMs } = this.#draining;
    const isLate = performance.now() >= untilMs;
    const leaving: Member[] = [];
    const dismiss = (member: Member) => {
      if (member.closing || (!isLate && this.#isPunching(member))) return;
      this.#silence(member, { type: "bye", reason, retryInMs: retryInMs() });
      leaving.push(member);
    };
    void byTurns(this.#members.values(), (member) => this.#serve(member.socket, () => dismiss(member)))
      .then(() => this.#closeAll(leaving, reason))
      .then(() => this.#dismissed(isLate));
  }

  #dismissed(isLate: boolean): void {
    if (!this.#draining) return;
    this.#draining.isUnderWay = false;
    const isPunching = this.#members.size > 0 || this.#relays?.isAwaited;
    // Whoever is to be relayed comes by another connection; everyone else shall find the next introducer here.
    if (!isPunching) this.#listener.stop();
    if (isLate || (!isPunching && (this.#relays?.size ?? 0) === 0)) this.#draining.done();
  }

  #dismissOne(session: Session, reason: string): void {
    this.#silence(session, { type: "bye", reason, retryInMs: retryInMs() });
    this.#close(session, reason);
  }

  /** The last that a session is told, once it is closed: of everyone else who leaves meanwhile it hears nothing. */
  #silence(session: Session, message: ToParticipant): void {
    session.outgoing += encode(message);
    session.closing = true;
    session.deadlineAt = Infinity;
  }

  /** By turns. */
  #closeAll(sessions: Iterable<Session>, reason: string): Promise<void> {
    return byTurns(sessions, (session) => {
      if (!this.#connections.has(session)) return; // it has gone by itself
      if (session.relayed) session.socket.terminate();
      else this.#serve(session.socket, () => this.#close(session, reason));
    });
  }

  /** Tells everyone, and resolves when all connections are closed. */
  stop(reason = "the introducer was stopped"): Promise<void> {
    return (this.#stopped ??= this.#stop(reason));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #stop(reason: string): Promise<void> {
    this.#listener.stop();
    for (const listener of this.#probeListeners) listener.stop();
    const gone = new Promise<void>((resolve) => (this.#allGone = resolve));
    const sessions = [...this.#connections];
    await byTurns(this.#probeSockets, (probe) => probe.terminate());
    await byTurns(sessions, (session) => {
      if (!session.closing) this.#silence(session, { type: "bye", reason });
    });
    await this.#closeAll(sessions, reason);
    const timeout = setTimeout(() => this.#allGone?.(), closeGraceMs);
    const left = this.#elsewhere.close();
    if (this.#connections.size > 0) await gone;
    await left;
    for (const timer of [timeout, this.#resumeTimer, this.#changeTimer, this.#probeTimer])
      clearTimeout(timer);
    clearInterval(this.#timer);
    this.#draining?.done();
    this.#introductions.stop();
    this.#relays?.stop();
    for (const { socket } of this.#connections) socket.terminate();
    this.#metricsServer?.stop();
  }

  #listen(host: string | undefined, port: number): Listener<Session | undefined> {
    const listen = (hostname: string) =>
      new Listener<Session | undefined>(
        {
          hostname,
          port,
          allowHalfOpen: true,
          socket: {
            open: (socket) => {
              this.#serve(socket, () => this.#open(socket as Connection));
              if (!socket.data) socket.terminate();
            },
            data: (socket, chunk) => {
              const { data: session } = socket;
              if (session) this.#serve(socket, () => this.#data(session, chunk));
            },
            drain: (socket) => {
              const { data: session } = socket;
              if (session) this.#serve(socket, () => this.#drain(session));
            },
            end: (socket) => {
              const { data: session } = socket;
              if (session) this.#serve(socket, () => this.#ended(session));
            },
            error: (socket, error) => this.#mishap(socket, error),
            close: (socket, error) => {
              const { data: session } = socket;
              if (session) this.#closed(session, error?.message ?? "it closed the connection");
            },
          },
        },
        (message) => this.#tell({ event: "warning", message }),
      );
    if (host !== undefined) return listen(host);
    try {
      return listen("::");
    } catch (error) {
      const { code } = error as { code?: string };
      if (code === "EADDRINUSE" || code === "EACCES") throw error;
      return listen("0.0.0.0"); // a kernel without IPv6
    }
  }

  // mapping probes (RFC 5780 §4.3): say what is seen, and hear whose they are

  #listenForProbes({
    host,
    port = defaultPort,
    probePorts,
    alternate,
  }: IntroducerOptions): Listener<Probe | undefined>[] {
    const ports = probePorts ?? (port === 0 ? [0, 0] : [port + 1, port + 2].filter((next) => next <= 65535));
    // A wildcard listener answers at the alternate address already.
    const hosts = [host ?? this.host, ...(alternate !== undefined && host !== undefined ? [alternate] : [])];
    const listeners: Listener<Probe | undefined>[] = [];
    for (const probePort of ports) {
      try {
        for (const hostname of hosts) listeners.push(this.#listenForProbe(hostname, probePort));
      } catch (error) {
        const { code = String(error) } = error as { code?: string };
        const message = `no mapping probes on port ${probePort}: ${code} (choose others with --probe-ports)`;
        if (probePorts) {
          for (const listener of [...listeners, this.#listener]) listener.stop();
          throw new ProbePortError(message, { cause: error });
        }
        this.#tell({ event: "warning", message });
      }
    }
    return listeners;
  }

  #listenForProbe(hostname: string, port: number): Listener<Probe | undefined> {
    return new Listener<Probe | undefined>(
      {
        hostname,
        port,
        socket: {
          open: (socket) => {
            const observed = observedEndpoint(socket);
            const own = observed && !isNoPlace(observed) ? this.#takeProbe(observed) : undefined;
            if (!own) {
              this.#metrics.turnedAway();
              return void socket.terminate();
            }
            socket.data = own;
            this.#probeSockets.add(socket);
            socket.setNoDelay(true);
            this.#probeTimer ??= setTimeout(() => this.#probesDue(), this.limits.measureMs);
            socket.write(encode({ type: "observed", endpoint: own.observed }));
          },
          data: (socket, chunk) => {
            const { data: probe } = socket;
            if (!probe) return;
            if (probe.hasSpoken) socket.terminate();
            this.#charge(probe, () => this.#probed(probe, chunk));
          },
          error: (socket, error) => {
            this.#complain(error, socket.data?.observed);
            socket.terminate();
          },
          close: (socket) => {
            if (!socket.data) return;
            this.#probeSockets.delete(socket);
            this.#probes.remove(socket.data.subscriber);
          },
        },
      },
      (message) => this.#tell({ event: "warning", message }),
    );
  }

  /** A probe seen at that endpoint; undefined when there is none left of the share it is of. */
  #takeProbe(observed: Endpoint): Probe | undefined {
    const own = subscriber(splitEndpoint(observed).address);
    if (!this.#accepts(own) || this.#probes.isOver(own, 1) || this.#probes.isUsedUp(1)) return undefined;
    this.#probes.add(own);
    const untilMs = performance.now() + this.limits.measureMs;
    return { observed, subscriber: own, hasSpoken: false, untilMs };
  }

  /** A timeout of Bun's comes up to 4 s late, and never to one who says something. */
  #probesDue(): void {
    this.#probeTimer = undefined;
    for (const socket of this.#probeSockets) {
      const leftMs = socket.data!.untilMs - performance.now();
      if (leftMs > 0) {
        this.#probeTimer = setTimeout(() => this.#probesDue(), Math.ceil(leftMs));
        return;
      }
      socket.terminate();
    }
  }

  /** Its first line says whose it is; one that comes in pieces, or is none, says nothing. Who says more is closed. */
  #probed(probe: Probe, chunk: Uint8Array): void {
    if (probe.hasSpoken) return;
    probe.hasSpoken = true;
    if (chunk.length > maxProbeBytes) return;
    try {
      for (const line of new LineDecoder().push(chunk)) {
        const message = parseToIntroducer(line);
        const member = message.type === "probe" && this.#probing.get(message.token);
        if (!member) return;
        const { peer, step } = message;
        const stands = { endpoint: probe.observed, step };
        return this.#serve(member.socket, () => this.#introductions.probed(member, peer, stands));
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }

  /** What a SYN meets that comes unasked to the participant's own observed endpoint, and never anywhere else. */
  #connectBack(member: Member): void {
    if (member.isConnectedBack)
      throw new Refusal("limit", "one connection back at a time: wait for `filtering`");
    const { connectBacks: most, connectBacksPerAddress: each } = this.limits;
    if (this.#connectBacks.isUsedUp(1) || this.#connectBacks.isOver(member.subscriber, 1)) {
      const enough = `${most} connections back at once, ${each} to one address, are enough`;
      throw waitRefusal(enough, connectBackMs / 1000);
    }
    this.#countIntroduction(member);
    member.isConnectedBack = true;
    this.#connectBacks.add(member.subscriber);
    const attempts = this.#tryBack(splitEndpoint(member.observed));
    const over = (tell: () => void) =>
      this.#serve(member.socket, () => {
        member.isConnectedBack = false;
        this.#connectBacks.remove(member.subscriber);
        tell();
      });
    attempts.then(
      (met) => over(() => this.#connectedBack(member, met)),
      (error: unknown) =>
        over(() => {
          throw error;
        }),
    );
  }

  /** What a SYN from here meets there, and one from the alternate address, where there is one of that family. */
  async #tryBack(observed: EndpointParts): Promise<(Filtering | undefined)[]> {
    const alternate = this.#alternate && canonicalAddress(this.#alternate);
    const isElsewhere = alternate && alternate.family === observed.family;
    return Promise.all([
      tryConnect(observed),
      isElsewhere ? tryConnect(observed, alternate.address) : undefined,
    ]);
  }

  #connectedBack(member: Member, [filtering, elsewhere]: (Filtering | undefined)[]): void {
    if (filtering)
      return this.#send(member, { type: "filtering", filtering, ...(elsewhere && { elsewhere }) });
    const busy = "the introducer can't connect back now: try again later";
    this.#refuse(member, new Refusal("limit", busy), { request: "connect-back" });
  }

  // connections

  #open(socket: Connection): void {
    const observed = observedEndpoint(socket);
    if (!observed) return;
    const { sessions, sessionsPerAddress } = this.limits;
    const { address } = splitEndpoint(observed);
    const own = subscriber(address);
    const most = this.#shares.most(own);
    // Even a refused connection costs something until it is closed, so a flood gets no answer.
    const isFlood = this.#shares.isBeyond(own, refusedAtOnce) || this.#connections.size >= 1.1 * sessions;
    if (isFlood || !this.#accepts(own)) {
      this.#metrics.turnedAway();
      return;
    }
    const session = new Session(socket, observed, this.limits, performance.now());
    socket.data = session;
    if (isSupported()) limitUnread(socket.fd, unreadBytes);
    socket.setNoDelay(true); // a `punch` held back by Nagle's algorithm would spoil the simultaneous start
    this.#connections.add(session);
    this.#deadlines.put(session, session.deadlineAt);
    this.#shares.add(own);
    const now = most < sessionsPerAddress ? " while the introducer is this full" : "";
    const enough = `${most} connections an address (${siteShares} times that an IPv6 /48) are enough${now}: close others first`;
    const full = `the introducer is full: it takes ${sessions} connections; come back later`;
    const noPlace = `you come by ${address}, a link-local address that peers can't use: take another way to the introducer`;
    if (isNoPlace(observed)) this.#refuse(session, new Refusal("bad-field", noPlace));
    else if (this.#shares.isUsedUp()) this.#refuse(session, new Refusal("limit", full));
    else if (this.#shares.isOver(own)) this.#refuse(session, new Refusal("limit", enough));
  }

  /**
   * Whether an address may have another connection accepted. It does not depend on what its address has had read: that can
   * wait, whereas who is turned away may not come again.
   */
  #accepts(own: string): boolean {
    const now = performance.now();
    this.#processor.spend(own, acceptMs, now);
    if (this.#accepted.isOver(own, now)) return false;
    this.#accepted.spend(own, 1, now);
    return true;
  }

  /** What a session makes us do is of its address's share of the processor. */
  #charge({ subscriber: own }: Pick<Session, "subscriber">, work: () => void): void {
    const from = performance.now();
    const writes = this.#outgoing.length;
    work();
    const now = performance.now();
    const laterMs = (this.#outgoing.length - writes) * flushMs;
    this.#processor.spend(own, readMs + Math.min(now - from, mostChargedMs) + laterMs, now);
  }

  /** Relayed bytes have rates of their own: that part is not charged which `work` returns. */
  #chargeRelayed({ subscriber: own }: Session, work: () => number, moreMs: number): void {
    const from = performance.now();
    const unpaid = 1 - work();
    const now = performance.now();
    const spentMs = unpaid * (readMs + Math.min(now - from, mostChargedMs)) + moreMs;
    if (spentMs > 0) this.#processor.spend(own, spentMs, now);
  }

  #data(session: Session, chunk: Uint8Array): void {
    session.heardAt = performance.now();
    if (session.closing) {
      // It is closed whatever it says, and at once when it ends: unless there is much of it, it is read for that.
      this.#processor.spend(session.subscriber, readMs, session.heardAt);
      if (this.#processor.isBusy(session.subscriber, session.heardAt)) session.socket.pause();
      return;
    }
    if (session.relayed) return this.#relays?.data(session.relayed, chunk);
    // There may be more of one that is late, and Bun hands over what it had read before a socket was paused.
    if (session.held) this.#hold(session, Buffer.concat([session.held, chunk]));
    else if (this.#processor.isOver(session.subscriber, session.heardAt)) this.#holdMany(session, chunk);
    else if (this.#isLate(session)) this.#postpone(session, chunk);
    else this.#charge(session, () => this.#read(session, chunk, session.heardAt));
  }

  /** Whether it has its turn when others had theirs: once all that came together has taken long, of those who say much. */
  #isLate({ subscriber: own, heardAt }: Session): boolean {
    if (this.#turnAt === undefined) {
      this.#turnAt = heardAt;
      setImmediate(() => (this.#turnAt = undefined));
    }
    return heardAt - this.#turnAt >= sliceMs && this.#processor.isBusy(own, heardAt);
  }

  #postpone(session: Session, chunk: Uint8Array): void {
    session.held = chunk;
    this.#late.add(session);
    this.#lateRounds.begin();
    this.#countHeld(session);
  }

  /** Reads line by line, as many as it may say now and others can wait for, and holds the rest. */
  #read(session: Session, chunk: Uint8Array, startedAt: number): void {
    const decoder = session.decoder ?? new LineDecoder();
    const { messageBurst, messagesPerSecond } = this.limits;
    try {
      for (let from = 0; from < chunk.length && !session.closing;) {
        const lf = chunk.indexOf(10, from);
        if (lf === -1) {
          decoder.hold(chunk.subarray(from));
          break;
        }
        if (!take(session.lines, messageBurst, messagesPerSecond, performance.now())) {
          this.#hold(session, chunk.subarray(from));
          break;
        }
        this.#line(session, decoder.line(chunk.subarray(from, lf)));
        from = lf + 1;
        if (session.relayed && from < chunk.length) {
          this.#relays?.data(session.relayed, chunk.subarray(from));
          break;
        }
        if (!session.closing && from < chunk.length && performance.now() - startedAt >= sliceMs) {
          this.#postpone(session, chunk.subarray(from));
          break;
        }
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refuse(session, error);
    }
    session.decoder = decoder.pendingBytes > 0 && !session.closing ? decoder : undefined;
    this.#countHeld(session);
  }

  #roundsOf(sessions: Set<Session>): Rounds<Session> {
    return new Rounds(
      () => sessions.values(),
      (session, sliceAt) => this.#serve(session.socket, () => this.#goOn(session, sliceAt)),
    );
  }

  /** Of who has used up its share what it has cost to receive counts, too: that may be a segment for each byte. */
  #holdMany(session: Session, chunk: Uint8Array): void {
    const segments = segmentsReceived(session.socket.fd) ?? 0;
    const receivedMs = Math.min(mostChargedMs, Math.max(0, segments - session.segments) * segmentMs);
    session.segments = segments;
    this.#processor.spend(session.subscriber, readMs + receivedMs, session.heardAt);
    this.#hold(session, chunk);
  }

  /** Too many lines are answered by not reading: then TCP makes the sender wait. */
  #hold(session: Session, bytes: Uint8Array): void {
    session.held = bytes;
    this.#late.delete(session);
    if (!this.#paused.has(session)) {
      session.socket.pause();
      this.#paused.add(session);
      this.#resumeTimer ??= setInterval(() => this.#resume(), resumeMs);
    }
    this.#countHeld(session);
  }

  /** Bytes that a session may not say yet, and those of a line that is not whole. */
  #countHeld(session: Session): void {
    const bytes = (session.held?.length ?? 0) + (session.decoder?.pendingBytes ?? 0);
    const more = bytes - session.heldBytes;
    if (more === 0) return;
    session.heldBytes = bytes;
    if (more < 0) return this.#held.remove(session.subscriber, -more);
    this.#held.add(session.subscriber, more);
    if (!this.#held.isUsedUp() && !this.#held.isOver(session.subscriber)) return;
    const { heldBytes, heldBytesPerAddress } = this.limits;
    const most = `of one address ${amount(heldBytesPerAddress)} may, ${amount(heldBytes)} in all`;
    const refusal = `too much waits to be read: ${most}; come back later, and say less at once`;
    this.#refuse(session, new Refusal("limit", refusal, true));
  }

  /** Lets those go on that may again. */
  #resume(): void {
    this.#pausedRounds.begin();
    if (this.#paused.size > 0) return;
    clearInterval(this.#resumeTimer);
    this.#resumeTimer = undefined;
  }

  /** Reads what is held, if it may be read now. */
  #goOn(session: Session, now: number): void {
    const { messageBurst, messagesPerSecond } = this.limits;
    const bytes = session.held!;
    session.heardAt = now; // what it says may be waiting
    fill(session.lines, messageBurst, messagesPerSecond, now);
    if (session.lines.tokens < 1 || this.#processor.isOver(session.subscriber, now))
      return this.#hold(session, bytes);
    session.held = undefined;
    this.#late.delete(session); // so that it comes last if there is more
    if (this.#paused.delete(session)) this.#paused.add(session); // likewise
    this.#charge(session, () => this.#read(session, bytes, now));
    if (session.held || session.closing) return;
    if (this.#paused.has(session) && !session.relayed?.isPaused) session.socket.resume();
    this.#unhold(session);
    if (session.hasEnded) this.#ended(session);
  }

  #unhold(session: Session): void {
    session.held = undefined;
    this.#late.delete(session);
    this.#paused.delete(session);
    this.#countHeld(session);
  }

  #ended(session: Session): void {
    session.hasEnded = true;
    if (session.relayed) return this.#relays?.ended(session.relayed);
    if (session.held === undefined && !session.closing) this.#close(session, "it closed the connection");
  }

  #line(session: Session, line: string): void {
    if (session.closing) return;
    try {
      if (!session.peer) refuseOtherVersion(line);
      this.#handle(session, parseToIntroducer(line));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { type: request, peer } = peek(line);
      this.#refuse(session, error, {
        ...(request !== undefined && { request }),
        ...(peer !== undefined && { peer }),
      });
    }
  }

  #refuse(session: Session, refusal: Refusal, of: { request?: string; peer?: number } = {}): void {
    if (session.closing) return;
    const { code, fatal } = refusal;
    const { badLines } = this.limits;
    if (badLineCodes.has(code)) session.badLines += 1;
    const isWorn = session.badLines >= badLines;
    const message = isWorn ? `${refusal.message}; ${badLines} lines like that are enough` : refusal.message;
    const mayTryAgain = refusal instanceof NameTaken;
    const name = mayTryAgain ? { name: refusal.free } : {};
    this.#send(session, { type: "refused", code, message, ...of, ...name });
    this.#metrics.refused(code);
    const [id, address] = [session.peer?.id, session.observed];
    this.#tell({ event: "refused", ...(id !== undefined && { id }), address, code, message });
    const isOver = fatal || (!session.peer && !mayTryAgain);
    if (isOver || isWorn) this.#close(session, `refused: ${message}`);
  }

  #send(session: Session, message: ToParticipant): void {
    this.#write(session, encode(message));
  }

  /** What is written to a session within one tick goes in one system call. */
  #write(session: Session, line: string): void {
    if (session.closing) return;
    if (session.outgoing === "") {
      if (this.#outgoing.length === 0) setImmediate(() => this.#flushAll());
      this.#outgoing.push(session);
    }
    session.outgoing += line;
    if (session.outgoing.length >= flushBytes) this.#flush(session);
  }

  #flushAll(): void {
    const sessions = this.#outgoing;
    this.#outgoing = [];
    for (const session of sessions) this.#serve(session.socket, () => this.#flush(session));
  }

  #flush(session: Session): void {
    const text = session.outgoing;
    if (text === "") return;
    session.outgoing = "";
    const written = session.unsent === undefined ? session.socket.write(text) : 0;
    if (written < 0 || written === Buffer.byteLength(text)) return;
    const rest = Buffer.from(text).subarray(written);
    (session.unsent ??= []).push(rest);
    this.#countUnsent(session, session.unsentBytes + rest.length);
    const isOverAll = this.#unsent.isUsedUp() || this.#unsent.isOver(session.subscriber);
    if (session.unsentBytes <= this.limits.unsentBytes && !isOverAll) return;
    session.closing = true;
    this.#forgetUnsent(session);
    // Later, because whoever is sending may be walking through the room.
    queueMicrotask(() => this.#serve(session.socket, () => this.#drop(session, "it reads too slowly")));
  }

  #countUnsent(session: Session, bytes: number): void {
    const more = bytes - session.unsentBytes;
    session.unsentBytes = bytes;
    if (more < 0) this.#unsent.remove(session.subscriber, -more);
    else this.#unsent.add(session.subscriber, more);
  }

  #forgetUnsent(session: Session): void {
    session.unsent = undefined;
    if (session.unsentBytes > 0) this.#countUnsent(session, 0);
  }

  #drain(session: Session): void {
    if (session.relayed && !session.closing) return this.#relays?.drained(session.relayed);
    if (session.unsent !== undefined) this.#charge(session, () => this.#sendRest(session, session.unsent!));
  }

  #sendRest(session: Session, unsent: Uint8Array[]): void {
    // One part is not copied: who reads a little at a time would have it copied each time.
    const bytes = unsent.length === 1 ? unsent[0]! : Buffer.concat(unsent);
    const rest = bytes.subarray(Math.max(0, session.socket.write(bytes)));
    session.unsent = rest.length > 0 ? [rest] : undefined;
    this.#countUnsent(session, rest.length);
    if (session.closing && rest.length === 0) session.socket.shutdown();
  }

  /** Ends a session after its last line has been sent. */
  #close(session: Session, reason: string): void {
    this.#flush(session);
    session.closing = true;
    session.decoder = undefined;
    this.#unhold(session);
    session.deadlineAt = performance.now() + closeGraceMs;
    this.#deadlines.put(session, session.deadlineAt);
    this.#leave(session, reason);
    if (session.unsent === undefined) session.socket.shutdown();
  }

  #drop(session: Session, reason: string): void {
    session.closing = true;
    this.#leave(session, reason);
    session.socket.terminate();
  }

  // our own mistakes: each costs one session, and does not go unseen

  /**
   * Does what serves a session, or nobody in particular. Whatever is done in a callback, a timer or a promise goes
   * through here: what it throws is our mistake, and costs that session and nobody else.
   */
  #serve(socket: Served, work: () => void): void {
    const outer = this.#mistake;
    this.#mistake = none;
    try {
      work();
    } catch (error) {
      this.#mistake = { error };
    }
    const { error } = this.#mistake;
    const isMistaken = this.#mistake !== none;
    this.#mistake = outer;
    if (isMistaken) this.#mishap(socket, error);
  }

  /** Who hears of it may throw. What is under way is done to its end all the same: it counts as a mistake when it is. */
  #tell(event: IntroducerEvent): void {
    try {
      this.#onEvent(event);
    } catch (error) {
      if (this.#mistake) this.#mistake = { error };
      else this.#complain(error);
    }
  }

  #complain(error: unknown, address?: Endpoint): void {
    const message = error instanceof Error ? error.message : String(error);
    try {
      this.#onEvent({ event: "error", ...(address !== undefined && { address }), message });
    } catch {
      // whoever can't hear of an error can't be told of that either
    }
  }

  #mishap({ data: session }: Served, error: unknown): void {
    this.#complain(error, session?.observed);
    if (!session || !this.#connections.has(session)) return;
    if (session.closing || session.relayed) return void session.socket.terminate();
    const reason = "an error in the introducer";
    this.#serve(nobody, () => {
      this.#send(session, { type: "bye", reason });
      this.#close(session, reason);
    });
    if (!session.closing) session.socket.terminate();
  }

  #closed(session: Session, reason: string): void {
    if (!this.#connections.delete(session)) return;
    this.#deadlines.remove(session);
    this.#shares.remove(session.subscriber);
    this.#forgetUnsent(session);
    session.closing = true;
    session.outgoing = "";
    session.decoder = undefined;
    const { socket, relayed } = session;
    this.#serve(socket, () => this.#unhold(session));
    if (relayed) this.#serve(socket, () => this.#relays?.closed(relayed));
    this.#serve(socket, () => this.#charge(session, () => this.#leave(session, reason)));
    if (this.#connections.size === 0) this.#allGone?.();
  }

  // time

  #tick(): void {
    const now = performance.now();
    const steps = [
      () => this.#rounds.begin(),
      () => this.#processor.tick(now),
      () => this.#accepted.tick(now),
      () => this.#introductions.tick(),
      () => this.#relays?.tick(now),
      () => this.#dismiss(),
      () => this.#metrics.ticked(now - this.#tickedAt - this.#tickMs),
    ];
    for (const step of steps) this.#serve(nobody, step);
    this.#tickedAt = now;
  }

  #due(session: Session, now: number): void {
    if (!this.#connections.has(session)) return; // closed meanwhile
    this.#serve(session.socket, () => this.#tickSession(session, now));
    if (this.#connections.has(session)) this.#deadlines.put(session, this.#dueAt(session));
  }

  #tickSession(session: Session, now: number): void {
    const { silenceMs, pingMs, registerDeadlineMs: deadline } = this.limits;
    if (session.closing) {
      if (now >= session.deadlineAt) session.socket.terminate();
    } else if (!session.peer) {
      if (now < session.deadlineAt || session.relayed) return;
      this.#refuse(
        session,
        new Refusal("not-registered", `register within ${deadline / 1000} s of connecting`, true),
      );
    } else if (now - session.heardAt >= silenceMs) {
      const reason = `nothing was heard from it for ${silenceMs / 1000} s`;
      this.#send(session, { type: "bye", reason });
      this.#close(session, reason);
    } else if (now - session.pingSentAt >= pingMs) this.#ping(session, now);
  }

  #dueAt({ closing, peer, deadlineAt, heardAt, pingSentAt }: Session): number {
    const { silenceMs, pingMs } = this.limits;
    return closing || !peer ? deadlineAt : Math.min(heardAt + silenceMs, pingSentAt + pingMs);
  }

  #ping(session: Session, now: number): void {
    session.pingSentAt = now;
    this.#deadlines.put(session, this.#dueAt(session));
    this.#send(session, { type: "ping", id: ++session.pingId });
  }

  #pong(session: Session, id: number): void {
    if (id !== session.pingId || session.answeredPingId >= session.pingId) return;
    const now = performance.now();
    session.answeredPingId = session.pingId;
    session.roundTripMs = Math.min(now - session.pingSentAt, session.roundTripMs ?? Infinity);
    if (session.pingId < firstPings) return this.#ping(session, now);
    const roundTripMs = Math.round(session.roundTripMs);
    if (!session.peer || session.peer.roundTripMs === roundTripMs) return;
    this.#change(session as Member, { roundTripMs });
  }

  // messages

  #handle(session: Session, message: ToIntroducer): void {
    if (session.isEntering) throw new Refusal("not-registered", "wait for `registered`", true);
    if (message.type === "register") return this.#enter(session, message);
    if (message.type === "verify") return this.#verify(session, message.token);
    if (message.type === "relay") return this.#relay(session, message.token);
    if (message.type === "probe") throw new Refusal("bad-field", "probe belongs on a probe port");
    if (!session.peer) throw new Refusal("not-registered", "the first line must be a register", true);
    const member = session as Member;
    switch (message.type) {
      case "connect":
        return this.#connect(member, message);
      case "linked":
        return this.#linked(member, message);
      case "unlinked":
        return this.#unlinked(member, message);
      case "failed":
        return this.#introductions.failed(member, message);
      case "mapping":
        return this.#mapped(member, message);
      case "mapped":
        return this.#portMapped(member, message.endpoint);
      case "measured":
        return this.#introductions.measured(member, message);
      case "connect-back":
        return this.#connectBack(member);
      case "echo":
        return this.#send(member, { type: "echo", text: message.text });
      case "pong":
        return this.#pong(member, message.id);
    }
  }

  #connect(member: Member, { peer, relay }: MessageOf<"connect">): void {
    if (this.#draining) throw new Refusal("limit", "the introducer is ending: ask when you have come back");
    this.#countIntroduction(member);
    const target = this.#neighbour(member, peer);
    if (isGuest(target) && !this.#elsewhere.isShared)
      throw new Refusal("unknown-peer", `${peer} is at another introducer, which can't be reached now`);
    this.#introductions.ask(member, target, relay !== false);
  }

  #relay(session: Session, token: string): void {
    if (session.peer) throw new Refusal("already-registered", "relay belongs on a connection of its own");
    if (!this.#relays) throw new Refusal("bad-field", "this introducer does not relay");
    this.#relays.join(session, token);
  }

  /** Registers it once it is known who is in its room elsewhere. */
  #enter(session: Session, message: MessageOf<"register">): void {
    const opening = session.peer ? undefined : this.#elsewhere.open(message.room);
    if (!opening) return this.#register(session, message);
    session.isEntering = true;
    const go = () => this.#serve(session.socket, () => this.#entered(session, message));
    // If it can't be known who is there, the room is what is here.
    opening.catch((error: unknown) => this.#complain(error, session.observed)).then(go, go);
  }

  #entered(session: Session, message: MessageOf<"register">): void {
    session.isEntering = false;
    if (session.closing) return;
    try {
      this.#register(session, message);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refuse(session, error, { request: "register" });
    }
  }

  #register(session: Session, message: MessageOf<"register">): void {
    if (session.peer) throw new Refusal("already-registered", `you are registered as ${session.peer.id}`);
    if (this.#draining) {
      const { reason } = this.#draining;
      return this.#dismissOne(session, reason);
    }
    const { name, room, fingerprint, proof } = message;
    const instance = publicInstance(message.instance);
    const [allowed, ignored] = sortCandidates(message.private, session.observed);
    const others = this.#rooms.get(room) ?? new Set<Member>();
    for (const old of others) {
      const isSame = old.peer.instance === instance && old.peer.fingerprint === fingerprint;
      if (isSame) this.#close(old, "it registered anew");
    }
    const guests = this.#elsewhere.guests(room).values();
    const replaced = guests.find(
      ({ peer }) => peer.instance === instance && peer.fingerprint === fingerprint,
    );
    const all = [...this.#everyone(room)].filter((one) => one !== replaced);
    this.#checkRoom(session, all);
    this.#checkName(message, all);
    const own = { id: this.#elsewhere.nextId(room), name, private: allowed, public: session.observed };
    const shown = { ...own, instance, fingerprint, ...(proof !== undefined && { proof }) };
    session.peer = { ...shown, mapping: "unknown", since: Date.now() };
    session.room = room;
    session.takesRelay = !message.direct;
    const member = session as Member;
    this.#members.set(own.id, member); // first of all, so that whatever fails from here on is undone by leaving
    this.#keepLinks(member, message.links);
    this.#elsewhere.put(member, replaced);
    this.#welcome(member, all);
    this.#tellRoom(others, lineAbout(member, { type: "joined" }));
    this.#rooms.set(room, others.add(member));
    this.#metrics.joined();
    this.#tell({ event: "joined", ...own, room });
    if (ignored.length > 0) this.#tell({ event: "ignored", address: session.observed, endpoints: ignored });
  }

  #checkRoom({ subscriber: own }: Session, others: Party[]): void {
    const { roomSize, roomShare, ownHostShares } = this.limits;
    if (others.length >= roomSize)
      throw new Refusal(
        "limit",
        `the room is full: it holds ${count(roomSize, "participant")}; wait until one leaves`,
      );
    const fair = Math.max(leastRoomShare, fairShare(roomSize, others.length));
    const share = Math.min(roomShare, fair) * (isOwnHost(own) ? ownHostShares : 1);
    if (others.length < share || !hasShare(own, others, share)) return;
    const enough = `${count(share, "participant")} of one address (${siteShares} times that of an IPv6 /48)`;
    throw new Refusal("limit", `${enough} in a room are enough: take another room`);
  }

  /** A name is one participant's at a time and, but in a secret room, its certificate's for a while after. */
  #checkName({ name, room, fingerprint }: MessageOf<"register">, others: Party[]): void {
    const taken = new Set(others.map(({ peer }) => looksOf(peer)));
    const isFree = (one: string) =>
      this.#keptNames.mayTake(room, one, fingerprint) && !taken.has(nameSkeleton(one));
    if (isFree(name)) return;
    let number = 2;
    while (!isFree(numberedName(name, number)))
      number = number < countedNames ? number + 1 : Math.floor(Math.random() * mostNameNumber);
    throw new NameTaken(name, numberedName(name, number));
  }

  /** Answers `register`. */
  #welcome(member: Member, others: Party[]): void {
    const { room, peer } = member;
    const { id, name, private: candidates, public: observed } = peer;
    const { probePorts } = this;
    const hasAlternate = this.#alternate !== undefined && probePorts[0] !== undefined;
    const alternates = hasAlternate ? [formatEndpoint(this.#alternate!, probePorts[0]!)] : [];
    const verify = this.#verification(member);
    const own = { id, name, room, public: observed, private: candidates };
    const probeToken = probePorts.length > 0 ? newToken() : undefined;
    member.probeToken = probeToken;
    if (probeToken !== undefined) this.#probing.set(probeToken, member);
    const offers = {
      ...(probeToken !== undefined && { probeToken }),
      ...(verify && { verify }),
      ...(this.#relays && { relay: this.#relays.rates }),
    };
    this.#send(member, { type: "registered", ...own, probePorts, alternates, ...offers });
    this.#ping(member, performance.now());
    this.#write(member, snapshot(others));
  }

  // the other address family

  /** Where a participant can show how it is seen in the other address family, if we are there at all. */
  #verification(member: Member): { endpoint: Endpoint; token: string } | undefined {
    if (this.host !== "::") return undefined;
    const { family } = splitEndpoint(member.observed);
    const address = reachable(this.#ownAddresses(), member.observed, family === 4 ? 6 : 4);
    if (address === undefined) return undefined;
    const token = newToken();
    member.verifyToken = token;
    this.#verifying.set(token, member);
    return { endpoint: formatEndpoint(address, this.port), token };
  }

  #ownAddresses(): ReturnType<typeof ownAddresses> {
    const now = performance.now();
    if (now >= this.#own.untilMs) this.#own = { addresses: ownAddresses(), untilMs: now + interfacesMs };
    return this.#own.addresses;
  }

  #verify(session: Session, token: string): void {
    if (session.peer) throw new Refusal("already-registered", "verify belongs on a connection of its own");
    const member = this.#verifying.get(token);
    const { observed } = session;
    if (!member) throw new Refusal("bad-field", "token must be that of somebody's `registered`");
    const [own, other] = [splitEndpoint(member.observed), splitEndpoint(observed)];
    const isLoopback = addressScope(other.address) === "loopback";
    if (own.family === other.family || isLoopback !== (addressScope(own.address) === "loopback")) {
      throw new Refusal("bad-field", `token must come by the other address family, not from ${observed}`);
    }
    this.#send(session, { type: "observed", endpoint: observed });
    this.#close(session, "it was verified");
    if (member.peer.otherPublic !== observed) this.#change(member, { otherPublic: observed });
  }

  // the room

  #tellRoom(room: Iterable<Member>, lines: string): void {
    for (const member of room) this.#write(member, lines);
  }

  /** The other participant of the same room: nobody learns whether an id exists elsewhere. */
  #neighbour(member: Member, id: number): Party {
    if (id === member.peer.id) throw new Refusal("self", "that is you");
    const other = this.#inRoom(member.room, id);
    if (!other) throw new Refusal("unknown-peer", `there is no ${id} in your room`);
    return other;
  }

  #countIntroduction(member: Member): void {
    const { introductionsPerMinute: most } = this.limits;
    const now = performance.now();
    const bucket = (member.introductions ??= { tokens: most, at: now });
    const seconds = waitSeconds(bucket, most, now);
    if (seconds > 0) throw waitRefusal(`${most} introductions a minute are enough`, seconds);
    bucket.tokens -= 1;
  }

  #mapped(member: Member, { mapping, prediction }: MessageOf<"mapping">): void {
    member.hasMeasured = true;
    member.position = prediction && isAt(prediction.endpoint, member) ? prediction : undefined;
    if (member.peer.mapping !== mapping) this.#change(member, { mapping });
    this.#elsewhere.put(member);
    this.#introductions.mapped(member);
    this.#tell({ event: "mapping", id: member.peer.id, mapping });
  }

  #portMapped(member: Member, endpoint: Endpoint | undefined): void {
    if (endpoint !== undefined && !isAt(endpoint, member))
      throw new Refusal("bad-field", "endpoint must be at the address where you are seen");
    if (member.peer.mapped === endpoint) return;
    this.#change(member, { mapped: endpoint ?? null });
    this.#tell({ event: "mapped", id: member.peer.id, ...(endpoint && { endpoint }) });
  }

  #change(member: Member, change: PeerChange): void {
    member.peer = changedPeer(member.peer, change);
    member.json = "";
    const laterMs = (this.#rooms.get(member.room)?.size ?? 0) * flushMs;
    this.#processor.spend(member.subscriber, laterMs, performance.now());
    this.#changeTimer ??= setTimeout(() => this.#tellChanges(), updateDelayMs);
    this.#changed.set(member, { ...this.#changed.get(member), ...change });
  }

  #tellChanges(): void {
    this.#changeTimer = undefined;
    const perRoom = new Map<string, string>();
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const [member, change] of changed) {
      const { peer, room } = member;
      if (!this.#members.has(peer.id)) continue;
      this.#serve(member.socket, () => {
        this.#elsewhere.put(member);
        const line = encode({ type: "updated", id: peer.id, ...change });
        perRoom.set(room, (perRoom.get(room) ?? "") + line);
      });
    }
    for (const [room, lines] of perRoom)
      this.#serve(nobody, () => this.#tellRoom(this.#rooms.get(room) ?? [], lines));
  }

  // those who are at other introducers

  #guestJoined(guest: Guest): void {
    this.#tellRoom(this.#rooms.get(guest.room) ?? [], lineAbout(guest, { type: "joined" }));
  }

  #guestChanged(guest: Guest, change: PeerChange): void {
    const line = encode({ type: "updated", id: guest.peer.id, ...change });
    if (Object.keys(change).length > 0) this.#tellRoom(this.#rooms.get(guest.room) ?? [], line);
    if (guest.hasMeasured) this.#introductions.mapped(guest);
  }

  #guestLeft(guest: Guest, reason: string): void {
    const { id, name, fingerprint } = guest.peer;
    this.#keptNames.keep(guest.room, name, fingerprint, guest.subscriber);
    this.#introductions.left(guest, reason);
    this.#tellRoom(this.#rooms.get(guest.room) ?? [], encode({ type: "left", id }));
  }

  /** It comes back, and finds what is free. */
  #displace(id: number, reason: string): void {
    const member = this.#members.get(id);
    if (!member) return;
    this.#dismissOne(member, reason);
  }

  /** What another introducer says, of its participant and one of ours. */
  #receive(letter: Letter): void {
    const member = this.#members.get(letter.to);
    const guest = member && this.#elsewhere.guests(member.room).get(letter.from);
    if (member && guest) this.#serve(member.socket, () => this.#receiveFrom(guest, member, letter));
  }

  #receiveFrom(guest: Guest, member: Member, letter: Letter): void {
    if (letter.is === "order") {
      if (isOf(letter.message, guest)) this.#introductions.ordered(member, guest, letter);
      return;
    }
    const { message } = letter;
    if (message.type === "linked") this.#introductions.linked(guest, message);
    if (message.type === "failed") this.#introductions.failed(guest, message);
    if (message.type === "measured") this.#introductions.measured(guest, message);
  }

  /** A guest has to be told where we are. */
  #offerRelay(a: Party, b: Party): { token: string; endpoint?: Endpoint } | undefined {
    const address = isGuest(b) ? this.#addressFor(b.peer.public) : undefined;
    if (isGuest(b) && address === undefined) return undefined;
    const token = this.#relays?.offer(a, b);
    if (token === undefined) return undefined;
    return { token, ...(address !== undefined && { endpoint: formatEndpoint(address, this.port) }) };
  }

  #addressFor(observed: Endpoint): string | undefined {
    const { family } = splitEndpoint(observed);
    const listening = canonicalAddress(this.host);
    const isAny = listening === undefined || listening.address === "::" || listening.address === "0.0.0.0";
    const advertised = canonicalAddress(this.#advertised ?? "");
    if (advertised?.family === family) return advertised.address;
    return reachable(isAny ? this.#ownAddresses() : [listening], observed, family);
  }

  // links: what participants say of them

  #keepLinks(member: Member, links: MessageOf<"register">["links"]): void {
    if (links.length === 0) return;
    member.links = new Map(links.map(({ peer, route }) => [peer, { route, id: undefined }]));
  }

  #linked(member: Member, message: MessageOf<"linked">): void {
    const { peer, route, local, remote, token } = message;
    const other = this.#neighbour(member, peer);
    if (!this.#introductions.mayReport(member, other, token)) return; // untrue, late, or said before
    const { instance } = other.peer;
    const links = (member.links ??= new Map<string, Link>());
    if (links.size >= maxReportedLinks && !links.has(instance)) this.#forgetLinks(member, links);
    links.set(instance, { route, id: peer });
    this.#introductions.linked(member, message);
    this.#tell({ event: "linked", id: member.peer.id, peer, route, local, remote });
  }

  /** Those with who is not here: more than a room's worth of them has piled up. */
  #forgetLinks(member: Member, links: Map<string, Link>): void {
    const room = [...this.#everyone(member.room)];
    const present = new Set(room.map(({ peer }) => peer.instance));
    for (const instance of links.keys()) if (!present.has(instance)) links.delete(instance);
  }

  #unlinked(member: Member, { peer, reason }: MessageOf<"unlinked">): void {
    const { links, room } = member;
    const other = this.#inRoom(room, peer);
    // Of a peer that is gone it knows the id that it had.
    const absent = [...(links ?? [])].find(([, { id }]) => id === peer)?.[0];
    const instance = other?.peer.instance ?? absent;
    if (instance === undefined || !links?.delete(instance)) return;
    this.#tell({ event: "unlinked", id: member.peer.id, peer, reason });
  }

  /** Takes a session out of its room, once, however many ways it ends. */
  #leave(session: Session, reason: string): void {
    if (!session.peer || !this.#members.delete(session.peer.id)) return;
    const { id, name, fingerprint } = session.peer;
    this.#keptNames.keep(session.room, name, fingerprint, session.subscriber);
    if (session.verifyToken !== undefined) this.#verifying.delete(session.verifyToken);
    if (session.probeToken !== undefined) this.#probing.delete(session.probeToken);
    const room = this.#rooms.get(session.room);
    room?.delete(session as Member);
    if (room?.size === 0) this.#rooms.delete(session.room);
    this.#introductions.left(session as Member, reason);
    this.#elsewhere.remove(session as Member);
    this.#tellRoom(room ?? [], encode({ type: "left", id }));
    this.#tell({ event: "left", id, name, reason });
  }
}

// --- the prompt ------------------------------------------------------------------------------------------

const commands = [
  { key: "s", word: "list", operands: "", what: "who is here" },
  { key: "g", word: "stats", operands: "", what: "what has been going on" },
  { key: "d", word: "broadcast", operands: "TEXT", what: "say something to everyone" },
  { key: "f", word: "tell", operands: "ID TEXT", what: "say something to one participant" },
  { key: "h", word: "help", aliases: ["?"], operands: "", what: "this (also ?)" },
  { key: "a", word: "quit", aliases: ["q", "exit"], operands: "", what: "end the introducer (also q, exit)" },
] as const satisfies Command[];

const commandHelp = `${renderCommands(commands)}\n\nID is an id or a name, as \`list\` shows them.`;

/** What an introducer tells even with --quiet. */
const problems: ReadonlySet<IntroducerEvent["event"]> = new Set(["error", "warning"] as const);

const logFormats = ["text", "json"] as const;
type LogFormat = (typeof logFormats)[number];

/** The operator's side: events as log lines or JSON, and the commands. */
class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;
  readonly #log: LogFormat;
  /** Events of this tick. */
  #told: string[] = [];
  #failures = 0;

  constructor(terminal: Terminal, isJson: boolean, log: LogFormat) {
    this.#terminal = terminal;
    this.#isJson = isJson;
    this.#log = log;
  }

  event(event: IntroducerEvent): void {
    const isProblem = problems.has(event.event);
    if (this.#terminal.isQuiet && !this.#isJson && !isProblem) return;
    if (this.#told.length === 0) setImmediate(() => this.flush());
    this.#told.push(this.#isJson || this.#log === "json" ? timed(event) : this.#logLine(event));
    if (isProblem || this.#terminal.isInteractive) this.flush(isProblem);
  }

  #logLine(event: IntroducerEvent): string {
    const time = this.#terminal.storyColors.dim(new Date().toTimeString().slice(0, 8));
    return `${time} ${printable(describe(event))}`;
  }

  /** What happens in one tick goes in one system call: in a flood those for each line would be a quarter of all work. */
  flush(isProblem = false): void {
    if (this.#told.length === 0) return;
    const text = this.#told.join("\n");
    this.#told = [];
    if (this.#isJson) this.#terminal.result(text);
    else this.#terminal.story(text, isProblem);
  }

  /** Takes commands until the operator wants to end; resolves to the exit code. */
  async obey(introducer: Introducer): Promise<number> {
    const terminal = this.#terminal;
    if (terminal.isInteractive) {
      terminal.story("`help` shows the commands");
      await this.#converse(introducer);
      return 0;
    }
    for await (const line of terminal.lines()) {
      if (line.trim() !== "" && (await this.#run(line, introducer))) return this.#failures > 0 ? 1 : 0;
    }
    return new Promise<never>(() => {}); // as a service, standard input is /dev/null: its end means nothing
  }

  #converse(introducer: Introducer): Promise<void> {
    const here = () => count(introducer.size, "participant");
    const isAlone = () => introducer.size === 0;
    return this.#terminal.converse({
      prompt: "introducer> ",
      onLine: async (line) => {
        if (!(await this.#run(line, introducer))) return false;
        const question = `end the introducer for ${here()}? y `;
        return (
          isAlone() || (await this.#terminal.ask(question, (answer) => /^y(es)?$/i.test(answer))) === true
        );
      },
      complete: (line) => completions(commands, introducer.names(), line),
      reasonToStay: () => (isAlone() ? undefined : `${here()} here`),
    });
  }

  /** Obeys one line; returns whether it asks for the end. */
  async #run(line: string, introducer: Introducer): Promise<boolean> {
    try {
      const { command, words, text } = readCommand(commands, line);
      if (command === "quit") return true;
      if (command === "list") await this.#list(introducer);
      if (command === "stats") await this.#stats(introducer);
      if (command === "help") this.#terminal.result(commandHelp);
      if (command === "broadcast") await this.#broadcast(introducer, text);
      if (command === "tell") await this.#tell(introducer, words[0]!, text);
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      this.#failures++;
      this.#say({ event: "error", message: error.message });
    }
    return false;
  }

  async #list(introducer: Introducer): Promise<void> {
    const { all, problem } = await introducer.ask({ about: "list" });
    const participants = all.flatMap((one) => one.participants);
    const { resultColors, width } = this.#terminal;
    const pieces = this.#isJson
      ? await jsonPieces({ event: "participants" }, "participants", participants)
      : await renderParticipants(participants, resultColors, Date.now(), width);
    this.flush();
    this.#terminal.longResult(pieces);
    complain("those of others may be missing", problem);
  }

  async #stats(introducer: Introducer): Promise<void> {
    const { all, problem } = await introducer.ask({ about: "count" });
    const participants = all.reduce((sum, one) => sum + one.count, 0);
    const everywhere = introducer.isAlone ? undefined : { participants, introducers: all.length };
    const { stats } = introducer;
    if (this.#isJson) this.#json({ event: "stats", stats, ...(everywhere && { everywhere }) });
    else this.#terminal.result(renderStats(stats, everywhere));
    complain("others may be missing", problem);
  }

  async #broadcast(introducer: Introducer, text: string): Promise<void> {
    const { told, problem } = await introducer.tell(text);
    this.#say({ event: "told", participants: told });
    complain("others may not have been told", problem);
  }

  async #tell(introducer: Introducer, word: string, text: string): Promise<void> {
    const { all, problem } = await introducer.ask({ about: "list" });
    const whom = findByIdOrName(
      all.flatMap(({ participants }) => participants),
      word,
    );
    if (typeof whom === "string") throw new CommandError(problem ? `${whom} (${problem})` : whom);
    const { told, problem: why = "it has left" } = await introducer.tell(text, whom.id);
    const who = `${printable(whom.name)} (${whom.id})`;
    if (told === 0) throw new CommandError(`${who} was not told: ${why}`);
    this.#say({ event: "told", participants: told, id: whom.id, name: whom.name });
  }

  /** What became of a command: where programs read, one of their lines. */
  #say(event: IntroducerEvent): void {
    const isProblem = problems.has(event.event);
    if (this.#isJson) this.#json(event);
    this.flush();
    if (this.#log === "json") this.#terminal.story(timed(event), isProblem);
    else if (isProblem) this.#terminal.error(describe(event));
    else if (!this.#isJson) this.#terminal.story(printable(describe(event)));
  }

  #json(event: object): void {
    this.flush();
    this.#terminal.result(timed(event));
  }
}

/** Where the other introducers have not all answered. */
function complain(what: string, problem: string | undefined): void {
  if (problem !== undefined) throw new CommandError(`${what}: ${problem}`);
}

/** One JSON line, with the time in milliseconds since the epoch. */
function timed(event: object): string {
  return jsonLine({ ...event, at: performance.timeOrigin + performance.now() });
}

// --- main ------------------------------------------------------------------------------------------------

/** How many ports after a taken one are tried for a free one to propose. */
const proposedPorts = 100;

/** Those that nobody need change, a line each. */
function renderLimits(): string {
  const limits = defaultLimits;
  const seconds = (ms: number) => `${ms / 1000} s`;
  const rows = [
    ["lines", `${limits.messageBurst} at once, then ${limits.messagesPerSecond} a second of one connection;`],
    ["", `closed after ${limits.badLines} that break the protocol`],
    [
      "bytes waiting",
      `${amount(limits.heldBytesPerAddress)} of one address, ${amount(limits.heldBytes)} in all;`,
    ],
    [
      "",
      `${amount(limits.unsentBytes)} for one that reads too slowly, ${amount(limits.unsentBytesPerAddress)} for those of`,
    ],
    ["", `one address, ${amount(limits.unsentBytesInAll)} for all`],
    ["processor", `${limits.processorMs} ms a second of one address, more while it is idle;`],
    ["", `${limits.acceptsPerSecond} new connections a second of one address, more likewise`],
    [
      "registering",
      `within ${seconds(limits.registerDeadlineMs)}; closed after ${seconds(limits.silenceMs)} of silence,`,
    ],
    ["", `asked every ${seconds(limits.pingMs)}`],
    [
      "names",
      `kept for ${seconds(nameKeptMs)} after leaving a room that is not private, ${limits.keptNamesPerAddress} of`,
    ],
    ["", `one address, ${limits.keptNames} of a room, in ${limits.keptNamesRooms} rooms and the lobby`],
    [
      "introductions",
      `${limits.introductionsPerMinute} a minute by one participant, ${limits.introductionsPerPair} of them`,
    ],
    [
      "",
      `to one peer; ${limits.introductionsPerTarget} of one peer by all; ${seconds(limits.punchDeadlineMs)} each`,
    ],
    [
      "guessed ports",
      `${limits.birthdaysPerPair} a minute with one peer, after a failure none for ${seconds(limits.failedBirthdayPauseMs)};`,
    ],
    ["", `${limits.failedBirthdaysPerTarget} failures of one peer in that time`],
    [
      "probes",
      `${limits.probesPerAddress} of one address, ${limits.probes} in all, for ${seconds(limits.measureMs)};`,
    ],
    ["", `${limits.connectBacks} connections back at once, ${limits.connectBacksPerAddress} to one address`],
    [
      "relays",
      `${limits.relaysPerMember} of one participant; both come within ${seconds(limits.relayOfferMs)}`,
    ],
  ];
  return rows.map(([what = "", limit]) => `  ${what.padEnd(15)}${limit}`).join("\n");
}

const usage = `Usage: ${startedAs("introducer")} [PORT] [options]

Tells participants about each other so that they can link by TCP hole punching.

  PORT               1 to 65535; without it you are asked on a terminal,
                     otherwise ${defaultPort}

Options:
  --host ADDR        listen on this address only (default: all of this host's)
  --probe-ports A,B  further ports, where participants measure how their
                     NAT maps (default: the next two; none: no measuring)
  --alternate ADDR   a second address of this host, for finer measuring
  --no-relay         carry no bytes of those who have no direct way
  --relay-rate N     bytes a second of one relayed link, each way
                     (default: 1M; K, M, G: times 1024 and so on)
  --relay-total N    bytes a second of all relayed links (default: 16M)
  --redis URL        share rooms with all introducers of that Redis (also from
                     REDIS_URL; redis://HOST or rediss://HOST for TLS)
  --advertise ADDR   where participants of those reach this one's relay
                     (default: the likeliest of this host's addresses)
  --max-connections N  connections in all (default: ${defaultLimits.sessions})
  --max-per-address N  of one IPv4 address or IPv6 /64 (default: ${defaultLimits.sessionsPerAddress}); a /48
                     has ${siteShares} times that
  --max-room N       participants of one room (default: ${defaultLimits.roomSize}), a quarter of
                     them, or ${leastRoomShare}, from one address
  --max-relays N     relayed links (default: ${defaultLimits.relays}), a quarter of them of one
                     address
  --metrics [ADDR:]PORT  numbers for Prometheus, at /metrics there (default
                     address: 127.0.0.1)
  -q, --quiet        results, errors and warnings only
  --log text|json    how events are told on standard error (default: text)
  --json             events as JSON lines on standard output, not as a log
  -h, --help         this
  --version          which version this is

Commands, from a terminal or as lines on standard input (the letter works too):
${commandHelp}

Further limits; whoever goes beyond one is told so, or made to wait:
${renderLimits()}
Of what there is once for all, nobody gets more than a quarter of what is left.

Results go to standard output, all else to standard error. Without a terminal
the end of the input ends nothing; after \`quit\` the exit code is 1 if a
command failed.

SIGTERM ends it in order: participants are told to come back, and introductions
and relayed links under way may take ${drainMs / 1000} s more. SIGINT, or a second SIGTERM,
ends it at once.

Exit codes: 0 done, 1 failed, 2 wrong usage.`;

function parsePort(text: string): number | undefined {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65535 ? port : undefined;
}

function askPort(terminal: Terminal): Promise<number | undefined> {
  return terminal.ask(`Port [${defaultPort}]: `, (answer) => {
    const port = answer === "" ? defaultPort : parsePort(answer);
    if (port === undefined) terminal.error("a port is a number from 1 to 65535");
    return port;
  });
}

/** The address that participants most likely reach this host by. */
function likelyAddress(): string {
  const rank = ({ address, family }: { address: string; family: 4 | 6 }) =>
    ["global4", "private4", "global6", "private6"].indexOf(addressScope(address) + family);
  const ranked = ownAddresses()
    .filter((one) => rank(one) >= 0)
    .sort((a, b) => rank(a) - rank(b));
  return ranked[0]?.address ?? "127.0.0.1";
}

/** Where an introducer is that listens there. */
function publicAddress(host: string): string {
  const { address = "::" } = canonicalAddress(host) ?? {};
  return address === "::" || address === "0.0.0.0" ? likelyAddress() : address;
}

/** What a participant types to come here. */
function invitation({ host, port }: Introducer): string {
  const command = `participants type:  ${otherStartedAs("participant")}`;
  if (canonicalAddress(host) === undefined) return `${command} ${host}:${port}`;
  const address = publicAddress(host);
  const scope = addressScope(address);
  const hint = {
    global: "",
    unusable: "",
    loopback: `\n${address} can be reached from this host only`,
    private: `\n${address} is a private address: from elsewhere, use the public one that leads to TCP port ${port} here`,
  }[scope];
  return `${command} ${formatEndpoint(address, port)}${hint}`;
}

/** The next port after a taken one that is free now; undefined where there is none near. */
function freePortAfter(taken: number, hostname: string): number | undefined {
  const last = Math.min(65535, taken + proposedPorts);
  for (let port = taken + 1; port <= last; port++) {
    try {
      Bun.listen({ hostname, port, socket: { data() {} } }).stop(true);
      return port;
    } catch {
      // taken as well
    }
  }
  return undefined;
}

function listenProblem(error: unknown, host: string | undefined, port: number): string {
  const { code, message } = error as { code?: string; message: string };
  const command = startedAs("introducer");
  if (error instanceof ProbePortError || error instanceof MetricsPortError) return message;
  if (code === "EADDRINUSE") {
    const free = freePortAfter(port, host ?? "::");
    return `port ${port} is taken by another program; choose another${free === undefined ? "" : `: ${command} ${free}`}`;
  }
  if (code === "EACCES")
    return `port ${port} needs more rights; choose one from 1024 on: ${command} ${defaultPort}`;
  if (code === "EADDRNOTAVAIL")
    return `this host has no address ${host}; leave --host out to listen on all it has`;
  return `can't listen on ${host ?? "any address"} port ${port}: ${message}`;
}

interface Arguments extends IntroducerOptions {
  log: LogFormat;
  json: boolean;
  quiet: boolean;
}

const options = {
  host: { type: "string" },
  "probe-ports": { type: "string" },
  alternate: { type: "string" },
  "no-relay": { type: "boolean" },
  "relay-rate": { type: "string" },
  "relay-total": { type: "string" },
  redis: { type: "string" },
  advertise: { type: "string" },
  "max-connections": { type: "string" },
  "max-per-address": { type: "string" },
  "max-room": { type: "string" },
  "max-relays": { type: "string" },
  metrics: { type: "string" },
  log: { type: "string" },
  quiet: { type: "boolean", short: "q" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

function readArguments(args: string[]): Arguments | "help" | "version" {
  const { values, positionals } = readOptions(args, options);
  if (values.help) return "help";
  if (values.version) return "version";
  const [word, ...more] = positionals;
  const port = word === undefined ? undefined : parsePort(word);
  if (more.length > 0) throw new UsageError(`unexpected argument ${more[0]}`);
  if (word !== undefined && port === undefined)
    throw new UsageError(`the port must be a number from 1 to 65535, not ${word}`);
  const { host, alternate, json = false, quiet = false, "probe-ports": ports } = values;
  const { metrics, log = "text" } = values;
  return {
    ...(port !== undefined && { port }),
    ...(host !== undefined && { host }),
    ...(ports !== undefined && { probePorts: readProbePorts(ports) }),
    ...(alternate !== undefined && { alternate: readAlternate(alternate) }),
    ...readRelay(values),
    ...readSharing(values),
    ...(metrics !== undefined && { metrics: readMetrics(metrics) }),
    limits: readLimits(values),
    log: readLogFormat(log),
    json,
    quiet,
  };
}

/** Participants are told to go there, so an address of another host would send them astray. */
function readAlternate(text: string): string {
  const address = canonicalAddress(text)?.address;
  if (address === undefined) throw new UsageError(`--alternate must be an IP address, not ${text}`);
  if (!ownAddresses().some((own) => own.address === address))
    throw new UsageError(`--alternate must be an address of this host, and ${address} is none`);
  return address;
}

function readSharing({ redis = process.env.REDIS_URL || undefined, advertise }: SharingValues) {
  const problem = redis === undefined ? undefined : redisUrlProblem(redis);
  if (problem !== undefined) throw new UsageError(`the URL of --redis (or REDIS_URL) is wrong: ${problem}`);
  if (advertise !== undefined && !canonicalAddress(advertise))
    throw new UsageError(`--advertise must be an IP address, not ${advertise}`);
  if (advertise !== undefined && redis === undefined)
    throw new UsageError("--advertise is for introducers that share their rooms (--redis)");
  return { ...(redis !== undefined && { redis }), ...(advertise !== undefined && { advertise }) };
}

interface SharingValues {
  redis?: string;
  advertise?: string;
}

function readLogFormat(text: string): LogFormat {
  const format = logFormats.find((one) => one === text);
  if (format === undefined) throw new UsageError(`--log takes ${logFormats.join(" or ")}, not ${text}`);
  return format;
}

/** `9100`, `0.0.0.0:9100`: where nobody says so, nobody else shall read it. */
function readMetrics(text: string): { hostname: string; port: number } {
  const endpoint = parseEndpoint(/^\d+$/.test(text) ? `127.0.0.1:${text}` : text);
  if (endpoint === undefined)
    throw new UsageError(`--metrics takes a port, or an address and a port such as [::1]:9100, not ${text}`);
  const { address: hostname, port } = splitEndpoint(endpoint);
  return { hostname, port };
}

function readCount(option: string, text: string, most: number): number {
  const number = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (number < 1 || number > most)
    throw new UsageError(`${option} takes a number from 1 to ${most}, not ${text}`);
  return number;
}

function readLimits(values: {
  "max-connections"?: string;
  "max-per-address"?: string;
  "max-room"?: string;
  "max-relays"?: string;
}): Partial<Limits> {
  const { "max-connections": all, "max-per-address": each, "max-room": room, "max-relays": links } = values;
  const relays = links === undefined ? undefined : readCount("--max-relays", links, 1_000_000);
  const size = room === undefined ? undefined : readCount("--max-room", room, mostInRoom);
  return {
    ...(all !== undefined && { sessions: readCount("--max-connections", all, 1_000_000) }),
    ...(each !== undefined && { sessionsPerAddress: readCount("--max-per-address", each, 1_000_000) }),
    ...(size !== undefined && roomLimits(size)),
    ...(relays !== undefined && { relays, relaysPerAddress: Math.ceil(relays / 4) }),
  };
}

/** A quarter of a room for one address, but a household in any, and as much unsent as its snapshot may take. */
export function roomLimits(size: number): Partial<Limits> {
  const unsentBytes = Math.max(defaultLimits.unsentBytes, 3 * mostPeerBytes * size);
  const unsentBytesPerAddress = Math.max(defaultLimits.unsentBytesPerAddress, 2 * unsentBytes);
  const unsentBytesInAll = Math.max(defaultLimits.unsentBytesInAll, 8 * unsentBytesPerAddress);
  const roomShare = Math.max(leastRoomShare, Math.ceil(size / 4));
  return { roomSize: size, roomShare, unsentBytes, unsentBytesPerAddress, unsentBytesInAll };
}

interface RelayValues {
  "no-relay"?: boolean;
  "relay-rate"?: string;
  "relay-total"?: string;
  "max-relays"?: string;
}

function readRelay(values: RelayValues) {
  const { "no-relay": isOff = false, "relay-rate": rate, "relay-total": total, "max-relays": most } = values;
  if (isOff && (rate ?? total ?? most) !== undefined)
    throw new UsageError("--no-relay leaves nothing for --relay-rate, --relay-total or --max-relays");
  return {
    ...(isOff && { relay: false }),
    ...(rate !== undefined && { relayRate: readBytes("--relay-rate", rate) }),
    ...(total !== undefined && { relayTotal: readBytes("--relay-total", total) }),
  };
}

/** `65536`, `64K`, `1M`: at least 1K, for a TLS handshake has to get through. */
function readBytes(option: string, text: string): number {
  const [, digits = "", unit = ""] = /^(\d{1,12})([KMG]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * 1024 ** " KMG".indexOf(unit.toUpperCase() || " ");
  if (bytes < 1024)
    throw new UsageError(`${option} takes bytes a second such as 65536, 64K or 1M, not ${text}`);
  return bytes;
}

function readProbePorts(text: string): number[] {
  if (text === "none") return [];
  const ports = text.split(",").map(parsePort);
  if (ports.includes(undefined) || ports.length > maxProbePorts || new Set(ports).size < ports.length) {
    throw new UsageError(
      `--probe-ports takes up to ${maxProbePorts} different ports such as 7001,7002, or none; not ${text}`,
    );
  }
  return ports.filter((port) => port !== undefined);
}

/** Runs until a signal or the operator ends it; returns the exit code. */
async function serve(terminal: Terminal, options: Arguments & { port: number }): Promise<number> {
  const { port, host, json, log } = options;
  const prompt = new Prompt(terminal, json, log);
  let introducer: Introducer;
  try {
    introducer = Introducer.start({ ...options, onEvent: (event) => prompt.event(event) });
  } catch (error) {
    terminal.error(listenProblem(error, host, port));
    return 1;
  }
  prompt.flush();
  if (!json && log === "text") terminal.story(invitation(introducer));
  const signal = Promise.withResolvers<[string, number]>();
  const endsAtOnce = (name: "SIGINT" | "SIGTERM") =>
    process.once(name, () => signal.resolve(["the introducer was interrupted", 0]));
  endsAtOnce("SIGINT");
  process.once("SIGTERM", () => {
    endsAtOnce("SIGTERM");
    const reason = "the introducer was terminated";
    void introducer.drain(reason).then(() => signal.resolve([reason, 0]));
  });
  void terminal.broken.then(() => signal.resolve(["the introducer can't write its output", 1]));
  const obeyed = prompt.obey(introducer).then((code) => ["the operator ended the introducer", code] as const);
  const [reason, code] = await Promise.race([signal.promise, obeyed]);
  terminal.close();
  await introducer.stop(reason);
  prompt.flush();
  return code;
}

async function main(terminal: Terminal): Promise<number> {
  const parsed = readArguments(process.argv.slice(2));
  if (parsed === "help" || parsed === "version") {
    terminal.result(parsed === "help" ? usage : version);
    return 0;
  }
  terminal.isQuiet = parsed.quiet;
  const port = parsed.port ?? (terminal.isInteractive ? await askPort(terminal) : defaultPort);
  return port === undefined ? 0 : serve(terminal, { ...parsed, port });
}

if (import.meta.main) await runProgram(main, []);
