/** One introduction, with a port that only writes down what it is to punch, and measurements that the test answers. */
import { afterEach, expect, setDefaultTimeout, test } from "bun:test";
import type { Candidate, Dial } from "../../native/punch/dial.ts";
import { distances, headStartMs } from "../../native/punch/head-start.ts";
import {
  type Failure,
  Encounter,
  type EncounterOptions,
  type PunchMessage,
} from "../../native/punch/encounter.ts";
import type { PunchContext } from "../../native/punch/context.ts";
import type { MappingBehaviour } from "../../native/punch/mapping.ts";
import type { Punch, PunchOptions } from "../../native/punch/punch.ts";
import type { PunchPort } from "../../native/punch/punch-port.ts";
import { Targets } from "../../native/punch/targets.ts";
import type { Endpoint, FailureReason, Peer, Prediction, ToIntroducer, Way } from "../../protocol.ts";
import { aliceIdentity, bobIdentity, credentialsOf } from "../session/story-fixture.ts";
import { Scripted } from "./relay-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const [ours, theirs] = ["127.0.0.1:40000", "127.0.0.1:50000"] as Endpoint[] as [Endpoint, Endpoint];
const { fingerprint } = bobIdentity;
const bob: Peer = {
  ...{ id: 2, name: "bob", instance: "b".repeat(16), fingerprint, private: [], public: theirs },
  ...{ mapping: "endpoint-independent", roundTripMs: 60, since: 0 },
};
const keeps: MappingBehaviour = {
  ...{ mapping: "endpoint-independent", step: 0, isPreserved: false, dependsOn: "unknown" },
};
const counts: MappingBehaviour = { ...keeps, mapping: "sequential", step: 1 };
const tokenOf = (round: number) => String(round).padStart(32, "0");

/** One side of an introduction, and all that it did. */
class Side {
  readonly sent: ToIntroducer[] = [];
  readonly punches: PunchOptions[] = [];
  readonly failures: (Failure | undefined)[] = [];
  /** What measures, in the order in which it began: the test says what comes of it. */
  readonly measuring: ((prediction: Prediction | undefined) => void)[] = [];
  /** Of the punch under way. */
  dials: Pick<Dial, "candidate" | "tries">[] = [];
  readonly introduction: Encounter;

  constructor(
    context: Partial<PunchContext>,
    peer: Partial<Peer> = {},
    more: Partial<EncounterOptions> = {},
  ) {
    const punch = (options: PunchOptions) => {
      this.punches.push(options);
      const { dials } = this;
      return { dials, isOver: false, seen: {}, abort() {}, introduce() {} } as unknown as Punch;
    };
    const port = { port: 40000, targets: new Targets(), punch } as unknown as PunchPort;
    const measureFresh = () => {
      const { promise, resolve } = Promise.withResolvers<Prediction | undefined>();
      this.measuring.push(resolve);
      return promise as Promise<undefined>;
    };
    this.introduction = new Encounter({
      context: {
        ...{
          id: 1,
          introducer: "127.0.0.1:7000" as Endpoint,
          credentials: credentialsOf(aliceIdentity),
          port,
        },
        ...{ self: bob, bondKey: new Uint8Array(32), takes: "direct", probeToken: undefined },
        ...{ public: ours, private: [], mapped: undefined, probes: ["127.0.0.1:7001" as Endpoint] },
        ...{ behaviour: keeps, roundTripMs: 40, segmentClamp: 0 },
        handshakeStuck: () => {},
        doubtMapping: () => {},
        portFor: () => port,
        send: (message) => this.sent.push(message),
        measureFresh,
        ...context,
      },
      peer: { ...bob, ...peer },
      unasked: undefined,
      onRound: () => {},
      onAttempt: () => {},
      onChannel: () => {},
      onEnd: (failure) => this.failures.push(failure),
      ...more,
    });
    sides.push(this);
  }

  round(round: number, way: Way, more: Partial<PunchMessage> = {}): void {
    const schedule = { startInMs: 0, deadlineMs: 1000, last: false } as const;
    const token = tokenOf(round);
    this.introduction.punch({
      type: "punch",
      role: "controlling",
      peer: bob,
      token,
      way,
      round,
      ...schedule,
      ...more,
    });
  }
}

