/**
 * The introducer: the rendezvous server on a public host. It owns the participants' control connections,
 * tells everyone in a room of everyone else, and tells two of them when to punch towards each other.
 *
 * It never carries a link's bytes, connects to nobody but back to whoever asks for it, and believes nothing it
 * reads: every line is parsed into its exact type or refused, and everything a client can make it hold has a limit.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles), RFC 5382 (what NATs do to TCP).
 */
import { createHash, randomBytes } from "node:crypto";
import { connect } from "node:net";
import { networkInterfaces } from "node:os";
import type { Socket, TCPSocketListener } from "bun";
import {
  CommandError,
  completions,
  count,
  otherStartedAs,
  readCommand,
  readOptions,
  renderCommands,
  renderTable,
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
} from "./native/terminal.ts";
import {
  addressScope,
  age,
  canonicalAddress,
  controlSilenceMs,
  defaultPort,
  encode,
  failureReasons,
  findByIdOrName,
  formatEndpoint,
  introducerPingMs,
  jsonLine,
  LineDecoder,
  maxLineBytes,
  maxProbePorts,
  mayOffer,
  planRounds,
  printable,
  protocolVersion,
  punchDeadlineMs,
  Refusal,
  registerDeadlineMs,
  splitEndpoint,
  parseToIntroducer,
  type Endpoint,
  type EndpointParts,
  type FailureReason,
  type Filtering,
  type Mapping,
  type Peer,
  type Prediction,
  type RefusalCode,
  type Role,
  type Route,
  type ToIntroducer,
  type ToParticipant,
  type Way,
} from "./protocol.ts";

// --- limits and timers -----------------------------------------------------------------------------------

export const defaultLimits = {
  /** Connections in all: an idle participant takes 2.5 KiB (measured), so some 50 MB. */
  sessions: 20_000,
  /** Connections of one IPv4 address or one IPv6 /64 (RFC 6177: a site has at least that): enough for a large office or a carrier's NAT. */
  sessionsPerAddress: 256,
  /** The same for loopback, where only this host's own programs come from. */
  sessionsPerLoopback: Infinity,
  /** Participants of one room: each change is told to all of them, so the cost of a room is its square. */
  roomSize: 256,
  /** Lines of one session: so many at once, then so many a second. A person types far less. */
  messageBurst: 100,
  messagesPerSecond: 50,
  /** Introductions one session may ask for. */
  introductionsPerMinute: 120,
  /** Lines of one session that break the protocol, before it is closed. */
  badLines: 20,
  /** Bytes that wait for a slow reader: a full room's snapshot is a third of that. */
  unsentBytes: 1024 * 1024,
  registerDeadlineMs,
  pingMs: introducerPingMs,
  silenceMs: controlSilenceMs,
  punchDeadlineMs,
  /** Probe connections open at once, in all; each lasts a round trip. */
  probes: 1024,
  /** How long a side may take to measure its mapping, and a probe connection to be closed by its client. */
  measureMs: 3000,
};
export type Limits = typeof defaultLimits;

/** How often deadlines are looked at: one timer for all, because a timer per session costs memory. */
const tickMs = 500;
/** How long a closed session may take to read its last line; closing at once would send a RST that eats it. */
const closeGraceMs = 1500;
/** A report may be under way this long after the punch's deadline. */
const reportGraceMs = 2000;
/** No start is put off longer, whatever round trips a participant feigns. */
const maxStartInMs = 2000;
/** How long a connection back may take: RFC 5382 §4.3 has a NAT hold an unsolicited SYN for 6 s, but a silent one never answers. */
const connectBackMs = 3000;
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
  "timed-out",
]);
/** Changes of a participant within this time are told in one `updated`. */
const updateDelayMs = 50;
/** Round trips measured at once after registering; the least of them counts. */
const firstPings = 3;

/** What the sender got wrong, as opposed to what the world changed meanwhile. */
const badLineCodes: ReadonlySet<RefusalCode> = new Set<RefusalCode>([
  "bad-line",
  "unknown-type",
  "bad-field",
  "already-registered",
]);

// --- types -----------------------------------------------------------------------------------------------

export type Participant = Peer & { room: string };

/** What an operator can be told of; with `--json` these are the lines. */
export type IntroducerEvent =
  | { event: "listening"; host: string; port: number }
  | { event: "joined"; id: number; name: string; room: string; private: Endpoint[]; public: Endpoint }
  | { event: "ignored"; address: Endpoint; endpoints: Endpoint[] }
  | { event: "left"; id: number; name: string; reason: string }
  | { event: "punch"; a: number; b: number; way: Way; round: number }
  | { event: "linked"; id: number; peer: number; route: Route; local: Endpoint; remote: Endpoint }
  | { event: "unlinked"; id: number; peer: number; reason: string }
  | { event: "failed"; id: number; peer: number; reason: FailureReason; detail: string }
  | { event: "refused"; id?: number; address: Endpoint; code: RefusalCode; message: string }
  | { event: "mapping"; id: number; mapping: Mapping }
  | { event: "error"; address: Endpoint; message: string }
  | { event: "warning"; message: string }
  | { event: "participants"; participants: Participant[] };

export interface IntroducerOptions {
  /** Default: all addresses of this host, IPv6 and IPv4. */
  host?: string;
  /** 0 lets the system choose. */
  port?: number;
  /** Ports for mapping probes; by default the next two, as far as they are free. */
  probePorts?: number[];
  /** Another address of this host, for probes that tell address-dependent mappings. */
  alternate?: string;
  limits?: Partial<Limits>;
  onEvent?: (event: IntroducerEvent) => void;
}

/** A port that was asked for can't answer mapping probes. `message` says which and why. */
class ProbePortError extends Error {}

interface Bucket {
  tokens: number;
  at: number;
}

type Connection = Socket<Session | undefined>;

