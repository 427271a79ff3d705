/**
 * The options of an introducer, and its events. Types and errors only. For introducer.ts, native/introducer/ and
 * native/terminal/.
 */
import type { Stats } from "./metrics.ts";
import type { Neighbour } from "./redis/homes.ts";
import type { Participant } from "./rooms.ts";
import type {
  Endpoint,
  FailureReason,
  Mapping,
  RefusalCode,
  Route,
  UnlinkReason,
  Way,
} from "../../protocol.ts";
import type { Limits, ShownLimits } from "./limits.ts";

/** The events of an introducer. With `--json` these are the lines. */
export type IntroducerEvent =
  | { event: "listening"; host: string; port: number }
  | { event: "joined"; id: number; name: string; room: string; private: Endpoint[]; public: Endpoint }
  | { event: "ignored"; address: Endpoint; endpoints: Endpoint[] }
  | { event: "left"; id: number; name: string; reason: string }
  /** It has the name that it wanted from the start. */
  | { event: "renamed"; id: number; name: string; was: string }
  | { event: "punch"; a: number; b: number; way: Way; round: number }
  | { event: "linked"; id: number; peer: number; route: Route; local: Endpoint; remote: Endpoint }
  | { event: "unlinked"; id: number; peer: number; reason: UnlinkReason }
  | { event: "failed"; id: number; peer: number; reason: FailureReason; detail: string }
  | { event: "refused"; id?: number; address: Endpoint; code: RefusalCode; message: string }
  | { event: "mapping"; id: number; mapping: Mapping }
  | { event: "mapped"; id: number; endpoint?: Endpoint }
  | { event: "relaying"; a: number; b: number; names: [string, string] }
  | { event: "relayed"; a: number; b: number; names: [string, string]; bytes: number }
  /** An error while serving that address; without an address, of a command of the operator's. */
  | { event: "error"; address?: Endpoint; message: string }
  /** How many participants and how many other introducers have got what the operator said. */
  | { event: "told"; participants: number; introducers?: number; id?: number; name?: string }
  | { event: "warning"; message: string }
  /** From now on Redis says where rooms live. */
  | { event: "shared"; message: string }
  | { event: "draining"; reason: string; participants: number; punching: number; relays: number }
  /** `others`: the introducers that share a Redis with this one. */
  | { event: "participants"; participants: Participant[]; others?: Neighbour[] }
  | { event: "stats"; stats: Stats; others?: Neighbour[] }
  | { event: "limits"; limits: ShownLimits };

export interface IntroducerOptions {
  /** By default all addresses of this host, IPv6 and IPv4. */
  host?: string;
  /** 0 lets the system choose. */
  port?: number;
  /** Ports for mapping probes. By default the next two, if they are free. */
  probePorts?: number[];
  /** A second address of this host, for probes that show address-dependent mappings. */
  alternate?: string;
  /** Whether to relay links that have no direct way. By default it does. */
  relay?: boolean;
  /** Bytes a second of one relayed link in each direction (1 MiB), and of all together (16 MiB). */
  relayRate?: number;
  relayTotal?: number;
  /** URL of the Redis that says at which of several introducers a room lives: redis: or rediss: (TLS). */
  redis?: string;
  /**
   * HOST[:PORT] to which others send participants whose room lives here. By default the likeliest address, and our
   * port.
   */
  advertise?: string;
  /** Only participants that have this key, too, may register. The same at all introducers that share a Redis. */
  key?: string;
  /** Where the metrics are served. By default nowhere. */
  metrics?: { hostname: string; port: number };
  limits?: Partial<Limits>;
  onEvent?: (event: IntroducerEvent) => void;
}

/** A port that was asked for can't be used for probes. The message says which one, and why. */
export class ProbePortError extends Error {}
