/**
 * When the asker's first SYN leaves, so that it reaches the peer's NAT just after the peer's own SYN has left it. All times
 * are counted from `connect`. The peer's SYN leaves once `connect` has come to the introducer and `punch` to the peer, which
 * takes half of both round trips to the introducer. How far the peer is we do not know, unless there was a link before.
 *
 *   asker       ──── connect ────► introducer ──── punch ────► peer
 *   asker       ─────────── SYN, which comes a little later ───────►
 *
 * A SYN that comes too late costs as much as it is late. One that comes too early costs a round trip between the two, and
 * more where the NAT answers it. Pure, but for what is remembered of peers. For native/punch/.
 */
import { type Endpoint, type Peer, punchDeadlineMs, splitEndpoint } from "../../protocol.ts";
import type { PunchContext } from "./context.ts";

/** As far the peer is taken to be, as a part of the way over the introducer: seldom is it nearer. */
const distanceShare = 0.4;
/** What introducer and peer may take to do their part. In the first introduction of a program that is some ms. */
const spareMs = 8;
/** So many peers are remembered: the latest. */
const maxRemembered = 256;

/**
 * How long after `connect` our SYN leaves, in ms. `ours`, `theirs`: round trips to the introducer; `distanceMs`: the one-way
 * delay to the peer, if it is known.
 */
export function headStartMs(ours: number, theirs: number, distanceMs?: number): number {
  const peerStartsMs = (ours + theirs) / 2;
  // By the triangle inequality it is no nearer than this.
  const nearestMs = Math.abs(ours - theirs) / 2;
  const assumedMs = distanceMs ?? Math.max(nearestMs, distanceShare * peerStartsMs);
  return Math.max(0, peerStartsMs - assumedMs) + spareMs;
}

/** One-way delays of links that there were, by where both ends were. */
export class Distances {
  readonly #known = new Map<string, number>();

  of(own: Endpoint, peer: Endpoint): number | undefined {
    return this.#known.get(keyOf(own, peer));
  }

  /** `distanceMs`: at most. A busy program measures too much, so the least counts. */
  keep(own: Endpoint, peer: Endpoint, distanceMs: number): void {
    const key = keyOf(own, peer);
    const least = Math.min(distanceMs, this.#known.get(key) ?? Infinity);
    this.#known.delete(key);
    this.#known.set(key, least);
    if (this.#known.size > maxRemembered) this.#known.delete(this.#known.keys().next().value!);
  }
}

/** By the addresses at which the introducer sees both: behind others they may be elsewhere. */
function keyOf(own: Endpoint, peer: Endpoint): string {
  return [own, peer].map((endpoint) => splitEndpoint(endpoint).address).join(" ");
}

/** Those of this program. */
export const distances = new Distances();

/**
 * How long after our `connect` our first SYN to that peer leaves. Undefined if ports must be measured first, or if it is not
 * known how far the introducer is from both.
 */
export function headStart(
  { roundTripMs, behaviour, public: own }: Pick<PunchContext, "roundTripMs" | "behaviour" | "public">,
  peer: Peer,
): number | undefined {
  const isKept = [behaviour?.mapping, peer.mapping].every((mapping) => mapping === "endpoint-independent");
  if (!isKept || roundTripMs === undefined || peer.roundTripMs === undefined) return undefined;
  const waitMs = headStartMs(roundTripMs, peer.roundTripMs, distances.of(own, peer.public));
  return waitMs < punchDeadlineMs ? waitMs : undefined;
}
