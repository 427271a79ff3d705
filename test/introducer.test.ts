import { expect, test } from "bun:test";
import { once } from "node:events";
import net from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import picocolors from "picocolors";
import { Introducer } from "../introducer.ts";
import { renderParticipants } from "../native/terminal/introducer-tables.ts";
import { startDelays } from "../native/introducer/introductions.ts";
import { filteringOf } from "../native/introducer/observe.ts";
import type { IntroducerEvent, IntroducerOptions } from "../native/introducer/events.ts";
import { defaultLimits, type Limits } from "../native/introducer/limits.ts";
import { Socket } from "../native/host/socket.ts";
import { at, Client, fingerprint, hash, linkedBy, type MessageOf, registration } from "./client-fixture.ts";
import { toil, until } from "./native-fixture.ts";
import { freePort } from "./sockets-fixture.ts";
import {
  encode,
  type Endpoint,
  LineDecoder,
  type Mapping,
  maxLineBytes,
  maxReportedLinks,
  parseToParticipant,
  type Prediction,
  protocolVersion,
  type RefusalCode,
  relayAfterMs,
  splitEndpoint,
  type ToIntroducer,
  type ToParticipant,
} from "../protocol.ts";
import { describeNeeding, linuxDescribe, linuxTest } from "./needing-fixture.ts";

const isLinux = process.platform === "linux";

/** An introducer on a free port, and all it told its operator. */
function introduce(limits: Partial<Limits> = {}, options: IntroducerOptions = { relay: false }) {
  const events: IntroducerEvent[] = [];
  const waiting = new Set<() => void>();
  const onEvent = (event: IntroducerEvent) => {
    events.push(event);
    for (const wake of waiting) wake();
  };
  const introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits, onEvent, ...options });
  const happened = <T extends IntroducerEvent["event"]>(name: T) => {
    const { promise, resolve } = Promise.withResolvers<Extract<IntroducerEvent, { event: T }>>();
    const wake = () => {
      const found = events.find(
        (event): event is Extract<IntroducerEvent, { event: T }> => event.event === name,
      );
      if (found) resolve(found);
    };
    waiting.add(wake);
    wake();
    return promise.finally(() => waiting.delete(wake));
  };
  const join = async (name: string, room?: string, answersPings = true, address?: string) => {
    const client = new Client(introducer.port, address);
    client.answersPings = answersPings;
    client.send(registration(name, room));
    const { id } = await client.next("registered");
    // Nobody is introduced before both have said how their NATs map.
    client.send({ type: "mapping", mapping: "unknown" });
    await client.next("peers", ({ more }) => !more);
    return Object.assign(client, { id });
  };
  const dispose = () => introducer.stop();
  return { introducer, events, happened, join, [Symbol.asyncDispose]: dispose };
}

/** The operator's table. */
async function rendered(...all: Parameters<typeof renderParticipants>): Promise<string> {
  return (await renderParticipants(...all)).join("");
}

/** Registers and never looks at what comes; the introducer's end closes it. */
async function joinAndIgnore(port: number, message: ToIntroducer): Promise<void> {
  const answered = Promise.withResolvers<void>();
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: { data: () => answered.resolve() },
  });
  socket.write(encode(message));
  await answered.promise;
}

// --- registering -----------------------------------------------------------------------------------------

test("register is answered by registered and the others; they learn of it by joined", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "lobby", false);
  using bert = new Client(scene.introducer.port);
  bert.answersPings = false; // so that no round trip is known yet
  bert.send({ ...registration("bert"), private: [at("10.0.0.2:5"), at("10.0.0.2:5"), at("8.8.8.8:53")] });
  const registered = await bert.next("registered");
  const peers = await bert.next("peers");
  const joined = await anna.next("joined");
  const own = { id: 2, name: "bert", private: ["10.0.0.2:5"], public: bert.endpoint };
  const { probePorts } = scene.introducer;
  expect<unknown>(registered).toEqual({
    type: "registered",
    ...own,
    room: "lobby",
    probePorts,
    alternates: [],
    probeToken: expect.stringMatching(/^[0-9a-f]{32}$/),
  });
  const rest = { fingerprint, mapping: "unknown", since: expect.any(Number) };
  const annaAsPeer = {
    id: 1,
    name: "anna",
    instance: hash(hash("anna")),
    private: ["192.168.1.5:40000"],
    public: anna.endpoint,
    ...rest,
  };
  expect<unknown>(peers).toEqual({ type: "peers", peers: [annaAsPeer], more: false });
  expect<unknown>(joined).toEqual({
    type: "joined",
    peer: { ...own, instance: hash(hash("bert")), ...rest },
  });
  expect(await scene.happened("ignored")).toMatchObject({ endpoints: ["8.8.8.8:53"] });
  bert.end();
  expect(await anna.next("left")).toEqual({ type: "left", id: 2 });
});

test("ids are never used again", async () => {
  await using scene = introduce();
  for (const id of [1, 2, 3]) {
    using client = await scene.join("anna");
    expect(client.id).toBe(id);
  }
});

test("rooms don't see each other", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "red");
  using bert = await scene.join("bert", "blue");
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("refused")).toMatchObject({
    code: "unknown-peer",
    request: "connect",
    peer: bert.id,
  });
  await bert.settled();
  expect([anna.types(), bert.types()]).toEqual([
    ["registered", "peers", "refused"],
    ["registered", "peers", "echo"],
  ]);
});

test("a full room's snapshot comes in lines of at most 64 KiB, and one more is refused", async () => {
  await using scene = introduce();
  const host = (n: number) => at(`[fd00:1111:2222:3333:4444:5555:6666:${1000 + n}]:40000`);
  const candidates = Array.from({ length: 10 }, (_, n) => host(n));
  for (let n = 0; n < 255; n++) {
    await joinAndIgnore(scene.introducer.port, {
      ...registration(`n${n}${"ö".repeat(50)}`),
      private: candidates,
    });
  }
  using last = await scene.join("last");
  using late = new Client(scene.introducer.port);
  late.send(registration("late"));
  expect(await late.next("refused")).toMatchObject({ code: "limit", request: "register" });
  const lines = last.seen.filter((message) => message.type === "peers");
  expect(lines.length).toBeGreaterThan(1);
  expect(lines.map(({ more }) => more)).toEqual(lines.map((line) => line !== lines.at(-1)));
  expect(Math.max(...lines.map((line) => Buffer.byteLength(encode(line))))).toBeLessThanOrEqual(maxLineBytes);
  expect(lines.flatMap(({ peers }) => peers.map(({ id }) => id))).toEqual(
    Array.from({ length: 255 }, (_, n) => n + 1),
  );
});

// --- introductions ---------------------------------------------------------------------------------------

test("connect sends both a punch with one token and opposite roles", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  expect([a.role, b.role, a.peer.id, b.peer.id]).toEqual(["controlling", "controlled", bert.id, anna.id]);
  expect(a.token).toMatch(/^[0-9a-f]{32}$/);
  expect(b.token).toBe(a.token);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[bert.id], [anna.id]]);
});

test("both ask at once: one punch, also when one side is linked before the other's connect is read", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...linkedBy(token), peer: bert.id });
  await scene.happened("linked");
  bert.send({ type: "connect", peer: anna.id });
  await Promise.all([anna.settled(), bert.settled()]);
  expect([...anna.types(), ...bert.types()].filter((type) => type === "punch")).toHaveLength(2);
});

test("a failure is told to the other side, and a retry works at once", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  const report = { type: "failed", token, reason: "timed-out" } as const;
  anna.send({ ...report, peer: bert.id });
  anna.send({ type: "connect", peer: bert.id });
  expect(await bert.next("failed")).toEqual({ ...report, peer: anna.id });
  const second = await bert.next("punch", (punch) => punch.token !== token);
  bert.send({ ...report, peer: anna.id }); // late: of the first punch, so it must not end the second
  bert.send({ ...report, peer: anna.id, token: second.token });
  expect(await anna.next("failed")).toMatchObject({ token: second.token });
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
});

test("a link is listed until it ends, and can be made anew at once", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const [{ token }] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  const report = linkedBy(token);
  anna.send({ ...report, peer: bert.id });
  bert.send({ ...report, peer: anna.id });
  await Promise.all([anna.settled(), bert.settled()]);
  const lists = () => scene.introducer.participants.map(({ linked, punching }) => ({ linked, punching }));
  expect(lists()).toEqual([
    { linked: [2], punching: [] },
    { linked: [1], punching: [] },
  ]);
  bert.send({ type: "unlinked", peer: anna.id, reason: "disconnected" });
  bert.send({ type: "connect", peer: anna.id });
  expect(await bert.next("punch")).toMatchObject({ role: "controlling" });
  expect(lists()[1]).toEqual({ linked: [], punching: [1] });
});

test("who leaves while punching is reported as peer-left, before left", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  bert[Symbol.dispose]();
  expect(await anna.next("failed")).toMatchObject({ peer: bert.id, token, reason: "peer-left" });
  await anna.next("left");
  expect(anna.types().filter((type) => type === "failed" || type === "left")).toEqual(["failed", "left"]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[]]);
});

