/**
 * The life of a link in the lab: relayed where nothing can be dug, moving to a direct connection, and coming back after
 * its NAT has forgotten it, its address has changed, its relay or the introducer was killed. Real NATs, real programs.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { Lab, labTest, type Nat } from "./lab.ts";
import { cutOff, expectFailure, gather, know, link, linkedBoth, talk, type Meeting } from "./meeting.ts";
import { People, type ParticipantProgram } from "./people.ts";
import { apart, behind, behindProgram, between, owdMs, programKinds, type Layout } from "./sides.ts";
import { testMs } from "../patience-fixture.ts";

/** Some wait for a place among the labs. */
setDefaultTimeout(3 * testMs);
const random = { mapping: "random" } as const;
const sequential = { mapping: "sequential" } as const;
const streams = "test/lab/streams-fixture.ts";
/** An address of the Internet that nobody has. */
const freeAddress = "203.0.113.220";
/** How often a transfer is cut, and how much it has to do, so fast: `CUTS=50 BYTES=1000000000 MBITS=0` for more. */
const cuts = Number(process.env.CUTS ?? 4);
const streamedBytes = Number(process.env.BYTES ?? 2_000_000);
const upMbits = Number(process.env.MBITS ?? 10);

const hopeless: [where: string, layout: Layout][] = [
  ["random ↔ random", apart(random)],
  ["random ↔ sequential", apart(random, sequential)],
  ["sequential ↔ random", apart(sequential, random)],
];

// --- the relay -------------------------------------------------------------------------------------------

// The longest first: these mostly wait, while all others have their turn.

labTest.concurrent(
  "streams lose nothing while NATs forget them and their addresses change",
  async () => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const hosts = await apart()(lab);
    const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
    const { alice, bob } = await gatherStreams(people, hosts, introducer);
    alice.type("connect bob");
    await Promise.all([alice.next("linked"), bob.next("linked")]);
    for (const host of Object.values(hosts)) await host.setWan({ upMbits });
    const bytes = streamedBytes;
    for (let stream = 0; stream < 3; stream++) {
      alice.type(`send bob ${bytes}`);
      bob.type(`send alice ${bytes}`);
    }
    const nats = [hosts.alice.behind as Nat, hosts.bob.behind as Nat] as const;
    const addresses = [nats[0].address, nats[1].address, freeAddress, "203.0.113.221"];
    for (let cut = 0; cut < cuts; cut++) {
      const nat = nats[cut % 2]!;
      const moved = Promise.all([alice, bob].map((one) => one.next("moved")));
      await nats[(cut + 1) % 2]!.flush(); // which may break nothing
      await nat.changeAddress(addresses[(cut + 2) % addresses.length]!);
      await moved;
    }
    for (let stream = 0; stream < 3; stream++) await expectStreamed(alice, bob, bytes);
    expect([...alice.all("unlinked"), ...bob.all("unlinked")]).toEqual([]);
  },
  900_000,
);

labTest.concurrent(
  "a link that is ended while it is broken: the peer hears of it when it comes back",
  async () => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const hosts = await apart()(lab);
    const nat = hosts.alice.behind as Nat;
    const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
    const meeting = await gather(lab, people, hosts, introducer, ["--direct"]);
    const { alice, bob } = meeting;
    await link(meeting);
    await cutOff(nat, bob.public);
    bob.type("say alice hello?");
    await bob.next("broken");
    alice.type("disconnect bob");
    await alice.next("unlinked", ({ reason }) => reason === "disconnected");
    await nat.run(["nft", "delete table ip cut"]);
    expect(await bob.next("unlinked")).toMatchObject({ reason: "peer-disconnected" });
    expect(alice.all("linked").length).toBe(1);
  },
);

labTest.concurrent("with --keep 0 a broken link has ended", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const hosts = await apart()(lab);
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const alice = await people.participant("alice", hosts.alice, introducer, ["--keep", "0", "--direct"]);
  const bob = await people.participant("bob", hosts.bob, introducer);
  await know(alice, bob);
  await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
  alice.type("connect bob");
  await linkedBoth(alice, bob);
  await cutOff(hosts.alice.behind as Nat, bob.public);
  alice.type("say bob hello?");
  expect(await alice.next("unlinked")).toMatchObject({ reason: "connection-lost" });
  expect(alice.all("broken")).toEqual([]);
});

