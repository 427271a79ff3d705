/**
 * One IPv4 packet as a NAT sees it: TCP, UDP, or an ICMP error with the packet that it is about. Changes are made in
 * place, and every one of them keeps the checksums right (RFC 1624), so that a packet which came damaged leaves as
 * damaged. Pure. RFC 791, 792, 768, 9293, 2018, 7323.
 */
import { splitEndpoint, type Endpoint } from "../../protocol.ts";

export const protocols = { icmp: 1, tcp: 6, udp: 17 } as const;
/** Bits of the TCP header's flag byte. */
export const flags = { fin: 1, syn: 2, reset: 4, push: 8, acknowledge: 16 } as const;
/** TCP option kinds. */
export const options = {
  end: 0,
  none: 1,
  segmentSize: 2,
  windowScale: 3,
  sackPermitted: 4,
  sack: 5,
  timestamps: 8,
};
/** Codes of ICMP's destination unreachable (type 3). */
export const unreachable = { port: 3, prohibited: 13 } as const;

const ipHeaderBytes = 20;
const tcpHeaderBytes = 20;
const icmpHeaderBytes = 8;
/** What an ICMP error shows of the packet at least (RFC 792); ports and the sequence number are within it. */
const excerptBytes = 8;
const timeToLive = 64;
const protocolAt = 9;
const headerChecksumAt = 10;
const sourceAt = 12;
const destinationAt = 16;
/** Destination unreachable, source quench, time exceeded, parameter problem. */
const icmpErrors = [3, 4, 11, 12];
const icmpUnreachable = 3;

export interface TcpHeader {
  source: Endpoint;
  destination: Endpoint;
  flags: number;
  sequence?: number;
  acknowledgement?: number;
}

/** One's complement sum of 16-bit words; an odd byte counts as the high one of a word (RFC 1071). */
function sum(bytes: Buffer, from: number, to: number, initial = 0): number {
  let total = initial;
  for (let at = from; at + 1 < to; at += 2) total += bytes.readUInt16BE(at);
  if ((to - from) % 2 === 1) total += bytes[to - 1]! << 8;
  return total;
}

function fold(total: number): number {
  while (total > 0xffff) total = (total & 0xffff) + Math.floor(total / 0x10000);
  return total;
}

export class Packet {
  readonly bytes: Buffer;
  readonly protocol: number;
  /** Where the transport header begins. */
  readonly #at: number;
  /** Where the transport's checksum is; undefined where it is not there, or not used (UDP). */
  readonly #checksumAt: number | undefined;

  /** Undefined for what this is not about: IPv6, fragments, ICMP that reports no error, other transports. */
  static read(bytes: Buffer): Packet | undefined {
    if (bytes.length < ipHeaderBytes || bytes.length < bytes.readUInt16BE(2)) return undefined;
    const packet = Packet.#readPart(bytes.subarray(0, bytes.readUInt16BE(2)));
    const { tcp, icmp } = protocols;
    if (packet?.protocol === tcp && !packet.#holdsWholeHeader()) return undefined;
    if (packet?.protocol === icmp && !(packet.isError && packet.about)) return undefined;
    return packet;
  }

  static #readPart(bytes: Buffer): Packet | undefined {
    if (bytes.length < ipHeaderBytes || bytes[0]! >> 4 !== 4) return undefined;
    const at = (bytes[0]! & 15) * 4;
    const isFragment = (bytes.readUInt16BE(6) & 0x3fff) !== 0;
    if (at < ipHeaderBytes || isFragment || bytes.length < at + excerptBytes) return undefined;
    const isKnown = (Object.values(protocols) as number[]).includes(bytes[protocolAt]!);
    return isKnown ? new Packet(bytes, at) : undefined;
  }

  /** A segment without options or payload. */
  static tcp({ source, destination, flags: bits, sequence = 0, acknowledgement = 0 }: TcpHeader): Packet {
    const packet = Packet.#make(protocols.tcp, tcpHeaderBytes);
    const at = ipHeaderBytes;
    packet.bytes.writeUInt32BE(sequence, at + 4);
    packet.bytes.writeUInt32BE(acknowledgement, at + 8);
    packet.bytes.writeUInt16BE(((tcpHeaderBytes / 4) << 12) | bits, at + 12);
    packet.bytes.writeUInt16BE(0xffff, at + 14);
    packet.complete();
    packet.source = source;
    packet.destination = destination;
    return packet;
  }

