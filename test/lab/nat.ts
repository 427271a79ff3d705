/**
 * A NAT that is a program, for what netfilter can't be: what a behaviour (`nat-behaviour.ts`) makes of packets. Pure:
 * a packet and the time come in, packets go out; `nat-fixture.ts` puts it between two devices. It knows IPv4 with
 * TCP, UDP and ICMP errors about them, no fragments; everything else it drops. A TCP session begins with a SYN: what
 * belongs to none, because it was forgotten, is dropped too. For the lab and its tests alone.
 *
 * A *mapping* joins an internal endpoint with an external one. A *session* is what passes by it between the internal
 * endpoint and one remote endpoint. A mapping lives as long as one of its sessions.
 */
import { formatEndpoint, splitEndpoint, type Endpoint } from "../../protocol.ts";
import { defaultBehaviour, type Dependence, type NatBehaviour } from "./nat-behaviour.ts";
import { flags, options, Packet, protocols, unreachable } from "./packet.ts";

export type Side = "lan" | "wan";
export interface Emitted {
  to: Side;
  packet: Packet;
}

/** RFC 5382 REQ-4: no answer to an unsolicited SYN for this long. */
export const unsolicitedDelayMs = 6_000;
/** Ports 0 to 1023 are not given away (RFC 4787 §4.2.1). */
const lowestPort = 1024;
const portCount = 65_536 - lowestPort;
/** Distance of `contiguity`; even, so that it keeps parity. */
const contiguousDistance = 10_000;
const httpBeginning = /^[A-Z]{3,8} |^HTTP\//;
const strippedKinds: Record<NatBehaviour["stripped"][number], number[]> = {
  timestamps: [options.timestamps],
  sack: [options.sackPermitted, options.sack],
  "window-scale": [options.windowScale],
};

interface Mapping {
  protocol: number;
  internal: Endpoint;
  external: Endpoint;
  key: string;
  sessions: Set<Session>;
}

interface Session {
  mapping: Mapping;
  remote: Endpoint;
  expiresMs: number;
  /** Who has sent a SYN, who a FIN. */
  opened: Set<Side>;
  closed: Set<Side>;
  /** Added to the sequence numbers of the inside. */
  offset: number;
  /** Whether its beginning was looked at. */
  isInspected: boolean;
}

/** Ports in the order in which they are tried: `first + (start + n × stride) mod count`. */
interface Search {
  first?: number;
  count?: number;
  start: number;
  stride?: number;
}

function modulo(value: number, count: number): number {
  return ((value % count) + count) % count;
}

function addressOf(endpoint: Endpoint): string {
  return splitEndpoint(endpoint).address;
}

/** As much of a remote endpoint as the behaviour depends on. */
function relevant(dependence: Dependence, remote: Endpoint): string {
  if (dependence === "endpoint-independent") return "";
  return dependence === "address-dependent" ? addressOf(remote) : remote;
}

/** RFC 9293 §3.10.7.1: what a SYN to a closed port gets. */
function resetTo(syn: Packet): Packet {
  return Packet.tcp({
    source: syn.destination,
    destination: syn.source,
    flags: flags.reset | flags.acknowledge,
    acknowledgement: (syn.sequence + syn.sequenceLength) >>> 0,
  });
}

/** What the outside acknowledges, in the numbers that the inside knows. */
function restoreAcknowledged(packet: Packet, offset: number): void {
  if (packet.has(flags.acknowledge)) packet.acknowledgement = (packet.acknowledgement - offset) >>> 0;
  for (const { kind, at, length } of packet.options()) {
    if (kind !== options.sack) continue;
    const edges = packet.bytes.subarray(at, at + length);
    const restored = Buffer.alloc(length);
    for (let edge = 0; edge + 4 <= length; edge += 4)
      restored.writeUInt32BE((edges.readUInt32BE(edge) - offset) >>> 0, edge);
    packet.write(at, ...restored);
  }
}

export class Translator {
  readonly #addresses: readonly string[];
  readonly #behaviour: NatBehaviour;
  readonly #random: () => number;

  /** By protocol, internal endpoint and what the mapping depends on. */
  readonly #mappings = new Map<string, Mapping>();
  /** By protocol and external endpoint; several where ports are overloaded. */
  readonly #externals = new Map<string, Set<Mapping>>();
  /** By protocol, internal and remote endpoint. */
  readonly #sessions = new Map<string, Session>();
  /** SYNs that may yet get an answer, by who sent them to whom. */
  readonly #unanswered = new Map<string, { dueMs: number; packet: Packet }>();
  /** Internal hosts in the order in which they came. */
  readonly #hosts: string[] = [];
  #nextExpiryMs = Infinity;
  #counter: number;
  #turn = 0;

