/**
 * What being there costs: time from process start to `registered`, memory of an idle participant and of an
 * introducer with many of them, each against a bare Bun script that opens the same connections. The rivals take
 * turns in every round, so that what else the machine does hits all of them.
 */
import type { Socket } from "bun";
import { encode, LineDecoder, parseToParticipant, protocolVersion, type Endpoint } from "../../protocol.ts";
import { now, People, root, thisHost } from "../lab/people.ts";
import { median, table } from "./run.ts";

const rounds = 9;
const idleParticipants = 1000;
const roomSize = 50;
/** Time to the bare script's, and KiB of an introducer's participant above a bare connection. */
const goals = { time: 1.3, kib: 6 };
const settleDeadlineMs = 15_000;

/** Says one line and reports once it has read one. */
const bareClient = `
const [host, port] = process.argv.at(-1).split(":");
await Bun.connect({ hostname: host, port: Number(port), socket: {
  open(socket) { socket.write("hello\\n") },
  data() { console.log(JSON.stringify({ event: "registered" })) },
} });`;

/** Answers the first bytes of each connection with one line. */
const bareServer = `
const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: {
  open(socket) { socket.data = { isGreeted: false } },
  data(socket) { if (!socket.data.isGreeted) socket.write("hello\\n"); socket.data.isGreeted = true },
} });
console.log(JSON.stringify({ event: "listening", port: listener.port }));`;

/** A process that is ours to look at until the end of the block. */
class Rival implements AsyncDisposable {
  readonly process: Bun.Subprocess<"pipe", "pipe", "ignore">;
  readonly #startedAt = now();
  readonly #lines: AsyncIterator<string>;

  constructor(command: string[], env: Record<string, string> = {}) {
    this.process = Bun.spawn([process.execPath, ...command], {
      cwd: root,
      env: { ...process.env, ...env },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "ignore",
    });
    this.#lines = lines(this.process.stdout);
  }

  /** Reads until that event; returns its line and how long after the start it came. */
  async until(event: string): Promise<{ line: string; afterMs: number }> {
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done) throw new Error(`it ended before \`${event}\``);
      const found = JSON.parse(value) as { event: string };
      if (found.event === event) return { line: value, afterMs: now() - this.#startedAt };
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill("SIGKILL");
    await this.process.exited;
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const utf8 = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    const parts = (text + utf8.decode(chunk, { stream: true })).split("\n");
    text = parts.pop()!;
    yield* parts;
  }
}

async function residentKib(pid: number): Promise<number> {
  const status = await Bun.file(`/proc/${pid}/status`).text();
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]);
}

/** Resident memory once it has not changed for a second: five looks that see the same within 32 KiB. */
async function settledKib(pid: number): Promise<number> {
  const deadline = now() + settleDeadlineMs;
  let looks: number[] = [];
  while (now() < deadline) {
    looks = [...looks.slice(-4), await residentKib(pid)];
    if (looks.length === 5 && Math.max(...looks) - Math.min(...looks) <= 32) break;
    await Bun.sleep(250); // the period of the looks, not a guess at when it is settled
  }
  return looks.at(-1)!;
}

// --- one participant -------------------------------------------------------------------------------------

interface One {
  startMs: number;
  residentKib: number;
}

async function one(command: string[], env?: Record<string, string>): Promise<One> {
  await using rival = new Rival(command, env);
  const { afterMs } = await rival.until("registered");
  return { startMs: afterMs, residentKib: await settledKib(rival.process.pid) };
}

function port(line: string): number {
  return (JSON.parse(line) as { port: number }).port;
}

// --- many of them ----------------------------------------------------------------------------------------

interface Idle {
  socket: Socket;
  registered: Promise<void>;
}

/** The least that the introducer takes for a participant: registers, and answers its pings. */
async function idle(to: number, index: number): Promise<Idle> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const decoder = new LineDecoder();
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port: to,
    socket: {
      data(connection, chunk) {
        for (const line of decoder.push(chunk)) {
          if (line === "hello") return resolve();
          const message = parseToParticipant(line);
          if (message.type === "ping") connection.write(encode({ type: "pong", id: message.id }));
          if (message.type === "registered") resolve();
        }
      },
    },
  });
  const endpoint = `192.168.1.5:${1024 + index}` as Endpoint;
  socket.write(
    encode({
      type: "register",
      version: protocolVersion,
      name: `idle-${index}`,
      room: `room-${Math.floor(index / roomSize)}`,
      instance: index.toString(16).padStart(16, "0"),
      fingerprint: index.toString(16).padStart(64, "0"),
      private: [endpoint],
    }),
  );
  return { socket, registered: promise };
}

