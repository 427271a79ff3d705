/** The rounds of an introduction: what each follows from, who may end it, and when the first begins. */
import { expect, setDefaultTimeout } from "bun:test";
import { Introducer } from "../../introducer.ts";
import { at, Client, linkedBy, registration } from "../client-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { introduce, isLinux, type Joined, maps, pairOf, noAnswer, silent } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(8);
setDefaultTimeout(testMs);

test("random with random, one of them with a mapped port: a direct round", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "random");
  const { anna, bert } = pair;
  const mapped = at("127.0.0.1:41000");
  bert.send({ type: "mapped", endpoint: mapped });
  await bert.settled();
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("punch")).toMatchObject({ way: "direct", last: true, peer: { mapped } });
});

test.each(["anna", "bert"] as const)(
  "a failed round is followed by the next, whoever of the two reports: here %s, who asked or was asked",
  async (reporter) => {
    await using scene = introduce();
    using pair = await pairOf(scene, "random", "endpoint-independent");
    const { anna, bert } = pair;
    anna.send({ type: "connect", peer: bert.id });
    const tokens = new Set<string>();
    for (const round of [1, 2, 3]) {
      const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
      const schedule = { way: "birthday", round, last: round === 3, token: a.token };
      expect([a, b]).toMatchObject([
        { role: "controlling", ...schedule, deadlineMs: b.deadlineMs },
        { role: "controlled", ...schedule },
      ]);
      expect([a.own, a.theirs, b.own, b.theirs]).toEqual([undefined, undefined, undefined, undefined]);
      tokens.add(a.token);
      const report = { ...noAnswer, token: a.token };
      if (reporter === "anna") anna.send({ ...report, peer: bert.id });
      else bert.send({ ...report, peer: anna.id });
    }
    expect(tokens.size).toBe(3);
    const [other, from] = reporter === "anna" ? [bert, anna] : [anna, bert];
    expect(await other.next("failed")).toEqual({
      ...noAnswer,
      peer: from.id,
      token: [...tokens].at(-1)!,
    });
    await from.settled();
    expect([anna, bert].map((one) => one.types().filter((type) => type === "failed").length)).toEqual(
      reporter === "anna" ? [0, 1] : [1, 0],
    );
    expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
  },
);

test("only the first report on a round counts: the other's comes too late, and so does one of no punch", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token });
  const second = await bert.next("punch", ({ round }) => round === 2);
  bert.send({ ...noAnswer, peer: anna.id, token });
  bert.send({ ...noAnswer, peer: anna.id, token: "f".repeat(32) });
  bert.send({ type: "measured", token });
  await bert.settled();
  await anna.settled();
  const rounds = (client: Client) =>
    client.seen.flatMap((message) => (message.type === "punch" ? [message.round] : []));
  expect([rounds(anna), rounds(bert)]).toEqual([
    [1, 2],
    [1, 2],
  ]);
  expect(second.token).not.toBe(token);
});

test("nobody throws anybody off: what is reported while measuring, or twice, or by others counts for nothing", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  using carl = await scene.join("carl");
  anna.send({ type: "connect", peer: bert.id });
  const first = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token: first.token });
  anna.send({ ...noAnswer, peer: bert.id, token: first.token });
  const { token } = await bert.next("measure");
  for (const _ of Array(9)) bert.send({ ...noAnswer, peer: anna.id, token });
  carl.send({ ...noAnswer, peer: anna.id, token });
  await Promise.all([bert.settled(), carl.settled()]);
  for (const one of [anna, bert]) one.send({ type: "measured", token });
  const second = await bert.next("punch", ({ round }) => round === 2);
  expect(second).toMatchObject({ way: "fresh", token, last: false });
  for (const one of [anna, bert]) {
    one.send({ ...noAnswer, peer: one === anna ? bert.id : anna.id, token });
    await one.settled();
  }
  const third = await anna.next("measure", (measure) => measure.token !== token);
  for (const one of [anna, bert]) one.send({ type: "measured", token: third.token });
  const inThird = { way: "predicted", last: false };
  expect(await anna.next("punch", ({ round }) => round === 3)).toMatchObject(inThird);
  bert.send({ ...noAnswer, peer: anna.id, token: third.token });
  const fourth = await anna.next("measure", (measure) => measure.way === "fresh" && measure.token !== token);
  for (const one of [anna, bert]) one.send({ type: "measured", token: fourth.token });
  expect(await anna.next("punch", ({ round }) => round === 4)).toMatchObject({ way: "fresh", last: true });
  anna.send({ ...noAnswer, peer: bert.id, token: fourth.token });
  bert.send({ ...noAnswer, peer: anna.id, token: fourth.token });
  expect(await bert.next("failed")).toEqual({ ...noAnswer, peer: anna.id, token: fourth.token });
  // Every line that came has passed parseToParticipant: see Client.
  await Promise.all([anna.settled(), bert.settled()]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], [], []]);
});

