/** The classifier over literal samples, and probes against a real introducer on loopback. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Introducer } from "../../introducer.ts";
import {
  alternateGraceMs,
  classifyMapping,
  observe,
  observeFresh,
  predict,
  sampleMapping,
  type MappingBehaviour,
  type Sample,
} from "../../native/punch/mapping.ts";
import { connectShared, Socket } from "../../native/host/socket.ts";
import { encode, formatEndpoint, splitEndpoint, type Endpoint, type Mapping } from "../../protocol.ts";
import { listening, loopback, noSocketLeft, refusing, unanswering } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const local = 40000;
/** Where samples go: the introducer's control port, then its probe ports, in turn. */
const control = formatEndpoint("203.0.113.1", 7000);
const probes = [7001, 7002].map((port) => formatEndpoint("203.0.113.1", port));
const elsewhere = formatEndpoint("203.0.113.2", 7001);
const external = "198.51.100.7";

function sample(destination: Endpoint, port: number, address = external): Sample {
  return { destination, observed: formatEndpoint(address, port) };
}

/** The control connection, then the probes, round and round. */
function samplesOf(ports: readonly number[]): Sample[] {
  return ports.map((port, index) => sample(index === 0 ? control : probes[(index - 1) % 2]!, port));
}

// --- the classifier --------------------------------------------------------------------------------------

