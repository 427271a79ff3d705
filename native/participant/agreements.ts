/**
 * Nominated channels, until both sides agree for which link they are. The controlling side says that first. On a
 * channel that we nominated the peer must prove itself. On a channel that the peer nominated it must say which link it
 * means. Owns the past links that a peer may still mean. For native/participant/peer.ts.
 */
import { type FailureReason, type Role, type UnlinkReason } from "../../protocol.ts";
import type { Nominated } from "../punch/encounter.ts";
import type { Channel } from "../secure/channel.ts";
import { judgeOffer, type Offer, readOffer, refuseOffer } from "../session/carrier.ts";
import { resumedStatus } from "../session/frame.ts";
import type { Link, LinkCarrier } from "../session/link.ts";
import type { TalkingLink } from "../uses/lines.ts";
import type { Agreement, PeerLife } from "./life.ts";
import type { Listed } from "./listed.ts";
import type { PastSessions } from "./past-sessions.ts";
import type { Wanted } from "./wanted.ts";

/** How often we ask again if the peer has taken us for an earlier program of ours. */
const maxRefusals = 2;
/** So many channels at once wait for the peer to say for which link they are. An introduction brings two at most. */
const maxAgreements = 4;
/** How long the peer may take to say for which link a channel is. It does so as it nominates the channel. */
const offerTimeoutMs = 5_000;

export interface AgreementsOwner {
  readonly past: PastSessions;
  /** Without an `id` we speak first. */
  newLink(channel: Channel, role: Role, isAsked: boolean, id?: string): TalkingLink;
  linked(talking: TalkingLink, channel: Channel, nominated: Nominated): void;
  /** None came about. */
  failed(reason: FailureReason, detail: string): void;
  /** The peer has learnt that we are another program than it was linked with. */
  askAnew(): void;
}

export class Agreements {
  readonly #listed: Listed;
  readonly #life: PeerLife;
  readonly #wanted: Wanted;
  readonly #owner: AgreementsOwner;
  readonly #tokens = new WeakMap<LinkCarrier, string>();
  /** The link goes on by none of these yet. */
  readonly #untaken = new Set<string>();
  /** Of our wish for a link, by a peer that went on with one it had with an earlier program of ours. */
  #refusals = 0;

  constructor(listed: Listed, life: PeerLife, wanted: Wanted, owner: AgreementsOwner) {
    this.#listed = listed;
    this.#life = life;
    this.#wanted = wanted;
    this.#owner = owner;
  }

