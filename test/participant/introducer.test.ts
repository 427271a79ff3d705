/** An introducer that comes and goes, and one that means ill. */
import { expect, setDefaultTimeout } from "bun:test";
import { join } from "node:path";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { encode, maxLineBytes, type ToParticipant } from "../../protocol.ts";
import { Driven, link, met, outcome, startIntroducer } from "../driven-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { at, knownLinks } from "./participant-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

test("`leave` keeps the link, `join` makes it known again", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  alice.type("leave", "say bob still here", "list", "echo", "leave");
  await bob.next("left");
  expect(await bob.next("said")).toMatchObject({ text: "still here" });
  bob.type("say alice me too");
  expect(await alice.next("said")).toMatchObject({ text: "me too" });
  expect((await alice.next("peers")).peers).toMatchObject([{ name: "bob", state: "linked", present: false }]);
  expect((await alice.next("error")).message).toContain("`join` first");
  expect((await alice.next("error")).message).toContain("`join` comes back");
  alice.type("join");
  await alice.next("peers", ({ peers }) => peers[0]?.present === true);
  const { id } = await alice.next("registered");
  await bob.next("joined", ({ peer }) => peer === id);
  await knownLinks(house.introducer, 2);
  expect({ a: alice.count("linked"), b: bob.count("linked") }).toEqual({ a: 1, b: 1 });
});

test("links outlive the introducer, and a new one hears of them", async () => {
  const first = startIntroducer();
  const { port } = first;
  await using alice = new Driven(port, "alice");
  await using bob = new Driven(port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  await first[Symbol.asyncDispose]();
  await Promise.all([alice, bob].map((one) => one.next("introducer", ({ state }) => state === "lost")));
  alice.type("say bob without it");
  expect(await bob.next("said")).toMatchObject({ text: "without it" });
  bob.type("connect nobody");
  expect((await bob.next("error")).message).toContain("nobody");
  await using second = startIntroducer(port);
  await Promise.all([alice.next("registered"), bob.next("registered")]);
  await knownLinks(second.introducer, 2);
  alice.type("say bob with it");
  expect(await bob.next("said")).toMatchObject({ text: "with it" });
  expect({ a: alice.count("linked"), b: bob.count("linked") }).toEqual({ a: 1, b: 1 });
});

/** An introducer that answers whatever comes with these bytes, and hangs up on all but the last of the visits. */
function hostile(answer: () => string, visits = 1) {
  const server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      data: (socket) => {
        socket.write(answer());
        if (--visits > 0) socket.end();
      },
    },
  });
  return { port: server.port, [Symbol.dispose]: () => server.stop(true) };
}

test.each([
  ["another protocol", "HTTP/1.1 400 Bad Request\r\n\r\n", "not in the protocol"],
  ["a line without end", "x".repeat(maxLineBytes + 1), "not in the protocol"],
  ["a field of the wrong type", '{"type":"registered","id":"1"}\n', "not in the protocol"],
  [
    "a refusal",
    encode({ type: "refused", code: "bad-field", message: "full \x1b[2J" }),
    "refused: full \ufffd[2J",
  ],
  ["an end", encode({ type: "bye", reason: "maintenance" }), "maintenance"],
])("an introducer that says %s", async (_, bytes, message) => {
  using house = hostile(() => bytes);
  const { code, stdout, stderr } = await outcome([`127.0.0.1:${house.port}`]);
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr).not.toContain("    at ");
  expect(stderr).not.toContain("trying again"); // it does not
});

/** What an introducer says that answers no mapping probes. */
const noProbes = { probePorts: [], alternates: [] };

test("an introducer that is lost while we register is tried again", async () => {
  const hello: ToParticipant[] = [
    {
      type: "registered",
      id: 1,
      name: "alice",
      room: "r",
      public: at("127.0.0.1:4000"),
      private: [],
      ...noProbes,
    },
    { type: "peers", peers: [], more: false },
  ];
  const visits = [hello.map(encode).join(""), encode(hello[0]!), hello.map(encode).join("")];
  using house = hostile(() => visits.shift() ?? "", 3);
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  await alice.next("introducer", ({ state }) => state === "lost");
  await alice.next("registered");
  await alice.next("introducer", ({ state }) => state === "unreachable");
  await alice.next("registered");
  await alice.next("peers");
});

