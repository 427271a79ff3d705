/**
 * What the benches run in processes of their own: an introducer whose limits are out of the way; a bare
 * `Bun.listen` that answers the same lines with as many lines of the same length, in as few writes, and knows nothing of
 * peers or JSON; and the ends of relayed links.
 */
import { Introducer } from "../../introducer.ts";
import { roomLimits } from "../../native/introducer/limits.ts";
import { encode } from "../../protocol.ts";

const [kind = "introducer", ...args] = process.argv.slice(2);

/** One that shares its rooms, where it is told a Redis. */
function introducer(redis?: string): number {
  const unlimited = 1e9;
  return Introducer.start({
    host: "127.0.0.1",
    port: 0,
    ...(redis !== undefined && { redis }),
    probePorts: [],
    limits: {
      ...roomLimits(4000),
      roomSize: unlimited,
      roomShare: unlimited,
      sessions: unlimited,
      sessionsPerAddress: unlimited,
      acceptsPerSecond: unlimited,
      processorMs: unlimited,
      heldBytes: unlimited,
      heldBytesPerAddress: unlimited,
      unsentBytesPerAddress: unlimited,
      unsentBytesInAll: unlimited,
      relaysPerAddress: unlimited,
      registerDeadlineMs: 600_000,
      messageBurst: unlimited,
      messagesPerSecond: unlimited,
      introductionsPerMinute: unlimited,
      introductionsPerPair: unlimited,
      introductionsPerTarget: unlimited,
    },
  }).port;
}

interface Bare {
  id: number;
  pings: number;
  outgoing: string;
}
type BareSocket = Bun.Socket<Bare>;

const filler = (start: string, length: number) => `${start}${" ".repeat(length - start.length - 2)}}\n`;
const ping = '{"type":"ping","id":1}\n';
/** As in introducer.ts; and what fits in a line of 64 KiB. */
const [firstPings, pingMs, updateDelayMs] = [3, 25_000, 50];
const perLine = 200;

/** What is written to a socket within one tick goes in one system call, as the introducer does it. */
class Outgoing {
  #sockets: BareSocket[] = [];

  write(socket: BareSocket, line: string): void {
    if (this.#sockets.length === 0) setImmediate(() => this.#flush());
    if (socket.data.outgoing === "") this.#sockets.push(socket);
    socket.data.outgoing += line;
  }

  #flush(): void {
    const sockets = this.#sockets;
    this.#sockets = [];
    for (const socket of sockets) {
      socket.write(socket.data.outgoing);
      socket.data.outgoing = "";
    }
  }
}

function bare(size: number): number {
  const sockets: BareSocket[] = [];
  const outgoing = new Outgoing();
  const peer = `"${"x".repeat(300)}",`;
  const peers = (count: number, more: boolean) =>
    `{"type":"peers","peers":[${peer.repeat(count).slice(0, -1)}],"more":${more}}\n`;
  const mostPeers = peers(perLine, true);
  const snapshot = (count: number) =>
    mostPeers.repeat(Math.floor(count / perLine)) + peers(count % perLine, false);
  const joined = filler('{"type":"joined"', 320);
  const updated = filler('{"type":"updated"', 45);
  const punch = filler(
    `{"type":"punch","role":"controlling","token":"${"0".repeat(32)}","startInMs":0,"way":"direct"`,
    470,
  );
  const join = (socket: BareSocket) => {
    const id = (socket.data.id = sockets.push(socket));
    const others = sockets.slice(roomOf(id) * size, id - 1);
    const registered = filler(`{"type":"registered","id":${id}`, 200);
    outgoing.write(socket, registered + ping + snapshot(others.length));
    for (const other of others) outgoing.write(other, joined);
  };
  const roomOf = (id: number) => Math.floor((id - 1) / size);
  const connect = (socket: BareSocket, line: string) => {
    outgoing.write(socket, punch);
    outgoing.write(sockets[Number(/"peer":(\d+)/.exec(line)![1]) - 1]!, punch);
  };
  // The round trip of whoever has just come is measured some times, and then told to the room.
  const changes = new Map<number, string>();
  const tellChanges = () => {
    for (const [room, lines] of changes)
      for (const socket of sockets.slice(room * size, (room + 1) * size)) outgoing.write(socket, lines);
    changes.clear();
  };
  const pong = (socket: BareSocket) => {
    if (++socket.data.pings < firstPings) return outgoing.write(socket, ping);
    if (socket.data.pings > firstPings) return;
    if (changes.size === 0) setTimeout(tellChanges, updateDelayMs);
    const room = roomOf(socket.data.id);
    changes.set(room, (changes.get(room) ?? "") + updated);
  };
  const text = new TextDecoder();
  const { port } = Bun.listen<Bare>({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: (socket) => void (socket.data = { id: 0, pings: 0, outgoing: "" }),
      data(socket, chunk) {
        for (const line of text.decode(chunk).split("\n")) {
          if (line.startsWith('{"type":"c')) connect(socket, line);
          else if (line.startsWith('{"type":"r')) join(socket);
          else if (line.startsWith('{"type":"p')) pong(socket);
        }
      },
    },
  });
  setInterval(() => {
    for (const [index, socket] of sockets.entries())
      setTimeout(() => socket.write(ping), (index * 7) % pingMs);
  }, pingMs);
  return port;
}

/** Takes both sides of every relay: one sends all that it can, the other reads. */
async function relays(port: number, tokens: string[]): Promise<void> {
  const part = new Uint8Array(64 * 1024);
  let bytes = 0;
  const fill = (socket: Bun.Socket<boolean>) => {
    while (socket.data && socket.write(part) === part.length);
  };
  process.on("SIGUSR2", () => console.log(bytes));
  for (const token of tokens) {
    for (const sends of [true, false]) {
      const data = (socket: Bun.Socket<boolean>, chunk: Uint8Array) => {
        if (sends)
          fill(socket); // it is `relaying`
        else bytes += chunk.length;
      };
      const socket = await Bun.connect<boolean>({
        hostname: "127.0.0.1",
        port,
        data: sends,
        socket: { data, drain: fill },
      });
      socket.write(encode({ type: "relay", token }));
    }
  }
}

if (kind === "relays") await relays(Number(args[0]), args.slice(1));
else {
  process.on("SIGUSR2", () => Bun.gc(true));
  console.log(kind === "bare" ? bare(Number(args[0])) : introducer(kind === "shared" ? args[0] : undefined));
}