test("a punch nobody reports on is forgotten", async () => {
  await using scene = introduce({ punchDeadlineMs: -2000, pingMs: 40 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const first = await anna.next("punch");
  const isPunching = () => scene.introducer.participants.some(({ punching }) => punching.length > 0);
  await until("the punch is forgotten", () => !isPunching());
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("punch")).not.toEqual(first);
});

test("the side nearer to the introducer waits", () => {
  expect([
    startDelays(20, 100),
    startDelays(100, 20),
    startDelays(undefined, 30),
    startDelays(0, 90_000),
  ]).toEqual([
    [40, 0],
    [0, 40],
    [15, 0],
    [2000, 0],
  ]);
});

test("three pings at once, then one a period", async () => {
  await using scene = introduce({ pingMs: 50 });
  using anna = await scene.join("anna");
  for (const id of [1, 2, 3, 4, 5]) expect((await anna.next("ping")).id).toBe(id);
});

// --- who misbehaves --------------------------------------------------------------------------------------

const register = encode(registration("mallory"));
const longName = encode(registration("x".repeat(65)));
const loopback = [at("127.0.0.1:1")];
const beforeRegistering: [string, string | Uint8Array, RefusalCode][] = [
  ["garbage", "\u0001\u0002 hello\n", "bad-line"],
  ["bytes that are not UTF-8", new Uint8Array([255, 254, 10]), "bad-line"],
  ["HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "bad-line"],
  ["a list", "[]\n", "bad-line"],
  ["null", "null\n", "bad-line"],
  ["an unknown type", '{"type":"obey"}\n', "unknown-type"],
  ["a type of Object.prototype", '{"type":"constructor"}\n', "unknown-type"],
  ["a message before register", encode({ type: "connect", peer: 1 }), "not-registered"],
  ["an unknown version", register.replace(`"version":${protocolVersion}`, '"version":99'), "bad-version"],
  ["another version with other fields", '{"type":"register","version":0,"nick":"x"}\n', "bad-version"],
  ["no fingerprint", encode({ ...registration("mallory"), fingerprint: "" }), "bad-field"],
  ["a name too long", longName, "bad-field"],
  ["a name with an escape sequence", encode(registration("\u001b[2Jx")), "bad-field"],
  ["a room with a control character", encode(registration("mallory", "a\u009bb")), "bad-field"],
  [
    "an endpoint that is none",
    encode({ ...registration("mallory"), private: [at("999.1.1.1:80")] }),
    "bad-field",
  ],
  [
    "a multicast endpoint",
    encode({ ...registration("mallory"), private: [at("224.0.0.1:80")] }),
    "bad-field",
  ],
  [
    "too many endpoints",
    encode({ ...registration("mallory"), private: Array(11).fill(loopback[0]) }),
    "bad-field",
  ],
  ["a line too long", "x".repeat(maxLineBytes + 1), "too-long"],
  ["1 MB without LF", "x".repeat(1_000_000), "too-long"],
];

for (const [what, bytes, code] of beforeRegistering) {
  test(`before registering, ${what}: one refusal, then closed`, async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    using mallory = new Client(scene.introducer.port);
    mallory.raw(bytes);
    mallory.raw(register); // what follows is not read any more
    await mallory.ended.promise;
    expect(mallory.seen).toMatchObject([{ type: "refused", code }]);
    expect(Buffer.byteLength(encode(mallory.seen[0]!))).toBeLessThan(512);
    await anna.settled();
    expect(anna.types()).toEqual(["registered", "peers", "echo"]);
  });
}

const afterRegistering: [string, string, Partial<MessageOf<"refused">>][] = [
  ["garbage", "}{\n", { code: "bad-line" }],
  ["an empty line", "\n", { code: "bad-line" }],
  ["an unknown type", '{"type":"obey","peer":7}\n', { code: "unknown-type", request: "obey", peer: 7 }],
  ["a second register", register, { code: "already-registered", request: "register" }],
  [
    "an introduction to oneself",
    '{"type":"connect","peer":2}\n',
    { code: "self", request: "connect", peer: 2 },
  ],
  ["an introduction to nobody", '{"type":"connect","peer":9}\n', { code: "unknown-peer", peer: 9 }],
  [
    "a peer that is no number",
    '{"type":"connect","peer":"anna"}\n',
    { code: "bad-field", request: "connect" },
  ],
  [
    "a link with nobody",
    encode({ ...linkedBy("0".repeat(32)), peer: 9 }),
    { code: "unknown-peer", request: "linked", peer: 9 },
  ],
  [
    "a link between endpoints that are none",
    `{"type":"linked","peer":1,"token":"${"0".repeat(32)}","route":"public","local":"here","remote":"there"}\n`,
    { code: "bad-field", request: "linked" },
  ],
];

for (const [what, line, refusal] of afterRegistering) {
  test(`after registering, ${what}: one refusal, and it lives on`, async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    using mallory = await scene.join("mallory");
    mallory.raw(line);
    await mallory.settled();
    expect(mallory.seen.filter(({ type }) => type === "refused")).toMatchObject([
      { type: "refused", ...refusal },
    ]);
    await anna.settled();
    expect(anna.types()).toEqual(["registered", "peers", "joined", "echo"]);
  });
}

for (const [what, bytes] of [
  ["a line too long", "x".repeat(maxLineBytes + 1)],
  ["the 20th bad line", "}{\n".repeat(30)],
] as const) {
  test(`after registering, ${what} closes the connection, and the room learns of it`, async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    using mallory = await scene.join("mallory");
    mallory.raw(bytes);
    await mallory.ended.promise;
    expect(mallory.seen.at(-1)?.type).toBe("refused");
    expect(await anna.next("left")).toEqual({ type: "left", id: mallory.id });
    expect(scene.events.filter(({ event }) => event === "left")).toHaveLength(1);
  });
}

test("more introductions than a person asks for are refused, but the connection lives on", async () => {
  await using scene = introduce({ introductionsPerMinute: 3 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  for (let n = 0; n < 3; n++) anna.send({ type: "connect", peer: bert.id });
  await anna.settled();
  expect(anna.types()).not.toContain("refused");
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect", peer: bert.id });
  await anna.settled();
});

test("a message that comes one byte at a time is understood", async () => {
  await using scene = introduce();
  using client = new Client(scene.introducer.port);
  for (const byte of Buffer.from(encode(registration("zoë")))) {
    client.raw(Uint8Array.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(await client.next("registered")).toMatchObject({ name: "zoë" });
});

test("who says nothing, or half a line, is closed at the deadline", async () => {
  await using scene = introduce({ registerDeadlineMs: 60 });
  using silent = new Client(scene.introducer.port);
  using slow = new Client(scene.introducer.port);
  slow.raw('{"type":');
  await Promise.all([silent.ended.promise, slow.ended.promise]);
  expect([silent.seen, slow.seen]).toMatchObject([
    [{ code: "not-registered" }],
    [{ code: "not-registered" }],
  ]);
});

test("who answers no ping is closed, and left", async () => {
  await using scene = introduce({ silenceMs: 100 });
  using dead = await scene.join("dead");
  dead.answersPings = false;
  await dead.next("bye");
  expect(await scene.happened("left")).toMatchObject({
    id: dead.id,
    reason: "nothing was heard from it for 0.1 s",
  });
});

test("who doesn't read is dropped, and what waits for it is bounded", async () => {
  await using scene = introduce({ unsentBytes: 256 * 1024 });
  using slow = await scene.join("slow");
  await slow.settled();
  slow.pause();
  const before = process.memoryUsage().rss;
  const text = "x".repeat(8000);
  for (let sent = 0; scene.introducer.participants.length === 1 && sent < 100_000; sent++) {
    await scene.introducer.tell(text, slow.id);
  }
  expect(await scene.happened("left")).toMatchObject({ id: slow.id, reason: "it reads too slowly" });
  expect(process.memoryUsage().rss - before).toBeLessThan(100 * 1024 * 1024);
});

test("those of one address that don't read are dropped before others are, and what waits for them is bounded", async () => {
  const limits = { unsentBytes: 1e9, unsentBytesPerAddress: 512 * 1024, ownHostShares: 1 };
  await using scene = introduce(limits);
  using other = await scene.join("other");
  const slow = await Promise.all(
    Array.from({ length: 8 }, (_, n) => scene.join(`slow${n}`, undefined, false, "127.0.0.2")),
  );
  for (const one of slow) one.pause();
  const reasons = () => scene.events.flatMap((event) => (event.event === "left" ? [event.reason] : []));
  const text = "x".repeat(8000);
  // The kernel takes some MiB for each.
  for (let sent = 0; reasons().length < slow.length - 1 && sent < 2_000; sent++) {
    for (const { id } of slow) await scene.introducer.tell(text, id);
    if (sent % 50 === 0) await other.settled();
  }
  expect(reasons().length).toBeGreaterThanOrEqual(slow.length - 1);
  expect(new Set(reasons())).toEqual(new Set(["it reads too slowly"]));
  await other.settled();
  for (const one of slow) one[Symbol.dispose]();
});

test("one address may hold only so many connections", async () => {
  await using scene = introduce({ sessionsPerAddress: 2, ownHostShares: 1 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using third = new Client(scene.introducer.port);
  await third.ended.promise;
  expect(third.seen).toMatchObject([{ type: "refused", code: "limit" }]);
  bert[Symbol.dispose]();
  await anna.next("left");
  third[Symbol.dispose]();
});

test("a refusal says how much is enough, and what an IPv6 site may have", async () => {
  await using scene = introduce({ sessionsPerAddress: 2, ownHostShares: 1 });
  using _anna = await scene.join("anna");
  using _bert = await scene.join("bert");
  using third = new Client(scene.introducer.port);
  const { message } = await third.next("refused");
  expect(message).toBe("2 connections an address (4 times that an IPv6 /48) are enough: close others first");
});

linuxTest("who takes all connections it gets leaves some for others", async () => {
  await using scene = introduce({ sessions: 40, ownHostShares: 1 });
  const { port } = scene.introducer;
  const crowd = Array.from({ length: 30 }, () => new Client(port, "127.0.0.2"));
  const { message } = await Promise.race(crowd.map((one) => one.next("refused")));
  expect(message).toEndWith("while the introducer is this full: close others first");
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  await anna.settled();
  for (const one of crowd) one[Symbol.dispose]();
});

linuxTest("who opens connection after connection does not keep others waiting", async () => {
  await using scene = introduce({ ownHostShares: 1 });
  const { port } = scene.introducer;
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  const flood = Array.from({ length: 600 }, () => new Client(port, "127.0.0.2"));
  await anna.settled();
  const ends = flood.map(({ ended }) => ended.promise);
  await Promise.race(ends);
  using bert = await scene.join("bert", "lobby", true, "127.0.0.4");
  await bert.settled();
  for (const one of flood) one[Symbol.dispose]();
});

linuxTest("who connects again and again is turned away; others are not", async () => {
  await using scene = introduce({ ownHostShares: 1, sessions: 1e6, sessionsPerAddress: 1e6 });
  const { introducer } = scene;
  using crowd = new DisposableStack();
  for (let n = 0; n < 2000 && introducer.stats.turnedAway < 50; n++) {
    crowd.use(new Client(introducer.port, "127.0.0.3"));
    await Bun.sleep(0);
  }
  expect(introducer.stats.turnedAway).toBeGreaterThanOrEqual(50);
  using anna = await scene.join("anna", "lobby", true, "127.0.0.4");
  using bert = await scene.join("bert", "lobby", true, "127.0.0.5");
  anna.send({ type: "connect", peer: bert.id });
  await Promise.all([anna.next("punch"), bert.next("punch")]);
});

linuxTest("who is refused has been heard to the end, however much is held of its address", async () => {
  const errors: IntroducerEvent[] = [];
  const onEvent = (event: IntroducerEvent) => {
    if (event.event === "refused") toil(3);
    if (event.event === "error") errors.push(event);
  };
  const limits = { ownHostShares: 1, processorMs: 4 };
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits, onEvent });
  const { port } = introducer;
  const crowd = Array.from({ length: 12 }, () =>
    net.connect({ port, host: "127.0.0.1", localAddress: "127.0.0.3", allowHalfOpen: true }),
  );
  await until("all are in", () => introducer.stats.connections === crowd.length);
  for (const one of crowd) one.resume().write("what?\nand more\n");
  await until("all are gone", () => introducer.stats.connections === 0, 5000);
  expect([introducer.stats.refusals, introducer.stats.waiting]).toEqual([
    [{ code: "bad-line", count: 12 }],
    0,
  ]);
  expect(errors).toEqual([]);
  for (const one of crowd) one.destroy();
});

linuxTest("of those who come together, who has said much of late has its turn last", async () => {
  const refused: string[] = [];
  const onEvent = (event: IntroducerEvent) => {
    if (event.event !== "refused") return;
    refused.push(event.address.replace(/:\d+$/, ""));
    toil(3); // more than each may have, less than a share of what is left
  };
  const [slow, busy, quiet] = ["127.0.0.3", "127.0.0.4", "127.0.0.5"];
  const limits = { ownHostShares: 1, processorMs: 4 };
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits, onEvent });
  using crowd = new DisposableStack();
  const [first, ...others] = [busy, slow, busy, quiet].map((address) =>
    crowd.use(new Client(introducer.port, address)),
  );
  await until("all are in", () => introducer.stats.connections === 4);
  first!.raw("what?\n");
  await until("it has been heard", () => refused.length === 1);
  for (const other of others) other.raw("what?\n"); // all three wait to be read when the first of them is
  await until("all have been heard", () => refused.length === 4);
  expect(refused).toEqual([busy, slow, quiet, busy]);
});

linuxTest("lines that never end, from one address, are bounded, and others' are read", async () => {
  await using scene = introduce({ heldBytesPerAddress: 100_000, ownHostShares: 1 });
  const halfLine = new Uint8Array(30_000).fill(120);
  const crowd = Array.from({ length: 6 }, () => new Client(scene.introducer.port, "127.0.0.2"));
  for (const one of crowd) one.raw(halfLine);
  const ended = await Promise.race(crowd.map((one) => one.ended.promise.then(() => one)));
  expect(ended.seen).toMatchObject([{ type: "refused", code: "limit" }]);
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  const text = "x".repeat(8000);
  anna.raw(encode({ type: "echo", text }).slice(0, 7000));
  anna.raw(encode({ type: "echo", text }).slice(7000));
  expect(await anna.next("echo")).toEqual({ type: "echo", text });
  for (const one of crowd) one[Symbol.dispose]();
});

test("one address has its share of a room, and leaves room for others", async () => {
  await using scene = introduce({ roomSize: 3, roomShare: 2, ownHostShares: 1 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using third = new Client(scene.introducer.port);
  third.send(registration("third"));
  expect(await third.next("refused")).toMatchObject({ code: "limit", request: "register" });
  using elsewhere = await scene.join("third", "elsewhere");
  if (isLinux) {
    using other = new Client(scene.introducer.port, "127.0.0.2");
    other.send(registration("other"));
    await other.next("registered");
  }
  using anew = await scene.join("anna"); // who comes back takes its own place
  await Promise.all([bert.settled(), elsewhere.settled(), anew.settled(), anna.ended.promise]);
});

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

test("stop tells everyone, once", async () => {
  const scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  await Promise.all([scene.introducer.stop("so long"), scene.introducer.stop("again")]);
  await Promise.all([anna.ended.promise, bert.ended.promise]);
  expect([anna.types().slice(-1), bert.types()]).toEqual([["bye"], ["registered", "peers", "bye"]]);
  expect(anna.seen.at(-1)).toEqual({ type: "bye", reason: "so long" });
});

/** Whether a connection is accepted there. */
async function isListening(port: number): Promise<boolean> {
  try {
    (await Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {} } })).terminate();
    return true;
  } catch {
    return false;
  }
}

test("drain sends the idle away at once, each with its own pause, and ends when nothing is under way", async () => {
  await using scene = introduce();
  const all = await Promise.all(Array.from({ length: 20 }, (_, n) => scene.join(`n${n}`)));
  const drained = scene.introducer.drain("so long");
  const byes = await Promise.all(all.map((client) => client.next("bye")));
  expect(byes.every(({ reason }) => reason === "so long")).toBe(true);
  const pauses = byes.map(({ retryInMs }) => retryInMs!);
  expect(Math.min(...pauses)).toBeGreaterThanOrEqual(500);
  expect(Math.max(...pauses)).toBeLessThanOrEqual(3000);
  expect(new Set(pauses).size).toBeGreaterThan(10);
  expect(await isListening(scene.introducer.port)).toBe(false);
  expect(all.flatMap((client) => client.types()).filter((type) => type === "left")).toEqual([]);
  await drained;
  expect(scene.events.filter(({ event }) => event === "draining")).toMatchObject([
    { participants: 20, punching: 0, relays: 0 },
  ]);
});

test("drain lets an introduction end, registers nobody meanwhile, and refuses another introduction", async () => {
  await using scene = introduce({ pingMs: 40 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using idle = await scene.join("idle");
  anna.send({ type: "connect", peer: bert.id });
  const [{ token }] = await Promise.all([anna.next("punch"), bert.next("punch")]);
  const drained = scene.introducer.drain();
  await idle.next("bye");
  using late = new Client(scene.introducer.port);
  late.send(registration("late"));
  expect((await late.next("bye")).retryInMs).toBeNumber();
  anna.send({ type: "connect", peer: idle.id });
  expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect" });
  for (const [one, other] of [[anna, bert] as const, [bert, anna] as const])
    one.send({ ...linkedBy(token), peer: other.id });
  await Promise.all([anna.next("bye"), bert.next("bye"), drained]);
  expect(scene.events.filter(({ event }) => event === "linked")).toHaveLength(2);
  expect(await isListening(scene.introducer.port)).toBe(false);
});

test("stop while it drains ends it at once", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  await bert.next("punch");
  const drained = scene.introducer.drain();
  await scene.introducer.stop("at once");
  await drained;
  expect(bert.seen.at(-1)).toEqual({ type: "bye", reason: "at once" });
});

test("tell and broadcast arrive as notices", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert", "elsewhere");
  expect(await scene.introducer.tell("psst", anna.id)).toEqual({ told: 1 });
  expect(await scene.introducer.tell("psst", 99)).toEqual({ told: 0 });
  expect(await scene.introducer.tell("all")).toEqual({ told: 2 });
  expect([await anna.next("notice"), await anna.next("notice"), await bert.next("notice")]).toMatchObject([
    { text: "psst" },
    { text: "all" },
    { text: "all" },
  ]);
});

// --- rounds ----------------------------------------------------------------------------------------------

type Joined = Client & { id: number };

/** Says how its NAT maps, and waits until the introducer has read it. */
async function maps(client: Joined, mapping: Mapping): Promise<void> {
  client.send({ type: "mapping", mapping });
  await client.settled();
}

/** Two in one room, with these mappings. */
async function pairOf(scene: ReturnType<typeof introduce>, ofAnna: Mapping, ofBert: Mapping) {
  const [anna, bert] = [await scene.join("anna"), await scene.join("bert")];
  await maps(anna, ofAnna);
  await maps(bert, ofBert);
  const dispose = () => {
    anna[Symbol.dispose]();
    bert[Symbol.dispose]();
  };
  return { anna, bert, [Symbol.dispose]: dispose };
}

const noAnswer = { type: "failed", reason: "no-candidate-answered" } as const;
const measuredAt = (endpoint: string, step: number): Prediction => ({ endpoint: at(endpoint), step });

test("how a participant's NAT maps is told to the room", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  await maps(bert, "sequential");
  expect(
    await anna.next("updated", ({ id, mapping }) => id === bert.id && mapping !== undefined),
  ).toMatchObject({ mapping: "sequential" });
  using carl = await scene.join("carl");
  const [peers] = carl.seen.filter((message) => message.type === "peers");
  expect(peers?.peers.map(({ mapping }) => mapping)).toEqual(["unknown", "sequential"]);
  expect(scene.events).toContainEqual({ event: "mapping", id: bert.id, mapping: "sequential" });
});

