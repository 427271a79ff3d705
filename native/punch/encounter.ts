/**
 * Our side of one introduction. We ask for it, or the peer does. Then it measures and punches, round after round, as
 * the introducer says, and takes the relay that the introducer offers beside them. It ends exactly once: when a direct
 * channel is nominated, or when all has failed. Owns its punch, its attempt at the relay and its timer. Knows no other
 * peer, and not what a channel is for. For native/participant/peer.ts.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 §8 (nomination).
 */
import {
  type Endpoint,
  type FailureReason,
  formatEndpoint,
  isUntranslated,
  type Peer,
  punchDeadlineMs,
  type Role,
  splitEndpoint,
  type ToParticipant,
  type Way,
} from "../../protocol.ts";
import { isDependent, roundsPerWay } from "../shares/rounds.ts";
import { hostAddresses } from "../host/interfaces.ts";
import type { Channel } from "../secure/channel.ts";
import type { Bond } from "../secure/room.ts";
import { descriptorLimit } from "../host/socket.ts";
import { Allowance, type Unasked } from "./allowance.ts";
import { roundCandidates } from "./candidates.ts";
import { type Candidate, haveTakenPorts } from "./dial.ts";
import type { Attempt, Punch } from "./punch.ts";
import type { PunchPort } from "./punch-port.ts";
import { distances, headStart } from "./head-start.ts";
import { Predictor } from "./predictor.ts";
import { RelayWay } from "./relay-way.ts";
import { IntroductionBirthdays } from "./targets.ts";
import type { PunchContext } from "./context.ts";

/** How long the introducer may take to answer `connect`, or to begin the next round. */
const answerTimeoutMs = 10_000;
/** Rounds of one introduction: those of one way, then those of another, and one of the way that worked last time. */
const maxRounds = 2 * roundsPerWay + 2;
/** Each round may be measured for, and once more if the NAT has gone on meanwhile. */
const maxMeasures = 2 * maxRounds;

export type PunchMessage = ToParticipant & { type: "punch" };
export type MeasureMessage = ToParticipant & { type: "measure" };
export type RelayMessage = ToParticipant & { type: "relay" };
/**
 * What a punch is started with: the introducer's message, or what of it is known before it comes. `since`: from when on its
 * time is counted (performance.now).
 */
type PunchOrder = Pick<PunchMessage, "startInMs"> & Partial<PunchMessage> & { since?: number };

export interface EncounterOptions {
  context: PunchContext;
  peer: Peer;
  /** How it was admitted; undefined if we asked for it. */
  unasked: Unasked | undefined;
  onRound(round: Pick<PunchMessage, "role" | "way" | "round">): void;
  onAttempt(attempt: Attempt): void;
  /** A channel was nominated: maybe first a relayed one, and later a direct one. */
  onChannel(channel: Channel, nominated: Nominated): void;
  /** Called once, at the end. `failure` says why there was no direct channel. */
  onEnd(failure: Failure | undefined): void;
}

export interface Failure {
  reason: FailureReason;
  detail: string;
}

/** What a channel was nominated under. */
export interface Nominated {
  role: Role;
  /** The token of the round, or of the relay. */
  token: string;
  /** Since our `connect`, or since the introducer's first message. */
  elapsedMs: number;
  /** Of a relay: why there is no direct way, if that is known. */
  why?: FailureReason | undefined;
}

/** What is known of the round under way. */
interface Round {
  /** Of all that were begun. */
  number: number;
  /** Undefined while we wait for the answer to our `connect`. */
  token: string | undefined;
  role: Role | undefined;
  /** Whether no other follows it. */
  isLast: boolean;
  freshPort: PunchPort | undefined;
}

type State =
  /** `hasWaited`: the introducer has refused us once, and said for how long. */
  | { is: "going"; mayRelay: boolean; hasWaited: boolean }
  /** There is no direct way, and the relay is still tried. */
  | { is: "relaying"; failure: Failure }
  | { is: "over" };

