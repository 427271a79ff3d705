/**
 * Punching between the real programs, through the lab's NATs: a line names where the two are and the route
 * that their connection must take, and where it can't, the diagnosis.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { splitEndpoint, type Endpoint, type FailureReason, type Route } from "../../protocol.ts";
import { Lab, labTest, type Host, type Nat, type NatOptions } from "./lab.ts";
import { People, type IntroducerProgram, type ParticipantProgram } from "./people.ts";
import type { Attempt } from "./probe-fixture.ts";

setDefaultTimeout(30_000);
const probe = `${import.meta.dir}/probe-fixture.ts`;
/** One-way delay of each site: 10 ms between any two. */
const owdMs = 5;
/** A link takes 2.5 round trips, so 70 ms; the rest is for a busy machine. */
const soonMs = 1500;

// --- where they are --------------------------------------------------------------------------------------

type Hosts = { alice: Host; bob: Host };
type Layout = (lab: Lab) => Promise<Hosts>;

/** Each behind a NAT of their own. */
function apart(a: NatOptions = {}, b: NatOptions = a): Layout {
  return async (lab) => {
    const natA = await lab.nat("natA", { owdMs, ...a });
    const natB = await lab.nat("natB", { owdMs, ...b });
    const alice = await lab.host("alice", { behind: natA });
    return { alice, bob: await lab.host("bob", { behind: natB }) };
  };
}

const sameLan: Layout = async (lab) => {
  const nat = await lab.nat("nat", { owdMs, hairpinning: false });
  const alice = await lab.host("alice", { behind: nat });
  return { alice, bob: await lab.host("bob", { behind: nat }) };
};

const sameHost: Layout = async (lab) => {
  const nat = await lab.nat("nat", { owdMs, hairpinning: false });
  const alice = await lab.host("alice", { behind: nat });
  return { alice, bob: alice };
};

/** alice behind a NAT, bob with a public address. */
function bobIsOpen(a: NatOptions = {}): Layout {
  return async (lab) => {
    const nat = await lab.nat("nat", { owdMs, ...a });
    const alice = await lab.host("alice", { behind: nat });
    return { alice, bob: await lab.host("bob", { owdMs }) };
  };
}

const sharedLan = "192.168.1.0/24";
const sharedAddress = "192.168.1.77";

/** In different LANs, with the same private address. */
const twins: Layout = async (lab) => {
  const natA = await lab.nat("natA", { owdMs, lan: sharedLan });
  const natB = await lab.nat("natB", { owdMs, lan: sharedLan });
  const alice = await lab.host("alice", { behind: natA, address: sharedAddress });
  return { alice, bob: await lab.host("bob", { behind: natB, address: sharedAddress }) };
};

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
    const accepts = await connect(alice, `${sharedAddress}:40000` as Endpoint);
    expect(accepts.outcome).toBe("connected");
    return { alice, bob };
  };
}

const redirectAll = `
add table ip everything
add chain ip everything arriving { type nat hook prerouting priority dstnat; }
add rule ip everything arriving meta l4proto tcp redirect to :7
`;

/** Drops what comes from or goes to `other`, at this NAT. */
async function cutOff(nat: Nat, other: string): Promise<void> {
  await nat.run([
    "nft",
    `
add table ip cut
add chain ip cut passing { type filter hook prerouting priority raw; }
add rule ip cut passing ip saddr ${other} drop
add rule ip cut passing ip daddr ${other} drop
`,
  ]);
}

/** One plain connect, from any port. */
async function connect(from: Host, to: Endpoint): Promise<Attempt> {
  const { address, port } = splitEndpoint(to);
  const out = await from.run([process.execPath, probe, "connect", "400", "0", `${address},${port}`]);
  return JSON.parse(out) as Attempt;
}

// --- what they do ----------------------------------------------------------------------------------------

interface Meeting {
  introducer: IntroducerProgram;
  alice: ParticipantProgram;
  bob: ParticipantProgram;
}

/** The introducer on the Internet, alice and bob registered and known to each other. */
async function gather(lab: Lab, people: People, { alice: a, bob: b }: Hosts): Promise<Meeting> {
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const [alice, bob] = await Promise.all([
    people.participant("alice", a, introducer, ["-v"]),
    people.participant("bob", b, introducer, ["-v"]),
  ]);
  await know(alice, bob);
  return { introducer, alice, bob };
}

async function know(...everyone: ParticipantProgram[]): Promise<void> {
  for (const one of everyone) {
    for (const other of everyone) if (one !== other) await one.sees(other);
  }
}

