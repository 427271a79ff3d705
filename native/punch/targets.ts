/**
 * What the whole program sends to one address, whoever asked for it. An introducer can call any address a peer's, even
 * in its answer to our own `connect`. So sockets, attempts and birthdays are counted by address. More attempts and
 * birthdays are allowed where a peer has shown its certificate once, because only the peer itself can do that. Pure but
 * for the clock. For native/punch/ and participant.ts.
 */
import { birthdaySockets, type Endpoint, maxCandidates, splitEndpoint } from "../../protocol.ts";
import { roundsPerWay } from "../shares/rounds.ts";
import { fairShare, sourceOf, Usage } from "../shares/budget.ts";
import { descriptorLimit } from "../host/socket.ts";

const minuteMs = 60_000;
/**
 * Endpoints in a minute that are dialled because peers claim them; most of them are private. Half of it is for anyone: that
 * is 64 people in one house, with some addresses each. A peer that claims more leaves enough for others.
 */
const claimsPerMinute = 720;
/** Sockets at once at one address: as many as a birthday needs. */
const maxSockets = birthdaySockets + 2 * maxCandidates;
/**
 * Attempts to all addresses: SYNs that we send, without the kernel's repetitions. What was used comes back within about a
 * minute. One address alone gets a fifth of it: a thousand at once, then 17 a second.
 */
const attemptsInAll = 5 * 1024;
/** What each address gets, however many others there are. A link takes a few; where a NAT refuses, some tens. */
const minAttempts = 64;
/** So much counts an attempt at an address where a peer has shown its certificate. */
const authenticatedShare = 1 / 4;
/** After so long we look again whether an attempt is allowed. */
const waitMs = 25;
/**
 * Birthdays in a minute at one address that led to no direct link: as many as an introducer grants to a pair. More where a
 * peer has shown its certificate, for several peers may be behind one address.
 */
const birthdaysPerMinute = { stranger: 2, authenticated: 6 };
/** The same at all addresses, for introductions that we asked for. The others get less (allowance.ts). */
const askedBirthdaysPerMinute = 12;
/** So many addresses that are known to be peers' are remembered: the latest. */
const maxAuthenticated = 1024;
/**
 * How much earlier than ours a round of the peer may end, because both have different round trips to the introducer. At
 * most half of the round.
 */
const roundSkewMs = 2_000;
const tidyMs = 10_000;

/** The birthday rounds of one introduction. They count as one, unless a round begins while the last one still runs. */
export class Birthday {
  /** Whether it led to a direct link to that address. */
  hasLinked = false;
  #rounds = 1;
  /** When the latest round began, and when it ends. */
  #startedAt: number;
  #endsAt: number;

  constructor(now: number, lastsMs: number) {
    this.#startedAt = now;
    this.#endsAt = now + lastsMs;
  }

