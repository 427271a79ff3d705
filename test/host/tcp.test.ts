/** How a connection ends, and which ICMP errors end a connect: test/lab/punch.test.ts has those with real NATs. */
import { expect, setDefaultTimeout } from "bun:test";
import { pollSockets, Socket } from "../../native/host/socket.ts";
import { closeInOrder } from "../../native/host/tcp.ts";
import { linuxTest } from "../needing-fixture.ts";
import { loopback, noSocketLeft, until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const isReady = (socket: Socket, what: "read" | "write") => pollSockets([{ socket, for: what }]).length > 0;

/** A connection from that port, as a punch makes it. */
async function connected(port: number, listener: Socket, listenerPort: number): Promise<[Socket, Socket]> {
  const client = Socket.open(4).closeAbortively().shareport();
  client.bind(port);
  if (!client.connect(loopback(listenerPort))) await until("it is connected", () => isReady(client, "write"));
  expect(client.error()).toBeUndefined();
  await until("it has come", () => isReady(listener, "read"));
  return [client, listener.accept()!];
}

linuxTest(
  "a connection that ends in order sends no RST, and its four-tuple can be used again at once",
  async () => {
    await using _ = noSocketLeft();
    using listener = Socket.open(4);
    const listenerPort = listener.bind(0);
    listener.listen(8);
    using holder = Socket.open(4);
    const port = holder.bind(0);
    holder.shareport();
    for (let round = 0; round < 5; round++) {
      const [client, server] = await connected(port, listener, listenerPort);
      closeInOrder(client.fd);
      client.close(); // and its side is in TIME_WAIT, once the other has closed, too
      await until("its end has come", () => isReady(server, "read"));
      expect(server.error()).toBeUndefined();
      server.close();
    }
    const [client, server] = await connected(port, listener, listenerPort);
    client.close();
    await until("its RST has come", () => isReady(server, "read"));
    expect(server.error()).toBe("ECONNRESET");
    server.close();
  },
);