/** One connection. Small on purpose: what an idle participant doesn't need is made when needed. */
class Session {
  readonly socket: Connection;
  /** Kept from `open`: a closed socket has no remote address. */
  readonly observed: Endpoint;
  readonly lines: Bucket;
  peer: Peer | undefined = undefined;
  room = "";
  closing = false;
  /** Until when it must have registered or, once closing, be gone. */
  deadlineAt: number;
  heardAt: number;
  pingId = 0;
  pingSentAt = 0;
  answeredPingId = 0;
  roundTripMs: number | undefined = undefined;
  badLines = 0;
  introductions: Bucket | undefined = undefined;
  /** Whether its `mapping` has come. */
  hasMeasured = false;
  decoder: LineDecoder | undefined = undefined;
  unsent: Uint8Array[] | undefined = undefined;
  unsentBytes = 0;

  constructor(socket: Connection, observed: Endpoint, limits: Limits, now: number) {
    this.socket = socket;
    this.observed = observed;
    this.lines = { tokens: limits.messageBurst, at: now };
    this.deadlineAt = now + limits.registerDeadlineMs;
    this.heardAt = now;
  }
}

/** A session that has registered. */
type Member = Session & { peer: Peer };

/** Two participants being brought together, in as many rounds as the plan has. */
interface Introduction {
  /** Of the round under way; empty before the first. */
  token: string;
  /** Ids of the sides whose report on it is still to come. */
  waiting: Set<number>;
  /** The asker first: it is the controlling side. */
  members: [Member, Member];
  /** Empty until both sides have measured their mapping. */
  plan: Way[];
  /** Index in the plan. */
  round: number;
  /** Whether no other round follows. */
  isLast: boolean;
  /** Ids of the sides that are measuring, until when, and what the others measured. */
  measuring: Set<number>;
  measureUntil: number;
  predictions: Map<number, Prediction>;
  deadlineAt: number;
  expiresAt: number;
}

// --- pure functions --------------------------------------------------------------------------------------

function take(bucket: Bucket, burst: number, perSecond: number, now: number): boolean {
  bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1000) * perSecond);
  bucket.at = now;
  if (bucket.tokens < 1) return false;
  bucket.tokens -= 1;
  return true;
}

function remove(list: number[], id: number): boolean {
  const index = list.indexOf(id);
  if (index !== -1) list.splice(index, 1);
  return index !== -1;
}

/** What others may know of it: with the value itself they could pass for a participant that comes back. */
function publicInstance(instance: string): string {
  return createHash("sha256").update(instance).digest("hex").slice(0, instance.length);
}

function newToken(): string {
  return randomBytes(16).toString("hex");
}

/** Connects to an endpoint, only to see what comes back. */
function tryConnect({ address, port }: EndpointParts): Promise<Filtering> {
  const { promise, resolve } = Promise.withResolvers<Filtering>();
  const socket = connect({ host: address, port });
  const timer = setTimeout(() => resolve("dropped"), connectBackMs);
  socket.once("connect", () => resolve("let-in"));
  // A RST says ECONNREFUSED, an ICMP error EHOSTUNREACH and the like; only silence is ETIMEDOUT.
  socket.on("error", ({ code }: NodeJS.ErrnoException) =>
    resolve(code === "ETIMEDOUT" ? "dropped" : "refused"),
  );
  return promise.finally(() => {
    clearTimeout(timer);
    socket.destroy();
  });
}

function pairKey(a: number, b: number): string {
  return a < b ? `${a}-${b}` : `${b}-${a}`;
}

/** The part of an address that one subscriber holds: of IPv6 a whole /64. */
function subscriber(address: string): string {
  if (!address.includes(":")) return address;
  const [head = "", tail = ""] = address.split("::");
  const [front, back] = [head.split(":").filter(Boolean), tail.split(":").filter(Boolean)];
  const zeros = Array<string>(8 - front.length - back.length).fill("0");
  return [...front, ...zeros, ...back].slice(0, 4).join(":");
}

