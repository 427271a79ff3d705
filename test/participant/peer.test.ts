/** RemotePeers of two programs, with the introducer's words said by the test: real punches, channels and links. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Channel } from "../../native/secure/channel.ts";
import { encodeCount, encodeFrame, encodeHello, frame, resumeStatus } from "../../native/session/frame.ts";
import { type PeerOwner, RemotePeer } from "../../native/participant/peer.ts";
import type { PeerEvent } from "../../native/participant/peer-events.ts";
import {
  type Takes,
  type Endpoint,
  type FailureReason,
  maxTextLength,
  type Peer,
  type Role,
  type ToIntroducer,
  ToldError,
  UserError,
} from "../../protocol.ts";
import type { Stream } from "../../native/session/stream.ts";
import type { PunchMessage } from "../../native/punch/encounter.ts";
import type { PunchContext } from "../../native/punch/context.ts";
import { Targets } from "../../native/punch/targets.ts";
import { PunchPort } from "../../native/punch/punch-port.ts";
import { Host, newToken, opposite } from "../punch/hosts-fixture.ts";
import { PastSessions } from "../../native/participant/past-sessions.ts";
import { Wishes } from "../../native/participant/wishes.ts";
import { listening, noSocketLeft, refusing, until } from "../native-fixture.ts";
import { joining, Scripted } from "../punch/relay-fixture.ts";
import { aliceIdentity, bobIdentity, credentialsOf } from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { longTest } from "../needing-fixture.ts";

setDefaultTimeout(testMs);

type Told = Extract<PeerEvent, { event: string }>;
const minute = 60_000;

/** One program, as far as a RemotePeer needs it, and the one peer that it knows. */
class Program implements Disposable, PeerOwner {
  readonly host: Host;
  readonly instance: string;
  readonly isVerbose = false;
  readonly wishes = new Wishes();
  readonly past = new PastSessions();
  keepMs = minute;
  peer!: RemotePeer;
  readonly events: Told[] = [];
  readonly sent: ToIntroducer[] = [];
  readonly streams: Stream[] = [];
  admits = true;
  takes: Takes = "any";
  introducer: Endpoint = refusing();
  isRegistered = true;
  admissions = 0;
  /** What the introducer does with what we say. */
  onSent: (message: ToIntroducer) => void = () => {};

  constructor(host: Host, instance: string) {
    this.host = host;
    this.instance = instance.repeat(16);
  }

  /** The introducer says that an introduction with the peer has failed. */
  fails(reason: FailureReason, token = newToken()): void {
    this.peer.introducing.failed({ type: "failed", peer: this.peer.id, token, reason });
  }

  context(): PunchContext | undefined {
    if (!this.isRegistered) return undefined;
    const { identity, punchPort, endpoint } = this.host;
    const credentials = credentialsOf(identity);
    return {
      ...{ id: 1, introducer: this.introducer, credentials, takes: this.takes, port: punchPort },
      ...{ public: endpoint, private: [endpoint], probes: [], behaviour: undefined, roundTripMs: undefined },
      ...{ mapped: undefined, probeToken: undefined, self: this.listed(1), bondKey: new Uint8Array(32) },
      segmentClamp: 0,
      handshakeStuck: () => {},
      doubtMapping: () => {},
      measureFresh: (measure) => measure(),
      portFor: (port) => new PunchPort(port, credentials, new Targets()),
      send: (message) => {
        this.sent.push(message);
        queueMicrotask(() => this.onSent(message));
      },
    };
  }
  emit(event: PeerEvent): void {
    this.events.push(event);
  }
  stream(_peer: RemotePeer, stream: Stream): void {
    this.streams.push(stream);
  }
  threw(_peer: RemotePeer, error: unknown): void {
    throw error;
  }
  hasQuit = false;
  changed(): void {}
  silent(): void {}
  measureAnew(): Promise<void> {
    return Promise.resolve();
  }
  admit() {
    this.admissions++;
    return this.admits ? { mayTryBirthday: () => true, linked: () => {} } : undefined;
  }

  /** As others know it. */
  listed(id: number): Peer {
    const { identity, endpoint } = this.host;
    const { instance } = this;
    const name = identity === aliceIdentity ? "alice" : "bob";
    const own = { private: [endpoint], public: endpoint, mapping: "unknown", since: 0 } as const;
    return { id, name, instance, fingerprint: identity.fingerprint, ...own, private: [endpoint] };
  }

  told(): string[] {
    return this.events.map((one) => one.event);
  }
  last<T extends Told["event"]>(event: T): Extract<Told, { event: T }> | undefined {
    return this.events.findLast((one): one is Extract<Told, { event: T }> => one.event === event);
  }
  said<T extends ToIntroducer["type"]>(type: T): Extract<ToIntroducer, { type: T }>[] {
    return this.sent.filter((one): one is Extract<ToIntroducer, { type: T }> => one.type === type);
  }
  /** The path is gone: both ends are reset. */
  cut(): void {
    (this.peer.link!.session.carrier as Channel).reject("it was cut");
  }

