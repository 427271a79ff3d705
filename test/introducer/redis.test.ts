/** Introducers that share a Redis, while those and it are killed, stopped and started again. */
import { expect, spyOn, test } from "bun:test";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { RedisRooms } from "../../native/introducer/redis/rooms.ts";
import type { Guest, Occupant } from "../../native/introducer/rooms.ts";
import { formatEndpoint, type Peer, splitEndpoint } from "../../protocol.ts";
import { Client, registration } from "../client-fixture.ts";
import { People, thisHost } from "../lab/people.ts";
import { Driven, link, met } from "../driven-fixture.ts";
import { until } from "../native-fixture.ts";
import { freePort, noRedis, RedisServer } from "./redis-fixture.ts";
import { describeNeeding } from "../needing-fixture.ts";

/** How long what needs beats, or another connection, may take. */
const patienceMs = 14_000;
const timeoutMs = 30_000;

function introduce(redis: string, port = 0) {
  const events: IntroducerEvent[] = [];
  const onEvent = (event: IntroducerEvent) => void events.push(event);
  const introducer = Introducer.start({ host: "127.0.0.1", port, probePorts: [], redis, onEvent });
  const count = (name: IntroducerEvent["event"]) => events.filter(({ event }) => event === name).length;
  const shared = (times = 1) => until("rooms are shared", () => count("shared") === times, patienceMs);
  return { introducer, port: introducer.port, count, shared, [Symbol.asyncDispose]: () => introducer.stop() };
}

