/**
 * A session: what two running programs share: streams, over one sequence of frames that outlives its carriers. Owns
 * its streams and {@link Carriers}. It knows no socket, never seeks a carrier and never prints: its owner is told when
 * one is needed, and brings it. For native/link/, and for whoever uses a link.
 *
 * A stream is over for both sides when each has sent `end` or `reset`; `reset` is answered by `reset` unless the
 * receiver had ended. So both know how many are open, and a frame of a stream that is over is a breach.
 *
 * An orderly end: each side says `finish` when all that its users wrote is framed; whoever has the other's, and the
 * acknowledgement of its own, closes.
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
import { Carriers, type Batch, type FrameOwner } from "./carriers.ts";
import {
  decodeCredit,
  decodePurpose,
  decodeReason,
  decodeReset,
  encodeCredit,
  encodeFinish,
  encodeOpen,
  encodeReset,
  frame,
  headerBytes,
  ProtocolError,
  resumedStatus,
  sessionIdBytes,
  writeHeader,
} from "./frame.ts";
import { blockBytes, Queue } from "./resend.ts";
import { resetCodes, Stream, type StreamOwner } from "./stream.ts";

/** Streams that one side may have opened at once. Each costs the other as much as its credit. */
export const maxStreams = 4096;
/** What may wait for users, in all streams: the stream that exceeds it is reset. */
const maxUnreadBytes = 128 * 1024 * 1024;
/** What the credits of all streams may exceed their first ones by. */
const maxGrowthBytes = 64 * 1024 * 1024;
/** Frames kept for the next carrier: with more, no data is framed, and users feel it. */
export const maxKeptBytes = 64 * 1024 * 1024;
/** What the peer makes us keep and queue by its own doing comes on top: credit, resets. With more, it is an attack. */
const maxOwedBytes = 32 * 1024 * 1024;
/** What a frame that waits costs besides its bytes: an object. */
const frameOverheadBytes = 200;
/** What a stream may send before others have their turn, header included: one TLS record (RFC 8446 §5.1). */
const quantumBytes = 16 * 1024;
/** An orderly end waits so long without any progress. */
const finishPatienceMs = 5_000;

/** Who ended a session: this side; the peer (orderly, or because its program restarted); a breach of the protocol. */
export type EndedBy = "us" | "peer" | "protocol";

export interface SessionOptions {
  /** Its side of the first carrier, for good: `controlling` opens the streams with odd numbers. */
  role: Role;
  /** SHA-256 of the peer's certificate, 64 hex digits. */
  peer: string;
  /** 32 hex digits: that of the {@link Offer}. Without it, a new one. */
  id?: string;
  clock?: Clock;
}

/**
 * Made for a carrier that was nominated: {@link attach} it when this side speaks first on it, {@link accept} what
 * `readOffer` got when the peer does. Set the callbacks before.
 */
export class Session implements KnownSession {
  readonly id: string;
  readonly role: Role;
  readonly peer: string;
  /** A stream that the peer has opened, and what it says it is for. Whoever does not want it resets it. */
  onStream: (stream: Stream, purpose: Record<string, unknown>) => void = (stream) =>
    stream.reset("nobody takes streams here", resetCodes.refused);
  /** What the user of a stream threw at what came for it: that stream is reset, and no other. */
  onThrown: (error: unknown) => void = () => {};
  onCarrier: (event: CarrierEvent) => void = () => {};
  /** Called once; every stream is over by then, or has only what came left to be read. */
  onEnd: (reason: string, by: EndedBy) => void = () => {};
  readonly #clock: Clock;
  readonly #carriers: Carriers;
  readonly #streamOwner: StreamOwner;
  readonly #streams = new Map<number, Stream>();
  readonly #opened = { here: 0, there: 0 };
  #nextId: number;
  #highestPeerId = 0;
  #grownBytes = 0;
  #unreadBytes = 0;
  /** Frames ahead of the data of streams. */
  readonly #control = new Queue<Buffer>();
  #controlCost = 0;
  /** Streams that may send: those that have just begun to, and those that had a turn. */
  readonly #fresh = new Queue<Stream>();
  readonly #busy = new Queue<Stream>();
  #isEnded = false;
  #finishing: { reason: string; by: EndedBy } | undefined;
  #hasSaidFinish = false;
  /** The number of our `finish`, once it has one. */
  #finishNumber = Infinity;
  #hasPeerFinished = false;
  #cancelPatience: (() => void) | undefined;