  [Symbol.dispose](): void {
    this.host[Symbol.dispose]();
  }
}

interface Pair extends AsyncDisposable {
  alice: Program;
  bob: Program;
  /** The introducer has both punch. */
  introduce(asker: "alice" | "bob", token?: string): void;
  /** It offers both a relay; who asked is controlling. */
  offerRelay(asker: "alice" | "bob", token?: string): void;
  linked(): Promise<void>;
}

const round = {
  type: "punch",
  startInMs: 0,
  way: "direct",
  round: 1,
  last: true,
  deadlineMs: 5_000,
} as const;
const punchFor = (peer: Peer, role: Role, token: string): PunchMessage => ({ ...round, peer, role, token });

/** Alice has the lower instance, so that it is she who asks when their link has no channel; and the introducer obeys. */
function acquainted(distrust?: string): Pair {
  const alice = new Program(new Host(aliceIdentity), "1");
  const bob = new Program(new Host(bobIdentity), "2");
  alice.peer = new RemotePeer(bob.listed(2), alice, distrust);
  bob.peer = new RemotePeer(alice.listed(1), bob, distrust);
  const introduce = (asker: "alice" | "bob", token = newToken()) => {
    const role = asker === "alice" ? "controlling" : "controlled";
    alice.peer.introducing.punch(punchFor(bob.listed(2), role, token));
    bob.peer.introducing.punch(punchFor(alice.listed(1), opposite(role), token));
  };
  const offerRelay = (asker: "alice" | "bob", token = newToken()) => {
    const role = asker === "alice" ? "controlling" : "controlled";
    alice.peer.introducing.relay({ type: "relay", peer: bob.listed(2), role, token });
    bob.peer.introducing.relay({ type: "relay", peer: alice.listed(1), role: opposite(role), token });
  };
  alice.onSent = ({ type }) => void (type === "connect" && introduce("alice"));
  bob.onSent = ({ type }) => void (type === "connect" && introduce("bob"));
  const linked = async () => {
    const { state: a } = alice.peer;
    if (a === "known") void alice.peer.connect();
    await until("both are linked", () => alice.peer.state === "linked" && bob.peer.state === "linked");
    await alice.peer.talk.ping();
  };
  const dispose = async () => {
    await Promise.all([alice.peer.quit(), bob.peer.quit()]);
    alice[Symbol.dispose]();
    bob[Symbol.dispose]();
  };
  return { alice, bob, introduce, offerRelay, linked, [Symbol.asyncDispose]: dispose };
}

// --- from known to linked and back -------------------------------------------------------------------------

test("a link, from `connect` to `disconnect`: both are told alike, and so is the introducer", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  expect([alice.peer.state, alice.peer.isIdle]).toEqual(["known", true]);
  const connecting = alice.peer.connect();
  expect(alice.peer.state).toBe("punching");
  const link = await connecting;
  expect(alice.peer.link).toBe(link);
  await until("bob's is there", () => bob.peer.state === "linked");
  const [atAlice, atBob] = [alice.last("linked")!, bob.last("linked")!];
  expect([atAlice.local, atAlice.remote]).toEqual([atBob.remote, atBob.local]);
  expect([atAlice.peer, atAlice.name, atBob.peer, atBob.name]).toEqual([2, "bob", 1, "alice"]);
  const { route, local, remote } = link;
  expect(alice.said("linked")).toMatchObject([{ peer: 2, route, local, remote }]);
  expect(bob.said("linked")[0]!.token).toBe(alice.said("linked")[0]!.token);
  await Promise.all([alice.peer.talk.say("hello"), bob.peer.talk.say("welcome"), bob.peer.talk.ping()]);
  expect([alice.last("said")!.text, bob.last("said")!.text]).toEqual(["welcome", "hello"]);
  expect(alice.peer.row).toMatchObject({ state: "linked", route, local, remote, carriers: 1, present: true });
  expect(() => alice.peer.connect()).toThrow("already linked with bob");
  await alice.peer.disconnect();
  await until("bob has heard", () => bob.peer.state === "known");
  expect([alice.last("unlinked"), bob.last("unlinked")]).toMatchObject([
    { reason: "disconnected", detail: "" },
    { reason: "peer-disconnected", detail: "" },
  ]);
  expect([alice.said("unlinked"), bob.said("unlinked")]).toMatchObject([
    [{ reason: "disconnected" }],
    [{ reason: "peer-disconnected" }],
  ]);
  expect([alice.told(), bob.told()]).toEqual([
    ["punching", "linked", "said", "sent", "unlinked"],
    ["punching", "linked", "said", "sent", "pong", "unlinked"],
  ]);
  expect([alice.peer.isIdle, bob.peer.isIdle]).toEqual([true, true]);
});

