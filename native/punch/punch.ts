/**
 * One punch: the attempts towards one peer, and which of its channels is nominated (RFC 8445 §8.1.1). Owns what has been
 * authenticated, and ends once: with the nominated channel, or with a diagnosis. It opens no descriptor and polls none:
 * that is native/punch/punch-port.ts, its only maker. It does not know what becomes of a channel. For native/punch/ and
 * native/participant/.
 */
import type { SegmentClamp } from "../host/libc.ts";
import { createHash } from "node:crypto";
import type { Endpoint, FailureReason, Role, Route } from "../../protocol.ts";
import { Channel } from "../secure/channel.ts";
import type { Bond } from "../secure/room.ts";
import { type Candidate, describe, Dial } from "./dial.ts";
import type { Targets } from "./targets.ts";

/**
 * What the introducer says of a punch: our role, which decides who nominates, and the token that the nomination
 * repeats.
 */
export interface Introduction {
  role: Role;
  token: string;
}

/** What happened to one attempt, for people. `outcome` is `started`, `connected`, an errno name, or why TLS failed. */
export interface Attempt {
  atMs: number;
  localPort: number;
  remote: Endpoint;
  route: Route;
  outcome: string;
}

export interface PunchOptions {
  /** Undefined: the punch begins before the introducer answers. What connects then waits for {@link Punch.introduce}. */
  introduction?: Introduction;
  /** Whose certificate the peer must show, and what both must prove. */
  bond: Bond;
  candidates: readonly Candidate[];
  startInMs: number;
  deadlineMs: number;
  /** Whether the peer reaches our listener with no NAT in its way. */
  isReachable: boolean;
  /** Whether we asked for it. What others ask for must leave sockets for that. */
  isAsked?: boolean;
  /** Whether the sockets must do without window scaling. */
  isUnscaled?: boolean;
  /** How short packets must be, as it seems, not to get lost on the way. */
  segmentClamp?: SegmentClamp;
  /** The nominated channel. The callback owns it from then on, and sets its callbacks before returning. */
  onLinked(channel: Channel): void;
  /**
   * Either this or `onLinked` is called, once. `reason` may be told: it does not depend on what is in our own network.
   * `detail` is for our user.
   */
  onFailed(reason: FailureReason, detail: string): void;
  onAttempt?(attempt: Attempt): void;
  /** Nothing more will come of its SYNs ({@link Dial.isUnheard}), and it goes on. Called at every look. */
  onUnheard?(): void;
}

/**
 * While the SYNs of both cross, a millisecond counts: a refused SYN must be made again before the peer's comes. That is so
 * for this long after the start, where not hundreds of sockets dial.
 */
const crossingMs = 500;
const maxCrossing = 32;

/**
 * The ALPN protocol by which both ends agree that a connection belongs to that punch. It is a hash of the token,
 * because it is sent in clear, and the token itself nominates.
 */
export function alpnOf(token: string): string {
  return `${createHash("sha256").update("punch").update(token).digest("hex").slice(0, 32)}.punch`;
}

/** One punch: the attempts towards one peer. Made by {@link PunchPort.punch}. */
export class Punch {
  readonly options: PunchOptions;
  readonly startedAt = performance.now();
  readonly dials: Dial[];
  /** Channels that are authenticated and wait to be nominated. */
  readonly proven = new Set<Channel>();
  /** Why connections came to nothing. */
  readonly seen = {
    authenticationFailures: 0,
    /** Connections to where the introducer has seen the peer that ended before a certificate was shown. */
    cutHandshakes: 0,
    /** Something on the way takes window scaling out of SYNs: the next punch is to do without. */
    needsUnscaled: false,
  };
  introduction: Introduction | undefined;
  /** What {@link alpnOf} returns for its token, once it is introduced. */
  alpn: string | undefined;
  deadlineAt: number;
  readonly #targets: Targets;
  readonly #onEnd: (punch: Punch) => void;
  #isOver = false;

