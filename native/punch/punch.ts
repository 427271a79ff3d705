/**
 * TCP hole punching on one local port (Ford, Srisuresh, Kegel 2005, §4; RFC 5128 §3.4): listen, connect to every
 * candidate of the peer, all from the port of the introducer connection, all at once; retry what was refused;
 * authenticate what connected; keep the one that the controlling side nominates (RFC 8445 §8.1.1).
 *
 * {@link PunchPort} owns every descriptor of its punches and disposes of all but the winner, on every path.
 * While nothing is being punched it holds none. It never prints and never talks to the introducer.
 */
import {
  birthdaySockets,
  formatEndpoint,
  maxCandidates,
  splitEndpoint,
  type Endpoint,
  type FailureReason,
  type Role,
  type Route,
} from "../../protocol.ts";
import { SystemError } from "../libc.ts";
import { Channel, type Credentials } from "../link/channel.ts";
import { Link } from "../link/link.ts";
import { pollSockets, Socket } from "../socket.ts";

/** How often the kernel is asked for news while punching. One poll(2) over all descriptors takes microseconds. */
const pollPeriodMs = 1;
/**
 * The pause before a refused attempt is made again, plus a random part: two equal periods would lock in phase
 * and never cross. Short at first, because after an ICMP error the next SYN must leave before the peer's
 * arrives (README, "Refused attempts").
 */
const eagerPause = { baseMs: 1, randomMs: 2, forMs: 2_000 };
const steadyPause = { baseMs: 5, randomMs: 10 };
/** No NAT stands before a private candidate: its refusals only mean "not yet", or a stranger. */
const privatePause = { baseMs: 2, randomMs: 4, growth: 1.3, maxMs: 250 };
/** A connection that did not authenticate, or a local obstacle (no route, no port): unlikely to change soon. */
const obstaclePauseMs = 250;
/** Strangers may connect to our listener; so many are looked at, and so long. The peer's SYN must not meet a full queue. */
const listenBacklog = 128;
const maxAccepted = 32;
const acceptedDeadlineMs = 5_000;
/** What a connection that opened in time is given to authenticate and be nominated: a packet of it may be lost. */
const handshakeGraceMs = 1_500;
/** How long {@link rehearse} may take. */
const rehearsalMs = 500;
const maxDialsPerAddress = birthdaySockets + 2 * maxCandidates;
/** With punches in both roles under way, an accepted peer that is TLS client speaks within this time. */
const clientSpeaksMs = 150;

export interface Candidate {
  endpoint: Endpoint;
  route: Exclude<Route, "listen">;
  /** Dialled from a port of its own instead of the shared one. */
  isFresh?: boolean;
  /** Not dialled again after a refusal: its mapping is gone then. */
  isOnce?: boolean;
  /** How long after the start it is dialled. */
  afterMs?: number;
}

/** What the introducer says of a punch: who nominates, and the name that the nomination repeats. */
export interface Introduction {
  role: Role;
  token: string;
}

/** What happened to one attempt, for whoever wants to watch. `outcome` is `started`, `connected`, an errno name or TLS's complaint. */
export interface Attempt {
  atMs: number;
  localPort: number;
  remote: Endpoint;
  route: Route;
  outcome: string;
}

export interface PunchOptions {
  /** Without it the punch begins before the introducer's word: what connects waits for {@link Punch.introduce}. */
  introduction?: Introduction;
  /** SHA-256 of the certificate the peer must show, 64 hex digits. */
  fingerprint: string;
  candidates: readonly Candidate[];
  startInMs: number;
  deadlineMs: number;
  /** Whether no NAT stands between the peer and our listener. */
  isReachable: boolean;
  /** Exactly one of these two is called, once. */
  onLinked(link: Link): void;
  onFailed(reason: FailureReason, detail: string): void;
  onAttempt?(attempt: Attempt): void;
}

/** Attempts at one candidate, one socket at a time. */
interface Dial {
  candidate: Candidate;
  dueAt: number;
  tries: number;
  /** That of the latest try. */
  localPort: number;
  socket?: Socket;
  /** Set once connected: from then on TLS decides. */
  channel?: Channel;
  lastOutcome?: string;
}

interface Wanted {
  socket: Socket;
  for: "read" | "write";
  then: () => void;
}

/** An accepted connection that does not yet say whose it is. */
interface Accepted {
  since: number;
  socket?: Socket;
  channel?: Channel;
}

