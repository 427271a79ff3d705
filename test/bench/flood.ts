/**
 * What an honest participant notices of a flood: how long an introduction takes during each kind of it, from one
 * address, from 64, from the 65,536 sources of an IPv6 /48, against how long it takes without, in turns. The
 * introducer is its real program with its ordinary limits. Each round's flood lasts longer than an introducer waits for
 * a `register`, and counts from its first moment, with all that ends meanwhile.
 *
 * What is measured is the introducer and not the scheduler: the honest go before it, and who floods gets what processor
 * time it leaves. So a flood is never throttled by the introducer's being busy, only by what the introducer takes of it.
 */
import { Client, openLoop, Pairs, percentile } from "./crowd.ts";
import { address4, behind, introducerPort, Program, runInNamespace } from "./program.ts";
import { isQuick, median, quick, table } from "./run.ts";

const kinds = [
  "connections",
  "silence",
  "half lines",
  "registrations",
  "introductions",
  "probes",
  "relays",
  "lines",
  "all",
];
const sources = [
  { name: "one address", family: 4, count: 1 },
  { name: "64 addresses", family: 4, count: 64 },
  { name: "a /48", family: 6, count: 1000 },
];
type Source = (typeof sources)[number];
/** Honest pairs, each participant at an address of its own, and how many of them are introduced in a second. */
const pairs = quick(40, 10);
const perSecond = quick(80, 20);
const rounds = quick(3, 1);
const quietMs = quick(3000, 100);
const floodMs = quick(12_000, 400);
const warmUpMs = quick(1000, 100);
/** After a flood, until its last connection is over. */
const settleMs = quick(2000, 50);
/** An introduction that takes longer has failed. */
const giveUpMs = quick(3000, 300);
const goal = 2;

class Flood implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"ignore", "pipe">;

  constructor(kind: string, { family, count }: Source, victim: number) {
    const fixture = `${import.meta.dir}/flood-fixture.ts`;
    const command = [
      ...behind(),
      process.execPath,
      fixture,
      kind,
      String(victim),
      String(family),
      String(count),
    ];
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

  constructor() {
    this.all = Array.from({ length: 2 * pairs }, (_, index) => new Client(index, "lobby"));
    this.#pairs = new Pairs([this.all]);
  }

  async join(): Promise<void> {
    for (const [index, client] of this.all.entries()) {
      client.refused = client.failed = () => {}; // it is the victim's, or the introduction is seen to fail
      await client.open(introducerPort, address4(1, index));
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
const times = (value: number) => (Number.isNaN(value) ? "?" : value.toFixed(1));

interface Round {
  without: number[];
  during: number[];
  busy: number;
  tries: number;
}

async function flood(program: Program, honest: Honest, kind: string, source: Source): Promise<Round> {
  const without = await honest.introduce(quietMs);
  const [from, busyThen] = [performance.now(), program.busyMs];
  await using flooding = new Flood(kind, source, honest.all[0]!.id);
  const during = await honest.introduce(floodMs);
  const elapsedMs = performance.now() - from;
  const busy = (program.busyMs - busyThen) / elapsedMs;
  return { without, during, busy, tries: (await flooding.tries()) / elapsedMs };
}

/** The sources by turns; in a quick run one of them, another one for each kind. */
async function measure(kind: string): Promise<string[][]> {
  await using program = await Program.start();
  const honest = new Honest();
  await honest.join();
  await honest.introduce(warmUpMs);
  const chosen = isQuick ? [sources[kinds.indexOf(kind) % sources.length]!] : sources;
  const all = chosen.map((source) => ({ source, had: [] as Round[] }));
  for (let n = 0; n < rounds; n++) {
    for (const { source, had } of all) {
      had.push(await flood(program, honest, kind, source));
      await honest.introduce(settleMs);
    }
  }
  honest.close();
  return all.map(({ source, had }) => [kind, source.name, ...summary(had)]);
}

function summary(had: Round[]): string[] {
  const of = (what: (round: Round) => number) => median(had.map(what));
  const ratios = had.map(({ without, during }) => percentile(during, 0.99) / percentile(without, 0.99));
  const ratio = median(ratios);
  return [
    Math.round(1000 * of(({ tries }) => tries)).toString(),
    `${(100 * of(({ busy }) => busy)).toFixed(0)} %`,
    ms(of(({ without }) => percentile(without, 0.5))),
    ms(of(({ during }) => percentile(during, 0.5))),
    ms(of(({ without }) => percentile(without, 0.99))),
    ms(of(({ during }) => percentile(during, 0.99))),
    `${times(ratio)} ×${ratio <= goal ? "" : " !"}`,
    ratios.map(times).join(" "),
  ];
}

/** `bun run bench flood [KIND ...]` */
export async function bench(args: string[]): Promise<void> {
  if (await runInNamespace("flood", args)) return;
  const wanted = args.length > 0 ? kinds.filter((kind) => args.includes(kind.replace(" ", "-"))) : kinds;
  const head = [
    "flood of",
    "from",
    "tries a second",
    "introducer",
    "median",
    "during",
    "99th",
    "during",
    "",
    "rounds",
  ];
  const rows = [head];
  for (const kind of wanted) {
    const measured = await measure(kind);
    rows.push(...measured);
    console.error(measured.map((row) => row.join("  ")).join("\n"));
  }
  console.log(table(rows));
  console.log(`
${perSecond} introductions a second of ${2 * pairs} participants in the lobby, each at an address of its own; an introduction is over when
both have been told to punch. ${rounds} rounds of ${quietMs / 1000} s without and ${floodMs / 1000} s with the flood: the median of what each round had. Goal:
a 99th percentile of at most ${goal} × what it is without the flood.`);
}
