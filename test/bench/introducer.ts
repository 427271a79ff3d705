/**
 * What an introducer can do: joins and introductions a second, how long they take, memory and processor time of a
 * participant, each against a bare `Bun.listen` that moves as many lines of the same length, and against PeerJS; and
 * four introducers that share one Redis. The load comes from this process, by sockets that parse nothing they need not;
 * the server is another one. Two cores are enough, and needed.
 */
import { descriptorLimit } from "../../native/host/socket.ts";
import {
  Client,
  longPace,
  measureIntroductions,
  measureJoins,
  openLoop,
  Pairs,
  percentile,
  Server,
  shortPace,
  underWay,
  type Introduced,
  type Joins,
  type Pace,
} from "./crowd.ts";
import { measurePeerJs } from "./peerjs.ts";
import { quick, table } from "./run.ts";
import { compareShared } from "./shared.ts";

/** Of this process and of the server: each connection takes one in both. */
const descriptors = Math.min(descriptorLimit() - 1000, quick(60_000, 400));
const scenarios = [
  { name: "rooms of 10", roomSize: 10, rooms: Math.floor(descriptors / 10), goal: 20_000, peerJs: true },
  { name: "rooms of 250", roomSize: 250, rooms: quick(4, 1), goal: 10_000, peerJs: false },
  { name: "room of 2000", roomSize: quick(2000, 500), rooms: 1, goal: 10_000, peerJs: false },
];
type Scenario = (typeof scenarios)[number];
const goals = { p99Ms: 50, kib: 4, relayed: 2, peerJs: 10 };
/** Relayed links that send all they may, and the introductions a second beside them. */
const relays = quick(50, 4);
const besideRelays = quick(3000, 300);
const besideRooms = quick(100, 10);
/** A room in which everybody is being introduced to everybody: 16,110 introductions. */
const crowdSize = quick(180, 20);
const echoes = quick(300, 30);
const settleMs = quick(1500, 100);

// --- one server, one scenario ----------------------------------------------------------------------------

/** What one server did. */
type Result = Joins & Introduced;

async function measure(kind: string, { roomSize, rooms }: Scenario, pace: Pace): Promise<Result> {
  await using server = await Server.start(kind, String(roomSize));
  const room = (index: number) => `room ${Math.floor(index / roomSize)}`;
  const clients = Array.from({ length: roomSize * rooms }, (_, index) => new Client(index, room(index)));
  // Connected as they join: more connections than the kernel lets wait would be lost.
  const join = async (index: number, address: string) => {
    await clients[index]!.open(server.port, address);
    await clients[index]!.join();
  };
  const joins = await measureJoins(server, clients.length, join, pace.idleMs);
  const inRooms = Array.from({ length: rooms }, (_, n) => clients.slice(n * roomSize, (n + 1) * roomSize));
  const pairs = new Pairs(inRooms);
  const introduced = await measureIntroductions(server, () => pairs.introduce(), pace);
  for (const client of clients) client.close();
  return { ...joins, ...introduced };
}

// --- beside full relays ----------------------------------------------------------------------------------

/** The ends of relayed links, in a process of their own: filling buffers must not hold up who measures. */
class RelayLoad implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"ignore", "pipe">;
  readonly #lines: AsyncIterator<Uint8Array>;

  constructor(port: number, tokens: string[]) {
    const fixture = `${import.meta.dir}/introducer-fixture.ts`;
    const command = [process.execPath, fixture, "relays", String(port), ...tokens];
    this.#process = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    this.#lines = this.#process.stdout[Symbol.asyncIterator]();
  }

  /** All bytes that have come so far. */
  async bytes(): Promise<number> {
    this.#process.kill("SIGUSR2");
    const { value } = await this.#lines.next();
    return Number(new TextDecoder().decode(value));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
  }
}

