/**
 * A peer as the introducer lists it, and whether it does now; what is told of it here, and what is said of it to the
 * introducer. It knows nothing of links. For native/participant/.
 */
import { changedPeer, isVerified, type Peer, type PeerChange, splitEndpoint } from "../../protocol.ts";
import type { Ground } from "../punch/ground.ts";
import type { EventOf, PeerEvent } from "./peer-events.ts";

/** What there is of the participant for every peer. */
export interface ListedOwner {
  /** Our registration, while there is one. */
  ground(): Ground | undefined;
  emit(event: PeerEvent): void;
  /** Whether nothing may begin any more. */
  readonly hasQuit: boolean;
}

export class Listed {
  readonly owner: ListedOwner;
  #peer: Peer;
  #isPresent = true;
  #lastSeenAt = Date.now();

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
    return this.#lastSeenAt;
  }

  /** It is in the room, with what is newest of it. Says what is new; undefined when it was said before what we know. */
  seen(peer: Peer): { isNews: boolean; hasMoved: boolean } | undefined {
    // A session that has not timed out yet may be listed beside the one that replaced it.
    if (this.#isPresent && peer.id < this.#peer.id) return undefined;
    const isNews = !this.#isPresent || peer.id !== this.#peer.id;
    const hasMoved = !isVerified(peer, splitEndpoint(this.#peer.public).address);
    this.#peer = peer;
    this.#isPresent = true;
    this.#lastSeenAt = Date.now();
    return { isNews, hasMoved };
  }

  changed(change: PeerChange): void {
    this.#peer = changedPeer(this.#peer, change);
    this.#lastSeenAt = Date.now();
  }

  absent(): void {
    if (this.#isPresent) this.#lastSeenAt = Date.now();
    this.#isPresent = false;
  }

  /** To the introducer, as long as it lists the peer. */
  tell(message: Parameters<Ground["send"]>[0]): void {
    if (this.#isPresent) this.owner.ground()?.send(message);
  }

  /** Says no to a round or a relay, whether it lists the peer or not. */
  decline(token: string): void {
    const { id: peer } = this.#peer;
    this.owner.ground()?.send({ type: "failed", peer, token, reason: "refused-by-peer" });
  }

  emit(event: EventOf<PeerEvent>): void {
    const who = { peer: this.#isPresent ? this.#peer.id : null, name: this.#peer.name };
    this.owner.emit({ ...event, ...who } as PeerEvent);
  }
}
