/** UDP forwards between two sessions over carriers in memory, with real sockets on loopback. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { AllowList } from "../../native/uses/allow-list.ts";
import { maxWaitMs } from "../../native/uses/late-queue.ts";
import { Names } from "../../native/uses/names.ts";
import { serveUdp, type ServeUdpOptions } from "../../native/uses/serve-udp.ts";
import { UdpForward, type UdpForwardOptions } from "../../native/uses/udp.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { Linked } from "../session/linked-fixture.ts";
import { randomBytes, randomFrom } from "../session/memory-fixture.ts";
import { freeUdpPort, UdpClient, udpTarget } from "../udp-fixture.ts";

setDefaultTimeout(testMs);

interface Scene extends Disposable {
  link: Linked;
  forward: UdpForward;
  /** What each side's user was told. */
  alice: string[];
  bob: string[];
  /** Streams that alice has opened. */
  opened: number;
}

type Options = Partial<Omit<UdpForwardOptions, "target">> &
  Partial<Omit<ServeUdpOptions, "onRefused">> & { rules?: string[]; host?: string; bind?: string };

/** alice listens, bob serves. */
function forwarding(
  port: number,
  { rules = ["*:*/udp"], host = "127.0.0.1", bind = "127.0.0.1", ...options }: Options = {},
): Scene {
  const link = new Linked();
  const allow = new AllowList();
  for (const rule of rules) allow.add(rule);
  const [alice, bob]: [string[], string[]] = [[], []];
  const serving: ServeUdpOptions = {
    ...{ allow, peer: "alice", ...options },
    onRefused: (target, { why, reason }) => bob.push(`${why} ${target}: ${reason}`),
  };
  const scene = { link, alice, bob, opened: 0 };
  link.onStream = async (stream, purpose) => {
    scene.opened++;
    const { target, refused } = await serveUdp(stream, purpose, serving);
    if (refused) serving.onRefused(target, refused);
  };
  const forward = new UdpForward({
    listen: { kind: "udp", bind, port: 0 },
    target: { kind: "udp", host, port },
    link: () => link.alice,
    onRefused: (_, reason, why) => alice.push(`${why}: ${reason}`),
    ...options,
  });
  return Object.assign(scene, {
    forward,
    [Symbol.dispose]() {
      forward.close();
      link[Symbol.dispose]();
    },
  });
}

describe("datagrams", () => {
  for (const address of ["127.0.0.1", "::1"])
    test(`arrive whole, and so do their answers: ${address}`, async () => {
      await using _ = noSocketLeft();
      using target = udpTarget(undefined, { address });
      using scene = forwarding(target.port, { host: address, bind: address });
      using client = new UdpClient(scene.forward.listen.port, address);
      const sizes = [0, 1, 100, 1_472, 16_384, 65_507];
      const random = randomFrom(7);
      const all = sizes.map((size) => randomBytes(random, size));
      for (const one of all) await client.asks(one);
      const isWhole = (bytes: Buffer) => all.some((one) => one.equals(bytes));
      expect(client.got.every(isWhole)).toBe(true);
      // What was asked twice may be answered twice.
      await until(
        "all that was handed on is there",
        () => scene.forward.traffic.packetsIn === client.got.length,
      );
      const { packetsIn, packetsOut, bytesIn, bytesOut, dropped } = scene.forward.traffic;
      expect(bytesIn).toBe(Buffer.concat(client.got).length);
      expect(packetsOut + dropped).toBeGreaterThanOrEqual(packetsIn);
      expect(bytesOut).toBeGreaterThanOrEqual(Buffer.concat(all).length);
      expect([scene.forward.open, scene.forward.total, scene.opened]).toEqual([1, 1, 1]);
    });

  test("of each source have a flow of their own", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget((bytes, port) => Buffer.from(`${bytes} from ${port}`));
    using scene = forwarding(target.port);
    using one = new UdpClient(scene.forward.listen.port);
    using other = new UdpClient(scene.forward.listen.port, "127.0.0.1", "127.0.0.2");
    for (const text of ["a", "b"])
      for (const client of [one, other]) {
        const asking = setInterval(() => client.send(text), 250);
        client.send(text);
        await until(`${text} is answered`, () => client.got.some((bytes) => `${bytes}`.startsWith(text)));
        clearInterval(asking);
      }
    const ports = [one, other].map(
      ({ got }) => new Set(got.map((bytes) => `${bytes}`.replace(/^[ab] from /, ""))),
    );
    expect(ports.map(({ size }) => size)).toEqual([1, 1]);
    expect(ports[0]).not.toEqual(ports[1]);
    expect(scene.forward.open).toBe(2);
  });

  test("end their flow by being silent, on both sides; the next one begins another", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget();
    using scene = forwarding(target.port, { silenceMs: 400 });
    using client = new UdpClient(scene.forward.listen.port);
    await client.asks("first");
    await until("the flow is over", () => scene.forward.open === 0);
    await client.asks("second");
    expect(scene.forward.total).toBeGreaterThan(1);
    const { packetsIn, packetsOut } = scene.forward.traffic;
    expect([packetsIn, packetsOut].every((count) => count >= 2)).toBe(true); // those of the flow that is over are counted, too
  });

  test("reach a target that listens at another address of localhost, the first one, too", async () => {
    await using _ = noSocketLeft();
    const port = freeUdpPort("::1");
    using target = udpTarget(undefined, { address: "::1", port });
    using scene = forwarding(port, { rules: [`${port}/udp`], host: "localhost" });
    using client = new UdpClient(scene.forward.listen.port);
    await client.asks("hello");
    expect([scene.alice, scene.bob]).toEqual([[], []]);
    // The one that was refused at 127.0.0.1 was sent again.
    await until("all that was sent has come", () => {
      const { packetsOut, dropped } = scene.forward.traffic;
      return packetsOut - dropped <= target.got.length;
    });
  });
});

