/**
 * TCP hole punching on one local port (Ford, Srisuresh, Kegel 2005, §4; RFC 5128 §3.4). From the port of the introducer
 * connection it listens, and connects to each candidate of the peer, all at once. It tries again what was refused, and
 * authenticates what connected. Which channel is nominated, punch.ts decides.
 *
 * {@link PunchPort} owns each descriptor of its punches, and closes all but the nominated one on every path. While there is
 * no punch it holds none. It prints nothing, and never talks to the introducer. For native/punch/ and native/participant/.
 */
import { type Endpoint, type Role, type Route, splitEndpoint } from "../../protocol.ts";
import { SystemError } from "../host/libc.ts";
import { Channel } from "../secure/channel.ts";
import { adopt, type Credentials, type Side } from "../secure/tls.ts";
import { pollSockets, Socket } from "../host/socket.ts";
import { Dial, isRefusal } from "./dial.ts";
import { type Targets, targets as programTargets } from "./targets.ts";
import { Punch, type PunchOptions } from "./punch.ts";

/**
 * How often poll(2) is called while punching. One call for all descriptors takes microseconds. While SYNs cross, the call
 * waits for so long, and all else has its turn between two calls.
 */
const pollPeriodMs = 1;
/** Strangers may connect to our listener. So many are kept, for so long: the peer's SYN must not meet a full queue. */
const listenBacklog = 128;
const maxAccepted = 32;
/** So many endpoints are filtered at the listener. Each takes a few instructions for each SYN. */
const maxFiltered = 32;
/** So many accepted connections of peers that we punch at: a whole room that links at once. */
const maxExpected = 256;
const acceptedDeadlineMs = 5_000;
/** Between two looks that are so far apart this program had no processor, and accepted ones no chance to be heard. */
const stalledMs = 50;
/**
 * How long a connection that opened in time may take to be authenticated and nominated: a packet may be lost. The
 * controlled side waits longer, so that it is still there for the last nomination that the other side may send.
 */
const handshakeGraceMs = { controlling: 1_500, controlled: 3_000 };
const unscalable = "something on the way takes window scaling out of SYNs";
/** If we punch in both roles, an accepted peer that is the TLS client speaks within this time. */
const clientSpeaksMs = 150;

interface Wanted {
  socket: Socket;
  for: "read" | "write";
  then: () => void;
}

/** An accepted connection. We do not know yet whose it is. */
interface Accepted {
  since: number;
  socket?: Socket;
  channel?: Channel;
}

/** Those of this program whose SYNs cross. If there is one alone it waits in poll(2): several would wait for each other. */
const crossing = new Set<PunchPort>();

/** The local port of an introducer connection, and all punches on it. */
export class PunchPort {
  readonly port: number;
  readonly targets: Targets;
  readonly #credentials: Credentials;
  readonly #punches = new Set<Punch>();
  readonly #listeners: Socket[] = [];
  readonly #accepted = new Set<Accepted>();
  /** What calls the next tick. */
  #next: { cancel(): void } | undefined;
  #lookedAt = -Infinity;

  constructor(port: number, credentials: Credentials, targets = programTargets) {
    this.port = port;
    this.#credentials = credentials;
    this.targets = targets;
  }

