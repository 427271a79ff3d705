/**
 * Links by a port that a router opens, between the real programs: where both NATs choose random ports and nothing can be
 * dug, one router that opens one makes a direct link; one that lies, is late or silent changes nothing for the worse.
 */
import { expect, setDefaultTimeout } from "bun:test";
import type { MappingProtocol } from "../../native/punch/gateway.ts";
import { Lab, labTest, type Nat } from "./lab.ts";
import { disconnect, expectRoute, gather, gatherDirect, mapped, talk, type Meeting } from "./meeting.ts";
import { People } from "./people.ts";
import { MiniUpnpd, routerTest } from "./router.ts";
import { owdMs, said, type Hosts } from "./sides.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

/** Some wait for a place among the labs. */
setDefaultTimeout(3 * testMs);
const router = `${import.meta.dir}/pcp-router-fixture.ts`;
const random = { owdMs, mapping: "random" } as const;
const protocols: MappingProtocol[] = ["pcp", "nat-pmp", "upnp"];

async function bothRandom(lab: Lab): Promise<Hosts & { nat: Nat }> {
  const nat = await lab.nat("natA", random);
  const alice = await lab.host("alice", { behind: nat });
  return { nat, alice, bob: await lab.host("bob", { behind: await lab.nat("natB", random) }) };
}

/** Starts a router that answers PCP so in the NAT's namespace; returns what has it answer, if it waits to be told. */
async function answers(nat: Nat, external: string, how: "opens" | "lies", when: "now" | "told" = "now") {
  const command = [process.execPath, router, nat.lan.gateway.ipv4, external, how, when];
  const program = nat.spawn(command, { stdin: "pipe", stdout: "pipe" });
  await said(program, "listening");
  return () => void program.stdin.write("answer\n");
}

/** `by`: at once, without one SYN, or beside a direct round, after a second of it. */
async function relayed({ introducer, alice, bob }: Meeting, by: "itself" | "a round"): Promise<void> {
  alice.type("connect bob");
  const both = await bothLinked(alice, bob);
  expect(both.map(({ route }) => route)).toEqual(["relay", "relay"]);
  const punched = introducer.all("punch").length;
  if (by === "itself") expect([punched, alice.all("attempt"), bob.all("attempt")]).toEqual([0, [], []]);
  else expect(punched).toBeGreaterThan(0);
}

function bothLinked(...pair: [Meeting["alice"], Meeting["bob"]]) {
  return Promise.all(pair.map((one) => one.next("linked")));
}

routerTest.concurrent.each(protocols)(
  "random ↔ random by %s only: mapped, either side asking",
  async (protocol) => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    await using real = await MiniUpnpd.start(lab, hosts.nat, [protocol]);
    const meeting = await gatherDirect(lab, people, hosts);
    const { alice, bob } = meeting;
    await mapped(meeting);
    for (const asker of ["alice", "bob"] as const) {
      const [ofAlice, ofBob] = await expectRoute(meeting, asker, "mapped/listen");
      expect([ofAlice!.route, ofBob!.route]).toEqual(["listen", "mapped"]);
      await disconnect(alice, bob);
    }
    await real.has(1);
    await alice.kill("SIGTERM");
    await real.has(0);
  },
);

routerTest.concurrent("with --no-portmap the router is not asked: by relay at once", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await bothRandom(lab);
  await using real = await MiniUpnpd.start(lab, hosts.nat, protocols);
  const meeting = await gather(lab, people, hosts, undefined, ["--no-portmap"]);
  await relayed(meeting, "itself");
  expect(await real.leases()).toEqual([]);
  expect(meeting.alice.all("port-mapping")).toEqual([]);
});

routerTest.concurrent(
  "the port is closed when we leave, and another is opened when we come back",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    await using real = await MiniUpnpd.start(lab, hosts.nat, ["pcp"]);
    const meeting = await gatherDirect(lab, people, hosts);
    const { alice, bob } = meeting;
    await mapped(meeting);
    await alice.comesBack();
    await mapped(meeting);
    await expectRoute(meeting, "bob", "mapped/listen");
    const states = alice.all("port-mapping").map(({ state }) => state);
    expect(new Set(states.map((state) => state.is === "mapped" && state.candidate)).size).toBe(2);
    await disconnect(bob, alice);
    await real.has(1);
  },
);

routerTest.concurrent(
  "`nat` names protocol, port and lifetime, and every kind of peer can be linked",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    await using _real = await MiniUpnpd.start(lab, hosts.nat, ["nat-pmp"]);
    const { alice } = await gather(lab, people, hosts);
    alice.type("nat");
    const { portMapping, expected, mapping } = await alice.next("nat");
    expect(mapping).toBe("random");
    expect(portMapping).toMatchObject({ is: "mapped", protocol: "nat-pmp", lifetimeS: 7_200 });
    expect(portMapping).toMatchObject({ externalAddress: hosts.nat.address });
    expect(new Set(expected.map(({ way }) => way))).toEqual(new Set(["direct"]));
  },
);

