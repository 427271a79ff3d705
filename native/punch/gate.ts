/**
 * What an introducer names for us to connect to, beside peers: a relay, where to be seen in the other address family,
 * where mapping probes go. It must neither send us to what only we can reach, nor have us find out for it who listens
 * where: nothing nearer than itself, few new endpoints, each remembered. One gate for a participant, however often it
 * registers. Pure but for the clock and the host's addresses. For native/punch/ and participant.ts.
 */
import { addressScope, scopeOf, splitEndpoint, type AddressScope, type Endpoint } from "../../protocol.ts";
import { hostAddresses, isOnLink } from "../host/interfaces.ts";

/**
 * New endpoints in a minute, and in an hour: at the introducer's own address, where it can listen itself, and elsewhere.
 * A registration has one to be seen at, four further probe ports and as many alternates; relays are at other introducers.
 */
const newEndpoints = { itsOwn: { minute: 32, hour: 256 }, elsewhere: { minute: 12, hour: 64 } };
/** Visits in a minute to those that are known: each relayed link is one, each registration some. */
const visitsPerMinute = 480;
const minuteMs = 60_000;
const hourMs = 3_600_000;
/** Below are the services of a network: only an introducer may be there, on its own port. */
export const firstPeerPort = 1024;

interface Known {
  kind: keyof typeof newEndpoints;
  since: number;
}

export class Gate {
  readonly #now: () => number;
  readonly #known = new Map<Endpoint, Known>();
  #visits: number[] = [];

  /** `now` in milliseconds, never going back. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Whether we may connect there now, since that introducer names it; a true answer counts it. */
  admits(endpoint: Endpoint, introducer: Endpoint): boolean {
    const now = this.#now();
    const isItsOwn = splitEndpoint(endpoint).address === splitEndpoint(introducer).address;
    this.#visits = this.#visits.filter((at) => now - at < minuteMs);
    if (this.#visits.length >= visitsPerMinute) return false;
    if (!isItsOwn && !isElsewhere(endpoint, introducer)) return false;
    const kind = isItsOwn ? "itsOwn" : "elsewhere";
    if (!this.#known.has(endpoint)) {
      for (const [one, { since }] of this.#known) if (now - since >= hourMs) this.#known.delete(one);
      const since = [...this.#known.values()].filter((one) => one.kind === kind).map((one) => one.since);
      const { minute, hour } = newEndpoints[kind];
      if (since.length >= hour || since.filter((at) => now - at < minuteMs).length >= minute) return false;
      this.#known.set(endpoint, { kind, since: now });
    }
    this.#visits.push(now);
    return true;
  }
}

/** Whether there may be something of an introducer's at another address than its own. */
function isElsewhere(endpoint: Endpoint, introducer: Endpoint): boolean {
  const { address, port } = splitEndpoint(endpoint);
  const { address: from, port: itsPort } = splitEndpoint(introducer);
  if ((port < firstPeerPort && port !== itsPort) || !isAsFar(endpoint, introducer)) return false;
  const hosts = hostAddresses();
  const isOwn = (one: string) => hosts.some((host) => host.address === one);
  // This host, or a neighbour, by a global address: that is for an introducer that is here, too.
  if (isOwn(address) && !isOwn(from) && addressScope(from) !== "loopback") return false;
  return !isOnLink(address, hosts) || isOnLink(from, hosts);
}

/** Whether it is no nearer to us than the introducer that names it: none may send us to what is in our own network only. */
export function isAsFar(endpoint: Endpoint, introducer: Endpoint): boolean {
  const distance: AddressScope[] = ["unusable", "loopback", "private", "global"];
  return distance.indexOf(scopeOf(endpoint)) >= Math.max(1, distance.indexOf(scopeOf(introducer)));
}
