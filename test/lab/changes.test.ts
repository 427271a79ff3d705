/** Addresses of a host that come and go: what is a change for its connections, and what is none. */
import { expect, setDefaultTimeout } from "bun:test";
import { type Endpoint, splitEndpoint } from "../../protocol.ts";
import { type Host, Lab, labTest, type Nat } from "./lab.ts";
import { cutOff, gather, know, link, linkedBoth, talk } from "./meeting.ts";
import { People, type ParticipantProgram } from "./people.ts";
import { apart, together } from "./sides.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);

const numbers = Array.from({ length: 12 }, (_, n) => n);
const addressOf = (n: number) => `172.${17 + n}.0.1`;

/** As Docker makes them. */
async function addBridges(host: Host): Promise<void> {
  const made = numbers.map((n) => `link add br-${n} type bridge\naddr add ${addressOf(n)}/16 dev br-${n}`);
  const up = numbers.map((n) => `link set br-${n} up`);
  await host.run(["sh", "-c", `ip -batch - <<END\n${[...made, ...up].join("\n")}\nEND`]);
}

async function removeBridges(host: Host): Promise<void> {
  await host.run([
    "sh",
    "-c",
    `ip -batch - <<END\n${numbers.map((n) => `link del br-${n}`).join("\n")}\nEND`,
  ]);
}

/** Resolves once the room has been told that its host candidates are these many, and which. */
async function told(alice: ParticipantProgram, bob: ParticipantProgram, count: number): Promise<string[]> {
  const giveUpAt = performance.now() + patienceMs;
  for (;;) {
    bob.type("list");
    const { peers } = await bob.next("peers");
    const hosts = peers.find(({ id }) => id === alice.id)?.private ?? [];
    if (hosts.length === count) return hosts;
    if (performance.now() > giveUpAt) throw new Error(`never told: ${count} candidates, but ${hosts.length}`);
    await Bun.sleep(50);
  }
}

labTest.concurrent(
  "a dozen bridges up and down under a punch: the same registration, the same punch, and others are told",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const { alice, bob } = await gather(lab, people, hosts, undefined, ["--direct"]);
    const nat = hosts.alice.behind as Nat;
    const before = alice.private.length;
    await cutOff(nat, bob.public);
    alice.type("connect bob");
    await alice.next("punching");
    await addBridges(hosts.alice);
    const all = await told(alice, bob, 10);
    expect(all[0]).toBe(alice.private[0]!);
    await removeBridges(hosts.alice);
    await nat.run(["nft", "delete table ip cut"]);
    await linkedBoth(alice, bob);
    await talk(alice, bob);
    await told(alice, bob, before);
    for (const one of [alice, bob]) {
      expect([one.all("registered").length, one.all("introducer"), one.all("failed")]).toEqual([1, [], []]);
      const rounds = one.all("punching").map(({ round }) => round);
      expect(rounds).toEqual(rounds.map((_, index) => index + 1)); // of one introduction
    }
  },
);

labTest.concurrent("a dozen bridges do not push out the one address of use", async () => {
  await using lab = await Lab.create();
  await using people = new People();
  const hosts = await together()(lab);
  await Promise.all([addBridges(hosts.alice), addBridges(hosts.bob)]);
  const meeting = await gather(lab, people, hosts, undefined, ["--direct"]);
  for (const one of [meeting.alice, meeting.bob]) {
    expect(one.private.length).toBe(10);
    expect(splitEndpoint(one.private[0]!).address).toMatch(/^192\.168\./);
  }
  const [ofAlice, ofBob] = await link(meeting);
  expect(["private", "listen"]).toEqual(expect.arrayContaining([ofAlice.route, ofBob.route]));
});

labTest.concurrent(
  "another address in place of the one in use is a change: it comes back from there, and the link moves",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const { alice, bob } = await gather(lab, people, hosts, undefined, ["--direct"]);
    alice.type("connect bob");
    await linkedBoth(alice, bob);
    const old = hosts.alice.address;
    const prefix = old.replace(/\d+$/, "");
    const commands = [
      `ip addr add ${prefix}77/24 dev eth0`,
      `ip addr del ${old}/24 dev eth0`,
      `ip addr add ${prefix}77/24 dev eth0`, // a second address may go with the first
      `ip route replace default via ${prefix}1`,
    ];
    await hosts.alice.run(["sh", "-c", commands.join("; ") + "; true"]);
    const { reason } = await alice.next("introducer", ({ state }) => state === "lost");
    expect(reason).toBe(`our address ${old} is gone`);
    await alice.next("moved");
    await talk(alice, bob);
    expect(alice.all("registered").length).toBe(2);
  },
);

labTest.concurrent(
  "another address on the interface in use is no change, and the way by another interface is one",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    const hosts = await apart()(lab);
    const { alice, bob } = await gather(lab, people, hosts, undefined, ["--direct"]);
    const [host, router] = [hosts.alice, hosts.alice.behind!];
    const prefix = host.address.replace(/\d+$/, "");
    await host.run(["ip", "addr", "add", `${prefix}99/24`, "dev", "eth0"]);
    const all = await told(alice, bob, alice.private.length + 1);
    expect(all.map((one) => splitEndpoint(one as Endpoint).address)).toContain(`${prefix}99`);
    expect([alice.all("registered").length, alice.all("introducer")]).toEqual([1, []]);

    await lab.script(`
ip link add eth1 netns ${host.name} type veth peer name second netns ${router.name}
ip -n ${router.name} link set second master lan up
ip -n ${host.name} link set eth1 up
ip -n ${host.name} addr add ${prefix}88/24 dev eth1
ip -n ${host.name} route replace default via ${prefix}1 dev eth1
`);
    const { reason } = await alice.next("introducer", ({ state }) => state === "lost");
    expect(reason).toBe(
      `our address ${host.address} is not the one that we use towards the introducer any more`,
    );
    const again = await alice.next("registered", ({ private: [first] }) => first!.startsWith(`${prefix}88:`));
    expect(again.id).not.toBe(alice.all("registered")[0]!.id);
    // Her first list had bob, too: it says nothing of this one.
    await alice.next("peers", ({ at, peers }) => at >= again.at && peers.some(({ id }) => id === bob.id));
    await know(bob, alice);
    alice.type("connect bob");
    await linkedBoth(alice, bob);
  },
);
