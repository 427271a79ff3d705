/**
 * What a session remembers of one of its carriers. It is only a record. Each part has one writer, which is named. For the
 * parts of native/session/transport.ts.
 */
import { type Carrier } from "./carrier.ts";
import { type FrameDecoder } from "./frame.ts";

/** How far it is read. Written by receiver.ts. */
export interface Incoming {
  /** `held`: an older carrier must bring what is missing before `position`. `discarding`: a `start` must come first. */
  reading: "unstarted" | "in-sequence" | "held" | "discarding";
  /** The number of the next sequenced frame that it brings. */
  position: number;
  heldAtMs: number;
  /** What came and is not read yet. */
  rest: Buffer[];
}

/** What must still be sent on it. Written by sender.ts. */
export interface Outgoing {
  mustStart: boolean;
  firstStart: number | undefined;
  hasRewound: boolean;
  pong: Buffer | undefined;
}

/** Signs of life. Written by liveness.ts. */
export interface SignsOfLife {
  heardAtMs: number;
  /** Since when an answer has been due, unless something was heard later. */
  askedAtMs: number;
  toldDeadAtMs: number;
  ping: "none" | "due" | { number: number; sentAtMs: number };
}

/** One carrier, as long as the session has it. What is not in a part is written by transport.ts and handover.ts. */
export class CarrierState {
  readonly carrier: Carrier;
  readonly decoder: FrameDecoder;
  /** `offered`: the peer has not answered. `refused`: we said `old`, and the peer may offer it anew. */
  is: "offered" | "refused" | "current" | "old";
  sinceMs: number;
  epoch = 0;
  /** How often we offered it. */
  offers = 0;
  /** Whether both sides know that it belongs to the session. */
  isConfirmed = false;
  /** Once it is old: the number after all frames that were put on it or on older carriers. */
  putUntil = 0;
  readonly incoming: Incoming = { reading: "unstarted", position: 0, heldAtMs: 0, rest: [] };
  readonly outgoing: Outgoing = {
    mustStart: false,
    firstStart: undefined,
    hasRewound: false,
    pong: undefined,
  };
  readonly life: SignsOfLife;

  constructor(carrier: Carrier, decoder: FrameDecoder, is: CarrierState["is"], nowMs: number) {
    this.carrier = carrier;
    this.decoder = decoder;
    this.is = is;
    this.sinceMs = nowMs;
    this.life = { heardAtMs: nowMs, askedAtMs: 0, toldDeadAtMs: -Infinity, ping: "none" };
  }
}

/** The carriers of a session, to be read by all parts of the transport. */
export interface CarrierSet {
  readonly all: ReadonlySet<CarrierState>;
  /** The carrier on which frames are sent. All are read. */
  readonly current: CarrierState | undefined;
}
