/**
 * A peer as the introducer lists it, and whether it lists it now. Emits the peer's events, and sends the introducer what
 * concerns it. Knows nothing of links. For native/participant/.
 */
import {
  changedPeer,
  isHidden,
  isVerified,
  type Peer,
  type PeerChange,
  splitEndpoint,
} from "../../protocol.ts";
import { stamps } from "../shares/clock.ts";
import type { PunchContext } from "../punch/context.ts";
import type { EventOf, PeerEvent } from "./peer-events.ts";

/** What each peer needs of the participant. */
export interface ListedOwner {
  /** Our registration, while there is one. */
  context(): PunchContext | undefined;
  emit(event: PeerEvent): void;
  /** Whether we have quit: nothing may begin any more. */
  readonly hasQuit: boolean;
}

export class Listed {
  readonly owner: ListedOwner;
  #peer: Peer;
  #isPresent = true;
  /** When the introducer last listed it, by performance.now(). */
  #seenMs = performance.now();

  constructor(peer: Peer, owner: ListedOwner) {
    this.#peer = peer;
    this.owner = owner;
  }

  get peer(): Peer {
    return this.#peer;
  }
  get isPresent(): boolean {
    return this.#isPresent;
  }
  get lastSeenAt(): number {
    return Math.round(stamps.of(this.#seenMs));
  }

  /** The introducer lists it. Returns what has changed; undefined if this is older than what we know. */
  seen(peer: Peer): { isNews: boolean; hasMoved: boolean } | undefined {
    // A session that has not timed out yet may be listed beside the one that replaced it.
    if (this.#isPresent && peer.id < this.#peer.id) return undefined;
    const isNews = !this.#isPresent || peer.id !== this.#peer.id;
    const hasMoved = !isVerified(peer, splitEndpoint(this.#peer.public).address);
    this.#peer = peer;
    this.#isPresent = true;
    this.#seenMs = performance.now();
    return { isNews, hasMoved };
  }

  changed(change: PeerChange): void {
    this.#peer = changedPeer(this.#peer, change);
    this.#seenMs = performance.now();
  }

  /** Whether a direct way may be looked for: none of us hides where it is. */
  get mayBeDirect(): boolean {
    return this.owner.context()?.takes !== "relayed" && !isHidden(this.#peer);
  }

  absent(): void {
    if (this.#isPresent) this.#seenMs = performance.now();
    this.#isPresent = false;
  }

  /** Sends to the introducer, if it lists the peer. */
  tell(message: Parameters<PunchContext["send"]>[0]): void {
    if (this.#isPresent) this.owner.context()?.send(message);
  }

  /** Declines a round or a relay, even if the introducer does not list the peer. */
  decline(token: string): void {
    const { id: peer } = this.#peer;
    this.owner.context()?.send({ type: "failed", peer, token, reason: "refused-by-peer" });
  }

  emit(event: EventOf<PeerEvent>): void {
    const who = { peer: this.#isPresent ? this.#peer.id : null, name: this.#peer.name };
    this.owner.emit({ ...event, ...who } as PeerEvent);
  }
}
