/** A room's secret: the same words make the same room, others another, and a proof holds for one member only. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  beginRoom,
  distrust,
  isBondProved,
  isRunSealed,
  openRoom,
  prove,
  proveBond,
  sealRun,
  secretRoom,
  type Bond,
} from "../../native/secure/room.ts";
import type { Role } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const member = { fingerprint: "ab".repeat(32), name: "bob", instance: "0123456789abcdef" };

test("the words alone make the id and the key", async () => {
  const [one, again, other] = await Promise.all(["k7xq", "k7xq", "k7xr"].map(secretRoom));
  expect(one).toEqual(again!);
  expect(one!.id).toMatch(/^[0-9a-f]{64}$/);
  expect(one!.key).toHaveLength(32);
  expect(other!.id).not.toBe(one!.id);
  expect(other!.key).not.toEqual(one!.key);
  expect(Buffer.from(one!.key!).toString("hex")).not.toContain(one!.id.slice(0, 16));
});

test("what was begun early is the same room, for the same words alone, and taken once", async () => {
  const [plain, other] = await Promise.all(["one", "two"].map(secretRoom));
  for (const words of ["one", "two", "lobby", "", undefined]) {
    beginRoom(words);
    expect(await secretRoom("one")).toEqual(plain!);
    expect(await secretRoom("two")).toEqual(other!);
  }
});

test("accents typed in either way are the same words", async () => {
  const [composed, decomposed] = await Promise.all(["caf\u00e9", "cafe\u0301"].map(secretRoom));
  expect(composed!.id).toBe(decomposed!.id);
});

test("a proof holds for its fingerprint, name, instance and room only", async () => {
  const [room, otherRoom] = (await Promise.all(["one", "two"].map(secretRoom))) as [
    Awaited<ReturnType<typeof secretRoom>>,
    Awaited<ReturnType<typeof secretRoom>>,
  ];
  const proof = prove(room.key!, member);
  expect(distrust(room, { ...member, proof })).toBeUndefined();
  const wrong = "its proof that it knows the room's words is wrong";
  expect(distrust(room, { ...member, proof, fingerprint: "cd".repeat(32) })).toBe(wrong);
  expect(distrust(room, { ...member, proof, name: "alice" })).toBe(wrong);
  expect(distrust(room, { ...member, proof, instance: "0123456789abcdee" })).toBe(wrong);
  expect(distrust(otherRoom, { ...member, proof })).toBe(wrong);
  expect(distrust(room, { ...member, proof: proof.toUpperCase() })).toBe(wrong);
  expect(distrust(room, { ...member, proof: "" })).toBe(wrong);
  expect(distrust(room, member)).toContain("no proof");
});

test("what stands in one field can't be moved to the next", async () => {
  const { key } = await secretRoom("one");
  const moved = {
    ...member,
    name: `${member.name}${member.instance[0]}`,
    instance: member.instance.slice(1),
  };
  expect(prove(key!, moved)).not.toBe(prove(key!, member));
});

test("in an open room everyone is believed", () => {
  expect(distrust(openRoom("lobby"), member)).toBeUndefined();
});

// --- a connection ------------------------------------------------------------------------------------------

const [key, exported] = [new Uint8Array(32).fill(7), new Uint8Array(32).fill(9)];
const [alice, bob] = ["alice", "bob"].map((name) => ({
  name,
  fingerprint: "ab".repeat(32),
  instance: "cd".repeat(8),
}));
const atAlice: Bond = { key, self: alice!, peer: bob! };
const atBob: Bond = { key, self: bob!, peer: alice! };

test("what one end shows is what the other expects, and nothing else is", () => {
  const shown = proveBond(atAlice, "controlling", "self", exported);
  expect(shown).toMatch(/^[0-9a-f]{64}$/);
  expect(isBondProved(atBob, "controlled", exported, shown)).toBe(true);
  const others: Record<string, [Bond, Role, Uint8Array]> = {
    "sent back": [atAlice, "controlling", exported],
    "the roles swapped": [atBob, "controlling", exported],
    "another connection": [atBob, "controlled", new Uint8Array(32)],
    "another room": [{ ...atBob, key: new Uint8Array(32) }, "controlled", exported],
    "another peer": [{ ...atBob, peer: { ...alice!, name: "carol" } }, "controlled", exported],
    "another run of the peer": [
      { ...atBob, peer: { ...alice!, instance: "00".repeat(8) } },
      "controlled",
      exported,
    ],
    "another certificate": [
      { ...atBob, peer: { ...alice!, fingerprint: "00".repeat(32) } },
      "controlled",
      exported,
    ],
    "taken for another": [{ ...atBob, self: { ...bob!, name: "dave" } }, "controlled", exported],
  };
  for (const [what, [bond, role, bytes]] of Object.entries(others))
    expect([what, isBondProved(bond, role, bytes, shown)]).toEqual([what, false]);
  for (const short of ["", shown.slice(1), `${shown}0`])
    expect(isBondProved(atBob, "controlled", exported, short)).toBe(false);
});

test("the key of a run is sealed for one member of one room", () => {
  const publicKey = new Uint8Array(91).fill(3);
  const seal = sealRun(key, alice!, publicKey);
  expect(isRunSealed(atBob, { publicKey, seal })).toBe(true);
  expect(isRunSealed(atBob, { publicKey: new Uint8Array(91), seal })).toBe(false);
  expect(isRunSealed({ ...atBob, key: new Uint8Array(32) }, { publicKey, seal })).toBe(false);
  expect(isRunSealed(atAlice, { publicKey, seal })).toBe(false); // it is alice's, not bob's
});