async function people(
  port: number,
  count: number,
  room: (index: number) => string,
  from = 0,
): Promise<Client[]> {
  const clients = Array.from({ length: count }, (_, index) => new Client(from + index, room(index)));
  for (const client of clients) await client.open(port);
  await Promise.all(clients.map((client) => client.join()));
  return clients;
}

async function besideFullRelays({ introductionsMs }: Pace): Promise<void> {
  await using server = await Server.start("introducer");
  const crowd = await people(server.port, 10 * besideRooms, (index) => `room ${Math.floor(index / 10)}`);
  const relayed = await people(server.port, 2 * relays, () => "relayed", crowd.length);
  const inRooms = Array.from({ length: besideRooms }, (_, n) => crowd.slice(n * 10, n * 10 + 10));
  const pairs = new Pairs(inRooms);
  await openLoop(besideRelays, introductionsMs, () => pairs.introduce()); // warms up
  const alone = await openLoop(besideRelays, introductionsMs, () => pairs.introduce());
  const tokens = Array.from({ length: relays }, (_, n) =>
    relayed[2 * n]!.introduceByRelay(relayed[2 * n + 1]!),
  );
  await using load = new RelayLoad(server.port, await Promise.all(tokens));
  await Bun.sleep(settleMs);
  const [from, before] = [performance.now(), await load.bytes()];
  const beside = await openLoop(besideRelays, introductionsMs, () => pairs.introduce());
  const mib = ((await load.bytes()) - before) / (performance.now() - from) / 1024 / 1.024;
  const [p99Alone, p99Beside] = [percentile(alone, 0.99), percentile(beside, 0.99)];
  const row = (what: string, times: number[]) => [
    what,
    `${percentile(times, 0.5).toFixed(1)} ms`,
    `${percentile(times, 0.99).toFixed(1)} ms`,
    "",
  ];
  console.log(
    table([
      [`${besideRelays} introductions a second`, "median", "99th percentile", ""],
      row("nothing relayed", alone),
      row(`beside ${relays} full relays`, beside),
      [
        `they relay ${mib.toFixed(2)} MiB/s`,
        "",
        `${(p99Beside / p99Alone).toFixed(2)} ×`,
        `≤ ${goals.relayed} ×`,
      ],
    ]),
  );
  console.log("");
}

// --- beside many introductions ---------------------------------------------------------------------------

async function besideManyIntroductions(): Promise<void> {
  await using server = await Server.start("introducer");
  const [bystander] = (await people(server.port, 1, () => "elsewhere")) as [Client];
  const crowd = await people(server.port, crowdSize, () => "crowd", 1);
  const look = async () => {
    const timesMs: number[] = [];
    for (let n = 0; n < echoes; n++) {
      const from = performance.now();
      await bystander.echo();
      timesMs.push(performance.now() - from);
    }
    return timesMs;
  };
  await look(); // warms up
  const before = await look();
  for (const [n, client] of crowd.entries()) {
    for (const other of crowd.slice(0, n)) client.askOnly(other);
    await bystander.echo(); // and is so read, one after the other
  }
  await Bun.sleep(settleMs);
  const beside = await look();
  const row = (what: string, times: number[]) => [
    what,
    `${percentile(times, 0.5).toFixed(2)} ms`,
    `${percentile(times, 0.99).toFixed(2)} ms`,
  ];
  const under = (crowdSize * (crowdSize - 1)) / 2;
  console.log(
    table([
      ["a bystander's echo", "median", "99th percentile"],
      row("alone", before),
      row(`beside ${under} introductions`, beside),
    ]),
  );
  console.log("");
}

// --- the table -------------------------------------------------------------------------------------------

