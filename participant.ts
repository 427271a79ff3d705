/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections
 * to the others (native/). Owns the registration, the map of peers (each of whose lives is native/participant/peer.ts), the
 * prompt and the list. Never touches a descriptor after it was handed on, and never imports the introducer.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles, nomination).
 */
import { constants } from "node:os";
import { isatty } from "node:tty";
import { hideArgument } from "./native/host/arguments.ts";
import { ControlChannel, verify } from "./native/host/control.ts";
import { requirePlatform } from "./native/host/libc.ts";
import { Credentials } from "./native/secure/channel.ts";
import { Gathering } from "./native/uses/gather.ts";
import { Keep } from "./native/participant/keep.ts";
import type { Link, Purpose } from "./native/session/link.ts";
import {
  distrust,
  type Member,
  newRoomWords,
  openRoom,
  prove,
  type Room,
  roomOf,
  secretRoom,
} from "./native/secure/room.ts";
import type { Pipe } from "./native/uses/pipe.ts";
import { resetCodes, type Stream } from "./native/session/stream.ts";
import { DescriptorOutput, runPipe } from "./native/uses/stdio.ts";
import type { PipeSpec } from "./native/uses/target.ts";
import { type From, Services } from "./native/uses/services.ts";
import { type Identity, IdentityError, identityOrOneForNow } from "./native/secure/identity.ts";
import { type PeerRow, type PeerSurroundings, RemotePeer } from "./native/participant/peer.ts";
import {
  age,
  defaultPort,
  defaultRoom,
  type Endpoint,
  type Filtering,
  formatEndpoint,
  isNumberedName,
  isUntranslated,
  nameSkeleton,
  type Peer,
  planRounds,
  printable,
  protocolVersion,
  publicInstance,
  scopeOf,
  type Situation,
  splitEndpoint,
  type ToIntroducer,
  ToldError,
  type ToParticipant,
  UserError,
} from "./protocol.ts";
import { type Unasked, UnaskedBudget } from "./native/punch/allowance.ts";
import { hostCandidates } from "./native/punch/candidates.ts";
import { Gate, isAsFar } from "./native/punch/gate.ts";
import { type Ground, rehearseCandidates } from "./native/punch/introduction.ts";
import {
  classifyMapping,
  type MappingBehaviour,
  sampleMapping,
  testHairpinning,
} from "./native/punch/mapping.ts";
import { PortMapping } from "./native/punch/portmap.ts";
import { PunchPort, rehearse } from "./native/punch/punch.ts";
import { byTurns } from "./native/shares/turns.ts";
import { runProgram, Terminal } from "./native/terminal/terminal.ts";
import {
  CommandError,
  completions,
  otherStartedAs,
  startedAs,
  version,
} from "./native/terminal/command-line.ts";
import { bytes, count } from "./native/terminal/text.ts";
import {
  defaultKeepMinutes,
  type NatReport,
  type ParticipantEvent,
  type ParticipantOptions,
  type RoomKind,
  type Self,
} from "./native/participant/events.ts";
import { transferLine } from "./native/terminal/participant-story.ts";
import {
  type Arguments,
  askedRoom,
  commands,
  newRoom,
  readArguments,
  readHostPort,
  shownRoom,
  usage,
} from "./native/terminal/participant-arguments.ts";
import {
  askIntroducer,
  askRoom,
  failIfAny,
  isQuit,
  keepFor,
  Prompt,
} from "./native/terminal/participant-prompt.ts";

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
/** Names of ours in one try to register that others may have before us. */
const maxNamesTried = 8;
/** How often what is under way is drawn. */
const statusPeriodMs = 500;
/** A wait that lasts longer is announced. */
const announceAfterMs = 1_000;

// --- types -----------------------------------------------------------------------------------------------

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

// --- the prompt ------------------------------------------------------------------------------------------

// --- main ------------------------------------------------------------------------------------------------

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

function checkPlatform(): void {
  try {
    requirePlatform();
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  }
}

/** A program that runs: what its parts share. */
export interface Running {
  participant: Participant;
  uses: Services;
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
  if (isRoomShown && !options.quiet) running.prompt.event({ event: "warning", message: shownRoom });
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
  const uses = new Services({
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
