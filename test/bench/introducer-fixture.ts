/**
 * What the benches run in processes of their own: an introducer whose limits are out of the way; a bare
 * `Bun.listen` that answers the same lines with as many lines of the same length, one write each, and knows nothing of
 * rooms, peers or JSON; and the ends of relayed links.
 */
import { Introducer, roomLimits } from "../../introducer.ts";
import { encode } from "../../protocol.ts";

const [kind = "introducer", ...args] = process.argv.slice(2);

function introducer(): number {
  const unlimited = 1e9;
  return Introducer.start({
    host: "127.0.0.1",
    port: 0,
    probePorts: [],
    limits: {
      ...roomLimits(4000),
      sessions: unlimited,
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
}

function bare(size: number): number {
  const sockets: Bun.Socket<Bare>[] = [];
  const filler = (start: string, length: number) => `${start}${" ".repeat(length - start.length - 2)}}\n`;
  const peer = "x".repeat(300);
  const joined = filler('{"type":"joined"', 320);
  const ping = '{"type":"ping","id":1}\n';
  const punch = filler(
    `{"type":"punch","role":"controlling","token":"${"0".repeat(32)}","startInMs":0,"way":"direct"`,
    470,
  );
  const join = (socket: Bun.Socket<Bare>) => {
    const id = (socket.data.id = sockets.push(socket));
    const others = sockets.slice(Math.floor((id - 1) / size) * size, id - 1);
    socket.write(filler(`{"type":"registered","id":${id}`, 200));
    socket.write(ping);
    socket.write(`{"type":"peers","peers":[${others.map(() => `"${peer}"`).join()}],"more":false}\n`);
    for (const other of others) other.write(joined);
  };
  const connect = (socket: Bun.Socket<Bare>, line: string) => {
    socket.write(punch);
    sockets[Number(/"peer":(\d+)/.exec(line)![1]) - 1]!.write(punch);
  };
  const text = new TextDecoder();
  const { port } = Bun.listen<Bare>({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: (socket) => void (socket.data = { id: 0 }),
      data(socket, chunk) {
        for (const line of text.decode(chunk).split("\n")) {
          if (line.startsWith('{"type":"c')) connect(socket, line);
          else if (line.startsWith('{"type":"r')) join(socket);
        }
      },
    },
  });
  const pingMs = 25_000;
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
  console.log(kind === "bare" ? bare(Number(args[0])) : introducer());
}