  /** Starts a punch. Its callbacks tell the outcome, never before this returns. */
  punch(options: PunchOptions): Punch {
    const punch = new Punch(options, this.targets, (ended) => this.#ended(ended));
    this.#punches.add(punch);
    this.#listen();
    this.#filter();
    // The first attempts leave now, and do not wait for the next tick.
    if (options.startInMs === 0) queueMicrotask(() => this.#tick());
    else this.#schedule();
    return punch;
  }

  /** Listens while `work` lasts, without punching, to see who gets through. */
  async listenDuring<T>(work: () => Promise<T>): Promise<T> {
    this.#listen();
    try {
      return await work();
    } finally {
      if (this.#punches.size === 0) this.#stopListeningAtAll();
    }
  }

  #listen(): void {
    for (const family of [4, 6] as const) {
      if (this.#listeners.some((listener) => listener.family === family)) continue;
      let socket: Socket | undefined;
      try {
        socket = Socket.open(family).shareport();
        socket.bind(this.port);
        socket.reachDeaf().listen(listenBacklog);
        this.#listeners.push(socket);
      } catch (error) {
        // This host lacks the family, or another program has the port there. Connecting may still succeed.
        socket?.close();
        if (!(error instanceof SystemError)) throw error;
      }
    }
  }

  #ended(punch: Punch): void {
    this.#punches.delete(punch);
    if (this.#punches.size > 0) return this.#filter();
    crossing.delete(this);
    this.#next?.cancel();
    this.#next = undefined;
    this.#stopListeningAtAll();
    for (const accepted of this.#accepted) this.#dismiss(accepted);
  }

  /**
   * Behind a NAT, a SYN from an endpoint that we dial is meant for the socket that dials. While that socket is being made
   * anew, the SYN must not meet the listener: see below. It is dropped, and our next SYN answers it.
   */
  #filter(): void {
    const dialled = [...this.#punches].flatMap(({ dials, options }) => (options.isReachable ? [] : dials));
    const endpoints = dialled
      .filter(({ candidate, isVerified }) => isVerified && candidate.route === "public")
      .map(({ candidate }) => candidate.endpoint);
    for (const listener of this.#listeners) {
      const ofFamily = endpoints.filter((endpoint) => splitEndpoint(endpoint).family === listener.family);
      listener.dropFrom(ofFamily.slice(0, maxFiltered));
    }
  }

  /**
   * A NAT that refuses by ICMP keeps the entry of our dead SYN. If the peer's SYN then met our listener, the answer
   * would have another sequence number, the NAT would take it and all that follows for invalid, and nothing would
   * get through for two minutes; a RST sets the entry free instead (native/README.md, "Refused attempts").
   */
  #stopListening(family: 4 | 6): void {
    const index = this.#listeners.findIndex((listener) => listener.family === family);
    if (index >= 0) this.#listeners.splice(index, 1)[0]!.close();
  }

  #stopListeningAtAll(): void {
    for (const listener of this.#listeners.splice(0)) listener.close();
  }

  #dismiss(accepted: Accepted): void {
    this.#accepted.delete(accepted);
    accepted.socket?.close();
    accepted.channel?.destroy();
  }

  #schedule(isCrossing = false): void {
    this.#next?.cancel();
    this.#next = undefined;
    if (this.#punches.size === 0) return;
    const tick = () => this.#tick();
    if (isCrossing) {
      const immediate = setImmediate(tick);
      this.#next = { cancel: () => clearImmediate(immediate) };
    } else {
      const timer = setTimeout(tick, pollPeriodMs);
      this.#next = { cancel: () => clearTimeout(timer) };
    }
  }

  #tick(): void {
    const now = performance.now();
    let isCrossing = false;
    try {
      for (const punch of [...this.#punches]) {
        if (this.#isExpired(punch, now)) continue;
        for (const dial of punch.dials) this.#advance(punch, dial, now);
      }
      if ([...this.#punches].some((punch) => punch.isCrossing(now))) crossing.add(this);
      else crossing.delete(this);
      isCrossing = crossing.has(this) && crossing.size === 1;
      this.#pollAll(isCrossing ? pollPeriodMs : 0);
      this.#review(performance.now());
      // Only now: while this program did something else, what has come could not be seen, and was no silence.
      for (const punch of [...this.#punches]) this.#judge(punch, now);
    } finally {
      this.#schedule(isCrossing);
    }
  }

  #judge(punch: Punch, now: number): void {
    if (this.#isExpired(punch, now)) return punch.expire();
    const isUnheard = punch.dials.some((dial) => dial.isUnheard(now));
    if (isUnheard && !punch.isNearlyThere && !this.#isArriving(punch)) punch.options.onUnheard?.();
  }

  #isExpired(punch: Punch, now: number): boolean {
    if (now < punch.deadlineAt) return false;
    const isNearlyThere = punch.isNearlyThere || this.#isArriving(punch);
    const graceMs = isNearlyThere ? handshakeGraceMs[punch.introduction?.role ?? "controlling"] : 0;
    return now >= punch.deadlineAt + graceMs;
  }

  #pollAll(waitMs: number): void {
    // The listener first: if a connect finds its four-tuple taken, the listener has usually accepted the peer's SYN.
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
    for (const { socket, then } of pollSockets(wanted, waitMs)) {
      if (socket.isOpen) then();
    }
  }

  // --- outgoing ------------------------------------------------------------------------------------------

  #advance(punch: Punch, dial: Dial, now: number): void {
    if (punch.isOver) return;
    if (dial.isOverdue(now)) {
      dial.socket!.close();
      delete dial.socket;
      this.#retry(punch, dial, "no answer");
    } else if (dial.take(now)) this.#dial(punch, dial);
  }

  #dial(punch: Punch, dial: Dial): void {
    const { endpoint, route, isFresh } = dial.candidate;
    dial.localPort = this.port;
    let socket: Socket | undefined;
    try {
      socket = Socket.open(splitEndpoint(endpoint).family).closeAbortively();
      if (punch.options.isUnscaled) socket.clampWindow();
      socket.clampSegments(punch.options.segmentClamp ?? 0);
      // Only one side can be deaf. It is the one whose SYN may come too early.
      if (punch.isControlling) socket.ignoreUnreachable();
      else socket.reachDeaf();
      dial.localPort = isFresh ? socket.bind(0) : socket.shareport().bind(this.port);
      punch.report(route, endpoint, dial.localPort, "started");
      if (punch.isOver) return socket.close(); // the callback may have aborted it
      const isConnected = socket.connect(endpoint);
      dial.socket = socket;
      if (isConnected) this.#connectEnded(punch, dial);
    } catch (error) {
      socket?.close();
      if (!(error instanceof SystemError)) throw error;
      this.#retry(punch, dial, error.code);
    }
  }

  /** A connect has ended, by success or failure. */
  #connectEnded(punch: Punch, dial: Dial): void {
    const socket = dial.socket!;
    const failure = socket.error() ?? selfConnect(socket);
    if (failure === undefined && !punch.introduction) return; // the next tick looks at it again
    delete dial.socket;
    // An endpoint that somebody only claims must not decide when we say that a round has failed.
    punch.seen.needsUnscaled = dial.isVerified && needsUnscaled(punch, socket, failure);
    if (failure !== undefined || punch.seen.needsUnscaled) socket.close();
    if (punch.seen.needsUnscaled) return punch.abort("handshake-cut", unscalable);
    if (failure !== undefined) {
      this.#retry(punch, dial, failure);
      // In the very tick: until the next SYN leaves, the peer's would pass our NAT and meet nobody.
      return this.#advance(punch, dial, performance.now());
    }
    socket.hearAll();
    const { endpoint, route } = dial.candidate;
    punch.report(route, endpoint, dial.localPort, "connected");
    const side = sideOf([punch]);
    const channel = punch.isOver || !side ? undefined : this.#secure(socket, route, side);
    if (!channel) {
      socket.close();
      return this.#retry(punch, dial, "ECONNRESET");
    }
    dial.channel = channel;
    let isSecured = false;
    channel.onClose = (reason) => {
      delete dial.channel;
      if (dial.isVerified && channel.isRejected) punch.seen.authenticationFailures++;
      else if (dial.isVerified && !isSecured) punch.seen.cutHandshakes++;
      this.#retry(punch, dial, reason);
    };
    channel.secured.then(
      (fingerprint) => {
        isSecured = true;
        if (fingerprint === punch.options.bond.peer.fingerprint) punch.authenticated(channel);
        else channel.reject("it showed another certificate than the peer's");
      },
      () => {},
    );
  }

  /** Makes a channel. Undefined if the socket was reset meanwhile: then the caller still owns it. */
  #secure(socket: Socket, route: Route, side: Side): Channel | undefined {
    try {
      return new Channel(adopt(socket), route, side, this.#credentials);
    } catch (error) {
      if (error instanceof SystemError) return undefined;
      throw error;
    }
  }

  #retry(punch: Punch, dial: Dial, outcome: string): void {
    if (punch.isOver) return;
    const { endpoint, route } = dial.candidate;
    // Only if the peer's NAT has refused: an endpoint that is only claimed must not close the listener.
    const isTheirs = dial.isVerified && isRefusal(outcome);
    if (isTheirs && !punch.options.isReachable) this.#stopListening(splitEndpoint(endpoint).family);
    const role = punch.isControlling ? "controlling" : "controlled";
    dial.ended(outcome, performance.now() - punch.startedAt, role);
    punch.report(route, endpoint, dial.localPort, outcome);
  }

  // --- incoming ------------------------------------------------------------------------------------------

  #accept(listener: Socket): void {
    for (let socket = acceptFrom(listener); socket; socket = acceptFrom(listener)) {
      const remote = remoteOf(socket);
      const { size } = this.#accepted;
      if (size >= maxExpected || (size >= maxAccepted && !this.#isExpected(remote))) {
        socket.close();
        continue;
      }
      const accepted: Accepted = { since: performance.now(), socket };
      this.#accepted.add(accepted);
      const role = this.#roleFor(remote);
      if (role) this.#secureAccepted(accepted, role);
    }
  }

  /** Whether it comes from the address of a peer that we punch at. Strangers must not crowd it out. */
  #isExpected(remote: Endpoint | undefined): boolean {
    if (remote === undefined) return false;
    const { address } = splitEndpoint(remote);
    return [...this.#punches].some(({ options }) =>
      options.candidates.some(({ endpoint }) => splitEndpoint(endpoint).address === address),
    );
  }

  /** Whether we know our role in any punch. Before that, what we accept must wait. */
  #isIntroduced(): boolean {
    return [...this.#punches].some(({ introduction }) => introduction !== undefined);
  }

  /** Whether an accepted connection has named this punch. Then the peer is about to nominate it. */
  #isArriving({ alpn }: Punch): boolean {
    return alpn !== undefined && [...this.#accepted].some(({ channel }) => channel?.alpn === alpn);
  }

  /** Our role towards an accepted connection; undefined if the punches under way leave a doubt. */
  #roleFor(remote: Endpoint | undefined): Role | undefined {
    const punches = [...this.#punches];
    const named = punches.filter(({ dials }) => dials.some(({ candidate }) => candidate.endpoint === remote));
    const roles = new Set((named.length > 0 ? named : punches).map(({ introduction }) => introduction?.role));
    return roles.size === 1 ? [...roles][0] : undefined;
  }

  #secureAccepted(accepted: Accepted, role: Role): void {
    const socket = accepted.socket!;
    delete accepted.socket;
    const side = sideOf(this.#punches, role);
    const channel = side && this.#secure(socket, "listen", side);
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
        const punch = [...this.#punches].find(({ alpn }) => alpn === channel.alpn);
        if (punch?.options.bond.peer.fingerprint !== fingerprint) return channel.destroy();
        channel.onClose = () => {
          if (channel.isRejected) punch.seen.authenticationFailures++;
        };
        punch.report("listen", channel.remote, this.port, "connected");
        punch.authenticated(channel);
      },
      () => {},
    );
  }

