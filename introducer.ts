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
import type { Socket } from "bun";
import {
  fairShare,
  refill,
  hasShare,
  isOwnHost,
  Shares,
  siteShares,
  sourceOf,
  tryTake,
  Usage,
  waitRefusal,
  waitSeconds,
} from "./native/shares/budget.ts";
import { Deadlines } from "./native/introducer/wheel.ts";
import { isSupported, limitUnread, segmentsReceived, unlimitUnread } from "./native/host/libc.ts";
import { Listener } from "./native/introducer/listener.ts";
import { Metrics, MetricsServer, renderPrometheus, type Stats } from "./native/introducer/metrics.ts";
import { defaultRelayRates, relayKey, Relays, segmentMs } from "./native/introducer/relay.ts";
import { runProgram, type Terminal } from "./native/terminal/terminal.ts";
import { version } from "./native/terminal/command-line.ts";
import { count } from "./native/terminal/text.ts";
import { redisUrlProblem } from "./native/introducer/redis/connection.ts";
import { Homes, type Neighbour, randomFirstId } from "./native/introducer/redis/homes.ts";
import { byTurns, Rounds, sliceMs } from "./native/shares/turns.ts";
import { KeptNames, type Participant } from "./native/introducer/rooms.ts";
import {
  addressScope,
  canonicalAddress,
  changedPeer,
  defaultPort,
  encode,
  type Endpoint,
  type EndpointParts,
  type Filtering,
  formatEndpoint,
  formatHostPort,
  LineDecoder,
  maxReportedLinks,
  nameSkeleton,
  numberedName,
  parsePlace,
  parseToIntroducer,
  type Peer,
  type PeerChange,
  type Place,
  publicInstance,
  Refusal,
  type RefusalCode,
  type RelayRates,
  splitEndpoint,
  type ToIntroducer,
  type ToParticipant,
} from "./protocol.ts";
import { defaultLimits, drainMs, leastRoomShare, type Limits } from "./native/introducer/limits.ts";
import {
  type IntroducerEvent,
  type IntroducerOptions,
  MetricsPortError,
  ProbePortError,
} from "./native/introducer/events.ts";
import {
  connectBackMs,
  isAt,
  isNoPlace,
  observedEndpoint,
  ownAddresses,
  publicAddress,
  reachable,
  tryConnect,
} from "./native/introducer/observe.ts";
import {
  type Connection,
  type Link,
  type Member,
  type MessageOf,
  newToken,
  nobody,
  type Served,
  Session,
} from "./native/introducer/session.ts";
import {
  lineAbout,
  NameTaken,
  peek,
  refuseOtherVersion,
  snapshot,
  sortCandidates,
} from "./native/introducer/lines.ts";
import { Introductions } from "./native/introducer/introductions.ts";
import { amount } from "./native/terminal/introducer-tables.ts";
import { type Arguments, readArguments, usage } from "./native/terminal/introducer-arguments.ts";
import { askPort, invitation, listenProblem, Prompt } from "./native/terminal/introducer-prompt.ts";

// --- limits and timers -----------------------------------------------------------------------------------

/** How often deadlines are looked at. */
export const tickMs = 500;
/** How often those that have sent too many lines get the next of them read. */
const resumeMs = 10;
/** What waits to be read of a connection: some lines; of a relayed one what its rate may be over a path of half a second. */
const unreadBytes = 64 * 1024;
const unreadRelayBytes = 1024 * 1024;
/** Connections of one address, beyond those that it may have, that are told why they are closed. */
const refusedAtOnce = 8;
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
/** What waits for the end of the tick is written at once beyond this. */
const flushBytes = 64 * 1024;
/** How long a closed session may take to read its last line; closing at once would send a RST that eats it. */
const closeGraceMs = 1500;
/** Changes of a participant within this time are told in one `updated`. */
const updateDelayMs = 50;
/** Round trips measured at once after registering; the least of them counts. */
const firstPings = 3;
/** How long the addresses of this host count as unchanged. */
const interfacesMs = 10_000;
/** More than the one line of a probe. */
const maxProbeBytes = 256;
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

/** A connection to a probe port. */
interface Probe {
  observed: Endpoint;
  subscriber: string;
  hasSpoken: boolean;
  untilMs: number;
}

/** What was thrown while something was served. */
interface Mistake {
  readonly error: unknown;
}
export const none: Mistake = { error: undefined };

// --- pure functions --------------------------------------------------------------------------------------

/** After how long one shall come back who is sent away. */
function retryInMs(): number {
  return Math.round(leastRetryInMs + Math.random() * (mostRetryInMs - leastRetryInMs));
}

/** Whether the other side says, too, that they are linked. */
function saysSo(other: Member, { peer }: Member): boolean {
  return other.links?.has(peer.instance) === true;
}

