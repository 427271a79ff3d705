/**
 * The rounds of one introduction: by which ways, who measures before, where each side aims, and what the sides have said of
 * the present round. It tells the sides to measure and to punch. introduction.ts decides when. For
 * native/introducer/introduction.ts.
 */
import type { Prediction, Role, Way } from "../../protocol.ts";
import { isAhead } from "../shares/rounds.ts";
import type { IntroductionOwner } from "./introduction-owner.ts";
import type { About } from "./lines.ts";
import { isAt } from "./observe.ts";
import type { Asking } from "./quotas.ts";
import { aimAnew, beginRound, counts, roundLength, type Side, sideOf, startDelays } from "./round.ts";
import { type Member, newToken } from "./session.ts";

/** How often a round by predicted ports is begun anew because a NAT has gone on. */
const maxCorrections = 2;

export class Plan {
  /** The asker first: it is the controlling side. */
  readonly sides: readonly [Side, Side];
  readonly #owner: IntroductionOwner;
  /** The token of the round has changed. */
  readonly #onToken: (old: string, token: string) => void;
  #ways: Way[] = [];
  #isGuessed = false;
  /** The present round: its index, its token, and how often it was begun anew. Before the first there is no token. */
  #round = { at: 0, token: "", corrections: 0, isByOlder: false };
  #hasPunched = false;
  /** Whether the asker's first SYN leaves before it has our answer. */
  readonly #isEarly: boolean;

  constructor(
    owner: IntroductionOwner,
    { asker, target, isEarly = false }: Asking,
    onToken: (old: string, token: string) => void,
  ) {
    this.#owner = owner;
    this.#onToken = onToken;
    this.sides = [sideOf(asker), sideOf(target)];
    this.#isEarly = isEarly;
  }

  /** Undefined until the rounds are planned. */
  get way(): Way | undefined {
    return this.#ways[this.#round.at];
  }
  /** Index of the round under way. */
  get at(): number {
    return this.#round.at;
  }
  get token(): string {
    return this.#round.token;
  }
  get hasPunched(): boolean {
    return this.#hasPunched;
  }

  get hasNext(): boolean {
    return this.#round.at + 1 < this.#ways.length;
  }
  /** The way of the first round. */
  get first(): Way | undefined {
    return this.#ways[0];
  }
  /** Whether it is not known yet how the NATs map, and nothing has come of the guess. */
  get isCorrigible(): boolean {
    return this.#isGuessed && this.sides.every(({ report }) => report !== "linked");
  }

  /** From now on these, from the first one. */
  set(ways: Way[], isGuessed: boolean): void {
    this.correct(ways, isGuessed);
    this.#round.at = 0;
  }

  /** The round under way goes on. */
  correct(ways: Way[], isGuessed: boolean): void {
    this.#ways = ways;
    this.#isGuessed = isGuessed;
  }

  next(): void {
    this.#round.at += 1;
  }

  ofMember(member: Member): [side: Side | undefined, other: Side] {
    const [a, b] = this.sides;
    return [member === a.member ? a : member === b.member ? b : undefined, member === a.member ? b : a];
  }

  #newToken(): void {
    const { token: old } = this.#round;
    this.#round.token = newToken();
    this.#onToken(old, this.#round.token);
  }

  /** Begins a round. Returns those who have to measure first. */
  begin(): Side[] {
    this.#newToken();
    this.#round.isByOlder = false;
    return beginRound(this.sides, this.way!);
  }

  /** Tells them to measure. Returns whether to punch at once, by what was measured earlier. */
  measure(measuring: Side[]): boolean {
    const way = this.way!;
    const { token } = this.#round;
    const [asker] = this.sides;
    for (const side of measuring) {
      const [, { member: other }] = this.ofMember(side.member);
      const role = side === asker ? "controlling" : "controlled";
      this.#owner.show(side.member, other, { type: "measure", role, token, way });
    }
    const isKnown =
      way === "predicted" && measuring.every((side) => counts(side) && side.member.measured?.position);
    // The earlier measurement will do, if the NAT has given only few ports since.
    this.#round.isByOlder = isKnown && !this.#hasPunched;
    if (this.#round.isByOlder) for (const side of measuring) side.prediction = side.member.measured?.position;
    return this.#round.isByOlder;
  }

  /** Takes what a side has measured. Returns whether to punch now. */
  measured(member: Member, prediction: Prediction | undefined): boolean {
    const [side] = this.ofMember(member);
    if (!side?.isMeasuring) return false; // too late: the round has begun without it
    const { isByOlder } = this.#round;
    if (prediction && isAt(prediction.endpoint, member)) {
      if (this.way === "predicted") member.measured = { position: prediction };
      if (isByOlder) side.newer = prediction;
      else side.prediction = prediction;
    }
    side.isMeasuring = false;
    if (this.sides.some(({ isMeasuring }) => isMeasuring)) return false;
    if (!isByOlder) return true;
    const hasPassed = this.sides.some((one) => one.newer && !isAhead(one.prediction!, one.newer));
    if (hasPassed) this.#aimAnew();
    return hasPassed;
  }

  /** The NAT has already passed the ports that the round aims at. */
  #aimAnew(): void {
    this.#newToken();
    const used = aimAnew(this.sides);
    // A side that had to try again and again has used more ports since, and will report that again.
    const isByOlder = used === 0 && ++this.#round.corrections < maxCorrections;
    this.#round.isByOlder = isByOlder;
    for (const side of this.sides)
      side.isMeasuring = isByOlder && side.member.measured?.position !== undefined;
  }

  /** How long the round takes from now on, how long each side waits, and whether no other follows. */
  times(leftMs: number) {
    const [a, b] = this.sides;
    const [roundTripA, roundTripB] = [a.member.roundTripMs, b.member.roundTripMs];
    // Who has started already waits for nothing, and is waited for by nobody.
    const hasStarted = this.#isEarly && this.way === "direct" && !this.#hasPunched;
    const delays: [number, number] = hasStarted ? [0, 0] : startDelays(roundTripA, roundTripB);
    const roundTripMs = (roundTripA ?? 0) + (roundTripB ?? 0);
    return { delays, ...roundLength(this.#ways, this.#round.at, roundTripMs, leftMs) };
  }

  /** Tells both sides to punch, at the same moment. */
  punch({ delays, isLast: last, deadlineMs }: ReturnType<Plan["times"]>): void {
    const [a, b] = this.sides;
    this.#hasPunched = true;
    if (!this.#round.isByOlder) a.isMeasuring = b.isMeasuring = false; // the rest is late
    const { at, token } = this.#round;
    const message = { type: "punch", token, way: this.way!, round: at + 1, last, deadlineMs } as const;
    const tell = (to: Side, about: Side, role: Role, startInMs: number) => {
      const { prediction: own } = to;
      const { prediction: theirs } = about;
      const aims = { ...(own && { own }), ...(theirs && { theirs }) };
      this.#owner.show(to.member, about.member, { ...message, role, startInMs, ...aims } as About);
    };
    tell(a, b, "controlling", delays[0]);
    tell(b, a, "controlled", delays[1]);
  }
}