test("an introduction that can't even begin, for want of descriptors, has failed, and nothing is thrown", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  const refuse = () => {
    throw new Error("EMFILE");
  };
  for (const program of [alice, bob]) {
    const context = program.context()!;
    Object.defineProperty(context.port, "punch", { value: refuse });
  }
  await expect(alice.peer.connect()).rejects.toThrow("no-candidate-answered");
  expect(alice.last("failed")).toMatchObject({ detail: "we could not try: EMFILE" });
  await until("bob, who was asked, has failed, too", () => bob.peer.state === "failed");
  expect([alice.peer.state, alice.peer.isIdle, bob.peer.isIdle]).toEqual(["failed", true, true]);
});

test("an introduction that we did not ask for is declined where it is one too many", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  bob.admits = false;
  pair.introduce("alice", "a".repeat(32));
  expect(bob.said("failed")).toEqual([
    { type: "failed", peer: 1, token: "a".repeat(32), reason: "refused-by-peer" },
  ]);
  expect([bob.peer.isIdle, bob.admissions]).toEqual([true, 1]);
  // Alice has not asked either: what would make her controlling answers something cancelled.
  expect(alice.said("failed")).toMatchObject([{ token: "a".repeat(32), reason: "refused-by-peer" }]);
  expect([alice.peer.isIdle, alice.admissions, alice.events]).toEqual([true, 0, []]);
});

test.each(["measure", "punch", "relay"] as const)(
  "the answer (%s) to a `connect` that was cancelled meanwhile is declined",
  async (answer) => {
    await using _ = noSocketLeft();
    await using pair = acquainted();
    const { alice, bob } = pair;
    alice.onSent = () => {}; // the introducer is slow
    const connecting = alice.peer.connect();
    const outcome = connecting.then(
      () => "linked",
      (error: Error) => error,
    );
    await alice.peer.disconnect();
    expect(await outcome).toBeInstanceOf(ToldError);
    expect(alice.last("failed")!.reason).toBe("cancelled");
    const token = newToken();
    const told = { peer: bob.listed(2), role: "controlling", token } as const;
    if (answer === "punch") alice.peer.introducing.punch({ ...round, ...told });
    else if (answer === "relay") alice.peer.introducing.relay({ type: "relay", ...told });
    else alice.peer.introducing.measure({ type: "measure", way: "fresh", ...told });
    expect(alice.said("failed")).toEqual([{ type: "failed", peer: 2, token, reason: "refused-by-peer" }]);
    expect([alice.peer.isIdle, alice.peer.state, alice.admissions]).toEqual([true, "failed", 0]);
  },
);

test("whom we wished for when we registered is linked with without another word; a wish counts once", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  alice.wishes.add(["bob", "bob", "7", "two words"]);
  expect(alice.wishes.names).toEqual(["bob"]);
  pair.introduce("alice");
  const link = await alice.peer.connect(); // it joins what is under way
  expect([alice.peer.link, alice.said("connect"), alice.admissions]).toEqual([link, [], 0]);
  await until("bob is linked", () => bob.peer.state === "linked");
  await alice.peer.disconnect();
  await until("bob has heard", () => bob.peer.state === "known");
  pair.introduce("alice", "a".repeat(32));
  expect(alice.said("failed")).toMatchObject([{ token: "a".repeat(32), reason: "refused-by-peer" }]);
});

test("who asks for the peer itself wishes no more", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  pair.alice.wishes.add(["bob"]);
  await pair.linked();
  expect(pair.alice.wishes.names).toEqual([]);
});

test("who asks twice at once has asked once, and both have the link", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice } = pair;
  const [one, other] = [alice.peer.connect(), alice.peer.connect()];
  expect(await one).toBe(await other);
  expect([alice.said("connect").length, alice.told()]).toEqual([1, ["punching", "linked"]]);
});

test("a text that is too long, or no text, is not sent, and that is told with how it begins", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  await pair.linked();
  for (const text of [`long${"x".repeat(maxTextLength)}`, "half\ud800"])
    await expect(alice.peer.talk.say(text)).rejects.toThrow(`"${text.slice(0, 4)}`);
  await alice.peer.talk.say("x".repeat(maxTextLength));
  expect(bob.told().filter((event) => event === "said")).toHaveLength(1);
});

test("a relay that we do not take is declined, and nothing is left waiting for it", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  alice.takes = "direct";
  const token = newToken();
  alice.peer.introducing.relay({ type: "relay", peer: bob.listed(2), role: "controlled", token }); // unasked
  expect([alice.said("failed"), alice.peer.isIdle]).toEqual([
    [{ type: "failed", peer: 2, token, reason: "refused-by-peer" }],
    true,
  ]);
  // Beside a direct round it is declined, and the round goes on.
  await pair.linked();
  expect(alice.peer.link!.route).not.toBe("relay");
});

