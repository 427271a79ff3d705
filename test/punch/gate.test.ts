/** What of all that an introducer names we connect to. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Gate, isAsFar } from "../../native/punch/gate.ts";
import { hostAddresses } from "../../native/host/interfaces.ts";
import { addressScope, formatEndpoint, type Endpoint } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const at = (text: string) => text as Endpoint;
const minute = 60_000;

const rows: [string, string, boolean][] = [
  ["198.51.100.2:7000", "203.0.113.1:7000", true],
  ["198.51.100.2:7000", "10.0.0.1:7000", true],
  ["10.0.0.2:7000", "10.0.0.1:7000", true],
  ["[2001:db8::2]:7000", "203.0.113.1:7000", true],
  ["127.0.0.1:7001", "127.0.0.1:7000", true],
  ["10.0.0.2:7000", "203.0.113.1:7000", false],
  ["100.64.0.2:7000", "203.0.113.1:7000", false],
  ["127.0.0.1:22", "203.0.113.1:7000", false],
  ["[::1]:22", "10.0.0.1:7000", false],
  ["[fd00::1]:7000", "203.0.113.1:7000", false],
  ["[64:ff9b::a00:1]:7000", "203.0.113.1:7000", false],
  ["[64:ff9b::7f00:1]:7000", "127.0.0.1:7000", false],
  ["[2002:7f00:1::]:7000", "127.0.0.1:7000", false],
  ["169.254.169.254:7000", "127.0.0.1:7000", false],
  ["224.0.0.1:7000", "127.0.0.1:7000", false],
];

test.each(rows)("a relay at %s, named by an introducer at %s: taken is %p", (relay, introducer, isTaken) => {
  expect(isAsFar(at(relay), at(introducer))).toBe(isTaken);
  expect(new Gate().admits(at(relay), at(introducer))).toBe(isTaken);
});

describe("an introducer out in the Internet", () => {
  const introducer = at("203.0.113.1:443");

  test("has services of other hosts not visited, but for its own kind", () => {
    const gate = new Gate();
    for (const port of [1, 22, 25, 80, 445, 1023])
      expect(gate.admits(at(`198.51.100.7:${port}`), introducer)).toBe(false);
    expect(gate.admits(at("198.51.100.7:443"), introducer)).toBe(true);
    expect(gate.admits(at("203.0.113.1:80"), introducer)).toBe(true); // it is there itself
  });

  test("does not send us to ourselves by whatever address", () => {
    const gate = new Gate();
    for (const { address } of hostAddresses())
      expect([address, gate.admits(formatEndpoint(address, 7000), introducer)]).toEqual([address, false]);
    expect(hostAddresses().some(({ address }) => addressScope(address) === "loopback")).toBe(true);
  });

  test("names few endpoints a minute, and an hour, and those that are known again", () => {
    const clock = { now: 0 };
    const gate = new Gate(() => clock.now);
    const scanned = (ports: number[]) =>
      ports.filter((port) => gate.admits(at(`198.51.100.7:${port}`), introducer)).length;
    const ports = Array.from({ length: 100 }, (_, n) => 2000 + n);
    expect(scanned(ports)).toBe(12);
    expect(scanned(ports.slice(0, 12))).toBe(12);
    const perMinute = Array.from({ length: 8 }, () => ((clock.now += minute), scanned(ports)));
    expect(perMinute).toEqual([24, 36, 48, 60, 64, 64, 64, 64]);
    const again = Array.from({ length: 10 }, () => scanned(ports.slice(0, 64)));
    expect(again.reduce((sum, one) => sum + one)).toBe(480 - 64);
    clock.now += minute;
    // Its own ports come beside.
    const own = ports.filter((port) => gate.admits(at(`203.0.113.1:${port}`), introducer)).length;
    expect(own).toBe(32);
  });
});
