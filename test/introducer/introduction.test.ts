/** One introduction by a clock of the test's own: what each side is told, and when. */
import { expect, setDefaultTimeout, test } from "bun:test";
import type { IntroductionOwner } from "../../native/introducer/introduction-owner.ts";
import { type Index, Introduction } from "../../native/introducer/introduction.ts";
import { defaultLimits } from "../../native/introducer/limits.ts";
import { Quotas } from "../../native/introducer/quotas.ts";
import { Member, type Session } from "../../native/introducer/session.ts";
import { Wheel } from "../../native/introducer/wheel.ts";
import {
  type FailureReason,
  formatEndpoint,
  type Mapping,
  type Peer,
  type Prediction,
  type ToParticipant,
} from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function member(id: number, mapping: Mapping): Member {
  const observed = formatEndpoint(`198.51.100.${id}`, 4000);
  const peer: Partial<Peer> = {
    id,
    name: `p${id}`,
    instance: `i${id}`,
    private: [],
    public: observed,
    mapping,
  };
  const session = { observed, source: `198.51.100.${id}` } as Partial<Session> as Session;
  const one = new Member(session, peer as Peer, "lobby", "any");
  one.measured = { position: undefined };
  return one;
}

/** Two, 1 and 2, of whom 1 asks; what they are told, as `at who what`, and what became of it. */
class Scene {
  readonly told: string[] = [];
  now = 0;
  hasRelay = true;
  /** The tokens of each kind that was told last. */
  readonly tokens: Record<string, string> = {};
  readonly members: readonly [Member, Member];
  readonly quotas = new Quotas(defaultLimits, new Wheel(() => 0));
  readonly introduction: Introduction;
  outcome: string | undefined;
  relayAt: number | undefined;
  dueAt = Infinity;

  constructor(a: Mapping, b: Mapping) {
    this.members = [member(1, a), member(2, b)];
    const [asker, target] = this.members;
    this.introduction = new Introduction(this.#index(), { asks: new Map(), asker, target });
  }

  #index(): Index {
    const owner: IntroductionOwner = {
      limits: defaultLimits,
      canMeasure: () => true,
      send: (to, message) => this.#hear(to, message),
      show: (to, about, message) => this.#hear(to, { ...message, peer: about.peer } as ToParticipant),
      offerRelay: () => (this.hasRelay ? "relayed" : undefined),
      withdrawRelay: (token) => void this.told.push(`${this.now} ${token} withdrawn`),
      refuse: (to, { code }) => void this.told.push(`${this.now} ${to.peer.id} refused ${code}`),
      emit: () => {},
      serve: (_, work) => work(),
      silent: ({ peer }) => void this.told.push(`${this.now} ${peer.id} silent`),
      count: (outcome, way, ms) => (this.outcome = `${outcome} ${way} ${ms}`),
    };
    return {
      owner,
      quotas: this.quotas,
      now: () => this.now,
      schedule: (_, at) => (this.dueAt = Math.min(this.dueAt, at)),
      addToken: () => {},
      removeToken: () => {},
      told: () => {},
      relayIn: (_, ms) => (this.relayAt = this.now + ms),
      noRelay: () => (this.relayAt = undefined),
      workingWay: () => undefined,
      keepWay: () => {},
      ended: () => {},
    };
  }

  #hear(to: Member, message: ToParticipant): void {
    if ("token" in message) this.tokens[message.type] = message.token as string;
    const of = "way" in message ? ` ${message.way}` : "";
    const last = message.type === "punch" && message.last ? " last" : "";
    const why = message.type === "failed" ? ` ${message.reason}` : "";
    this.told.push(`${this.now} ${to.peer.id} ${message.type}${of}${last}${why}`);
  }

  /** As the timers would have it, until then. */
  until(now: number): this {
    for (;;) {
      const next = Math.min(this.dueAt, this.relayAt ?? Infinity);
      if (next > now || this.outcome !== undefined) break;
      this.now = Math.max(this.now, next);
      if (this.relayAt === next) {
        this.relayAt = undefined;
        this.introduction.relay.due();
      } else {
        this.dueAt = Infinity;
        this.introduction.tick(this.now);
        this.dueAt = Math.min(this.dueAt, this.introduction.dueAt(this.now));
      }
    }
    this.now = now;
    return this;
  }

  begin(wantsRelay = false): this {
    if (wantsRelay) this.introduction.relay.want();
    this.introduction.plan();
    return this;
  }

  linked(id: 1 | 2, by: "punch" | "relay" = "punch"): this {
    this.introduction.linked(this.members[id - 1]!, this.tokens[by]!);
    return this;
  }

  failed(id: 1 | 2, reason: FailureReason = "no-candidate-answered", by: "punch" | "relay" = "punch"): this {
    this.introduction.failed(this.members[id - 1]!, this.tokens[by]!, reason);
    return this;
  }

  /** Its NAT counts by one, and stands there. */
  measured(id: 1 | 2, port: number): this {
    const prediction: Prediction = { endpoint: formatEndpoint(`198.51.100.${id}`, port), step: 1 };
    this.introduction.measured(this.members[id - 1]!, prediction);
    return this;
  }

  /** What was told since it was asked last. */
  heard(): string[] {
    return this.told.splice(0);
  }
}

