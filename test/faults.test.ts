/**
 * Mistakes of the introducer's own, made for it: an `onEvent` that throws, a message that can't be written. Each costs
 * the session that is served, is an `error` event, and harms nobody else, in whatever callback it happens. An error that
 * nobody catches fails these tests by itself.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { Introducer } from "../introducer.ts";
import type { IntroducerEvent, IntroducerOptions } from "../native/introducer/events.ts";
import type { Limits } from "../native/introducer/limits.ts";
import { Client, linkedBy, registration } from "./client-fixture.ts";
import { until } from "./native-fixture.ts";
import { noRedis, RedisServer } from "./introducer/redis-fixture.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const reason = "an error in the introducer";

/** With an `onEvent` that throws at some events. */
function introduce(
  options: IntroducerOptions & { limits?: Partial<Limits> } = {},
  fails: (event: IntroducerEvent) => boolean = () => false,
) {
  const events: IntroducerEvent[] = [];
  const onEvent = (event: IntroducerEvent) => {
    events.push(event);
    if (fails(event)) throw new Error(`nobody hears of ${event.event}`);
  };
  const introducer = Introducer.start({ host: "127.0.0.1", port: 0, probePorts: [], onEvent, ...options });
  const errors = () => events.filter((event) => event.event === "error");
  const join = async (name: string, room = "lobby", address = "127.0.0.1") => {
    const client = new Client(introducer.port, address);
    client.send(registration(name, room));
    const { id } = await client.next("registered");
    await client.next("peers");
    client.send({ type: "mapping", mapping: "unknown" });
    return Object.assign(client, { id });
  };
  const { port } = introducer;
  return { introducer, port, events, errors, join, [Symbol.asyncDispose]: () => introducer.stop() };
}

const write = JSON.stringify;
/** No message of that type can be written, `times` times. */
function unwritable(type: string, times = Infinity): Disposable {
  let left = times;
  const spy = spyOn(JSON, "stringify").mockImplementation(((value: unknown, ...rest: []) => {
    if ((value as { type?: string } | undefined)?.type === type && left-- > 0)
      throw new Error(`no ${type} can be written`);
    return write(value, ...rest);
  }) as typeof JSON.stringify);
  return { [Symbol.dispose]: () => spy.mockRestore() };
}

const worlds = noRedis === undefined ? ["alone", "with a Redis"] : ["alone"];

describe.each(worlds)("%s", (world) => {
  /** One Redis has the rooms of all tests. */
  let redis: RedisServer | undefined;
  const shared: IntroducerOptions = {};
  beforeAll(async () => {
    if (world === "alone") return;
    redis = await RedisServer.start();
    shared.redis = redis.url;
  });
  afterAll(() => redis?.[Symbol.asyncDispose]());
  const room = () => crypto.randomUUID();

  test("an `onEvent` that throws while somebody registers: that one is sent away with a reason", async () => {
    const fails = (event: IntroducerEvent) => event.event === "joined" && event.name === "eve";
    await using scene = introduce(shared, fails);
    const where = room();
    using anna = await scene.join("anna", where);
    using eve = new Client(scene.port);
    eve.send(registration("eve", where));
    expect(await eve.next("bye")).toMatchObject({ reason });
    await eve.ended.promise;
    expect(await anna.next("left")).toMatchObject({ id: expect.any(Number) });
    await until("it is gone", () => scene.introducer.stats.connections === 1);
    expect(scene.introducer.participants.map(({ name }) => name)).toEqual(["anna"]);
    expect(scene.errors()).toEqual([
      {
        event: "error",
        address: expect.stringContaining("127.0.0.1:"),
        message: "nobody hears of joined",
      },
    ]);
    await anna.settled();
  });

  test("a registration that fails half way leaves nothing behind", async () => {
    await using scene = introduce(shared);
    const where = room();
    using anna = await scene.join("anna", where);
    {
      using _ = unwritable("registered", 1);
      using eve = new Client(scene.port);
      eve.send(registration("eve", where));
      expect(await eve.next("bye")).toMatchObject({ reason });
      await eve.ended.promise;
    }
    await until("it is gone", () => scene.introducer.stats.connections === 1);
    using again = await scene.join("eve", where); // its name is its own, and its place empty
    expect(scene.introducer.participants.map(({ name }) => name)).toEqual(["anna", "eve"]);
    expect(scene.errors()).toHaveLength(1);
    await Promise.all([anna.settled(), again.settled()]);
  });

  test("whatever an `onEvent` throws at, also at errors, others are served", async () => {
    await using scene = introduce(shared, ({ event }) => event !== "shared" && event !== "listening");
    const where = room();
    for (const name of ["anna", "bert"]) {
      using client = new Client(scene.port);
      client.send(registration(name, where));
      expect(await client.next("bye")).toMatchObject({ reason });
      await client.ended.promise;
    }
    await until("both are gone", () => scene.introducer.stats.connections === 0);
    expect(scene.introducer.stats).toMatchObject({ participants: 0, rooms: 0 });
  });
});

test("a ping that can't be sent, by a timer, costs who should have had it", async () => {
  await using scene = introduce({ limits: { pingMs: 200 } });
  using anna = await scene.join("anna");
  await anna.next("ping", ({ id }) => id === 3);
  using _ = unwritable("ping", 1);
  expect(await anna.next("bye")).toMatchObject({ reason });
  using bert = await scene.join("bert");
  await bert.settled();
  expect(scene.errors()).toMatchObject([{ message: "no ping can be written" }]);
});

