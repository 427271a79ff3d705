/**
 * Who is here: the peers that the introducer lists, and those that have left while a link with them lasts. Owns their
 * table. Which one a word means is in meant.ts, who waits for one in waits.ts, and each peer's life in peer.ts. For
 * participant.ts.
 */
import {
  changedPeer,
  type Peer,
  printable,
  type Route,
  splitEndpoint,
  type ToParticipant,
} from "../../protocol.ts";
import { UnaskedBudget } from "../punch/allowance.ts";
import { byTurns } from "../shares/turns.ts";
import { type PeerOwner, RemotePeer } from "./peer.ts";
import type { PeerRow } from "./peer-events.ts";
import { ambiguous, byId, linked, meant, refuseLookAlikes } from "./meant.ts";
import { PastSessions } from "./past-sessions.ts";
import { hasQuit, nobody } from "./refused.ts";
import { Waits, type WaitsOwner } from "./waits.ts";
import { Wishes } from "./wishes.ts";

/** So many peers of one room are kept. */
export const maxPeers = 4096;

export interface RosterOwner extends WaitsOwner {
  readonly self: { readonly instance: string; readonly name: string };
  /** Our id, while we are registered. */
  id(): number | undefined;
  /** Why a peer does not count as one of the room; undefined if it does. */
  distrust(peer: Peer): string | undefined;
  /** The introducer names more than a room can have. */
  tooMany(): void;
}

export class Roster {
  readonly #owner: RosterOwner;
  readonly #peerOwner: PeerOwner;
  readonly wishes = new Wishes();
  /** By instance and fingerprint: ids change when a participant or the introducer comes back. */
  readonly #peers = new Map<string, RemotePeer>();
  /** The budget of all peers together. */
  readonly #unasked = new UnaskedBudget();
  readonly waits: Waits;

