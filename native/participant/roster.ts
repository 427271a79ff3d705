/**
 * Who is here: the peers that the introducer has named, and those that are gone with whom something still lasts. Owns the
 * table of them, finds one by its id or name, and wakes whoever waits for one. What becomes of a peer is its own business
 * (native/participant/peer.ts). For participant.ts.
 */
import {
  nameSkeleton,
  type Peer,
  printable,
  type Route,
  splitEndpoint,
  type ToParticipant,
  UserError,
} from "../../protocol.ts";
import { type Unasked, UnaskedBudget } from "../punch/allowance.ts";
import type { Link } from "../session/link.ts";
import { byTurns } from "../shares/turns.ts";
import type { ParticipantEvent } from "./events.ts";
import { type PeerOwner, RemotePeer } from "./peer.ts";
import type { PeerRow } from "./peer-events.ts";

/** Peers of one room that are kept in mind. */
export const maxPeers = 4096;
/** A wait that lasts longer is announced. */
const announceAfterMs = 1_000;

export interface RosterOwner {
  emit(event: ParticipantEvent): void;
  /** Ourselves, by what we are in the room. */
  readonly self: { readonly instance: string; readonly name: string };
  /** Our id, while we are registered. */
  id(): number | undefined;
  /** Why a peer is not believed to be of the room. */
  distrust(peer: Peer): string | undefined;
  /** Whether who is not listed is gone, as far as the introducer knows. */
  readonly isListed: boolean;
  readonly hasQuit: boolean;
  /** The introducer names more than a room can have. */
  tooMany(): void;
}

export class Roster {
  readonly #owner: RosterOwner;
  readonly #peerOwner: PeerOwner;
  /** By instance and fingerprint: ids change when a participant or the introducer comes back. */
  readonly #peers = new Map<string, RemotePeer>();
  /** For all peers together. */
  readonly #unasked = new UnaskedBudget();
  /** Resolved, and made anew, whenever something changes that somebody may wait for. */
  #change = Promise.withResolvers<void>();

