import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { makeIdentity, type Identity } from "../../native/link/identity.ts";
import { Channel, Credentials } from "../../native/link/channel.ts";
import { Link } from "../../native/link/link.ts";
import {
  PunchPort,
  purposeOf,
  type Attempt,
  type Punch,
  type PunchOptions,
} from "../../native/punch/punch.ts";
import { connectShared, pollSockets, Socket } from "../../native/socket.ts";
import { encode, splitEndpoint, type Endpoint, type FailureReason, type Role } from "../../protocol.ts";
import {
  listening,
  loopback,
  noSocketLeft,
  openSockets,
  refusing,
  reserved,
  unanswering,
  until,
} from "../native-fixture.ts";

const isLinux = process.platform === "linux";
const aliceIdentity = makeIdentity();
const bobIdentity = makeIdentity();
const carolIdentity = makeIdentity();
const credentials = new Map<Identity, Credentials>();

function credentialsOf(identity: Identity): Credentials {
  const known = credentials.get(identity) ?? new Credentials(identity);
  credentials.set(identity, known);
  return known;
}

type Outcome = { is: "linked"; link: Link } | { is: "failed"; reason: FailureReason; detail: string };

/** A participant as punch.ts sees one: a port that a control connection holds, and an identity. */
class Host implements Disposable {
  readonly identity: Identity;
  readonly punchPort: PunchPort;
  readonly endpoint: Endpoint;
  readonly #control = Socket.open(4);

  constructor(identity: Identity) {
    this.identity = identity;
    const port = this.#control.bind(0);
    this.#control.shareport();
    this.endpoint = loopback(port);
    this.punchPort = new PunchPort(port, credentialsOf(identity));
  }

  [Symbol.dispose](): void {
    this.#control.close();
  }
}

let tokens = 0;
const newToken = () => (++tokens).toString(16).padStart(32, "0");

interface Started {
  punch: Punch;
  /** The first outcome. */
  outcome: Promise<Outcome>;
  /** Every outcome: there must never be a second one. */
  outcomes: Outcome[];
  attempts: Attempt[];
}

function start(
  host: Host,
  peer: Host,
  role: Role,
  token: string,
  changes: Partial<PunchOptions> = {},
): Started {
  const { promise, resolve } = Promise.withResolvers<Outcome>();
  const [outcomes, attempts]: [Outcome[], Attempt[]] = [[], []];
  const ended = (outcome: Outcome) => {
    outcomes.push(outcome);
    resolve(outcome);
  };
  const punch = host.punchPort.punch({
    introduction: { role, token },
    fingerprint: peer.identity.fingerprint,
    candidates: [{ endpoint: peer.endpoint, route: "private" }],
    startInMs: 0,
    deadlineMs: 8_000,
    isReachable: true,
    onLinked: (channel) => ended({ is: "linked", link: new Link(channel) }),
    onFailed: (reason, detail) => ended({ is: "failed", reason, detail }),
    onAttempt: (attempt) => attempts.push(attempt),
    ...changes,
  });
  return { punch, outcome: promise, outcomes, attempts };
}

async function linkOf(started: Started): Promise<Link> {
  const outcome = await started.outcome;
  if (outcome.is === "linked") return outcome.link;
  throw new Error(`no link: ${outcome.reason}: ${outcome.detail}`);
}

async function failureOf(started: Started): Promise<{ reason: FailureReason; detail: string }> {
  const outcome = await started.outcome;
  if (outcome.is === "linked") throw new Error("it linked");
  return { reason: outcome.reason, detail: outcome.detail };
}

/** Both links are the two ends of one connection, and it works in both directions. */
async function expectSameConnection(one: Link, other: Link): Promise<void> {
  expect([one.local, one.remote]).toEqual([other.remote, other.local]);
  const heard: string[] = [];
  one.onSaid = (text) => heard.push(`one heard ${text}`);
  other.onSaid = (text) => heard.push(`other heard ${text}`);
  await one.say("hello");
  await other.say("welcome");
  expect(heard).toEqual(["other heard hello", "one heard welcome"]);
}