test("a wish that has joined what the peer began asks, once nobody comes for that", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  using relay = await Scripted.answering(() => {});
  const { alice, bob } = pair;
  bob.introducer = relay.endpoint;
  await pair.linked();
  // It has crossed what both have said of their link, and she declines it.
  const role = "controlled";
  bob.peer.introducing.relay({ type: "relay", peer: alice.listed(1), role, token: newToken() });
  await until("he waits for her", () => relay.visitors.length === 1);
  await alice.peer.disconnect();
  await until("he has heard of it", () => bob.told().includes("unlinked"));
  const connecting = bob.peer.connect();
  expect(bob.said("connect")).toEqual([]);
  relay.visitors[0]!.destroy();
  expect((await connecting).route).not.toBe("relay");
  expect(bob.said("connect")).toHaveLength(1);
  expect(bob.told()).not.toContain("failed");
});

// --- an untrusted peer -------------------------------------------------------------------------------------

test("an untrusted peer is never dialled, let in, or linked, whatever the introducer says", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted("its proof is of another room");
  const { alice, bob } = pair;
  using victim = listening();
  using relay = await Scripted.answering(() => {});
  alice.introducer = relay.endpoint;
  const doubtful = { ...bob.listed(2), private: [victim.endpoint], public: victim.endpoint };
  expect(alice.peer.row).toMatchObject({ state: "untrusted", distrust: "its proof is of another room" });
  expect(() => alice.peer.connect()).toThrow(
    new UserError("bob is not trusted: its proof is of another room"),
  );
  const tokens = Array.from({ length: 5 }, newToken) as [string, string, string, string, string];
  alice.peer.introducing.measure({ type: "measure", peer: doubtful, token: tokens[0], way: "fresh" });
  for (const [role, index] of [
    ["controlled", 1],
    ["controlling", 2],
  ] as const) {
    alice.peer.introducing.punch(punchFor(doubtful, role, tokens[index]));
    alice.peer.introducing.relay({ type: "relay", peer: doubtful, role, token: tokens[index + 2]! });
  }
  alice.fails("timed-out");
  alice.peer.introducing.refused({ message: "nothing" });
  const declined = alice.said("failed").map(({ token, reason }) => `${token} ${reason}`);
  expect(declined.sort()).toEqual(tokens.map((token) => `${token} refused-by-peer`).sort());
  expect(alice.sent.length).toBe(5); // it neither asked nor measured
  expect([alice.events, alice.admissions, alice.peer.isIdle]).toEqual([[], 0, true]);
  expect(alice.peer.row).toMatchObject({ state: "untrusted", distrust: "its proof is of another room" });
  // Somebody else's punch takes milliseconds; by then ours would have dialled, too.
  await using others = acquainted();
  await others.linked();
  expect([victim.socket.accept(), relay.visitors.length]).toEqual([undefined, 0]);
  await expect(alice.peer.talk.say("hello")).rejects.toThrow(UserError);
});

// --- coming back -------------------------------------------------------------------------------------------

test("a peer whose program was started anew: the link is over at once, its streams are told, and the next one works", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  await pair.linked();
  const errors: Error[] = [];
  alice.peer.link!.open("a test").on("error", (error) => errors.push(error));
  alice.peer.link?.abandon("peer-restarted", "");
  expect([alice.last("unlinked"), alice.peer.link]).toMatchObject([{ reason: "peer-restarted" }, undefined]);
  await until("the stream has failed", () => errors.length > 0);
  await until("bob's has ended", () => bob.peer.state === "known");
  await pair.linked();
});

test("a peer that begins a new link while we hold one has been started anew: what is held is told first", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  await pair.linked();
  // Alice's program forgets all, as after a crash of which nobody has heard.
  const crashed = alice.peer;
  (crashed.link!.session.carrier as Channel).destroy();
  alice.peer = new RemotePeer(bob.listed(2), alice);
  const old = bob.peer.link!;
  await until("bob knows that it broke", () => bob.peer.state === "returning");
  await alice.peer.connect();
  await until("bob has the new one", () => bob.peer.link !== undefined && bob.peer.link !== old);
  const story = bob.told().filter((event) => event !== "moved" && event !== "punching" && event !== "pong");
  expect(story).toEqual(["linked", "broken", "unlinked", "linked"]);
  await alice.peer.talk.say("hello");
  expect([bob.last("said")!.text, await old.ended]).toEqual(["hello", bob.last("unlinked")!.reason]);
  crashed.link?.abandon("peer-restarted", ""); // nothing of it may seek on
});