  /** Whether the next round may begin. If the answer is true, it is counted. */
  next(now: number, lastsMs: number): boolean {
    const skewMs = Math.min(roundSkewMs, (this.#endsAt - this.#startedAt) / 2);
    if (this.#rounds >= roundsPerWay || now < this.#endsAt - skewMs) return false;
    this.#rounds++;
    this.#startedAt = now;
    this.#endsAt = now + lastsMs;
    return true;
  }

  /** Whether it ended so long ago that it no longer counts. */
  isPast(now: number): boolean {
    return now >= Math.max(this.#startedAt + minuteMs, this.#endsAt);
  }
}

interface Claim {
  endpoint: Endpoint;
  by: string;
  at: number;
}

/** A birthday at one address. */
export interface Aimed {
  readonly at: string;
  readonly isAsked: boolean;
  readonly birthday: Birthday;
}

/** The birthdays of one introduction. */
export class IntroductionBirthdays {
  readonly #targets: Targets;
  readonly #isAsked: boolean;
  #latest: Aimed | undefined;

  constructor(targets: Targets, isAsked: boolean) {
    this.#targets = targets;
    this.#isAsked = isAsked;
  }

  /** Whether hundreds of sockets may dial there, where the introducer says that the peer is, in a round of that length. */
  begin(endpoint: Endpoint, lastsMs: number): boolean {
    const round = { isAsked: this.#isAsked, before: this.#latest, lastsMs };
    const birthday = this.#targets.birthday(endpoint, round);
    this.#latest = birthday ?? this.#latest;
    return birthday !== undefined;
  }

  /** The peer has shown its certificate on a direct connection there. */
  authenticated(endpoint: Endpoint): void {
    this.#targets.authenticated(endpoint, this.#latest);
  }
}

export class Targets {
  readonly #now: () => number;
  /** Sockets at once. */
  readonly #sockets = new Map<string, number>();
  #socketsInAll = 0;
  /** Half of what the system allows is for everything else. */
  readonly #maxSocketsInAll: number;
  readonly #attempts = new Usage(attemptsInAll, minAttempts, minuteMs, 1);
  readonly #authenticated = new Set<string>();
  #birthdays: Aimed[] = [];
  #claims: Claim[] = [];
  #tidiedAt = 0;

  /** `now`: in ms, never going back. `descriptors`: how many the program may have. */
  constructor(now: () => number = () => performance.now(), descriptors = descriptorLimit()) {
    this.#now = now;
    this.#maxSocketsInAll = Math.floor(descriptors / 2);
  }

  /**
   * Takes a place for one more socket that dials there, until {@link leave}. Returns false if there is none. What others
   * ask for gets at most half of all places.
   */
  enter(endpoint: Endpoint, isAsked: boolean): boolean {
    const at = keyOf(endpoint);
    const count = this.#sockets.get(at) ?? 0;
    const most = isAsked ? this.#maxSocketsInAll : this.#maxSocketsInAll / 2;
    if (count >= maxSockets || this.#socketsInAll >= most) return false;
    this.#sockets.set(at, count + 1);
    this.#socketsInAll++;
    return true;
  }

  leave(endpoint: Endpoint): void {
    this.#socketsInAll--;
    const at = keyOf(endpoint);
    const count = this.#sockets.get(at)! - 1;
    if (count > 0) this.#sockets.set(at, count);
    else this.#sockets.delete(at);
  }

  /** Counts an attempt and returns 0; or returns after how many ms to ask again. */
  attempt(endpoint: Endpoint): number {
    const [now, at] = [this.#now(), keyOf(endpoint)];
    if (this.#attempts.isOver(at, now)) return waitMs;
    this.#attempts.spend(at, this.#authenticated.has(at) ? authenticatedShare : 1, now);
    if (now - this.#tidiedAt >= tidyMs) {
      this.#tidiedAt = now;
      this.#attempts.tick(now);
    }
    return 0;
  }

  /** Whether an endpoint may be dialled because a peer claims it. The introducer sees that peer at `seenAt`. */
  claim(endpoint: Endpoint, seenAt: Endpoint): boolean {
    const [now, by] = [this.#now(), keyOf(seenAt)];
    this.#claims = this.#claims.filter(({ at }) => now - at < minuteMs);
    const own = this.#claims.filter((one) => one.by === by);
    if (own.some((one) => one.endpoint === endpoint)) return true;
    const used = this.#claims.length;
    const isFree = used < claimsPerMinute / 2;
    if (!isFree && (used >= claimsPerMinute || own.length >= fairShare(claimsPerMinute, used))) return false;
    this.#claims.push({ endpoint, by, at: now });
    return true;
  }

  /** A peer has shown its certificate on a direct connection there, maybe after that birthday. */
  authenticated(endpoint: Endpoint, after?: Aimed): void {
    const at = keyOf(endpoint);
    if (after?.at === at) after.birthday.hasLinked = true;
    this.#authenticated.delete(at);
    this.#authenticated.add(at);
    if (this.#authenticated.size > maxAuthenticated)
      this.#authenticated.delete(this.#authenticated.values().next().value!);
  }

  /**
   * Begins a birthday round there. Returns its birthday: `before`, which the same introduction has begun already, or a new
   * one. Undefined if that is too soon, or one too many.
   */
  birthday(
    endpoint: Endpoint,
    { isAsked, before, lastsMs }: { isAsked: boolean; before: Aimed | undefined; lastsMs: number },
  ): Aimed | undefined {
    const [now, at] = [this.#now(), keyOf(endpoint)];
    if (before?.at === at) return before.birthday.next(now, lastsMs) ? before : undefined;
    this.#birthdays = this.#birthdays.filter(({ birthday }) => !birthday.isPast(now));
    const failed = this.#birthdays.filter(({ birthday }) => !birthday.hasLinked);
    const { stranger, authenticated } = birthdaysPerMinute;
    const mostThere = this.#authenticated.has(at) ? authenticated : stranger;
    if (failed.filter((one) => one.at === at).length >= mostThere) return undefined;
    if (isAsked && failed.filter((one) => one.isAsked).length >= askedBirthdaysPerMinute) return undefined;
    const aimed = { at, isAsked, birthday: new Birthday(now, lastsMs) };
    this.#birthdays.push(aimed);
    return aimed;
  }
}

/** What is counted together: an address, of IPv6 a whole /64. */
function keyOf(endpoint: Endpoint): string {
  return sourceOf(splitEndpoint(endpoint).address);
}

/** The targets of this whole program. */
export const targets = new Targets();
