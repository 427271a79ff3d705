/**
 * Punching between the real programs, through the lab's NATs: a line names where the two are and the route
 * that their connection must take, and where it can't, the diagnosis. Kinds of NATs: nat.test.ts.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { splitEndpoint, type Endpoint } from "../../protocol.ts";
import { Lab, labTest, raceTest, type Host, type Unsolicited } from "./lab.ts";
import {
  cutOff,
  disconnect,
  expectFailure,
  expectRoute,
  gather,
  gatherDirect,
  know,
  link,
  linkedBoth,
  talk,
  type Expected,
  type Meeting,
} from "./meeting.ts";
import { People, type ParticipantProgram } from "./people.ts";
import type { Attempt } from "./probe-fixture.ts";
import { apart, behind, between, oneCarrier, open, owdMs, together, type Layout } from "./sides.ts";
import { isField } from "../needing-fixture.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

/** Some wait for a place among the labs. */
setDefaultTimeout(3 * testMs);
const probe = `${import.meta.dir}/probe-fixture.ts`;

// --- where they are --------------------------------------------------------------------------------------

const sameHost: Layout = async (lab) => {
  const nat = await lab.nat("nat", { owdMs, hairpinning: false });
  const alice = await lab.host("alice", { behind: nat });
  return { alice, bob: alice };
};

const sharedLan = "192.168.1.0/24";
const sharedAddress = "192.168.1.77";

/** In different LANs, with the same private address. */
const twin = behind({ lan: sharedLan }, { address: sharedAddress });

/** In alice's LAN a stranger has bob's private address, and accepts on every port. */
function stranger(says: "nothing" | "garbage"): Layout {
  return async (lab) => {
    const natA = await lab.nat("natA", { owdMs, lan: sharedLan });
    const natB = await lab.nat("natB", { owdMs, lan: sharedLan });
    const alice = await lab.host("alice", { behind: natA });
    const bob = await lab.host("bob", { behind: natB, address: sharedAddress });
    const mallory = await lab.host("mallory", { behind: natA, address: sharedAddress });
    await mallory.run(["nft", redirectAll]);
    const greet = says === "nothing" ? "" : "socket.write(crypto.getRandomValues(new Uint8Array(500)))";
    const listener = `{ hostname: "0.0.0.0", port: 7, socket: { open(socket) { ${greet} }, data() {} } }`;
    const script = `Bun.listen(${listener}); console.log("listening")`;
    const server = mallory.spawn([process.execPath, "-e", script], { stdout: "pipe" });
    await server.stdout.getReader().read();
    const accepts = await connect(alice, `${sharedAddress}:40000` as Endpoint, "connected");
    expect(accepts.outcome).toBe("connected");
    return { alice, bob };
  };
}

const redirectAll = `
add table ip everything
add chain ip everything arriving { type nat hook prerouting priority dstnat; }
add rule ip everything arriving meta l4proto tcp redirect to :7
`;

/** One plain connect, from any port. What answers is waited for. */
async function connect(from: Host, to: Endpoint, outcome: string): Promise<Attempt> {
  const { address, port } = splitEndpoint(to);
  const timeoutMs = String(outcome === "ETIMEDOUT" ? 400 : patienceMs);
  const out = await from.run([process.execPath, probe, "connect", timeoutMs, "0", `${address},${port}`]);
  return JSON.parse(out) as Attempt;
}

// --- routes ----------------------------------------------------------------------------------------------

type Row = [where: string, layout: Layout, expected: Expected];

const rows: Row[] = [
  ["dropping NAT ↔ dropping NAT", apart(), "public"],
  ["resetting NAT ↔ dropping NAT", apart({ unsolicited: "reset" }, {}), "public/listen"],
  ["resetting NAT ↔ resetting NAT", apart({ unsolicited: "reset" }), "public/listen"],
  ["ICMP NAT ↔ dropping NAT", apart({ unsolicited: "icmp" }, {}), "public/listen"],
  ["ICMP NAT ↔ ICMP NAT", apart({ unsolicited: "icmp" }), "public/listen"],
  ["same LAN, no hairpinning", together({ hairpinning: false }), "private/listen"],
  ["same host behind a NAT", sameHost, "private/listen"],
  ["dropping NAT ↔ open host", between(behind({}), open()), "public/listen"],
  ["resetting NAT ↔ open host", between(behind({ unsolicited: "reset" }), open()), "public/listen"],
  ["the same private address in two LANs", between(twin, twin), "public"],
];

