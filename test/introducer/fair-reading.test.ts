/** Many lines and many connections: each is read in its turn, and others are not kept waiting. */
import { expect, setDefaultTimeout, test } from "bun:test";
import net from "node:net";
import { Introducer } from "../../introducer.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { Client, registration } from "../client-fixture.ts";
import { toil, unreadAt, until } from "../native-fixture.ts";
import { encode } from "../../protocol.ts";
import { linuxTest } from "../needing-fixture.ts";
import { introduce, isLinux } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

linuxTest("who opens connection after connection does not keep others waiting", async () => {
  await using scene = introduce({ ownHostShares: 1 });
  const { port } = scene.introducer;
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  const flood = Array.from({ length: 600 }, () => new Client(port, "127.0.0.2"));
  await Promise.race(flood.map(({ ended }) => ended.promise));
  using bert = await scene.join("bert", "lobby", true, "127.0.0.4");
  anna.send({ type: "connect", peer: bert.id });
  await Promise.all([anna.next("punch"), bert.next("punch")]);
  const { connections, turnedAway } = scene.introducer.stats;
  expect(turnedAway).toBeGreaterThan(0);
  expect(connections - 2).toBeLessThan(flood.length / 2);
  for (const one of flood) one[Symbol.dispose]();
});

linuxTest("who connects again and again is turned away; others are not", async () => {
  await using scene = introduce({ ownHostShares: 1, sessions: 1e6, sessionsPerAddress: 1e6 });
  const { introducer } = scene;
  using crowd = new DisposableStack();
  for (let n = 0; n < 20 && introducer.stats.turnedAway < 50; n++) {
    // Faster than anybody may, however slow the machine is.
    for (let at = 0; at < 100; at++) crowd.use(new Client(introducer.port, "127.0.0.3"));
    await Bun.sleep(0);
  }
  await until("many are turned away", () => introducer.stats.turnedAway >= 50);
  using anna = await scene.join("anna", "lobby", true, "127.0.0.4");
  using bert = await scene.join("bert", "lobby", true, "127.0.0.5");
  anna.send({ type: "connect", peer: bert.id });
  await Promise.all([anna.next("punch"), bert.next("punch")]);
});

linuxTest("who is refused has been heard to the end, however much is held of its address", async () => {
  const errors: IntroducerEvent[] = [];
  const onEvent = (event: IntroducerEvent) => {
    if (event.event === "refused") toil(3);
    if (event.event === "error") errors.push(event);
  };
  const limits = { ownHostShares: 1, processorMs: 4 };
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits, onEvent });
  const { port } = introducer;
  const crowd = Array.from({ length: 12 }, () =>
    net.connect({ port, host: "127.0.0.1", localAddress: "127.0.0.3", allowHalfOpen: true }),
  );
  await until("all are in", () => introducer.stats.connections === crowd.length);
  for (const one of crowd) one.resume().write("what?\nand more\n");
  await until("all are gone", () => introducer.stats.connections === 0);
  expect([introducer.stats.refusals, introducer.stats.waiting]).toEqual([
    [{ code: "bad-line", count: 12 }],
    0,
  ]);
  expect(errors).toEqual([]);
  for (const one of crowd) one.destroy();
});

linuxTest("of those who come together, who has said much of late has its turn last", async () => {
  const refused: string[] = [];
  const onEvent = (event: IntroducerEvent) => {
    if (event.event !== "refused") return;
    refused.push(event.address.replace(/:\d+$/, ""));
    toil(3); // more than each may have, less than a share of what is left
    if (refused.length > 1) return;
    for (const other of others) other.raw("what?\n"); // at once, and so all three wait to be read next
  };
  const [slow, busy, quiet] = ["127.0.0.3", "127.0.0.4", "127.0.0.5"];
  const limits = { ownHostShares: 1, processorMs: 4 };
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits, onEvent });
  using crowd = new DisposableStack();
  const [first, ...others] = [busy, slow, busy, quiet].map((address) =>
    crowd.use(new Client(introducer.port, address)),
  );
  await until("all are in", () => introducer.stats.connections === 4);
  first!.raw("what?\n");
  await until("all have been heard", () => refused.length === 4);
  expect(refused).toEqual([busy, slow, quiet, busy]);
});

linuxTest("what takes long once is not all charged to whose line it was", async () => {
  let toils = 1;
  const onEvent = ({ event }: IntroducerEvent) => {
    if (event === "refused" && toils-- > 0) toil(200); // as the compiler may
  };
  const options = { host: "127.0.0.1", port: 0, onEvent };
  await using introducer = Introducer.start({ ...options, limits: { ownHostShares: 1 } });
  using anna = new Client(introducer.port, "127.0.0.3");
  anna.send(registration("anna"));
  await anna.next("registered");
  anna.raw("what?\n");
  await anna.next("refused");
  using bert = new Client(introducer.port, "127.0.0.4");
  bert.send(registration("bert"));
  await bert.next("registered");
  anna.send({ type: "echo", text: "at once" });
  await bert.settled();
  await bert.settled();
  expect(anna.seen.at(-1)).toEqual({ type: "echo", text: "at once" });
});

