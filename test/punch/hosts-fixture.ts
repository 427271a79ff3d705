/** What the tests of a punch share: participants as a punch sees them, and what became of their punches. */
import { expect } from "bun:test";
import { type Identity, makeIdentity } from "../../native/secure/identity.ts";
import type { Channel } from "../../native/secure/channel.ts";
import type { Link } from "../../native/session/link.ts";
import { Targets } from "../../native/punch/targets.ts";
import type { Attempt, Punch, PunchOptions } from "../../native/punch/punch.ts";
import { PunchPort } from "../../native/punch/punch-port.ts";
import { Socket } from "../../native/host/socket.ts";
import type { Endpoint, FailureReason, Role } from "../../protocol.ts";
import {
  aliceIdentity,
  bobIdentity,
  bondOf,
  credentialsOf,
  linkOn,
  stories,
} from "../session/story-fixture.ts";
import { loopback } from "../native-fixture.ts";
import { patienceMs } from "../patience-fixture.ts";

export const isLinux = process.platform === "linux";
export { aliceIdentity, bobIdentity, bondOf, credentialsOf };
export const carolIdentity = makeIdentity();

export type Outcome = Linked | { is: "failed"; reason: FailureReason; detail: string };
/** `link` never comes where the other side does not begin one. */
export interface Linked {
  is: "linked";
  channel: Channel;
  link: Promise<Link>;
}

/** A punch ends with a nominated channel, on which both sides begin a link. */
export function linkedOn(channel: Channel): Linked {
  const link = linkOn(channel).then((story) => story.link);
  link.catch(() => {}); // told to whoever asks for it
  return { is: "linked", channel, link };
}

/** A participant as punch-port.ts sees one: a port that a control connection holds, and an identity. */
export class Host implements Disposable {
  readonly identity: Identity;
  readonly punchPort: PunchPort;
  readonly endpoint: Endpoint;
  readonly #control = Socket.open(4);

  /** `targets`: those of its program, if that has other hosts. */
  constructor(identity: Identity, targets = new Targets()) {
    this.identity = identity;
    const port = this.#control.bind(0);
    this.#control.shareport();
    this.endpoint = loopback(port);
    this.punchPort = new PunchPort(port, credentialsOf(identity), targets);
  }

  [Symbol.dispose](): void {
    this.#control.close();
  }
}

let tokens = 0;
export const newToken = () => (++tokens).toString(16).padStart(32, "0");

export interface Started {
  punch: Punch;
  /** The first outcome. */
  outcome: Promise<Outcome>;
  /** Every outcome: there must never be a second one. */
  outcomes: Outcome[];
  attempts: Attempt[];
}

export function start(
  host: Host,
  peer: Host,
  role: Role,
  token: string,
  changes: Partial<PunchOptions> = {},
): Started {
  const { promise, resolve } = Promise.withResolvers<Outcome>();
  const [outcomes, attempts]: [Outcome[], Attempt[]] = [[], []];
  const ended = (outcome: Outcome) => {
    outcomes.push(outcome);
    resolve(outcome);
  };
  const punch = host.punchPort.punch({
    introduction: { role, token },
    bond: bondOf(host.identity, peer.identity),
    candidates: [{ endpoint: peer.endpoint, route: "private" }],
    startInMs: 0,
    deadlineMs: patienceMs,
    isReachable: true,
    onLinked: (channel) => ended(linkedOn(channel)),
    onFailed: (reason, detail) => ended({ is: "failed", reason, detail }),
    onAttempt: (attempt) => attempts.push(attempt),
    ...changes,
  });
  return { punch, outcome: promise, outcomes, attempts };
}

export async function linkOf(started: Started): Promise<Link> {
  const outcome = await started.outcome;
  if (outcome.is === "linked") return outcome.link;
  throw new Error(`no link: ${outcome.reason}: ${outcome.detail}`);
}

export async function failureOf(started: Started): Promise<{ reason: FailureReason; detail: string }> {
  const outcome = await started.outcome;
  if (outcome.is === "linked") throw new Error("it linked");
  return { reason: outcome.reason, detail: outcome.detail };
}

/** Both links are the two ends of one connection, and it works in both directions. */
export async function expectSameConnection(one: Link, other: Link): Promise<void> {
  expect([one.local, one.remote]).toEqual([other.remote, other.local]);
  await stories.get(one)!.lines.say("hello");
  await stories.get(other)!.lines.say("welcome");
  expect([one, other].map((link) => stories.get(link)!.texts)).toEqual([["welcome"], ["hello"]]);
}

export async function closeBoth(...links: Link[]): Promise<void> {
  await Promise.all(links.map((link) => link.close("disconnected")));
}

export interface Extra {
  alice?: Partial<PunchOptions>;
  bob?: Partial<PunchOptions>;
}

/** Alice (controlling) and Bob punch towards each other, link, say hello and close. */
export async function expectLinked(
  alice: Host,
  bob: Host,
  extra: Extra = {},
): Promise<{ alice: Link; bob: Link }> {
  const token = newToken();
  const ofAlice = start(alice, bob, "controlling", token, extra.alice);
  const ofBob = start(bob, alice, "controlled", token, extra.bob);
  const links = { alice: await linkOf(ofAlice), bob: await linkOf(ofBob) };
  expect(links.alice).toMatchObject({ local: alice.endpoint, remote: bob.endpoint, isOpen: true });
  await expectSameConnection(links.alice, links.bob);
  await closeBoth(links.alice, links.bob);
  expect([ofAlice.outcomes.length, ofBob.outcomes.length]).toEqual([1, 1]);
  return links;
}

export const opposite = (role: Role): Role => (role === "controlling" ? "controlled" : "controlling");

/** The attempts that were begun, at one endpoint or at all. */
export const startsOf = ({ attempts }: Started, endpoint?: Endpoint) =>
  attempts.filter(({ outcome, remote }) => outcome === "started" && (endpoint ?? remote) === remote);