  get #all(): readonly Agreement[] {
    return this.#life.agreements;
  }
  get #proposed(): TalkingLink | undefined {
    return this.#all.find(({ proposal }) => proposal)?.proposal?.talking;
  }

  /** The link goes on by it. Returns the token by which it was nominated. */
  took(channel: LinkCarrier): string | undefined {
    const token = this.#tokens.get(channel);
    if (token !== undefined) this.#untaken.delete(token);
    return token;
  }

  /** That link has ended. The introducer is told of the channels that it did not go on by: they are for no other. */
  linkEnded({ session }: Link, reason: UnlinkReason): void {
    this.#owner.past.add(session.id, this.#listed.peer.fingerprint, reason);
    for (const token of this.#untaken) this.#listed.decline(token);
    this.#untaken.clear();
  }

  /** Another channel for a link that is there. */
  #attach(link: Link, channel: Channel, token: string): void {
    if (link === this.#life.link) this.#untaken.add(token);
    else {
      // Of an earlier program. If that has not said a word yet, this one would take it for a new link.
      link.session.confirm();
      void link.ended.then(() => this.#listed.decline(token));
    }
    link.attach(channel);
  }

  /** The controlling side speaks first, and says which link the channel is for. */
  nominated(channel: Channel, nominated: Nominated): void {
    if (this.#listed.owner.hasQuit) return channel.destroy();
    this.#tokens.set(channel, nominated.token);
    if (nominated.role === "controlled") return this.#agree(channel, nominated);
    if (this.#life.link) return this.#attach(this.#life.link, channel, nominated.token);
    const predecessor = this.#wanted.takePredecessor();
    if (predecessor?.isOpen && predecessor.state !== "alive")
      this.#attach(predecessor, channel, nominated.token);
    else this.#propose(channel, nominated);
  }

  // --- a channel of ours ---------------------------------------------------------------------------------

  /** Begins, in one flight with the nomination, what is a link once the peer has proved itself. */
  #propose(channel: Channel, nominated: Nominated): void {
    const { token } = nominated;
    const before = this.#proposed;
    before?.link.attach(channel);
    const talking = before ?? this.#owner.newLink(channel, "controlling", true);
    const agreement: Agreement = { token, proposal: { channel, talking }, end: () => this.#withdraw() };
    this.#life.become({ agreements: [...this.#all, agreement] });
    if (channel.nomination.isProved) this.#proved(channel, nominated);
    else channel.nomination.onProved = () => this.#proved(channel, nominated);
  }

  /** By whichever channel came first. */
  #proved(channel: Channel, nominated: Nominated): void {
    const talking = this.#proposed;
    this.#life.become({ agreements: this.#all.filter(({ proposal }) => !proposal) });
    if (talking) this.#linked(talking, channel, nominated);
  }

  #linked(talking: TalkingLink, channel: Channel, nominated: Nominated): void {
    this.#refusals = 0;
    this.#owner.linked(talking, channel, nominated);
  }

  /** Closes the channels of what we have proposed. */
  #withdraw(): Agreement[] {
    const link = this.#proposed?.link;
    const [ours, theirs] = [true, false].map((is) =>
      this.#all.filter(({ proposal }) => (proposal !== undefined) === is),
    );
    this.#life.become({ agreements: theirs! });
    link?.abandon("disconnected", "");
    return ours!;
  }

  /** All channels ended on which the peer could have proved itself. */
  unproved(detail: string): void {
    const proposals = this.#withdraw();
    const isRejected = proposals.some(({ proposal }) => proposal?.channel.isRejected);
    const reason = isRejected ? "authentication-failed" : "handshake-cut";
    const { id: peer } = this.#listed.peer;
    for (const { token } of proposals) this.#listed.tell({ type: "failed", peer, token, reason });
    if (proposals.length > 0 && this.#life.isIdle) this.#owner.failed(reason, detail);
  }

  // --- a channel of the peer's ---------------------------------------------------------------------------

  /** Until the peer has spoken on it, or it is closed, the channel is part of our state: it may become a link. */
  #agree(channel: Channel, nominated: Nominated): void {
    const { token } = nominated;
    const over = (): boolean => {
      clearTimeout(forgotten);
      const isOurs = this.#all.includes(agreement);
      this.#life.become({ agreements: this.#all.filter((one) => one !== agreement) });
      return isOurs;
    };
    const unoffered = (detail: string): void => {
      if (!over()) return;
      this.#listed.tell({ type: "failed", peer: this.#listed.peer.id, token, reason: "timed-out" });
      this.#unoffered(detail);
    };
    const forgotten = setTimeout(() => {
      channel.destroy();
      unoffered("the peer did not say which link it is for");
    }, offerTimeoutMs);
    const agreement: Agreement = { token, end: () => (channel.destroy(), void over()) };
    const theirs = this.#all.filter(({ proposal }) => !proposal);
    if (theirs.length >= maxAgreements) theirs[0]!.end();
    this.#life.become({ agreements: [...this.#all, agreement] });
    channel.onClose = unoffered;
    readOffer(channel, (offer) => over() && this.#offered(channel, offer, nominated), unoffered);
  }

  #offered(channel: Channel, offer: Offer<Channel>, nominated: Nominated): void {
    const held = this.#life.link ?? this.#proposed?.link;
    const { sessionId } = offer.hello;
    switch (judgeOffer(offer, held?.session, this.#listed.peer.fingerprint)) {
      case "resume":
        this.#proved(channel, nominated);
        return held!.accept(offer);
      case "refuse":
        refuseOffer(offer, resumedStatus[this.#owner.past.goneOf(sessionId, this.#listed.peer.fingerprint)]);
        return this.#mistaken(nominated);
      case "begin":
        return this.#begin(channel, offer, nominated);
    }
  }

  #begin(channel: Channel, offer: Offer<Channel>, nominated: Nominated): void {
    // What is held is over at the peer: that is told first.
    this.#withdraw();
    this.#life.link?.abandon("replaced", "");
    const { isWaitedFor } = this.#wanted;
    const talking = this.#owner.newLink(channel, "controlled", isWaitedFor, offer.hello.sessionId);
    this.#linked(talking, channel, nominated);
    // Only now: streams may come with it.
    talking.link.accept(offer);
  }

  /** It has learnt that we are another program than it was linked with; from now on it can be linked with us. */
  #mistaken({ token }: Nominated): void {
    this.#listed.decline(token);
    const isWanted = this.#wanted.isWaitedFor && this.#life.isIdle;
    if (isWanted && ++this.#refusals > maxRefusals)
      return this.#unoffered("the peer goes on with a link that is not known here");
    if (isWanted) this.#owner.askAnew();
  }

  /** A nominated channel has failed. That is the end, unless there is a link, or another channel may become one. */
  #unoffered(detail: string): void {
    if (this.#life.isIdle) this.#owner.failed("timed-out", detail);
  }
}
