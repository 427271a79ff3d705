/**
 * The lying introducer: what it must not make a participant do to others, to its own network, or to itself. A script on
 * the wire against the real program. 127.0.0.2 is somebody else: the introducer is at 127.0.0.1, so loopback is as near
 * to the participant as itself, and dialled as any address would be.
 */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { join } from "node:path";
import { readdirSync } from "node:fs";
import { Driven, homeOf, program } from "../driven-fixture.ts";
import { labTest } from "../lab/lab.ts";
import {
  Bait,
  hex,
  limitedTo,
  LyingIntroducer,
  peerLine,
  peersLine,
  punchLine,
  registered,
  type Line,
} from "./wire.ts";
import { unanswering, until } from "../native-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

const own = { public: "127.0.0.1:4000" };
const silent = () => {};

/** Sends `way` rounds one after the other, each while the one before is still paced, and then gives up. */
async function cannonade(
  visitor: { say(...lines: object[]): void },
  peer: Line,
  pauseMs = 90,
): Promise<void> {
  let token = "";
  for (let round = 1; round <= 8; round++) {
    token = hex(16);
    const rest = {
      way: "birthday",
      role: "controlling",
      last: false,
      deadlineMs: round % 2 === 0 ? 1 : 10_000,
    };
    visitor.say(punchLine(peer, { token, round, ...rest }));
    await Bun.sleep(pauseMs);
  }
  visitor.say({ type: "failed", peer: peer.id, token, reason: "no-candidate-answered" });
}

/** SYNs that the program says it has sent: `attempt` events of `--verbose`. */
const started = (alice: Driven, address: string) =>
  alice.events.filter(
    (event) => event.event === "attempt" && event.outcome === "started" && event.remote.startsWith(address),
  ).length;

/** Whether a birthday was begun at all. */
const hasGuessed = (alice: Driven) =>
  alice.events.some((event) => event.event === "attempt" && event.route === "birthday");

