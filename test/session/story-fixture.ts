/** What the tests of links share: pairs of real channels over loopback, and what a link told its owner. */
import * as net from "node:net";
import type * as tls from "node:tls";
import { LinkError, type Offer, readOffer } from "../../native/session/carrier.ts";
import { Channel } from "../../native/secure/channel.ts";
import { adopt, Credentials, type Side } from "../../native/secure/tls.ts";
import { type Identity, makeIdentity } from "../../native/secure/identity.ts";
import type { Link, LinkCarrier, LinkEnd, LinkOwner, Purpose } from "../../native/session/link.ts";
import { type Bond, proveBond } from "../../native/secure/room.ts";
import { resetCodes, type Stream } from "../../native/session/stream.ts";
import { type Lines, talkingLink, type TalkingLinkOptions } from "../../native/uses/lines.ts";
import { connectShared, type Socket } from "../../native/host/socket.ts";
import { encode, type Role, splitEndpoint } from "../../protocol.ts";
import { listening, loopback, until } from "../native-fixture.ts";

export const aliceIdentity = makeIdentity();
export const bobIdentity = makeIdentity();
const known = new Map<Identity, Credentials>();

export function credentialsOf(identity: Identity): Credentials {
  const made = known.get(identity) ?? new Credentials(identity);
  known.set(identity, made);
  return made;
}

export const purpose = "a link";
export const token = "0123456789abcdef".repeat(2);
export const client: Side = { role: "controlling", offers: [purpose] };
export const server: Side = { role: "controlled", expects: (asked) => asked === purpose };
export const sideOf = (role: Role): Side => (role === "controlling" ? client : server);

/** What the bearers of two certificates prove to each other, in a room of theirs. */
export function bondOf(self: { fingerprint: string }, peer: { fingerprint: string }): Bond {
  const member = ({ fingerprint }: { fingerprint: string }) => ({
    ...{ fingerprint, name: "a member", instance: fingerprint.slice(0, 16) },
  });
  return { key: new Uint8Array(32), self: member(self), peer: member(peer) };
}

/** Once TLS is up, the channel is taken for one between these two. Resolves to the certificate that was shown. */
export async function securedAs(channel: Channel, self: Identity): Promise<string> {
  const fingerprint = await channel.secured;
  channel.nomination.bond = bondOf(self, { fingerprint });
  return fingerprint;
}

/** What a TLS client that is no channel says to nominate the connection. */
export function nominationOn(socket: tls.TLSSocket, self: Identity, peer: Identity): string {
  const exported = socket.exportKeyingMaterial(32, "EXPORTER-tcp-hole-punching-link-2", Buffer.alloc(0));
  const proof = proveBond(bondOf(self, peer), "controlling", "self", exported);
  return encode({ type: "nominate", token, proof });
}

/** Bun.listen and its like may miss the first bytes; a descriptor of ours that the kernel holds never does. */
export async function accepted(listener: Socket): Promise<Socket> {
  let socket: Socket | undefined;
  await until("a connection is accepted", () => (socket = listener.accept()) !== undefined);
  return socket!;
}

export interface Ends {
  alice: Channel;
  bob: Channel;
}

/** Two secured channels on one connection; whoever is controlling is its TLS client, and can nominate it. */
export async function channels(controlling: keyof Ends = "alice"): Promise<Ends> {
  using listener = listening();
  const { socket } = await connectShared(listener.endpoint, 5_000);
  const [clients, servers] =
    controlling === "alice" ? [aliceIdentity, bobIdentity] : [bobIdentity, aliceIdentity];
  const dialled = new Channel(adopt(socket), "public", client, credentialsOf(clients));
  const taken = new Channel(adopt(await accepted(listener.socket)), "listen", server, credentialsOf(servers));
  await Promise.all([securedAs(dialled, clients), securedAs(taken, servers)]);
  return controlling === "alice" ? { alice: dialled, bob: taken } : { alice: taken, bob: dialled };
}

/** What a link told its owner. */
export class Story implements Omit<LinkOwner, "isUsed" | "sent"> {
  link!: Link;
  lines!: Lines;
  readonly texts: string[] = [];
  readonly streams: { stream: Stream; purpose: Purpose }[] = [];
  /** Of its channels. */
  readonly events: string[] = [];
  readonly ends: LinkEnd[] = [];
  /** Otherwise streams are refused, as by a program that knows no use of them. */
  takesStreams = false;

  said(text: string): void {
    this.texts.push(text);
  }
  stream(stream: Stream, use: Purpose): void {
    this.streams.push({ stream, purpose: use });
    if (!this.takesStreams) stream.reset("nobody takes streams here", resetCodes.refused);
  }
  threw(error: unknown): void {
    this.events.push(`threw: ${error instanceof Error ? error.message : String(error)}`);
  }
  broken(reason: string): void {
    this.events.push(`broken: ${reason}`);
  }
  looksDead(): void {
    this.events.push("looks dead");
  }
  moved(channel: Channel, gapMs: number): void {
    this.events.push(`moved ${gapMs === 0 ? "without" : "after"} a gap`);
    if (channel.local !== this.link.local) throw new Error("the link does not say where it goes");
  }
  ended(end: LinkEnd): void {
    this.ends.push(end);
  }
}

/** The stories of links, for tests that get nothing but the link. */
export const stories = new WeakMap<Link, Story>();

