/**
 * What an introducer can do: joins and introductions a second, how long they take, memory and processor time of a
 * participant, each against a bare `Bun.listen` that moves as many lines of the same length. The load comes from this
 * process, by sockets that parse nothing they need not; the server is another one. Two cores are enough, and needed.
 */
import { readFileSync } from "node:fs";
import type { Socket } from "bun";
import { encode, protocolVersion, type Endpoint } from "../../protocol.ts";
import { table } from "./run.ts";

const scenarios = [
  { name: "rooms of 10", roomSize: 10, rooms: 200, goal: 15_000 },
  { name: "rooms of 250", roomSize: 250, rooms: 4, goal: 10_000 },
];
type Scenario = (typeof scenarios)[number];
const goals = { p99Ms: 50, kib: 5, relayed: 2 };
/** Relayed links that send all they may, and the introductions a second beside them. */
const relays = 50;
const besideRelays = 3000;
/** A room in which everybody is being introduced to everybody: 16,110 introductions. */
const crowdSize = 180;
const echoes = 300;
const introductionsMs = 4000;
const idleMs = 6000;
/** Introductions and joins under way at once, where as many are made as can be. */
const underWay = 200;
const settleMs = 1500;
/** A kernel's clock tick, in which /proc tells processor time (USER_HZ). */
const clockTickMs = 10;

const percentile = (values: number[], part: number) =>
  values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * part)] ?? NaN;

// --- the server, from outside ----------------------------------------------------------------------------

class Server implements AsyncDisposable {
  readonly port: number;
  readonly #process: Bun.Subprocess;

  private constructor(process: Bun.Subprocess, port: number) {
    this.#process = process;
    this.port = port;
  }

  static async start(kind: string, roomSize: number): Promise<Server> {
    const fixture = `${import.meta.dir}/introducer-fixture.ts`;
    const command = [process.execPath, fixture, kind, String(roomSize)];
    const child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    const { value } = await child.stdout.getReader().read();
    return new Server(child, Number(new TextDecoder().decode(value)));
  }

  /** Processor time so far, of user and system. */
  get busyMs(): number {
    const fields = readFileSync(`/proc/${this.#process.pid}/stat`, "utf8").split(") ")[1]!.split(" ");
    return (Number(fields[11]) + Number(fields[12])) * clockTickMs;
  }

  /** Resident memory, once what nobody needs any more has been collected. */
  async residentKib(): Promise<number> {
    this.#process.kill("SIGUSR2");
    await Bun.sleep(settleMs);
    const status = readFileSync(`/proc/${this.#process.pid}/status`, "utf8");
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)![1]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
  }
}

// --- the load --------------------------------------------------------------------------------------------

const at = (line: Uint8Array, index: number) => String.fromCharCode(line[index] ?? 0);
const typeAt = '{"type":"'.length;

function tokenOf(line: Buffer): string {
  const start = line.indexOf('"token":"') + 9;
  return line.toString("latin1", start, start + 32);
}

/** A participant that does what the bench needs, and reads of a line what it must. */
class Client {
  id = 0;
  partner: Client | undefined = undefined;
  joined: (() => void) | undefined = undefined;
  punched: (() => void) | undefined = undefined;
  /** Instead of punching it waits to be relayed. */
  relayed: ((token: string) => void) | undefined = undefined;
  echoed: (() => void) | undefined = undefined;
  readonly #index: number;
  readonly #room: string;
  #socket: Socket | undefined;
  #rest: Buffer | undefined;

  constructor(index: number, room: string) {
    this.#index = index;
    this.#room = room;
  }

  async open(port: number): Promise<void> {
    const data = (_: Socket, chunk: Buffer) => this.#data(chunk);
    this.#socket = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data } });
  }

  close(): void {
    this.#socket?.terminate();
  }

  join(): Promise<void> {
    const hex = (digits: number) => this.#index.toString(16).padStart(digits, "0");
    const line = encode({
      type: "register",
      version: protocolVersion,
      name: `participant-${this.#index}`,
      room: this.#room,
      instance: hex(16),
      fingerprint: hex(64),
      private: [`192.168.1.5:${1024 + this.#index}` as Endpoint],
      links: [],
    });
    return new Promise((resolve) => {
      this.joined = resolve;
      this.#socket!.write(line);
    });
  }