describe("what is late is dropped", () => {
  test("while the link is broken: what was sent meanwhile never comes", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget();
    using scene = forwarding(target.port);
    const { forward, link } = scene;
    using client = new UdpClient(forward.listen.port);
    await client.asks("before");
    const { dropped } = forward.traffic;
    link.carriers.alice.cut();
    for (let number = 0; number < 100; number++) client.send(`late ${number}`);
    await until("they are dropped", () => forward.traffic.dropped >= dropped + 100);
    link.reconnect();
    await client.asks("after");
    expect(target.got.filter(({ text }) => text.startsWith("late"))).toEqual([]);
  });

  test("while the peer acknowledges nothing, though the carrier takes all: few come late", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget();
    using scene = forwarding(target.port);
    const { forward, link } = scene;
    using client = new UdpClient(forward.listen.port);
    for (let number = 0; number < 20; number++) await client.asks(`before ${number}`);
    link.carriers.bob.pause();
    let sent = 0;
    const sending = setInterval(() => client.send(`late ${sent++}`), 1);
    await until("most of them are dropped", () => forward.traffic.dropped > 300);
    clearInterval(sending);
    link.carriers.bob.resume();
    await client.asks("after");
    const late = target.got.filter(({ text }) => text.startsWith("late")).length;
    expect(late).toBeLessThanOrEqual(sent - 300);
  });

  test("also if the peer has never acknowledged anything", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget();
    using scene = forwarding(target.port);
    const { forward, link } = scene;
    using client = new UdpClient(forward.listen.port);
    link.carriers.bob.pause();
    const sending = setInterval(() => client.send("unheard"), 5);
    await until("some are dropped", () => forward.traffic.dropped > 20);
    clearInterval(sending);
    link.carriers.bob.resume();
    await client.asks("after");
  });

  test("what the serving end has dropped is counted at the listening end", async () => {
    await using _ = noSocketLeft();
    const burst = 400;
    using target = udpTarget();
    using scene = forwarding(target.port);
    const { forward, link } = scene;
    using client = new UdpClient(forward.listen.port);
    await client.asks("before");
    link.reconnect({ bytesPerMs: 100 });
    await client.asks("on a slow path");
    const { packetsIn } = forward.traffic;
    for (let number = 0; number < burst; number++)
      target.send(randomBytes(randomFrom(number), 100), target.got[0]!.port);
    await until("each is told of", () => {
      const { packetsIn: now, dropped } = forward.traffic;
      return now + dropped >= packetsIn + burst;
    });
    expect(forward.traffic.dropped).toBeGreaterThan(0);
  });
});

