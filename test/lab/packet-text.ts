/** IP packets as text for people. Pure. */

const flagLetters = ["F", "S", "R", "P", "A"] as const;
const protocolNames: Record<number, string> = { 1: "ICMP", 17: "UDP", 58: "ICMPv6" };
/** ICMP types with the packet that they are about. */
const icmpErrors = [3, 11];

/** Such as `203.0.113.1:40000 > 203.0.113.2:40000 S seq 17`; undefined for what isn't between two hosts. */
export function describePacket(packet: Buffer): string | undefined {
  const isIpv4 = packet[0]! >> 4 === 4;
  if (!isIpv4 && packet[24] === 0xff) return undefined; // multicast: neighbour discovery and the like
  const headerLength = isIpv4 ? (packet[0]! & 15) * 4 : 40;
  const totalLength = isIpv4 ? packet.readUInt16BE(2) : 40 + packet.readUInt16BE(4);
  const protocol = isIpv4 ? packet[9]! : packet[6]!;
  const [from, to] = isIpv4
    ? [ipv4Text(packet.subarray(12)), ipv4Text(packet.subarray(16))]
    : [ipv6Text(packet.subarray(8)), ipv6Text(packet.subarray(24))];
  const payload = packet.subarray(headerLength);
  if (protocol !== 6 && protocol !== 17) {
    const isError = protocol === 1 && icmpErrors.includes(payload[0]!) && payload.length >= 32;
    const about = isError ? ` about ${describeEndpoints(payload.subarray(8))}` : "";
    return `${from} > ${to} ${protocolNames[protocol] ?? protocol} ${payload[0]}/${payload[1]}${about}`;
  }
  const [fromPort, toPort] = [payload.readUInt16BE(0), payload.readUInt16BE(2)];
  if (protocol === 17) return `${from}:${fromPort} > ${to}:${toPort} UDP`;
  const flags = flagLetters.filter((_, bit) => (payload[13]! >> bit) & 1).join("");
  const dataLength = totalLength - headerLength - (payload[12]! >> 4) * 4;
  const data = dataLength > 0 ? `, ${dataLength} bytes` : "";
  return `${from}:${fromPort} > ${to}:${toPort} ${flags} seq ${payload.readUInt32BE(4)}${data}`;
}

/** Of an IPv4 packet with ports, of which the header and 4 bytes are enough. */
function describeEndpoints(packet: Buffer): string {
  const ports = packet.subarray((packet[0]! & 15) * 4);
  const [from, to] = [ipv4Text(packet.subarray(12)), ipv4Text(packet.subarray(16))];
  return ports.length < 4
    ? `${from} > ${to}`
    : `${from}:${ports.readUInt16BE(0)} > ${to}:${ports.readUInt16BE(2)}`;
}

function ipv4Text(bytes: Buffer): string {
  return bytes.subarray(0, 4).join(".");
}

function ipv6Text(bytes: Buffer): string {
  const words = Array.from({ length: 8 }, (_, index) => bytes.readUInt16BE(2 * index).toString(16));
  return new URL(`http://[${words.join(":")}]`).hostname;
}
