/**
 * What the whole program sends to one address, whoever asked for it: an introducer can name any address as a peer's, in
 * the answer to our own `connect`, too. Sockets at once, attempts and birthdays are counted by the address, more of the
 * latter being allowed where a peer has once shown its certificate, which nobody can do for others. Pure but for the clock. For native/punch/
 * alone.
 */
import {
  birthdaySockets,
  maxCandidates,
  roundsPerWay,
  splitEndpoint,
  type Endpoint,
} from "../../protocol.ts";
import { fairShare, sourceOf, Usage } from "../shares/budget.ts";
import { descriptorLimit } from "../host/socket.ts";

const minuteMs = 60_000;
/**
 * Endpoints in a minute that are dialled because peers claim them, most of them private: whoever names many leaves enough
 * for others. Up to half of it anyone may have: 64 people in one house, with some addresses each.
 */
const claimsPerMinute = 720;
/** No address is dialled by more sockets at once than one birthday needs. */
const maxSockets = birthdaySockets + 2 * maxCandidates;
/**
 * Attempts (SYNs that we send, not the kernel's repetitions) that may be under way to all addresses; what was used comes
 * back within a minute or so. One address gets a fifth of it when it is alone: a thousand at once, and then 17 a second.
 */
const attemptsInAll = 5 * 1024;
/** What each address gets, however many others there are: a link takes a few, and some tens where a NAT refuses. */
const minAttempts = 64;
/** What one attempt counts at an address where a peer has shown its certificate. */
const authenticatedShare = 1 / 4;
/** When it is looked at again whether there may be an attempt. */
const waitMs = 25;
/**
 * Birthdays in a minute at one address that led to no direct link from there: as many as an introducer grants the two
 * sides of a pair; more where a peer has shown its certificate, for there may be many behind one address.
 */
const birthdaysPerMinute = { stranger: 2, authenticated: 6 };
/** The same at all addresses, of introductions that we asked for: those that we did not are held to less. */
const askedBirthdaysPerMinute = 12;
/** Addresses that are known to be a peer's: the latest. */
const maxAuthenticated = 1024;
/**
 * How much sooner than ours a round of the peer's may rightly end, the round trips of both to the introducer being what
 * they are: so long, and half of the round, at the most.
 */
const roundSkewMs = 2_000;
const tidyMs = 10_000;

/** The rounds of one introduction are one birthday, as long as none begins while the one before still runs. */
export class Birthday {
  /** Whether it led to a link that goes straight there. */
  hasLinked = false;
  #rounds = 1;
  /** Those of the latest round. */
  #startedAt: number;
  #endsAt: number;

  constructor(now: number, lastsMs: number) {
    this.#startedAt = now;
    this.#endsAt = now + lastsMs;
  }

  /** Whether the next round may begin; a true answer counts it. */
  next(now: number, lastsMs: number): boolean {
    const skewMs = Math.min(roundSkewMs, (this.#endsAt - this.#startedAt) / 2);
    if (this.#rounds >= roundsPerWay || now < this.#endsAt - skewMs) return false;
    this.#rounds++;
    this.#startedAt = now;
    this.#endsAt = now + lastsMs;
    return true;
  }

  /** Whether it is over for so long that it no longer counts. */
  isPast(now: number): boolean {
    return now >= Math.max(this.#startedAt + minuteMs, this.#endsAt);
  }
}

interface Claim {
  endpoint: Endpoint;
  by: string;
  at: number;
}

/** One at an address. */
export interface Aimed {
  readonly at: string;
  readonly isAsked: boolean;
  readonly birthday: Birthday;
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

  /** `now` in milliseconds, never going back; `descriptors`: how many the program may have. */
  constructor(now: () => number = () => performance.now(), descriptors = descriptorLimit()) {
    this.#now = now;
    this.#maxSocketsInAll = Math.floor(descriptors / 2);
  }

  /**
   * Whether there is a place for one more that is dialled there; it is held until {@link leave}. What others ask for
   * leaves half of all places to what we ask for.
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

  /** Counts an attempt; else says after how many milliseconds to ask again. */
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

  /** Whether an endpoint may be dialled because a peer, whom the introducer sees at `seenAt`, says that it is its own. */
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

  /** A peer has shown its certificate on a connection that goes straight there, maybe after that birthday. */
  authenticated(endpoint: Endpoint, after?: Aimed): void {
    const at = keyOf(endpoint);
    if (after?.at === at) after.birthday.hasLinked = true;
    this.#authenticated.delete(at);
    this.#authenticated.add(at);
    if (this.#authenticated.size > maxAuthenticated)
      this.#authenticated.delete(this.#authenticated.values().next().value!);
  }

  /**
   * The birthday of which a round may begin there: the one `before` of the same introduction, or a new one. Undefined
   * when that is too soon, or one too many.
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

/** Whose address it is: of IPv6 a whole /64. */
function keyOf(endpoint: Endpoint): string {
  return sourceOf(splitEndpoint(endpoint).address);
}

/** Those of this program. */
export const targets = new Targets();
