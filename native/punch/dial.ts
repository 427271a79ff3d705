/**
 * The attempts at one candidate: when the next one is due, how many there may be, and what is told of them (RFC 5128 §3.4;
 * RFC 8445 §5.1.4 for the pacing where the endpoint may not be the peer's). Holds the socket of a dial; {@link Punch} opens
 * and closes it. For native/punch/.
 */
import { splitEndpoint, type Endpoint, type Role, type Route } from "../../protocol.ts";
import type { Channel } from "../secure/channel.ts";
import type { Socket } from "../host/socket.ts";
import type { Targets } from "./targets.ts";

/**
 * The pause before a refused attempt is made again (native/README.md, "Refused attempts"). There is none for the first ones:
 * the next SYN must leave before the peer's arrives. Then it is random: two equal periods would lock in phase, and the SYNs
 * would miss each other time and again. So the sides differ, too.
 */
const eagerTries = { controlling: 3, controlled: 1 };
const eagerPause = { baseMs: 0, randomMs: 3, forMs: 2_000 };
const steadyPause = { baseMs: 5, randomMs: 10 };
/** No NAT stands before a private candidate, so a refusal means "not yet", or a stranger. Six tries take half a second. */
const privatePause = { baseMs: 2, randomMs: 4, growth: 3 };
/** For a global address at which the introducer has not seen the peer. It may be anybody's. */
const unverifiedPausesMs = [50, 200, 800, 3_200];
/** There a SYN is given up just before the kernel would repeat it (RFC 6298 §2.1: after one second). */
const unverifiedAnswerMs = 900;
/** What is silent for two of its round trips, and for so long, answers no more. */
const unheardSpareMs = 30;
/**
 * The pause after a connection that did not authenticate, or after a local obstacle (no port, no descriptor). Neither
 * changes soon, unless the peer was listening for others and does not know of us yet.
 */
const obstaclePause = { baseMs: 4, randomMs: 4, growth: 2, maxMs: 250 };

const refusals = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ECONNABORTED",
  "EACCES",
]);

/** Whether a host or a router has refused the attempt. */
export function isRefusal(outcome: string): boolean {
  return refusals.has(outcome);
}

/** How many attempts are left. Candidates and rounds that hold the same object share them. */
export interface Tries {
  left: number;
}

export interface Candidate {
  endpoint: Endpoint;
  route: Exclude<Route, "listen">;
  /** Dialled from a port of its own instead of the shared one. */
  isFresh?: boolean;
  /** Not dialled again after a refusal, because its mapping is gone then. */
  isOnce?: boolean;
  /** How long after the start it is dialled. */
  afterMs?: number;
  /**
   * Set where only the peer says that the endpoint is its own. It is dialled at most so often, with growing pauses. What
   * becomes of it is told to nobody but our user.
   */
  tries?: Tries;
}

/** The attempts at one candidate: one socket at a time. */
export class Dial {
  readonly candidate: Candidate;
  dueAt: number;
  tries = 0;
  /** The local port of the latest attempt. */
  localPort = 0;
  socket?: Socket;
  /** Set once connected: from then on TLS decides. */
  channel?: Channel;
  lastOutcome?: string;
  readonly #targets: Targets;
  #startedAt = 0;
  #obstacles = 0;
  /** How long it took to refuse an attempt: a round trip. */
  #answerMs: number | undefined;

  constructor(candidate: Candidate, startsAt: number, targets: Targets) {
    this.candidate = candidate;
    this.#targets = targets;
    this.dueAt = startsAt + (candidate.afterMs ?? 0);
  }

  /** Whether the introducer has seen the peer at the address. */
  get isVerified(): boolean {
    return this.candidate.tries === undefined;
  }

