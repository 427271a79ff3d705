/**
 * Who waits for a peer, or for what becomes of its link. Owns what wakes them. For native/participant/roster.ts and
 * participant.ts.
 */
import { printable } from "../../protocol.ts";
import type { Link } from "../session/link.ts";
import type { ParticipantEvent } from "./events.ts";
import { absent, ambiguous, linked, meant, refuseLookAlikes } from "./meant.ts";
import type { RemotePeer } from "./peer.ts";
import { hasQuit, nobody } from "./refused.ts";

/** A wait that lasts longer is announced; after some more it is said who else is there. */
const announceAfterMs = 1_000;
const absentAfterMs = 5_000;

const ourselves = (name: string) =>
  `${printable(name)} is what you are called yourself here: say whom you mean, as others call themselves`;
export interface WaitsOwner {
  emit(event: ParticipantEvent): void;
  /** Whether a peer that is not listed has left, as far as the introducer knows. */
  readonly isListed: boolean;
  readonly hasQuit: boolean;
  /** Ourselves, as the room knows us. */
  readonly self: { readonly name: string };
}

export class Waits {
  readonly #peers: Iterable<RemotePeer>;
  readonly #owner: WaitsOwner;
  /** Resolved and replaced whenever something changes that somebody may wait for. */
  #change = Promise.withResolvers<void>();

  constructor(peers: Iterable<RemotePeer>, owner: WaitsOwner) {
    this.#peers = peers;
    this.#owner = owner;
  }

  /** Resolves once `word` means exactly one peer that is there. Rejects if it means several, or ourselves. */
  async for(word: string, signal?: AbortSignal): Promise<void> {
    const name = word || "someone";
    const waiting = { event: "waiting", for: "peer", text: `waiting for ${name} to join` } as const;
    const announce = setTimeout(() => this.#owner.emit(waiting), announceAfterMs);
    const missing = setTimeout(() => {
      if (word === "" || !this.#owner.isListed) return; // who is alone, and what else is wrong, is told otherwise
      this.#owner.emit(absent(word, meant(this.#peers, "")));
    }, absentAfterMs);
    const only = () => {
      const named = meant(this.#peers, word).filter(({ isPresent }) => isPresent);
      if (named.length > 1) throw ambiguous(word, named);
      const isOurs = word !== "" && word.toLowerCase() === this.#owner.self.name.toLowerCase();
      if (named.length === 0 && isOurs) throw nobody(ourselves(word));
      if (named[0]) refuseLookAlikes(this.#peers, word, named[0]);
      return named[0];
    };
    try {
      await this.until(only, signal);
    } finally {
      clearTimeout(announce);
      clearTimeout(missing);
    }
  }

  /** Resolves once that link is not what the name means any more: it has ended, or another has the name of one that left. */
  async over(word: string, link: Link, signal?: AbortSignal): Promise<void> {
    const isOver = () => {
      const meant = linked(this.#peers, word)?.link;
      const isTaken = [...this.#peers].some(
        (peer) => peer.link === link && !peer.isPresent && meant !== link,
      );
      return !link.isOpen || isTaken || undefined;
    };
    await this.until(isOver, signal);
  }

  /**
   * Resolves to the link with that peer, as soon as there is one that carries something. Rejects if the link has no channel
   * and the peer has left the room: then it is gone.
   */
  live(word: string, signal?: AbortSignal): Promise<Link> {
    return this.until(() => {
      const peer = linked(this.#peers, word);
      if (!peer?.link || peer.link.state !== "returning") return peer?.link;
      if (this.#owner.isListed && !peer.isPresent)
        throw nobody(`${printable(peer.name)} has left the room, and nothing answers there any more`);
      return undefined;
    }, signal);
  }

  /**
   * Looks again whenever something has changed, until `look` finds something. Rejects if we have quit, or the signal
   * aborts.
   */
  async until<T>(look: () => T | undefined, signal: AbortSignal | undefined): Promise<T> {
    const wake = () => this.wake();
    signal?.addEventListener("abort", wake);
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (this.#owner.hasQuit) throw hasQuit();
        const found = look();
        if (found !== undefined) return found;
        await this.#change.promise;
      }
    } finally {
      signal?.removeEventListener("abort", wake);
    }
  }

  /** Lets all who wait look again. */
  wake(): void {
    this.#change.resolve();
    this.#change = Promise.withResolvers();
  }
}