/** Undefined when the client is gone already, or came by a link-local address, which its peers can't use. */
function observedEndpoint(socket: Connection): Endpoint | undefined {
  const address = canonicalAddress(socket.remoteAddress ?? "")?.address;
  if (address === undefined || addressScope(address) === "unusable") return undefined;
  return formatEndpoint(address, socket.remotePort);
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

/** A room's snapshot in lines of at most {@link maxLineBytes}. */
function snapshot(peers: Peer[]): ToParticipant[] {
  const lines: Peer[][] = [[]];
  let bytes = 0;
  for (const peer of peers) {
    const size = Buffer.byteLength(JSON.stringify(peer)) + 1;
    if (bytes + size > maxLineBytes - 64) {
      lines.push([]);
      bytes = 0;
    }
    bytes += size;
    lines.at(-1)!.push(peer);
  }
  return lines.map((part, index) => ({ type: "peers", peers: part, more: index < lines.length - 1 }));
}

/** How long the sides wait so that both start at the same moment, for one-way delays from the introducer. */
export function startDelays(a: number | undefined, b: number | undefined): [number, number] {
  const [delayA, delayB] = [Math.round((a ?? 0) / 2), Math.round((b ?? 0) / 2)];
  const last = Math.max(delayA, delayB);
  return [Math.min(last - delayA, maxStartInMs), Math.min(last - delayB, maxStartInMs)];
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
/** Ids of others that a line shows; there may be a room full of them. */
const shownIds = 6;

function idList(ids: number[], most: number): string {
  const more = ids.length > most ? ` +${ids.length - most}` : "";
  return ids.slice(0, most).join(", ") + more || "-";
}

function row(one: Participant, width: number, colors: Colors, now: number): Cell[] {
  const isWhole = width === Infinity;
  const [first = "-", ...others] = one.private;
  const more = others.length > 0 ? `+${others.length} more` : "";
  const dim = (text: string) => ({ text, paint: colors.dim });
  const links = [
    { text: idList(one.linked, isWhole ? Infinity : shownIds), paint: colors.green },
    { text: idList(one.punching, isWhole ? Infinity : shownIds), paint: colors.yellow },
  ];
  const who = [[{ text: String(one.id), paint: colors.bold }], [printable(one.name)], [printable(one.room)]];
  const since = [age(now - one.since)];
  if (width < wideColumns) {
    const mapping = one.mapping.split(/(?<=-)/); // endpoint-independent is too wide for this table
    const endpoints = [dim(first), ...(more === "" ? [] : [dim(more)]), one.public];
    return [...who, mapping, endpoints, links, since];
  }
  const hosts = isWhole ? one.private.join(", ") || first : `${first} ${more}`.trimEnd();
  return [...who, [one.mapping], [dim(hosts)], [one.public], ...links.map((part) => [part]), since];
}

/** The participants as a table: of at most 80 columns, or as wide as `width`; Infinity, for a pipe, cuts nothing. */
export function renderParticipants(
  participants: Participant[],
  colors: Colors,
  now: number,
  width = 80,
): string {
  if (participants.length === 0) return "nobody is here yet";
  const rows = participants.map((one) => row(one, width, colors, now));
  return `${renderTable(width < wideColumns ? narrowList : wideList, rows, width)}\n${total(participants)}`;
}

/** `3 participants in 1 room, 1 link`. */
function total(participants: Participant[]): string {
  const rooms = new Set(participants.map(({ room }) => room)).size;
  const links = Math.ceil(participants.reduce((sum, { linked }) => sum + linked.length, 0) / 2);
  return `${count(participants.length, "participant")} in ${count(rooms, "room")}, ${count(links, "link")}`;
}

/** One event as a log line; it may hold text from the network, so it is made printable by whoever prints it. */
function describe(event: IntroducerEvent): string {
  switch (event.event) {
    case "listening":
      return `listening on ${event.host} port ${event.port}`;
    case "joined":
      return `#${event.id} ${event.name} joined ${event.room} from ${event.public} (private ${event.private.join(", ") || "none"})`;
    case "ignored":
      return `${event.address} offered ${event.endpoints.join(", ")}, not its own: ignored`;
    case "left":
      return `#${event.id} ${event.name} left: ${event.reason}`;
    case "punch":
      return `#${event.a} and #${event.b} are punching (${event.way}, round ${event.round})`;
    case "mapping":
      return `#${event.id} has ${event.mapping} mapping`;
    case "warning":
      return event.message;
    case "linked":
      return `#${event.id} linked with #${event.peer} (${event.route}): ${event.local} → ${event.remote}`;
    case "unlinked":
      return `#${event.id} unlinked from #${event.peer}: ${event.reason}`;
    case "failed":
      return `#${event.id} failed to link with #${event.peer}: ${failureReasons[event.reason]}${event.detail && ` (${event.detail})`}`;
    case "refused":
      return `refused ${event.id ? `#${event.id} ` : ""}${event.address}: ${event.message} [${event.code}]`;
    case "error":
      return `an error while serving ${event.address}: ${event.message}`;
    case "participants":
      return `${event.participants.length} participants`;
  }
}

// --- the introducer --------------------------------------------------------------------------------------

/** A rendezvous server. `start` listens; `stop` tells the participants and ends. */
export class Introducer {
  readonly limits: Limits;
  readonly #onEvent: (event: IntroducerEvent) => void;
  readonly #listener: TCPSocketListener<Session | undefined>;
  readonly #probeListeners: TCPSocketListener<undefined>[];
  readonly #alternate: string | undefined;
  #openProbes = 0;
  readonly #timer: Timer;
  readonly #connections = new Set<Session>();
  readonly #perSubscriber = new Map<string, number>();
  readonly #members = new Map<number, Member>();
  readonly #rooms = new Map<string, Set<Member>>();
  readonly #introductions = new Map<string, Introduction>();
  /** The way that linked a pair last, where it was not the first of the plan: tried first the next time. */
  readonly #workingWays = new Map<string, Way>();
  readonly #changed = new Set<Member>();
  #lastId = 0;
  #stopped: Promise<void> | undefined;
  #allGone: (() => void) | undefined;

  /** Throws what `Bun.listen` throws, such as EADDRINUSE, or a {@link ProbePortError}. */
  static start(options: IntroducerOptions = {}): Introducer {
    return new Introducer(options);
  }

  private constructor(options: IntroducerOptions) {
    this.limits = { ...defaultLimits, ...options.limits };
    this.#onEvent = options.onEvent ?? (() => {});
    this.#listener = this.#listen(options.host, options.port ?? defaultPort);
    this.#alternate = options.alternate;
    this.#probeListeners = this.#listenForProbes(options);
    const { registerDeadlineMs: register, pingMs, silenceMs, measureMs } = this.limits;
    const shortest = Math.min(register, pingMs, silenceMs, measureMs);
    this.#timer = setInterval(() => this.#tick(), Math.min(tickMs, shortest / 4));
    this.#onEvent({ event: "listening", host: this.host, port: this.port });
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

  /** Everyone who has registered, by id. */
  get participants(): Participant[] {
    return [...this.#members.values()].map(({ peer, room }) => ({ ...peer, room }));
  }

  /** Says something to everyone; returns to how many. */
  broadcast(text: string): number {
    const line = Buffer.from(encode({ type: "notice", text }));
    for (const member of this.#members.values()) this.#write(member, line);
    return this.#members.size;
  }

  /** Says something to one participant; returns whether there is one of that id. */
  tell(id: number, text: string): boolean {
    const member = this.#members.get(id);
    if (member) this.#send(member, { type: "notice", text });
    return member !== undefined;
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
    for (const listener of this.#probeListeners) listener.stop(true);
    const gone = new Promise<void>((resolve) => (this.#allGone = resolve));
    const sessions = [...this.#connections];
    for (const session of sessions) {
      this.#send(session, { type: "bye", reason });
      session.closing = true; // so that nobody is told of everyone else's leaving
    }
    for (const session of sessions) this.#close(session, reason);
    const timeout = setTimeout(() => this.#allGone?.(), closeGraceMs);
    if (this.#connections.size > 0) await gone;
    clearTimeout(timeout);
    clearInterval(this.#timer);
    this.#listener.stop(true);
  }

  #listen(host: string | undefined, port: number): TCPSocketListener<Session | undefined> {
    const listen = (hostname: string) =>
      Bun.listen<Session | undefined>({
        hostname,
        port,
        allowHalfOpen: true,
        socket: {
          open: (socket) => this.#open(socket),
          data: ({ data }, chunk) => data && this.#data(data, chunk),
          drain: ({ data }) => data && this.#flush(data),
          end: ({ data }) => data && this.#close(data, "it closed the connection"),
          error: ({ data }, error) => data && this.#mishap(data, error),
          close: ({ data }, error) =>
            data && this.#closed(data, error?.message ?? "it closed the connection"),
        },
      });
    if (host !== undefined) return listen(host);
    try {
      return listen("::");
    } catch (error) {
      const { code } = error as { code?: string };
      if (code === "EADDRINUSE" || code === "EACCES") throw error;
      return listen("0.0.0.0"); // a kernel without IPv6
    }
  }

  // mapping probes (RFC 5780 §4.3): say what is seen, nothing else

  #listenForProbes({
    host,
    port = defaultPort,
    probePorts,
    alternate,
  }: IntroducerOptions): TCPSocketListener<undefined>[] {
    const ports = probePorts ?? (port === 0 ? [0, 0] : [port + 1, port + 2].filter((next) => next <= 65535));
    // A wildcard listener answers at the alternate address already.
    const hosts = [host ?? this.host, ...(alternate !== undefined && host !== undefined ? [alternate] : [])];
    const listeners: TCPSocketListener<undefined>[] = [];
    for (const probePort of ports) {
      try {
        for (const hostname of hosts) listeners.push(this.#listenForProbe(hostname, probePort));
      } catch (error) {
        const { code = String(error) } = error as { code?: string };
        const message = `no mapping probes on port ${probePort}: ${code} (choose others with --probe-ports)`;
        if (probePorts) {
          for (const listener of [...listeners, this.#listener]) listener.stop(true);
          throw new ProbePortError(message, { cause: error });
        }
        this.#onEvent({ event: "warning", message });
      }
    }
    return listeners;
  }

  #listenForProbe(hostname: string, port: number): TCPSocketListener<undefined> {
    return Bun.listen<undefined>({
      hostname,
      port,
      socket: {
        open: (socket) => {
          const observed = ++this.#openProbes <= this.limits.probes ? observedEndpoint(socket) : undefined;
          if (!observed) return void socket.terminate();
          socket.setNoDelay(true);
          socket.timeout(Math.ceil(this.limits.measureMs / 1000));
          socket.write(encode({ type: "observed", endpoint: observed }));
        },
        data: () => {},
        timeout: (socket) => socket.terminate(),
        close: () => void this.#openProbes--,
      },
    });
  }

  /** What a SYN meets that comes unasked to the participant's own observed endpoint, and never anywhere else. */
  #connectBack(member: Member): void {
    const { introductionsPerMinute: most } = this.limits;
    member.introductions ??= this.#introductionBucket();
    if (!take(member.introductions, most, most / 60, performance.now())) {
      throw new Refusal("limit", `${most} introductions a minute are enough: wait a little`);
    }
    void tryConnect(splitEndpoint(member.observed)).then((filtering) =>
      this.#send(member, { type: "filtering", filtering }),
    );
  }

  // connections

  #open(socket: Connection): void {
    const observed = observedEndpoint(socket);
    if (!observed) return void socket.terminate();
    const session = new Session(socket, observed, this.limits, performance.now());
    socket.data = session;
    socket.setNoDelay(true); // a `punch` held back by Nagle's algorithm would spoil the simultaneous start
    this.#connections.add(session);
    const { address } = splitEndpoint(observed);
    const count = this.#count(address, 1);
    const { sessions, sessionsPerAddress, sessionsPerLoopback } = this.limits;
    const most = addressScope(address) === "loopback" ? sessionsPerLoopback : sessionsPerAddress;
    // Even a refused connection costs something until it is closed, so a flood gets no answer.
    if (count > 2 * most || this.#connections.size > 1.1 * sessions) socket.terminate();
    else if (count > most)
      this.#refuse(session, new Refusal("limit", `${most} connections an address are enough`));
    else if (this.#connections.size > sessions)
      this.#refuse(session, new Refusal("limit", "the introducer is full"));
  }

  /** Counts a subscriber's connections; returns how many they are now. */
  #count(address: string, change: 1 | -1): number {
    const key = subscriber(address);
    const count = (this.#perSubscriber.get(key) ?? 0) + change;
    if (count > 0) this.#perSubscriber.set(key, count);
    else this.#perSubscriber.delete(key);
    return count;
  }

  #data(session: Session, chunk: Uint8Array): void {
    session.heardAt = performance.now();
    if (session.closing) return;
    const decoder = session.decoder ?? new LineDecoder();
    try {
      for (const line of decoder.push(chunk)) {
        this.#line(session, line);
        if (session.closing) break;
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refuse(session, error);
    }
    session.decoder = decoder.pendingBytes > 0 && !session.closing ? decoder : undefined;
  }

  #line(session: Session, line: string): void {
    try {
      const { messageBurst, messagesPerSecond } = this.limits;
      if (!take(session.lines, messageBurst, messagesPerSecond, session.heardAt)) {
        throw new Refusal("limit", `${messagesPerSecond} lines a second are enough`, true);
      }
      if (!session.peer) refuseOtherVersion(line);
      this.#handle(session, parseToIntroducer(line));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refuse(session, error, line);
    }
  }

  #refuse(session: Session, { code, message, fatal }: Refusal, line = ""): void {
    if (session.closing) return;
    const { type: request, peer } = peek(line);
    this.#send(session, {
      type: "refused",
      code,
      message,
      ...(request !== undefined && { request }),
      ...(peer !== undefined && { peer }),
    });
    const id = session.peer?.id;
    this.#onEvent({
      event: "refused",
      ...(id !== undefined && { id }),
      address: session.observed,
      code,
      message,
    });
    if (badLineCodes.has(code)) session.badLines += 1;
    if (fatal || !session.peer || session.badLines >= this.limits.badLines)
      this.#close(session, `refused: ${message}`);
  }

  #send(session: Session, message: ToParticipant): void {
    this.#write(session, Buffer.from(encode(message)));
  }

  #write(session: Session, bytes: Uint8Array): void {
    if (session.closing) return;
    if (session.unsent === undefined) {
      const written = session.socket.write(bytes);
      if (written < 0 || written === bytes.length) return;
      bytes = bytes.subarray(written);
    }
    (session.unsent ??= []).push(bytes);
    session.unsentBytes += bytes.length;
    if (session.unsentBytes <= this.limits.unsentBytes) return;
    session.closing = true;
    session.unsent = undefined;
    // Later, because whoever is sending may be walking through the room.
    queueMicrotask(() => this.#drop(session, "it reads too slowly"));
  }

  #flush(session: Session): void {
    if (session.unsent === undefined) return;
    const bytes = Buffer.concat(session.unsent);
    const rest = bytes.subarray(Math.max(0, session.socket.write(bytes)));
    session.unsent = rest.length > 0 ? [rest] : undefined;
    session.unsentBytes = rest.length;
    if (session.closing && rest.length === 0) session.socket.shutdown();
  }

  /** Ends a session after its last line has been sent. */
  #close(session: Session, reason: string): void {
    session.closing = true;
    session.decoder = undefined;
    session.deadlineAt = performance.now() + closeGraceMs;
    this.#leave(session, reason);
    if (session.unsent === undefined) session.socket.shutdown();
  }

  #drop(session: Session, reason: string): void {
    session.closing = true;
    this.#leave(session, reason);
    session.socket.terminate();
  }

  /** An exception in a handler: our mistake, which must cost one connection only, and not go unseen. */
  #mishap(session: Session, { message }: Error): void {
    this.#onEvent({ event: "error", address: session.observed, message });
    this.#drop(session, "an error in the introducer");
  }

  #closed(session: Session, reason: string): void {
    if (!this.#connections.delete(session)) return;
    session.closing = true;
    this.#count(splitEndpoint(session.observed).address, -1);
    this.#leave(session, reason);
    if (this.#connections.size === 0) this.#allGone?.();
  }

  // time

  #tick(): void {
    const now = performance.now();
    for (const session of this.#connections) this.#tickSession(session, now);
    for (const introduction of this.#introductions.values()) {
      if (now >= introduction.expiresAt) this.#endIntroduction(introduction);
      else if (now < introduction.measureUntil) continue;
      else if (introduction.plan.length === 0) this.#plan(introduction);
      else if (introduction.measuring.size > 0) this.#punch(introduction);
    }
  }

  #tickSession(session: Session, now: number): void {
    const { silenceMs, pingMs, registerDeadlineMs: deadline } = this.limits;
    if (session.closing) {
      if (now >= session.deadlineAt) session.socket.terminate();
    } else if (!session.peer) {
      if (now < session.deadlineAt) return;
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

  #ping(session: Session, now: number): void {
    session.pingSentAt = now;
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
    session.peer.roundTripMs = roundTripMs;
    this.#change(session as Member);
  }

  // messages

  #handle(session: Session, message: ToIntroducer): void {
    if (message.type === "register") return this.#register(session, message);
    if (!session.peer) throw new Refusal("not-registered", "the first line must be a register", true);
    const member = session as Member;
    switch (message.type) {
      case "connect":
        return this.#connect(member, message.peer);
      case "linked":
        return this.#linked(member, message);
      case "unlinked":
        return this.#unlinked(member, message);
      case "failed":
        return this.#failed(member, message);
      case "mapping":
        member.peer.mapping = message.mapping;
        member.hasMeasured = true;
        for (const one of this.#introductions.values()) if (one.members.includes(member)) this.#plan(one);
        this.#change(member);
        return this.#onEvent({ event: "mapping", id: member.peer.id, mapping: message.mapping });
      case "measured":
        return this.#measured(member, message);
      case "connect-back":
        return this.#connectBack(member);
      case "echo":
        return this.#send(member, { type: "echo", text: message.text });
      case "pong":
        return this.#pong(member, message.id);
    }
  }

  #register(session: Session, message: Extract<ToIntroducer, { type: "register" }>): void {
    if (session.peer) throw new Refusal("already-registered", `you are registered as ${session.peer.id}`);
    const { name, room, fingerprint } = message;
    const instance = publicInstance(message.instance);
    const [allowed, ignored] = sortCandidates(message.private, session.observed);
    const others = this.#rooms.get(room) ?? new Set<Member>();
    const isSame = ({ peer }: Member) =>
      peer.instance === instance && peer.fingerprint === fingerprint && peer.name === name;
    for (const old of [...others].filter(isSame)) this.#close(old, "it registered anew");
    if (others.size >= this.limits.roomSize) throw new Refusal("limit", "the room is full");
    const id = ++this.#lastId;
    const own = { id, name, private: allowed, public: session.observed };
    const since = Date.now();
    session.peer = { ...own, instance, fingerprint, mapping: "unknown", linked: [], punching: [], since };
    session.room = room;
    const member = session as Member;
    const { probePorts } = this;
    const alternate = this.#alternate !== undefined && probePorts[0] !== undefined;
    const alternates = alternate ? [formatEndpoint(this.#alternate!, probePorts[0]!)] : [];
    this.#send(member, { type: "registered", ...own, room, probePorts, alternates });
    this.#ping(member, performance.now());
    for (const line of snapshot([...others].map(({ peer }) => peer))) this.#send(member, line);
    this.#tellRoom(others, { type: "joined", peer: member.peer });
    this.#rooms.set(room, others.add(member));
    this.#members.set(id, member);
    this.#onEvent({ event: "joined", ...own, room });
    if (ignored.length > 0)
      this.#onEvent({ event: "ignored", address: session.observed, endpoints: ignored });
  }

  #tellRoom(room: Iterable<Member>, message: ToParticipant): void {
    const line = Buffer.from(encode(message));
    for (const member of room) this.#write(member, line);
  }

  /** The other participant of the same room: nobody learns whether an id exists elsewhere. */
  #neighbour(member: Member, id: number): Member {
    if (id === member.peer.id) throw new Refusal("self", "that is you");
    const other = this.#members.get(id);
    if (other?.room !== member.room) throw new Refusal("unknown-peer", `there is no ${id} in your room`);
    return other;
  }

  #introductionBucket(): Bucket {
    return { tokens: this.limits.introductionsPerMinute, at: performance.now() };
  }

  #connect(member: Member, id: number): void {
    const now = performance.now();
    const { introductionsPerMinute: most } = this.limits;
    member.introductions ??= this.#introductionBucket();
    if (!take(member.introductions, most, most / 60, now)) {
      throw new Refusal("limit", `${most} introductions a minute are enough: wait a little`);
    }
    const other = this.#neighbour(member, id);
    const earlier = this.#introductions.get(pairKey(member.peer.id, id));
    // Both asked at once: the `punch` this side has not yet reported on answers it too. Once it has reported,
    // it knows how that punch ended, and means another.
    if (earlier?.waiting.has(member.peer.id) && now < earlier.expiresAt) return;
    this.#introduce(member, other, now);
  }

  #introduce(asker: Member, other: Member, now: number): void {
    const deadlineAt = now + this.limits.punchDeadlineMs;
    const introduction: Introduction = {
      token: "",
      waiting: new Set([asker.peer.id, other.peer.id]),
      members: [asker, other],
      plan: [],
      round: 0,
      isLast: false,
      measuring: new Set(),
      measureUntil: now + this.limits.measureMs,
      predictions: new Map(),
      deadlineAt,
      expiresAt: deadlineAt + maxStartInMs + reportGraceMs,
    };
    this.#introductions.set(pairKey(asker.peer.id, other.peer.id), introduction);
    for (const [one, { peer }] of [
      [asker, other],
      [other, asker],
    ] as const) {
      if (!one.peer.punching.includes(peer.id)) one.peer.punching.push(peer.id);
    }
    this.#change(asker, other);
    this.#plan(introduction);
  }

  /** Begins once both sides have said how their NATs map: who has just come may still be measuring. */
  #plan(introduction: Introduction): void {
    const { members, plan, measureUntil } = introduction;
    if (plan.length > 0) return;
    const isReady = this.probePorts.length === 0 || members.every(({ hasMeasured }) => hasMeasured);
    if (!isReady && performance.now() < measureUntil) return;
    const [asker, other] = members;
    const working = this.#workingWays.get(pairKey(asker.peer.id, other.peer.id));
    const rounds = planRounds(asker.peer, other.peer);
    if (rounds.length === 0) return this.#refuseIntroduction(introduction);
    introduction.plan = working ? [working, ...rounds] : rounds;
    this.#startRound(introduction);
  }

  /** Random ports on both sides, or against counted ones: a hundred thousand guesses would be needed. */
  #refuseIntroduction(introduction: Introduction): void {
    const [asker, { peer }] = introduction.members;
    this.#endIntroduction(introduction);
    const [token, reason] = [newToken(), "both-mappings-random" as const];
    const detail = `your mapping is ${asker.peer.mapping}, the peer's is ${peer.mapping}; it would help if one of you forwarded a port, used IPv6, or another network such as a phone's`;
    this.#send(asker, { type: "failed", peer: peer.id, token, reason, detail });
    this.#onEvent({ event: "failed", id: asker.peer.id, peer: peer.id, reason, detail });
  }

  /** Begins the round that the plan has next: measures first where ports are to be predicted. */
  #startRound(introduction: Introduction): void {
    const { members, plan, round } = introduction;
    introduction.token = newToken();
    introduction.waiting = new Set(members.map(({ peer }) => peer.id));
    introduction.predictions.clear();
    introduction.measuring.clear();
    const [a, b] = members;
    const way = plan[round]!;
    const measuring = members.filter(
      ({ peer }) => way === "fresh" || (way === "predicted" && peer.mapping === "sequential"),
    );
    if (measuring.length === 0) return this.#punch(introduction);
    introduction.measureUntil = performance.now() + this.limits.measureMs;
    for (const member of measuring) {
      introduction.measuring.add(member.peer.id);
      const { peer } = member === a ? b : a;
      this.#send(member, { type: "measure", peer, token: introduction.token, way });
    }
  }

  #measured(member: Member, { token, prediction }: Extract<ToIntroducer, { type: "measured" }>): void {
    const { id } = member.peer;
    const introduction = [...this.#introductions.values()].find(
      (one) => one.token === token && one.measuring.has(id),
    );
    if (!introduction) return; // late: the round has begun without it
    // Nobody is sent to an address that is not the participant's own.
    const isOwn =
      prediction && splitEndpoint(prediction.endpoint).address === splitEndpoint(member.observed).address;
    if (isOwn) introduction.predictions.set(id, prediction);
    introduction.measuring.delete(id);
    if (introduction.measuring.size === 0) this.#punch(introduction);
  }

  /** Tells both sides to punch, at the same moment. */
  #punch(introduction: Introduction): void {
    const { members, plan, round, token, predictions, deadlineAt } = introduction;
    introduction.measuring.clear();
    const [asker, other] = members;
    const way = plan[round]!;
    const [startA, startB] = startDelays(asker.roundTripMs, other.roundTripMs);
    const leftMs = deadlineAt - performance.now();
    const roundTripMs = (asker.roundTripMs ?? 0) + (other.roundTripMs ?? 0);
    // An open host accepts within one round trip, or not at all.
    const isTrial = way === "direct" && plan[round + 1] === "birthday";
    const roundMs = isTrial
      ? 2 * roundTripMs + trialSpareMs
      : roundTripMs * roundRoundTrips[way] + roundSpareMs[way];
    const last = round === plan.length - 1 || leftMs - roundMs < shortestRoundMs;
    introduction.isLast = last;
    const deadlineMs = Math.max(1, Math.round(last ? leftMs : roundMs));
    const punch = (to: Member, { peer }: Member, role: Role, startInMs: number) => {
      const own = predictions.get(to.peer.id);
      const theirs = predictions.get(peer.id);
      const measured = { ...(own && { own }), ...(theirs && { theirs }) };
      const schedule = { startInMs, way, round: round + 1, last, deadlineMs };
      this.#send(to, { type: "punch", peer, role, token, ...schedule, ...measured });
    };
    punch(asker, other, "controlling", startA);
    punch(other, asker, "controlled", startB);
    this.#onEvent({ event: "punch", a: asker.peer.id, b: other.peer.id, way, round: round + 1 });
  }

  #linked(member: Member, message: Extract<ToIntroducer, { type: "linked" }>): void {
    const { peer, route, local, remote } = message;
    this.#neighbour(member, peer);
    const { id, linked, punching } = member.peer;
    if (!linked.includes(peer)) linked.push(peer);
    remove(punching, peer);
    const introduction = this.#introductions.get(pairKey(id, peer));
    introduction?.waiting.delete(id);
    if (introduction && introduction.round > 0) {
      this.#workingWays.set(pairKey(id, peer), introduction.plan[introduction.round]!);
    }
    if (introduction?.waiting.size === 0) this.#endIntroduction(introduction);
    this.#change(member);
    this.#onEvent({ event: "linked", id, peer, route, local, remote });
  }

  #unlinked(member: Member, { peer, reason }: Extract<ToIntroducer, { type: "unlinked" }>): void {
    if (!remove(member.peer.linked, peer)) return;
    this.#change(member);
    this.#onEvent({ event: "unlinked", id: member.peer.id, peer, reason });
  }

  #failed(member: Member, message: Extract<ToIntroducer, { type: "failed" }>): void {
    const { peer, token, reason, detail } = message;
    const { id } = member.peer;
    const introduction = this.#introductions.get(pairKey(id, peer));
    // A late report must not end the punch that came after: the token tells them apart.
    if (introduction?.token !== token) return;
    if (!introduction.isLast && retriable.has(reason)) {
      introduction.round++;
      return this.#startRound(introduction);
    }
    const other = introduction.members.find((one) => one.peer.id === peer);
    if (other && introduction.waiting.has(peer))
      this.#send(other, { type: "failed", peer: id, token, reason, detail });
    this.#endIntroduction(introduction);
    this.#onEvent({ event: "failed", id, peer, reason, detail });
  }

  #endIntroduction({ members: [a, b] }: Introduction): void {
    this.#introductions.delete(pairKey(a.peer.id, b.peer.id));
    if (remove(a.peer.punching, b.peer.id)) this.#change(a);
    if (remove(b.peer.punching, a.peer.id)) this.#change(b);
  }

  #change(...members: Member[]): void {
    if (this.#changed.size === 0) setTimeout(() => this.#tellChanges(), updateDelayMs);
    for (const member of members) this.#changed.add(member);
  }

  #tellChanges(): void {
    for (const { peer, room } of this.#changed) {
      if (this.#members.has(peer.id)) this.#tellRoom(this.#rooms.get(room) ?? [], { type: "updated", peer });
    }
    this.#changed.clear();
  }

  /** Takes a session out of its room, once, however many ways it ends. */
  #leave(session: Session, reason: string): void {
    if (!session.peer || !this.#members.delete(session.peer.id)) return;
    const { id, name } = session.peer;
    const room = this.#rooms.get(session.room);
    room?.delete(session as Member);
    if (room?.size === 0) this.#rooms.delete(session.room);
    for (const other of room ?? []) this.#part(other, id, reason);
    this.#tellRoom(room ?? [], { type: "left", id });
    this.#onEvent({ event: "left", id, name, reason });
  }

  /** `left` tells the room to strike that id from every list, so no `updated` follows. */
  #part(other: Member, id: number, detail: string): void {
    const { peer } = other;
    remove(peer.linked, id);
    remove(peer.punching, id);
    this.#workingWays.delete(pairKey(id, peer.id));
    const introduction = this.#introductions.get(pairKey(id, peer.id));
    if (!introduction) return;
    this.#introductions.delete(pairKey(id, peer.id));
    if (!introduction.waiting.has(peer.id)) return;
    // Before the first round there is no token yet, and the other side takes any.
    const token = introduction.token || newToken();
    this.#send(other, { type: "failed", peer: id, token, reason: "peer-left", detail });
    this.#onEvent({ event: "failed", id: peer.id, peer: id, reason: "peer-left", detail });
  }
}