  constructor({ role, peer, id, clock = systemClock }: SessionOptions) {
    this.id = id ?? Buffer.from(crypto.getRandomValues(new Uint8Array(sessionIdBytes))).toString("hex");
    this.role = role;
    this.peer = peer;
    this.#clock = clock;
    this.#nextId = role === "controlling" ? 1 : 2;
    this.#streamOwner = this.#ownStreams();
    this.#carriers = new Carriers({ sessionId: this.id, role, clock, owner: this.#ownFrames() });
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }
  /** Whether one side has said that it ends: what is written from now on is not sent any more. */
  get isEnding(): boolean {
    return this.#finishing !== undefined || this.#isEnded;
  }
  /** Whether the peer is known to have the session. */
  get isConfirmed(): boolean {
    return this.#carriers.isConfirmed;
  }
  /** What frames are sent on; undefined while streams wait. */
  get carrier(): Carrier | undefined {
    return this.#carriers.current;
  }
  get carriersSoFar(): number {
    return this.#carriers.soFar;
  }
  /** The latest measured, in milliseconds; undefined before the first. */
  get roundTripMs(): number | undefined {
    return this.#carriers.roundTripMs;
  }
  /** Bytes of all carriers, frames and repetitions included. */
  get bytesIn(): number {
    return this.#carriers.bytesIn;
  }
  get bytesOut(): number {
    return this.#carriers.bytesOut;
  }
  /** Bytes kept until the peer acknowledges them. */
  get outstandingBytes(): number {
    return this.#carriers.keptBytes;
  }
  get streamCount(): number {
    return this.#streams.size;
  }