  /** `random` gives numbers from 0 to 1, as Math.random does. */
  constructor(
    addresses: readonly string[],
    behaviour: Partial<NatBehaviour> = {},
    random: () => number = Math.random,
  ) {
    this.#addresses = addresses;
    this.#behaviour = { ...defaultBehaviour, ...behaviour };
    this.#random = random;
    this.#counter = Math.floor(random() * portCount);
  }

  /** What goes out because that came in. The bytes are changed and may be what goes out. */
  receive(from: Side, bytes: Buffer, nowMs: number): Emitted[] {
    this.#expire(nowMs);
    const packet = Packet.read(bytes);
    if (!packet || bytes.length > this.#behaviour.largestPacket) return [];
    const emitted = packet.isError
      ? this.#translateError(packet, from)
      : from === "lan"
        ? this.#fromLan(packet, nowMs)
        : this.#fromWan(packet, nowMs);
    return emitted.flatMap((one) => this.#turnRound(one, nowMs));
  }

  /** What goes out because time has passed. */
  due(nowMs: number): Emitted[] {
    const late = [...this.#unanswered].filter(([, { dueMs }]) => dueMs <= nowMs);
    return late.flatMap(([key, { packet }]) => {
      this.#unanswered.delete(key);
      const error = Packet.unreachable(packet, unreachable.port);
      return this.#turnRound({ to: "wan", packet: error }, nowMs);
    });
  }

  /** When `due` has something next. */
  get nextDueMs(): number {
    return Math.min(...[...this.#unanswered.values()].map(({ dueMs }) => dueMs));
  }

  /** Forgets every mapping, as a restart does. */
  forget(): void {
    for (const session of [...this.#sessions.values()]) this.#end(session);
  }

  // --- packets -------------------------------------------------------------------------------------------

  /** Hairpinning: what would leave for one of our own addresses comes back in. */
  #turnRound(one: Emitted, nowMs: number): Emitted[] {
    const isOurs = one.to === "wan" && this.#isOwn(one.packet.destination);
    return isOurs ? this.receive("wan", one.packet.bytes, nowMs) : [one];
  }

  #isOwn(endpoint: Endpoint): boolean {
    return this.#addresses.includes(addressOf(endpoint));
  }

  #fromLan(packet: Packet, nowMs: number): Emitted[] {
    if (!this.#behaviour.hairpinning && this.#isOwn(packet.destination))
      return this.#refuse(packet, "lan", nowMs);
    const session = this.#sessionFromLan(packet);
    if (!session) return [];
    packet.source = session.mapping.external;
    if (session.offset !== 0) packet.sequence = (packet.sequence + session.offset) >>> 0;
    this.#unanswered.delete(`${packet.destination} ${packet.source}`);
    return this.#pass(session, "lan", packet, nowMs);
  }

  #fromWan(packet: Packet, nowMs: number): Emitted[] {
    const session = this.#sessionFromWan(packet);
    if (!session) return this.#refuse(packet, "wan", nowMs);
    const { simultaneousOpen } = this.#behaviour;
    if (simultaneousOpen !== "passes" && packet.isFirstSyn && session.opened.has("lan"))
      return simultaneousOpen === "reset" ? [{ to: "wan", packet: resetTo(packet) }] : [];
    packet.destination = session.mapping.internal;
    if (session.offset !== 0) restoreAcknowledged(packet, session.offset);
    return this.#pass(session, "wan", packet, nowMs);
  }

  #pass(session: Session, from: Side, packet: Packet, nowMs: number): Emitted[] {
    this.#follow(session, from, packet, nowMs);
    this.#changeOptions(packet);
    if (!session.isInspected && packet.payload.length > 0) {
      session.isInspected = true;
      if (!this.#mayBegin(session, packet)) return this.#resetBoth(session, from, packet);
    }
    return [{ to: from === "lan" ? "wan" : "lan", packet }];
  }

  /** RFC 5508 §4: the packet inside an error is translated too. No error ends a session (RFC 5382 REQ-10). */
  #translateError(packet: Packet, from: Side): Emitted[] {
    const about = packet.about!;
    const session =
      from === "lan"
        ? this.#sessions.get(`${about.protocol} ${about.destination} ${about.source}`)
        : this.#sessionAt(about.protocol, about.source, about.destination);
    if (!session) return [];
    const { internal, external } = session.mapping;
    if (from === "lan") packet.source = about.destination = external;
    else packet.destination = about.source = internal;
    if (from === "wan" && session.offset !== 0) about.sequence = (about.sequence - session.offset) >>> 0;
    packet.complete();
    return [{ to: from === "lan" ? "wan" : "lan", packet }];
  }

  /** What a packet gets that nothing lets in. */
  #refuse(packet: Packet, from: Side, nowMs: number): Emitted[] {
    const { unsolicited } = this.#behaviour;
    if (!packet.isFirstSyn || unsolicited === "drop" || !this.#isOwn(packet.destination)) return [];
    if (unsolicited === "reset") return [{ to: from, packet: resetTo(packet) }];
    if (unsolicited !== "late-icmp") {
      const code = unsolicited === "icmp" ? unreachable.port : unreachable.prohibited;
      return [{ to: from, packet: Packet.unreachable(packet, code) }];
    }
    const key = `${packet.source} ${packet.destination}`;
    const isFirst = from === "wan" && !this.#unanswered.has(key);
    if (isFirst) this.#unanswered.set(key, { dueMs: nowMs + unsolicitedDelayMs, packet });
    return [];
  }

  /** In SYNs the largest segment, in all the options that do not come through. */
  #changeOptions(packet: Packet): void {
    const { largestSegment, stripped } = this.#behaviour;
    if (packet.protocol !== protocols.tcp) return;
    const unwanted = stripped.flatMap((name) => strippedKinds[name]);
    for (const { kind, at, length } of packet.options()) {
      if (unwanted.includes(kind)) packet.write(at - 2, ...Array<number>(length + 2).fill(options.none));
      if (kind !== options.segmentSize) continue;
      const size = Math.min(largestSegment, packet.bytes.readUInt16BE(at));
      packet.write(at, size >> 8, size & 0xff);
    }
  }

  #mayBegin({ remote }: Session, { payload }: Packet): boolean {
    const { onlyHttp } = this.#behaviour;
    const { port } = splitEndpoint(remote);
    const isInspected = onlyHttp !== undefined && port >= onlyHttp.first && port <= onlyHttp.last;
    return !isInspected || httpBeginning.test(payload.toString("latin1", 0, 16));
  }

  #resetBoth(session: Session, from: Side, { sequence, acknowledgement }: Packet): Emitted[] {
    const { mapping, remote, offset } = session;
    const { internal, external } = mapping;
    const forward = { flags: flags.reset, sequence };
    const back = { flags: flags.reset, sequence: (acknowledgement + (from === "wan" ? offset : 0)) >>> 0 };
    const [toLan, toWan] = from === "lan" ? [back, forward] : [forward, back];
    this.#end(session);
    return [
      { to: "lan", packet: Packet.tcp({ source: remote, destination: internal, ...toLan }) },
      { to: "wan", packet: Packet.tcp({ source: external, destination: remote, ...toWan }) },
    ];
  }