// --- what an operator reads ------------------------------------------------------------------------------

// --- introductions ---------------------------------------------------------------------------------------

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
  /** Which introducer each room lives at, where several share a Redis. */
  readonly #homes: Homes | undefined;
  #lastId: number;
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
    this.#probeListeners = this.#listenForProbes(options);
    this.#keptNames = new KeptNames(this.limits);
    const { registerDeadlineMs: register, pingMs, silenceMs, measureMs } = this.limits;
    this.#tickMs = Math.min(tickMs, Math.min(register, pingMs, silenceMs, measureMs) / 4);
    this.#introductions = new Introductions(
      {
        limits: this.limits,
        canMeasure: this.#probeListeners.length > 0,
        send: (member, message) => this.#send(member, message),
        show: (member, about, message) => this.#write(member, lineAbout(about, message)),
        offerRelay: (a, b) => (a.takesRelay && b.takesRelay ? this.#relays?.offer(a, b) : undefined),
        refuse: (member, refusal, peer) => this.#refuse(member, refusal, { request: "connect", peer }),
        tell: (event) => this.#tell(event),
        serve: (member, work) => this.#serve(member?.socket ?? nobody, work),
        count: (outcome, way, elapsedMs) => this.#metrics.introduced(outcome, way, elapsedMs),
      },
      this.#tickMs,
    );
    const { relay = true, relayRate: rate = defaultRelayRates.rate } = options;
    const { relayTotal: total = defaultRelayRates.total } = options;
    if (relay) this.#relays = this.#makeRelays({ rate, total });
    this.#lastId = options.redis === undefined ? 0 : randomFirstId();
    if (options.redis !== undefined) this.#homes = this.#share(options.redis, options.advertise);
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

  #share(redis: string, advertise = ""): Homes {
    const { host, port } = parsePlace(advertise, this.port) ?? { host: this.host, port: this.port };
    const firstId = this.#lastId;
    return new Homes(redis, formatHostPort(publicAddress(host), port), {
      rooms: () => this.#rooms.keys(),
      counts: () => ({ participants: this.#members.size, rooms: this.#rooms.size, firstId }),
      movedOut: (room, home) => this.#serve(nobody, () => this.#movedOut(room, home)),
      notice: (text) =>
        void this.#notify(text, this.#members.values()).catch((error) => this.#complain(error)),
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
      ...(this.#homes && { isShared: this.#homes.isShared }),
    });
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
      for (const { peer } of this.#rooms.get(room) ?? []) ids.set(peer.instance, peer.id);
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

  #inRoom(room: string, id: number): Member | undefined {
    const member = this.#members.get(id);
    return member?.room === room ? member : undefined;
  }

  /** The other introducers of the same Redis; undefined where none is used, rejects while it is away. */
  async others(): Promise<Neighbour[] | undefined> {
    return this.#homes?.others();
  }

  /** Says something to one who is here; resolves to whether it could be. */
  async tell(text: string, id: number): Promise<boolean> {
    const member = this.#members.get(id);
    return member !== undefined && (await this.#notify(text, [member])) === 1;
  }

  /** Says something to everyone here; resolves to how many were told. */
  broadcast(text: string): Promise<number> {
    return this.#notify(text, this.#members.values());
  }

  /** Has the other introducers say it to everyone there; resolves to how many those are, rejects while Redis is away. */
  async broadcastElsewhere(text: string): Promise<number | undefined> {
    return this.#homes?.broadcast(text);
  }

  /** Resolves to how many could be told. */
  async #notify(text: string, whom: Iterable<Member>): Promise<number> {
    const line = encode({ type: "notice", text });
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
    await this.#homes?.leave(); // first, so that who is sent away finds its room free elsewhere
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
    const left = this.#homes?.close();
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
    const own = sourceOf(splitEndpoint(observed).address);
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
    const own = sourceOf(address);
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
        if (!tryTake(session.lines, messageBurst, messagesPerSecond, performance.now())) {
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
    refill(session.lines, messageBurst, messagesPerSecond, now);
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
    this.#introductions.ask(member, target, relay !== false);
  }

  #relay(session: Session, token: string): void {
    if (session.peer) throw new Refusal("already-registered", "relay belongs on a connection of its own");
    if (!this.#relays) throw new Refusal("bad-field", "this introducer does not relay");
    this.#relays.join(session, token);
  }

  /** Registers it where its room lives: here if somebody is in it already, else it is asked. */
  #enter(session: Session, message: MessageOf<"register">): void {
    const { room } = message;
    if (!this.#homes || session.peer || this.#draining || this.#rooms.has(room))
      return this.#register(session, message);
    session.isEntering = true;
    void this.#homes
      .find(room)
      .then((home) => this.#serve(session.socket, () => this.#entered(session, message, home)));
  }

  #entered(session: Session, message: MessageOf<"register">, home: string): void {
    session.isEntering = false;
    if (session.closing) return;
    const place = this.#homes!.isOwn(home) || this.#rooms.has(message.room) ? undefined : parsePlace(home);
    if (place) return this.#sendTo(session, place);
    try {
      this.#register(session, message);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#refuse(session, error, { request: "register" });
    }
  }

  #sendTo(session: Session, place: Place): void {
    this.#send(session, { type: "elsewhere", ...place });
    this.#close(session, `its room lives at ${formatHostPort(place.host, place.port)}`);
  }

  /** Everybody in that room goes there. What another introducer has said may be no place: then they stay. */
  #movedOut(room: string, home: string): void {
    const place = parsePlace(home);
    if (!place) return;
    const leaving = [...(this.#rooms.get(room) ?? [])].filter((member) => !member.closing);
    for (const member of leaving) this.#silence(member, { type: "elsewhere", ...place });
    void this.#closeAll(leaving, `its room lives at ${home}`);
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
    this.#checkRoom(session, others);
    this.#checkName(message, others);
    const own = { id: ++this.#lastId, name, private: allowed, public: session.observed };
    const shown = { ...own, instance, fingerprint, ...(proof !== undefined && { proof }) };
    session.peer = { ...shown, mapping: "unknown", since: Date.now() };
    session.room = room;
    session.takesRelay = !message.direct;
    const member = session as Member;
    this.#members.set(own.id, member); // first of all, so that whatever fails from here on is undone by leaving
    this.#keepLinks(member, message.links);
    this.#welcome(member, others);
    this.#tellRoom(others, lineAbout(member, { type: "joined" }));
    this.#rooms.set(room, others.add(member));
    this.#metrics.joined();
    this.#tell({ event: "joined", ...own, room });
    if (ignored.length > 0) this.#tell({ event: "ignored", address: session.observed, endpoints: ignored });
  }

  #checkRoom({ subscriber: own }: Session, others: Set<Member>): void {
    const { roomSize, roomShare, ownHostShares } = this.limits;
    if (others.size >= roomSize)
      throw new Refusal(
        "limit",
        `the room is full: it holds ${count(roomSize, "participant")}; wait until one leaves`,
      );
    const fair = Math.max(leastRoomShare, fairShare(roomSize, others.size));
    const share = Math.min(roomShare, fair) * (isOwnHost(own) ? ownHostShares : 1);
    if (others.size < share || !hasShare(own, others, share)) return;
    const enough = `${count(share, "participant")} of one address (${siteShares} times that of an IPv6 /48)`;
    throw new Refusal("limit", `${enough} in a room are enough: take another room`);
  }

  /** A name is one participant's at a time and, but in a secret room, its certificate's for a while after. */
  #checkName({ name, room, fingerprint }: MessageOf<"register">, others: Set<Member>): void {
    const taken = new Set([...others].map(({ peer }) => looksOf(peer)));
    const isFree = (one: string) =>
      this.#keptNames.mayTake(room, one, fingerprint) && !taken.has(nameSkeleton(one));
    if (isFree(name)) return;
    let number = 2;
    while (!isFree(numberedName(name, number)))
      number = number < countedNames ? number + 1 : Math.floor(Math.random() * mostNameNumber);
    throw new NameTaken(name, numberedName(name, number));
  }

  /** Answers `register`. */
  #welcome(member: Member, others: Set<Member>): void {
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
  #neighbour(member: Member, id: number): Member {
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
        const line = encode({ type: "updated", id: peer.id, ...change });
        perRoom.set(room, (perRoom.get(room) ?? "") + line);
      });
    }
    for (const [room, lines] of perRoom)
      this.#serve(nobody, () => this.#tellRoom(this.#rooms.get(room) ?? [], lines));
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
    const room = [...(this.#rooms.get(member.room) ?? [])];
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
    if (room?.size === 0) {
      this.#rooms.delete(session.room);
      void this.#homes?.release([session.room]);
    }
    this.#introductions.left(session as Member, reason);
    this.#tellRoom(room ?? [], encode({ type: "left", id }));
    this.#tell({ event: "left", id, name, reason });
  }
}

// --- the prompt ------------------------------------------------------------------------------------------

// --- main ------------------------------------------------------------------------------------------------

/** Runs until a signal or the operator ends it; returns the exit code. */
export async function serve(terminal: Terminal, options: Arguments & { port: number }): Promise<number> {
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
  const obeyed = prompt
    .runCommands(introducer)
    .then((code) => ["the operator ended the introducer", code] as const);
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
