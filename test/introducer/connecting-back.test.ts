/** Connections back, by which a participant learns what its NAT lets in. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync } from "node:fs";
import { filteringOf } from "../../native/introducer/observe.ts";
import { Socket } from "../../native/host/socket.ts";
import { at, Client, registration } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import {
  encode,
  LineDecoder,
  parseToParticipant,
  splitEndpoint,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import { linuxTest } from "../needing-fixture.ts";
import { introduce, program, jsonLines } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** A participant's control connection on a port that a listener may share; it asks to be connected back to. */
async function sharing(port: number, backlog?: number) {
  const bound = Socket.open(4);
  const own = bound.bind(0);
  const listener = Socket.open(4).shareport();
  bound.shareport();
  bound.connect(at(`127.0.0.1:${port}`));
  listener.bind(own);
  if (backlog !== undefined) listener.listen(backlog);
  const lines = new LineDecoder();
  const answered = Promise.withResolvers<string>();
  const refused = Promise.withResolvers<ToParticipant>();
  const heard = Promise.withResolvers<void>();
  const adopted = { fd: bound.release() } as unknown as { unix: string };
  const connection = await Bun.connect({
    ...adopted,
    socket: {
      data(socket, chunk) {
        for (const message of [...lines.push(chunk)].map(parseToParticipant)) {
          if (message.type === "ping") socket.write(encode({ type: "pong", id: message.id }));
          if (message.type === "filtering") answered.resolve(message.filtering);
          if (message.type === "refused") refused.resolve(message);
          if (message.type === "echo") heard.resolve();
        }
      },
    },
  });
  let isRegistered = false;
  const ask = (register: ToIntroducer = registration("sharing")) => {
    const lines: ToIntroducer[] = [{ type: "connect-back" }, { type: "echo", text: "heard" }];
    connection.write([...(isRegistered ? [] : [register]), ...lines].map(encode).join(""));
    isRegistered = true;
  };
  const dispose = () => {
    connection.terminate();
    listener.close();
  };
  const endpoint = at(`127.0.0.1:${own}`);
  return {
    endpoint,
    listener,
    ask,
    filtering: answered.promise,
    refused: refused.promise,
    /** What it has asked for is under way. */
    heard: heard.promise,
    [Symbol.dispose]: dispose,
  };
}

test("connect-back is refused where nobody listens", async () => {
  await using scene = introduce();
  using anna = await sharing(scene.introducer.port);
  anna.ask();
  expect(await anna.filtering).toBe("refused");
});

test("connect-back comes to the endpoint that the introducer sees, and to no other", async () => {
  await using scene = introduce();
  using anna = await sharing(scene.introducer.port, 8);
  let others = 0;
  const open = () => void others++;
  using victim = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data() {} } });
  anna.ask({ ...registration("anna"), private: [at(`127.0.0.1:${victim.port}`), at("192.168.1.5:40000")] });
  expect(await anna.filtering).toBe("let-in");
  using back = anna.listener.accept();
  expect(splitEndpoint(back!.remote)).toMatchObject({ address: "127.0.0.1", port: expect.any(Number) });
  expect([anna.listener.accept(), others]).toEqual([undefined, 0]);
  victim.stop(true);
});

test("connect-back comes from the alternate address, too", async () => {
  await using scene = introduce({}, { host: "127.0.0.1", port: 0, alternate: "127.0.0.2", relay: false });
  using anna = await sharing(scene.introducer.port, 8);
  anna.ask();
  expect(await anna.filtering).toBe("let-in");
  using one = anna.listener.accept();
  using other = anna.listener.accept();
  const from = [one, other].map((back) => splitEndpoint(back!.remote).address);
  expect(from.toSorted()).toEqual(["127.0.0.1", "127.0.0.2"]);
});

