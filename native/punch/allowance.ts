/**
 * What others may make us send. An introducer or a peer can name any endpoint, and ask for any number of introductions.
 * {@link Allowance} bounds what one introduction sends. {@link UnaskedBudget} bounds the introductions that we did not ask
 * for. Pure but for the clock. For native/punch/, native/participant/peer.ts and participant.ts.
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
/** Private addresses that one introduction may dial beyond the links of this host. */
const maxOffLink = 4;

const minuteMs = 60_000;
/**
 * Introductions in a minute that we did not ask for. One that led to no link counts twice. An honest introducer lets fewer
 * through: 60, and a few of each address.
 */
const introductionsInAll = 480;
const failedCountsAs = 2;
/** Introductions in a minute by one peer that led to no link. */
const failedPerPeer = 10;
/** Anyone may have them up to the first part of all. Up to the second part, also a peer that has had next to none. */
const freePart = 1 / 2;
const newcomersPart = 3 / 4;
const nextToNone = 4;
/**
 * Birthdays in a minute, each of which leaves hundreds of entries in our NAT: those without a direct link, and all. One
 * peer may have one that led to no link.
 */
const birthdaysPerMinute = 6;
const birthdaysInAll = 60;

/** What all rounds of one introduction may still send to endpoints that only the peer calls its own. */
export class Allowance {
  readonly #unverified: Tries = { left: unverifiedTries };
  readonly #private = new Map<Endpoint, Tries>();
  readonly #offLink = new Set<string>();
  readonly #isInBudget: (endpoint: Endpoint) => boolean;

  /** `isInBudget`: whether the budget of the whole program allows to dial there for that peer. */
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
  /** Directly or by the relay. */
  hasLinked: boolean;
  birthday: Birthday;
}

/** An admitted introduction that we did not ask for. */
export interface Unasked {
  /** Whether its next birthday round, of `lastsMs` at most, may begin. If the answer is true, it is counted. */
  mayTryBirthday(lastsMs: number): boolean;
  /** It led to a link, and no longer counts against that peer. With a direct link its birthday does not count, either. */
  linked(isDirect: boolean): void;
}

/**
 * Bounds the introductions that we did not ask for: in all, and so that greedy peers leave enough for others. Shares are by
 * address, because nobody has many addresses. A peer that shares the address of a greedy one, and has had next to none
 * itself, is let in while a good part is left.
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
   * Counts an introduction by that peer at that public address. `peer` is any text by which the caller tells peers apart.
   * Undefined if it is one too many.
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
