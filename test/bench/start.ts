/**
 * What being there costs: time from process start to `registered`, memory of an idle participant and of an
 * introducer with many of them, each against a bare Bun script that opens the same connections: a client that
 * registers with the same introducer by the same bytes, and a server that answers the same clients with a word.
 * The rivals take turns in every round, so that what else the machine does hits all of them.
 */
import type { Socket } from "bun";
import { encode, LineDecoder, parseToParticipant, protocolVersion, type Endpoint } from "../../protocol.ts";
import { now, People, root, thisHost } from "../lab/people.ts";
import { median, quick, table } from "./run.ts";
import { freePort } from "../sockets-fixture.ts";

const rounds = quick(9, 1);
const idleParticipants = quick(1000, 50);
const roomSize = 50;
/** KiB of an introducer's participant above a bare connection. */
const goalKib = 6;
const settleDeadlineMs = 15_000;
const lookPeriodMs = quick(250, 20);

/** Registers, and reports once it has read something. */
const bareClient = `
const [host, port] = process.argv.at(-2).split(":");
await Bun.connect({ hostname: host, port: Number(port), socket: {
  open(socket) { socket.write(process.argv.at(-1)) },
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

/** Resident memory, and how much of it is the process's own: the rest is pages of files, above all of Bun's executable. */
interface Kib {
  resident: number;
  own: number;
}

async function memoryOf(pid: number): Promise<Kib> {
  const status = await Bun.file(`/proc/${pid}/status`).text();
  const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1]);
  return { resident: field("VmRSS"), own: field("RssAnon") };
}

/** Memory once it has not changed for a second: five looks that see the same within 32 KiB. */
async function settled(pid: number): Promise<Kib> {
  const deadline = now() + settleDeadlineMs;
  let looks: Kib[] = [];
  while (now() < deadline) {
    looks = [...looks.slice(-4), await memoryOf(pid)];
    const seen = looks.map(({ resident }) => resident);
    if (seen.length === 5 && Math.max(...seen) - Math.min(...seen) <= 32) break;
    await Bun.sleep(lookPeriodMs); // the period of the looks, not a guess at when it is settled
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
  const { resident } = await settled(rival.process.pid);
  return { startMs: afterMs, residentKib: resident };
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
  socket.write(registration(`idle-${index}`, `room-${Math.floor(index / roomSize)}`, index));
  return { socket, registered: promise };
}

function registration(name: string, room: string, index: number): string {
  return encode({
    type: "register",
    version: protocolVersion,
    name,
    room,
    instance: index.toString(16).padStart(16, "0"),
    fingerprint: index.toString(16).padStart(64, "0"),
    private: [`192.168.1.5:${1024 + index}` as Endpoint],
    links: [],
  });
}

/** With nobody, with {@link idleParticipants}, and with twice as many. */
interface Many {
  empty: Kib;
  full: Kib;
  twice: Kib;
}

async function many(rival: Rival, to: number): Promise<Many> {
  const all: Idle[] = [];
  const upTo = async (count: number) => {
    while (all.length < count) all.push(await idle(to, all.length));
    await Promise.all(all.map(({ registered }) => registered));
    return await settled(rival.process.pid);
  };
  const empty = await upTo(0);
  const full = await upTo(idleParticipants);
  const twice = await upTo(2 * idleParticipants);
  for (const { socket } of all) socket.terminate();
  return { empty, full, twice };
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
  const bare = ["-e", bareClient, introducer.endpoint, registration("bare", "bare", 0)];
  const env = { XDG_STATE_HOME: people.stateOf("participant") };
  const command = ["participant.ts", introducer.endpoint, "--name", "one", "--json", "--stay"];
  const first = await one(command, env); // makes the key, as the very first start does

  const participants: One[] = [];
  const bareClients: One[] = [];
  const introducers: Many[] = [];
  const bareServers: Many[] = [];
  for (let round = 0; round < rounds; round++) {
    participants.push(await one(command, env));
    bareClients.push(await one(bare));
    introducers.push(await manyParticipants());
    bareServers.push(await manyBare());
  }

  const ms = (value: number) => `${value.toFixed(0)} ms`;
  const mib = (kib: number) => `${(kib / 1024).toFixed(1)} MiB`;
  const kib = (value: number) => `${value.toFixed(1)} KiB`;
  const start = (list: One[]) => median(list.map(({ startMs }) => startMs));
  const [ours, bares] = [start(participants), start(bareClients)];
  const rows = [
    ["", "ours", "bare", "difference", "goal"],
    ["start to registered", ms(ours), ms(bares), `${(ours / bares).toFixed(2)} ×`, ""],
  ];
  const compare = <T>(what: string, [a, b]: [T[], T[]], of: (one: T) => number, text = mib, goal = "") => {
    const [left, right] = [median(a.map(of)), median(b.map(of))];
    rows.push([what, text(left), text(right), text(left - right), goal]);
  };
  const servers: [Many[], Many[]] = [introducers, bareServers];
  const each = (what: string, more: (many: Many) => number) =>
    compare(what, servers, (many) => more(many) / idleParticipants, kib, `≤ ${goalKib} KiB`);
  compare("idle participant", [participants, bareClients], ({ residentKib }) => residentKib);
  compare("introducer with nobody", servers, ({ empty }) => empty.resident);
  compare(`introducer with ${idleParticipants}`, servers, ({ full }) => full.resident);
  each("more for each of them", ({ empty, full }) => full.resident - empty.resident);
  each("- of it own memory", ({ empty, full }) => full.own - empty.own);
  each(`for each of the next ${idleParticipants}`, ({ full, twice }) => twice.resident - full.resident);
  const worst = Math.max(...participants.map(({ startMs }) => startMs));
  console.log(table(rows));
  console.log(`
Medians of ${rounds} rounds in which the four take turns; VmRSS once it is settled; rooms of ${roomSize}.
Own memory is RssAnon: what is not is pages of files, here the compiler in Bun's executable, read in once by the
first participants and shared by all processes that run Bun.
The very first start, which makes the key: ${ms(first.startMs)}; the slowest other one: ${ms(worst)}.`);
}