  #review(now: number): void {
    const pauseMs = now - this.#lookedAt;
    this.#lookedAt = now;
    for (const accepted of this.#accepted) {
      if (pauseMs > stalledMs) accepted.since += Math.min(pauseMs, now - accepted.since);
      const waitedMs = now - accepted.since;
      if (waitedMs >= acceptedDeadlineMs) this.#dismiss(accepted);
      else if (accepted.socket && this.#isIntroduced()) {
        const role = this.#roleFor(remoteOf(accepted.socket)); // the introducer may have answered meanwhile
        if (role) this.#secureAccepted(accepted, role);
        else if (waitedMs >= clientSpeaksMs) this.#secureAccepted(accepted, "controlling");
      }
    }
  }
}

/**
 * Our side of TLS on a connection that belongs to one of these punches. As the client we offer the names of all punches in
 * which we are the client, and the server chooses. Undefined if we do not have that role in any of them.
 */
function sideOf(punches: Iterable<Punch>, wanted?: Role): Side | undefined {
  const alpns = (role: Role) =>
    [...punches].flatMap(({ introduction, alpn }) => (introduction?.role === role ? (alpn ?? []) : []));
  for (const role of ["controlling", "controlled"] as const) {
    if ((wanted ?? role) !== role || alpns(role).length === 0) continue;
    if (role === "controlling") return { role, offers: alpns(role) };
    // Called once the client has spoken. By then there may be other punches.
    return { role, expects: (alpn) => alpns(role).includes(alpn) };
  }
  return undefined;
}

/** The next connection that waits. Undefined also while we are out of descriptors (EMFILE): a later tick tries again. */
function acceptFrom(listener: Socket): Socket | undefined {
  let socket: Socket | undefined;
  try {
    socket = listener.accept();
    return socket?.closeAbortively().hearAll();
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
    if (error instanceof SystemError) return undefined; // it was reset while it waited: ENOTCONN
    throw error;
  }
}

/**
 * Whether windows would be scaled wrongly. It also counts after ECONNRESET, because the peer's SYN may have come
 * before.
 */
export function needsUnscaled(
  { introduction, options }: Punch,
  socket: Socket,
  failure: string | undefined,
): boolean {
  const hasSyn = failure === undefined || failure === "ECONNRESET";
  return hasSyn && introduction !== undefined && !options.isUnscaled && socket.isUnscaled;
}

/** A connect to our own address and port succeeds (RFC 9293 §3.5, simultaneous open with oneself). */
function selfConnect(socket: Socket): string | undefined {
  const remote = remoteOf(socket);
  if (remote === undefined) return "ECONNRESET";
  return remote === socket.local ? "connected to itself" : undefined;
}
