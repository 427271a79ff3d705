/**
 * A session: what two running programs share. It is streams, over one sequence of frames that outlives its carriers.
 * Wires three parts: the {@link Transport} below, the {@link Multiplexer} of streams above, and the {@link Farewell}
 * that ends both. It knows no socket, seeks no carrier and prints nothing: its owner is told when a carrier is needed,
 * and brings it. For native/session/link.ts.
 */
import { type Role } from "../../protocol.ts";
import {
  refuseOffer,
  systemClock,
  type Carrier,
  type CarrierEvent,
  type Clock,
  type KnownSession,
  type Offer,
} from "./carrier.ts";
import { Edge } from "./edge.ts";
import { endsOf, Farewell, inWords, type SessionEnd } from "./farewell.ts";
import { encodeFinish, ProtocolError, resumedStatus, sessionIdBytes } from "./frame.ts";
import { type MemoryBudget, type MemoryOwner, programMemory } from "./memory.ts";
import { Multiplexer } from "./multiplexer.ts";
import { resetCodes, type Stream } from "./stream.ts";
import { Transport, type TransportOwner } from "./transport.ts";

export interface SessionOptions {
  /** Our role on the first carrier. It never changes: `controlling` opens streams with odd numbers. */
  role: Role;
  /** SHA-256 of the peer's certificate, 64 hex digits. */
  peer: string;
  /** 32 hex digits, from the {@link Offer}. Undefined: a new session. */
  id?: string;
  clock?: Clock;
  /** The share in which what is kept for the peer is counted. */
  memory?: MemoryBudget;
}

/**
 * Made for a nominated carrier. If this side speaks first on it, {@link attach} it. If the peer does, {@link accept} what
 * `readOffer` got. Set the callbacks before.
 */
export class Session implements KnownSession {
  readonly id: string;
  readonly role: Role;
  readonly peer: string;
  /** The peer has opened a stream, for that purpose. Reset it if nobody wants it. */
  onStream: (stream: Stream, purpose: Record<string, unknown>) => void = (stream) =>
    stream.reset("nobody takes streams here", resetCodes.refused);
  /** The user of a stream threw an error. Only that stream is reset. */
  onThrown: (error: unknown) => void = () => {};
  onCarrier: (event: CarrierEvent) => void = () => {};
  /** Whether somebody here uses it, beyond answering the peer. */
  isWanted: () => boolean = () => true;
  /** It has no carrier, and others need the memory: it must end. */
  onGivenUp: () => void = () => this.abandon("its memory is needed for other links");
  /** Called once. By then each stream is over, or has only bytes left to be read. */
  onEnd: (end: SessionEnd) => void = () => {};
  readonly #transport: Transport;
  readonly #farewell: Farewell;
  readonly #streams: Multiplexer;

