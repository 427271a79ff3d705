/**
 * A link: what two running programs share. It is a session, and the channels that it has used. Between two channels it
 * waits, and is given up after a while. Owns its session. It seeks no channel and prints nothing: its owner brings
 * channels, and is told when one is needed. For native/participant/ and native/uses/.
 */
import {
  type ByeReason,
  byeReasons,
  type Endpoint,
  type Role,
  type Route,
  type UnlinkReason,
} from "../../protocol.ts";
import { type Carrier, type CarrierEvent, LinkError, type Offer } from "./carrier.ts";
import { type SessionEnd } from "./farewell.ts";
import { Session } from "./session.ts";
import { resetCodes, type Stream } from "./stream.ts";

/** A channel counts as suspect for so long after the session said so. The session says it again. */
const looksDeadForMs = 5_000;
/**
 * The longest that a link is kept without a channel if nobody here uses it: nobody has asked for it, or there are only
 * answers to send.
 */
const defaultUnwantedKeepMs = 60_000;
/** How long an orderly end may take if nothing has to be sent first. */
const endTimeoutMs = 1_000;

/** What the reason that the peer gives means. */
const peersReasons: Readonly<Record<ByeReason, UnlinkReason>> = {
  disconnected: "peer-disconnected",
  quit: "peer-quit",
  replaced: "replaced",
};

/** Why a link ended; `detail` is for the user. */
export interface LinkEnd {
  reason: UnlinkReason;
  detail: string;
}

function linkEndOf(end: SessionEnd): LinkEnd {
  switch (end.by) {
    case "us": // only if we have begun to end it
      return { reason: "disconnected", detail: end.reason };
    case "protocol":
      return { reason: "protocol-error", detail: end.reason };
    case "restart":
      return { reason: "peer-restarted", detail: "" };
    case "loss":
      return { reason: "connection-lost", detail: "the peer had given it up" };
    case "peer": {
      const known = byeReasons.find((one) => one === end.reason);
      if (known) return { reason: peersReasons[known], detail: "" };
      // Its own diagnosis, such as that our lines break the protocol.
      return { reason: "peer-disconnected", detail: end.reason };
    }
  }
}

/**
 * `suspect`: its channel did not do what it should have, just now. `returning`: it has none. `ending`: we have begun to
 * end it.
 */
export type LinkState = "alive" | "suspect" | "returning" | "ending" | "ended";

/** `tell`: what is done once at its end. `untilMs`: it is given up then, by performance.now(). */
type Life =
  | { is: "alive"; suspectUntilMs: number }
  | { is: "returning"; sinceMs: number; untilMs: number }
  | { is: "ending"; end: LinkEnd; isAtOnce: boolean }
  | { is: "ended"; tell: () => void };

/** What a stream is for, as its opener says. `use` is text. Whoever takes the stream checks the rest. */
export type Purpose = Record<string, unknown>;

/** A carrier, and how it came about. */
export interface LinkCarrier extends Carrier {
  readonly route: Route;
  readonly local: Endpoint;
  readonly remote: Endpoint;
  /** Resolves once nothing of it is left. */
  readonly closed: Promise<void>;
}

export interface LinkOwner {
  /** The peer has opened a stream. Reset it if nobody wants it. */
  stream(stream: Stream, purpose: Purpose): void;
  /** The user of a stream threw an error. That stream was reset. */
  threw(error: unknown): void;
  /** There is no channel now: streams wait. */
  broken(reason: string): void;
  /** The channel may be dead: another one should be sought beside it. */
  looksDead(): void;
  /** It uses another channel now. `gapMs`: for how long there was none; 0 if the old one was alive. */
  moved(channel: LinkCarrier, gapMs: number): void;
  /** Whether somebody here uses one of so many streams, or waits for an answer. */
  isUsed(streams: number): boolean;
  /** Resolves once what was said can be sent; undefined if it can be sent now. An orderly end waits for it. */
  readonly sent: Promise<void> | undefined;
  /** Called once. */
  ended(end: LinkEnd): void;
}

export interface LinkOptions {
  /** Our role on the first channel. */
  role: Role;
  /** SHA-256 of the peer's certificate. */
  fingerprint: string;
  /** How long it is kept without a channel, in ms; with 0 it ends with its first channel. */
  keepMs: number;
  /** Whether somebody here has asked for it; and how long it is kept while nobody wants it. */
  isAsked?: boolean;
  unwantedKeepMs?: number;
  owner: LinkOwner;
}

