/** Introducers that share a Redis: a room lives at one of them, while those and Redis are killed, stopped and started again. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { defaultLimits } from "../../native/introducer/limits.ts";
import { leaseMs } from "../../native/introducer/redis/homes.ts";
import { formatEndpoint, splitEndpoint } from "../../protocol.ts";
import { Driven, link, met } from "../driven-fixture.ts";
import { Client, registration } from "../client-fixture.ts";
import { People, thisHost } from "../lab/people.ts";
import { until } from "../native-fixture.ts";
import { noRedis, RedisServer } from "./redis-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { describeNeeding, isField } from "../needing-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);

const crowdedRooms = isField ? 400 : 100;
/** As a participant follows them. */
const mostMoves = 2;

/** On a busy machine a Redis that is there answers late: it is waited for. */
function introduce(redis: string, port = 0, advertise?: string, homeMs = patienceMs) {
  const events: IntroducerEvent[] = [];
  const onEvent = (event: IntroducerEvent) => void events.push(event);
  const introducer = Introducer.start({
    ...{ host: "127.0.0.1", port, probePorts: [], redis, onEvent, limits: { homeMs } },
    ...(advertise !== undefined && { advertise }),
  });
  const count = (name: IntroducerEvent["event"]) => events.filter(({ event }) => event === name).length;
  const shared = (times = 1) => until("Redis is there", () => count("shared") === times, patienceMs);
  const names = () => introducer.participants.map(({ name }) => name).sort();
  return {
    introducer,
    port: introducer.port,
    names,
    count,
    shared,
    [Symbol.asyncDispose]: () => introducer.stop(),
  };
}