interface Many {
  emptyKib: number;
  fullKib: number;
}

async function many(rival: Rival, to: number): Promise<Many> {
  const emptyKib = await settledKib(rival.process.pid);
  const all: Idle[] = [];
  while (all.length < idleParticipants) all.push(await idle(to, all.length));
  await Promise.all(all.map(({ registered }) => registered));
  const fullKib = await settledKib(rival.process.pid);
  for (const { socket } of all) socket.terminate();
  return { emptyKib, fullKib };
}

/** A port that is free now. */
function freePort(): number {
  using listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  return listener.port;
}

async function manyParticipants(): Promise<Many> {
  const at = freePort();
  await using introducer = new Rival(["introducer.ts", String(at), "--json"]);
  await introducer.until("listening");
  return await many(introducer, at);
}

async function manyBare(): Promise<Many> {
  await using server = new Rival(["-e", bareServer]);
  const { line } = await server.until("listening");
  return await many(server, port(line));
}

// --- the table -------------------------------------------------------------------------------------------

export async function bench(): Promise<void> {
  await using people = new People();
  const introducer = await people.introducer(thisHost, freePort());
  await using server = new Rival(["-e", bareServer]);
  const bareEndpoint = `127.0.0.1:${port((await server.until("listening")).line)}`;
  const env = { XDG_STATE_HOME: people.stateOf("participant") };
  const command = ["participant.ts", introducer.endpoint, "--name", "one", "--json", "--stay"];
  const first = await one(command, env); // makes the key, as the very first start does

  const participants: One[] = [];
  const bareClients: One[] = [];
  const introducers: Many[] = [];
  const bareServers: Many[] = [];
  for (let round = 0; round < rounds; round++) {
    participants.push(await one(command, env));
    bareClients.push(await one(["-e", bareClient, bareEndpoint]));
    introducers.push(await manyParticipants());
    bareServers.push(await manyBare());
  }

  const start = (list: One[]) => median(list.map(({ startMs }) => startMs));
  const memory = (list: One[]) => median(list.map(({ residentKib: kib }) => kib));
  const empty = (list: Many[]) => median(list.map(({ emptyKib }) => emptyKib));
  const full = (list: Many[]) => median(list.map(({ fullKib }) => fullKib));
  const each = (list: Many[]) =>
    median(list.map(({ emptyKib, fullKib }) => (fullKib - emptyKib) / idleParticipants));
  const mib = (kib: number) => `${(kib / 1024).toFixed(1)} MiB`;
  const ms = (value: number) => `${value.toFixed(0)} ms`;
  const ours = each(introducers);
  const bare = each(bareServers);
  const startRatio = start(participants) / start(bareClients);
  const worst = Math.max(...participants.map(({ startMs }) => startMs));
  const rows = [
    ["", "ours", "bare", "difference", "goal"],
    [
      "start to registered",
      ms(start(participants)),
      ms(start(bareClients)),
      `${startRatio.toFixed(2)} ×`,
      `≤ ${goals.time} ×`,
    ],
    [
      "idle participant",
      mib(memory(participants)),
      mib(memory(bareClients)),
      mib(memory(participants) - memory(bareClients)),
      "",
    ],
    [
      "introducer with nobody",
      mib(empty(introducers)),
      mib(empty(bareServers)),
      mib(empty(introducers) - empty(bareServers)),
      "",
    ],
    [
      `introducer with ${idleParticipants}`,
      mib(full(introducers)),
      mib(full(bareServers)),
      mib(full(introducers) - full(bareServers)),
      "",
    ],
    [
      "more for each of them",
      `${ours.toFixed(1)} KiB`,
      `${bare.toFixed(1)} KiB`,
      `${(ours - bare).toFixed(1)} KiB`,
      `≤ ${goals.kib} KiB`,
    ],
  ];
  console.log(table(rows));
  console.log(`
Medians of ${rounds} rounds in which the four take turns; VmRSS once it is settled; rooms of ${roomSize}.
The very first start, which makes the key: ${ms(first.startMs)}; the slowest other one: ${ms(worst)}.`);
}