  /** What its peers need of it, it gives them itself. */
  constructor(
    owner: RosterOwner,
    peerOwner: Omit<PeerOwner, "returning" | "changed" | "admit" | "instance" | "hasQuit">,
  ) {
    this.#owner = owner;
    this.#peerOwner = {
      ...peerOwner,
      instance: owner.self.instance,
      get hasQuit() {
        return owner.hasQuit;
      },
      returning: (peer) => this.#endIfRestarted(peer),
      changed: (peer) => this.#changed(peer),
      admit: (peer) => this.#admit(peer),
    };
  }

  [Symbol.iterator](): IterableIterator<RemotePeer> {
    return this.#peers.values();
  }

  /** In the order of the ids: at once, so where there may be thousands {@link listed} is better. */
  get rows(): PeerRow[] {
    return [...this].map(({ row }) => row).sort((a, b) => a.id - b.id);
  }

  /** The rows, made by turns with all else. */
  async listed(): Promise<PeerRow[]> {
    const rows: PeerRow[] = [];
    await byTurns(this, ({ row }) => void rows.push(row));
    return rows.sort((a, b) => a.id - b.id);
  }

  get links(): { peer: string; route: Route }[] {
    return [...this].flatMap(({ instance, link }) => (link ? [{ peer: instance, route: link.route }] : []));
  }

  // --- what the introducer says --------------------------------------------------------------------------

  /** The whole room. Who is not in it is gone, unless something lasts. `hasMoved`: we have another public address. */
  list(peers: readonly Peer[], hasMoved: boolean): void {
    for (const peer of peers) this.remember(peer);
    for (const [key, peer] of this.#peers) if (!peer.isPresent && peer.isIdle) this.#peers.delete(key);
    for (const peer of this) peer.groundChanged(hasMoved);
    this.#owner.emit({ event: "peers", peers: this.rows });
  }

  joined(peer: Peer): void {
    const known = this.remember(peer);
    if (!known) return;
    for (const other of this) this.#endIfRestarted(other);
    const { id, name, private: hosts, public: observed } = peer;
    this.#owner.emit({ event: "joined", peer: id, name, private: hosts, public: observed });
  }

  updated({ id, ...change }: ToParticipant & { type: "updated" }): void {
    const peer = this.byId(id);
    if (!peer) return;
    peer.change(change);
    const { name, public: observed, mapped, mapping, roundTripMs } = peer.row;
    const measured = { ...(mapped && { mapped }), ...(roundTripMs !== undefined && { roundTripMs }) };
    this.#owner.emit({ event: "updated", peer: id, name, public: observed, mapping, ...measured });
  }

  left(id: number): void {
    const peer = this.byId(id);
    if (!peer) return;
    this.#owner.emit({ event: "left", peer: id, name: peer.name });
    peer.left();
    this.#forgetIfGone(peer);
  }

  /**
   * Stores the newest that is known of a peer; undefined when the introducer names too many. Whoever can't prove to be
   * of the room is another one than who can.
   */
  remember(peer: Peer): RemotePeer | undefined {
    // What we have shown ourselves would be believed.
    if (peer.instance === this.#owner.self.instance) return undefined;
    const doubt = this.#owner.distrust(peer);
    const key = JSON.stringify([peer.instance, peer.fingerprint, doubt]);
    let known = this.#peers.get(key);
    if (!known) {
      if (this.#peers.size >= maxPeers) return void this.#owner.tooMany();
      known = new RemotePeer(peer, this.#peerOwner, doubt);
      this.#peers.set(key, known);
    }
    known.seen(peer);
    this.wake();
    return known;
  }

  /** While we are registered, who is not listed is gone; a link with it may last. */
  #forgetIfGone(peer: RemotePeer): void {
    if (!this.#owner.isListed || peer.isPresent || !peer.isIdle) return;
    for (const [key, one] of this.#peers) if (one === peer) this.#peers.delete(key);
  }

  // --- what the peers say --------------------------------------------------------------------------------

  /**
   * A link without a channel whose peer is gone, while another program of the same name and certificate is here: it was
   * started anew, if that one proves to be what it seems, and the new one knows nothing of the link.
   */
  #endIfRestarted(peer: RemotePeer): void {
    if (peer.state !== "returning" || peer.isPresent) return;
    const isSuccessor = (other: RemotePeer) =>
      other !== peer && other.isPresent && other.fingerprint === peer.fingerprint && other.name === peer.name;
    const successors = [...this].filter(isSuccessor);
    if (successors.some(({ link }) => link)) return peer.link?.abandon("peer-restarted", "");
    for (const successor of successors) successor.askAfter(peer.link!);
  }

  #changed(peer: RemotePeer): void {
    this.#forgetIfGone(peer);
    if (peer.link) for (const other of this) this.#endIfRestarted(other);
    this.wake();
  }

  #admit({ instance, row }: RemotePeer): Unasked | undefined {
    if (this.#owner.hasQuit) return undefined;
    return this.#unasked.admit(instance, splitEndpoint(row.public).address);
  }

  // --- who is meant --------------------------------------------------------------------------------------

  byId(id: number): RemotePeer | undefined {
    return [...this].find((peer) => peer.isPresent && peer.id === id);
  }

  /** What a peer that is there is called, by its id, too; any other word is a name. */
  nameOf(word: string): string {
    return (/^\d+$/.test(word) && this.byId(Number(word))?.name) || word;
  }

  /** The one that is meant; throws what the user can do where that is nobody, or several. */
  find(word: string): RemotePeer {
    const named = this.#named(word);
    // Of several, the one that is there is meant.
    const [found, ...others] = named.length > 1 ? named.filter(({ isPresent }) => isPresent) : named;
    if (found && others.length === 0) return found;
    if (named.length > 0) throw ambiguous(word, named);
    if (word === String(this.#owner.id()) || word === this.#owner.self.name)
      throw new UserError("that is yourself; `list` shows the others");
    throw new UserError(`nobody here is called ${printable(word)}; \`list\` shows who is`);
  }

  /** The same, for a new link: one that looks like another one who is there is refused. */
  findUnlike(word: string): RemotePeer {
    if (this.#owner.hasQuit) throw new UserError(quitAlready);
    const found = this.find(word);
    this.#refuseLookAlikes(word, found);
    return found;
  }

  /** The link with whoever has that name or id, while it is open. */
  openLink(word: string): Link | undefined {
    return this.#named(word).find((peer) => peer.link?.isOpen)?.link;
  }

  /** Ids name those who are in the room; who is not may have lost its id to somebody else. */
  #named(word: string): RemotePeer[] {
    const byId = /^\d+$/.test(word) ? this.byId(Number(word)) : undefined;
    return byId ? [byId] : [...this].filter(({ name }) => name === word);
  }

  /** Whoever was meant by a name, if that is not the id, must not be taken for another one who is there. */
  #refuseLookAlikes(word: string, found: RemotePeer): void {
    if (found.name !== word) return;
    const looks = nameSkeleton(word);
    const alike = [...this].filter(
      (peer) => peer !== found && peer.isPresent && nameSkeleton(peer.name) === looks,
    );
    if (alike.length > 0) throw ambiguous(word, [found, ...alike]);
  }

  // --- who waits -----------------------------------------------------------------------------------------

  /** Resolves once `word` names exactly one peer that is there; rejects while it names several. */
  async waitFor(word: string, signal?: AbortSignal): Promise<void> {
    const announce = setTimeout(
      () => this.#owner.emit({ event: "waiting", for: "peer", text: `waiting for ${word} to join` }),
      announceAfterMs,
    );
    const only = () => {
      const named = this.#named(word).filter(({ isPresent }) => isPresent);
      if (named.length > 1) throw ambiguous(word, named);
      if (named[0]) this.#refuseLookAlikes(word, named[0]);
      return named[0];
    };
    try {
      await this.until(only, signal);
    } finally {
      clearTimeout(announce);
    }
  }

  /** Resolves to the link with that peer as soon as there is one; asks for none. */
  whenLinked(word: string, signal?: AbortSignal): Promise<Link> {
    return this.until(() => this.openLink(word), signal);
  }

  /** What is looked for, whenever something has changed; rejects when we have quit, or the signal says so. */
  async until<T>(look: () => T | undefined, signal: AbortSignal | undefined): Promise<T> {
    const wake = () => this.wake();
    signal?.addEventListener("abort", wake);
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (this.#owner.hasQuit) throw new UserError(quitAlready);
        const found = look();
        if (found !== undefined) return found;
        await this.#change.promise;
      }
    } finally {
      signal?.removeEventListener("abort", wake);
    }
  }

  /** Whoever waits looks again. */
  wake(): void {
    this.#change.resolve();
    this.#change = Promise.withResolvers();
  }
}

export const quitAlready = "this participant has quit";

function ambiguous(word: string, named: RemotePeer[]): UserError {
  const ids = named.filter(({ isPresent }) => isPresent).map(({ id }) => id);
  const next = ids.length > 0 ? `use one of the ids ${ids.join(", ")}` : "none of them is in the room";
  return new UserError(`${printable(word)} is ambiguous: ${next}`);
}