test("what waits too long for a name that is looked up is dropped, and counted at the listening end", async () => {
  await using _ = noSocketLeft();
  using target = udpTarget();
  const looked = Promise.withResolvers<string[]>();
  const names = new Names(() => looked.promise);
  const rules = [`slow.example:${target.port}/udp`, "127.0.0.1:*/udp"];
  using scene = forwarding(target.port, { host: "slow.example", names, rules });
  const { forward } = scene;
  using client = new UdpClient(forward.listen.port);
  for (let number = 0; number < 5; number++) client.send(`late ${number}`);
  await until("they are under way", () => forward.traffic.packetsOut + forward.traffic.dropped === 5);
  const sentAt = performance.now();
  await until("they are late", () => performance.now() - sentAt > 4 * maxWaitMs);
  looked.resolve(["127.0.0.1"]);
  await client.asks("in time");
  await client.asks("and again");
  await until("each is counted", () => forward.traffic.dropped >= 5);
  expect(target.got.filter(({ text }) => text.startsWith("late"))).toEqual([]);
});

describe("what can't be reached", () => {
  test("is told once, at both ends, and is reached as soon as something listens there", async () => {
    await using _ = noSocketLeft();
    const port = freeUdpPort();
    using scene = forwarding(port);
    using client = new UdpClient(scene.forward.listen.port);
    const closed = "nothing listens there (ECONNREFUSED)";
    for (let number = 0; number < 20; number++) {
      client.send(`in vain ${number}`);
      await until("it was sent or dropped", () => {
        const { packetsOut, dropped } = scene.forward.traffic;
        return packetsOut + dropped > number;
      });
    }
    await until("both are told", () => scene.alice.length > 0 && scene.bob.length > 0);
    using _target = udpTarget(undefined, { port });
    await client.asks("not in vain");
    expect(scene.alice).toEqual([`no-answer: 127.0.0.1:${port}/udp: ${closed}`]);
    expect(scene.bob).toEqual([`no-answer 127.0.0.1:${port}/udp: 127.0.0.1:${port}: ${closed}`]);
    expect(scene.opened).toBe(1);
  });

  test("because it is not allowed is told once; few streams are opened for it", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget();
    using scene = forwarding(target.port, { rules: [`${target.port}`, "[::/0]:*/udp"] });
    using client = new UdpClient(scene.forward.listen.port);
    const sends = 200;
    for (let number = 0; number < sends; number++) {
      client.send("in vain");
      await until("it was sent or dropped", () => {
        const { packetsOut, dropped } = scene.forward.traffic;
        return packetsOut + dropped > number;
      });
    }
    await until("both are told", () => scene.alice.length > 0 && scene.bob.length === scene.opened);
    expect(scene.alice).toEqual([`not-allowed: 127.0.0.1:${target.port}/udp is not allowed`]);
    expect(target.got).toEqual([]);
    expect(scene.opened).toBeLessThan(sends / 4);
  });

  test("because there is no link is told once", async () => {
    await using _ = noSocketLeft();
    using scene = forwarding(9, { link: () => Promise.reject(new Error("bob is not here")) });
    using client = new UdpClient(scene.forward.listen.port);
    for (let number = 0; number < 50; number++) {
      client.send("in vain");
      await until("it was dropped", () => scene.forward.traffic.dropped > number);
    }
    expect([scene.alice, scene.opened]).toEqual([["no-link: bob is not here"], 0]);
  });

  test("because a program listens there already is said at once", () => {
    using taken = udpTarget();
    const listen = { kind: "udp", bind: "127.0.0.1", port: taken.port } as const;
    expect(() => forwarding(9, { listen })).toThrow(
      `can't listen on 127.0.0.1:${taken.port}/udp: a program listens there already; choose another port`,
    );
  });
});

describe("flows are limited", () => {
  test("and one that is used stays, whatever else comes to the port", async () => {
    await using _ = noSocketLeft();
    using target = udpTarget((bytes) => (`${bytes}`.startsWith("real") ? bytes : undefined));
    using scene = forwarding(target.port);
    using real = new UdpClient(scene.forward.listen.port);
    await real.asks("real");
    const [{ port = 0 } = {}] = target.got;
    const strangers: UdpClient[] = [];
    for (let round = 0; scene.forward.total < 500; round++) {
      for (let count = 0; count < 20; count++) {
        const from = `127.${1 + (strangers.length % 200)}.0.1`;
        const stranger = new UdpClient(scene.forward.listen.port, "127.0.0.1", from);
        stranger.send("spoofed");
        strangers.push(stranger);
        if (strangers.length > 600) strangers.shift()![Symbol.dispose]();
      }
      await real.asks(`real ${round}`);
    }
    for (const stranger of strangers) stranger[Symbol.dispose]();
    expect(scene.forward.open).toBeLessThanOrEqual(342);
    const answered = target.got.filter(({ text }) => text.startsWith("real"));
    expect(new Set(answered.map((one) => one.port))).toEqual(new Set([port]));
  });
});