async function closeBoth(...links: Link[]): Promise<void> {
  await Promise.all(links.map((link) => link.close("disconnected")));
}

interface Extra {
  alice?: Partial<PunchOptions>;
  bob?: Partial<PunchOptions>;
}

/** Alice (controlling) and Bob punch towards each other, link, say hello and close. */
async function expectLinked(alice: Host, bob: Host, extra: Extra = {}): Promise<{ alice: Link; bob: Link }> {
  const token = newToken();
  const ofAlice = start(alice, bob, "controlling", token, extra.alice);
  const ofBob = start(bob, alice, "controlled", token, extra.bob);
  const links = { alice: await linkOf(ofAlice), bob: await linkOf(ofBob) };
  expect(links.alice).toMatchObject({ local: alice.endpoint, remote: bob.endpoint, isOpen: true });
  await expectSameConnection(links.alice, links.bob);
  await closeBoth(links.alice, links.bob);
  expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
  return links;
}

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
    const pairs = Array.from({ length: 50 }, () => [new Host(aliceIdentity), new Host(bobIdentity)] as const);
    await Promise.all(pairs.map(([alice, bob]) => expectLinked(alice, bob)));
    for (const host of pairs.flat()) host[Symbol.dispose]();
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

const opposite = (role: Role): Role => (role === "controlling" ? "controlled" : "controlling");

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
  const deadlineMs = 3_000;
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

// --- failures ----------------------------------------------------------------------------------------------

describe("it fails", () => {
  test("when nobody listens, telling what was tried", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = start(alice, bob, "controlling", newToken(), { deadlineMs: 100 });
    const { reason, detail } = await failureOf(ofAlice);
    expect(reason).toBe("no-candidate-answered");
    expect(detail).toContain(`private ${bob.endpoint}: `);
    expect(detail).toContain("ECONNREFUSED");
    const tries = Number(/: (\d+) attempts/.exec(detail)?.[1]);
    expect(tries).toBeGreaterThanOrEqual(5);
    expect(ofAlice.outcomes.length).toBe(1);
  });

  test.skipIf(!isLinux)("when nothing answers, leaving the one SYN alone", async () => {
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
      const expected = { fingerprint: carolIdentity.fingerprint, deadlineMs: 700 };
      const ofAlice = start(alice, bob, role, token, expected);
      const other = role === "controlling" ? "controlled" : "controlling";
      // TLS 1.3: a client learns only afterwards that its certificate was not welcome, so Bob may link.
      const ofBob = start(bob, alice, other, token, { deadlineMs: 700 });
      const { reason, detail } = await failureOf(ofAlice);
      expect([reason, detail.includes(bob.endpoint)]).toEqual(["authentication-failed", true]);
      const atBob = await ofBob.outcome;
      if (atBob.is === "linked") await until("bob's link ends", () => !atBob.link.isOpen);
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
    if (atAlice.is === "linked") await until("alice's link ends", () => !atAlice.link.isOpen);
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
    const nominate = encode({ type: "nominate", token: newToken() });
    using server = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      tls: { key, cert: certificate },
      socket: { open: (socket) => void socket.write(nominate), data() {} },
    });
    const stranger = { endpoint: loopback(server.port), route: "private" as const };
    const ofAlice = start(alice, bob, "controlling", newToken(), { candidates: [stranger], deadlineMs: 300 });
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

  test("no more than 32 are looked at, and all are closed with the punch", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    // As TLS server we say nothing first, so that only a close makes a stranger's socket readable.
    const ofAlice = start(alice, bob, "controlled", newToken(), { candidates: [] });
    const strangers: Socket[] = [];
    const closed = () =>
      pollSockets(strangers.map((socket) => ({ socket, for: "read", value: undefined }))).length;
    for (let count = 1; count <= 40; count++) {
      const stranger = Socket.open(4);
      strangers.push(stranger);
      stranger.connect(alice.endpoint);
      if (count > 32) await until("one too many is closed", () => closed() === count - 32);
      else
        await until(
          "it is connected",
          () => pollSockets([{ socket: stranger, for: "write", value: 0 }]).length > 0,
        );
    }
    ofAlice.punch.abort("peer-left", "");
    await until("all are closed", () => closed() === 40);
    for (const stranger of strangers) stranger.close();
  });

  test("one that has the right certificate but nominates nothing holds us until the deadline", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const ofAlice = start(alice, bob, "controlled", token, { candidates: [], deadlineMs: 300 });
    const { socket } = await connectShared(alice.endpoint, 5_000);
    const client = { role: "controlling", offers: [purposeOf(token)] } as const;
    const mute = new Channel(socket, "public", client, credentialsOf(bobIdentity));
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
      if (atCarol.is === "linked") await until("carol's link ends", () => !atCarol.link.isOpen);
      expect(ofAlice.outcomes).toEqual([]);
      const ofBob = start(bob, alice, other, token);
      const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
      await expectSameConnection(...links);
      await closeBoth(...links);
    },
  );
});