describe("a third party is not shot at", () => {
  test("by birthdays in answer to our own `connect`, again and again", async () => {
    const victim = peerLine({ public: "127.0.0.2:4000", mapping: "random" });
    let asked = 0;
    const relay = { type: "relay", peer: victim, role: "controlling", token: hex(16) };
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type === "register") visitor.say(registered(line, own), peersLine(victim));
      if (line.type !== "connect") return;
      if (++asked <= 10) return void cannonade(visitor, victim);
      visitor.say(punchLine(victim, { way: "birthday", role: "controlling", deadlineMs: 500 }), relay);
    });
    await using alice = new Driven(house.port, "alice", "--verbose");
    await alice.registered;
    for (let count = 0; count < 10; count++) {
      alice.type("connect bob");
      await alice.next("failed");
    }
    expect(asked).toBe(10);
    expect(started(alice, "127.0.0.2:")).toBeLessThan(3_500);
    expect(hasGuessed(alice)).toBe(true);
    // One too many is a round without: whoever means well offers a relay meanwhile, which is taken.
    alice.type("connect bob");
    await house.hears("relay", ({ token }) => token === relay.token);
    expect(house.heard.all.filter(({ reason }) => reason === "refused-by-peer")).toEqual([]);
  });

  test("by a birthday's sockets at one port of it, whatever its peers are called", async () => {
    using bait = await Bait.listen("127.0.0.2", (socket) => void socket.destroy());
    // Ports at random could be in a row.
    const ports = [50_000, 3_001, 30_002, 9_005, 61_003];
    using probes = await LyingIntroducer.listen(silent, (visitor) => {
      const observed = ports[probes.visitors.indexOf(visitor) % ports.length];
      visitor.say({ type: "observed", endpoint: `127.0.0.1:${observed}` });
    });
    const port = probes.port;
    const room = Array.from({ length: 10 }, (_, n) =>
      peerLine({
        id: 2 + n,
        name: `bob${n}`,
        instance: hex(8),
        public: `127.0.0.2:${bait.port}`,
        mapping: "endpoint-independent",
      }),
    );
    using house = await LyingIntroducer.listen((line, visitor) => {
      const lie = { ...own, probePorts: [port], probeToken: hex(16) };
      if (line.type === "register") visitor.say(registered(line, lie), peersLine(...room));
      const peer = room.find(({ id }) => id === line.peer);
      if (line.type === "connect" && peer) void cannonade(visitor, peer);
    });
    await using alice = new Driven(house.port, "alice", "--verbose");
    expect((await alice.next("mapping")).mapping).toBe("random");
    alice.type(...room.map(({ name }) => `connect ${name}`));
    for (const _ of room) await alice.next("failed");
    expect(bait.total).toBeLessThan(3_500);
    expect([hasGuessed(alice), bait.total > 0]).toEqual([true, true]);
  });

  test("by rounds whose sockets it refuses", async () => {
    const victim = peerLine({
      public: "127.0.0.2:4000",
      private: [4001, 4002, 4003].map((port) => `127.0.0.2:${port}`),
    });
    const prediction = { endpoint: "127.0.0.2:5000", step: 1 };
    using house = await LyingIntroducer.listen(async (line, visitor) => {
      if (line.type === "register") visitor.say(registered(line, own), peersLine(victim));
      if (line.type !== "connect") return;
      for (const way of ["direct", "predicted", "fresh", "predicted"]) {
        const rest = { way, role: "controlling", last: false, deadlineMs: 10_000, theirs: prediction };
        visitor.say(punchLine(victim, rest));
        await Bun.sleep(1_200);
      }
      visitor.say({ type: "bye", reason: "enough" });
    });
    await using alice = new Driven(house.port, "alice", "--verbose");
    await alice.registered;
    alice.type("connect bob");
    await alice.next("introducer");
    // In each round at least once at each of the four.
    expect(started(alice, "127.0.0.2:")).toBeWithin(10, 1_600);
  });

  test("by introductions that nobody here asked for, under ever new names", async () => {
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type === "register") visitor.say(registered(line, own), peersLine());
    });
    await using alice = new Driven(house.port, "alice", "--verbose");
    await alice.registered;
    for (let n = 0; n < 400; n++) {
      const endpoints = Array.from({ length: 10 }, (_, port) => `127.0.0.2:${4000 + 10 * n + port}`);
      const lie = { id: 2 + n, name: `bob${n}`, instance: hex(8), public: endpoints[0], private: endpoints };
      house.guests[0]!.say(punchLine(peerLine(lie), { deadlineMs: 1_500 }));
      if (n % 40 === 0) await Bun.sleep(50);
    }
    await until("she dials", () => started(alice, "127.0.0.2:") >= 50);
    await alice.next("failed");
    expect(started(alice, "127.0.0.2:")).toBeLessThan(1_600);
  });
});

describe("greedy members leave enough to the others", () => {
  test.each([
    ["at another address", "127.0.0.77:4000"],
    ["at their own address", "127.0.0.66:5000"],
  ])(
    "after 40 of one address who ask for ever more, one %s is let in",
    async (_, address) => {
      const reasons = new Map<string, string>();
      using house = await LyingIntroducer.listen((line, visitor) => {
        if (line.type === "register") visitor.say(registered(line), peersLine());
        if (line.type === "failed") reasons.set(line.token, line.reason);
      });
      await using alice = new Driven(house.port, "alice", "--quiet");
      await alice.registered;
      const ask = async (id: number, endpoint: string) => {
        const instance = id.toString(16).padStart(16, "0");
        const peer = peerLine({ id, name: `peer${id}`, instance, public: endpoint });
        const token = hex(16);
        house.guests[0]!.say(punchLine(peer, { token, deadlineMs: 1 }));
        await house.hears("failed", (line) => line.token === token);
        return reasons.get(token);
      };
      for (let n = 0; n < 40 * 12; n++) await ask(2 + (n % 40), `127.0.0.66:${2000 + (n % 40)}`);
      expect(await ask(1000, address)).not.toBe("refused-by-peer");
    },
    60_000,
  );
});

