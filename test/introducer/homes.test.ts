/** Where rooms live, asked of a real Redis that is killed, stopped and started again. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Homes, type HomesOwner, leaseMs } from "../../native/introducer/redis/homes.ts";
import { defaultLimits } from "../../native/introducer/limits.ts";
import { until } from "../native-fixture.ts";
import { describeNeeding } from "../needing-fixture.ts";
import { noRedis, RedisServer } from "./redis-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** One introducer's side, with those rooms at home. */
function homes(url: string, address: string, { here = [] as string[], askMs = patienceMs } = {}) {
  const rooms = new Set(here);
  const movedOut: string[] = [];
  const notices: string[] = [];
  const told: boolean[] = [];
  const owner: HomesOwner = {
    rooms: () => rooms,
    counts: () => ({ participants: 2 * rooms.size, rooms: rooms.size, firstId: 0 }),
    movedOut: (room, to) => {
      rooms.delete(room);
      movedOut.push(`${room} ${to}`);
    },
    notice: (text) => void notices.push(text),
    sharing: (isShared) => void told.push(isShared),
  };
  const one = new Homes(url, address, owner, askMs);
  const is = (isShared: boolean) =>
    until(`Redis is ${isShared ? "there" : "away"}`, () => told.at(-1) === isShared, patienceMs);
  /** As who comes to a room: it is at home here if that is what Redis says. */
  const enter = async (room: string) => {
    const home = await one.find(room);
    if (one.isOwn(home)) rooms.add(room);
    return home;
  };
  return { one, rooms, movedOut, notices, is, enter, [Symbol.asyncDispose]: () => one.close() };
}

/** Asks again and again. */
async function answers(what: string, isTrue: () => Promise<boolean>): Promise<void> {
  const giveUpAt = performance.now() + patienceMs;
  while (!(await isTrue())) {
    if (performance.now() > giveUpAt) throw new Error(`never happened: ${what}`);
    await Bun.sleep(50);
  }
}

/** How many of the rooms are at home at more or fewer than one of them. */
const torn = (rooms: string[], all: { rooms: Set<string> }[]) =>
  rooms.filter((room) => all.filter((one) => one.rooms.has(room)).length !== 1);