// --- the introducer's word comes later ----------------------------------------------------------------------

describe("a head start", () => {
  /** Starts without a role; `introduce` is the introducer's word. */
  function early(host: Host, peer: Host, changes: Partial<PunchOptions> = {}) {
    const { introduction: _, ...options } = changes;
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    const [outcomes, attempts]: [Outcome[], Attempt[]] = [[], []];
    const ended = (outcome: Outcome) => {
      outcomes.push(outcome);
      resolve(outcome);
    };
    const punch = host.punchPort.punch({
      fingerprint: peer.identity.fingerprint,
      candidates: [{ endpoint: peer.endpoint, route: "private" }],
      startInMs: 0,
      deadlineMs: 8_000,
      isReachable: true,
      onLinked: (channel) => ended({ is: "linked", link: new Link(channel) }),
      onFailed: (reason, detail) => ended({ is: "failed", reason, detail }),
      onAttempt: (attempt) => attempts.push(attempt),
      ...options,
    });
    return { punch, outcome: promise, outcomes, attempts };
  }

  function hasRemote(socket: Socket | undefined): boolean {
    try {
      return socket?.remote !== undefined;
    } catch {
      return false; // not connected yet
    }
  }

  test.each([
    ["controlling", "dials", []],
    ["controlled", "dials", []],
    ["controlling", "is dialled", "peer"],
    ["controlled", "is dialled", "peer"],
  ] as const)("as the %s side, which %s: no link before the word", async (role, _how, dialling) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const isDialled = dialling === "peer";
    const ofAlice = early(alice, bob, isDialled ? { candidates: [] } : {});
    const ofBob = start(bob, alice, opposite(role), token, isDialled ? {} : { candidates: [] });
    const isConnected = () =>
      isDialled
        ? ofBob.attempts.some(({ outcome }) => outcome === "connected")
        : hasRemote(ofAlice.punch.dials[0]?.socket);
    await until("they are connected", isConnected);
    // Others get the whole way meanwhile.
    using carol = new Host(carolIdentity);
    using dave = new Host(aliceIdentity);
    await expectLinked(carol, dave);
    expect([ofAlice.outcomes, ofBob.outcomes, ofAlice.punch.proven.size]).toEqual([[], [], 0]);
    ofAlice.punch.introduce({ role, token }, 8_000);
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    await expectSameConnection(...links);
    await closeBoth(...links);
    expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
    // The connection that waited for the word is the one that was kept.
    const connections = (started: { attempts: Attempt[] }) =>
      started.attempts.filter(({ outcome }) => outcome === "connected").length;
    expect([connections(ofAlice), connections(ofBob)]).toEqual([1, 1]);
  });

  test("both begin before the word", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const [ofAlice, ofBob] = [early(alice, bob), early(bob, alice)];
    await until("both have tried", () => ofAlice.attempts.length > 0 && ofBob.attempts.length > 0);
    ofBob.punch.introduce({ role: "controlled", token }, 8_000);
    ofAlice.punch.introduce({ role: "controlling", token }, 8_000);
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    await expectSameConnection(...links);
    await closeBoth(...links);
    expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
  });

  test.each(["controlling", "controlled"] as const)(
    "a stranger that was accepted before the word does not win it (%s)",
    async (role) => {
      await using _ = noSocketLeft();
      using alice = new Host(aliceIdentity);
      using bob = new Host(bobIdentity);
      using carol = new Host(carolIdentity);
      const token = newToken();
      const ofAlice = early(alice, bob, { candidates: [] });
      const ofCarol = start(carol, alice, opposite(role), token, { deadlineMs: 700 });
      await until("carol is connected", () =>
        ofCarol.attempts.some(({ outcome }) => outcome === "connected"),
      );
      ofAlice.punch.introduce({ role, token }, 8_000);
      const atCarol = await ofCarol.outcome;
      if (atCarol.is === "linked") await until("carol's link ends", () => !atCarol.link.isOpen);
      expect(ofAlice.outcomes).toEqual([]);
      const ofBob = start(bob, alice, opposite(role), token);
      const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
      await expectSameConnection(...links);
      await closeBoth(...links);
    },
  );

  test("the word sets the deadline anew", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = early(alice, bob, { deadlineMs: 60_000 });
    await until("it was refused", () => ofAlice.attempts.some(({ outcome }) => outcome === "ECONNREFUSED"));
    ofAlice.punch.introduce({ role: "controlling", token: newToken() }, 20);
    expect((await failureOf(ofAlice)).reason).toBe("no-candidate-answered");
  });

  test.each([
    ["dialled", "peer"],
    ["was dialled", []],
  ] as const)("without a word it fails at its deadline and closes all, though it %s", async (_how, who) => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using listener = listening();
    const before = openSockets();
    const candidates = who === "peer" ? [{ endpoint: listener.endpoint, route: "private" as const }] : [];
    const ofAlice = early(alice, bob, { deadlineMs: 200, candidates });
    using caller = Socket.open(4);
    if (who !== "peer") caller.connect(alice.endpoint);
    await failureOf(ofAlice);
    caller.close();
    expect(ofAlice.outcomes.length).toBe(1);
    await until("all is closed", () => openSockets().every((socket) => before.includes(socket)));
  });

  test("aborted before the word, it is over, and the word does not revive it", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = early(alice, bob);
    ofAlice.punch.abort("peer-left", "gone");
    ofAlice.punch.introduce({ role: "controlling", token: newToken() }, 20);
    expect([ofAlice.punch.isOver, ofAlice.outcomes]).toEqual([
      true,
      [{ is: "failed", reason: "peer-left", detail: "gone" }],
    ]);
    await expectLinked(alice, bob);
  });
});

