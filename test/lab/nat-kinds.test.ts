/**
 * The kinds of NAT that netfilter can't be (`nat.ts`), between the real programs: each links with an ordinary NAT,
 * is named rightly by `nat`, and lets no stranger in unless that is its nature.
 */
import { expect, setDefaultTimeout } from "bun:test";
import type { NatReport } from "../../native/participant/events.ts";
import { type Endpoint, splitEndpoint } from "../../protocol.ts";
import { type Host, Lab, labTest, labTestNeeding, raceTest } from "./lab.ts";
import {
  disconnect,
  type Expected,
  expectFailure,
  expectRoute,
  gather,
  gatherDirect,
  talk,
} from "./meeting.ts";
import { type ParticipantProgram, People } from "./people.ts";
import type { Attempt } from "./probe-fixture.ts";
import { behind, behindProgram, between, introducerOfTwo, oneCarrier, owdMs, programKinds } from "./sides.ts";
import { long } from "../needing-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

/** Some wait for a place among the labs. */
setDefaultTimeout(3 * testMs);
const probe = `${import.meta.dir}/probe-fixture.ts`;
/** Rounds that come to nothing, and another. */
const freshRounds = 3;
/** Rounds of guessing, of which one fails in 50. */
const guessedRounds = 3;

const kept = { mapping: "endpoint-independent", step: 0, isTranslated: true, hairpinning: false } as const;
const preserved = { ...kept, isPreserved: true, filtering: "dropped" } as const;
const moved = { ...kept, isPreserved: false, filtering: "dropped" } as const;
const random = { mapping: "random", isPreserved: false, dependsOn: "port", filtering: "dropped" } as const;

interface Row {
  report: Partial<NatReport>;
  /** By which it links with a NAT that keeps ports and drops; `public/listen` unless told. */
  route?: Expected;
  mostRounds?: number;
  /** What a stranger's plain connect meets at the endpoint of the control connection. */
  plain?: string;
}

/**
 * Not here, because they don't link, or not surely: `by address` (an introducer with one address always sees the same
 * port; below), `in turn, sequential` (a guess must hit one of four addresses too).
 */
const rows: { [kind in keyof typeof programKinds]?: Row } = {
  // An introducer of one address does not see whether strangers at others are let in. The RST is the host's own.
  "filters nothing": { report: { ...preserved, filtering: "let-in" }, plain: "ECONNREFUSED" },
  "filters by address": { report: { ...preserved, filtering: "let-in" } },

  "kept, random port": { report: moved },
  "kept, parity": { report: moved },
  "kept, contiguity": { report: moved },
  "kept, block": { report: moved },

  // Nobody sees a difference to a mapping that keeps the port: what is overloaded is told apart by the far end.
  overloaded: { report: preserved },
  "preserved once": { report: random, route: "birthday/listen" },
  backwards: {
    report: { mapping: "sequential", step: -1, isPreserved: false, dependsOn: "port", filtering: "dropped" },
    route: "predicted/listen",
  },
  "random, parity": { report: random, route: "birthday/listen" },
  "random, block": { report: random, route: "birthday/listen" },

  paired: { report: preserved },
  "in turn": { report: preserved },

  hairpins: { report: { ...preserved, hairpinning: true } },
  "hairpins, random port": { report: { ...moved, hairpinning: true } },

  "late ICMP": { report: preserved },
  "RST, not deleted by RST": { report: { ...preserved, filtering: "refused" }, plain: "ECONNREFUSED" },
  "not deleted by RST": { report: preserved },
  "forgets in seconds": { report: preserved },
  // A SYN that crossed is repeated by the kernel, after a second.
  "drops crossing SYNs": { report: preserved, mostRounds: freshRounds },
  "refuses crossing SYNs": { report: preserved },

  "strips timestamps": { report: preserved },
  "strips window scale": { report: preserved },
  "rewrites sequence numbers": { report: preserved },
  "clamps segments": { report: preserved },
  // The first round finds out.
  "drops long packets": { report: preserved, mostRounds: freshRounds },
  "HTTP only below 1024": { report: preserved },
};

type Kind = keyof typeof rows;
const kinds = Object.keys(rows) as Kind[];

/** One plain connect from any port, as somebody who punches nothing. What is refused is waited for. */
async function plainConnect(from: Host, to: Endpoint, outcome: string): Promise<string> {
  const { address, port } = splitEndpoint(to);
  const timeoutMs = String(outcome === "ETIMEDOUT" ? 200 : patienceMs);
  const out = await from.run([process.execPath, probe, "connect", timeoutMs, "0", `${address},${port}`]);
  return (JSON.parse(out) as Attempt).outcome;
}

/** On ports of participants, but not of introducers. */
const httpOnly = { onlyHttp: { first: 10_000, last: 65_535 } } as const;

// The longest first: these mostly wait, while all others have their turn.

