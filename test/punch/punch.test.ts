/** Two and more participants who mean well: they link, or are told why not. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { type Punch, type PunchOptions } from "../../native/punch/punch.ts";
import { splitEndpoint, type Role } from "../../protocol.ts";
import {
  listening,
  loopback,
  noSocketLeft,
  openSockets,
  refusing,
  unanswering,
  until,
} from "../native-fixture.ts";

import {
  Host,
  aliceIdentity,
  bobIdentity,
  bondOf,
  carolIdentity,
  closeBoth,
  expectLinked,
  expectSameConnection,
  failureOf,
  isLinux,
  linkOf,
  newToken,
  opposite,
  start,
  type Started,
} from "./hosts-fixture.ts";
import { stories } from "../session/story-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

// --- two peers ---------------------------------------------------------------------------------------------

describe("two peers", () => {
  test("link, hold the same one connection, and nothing else", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const before = openSockets().length;
    const token = newToken();
    const ofAlice = start(alice, bob, "controlling", token);
    const ofBob = start(bob, alice, "controlled", token);
    const [a, b] = [await linkOf(ofAlice), await linkOf(ofBob)];
    await expectSameConnection(a, b);
    if (isLinux) await until("only the link is left", () => openSockets().length === before + 2);
    expect([ofAlice.punch.isOver, ofBob.punch.isOver]).toEqual([true, true]);
    await closeBoth(a, b);
    expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
  });

  test("link whichever of them asked", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    await expectLinked(alice, bob);
    await expectLinked(bob, alice);
  });

  test.each([
    ["the controlling side", 60, 0],
    ["the controlled side", 0, 60],
    ["both, the controlled side later", 20, 70],
  ])("link though %s starts late", async (_late, startAlice, startBob) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    await expectLinked(alice, bob, { alice: { startInMs: startAlice }, bob: { startInMs: startBob } });
  });

  test("link over the very same four-tuple again and again", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const seen: string[] = [];
    for (let round = 0; round < 5; round++) {
      const links = await expectLinked(alice, bob);
      seen.push(`${links.alice.local} ${links.alice.remote}`);
    }
    expect(seen).toEqual(Array<string>(5).fill(`${alice.endpoint} ${bob.endpoint}`));
  });

  test("link with several candidates, of which most are dead", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using hole = unanswering();
    const towards = (peer: Host): Partial<PunchOptions> => ({
      candidates: [
        { endpoint: refusing(), route: "private" },
        { endpoint: hole.endpoint, route: "private" },
        { endpoint: refusing(6), route: "private" },
        { endpoint: peer.endpoint, route: "public" },
      ],
    });
    await expectLinked(alice, bob, { alice: towards(bob), bob: towards(alice) });
  });

  test("link when only one of them can name the other", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const links = await expectLinked(alice, bob, { alice: { candidates: [] } });
    expect([links.alice.route, links.bob.route]).toEqual(["listen", "private"]);
  });

  test("link though both have the same certificate", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using twin = new Host(aliceIdentity);
    await expectLinked(alice, twin);
  });

  test("link fifty times over: the nomination is never missed", async () => {
    await using _ = noSocketLeft();
    // Ten at a time: a hundred ports that punch at once take seconds of a busy machine, and an accepted one has five.
    for (let round = 0; round < 5; round++) {
      const pairs = Array.from(
        { length: 10 },
        () => [new Host(aliceIdentity), new Host(bobIdentity)] as const,
      );
      await Promise.all(pairs.map(([alice, bob]) => expectLinked(alice, bob)));
      for (const host of pairs.flat()) host[Symbol.dispose]();
    }
  });
});

test("what is attempted is told, from the start to the connection", async () => {
  await using _ = noSocketLeft();
  using alice = new Host(aliceIdentity);
  using bob = new Host(bobIdentity);
  const token = newToken();
  const ofAlice = start(alice, bob, "controlling", token);
  await until("alice has been refused", () =>
    ofAlice.attempts.some(({ outcome }) => outcome === "ECONNREFUSED"),
  );
  const ofBob = start(bob, alice, "controlled", token);
  const links = [await linkOf(ofAlice), await linkOf(ofBob)];
  const { port } = splitEndpoint(alice.endpoint);
  expect(ofAlice.attempts[0]).toMatchObject({ localPort: port, remote: bob.endpoint, outcome: "started" });
  expect(ofAlice.attempts.at(-1)).toMatchObject({ remote: bob.endpoint, outcome: "connected" });
  await closeBoth(...links);
});

// --- punches at once ---------------------------------------------------------------------------------------

/** Alice links with Bob and with Carol at the same time, and never takes one for the other. */
async function expectBoth(
  alice: Host,
  bob: Host,
  carol: Host,
  roleToBob: Role,
  roleToCarol: Role,
  ofAlice: Partial<PunchOptions> = {},
): Promise<void> {
  const [forBob, forCarol] = [newToken(), newToken()];
  // Below the 5 s after which a connection taken for another's would be dropped and tried again.
  const deadlineMs = 4_500;
  const started = [
    start(alice, bob, roleToBob, forBob, { deadlineMs, ...ofAlice }),
    start(alice, carol, roleToCarol, forCarol, { deadlineMs, ...ofAlice }),
    start(carol, alice, opposite(roleToCarol), forCarol, { deadlineMs }),
    start(bob, alice, opposite(roleToBob), forBob, { deadlineMs }),
  ];
  const [toBob, toCarol, atCarol, atBob] = await Promise.all(started.map(linkOf));
  expect([toBob!.remote, toCarol!.remote]).toEqual([bob.endpoint, carol.endpoint]);
  await expectSameConnection(toBob!, atBob!);
  await expectSameConnection(toCarol!, atCarol!);
  await closeBoth(toBob!, atBob!, toCarol!, atCarol!);
  expect(started.map(({ outcomes }) => outcomes.length)).toEqual([1, 1, 1, 1]);
}

