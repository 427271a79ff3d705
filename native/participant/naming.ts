/**
 * The way back to the name that we wanted, if somebody else had it when we came. We ask for it once nobody in the room has
 * it. In the lobby it may still be kept for somebody who has left. Owns a timer. For participant.ts.
 */
import { nameSkeleton, type ToIntroducer } from "../../protocol.ts";
import type { Membership } from "./membership.ts";
import type { RemotePeer } from "./peer.ts";

/** Several may wait for one name: each asks after another pause, and most see in time that somebody has it. */
const maxPauseMs = 500;
/** A name that nobody has and that is refused is kept for somebody else, for 30 s (introducer/limits.ts). */
const keptMs = 31_000;

export interface NamingOwner {
  /** Who is in the room, or was. */
  readonly peers: Iterable<RemotePeer>;
  /** Sends to the introducer. Does nothing while we are not registered. */
  send(message: ToIntroducer): void;
}

export class Naming {
  readonly #membership: Membership;
  readonly #owner: NamingOwner;
  #timer: NodeJS.Timeout | undefined;

  constructor(membership: Membership, owner: NamingOwner) {
    this.#membership = membership;
    this.#owner = owner;
  }

  get #isWaiting(): boolean {
    const { name, wantedName } = this.#membership;
    if (name === wantedName) return false;
    const looks = nameSkeleton(wantedName);
    return ![...this.#owner.peers].some((peer) => peer.isPresent && nameSkeleton(peer.name) === looks);
  }

  /** Who is in the room has changed. */
  look(): void {
    if (!this.#isWaiting) this.stop();
    else if (this.#timer === undefined) this.#askIn(Math.random() * maxPauseMs);
  }

  /** It is somebody else's: of one who was faster and whom we see, or it is kept for one whom we don't see. */
  refused(): void {
    this.stop();
    if (this.#isWaiting) this.#askIn(keptMs + Math.random() * maxPauseMs);
  }

  /** The introducer calls us so. Returns what it has called us before; undefined if we have not asked for that name. */
  renamed(name: string): string | undefined {
    const { name: was, wantedName } = this.#membership;
    if (name !== wantedName || name === was) return undefined;
    this.stop();
    this.#membership.takeBack();
    return was;
  }

  /** The registration is over. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #askIn(ms: number): void {
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      if (this.#isWaiting) this.#owner.send(this.#membership.wish());
    }, ms);
    this.#timer.unref();
  }
}