// --- the prompt ------------------------------------------------------------------------------------------

const commands = [
  { key: "s", word: "list", operands: "", what: "who is here" },
  { key: "d", word: "broadcast", operands: "TEXT", what: "say something to everyone" },
  { key: "f", word: "tell", operands: "ID TEXT", what: "say something to one participant" },
  { key: "h", word: "help", aliases: ["?"], operands: "", what: "this (also ?)" },
  { key: "a", word: "quit", aliases: ["q", "exit"], operands: "", what: "end the introducer (also q, exit)" },
] as const satisfies Command[];

const commandHelp = `${renderCommands(commands)}\n\nID is an id or a name, as \`list\` shows them.`;

/** What an introducer tells even with --quiet. */
const problems: ReadonlySet<IntroducerEvent["event"]> = new Set(["error", "warning"] as const);

/** The operator's side: events as log lines or JSON, and the commands. */
class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;
  #failures = 0;

  constructor(terminal: Terminal, isJson: boolean) {
    this.#terminal = terminal;
    this.#isJson = isJson;
  }

  event(event: IntroducerEvent): void {
    if (this.#isJson) return this.#json(event);
    const time = this.#terminal.storyColors.dim(new Date().toTimeString().slice(0, 8));
    this.#terminal.story(`${time} ${printable(describe(event))}`, problems.has(event.event));
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
      if (line.trim() !== "" && this.#run(line, introducer)) return this.#failures > 0 ? 1 : 0;
    }
    return new Promise<never>(() => {}); // as a service, standard input is /dev/null: its end means nothing
  }

  #converse(introducer: Introducer): Promise<void> {
    const here = () => count(introducer.participants.length, "participant");
    const isAlone = () => introducer.participants.length === 0;
    return this.#terminal.converse({
      prompt: "introducer> ",
      onLine: async (line) => {
        if (!this.#run(line, introducer)) return false;
        const question = `end the introducer for ${here()}? y `;
        return (
          isAlone() || (await this.#terminal.ask(question, (answer) => /^y(es)?$/i.test(answer))) === true
        );
      },
      complete: (line) =>
        completions(
          commands,
          introducer.participants.map(({ name }) => name),
          line,
        ),
      reasonToStay: () => (isAlone() ? undefined : `${here()} here`),
    });
  }

  /** Obeys one line; returns whether it asks for the end. */
  #run(line: string, introducer: Introducer): boolean {
    try {
      const { command, words, text } = readCommand(commands, line);
      if (command === "quit") return true;
      if (command === "list") this.#list(introducer);
      if (command === "help") this.#terminal.result(commandHelp);
      if (command === "broadcast")
        this.#terminal.story(`told ${count(introducer.broadcast(text), "participant")}`);
      if (command === "tell") this.#tell(introducer, words[0]!, text);
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      this.#failures++;
      if (this.#isJson) this.#json({ event: "error", message: error.message });
      this.#terminal.error(error.message);
    }
    return false;
  }

  #list({ participants }: Introducer): void {
    if (this.#isJson) return this.#json({ event: "participants", participants });
    const { resultColors, width } = this.#terminal;
    this.#terminal.result(renderParticipants(participants, resultColors, Date.now(), width));
  }

  #tell(introducer: Introducer, word: string, text: string): void {
    const whom = findByIdOrName(introducer.participants, word);
    if (typeof whom === "string") throw new CommandError(whom);
    introducer.tell(whom.id, text);
    this.#terminal.story(`told ${printable(whom.name)} (${whom.id})`);
  }

  #json(event: object): void {
    this.#terminal.result(jsonLine({ ...event, at: performance.timeOrigin + performance.now() }));
  }
}