describe("what only we can reach is not dialled for an introducer", () => {
  labTest(
    "out in the Internet: not this host, no services, and in our network only what a peer may claim",
    async () => {
      const fixture = join(import.meta.dir, "far-introducer-fixture.ts");
      const child = Bun.spawn(["unshare", "-Urn", process.execPath, fixture], {
        stdout: "pipe",
        timeout: 60_000,
      });
      const { visits, heard, counts } = JSON.parse(await child.stdout.text()) as {
        visits: number;
        heard: Record<string, number>;
        counts: Record<string, number>;
      };
      expect(visits).toBeGreaterThanOrEqual(4);
      expect(heard["failed"]).toBeGreaterThan(100);
      const visited = Object.entries(counts).filter(([, total]) => total > 0);
      const near = ["192.168.1.5 high", "10.1.2.3 high", "fd00::5 high", "2001:db8::5 high"];
      const mayBe = new Set(["203.0.113.9 high", ...near]);
      expect(visited.filter(([name]) => !mayBe.has(name))).toEqual([]);
      expect(visited.length).toBeGreaterThan(0);
      for (const [, total] of visited) expect(total).toBeLessThan(60);
    },
    90_000,
  );

  test("few new endpoints are visited: relays, alternates and probe ports, by however many messages", async () => {
    const baits = await Promise.all(Array.from({ length: 60 }, () => Bait.listen("127.0.0.3")));
    const others = await Promise.all(Array.from({ length: 60 }, () => Bait.listen("127.0.0.4")));
    const itsOwn = await Promise.all(Array.from({ length: 60 }, () => Bait.listen("127.0.0.1")));
    let visits = 0;
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type !== "register") return;
      const next = (some: Bait[]) => some.slice(4 * (visits % 15), 4 * (visits % 15) + 4);
      const alternates = next(others).map(({ port }) => `127.0.0.4:${port}`);
      const probePorts = next(itsOwn).map(({ port }) => port);
      visitor.say(registered(line, { ...own, alternates, probePorts }), peersLine());
      visits++;
      baits.forEach(({ port }, n) => {
        const peer = peerLine({ id: 2 + n, name: `bob${n}`, instance: hex(8), public: "127.0.0.9:4000" });
        const endpoint = `127.0.0.3:${port}`;
        visitor.say({ type: "relay", peer, role: "controlled", token: hex(16), endpoint });
      });
      visitor.say({ type: "bye", reason: "again", retryInMs: 1 });
    });
    await using alice = new Driven(house.port, "alice", "--quiet");
    await until("it has come four times", () => visits >= 4);
    expect(alice.count("registered")).toBeGreaterThan(1);
    const visited = (some: Bait[]) => some.filter(({ total }) => total > 0).length;
    expect(visited(baits) + visited(others)).toBeLessThanOrEqual(12);
    expect(visited(itsOwn)).toBeLessThanOrEqual(32);
    for (const bait of [...baits, ...others, ...itsOwn]) bait[Symbol.dispose]();
  });
});

