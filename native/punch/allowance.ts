/**
 * What others may make us send. An introducer or a peer can name any endpoint and ask for any number of
 * introductions; here is how much of it is done: for one introduction ({@link Allowance}), and for all those that we did
 * not ask for ({@link UnaskedBudget}). Pure but for the clock. For native/punch/, native/participant/peer.ts and
 * participant.ts.
 */
import { maxCandidates, scopeOf, splitEndpoint, type Endpoint } from "../../protocol.ts";
import { fairShare, siteOf, siteShares, sourceOf } from "../shares/budget.ts";
import { isOnLink, type HostAddress } from "../host/interfaces.ts";
import type { Tries } from "./dial.ts";
import { firstPeerPort } from "./gate.ts";
import { Birthday } from "./targets.ts";

/** SYNs of one introduction to all global addresses at which the introducer has not seen the peer. */
const unverifiedTries = 6;
/** Attempts of one introduction at each private endpoint. */
const privateTries = 6;
/** Private addresses of one introduction that lie beyond the links of this host. */
const maxOffLink = 4;

const minuteMs = 60_000;
/**
 * Introductions in a minute that we did not ask for, where one that led to no link counts twice: more than an honest
 * introducer lets through, which grants 60 and a few of each address.
 */
const introductionsInAll = 480;
const failedCountsAs = 2;
/** Those that led to no link, of one peer. */
const failedPerPeer = 10;
/** Up to the first of these parts of all, anyone may have them; up to the second, also who has had next to none. */
const freePart = 1 / 2;
const newcomersPart = 3 / 4;
const nextToNone = 4;
/**
 * Birthdays in a minute, each of which leaves hundreds of entries in our NAT: without a direct link, and in all. By one
 * peer, one without any link.
 */
const birthdaysPerMinute = 6;
const birthdaysInAll = 60;

/** What one introduction, through all its rounds, may still spend on endpoints for which only the peer's word stands. */
export class Allowance {
  readonly #unverified: Tries = { left: unverifiedTries };
  readonly #private = new Map<Endpoint, Tries>();
  readonly #offLink = new Set<string>();
  readonly #isInBudget: (endpoint: Endpoint) => boolean;

  /** `isInBudget`: whether the whole program may dial there for that peer. */
  constructor(isInBudget: (endpoint: Endpoint) => boolean = () => true) {
    this.#isInBudget = isInBudget;
  }

  /** The attempts left at an unverified endpoint; undefined where it is not to be dialled at all. */
  triesAt(endpoint: Endpoint, hosts: readonly HostAddress[]): Tries | undefined {
    const known = this.#private.get(endpoint);
    if (known) return known;
    const { address, port } = splitEndpoint(endpoint);
    const isGlobal = scopeOf(endpoint) === "global";
    if (port < firstPeerPort || (!isGlobal && this.#private.size >= maxCandidates)) return undefined;
    if (isGlobal) return this.#isInBudget(endpoint) ? this.#unverified : undefined;
    if (!isOnLink(address, hosts)) {
      if (!this.#offLink.has(address) && this.#offLink.size >= maxOffLink) return undefined;
    }
    if (!this.#isInBudget(endpoint)) return undefined;
    if (!isOnLink(address, hosts)) this.#offLink.add(address);
    const tries = { left: privateTries };
    this.#private.set(endpoint, tries);
    return tries;
  }
}

interface Asked {
  peer: string;
  address: string;
  at: number;
  hasLinked: boolean;
}

interface OfPeer {
  peer: string;
  /** By whatever way. */
  hasLinked: boolean;
  birthday: Birthday;
}

/** An admitted introduction that we did not ask for. */
export interface Unasked {
  /** Whether its next birthday round, which lasts so long at most, may begin; a true answer counts it. */
  mayTryBirthday(lastsMs: number): boolean;
  /** It led to a link: it is not held against that peer; with a direct one, neither is its birthday. */
  linked(isDirect: boolean): void;
}

/**
 * Bounds the introductions that we did not ask for: in all, and such that whoever takes many of them leaves enough for
 * the others. What a peer can't have many of is its address, so that is whose share it is; but he who shares the address
 * of a greedy one, and has had next to none himself, is let in as long as there is a good part left.
 */
export class UnaskedBudget {
  readonly #now: () => number;
  #introductions: Asked[] = [];
  #birthdays: OfPeer[] = [];

  /** `now` in milliseconds, never going back. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /**
   * An introduction by that peer, however the caller tells peers apart, at that public address; undefined when it is one
   * too many.
   */
  admit(peer: string, address: string): Unasked | undefined {
    const since = this.#now() - minuteMs;
    this.#introductions = this.#introductions.filter(({ at }) => at > since);
    if (!this.#hasRoomFor(peer, sourceOf(address))) return undefined;
    const asked: Asked = { peer, address: sourceOf(address), at: this.#now(), hasLinked: false };
    this.#introductions.push(asked);
    let own: OfPeer | undefined;
    return {
      mayTryBirthday: (lastsMs) => {
        if (own) return own.birthday.next(this.#now(), lastsMs);
        own = this.#begin(peer, lastsMs);
        return own !== undefined;
      },
      linked: (isDirect) => {
        asked.hasLinked = true;
        if (!own) return;
        own.hasLinked = true;
        own.birthday.hasLinked ||= isDirect;
      },
    };
  }

  #hasRoomFor(peer: string, address: string): boolean {
    const isOfPeer = (one: Asked) => one.peer === peer;
    const failed = this.#introductions.filter((one) => isOfPeer(one) && !one.hasLinked);
    const used = this.#used(() => true);
    if (failed.length >= failedPerPeer || used >= introductionsInAll) return false;
    if (used < introductionsInAll * freePart) return true;
    if (used < introductionsInAll * newcomersPart && this.#used(isOfPeer) < nextToNone) return true;
    const share = fairShare(introductionsInAll, used);
    const site = siteOf(address);
    if (site !== undefined && this.#used((one) => siteOf(one.address) === site) >= share * siteShares)
      return false;
    return this.#used((one) => one.address === address) < share;
  }

  #used(counts: (one: Asked) => boolean): number {
    return this.#introductions
      .filter(counts)
      .reduce((sum, { hasLinked }) => sum + (hasLinked ? 1 : failedCountsAs), 0);
  }

  #begin(peer: string, lastsMs: number): OfPeer | undefined {
    const now = this.#now();
    this.#birthdays = this.#birthdays.filter(({ birthday }) => !birthday.isPast(now));
    const isTooSoon = this.#birthdays.some((one) => one.peer === peer && !one.hasLinked);
    const indirect = this.#birthdays.filter(({ birthday }) => !birthday.hasLinked);
    const isTooMany = indirect.length >= birthdaysPerMinute || this.#birthdays.length >= birthdaysInAll;
    if (isTooSoon || isTooMany) return undefined;
    const own = { peer, hasLinked: false, birthday: new Birthday(now, lastsMs) };
    this.#birthdays.push(own);
    return own;
  }
}
