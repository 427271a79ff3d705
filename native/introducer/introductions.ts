/**
 * How two members are brought together: plans the rounds by how their NATs map, tells both when to punch, hears what became
 * of it, and sees to it that nobody is made to punch more than is good for him. It sends nothing itself. For introducer.ts
 * alone. RFC 5128 §3.4, RFC 8445 (roles).
 */
import { type Bucket, fullAt, Usage, waitRefusal, waitSeconds } from "../shares/budget.ts";
import { Deadlines, type Due, notScheduled } from "./wheel.ts";
import type { Outcome, OutcomeWay } from "./metrics.ts";
import { Rounds } from "../shares/turns.ts";
import { ToldTokens } from "./told.ts";
import { WorkingWays } from "./ways.ts";
import {
  type FailureReason,
  formatEndpoint,
  isAhead,
  planRounds,
  predictedPorts,
  type Prediction,
  predictPort,
  Refusal,
  relayAfterMs,
  type Role,
  splitEndpoint,
  type ToParticipant,
  type Way,
} from "../../protocol.ts";
import type { Limits } from "./limits.ts";
import type { IntroducerEvent } from "./events.ts";
import { isAt } from "./observe.ts";
import { type Member, type MessageOf, newToken } from "./session.ts";
import type { About } from "./lines.ts";

/** How fast an introduction to somebody is forgotten as one that its asker's address had, and when it had none of late. */
const targetWindowMs = 60_000;
const hadNone = 0.5;

/** How often it is looked at whether what somebody got of others has come back. */
const unaskedMs = 10_000;

/** A report may be under way this long after the punch's deadline. */
const reportGraceMs = 2000;

/** No start is put off longer, whatever round trips a participant feigns. */
const maxStartInMs = 2000;

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
  "handshake-cut",
  "timed-out",
]);

/** How often a round by predicted ports is begun anew because a NAT has gone on. */
const maxCorrections = 2;

/** One of the two in an introduction. */
interface Side {
  readonly member: Member;
  /** What it said of the round under way; undefined while that is still to come. */
  report: "linked" | "failed" | undefined;
  isMeasuring: boolean;
  prediction: Prediction | undefined;
  /** What came while it was punching by an older prediction. */
  newer: Prediction | undefined;
  /** Whether it has said that it is linked by relay. */
  isRelayed: boolean;
}

/** How far an introduction is. Only what has been announced by a `punch` can be reported on. */
type Phase =
  | { is: "planning"; untilMs: number }
  | { is: "measuring"; untilMs: number }
  | { is: "punching"; untilMs: number; isLast: boolean }
  /** There is no direct way, and a relay is offered instead. */
  | { is: "relayed"; untilMs: number };

/** Two participants being brought together, in as many rounds as the plan has. */
interface Introduction {
  readonly pair: Pair;
  /** The asker first: it is the controlling side. */
  readonly sides: readonly [Side, Side];
  phase: Phase;
  /** Of the round under way; empty before the first. */
  token: string;
  /** Empty while planning. */
  plan: Way[];
  /** Index in the plan. */
  round: number;
  /** Offered once it is due, never before there has been a direct round. */
  relay: "unwanted" | "wanted" | "due" | "offered";
  relayToken: string;
  hasPunched: boolean;
  /** Whether the round under way goes by predictions that are being measured anew. */
  isByOlder: boolean;
  /** How often it was begun anew because they were wrong. */
  corrections: number;
  /** Whether a birthday has been taken from the budgets, and whether one has been punched. */
  isCounted: boolean;
  hasBirthday: boolean;
  /** Whether the side that did not ask has said that it is linked. */
  isWelcome: boolean;
  /** Whether it has been given back to the budgets. */
  isFree: boolean;
  /** When both had said that they are linked by relay. */
  relayLinkedAt: number | undefined;
  readonly startedAt: number;
  readonly deadlineAt: number;
  readonly expiresAt: number;
}

/** What one member asked of another. */
interface Asked {
  introductions: Bucket;
  birthdays: Bucket;
  birthdayFailedAt: number;
}

/** What one member got from all others, until that has come back. */
interface Unasked extends Due {
  readonly id: number;
  introductions: Bucket;
  /** Of them, those by each address. */
  perAddress: Usage;
  failedBirthdays: Bucket;
}

/** Two who are being introduced, or have been lately. */
interface Pair extends Due {
  readonly members: readonly [Member, Member];
  introduction: Introduction | undefined;
  /** By the asker's id. */
  readonly asked: Map<number, Asked>;
}