  /** Some of what a peer needs, the roster gives itself. */
  constructor(
    owner: RosterOwner,
    peerOwner: Omit<PeerOwner, "silent" | "changed" | "admit" | "instance" | "wishes" | "past" | "hasQuit">,
  ) {
    this.#owner = owner;
    this.waits = new Waits(this, owner);
    this.#peerOwner = {
      ...peerOwner,
      wishes: this.wishes,
      past: new PastSessions(),
      instance: owner.self.instance,
      get hasQuit() {
        return owner.hasQuit;
      },
      silent: (peer) => this.#endIfRestarted(peer, true),
      changed: (peer) => this.#changed(peer),
      admit: ({ instance, row }) =>
        owner.hasQuit ? undefined : this.#unasked.admit(instance, splitEndpoint(row.public).address),
    };
  }

  [Symbol.iterator](): IterableIterator<RemotePeer> {
    return this.#peers.values();
  }

  /** All rows, in the order of ids. They are made at once: for thousands use {@link listed}. */
  get rows(): PeerRow[] {
    return [...this].map(({ row }) => row).sort((a, b) => a.id - b.id);
  }

  /** All rows. They are made in slices, so that everything else goes on. */
  async listed(): Promise<PeerRow[]> {
    const rows: PeerRow[] = [];
    await byTurns(this, ({ row }) => void rows.push(row));
    return rows.sort((a, b) => a.id - b.id);
  }

  get links(): { peer: string; route: Route }[] {
    return [...this].flatMap(({ instance, link }) => (link ? [{ peer: instance, route: link.route }] : []));
  }

  // --- what the introducer says --------------------------------------------------------------------------

  /**
   * The introducer has listed the whole room. Others are forgotten, unless something lasts. `hasMoved`: our public
   * address is new.
   */
  list(peers: readonly Peer[], hasMoved: boolean): void {
    for (const peer of peers) this.remember(peer);
    for (const [key, peer] of this.#peers) if (!peer.isPresent && peer.isIdle) this.#peers.delete(key);
    for (const peer of this) peer.networkChanged(hasMoved);
    this.#owner.emit({ event: "peers", peers: this.rows });
  }

  joined(peer: Peer): void {
    const known = this.remember(peer);
    if (!known) return;
    for (const other of this) this.#endIfRestarted(other);
    const { id, name, private: hosts, public: observed, mapping, roundTripMs } = peer;
    const measured = { mapping, ...(roundTripMs !== undefined && { roundTripMs }) };
    this.#owner.emit({ event: "joined", peer: id, name, private: hosts, public: observed, ...measured });
  }

  updated({ id, ...change }: ToParticipant & { type: "updated" }): void {
    const peer = byId(this, id);
    if (!peer) return;
    const { name: called = peer.name, proof } = change;
    if (called !== peer.name) this.#owner.emit({ event: "renamed", peer: id, name: called, was: peer.name });
    const listed = changedPeer(peer.listed, change);
    // By another name it must prove, too, that it is one of the room.
    const isProved = called === peer.name && proof === undefined;
    if (!isProved && this.#owner.distrust(listed) !== peer.distrust) {
      peer.left();
      this.#forgetIfGone(peer);
      return void this.remember(listed);
    }
    peer.change(change);
    this.waits.wake();
    const { name, public: observed, mapped, mapping, roundTripMs } = peer.row;
    const measured = { ...(mapped && { mapped }), ...(roundTripMs !== undefined && { roundTripMs }) };
    this.#owner.emit({ event: "updated", peer: id, name, public: observed, mapping, ...measured });
  }

  left(id: number): void {
    const peer = byId(this, id);
    if (!peer) return;
    this.#owner.emit({ event: "left", peer: id, name: peer.name });
    peer.left();
    this.#forgetIfGone(peer);
  }

  /**
   * Stores what is known of a peer. Undefined if the introducer names too many. A peer whose proof is wrong is never
   * the same as one whose proof is right.
   */
  remember(peer: Peer): RemotePeer | undefined {
    // A copy of our own proof would be right.
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
    this.waits.wake();
    return known;
  }

  /** What is believed of peers has changed: those that count now, or no more, are others than before. */
  judgeAnew(): void {
    for (const peer of [...this]) {
      if (!peer.isPresent || this.#owner.distrust(peer.listed) === peer.distrust) continue;
      const { listed } = peer;
      peer.left();
      this.#forgetIfGone(peer);
      this.remember(listed);
    }
  }

  /** The peer has left, although we are registered. A link with it may last. */
  #forgetIfGone(peer: RemotePeer): void {
    if (!this.#owner.isListed || peer.isPresent || !peer.isIdle) return;
    for (const [key, one] of this.#peers) if (one === peer) this.#peers.delete(key);
  }

  // --- what the peers say --------------------------------------------------------------------------------

  /**
   * The peer of a link has left, and another program with the same name and certificate is here. Then the peer was probably
   * started anew. If nothing has come by the link, that may show it. If nothing comes by it, we ask the new program, which
   * must prove who it is, and says that it does not know the link.
   */
  #endIfRestarted(peer: RemotePeer, isSilent = peer.state === "returning"): void {
    const { link } = peer;
    if (!link?.isOpen || peer.isPresent) return;
    const isSuccessor = (other: RemotePeer) =>
      other !== peer && other.isPresent && other.fingerprint === peer.fingerprint && other.name === peer.name;
    const successors = [...this].filter(isSuccessor);
    if (successors.length > 0 && !isSilent) return link.suspect();
    if (successors.some((one) => one.link)) return link.abandon("peer-restarted", "");
    for (const successor of successors) successor.askAfter(link);
  }

  #changed(peer: RemotePeer): void {
    this.#forgetIfGone(peer);
    if (peer.link) for (const other of this) this.#endIfRestarted(other);
    this.waits.wake();
  }

  // --- who is meant --------------------------------------------------------------------------------------

  /** The name of the one that a word means, if it is there. Any other word is a name itself. */
  nameOf(word: string): string {
    const [found, another] = meant(this, word);
    return (another === undefined && found?.name) || word;
  }

  /** The peer that a word means. If it is nobody or several, throws what the user can do. */
  find(word: string): RemotePeer {
    const named = meant(this, word);
    // Of several, the one that is there.
    const [found, ...others] = named.length > 1 ? named.filter(({ isPresent }) => isPresent) : named;
    if (found && others.length === 0) return found;
    if (named.length > 0) throw ambiguous(word, named);
    if (word === "") throw nobody("nobody else is here yet: others need the same room and introducer");
    if (word === String(this.#owner.id()) || word === this.#owner.self.name)
      throw nobody("that is yourself; `list` shows the others");
    throw nobody(`nobody here is called ${printable(word)}; \`list\` shows who is`);
  }

  /** The same for a new link. It refuses a peer whose name looks like that of another peer that is there. */
  findUnlike(word: string): RemotePeer {
    if (this.#owner.hasQuit) throw hasQuit();
    const found = this.find(word);
    refuseLookAlikes(this, word, found);
    return found;
  }

  /** Who has an open link, of those with that name or id. */
  linked(word: string): RemotePeer | undefined {
    return linked(this, word);
  }
}
