/**
 * Which endpoints we offer, and which ones a round dials (RFC 8445 §5.1.1, §6.1.2; RFC 5128 §3.4, §3.6): the peer's host
 * candidates, and the endpoint that the introducer saw. Where a NAT uses another port for each destination, the ports that
 * it is expected to use. Opens nothing. Pure but for random numbers. For native/punch/ and participant.ts.
 */
import {
  addressScope,
  birthdayPorts,
  birthdaySockets,
  type Endpoint,
  formatEndpoint,
  isVerified,
  maxCandidates,
  mayOffer,
  type Peer,
  predictedPorts,
  type Prediction,
  scopeOf,
  type Situation,
  splitEndpoint,
  type Way,
} from "../../protocol.ts";
import { isDependent, predictPort } from "../shares/rounds.ts";
import { type HostAddress, type StandingAddress, standingAddresses, standings } from "../host/interfaces.ts";
import type { Allowance } from "./allowance.ts";
import type { Candidate } from "./dial.ts";
import { firstPeerPort, isAsFar } from "./gate.ts";

/**
 * Birthday sockets start in batches, at most 12,000 SYNs a second. A home router creates mappings faster than that, and its
 * queues are longer than a batch.
 */
const paceBatch = 24;
const paceMs = 2;
/** Each connection uses up a port of a sequential NAT. So there the host candidates wait until the others have left. */
const hostDelayMs = 30;

export interface Round {
  way: Way;
  own: Situation;
  peer: Peer;
  /** The introducer, which names all this. */
  introducer: Endpoint;
  ownPrediction?: Prediction | undefined;
  peerPrediction?: Prediction | undefined;
  /** Our own endpoints. They are never dialled. */
  ours: ReadonlySet<Endpoint>;
  /** The addresses of this host. The peer may be on one of their links. */
  hosts: readonly HostAddress[];
  /** The allowance of the introduction that this round belongs to. */
  allowance: Allowance;
  /** Sockets that may be opened. */
  budget: number;
}

/**
 * Our host candidates: the usable addresses of this host with the shared port, at most {@link maxCandidates}. The one in use
 * comes first, then those that others reach most likely, IPv6 and IPv4 in turn (RFC 8421 §4).
 */
export function hostCandidates(
  inUse: string | undefined,
  port: number,
  overLoopback: boolean,
  hosts: readonly StandingAddress[] = standingAddresses(),
): Endpoint[] {
  const ranked = standings.flatMap((one) => inTurn(hosts.filter(({ standing }) => standing === one)));
  const wanted = new Set([...(inUse === undefined ? [] : [inUse]), ...ranked]);
  const isOffered = (address: string) => {
    const scope = addressScope(address);
    return scope === "loopback" ? overLoopback && address === inUse : scope !== "unusable";
  };
  return [...wanted]
    .filter(isOffered)
    .slice(0, maxCandidates)
    .map((address) => formatEndpoint(address, port));
}

/** Of each family, global addresses come first (RFC 6724 §5, rule 8). */
function inTurn(hosts: readonly HostAddress[]): string[] {
  const isIPv6 = (address: string) => address.includes(":");
  const isNear = (address: string) => Number(addressScope(address) !== "global");
  const addresses = hosts.map(({ address }) => address).sort((a, b) => isNear(a) - isNear(b));
  const [six, four] = [addresses.filter(isIPv6), addresses.filter((address) => !isIPv6(address))];
  return addresses.flatMap((_, turn) => [six[turn], four[turn]].filter((one) => one !== undefined));
}

/** The candidates of a round. Those that matter most come first. */
export function roundCandidates(round: Round): Candidate[] {
  const { own, peer, ours, budget, introducer } = round;
  const isOverLoopback = scopeOf(own.public) === "loopback" && scopeOf(introducer) === "loopback";
  const isUsable = (endpoint: Endpoint) => {
    const scope = scopeOf(endpoint);
    const isPeers = splitEndpoint(endpoint).port >= firstPeerPort && !ours.has(endpoint);
    return isPeers && scope !== "unusable" && (scope !== "loopback" || isOverLoopback);
  };
  const seen = isAsFar(peer.public, introducer) ? [...byWay(round), ...mapped(round)] : [];
  const reflexive = seen.filter(({ endpoint }) => isUsable(endpoint));
  // What we must not dial anyway takes nothing from the peer's allowance.
  const hosts = hostsOf(round)
    .filter(isUsable)
    .flatMap((endpoint) => host(round, endpoint) ?? []);
  return [...reflexive, ...hosts].slice(0, Math.max(budget, hosts.length + 1));
}

/** Where the peer may be with no NAT between us, and where the introducer saw it in the other address family. */
function hostsOf({ peer, introducer, hosts }: Round): Endpoint[] {
  const isPlausible = (endpoint: Endpoint) =>
    mayOffer(endpoint, peer.public) || isVerified(peer, splitEndpoint(endpoint).address);
  const all = new Set([...(peer.otherPublic ? [peer.otherPublic] : []), ...peer.private.filter(isPlausible)]);
  if (isAsFar(peer.public, introducer)) all.delete(peer.public);
  else all.add(peer.public);
  // An address that we have, too, is of use only if the peer is on this host: it is the last.
  const ours = new Set(hosts.map(({ address }) => address));
  const isAlike = (endpoint: Endpoint) => Number(ours.has(splitEndpoint(endpoint).address));
  return [...all].sort((a, b) => isAlike(a) - isAlike(b));
}