/** How long the sides wait so that both start at the same moment, for one-way delays from the introducer. */
export function startDelays(a: number | undefined, b: number | undefined): [number, number] {
  const [delayA, delayB] = [Math.round((a ?? 0) / 2), Math.round((b ?? 0) / 2)];
  const last = Math.max(delayA, delayB);
  return [Math.min(last - delayA, maxStartInMs), Math.min(last - delayB, maxStartInMs)];
}

/** How long the round under way may last, and whether no other follows: told in its `punch`, and held to. */
function roundLength({ plan, round, sides, deadlineAt }: Introduction, now: number) {
  const way = plan[round]!;
  const leftMs = deadlineAt - now;
  const roundTripMs = (sides[0].member.roundTripMs ?? 0) + (sides[1].member.roundTripMs ?? 0);
  // An open host accepts within one round trip, or not at all.
  const isTrial = way === "direct" && plan[round + 1] === "birthday";
  const roundMs = isTrial
    ? 2 * roundTripMs + trialSpareMs
    : roundTripMs * roundRoundTrips[way] + roundSpareMs[way];
  const isLast = round === plan.length - 1 || leftMs - roundMs < shortestRoundMs;
  return { isLast, deadlineMs: Math.max(1, Math.round(isLast ? leftMs : roundMs)) };
}

/** How long an introduction may take in all, with what is said of it at the end. */
function introductionMs({ punchDeadlineMs: mostMs }: Limits): number {
  return mostMs + maxStartInMs + reportGraceMs;
}

/** Links by a token are reported within this time: a relay may be offered as the last round ends. */
function reportableMs(limits: Limits): number {
  return introductionMs(limits) + limits.relayOfferMs + reportGraceMs;
}

/** What the introductions need of the sessions. */
interface Exchange {
  readonly limits: Limits;
  /** Whether there are probe ports, so that participants can say how their NATs map. */
  readonly canMeasure: boolean;
  send(member: Member, message: ToParticipant): void;
  /** Sends a message that shows `about`. */
  show(member: Member, about: Member, message: About): void;
  /** The token of a relay between the two, where there can be one. */
  offerRelay(a: Member, b: Member): string | undefined;
  /** Refuses a `connect` that has been accepted before. */
  refuse(member: Member, refusal: Refusal, peer: number): void;
  tell(event: IntroducerEvent): void;
  /** Does what serves a member: what fails in it costs that one only. Of nobody, it costs nobody. */
  serve(member: Member | undefined, work: () => void): void;
  /** An introduction has ended. */
  count(outcome: Outcome, way: OutcomeWay, elapsedMs: number): void;
}

/**
 * Brings two members together: plans the rounds by how their NATs map, tells both when to punch, hears what became of
 * it, and sees to it that nobody is made to punch more than is good for him.
 */