// The longest first: these mostly wait, while all others have their turn.

labTest.concurrent("nobody answers: no-candidate-answered, on both sides within the deadline", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const { introducer, alice, bob } = await gatherCutOff(lab, people);
  alice.type("connect bob");
  const { at } = await alice.next("punching");
  const failures = await Promise.all([alice, bob].map((one) => expectFailure(one, "no-candidate-answered")));
  for (const failed of failures) expect(failed.at - at).toBeGreaterThan(9_000); // as far as we have read it in time
  expect(failures[0]!.detail).toContain(bob.public.replace(/\d+$/, ""));
  await introducer.next("failed", ({ reason }) => reason === "no-candidate-answered");
  expect(alice.all("error")).toEqual([]); // it has been told
});

labTest.concurrent("one carrier without hairpinning: the same", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const { alice, bob } = await gatherDirect(lab, people, await oneCarrier({ hairpinning: false })(lab));
  bob.type("connect alice");
  await Promise.all([alice, bob].map((one) => expectFailure(one, "no-candidate-answered")));
});

async function eitherSideAsks(...[, layout, expected]: Row): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const meeting = await gatherDirect(lab, people, await layout(lab));
  await expectRoute(meeting, "alice", expected);
  await disconnect(meeting.alice, meeting.bob);
  await expectRoute(meeting, "bob", expected);
}

raceTest.concurrent.each(rows)("%s, either side asking", eitherSideAsks);

raceTest.concurrent.each(["nothing", "garbage"] as const)(
  "a stranger at the peer's private address, saying %s, either side asking: public",
  async (says) => {
    await using lab = await Lab.create();
    await using people = new People();
    const meeting = await gatherDirect(lab, people, await stranger(says)(lab));
    const { alice, bob } = meeting;
    await expectRoute(meeting, "alice", "public");
    await disconnect(alice, bob);
    await expectRoute(meeting, "bob", "public");
    const met = alice
      .all("attempt")
      .filter(({ route, outcome }) => `${route} ${outcome}` === "private connected");
    expect(met.map(({ remote }) => remote)).toContain(bob.private[0]!);
  },
);

labTest.concurrent.each([
  ["dropping", "drop", "ETIMEDOUT"],
  ["resetting", "reset", "ECONNREFUSED"],
  ["ICMP", "icmp", "ECONNREFUSED"],
] as const)("%s NAT: without punching, nobody gets through", async (_, unsolicited, outcome) => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart({ unsolicited })(lab);
  const { alice, bob } = await gatherDirect(lab, people, hosts);
  const plain = await Promise.all([
    connect(hosts.alice, bob.public, outcome),
    connect(hosts.bob, alice.public, outcome),
  ]);
  expect(plain.map((attempt) => attempt.outcome)).toEqual([outcome, outcome]);
});

/** From each side; and how many of these links may need a second round. */
const [againTimes, mostLost] = isField ? [10, 2] : [2, 1];

// --- many, and again -------------------------------------------------------------------------------------

labTest.concurrent("several peers at once, then everyone with everyone at once", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const everyone = await Promise.all(
    ["alice", "bob", "carol", "dave"].map(async (name) => {
      const nat = await lab.nat(`${name}-nat`, { owdMs });
      return people.participant(name, await lab.host(name, { behind: nat }), introducer);
    }),
  );
  await know(...everyone);
  const [alice, ...others] = everyone as [ParticipantProgram, ...ParticipantProgram[]];
  alice.type(`connect ${others.map(({ name }) => name).join(" ")}`);
  await Promise.all(others.map((other) => linkedBoth(alice, other)));

  for (const one of others) {
    const rest = others.filter((other) => other !== one);
    one.type(`connect ${rest.map(({ name }) => name).join(" ")}`);
  }
  const pairs = others.flatMap((one, index) => others.slice(index + 1).map((other) => [one, other] as const));
  await Promise.all(pairs.map(([one, other]) => linkedBoth(one, other)));
  for (const [one, other] of [...pairs, ...others.map((other) => [alice, other] as const)]) {
    await talk(one, other);
  }
});

raceTest.concurrent("both ask at once, again and again", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const { alice, bob } = await gatherDirect(lab, people, await apart()(lab));
  for (let round = 0; round < 2 * againTimes; round++) {
    alice.type("connect bob");
    bob.type("connect alice");
    const both = await linkedBoth(alice, bob);
    expect(both.map(({ route }) => route)).toEqual(["public", "public"]);
    await talk(alice, bob);
    await disconnect(round % 2 ? alice : bob, round % 2 ? bob : alice);
  }
  expect([...alice.all("error"), ...bob.all("error")]).toEqual([]);
});