describeNeeding(noRedis)("homes", () => {
  test.concurrent("a room has one home, whoever asks at once, until it is released", async () => {
    await using redis = await RedisServer.start();
    await using a = homes(redis.url, "a:1");
    await using b = homes(redis.url, "b:2");
    await Promise.all([a.is(true), b.is(true)]);
    const rooms = Array.from({ length: 100 }, (_, at) => `room ${at}`);
    const answers = await Promise.all(rooms.flatMap((room) => [a.enter(room), b.enter(room)]));
    expect(torn(rooms, [a, b])).toEqual([]);
    rooms.forEach((_, at) => expect(answers[2 * at]).toBe(answers[2 * at + 1]!));
    const [own] = a.rooms;
    a.rooms.delete(own!);
    await a.one.release([own!]);
    expect(await b.one.find(own!)).toBe("b:2");
  });

  test.concurrent("a lease that nobody renews is free again; that of the same address at once", async () => {
    await using redis = await RedisServer.start();
    const fixture = `${import.meta.dir}/homes-fixture.ts`;
    const child = Bun.spawn([process.execPath, fixture, redis.url, "a:1", "room"], { stdout: "pipe" });
    await using b = homes(redis.url, "b:2");
    await b.is(true);
    for await (const chunk of child.stdout) if (chunk.includes(10)) break; // it has the lease
    child.kill("SIGKILL");
    await child.exited;
    expect(await b.enter("room")).toBe("a:1");
    {
      await using again = homes(redis.url, "a:1");
      await again.is(true);
      expect(await again.one.find("room")).toBe("a:1");
    }
    expect(await redis.endLeases("a:1", leaseMs)).toBe(1);
    await answers("the lease is free", async () => (await b.enter("room")) === "b:2");
  });

  test.concurrent(
    "while Redis is away rooms are taken on trust, and are whole again when it is back, empty",
    async () => {
      await using redis = await RedisServer.start();
      await using a = homes(redis.url, "a:1");
      await using b = homes(redis.url, "b:2");
      await Promise.all([a.is(true), b.is(true)]);
      const rooms = Array.from({ length: 50 }, (_, at) => `room ${at}`);
      await Promise.all(rooms.slice(0, 25).map((room) => a.enter(room)));
      await redis.kill();
      await Promise.all([a.is(false), b.is(false)]);
      // The first half lives at a; now people come to both introducers, to all rooms.
      await Promise.all(rooms.flatMap((room) => [a.enter(room), b.enter(room)]));
      expect(torn(rooms, [a, b])).toEqual(rooms);
      await redis.run();
      await Promise.all([a.is(true), b.is(true)]);
      await until("all rooms are whole", () => torn(rooms, [a, b]).length === 0, patienceMs);
      expect(a.movedOut.length + b.movedOut.length).toBe(rooms.length);
      // Who is sent there is at home there.
      for (const room of rooms) {
        const home = a.rooms.has(room) ? "a:1" : "b:2";
        expect([await a.one.find(room), await b.one.find(room)]).toEqual([home, home]);
      }
    },
  );

  test.concurrent(
    "an introducer that was stopped for longer than its leases last sends its people on",
    async () => {
      await using redis = await RedisServer.start();
      const fixture = `${import.meta.dir}/homes-fixture.ts`;
      await using child = Bun.spawn([process.execPath, fixture, redis.url, "a:1", "room"], {
        stdout: "pipe",
      });
      const said: string[] = [];
      void (async () => {
        for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) said.push(chunk);
      })();
      await using b = homes(redis.url, "b:2");
      await b.is(true);
      await until("it has the lease", () => said.join("").includes("room a:1"), patienceMs);
      child.kill("SIGSTOP");
      const isFree = async () => {
        await redis.endLeases("a:1", leaseMs);
        return (await b.enter("room")) === "b:2";
      };
      await answers("the lease is free", isFree);
      child.kill("SIGCONT");
      await until("its people are sent on", () => said.join("").includes("moved room b:2"), patienceMs);
    },
  );

  test.concurrent(
    "a Redis that is stopped holds nobody up for longer than it may, and is found again",
    async () => {
      await using redis = await RedisServer.start();
      await using a = homes(redis.url, "a:1", { askMs: defaultLimits.homeMs });
      await a.is(true);
      redis.signal("SIGSTOP");
      const from = performance.now();
      const answer = await a.one.find("room");
      const waitedMs = performance.now() - from;
      expect(answer).toBe("a:1");
      expect(waitedMs).toBeLessThan(patienceMs / 4);
      await a.is(false);
      redis.signal("SIGCONT");
      await a.is(true);
    },
  );

  test.concurrent("each knows of the others, and what one says to everybody comes to them", async () => {
    await using redis = await RedisServer.start();
    await using a = homes(redis.url, "a:1", { here: ["x", "y"] });
    await using b = homes(redis.url, "b:2", { here: ["z"] });
    await Promise.all([a.is(true), b.is(true)]);
    await answers("they know of each other", async () => (await a.one.others()).length === 1);
    expect(await a.one.others()).toEqual([{ address: "b:2", participants: 2, rooms: 1, firstId: 0 }]);
    await redis.command("PUBLISH", "punch:all", "no JSON");
    await redis.command("PUBLISH", "punch:all", `{"by":"c:3","text":7}`);
    await redis.command("HSET", "punch:live", "c:3", "garbage", "d:4", "99999999999 1 1 x");
    await a.one.broadcast("hello");
    await until("it has come", () => b.notices.length > 0, patienceMs);
    expect([a.notices, b.notices]).toEqual([[], ["hello"]]);
    expect(await a.one.others()).toHaveLength(1);
    await b.one.leave();
    await answers("it has left", async () => (await a.one.others()).length === 0);
    await answers("its room is free", async () => (await a.one.find("z")) === "a:1");
  });
});