test("a failure that another round can't mend ends the first", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token, last } = await anna.next("punch");
  expect(last).toBe(false);
  anna.send({ ...noAnswer, reason: "refused-by-peer", peer: bert.id, token });
  expect(await bert.next("failed")).toMatchObject({ reason: "refused-by-peer", token });
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch")).toHaveLength(1);
});

test.each([
  ["too little", 300, [true]],
  ["enough", 900, [false, true]],
])("a round is the last when %s is left for another", async (_what, spareMs, lasts) => {
  await using roomy = introduce({ punchDeadlineMs: 60_000 });
  using others = await pairOf(roomy, "random", "endpoint-independent");
  others.anna.send({ type: "connect", peer: others.bert.id });
  const { deadlineMs: roundMs } = await others.anna.next("punch");
  const punchDeadlineMs = roundMs * lasts.length + spareMs;
  await using scene = introduce({ punchDeadlineMs });
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token, last, deadlineMs } = await anna.next("punch");
  expect(last).toBe(lasts[0]!);
  expect(deadlineMs).toBeLessThanOrEqual(punchDeadlineMs);
  anna.send({ ...noAnswer, peer: bert.id, token });
  const next = last ? "failed" : "punch";
  expect(await bert.next(next, (message) => !("round" in message) || message.round === 2)).toBeDefined();
});

linuxTest.each([
  ["random", "random"],
  ["sequential", "random"],
] as const)("%s and %s mappings: who asks hears at once, the other nothing", async (ofAnna, ofBert) => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = Object.assign(new Client(scene.introducer.port, "127.0.0.2"), { id: 2 });
  bert.send(registration("bert"));
  expect(await bert.next("registered")).toMatchObject({ id: 2, public: bert.endpoint });
  await maps(anna, ofAnna);
  await maps(bert, ofBert);
  bert.send({ type: "connect", peer: anna.id });
  const { token, ...failed } = await bert.next("failed");
  expect(failed).toMatchObject({ peer: anna.id, reason: "both-mappings-random" });
  expect(token).toMatch(/^[0-9a-f]{32}$/);
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch" || type === "failed")).toEqual([]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
});

test("random mappings at one address may be behind one NAT: one direct round", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "random");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("punch")).toMatchObject({ way: "direct", last: true });
});

const ways = (client: Joined) =>
  client.seen.flatMap((message) => (message.type === "punch" ? [`${message.way} ${message.round}`] : []));

test("who has just come is introduced at once; if its NAT keeps its port, the round goes on", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token, last } = await anna.next("punch");
  expect(last).toBe(false);
  await maps(anna, "endpoint-independent");
  await maps(bert, "endpoint-independent");
  await anna.settled();
  expect([ways(anna), ways(bert)]).toEqual([["direct 1"], ["direct 1"]]);
  anna.send({ ...noAnswer, peer: bert.id, token });
  expect(await bert.next("measure")).toMatchObject({ way: "fresh" }); // the plan of two such NATs
});

