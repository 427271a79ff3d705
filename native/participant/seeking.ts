/**
 * Another channel for a link whose channel is lost, looks dead or is relayed: whether one is sought, and by which side
 * first. Owns the {@link Seeker}. Asks for introductions, and takes no channel itself. For native/participant/peer.ts.
 */
import type { PeerLife } from "./life.ts";
import type { Listed } from "./listed.ts";
import { Seeker } from "./seeker.ts";

export interface SeekingOwner {
  /** Ours, as others see it. */
  readonly instance: string;
  /** Resolves once our mapping has been measured anew. It may now be one that can be punched. */
  measureAnew(): Promise<void>;
  /** The link has no channel, and the peer is not in the room. */
  away(): void;
  /** Asks for a new introduction. */
  ask(mayRelay: boolean): void;
}

export class Seeking {
  readonly #listed: Listed;
  readonly #life: PeerLife;
  readonly #owner: SeekingOwner;
  readonly #seeker: Seeker;

  constructor(listed: Listed, life: PeerLife, owner: SeekingOwner) {
    this.#listed = listed;
    this.#life = life;
    this.#owner = owner;
    this.#seeker = new Seeker(() => this.#seek());
  }

  /** Whether we are the side that asks at once. The other side asks later, if there is still no channel. */
  get #isFirst(): boolean {
    return this.#owner.instance < this.#listed.peer.instance;
  }

  /** The link has a new channel. Seeking ends, unless that is relayed. */
  found(): void {
    this.#seeker.rest();
    this.direct();
  }

  /** The link is over. */
  rest(): void {
    this.#seeker.rest();
  }

  /** The introduction has failed. */
  again(): void {
    this.#seeker.again();
  }

  /** Seeks because there is no channel, or it may be dead. */
  soon(): void {
    this.#seeker.want("soon", this.#isFirst);
  }

  /** Seeks a direct channel, if the link is relayed. */
  direct(): void {
    const isRelayed = this.#life.link?.route === "relay" && this.#listed.mayBeDirect;
    if (isRelayed && this.#isFirst) this.#seeker.want("direct", true);
  }

  /** One of us has another address now: the old channel is probably dead. */
  suspect(): void {
    const { link } = this.#life;
    if (!link || link.route === "relay") return;
    link.suspect();
    this.soon();
  }

  /** Something has changed: there may be a way now. */
  hurry(): void {
    const { link } = this.#life;
    const mayImprove = link?.route === "relay" && this.#listed.mayBeDirect;
    if (link && (link.state === "returning" || mayImprove)) this.#seeker.hurry(this.#isFirst);
  }

  #seek(): void {
    const { link, introduction } = this.#life;
    if (!link?.isOpen || introduction) return;
    if (!this.#listed.isPresent) {
      if (link.state === "returning") this.#owner.away();
      return this.#seeker.again();
    }
    if (link.state !== "alive") return this.#owner.ask(true);
    if (link.route !== "relay" || this.#seeker.wanted === "soon") return this.found(); // the channel lives after all
    void this.#owner.measureAnew().then(() => {
      const isSame = this.#life.link === link && link.route === "relay";
      const isRelayed = isSame && link.isOpen && link.state !== "returning";
      if (isRelayed && !this.#life.introduction && this.#listed.isPresent) this.#owner.ask(false);
    });
  }
}