export class Link {
  /** By performance.now(). */
  readonly openedAtMs = performance.now();
  readonly session: Session;
  readonly #options: Required<LinkOptions>;
  readonly #ended = Promise.withResolvers<UnlinkReason>();
  /** All that its session may go by. */
  readonly #brought = new WeakMap<Carrier, LinkCarrier>();
  /** The latest. */
  #channel: LinkCarrier;
  #life: Life = { is: "alive", suspectUntilMs: -Infinity };
  #keepTimer: NodeJS.Timeout | undefined;
  /** For how long it had no channel, before this time. */
  #pastBrokenMs = 0;

  /**
   * Without an `id` we have nominated the channel, and speak first. With an `id` the peer has named that session on it.
   * {@link accept} its offer once all know of the link, because streams may come with it.
   */
  constructor(channel: LinkCarrier, options: LinkOptions, id?: string) {
    this.#channel = channel;
    this.#options = { isAsked: true, unwantedKeepMs: defaultUnwantedKeepMs, ...options };
    const { role, fingerprint: peer, owner } = options;
    this.session = new Session({ role, peer, ...(id !== undefined && { id }) });
    this.session.onStream = (stream, purpose) => this.#onStream(stream, purpose);
    this.session.onThrown = (error) => owner.threw(error);
    this.session.onCarrier = (event) => this.#onCarrier(event);
    this.session.isWanted = () => this.#isWanted;
    this.session.onGivenUp = () =>
      this.abandon("connection-lost", "and its memory is needed for other links");
    this.session.onEnd = (end) => this.#onEnd(end);
    if (id === undefined) this.attach(channel);
  }

  get route(): Route {
    return this.#channel.route;
  }
  get local(): Endpoint {
    return this.#channel.local;
  }
  get remote(): Endpoint {
    return this.#channel.remote;
  }
  /** Resolves, with the reason, when the link has ended. */
  get ended(): Promise<UnlinkReason> {
    return this.#ended.promise;
  }
  get state(): LinkState {
    const life = this.#life;
    if (life.is !== "alive") return life.is;
    return performance.now() < life.suspectUntilMs ? "suspect" : "alive";
  }
  /** Whether it goes on, with or without a channel. */
  get isOpen(): boolean {
    return this.#life.is === "alive" || this.#life.is === "returning";
  }

  /** Since when it has no channel, and when it is given up (performance.now()); undefined while it has one. */
  get returning(): { sinceMs: number; untilMs: number } | undefined {
    if (this.#life.is !== "returning") return undefined;
    const { sinceMs, untilMs } = this.#life;
    return { sinceMs, untilMs };
  }

  /** For how long it has had no channel, in all. */
  get brokenMs(): number {
    const { sinceMs } = this.returning ?? {};
    return this.#pastBrokenMs + (sinceMs === undefined ? 0 : performance.now() - sinceMs);
  }

  /** Its channel is probably dead, though nothing has shown it yet. */
  suspect(): void {
    this.#suspect();
    this.session.ping();
  }

  #suspect(): void {
    if (this.#life.is === "alive")
      this.#life = { is: "alive", suspectUntilMs: performance.now() + looksDeadForMs };
  }

  /** Another channel that this side has nominated. */
  attach(channel: LinkCarrier): void {
    this.#brought.set(channel, channel);
    this.session.attach(channel);
  }

  /** A channel on which the peer has named this link. */
  accept(offer: Offer<LinkCarrier>): void {
    this.#brought.set(offer.carrier, offer.carrier);
    this.session.accept(offer);
  }

  /**
   * Opens a stream for `use`, a Node Duplex; the peer's program is told that, and what else is in `more` (at most 4096
   * bytes of JSON). A purpose says both. What is written before the peer has taken it waits; who does not take it resets
   * it, and then it has an `error`. Throws a {@link LinkError} when the link has ended, or no text says what it is for.
   */
  open(use: string | object, more: Purpose = {}): Stream {
    const purpose = typeof use === "string" ? { ...more, use } : use;
    if (!("use" in purpose && typeof purpose.use === "string"))
      throw new LinkError("a stream needs text that says what it is `use`d for");
    try {
      return this.session.open(purpose);
    } catch (error) {
      throw new LinkError(error instanceof Error ? error.message : String(error));
    }
  }

  #onStream(stream: Stream, purpose: Purpose): void {
    if (typeof purpose["use"] === "string") return this.#options.owner.stream(stream, purpose);
    stream.reset("it does not say in text what it is for", resetCodes.refused);
  }

