/**
 * PeerJS's signalling server (npm `peer`) under the load of `bench introducer`: the same number of joins, each a WebSocket
 * with an id, and then of message exchanges: an OFFER to a peer and its ANSWER; and the same with CANDIDATEs, for each side
 * has to learn where the other is, and PeerJS's client sends each candidate in a message of its own (onicecandidate in its
 * negotiator.ts). `punch` has two and more: here each side sends two. It is installed into a folder of its own outside
 * this project, for the time of the measurement, and run by Node, where there is one.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  measureIntroductions,
  measureJoins,
  Server,
  type Introduced,
  type Joins,
  type Pace,
} from "./crowd.ts";

const peerVersion = "1.0.2";
/** What a browser offers is a kilobyte of SDP and more; this is what `punch` has. */
const payload = "x".repeat(400);
/** As long as one of a browser. */
const candidate = "x".repeat(200);
const candidatesEach = 2;
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
  /** What is still to come to both sides of the exchange under way. */
  #exchange = { left: 0, candidates: 0, done: () => {} };
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
      if (text.startsWith('{"type":"OPEN')) return resolve();
      if (text.startsWith('{"type":"OFFER')) this.#say("ANSWER", /"src":"([^"]+)"/.exec(text)![1]!);
      if (--this.#exchange.left === 0) this.#exchange.done();
    };
    return promise;
  }

  /** Resolves when each has what the other has sent. */
  exchange(other: PeerClient, candidates: number): Promise<void> {
    return new Promise((done) => {
      this.#exchange = other.#exchange = { left: 2 * (1 + candidates), candidates, done };
      this.#say("OFFER", other.id);
    });
  }

  #say(type: string, dst: string): void {
    this.#send(type, dst, payload);
    for (let n = 0; n < this.#exchange.candidates; n++) this.#send("CANDIDATE", dst, candidate);
  }

  #send(type: string, dst: string, content: string): void {
    this.#socket!.send(`{"type":"${type}","dst":"${dst}","payload":"${content}"}`);
  }

  close(): void {
    this.#socket?.terminate();
  }
}

/** What it does with so many participants, and with candidates, too; or why that can't be told. */
export async function measurePeerJs(
  count: number,
  pace: Pace,
): Promise<{ joins: Joins; least: Introduced; whole: Introduced } | string> {
  const folder = mkdtempSync(join(tmpdir(), "bench-peerjs-"));
  try {
    const problem = await install(folder);
    if (problem !== undefined) return problem;
    const node = Bun.which("node");
    const command = node === null ? [process.execPath, "--expose-gc"] : [node, "--expose-gc"];
    await using server = await Server.run([...command, join(folder, "server.cjs")]);
    return await measure(server, count, pace);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function measure(server: Server, count: number, pace: Pace) {
  const clients = Array.from({ length: count }, (_, index) => new PeerClient(index));
  const join = (index: number, address: string) => clients[index]!.join(address, server.port);
  const joins = await measureJoins(server, count, join, pace.idleMs);
  const free = Array.from({ length: count / 2 }, (_, n) => [clients[2 * n]!, clients[2 * n + 1]!] as const);
  const exchange = (candidates: number) => () => {
    const pair = free.shift();
    return pair && pair[0].exchange(pair[1], candidates).then(() => void free.push(pair));
  };
  const least = await measureIntroductions(server, exchange(0), pace);
  const whole = await measureIntroductions(server, exchange(candidatesEach), pace);
  for (const client of clients) client.close();
  return { joins, least, whole };
}