test("an introducer can't make us punch at our own host", async () => {
  let connections = 0;
  using victim = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { open: () => void connections++, data: () => {} },
  });
  const local = at(`127.0.0.1:${victim.port}`);
  const fields = { mapping: "unknown" as const, since: 0 };
  const peer = { id: 2, name: "eve", instance: "ab".repeat(8), fingerprint: "cd".repeat(32), ...fields };
  const lines: ToParticipant[] = [
    // We look as if we came from elsewhere, so loopback can't be the peer's.
    {
      type: "registered",
      id: 1,
      name: "alice",
      room: "r",
      public: at("203.0.113.1:4000"),
      private: [],
      ...noProbes,
    },
    { type: "peers", peers: [], more: false },
    {
      type: "punch",
      peer: { ...peer, private: [local, at("10.255.255.254:9999")], public: local },
      role: "controlled",
      token: "ef".repeat(16),
      startInMs: 0,
      way: "direct",
      round: 1,
      last: true,
      deadlineMs: 5_000,
    },
  ];
  using house = hostile(() => lines.map(encode).join(""));
  await using alice = new Driven(house.port, "alice", "--verbose");
  await alice.next("attempt", ({ remote }) => remote === "10.255.255.254:9999");
  alice.type("quit");
  await alice.exited();
  const remotes = alice.events.flatMap((event) => (event.event === "attempt" ? [event.remote] : []));
  expect({ connections, others: remotes.filter((remote) => remote !== "10.255.255.254:9999") }).toEqual({
    connections: 0,
    others: [],
  });
});

/** So many are linked two by two when their introducer ends. */
const crowd = 12;

test.each([
  ["killed", "SIGKILL", null],
  ["ended in order", "SIGTERM", 0],
] as const)(
  "an introducer is %s and started again: links live, all come back, and everyone's id is told right",
  async (_, signal, exitCode) => {
    const port = freePort();
    const start = () => {
      const file = join(import.meta.dir, "..", "..", "introducer.ts");
      const args = [String(port), "--host", "127.0.0.1", "--probe-ports", "none", "--json"];
      return Bun.spawn([process.execPath, file, ...args], { stdin: "pipe", stdout: "pipe" });
    };
    await using first = start();
    await first.stdout.getReader().read();
    await using everyone = new AsyncDisposableStack();
    const people = Array.from({ length: crowd }, (_, n) => everyone.use(new Driven(port, `person-${n}`)));
    await met(...people);
    const isEven = (_: unknown, n: number) => n % 2 === 0;
    await Promise.all(people.filter(isEven).map((one, n) => link(one, people[2 * n + 1]!)));
    const before = await Promise.all(people.map(async (one) => (await one.registered).id));
    first.kill(signal);
    await first.exited;
    expect(first.exitCode).toBe(exitCode);
    await Promise.all(people.map((one) => one.next("introducer")));
    await using second = start();
    const isAgain = (one: Driven) => (event: ParticipantEvent) => event !== one.events.find(isRegistered);
    const back = await Promise.all(people.map((one) => one.next("registered", isAgain(one))));
    const after = Object.fromEntries(back.map(({ name, id }) => [name, id]));
    expect(before.toSorted()).toEqual(Object.values(after).toSorted()); // so an old one is mostly another's now
    for (const one of people) {
      const others = people.filter((other) => other !== one).map(({ name }) => [name, after[name]]);
      let told: unknown[] = [];
      while (!Bun.deepEquals(told, others.toSorted())) {
        one.type("list");
        const { peers } = await one.next("peers");
        told = peers
          .filter(({ present }) => present)
          .map(({ name, id }) => [name, id])
          .toSorted();
      }
    }
    for (const [n, one] of people.entries()) {
      const other = people[isEven(one, n) ? n + 1 : n - 1]!;
      one.type(`say ${other.name} still here`);
      expect(await other.next("said")).toMatchObject({ name: one.name, text: "still here" });
    }
    expect(people.map((one) => one.count("unlinked"))).toEqual(people.map(() => 0));
    expect(second.exitCode).toBeNull();
  },
  testMs,
);

const isRegistered = ({ event }: ParticipantEvent) => event === "registered";
