/**
 * Our side of one introduction: asks for it or is asked, measures and punches round after round as the introducer
 * orders, and takes the relay that it offers beside them, until a direct channel is nominated or all is over. Owns its
 * punch, its try of the relay and its timer, ends exactly once, and never knows what a channel is for, nor any other
 * peer. For native/participant/peer.ts.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 §8 (nomination).
 */
import {
  type Endpoint,
  type FailureReason,
  isDependent,
  isUntranslated,
  type Peer,
  type Prediction,
  punchDeadlineMs,
  type Role,
  roundsPerWay,
  splitEndpoint,
  type ToIntroducer,
  type ToParticipant,
  type Way,
} from "../../protocol.ts";
import { hostAddresses } from "../host/interfaces.ts";
import type { Channel, Credentials } from "../secure/channel.ts";
import type { Bond, Member } from "../secure/room.ts";
import { RelayAttempt, type Reservation, reserve } from "./relayed.ts";
import { descriptorLimit } from "../host/socket.ts";
import { Allowance, type Unasked } from "./allowance.ts";
import { hostCandidates, roundCandidates } from "./candidates.ts";
import type { Candidate, Dial } from "./dial.ts";
import { type MappingBehaviour, observeFresh, predict } from "./mapping.ts";
import { alpnOf, type Attempt, type Punch } from "./punch.ts";
import type { PunchPort } from "./punch-port.ts";
import type { Aimed } from "./targets.ts";

/** How long the introducer may take to answer `connect`, or to begin the next round. */
const answerTimeoutMs = 10_000;
/** Rounds of one introduction: of one way, then of another, and the one that worked the last time. */
const maxRounds = 2 * roundsPerWay + 2;
/** Each may be measured for, and once more where the NAT has gone on meanwhile. */
const maxMeasures = 2 * maxRounds;
/**
 * The part of the way over the introducer (A→I→B) that the direct way (A→B) takes at least, as we assume: for a SYN
 * that comes too early is dropped, and costs more than one that comes late.
 */
const headStartShare = 0.4;
/**
 * What introducer and peer may take to do their part, when it is their first introduction. On a long way that is in the
 * share above; on a short one our SYN leaves so much after half of the way over the introducer.
 */
const headStartSpareMs = 4;

/** What an introduction stands on: our registration with the introducer. */
export interface Ground {
  readonly id: number;
  readonly introducer: Endpoint;
  readonly credentials: Credentials;
  /** Ourselves, as the room knows us, and what connections of that room must prove to have. */
  readonly self: Member;
  readonly bondKey: Uint8Array;
  /** Whether we let ourselves be relayed. */
  readonly takesRelay: boolean;
  readonly port: PunchPort;
  readonly public: Endpoint;
  readonly private: readonly Endpoint[];
  /** At our public address, the port that our router has opened for the shared one. */
  readonly mapped: Endpoint | undefined;
  /** Where mapping probes go. */
  readonly probes: readonly Endpoint[];
  readonly behaviour: MappingBehaviour | undefined;
  /** Under which the introducer knows our probes. */
  readonly probeToken: string | undefined;
  /** To the introducer, as it measured. */
  readonly roundTripMs: number | undefined;
  /** Whether long packets seem to get lost on our way out. */
  readonly clampsSegments: boolean;
  /** A connection opened on which TLS got stuck: both its first flights are longer than a packet may be. */
  handshakeStuck(): void;
  /** Whether we may connect to an endpoint that the introducer names beside its own; a true answer counts it. */
  mayVisit(endpoint: Endpoint): boolean;
  /** Measures from a fresh port, when it is its turn; undefined where too many wait. */
  measureFresh<T>(measure: () => Promise<T | undefined>): Promise<T | undefined>;
  /** A port of our own beside the shared one, for a round that wants fresh mappings. */
  portFor(localPort: number): PunchPort;
  /** To the introducer; nowhere once this registration is over. */
  send(message: ToIntroducer): void;
}