/** One punch: the attempts towards one peer. Made by {@link PunchPort.punch}. */
export class Punch {
  readonly options: PunchOptions;
  readonly startedAt = performance.now();
  readonly dials: Dial[];
  /** Authenticated, waiting to be nominated. */
  readonly proven = new Set<Channel>();
  authenticationFailures = 0;
  introduction: Introduction | undefined;
  deadlineAt: number;
  readonly #onEnd: (punch: Punch) => void;
  #isOver = false;

  constructor(options: PunchOptions, onEnd: (punch: Punch) => void) {
    this.options = options;
    this.introduction = options.introduction;
    this.deadlineAt = this.startedAt + options.startInMs + options.deadlineMs;
    this.#onEnd = onEnd;
    const dueAt = this.startedAt + options.startInMs;
    this.dials = options.candidates.map((candidate) => ({
      candidate,
      dueAt: dueAt + (candidate.afterMs ?? 0),
      tries: 0,
      localPort: 0,
    }));
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** The introducer's word to a punch that began before it. */
  introduce(introduction: Introduction, deadlineMs: number): void {
    this.introduction = introduction;
    this.deadlineAt = performance.now() + deadlineMs;
  }

  /** Gives up. Does nothing once the punch is over. */
  abort(reason: FailureReason, detail: string): void {
    if (this.#isOver) return;
    this.#close(undefined);
    this.options.onFailed(reason, detail);
  }

  /** A channel whose certificate is the peer's. The controlling side takes the first; the other awaits its word. */
  authenticated(channel: Channel): void {
    if (this.#isOver || !channel.isOpen) return channel[Symbol.dispose]();
    this.proven.add(channel);
    if (!this.introduction) return channel[Symbol.dispose]();
    const { role, token } = this.introduction;
    if (role === "controlling") {
      channel.send({ type: "nominate", token });
      return this.#link(channel);
    }
    channel.onMessage = (message) => {
      if (message.type === "nominate" && message.token === token) this.#link(channel);
      else channel[Symbol.dispose]();
    };
  }

  /** Whether a connection that is no stranger's in our own network lacks only its handshake or nomination. */
  get isNearlyThere(): boolean {
    return (
      [...this.proven].some(({ isOpen }) => isOpen) ||
      this.dials.some(({ channel, candidate }) => channel && candidate.route !== "private")
    );
  }

  report(route: Route, remote: Endpoint, localPort: number, outcome: string): void {
    const atMs = performance.now() - this.startedAt;
    this.options.onAttempt?.({ atMs, localPort, remote, route, outcome });
  }

  /** The diagnosis when the time is over. */
  expire(): void {
    const detail = describe(this.dials) || "the peer offered no endpoint that can be tried from here";
    if (this.authenticationFailures > 0) return this.abort("authentication-failed", detail);
    const isPending =
      [...this.proven].some(({ isOpen }) => isOpen) || this.dials.some(({ channel }) => channel);
    this.abort(isPending ? "timed-out" : "no-candidate-answered", detail);
  }

  #link(channel: Channel): void {
    this.#close(channel);
    this.options.onLinked(new Link(channel));
  }

  #close(winner: Channel | undefined): void {
    this.#isOver = true;
    for (const dial of this.dials) {
      dial.socket?.close();
      if (dial.channel !== winner) dial.channel?.[Symbol.dispose]();
    }
    for (const channel of this.proven) {
      if (channel !== winner) channel[Symbol.dispose]();
    }
    this.#onEnd(this);
  }
}

/** The local port of an introducer connection, and all punches on it. */
export class PunchPort {
  readonly port: number;
  readonly #credentials: Credentials;
  readonly #punches = new Set<Punch>();
  readonly #listeners: Socket[] = [];
  readonly #accepted = new Set<Accepted>();
  #timer: NodeJS.Timeout | undefined;

  constructor(port: number, credentials: Credentials) {
    this.port = port;
    this.#credentials = credentials;
  }