/** Two that share a Redis of their own. */
async function introducers() {
  const owned = new AsyncDisposableStack();
  const redis = owned.use(await RedisServer.start());
  const [one, two] = [owned.use(introduce(redis.url)), owned.use(introduce(redis.url))];
  await Promise.all([one.shared(), two.shared()]);
  return { redis, one, two, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Registers, and sees the room. */
async function enter(port: number, name: string, room = "lobby", instance?: string) {
  const client = new Client(port);
  client.send({ ...registration(name, room), ...(instance !== undefined && { instance }) });
  const { id } = await client.next("registered");
  client.send({ type: "mapping", mapping: "unknown" });
  const { peers } = await client.next("peers");
  return Object.assign(client, { id, others: peers.map((peer) => peer.name) });
}

const lefts = (client: Client) => client.seen.filter(({ type }) => type === "left").length;

/** The rooms alone, and those whom they tell of. */
function share(url: string) {
  const guests = new Map<number, Guest>();
  const displaced: number[] = [];
  const told: boolean[] = [];
  const mistakes: string[] = [];
  const rooms = new RedisRooms(url, {
    joined: (guest) => {
      if (guests.has(guest.peer.id)) mistakes.push(`${guest.peer.id} joined twice`);
      guests.set(guest.peer.id, guest);
    },
    changed: () => {},
    left: ({ peer }) => void (guests.delete(peer.id) || mistakes.push(`${peer.id} left twice`)),
    displaced: (id) => void displaced.push(id),
    received: () => {},
    undelivered: () => {},
    answer: async () => ({ place: formatEndpoint("127.0.0.1", 1), count: 0, participants: [] }),
    sharing: (isShared) => void told.push(isShared),
  });
  const isShared = () => until("they are shared", () => told.at(-1) === true, patienceMs);
  return { rooms, guests, displaced, told, mistakes, isShared, [Symbol.asyncDispose]: () => rooms.close() };
}

/** Two of those, and who is in their lobbies is known. */
async function lobbies() {
  const owned = new AsyncDisposableStack();
  const redis = owned.use(await RedisServer.start());
  const [one, two] = [owned.use(share(redis.url)), owned.use(share(redis.url))];
  await Promise.all([one.isShared(), two.isShared()]);
  await Promise.all([one.rooms.open("lobby"), two.rooms.open("lobby")]);
  return { redis, one, two, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** The same Redis, further away. */
function away(port: number, oneWayMs: number) {
  const server = createServer((near) => {
    const far = connect(port, "127.0.0.1");
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const)
      from
        .on("data", (bytes) => setTimeout(() => to.write(bytes), oneWayMs))
        .on("close", () => to.destroy())
        .on("error", () => to.destroy());
  }).listen(0, "127.0.0.1");
  const { port: own } = server.address() as AddressInfo;
  return { url: `redis://127.0.0.1:${own}`, [Symbol.dispose]: () => server.close() };
}

/** The same Redis by a way that can be cut, and be there again. */
function breakable(port: number) {
  const open = new Set<Socket>();
  let isCut = false;
  const server = createServer((near) => {
    if (isCut) return void near.destroy();
    const far = connect(port, "127.0.0.1");
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(from);
      from
        .on("close", () => (open.delete(from), to.destroy()))
        .on("error", () => to.destroy())
        .pipe(to);
    }
  }).listen(0, "127.0.0.1");
  const { port: own } = server.address() as AddressInfo;
  const cut = () => {
    isCut = true;
    for (const socket of open) socket.destroy();
  };
  const mend = () => (isCut = false);
  return { url: `redis://127.0.0.1:${own}`, cut, mend, [Symbol.dispose]: () => (cut(), server.close()) };
}

let instances = 0;
function occupant(id: number, room = "lobby", name = `n${id}`): Occupant {
  const instance = (++instances).toString(16).padStart(16, "0");
  const own = { id, name, instance, fingerprint: "ab".repeat(32), private: [], since: 0 };
  const peer: Peer = { ...own, public: formatEndpoint("127.0.0.1", 1 + (id % 60_000)), mapping: "unknown" };
  return { peer, room, hasMeasured: false, takesRelay: true, position: undefined };
}

describeNeeding(noRedis)("introducers that share a Redis", () => {
  test.concurrent(
    "one is killed: its participants have left elsewhere within 12 s, and may come back to another",
    async () => {
      await using redis = await RedisServer.start();
      await using house = introduce(redis.url);
      const program = join(import.meta.dir, "..", "..", "introducer.ts");
      const free = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
      free.stop(true);
      const args = [String(free.port), "--host", "127.0.0.1", "--probe-ports", "none", "--json"];
      await using child = Bun.spawn([process.execPath, program, ...args], {
        env: { ...process.env, REDIS_URL: redis.url },
        stdin: "ignore",
        stdout: "pipe",
      });
      const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
      for (let said = ""; !said.includes('"shared"');) said += (await lines.read()).value;
      await house.shared();
      using anna = await enter(house.port, "anna");
      using bert = await enter(free.port, "bert");
      using carl = await enter(free.port, "carl");
      expect([bert.others, carl.others.toSorted()]).toEqual([["anna"], ["anna", "bert"]]);
      child.kill("SIGKILL");
      const killedAt = performance.now();
      anna.send({ type: "connect", peer: carl.id });
      expect(await anna.next("failed")).toMatchObject({ peer: carl.id, reason: "peer-left" }); // and no waiting
      using again = await enter(house.port, "bert");
      expect(await anna.next("left")).toEqual({ type: "left", id: bert.id });
      await anna.next("joined", ({ peer }) => peer.id === again.id);
      expect(await anna.next("left")).toEqual({ type: "left", id: carl.id });
      expect(performance.now() - killedAt).toBeLessThan(12_000);
    },
    timeoutMs,
  );

  test.concurrent(
    "one that ends tells the others at once",
    async () => {
      await using redis = await RedisServer.start();
      await using house = introduce(redis.url);
      const other = introduce(redis.url);
      using anna = await enter(house.port, "anna");
      using bert = await enter(other.port, "bert");
      await anna.next("joined");
      await other.introducer.drain();
      expect(await anna.next("left")).toEqual({ type: "left", id: bert.id });
      expect(await redis.command("DBSIZE")).toBe(4); // the lobby's three, and who lives
    },
    timeoutMs,
  );

  test.concurrent(
    "Redis is killed and started again, empty: nobody has left, rooms go on, and all are together again",
    async () => {
      await using scene = await introducers();
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      using bert = await enter(two.port, "bert");
      await anna.next("joined");
      await redis.kill();
      await until("both have noticed", () => one.count("warning") + two.count("warning") === 2, patienceMs);
      using carl = await enter(one.port, "carl");
      expect(carl.others.toSorted()).toEqual(["anna", "bert"]);
      anna.send({ type: "connect", peer: carl.id });
      await Promise.all([anna.next("punch"), carl.next("punch")]);
      anna.send({ type: "connect", peer: bert.id });
      expect((await anna.next("refused")).message).toContain(
        "another introducer, which can't be reached now",
      );
      // Both have one of that name now: only one of them can keep it.
      using twin = await enter(one.port, "twin", "lobby", "1".repeat(16));
      using double = await enter(two.port, "twin", "lobby", "2".repeat(16));
      await redis.run();
      await Promise.all([one.shared(2), two.shared(2)]);
      await bert.next("joined", ({ peer }) => peer.id === carl.id);
      const byes = () => [twin, double].filter(({ seen }) => seen.some(({ type }) => type === "bye"));
      await until("one of them is sent away", () => byes().length > 0, patienceMs);
      const [loser] = byes();
      using back = new Client(loser === twin ? one.port : two.port);
      back.send({ ...registration("twin"), instance: (loser === twin ? "1" : "2").repeat(16) });
      expect(await back.next("refused")).toMatchObject({ code: "name-taken", name: "twin-2" });
      // Whom nobody has told of is found when the grace is over, and whoever had left would have left by then.
      await redis.command("SET", "punch:live:other", "1");
      const silent = `other mr ${JSON.stringify(occupant(77).peer)}`;
      await redis.command("HSET", "punch:{lobby}:who", "77", silent);
      await Promise.all([anna, bert].map((client) => client.next("joined", ({ peer }) => peer.id === 77)));
      const left = [anna, bert].flatMap(({ seen }) => seen.filter((message) => message.type === "left"));
      expect(left.every(({ id }) => id === loser!.id)).toBe(true);
      expect([byes().length, one.count("warning"), two.count("warning")]).toEqual([1, 1, 1]);
      anna.send({ type: "connect", peer: bert.id });
      await bert.next("punch");
    },
    timeoutMs,
  );

  test.concurrent(
    "a Redis that answers nothing holds up nobody for more than a second, and no known room at all",
    async () => {
      await using scene = await introducers();
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      using bert = await enter(two.port, "bert");
      await anna.next("joined");
      redis.signal("SIGSTOP");
      using carl = await enter(one.port, "carl");
      using dora = await enter(one.port, "dora", "elsewhere");
      expect([dora.others, one.count("warning")]).toEqual([[], 0]); // long before anybody has noticed
      anna.send({ type: "connect", peer: bert.id });
      await until("it is noticed", () => one.count("warning") + two.count("warning") === 2, patienceMs);
      using emil = await enter(one.port, "emil", "elsewhere");
      expect(emil.others).toEqual(["dora"]);
      redis.signal("SIGCONT");
      await Promise.all([one.shared(2), two.shared(2)]);
      await bert.next("joined", ({ peer }) => peer.id === carl.id);
      using fred = await enter(two.port, "fred", "elsewhere");
      expect(fred.others.toSorted()).toEqual(["dora", "emil"]);
      expect(lefts(anna) + lefts(bert)).toBe(0);
    },
    timeoutMs,
  );

  test.concurrent(
    "4,000 changes at once by four, whose subscriptions are killed meanwhile: all see the same in the end",
    async () => {
      await using redis = await RedisServer.start();
      const all = Array.from({ length: 4 }, () => share(redis.url));
      await Promise.all(all.map((one) => one.isShared()));
      const names = ["red", "blue", "lobby"];
      for (const { rooms } of all) await Promise.all(names.map((room) => rooms.open(room)));
      const own = all.map(() => new Map<number, Occupant>());
      for (let change = 0; change < 4_000; change++) {
        const at = change % all.length;
        const { rooms } = all[at]!;
        const mine = own[at]!;
        const some = [...mine.values()][Math.floor(Math.random() * mine.size)];
        if (some && Math.random() < 0.45) {
          mine.delete(some.peer.id);
          rooms.remove(some);
        } else {
          const one = occupant(rooms.nextId("lobby"), names[change % names.length]);
          mine.set(one.peer.id, one);
          rooms.put(one);
        }
        if (change % 1_500 === 700) await redis.command("CLIENT", "KILL", "TYPE", "pubsub");
        if (change % 50 === 0) await Bun.sleep(1);
      }
      const expected = (at: number) =>
        own.flatMap((mine, other) => (other === at ? [] : [...mine.keys()])).sort();
      const isRight = () =>
        all.every(({ guests }, at) => Bun.deepEquals([...guests.keys()].sort(), expected(at)));
      await until("all see the same", isRight, 1.5 * patienceMs);
      expect(all.map(({ mistakes, displaced }) => [mistakes, displaced])).toEqual(all.map(() => [[], []]));
      const stored = await Promise.all(names.map((room) => redis.command("HLEN", `punch:{${room}}:who`)));
      expect(stored.reduce<number>((sum, count) => sum + Number(count), 0)).toBe(
        own.reduce((sum, { size }) => sum + size, 0),
      );
      for (const one of all) await one[Symbol.asyncDispose]();
    },
    timeoutMs,
  );

  test.concurrent(
    "a Redis that has been made to forget the scripts gets them again, and nothing is missing",
    async () => {
      await using scene = await lobbies();
      const { redis, one, two } = scene;
      await redis.command("SCRIPT", "FLUSH");
      const [kept, gone] = [occupant(1), occupant(2)];
      for (const own of [kept, gone]) one.rooms.put(own);
      one.rooms.remove(gone);
      await until("who is there is known", () => two.guests.has(kept.peer.id), patienceMs);
      const stored = await redis.command("HKEYS", "punch:{lobby}:who");
      expect([stored, [...two.guests.keys()]]).toEqual([["1"], [1]]);
      expect([one.mistakes, two.mistakes, one.displaced]).toEqual([[], [], []]);
    },
    timeoutMs,
  );

  test.concurrent(
    "nobody gets an id that somebody has, here or elsewhere",
    async () => {
      await using scene = await lobbies();
      const { one, two } = scene;
      const draws = (...values: number[]) => {
        const random = spyOn(Math, "random");
        for (const value of values) random.mockReturnValueOnce(value);
        return { [Symbol.dispose]: () => random.mockRestore() };
      };
      const join = ({ rooms }: typeof one) => {
        const own = occupant(rooms.nextId("lobby"));
        rooms.put(own);
        return own.peer.id;
      };
      const ids: number[] = [];
      {
        using _ = draws(0.5, 0.5, 0.25);
        ids.push(join(one), join(one));
      }
      await until("they are known elsewhere", () => two.guests.size === 2);
      {
        using _ = draws(0.5, 0.25, 0.75);
        ids.push(join(two));
      }
      expect(ids).toEqual([0.5, 0.25, 0.75].map((value) => 1 + value * 1e9));
    },
    timeoutMs,
  );

  test.concurrent(
    "a guest is as far away as what is said to it has to go",
    async () => {
      await using redis = await RedisServer.start();
      using far = away(redis.port, 25);
      await using one = share(far.url);
      await using two = share(redis.url);
      await Promise.all([one.isShared(), two.isShared()]);
      await Promise.all([one.rooms.open("lobby"), two.rooms.open("lobby")]);
      const own = occupant(7);
      two.rooms.put({ ...own, peer: { ...own.peer, roundTripMs: 10 } });
      await until("it is known", () => one.guests.has(7));
      // As far again from Redis to there as from here to Redis: 50 ms, and back.
      expect(one.guests.get(7)!.roundTripMs).toBeGreaterThanOrEqual(110);
      const { roundTripMs, viaMs } = one.guests.get(7)!.peer;
      expect([roundTripMs, viaMs! >= 50]).toEqual([10, true]);
    },
    timeoutMs,
  );

  test.concurrent(
    "an introducer that was taken for dead is put back by itself",
    async () => {
      await using scene = await lobbies();
      const { redis, one, two } = scene;
      two.rooms.put(occupant(two.rooms.nextId("lobby")));
      one.rooms.put(occupant(one.rooms.nextId("lobby")));
      await until("they are known", () => one.guests.size + two.guests.size === 2);
      const keys = (await redis.command("KEYS", "punch:live:*")) as string[];
      await redis.command("DEL", ...keys);
      await redis.command("DEL", "punch:{lobby}:who", "punch:{lobby}:names", "punch:{lobby}:seq");
      const count = async () => Number(await redis.command("HLEN", "punch:{lobby}:who"));
      for (let stored = 0; stored < 2; stored = await count()) await Bun.sleep(20);
      await until("they are known again", () => one.guests.size + two.guests.size === 2, patienceMs);
      expect([one.displaced, two.displaced]).toEqual([[], []]);
    },
    timeoutMs,
  );

  test.concurrent(
    "who left an emptied room while its introducer had no Redis has left for all, once that is back",
    async () => {
      await using redis = await RedisServer.start();
      using way = breakable(redis.port);
      await using one = share(way.url);
      await using two = share(redis.url);
      await Promise.all([one.isShared(), two.isShared()]);
      await Promise.all([one.rooms.open("lobby"), two.rooms.open("lobby")]);
      const [own, theirs] = [occupant(7), occupant(8)];
      one.rooms.put(own);
      two.rooms.put(theirs);
      await until("they know each other", () => two.guests.has(7) && one.guests.has(8));
      way.cut();
      await until("that is noticed", () => one.told.at(-1) === false, patienceMs);
      one.rooms.remove(own);
      way.mend();
      await until("it has left", () => !two.guests.has(7), patienceMs);
      expect(await redis.command("HKEYS", "punch:{lobby}:who")).toEqual(["8"]);
    },
    timeoutMs,
  );

  test.concurrent(
    "a change of which nothing was heard is found out",
    async () => {
      await using redis = await RedisServer.start();
      await using one = share(redis.url);
      await one.isShared();
      await one.rooms.open("lobby");
      one.rooms.put(occupant(one.rooms.nextId("lobby")));
      for (let stored = 0; stored < 1; stored = Number(await redis.command("EXISTS", "punch:{lobby}:seq")))
        await Bun.sleep(5);
      await redis.command("SET", "punch:live:other", "1");
      await redis.command("HSET", "punch:{lobby}:who", "77", `other mr ${JSON.stringify(occupant(77).peer)}`);
      await redis.command("INCR", "punch:{lobby}:seq");
      await until("it is known", () => one.guests.has(77), patienceMs);
    },
    timeoutMs,
  );

  test.concurrent(
    "what a dead introducer has left goes, even where nobody can read it",
    async () => {
      await using redis = await RedisServer.start();
      await using one = share(redis.url);
      await one.isShared();
      const left = ["77", `dead mr ${JSON.stringify(occupant(77).peer)}`, "78", "dead mr {", "79", "dead"];
      await redis.command("HSET", "punch:{lobby}:who", ...left, "80", 'dead mr {"name":[1]}');
      await one.rooms.open("lobby");
      one.rooms.put(occupant(one.rooms.nextId("lobby")));
      await until("it is known", () => one.guests.has(77));
      await until("it is gone", () => !one.guests.has(77), patienceMs);
      const values = (await redis.command("HVALS", "punch:{lobby}:who")) as string[];
      expect(values.filter((value) => value.startsWith("dead "))).toEqual([]);
      expect(one.told).toEqual([true]);
    },
    timeoutMs,
  );

  test.concurrent(
    "what is none of an introducer's in Redis harms nobody",
    async () => {
      await using scene = await introducers();
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      const { peer } = occupant(7);
      const bad = [
        "",
        "x",
        "I m",
        "I mr {",
        "I mr null",
        'I mr {"id":7}',
        `I mr ${JSON.stringify({ ...peer, name: "a b" })}`,
      ];
      for (const [at, value] of bad.entries())
        await redis.command("HSET", "punch:{lobby}:who", String(70 + at), value);
      // As if those had these names.
      for (const name of ["bert", "carl"])
        for (const id of ["70", "71", "72"]) await redis.command("HSET", "punch:{lobby}:names", name, id);
      const inboxes = (await redis.command("PUBSUB", "CHANNELS", "punch:in:*")) as string[];
      const letters = [
        "",
        "null",
        "[]",
        "{}",
        '{"is":"order","from":1,"to":1}',
        `{"is":"report","from":1,"to":${anna.id},"message":{"type":"linked"}}`,
      ];
      const orders = [1e9, anna.id].map((to) => ({
        is: "order",
        from: 1,
        to,
        introduction: 1,
        lastsMs: 1e9,
        message: { type: "bye", reason: "" },
      }));
      for (const inbox of inboxes)
        for (const letter of [...letters, ...orders.map((order) => JSON.stringify(order))])
          await redis.command("PUBLISH", inbox, letter);
      for (const change of ["", "x", "1 + 2", "99999999999999999 + 1 x", "NaN - 1"])
        await redis.command("PUBLISH", "punch:{lobby}", change);
      using bert = await enter(two.port, "bert");
      expect(bert.others).toEqual(["anna"]);
      const { peer: shown } = await anna.next("joined", (message) => message.peer.id === bert.id);
      // Now in the name of one who is there: only what belongs to an introduction, and shows that one.
      const order = { is: "order", from: bert.id, to: anna.id, introduction: 1, lastsMs: 1e9 };
      const token = "0".repeat(32);
      for (const message of [
        { type: "bye", reason: "" },
        { type: "measure", peer: { ...shown, id: 1 }, token, way: "fresh" },
        { type: "measure", peer: { ...shown, public: "203.0.113.7:1" }, token, way: "fresh" },
      ])
        for (const inbox of inboxes)
          await redis.command("PUBLISH", inbox, JSON.stringify({ ...order, message }));
      bert.send({ type: "connect", peer: anna.id });
      await anna.next("punch");
      using carl = await enter(one.port, "carl");
      await anna.next("joined", (message) => message.peer.id === carl.id);
      await until("both are stored", () => bert.seen.some((message) => message.type === "joined"));
      for (const client of [anna, bert, carl]) {
        await client.settled();
        expect(client.types().filter((type) => type === "bye" || type === "measure")).toEqual([]);
      }
    },
    timeoutMs,
  );

  test.concurrent(
    "an operator's list, tell, broadcast and stats reach the participants of all, or say whom they don't",
    async () => {
      await using redis = await RedisServer.start();
      await using people = new People();
      await using house = introduce(redis.url);
      const options = ["--host", "127.0.0.1", "--probe-ports", "none", "--redis", redis.url];
      const desk = await people.introducer(thisHost, freePort(), undefined, options);
      await Promise.all([house.shared(), desk.next("shared")]);
      using anna = await enter(house.port, "anna");
      using bert = await enter(house.port, "bert", "elsewhere"); // where the desk has nobody
      using carl = await enter(splitEndpoint(desk.endpoint).port, "carl");
      anna.send({ type: "connect", peer: carl.id });
      await carl.next("punch");
      desk.type("list");
      const { participants } = await desk.next("participants");
      const at = formatEndpoint("127.0.0.1", house.port);
      expect(participants).toMatchObject([
        { name: "carl", punching: [anna.id] },
        { name: "anna", room: "lobby", introducer: at, punching: [carl.id] },
        { name: "bert", room: "elsewhere", introducer: at, punching: [] },
      ]);
      expect(participants[0]).not.toHaveProperty("introducer");
      desk.type("stats");
      const { stats, everywhere } = await desk.next("stats");
      expect([stats.participants, everywhere]).toEqual([1, { participants: 3, introducers: 2 }]);
      desk.type("tell bert by name", `tell ${anna.id} by id`, "broadcast to all", "tell dora nothing");
      expect((await desk.next("error")).message).toContain("nobody here is called dora");
      const heard = await Promise.all([bert, anna, bert, anna, carl].map((one) => one.next("notice")));
      expect(heard.map(({ text }) => text)).toEqual(["by name", "by id", "to all", "to all", "to all"]);
      redis.signal("SIGSTOP");
      desk.type("list", "tell bert nothing", "broadcast to some");
      expect((await desk.next("participants")).participants.map(({ name }) => name)).toEqual(["carl"]);
      for (const what of [
        "may be missing",
        "called bert; `list` shows who is (Redis",
        "may not have been told",
      ])
        expect((await desk.next("error")).message).toContain(what);
      expect(await carl.next("notice")).toMatchObject({ text: "to some" });
      redis.signal("SIGCONT");
    },
    timeoutMs,
  );

  test.concurrent(
    "whoever asks too often is not answered, and what is no answer is none",
    async () => {
      await using scene = await introducers();
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      const ask = (question: object) =>
        redis.command("PUBLISH", "punch:all", JSON.stringify({ by: "us", number: 1, ...question }));
      for (const bad of [{}, { about: "x" }, { about: "notice", text: 7 }, { about: "count", by: "a b" }])
        await ask(bad);
      const [own] = (await redis.command("PUBSUB", "CHANNELS", "punch:in:*")) as [string, string];
      const part = { type: "peers", by: "us", number: 1, place: "127.0.0.1:1", count: 1, more: false };
      const { peer } = occupant(7);
      const listed = { ...peer, room: "lobby", links: [], punching: [] };
      for (const wrong of [
        { links: [{ id: 1, route: "x" }] },
        { punching: [-1] },
        { room: "\u001b" },
        { name: "a b" },
      ])
        await redis.command("PUBLISH", own, JSON.stringify({ ...part, peers: [{ ...listed, ...wrong }] }));
      const { all, problem } = await two.introducer.ask({ about: "list" });
      expect([all.map(({ count }) => count), problem]).toEqual([[0, 1], undefined]);
      const questions = Array.from({ length: 200 }, () => ask({ about: "notice", text: "flood" }));
      await Promise.all(questions);
      const refused = await two.introducer.ask({ about: "count" });
      expect(refused).toMatchObject({ all: [{ count: 0 }], problem: "1 of 1 others did not answer" });
      await anna.settled();
      expect(anna.types().filter((type) => type === "notice").length).toBeWithin(1, 30);
    },
    timeoutMs,
  );

  test.concurrent(
    "participants at different ones link; the link lives through the death of both and of Redis, and all meet again",
    async () => {
      await using redis = await RedisServer.start();
      const houses = [introduce(redis.url), introduce(redis.url)] as const;
      const [here, there] = houses.map(({ port }) => port) as [number, number];
      await using alice = new Driven(here, "alice", "--room", "some words");
      await using bob = new Driven(there, "bob", "--room", "some words");
      await met(alice, bob);
      await link(alice, bob);
      await Promise.all([...houses.map(({ introducer }) => introducer.stop()), redis.kill()]);
      await Promise.all([alice.next("introducer"), bob.next("introducer")]);
      alice.type("say bob alone now");
      expect(await bob.next("said")).toMatchObject({ text: "alone now" });
      await redis.run();
      await using one = introduce(redis.url, here);
      await using two = introduce(redis.url, there);
      const linked = () =>
        [one, two].flatMap(({ introducer }) => introducer.participants.map((who) => who.linked));
      const isWhole = () => linked().length === 2 && linked().every(({ length }) => length === 1);
      await until("both are back, and listed as linked", isWhole, patienceMs);
      expect(alice.count("unlinked") + bob.count("unlinked")).toBe(0);
      alice.type("disconnect bob");
      await bob.next("unlinked");
      bob.type("connect alice");
      await Promise.all([alice.next("linked"), bob.next("linked")]);
    },
    timeoutMs,
  );

  test.concurrent(
    "no Redis there: one warning, and a room is what is here",
    async () => {
      let tries = 0;
      const open = (socket: Bun.Socket) => void (tries++, socket.terminate());
      const gone = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data() {} } });
      await using house = introduce(`redis://127.0.0.1:${gone.port}`);
      using anna = await enter(house.port, "anna");
      using bert = await enter(house.port, "bert");
      expect(bert.others).toEqual(["anna"]);
      expect(anna.id).not.toBe(bert.id);
      await until("it has tried again and again", () => tries >= 8);
      expect([house.count("warning"), house.count("shared")]).toEqual([1, 0]);
      gone.stop(true);
    },
    timeoutMs,
  );
});