test("a mapped port is told to the room, and that it is closed again; one of another address is refused", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna", "lobby", false);
  using bert = await scene.join("bert", "lobby", false);
  const { id } = bert;
  const mapped = at("127.0.0.1:41000");
  bert.send({ type: "mapped", endpoint: mapped });
  expect(await anna.next("updated")).toEqual({ type: "updated", id, mapped });
  using carl = await scene.join("carl");
  const [peers] = carl.seen.filter((message) => message.type === "peers");
  expect(peers?.peers.map((peer) => peer.mapped)).toEqual([undefined, mapped]);

  bert.send({ type: "mapped", endpoint: at("127.0.0.2:41000") });
  expect(await bert.next("refused")).toMatchObject({ code: "bad-field", request: "mapped" });
  bert.send({ type: "mapped", endpoint: mapped }); // nothing new
  bert.send({ type: "mapped" });
  expect(await anna.next("updated")).toEqual({ type: "updated", id, mapped: null });
  expect(scene.introducer.participants.map((one) => one.mapped)).toEqual([undefined, undefined, undefined]);
  expect(scene.events.filter(({ event }) => event === "mapped")).toEqual([
    { event: "mapped", id, endpoint: mapped },
    { event: "mapped", id },
  ]);
});

test("random with random, one of them with a mapped port: a direct round", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "random");
  const { anna, bert } = pair;
  const mapped = at("127.0.0.1:41000");
  bert.send({ type: "mapped", endpoint: mapped });
  await bert.settled();
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("punch")).toMatchObject({ way: "direct", last: true, peer: { mapped } });
});

test.each(["anna", "bert"] as const)(
  "a failed round is followed by the next, whoever of the two reports: here %s, who asked or was asked",
  async (reporter) => {
    await using scene = introduce();
    using pair = await pairOf(scene, "random", "endpoint-independent");
    const { anna, bert } = pair;
    anna.send({ type: "connect", peer: bert.id });
    const tokens = new Set<string>();
    for (const round of [1, 2, 3]) {
      const [a, b] = await Promise.all([anna.next("punch"), bert.next("punch")]);
      const schedule = { way: "birthday", round, last: round === 3, token: a.token };
      expect([a, b]).toMatchObject([
        { role: "controlling", ...schedule, deadlineMs: b.deadlineMs },
        { role: "controlled", ...schedule },
      ]);
      expect([a.own, a.theirs, b.own, b.theirs]).toEqual([undefined, undefined, undefined, undefined]);
      tokens.add(a.token);
      const report = { ...noAnswer, token: a.token };
      if (reporter === "anna") anna.send({ ...report, peer: bert.id });
      else bert.send({ ...report, peer: anna.id });
    }
    expect(tokens.size).toBe(3);
    const [other, from] = reporter === "anna" ? [bert, anna] : [anna, bert];
    expect(await other.next("failed")).toEqual({
      ...noAnswer,
      peer: from.id,
      token: [...tokens].at(-1)!,
    });
    await from.settled();
    expect([anna, bert].map((one) => one.types().filter((type) => type === "failed").length)).toEqual(
      reporter === "anna" ? [0, 1] : [1, 0],
    );
    expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
  },
);

test("only the first report on a round counts: the other's comes too late, and so does one of no punch", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token });
  const second = await bert.next("punch", ({ round }) => round === 2);
  bert.send({ ...noAnswer, peer: anna.id, token });
  bert.send({ ...noAnswer, peer: anna.id, token: "f".repeat(32) });
  bert.send({ type: "measured", token });
  await bert.settled();
  await anna.settled();
  const rounds = (client: Client) =>
    client.seen.flatMap((message) => (message.type === "punch" ? [message.round] : []));
  expect([rounds(anna), rounds(bert)]).toEqual([
    [1, 2],
    [1, 2],
  ]);
  expect(second.token).not.toBe(token);
});

