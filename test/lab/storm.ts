/**
 * A storm: participants behind NATs, at two introducers that share a Redis, connect and disconnect at random, while the
 * introducers and the Redis are killed, stopped and started again at random. What must hold all the same is checked, and
 * whatever does not is a problem in the report. For redis.test.ts and `bun run bench storm`.
 */
import { readdirSync } from "node:fs";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import type { Endpoint } from "../../protocol.ts";
import { Random } from "../fuzz/mutate.ts";
import { RedisServer } from "../introducer/redis-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";
import type { Host, Lab } from "./lab.ts";
import { type IntroducerProgram, now, type ParticipantProgram, type People, type Place } from "./people.ts";
import { behind, owdMs, type Side } from "./sides.ts";

// How soon it is on a quiet machine is what `bench storm` tells.
/** An introduction takes 13 s at most, and its answer as long to come; then the failure is told. */
const connectDeadlineMs = testMs;
/** How soon a participant is back once the introducer is that it was given. */
const backMs = patienceMs;
/** How soon all see the same, once nothing happens any more: a lease lasts 8 s. */
const wholeMs = patienceMs;
/** How soon what was closed is no descriptor any more. */
const quietMs = patienceMs;
/** Descriptors more than before: what was closed a moment ago may still be there. */
const spareDescriptors = 2;

const sides: Record<string, Side> = {
  anna: behind({}),
  bert: behind({ unsolicited: "reset" }),
  carl: behind({ mapping: "sequential" }),
  dora: behind({ mapping: "random" }),
  emil: behind({ unsolicited: "icmp" }),
};
/** Knows both introducers, by a name with two addresses. */
const traveller = "emil";

/** Why a link may end here: somebody wanted it to. */
const wanted: ReadonlySet<string> = new Set(["disconnected", "peer-disconnected", "replaced"]);

export interface StormReport {
  /** What must never be. */
  problems: string[];
  connects: number;
  slowestConnectMs: number;
  slowestBackMs: number;
  slowestAgreementMs: number;
  /** How often what happened: links by route, failures by reason, what was done to introducers and Redis. */
  counts: Map<string, number>;
}

type Marked = ParticipantEvent | { event: "allowed" };

/** Commands of one participant run one after the other: what answers the last has seen the end of all before. */
async function obeyed(one: ParticipantProgram, withinMs: number, ...commands: string[]): Promise<void> {
  one.type(...commands, "allowed");
  await (
    one as unknown as {
      next(kind: Marked["event"], where: () => boolean, withinMs: number): Promise<unknown>;
    }
  ).next("allowed", () => true, withinMs);
}

function descriptors({ process: { pid } }: { process: { pid: number } }): number {
  return readdirSync(`/proc/${pid}/fd`).length;
}

function pause(random: Random, leastMs: number, mostMs: number): Promise<void> {
  return Bun.sleep(leastMs + random.below(mostMs - leastMs));
}

/** One introducer, which comes and goes. */
class House {
  readonly #people: People;
  readonly #place: Host;
  readonly #redis: string;
  program!: IntroducerProgram;
  /** How often it has been started. */
  life = 0;

  constructor(people: People, place: Host, redis: string) {
    this.#people = people;
    this.#place = place;
    this.#redis = redis;
  }

  get isGone(): boolean {
    const { exitCode, signalCode } = this.program.process;
    return (exitCode ?? signalCode) !== null;
  }

  async start(): Promise<void> {
    this.program = await this.#people.introducer(this.#place, 7000, undefined, ["--redis", this.#redis]);
    this.life += 1;
  }
}

class Storm {
  readonly report: StormReport = {
    problems: [],
    connects: 0,
    slowestConnectMs: 0,
    slowestBackMs: 0,
    slowestAgreementMs: 0,
    counts: new Map(),
  };
  readonly #random: Random;
  readonly #log: (line: string) => void;
  readonly #redis: RedisServer;
  readonly #houses: readonly House[];
  readonly #everyone: readonly ParticipantProgram[];
  readonly #given = new Map<ParticipantProgram, House>();
  readonly #watched: Promise<void>[] = [];
  readonly #startedAt = now();