raceTest.concurrent(
  "forgets in seconds: what is said after a silence arrives, and the link is forgotten no more",
  async () => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const forgetsAfterMs = 6_000;
    const layout = between(behindProgram({ establishedTimeoutMs: forgetsAfterMs }), behind({}));
    const meeting = await gather(lab, people, await layout(lab));
    const { alice, bob } = meeting;
    await expectRoute(meeting, "alice", "public/listen");
    const silent = () => Bun.sleep(forgetsAfterMs + 1_000);
    await silent();
    const moved = Promise.all([alice, bob].map((one) => one.next("moved")));
    await talk(alice, bob);
    await moved;
    const moves = alice.all("moved").length;
    await silent();
    await talk(alice, bob);
    expect(alice.all("moved")).toHaveLength(moves);
    expect([...alice.all("unlinked"), ...bob.all("unlinked")]).toEqual([]);
  },
  3 * testMs,
);

labTest.concurrent("what is not HTTP is reset on the way: handshake-cut, on both sides", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const layout = between(behindProgram(httpOnly), behind({}));
  const meeting = await gather(lab, people, await layout(lab), undefined, ["--direct"]);
  meeting.alice.type("connect bob");
  const { alice, bob } = meeting;
  await Promise.all([alice, bob].map((one) => expectFailure(one, "handshake-cut")));
});

raceTest.concurrent(
  "a fresh port keeps what was measured of it, though a RST would have it forgotten",
  async () => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const natB = await lab.nat("natB", { owdMs });
    const alice = await behindProgram(programKinds["kept, random port"])(lab, "alice");
    const hosts = { alice, bob: await lab.host("bob", { behind: natB }) };
    const meeting = await gather(lab, people, hosts, undefined, ["--direct"]);
    // What the NAT between the ports of the introducer connections has locked up.
    const { address, port } = splitEndpoint(meeting.alice.public);
    await natB.run([
      "nft",
      `
add table ip locked
add chain ip locked passing { type filter hook prerouting priority raw; }
add rule ip locked passing ip saddr ${address} tcp sport ${port} drop
`,
    ]);
    await expectRoute(meeting, "bob", "public/listen", freshRounds);
    expect(meeting.alice.all("punching").at(-1)!.way).toBe("fresh");
  },
);

async function eitherSideAsks(kind: Kind): Promise<void> {
  const { report, route = "public/listen", plain = "ETIMEDOUT" } = rows[kind]!;
  const { mostRounds = route === "birthday/listen" ? guessedRounds : undefined } = rows[kind]!;
  await using lab = await Lab.create();
  await using people = new People();
  const layout = between(behindProgram(programKinds[kind]), behind({}));
  const meeting = await gatherDirect(lab, people, await layout(lab));
  const stranger = await lab.host("stranger", { owdMs });
  expect(await plainConnect(stranger, meeting.alice.public, plain)).toBe(plain);
  await expectRoute(meeting, "alice", route, mostRounds);
  await disconnect(meeting.alice, meeting.bob);
  await expectRoute(meeting, "bob", route, mostRounds);
  meeting.alice.type("nat");
  expect(await meeting.alice.next("nat")).toMatchObject(report);
}

/** Guessing is work for the processor. Fresh ports of `in turn` have another address: only its first round can link. */
const isAlone = (kind: Kind) => rows[kind]!.route === "birthday/listen" || kind === "in turn";
/** That link just as another one. What `--nat` says of them is tested. */
const alike: readonly Kind[] = [
  "kept, parity",
  "kept, contiguity",
  "kept, block",
  "hairpins, random port",
  "not deleted by RST",
];
const longLabTest = labTestNeeding(long);
longLabTest.concurrent.each(alike)("%s ↔ independent, either side asking, and no stranger", eitherSideAsks);
const ordinary = kinds.filter((kind) => !alike.includes(kind) && !isAlone(kind));
raceTest.concurrent.each(ordinary)("%s ↔ independent, either side asking, and no stranger", eitherSideAsks);

const itself: Kind[] = ["filters nothing", "late ICMP", "rewrites sequence numbers"];
const longItself: Kind[] = [
  "kept, random port",
  "RST, not deleted by RST",
  "strips timestamps",
  "strips window scale",
];

async function betweenTwo(kind: Kind): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const side = behindProgram(programKinds[kind]);
  await expectRoute(
    await gatherDirect(lab, people, await between(side, side)(lab)),
    "alice",
    "public/listen",
  );
}

raceTest.concurrent.each(itself)("%s ↔ itself", betweenTwo);
longLabTest.concurrent.each(longItself)("%s ↔ itself", betweenTwo);

raceTest.concurrent("one carrier whose NAT is a program and hairpins, either side asking", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const carrier = oneCarrier({ program: { hairpinning: true, allocation: "random" } });
  const meeting = await gatherDirect(lab, people, await carrier(lab));
  await expectRoute(meeting, "alice", "public/listen");
  await disconnect(meeting.alice, meeting.bob);
  await expectRoute(meeting, "bob", "public/listen");
});

