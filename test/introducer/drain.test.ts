/** The end of an introducer: stop and drain. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Client, linkedBy, registration } from "../client-fixture.ts";
import { introduce } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("stop tells everyone, once", async () => {
  const scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  await Promise.all([scene.introducer.stop("so long"), scene.introducer.stop("again")]);
  await Promise.all([anna.ended.promise, bert.ended.promise]);
  expect([anna.types().slice(-1), bert.types()]).toEqual([["bye"], ["registered", "peers", "bye"]]);
  expect(anna.seen.at(-1)).toEqual({ type: "bye", reason: "so long" });
});

/** Whether a connection is accepted there. */
async function isListening(port: number): Promise<boolean> {
  try {
    (await Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } })).terminate();
    return true;
  } catch {
    return false;
  }
}

test("drain sends the idle away at once, each with its own pause, and ends when nothing is under way", async () => {
  await using scene = introduce();
  const all = await Promise.all(Array.from({ length: 20 }, (_, n) => scene.join(`n${n}`)));
  const drained = scene.introducer.drain("so long");
  const byes = await Promise.all(all.map((client) => client.next("bye")));
  expect(byes.every(({ reason }) => reason === "so long")).toBe(true);
  const pauses = byes.map(({ retryInMs }) => retryInMs!);
  expect(Math.min(...pauses)).toBeGreaterThanOrEqual(500);
  expect(Math.max(...pauses)).toBeLessThanOrEqual(3000);
  expect(new Set(pauses).size).toBeGreaterThan(10);
  expect(await isListening(scene.introducer.port)).toBe(false);
  expect(all.flatMap((client) => client.types()).filter((type) => type === "left")).toEqual([]);
  await drained;
  expect(scene.events.filter(({ event }) => event === "draining")).toMatchObject([
    { participants: 20, punching: 0, relays: 0 },
  ]);
});

test("drain lets an introduction end, registers nobody meanwhile, and refuses another introduction", async () => {
  await using scene = introduce(
    { pingMs: 40 },
    { relay: false, metrics: { hostname: "127.0.0.1", port: 0 } },
  );
  const health = async () => (await fetch(`http://127.0.0.1:${scene.introducer.metricsPort}/healthz`)).text();
  expect(await health()).toBe("ok\n");
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using idle = await scene.join("idle");
  anna.send({ type: "connect", peer: bert.id });
  const [{ token }] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  const drained = scene.introducer.drain();
  await idle.next("bye");
  expect(await health()).toBe("the introducer is restarted\n");
  using late = new Client(scene.introducer.port);
  late.send(registration("late"));
  expect((await late.next("bye")).retryInMs).toBeNumber();
  anna.send({ type: "connect", peer: idle.id });
  expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect" });
  for (const [one, other] of [[anna, bert] as const, [bert, anna] as const])
    one.send({ ...linkedBy(token), peer: other.id });
  await Promise.all([anna.next("bye"), bert.next("bye"), drained]);
  expect(scene.events.filter(({ event }) => event === "linked")).toHaveLength(2);
  expect(await isListening(scene.introducer.port)).toBe(false);
});

test("stop while it drains ends it at once", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  await bert.next("punch");
  const drained = scene.introducer.drain();
  await scene.introducer.stop("at once");
  await drained;
  expect(bert.seen.at(-1)).toEqual({ type: "bye", reason: "at once" });
});
