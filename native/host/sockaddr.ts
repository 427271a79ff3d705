/**
 * Endpoint ↔ struct sockaddr_in / sockaddr_in6, as bytes (RFC 3493 §3.3, §3.4). Pure.
 *
 *   Linux    family:u16le  port:u16be  address[4]            zero[8]                     16 bytes
 *            family:u16le  port:u16be  flowinfo:u32  address[16]  scope:u32              28 bytes
 *   macOS    length:u8 family:u8, then the same
 */
import { formatEndpoint, type Endpoint, type EndpointParts } from "../../protocol.ts";
import { platform as here, type Platform } from "./platform.ts";

/** The longest path of a socket: sun_path has 104 bytes on macOS, 108 on Linux. */
export const maxUnixPathBytes = 103;

/** The sockaddr of an address and port. Port 0 and the unspecified address are allowed: they mean "any". */
export function encodeSockaddr(
  { family, address, port }: EndpointParts,
  platform: Platform = here,
): Uint8Array {
  const bytes = new Uint8Array(family === 4 ? 16 : 28);
  const view = new DataView(bytes.buffer);
  const number = family === 4 ? platform.AF_INET : platform.AF_INET6;
  if (platform.sockaddrHasLength) {
    view.setUint8(0, bytes.length);
    view.setUint8(1, number);
  } else {
    view.setUint16(0, number, true);
  }
  view.setUint16(2, port);
  if (family === 4) bytes.set(address.split(".").map(Number), 4);
  else ipv6Groups(address).forEach((group, index) => view.setUint16(8 + 2 * index, group));
  return bytes;
}

/** sockaddr_un: AF_UNIX is 1 everywhere. macOS puts the length before it. Throws a RangeError if the path is too long. */
export function encodeUnixPath(path: string, platform: Platform = here): Uint8Array {
  const bytes = new TextEncoder().encode(path);
  if (bytes.length > maxUnixPathBytes) throw new RangeError(`a path of ${bytes.length} bytes is too long`);
  return Uint8Array.of(...(platform.sockaddrHasLength ? [bytes.length + 3, 1] : [1, 0]), ...bytes, 0);
}

/** The endpoint of a sockaddr. Throws a RangeError for an unknown family, and for port 0. */
export function decodeSockaddr(bytes: Uint8Array, platform: Platform = here): Endpoint {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const family = platform.sockaddrHasLength ? view.getUint8(1) : view.getUint16(0, true);
  const port = view.getUint16(2);
  if (family === platform.AF_INET) return formatEndpoint(bytes.subarray(4, 8).join("."), port);
  if (family !== platform.AF_INET6) throw new RangeError(`unknown address family ${family}`);
  const groups = Array.from({ length: 8 }, (_, index) => view.getUint16(8 + 2 * index).toString(16));
  return formatEndpoint(groups.join(":"), port);
}

/** The eight groups of a canonical IPv6 address (RFC 5952 §4). */
function ipv6Groups(address: string): number[] {
  const [head, tail] = address.split("::").map((part) => (part === "" ? [] : part.split(":")));
  const middle = tail === undefined ? [] : Array<string>(8 - head!.length - tail.length).fill("0");
  return [...head!, ...middle, ...(tail ?? [])].map((group) => parseInt(group, 16));
}
