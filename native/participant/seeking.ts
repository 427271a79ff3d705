/**
 * Another channel for a link that has none, or fears for it, or is relayed: whether one is sought, and by whom first.
 * Owns the {@link Seeker}; asks for introductions, and takes no channel itself. For native/participant/peer.ts.
 */
import type { PeerLife } from "./life.ts";
import type { Listed } from "./listed.ts";
import { Seeker } from "./seeker.ts";

export interface SeekingOwner {
  /** Ours, as others see it. */
  readonly instance: string;
  /** Resolves once our mapping has been measured anew: it may have become one that can be punched. */
  measureAnew(): Promise<void>;
  /** The link has no channel, and the peer is not in the room. */
  away(): void;
  /** Has us introduced anew. */
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

  /** Of the two, the side that asks at once; the other one asks when nothing has come of it. */
  get #isFirst(): boolean {
    return this.#owner.instance < this.#listed.peer.instance;
  }

  /** There is a new way for the link: it is kept, unless it is relayed. */
  found(): void {
    this.#seeker.rest();
    this.direct();
  }

  /** The link is over. */
  rest(): void {
    this.#seeker.rest();
  }

  /** It came to nothing. */
  again(): void {
    this.#seeker.again();
  }

  /** Without a channel, or with one that may be dead. */
  soon(): void {
    this.#seeker.want("soon", this.#isFirst);
  }

  /** Where the link is relayed, a direct channel. */
  direct(): void {
    if (this.#life.link?.route === "relay" && this.#isFirst) this.#seeker.want("direct", true);
  }

  /** One of us is at another address now: what went by the old one hardly lives. */
  suspect(): void {
    const { link } = this.#life;
    if (!link || link.route === "relay") return;
    link.suspect();
    this.soon();
  }

  /** Something has changed that may make a way. */
  hurry(): void {
    const { link } = this.#life;
    if (link && (link.state === "returning" || link.route === "relay")) this.#seeker.hurry(this.#isFirst);
  }

  #seek(): void {
    const { link, introduction } = this.#life;
    if (!link?.isOpen || introduction) return;
    if (!this.#listed.isPresent) {
      if (link.state === "returning") this.#owner.away();
      return this.#seeker.again();
    }
    if (link.state !== "alive") return this.#owner.ask(true);
    if (link.route !== "relay" || this.#seeker.wanted === "soon") return this.found(); // it lives after all
    void this.#owner.measureAnew().then(() => {
      const isSame = this.#life.link === link && link.route === "relay";
      const isRelayed = isSame && link.isOpen && link.state !== "returning";
      if (isRelayed && !this.#life.introduction && this.#listed.isPresent) this.#owner.ask(false);
    });
  }
}
