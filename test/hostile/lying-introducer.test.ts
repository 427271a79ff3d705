/**
 * The lying introducer: what it must not make a participant do to others, to its own network, or to itself. A script on
 * the wire against the real program. 127.0.0.2 is somebody else: the introducer is at 127.0.0.1, so loopback is as near
 * to the participant as itself, and dialled as any address would be.
 */
import { describe, expect, test } from "bun:test";
import { Driven } from "../driven-fixture.ts";
import { Bait, hex, LyingIntroducer, peerLine, peersLine, punchLine, registered, type Line } from "./wire.ts";

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

describe("a third party is not shot at", () => {
  test("by birthdays in answer to our own `connect`, again and again", async () => {
    const victim = peerLine({ public: "127.0.0.2:4000", mapping: "random" });
    let asked = 0;
    using house = await LyingIntroducer.listen((line, visitor) => {
      if (line.type === "register") visitor.say(registered(line, own), peersLine(victim));
      if (line.type === "connect") asked++;
      if (line.type === "connect") void cannonade(visitor, victim);
    });
    await using alice = new Driven(house.port, "alice", "--verbose");
    await alice.registered;
    for (let count = 0; count < 10; count++) {
      alice.type("connect bob");
      await alice.next("failed");
    }
    expect(asked).toBe(10);
    expect(started(alice, "127.0.0.2:")).toBeLessThan(3_500);
    expect(started(alice, "127.0.0.2:")).toBeGreaterThan(500); // a birthday was begun at all
  }, 60_000);

  test("by a birthday's sockets at one port of it, whatever its peers are called", async () => {
    using bait = await Bait.listen("127.0.0.2", (socket) => void socket.destroy());
    using probes = await LyingIntroducer.listen(silent, (visitor) => {
      visitor.say({ type: "observed", endpoint: `127.0.0.1:${1024 + Math.floor(Math.random() * 60_000)}` });
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
    expect(bait.total).toBeGreaterThan(100);
  }, 60_000);
});

describe("greedy members leave enough to the others", () => {
  test.each([
    ["at another address", "198.51.100.7:4000"],
    ["at their own address", "203.0.113.66:5000"],
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
        house.visitors[0]!.say(punchLine(peer, { token, deadlineMs: 1 }));
        await house.hears("failed", (line) => line.token === token);
        return reasons.get(token);
      };
      for (let n = 0; n < 40 * 12; n++) await ask(2 + (n % 40), `203.0.113.66:${2000 + (n % 40)}`);
      expect(await ask(1000, address)).not.toBe("refused-by-peer");
    },
    60_000,
  );
});
