/** The program of the introducer: its end, commands, options, and what they print. */
import { expect, setDefaultTimeout } from "bun:test";
import { Introducer } from "../../introducer.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { defaultLimits, type Limits } from "../../native/introducer/limits.ts";
import { UsageError } from "../../native/terminal/command-line.ts";
import { readArguments } from "../../native/terminal/introducer-arguments.ts";
import { Client, registration } from "../client-fixture.ts";
import { freePort, freePorts } from "../sockets-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { introduce, ended, jsonLines, run, textLines } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

test.each(["nonsense", "http://localhost", "redis://localhost/rooms"])(
  "with the Redis %s there is no introducer, and no port is open",
  (redis) => {
    const port = freePort();
    expect(() => Introducer.start({ host: "127.0.0.1", port, redis })).toThrow(TypeError);
    Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } }).stop(true);
  },
);

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
  child.stdin?.write("S\nbroadcast hello there\ntell 1 and you\n");
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
    `error: no mapping probes on port ${taken}: a program listens there already (choose others with --probe-ports)\n`,
  );
});

test.each([
  ["none", []],
  ["two", [freePorts(2)].flatMap((first) => [first, first + 1])],
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
  const own = freePorts(2);
  const taken = own + 1;
  await using _taken = introduce({}, { port: taken });
  await using child = run([String(own), "--host", "127.0.0.1", "--json"]);
  const events = jsonLines(child.stdout);
  const message = expect.stringContaining(
    `no mapping probes on port ${taken}: a program listens there already`,
  );
  expect((await events.next()).value).toMatchObject({ event: "warning", message });
  using anna = new Client(own);
  anna.send(registration("anna"));
  expect((await anna.next("registered")).probePorts).not.toContain(taken);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("--metrics shows numbers to Prometheus, on loopback unless told otherwise", async () => {
  const port = freePorts(4); // its own, those of its probes, and one more
  const metrics = port + 3;
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

test("metrics on a port that is taken: that is told, and the introducer goes on", async () => {
  await using scene = introduce();
  const [port, taken] = [freePort(), String(scene.introducer.port)];
  await using child = run([String(port), "--host", "127.0.0.1", "--json", "--metrics", taken]);
  const events = jsonLines(child.stdout);
  const message = expect.stringContaining(`no metrics on 127.0.0.1 port ${taken}: a program listens`);
  expect((await events.next()).value).toMatchObject({ event: "warning", message });
  using anna = new Client(port);
  anna.send(registration("anna"));
  await anna.next("registered");
});

test("--metrics alone is at a port that is nobody's", () => {
  const metrics = { hostname: "127.0.0.1", port: 17_000 };
  for (const args of [["--metrics"], ["7000", "--metrics", "--json"], ["--metrics=17000"]])
    expect(readArguments(args)).toMatchObject({ metrics });
  expect(readArguments(["--metrics", "9000"])).toMatchObject({ metrics: { ...metrics, port: 9000 } });
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

linuxTest.each([
  ["--max-connections", "the introducer is full: it takes 1 connections; come back later"],
  ["--max-per-address", "1 connections an address (4 times that an IPv6 /48) are enough: close others first"],
  ["--max-room", "the room is full: it holds 1 participant; wait until one leaves"],
])("%s is the introducer's limit", async (option, message) => {
  const port = freePort();
  await using child = run([String(port), "--host", "127.0.0.1", "--json", option, "1"]);
  await jsonLines(child.stdout).next();
  using anna = new Client(port, "127.0.0.2");
  anna.send(registration("anna"));
  await anna.next("registered");
  using bert = new Client(port, "127.0.0.2");
  bert.send(registration("bert"));
  expect((await bert.next("refused")).message).toBe(message);
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

test.each([[["--nonsense"]], [["--redis", "redis://localhost/rooms"]]] as [string[]][])(
  "wrong usage, %j: exit code 2 and see --help",
  async (args) => {
    const result = await ended(args);
    expect(result).toMatchObject({ code: 2, stdout: "" });
    expect(result.stderr).toMatch(/^[^\n]*see --help\n$/);
  },
);

for (const args of [
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
  ["--redis", "redis://localhost", "--advertise", "example.org:0"],
  ["--advertise", "203.0.113.7"],
]) {
  test(`${args.join(" ")} is wrong usage`, () => {
    expect(() => readArguments(args)).toThrow(UsageError);
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
  homeMs: undefined,
  messageBurst: /lines +100 at once/,
  messagesPerSecond: /then 50 a second of one connection/,
  heldBytes: /64.0 MiB in all/,
  heldBytesPerAddress: /bytes waiting +8.0 MiB of one address/,
  introductionsPerMinute: /introductions +120 a minute by one participant/,
  introductionsPerPair: /10 of them\s+to one peer/,
  introductionsPerTarget: /60 of one peer by all/,
  wishKeptMs: /a wish is kept for 600 s/,
  wishesPerName: /8 for one name/,
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
