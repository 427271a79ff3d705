import { expect, test } from "bun:test";
import { isAsFar } from "../../native/punch/introduction.ts";
import type { Endpoint } from "../../protocol.ts";

const at = (text: string) => text as Endpoint;

test.each([
  ["198.51.100.2:7000", "203.0.113.1:7000", true],
  ["198.51.100.2:7000", "10.0.0.1:7000", true],
  ["10.0.0.2:7000", "10.0.0.1:7000", true],
  ["[2001:db8::2]:7000", "203.0.113.1:7000", true],
  ["127.0.0.1:7001", "127.0.0.1:7000", true],
  ["10.0.0.2:7000", "203.0.113.1:7000", false],
  ["127.0.0.1:22", "203.0.113.1:7000", false],
  ["[::1]:22", "10.0.0.1:7000", false],
])("a relay at %s, named by an introducer at %s: taken is %p", (relay, introducer, isTaken) => {
  expect(isAsFar(at(relay), at(introducer))).toBe(isTaken);
});
