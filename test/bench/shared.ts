/**
 * Four introducers that share one Redis (Debian's, started here without persistence), beside one with a Redis, and four
 * and one alone. Each of four has as much under way as one alone: joins, each at an introducer that it was given by chance,
 * and introductions.
 */
import { noRedis, RedisServer } from "../introducer/redis-fixture.ts";
import {
  Client,
  measureIntroductions,
  measureJoins,
  Pairs,
  processorMs,
  Server,
  type Introduced,
  type Joins,
  type Pace,
} from "./crowd.ts";
import { quick, table } from "./run.ts";

const roomSize = 10;
const rooms = quick(300, 10);
/** Introductions of four introducers, each with a core of its own, to those of one alone. */
const goal = 3;

type Result = Joins & Introduced & { joinRedisMicroseconds: number; redisMicroseconds: number };

/** Several that are as one. */
class Introducers implements AsyncDisposable {
  readonly all: Server[];

  private constructor(all: Server[]) {
    this.all = all;
  }

  static async start(count: number, redis: RedisServer | undefined): Promise<Introducers> {
    const one = () => (redis ? Server.start("shared", redis.url) : Server.start("introducer"));
    return new Introducers(await Promise.all(Array.from({ length: count }, one)));
  }

  get count(): number {
    return this.all.length;
  }

  get busyMs(): number {
    return this.all.reduce((sum, { busyMs }) => sum + busyMs, 0);
  }

  async residentKib(): Promise<number> {
    const each = await Promise.all(this.all.map((server) => server.residentKib()));
    return each.reduce((sum, kib) => sum + kib, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.all.map((server) => server[Symbol.asyncDispose]()));
  }
}

/** Resolves once it has been told of everybody else in its room. */
function acquainted(client: Client): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let known = 0;
  client.told = (line) => {
    known += line.toString("latin1").split('"id":').length - 1;
    if (known >= roomSize - 1) resolve();
  };
  return promise;
}

async function measure(count: number, redis: RedisServer | undefined, pace: Pace): Promise<Result> {
  await using introducers = await Introducers.start(count, redis);
  const clients = Array.from(
    { length: roomSize * rooms },
    (_, index) => new Client(index, `room ${Math.floor(index / roomSize)}`),
  );
  const everybody = Promise.all(clients.map(acquainted));
  const redisMs = () => (redis ? processorMs(redis.pid) : 0);
  const join = async (index: number, address: string) => {
    const client = clients[index]!;
    // Without Redis a room is given to one of them; with it any may be asked.
    const given = redis ? index : Math.floor(index / roomSize);
    let { port } = introducers.all[given % count]!;
    for (;;) {
      await client.open(port, address);
      const elsewhere = await client.join();
      if (elsewhere === undefined) return;
      client.close();
      port = elsewhere;
    }
  };
  const joinsFrom = redisMs();
  const joins = await measureJoins(introducers, clients.length, join, pace.idleMs);
  await everybody;
  const joinRedisMicroseconds = ((redisMs() - joinsFrom) * 1000) / clients.length;
  const pairs = new Pairs(
    Array.from({ length: rooms }, (_, n) => clients.slice(n * roomSize, (n + 1) * roomSize)),
  );
  let made = 0;
  const introduce = () => pairs.introduce()?.then(() => void (made += 1));
  const from = redisMs();
  const introduced = await measureIntroductions(introducers, introduce, pace);
  const redisMicroseconds = ((redisMs() - from) * 1000) / made;
  for (const client of clients) client.close();
  return { ...joins, ...introduced, joinRedisMicroseconds, redisMicroseconds };
}

export async function compareShared(pace: Pace): Promise<void> {
  if (noRedis !== undefined) return console.log(`without introducers that share a Redis: ${noRedis}\n`);
  const shared = async (count: number) => {
    await using redis = await RedisServer.start();
    return await measure(count, redis, pace);
  };
  const results = [
    await measure(1, undefined, pace),
    await measure(4, undefined, pace),
    await shared(1),
    await shared(4),
  ];
  // Without Redis, or where it has only to be kept informed of who lives.
  const cell = (value: number, digits: number, unit: string) =>
    value >= 1 && value < 1e6 ? `${value.toFixed(digits)}${unit}` : "-";
  const row = (what: string, of: (result: Result) => number, unit = "", digits = 0) => [
    what,
    ...results.map((result) => cell(of(result), digits, unit)),
  ];
  const perCore = (microseconds: number) => 1e6 / microseconds;
  console.log(
    table([
      [`${rooms} rooms of ${roomSize}`, "one alone", "four alone", "one, with Redis", "four, one Redis"],
      row("joins a second", ({ joins }) => joins),
      row("- 99th percentile", ({ joinP99Ms }) => joinP99Ms, " ms", 1),
      row("- processor of the introducers", ({ joinMicroseconds }) => joinMicroseconds, " µs"),
      row("- processor of Redis", (one) => one.joinRedisMicroseconds, " µs"),
      row("introductions a second", ({ introductions }) => introductions),
      row("- 99th percentile", ({ p99Ms }) => p99Ms, " ms", 1),
      row("- at half that rate", ({ halfP99Ms }) => halfP99Ms, " ms", 1),
      row("- processor of the introducers", (one) => one.busyMicroseconds, " µs"),
      row("- processor of Redis", (one) => one.redisMicroseconds, " µs"),
      row("- of the load", (one) => one.loadMicroseconds, " µs"),
      row("- that a core of introducers makes", (one) => perCore(one.busyMicroseconds)),
      row("- that a core of Redis allows", (one) => perCore(one.redisMicroseconds)),
    ]),
  );
  const [alone, , , four] = results as [Result, Result, Result, Result];
  const times = (4 * alone.busyMicroseconds) / four.busyMicroseconds;
  console.log(
    `By processor time four make ${times.toFixed(2)} × the introductions of one (goal: ≥ ${goal} ×).`,
  );
  const all = navigator.hardwareConcurrency;
  console.log(`With four most come to another introducer than that of their room, and are sent there. All of them, Redis and the load
share ${all} cores: the rates are of this machine, what they take of a processor is what more cores would multiply.\n`);
}
