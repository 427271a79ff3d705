/** When a relay is offered, and how relayed bytes go. */
import { expect, setDefaultTimeout, test as alone } from "bun:test";
import { once } from "node:events";
import net from "node:net";
import picocolors from "picocolors";
import type { IntroducerEvent, IntroducerOptions } from "../../native/introducer/events.ts";
import type { Limits } from "../../native/introducer/limits.ts";
import { RelayUses } from "../../native/introducer/relay-use.ts";
import { Client, fingerprint, linkedBy, registration } from "../client-fixture.ts";
import { toil, until } from "../native-fixture.ts";
import { encode, parseToParticipant, relayAfterMs, type ToParticipant } from "../../protocol.ts";
import { linuxDescribe, linuxTest } from "../needing-fixture.ts";
import { introduce, rendered, pairOf, noAnswer, maps, silent, linksOf } from "./introducer-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(8);
setDefaultTimeout(testMs);

const relaying = (limits: Partial<Limits> = {}, options: IntroducerOptions = {}) =>
  introduce(limits, options);

/** Two with random ports at different addresses, who can't meet: `token` is that of the relay they are offered. */
async function strangers(scene: ReturnType<typeof introduce>, names = ["anna", "bert"]) {
  const [anna, bert] = [await silent(scene, names[0]!), await silent(scene, names[1]!, "127.0.0.2")];
  await maps(anna, "random");
  await maps(bert, "random");
  const meet = async () => {
    anna.send({ type: "connect", peer: bert.id });
    return await Promise.all([anna.next("relay"), bert.next("relay")]);
  };
  const dispose = () => {
    anna[Symbol.dispose]();
    bert[Symbol.dispose]();
  };
  return { anna, bert, meet, [Symbol.dispose]: dispose };
}

/** One side of a relayed link: all that came after `relaying`, and what went. */
class RelayClient implements Disposable {
  readonly socket: net.Socket;
  readonly begun = Promise.withResolvers<void>();
  readonly ended = Promise.withResolvers<void>();
  readonly chunks: Buffer[] = [];
  receivedBytes = 0;
  /** The first line. */
  answer: ToParticipant | undefined = undefined;

  constructor(port: number, token: string, says: string | Uint8Array = "") {
    this.socket = net.connect({ port, host: "127.0.0.1", noDelay: true, allowHalfOpen: true });
    this.socket.on("error", () => {});
    this.socket.on("end", () => this.ended.resolve());
    this.socket.on("close", () => this.ended.resolve());
    this.socket.on("data", (chunk) => this.#data(Buffer.from(chunk)));
    this.socket.write(Buffer.concat([Buffer.from(encode({ type: "relay", token })), Buffer.from(says)]));
  }

  #data(chunk: Buffer): void {
    if (!this.answer) {
      const end = chunk.indexOf(10) + 1;
      this.answer = parseToParticipant(chunk.subarray(0, end - 1).toString());
      this.begun.resolve();
      chunk = chunk.subarray(end);
    }
    this.receivedBytes += chunk.length;
    this.chunks.push(chunk);
  }

