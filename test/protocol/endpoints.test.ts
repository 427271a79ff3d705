/** Endpoints and addresses. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  addressScope,
  canonicalAddress,
  formatEndpoint,
  mayOffer,
  parseEndpoint,
  splitEndpoint,
} from "../../protocol.ts";
import { at } from "./protocol-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test.each([
  ["IPv4", "203.0.113.7:40000", "203.0.113.7:40000"],
  ["IPv4 extremes", "255.255.255.255:65535", "255.255.255.255:65535"],
  ["IPv6", "[2001:db8::7]:40000", "[2001:db8::7]:40000"],
  ["IPv6 in full", "[2001:0db8:0000:0000:0000:0000:0000:0007]:40000", "[2001:db8::7]:40000"],
  ["IPv6 in capitals", "[2001:DB8::7]:40000", "[2001:db8::7]:40000"],
  ["longest run of zeros is shortened (RFC 5952 §4.2.3)", "[2001:0:0:1::1]:1", "[2001:0:0:1::1]:1"],
  ["first run at a tie (RFC 5952 §4.2.3)", "[2001:db8:0:0:1:0:0:1]:1", "[2001:db8::1:0:0:1]:1"],
  ["IPv6 loopback", "[0:0:0:0:0:0:0:1]:1", "[::1]:1"],
  ["IPv4-mapped", "[::ffff:203.0.113.7]:80", "203.0.113.7:80"],
  ["IPv4-mapped in hex", "[::FFFF:cb00:7107]:80", "203.0.113.7:80"],
  ["IPv4-mapped in full", "[0:0:0:0:0:ffff:203.0.113.7]:80", "203.0.113.7:80"],
  ["IPv4-mapped extremes", "[::ffff:255.0.0.255]:80", "255.0.0.255:80"],
  ["port with zeros", "10.0.0.1:00080", "10.0.0.1:80"],
  ["IPv4 leading zero", "01.2.3.4:80", undefined],
  ["IPv4 leading zero at the end", "1.2.3.04:80", undefined],
  ["mapped leading zero", "[::ffff:01.2.3.4]:80", undefined],
  ["IPv4 octet 256", "256.1.1.1:80", undefined],
  ["IPv4 of three", "1.2.3:80", undefined],
  ["IPv4 of five", "1.2.3.4.5:80", undefined],
  ["IPv4 in hex", "0x7f.0.0.1:80", undefined],
  ["IPv4 as one number", "2130706433:80", undefined],
  ["IPv4 in brackets", "[1.2.3.4]:80", undefined],
  ["IPv4 ends in a dot", "1.2.3.4.:80", undefined],
  ["IPv6 without brackets", "2001:db8::7:80", undefined],
  ["IPv6 with a zone", "[fe80::1%eth0]:80", undefined],
  ["IPv6 with two ::", "[1::2::3]:80", undefined],
  ["IPv6 of nine", "[1:2:3:4:5:6:7:8:9]:80", undefined],
  ["IPv6 of seven", "[1:2:3:4:5:6:7]:80", undefined],
  ["IPv6 group of five digits", "[12345::]:80", undefined],
  ["bracket open", "[2001:db8::7:80", undefined],
  ["bracket twice", "[[::1]]:80", undefined],
  ["brackets empty", "[]:80", undefined],
  ["host name", "localhost:80", undefined],
  ["no port", "1.2.3.4", undefined],
  ["port empty", "1.2.3.4:", undefined],
  ["port 0", "1.2.3.4:0", undefined],
  ["port 65536", "1.2.3.4:65536", undefined],
  ["port of six digits", "1.2.3.4:000080", undefined],
  ["port negative", "1.2.3.4:-1", undefined],
  ["port in hex", "1.2.3.4:0x50", undefined],
  ["port with an exponent", "1.2.3.4:1e3", undefined],
  ["blank before", " 1.2.3.4:80", undefined],
  ["blank within", "1.2.3.4: 80", undefined],
  ["line feed at the end", "1.2.3.4:80\n", undefined],
  ["nothing", "", undefined],
] satisfies [string, string, string | undefined][])("endpoint: %s", (_what, text, expected) => {
  const parsed: string | undefined = parseEndpoint(text);
  expect(parsed).toBe(expected);
});

test("splitEndpoint, formatEndpoint and parseEndpoint are inverse", () => {
  const rows: [text: string, family: 4 | 6, address: string, port: number][] = [
    ["203.0.113.7:1", 4, "203.0.113.7", 1],
    ["0.0.0.0:65535", 4, "0.0.0.0", 65535],
    ["[::]:80", 6, "::", 80],
    ["[2001:db8::7]:40000", 6, "2001:db8::7", 40000],
  ];
  for (const [text, family, address, port] of rows) {
    expect(splitEndpoint(at(text))).toEqual({ family, address, port });
    expect(formatEndpoint(address, port)).toBe(at(text));
  }
});

test("formatEndpoint throws for what is none", () => {
  const rows: [address: string, port: number][] = [
    ["1.2.3.4", 0],
    ["1.2.3.4", 65536],
    ["1.2.3.4", 80.5],
    ["1.2.3.4", NaN],
    ["localhost", 80],
    ["[::1]", 80],
    ["fe80::1%eth0", 80],
    ["", 80],
  ];
  for (const [address, port] of rows) expect(() => formatEndpoint(address, port)).toThrow(RangeError);
});

test("canonicalAddress names the family", () => {
  expect(canonicalAddress("::ffff:10.0.0.1")).toEqual({ family: 4, address: "10.0.0.1" });
  expect(canonicalAddress("2001:DB8::0")).toEqual({ family: 6, address: "2001:db8::" });
  expect(canonicalAddress("10.0.0.1:80")).toBeUndefined();
  expect(canonicalAddress("::1]/x?[")).toBeUndefined();
});

test.each([
  ["unspecified (RFC 1122 §3.2.1.3)", "0.0.0.0", "unusable"],
  ["this network (RFC 1122 §3.2.1.3)", "0.1.2.3", "unusable"],
  ["loopback (RFC 1122 §3.2.1.3)", "127.0.0.1", "loopback"],
  ["loopback, last", "127.255.255.255", "loopback"],
  ["just after loopback", "128.0.0.0", "global"],
  ["link-local (RFC 3927)", "169.254.0.1", "unusable"],
  ["just before link-local", "169.253.255.255", "global"],
  ["just after link-local", "169.255.0.0", "global"],
  ["multicast (RFC 5771)", "224.0.0.1", "unusable"],
  ["just before multicast", "223.255.255.255", "global"],
  ["reserved (RFC 1112 §4)", "240.0.0.1", "unusable"],
  ["limited broadcast (RFC 919)", "255.255.255.255", "unusable"],
  ["private 10/8 (RFC 1918)", "10.255.255.255", "private"],
  ["just after 10/8", "11.0.0.0", "global"],
  ["just before 172.16/12", "172.15.255.255", "global"],
  ["private 172.16/12 (RFC 1918)", "172.16.0.0", "private"],
  ["private 172.16/12, last", "172.31.255.255", "private"],
  ["just after 172.16/12", "172.32.0.0", "global"],
  ["private 192.168/16 (RFC 1918)", "192.168.1.1", "private"],
  ["just after 192.168/16", "192.169.0.0", "global"],
  ["just before 100.64/10", "100.63.255.255", "global"],
  ["shared, behind a CGN (RFC 6598)", "100.64.0.0", "private"],
  ["shared, last (RFC 6598)", "100.127.255.255", "private"],
  ["just after 100.64/10", "100.128.0.0", "global"],
  ["documentation, as any other (RFC 5737)", "203.0.113.7", "global"],
  ["IPv6 unspecified (RFC 4291 §2.5.2)", "::", "unusable"],
  ["IPv6 loopback (RFC 4291 §2.5.3)", "::1", "loopback"],
  ["IPv6 multicast (RFC 4291 §2.7)", "ff02::1", "unusable"],
  ["IPv6 link-local (RFC 4291 §2.5.6)", "fe80::1", "unusable"],
  ["IPv6 link-local, last", "febf::1", "unusable"],
  ["IPv6 site-local (RFC 3879)", "fec0::1", "private"],
  ["NAT64 of a global address (RFC 6052)", "64:ff9b::cb00:7107", "global"],
  ["NAT64 of a private address", "64:ff9b::c0a8:101", "private"],
  ["NAT64 of loopback", "64:ff9b::7f00:1", "unusable"],
  ["NAT64 of link-local, cloud metadata", "64:ff9b::a9fe:a9fe", "unusable"],
  ["NAT64 of a network (RFC 8215)", "64:ff9b:1::cb00:7107", "private"],
  ["6to4 of a global address (RFC 3056)", "2002:cb00:7107::1", "global"],
  ["6to4 of a private address", "2002:a00:1::", "private"],
  ["6to4 of loopback", "2002:7f00:1::1", "unusable"],
  ["IPv4-compatible loopback (RFC 4291 §2.5.5.1)", "::7f00:1", "unusable"],
  ["IPv4-compatible private", "::a00:1", "private"],
  ["IPv6 unique local (RFC 4193)", "fc00::1", "private"],
  ["IPv6 unique local, last (RFC 4193)", "fdff::1", "private"],
  ["IPv6 documentation, as any other (RFC 3849)", "2001:db8::7", "global"],
  ["short group that looks like link-local", "fe8::1", "global"],
  ["short group that looks like unique local", "fc::1", "global"],
  ["short group that looks like multicast", "ff::1", "global"],
  ["two short groups that look like unique local", "fc:a::1", "global"],
  ["two short groups that look like multicast", "ff:a:b::1", "global"],
] as const)("scope: %s", (_what, address, scope) => {
  expect(canonicalAddress(address)?.address).toBe(address);
  expect(addressScope(address)).toBe(scope);
});

test.each([
  ["private from anywhere", "10.0.0.5:40000", "203.0.113.7:40000", true],
  ["shared (RFC 6598) from anywhere", "100.64.0.5:40000", "203.0.113.7:40000", true],
  ["unique local IPv6", "[fd00::5]:40000", "203.0.113.7:40000", true],
  ["the observed address", "203.0.113.7:40000", "203.0.113.7:50000", true],
  ["global IPv6 of a host seen over IPv4", "[2001:db8::5]:40000", "203.0.113.7:40000", true],
  ["a third party's IPv4", "198.51.100.9:25", "203.0.113.7:40000", false],
  ["a third party's IPv4 seen over IPv6", "198.51.100.9:25", "[2001:db8::7]:40000", false],
  ["loopback from the outside", "127.0.0.1:22", "203.0.113.7:40000", false],
  ["IPv6 loopback from the outside", "[::1]:22", "203.0.113.7:40000", false],
  ["loopback from a LAN", "127.0.0.1:22", "192.168.1.5:40000", false],
  ["loopback from loopback", "127.0.0.1:22", "127.0.0.1:40000", true],
  ["IPv6 loopback from IPv4 loopback", "[::1]:22", "127.0.0.1:40000", true],
  ["multicast", "224.0.0.1:22", "203.0.113.7:40000", false],
  ["IPv6 link-local", "[fe80::1]:22", "203.0.113.7:40000", false],
  ["unspecified", "0.0.0.0:22", "127.0.0.1:40000", false],
] as const)("offering %s", (_what, candidate, observed, may) => {
  expect(mayOffer(at(candidate), at(observed))).toBe(may);
});
