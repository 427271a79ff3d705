/** What two participants and an introducer go through in a test: being gathered, linking by a route, talking. */
import { expect } from "bun:test";
import { splitEndpoint, type Endpoint, type FailureReason, type Route } from "../../protocol.ts";
import { until } from "../native-fixture.ts";
import type { Host, Lab, Nat } from "./lab.ts";
import type { IntroducerProgram, ParticipantProgram, People, Place } from "./people.ts";
import { owdMs, type Hosts } from "./sides.ts";

/** Rounds that most links may need: the second goes by fresh ports. How long one takes is the machine's affair. */
const fewRounds = 2;

export interface Meeting {
  /** Where the room lives. */
  introducer: IntroducerProgram;
  alice: ParticipantProgram;
  bob: ParticipantProgram;
}

/** A host as a place whose address is the IPv6 one. */
export function overIPv6(host: Host): Place {
  return {
    name: host.name,
    address: host.address6!,
    spawn: (command, options) => host.spawn(command, options),
  };
}

/** An introducer on the Internet, alice and bob registered, measured, and known to each other. bob may be given another. */
export async function gather(
  lab: Lab,
  people: People,
  { alice: a, bob: b }: Hosts,
  introducer?: IntroducerProgram,
  options: string[] = [],
  other?: IntroducerProgram,
): Promise<Meeting> {
  introducer ??= await people.introducer(await lab.host("introducer", { owdMs }));
  const [alice, bob] = await Promise.all([
    people.participant("alice", a, introducer, ["-v", ...options]),
    people.participant("bob", b, other ?? introducer, ["-v", ...options]),
  ]);
  await know(alice, bob);
  await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
  const both = [introducer, ...(other ? [other] : [])];
  const isHome = (one: IntroducerProgram) => one.all("joined").length >= 2;
  await until("both are at one introducer", () => both.some(isHome));
  return { introducer: both.find(isHome)!, alice, bob };
}

/** As `gather`, but never relayed: on a busy machine the relay may be there before the way that is meant. */
export function gatherDirect(lab: Lab, people: People, hosts: Hosts, introducer?: IntroducerProgram) {
  return gather(lab, people, hosts, introducer, ["--direct"]);
}

/** Resolves once alice's router has opened a port, and bob knows. */
export async function mapped({ alice, bob }: Meeting): Promise<void> {
  const { state } = await alice.next("port-mapping", ({ state: { is } }) => is === "mapped");
  if (state.is !== "mapped") throw new Error("unreachable");
  const isTold = ({ mapped: endpoint }: { mapped?: string }) => endpoint === state.candidate;
  const isListed = bob.all("peers").some(({ peers }) => peers.some(isTold));
  if (!isListed && !bob.all("updated").some(isTold)) await bob.next("updated", isTold);
}

/** Drops what comes from or goes to that address, at this NAT. */
export async function cutOff(nat: Nat, other: string): Promise<void> {
  const address = other.replace(/:\d+$/, "");
  await nat.run([
    "nft",
    `
add table ip cut
add chain ip cut passing { type filter hook prerouting priority raw; }
add rule ip cut passing ip saddr ${address} drop
add rule ip cut passing ip daddr ${address} drop
`,
  ]);
}

export async function know(...everyone: ParticipantProgram[]): Promise<void> {
  for (const one of everyone) {
    for (const other of everyone) if (one !== other) await one.sees(other);
  }
}

/** Both sides' `linked`, after checking that each is the other's mirror image. */
export async function linkedBoth(a: ParticipantProgram, b: ParticipantProgram) {
  const both = await Promise.all([
    a.next("linked", ({ peer }) => peer === b.id),
    b.next("linked", ({ peer }) => peer === a.id),
  ]);
  const [ofA, ofB] = both;
  // Each has it with the introducer; one alone where the direct way was there before the other was told.
  if (ofA.route === "relay" || ofB.route === "relay") return both;
  const isKept = [a, b].every(
    (one) =>
      one.all("punching").at(-1)?.way === "direct" &&
      one.all("mapping").at(-1)?.mapping === "endpoint-independent",
  );
  if (ofA.remote === ofB.local && ofB.remote === ofA.local) return both; // nothing translates
  const seen = [ofA.remote, ofB.remote];
  // Where ports are measured or guessed, only the addresses are known.
  const address = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  if (isKept) expect(seen).toEqual([b.public, a.public]);
  else expect(seen.map(address)).toEqual([b.public, a.public].map(address));
  return both;
}

/** Words both ways over the link, each known to have arrived. */
export async function talk(a: ParticipantProgram, b: ParticipantProgram): Promise<void> {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const text = `from ${from.name} ${crypto.randomUUID()}`;
    from.type(`say ${to.name} ${text}`);
    await to.next("said", (said) => said.name === from.name && said.text === text);
    await from.next("sent", ({ name }) => name === to.name);
  }
}

/** A route, or `X/listen`: one side, or both, by X, and the other may have accepted instead. */
export type Expected = Route | `${Exclude<Route, "listen">}/listen`;

function fits(routes: Route[], expected: Expected): boolean {
  const [main, other] = expected.split("/");
  return routes.includes(main as Route) && routes.every((route) => route === main || route === other);
}

/**
 * `asker` says connect; the link must come within so many rounds of one introduction, by that route, carry words, and be in
 * the introducer's list. Returns the two `linked`.
 */
export async function expectRoute(
  meeting: Meeting,
  asker: "alice" | "bob",
  expected: Expected,
  mostRounds = fewRounds,
) {
  const { introducer, alice, bob } = meeting;
  const punched = meeting[asker].all("punching").length;
  meeting[asker].type(`connect ${asker === "alice" ? "bob" : "alice"}`);
  const both = await linkedBoth(alice, bob);
  const routes = both.map(({ route }) => route);
  if (!fits(routes, expected)) expect(routes.join(" and ")).toBe(expected);
  const rounds = meeting[asker].all("punching").slice(punched);
  expect(Math.max(0, ...rounds.map(({ round }) => round))).toBeLessThanOrEqual(mostRounds);
  await talk(alice, bob);
  for (const [index, { id }] of [alice, bob].entries()) {
    const { route, local, remote } = await introducer.next("linked", (event) => event.id === id);
    expect({ route, local, remote }).toMatchObject({ route: routes[index]!, local, remote });
  }
  return both;
}

/** They are linked, by whatever way comes first. */
export function link(meeting: Pick<Meeting, "alice" | "bob">) {
  meeting.alice.type("connect bob");
  return linkedBoth(meeting.alice, meeting.bob);
}

export async function disconnect(from: ParticipantProgram, to: ParticipantProgram): Promise<void> {
  from.type(`disconnect ${to.name}`);
  await Promise.all([
    from.next("unlinked", ({ peer }) => peer === to.id),
    to.next("unlinked", ({ peer }) => peer === from.id),
  ]);
}

export async function expectFailure(one: ParticipantProgram, reason: FailureReason) {
  const failed = await one.next("failed");
  expect({ reason: failed.reason, detail: failed.detail }).toEqual({ reason, detail: failed.detail });
  return failed;
}
