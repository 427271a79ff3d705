/** One introduction: punch, its end, both asking at once, and many of them. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { startDelays } from "../../native/introducer/round.ts";
import { linkedBy } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { introduce, type Joined, noAnswer } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("connect sends both a punch with one token and opposite roles", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect([a.role, b.role, a.peer.id, b.peer.id]).toEqual(["controlling", "controlled", bert.id, anna.id]);
  expect(a.token).toMatch(/^[0-9a-f]{32}$/);
  expect(b.token).toBe(a.token);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[bert.id], [anna.id]]);
});

test("both ask at once: one punch, also when one side is linked before the other's connect is read", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...linkedBy(token), peer: bert.id });
  await scene.happened("linked");
  bert.send({ type: "connect", peer: anna.id });
  await Promise.all([anna.settled(), bert.settled()]);
  expect([...anna.types(), ...bert.types()].filter((type) => type === "punch")).toHaveLength(2);
});

test("a failure is told to the other side, and a retry works at once", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  const report = { type: "failed", token, reason: "timed-out" } as const;
  anna.send({ ...report, peer: bert.id });
  anna.send({ type: "connect", peer: bert.id });
  expect(await bert.next("failed")).toEqual({ ...report, peer: anna.id });
  const second = await bert.next("punch", (punch) => punch.token !== token);
  bert.send({ ...report, peer: anna.id }); // late: of the first punch, so it must not end the second
  bert.send({ ...report, peer: anna.id, token: second.token });
  expect(await anna.next("failed")).toMatchObject({ token: second.token });
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
});

test("a link is listed until it ends, and can be made anew at once", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const [{ token }] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  const report = linkedBy(token);
  anna.send({ ...report, peer: bert.id });
  bert.send({ ...report, peer: anna.id });
  await Promise.all([anna.settled(), bert.settled()]);
  const lists = () => scene.introducer.participants.map(({ linked, punching }) => ({ linked, punching }));
  expect(lists()).toEqual([
    { linked: [2], punching: [] },
    { linked: [1], punching: [] },
  ]);
  bert.send({ type: "unlinked", peer: anna.id, reason: "disconnected" });
  bert.send({ type: "connect", peer: anna.id });
  expect(await bert.next("punch")).toMatchObject({ role: "controlling" });
  expect(lists()[1]).toEqual({ linked: [], punching: [1] });
});

test("who leaves while punching is reported as peer-left, before left", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  bert[Symbol.dispose]();
  expect(await anna.next("failed")).toMatchObject({ peer: bert.id, token, reason: "peer-left" });
  await anna.next("left");
  expect(anna.types().filter((type) => type === "failed" || type === "left")).toEqual(["failed", "left"]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[]]);
});

test("a punch nobody reports on is forgotten", async () => {
  await using scene = introduce({ punchDeadlineMs: -2000, pingMs: 40 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const first = await anna.next("punch");
  const isPunching = () => scene.introducer.participants.some(({ punching }) => punching.length > 0);
  await until("the punch is forgotten", () => !isPunching());
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("punch")).not.toEqual(first);
});

test("the side nearer to the introducer waits", () => {
  expect([
    startDelays(20, 100),
    startDelays(100, 20),
    startDelays(undefined, 30),
    startDelays(0, 90_000),
  ]).toEqual([
    [40, 0],
    [0, 40],
    [15, 0],
    [2000, 0],
  ]);
});

test("three pings at once, then one a period", async () => {
  await using scene = introduce({ pingMs: 50 });
  using anna = await scene.join("anna");
  for (const id of [1, 2, 3, 4, 5]) expect((await anna.next("ping")).id).toBe(id);
});

/** What two hand-made clients say, one after the other, when both want the same link: A asked first. */
const orders: [string, (pair: { a: Joined; b: Joined }, token: () => string) => (() => void)[]][] = [
  ["B's connect before B's punch is read", ({ a, b }) => [() => b.send({ type: "connect", peer: a.id })]],
  [
    "A linked, then B's connect, then B linked",
    ({ a, b }, token) => [
      () => a.send({ ...linkedBy(token()), peer: b.id }),
      () => b.send({ type: "connect", peer: a.id }),
      () => b.send({ ...linkedBy(token()), peer: a.id }),
    ],
  ],
  [
    "B's connect, then B linked, then A linked",
    ({ a, b }, token) => [
      () => b.send({ type: "connect", peer: a.id }),
      () => b.send({ ...linkedBy(token()), peer: a.id }),
      () => a.send({ ...linkedBy(token()), peer: b.id }),
    ],
  ],
  [
    "B's connect twice, A's once more, both linked",
    ({ a, b }, token) => [
      () => b.send({ type: "connect", peer: a.id }),
      () => a.send({ type: "connect", peer: b.id }),
      () => b.send({ type: "connect", peer: a.id }),
      () => a.send({ ...linkedBy(token()), peer: b.id }),
      () => b.send({ ...linkedBy(token()), peer: a.id }),
    ],
  ],
];

