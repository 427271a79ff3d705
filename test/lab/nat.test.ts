/**
 * Every kind of NAT against every other that matters, between the real programs: a line names the two sides and
 * the route that their connection must take. What happens in one home or office, or has no route: punch.test.ts.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { readdirSync } from "node:fs";
import { splitEndpoint } from "../../protocol.ts";
import type { NatReport, ParticipantEvent } from "../../native/participant/events.ts";
import { Lab, labTest, raceTest, type NatOptions } from "./lab.ts";
import {
  disconnect,
  type Expected,
  expectRoute,
  gatherDirect,
  linkedBoth,
  type Meeting,
  overIPv6,
  talk,
} from "./meeting.ts";
import { until } from "../native-fixture.ts";
import { type ParticipantProgram, People } from "./people.ts";
import {
  apart,
  behind,
  behindFirewall,
  behindTwo,
  between,
  type Layout,
  loaded,
  oneCarrier,
  open,
  owdMs,
  type Side,
  together,
} from "./sides.ts";
import { testMs } from "../patience-fixture.ts";

/** Some wait for a place among the labs. */
setDefaultTimeout(3 * testMs);
/** Rounds of guessing, of which one fails in 50. */
const guessedRounds = 3;
/** Rounds of predicting, where somebody else takes ports too. */
const predictedRounds = 6;
/** A race after an error may be lost as often. */
const refusedRounds = 4;

/** An address of the Internet that is free. */
const newAddress = "203.0.113.220";

const independent = behind({});
const sequential: NatOptions = { mapping: "sequential" };
const random: NatOptions = { mapping: "random" };

// --- routes ----------------------------------------------------------------------------------------------

type Row = [where: string, layout: Layout, expected: Expected, mostRounds?: number];

const rows: Row[] = [
  // more than one box, or less
  ["two levels ↔ one", between(behindTwo(), independent), "public"],
  ["two levels, both", between(behindTwo(), behindTwo()), "public"],
  ["one NAT, hairpinning", together({ hairpinning: true }), "private/listen"],
  ["one random NAT", together(random), "private/listen"],
  ["one carrier, hairpinning", oneCarrier({ hairpinning: true }), "public/listen"],
  ["firewall ↔ firewall", between(behindFirewall(), behindFirewall()), "public"],
  [
    "firewalls that reset",
    between(behindFirewall({ unsolicited: "reset" }), behindFirewall({ unsolicited: "reset" })),
    "public/listen",
  ],
  ["firewall ↔ NAT", between(behindFirewall(), independent), "public"],
  ["open host ↔ open host", between(open(), open()), "public/listen"],
];

async function eitherSideAsks(...[, layout, expected, mostRounds]: Row): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const meeting = await gatherDirect(lab, people, await layout(lab));
  await expectRoute(meeting, "alice", expected, mostRounds);
  await disconnect(meeting.alice, meeting.bob);
  await expectRoute(meeting, "bob", expected, mostRounds);
}

raceTest.concurrent.each(rows)("%s, either side asking", eitherSideAsks);

// --- IPv6 ------------------------------------------------------------------------------------------------

const onlyIPv6 = { ipv4: false, ipv6: true };
const both = { ipv6: true };

const rowsOverIPv6: [where: string, layout: Layout, expected: Expected][] = [
  ["firewalls that drop", between(behindFirewall({}, onlyIPv6), behindFirewall({}, onlyIPv6)), "public"],
  [
    "firewalls that reset",
    between(
      behindFirewall({ unsolicited: "reset" }, onlyIPv6),
      behindFirewall({ unsolicited: "reset" }, onlyIPv6),
    ),
    "public/listen",
  ],
  ["firewall ↔ open host", between(behindFirewall({}, onlyIPv6), open(onlyIPv6)), "public/listen"],
];

raceTest.concurrent.each(rowsOverIPv6)("IPv6 only: %s, either side asking", async (_, layout, expected) => {
  await using lab = await Lab.create();
  await using people = new People();
  const host = await lab.host("introducer", { owdMs, ...onlyIPv6 });
  const introducer = await people.introducer(overIPv6(host));
  const meeting = await gatherDirect(lab, people, await layout(lab), introducer);
  for (const asker of ["alice", "bob"] as const) {
    for (const { remote } of await expectRoute(meeting, asker, expected)) {
      expect(splitEndpoint(remote).family).toBe(6);
    }
    await disconnect(meeting.alice, meeting.bob);
  }
});