/** Both sides' `linked`, after checking that each is the other's mirror image. */
async function linkedBoth(a: ParticipantProgram, b: ParticipantProgram) {
  const both = await Promise.all([
    a.next("linked", ({ peer }) => peer === b.id),
    b.next("linked", ({ peer }) => peer === a.id),
  ]);
  const throughNats = both.some(({ remote }) => remote === a.public || remote === b.public);
  const ends = both.map(({ remote, local }) => ({ remote, local }));
  const [localA, localB] = [ends[0]!.local, ends[1]!.local];
  expect(ends).toEqual([
    { remote: throughNats ? b.public : localB, local: localA },
    { remote: throughNats ? a.public : localA, local: localB },
  ]);
  expect([a.private, b.private]).toEqual([
    expect.arrayContaining([localA]),
    expect.arrayContaining([localB]),
  ]);
  return both;
}

/** Words both ways over the link, each known to have arrived. */
async function talk(a: ParticipantProgram, b: ParticipantProgram): Promise<void> {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const text = `from ${from.name} ${crypto.randomUUID()}`;
    from.type(`say ${to.name} ${text}`);
    await to.next("said", (said) => said.peer === from.id && said.text === text);
    await from.next("sent", ({ peer }) => peer === to.id);
  }
}

/** A route, or `X/listen`: one side, or both, by X, and the other may have accepted instead. */
type Expected = Route | `${"public" | "private"}/listen`;

function fits(routes: Route[], expected: Expected): boolean {
  const [main, other] = expected.split("/");
  return routes.includes(main as Route) && routes.every((route) => route === main || route === other);
}

/** `asker` says connect; the link must come soon, by that route, carry words, and be in the introducer's list. */
async function expectRoute(meeting: Meeting, asker: "alice" | "bob", expected: Expected): Promise<void> {
  const { introducer, alice, bob } = meeting;
  meeting[asker].type(`connect ${asker === "alice" ? "bob" : "alice"}`);
  const both = await linkedBoth(alice, bob);
  const routes = both.map(({ route }) => route);
  if (!fits(routes, expected)) expect(routes.join(" and ")).toBe(expected);
  expect(Math.max(...both.map(({ elapsedMs }) => elapsedMs))).toBeLessThan(soonMs);
  await talk(alice, bob);
  for (const [index, { id }] of [alice, bob].entries()) {
    const { route, local, remote } = await introducer.next("linked", (event) => event.id === id);
    expect({ route, local, remote }).toMatchObject({ route: routes[index]!, local, remote });
  }
}

async function disconnect(from: ParticipantProgram, to: ParticipantProgram): Promise<void> {
  from.type(`disconnect ${to.name}`);
  await Promise.all([
    from.next("unlinked", ({ peer }) => peer === to.id),
    to.next("unlinked", ({ peer }) => peer === from.id),
  ]);
}

async function expectFailure(one: ParticipantProgram, reason: FailureReason, withinMs: number) {
  const failed = await one.next("failed", () => true, withinMs);
  expect({ reason: failed.reason, detail: failed.detail }).toEqual({ reason, detail: failed.detail });
  return failed;
}

// --- routes ----------------------------------------------------------------------------------------------

const rows: [where: string, layout: Layout, expected: Expected][] = [
  ["dropping NAT ↔ dropping NAT", apart(), "public"],
  ["resetting NAT ↔ dropping NAT", apart({ unsolicited: "reset" }, {}), "public/listen"],
  ["resetting NAT ↔ resetting NAT", apart({ unsolicited: "reset" }), "public/listen"],
  ["ICMP NAT ↔ dropping NAT", apart({ unsolicited: "icmp" }, {}), "public/listen"],
  ["ICMP NAT ↔ ICMP NAT", apart({ unsolicited: "icmp" }), "public/listen"],
  ["same LAN, no hairpinning", sameLan, "private/listen"],
  ["same host behind a NAT", sameHost, "private/listen"],
  ["dropping NAT ↔ open host", bobIsOpen(), "public/listen"],
  ["resetting NAT ↔ open host", bobIsOpen({ unsolicited: "reset" }), "public/listen"],
  ["the same private address in two LANs", twins, "public"],
];

labTest.each(rows)("%s, either side asking", async (_, layout, expected) => {
  await using lab = await Lab.create();
  await using people = new People();
  const meeting = await gather(lab, people, await layout(lab));
  await expectRoute(meeting, "alice", expected);
  await disconnect(meeting.alice, meeting.bob);
  await expectRoute(meeting, "bob", expected);
});

