/**
 * The events of one peer, and its row in the list. Types, mostly. For native/participant/, native/terminal/ and
 * participant.ts.
 */
import {
  type Endpoint,
  type FailureReason,
  type Mapping,
  type Peer,
  type Role,
  type Route,
  type UnlinkReason,
  type Way,
} from "../../protocol.ts";
import type { Attempt } from "../punch/punch.ts";
import type { Link } from "../session/link.ts";

/** The peer of an event. `peer` is null if it is not in the room now: its old id may be another one's. */
export interface Who {
  peer: number | null;
  name: string;
}

/** The channel by which a link goes. */
interface By {
  route: Route;
  local: Endpoint;
  remote: Endpoint;
  /** No direct way is looked for, because one of the two hides where it is. */
  hidden?: boolean;
  /** By relay: bytes a second that it allows, and why there is no direct way, if that is known. */
  limit?: number;
  why?: FailureReason;
}

/** The events of one peer, in the shape of the `--json` lines. Endpoints are text. */
export type PeerEvent = Who &
  (
    | { event: "punching"; role: Role; way: Way; round: number }
    | ({ event: "attempt" } & Attempt)
    /** `elapsedMs`: since our `connect`, or since the introducer asked us to punch. */
    | ({ event: "linked"; elapsedMs: number } & By)
    | { event: "failed"; reason: FailureReason; detail: string }
    /** The introducer wants us to wait before we ask it for that peer again. */
    | { event: "postponed"; retryInMs: number; reason: string }
    /** The link has no channel now: its streams wait. */
    | { event: "broken"; reason: string }
    /** The link goes by another channel. `gapMs`: for how long it had none. */
    | ({ event: "moved"; gapMs: number } & By)
    /** The link is relayed, a direct way was looked for in vain, and that was not known before. */
    | { event: "still-relayed"; reason: FailureReason; detail: string }
    | { event: "unlinked"; reason: UnlinkReason; detail: string }
    | { event: "said"; text: string }
    | { event: "sent"; rttMs: number }
    | { event: "pong"; rttMs: number }
  );
export type EventOf<Event> = Event extends Who ? Omit<Event, keyof Who> : never;

/** One peer as the list shows it. */
export interface PeerRow {
  id: number;
  name: string;
  state: PeerState;
  fingerprint: string;
  /** Whether the introducer lists it. */
  present: boolean;
  /** When the introducer last listed it, in ms since the epoch. */
  lastSeenAt: number;
  private: Endpoint[];
  public: Endpoint;
  /** The port that its router has opened. */
  mapped?: Endpoint;
  mapping: Mapping;
  /** To the introducer. */
  roundTripMs?: number;
  reason?: FailureReason;
  route?: Route;
  local?: Endpoint;
  remote?: Endpoint;
  rttMs?: number;
  ageMs?: number;
  bytesIn?: number;
  bytesOut?: number;
  /** How many channels the link has used. */
  carriers?: number;
  /** Why it is untrusted. */
  distrust?: string;
}

/**
 * `untrusted`: its proof is wrong. `punching`: it is being introduced to us. `agreeing`: a channel is nominated, and
 * the peer has not said yet for which link, or not proved itself. `returning`: linked, without a channel. `failed`: not
 * linked, and the last attempt failed.
 */
export type PeerState = "untrusted" | "known" | "punching" | "agreeing" | "linked" | "returning" | "failed";

/** What the introducer says of a peer. */
export interface KnownOfPeer {
  peer: Peer;
  state: PeerState;
  present: boolean;
  lastSeenAt: number;
  distrust: string | undefined;
  failure: FailureReason | undefined;
}

export function peerRow(known: KnownOfPeer, link: Link | undefined): PeerRow {
  const { peer, state, present, lastSeenAt, distrust, failure } = known;
  const { id, name, fingerprint, private: hosts, public: observed, mapped, mapping, roundTripMs } = peer;
  return {
    ...{ id, name, state, fingerprint, private: hosts, public: observed, mapping, present, lastSeenAt },
    ...(mapped && { mapped }),
    ...(roundTripMs !== undefined && { roundTripMs }),
    ...(distrust !== undefined && { distrust }),
    ...(state === "failed" && { reason: failure! }),
    ...(link && linkRow(link)),
  };
}

function linkRow(link: Link): Partial<PeerRow> {
  const { route, local, remote, openedAtMs, session } = link;
  const { bytesIn, bytesOut, carriersSoFar, roundTripMs } = session;
  const measured = roundTripMs === undefined ? {} : { rttMs: roundTripMs };
  const ageMs = performance.now() - openedAtMs;
  return { route, local, remote, ageMs, bytesIn, bytesOut, carriers: carriersSoFar, ...measured };
}
