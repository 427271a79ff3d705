/**
 * How often others may make somebody punch: introductions to one peer, introductions of one peer by all, and guessing of
 * ports. Owns what each member got from all others. What one asked of one peer is kept with their pair. If an introduction
 * leads to a link, it is given back. No clock of its own. For native/introducer/.
 */
import { maxRetryInMs, type Refusal } from "../../protocol.ts";
import { type Bucket, fullAt, Usage, WaitRefusal, waitSeconds } from "../shares/budget.ts";
import type { Limits } from "./limits.ts";
import type { Member } from "./session.ts";
import { type Due, notScheduled, type Wheel } from "./wheel.ts";

/** The introductions that an address has had count e times less after so long. With fewer than `hadNone` it had none. */
const targetWindowMs = 60_000;
const hadNone = 0.5;

/** How often we look whether what somebody got from others has come back. */
const unaskedMs = 10_000;

/** What one member asked of another. */
interface Asked {
  /** When it may ask again, if it was told to wait for its turn. */
  turnAt: number;
  introductions: Bucket;
  birthdays: Bucket;
  birthdayFailedAt: number;
}

/** What the two of a pair asked of each other, by the asker's id. */
export type Asks = Map<number, Asked>;

/** The introductions that one member got without having asked, until all of their quota has come back. */
interface Unasked extends Due {
  readonly id: number;
  introductions: Bucket;
  /** The last turn that somebody was told to wait for. */
  turnAt: number;
  /** Of these, those by each address. */
  perAddress: Usage;
  failedBirthdays: Bucket;
}

/** Who asks whom, and what they have asked of each other. */
export interface Asking {
  readonly asks: Asks;
  readonly asker: Member;
  readonly target: Member;
  /** The asker's first SYN leaves before it has our answer. */
  readonly isEarly?: boolean;
}

/** Counts an introduction that a member asks for. Throws a {@link Refusal} if it has asked for too many. */
export function spendIntroduction(
  member: Member,
  { introductionsPerMinute: most }: Limits,
  now: number,
): void {
  const bucket = (member.introductions ??= { tokens: most, at: now });
  const seconds = waitSeconds(bucket, most, now);
  if (seconds > 0) throw new WaitRefusal(`${most} introductions a minute are enough`, seconds);
  bucket.tokens -= 1;
}

export class Quotas {
  readonly #limits: Limits;
  readonly #unasked = new Map<number, Unasked>();
  readonly #wheel: Wheel;

  constructor(limits: Limits, wheel: Wheel) {
    this.#limits = limits;
    this.#wheel = wheel;
  }

  /** Counts an introduction that the target has not asked for. Throws a {@link Refusal} if there were too many. */
  spend({ asks, asker, target }: Asking, now: number): void {
    const { introductionsPerPair: most, introductionsPerTarget: mostOfAll } = this.#limits;
    const asked = this.#askedOf(asks, asker, now);
    const { introductions } = asked;
    const unasked = this.#unaskedOf(target, now);
    const { introductions: ofAll, perAddress } = unasked;
    const ofPairSeconds = waitSeconds(introductions, most, now);
    if (ofPairSeconds > 0)
      throw new WaitRefusal(`${most} introductions to one peer a minute are enough`, ofPairSeconds);
    const ofAllSeconds = waitSeconds(ofAll, mostOfAll, now);
    // A member that has used up its own must not use up the peer's for others.
    if (ofAllSeconds > 0 && perAddress.hasUsed(asker.source, hadNone, now)) {
      const why = `that peer gets ${mostOfAll} introductions a minute and no more`;
      throw new WaitRefusal(why, this.#turnOf(asked, unasked, ofAllSeconds, now));
    }
    introductions.tokens -= 1;
    ofAll.tokens = Math.max(0, ofAll.tokens - 1);
    perAddress.spend(asker.source, 1, now);
  }

  /** In how many seconds it is its turn: those who wait for one peer are told one after the other, and each once. */
  #turnOf(asked: Asked, unasked: Unasked, seconds: number, now: number): number {
    if (asked.turnAt <= now) {
      const afterLast = unasked.turnAt + 60_000 / this.#limits.introductionsPerTarget;
      asked.turnAt = Math.min(now + maxRetryInMs, Math.max(now + 1000 * seconds, afterLast));
      unasked.turnAt = asked.turnAt;
    }
    return Math.ceil((asked.turnAt - now) / 1000);
  }

