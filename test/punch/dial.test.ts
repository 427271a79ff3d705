/** A punch that begins before the word of the introducer, and each kind of candidate. */
import { describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { linuxDescribe } from "../needing-fixture.ts";
import { type Attempt, type PunchOptions } from "../../native/punch/punch.ts";
import { pollSockets, Socket } from "../../native/host/socket.ts";
import { splitEndpoint, type Endpoint } from "../../protocol.ts";
import { listening, noSocketLeft, openSockets, reserved, toil, until } from "../native-fixture.ts";

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
  linkedOn,
  linkOf,
  newToken,
  opposite,
  start,
  type Outcome,
  type Started,
} from "./hosts-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

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
      bond: bondOf(host.identity, peer.identity),
      candidates: [{ endpoint: peer.endpoint, route: "private" }],
      startInMs: 0,
      deadlineMs: 8_000,
      isReachable: true,
      onLinked: (channel) => ended(linkedOn(channel)),
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
    ofAlice.punch.introduce({ role, token }, patienceMs);
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
    ofBob.punch.introduce({ role: "controlled", token }, patienceMs);
    ofAlice.punch.introduce({ role: "controlling", token }, patienceMs);
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
      ofAlice.punch.introduce({ role, token }, patienceMs);
      const atCarol = await ofCarol.outcome;
      if (atCarol.is === "linked") await until("carol's link ends", () => !atCarol.channel.isOpen);
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

linuxDescribe("a NAT that answers, and then no more", () => {
  /** It refuses, until its filter drops what comes from there without a word. */
  function silence(host: Host, from: Host): Socket {
    const listener = Socket.open(4).shareport();
    listener.bind(splitEndpoint(host.endpoint).port);
    listener.dropFrom([from.endpoint]);
    listener.listen(1);
    return listener;
  }

  test("is told, so that the next round can begin on fresh ports", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    let unheard = 0;
    const ofAlice = start(alice, bob, "controlled", newToken(), { onUnheard: () => unheard++ });
    await until("she was refused", () => ofAlice.attempts.some(({ outcome }) => outcome === "ECONNREFUSED"));
    expect(unheard).toBe(0);
    using listener = silence(bob, alice);
    await until("it is told", () => unheard > 0);
    expect(listener.isOpen).toBe(true);
    ofAlice.punch.abort("timed-out", "the test is over");
  });

  test("what has answered while this program did something else was not silent", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    let unheard = 0;
    const ofAlice = start(alice, bob, "controlling", newToken(), { onUnheard: () => unheard++ });
    const tries = () => ofAlice.attempts.filter(({ outcome }) => outcome === "started").length;
    await Promise.resolve(); // the first SYN has left, was refused, and the next one has left
    expect(tries()).toBe(2);
    toil(100);
    await until("she tries again", () => tries() > 2);
    expect(unheard).toBe(0);
    ofAlice.punch.abort("timed-out", "the test is over");
  });

  test("who was accepted is not sent away for what kept this program from hearing it", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    const ofAlice = start(alice, bob, "controlled", newToken());
    const tries = () => ofAlice.attempts.filter(({ outcome }) => outcome === "started").length;
    using caller = Socket.open(4);
    caller.connect(alice.endpoint);
    await until("she has looked since, and accepted it", () => tries() >= 3);
    const isClosed = () => pollSockets([{ socket: caller, for: "read", value: undefined }]).length > 0;
    const now = performance.now.bind(performance);
    {
      using _later = spyOn(performance, "now").mockImplementation(() => now() + 6_000);
      const enough = tries() + 5;
      await until("she has looked again and again", () => tries() >= enough);
      expect(isClosed()).toBe(false);
    }
    ofAlice.punch.abort("timed-out", "the test is over");
  });

  test("one that never answered may drop by nature, and is not told", async () => {
    await using _ = noSocketLeft();
    using alice = new Host(aliceIdentity);
    using bob = new Host(bobIdentity);
    using listener = silence(bob, alice);
    let unheard = 0;
    const ofAlice = start(alice, bob, "controlled", newToken(), {
      deadlineMs: 300,
      onUnheard: () => unheard++,
    });
    await ofAlice.outcome;
    expect([unheard, listener.isOpen]).toEqual([0, true]);
  });
});