export type PunchMessage = ToParticipant & { type: "punch" };
export type MeasureMessage = ToParticipant & { type: "measure" };
export type RelayMessage = ToParticipant & { type: "relay" };
/** What a punch is started with: the introducer's message, or as much of it as is known before it comes. */
type PunchOrder = Pick<PunchMessage, "startInMs"> & Partial<PunchMessage>;

export interface IntroductionOptions {
  ground: Ground;
  peer: Peer;
  /** What an introduction that we did not ask for was admitted as. */
  unasked: Unasked | undefined;
  /** When the last link with that peer ended (performance.now), if there was one. */
  lastEndedAt: number | undefined;
  onRound(round: Pick<PunchMessage, "role" | "way" | "round">): void;
  onAttempt(attempt: Attempt): void;
  /** A nominated channel: maybe a relayed one first, and maybe a direct one later. */
  onChannel(channel: Channel, nominated: Nominated): void;
  /** Called once, at the end. A reason is why there was no direct channel. */
  onEnd(failure: Failure | undefined): void;
}

export interface Failure {
  reason: FailureReason;
  detail: string;
}

/** What a channel was nominated under. */
export interface Nominated {
  role: Role;
  /** That of the round, or of the relay. */
  token: string;
  /** From our `connect`, or from the introducer's first word. */
  elapsedMs: number;
}

export class Introduction {
  readonly #options: IntroductionOptions;
  readonly #startedAt = performance.now();
  /** What all rounds together may spend on endpoints that only the peer vouches for. */
  readonly #allowance: Allowance;
  #birthday: Aimed | undefined;
  #peer: Peer;
  #rounds = 0;
  /** Of the round under way; undefined while we wait for the answer to our `connect`. */
  #token: string | undefined;
  #isLast = false;
  #punch: Punch | undefined;
  #freshPort: PunchPort | undefined;
  /** A round has shown that window scaling does not come through: the others do without. */
  #isUnscaled = false;
  /** A measurement that was begun with our `connect`. */
  #early: Promise<Prediction | undefined> | undefined;
  #role: Role | undefined;
  #relay: RelayAttempt | undefined;
  #relayToken: string | undefined;
  /** Made before a birthday: a NAT that has no more sessions for us would put the relay out of reach. */
  #reserved: Reservation | undefined;
  /** Why the direct way failed, while the relay's outcome is awaited. */
  #failure: Failure | undefined;
  #timer: NodeJS.Timeout | undefined;
  #measures = 0;
  #isOver = false;

  constructor(options: IntroductionOptions) {
    this.#options = options;
    this.#peer = options.peer;
    const { targets } = options.ground.port;
    this.#allowance = new Allowance((endpoint) => targets.claim(endpoint, this.#peer.public));
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** Whether it still waits for the answer to our `connect`. */
  get isAsking(): boolean {
    return this.#token === undefined && this.#relayToken === undefined;
  }

  isOf(token: string): boolean {
    return token === this.#token || token === this.#relayToken;
  }

  /**
   * Asks the introducer, and says whether a relay would do. Our first SYN may leave before its word; what it is going to
   * ask, where our NAT stands, is measured meanwhile.
   */
  ask(mayRelay: boolean): void {
    this.#options.ground.send({
      type: "connect",
      peer: this.#peer.id,
      ...(!mayRelay && { relay: false }),
    });
    if (this.#willPredict) this.#early = this.#predict();
    const waitMs = this.#headStart();
    if (waitMs !== undefined) this.#punch = this.#start({ startInMs: waitMs });
    this.#expect("timed-out", "the introducer did not answer");
  }