test("a link that the peer has given up, and forgotten us with it: that is told as it is, and to the introducer by both", async () => {
  await using _ = noSocketLeft();
  await using pair = acquainted();
  const { alice, bob } = pair;
  await pair.linked();
  alice.onSent = () => {}; // it does not answer yet
  const givenUp = bob.peer.link!;
  bob.cut();
  await until("both know", () => alice.peer.state === "returning" && bob.peer.state === "returning");
  givenUp.abandon("connection-lost", "it did not come back");
  bob.peer = new RemotePeer(alice.listed(1), bob); // as after we have left, and come back
  const token = newToken();
  await until("alice asks", () => alice.said("connect").length > 1);
  pair.introduce("alice", token);
  await until("alice's has ended", () => alice.peer.link === undefined);
  expect(alice.last("unlinked")).toMatchObject({
    reason: "connection-lost",
    detail: "the peer had given it up",
  });
  const declined = { token, reason: "refused-by-peer" } as const;
  await until("bob has said so", () => bob.said("failed").length > 0);
  expect([alice.said("failed"), bob.said("failed")]).toMatchObject([[declined], [declined]]);
  // Before it says that the link is over, or what the user does about it could come first.
  const told = alice.sent.filter(({ type }) => type === "failed" || type === "unlinked");
  expect(told.map(({ type }) => type)).toEqual(["failed", "unlinked"]);
});

// --- two at once -------------------------------------------------------------------------------------------

test("two links that both sides begin at once become one, on both sides the same", async () => {
  await using _ = noSocketLeft();
  for (let time = 0; time < 12; time++) {
    using relay = await joining();
    await using pair = acquainted();
    const { alice, bob } = pair;
    alice.introducer = bob.introducer = relay.endpoint;
    alice.onSent = bob.onSent = () => {};
    const connecting = [alice.peer.connect(), bob.peer.connect()];
    // On the direct channel alice speaks first, on the relayed one bob does.
    if (time % 2 === 0) pair.offerRelay("bob");
    pair.introduce("alice");
    if (time % 2 === 1) pair.offerRelay("bob");
    await Promise.all(connecting);
    const settled = () => {
      const [a, b] = [alice.peer.link, bob.peer.link];
      return a?.session.id === b?.session.id && a?.isOpen === true && b?.isOpen === true;
    };
    await until("they agree on one", settled);
    await Promise.all([alice.peer.talk.say("hello"), bob.peer.talk.say("welcome")]);
    expect([alice.last("said")!.text, bob.last("said")!.text]).toEqual(["welcome", "hello"]);
    for (const { events } of [alice, bob]) {
      const balance =
        events.filter(({ event }) => event === "linked").length -
        events.filter(({ event }) => event === "unlinked").length;
      expect(balance).toBe(1);
    }
  }
});

// --- a relayed link ----------------------------------------------------------------------------------------

describe("a relayed link", () => {
  /** Linked by relay, while alice still punches: bob has not been told to. */
  async function relayed() {
    const relay = await joining();
    const pair = acquainted();
    const { alice, bob } = pair;
    alice.introducer = bob.introducer = relay.endpoint;
    alice.onSent = bob.onSent = () => {};
    const connecting = alice.peer.connect();
    const token = newToken();
    alice.peer.introducing.punch(punchFor(bob.listed(2), "controlling", token));
    pair.offerRelay("alice");
    await connecting;
    await until("bob's is there", () => bob.peer.state === "linked");
    const dispose = async () => {
      await pair[Symbol.asyncDispose]();
      relay[Symbol.dispose]();
    };
    return { ...pair, relay, token, [Symbol.asyncDispose]: dispose };
  }

  test("is told of with its limit, and with each reason that there is no direct way, once", async () => {
    await using _ = noSocketLeft();
    await using pair = await relayed();
    const { alice, bob, token } = pair;
    expect(alice.last("linked")).toMatchObject({ route: "relay", limit: 1024 * 1024 });
    expect(alice.last("linked")).not.toHaveProperty("why");
    const reasons = ["no-candidate-answered", "no-candidate-answered", "peer-left", "handshake-cut"] as const;
    for (const [round, reason] of reasons.entries()) {
      const of = round === 0 ? token : newToken();
      if (round > 0) alice.peer.introducing.punch(punchFor(bob.listed(2), "controlled", of));
      alice.fails(reason, of);
    }
    const told = alice.events.filter(({ event }) => event === "still-relayed");
    expect(told).toMatchObject([{ reason: "no-candidate-answered" }, { reason: "handshake-cut" }]);
  });

  test("moves to the direct channel that comes of the same introduction, without a gap", async () => {
    await using _ = noSocketLeft();
    await using pair = await relayed();
    const { alice, bob, token } = pair;
    expect([alice.last("linked")!.route, bob.last("linked")!.route]).toEqual(["relay", "relay"]);
    bob.peer.introducing.punch(punchFor(alice.listed(1), "controlled", token));
    await until(
      "both have moved",
      () => alice.last("moved") !== undefined && bob.last("moved") !== undefined,
    );
    expect([alice.last("moved")!.gapMs, bob.last("moved")!.gapMs]).toEqual([0, 0]);
    expect(alice.peer.link!.route).not.toBe("relay");
    expect(alice.said("linked").map(({ route }) => route === "relay")).toEqual([true, false]);
    await alice.peer.talk.say("hello");
    await until("the relay is left", () => pair.relay.visitors.every(({ destroyed }) => destroyed));
    expect(alice.peer.isIdle).toBe(false);
  });

  test("that is ended while a direct way is still sought does not come again by it", async () => {
    await using _ = noSocketLeft();
    await using pair = await relayed();
    const { alice, bob, token } = pair;
    await alice.peer.disconnect();
    expect([alice.peer.isIdle, alice.peer.state]).toEqual([true, "known"]);
    expect(alice.said("failed")).toMatchObject([{ token, reason: "refused-by-peer" }]);
    await until("bob has heard", () => bob.last("unlinked") !== undefined);
    bob.peer.introducing.punch({ ...punchFor(alice.listed(1), "controlled", token), deadlineMs: 300 });
    await until("bob's punch is over", () => bob.peer.isIdle);
    expect([alice.told().at(-1), bob.told().at(-1), alice.peer.link]).toEqual([
      "unlinked",
      "failed",
      undefined,
    ]);
  });
});