  constructor(options: PunchOptions, targets: Targets, onEnd: (punch: Punch) => void) {
    this.options = options;
    this.#targets = targets;
    if (options.introduction) this.#introduce(options.introduction);
    this.deadlineAt = this.startedAt + options.startInMs + options.deadlineMs;
    this.#onEnd = onEnd;
    const startsAt = this.startedAt + options.startInMs;
    this.dials = options.candidates
      .filter(({ endpoint }) => targets.enter(endpoint, options.isAsked ?? true))
      .map((candidate) => new Dial(candidate, startsAt, targets));
  }

  /** Whether its SYNs are under way, and nothing has come of them yet. */
  isCrossing(now: number): boolean {
    const elapsedMs = now - this.startedAt - this.options.startInMs;
    if (elapsedMs < 0 || elapsedMs >= crossingMs || this.dials.length > maxCrossing) return false;
    return this.proven.size === 0 && this.dials.every(({ channel }) => !channel);
  }

  /** The one that asks. Until the introducer answers, that is us. */
  get isControlling(): boolean {
    return this.introduction?.role !== "controlled";
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** The introducer has answered a punch that began before. */
  introduce(introduction: Introduction, deadlineMs: number): void {
    this.#introduce(introduction);
    this.deadlineAt = performance.now() + deadlineMs;
  }

  /** Gives up. Does nothing once the punch is over. */
  abort(reason: FailureReason, detail: string): void {
    if (this.#isOver) return;
    this.#close(undefined);
    this.options.onFailed(reason, detail);
  }

  /**
   * A channel has shown the peer's certificate. The controlling side nominates the first; the other side waits for
   * that.
   */
  authenticated(channel: Channel): void {
    if (this.#isOver || !channel.isOpen || !this.introduction) return channel.destroy();
    this.proven.add(channel);
    channel.nomination.bond = this.options.bond;
    const { role, token } = this.introduction;
    if (role === "controlling") {
      channel.nominate(token);
      return this.#link(channel);
    }
    channel.nomination.onNominated = (named) => {
      if (named === token) this.#link(channel);
      else channel.reject("it was nominated for something else");
    };
  }

  /**
   * Whether a connection of the peer's still lacks its handshake or its nomination. It is the peer's if it has named this
   * punch, or if the introducer has seen the peer there. Others must not prolong a punch: its length would show what else
   * is in our network.
   */
  get isNearlyThere(): boolean {
    return (
      [...this.proven].some(({ isOpen }) => isOpen) ||
      this.dials.some(({ channel, isVerified }) => channel && (isVerified || channel.alpn === this.alpn))
    );
  }

  report(route: Route, remote: Endpoint, localPort: number, outcome: string): void {
    const atMs = performance.now() - this.startedAt;
    this.options.onAttempt?.({ atMs, localPort, remote, route, outcome });
  }

  /** The diagnosis when the time is over. */
  expire(): void {
    const detail = describe(this.dials) || "the peer offered no endpoint that can be tried from here";
    if (this.seen.authenticationFailures > 0) return this.abort("authentication-failed", detail);
    if (this.isNearlyThere) return this.abort("timed-out", detail);
    this.abort(this.seen.cutHandshakes > 0 ? "handshake-cut" : "no-candidate-answered", detail);
  }

  #introduce(introduction: Introduction): void {
    this.introduction = introduction;
    this.alpn = alpnOf(introduction.token);
  }

  #link(channel: Channel): void {
    if (this.#isOver) return;
    this.#close(channel);
    this.options.onLinked(channel);
  }

  #close(winner: Channel | undefined): void {
    this.#isOver = true;
    for (const dial of this.dials) {
      dial.close(winner);
      this.#targets.leave(dial.candidate.endpoint);
    }
    for (const channel of this.proven) {
      if (channel !== winner) channel.destroy();
    }
    this.#onEnd(this);
  }
}
