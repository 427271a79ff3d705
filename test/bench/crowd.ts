/**
 * What the benches of the introducer share: the server in a process of its own, seen from outside, and a crowd of
 * participants that parse nothing they need not, from as many addresses of loopback as there shall be.
 */
import { readFileSync } from "node:fs";
import type { Socket, SocketHandler } from "bun";
import * as libc from "../../native/host/libc.ts";
import { encodeSockaddr } from "../../native/host/sockaddr.ts";
import { adoptable } from "../../native/host/socket.ts";
import { encode, protocolVersion, type Endpoint, type ToIntroducer } from "../../protocol.ts";
import { median, quick } from "./run.ts";

const settleMs = quick(1500, 100);
/** How many introductions, or joins, each server has under way at once. */
export const underWay = 200;
/** Participants at one address of loopback: the kernel has 28,000 ports for each. */
const perAddress = 5000;
/** A kernel's clock tick, in which /proc tells processor time (USER_HZ). */
const clockTickMs = 10;

export const percentile = (values: number[], part: number) =>
  values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * part)] ?? NaN;

/** Processor time of a process so far, of user and system. */
export function processorMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) * clockTickMs;
}

// --- the server, from outside ----------------------------------------------------------------------------

export class Server implements AsyncDisposable {
  readonly count = 1;
  readonly port: number;
  readonly #process: Bun.Subprocess;

  private constructor(process: Bun.Subprocess, port: number) {
    this.#process = process;
    this.port = port;
  }

  static start(...args: string[]): Promise<Server> {
    return Server.run([process.execPath, `${import.meta.dir}/introducer-fixture.ts`, ...args]);
  }

  /** A program that prints its port, and collects its garbage on SIGUSR2. */
  static async run(command: string[]): Promise<Server> {
    const child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    const { value } = await child.stdout.getReader().read();
    return new Server(child, Number(new TextDecoder().decode(value)));
  }