export class Introductions {
  readonly #exchange: Exchange;
  /** When each pair is to be looked at next. */
  readonly #duePairs: Deadlines<Pair>;
  readonly #rounds = new Rounds(
    () => this.#duePairs.take(performance.now()).values(),
    (pair, now) => this.#lookAt(pair, now),
  );
  readonly #dueUnasked: Deadlines<Unasked>;
  readonly #unaskedRounds = new Rounds(
    () => this.#dueUnasked.take(performance.now()).values(),
    (unasked, now) => this.#lookAtUnasked(unasked, now),
  );
  readonly #workingWays = new WorkingWays();
  /** By the ids of both. */
  readonly #of = new Map<number, Map<number, Pair>>();
  readonly #byToken = new Map<string, Introduction>();
  /** What each member got from all others, by its id. */
  readonly #unasked = new Map<number, Unasked>();
  readonly #told: ToldTokens;
  /** Those to be offered a relay, and when, the first due first. */
  readonly #relayAt = new Map<Introduction, number>();
  #relayTimer: Timer | undefined;

  /** It is to {@link tick} every `tickMs`. */
  constructor(exchange: Exchange, tickMs: number) {
    this.#exchange = exchange;
    this.#duePairs = new Deadlines(tickMs, performance.now());
    this.#dueUnasked = new Deadlines(tickMs, performance.now());
    this.#told = new ToldTokens(reportableMs(exchange.limits));
  }

  /** The ids that a member is being introduced to. */
  punching(id: number): number[] {
    const pairs = [...(this.#of.get(id) ?? [])];
    return pairs.filter(([, pair]) => pair.introduction !== undefined).map(([peer]) => peer);
  }

  stop(): void {
    clearTimeout(this.#relayTimer);
  }

  /** Throws a {@link Refusal} when there have been too many. */
  ask(asker: Member, target: Member, wantsRelay: boolean): void {
    const now = performance.now();
    const pair = this.#pair(asker, target);
    const { introduction } = pair;
    if (introduction && this.#isAnswer(introduction, asker, now)) {
      if (wantsRelay) this.#wantRelay(introduction, now);
      return;
    }
    this.#charge(pair, asker, target, now);
    if (introduction) this.#end(introduction, "superseded");
    pair.introduction = this.#introduction(pair, asker, target, now);
    this.#duePairs.put(pair, pair.introduction.phase.untilMs);
    if (wantsRelay) this.#wantRelay(pair.introduction, now);
    this.#plan(pair.introduction);
  }

  /** A member has said how its NAT maps. */
  mapped(member: Member): void {
    for (const { introduction } of this.#of.get(member.peer.id)?.values() ?? []) {
      if (introduction?.phase.is === "planning") this.#plan(introduction);
    }
  }

  /** Where a member's NAT stands now. */
  probed(member: Member, peer: number, prediction: Prediction): void {
    const introduction = this.#of.get(member.peer.id)?.get(peer)?.introduction;
    if (introduction?.plan[introduction.round] === "predicted")
      this.#measured(introduction, member, prediction);
  }

  measured(member: Member, message: MessageOf<"measured">): void {
    const { token, prediction } = message;
    const introduction = this.#byToken.get(token);
    if (introduction) this.#measured(introduction, member, prediction);
  }

  #measured(introduction: Introduction, member: Member, prediction: Prediction | undefined): void {
    const { sides, plan, round, isByOlder } = introduction;
    const side = sides.find((one) => one.member === member);
    if (!side?.isMeasuring) return; // late: the round has begun without it
    if (prediction && isAt(prediction.endpoint, member)) {
      if (plan[round] === "predicted") member.position = prediction;
      if (isByOlder) side.newer = prediction;
      else side.prediction = prediction;
    }
    side.isMeasuring = false;
    if (sides.some(({ isMeasuring }) => isMeasuring)) return;
    if (!isByOlder) this.#punch(introduction);
    else if (sides.some((one) => one.newer && !isAhead(one.prediction!, one.newer)))
      this.#punchAnew(introduction);
  }

  /** What the round aims at has passed by already. */
  #punchAnew(introduction: Introduction): void {
    const { sides } = introduction;
    this.#newToken(introduction);
    // Where both count, each has used up as many ports as it has tried since it was measured.
    const used = sides.every(({ newer }) => newer) ? predictedPorts : 0;
    for (const side of sides) {
      const { newer } = side;
      side.report = side.newer = undefined;
      if (!newer) continue;
      const { address } = splitEndpoint(newer.endpoint);
      side.prediction = { ...newer, endpoint: formatEndpoint(address, predictPort(newer, used)) };
    }
    // A side that had to try again and again has gone on since, and will say so once more.
    introduction.isByOlder = used === 0 && ++introduction.corrections < maxCorrections;
    for (const side of sides) side.isMeasuring = introduction.isByOlder && side.member.position !== undefined;
    this.#punch(introduction);
  }

  /** Whether that is one of the two who were told that token, and has not said yet that they are linked by it. */
  mayReport({ peer }: Member, other: Member, token: string): boolean {
    return this.#told.take(token, peer.instance, other.peer.instance, performance.now());
  }

  #tell(token: string, [a, b]: readonly Member[]): void {
    this.#told.tell(token, a!.peer.instance, b!.peer.instance, performance.now());
  }

  linked(member: Member, message: MessageOf<"linked">): void {
    const { token } = message;
    const introduction = this.#byToken.get(token);
    if (introduction?.relayToken === token) this.#linkedByRelay(introduction, member);
    else this.#linkedDirectly(member, token);
  }

  /** Direct rounds go on meanwhile: it ends none of them. */
  #linkedByRelay(introduction: Introduction, member: Member): void {
    const { sides, phase } = introduction;
    const side = sides.find((one) => one.member === member);
    if (side === sides[1]) this.#refund(introduction);
    if (!side) return;
    side.isRelayed = true;
    if (sides.every(({ isRelayed }) => isRelayed)) introduction.relayLinkedAt ??= performance.now();
    if (phase.is !== "relayed") return;
    side.report = "linked";
    if (sides.every(({ report }) => report === "linked")) this.#end(introduction, "linked");
  }

  #linkedDirectly(member: Member, token: string): void {
    const found = this.#reported(member, token);
    if (!found) return;
    const { introduction, side, other } = found;
    const { plan, round, sides } = introduction;
    side.report = "linked";
    if (round > 0) this.#workingWays.keep(sides[0].member.peer.id, sides[1].member.peer.id, plan[round]!);
    if (side === sides[1]) {
      introduction.isWelcome = true;
      this.#refund(introduction);
    }
    if (other.report === "linked") this.#end(introduction, "linked");
    else if (other.report === "failed") this.#nextRound(introduction);
  }

  failed(member: Member, message: MessageOf<"failed">): void {
    const { token, reason } = message;
    const introduction = this.#byToken.get(token);
    if (introduction?.relayToken === token) this.#failedByRelay(introduction, member, reason);
    else this.#failedDirectly(member, token, reason);
  }

  #failedByRelay(introduction: Introduction, member: Member, reason: FailureReason): void {
    const { sides, phase } = introduction;
    const side = sides.find((one) => one.member === member);
    if (!side || side.report !== undefined || phase.is !== "relayed") return;
    side.report = "failed";
    this.#fail(introduction, side, side === sides[0] ? sides[1] : sides[0], reason);
  }

  #failedDirectly(member: Member, token: string, reason: FailureReason): void {
    const found = this.#reported(member, token);
    if (!found) return;
    const { introduction, side, other, phase } = found;
    side.report = "failed";
    if (phase.isLast || !retriable.has(reason)) return this.#fail(introduction, side, other, reason);
    // Whoever fails at once must not have the other side open a second thousand of sockets beside the first.
    const isAlone = other.report === undefined && performance.now() < phase.untilMs;
    if (introduction.plan[introduction.round] === "birthday" && isAlone) return;
    this.#nextRound(introduction);
  }

  /** A member is gone. */
  left(member: Member, detail: string): void {
    const { id } = member.peer;
    const pairs = [...(this.#of.get(id)?.values() ?? [])];
    for (const pair of pairs) {
      const { introduction } = pair;
      if (introduction) this.#exchange.serve(undefined, () => this.#endWithout(member, introduction, detail));
      this.#forget(pair);
    }
    this.#of.delete(id);
    this.#workingWays.forget(id);
    const unasked = this.#unasked.get(id);
    if (unasked) this.#forgetUnasked(unasked);
  }

  #endWithout(member: Member, introduction: Introduction, detail: string): void {
    this.#end(introduction, "peer-left");
    const side = introduction.sides.find((one) => one.member !== member)!;
    if (side.report !== undefined) return;
    const [{ id }, { id: otherId }] = [member.peer, side.member.peer];
    // Before the first round there is no token yet, and the other side takes any.
    const token = introduction.token || introduction.relayToken || newToken();
    this.#exchange.send(side.member, { type: "failed", peer: id, token, reason: "peer-left" });
    this.#exchange.tell({ event: "failed", id: otherId, peer: id, reason: "peer-left", detail });
  }

  tick(): void {
    this.#rounds.begin();
    this.#unaskedRounds.begin();
    this.#told.forget(performance.now());
  }

  #lookAt(pair: Pair, now: number): void {
    if (!this.#isKnown(pair)) return; // one of them has left
    const { introduction } = pair;
    if (introduction)
      this.#exchange.serve(introduction.sides[0].member, () => this.#tickIntroduction(introduction, now));
    else if (now >= this.#isAsNewAt(pair)) this.#forget(pair);
    if (this.#isKnown(pair)) this.#duePairs.put(pair, this.#dueAt(pair, now));
  }

  #isKnown(pair: Pair): boolean {
    const [{ peer: a }, { peer: b }] = pair.members;
    return this.#of.get(a.id)?.get(b.id) === pair;
  }

  #dueAt(pair: Pair, now: number): number {
    if (!pair.introduction) return this.#isAsNewAt(pair);
    const { phase, expiresAt } = pair.introduction;
    return phase.untilMs > now ? Math.min(phase.untilMs, expiresAt) : expiresAt;
  }

  /** When all that was taken will have come back: no pair is remembered for longer than that, or a flood would fill memory. */
  #isAsNewAt({ asked }: Pair): number {
    const { introductionsPerPair, birthdaysPerPair, failedBirthdayPauseMs } = this.#exchange.limits;
    let at = -Infinity;
    for (const { introductions, birthdays, birthdayFailedAt } of asked.values()) {
      const isFullAt = Math.max(
        fullAt(introductions, introductionsPerPair),
        fullAt(birthdays, birthdaysPerPair),
      );
      at = Math.max(at, isFullAt, birthdayFailedAt + failedBirthdayPauseMs);
    }
    return at;
  }

  #lookAtUnasked(unasked: Unasked, now: number): void {
    if (this.#unasked.get(unasked.id) !== unasked) return; // it has left
    const { introductionsPerTarget, failedBirthdaysPerTarget } = this.#exchange.limits;
    const { introductions, perAddress, failedBirthdays } = unasked;
    perAddress.tick(now);
    const isFullAt = Math.max(
      fullAt(introductions, introductionsPerTarget),
      fullAt(failedBirthdays, failedBirthdaysPerTarget),
    );
    if (now >= isFullAt && perAddress.size === 0) this.#forgetUnasked(unasked);
    else this.#dueUnasked.put(unasked, Math.max(isFullAt, now + unaskedMs));
  }

  #forgetUnasked(unasked: Unasked): void {
    this.#unasked.delete(unasked.id);
    this.#dueUnasked.remove(unasked);
  }

  #tickIntroduction(introduction: Introduction, now: number): void {
    const { phase, sides, expiresAt } = introduction;
    if (now >= expiresAt) return this.#expire(introduction);
    if (now < phase.untilMs) return;
    if (phase.is === "planning") this.#plan(introduction);
    else if (phase.is === "measuring") this.#punch(introduction);
    else if (phase.is === "punching" && !phase.isLast && sides.some(({ report }) => report === "failed"))
      this.#nextRound(introduction);
  }

  /** Direct rounds have deadlines of which both sides know; of a relay that nobody took they are told. */
  #expire(introduction: Introduction): void {
    const { phase, sides, relayToken: token } = introduction;
    const reason = "timed-out";
    this.#end(introduction, reason);
    if (phase.is !== "relayed") return;
    for (const [one, other] of [sides, [sides[1], sides[0]]] as const) {
      const [id, peer] = [one.member.peer.id, other.member.peer.id];
      if (one.report !== undefined) continue;
      this.#exchange.send(one.member, { type: "failed", peer, token, reason });
      this.#exchange.tell({ event: "failed", id, peer, reason, detail: "the relay was not taken" });
    }
  }

  #pair(a: Member, b: Member): Pair {
    const known = this.#of.get(a.peer.id)?.get(b.peer.id);
    if (known) return known;
    const pair: Pair = {
      members: [a, b],
      introduction: undefined,
      asked: new Map(),
      slot: notScheduled,
    };
    this.#duePairs.put(pair, performance.now());
    for (const [{ peer: one }, { peer: other }] of [
      [a, b],
      [b, a],
    ] as const) {
      const pairs = this.#of.get(one.id) ?? new Map<number, Pair>();
      this.#of.set(one.id, pairs.set(other.id, pair));
    }
    return pair;
  }

  #forget(pair: Pair): void {
    this.#duePairs.remove(pair);
    const [{ peer: a }, { peer: b }] = pair.members;
    for (const [one, other] of [
      [a.id, b.id],
      [b.id, a.id],
    ] as const) {
      const pairs = this.#of.get(one);
      if (pairs?.delete(other) && pairs.size === 0) this.#of.delete(one);
    }
  }

  /**
   * Whether an introduction answers a `connect` that comes later: both may have asked at once. Once a side has reported
   * that it is linked, it knows how that ended, and means another.
   */
  #isAnswer({ sides, expiresAt }: Introduction, asker: Member, now: number): boolean {
    return sides.find(({ member }) => member === asker)!.report !== "linked" && now < expiresAt;
  }

  /** Budgets of what the target has not asked for. */
  #charge(pair: Pair, asker: Member, target: Member, now: number): void {
    const { introductionsPerPair: most, introductionsPerTarget: mostOfAll } = this.#exchange.limits;
    const { introductions } = this.#askedOf(pair, asker, now);
    const { introductions: ofAll, perAddress } = this.#unaskedOf(target, now);
    const ofPairSeconds = waitSeconds(introductions, most, now);
    if (ofPairSeconds > 0) {
      throw waitRefusal(`${most} introductions to one peer a minute are enough`, ofPairSeconds);
    }
    const ofAllSeconds = waitSeconds(ofAll, mostOfAll, now);
    // Whoever has used it up must not keep others from that peer.
    if (ofAllSeconds > 0 && perAddress.hasUsed(asker.subscriber, hadNone, now))
      throw waitRefusal(`that peer gets ${mostOfAll} introductions a minute and no more`, ofAllSeconds);
    introductions.tokens -= 1;
    ofAll.tokens = Math.max(0, ofAll.tokens - 1);
    perAddress.spend(asker.subscriber, 1, now);
  }

  /** The target has linked, so it wanted to, and it costs nobody anything. */
  #refund(introduction: Introduction): void {
    if (introduction.isFree) return;
    introduction.isFree = true;
    const { pair, sides } = introduction;
    const [{ member: asker }, { member: target }] = sides;
    const now = performance.now();
    this.#askedOf(pair, asker, now).introductions.tokens += 1;
    const { introductions, perAddress } = this.#unaskedOf(target, now);
    introductions.tokens += 1;
    perAddress.spend(asker.subscriber, -1, now);
  }

  #askedOf({ asked }: Pair, { peer }: Member, now: number): Asked {
    const known = asked.get(peer.id);
    if (known) return known;
    const { introductionsPerPair, birthdaysPerPair } = this.#exchange.limits;
    const fresh: Asked = {
      introductions: { tokens: introductionsPerPair, at: now },
      birthdays: { tokens: birthdaysPerPair, at: now },
      birthdayFailedAt: -Infinity,
    };
    asked.set(peer.id, fresh);
    return fresh;
  }

  #unaskedOf({ peer }: Member, now: number): Unasked {
    const known = this.#unasked.get(peer.id);
    if (known) return known;
    const { introductionsPerTarget, failedBirthdaysPerTarget, ownHostShares } = this.#exchange.limits;
    const fresh: Unasked = {
      id: peer.id,
      slot: notScheduled,
      introductions: { tokens: introductionsPerTarget, at: now },
      perAddress: new Usage(introductionsPerTarget, 1, targetWindowMs, ownHostShares),
      failedBirthdays: { tokens: failedBirthdaysPerTarget, at: now },
    };
    this.#unasked.set(peer.id, fresh);
    this.#dueUnasked.put(fresh, now + unaskedMs);
    return fresh;
  }

  #introduction(pair: Pair, asker: Member, target: Member, now: number): Introduction {
    const { punchDeadlineMs: mostMs, measureMs } = this.#exchange.limits;
    const side = (member: Member): Side => ({
      member,
      report: undefined,
      isMeasuring: false,
      prediction: undefined,
      newer: undefined,
      isRelayed: false,
    });
    return {
      pair,
      sides: [side(asker), side(target)],
      phase: { is: "planning", untilMs: now + measureMs },
      token: "",
      plan: [],
      round: 0,
      hasPunched: false,
      isByOlder: false,
      corrections: 0,
      isCounted: false,
      hasBirthday: false,
      relay: "unwanted",
      relayToken: "",
      isWelcome: false,
      isFree: false,
      relayLinkedAt: undefined,
      startedAt: now,
      deadlineAt: now + mostMs,
      expiresAt: now + introductionMs(this.#exchange.limits),
    };
  }

  /** Begins once both sides have said how their NATs map: who has just come may still be measuring. */
  #plan(introduction: Introduction): void {
    const { pair, sides, phase } = introduction;
    const isReady = !this.#exchange.canMeasure || sides.every(({ member }) => member.hasMeasured);
    if (!isReady && performance.now() < phase.untilMs) return;
    const [{ member: asker }, { member: target }] = sides;
    const rounds = planRounds(asker.peer, target.peer);
    if (rounds.length === 0) {
      if (!this.#relayInstead(introduction)) this.#refuseIntroduction(introduction);
      return;
    }
    const workingWay = this.#workingWays.of(asker.peer.id, target.peer.id);
    const plan = workingWay ? [workingWay, ...rounds] : rounds;
    if (plan.includes("birthday")) {
      const seconds = this.#birthdayPause(pair, asker, target);
      if (seconds > 0) {
        if (!this.#relayInstead(introduction)) this.#refuseBirthday(introduction, seconds);
        return;
      }
      introduction.isCounted = true;
    }
    introduction.plan = plan;
    this.#startRound(introduction);
  }

  /** Random ports on both sides, or against counted ones: a hundred thousand guesses would be needed. */
  #refuseIntroduction(introduction: Introduction): void {
    const [{ member: asker }, { member: target }] = introduction.sides;
    const [peer, reason] = [target.peer.id, "both-mappings-random" as const];
    this.#end(introduction, reason);
    this.#exchange.send(asker, { type: "failed", peer, token: newToken(), reason });
    const detail = `${asker.peer.mapping} and ${target.peer.mapping} mapping`;
    this.#exchange.tell({ event: "failed", id: asker.peer.id, peer, reason, detail });
  }

  /** Seconds until a birthday may begin; 0 when it may now, and then it is counted. */
  #birthdayPause(pair: Pair, asker: Member, target: Member): number {
    const now = performance.now();
    const { birthdaysPerPair, failedBirthdaysPerTarget, failedBirthdayPauseMs } = this.#exchange.limits;
    const { birthdays, birthdayFailedAt } = this.#askedOf(pair, asker, now);
    const { failedBirthdays } = this.#unaskedOf(target, now);
    const seconds = Math.max(
      Math.ceil((birthdayFailedAt + failedBirthdayPauseMs - now) / 1000),
      waitSeconds(birthdays, birthdaysPerPair, now),
      waitSeconds(failedBirthdays, failedBirthdaysPerTarget, now),
    );
    if (seconds > 0) return seconds;
    birthdays.tokens -= 1;
    failedBirthdays.tokens -= 1;
    return 0;
  }

  #refuseBirthday(introduction: Introduction, seconds: number): void {
    const [{ member: asker }, { member: target }] = introduction.sides;
    this.#end(introduction, "refused");
    const { birthdaysPerPair: most, failedBirthdayPauseMs: pauseMs } = this.#exchange.limits;
    const why = `guessing the ports of that peer takes a thousand sockets: ${most} a minute, none for ${pauseMs / 1000} s after a failure`;
    this.#exchange.refuse(asker, waitRefusal(why, seconds), target.peer.id);
  }

  #wantRelay(introduction: Introduction, now: number): void {
    if (introduction.relay !== "unwanted") return;
    introduction.relay = "wanted";
    this.#relayAt.set(introduction, now + relayAfterMs);
    this.#relayTimer ??= setTimeout(() => this.#relayDue(), relayAfterMs);
  }

  #relayDue(): void {
    this.#relayTimer = undefined;
    const now = performance.now();
    for (const [introduction, at] of this.#relayAt) {
      if (at > now) {
        this.#relayTimer = setTimeout(() => this.#relayDue(), Math.ceil(at - now));
        return;
      }
      this.#relayAt.delete(introduction);
      introduction.relay = "due";
      if (!introduction.hasPunched) continue;
      this.#exchange.serve(introduction.sides[0].member, () => void this.#offerRelay(introduction));
    }
  }

  /** Where there is no direct way. */
  #relayInstead(introduction: Introduction): boolean {
    if (introduction.relay === "unwanted" || !this.#offerRelay(introduction)) return false;
    this.#enter(introduction, { is: "relayed", untilMs: introduction.expiresAt });
    return true;
  }

  /** Once for an introduction; returns whether it could be. */
  #offerRelay(introduction: Introduction): boolean {
    if (introduction.relay === "unwanted" || introduction.relay === "offered") return false;
    introduction.relay = "offered";
    this.#relayAt.delete(introduction);
    const [{ member: a }, { member: b }] = introduction.sides;
    const token = this.#exchange.offerRelay(a, b);
    if (token === undefined) return false;
    introduction.relayToken = token;
    this.#byToken.set(token, introduction);
    this.#tell(token, [a, b]);
    this.#exchange.show(a, b, { type: "relay", role: "controlling", token });
    this.#exchange.show(b, a, { type: "relay", role: "controlled", token });
    return true;
  }

  #enter(introduction: Introduction, phase: Phase): void {
    introduction.phase = phase;
    this.#duePairs.put(introduction.pair, Math.min(phase.untilMs, introduction.expiresAt));
  }

  #nextRound(introduction: Introduction): void {
    this.#offerRelay(introduction);
    introduction.round += 1;
    this.#startRound(introduction);
  }

  /** Begins the round that the plan has next: measures first where ports are to be predicted. */
  #startRound(introduction: Introduction): void {
    const { sides, plan, round } = introduction;
    const way = plan[round]!;
    const { token } = this.#newToken(introduction);
    const counts = ({ member }: Side) => member.peer.mapping === "sequential";
    for (const side of sides) {
      side.report = side.prediction = side.newer = undefined;
      side.isMeasuring = way === "fresh" || (way === "predicted" && (counts(side) || !sides.some(counts)));
    }
    const measuring = sides.filter(({ isMeasuring }) => isMeasuring);
    if (measuring.length === 0) return this.#punch(introduction);
    this.#enter(introduction, {
      is: "measuring",
      untilMs: performance.now() + this.#exchange.limits.measureMs,
    });
    for (const { member } of measuring) {
      const other = member === sides[0].member ? sides[1] : sides[0];
      this.#exchange.show(member, other.member, { type: "measure", token, way });
    }
    const isKnown = way === "predicted" && measuring.every((side) => counts(side) && side.member.position);
    // If its NAT has not given many ports since, there is nothing to wait for.
    introduction.isByOlder = isKnown && !introduction.hasPunched;
    if (!introduction.isByOlder) return;
    for (const side of measuring) side.prediction = side.member.position;
    this.#punch(introduction);
  }

  #newToken(introduction: Introduction): Introduction {
    this.#byToken.delete(introduction.token);
    introduction.token = newToken();
    this.#byToken.set(introduction.token, introduction);
    return introduction;
  }

  /** Tells both sides to punch, at the same moment. */
  #punch(introduction: Introduction): void {
    const { sides, plan, round, token } = introduction;
    const [a, b] = sides;
    const now = performance.now();
    const way = plan[round]!;
    const delays = startDelays(a.member.roundTripMs, b.member.roundTripMs);
    const { isLast, deadlineMs } = roundLength(introduction, now);
    this.#enter(introduction, { is: "punching", untilMs: now + Math.max(...delays) + deadlineMs, isLast });
    introduction.hasPunched = true;
    introduction.hasBirthday ||= way === "birthday";
    if (!introduction.isByOlder) a.isMeasuring = b.isMeasuring = false; // the rest is late
    const punch = (to: Side, { member, prediction: theirs }: Side, role: Role, startInMs: number) => {
      const message: Extract<About, { type: "punch" }> = {
        type: "punch",
        role,
        token,
        startInMs,
        way,
        round: round + 1,
        last: isLast,
        deadlineMs,
      };
      if (to.prediction) message.own = to.prediction;
      if (theirs) message.theirs = theirs;
      this.#exchange.show(to.member, member, message);
    };
    this.#tell(token, [a.member, b.member]);
    punch(a, b, "controlling", delays[0]);
    punch(b, a, "controlled", delays[1]);
    this.#exchange.tell({
      event: "punch",
      a: a.member.peer.id,
      b: b.member.peer.id,
      way,
      round: round + 1,
    });
    if (introduction.relay === "due") this.#offerRelay(introduction);
  }

  /** What a report with that token is about: a round that has been announced, and not been reported on by that member. */
  #reported(member: Member, token: string) {
    const introduction = this.#byToken.get(token);
    if (introduction?.token !== token || introduction.phase.is !== "punching") return undefined;
    const { sides, phase } = introduction;
    const side = sides.find((one) => one.member === member);
    if (!side || side.report !== undefined) return undefined;
    return { introduction, phase, side, other: side === sides[0] ? sides[1] : sides[0] };
  }

  #fail(introduction: Introduction, side: Side, other: Side, reason: FailureReason): void {
    if (retriable.has(reason)) this.#offerRelay(introduction);
    const token = introduction.token || introduction.relayToken;
    const [id, peer] = [side.member.peer.id, other.member.peer.id];
    if (other.report === undefined) {
      this.#exchange.send(other.member, { type: "failed", peer: id, token, reason });
    }
    this.#end(introduction, reason);
    this.#exchange.tell({ event: "failed", id, peer, reason, detail: "" });
  }

  #end(introduction: Introduction, outcome: Outcome): void {
    const { pair, token, relayToken, isCounted } = introduction;
    const now = performance.now();
    this.#count(introduction, outcome, now);
    this.#byToken.delete(token);
    this.#byToken.delete(relayToken);
    this.#relayAt.delete(introduction);
    pair.introduction = undefined;
    if (isCounted) this.#settleBirthday(introduction, now);
    this.#duePairs.put(pair, now);
  }

  /** What failed directly, but is relayed, has linked. */
  #count(
    { plan, round, phase, startedAt, relayLinkedAt }: Introduction,
    outcome: Outcome,
    now: number,
  ): void {
    const isDirect = outcome === "linked" && phase.is !== "relayed";
    if (relayLinkedAt !== undefined && !isDirect)
      return this.#exchange.count("linked", "relay", relayLinkedAt - startedAt);
    this.#exchange.count(
      outcome,
      phase.is === "relayed" ? "relay" : (plan[round] ?? "none"),
      now - startedAt,
    );
  }

  /** Gives back what was taken beforehand, lest many begin at once: one that was not needed, or has linked, is free. */
  #settleBirthday({ pair, sides: [asker, target], hasBirthday, isWelcome }: Introduction, now: number): void {
    const asked = this.#askedOf(pair, asker.member, now);
    if (!hasBirthday) asked.birthdays.tokens += 1;
    if (hasBirthday && !isWelcome) asked.birthdayFailedAt = now;
    else this.#unaskedOf(target.member, now).failedBirthdays.tokens += 1;
  }
}