  /** The target has linked, so it wanted the link. Nobody is charged. */
  refund({ asks, asker, target }: Asking, now: number): void {
    this.#askedOf(asks, asker, now).introductions.tokens += 1;
    const { introductions, perAddress } = this.#unaskedOf(target, now);
    introductions.tokens += 1;
    perAddress.spend(asker.source, -1, now);
  }

  /** Why ports may not be guessed now. If they may, it is counted at once, so that not many begin together. */
  spendBirthday({ asks, asker, target }: Asking, now: number): Refusal | undefined {
    const { birthdaysPerPair: most, failedBirthdaysPerTarget, failedBirthdayPauseMs: pauseMs } = this.#limits;
    const { birthdays, birthdayFailedAt } = this.#askedOf(asks, asker, now);
    const { failedBirthdays } = this.#unaskedOf(target, now);
    const seconds = Math.max(
      Math.ceil((birthdayFailedAt + pauseMs - now) / 1000),
      waitSeconds(birthdays, most, now),
      waitSeconds(failedBirthdays, failedBirthdaysPerTarget, now),
    );
    const why = `guessing the ports of that peer takes a thousand sockets: ${most} a minute, none for ${pauseMs / 1000} s after a failure`;
    if (seconds > 0) return new WaitRefusal(why, seconds);
    birthdays.tokens -= 1;
    failedBirthdays.tokens -= 1;
    return undefined;
  }

  /** Gives it back if it was not needed, or if it led to a link. */
  settleBirthday({ asks, asker, target }: Asking, was: "unused" | "linked" | "failed", now: number): void {
    const asked = this.#askedOf(asks, asker, now);
    if (was === "unused") asked.birthdays.tokens += 1;
    if (was === "failed") asked.birthdayFailedAt = now;
    else this.#unaskedOf(target, now).failedBirthdays.tokens += 1;
  }

  /** When all quota that was taken will have come back. */
  isAsNewAt(asks: Asks): number {
    const { introductionsPerPair, birthdaysPerPair, failedBirthdayPauseMs } = this.#limits;
    let at = -Infinity;
    for (const { turnAt, introductions, birthdays, birthdayFailedAt } of asks.values()) {
      const introductionsAt = fullAt(introductions, introductionsPerPair);
      const birthdaysAt = fullAt(birthdays, birthdaysPerPair);
      at = Math.max(at, turnAt, introductionsAt, birthdaysAt, birthdayFailedAt + failedBirthdayPauseMs);
    }
    return at;
  }

  #askedOf(asks: Asks, { peer }: Member, now: number): Asked {
    const known = asks.get(peer.id);
    if (known) return known;
    const { introductionsPerPair, birthdaysPerPair } = this.#limits;
    const fresh: Asked = {
      turnAt: -Infinity,
      introductions: { tokens: introductionsPerPair, at: now },
      birthdays: { tokens: birthdaysPerPair, at: now },
      birthdayFailedAt: -Infinity,
    };
    asks.set(peer.id, fresh);
    return fresh;
  }

  #unaskedOf({ peer }: Member, now: number): Unasked {
    const known = this.#unasked.get(peer.id);
    if (known) return known;
    const { introductionsPerTarget, failedBirthdaysPerTarget, ownHostShares } = this.#limits;
    const fresh: Unasked = {
      id: peer.id,
      slot: notScheduled,
      due: (at) => this.#lookAt(fresh, at),
      introductions: { tokens: introductionsPerTarget, at: now },
      turnAt: -Infinity,
      perAddress: new Usage(introductionsPerTarget, 1, targetWindowMs, ownHostShares),
      failedBirthdays: { tokens: failedBirthdaysPerTarget, at: now },
    };
    this.#unasked.set(peer.id, fresh);
    this.#wheel.put(fresh, now + unaskedMs);
    return fresh;
  }

  #lookAt(unasked: Unasked, now: number): void {
    if (this.#unasked.get(unasked.id) !== unasked) return; // it has left
    const { introductionsPerTarget, failedBirthdaysPerTarget } = this.#limits;
    const { introductions, perAddress, failedBirthdays } = unasked;
    perAddress.tick(now);
    const isFullAt = Math.max(
      fullAt(introductions, introductionsPerTarget),
      fullAt(failedBirthdays, failedBirthdaysPerTarget),
    );
    if (now >= isFullAt && perAddress.size === 0) this.left(unasked.id);
    else this.#wheel.put(unasked, Math.max(isFullAt, now + unaskedMs));
  }

  /** A member is gone, or has nothing left to come back. */
  left(id: number): void {
    const unasked = this.#unasked.get(id);
    if (!unasked) return;
    this.#unasked.delete(id);
    this.#wheel.remove(unasked);
  }
}