  get busyMs(): number {
    return processorMs(this.#process.pid);
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

/** Connects to this host from one of its addresses, at once; rejects with what the kernel says. */
export function connectFrom(
  address: string,
  port: number,
  socket: SocketHandler<undefined>,
): Promise<Socket> {
  const family = address.includes(":") ? 6 : 4;
  const fd = libc.socket(family);
  try {
    libc.bind(fd, encodeSockaddr({ family, address, port: 0 }));
    libc.connect(fd, encodeSockaddr({ family, address: family === 6 ? "::1" : "127.0.0.1", port }));
  } catch (error) {
    libc.close(fd);
    throw error;
  }
  return Bun.connect({ ...adoptable(fd), socket });
}

const at = (line: Uint8Array, index: number) => String.fromCharCode(line[index] ?? 0);
const typeAt = '{"type":"'.length;

function tokenOf(line: Buffer): string {
  const start = line.indexOf('"token":"') + 9;
  return line.toString("latin1", start, start + 32);
}

function unexpected(line: string): void {
  throw new Error(`unexpected: ${line}`);
}

/** A participant that does what the bench needs, and reads of a line what it must. */
export class Client {
  id = 0;
  partner: Client | undefined = undefined;
  /** Told the port of another introducer, where its room lives there. */
  joined: ((elsewhere?: number) => void) | undefined = undefined;
  punched: (() => void) | undefined = undefined;
  /** Instead of punching it waits to be relayed. */
  relayed: ((token: string) => void) | undefined = undefined;
  echoed: (() => void) | undefined = undefined;
  /** Hears the lines that say who is in the room. */
  told: ((line: Buffer) => void) | undefined = undefined;
  /** Nobody is refused, and nothing fails, unless a bench means it. */
  refused = unexpected;
  failed = unexpected;
  readonly #index: number;
  readonly #room: string;
  #socket: Socket | undefined;
  #rest: Buffer | undefined;

  constructor(index: number, room: string) {
    this.#index = index;
    this.#room = room;
  }

  async open(port: number, address = "127.0.0.1"): Promise<void> {
    const data = (_: Socket, chunk: Buffer) => this.#data(chunk);
    this.#socket = await connectFrom(address, port, { data });
  }

  close(): void {
    this.#socket?.terminate();
  }

  /** Resolves to the port of the introducer where its room lives, if that is another. */
  join(): Promise<number | undefined> {
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
    if (this.told && (type === "pe" || type === "jo")) this.told(line);
    if (type === "pu") this.#punch(line);
    else if (type === "pi") this.#socket!.write(line.toString("latin1").replace("ping", "pong") + "\n");
    else if (type === "ec") this.echoed?.();
    else if (type === "el") this.joined?.(Number(/"port":(\d+)/.exec(line.toString("latin1"))![1]));
    else if (type === "re" && at(line, typeAt + 2) === "f") this.refused(line.toString());
    else if (type === "re" && at(line, typeAt + 2) === "l") this.relayed?.(tokenOf(line));
    else if (type === "re") this.id = Number(/"id":(\d+)/.exec(line.toString("latin1"))![1]);
    else if (type === "pe" && line.includes('"more":false', line.length - 16)) this.joined?.();
    else if (type === "fa") this.failed(line.toString());
    else if (type === "by") unexpected(line.toString());
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

  say(message: ToIntroducer): void {
    this.#socket!.write(encode(message));
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

/** Runs so many at once of what `next` begins, until it begins nothing; returns how long each took. */
async function closedLoop(atOnce: number, next: () => Promise<void> | undefined): Promise<number[]> {
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
  await Promise.all(Array.from({ length: atOnce }, worker));
  return timesMs;
}

/** Begins so many a second, however long they take; each counts from when it was due. */
export async function openLoop(
  perSecond: number,
  durationMs: number,
  next: () => Promise<void> | undefined,
): Promise<number[]> {
  const timesMs: number[] = [];
  const startedAt = performance.now();
  const pending: Promise<void>[] = [];
  for (let count = 0; count < (perSecond * durationMs) / 1000;) {
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
export class Pairs {
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

// --- what is measured ------------------------------------------------------------------------------------

/** How long it all takes: the rate is the median of so many runs. */
export interface Pace {
  runs: number;
  introductionsMs: number;
  idleMs: number;
}
export const shortPace: Pace = quick(
  { runs: 3, introductionsMs: 1500, idleMs: 3000 },
  { runs: 1, introductionsMs: 100, idleMs: 100 },
);
export const longPace: Pace = { runs: 5, introductionsMs: 4000, idleMs: 6000 };

/** A server, or `count` of them that are as one. */
export interface Measured {
  readonly count: number;
  readonly busyMs: number;
  residentKib(): Promise<number>;
}

export interface Joins {
  joins: number;
  joinP99Ms: number;
  joinMicroseconds: number;
  kib: number;
  idlePercent: number;
}

export interface Introduced {
  introductions: number;
  /** Processor time for one, of the server and of the load. */
  busyMicroseconds: number;
  loadMicroseconds: number;
  p99Ms: number;
  halfP99Ms: number;
}

/** Joins and what they cost. Of the participants the second half is counted: what the compiler takes is no participant's. */
export async function measureJoins(
  server: Measured,
  count: number,
  join: (index: number, address: string) => Promise<void>,
  idleMs: number,
): Promise<Joins> {
  const joinAll = async (from: number, to: number) => {
    const [startedAt, busyFrom] = [performance.now(), server.busyMs];
    let next = from;
    const timesMs = await closedLoop(server.count * underWay, () => {
      if (next === to) return undefined;
      return join(next, `127.0.1.${1 + Math.floor(next++ / perAddress)}`);
    });
    const joins = ((to - from) * 1000) / (performance.now() - startedAt);
    const joinMicroseconds = ((server.busyMs - busyFrom) * 1000) / (to - from);
    return { joins, joinMicroseconds, joinP99Ms: percentile(timesMs, 0.99) };
  };
  await joinAll(0, count / 2);
  const before = await server.residentKib();
  const joined = await joinAll(count / 2, count);
  const kib = ((await server.residentKib()) - before) / (count / 2);
  const idleFrom = server.busyMs;
  await Bun.sleep(idleMs);
  return { ...joined, kib, idlePercent: (100 * (server.busyMs - idleFrom)) / idleMs };
}

/** As many introductions as can be, the median of some runs after one that warms up; then half as many, by the clock. */
export async function measureIntroductions(
  server: Pick<Measured, "count" | "busyMs">,
  introduce: () => Promise<void> | undefined,
  { runs, introductionsMs }: Pace,
): Promise<Introduced> {
  const run = async () => {
    const [from, busyFrom, ownFrom] = [performance.now(), server.busyMs, processorMs(process.pid)];
    const isOver = () => performance.now() - from >= introductionsMs;
    const timesMs = await closedLoop(server.count * underWay, () => (isOver() ? undefined : introduce()));
    return {
      introductions: (timesMs.length * 1000) / (performance.now() - from),
      busyMicroseconds: ((server.busyMs - busyFrom) * 1000) / timesMs.length,
      loadMicroseconds: ((processorMs(process.pid) - ownFrom) * 1000) / timesMs.length,
      p99Ms: percentile(timesMs, 0.99),
    };
  };
  await run();
  const all: Awaited<ReturnType<typeof run>>[] = [];
  while (all.length < runs) all.push(await run());
  const middle = (of: (one: (typeof all)[number]) => number) => median(all.map(of));
  const introductions = middle((one) => one.introductions);
  const halfTimesMs = await openLoop(introductions / 2, introductionsMs, introduce);
  return {
    introductions,
    busyMicroseconds: middle((one) => one.busyMicroseconds),
    loadMicroseconds: middle((one) => one.loadMicroseconds),
    p99Ms: middle((one) => one.p99Ms),
    halfP99Ms: percentile(halfTimesMs, 0.99),
  };
}