  get text(): string {
    return Buffer.concat(this.chunks).toString();
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

linuxDescribe("where there is no direct way", () => {
  alone(
    "who waits for the other is not read meanwhile, though its address had to wait to be read",
    async () => {
      let refused = 0;
      let come = () => {};
      const onEvent = (event: IntroducerEvent) => {
        if (event.event !== "refused") return;
        toil(3);
        if (++refused === 10) come();
      };
      const options = { host: "127.0.0.1", port: 0, onEvent };
      await using scene = introduce({ ownHostShares: 1, processorMs: 4 }, options);
      const { port } = scene.introducer;
      using pair = await strangers(scene);
      using carl = await scene.join("carl", "elsewhere", true, "127.0.0.3");
      const [{ token }] = await pair.meet();
      using crowd = new DisposableStack();
      let early: RelayClient | undefined;
      come = () => (early = crowd.use(new RelayClient(port, token, "x"))); // its address has had much just now
      for (let n = 0; n < 10; n++) crowd.use(new Client(port)).raw("what?\n");
      // And goes on to have much until then, however late this program is.
      const more = setInterval(() => crowd.use(new Client(port)).raw("what?\n"), 20);
      const isWaiting = () => early !== undefined && scene.introducer.stats.waiting > 0;
      await until("it waits to be read", isWaiting).finally(() => clearInterval(more));
      await until("it has been read", () => scene.introducer.stats.waiting === 0);
      const size = 32 * 1024 * 1024;
      early!.socket.write(Buffer.alloc(size));
      for (let n = 0; n < 200; n++) await carl.settled();
      expect(early!.socket.writableLength).toBeGreaterThan(0);
      expect(scene.introducer.stats.relays).toBe(0);
    },
  );

  test("both are offered a relay at once, with one token and opposite roles, and nobody fails", async () => {
    await using scene = relaying();
    using pair = await strangers(scene);
    const [a, b] = await pair.meet();
    expect([a.role, b.role, a.peer.id, b.peer.id]).toEqual(["controlling", "controlled", 2, 1]);
    expect(b.token).toBe(a.token);
    expect([a.why, b.why]).toEqual(["both-mappings-random", "both-mappings-random"]);
    expect(pair.anna.seen.find((message) => message.type === "registered")!.relay).toEqual({
      rate: 1024 * 1024,
      total: 16 * 1024 * 1024,
    });
    pair.bert.send({ type: "connect", peer: pair.anna.id }); // both asked: one relay
    await Promise.all([pair.anna.settled(), pair.bert.settled()]);
    for (const one of [pair.anna, pair.bert]) {
      expect(one.types().filter((type) => ["relay", "punch", "failed"].includes(type))).toEqual(["relay"]);
    }
    for (const [one, other] of [
      [pair.anna, pair.bert],
      [pair.bert, pair.anna],
    ] as const) {
      one.send({ ...linkedBy(a.token), route: "relay", peer: other.id });
    }
    await Promise.all([pair.anna.settled(), pair.bert.settled()]);
    expect(scene.introducer.participants.map(({ punching, links }) => [punching, links])).toEqual([
      [[], [{ id: 2, route: "relay" }]],
      [[], [{ id: 1, route: "relay" }]],
    ]);
    await pair.meet(); // and again when it is over
  });

  test("a side that could not take the relay ends it for both", async () => {
    await using scene = relaying();
    using pair = await strangers(scene);
    const [{ token }] = await pair.meet();
    pair.bert.send({ ...noAnswer, peer: pair.anna.id, token });
    expect(await pair.anna.next("failed")).toEqual({ ...noAnswer, peer: pair.bert.id, token });
    await pair.meet();
  });

  test("of a relay that nobody took both are told in the end", async () => {
    await using scene = relaying({ punchDeadlineMs: -3500, pingMs: 100 }); // over in half a second
    using pair = await strangers(scene);
    const [{ token }] = await pair.meet();
    const failed = { type: "failed", token, reason: "timed-out" };
    expect<unknown>(await pair.anna.next("failed")).toEqual({ ...failed, peer: pair.bert.id });
    expect<unknown>(await pair.bert.next("failed")).toEqual({ ...failed, peer: pair.anna.id });
  });

  test.each(["the asker wants none", "one takes none", "the introducer has none", "there are too many"])(
    "none is offered when %s",
    async (what) => {
      const limits = what === "there are too many" ? { relaysPerMember: 0 } : {};
      await using scene = relaying(limits, { relay: what !== "the introducer has none" });
      using anna = await silent(scene, "anna");
      using bert = new Client(scene.introducer.port, "127.0.0.2");
      bert.send({ ...registration("bert"), ...(what === "one takes none" && { direct: true }) });
      await bert.next("registered");
      for (const one of [anna, bert]) one.send({ type: "mapping", mapping: "random" });
      await Promise.all([anna.settled(), bert.settled()]);
      anna.send({ type: "connect", peer: 2, ...(what === "the asker wants none" && { relay: false }) });
      expect(await anna.next("failed")).toMatchObject({ reason: "both-mappings-random" });
      await bert.settled();
      expect([...anna.types(), ...bert.types()]).not.toContain("relay");
    },
  );
});

linuxTest.each([
  ["participant", { relaysPerMember: 1 }, ["127.0.0.3", "127.0.0.4"]],
  ["address", { relaysPerAddress: 1, ownHostShares: 1 }, ["127.0.0.1", "127.0.0.2"]],
])("a relay is of both: each %s may have one, whoever asked", async (what, limits, [ofCarl, ofDora]) => {
  await using scene = relaying(limits);
  using pair = await strangers(scene);
  using crowd = new DisposableStack();
  const [carl, dora, emil, frida] = await Promise.all(
    [ofCarl!, ofDora!, "127.0.0.5", "127.0.0.6"].map(async (address, n) => {
      const one = crowd.use(await silent(scene, `p${n}`, address));
      await maps(one, "random");
      return one;
    }),
  );
  await pair.meet();
  const mayNot = what === "participant" ? [pair.anna, pair.bert] : [carl!, dora!];
  for (const one of mayNot) {
    emil!.send({ type: "connect", peer: one.id });
    expect(await emil!.next("failed")).toMatchObject({ reason: "both-mappings-random", peer: one.id });
    one.send({ type: "connect", peer: frida!.id });
    expect(await one.next("failed")).toMatchObject({ reason: "both-mappings-random", peer: frida!.id });
  }
  emil!.send({ type: "connect", peer: frida!.id });
  await Promise.all([emil!.next("relay"), frida!.next("relay")]);
});

test("a relay is offered a second after `connect`, beside the direct round, once", async () => {
  await using scene = relaying();
  using pair = await pairOf(scene, "unknown", "unknown");
  const { anna, bert } = pair;
  const askedAt = performance.now();
  anna.send({ type: "connect", peer: bert.id });
  bert.send({ type: "connect", peer: anna.id }); // it has crossed the other
  const { token, why } = await anna.next("relay");
  expect(why).toBeUndefined();
  expect(performance.now() - askedAt).toBeGreaterThan(relayAfterMs - 20);
  await bert.next("relay", (relay) => relay.token === token);
  expect(anna.types().indexOf("relay")).toBeGreaterThan(anna.types().indexOf("punch"));
  anna.send({ ...linkedBy(token), route: "relay", peer: bert.id });
  bert.send({ ...linkedBy(token), route: "relay", peer: anna.id });
  await Promise.all([anna.settled(), bert.settled()]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[bert.id], [anna.id]]);
  expect(bert.types().filter((type) => type === "punch" || type === "relay")).toEqual(["punch", "relay"]);
});

test("an offer that crossed what both have said is withdrawn: nobody waits there for who is linked", async () => {
  await using scene = relaying();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const punch = await anna.next("punch");
  const { token } = await bert.next("relay");
  const { port } = scene.introducer;
  using waiting = new RelayClient(port, token);
  await once(waiting.socket, "connect");
  await until("it waits", () => scene.introducer.stats.connections === 3);
  anna.send({ ...linkedBy(punch.token), peer: bert.id });
  bert.send({ ...linkedBy(punch.token), peer: anna.id });
  using late = new RelayClient(port, token);
  for (const one of [waiting, late]) {
    await one.ended.promise;
    expect(one.answer).toMatchObject({ type: "refused", request: "relay" });
  }
});

test("no relay is offered when the first round has failed early, but once a second has passed", async () => {
  await using scene = relaying();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  const askedAt = performance.now();
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token });
  await Promise.all([anna.next("measure"), bert.next("measure")]);
  await Promise.race([anna.next("relay"), bert.next("relay")]);
  expect(performance.now() - askedAt).toBeGreaterThan(relayAfterMs - 20);
  await Promise.all([anna, bert].map((one) => until("both have it", () => one.types().includes("relay"))));
});

