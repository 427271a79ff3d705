/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections
 * to the others (native/). Owns the registration, the map of peers (each of whose lives is native/participant/peer.ts), the
 * prompt and the list. Never touches a descriptor after it was handed on, and never imports the introducer.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles, nomination).
 */
import { constants, hostname, userInfo } from "node:os";
import { isatty } from "node:tty";
import { basename } from "node:path";
import { hideArgument } from "./native/host/arguments.ts";
import { ControlChannel, verify } from "./native/host/control.ts";
import { requirePlatform } from "./native/host/libc.ts";
import { Credentials } from "./native/secure/channel.ts";
import { Gathering } from "./native/uses/gather.ts";
import { Keep, notLinked } from "./native/participant/keep.ts";
import type { Link, Purpose } from "./native/session/link.ts";
import {
  distrust,
  newRoomWords,
  openRoom,
  prove,
  roomOf,
  secretRoom,
  type Member,
  type Room,
} from "./native/secure/room.ts";
import type { Pipe } from "./native/uses/pipe.ts";
import { resetCodes, type Stream } from "./native/session/stream.ts";
import { DescriptorOutput, runPipe } from "./native/uses/stdio.ts";
import { AllowList, parseForward, parsePipe, SpecError, type PipeSpec } from "./native/uses/target.ts";
import {
  Uses,
  type Forwarding,
  type ForwardRow,
  type From,
  type Transfer,
  type UseEvent,
} from "./native/uses/services.ts";
import { IdentityError, identityOrOneForNow, type Identity } from "./native/secure/identity.ts";
import {
  RemotePeer,
  ToldError,
  type PeerEvent,
  type PeerRow,
  type PeerSurroundings,
} from "./native/participant/peer.ts";
import { UnaskedBudget, type Unasked } from "./native/punch/allowance.ts";
import { hostCandidates } from "./native/punch/candidates.ts";
import { Gate, isAsFar } from "./native/punch/gate.ts";
import { rehearseCandidates, type Ground } from "./native/punch/introduction.ts";
import {
  classifyMapping,
  sampleMapping,
  testHairpinning,
  type MappingBehaviour,
} from "./native/punch/mapping.ts";
import { PortMapping, protocolNames, type PortMappingState } from "./native/punch/portmap.ts";
import { PunchPort, rehearse } from "./native/punch/punch.ts";
import { byTurns } from "./native/shares/turns.ts";
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
  type Part,
} from "./native/terminal/terminal.ts";
import {
  age,
  canonicalAddress,
  defaultPort,
  defaultRoom,
  failureReasons,
  formatEndpoint,
  isNumberedName,
  isUntranslated,
  jsonLine,
  nameProblem,
  nameSkeleton,
  planRounds,
  printable,
  protocolVersion,
  publicInstance,
  roomProblem,
  scopeOf,
  splitEndpoint,
  unlinkReasons,
  UserError,
  type AddressScope,
  type Endpoint,
  type FailureReason,
  type Filtering,
  type Mapping,
  type Peer,
  type Route,
  type Situation,
  type ToIntroducer,
  type ToParticipant,
  type Way,
} from "./protocol.ts";

export { UserError, type From, type Link, type Stream };

/** How long the introducer may take to answer `register`. */
const registerTimeoutMs = 8_000;
/** How often the host's own addresses are looked at. */
const addressWatchMs = 2_000;
/** How long the introducer may take to answer `echo` or `connect-back`. */
const answerTimeoutMs = 10_000;
/** Peers of one room that are kept in mind. */
const maxPeers = 4096;
/**
 * The longest pause before coming back to a lost introducer: doubled each time; half of it is jitter, so that a room does
 * not return as one. So all are back within 10 s of its return.
 */
const firstRejoinMs = 500;
const maxRejoinMs = 8_000;
/** A registration that lasted this long was worth coming back to: the pause begins small again. */
const lastingMs = 10_000;
/** The same when it was the network that ended it. */
const briefMs = 1_000;
/** When a mapping that could not be measured (the probes were busy) is measured again, doubling to the most. */
const firstRemeasureMs = 2_000;
const maxRemeasureMs = 120_000;
/** Characters of what a stream is said to be for. */
const maxUseLength = 256;
/** How long a link is kept without a connection, unless told otherwise. */
export const defaultKeepMinutes = 10;
/** Names of ours in one try to register that others may have before us. */
const maxNamesTried = 8;
/** How often what is under way is drawn. */
const statusPeriodMs = 500;
/** A wait that lasts longer is announced. */
const announceAfterMs = 1_000;

// --- types -----------------------------------------------------------------------------------------------

/** Everything that happens, in the shape of the `--json` lines. `peer` is an id; endpoints are text. */
export type ParticipantEvent =
  | PeerEvent
  | UseEvent
  /** The words of a private room are nobody's but those who know them: they are in no event. */
  | { event: "registered"; id: number; name: string; room: RoomKind; public: Endpoint; private: Endpoint[] }
  | { event: "peers"; peers: PeerRow[] }
  | { event: "joined"; peer: number; name: string; private: Endpoint[]; public: Endpoint }
  | {
      event: "updated";
      peer: number;
      name: string;
      public: Endpoint;
      mapped?: Endpoint;
      mapping: Mapping;
      roundTripMs?: number;
    }
  | { event: "left"; peer: number; name: string }
  | { event: "mapping"; mapping: Mapping; step: number }
  /** Whether our router opens a port for us. */
  | { event: "port-mapping"; state: PortMappingState }
  | ({ event: "nat" } & NatReport)
  | { event: "echo"; text: string; rttMs: number }
  | { event: "notice"; text: string }
  /** Something takes more than a second. */
  | { event: "waiting"; for: "introducer" | "peer"; text: string }
  | { event: "introducer"; state: "lost" | "left" | "unreachable"; reason: string; retryInMs?: number }
  /** Something that we can do without, but should not have to. */
  | { event: "warning"; message: string }
  | { event: "error"; message: string };

export type RoomKind = "lobby" | "private";

type EventOf<Kind extends ParticipantEvent["event"]> = Extract<ParticipantEvent, { event: Kind }>;

/** What the `nat` command finds out (RFC 5382, RFC 5780). */
export interface NatReport extends MappingBehaviour {
  /** What the introducer sees, and how far away it can be to see that. */
  observed: Endpoint;
  scope: AddressScope;
  /** Whether the introducer sees another address than the host has. */
  isTranslated: boolean;
  /** What an unsolicited SYN from the introducer met; undefined when it did not say. */
  filtering?: Filtering;
  /** The same of one from an address that we have never called, where the introducer has such. */
  filteringElsewhere?: Filtering;
  hairpinning: boolean;
  /** Whether the host has a global IPv6 address. */
  ipv6: boolean;
  /** What came of asking the router for a port; undefined where it is not asked. */
  portMapping?: PortMappingState;
  /** With which kinds of peer a direct link is expected, and by which way first. */
  expected: { peer: string; way: Way | "none" }[];
}

/** What we are in the room. */
export interface Self {
  id: number;
  name: string;
  room: RoomKind;
  public: Endpoint;
  private: Endpoint[];
  mapped?: Endpoint;
  fingerprint: string;
  mapping: Mapping;
}

export interface ParticipantOptions {
  /** Name or address of the introducer. */
  host: string;
  /** Its port (7000). */
  port?: number;
  /** What others call us: one word. */
  name: string;
  /** Its words, which the introducer never learns; `lobby` is open to everyone. Or one that is being made. */
  room: string | Room | Promise<Room>;
  /** The one kept in the user's state folder, unless given. */
  identity?: Identity;
  /** All that happens, for whoever wants to tell it. */
  onEvent?: (event: ParticipantEvent) => void;
  /** Report every attempt of a punch as an `attempt` event. */
  verbose?: boolean;
  /** Never let the introducer relay our links. */
  direct?: boolean;
  /** Whether the router is asked for a port; by default it is, where one is before us. */
  portMapping?: boolean;
  /** How long a link that has lost its connection is kept: minutes (10); 0 ends it at once. */
  keepMinutes?: number;
}

type Registered = ToParticipant & { type: "registered" };
type Filtered = ToParticipant & { type: "filtering" };

/** One registration with an introducer: what it said, and what was measured since. */
class Registration implements Ground {
  readonly id: number;
  readonly public: Endpoint;
  readonly private: readonly Endpoint[];
  readonly probes: readonly Endpoint[];
  readonly alternates: readonly Endpoint[];
  readonly verify: Registered["verify"];
  readonly probeToken: string | undefined;
  readonly introducer: Endpoint;
  readonly takesRelay: boolean;
  readonly port: PunchPort;
  readonly control: ControlChannel;
  readonly credentials: Credentials;
  readonly self: Member;
  readonly bondKey: Uint8Array;
  readonly since = performance.now();
  behaviour: MappingBehaviour | undefined = undefined;
  portMapping: PortMapping | undefined = undefined;
  /** Settled when that is known: two measurements at once would take each other's ports. */
  classified: Promise<void> = Promise.resolve();
  roundTripMs: number | undefined = undefined;
  clampsSegments = false;
  readonly #gate: Gate;

  constructor(
    control: ControlChannel,
    message: Registered,
    credentials: Credentials,
    { self, bondKey }: Pick<Ground, "self" | "bondKey">,
    takesRelay: boolean,
    gate: Gate,
  ) {
    const { address } = splitEndpoint(control.remote);
    this.#gate = gate;
    this.control = control;
    this.self = self;
    this.bondKey = bondKey;
    this.introducer = control.remote;
    this.credentials = credentials;
    this.takesRelay = takesRelay;
    this.id = message.id;
    this.public = message.public;
    this.private = message.private;
    const { verify } = message;
    this.probes = message.probePorts
      .map((port) => formatEndpoint(address, port))
      .filter((endpoint) => this.mayVisit(endpoint));
    this.alternates = message.alternates.filter((endpoint) => this.mayVisit(endpoint));
    this.verify =
      verify && this.#isOtherFamily(verify.endpoint) && this.mayVisit(verify.endpoint) ? verify : undefined;
    this.probeToken = message.probeToken;
    this.port = this.portFor(control.port);
  }

  get mapped(): Endpoint | undefined {
    const state = this.portMapping?.state;
    return state?.is === "mapped" ? state.candidate : undefined;
  }

  /** Whether a router before us could open a port at the address that others see us at. */
  get canBeMapped(): boolean {
    return (
      splitEndpoint(this.public).family === 4 && scopeOf(this.public) === "global" && !isUntranslated(this)
    );
  }

  portFor(localPort: number): PunchPort {
    return new PunchPort(localPort, this.credentials);
  }

  mayVisit(endpoint: Endpoint): boolean {
    return this.#gate.admits(endpoint, this.introducer);
  }

