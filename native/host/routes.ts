/**
 * The ways out of this host, from what the kernel shows of them. Owns nothing. For native/host/, native/punch/,
 * native/participant/ and native/uses/.
 */
import { readFileSync } from "node:fs";
import { canonicalAddress, type Endpoint, splitEndpoint } from "../../protocol.ts";

/** linux/route.h: the route is usable, its next hop is a gateway. */
const RTF_UP = 1;
const RTF_GATEWAY = 2;

/** The gateway of the best default route in `/proc/net/route`; undefined if that route has none. Pure. */
export function parseRouteTable(table: string): string | undefined {
  const routes = table
    .split("\n")
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(([, destination, , flags, , , , mask]) => {
      return destination === "00000000" && mask === "00000000" && (parseInt(flags!, 16) & RTF_UP) !== 0;
    })
    .sort((a, b) => Number(a[6]) - Number(b[6]));
  const [, , gateway, flags] = routes[0] ?? [];
  // The route of a tunnel has no gateway, and the LAN's router does not see our packets.
  if (gateway === undefined || (parseInt(flags!, 16) & RTF_GATEWAY) === 0) return undefined;
  // In host byte order, which is little-endian on all our platforms.
  const bytes = [6, 4, 2, 0].map((at) => parseInt(gateway.slice(at, at + 2), 16));
  return canonicalAddress(bytes.join("."))?.address;
}

/** The routers of the default routes, for IPv4 and IPv6; none where the kernel has no file of the routes. */
export function defaultGateways(): string[] {
  const ipv4 = parseRouteTable(textOf("/proc/net/route"));
  return [...(ipv4 === undefined ? [] : [ipv4]), ...parseIPv6Routes(textOf("/proc/net/ipv6_route"))];
}

/** The interfaces with a default route; none where the kernel has no file of the routes. */
export function defaultDevices(): Set<string> {
  const ipv4 = fieldsOf(textOf("/proc/net/route"))
    .filter(([, destination, , , , , , mask]) => destination === "00000000" && mask === "00000000")
    .map(([device]) => device!);
  const ipv6 = fieldsOf(textOf("/proc/net/ipv6_route"))
    .filter(([destination, length]) => destination === "0".repeat(32) && length === "00")
    .map((fields) => fields[9]!);
  return new Set([...ipv4, ...ipv6].filter((device) => device !== "lo"));
}

/** The address that the kernel chooses on the way there; undefined if there is no way. Connects UDP, and sends nothing. */
export async function sourceTowards(endpoint: Endpoint): Promise<string | undefined> {
  const { address: hostname, port } = splitEndpoint(endpoint);
  try {
    const socket = await Bun.udpSocket({ connect: { hostname, port } });
    const source = canonicalAddress(socket.address.address)?.address;
    socket.close();
    return source;
  } catch {
    return undefined;
  }
}

/** The words of each line. */
export function fieldsOf(table: string): string[][] {
  return table
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter(({ length }) => length > 1);
}

/** "" where the kernel has no such file. */
export function textOf(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}

/** The gateways of all default routes in `/proc/net/ipv6_route`. Pure. */
export function parseIPv6Routes(table: string): string[] {
  const routes = table.split("\n").map((line) => line.trim().split(/\s+/));
  return routes.flatMap(([destination = "", length, , , gateway = ""]) => {
    if (!/^0{32}$/.test(destination) || length !== "00" || !/[1-9a-f]/.test(gateway)) return [];
    return canonicalAddress(gateway.match(/.{4}/g)!.join(":"))?.address ?? [];
  });
}
