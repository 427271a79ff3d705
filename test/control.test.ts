/** The control channel: what waits for an introducer that does not read, and what becomes of descriptors. */
import { afterEach, describe, expect, spyOn, test } from "bun:test";
import net from "node:net";
import { ControlChannel, verify } from "../native/control.ts";
import { SystemError } from "../native/libc.ts";
import { observe, observeFresh, testHairpinning } from "../native/punch/mapping.ts";
import { connectShared, Socket } from "../native/socket.ts";
import type { Endpoint } from "../protocol.ts";
import { noSocketLeft, until } from "./native-fixture.ts";

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
    const channel = await ControlChannel.open("127.0.0.1", deaf.port, "introducer");
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
    using slow = await server();
    const channel = await ControlChannel.open("127.0.0.1", slow.port, "introducer");
    await until("it has come", () => slow.visits.length === 1);
    const send = (from: number, to: number) => {
      for (let id = from; id < to; id++) channel.send({ type: "pong", id });
    };
    let came = "";
    let isOver = false;
    slow.visits[0]!.on("data", (chunk) => void (came += chunk.toString())).on("end", () => (isOver = true));
    for (let turn = 0; turn < 200; turn++) {
      slow.visits[0]!.pause();
      send(turn * 1_000, (turn + 1) * 1_000);
      if (turn % 5 === 4) slow.visits[0]!.resume();
      if (turn % 5 === 4) await Bun.sleep(1);
    }
    slow.visits[0]!.resume();
    await until("all has come", () => came.endsWith('"id":199999}\n'));
    channel.close("the test is over");
    await until("it has ended", () => isOver);
    const ids = came.trimEnd().split("\n");
    expect(ids.length).toBe(200_000);
    expect(ids.every((line, id) => line === `{"type":"pong","id":${id}}`)).toBe(true);
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
    const { socket, port } = await connectShared(introducer.endpoint, 1_000);
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
        await ControlChannel.open("127.0.0.1", introducer.port, "introducer").then(
          (channel) => channel.close("the test is over"),
          () => {},
        );
      }
    }
    socket.close();
  });
});
