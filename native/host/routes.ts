/**
 * The default routes of this host, from what the kernel shows of them. Owns nothing. For native/punch/ and native/uses/.
 */
import { readFileSync } from "node:fs";
import { canonicalAddress } from "../../protocol.ts";

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

function textOf(file: string): string {
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
