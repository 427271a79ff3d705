/**
 * Which peer a word of the user means, and what is told if that is nobody or several. Pure. For
 * native/participant/roster.ts and participant.ts.
 */
import { nameSkeleton, printable, UserError } from "../../protocol.ts";
import type { ParticipantEvent } from "./events.ts";
import type { RemotePeer } from "./peer.ts";

/** How a peer is meant: by its name, or by its id while it is in the room; "" means the only other one. */
export type PeerWord = string | number;
type Peers = Iterable<RemotePeer>;

/** So many names are told at once. */
const maxToldNames = 10;

export function byId(peers: Peers, id: number): RemotePeer | undefined {
  return [...peers].find((peer) => peer.isPresent && peer.id === id);
}

/** The id of the peer of that name, while it is in the room. */
export function idOf(peers: Peers, name: string): number | null {
  return [...peers].find((peer) => peer.isPresent && peer.name === name)?.id ?? null;
}

/**
 * An id means a peer that is in the room: the id of one that has left may be another peer's now. A name means whoever has
 * it, in whatever case if nobody has it as it was written. No word at all means everyone who is here.
 */
export function meant(peers: Peers, word: string): RemotePeer[] {
  const withId = /^\d+$/.test(word) ? byId(peers, Number(word)) : undefined;
  if (withId) return [withId];
  if (word === "") return [...peers].filter(({ isPresent, distrust }) => isPresent && !distrust);
  const named = [...peers].filter(({ name }) => name === word);
  const folded = word.toLowerCase();
  return named.length > 0 ? named : [...peers].filter(({ name }) => name.toLowerCase() === folded);
}

/** Who has an open link, of those with that name. Whoever has the name now comes before one that has left. */
export function linked(peers: Peers, word: string): RemotePeer | undefined {
  const all = meant(peers, word);
  const here = all.filter(({ isPresent, distrust }) => isPresent && !distrust);
  return (here.length > 0 ? here : all).find(({ link }) => link?.isOpen);
}

export function absent(name: string, others: RemotePeer[]): ParticipantEvent {
  const here = others.slice(0, maxToldNames).map((peer) => peer.name);
  const more = others.length - here.length;
  return { event: "absent", name, here, ...(more > 0 && { more }) };
}

/** Throws if a peer that was meant by its name could be confused with another one that is there. */
export function refuseLookAlikes(peers: Peers, word: string, found: RemotePeer): void {
  if (/^\d+$/.test(word) || word === "") return;
  const looks = nameSkeleton(word);
  const isAlike = (peer: RemotePeer) => peer.isPresent && nameSkeleton(peer.name) === looks;
  const alike = [...peers].filter((peer) => peer !== found && isAlike(peer));
  if (alike.length > 0) throw ambiguous(word, [found, ...alike]);
}

export function ambiguous(word: string, named: RemotePeer[]): UserError {
  const code = "ambiguous-peer";
  const present = named.filter(({ isPresent }) => isPresent);
  if (word === "") {
    const names = present.slice(0, maxToldNames).map(({ name }) => printable(name));
    return new UserError(`several are here, so say which one you mean: ${names.sort().join(", ")}`, { code });
  }
  const ids = present.map(({ id }) => id);
  const next = ids.length > 0 ? `use one of the ids ${ids.join(", ")}` : "none of them is in the room";
  return new UserError(`${printable(word)} is ambiguous: ${next}`, { code });
}