  // --- sessions ------------------------------------------------------------------------------------------

  /** The session of a packet that leaves; a first SYN or a datagram makes one. Undefined: it may not leave. */
  #sessionFromLan(packet: Packet): Session | undefined {
    const { protocol, source, destination } = packet;
    const session = this.#sessions.get(`${protocol} ${source} ${destination}`);
    if (session) return session;
    if (protocol === protocols.tcp && !packet.isFirstSyn) return undefined;
    if (this.#sessionCount(addressOf(source)) >= this.#behaviour.maxSessions) return undefined;
    const key = `${protocol} ${source} ${relevant(this.#behaviour.mapping, destination)}`;
    const mapping = this.#mappings.get(key) ?? this.#map(key, packet);
    return mapping && this.#begin(mapping, destination);
  }

  #sessionCount(host: string): number {
    return [...this.#sessions.values()].filter(({ mapping }) => addressOf(mapping.internal) === host).length;
  }

  /** The session that lets a packet in; a first SYN or a datagram makes one where the filter agrees (RFC 4787 §5). */
  #sessionFromWan(packet: Packet): Session | undefined {
    const { protocol, source, destination } = packet;
    const session = this.#sessionAt(protocol, destination, source);
    if (session || (protocol === protocols.tcp && !packet.isFirstSyn)) return session;
    const { filtering } = this.#behaviour;
    const wanted = relevant(filtering, source);
    const mappings = [...(this.#externals.get(`${protocol} ${destination}`) ?? [])];
    // One internal endpoint can't have two sessions with a remote one: nothing would tell what leaves by which mapping.
    const letsIn = ({ internal, sessions }: Mapping) =>
      !this.#sessions.has(`${protocol} ${internal} ${source}`) &&
      [...sessions].some(({ remote }) => relevant(filtering, remote) === wanted);
    const mapping = mappings.find(letsIn);
    return mapping && this.#begin(mapping, source);
  }

  #sessionAt(protocol: number, external: Endpoint, remote: Endpoint): Session | undefined {
    for (const mapping of this.#externals.get(`${protocol} ${external}`) ?? []) {
      const session = this.#sessions.get(`${protocol} ${mapping.internal} ${remote}`);
      if (session?.mapping === mapping) return session;
    }
    return undefined;
  }