const rowsOfBoth: [where: string, layout: Layout, expected: Expected, family: 4 | 6 | undefined][] = [
  ["independent NATs", between(behind({}, both), behind({}, both)), "public/listen", undefined],
  [
    "random NATs, introduced over IPv4",
    between(behind(random, both), behind(random, both)),
    "public/listen",
    6,
  ],
  ["IPv4 only ↔ IPv4 and IPv6", between(behind({}), behind({}, both)), "public", 4],
];

raceTest.concurrent.each(rowsOfBoth)(
  "IPv4 and IPv6: %s, either side asking",
  async (_, layout, expected, family) => {
    await using lab = await Lab.create();
    await using people = new People();
    const host = await lab.host("introducer", { owdMs, ...both });
    const meeting = await gatherDirect(lab, people, await layout(lab), await people.introducer(host));
    for (const asker of ["alice", "bob"] as const) {
      const families = (await expectRoute(meeting, asker, expected)).map(
        ({ remote }) => splitEndpoint(remote).family,
      );
      expect(families).toEqual(Array(2).fill(family ?? families[0]!));
      await disconnect(meeting.alice, meeting.bob);
    }
  },
);

// --- a bad network, and one that changes -----------------------------------------------------------------

/** alice and bob, once alice's NAT has forgotten that she is registered. */
async function gatherForgotten(lab: Lab, people: People): Promise<Meeting> {
  const natA = await lab.nat("natA", { owdMs });
  const alice = await lab.host("alice", { behind: natA });
  const meeting = await gatherDirect(lab, people, { alice, bob: await independent(lab, "bob") });
  await natA.flush();
  return meeting;
}

raceTest.concurrent("alice's NAT forgets its mappings, then she asks: public", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  await expectRoute(await gatherForgotten(lab, people), "alice", "public/listen");
});

raceTest.concurrent(
  "alice's NAT forgets its mappings, then bob asks: public, once her keepalive has been",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const meeting = await gatherForgotten(lab, people);
    const { alice, bob } = meeting;
    const old = alice.id;
    const isBack = ({ name, peer }: { name: string; peer: number }) => name === "alice" && peer !== old;
    const linked = linkedBoth(alice, bob);
    linked.catch(() => {});
    const failed = bob.next("failed");
    failed.catch(() => {});
    bob.type("connect alice");
    const first = await Promise.race([linked, failed]);
    if (!Array.isArray(first)) {
      // The introducer could not reach her, so she was gone. Her keepalive brings her back.
      if (first.reason === "peer-left") await bob.next("joined", isBack);
      bob.type("connect alice");
    }
    await linked;
    await talk(alice, bob);
  },
);

/** After alice's endpoints have changed: bob's list has the new ones, and both link by them. */
async function expectReturn(meeting: Meeting, isNew: (registered: Registered) => boolean) {
  const { alice, bob } = meeting;
  const { private: hosts, public: seen } = await alice.next("registered", isNew);
  await alice.next("peers");
  await Promise.all([alice.sees(bob), bob.sees(alice)]);
  await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
  bob.type("list");
  const { peers } = await bob.next("peers", (list) => list.peers.some(({ id }) => id === alice.id));
  expect(peers.map((row) => ({ public: row.public, private: row.private }))).toEqual([
    { public: seen, private: hosts },
  ]);
  await expectRoute(meeting, "bob", "public/listen");
  await disconnect(alice, bob);
  await expectRoute(meeting, "alice", "public/listen");
}
type Registered = Extract<ParticipantEvent, { event: "registered" }>;

raceTest.concurrent(
  "alice's NAT takes another address: she comes back by it, and bob learns it",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const natA = await lab.nat("natA", { owdMs });
    const alice = await lab.host("alice", { behind: natA });
    const meeting = await gatherDirect(lab, people, { alice, bob: await independent(lab, "bob") });
    await natA.changeAddress(newAddress);
    await expectReturn(meeting, (registered) => splitEndpoint(registered.public).address === newAddress);
  },
);

raceTest.concurrent(
  "alice's host takes another address: she comes back by it, and bob learns it",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const { alice } = hosts;
    const meeting = await gatherDirect(lab, people, hosts);
    const next = alice.address.replace(/\d+$/, "99");
    const gateway = alice.behind!.lan.gateway.ipv4;
    await alice.run([
      "sh",
      "-ec",
      `ip addr del ${alice.address}/24 dev eth0
     ip addr add ${next}/24 dev eth0
     ip route replace default via ${gateway}`,
    ]);
    await expectReturn(meeting, (registered) =>
      registered.private.some((endpoint) => splitEndpoint(endpoint).address === next),
    );
  },
);