  constructor(
    seed: number,
    redis: RedisServer,
    houses: readonly House[],
    everyone: readonly (readonly [ParticipantProgram, House])[],
    log: (line: string) => void,
  ) {
    this.#random = new Random(seed);
    this.#redis = redis;
    this.#houses = houses;
    this.#everyone = everyone.map(([one]) => one);
    this.#given = new Map(everyone);
    this.#log = log;
  }

  async run(seconds: number): Promise<StormReport> {
    await this.#agreement();
    const before = this.#everyone.map(descriptors);
    const own = this.#houses.map(({ program }) => descriptors(program));
    const untilAt = now() + seconds * 1000;
    const random = () => new Random(this.#random.next());
    await Promise.all([
      this.#redisWeather(untilAt, random()),
      ...this.#houses.map((house, at) => this.#introducerWeather(house, at + 1, untilAt, random())),
      ...this.#everyone.map((one) => this.#wander(one, untilAt, random())),
    ]);
    await Promise.all(this.#watched);
    const quietAt = now();
    await this.#agreement();
    this.report.slowestAgreementMs = now() - quietAt;
    await this.#allLink();
    this.#judge();
    await Promise.all(this.#everyone.map((one) => this.#part(one)));
    await this.#noLeak(before, own);
    return this.report;
  }

  // --- what happens --------------------------------------------------------------------------------------

  async #introducerWeather(house: House, which: number, untilAt: number, random: Random): Promise<void> {
    while (now() < untilAt) {
      await pause(random, 2000, 12_000);
      if (random.below(3) > 0) {
        this.#happens(`introducer ${which} is killed`);
        await house.program.kill();
      } else {
        this.#happens(`introducer ${which} ends in order`);
        await house.program.kill("SIGTERM");
        if (house.program.process.exitCode !== 0) this.#problem(`introducer ${which} did not end with 0`);
      }
      await this.#restart(house, random);
    }
  }

  async #redisWeather(untilAt: number, random: Random): Promise<void> {
    while (now() < untilAt) {
      await pause(random, 500, 6000);
      const what = random.of(["is killed", "is stopped", "loses its connections"]);
      this.#happens(`Redis ${what}`);
      if (what === "is killed") {
        await this.#redis.kill();
        await pause(random, 0, 4000);
        if (!(await this.#redis.run())) this.#problem("Redis can't be started again");
      } else if (what === "is stopped") {
        this.#redis.signal("SIGSTOP");
        await pause(random, 500, 8000);
        this.#redis.signal("SIGCONT");
      } else await this.#redis.killClients(random.of(["normal", "pubsub"]));
    }
  }

  async #restart(house: House, random: Random): Promise<void> {
    await pause(random, 0, 3000);
    await house.start();
    for (const [one, given] of this.#given)
      if (given === house || one.name === traveller) this.#watched.push(this.#comesBack(one, house));
  }

  /** Within the time, wherever the room lives by then, unless the introducer that it was given has gone again. */
  async #comesBack(one: ParticipantProgram, house: House): Promise<void> {
    const [{ life }, restartedAt] = [house, now()];
    const isBack = () => {
      const last = one.seen.findLast(({ event }) => event === "registered" || event === "introducer");
      return last?.event === "registered";
    };
    const isSame = () => house.life === life && !house.isGone;
    while (!isBack() && isSame() && now() - restartedAt < backMs) await Bun.sleep(20);
    if (isBack()) this.report.slowestBackMs = Math.max(this.report.slowestBackMs, now() - restartedAt);
    else if (isSame()) this.#problem(`${one.name} was not back ${backMs / 1000} s after its introducer`);
  }

  /** Connects to somebody, or ends a link. */
  async #wander(one: ParticipantProgram, untilAt: number, random: Random): Promise<void> {
    while (now() < untilAt) {
      await pause(random, 200, 2000);
      const other = random.of(this.#everyone.filter((another) => another !== one));
      if (random.below(3) === 0) await this.#obey(one, `disconnect ${other.name}`);
      else await this.#connect(one, other);
    }
  }

  async #connect(one: ParticipantProgram, other: ParticipantProgram): Promise<void> {
    this.report.connects += 1;
    const from = now();
    await this.#obey(one, `connect ${other.name}`);
    this.report.slowestConnectMs = Math.max(this.report.slowestConnectMs, now() - from);
  }

  async #obey(one: ParticipantProgram, command: string): Promise<void> {
    await obeyed(one, connectDeadlineMs, command).catch((error: unknown) =>
      this.#problem(`${command}: ${String(error)}`),
    );
  }