test("nobody throws anybody off: what is reported while measuring, or twice, or by others counts for nothing", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  using carl = await scene.join("carl");
  anna.send({ type: "connect", peer: bert.id });
  const first = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token: first.token });
  anna.send({ ...noAnswer, peer: bert.id, token: first.token });
  const { token } = await bert.next("measure");
  for (const _ of Array(9)) bert.send({ ...noAnswer, peer: anna.id, token });
  carl.send({ ...noAnswer, peer: anna.id, token });
  await Promise.all([bert.settled(), carl.settled()]);
  for (const one of [anna, bert]) one.send({ type: "measured", token });
  const second = await bert.next("punch", ({ round }) => round === 2);
  expect(second).toMatchObject({ way: "fresh", token, last: false });
  for (const one of [anna, bert]) {
    one.send({ ...noAnswer, peer: one === anna ? bert.id : anna.id, token });
    await one.settled();
  }
  const third = await anna.next("measure", (measure) => measure.token !== token);
  for (const one of [anna, bert]) one.send({ type: "measured", token: third.token });
  const inThird = { way: "predicted", last: false };
  expect(await anna.next("punch", ({ round }) => round === 3)).toMatchObject(inThird);
  bert.send({ ...noAnswer, peer: anna.id, token: third.token });
  const fourth = await anna.next("measure", (measure) => measure.way === "fresh" && measure.token !== token);
  for (const one of [anna, bert]) one.send({ type: "measured", token: fourth.token });
  expect(await anna.next("punch", ({ round }) => round === 4)).toMatchObject({ way: "fresh", last: true });
  anna.send({ ...noAnswer, peer: bert.id, token: fourth.token });
  bert.send({ ...noAnswer, peer: anna.id, token: fourth.token });
  expect(await bert.next("failed")).toEqual({ ...noAnswer, peer: anna.id, token: fourth.token });
  // Every line that came has passed parseToParticipant: see Client.
  await Promise.all([anna.settled(), bert.settled()]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], [], []]);
});

test("a failure that another round can't mend ends the first", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token, last } = await anna.next("punch");
  expect(last).toBe(false);
  anna.send({ ...noAnswer, reason: "refused-by-peer", peer: bert.id, token });
  expect(await bert.next("failed")).toMatchObject({ reason: "refused-by-peer", token });
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch")).toHaveLength(1);
});

test.each([
  ["too little", 300, [true]],
  ["enough", 900, [false, true]],
])("a round is the last when %s is left for another", async (_what, spareMs, lasts) => {
  await using roomy = introduce({ punchDeadlineMs: 60_000 });
  using others = await pairOf(roomy, "random", "endpoint-independent");
  others.anna.send({ type: "connect", peer: others.bert.id });
  const { deadlineMs: roundMs } = await others.anna.next("punch");
  const punchDeadlineMs = roundMs * lasts.length + spareMs;
  await using scene = introduce({ punchDeadlineMs });
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token, last, deadlineMs } = await anna.next("punch");
  expect(last).toBe(lasts[0]!);
  expect(deadlineMs).toBeLessThanOrEqual(punchDeadlineMs);
  anna.send({ ...noAnswer, peer: bert.id, token });
  const next = last ? "failed" : "punch";
  expect(await bert.next(next, (message) => !("round" in message) || message.round === 2)).toBeDefined();
});

linuxTest.each([
  ["random", "random"],
  ["sequential", "random"],
] as const)("%s and %s mappings: who asks hears at once, the other nothing", async (ofAnna, ofBert) => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = Object.assign(new Client(scene.introducer.port, "127.0.0.2"), { id: 2 });
  bert.send(registration("bert"));
  expect(await bert.next("registered")).toMatchObject({ id: 2, public: bert.endpoint });
  await maps(anna, ofAnna);
  await maps(bert, ofBert);
  bert.send({ type: "connect", peer: anna.id });
  const { token, ...failed } = await bert.next("failed");
  expect(failed).toMatchObject({ peer: anna.id, reason: "both-mappings-random" });
  expect(token).toMatch(/^[0-9a-f]{32}$/);
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch" || type === "failed")).toEqual([]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[], []]);
});

test("random mappings at one address may be behind one NAT: one direct round", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "random");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  expect(await anna.next("punch")).toMatchObject({ way: "direct", last: true });
});

// --- budgets ---------------------------------------------------------------------------------------------

/** Asks, and fails for good at once. */
async function failOnce(asker: Joined, target: Joined): Promise<void> {
  asker.send({ type: "connect", peer: target.id });
  const { token } = await asker.next("punch", ({ role }) => role === "controlling");
  asker.send({ ...noAnswer, reason: "refused-by-peer", peer: target.id, token });
  await target.next("failed", (failed) => failed.token === token);
}

/** Asks, and both link and unlink. */
async function linkOnce(asker: Joined, target: Joined): Promise<void> {
  asker.send({ type: "connect", peer: target.id });
  const [{ token }] = await Promise.all([asker.next("punch"), target.next("punch")]);
  for (const [one, other] of [
    [asker, target],
    [target, asker],
  ] as const) {
    one.send({ ...linkedBy(token), peer: other.id });
    one.send({ type: "unlinked", peer: other.id, reason: "disconnected" });
    await one.settled();
  }
}

const waits = {
  type: "refused",
  code: "limit",
  request: "connect",
  message: expect.stringMatching(/wait \d+ s$/),
};

test("one peer is not introduced over and over to who does not link: the asker is told how long to wait", async () => {
  await using scene = introduce({ introductionsPerPair: 2 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using carl = await scene.join("carl");
  for (let n = 0; n < 2; n++) await failOnce(anna, bert);
  anna.send({ type: "connect", peer: bert.id });
  expect<unknown>(await anna.next("refused")).toMatchObject({ ...waits, peer: bert.id });
  await failOnce(anna, carl);
  await failOnce(bert, anna); // who was asked may ask
  await bert.settled();
  expect(bert.types().filter((type) => type === "punch")).toHaveLength(3);
});

test("many strangers together can't have one participant punch all the time", async () => {
  await using scene = introduce({ introductionsPerTarget: 2 });
  using victim = await scene.join("victim");
  for (const name of ["anna", "bert"]) {
    using stranger = await scene.join(name);
    await failOnce(stranger, victim);
  }
  using carl = await scene.join("carl");
  carl.send({ type: "connect", peer: victim.id });
  expect<unknown>(await carl.next("refused")).toMatchObject({ ...waits, peer: victim.id });
  await failOnce(victim, carl);
});

linuxTest("nor can they keep others from meeting him", async () => {
  await using scene = introduce({ introductionsPerTarget: 2, introductionsPerPair: 100 });
  using victim = await scene.join("victim");
  using mallory = await scene.join("mallory", "lobby", true, "127.0.0.2");
  for (let n = 0; n < 2; n++) await failOnce(mallory, victim);
  mallory.send({ type: "connect", peer: victim.id });
  expect<unknown>(await mallory.next("refused")).toMatchObject({ ...waits, peer: victim.id });
  using anna = await scene.join("anna", "lobby", true, "127.0.0.3");
  await failOnce(anna, victim);
  anna.send({ type: "connect", peer: victim.id }); // its first was free, this one waits as all others do
  expect<unknown>(await anna.next("refused")).toMatchObject({ ...waits, peer: victim.id });
});

test("introductions that link cost nothing", async () => {
  await using scene = introduce({ introductionsPerPair: 1, introductionsPerTarget: 1 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  for (let n = 0; n < 3; n++) await linkOnce(anna, bert);
  await failOnce(anna, bert);
  anna.send({ type: "connect", peer: bert.id });
  expect<unknown>(await anna.next("refused")).toMatchObject(waits);
});

test("what has been going on is counted: introductions by outcome and way, refusals by code, joins", async () => {
  await using scene = introduce({ introductionsPerPair: 2 });
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  using carl = await scene.join("carl", "elsewhere");
  await linkOnce(anna, bert);
  await failOnce(anna, bert);
  anna.send({ type: "connect", peer: carl.id });
  await anna.next("refused");
  bert.send({ type: "connect", peer: anna.id });
  await anna.next("punch", ({ role }) => role === "controlled");
  bert.end();
  await anna.next("left");
  const { stats } = scene.introducer;
  expect(stats).toMatchObject({ participants: 2, rooms: 2, joins: 3, relays: 0 });
  expect(stats.introductions).toEqual([
    { outcome: "linked", way: "direct", count: 1 },
    { outcome: "refused-by-peer", way: "direct", count: 1 },
    { outcome: "peer-left", way: "direct", count: 1 },
  ]);
  expect(stats.linkMs.counts.at(-1)).toBe(1);
  expect(stats.refusals).toEqual([{ code: "unknown-peer", count: 1 }]);
});

test("a stranger that claims random ports and fails at once gets no second round while the first runs", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna: stranger, bert: victim } = pair;
  stranger.send({ type: "connect", peer: victim.id });
  const first = await victim.next("punch");
  stranger.send({ ...noAnswer, peer: victim.id, token: first.token });
  stranger.send({ type: "connect", peer: victim.id }); // nor by asking again
  await stranger.settled();
  await victim.settled();
  expect(victim.types().filter((type) => type === "punch")).toHaveLength(1);
  victim.send({ ...noAnswer, peer: stranger.id, token: first.token });
  const second = await victim.next("punch");
  expect(second.round).toBe(2);
  // Who was asked says nothing: the next round comes when this one must be over.
  stranger.send({ ...noAnswer, peer: victim.id, token: second.token });
  expect((await victim.next("punch")).round).toBe(3);
});

test("a birthday that failed is not tried again for a minute, by whichever words; the other side may", async () => {
  await using scene = introduce();
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna: stranger, bert: victim } = pair;
  stranger.send({ type: "connect", peer: victim.id });
  const { token } = await stranger.next("punch");
  stranger.send({ ...linkedBy(token), peer: victim.id }); // not true: the victim has not linked
  stranger.send({ type: "connect", peer: victim.id });
  expect<unknown>(await stranger.next("refused")).toMatchObject({ ...waits, peer: victim.id });
  await maps(stranger, "endpoint-independent");
  await failOnce(stranger, victim);
  await maps(stranger, "random");
  stranger.send({ type: "connect", peer: victim.id });
  expect<unknown>(await stranger.next("refused")).toMatchObject(waits);
  await victim.settled();
  expect(
    victim.seen.filter((message) => message.type === "punch" && message.way === "birthday"),
  ).toHaveLength(1);
  victim.send({ type: "connect", peer: stranger.id });
  expect(await victim.next("punch", ({ role }) => role === "controlling")).toMatchObject({ way: "birthday" });
});

test("strangers with random ports have one participant open so many sockets a minute, all together", async () => {
  await using scene = introduce({ failedBirthdaysPerTarget: 2 });
  using victim = await scene.join("victim");
  await maps(victim, "endpoint-independent");
  const strangers: Joined[] = [];
  for (const name of ["anna", "bert", "carl"]) {
    const stranger = await scene.join(name);
    strangers.push(stranger);
    await maps(stranger, "random");
    stranger.send({ type: "connect", peer: victim.id });
    await stranger.settled();
  }
  expect(
    strangers.map((one) => one.types().filter((type) => type === "punch" || type === "refused")),
  ).toEqual([["punch"], ["punch"], ["refused"]]);
  for (const stranger of strangers) stranger[Symbol.dispose]();
});

test("birthdays that link may be had again at once, but not without end", async () => {
  await using scene = introduce({
    birthdaysPerPair: 3,
    introductionsPerPair: 1,
    failedBirthdaysPerTarget: 1,
  });
  using pair = await pairOf(scene, "random", "endpoint-independent");
  const { anna, bert } = pair;
  for (let n = 0; n < 3; n++) await linkOnce(anna, bert);
  anna.send({ type: "connect", peer: bert.id });
  expect<unknown>(await anna.next("refused")).toMatchObject(waits);
});

// --- both at once ----------------------------------------------------------------------------------------

/** What two hand-made clients say, one after the other, when both want the same link: A asked first. */
const orders: [string, (pair: { a: Joined; b: Joined }, token: () => string) => (() => void)[]][] = [
  ["B's connect before B's punch is read", ({ a, b }) => [() => b.send({ type: "connect", peer: a.id })]],
  [
    "A linked, then B's connect, then B linked",
    ({ a, b }, token) => [
      () => a.send({ ...linkedBy(token()), peer: b.id }),
      () => b.send({ type: "connect", peer: a.id }),
      () => b.send({ ...linkedBy(token()), peer: a.id }),
    ],
  ],
  [
    "B's connect, then B linked, then A linked",
    ({ a, b }, token) => [
      () => b.send({ type: "connect", peer: a.id }),
      () => b.send({ ...linkedBy(token()), peer: a.id }),
      () => a.send({ ...linkedBy(token()), peer: b.id }),
    ],
  ],
  [
    "B's connect twice, A's once more, both linked",
    ({ a, b }, token) => [
      () => b.send({ type: "connect", peer: a.id }),
      () => a.send({ type: "connect", peer: b.id }),
      () => b.send({ type: "connect", peer: a.id }),
      () => a.send({ ...linkedBy(token()), peer: b.id }),
      () => b.send({ ...linkedBy(token()), peer: a.id }),
    ],
  ],
];

test.each(orders)("both ask: one introduction: %s", async (_what, steps) => {
  await using scene = introduce();
  using a = await scene.join("anna");
  using b = await scene.join("bert");
  a.send({ type: "connect", peer: b.id });
  const { token } = await a.next("punch");
  for (const step of steps({ a, b }, () => token)) {
    step();
    await Promise.all([a.settled(), b.settled()]);
  }
  const punches = [a, b].map((one) => one.types().filter((type) => type === "punch"));
  expect(punches).toEqual([["punch"], ["punch"]]);
});

test("what is late about an earlier punch changes nothing of the next", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  using bert = await scene.join("bert");
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  await bert.next("punch");
  anna.send({ ...linkedBy(token), peer: bert.id });
  anna.send({ type: "unlinked", peer: bert.id, reason: "connection-lost" });
  anna.send({ type: "connect", peer: bert.id });
  const second = await bert.next("punch");
  expect(second.token).not.toBe(token);
  bert.send({ ...linkedBy(token), peer: anna.id });
  bert.send({ ...noAnswer, peer: anna.id, token });
  bert.send({ type: "connect", peer: anna.id }); // answered by the second
  await Promise.all([anna.settled(), bert.settled()]);
  expect(bert.types().filter((type) => type === "punch")).toHaveLength(2);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[2], [1]]);
});

