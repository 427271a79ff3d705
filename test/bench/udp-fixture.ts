/**
 * The ends of `bench udp`, which it starts on hosts of a lab: `serve UDP TCP` echoes datagrams and swallows a connection,
 * whose client is told when all has come; `ask ADDRESS PORT TIMES` prints how long each datagram took, as JSON, and how
 * many were lost; `bulk PORT BYTES` prints in how many ms all was there.
 */
import { UdpSocket } from "../../native/host/udp.ts";

const datagramBytes = 100;
/** Between two datagrams, as games send them; and how long one is waited for. */
const pauseMs = 25;
const lostMs = 2_000;
const chunkBytes = 64 * 1024;
const none = { failed: () => {}, drained: () => {}, flooded: () => {} };

function serve(udp: number, tcp: number): void {
  const socket = UdpSocket.bind("0.0.0.0", udp, {
    datagram: (bytes, ...to) => void socket.send(bytes, ...to),
    ...none,
  });
  Bun.listen({
    ...{ hostname: "0.0.0.0", port: tcp, allowHalfOpen: true },
    socket: { data() {}, end: (one) => void one.end("all") },
  });
  console.log("ready");
}

async function ask(address: string, port: number, times: number): Promise<void> {
  const took: number[] = [];
  let awaited = { number: -1, sentAt: 0, resolve: () => {} };
  const socket = UdpSocket.connect(address, port, {
    datagram(bytes) {
      if (bytes.readUInt32BE() !== awaited.number) return;
      took.push(performance.now() - awaited.sentAt);
      awaited.resolve();
    },
    ...none,
  });
  for (let number = 0; number < times; number++) {
    const { promise, resolve } = Promise.withResolvers<void>();
    const datagram = Buffer.alloc(datagramBytes);
    datagram.writeUInt32BE(number);
    awaited = { number, sentAt: performance.now(), resolve };
    socket.send(datagram);
    await Promise.race([promise, Bun.sleep(lostMs)]);
    await Bun.sleep(pauseMs);
  }
  console.log(JSON.stringify({ took, lost: times - took.length }));
}

async function bulk(port: number, bytes: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const startedAt = performance.now();
  let left = bytes;
  const chunk = Buffer.alloc(chunkBytes, 7);
  const fill = (socket: Bun.Socket) => {
    while (left > 0) {
      const taken = socket.write(chunk.subarray(0, Math.min(left, chunk.length)));
      left -= taken;
      if (taken < chunk.length && left > 0) return;
    }
    socket.shutdown();
  };
  await Bun.connect({
    ...{ hostname: "127.0.0.1", port, allowHalfOpen: true },
    socket: { open: fill, drain: fill, data: () => resolve() },
  });
  await promise;
  console.log(performance.now() - startedAt);
}

const [what, ...args] = process.argv.slice(2);
const [first = "", second = "", third = ""] = args;
if (what === "serve") serve(Number(first), Number(second));
else {
  await (what === "ask" ? ask(first, Number(second), Number(third)) : bulk(Number(first), Number(second)));
  process.exit();
}