  async #part(one: ParticipantProgram): Promise<void> {
    for (const other of this.#everyone) if (other !== one) await this.#obey(one, `disconnect ${other.name}`);
  }

  // --- what must hold ------------------------------------------------------------------------------------

  /** Resolves once everyone sees everyone else as they are. */
  async #agreement(): Promise<void> {
    const untilAt = now() + wholeMs;
    for (;;) {
      const views = await Promise.all(this.#everyone.map((one) => this.#view(one)));
      const wrong = views.flat();
      if (wrong.length === 0) return;
      if (now() >= untilAt) return wrong.forEach((what) => this.#problem(what));
      await Bun.sleep(200);
    }
  }

  /** What is wrong with what one sees. */
  async #view(one: ParticipantProgram): Promise<string[]> {
    await this.#obey(one, "list");
    const { peers } = one.all("peers").at(-1)!;
    const rows = peers.filter(({ present }) => present);
    const wrong = this.#everyone.flatMap((other) => {
      const [registered, mapping] = [other.all("registered").at(-1)!, other.all("mapping").at(-1)?.mapping];
      const row = rows.find(({ id }) => id === registered.id);
      const seen = row && [row.name, row.public, row.mapping];
      const real = other === one ? undefined : [other.name, registered.public, mapping];
      return Bun.deepEquals(seen, real)
        ? []
        : [`${one.name} sees ${other.name} as ${String(seen)}, not ${String(real)}`];
    });
    return rows.length === this.#everyone.length - 1
      ? wrong
      : [...wrong, `${one.name} sees ${rows.length} others`];
  }

  /** In the end nothing keeps any two of them apart. */
  async #allLink(): Promise<void> {
    for (const [at, one] of this.#everyone.entries())
      for (const other of this.#everyone.slice(at + 1)) {
        const state = async () => {
          await this.#obey(one, "list");
          return one
            .all("peers")
            .at(-1)!
            .peers.find(({ name }) => name === other.name)?.state;
        };
        const isLinked = async () => (await state()) === "linked";
        // A relayed link comes back after the end of the introducer that it went by.
        const untilAt = now() + quietMs;
        while ((await state()) === "returning" && now() < untilAt) await Bun.sleep(100);
        for (let tries = 0; tries < 2 && !(await isLinked()); tries++) await this.#connect(one, other);
        if (!(await isLinked()))
          this.#problem(`${one.name} and ${other.name} can't link: ${JSON.stringify(one.seen.slice(-8))}`);
      }
  }

  #judge(): void {
    const names = new Map<number, string>();
    for (const one of this.#everyone)
      for (const { id, name } of one.all("registered")) {
        if (name !== one.name) this.#problem(`${one.name} became ${name}`);
        if ((names.get(id) ?? name) !== name) this.#problem(`${name} and ${names.get(id)} had the id ${id}`);
        names.set(id, name);
      }
    for (const one of this.#everyone) {
      for (const event of one.seen) this.#judgeEvent(one, event, names);
      const { exitCode, signalCode } = one.process;
      if ((exitCode ?? signalCode) !== null)
        this.#problem(`${one.name} has ended: ${exitCode ?? signalCode}`);
    }
    for (const { program } of this.#houses) {
      for (const { message } of program.all("error")) this.#problem(`an introducer: ${message}`);
    }
  }

  #judgeEvent(one: ParticipantProgram, event: ParticipantEvent, names: ReadonlyMap<number, string>): void {
    const ids =
      event.event === "peers"
        ? event.peers.map(({ id, name }) => ({ id, name }))
        : "peer" in event && event.peer !== null
          ? [{ id: event.peer, name: event.name }]
          : [];
    for (const { id, name } of ids)
      if (names.get(id) !== name)
        this.#problem(`${one.name} was told that ${id} is ${name}, not ${names.get(id)}`);
    if (event.event === "linked") this.#count(`linked: ${event.route}`);
    if (event.event === "failed") this.#count(`failed: ${event.reason}`);
    if (event.event === "broken") this.#count("broken");
    if (event.event === "moved") this.#count(`moved: ${event.route}`);
    if (event.event !== "unlinked") return;
    this.#count(`unlinked: ${event.reason}`);
    if (!wanted.has(event.reason))
      this.#problem(`${one.name} lost ${event.name}: ${event.reason} (${event.detail})`);
  }

  async #noLeak(before: number[], own: number[]): Promise<void> {
    const all = [...this.#everyone, ...this.#houses.map(({ program }) => program)];
    // Participants may all be at one introducer now.
    const bounds = [...before, ...own.map((count) => count + this.#everyone.length)];
    const untilAt = now() + quietMs;
    const leaks = () =>
      all.flatMap((one, at) => {
        const [count, bound] = [descriptors(one), bounds[at]! + spareDescriptors];
        return count > bound
          ? [`${one.name} has ${count} descriptors, before ${before[at] ?? own[at - before.length]}`]
          : [];
      });
    while (leaks().length > 0 && now() < untilAt) await Bun.sleep(100);
    for (const leak of leaks()) this.#problem(leak);
  }

  #happens(what: string): void {
    this.#count(what.replace(/introducer \d/, "an introducer"));
    this.#say(what);
  }

  #problem(what: string): void {
    this.report.problems.push(what);
    this.#say(`PROBLEM: ${what}`);
  }

  #say(what: string): void {
    this.#log(`${((now() - this.#startedAt) / 1000).toFixed(1).padStart(6)} s  ${what}`);
  }

  #count(what: string): void {
    this.report.counts.set(what, (this.report.counts.get(what) ?? 0) + 1);
  }
}