describe("a participant is not worn out", () => {
  test("by an introducer that pings and does not read", async () => {
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type === "register") visitor.say(registered(line), peersLine());
    });
    await using alice = new Driven(house.port, "alice");
    await alice.registered;
    const deaf = house.guests[0]!;
    deaf.stopReading();
    const ping = JSON.stringify({ type: "ping", id: Number.MAX_SAFE_INTEGER }) + "\n";
    const many = ping.repeat(2_000);
    // Its answers to this are more than the kernel holds: it gives up, and comes anew, at once ready for others.
    for (let count = 0; count < 400 && house.guests.length === 1; count++) {
      if (!deaf.socket.write(many)) await Promise.race([drained(deaf.socket), Bun.sleep(100)]);
    }
    expect((await alice.next("introducer")).reason).toBe("it does not read what we send");
    await alice.next("registered");
    house.guests[1]!.say({ type: "ping", id: 7 });
    await house.hears("pong", ({ id }) => id === 7);
  });

  test("by 3,000 `measure` of one introduction that it did not ask for, nor by as many of many", async () => {
    let atOnce = 0;
    using probes = await LyingIntroducer.listen(silent, (visitor) => {
      atOnce = Math.max(atOnce, probes.visitors.filter(({ socket }) => !socket.destroyed).length);
      visitor.socket.on("end", () => visitor.socket.destroy());
    });
    const reasons: string[] = [];
    using house = await LyingIntroducer.listen((line, visitor) => {
      const lie = { ...own, probePorts: [probes.port], probeToken: hex(16) };
      if (line.type === "register") visitor.say(registered(line, lie), peersLine());
      if (line.type === "failed") reasons.push(line.reason);
    });
    await using alice = new Driven(house.port, "alice", "--quiet");
    await alice.registered;
    const visitor = house.guests[0]!;
    const of = (id: number) => peerLine({ id, name: `bob${id}`, instance: hex(8), public: "127.0.0.9:4000" });
    const ways = ["predicted", "fresh", "direct", "birthday"];
    /** Read as they are answered: who does not read is left. */
    const measure = async (peers: object[]) => {
      for (let n = 0; n < 3_000; n++) {
        const [peer, way] = [peers[n % peers.length], ways[n % ways.length]];
        visitor.say({ type: "measure", peer, token: hex(16), way });
        if (n % 500 !== 499) continue;
        visitor.say({ type: "ping", id: n });
        await visitor.hears("pong", ({ id }) => id === n);
      }
    };
    await measure([of(2)]);
    await house.hears("failed", ({ reason }) => reason === "refused-by-peer");
    await measure(Array.from({ length: 100 }, (_, n) => of(3 + n)));
    expect(atOnce).toBeLessThan(20);
    expect(probes.visitors.length).toBeLessThan(200);
    expect(alice.events.filter(({ event }) => event === "error")).toEqual([]);
  });

  test("of its descriptors, by introductions at which everybody is silent", async () => {
    const holes = Array.from({ length: 10 }, () => unanswering());
    // Whoever listens at one address of loopback does at all.
    const endpoints = (n: number) =>
      holes.map(({ endpoint }) => endpoint.replace("127.0.0.1", `127.1.0.${n}`));
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type === "register") visitor.say(registered(line, own), peersLine());
    });
    const command = [process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice", "--stay", "-q"];
    const home = homeOf("limited");
    const env = { PATH: process.env.PATH, XDG_STATE_HOME: home };
    await using alice = Bun.spawn(limitedTo(256, command), {
      cwd: home,
      env,
      stdin: "ignore",
      stdout: "ignore",
    });
    await house.hears("register");
    for (let n = 0; n < 200; n++) {
      const lie = {
        id: 2 + n,
        name: `bob${n}`,
        instance: hex(8),
        public: endpoints(n)[0],
        private: endpoints(n),
      };
      house.guests[0]!.say(punchLine(peerLine(lie), { deadlineMs: 3_000 }));
    }
    house.guests[0]!.say({ type: "ping", id: 7 });
    await house.hears("pong");
    const descriptors = () => readdirSync(`/proc/${alice.pid}/fd`).length;
    await until("it dials", () => descriptors() > 60);
    const counts: number[] = [];
    for (let count = 0; count < 20; count++) {
      counts.push(descriptors());
      await Bun.sleep(10);
    }
    for (const hole of holes) hole[Symbol.dispose]();
    expect(Math.max(...counts)).toBeLessThan(128);
  });

  test("by gigantic numbers, and lines that come byte by byte", async () => {
    const huge = Number.MAX_SAFE_INTEGER;
    const bob = peerLine({
      roundTripMs: huge,
      since: huge,
      mapping: "endpoint-independent",
      public: "127.0.0.9:4000",
    });
    using probes = await LyingIntroducer.listen(silent, (visitor) =>
      visitor.say({ type: "observed", endpoint: own.public }),
    );
    using house = await LyingIntroducer.listen((line, visitor) => {
      const lie = { ...own, id: huge, probePorts: [probes.port], relay: { rate: huge, total: huge } };
      if (line.type === "register") visitor.say(registered(line, lie), peersLine(bob));
      if (line.type === "register") visitor.say({ type: "updated", id: huge, roundTripMs: huge });
      const rest = { role: "controlling", startInMs: 0, deadlineMs: 200 };
      if (line.type === "connect") visitor.say(punchLine(bob, rest));
    });
    await using alice = new Driven(house.port, "alice", "--verbose");
    await alice.next("mapping");
    for (const byte of JSON.stringify({ type: "notice", text: "drip" }) + "\n") {
      house.guests[0]!.raw(byte);
      await Bun.sleep(1);
    }
    expect((await alice.next("notice")).text).toBe("drip");
    alice.type("connect bob");
    expect((await alice.next("failed")).reason).toBe("no-candidate-answered");
    expect(started(alice, "127.0.0.9:")).toBeGreaterThan(0); // it was dialled when it was to be
  });
});

async function drained(socket: import("node:net").Socket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  socket.once("drain", resolve).once("close", () => resolve());
  await promise;
}
