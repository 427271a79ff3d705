/**
 * PeerJS's signalling server (npm `peer`) under the load of `bench introducer`: the same number of joins, each a WebSocket
 * with an id, and then of message exchanges, each an OFFER to a peer and its ANSWER. It is installed into a folder of its
 * own outside this project, for the time of the measurement, and run by Node, where there is one.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Result } from "./introducer.ts";
import { closedLoop, introductionsMs, openLoop, percentile, Server } from "./crowd.ts";

const peerVersion = "1.0.2";
const idleMs = 6000;
/** Addresses of loopback that are connected to, one after the other: the kernel has 28,000 ports for each. */
const perAddress = 5000;
/** What a browser offers is some kilobytes of SDP; ours is what `punch` has. */
const payload = "x".repeat(400);
const program = `
const { PeerServer } = require("peer");
process.on("SIGUSR2", () => globalThis.gc());
PeerServer({ port: 0, concurrent_limit: 1e6, alive_timeout: 1e8 }, (server) => console.log(server.address().port));
`;

/** Installs it; returns why it can't be. */
async function install(folder: string): Promise<string | undefined> {
  await Bun.write(join(folder, "package.json"), "{}");
  await Bun.write(join(folder, "server.cjs"), program);
  const { exitCode, stderr } = await Bun.$`${process.execPath} add peer@${peerVersion}`
    .cwd(folder)
    .nothrow()
    .quiet();
  return exitCode === 0
    ? undefined
    : `it can't be installed (${stderr.toString().trim().split("\n").at(-1)})`;
}

class PeerClient {
  readonly id: string;
  answered: (() => void) | undefined = undefined;
  #socket: WebSocket | undefined;

  constructor(index: number) {
    this.id = `participant-${index}`;
  }

  join(address: string, port: number): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const token = "0123456789";
    const socket = new WebSocket(`ws://${address}:${port}/peerjs?key=peerjs&id=${this.id}&token=${token}`);
    this.#socket = socket;
    socket.onerror = () => reject(new Error(`${this.id} could not join`));
    socket.onmessage = ({ data }) => {
      const text = String(data);
      if (text.startsWith('{"type":"OPEN')) resolve();
      else if (text.startsWith('{"type":"OFFER')) this.#send("ANSWER", /"src":"([^"]+)"/.exec(text)![1]!);
      else this.answered?.();
    };
    return promise;
  }

  offer(to: PeerClient): Promise<void> {
    this.#send("OFFER", to.id);
    return new Promise((resolve) => (this.answered = resolve));
  }

  #send(type: string, dst: string): void {
    this.#socket!.send(`{"type":"${type}","dst":"${dst}","payload":"${payload}"}`);
  }

  close(): void {
    this.#socket?.terminate();
  }
}

/** What it does with so many participants; or why that can't be told. */
export async function measurePeerJs(count: number): Promise<Result | string> {
  const folder = mkdtempSync(join(tmpdir(), "bench-peerjs-"));
  try {
    const problem = await install(folder);
    if (problem !== undefined) return problem;
    const node = Bun.which("node");
    const command = node === null ? [process.execPath, "--expose-gc"] : [node, "--expose-gc"];
    await using server = await Server.run([...command, join(folder, "server.cjs")]);
    return await measure(server, count);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function measure(server: Server, count: number): Promise<Result> {
  const clients = Array.from({ length: count }, (_, index) => new PeerClient(index));
  const join = async (from: number, to: number) => {
    const startedAt = performance.now();
    let next = from;
    const timesMs = await closedLoop(() => {
      if (next === to) return undefined;
      const address = `127.0.1.${1 + Math.floor(next / perAddress)}`;
      return clients[next++]!.join(address, server.port);
    });
    return { joins: ((to - from) * 1000) / (performance.now() - startedAt), timesMs };
  };
  await join(0, count / 2);
  const before = await server.residentKib();
  const { joins, timesMs: joinTimesMs } = await join(count / 2, count);
  const kib = ((await server.residentKib()) - before) / (count / 2);
  const idleFrom = server.busyMs;
  await Bun.sleep(idleMs);
  const idlePercent = (100 * (server.busyMs - idleFrom)) / idleMs;
  const free = Array.from({ length: count / 2 }, (_, n) => [clients[2 * n]!, clients[2 * n + 1]!] as const);
  const exchange = () => {
    const pair = free.shift();
    return pair && pair[0].offer(pair[1]).then(() => void free.push(pair));
  };
  const [from, busyFrom] = [performance.now(), server.busyMs];
  const isOver = () => performance.now() - from >= introductionsMs;
  const timesMs = await closedLoop(() => (isOver() ? undefined : exchange()));
  const introductions = (timesMs.length * 1000) / (performance.now() - from);
  const busyMicroseconds = ((server.busyMs - busyFrom) * 1000) / timesMs.length;
  const halfTimesMs = await openLoop(introductions / 2, introductionsMs, exchange);
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