// --- kinds of candidates -------------------------------------------------------------------------------------

describe("a candidate", () => {
  const started = ({ attempts }: Started) => attempts.filter(({ outcome }) => outcome === "started");

  test("that wants a fresh port has one of its own, at every try", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const candidates = [{ endpoint: bob.endpoint, route: "public" as const, isFresh: true }];
    const ofAlice = start(alice, bob, "controlling", newToken(), { candidates });
    await until("it has tried thrice", () => started(ofAlice).length >= 3);
    ofAlice.punch.abort("peer-left", "");
    const { port } = splitEndpoint(alice.endpoint);
    expect(ofAlice.attempts.map(({ localPort }) => localPort)).not.toContain(port);
    // A refusal is told with the port that was refused.
    const [first, second] = ofAlice.attempts;
    expect([first!.outcome, second!.outcome, second!.localPort]).toEqual([
      "started",
      "ECONNREFUSED",
      first!.localPort,
    ]);
  });

  test("from a fresh port links, and the link says which", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    const candidates = [{ endpoint: bob.endpoint, route: "predicted" as const, isFresh: true }];
    const ofAlice = start(alice, bob, "controlling", token, { candidates });
    const ofBob = start(bob, alice, "controlled", token, { candidates: [] });
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    expect([links[0].route, links[1].route]).toEqual(["predicted", "listen"]);
    expect(links[0].local).not.toBe(alice.endpoint);
    expect(ofAlice.attempts.at(-1)).toMatchObject({
      outcome: "connected",
      localPort: splitEndpoint(links[0].local).port,
    });
    await expectSameConnection(...links);
    await closeBoth(...links);
  });

  test("for one try is left alone after its refusal, while others go on", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using nobody = reserved();
    const [once, often] = [nobody.endpoint, bob.endpoint];
    const candidates = [
      { endpoint: once, route: "birthday" as const, isOnce: true },
      { endpoint: often, route: "private" as const },
    ];
    const ofAlice = start(alice, bob, "controlling", newToken(), { candidates });
    const tries = (endpoint: Endpoint) => started(ofAlice).filter(({ remote }) => remote === endpoint).length;
    await until("the other was tried five times", () => tries(often) >= 5);
    ofAlice.punch.abort("peer-left", "");
    expect(tries(once)).toBe(1);
  });

  test("waits for its turn: none starts before its time, nor before the punch does", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const after = [60, 0, 30];
    using three = new DisposableStack();
    const candidates = after.map((afterMs) => ({
      endpoint: three.use(reserved()).endpoint,
      route: "birthday" as const,
      isOnce: true,
      afterMs,
    }));
    const ofAlice = start(alice, bob, "controlling", newToken(), { candidates, startInMs: 20 });
    await until("all have started", () => started(ofAlice).length === 3);
    ofAlice.punch.abort("peer-left", "");
    expect(started(ofAlice).map(({ remote }) => remote)).toEqual(
      [1, 2, 0].map((index) => candidates[index]!.endpoint),
    );
    for (const { remote, atMs } of started(ofAlice)) {
      const { afterMs } = candidates.find(({ endpoint }) => endpoint === remote)!;
      expect(atMs).toBeGreaterThanOrEqual(20 + afterMs);
    }
  });

  test("of which there are 512, all refused: one failure, one phrase, no socket left", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using nobody = reserved();
    const before = openSockets();
    const { endpoint } = nobody;
    const candidates = Array.from({ length: 512 }, (_, index) => ({
      endpoint,
      route: "birthday" as const,
      isFresh: true,
      isOnce: true,
      afterMs: Math.floor(index / 64),
    }));
    const ofAlice = start(alice, bob, "controlling", newToken(), { candidates, deadlineMs: 60_000 });
    const refused = () => ofAlice.attempts.filter(({ outcome }) => outcome === "ECONNREFUSED").length;
    await until("all are refused", () => refused() === 512);
    ofAlice.punch.introduce(ofAlice.punch.introduction!, 0); // the deadline, now
    expect(await failureOf(ofAlice)).toEqual({
      reason: "no-candidate-answered",
      detail: "birthday 127.0.0.1: 512 attempts, ECONNREFUSED",
    });
    expect([started(ofAlice).length, refused(), ofAlice.outcomes.length]).toEqual([512, 512, 1]);
    await until("all is closed", () => openSockets().every((socket) => before.includes(socket)));
  });

  test("of 512, one is right: it links, and all others are closed", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const token = newToken();
    using nobody = reserved();
    const candidates = Array.from({ length: 512 }, (_, index) => ({
      endpoint: index === 300 ? bob.endpoint : nobody.endpoint,
      route: "birthday" as const,
      isFresh: true,
      isOnce: true,
    }));
    const ofBob = start(bob, alice, "controlled", token, { candidates: [] });
    const ofAlice = start(alice, bob, "controlling", token, { candidates });
    const links = [await linkOf(ofAlice), await linkOf(ofBob)] as const;
    expect([links[0].route, links[0].remote]).toEqual(["birthday", bob.endpoint]);
    await expectSameConnection(...links);
    await closeBoth(...links);
    expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
  });
});

// --- the limits of the process -------------------------------------------------------------------------------

test.skipIf(!isLinux)("running out of descriptors fails the punch, not the program", async () => {
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