labTest.concurrent.each(hopeless)("%s: by relay, and not one SYN", async (_, layout) => {
  await using lab = await Lab.create();
  await using people = new People();
  const { introducer, alice, bob } = await gather(lab, people, await layout(lab));
  alice.type("connect bob");
  const both = await relayedBoth(alice, bob);
  for (const { remote } of both) expect(remote).toBe(introducer.endpoint);
  await talk(alice, bob);
  expect([...alice.all("attempt"), ...bob.all("attempt"), ...introducer.all("punch")]).toEqual([]);
  introducer.type("list");
  const { participants } = await introducer.next("participants");
  const links = participants.map(({ links: [link] }) => link);
  expect(links).toMatchObject([{ route: "relay" }, { route: "relay" }]);
  expect(links[0]!.relayedBytes).toBeGreaterThan(1000);
});

labTest.concurrent.each(hopeless)("%s, --direct: both-mappings-random at once", async (_, layout) => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await layout(lab);
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const alice = await people.participant("alice", hosts.alice, introducer, ["-v", "--direct"]);
  const bob = await people.participant("bob", hosts.bob, introducer, ["-v"]);
  await know(alice, bob);
  await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
  for (const [asker, other] of [
    [alice, bob],
    [bob, alice],
  ] as const) {
    asker.type(`connect ${other.name}`);
    await expectFailure(asker, "both-mappings-random");
  }
  expect([...alice.all("linked"), ...bob.all("linked"), ...introducer.all("relaying")]).toEqual([]);
  expect([...alice.all("attempt"), ...bob.all("attempt"), ...introducer.all("punch")]).toEqual([]);
});

labTest.concurrent("an introducer with --no-relay relays nothing", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const place = await lab.host("introducer", { owdMs });
  const introducer = await people.introducer(place, 7000, undefined, ["--no-relay"]);
  const meeting = await gather(lab, people, await apart(random)(lab), introducer);
  meeting.alice.type("connect bob");
  await expectFailure(meeting.alice, "both-mappings-random");
});

labTest.concurrent("a transfer goes on when a relayed link becomes direct", async () => {
  await using lab = await Lab.create({ isIdle: true });
  await using people = new People();
  const hosts = await apart(random)(lab);
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }), 7000, undefined, [
    "--relay-rate",
    "300K",
  ]);
  const { alice, bob } = await gatherStreams(people, hosts, introducer);
  alice.type("connect bob");
  await relayedBoth(alice, bob);
  const bytes = 8_000_000; // 27 s at the relay's rate
  alice.type(`send bob ${bytes}`);
  bob.type(`send alice ${bytes}`);
  await (hosts.alice.behind as Nat).changeMapping("endpoint-independent");
  await Promise.all([alice, bob].map((one) => one.next("moved", ({ route }) => route !== "relay")));
  await expectStreamed(alice, bob, bytes);
  expect([...alice.all("unlinked"), ...bob.all("unlinked")]).toEqual([]);
});

// --- coming back -----------------------------------------------------------------------------------------

type Trouble = (meeting: Meeting, hosts: Awaited<ReturnType<Layout>>) => Promise<void>;
const natOf = (hosts: Awaited<ReturnType<Layout>>) => hosts.alice.behind as Nat;
const renumber: Trouble = (_, hosts) => natOf(hosts).changeAddress(freeAddress);
const restart: Trouble = (_, hosts) => natOf(hosts).flush();
/** A NAT that keeps ports has them again with the first packet from inside: the connection may not even break. */
const troubles: [what: string, layout: Layout, trouble: Trouble, breaks: boolean][] = [
  ["its NAT is restarted", apart(), restart, false],
  ["its NAT is restarted, and takes other ports", apart(random, {}), restart, true],
  ["its NAT takes another address", apart(), renumber, true],
  [
    "its NAT takes another address, and the introducer is killed and started again",
    apart(),
    async (meeting, hosts) => {
      await meeting.introducer.kill("SIGKILL");
      await renumber(meeting, hosts);
    },
    true,
  ],
];

