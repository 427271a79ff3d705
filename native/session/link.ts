/**
 * A link: what two running programs share. A session, the stream of lines on it (texts and their answers), and the
 * channels it has gone by so far; between two of them the link waits, and is given up only after a while. Owns its
 * session. It seeks no channel and never prints: its owner brings channels and is told when one is wanted. For
 * native/participant/peer.ts.
 */
import {
  type ByeReason,
  byeReasons,
  encode,
  type Endpoint,
  LineDecoder,
  type LinkLine,
  parseLinkLine,
  Refusal,
  type Role,
  type Route,
  type UnlinkReason,
} from "../../protocol.ts";
import { type Carrier, type CarrierEvent, LinkError, type Offer } from "./carrier.ts";
import { Queue } from "./resend.ts";
import { type EndedBy, Session } from "./session.ts";
import { resetCodes, type Stream } from "./stream.ts";

/** Texts and pings that may wait for an answer at once. */
const maxWaiting = 1024;
/** The session says so again while it does. */
const looksDeadForMs = 5_000;
/**
 * How long it is kept without a channel where nobody here uses it, if that is shorter: nobody has asked for it, or all
 * that there is to say are answers.
 */
const defaultUnwantedKeepMs = 60_000;
/** Answers that the peer has not acknowledged, with all that keeping them costs a megabyte: no more of its lines are read. */
const maxUnacknowledgedAnswers = 8 * 1024;
/** How long an orderly end may take when nothing has to be sent first. */
const endTimeoutMs = 1_000;

/** What the peer means by the reason it gives. */
const peersReasons: Readonly<Record<ByeReason, UnlinkReason>> = {
  disconnected: "peer-disconnected",
  quit: "peer-quit",
  replaced: "replaced",
};

/** What a stream is for, as the side that opens it says: `use` is text; who takes the stream checks the rest. */
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
  said(text: string): void;
  /** A stream that the peer has opened; whoever does not want it resets it. */
  stream(stream: Stream, purpose: Purpose): void;
  /** What the user of a stream threw at what came for it; that stream was reset. */
  threw(error: unknown): void;
  /** There is no channel now: streams wait. */
  broken(reason: string): void;
  /** There is one, but it may be dead: another one should be sought beside it. */
  looksDead(): void;
  /** It goes by another channel. `gapMs`: how long nothing went; 0 when the old one was alive. */
  moved(channel: LinkCarrier, gapMs: number): void;
  /** Called once. */
  ended(reason: UnlinkReason, detail: string): void;
}

/** An answer that is waited for: `heard` or `pong`. */
interface Waiting {
  resolve: (elapsedMs: number) => void;
  reject: (error: LinkError) => void;
  sentAt: number;
}

export interface LinkOptions {
  /** That of the side on the first channel. */
  role: Role;
  /** SHA-256 of the peer's certificate. */
  fingerprint: string;
  /** How long it is kept without a channel: milliseconds; 0 ends it with its first one. */
  keepMs: number;
  /** Whether somebody here has asked for it; and how long it is kept while nobody wants it. */
  isAsked?: boolean;
  unwantedKeepMs?: number;
  owner: LinkOwner;
}

export class Link {
  readonly openedAt = Date.now();
  readonly session: Session;
  readonly #owner: LinkOwner;
  readonly #keepMs: number;
  readonly #isAsked: boolean;
  readonly #unwantedKeepMs: number;
  readonly #ended = Promise.withResolvers<UnlinkReason>();
  readonly #waiting = new Map<number, Waiting>();
  /** All that its session may go by. */
  readonly #brought = new WeakMap<Carrier, LinkCarrier>();
  /** The latest. */
  #channel: LinkCarrier;
  #lines: Stream | undefined;
  /** What was said before the stream of lines had come. */
  #unsent: LinkLine[] = [];
  #unsentAnswers = 0;
  /** Bytes written to the stream of lines; and where in them the answers end that are not acknowledged. */
  #lineBytes = 0;
  readonly #answersUntil = new Queue<number>();
  #nextId = 1;
  #brokenSince: number | undefined;
  #looksDeadSince = -Infinity;
  #keepTimer: NodeJS.Timeout | undefined;
  #isAbandoned = false;
  /** Set between the end and the telling of it. */
  #tellEnd: (() => void) | undefined;
  /** Why we end it. */
  #closing: { reason: UnlinkReason; detail: string } | undefined;