/** A host on which that name has these addresses. */
function naming(host: Host, name: string, addresses: string[], file: string): Place {
  const script = `printf '${addresses.map((address) => `${address} ${name}\\n`).join("")}' >${file}
mount --bind ${file} /etc/hosts
exec "$@"`;
  return {
    name: host.name,
    address: host.address,
    spawn: (command, options) =>
      host.spawn(["unshare", "-m", "sh", "-ec", script, "sh", ...command], options),
  };
}

/** Sets the scene in an empty lab, and lets it storm for so long. */
export async function storm(
  lab: Lab,
  people: People,
  seconds: number,
  seed: number,
  log: (line: string) => void = () => {},
): Promise<StormReport> {
  await using redis = await RedisServer.start(await lab.host("redis", { owdMs: 1 }));
  const hosts = [await lab.host("introducer1", { owdMs }), await lab.host("introducer2", { owdMs })];
  const houses = hosts.map((host) => new House(people, host, redis.url));
  for (const house of houses) await house.start();
  await Promise.all(houses.map(({ program }) => program.next("shared")));
  const everyone: [ParticipantProgram, House][] = [];
  for (const [at, [name, side]] of Object.entries(sides).entries()) {
    const [host, house] = [await side(lab, name), houses[at % houses.length]!];
    const isTraveller = name === traveller;
    const addresses = hosts.map(({ address }) => address);
    const place = isTraveller
      ? naming(host, "introducers", addresses, `${people.stateOf(name)}-hosts`)
      : host;
    const endpoint = isTraveller ? ("introducers:7000" as Endpoint) : house.program.endpoint;
    everyone.push([await people.participant(name, place, { endpoint }, ["--room", "in the storm"]), house]);
  }
  return await new Storm(seed, redis, houses, everyone, log).run(seconds);
}
