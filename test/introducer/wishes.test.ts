/** Whoever registers says whom it wants: at once, or as soon as that one comes. And what a wish can't be used for. */
import { expect, setDefaultTimeout, test } from "bun:test";
import type { Guard } from "../../native/introducer/guard.ts";
import { defaultLimits } from "../../native/introducer/limits.ts";
import { Member, type Session } from "../../native/introducer/session.ts";
import { Wishes } from "../../native/introducer/wishes.ts";
import { maxWants, type Peer } from "../../protocol.ts";
import { Client, registration } from "../client-fixture.ts";
import { introduce } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

type Scene = ReturnType<typeof introduce>;

function enter({ introducer }: Scene, name: string, wants: string[], room?: string): Client {
  const client = new Client(introducer.port);
  client.send({ ...registration(name, room), wants });
  return client;
}
const punches = ({ seen }: Client) =>
  seen.flatMap((one) => (one.type === "punch" ? [`${one.role} ${one.peer.name}`] : []));

test("who is wanted and there is introduced in the flight that answers `register`", async () => {
  await using scene = introduce();
  using bert = await scene.join("bert");
  using anna = enter(scene, "anna", ["bert"]);
  await anna.next("punch");
  expect(anna.types()).toEqual(["registered", "peers", "punch"]);
  await bert.next("punch");
  expect(punches(bert)).toEqual(["controlled anna"]);
});

test("who comes later is introduced as it registers, once", async () => {
  await using scene = introduce();
  using anna = enter(scene, "anna", ["bert"]);
  await anna.next("peers");
  {
    using bert = await scene.join("bert");
    await anna.next("punch");
    expect([punches(anna), punches(bert)]).toEqual([["controlling bert"], ["controlled anna"]]);
  }
  await anna.next("left");
  using again = await scene.join("bert");
  await Promise.all([anna.settled(), again.settled()]);
  expect([punches(anna), punches(again)]).toEqual([["controlling bert"], []]);
});

test("two who want each other are introduced once", async () => {
  await using scene = introduce();
  using anna = enter(scene, "anna", ["bert"]);
  await anna.next("peers");
  using bert = enter(scene, "bert", ["anna"]);
  await bert.next("punch");
  await Promise.all([anna.settled(), bert.settled()]);
  expect([punches(anna), punches(bert)]).toEqual([["controlling bert"], ["controlled anna"]]);
});

test("a wish is for one room, never for oneself, and ends with whoever wished", async () => {
  await using scene = introduce();
  using elsewhere = enter(scene, "carl", ["bert"], "another room");
  await elsewhere.next("peers");
  {
    using anna = enter(scene, "anna", ["anna", "bert"]);
    await anna.next("peers");
    expect(punches(anna)).toEqual([]);
  }
  await scene.happened("left");
  using bert = await scene.join("bert");
  await Promise.all([bert.settled(), elsewhere.settled()]);
  expect([punches(bert), punches(elsewhere)]).toEqual([[], []]);
});

test("a list of wishes that is too long, or names nobody could have, is refused", async () => {
  await using scene = introduce();
  for (const wants of [Array.from({ length: maxWants + 1 }, (_, index) => `n${index}`), ["two words"], [7]]) {
    using client = enter(scene, "anna", wants as string[]);
    expect(await client.next("refused")).toMatchObject({ code: "bad-field" });
  }
});

test("a wish costs what `connect` costs: beyond that it is refused, and the others are served", async () => {
  await using scene = introduce({ introductionsPerMinute: 1 });
  using bert = await scene.join("bert");
  using carl = await scene.join("carl");
  using anna = enter(scene, "anna", ["bert", "carl"]);
  const refused = await anna.next("refused");
  expect(refused).toMatchObject({ code: "limit", request: "connect", peer: carl.id });
  await Promise.all([anna.settled(), bert.settled()]);
  expect([punches(anna), punches(bert)]).toEqual([["controlling bert"], ["controlled anna"]]);
});

test("a crowd that waits for one name gets no more of it than the limit says", async () => {
  const wishesPerName = 2;
  await using scene = introduce({ wishesPerName });
  const crowd = Array.from({ length: 5 }, (_, index) => enter(scene, `anna${index}`, ["bert"]));
  await Promise.all(crowd.map((one) => one.next("peers")));
  using bert = await scene.join("bert");
  await bert.settled();
  expect(punches(bert)).toHaveLength(wishesPerName);
  for (const one of crowd) one[Symbol.dispose]();
});

test("whose wish meets a ghost hears that it is gone, and of the one who comes in its place", async () => {
  await using scene = introduce();
  using ghost = await scene.join("bert", undefined, false);
  ghost.pause(); // its host has lost power
  using anna = enter(scene, "anna", ["bert"]);
  await anna.next("punch");
  expect(await anna.next("failed")).toMatchObject({ peer: ghost.id, reason: "peer-left" });
  using bert = await scene.join("bert");
  expect((await anna.next("joined")).peer).toMatchObject({ name: "bert", id: bert.id });
});

test("thousands of names, and floods of wishes, are refused like any line, and leave nothing behind", async () => {
  await using scene = introduce();
  using greedy = new Client(scene.introducer.port);
  const names = Array.from({ length: 3_000 }, (_, index) => `n${index}`);
  greedy.send({ ...registration("greedy"), wants: names });
  expect(await greedy.next("refused")).toMatchObject({ code: "bad-field", request: "register" });
  await greedy.ended.promise;
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ ...registration("anna"), wants: ["bert"] }); // a second register adds no wish
  expect(await anna.next("refused")).toMatchObject({ code: "already-registered" });
  await bert.settled();
  expect(punches(bert)).toEqual([]);
});

// --- what is kept, by a clock of the test's own ---

class Kept {
  now = 0;
  readonly asked: string[] = [];
  readonly wishes: Wishes;

  constructor() {
    const guard: Pick<Guard, "serve"> = { serve: (_, work) => work() };
    const ask = (a: Member, b: Member) => void this.asked.push(`${a.peer.name} ${b.peer.name}`);
    this.wishes = new Wishes(defaultLimits, guard, ask, () => this.now);
  }

  register(name: string, wants: string[] = []): Member {
    const member = new Member({} as Session, { name } as Peer, "room", "any");
    this.wishes.registered(member, wants, []);
    return member;
  }
}

test("a wish is kept for a while, and what is over is not kept", () => {
  const kept = new Kept();
  kept.register("anna", ["bert"]);
  kept.now = defaultLimits.wishKeptMs;
  kept.register("bert");
  expect([kept.asked, kept.wishes.size]).toEqual([[], 0]);
  kept.register("carl", ["dora"]);
  kept.now -= 1;
  kept.register("dora");
  expect(kept.asked).toEqual(["carl dora"]);
});

test("of those who have left nothing is kept, whatever they wished for", () => {
  const kept = new Kept();
  const names = Array.from({ length: maxWants }, (_, index) => `ghost${index}`);
  const members = Array.from({ length: 1000 }, (_, index) => kept.register(`anna${index}`, names));
  expect(kept.wishes.size).toBe(maxWants * defaultLimits.wishesPerName);
  for (const member of members) kept.wishes.forget(member);
  expect(kept.wishes.size).toBe(0);
});
