/** The control channel: what waits for an introducer that does not read, and what becomes of descriptors. */
import { afterEach, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import net from "node:net";
import { ControlChannel, verify } from "../../native/host/control.ts";
import { SystemError } from "../../native/host/libc.ts";
import { observe, observeFresh, testHairpinning } from "../../native/punch/mapping.ts";
import { connectShared, Socket } from "../../native/host/socket.ts";
import type { Endpoint } from "../../protocol.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Accepts, and reads nothing; or answers every connection. */
async function server(
  answer = "",
): Promise<Disposable & { port: number; endpoint: Endpoint; visits: net.Socket[] }> {
  const visits: net.Socket[] = [];
  const listener = net.createServer({ pauseOnConnect: answer === "" }, (socket) => {
    visits.push(socket.on("error", () => {}));
    if (answer !== "") socket.write(answer);
  });
  const { promise, resolve } = Promise.withResolvers<void>();
  listener.listen({ host: "127.0.0.1", port: 0 }, resolve);
  await promise;
  const { port } = listener.address() as net.AddressInfo;
  return {
    port,
    endpoint: `127.0.0.1:${port}` as Endpoint,
    visits,
    [Symbol.dispose]: () => {
      for (const socket of visits) socket.destroy();
      listener.close();
    },
  };
}

describe("an introducer that does not read", () => {
  test("is left once some hundred lines wait for it", async () => {
    await using _ = noSocketLeft();
    using deaf = await server();
    const channel = await ControlChannel.open({ host: "127.0.0.1", port: deaf.port }, "introducer");
    let reason = "";
    channel.onClose = (why) => (reason = why);
    const text = "x".repeat(1_000);
    // As long as the kernel takes it, nothing is held; then a few hundred lines.
    let sent = 0;
    while (reason === "" && sent < 100_000) {
      for (let count = 0; count < 50; count++, sent++) channel.send({ type: "echo", text });
      await Bun.sleep(0);
    }
    expect(reason).toBe("it does not read what we send");
    expect(sent).toBeLessThan(30_000); // what the kernel holds at both ends, at the most
    channel.send({ type: "echo", text }); // to nobody
  });

  test("gets all in order, where it reads after all", async () => {
    // A kernel that takes 777 bytes at a time, and says so a little later.
    const connect = Bun.connect.bind(Bun) as (options: { socket: Bun.SocketHandler<undefined> }) => unknown;
    using _ = spyOn(Bun, "connect").mockImplementation(((options: {
      socket: Bun.SocketHandler<undefined>;
    }) => {
      const { open, drain } = options.socket;
      const slowed = (socket: Bun.Socket<undefined>) => {
        const write = socket.write.bind(socket) as (bytes: Uint8Array) => number;
        socket.write = ((bytes: Uint8Array) => {
          setImmediate(() => drain!(socket));
          return write(bytes.subarray(0, 777));
        }) as typeof socket.write;
        return open!(socket);
      };
      return connect({ ...options, socket: { ...options.socket, open: slowed } });
    }) as typeof Bun.connect);
    using slow = await server();
    const channel = await ControlChannel.open({ host: "127.0.0.1", port: slow.port }, "introducer");
    await until("it has come", () => slow.visits.length === 1);
    let came = "";
    slow.visits[0]!.on("data", (chunk) => void (came += chunk.toString())).resume();
    for (let id = 0; id < 5_000; id++) channel.send({ type: "pong", id });
    await until("it has begun to read", () => came.length > 0);
    for (let id = 5_000; id < 10_000; id++) channel.send({ type: "pong", id });
    await until("all has come", () => came.endsWith('"id":9999}\n'));
    channel.close("the test is over");
    const ids = Array.from({ length: 10_000 }, (_, id) => `{"type":"pong","id":${id}}`);
    expect(came.trimEnd().split("\n")).toEqual(ids);
  });
});

describe("no descriptor is left", () => {
  afterEach(() => {
    for (const spied of spies.splice(0)) spied.mockRestore();
  });
  const spies: { mockRestore(): void }[] = [];
  const obstacles = {
    "of a socket that was reset meanwhile": () =>
      spies.push(
        spyOn(Socket.prototype, "closeAbortively").mockImplementation(() => {
          throw new SystemError("EINVAL", "setsockopt");
        }),
      ),
    "of one that Bun does not take": () =>
      spies.push(
        spyOn(Bun, "connect").mockImplementation(() => Promise.reject(new Error("Failed to connect"))),
      ),
  };

  test.each(Object.entries(obstacles))("%s", async (_what, obstruct) => {
    const observed = JSON.stringify({ type: "observed", endpoint: "127.0.0.1:9" }) + "\n";
    using introducer = await server(observed);
    const { socket, port } = await connectShared(introducer.endpoint, patienceMs);
    {
      await using _ = noSocketLeft();
      await using __ = {
        [Symbol.asyncDispose]: async () => introducer.visits.forEach((one) => one.destroy()),
      };
      obstruct();
      for (let count = 0; count < 5; count++) {
        await observe(port, introducer.endpoint);
        await observeFresh(introducer.endpoint);
        await verify(port, introducer.endpoint, "00".repeat(16));
        await testHairpinning(port, introducer.endpoint, introducer.endpoint).catch(() => {});
        await ControlChannel.open({ host: "127.0.0.1", port: introducer.port }, "introducer").then(
          (channel) => channel.close("the test is over"),
          () => {},
        );
      }
    }
    socket.close();
  });
});
