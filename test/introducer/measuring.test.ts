/** Measuring before a round, probes that say whose they are, and the other address family. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { networkInterfaces } from "node:os";
import { at, Client, linkedBy, registration } from "../client-fixture.ts";
import { encode, type Endpoint, type Mapping, parseToParticipant } from "../../protocol.ts";
import { describeNeeding } from "../needing-fixture.ts";
import { introduce, pairOf, noAnswer, measuredAt } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("only the side with sequential ports measures, and both learn what it measured", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "sequential", "endpoint-independent");
  const { anna, bert } = pair;
  bert.send({ type: "connect", peer: anna.id });
  const asked = await anna.next("measure");
  expect(asked).toMatchObject({ peer: { id: bert.id }, way: "predicted" });
  await bert.settled();
  expect(bert.types()).not.toContain("punch");
  const prediction = measuredAt("127.0.0.1:50000", -1);
  anna.send({ type: "measured", token: asked.token, prediction });
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  const round = { way: "predicted", round: 1, last: false, token: asked.token };
  expect([a, b]).toMatchObject([
    { ...round, role: "controlled", own: prediction },
    { ...round, role: "controlling", theirs: prediction },
  ]);
  expect([a.theirs, b.own, bert.types().includes("measure")]).toEqual([undefined, undefined, false]);
  // What was measured for one round says nothing about the next.
  bert.send({ ...noAnswer, peer: anna.id, token: b.token });
  const again = await anna.next("measure");
  expect(again.token).not.toBe(asked.token);
  anna.send({ type: "measured", token: again.token });
  const next = await anna.next("punch", ({ round: number }) => number === 2);
  expect([next.token, next.own]).toEqual([again.token, undefined]);
});

test("both sequential: the round starts when both have measured", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "sequential", "sequential");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("measure");
  expect((await bert.next("measure")).token).toBe(token);
  const [ofAnna, ofBert] = [measuredAt("127.0.0.1:50000", 1), measuredAt("127.0.0.1:60000", 256)];
  anna.send({ type: "measured", token, prediction: ofAnna });
  anna.send({ type: "measured", token, prediction: ofBert }); // twice: the second is late
  await anna.settled();
  expect(anna.types()).not.toContain("punch");
  bert.send({ type: "measured", token, prediction: ofBert });
  expect(await Promise.all([anna.next("punch"), bert.next("punch")])).toMatchObject([
    { token, own: ofAnna, theirs: ofBert },
    { token, own: ofBert, theirs: ofAnna },
  ]);
});

/** Says on a connection to a probe port whose probe it is; resolves to what the introducer saw of it. */
async function probe(scene: ReturnType<typeof introduce>, ...pieces: string[]): Promise<Endpoint> {
  const { promise, resolve } = Promise.withResolvers<Endpoint>();
  const seen = (chunk: Uint8Array) => {
    const message = parseToParticipant(new TextDecoder().decode(chunk).trim());
    if (message.type === "observed") resolve(message.endpoint);
  };
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port: scene.introducer.probePorts[0]!,
    socket: { data: (_, chunk) => seen(chunk) },
  });
  for (const piece of pieces) socket.write(piece);
  const observed = await promise;
  socket.end();
  return observed;
}

/** Two of whom anna counts and stood there; her token. */
async function pairByOlder(scene: ReturnType<typeof introduce>, ofBert: Mapping) {
  const pair = await pairOf(scene, "unknown", ofBert);
  const [registered] = pair.anna.seen.filter((message) => message.type === "registered");
  return { pair, token: registered!.probeToken! };
}

test("a round begins at once by what was measured last, and a probe that agrees changes nothing", async () => {
  await using scene = introduce();
  const { pair, token } = await pairByOlder(scene, "endpoint-independent");
  using both = pair;
  const { anna, bert } = both;
  const older = measuredAt("127.0.0.1:50000", 1);
  anna.send({ type: "mapping", mapping: "sequential", prediction: older });
  await anna.settled();
  anna.send({ type: "connect", peer: bert.id });
  const measure = await anna.next("measure");
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect([a, b]).toMatchObject([
    { token: measure.token, way: "predicted", round: 1, own: older },
    { token: measure.token, way: "predicted", round: 1, theirs: older },
  ]);
  anna.send({ type: "measured", token: measure.token, prediction: older });
  await anna.settled();
  await probe(scene, encode({ type: "probe", token, peer: bert.id, step: 1 })); // late
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch")).toHaveLength(1);
});

