/**
 * One peer's life: known, being introduced to us, linked, coming back, gone. {@link RemotePeer} is the single writer of
 * its state and owns the introduction and the link under way; it sees to it that a link has a channel, and a direct one
 * where that can be. It knows neither the prompt nor any other peer. For participant.ts.
 */
import {
  changedPeer,
  type Endpoint,
  type FailureReason,
  failureReasons,
  isVerified,
  type Mapping,
  maxTextLength,
  type Peer,
  type PeerChange,
  printable,
  type Role,
  type Route,
  splitEndpoint,
  ToldError,
  type ToParticipant,
  type UnlinkReason,
  UserError,
  type Way,
} from "../../protocol.ts";
import type { Unasked } from "../punch/allowance.ts";
import { type Ground, Introduction, type Nominated, type PunchMessage } from "../punch/introduction.ts";
import type { Attempt } from "../punch/punch.ts";
import { judgeOffer, LinkError, type Offer, readOffer, refuseOffer } from "../session/carrier.ts";
import type { Channel } from "../secure/channel.ts";
import { resumedStatus } from "../session/frame.ts";
import { Link, type LinkOptions, type LinkCarrier, type LinkOwner, type Purpose } from "../session/link.ts";
import { Seeker } from "./seeker.ts";
import type { Stream } from "../session/stream.ts";

/** Ended links that a peer is told of when it comes back to one. */
const maxPastSessions = 4;
/** Tokens of earlier rounds that are kept in mind, so that a late `failed` is told from the answer to our `connect`. */
const maxPastTokens = 16;
/** How often we ask anew because the peer was mistaken about who we are. */
const maxRefusals = 2;
/** Channels at once on which the peer has yet to say which link they are for; an introduction brings two at most. */
const maxAgreements = 4;
/** How long the peer may take to say which link a channel is for; it does so as it nominates it. */
const offerTimeoutMs = 5_000;
/** Whose event it is; `peer` is null when it is not in the room now, for its old id may be somebody else's. */
interface Who {
  peer: number | null;
  name: string;
}

/** What a peer's life is told by, in the shape of the `--json` lines. Endpoints are text. */
export type PeerEvent = Who &
  (
    | { event: "punching"; role: Role; way: Way; round: number }
    | ({ event: "attempt" } & Attempt)
    | {
        event: "linked";
        route: Route;
        local: Endpoint;
        remote: Endpoint;
        /** Since our `connect`, or since the introducer asked us to punch. */
        elapsedMs: number;
      }
    | { event: "failed"; reason: FailureReason; detail: string }
    /** The link has no channel now: its streams wait. */
    | { event: "broken"; reason: string }
    /** It goes by another channel. `gapMs`: how long nothing went. */
    | { event: "moved"; route: Route; local: Endpoint; remote: Endpoint; gapMs: number }
    | { event: "unlinked"; reason: UnlinkReason; detail: string }
    | { event: "said"; text: string }
    | { event: "sent"; rttMs: number }
    | { event: "pong"; rttMs: number }
  );
type EventOf<Event> = Event extends Who ? Omit<Event, keyof Who> : never;

/** One peer as the list shows it. */
export interface PeerRow {
  id: number;
  name: string;
  state: PeerState;
  fingerprint: string;
  /** Whether the introducer lists it. */
  present: boolean;
  /** When the introducer last did: milliseconds since the epoch. */
  lastSeenAt: number;
  private: Endpoint[];
  public: Endpoint;
  /** The port that its router has opened. */
  mapped?: Endpoint;
  mapping: Mapping;
  /** To the introducer. */
  roundTripMs?: number;
  reason?: FailureReason;
  route?: Route;
  local?: Endpoint;
  remote?: Endpoint;
  rttMs?: number;
  ageMs?: number;
  bytesIn?: number;
  bytesOut?: number;
  /** Channels that the link has gone by. */
  carriers?: number;
  /** Why it is untrusted. */
  distrust?: string;
}

