/**
 * What a peer's life is told by, and how it stands in the list. Types, and nothing that does anything. For
 * native/participant/, native/terminal/ and participant.ts.
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

/** Whose event it is; `peer` is null when it is not in the room now, for its old id may be somebody else's. */
export interface Who {
  peer: number | null;
  name: string;
}

/** What a peer's life is told by, in the shape of the `--json` lines. Endpoints are text. */
export type PeerEvent = Who &
  (
    | { event: "punching"; role: Role; way: Way; round: number }
    | ({ event: "attempt" } & Attempt)
    | {
        event: "linked";
        route: Route;
        local: Endpoint;
        remote: Endpoint;
        /** Since our `connect`, or since the introducer asked us to punch. */
        elapsedMs: number;
      }
    | { event: "failed"; reason: FailureReason; detail: string }
    /** The link has no channel now: its streams wait. */
    | { event: "broken"; reason: string }
    /** It goes by another channel. `gapMs`: how long nothing went. */
    | { event: "moved"; route: Route; local: Endpoint; remote: Endpoint; gapMs: number }
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
  /** When the introducer last did: milliseconds since the epoch. */
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
  /** Channels that the link has gone by. */
  carriers?: number;
  /** Why it is untrusted. */
  distrust?: string;
}

/**
 * `untrusted`: its proof is wrong. `punching`: being introduced. `agreeing`: a channel is nominated, on which it has yet to
 * say which link that is for, or to prove itself. `returning`: linked, without a channel. What is not linked, and whose last punch failed,
 * is `failed`.
 */
export type PeerState = "untrusted" | "known" | "punching" | "agreeing" | "linked" | "returning" | "failed";

/** What is known of a peer apart from the link with it. */
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
  const { route, local, remote, openedAt, session } = link;
  const { bytesIn, bytesOut, carriersSoFar, roundTripMs } = session;
  const measured = roundTripMs === undefined ? {} : { rttMs: roundTripMs };
  const ageMs = Date.now() - openedAt;
  return { route, local, remote, ageMs, bytesIn, bytesOut, carriers: carriersSoFar, ...measured };
}
