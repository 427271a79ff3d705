/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections
 * to the others (native/). Owns the control channel, what is known of each peer, the prompt and the list.
 * Never touches a descriptor after it was handed on, and never imports the introducer.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles, nomination).
 */
import { hostname, networkInterfaces, userInfo } from "node:os";
import { basename } from "node:path";
import type { Socket as BunSocket } from "bun";
import { IdentityError, loadIdentity, type Identity } from "./native/link/identity.ts";
import { requirePlatform, SystemError } from "./native/libc.ts";
import { Credentials, LinkError } from "./native/link/channel.ts";
import type { EndedBy, Link } from "./native/link/link.ts";
import { roundCandidates } from "./native/punch/candidates.ts";
import {
  classifyMapping,
  observeFresh,
  predict,
  sampleMapping,
  testHairpinning,
  type MappingBehaviour,
} from "./native/punch/mapping.ts";
import { PunchPort, rehearse, type Attempt, type Candidate, type Punch } from "./native/punch/punch.ts";
import { adoptable, connectShared, descriptorLimit } from "./native/socket.ts";
import {
  CommandError,
  completions,
  count,
  readCommand,
  readOptions,
  renderCommands,
  renderTable,
  runProgram,
  startedAs,
  Terminal,
  UsageError,
  version,
  wideColumns,
  type Cell,
  type Colors,
  type Column,
  type Command,
} from "./native/terminal.ts";
import {
  addressScope,
  age,
  canonicalAddress,
  controlSilenceMs,
  defaultPort,
  defaultRoom,
  encode,
  failureReasons,
  findByIdOrName,
  formatEndpoint,
  isUntranslated,
  jsonLine,
  LineDecoder,
  maxCandidates,
  nameProblem,
  parseToParticipant,
  planRounds,
  printable,
  protocolVersion,
  punchDeadlineMs,
  Refusal,
  roomProblem,
  scopeOf,
  splitEndpoint,
  type Endpoint,
  type FailureReason,
  type Filtering,
  type Mapping,
  type Peer,
  type Prediction,
  type Route,
  type Situation,
  type ToIntroducer,
  type ToParticipant,
  type Way,
} from "./protocol.ts";

/** How long one address of the introducer may take to accept, and then to answer `register`. */
const connectTimeoutMs = 8_000;
const registerTimeoutMs = 8_000;
/** TCP keepalive on the control connection: it keeps the mapping, and finds out when that is gone. */
const keepaliveMs = 5_000;
/** How often the host's own addresses are looked at. */
const addressWatchMs = 2_000;
/** How long the introducer may take to answer `connect` or `echo`. */
const answerTimeoutMs = 10_000;
/**
 * The part of the way over the introducer (A→I→B) that the direct way (A→B) takes at least, as we assume: for a SYN
 * that comes too early is dropped, and costs more than one that comes late.
 */
const headStartShare = 0.4;
/** Peers of one room that are kept in mind; an introducer of ours admits 256. */
const maxPeers = 1024;
/** The pause before coming back to a lost introducer: doubled each time, jittered so that a room does not return as one. */
const firstRejoinMs = 500;
const maxRejoinMs = 30_000;

// --- types -----------------------------------------------------------------------------------------------

/** Everything that happens, in the shape of the `--json` lines. `peer` is an id; endpoints are text. */
export type ParticipantEvent =
  | { event: "registered"; id: number; name: string; room: string; public: Endpoint; private: Endpoint[] }
  | { event: "peers"; peers: PeerRow[] }
  | { event: "joined"; peer: number; name: string; private: Endpoint[]; public: Endpoint }
  | { event: "updated"; peer: number; name: string; public: Endpoint; mapping: Mapping; roundTripMs?: number }
  | { event: "left"; peer: number; name: string }
  | { event: "mapping"; mapping: Mapping; step: number }
  | ({ event: "nat" } & NatReport)
  | { event: "punching"; peer: number; name: string; role: string; way: Way; round: number }
  | ({ event: "attempt"; peer: number; name: string } & Attempt)
  | {
      event: "linked";
      peer: number;
      name: string;
      route: Route;
      local: Endpoint;
      remote: Endpoint;
      /** Since our `connect`, or since the introducer asked us to punch. */
      elapsedMs: number;
    }
  | { event: "failed"; peer: number; name: string; reason: FailureReason; detail: string }
  | { event: "unlinked"; peer: number; name: string; reason: string }
  | { event: "said"; peer: number; name: string; text: string }
  | { event: "sent"; peer: number; name: string; rttMs: number }
  | { event: "pong"; peer: number; name: string; rttMs: number }
  | { event: "echo"; text: string; rttMs: number }
  | { event: "notice"; text: string }
  | { event: "introducer"; state: "lost" | "left" | "unreachable"; reason: string; retryInMs?: number }
  | { event: "error"; message: string };

/** What the `nat` command finds out (RFC 5382, RFC 5780). */
export interface NatReport extends MappingBehaviour {
  /** Whether the introducer sees another address than the host has. */
  isTranslated: boolean;
  /** What an unsolicited SYN from the introducer met; undefined when it did not say. */
  filtering?: Filtering;
  hairpinning: boolean;
  /** Whether the host has a global IPv6 address. */
  ipv6: boolean;
  /** With which kinds of peer a direct link is expected, and by which way first. */
  expected: { peer: string; way: Way | "none" }[];
}

/** One peer as the list shows it. */
export interface PeerRow {
  id: number;
  name: string;
  state: PeerState["is"];
  /** Whether the introducer still lists it. */
  present: boolean;
  private: Endpoint[];
  public: Endpoint;
  mapping: Mapping;
  /** To the introducer. */
  roundTripMs?: number;
  reason?: FailureReason;
  route?: Route;
  local?: Endpoint;
  remote?: Endpoint;
  rttMs?: number;
  ageMs?: number;
  bytesIn?: number;
  bytesOut?: number;
}

/** An error for the user: what went wrong and what to do next. */
export class UserError extends Error {}

type PeerState =
  | { is: "known" }
  /** We asked the introducer, or were asked: waiting for `punch`, then punching, perhaps from a fresh port. */
  | {
      is: "punching";
      since: number;
      token?: string;
      punch?: Punch | undefined;
      freshPort?: PunchPort;
      isLast?: boolean;
    }
  | { is: "linked"; link: Link }
  | { is: "failed"; reason: FailureReason };

type PunchMessage = ToParticipant & { type: "punch" };
/** What a punch is started with: the introducer's message, or as much of it as is known before it comes. */
type PunchOrder = Pick<PunchMessage, "startInMs"> & Partial<PunchMessage>;

interface PeerEntry {
  peer: Peer;
  present: boolean;
  state: PeerState;
  /** Whether the attempts of its punches are told: asked for with the last `connect`. */
  isVerbose?: boolean;
  /** When its last link ended. */
  endedAt?: number;
  /** Those who wait for the end of the punch under way. */
  waiting: { resolve: (link: Link) => void; reject: (error: Error) => void }[];
}

interface Registration {
  id: number;
  public: Endpoint;
  private: Endpoint[];
  port: PunchPort;
  /** Where mapping probes go. */
  probes: Endpoint[];
  alternates: Endpoint[];
  behaviour: MappingBehaviour | undefined;
  /** Settled when that is known: two measurements at once would take each other's ports. */
  classified: Promise<void>;
  /** To the introducer, as it measured. */
  roundTripMs: number | undefined;
}

type ControlState =
  | { is: "away" }
  | { is: "joining" }
  | { is: "registered"; registration: Registration }
  | { is: "lost"; timer: NodeJS.Timeout };

export interface ParticipantOptions {
  host: string;
  port: number;
  name: string;
  room: string;
  identity: Identity;
  onEvent: (event: ParticipantEvent) => void;
  /** Report every attempt of a punch as an `attempt` event. */
  verbose?: boolean;
}

// --- the control channel ---------------------------------------------------------------------------------