linuxTest.concurrent("connect-back is dropped where nothing answers", async () => {
  await using scene = introduce();
  using anna = await sharing(scene.introducer.port, 0);
  using queued = Socket.open(4); // it fills the queue, so that Linux drops every further SYN
  queued.connect(anna.endpoint);
  anna.ask();
  expect(await anna.filtering).toBe("dropped");
});

test.concurrent(
  "more connect-backs than a person asks for are refused, but the connection lives on",
  async () => {
    await using scene = introduce({ introductionsPerMinute: 2 });
    using anna = await scene.join("anna");
    for (let n = 0; n < 2; n++) {
      anna.send({ type: "connect-back" });
      await anna.next("filtering");
    }
    anna.send({ type: "connect-back" });
    expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect-back" });
    await anna.settled();
  },
);

test.concurrent("one connection back at a time, and so many of all", async () => {
  await using scene = introduce({ connectBacks: 1 });
  using anna = await scene.join("anna");
  using silent = await sharing(scene.introducer.port, 0);
  using queued = Socket.open(4); // it fills the queue, so that Linux drops every further SYN
  queued.connect(silent.endpoint);
  silent.ask();
  silent.ask();
  expect(await silent.refused).toMatchObject({ code: "limit", request: "connect-back" });
  anna.send({ type: "connect-back" });
  expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect-back" });
  await silent.filtering;
  anna.send({ type: "connect-back" });
  expect(await anna.next("filtering")).toMatchObject({ filtering: "refused" });
});

linuxTest.concurrent("one address has its share of the connections back", async () => {
  await using scene = introduce({ connectBacksPerAddress: 1, ownHostShares: 1 });
  using silent = await sharing(scene.introducer.port, 0);
  using queued = Socket.open(4);
  queued.connect(silent.endpoint);
  using anna = await scene.join("anna");
  silent.ask();
  await silent.heard; // so it is under way
  anna.send({ type: "connect-back" });
  expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect-back" });
  using bert = await scene.join("bert", "lobby", true, "127.0.0.2");
  bert.send({ type: "connect-back" });
  expect(await bert.next("filtering")).toMatchObject({ filtering: "refused" });
});

test.each([
  [undefined, "let-in"],
  ["ETIMEDOUT", "dropped"],
  ["ECONNREFUSED", "refused"],
  ["EHOSTUNREACH", "refused"],
  ["EMFILE", undefined],
  ["EADDRNOTAVAIL", undefined],
  ["unknown", undefined],
] as const)("a connection back that ends with %s says %s of the filtering", (code, filtering) => {
  expect(filteringOf(code)).toBe(filtering);
});

linuxTest(
  "an introducer without descriptors says that it can't connect back, not that it was refused",
  async () => {
    const port = freePort();
    const most = 40;
    const script = `ulimit -n ${most}; exec "$0" "$@"`;
    await using child = Bun.spawn(
      ["sh", "-c", script, process.execPath, program, String(port), "--host", "127.0.0.1", "--json"],
      { stdin: "ignore", stdout: "pipe", stderr: "ignore" },
    );
    const events = jsonLines(child.stdout);
    await events.next();
    const isFull = (async () => {
      for (;;) {
        const { value, done } = await events.next();
        if (done) throw new Error("the introducer has ended");
        if (value?.event === "warning" && value.message.includes("no descriptor is left")) return false;
      }
    })();
    const clients: Client[] = [];
    for (let isIn = true; isIn;) {
      const client = new Client(port);
      clients.push(client);
      client.send(registration(`n${clients.length}`));
      isIn = await Promise.race([client.next("registered").then(() => true), isFull]);
    }
    expect(clients.length).toBeGreaterThan(2);
    const opened = () => readdirSync(`/proc/${child.pid}/fd`).length;
    await until("it has its spare one again, and so none is left", () => opened() === most);
    clients[0]!.send({ type: "connect-back" });
    const { code, message } = await clients[0]!.next("refused");
    expect([code, message]).toEqual(["limit", expect.stringContaining("try again later")]);
    for (const client of clients) client[Symbol.dispose]();
  },
  testMs,
);