linuxTest("lines that never end, from one address, are bounded, and others' are read", async () => {
  await using scene = introduce({ heldBytesPerAddress: 100_000, ownHostShares: 1 });
  const halfLine = new Uint8Array(30_000).fill(120);
  const crowd = Array.from({ length: 6 }, () => new Client(scene.introducer.port, "127.0.0.2"));
  for (const one of crowd) one.raw(halfLine);
  const ended = await Promise.race(crowd.map((one) => one.ended.promise.then(() => one)));
  expect(ended.seen).toMatchObject([{ type: "refused", code: "limit" }]);
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  const text = "x".repeat(8000);
  anna.raw(encode({ type: "echo", text }).slice(0, 7000));
  anna.raw(encode({ type: "echo", text }).slice(7000));
  expect(await anna.next("echo")).toEqual({ type: "echo", text });
  for (const one of crowd) one[Symbol.dispose]();
});

const echoes = (client: Client) =>
  client.seen.flatMap((message) => (message.type === "echo" ? [message.text] : []));
const numbers = (count: number) => Array.from({ length: count }, (_, n) => String(n));
const echoLines = (count: number) =>
  numbers(count)
    .map((text) => encode({ type: "echo", text }))
    .join("");

test("what one says at once is read slice by slice, all of it, and others have their turn between", async () => {
  await using scene = introduce({ messageBurst: 1e9, badLines: 1e9 });
  using mallory = await scene.join("mallory");
  const count = 1_000;
  const heard = () => scene.events.filter(({ event }) => event === "refused").length;
  let [before, mostAtOnce] = [0, 0];
  const turn = () => {
    mostAtOnce = Math.max(mostAtOnce, heard() - before);
    before = heard();
    if (before < count) setImmediate(turn);
  };
  turn();
  mallory.raw('{"type":"nonsense"}\n'.repeat(count));
  await until("all is heard", () => before === count);
  expect(mostAtOnce).toBeLessThan(count / 2);
});

test("too many lines are read later, all and in order, and nobody is closed for it", async () => {
  await using scene = introduce({ messageBurst: 500, messagesPerSecond: 5000, silenceMs: 500, pingMs: 50 });
  using anna = await scene.join("anna", "elsewhere");
  using mallory = await scene.join("mallory");
  mallory.raw(echoLines(5000));
  await anna.settled();
  expect(echoes(mallory).length).toBeLessThan(5000);
  await mallory.next("echo", ({ text }) => text === "4999");
  expect(echoes(mallory)).toEqual(numbers(5000));
  expect(scene.introducer.participants.map(({ name }) => name)).toContain("mallory");
});

test("while lines wait to be read, TCP makes their sender wait, and the introducer holds little", async () => {
  await using scene = introduce({ messageBurst: 2000, messagesPerSecond: 10, pingMs: 200 });
  using anna = await scene.join("anna");
  const mallory = net.connect({ port: scene.introducer.port, host: "127.0.0.1" });
  mallory.on("error", () => {});
  mallory.resume();
  mallory.write(encode(registration("mallory")));
  await anna.next("joined");
  const part = Buffer.from(`${encode({ type: "echo", text: "x".repeat(8000) }).repeat(125)}`);
  let accepted = 0;
  while (mallory.write(part, () => (accepted += part.length)) || mallory.writableLength < 32 * part.length);
  for (let seen = -1; seen !== accepted;) {
    seen = accepted;
    for (const _ of Array(20)) await anna.settled();
  }
  expect(accepted).toBeLessThan(20 * part.length);
  if (isLinux) expect(Math.max(...unreadAt(scene.introducer.port))).toBeLessThan(150 * 1024);
  expect(scene.introducer.participants).toHaveLength(2);
  mallory.destroy();
  await anna.next("left");
});

test("who has said too much and ends is heard to its end", async () => {
  await using scene = introduce({ messagesPerSecond: 1000 });
  using anna = await scene.join("anna");
  anna.answersPings = false; // it says nothing more
  anna.raw(echoLines(300));
  anna.end();
  await anna.ended.promise;
  expect(echoes(anna)).toEqual(numbers(300));
});

test("what waits to be read is bounded in all", async () => {
  await using scene = introduce({ heldBytes: 1000 });
  using anna = await scene.join("anna");
  using mallory = await scene.join("mallory");
  mallory.raw(echoLines(300));
  expect(await mallory.next("refused")).toMatchObject({ code: "limit" });
  await mallory.ended.promise;
  await anna.next("left");
});