/** What both are told then. */
function both(at: number, what: string): string[] {
  return [`${at} 1 ${what}`, `${at} 2 ${what}`];
}

const free = "endpoint-independent";
const counting = "sequential";

const rows: [what: string, scene: Scene, run: (scene: Scene) => void, told: string[], outcome?: string][] = [
  [
    "linked by the first round",
    new Scene(free, free),
    (scene) => scene.begin().until(90).linked(1).until(100).linked(2),
    both(0, "punch direct"),
    "linked direct 100",
  ],
  [
    "a failure of one side begins the next round for both",
    new Scene(free, free),
    (scene) => scene.begin().until(300).failed(1),
    [...both(0, "punch direct"), ...both(300, "measure fresh")],
  ],
  [
    "who says nothing of a measurement is not waited for longer than 3 s",
    new Scene(free, free),
    (scene) => scene.begin().until(300).failed(1).until(3299).until(3300),
    [...both(0, "punch direct"), ...both(300, "measure fresh"), ...both(3300, "punch fresh")],
  ],
  [
    "what can't succeed is over at once, and the other side is told",
    new Scene(free, free),
    (scene) => scene.begin().until(50).failed(1, "refused-by-peer"),
    [...both(0, "punch direct"), "50 2 failed refused-by-peer"],
    "refused-by-peer direct 50",
  ],
  [
    "one that linked goes on when the other has failed",
    new Scene(free, free),
    (scene) => scene.begin().until(80).linked(1).until(90).failed(2),
    [...both(0, "punch direct"), ...both(90, "measure fresh")],
  ],
  [
    "only the side whose NAT counts measures",
    new Scene(counting, free),
    (scene) => scene.begin().until(40).measured(1, 40_000),
    ["0 1 measure predicted", ...both(40, "punch predicted")],
  ],
  [
    "no way at all, and no relay wanted",
    new Scene("random", "random"),
    (scene) => scene.begin(),
    ["0 1 failed both-mappings-random"],
    "both-mappings-random none 0",
  ],
  [
    "no way at all: relayed at once, and linked by that",
    new Scene("random", "random"),
    (scene) => scene.begin(true).until(20).linked(2, "relay").until(30).linked(1, "relay"),
    both(0, "relay"),
    "linked relay 30",
  ],
  [
    "a relay that nobody takes: both are told",
    new Scene("random", "random"),
    (scene) => scene.begin(true).until(60_000),
    [...both(0, "relay"), ...both(14_000, "failed timed-out")],
    "timed-out relay 14000",
  ],
  [
    "a relay is due after a second, and direct rounds go on beside it",
    new Scene(free, free),
    (scene) => scene.begin(true).until(2000).failed(1),
    [...both(0, "punch direct"), ...both(1000, "relay"), ...both(2000, "measure fresh")],
  ],
  [
    "a round that has failed early makes no relay due: the next may well be there before a second has passed",
    new Scene(free, free),
    (scene) => scene.begin(true).until(200).failed(1),
    [...both(0, "punch direct"), ...both(200, "measure fresh")],
  ],
  [
    "relayed before all direct rounds had failed counts as linked by relay",
    new Scene(free, free),
    (scene) => scene.begin(true).until(1100).linked(1, "relay").linked(2, "relay").until(60_000),
    [...both(0, "punch direct"), ...both(1000, "relay")],
    "linked relay 1100",
  ],
  [
    "one that has left: the other is told, once",
    new Scene(free, free),
    (scene) => scene.begin().until(70).introduction.left(scene.members[0], "it quit"),
    [...both(0, "punch direct"), "70 2 failed peer-left"],
    "peer-left direct 70",
  ],
  [
    "ports are guessed once both sides' attempts are over",
    new Scene("random", free),
    (scene) => scene.begin().until(100).failed(1),
    both(0, "punch birthday"),
  ],
];