/** Two that share a Redis of their own. */
async function introducers(homeMs?: number) {
  const owned = new AsyncDisposableStack();
  const redis = owned.use(await RedisServer.start());
  const start = () => owned.use(introduce(redis.url, 0, undefined, homeMs));
  const [one, two] = [start(), start()];
  await Promise.all([one.shared(), two.shared()]);
  return { redis, one, two, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Registers where the room lives, and sees it. `moves`: how often it was sent elsewhere. */
async function enter(port: number, name: string, room = "lobby") {
  for (let moves = 0; moves <= mostMoves; moves++) {
    const client = new Client(port);
    client.send(registration(name, room));
    const elsewhere = () => client.seen.find((message) => message.type === "elsewhere");
    await until("it is answered", () => client.types().length > 0);
    if (!elsewhere()) {
      const { id } = await client.next("registered");
      client.send({ type: "mapping", mapping: "unknown" });
      const { peers } = await client.next("peers");
      return Object.assign(client, { id, port, moves, others: peers.map((peer) => peer.name) });
    }
    await client.ended.promise;
    ({ port } = elsewhere()!);
  }
  throw new Error(`${name} was sent elsewhere again and again`);
}

/** An introducer's real program, which can be killed and stopped. */
class Program implements AsyncDisposable {
  readonly port: number;
  readonly process: Bun.Subprocess<"ignore", "pipe", "inherit">;

  private constructor(redis: string, port: number) {
    this.port = port;
    const program = join(import.meta.dir, "..", "..", "introducer.ts");
    const own = [String(port), "--host", "127.0.0.1", "--probe-ports", "none", "--json"];
    const crowd = ["--max-connections", "20000", "--max-per-address", "20000"];
    this.process = Bun.spawn([process.execPath, program, ...own, ...crowd], {
      env: { ...process.env, REDIS_URL: redis },
      stdin: "ignore",
      stdout: "pipe",
    });
  }

  /** Resolves once it has its Redis. */
  static async start(redis: string, port = freePort()): Promise<Program> {
    const one = new Program(redis, port);
    const lines = one.process.stdout.pipeThrough(new TextDecoderStream()).getReader();
    for (let said = ""; !said.includes('"shared"');) {
      const { done, value } = await lines.read();
      if (done) throw new Error(`the introducer has ended: ${said}`);
      said += value;
    }
    void (async () => {
      while (!(await lines.read()).done); // or its pipe fills up
    })();
    return one;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill("SIGKILL");
    await this.process.exited;
  }
}

/** As a participant that was given all of the introducers: it goes where it is sent, and comes back. */
class Follower implements Disposable {
  readonly others = new Set<number>();
  port = 0;
  isThere = false;
  #client: Client | undefined;
  #timer: Timer | undefined;

  readonly #ports: readonly number[];
  readonly #name: string;
  readonly #room: string;
  #at: number;
  /** Where it was sent. */
  #next: number | undefined;

  /** Comes to the `at`-th of them first. */
  constructor(ports: readonly number[], at: number, name: string, room: string) {
    [this.#ports, this.#at, this.#name, this.#room] = [ports, at, name, room];
    this.#come(ports[at % ports.length]!);
  }

  #come(port: number): void {
    const client = new Client(port);
    client.heard = (message) => {
      if (message.type === "elsewhere") this.#next = message.port;
      if (message.type === "registered") [this.port, this.isThere] = [port, true];
      if (message.type === "peers") for (const { id } of message.peers) this.others.add(id);
      if (message.type === "joined") this.others.add(message.peer.id);
      if (message.type === "left") this.others.delete(message.id);
    };
    this.#client = client;
    client.send(registration(this.#name, this.#room));
    void client.ended.promise.then(() => this.#gone());
  }

  #gone(): void {
    if (this.#client === undefined) return;
    this.isThere = false;
    this.others.clear();
    const [next, pauseMs] = [this.#next, this.#next === undefined ? 500 + Math.random() * 500 : 0];
    this.#next = undefined;
    this.#timer = setTimeout(
      () => this.#come(next ?? this.#ports[++this.#at % this.#ports.length]!),
      pauseMs,
    );
  }

  [Symbol.dispose](): void {
    const client = this.#client;
    this.#client = undefined;
    clearTimeout(this.#timer);
    client?.[Symbol.dispose]();
  }
}

describeNeeding(noRedis)("introducers that share a Redis", () => {
  test.concurrent("a room lives where its first came to, until it is empty", async () => {
    await using scene = await introducers();
    const { redis, one, two } = scene;
    using anna = await enter(one.port, "anna");
    using bert = await enter(two.port, "bert");
    expect([bert.port, bert.moves, bert.others]).toEqual([one.port, 1, ["anna"]]);
    using carl = await enter(two.port, "carl", "another room");
    expect([carl.port, carl.moves]).toEqual([two.port, 0]);
    bert.send({ type: "connect", peer: anna.id });
    await Promise.all([anna.next("punch"), bert.next("punch")]);
    // Who is sent on is nobody there.
    expect([one.names(), two.names()]).toEqual([["anna", "bert"], ["carl"]]);
    expect([one.count("joined"), two.count("joined")]).toEqual([2, 1]);
    anna.end();
    bert.end();
    const home = () => redis.command("GET", "punch:home:lobby");
    while ((await home()) !== null) await Bun.sleep(10);
    using dora = await enter(two.port, "dora");
    expect([dora.port, dora.moves]).toEqual([two.port, 0]);
    expect(await home()).toBe(`127.0.0.1:${two.port}`);
  });

  test.concurrent("others send to where it is advertised, by name or port", async () => {
    await using redis = await RedisServer.start();
    const port = freePort();
    await using one = introduce(redis.url, port, "localhost");
    await using two = introduce(redis.url, 0, "localhost:7");
    await Promise.all([one.shared(), two.shared()]);
    using anna = await enter(port, "anna");
    await using bert = new Driven(two.port, "bert", "--room", "lobby");
    await bert.registered;
    await until("both are at one", () => one.names().join() === "anna,bert");
    using _there = await enter(two.port, "carl", "another room");
    using sent = new Client(port);
    sent.send(registration("dora", "another room"));
    expect(await sent.next("elsewhere")).toEqual({ type: "elsewhere", host: "localhost", port: 7 });
    await anna.settled();
  });

  test.concurrent("one that is drained gives its rooms back before it sends anybody away", async () => {
    await using scene = await introducers();
    const { redis, one, two } = scene;
    using anna = await enter(one.port, "anna");
    using bert = await enter(one.port, "bert");
    const drained = one.introducer.drain();
    await anna.next("bye");
    using back = await enter(two.port, "anna");
    expect(back.port).toBe(two.port);
    await bert.next("bye");
    await drained;
    expect(await redis.command("DBSIZE")).toBe(2); // the lobby's home, and who lives
  });

  test.concurrent(
    "Redis is killed and started again, empty: rooms go on, and those that were torn are whole again",
    async () => {
      await using scene = await introducers();
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      await redis.kill();
      await until("both have noticed", () => one.count("warning") + two.count("warning") === 2, patienceMs);
      using bert = await enter(one.port, "bert");
      anna.send({ type: "connect", peer: bert.id });
      await Promise.all([anna.next("punch"), bert.next("punch")]);
      using carl = await enter(two.port, "carl"); // on trust
      expect([carl.port, carl.others]).toEqual([two.port, []]);
      await redis.run();
      await Promise.all([one.shared(2), two.shared(2)]);
      await until(
        "the room is at one only",
        () => (one.introducer.stats.participants === 0) !== (two.introducer.stats.participants === 0),
      );
      const [loser, home] = one.introducer.stats.participants === 0 ? [one, two] : [two, one];
      const sent = loser === one ? [anna, bert] : [carl];
      for (const client of sent) {
        expect(await client.next("elsewhere")).toEqual({
          type: "elsewhere",
          host: "127.0.0.1",
          port: home.port,
        });
        await client.ended.promise;
      }
      using again = await enter(loser.port, loser === one ? "bert" : "carl");
      expect([again.port, again.moves]).toEqual([home.port, 1]);
      expect([one.count("warning"), two.count("warning")]).toEqual([1, 1]);
    },
  );

  test.concurrent(
    "a Redis that answers nothing holds up nobody for more than a second, and no known room at all",
    async () => {
      await using scene = await introducers(defaultLimits.homeMs);
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      redis.signal("SIGSTOP");
      using carl = await enter(one.port, "carl");
      using dora = await enter(two.port, "dora", "elsewhere");
      expect([dora.others, one.count("warning")]).toEqual([[], 0]); // long before anybody has noticed
      anna.send({ type: "connect", peer: carl.id });
      await carl.next("punch");
      await until("it is noticed", () => one.count("warning") + two.count("warning") === 2, patienceMs);
      using emil = await enter(two.port, "emil", "elsewhere");
      expect(emil.others).toEqual(["dora"]);
      redis.signal("SIGCONT");
      await Promise.all([one.shared(2), two.shared(2)]);
      using fred = await enter(one.port, "fred", "elsewhere");
      expect([fred.port, fred.others.toSorted()]).toEqual([two.port, ["dora", "emil"]]);
    },
  );

  test.concurrent(
    "a Redis that has been made to forget the scripts gets them again, and rooms stay whole",
    async () => {
      await using scene = await introducers();
      const { redis, one, two } = scene;
      using anna = await enter(one.port, "anna");
      await redis.command("SCRIPT", "FLUSH");
      using bert = await enter(two.port, "bert", "another room");
      expect(bert.others).toEqual([]);
      const hasHome = async () => (await redis.command("GET", "punch:home:another room")) !== null;
      const giveUpAt = performance.now() + patienceMs;
      while (!(await hasHome()) && performance.now() < giveUpAt) await Bun.sleep(20);
      using carl = await enter(two.port, "carl");
      expect([carl.port, carl.others]).toEqual([one.port, ["anna"]]);
      expect(bert.types()).not.toContain("elsewhere");
      expect(anna.types()).not.toContain("elsewhere");
    },
  );

  test.concurrent("what is none of an introducer's in Redis harms nobody", async () => {
    await using scene = await introducers();
    const { redis, one, two } = scene;
    using anna = await enter(one.port, "anna");
    const bad = ["", "x y", "http://x/", "\u001b[2J", "a".repeat(400), "x:99999", `x\n:1`];
    for (const [index, value] of bad.entries()) {
      await redis.command("SET", `punch:home:room ${index}`, value);
      await redis.command("HSET", "punch:live", `bad ${index}`, value, value, `99999999999 1 1 ${value}`);
      await redis.command("PUBLISH", "punch:all", value);
      await redis.command("PUBLISH", "punch:all", JSON.stringify({ by: value, text: index }));
    }
    for (const [index] of bad.entries()) {
      using client = await enter(one.port, "bert", `room ${index}`);
      expect(client.port).toBe(one.port);
    }
    await redis.command("SET", "punch:home:lobby", "no place at all");
    await redis.command("PUBLISH", "punch:all", JSON.stringify({ by: "us", text: "to all" }));
    expect(await anna.next("notice")).toEqual({ type: "notice", text: "to all" });
    using carl = await enter(two.port, "carl", "another room");
    expect(await two.introducer.others()).toMatchObject([{ address: `127.0.0.1:${one.port}` }]);
    await Promise.all([anna.settled(), carl.settled()]);
    expect(anna.types()).not.toContain("elsewhere");
    expect([one.count("warning"), two.count("warning")]).toEqual([0, 0]);
  });

  test.concurrent(
    "an operator's list and stats have a line for each other, broadcast reaches all, tell says where the id is",
    async () => {
      await using redis = await RedisServer.start();
      await using people = new People();
      await using house = introduce(redis.url);
      const options = ["--host", "127.0.0.1", "--probe-ports", "none", "--redis", redis.url];
      const desk = await people.introducer(thisHost, freePort(), undefined, options);
      await Promise.all([house.shared(), desk.next("shared")]);
      using anna = await enter(house.port, "anna");
      using bert = await enter(house.port, "bert", "elsewhere");
      using carl = await enter(splitEndpoint(desk.endpoint).port, "carl", "here");
      const at = formatEndpoint("127.0.0.1", house.port);
      const giveUpAt = performance.now() + patienceMs;
      for (;;) {
        desk.type("list");
        const { participants, others = [] } = await desk.next("participants");
        expect(participants).toMatchObject([{ name: "carl", room: "here" }]);
        if (others[0]?.participants === 2) break;
        expect(performance.now()).toBeLessThan(giveUpAt);
        await Bun.sleep(100);
      }
      desk.type("stats");
      const { stats, others } = await desk.next("stats");
      expect([stats.participants, others]).toMatchObject([1, [{ address: at, participants: 2, rooms: 2 }]]);
      desk.type(`tell ${anna.id} by id`, "tell carl by name", "broadcast to all", "tell dora nothing");
      expect((await desk.next("error")).message).toBe(`${anna.id} is not here: tell it at ${at}`);
      expect((await desk.next("error")).message).toContain("nobody here is called dora");
      expect(await desk.next("told", ({ name }) => name === undefined)).toMatchObject({
        participants: 1,
        introducers: 1,
      });
      const heard = await Promise.all([carl, carl, anna, bert].map((one) => one.next("notice")));
      expect(heard.map(({ text }) => text)).toEqual(["by name", "to all", "to all", "to all"]);
      redis.signal("SIGSTOP");
      desk.type("list", "broadcast to some");
      expect((await desk.next("participants")).participants.map(({ name }) => name)).toEqual(["carl"]);
      for (const what of ["may be missing", "may not have been told"])
        expect((await desk.next("error")).message).toContain(what);
      expect(await carl.next("notice")).toMatchObject({ text: "to some" });
      redis.signal("SIGCONT");
    },
  );

  test.concurrent(
    "one is killed: who was there is at another once its leases have ended, and the room is whole",
    async () => {
      await using redis = await RedisServer.start();
      await using house = introduce(redis.url);
      await using killed = await Program.start(redis.url);
      await house.shared();
      await using alice = new Driven(killed.port, "alice");
      await alice.registered;
      await using bob = new Driven(house.port, "bob");
      await Promise.all([bob.registered, bob.seen("alice")]);
      expect(house.introducer.stats.participants).toBe(0); // sent there
      await link(alice, bob);
      killed.process.kill("SIGKILL");
      await killed.process.exited;
      expect(await redis.endLeases(`127.0.0.1:${killed.port}`, leaseMs)).toBe(1);
      // He was given the other one at the start; alice was not, and comes back when hers does, to where the room is now.
      await until("bob is at the other one", () => house.introducer.stats.participants === 1);
      await using again = await Program.start(redis.url, killed.port);
      await until("the room is whole", () => house.introducer.stats.participants === 2, patienceMs);
      expect(again.port).toBe(killed.port);
      expect(alice.count("unlinked") + bob.count("unlinked")).toBe(0);
      expect(alice.count("registered")).toBeLessThanOrEqual(3);
    },
  );

  test.concurrent(
    "one is stopped for longer than its leases last: when it goes on, it sends its people to where the room is",
    async () => {
      await using redis = await RedisServer.start();
      await using house = introduce(redis.url);
      await using stopped = await Program.start(redis.url);
      await house.shared();
      await using alice = new Driven(stopped.port, "alice");
      await alice.registered;
      stopped.process.kill("SIGSTOP");
      // What it had said to Redis when it was stopped may still be read.
      while (((await redis.command("KEYS", "punch:home:*")) as string[]).length > 0) {
        await redis.endLeases(`127.0.0.1:${stopped.port}`, leaseMs);
        await Bun.sleep(100);
      }
      await using bob = new Driven(house.port, "bob");
      await bob.registered;
      stopped.process.kill("SIGCONT");
      await bob.seen("alice");
      await until("both are at one", () => house.names().join() === "alice,bob");
      await link(alice, bob);
    },
  );

  test.concurrent("a link lives through the death of both and of Redis, and all meet again", async () => {
    await using redis = await RedisServer.start();
    const houses = [introduce(redis.url), introduce(redis.url)] as const;
    const [here, there] = houses.map(({ port }) => port) as [number, number];
    await using alice = new Driven(here, "alice", "--room", "some words");
    await alice.registered;
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
  });

  // By itself: who has a crowd in its own program hears its Redis late.
  test(`${10 * crowdedRooms} join ${crowdedRooms} rooms over three introducers, one of which is killed meanwhile: all are whole soon`, async () => {
    await using redis = await RedisServer.start();
    const owned = new AsyncDisposableStack();
    await using _owned = owned;
    const programs = await Promise.all([1, 2, 3].map(async () => owned.use(await Program.start(redis.url))));
    const ports = programs.map(({ port }) => port);
    const rooms = Array.from({ length: crowdedRooms }, (_, at) => `room ${at}`);
    const crowd = rooms.flatMap((room, at) =>
      Array.from({ length: 10 }, (_, n) => owned.use(new Follower(ports, at + n, `n${n}`, room))),
    );
    await until("half are there", () => crowd.filter((one) => one.isThere).length > crowd.length / 2);
    programs[0]!.process.kill("SIGKILL");
    await programs[0]!.process.exited;
    await redis.endLeases(`127.0.0.1:${ports[0]}`, leaseMs);
    const isWhole = (at: number) => {
      const all = crowd.slice(10 * at, 10 * at + 10);
      return all.every((one) => one.isThere && one.port === all[0]!.port && one.others.size === 9);
    };
    const torn = () => rooms.filter((_, at) => !isWhole(at)).length;
    await until("every room is whole", () => torn() === 0);
  });

  test.concurrent("no Redis there: one warning, and a room is what is here", async () => {
    let tries = 0;
    const open = (socket: Bun.Socket) => void (tries++, socket.terminate());
    const gone = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data() {} } });
    await using house = introduce(`redis://127.0.0.1:${gone.port}`);
    using anna = await enter(house.port, "anna");
    using bert = await enter(house.port, "bert");
    expect([bert.others, bert.moves]).toEqual([["anna"], 0]);
    expect(anna.id).not.toBe(bert.id);
    await until("it has tried again and again", () => tries >= 8);
    expect([house.count("warning"), house.count("shared")]).toEqual([1, 0]);
    gone.stop(true);
  });
});