test("a probe that shows that the NAT has gone on: another round at once, by what it shows", async () => {
  await using scene = introduce();
  const { pair, token } = await pairByOlder(scene, "endpoint-independent");
  using both = pair;
  const { anna, bert } = both;
  anna.send({ type: "mapping", mapping: "sequential", prediction: measuredAt("127.0.0.1:80", 1) });
  await anna.settled();
  anna.send({ type: "connect", peer: bert.id });
  const first = await bert.next("punch");
  for (const wrong of [
    encode({ type: "probe", token: "0".repeat(32), peer: bert.id, step: 1 }),
    encode({ type: "probe", token, peer: 99, step: 1 }),
    encode({ type: "echo", text: token }),
    "nonsense\n",
    "x".repeat(10_000),
  ])
    await probe(scene, wrong);
  const observed = await probe(scene, encode({ type: "probe", token, peer: bert.id, step: 3 }));
  const second = await bert.next("punch");
  expect(second).toMatchObject({ way: "predicted", theirs: { endpoint: observed, step: 3 } });
  expect(second.token).not.toBe(first.token);
  expect((await anna.next("punch", (one) => one.token === second.token)).own).toEqual(second.theirs);
  // What is said of the round that is over is nobody's business any more.
  bert.send({ ...noAnswer, peer: anna.id, token: first.token });
  await bert.settled();
  expect(bert.types().filter((type) => type === "punch")).toHaveLength(2);
});

test("both count: after a wrong guess each aims behind the ports that the other has tried since", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "unknown", "unknown");
  const { anna, bert } = pair;
  for (const one of [anna, bert]) {
    one.send({ type: "mapping", mapping: "sequential", prediction: measuredAt("127.0.0.1:5000", 1) });
    await one.settled();
  }
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("measure");
  await Promise.all([anna.next("punch"), bert.next("punch")]);
  anna.send({ type: "measured", token, prediction: measuredAt("127.0.0.1:5002", 1) });
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch")).toHaveLength(1); // bert may have been right
  bert.send({ type: "measured", token, prediction: measuredAt("127.0.0.1:6000", 2) });
  expect(await anna.next("punch", (one) => one.token !== token)).toMatchObject({
    own: measuredAt("127.0.0.1:5014", 1),
    theirs: measuredAt("127.0.0.1:6024", 2),
  });
});

test("where a NAT stood is not believed of another address", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "unknown", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "mapping", mapping: "sequential", prediction: measuredAt("203.0.113.66:80", 1) });
  await anna.settled();
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("measure");
  await anna.settled();
  expect(anna.types()).not.toContain("punch");
  anna.send({ type: "measured", token });
  expect((await bert.next("punch")).theirs).toBeUndefined();
});

test("a fresh round lets both measure, with a token that the punch keeps", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const first = await anna.next("punch");
  expect(first).toMatchObject({ way: "direct", round: 1, last: false });
  anna.send({ ...noAnswer, peer: bert.id, token: first.token });
  const measures = await Promise.all([anna.next("measure"), bert.next("measure")]);
  const { token } = measures[0];
  expect(measures).toMatchObject([
    { way: "fresh", token, peer: { id: bert.id } },
    { way: "fresh", token, peer: { id: anna.id } },
  ]);
  expect(token).not.toBe(first.token);
  const own = measuredAt("127.0.0.1:50000", 0);
  anna.send({ type: "measured", token, prediction: own });
  bert.send({ type: "measured", token });
  const punches = await Promise.all([anna.next("punch"), bert.next("punch", ({ round }) => round === 2)]);
  expect(punches).toMatchObject([
    { way: "fresh", round: 2, token, own },
    { way: "fresh", round: 2, token, theirs: own },
  ]);
});

test("nobody is sent to an address that the one who measured does not have", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "sequential", "endpoint-independent");
  const { anna, bert } = pair;
  bert.send({ type: "connect", peer: anna.id });
  const { token } = await anna.next("measure");
  anna.send({ type: "measured", token, prediction: measuredAt("203.0.113.66:80", 1) });
  const punches = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect(punches.map(({ own, theirs }) => [own, theirs])).toEqual([
    [undefined, undefined],
    [undefined, undefined],
  ]);
});

test("only the side that was asked can answer, and only with the token", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "sequential", "endpoint-independent");
  const { anna, bert } = pair;
  using carl = await scene.join("carl");
  bert.send({ type: "connect", peer: anna.id });
  const { token } = await anna.next("measure");
  const forged = measuredAt("127.0.0.1:1", 1);
  bert.send({ type: "measured", token, prediction: forged });
  carl.send({ type: "measured", token, prediction: forged });
  anna.send({ type: "measured", token: "0".repeat(32), prediction: forged });
  await Promise.all([anna.settled(), bert.settled(), carl.settled()]);
  expect([...anna.types(), ...bert.types()]).not.toContain("punch");
  const prediction = measuredAt("127.0.0.1:2", 1);
  anna.send({ type: "measured", token, prediction });
  expect(await bert.next("punch")).toMatchObject({ theirs: prediction });
});

test("a side that never measures does not hold up the round, and is too late afterwards", async () => {
  await using scene = introduce({ measureMs: 500 });
  using pair = await pairOf(scene, "sequential", "sequential");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("measure");
  const own = measuredAt("127.0.0.1:50000", 1);
  anna.send({ type: "measured", token, prediction: own });
  const punches = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect(punches).toMatchObject([
    { token, own },
    { token, theirs: own },
  ]);
  bert.send({ type: "measured", token, prediction: own });
  await Promise.all([anna.settled(), bert.settled()]);
  expect([...anna.types(), ...bert.types()].filter((type) => type === "punch")).toHaveLength(2);
});

