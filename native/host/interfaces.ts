/**
 * The addresses of this host that a peer could reach, and the prefixes of the links they are on. Link-local addresses are
 * left out: they need a zone, and change with every interface. Reads the system; prints nothing. For native/punch/.
 */
import { networkInterfaces } from "node:os";
import { addressScope, canonicalAddress } from "../../protocol.ts";
import { encodeSockaddr } from "./sockaddr.ts";

/** A usable address in canonical form. All hosts on its link have the first `prefixBits` bits in common. */
export interface HostAddress {
  address: string;
  prefixBits: number;
}

let lastKnown: HostAddress[] = [];

/** The usable addresses, in the system's order. The last known ones if no descriptor is free, which getifaddrs needs. */
export function hostAddresses(): HostAddress[] {
  try {
    const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
    lastKnown = all.flatMap(({ address, cidr }) => usable(address, cidr) ?? []);
  } catch (error) {
    if (!(error instanceof Error && "syscall" in error)) throw error;
  }
  return lastKnown;
}

function usable(text: string, cidr: string | null): HostAddress | undefined {
  const canonical = canonicalAddress(text.replace(/%.*$/, ""));
  if (!canonical || addressScope(canonical.address) === "unusable") return undefined;
  const { address, family } = canonical;
  const prefixBits = cidr === null ? (family === 4 ? 32 : 128) : Number(cidr.split("/")[1]);
  return { address, prefixBits };
}

/** Whether an address is on one of this host's links (RFC 4861 §2.1): no router lies between. */
export function isOnLink(address: string, hosts: readonly HostAddress[]): boolean {
  const bytes = bytesOf(address);
  return hosts.some((host) => {
    const own = bytesOf(host.address);
    return own.length === bytes.length && hasPrefix(own, bytes, host.prefixBits);
  });
}

function hasPrefix(one: Uint8Array, other: Uint8Array, bits: number): boolean {
  const isSame = (byte: number, index: number) => {
    const wanted = Math.min(8, Math.max(0, bits - 8 * index));
    const mask = 0xff << (8 - wanted);
    return (byte & mask) === (other[index]! & mask);
  };
  return one.every(isSame);
}

function bytesOf(address: string): Uint8Array {
  const family = address.includes(":") ? 6 : 4;
  const sockaddr = encodeSockaddr({ family, address, port: 0 });
  return family === 4 ? sockaddr.subarray(4, 8) : sockaddr.subarray(8, 24);
}
