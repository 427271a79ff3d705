/** What the NAT that is a program (`nat.ts`) does, as a value in the words of RFC 4787 and 5382. Pure. */

/** Of how much of the remote endpoint a decision depends (RFC 4787 §4.1 for mapping, §5 for filtering). */
export type Dependence = "endpoint-independent" | "address-dependent" | "address-and-port-dependent";

/**
 * Which port a new mapping gets (RFC 4787 §4.2):
 * - `preservation`: the internal one; one that is taken gives way to any other
 * - `overloading`: the internal one, as long as nobody else uses it towards the same remote endpoint (netfilter)
 * - `random`: any
 * - `parity`: any that is even or odd like the internal one (§4.2.2)
 * - `contiguity`: at one distance to the internal one for all, so that neighbours stay neighbours (§4.2.3)
 * - `{ step }`: that much further than the last, from one counter
 * - `{ block }`: any of the so many ports that are set aside for the internal host (RFC 6888 §2, RFC 7422)
 */
export type PortAllocation =
  "preservation" | "overloading" | "random" | "parity" | "contiguity" | { step: number } | { block: number };

export interface NatBehaviour {
  mapping: Dependence;
  filtering: Dependence;
  allocation: PortAllocation;
  /** External addresses: an internal host keeps one, or each mapping takes the next (RFC 4787 REQ-2). */
  pooling: "paired" | "arbitrary";
  /** Whether internal hosts reach each other's external endpoints, seen by their own external ones (REQ-9). */
  hairpinning: boolean;
  /**
   * What a SYN gets that nothing lets in; `late-icmp`: ICMP after 6 s, unless our own SYN has crossed it by then
   * (RFC 5382 REQ-4).
   */
  unsolicited: "drop" | "reset" | "icmp" | "icmp-prohibited" | "late-icmp";
  /** What an inbound SYN gets that our own has crossed on the way; it ought to pass (RFC 5382 REQ-2). */
  simultaneousOpen: "passes" | "drop" | "reset";
  /** How many sessions an internal host may have: its next one is dropped. */
  maxSessions: number;
  /** Longer packets are dropped, each way and without ICMP: a path MTU that nobody discovers (RFC 2923 §2.1). */
  largestPacket: number;
  /** Whether a RST ends the session at once; otherwise it lasts for the transitory timeout (RFC 5382 §5). */
  resetDeletes: boolean;
  /** How long a session may be silent once both have sent a SYN, and how long before that and after the end. */
  establishedTimeoutMs: number;
  transitoryTimeoutMs: number;
  /** TCP options that do not come through: no-operations stand in their place. */
  stripped: ("timestamps" | "sack" | "window-scale")[];
  /** Whether the sequence numbers of the inside are replaced, as some firewalls do against guessing. */
  rewritesSequence: boolean;
  /** The largest segment size that a SYN may announce, in bytes. */
  largestSegment: number;
  /** Remote ports where a session that does not begin with HTTP is reset: an application layer gateway. */
  onlyHttp?: { first: number; last: number };
}

/** What RFC 4787 and 5382 ask for, with the least that filtering may let in. */
export const defaultBehaviour: NatBehaviour = {
  mapping: "endpoint-independent",
  filtering: "address-and-port-dependent",
  allocation: "preservation",
  pooling: "paired",
  hairpinning: false,
  unsolicited: "drop",
  simultaneousOpen: "passes",
  maxSessions: Infinity,
  largestPacket: 65_535,
  resetDeletes: true,
  establishedTimeoutMs: 7_440_000, // RFC 5382 REQ-5: 2 h 4 min
  transitoryTimeoutMs: 240_000, // REQ-5: 4 min
  stripped: [],
  rewritesSequence: false,
  largestSegment: 65_535,
};