/** The connection to the introducer: made by FFI so that its local port can be shared, then handed to Bun. */
class ControlChannel {
  readonly remote: Endpoint;
  readonly port: number;
  onMessage: (message: ToParticipant) => void = () => {};
  onClose: (reason: string) => void = () => {};
  readonly #decoder = new LineDecoder();
  readonly #silence: NodeJS.Timeout;
  #unsent = new Uint8Array(0);
  #socket: BunSocket | undefined;
  #isClosed = false;

  private constructor(remote: Endpoint, port: number) {
    this.remote = remote;
    this.port = port;
    this.#silence = setTimeout(
      () => this.close(`nothing heard from it for ${controlSilenceMs / 1000} s`),
      controlSilenceMs,
    );
  }

  /** Connects to the first address of `host` that accepts; rejects with a {@link UserError}. */
  static async open(host: string, port: number): Promise<ControlChannel> {
    const remotes = await resolve(host, port);
    const failures: string[] = [];
    for (const remote of remotes) {
      try {
        const { socket, port: localPort } = await connectShared(remote, connectTimeoutMs);
        const channel = new ControlChannel(remote, localPort);
        await channel.#adopt(socket.release());
        return channel;
      } catch (error) {
        if (!(error instanceof SystemError)) throw error;
        failures.push(`${remote}: ${connectFailures[error.code] ?? error.code}`);
      }
    }
    throw new UserError(
      `cannot reach the introducer at ${failures.join("; ")}. Is it running (\`bun run introducer ${port}\`) and is that its address?`,
    );
  }

  async #adopt(fd: number): Promise<void> {
    await Bun.connect({
      ...adoptable(fd),
      socket: {
        open: (socket) => {
          this.#socket = socket;
          // After a change of address, on our side or the NAT's, the introducer's host answers a probe with RST.
          socket.setKeepAlive(true, keepaliveMs);
        },
        data: (_, chunk) => this.#read(chunk),
        drain: () => this.#write(new Uint8Array(0)),
        end: () => this.close("it closed the connection"),
        close: (_, error) => this.close(error?.message ?? "it closed the connection"),
        error: (_, error) => this.close(error.message),
      },
    });
  }

  /** The address that our host uses towards the introducer. */
  get localAddress(): string | undefined {
    const address = this.#socket?.localAddress;
    return address === undefined ? undefined : canonicalAddress(address)?.address;
  }

  send(message: ToIntroducer): void {
    this.#write(new TextEncoder().encode(encode(message)));
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#silence);
    this.#socket?.end();
    this.onClose(reason);
  }

  #write(bytes: Uint8Array): void {
    if (this.#isClosed) return;
    this.#unsent = this.#unsent.length === 0 ? new Uint8Array(bytes) : Buffer.concat([this.#unsent, bytes]);
    const written = this.#socket?.write(this.#unsent) ?? 0;
    this.#unsent = this.#unsent.slice(Math.max(0, written));
  }

  #read(chunk: Uint8Array): void {
    this.#silence.refresh();
    try {
      for (const line of this.#decoder.push(chunk)) {
        if (!this.#isClosed) this.onMessage(parseToParticipant(line));
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.close(
        `it sent what is not in the protocol (${error.message}): is that an introducer of this version?`,
      );
    }
  }
}

const connectFailures: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to that network",
  ETIMEDOUT: "no answer",
};

async function resolve(host: string, port: number): Promise<Endpoint[]> {
  const literal = canonicalAddress(host);
  if (literal) return [formatEndpoint(literal.address, port)];
  try {
    const { lookup } = await import("node:dns/promises");
    const found = await lookup(host, { all: true });
    return found.map(({ address }) => formatEndpoint(address, port));
  } catch {
    throw new UserError(`there is no host called ${host}: check the spelling, or give an IP address`);
  }
}

function hostAddresses(): string[] {
  return Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .map(({ address }) => canonicalAddress(address.replace(/%.*$/, ""))?.address)
    .filter((address) => address !== undefined);
}

/** Our host candidates: every address of this host with the shared port, the one in use first. */
export function hostCandidates(inUse: string | undefined, port: number, overLoopback: boolean): Endpoint[] {
  const wanted = new Set([...(inUse === undefined ? [] : [inUse]), ...hostAddresses()]);
  const usable = [...wanted].filter((address) => {
    const scope = addressScope(address);
    return (
      scope === "private" || scope === "global" || (scope === "loopback" && overLoopback && address === inUse)
    );
  });
  return usable.slice(0, maxCandidates).map((address) => formatEndpoint(address, port));
}

// --- the participant -------------------------------------------------------------------------------------

/** One participant in one room. Every event goes to `onEvent`; every method rejects with a {@link UserError}. */
export class Participant {
  readonly options: ParticipantOptions;
  readonly #instance = crypto.getRandomValues(new Uint8Array(8)).toHex();
  readonly #credentials: Credentials;
  /** By instance and fingerprint: ids change when a participant or the introducer comes back. */
  readonly #entries = new Map<string, PeerEntry>();
  #control: ControlChannel | undefined;
  #state: ControlState = { is: "away" };
  #rejoinMs = firstRejoinMs;
  #echoes: { resolve: (text: string) => void; reject: (error: Error) => void }[] = [];
  #joining: { resolve: () => void; reject: (error: Error) => void } | undefined;
  #snapshot: Peer[] = [];
  #rehearsed: Promise<void> | undefined;
  #filtering: ((filtering: Filtering) => void) | undefined;
  /** Resolved, and made anew, whenever a peer is seen. */
  #arrival = Promise.withResolvers<void>();

  constructor(options: ParticipantOptions) {
    this.options = options;
    this.#credentials = new Credentials(options.identity);
  }

  get isRegistered(): boolean {
    return this.#state.is === "registered";
  }