  constructor({ role, peer, id, clock = systemClock, memory = programMemory }: SessionOptions) {
    this.id = id ?? Buffer.from(crypto.getRandomValues(new Uint8Array(sessionIdBytes))).toString("hex");
    this.role = role;
    this.peer = peer;
    const [edge, owner] = [new Edge(clock, (error) => this.#thrown(error)), this.#ownFrames()];
    const transport = (this.#transport = new Transport({ sessionId: this.id, role, edge, owner }));
    const farewell = (this.#farewell = this.#newFarewell(edge));
    this.#streams = new Multiplexer({
      ...{ role, clock, transport, farewell, memory: memory.share(this.#ownMemory()) },
      onStream: (stream, purpose) => this.onStream(stream, purpose),
      onThrown: (error) => this.onThrown(error),
      onFinish: (reason) => {
        farewell.peerFinished();
        this.#finish({ by: "peer", reason });
      },
      onBreach: (reason) => this.#end({ by: "protocol", reason }, false),
    });
  }

  #ownFrames(): TransportOwner {
    const session = this;
    return {
      get hasFrames() {
        return session.#streams.hasFrames;
      },
      fill: (batch) => this.#streams.fill(batch),
      onPiece: (id, piece) => this.#streams.onPiece(id, piece),
      onFrame: (type, id, payload) => this.#streams.onFrame(type, id, payload),
      onAcknowledged: () => this.#streams.onAcknowledged(),
      onEvent: (event) => {
        if (event.is !== "lost" || !this.#farewell.endIfSaid()) this.onCarrier(event);
      },
      onRefused: (status) => this.#end(endsOf[status], false),
    };
  }

  #ownMemory(): MemoryOwner {
    const session = this;
    return {
      get isGone() {
        return session.carrier === undefined && session.carriersSoFar > 0;
      },
      get isWanted() {
        return session.state !== "ended" && session.isWanted();
      },
      giveUp: () => (this.state === "ended" ? this.#streams.destroyAll() : this.onGivenUp()),
    };
  }

  #newFarewell(edge: Edge): Farewell {
    const { receipts, sender } = this.#transport;
    return new Farewell({
      edge,
      isFlushed: () => this.#streams.isFlushed,
      say: (finish, onFramed) => this.#streams.send(finish, false, onFramed),
      progress: () => ({ acknowledged: sender.outbox.acknowledged, processed: receipts.processed }),
      acknowledgeNow: () => receipts.tellNow(),
      onOver: (end) => this.#end(end, true),
    });
  }

  /** `ending`: one side has said that it ends; what is written from now on is not sent any more. */
  get state(): "open" | "ending" | "ended" {
    return this.#farewell.state;
  }
  /** Whether the peer is known to have the session. */
  get isConfirmed(): boolean {
    return this.#transport.handover.isConfirmed;
  }
  /** The carrier that frames are sent on; undefined while streams wait. */
  get carrier(): Carrier | undefined {
    return this.#transport.current?.carrier;
  }
  get carriersSoFar(): number {
    return this.#transport.soFar;
  }
  /** The latest round trip, in ms; undefined before the first. */
  get roundTripMs(): number | undefined {
    return this.#transport.liveness.roundTripMs;
  }
  /** Bytes of all carriers, frames and repetitions included. */
  get bytesIn(): number {
    return this.#transport.receiver.bytesIn;
  }
  get bytesOut(): number {
    return this.#transport.sender.bytesOut;
  }
  /** Bytes kept until the peer acknowledges them. */
  get outstandingBytes(): number {
    return this.#transport.sender.outbox.keptBytes;
  }
  get streamCount(): number {
    return this.#streams.table.inUse + this.#streams.table.remnants;
  }
  /** Those that somebody here has opened or taken. */
  get streamsInUse(): number {
    return this.#streams.table.inUse;
  }
  /** Bytes that the peer has made us send, and has not acknowledged. */
  get owedBytes(): number {
    return this.#streams.control.owedBytes;
  }
  /** Bytes of memory that it holds. */
  get heldBytes(): number {
    return this.#streams.heldBytes;
  }

  /** From now on it is offered as one that the peer has: a later program of the peer's must not begin it. */
  confirm(): void {
    this.#transport.handover.isConfirmed = true;
  }

  /** A carrier on which this side speaks first. The session owns it from now on. */
  attach(carrier: Carrier): void {
    if (this.state === "ended" || carrier.peer !== this.peer) return carrier.destroy();
    this.#transport.attach(carrier);
  }

  /** A carrier on which the peer has spoken, and named this session. The session owns it from now on. */
  accept(offer: Offer): void {
    const isOurs = offer.carrier.peer === this.peer && offer.hello.sessionId === this.id;
    if (this.state === "ended" || !isOurs) refuseOffer(offer, resumedStatus.unknown);
    else this.#transport.accept(offer);
  }

  /** Measures the round trip anew. */
  ping(): void {
    const { current, liveness } = this.#transport;
    if (current) liveness.ping(current);
  }

  /**
   * Opens a stream for that purpose, without waiting. Throws an Error if the session has ended or is ending, or if too many
   * streams are open. Throws a RangeError if the purpose takes more than 4096 bytes of JSON.
   */
  open(purpose: object): Stream {
    if (this.state !== "open") throw new Error("the link has ended");
    return this.#streams.open(purpose);
  }

  /** Ends in order: what both sides wrote arrives first. Then streams that were not ended fail. */
  finish(reason: string): void {
    this.#finish({ by: "us", reason });
  }

  /** Ends it now: every stream fails with the reason. The peer is told if it can be. */
  abandon(reason: string): void {
    this.#end({ by: "us", reason }, false);
  }

  // --- its end -------------------------------------------------------------------------------------------

  /** What is thrown at one of our edges ends this session, and nothing else of the program. */
  #thrown(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    const whose = error instanceof ProtocolError ? "the peer sent" : "we failed at what the peer sent:";
    this.#end({ by: "protocol", reason: `${whose} ${text}` }, false);
  }

  #finish(end: SessionEnd): void {
    if (this.state !== "open") return;
    this.#streams.seal();
    this.#farewell.begin(end);
    this.#farewell.sayOnceFlushed();
  }

  #end(end: SessionEnd, isOrderly: boolean): void {
    if (this.state === "ended") return;
    const reason = inWords(end);
    const last = this.#farewell.isFramed ? undefined : encodeFinish(reason);
    this.#farewell.ended();
    this.#transport.close(last);
    this.#streams.end(reason, isOrderly);
    this.onEnd(end);
  }
}
