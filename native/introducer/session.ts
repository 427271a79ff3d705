/**
 * One connection of a participant, and who it is once it has registered. It decides nothing. For introducer.ts and
 * native/introducer/.
 */
import type { Socket } from "bun";
import { type Bucket, sourceOf } from "../shares/budget.ts";
import { notScheduled } from "./wheel.ts";
import type { RelayEnd } from "./relay.ts";
import {
  type Endpoint,
  LineDecoder,
  type Peer,
  type Prediction,
  type Route,
  splitEndpoint,
  type ToIntroducer,
} from "../../protocol.ts";
import type { Limits } from "./limits.ts";

/** Of a token's 32 hex digits. */
const tokenBytes = 16;

export type MessageOf<T extends ToIntroducer["type"]> = Extract<ToIntroducer, { type: T }>;

/** What a participant says of a link. The peer's id is of when it was last told: the peer may have come back since. */
export interface Link {
  route: Route;
  /** Undefined for one that it said when it registered: anybody can say so, and it counts when the other says so, too. */
  id: number | undefined;
}

/** Bun 1.4.5 has a socket's descriptor, of which bun-types don't know. */
export type Connection = Socket<Session | undefined> & { fd: number };

/** One connection. Small on purpose: what an idle participant doesn't need is made when needed. */
export class Session {
  readonly socket: Connection;
  /** Kept from `open`: a closed socket has no remote address. */
  readonly observed: Endpoint;
  /** Who shares its shares: {@link sourceOf} of its address. */
  readonly subscriber: string;
  readonly lines: Bucket;
  peer: Peer | undefined = undefined;
  /** {@link peer} as JSON, made when first needed: a room's snapshot is made of them. */
  json = "";
  room = "";
  /** Whether it waits to be registered, until it is known where its room lives. */
  isEntering = false;
  closing = false;
  /** Until when it must have registered or, once closing, be gone. */
  deadlineAt: number;
  /** When it is looked at next: native/introducer/wheel.ts. */
  slot = notScheduled;
  heardAt: number;
  pingId = 0;
  pingSentAt = 0;
  answeredPingId = 0;
  roundTripMs: number | undefined = undefined;
  badLines = 0;
  introductions: Bucket | undefined = undefined;
  /** By the peer's public instance, which stays when its id changes. */
  links: Map<string, Link> | undefined = undefined;
  /** Whether its `mapping` has come. */
  hasMeasured = false;
  /** Where its NAT, which counts, stood when last measured. */
  position: Prediction | undefined = undefined;
  takesRelay = true;
  /** When it is no control connection but one end of a relayed link. */
  relayed: RelayEnd<Session> | undefined = undefined;
  isConnectedBack = false;
  /** What `verify` has to repeat, and `probe`. */
  verifyToken: string | undefined = undefined;
  probeToken: string | undefined = undefined;
  decoder: LineDecoder | undefined = undefined;
  /** Read, but more than it may say now: while there is any, its socket is paused. */
  held: Uint8Array | undefined = undefined;
  /** How many had come by it when that was last looked at. */
  segments = 0;
  /** Of its held bytes and of a line that is not whole. */
  heldBytes = 0;
  hasEnded = false;
  /** Written at the end of the tick. */
  outgoing = "";
  unsent: Uint8Array[] | undefined = undefined;
  unsentBytes = 0;

  constructor(socket: Connection, observed: Endpoint, limits: Limits, now: number) {
    this.socket = socket;
    this.observed = observed;
    this.subscriber = sourceOf(splitEndpoint(observed).address);
    this.lines = { tokens: limits.messageBurst, at: now };
    this.deadlineAt = now + limits.registerDeadlineMs;
    this.heardAt = now;
  }
}

/** Whose session is served: its socket. */
export interface Served {
  readonly data: Session | undefined;
}

/** Where it is nobody's in particular. */
export const nobody: Served = { data: undefined };

/** A session that has registered. */
export type Member = Session & { peer: Peer };

/** Of many tokens at once, for thousands a second are made. */
const randomBytes = Buffer.alloc(256 * tokenBytes);
let randomAt = randomBytes.length;

export function newToken(): string {
  if (randomAt === randomBytes.length) {
    crypto.getRandomValues(randomBytes);
    randomAt = 0;
  }
  return randomBytes.toString("hex", randomAt, (randomAt += tokenBytes));
}