test.each(orders)("both ask: one introduction: %s", async (_what, steps) => {
  await using scene = introduce();
  using a = await scene.join("anna");
  using b = await scene.join("bert");
  a.send({ type: "connect", peer: b.id });
  const { token } = await a.next("punch");
  for (const step of steps({ a, b }, () => token)) {
    step();
    await Promise.all([a.settled(), b.settled()]);
  }
  const punches = [a, b].map((one) => one.types().filter((type) => type === "punch"));
  expect(punches).toEqual([["punch"], ["punch"]]);
});

test("what is late about an earlier punch changes nothing of the next", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  await bert.next("punch");
  anna.send({ ...linkedBy(token), peer: bert.id });
  anna.send({ type: "unlinked", peer: bert.id, reason: "connection-lost" });
  anna.send({ type: "connect", peer: bert.id });
  const second = await bert.next("punch");
  expect(second.token).not.toBe(token);
  bert.send({ ...linkedBy(token), peer: anna.id });
  bert.send({ ...noAnswer, peer: anna.id, token });
  bert.send({ type: "connect", peer: anna.id }); // answered by the second
  await Promise.all([anna.settled(), bert.settled()]);
  expect(bert.types().filter((type) => type === "punch")).toHaveLength(2);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[2], [1]]);
});

test("who has no part in the introductions of others is not slowed down by them", async () => {
  const many = { introductionsPerMinute: 1e9, introductionsPerTarget: 1e9, messageBurst: 1e9 };
  await using scene = introduce(many);
  const clients: Joined[] = [];
  for (let n = 0; n < 60; n++) clients.push(await scene.join(`n${n}`, "crowd"));
  using bystander = await scene.join("bystander");
  // What this thread had of the processor, in µs: the introducer and all its clients are in it, and nobody else.
  const look = async () => {
    const from = process.threadCpuUsage();
    for (let n = 0; n < 200; n++) {
      bystander.send({ type: "mapping", mapping: "unknown" });
      bystander.send({ type: "measured", token: "0".repeat(32) });
      bystander.send({ ...noAnswer, peer: 1, token: "0".repeat(32) });
    }
    await bystander.settled();
    const { user, system } = process.threadCpuUsage(from);
    return user + system;
  };
  /** Of many, for the kernel counts by its ticks, which are some ms. */
  const looks = async () => {
    let sum = 0;
    for (let n = 0; n < 20; n++) sum += await look();
    return Math.max(10_000, sum);
  };
  await looks();
  const alone = await looks();
  for (const [n, client] of clients.entries()) {
    for (const other of clients.slice(0, n)) client.send({ type: "connect", peer: other.id });
  }
  await Promise.all(clients.map((client) => client.settled()));
  expect(scene.introducer.participants.flatMap(({ punching }) => punching)).toHaveLength(60 * 59);
  // Walking through all of them takes it a hundred times as long.
  expect(await looks()).toBeLessThan(10 * alone);
  for (const client of clients) client[Symbol.dispose]();
});
