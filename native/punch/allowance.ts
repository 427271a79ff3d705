/**
 * What others may make us send. An introducer or a peer can name any endpoint and ask for any number of
 * introductions; here is how much of it is done: for one introduction ({@link Allowance}), and for all those that we did
 * not ask for ({@link UnaskedBudget}). Pure but for the clock. For native/punch/, native/link/peer.ts and
 * participant.ts.
 */
import { maxCandidates, roundsPerWay, scopeOf, splitEndpoint, type Endpoint } from "../../protocol.ts";
import { isOnLink, type HostAddress } from "../interfaces.ts";
import type { Tries } from "./dial.ts";

/** SYNs of one introduction to all global addresses at which the introducer has not seen the peer. */
const unverifiedTries = 6;
/** Attempts of one introduction at each private endpoint. */
const privateTries = 6;
/** Below are the services of a network: a participant's port is one that the system chose. */
const firstPrivatePort = 1024;
/** Private addresses of one introduction that lie beyond the links of this host. */
const maxOffLink = 4;

const minuteMs = 60_000;
/**
 * Introductions in a minute that we did not ask for and that led to no link: more than an honest introducer lets through,
 * who knows addresses and so is fair where we can't be. It grants 60 and a few of each address.
 */
const introductionsPerMinute = 240;
const introductionsPerPeer = 10;
/** The same with those that did. */
const introductionsInAll = 480;
/** Birthdays in a minute, each of which leaves hundreds of entries in our NAT: without a link, and in all. */
const birthdaysPerMinute = 6;
const birthdaysInAll = 60;
/**
 * How much sooner than ours a round of the peer's may rightly end, the round trips of both to the introducer being what
 * they are: so long, and half of the round, at the most.
 */
const roundSkewMs = 2_000;

/** What one introduction, through all its rounds, may still spend on endpoints for which only the peer's word stands. */
export class Allowance {
  readonly #unverified: Tries = { left: unverifiedTries };
  readonly #private = new Map<Endpoint, Tries>();
  readonly #offLink = new Set<string>();

  /** The attempts left at an unverified endpoint; undefined where it is not to be dialled at all. */
  triesAt(endpoint: Endpoint, hosts: readonly HostAddress[]): Tries | undefined {
    if (scopeOf(endpoint) === "global") return this.#unverified;
    const known = this.#private.get(endpoint);
    if (known) return known;
    const { address, port } = splitEndpoint(endpoint);
    if (port < firstPrivatePort || this.#private.size >= maxCandidates) return undefined;
    if (!isOnLink(address, hosts)) {
      if (!this.#offLink.has(address) && this.#offLink.size >= maxOffLink) return undefined;
      this.#offLink.add(address);
    }
    const tries = { left: privateTries };
    this.#private.set(endpoint, tries);
    return tries;
  }
}

interface Asked {
  peer: string;
  at: number;
  hasLinked: boolean;
}

interface Birthday {
  peer: string;
  hasLinked: boolean;
  rounds: number;
  /** Those of the latest round. */
  startedAt: number;
  endsAt: number;
}

/** An admitted introduction that we did not ask for. */
export interface Unasked {
  /** Whether its next birthday round, which lasts so long at most, may begin; a true answer counts it. */
  mayTryBirthday(lastsMs: number): boolean;
  /** It led to a link: it is not held against that peer. */
  linked(): void;
}

/** Bounds the introductions that we did not ask for, by peer and in all. */
export class UnaskedBudget {
  readonly #now: () => number;
  #introductions: Asked[] = [];
  #birthdays: Birthday[] = [];

  /** `now` in milliseconds, never going back. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** An introduction by that peer, however the caller tells peers apart; undefined when it is one too many. */
  admit(peer: string): Unasked | undefined {
    const since = this.#now() - minuteMs;
    this.#introductions = this.#introductions.filter(({ at }) => at > since);
    const failed = this.#introductions.filter(({ hasLinked }) => !hasLinked);
    const ofPeer = failed.filter((one) => one.peer === peer);
    const isTooMany =
      this.#introductions.length >= introductionsInAll ||
      failed.length >= introductionsPerMinute ||
      ofPeer.length >= introductionsPerPeer;
    if (isTooMany) return undefined;
    const asked: Asked = { peer, at: this.#now(), hasLinked: false };
    this.#introductions.push(asked);
    let own: Birthday | undefined;
    return {
      mayTryBirthday: (lastsMs) => {
        if (own) return this.#nextRound(own, lastsMs);
        own = this.#begin(peer, lastsMs);
        return own !== undefined;
      },
      linked: () => {
        asked.hasLinked = true;
        if (own) own.hasLinked = true;
      },
    };
  }

  #begin(peer: string, lastsMs: number): Birthday | undefined {
    const now = this.#now();
    this.#birthdays = this.#birthdays.filter(
      ({ startedAt, endsAt }) => now < Math.max(startedAt + minuteMs, endsAt),
    );
    const failed = this.#birthdays.filter(({ hasLinked }) => !hasLinked);
    const isTooSoon = failed.some((one) => one.peer === peer);
    const isTooMany = failed.length >= birthdaysPerMinute || this.#birthdays.length >= birthdaysInAll;
    if (isTooSoon || isTooMany) return undefined;
    const birthday = { peer, hasLinked: false, rounds: 1, startedAt: now, endsAt: now + lastsMs };
    this.#birthdays.push(birthday);
    return birthday;
  }

  /** The rounds of one introduction are one birthday, as long as none begins while the one before still runs. */
  #nextRound(birthday: Birthday, lastsMs: number): boolean {
    const now = this.#now();
    const skewMs = Math.min(roundSkewMs, (birthday.endsAt - birthday.startedAt) / 2);
    if (birthday.rounds >= roundsPerWay || now < birthday.endsAt - skewMs) return false;
    birthday.rounds++;
    birthday.startedAt = now;
    birthday.endsAt = now + lastsMs;
    return true;
  }
}
