/**
 * Where a participant can be, as values: alone on the Internet, behind a NAT, two, a firewall; and what two of
 * those make. Shared by tests and benches.
 */
import {
  Lab,
  type FirewallOptions,
  type Host,
  type HostOptions,
  type NatOptions,
  type ProgramOptions,
} from "./lab.ts";
import type { IntroducerProgram, People } from "./people.ts";

/** One-way delay of each site: 10 ms between any two. */
export const owdMs = 5;
const probe = `${import.meta.dir}/probe-fixture.ts`;
const traffic = `${import.meta.dir}/traffic-fixture.ts`;

/** Sets up one participant's host, called `name`, and what is before it. */
export type Side = (lab: Lab, name: string) => Promise<Host>;
export type Hosts = { alice: Host; bob: Host };
export type Layout = (lab: Lab) => Promise<Hosts>;

type Families = Pick<HostOptions, "ipv4" | "ipv6">;

/** With a public address. */
export function open(host: HostOptions = {}): Side {
  return (lab, name) => lab.host(name, { owdMs, ...host });
}

export function behind(nat: NatOptions, host: HostOptions = {}): Side {
  return async (lab, name) =>
    lab.host(name, { behind: await lab.nat(`${name}-nat`, { owdMs, ...nat }), ...host });
}

/** Behind a NAT that is a program, with that behaviour. */
export function behindProgram(program: ProgramOptions, nat: NatOptions = {}): Side {
  return behind({ ...nat, program });
}

export function behindFirewall(options: FirewallOptions = {}, families: Families = {}): Side {
  return async (lab, name) =>
    lab.host(name, { behind: await lab.firewall(`${name}-firewall`, { owdMs, ...options }), ...families });
}

/** A home router's NAT behind a carrier's. */
export function behindTwo(home: NatOptions = {}, carrier: NatOptions = {}): Side {
  return async (lab, name) => {
    const outer = await lab.nat(`${name}-carrier`, { owdMs, lan: "100.64.0.0/10", ...carrier });
    return lab.host(name, { behind: await lab.nat(`${name}-nat`, { ...home, behind: outer }) });
  };
}

/** The same while a neighbour behind its NAT opens a connection to somewhere else every 100 ms. */
export function loaded(side: Side): Side {
  return async (lab, name) => {
    const host = await side(lab, name);
    if (!host.behind) throw new Error(`${name} has no router to share`);
    const neighbour = await lab.host(`${name}-neighbour`, { behind: host.behind });
    const elsewhere = await lab.host(`${name}-elsewhere`, { owdMs });
    await said(elsewhere.spawn([process.execPath, probe, "serve", "80"], { stdout: "pipe" }), "listening");
    const to = `${elsewhere.address}:80`;
    await said(neighbour.spawn([process.execPath, traffic, to, "100"], { stdout: "pipe" }), "running");
    return host;
  };
}

/** Resolves once a fixture has said the word. */
export async function said(
  program: Bun.Subprocess<Bun.SpawnOptions.Writable, "pipe", "inherit">,
  word: string,
): Promise<void> {
  const { value } = await program.stdout.getReader().read();
  const text = new TextDecoder().decode(value).trim();
  if (text !== word) throw new Error(`a fixture said "${text}", not "${word}"`);
}

/** Each where that side puts them, at once: it is half of what a test of the lab takes before it begins. */
export function between(a: Side, b: Side): Layout {
  return async (lab) => {
    const [alice, bob] = await Promise.all([a(lab, "alice"), b(lab, "bob")]);
    return { alice, bob };
  };
}

/** Each behind a NAT of their own. */
export function apart(a: NatOptions = {}, b: NatOptions = a): Layout {
  return between(behind(a), behind(b));
}

/** Both behind one NAT. */
export function together(nat: NatOptions = {}): Layout {
  return async (lab) => {
    const shared = await lab.nat("nat", { owdMs, ...nat });
    const alice = await lab.host("alice", { behind: shared });
    return { alice, bob: await lab.host("bob", { behind: shared }) };
  };
}

/** Each behind a NAT of their own, both of these behind one carrier's. */
export function oneCarrier(carrier: NatOptions, home: NatOptions = {}): Layout {
  return async (lab) => {
    const outer = await lab.nat("carrier", { owdMs, lan: "100.64.0.0/10", ...carrier });
    const side = behind({ ...home, behind: outer });
    return between(side, side)(lab);
  };
}

/** A further address of the introducer. */
const alternate = "203.0.113.222";

/** An introducer that has another address, which sees other mappings. */
export async function introducerOfTwo(
  lab: Lab,
  people: People,
  host?: HostOptions,
): Promise<IntroducerProgram> {
  const place = await lab.host("introducer", { owdMs, ...host });
  await place.run(["ip", "addr", "add", `${alternate}/32`, "dev", "eth0"]);
  await lab.command({ type: "route", address: alternate, site: "introducer" });
  return people.introducer(place, 7000, undefined, ["--alternate", alternate]);
}

const eachDestination = { mapping: "address-and-port-dependent" } as const;

/** What netfilter can't be: kinds of NAT as a program. */
export const programKinds = {
  // filtering
  "filters nothing": { filtering: "endpoint-independent" },
  "filters by address": { filtering: "address-dependent" },
  // an external port that is not the internal one, yet the same for every destination
  "kept, random port": { allocation: "random" },
  "kept, parity": { allocation: "parity" },
  "kept, contiguity": { allocation: "contiguity" },
  "kept, block": { allocation: { block: 512 } },
  // an external port for each destination address
  "by address, sequential": { mapping: "address-dependent", allocation: { step: 1 } },
  "by address, random": { mapping: "address-dependent", allocation: "random" },
  // an external port for each destination
  overloaded: { ...eachDestination, allocation: "overloading" },
  "preserved once": { ...eachDestination, allocation: "preservation" },
  backwards: { ...eachDestination, allocation: { step: -1 } },
  "random, parity": { ...eachDestination, allocation: "parity" },
  // Guessing takes 512 ports a round until they are forgotten: a smaller block would soon be used up.
  "random, block": { ...eachDestination, allocation: { block: 4096 }, transitoryTimeoutMs: 30_000 },
  // several external addresses
  paired: { addressCount: 4 },
  "in turn": { addressCount: 4, pooling: "arbitrary" },
  "in turn, sequential": {
    ...eachDestination,
    addressCount: 4,
    pooling: "arbitrary",
    allocation: { step: 1 },
  },
  hairpins: { hairpinning: true },
  "hairpins, random port": { hairpinning: true, allocation: "random" },
  // what it does with SYN and RST, and how long it remembers
  "late ICMP": { unsolicited: "late-icmp" },
  "RST, not deleted by RST": { unsolicited: "reset", resetDeletes: false },
  "not deleted by RST": { resetDeletes: false },
  "forgets in seconds": { establishedTimeoutMs: 10_000, transitoryTimeoutMs: 2_000 },
  "drops crossing SYNs": { simultaneousOpen: "drop" },
  "refuses crossing SYNs": { simultaneousOpen: "reset" },
  // what it does to TCP
  "strips timestamps": { stripped: ["timestamps", "sack"] },
  "strips window scale": { stripped: ["window-scale"] },
  "rewrites sequence numbers": { rewritesSequence: true },
  "clamps segments": { largestSegment: 536 },
  "drops long packets": { largestPacket: 1280 },
  "HTTP only below 1024": { onlyHttp: { first: 1, last: 1023 } },
} as const satisfies Record<string, ProgramOptions>;