  /** Who we are in the room; undefined while not registered. */
  get self():
    | (Pick<Registration, "id" | "public" | "private"> & {
        name: string;
        room: string;
        fingerprint: string;
        mapping: Mapping;
      })
    | undefined {
    if (this.#state.is !== "registered") return undefined;
    const { id, public: observed, private: hosts, behaviour } = this.#state.registration;
    const { name, room, identity } = this.options;
    const mapping = behaviour?.mapping ?? "unknown";
    return {
      id,
      name,
      room,
      public: observed,
      private: hosts,
      fingerprint: identity.fingerprint,
      mapping,
    };
  }

  /** The list, in the order of the ids. */
  get rows(): PeerRow[] {
    return [...this.#entries.values()].sort((a, b) => a.peer.id - b.peer.id).map(rowOf);
  }

  /** Registers with the introducer; resolves once the room's list is there. */
  async join(): Promise<void> {
    if (this.#state.is === "registered") throw new UserError("already registered with the introducer");
    if (this.#state.is === "joining") throw new UserError("already on the way to the introducer");
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    this.#state = { is: "joining" };
    try {
      await this.#register();
    } catch (error) {
      if (this.#isJoining()) this.#state = { is: "away" };
      throw error;
    }
  }

  /** Leaves the introducer; links stay. */
  leave(): void {
    if (this.#state.is === "away")
      throw new UserError("not registered with an introducer; `join` comes back");
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    this.#lose("we left", { is: "away" });
    this.#emit({ event: "introducer", state: "left", reason: "links stay up; `join` comes back" });
  }

  /** Ends all links in order, and leaves. */
  async quit(): Promise<void> {
    for (const entry of this.#entries.values()) {
      if (entry.state.is === "punching") this.#abandon(entry, "peer-left", "we are leaving");
    }
    await Promise.all(this.#links().map(({ link }) => link.close("the peer quit")));
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    this.#lose("we quit", { is: "away" });
  }

  /** Punches towards a peer, or joins the punch that is under way; resolves to the link. */
  connect(word: string, isVerbose = false): Promise<Link> {
    const entry = this.#find(word);
    entry.isVerbose = isVerbose;
    if (entry.state.is === "linked") throw new UserError(`already linked with ${printable(entry.peer.name)}`);
    const { promise, resolve, reject } = Promise.withResolvers<Link>();
    if (entry.state.is !== "punching") {
      if (this.#state.is !== "registered")
        throw new UserError("not registered with the introducer; `join` first");
      if (!entry.present) throw new UserError(`${printable(entry.peer.name)} has left the room`);
      this.#ask(entry);
    }
    entry.waiting.push({ resolve, reject });
    return promise;
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(word: string, text: string): Promise<void> {
    const { link, peer } = this.#linked(word);
    const rttMs = await delivered(peer, link.say(text));
    this.#emit({ event: "sent", peer: peer.id, name: peer.name, rttMs });
  }

  async ping(word: string): Promise<void> {
    const { link, peer } = this.#linked(word);
    const rttMs = await delivered(peer, link.ping());
    this.#emit({ event: "pong", peer: peer.id, name: peer.name, rttMs });
  }

  async disconnect(word: string): Promise<void> {
    const { link } = this.#linked(word);
    await link.close("disconnected");
  }

  /** Measures the round trip to the introducer. */
  async echo(text: string): Promise<void> {
    if (!this.isRegistered) throw new UserError("not registered with the introducer; `join` first");
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const startedAt = performance.now();
    const timer = setTimeout(() => reject(new UserError("the introducer did not answer")), answerTimeoutMs);
    this.#echoes.push({ resolve, reject });
    this.#control?.send({ type: "echo", text });
    try {
      const answer = await promise;
      this.#emit({ event: "echo", text: answer, rttMs: performance.now() - startedAt });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Finds out what kind of NAT this host is behind. */
  async nat(): Promise<NatReport> {
    if (this.#state.is !== "registered")
      throw new UserError("not registered with the introducer; `join` first");
    const { registration } = this.#state;
    const { port, probes, alternates, public: observed, private: hosts } = registration;
    if (!probes[0] || !this.#control) {
      throw new UserError("this introducer has no probe ports (--probe-ports): nothing can be measured");
    }
    const control = { destination: this.#control.remote, observed };
    await registration.classified;
    const samples = await sampleMapping(port.port, control, [...probes, ...alternates]);
    const behaviour = classifyMapping(samples, port.port);
    const own = { mapping: behaviour.mapping, private: hosts, public: observed };
    const filtering = await port.listenDuring(() => this.#connectBack());
    const report: NatReport = {
      ...behaviour,
      isTranslated: !isUntranslated(own),
      ...(filtering && { filtering }),
      hairpinning: !isUntranslated(own) && (await testHairpinning(port.port, observed, probes[0])),
      ipv6: hosts.some((one) => one.startsWith("[") && scopeOf(one) === "global"),
      expected: expectations(own, filtering),
    };
    this.#emit({ event: "nat", ...report });
    return report;
  }

  /** Asks the introducer to connect to us; undefined when it does not answer. */
  async #connectBack(): Promise<Filtering | undefined> {
    const { promise, resolve } = Promise.withResolvers<Filtering | undefined>();
    const timer = setTimeout(() => resolve(undefined), answerTimeoutMs);
    this.#filtering = resolve;
    this.#control?.send({ type: "connect-back" });
    return promise.finally(() => {
      clearTimeout(timer);
      this.#filtering = undefined;
    });
  }

  /** Resolves once `word` names exactly one peer that is there. */
  async waitFor(word: string): Promise<void> {
    const isThere = () => {
      const found = findByIdOrName(this.#here(), word);
      return typeof found !== "string" && found.entry.present;
    };
    while (!isThere()) await this.#arrival.promise;
  }

  // --- registration --------------------------------------------------------------------------------------

  async #register(): Promise<void> {
    const { host, port, name, room, identity } = this.options;
    const control = await ControlChannel.open(host, port);
    if (!this.#isJoining()) return control.close("no longer wanted");
    this.#control = control;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = setTimeout(() => control.close("it did not answer `register`"), registerTimeoutMs);
    this.#joining = { resolve, reject };
    control.onMessage = (message) => this.#receive(control, message);
    control.onClose = (reason) => this.#closed(control, reason);
    const overLoopback = addressScope(splitEndpoint(control.remote).address) === "loopback";
    control.send({
      type: "register",
      version: protocolVersion,
      name,
      room,
      instance: this.#instance,
      fingerprint: identity.fingerprint,
      private: hostCandidates(control.localAddress, control.port, overLoopback),
    });
    await promise.finally(() => clearTimeout(timer));
  }

  /** Asked through a method, because it changes while we wait. */
  #isJoining(): boolean {
    return this.#state.is === "joining";
  }

  #closed(control: ControlChannel, reason: string): void {
    if (this.#control !== control) return;
    if (!this.#joining) return this.#lose(reason, undefined);
    const { reject } = this.#joining;
    this.#joining = undefined;
    this.#lose(reason, { is: "away" });
    reject(new UserError(`the introducer did not register us: ${reason}`));
  }

  /** The control channel is gone. `next` is the state to be in; undefined means: come back by ourselves. */
  #lose(reason: string, next: ControlState | undefined): void {
    const control = this.#control;
    this.#control = undefined;
    this.#joining?.reject(new UserError(reason));
    this.#joining = undefined;
    this.#state = next ?? this.#rejoinLater(reason);
    control?.close(reason);
    for (const { reject } of this.#echoes.splice(0)) reject(new UserError(`no answer: ${reason}`));
    for (const [key, entry] of this.#entries) {
      entry.present = false;
      // A punch that was introduced goes on by itself; one that waits for it, or for another round, can't.
      const { state } = entry;
      const isIntroduced = state.is === "punching" && state.token !== undefined && state.punch;
      if (state.is === "punching" && !isIntroduced) this.#abandon(entry, "introducer-lost", reason);
      if (entry.state.is !== "linked" && entry.state.is !== "punching") this.#entries.delete(key);
    }
  }

  #rejoinLater(reason: string, state: "lost" | "unreachable" = "lost"): ControlState {
    const retryInMs = Math.round(this.#rejoinMs * (0.5 + Math.random()));
    this.#rejoinMs = Math.min(maxRejoinMs, this.#rejoinMs * 2);
    this.#emit({ event: "introducer", state, reason, retryInMs });
    const timer = setTimeout(() => {
      this.join().catch((error: unknown) => {
        if (!(error instanceof UserError)) throw error;
        if (this.#state.is === "away") this.#state = this.#rejoinLater(error.message, "unreachable");
      });
    }, retryInMs);
    return { is: "lost", timer };
  }

  // --- what the introducer says --------------------------------------------------------------------------

  #receive(control: ControlChannel, message: ToParticipant): void {
    if (this.#control !== control) return;
    switch (message.type) {
      case "registered":
        return this.#registered(control, message);
      case "peers":
        return this.#peers(message.peers, message.more);
      case "joined":
        return this.#joined(message.peer);
      case "updated":
        return this.#updated(message.peer);
      case "left":
        return this.#left(message.id);
      case "measure":
        return void this.#measure(message);
      case "punch":
        return this.#punch(message);
      case "filtering":
        return this.#filtering?.(message.filtering);
      case "observed":
        return; // only ever sent to probes
      case "failed":
        return this.#peerFailed(message);
      case "notice":
        return this.#emit({ event: "notice", text: message.text });
      case "echo":
        return this.#echoes.shift()?.resolve(message.text);
      case "ping":
        return control.send({ type: "pong", id: message.id });
      case "refused":
        return this.#refused(message);
      case "bye":
        return control.close(message.reason);
    }
  }

  #registered(control: ControlChannel, message: ToParticipant & { type: "registered" }): void {
    const { address } = splitEndpoint(control.remote);
    const registration: Registration = {
      id: message.id,
      public: message.public,
      private: message.private,
      port: new PunchPort(control.port, this.#credentials),
      probes: message.probePorts.map((port) => formatEndpoint(address, port)),
      alternates: message.alternates,
      behaviour: undefined,
      classified: Promise.resolve(),
      roundTripMs: undefined,
    };
    this.#state = { is: "registered", registration };
    this.#watchAddresses(registration);
    this.#snapshot = [];
    this.#rejoinMs = firstRejoinMs;
    const { id, name, room, private: candidates } = message;
    this.#emit({ event: "registered", id, name, room, public: message.public, private: candidates });
  }

  #peers(peers: Peer[], more: boolean): void {
    this.#snapshot.push(...peers);
    if (this.#snapshot.length > maxPeers)
      return this.#control?.close("it lists more peers than a room can have");
    if (more) return;
    for (const peer of this.#snapshot) this.#remember(peer);
    this.#snapshot = [];
    this.#emit({ event: "peers", peers: this.rows });
    this.#joining?.resolve();
    this.#joining = undefined;
    if (this.#state.is !== "registered") return;
    const { registration } = this.#state;
    registration.classified = this.#classify(registration);
  }

  #joined(peer: Peer): void {
    const entry = this.#remember(peer);
    if (entry.peer !== peer) return;
    this.#emit({
      event: "joined",
      peer: peer.id,
      name: peer.name,
      private: peer.private,
      public: peer.public,
    });
  }

  /** Our own row changes too: it says how far the introducer is. */
  #updated(peer: Peer): void {
    const { id, name, public: observed, mapping, roundTripMs } = peer;
    const isOurs = this.#state.is === "registered" && this.#state.registration.id === id;
    if (!isOurs) {
      this.#remember(peer);
      const measured = roundTripMs === undefined ? {} : { roundTripMs };
      this.#emit({ event: "updated", peer: id, name, public: observed, mapping, ...measured });
    } else if (this.#state.is === "registered") this.#state.registration.roundTripMs = peer.roundTripMs;
  }

  /** Stores the newest that is known of a peer, and tells a new introducer of the link that we already have. */
  #remember(peer: Peer): PeerEntry {
    const key = `${peer.instance} ${peer.fingerprint}`;
    if (this.#entries.size >= 2 * maxPeers) this.#control?.close("it names more peers than a room can have");
    const entry = this.#entries.get(key) ?? { peer, present: false, state: { is: "known" }, waiting: [] };
    this.#entries.set(key, entry);
    // A session that has not timed out yet may be listed beside the one that replaced it.
    if (entry.present && peer.id < entry.peer.id) return entry;
    const isNew = !entry.present || entry.peer.id !== peer.id;
    entry.peer = peer;
    entry.present = true;
    this.#arrival.resolve();
    this.#arrival = Promise.withResolvers();
    if (isNew && entry.state.is === "linked") this.#reportLink(entry, entry.state.link);
    return entry;
  }

  #left(id: number): void {
    for (const [key, entry] of this.#entries) {
      if (entry.peer.id !== id || !entry.present) continue;
      entry.present = false;
      this.#emit({ event: "left", peer: id, name: entry.peer.name });
      if (entry.state.is === "punching") this.#abandon(entry, "peer-left", "it left the introducer");
      if (entry.state.is !== "linked") this.#entries.delete(key);
    }
  }

  #refused(message: ToParticipant & { type: "refused" }): void {
    const text = `the introducer refused${message.request ? ` \`${message.request}\`` : ""}: ${message.message}`;
    if (this.#joining) {
      const { reject } = this.#joining;
      this.#joining = undefined;
      this.#lose("refused", { is: "away" });
      return reject(new UserError(text));
    }
    if (message.request === "echo") return this.#echoes.shift()?.reject(new UserError(text));
    const entry = this.#byId(message.peer);
    if (message.request === "connect" && entry?.state.is === "punching" && !entry.state.token) {
      const { punch } = entry.state;
      this.#setState(entry, { is: "known" });
      punch?.abort("refused-by-peer", text);
      for (const { reject } of entry.waiting.splice(0)) reject(new UserError(text));
      return;
    }
    // A peer that left while our report was on its way: there is nobody to tell.
    if (message.code !== "unknown-peer") this.#emit({ event: "error", message: text });
  }

  // --- punching ------------------------------------------------------------------------------------------

  #ask(entry: PeerEntry): void {
    const state: PeerState = { is: "punching", since: performance.now() };
    this.#setState(entry, state);
    this.#control?.send({ type: "connect", peer: entry.peer.id });
    const waitMs = this.#headStart(entry);
    if (waitMs !== undefined) state.punch = this.#startPunch(entry, state, { startInMs: waitMs });
    setTimeout(() => {
      if (entry.state === state && !state.token)
        this.#failed(entry, "timed-out", "the introducer did not answer");
    }, answerTimeoutMs);
  }

  /**
   * How long after our `connect` our first SYN may leave without waiting for the introducer's word, such that it
   * reaches the peer's NAT soon after the peer's own SYN has left it: that saves up to half a round trip. Undefined
   * where ports must be measured first.
   */
  #headStart({ peer, endedAt }: PeerEntry): number | undefined {
    if (this.#state.is !== "registered") return undefined;
    const { behaviour, roundTripMs } = this.#state.registration;
    const isKept = behaviour?.mapping === "endpoint-independent" && peer.mapping === "endpoint-independent";
    if (!isKept || roundTripMs === undefined || peer.roundTripMs === undefined) return undefined;
    // The last link's RST may still be on its way; on a NAT it would delete the mapping of a SYN that left before.
    if (endedAt !== undefined && performance.now() - endedAt < roundTripMs + peer.roundTripMs)
      return undefined;
    const peerStartsInMs = (roundTripMs + peer.roundTripMs) / 2;
    return peerStartsInMs * (1 - headStartShare);
  }

  /** Registers anew when the host's addresses change: the old endpoints lead nowhere. */
  #watchAddresses(registration: Registration): void {
    const before = hostAddresses().join();
    const timer = setInterval(() => {
      const isCurrent = this.#state.is === "registered" && this.#state.registration === registration;
      const hasChanged = hostAddresses().join() !== before;
      if (isCurrent && !hasChanged) return;
      clearInterval(timer);
      if (isCurrent) this.#lose("this host's addresses changed", undefined);
    }, addressWatchMs);
    timer.unref();
  }

  /** Learns once how our NAT maps, and tells; the registration may be over when the answer is there. */
  async #classify(registration: Registration): Promise<void> {
    const { port, probes, public: observed } = registration;
    if (probes.length === 0 || !this.#control) return;
    const control = { destination: this.#control.remote, observed };
    const sampling = sampleMapping(port.port, control, probes);
    // While our probes are on their way; nobody is introduced before both sides are ready.
    this.#rehearsed ??= rehearse(this.#credentials, this.options.identity.fingerprint);
    await this.#rehearsed;
    const behaviour = classifyMapping(await sampling, port.port);
    if (this.#state.is !== "registered" || this.#state.registration !== registration) return;
    registration.behaviour = behaviour;
    const { mapping, step } = behaviour;
    this.#control.send({ type: "mapping", mapping });
    this.#emit({ event: "mapping", mapping, step });
  }

  /** Measures for a round that predicts ports. */
  async #measure({ peer, token, way }: ToParticipant & { type: "measure" }): Promise<void> {
    if (this.#state.is !== "registered") return;
    const { port, probes, behaviour } = this.#state.registration;
    const entry = this.#remember(peer);
    const state = this.#nextRound(entry, token);
    let prediction: Prediction | undefined;
    if (way === "fresh") {
      const fresh = probes[0] && (await observeFresh(probes[0]));
      if (fresh) {
        state.freshPort = new PunchPort(fresh.port, this.#credentials);
        prediction = { endpoint: fresh.observed, step: 0 };
      }
    } else if (probes[0]) prediction = await predict(port.port, probes[0], behaviour?.step ?? 1);
    this.#control?.send({ type: "measured", token, ...(prediction && { prediction }) });
  }

  /** The peer's state for a new round; what is left of an earlier one ends without a word. */
  #nextRound(entry: PeerEntry, token: string): PeerState & { is: "punching" } {
    const { state } = entry;
    if (state.is === "punching" && state.token === token) return state; // it has measured for this round
    // Only a peer that no longer has our link asks for another one.
    if (state.is === "linked") void state.link.close("the peer asks for a new link");
    const since = state.is === "punching" ? state.since : performance.now();
    const next: PeerState = { is: "punching", since, token };
    // First, so that the end of the old punch is not taken for the end of this one.
    this.#setState(entry, next);
    if (state.is === "punching") state.punch?.abort("timed-out", "another round follows");
    return next;
  }

  #punch(message: ToParticipant & { type: "punch" }): void {
    if (this.#state.is !== "registered") return;
    const entry = this.#remember(message.peer);
    const { token, role, way, round } = message;
    const { id, name } = entry.peer;
    if (entry.state.is === "punching" && entry.state.token === token && entry.state.punch) return;
    this.#emit({ event: "punching", peer: id, name, role, way, round });
    if (this.#introduceEarly(entry, message)) return;
    const state = this.#nextRound(entry, token);
    state.isLast = message.last;
    state.punch = this.#startPunch(entry, state, message);
  }

  /** Whether the punch has begun already, before the introducer's word. */
  #introduceEarly({ state }: PeerEntry, { token, role, way, last, deadlineMs }: PunchMessage): boolean {
    if (state.is !== "punching" || state.token !== undefined || !state.punch || way !== "direct")
      return false;
    if (state.punch.isOver) return false;
    state.token = token;
    state.isLast = last;
    state.punch.introduce({ token, role }, deadlineMs);
    return true;
  }

  #startPunch(entry: PeerEntry, state: PeerState & { is: "punching" }, order: PunchOrder): Punch | undefined {
    if (this.#state.is !== "registered") return undefined;
    const { registration } = this.#state;
    const { peer } = entry;
    const { role, token, startInMs, deadlineMs = punchDeadlineMs } = order;
    return (state.freshPort ?? registration.port).punch({
      ...(role && token && { introduction: { role, token } }),
      fingerprint: peer.fingerprint,
      candidates: candidatesOf(order, peer, registration),
      startInMs,
      deadlineMs,
      isReachable: isReachable(registration, peer),
      onLinked: (link) => this.#linkUp(entry, link, performance.now() - state.since),
      onFailed: (reason, detail) => this.#punchFailed(entry, state, reason, detail),
      onAttempt: (attempt) => {
        if (this.options.verbose || entry.isVerbose)
          this.#emit({ event: "attempt", peer: peer.id, name: peer.name, ...attempt });
      },
    });
  }

  #linkUp(entry: PeerEntry, link: Link, elapsedMs: number): void {
    this.#setState(entry, { is: "linked", link });
    const { peer } = entry;
    link.onSaid = (text) => this.#emit({ event: "said", peer: entry.peer.id, name: entry.peer.name, text });
    link.onClose = (reason, by) => this.#linkDown(entry, link, reason, by);
    const { route, local, remote } = link;
    this.#emit({ event: "linked", peer: peer.id, name: peer.name, route, local, remote, elapsedMs });
    this.#reportLink(entry, link);
    for (const { resolve } of entry.waiting.splice(0)) resolve(link);
  }

  #reportLink(entry: PeerEntry, { route, local, remote }: Link): void {
    if (entry.present) this.#control?.send({ type: "linked", peer: entry.peer.id, route, local, remote });
  }

  #linkDown(entry: PeerEntry, link: Link, reason: string, by: EndedBy): void {
    const { peer, present } = entry;
    const told =
      by === "us" ? reason : by === "peer" ? `ended by the peer: ${reason || "no reason given"}` : reason;
    this.#emit({ event: "unlinked", peer: peer.id, name: peer.name, reason: told });
    if (present) this.#control?.send({ type: "unlinked", peer: peer.id, reason: told });
    entry.endedAt = performance.now();
    if (entry.state.is !== "linked" || entry.state.link !== link) return;
    this.#setState(entry, { is: "known" });
    if (!present) this.#forget(entry);
  }

  /** A round of ours ended without a link: the introducer hears it, and tells the peer or begins the next. */
  #punchFailed(
    entry: PeerEntry,
    state: PeerState & { is: "punching" },
    reason: FailureReason,
    detail: string,
  ): void {
    if (entry.state !== state) return;
    const { peer, present } = entry;
    const { token } = state;
    const report = { peer: peer.id, reason, detail: detail.slice(0, 1024) };
    if (present && token !== undefined) this.#control?.send({ type: "failed", token, ...report });
    if (state.isLast || !present || reason === "peer-left") return this.#failed(entry, reason, detail);
    delete state.punch;
    setTimeout(() => {
      if (entry.state === state && !state.punch) this.#failed(entry, reason, detail);
    }, answerTimeoutMs);
  }

  #peerFailed(message: ToParticipant & { type: "failed" }): void {
    const entry = this.#byId(message.peer);
    if (entry?.state.is !== "punching") return;
    // Without a token we wait for the answer to our `connect`, and this is it.
    if (entry.state.token === undefined) return this.#abandon(entry, message.reason, message.detail);
    if (entry.state.token !== message.token) return;
    this.#abandon(entry, message.reason, `the peer gave up: ${message.detail}`);
  }

  /** Ends a punch that is under way, or that is still waiting for the introducer. */
  #abandon(entry: PeerEntry, reason: FailureReason, detail: string): void {
    if (entry.state.is !== "punching") return;
    const { punch } = entry.state;
    punch?.abort(reason, detail);
    // The end of a round is not the end of all: this is.
    this.#failed(entry, reason, detail);
  }

  #failed(entry: PeerEntry, reason: FailureReason, detail: string): void {
    if (entry.state.is !== "punching") return;
    const { peer } = entry;
    this.#setState(entry, { is: "failed", reason });
    this.#emit({ event: "failed", peer: peer.id, name: peer.name, reason, detail });
    const error = new UserError(
      `no link with ${printable(peer.name)}: ${failureReasons[reason]} (${reason})`,
    );
    for (const { reject } of entry.waiting.splice(0)) reject(error);
    if (!entry.present) this.#forget(entry);
  }

  // --- looking things up ---------------------------------------------------------------------------------

  /** The only writer of a peer's state. */
  #setState(entry: PeerEntry, state: PeerState): void {
    entry.state = state;
  }

  #forget(entry: PeerEntry): void {
    for (const [key, value] of this.#entries) if (value === entry) this.#entries.delete(key);
  }

  #byId(id: number | undefined): PeerEntry | undefined {
    return [...this.#entries.values()].find(({ peer, present }) => present && peer.id === id);
  }

  #here(): { id: number; name: string; entry: PeerEntry }[] {
    return [...this.#entries.values()].map((entry) => ({ id: entry.peer.id, name: entry.peer.name, entry }));
  }

  #find(word: string): PeerEntry {
    const found = findByIdOrName(this.#here(), word);
    if (typeof found !== "string") return found.entry;
    const own = this.#state.is === "registered" ? String(this.#state.registration.id) : undefined;
    if (word === own || word === this.options.name)
      throw new UserError("that is yourself; `list` shows the others");
    throw new UserError(found);
  }

  #linked(word: string): { link: Link; peer: Peer } {
    const { state, peer } = this.#find(word);
    if (state.is === "linked") return { link: state.link, peer };
    throw new UserError(`not linked with ${printable(peer.name)}; \`connect ${printable(word)}\` first`);
  }

  #links(): { link: Link; peer: Peer }[] {
    return [...this.#entries.values()].flatMap(({ state, peer }) =>
      state.is === "linked" ? [{ link: state.link, peer }] : [],
    );
  }

  #emit(event: ParticipantEvent): void {
    this.options.onEvent(event);
  }
}

/** A link's answer; a {@link LinkError} becomes what the user reads. */
async function delivered(peer: Peer, answer: Promise<number>): Promise<number> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    throw new UserError(`not delivered to ${printable(peer.name)}: ${error.message}`);
  }
}

/** Whether no NAT stands before us: we have the public address ourselves, or share it with the peer. */
function isReachable(own: { public: Endpoint; private: readonly Endpoint[] }, peer: Peer): boolean {
  const address = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  return own.private.includes(own.public) || address(own.public) === address(peer.public);
}

/** The candidates of a round. */
function candidatesOf({ way, own, theirs }: PunchOrder, peer: Peer, registration: Registration): Candidate[] {
  const { public: observed, private: hosts, port, behaviour } = registration;
  return roundCandidates({
    way: way ?? "direct",
    own: { mapping: behaviour?.mapping ?? "unknown", private: hosts, public: observed },
    peer,
    ownPrediction: own,
    peerPrediction: theirs,
    ours: new Set(hostCandidates(splitEndpoint(observed).address, port.port, true)),
    // Half of what the system allows is for everything else.
    budget: Math.floor(descriptorLimit() / 2),
  });
}

/** With which kinds of peer, in another network, a participant in this situation can link. */
function expectations(own: Situation, filtering: Filtering | undefined): NatReport["expected"] {
  const elsewhere = formatEndpoint("192.0.2.1", 1);
  const kinds: [string, Situation][] = [
    ["no NAT", { mapping: "endpoint-independent", private: [elsewhere], public: elsewhere }],
    ["endpoint-independent mapping", { mapping: "endpoint-independent", private: [], public: elsewhere }],
    ["sequential ports", { mapping: "sequential", private: [], public: elsewhere }],
    ["random ports", { mapping: "random", private: [], public: elsewhere }],
  ];
  const isOpen = isUntranslated(own) && filtering === "let-in";
  const firstWay = (peer: Situation) => (isOpen ? "direct" : (planRounds(own, peer)[0] ?? "none"));
  return kinds.map(([peer, situation]) => ({ peer, way: firstWay(situation) }));
}

function rowOf({ peer, present, state }: PeerEntry): PeerRow {
  const row = {
    id: peer.id,
    name: peer.name,
    state: state.is,
    present,
    private: peer.private,
    public: peer.public,
    mapping: peer.mapping,
    ...(peer.roundTripMs !== undefined && { roundTripMs: peer.roundTripMs }),
  };
  if (state.is === "failed") return { ...row, reason: state.reason };
  if (state.is !== "linked") return row;
  const { route, local, remote, rttMs, openedAt, bytesIn, bytesOut } = state.link;
  const measured = rttMs === undefined ? {} : { rttMs };
  return { ...row, route, local, remote, ageMs: Date.now() - openedAt, bytesIn, bytesOut, ...measured };
}

// --- rendering -------------------------------------------------------------------------------------------

const stateLabels: Record<PeerState["is"], (c: Colors) => (text: string) => string> = {
  linked: (c) => c.green,
  punching: (c) => c.yellow,
  known: (c) => c.dim,
  failed: (c) => c.red,
};
const stateMarks: Record<PeerState["is"], string> = { linked: "●", punching: "◌", known: "○", failed: "✗" };

/** Two lines a peer and more: 80 columns suffice. */
const narrowList: Column[] = [
  { head: "" },
  { head: "id", least: 5 },
  { head: "name", least: 10 },
  { head: "private endpoint\npublic endpoint", least: 21 },
  { head: "link", least: 24 },
];
/** One line a peer. */
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

/** The list in `columns` columns, of which it needs 80; Infinity, for a pipe, cuts and wraps nothing. */
export function renderList(rows: PeerRow[], columns: number, c: Colors): string {
  if (rows.length === 0)
    return "Nobody else is in the room. Others join with the same introducer and --room.";
  const isWide = columns >= wideColumns;
  const cells = rows.map((row) => [
    [{ text: `${stateMarks[row.state]} ${row.state}`, paint: stateLabels[row.state](c) }],
    [String(row.id)],
    [{ text: printable(row.name), paint: c.bold }],
    ...(isWide ? wideCells(row, columns, c) : narrowCells(row, c)),
  ]);
  return `${renderTable(isWide ? wideList : narrowList, cells, columns)}\n${total(rows)}`;
}

function narrowCells(row: PeerRow, c: Colors): Cell[] {
  const [first = "none", ...others] = row.private;
  const more = others.length > 0 ? [`+${others.length} more`] : [];
  const hosts = [first, ...more].map((text) => ({ text, paint: c.dim }));
  const path = row.state === "linked" ? [`${row.local}`, `→ ${row.remote}`, traffic(row)] : [];
  return [
    [...hosts, row.public],
    [linkWords(row), ...path, ...(row.present ? [] : ["(not listed now)"])],
  ];
}

function wideCells(row: PeerRow, columns: number, c: Colors): Cell[] {
  const [first = "none", ...others] = row.private;
  const more = others.length > 0 ? ` +${others.length} more` : "";
  const hosts = columns === Infinity ? row.private.join(", ") || first : `${first}${more}`;
  const isLinked = row.state === "linked";
  const words = [linkWords(row), ...(row.present ? [] : ["(not listed now)"])];
  return [
    [{ text: hosts, paint: c.dim }],
    [row.public],
    [words.filter(Boolean).join(" ")],
    [isLinked ? `${row.local}` : ""],
    [isLinked ? `→ ${row.remote}` : ""],
    [isLinked ? traffic(row) : ""],
  ];
}

function linkWords(row: PeerRow): string {
  if (row.state === "failed") return row.reason ?? "";
  if (row.state !== "linked") return "";
  const rtt = row.rttMs === undefined ? "" : ` ${ms(row.rttMs)}`;
  return `${row.route}${rtt} ${age(row.ageMs ?? 0)}`;
}

function traffic(row: PeerRow): string {
  return `in ${bytes(row.bytesIn ?? 0)} out ${bytes(row.bytesOut ?? 0)}`;
}

/** `3 peers: 2 linked, 1 known`. */
function total(rows: PeerRow[]): string {
  const states = Object.entries(Object.groupBy(rows, ({ state }) => state));
  return `${count(rows.length, "peer")}: ${states.map(([state, all]) => `${all.length} ${state}`).join(", ")}`;
}

/** `512 B`, `1.5 kB`, `2.0 MB`. */
function bytes(count: number): string {
  if (count < 1000) return `${count} B`;
  const [value, unit] =
    count < 1e6 ? [count / 1e3, "kB"] : count < 1e9 ? [count / 1e6, "MB"] : [count / 1e9, "GB"];
  return `${value.toFixed(1)} ${unit}`;
}

const ms = (value: number) => `${value.toFixed(1)} ms`;

/** What an event says to a person; undefined for what only programs want. */
export function tell(event: ParticipantEvent, c: Colors): string | undefined {
  const who = "name" in event && "peer" in event ? `${c.bold(printable(event.name))} (${event.peer})` : "";
  switch (event.event) {
    case "registered":
      return (
        `${c.green("registered")} as ${c.bold(printable(event.name))} (${event.id}) in room ${printable(event.room)}\n` +
        `  private ${event.private.join(", ") || "none"}\n  public  ${event.public}`
      );
    case "peers":
      return tellPeers(event.peers);
    case "joined":
      return `${who} joined from ${event.public}`;
    case "left":
      return `${who} left`;
    case "mapping":
      return `our mapping: ${event.mapping}${event.step === 0 ? "" : `, step ${event.step}`}`;
    case "nat": // shown as a result
    case "updated":
      return undefined;
    case "punching":
      return `${c.yellow("punching")} towards ${who}, ${event.role}, ${event.way}, round ${event.round}`;
    case "attempt":
      return c.dim(
        `  ${event.atMs.toFixed(1).padStart(8)} ms  :${event.localPort} → ${event.remote} ${event.route}: ${printable(event.outcome)}`,
      );
    case "linked":
      return `${c.green("linked")} with ${who} by ${event.route}: ${event.local} → ${event.remote}, ${ms(event.elapsedMs)}`;
    case "failed":
      return `${c.red("failed")} to link with ${who}: ${failureReasons[event.reason]} (${event.reason})\n  ${c.dim(printable(event.detail))}`;
    case "unlinked":
      return `${c.yellow("unlinked")} from ${who}: ${printable(event.reason)}`;
    case "said":
      return `${c.cyan(`<${printable(event.name)}>`)} ${printable(event.text)}`;
    case "sent":
      return `${who} has it after ${ms(event.rttMs)}`;
    case "pong":
      return `${who} answered after ${ms(event.rttMs)}`;
    case "echo":
      return `the introducer answered after ${ms(event.rttMs)}${event.text && `: ${printable(event.text)}`}`;
    case "notice":
      return `${c.magenta("[introducer]")} ${printable(event.text)}`;
    case "introducer": {
      const next =
        event.retryInMs === undefined ? "" : `; trying again in ${(event.retryInMs / 1000).toFixed(1)} s`;
      return `${c.yellow(`introducer ${event.state}`)}: ${printable(event.reason)}${next}`;
    }
    case "error":
      return `${c.red("error")}: ${printable(event.message)}`;
  }
}

function tellPeers(rows: PeerRow[]): string {
  const here = rows.filter(({ present }) => present);
  if (here.length === 0) return "Nobody else is here yet.";
  const names = here.map(({ name, id }) => `${printable(name)} (${id})`).join(", ");
  const next = here.find(({ state }) => state === "known" || state === "failed");
  return `here: ${names}${next ? `. \`connect ${printable(next.name)}\` punches a hole` : ""}`;
}

const filteringWords: Record<Filtering, string> = {
  dropped: "dropped",
  refused: "refused (RST or ICMP)",
  "let-in": "let in",
};
const wayWords: Record<Way | "none", (c: Colors) => string> = {
  direct: (c) => c.green("yes"),
  fresh: (c) => c.green("yes"),
  predicted: (c) => c.yellow("likely, by predicting ports"),
  birthday: (c) => c.yellow("likely, by guessing ports (birthday)"),
  none: (c) => c.red("no: forward a port, use IPv6, or another network"),
};

/** The report in RFC words, one plain sentence, and what to expect of it. */
export function renderNat(report: NatReport, c: Colors): string {
  const { mapping, step, isPreserved, dependsOn, isTranslated, filtering, hairpinning, ipv6, expected } =
    report;
  const allocation = {
    unknown: "unknown",
    "endpoint-independent": "not preserved",
    sequential: `sequential, step ${step}`,
    random: "random",
  };
  const facts = [
    [
      "translation",
      isTranslated ? "yes, the introducer sees another address" : "none, the address is your own",
    ],
    ["mapping", mappingWords(mapping, dependsOn)],
    ["port allocation", isPreserved ? "preserved" : allocation[mapping]],
    ["unsolicited SYN", filtering ? filteringWords[filtering] : "the introducer did not say"],
    ["hairpinning", isTranslated ? (hairpinning ? "yes" : "no") : "not needed"],
    ["IPv6", ipv6 ? "a global address" : "no global address"],
  ] as const;
  const head = [{ head: "  peer's NAT" }, { head: "direct link" }];
  const table = expected.map(({ peer, way }) => [[`  ${peer} `], [wayWords[way](c)]]);
  return [
    c.bold(plainSentence(report)),
    ...facts.map(([name, value]) => `  ${name.padEnd(16)} ${value}`),
    renderTable(head, table, Infinity),
  ].join("\n");
}

/** What `whoami` answers. */
function renderSelf(self: NonNullable<Participant["self"]>, c: Colors): string {
  return [
    `${c.bold(printable(self.name))} (${self.id}) in room ${printable(self.room)}`,
    `  private      ${self.private.join(", ") || "none"}`,
    `  public       ${self.public}`,
    `  mapping      ${self.mapping}`,
    `  fingerprint  ${self.fingerprint}`,
  ].join("\n");
}

/** RFC 4787 §4.1. */
function mappingWords(mapping: Mapping, dependsOn: NatReport["dependsOn"]): string {
  if (mapping === "unknown") return "not measured: the introducer's probe ports did not answer";
  if (mapping === "endpoint-independent")
    return "endpoint-independent: one external port for every destination";
  if (dependsOn === "address") return "address-dependent: another external port for every address";
  return "address-and-port-dependent: another external port for every destination";
}

function plainSentence({ mapping, isTranslated, filtering }: NatReport): string {
  if (!isTranslated) {
    return filtering === "let-in"
      ? "You are on the open Internet: everyone can link with you."
      : "You have a public address behind a firewall: a direct link is possible with every kind of peer.";
  }
  const sentences: Record<Mapping, string> = {
    unknown: "You are behind a NAT that could not be measured.",
    "endpoint-independent":
      "You are behind a friendly NAT: a direct link is possible with every kind of peer.",
    sequential:
      "You are behind a NAT that takes the next port for every connection: it can be predicted, mostly.",
    random:
      "You are behind a NAT that takes a random port for every connection: only friendly peers can link with you.",
  };
  return sentences[mapping];
}

// --- the prompt ------------------------------------------------------------------------------------------

const commands = [
  { key: "s", word: "list", operands: "", what: "who is here, and whom you are linked with" },
  { key: "d", word: "connect", operands: "PEER ... [-v]", what: "punch holes (-v: tell every attempt)" },
  { key: "f", word: "say", operands: "PEER TEXT", what: "send TEXT over the link" },
  { key: "", word: "ping", operands: "PEER", what: "measure the link's round trip" },
  { key: "g", word: "disconnect", operands: "PEER", what: "end the link" },
  { key: "h", word: "echo", operands: "[TEXT]", what: "measure the introducer's round trip" },
  { key: "a", word: "leave", operands: "", what: "leave the introducer; links stay up" },
  { key: "", word: "join", operands: "", what: "come back to the introducer" },
  { key: "", word: "nat", operands: "", what: "what kind of NAT you are behind" },
  { key: "", word: "whoami", operands: "", what: "your name, id, endpoints and fingerprint" },
  { key: "", word: "help", aliases: ["?"], operands: "", what: "this (also ?)" },
  {
    key: "j",
    word: "quit",
    aliases: ["q", "exit"],
    operands: "",
    what: "end all links and the program (also q, exit)",
  },
] as const satisfies Command[];

const commandHelp = `${renderCommands(commands)}\n\nPEER is an id or a name, as \`list\` shows them.`;

/** Events that answer a command, or are what a peer sent: results, on standard output. */
const results: ReadonlySet<ParticipantEvent["event"]> = new Set(["said", "pong", "echo"] as const);
/** What is told even with --quiet, on standard error. */
const problems: ReadonlySet<ParticipantEvent["event"]> = new Set(["failed", "error", "introducer"] as const);

/** What the participant tells, and what the user asks, between the two. */
class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;

  constructor(terminal: Terminal, isJson: boolean) {
    this.#terminal = terminal;
    this.#isJson = isJson;
  }

  event(event: ParticipantEvent): void {
    if (this.#isJson) this.#json(event);
    if (event.event === "error") return this.#terminal.error(event.message);
    const isResult = !this.#isJson && results.has(event.event);
    const text = tell(event, isResult ? this.#terminal.resultColors : this.#terminal.storyColors);
    if (text === undefined) return;
    if (isResult) this.#terminal.result(text);
    else this.#terminal.story(text, problems.has(event.event));
  }

  /** Obeys one line; rejects with what is wrong with it. */
  async run(line: string, participant: Participant): Promise<void> {
    const { command, words, text, flags } = readCommand(commands, line);
    const [peer = ""] = words;
    switch (command) {
      case "list":
        return this.#list(participant.rows);
      case "connect":
        return connectAll(words, flags.includes("-v"), participant);
      case "say":
        return participant.say(peer, text);
      case "ping":
        return participant.ping(peer);
      case "disconnect":
        return participant.disconnect(peer);
      case "echo":
        return participant.echo(text);
      case "leave":
        return participant.leave();
      case "join":
        return participant.join();
      case "nat":
        return this.nat(await participant.nat());
      case "whoami":
        return this.#whoami(participant);
      case "help":
        return this.#isJson ? this.#terminal.story(commandHelp) : this.#terminal.result(commandHelp);
      case "quit":
        return; // the one who reads the lines ends
    }
  }

  nat(report: NatReport): void {
    if (!this.#isJson) this.#terminal.result(renderNat(report, this.#terminal.resultColors));
  }

  #list(rows: PeerRow[]): void {
    if (this.#isJson) return this.#json({ event: "peers", peers: rows });
    this.#terminal.result(renderList(rows, this.#terminal.width, this.#terminal.resultColors));
  }

  #whoami({ self }: Participant): void {
    if (!self) throw new UserError("not registered with the introducer; `join` first");
    if (this.#isJson) return this.#json({ event: "whoami", ...self });
    this.#terminal.result(renderSelf(self, this.#terminal.resultColors));
  }

  /** With the time, in ms since the epoch: several participants on one clock can be compared. */
  #json(event: object): void {
    this.#terminal.result(jsonLine({ ...event, at: performance.timeOrigin + performance.now() }));
  }
}

/** All at once. */
async function connectAll(peers: string[], isVerbose: boolean, participant: Participant): Promise<void> {
  await everyone(peers.map(async (word) => participant.connect(word, isVerbose)));
}

/** Waits for all, then rejects with whatever failed. */
async function everyone(all: Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(all)).filter((one) => one.status === "rejected");
  const reasons: unknown[] = failed.map(({ reason }) => reason);
  const unexpected = reasons.find((reason) => !(reason instanceof UserError));
  if (unexpected !== undefined) throw unexpected;
  if (reasons.length > 0) throw new UserError(reasons.map((one) => (one as UserError).message).join("; "));
}

function isQuit(line: string): boolean {
  try {
    return readCommand(commands, line).command === "quit";
  } catch {
    return false;
  }
}

// --- main ------------------------------------------------------------------------------------------------

const usage = `Usage: ${startedAs("participant")} [HOST[:PORT]] [options]

Registers with the introducer at HOST (default port ${defaultPort}; also from INTRODUCER
in the environment) and opens direct TCP connections to others in the room.

Options:
  --name NAME     what others call you: one word (default: user@host)
  --room ROOM     who sees whom; an unguessable name is a private room
                  (default: ${defaultRoom})
  --connect PEER  punch a hole to PEER as soon as it is there
  --nat           say what kind of NAT you are behind, and end
  --stay          go on when standard input ends
  -v, --verbose   show every attempt of a punch
  -q, --quiet     results and errors only
  --json          events as JSON lines on standard output
  -h, --help      this
  --version       which version this is

Commands, from a terminal or as lines on standard input (the letter works too):
${commandHelp}

Results and what peers say go to standard output, all else to standard error.
Without a terminal the commands run one after the other, and the end of the
input quits (exit code 1 if a command failed).

Exit codes: 0 done, 1 failed, 2 wrong usage.`;

interface Arguments {
  introducer: string | undefined;
  name: string;
  room: string;
  connect: string[];
  nat: boolean;
  stay: boolean;
  verbose: boolean;
  quiet: boolean;
  json: boolean;
}

const options = {
  name: { type: "string" },
  room: { type: "string" },
  connect: { type: "string", multiple: true },
  nat: { type: "boolean" },
  stay: { type: "boolean" },
  verbose: { type: "boolean", short: "v" },
  quiet: { type: "boolean", short: "q" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

function readArguments(args: string[]): Arguments | "help" | "version" {
  const { values, positionals } = readOptions(args, options);
  if (values.help) return "help";
  if (values.version) return "version";
  if (positionals.length > 1) throw new UsageError(`one introducer at a time, not ${positionals.join(" ")}`);
  const name = values.name ?? defaultName();
  const problem = nameProblem(name);
  if (problem) throw new UsageError(`--name ${problem}`);
  const badRoom = values.room === undefined ? undefined : roomProblem(values.room);
  if (badRoom) throw new UsageError(`--room ${badRoom}`);
  return {
    introducer: positionals[0] ?? (process.env.INTRODUCER || undefined),
    name,
    // Who only measures disturbs nobody.
    room: values.room ?? (values.nat ? `nat ${crypto.randomUUID()}` : defaultRoom),
    connect: values.connect ?? [],
    nat: values.nat ?? false,
    stay: values.stay ?? false,
    verbose: values.verbose ?? false,
    quiet: values.quiet ?? false,
    json: values.json ?? false,
  };
}

function defaultName(): string {
  const user = process.env.USER || process.env.LOGNAME || userName() || "someone";
  return `${user}@${hostname()}`.replace(/[\s\p{C}]+/gu, "-").slice(0, 64);
}

/** Undefined for a user id without an account, as containers have. */
function userName(): string | undefined {
  try {
    // Bun takes the name from the environment only; where that has none, the home folder usually bears it.
    const { username, homedir } = userInfo();
    return username === "unknown" ? basename(homedir) : username;
  } catch {
    return undefined;
  }
}

/** `host`, `host:port`, `1.2.3.4:port`, `2001:db8::1`, `[2001:db8::1]:port`. */
export function readHostPort(text: string): { host: string; port: number } {
  const bare = canonicalAddress(text.replace(/^\[(.*)\]$/, "$1"));
  if (bare) return { host: bare.address, port: defaultPort };
  const match = /^(?:\[([^\]]+)\]|([^\s:/[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const port = Number(match?.[3] ?? defaultPort);
  if (!match || port < 1 || port > 65535) {
    throw new UsageError(`"${printable(text)}" is no introducer: give HOST or HOST:PORT, port 1 to 65535`);
  }
  return { host: match[1] ?? match[2]!, port };
}

function checkPlatform(): void {
  try {
    requirePlatform();
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  }
}

/** Asks until the answer can be an introducer; undefined when the user gives up. */
async function askIntroducer(terminal: Terminal): Promise<string | undefined> {
  if (!terminal.isInteractive) throw new UsageError("which introducer? Give HOST[:PORT], or set INTRODUCER");
  return terminal.ask("Introducer (HOST or HOST:PORT): ", (answer) => {
    if (answer === "") return undefined;
    try {
      readHostPort(answer);
      return answer;
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      terminal.error(error.message);
      return undefined;
    }
  });
}

async function main(terminal: Terminal): Promise<number> {
  const options = readArguments(process.argv.slice(2));
  if (options === "help" || options === "version") {
    terminal.result(options === "help" ? usage : version);
    return 0;
  }
  checkPlatform();
  terminal.isQuiet = options.quiet;
  const introducer = options.introducer ?? (await askIntroducer(terminal));
  if (introducer === undefined) return 0;
  const prompt = new Prompt(terminal, options.json);
  const participant = new Participant({
    ...readHostPort(introducer),
    name: options.name,
    room: options.room,
    identity: loadIdentity(),
    verbose: options.verbose,
    onEvent: (event) => prompt.event(event),
  });
  const stopped = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => stopped.resolve(0));
  void terminal.broken.then(() => stopped.resolve(1));
  const code = await Promise.race([live(participant, prompt, terminal, options), stopped.promise]);
  terminal.close();
  await participant.quit();
  return code;
}

/** Joins, then obeys until the user or the input ends. Resolves to the exit code. */
async function live(
  participant: Participant,
  prompt: Prompt,
  terminal: Terminal,
  options: Arguments,
): Promise<number> {
  let failures = 0;
  const attempt = async (work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof UserError || error instanceof CommandError)) throw error;
      failures++;
      prompt.event({ event: "error", message: error.message });
    }
  };
  await attempt(() => participant.join());
  if (failures > 0) return 1;
  if (options.nat) {
    await attempt(async () => prompt.nat(await participant.nat()));
    return failures > 0 ? 1 : 0;
  }
  const connectTo = async (peer: string) => {
    await participant.waitFor(peer);
    await participant.connect(peer);
  };
  const connecting = Promise.all(options.connect.map((peer) => attempt(() => connectTo(peer))));
  const run = (line: string) => attempt(() => prompt.run(line, participant));
  if (terminal.isInteractive) {
    await converse(participant, terminal, run);
    return 0;
  }
  await connecting;
  for await (const line of terminal.lines()) {
    if (isQuit(line)) return failures > 0 ? 1 : 0;
    if (line.trim() !== "") await run(line);
  }
  if (options.stay) await new Promise<never>(() => {});
  return failures > 0 ? 1 : 0;
}

/** Commands from a person run beside each other. */
function converse(
  participant: Participant,
  terminal: Terminal,
  run: (line: string) => Promise<void>,
): Promise<void> {
  return terminal.converse({
    prompt: "> ",
    onLine: (line) => {
      if (isQuit(line)) return true;
      void run(line);
      return false;
    },
    complete: (line) =>
      completions(
        commands,
        participant.rows.map(({ name }) => name),
        line,
      ),
    reasonToStay: () => {
      const links = participant.rows.filter(({ state }) => state === "linked").length;
      return links === 0 ? undefined : `${count(links, "link")} up`;
    },
  });
}

if (import.meta.main) await runProgram(main, [UserError, IdentityError]);
