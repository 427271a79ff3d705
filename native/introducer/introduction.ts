/**
 * One introduction: two members are brought together, in as many rounds as the plan has. It owns how far that is, what each
 * side has said, and the token of the round. It has no clock and no timer, and knows no socket. For
 * native/introducer/introductions.ts alone. RFC 5128 §3.4, RFC 8445 (roles).
 *
 *   from        to          when
 *   planning    measuring   ports are to be predicted
 *   planning    punching    there is nothing to measure
 *   planning    relayed     there is no direct way, and a relay is offered instead
 *   measuring   punching    all have been measured, or have had the time
 *   punching    measuring   a side has failed, and the next round goes by predicted ports
 *   punching    punching    a side has failed, and the next round does not; or a NAT has gone on meanwhile
 *   punching    any         a side has said how its NAT maps, and that was guessed wrong
 *   any         ended       both are linked; it failed for good; one has left; another was asked for; it took too long
 */
import type { FailureReason, Prediction, Refusal, Situation, Way } from "../../protocol.ts";
import { planRounds } from "../shares/rounds.ts";
import type { IntroductionOwner } from "./introduction-owner.ts";
import type { Outcome } from "./metrics.ts";
import { Plan } from "./plan.ts";
import type { Asking, Quotas } from "./quotas.ts";
import { type OfferIndex, RelayOffer } from "./relay-offer.ts";
import { introductionMs, type Side } from "./round.ts";
import { type Member, newToken } from "./session.ts";

/** So long after a `punch` a `connect` may still come that was sent before it, besides two round trips. */
const crossingMs = 1_000;
/** Failures after which another round may succeed. */
const retriable: ReadonlySet<FailureReason> = new Set<FailureReason>([
  "no-candidate-answered",
  "authentication-failed",
  "handshake-cut",
  "timed-out",
]);

/** How far it is. Sides can report only on a round that was announced by a `punch`. */
type Phase =
  | { is: "planning" | "measuring" | "relayed"; untilMs: number }
  | { is: "punching"; untilMs: number; isLast: boolean }
  | { is: "ended" };

/** What an introduction needs of all of them. */
export interface Index extends OfferIndex {
  readonly quotas: Quotas;
  /** It is to {@link Introduction.tick} by then. */
  schedule(introduction: Introduction, at: number): void;
  /** From now on, or no more, what is reported with that token is for it. */
  addToken(token: string, introduction: Introduction): void;
  removeToken(token: string): void;
  /** The way by which the two have linked before. */
  workingWay(a: Member, b: Member): Way | undefined;
  keepWay(a: Member, b: Member, way: Way): void;
  /** It is over, and the pair may be introduced again. */
  ended(introduction: Introduction): void;
}

/** What is known of it, or likely. */
function likeliest({ peer, measured }: Member): Situation {
  const isUnknown = !measured && peer.mapping === "unknown";
  return isUnknown ? { ...peer, mapping: "endpoint-independent" } : peer;
}

/** Rounds for two of whom not all is known. Nothing fails for a guess, and for a blind one no thousand sockets are opened. */
function likelyRounds(a: Member, b: Member): Way[] {
  const rounds = planRounds(likeliest(a), likeliest(b));
  const isBlind = [a, b].some((one) => likeliest(one) !== one.peer);
  return rounds.length === 0 || (isBlind && rounds[0] === "birthday") ? ["direct", ...rounds] : rounds;
}

/** Whether there may be no direct way, because a side hides where it is. */
const isOnlyRelayed = ({ asker, target }: Asking): boolean =>
  [asker, target].some(({ takes }) => takes === "relayed");

/** Tells a member that it is not linked with that other, and why. */
function tellFailed(
  owner: IntroductionOwner,
  member: Member,
  other: Member,
  token: string,
  reason: FailureReason,
  detail: string,
): void {
  const [{ id }, { id: peer }] = [member.peer, other.peer];
  owner.send(member, { type: "failed", peer, token, reason });
  owner.emit({ event: "failed", id, peer, reason, detail });
}