test("twenty who all punch at all at once: every pair links once, none of them on one side only", async () => {
  await using _ = noSocketLeft();
  const hosts = Array.from({ length: 20 }, (_, n) => new Host(n % 2 === 0 ? aliceIdentity : bobIdentity));
  const pairs = hosts.flatMap((one, index) =>
    hosts.slice(index + 1).map((other, step) => {
      const [token, deadlineMs] = [newToken(), 30_000];
      const role = step % 2 === 0 ? "controlling" : "controlled";
      return [
        start(one, other, role, token, { deadlineMs }),
        start(other, one, opposite(role), token, { deadlineMs }),
      ] as const;
    }),
  );
  for (const [one, other] of pairs) {
    const links = [await linkOf(one), await linkOf(other)] as const;
    expect([links[0].local, links[0].remote]).toEqual([links[1].remote, links[1].local]);
  }
  await closeBoth(...(await Promise.all(pairs.flat().map(linkOf))));
  expect(pairs.flat().every(({ outcomes }) => outcomes.length === 1)).toBe(true);
  for (const host of hosts) host[Symbol.dispose]();
});

describe("two punches at once on one port", () => {
  test.each([
    ["in the same role", "controlling", "controlling", bobIdentity, carolIdentity],
    ["in opposite roles", "controlling", "controlled", bobIdentity, carolIdentity],
    [
      "in opposite roles, the peers sharing a certificate",
      "controlling",
      "controlled",
      bobIdentity,
      bobIdentity,
    ],
    [
      "in the same role, the peers sharing a certificate",
      "controlled",
      "controlled",
      bobIdentity,
      bobIdentity,
    ],
  ] as const)("%s", async (_what, roleToBob, roleToCarol, ofBob, ofCarol) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(ofBob);
    using carol = new Host(ofCarol);
    await expectBoth(alice, bob, carol, roleToBob, roleToCarol);
  });

  test.each([
    ["controlling", "controlling"],
    ["controlled", "controlled"],
    ["controlling", "controlled"],
    ["controlled", "controlling"],
  ] as const)(
    "with two programs of one user, which come from where nobody announced them (%s, %s)",
    async (roleToBob, roleToTwin) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      using twin = new Host(bobIdentity);
      await expectBoth(alice, bob, twin, roleToBob, roleToTwin, { candidates: [] });
      await expectBoth(alice, twin, bob, roleToBob, roleToTwin, { candidates: [] });
    },
  );

  test.each([
    ["controlling", "controlling"],
    ["controlled", "controlled"],
    ["controlling", "controlled"],
  ] as const)("though their twins come first, to our listener (%s, %s)", async (roleToBob, roleToCarol) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using carol = new Host(bobIdentity);
    await expectBoth(alice, bob, carol, roleToBob, roleToCarol, { startInMs: 100 });
  });

  test.each([
    ["controlling", "controlled"],
    ["controlled", "controlling"],
  ] as const)(
    "though both come from where nobody announced them (%s, %s)",
    async (roleToBob, roleToCarol) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      using carol = new Host(carolIdentity);
      await expectBoth(alice, bob, carol, roleToBob, roleToCarol, { candidates: [] });
    },
  );

  test("the failure of one leaves the other alone", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using carol = new Host(carolIdentity);
    const token = newToken();
    const toCarol = start(alice, carol, "controlled", newToken(), { deadlineMs: 60 });
    const toBob = start(alice, bob, "controlling", token);
    expect((await failureOf(toCarol)).reason).toBe("no-candidate-answered");
    const atBob = start(bob, alice, "controlled", token);
    const links = [await linkOf(toBob), await linkOf(atBob)] as const;
    await expectSameConnection(...links);
    await closeBoth(...links);
  });
});