// --- many introductions ----------------------------------------------------------------------------------

test("who has no part in the introductions of others is not slowed down by them", async () => {
  const many = { introductionsPerMinute: 1e9, introductionsPerTarget: 1e9, messageBurst: 1e9 };
  await using scene = introduce(many);
  const clients: Joined[] = [];
  for (let n = 0; n < 60; n++) clients.push(await scene.join(`n${n}`, "crowd"));
  using bystander = await scene.join("bystander");
  const lookMs = async () => {
    const from = performance.now();
    for (let n = 0; n < 200; n++) {
      bystander.send({ type: "mapping", mapping: "unknown" });
      bystander.send({ type: "measured", token: "0".repeat(32) });
      bystander.send({ ...noAnswer, peer: 1, token: "0".repeat(32) });
    }
    await bystander.settled();
    return performance.now() - from;
  };
  const looksMs = async () => Math.min(await lookMs(), await lookMs(), await lookMs(), await lookMs());
  await looksMs();
  const aloneMs = await looksMs();
  for (const [n, client] of clients.entries()) {
    for (const other of clients.slice(0, n)) client.send({ type: "connect", peer: other.id });
  }
  await Promise.all(clients.map((client) => client.settled()));
  expect(scene.introducer.participants.flatMap(({ punching }) => punching)).toHaveLength(60 * 59);
  // Walking through all of them takes it a hundred times as long.
  expect(await looksMs()).toBeLessThan(10 * aloneMs);
  for (const client of clients) client[Symbol.dispose]();
}, 20_000);

// --- too many lines --------------------------------------------------------------------------------------

const echoes = (client: Client) =>
  client.seen.flatMap((message) => (message.type === "echo" ? [message.text] : []));
const numbers = (count: number) => Array.from({ length: count }, (_, n) => String(n));
const echoLines = (count: number) =>
  numbers(count)
    .map((text) => encode({ type: "echo", text }))
    .join("");

test("what one says at once is read slice by slice, all of it, and others have their turn between", async () => {
  await using scene = introduce({ messageBurst: 1e9, badLines: 1e9 });
  using mallory = await scene.join("mallory");
  const count = 1_000;
  const heard = () => scene.events.filter(({ event }) => event === "refused").length;
  let [before, mostAtOnce] = [0, 0];
  const turn = () => {
    mostAtOnce = Math.max(mostAtOnce, heard() - before);
    before = heard();
    if (before < count) setImmediate(turn);
  };
  turn();
  mallory.raw('{"type":"nonsense"}\n'.repeat(count));
  await until("all is heard", () => before === count);
  expect(mostAtOnce).toBeLessThan(count / 2);
});

test("too many lines are read later, all and in order, and nobody is closed for it", async () => {
  await using scene = introduce({ messageBurst: 500, messagesPerSecond: 5000, silenceMs: 300, pingMs: 50 });
  using anna = await scene.join("anna");
  using mallory = await scene.join("mallory");
  mallory.raw(echoLines(5000));
  await anna.settled();
  expect(echoes(mallory).length).toBeLessThan(5000);
  await mallory.next("echo", ({ text }) => text === "4999");
  expect(echoes(mallory)).toEqual(numbers(5000));
  expect(scene.introducer.participants).toHaveLength(2);
}, 15_000);

test("while lines wait to be read, TCP makes their sender wait, and the introducer holds little", async () => {
  await using scene = introduce({ messagesPerSecond: 10, pingMs: 200 });
  using anna = await scene.join("anna");
  const mallory = net.connect({ port: scene.introducer.port, host: "127.0.0.1" });
  mallory.on("error", () => {});
  mallory.resume();
  mallory.write(encode(registration("mallory")));
  await anna.next("joined");
  const before = process.memoryUsage().rss;
  const part = Buffer.from(`${encode({ type: "echo", text: "x".repeat(1000) }).repeat(1000)}`);
  let accepted = 0;
  while (mallory.write(part, () => (accepted += part.length)) || mallory.writableLength < 32 * part.length);
  for (let seen = -1; seen !== accepted;) {
    seen = accepted;
    for (const _ of Array(20)) await anna.settled();
  }
  expect(accepted).toBeLessThan(20 * part.length);
  expect(process.memoryUsage().rss - before).toBeLessThan(150 * 1024 * 1024);
  expect(scene.introducer.participants).toHaveLength(2);
  mallory.destroy();
  await anna.next("left");
});

test("who has said too much and ends is heard to its end", async () => {
  await using scene = introduce({ messagesPerSecond: 1000 });
  using anna = await scene.join("anna");
  anna.answersPings = false; // it says nothing more
  anna.raw(echoLines(300));
  anna.end();
  await anna.ended.promise;
  expect(echoes(anna)).toEqual(numbers(300));
});

test("what waits to be read is bounded in all", async () => {
  await using scene = introduce({ heldBytes: 1000 });
  using anna = await scene.join("anna");
  using mallory = await scene.join("mallory");
  mallory.raw(echoLines(300));
  expect(await mallory.next("refused")).toMatchObject({ code: "limit" });
  await mallory.ended.promise;
  await anna.next("left");
});

// --- the plan waits for the mappings ---------------------------------------------------------------------

/** Registers without saying how its NAT maps. */
async function silent(
  scene: ReturnType<typeof introduce>,
  name: string,
  localAddress = "127.0.0.1",
): Promise<Joined> {
  const client = new Client(scene.introducer.port, localAddress);
  client.send(registration(name));
  const { id } = await client.next("registered");
  await client.next("peers", ({ more }) => !more);
  return Object.assign(client, { id });
}

test("the first round begins when both have said how their NATs map, and is planned by it", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  await anna.settled();
  await maps(anna, "endpoint-independent");
  await bert.settled();
  expect([...anna.types(), ...bert.types()]).not.toContain("punch");
  bert.send({ type: "mapping", mapping: "random" });
  expect(await Promise.all([anna.next("punch"), bert.next("punch")])).toMatchObject([
    { way: "birthday", round: 1, role: "controlling" },
    { way: "birthday", round: 1, role: "controlled" },
  ]);
  await maps(bert, "endpoint-independent"); // said again, it begins nothing
  await anna.settled();
  expect(anna.types().filter((type) => type === "punch")).toHaveLength(1);
});

test("who never says how its NAT maps does not hold up the first round", async () => {
  await using scene = introduce({ measureMs: 40 });
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  expect(await bert.next("punch")).toMatchObject({ way: "direct", last: true });
});

test("where nothing can be measured, the first round begins at once", async () => {
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, probePorts: [] });
  using anna = new Client(introducer.port);
  anna.send(registration("anna"));
  await anna.next("registered");
  using bert = new Client(introducer.port);
  bert.send(registration("bert"));
  bert.send({ type: "connect", peer: 1 });
  await bert.settled();
  expect(bert.types()).toContain("punch");
});

test("who leaves before the first round is reported as peer-left", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  anna.send({ type: "connect", peer: bert.id });
  await anna.settled();
  bert[Symbol.dispose]();
  expect(await anna.next("failed")).toMatchObject({ peer: bert.id, reason: "peer-left" });
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[]]);
});

test("both ask before the first round: one punch, in which the first to ask nominates", async () => {
  await using scene = introduce();
  using anna = await silent(scene, "anna");
  using bert = await silent(scene, "bert");
  bert.send({ type: "connect", peer: anna.id });
  await bert.settled();
  anna.send({ type: "connect", peer: bert.id });
  await maps(anna, "unknown");
  await maps(bert, "unknown");
  await Promise.all([anna.settled(), bert.settled()]);
  const roles = (client: Client) =>
    client.seen.flatMap((message) => (message.type === "punch" ? [message.role] : []));
  expect([roles(anna), roles(bert)]).toEqual([["controlled"], ["controlling"]]);
});

// --- measuring -------------------------------------------------------------------------------------------

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