// These wait, and so do it together.

describe("a link that broke", () => {
  test.concurrent(
    "is sought at once by the side with the lower instance alone, and moves: what was said meanwhile arrives",
    async () => {
      await using _ = noSocketLeft();
      await using pair = acquainted();
      const { alice, bob } = pair;
      await pair.linked();
      const [{ link }, asked] = [alice.peer, alice.said("connect").length];
      alice.cut();
      await until("both know", () => alice.last("broken") !== undefined && bob.last("broken") !== undefined);
      const texts = Promise.all([
        alice.peer.talk.say("one"),
        bob.peer.talk.say("two"),
        alice.peer.talk.say("three"),
      ]);
      await texts;
      await until(
        "both have told",
        () => alice.last("moved") !== undefined && bob.last("moved") !== undefined,
      );
      expect(alice.last("broken")).toMatchObject({ reason: "it was cut" });
      expect(alice.last("moved")!.gapMs).toBeGreaterThan(0);
      expect(bob.events.flatMap((one) => (one.event === "said" ? one.text : []))).toEqual(["one", "three"]);
      expect([alice.said("connect").length - asked, bob.said("connect")]).toEqual([1, []]);
      expect(alice.said("connect").at(-1)).toEqual({ type: "connect", peer: 2 }); // a relay would do
      // What a link does to live on is its own business, and a new channel is reported by its token.
      expect(alice.told().filter((event) => event === "punching").length).toBe(1);
      expect(new Set(alice.said("linked").map(({ token }) => token)).size).toBe(2);
      expect(bob.said("linked").map(({ token }) => token)).toEqual(
        alice.said("linked").map(({ token }) => token),
      );
      expect([alice.peer.link, alice.peer.state, alice.peer.row.carriers]).toEqual([link, "linked", 2]);
      expect([alice.said("unlinked"), bob.said("unlinked")]).toEqual([[], []]);
    },
  );

  test.concurrent(
    "that is lost again and again is sought after growing pauses: the introducer counts who asks",
    async () => {
      await using pair = acquainted();
      const { alice, bob } = pair;
      await pair.linked();
      const asked = () => alice.said("connect").length + bob.said("connect").length;
      const before = asked();
      const waits: number[] = [];
      for (let i = 1; i <= 4; i++) {
        const cutAt = performance.now();
        alice.cut();
        await until("it has moved", () => alice.told().filter((one) => one === "moved").length === i);
        waits.push(performance.now() - cutAt);
        await until("bob's, too", () => bob.told().filter((one) => one === "moved").length === i);
      }
      expect(asked() - before).toBe(4);
      // At once, then after 0.25, 0.5 and 1 s, jittered by half: never less than half of it.
      for (const [i, leastMs] of [0, 125, 250, 500].entries()) expect(waits[i]).toBeGreaterThan(leastMs);
    },
    testMs,
  );

  test.concurrent("is sought by the other side when nothing comes of it", async () => {
    await using _ = noSocketLeft();
    await using pair = acquainted();
    const { alice, bob } = pair;
    await pair.linked();
    alice.onSent = () => {}; // nobody hears her
    alice.isRegistered = false;
    alice.cut();
    await until("both know", () => alice.peer.state === "returning" && bob.peer.state === "returning");
    expect(bob.said("connect")).toEqual([]);
    bob.onSent = ({ type }) => {
      if (type !== "connect") return;
      alice.isRegistered = true;
      pair.introduce("bob");
    };
    await until("bob asks", () => bob.said("connect").length > 0);
    await until("it has moved", () => alice.last("moved") !== undefined || bob.last("moved") !== undefined);
    expect(bob.said("connect").length).toBeGreaterThanOrEqual(1);
  });

  test.concurrent(
    "is sought with growing pauses, and one failure is no end",
    async () => {
      await using _ = noSocketLeft();
      await using pair = acquainted();
      const { alice, bob } = pair;
      await pair.linked();
      const askedAt: number[] = [];
      alice.onSent = ({ type }) => {
        if (type !== "connect") return;
        askedAt.push(performance.now());
        if (askedAt.length === 5) pair.introduce("alice");
        else alice.fails("no-candidate-answered");
      };
      bob.onSent = ({ type }) => {
        if (type === "connect") bob.fails("timed-out");
      };
      alice.cut();
      for (let tries = 2; tries <= 5; tries++) await until(`try ${tries}`, () => askedAt.length >= tries);
      await until("it has moved", () => alice.last("moved") !== undefined && bob.last("moved") !== undefined);
      const pauses = askedAt.slice(1).map((at, n) => at - askedAt[n]!);
      // Half of 250 ms at the least, and doubled each time.
      pauses.forEach((pause, n) => expect(pause).toBeGreaterThan(0.5 * 250 * 2 ** n - 5));
      expect([alice.last("failed"), alice.last("unlinked"), alice.peer.state]).toEqual([
        undefined,
        undefined,
        "linked",
      ]);
    },
    testMs,
  );

  test.concurrent(
    "waits while the peer is away, and is sought as soon as it is in the room again",
    async () => {
      await using _ = noSocketLeft();
      await using pair = acquainted();
      const { alice, bob } = pair;
      await pair.linked();
      const asked = alice.said("connect").length;
      alice.peer.left();
      bob.peer.introducerLost("it was restarted");
      expect([alice.peer.row.present, alice.peer.state]).toEqual([false, "linked"]); // links live on
      alice.cut();
      await until("both know", () => alice.peer.state === "returning" && bob.peer.state === "returning");
      const brokeAt = performance.now();
      await until("it would have been sought", () => performance.now() - brokeAt > 600);
      expect([alice.said("connect").length - asked, bob.said("connect").length]).toEqual([0, 0]);
      expect(alice.last("broken")).toMatchObject({ peer: null, name: "bob" });
      bob.peer.seen(alice.listed(7));
      alice.peer.seen(bob.listed(9));
      await until(
        "both have told",
        () => alice.last("moved") !== undefined && bob.last("moved") !== undefined,
      );
      expect(alice.said("connect").at(-1)).toEqual({ type: "connect", peer: 9 });
    },
  );

  test.concurrent("ends with its keep time, and is not sought any more", async () => {
    await using _ = noSocketLeft();
    await using pair = acquainted();
    const { alice, bob } = pair;
    alice.keepMs = bob.keepMs = 300;
    await pair.linked();
    alice.onSent = bob.onSent = () => {};
    alice.isRegistered = bob.isRegistered = false;
    alice.cut();
    await until("both have ended", () => !alice.peer.link && !bob.peer.link);
    expect(alice.last("unlinked")).toMatchObject({ reason: "connection-lost" });
    expect([alice.peer.state, alice.peer.isIdle]).toEqual(["known", true]);
    alice.isRegistered = true;
    const asked = alice.said("connect").length;
    alice.peer.networkChanged(true);
    const endedAt = performance.now();
    await until("it would have been sought", () => performance.now() - endedAt > 600);
    expect(alice.said("connect").length).toBe(asked);
  });

  test.concurrent("and is not kept ends at once, and nothing is sought", async () => {
    await using _ = noSocketLeft();
    await using pair = acquainted();
    const { alice, bob } = pair;
    alice.keepMs = bob.keepMs = 0;
    await pair.linked();
    const asked = alice.said("connect").length;
    alice.cut();
    await until("both have ended", () => !alice.peer.link && !bob.peer.link);
    expect(alice.last("unlinked")).toMatchObject({ reason: "connection-lost", detail: "it was cut" });
    expect([alice.told().includes("broken"), alice.said("connect").length]).toEqual([false, asked]);
  });

  test.concurrent(
    "that one side does not keep is over for the other, too, when that comes back",
    async () => {
      await using _ = noSocketLeft();
      await using pair = acquainted();
      const { alice, bob } = pair;
      alice.keepMs = 0;
      await pair.linked();
      alice.cut();
      await until("bob has heard", () => bob.last("unlinked") !== undefined);
      const reasons = [alice, bob].map((one) => one.last("unlinked")!.reason);
      expect(reasons).toEqual(["connection-lost", "connection-lost"]); // not "peer-restarted"
    },
  );
});