// --- half a link -----------------------------------------------------------------------------------------------

/** Forwards both ways, what comes from the server only once `release` is called. */
function holdingBack(port: number) {
  const released = Promise.withResolvers<void>();
  const servers = new Map<Bun.Socket, Promise<Bun.Socket>>();
  const proxy = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open(client) {
        const socket = {
          data: (_: Bun.Socket, chunk: Buffer) => void released.promise.then(() => client.write(chunk)),
          close: () => void client.end(),
          error() {},
        };
        servers.set(client, Bun.connect({ hostname: "127.0.0.1", port, socket }));
      },
      data: (client, chunk) => void servers.get(client)!.then((server) => server.write(chunk)),
      close: (client) => void servers.get(client)!.then((server) => server.end()),
      error() {},
    },
  });
  return {
    endpoint: loopback(proxy.port),
    release: released.resolve,
    [Symbol.dispose]: () => proxy.stop(true),
  };
}

test("a controlled side whose time is over still takes the nomination of a handshake that has begun", async () => {
  await using _ = noSocketLeft();
  using alice = new Host(aliceIdentity);
  using bob = new Host(bobIdentity);
  using path = holdingBack(splitEndpoint(alice.endpoint).port);
  const token = newToken();
  const ofAlice = start(alice, bob, "controlled", token, { candidates: [], deadlineMs: 1_000 });
  const candidates = [{ endpoint: path.endpoint, route: "public" as const, isFresh: true }];
  const ofBob = start(bob, alice, "controlling", token, { candidates });
  await until("it is connected", () => ofBob.attempts.some(({ outcome }) => outcome === "connected"));
  await until("alice's time is over", () => performance.now() > ofAlice.punch.deadlineAt + 50);
  expect(ofAlice.outcomes).toEqual([]);
  path.release();
  const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
  await stories.get(links[1])!.lines.say("in time");
  await closeBoth(...links);
});

// --- failures ----------------------------------------------------------------------------------------------

describe("it fails", () => {
  test("when nobody listens, telling what was tried", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = start(alice, bob, "controlling", newToken(), { deadlineMs: 500 });
    const { reason, detail } = await failureOf(ofAlice);
    expect(reason).toBe("no-candidate-answered");
    expect(detail).toContain(`private ${bob.endpoint}: `);
    expect(detail).toContain("ECONNREFUSED");
    const tries = Number(/: (\d+) attempts/.exec(detail)?.[1]);
    expect(tries).toBeGreaterThanOrEqual(5);
    expect(ofAlice.outcomes.length).toBe(1);
  });

  linuxTest("when nothing answers, leaving the one SYN alone", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using hole = unanswering();
    const candidates = [{ endpoint: hole.endpoint, route: "public" as const }];
    const ofAlice = start(alice, bob, "controlling", newToken(), { deadlineMs: 150, candidates });
    expect(await failureOf(ofAlice)).toEqual({
      reason: "no-candidate-answered",
      detail: `public ${hole.endpoint}: 1 attempt, no answer`,
    });
  });

  test("when the peer offered nothing and never came", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = start(alice, bob, "controlled", newToken(), { deadlineMs: 50, candidates: [] });
    expect(await failureOf(ofAlice)).toEqual({
      reason: "no-candidate-answered",
      detail: "the peer offered no endpoint that can be tried from here",
    });
  });

  test("when the only candidate is our own endpoint", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    const ofAlice = start(alice, alice, "controlling", newToken(), { deadlineMs: 400 });
    const { reason, detail } = await failureOf(ofAlice);
    expect([reason, detail]).toEqual([
      "no-candidate-answered",
      expect.stringContaining("connected to itself"),
    ]);
  });

  test("when the peer accepts and never speaks", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using silent = listening();
    const candidates = [{ endpoint: silent.endpoint, route: "public" as const }];
    const ofAlice = start(alice, bob, "controlling", newToken(), { deadlineMs: 150, candidates });
    expect((await failureOf(ofAlice)).reason).toBe("timed-out");
  });

  test.each(["controlling", "controlled"] as const)(
    "on the side, %s, to which the peer shows another certificate",
    async (role) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      const token = newToken();
      const expected = { bond: bondOf(aliceIdentity, carolIdentity), deadlineMs: 1_500 };
      const ofAlice = start(alice, bob, role, token, expected);
      const other = role === "controlling" ? "controlled" : "controlling";
      // TLS 1.3: a client learns only afterwards that its certificate was not welcome, so Bob may link.
      const ofBob = start(bob, alice, other, token, { deadlineMs: 1_500 });
      const { reason, detail } = await failureOf(ofAlice);
      expect([reason, detail.includes(bob.endpoint)]).toEqual(["authentication-failed", true]);
      const atBob = await ofBob.outcome;
      if (atBob.is === "linked") await until("bob's link ends", () => !atBob.channel.isOpen);
      expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
    },
  );

  test("when the peer nominates for another punch", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = start(alice, bob, "controlling", newToken(), { deadlineMs: 300 });
    const ofBob = start(bob, alice, "controlled", newToken(), { deadlineMs: 300 });
    const atAlice = await ofAlice.outcome;
    if (atAlice.is === "linked") await until("alice's link ends", () => !atAlice.channel.isOpen);
    expect((await ofBob.outcome).is).toBe("failed");
  });
});

