/**
 * Links, as participants report them, and the list that shows them. It is only their word: a link counts if it was made
 * by a token of ours, or if both sides report it. For introducer.ts.
 */
import { maxReportedLinks } from "../../protocol.ts";
import type { Introductions } from "./introductions.ts";
import type { Members } from "./members.ts";
import type { Relays } from "./relay.ts";
import { relayKey } from "./relayed.ts";
import type { Participant } from "./rooms.ts";
import type { Link, Member, MessageOf, Session } from "./session.ts";

/** What it said when it registered. */
export function keepLinks(member: Member, links: MessageOf<"register">["links"]): void {
  if (links.length === 0) return;
  member.links = new Map(links.map(({ peer, route }) => [peer, { route, id: undefined }]));
}

export function addLink(
  member: Member,
  other: Member,
  { route, peer }: MessageOf<"linked">,
  room: Iterable<Member>,
) {
  const { instance } = other.peer;
  const links = (member.links ??= new Map<string, Link>());
  if (links.size >= maxReportedLinks && !links.has(instance)) forgetAbsent(links, room);
  links.set(instance, { route, id: peer });
}

/** Forgets links with peers that are not here, once there are more of them than a room has members. */
function forgetAbsent(links: Map<string, Link>, room: Iterable<Member>): void {
  const present = new Set([...room].map(({ peer }) => peer.instance));
  for (const instance of links.keys()) if (!present.has(instance)) links.delete(instance);
}

/** Returns whether there was such a link. A peer that is gone is named by the id that it had. */
export function removeLink({ links }: Member, peer: number, other: Member | undefined): boolean {
  const absent = [...(links ?? [])].find(([, { id }]) => id === peer)?.[0];
  const instance = other?.peer.instance ?? absent;
  return instance !== undefined && links?.delete(instance) === true;
}

/** Shows one after the other, and looks up what it needs only once. */
export function lister(
  members: Members,
  introductions: Introductions,
  relays: Relays<Session> | undefined,
): (member: Member) => Participant {
  const relayed = relays?.bytes();
  const rooms = new Map<string, Map<string, number>>();
  const idsIn = (room: string) => {
    const known = rooms.get(room);
    if (known) return known;
    const ids = new Map([...members.in(room)].map(({ peer }) => [peer.instance, peer.id]));
    rooms.set(room, ids);
    return ids;
  };
  const otherOf = (member: Member, instance: string, { id: told }: Link) => {
    const toldOf = told === undefined ? undefined : members.inRoom(member.room, told);
    const id = toldOf?.peer.instance === instance ? told! : idsIn(member.room).get(instance);
    const other = id === undefined ? undefined : members.inRoom(member.room, id);
    return told === undefined && !other?.links?.has(member.peer.instance) ? undefined : other;
  };
  return (member) => {
    const links = [...(member.links ?? [])].flatMap(([instance, link]) => {
      const other = otherOf(member, instance, link);
      if (!other) return [];
      const { route } = link;
      const bytes = route === "relay" ? relayed?.get(relayKey(member, other)) : undefined;
      return [{ id: other.peer.id, route, ...(bytes !== undefined && { relayedBytes: bytes }) }];
    });
    const { peer, room, since, observed } = member;
    const punching = introductions.punching(peer.id);
    return { ...peer, public: observed, since, room, linked: links.map(({ id }) => id), links, punching };
  };
}