  /** A carrier on which this side speaks first. The session owns it from now on. */
  attach(carrier: Carrier): void {
    if (this.#isEnded || carrier.peer !== this.peer) return carrier.destroy();
    this.#carriers.attach(carrier);
  }

  /** A carrier on which the peer has spoken, and named this session. The session owns it from now on. */
  accept(offer: Offer): void {
    const isOurs = offer.carrier.peer === this.peer && offer.hello.sessionId === this.id;
    if (this.#isEnded || !isOurs) refuseOffer(offer, resumedStatus.unknown);
    else this.#carriers.accept(offer);
  }

  /** Measures the round trip anew. */
  ping(): void {
    this.#carriers.ping();
  }

  /**
   * Opens a stream; the peer is told what it is for, and nothing is waited for. Throws an Error when the session has
   * ended or is ending or too many are open, and a RangeError when the purpose takes more than 4096 bytes of JSON.
   */
  open(purpose: object): Stream {
    if (this.#isEnded || this.#finishing) throw new Error("the link has ended");
    if (this.#opened.here >= maxStreams) throw new Error(`a link has at most ${maxStreams} streams at once`);
    const encoded = encodeOpen(this.#nextId, purpose);
    const stream = this.#addStream(this.#nextId);
    this.#nextId += 2;
    this.#send(encoded);
    return stream;
  }

  /** An orderly end: what was written arrives first, on both sides. Streams that were not ended then fail. */
  finish(reason: string): void {
    this.#finish(reason, "us");
  }

  /** Ends it now: every stream fails with the reason. The peer is told if it can be. */
  abandon(reason: string): void {
    this.#end(reason, "us", "abandoned");
  }

  // --- streams -------------------------------------------------------------------------------------------

  #addStream(id: number): Stream {
    const stream = new Stream(this.#streamOwner, id);
    this.#streams.set(id, stream);
    this.#opened[this.#side(id)]++;
    return stream;
  }

  /** Who opened the stream with that number. */
  #side(id: number): "here" | "there" {
    return (id & 1) === (this.#nextId & 1) ? "here" : "there";
  }

  #ownStreams(): StreamOwner {
    const session = this;
    return {
      get nowMs() {
        return session.#clock.now();
      },
      get roundTripMs() {
        return session.#carriers.roundTripMs;
      },
      get hasCarrier() {
        return session.carrier !== undefined;
      },
      onReady: (stream) => this.#streamReady(stream),
      onFlushed: () => this.#sayFinishOnceFlushed(),
      onCredit: (stream, bytes) => this.#send(encodeCredit(stream.id, bytes)),
      onDestroyed: (stream, code, reason) => this.#streamDestroyed(stream, code, reason),
      mayGrow: (bytes) => this.#mayGrow(bytes),
      onUnread: (bytes) => (this.#unreadBytes += bytes) <= maxUnreadBytes,
      onThrown: (stream, error) => this.#userThrew(stream, error),
    };
  }

  /** The peer hears no more than that; what it was is told here. */
  #userThrew(stream: Stream, error: unknown): void {
    stream.reset("it failed at the peer", resetCodes.failed);
    this.onThrown(error);
  }

  #streamReady(stream: Stream): void {
    if (stream.isQueued || (stream.sendableBytes === 0 && !stream.mayEnd)) return;
    stream.isQueued = true;
    this.#fresh.push(stream);
    this.#carriers.pumpSoon();
  }

  #streamDestroyed(stream: Stream, code: number, reason: string): void {
    if (this.#isEnded || (stream.isOverHere && stream.isOverThere)) return;
    this.#send(encodeReset(stream.id, code, reason));
    stream.isOverHere = true;
    this.#forgetIfOver(stream);
    this.#sayFinishOnceFlushed();
  }

  #forgetIfOver(stream: Stream): void {
    if (!stream.isOverHere || !stream.isOverThere || !this.#streams.delete(stream.id)) return;
    this.#opened[this.#side(stream.id)]--;
    this.#grownBytes -= stream.grownBytes;
  }

  #mayGrow(bytes: number): boolean {
    if (this.#grownBytes + bytes > maxGrowthBytes) return false;
    this.#grownBytes += bytes;
    return true;
  }

  // --- receiving -----------------------------------------------------------------------------------------

  #ownFrames(): FrameOwner {
    const session = this;
    return {
      get hasFrames() {
        return session.#control.length > 0 || session.#hasTurns;
      },
      fill: (batch) => this.#fill(batch),
      onPiece: (id, piece) => this.#onPiece(id, piece),
      onFrame: (type, id, payload) => this.#onFrame(type, id, payload),
      onAcknowledged: () => this.#endOnceFinished(),
      onEvent: (event) => this.#onCarrierEvent(event),
      onOver: (reason) => this.#end(reason, "peer", "abandoned"),
      onThrown: (error) => this.#thrown(error),
    };
  }

  /** Whatever is thrown at one of our edges ends this session, and nothing else of the program. */
  #thrown(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    const whose = error instanceof ProtocolError ? "the peer sent" : "we failed at what the peer sent:";
    this.#end(`${whose} ${text}`, "protocol", "abandoned");
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#thrown(error);
    }
  }

  #onPiece(id: number, piece: Buffer): void {
    const stream = this.#streams.get(id);
    if (!stream || stream.isOverThere) throw new ProtocolError(`bytes for stream ${id}, which is not open`);
    if (this.#hasPeerFinished) throw new ProtocolError("bytes after `finish`");
    if (!stream.receive(piece)) throw new ProtocolError(`more for stream ${id} than it has credit for`);
  }