describe("aborted", () => {
  test.each([
    ["before it starts", { startInMs: 5_000 }],
    ["while it is refused", {}],
    ["while a candidate is silent", "silent"],
  ] as const)("%s, it closes everything and says why, once", async (_when, changes) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using silent = listening();
    const candidates = [{ endpoint: silent.endpoint, route: "private" as const }];
    const before = openSockets();
    const options = changes === "silent" ? { candidates } : changes;
    const ofAlice = start(alice, bob, "controlling", newToken(), options);
    if (changes === "silent") {
      await until("it connected", () => ofAlice.attempts.some(({ outcome }) => outcome === "connected"));
    } else if (!("startInMs" in changes)) {
      await until("it was refused", () => ofAlice.attempts.some(({ outcome }) => outcome === "ECONNREFUSED"));
    }
    ofAlice.punch.abort("peer-left", "gone");
    ofAlice.punch.abort("refused-by-peer", "said twice");
    expect(ofAlice.outcomes).toEqual([{ is: "failed", reason: "peer-left", detail: "gone" }]);
    await until("all is closed", () => openSockets().every((socket) => before.includes(socket)));
  });

  test("right where it was started", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = start(alice, bob, "controlling", newToken());
    ofAlice.punch.abort("introducer-lost", "");
    expect(ofAlice.attempts).toEqual([]);
    await expectLinked(alice, bob);
  });

  test("after it has linked, it leaves the link alone", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const ofAlice = start(alice, bob, "controlling", token);
    const ofBob = start(bob, alice, "controlled", token);
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    ofAlice.punch.abort("peer-left", "too late");
    ofBob.punch.abort("peer-left", "too late");
    await expectSameConnection(...links);
    await closeBoth(...links);
    expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
  });

  test.each(["started", "ECONNREFUSED", "connected"])("by whoever hears that it %s", async (heard) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using silent = listening();
    const before = openSockets();
    const endpoint = heard === "connected" ? silent.endpoint : bob.endpoint;
    const ofAlice: Started = start(alice, bob, "controlling", newToken(), {
      candidates: [{ endpoint, route: "private" }],
      onAttempt({ outcome }) {
        if (outcome === heard) ofAlice.punch.abort("peer-left", heard);
      },
    });
    expect(await failureOf(ofAlice)).toEqual({ reason: "peer-left", detail: heard });
    await until("all is closed", () => openSockets().every((socket) => before.includes(socket)));
  });

  test("by the failure of another punch on the port", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const second: { punch?: Punch } = {};
    const first = start(alice, bob, "controlling", newToken(), {
      deadlineMs: 1,
      onFailed: () => second.punch?.abort("introducer-lost", "with the first"),
    });
    const other = start(alice, bob, "controlling", newToken());
    second.punch = other.punch;
    // Both are due in one tick: the first to fail, the second to start.
    Bun.sleepSync(5);
    expect((await failureOf(other)).detail).toBe("with the first");
    expect(first.punch.isOver).toBe(true);
  });
});

// --- the limits of the process -------------------------------------------------------------------------------

linuxTest("running out of descriptors fails the punch, not the program", async () => {
  const fixture = join(import.meta.dir, "punch-fixture.ts");
  const child = Bun.spawn(["sh", "-c", 'ulimit -n 128; exec "$0" "$1"', process.execPath, fixture], {
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, error] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  expect({ out, error: error.slice(-400), exit: await child.exited }).toEqual({
    out: "no-candidate-answered\nlinked\nno socket left\n",
    error: "",
    exit: 0,
  });
});