  /** Measures for a round that dials predicted or fresh ports. */
  async measure({ peer, token, way }: MeasureMessage): Promise<void> {
    if (++this.#measures > maxMeasures)
      return this.cancel("refused-by-peer", "it had us measure more often than there are rounds");
    this.#nextRound(peer, token);
    this.#expect("timed-out", "the introducer did not begin the round it had us measure for");
    const { ground } = this.#options;
    const [probe] = ground.probes;
    const early = this.#early;
    this.#early = undefined;
    let prediction: Prediction | undefined;
    if (way === "fresh") {
      const fresh = probe && (await this.#fresh(() => observeFresh(probe)));
      if (fresh && token === this.#token) this.#freshPort = ground.portFor(fresh.port);
      if (fresh) prediction = { endpoint: fresh.observed, step: 0 };
    } else prediction = await (early ?? this.#predict());
    if (!this.#isOver) ground.send({ type: "measured", token, ...(prediction && { prediction }) });
  }

  get #bond(): Bond {
    const { bondKey: key, self } = this.#options.ground;
    return { key, self, peer: this.#peer };
  }

  /** Whether the first round is likely to want to know where our NAT stands. */
  get #willPredict(): boolean {
    return this.#options.ground.behaviour?.mapping === "sequential" && this.#peer.mapping !== "random";
  }

  /** Whether refusals had us try again since our NAT, which counts, was measured: each took another port. */
  get #hasGoneOn(): boolean {
    const isAgain = ({ candidate, tries }: Dial) => candidate.isFresh && !candidate.isOnce && tries > 1;
    return this.#options.ground.behaviour?.mapping === "sequential" && !!this.#punch?.dials.some(isAgain);
  }

  async #predict(): Promise<Prediction | undefined> {
    const { probes, probeToken: token, behaviour } = this.#options.ground;
    const step = behaviour?.step || 1;
    const says =
      token === undefined ? undefined : ({ type: "probe", token, peer: this.#peer.id, step } as const);
    const [probe] = probes;
    return probe && this.#fresh(() => predict(probe, step, says));
  }

  /** Undefined when it can't be measured, or too much is being measured already; never rejects. */
  #fresh<T>(measure: () => Promise<T | undefined>): Promise<T | undefined> {
    return this.#options.ground.measureFresh(measure).catch(() => undefined);
  }

  /** Begins a round. Said twice, it begins once. */
  punch(message: PunchMessage): void {
    const { peer, token, role, way, round, last, deadlineMs } = message;
    if (token === this.#token && this.#punch) return;
    if (!this.#mayPunch(message))
      return this.cancel("refused-by-peer", "it asked for more than we give unasked");
    this.#options.onRound({ role, way, round });
    if (this.#isOver) return; // whoever was told may have cancelled it
    const early =
      this.isAsking && way === "direct" && this.#punch?.isOver === false ? this.#punch : undefined;
    if (early) {
      this.#token = token;
      this.#role = role;
      early.introduce({ token, role }, deadlineMs);
    } else {
      const hasGoneOn = way === "predicted" && this.#hasGoneOn;
      this.#nextRound(peer, token);
      this.#role = role;
      if (hasGoneOn) void this.#predict();
      this.#punch = this.#start(message);
    }
    this.#isLast = last;
    clearTimeout(this.#timer);
  }

  /** Lets itself be relayed. Where that is the introducer's first word, there is no direct way. */
  relay({ peer, role, token }: RelayMessage): void {
    const { ground } = this.#options;
    if (this.#isOver || this.#relayToken !== undefined || !ground.takesRelay) return;
    const isOnlyWay = this.isAsking;
    if (isOnlyWay) clearTimeout(this.#timer);
    this.#peer = peer;
    this.#relayToken = token;
    this.#relay = new RelayAttempt({
      introducer: ground.introducer,
      reserved: this.#takeReserved(),
      credentials: ground.credentials,
      bond: this.#bond,
      alpn: alpnOf(token),
      ...{ role, token },
      onChannel: (channel) => {
        this.#relay = undefined;
        const failure = this.#failure;
        this.#options.unasked?.linked(false);
        this.#options.onChannel(channel, { role, token, elapsedMs: performance.now() - this.#startedAt });
        if (isOnlyWay || failure) this.#end(failure);
      },
      onFailed: (detail, reason) => this.#relayFailed(token, isOnlyWay, { reason, detail }),
    });
  }

  /** For who owns it from then on. */
  #takeReserved(): Reservation | undefined {
    const reserved = this.#reserved;
    this.#reserved = undefined;
    return reserved;
  }

  #relayFailed(token: string, isOnlyWay: boolean, failure: Failure): void {
    this.#relay = undefined;
    this.#report("timed-out", token);
    if (isOnlyWay) this.#end(failure);
    else if (this.#failure)
      this.#end({ ...this.#failure, detail: `${this.#failure.detail}; ${failure.detail}` });
  }

  /** Whoever asks, and whatever an introducer orders: no more rounds than the longest plan has. */
  #mayPunch({ token, way, deadlineMs }: PunchMessage): boolean {
    if (++this.#rounds > maxRounds) return false;
    const { unasked } = this.#options;
    if (way !== "birthday" || !unasked || unasked.mayTryBirthday(deadlineMs)) return true;
    this.#token ??= token;
    return false;
  }

  /** The introducer is gone: a round that it has begun goes on by itself, and is the last. */
  introducerLost(reason: string): void {
    if (this.#token === undefined || !this.#punch) return this.abort("introducer-lost", reason);
    this.#isLast = true;
  }

  /** Gives up, without a word to the introducer. Does nothing once it is over. */
  abort(reason: FailureReason, detail: string): void {
    this.#end({ reason, detail });
  }

  /** There is no direct way: the end, unless the relay is still tried. */
  failed(reason: FailureReason, detail: string): void {
    if (this.#isOver) return;
    if (!this.#relay) return this.abort(reason, detail);
    this.#failure = { reason, detail };
    this.#stopPunching();
  }

  /** Gives up, and has the introducer tell the peer. */
  cancel(reason: FailureReason, detail: string): void {
    if (!this.#isOver && this.#token !== undefined) this.#report("refused-by-peer", this.#token);
    this.abort(reason, detail);
  }

  /** The state for a new round; what is left of an earlier one ends without a word. */
  #nextRound(peer: Peer, token: string): void {
    this.#peer = peer;
    if (token === this.#token) return; // it has measured for this round
    this.#token = token;
    this.#freshPort = undefined;
    const earlier = this.#punch;
    this.#punch = undefined;
    this.#isUnscaled ||= earlier?.needsUnscaled === true;
    earlier?.abort("timed-out", "another round follows");
  }

  /**
   * How long after our `connect` our first SYN may leave without waiting for the introducer's word, such that it
   * reaches the peer's NAT soon after the peer's own SYN has left it: that saves up to half a round trip. Undefined
   * where ports must be measured first.
   */
  #headStart(): number | undefined {
    const { ground, lastEndedAt } = this.#options;
    const [ours, theirs] = [ground.roundTripMs, this.#peer.roundTripMs];
    const isKept =
      ground.behaviour?.mapping === "endpoint-independent" && this.#peer.mapping === "endpoint-independent";
    if (!isKept || ours === undefined || theirs === undefined) return undefined;
    // The last link's RST may still be on its way; on a NAT it would delete the mapping of a SYN that left before.
    if (lastEndedAt !== undefined && performance.now() - lastEndedAt < ours + theirs) return undefined;
    const distanceMs = (ours + theirs) / 2;
    const waitMs = Math.max(distanceMs * (1 - headStartShare), distanceMs / 2 + headStartSpareMs);
    return waitMs < punchDeadlineMs ? waitMs : undefined;
  }

  #start(order: PunchOrder): Punch {
    const { ground, onAttempt } = this.#options;
    const { role, token, startInMs, deadlineMs = punchDeadlineMs } = order;
    const way = order.way === "birthday" && !this.#mayTryBirthday(deadlineMs) ? "direct" : order.way;
    if (way === "birthday" && ground.takesRelay && this.#relayToken === undefined)
      this.#reserved ??= reserve(ground.introducer);
    const punch: Punch = (this.#freshPort ?? ground.port).punch({
      ...(role && token && { introduction: { role, token } }),
      bond: this.#bond,
      candidates: candidatesOf({ ...order, ...(way && { way }) }, this.#peer, ground, this.#allowance),
      startInMs,
      deadlineMs,
      isReachable: isReachable(ground, this.#peer, way),
      isAsked: this.#options.unasked === undefined,
      isUnscaled: this.#isUnscaled,
      clampsSegments: ground.clampsSegments,
      onLinked: (channel) => this.#linked(channel),
      onFailed: (reason, detail) => this.#roundFailed(punch, reason, detail),
      onAttempt,
    });
    return punch;
  }

  /**
   * Whether there may be hundreds of sockets at where the introducer says that the peer is. If not, the round goes on
   * without: the peer's own may still find us, and a relay that is offered meanwhile is taken.
   */
  #mayTryBirthday(lastsMs: number): boolean {
    const isAsked = this.#options.unasked === undefined;
    const round = { isAsked, before: this.#birthday, lastsMs };
    const birthday = this.#options.ground.port.targets.birthday(this.#peer.public, round);
    this.#birthday = birthday ?? this.#birthday;
    return birthday !== undefined;
  }

  #linked(channel: Channel): void {
    // Nothing is nominated before the introducer's word, which brings both.
    const [role, token] = [this.#role!, this.#token!];
    this.#options.unasked?.linked(true);
    this.#options.ground.port.targets.authenticated(channel.remote, this.#birthday);
    this.#options.onChannel(channel, { role, token, elapsedMs: performance.now() - this.#startedAt });
    this.#end(undefined);
  }

  /** The introducer hears it, and tells the peer or begins the next round. */
  #roundFailed(punch: Punch, reason: FailureReason, detail: string): void {
    if (this.#isOver || this.#punch !== punch) return;
    this.#isUnscaled ||= punch.needsUnscaled;
    if (reason === "timed-out") this.#options.ground.handshakeStuck();
    if (this.#token !== undefined) this.#report(reason, this.#token);
    if (this.#isLast) return this.failed(reason, detail);
    this.#punch = undefined;
    this.#expect(reason, detail);
  }

  #report(reason: FailureReason, token: string): void {
    this.#options.ground.send({ type: "failed", peer: this.#peer.id, token, reason });
  }

  /** Fails if nothing follows. */
  #expect(reason: FailureReason, detail: string): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.failed(reason, detail), answerTimeoutMs);
  }

  #end(failure: Failure | undefined): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stopPunching();
    this.#relay?.abort();
    void this.#takeReserved()?.then((socket) => socket?.close());
    this.#options.onEnd(failure);
  }

  #stopPunching(): void {
    clearTimeout(this.#timer);
    const punch = this.#punch;
    this.#punch = undefined;
    punch?.abort("timed-out", "the introduction is over");
  }
}

/**
 * Whether no NAT stands before us: we have the public address ourselves, or share it with the peer. Or else our router
 * has opened a port, and the peer's SYN can't have the four-tuple of one of ours (punch-port.ts, #stopListening), because one
 * of our mappings is another for every destination and nobody guesses.
 */
function isReachable(own: Ground, peer: Peer, way: Way = "direct"): boolean {
  const address = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  if (isUntranslated(own) || address(own.public) === address(peer.public)) return true;
  const mappings = [own.behaviour?.mapping ?? "unknown", peer.mapping];
  return own.mapped !== undefined && way === "direct" && mappings.some((mapping) => isDependent({ mapping }));
}

function candidatesOf(
  { way, own, theirs }: Partial<PunchOrder>,
  peer: Peer,
  { public: observed, private: offered, port, behaviour, introducer }: Ground,
  allowance: Allowance,
): Candidate[] {
  const hosts = hostAddresses();
  return roundCandidates({
    way: way ?? "direct",
    own: { mapping: behaviour?.mapping ?? "unknown", private: offered, public: observed },
    peer,
    introducer,
    ownPrediction: own,
    peerPrediction: theirs,
    ours: new Set(hostCandidates(splitEndpoint(observed).address, port.port, true, hosts)),
    hosts,
    allowance,
    // Half of what the system allows is for everything else.
    budget: Math.floor(descriptorLimit() / 2),
  });
}

/** Chooses candidates once, and dials none: the first time takes milliseconds, for which the peer's SYN would be early. */
export function rehearseCandidates(ground: Ground): void {
  const { id, public: observed, private: hosts } = ground;
  const [instance, fingerprint] = ["0".repeat(16), "0".repeat(64)];
  const peer = { id, name: "nobody", instance, fingerprint, public: observed, private: [...hosts], since: 0 };
  candidatesOf({}, { ...peer, mapping: "unknown" }, ground, new Allowance());
}