const sides: Side[] = [];
afterEach(() => {
  for (const { introduction } of sides.splice(0)) introduction.abort("timed-out", "the test is over");
});

test("where both NATs keep their ports our first SYN leaves before the introducer's word, late enough for the peer's", () => {
  const side = new Side({ behaviour: keeps, roundTripMs: 40 });
  const askedAt = performance.now();
  side.introduction.ask(true);
  const passedMs = performance.now() - askedAt;
  expect(side.sent).toEqual([{ type: "connect", peer: 2, early: true }]);
  const [{ startInMs } = { startInMs: 0 }] = side.punches;
  const wantedMs = headStartMs(40, 60, distances.of(bob.public, bob.public)); // other tests have links there
  expect(startInMs).toBeLessThanOrEqual(wantedMs);
  expect(startInMs).toBeGreaterThanOrEqual(Math.max(0, wantedMs - passedMs)); // less what passed since we asked
  side.round(1, "direct");
  expect(side.punches).toHaveLength(1); // it goes on
});

test.each<[string, Partial<PunchContext>, Partial<Peer>]>([
  ["our NAT counts", { behaviour: counts }, {}],
  ["theirs is not known", {}, { mapping: "unknown" }],
  ["we don't know how far we are", { roundTripMs: undefined }, {}],
])("our first SYN waits for the introducer's word where %s", (_, context, peer) => {
  const side = new Side(context, peer);
  side.introduction.ask(true);
  expect(side.sent).toEqual([{ type: "connect", peer: 2 }]);
  expect(side.punches).toEqual([]);
});

test("no more rounds than the longest plan has, whatever the introducer orders", () => {
  const side = new Side({});
  side.introduction.ask(true);
  for (let round = 1; round <= 50; round++) side.round(round, "direct");
  expect(side.punches.length).toBeGreaterThan(5);
  expect(side.punches.length).toBeLessThan(20);
  expect(side.sent.filter(({ type }) => type === "failed")).toMatchObject([{ reason: "refused-by-peer" }]);
  expect(side.failures).toMatchObject([{ reason: "refused-by-peer" }]);
});

test("what was measured with our `connect` is what we answer `measure` with, once", async () => {
  const side = new Side({ behaviour: counts });
  side.introduction.ask(true);
  expect(side.measuring).toHaveLength(1);
  const first = side.introduction.measure({
    type: "measure",
    peer: bob,
    token: tokenOf(1),
    way: "predicted",
  });
  expect(side.measuring).toHaveLength(1);
  const prediction = { endpoint: "127.0.0.1:40010" as Endpoint, step: 1 };
  side.measuring[0]!(prediction);
  await first;
  expect(side.sent.at(-1)).toEqual({ type: "measured", token: tokenOf(1), prediction });
  const second = side.introduction.measure({
    type: "measure",
    peer: bob,
    token: tokenOf(2),
    way: "predicted",
  });
  expect(side.measuring).toHaveLength(2);
  side.measuring[1]!(undefined);
  await second;
  expect(side.sent.at(-1)).toEqual({ type: "measured", token: tokenOf(2) });
});

test("nothing is measured beforehand for a peer with random ports", () => {
  const side = new Side({ behaviour: counts }, { mapping: "random" });
  side.introduction.ask(true);
  expect(side.measuring).toEqual([]);
});

test.each<[string, MappingBehaviour, Partial<Candidate>, number, number]>([
  ["each try from a fresh port took another", counts, { isFresh: true }, 2, 1],
  ["there was one try", counts, { isFresh: true }, 1, 0],
  ["each port is tried once", counts, { isFresh: true, isOnce: true }, 2, 0],
  ["it was the shared port", counts, {}, 2, 0],
  ["our NAT keeps its ports", keeps, { isFresh: true }, 2, 0],
])(
  "after a round, where our NAT stands is measured anew by itself: %s",
  (_, behaviour, candidate, tries, most) => {
    const side = new Side({ behaviour });
    side.round(1, "predicted");
    const dialled: Candidate = { endpoint: theirs, route: "predicted", ...candidate };
    side.dials.push({ candidate: dialled, tries });
    side.round(2, "predicted");
    expect(side.measuring).toHaveLength(most);
    expect(side.punches).toHaveLength(2);
  },
);

