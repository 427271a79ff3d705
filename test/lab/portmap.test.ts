/**
 * A real router opens a port of a NAT that nobody could guess, for a plain connect from outside. These tests mostly wait,
 * and so do it together, each in a lab of its own.
 */
import { expect, setDefaultTimeout } from "bun:test";
import type { MappingProtocol } from "../../native/punch/gateway.ts";
import { formatEndpoint } from "../../protocol.ts";
import { type Host, Lab, type Nat } from "./lab.ts";
import { Program } from "./people.ts";
import type { PortMappingEvent } from "./portmap-fixture.ts";
import type { Attempt } from "./probe-fixture.ts";
import { MiniUpnpd, routerTest } from "./router.ts";
import { owdMs } from "./sides.ts";
import { patienceMs, testMs } from "../patience-fixture.ts";

setDefaultTimeout(3 * testMs);
const probe = `${import.meta.dir}/probe-fixture.ts`;
const fixture = `${import.meta.dir}/portmap-fixture.ts`;
const port = 40_000;
/** What the introducer has seen of alice by another connection: of a random NAT, any port. */
const observedPort = 51_234;
/** So short that a test sees it renewed, so long that no test does. */
const shortS = 8;
const longS = 7_200;

function ask(host: Host, observed: string, lifetimeS: number): Program<PortMappingEvent> {
  const endpoint = formatEndpoint(observed, observedPort);
  const command = [process.execPath, fixture, String(port), endpoint, String(lifetimeS)];
  return new Program(host.name, host.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "pipe" }));
}

/** A plain connect; what alice's host saw of it, or why it failed. */
async function connect(
  from: Host,
  address: string,
  to: number,
  timeoutMs = patienceMs,
): Promise<string | undefined> {
  const out = await from.run([process.execPath, probe, "connect", `${timeoutMs}`, "0", `${address},${to}`]);
  const attempt = JSON.parse(out) as Attempt;
  return attempt.observed ?? attempt.outcome;
}

async function until(what: string, isTrue: () => Promise<boolean> | boolean): Promise<void> {
  const giveUpAt = performance.now() + patienceMs;
  while (!(await isTrue())) {
    if (performance.now() > giveUpAt) throw new Error(`never happened: ${what}`);
    await Bun.sleep(50);
  }
}

async function behindRandom(lab: Lab): Promise<{ nat: Nat; alice: Host; carol: Host }> {
  const nat = await lab.nat("nat", { owdMs, mapping: "random" });
  const alice = await lab.host("alice", { behind: nat });
  return { nat, alice, carol: await lab.host("carol", { owdMs }) };
}

const protocols: MappingProtocol[] = ["pcp", "nat-pmp", "upnp"];

routerTest.concurrent.each(protocols)(
  "by %s only: opened, reached, renewed, closed at the end",
  async (protocol) => {
    await using lab = await Lab.create({ isIdle: true });
    const { nat, alice, carol } = await behindRandom(lab);
    await using router = await MiniUpnpd.start(lab, nat, [protocol]);
    const program = ask(alice, nat.address, shortS);
    const { state } = await program.next("state");
    expect(state).toEqual({
      is: "mapped",
      protocol,
      externalAddress: nat.address,
      externalPort: port,
      lifetimeS: shortS,
      candidate: formatEndpoint(nat.address, port),
    });
    expect(await connect(carol, nat.address, port)).toBe(carol.address);
    await router.has(1);
    const [first] = await router.leases();
    await until("renewed", async () => {
      const [lease] = await router.leases();
      return lease !== undefined && lease !== first;
    });
    expect(await connect(carol, nat.address, port)).toBe(carol.address);
    program.type("close");
    await program.next("deleted");
    await router.has(0);
    expect(await connect(carol, nat.address, port, 500)).toBe("ETIMEDOUT");
    expect(program.all("state")).toHaveLength(1);
  },
);

routerTest.concurrent.each(["pcp", "nat-pmp"] as const)(
  "by %s: a router that restarts is asked again",
  async (protocol) => {
    await using lab = await Lab.create({ isIdle: true });
    const { nat, alice, carol } = await behindRandom(lab);
    await using router = await MiniUpnpd.start(lab, nat, [protocol]);
    await ask(alice, nat.address, longS).next("state");
    // RFC 6887 §8.5 allows its clock to go back by a second.
    await until("its clock can go back", () => router.uptimeMs > 4_000);
    await router.restart(); // it knows of nothing
    await router.has(1);
    expect(await connect(carol, nat.address, port)).toBe(carol.address);
  },
);

routerTest.concurrent("a port that another host has: the router gives another one", async () => {
  await using lab = await Lab.create({ isIdle: true });
  const { nat, alice, carol } = await behindRandom(lab);
  const bob = await lab.host("bob", { behind: nat });
  await using _router = await MiniUpnpd.start(lab, nat, ["upnp"]);
  await ask(bob, nat.address, longS).next("state");
  const { state } = await ask(alice, nat.address, longS).next("state");
  if (state.is !== "mapped") throw new Error(`not mapped but ${JSON.stringify(state)}`);
  expect(state.externalPort).not.toBe(port);
  expect(await connect(carol, nat.address, state.externalPort)).toBe(carol.address);
});

/** The LAN of a carrier in which miniupnpd refuses to open anything, and one that looks like the Internet. */
const carriers: [what: string, lan: string, address: string][] = [
  ["an address that is private", "100.64.0.0/10", ""],
  ["an address that others don't see", "11.2.2.0/24", "11.2.2.2"],
];
const doubleNats = protocols.flatMap((protocol) =>
  carriers.map((carrier) => [protocol, ...carrier] as const),
);

routerTest.concurrent.each(doubleNats)(
  "by %s: a router with %s is a double NAT",
  async (protocol, _, lan, address) => {
    await using lab = await Lab.create({ isIdle: true });
    const carrier = await lab.nat("carrier", { owdMs, lan });
    const nat = await lab.nat("nat", { mapping: "random", behind: carrier });
    const alice = await lab.host("alice", { behind: nat });
    await using router = await MiniUpnpd.start(
      lab,
      nat,
      protocol === "pcp" ? ["pcp", "nat-pmp"] : [protocol],
    );
    const program = ask(alice, carrier.address, longS);
    const { state } = await program.next("state");
    expect(state).toEqual({
      is: "double-nat",
      protocol: protocol === "pcp" && address === "" ? "nat-pmp" : protocol,
      externalAddress: address,
    });
    program.type("close");
    await program.next("deleted");
    await router.has(0);
  },
);
