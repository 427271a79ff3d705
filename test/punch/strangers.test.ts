/** What strangers, a peer that lies, and another program of the same user can do to a punch. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { Channel } from "../../native/secure/channel.ts";
import { adopt } from "../../native/secure/tls.ts";
import { alpnOf, type Attempt, type PunchOptions } from "../../native/punch/punch.ts";
import { Allowance } from "../../native/punch/allowance.ts";
import { Targets } from "../../native/punch/targets.ts";
import { roundCandidates } from "../../native/punch/candidates.ts";
import { connectShared, pollSockets, Socket } from "../../native/host/socket.ts";
import { encode, formatEndpoint, splitEndpoint, type Endpoint } from "../../protocol.ts";
import { loopback, noSocketLeft, refusing, reserved, unanswering, until } from "../native-fixture.ts";

import {
  Host,
  aliceIdentity,
  bobIdentity,
  carolIdentity,
  closeBoth,
  credentialsOf,
  expectLinked,
  expectSameConnection,
  failureOf,
  linkOf,
  newToken,
  opposite,
  start,
  startsOf,
} from "./hosts-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(12);
setDefaultTimeout(testMs);

// --- another program of the same user ------------------------------------------------------------------------

describe.each(["controlling", "controlled"] as const)(
  "to a %s side, the peer's twin in another punch",
  (role) => {
    test("that calls is a stranger, though it has the peer's certificate", async () => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      using twin = new Host(bobIdentity);
      const token = newToken();
      const ofAlice = start(alice, bob, role, token, { candidates: [] });
      const ofTwin = start(twin, alice, opposite(role), newToken());
      await until("the twin was connected, and is turned away", () =>
        ofTwin.attempts.some(
          ({ outcome }, index) =>
            ofTwin.attempts[index - 1]?.outcome === "connected" && outcome !== "started",
        ),
      );
      const ofBob = start(bob, alice, opposite(role), token, {
        candidates: [{ endpoint: alice.endpoint, route: "public" }],
      });
      const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
      await expectSameConnection(...links);
      expect(ofTwin.outcomes).toEqual([]); // it never believed to be linked
      ofTwin.punch.abort("peer-left", "");
      await closeBoth(...links);
    });

    test("that is called is a stranger, though it has the peer's certificate", async () => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      using twin = new Host(bobIdentity);
      const token = newToken();
      const ofTwin = start(twin, alice, opposite(role), newToken(), { candidates: [] });
      const candidates = [twin, bob].map(({ endpoint }) => ({ endpoint, route: "public" as const }));
      const ofAlice = start(alice, bob, role, token, { candidates });
      const isTurnedAway = ({ remote, outcome }: Attempt) =>
        remote === twin.endpoint && outcome !== "started" && outcome !== "connected";
      await until("the twin was dialled in vain", () => ofAlice.attempts.some(isTurnedAway));
      const ofBob = start(bob, alice, opposite(role), token);
      const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
      expect(links[0].remote).toBe(bob.endpoint);
      await expectSameConnection(...links);
      expect(ofTwin.outcomes).toEqual([]);
      ofTwin.punch.abort("peer-left", "");
      await closeBoth(...links);
    });
  },
);

// --- what only the peer vouches for ----------------------------------------------------------------------------

describe("an endpoint for which only the peer's word stands", () => {
  const { key, certificate } = carolIdentity;
  const strangers: Record<
    string,
    Partial<Bun.TCPSocketListenOptions<undefined>> & { open(socket: Bun.Socket): void }
  > = {
    "accepts and never speaks": { open() {} },
    "talks nonsense": { open: (socket) => void socket.write("SSH-2.0-OpenSSH_9.6\r\n") },
    "hangs up": { open: (socket) => void socket.end() },
    "has a certificate, and not the peer's": { tls: { key, cert: certificate }, open() {} },
  };
  const rows = Object.entries(strangers).flatMap(([what, stranger]) =>
    (["private", "public"] as const).flatMap((route) =>
      (["controlling", "controlled"] as const).map((role) => [route, what, role, stranger] as const),
    ),
  );

  test.each(rows)("%s, which %s, is not told of by a %s side", async (route, _what, role, { open, tls }) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using server = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      ...(tls && { tls }),
      socket: { open, data() {}, error() {} },
    });
    const endpoint = loopback(server.port);
    const candidates = [{ endpoint, route, tries: { left: 6 } }];
    const order: string[] = [];
    const handshake = setTimeout(() => order.push("a handshake could be over"), 200 + 1_500);
    const ofAlice = start(alice, bob, role, newToken(), { candidates, deadlineMs: 200 });
    void ofAlice.outcome.then(() => order.push("the time is over"));
    const { reason, detail } = await failureOf(ofAlice);
    clearTimeout(handshake);
    expect(reason).toBe("no-candidate-answered");
    // The time for a handshake is not given: how long it took would tell, too. (A busy machine delays all timers alike.)
    expect(order).toEqual(["the time is over"]);
    expect(detail).toContain(`${route} ${endpoint}: `);
    expect(ofAlice.attempts.some(({ outcome }) => outcome === "connected")).toBe(true);
    server.stop(true);
  });

  test("does not close our listener to others by refusing", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const candidates = [
      { endpoint: refusing(), route: "public" as const, tries: { left: 6 } },
      { endpoint: refusing(), route: "private" as const, tries: { left: 6 } },
    ];
    const ofAlice = start(alice, bob, "controlling", token, { candidates, isReachable: false });
    await until(
      "all have refused",
      () => ofAlice.attempts.filter(({ outcome }) => outcome === "ECONNREFUSED").length >= 2,
    );
    const ofBob = start(bob, alice, "controlled", token);
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    await closeBoth(...links);
  });

  test.each([
    ["refuses", refusing()],
    ["refuses", refusing(6)],
    ["never answers", undefined],
  ] as const)(
    "and %s is dialled six times in three rounds, while the peer's own is at full rate",
    async (what, endpoint) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      using hole = unanswering();
      using nobody = reserved();
      const victim = endpoint ?? hole.endpoint;
      const tries = { left: 6 };
      const candidates = [
        { endpoint: victim, route: "public" as const, tries },
        { endpoint: nobody.endpoint, route: "public" as const },
      ];
      const rounds: number[] = [];
      for (let round = 0; round < 3; round++) {
        const startedAt = performance.now();
        const ofAlice = start(alice, bob, "controlling", newToken(), { candidates });
        const dialled = () => startsOf(ofAlice, victim).length;
        const isDue = () => dialled() < (what === "refuses" ? 3 : 1) && tries.left > 0;
        const isFullRate = () => startsOf(ofAlice, nobody.endpoint).length > 20;
        await until("it was dialled, and the peer's own often", () => !isDue() && isFullRate());
        ofAlice.punch.abort("peer-left", "");
        rounds.push(dialled());
        // Silence is waited for, and a refusal makes the next pause longer.
        const most = what === "refuses" ? 3 : 1;
        expect(dialled()).toBeLessThanOrEqual(most + Math.floor((performance.now() - startedAt) / 900));
      }
      if (what === "refuses") expect([rounds[0]! + rounds[1]!, rounds[2]!]).toEqual([6, 0]);
      else expect(Math.min(...rounds)).toBeGreaterThan(0);
    },
  );

  linuxTest("and never answers is left before the kernel sends the SYN again", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using hole = unanswering();
    const candidates = [{ endpoint: hole.endpoint, route: "public" as const, tries: { left: 2 } }];
    const order: string[] = [];
    let kernel: Timer | undefined;
    const onAttempt = ({ outcome }: Attempt) => {
      order.push(outcome);
      kernel ??= setTimeout(() => order.push("the kernel sends it again"), 1_000);
    };
    const ofAlice = start(alice, bob, "controlling", newToken(), {
      ...{ candidates, deadlineMs: 2_500, onAttempt },
    });
    const { detail } = await failureOf(ofAlice);
    clearTimeout(kernel);
    expect(detail).toBe(`public ${hole.endpoint}: 2 attempts, no answer`);
    // (A busy machine delays all timers alike.)
    expect(order.slice(0, 2)).toEqual(["started", "no answer"]);
  });

  test("is not scanned: six attempts at each of four addresses, in three rounds", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const allowance = new Allowance();
    const scanned = Array.from({ length: 10 }, (_, n) => formatEndpoint(`127.0.1.${n + 1}`, 1025 + n));
    const [own, fingerprint] = [
      { mapping: "unknown", private: [], public: alice.endpoint } as const,
      "0".repeat(64),
    ];
    const mallory = {
      id: 2,
      name: "mallory",
      instance: "0".repeat(16),
      fingerprint,
      since: 0,
      mapping: "unknown",
    } as const;
    const [four, seen] = [scanned.slice(0, 4), formatEndpoint("127.0.2.1", 50_000)];
    const dialled = new Map<Endpoint, number>();
    for (let round = 0; round < 3; round++) {
      const candidates = roundCandidates({
        way: "direct",
        own,
        introducer: loopback(7000),
        peer: { ...mallory, private: scanned, public: seen },
        ours: new Set([alice.endpoint]),
        hosts: [],
        allowance,
        budget: 100,
      });
      const ofAlice = start(alice, bob, "controlled", newToken(), { candidates });
      const isDone = (endpoint: Endpoint) => {
        const now = startsOf(ofAlice, endpoint).length;
        return now >= 3 || now + (dialled.get(endpoint) ?? 0) >= 6;
      };
      const isFullRate = () => startsOf(ofAlice, seen).length > 20;
      await until("the others would have been dialled, too", () => four.every(isDone) && isFullRate());
      ofAlice.punch.abort("peer-left", "");
      for (const { remote } of startsOf(ofAlice)) dialled.set(remote, (dialled.get(remote) ?? 0) + 1);
    }
    dialled.delete(seen);
    expect([...dialled]).toEqual(four.map((endpoint) => [endpoint, 6]));
  });
});

describe("towards one address", () => {
  const crowd = (endpoint: Endpoint) =>
    Array.from({ length: 512 }, () => ({
      endpoint,
      route: "birthday" as const,
      isFresh: true,
      isOnce: true,
    }));

  test("all ports and punches of the program have one count, which is given back", async () => {
    await using _ = noSocketLeft();
    using bob = new Host(bobIdentity);
    using nobody = reserved();
    const program = new Targets();
    const hosts = Array.from({ length: 4 }, () => new Host(aliceIdentity, program));
    const again = () =>
      hosts.map((host) =>
        start(host, bob, "controlling", newToken(), {
          candidates: crowd(nobody.endpoint),
          startInMs: 60_000,
        }),
      );
    for (let round = 0; round < 3; round++) {
      const all = again();
      expect(all.map(({ punch }) => punch.dials.length)).toEqual([512, 20, 0, 0]);
      for (const { punch } of all) punch.abort("peer-left", "");
    }
    for (const host of hosts) host[Symbol.dispose]();
  });
});

// --- strangers ---------------------------------------------------------------------------------------------

describe("a stranger at the peer's private endpoint", () => {
  const strangers: Record<string, (bytes: Bun.Socket) => void> = {
    "accepts and never speaks": () => {},
    "sends garbage": (socket) => void socket.write("HTTP/1.0 200 OK\r\n\r\nhello\n"),
    "sends zeros without end": (socket) => void socket.write(new Uint8Array(1 << 20)),
    "hangs up": (socket) => void socket.end(),
    resets: (socket) => void socket.terminate(),
  };

  test.each(Object.entries(strangers))("%s, and does not stop the link", async (_what, behave) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open: behave, data() {} } });
    const stranger = { endpoint: loopback(server.port), route: "private" as const };
    const towards = (peer: Host): Partial<PunchOptions> => ({
      candidates: [stranger, { endpoint: peer.endpoint, route: "public" }],
    });
    await expectLinked(alice, bob, { alice: towards(bob), bob: towards(alice) });
    server.stop(true);
  });

  test("has another certificate, and does not stop the link", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const { key, certificate } = carolIdentity;
    const nominate = encode({ type: "nominate", token: newToken(), proof: "0".repeat(64) });
    using server = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      tls: { key, cert: certificate },
      socket: { open: (socket) => void socket.write(nominate), data() {} },
    });
    const stranger = { endpoint: loopback(server.port), route: "private" as const };
    const known = [{ ...stranger, route: "public" as const }];
    const ofAlice = start(alice, bob, "controlling", newToken(), { candidates: known, deadlineMs: 1_500 });
    expect((await failureOf(ofAlice)).reason).toBe("authentication-failed");
    const candidates = [stranger, { endpoint: bob.endpoint, route: "public" as const }];
    await expectLinked(alice, bob, { alice: { candidates } });
  });

  test("is ourselves, and does not stop the link", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const candidates = [
      { endpoint: alice.endpoint, route: "private" as const },
      { endpoint: bob.endpoint, route: "public" as const },
    ];
    await expectLinked(alice, bob, { alice: { candidates } });
  });
});

describe("strangers at our listener", () => {
  const garbage = "GET / HTTP/1.0\r\n\r\n";
  test.each([
    ["a silent one", 1, ""],
    ["one that talks nonsense", 1, garbage],
    ["a crowd of silent ones", 50, ""],
    ["a crowd that talks nonsense", 50, garbage],
  ] as const)("%s does not stop the link", async (_who, count, says) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const ofAlice = start(alice, bob, "controlling", token);
    let opened = 0;
    const connect = () =>
      Bun.connect({
        hostname: "127.0.0.1",
        port: splitEndpoint(alice.endpoint).port,
        socket: {
          open(socket) {
            opened++;
            if (says) socket.write(says);
          },
          data() {},
          error() {},
        },
      });
    // Those that are too many are reset at once, which may reject their connect.
    const strangers = Promise.allSettled(Array.from({ length: count }, connect));
    await until("they fill the listener", () => opened >= Math.min(count, 32));
    const ofBob = start(bob, alice, "controlled", token);
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    await expectSameConnection(...links);
    await closeBoth(...links);
    for (const stranger of await strangers) {
      if (stranger.status === "fulfilled") stranger.value.terminate();
    }
  });

  test.each([
    [32, "anybody", []],
    [256, "where the peer is", "peer"],
  ] as const)(
    "no more than %d from %s are looked at, and all are closed with the punch",
    async (most, _where, who) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      const candidates = who === "peer" ? [{ endpoint: bob.endpoint, route: "public" as const }] : [];
      // As TLS server we say nothing first, so that only a close makes a stranger's socket readable.
      const ofAlice = start(alice, bob, "controlled", newToken(), { candidates });
      const strangers: Socket[] = [];
      const ready = (what: "read" | "write") =>
        pollSockets(strangers.map((socket) => ({ socket, for: what, value: undefined }))).length;
      const come = (count: number) => {
        for (let one = 0; one < count; one++) {
          const stranger = Socket.open(4);
          strangers.push(stranger);
          stranger.connect(alice.endpoint);
        }
      };
      // Not more at once than the queue holds.
      while (strangers.length < most) {
        come(32);
        await until("they are connected", () => ready("write") === strangers.length);
      }
      for (let many = 1; many <= 8; many++) {
        come(1);
        await until("one too many is closed", () => ready("read") === many);
      }
      ofAlice.punch.abort("peer-left", "");
      await until("all are closed", () => ready("read") === most + 8);
      for (const stranger of strangers) stranger.close();
    },
  );

  test("one that has the right certificate but nominates nothing holds us until the deadline", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const ofAlice = start(alice, bob, "controlled", token, { candidates: [], deadlineMs: 1_500 });
    const { socket } = await connectShared(alice.endpoint, 5_000);
    const client = { role: "controlling", offers: [alpnOf(token)] } as const;
    const mute = new Channel(adopt(socket), "public", client, credentialsOf(bobIdentity));
    expect(await mute.secured).toBe(aliceIdentity.fingerprint);
    expect((await failureOf(ofAlice)).reason).toBe("timed-out");
    await until("alice has closed it", () => !mute.isOpen);
  });

  test.each(["controlling", "controlled"] as const)(
    "one with another certificate is turned away by a %s side",
    async (role) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using carol = new Host(carolIdentity);
      using bob = new Host(bobIdentity);
      const token = newToken();
      const other = role === "controlling" ? "controlled" : "controlling";
      const ofAlice = start(alice, bob, role, token, { candidates: [] });
      const ofCarol = start(carol, alice, other, token, { deadlineMs: 400 });
      const atCarol = await ofCarol.outcome;
      if (atCarol.is === "linked") await until("carol's link ends", () => !atCarol.channel.isOpen);
      expect(ofAlice.outcomes).toEqual([]);
      const ofBob = start(bob, alice, other, token);
      const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
      await expectSameConnection(...links);
      await closeBoth(...links);
    },
  );
});