  /** Asks for an introduction; resolves when both have been told to punch. */
  introduce(partner: Client): Promise<void> {
    return new Promise((resolve) => {
      let awaited = 2;
      this.punched = partner.punched = () => {
        if (--awaited === 0) resolve();
      };
      this.partner = partner;
      partner.partner = this;
      this.#socket!.write(`{"type":"connect","peer":${partner.id}}\n`);
    });
  }

  #data(chunk: Buffer): void {
    const bytes = this.#rest ? Buffer.concat([this.#rest, chunk]) : chunk;
    let from = 0;
    for (let lf = bytes.indexOf(10); lf !== -1; lf = bytes.indexOf(10, from)) {
      this.#line(bytes.subarray(from, lf));
      from = lf + 1;
    }
    this.#rest = from < bytes.length ? bytes.subarray(from) : undefined;
  }

  #line(line: Buffer): void {
    const type = at(line, typeAt) + at(line, typeAt + 1);
    if (type === "pu") this.#punch(line);
    else if (type === "pi") this.#socket!.write(line.toString("latin1").replace("ping", "pong") + "\n");
    else if (type === "ec") this.echoed?.();
    else if (type === "re" && at(line, typeAt + 2) === "l") this.relayed?.(tokenOf(line));
    else if (type === "re") this.id = Number(/"id":(\d+)/.exec(line.toString("latin1"))![1]);
    else if (type === "pe" && line.includes('"more":false', line.length - 16)) this.joined?.();
    else if (type === "fa" || type === "by") throw new Error(`unexpected: ${line}`);
  }

  /** Asks for an introduction; resolves to the token of the relay that is offered when nothing comes of it. */
  introduceByRelay(partner: Client): Promise<string> {
    this.#socket!.write(`{"type":"connect","peer":${partner.id}}\n`);
    partner.relayed = () => {};
    return new Promise((resolve) => (this.relayed = resolve));
  }

  /** Asks, and says nothing of what becomes of it. */
  askOnly(partner: Client): void {
    this.relayed = partner.relayed = () => {};
    this.#socket!.write(`{"type":"connect","peer":${partner.id}}\n`);
  }

  echo(): Promise<void> {
    this.#socket!.write('{"type":"echo","text":""}\n');
    return new Promise((resolve) => (this.echoed = resolve));
  }

  #punch(line: Buffer): void {
    if (this.relayed) return;
    const token = tokenOf(line);
    const ends = '"route":"public","local":"192.168.1.5:4000","remote":"203.0.113.7:5000"';
    this.#socket!.write(`{"type":"linked","peer":${this.partner!.id},"token":"${token}",${ends}}\n`);
    this.punched?.();
  }
}

/** Runs that many at once of what `next` begins, until it begins nothing; returns how long each took. */
async function closedLoop(next: () => Promise<void> | undefined): Promise<number[]> {
  const timesMs: number[] = [];
  const worker = async () => {
    for (;;) {
      const from = performance.now();
      const begun = next();
      if (!begun) return;
      await begun;
      timesMs.push(performance.now() - from);
    }
  };
  await Promise.all(Array.from({ length: underWay }, worker));
  return timesMs;
}

/** Begins so many a second, however long they take; each counts from when it was due. */
async function openLoop(perSecond: number, next: () => Promise<void> | undefined): Promise<number[]> {
  const timesMs: number[] = [];
  const startedAt = performance.now();
  const pending: Promise<void>[] = [];
  for (let count = 0; count < (perSecond * introductionsMs) / 1000;) {
    const dueAt = startedAt + (count * 1000) / perSecond;
    if (performance.now() < dueAt) {
      await Bun.sleep(1); // the period of this clock: what is due meanwhile is begun after it
      continue;
    }
    count += 1;
    const begun = next();
    if (begun) pending.push(begun.then(() => void timesMs.push(performance.now() - dueAt)));
    else timesMs.push(Infinity); // everybody is busy: it can't even be asked for
  }
  await Promise.all(pending);
  return timesMs;
}

