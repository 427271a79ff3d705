/**
 * The addresses of this host that a peer could reach, the links they are on, and how likely each is of use. Link-local
 * addresses are left out: they need a zone, and change with every interface. Reads the system; prints nothing. For
 * native/punch/ and native/participant/.
 */
import { existsSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { addressScope, canonicalAddress } from "../../protocol.ts";
import { defaultDevices, fieldsOf, textOf } from "./routes.ts";
import { encodeSockaddr } from "./sockaddr.ts";

/** A usable address in canonical form. All hosts on its link have the first `prefixBits` bits in common. */
export interface HostAddress {
  address: string;
  prefixBits: number;
}

/** With the interface that has it. */
export interface DeviceAddress extends HostAddress {
  device: string;
}

/**
 * How likely others reach an address, the likeliest first: on an interface with a default route, on any other, on a bridge
 * of this host's own containers. `idle`: on a bridge to which nothing is plugged, or not for new connections (RFC 4862).
 */
export const standings = ["routed", "ordinary", "bridge", "idle"] as const;
export type Standing = (typeof standings)[number];
export interface StandingAddress extends DeviceAddress {
  standing: Standing;
}

/** Of bridges that others make for containers and virtual machines, where the system does not say it. */
const bridgeNames = /^(docker|br-|virbr|lxcbr|lxdbr|cni|podman|vmnet|vboxnet|bridge\d)/;
/** IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE: of addresses in /proc/net/if_inet6. */
const idleFlags = 0x08 | 0x20 | 0x40;

let lastKnown: DeviceAddress[] = [];

/** The usable addresses, in the system's order. The last known ones if no descriptor is free, which getifaddrs needs. */
export function hostAddresses(): DeviceAddress[] {
  try {
    lastKnown = Object.entries(networkInterfaces()).flatMap(([device, addresses]) =>
      (addresses ?? []).flatMap(({ address, cidr }) => usable(address, cidr, device) ?? []),
    );
  } catch (error) {
    if (!(error instanceof Error && "syscall" in error)) throw error;
  }
  return lastKnown;
}

function usable(text: string, cidr: string | null, device: string): DeviceAddress | undefined {
  const canonical = canonicalAddress(text.replace(/%.*$/, ""));
  if (!canonical || addressScope(canonical.address) === "unusable") return undefined;
  const { address, family } = canonical;
  const prefixBits = cidr === null ? (family === 4 ? 32 : 128) : Number(cidr.split("/")[1]);
  return { address, prefixBits, device };
}

/** The same, with what the system says of each. Elsewhere than on Linux that is little. */
export function standingAddresses(hosts: readonly DeviceAddress[] = hostAddresses()): StandingAddress[] {
  const routed = defaultDevices();
  const idle = new Set(idleAddresses());
  const standingOf = ({ address, device }: DeviceAddress): Standing => {
    const folder = `/sys/class/net/${device}`;
    const isBridge = bridgeNames.test(device) || existsSync(`${folder}/bridge`);
    if (idle.has(address) || (isBridge && textOf(`${folder}/carrier`).trim() === "0")) return "idle";
    if (routed.has(device)) return "routed";
    return isBridge ? "bridge" : "ordinary";
  };
  return hosts.map((host) => ({ ...host, standing: standingOf(host) }));
}

function idleAddresses(): string[] {
  return fieldsOf(textOf("/proc/net/if_inet6")).flatMap(([digits = "", , , , flags = "0"]) => {
    const address = canonicalAddress(digits.replace(/(.{4})(?=.)/g, "$1:"))?.address;
    return address !== undefined && (parseInt(flags, 16) & idleFlags) !== 0 ? address : [];
  });
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