for (const [what, scene, run, told, outcome] of rows) {
  test(what, () => {
    run(scene);
    expect(scene.heard()).toEqual(told);
    expect(scene.outcome).toBe(outcome as string);
  });
}

test("a NAT that has gone on is aimed at anew, three times at most", () => {
  const scene = new Scene(counting, free);
  scene.members[0].measured = { position: { endpoint: formatEndpoint("198.51.100.1", 40_000), step: 1 } };
  scene.begin().until(10).measured(1, 41_000).until(20).measured(1, 42_000).until(30).measured(1, 43_000);
  expect(scene.heard()).toEqual([
    "0 1 measure predicted",
    ...both(0, "punch predicted"),
    ...both(10, "punch predicted"),
    ...both(20, "punch predicted"),
  ]);
});

test("what was said of an earlier round, and what is said after the end, changes nothing", () => {
  const scene = new Scene(free, free).begin();
  const { punch: earlier = "" } = scene.tokens;
  scene.until(300).failed(1).until(3300).heard();
  scene.introduction.failed(scene.members[1], earlier, "no-candidate-answered");
  expect(scene.outcome).toBeUndefined();
  scene.linked(1).linked(2);
  expect<unknown>(scene.outcome).toBe("linked fresh 3300");
  scene.failed(1).until(60_000);
  expect(scene.heard()).toEqual([]);
});

test("those who wait for one peer have turns, each one; who asks again has the same, and is let in then", () => {
  const quotas = new Quotas(defaultLimits, new Wheel(() => 0));
  const target = member(1, free);
  const ofOneHost = (id: number) => Object.assign(member(id, free), { session: { source: "198.51.100.7" } });
  const all = Array.from({ length: 64 }, (_, n) => ({ asks: new Map(), asker: ofOneHost(n + 2), target }));
  const wait = (one: (typeof all)[number], now: number) => {
    try {
      quotas.spend(one, now);
    } catch (error) {
      return (error as { retryInMs: number }).retryInMs;
    }
    return 0;
  };
  const { introductionsPerTarget: most } = defaultLimits;
  expect(all.slice(0, most).map((one) => wait(one, 0))).toEqual(Array<number>(most).fill(0));
  const late = all.slice(most);
  expect(late.map((one) => wait(one, 0))).toEqual([1000, 2000, 3000, 4000]);
  expect(wait(late[3]!, 500)).toBe(4000); // 3.5 s, in whole seconds
  expect(late.map((one, n) => wait(one, 1000 * (n + 1)))).toEqual([0, 0, 0, 0]);
});

test("what was not wanted costs the asker, what was is given back", () => {
  const asks = new Map();
  const quotas = new Quotas(defaultLimits, new Wheel(() => 0));
  const [asker, target] = [member(1, free), member(2, free)];
  const { introductionsPerPair: most } = defaultLimits;
  for (let count = 0; count < most; count++) quotas.spend({ asks, asker, target }, 0);
  expect(() => quotas.spend({ asks, asker, target }, 0)).toThrow("introductions to one peer a minute");
  quotas.refund({ asks, asker, target }, 0);
  quotas.spend({ asks, asker, target }, 0);
  expect(() => quotas.spend({ asks, asker, target }, 0)).toThrow("wait 6 s");
});

test("who asks once more means another, unless the two may have crossed on the way", () => {
  const scene = new Scene("endpoint-independent", "endpoint-independent").begin();
  const { introduction, members } = scene;
  const answered = (at: number) => {
    scene.now = at;
    return members.map((one) => introduction.answers(one));
  };
  expect([answered(0), answered(900)]).toEqual([
    [true, true],
    [true, true],
  ]);
  expect(answered(1_500)).toEqual([false, false]); // its own side has ended long ago, and did not say so
  introduction.linked(members[0], scene.tokens["punch"]!);
  expect(answered(0)).toEqual([false, true]);
});
