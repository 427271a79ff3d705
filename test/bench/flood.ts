/**
 * What an honest participant notices of a flood: how long an introduction takes during each kind of it, from one
 * address, from 64, and from the 65,536 subscribers of an IPv6 /48, against how long it takes without. The introducer
 * has its ordinary limits, in a process of its own; who floods is another one, which yields to the rest of this machine.
 *
 * It runs in a network namespace of its own, where a whole /48 is this host's.
 */
import { readFileSync } from "node:fs";
import { Client, openLoop, Pairs, percentile, Server } from "./crowd.ts";
import { table } from "./run.ts";

const kinds = ["connections", "half lines", "registrations", "introductions", "probes", "relays", "lines"];
const sources = [
  { name: "one address", first: "127.0.2.1", count: 1 },
  { name: "64 addresses", first: "127.0.2.1", count: 64 },
  { name: "a /48", first: "2001:db8:0::1", count: 1000 },
];
type Source = (typeof sources)[number];
/** Honest pairs, each participant at an address of its own, and how many of them are introduced in a second. */
const pairs = 40;
const perSecond = 80;
const quietMs = 4000;
const floodMs = 6000;
/** How long a flood goes on before it counts. */
const warmUpMs = 1500;
/** Set where this bench has run itself again, to whether it goes before all else in this machine. */
const mark = "BENCH_FLOOD_NAMESPACE";
/** How who floods is started: elsewhere it would have processors of its own. */
const yielding = process.env[mark] === "first" ? ["chrt", "--other", "0"] : ["nice", "-n", "19"];
/** An introduction that takes longer has failed. */
const giveUpMs = 3000;
const goal = 2;

const isPossible = async (...command: string[]) =>
  (await Bun.$`${[...command, "true"]}`.nothrow().quiet()).exitCode === 0;

/**
 * Runs this bench again where it may have addresses and, as root, where what else goes on in this machine is not taken for
 * the flood; returns whether it could.
 */
async function inNamespace(args: string[]): Promise<boolean> {
  if (process.env[mark]) return false;
  const script = `ip link set lo up && ip -6 route add local 2001:db8::/48 dev lo &&
    echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind && echo 64 >/proc/sys/net/core/somaxconn && exec "$@"`;
  const unshare = ["unshare", "-Urn", "sh", "-c", script, "sh"];
  if (!(await isPossible(...unshare))) return false;
  const first = ["chrt", "--fifo", "1"];
  const isFirst = await isPossible(...first);
  const prefix = isFirst ? [...first, ...unshare] : unshare;
  const command = [...prefix, process.execPath, `${import.meta.dir}/run.ts`, "flood", ...args];
  const env = { ...process.env, [mark]: isFirst ? "first" : "equal" };
  await Bun.spawn(command, { env, stdio: ["ignore", "inherit", "inherit"] }).exited;
  return true;
}

class Flood implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"ignore", "pipe">;

  constructor(kind: string, { first, count }: Source, server: Server, victim: number) {
    const fixture = `${import.meta.dir}/flood-fixture.ts`;
    const where = [server.port, server.probePort, victim].map(String);
    const command = [...yielding, process.execPath, fixture, kind, ...where, first, String(count)];
    this.#process = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  }

  /** How often it has tried so far. */
  async tries(): Promise<number> {
    this.#process.kill("SIGUSR2");
    const { value } = await this.#process.stdout.getReader().read();
    return Number(new TextDecoder().decode(value));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
  }
}

/** Two at a time, all in the room that anybody may enter, where an introduction that fails counts as endless. */
class Honest {
  readonly all: Client[];
  readonly #pairs: Pairs;
  readonly #port: number;

  constructor(port: number) {
    this.#port = port;
    this.all = Array.from({ length: 2 * pairs }, (_, index) => new Client(index, "lobby"));
    this.#pairs = new Pairs([this.all]);
  }

  async join(): Promise<void> {
    for (const [index, client] of this.all.entries()) {
      client.refused = () => {};
      await client.open(this.#port, `127.0.1.${index + 1}`);
      await client.join();
      client.say({ type: "mapping", mapping: "endpoint-independent" });
    }
  }

  async introduce(durationMs: number): Promise<number[]> {
    const timesMs = await openLoop(perSecond, durationMs, () => {
      const begun = this.#pairs.introduce();
      return begun && Promise.race([begun, Bun.sleep(giveUpMs)]);
    });
    return timesMs.map((timeMs) => (timeMs >= giveUpMs ? Infinity : timeMs));
  }

  close(): void {
    for (const client of this.all) client.close();
  }
}

const ms = (value: number) => (value === Infinity ? "never" : `${value.toFixed(2)} ms`);

async function during(kind: string, source: Source): Promise<string[]> {
  await using server = await Server.start("guarded");
  const honest = new Honest(server.port);
  await honest.join();
  await honest.introduce(1000); // warms up
  const without = await honest.introduce(quietMs);
  await using flood = new Flood(kind, source, server, honest.all[0]!.id);
  await honest.introduce(warmUpMs);
  const from = performance.now();
  const busyThen = server.busyMs;
  const times = await honest.introduce(floodMs);
  const busy = (100 * (server.busyMs - busyThen)) / (performance.now() - from);
  const tries = (await flood.tries()) / ((performance.now() - from + warmUpMs) / 1000);
  honest.close();
  const [p99, quietP99] = [percentile(times, 0.99), percentile(without, 0.99)];
  const ratio = p99 / quietP99;
  return [
    kind,
    source.name,
    Math.round(tries).toString(),
    `${busy.toFixed(0)} %`,
    ms(percentile(without, 0.5)),
    ms(percentile(times, 0.5)),
    ms(quietP99),
    ms(p99),
    `${ratio.toFixed(1)} ×${ratio > goal ? " !" : ""}`,
  ];
}

/** `bun run bench flood [KIND ...]` */
export async function bench(args: string[]): Promise<void> {
  if (await inNamespace(args)) return;
  const hasSite = readFileSync("/proc/net/ipv6_route", "utf8").includes("20010db80000");
  const wanted = args.length > 0 ? kinds.filter((kind) => args.includes(kind.replace(" ", "-"))) : kinds;
  const head = ["flood of", "from", "tries a second", "introducer", "median", "during", "99th", "during", ""];
  const rows = [head];
  for (const kind of wanted) {
    for (const source of sources) {
      if (source.first.includes(":") && !hasSite) continue;
      rows.push(await during(kind, source));
      console.error(rows.at(-1)!.join("  "));
    }
  }
  console.log(table(rows));
  if (!hasSite) console.log("\nno /48: this host can't make a network namespace (unshare -Urn, ip)");
  console.log(`
${perSecond} introductions a second of ${2 * pairs} participants in the lobby, each at an address of its own; an introduction is over when
both have been told to punch. Goal: a 99th percentile of at most ${goal} × what it is without the flood.`);
}