  #isOtherFamily(endpoint: Endpoint): boolean {
    return splitEndpoint(endpoint).family !== splitEndpoint(this.introducer).family;
  }

  send(message: ToIntroducer): void {
    this.control.send(message);
  }

  /** How our NAT maps, by probes from the shared port, and what the last of them was seen as. */
  measure(): Promise<MappingBehaviour & { last: Endpoint }> {
    return this.port.measurements.alone(() => this.sample());
  }

  /** The same, for whoever has the shared port for measurements to himself. */
  async sample(): Promise<MappingBehaviour & { last: Endpoint }> {
    const control = { destination: this.control.remote, observed: this.public };
    const samples = await sampleMapping(this.port.port, control, this.probes, this.alternates);
    return { ...classifyMapping(samples, this.port.port), last: samples.at(-1)!.observed };
  }
}

type ControlState =
  | { is: "away" }
  /** On the way: until `registered` and the whole list have come. */
  | { is: "joining"; attempt: JoinAttempt; registration?: Registration }
  | { is: "registered"; registration: Registration }
  /** Coming back by ourselves. */
  | { is: "lost"; timer: NodeJS.Timeout };

/** One try to register; whatever ends it settles it, and continuations of an earlier one find that it is not theirs. */
interface JoinAttempt {
  resolve: () => void;
  reject: (error: UserError) => void;
  control?: ControlChannel;
  /** Set once we have said `register`: how long its answer may take. */
  timer?: NodeJS.Timeout;
  namesTried: number;
}