  /**
   * Without an `id` we have nominated the channel, and speak first. With one the peer has spoken on it and named that
   * session: {@link accept} what it offered once everybody knows of the link, for streams may come with it.
   */
  constructor(channel: LinkCarrier, options: LinkOptions, id?: string) {
    const { role, fingerprint, keepMs, isAsked, owner, unwantedKeepMs = defaultUnwantedKeepMs } = options;
    this.#channel = channel;
    this.#owner = owner;
    this.#keepMs = keepMs;
    this.#isAsked = isAsked ?? true;
    this.#unwantedKeepMs = unwantedKeepMs;
    this.session = new Session({ role, peer: fingerprint, ...(id !== undefined && { id }) });
    this.session.onStream = (stream, purpose) => this.#onStream(stream, purpose);
    this.session.onThrown = (error) => owner.threw(error);
    this.session.onCarrier = (event) => this.#onCarrier(event);
    this.session.isWanted = () => this.#isWanted;
    this.session.onGivenUp = () =>
      this.abandon("connection-lost", "and its memory is needed for other links");
    this.session.onEnd = (reason, by) => this.#onEnd(reason, by);
    if (id !== undefined) return;
    this.attach(channel);
    this.#useLines(this.open("lines"));
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
  get isReturning(): boolean {
    return this.#brokenSince !== undefined;
  }
  /** Whether the channel did not do what it should have, just now. */
  get looksDead(): boolean {
    return performance.now() - this.#looksDeadSince < looksDeadForMs;
  }
  get isOpen(): boolean {
    return !this.session.isEnded && !this.#closing;
  }

  /** There is reason to think that its channel is dead, though nothing has shown it yet. */
  suspect(): void {
    this.#looksDeadSince = performance.now();
    this.session.ping();
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

  /** Resolves when the peer's program has the text; rejects with a {@link LinkError} when that can't be known. */
  say(text: string): Promise<number> {
    return this.#ask((id) => ({ type: "say", id, text }));
  }

  /** Resolves to the round trip in milliseconds, from program to program. */
  ping(): Promise<number> {
    return this.#ask((id) => ({ type: "ping", id }));
  }

  /** Ends the link on both sides; resolves when it has ended. Whatever was sent before arrives first, if it can. */
  async close(reason: ByeReason): Promise<void> {
    if (this.isOpen) this.#close(reason);
    await this.#ended.promise;
  }

  /** Ends it now: its peer is not there any more. */
  abandon(reason: UnlinkReason, detail: string): void {
    this.#isAbandoned = true;
    if (this.session.isEnded) return this.#tellEnd?.();
    this.#closing = { reason, detail };
    this.session.abandon(reason);
  }

  #close(reason: ByeReason): void {
    this.#closing = { reason, detail: "" };
    this.#isAbandoned = this.isReturning;
    if (this.isReturning) return this.session.abandon(reason);
    const isBusy = () => this.session.outstandingBytes > 0;
    const timer = setInterval(() => {
      if (!isBusy()) this.session.abandon(reason);
    }, endTimeoutMs);
    void this.#ended.promise.then(() => clearInterval(timer));
    // What was said before the stream of lines has come goes first.
    if (this.#lines || this.#unsent.length === 0) this.session.finish(reason);
  }

  // --- lines ---------------------------------------------------------------------------------------------

  #ask(message: (id: number) => LinkLine): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    if (!this.isOpen || this.session.isEnding) reject(new LinkError("the link has ended"));
    else if (this.#waiting.size >= maxWaiting)
      reject(new LinkError(`${maxWaiting} texts already wait for the peer's answer`));
    else {
      const id = this.#nextId++;
      this.#waiting.set(id, { resolve, reject, sentAt: performance.now() });
      this.#send(message(id));
    }
    return promise;
  }

  #send(line: LinkLine): void {
    // It could not be sent, and would break the stream on which the peer's last words may still come.
    if (this.session.isEnding) return;
    if (this.#lines) this.#write(this.#lines, line);
    else this.#unsent.push(line);
  }

  #onStream(stream: Stream, purpose: Purpose): void {
    if (typeof purpose["use"] !== "string")
      return stream.reset("it does not say in text what it is for", resetCodes.refused);
    if (purpose["use"] !== "lines") return this.#owner.stream(stream, purpose);
    if (this.#lines) stream.reset("there is a stream of lines already", resetCodes.refused);
    else this.#useLines(stream);
  }

  #useLines(stream: Stream): void {
    const decoder = new LineDecoder();
    this.#lines = stream;
    stream.isCounted = true;
    stream.onAcknowledged = () => this.#readLines(stream);
    for (const line of this.#unsent.splice(0)) this.#send(line);
    if (this.#closing) this.session.finish(this.#closing.reason);
    stream.on("error", () => {}); // the link's end says it
    for (const event of ["end", "close"]) stream.once(event, () => this.#linesOver());
    stream.on("data", (chunk: Buffer) => {
      try {
        for (const line of decoder.push(chunk)) this.#receive(parseLinkLine(line));
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        this.abandon("protocol-error", error.message);
      }
    });
  }

  /** Nothing would be answered any more, and no text would come. */
  #linesOver(): void {
    if (!this.session.isEnding)
      this.abandon("protocol-error", "its stream of lines is over, and the link is not");
  }

  #receive(line: LinkLine): void {
    if (this.session.isEnded) return;
    switch (line.type) {
      case "say":
        this.#answer({ type: "heard", id: line.id });
        return this.#owner.said(line.text);
      case "ping":
        return this.#answer({ type: "pong", id: line.id });
      case "heard":
      case "pong":
        return this.#answered(line.id);
    }
  }

  /**
   * Who asks more at once than we would, and takes no answers, is not read. Only answers count: if our own texts did, two
   * sides with much to say would wait for each other for ever.
   */
  #answer(line: LinkLine): void {
    const lines = this.#lines!;
    if (this.session.isEnding) return;
    this.#unsentAnswers++;
    this.#write(lines, line, () => {
      this.#unsentAnswers--;
      this.#readLines(lines);
    });
    this.#answersUntil.push(this.#lineBytes);
    if (this.#isOwing) lines.pause();
  }

