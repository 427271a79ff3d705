/**
 * One peer: what the introducer says of it, what the user wants of it, and what its link tells. Owns those who wait for a
 * link. Its state is in life.ts, the introduction in introducing.ts, nominated channels in agreements.ts, the search for
 * another channel in seeking.ts. It knows no prompt and no other peer. For native/participant/ and participant.ts.
 */
import {
  type FailureReason,
  failureReasons,
  maxTextLength,
  type Peer,
  type PeerChange,
  printable,
  type Role,
  ToldError,
  UserError,
} from "../../protocol.ts";
import type { Unasked } from "../punch/allowance.ts";
import type { Failure, Introduction, Nominated } from "../punch/introduction.ts";
import type { Channel } from "../secure/channel.ts";
import { LinkError } from "../session/carrier.ts";
import type { Link, LinkCarrier, LinkEnd, Purpose } from "../session/link.ts";
import type { Stream } from "../session/stream.ts";
import { type TalkingLink, talkingLink } from "../uses/lines.ts";
import { Agreements } from "./agreements.ts";
import { Introducing } from "./introducing.ts";
import { PeerLife } from "./life.ts";
import { Listed, type ListedOwner } from "./listed.ts";
import { type PeerRow, peerRow, type PeerState } from "./peer-events.ts";
import { Seeking } from "./seeking.ts";
import type { Wishes } from "./wishes.ts";

/** What a peer needs of the participant. */
export interface PeerOwner extends ListedOwner {
  /** Report every attempt of every punch. */
  readonly isVerbose: boolean;
  /** Ours, as others see it. */
  readonly instance: string;
  /** How long a link is kept without a channel. */
  readonly keepMs: number;
  /** A stream that a peer has opened. */
  stream(peer: RemotePeer, stream: Stream, purpose: Purpose): void;
  /** The user of a stream threw an error. */
  threw(peer: RemotePeer, error: unknown): void;
  /** Resolves once our mapping has been measured anew. It may now be one that can be punched. */
  measureAnew(): Promise<void>;
  /** A link has no channel. Called again while its peer is not in the room. */
  returning(peer: RemotePeer): void;
  /** There is a link now, or no longer, or an attempt has failed. */
  changed(peer: RemotePeer): void;
  readonly wishes: Wishes;
  /** Admits an introduction that we did not ask for. Undefined if it is one too many. */
  admit(peer: RemotePeer): Unasked | undefined;
}

export class RemotePeer {
  /** Why its proof is not believed. */
  readonly distrust: string | undefined;
  readonly #owner: PeerOwner;
  readonly #listed: Listed;
  readonly #life = new PeerLife();
  /** Gets the introducer's messages about introductions. */
  readonly introducing: Introducing;
  readonly #agreements: Agreements;
  readonly #seeking: Seeking;
  /** The link of an earlier program that the introduction is about; unless somebody wants a link with this program. */
  #predecessor: Link | undefined;
  /** Whether the attempts of its punches are told: asked for with the last `connect`. */
  #isVerbose = false;
  /** Those who wait for a link. */
  #waiting: { resolve: (link: Link) => void; reject: (error: Error) => void }[] = [];

