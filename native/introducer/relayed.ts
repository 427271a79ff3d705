/**
 * A relayed link, and its two ends: what native/introducer/relay.ts and native/introducer/copier.ts both know of them. Pure.
 * For native/introducer/.
 */
import type { Socket } from "bun";
import type { Peer } from "../../protocol.ts";
import type { Bucket } from "../shares/budget.ts";

/** One of the two who are to be relayed. */
export interface RelayMember {
  readonly peer: Pick<Peer, "id" | "instance" | "name" | "fingerprint">;
  readonly room: string;
  /** Who shares its shares. */
  readonly source: string;
}

/** A connection that may become one end of a relayed link. */
export interface RelayConnection<Self> {
  readonly socket: Pick<Socket, "write" | "pause" | "resume" | "shutdown" | "terminate">;
  relayed: RelayEnd<Self> | undefined;
}

/**
 * open → ended: it will send no more → finished: the other has been told so → gone: its connection is closed. Each only
 * goes forward, and may leave some out.
 */
type Life = "open" | "ended" | "finished" | "gone";
const lives: readonly Life[] = ["open", "ended", "finished", "gone"];

/** One connection of a relayed link. */
export interface RelayEnd<Connection> {
  readonly session: Connection;
  readonly relay: Relay<Connection>;
  other: RelayEnd<Connection> | undefined;
  /**
   * Read from it, and to be written to the other: while there is any, it is not read. At most one read of Bun's, 512
   * KiB.
   */
  held: Uint8Array;
  readonly bucket: Bucket;
  /** How many bytes have come by it. */
  segments: number;
  /** How much may wait in the kernel to be read: little of who rests and sends tiny segments. */
  unread: "little" | "much";
  life: Life;
  isPaused: boolean;
  /** Whether the other takes no more now. */
  isBlocked: boolean;
}

/** A relayed link, from the offer on. */
export interface Relay<Connection> {
  readonly token: string;
  readonly members: readonly [RelayMember, RelayMember];
  readonly ends: RelayEnd<Connection>[];
  isPaired: boolean;
  bytes: number;
  /** Until when both must have come; then, until when something must have been relayed. */
  untilMs: number;
}

/** Alone writes the life of an end. */
export function become(end: { life: Life }, life: Life): void {
  if (lives.indexOf(life) > lives.indexOf(end.life)) end.life = life;
}

/** The same for a pair of peers when they have come back with other ids. */
export function relayKey(a: RelayMember, b: RelayMember): string {
  return `${[a.peer.instance, b.peer.instance].sort().join(" ")} ${a.room}`;
}
