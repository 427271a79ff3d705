/** A room's secret: the same words make the same room, others another, and a proof holds for one member only. */
import { expect, test } from "bun:test";
import { distrust, newRoomWords, openRoom, prove, secretRoom } from "../../native/link/room.ts";

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

test("accents typed in either way are the same words", async () => {
  const [composed, decomposed] = await Promise.all(["caf\u00e9", "cafe\u0301"].map(secretRoom));
  expect(composed!.id).toBe(decomposed!.id);
});

test("new words are four groups of four that differ each time", () => {
  const all = Array.from({ length: 200 }, newRoomWords);
  for (const words of all) expect(words).toMatch(/^([02-9a-hjkmnp-z]{4}-){3}[02-9a-hjkmnp-z]{4}$/);
  expect(new Set(all).size).toBe(all.length);
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
