/**
 * The least that a hop can do: `bun copy-fixture.ts TARGET_PORT` listens on a free port of localhost, says which, and
 * copies each connection to and from TARGET_PORT. Two of them in a row are what a forward is held against.
 */
import type { Socket, SocketHandler } from "bun";

interface Half {
  other: Socket<Half> | undefined;
  /** What the other has not taken yet. */
  unsent: Buffer | undefined;
}

const port = Number(process.argv[2]);

function send(to: Socket<Half>, from: Socket<Half>, bytes: Buffer): void {
  const taken = Math.max(0, to.write(bytes));
  if (taken === bytes.length) return;
  from.data.unsent = bytes.subarray(taken);
  from.pause();
}

const handlers: SocketHandler<Half> = {
  data(socket, bytes) {
    send(socket.data.other!, socket, bytes);
  },
  drain(socket) {
    const from = socket.data.other;
    const unsent = from?.data.unsent;
    if (!from || !unsent) return;
    from.data.unsent = undefined;
    from.resume();
    send(socket, from, unsent);
  },
  end: (socket) => void socket.data.other?.shutdown(),
  close: (socket) => void socket.data.other?.end(),
  error() {},
};

const listener = Bun.listen<Half>({
  hostname: "127.0.0.1",
  port: 0,
  allowHalfOpen: true,
  socket: {
    ...handlers,
    async open(socket) {
      socket.data = { other: undefined, unsent: undefined };
      socket.pause();
      const data: Half = { other: socket, unsent: undefined };
      const there = { hostname: "127.0.0.1", port, allowHalfOpen: true, data, socket: handlers };
      socket.data.other = await Bun.connect<Half>(there);
      socket.resume();
    },
  },
});
console.log(listener.port);