test("the room hears of a change in what it needs to punch, as the changed fields, and of nothing else", async () => {
  await using scene = introduce();
  using carl = await scene.join("carl", "lobby", false);
  using anna = await scene.join("anna", "lobby", false);
  using bert = await scene.join("bert", "lobby", false);
  await linkOnce(anna, bert);
  await failOnce(anna, bert);
  await maps(anna, "random");
  const updated = await carl.next("updated");
  expect(updated).toEqual({ type: "updated", id: anna.id, mapping: "random" });
  await carl.settled();
  expect(carl.types()).toEqual(["registered", "peers", "joined", "joined", "updated", "echo"]);
});

test("a side that never measures does not hold up the round, and is too late afterwards", async () => {
  await using scene = introduce({ measureMs: 40 });
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

// --- the other address family ----------------------------------------------------------------------------

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

  test("an introducer of one family offers none", async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    expect(anna.seen.find((message) => message.type === "registered")!.verify).toBeUndefined();
  });
});

// --- links -----------------------------------------------------------------------------------------------

const linksOf = (scene: ReturnType<typeof introduce>) =>
  Object.fromEntries(scene.introducer.participants.map(({ name, links }) => [name, links]));

test("the links that a participant has when it registers are listed under its peers' present ids", async () => {
  await using scene = introduce();
  using anna = new Client(scene.introducer.port);
  const links = [
    { peer: hash(hash("bert")), route: "birthday" as const },
    { peer: hash(hash("gone")), route: "public" as const },
  ];
  anna.send({ ...registration("anna"), links });
  await anna.next("registered");
  expect(linksOf(scene)).toEqual({ anna: [] });
  const comesBack = async () => {
    const bert = new Client(scene.introducer.port);
    bert.send({ ...registration("bert"), links: [{ peer: hash(hash("anna")), route: "birthday" }] });
    return Object.assign(bert, await bert.next("registered"));
  };
  {
    using stranger = await scene.join("bert"); // who does not say so
    expect(linksOf(scene)).toEqual({ anna: [], bert: [] });
    await stranger.settled();
  }
  {
    using bert = await comesBack();
    const link = (id: number) => [{ id, route: "birthday" as const }];
    expect(linksOf(scene)).toEqual({ anna: link(bert.id), bert: link(1) });
    using namesake = await scene.join("gone", "elsewhere");
    expect(linksOf(scene)).toMatchObject({ anna: [{ id: bert.id }], gone: [] });
    await namesake.settled();
  }
  using bert = await comesBack();
  expect(linksOf(scene)["anna"]).toEqual([{ id: bert.id, route: "birthday" }]);
  anna.send({ type: "unlinked", peer: bert.id, reason: "connection-lost" });
  await anna.settled();
  expect(linksOf(scene)["anna"]).toEqual([]);
});

test("a link is told to be over by the id that its peer had when it left", async () => {
  await using scene = introduce();
  using anna = await scene.join("anna");
  {
    using bert = await scene.join("bert");
    anna.send({ type: "connect", peer: bert.id });
    const { token } = await anna.next("punch");
    anna.send({ ...linkedBy(token), peer: bert.id });
    await anna.settled();
  }
  await anna.next("left");
  anna.send({ type: "unlinked", peer: 2, reason: "connection-lost" });
  expect(await scene.happened("unlinked")).toMatchObject({ id: 1, peer: 2 });
  using bert = await scene.join("bert");
  expect(bert.id).toBe(3);
  expect(linksOf(scene)["anna"]).toEqual([]);
});

test("a thousand links in one register are taken, and more are refused", async () => {
  await using scene = introduce();
  const links = Array.from({ length: maxReportedLinks }, (_, n) => ({
    peer: hash(`${n}`),
    route: "public" as const,
  }));
  using anna = new Client(scene.introducer.port);
  anna.send({ ...registration("anna"), links });
  await anna.next("registered");
  using bert = new Client(scene.introducer.port);
  bert.send({ ...registration("bert"), links: [...links, links[0]!] });
  // The line would be longer than a line may be before the list is too long.
  expect(await bert.next("refused")).toBeDefined();
});