/** What went wrong on the way to the introducer, for the user. */
function joinError(error: unknown): UserError {
  if (error instanceof UserError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new UserError(`cannot reach the introducer: ${reason}`, { cause: error });
}

// --- the participant -------------------------------------------------------------------------------------

/**
 * One participant in one room. Importing and making it does nothing to the program: it prints nothing, takes no signal,
 * and lets the program end once it has quit. Every event goes to `onEvent`; every method rejects with a
 * {@link UserError}.
 *
 *   const alice = new Participant({ host: "introducer.example", name: "alice", room: "our secret words" });
 *   alice.onStream("my-game/1", (stream, { name }) => …);
 *   await alice.join();
 *   await alice.waitFor("bob");
 *   const link = await alice.connect("bob");
 *   const stream = link.open("my-game/1");
 *   await alice.quit();
 */
export class Participant {
  readonly options: ParticipantOptions;
  readonly #instance = crypto.getRandomValues(new Uint8Array(8)).toHex();
  readonly #identity: Identity;
  /** Being made while we connect. */
  readonly #roomToBe: Room | Promise<Room>;
  /** Another than in the options where that is taken; peers know us by it, so we come back with it. */
  #name: string;
  #room: Room | undefined;
  /** Sealed for the room and our name there; another key where that is another one. */
  #credentials: { name: string; sealed: Credentials } | undefined;
  /** By instance and fingerprint: ids change when a participant or the introducer comes back. */
  readonly #peers = new Map<string, RemotePeer>();
  readonly #surroundings: PeerSurroundings;
  readonly #takers = new Map<string, (stream: Stream, from: From) => void | Promise<void>>();
  /** For all peers together. */
  readonly #unasked = new UnaskedBudget();
  readonly #gate = new Gate();
  #state: ControlState = { is: "away" };
  /** Our public address in the latest registration. */
  #lastAddress: string | undefined;
  /** Settled when what earlier registrations had mapped is deleted. */
  #unmapped: Promise<unknown> = Promise.resolve();
  #hasBeenRegistered = false;
  #hasQuit = false;
  #rejoinMs = firstRejoinMs;
  /** What the introducer asked for as it said bye. */
  #retryInMs: number | undefined;
  #echoes: { resolve: (text: string) => void; reject: (error: Error) => void }[] = [];
  #snapshot: Peer[] = [];
  /** What handlers of streams throw, by peer. */
  readonly #thrown = new Gathering();
  #rehearsed: Promise<void> | undefined;
  #filtering: ((answer: Filtered | undefined) => void) | undefined;
  /** Resolved, and made anew, whenever we are registered or a peer is seen. */
  #arrival = Promise.withResolvers<void>();

  constructor(options: ParticipantOptions) {
    this.options = options;
    const warn = (message: string) => this.#emit({ event: "warning", message });
    this.#name = options.name;
    this.#identity = options.identity ?? identityOrOneForNow(warn);
    this.#roomToBe = typeof options.room === "string" ? roomOf(options.room) : options.room;
    const hasQuit = () => this.#hasQuit;
    this.#surroundings = {
      ground: () => this.#registration,
      get hasQuit() {
        return hasQuit();
      },
      emit: (event) => this.#emit(event),
      isVerbose: options.verbose ?? false,
      instance: publicInstance(this.#instance),
      keepMs: (options.keepMinutes ?? defaultKeepMinutes) * 60_000,
      stream: (peer, stream, purpose) => this.#stream(peer, stream, purpose),
      threw: (peer, error) => this.#threw(peer, "a stream", error),
      measureAnew: () => this.#measureAnew(),
      returning: (peer) => this.#endIfRestarted(peer),
      changed: (peer) => {
        this.#forgetIfGone(peer);
        if (peer.link) for (const other of this.#peers.values()) this.#endIfRestarted(other);
        this.#arrived();
      },
      admit: (peer) => this.#admit(peer),
    };
  }

  get hasQuit(): boolean {
    return this.#hasQuit;
  }

  get isRegistered(): boolean {
    return this.#state.is === "registered";
  }

  /** The list, in the order of the ids: at once, so where there may be thousands {@link listed} is better. */
  get rows(): PeerRow[] {
    return [...this.#peers.values()].map(({ row }) => row).sort((a, b) => a.id - b.id);
  }

  *names(): Generator<string, void> {
    for (const { name } of this.#peers.values()) yield name;
  }

  /** The rows, made by turns with all else. */
  async listed(): Promise<PeerRow[]> {
    const rows: PeerRow[] = [];
    await byTurns(this.#peers.values(), ({ row }) => void rows.push(row));
    return rows.sort((a, b) => a.id - b.id);
  }

  /** What the introducer knows of us, while we are registered. */
  get self(): Self | undefined {
    const registration = this.#registration;
    if (!registration) return undefined;
    const { id, public: observed, private: hosts, mapped, behaviour } = registration;
    const name = this.#name;
    const { fingerprint } = this.#identity;
    const room = this.#roomKind;
    const mapping = behaviour?.mapping ?? "unknown";
    const own = { id, name, room, public: observed, private: [...hosts], ...(mapped && { mapped }) };
    return { ...own, fingerprint, mapping };
  }

  /** How many links are up. */
  get linkCount(): number {
    return [...this.#peers.values()].filter(({ link }) => link).length;
  }

  /**
   * Registers with the introducer; resolves once the room's list is there. Once we have been registered, a try that
   * fails is followed by others, until `leave`.
   */
  async join(): Promise<void> {
    this.#mustNotHaveQuit();
    if (this.#state.is === "registered") throw new UserError("already registered with the introducer");
    if (this.#state.is === "joining") throw new UserError("already on the way to the introducer");
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    await this.#join();
  }

  /** Leaves the introducer; links stay. */
  leave(): void {
    if (this.#state.is === "away")
      throw new UserError("not registered with an introducer; `join` comes back");
    for (const peer of this.#peers.values()) peer.leaving();
    this.#part({ is: "away" }, "we left");
    this.#emit({ event: "introducer", state: "left", reason: "links stay up; `join` comes back" });
  }

  /** Ends all links in order, and leaves; for good. */
  async quit(): Promise<void> {
    this.#hasQuit = true;
    this.#arrived(); // whoever waits for somebody waits in vain
    await Promise.all([...this.#peers.values()].map((peer) => peer.quit()));
    if (this.#state.is !== "away") this.#part({ is: "away" }, "we quit");
    await this.#unmapped;
  }

  /**
   * Punches towards a peer that is in the room ({@link waitFor}), or joins the punch that is under way; resolves to the
   * link, also when the peer has asked for it.
   */
  async connect(word: string, isVerbose = false): Promise<Link> {
    this.#mustNotHaveQuit();
    const peer = this.#find(word);
    this.#refuseLookAlikes(word, peer);
    return peer.connect(isVerbose);
  }

  /** The link with a peer, while there is one. */
  linkWith(word: string): Link | undefined {
    return this.#find(word).link;
  }

  /**
   * From now on streams that peers open for `use` (the first argument of their `link.open`) are given to `take`, with who
   * the peer is; streams for what nobody takes are refused. A stream is a Node Duplex, which `Duplex.toWeb` turns into
   * Web streams. Its user ends his half by `end()`; `for await` over a Duplex destroys it at the end, with what was not
   * sent: `stream.iterator({ destroyOnReturn: false })` does not. What `take` throws or rejects with resets that stream
   * alone, and is told as an `error`.
   */
  onStream(use: string, take: (stream: Stream, from: From) => void | Promise<void>): void {
    this.#takers.set(use, take);
  }

  get #roomKind(): RoomKind {
    return this.#room?.words === defaultRoom ? "lobby" : "private";
  }

  /** Whether only those can be in the room who know its words. */
  get isPrivate(): boolean {
    return this.#room?.key !== undefined;
  }

  /** The link with whoever has that name or id, while it is open. */
  openLink(word: string): Link | undefined {
    return this.#named(word).find((peer) => peer.link?.isOpen)?.link;
  }

  /** Resolves to the link with that peer as soon as there is one; asks for none. */
  whenLinked(word: string, signal?: AbortSignal): Promise<Link> {
    return this.#until(() => this.openLink(word), signal);
  }

  /** What a peer that is there is called, by its id, too; any other word is a name. */
  nameOf(word: string): string {
    return (/^\d+$/.test(word) && this.#byId(Number(word))?.name) || word;
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(word: string, text: string): Promise<number> {
    return this.#find(word).say(text);
  }

  async ping(word: string): Promise<number> {
    return this.#find(word).ping();
  }

  /** Ends the link, or cancels the punch that is under way. */
  async disconnect(word: string): Promise<void> {
    return this.#find(word).disconnect();
  }

  /** Measures the round trip to the introducer. */
  async echo(text: string): Promise<void> {
    const registration = this.#registered();
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const startedAt = performance.now();
    const timer = setTimeout(() => reject(new UserError("the introducer did not answer")), answerTimeoutMs);
    this.#echoes.push({ resolve, reject });
    registration.send({ type: "echo", text });
    try {
      const answer = await promise;
      this.#emit({ event: "echo", text: answer, rttMs: performance.now() - startedAt });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Finds out what kind of NAT this host is behind; begins anew when we are registered anew meanwhile. */
  async nat(): Promise<NatReport> {
    let registration = this.#registered();
    for (;;) {
      const report = await this.#natOf(registration);
      if (this.#registration === registration) {
        this.#emit({ event: "nat", ...report });
        return report;
      }
      registration = await this.#nextRegistration();
    }
  }

  async #natOf(registration: Registration): Promise<NatReport> {
    const { port, probes, public: observed } = registration;
    if (!probes[0]) {
      throw new UserError("this introducer has no probe ports (--probe-ports): nothing can be measured");
    }
    await registration.classified;
    const isTranslated = !isUntranslated(registration);
    const mayHairpin = isTranslated && isAsFar(observed, registration.introducer);
    const [probe] = probes;
    const { behaviour, filtered, hairpinning } = await port.measurements.alone(async () => {
      const { last: _, ...behaviour } = await registration.sample();
      const filtered = await port.listenDuring(() => this.#connectBack(registration));
      const hairpinning = mayHairpin && (await testHairpinning(port.port, observed, probe));
      return { behaviour, filtered, hairpinning };
    });
    const { filtering, elsewhere } = filtered ?? {};
    await registration.portMapping?.answered;
    const { private: hosts, mapped, portMapping } = registration;
    const own = { mapping: behaviour.mapping, private: hosts, public: observed, ...(mapped && { mapped }) };
    return {
      ...behaviour,
      observed,
      scope: scopeOf(observed),
      isTranslated,
      ...(filtering && { filtering }),
      ...(elsewhere && { filteringElsewhere: elsewhere }),
      hairpinning,
      ipv6: hosts.some((one) => one.startsWith("[") && scopeOf(one) === "global"),
      ...(portMapping && { portMapping: portMapping.state }),
      expected: expectations(own, filtering),
    };
  }

  /** Asks the introducer to connect to us; undefined when it does not answer. */
  async #connectBack(registration: Registration): Promise<Filtered | undefined> {
    const { promise, resolve } = Promise.withResolvers<Filtered | undefined>();
    const timer = setTimeout(() => resolve(undefined), answerTimeoutMs);
    this.#filtering = resolve;
    registration.send({ type: "connect-back" });
    return promise.finally(() => {
      clearTimeout(timer);
      this.#filtering = undefined;
    });
  }

  /** Resolves once `word` names exactly one peer that is there; rejects while it names several. */
  async waitFor(word: string, signal?: AbortSignal): Promise<void> {
    const announce = setTimeout(
      () => this.#emit({ event: "waiting", for: "peer", text: `waiting for ${word} to join` }),
      announceAfterMs,
    );
    const only = () => {
      const named = this.#named(word).filter(({ isPresent }) => isPresent);
      if (named.length > 1) throw ambiguous(word, named);
      if (named[0]) this.#refuseLookAlikes(word, named[0]);
      return named[0];
    };
    try {
      await this.#until(only, signal);
    } finally {
      clearTimeout(announce);
    }
  }

  /** What is looked for, whenever something has changed; rejects when we have quit, or the signal says so. */
  async #until<T>(look: () => T | undefined, signal: AbortSignal | undefined): Promise<T> {
    const wake = () => this.#arrived();
    signal?.addEventListener("abort", wake);
    try {
      for (;;) {
        signal?.throwIfAborted();
        this.#mustNotHaveQuit();
        const found = look();
        if (found !== undefined) return found;
        await this.#arrival.promise;
      }
    } finally {
      signal?.removeEventListener("abort", wake);
    }
  }

  // --- registration --------------------------------------------------------------------------------------

  get #registration(): Registration | undefined {
    return this.#state.is === "registered" || this.#state.is === "joining"
      ? this.#state.registration
      : undefined;
  }

  #mustNotHaveQuit(): void {
    if (this.#hasQuit) throw new UserError("this participant has quit");
  }

  #registered(): Registration {
    if (this.#state.is === "registered") return this.#state.registration;
    throw new UserError("not registered with the introducer; `join` first");
  }

  /** The one after a loss; rejects when nobody comes back. */
  async #nextRegistration(): Promise<Registration> {
    const giveUpAt = performance.now() + answerTimeoutMs;
    const timer = setTimeout(() => this.#arrived(), answerTimeoutMs);
    try {
      while (this.#state.is === "lost" || this.#state.is === "joining") {
        if (performance.now() >= giveUpAt) break;
        await this.#arrival.promise;
      }
    } finally {
      clearTimeout(timer);
    }
    return this.#registered();
  }

  #join(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const attempt: JoinAttempt = { resolve, reject, namesTried: 1 };
    this.#state = { is: "joining", attempt };
    this.#retryInMs = undefined;
    const { host, port = defaultPort } = this.options;
    const text = `connecting to ${formatHostPort(host, port)}`;
    const announce = setTimeout(
      () => this.#emit({ event: "waiting", for: "introducer", text }),
      announceAfterMs,
    );
    void this.#register(attempt).catch((error: unknown) => this.#joinFailed(attempt, joinError(error)));
    return promise.finally(() => {
      clearTimeout(announce);
      clearTimeout(attempt.timer);
    });
  }

  async #register(attempt: JoinAttempt): Promise<void> {
    const { host, port = defaultPort } = this.options;
    const roomToBe = Promise.resolve(this.#roomToBe);
    roomToBe.catch(() => {}); // it is waited for below
    const control = await ControlChannel.open(host, port, otherStartedAs("introducer"));
    if (!this.#isCurrent(attempt)) return control.close("no longer wanted");
    attempt.control = control;
    // The words are still being made a room of, and the introducer may say that it has no place for us, or go.
    control.onMessage = (message) => this.#receive(control, message);
    control.onClose = (reason) => this.#closed(control, reason);
    const room = await roomToBe;
    if (!this.#isCurrent(attempt)) return;
    const late = new UserError("the introducer did not register us: it did not answer `register`");
    attempt.timer = setTimeout(() => this.#joinFailed(attempt, late), registerTimeoutMs);
    this.#room = room;
    this.#introduceOurselves(control, room);
  }

  #introduceOurselves(control: ControlChannel, room: Room): void {
    const { direct } = this.options;
    const overLoopback = scopeOf(control.remote) === "loopback";
    const peers = [...this.#peers.values()];
    const { fingerprint, name } = this.#member;
    control.send({
      type: "register",
      version: protocolVersion,
      name,
      room: room.id,
      instance: this.#instance,
      fingerprint,
      ...(room.key && { proof: prove(room.key, this.#member) }),
      ...(direct && { direct }),
      private: hostCandidates(control.localAddress, control.port, overLoopback),
      links: peers.flatMap(({ instance, link }) => (link ? [{ peer: instance, route: link.route }] : [])),
    });
  }

  /** Ourselves, as others shall believe it. */
  get #member(): Member {
    const { fingerprint } = this.#identity;
    return { fingerprint, name: this.#name, instance: this.#surroundings.instance };
  }

  #sealedCredentials(): Credentials {
    const self = this.#member;
    if (this.#credentials?.name !== self.name) {
      const sealed = new Credentials(this.#identity, { key: this.#room!.bondKey, self });
      this.#credentials = { name: self.name, sealed };
    }
    return this.#credentials.sealed;
  }

  #isCurrent(attempt: JoinAttempt): boolean {
    return this.#state.is === "joining" && this.#state.attempt === attempt;
  }

  #joinFailed(attempt: JoinAttempt, error: UserError): void {
    if (!this.#isCurrent(attempt)) return;
    this.#part(this.#hasBeenRegistered ? "come back" : { is: "away" }, error.message, error);
  }

  #closed(control: ControlChannel, reason: string): void {
    if (this.#state.is === "joining" && this.#state.attempt.control === control) {
      this.#joinFailed(this.#state.attempt, new UserError(`the introducer did not register us: ${reason}`));
    } else if (this.#state.is === "registered" && this.#state.registration.control === control) {
      if (control.isBroken) this.#networkChanged(this.#state.registration);
      this.#part("come back", reason);
    }
  }

  /**
   * The registration, or the way to it, is over, and `next` is what follows. Whoever waits for something of it is
   * told the reason.
   */
  #part(next: ControlState | "come back", reason: string, error = new UserError(reason)): void {
    const before = this.#state;
    const wasRegistered = before.is === "registered";
    if (before.is === "lost") clearTimeout(before.timer);
    this.#state =
      next === "come back" ? this.#comeBack(wasRegistered ? "lost" : "unreachable", reason) : next;
    if (before.is === "joining") {
      before.attempt.control?.close(reason);
      before.attempt.reject(error);
    } else if (before.is === "registered") {
      const { control, portMapping } = before.registration;
      control.close(reason);
      this.#unmapped = Promise.all([this.#unmapped, portMapping?.close()]);
    }
    for (const { reject } of this.#echoes.splice(0)) reject(new UserError(`no answer: ${reason}`));
    this.#filtering?.(undefined);
    for (const peer of this.#peers.values()) peer.introducerLost(reason);
    this.#arrived();
  }

  /** Tries again by itself. */
  #comeBack(state: "lost" | "unreachable", reason: string): ControlState {
    // No introducer has us back sooner than we would come by ourselves: each is a registration for it and for the room.
    const pauseMs = Math.round(this.#rejoinMs * (0.5 + Math.random() / 2));
    const retryInMs = Math.max(this.#retryInMs ?? 0, pauseMs);
    this.#retryInMs = undefined;
    this.#rejoinMs = Math.min(maxRejoinMs, this.#rejoinMs * 2);
    this.#emit({ event: "introducer", state, reason, retryInMs });
    const timer = setTimeout(() => {
      // A failure has been told, as `unreachable`, by then.
      this.#join().catch((error: unknown) => {
        if (!(error instanceof UserError)) throw error;
      });
    }, retryInMs);
    return { is: "lost", timer };
  }

  // --- what the introducer says --------------------------------------------------------------------------

  #receive(control: ControlChannel, message: ToParticipant): void {
    const isEarly = this.#state.is === "joining" && this.#state.attempt.timer === undefined;
    if (isEarly && message.type !== "refused" && message.type !== "bye")
      return control.close(`it said \`${message.type}\` before we had registered`);
    switch (message.type) {
      case "registered":
        return this.#beginRegistration(control, message);
      case "refused":
        return this.#refused(message);
      case "bye":
        this.#retryInMs = message.retryInMs;
        return control.close(message.reason);
      case "ping":
        return control.send({ type: "pong", id: message.id });
      case "observed":
      case "relaying":
        return; // only ever sent on other connections
      default:
        if (this.#registration?.control === control) this.#receiveRegistered(this.#registration, message);
    }
  }

  #receiveRegistered(
    registration: Registration,
    message: Exclude<
      ToParticipant,
      { type: "registered" | "refused" | "bye" | "ping" | "observed" | "relaying" }
    >,
  ): void {
    switch (message.type) {
      case "peers":
        return this.#list(registration, message.peers, message.more);
      case "joined":
        return this.#joined(message.peer);
      case "updated":
        return this.#updated(registration, message);
      case "left":
        return this.#left(message.id);
      case "measure":
        return this.#remember(message.peer)?.measure(message);
      case "punch":
        return this.#remember(message.peer)?.punch(message);
      case "relay":
        return this.#remember(message.peer)?.relay(message);
      case "failed":
        return this.#byId(message.peer)?.failed(message);
      case "filtering":
        return this.#filtering?.(message);
      case "notice":
        return this.#emit({ event: "notice", text: message.text });
      case "echo":
        return this.#echoes.shift()?.resolve(message.text);
    }
  }

  #beginRegistration(control: ControlChannel, message: Registered): void {
    if (this.#state.is !== "joining" || this.#state.attempt.control !== control) return;
    if (this.#state.registration) return control.close("it registered us twice");
    // Our user would take it for the name that others see, and tell them.
    if (message.name !== this.#name)
      return control.close(`it calls us ${printable(message.name)}, not ${printable(this.#name)}`);
    const ours = { self: this.#member, bondKey: this.#room!.bondKey };
    const [credentials, takesRelay] = [this.#sealedCredentials(), !this.options.direct];
    this.#state.registration = new Registration(control, message, credentials, ours, takesRelay, this.#gate);
    this.#snapshot = [];
    const { id, name, public: observed, private: candidates } = message;
    const room = this.#roomKind;
    this.#emit({ event: "registered", id, name, room, public: observed, private: candidates });
  }

  /** A part of the list; with the last one we are registered. */
  #list(registration: Registration, peers: Peer[], more: boolean): void {
    // Changes are told one by one; each whole list would be an event of all that is known, however short its line.
    if (this.#state.is !== "joining") return registration.control.close("it listed the room twice");
    this.#snapshot.push(...peers);
    if (this.#snapshot.length > maxPeers)
      return registration.control.close("it lists more peers than a room can have");
    if (more) return;
    for (const peer of this.#snapshot.splice(0)) this.#remember(peer);
    for (const [key, peer] of this.#peers) if (!peer.isPresent && peer.isIdle) this.#peers.delete(key);
    const { address } = splitEndpoint(registration.public);
    const hasMoved = this.#lastAddress !== undefined && this.#lastAddress !== address;
    this.#lastAddress = address;
    for (const peer of this.#peers.values()) peer.groundChanged(hasMoved);
    this.#emit({ event: "peers", peers: this.rows });
    const { attempt } = this.#state;
    this.#state = { is: "registered", registration };
    this.#hasBeenRegistered = true;
    registration.classified = this.#classified(registration, firstRemeasureMs);
    this.#mapPort(registration);
    this.#watchAddresses(registration);
    this.#onceLasting(registration);
    attempt.resolve();
    this.#arrived();
  }

  /** That is nothing that the introducer wants us to wait for. */
  #networkChanged({ since }: Registration): void {
    if (performance.now() - since >= briefMs) this.#rejoinMs = firstRejoinMs;
  }

  #onceLasting(registration: Registration): void {
    const timer = setTimeout(() => {
      if (this.#registration === registration) this.#rejoinMs = firstRejoinMs;
    }, lastingMs);
    timer.unref();
  }

  #joined(peer: Peer): void {
    const known = this.#remember(peer);
    if (!known) return;
    for (const other of this.#peers.values()) this.#endIfRestarted(other);
    const { id, name, private: hosts, public: observed } = peer;
    this.#emit({ event: "joined", peer: id, name, private: hosts, public: observed });
  }

  /** Our own row changes too: it says how far the introducer is. */
  #updated(registration: Registration, { id, ...change }: ToParticipant & { type: "updated" }): void {
    if (id === registration.id) {
      if (change.roundTripMs !== undefined) registration.roundTripMs = change.roundTripMs;
      return;
    }
    const peer = this.#byId(id);
    if (!peer) return;
    peer.change(change);
    const { name, public: observed, mapped, mapping, roundTripMs } = peer.row;
    const measured = { ...(mapped && { mapped }), ...(roundTripMs !== undefined && { roundTripMs }) };
    this.#emit({ event: "updated", peer: id, name, public: observed, mapping, ...measured });
  }

  /**
   * Stores the newest that is known of a peer; undefined when the introducer names too many. Whoever can't prove to be
   * of the room is another one than who can.
   */
  #remember(peer: Peer): RemotePeer | undefined {
    // What we have shown ourselves would be believed.
    if (peer.instance === this.#surroundings.instance) return undefined;
    const doubt = distrust(this.#room!, peer);
    const key = JSON.stringify([peer.instance, peer.fingerprint, doubt]);
    let known = this.#peers.get(key);
    if (!known) {
      if (this.#peers.size >= maxPeers)
        return void this.#registration?.control.close("it names more peers than a room can have");
      known = new RemotePeer(peer, this.#surroundings, doubt);
      this.#peers.set(key, known);
    }
    known.seen(peer);
    this.#arrived();
    return known;
  }

  /**
   * A link without a channel whose peer is gone, while another program of the same name and certificate is here: it was
   * started anew, if that one proves to be what it seems, and the new one knows nothing of the link.
   */
  #endIfRestarted(peer: RemotePeer): void {
    if (!peer.isReturning || peer.isPresent) return;
    const isSuccessor = (other: RemotePeer) =>
      other !== peer && other.isPresent && other.fingerprint === peer.fingerprint && other.name === peer.name;
    const successors = [...this.#peers.values()].filter(isSuccessor);
    if (successors.some(({ link }) => link)) return peer.restarted();
    for (const successor of successors) successor.askAfter(peer.link!);
  }

  #admit({ instance, row }: RemotePeer): Unasked | undefined {
    return this.#hasQuit ? undefined : this.#unasked.admit(instance, splitEndpoint(row.public).address);
  }

  #stream(peer: RemotePeer, stream: Stream, purpose: Purpose): void {
    if (this.#hasQuit) return stream.reset("it has quit", resetCodes.refused);
    const use = String(purpose["use"]).slice(0, maxUseLength);
    const take = this.#takers.get(use);
    if (!take) return stream.reset(`nobody takes streams for ${printable(use)} here`, resetCodes.refused);
    const { id, name, fingerprint } = peer;
    const failed = (error: unknown) => {
      stream.reset("it failed at the peer", resetCodes.failed);
      this.#threw(peer, use, error);
    };
    // What takes it may be asynchronous, whatever its type says.
    const taking = async () => take(stream, { id, name, fingerprint, purpose });
    void taking().catch(failed);
  }

  /** What code that was given a stream has thrown: the link has nothing to do with it. */
  #threw({ name }: RemotePeer, what: string, error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    const message = `${printable(what)} of ${printable(name)} failed here: ${text}`;
    this.#thrown.add(name, (more) =>
      this.#emit({
        event: "error",
        message: more > 0 ? `${message}; and ${count(more, "other")} like it` : message,
      }),
    );
  }

  #arrived(): void {
    this.#arrival.resolve();
    this.#arrival = Promise.withResolvers();
  }

  #left(id: number): void {
    const peer = this.#byId(id);
    if (!peer) return;
    this.#emit({ event: "left", peer: id, name: peer.name });
    peer.left();
    this.#forgetIfGone(peer);
  }

  /** While we are registered, who is not listed is gone; a link with it may last. */
  #forgetIfGone(peer: RemotePeer): void {
    if (this.#state.is !== "registered" || peer.isPresent || !peer.isIdle) return;
    for (const [key, one] of this.#peers) if (one === peer) this.#peers.delete(key);
  }

  #refused({ request, message, code, peer, name }: ToParticipant & { type: "refused" }): void {
    const text = `the introducer refused${request ? ` \`${request}\`` : ""}: ${message}`;
    const hasRegistered = this.#state.is === "joining" && this.#state.attempt.timer !== undefined;
    if (this.#state.is === "joining" && hasRegistered && code === "name-taken" && name !== undefined)
      return this.#renamed(this.#state.attempt, name, text);
    if (this.#state.is === "joining") return this.#joinFailed(this.#state.attempt, new UserError(text));
    if (request === "echo") return this.#echoes.shift()?.reject(new UserError(text));
    if (request === "connect-back") return this.#filtering?.(undefined);
    if (request === "connect" && peer !== undefined) return this.#byId(peer)?.refused(message);
    // A peer that left while our report was on its way: there is nobody to tell.
    if (code !== "unknown-peer") this.#emit({ event: "error", message: text });
  }

  /** The name that we wanted is somebody else's: ours is another, and we register by it at once. */
  #renamed(attempt: JoinAttempt, name: string, refusal: string): void {
    const isBearable = isNumberedName(name, this.options.name) || isNumberedName(name, this.#name);
    if (!isBearable || ++attempt.namesTried > maxNamesTried)
      return this.#joinFailed(attempt, new UserError(refusal));
    const message = `${this.#name} is somebody else in this room: others call you ${name} there`;
    this.#emit({ event: "warning", message });
    this.#name = name;
    this.#introduceOurselves(attempt.control!, this.#room!);
  }

  // --- what we find out about ourselves ------------------------------------------------------------------

  /** Registers anew when the addresses change that others can use: the old endpoints lead nowhere. */
  #watchAddresses(registration: Registration): void {
    const usable = () => hostCandidates(undefined, 1, false).sort().join();
    const before = usable();
    const timer = setInterval(() => {
      const isCurrent = this.#registration === registration;
      if (isCurrent && usable() === before) return;
      clearInterval(timer);
      if (!isCurrent) return;
      this.#networkChanged(registration);
      this.#part("come back", "this host's addresses changed");
    }, addressWatchMs);
    timer.unref();
  }

  /** Never rejects: it is nothing that could end a registration, let alone the program. */
  async #classified(registration: Registration, againInMs: number): Promise<void> {
    try {
      await this.#classify(registration, againInMs);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      this.#emit({ event: "warning", message: `how our NAT maps could not be measured: ${text}` });
    }
  }

  /** Learns how our NAT maps, and tells; later again while the introducer's probe ports do not answer. */
  async #classify(registration: Registration, againInMs: number): Promise<void> {
    if (registration.probes.length === 0) return;
    const measuring = registration.measure();
    measuring.catch(() => {}); // it is awaited below, maybe not before it fails
    if (registration.verify) {
      const { endpoint, token } = registration.verify;
      void verify(registration.port.port, endpoint, token).catch(() => {}); // whether it came through, nobody waits for
    }
    // While our probes are on their way; nobody is introduced before both sides are ready.
    this.#rehearsed ??= rehearse(registration.credentials, this.#member).catch(() => {});
    await this.#rehearsed;
    rehearseCandidates(registration);
    const { last, ...behaviour } = await measuring;
    if (this.#registration !== registration) return;
    if (behaviour.mapping === "unknown") {
      const again = () =>
        this.#registration === registration && void this.#remeasure(registration, againInMs);
      setTimeout(again, againInMs).unref();
    }
    const isChanged =
      registration.behaviour !== undefined && registration.behaviour.mapping !== behaviour.mapping;
    registration.behaviour = behaviour;
    if (isChanged) for (const peer of this.#peers.values()) peer.groundChanged(false);
    const { mapping, step } = behaviour;
    const prediction = mapping === "sequential" ? { endpoint: last, step } : undefined;
    registration.send({ type: "mapping", mapping, ...(prediction && { prediction }) });
    this.#emit({ event: "mapping", mapping, step });
  }

  /** Asks the router for a port, in the background; links that could not be direct may become so. */
  #mapPort(registration: Registration): void {
    if (this.options.portMapping === false || !registration.canBeMapped) return;
    let told: Endpoint | undefined;
    registration.portMapping = new PortMapping({
      internalPort: registration.port.port,
      observed: registration.public,
      onChange: (state) => {
        this.#emit({ event: "port-mapping", state });
        const { mapped } = registration;
        if (mapped === told) return;
        told = mapped;
        registration.send({ type: "mapped", ...(mapped && { endpoint: mapped }) });
        if (mapped) for (const peer of this.#peers.values()) peer.groundChanged(false);
      },
    });
  }

  async #measureAnew(): Promise<void> {
    const registration = this.#registration;
    if (!registration) return;
    await registration.classified;
    if (this.#registration === registration) this.#remeasure(registration, firstRemeasureMs / 2);
    await registration.classified;
  }

  #remeasure(registration: Registration, beforeMs: number): void {
    registration.classified = this.#classified(registration, Math.min(2 * beforeMs, maxRemeasureMs));
  }

  // --- looking things up ---------------------------------------------------------------------------------

  #byId(id: number): RemotePeer | undefined {
    return [...this.#peers.values()].find((peer) => peer.isPresent && peer.id === id);
  }

  /** Ids name those who are in the room; who is not may have lost its id to somebody else. */
  #named(word: string): RemotePeer[] {
    const byId = /^\d+$/.test(word) ? this.#byId(Number(word)) : undefined;
    return byId ? [byId] : [...this.#peers.values()].filter(({ name }) => name === word);
  }

  /** Whoever was meant by a name, if that is not the id, must not be taken for another one who is there. */
  #refuseLookAlikes(word: string, found: RemotePeer): void {
    if (found.name !== word) return;
    const looks = nameSkeleton(word);
    const alike = [...this.#peers.values()].filter(
      (peer) => peer !== found && peer.isPresent && nameSkeleton(peer.name) === looks,
    );
    if (alike.length > 0) throw ambiguous(word, [found, ...alike]);
  }
  #find(word: string): RemotePeer {
    const named = this.#named(word);
    // Of several, the one that is there is meant.
    const [found, ...others] = named.length > 1 ? named.filter(({ isPresent }) => isPresent) : named;
    if (found && others.length === 0) return found;
    if (named.length > 0) throw ambiguous(word, named);
    const own = String(this.#registration?.id);
    if (word === own || word === this.#name) throw new UserError("that is yourself; `list` shows the others");
    throw new UserError(`nobody here is called ${printable(word)}; \`list\` shows who is`);
  }

  /** What `onEvent` throws must not stop us in the middle of things; it is told, once. */
  #emit(event: ParticipantEvent): void {
    const { onEvent } = this.options;
    try {
      onEvent?.(event);
    } catch (error) {
      const text = error instanceof Error ? error.message : String(error);
      try {
        onEvent?.({ event: "error", message: `onEvent threw at \`${event.event}\`: ${text}` });
      } catch {
        // It takes none.
      }
    }
  }
}

function ambiguous(word: string, named: RemotePeer[]): UserError {
  const ids = named.filter(({ isPresent }) => isPresent).map(({ id }) => id);
  const next = ids.length > 0 ? `use one of the ids ${ids.join(", ")}` : "none of them is in the room";
  return new UserError(`${printable(word)} is ambiguous: ${next}`);
}

function formatHostPort(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
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
  const isOpen = (isUntranslated(own) && filtering === "let-in") || own.mapped !== undefined;
  const firstWay = (peer: Situation) => (isOpen ? "direct" : (planRounds(own, peer)[0] ?? "none"));
  return kinds.map(([peer, situation]) => ({ peer, way: firstWay(situation) }));
}

// --- rendering -------------------------------------------------------------------------------------------

const stateLabels: Record<PeerRow["state"], (c: Colors) => (text: string) => string> = {
  linked: (c) => c.green,
  returning: (c) => c.yellow,
  untrusted: (c) => c.red,
  punching: (c) => c.yellow,
  agreeing: (c) => c.yellow,
  known: (c) => c.dim,
  failed: (c) => c.red,
};
const stateMarks: Record<PeerRow["state"], string> = {
  linked: "● linked",
  returning: "◌ coming back",
  punching: "◌ punching",
  agreeing: "◌ agreeing",
  known: "○ known",
  failed: "✗ failed",
  untrusted: "✗ untrusted",
};

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

/**
 * The list in `columns` columns, of which it needs 80, in pieces, made by turns with all else; Infinity, for a pipe, cuts
 * and wraps nothing.
 */
export async function renderList(rows: readonly PeerRow[], columns: number, c: Colors): Promise<string[]> {
  if (rows.length === 0)
    return ["Nobody else is in the room. Others join with the same introducer and --room."];
  const isWide = columns >= wideColumns;
  const cells = (row: PeerRow): Cell[] => [
    [{ text: stateMarks[row.state], paint: stateLabels[row.state](c) }],
    [row.present ? String(row.id) : "-"],
    [{ text: printable(row.name), paint: c.bold }],
    ...(isWide ? wideCells(row, columns, c) : narrowCells(row, c)),
  ];
  const pieces = await renderRows(isWide ? wideList : narrowList, rows, cells, columns);
  return [...pieces, total(rows)];
}

function narrowCells(row: PeerRow, c: Colors): Cell[] {
  const [first = "none", ...others] = row.private;
  const more = others.length > 0 ? [`+${others.length} more`] : [];
  const hosts = [first, ...more].map((text) => ({ text, paint: c.dim }));
  const path = row.state === "linked" ? [`${row.local}`, `→ ${row.remote}`] : [];
  const bytes = row.route === undefined ? [] : [traffic(row)];
  return [
    [...hosts, row.public],
    [linkPart(row, [linkWords(row)], c), ...path, ...bytes, ...lastSeen(row)],
  ];
}

function wideCells(row: PeerRow, columns: number, c: Colors): Cell[] {
  const [first = "none", ...others] = row.private;
  const more = others.length > 0 ? ` +${others.length} more` : "";
  const hosts = columns === Infinity ? row.private.join(", ") || first : `${first}${more}`;
  const isLinked = row.state === "linked";
  const words = [linkWords(row), ...lastSeen(row)];
  return [
    [{ text: hosts, paint: c.dim }],
    [row.public],
    [linkPart(row, words, c)],
    [isLinked ? `${row.local}` : ""],
    [isLinked ? `→ ${row.remote}` : ""],
    [row.route === undefined ? "" : traffic(row)],
  ];
}

/** What goes by the introducer's relay stands out. */
function linkPart({ route }: PeerRow, words: string[], c: Colors): Part {
  const text = words.filter(Boolean).join(" ");
  return route === "relay" ? { text, paint: c.yellow } : { text };
}

function linkWords(row: PeerRow): string {
  if (row.state === "failed") return row.reason ?? "";
  if (row.state === "untrusted") return "proof is wrong";
  if (row.state === "returning") return `was ${row.route}, ${age(row.ageMs ?? 0)}`;
  if (row.state !== "linked") return "";
  const rtt = row.rttMs === undefined ? "" : ` ${ms(row.rttMs)}`;
  return `${row.route}${rtt} ${age(row.ageMs ?? 0)}`;
}

/** `list -v`: what the table has no room for, likewise. */
export async function renderDetails(rows: readonly PeerRow[], c: Colors): Promise<string[]> {
  const pieces: string[] = [];
  await byTurns(rows, (row) => void pieces.push(pieces.length > 0 ? "\n" : "", renderDetail(row, c)));
  return pieces;
}

function renderDetail(row: PeerRow, c: Colors): string {
  const toIntroducer = row.roundTripMs === undefined ? "" : `, ${row.roundTripMs} ms from the introducer`;
  const facts: [string, string | undefined][] = [
    ["distrust", row.distrust],
    ["fingerprint", row.fingerprint],
    ["mapping", `${row.mapping}${toIntroducer}`],
    ["mapped port", row.mapped],
    ["private", row.private.join(", ") || "none"],
    ["carriers", row.carriers === undefined ? undefined : `${row.carriers} so far`],
    ["bytes", row.route === undefined ? undefined : traffic(row)],
    ["round trip", row.rttMs === undefined ? undefined : ms(row.rttMs)],
  ];
  const lines = facts.flatMap(([what, value]) =>
    value === undefined ? [] : [`  ${what.padEnd(12)} ${printable(value)}`],
  );
  return [`${c.bold(printable(row.name))} (${row.present ? row.id : "not in the room"})`, ...lines].join(
    "\n",
  );
}

/** Of a peer that the introducer does not list now. */
function lastSeen({ present, lastSeenAt }: PeerRow): string[] {
  return present ? [] : [`(last seen ${age(Date.now() - lastSeenAt)} ago)`];
}

function traffic(row: PeerRow): string {
  return `in ${bytes(row.bytesIn ?? 0)} out ${bytes(row.bytesOut ?? 0)}`;
}

/** `3 peers: 2 linked, 1 known`. */
function total(rows: readonly PeerRow[]): string {
  const states = Object.entries(Object.groupBy(rows, ({ state }) => state));
  return `${count(rows.length, "peer")}: ${states.map(([state, all]) => `${all.length} ${state}`).join(", ")}`;
}

/** `512 B`, `1.5 kB`, `2.0 MB`. */
function bytes(count: number): string {
  if (count < 1000) return `${Math.round(count)} B`;
  const [value, unit] =
    count < 1e6 ? [count / 1e3, "kB"] : count < 1e9 ? [count / 1e6, "MB"] : [count / 1e9, "GB"];
  return `${value.toFixed(1)} ${unit}`;
}

const ms = (value: number) => `${value.toFixed(1)} ms`;

/** What an event says to a person; undefined for what only programs want. */
export function tell(event: ParticipantEvent, c: Colors): string | undefined {
  switch (event.event) {
    case "registered":
      return (
        `${c.green("registered")} as ${c.bold(printable(event.name))} (${event.id}) in ${roomWords(event.room)}\n` +
        `  private ${event.private.join(", ") || "none"}\n  public  ${event.public}`
      );
    case "peers":
      return tellPeers(event.peers);
    case "mapping":
      return `our mapping: ${event.mapping}${event.step === 0 ? "" : `, step ${event.step}`}`;
    case "port-mapping":
      return event.state.is === "mapped" ? `our router: ${portMappingWords(event.state)}` : undefined;
    case "nat": // shown as a result
    case "updated":
      return undefined;
    case "waiting":
      return `${printable(event.text)} …`;
    case "echo":
      return `the introducer answered after ${ms(event.rttMs)}${event.text && `: ${printable(event.text)}`}`;
    case "notice":
      return `${c.magenta("[introducer]")} ${printable(event.text)}`;
    case "introducer": {
      const next =
        event.retryInMs === undefined ? "" : `; trying again in ${(event.retryInMs / 1000).toFixed(1)} s`;
      return `${c.yellow(`introducer ${event.state}`)}: ${printable(event.reason)}${next}`;
    }
    case "warning":
      return `${c.yellow("warning")}: ${printable(event.message)}`;
    case "error":
      return `${c.red("error")}: ${printable(event.message)}`;
    case "forwarding":
    case "forward-refused":
    case "offered":
    case "transferring":
    case "transferred":
    case "transfer-failed":
      return tellUse(event, c);
    default:
      return tellPeer(event, c);
  }
}

/** What happens to a peer, or between us. */
function tellPeer(event: PeerEvent | EventOf<"joined" | "left">, c: Colors): string {
  const who = `${c.bold(printable(event.name))} (${event.peer ?? "not in the room"})`;
  switch (event.event) {
    case "joined":
      return `${who} joined from ${event.public}`;
    case "left":
      return `${who} left`;
    case "punching":
      return `${c.yellow("punching")} towards ${who}, ${event.role}, ${event.way}, round ${event.round}`;
    case "attempt":
      return c.dim(
        `  ${event.atMs.toFixed(1).padStart(8)} ms  :${event.localPort} → ${event.remote} ${event.route}: ${printable(event.outcome)}`,
      );
    case "linked":
      return `${c.green("linked")} with ${who} by ${routeWords(event.route, c)}: ${event.local} → ${event.remote}, ${ms(event.elapsedMs)}`;
    case "failed":
      return `${c.red("failed")} to link with ${who}: ${failureReasons[event.reason]} (${event.reason})\n  ${c.dim(`${printable(event.detail)}${natMayTell.has(event.reason) ? "; `nat` tells what kind of NAT you are behind" : ""}`)}`;
    case "unlinked":
      return `${c.yellow("unlinked")} from ${who}: ${unlinkReasons[event.reason]}${event.detail && ` (${printable(event.detail)})`}`;
    case "broken":
      return `${c.yellow("broken")}: the connection with ${who} (${printable(event.reason)}); what is under way waits`;
    case "moved": {
      const gap = event.gapMs < 1 ? "without a gap" : `after ${ms(event.gapMs)}`;
      return `${c.green("moved")} with ${who} to ${routeWords(event.route, c)}: ${event.local} → ${event.remote}, ${gap}`;
    }
    case "said":
      return `${c.cyan(`<${printable(event.name)}>`)} ${printable(event.text)}`;
    case "sent":
      return `${who} has it after ${ms(event.rttMs)}`;
    case "pong":
      return `${who} answered after ${ms(event.rttMs)}`;
  }
}

/** What a link is used for. */
function tellUse(event: UseEvent, c: Colors): string {
  const name = c.bold(printable(event.name));
  switch (event.event) {
    case "forwarding":
      return `forwarding ${event.listen} → ${name} → ${event.target}`;
    case "forward-refused": {
      const whose = event.by === "us" ? `${name} may not reach` : `${name} does not let us reach`;
      const more = event.more === undefined ? "" : `; and ${count(event.more, "other")} like it`;
      return `${c.yellow("refused")}: ${whose} ${printable(event.target)}: ${printable(event.reason)}${more}`;
    }
    case "offered": {
      const head = `${name} offers ${offerWords(event)}: accept ${event.offer} | refuse ${event.offer}`;
      return [head, ...listingLines(event, c)].join("\n");
    }
    case "transferring": {
      if (event.direction === "sending")
        return `sending ${printable(event.what)}, ${bytes(event.bytes)}, to ${name}`;
      return [`receiving ${offerWords(event)}, from ${name}`, ...listingLines(event, c)].join("\n");
    }
    case "transferred":
      return tellTransferred(event, c);
    case "transfer-failed":
      return `${c.red("failed")} ${event.direction} ${printable(event.what)}: ${printable(event.reason)}`;
  }
}

function offerWords({ what, files, bytes: total }: { what: string; files: number; bytes: number }): string {
  const many = files === 1 ? "" : ` (${files} files)`;
  return `${printable(what)}${many}, ${bytes(total)}`;
}

/** What an offer lists: it is seen before it is accepted. */
function listingLines(event: UseEvent & { event: "offered" | "transferring" }, c: Colors): string[] {
  const { what, storedAs, paths = [], more = 0, odd = [], moreOdd = 0 } = event;
  const isAlone = more === 0 && paths.length === 1 && paths[0] === what;
  return [
    ...(isAlone ? [] : paths.map((path) => `  ${printable(path)}`)),
    ...(more > 0 ? [`  and ${more} more`] : []),
    ...odd.map(({ path, why }) => `  ${c.yellow("odd")}: ${printable(path)}: ${why}`),
    ...(moreOdd > 0 ? [`  ${c.yellow("odd")}: and ${moreOdd} more`] : []),
    ...(storedAs !== undefined && storedAs !== what ? [`  stored as ${printable(storedAs)}`] : []),
  ];
}

const routeWords = (route: Route, c: Colors) => (route === "relay" ? c.yellow(route) : route);

const natMayTell: ReadonlySet<FailureReason> = new Set([
  "no-candidate-answered",
  "both-mappings-random",
  "timed-out",
] as const);

function tellTransferred(event: ParticipantEvent & { event: "transferred" }, c: Colors): string {
  const { direction, what, storedAs = what, files, failed, failures, elapsedMs } = event;
  const rate = `${bytes(event.bytes)} in ${(elapsedMs / 1000).toFixed(1)} s, ${bytes((event.bytes / elapsedMs) * 1000)}/s`;
  const done = `${c.green(direction === "sending" ? "sent" : "received")} ${printable(what)}${storedAs === what ? "" : ` as ${printable(storedAs)}`}: ${count(files, "file")}, ${rate}, SHA-256 compared`;
  if (failed === 0) return done;
  const lines = failures.slice(0, 10).map(({ path, reason }) => `  ${printable(path)}: ${printable(reason)}`);
  return [`${done}; ${c.red(`${count(failed, "file")} failed`)}`, ...lines].join("\n");
}

/** A transfer as a line that is drawn again and again. */
function transferLine({ direction, name, what, progress, startedAt }: Transfer, now: number): string {
  const { bytes: total, bytesDone, bytesMoved } = progress;
  const rate = bytesMoved / Math.max(0.001, (now - startedAt) / 1000);
  const leftS = rate > 0 ? Math.ceil((total - bytesDone) / rate) : undefined;
  const left = leftS === undefined ? "" : `, ${age(leftS * 1000)} left`;
  const share = total === 0 ? 100 : Math.floor((bytesDone / total) * 100);
  const whose = direction === "sending" ? `to ${name}` : `from ${name}`;
  return `${printable(what)} ${printable(whose)}: ${share} % of ${bytes(total)}, ${bytes(rate)}/s${left}`;
}

function renderForwards(rows: ForwardRow[], width: number): string {
  if (rows.length === 0) return "nothing is forwarded; `forward PORT:PEER:PORT` does it";
  const columns = ["listen", "peer", "target", "open", "total", "in", "out"].map((head) => ({ head }));
  const cells = rows.map(({ listen, peer, target, open, total, bytesIn, bytesOut }) =>
    [
      listen,
      `→ ${printable(peer)}`,
      `→ ${target}`,
      String(open),
      String(total),
      bytes(bytesIn),
      bytes(bytesOut),
    ].map((text) => [text]),
  );
  return renderTable(columns, cells, width);
}

/** Words that open a room are a secret, and not for whoever looks over one's shoulder. */
function roomWords(room: RoomKind): string {
  return room === "lobby" ? `room ${defaultRoom}, which is open to everyone` : "a private room";
}

function tellPeers(rows: PeerRow[]): string {
  const here = rows.filter(({ present }) => present);
  if (here.length === 0) return "Nobody else is here yet.";
  const names = here.map(({ name, id }) => `${printable(name)} (${id})`).join(", ");
  const next = here.find(({ state }) => state === "known" || state === "failed");
  if (!next) return `here: ${names}`;
  const isUnique = rows.filter(({ name }) => name === next.name).length === 1;
  return `here: ${names}. \`connect ${isUnique ? printable(next.name) : next.id}\` punches a hole`;
}

const filteringWords: Record<Filtering, string> = {
  dropped: "dropped",
  refused: "refused (RST or ICMP)",
  "let-in": "let in",
};
/** RFC 4787 §5, as far as it can be told. */
function unsolicitedWords({ filtering, filteringElsewhere, isTranslated }: NatReport): string {
  if (!filtering) return "the introducer did not say";
  const words = filteringWords[filtering];
  if (filtering !== "let-in" || !filteringElsewhere || !isTranslated) return words;
  return filteringElsewhere === "let-in"
    ? `${words}, from everywhere: endpoint-independent filtering`
    : `${words} from the introducer's address, ${filteringWords[filteringElsewhere]} from another: address-dependent filtering`;
}

const wayWords: Record<Way | "none", (c: Colors) => string> = {
  direct: (c) => c.green("yes"),
  fresh: (c) => c.green("yes"),
  predicted: (c) => c.yellow("likely, by predicting ports"),
  birthday: (c) => c.yellow("likely, by guessing ports (birthday)"),
  none: (c) => c.red("no: forward a port, use IPv6, or another network"),
};

/** The report in RFC words, one plain sentence, and what to expect of it. */
export function renderNat(report: NatReport, c: Colors): string {
  const { mapping, step, isPreserved, dependsOn, isTranslated, hairpinning, ipv6, expected } = report;
  const allocation = {
    unknown: "unknown",
    "endpoint-independent": "not preserved",
    sequential: `sequential, step ${step}`,
    random: "random",
  };
  const facts = [
    [
      "translation",
      isTranslated
        ? `yes, the introducer sees ${report.observed}`
        : `none, the introducer sees your own address, ${report.observed}`,
    ],
    ["mapping", mappingWords(mapping, dependsOn)],
    ["port allocation", isPreserved ? "preserved" : allocation[mapping]],
    ["unsolicited SYN", unsolicitedWords(report)],
    ["hairpinning", isTranslated ? (hairpinning ? "yes" : "no") : "not needed"],
    ["IPv6", ipv6 ? "a global address" : "no global address"],
    ["port mapping", isTranslated ? portMappingWords(report.portMapping) : "not needed"],
  ] as const;
  const head = [{ head: "  peer's NAT" }, { head: "direct link" }];
  const table = expected.map(({ peer, way }) => [[`  ${peer} `], [wayWords[way](c)]]);
  return [
    c.bold(plainSentence(report)),
    ...facts.map(([name, value]) => `  ${name.padEnd(16)} ${value}`),
    // Of another network an introducer in ours can tell nothing.
    ...(isTranslated || report.scope === "global" ? [renderTable(head, table, Infinity)] : []),
  ].join("\n");
}

/** What came of asking the router (RFC 6887, RFC 6886, UPnP IGD). */
function portMappingWords(state: PortMappingState | undefined): string {
  switch (state?.is) {
    case "mapped": {
      const { protocol, candidate, lifetimeS } = state;
      const lasts = lifetimeS === 0 ? "until it is deleted" : `for ${lifetimeS} s`;
      return `${candidate} is open ${lasts}, by ${protocolNames[protocol]}`;
    }
    case "double-nat": {
      const { protocol, externalAddress } = state;
      const address = printable(externalAddress) || "no address";
      return `double NAT: the router's own address (${address}, by ${protocolNames[protocol]}) is not the one that others see`;
    }
    case "unavailable":
      return `none: ${printable(state.reason)}`;
    case "asking":
    case "closed":
    case undefined:
      return "the router was not asked";
  }
}

/** What `whoami` answers. */
function renderSelf(self: NonNullable<Participant["self"]>, c: Colors): string {
  return [
    `${c.bold(printable(self.name))} (${self.id}) in ${roomWords(self.room)}`,
    `  private      ${self.private.join(", ") || "none"}`,
    `  public       ${self.public}`,
    ...(self.mapped ? [`  mapped port  ${self.mapped}`] : []),
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

function plainSentence({ mapping, isTranslated, filtering, scope, portMapping }: NatReport): string {
  if (scope === "loopback") return "The introducer is on this host: it can tell nothing about a NAT.";
  if (!isTranslated && scope === "private")
    return "The introducer is in your own network: on the way to it there is no NAT, and of others it can't tell.";
  if (!isTranslated && filtering === undefined)
    return "You have a public address; whether a firewall is before it was not measured.";
  if (!isTranslated) {
    return filtering === "let-in"
      ? "You are on the open Internet: everyone can link with you."
      : "You have a public address behind a firewall: a direct link is possible with every kind of peer.";
  }
  if (portMapping?.is === "mapped" && mapping !== "endpoint-independent")
    return "You are behind a NAT that opens a port when asked: a direct link is possible with every kind of peer.";
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
  { key: "s", word: "list", operands: "[-v]", what: "who is here, and whom you are linked with" },
  { key: "d", word: "connect", operands: "PEER ... [-v]", what: "punch holes (-v: tell every attempt)" },
  { key: "f", word: "say", operands: "PEER TEXT", what: "send TEXT over the link" },
  { key: "", word: "ping", operands: "PEER", what: "measure the link's round trip" },
  { key: "g", word: "disconnect", operands: "PEER", what: "end the link" },
  { key: "", word: "forward", operands: "SPEC", what: "[BIND:]PORT:PEER:[HOST:]PORT, as ssh -L" },
  { key: "", word: "unforward", operands: "LISTEN", what: "[BIND:]PORT: listen there no more" },
  { key: "", word: "forwards", operands: "", what: "what is forwarded" },
  { key: "", word: "allow", operands: "TARGET", what: "[HOST:]PORT that peers may reach through you" },
  { key: "", word: "disallow", operands: "TARGET", what: "take that back" },
  { key: "", word: "allowed", operands: "", what: "what peers may reach" },
  { key: "", word: "send", operands: "PEER PATH ...", what: "send files and folders" },
  { key: "", word: "accept", operands: "OFFER", what: "take what a peer offers, into this folder" },
  { key: "", word: "refuse", operands: "OFFER", what: "do not take it" },
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
const problems: ReadonlySet<ParticipantEvent["event"]> = new Set([
  "forward-refused",
  "transfer-failed",
  "failed",
  "error",
  "warning",
  "introducer",
] as const);

/** What the participant tells, and what the user asks, between the two. */
class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;
  /** Whether standard output belongs to a pipe: then results are part of the story. */
  readonly #isPipe: boolean;

  constructor(terminal: Terminal, isJson: boolean, isPipe: boolean) {
    this.#terminal = terminal;
    this.#isJson = isJson;
    this.#isPipe = isPipe;
  }

  event(event: ParticipantEvent): void {
    if (this.#isJson) this.#json(event);
    if (event.event === "error") return this.#terminal.error(event.message);
    const isResult = !this.#isJson && !this.#isPipe && results.has(event.event);
    const text = tell(event, isResult ? this.#terminal.resultColors : this.#terminal.storyColors);
    if (text === undefined) return;
    if (isResult) this.#terminal.result(text);
    else this.#terminal.story(text, problems.has(event.event));
  }

  /** Obeys one line; rejects with what is wrong with it. */
  async run(line: string, { participant, uses, keep }: Running): Promise<void> {
    const { command, words, text, flags } = readCommand(commands, line);
    const [peer = ""] = words;
    switch (command) {
      case "list":
        return this.#list(await participant.listed(), flags.includes("-v"));
      case "connect":
        return connectAll(words, flags.includes("-v"), participant);
      case "say":
        return void (await participant.say(peer, text));
      case "ping":
        return void (await participant.ping(peer));
      case "disconnect":
        return this.#disconnect(peer, participant, keep);
      case "forward":
        return keepFor(uses.forward(peer), keep);
      case "unforward": {
        const { peer: wanted, listen } = uses.unforward(peer);
        keep.release(wanted, listen);
        return this.#terminal.story(`nothing is forwarded from ${peer} any more`);
      }
      case "forwards":
        return this.#forwards(uses.forwards);
      case "allow":
        return this.#terminal.story(`peers may reach ${uses.allow(peer)} through you from now on`);
      case "disallow":
        uses.disallow(peer);
        return this.#terminal.story(`peers may reach ${peer} no more; what is open stays open`);
      case "allowed":
        return this.#allowed(uses.allowed);
      case "send":
        if (!participant.linkWith(peer)) throw new UserError(notLinked(peer));
        return failIfAny(await uses.send(peer, words.slice(1)));
      case "accept":
        return uses.accept(peer, ".");
      case "refuse":
        return uses.refuse(peer);
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

  /** Also of one that is only sought. */
  async #disconnect(peer: string, participant: Participant, keep: Keep): Promise<void> {
    const wasKept = keep.giveUp(peer);
    try {
      await participant.disconnect(peer);
    } catch (error) {
      if (!wasKept || !(error instanceof UserError)) throw error;
      this.#terminal.story(`a link with ${printable(peer)} is not sought any more`);
    }
  }

  async #list(rows: readonly PeerRow[], isVerbose: boolean): Promise<void> {
    if (this.#isJson) return this.#terminal.longResult(await jsonPieces({ event: "peers" }, "peers", rows));
    const { width, resultColors: colors } = this.#terminal;
    this.#terminal.longResult(await renderList(rows, width, colors));
    if (isVerbose && rows.length > 0) this.#terminal.longResult(await renderDetails(rows, colors));
  }

  #forwards(rows: ForwardRow[]): void {
    if (this.#isJson) return this.#json({ event: "forwards", forwards: rows });
    this.#terminal.result(renderForwards(rows, this.#terminal.width));
  }

  #allowed(rules: readonly string[]): void {
    if (this.#isJson) return this.#json({ event: "allowed", allowed: rules });
    this.#terminal.result(
      rules.length > 0 ? rules.join("\n") : "nothing: peers can reach nothing through you",
    );
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

/** Files that did not arrive, each of which has been told, make a failure of the whole. */
function failIfAny({ failed }: { failed: number }): void {
  if (failed > 0) throw new ToldError(`${count(failed, "file")} did not arrive`);
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
  const untold = reasons.filter((one) => !(one instanceof ToldError)) as UserError[];
  if (untold.length > 0) throw new UserError(untold.map(({ message }) => message).join("; "));
  if (reasons.length > 0) throw reasons[0];
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
  --room WORDS    the private room of those who know the WORDS, which the
                  introducer never learns (also from ROOM in the environment);
                  new: makes such words; -: asks for them, and shows nothing
                  (default: ${defaultRoom}, open to everyone)
  --connect PEER  keep a link to PEER, from when it is there
  -L, --forward [BIND:]PORT:PEER:[HOST:]PORT
                  listen on PORT here, and connect from PEER to HOST:PORT
                  (HOST: PEER's localhost; BIND: 127.0.0.1), as ssh -L
  --allow [HOST:]PORT  what peers may reach through you (* for any)
  --pipe PEER     join standard input and output to PEER's --pipe, or with
                  PEER:[HOST:]PORT to what PEER allows there, as ssh -W
  --send PATH     with --connect PEER: send it, and end
                  (fails when PEER accepts, and then does nothing for 60 s)
  --accept DIR    take the files that peers send, into DIR: a file as itself,
                  a folder or several things as a new folder
  --executable    what was executable there is so here (default: nothing is)
  --keep MINUTES  how long a link without a connection waits for the peer to
                  come back (default: ${defaultKeepMinutes}; 0: not at all)
  --direct        never let the introducer relay a link
  --no-portmap    don't ask the router to open a port
  --nat           say what kind of NAT you are behind, and end
  --stay          go on when standard input ends (so do --forward, --allow and
                  --accept)
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

Exit codes: 0 done, 1 failed, 2 wrong usage.
128 + N: signal N came before what was asked for was there.`;

const shownRoom =
  "whoever is logged in to this host can read the words of --room (ps): give them in ROOM, or have --room - ask for them";
/** What stands in the place of a room's words. */
const newRoom = "new";
const askedRoom = "-";

interface Arguments {
  introducer: string | undefined;
  name: string;
  /** Undefined for the lobby; {@link askedRoom} where the user is to be asked. */
  room: string | undefined;
  /** Whether it is one of the arguments. */
  isRoomArgument: boolean;
  connect: string[];
  forward: string[];
  allow: string[];
  pipe: PipeSpec | undefined;
  send: string[];
  accept: string | undefined;
  executable: boolean;
  keepMinutes: number;
  direct: boolean;
  portMapping: boolean;
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
  forward: { type: "string", short: "L", multiple: true },
  allow: { type: "string", multiple: true },
  pipe: { type: "string" },
  send: { type: "string", multiple: true },
  accept: { type: "string" },
  executable: { type: "boolean" },
  keep: { type: "string" },
  direct: { type: "boolean" },
  "no-portmap": { type: "boolean" },
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
  const room = values.room ?? (process.env.ROOM || undefined);
  const badRoom = room === undefined ? undefined : roomProblem(room);
  if (badRoom) throw new UsageError(`--room ${badRoom}`);
  const isOpen = room === undefined || room === defaultRoom;
  const opens = values.allow ? "--allow" : values.accept !== undefined ? "--accept" : undefined;
  if (opens && isOpen) {
    throw new UsageError(
      `${opens} would let anyone in, in the open lobby: a private room is a condition (--room WORDS)`,
    );
  }
  for (const spec of values.forward ?? []) read("--forward", spec, parseForward);
  for (const rule of values.allow ?? []) read("--allow", rule, (text) => new AllowList().add(text));
  if (values.pipe !== undefined && values.json)
    throw new UsageError("--pipe has standard output for itself: leave --json out");
  if (values.send && values.connect?.length !== 1)
    throw new UsageError("--send needs one --connect PEER to send to");
  return {
    introducer: positionals[0] ?? (process.env.INTRODUCER || undefined),
    name,
    room: room === defaultRoom ? undefined : room,
    isRoomArgument: values.room !== undefined && ![defaultRoom, newRoom, askedRoom].includes(values.room),
    connect: values.connect ?? [],
    forward: values.forward ?? [],
    allow: values.allow ?? [],
    pipe: values.pipe === undefined ? undefined : read("--pipe", values.pipe, parsePipe),
    send: values.send ?? [],
    accept: values.accept,
    executable: values.executable ?? false,
    keepMinutes: readKeep(values.keep),
    direct: values.direct ?? false,
    portMapping: !values["no-portmap"],
    nat: values.nat ?? false,
    stay: values.stay ?? (values.forward ?? values.allow ?? values.accept) !== undefined,
    verbose: values.verbose ?? false,
    quiet: values.quiet ?? false,
    json: values.json ?? false,
  };
}

function read<T>(option: string, text: string, parse: (text: string) => T): T {
  try {
    return parse(text);
  } catch (error) {
    if (error instanceof SpecError) throw new UsageError(`${option} ${error.message}`);
    throw error;
  }
}

function readKeep(text: string | undefined): number {
  if (text === undefined) return defaultKeepMinutes;
  const minutes = /^\d{1,5}(\.\d+)?$/.test(text) ? Number(text) : NaN;
  // setTimeout takes no more than 2^31 ms.
  if (!(minutes <= 30_000)) throw new UsageError(`--keep takes minutes from 0 to 30000, not ${text}`);
  return minutes;
}

/** The room to be in; words that are made here are told. */
function chooseRoom({ room, nat }: Arguments, introducer: string, terminal: Terminal): Room | Promise<Room> {
  // Who only measures disturbs nobody.
  if (nat) return openRoom(crypto.getRandomValues(new Uint8Array(32)).toHex());
  if (room !== newRoom) return roomOf(room ?? defaultRoom);
  const words = newRoomWords();
  const invitation = `ROOM=${words} ${startedAs("participant")} ${introducer}`;
  terminal.story(`a new private room; whom you tell this can enter it:\n  ${invitation}`);
  return secretRoom(words);
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

/** Asks for the words until they can be a private room's; undefined when the user gives up. */
async function askRoom(terminal: Terminal): Promise<string | undefined> {
  if (!terminal.isInteractive)
    throw new UsageError("--room - asks for the words, and there is no terminal: give them in ROOM");
  return terminal.askSecret("Words of the room (not shown): ", (answer) => {
    const words = answer.trim();
    const isOther = [defaultRoom, newRoom, askedRoom].includes(words);
    const problem = isOther ? "must have words of its own here" : roomProblem(words);
    if (problem) terminal.error(`a room ${problem}`);
    return problem ? undefined : words;
  });
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

/** A program that runs: what its parts share. */
interface Running {
  participant: Participant;
  uses: Uses;
  keep: Keep;
  /** Resolved once we have been registered. */
  joined: PromiseWithResolvers<void>;
  prompt: Prompt;
  terminal: Terminal;
  options: Arguments;
}

async function main(terminal: Terminal): Promise<number> {
  const options = readArguments(process.argv.slice(2));
  if (options === "help" || options === "version") {
    terminal.result(options === "help" ? usage : version);
    return 0;
  }
  const isRoomShown = options.isRoomArgument && hideArgument("--room", options.room!);
  checkPlatform();
  terminal.isQuiet = options.quiet;
  if (options.room === askedRoom) {
    const words = await askRoom(terminal);
    if (words === undefined) return 1;
    options.room = words;
  }
  const introducer = options.introducer ?? (await askIntroducer(terminal));
  if (introducer === undefined) return options.send.length > 0 || options.pipe || options.nat ? 1 : 0;
  const running = prepare(terminal, options, introducer);
  if (isRoomShown) running.prompt.event({ event: "warning", message: shownRoom });
  const { participant, uses, keep } = running;
  const errands = new Errands(running);
  const stopped = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => stopped.resolve(errands.codeAt(signal)));
  void terminal.broken.then(() => stopped.resolve(1));
  const status = () => terminal.status(uses.transfers.map((one) => transferLine(one, performance.now())));
  const drawing = setInterval(status, statusPeriodMs);
  const code = await Promise.race([live(running, errands), stopped.promise]);
  clearInterval(drawing);
  terminal.status([]);
  terminal.close();
  uses.close();
  keep.close();
  await participant.quit();
  return code;
}

function prepare(terminal: Terminal, options: Arguments, introducer: string): Running {
  const prompt = new Prompt(terminal, options.json, options.pipe !== undefined);
  const onEvent = (event: ParticipantEvent) => prompt.event(event);
  const { name, keepMinutes, direct, portMapping, verbose } = options;
  const participant = new Participant({
    ...readHostPort(introducer),
    ...{ name, keepMinutes, direct, portMapping, verbose, onEvent },
    room: chooseRoom(options, introducer, terminal),
    identity: identityOrOneForNow((message) => onEvent({ event: "warning", message })),
  });
  const joined = Promise.withResolvers<void>();
  const keep = new Keep({
    nameOf: (word) => participant.nameOf(word),
    waitFor: async (name, signal) => {
      await joined.promise;
      await participant.waitFor(name, signal);
    },
    linkWith: (name) => participant.linkWith(name),
    connect: (name) => participant.connect(name),
    whenLinked: (name, signal) => participant.whenLinked(name, signal),
  });
  const uses = new Uses({
    link: (peer) => participant.openLink(peer) ?? keep.linked(peer),
    isPrivate: () => participant.isPrivate,
    canAsk: terminal.isInteractive || options.stay,
    pipesWith: options.pipe && !options.pipe.target ? options.pipe.peer : undefined,
    executable: options.executable,
    onEvent,
  });
  for (const use of ["forward", "pipe", "files"])
    participant.onStream(use, (stream, from) => uses.take(stream, from));
  return { participant, uses, keep, joined, prompt, terminal, options };
}

/** What the user has asked for, and whether it was got: the exit code says so. */
class Errands {
  readonly #running: Running;
  readonly #isService: boolean;
  failures = 0;
  /** How many a signal now would cut off. */
  #awaited = 0;

  constructor(running: Running) {
    this.#running = running;
    this.#isService = running.terminal.isInteractive || running.options.stay;
  }

  get code(): number {
    return this.failures > 0 ? 1 : 0;
  }

  /** To tell a service to end is no failure of it. */
  codeAt(signal: NodeJS.Signals): number {
    if (this.#awaited > 0) return 128 + constants.signals[signal];
    return this.#isService ? 0 : this.code;
  }

  /** Does what someone waits for the end of. */
  async awaiting<T>(work: Promise<T>): Promise<T> {
    this.#awaited++;
    try {
      return await work;
    } finally {
      this.#awaited--;
    }
  }

  /** Tells and counts what is the user's, or the network's, failure. */
  async attempt(work: () => Promise<void>): Promise<void> {
    const { participant, prompt } = this.#running;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof UserError || error instanceof CommandError)) throw error;
      if (participant.hasQuit) return; // a signal has ended it, and with it what was under way
      this.failures++;
      // What we have ended ourselves need not be told.
      if (!(error instanceof ToldError)) prompt.event({ event: "error", message: error.message });
    }
  }
}

/** Joins, then obeys until the user or the input ends. Resolves to the exit code. */
async function live(running: Running, errands: Errands): Promise<number> {
  const { terminal, options, participant } = running;
  const { nat, pipe, send, connect, stay } = options;
  const isScript = !terminal.isInteractive && !stay;
  const wantsResult = nat || pipe !== undefined || send.length > 0 || (isScript && connect.length > 0);
  const beginning = begin(running, errands);
  if (!(await (wantsResult ? errands.awaiting(beginning) : beginning))) return errands.code;
  const run = (line: string) => errands.attempt(() => running.prompt.run(line, running));
  if (terminal.isInteractive) {
    await converse(participant, terminal, run);
    return 0;
  }
  for await (const line of terminal.lines()) {
    if (isQuit(line)) return errands.code;
    if (line.trim() !== "") await errands.awaiting(run(line));
  }
  if (stay) await new Promise<never>(() => {});
  return errands.code;
}

/** What the command line asks for; returns whether anything may follow. */
async function begin(running: Running, errands: Errands): Promise<boolean> {
  const { participant, uses, keep, joined, prompt, terminal, options } = running;
  for (const spec of options.forward) keepFor(uses.forward(spec), keep); // whoever connects now waits for the link
  await errands.attempt(() => participant.join());
  if (errands.failures > 0) return false;
  joined.resolve();
  for (const rule of options.allow) uses.allow(rule);
  if (options.accept !== undefined) uses.acceptInto(options.accept);
  if (options.nat) {
    await errands.attempt(async () => prompt.nat(await participant.nat()));
    return false;
  }
  if (options.pipe) {
    await errands.attempt(() => pipeThrough(running, options.pipe!));
    return false;
  }
  const connecting = Promise.all(
    options.connect.map((peer) => errands.attempt(() => keep.keep(peer, "--connect"))),
  );
  if (options.send.length > 0) {
    await connecting;
    if (errands.failures === 0)
      await errands.attempt(async () => failIfAny(await uses.send(options.connect[0]!, options.send)));
    return options.stay && errands.failures === 0;
  }
  if (!terminal.isInteractive) await connecting;
  return true;
}

/** A forward wants the link of its peer, whether or not there can be one now. */
function keepFor({ peer, listen }: Forwarding, keep: Keep): void {
  keep.keep(peer, listen).catch(() => {}); // it is told as it happens
}

/** Joins standard input and output to the peer; resolves when it has confirmed every byte, and we have all of its. */
async function pipeThrough(
  { participant, uses, terminal }: Running,
  { peer, target }: PipeSpec,
): Promise<void> {
  await participant.waitFor(peer);
  const link = participant.linkWith(peer) ?? (await participant.connect(peer));
  const { sending, incoming } = uses.pipe(link, target);
  // Who only wants what comes is not asked to type.
  const input = isatty(0) && !isatty(1) ? undefined : (Bun.stdin.stream() as AsyncIterable<Uint8Array>);
  const startedAt = performance.now();
  let received: Pipe | undefined = incoming ? undefined : sending;
  void incoming?.then((pipe) => (received = pipe));
  const moved = () => {
    const seconds = (performance.now() - startedAt) / 1000;
    const [sent, came] = [sending.bytesOut, received?.bytesIn ?? 0];
    return `sent ${bytes(sent)}, received ${bytes(came)}, ${bytes((sent + came) / seconds)}/s, ${age(seconds * 1000)}`;
  };
  const isDrawn = !(isatty(0) && isatty(1));
  const drawing = setInterval(() => isDrawn && terminal.status([moved()]), statusPeriodMs);
  try {
    await runPipe(input, new DescriptorOutput(1), sending, incoming);
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  } finally {
    clearInterval(drawing);
    terminal.status([]);
  }
  terminal.story(`${moved()}: confirmed`);
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
    complete: (line) => completions(commands, participant.names(), line),
    reasonToStay: () => {
      const links = participant.linkCount;
      return links === 0 ? undefined : `${count(links, "link")} up`;
    },
  });
}

if (import.meta.main) await runProgram(main, [UserError, IdentityError]);