test("the way that linked a pair comes first the next time", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const first = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token: first.token });
  const { token } = await anna.next("measure");
  for (const one of [anna, bert]) one.send({ type: "measured", token });
  await Promise.all([anna.next("punch"), bert.next("punch", ({ round }) => round === 2)]);
  const report = linkedBy(token);
  for (const [one, other] of [
    [anna, bert],
    [bert, anna],
  ] as const) {
    one.send({ ...report, peer: other.id });
    await one.settled();
    one.send({ type: "unlinked", peer: other.id, reason: "disconnected" });
    await one.settled();
  }
  bert.send({ type: "connect", peer: anna.id });
  expect(await bert.next("measure", (measure) => measure.token !== token)).toMatchObject({ way: "fresh" });
});

test("who leaves while it should measure is reported as peer-left", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "sequential", "endpoint-independent");
  const { anna, bert } = pair;
  bert.send({ type: "connect", peer: anna.id });
  const { token } = await anna.next("measure");
  anna[Symbol.dispose]();
  expect(await bert.next("failed")).toMatchObject({ peer: anna.id, token, reason: "peer-left" });
});

/** Addresses of this host that are not loopback. */
const far = Object.values(networkInterfaces())
  .flatMap((list) => list ?? [])
  .filter(({ internal, scopeid }) => !internal && !scopeid)
  .map(({ address }) => address);
const hasIPv6 = Object.values(networkInterfaces()).some((list) =>
  list?.some(({ address }) => address === "::1"),
);

describeNeeding(hasIPv6 ? undefined : "this host has no ::1")("verify", () => {
  const everywhere = () => introduce({}, { host: "::", relay: false });

  test("a participant shows where it is seen in the other family, and the room and itself learn of it", async () => {
    await using scene = everywhere();
    using anna = await scene.join("anna");
    using bert = await scene.join("bert");
    const registered = bert.seen.find((message) => message.type === "registered")!;
    expect(registered.verify).toEqual({
      endpoint: at(`[::1]:${scene.introducer.port}`),
      token: expect.stringMatching(/^[0-9a-f]{32}$/),
    });
    using further = new Client(scene.introducer.port, "::1");
    further.send({ type: "verify", token: registered.verify!.token });
    const { endpoint } = await further.next("observed");
    expect(endpoint).toMatch(/^\[::1\]:\d+$/);
    await further.ended.promise;
    for (const one of [anna, bert]) {
      expect(await one.next("updated", ({ otherPublic }) => otherPublic !== undefined)).toMatchObject({
        id: bert.id,
        otherPublic: endpoint,
      });
    }
    using carl = await scene.join("carl");
    const [peers] = carl.seen.filter((message) => message.type === "peers");
    expect(peers!.peers.map(({ otherPublic }) => otherPublic)).toEqual([undefined, endpoint]);
  });

  test("from IPv6 the other family is IPv4", async () => {
    await using scene = everywhere();
    using anna = new Client(scene.introducer.port, "::1");
    anna.send(registration("anna"));
    const { verify } = await anna.next("registered");
    expect(verify?.endpoint).toBe(at(`127.0.0.1:${scene.introducer.port}`));
    using further = new Client(scene.introducer.port);
    further.send({ type: "verify", token: verify!.token });
    const { endpoint } = await further.next("observed");
    const { otherPublic } = await anna.next("updated", (change) => change.otherPublic !== undefined);
    expect(otherPublic).toBe(endpoint);
  });

  test.each(["the same family", "a token of nobody", "a token of one who left", "a registered session"])(
    "refused: %s",
    async (what) => {
      await using scene = everywhere();
      using anna = await scene.join("anna");
      using bert = await scene.join("bert");
      const { verify } = bert.seen.find((message) => message.type === "registered")!;
      if (what === "a token of one who left") {
        bert[Symbol.dispose]();
        await anna.next("left");
      }
      const token = what === "a token of nobody" ? "0".repeat(32) : verify!.token;
      using further = new Client(scene.introducer.port, what === "the same family" ? "127.0.0.1" : "::1");
      if (what === "a registered session") further.send(registration("further"));
      further.send({ type: "verify", token });
      expect(await further.next("refused")).toMatchObject({ request: "verify" });
      expect(scene.introducer.participants.map(({ otherPublic }) => otherPublic)).not.toContainEqual(
        expect.anything(),
      );
    },
  );

  test.each(far)("refused: %s, of one who is seen at loopback", async (address) => {
    await using scene = everywhere();
    const { port } = scene.introducer;
    using anna = new Client(port, address.includes(":") ? "127.0.0.1" : "::1");
    anna.send(registration("anna"));
    const { verify } = await anna.next("registered");
    using further = new Client(port, address, address);
    further.send({ type: "verify", token: verify!.token });
    expect(await further.next("refused")).toMatchObject({ code: "bad-field", request: "verify" });
  });

  test("an introducer of one family offers none", async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    expect(anna.seen.find((message) => message.type === "registered")!.verify).toBeUndefined();
  });
});