async function compare(scenario: Scenario, pace: Pace): Promise<void> {
  const { roomSize, rooms, name, goal } = scenario;
  const ours = await measure("introducer", scenario, pace);
  const floor = await measure("bare", scenario, pace);
  const peerJs = scenario.peerJs ? await measurePeerJs(roomSize * rooms, pace) : undefined;
  const columns: Record<string, Result> = { introducer: ours, floor };
  if (typeof peerJs === "object") {
    columns.PeerJS = { ...peerJs.joins, ...peerJs.least };
    columns["with candidates"] = { ...peerJs.joins, ...peerJs.whole };
  }
  const row = (what: string, of: (result: Result) => number, unit = "", wanted = "", digits = 0) => [
    what,
    ...Object.values(columns).map((result) => `${of(result).toFixed(digits)}${unit}`),
    wanted,
  ];
  const rows = [
    [`${rooms} ${name}`, ...Object.keys(columns), "goal"],
    row("joins a second", ({ joins }) => joins),
    row("- 99th percentile", ({ joinP99Ms }) => joinP99Ms, " ms", "", 1),
    row("- processor for one", ({ joinMicroseconds }) => joinMicroseconds, " µs"),
    row("memory of a participant", ({ kib }) => kib, " KiB", `≤ floor + ${goals.kib} KiB`, 1),
    row("processor while idle", ({ idlePercent }) => idlePercent, " %", "", 2),
    row("introductions a second", (one) => one.introductions, "", `≥ ${goal}`),
    row("- 99th percentile", ({ p99Ms }) => p99Ms, " ms", "", 1),
    row("- at half that rate", ({ halfP99Ms }) => halfP99Ms, " ms", `≤ ${goals.p99Ms} ms`, 1),
    row("- processor for one", (one) => one.busyMicroseconds, " µs"),
    row("- of the load", (one) => one.loadMicroseconds, " µs"),
  ];
  console.log(table(rows));
  if (typeof peerJs === "string") console.log(`without PeerJS: ${peerJs}`);
  if (typeof peerJs === "object") console.log(`\n${againstPeerJs(columns)}`);
  console.log("");
}

/** How many times what PeerJS does, and what nothing that answers by Bun's sockets can go beyond. */
function againstPeerJs(columns: Record<string, Result>): string {
  const { introducer, floor, PeerJS: least, "with candidates": whole } = columns as Record<string, Result>;
  const times = (ours: number, theirs: number) => `${(ours / theirs).toFixed(1)} ×`;
  const row = (what: string, of: (result: Result) => number, theirs: number) => [
    what,
    times(of(introducer!), theirs),
    times(of(floor!), theirs),
    `≥ ${goals.peerJs} ×`,
  ];
  return table([
    ["against PeerJS", "introducer", "floor", "goal"],
    row("joins a second", ({ joins }) => joins, least!.joins),
    row("- by processor", ({ joinMicroseconds }) => 1 / joinMicroseconds, 1 / least!.joinMicroseconds),
    row("introductions a second", (one) => one.introductions, least!.introductions),
    row("- by processor", (one) => 1 / one.busyMicroseconds, 1 / least!.busyMicroseconds),
    row("with candidates, a second", (one) => one.introductions, whole!.introductions),
    row("- by processor", (one) => 1 / one.busyMicroseconds, 1 / whole!.busyMicroseconds),
  ]);
}

/** `long`: more and longer runs; without it some four minutes. */
export async function bench([word]: string[]): Promise<void> {
  const pace = word === "long" ? longPace : shortPace;
  for (const scenario of scenarios) await compare(scenario, pace);
  await compareShared(pace);
  await besideFullRelays(pace);
  await besideManyIntroductions();
  console.log(`An introduction is three lines read and two written. Each server has ${underWay} under way at once, for ${pace.introductionsMs / 1000} s, the
median of ${pace.runs} times; at half of that rate they are begun by the clock, and count from when they were due. Of the
participants the second half is counted, when the first has warmed the server up; to connect is part of a join. The floor
is a Bun.listen that moves as many lines of the same length in as few writes, and knows nothing. Load and servers share
the cores of this machine, so what one server could do on a core of its own is what it takes of it for one. PeerJS knows
no rooms: a join is told to nobody. For an introduction an OFFER is sent and answered, two messages read and two written;
as its own client does it, with the candidates that \`punch\` has in it, six and six.`);
}