/**
 * `untrusted`: its proof is wrong. `punching`: being introduced. `agreeing`: a channel is nominated, on which it has yet to
 * say which link that is for, or to prove itself. `returning`: linked, without a channel. What is not linked, and whose last punch failed,
 * is `failed`.
 */
export type PeerState = "untrusted" | "known" | "punching" | "agreeing" | "linked" | "returning" | "failed";

/** A nominated channel, until the peer has spoken on it: said which link it is for or, on ours, proved itself. */
interface Agreement {
  readonly token: string;
  /** Ours, and what is to be a link with it, which is none to anyone until then. All of a peer are for the same. */
  readonly proposal?: { channel: Channel; link: Link };
  /** Closes the channel, without a word. */
  end(): void;
}

/** What there is between us, and what is under way. */
type Life =
  /** Nothing. `failure`: what came of the latest try. */
  | { is: "apart"; failure: FailureReason | undefined }
  | { is: "punching"; introduction: Introduction }
  | { is: "agreeing"; agreements: readonly Agreement[]; introduction: Introduction | undefined }
  /** Another channel may be sought for the link, and agreed on. */
  | { is: "linked"; link: Link; agreements: readonly Agreement[]; introduction: Introduction | undefined };

interface LifeParts {
  link: Link | undefined;
  introduction: Introduction | undefined;
  agreements: readonly Agreement[];
  failure: FailureReason | undefined;
}

function lifeOf({ link, introduction, agreements, failure }: LifeParts): Life {
  if (link) return { is: "linked", link, agreements, introduction };
  if (agreements.length > 0) return { is: "agreeing", agreements, introduction };
  return introduction ? { is: "punching", introduction } : { is: "apart", failure };
}

/** What a peer needs of the participant. */
export interface PeerSurroundings {
  /** Our registration, while there is one. */
  ground(): Ground | undefined;
  emit(event: PeerEvent): void;
  /** Report every attempt of every punch. */
  isVerbose: boolean;
  /** Ours, as others see it. */
  readonly instance: string;
  /** How long a link is kept without a channel. */
  readonly keepMs: number;
  /** Whether nothing may begin any more. */
  readonly hasQuit: boolean;
  /** A stream that a peer has opened. */
  stream(peer: RemotePeer, stream: Stream, purpose: Purpose): void;
  /** What the user of a stream threw at what came for it. */
  threw(peer: RemotePeer, error: unknown): void;
  /** Resolves once our mapping has been measured anew: it may have become one that can be punched. */
  measureAnew(): Promise<void>;
  /** A link has no channel; said again while its peer is not in the room. */
  returning(peer: RemotePeer): void;
  /** There is a link now, or no longer, or none came about. */
  changed(peer: RemotePeer): void;
  /** Admits an introduction that we did not ask for; undefined when it is one too many. */
  admit(peer: RemotePeer): Unasked | undefined;
}

export class RemotePeer {
  #peer: Peer;
  #isPresent = true;
  #lastSeenAt = Date.now();
  #life: Life = { is: "apart", failure: undefined };
  /** The link of an earlier program that the introduction under way is about, unless somebody wants a link with this one. */
  #predecessor: Link | undefined;
  /** Of our wish for a link, by a peer that went on with one it had with an earlier program of ours. */
  #refusals = 0;
  /** Why its proof is not believed. */
  readonly distrust: string | undefined;
  /** Whether the attempts of its punches are told: asked for with the last `connect`. */
  #isVerbose = false;
  #lastEndedAt: number | undefined;
  /** The sessions of the latest links: that they are over, the peer may not have heard. */
  readonly #pastSessions: string[] = [];
  readonly #seeker: Seeker;
  readonly #pastTokens: string[] = [];
  readonly #tokens = new WeakMap<LinkCarrier, string>();
  readonly #surroundings: PeerSurroundings;
  /** Those who wait for a link. */
  #waiting: { resolve: (link: Link) => void; reject: (error: Error) => void }[] = [];

