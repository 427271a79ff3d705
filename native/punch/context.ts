/**
 * What introductions need of our registration. Types only: native/participant/situation.ts is what owns and writes it.
 * For native/punch/ and native/participant/.
 */
import type { SegmentClamp } from "../host/libc.ts";
import type { Endpoint, Takes, ToIntroducer } from "../../protocol.ts";
import type { Credentials } from "../secure/tls.ts";
import type { Member } from "../secure/room.ts";
import type { MappingBehaviour } from "./mapping.ts";
import type { PunchPort } from "./punch-port.ts";

/** What an introduction needs of our registration with the introducer. */
export interface PunchContext {
  readonly id: number;
  readonly introducer: Endpoint;
  readonly credentials: Credentials;
  /** Ourselves, as the room knows us; and the key that both ends of a connection must prove to have. */
  readonly self: Member;
  readonly bondKey: Uint8Array;
  readonly takes: Takes;
  readonly port: PunchPort;
  readonly public: Endpoint;
  readonly private: readonly Endpoint[];
  /** At our public address, the port that our router has opened for the shared one. */
  readonly mapped: Endpoint | undefined;
  /** Where mapping probes go. */
  readonly probes: readonly Endpoint[];
  readonly behaviour: MappingBehaviour | undefined;
  /** By this token the introducer knows our probes. */
  readonly probeToken: string | undefined;
  /** The round trip to the introducer, as it measured it. */
  readonly roundTripMs: number | undefined;
  /** How short packets must be, as it seems, not to get lost on our way out. */
  readonly segmentClamp: SegmentClamp;
  /** A connection opened on which TLS got stuck: both its first flights are longer than a packet may be. */
  handshakeStuck(): void;
  /** There is no direct way yet: the port that our router has opened may be closed. */
  doubtMapping(): void;
  /** Measures from a fresh port, when it is its turn; undefined where too many wait. */
  measureFresh<T>(measure: () => Promise<T | undefined>): Promise<T | undefined>;
  /** A port beside the shared one, for a round with fresh mappings. */
  portFor(localPort: number): PunchPort;
  /** Sends to the introducer. Does nothing once this registration is over. */
  send(message: ToIntroducer): void;
}