raceTest.concurrent("5 % loss and 50 ms jitter: three links, one after the other", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const hosts = await apart()(lab);
  const meeting = await gatherDirect(lab, people, hosts);
  for (const host of Object.values(hosts)) await host.setWan({ loss: 0.05, jitterMs: 50 });
  for (const asker of ["alice", "bob", "alice"] as const) {
    await expectRoute(meeting, asker, "public/listen", refusedRounds);
    await disconnect(meeting.alice, meeting.bob);
  }
});

labTest.concurrent(
  "an address that comes is no reason to register anew: the room is told of it, where it can be used",
  async () => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const hosts = await apart()(lab);
    const { introducer, alice, bob } = await gatherDirect(lab, people, hosts);
    // What a container's veth does to the host it starts on.
    await hosts.alice.run([
      "sh",
      "-ec",
      `ip link add veth9 type veth peer name veth8
     ip link set veth9 up; ip link set veth8 up
     ip addr add fe80::99/64 dev veth9 nodad
     ip addr add 10.99.0.1/24 dev veth9`,
    ]);
    const shown = async () => {
      bob.type("list");
      const { peers } = await bob.next("peers");
      return peers.flatMap((row) => row.private).map((endpoint) => splitEndpoint(endpoint).address);
    };
    while (!(await shown()).includes("10.99.0.1")) await Bun.sleep(20);
    expect(await shown()).not.toContain("fe80::99");
    alice.type("nat");
    const report = await alice.next("nat");
    expect(report).toMatchObject({ mapping: "endpoint-independent", filtering: "dropped" });
    expect([introducer.all("joined").length, alice.all("registered").length]).toEqual([2, 1]);
    expect(alice.all("error")).toEqual([]);
  },
);

// --- what it is ------------------------------------------------------------------------------------------

const kept = { mapping: "endpoint-independent", step: 0, isPreserved: true, hairpinning: false } as const;
const sequentially = { mapping: "sequential", isPreserved: false, dependsOn: "port" } as const;

const reports: Record<string, [side: Side, report: Partial<NatReport>]> = {
  drop: [behind({}), { ...kept, isTranslated: true, filtering: "dropped", ipv6: false }],
  reset: [behind({ unsolicited: "reset" }), { ...kept, isTranslated: true, filtering: "refused" }],
  icmp: [behind({ unsolicited: "icmp" }), { ...kept, isTranslated: true, filtering: "refused" }],
  hairpin: [behind({ hairpinning: true }), { ...kept, hairpinning: true }],
  dual: [behind({}, both), { ...kept, isTranslated: true, ipv6: true }],
  carrier: [behindTwo(), { ...kept, isTranslated: true, filtering: "dropped" }],
  one: [behind(sequential), { ...sequentially, step: 1, filtering: "dropped" }],
  seven: [behind({ mapping: { step: 7 } }), { ...sequentially, step: 7 }],
  byte: [behind({ mapping: "sequential-256" }), { ...sequentially, step: 256 }],
  random: [behind(random), { mapping: "random", isPreserved: false, dependsOn: "port" }],
  firewall: [behindFirewall(), { ...kept, isTranslated: false, filtering: "dropped" }],
  wall: [behindFirewall({ unsolicited: "reset" }), { ...kept, isTranslated: false, filtering: "refused" }],
  open: [open(), { ...kept, isTranslated: false, filtering: "let-in" }],
};

labTest.concurrent("--nat says what the lab has made, for every kind", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const introducer = await people.introducer(await lab.host("introducer", { owdMs, ...both }));
  const names = Object.keys(reports);
  const programs: ParticipantProgram[] = [];
  for (const name of names) {
    const host = await reports[name]![0](lab, name);
    programs.push(await people.participant(name, host, introducer, ["--nat"]));
  }
  const said = await Promise.all(programs.map((program) => program.next("nat")));
  const wanted = Object.entries(reports).map(([name, [, report]]) => [name, expect.objectContaining(report)]);
  expect(Object.fromEntries(names.map((name, index) => [name, said[index]]))).toEqual(
    Object.fromEntries(wanted),
  );
});

labTest.concurrent(
  "--nat with a second address of the introducer: a mapping that depends on nothing",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const host = await lab.host("introducer", { owdMs });
    await host.run(["ip", "addr", "add", `${newAddress}/32`, "dev", "eth0"]);
    await lab.command({ type: "route", address: newAddress, site: "introducer" });
    const introducer = await people.introducer(host, 7000, undefined, ["--alternate", newAddress]);
    const alice = await people.participant("alice", await independent(lab, "alice"), introducer, ["--nat"]);
    const bob = await people.participant("bob", await behind(random)(lab, "bob"), introducer, ["--nat"]);
    expect((await alice.next("nat")).dependsOn).toBe("nothing");
    expect((await bob.next("nat")).dependsOn).toBe("port");
  },
);