  constructor(peer: Peer, surroundings: PeerSurroundings, distrust?: string) {
    this.#peer = peer;
    this.#surroundings = surroundings;
    this.distrust = distrust;
    this.#seeker = new Seeker(() => this.#seek());
  }

  get id(): number {
    return this.#peer.id;
  }
  get name(): string {
    return this.#peer.name;
  }
  get instance(): string {
    return this.#peer.instance;
  }
  get fingerprint(): string {
    return this.#peer.fingerprint;
  }
  get isPresent(): boolean {
    return this.#isPresent;
  }
  get link(): Link | undefined {
    return this.#life.is === "linked" ? this.#life.link : undefined;
  }
  get isReturning(): boolean {
    return this.link?.isReturning ?? false;
  }
  /** Whether nothing but the introducer's list keeps it in mind. */
  get isIdle(): boolean {
    return this.#life.is === "apart";
  }
  get #introduction(): Introduction | undefined {
    return this.#life.is === "apart" ? undefined : this.#life.introduction;
  }
  get #agreements(): readonly Agreement[] {
    return this.#life.is === "agreeing" || this.#life.is === "linked" ? this.#life.agreements : [];
  }
  get #failure(): FailureReason | undefined {
    return this.#life.is === "apart" ? this.#life.failure : undefined;
  }

  /** The single writer. */
  #become(changed: Partial<LifeParts>): void {
    const { link } = this;
    const before = { introduction: this.#introduction, agreements: this.#agreements, failure: this.#failure };
    this.#life = lifeOf({ link, ...before, ...changed });
  }

  get state(): PeerState {
    if (this.distrust !== undefined) return "untrusted";
    switch (this.#life.is) {
      case "linked":
        return this.#life.link.isReturning ? "returning" : "linked";
      case "apart":
        return this.#life.failure ? "failed" : "known";
      default:
        return this.#life.is;
    }
  }

  get row(): PeerRow {
    const { id, name, fingerprint, private: hosts, public: observed, mapped } = this.#peer;
    const { mapping, roundTripMs } = this.#peer;
    const { state, distrust } = this;
    return {
      ...{ id, name, state, fingerprint, private: hosts, public: observed, mapping },
      ...{ present: this.#isPresent, lastSeenAt: this.#lastSeenAt },
      ...(mapped && { mapped }),
      ...(roundTripMs !== undefined && { roundTripMs }),
      ...(distrust !== undefined && { distrust }),
      ...(state === "failed" && { reason: this.#failure! }),
      ...(this.link && linkRow(this.link)),
    };
  }

  // --- what the introducer says of it --------------------------------------------------------------------

  /** It is in the room, with what is newest of it. */
  seen(peer: Peer): void {
    // A session that has not timed out yet may be listed beside the one that replaced it.
    if (this.#isPresent && peer.id < this.#peer.id) return;
    const isNews = !this.#isPresent || peer.id !== this.#peer.id;
    const hasMoved = !isVerified(peer, splitEndpoint(this.#peer.public).address);
    this.#peer = peer;
    this.#isPresent = true;
    this.#lastSeenAt = Date.now();
    if (hasMoved) this.#suspect();
    if (isNews) this.#seekAnew();
  }

  change(change: PeerChange): void {
    this.#peer = changedPeer(this.#peer, change);
    this.#lastSeenAt = Date.now();
    // A round trip says nothing about how to get there.
    if (Object.keys(change).some((field) => field !== "roundTripMs")) this.#seekAnew();
  }

  /** We are registered anew, at another address perhaps, or our own mapping has changed. */
  groundChanged(hasMoved: boolean): void {
    if (hasMoved) this.#suspect();
    this.#seekAnew();
  }

  /** It left the room. */
  left(): void {
    this.#absent();
    this.#giveUp("abort", "peer-left", "it left the introducer");
  }

  /** We leave the introducer: links stay, and none comes about any more. */
  leaving(): void {
    if (!this.link) this.#giveUp("cancel", "cancelled", "we left the introducer");
  }

  /** Nobody knows whether it is still there. */
  introducerLost(reason: string): void {
    this.#absent();
    this.#introduction?.introducerLost(reason);
  }

  /** Another program has come in its place, which knows nothing of our link. */
  restarted(): void {
    this.link?.abandon("peer-restarted", "");
  }

  /**
   * Has this one say whether that link, of a program of its name and certificate, is over. That it is listed proves
   * nothing: what it registered with may be somebody's copy of what an earlier run did.
   */
  askAfter(predecessor: Link): void {
    if (this.distrust !== undefined || !this.isIdle) return;
    this.#predecessor = predecessor;
    this.#introduce()?.ask(true);
  }

  #absent(): void {
    if (this.#isPresent) this.#lastSeenAt = Date.now();
    this.#isPresent = false;
  }

  measure(message: ToParticipant & { type: "measure" }): void {
    const introduction = this.#introductionOf(message);
    introduction?.measure(message).catch((error: unknown) => {
      introduction.abort("no-candidate-answered", `we could not measure: ${inText(error)}`);
    });
  }

  punch(message: PunchMessage): void {
    // Whoever asks is controlling: if that is us, it answers a `connect` that was cancelled meanwhile.
    if (!this.#introduction && message.role === "controlling") return this.#decline(message.token);
    const introduction = this.#introductionOf(message);
    if (introduction) this.#try(introduction, () => introduction.punch(message));
  }

  relay(message: ToParticipant & { type: "relay" }): void {
    const isUnwanted = this.#surroundings.ground()?.takesRelay === false;
    const isStale = !this.#introduction && message.role === "controlling";
    if (isUnwanted || isStale) return this.#decline(message.token);
    const introduction = this.#introductionOf(message);
    if (introduction) this.#try(introduction, () => introduction.relay(message));
  }

  /** A round's failure at the other side, or the answer to our `connect`. */
  failed({ token, reason }: ToParticipant & { type: "failed" }): void {
    const introduction = this.#introduction;
    const isAnswer = introduction?.isAsking && !this.#pastTokens.includes(token);
    if (isAnswer || introduction?.isOf(token)) introduction.failed(reason, failureDetail(reason, this.#peer));
  }

  /** The introducer refused our `connect`. */
  refused(text: string): void {
    if (this.#introduction?.isAsking) this.#introduction.abort("refused", text);
  }

  /** The introduction that a round belongs to; undefined when it was declined. */
  #introductionOf({ peer, token }: { peer: Peer; token: string }): Introduction | undefined {
    if (this.distrust !== undefined) return void this.#decline(token);
    this.seen(peer);
    this.#pastTokens.push(token);
    this.#pastTokens.splice(0, this.#pastTokens.length - maxPastTokens);
    if (this.#introduction) return this.#introduction;
    const unasked = this.#surroundings.admit(this);
    return unasked ? this.#introduce(unasked) : void this.#decline(token);
  }

  #decline(token: string): void {
    const ground = this.#surroundings.ground();
    ground?.send({ type: "failed", peer: this.id, token, reason: "refused-by-peer" });
  }

  #introduce(unasked?: Unasked): Introduction | undefined {
    const ground = this.#surroundings.ground();
    if (!ground || this.#surroundings.hasQuit) return undefined;
    const introduction = new Introduction({
      ground,
      peer: this.#peer,
      unasked,
      lastEndedAt: this.#lastEndedAt,
      onRound: (round) => this.#onRound(round),
      onAttempt: (attempt) => {
        if (this.#isTold) this.#emit({ event: "attempt", ...attempt });
      },
      onChannel: (channel, nominated) => this.#nominated(channel, nominated),
      onEnd: (failure) => this.#introduced(failure),
    });
    this.#become({ introduction, failure: undefined });
    return introduction;
  }

  /** What goes wrong at once, such as that no descriptor is left, costs the introduction, and nothing else. */
  #try(introduction: Introduction, work: () => void): void {
    try {
      work();
    } catch (error) {
      introduction.abort("no-candidate-answered", `we could not try: ${inText(error)}`);
    }
  }

  #askFor(mayRelay: boolean): void {
    const introduction = this.#introduce();
    if (introduction) this.#try(introduction, () => introduction.ask(mayRelay));
  }

  get #isTold(): boolean {
    return this.#surroundings.isVerbose || this.#isVerbose;
  }

  /** What a link does to live on is its own business. */
  #onRound(round: Pick<PunchMessage, "role" | "way" | "round">): void {
    if ((!this.link && !this.#isQuiet) || this.#isTold) this.#emit({ event: "punching", ...round });
  }

  get #isQuiet(): boolean {
    return this.#predecessor !== undefined && this.#waiting.length === 0;
  }

  // --- what the user wants of it -------------------------------------------------------------------------

  /** Asks to be introduced, or joins the introduction under way; resolves to the link. */
  connect(isVerbose: boolean): Promise<Link> {
    this.#isVerbose = isVerbose;
    const name = printable(this.name);
    if (this.distrust !== undefined) throw new UserError(`${name} is not trusted: ${this.distrust}`);
    if (this.link) throw new UserError(`already linked with ${name}`);
    const isNew = this.isIdle;
    if (isNew && !this.#isPresent) throw new UserError(`${name} is not in the room now`);
    const introduction = isNew ? this.#introduce() : undefined;
    if (isNew && !introduction) throw new UserError("not registered with the introducer; `join` first");
    const { promise, resolve, reject } = Promise.withResolvers<Link>();
    this.#waiting.push({ resolve, reject });
    if (introduction) this.#try(introduction, () => introduction.ask(true));
    return promise;
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(text: string): Promise<number> {
    const link = this.#linkFor("say");
    const quoted = `"${printable([...text].length > 40 ? `${[...text].slice(0, 40).join("")}…` : text)}"`;
    if (text.length > maxTextLength || !text.isWellFormed())
      throw new UserError(
        `not sent: a text has at most ${maxTextLength} characters of valid Unicode: ${quoted}`,
      );
    try {
      const rttMs = await link.say(text);
      this.#emit({ event: "sent", rttMs });
      return rttMs;
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      throw new UserError(`not confirmed by ${printable(this.name)}: ${quoted}: ${error.message}`);
    }
  }

  /** Resolves to the link's round trip. */
  async ping(): Promise<number> {
    try {
      const rttMs = await this.#linkFor("ping").ping();
      this.#emit({ event: "pong", rttMs });
      return rttMs;
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      throw new UserError(`no answer from ${printable(this.name)}: ${error.message}`);
    }
  }

  /** Ends the link, or cancels what is under way towards one. Resolves once it has ended. */
  async disconnect(): Promise<void> {
    const link = this.#life.is === "apart" ? this.#linkFor("disconnect") : this.link;
    // Beside a link, another way for it is: that would make a new one.
    this.#giveUp("cancel", "cancelled", "disconnect");
    await link?.close("disconnected");
  }

  /** Ends whatever there is, for good. */
  async quit(): Promise<void> {
    const { link } = this;
    this.#giveUp("cancel", "cancelled", "we are leaving");
    await link?.close("quit");
  }

  /** Ends what is under way towards a link. `cancel`: the introducer tells the peer. */
  #giveUp(how: "cancel" | "abort", reason: FailureReason, detail: string): void {
    const introduction = this.#introduction;
    const agreements = this.#agreements;
    // The peer's leaving does not end what it brings for a link.
    if (how === "cancel" || !this.link) for (const agreement of agreements) agreement.end();
    if (introduction) return introduction[how](reason, detail);
    if (agreements.length === 0 || this.link) return;
    if (how === "cancel") for (const { token } of agreements) this.#decline(token);
    this.#failed(reason, detail);
  }

  #linkFor(command: string): Link {
    if (this.link) return this.link;
    const next = command === "disconnect" ? "" : `; \`connect ${printable(this.name)}\` first`;
    throw new UserError(`not linked with ${printable(this.name)}${next}`);
  }

  // --- channels ------------------------------------------------------------------------------------------

  /** The controlling side speaks first, and says which link the channel is for. */
  #nominated(channel: Channel, nominated: Nominated): void {
    if (this.#surroundings.hasQuit) return channel.destroy();
    this.#tokens.set(channel, nominated.token);
    if (nominated.role === "controlled") return this.#agree(channel, nominated);
    if (this.link) return this.link.attach(channel);
    const predecessor = this.#isQuiet ? this.#predecessor : undefined;
    this.#predecessor = undefined;
    if (predecessor?.isReturning) predecessor.attach(channel);
    else this.#propose(channel, nominated);
  }

  /** Begins, in one flight with the nomination, what is a link once the peer has proved itself. */
  #propose(channel: Channel, nominated: Nominated): void {
    const { token } = nominated;
    const before = this.#proposed;
    before?.attach(channel);
    const link = before ?? new Link(channel, this.#linkOptions("controlling", true));
    const agreement: Agreement = { token, proposal: { channel, link }, end: () => this.#withdraw() };
    this.#become({ agreements: [...this.#agreements, agreement] });
    if (channel.isProved) this.#proved(channel, nominated);
    else channel.onProved = () => this.#proved(channel, nominated);
  }

  get #proposed(): Link | undefined {
    return this.#agreements.find(({ proposal }) => proposal)?.proposal?.link;
  }

  /** By whichever channel came first. */
  #proved(channel: Channel, nominated: Nominated): void {
    const link = this.#proposed;
    this.#become({ agreements: this.#agreements.filter(({ proposal }) => !proposal) });
    if (link) this.#linked(link, channel, nominated);
  }

  /** What we have proposed comes to nothing; its channels are closed. */
  #withdraw(): Agreement[] {
    const link = this.#proposed;
    const [ours, theirs] = [true, false].map((is) =>
      this.#agreements.filter(({ proposal }) => (proposal !== undefined) === is),
    );
    this.#become({ agreements: theirs! });
    link?.abandon("disconnected", "");
    return ours!;
  }

  /** All channels ended on which the peer could have proved itself. */
  #unproved(detail: string): void {
    const proposals = this.#withdraw();
    const isRejected = proposals.some(({ proposal }) => proposal?.channel.isRejected);
    const reason = isRejected ? "authentication-failed" : "handshake-cut";
    for (const { token } of proposals) this.#tell({ type: "failed", peer: this.id, token, reason });
    if (proposals.length > 0 && this.isIdle) this.#failed(reason, detail);
  }

  /** Until the peer has spoken on it, or it is closed, the channel is part of our state: it may become a link. */
  #agree(channel: Channel, nominated: Nominated): void {
    const { token } = nominated;
    const over = (): boolean => {
      clearTimeout(forgotten);
      const isOurs = this.#agreements.includes(agreement);
      this.#become({ agreements: this.#agreements.filter((one) => one !== agreement) });
      return isOurs;
    };
    const unoffered = (detail: string): void => {
      if (over()) this.#unoffered(detail);
    };
    const forgotten = setTimeout(() => {
      channel.destroy();
      unoffered("the peer did not say which link it is for");
    }, offerTimeoutMs);
    const agreement: Agreement = { token, end: () => (channel.destroy(), void over()) };
    const theirs = this.#agreements.filter(({ proposal }) => !proposal);
    if (theirs.length >= maxAgreements) theirs[0]!.end();
    this.#become({ agreements: [...this.#agreements, agreement] });
    channel.onClose = unoffered;
    readOffer(channel, (offer) => over() && this.#offered(channel, offer, nominated), unoffered);
  }

  #offered(channel: Channel, offer: Offer<Channel>, nominated: Nominated): void {
    const held = this.link ?? this.#proposed;
    switch (judgeOffer(offer, held?.session, this.#peer.fingerprint)) {
      case "resume":
        this.#proved(channel, nominated);
        return held!.accept(offer);
      case "refuse":
        refuseOffer(
          offer,
          this.#pastSessions.includes(offer.hello.sessionId) ? resumedStatus.over : resumedStatus.unknown,
        );
        return this.#mistaken(nominated);
      case "begin":
        return this.#begin(channel, offer, nominated);
    }
  }

  #begin(channel: Channel, offer: Offer<Channel>, nominated: Nominated): void {
    // What is held is over at the peer: that is told first.
    this.#withdraw();
    this.link?.abandon("replaced", "");
    const link = new Link(
      channel,
      this.#linkOptions("controlled", this.#waiting.length > 0),
      offer.hello.sessionId,
    );
    this.#linked(link, channel, nominated);
    // Only now: streams may come with it.
    link.accept(offer);
  }

  /** It has learnt that we are another program than it was linked with; from now on it can be linked with us. */
  #mistaken({ token }: Nominated): void {
    this.#decline(token);
    const isWanted = this.#waiting.length > 0 && this.isIdle;
    if (isWanted && ++this.#refusals > maxRefusals)
      return this.#unoffered("the peer goes on with a link that is not known here");
    if (isWanted) this.#introduce()?.ask(true);
  }

  #linkOptions(role: Role, isAsked: boolean): LinkOptions {
    const owner: LinkOwner = {
      said: (text) => this.#emit({ event: "said", text }),
      stream: (stream, purpose) => this.#surroundings.stream(this, stream, purpose),
      threw: (error) => this.#surroundings.threw(this, error),
      broken: (reason) => (this.link ? this.#broken(reason) : this.#unproved(reason)),
      looksDead: () => this.#seeker.want("soon", this.#isFirst),
      moved: (channel, gapMs) => this.#moved(channel, gapMs),
      ended: (reason, detail) => (this.link ? this.#unlinked(reason, detail) : this.#unproved(detail)),
    };
    const { keepMs } = this.#surroundings;
    return { role, fingerprint: this.#peer.fingerprint, keepMs, isAsked, owner };
  }

  #linked(link: Link, channel: Channel, { token, elapsedMs }: Nominated): void {
    this.#become({ link });
    this.#refusals = 0;
    const { route, local, remote } = channel;
    // First, or what the user does about it could reach the introducer before it.
    this.#tell({ type: "linked", peer: this.id, token, route, local, remote });
    this.#emit({ event: "linked", route, local, remote, elapsedMs });
    for (const { resolve } of this.#waiting.splice(0)) resolve(link);
    this.#surroundings.changed(this);
    this.#seekDirect();
  }

  #moved(channel: LinkCarrier, gapMs: number): void {
    const { route, local, remote } = channel;
    this.#seeker.rest();
    this.#emit({ event: "moved", route, local, remote, gapMs });
    const token = this.#tokens.get(channel);
    if (token !== undefined) this.#tell({ type: "linked", peer: this.id, token, route, local, remote });
    this.#seekDirect();
  }

  #broken(reason: string): void {
    this.#emit({ event: "broken", reason });
    this.#surroundings.returning(this);
    this.#seeker.want("soon", this.#isFirst);
  }

  #unlinked(reason: UnlinkReason, detail: string): void {
    if (this.link && this.#pastSessions.push(this.link.session.id) > maxPastSessions)
      this.#pastSessions.shift();
    this.#become({ link: undefined });
    this.#lastEndedAt = performance.now();
    this.#seeker.rest();
    // First, or what the user does about it could reach the introducer before it.
    this.#tell({ type: "unlinked", peer: this.id, reason });
    this.#emit({ event: "unlinked", reason, detail });
    this.#surroundings.changed(this);
  }

  // --- another channel -----------------------------------------------------------------------------------

  /** Of the two, the side that asks at once; the other one asks when nothing has come of it. */
  get #isFirst(): boolean {
    return this.#surroundings.instance < this.#peer.instance;
  }

  #seekDirect(): void {
    if (this.link?.route === "relay" && this.#isFirst) this.#seeker.want("direct", true);
  }

  /** One of us is at another address now: what went by the old one hardly lives. */
  #suspect(): void {
    if (!this.link || this.link.route === "relay") return;
    this.link.suspect();
    this.#seeker.want("soon", this.#isFirst);
  }

  /** Something has changed that may make a way. */
  #seekAnew(): void {
    if (this.link && (this.link.isReturning || this.link.route === "relay")) {
      this.#seeker.hurry(this.#isFirst);
    }
  }

  #seek(): void {
    const link = this.link;
    if (!link?.isOpen || this.#introduction) return;
    if (!this.#isPresent) {
      if (link.isReturning) this.#surroundings.returning(this);
      return this.#seeker.again();
    }
    const isInNeed = link.isReturning || link.looksDead;
    if (isInNeed) return this.#askFor(true);
    if (link.route !== "relay" || this.#seeker.wanted === "soon") {
      this.#seeker.rest(); // it lives after all
      return this.#seekDirect();
    }
    void this.#surroundings.measureAnew().then(() => {
      const isStillRelayed = this.link === link && link.isOpen && link.route === "relay" && !link.isReturning;
      if (isStillRelayed && !this.#introduction && this.#isPresent) this.#askFor(false);
    });
  }

  #introduced(failure: { reason: FailureReason; detail: string } | undefined): void {
    const isQuiet = this.#isQuiet;
    if (failure) this.#predecessor = undefined;
    this.#become({ introduction: undefined });
    if (this.link || !failure || isQuiet) return this.#seeker.again();
    if (this.#agreements.length === 0) this.#failed(failure.reason, failure.detail);
  }

  /** A nominated channel came to nothing: the end, unless there is a link, or may be one by another channel. */
  #unoffered(detail: string): void {
    if (this.isIdle) this.#failed("timed-out", detail);
  }

  #failed(reason: FailureReason, detail: string): void {
    this.#become({ failure: reason });
    // Whoever is told may ask anew, and waits for another answer than those before.
    const waiting = this.#waiting.splice(0);
    this.#emit({ event: "failed", reason, detail });
    const error = new ToldError(
      `no link with ${printable(this.name)}: ${failureReasons[reason]} (${reason})`,
    );
    for (const { reject } of waiting) reject(error);
    this.#surroundings.changed(this);
  }

  #tell(message: Parameters<Ground["send"]>[0]): void {
    if (this.#isPresent) this.#surroundings.ground()?.send(message);
  }

  #emit(event: EventOf<PeerEvent>): void {
    const who = { peer: this.#isPresent ? this.id : null, name: this.name };
    this.#surroundings.emit({ ...event, ...who } as PeerEvent);
  }
}

function linkRow(link: Link): Partial<PeerRow> {
  const { route, local, remote, openedAt, session } = link;
  const { bytesIn, bytesOut, carriersSoFar, roundTripMs } = session;
  const measured = roundTripMs === undefined ? {} : { rttMs: roundTripMs };
  const ageMs = Date.now() - openedAt;
  return { route, local, remote, ageMs, bytesIn, bytesOut, carriers: carriersSoFar, ...measured };
}

const inText = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** What helps with a failure that the other side or the introducer told us of. */
function failureDetail(reason: FailureReason, peer: Peer): string {
  if (reason !== "both-mappings-random") return "the peer's side gave up";
  return `the peer's mapping is ${peer.mapping}; it would help if one of you forwarded a port, used IPv6, or another network such as a phone's`;
}