// --- the relay -------------------------------------------------------------------------------------------

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
  test("who waits for the other is not read meanwhile, though its address had to wait to be read", async () => {
    const onEvent = (event: IntroducerEvent) => {
      if (event.event === "refused") toil(3);
    };
    const options = { host: "127.0.0.1", port: 0, onEvent };
    await using scene = introduce({ ownHostShares: 1, processorMs: 4 }, options);
    const { port, stats } = scene.introducer;
    using pair = await strangers(scene);
    using carl = await scene.join("carl", "elsewhere", true, "127.0.0.3");
    const [{ token }] = await pair.meet();
    using crowd = new DisposableStack();
    for (let n = 0; n < 10; n++) crowd.use(new Client(port)).raw("what?\n");
    await until("its address has had much", () => scene.introducer.stats.refusals[0]?.count === 10);
    using early = new RelayClient(port, token, "x");
    await until("it waits to be read", () => scene.introducer.stats.waiting > 0);
    await until("it has been read", () => scene.introducer.stats.waiting === 0);
    const size = 32 * 1024 * 1024;
    early.socket.write(Buffer.alloc(size));
    for (let n = 0; n < 200; n++) await carl.settled();
    expect(early.socket.writableLength).toBeGreaterThan(0);
    expect(stats.relays).toBe(0);
  });

  test("both are offered a relay at once, with one token and opposite roles, and nobody fails", async () => {
    await using scene = relaying();
    using pair = await strangers(scene);
    const [a, b] = await pair.meet();
    expect([a.role, b.role, a.peer.id, b.peer.id]).toEqual(["controlling", "controlled", 2, 1]);
    expect(b.token).toBe(a.token);
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

test("a relay is offered a second after `connect`, beside the direct round, once", async () => {
  await using scene = relaying();
  using pair = await pairOf(scene, "unknown", "unknown");
  const { anna, bert } = pair;
  const askedAt = performance.now();
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("relay");
  expect(performance.now() - askedAt).toBeGreaterThan(relayAfterMs - 20);
  await bert.next("relay", (relay) => relay.token === token);
  expect(anna.types().indexOf("relay")).toBeGreaterThan(anna.types().indexOf("punch"));
  anna.send({ ...linkedBy(token), route: "relay", peer: bert.id });
  bert.send({ ...linkedBy(token), route: "relay", peer: anna.id });
  await Promise.all([anna.settled(), bert.settled()]);
  expect(scene.introducer.participants.map(({ punching }) => punching)).toEqual([[bert.id], [anna.id]]);
  bert.send({ type: "connect", peer: anna.id });
  await bert.settled();
  expect(bert.types().filter((type) => type === "punch" || type === "relay")).toEqual(["punch", "relay"]);
});

test("a relay is offered when the first round has failed, before the next", async () => {
  await using scene = relaying();
  using pair = await pairOf(scene, "endpoint-independent", "endpoint-independent");
  const { anna, bert } = pair;
  anna.send({ type: "connect", peer: bert.id });
  const { token } = await anna.next("punch");
  anna.send({ ...noAnswer, peer: bert.id, token });
  await bert.next("measure");
  await anna.next("measure");
  const steps = (client: Client) =>
    client.types().filter((type) => ["punch", "relay", "measure", "failed"].includes(type));
  expect([steps(anna), steps(bert)]).toEqual([
    ["punch", "relay", "measure"],
    ["punch", "relay", "measure"],
  ]);
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
    expect([a.answer, b.answer]).toEqual([{ type: "relaying" }, { type: "relaying" }]);
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
    relayed.anna.send({ type: "mapping", mapping: "unknown" });
    relayed.anna.send({ type: "connect", peer: relayed.bert.id });
    const { token } = await relayed.anna.next("punch");
    relayed.anna.send({ ...linkedBy(token), peer: relayed.bert.id }); // it has moved
    await relayed.anna.settled();
    expect(linksOf(scene)["anna"]).toEqual([{ id: relayed.bert.id, route: "public" }]);
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

  const measureMs = 2000;
  /** Bytes a second that all those get of endless senders. */
  async function ratesOf(senders: RelayClient[], receivers: RelayClient[]): Promise<number[]> {
    for (const { socket } of senders) {
      const more = () => {
        while (socket.write(new Uint8Array(65_536)));
      };
      socket.on("drain", more);
      more();
    }
    const startedAt = performance.now();
    await until("all get something", () => receivers.every(({ receivedBytes }) => receivedBytes > 0));
    const before = receivers.map(({ receivedBytes }) => receivedBytes);
    const from = performance.now();
    expect(from - startedAt).toBeLessThan(1000);
    await Bun.sleep(measureMs);
    const seconds = (performance.now() - from) / 1000;
    return receivers.map(({ receivedBytes }, n) => (receivedBytes - before[n]!) / seconds);
  }

  test("go at the rate of one link, each way", async () => {
    const relayRate = 2_000_000;
    await using scene = relaying({}, { relayRate });
    using relayed = await link(scene);
    const { a, b } = relayed;
    for (const rate of await ratesOf([a, b], [b, a])) {
      expect(Math.abs(rate / relayRate - 1)).toBeLessThan(0.05);
    }
  });

  test("go at the rate of all links, which they share", async () => {
    const relayTotal = 3_000_000;
    await using scene = relaying({}, { relayRate: 2_000_000, relayTotal });
    using one = await link(scene);
    using two = await link(scene, ["carl", "dora"]);
    const rates = await ratesOf([one.a, two.a], [one.b, two.b]);
    const sum = rates[0]! + rates[1]!;
    expect(Math.abs(sum / relayTotal - 1)).toBeLessThan(0.05);
    expect(Math.min(...rates) / sum).toBeGreaterThan(0.35);
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
    await using scene = relaying({ relayOfferMs: 400 });
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

// --- probe ports -----------------------------------------------------------------------------------------

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
}, 20_000);

test("a probe connection is closed in time, also one that goes on talking", async () => {
  await using scene = introduce({ measureMs: 500 });
  using silent = new Client(scene.introducer.probePorts[0]!);
  using talking = new Client(scene.introducer.probePorts[1]!);
  const timer = setInterval(() => talking.raw("x"), 50);
  // The same clock as the introducer's: it is not the machine that is late.
  const late = Bun.sleep(2500).then(() => "late");
  const ended = Promise.all([silent.ended.promise, talking.ended.promise]).then(() => "ended");
  expect(await Promise.race([ended, late])).toBe("ended");
  clearInterval(timer);
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
  await using introducer = Introducer.start({ ...options, probePorts: [freePort(), freePort()] });
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

test.each(["nonsense", "http://localhost", "redis://localhost/rooms"])(
  "with the Redis %s there is no introducer, and no port is open",
  (redis) => {
    const port = freePort();
    expect(() => Introducer.start({ host: "127.0.0.1", port, redis })).toThrow(TypeError);
    Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } }).stop(true);
  },
);

test("a probe port that is taken: by default a warning, when asked for an error", async () => {
  const own = freePort();
  const probePort = own + 1;
  await using _taken = introduce({}, { port: probePort });
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
});

// --- connecting back -------------------------------------------------------------------------------------

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
  const adopted = { fd: bound.release() } as unknown as { unix: string };
  const connection = await Bun.connect({
    ...adopted,
    socket: {
      data(_, chunk) {
        for (const message of [...lines.push(chunk)].map(parseToParticipant)) {
          if (message.type === "filtering") answered.resolve(message.filtering);
          if (message.type === "refused") refused.resolve(message);
        }
      },
    },
  });
  let isRegistered = false;
  const ask = (register: ToIntroducer = registration("sharing")) => {
    connection.write((isRegistered ? "" : encode(register)) + encode({ type: "connect-back" }));
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

linuxTest.concurrent(
  "connect-back is dropped where nothing answers",
  async () => {
    await using scene = introduce();
    using anna = await sharing(scene.introducer.port, 0);
    using queued = Socket.open(4); // it fills the queue, so that Linux drops every further SYN
    queued.connect(anna.endpoint);
    anna.ask();
    expect(await anna.filtering).toBe("dropped");
  },
  10_000,
);

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

test.concurrent(
  "one connection back at a time, and so many of all",
  async () => {
    await using scene = introduce({ connectBacks: 1 });
    using silent = await sharing(scene.introducer.port, 0);
    using queued = Socket.open(4); // it fills the queue, so that Linux drops every further SYN
    queued.connect(silent.endpoint);
    silent.ask();
    silent.ask();
    expect(await silent.refused).toMatchObject({ code: "limit", request: "connect-back" });
    using anna = await scene.join("anna");
    anna.send({ type: "connect-back" });
    expect(await anna.next("refused")).toMatchObject({ code: "limit", request: "connect-back" });
    await silent.filtering;
    anna.send({ type: "connect-back" });
    expect(await anna.next("filtering")).toMatchObject({ filtering: "refused" });
  },
  10_000,
);

linuxTest.concurrent("one address has its share of the connections back", async () => {
  await using scene = introduce({ connectBacksPerAddress: 1, ownHostShares: 1 });
  using silent = await sharing(scene.introducer.port, 0);
  using queued = Socket.open(4);
  queued.connect(silent.endpoint);
  silent.ask();
  using anna = await scene.join("anna");
  await until("it is under way", () => scene.introducer.stats.participants === 2);
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
    const script = 'ulimit -n 40; exec "$0" "$@"';
    await using child = Bun.spawn(
      ["sh", "-c", script, process.execPath, program, String(port), "--host", "127.0.0.1", "--json"],
      { stdin: "ignore", stdout: "pipe", stderr: "ignore" },
    );
    const events = jsonLines(child.stdout);
    await events.next();
    const clients: Client[] = [];
    for (;;) {
      const client = new Client(port);
      clients.push(client);
      client.send(registration(`n${clients.length}`));
      const isIn = client.next("registered").then(() => true);
      if (!(await Promise.race([isIn, Bun.sleep(500).then(() => false)]))) break;
    }
    expect(clients.length).toBeGreaterThan(2);
    clients[0]!.send({ type: "connect-back" });
    const { code, message } = await clients[0]!.next("refused");
    expect([code, message]).toEqual(["limit", expect.stringContaining("try again later")]);
    for (const client of clients) client[Symbol.dispose]();
  },
  15_000,
);

test("who registers anew replaces its old session, even in a full room; its namesake does not", async () => {
  await using scene = introduce({ roomSize: 2 });
  using bert = await scene.join("bert");
  using old = await scene.join("anna");
  using anew = await scene.join("anna");
  expect(await bert.next("left")).toEqual({ type: "left", id: old.id });
  expect(await bert.next("joined", ({ peer }) => peer.id === anew.id)).toBeDefined();
  await old.ended.promise;
  using namesake = new Client(scene.introducer.port);
  namesake.send({ ...registration("anna"), instance: "fedcba9876543210" });
  expect(await namesake.next("refused")).toMatchObject({ code: "limit", request: "register" });
  expect(scene.introducer.participants.map(({ id }) => id)).toEqual([bert.id, anew.id]);
});

// --- the table -------------------------------------------------------------------------------------------

test("the table fits 80 columns, with the longest of everything and without colour", async () => {
  const some = {
    instance: hash("anna"),
    fingerprint,
    mapping: "unknown" as const,
    since: 0,
    linked: [2, 3, 4, 5, 6, 7, 8],
    links: [],
    punching: [12345, 12346],
  };
  const ipv4 = {
    private: [at("192.168.178.123:54321"), at("10.0.0.1:1")],
    public: at("203.113.113.123:54321"),
  };
  const ipv6 = at("[2001:db8:1234:5678:9abc:def0:1234:5678]:40000");
  const table = await rendered(
    [
      { id: 1, name: "anna", room: "lobby", ...some, ...ipv4 },
      {
        id: 99_999,
        name: "日".repeat(64),
        room: "a room ".repeat(18),
        ...some,
        private: [ipv6],
        public: ipv6,
      },
    ],
    picocolors.createColors(false),
    180_000,
  );
  expect(Math.max(...table.split("\n").map((line) => Bun.stringWidth(line)))).toBeLessThanOrEqual(80);
  expect(table).toMatch(/^[^\p{Cc}]*$/mu);
  for (const text of [
    "anna",
    "lobby",
    "192.168.178.123:54321",
    "203.113.113.123:54321",
    "+1",
    "12345",
    "3m",
  ]) {
    expect(table).toContain(text);
  }
});

test("a wide table has one line a participant; in a pipe nothing is cut", async () => {
  const one = {
    id: 1,
    name: "n".repeat(64),
    room: "a room ".repeat(18).trim(),
    instance: "ab".repeat(8),
    fingerprint: "cd".repeat(32),
    mapping: "endpoint-independent" as const,
    since: 0,
    linked: Array.from({ length: 9 }, (_, index) => index + 2),
    links: [],
    punching: [],
    private: [at("192.168.178.123:54321"), at("10.0.0.1:1")],
    public: at("203.113.113.123:54321"),
  };
  const show = (width: number) =>
    rendered([one, { ...one, id: 2 }], picocolors.createColors(false), 180_000, width);
  for (const width of [120, 160]) {
    const lines = (await show(width)).split("\n");
    expect(lines.length).toBe(4);
    expect(lines.filter((line) => Bun.stringWidth(line) > width)).toEqual([]);
    expect(lines[1]).toContain("endpoint-independent");
  }
  expect(await show(80)).toMatch(/endpoint-\s/);
  const piped = await show(Infinity);
  for (const text of [one.name, one.room, "192.168.178.123:54321, 10.0.0.1:1", "2, 3, 4, 5, 6, 7, 8, 9, 10"])
    expect(piped).toContain(text);
  expect(piped).toEndWith("2 participants in 1 room, 9 links");
  expect(piped).not.toContain("introducer");
  const shared = async (width: number) =>
    (
      await rendered(
        [one, { ...one, id: 2, introducer: at("203.0.113.2:7000") }],
        picocolors.createColors(false),
        180_000,
        width,
      )
    ).split("\n");
  expect((await shared(Infinity)).slice(0, 3)).toEqual([
    expect.stringMatching(/room +introducer +mapping/),
    expect.stringContaining(" here "),
    expect.stringContaining(" 203.0.113.2:7000 "),
  ]);
  expect((await shared(80)).filter((line) => Bun.stringWidth(line) > 80)).toEqual([]);
  for (const text of ["introducer", "here", "203.0."]) expect((await shared(80)).join("\n")).toContain(text);
});

test("the table tells which links are relayed, and how much has gone that way", async () => {
  const one = {
    id: 1,
    name: "anna",
    room: "lobby",
    instance: hash("anna"),
    fingerprint,
    mapping: "random" as const,
    since: 0,
    linked: [2, 3, 4],
    links: [
      { id: 2, route: "relay" as const, relayedBytes: 1_572_864 },
      { id: 3, route: "relay" as const },
      { id: 4, route: "public" as const },
    ],
    punching: [],
    private: [at("10.0.0.1:1")],
    public: at("203.113.113.123:54321"),
  };
  for (const width of [80, 160, Infinity]) {
    const table = await rendered([one], picocolors.createColors(false), 0, width);
    for (const text of ["2 relayed 1.5 MiB", "3 relayed 0 B"])
      expect(table.replace(/\s+/g, " ")).toContain(text);
    expect(table).toEndWith("1 participant in 1 room, 2 links, 1 relayed");
    const widest = Math.max(...table.split("\n").map((line) => Bun.stringWidth(line)));
    expect(widest).toBeLessThanOrEqual(width);
  }
});

// --- the program -----------------------------------------------------------------------------------------

const program = join(import.meta.dir, "..", "introducer.ts");

function run(args: string[], stdin: "ignore" | "pipe" = "ignore") {
  const env = { ...process.env, NO_COLOR: "1" };
  return Bun.spawn([process.execPath, program, ...args], { stdin, stdout: "pipe", stderr: "pipe", env });
}

async function ended(args: string[]) {
  await using child = run(args);
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, stdout, stderr };
}

async function* textLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void> {
  const decoder = new LineDecoder();
  for await (const chunk of stream) yield* decoder.push(chunk);
}

async function* jsonLines(stream: ReadableStream<Uint8Array>): AsyncGenerator<IntroducerEvent, void> {
  for await (const line of textLines(stream)) yield JSON.parse(line) as IntroducerEvent;
}

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  test(`the program serves with standard input at its end, and ${signal} ends it with bye and 0`, async () => {
    const port = freePort();
    await using child = run([String(port), "--host", "127.0.0.1", "--probe-ports", "none", "--json"]);
    const events = jsonLines(child.stdout);
    expect((await events.next()).value).toMatchObject({ event: "listening", host: "127.0.0.1", port });
    using anna = new Client(port);
    anna.send(registration("anna"));
    await anna.next("registered");
    expect((await events.next()).value).toMatchObject({ event: "joined", id: 1, name: "anna" });
    child.kill(signal);
    expect((await anna.next("bye")).reason).toContain("introducer");
    expect(await child.exited).toBe(0);
  });
}

test("the program ends in order at SIGTERM, at once at the second, and with 0 either way", async () => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--probe-ports", "none", "--json"]);
  const events = jsonLines(child.stdout);
  await events.next();
  using anna = new Client(port);
  anna.send(registration("anna"));
  await anna.next("registered");
  using bert = new Client(port);
  bert.send(registration("bert"));
  anna.send({ type: "connect", peer: (await bert.next("registered")).id });
  await anna.next("punch");
  child.kill("SIGTERM");
  const next = async () => (await events.next()).value as IntroducerEvent;
  while ((await next()).event !== "draining"); // and no break out of a loop over them, which would close the pipe
  expect(child.exitCode).toBeNull();
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
  await Promise.all([anna.next("bye"), bert.next("bye")]);
});

test.each([
  [["--relay-rate", "64K", "--relay-total", "2m"], { rate: 65_536, total: 2 * 1024 * 1024 }],
  [["--no-relay"], undefined],
] as const)("the program with %j offers a relay of %j", async (options, relay) => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--json", ...options]);
  await jsonLines(child.stdout).next();
  using anna = new Client(port);
  anna.send(registration("anna"));
  expect((await anna.next("registered")).relay).toEqual(relay);
});