  /** Destination unreachable, from the address that `about` was sent to (RFC 792, RFC 1122 §3.2.2.1). */
  static unreachable(about: Packet, code: number): Packet {
    const excerpt = about.bytes.subarray(0, about.#at + excerptBytes);
    const packet = Packet.#make(protocols.icmp, icmpHeaderBytes + excerpt.length);
    packet.bytes.writeUInt8(icmpUnreachable, ipHeaderBytes);
    packet.bytes.writeUInt8(code, ipHeaderBytes + 1);
    excerpt.copy(packet.bytes, ipHeaderBytes + icmpHeaderBytes);
    about.bytes.copy(packet.bytes, sourceAt, destinationAt, destinationAt + 4);
    about.bytes.copy(packet.bytes, destinationAt, sourceAt, sourceAt + 4);
    packet.complete();
    return packet;
  }

  static #make(protocol: number, payloadBytes: number): Packet {
    const bytes = Buffer.alloc(ipHeaderBytes + payloadBytes);
    bytes.writeUInt16BE(0x4500, 0);
    bytes.writeUInt16BE(bytes.length, 2);
    bytes.writeUInt16BE(0x4000, 6); // do not fragment
    bytes.writeUInt8(timeToLive, 8);
    bytes.writeUInt8(protocol, protocolAt);
    return new Packet(bytes, ipHeaderBytes);
  }

  private constructor(bytes: Buffer, at: number) {
    this.bytes = bytes;
    this.protocol = bytes[protocolAt]!;
    this.#at = at;
    const { tcp, udp } = protocols;
    const checksumAt = at + (this.protocol === tcp ? 16 : this.protocol === udp ? 6 : 2);
    const isThere = checksumAt + 2 <= bytes.length;
    const isUsed = isThere && !(this.protocol === udp && bytes.readUInt16BE(checksumAt) === 0);
    this.#checksumAt = isUsed ? checksumAt : undefined;
  }

  /** The sender; an ICMP error has no ports and says 0. */
  get source(): Endpoint {
    return this.#endpoint(sourceAt, 0);
  }
  set source(endpoint: Endpoint) {
    this.#setEndpoint(endpoint, sourceAt, 0);
  }
  get destination(): Endpoint {
    return this.#endpoint(destinationAt, 2);
  }
  set destination(endpoint: Endpoint) {
    this.#setEndpoint(endpoint, destinationAt, 2);
  }