  #write(lines: Stream, line: LinkLine, written?: () => void): void {
    const bytes = Buffer.from(encode(line));
    this.#lineBytes += bytes.length;
    lines.write(bytes, written);
  }

  get #isOwing(): boolean {
    return this.#unsentAnswers > maxWaiting || this.#answersUntil.length > maxUnacknowledgedAnswers;
  }

  #readLines(lines: Stream): void {
    const { acknowledgedBytes } = lines;
    while ((this.#answersUntil.at(0) ?? Infinity) <= acknowledgedBytes) this.#answersUntil.shift();
    if (lines.isPaused() && !this.#isOwing) lines.resume();
  }

  #answered(id: number): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    waiting?.resolve(performance.now() - waiting.sentAt);
  }

  // --- channels come and go ------------------------------------------------------------------------------

  #onCarrier(event: CarrierEvent): void {
    switch (event.is) {
      case "looks-dead":
        this.#looksDeadSince = performance.now();
        return this.#owner.looksDead();
      case "lost":
        return this.#lost(event.reason);
      case "moved":
        this.#channel = this.#brought.get(event.carrier)!;
        this.#brokenSince = undefined;
        this.#looksDeadSince = -Infinity;
        clearTimeout(this.#keepTimer);
        return this.#owner.moved(this.#channel, event.gapMs);
    }
  }

  #lost(reason: string): void {
    if (this.#closing) return this.session.abandon(this.#closing.reason);
    if (this.#keepMs === 0) return this.abandon("connection-lost", reason);
    this.#brokenSince = performance.now();
    const firstMs = this.#isWanted ? this.#keepMs : Math.min(this.#keepMs, this.#unwantedKeepMs);
    this.#keepTimer = setTimeout(() => this.#kept(firstMs), firstMs);
    this.#owner.broken(reason);
  }

  #kept(forMs: number): void {
    const leftMs = this.#keepMs - forMs;
    if (leftMs <= 0 || !this.#isWanted)
      return this.abandon("connection-lost", `it did not come back within ${forMs / 60_000} min`);
    this.#keepTimer = setTimeout(() => this.#kept(this.#keepMs), leftMs);
  }

  /** Whether somebody here uses it, or has asked for it and there is more to it than what the peer made us say. */
  get #isWanted(): boolean {
    const { streamsInUse, owedBytes } = this.session;
    const isUsed = this.#waiting.size > 0 || streamsInUse > (this.#lines ? 1 : 0);
    return isUsed || (this.#isAsked && owedBytes === 0);
  }

  #onEnd(said: string, by: EndedBy): void {
    clearTimeout(this.#keepTimer);
    const { reason, detail } = this.#endOf(said, by);
    // After an orderly end the same endpoints may be wanted at once: they must be free by then, here and in the NATs.
    this.#tellEnd = () => {
      this.#tellEnd = undefined;
      this.#over(reason, detail);
    };
    if (this.#isAbandoned) this.#tellEnd();
    else void this.#channel.closed.then(() => this.#tellEnd?.());
  }

  #over(reason: UnlinkReason, detail: string): void {
    for (const { reject } of this.#waiting.values())
      reject(new LinkError(`the link ended before the peer answered${detail && `: ${detail}`}`));
    this.#waiting.clear();
    this.#ended.resolve(reason);
    this.#owner.ended(reason, detail);
  }

  #endOf(said: string, by: EndedBy): { reason: UnlinkReason; detail: string } {
    if (this.#closing && by === "us") return this.#closing;
    if (by === "protocol") return { reason: "protocol-error", detail: said };
    if (said === "peer-restarted") return { reason: "peer-restarted", detail: "" };
    const known = byeReasons.find((one) => one === said);
    if (known) return { reason: peersReasons[known], detail: "" };
    // Its own diagnosis, such as that our lines break the protocol.
    return { reason: "peer-disconnected", detail: said };
  }
}