// --- main ------------------------------------------------------------------------------------------------

/** How many ports after a taken one are tried for a free one to propose. */
const proposedPorts = 100;

const usage = `Usage: ${startedAs("introducer")} [PORT] [options]

Tells participants about each other so that they can link by TCP hole punching.

  PORT               1 to 65535; without it you are asked on a terminal,
                     otherwise ${defaultPort}

Options:
  --host ADDR        listen on this address only (default: all of this host's)
  --probe-ports A,B  further ports, where participants measure how their
                     NAT maps (default: the next two; none: no measuring)
  --alternate ADDR   a second address of this host, for finer measuring
  -q, --quiet        results, errors and warnings only
  --json             events as JSON lines on standard output, not as a log
  -h, --help         this
  --version          which version this is

Commands, from a terminal or as lines on standard input (the letter works too):
${commandHelp}

Results go to standard output, all else to standard error. Without a terminal
the end of the input ends nothing; after \`quit\` the exit code is 1 if a
command failed.

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

function ownAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
  return all.flatMap(({ address }) => canonicalAddress(address)?.address ?? []);
}

/** The address that participants most likely reach this host by. */
function likelyAddress(): string {
  const usable = ownAddresses().flatMap((address) => canonicalAddress(address) ?? []);
  const rank = ({ address, family }: { address: string; family: 4 | 6 }) =>
    ["global4", "private4", "global6", "private6"].indexOf(addressScope(address) + family);
  const ranked = usable.filter((one) => rank(one) >= 0).sort((a, b) => rank(a) - rank(b));
  return ranked[0]?.address ?? "127.0.0.1";
}

/** What a participant types to come here. */
function invitation({ host, port }: Introducer): string {
  const command = `participants type:  ${otherStartedAs("participant")}`;
  const listening = canonicalAddress(host)?.address;
  if (listening === undefined) return `${command} ${host}:${port}`;
  const address = listening === "::" || listening === "0.0.0.0" ? likelyAddress() : listening;
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
  if (error instanceof ProbePortError) return message;
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
  json: boolean;
  quiet: boolean;
}

const options = {
  host: { type: "string" },
  "probe-ports": { type: "string" },
  alternate: { type: "string" },
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
  return {
    ...(port !== undefined && { port }),
    ...(host !== undefined && { host }),
    ...(ports !== undefined && { probePorts: readProbePorts(ports) }),
    ...(alternate !== undefined && { alternate: readAlternate(alternate) }),
    json,
    quiet,
  };
}

/** Participants are told to go there, so an address of another host would send them astray. */
function readAlternate(text: string): string {
  const address = canonicalAddress(text)?.address;
  if (address === undefined) throw new UsageError(`--alternate must be an IP address, not ${text}`);
  if (!ownAddresses().includes(address))
    throw new UsageError(`--alternate must be an address of this host, and ${address} is none`);
  return address;
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
  const { port, host, json } = options;
  const prompt = new Prompt(terminal, json);
  let introducer: Introducer;
  try {
    introducer = Introducer.start({ ...options, onEvent: (event) => prompt.event(event) });
  } catch (error) {
    terminal.error(listenProblem(error, host, port));
    return 1;
  }
  if (!json) terminal.story(invitation(introducer));
  const signal = Promise.withResolvers<[string, number]>();
  process.once("SIGINT", () => signal.resolve(["the introducer was interrupted", 0]));
  process.once("SIGTERM", () => signal.resolve(["the introducer was terminated", 0]));
  void terminal.broken.then(() => signal.resolve(["the introducer can't write its output", 1]));
  const obeyed = prompt.obey(introducer).then((code) => ["the operator ended the introducer", code] as const);
  const [reason, code] = await Promise.race([signal.promise, obeyed]);
  terminal.close();
  await introducer.stop(reason);
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