  /** Starts a punch; its outcome comes by the callbacks, never before this returns. */
  punch(options: PunchOptions): Punch {
    const candidates = this.#admissible(options.candidates);
    const punch = new Punch({ ...options, candidates }, (ended) => this.#ended(ended));
    this.#punches.add(punch);
    if (this.#listeners.length === 0) this.#listen();
    if (this.#timer === undefined) {
      this.#timer = setInterval(() => this.#tick(), pollPeriodMs);
    }
    // The first attempts leave now, not at the next tick.
    if (options.startInMs === 0) queueMicrotask(() => this.#tick());
    return punch;
  }

  /** Whatever an introducer says, no address is dialled by more sockets at once than one birthday needs. */
  #admissible(candidates: readonly Candidate[]): Candidate[] {
    const dialled = new Map<string, number>();
    const isAdmitted = ({ endpoint }: Candidate): boolean => {
      const { address } = splitEndpoint(endpoint);
      const count = (dialled.get(address) ?? 0) + 1;
      dialled.set(address, count);
      return count <= maxDialsPerAddress;
    };
    for (const punch of this.#punches) for (const { candidate } of punch.dials) isAdmitted(candidate);
    return candidates.filter(isAdmitted);
  }

  /** Listens while `work` lasts, without punching, so that it can be seen who gets through. */
  async listenDuring<T>(work: () => Promise<T>): Promise<T> {
    if (this.#listeners.length === 0) this.#listen();
    try {
      return await work();
    } finally {
      if (this.#punches.size === 0) this.#stopListening();
    }
  }

  #listen(): void {
    for (const family of [4, 6] as const) {
      let socket: Socket | undefined;
      try {
        socket = Socket.open(family).shareport();
        socket.bind(this.port);
        socket.listen(listenBacklog);
        this.#listeners.push(socket);
      } catch (error) {
        // No such family on this host, or a stranger has the port there: the connects can still succeed.
        socket?.close();
        if (!(error instanceof SystemError)) throw error;
      }
    }
  }

  #ended(punch: Punch): void {
    this.#punches.delete(punch);
    if (this.#punches.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#stopListening();
    for (const accepted of this.#accepted) this.#dismiss(accepted);
  }

  /**
   * A NAT that refuses by ICMP keeps the entry of our dead SYN. If the peer's SYN then met our listener, the answer
   * would have another sequence number, the NAT would take it and all that follows for invalid, and nothing would
   * get through for two minutes; a RST sets the entry free instead (README, "Refused attempts").
   */
  #stopListening(): void {
    for (const listener of this.#listeners.splice(0)) listener.close();
  }

  #dismiss(accepted: Accepted): void {
    this.#accepted.delete(accepted);
    accepted.socket?.close();
    accepted.channel?.[Symbol.dispose]();
  }

  #tick(): void {
    const now = performance.now();
    for (const punch of [...this.#punches]) {
      if (now >= punch.deadlineAt + (punch.isNearlyThere ? handshakeGraceMs : 0)) punch.expire();
      else for (const dial of punch.dials) this.#startIfDue(punch, dial, now);
    }
    this.#pollAll();
    for (const accepted of this.#accepted) this.#review(accepted, performance.now());
  }

  #pollAll(): void {
    // The listener first: a connect that finds its four-tuple taken was usually accepted there.
    const wanted: Wanted[] = this.#listeners.map((socket) => ({
      socket,
      for: "read",
      then: () => this.#accept(socket),
    }));
    const isIntroduced = this.#isIntroduced();
    for (const accepted of this.#accepted) {
      const { socket } = accepted;
      if (socket && isIntroduced)
        wanted.push({ socket, for: "read", then: () => this.#secureAccepted(accepted, "controlled") });
    }
    for (const punch of this.#punches) {
      for (const dial of punch.dials) {
        const { socket } = dial;
        if (socket) wanted.push({ socket, for: "write", then: () => this.#connectEnded(punch, dial) });
      }
    }
    for (const { socket, then } of pollSockets(wanted)) {
      if (socket.isOpen) then();
    }
  }

  // --- outgoing ------------------------------------------------------------------------------------------

  #startIfDue(punch: Punch, dial: Dial, now: number): void {
    if (punch.isOver || dial.socket || dial.channel || now < dial.dueAt) return;
    const { endpoint, route, isFresh } = dial.candidate;
    dial.tries++;
    dial.localPort = this.port;
    let socket: Socket | undefined;
    try {
      socket = Socket.open(splitEndpoint(endpoint).family).closeAbortively();
      dial.localPort = isFresh ? socket.bind(0) : socket.shareport().bind(this.port);
      punch.report(route, endpoint, dial.localPort, "started");
      if (punch.isOver) return socket.close(); // whoever was told may have aborted it
      const isConnected = socket.connect(endpoint);
      dial.socket = socket;
      if (isConnected) this.#connectEnded(punch, dial);
    } catch (error) {
      socket?.close();
      if (!(error instanceof SystemError)) throw error;
      this.#retry(punch, dial, error.code);
    }
  }

  /** poll(2) said that a connect has ended, well or not. */
  #connectEnded(punch: Punch, dial: Dial): void {
    const socket = dial.socket!;
    const failure = socket.error() ?? selfConnect(socket);
    if (failure === undefined && !punch.introduction) return; // looked at again at the next tick
    delete dial.socket;
    if (failure !== undefined) {
      socket.close();
      return this.#retry(punch, dial, failure);
    }
    const { endpoint, route } = dial.candidate;
    punch.report(route, endpoint, dial.localPort, "connected");
    const role = punch.introduction?.role;
    const channel = punch.isOver || !role ? undefined : this.#secure(socket, route, role);
    if (!channel) {
      socket.close();
      return this.#retry(punch, dial, "ECONNRESET");
    }
    dial.channel = channel;
    channel.onClose = (reason) => {
      delete dial.channel;
      this.#retry(punch, dial, reason || "closed before it was nominated");
    };
    channel.secured.then(
      (fingerprint) => {
        if (fingerprint === punch.options.fingerprint) return punch.authenticated(channel);
        punch.authenticationFailures++;
        channel[Symbol.dispose]();
      },
      () => {},
    );
  }

  /** Undefined when it was reset meanwhile; the socket is then still the caller's. */
  #secure(socket: Socket, route: Route, role: Role): Channel | undefined {
    try {
      return new Channel(socket, route, role, this.#credentials);
    } catch (error) {
      if (error instanceof SystemError) return undefined;
      throw error;
    }
  }

  #retry(punch: Punch, dial: Dial, outcome: string): void {
    if (punch.isOver) return;
    const { endpoint, route } = dial.candidate;
    dial.lastOutcome = outcome;
    const isRefused = refusals.has(outcome);
    if (route !== "private" && isRefused && !punch.options.isReachable) this.#stopListening();
    const pause = pauseMs(dial, outcome, performance.now() - punch.startedAt);
    dial.dueAt = dial.candidate.isOnce ? Infinity : performance.now() + pause;
    punch.report(route, endpoint, dial.localPort, outcome);
  }

  // --- incoming ------------------------------------------------------------------------------------------

  #accept(listener: Socket): void {
    for (let socket = acceptFrom(listener); socket; socket = acceptFrom(listener)) {
      const remote = remoteOf(socket);
      if (this.#accepted.size >= maxAccepted && !this.#isExpected(remote)) {
        socket.close();
        continue;
      }
      const accepted: Accepted = { since: performance.now(), socket };
      this.#accepted.add(accepted);
      const role = this.#roleFor(remote);
      if (role) this.#secureAccepted(accepted, role);
    }
  }

  /** Whether it comes from the address of a peer that we punch at: strangers must not crowd it out. */
  #isExpected(remote: Endpoint | undefined): boolean {
    if (remote === undefined) return false;
    const { address } = splitEndpoint(remote);
    return [...this.#punches].some(({ options }) =>
      options.candidates.some(({ endpoint }) => splitEndpoint(endpoint).address === address),
    );
  }