// --- peers that do not keep to it --------------------------------------------------------------------------

describe("a peer that was let in, and then", () => {
  /** Bob waits for a link, as the controlled side, and gets a nominated channel with those bytes. */
  async function nominatedBy(speak: (channel: Channel) => void) {
    const pair = acquainted();
    const { alice, bob } = pair;
    bob.onSent = () => {};
    const outcome = bob.peer.connect().then(
      () => "linked",
      (error: Error) => error.message,
    );
    const token = newToken();
    const { promise, resolve } = Promise.withResolvers<Channel>();
    alice.host.punchPort.punch({
      introduction: { role: "controlling", token },
      bond: { key: new Uint8Array(32), self: alice.listed(1), peer: bob.listed(2) },
      candidates: [{ endpoint: bob.host.endpoint, route: "public" }],
      ...{ startInMs: 0, deadlineMs: 5_000, isReachable: true },
      onLinked: resolve,
      onFailed: () => {},
    });
    bob.peer.introducing.punch(punchFor(alice.listed(1), "controlled", token));
    const channel = await promise;
    speak(channel);
    return { ...pair, outcome, channel, [Symbol.asyncDispose]: () => pair[Symbol.asyncDispose]() };
  }

  test.concurrent.each<[string, (channel: Channel) => void]>([
    ["talks nonsense", (channel) => channel.write(Buffer.from("GET / HTTP/1.0\r\n\r\n"))],
    ["hangs up", (channel) => channel.finish()],
    ["resets", (channel) => channel.destroy()],
    ["says nothing", () => {}],
  ])(
    "%s, is no link, and whoever waits is told",
    async (_what, speak) => {
      await using _ = noSocketLeft();
      await using scene = await nominatedBy(speak);
      const { bob, channel } = scene;
      expect(await scene.outcome).toStartWith("no link with alice");
      expect([bob.peer.state, bob.peer.isIdle, bob.last("linked")]).toEqual(["failed", true, undefined]);
      channel.destroy();
    },
    testMs,
  );

  test.concurrent(
    "breaks the protocol with its first words, was linked, and is no more: both is told",
    async () => {
      await using _ = noSocketLeft();
      const hello = { status: resumeStatus.begin, epoch: 1, sessionId: "5e".repeat(16), processed: 0 };
      const breach = [
        encodeHello(frame.resume, hello),
        encodeCount(frame.start, 0),
        encodeFrame(7, Buffer.alloc(1)),
      ];
      await using scene = await nominatedBy((channel) => channel.write(Buffer.concat(breach)));
      const { bob } = scene;
      expect(await scene.outcome).toBe("linked");
      await until("it has ended", () => bob.last("unlinked") !== undefined);
      expect(bob.told()).toEqual(["punching", "linked", "unlinked"]);
      expect(bob.last("unlinked")).toMatchObject({
        reason: "protocol-error",
        detail: "the peer sent a frame of unknown type 7",
      });
      expect([bob.said("linked").length, bob.said("unlinked").length, bob.peer.isIdle]).toEqual([1, 1, true]);
    },
  );
});