  /** Whether the next attempt is to be made now. If the answer is true, it is counted. */
  take(now: number): boolean {
    if (this.socket || this.channel || now < this.dueAt) return false;
    const { tries, endpoint, route } = this.candidate;
    if (tries && tries.left <= 0) {
      this.dueAt = Infinity;
      return false;
    }
    // The attempts of a birthday were counted when it began.
    const waitMs = route === "birthday" ? 0 : this.#targets.attempt(endpoint);
    if (waitMs > 0) {
      this.dueAt = now + waitMs;
      return false;
    }
    if (tries) tries.left--;
    this.tries++;
    this.#startedAt = now;
    return true;
  }

  /** Whether a SYN has waited for an answer as long as it may at this candidate. */
  isOverdue(now: number): boolean {
    const isBounded = !this.isVerified && this.candidate.route !== "private";
    return isBounded && this.socket !== undefined && now - this.#startedAt >= unverifiedAnswerMs;
  }

  /**
   * Whether it has refused before, and is silent now. Then a NAT takes what we send for part of a connection that is dead,
   * and drops it for minutes.
   */
  isUnheard(now: number): boolean {
    if (this.#answerMs === undefined || !this.isVerified || !this.socket) return false;
    return now - this.#startedAt >= 2 * this.#answerMs + unheardSpareMs;
  }

  /** An attempt has ended without a link; `elapsedMs` since the punch began. */
  ended(outcome: string, elapsedMs: number, role: Role): void {
    this.lastOutcome = outcome;
    if (isRefusal(outcome)) this.#answerMs = performance.now() - this.#startedAt;
    const pause = this.candidate.isOnce ? Infinity : this.#pauseMs(outcome, elapsedMs, role);
    this.dueAt = performance.now() + pause;
  }

  close(except: Channel | undefined): void {
    this.socket?.close();
    if (this.channel !== except) this.channel?.destroy();
  }

  #pauseMs(outcome: string, elapsedMs: number, role: Role): number {
    if (!this.isVerified && this.candidate.route !== "private") {
      return unverifiedPausesMs[Math.min(this.tries, unverifiedPausesMs.length) - 1]!;
    }
    if (!refusals.has(outcome)) {
      const { baseMs, randomMs, growth, maxMs } = obstaclePause;
      return Math.min(maxMs, (baseMs + Math.random() * randomMs) * growth ** this.#obstacles++);
    }
    if (!this.isVerified) {
      const { baseMs, randomMs, growth } = privatePause;
      return (baseMs + Math.random() * randomMs) * growth ** (this.tries - 1);
    }
    if (this.tries <= eagerTries[role]) return 0;
    const { baseMs, randomMs } = elapsedMs < eagerPause.forMs ? eagerPause : steadyPause;
    return baseMs + Math.random() * randomMs;
  }
}

/** Whether some tried again from fresh ports. Of a NAT that counts each attempt has taken another port. */
export function haveTakenPorts(dials: readonly Dial[]): boolean {
  return dials.some(({ candidate, tries }) => candidate.isFresh && !candidate.isOnce && tries > 1);
}

/** What became of the attempts: a phrase for each candidate, and one for all predicted or guessed ports. */
export function describe(dials: readonly Dial[]): string {
  const crowds = Map.groupBy(dials, ({ candidate: { route, endpoint } }) => {
    const isCrowd = route === "predicted" || route === "birthday";
    return `${route} ${isCrowd ? splitEndpoint(endpoint).address : endpoint}`;
  });
  const phrases = [...crowds].map(([what, crowd]) => {
    const tries = crowd.reduce((sum, one) => sum + one.tries, 0);
    const unanswered = crowd.filter(({ socket }) => socket).length;
    const ends = new Set(crowd.flatMap(({ lastOutcome }) => lastOutcome ?? []));
    const outcome = unanswered > 0 ? new Set(["no answer", ...ends]) : ends;
    return `${what}: ${tries} ${tries === 1 ? "attempt" : "attempts"}, ${[...outcome].join(", ") || "none ended"}`;
  });
  return phrases.join("; ");
}