export function beginLink(
  channel: Channel,
  changes: Partial<TalkingLinkOptions> = {},
  offer?: Offer<LinkCarrier>,
): Story {
  const story = new Story();
  const { role } = channel;
  const onText = (text: string) => story.said(text);
  const own = { role, fingerprint: channel.peer, keepMs: 0, owner: story, onText };
  Object.assign(story, talkingLink(channel, { ...own, ...changes }, offer?.hello.sessionId));
  stories.set(story.link, story);
  if (offer) story.link.accept(offer);
  return story;
}

/** The first frame on a channel that the peer has nominated. */
export function offerOn(channel: Channel): Promise<Offer<LinkCarrier>> {
  const { promise, resolve, reject } = Promise.withResolvers<Offer<LinkCarrier>>();
  channel.onClose = (reason) => reject(new Error(`it closed before it said which link it is for: ${reason}`));
  readOffer(channel, resolve, (reason) => reject(new Error(reason)));
  return promise;
}

/** Our side of a link on a channel that was nominated, as that of a peer which has none yet. */
export async function linkOn(channel: Channel, changes: Partial<TalkingLinkOptions> = {}): Promise<Story> {
  if (channel.role === "controlling") return beginLink(channel, changes);
  return beginLink(channel, changes, await offerOn(channel));
}

export interface Linked {
  alice: Story;
  bob: Story;
  /** That of the first channel. */
  first: Wire;
}

/** Alice's and Bob's link, on a channel that can be cut and silenced. */
export async function links(keepMs = 0, atBobs: Partial<TalkingLinkOptions> = {}): Promise<Linked> {
  const first = await Wire.between("alice");
  const { alice, bob } = first.nominate();
  const [atAlice, atBob] = await Promise.all([linkOn(alice, { keepMs }), linkOn(bob, { keepMs, ...atBobs })]);
  await until("bob has proved himself", () => alice.nomination.isProved);
  return { alice: atAlice, bob: atBob, first };
}

/** A further channel for a link that is there; whoever is controlling speaks first on it. `ready`: one that `by` controls. */
export async function anotherChannel(
  { alice, bob }: Pick<Linked, "alice" | "bob">,
  by: keyof Ends = "alice",
  ready?: Wire,
): Promise<Wire> {
  const wire = ready ?? (await Wire.between(by));
  const ends = wire.nominate();
  const [asking, asked] = by === "alice" ? [alice, bob] : [bob, alice];
  const offer = offerOn(ends[by === "alice" ? "bob" : "alice"]);
  asking.link.attach(ends[by]);
  asked.link.accept(await offer);
  return wire;
}

/**
 * Two channels with a relay of this process between them, so that their path can be cut as by a NAT that forgets or a
 * host that dies.
 */
export class Wire {
  readonly #ends: Ends;
  readonly #sockets: net.Socket[];
  readonly #controlling: keyof Ends;
  isSilent = false;

  private constructor(ends: Ends, sockets: net.Socket[], controlling: keyof Ends) {
    this.#ends = ends;
    this.#sockets = sockets;
    this.#controlling = controlling;
  }

  static async between(controlling: keyof Ends): Promise<Wire> {
    using listener = listening();
    const sockets: net.Socket[] = [];
    const { port } = splitEndpoint(listener.endpoint);
    let wire: Wire | undefined;
    const options = { noDelay: true, allowHalfOpen: true };
    const relay = net.createServer(options, (near) => {
      const far = net.connect({ port, host: "127.0.0.1", ...options });
      sockets.push(near, far);
      for (const one of [near, far]) one.on("error", () => {});
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        from.on("data", (chunk) => void (to.write(chunk) || from.pause()));
        to.on("drain", () => wire?.isSilent || from.resume());
        from.on("end", () => to.end());
        from.on("close", () => to.destroySoon());
      }
    });
    await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
    const identities = controlling === "alice" ? [aliceIdentity, bobIdentity] : [bobIdentity, aliceIdentity];
    const { socket } = await connectShared(loopback((relay.address() as net.AddressInfo).port), 5_000);
    const dialled = new Channel(adopt(socket), "public", client, credentialsOf(identities[0]!));
    const taken = await accepted(listener.socket);
    relay.close();
    const other = new Channel(adopt(taken), "listen", server, credentialsOf(identities[1]!));
    await Promise.all([securedAs(dialled, identities[0]!), securedAs(other, identities[1]!)]);
    const ends = controlling === "alice" ? { alice: dialled, bob: other } : { alice: other, bob: dialled };
    return (wire = new Wire(ends, sockets, controlling));
  }

  nominate(): Ends {
    this.#ends[this.#controlling].nominate(token);
    return this.#ends;
  }

  get alice(): Channel {
    return this.#ends.alice;
  }
  get bob(): Channel {
    return this.#ends.bob;
  }

  /** Both ends are reset. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** Nothing gets through any more, and nobody is told. */
  silence(): void {
    this.isSilent = true;
    for (const socket of this.#sockets) socket.pause();
  }

  /** All that waited gets through. */
  resume(): void {
    this.isSilent = false;
    for (const socket of this.#sockets) socket.resume();
  }

  /** What this end has to say is over, as its kernel says it, and not TLS; the other way stays open. */
  fin(by: keyof Ends): void {
    const [near, far] = this.#sockets as [net.Socket, net.Socket];
    (by === this.#controlling ? far : near).end();
  }
}

export async function closeBoth(...told: { link: Link }[]): Promise<void> {
  await Promise.all(told.map(({ link }) => link.close("disconnected")));
}

/** The reason, once it has failed with a LinkError. */
export async function rejection(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof LinkError) return error.message;
    throw error;
  }
  throw new Error("it did not fail");
}

export const hasEnded = (story: Story) => () => story.ends.length > 0;
