/**
 * Which endpoints we offer, and what one round dials (RFC 8445 §5.1.1, §6.1.2; RFC 5128 §3.4, §3.6): the peer's host
 * candidates, the endpoints the introducer saw, and where a NAT does not keep those, the ports it is expected to use
 * instead. Opens nothing; pure but for the birthday's dice. For participant.ts.
 */
import {
  addressScope,
  birthdayPorts,
  birthdaySockets,
  formatEndpoint,
  isDependent,
  isVerified,
  maxCandidates,
  mayOffer,
  predictedPorts,
  predictPort,
  scopeOf,
  splitEndpoint,
  type Endpoint,
  type Peer,
  type Prediction,
  type Situation,
  type Way,
} from "../../protocol.ts";
import { hostAddresses, type HostAddress } from "../host/interfaces.ts";
import type { Allowance } from "./allowance.ts";
import type { Candidate } from "./dial.ts";
import { firstPeerPort, isAsFar } from "./gate.ts";

/**
 * Birthday sockets start in steps, 8,000 SYNs a second at the most: a home router creates mappings faster than
 * that, and a batch is smaller than its queues.
 */
const paceBatch = 16;
const paceMs = 2;
/** Where every connection uses up a port of a sequential NAT, other candidates wait for those that count. */
const hostDelayMs = 30;

export interface Round {
  way: Way;
  own: Situation;
  peer: Peer;
  /** Who names all this. */
  introducer: Endpoint;
  ownPrediction?: Prediction | undefined;
  peerPrediction?: Prediction | undefined;
  /** Our own endpoints: never dialled. */
  ours: ReadonlySet<Endpoint>;
  /** The addresses of this host, of whose links the peer may be. */
  hosts: readonly HostAddress[];
  /** That of the introduction, of which this is one round. */
  allowance: Allowance;
  /** Sockets that may be opened. */
  budget: number;
}

/** Our host candidates: every usable address of this host with the shared port, the one in use first. */
export function hostCandidates(
  inUse: string | undefined,
  port: number,
  overLoopback: boolean,
  hosts: readonly HostAddress[] = hostAddresses(),
): Endpoint[] {
  const wanted = new Set([...(inUse === undefined ? [] : [inUse]), ...hosts.map(({ address }) => address)]);
  const isOffered = (address: string) => {
    const scope = addressScope(address);
    return scope === "loopback" ? overLoopback && address === inUse : scope !== "unusable";
  };
  return [...wanted]
    .filter(isOffered)
    .slice(0, maxCandidates)
    .map((address) => formatEndpoint(address, port));
}

/** The candidates of a round, those that matter most first. */
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
  // A peer may claim what we must not dial: that takes no part of what it may claim.
  const hosts = hostsOf(round)
    .filter(isUsable)
    .flatMap((endpoint) => host(round, endpoint) ?? []);
  return [...reflexive, ...hosts].slice(0, Math.max(budget, hosts.length + 1));
}

/** Where the peer may be without any NAT in between, and where it was seen in the other address family. */
function hostsOf({ peer, introducer }: Round): Endpoint[] {
  const isPlausible = (endpoint: Endpoint) =>
    mayOffer(endpoint, peer.public) || isVerified(peer, splitEndpoint(endpoint).address);
  const all = new Set([...(peer.otherPublic ? [peer.otherPublic] : []), ...peer.private.filter(isPlausible)]);
  if (isAsFar(peer.public, introducer)) all.delete(peer.public);
  else all.add(peer.public);
  return [...all];
}

/**
 * Whether the introducer has seen the peer at that address, where it can see better than we: one that is out in the
 * Internet can only claim what is in our own network.
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

/** The port that the peer's router has opened; in a `fresh` round the peer listens on another one. */
function mapped({ way, own, peer }: Round): Candidate[] {
  const endpoint = peer.mapped;
  if (endpoint === undefined || endpoint === peer.public || way === "fresh") return [];
  if (!isVerified(peer, splitEndpoint(endpoint).address)) return [];
  return [{ endpoint, route: "mapped", ...(own.mapping === "sequential" && { afterMs: hostDelayMs }) }];
}

/** What is dialled besides the host candidates. */
function byWay(round: Round): Candidate[] {
  const { way, own, peer, ownPrediction } = round;
  // Ports may be told us, another address than the peer's may not.
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
    // Whichever of the two NATs counts after all: one of its fresh mappings meets the other's shared one.
    const isEither = ownPrediction && peerPrediction && !isDependent(own) && !isDependent(peer);
    if (isEither) return [{ ...observed, route: "predicted", isFresh: true }, ...window(peerPrediction)];
    if (ownPrediction && peerPrediction) return walk(peerPrediction);
    if (peerPrediction) return window(peerPrediction);
    // From a fresh port: the NAT still knows the shared one from an earlier round or link, by an older mapping.
    if (ownPrediction) return [{ ...observed, route: "predicted", isFresh: true }];
  }
  return [observed];
}

/** The ports that the peer's NAT gives next, all dialled from our one port, which our NAT keeps. */
function window(prediction: Prediction): Candidate[] {
  return Array.from({ length: predictedPorts }, (_, index) => ({
    endpoint: ahead(prediction, index + 1),
    route: "predicted" as const,
  }));
}

/**
 * Both NATs count. Each side dials one and the same port, that lies some steps ahead, from as many fresh ports as
 * it takes for its own NAT to reach the port that the other side dials: whatever each NAT has given to others
 * meanwhile, there is one pair of sockets that fits.
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

/** The side with random ports: as many mappings as we may make, one of which the peer shall guess. */
function openMany(endpoint: Endpoint): Candidate[] {
  return Array.from({ length: birthdaySockets }, (_, index) => ({
    endpoint,
    route: "birthday" as const,
    isFresh: true,
    isOnce: true,
    afterMs: paced(index),
  }));
}

/** The other side: as many different ports, drawn without repetition. */
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

/** `count` different ports. */
export function drawPorts(count: number): number[] {
  const { first, last } = birthdayPorts;
  const drawn = new Set<number>();
  while (drawn.size < count) drawn.add(first + Math.floor(Math.random() * (last - first + 1)));
  return [...drawn];
}
