/**
 * The two servers that `bench introducer` holds against each other, each in a process of its own: an introducer whose
 * limits are out of the way, and a bare `Bun.listen` that answers the same lines with as many lines of the same length,
 * one write each, and knows nothing of rooms, peers or JSON.
 */
import { Introducer } from "../../introducer.ts";

const [kind = "introducer", roomSize = "10"] = process.argv.slice(2);

function introducer(): number {
  const unlimited = 1e9;
  return Introducer.start({
    host: "127.0.0.1",
    port: 0,
    probePorts: [],
    limits: {
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

process.on("SIGUSR2", () => Bun.gc(true));
console.log(kind === "bare" ? bare(Number(roomSize)) : introducer());