  #begin(mapping: Mapping, remote: Endpoint): Session {
    const isRewritten = this.#behaviour.rewritesSequence && mapping.protocol === protocols.tcp;
    const session: Session = {
      mapping,
      remote,
      expiresMs: Infinity,
      opened: new Set(),
      closed: new Set(),
      offset: isRewritten ? Math.floor(this.#random() * 2 ** 32) : 0,
      isInspected: false,
    };
    mapping.sessions.add(session);
    this.#sessions.set(`${mapping.protocol} ${mapping.internal} ${remote}`, session);
    return session;
  }

  /** Keeps it alive, for as long as its state asks (RFC 5382 §5). */
  #follow(session: Session, from: Side, packet: Packet, nowMs: number): void {
    const { resetDeletes, establishedTimeoutMs, transitoryTimeoutMs } = this.#behaviour;
    if (packet.has(flags.reset) && resetDeletes) return this.#end(session);
    const { opened, closed } = session;
    if (packet.isFirstSyn && closed.size > 0) for (const side of [opened, closed]) side.clear();
    if (packet.has(flags.syn)) opened.add(from);
    if (packet.has(flags.fin)) closed.add(from);
    if (packet.has(flags.reset)) closed.add("lan").add("wan");
    const isEstablished = opened.size === 2 && closed.size < 2;
    session.expiresMs = nowMs + (isEstablished ? establishedTimeoutMs : transitoryTimeoutMs);
    this.#nextExpiryMs = Math.min(this.#nextExpiryMs, session.expiresMs);
  }

  #expire(nowMs: number): void {
    if (nowMs < this.#nextExpiryMs) return;
    this.#nextExpiryMs = Infinity;
    for (const session of [...this.#sessions.values()]) {
      if (session.expiresMs <= nowMs) this.#end(session);
      else this.#nextExpiryMs = Math.min(this.#nextExpiryMs, session.expiresMs);
    }
  }

  #end(session: Session): void {
    const { mapping, remote } = session;
    const { protocol, internal, external, sessions } = mapping;
    this.#sessions.delete(`${protocol} ${internal} ${remote}`);
    sessions.delete(session);
    if (sessions.size > 0) return;
    this.#mappings.delete(mapping.key);
    const others = this.#externals.get(`${protocol} ${external}`)!;
    others.delete(mapping);
    if (others.size === 0) this.#externals.delete(`${protocol} ${external}`);
  }

  // --- allocation ----------------------------------------------------------------------------------------

  /** A new mapping; undefined when no port is left. */
  #map(key: string, { protocol, source: internal, destination: remote }: Packet): Mapping | undefined {
    const external = this.#allocate(protocol, internal, remote);
    if (external === undefined) return undefined;
    const mapping: Mapping = { protocol, internal, external, key, sessions: new Set() };
    this.#mappings.set(key, mapping);
    const others = this.#externals.get(`${protocol} ${external}`) ?? new Set();
    this.#externals.set(`${protocol} ${external}`, others.add(mapping));
    return mapping;
  }

  #allocate(protocol: number, internal: Endpoint, remote: Endpoint): Endpoint | undefined {
    const { allocation, pooling } = this.#behaviour;
    const { address: host, port } = splitEndpoint(internal);
    if (!this.#hosts.includes(host)) this.#hosts.push(host);
    const hostIndex = this.#hosts.indexOf(host);
    const addressIndex = pooling === "paired" ? hostIndex : this.#turn++;
    const address = this.#addresses[addressIndex % this.#addresses.length]!;
    for (const { first = lowestPort, count = portCount, start, stride = 1 } of this.#searches(
      port,
      hostIndex,
    )) {
      for (let index = 0; index < count; index++) {
        const offset = modulo(start + index * stride, count);
        const external = formatEndpoint(address, first + offset);
        const others = this.#externals.get(`${protocol} ${external}`) ?? [];
        const isTaken = ({ sessions }: Mapping) =>
          allocation !== "overloading" || [...sessions].some((session) => session.remote === remote);
        if ([...others].some(isTaken)) continue;
        this.#counter = offset + stride;
        return external;
      }
    }
    return undefined;
  }

  #searches(port: number, hostIndex: number): Search[] {
    const { allocation } = this.#behaviour;
    const anywhere = (count: number) => Math.floor(this.#random() * count);
    const only = (wanted: number) => ({ first: wanted, count: 1, start: 0 });
    const random = { start: anywhere(portCount) };
    switch (allocation) {
      case "preservation":
      case "overloading":
        return [only(port), random];
      case "random":
        return [random];
      case "parity":
        return [{ start: 2 * anywhere(portCount / 2) + (port % 2), stride: 2 }];
      case "contiguity":
        return [only(lowestPort + ((port - lowestPort + contiguousDistance) % portCount)), random];
    }
    if ("step" in allocation) return [{ start: this.#counter, stride: allocation.step }];
    const first = lowestPort + allocation.block * hostIndex;
    return [{ first, count: Math.min(allocation.block, 65_536 - first), start: anywhere(allocation.block) }];
  }
}