// It is skipped mostly, and what is skipped parts those that run at once.

longTest.concurrent(
  "a relayed link that only seemed dead is sought a direct way at leisure again",
  async () => {
    await using _ = noSocketLeft();
    using relay = await joining();
    await using pair = acquainted();
    const { alice, bob } = pair;
    alice.introducer = bob.introducer = relay.endpoint;
    const asked: { at: number; mayRelay: boolean }[] = [];
    alice.onSent = (message) => {
      if (message.type !== "connect" || !alice.peer.link) return;
      asked.push({ at: performance.now(), mayRelay: message.relay !== false });
      alice.fails("no-candidate-answered");
    };
    bob.onSent = ({ type }) => {
      if (type === "connect") bob.fails("timed-out");
    };
    const connecting = alice.peer.connect();
    pair.offerRelay("alice");
    await connecting;
    await alice.peer.talk.ping();
    for (const visitor of relay.visitors) visitor.pause();
    const heard = alice.peer.talk.say("are you there?");
    await until("another channel is sought", () => asked.some(({ mayRelay }) => mayRelay));
    for (const visitor of relay.visitors) visitor.resume();
    await heard;
    const giveUpAt = performance.now() + 20_000;
    while (asked.every(({ mayRelay }) => mayRelay) && performance.now() < giveUpAt) await Bun.sleep(20);
    const [last, next] = [
      asked.findLast(({ mayRelay }) => mayRelay)!,
      asked.find(({ mayRelay }) => !mayRelay)!,
    ];
    // In need it was sought again within 3 s at the most.
    expect(next.at - last.at).toBeGreaterThan(3_300);
    expect([alice.last("broken"), alice.last("moved")]).toEqual([undefined, undefined]);
  },
  testMs,
);
