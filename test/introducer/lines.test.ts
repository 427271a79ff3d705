/** Lines as they are checked before anything else, and written for many. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  lineAbout,
  peek,
  refuseOtherVersion,
  snapshot,
  sortCandidates,
} from "../../native/introducer/lines.ts";
import type { Member } from "../../native/introducer/session.ts";
import { type Endpoint, maxLineBytes, protocolVersion, Refusal } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const at = (...all: string[]) => all as Endpoint[];
const memberOf = (id: number, name: string) => ({ peer: { id, name }, json: "" }) as unknown as Member;

test("who speaks another version is told which of the two to update; what is no registration passes", () => {
  const register = (version: number) => () =>
    refuseOtherVersion(JSON.stringify({ type: "register", version }));
  expect(register(protocolVersion - 1)).toThrow("update the participant");
  expect(register(protocolVersion + 1)).toThrow("update the introducer");
  expect(register(protocolVersion)).not.toThrow();
  expect(() => refuseOtherVersion('{"type":"echo","version":0}')).not.toThrow();
});

test("of a line that is not understood what can be is known", () => {
  expect(peek('{"type":"connect","peer":7,"version":3}')).toEqual({ type: "connect", peer: 7, version: 3 });
  for (const peer of [0, -1, 1.5, "7"])
    expect(peek(JSON.stringify({ type: "connect", peer }))).toEqual({ type: "connect" });
  expect([peek("{"), peek("null"), peek("[1]")]).toEqual([{}, {}, {}]);
  expect(peek(JSON.stringify({ type: "x".repeat(100) })).type).toHaveLength(64);
});

test("others learn each usable candidate once; loopback is refused where it can't be meant", () => {
  const [allowed, ignored] = sortCandidates(
    at("192.168.1.5:1", "192.168.1.5:1", "0.0.0.0:2"),
    "203.0.113.9:4000" as Endpoint,
  );
  expect([allowed, ignored]).toEqual([at("192.168.1.5:1"), at("0.0.0.0:2")]);
  const fromAfar = () => sortCandidates(at("127.0.0.1:1"), "203.0.113.9:4000" as Endpoint);
  expect(fromAfar).toThrow(Refusal);
  expect(sortCandidates(at("127.0.0.1:1"), "127.0.0.1:4000" as Endpoint)[0]).toEqual(at("127.0.0.1:1"));
});

test("a snapshot has everyone once, in lines that are not too long, and says which is the last", () => {
  const members = Array.from({ length: 300 }, (_, n) => memberOf(n + 1, "x".repeat(1_000)));
  const lines = snapshot(members).trimEnd().split("\n");
  expect(Math.max(...lines.map((line) => Buffer.byteLength(line)))).toBeLessThanOrEqual(maxLineBytes);
  const parts = lines.map((line) => JSON.parse(line) as { peers: { id: number }[]; more: boolean });
  expect(parts.flatMap(({ peers }) => peers.map(({ id }) => id))).toEqual(members.map(({ peer }) => peer.id));
  expect(parts.length).toBeGreaterThan(1);
  expect(parts.map(({ more }) => more)).toEqual(parts.map((_, index) => index < parts.length - 1));
});

test("a line about a peer has what is said and the peer", () => {
  expect(JSON.parse(lineAbout(memberOf(1, "anna"), { type: "joined" } as never))).toEqual({
    type: "joined",
    peer: { id: 1, name: "anna" },
  });
});