  #onFrame(type: number, id: number, payload: Buffer): void {
    if (type === frame.open) return this.#onOpen(id, payload);
    if (type === frame.finish) return this.#onFinish(decodeReason(payload));
    const stream = this.#streams.get(id);
    if (!stream && !this.#wasOpen(id))
      throw new ProtocolError(`a frame for stream ${id}, which never was open`);
    switch (type) {
      case frame.credit:
        return stream?.isOverHere === false ? this.#onCredit(stream, decodeCredit(payload)) : undefined;
      case frame.end:
        return this.#onStreamEnd(stream, id);
      case frame.reset:
        return stream && this.#onStreamReset(stream, decodeReset(payload));
    }
  }

  #wasOpen(id: number): boolean {
    return id > 0 && (this.#side(id) === "here" ? id < this.#nextId : id <= this.#highestPeerId);
  }

  #onOpen(id: number, payload: Buffer): void {
    if (this.#hasPeerFinished) throw new ProtocolError("a new stream after `finish`");
    if (id <= this.#highestPeerId || this.#side(id) === "here") {
      throw new ProtocolError(`a new stream with the number ${id}`);
    }
    if (this.#opened.there >= maxStreams) throw new ProtocolError(`more than ${maxStreams} streams at once`);
    const purpose = decodePurpose(payload);
    this.#highestPeerId = id;
    const stream = this.#addStream(id);
    if (this.#finishing) stream.seal();
    this.onStream(stream, purpose);
  }

  #onCredit(stream: Stream, bytes: number): void {
    if (!stream.receiveCredit(bytes)) throw new ProtocolError(`absurd credit for stream ${stream.id}`);
  }

  #onStreamEnd(stream: Stream | undefined, id: number): void {
    if (!stream || stream.isOverThere) throw new ProtocolError(`the end of stream ${id}, which is over`);
    stream.isOverThere = true;
    this.#forgetIfOver(stream);
    stream.receiveEnd();
  }

