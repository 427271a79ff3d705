/**
 * Which endpoints, beside those of peers, an introducer may have us connect to: a relay, an address of its other family,
 * probe ports. It must not send us to what only we can reach, nor use us to find out who listens where. So an endpoint must
 * not be nearer than the introducer itself, new ones are few, and each is remembered. A participant has one gate, however
 * often it registers. Pure but for the clock and the host's addresses. For native/punch/ and participant.ts.
 */
import { addressScope, scopeOf, splitEndpoint, type AddressScope, type Endpoint } from "../../protocol.ts";
import { hostAddresses, isOnLink } from "../host/interfaces.ts";

/**
 * New endpoints in a minute and in an hour: at the introducer's own address, where it could find out by itself, and
 * elsewhere. A registration has one endpoint to be seen at, four further probe ports, and as many at a second address.
 * Relays may be at other introducers.
 */
const newEndpoints = { itsOwn: { minute: 32, hour: 256 }, elsewhere: { minute: 12, hour: 64 } };
/** Visits in a minute to endpoints that are known. A relayed link is one visit, a registration some. */
const visitsPerMinute = 480;
const minuteMs = 60_000;
const hourMs = 3_600_000;
/** Ports below are those of a network's services. Only an introducer may be there, on its own port. */
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

  /** Whether we may connect to an endpoint that this introducer names. If the answer is true, it is counted. */
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

/** Whether an introducer may have something at this endpoint, which is not at its own address. */
function isElsewhere(endpoint: Endpoint, introducer: Endpoint): boolean {
  const { address, port } = splitEndpoint(endpoint);
  const { address: from, port: itsPort } = splitEndpoint(introducer);
  if ((port < firstPeerPort && port !== itsPort) || !isAsFar(endpoint, introducer)) return false;
  const hosts = hostAddresses();
  const isOwn = (one: string) => hosts.some((host) => host.address === one);
  // This host by its global address: only an introducer on this host may name it. A neighbour: only one on the same link.
  if (isOwn(address) && !isOwn(from) && addressScope(from) !== "loopback") return false;
  return !isOnLink(address, hosts) || isOnLink(from, hosts);
}

/** Whether the endpoint is no nearer to us than the introducer. Else it could send us to what only we can reach. */
export function isAsFar(endpoint: Endpoint, introducer: Endpoint): boolean {
  const distance: AddressScope[] = ["unusable", "loopback", "private", "global"];
  return distance.indexOf(scopeOf(endpoint)) >= Math.max(1, distance.indexOf(scopeOf(introducer)));
}