// --- what is counted, guessed or refused -----------------------------------------------------------------

const uncertain: Row[] = [
  // ports that can be counted (RFC 5128 §3.6.1)
  ["sequential ↔ independent", apart(sequential, {}), "predicted/listen"],
  ["step 7 ↔ independent", apart({ mapping: { step: 7 } }, {}), "predicted/listen"],
  ["sequential by 256 ↔ independent", apart({ mapping: "sequential-256" }, {}), "predicted/listen"],
  ["sequential, busy ↔ independent", between(loaded(behind(sequential)), independent), "predicted/listen"],
  [
    "sequential, reset ↔ reset",
    apart({ ...sequential, unsolicited: "reset" }, { unsolicited: "reset" }),
    "predicted/listen",
    predictedRounds,
  ],
  ["sequential ↔ sequential", apart(sequential), "predicted/listen", predictedRounds],
  [
    "step 7 ↔ sequential by 256",
    apart({ mapping: { step: 7 } }, { mapping: "sequential-256" }),
    "predicted/listen",
    predictedRounds,
  ],
  [
    "sequential, busy ↔ sequential",
    between(loaded(behind(sequential)), behind(sequential)),
    "predicted/listen",
    predictedRounds,
  ],

  [
    "two levels, sequential carrier ↔ one",
    between(behindTwo({}, sequential), independent),
    "predicted/listen",
  ],

  // ports that can only be guessed
  ["random ↔ independent", apart(random, {}), "birthday/listen", guessedRounds],
  ["random ↔ open host", between(behind(random), open()), "public/listen"],
  ["random ↔ firewall", between(behind(random), behindFirewall()), "birthday/listen", guessedRounds],

  // what an unsolicited SYN gets (RFC 5382 §4.3)
  ["reset ↔ ICMP", apart({ unsolicited: "reset" }, { unsolicited: "icmp" }), "public/listen", refusedRounds],
  ["ICMP prohibited ↔ drop", apart({ unsolicited: "icmp-prohibited" }, {}), "public/listen", refusedRounds],
  ["ICMP prohibited, both", apart({ unsolicited: "icmp-prohibited" }), "public/listen", refusedRounds],
  [
    "firewalls that say ICMP",
    between(behindFirewall({ unsolicited: "icmp" }), behindFirewall({ unsolicited: "icmp" })),
    "public/listen",
    refusedRounds,
  ],
];

const isGuessed = ([, , expected]: Row) => expected === "birthday/listen";
raceTest.concurrent.each(uncertain.filter((row) => !isGuessed(row)))(
  "%s, either side asking",
  eitherSideAsks,
);
// Guessing is work for the processor: each by itself.
raceTest.each(uncertain.filter(isGuessed))("%s, either side asking", eitherSideAsks);

raceTest.each([
  ["random", apart(random, {})],
  ["sequential", apart(sequential, {})],
])("%s ↔ independent: whoever asks as the program starts is linked too", async (_, layout) => {
  await using lab = await Lab.create();
  await using people = new People();
  const { alice: a, bob: b } = await layout(lab);
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const bob = await people.participant("bob", b, introducer);
  await bob.next("mapping");
  const options = ["--direct", "--connect", "bob", "--stay"]; // not by the relay, which may come before a late guess
  const alice = await people.participant("alice", a, introducer, options);
  await linkedBoth(alice, bob);
  await talk(alice, bob);
});

// --- what a guess leaves behind --------------------------------------------------------------------------

function descriptors({ process }: ParticipantProgram): number {
  return readdirSync(`/proc/${process.pid}/fd`).length;
}

/** A socket that measured may have been there still when they were counted first. */
async function expectDescriptors(one: ParticipantProgram, most: number): Promise<void> {
  await until(`${one.name} has ${most} descriptors`, () => descriptors(one) <= most);
}

raceTest.each(["alice", "bob"] as const)(
  "random ↔ independent, %s asking: a link holds one descriptor, its end none",
  async (asker) => {
    await using lab = await Lab.create();
    await using people = new People();
    const meeting = await gatherDirect(lab, people, await apart(random, {})(lab));
    const both = [meeting.alice, meeting.bob];
    const before = both.map(descriptors);
    await expectRoute(meeting, asker, "birthday/listen", guessedRounds);
    for (const [index, one] of both.entries()) await expectDescriptors(one, before[index]! + 1);
    await disconnect(meeting.alice, meeting.bob);
    for (const [index, one] of both.entries()) await expectDescriptors(one, before[index]!);
  },
);
