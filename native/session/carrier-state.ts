/**
 * What a session remembers of one of its carriers: how far it is read and written. Only a record; the rules are in
 * native/session/transport.ts, which alone may import it.
 */
import { type Carrier } from "./carrier.ts";
import { type FrameDecoder } from "./frame.ts";

/** One carrier, as long as the session has it. */
export class Attachment {
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
  // reading
  /** `held`: an older one must bring what lacks before `position`. `discarding`: a `start` must come first. */
  reading: "unstarted" | "in-sequence" | "held" | "discarding" = "unstarted";
  /** The number of the next sequenced frame that it brings. */
  position = 0;
  heldAtMs = 0;
  /** What came and is not read yet. */
  rest: Buffer[] = [];
  heardAtMs: number;
  // writing
  mustStart = false;
  firstStart: number | undefined;
  hasRewound = false;
  /** The number behind the frames that were put on it or on older ones, once it is old. */
  putUntil = 0;
  pong: Buffer | undefined;
  mustPing = false;
  ping: { number: number; sentAtMs: number } | undefined;
  /** Since when an answer has been due, unless something was heard later. */
  askedAtMs = 0;
  toldDeadAtMs = -Infinity;

  constructor(carrier: Carrier, decoder: FrameDecoder, is: Attachment["is"], nowMs: number) {
    this.carrier = carrier;
    this.decoder = decoder;
    this.is = is;
    this.sinceMs = this.heardAtMs = nowMs;
  }
}