  #onStreamReset(stream: Stream, { code, reason }: { code: number; reason: string }): void {
    stream.isOverThere = true;
    if (!stream.isOverHere) this.#send(encodeReset(stream.id, resetCodes.cancelled, ""));
    stream.isOverHere = true;
    this.#forgetIfOver(stream);
    stream.receiveReset(code, reason);
    this.#sayFinishOnceFlushed();
  }

  // --- sending -------------------------------------------------------------------------------------------

  #send(encoded: Buffer): void {
    if (this.#isEnded) return;
    this.#control.push(encoded);
    this.#controlCost += encoded.length + frameOverheadBytes;
    if (this.#controlCost > maxOwedBytes) {
      return this.#end("the peer asks for answers and does not take them", "protocol", "abandoned");
    }
    this.#carriers.pumpSoon();
  }

  get #hasTurns(): boolean {
    return this.#fresh.length + this.#busy.length > 0 && this.#carriers.keptBytes < maxKeptBytes;
  }

  #fill(batch: Batch): void {
    this.#addControl(batch);
    if (this.#hasTurns) this.#addTurns(batch);
    if (this.#carriers.keptBytes > maxKeptBytes + maxOwedBytes) {
      this.#end("the peer acknowledges nothing", "protocol", "abandoned");
    }
  }

  #addControl(batch: Batch): void {
    for (let next = this.#control.at(0); next; next = this.#control.at(0)) {
      if (next.length > batch.room.length - batch.at) return;
      if (next[0] === frame.finish) this.#finishNumber = this.#carriers.framesMade + batch.frames;
      this.#control.shift();
      this.#controlCost -= next.length + frameOverheadBytes;
      batch.at += next.copy(batch.room, batch.at);
      batch.frames++;
    }
  }

  #addTurns(batch: Batch): void {
    const isAlone = this.#fresh.length + this.#busy.length === 1;
    for (let turn = 0; batch.room.length - batch.at > headerBytes; turn++) {
      const stream = this.#nextStream(turn);
      if (!stream) return;
      this.#giveTurn(stream, batch, isAlone ? blockBytes : quantumBytes);
    }
  }

  /** Alternating: a stream that has just begun to send goes ahead, but keeps nobody from their turn. */
  #nextStream(turn: number): Stream | undefined {
    const [first, second] = turn % 2 === 0 ? [this.#fresh, this.#busy] : [this.#busy, this.#fresh];
    return first.shift() ?? second.shift();
  }

  #giveTurn(stream: Stream, batch: Batch, bytes: number): void {
    const { room } = batch;
    const most = Math.min(room.length - batch.at, bytes) - headerBytes;
    const filled = stream.fill(room, batch.at + headerBytes, most);
    if (filled > 0) this.#addHeader(batch, frame.data, filled, stream.id);
    if (stream.mayEnd && room.length - batch.at >= headerBytes) {
      this.#addHeader(batch, frame.end, 0, stream.id);
      stream.endSent();
      this.#forgetIfOver(stream);
    }
    stream.isQueued = stream.sendableBytes > 0 || stream.mayEnd;
    if (stream.isQueued) this.#busy.push(stream);
  }

  #addHeader(batch: Batch, type: number, length: number, id: number): void {
    writeHeader(batch.room, batch.at, type, length, id);
    batch.at += headerBytes + length;
    batch.frames++;
  }

  // --- its end -------------------------------------------------------------------------------------------

  #finish(reason: string, by: EndedBy): void {
    if (this.#isEnded || this.#finishing) return;
    this.#finishing = { reason, by };
    for (const stream of this.#streams.values()) stream.seal();
    this.#awaitProgress();
    this.#sayFinishOnceFlushed();
  }

  #awaitProgress(): void {
    const { framesAcknowledged, framesProcessed } = this.#carriers;
    const review = () => {
      const isStuck =
        framesAcknowledged === this.#carriers.framesAcknowledged &&
        framesProcessed === this.#carriers.framesProcessed;
      if (isStuck) this.#endAsFinished();
      else this.#awaitProgress();
    };
    this.#cancelPatience = this.#clock.after(finishPatienceMs, () => this.#guard(review));
  }

  #sayFinishOnceFlushed(): void {
    if (!this.#finishing || this.#hasSaidFinish || this.#isEnded) return;
    for (const stream of this.#streams.values()) if (!stream.isFlushed) return;
    this.#hasSaidFinish = true;
    this.#send(encodeFinish(this.#finishing.by === "us" ? this.#finishing.reason : ""));
  }

  #onFinish(reason: string): void {
    if (this.#hasPeerFinished) throw new ProtocolError("a second `finish`");
    this.#hasPeerFinished = true;
    this.#finish(reason, "peer");
    // It must count as processed before it is acknowledged, and before all ends.
    queueMicrotask(() =>
      this.#guard(() => {
        this.#carriers.ackNow();
        this.#endOnceFinished();
      }),
    );
  }

  get #isFinishAcknowledged(): boolean {
    return this.#carriers.framesAcknowledged > this.#finishNumber;
  }

  #endOnceFinished(): void {
    if (this.#hasPeerFinished && this.#isFinishAcknowledged) this.#endAsFinished();
  }

  #endAsFinished(): void {
    this.#end(this.#finishing!.reason, this.#finishing!.by, "orderly");
  }

  #onCarrierEvent(event: CarrierEvent): void {
    // Once one side has said all, the other may have closed before its last word came.
    const isOver = this.#finishing && (this.#hasPeerFinished || this.#isFinishAcknowledged);
    if (event.is === "lost" && isOver) this.#endAsFinished();
    else this.onCarrier(event);
  }

  #end(reason: string, by: EndedBy, how: "orderly" | "abandoned"): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#cancelPatience?.();
    this.#carriers.close(this.#finishNumber === Infinity ? encodeFinish(reason) : undefined);
    for (const stream of this.#streams.values()) stream.linkEnded(reason, how === "orderly");
    this.#streams.clear();
    this.#control.clear();
    this.#fresh.clear();
    this.#busy.clear();
    this.onEnd(reason, by);
  }
}