/** The introducer's word comes later than alice reckons with, so her SYN meets bob's NAT before his has left it. */
raceTest.concurrent.each(["drop", "reset", "icmp"] as const)(
  "a SYN that comes too early, to a NAT that answers by %s: direct in the first round",
  async (unsolicited) => {
    await using lab = await Lab.create();
    await using people = new People();
    const place = await lab.host("introducer", { owdMs });
    const introducer = await people.introducer(place);
    const meeting = await gather(lab, people, await apart({ unsolicited })(lab), introducer);
    await place.setWan({ owdMs: owdMs + 40 });
    await expectRoute(meeting, "alice", "public/listen");
    const { alice, bob } = meeting;
    expect([alice, bob].flatMap((one) => one.all("punching")).map(({ round }) => round)).toEqual([1, 1]);
    // That NAT's RST is heard, its ICMP error is not.
    const outcomes = alice.all("attempt").filter(({ route }) => route === "public");
    const refusals = outcomes.filter(({ outcome }) => outcome === "ECONNREFUSED");
    if (unsolicited === "reset") expect(refusals).not.toEqual([]);
    else expect(refusals).toEqual([]);
  },
);

/** The NATs still remember the connection that has just ended, between the same two endpoints. */
const again = (["drop", "reset", "icmp"] as const).flatMap((unsolicited) =>
  (["at once", "once both have it"] as const).map((when) => [unsolicited, when] as const),
);

async function againAndAgain(unsolicited: Unsolicited, when: string): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const { alice, bob } = await gather(lab, people, await apart({ unsolicited })(lab));
  alice.type("connect bob");
  await linkedBoth(alice, bob);
  const before = alice.all("punching").length;
  const order = Array.from({ length: againTimes }, () => [alice, bob]).flat();
  for (const from of order) {
    const to = from === alice ? bob : alice;
    if (when === "once both have it") await disconnect(from, to);
    else from.type(`disconnect ${to.name}`);
    from.type(`connect ${to.name}`);
    const both = await linkedBoth(alice, bob);
    expect(both.map(({ route }) => route)).not.toContain("relay");
  }
  await talk(alice, bob);
  expect([...alice.all("error"), ...bob.all("error")]).toEqual([]);
  // The old ports will do: ports that are locked up cost each link a second round, a race that is lost costs one.
  const punching = alice.all("punching").slice(before);
  expect(punching.filter(({ round }) => round > 1).length).toBeLessThanOrEqual(mostLost);
}

raceTest.concurrent.each(again)("NATs that %s: disconnect, and connect again %s", againAndAgain);

// --- what goes wrong -------------------------------------------------------------------------------------

/** alice and bob behind NATs between which nothing passes; the introducer is reached as ever. */
async function gatherCutOff(lab: Lab, people: People): Promise<Meeting> {
  const natA = await lab.nat("natA", { owdMs });
  const natB = await lab.nat("natB", { owdMs });
  await cutOff(natB, natA.address);
  const alice = await lab.host("alice", { behind: natA });
  const bob = await lab.host("bob", { behind: natB });
  return gatherDirect(lab, people, { alice, bob });
}

labTest.concurrent("the peer is gone while punching: peer-left", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const { introducer, alice, bob } = await gatherCutOff(lab, people);
  alice.type("connect bob");
  await Promise.all([alice.next("punching"), bob.next("punching")]);
  await bob.kill("SIGKILL");
  await expectFailure(alice, "peer-left");
  await alice.next("left", ({ peer }) => peer === bob.id);
  await introducer.next("failed", ({ id, reason }) => id === alice.id && reason === "peer-left");
});

labTest.concurrent("the introducer is killed: who is linked goes on talking", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const meeting = await gatherDirect(lab, people, await apart()(lab));
  await link(meeting);
  const { introducer, alice, bob } = meeting;
  await introducer.kill("SIGKILL");
  await Promise.all([alice, bob].map((one) => one.next("introducer", ({ state }) => state === "lost")));
  await talk(alice, bob);
  for (const [from, to] of [
    [alice, bob],
    [bob, alice],
  ] as const) {
    from.type(`ping ${to.name}`);
    const { rttMs } = await from.next("pong", ({ name }) => name === to.name);
    expect(rttMs).toBeWithin(4 * owdMs, patienceMs);
  }
});
