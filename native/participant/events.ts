/**
 * The events of a participant, in the shape of the `--json` lines, and its options. Types only. For participant.ts,
 * native/participant/ and native/terminal/.
 */
import type { Networks } from "./networks.ts";
import type { KnownPeers } from "../secure/known-peers.ts";
import type { Room } from "../secure/room.ts";
import type { UseEvent } from "../uses/services.ts";
import type { Identity } from "../secure/identity.ts";
import type { PeerEvent, PeerRow, Who } from "./peer-events.ts";
import type { MappingBehaviour } from "../punch/mapping.ts";
import type { PortMappingState } from "../punch/portmap.ts";
import type { AddressScope, Endpoint, Filtering, Mapping, Way } from "../../protocol.ts";

/** How long a link is kept without a connection, unless told otherwise. */
export const defaultKeepMinutes = 10;

/** Everything that happens, in the shape of the `--json` lines. `peer` is an id; endpoints are text. */
export type ParticipantEvent =
  | PeerEvent
  | (UseEvent & Pick<Who, "peer">)
  /** The words of a private room are secret: they are in no event. */
  | { event: "registered"; id: number; name: string; room: RoomKind; public: Endpoint; private: Endpoint[] }
  /** Only by relay, as was wanted: what the introducer allows one link each way, and all of its links, in bytes a second. */
  | { event: "hidden"; rate: number; total: number }
  | { event: "peers"; peers: PeerRow[] }
  | {
      event: "joined";
      peer: number;
      name: string;
      private: Endpoint[];
      public: Endpoint;
      mapping: Mapping;
      roundTripMs?: number;
    }
  | {
      event: "updated";
      peer: number;
      name: string;
      public: Endpoint;
      mapped?: Endpoint;
      mapping: Mapping;
      roundTripMs?: number;
    }
  | { event: "left"; peer: number; name: string }
  /** A peer has another name; and we ourselves have the one that we wanted. */
  | { event: "renamed"; peer: number; name: string; was: string }
  | { event: "named"; name: string; was: string }
  /** Somebody else has the name that we wanted. */
  | { event: "name-taken"; name: string; was: string }
  | { event: "mapping"; mapping: Mapping; step: number }
  /** Whether our router opens a port for us. */
  | { event: "port-mapping"; state: PortMappingState }
  | ({ event: "nat" } & NatReport)
  | { event: "echo"; text: string; rttMs: number }
  | { event: "notice"; text: string }
  /** Something takes more than a second. */
  | { event: "waiting"; for: "introducer" | "peer"; text: string }
  /** Who is waited for is not here, but these are; `more`: so many others. */
  | { event: "absent"; name: string; here: string[]; more?: number }
  /** For a while, nobody else has come into our private room. */
  | { event: "alone" }
  | { event: "introducer"; state: "lost" | "left" | "unreachable"; reason: string; retryInMs?: number }
  /** Something is wrong, and the program goes on. */
  | { event: "warning"; message: string }
  | { event: "error"; message: string };

export type RoomKind = "lobby" | "private";

/** What the `nat` command finds out (RFC 5382, RFC 5780). */
export interface NatReport extends MappingBehaviour {
  /** The endpoint that the introducer sees, and how far away the introducer is. */
  observed: Endpoint;
  scope: AddressScope;
  /** Whether the introducer sees another address than the host has. */
  isTranslated: boolean;
  /** What an unsolicited SYN from the introducer met; undefined if it did not say. */
  filtering?: Filtering;
  /** The same for a SYN from an address that we have never called, if the introducer has one. */
  filteringElsewhere?: Filtering;
  hairpinning: boolean;
  /** Whether the host has a global IPv6 address. */
  ipv6: boolean;
  /** What the router answered when asked for a port; undefined if it is not asked. */
  portMapping?: PortMappingState;
  /** Where the introducer was asked for that. */
  probes: readonly Endpoint[];
  /** For each kind of peer, the first way to a direct link. */
  expected: { peer: string; way: Way | "none" }[];
}

/** What we are in the room. */
export interface Self {
  id: number;
  name: string;
  room: RoomKind;
  public: Endpoint;
  private: Endpoint[];
  mapped?: Endpoint;
  fingerprint: string;
  mapping: Mapping;
}

export interface ParticipantOptions {
  /** Name or address of the introducer. */
  host: string;
  /** Its port (7000). */
  port?: number;
  /**
   * The port of this host that is used towards the introducer, and for links, from 1024 on. By default a free one. Peers are
   * told that the router forwards the same port to it.
   */
  localPort?: number;
  /** The introducer's key, where it has one. Only a proof of it is sent. */
  key?: string | undefined;
  /** What others call us: one word. */
  name: string;
  /**
   * The words of the room, which the introducer never learns; `lobby` is open to everyone. Or a room that is being
   * made.
   */
  room: string | Room | Promise<Room>;
  /** By default the identity in the user's state folder. */
  identity?: Identity;
  /**
   * Which certificates the names of a private room had when they were seen first: another one does not count as of the room.
   * By default nothing is remembered, and a name is whoever says it.
   */
  known?: KnownPeers;
  /** How NATs have mapped before, to be guessed by. By default nothing is remembered. */
  networks?: Networks;
  /** Gets all events. */
  onEvent?: (event: ParticipantEvent) => void;
  /** Report every attempt of a punch as an `attempt` event. */
  verbose?: boolean;
  /** Never let the introducer relay our links. */
  direct?: boolean;
  /** Only by relay: nobody but the introducer learns where we are. Nothing is dialled but the introducer, and nothing listens. */
  onlyRelay?: boolean;
  /** Whether to try for ever to reach an introducer that is not there yet. By default the first attempt must succeed. */
  patient?: boolean;
  /** Whether the router is asked for a port. By default it is, if we are behind one. */
  portMapping?: boolean;
  /** How long a link that has lost its connection is kept: minutes (10); 0 ends it at once. */
  keepMinutes?: number;
  /**
   * Whether an offer of files that `accept` does not take waits until it is accepted or refused: `uses.transfers`. By
   * default it is refused.
   */
  canAsk?: boolean;
  /** What is left out of what is sent, such as `*.tmp`, `node_modules/` or `photos/raw`. */
  exclude?: readonly string[];
  /** How fast files and pipes are sent, all together: bytes a second. By default as fast as can be. */
  bytesPerSecond?: number | undefined;
  /** Whether what is received may be executable. By default nothing of it is. */
  executable?: boolean;
}
