/**
 * The least that hole punching can be: a connect from a known port to a known endpoint at a known moment, made
 * again when it is refused, and one byte over it. No introducer, no listener, no TLS.
 *
 * Prints the local port it will use as a line of JSON; for each line `ENDPOINT AT` on stdin punches at AT
 * (milliseconds since the epoch), prints how long after AT the peer's byte came, and the next port.
 */
import * as readline from "node:readline";
import { Socket, pollSockets } from "../../native/host/socket.ts";
import { splitEndpoint, type Endpoint } from "../../protocol.ts";
import { now } from "../lab/people.ts";

const pauseMs = () => 1 + Math.random() * 2;
const deadlineMs = 5_000;

function reserve(): { socket: Socket; port: number } {
  const socket = Socket.open(4);
  const port = socket.bind(0);
  return { socket: socket.shareport(), port };
}

/** Resolves to the descriptor of the connection. */
async function open(first: Socket, port: number, remote: Endpoint, deadlineAt: number): Promise<number> {
  let socket = first;
  while (now() < deadlineAt) {
    let failure: string | undefined;
    try {
      if (!socket.connect(remote)) {
        while (pollSockets([{ socket, for: "write" }]).length === 0) {
          if (now() >= deadlineAt) throw new Error("no answer");
          await Bun.sleep(0.5); // the period of the looks
        }
      }
      failure = socket.error();
    } catch (error) {
      failure = String(error);
    }
    if (failure === undefined) return socket.release();
    socket.close();
    await Bun.sleep(pauseMs());
    socket = Socket.open(splitEndpoint(remote).family).closeAbortively().shareport();
    socket.bind(port);
  }
  throw new Error("no answer");
}

/** Sends a byte, and resolves to when the peer's came. */
async function exchange(fd: number): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  // Bun's types do not list `fd`, which Bun.connect takes (bun-types 1.4.5).
  const adopted = { fd } as unknown as { unix: string };
  const connection = await Bun.connect({
    ...adopted,
    socket: {
      open: (socket) => void socket.write("x"),
      data: () => resolve(now()),
      close: () => reject(new Error("closed")),
      error: (_, error) => reject(error),
    },
  });
  return promise.finally(() => connection.end());
}

let { socket, port } = reserve();
console.log(JSON.stringify({ event: "port", port }));
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [endpoint, at] = line.split(" ") as [Endpoint, string];
  const startAt = Number(at);
  while (startAt - now() > 2) await Bun.sleep(startAt - now() - 2);
  while (now() < startAt);
  const elapsedMs = await open(socket, port, endpoint, startAt + deadlineMs)
    .then(exchange)
    .then(
      (arrivedAt) => arrivedAt - startAt,
      () => null,
    );
  console.log(JSON.stringify({ event: "opened", elapsedMs }));
  ({ socket, port } = reserve());
  console.log(JSON.stringify({ event: "port", port }));
}