export class Encounter {
  readonly #options: EncounterOptions;
  readonly #startedAt = performance.now();
  /** What all rounds together may send to endpoints that only the peer calls its own. */
  readonly #allowance: Allowance;
  readonly #relay: RelayWay;
  readonly #predictor: Predictor;
  readonly #birthdays: IntroductionBirthdays;
  #peer: Peer;
  #round: Round = { number: 0, token: undefined, role: undefined, isLast: false, freshPort: undefined };
  /** The punch of the round under way. Before the first round: the one that began before the introducer's answer. */
  #punch: Punch | undefined;
  /** Whether a round has shown that window scaling does not come through. Then the others do without it. */
  #isUnscaled = false;
  #state: State = { is: "going", mayRelay: true, hasWaited: false };
  #timer: NodeJS.Timeout | undefined;

  constructor(options: EncounterOptions) {
    this.#options = options;
    this.#peer = options.peer;
    this.#relay = new RelayWay(options.context);
    this.#predictor = new Predictor(options.context, maxMeasures);
    const { targets } = options.context.port;
    this.#birthdays = new IntroductionBirthdays(targets, options.unasked === undefined);
    this.#allowance = new Allowance((endpoint) => targets.claim(endpoint, this.#peer.public));
  }

  get #isOver(): boolean {
    return this.#state.is === "over";
  }

  /** Why the direct way failed, while we still wait for the relay. */
  get #failure(): Failure | undefined {
    return this.#state.is === "relaying" ? this.#state.failure : undefined;
  }

  /** Whether it still waits for the answer to our `connect`. */
  get isAsking(): boolean {
    return this.#round.token === undefined && this.#relay.token === undefined;
  }

  isOf(token: string): boolean {
    return token === this.#round.token || token === this.#relay.token;
  }

  /**
   * Asks the introducer for the peer. `mayRelay`: whether a relay would do. Our first SYN may leave before the introducer
   * answers. Where our NAT stands, which the introducer is going to ask, is measured meanwhile.
   */
  ask(mayRelay: boolean): void {
    if (this.#state.is === "going") this.#state.mayRelay = mayRelay;
    const waitMs = headStart(this.#options.context, this.#peer);
    const askedAt = performance.now();
    this.#options.context.send({
      type: "connect",
      peer: this.#peer.id,
      ...(!mayRelay && { relay: false }),
      ...(waitMs !== undefined && { early: true }),
    });
    this.#predictor.begin(this.#peer);
    if (waitMs !== undefined) this.#punch = this.#start({ startInMs: waitMs, since: askedAt });
    this.#expect("timed-out", "the introducer did not answer");
  }

  /** Asks once more, after so long. Returns false if it has done so before. */
  askAgainIn(ms: number): boolean {
    if (this.#state.is !== "going" || this.#state.hasWaited) return false;
    const { mayRelay } = this.#state;
    this.#stopPunching();
    this.#state = { is: "going", mayRelay, hasWaited: true };
    this.#timer = setTimeout(() => this.ask(mayRelay), ms);
    return true;
  }

  /** Measures for a round that dials predicted or fresh ports. */
  async measure({ peer, token, way }: MeasureMessage): Promise<void> {
    if (!this.#predictor.mayMeasure())
      return this.cancel("refused-by-peer", "it had us measure more often than there are rounds");
    this.#nextRound(peer, token);
    this.#expect("timed-out", "the introducer did not begin the round it had us measure for");
    const { context } = this.#options;
    const { prediction, localPort } = await this.#predictor.measure(way, peer);
    if (localPort !== undefined && token === this.#round.token)
      this.#round.freshPort = context.portFor(localPort);
    if (!this.#isOver) context.send({ type: "measured", token, ...(prediction && { prediction }) });
  }

  get #bond(): Bond {
    const { bondKey: key, self } = this.#options.context;
    return { key, self, peer: this.#peer };
  }

  /** Begins a round. The same message twice begins it once. */
  punch(message: PunchMessage): void {
    const { peer, token, role, way, round, last, deadlineMs } = message;
    if (token === this.#round.token && this.#punch) return;
    if (!this.#mayPunch(message))
      return this.cancel("refused-by-peer", "it asked for more than we give unasked");
    this.#options.onRound({ role, way, round });
    if (this.#isOver) return; // the callback may have cancelled it
    const early =
      this.isAsking && way === "direct" && this.#punch?.isOver === false ? this.#punch : undefined;
    this.#round.role = role;
    if (early) {
      this.#round.token = token;
      early.introduce({ token, role }, deadlineMs);
    } else {
      const counts = this.#options.context.behaviour?.mapping === "sequential";
      const hasGoneOn = way === "predicted" && counts && haveTakenPorts(this.#punch?.dials ?? []);
      this.#nextRound(peer, token);
      if (hasGoneOn) void this.#predictor.predict(peer);
      this.#punch = this.#start(message);
    }
    this.#round.isLast = last;
    clearTimeout(this.#timer);
  }

  /** Takes the relay. If that is the introducer's first message, there is no direct way. */
  relay({ peer, role, token, why: told }: RelayMessage): void {
    if (this.#isOver || this.#relay.token !== undefined || this.#options.context.takes === "direct") return;
    const isOnlyWay = this.isAsking;
    if (isOnlyWay) clearTimeout(this.#timer);
    this.#options.context.doubtMapping();
    this.#peer = peer;
    const onChannel = (channel: Channel) => {
      const failure = this.#failure;
      this.#options.unasked?.linked(false);
      const why = failure?.reason ?? told;
      this.#options.onChannel(channel, { role, token, elapsedMs: performance.now() - this.#startedAt, why });
      if (isOnlyWay || failure) this.#end(failure);
    };
    const onFailed = (detail: string, reason: FailureReason) =>
      this.#relayFailed(token, isOnlyWay, { reason, detail });
    this.#relay.take({ role, token }, this.#bond, onChannel, onFailed);
  }

  #relayFailed(token: string, isOnlyWay: boolean, failure: Failure): void {
    const direct = this.#failure;
    this.#report("timed-out", token);
    if (isOnlyWay) this.#end(failure);
    else if (direct) this.#end({ ...direct, detail: `${direct.detail}; ${failure.detail}` });
  }

  /** Whether this round is allowed: there are no more rounds than in the longest plan, whatever an introducer says. */
  #mayPunch({ token, way, deadlineMs }: PunchMessage): boolean {
    if (++this.#round.number > maxRounds) return false;
    const { unasked } = this.#options;
    if (way !== "birthday" || !unasked || unasked.mayTryBirthday(deadlineMs)) return true;
    this.#round.token ??= token;
    return false;
  }

  /** The introducer is gone. A round that has begun goes on without it, and is the last. */
  introducerLost(reason: string): void {
    if (this.#round.token === undefined || !this.#punch) return this.abort("introducer-lost", reason);
    this.#round.isLast = true;
  }

  /** Gives up, and tells the introducer nothing. Does nothing once it is over. */
  abort(reason: FailureReason, detail: string): void {
    this.#end({ reason, detail });
  }

  /** There is no direct way. That is the end, unless the relay is still being tried. */
  failed(reason: FailureReason, detail: string): void {
    if (this.#isOver) return;
    if (!this.#relay.isTried) return this.abort(reason, detail);
    this.#state = { is: "relaying", failure: { reason, detail } };
    this.#stopPunching();
  }

  /** Gives up, and tells the introducer, which tells the peer. */
  cancel(reason: FailureReason, detail: string): void {
    const { token } = this.#round;
    if (!this.#isOver && token !== undefined) this.#report("refused-by-peer", token);
    this.abort(reason, detail);
  }

  /** Sets the state for a new round. What is left of an earlier one is aborted, and nobody is told. */
  #nextRound(peer: Peer, token: string): void {
    this.#peer = peer;
    if (token === this.#round.token) return; // it has measured for this round
    this.#round.token = token;
    this.#round.freshPort = undefined;
    const earlier = this.#punch;
    this.#punch = undefined;
    this.#isUnscaled ||= earlier?.seen.needsUnscaled === true;
    earlier?.abort("timed-out", "another round follows");
  }

  #start(order: PunchOrder): Punch {
    const { context, onAttempt } = this.#options;
    const { role, token, startInMs, deadlineMs = punchDeadlineMs, since = performance.now() } = order;
    const way =
      order.way === "birthday" && !this.#birthdays.begin(this.#peer.public, deadlineMs)
        ? "direct"
        : order.way;
    if (way === "birthday") this.#relay.reserve();
    const punch: Punch = (this.#round.freshPort ?? context.port).punch({
      ...(role && token && { introduction: { role, token } }),
      bond: this.#bond,
      candidates: candidatesOf({ ...order, ...(way && { way }) }, this.#peer, context, this.#allowance),
      // To choose candidates has taken a while.
      startInMs: Math.max(0, startInMs - (performance.now() - since)),
      deadlineMs,
      isReachable: isReachable(context, this.#peer, way),
      isAsked: this.#options.unasked === undefined,
      isUnscaled: this.#isUnscaled,
      segmentClamp: context.segmentClamp,
      onLinked: (channel) => this.#linked(channel),
      onFailed: (reason, detail) => this.#roundFailed(punch, reason, detail),
      // The next round, by fresh ports, need not wait until this one is over.
      onUnheard: () => {
        if (this.#round.token === undefined || this.#round.isLast) return;
        punch.abort("no-candidate-answered", "the peer's NAT answered, and then no more");
      },
      onAttempt,
    });
    return punch;
  }

  #linked(channel: Channel): void {
    // Both have come with the introducer's message. Nothing is nominated before.
    const [role, token] = [this.#round.role!, this.#round.token!];
    this.#options.unasked?.linked(true);
    this.#birthdays.authenticated(channel.remote);
    const { handshakeMs } = channel;
    if (handshakeMs !== undefined)
      distances.keep(this.#options.context.public, this.#peer.public, handshakeMs / 2);
    this.#options.onChannel(channel, { role, token, elapsedMs: performance.now() - this.#startedAt });
    void this.#predictor.tell();
    this.#end(undefined);
  }

  /** Tells the introducer, which tells the peer, or begins the next round. */
  #roundFailed(punch: Punch, reason: FailureReason, detail: string): void {
    if (this.#isOver || this.#punch !== punch) return;
    this.#isUnscaled ||= punch.seen.needsUnscaled;
    if (reason === "timed-out") this.#options.context.handshakeStuck();
    this.#options.context.doubtMapping();
    if (this.#round.token !== undefined) this.#report(reason, this.#round.token);
    if (this.#round.isLast) return this.failed(reason, detail);
    this.#punch = undefined;
    this.#expect(reason, detail);
  }

  #report(reason: FailureReason, token: string): void {
    this.#options.context.send({ type: "failed", peer: this.#peer.id, token, reason });
  }

  /** Fails if the introducer does not go on in time. */
  #expect(reason: FailureReason, detail: string): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      // It may still wait for us.
      if (this.#round.token !== undefined) this.#report("timed-out", this.#round.token);
      this.failed(reason, detail);
    }, answerTimeoutMs);
  }

  #end(failure: Failure | undefined): void {
    if (this.#isOver) return;
    this.#state = { is: "over" };
    this.#stopPunching();
    this.#relay.close();
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
 * has opened a port, and the peer's SYN can't have the four-tuple of one of ours (punch-port.ts, #stopListening),
 * because one of our mappings is another for every destination and nobody guesses.
 */
function isReachable(own: PunchContext, peer: Peer, way: Way = "direct"): boolean {
  const address = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  if (isUntranslated(own) || address(own.public) === address(peer.public)) return true;
  const mappings = [own.behaviour?.mapping ?? "unknown", peer.mapping];
  return own.mapped !== undefined && way === "direct" && mappings.some((mapping) => isDependent({ mapping }));
}

function candidatesOf(
  { way, own, theirs }: Partial<PunchOrder>,
  peer: Peer,
  { public: observed, private: offered, port, behaviour, introducer }: PunchContext,
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
    ours: new Set([observed, ...hosts.map(({ address }) => formatEndpoint(address, port.port))]),
    hosts,
    allowance,
    // Half of what the system allows is for everything else.
    budget: Math.floor(descriptorLimit() / 2),
  });
}

/** Chooses candidates once, and dials none: the first time takes milliseconds, for which the peer's SYN would be early. */
export function rehearseCandidates(context: PunchContext): void {
  const { id, public: observed, private: hosts } = context;
  const [instance, fingerprint] = ["0".repeat(16), "0".repeat(64)];
  const peer = { id, name: "nobody", instance, fingerprint, public: observed, private: [...hosts], since: 0 };
  candidatesOf({}, { ...peer, mapping: "unknown" }, context, new Allowance());
}