  constructor(peer: Peer, owner: PeerOwner, distrust?: string) {
    this.distrust = distrust;
    this.#owner = owner;
    this.#listed = new Listed(peer, owner);
    this.introducing = this.#newIntroducing();
    this.#agreements = this.#newAgreements();
    this.#seeking = new Seeking(this.#listed, this.#life, {
      instance: owner.instance,
      measureAnew: () => owner.measureAnew(),
      away: () => owner.returning(this),
      ask: (mayRelay) => this.introducing.beginAndAsk(mayRelay),
    });
  }

  #newIntroducing(): Introducing {
    const peer = this;
    return new Introducing(this.#listed, this.#life, {
      isDistrusted: this.distrust !== undefined,
      get isVerbose() {
        return peer.#owner.isVerbose || peer.#isVerbose;
      },
      get isQuiet() {
        return peer.#isQuiet;
      },
      get isWished() {
        return peer.#owner.wishes.has(peer.name);
      },
      takeWish: () => this.#owner.wishes.take(this.name),
      admit: () => this.#owner.admit(this),
      seen: (listed) => this.seen(listed),
      nominated: (channel, nominated) => this.#agreements.nominated(channel, nominated),
      ended: (failure) => this.#introduced(failure),
    });
  }

  #newAgreements(): Agreements {
    const peer = this;
    return new Agreements(this.#listed, this.#life, {
      get isWaitedFor() {
        return peer.#waiting.length > 0;
      },
      takePredecessor: () => {
        const predecessor = this.#isQuiet ? this.#predecessor : undefined;
        this.#predecessor = undefined;
        return predecessor;
      },
      newLink: (channel, role, isAsked, id) => this.#newLink(channel, role, isAsked, id),
      linked: (talking, channel, nominated) => this.#linked(talking, channel, nominated),
      failed: (reason, detail) => this.#failed(reason, detail),
      askAnew: () => this.introducing.beginAndAsk(true),
    });
  }

  get id(): number {
    return this.#listed.peer.id;
  }
  get name(): string {
    return this.#listed.peer.name;
  }
  get instance(): string {
    return this.#listed.peer.instance;
  }
  get fingerprint(): string {
    return this.#listed.peer.fingerprint;
  }
  /** As the introducer lists it. */
  get listed(): Peer {
    return this.#listed.peer;
  }
  get isPresent(): boolean {
    return this.#listed.isPresent;
  }
  get link(): Link | undefined {
    return this.#life.link;
  }
  /** Whether nothing but the introducer's list needs it. */
  get isIdle(): boolean {
    return this.#life.isIdle;
  }
  get state(): PeerState {
    return this.distrust === undefined ? this.#life.state : "untrusted";
  }
  get row(): PeerRow {
    const { distrust, state } = this;
    const { isPresent: present, lastSeenAt, peer } = this.#listed;
    const { failure, link } = this.#life;
    return peerRow({ peer, state, present, lastSeenAt, distrust, failure }, link);
  }
  /** Whether nobody here wants a link by the introduction under way. */
  get #isQuiet(): boolean {
    return this.#predecessor !== undefined && this.#waiting.length === 0;
  }

  // --- what the introducer says of it --------------------------------------------------------------------

  /** It is in the room, with what is newest of it. */
  seen(peer: Peer): void {
    const news = this.#listed.seen(peer);
    if (news?.hasMoved) this.#seeking.suspect();
    if (news?.isNews) this.#seeking.hurry();
  }

  change(change: PeerChange): void {
    this.#listed.changed(change);
    // Another round trip is no reason to try again.
    if (Object.keys(change).some((field) => field !== "roundTripMs")) this.#seeking.hurry();
  }

  /** We are registered anew, maybe at another address, or our own mapping has changed. */
  groundChanged(hasMoved: boolean): void {
    if (hasMoved) this.#seeking.suspect();
    this.#seeking.hurry();
  }

  /** It left the room. */
  left(): void {
    this.#listed.absent();
    this.#giveUp("abort", "peer-left", "it left the introducer");
  }

  /** We leave the introducer. Links stay, and no new ones are made. */
  leaving(): void {
    if (!this.link) this.#giveUp("cancel", "cancelled", "we left the introducer");
  }

  /** Nobody knows whether it is still there. */
  introducerLost(reason: string): void {
    this.#listed.absent();
    this.#life.introduction?.introducerLost(reason);
  }

  /**
   * Asks this program whether that link, with an earlier program of the same name and certificate, is over. That it is
   * listed proves nothing: somebody may have copied what an earlier run has registered with.
   */
  askAfter(predecessor: Link): void {
    if (this.distrust !== undefined || !this.isIdle) return;
    this.#predecessor = predecessor;
    this.introducing.beginAndAsk(true);
  }

  // --- what the user wants of it -------------------------------------------------------------------------

  /** Asks to be introduced, or joins the introduction under way; resolves to the link. */
  connect(isVerbose: boolean): Promise<Link> {
    this.#isVerbose = isVerbose;
    const introduction = this.#introductionFor(printable(this.name));
    this.#owner.wishes.take(this.name);
    const { promise, resolve, reject } = Promise.withResolvers<Link>();
    this.#waiting.push({ resolve, reject });
    this.introducing.ask(introduction, true);
    return promise;
  }

  /** Begins a new introduction; undefined if something is under way. */
  #introductionFor(name: string): Introduction | undefined {
    if (this.distrust !== undefined) throw new UserError(`${name} is not trusted: ${this.distrust}`);
    if (this.link) throw new UserError(`already linked with ${name}`);
    if (!this.isIdle) return undefined;
    if (!this.isPresent) throw new UserError(`${name} is not in the room now`);
    const introduction = this.introducing.begin();
    if (!introduction) throw new UserError("not registered with the introducer; `join` first");
    return introduction;
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(text: string): Promise<number> {
    const { lines } = this.#talkingFor("say");
    const quoted = `"${printable([...text].length > 40 ? `${[...text].slice(0, 40).join("")}…` : text)}"`;
    if (text.length > maxTextLength || !text.isWellFormed())
      throw new UserError(
        `not sent: a text has at most ${maxTextLength} characters of valid Unicode: ${quoted}`,
      );
    const rttMs = await this.#answer(lines.say(text), `not confirmed by ${printable(this.name)}: ${quoted}`);
    this.#listed.emit({ event: "sent", rttMs });
    return rttMs;
  }

  /** Resolves to the link's round trip. */
  async ping(): Promise<number> {
    const { lines } = this.#talkingFor("ping");
    const rttMs = await this.#answer(lines.ping(), `no answer from ${printable(this.name)}`);
    this.#listed.emit({ event: "pong", rttMs });
    return rttMs;
  }

  async #answer(answer: Promise<number>, otherwise: string): Promise<number> {
    try {
      return await answer;
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      throw new UserError(`${otherwise}: ${error.message}`);
    }
  }

  /** Ends the link, or cancels what is under way towards one. Resolves once it has ended. */
  async disconnect(): Promise<void> {
    const link = this.isIdle ? this.#talkingFor("disconnect").link : this.link;
    // An introduction beside the link would make a new link.
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
    const { agreements, introduction, link } = this.#life;
    // The peer's leaving does not end what it brings for a link.
    if (how === "cancel" || !link) for (const agreement of agreements) agreement.end();
    if (introduction) return introduction[how](reason, detail);
    if (agreements.length === 0 || this.link) return;
    if (how === "cancel") for (const { token } of agreements) this.#listed.decline(token);
    this.#failed(reason, detail);
  }

  #talkingFor(command: string): TalkingLink {
    const { talking } = this.#life;
    if (talking) return talking;
    const next = command === "disconnect" ? "" : `; \`connect ${printable(this.name)}\` first`;
    throw new UserError(`not linked with ${printable(this.name)}${next}`);
  }

  // --- its link ------------------------------------------------------------------------------------------

  /** Until it is {@link #linked}, the link is only proposed. */
  #newLink(channel: Channel, role: Role, isAsked: boolean, id: string | undefined): TalkingLink {
    const { keepMs } = this.#owner;
    const owner = {
      stream: (stream: Stream, purpose: Purpose) => this.#owner.stream(this, stream, purpose),
      threw: (error: unknown) => this.#owner.threw(this, error),
      broken: (reason: string) => (this.link ? this.#broken(reason) : this.#agreements.unproved(reason)),
      looksDead: () => this.#seeking.soon(),
      moved: (other: LinkCarrier, gapMs: number) => this.#moved(other, gapMs),
      ended: (end: LinkEnd) => (this.link ? this.#unlinked(end) : this.#agreements.unproved(end.detail)),
    };
    const onText = (text: string) => this.#listed.emit({ event: "said", text });
    const { fingerprint } = this;
    return talkingLink(channel, { role, fingerprint, keepMs, isAsked, owner, onText }, id);
  }

  #linked(talking: TalkingLink, channel: Channel, { token, elapsedMs }: Nominated): void {
    this.#life.become({ talking });
    const { route, local, remote } = channel;
    // First, or what the user does about it could reach the introducer before it.
    this.#listed.tell({ type: "linked", peer: this.id, token, route, local, remote });
    this.#listed.emit({ event: "linked", route, local, remote, elapsedMs });
    for (const { resolve } of this.#waiting.splice(0)) resolve(talking.link);
    this.#owner.changed(this);
    this.#seeking.direct();
  }

  #moved(channel: LinkCarrier, gapMs: number): void {
    const { route, local, remote } = channel;
    this.#seeking.rest();
    this.#listed.emit({ event: "moved", route, local, remote, gapMs });
    const token = this.#agreements.tokenOf(channel);
    if (token !== undefined)
      this.#listed.tell({ type: "linked", peer: this.id, token, route, local, remote });
    this.#seeking.direct();
  }

  #broken(reason: string): void {
    this.#listed.emit({ event: "broken", reason });
    this.#owner.returning(this);
    this.#seeking.soon();
  }

  #unlinked({ reason, detail }: LinkEnd): void {
    if (this.link) this.#agreements.linkEnded(this.link);
    this.#life.become({ talking: undefined });
    this.introducing.lastEndedAt = performance.now();
    this.#seeking.rest();
    // First, or what the user does about it could reach the introducer before it.
    this.#listed.tell({ type: "unlinked", peer: this.id, reason });
    this.#listed.emit({ event: "unlinked", reason, detail });
    this.#owner.changed(this);
  }

  // --- none came about -----------------------------------------------------------------------------------

  #introduced(failure: Failure | undefined): void {
    const isQuiet = this.#isQuiet;
    if (failure) this.#predecessor = undefined;
    this.#life.become({ introduction: undefined });
    if (this.link || !failure || isQuiet) return this.#seeking.again();
    if (this.#life.agreements.length === 0) this.#failed(failure.reason, failure.detail);
  }

  #failed(reason: FailureReason, detail: string): void {
    this.#life.become({ failure: reason });
    // Taken out first: a callback may ask again, and must not get this answer.
    const waiting = this.#waiting.splice(0);
    this.#listed.emit({ event: "failed", reason, detail });
    const error = new ToldError(
      `no link with ${printable(this.name)}: ${failureReasons[reason]} (${reason})`,
    );
    for (const { reject } of waiting) reject(error);
    this.#owner.changed(this);
  }
}
