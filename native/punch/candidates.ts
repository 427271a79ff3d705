/**
 * What one round dials (RFC 8445 §5.1.1, §6.1.2; RFC 5128 §3.4, §3.6): the peer's host candidates, the endpoint the
 * introducer saw, and where a NAT does not keep that endpoint, the ports it is expected to use instead. Pure but for
 * the birthday's dice.
 */
import { networkInterfaces } from "node:os";
import {
  addressScope,
  canonicalAddress,
  maxCandidates,
  birthdayPorts,
  birthdaySockets,
  formatEndpoint,
  isDependent,
  mayOffer,
  predictedPorts,
  predictPort,
  scopeOf,
  splitEndpoint,
  type Endpoint,
  type Prediction,
  type Situation,
  type Way,
} from "../../protocol.ts";
import type { Candidate } from "./dial.ts";

/**
 * Birthday sockets start in steps, 8,000 SYNs a second at the most: a home router creates mappings faster than
 * that, and a batch is smaller than its queues.
 */
const paceBatch = 16;
const paceMs = 2;
/** Where every connection uses up a port of a sequential NAT, host candidates wait for those that count. */
const hostDelayMs = 30;

export interface Round {
  way: Way;
  own: Situation;
  peer: Situation;
  ownPrediction?: Prediction | undefined;
  peerPrediction?: Prediction | undefined;
  /** Our own endpoints: never dialled. */
  ours: ReadonlySet<Endpoint>;
  /** Sockets that may be opened. */
  budget: number;
}

/** The candidates of a round, those that matter most first. */
export function roundCandidates(round: Round): Candidate[] {
  const { own, peer, ours, budget } = round;
  const reflexive = byWay(round);
  const delay = own.mapping === "sequential" ? { afterMs: hostDelayMs } : {};
  const hosts = peer.private
    .filter((endpoint) => endpoint !== peer.public && mayOffer(endpoint, peer.public))
    .map((endpoint): Candidate => ({
      endpoint,
      route: scopeOf(endpoint) === "private" ? "private" : "public",
      ...delay,
    }));
  const isOverLoopback = scopeOf(own.public) === "loopback";
  const isUsable = ({ endpoint }: Candidate) => {
    const scope = scopeOf(endpoint);
    return !ours.has(endpoint) && scope !== "unusable" && (scope !== "loopback" || isOverLoopback);
  };
  const usable = [...reflexive, ...hosts].filter(isUsable);
  return usable.slice(0, Math.max(budget, hosts.length + 1));
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

// TEMPORARY until punchport brings its own.
export function hostCandidates(inUse: string | undefined, port: number, overLoopback: boolean): Endpoint[] {
  const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
  const host = all.flatMap(({ address }) => canonicalAddress(address.replace(/%.*$/, ""))?.address ?? []);
  const wanted = new Set([...(inUse === undefined ? [] : [inUse]), ...host]);
  const usable = [...wanted].filter((address) => {
    const scope = addressScope(address);
    return (
      scope === "private" || scope === "global" || (scope === "loopback" && overLoopback && address === inUse)
    );
  });
  return usable.slice(0, maxCandidates).map((address) => formatEndpoint(address, port));
}
