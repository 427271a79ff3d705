/** How often one may be introduced to another, and what costs nothing. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { linkedBy } from "../client-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { introduce, type Joined, maps, pairOf, noAnswer, failOnce, linkOnce } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const waits = {
  type: "refused",
  code: "limit",
  request: "connect",
  message: expect.stringMatching(/wait \d+ s$/),
  retryInMs: expect.any(Number),
};

test("one peer is not introduced over and over to who does not link: the asker is told how long to wait", async () => {
  await using scene = introduce({ introductionsPerPair: 2 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using carl = await scene.join("carl");
  for (let n = 0; n < 2; n++) await failOnce(anna, bert);
  anna.send({ type: "connect", peer: bert.id });
  expect<unknown>(await anna.next("refused")).toMatchObject({ ...waits, peer: bert.id });
  await failOnce(anna, carl);
  await failOnce(bert, anna); // who was asked may ask
  await bert.settled();
  expect(bert.types().filter((type) => type === "punch")).toHaveLength(3);
});

test("many strangers together can't have one participant punch all the time", async () => {
  await using scene = introduce({ introductionsPerTarget: 2 });
  using victim = await scene.join("victim");
  for (const name of ["anna", "bert"]) {
    using stranger = await scene.join(name);
    await failOnce(stranger, victim);
  }
  using carl = await scene.join("carl");
  carl.send({ type: "connect", peer: victim.id });
  expect<unknown>(await carl.next("refused")).toMatchObject({ ...waits, peer: victim.id });
  await failOnce(victim, carl);
});

linuxTest("nor can they keep others from meeting him", async () => {
  await using scene = introduce({ introductionsPerTarget: 2, introductionsPerPair: 100 });
  using victim = await scene.join("victim");
  using mallory = await scene.join("mallory", "lobby", true, "127.0.0.2");
  for (let n = 0; n < 2; n++) await failOnce(mallory, victim);
  mallory.send({ type: "connect", peer: victim.id });
  expect<unknown>(await mallory.next("refused")).toMatchObject({ ...waits, peer: victim.id });
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  await failOnce(anna, victim);
  anna.send({ type: "connect", peer: victim.id }); // its first was free, this one waits as all others do
  expect<unknown>(await anna.next("refused")).toMatchObject({ ...waits, peer: victim.id });
});

test("introductions that link cost nothing", async () => {
  await using scene = introduce({ introductionsPerPair: 1, introductionsPerTarget: 1 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  for (let n = 0; n < 3; n++) await linkOnce(anna, bert);
  await failOnce(anna, bert);
  anna.send({ type: "connect", peer: bert.id });
  expect<unknown>(await anna.next("refused")).toMatchObject(waits);
});

test("what has been going on is counted: introductions by outcome and way, refusals by code, joins", async () => {
  await using scene = introduce({ introductionsPerPair: 2 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using carl = await scene.join("carl", "elsewhere");
  await linkOnce(anna, bert);
  await failOnce(anna, bert);
  anna.send({ type: "connect", peer: carl.id });
  await anna.next("refused");
  bert.send({ type: "connect", peer: anna.id });
  await anna.next("punch", ({ role }) => role === "controlled");
  bert.end();
  await anna.next("left");
  const { stats } = scene.introducer;
  expect(stats).toMatchObject({ participants: 2, rooms: 2, joins: 3, relays: 0 });
  expect(stats.introductions).toEqual([
    { outcome: "linked", way: "direct", count: 1 },
    { outcome: "refused-by-peer", way: "direct", count: 1 },
    { outcome: "peer-left", way: "direct", count: 1 },
  ]);
  expect(stats.linkMs.counts.at(-1)).toBe(1);
  expect(stats.refusals).toEqual([{ code: "unknown-peer", count: 1 }]);
});

test("a stranger that claims random ports and fails at once gets no second round while the first runs", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna: stranger, bert: victim } = pair;
  stranger.send({ type: "connect", peer: victim.id });
  const first = await victim.next("punch");
  stranger.send({ ...noAnswer, peer: victim.id, token: first.token });
  stranger.send({ type: "connect", peer: victim.id }); // nor by asking again
  await stranger.settled();
  await victim.settled();
  expect(victim.types().filter((type) => type === "punch")).toHaveLength(1);
  victim.send({ ...noAnswer, peer: stranger.id, token: first.token });
  const second = await victim.next("punch");
  expect(second.round).toBe(2);
  // Who was asked says nothing: the next round comes when this one must be over.
  stranger.send({ ...noAnswer, peer: victim.id, token: second.token });
  expect((await victim.next("punch")).round).toBe(3);
});

test("a birthday that failed is not tried again for a minute, by whichever words; the other side may", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna: stranger, bert: victim } = pair;
  stranger.send({ type: "connect", peer: victim.id });
  const { token } = await stranger.next("punch");
  stranger.send({ ...linkedBy(token), peer: victim.id }); // not true: the victim has not linked
  stranger.send({ type: "connect", peer: victim.id });
  expect<unknown>(await stranger.next("refused")).toMatchObject({ ...waits, peer: victim.id });
  await maps(stranger, "endpoint-independent");
  await failOnce(stranger, victim);
  await maps(stranger, "random");
  stranger.send({ type: "connect", peer: victim.id });
  expect<unknown>(await stranger.next("refused")).toMatchObject(waits);
  await victim.settled();
  expect(
    victim.seen.filter((message) => message.type === "punch" && message.way === "birthday"),
  ).toHaveLength(1);
  victim.send({ type: "connect", peer: stranger.id });
  expect(await victim.next("punch", ({ role }) => role === "controlling")).toMatchObject({ way: "birthday" });
});

test("strangers with random ports have one participant open so many sockets a minute, all together", async () => {
  await using scene = introduce({ failedBirthdaysPerTarget: 2 });
  using victim = await scene.join("victim");
  await maps(victim, "endpoint-independent");
  const strangers: Joined[] = [];
  for (const name of ["anna", "bert", "carl"]) {
    const stranger = await scene.join(name);
    strangers.push(stranger);
    await maps(stranger, "random");
    stranger.send({ type: "connect", peer: victim.id });
    await stranger.settled();
  }
  expect(
    strangers.map((one) => one.types().filter((type) => type === "punch" || type === "refused")),
  ).toEqual([["punch"], ["punch"], ["refused"]]);
  for (const stranger of strangers) stranger[Symbol.dispose]();
});

test("birthdays that link may be had again at once, but not without end", async () => {
  await using scene = introduce({
    birthdaysPerPair: 3,
    introductionsPerPair: 1,
    failedBirthdaysPerTarget: 1,
  });
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  for (let n = 0; n < 3; n++) await linkOnce(anna, bert);
  anna.send({ type: "connect", peer: bert.id });
  expect<unknown>(await anna.next("refused")).toMatchObject(waits);
});