  /** Whether we know our role in any punch: before that, what we accept can only wait. */
  #isIntroduced(): boolean {
    return [...this.#punches].some(({ introduction }) => introduction !== undefined);
  }

  /** Our role towards an accepted connection, where the punches under way leave no doubt. */
  #roleFor(remote: Endpoint | undefined): Role | undefined {
    const punches = [...this.#punches];
    const named = punches.filter(({ dials }) => dials.some(({ candidate }) => candidate.endpoint === remote));
    const roles = new Set((named.length > 0 ? named : punches).map(({ introduction }) => introduction?.role));
    return roles.size === 1 ? [...roles][0] : undefined;
  }

  #secureAccepted(accepted: Accepted, role: Role): void {
    const socket = accepted.socket!;
    delete accepted.socket;
    const channel = this.#secure(socket, "listen", role);
    if (!channel) {
      socket.close();
      this.#accepted.delete(accepted);
      return;
    }
    accepted.channel = channel;
    channel.onClose = () => this.#accepted.delete(accepted);
    channel.secured.then(
      (fingerprint) => {
        this.#accepted.delete(accepted);
        const punch = this.#punchOf(channel, fingerprint);
        if (!punch) return channel[Symbol.dispose]();
        punch.report("listen", channel.remote, this.port, "connected");
        punch.authenticated(channel);
      },
      () => {},
    );
  }