describe("a NAT that gives", () => {
  const same: MappingBehaviour = {
    mapping: "endpoint-independent",
    step: 0,
    isPreserved: false,
    dependsOn: "unknown",
  };
  test("the same port for every destination is endpoint-independent", () => {
    expect(classifyMapping(samplesOf([50123, 50123, 50123]), local)).toEqual(same);
  });

  test("the local port besides is said to preserve it", () => {
    expect(classifyMapping(samplesOf([local, local, local]), local)).toEqual({ ...same, isPreserved: true });
  });

  test("the local port only at first does not preserve it", () => {
    expect(classifyMapping(samplesOf([local, 1025, 1026]), local)).toMatchObject({
      mapping: "sequential",
      isPreserved: false,
    });
  });

  test.each<[ports: number[], mapping: Mapping, step: number, what: string]>([
    [[40000, 50001, 50002, 50003, 50004], "sequential", 1, "the next port each time"],
    [[40000, 50001, 50003, 50005, 50007], "sequential", 2, "every second port"],
    [[40000, 50004, 50003, 50002, 50001], "sequential", -1, "the port below"],
    [[40000, 20000, 20256, 20512, 20768], "sequential", 256, "the next port in the wrong byte order"],
    [[9, 50001, 50002, 50005, 50006], "sequential", 1, "the next port, three to others in between"],
    [[9, 50001, 50005, 50007, 50013], "sequential", 2, "every second port, some to others in between"],
    [[9, 50013, 50009, 50008, 50002], "sequential", -1, "the port below, some to others in between"],
    [[9, 50000, 50001, 50025], "sequential", 1, "the next port, 23 to others in between"],
    [[9, 50000, 50001, 50026], "random", 0, "ports too far apart to have been counted"],
    [[9, 20000, 21024, 22048], "sequential", 1024, "ports the largest step apart"],
    [[9, 20000, 21025, 22050], "random", 0, "ports more than the largest step apart"],
    [[9, 50001, 50002, 50001, 50002], "random", 0, "ports to and fro"],
    [[9, 50001, 50004, 50006], "sequential", 1, "what others took makes every difference another multiple"],
    [[9, 50001, 50026, 50027], "random", 0, "more than others can have taken meanwhile"],
    [[9, 61234, 1733, 30011, 44444], "random", 0, "any ports"],
    [
      [9, 50001, 50001],
      "endpoint-independent",
      0,
      "one port for the probes, another for the older control connection",
    ],
    [[40000, 50000], "random", 0, "another port, seen once only"],
    [[9, 50014, 50003, 50016, 50017], "sequential", 1, "the next port, the first SYN lost and sent again"],
    [[9, 50003, 50004, 50018, 50007], "sequential", 1, "the next port, the third SYN lost and sent again"],
    [[9, 50004, 50003, 50001, 50002], "sequential", -1, "the port below, the last two the other way round"],
    [[9, 65534, 65535, 1024, 1025], "sequential", 1, "the next port, beginning anew as we watch"],
    [[9, 1025, 1024, 65535, 65532], "sequential", -1, "the port below, beginning anew as we watch"],
    [[9, 65535, 1024, 1025], "random", 0, "ports too few to tell that from chance"],
  ])("%p is %s, step %i: %s", (ports, mapping, step) => {
    expect(classifyMapping(samplesOf(ports), local)).toMatchObject({ mapping, step });
  });

  test("too few samples to tell is unknown", () => {
    const unknown = { mapping: "unknown", step: 0, dependsOn: "unknown" } as const;
    expect(classifyMapping([], local)).toEqual({ ...unknown, isPreserved: false });
    expect(classifyMapping(samplesOf([local]), local)).toEqual({ ...unknown, isPreserved: true });
  });

  test("addresses from a pool can't be predicted, whatever the ports do", () => {
    const pool = (ports: number[]) =>
      ports.map((port, index) => sample(probes[index % 2]!, port, `198.51.100.${7 + (index % 2)}`));
    expect(classifyMapping(pool([local, local, local]), local)).toMatchObject({ mapping: "random", step: 0 });
    expect(classifyMapping(pool([9, 50001, 50002, 50003]), local)).toMatchObject({ mapping: "random" });
  });

  /** Of the introducer's address one port, then what its other address sees, round by round. */
  const byAddress = (main: number, ...elsewherePorts: number[]) => [
    sample(control, main),
    ...elsewherePorts.flatMap((port) => [
      sample(probes[0]!, main),
      sample(probes[1]!, main),
      sample(elsewhere, port),
    ]),
  ];
  test.each<[Sample[], Mapping, step: number, what: string]>([
    [byAddress(50000, 50000), "endpoint-independent", 0, "the same"],
    [byAddress(50000, 50001), "sequential", 1, "the next"],
    [byAddress(50000, 50005), "sequential", 1, "a near one, others in between"],
    [byAddress(50000, 49999), "sequential", -1, "the one below"],
    [byAddress(50000, 50001, 50002), "sequential", 1, "the next, and for a new mapping the next again"],
    [byAddress(50000, 50002, 50006), "sequential", 2, "every second"],
    [byAddress(50000, 50001, 50001), "sequential", 1, "the next, and the same again"],
    [byAddress(50000, 50900), "random", 0, "a far one"],
    [byAddress(50000, 31234, 5555), "random", 0, "any"],
  ])("another port for another address: %#", (samples, mapping, step, what) => {
    expect([what, classifyMapping(samples, local)]).toMatchObject([what, { mapping, step }]);
  });

  test("another port for every port of one address is judged by that address alone", () => {
    const samples = [control, ...probes, elsewhere, ...probes, elsewhere].map((destination, index) =>
      sample(destination, 50000 + index),
    );
    expect(classifyMapping(samples, local)).toMatchObject({
      mapping: "sequential",
      step: 1,
      dependsOn: "port",
    });
  });

  test.each<[MappingBehaviour["dependsOn"], Sample[], string]>([
    ["nothing", [sample(control, 5), sample(probes[0]!, 5), sample(elsewhere, 5)], "one endpoint for all"],
    ["address", [sample(control, 5), sample(probes[0]!, 5), sample(elsewhere, 6)], "another by address"],
    ["port", [sample(control, 5), sample(probes[0]!, 6), sample(elsewhere, 7)], "another by port"],
    ["port", [sample(control, 5), sample(probes[0]!, 6)], "another by port, of one address"],
    ["unknown", [sample(control, 5), sample(probes[0]!, 5)], "one endpoint for one address"],
    ["unknown", [sample(control, 5)], "a single sample"],
  ])("depends on %s", (dependsOn, samples) => {
    expect(classifyMapping(samples, local).dependsOn).toBe(dependsOn);
  });
});

// --- probes ----------------------------------------------------------------------------------------------

const introduce = () => Introducer.start({ host: "127.0.0.1", port: 0 });

test("probes from a shared port see that port, and leave no descriptor", async () => {
  await using _ = noSocketLeft();
  await using introducer = introduce();
  const { socket, port } = await connectShared(loopback(introducer.port), 4_000);
  using _control = socket;
  const answering = introducer.probePorts.map((one) => loopback(one));
  expect(answering.length).toBe(2);
  const first = { destination: loopback(introducer.port), observed: loopback(port) };
  const samples = await sampleMapping(port, first, answering);
  const seen = answering.map((destination) => ({ destination, observed: loopback(port) }));
  expect(samples).toEqual([first, ...seen]); // once round: nothing depends on the destination
  expect(classifyMapping(samples, port)).toEqual({
    mapping: "endpoint-independent",
    step: 0,
    isPreserved: true,
    dependsOn: "unknown",
  });
  expect(await predict(answering[0]!, -1)).toEqual({ endpoint: expect.any(String), step: -1 });
});

