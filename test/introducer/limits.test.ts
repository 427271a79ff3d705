/** What one connection or one address may have: silence, slow readers, places, and what a refusal says. */
import { heapStats } from "bun:jsc";
import { expect, setDefaultTimeout, test } from "bun:test";
import net from "node:net";
import { Client, registration } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { isLinux, introduce, silent } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("more introductions than a person asks for are refused, but the connection lives on", async () => {
  await using scene = introduce({ introductionsPerMinute: 3 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  for (let n = 0; n < 3; n++) anna.send({ type: "connect", peer: bert.id });
  await anna.settled();
  expect(anna.types()).not.toContain("refused");
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect", peer: bert.id });
  await anna.settled();
});

test("who says nothing, or half a line, is closed at the deadline", async () => {
  await using scene = introduce({ registerDeadlineMs: 60 });
  using silent = new Client(scene.introducer.port);
  using slow = new Client(scene.introducer.port);
  slow.raw('{"type":');
  await Promise.all([silent.ended.promise, slow.ended.promise]);
  expect([silent.seen, slow.seen]).toMatchObject([
    [{ code: "not-registered" }],
    [{ code: "not-registered" }],
  ]);
});

test("who answers no ping is closed, and left", async () => {
  await using scene = introduce({ silenceMs: 500 });
  using dead = await scene.join("dead");
  dead.answersPings = false;
  await dead.next("bye");
  expect(await scene.happened("left")).toMatchObject({
    id: dead.id,
    reason: "nothing was heard from it for 0.5 s",
  });
});

test("an introducer that could not listen for so long asks once more before it closes anybody", async () => {
  await using scene = introduce({ silenceMs: 500, pingMs: 100 });
  using anna = await scene.join("anna");
  using dead = await scene.join("dead");
  dead.answersPings = false;
  Bun.sleepSync(700);
  await dead.next("bye");
  expect(scene.introducer.participants.map(({ name }) => name)).toEqual(["anna"]);
  await anna.settled();
});

test("who doesn't read is dropped, and what waits for it is bounded", async () => {
  await using scene = introduce({ unsentBytes: 256 * 1024 });
  using slow = await scene.join("slow");
  await slow.settled();
  slow.pause();
  const before = process.memoryUsage().rss;
  const text = "x".repeat(8000);
  for (let sent = 0; scene.introducer.participants.length === 1 && sent < 100_000; sent++) {
    await scene.introducer.tell(text, slow.id);
  }
  expect(await scene.happened("left")).toMatchObject({ id: slow.id, reason: "it reads too slowly" });
  expect(process.memoryUsage().rss - before).toBeLessThan(100 * 1024 * 1024);
});

test("those of one address that don't read are dropped before others are, and what waits for them is bounded", async () => {
  const limits = { unsentBytes: 1e9, unsentBytesPerAddress: 512 * 1024, ownHostShares: 1 };
  await using scene = introduce(limits);
  using other = await scene.join("other");
  const slow = await Promise.all(
    Array.from({ length: 8 }, (_, n) => scene.join(`slow${n}`, undefined, false, "127.0.0.2")),
  );
  for (const one of slow) one.pause();
  const reasons = () => scene.events.flatMap((event) => (event.event === "left" ? [event.reason] : []));
  const text = "x".repeat(8000);
  // The kernel takes some MiB for each.
  for (let sent = 0; reasons().length < slow.length - 1 && sent < 2_000; sent++) {
    for (const { id } of slow) await scene.introducer.tell(text, id);
    if (sent % 50 === 0) await other.settled();
  }
  expect(reasons().length).toBeGreaterThanOrEqual(slow.length - 1);
  expect(new Set(reasons())).toEqual(new Set(["it reads too slowly"]));
  await other.settled();
  for (const one of slow) one[Symbol.dispose]();
});

test("one address may hold only so many connections", async () => {
  await using scene = introduce({ sessionsPerAddress: 2, ownHostShares: 1 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using third = new Client(scene.introducer.port);
  await third.ended.promise;
  expect(third.seen).toMatchObject([{ type: "refused", code: "limit" }]);
  bert[Symbol.dispose]();
  await anna.next("left");
  third[Symbol.dispose]();
});

test("a refusal says how much is enough, and what an IPv6 site may have", async () => {
  await using scene = introduce({ sessionsPerAddress: 2, ownHostShares: 1 });
  using _anna = await scene.join("anna");
  using _bert = await scene.join("bert");
  using third = new Client(scene.introducer.port);
  const { message } = await third.next("refused");
  expect(message).toBe("2 connections an address (4 times that an IPv6 /48) are enough: close others first");
});

linuxTest("who takes all connections it gets leaves some for others", async () => {
  await using scene = introduce({ sessions: 40, ownHostShares: 1 });
  const { port } = scene.introducer;
  const crowd = Array.from({ length: 30 }, () => new Client(port, "127.0.0.2"));
  const { message } = await Promise.race(crowd.map((one) => one.next("refused")));
  expect(message).toEndWith("while the introducer is this full: close others first");
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  await anna.settled();
  for (const one of crowd) one[Symbol.dispose]();
});

test("one address has its share of a room, and leaves room for others", async () => {
  await using scene = introduce({ roomSize: 3, roomShare: 2, ownHostShares: 1 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using third = new Client(scene.introducer.port);
  third.send(registration("third"));
  expect(await third.next("refused")).toMatchObject({ code: "limit", request: "register" });
  using elsewhere = await scene.join("third", "elsewhere");
  if (isLinux) {
    using other = new Client(scene.introducer.port, "127.0.0.2");
    other.send(registration("other"));
    await other.next("registered");
  }
  using anew = await scene.join("anna"); // who comes back takes its own place
  await Promise.all([bert.settled(), elsewhere.settled(), anew.settled(), anna.ended.promise]);
});

test("a pong counts once, and only that of the ping under way", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "lobby", false);
  const pings = () => anna.seen.flatMap((message) => (message.type === "ping" ? [message.id] : []));
  const roundTrip = () => scene.introducer.participants[0]!.roundTripMs;
  anna.send({ type: "pong", id: 2 });
  anna.send({ type: "pong", id: 99 });
  await anna.settled();
  expect(pings()).toEqual([1]);
  for (const id of [1, 1, 2, 1, 2]) anna.send({ type: "pong", id });
  await anna.settled();
  expect(pings()).toEqual([1, 2, 3]);
  anna.send({ type: "pong", id: 3 });
  await anna.settled();
  expect([pings(), roundTrip()]).toEqual([[1, 2, 3], expect.any(Number)]);
});

test.each([
  ["of one address", { sessionsPerAddress: 2, ownHostShares: 1 }, { told: 8, taken: 2 }],
  ["of all", { sessions: 10, ownHostShares: 1e9 }, { told: 1, taken: 10 }],
])(
  "a flood is not answered: so many %s are told why they are closed, and the others nothing",
  async (_, limits, most) => {
    await using scene = introduce({ acceptsPerSecond: 1e9, ...limits });
    const { introducer } = scene;
    const flood = Array.from({ length: 30 }, () => {
      // Who does not end is counted until it is closed.
      const socket = net.connect({ port: introducer.port, host: "127.0.0.1", allowHalfOpen: true });
      return socket.on("error", () => {}).resume();
    });
    const told = () => introducer.stats.refusals.find(({ code }) => code === "limit")?.count ?? 0;
    await until("all have come", () => most.taken + told() + introducer.stats.turnedAway === flood.length);
    expect([introducer.stats.connections, told()]).toEqual([most.taken + most.told, most.told]);
    for (const one of flood) one.destroy();
  },
);

linuxTest("of addresses that have gone nothing is kept", async () => {
  await using scene = introduce();
  const objects = () => {
    Bun.gc(true);
    return heapStats().objectTypeCounts["Object"] ?? 0;
  };
  const visit = async (last: number) => {
    const addresses = Array.from({ length: 250 }, (_, n) => `127.1.${last}.${n + 1}`);
    const visitors = addresses.map((address) => new Client(scene.introducer.port, address));
    for (const one of visitors) one.raw("what?\n");
    await Promise.all(visitors.map((one) => one.ended.promise));
    scene.events.length = 0;
  };
  await visit(0);
  const before = objects();
  for (let n = 1; n < 8; n++) await visit(n);
  await until("they are forgotten", () => objects() < before);
});