export class Introduction {
  readonly asking: Asking;
  readonly relay: RelayOffer;
  readonly #index: Index;
  readonly #plan: Plan;
  #phase: Phase;
  /** Whether guessing ports was counted in the quotas, and whether it was done. */
  #birthday: "none" | "taken" | "punched" = "none";
  /** How the side that did not ask has linked: then it wanted the link. */
  #welcome: "not yet" | "by relay" | "directly" = "not yet";
  readonly #startedAt: number;
  readonly #expiresAt: number;
  /** When both were told last of something to connect by; Infinity before. */
  #toldAt = Infinity;

  constructor(index: Index, asking: Asking) {
    const now = index.now();
    this.#index = index;
    this.asking = asking;
    this.#plan = new Plan(index.owner, asking, (old, token) => {
      index.removeToken(old);
      index.addToken(token, this);
    });
    this.relay = new RelayOffer(
      index,
      asking,
      () => this.#plan.hasPunched,
      (token) => index.addToken(token, this),
    );
    this.#startedAt = now;
    this.#expiresAt = now + introductionMs(index.owner.limits);
    this.#phase = { is: "planning", untilMs: this.#expiresAt };
    index.schedule(this, this.#expiresAt);
  }

  /** Alone writes the phase. What has ended stays so. */
  #become(phase: Phase): void {
    if (this.#phase.is === "ended") return;
    this.#phase = phase;
    if (phase.is !== "ended") this.#index.schedule(this, Math.min(phase.untilMs, this.#expiresAt));
  }

  /**
   * Whether it answers a `connect` that comes later: both may have asked at once. Once a side has reported that it is
   * linked, or has known of the round for so long that the two can't have crossed, it knows how that ended, and means
   * another.
   */
  answers(asker: Member): boolean {
    const [side] = this.#plan.ofMember(asker);
    const now = this.#index.now();
    const hasCrossed = now - this.#toldAt < 2 * (asker.roundTripMs ?? 0) + crossingMs;
    return side!.report !== "linked" && now < this.#expiresAt && hasCrossed;
  }

  // the plan

  /**
   * Begins at once. Who has just come may still be measuring how its NAT maps. Most NATs keep one port, so that is the guess.
   * Called again when a side has said more: then the plan begins anew, if its first round was to be another one.
   */
  plan(): void {
    const { is } = this.#phase;
    const hasBegun = is !== "planning";
    if (hasBegun && (is === "relayed" || is === "ended" || !this.#plan.isCorrigible)) return;
    const { asker, target } = this.asking;
    const { owner, quotas, workingWay, now } = this.#index;
    if (isOnlyRelayed(this.asking)) return this.#relayInstead();
    const isGuessed = owner.canMeasure() && !(asker.measured && target.measured);
    const rounds = isGuessed ? likelyRounds(asker, target) : planRounds(asker.peer, target.peer);
    if (hasBegun && rounds[0] === this.#plan.first) return this.#plan.correct(rounds, isGuessed);
    if (rounds.length === 0) return this.#relayInstead();
    const known = workingWay(asker, target);
    const plan = known ? [known, ...rounds] : rounds;
    if (plan.includes("birthday") && this.#birthday === "none") {
      const refusal = quotas.spendBirthday(this.asking, now());
      if (refusal) return this.#relayInstead(refusal);
      this.#birthday = "taken";
    }
    this.#plan.set(plan, isGuessed);
    this.#startRound();
  }

  /** There is no direct way, for now if `refusal` says so. If there is no relay either, the asker is told why. */
  #relayInstead(refusal?: Refusal): void {
    // Random ports on both sides, or against counted ones: a hundred thousand guesses would be needed.
    const random = isOnlyRelayed(this.asking) ? "only-relayed" : "both-mappings-random";
    const reason = refusal ? "no-candidate-answered" : random;
    if (this.relay.make(reason === "only-relayed" ? undefined : reason)) {
      this.#toldAt = this.#index.now();
      return this.#become({ is: "relayed", untilMs: this.#expiresAt });
    }
    const { owner } = this.#index;
    const { asker, target } = this.asking;
    const { hasPunched } = this.#plan;
    if (refusal && !hasPunched) {
      this.end("refused");
      return owner.refuse(asker, refusal, target.peer.id);
    }
    const detail = refusal?.message ?? `${asker.peer.mapping} and ${target.peer.mapping} mapping`;
    if (hasPunched) return this.#failBoth(reason, detail);
    this.end(reason);
    tellFailed(owner, asker, target, newToken(), reason, detail);
  }

  // the rounds

  /** `reason`: why the last one failed. */
  #nextRound(reason: FailureReason = "no-candidate-answered"): void {
    if (!this.#plan.hasNext) {
      this.relay.make(reason);
      return this.#failBoth(reason);
    }
    const { owner } = this.#index;
    for (const { member } of this.#plan.sides)
      if (member.session.heardAt < this.#startedAt) owner.silent(member);
    this.#plan.next();
    this.#startRound();
  }

  /** They were told that another round follows, for more was hoped of their NATs. */
  #failBoth(reason: FailureReason, detail = ""): void {
    const { owner } = this.#index;
    const { token } = this.#plan;
    const { asker, target } = this.asking;
    this.end(reason);
    tellFailed(owner, asker, target, token, reason, detail);
    owner.send(target, { type: "failed", peer: asker.peer.id, token, reason });
  }

  /** Begins the round that the plan has next: measures first where ports are to be predicted. */
  #startRound(): void {
    const { owner, now } = this.#index;
    const measuring = this.#plan.begin();
    if (measuring.length === 0) return this.#punch();
    this.#become({ is: "measuring", untilMs: now() + owner.limits.measureMs });
    if (this.#plan.measure(measuring)) this.#punch();
  }

  /** Where the NAT of a member stands, seen by a probe on its way to the other. */
  probed(member: Member, prediction: Prediction): void {
    if (this.#plan.way === "predicted") this.measured(member, prediction);
  }

  measured(member: Member, prediction: Prediction | undefined): void {
    if (this.#plan.measured(member, prediction)) this.#punch();
  }

  #punch(): void {
    const { owner, told, now } = this.#index;
    const { asker, target } = this.asking;
    const at = now();
    const way = this.#plan.way!;
    const times = this.#plan.times(this.#startedAt + owner.limits.punchDeadlineMs - at);
    const untilMs = at + Math.max(...times.delays) + times.deadlineMs;
    this.#become({ is: "punching", untilMs, isLast: times.isLast });
    if (way === "birthday") this.#birthday = "punched";
    told(this.#plan.token, asker, target);
    this.#plan.punch(times);
    this.#toldAt = at;
    const round = this.#plan.at + 1;
    owner.emit({ event: "punch", a: asker.peer.id, b: target.peer.id, way, round });
    this.relay.punched();
  }

  // what the sides say

  linked(member: Member, token: string): void {
    const [side, other] = this.#plan.ofMember(member);
    if (!side) return;
    if (token === this.relay.token) this.#linkedByRelay(side);
    else if (this.#isReportable(side, token)) this.#linkedDirectly(side, other);
  }

  /** Whether that is the token of the round under way, and the side has not reported on it yet. */
  #isReportable(side: Side, token: string): boolean {
    return token === this.#plan.token && this.#phase.is === "punching" && side.report === undefined;
  }

  /** It ends no direct round: these go on meanwhile. */
  #linkedByRelay(side: Side): void {
    if (side === this.#plan.sides[1]) this.#welcomed("by relay");
    this.relay.linked(side.member);
    if (this.#phase.is !== "relayed") return;
    side.report = "linked";
    if (this.#plan.sides.every(({ report }) => report === "linked")) this.end("linked");
  }

  #linkedDirectly(side: Side, other: Side): void {
    side.report = "linked";
    if (this.#plan.at > 0) this.#index.keepWay(this.asking.asker, this.asking.target, this.#plan.way!);
    if (side === this.#plan.sides[1]) this.#welcomed("directly");
    if (other.report === "linked") {
      this.relay.withdraw();
      this.end("linked");
    } else if (other.report === "failed") this.#nextRound();
  }

  /** The first time, the introduction is given back to the asker's quota. */
  #welcomed(how: "by relay" | "directly"): void {
    const { quotas, now } = this.#index;
    if (this.#welcome === "not yet") quotas.refund(this.asking, now());
    if (this.#welcome !== "directly") this.#welcome = how;
  }

  failed(member: Member, token: string, reason: FailureReason): void {
    const [side, other] = this.#plan.ofMember(member);
    if (!side) return;
    if (token === this.relay.token) {
      if (side.report !== undefined || this.#phase.is !== "relayed") return;
      side.report = "failed";
      this.#fail(side, other, reason);
    } else if (this.#isReportable(side, token)) this.#failedDirectly(side, other, reason);
  }

  #failedDirectly(side: Side, other: Side, reason: FailureReason): void {
    if (this.#phase.is !== "punching") return;
    const { isLast, untilMs } = this.#phase;
    side.report = "failed";
    if (isLast || !retriable.has(reason)) return this.#fail(side, other, reason);
    // The other side still has its thousand sockets open: who fails at once must not make it open another thousand.
    const isAlone = other.report === undefined && this.#index.now() < untilMs;
    if (this.#plan.way === "birthday" && isAlone) return;
    this.#nextRound(reason);
  }

  #fail(side: Side, other: Side, reason: FailureReason): void {
    const { owner } = this.#index;
    if (retriable.has(reason)) this.relay.make(reason);
    const token = this.#plan.token || this.relay.token;
    const [id, peer] = [side.member.peer.id, other.member.peer.id];
    if (other.report === undefined) owner.send(other.member, { type: "failed", peer: id, token, reason });
    this.end(reason);
    owner.emit({ event: "failed", id, peer, reason, detail: "" });
  }

  /** That member is gone. */
  left(member: Member, detail: string): void {
    // Before the first round there is no token yet, and the other side takes any.
    const token = this.#plan.token || this.relay.token || newToken();
    this.end("peer-left");
    const [, side] = this.#plan.ofMember(member);
    if (side.report === undefined)
      tellFailed(this.#index.owner, side.member, member, token, "peer-left", detail);
  }

  // time

  tick(now: number): void {
    const phase = this.#phase;
    if (phase.is === "ended") return;
    if (now >= this.#expiresAt) return this.#expire();
    if (now < phase.untilMs) return;
    if (phase.is === "measuring") this.#punch();
    else if (
      phase.is === "punching" &&
      !phase.isLast &&
      this.#plan.sides.some(({ report }) => report === "failed")
    )
      this.#nextRound();
  }

  /** When it is to be looked at next, if nobody says anything before. */
  dueAt(now: number): number {
    const untilMs = this.#phase.is === "ended" ? -Infinity : this.#phase.untilMs;
    return untilMs > now ? Math.min(untilMs, this.#expiresAt) : this.#expiresAt;
  }

  /** Both sides know the deadlines of direct rounds. They have to be told that nobody took a relay. */
  #expire(): void {
    const { token } = this.relay;
    const wasRelayed = this.#phase.is === "relayed";
    this.end("timed-out");
    if (!wasRelayed) return;
    for (const { member, report } of this.#plan.sides) {
      const [, { member: other }] = this.#plan.ofMember(member);
      if (report === undefined)
        tellFailed(this.#index.owner, member, other, token, "timed-out", "the relay was not taken");
    }
  }

  end(outcome: Outcome): void {
    const { quotas, removeToken, ended, now } = this.#index;
    const at = now();
    this.#count(outcome, at);
    removeToken(this.#plan.token);
    removeToken(this.relay.token);
    this.relay.end();
    this.#become({ is: "ended" });
    ended(this);
    if (this.#birthday === "taken") quotas.settleBirthday(this.asking, "unused", at);
    if (this.#birthday === "punched")
      quotas.settleBirthday(this.asking, this.#welcome === "directly" ? "linked" : "failed", at);
  }

  /** One that is relayed counts as linked, even if its direct rounds failed. */
  #count(outcome: Outcome, now: number): void {
    const { owner } = this.#index;
    const wasRelayed = this.#phase.is === "relayed";
    const { linkedAt } = this.relay;
    if (linkedAt !== undefined && (outcome !== "linked" || wasRelayed))
      return owner.count("linked", "relay", linkedAt - this.#startedAt);
    owner.count(outcome, wasRelayed ? "relay" : (this.#plan.way ?? "none"), now - this.#startedAt);
  }
}
