/**
 * Who may come into a room: whether there is place in it for one more of a source, and whether a name is free there. Pure
 * but for what names look like, which is remembered. For introducer.ts alone.
 */
import { nameSkeleton, numberedName, type Peer, Refusal } from "../../protocol.ts";
import { fairShare, hasShare, isOwnHost, siteShares } from "../shares/budget.ts";
import { minRoomShare, type Limits } from "./limits.ts";
import type { KeptNames } from "./rooms.ts";
import { type Member, type MessageOf, RegisterAgain } from "./session.ts";

/**
 * Numbers that are tried for a taken name, one after the other; then random ones, for somebody may have taken
 * thousands.
 */
const countedNames = 16;
const mostNameNumber = 1_000_000;

/** Who wants to be called so. */
type Named = Pick<MessageOf<"register">, "name" | "room" | "fingerprint">;

/** What the names of those in a room look like: asked at each registration there, and long to find out for some. */
const looks = new WeakMap<Peer, string>();
function looksOf(peer: Peer): string {
  const known = looks.get(peer) ?? nameSkeleton(peer.name);
  looks.set(peer, known);
  return known;
}

function participants(number: number): string {
  return `${number} participant${number === 1 ? "" : "s"}`;
}

/** Throws a {@link Refusal} unless there is place for one more of that source. */
export function checkPlace(source: string, others: ReadonlySet<Member>, limits: Limits): void {
  const { roomSize, roomShare, ownHostShares } = limits;
  if (others.size >= roomSize)
    throw new Refusal("limit", `the room is full: it holds ${participants(roomSize)}; wait until one leaves`);
  const fair = Math.max(minRoomShare, fairShare(roomSize, others.size));
  const share = Math.min(roomShare, fair) * (isOwnHost(source) ? ownHostShares : 1);
  if (others.size < share || !hasShare(source, others, share)) return;
  const enough = `${participants(share)} of one address (${siteShares} times that of an IPv6 /48)`;
  throw new Refusal("limit", `${enough} in a room are enough: take another room`);
}

/** Who has that name, or one that looks like it. */
export function holderOf(name: string, others: Iterable<Member>): Member | undefined {
  const looks = nameSkeleton(name);
  return [...others].find(({ peer }) => looksOf(peer) === looks);
}

/** A name is one participant's at a time and, but in a secret room, its certificate's for a while after. */
export function checkName(
  { name, room, fingerprint }: Named,
  others: Iterable<Member>,
  kept: KeptNames,
): void {
  const taken = new Set([...others].map(({ peer }) => looksOf(peer)));
  const isFree = (one: string) => kept.mayTake(room, one, fingerprint) && !taken.has(nameSkeleton(one));
  if (isFree(name)) return;
  let number = 2;
  while (!isFree(numberedName(name, number)))
    number = number < countedNames ? number + 1 : Math.floor(Math.random() * mostNameNumber);
  const free = numberedName(name, number);
  throw new RegisterAgain("name-taken", `the name ${name} is taken in this room, ${free} is free`, {
    name: free,
  });
}
