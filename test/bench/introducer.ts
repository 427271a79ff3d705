/**
 * What an introducer can do: joins and introductions a second, how long they take, memory and processor time of a
 * participant, each against a bare `Bun.listen` that moves as many lines of the same length. The load comes from this
 * process, by sockets that parse nothing they need not; the server is another one. Two cores are enough, and needed.
 */
import { descriptorLimit } from "../../native/socket.ts";
import {
  Client,
  closedLoop,
  introductionsMs,
  openLoop,
  Pairs,
  percentile,
  Server,
  underWay,
} from "./crowd.ts";
import { measurePeerJs } from "./peerjs.ts";
import { table } from "./run.ts";

/** Of this process and of the server: each connection takes one in both. */
const descriptors = Math.min(descriptorLimit() - 1000, 60_000);
const scenarios = [
  { name: "rooms of 10", roomSize: 10, rooms: Math.floor(descriptors / 10), goal: 20_000, peerJs: true },
  { name: "rooms of 250", roomSize: 250, rooms: 4, goal: 10_000, peerJs: false },
  { name: "room of 2000", roomSize: 2000, rooms: 1, goal: 10_000, peerJs: false },
];
type Scenario = (typeof scenarios)[number];
const goals = { p99Ms: 50, kib: 4, relayed: 2, peerJs: 10 };
/** Participants at one address of loopback: the kernel has 28,000 ports for each. */
const perAddress = 5000;
/** Relayed links that send all they may, and the introductions a second beside them. */
const relays = 50;
const besideRelays = 3000;
/** A room in which everybody is being introduced to everybody: 16,110 introductions. */
const crowdSize = 180;
const echoes = 300;
const idleMs = 6000;
const settleMs = 1500;

// --- one server, one scenario ----------------------------------------------------------------------------

/** What one server did. */
export interface Result {
  joins: number;
  joinP99Ms: number;
  kib: number;
  idlePercent: number;
  introductions: number;
  busyMicroseconds: number;
  p99Ms: number;
  halfP99Ms: number;
}

async function measure(kind: string, { roomSize, rooms }: Scenario): Promise<Result> {
  await using server = await Server.start(kind, String(roomSize));
  const count = roomSize * rooms;
  const clients = Array.from(
    { length: count },
    (_, index) => new Client(index, `room ${Math.floor(index / roomSize)}`),
  );
  // Connected as they join: more connections than the kernel lets wait would be lost.
  const join = async (from: number, to: number) => {
    const startedAt = performance.now();
    let next = from;
    const timesMs = await closedLoop(() => {
      if (next === to) return undefined;
      const address = `127.0.1.${1 + Math.floor(next / perAddress)}`;
      const client = clients[next++]!;
      return client.open(server.port, address).then(() => client.join());
    });
    return { joins: ((to - from) * 1000) / (performance.now() - startedAt), timesMs };
  };
  // The first half warms up: what the compiler takes for its code is no participant's memory.
  await join(0, count / 2);
  const before = await server.residentKib();
  const { joins, timesMs: joinTimesMs } = await join(count / 2, count);
  const kib = ((await server.residentKib()) - before) / (count / 2);
  const idleFrom = server.busyMs;
  await Bun.sleep(idleMs);
  const idlePercent = (100 * (server.busyMs - idleFrom)) / idleMs;

  const inRooms = Array.from({ length: rooms }, (_, n) => clients.slice(n * roomSize, (n + 1) * roomSize));
  const pairs = new Pairs(inRooms);
  const [from, busyFrom] = [performance.now(), server.busyMs];
  const isOver = () => performance.now() - from >= introductionsMs;
  const timesMs = await closedLoop(() => (isOver() ? undefined : pairs.introduce()));
  const introductions = (timesMs.length * 1000) / (performance.now() - from);
  const busyMicroseconds = ((server.busyMs - busyFrom) * 1000) / timesMs.length;
  const halfTimesMs = await openLoop(introductions / 2, introductionsMs, () => pairs.introduce());
  for (const client of clients) client.close();
  return {
    joins,
    joinP99Ms: percentile(joinTimesMs, 0.99),
    kib,
    idlePercent,
    introductions,
    busyMicroseconds,
    p99Ms: percentile(timesMs, 0.99),
    halfP99Ms: percentile(halfTimesMs, 0.99),
  };
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

async function besideFullRelays(): Promise<void> {
  await using server = await Server.start("introducer");
  const crowd = await people(server.port, 1000, (index) => `room ${Math.floor(index / 10)}`);
  const relayed = await people(server.port, 2 * relays, () => "relayed", crowd.length);
  const inRooms = Array.from({ length: 100 }, (_, n) => crowd.slice(n * 10, n * 10 + 10));
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

async function compare(scenario: Scenario): Promise<void> {
  const { roomSize, rooms, name, goal } = scenario;
  const ours = await measure("introducer", scenario);
  const bare = await measure("bare", scenario);
  const peerJs = scenario.peerJs ? await measurePeerJs(roomSize * rooms) : undefined;
  const others = [bare, ...(typeof peerJs === "object" ? [peerJs] : [])];
  const row = (what: string, of: (result: Result) => number, unit: string, wanted = "", digits = 0) => [
    what,
    ...[ours, ...others].map((result) => `${of(result).toFixed(digits)}${unit}`),
    wanted,
  ];
  console.log(
    table([
      [`${rooms} ${name}`, "introducer", "bare", "PeerJS", "goal"].filter(
        (_, n) => n < 3 || n === 4 || others[1],
      ),
      row("joins a second", ({ joins }) => joins, ""),
      row("- 99th percentile", ({ joinP99Ms }) => joinP99Ms, " ms", "", 1),
      row("memory of a participant", ({ kib }) => kib, " KiB", `≤ bare + ${goals.kib} KiB`, 1),
      row("processor while idle", ({ idlePercent }) => idlePercent, " %", "", 2),
      row("introductions a second", (one) => one.introductions, "", `≥ ${goal}`),
      row("- 99th percentile", ({ p99Ms }) => p99Ms, " ms", "", 1),
      row("- at half that rate", ({ halfP99Ms }) => halfP99Ms, " ms", `≤ ${goals.p99Ms} ms`, 1),
      row("- processor for one", (one) => one.busyMicroseconds, " µs"),
    ]),
  );
  console.log(typeof peerJs === "string" ? `without PeerJS: ${peerJs}\n` : "");
}

export async function bench(): Promise<void> {
  for (const scenario of scenarios) await compare(scenario);
  await besideFullRelays();
  await besideManyIntroductions();
  console.log(`An introduction is three lines read and two written. ${underWay} are under way at once, and at half of that rate
they are begun by the clock, and count from when they were due. Of the participants the second half is counted,
when the first has warmed the server up; to connect is part of a join. Load and server share the cores of this machine. PeerJS knows no rooms: a join
is told to nobody, and for an introduction an OFFER is sent and answered, two lines read and two written (goal: to do
${goals.peerJs} × its joins and introductions).`);
}
