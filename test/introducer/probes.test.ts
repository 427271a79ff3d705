/** Probe ports: what they say, to how many, and which. */
import { expect, setDefaultTimeout, test } from "bun:test";
import net from "node:net";
import { Introducer } from "../../introducer.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { at, Client, registration } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { freePort, freePorts } from "../sockets-fixture.ts";
import { encode } from "../../protocol.ts";
import { linuxTest } from "../needing-fixture.ts";
import { introduce, silent } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

linuxTest("one address has its share of the mapping probes", async () => {
  await using scene = introduce({ probesPerAddress: 2, ownHostShares: 1 });
  const port = scene.introducer.probePorts[0]!;
  using first = new Client(port);
  using second = new Client(port);
  await Promise.all([first.next("observed"), second.next("observed")]);
  expect((await probed(port)).text).toBe("");
  using other = new Client(port, "127.0.0.2");
  await other.next("observed");
});

/** All that a probe port says, until it closes the connection. */
async function probed(
  port: number,
  says = "",
  host = "127.0.0.1",
  leaves = false,
): Promise<{ text: string; endpoint: string }> {
  const socket = net.connect({ port, host });
  const chunks: Buffer[] = [];
  let endpoint = "";
  socket.on("connect", () => {
    endpoint = `${socket.localAddress}:${socket.localPort}`;
    if (says) socket.write(says);
  });
  socket.on("data", (chunk) => {
    chunks.push(Buffer.from(chunk));
    if (leaves) socket.end();
  });
  socket.on("error", () => {});
  await new Promise((resolve) => socket.on("close", resolve));
  return { text: Buffer.concat(chunks).toString(), endpoint };
}

test("a probe port says what it sees, nothing else, and closes who stays", async () => {
  await using scene = introduce({ measureMs: 1000 });
  const { probePorts } = scene.introducer;
  expect(new Set([scene.introducer.port, ...probePorts]).size).toBe(3);
  const register = encode(registration("anna"));
  const answers = await Promise.all([
    probed(probePorts[0]!),
    probed(probePorts[1]!),
    probed(probePorts[0]!, register),
  ]);
  for (const { text, endpoint } of answers) {
    expect(text).toBe(`{"type":"observed","endpoint":"${endpoint}"}\n`);
  }
  expect(scene.introducer.participants).toEqual([]);
});

test("a probe connection is closed in time, also one that goes on talking", async () => {
  await using scene = introduce({ measureMs: 500 });
  using silent = new Client(scene.introducer.probePorts[0]!);
  using talking = new Client(scene.introducer.probePorts[1]!);
  // Time in which the introducer, in the same thread, could do something: a timer that is late comes once.
  let ticks = 0;
  const timer = setInterval(() => (ticks++, talking.raw("x")), 50);
  await Promise.all([silent.ended.promise, talking.ended.promise]);
  clearInterval(timer);
  expect(ticks * 50).toBeLessThan(2500);
});

test("so many probes at once, and no more, until one is over", async () => {
  await using scene = introduce({ probes: 2 });
  const port = scene.introducer.probePorts[0]!;
  using first = new Client(port);
  using second = new Client(port);
  await Promise.all([first.next("observed"), second.next("observed")]);
  expect((await probed(port)).text).toBe("");
  first[Symbol.dispose]();
  for (;;) {
    using next = new Client(port);
    const answered = next.next("observed").then(() => true);
    if (await Promise.race([answered, next.ended.promise.then(() => false)])) break;
  }
  second[Symbol.dispose]();
});

linuxTest("registered names the probe ports, and a second address where there is one", async () => {
  const options = { host: "127.0.0.1", port: 0, alternate: "127.0.0.2" };
  const first = freePorts(2);
  await using introducer = Introducer.start({ ...options, probePorts: [first, first + 1] });
  using anna = new Client(introducer.port);
  anna.send(registration("anna"));
  const { probePorts } = introducer;
  const alternates = [at(`127.0.0.2:${probePorts[0]}`)];
  expect(await anna.next("registered")).toMatchObject({ probePorts, alternates });
  const { text, endpoint } = await probed(probePorts[0]!, "", "127.0.0.2", true);
  expect(text).toBe(`{"type":"observed","endpoint":"${endpoint}"}\n`);
});

test("no probe ports: none are named, and no second address either", async () => {
  const options = { host: "127.0.0.1", port: 0, alternate: "127.0.0.2", probePorts: [] };
  await using introducer = Introducer.start(options);
  using anna = new Client(introducer.port);
  anna.send(registration("anna"));
  expect(await anna.next("registered")).toMatchObject({ probePorts: [], alternates: [] });
});

test("a probe port that is taken: by default a warning and more tries, when asked for an error", async () => {
  const own = freePorts(2);
  const probePort = own + 1;
  const taken = introduce({}, { port: probePort });
  const events: IntroducerEvent[] = [];
  const onEvent = (event: IntroducerEvent) => void events.push(event);
  const options = { host: "127.0.0.1", port: own, onEvent };
  await using introducer = Introducer.start(options);
  expect(events[0]).toMatchObject({ event: "warning", message: expect.stringContaining(`${probePort}`) });
  expect(introducer.probePorts).not.toContain(probePort);
  const port = freePort();
  expect(() => Introducer.start({ host: "127.0.0.1", port, probePorts: [probePort] })).toThrow();
  const again = Introducer.start({ host: "127.0.0.1", port, probePorts: [] }); // its own port is free again
  await again.stop();
  await taken[Symbol.asyncDispose]();
  await until("it has that port, too", () => introducer.probePorts.includes(probePort));
  expect((await probed(probePort)).text).toContain("observed");
  using anna = new Client(introducer.port);
  anna.send(registration("anna"));
  expect((await anna.next("registered")).probePorts).toContain(probePort);
});

test("one that replaces another has its probe ports as soon as it has its port", async () => {
  const port = freePorts(3); // its own, and those of its probes
  const old = Introducer.start({ host: "127.0.0.1", port });
  using anna = new Client(port);
  anna.send(registration("anna"));
  await anna.next("registered");
  const { probePorts } = old;
  expect(probePorts).toHaveLength(2);
  const drained = old.drain("it is replaced");
  let replaced: Introducer | undefined;
  await until("its port is free", () => {
    try {
      return (replaced = Introducer.start({ host: "127.0.0.1", port })) !== undefined;
    } catch {
      return false;
    }
  });
  expect(replaced!.probePorts).toEqual(probePorts);
  await drained;
  await Promise.all([old.stop("it is over"), replaced!.stop("it is over")]);
});