test("once a NAT is known to be another than was guessed, the plan begins anew", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  await maps(anna, "endpoint-independent");
  await maps(bert, "random");
  await Promise.all([anna.settled(), bert.settled()]);
  expect([ways(anna), ways(bert)]).toEqual([
    ["direct 1", "birthday 1"],
    ["direct 1", "birthday 1"],
  ]);
  await maps(bert, "endpoint-independent"); // said again, it begins nothing
  await anna.settled();
  expect(ways(anna)).toHaveLength(2);
});

test("what a NAT did before is a better guess: ports are predicted at once, and a wrong guess is corrected", async () => {
  await using scene = introduce();
  using bert = await silent(scene, "bert");
  await maps(bert, "endpoint-independent");
  using anna = new Client(scene.introducer.port);
  anna.send({ ...registration("anna"), mapping: "sequential", wants: ["bert"] });
  expect(await anna.next("measure")).toMatchObject({ way: "predicted" });
  expect(bert.types()).toContain("joined");
  anna.send({ type: "mapping", mapping: "endpoint-independent" });
  expect(await anna.next("punch")).toMatchObject({ way: "direct", round: 1, last: false });
});

test("two whose NATs are guessed to be random are not refused for that", async () => {
  await using scene = introduce();
  const guess = { mapping: "random" } as const;
  using bert = new Client(scene.introducer.port, isLinux ? "127.0.0.2" : "127.0.0.1");
  bert.send({ ...registration("bert"), ...guess });
  await bert.next("peers");
  using anna = new Client(scene.introducer.port);
  anna.send({ ...registration("anna"), ...guess, wants: ["bert"] });
  expect(await anna.next("punch")).toMatchObject({ way: "direct" });
});

test("a link by the guessed round is not cut off by what is known later", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...linkedBy(token), peer: bert.id });
  await anna.settled();
  await maps(bert, "random");
  await anna.settled();
  expect(ways(anna)).toEqual(["direct 1"]);
});

linuxTest.each([
  ["unknown", "direct 1", "no-candidate-answered"],
  ["random", "direct 1", "both-mappings-random"],
] as const)(
  "two guessed to keep their ports, and both %s: both are told the end",
  async (mapping, way, reason) => {
    await using scene = introduce();
    using anna = await silent(scene, "anna");
    using bert = await silent(scene, "bert", "127.0.0.2");
    anna.send({ type: "connect", peer: bert.id });
    const { token } = await anna.next("punch");
    await maps(anna, mapping);
    await maps(bert, mapping);
    expect([ways(anna), ways(bert)]).toEqual([[way], [way]]);
    anna.send({ ...noAnswer, peer: bert.id, token });
    for (const one of [anna, bert]) expect(await one.next("failed")).toMatchObject({ token, reason });
    expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
  },
);

test("where nothing can be measured, the first round begins at once", async () => {
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, probePorts: [] });
  using anna = new Client(introducer.port);
  anna.send(registration("anna"));
  await anna.next("registered");
  using bert = new Client(introducer.port);
  bert.send(registration("bert"));
  bert.send({ type: "connect", peer: 1 });
  await bert.settled();
  expect(bert.types()).toContain("punch");
});

test("who leaves before the first round is reported as peer-left", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  await anna.settled();
  bert[Symbol.dispose]();
  expect(await anna.next("failed")).toMatchObject({ peer: bert.id, reason: "peer-left" });
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[]]);
});

test("both ask before the first round: one punch, in which the first to ask nominates", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  bert.send({ type: "connect", peer: anna.id });
  await bert.settled();
  anna.send({ type: "connect", peer: bert.id });
  await maps(anna, "unknown");
  await maps(bert, "unknown");
  await Promise.all([anna.settled(), bert.settled()]);
  const roles = (client: Client) =>
    client.seen.flatMap((message) => (message.type === "punch" ? [message.role] : []));
  expect([roles(anna), roles(bert)]).toEqual([["controlled"], ["controlling"]]);
});
