/**
 * Who we are in our room: our name, our proofs, and which peers we believe. Owns the name, which may be taken; the
 * room, which may still be being made; and the credentials, which are sealed for both. Knows no introducer and no
 * connection. For participant.ts and native/participant/.
 */
import {
  defaultRoom,
  isNumberedName,
  type Peer,
  protocolVersion,
  publicInstance,
  type ToIntroducer,
  UserError,
} from "../../protocol.ts";
import { Credentials } from "../secure/tls.ts";
import { talkingLink } from "../uses/lines.ts";
import { rehearsalKey, rehearse } from "../punch/rehearsal.ts";
import type { Channel } from "../secure/channel.ts";
import type { Identity } from "../secure/identity.ts";
import { distrust, type Member, prove, type Room, roomOf } from "../secure/room.ts";
import { fingerprintIn, isCalled, type Shown } from "../uses/whom.ts";
import type { KnownPeers } from "../secure/known-peers.ts";
import type { RoomKind } from "./events.ts";

export type Register = ToIntroducer & { type: "register" };

let rehearsed: Promise<void> | undefined;

export class Membership {
  /** A secret that only introducers and we know. Others know {@link instance}. */
  readonly #secretInstance = crypto.getRandomValues(new Uint8Array(8)).toHex();
  readonly instance = publicInstance(this.#secretInstance);
  readonly #identity: Identity;
  readonly wantedName: string;
  /** Another one than we wanted, if that is taken. Peers know us by it, so we come back with it. */
  #name: string;
  /** Being made while we connect. */
  readonly #roomToBe: Room | Promise<Room>;
  #room: Room | undefined;
  /** Sealed for the room and our name in it. With another name there is another key. */
  #credentials: Credentials | undefined;

  /** Which certificates names had before; undefined: a name is whoever says it. */
  readonly #known: KnownPeers | undefined;

  constructor(identity: Identity, name: string, room: string | Room | Promise<Room>, known?: KnownPeers) {
    this.#known = known;
    this.#identity = identity;
    this.wantedName = name;
    this.#name = name;
    this.#roomToBe = typeof room === "string" ? roomOf(room) : room;
  }

  get name(): string {
    return this.#name;
  }

  get fingerprint(): string {
    return this.#identity.fingerprint;
  }

  get roomKind(): RoomKind {
    return this.#room?.words === defaultRoom ? "lobby" : "private";
  }

  /** Whether it is a private room. */
  get isPrivate(): boolean {
    return this.#room?.key !== undefined;
  }

  /** Ourselves, as we prove it to others. */
  get member(): Member {
    return { fingerprint: this.fingerprint, name: this.#name, instance: this.instance };
  }

  /** The key that both ends of a connection must prove to have. Only once the {@link room} is there. */
  get bondKey(): Uint8Array {
    return this.#room!.bondKey;
  }

  get credentials(): Credentials {
    const membership = this;
    const seal = {
      key: this.bondKey,
      get self() {
        return membership.member;
      },
    };
    return (this.#credentials ??= new Credentials(this.#identity, seal));
  }

  /** A punch with ourselves, once in a program: only the first one is slow. The room need not be there yet. */
  rehearse(): void {
    const self = this.member;
    const credentials = new Credentials(this.#identity, { key: rehearsalKey, self });
    rehearsed ??= rehearse(credentials, self, (channel) => rehearseLink(channel, self)).catch(() => {});
  }

  /** Resolves once the room is made of its words. */
  async room(): Promise<void> {
    this.#room = await this.#roomToBe;
    if (this.#known) this.#known.room = this.#room.id;
  }

  /** Takes the name that the introducer offers in place of ours. Returns whether we can use it. */
  rename(name: string): boolean {
    const isBearable = isNumberedName(name, this.wantedName) || isNumberedName(name, this.#name);
    if (isBearable) this.#become(name);
    return isBearable;
  }

  /** What asks for the name that we wanted. Only once the {@link room} is there. */
  wish(): ToIntroducer & { type: "rename" } {
    const { wantedName: name } = this;
    const { key } = this.#room!;
    return { type: "rename", name, ...(key && { proof: prove(key, { ...this.member, name }) }) };
  }

  /** We have the name that we wanted. */
  takeBack(): void {
    this.#become(this.wantedName);
  }

  #become(name: string): void {
    this.#name = name;
    this.#credentials?.reseal();
  }

  /** What we tell an introducer of ourselves. Only once the {@link room} is there. */
  registers(
    rest: Pick<Register, "private" | "links" | "direct" | "mapping" | "forwarded" | "wants">,
  ): Register {
    const { id, key } = this.#room!;
    const { name, fingerprint } = this;
    const proof = key && prove(key, this.member);
    return {
      ...{ type: "register", version: protocolVersion, name, room: id, instance: this.#secretInstance },
      ...{ fingerprint, ...(proof && { proof }), ...rest },
    };
  }

  /** Why a peer does not count as one of the room; undefined if it does. */
  distrust(peer: Peer): string | undefined {
    return distrust(this.#room!, peer) ?? this.#known?.distrust(peer);
  }

  /** The user means the peer that we are linked with: from now on its name is bound to its certificate. */
  met(peer: Shown): void {
    if (this.#known?.meet(peer) === false) this.#known.distrust(peer);
  }

  /** Whether that peer is whom the user means by a name, or a fingerprint. */
  isMeant(whom: string, shown: Shown): boolean {
    const bound = this.#known?.fingerprintOf(whom);
    if (bound !== undefined) return bound === shown.fingerprint;
    if (!isCalled(whom, shown)) return false;
    return !this.#known || fingerprintIn(whom) !== undefined || this.#known.meet(shown);
  }

  /** Returns whether a certificate was bound to that name. */
  forget(name: string): boolean {
    if (!this.#known) throw new UserError("no names are remembered: start with --remember");
    return this.#known.forget(name);
  }
}

/**
 * To make a link takes some ms the first time, too. This one has no other end. It is ended with its channel, or its timers
 * would keep the program for 10 s.
 */
function rehearseLink(channel: Channel, { fingerprint }: Member): void {
  const nothing = () => {};
  const owner = {
    ...{ stream: nothing, threw: nothing, broken: nothing },
    ...{ looksDead: nothing, moved: nothing, ended: nothing },
  };
  const options = { role: "controlling", fingerprint, keepMs: 0, isAsked: true } as const;
  const { link } = talkingLink(channel, { ...options, owner, onText: nothing });
  void channel.closed.then(() => link.abandon("disconnected", ""));
}