/** Pairs of a room that are free, each in turn. */
class Pairs {
  readonly #free: [Client, Client][] = [];

  constructor(rooms: Client[][]) {
    for (const room of rooms) {
      for (let n = 0; n + 1 < room.length; n += 2) this.#free.push([room[n]!, room[n + 1]!]);
    }
  }

  introduce(): Promise<void> | undefined {
    const pair = this.#free.shift();
    if (!pair) return undefined;
    const [asker, other] = pair;
    return asker.introduce(other).then(() => void this.#free.push([other, asker]));
  }
}

// --- one server, one scenario ----------------------------------------------------------------------------

interface Result {
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
  await using server = await Server.start(kind, roomSize);
  const count = roomSize * rooms;
  const clients = Array.from(
    { length: count },
    (_, index) => new Client(index, `room ${Math.floor(index / roomSize)}`),
  );
  for (const client of clients) await client.open(server.port);
  const join = async (some: Client[]) => {
    const queue = [...some];
    const from = performance.now();
    const timesMs = await closedLoop(() => queue.shift()?.join());
    return { joins: (some.length * 1000) / (performance.now() - from), timesMs };
  };
  // The first half warms up: what the compiler takes for its code is no participant's memory.
  await join(clients.slice(0, count / 2));
  const before = await server.residentKib();
  const { joins, timesMs: joinTimesMs } = await join(clients.slice(count / 2));
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
  const halfTimesMs = await openLoop(introductions / 2, () => pairs.introduce());
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
  await using server = await Server.start("introducer", 10);
  const crowd = await people(server.port, 1000, (index) => `room ${Math.floor(index / 10)}`);
  const relayed = await people(server.port, 2 * relays, () => "relayed", crowd.length);
  const inRooms = Array.from({ length: 100 }, (_, n) => crowd.slice(n * 10, n * 10 + 10));
  const pairs = new Pairs(inRooms);
  await openLoop(besideRelays, () => pairs.introduce()); // warms up
  const alone = await openLoop(besideRelays, () => pairs.introduce());
  const tokens = Array.from({ length: relays }, (_, n) =>
    relayed[2 * n]!.introduceByRelay(relayed[2 * n + 1]!),
  );
  await using load = new RelayLoad(server.port, await Promise.all(tokens));
  await Bun.sleep(settleMs);
  const [from, before] = [performance.now(), await load.bytes()];
  const beside = await openLoop(besideRelays, () => pairs.introduce());
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
  await using server = await Server.start("introducer", 10);
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
  const ours = await measure("introducer", scenario);
  const bare = await measure("bare", scenario);
  const row = (what: string, of: (result: Result) => number, unit: string, goal = "", digits = 0) => [
    what,
    `${of(ours).toFixed(digits)}${unit}`,
    `${of(bare).toFixed(digits)}${unit}`,
    goal,
  ];
  console.log(
    table([
      [`${scenario.rooms} ${scenario.name}`, "introducer", "bare", "goal"],
      row("joins a second", ({ joins }) => joins, ""),
      row("- 99th percentile", ({ joinP99Ms }) => joinP99Ms, " ms", "", 1),
      row("memory of a participant", ({ kib }) => kib, " KiB", `≤ ${goals.kib} KiB`, 1),
      row("processor while idle", ({ idlePercent }) => idlePercent, " %", "", 2),
      row("introductions a second", (one) => one.introductions, "", `≥ ${scenario.goal}`),
      row("- 99th percentile", ({ p99Ms }) => p99Ms, " ms", "", 1),
      row("- at half that rate", ({ halfP99Ms }) => halfP99Ms, " ms", `≤ ${goals.p99Ms} ms`, 1),
      row("- processor for one", (one) => one.busyMicroseconds, " µs"),
    ]),
  );
  console.log("");
}

export async function bench(): Promise<void> {
  for (const scenario of scenarios) await compare(scenario);
  await besideFullRelays();
  await besideManyIntroductions();
  console.log(`An introduction is three lines read and two written. ${underWay} are under way at once, and at half of that rate
they are begun by the clock, and count from when they were due. Of the participants the second half is counted,
when the first has warmed the server up. Load and server share the cores of this machine.`);
}