routerTest.concurrent.each(protocols)(
  "by %s: a port that the router has forgotten is opened again once a link needs it, and not after an hour",
  async (protocol) => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const hosts = await bothRandom(lab);
    await using real = await MiniUpnpd.start(lab, hosts.nat, [protocol]);
    const meeting = await gatherDirect(lab, people, hosts);
    const { alice, bob } = meeting;
    await mapped(meeting);
    await expectRoute(meeting, "bob", "mapped/listen");
    await real.forget();
    await (hosts.bob.behind as Nat).flush(); // so the link breaks, which is noticed by who says something
    alice.type("say bob into the dark");
    bob.type("say alice into the dark");
    await Promise.all([
      alice.next("moved", ({ route }) => route === "listen", patienceMs),
      bob.next("moved", ({ route }) => route === "mapped", patienceMs),
    ]);
    await talk(alice, bob);
  },
);

labTest.concurrent(
  "random ↔ random by a port that is forwarded by hand (--port): mapped, either side asking, from the first flight on",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    const { nat, alice: place } = hosts;
    await nat.run([
      "nft",
      `
add table ip byhand
add chain ip byhand incoming { type nat hook prerouting priority -100; }
add rule ip byhand incoming iifname "wan" tcp dport 7777 dnat to ${place.address}:7777
insert rule inet filtering forwarding iifname "wan" ct status dnat accept
`,
    ]);
    const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
    const room = ["-v", "--direct"];
    const alice = await people.participant("alice", place, introducer, [...room, "--port", "7777"]);
    const candidate = `${nat.address}:7777`;
    expect((await alice.next("port-mapping")).state).toEqual({ is: "forwarded", candidate } as never);
    // Nobody has measured anything of bob by then.
    const bob = await people.participant("bob", hosts.bob, introducer, [...room, "--connect", "alice"]);
    const both = await bothLinked(alice, bob);
    expect(both.map(({ route }) => route)).toEqual(["listen", "mapped"]);
    expect(both[0]!.local).toEndWith(":7777");
    expect(both[1]!.remote).toBe(candidate as never);
    await disconnect(alice, bob);
    await alice.comesBack();
    await expectRoute({ introducer, alice, bob }, "alice", "mapped/listen");
  },
);

labTest.concurrent(
  "a router whose address is another than others see: double NAT, nothing dialled, relayed at once",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    await answers(hosts.nat, "11.9.9.9", "lies");
    const meeting = await gather(lab, people, hosts);
    const { alice, bob } = meeting;
    const { state } = await alice.next("port-mapping");
    expect(state).toEqual({ is: "double-nat", protocol: "pcp", externalAddress: "11.9.9.9" });
    await relayed(meeting, "itself");
    expect([...alice.all("attempt"), ...bob.all("attempt")]).toEqual([]);
    alice.type("nat");
    const { portMapping, expected } = await alice.next("nat");
    expect(portMapping).toEqual(state);
    expect(expected.at(-1)).toEqual({ peer: "random ports", way: "none" });
  },
);

labTest.concurrent(
  "a router that says it has opened a port, and has not: relayed after a second",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    await answers(hosts.nat, hosts.nat.address, "lies");
    const meeting = await gather(lab, people, hosts);
    await mapped(meeting);
    await relayed(meeting, "a round");
    await talk(meeting.alice, meeting.bob);
  },
);

labTest.concurrent("a router that never answers: relayed at once, and `nat` says so", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const hosts = await bothRandom(lab);
  const deaf = 'insert rule inet filtering incoming iifname "lan" meta l4proto udp drop';
  await hosts.nat.run(["nft", deaf]);
  const meeting = await gather(lab, people, hosts);
  await relayed(meeting, "itself");
  meeting.alice.type("nat");
  const { portMapping } = await meeting.alice.next("nat");
  expect(portMapping).toMatchObject({ is: "unavailable" });
});

labTest.concurrent(
  "a router that answers late: relayed at once, then direct by the mapped port",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await bothRandom(lab);
    const answer = await answers(hosts.nat, hosts.nat.address, "opens", "told");
    const meeting = await gather(lab, people, hosts);
    const { alice, bob } = meeting;
    await relayed(meeting, "itself");
    expect(alice.all("port-mapping")).toEqual([]);
    answer();
    await mapped(meeting);
    const moves = await Promise.all([alice, bob].map((one) => one.next("moved")));
    expect(moves.map(({ route }) => route)).toEqual(["listen", "mapped"]);
    await talk(alice, bob);
  },
);