  get sequence(): number {
    return this.bytes.readUInt32BE(this.#at + 4);
  }
  set sequence(value: number) {
    this.#write32(this.#at + 4, value);
  }
  get acknowledgement(): number {
    return this.bytes.readUInt32BE(this.#at + 8);
  }
  set acknowledgement(value: number) {
    this.#write32(this.#at + 8, value);
  }

  /** Whether it is TCP with that flag. */
  has(flag: number): boolean {
    return this.protocol === protocols.tcp && (this.bytes[this.#at + 13]! & flag) !== 0;
  }
  get isFirstSyn(): boolean {
    return this.has(flags.syn) && !this.has(flags.acknowledge);
  }
  /** What TCP carries; of others nothing. */
  get payload(): Buffer {
    const { bytes, protocol } = this;
    return bytes.subarray(protocol === protocols.tcp ? this.#at + this.#tcpHeaderBytes : bytes.length);
  }
  /** Sequence numbers that a segment takes (RFC 9293 §3.4). */
  get sequenceLength(): number {
    return this.payload.length + Number(this.has(flags.syn)) + Number(this.has(flags.fin));
  }

  get isError(): boolean {
    return this.protocol === protocols.icmp && icmpErrors.includes(this.bytes[this.#at]!);
  }
  /** The packet that an ICMP error is about, as far as it is shown; `complete()` after changing it. */
  get about(): Packet | undefined {
    const about = Packet.#readPart(this.bytes.subarray(this.#at + icmpHeaderBytes));
    return about?.protocol === protocols.icmp ? undefined : about;
  }

  /** The TCP options: kind, where the value begins, its length. */
  *options(): Generator<{ kind: number; at: number; length: number }> {
    const { bytes } = this;
    const end = this.#at + this.#tcpHeaderBytes;
    for (let at = this.#at + tcpHeaderBytes; at < end && bytes[at] !== options.end;) {
      const length = bytes[at] === options.none ? 1 : (bytes[at + 1] ?? 0);
      if (length < 1 || at + length > end) return;
      if (length > 1) yield { kind: bytes[at]!, at: at + 2, length: length - 2 };
      at += length;
    }
  }

  /** Changes bytes behind the IP header. */
  write(at: number, ...values: number[]): void {
    values.forEach((value, index) => {
      const isLow = (at + index - this.#at) % 2;
      const wordAt = at + index - isLow;
      const word = this.bytes.readUInt16BE(wordAt);
      this.#write16(wordAt, isLow ? (word & 0xff00) | value : (word & 0xff) | (value << 8));
    });
  }

  /** Computes the checksums anew. */
  complete(): void {
    const { bytes, protocol } = this;
    bytes.writeUInt16BE(0, headerChecksumAt);
    bytes.writeUInt16BE(~fold(sum(bytes, 0, this.#at)) & 0xffff, headerChecksumAt);
    if (this.#checksumAt === undefined) return;
    const pseudoHeader =
      protocol === protocols.icmp
        ? 0
        : sum(bytes, sourceAt, ipHeaderBytes, protocol + bytes.length - this.#at);
    bytes.writeUInt16BE(0, this.#checksumAt);
    bytes.writeUInt16BE(~fold(sum(bytes, this.#at, bytes.length, pseudoHeader)) & 0xffff, this.#checksumAt);
  }

  get #tcpHeaderBytes(): number {
    return (this.bytes[this.#at + 12]! >> 4) * 4;
  }

  #holdsWholeHeader(): boolean {
    if (this.bytes.length < this.#at + tcpHeaderBytes) return false;
    return this.#tcpHeaderBytes >= tcpHeaderBytes && this.bytes.length >= this.#at + this.#tcpHeaderBytes;
  }

  #endpoint(addressAt: number, portOffset: number): Endpoint {
    const { bytes } = this;
    const address = `${bytes[addressAt]}.${bytes[addressAt + 1]}.${bytes[addressAt + 2]}.${bytes[addressAt + 3]}`;
    const port = this.protocol === protocols.icmp ? 0 : bytes.readUInt16BE(this.#at + portOffset);
    return `${address}:${port}` as Endpoint;
  }

  #setEndpoint(endpoint: Endpoint, addressAt: number, portOffset: number): void {
    const { address, port } = splitEndpoint(endpoint);
    const [a = 0, b = 0, c = 0, d = 0] = address.split(".").map(Number);
    // TCP and UDP sum the addresses too (pseudo header); ICMP does not.
    const checksums = this.protocol === protocols.icmp ? [] : [this.#checksumAt];
    this.#change(addressAt, (a << 8) | b, [headerChecksumAt, ...checksums]);
    this.#change(addressAt + 2, (c << 8) | d, [headerChecksumAt, ...checksums]);
    if (this.protocol !== protocols.icmp) this.#write16(this.#at + portOffset, port);
  }

  #write32(at: number, value: number): void {
    this.#write16(at, value >>> 16);
    this.#write16(at + 2, value & 0xffff);
  }

  #write16(at: number, value: number): void {
    this.#change(at, value, [this.#checksumAt]);
  }

  /** RFC 1624, equation 3: HC' = ~(~HC + ~m + m') */
  #change(at: number, value: number, checksums: readonly (number | undefined)[]): void {
    const { bytes } = this;
    const old = bytes.readUInt16BE(at);
    bytes.writeUInt16BE(value, at);
    for (const checksumAt of checksums) {
      if (checksumAt === undefined) continue;
      const before = ~bytes.readUInt16BE(checksumAt) & 0xffff;
      const sum = ~fold(before + (~old & 0xffff) + value) & 0xffff;
      const isUdp = this.protocol === protocols.udp && checksumAt === this.#checksumAt;
      bytes.writeUInt16BE(isUdp ? sum || 0xffff : sum, checksumAt); // 0 means: none
    }
  }
}