  /** The punch whose peer has that certificate; two peers may share one, so the endpoint decides between them. */
  #punchOf(channel: Channel, fingerprint: string): Punch | undefined {
    const fitting = [...this.#punches].filter(
      ({ options, introduction }) =>
        introduction?.role === channel.role && options.fingerprint === fingerprint,
    );
    return (
      fitting.find(({ dials }) => dials.some(({ candidate }) => candidate.endpoint === channel.remote)) ??
      fitting[0]
    );
  }

  #review(accepted: Accepted, now: number): void {
    if (now - accepted.since >= acceptedDeadlineMs) this.#dismiss(accepted);
    else if (accepted.socket && this.#isIntroduced()) {
      const role = this.#roleFor(remoteOf(accepted.socket)); // the introducer's word may have come since
      if (role) this.#secureAccepted(accepted, role);
      else if (now - accepted.since >= clientSpeaksMs) this.#secureAccepted(accepted, "controlling");
    }
  }
}

/** What became of the attempts, a phrase for each candidate; those of a crowd are summed up. */
function describe(dials: readonly Dial[]): string {
  const crowds = Map.groupBy(dials, ({ candidate: { route, endpoint } }) => {
    const isCrowd = route === "predicted" || route === "birthday";
    return `${route} ${isCrowd ? splitEndpoint(endpoint).address : endpoint}`;
  });
  const phrases = [...crowds].map(([what, crowd]) => {
    const tries = crowd.reduce((sum, one) => sum + one.tries, 0);
    const unanswered = crowd.filter(({ socket }) => socket).length;
    const ends = new Set(crowd.flatMap(({ lastOutcome }) => lastOutcome ?? []));
    const outcome = unanswered > 0 ? ["no answer", ...ends] : [...ends];
    return `${what}: ${tries} ${tries === 1 ? "attempt" : "attempts"}, ${outcome.join(", ") || "none ended"}`;
  });
  return phrases.join("; ");
}

/**
 * One punch with ourselves over loopback. The first of a program loads TLS and runs code that is not compiled yet,
 * some 30 ms in which the peer's SYNs would meet nobody. Resolves however it went: it proves nothing.
 */
export async function rehearse(credentials: Credentials, fingerprint: string): Promise<void> {
  const sockets: Socket[] = [];
  try {
    const ports = [0, 1].map(() => {
      const socket = Socket.open(4);
      sockets.push(socket);
      const port = socket.bind(0);
      socket.shareport();
      return port;
    });
    const links = ports.map((port, index) => {
      const { promise, resolve } = Promise.withResolvers<Link | undefined>();
      new PunchPort(port, credentials).punch({
        introduction: { role: index === 0 ? "controlling" : "controlled", token: "0".repeat(32) },
        fingerprint,
        candidates: [{ endpoint: formatEndpoint("127.0.0.1", ports[1 - index]!), route: "private" }],
        startInMs: 0,
        deadlineMs: rehearsalMs,
        isReachable: true,
        onLinked: resolve,
        onFailed: () => resolve(undefined),
      });
      return promise;
    });
    const [one] = await Promise.all(links);
    await one?.close("rehearsed");
  } catch (error) {
    if (!(error instanceof SystemError)) throw error; // no loopback, or no descriptors
  } finally {
    for (const socket of sockets) socket.close();
  }
}

/** The next connection that waits; none while we are out of descriptors (EMFILE), which a later tick may not be. */
function acceptFrom(listener: Socket): Socket | undefined {
  let socket: Socket | undefined;
  try {
    socket = listener.accept();
    return socket?.closeAbortively();
  } catch (error) {
    socket?.close();
    if (error instanceof SystemError) return undefined;
    throw error;
  }
}

function remoteOf(socket: Socket): Endpoint | undefined {
  try {
    return socket.remote;
  } catch (error) {
    if (error instanceof SystemError) return undefined; // reset while it waited: ENOTCONN
    throw error;
  }
}

/** A connect to our own address and port succeeds (RFC 9293 §3.5, simultaneous open with oneself). */
function selfConnect(socket: Socket): string | undefined {
  const remote = remoteOf(socket);
  if (remote === undefined) return "ECONNRESET";
  return remote === socket.local ? "connected to itself" : undefined;
}

const refusals = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ECONNABORTED",
  "EACCES",
]);

function pauseMs({ candidate, tries }: Dial, outcome: string, elapsedMs: number): number {
  if (!refusals.has(outcome)) return obstaclePauseMs;
  if (candidate.route === "private") {
    const { baseMs, randomMs, growth, maxMs } = privatePause;
    return Math.min(maxMs, (baseMs + Math.random() * randomMs) * growth ** (tries - 1));
  }
  const { baseMs, randomMs } = elapsedMs < eagerPause.forMs ? eagerPause : steadyPause;
  return baseMs + Math.random() * randomMs;
}
