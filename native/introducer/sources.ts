/**
 * All that is counted of a source, which is an IPv4 address or an IPv6 /64, and of the site that it is of (a /48): what
 * it has now, and what it has used lately. Whoever asks for more is refused, or waits; what has nothing left is
 * forgotten. It owns the counts alone. For introducer.ts and native/introducer/. RFC 6177 (how many addresses a site
 * has).
 */
import { Shares, Usage } from "../shares/budget.ts";
import type { Limits } from "./limits.ts";

/**
 * Processor time in a window, of which sources have shares: some is left for everyone else, and for a load that nobody
 * foresaw.
 */
const sharedProcessorMs = 50;
/** Connections accepted in a window, of which sources have shares: they take 20 ms. */
const acceptedInWindow = 400;
const windowMs = 250;

export class Sources {
  readonly connections: Shares;
  readonly probes: Shares;
  readonly connectBacks: Shares;
  /** Each relay is of two sources. */
  readonly relays: Shares;
  /** Bytes that wait to be read, and to be sent. */
  readonly held: Shares;
  readonly unsent: Shares;
  /** Milliseconds of the processor, and connections that were accepted. */
  readonly processor: Usage;
  readonly accepted: Usage;

  constructor(limits: Limits) {
    const { ownHostShares } = limits;
    const shares = (all: number, each: number) => new Shares(all, each, ownHostShares);
    const usage = (all: number, eachSecond: number) =>
      new Usage(all, (eachSecond * windowMs) / 1000, windowMs, ownHostShares);
    this.connections = shares(limits.sessions, limits.sessionsPerAddress);
    this.probes = shares(limits.probes, limits.probesPerAddress);
    this.connectBacks = shares(limits.connectBacks, limits.connectBacksPerAddress);
    this.relays = shares(2 * limits.relays, limits.relaysPerAddress);
    this.held = shares(limits.heldBytes, limits.heldBytesPerAddress);
    this.unsent = shares(limits.unsentBytesInAll, limits.unsentBytesPerAddress);
    this.processor = usage(sharedProcessorMs, limits.processorMs);
    this.accepted = usage(acceptedInWindow, limits.acceptsPerSecond);
  }

  /** The limits of connections, relays and what is unsent have changed. */
  resize(limits: Limits): void {
    this.connections.resize(limits.sessions, limits.sessionsPerAddress);
    this.relays.resize(2 * limits.relays, limits.relaysPerAddress);
    this.unsent.resize(limits.unsentBytesInAll, limits.unsentBytesPerAddress);
  }

  tick(now: number): void {
    this.processor.tick(now);
    this.accepted.tick(now);
  }
}