test("the program takes commands from a pipe, and its end doesn't end it", async () => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--json"], "pipe");
  const events = jsonLines(child.stdout);
  await events.next();
  using anna = new Client(port);
  anna.send(registration("anna"));
  while ((await events.next()).value?.event !== "joined"); // a probe port may have been taken: a warning
  child.stdin?.write("S\nD hello there\ntell 1 and you\n");
  await child.stdin?.end();
  expect((await events.next()).value).toMatchObject({
    event: "participants",
    participants: [{ id: 1, room: "lobby" }],
  });
  expect([(await events.next()).value, (await events.next()).value]).toMatchObject([
    { event: "told", participants: 1 },
    { event: "told", id: 1, name: "anna" },
  ]);
  expect([await anna.next("notice"), await anna.next("notice")]).toMatchObject([
    { text: "hello there" },
    { text: "and you" },
  ]);
  await anna.settled();
  expect(child.exitCode).toBeNull();
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("what the network says can't reach the operator's terminal as control characters", async () => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1"], "pipe");
  const story = textLines(child.stderr);
  expect((await story.next()).value).toMatch(`listening on 127.0.0.1 port ${port}`);
  expect((await story.next()).value).toMatch(`bun run participant 127.0.0.1:${port}`);
  using anna = new Client(port);
  anna.send(registration("anna"));
  await anna.next("registered");
  using bert = new Client(port);
  bert.send(registration("bert"));
  await bert.next("registered");
  anna.raw(`{"type":"\u001b[2J\u009b1m\u202e","peer":2}\n\u001b[2J\n`);
  anna.send({ ...registration("anna"), name: "\u001b[2J" });
  await anna.settled();
  child.stdin?.write("quit\n");
  const rest = await Array.fromAsync(story);
  expect(rest.filter((line) => /\p{C}/u.test(line))).toEqual([]);
  expect(rest.filter((line) => line.includes("refused #1"))).toHaveLength(3);
  expect(await child.exited).toBe(0);
});

test("a port that is taken: exit code 1, and what to do", async () => {
  await using scene = introduce();
  const { port } = scene.introducer;
  const result = await ended([String(port), "--host", "127.0.0.1"]);
  expect(result).toMatchObject({ code: 1, stdout: "" });
  expect(result.stderr).toMatch(/port \d+ is taken.*choose another/);
});

test("a probe port that is taken: exit code 1, and which", async () => {
  await using scene = introduce();
  const taken = String(scene.introducer.port);
  const result = await ended([String(freePort()), "--host", "127.0.0.1", "--probe-ports", taken]);
  expect(result).toMatchObject({ code: 1, stdout: "" });
  expect(result.stderr).toBe(
    `error: no mapping probes on port ${taken}: EADDRINUSE (choose others with --probe-ports)\n`,
  );
});

test.each([
  ["none", []],
  ["two", [freePort(), freePort()]],
])("--probe-ports %s", async (_what, ports) => {
  const port = freePort();
  const list = ports.join(",") || "none";
  await using child = run([String(port), "--host", "127.0.0.1", "--json", "--probe-ports", list]);
  const events = jsonLines(child.stdout);
  expect((await events.next()).value).toMatchObject({ event: "listening" });
  using anna = new Client(port);
  anna.send(registration("anna"));
  expect(await anna.next("registered")).toMatchObject({ probePorts: ports });
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("a default probe port that is taken: a warning, and the program goes on", async () => {
  const own = freePort();
  const taken = own + 1;
  await using _taken = introduce({}, { port: taken });
  await using child = run([String(own), "--host", "127.0.0.1", "--json"]);
  const events = jsonLines(child.stdout);
  const message = expect.stringContaining(`no mapping probes on port ${taken}: EADDRINUSE`);
  expect((await events.next()).value).toMatchObject({ event: "warning", message });
  using anna = new Client(own);
  anna.send(registration("anna"));
  expect((await anna.next("registered")).probePorts).not.toContain(taken);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("--metrics shows numbers to Prometheus, on loopback unless told otherwise", async () => {
  const [port, metrics] = [freePort(), freePort()];
  await using child = run([String(port), "--json", "--metrics", String(metrics)]);
  await jsonLines(child.stdout).next();
  using anna = new Client(port);
  anna.send(registration("anna"));
  await anna.next("registered");
  const page = await (await fetch(`http://127.0.0.1:${metrics}/metrics`)).text();
  expect(page).toContain("\nintroducer_participants 1\n");
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("metrics on a port that is taken: exit code 1, and which", async () => {
  await using scene = introduce();
  const taken = String(scene.introducer.port);
  const result = await ended([String(freePort()), "--host", "127.0.0.1", "--metrics", taken]);
  expect(result).toMatchObject({ code: 1, stdout: "" });
  expect(result.stderr).toContain(`can't show metrics on 127.0.0.1 port ${taken}: EADDRINUSE\n`);
});

test("--log json: each event a line of JSON on standard error, and nothing else there", async () => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--log", "json"], "pipe");
  const events = jsonLines(child.stderr);
  expect((await events.next()).value).toMatchObject({ event: "listening", port, at: expect.any(Number) });
  using anna = new Client(port);
  anna.send(registration("anna"));
  expect((await events.next()).value).toMatchObject({ event: "joined", name: "anna" });
  child.stdin?.write("broadcast hello\ntell anna and you\ntell bert nothing\nstats\nquit\n");
  for (const event of [
    { event: "told", participants: 1 },
    { event: "told", participants: 1, name: "anna" },
    { event: "error", message: expect.stringContaining("nobody here is called bert") },
  ])
    expect((await events.next()).value).toMatchObject(event);
  expect(await child.exited).toBe(1);
  expect(await new Response(child.stdout).text()).toMatch(
    /^up +\d+s\nnow +1 participant in 1 room, 1 connection/,
  );
});

test("--max-connections, --max-per-address and --max-room are the introducer's limits", async () => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--json", "--max-room", "1"]);
  await jsonLines(child.stdout).next();
  using anna = new Client(port);
  anna.send(registration("anna"));
  await anna.next("registered");
  using bert = new Client(port);
  bert.send(registration("bert"));
  expect((await bert.next("refused")).message).toBe(
    "the room is full: it holds 1 participant; wait until one leaves",
  );
});

linuxTest.each([2, 3, 4, 5])("two of one household find place in a room of %i", async (size) => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--json", "--max-room", String(size)]);
  await jsonLines(child.stdout).next();
  using household = new DisposableStack();
  for (const name of ["anna", "bert"]) {
    const one = household.use(new Client(port, "127.0.0.2"));
    one.send(registration(name));
    await one.settled();
    expect(one.types()).toEqual(["registered", "peers", "echo"]);
  }
});

for (const args of [
  ["--nonsense"],
  ["--log", "xml"],
  ["--metrics", "here"],
  ["--metrics", "127.0.0.1"],
  ["--metrics", "70000"],
  ["--max-connections", "0"],
  ["--max-per-address", "many"],
  ["--max-room", "1000000"],
  ["--max-relays", "0"],
  ["0"],
  ["65536"],
  ["seven"],
  ["7000", "8000"],
  ["--host"],
  ["--probe-ports"],
  ["--probe-ports", ""],
  ["--probe-ports", "0"],
  ["--probe-ports", "65536"],
  ["--probe-ports", "7001,none"],
  ["--probe-ports", "7001,7001"],
  ["--probe-ports", "7001,"],
  ["--probe-ports", "1,2,3,4,5"],
  ["--alternate"],
  ["--alternate", "example.org"],
  ["--alternate", "203.0.113.7:7000"],
  ["--relay-rate"],
  ["--relay-rate", "fast"],
  ["--relay-rate", "100"],
  ["--relay-total", "-1M"],
  ["--no-relay", "--relay-rate", "1M"],
  ["--no-relay", "--max-relays", "8"],
  ["--redis", "localhost"],
  ["--redis", "http://localhost"],
  ["--redis", "redis://"],
  ["--redis", "redis://localhost:0"],
  ["--redis", "redis://localhost/rooms"],
  ["--redis", "redis://localhost", "--advertise", "example.org"],
  ["--advertise", "203.0.113.7"],
]) {
  test(`wrong usage ${args.join(" ")}: exit code 2 and see --help`, async () => {
    const result = await ended(args);
    expect(result).toMatchObject({ code: 2, stdout: "" });
    expect(result.stderr).toMatch(/^[^\n]*see --help\n$/);
  });
}

/** What of the help has each limit; a limit that is none of an operator's business has none. */
const helped: Record<keyof Limits, RegExp | undefined> = {
  sessions: /--max-connections N .*default: 20000\)/,
  sessionsPerAddress: /--max-per-address N .*default: 256\)/,
  roomSize: /--max-room N .*default: 256\)/,
  roomShare: /a quarter of\s+them, or 2, from one address/,
  processorMs: /processor +2 ms a second of one address/,
  acceptsPerSecond: /32 new connections a second of one address/,
  ownHostShares: undefined,
  messageBurst: /lines +100 at once/,
  messagesPerSecond: /then 50 a second of one connection/,
  heldBytes: /64.0 MiB in all/,
  heldBytesPerAddress: /bytes waiting +8.0 MiB of one address/,
  introductionsPerMinute: /introductions +120 a minute by one participant/,
  introductionsPerPair: /10 of them\s+to one peer/,
  introductionsPerTarget: /60 of one peer by all/,
  birthdaysPerPair: /guessed ports +30 a minute with one peer/,
  failedBirthdayPauseMs: /after a failure none for 60 s/,
  failedBirthdaysPerTarget: /10 failures of one peer/,
  nameKeptMs: /names +kept for 30 s/,
  keptNames: /names +kept for 30 s after leaving .*\s+one address, 1024 of a room/,
  keptNamesPerAddress: /not private, 64 of\s+one address/,
  keptNamesRooms: /in 64 rooms and the lobby/,
  badLines: /closed after 20 that break the protocol/,
  unsentBytes: /1.0 MiB for one that reads too slowly/,
  unsentBytesPerAddress: /16.0 MiB for those of\s+one address/,
  unsentBytesInAll: /128.0 MiB for all/,
  registerDeadlineMs: /registering +within 10 s/,
  pingMs: /asked every 25 s/,
  silenceMs: /closed after 60 s of silence/,
  punchDeadlineMs: /10 s each/,
  probes: /1024 in all/,
  probesPerAddress: /probes +64 of one address/,
  measureMs: /for 3 s/,
  relays: /--max-relays N .*default: 256\)/,
  relaysPerAddress: /a quarter of them of one\s+address/,
  relaysPerMember: /relays +32 of one participant/,
  relayOfferMs: /both come within 10 s/,
  connectBacks: /64 connections back at once/,
  connectBacksPerAddress: /connections back at once, 16 to one address/,
};

test("--help has each limit with its default, in 80 columns", async () => {
  const { stdout } = await ended(["--help"]);
  const missing = Object.entries(helped).filter(([, text]) => text && !text.test(stdout));
  expect(missing).toEqual([]);
  expect(Object.keys(defaultLimits).toSorted()).toEqual(Object.keys(helped).toSorted());
  expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
});

test("--help: exit code 0, on standard output", async () => {
  const result = await ended(["--help"]);
  expect(result).toMatchObject({ code: 0, stderr: "" });
  expect(result.stdout).toContain("Usage: bun run introducer [PORT]");
});
