/**
 * One peer: what the introducer says of it, and what the user wants of it. Wires its rooms: its state is in life.ts, who
 * wants a link in wanted.ts, the introduction in introducing.ts, what comes of it in linking.ts, the search for another
 * channel in seeking.ts, and what is said in talk.ts. It knows no prompt and no other peer. For native/participant/ and
 * participant.ts.
 */
import { type FailureReason, type Peer, type PeerChange, printable, UserError } from "../../protocol.ts";
import type { Unasked } from "../punch/allowance.ts";
import type { Encounter } from "../punch/encounter.ts";
import type { Link, Purpose } from "../session/link.ts";
import type { Stream } from "../session/stream.ts";
import { Introducing } from "./introducing.ts";
import { PeerLife } from "./life.ts";
import { Linking } from "./linking.ts";
import { Listed, type ListedOwner } from "./listed.ts";
import { type PeerRow, peerRow, type PeerState } from "./peer-events.ts";
import { Seeking } from "./seeking.ts";
import { nobody, notRegistered } from "./refused.ts";
import { Talk } from "./talk.ts";
import { Wanted, type Wish } from "./wanted.ts";
import type { PastSessions } from "./past-sessions.ts";
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
  /** A link has no channel, or one that looks dead. Called again while its peer is not in the room. */
  silent(peer: RemotePeer): void;
  /** There is a link now, or no longer, or an attempt has failed. */
  changed(peer: RemotePeer): void;
  readonly wishes: Wishes;
  readonly past: PastSessions;
  /** Admits an introduction that we did not ask for. Undefined if it is one too many. */
  admit(peer: RemotePeer): Unasked | undefined;
}

export class RemotePeer {
  /** Why its proof is not believed. */
  readonly distrust: string | undefined;
  /** Gets the introducer's messages about introductions. */
  readonly introducing: Introducing;
  readonly talk: Talk;
  readonly #owner: PeerOwner;
  readonly #listed: Listed;
  readonly #life = new PeerLife();
  readonly #wanted = new Wanted();
  readonly #seeking: Seeking;
  readonly #linking: Linking;
  /** The latest introduction that we have asked for. */
  #asked: Encounter | undefined;

  constructor(peer: Peer, owner: PeerOwner, distrust?: string) {
    this.distrust = distrust;
    this.#owner = owner;
    const listed = (this.#listed = new Listed(peer, owner));
    this.talk = new Talk(listed, this.#life);
    this.introducing = new Introducing(listed, this.#life, this.#wanted, {
      isDistrusted: distrust !== undefined,
      isVerbose: owner.isVerbose,
      isWished: () => owner.wishes.has(this.name),
      takeWish: () => owner.wishes.take(this.name),
      admit: () => owner.admit(this),
      seen: (one) => this.seen(one),
      nominated: (channel, nominated) => this.#linking.nominated(channel, nominated),
      ended: (failure) => this.#linking.introduced(failure, this.#life.introduction !== this.#asked),
    });
    this.#seeking = new Seeking(listed, this.#life, {
      instance: owner.instance,
      measureAnew: () => owner.measureAnew(),
      away: () => owner.silent(this),
      ask: (mayRelay) => this.introducing.beginAndAsk(mayRelay),
    });
    this.#linking = new Linking(listed, this.#life, this.#wanted, this.#seeking, {
      get keepMs() {
        return owner.keepMs;
      },
      past: owner.past,
      stream: (stream, purpose) => owner.stream(this, stream, purpose),
      threw: (error) => owner.threw(this, error),
      silent: () => owner.silent(this),
      changed: () => owner.changed(this),
      askAnew: () => {
        const introduction = this.introducing.begin();
        this.#asked = introduction ?? this.#asked;
        this.introducing.ask(introduction, true);
      },
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
  networkChanged(hasMoved: boolean): void {
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
    this.#wanted.askAfter(predecessor);
    this.introducing.beginAndAsk(true);
  }

  // --- what the user wants of it -------------------------------------------------------------------------

  /**
   * Asks to be introduced, or joins the introduction under way; resolves to the link. If nobody waits for it any more, what we
   * have asked for is cancelled.
   */
  connect(wish: Wish = {}): Promise<Link> {
    const introduction = this.#introductionFor(printable(this.name));
    this.#owner.wishes.take(this.name);
    this.#asked = introduction ?? this.#asked;
    const link = this.#wanted.wait(wish, () => {
      const isTheirs = this.#life.introduction && this.#life.introduction !== this.#asked;
      if (!this.link && !isTheirs) this.#giveUp("cancel", "cancelled", "nobody waits for it any more");
    });
    this.introducing.ask(introduction, true);
    return link;
  }

  /** Begins a new introduction; undefined if something is under way. */
  #introductionFor(name: string): Encounter | undefined {
    if (this.distrust !== undefined)
      throw new UserError(`${name} is not trusted: ${this.distrust}`, { code: "untrusted-peer" });
    if (this.link) throw new UserError(`already linked with ${name}`);
    if (!this.isIdle) return undefined;
    if (!this.isPresent) throw nobody(`${name} is not in the room now`);
    const introduction = this.introducing.begin();
    if (!introduction) throw notRegistered();
    return introduction;
  }

  /** Ends the link, or cancels what is under way towards one. Resolves once it has ended. */
  async disconnect(): Promise<void> {
    const link = this.isIdle ? this.talk.linkFor("disconnect").link : this.link;
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
    this.#linking.failed(reason, detail);
  }
}
