import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { sockaddrBytes } from "../../native/host/libc.ts";
import { platforms } from "../../native/host/platform.ts";
import { decodeSockaddr, encodeSockaddr } from "../../native/host/sockaddr.ts";
import type { EndpointParts } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const { linux, darwin } = platforms;
const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const bytesOf = (hex: string) => new Uint8Array(Buffer.from(hex, "hex"));

interface Row {
  parts: EndpointParts;
  /** What decoding gives back; undefined where port 0 makes it no endpoint. */
  endpoint?: string;
  linux: string;
  darwin: string;
}

// 0x9c40 is port 40000, 0x0001 port 1: a port in the wrong byte order can't pass.
const rows: Record<string, Row> = {
  "an IPv4 endpoint": {
    parts: { family: 4, address: "203.0.113.7", port: 40000 },
    endpoint: "203.0.113.7:40000",
    linux: "02009c40cb0071070000000000000000",
    darwin: "10029c40cb0071070000000000000000",
  },
  "the lowest port": {
    parts: { family: 4, address: "127.0.0.1", port: 1 },
    endpoint: "127.0.0.1:1",
    linux: "020000017f0000010000000000000000",
    darwin: "100200017f0000010000000000000000",
  },
  "the highest port and the highest octets": {
    parts: { family: 4, address: "255.255.255.254", port: 65535 },
    endpoint: "255.255.255.254:65535",
    linux: "0200fffffffffffe0000000000000000",
    darwin: "1002fffffffffffe0000000000000000",
  },
  "any IPv4 address and port": {
    parts: { family: 4, address: "0.0.0.0", port: 0 },
    linux: "02000000000000000000000000000000",
    darwin: "10020000000000000000000000000000",
  },
  "any IPv6 address": {
    parts: { family: 6, address: "::", port: 40000 },
    endpoint: "[::]:40000",
    linux: "0a009c4000000000" + "00000000000000000000000000000000" + "00000000",
    darwin: "1c1e9c4000000000" + "00000000000000000000000000000000" + "00000000",
  },
  "any IPv6 address and port": {
    parts: { family: 6, address: "::", port: 0 },
    linux: "0a00000000000000" + "00000000000000000000000000000000" + "00000000",
    darwin: "1c1e000000000000" + "00000000000000000000000000000000" + "00000000",
  },
  "the IPv6 loopback": {
    parts: { family: 6, address: "::1", port: 40000 },
    endpoint: "[::1]:40000",
    linux: "0a009c4000000000" + "00000000000000000000000000000001" + "00000000",
    darwin: "1c1e9c4000000000" + "00000000000000000000000000000001" + "00000000",
  },
  "an IPv6 address with zeros in the middle": {
    parts: { family: 6, address: "2001:db8::7", port: 40000 },
    endpoint: "[2001:db8::7]:40000",
    linux: "0a009c4000000000" + "20010db8000000000000000000000007" + "00000000",
    darwin: "1c1e9c4000000000" + "20010db8000000000000000000000007" + "00000000",
  },
  "an IPv6 address with zeros at the end": {
    parts: { family: 6, address: "2001:db8:a::", port: 40000 },
    endpoint: "[2001:db8:a::]:40000",
    linux: "0a009c4000000000" + "20010db8000a00000000000000000000" + "00000000",
    darwin: "1c1e9c4000000000" + "20010db8000a00000000000000000000" + "00000000",
  },
  "an IPv6 address of eight groups": {
    parts: { family: 6, address: "fd12:3456:789a:bcde:f012:3456:789a:bcde", port: 1 },
    endpoint: "[fd12:3456:789a:bcde:f012:3456:789a:bcde]:1",
    linux: "0a00000100000000" + "fd123456789abcdef0123456789abcde" + "00000000",
    darwin: "1c1e000100000000" + "fd123456789abcdef0123456789abcde" + "00000000",
  },
  "an IPv4-mapped IPv6 address, which reads back as IPv4": {
    parts: { family: 6, address: "::ffff:cb00:7107", port: 40000 },
    endpoint: "203.0.113.7:40000",
    linux: "0a009c4000000000" + "00000000000000000000ffffcb007107" + "00000000",
    darwin: "1c1e9c4000000000" + "00000000000000000000ffffcb007107" + "00000000",
  },
};

describe.each(Object.entries(rows))("%s", (_, row) => {
  test.each([
    ["linux", linux, row.linux],
    ["darwin", darwin, row.darwin],
  ] as const)("on %s", (_name, platform, golden) => {
    expect(hexOf(encodeSockaddr(row.parts, platform))).toBe(golden);
    if (row.endpoint === undefined) {
      expect(() => decodeSockaddr(bytesOf(golden), platform)).toThrow(RangeError);
    } else {
      expect<string>(decodeSockaddr(bytesOf(golden), platform)).toBe(row.endpoint);
    }
  });
});

test("bytes are read where the view begins, however much follows", () => {
  const buffer = new Uint8Array(3 + sockaddrBytes).fill(0xee);
  buffer.set(bytesOf(rows["an IPv4 endpoint"]!.linux), 3);
  expect<string>(decodeSockaddr(buffer.subarray(3), linux)).toBe("203.0.113.7:40000");
});

test.each([
  ["linux", linux, "01009c40cb0071070000000000000000", 1], // AF_UNIX
  ["linux, given macOS's IPv6", linux, rows["the IPv6 loopback"]!.darwin, 0x1e1c],
  ["darwin", darwin, "10019c40cb0071070000000000000000", 1],
  ["darwin, given Linux's IPv4", darwin, rows["an IPv4 endpoint"]!.linux, 0],
] as const)("an unknown family is refused on %s", (_, platform, hex, family) => {
  expect(() => decodeSockaddr(bytesOf(hex), platform)).toThrow(`unknown address family ${family}`);
});