test("a change that can't be told, by a timer, costs whose it is", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  await Promise.all([anna.settled(), bert.settled()]);
  using _ = unwritable("updated", 1);
  anna.send({ type: "mapping", mapping: "random" });
  expect(await anna.next("bye")).toMatchObject({ reason });
  expect(await bert.next("left")).toMatchObject({ id: anna.id });
  bert.send({ type: "mapping", mapping: "random" });
  await bert.next("updated");
  expect(scene.errors()).toMatchObject([{ message: "no updated can be written" }]);
});

test("an introduction that can't begin, by a timer, costs the asker; the other hears that it has left", async () => {
  await using scene = introduce({ limits: { measureMs: 100 } });
  using eve = await scene.join("eve");
  using anna = await scene.join("anna");
  using carl = await scene.join("carl");
  eve.send({ type: "mapping", mapping: "sequential" });
  anna.send({ type: "mapping", mapping: "endpoint-independent" });
  await Promise.all([eve.settled(), anna.settled()]);
  eve.send({ type: "connect", peer: anna.id });
  await eve.next("measure"); // and never says what it measured
  {
    using _ = unwritable("punch", 1);
    expect(await eve.next("bye")).toMatchObject({ reason });
  }
  await anna.next("left");
  anna.send({ type: "connect", peer: carl.id });
  await Promise.all([anna.next("punch"), carl.next("punch")]);
  expect(scene.errors()).toMatchObject([{ message: "no punch can be written" }]);
});

test("a relay that can't be offered, by a timer, costs the asker; others are offered theirs", async () => {
  await using scene = introduce();
  using eve = await scene.join("eve");
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using carl = await scene.join("carl");
  using _ = unwritable("relay", 1);
  eve.send({ type: "connect", peer: anna.id });
  await anna.next("punch");
  bert.send({ type: "connect", peer: carl.id });
  expect(await eve.next("bye")).toMatchObject({ reason });
  await Promise.all([bert.next("relay"), carl.next("relay")]);
  expect(scene.errors()).toMatchObject([{ message: "no relay can be written" }]);
});

test("a connection back whose end can't be told costs who asked, and not the next one", async () => {
  await using scene = introduce({ limits: { connectBacks: 1 } });
  using anna = await scene.join("anna");
  {
    using _ = unwritable("filtering", 1);
    anna.send({ type: "connect-back" });
    expect(await anna.next("bye")).toMatchObject({ reason });
  }
  using bert = await scene.join("bert");
  bert.send({ type: "connect-back" });
  await bert.next("filtering");
  expect(scene.errors()).toMatchObject([{ message: "no filtering can be written" }]);
});

test("who leaves is told to all, though one can't be told of a failure", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using carl = await scene.join("carl");
  {
    using eve = await scene.join("eve");
    for (const { id } of [anna, bert]) eve.send({ type: "connect", peer: id });
    await Promise.all([anna.next("punch"), bert.next("punch")]);
    using _ = unwritable("failed", 1);
    eve.end();
    const { id } = await carl.next("left");
    expect(id).toBe(eve.id);
    await bert.next("failed");
  }
  await Promise.all([anna.settled(), bert.settled()]);
  expect(scene.errors()).toMatchObject([{ message: "no failed can be written" }]);
});

// No function of the program is replaced here, so these run at once.

test.concurrent("a relayed link of which nobody can hear is closed, and the next goes on", async () => {
  let times = 0;
  const fails = ({ event }: IntroducerEvent) => event === "relaying" && ++times === 1;
  await using scene = introduce({ limits: { ownHostShares: Infinity } }, fails);
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  for (const isBroken of [true, false]) {
    anna.send({ type: "connect", peer: bert.id });
    const [{ token }] = await Promise.all([anna.next("relay"), bert.next("relay")]);
    using one = new Client(scene.port);
    using other = new Client(scene.port);
    one.send({ type: "relay", token });
    other.send({ type: "relay", token });
    if (isBroken) await Promise.all([one.ended.promise, other.ended.promise]);
    else await Promise.all([one.next("relaying"), other.next("relaying")]);
    for (const side of [anna, bert])
      side.send({ ...linkedBy(token), peer: side === anna ? bert.id : anna.id });
    await Promise.all([anna.settled(), bert.settled()]);
    const { token: direct } = anna.seen.findLast((one) => one.type === "punch")!;
    for (const side of [anna, bert])
      side.send({ ...linkedBy(direct), peer: side === anna ? bert.id : anna.id });
  }
  expect(scene.errors()).toMatchObject([{ message: "nobody hears of relaying" }]);
});

test.concurrent(
  "a failure that nobody can hear of, by a timer, costs the asker",
  async () => {
    const fails = ({ event }: IntroducerEvent) => event === "failed";
    await using scene = introduce({ limits: { punchDeadlineMs: 1 } }, fails);
    using eve = await scene.join("eve");
    using anna = await scene.join("anna", "lobby", "127.0.0.2");
    for (const one of [anna, eve]) {
      one.send({ type: "mapping", mapping: "random" });
      await one.settled();
    }
    eve.send({ type: "connect", peer: anna.id });
    await Promise.all([eve.next("relay"), anna.next("relay")]); // which nobody takes
    expect(await eve.next("bye")).toMatchObject({ reason });
    expect(await anna.next("failed")).toMatchObject({ reason: "timed-out" });
    await anna.settled();
    expect(scene.errors()).toMatchObject([{ message: "nobody hears of failed" }]);
  },
  testMs,
);