test("a round that failed is told once, by its token; the introducer has the next word, and then the last", () => {
  let [stuck, doubts] = [0, 0];
  const side = new Side({ handshakeStuck: () => void stuck++, doubtMapping: () => void doubts++ });
  side.round(1, "direct");
  side.punches[0]!.onFailed("no-candidate-answered", "nobody");
  const failed = (round: number, reason: FailureReason) =>
    ({ type: "failed", peer: 2, token: tokenOf(round), reason }) as const;
  expect([side.sent, side.failures, stuck]).toEqual([[failed(1, "no-candidate-answered")], [], 0]);
  side.round(2, "direct");
  side.punches[0]!.onFailed("no-candidate-answered", "of a round that is over");
  expect(side.sent).toHaveLength(1);
  side.punches[1]!.onFailed("timed-out", "its handshake took too long");
  side.round(3, "direct", { last: true });
  side.punches[2]!.onFailed("no-candidate-answered", "nobody again");
  expect(side.sent.slice(1)).toEqual([failed(2, "timed-out"), failed(3, "no-candidate-answered")]);
  expect(side.failures).toEqual([{ reason: "no-candidate-answered", detail: "nobody again" }]);
  expect([stuck, doubts]).toEqual([1, 3]);
});

test("what has come to nothing before the introducer's word is no round, and told to nobody", () => {
  const side = new Side({ behaviour: keeps, roundTripMs: 40 });
  side.introduction.ask(true);
  side.punches[0]!.onFailed("no-candidate-answered", "too early");
  expect([side.sent, side.failures]).toEqual([[{ type: "connect", peer: 2, early: true }], []]);
  side.round(1, "direct");
  expect(side.punches).toHaveLength(2);
});

test("an introducer that is lost between two rounds ends it; while one is under way that goes on, as the last", () => {
  const between = new Side({});
  between.round(1, "direct");
  between.punches[0]!.onFailed("no-candidate-answered", "nobody");
  between.introduction.introducerLost("it is gone");
  expect(between.failures).toEqual([{ reason: "introducer-lost", detail: "it is gone" }]);
  const during = new Side({});
  during.round(1, "direct");
  during.introduction.introducerLost("it is gone");
  expect(during.failures).toEqual([]);
  during.punches[0]!.onFailed("no-candidate-answered", "nobody");
  expect(during.failures).toEqual([{ reason: "no-candidate-answered", detail: "nobody" }]);
});

test("the tokens of its latest round and of its relay are its own, and no other", async () => {
  using relay = await Scripted.answering(() => {});
  let doubts = 0;
  const options = { takes: "any" as const, introducer: relay.endpoint };
  const side = new Side({ ...options, doubtMapping: () => void doubts++ });
  side.round(1, "direct");
  expect(doubts).toBe(0);
  expect([1, 2].map((round) => side.introduction.isOf(tokenOf(round)))).toEqual([true, false]);
  side.introduction.relay({ type: "relay", peer: bob, role: "controlling", token: tokenOf(9) });
  expect([1, 9, 2].map((one) => side.introduction.isOf(tokenOf(one)))).toEqual([true, true, false]);
  expect(doubts).toBe(1);
});

test("its end ends the relay that is still waited for", async () => {
  const asked = Promise.withResolvers<void>();
  using relay = await Scripted.answering(() => asked.resolve());
  const side = new Side({ takes: "any" as const, introducer: relay.endpoint });
  side.introduction.relay({ type: "relay", peer: bob, role: "controlling", token: tokenOf(9) });
  await asked.promise;
  const ended = Promise.withResolvers<void>();
  relay.visitors[0]!.on("end", ended.resolve).on("close", () => ended.resolve());
  relay.visitors[0]!.resume();
  side.introduction.abort("cancelled", "the test is over");
  await ended.promise;
});