labTest.each(["nothing", "garbage"] as const)(
  "a stranger at the peer's private address, saying %s, either side asking: public",
  async (says) => {
    await using lab = await Lab.create();
    await using people = new People();
    const meeting = await gather(lab, people, await stranger(says)(lab));
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

labTest.each([
  ["dropping", "drop", "ETIMEDOUT"],
  ["resetting", "reset", "ECONNREFUSED"],
  ["ICMP", "icmp", "ECONNREFUSED"],
] as const)("%s NAT: without punching, nobody gets through", async (_, unsolicited, outcome) => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart({ unsolicited })(lab);
  const { alice, bob } = await gather(lab, people, hosts);
  const plain = await Promise.all([connect(hosts.alice, bob.public), connect(hosts.bob, alice.public)]);
  expect(plain.map((attempt) => attempt.outcome)).toEqual([outcome, outcome]);
});

// --- many, and again -------------------------------------------------------------------------------------

labTest("several peers at once, then everyone with everyone at once", async () => {
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

labTest("both ask at once, 10 times", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const { alice, bob } = await gather(lab, people, await apart()(lab));
  for (let round = 0; round < 10; round++) {
    alice.type("connect bob");
    bob.type("connect alice");
    const both = await linkedBoth(alice, bob);
    expect(both.map(({ route }) => route)).toEqual(["public", "public"]);
    await talk(alice, bob);
    await disconnect(round % 2 ? alice : bob, round % 2 ? bob : alice);
  }
  expect([...alice.all("error"), ...bob.all("error")]).toEqual([]);
});

/** The NATs still remember the connection that has just ended, between the same two endpoints. */
const again = (["drop", "reset"] as const).flatMap((unsolicited) =>
  (["at once", "once both have it"] as const).map((when) => [unsolicited, when] as const),
);

labTest.each(again)("NATs that %s: disconnect, and connect again %s, 10 times", async (unsolicited, when) => {
  await using lab = await Lab.create();
  await using people = new People();
  const { alice, bob } = await gather(lab, people, await apart({ unsolicited })(lab));
  alice.type("connect bob");
  await linkedBoth(alice, bob);
  for (let round = 0; round < 10; round++) {
    const [from, to] = round < 5 ? [alice, bob] : [bob, alice];
    if (when === "once both have it") await disconnect(from, to);
    else from.type(`disconnect ${to.name}`);
    from.type(`connect ${to.name}`);
    const both = await linkedBoth(alice, bob);
    expect(Math.max(...both.map(({ elapsedMs }) => elapsedMs))).toBeLessThan(soonMs);
  }
  await talk(alice, bob);
  expect([...alice.all("error"), ...bob.all("error")]).toEqual([]);
});

// --- what goes wrong -------------------------------------------------------------------------------------

/** alice and bob behind NATs between which nothing passes; the introducer is reached as ever. */
async function gatherCutOff(lab: Lab, people: People): Promise<Meeting> {
  const natA = await lab.nat("natA", { owdMs });
  const natB = await lab.nat("natB", { owdMs });
  await cutOff(natB, natA.address);
  const alice = await lab.host("alice", { behind: natA });
  const bob = await lab.host("bob", { behind: natB });
  return gather(lab, people, { alice, bob });
}

labTest("the peer is gone while punching: peer-left", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const { introducer, alice, bob } = await gatherCutOff(lab, people);
  alice.type("connect bob");
  await Promise.all([alice.next("punching"), bob.next("punching")]);
  await bob.kill("SIGKILL");
  await expectFailure(alice, "peer-left", 2000);
  await alice.next("left", ({ peer }) => peer === bob.id);
  await introducer.next("failed", ({ id, reason }) => id === alice.id && reason === "peer-left");
});

labTest("nobody answers: no-candidate-answered, on both sides within the deadline", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const { introducer, alice, bob } = await gatherCutOff(lab, people);
  alice.type("connect bob");
  const { at } = await alice.next("punching");
  const failures = await Promise.all(
    [alice, bob].map((one) => expectFailure(one, "no-candidate-answered", 12_000)),
  );
  for (const failed of failures) expect(failed.at - at).toBeWithin(9_900, 11_000);
  expect(failures[0]!.detail).toContain(bob.public);
  await introducer.next("failed", ({ reason }) => reason === "no-candidate-answered");
  await alice.next("error", ({ message }) => message.includes("no-candidate-answered"));
});

labTest("the introducer is killed: who is linked goes on talking", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const meeting = await gather(lab, people, await apart()(lab));
  await expectRoute(meeting, "alice", "public");
  const { introducer, alice, bob } = meeting;
  await introducer.kill("SIGKILL");
  await Promise.all([alice, bob].map((one) => one.next("introducer", ({ state }) => state === "lost")));
  await talk(alice, bob);
  for (const [from, to] of [
    [alice, bob],
    [bob, alice],
  ] as const) {
    from.type(`ping ${to.name}`);
    const { rttMs } = await from.next("pong", ({ peer }) => peer === to.id);
    expect(rttMs).toBeWithin(4 * owdMs, soonMs);
  }
});
