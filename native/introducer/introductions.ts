/**
 * All introductions: by pair and by token. It owns the pairs that are being introduced or have been lately, the tokens
 * that both have been told, and the ways that have worked. It sends nothing itself. For introducer.ts and
 * native/introducer/links.ts.
 */
import type { Prediction, Refusal } from "../../protocol.ts";
import type { IntroductionOwner } from "./introduction-owner.ts";
import { type Index, Introduction } from "./introduction.ts";
import type { Limits } from "./limits.ts";
import { type Asking, type Asks, Quotas } from "./quotas.ts";
import { introductionMs, reportGraceMs } from "./round.ts";
import type { Member, MessageOf } from "./session.ts";
import { ToldTokens } from "./told.ts";
import { WorkingWays } from "./ways.ts";
import { type Due, notScheduled, type Wheel } from "./wheel.ts";

/** Two who are being introduced, or have been lately. */
interface Pair extends Due {
  readonly members: readonly [Member, Member];
  introduction: Introduction | undefined;
  readonly asks: Asks;
}

/** Links by a token are reported within this time: a relay may be offered as the last round ends. */
function reportableMs(limits: Limits): number {
  return introductionMs(limits) + limits.relayOfferMs + reportGraceMs;
}

export class Introductions {
  readonly #owner: IntroductionOwner;
  readonly #quotas: Quotas;
  readonly #now: () => number;
  readonly #index: Index;
  readonly #wheel: Wheel;
  readonly #workingWays = new WorkingWays();
  /** By the ids of both. */
  readonly #of = new Map<number, Map<number, Pair>>();
  readonly #byToken = new Map<string, Introduction>();
  readonly #told: ToldTokens;

  constructor(owner: IntroductionOwner, wheel: Wheel) {
    this.#owner = owner;
    this.#wheel = wheel;
    this.#now = wheel.now;
    this.#quotas = new Quotas(owner.limits, wheel);
    this.#told = new ToldTokens(reportableMs(owner.limits));
    this.#index = this.#makeIndex();
  }

  #makeIndex(): Index {
    const told = (token: string, a: Member, b: Member) =>
      this.#told.add(token, a.peer.instance, b.peer.instance, this.#now());
    return {
      owner: this.#owner,
      quotas: this.#quotas,
      now: this.#now,
      schedule: ({ asking }, at) => this.#wheel.put(this.#pair(asking.asker, asking.target), at),
      addToken: (token, introduction) => void this.#byToken.set(token, introduction),
      removeToken: (token) => void this.#byToken.delete(token),
      told,
      relayIn: (offer, ms) => this.#wheel.put(offer, this.#now() + ms),
      noRelay: (offer) => this.#wheel.remove(offer),
      workingWay: (a, b) => this.#workingWays.of(a.peer.id, b.peer.id),
      keepWay: (a, b, way) => this.#workingWays.keep(a.peer.id, b.peer.id, way),
      ended: ({ asking }) => this.#ended(asking),
    };
  }

  /** The ids that a member is being introduced to. */
  punching(id: number): number[] {
    const pairs = [...(this.#of.get(id) ?? [])];
    return pairs.filter(([, pair]) => pair.introduction !== undefined).map(([peer]) => peer);
  }

  /** Throws a {@link Refusal} when there have been too many. */
  ask(asker: Member, target: Member, wantsRelay: boolean, isEarly = false): void {
    const pair = this.#pair(asker, target);
    const { introduction: known, asks } = pair;
    if (known?.answers(asker)) {
      if (wantsRelay) known.relay.want();
      return;
    }
    const asking = { asks, asker, target, isEarly };
    this.#quotas.spend(asking, this.#now());
    known?.end("superseded");
    const introduction = new Introduction(this.#index, asking);
    pair.introduction = introduction;
    if (wantsRelay) introduction.relay.want();
    introduction.plan();
  }

  /** A member has said how its NAT maps. */
  mapped(member: Member): void {
    for (const { introduction } of this.#of.get(member.peer.id)?.values() ?? []) introduction?.plan();
  }

  /** Where a member's NAT stands now. */
  probed(member: Member, peer: number, prediction: Prediction): void {
    this.#of.get(member.peer.id)?.get(peer)?.introduction?.probed(member, prediction);
  }

  measured(member: Member, { token, prediction }: MessageOf<"measured">): void {
    this.#byToken.get(token)?.measured(member, prediction);
  }

  linked(member: Member, { token }: MessageOf<"linked">): void {
    this.#byToken.get(token)?.linked(member, token);
  }

  failed(member: Member, { token, reason }: MessageOf<"failed">): void {
    this.#byToken.get(token)?.failed(member, token, reason);
  }

  /** Whether that is one of the two who were told that token, and has not said yet that they are linked by it. */
  mayReport({ peer }: Member, other: Member, token: string): boolean {
    return this.#told.take(token, peer.instance, other.peer.instance, this.#now());
  }

  /** A member is gone. */
  left(member: Member, detail: string): void {
    const { id } = member.peer;
    const pairs = [...(this.#of.get(id)?.values() ?? [])];
    for (const pair of pairs) {
      const { introduction } = pair;
      if (introduction) this.#owner.serve(undefined, () => introduction.left(member, detail));
      this.#forget(pair);
    }
    this.#of.delete(id);
    this.#workingWays.forget(id);
    this.#quotas.left(id);
  }

  // time

  tick(): void {
    this.#told.forget(this.#now());
  }

  #lookAt(pair: Pair, now: number): void {
    if (!this.#isKnown(pair)) return; // one of them has left
    const { introduction } = pair;
    if (introduction) this.#owner.serve(introduction.asking.asker, () => introduction.tick(now));
    else if (now >= this.#quotas.isAsNewAt(pair.asks)) this.#forget(pair);
    if (this.#isKnown(pair)) this.#wheel.put(pair, this.#dueAt(pair, now));
  }

  #dueAt({ introduction, asks }: Pair, now: number): number {
    return introduction ? introduction.dueAt(now) : this.#quotas.isAsNewAt(asks);
  }

  // pairs

  /** A pair is remembered no longer than what they took comes back in, or a flood would fill memory. */
  #ended({ asker, target }: Asking): void {
    const pair = this.#pair(asker, target);
    pair.introduction = undefined;
    this.#wheel.put(pair, this.#now());
  }

  #isKnown(pair: Pair): boolean {
    const [{ peer: a }, { peer: b }] = pair.members;
    return this.#of.get(a.id)?.get(b.id) === pair;
  }

  #pair(a: Member, b: Member): Pair {
    const known = this.#of.get(a.peer.id)?.get(b.peer.id);
    if (known) return known;
    const pair: Pair = {
      members: [a, b],
      introduction: undefined,
      asks: new Map(),
      slot: notScheduled,
      due: (now) => this.#lookAt(pair, now),
    };
    this.#wheel.put(pair, this.#now());
    for (const [{ peer: one }, { peer: other }] of bothWays(a, b)) {
      const pairs = this.#of.get(one.id) ?? new Map<number, Pair>();
      this.#of.set(one.id, pairs.set(other.id, pair));
    }
    return pair;
  }

  #forget(pair: Pair): void {
    this.#wheel.remove(pair);
    for (const [{ peer: one }, { peer: other }] of bothWays(...pair.members)) {
      const pairs = this.#of.get(one.id);
      if (pairs?.delete(other.id) && pairs.size === 0) this.#of.delete(one.id);
    }
  }
}

function bothWays(a: Member, b: Member): [Member, Member][] {
  return [
    [a, b],
    [b, a],
  ];
}