  /** Ends the link on both sides. Resolves once it has ended. What was sent before arrives first, if it can. */
  async close(reason: ByeReason): Promise<void> {
    if (this.isOpen) this.#close(reason);
    await this.#ended.promise;
  }

  /** Ends it now: the peer is gone. */
  abandon(reason: UnlinkReason, detail: string): void {
    if (this.#life.is === "ended") return this.#life.tell();
    if (this.session.state === "ended") return; // its end is being told already
    this.#life = { is: "ending", end: { reason, detail }, isAtOnce: true };
    this.session.abandon(reason);
  }

  #close(reason: ByeReason): void {
    if (this.#life.is === "returning") return this.abandon(reason, "");
    this.#life = { is: "ending", end: { reason, detail: "" }, isAtOnce: false };
    const timer = setInterval(() => {
      if (this.session.outstandingBytes === 0) this.session.abandon(reason);
    }, endTimeoutMs);
    void this.#ended.promise.then(() => clearInterval(timer));
    const { sent } = this.#options.owner;
    if (sent) void sent.then(() => this.session.finish(reason));
    else this.session.finish(reason);
  }

  // --- channels come and go ------------------------------------------------------------------------------

  #onCarrier(event: CarrierEvent): void {
    const { owner } = this.#options;
    switch (event.is) {
      case "looks-dead":
        this.#suspect();
        return owner.looksDead();
      case "lost":
        return this.#lost(event.reason);
      case "moved":
        this.#channel = this.#brought.get(event.carrier)!;
        this.#pastBrokenMs = this.brokenMs;
        if (this.isOpen) this.#life = { is: "alive", suspectUntilMs: -Infinity };
        clearTimeout(this.#keepTimer);
        return owner.moved(this.#channel, event.gapMs);
    }
  }

  #lost(reason: string): void {
    const { keepMs, owner, unwantedKeepMs } = this.#options;
    if (this.#life.is === "ending") return this.session.abandon(this.#life.end.reason);
    if (keepMs === 0) return this.abandon("connection-lost", reason);
    const firstMs = this.#isWanted ? keepMs : Math.min(keepMs, unwantedKeepMs);
    const sinceMs = performance.now();
    this.#life = { is: "returning", sinceMs, untilMs: sinceMs + firstMs };
    this.#keepTimer = setTimeout(() => this.#kept(firstMs), firstMs);
    owner.broken(reason);
  }

  #kept(forMs: number): void {
    const { keepMs } = this.#options;
    const leftMs = keepMs - forMs;
    if (leftMs <= 0 || !this.#isWanted)
      return this.abandon("connection-lost", `it did not come back within ${forMs / 60_000} min`);
    if (this.#life.is === "returning") this.#life.untilMs += leftMs;
    this.#keepTimer = setTimeout(() => this.#kept(keepMs), leftMs);
  }

  /** Whether somebody here uses it; or has asked for it, and more is open than answers to the peer. */
  get #isWanted(): boolean {
    const { streamsInUse, owedBytes } = this.session;
    const { isAsked, owner } = this.#options;
    return owner.isUsed(streamsInUse) || (isAsked && owedBytes === 0);
  }

  #onEnd(ended: SessionEnd): void {
    clearTimeout(this.#keepTimer);
    const life = this.#life;
    const end = life.is === "ending" && ended.by === "us" ? life.end : linkEndOf(ended);
    // The same endpoints may be needed at once for a new link. They must be free then, here and in the NATs.
    const tell = () => this.#tellEnd(end);
    this.#life = { is: "ended", tell };
    if (life.is === "ending" && life.isAtOnce) tell();
    else void this.#channel.closed.then(() => this.#life.is === "ended" && this.#life.tell());
  }

  #tellEnd(end: LinkEnd): void {
    this.#life = { is: "ended", tell: () => {} };
    this.#ended.resolve(end.reason);
    this.#options.owner.ended(end);
  }
}
