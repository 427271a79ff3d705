/** When the asker's first SYN leaves, over a grid of delays: what comes of it is reckoned as NATs and TCP would have it. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { startDelays } from "../../native/introducer/round.ts";
import { Distances, headStartMs } from "../../native/punch/head-start.ts";
import type { Endpoint } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** One-way delays of asker, peer and introducer to the middle of the Internet, as in `bench link`. */
const sites = [0, 2, 5, 10, 20, 40, 100];
const grid = sites.flatMap((a) => sites.flatMap((b) => sites.map((i) => ({ a, b, i }))));
/** What a peer takes to begin, which is more in a program's first punch. */
const lags = [0, 3, 8];

interface Starts {
  askerMs: number;
  peerMs: number;
  /** One way between the two. */
  distanceMs: number;
}

/** When the asker has the connection: counted from `connect`, behind NATs that drop what is not expected. */
function openedMs({ askerMs, peerMs, distanceMs: d }: Starts): number {
  // The asker's SYN finds the peer's mapping: the answer comes as soon as the peer's own SYN.
  if (askerMs + d >= peerMs) return Math.max(peerMs + d, askerMs + 2 * d);
  // It was lost. Then the peer's SYN is answered, and the answer to that ends it.
  return peerMs + 3 * d;
}

/** Of the best that can be: the asker's SYN reaches the peer's NAT in the moment in which the peer's leaves it. */
const bestMs = (wayMs: number, d: number) =>
  openedMs({ askerMs: Math.max(0, wayMs - d), peerMs: wayMs, distanceMs: d });

function situation({ a, b, i }: (typeof grid)[number]) {
  const [ours, theirs] = [2 * (a + i), 2 * (b + i)];
  return { ours, theirs, wayMs: (ours + theirs) / 2, distanceMs: a + b };
}

test("with a distance that is known both SYNs cross, and the connection is there 8 ms after the first moment", () => {
  for (const cell of grid) {
    const { ours, theirs, wayMs, distanceMs } = situation(cell);
    const askerMs = headStartMs(ours, theirs, distanceMs);
    for (const lagMs of lags) {
      const peerMs = wayMs + lagMs;
      expect(askerMs + distanceMs).toBeGreaterThanOrEqual(peerMs);
      const lateMs = openedMs({ askerMs, peerMs, distanceMs }) - bestMs(wayMs, distanceMs);
      expect(lateMs).toBeLessThanOrEqual(8);
    }
  }
});

test("with one that is not known it costs less than 0.15 of the floor, and what the peer may take", () => {
  for (const cell of grid) {
    const { ours, theirs, wayMs, distanceMs } = situation(cell);
    const askerMs = headStartMs(ours, theirs);
    const lateMs = openedMs({ askerMs, peerMs: wayMs, distanceMs }) - bestMs(wayMs, distanceMs);
    const floorMs = wayMs + 3 * distanceMs;
    // Peers that are nearer than assumed: a round trip between the two, which is short then.
    const isNear = distanceMs < 0.4 * wayMs;
    expect(lateMs).toBeLessThanOrEqual(isNear ? 2 * distanceMs + 8 : 0.15 * floorMs + 8);
  }
});

test("the peer's SYN never comes before the asker's has left, so its NAT's mapping is there", () => {
  for (const cell of grid) {
    const { ours, theirs, wayMs, distanceMs } = situation(cell);
    // Ports are measured at a distance, so there is a way; and 8 ms are for the peer.
    expect(headStartMs(ours, theirs)).toBeLessThanOrEqual(wayMs + 8);
    expect(headStartMs(ours, theirs, distanceMs)).toBeLessThanOrEqual(wayMs + 8);
    // Without a head start both start at the same moment.
    const [ourDelay, theirDelay] = startDelays(ours, theirs);
    expect(ours / 2 + ourDelay).toBeCloseTo(theirs / 2 + theirDelay, 0);
  }
});

test("what was measured is remembered by both addresses, the latest only", () => {
  const distances = new Distances();
  const at = (address: string, port = 1) => `${address}:${port}` as Endpoint;
  distances.keep(at("203.0.113.1"), at("203.0.113.2"), 20);
  expect(distances.of(at("203.0.113.1", 5), at("203.0.113.2", 6))).toBe(20);
  expect(distances.of(at("203.0.113.9"), at("203.0.113.2"))).toBeUndefined();
  for (let peer = 1; peer <= 256; peer++)
    distances.keep(at("192.0.2.1"), at(`198.51.${peer >> 8}.${peer & 255}`), 1);
  expect(distances.of(at("203.0.113.1"), at("203.0.113.2"))).toBeUndefined();
  expect(distances.of(at("192.0.2.1"), at("198.51.1.0"))).toBe(1);
});