test("no relay before a direct round has begun, however long measuring takes", async () => {
  await using scene = relaying({ measureMs: 1500 });
  using pair = await pairOf(scene, "sequential", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  await bert.next("relay");
  expect(bert.types().filter((type) => type === "punch" || type === "relay")).toEqual(["punch", "relay"]);
});

test("a proof is handed on untouched, and a secret room is shown short", async () => {
  await using scene = relaying();
  const proof = "cd".repeat(32);
  const room = "ef".repeat(32);
  using anna = new Client(scene.introducer.port);
  anna.send({ ...registration("anna", room), proof });
  await anna.next("registered");
  using bert = await scene.join("bert", room);
  const [peers] = bert.seen.filter((message) => message.type === "peers");
  expect(peers!.peers[0]!.proof).toBe(proof);
  const table = await rendered(scene.introducer.participants, picocolors.createColors(false), 0, Infinity);
  expect(table).toContain("efefefef…");
  expect(table).not.toContain(room);
});

linuxDescribe("relayed bytes", () => {
  /** A relayed link between two raw clients. */
  async function link(scene: ReturnType<typeof introduce>, names?: string[]) {
    const pair = await strangers(scene, names);
    const [{ token }] = await pair.meet();
    const { port } = scene.introducer;
    const [a, b] = [new RelayClient(port, token), new RelayClient(port, token)];
    await Promise.all([a.begun.promise, b.begun.promise]);
    const dispose = () => {
      for (const one of [pair, a, b]) one[Symbol.dispose]();
    };
    return { ...pair, a, b, token, [Symbol.dispose]: dispose };
  }

  test("come as they went, also those that came behind `relay`, and half-close and close are passed on", async () => {
    await using scene = relaying({}, { relayRate: 1e9, relayTotal: 1e9 });
    using pair = await strangers(scene);
    const [{ token }] = await pair.meet();
    const random = crypto.getRandomValues(new Uint8Array(65_536));
    const big = Buffer.concat(Array<Uint8Array>(100).fill(random));
    using a = new RelayClient(scene.introducer.port, token, big);
    using b = new RelayClient(scene.introducer.port, token, "hello");
    await until("both have begun", () => a.answer !== undefined && b.answer !== undefined);
    expect([a.answer, b.answer]).toEqual([
      { type: "relaying", rate: 1e9 },
      { type: "relaying", rate: 1e9 },
    ]);
    await until("b has it all", () => b.receivedBytes === big.length);
    await until("a has it", () => a.text === "hello");
    expect(Bun.SHA256.hash(Buffer.concat(b.chunks), "hex")).toBe(Bun.SHA256.hash(big, "hex"));
    a.socket.end("last");
    await b.ended.promise;
    expect(b.text.endsWith("last")).toBe(true);
    b.socket.end(" words");
    await a.ended.promise;
    expect(a.text).toBe("hello words");
    expect(await scene.happened("relayed")).toEqual({
      event: "relayed",
      a: 1,
      b: 2,
      names: ["anna", "bert"],
      bytes: big.length + "hellolast words".length,
    });
  });

  test("the operator sees which links are relayed, and their bytes", async () => {
    await using scene = relaying();
    using relayed = await link(scene);
    relayed.a.socket.write("12345");
    await until("it has come", () => relayed.b.receivedBytes === 5);
    relayed.anna.send({ ...linkedBy(relayed.token), route: "relay", peer: relayed.bert.id });
    await relayed.anna.settled();
    expect(linksOf(scene)["anna"]).toEqual([{ id: relayed.bert.id, route: "relay", relayedBytes: 5 }]);
    expect(scene.introducer.stats).toMatchObject({ relays: 1, relayedBytes: 5 });
    // Both have the same certificate here, and the bytes count for both.
    expect(scene.introducer.stats.relayUses).toEqual([{ name: "bert", fingerprint, bytes: 10 }]);
    relayed.anna.send({ type: "mapping", mapping: "unknown" });
    relayed.anna.send({ type: "connect", peer: relayed.bert.id });
    const { token } = await relayed.anna.next("punch");
    relayed.anna.send({ ...linkedBy(token), peer: relayed.bert.id }); // it has moved
    await relayed.anna.settled();
    expect(linksOf(scene)["anna"]).toEqual([{ id: relayed.bert.id, route: "public" }]);
  });

  test("who was relayed most is remembered when it is over, and only so many are", () => {
    const uses = new RelayUses();
    const user = (name: string) => ({ name, fingerprint: name });
    uses.add([user("alice"), user("bob")], 5);
    uses.add([user("alice"), user("carol")], 0);
    for (let at = 0; at < 2_000; at++) uses.add([user(`guest-${at}`)], 1);
    const underWay = [{ users: [user("alice"), user("dora")], bytes: 3 }];
    const most = uses.read(underWay).slice(0, 4);
    expect(most.map(({ name, bytes }) => [name, bytes])).toEqual([
      ["alice", 8],
      ["bob", 5],
      ["dora", 3],
      [expect.stringMatching("guest-"), 1],
    ]);
    expect(uses.read(underWay)).toHaveLength(10);
    uses.add([user("bob")], 4);
    expect(uses.read([])[0]).toEqual({ name: "bob", fingerprint: "bob", bytes: 9 });
  });

  test("a side that dies: the other gets what it had sent, and then the end", async () => {
    await using scene = relaying({}, { relayRate: 400_000 });
    using relayed = await link(scene);
    relayed.a.socket.write(Buffer.alloc(200_000));
    relayed.a.socket.end();
    relayed.a.socket.destroySoon();
    await relayed.b.ended.promise;
    expect(relayed.b.receivedBytes).toBe(200_000);
    relayed.b.socket.end();
    await scene.happened("relayed");
  });

  const measureMs = 1000;
  /** After a pause so much comes at once (relayBurstMs), and a timer is late by some ms. */
  const mostOfRate = 1.15;

  /**
   * What all those get of endless senders in a second, as parts of the rate: again and again until that is as good as it has
   * to be, for a busy machine carries less now and then. It never is too much.
   */
  async function carry(
    senders: RelayClient[],
    receivers: RelayClient[],
    partsOf: (rates: number[]) => number[],
    isGood: (parts: number[]) => boolean,
  ): Promise<void> {
    for (const { socket } of senders) {
      const more = () => {
        while (socket.write(new Uint8Array(65_536)));
      };
      socket.on("drain", more);
      more();
    }
    await until("all get something", () => receivers.every(({ receivedBytes }) => receivedBytes > 0));
    const giveUpAt = performance.now() + patienceMs;
    for (let parts: number[] = []; !isGood(parts);) {
      expect([performance.now() < giveUpAt, parts]).toEqual([true, parts]);
      const before = receivers.map(({ receivedBytes }) => receivedBytes);
      const from = performance.now();
      await Bun.sleep(measureMs);
      const seconds = (performance.now() - from) / 1000;
      parts = partsOf(receivers.map(({ receivedBytes }, n) => (receivedBytes - before[n]!) / seconds));
      expect(Math.max(...parts)).toBeLessThan(mostOfRate);
    }
  }

  alone("go at the rate of one link, each way", async () => {
    const relayRate = 2_000_000;
    await using scene = relaying({}, { relayRate });
    using relayed = await link(scene);
    const { a, b } = relayed;
    const isGood = (parts: number[]) => parts.length > 0 && Math.min(...parts) > 0.9;
    await carry([a, b], [b, a], (rates) => rates.map((rate) => rate / relayRate), isGood);
  });

  alone("go at the rate of all links, which they share", async () => {
    const relayTotal = 3_000_000;
    await using scene = relaying({}, { relayRate: 2_000_000, relayTotal });
    using one = await link(scene);
    using two = await link(scene, ["carl", "dora"]);
    const partsOf = ([a = 0, b = 0]: number[]) => [(a + b) / relayTotal, a / relayTotal, b / relayTotal];
    const isGood = ([all = 0, ...each]: number[]) => all > 0.9 && Math.min(...each) > 0.35 * all;
    await carry([one.a, two.a], [one.b, two.b], partsOf, isGood);
  });

  test("wait for a side that does not read, and the introducer holds little of them", async () => {
    await using scene = relaying({}, { relayRate: 1e9, relayTotal: 1e9 });
    using stuck = await link(scene);
    using other = await link(scene, ["carl", "dora"]);
    stuck.b.socket.pause();
    const part = new Uint8Array(1024 * 1024);
    let accepted = 0;
    for (let n = 0; n < 100; n++) stuck.a.socket.write(part, () => (accepted += part.length));
    await other.anna.settled();
    other.a.socket.write("through");
    await until("the other link goes on", () => other.b.text === "through");
    expect(stuck.a.socket.writableLength).toBeGreaterThan(0);
    // Two sockets' buffers here and two there, in the kernel, and one read of the introducer's.
    expect(accepted).toBeLessThan(32 * part.length);
    stuck.b.socket.resume();
    await until("it all comes", () => stuck.b.receivedBytes === 100 * part.length);
  });

  test("strangers, and who comes twice, get a refusal, and the two go on", async () => {
    await using scene = relaying();
    using relayed = await link(scene);
    for (const token of ["0".repeat(32), relayed.token]) {
      using stranger = new RelayClient(scene.introducer.port, token);
      await stranger.ended.promise;
      expect(stranger.answer).toMatchObject({ type: "refused", request: "relay" });
    }
    using member = await scene.join("carl");
    member.send({ type: "relay", token: relayed.token });
    expect(await member.next("refused")).toMatchObject({ code: "already-registered" });
    relayed.a.socket.write("still there");
    await until("it has come", () => relayed.b.text === "still there");
  });

  test("who waits for nobody is told, and one that came too early may come again", async () => {
    await using scene = relaying({ relayOfferMs: 1_000 });
    using pair = await strangers(scene);
    const [{ token }] = await pair.meet();
    const { port } = scene.introducer;
    using early = new RelayClient(port, token);
    await once(early.socket, "connect");
    await pair.anna.settled(); // later to connect, and so read later, than `early`
    early.socket.end();
    await early.ended.promise;
    using again = new RelayClient(port, token);
    await again.begun.promise;
    expect(again.answer).toMatchObject({ type: "refused", code: "limit" });
    await again.ended.promise;
    using late = new RelayClient(port, token);
    await late.begun.promise;
    expect(late.answer).toMatchObject({ type: "refused" });
  });
});