test("what depends on the destination is sampled twice round, and a silent probe left out", async () => {
  await using _ = noSocketLeft();
  await using introducer = introduce();
  using bound = Socket.open(4);
  const port = bound.bind(0);
  bound.shareport();
  const answering = introducer.probePorts.map((one) => loopback(one));
  const first = sample(loopback(introducer.port), 9);
  const samples = await sampleMapping(port, first, [answering[0]!, refusing(), answering[1]!]);
  const seen = answering.map((destination) => ({ destination, observed: loopback(port) }));
  expect(samples).toEqual([first, ...seen, ...seen]);
});

test("a fresh port is measured, and can be shared afterwards", async () => {
  await using _ = noSocketLeft();
  await using introducer = introduce();
  const [probe, another] = introducer.probePorts.map((port) => loopback(port)) as [Endpoint, Endpoint];
  const fresh = await observeFresh(probe);
  expect(fresh).toEqual({ port: expect.any(Number), observed: loopback(fresh!.port) });
  expect(await observe(fresh!.port, another)).toBe(loopback(fresh!.port));
  expect((await observeFresh(probe))?.port).not.toBe(fresh!.port);
});

describe("no observation, and nothing thrown, from a probe port that", () => {
  const observed = encode({ type: "observed", endpoint: formatEndpoint("203.0.113.7", 40000) });
  const strangers: Record<string, (socket: Bun.Socket) => void> = {
    "sends garbage": (socket) => void socket.write("HTTP/1.0 400 Bad Request\r\n\r\n"),
    "sends bytes that are not UTF-8": (socket) => void socket.write(new Uint8Array([0xff, 0xfe, 10])),
    "sends a line without end": (socket) => void socket.write(new Uint8Array(1 << 20)),
    "sends another message first": (socket) => void socket.write(encode({ type: "ping", id: 1 }) + observed),
    "sends an address no host has": (socket) =>
      void socket.write('{"type":"observed","endpoint":"224.0.0.1:5"}\n'),
    "sends half a line and hangs up": (socket) => void socket.end(observed.slice(0, 20)),
    "hangs up": (socket) => void socket.end(),
    resets: (socket) => void socket.terminate(),
  };

  test.each(Object.entries(strangers))("%s", async (_what, open) => {
    await using _ = noSocketLeft();
    using server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data() {} } });
    using bound = Socket.open(4);
    const port = bound.bind(0);
    bound.shareport();
    const probe = loopback(server.port);
    expect([await observe(port, probe), await observeFresh(probe)]).toEqual([undefined, undefined]);
    server.stop(true);
  });

  test("refuses", async () => {
    await using _ = noSocketLeft();
    const probe = refusing();
    const port = splitEndpoint(refusing()).port;
    expect([await observe(port, probe), await observeFresh(probe)]).toEqual([undefined, undefined]);
  });

  linuxTest("never says anything, or never accepts", async () => {
    await using _ = noSocketLeft();
    using silent = listening();
    using hole = unanswering();
    const observed = await Promise.all([silent, hole].map(({ endpoint }) => observeFresh(endpoint)));
    expect(observed).toEqual([undefined, undefined]);
  });
});

test("an answer that comes in pieces is put together", async () => {
  await using _ = noSocketLeft();
  const observed = formatEndpoint("203.0.113.7", 40000);
  const line = encode({ type: "observed", endpoint: observed });
  const pieces = Array.from(line);
  using server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open(socket) {
        socket.setNoDelay(true);
        const next = () => {
          const piece = pieces.shift();
          if (piece === undefined) return;
          socket.write(piece);
          setTimeout(next, 1);
        };
        next();
      },
      data() {},
    },
  });
  expect(await observeFresh(loopback(server.port))).toMatchObject({ observed });
  server.stop(true);
});

test("when the mapping is told does not tell who listens at an alternate address", async () => {
  using answering = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: (socket) => void socket.write('{"type":"observed","endpoint":"203.0.113.1:5"}\n'),
      data() {},
    },
  });
  using banner = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { open: (socket) => void socket.end("SSH-2.0-OpenSSH_9.6\r\n"), data() {} },
  });
  using hole = unanswering();
  const own = { destination: loopback(answering.port), observed: "203.0.113.1:5" as Endpoint };
  const tookMs = async (...alternates: Endpoint[]) => {
    const { socket, port } = await connectShared(own.destination, patienceMs);
    const since = performance.now();
    const samples = await sampleMapping(port, own, [], alternates);
    expect(samples.length).toBe(1 + alternates.filter((one) => one === own.destination).length);
    socket.close();
    return performance.now() - since;
  };
  // It is waited for a while, whoever is there.
  for (const endpoint of [hole.endpoint, refusing(), loopback(banner.port)])
    expect(await tookMs(endpoint)).toBeGreaterThan(alternateGraceMs - 2);
});