labTest.concurrent.each(troubles)(
  "a link lives on when %s; what was said meanwhile arrives",
  async (_, layout, trouble, breaks) => {
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const place = await lab.host("introducer", { owdMs });
    const hosts = await layout(lab);
    const introducer = await people.introducer(place);
    const meeting = await gather(lab, people, hosts, introducer);
    const { alice, bob } = meeting;
    alice.type("connect bob");
    await linkedBoth(alice, bob);
    await talk(alice, bob);
    await trouble(meeting, hosts);
    alice.type("say bob into the dark");
    bob.type("say alice from the dark");
    if (introducer.process.killed) await people.introducer(place);
    await Promise.all([
      bob.next("said", ({ text }) => text === "into the dark"),
      alice.next("said", ({ text }) => text === "from the dark"),
    ]);
    if (breaks) await Promise.all([alice, bob].map((one) => one.next("moved")));
    await talk(alice, bob);
    for (const one of [alice, bob]) {
      expect(one.all("said").length).toBe(3); // nothing twice
      expect(one.all("unlinked")).toEqual([]);
    }
  },
);

labTest.concurrent("a peer whose program was started anew has no link: that is told at once", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart()(lab);
  const meeting = await gather(lab, people, hosts);
  const { introducer, alice, bob } = meeting;
  await link(meeting);
  await talk(alice, bob);
  await bob.kill("SIGKILL");
  await alice.next("broken");
  const again = await people.participant("bob", hosts.bob, introducer);
  expect(await alice.next("unlinked")).toMatchObject({ reason: "peer-restarted" });
  await Promise.all([alice.sees(again), again.sees(alice)]);
  await Promise.all([alice.knowsMapping(again), again.knowsMapping(alice)]);
  alice.type("connect bob");
  await linkedBoth(alice, again);
  await talk(alice, again);
});

labTest.concurrent("--connect makes a link again that the peer has ended", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await apart()(lab);
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const bob = await people.participant("bob", hosts.bob, introducer);
  const alice = await people.participant("alice", hosts.alice, introducer, ["--connect", "bob", "--stay"]);
  await linkedBoth(alice, bob);
  bob.type("disconnect alice");
  await alice.next("unlinked", ({ reason }) => reason === "peer-disconnected");
  await linkedBoth(alice, bob);
  await talk(alice, bob);
});

labTest.concurrent("a router that takes window scaling out of SYNs: windows are what they say", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const stripping = behindProgram(programKinds["strips window scale"]);
  const hosts = await between(stripping, behind({}))(lab);
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const { alice, bob } = await gatherStreams(people, hosts, introducer, ["--direct"]);
  alice.type("connect bob");
  await Promise.all([alice.next("linked"), bob.next("linked")]);
  // By 512 bytes a round trip, which is what 64 KiB come to if they are not, it would take minutes.
  alice.type("send bob 4000000");
  bob.type("send alice 4000000");
  await expectStreamed(alice, bob, 4_000_000);
});

// --- what they have in common ----------------------------------------------------------------------------

async function relayedBoth(alice: ParticipantProgram, bob: ParticipantProgram) {
  const isRelayed = ({ route }: { route: string }) => route === "relay";
  return Promise.all([alice.next("linked", isRelayed), bob.next("linked", isRelayed)]);
}

/** Two programs of the library's, that send each other streams. */
async function gatherStreams(
  people: People,
  hosts: Awaited<ReturnType<Layout>>,
  introducer: Meeting["introducer"],
  options: string[] = [],
): Promise<Pick<Meeting, "alice" | "bob">> {
  const [alice, bob] = await Promise.all(
    (["alice", "bob"] as const).map((name) =>
      people.participant(name, hosts[name], introducer, options, undefined, streams),
    ),
  );
  await know(alice!, bob!);
  await Promise.all([alice!.knowsMapping(bob!), bob!.knowsMapping(alice!)]);
  return { alice: alice!, bob: bob! };
}

interface Streamed {
  bytes: number;
  sha256: string;
}

/** One stream each way has been read to its end, and was what was sent. */
async function expectStreamed(a: ParticipantProgram, b: ParticipantProgram, bytes: number): Promise<void> {
  type Any = Parameters<ParticipantProgram["next"]>[0];
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const sent = (await from.next("streamed" as Any, () => true, 2 * testMs)) as unknown as Streamed;
    const isSame = (event: unknown) => (event as Streamed).sha256 === sent.sha256;
    const received = (await to.next("received" as Any, isSame)) as unknown as Streamed;
    expect([sent.bytes, received.bytes]).toEqual([bytes, bytes]);
  }
}