/**
 * Whether the introducer has seen the peer at that address. An introducer out in the Internet can't have seen what is in
 * our own network: there it only repeats what others claim.
 */
function isSeen({ peer, introducer }: Round, endpoint: Endpoint): boolean {
  return isVerified(peer, splitEndpoint(endpoint).address) && isAsFar(endpoint, introducer);
}

function host(round: Round, endpoint: Endpoint): Candidate | undefined {
  const { own, hosts, allowance } = round;
  const delay = own.mapping === "sequential" ? { afterMs: hostDelayMs } : {};
  if (isSeen(round, endpoint)) return { endpoint, route: "public", ...delay };
  const tries = allowance.triesAt(endpoint, hosts);
  return tries && { endpoint, route: scopeOf(endpoint) === "global" ? "public" : "private", tries, ...delay };
}

/** The port that the peer's router has opened. Not in a `fresh` round: there the peer listens on another port. */
function mapped({ way, own, peer }: Round): Candidate[] {
  const endpoint = peer.mapped;
  if (endpoint === undefined || endpoint === peer.public || way === "fresh") return [];
  if (!isVerified(peer, splitEndpoint(endpoint).address)) return [];
  return [{ endpoint, route: "mapped", ...(own.mapping === "sequential" && { afterMs: hostDelayMs }) }];
}

/** What a round of this way dials besides the host candidates. */
function byWay(round: Round): Candidate[] {
  const { way, own, peer, ownPrediction } = round;
  // A prediction may name other ports, but no other address than the peer's.
  const addressOf = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  const isPeers = round.peerPrediction && addressOf(round.peerPrediction.endpoint) === addressOf(peer.public);
  const peerPrediction = isPeers ? round.peerPrediction : undefined;
  const observed: Candidate = { endpoint: peer.public, route: "public" };
  if (way === "birthday") {
    if (isDependent(own)) return openMany(peer.public);
    if (isDependent(peer)) return guess(peer.public);
  }
  if (way === "fresh" && peerPrediction) return [{ endpoint: peerPrediction.endpoint, route: "public" }];
  if (way === "predicted") {
    // We don't know which of the two NATs counts. A fresh mapping of that one meets the shared mapping of the other.
    const isEither = ownPrediction && peerPrediction && !isDependent(own) && !isDependent(peer);
    if (isEither) return [{ ...observed, route: "predicted", isFresh: true }, ...window(peerPrediction)];
    if (ownPrediction && peerPrediction) return walk(peerPrediction);
    if (peerPrediction) return window(peerPrediction);
    // From a fresh port: of the shared port our NAT may still have an older mapping, of an earlier round or link.
    if (ownPrediction) return [{ ...observed, route: "predicted", isFresh: true }];
  }
  return [observed];
}

/** The ports that the peer's NAT gives next. All are dialled from our shared port: our NAT does not change it. */
function window(prediction: Prediction): Candidate[] {
  return Array.from({ length: predictedPorts }, (_, index) => ({
    endpoint: ahead(prediction, index + 1),
    route: "predicted" as const,
  }));
}

/**
 * Both NATs count. Each side dials one port of the other that lies some steps ahead. It dials it from so many fresh ports
 * that its own NAT reaches the port that the other side dials. So there is one pair of sockets that fits, even if each NAT
 * has given some ports to others meanwhile.
 */
function walk(prediction: Prediction): Candidate[] {
  const endpoint = ahead(prediction, predictedPorts);
  return Array.from({ length: predictedPorts }, () => ({
    endpoint,
    route: "predicted" as const,
    isFresh: true,
    isOnce: true,
  }));
}

function ahead(prediction: Prediction, count: number): Endpoint {
  return formatEndpoint(splitEndpoint(prediction.endpoint).address, predictPort(prediction, count));
}

/** The side with random ports: it makes many mappings, and the peer has to guess one of them. */
function openMany(endpoint: Endpoint): Candidate[] {
  return Array.from({ length: birthdaySockets }, (_, index) => ({
    endpoint,
    route: "birthday" as const,
    isFresh: true,
    isOnce: true,
    afterMs: paced(index),
  }));
}

/** The other side: as many guesses at the port, all different. */
function guess(observed: Endpoint): Candidate[] {
  const { address } = splitEndpoint(observed);
  return drawPorts(birthdaySockets).map((port, index) => ({
    endpoint: formatEndpoint(address, port),
    route: "birthday" as const,
    isOnce: true,
    afterMs: paced(index),
  }));
}

function paced(index: number): number {
  return Math.floor(index / paceBatch) * paceMs;
}

/** Draws `count` different ports at random. */
export function drawPorts(count: number): number[] {
  const { first, last } = birthdayPorts;
  const drawn = new Set<number>();
  while (drawn.size < count) drawn.add(first + Math.floor(Math.random() * (last - first + 1)));
  return [...drawn];
}