labTest.concurrent(
  "a birthday takes all the sessions that a host may have: relayed all the same",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const few = { maxSessions: 40 } as const; // measuring takes some, too
    const layout = between(behindProgram({ ...programKinds["random, parity"], ...few }), behindProgram(few));
    const { alice, bob } = await gather(lab, people, await layout(lab));
    alice.type("connect bob");
    const both = await Promise.all([alice, bob].map((one) => one.next("linked")));
    // Of the few guesses that there can be, one in some 50 times hits.
    const won = both[0]!.route === "birthday" ? "birthday" : "relay";
    expect(both.map(({ route }) => route)).toEqual([won, won]);
    await talk(alice, bob);
    expect(alice.all("punching")[0]!.way).toBe("birthday");
  },
);

labTest.concurrent("drops long packets: what is relayed arrives, too", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const long = behindProgram({ ...programKinds["drops long packets"], ...programKinds["random, block"] });
  const layout = between(long, behind({ mapping: "random" }));
  const { alice, bob } = await gather(lab, people, await layout(lab));
  alice.type("connect bob");
  const both = await Promise.all([alice, bob].map((one) => one.next("linked")));
  expect(both.map((linked) => linked.route)).toEqual(["relay", "relay"]);
  await talk(alice, bob);
});

// Below 1280 bytes no IPv6 would go at all. Tunnels in tunnels have such paths (RFC 4821 §1).
raceTest.concurrent.each([1240, 1200, 620])(
  "packets above %i bytes are lost: linked, and what is long arrives",
  async (largestPacket) => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const layout = between(behindProgram({ largestPacket }), behind({}));
    const { alice, bob } = await gather(lab, people, await layout(lab));
    alice.type("connect bob");
    await Promise.all([alice, bob].map((one) => one.next("linked")));
    const text = "x".repeat(8_000);
    alice.type(`say bob ${text}`);
    expect((await bob.next("said")).text).toBe(text);
    bob.type(`say alice ${text}`);
    expect((await alice.next("said")).text).toBe(text);
  },
);

const filters = [
  ["filters nothing", "let-in"],
  ["filters by address", "dropped"],
] as const;

labTest.concurrent.each(filters)(
  "--nat, %s: what comes from an address that is not known is %s",
  async (kind, elsewhere) => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const introducer = await introducerOfTwo(lab, people);
    const host = await behindProgram(programKinds[kind])(lab, "alice");
    const alice = await people.participant("alice", host, introducer, ["--nat"]);
    const report = await alice.next("nat");
    expect(report).toMatchObject({ filtering: "let-in", filteringElsewhere: elsewhere });
  },
);

labTest.concurrent("--nat says what the program does, for every kind that is not linked above", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const programs: ParticipantProgram[] = [];
  for (const [index, kind] of alike.entries()) {
    const host = await behindProgram(programKinds[kind])(lab, `host${index}`);
    programs.push(await people.participant(`host${index}`, host, introducer, ["--nat"]));
  }
  const said = await Promise.all(programs.map((program) => program.next("nat")));
  const named = (reports: readonly unknown[]) =>
    Object.fromEntries(alike.map((kind, index) => [kind, reports[index]]));
  expect(named(said)).toEqual(named(alike.map((kind) => expect.objectContaining(rows[kind]!.report))));
});

raceTest.concurrent(
  "by address, sequential ↔ independent, with an introducer of one address: predicted, after others",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const layout = between(behindProgram(programKinds["by address, sequential"]), behind({}));
    const meeting = await gather(lab, people, await layout(lab), undefined, ["--direct"]);
    await expectRoute(meeting, "alice", "predicted/listen", freshRounds);
    await disconnect(meeting.alice, meeting.bob);
    // The way that worked comes first.
    await expectRoute(meeting, "bob", "predicted/listen", 1);
  },
);

async function linksByTwo(
  kind: "by address, sequential" | "by address, random",
  route: Expected,
  report: Partial<NatReport>,
): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const introducer = await introducerOfTwo(lab, people);
  const layout = between(behindProgram(programKinds[kind]), behind({}));
  const meeting = await gatherDirect(lab, people, await layout(lab), introducer);
  const mostRounds = route === "birthday/listen" ? guessedRounds : undefined;
  await expectRoute(meeting, "alice", route, mostRounds);
  await disconnect(meeting.alice, meeting.bob);
  await expectRoute(meeting, "bob", route, mostRounds);
  meeting.alice.type("nat");
  expect(await meeting.alice.next("nat")).toMatchObject(report);
}

raceTest.concurrent("by address, sequential ↔ independent, with an introducer of two addresses", () =>
  linksByTwo("by address, sequential", "predicted/listen", {
    ...{ mapping: "sequential", step: 1, dependsOn: "address" },
  }),
);

// Each by itself.

raceTest.each(kinds.filter(isAlone))("%s ↔ independent, either side asking, and no stranger", eitherSideAsks);

raceTest("by address, random ↔ independent, with an introducer of two addresses", () =>
  linksByTwo("by address, random", "birthday/listen", { mapping: "random", dependsOn: "address" }),
);
