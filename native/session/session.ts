/**
 * A session: what two running programs share: streams, over one sequence of frames that outlives its carriers. Owns
 * its streams and {@link Transport}. It knows no socket, never seeks a carrier and never prints: its owner is told when
 * one is needed, and brings it. For native/session/link.ts, and for whoever uses a link.
 *
 * A stream is over for both sides when each has sent `end` or `reset`; `reset` is answered by `reset` unless the
 * receiver had ended. So both know how many are open, and a frame of a stream that is over is a breach.
 *
 * An orderly end: each side says `finish` when all that its users wrote is framed; whoever has the other's, and the
 * acknowledgement of its own, closes.
 */
import { type Role } from "../../protocol.ts";
import { refill, type Bucket } from "../shares/budget.ts";
import {
  refuseOffer,
  systemClock,
  type Carrier,
  type CarrierEvent,
  type Clock,
  type KnownSession,
  type Offer,
} from "./carrier.ts";
import { type Batch } from "./sender.ts";
import { Transport, type TransportOwner } from "./transport.ts";
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
import {
  floorBytes,
  programMemory,
  type MemoryBudget,
  type MemoryOwner,
  type MemoryShare,
} from "./memory.ts";
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
/** What our own users make us queue comes on top: streams that are opened and reset. */
const maxControlBytes = 32 * 1024 * 1024;
/**
 * What the peer makes us say by its own doing, resets and credit, until it has acknowledged that. With more, it is an
 * attack: 4096 streams that are refused at once, with short reasons from the half on, come to a third.
 */
export const maxOwedBytes = 1024 * 1024;
/** What a frame that waits costs besides its bytes: an object. And one that is owed, until it is acknowledged. */
const frameOverheadBytes = 200;
const owedOverheadBytes = 64;
/** A stream that is open, whatever it carries. */
const streamCostBytes = 4 * 1024;
/** One that we have reset and the peer has not: a number, and how much of its credit is left. */
const remnantCostBytes = 64;
/** What a stream may send before others have their turn, header included: one TLS record (RFC 8446 §5.1). */
const quantumBytes = 16 * 1024;
/** An orderly end waits so long without any progress. */
const finishPatienceMs = 5_000;

/**
 * Streams that the peer may open: so many at once, then so many a second, else it is not read for a while. More than a
 * link can carry of those that somebody takes; one that is refused counts as many.
 */
const opens = { burst: 16_384, perSecond: 10_000, refused: 50 };
/** What a stream costs of a turn, in frames: an object, and whatever takes it. */
const openTurnFrames = 4;

/**
 * Why a session ended. `us`, `peer`: who said so, and what. `restart`: the peer's program does not know it any more.
 * `protocol`: a breach of it, or a failure of our own.
 */
export type SessionEnd = { by: "us" | "peer" | "protocol"; reason: string } | { by: "restart" };

/** What the users of streams are told. */
const inWords = (end: SessionEnd): string => (end.by === "restart" ? "peer-restarted" : end.reason);

export interface SessionOptions {
  /** Its side of the first carrier, for good: `controlling` opens the streams with odd numbers. */
  role: Role;
  /** SHA-256 of the peer's certificate, 64 hex digits. */
  peer: string;
  /** 32 hex digits: that of the {@link Offer}. Without it, a new one. */
  id?: string;
  clock?: Clock;
  /** Where what is kept for the peer is counted. */
  memory?: MemoryBudget;
}

/** A frame of our own ahead of the data of streams. `isOwed`: the peer has made us say it. */
interface ControlFrame {
  readonly bytes: Buffer;
  readonly isOwed: boolean;
}

/** What becomes free when so many frames are acknowledged. */
interface Unacknowledged {
  readonly frames: number;
  readonly owedBytes: number;
  /** Whose bytes they are, where that is counted. */
  readonly stream?: Stream;
  readonly streamBytes?: number;
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
  /** Whether somebody here uses it, beyond answering the peer. */
  isWanted: () => boolean = () => true;
  /** It has no carrier, and what it holds is needed for others: it must end. */
  onGivenUp: () => void = () => this.abandon("its memory is needed for other links");
  /** Called once; every stream is over by then, or has only what came left to be read. */
  onEnd: (end: SessionEnd) => void = () => {};
  readonly #clock: Clock;
  readonly #transport: Transport;
  readonly #streamOwner: StreamOwner;
  readonly #streams = new Map<number, Stream>();
  /** Of streams that we have reset and the peer has not: what it may still send on them. */
  readonly #remnants = new Map<number, number>();
  readonly #memory: MemoryShare;
  readonly #opened = { here: 0, there: 0 };
  readonly #opens: Bucket;
  #nextId: number;
  #highestPeerId = 0;
  #grownBytes = 0;
  #unreadBytes = 0;
  /** Frames ahead of the data of streams. */
  readonly #control = new Queue<ControlFrame>();
  #controlCost = 0;
  readonly #unacknowledged = new Queue<Unacknowledged>();
  #owedBytes = 0;
  /** Streams that may send: those that have just begun to, and those that had a turn. */
  readonly #fresh = new Queue<Stream>();
  readonly #busy = new Queue<Stream>();
  #isEnded = false;
  #finishing: SessionEnd | undefined;
  #hasSaidFinish = false;
  /** The number of our `finish`, once it has one. */
  #finishNumber = Infinity;
  #hasPeerFinished = false;
  #cancelPatience: (() => void) | undefined;

  constructor({ role, peer, id, clock = systemClock, memory = programMemory }: SessionOptions) {
    this.id = id ?? Buffer.from(crypto.getRandomValues(new Uint8Array(sessionIdBytes))).toString("hex");
    this.role = role;
    this.peer = peer;
    this.#clock = clock;
    this.#opens = { tokens: opens.burst, at: clock.now() };
    this.#nextId = role === "controlling" ? 1 : 2;
    this.#streamOwner = this.#ownStreams();
    this.#transport = new Transport({ sessionId: this.id, role, clock, owner: this.#ownFrames() });
    this.#memory = memory.share(this.#ownMemory());
  }

  /** `ending`: one side has said that it ends; what is written from now on is not sent any more. */
  get state(): "open" | "ending" | "ended" {
    if (this.#isEnded) return "ended";
    return this.#finishing ? "ending" : "open";
  }
  get isEnded(): boolean {
    return this.#isEnded;
  }
  /** Whether the peer is known to have the session. */
  get isConfirmed(): boolean {
    return this.#transport.handover.isConfirmed;
  }
  /** What frames are sent on; undefined while streams wait. */
  get carrier(): Carrier | undefined {
    return this.#transport.current?.carrier;
  }
  get carriersSoFar(): number {
    return this.#transport.soFar;
  }
  /** The latest measured, in milliseconds; undefined before the first. */
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
    return this.#streams.size + this.#remnants.size;
  }
  /** Those that somebody here has opened or taken. */
  get streamsInUse(): number {
    return this.#streams.size;
  }
  /** What the peer has made us say, and has not acknowledged. */
  get owedBytes(): number {
    return this.#owedBytes;
  }
  /** What is kept in memory for it. */
  get heldBytes(): number {
    return this.#memory.heldBytes;
  }

  /** A carrier on which this side speaks first. The session owns it from now on. */
  attach(carrier: Carrier): void {
    if (this.#isEnded || carrier.peer !== this.peer) return carrier.destroy();
    this.#transport.attach(carrier);
  }

  /** A carrier on which the peer has spoken, and named this session. The session owns it from now on. */
  accept(offer: Offer): void {
    const isOurs = offer.carrier.peer === this.peer && offer.hello.sessionId === this.id;
    if (this.#isEnded || !isOurs) refuseOffer(offer, resumedStatus.unknown);
    else this.#transport.accept(offer);
  }

  /** Measures the round trip anew. */
  ping(): void {
    const { current, liveness } = this.#transport;
    if (current) liveness.ping(current);
  }

  /**
   * Opens a stream; the peer is told what it is for, and nothing is waited for. Throws an Error when the session has
   * ended or is ending or too many are open, and a RangeError when the purpose takes more than 4096 bytes of JSON.
   */
  open(purpose: object): Stream {
    if (this.state !== "open") throw new Error("the link has ended");
    if (this.#opened.here >= maxStreams) throw new Error(`a link has at most ${maxStreams} streams at once`);
    const encoded = encodeOpen(this.#nextId, purpose);
    const stream = this.#addStream(this.#nextId);
    this.#nextId += 2;
    this.#send(encoded, false);
    return stream;
  }

  /** An orderly end: what was written arrives first, on both sides. Streams that were not ended then fail. */
  finish(reason: string): void {
    this.#finish({ by: "us", reason });
  }

  /** Ends it now: every stream fails with the reason. The peer is told if it can be. */
  abandon(reason: string): void {
    this.#end({ by: "us", reason }, "abandoned");
  }

  // --- streams -------------------------------------------------------------------------------------------

  #addStream(id: number): Stream {
    const stream = new Stream(this.#streamOwner, id);
    this.#streams.set(id, stream);
    this.#opened[this.#side(id)]++;
    this.#count();
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
        return session.#transport.liveness.roundTripMs;
      },
      get hasCarrier() {
        return session.carrier !== undefined;
      },
      onReady: (stream) => this.#streamReady(stream),
      onFlushed: () => this.#sayFinishOnceFlushed(),
      onCredit: (stream, bytes) => this.#send(encodeCredit(stream.id, bytes), true),
      onDestroyed: (stream, code, reason) => this.#streamDestroyed(stream, code, reason),
      mayGrow: (bytes) => this.#mayGrow(bytes),
      onUnread: (bytes) => this.#unread(bytes),
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
    this.#transport.sender.pumpSoon();
  }

  #streamDestroyed(stream: Stream, code: number, reason: string): void {
    if (this.#isEnded) return void this.#streams.delete(stream.id);
    if (stream.isOverHere && stream.isOverThere) return;
    const isTheirs = this.#side(stream.id) === "there";
    if (isTheirs && code === resetCodes.refused) this.#spendOpens(opens.refused);
    const isMuch = isTheirs && this.#owedBytes > maxOwedBytes / 2;
    this.#send(encodeReset(stream.id, code, isMuch ? "" : reason), isTheirs);
    stream.isOverHere = true;
    if (stream.isOverThere) this.#forgetIfOver(stream);
    else this.#abridge(stream);
    this.#sayFinishOnceFlushed();
  }

  /** Who opens more than that is not read until it may again: it slows down itself, and nobody else. */
  #spendOpens(amount: number): void {
    refill(this.#opens, opens.burst, opens.perSecond, this.#clock.now());
    this.#opens.tokens -= amount;
    if (this.#opens.tokens < 0) this.#transport.turns.pause((-this.#opens.tokens / opens.perSecond) * 1000);
  }

  #forgetIfOver(stream: Stream): void {
    if (!stream.isOverHere || !stream.isOverThere || !this.#streams.delete(stream.id)) return;
    this.#opened[this.#side(stream.id)]--;
    this.#grownBytes -= stream.grownBytes;
    this.#count();
  }

  /** Nobody here has it any more: until the peer has reset it, too, what it may send on it is all there is to know. */
  #abridge(stream: Stream): void {
    if (!this.#streams.delete(stream.id)) return;
    this.#remnants.set(stream.id, stream.allowedBytes);
    this.#grownBytes -= stream.grownBytes;
    this.#count();
  }

  #remnantOver(id: number): void {
    if (this.#remnants.delete(id)) this.#opened[this.#side(id)]--;
  }

  #ownMemory(): MemoryOwner {
    const session = this;
    return {
      get isGone() {
        return session.carrier === undefined && session.carriersSoFar > 0;
      },
      get isWanted() {
        return !session.#isEnded && session.isWanted();
      },
      giveUp: () => {
        if (this.#isEnded) for (const stream of this.#streams.values()) stream.destroy();
        else this.onGivenUp();
      },
    };
  }

  /** False: that is too much. */
  #unread(bytes: number): boolean {
    this.#unreadBytes += bytes;
    this.#count();
    return bytes <= 0 || (this.#unreadBytes <= maxUnreadBytes && this.#memory.mayHold(0));
  }

  /** What is held has changed. After the end, that is what users have not read yet. */
  #count(): void {
    if (this.#isEnded && this.#unreadBytes === 0) return this.#memory.close();
    if (this.#isEnded) return this.#memory.hold(this.#unreadBytes);
    const streams = this.#streams.size * streamCostBytes + this.#remnants.size * remnantCostBytes;
    this.#memory.hold(
      this.#transport.sender.outbox.keptBytes + this.#controlCost + this.#unreadBytes + streams,
    );
  }

  #mayGrow(bytes: number): boolean {
    if (this.#grownBytes + bytes > maxGrowthBytes) return false;
    this.#grownBytes += bytes;
    return true;
  }

  // --- receiving -----------------------------------------------------------------------------------------

  #ownFrames(): TransportOwner {
    const session = this;
    return {
      get hasFrames() {
        return session.#control.length > 0 || session.#hasTurns;
      },
      fill: (batch) => this.#fill(batch),
      onPiece: (id, piece) => this.#onPiece(id, piece),
      onFrame: (type, id, payload) => this.#onFrame(type, id, payload),
      onAcknowledged: () => this.#onAcknowledged(),
      onEvent: (event) => this.#onCarrierEvent(event),
      onRefused: (status) =>
        this.#end(
          status === "over" ? { by: "peer", reason: "disconnected" } : { by: "restart" },
          "abandoned",
        ),
      onThrown: (error) => this.#thrown(error),
    };
  }

  /** Whatever is thrown at one of our edges ends this session, and nothing else of the program. */
  #thrown(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    const whose = error instanceof ProtocolError ? "the peer sent" : "we failed at what the peer sent:";
    this.#breach(`${whose} ${text}`);
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
    const allowed = stream ? undefined : this.#remnants.get(id);
    if (allowed !== undefined) return this.#onRemnantPiece(id, allowed - piece.length);
    if (!stream || stream.isOverThere) throw new ProtocolError(`bytes for stream ${id}, which is not open`);
    if (this.#hasPeerFinished) throw new ProtocolError("bytes after `finish`");
    if (!stream.receive(piece)) throw new ProtocolError(`more for stream ${id} than it has credit for`);
  }

  /** What was under way when we reset it. */
  #onRemnantPiece(id: number, allowed: number): void {
    if (this.#hasPeerFinished) throw new ProtocolError("bytes after `finish`");
    if (allowed < 0) throw new ProtocolError(`more for stream ${id} than it has credit for`);
    this.#remnants.set(id, allowed);
  }

  #onFrame(type: number, id: number, payload: Buffer): void {
    if (type === frame.open) return this.#onOpen(id, payload);
    if (type === frame.finish) return this.#onFinish(decodeReason(payload));
    const stream = this.#streams.get(id);
    if (!stream && !this.#wasOpen(id))
      throw new ProtocolError(`a frame for stream ${id}, which never was open`);
    if (this.#remnants.has(id)) return type === frame.credit ? undefined : this.#remnantOver(id);
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
    this.#transport.turns.spend(openTurnFrames);
    this.#spendOpens(1);
    if (this.#finishing) stream.seal();
    if (!this.#memory.mayHold(0))
      return stream.reset("the other side has no memory left", resetCodes.refused);
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
    if (!stream.isOverHere) this.#send(encodeReset(stream.id, resetCodes.cancelled, ""), true);
    stream.isOverHere = true;
    this.#forgetIfOver(stream);
    stream.receiveReset(code, reason);
    this.#sayFinishOnceFlushed();
  }

  // --- sending -------------------------------------------------------------------------------------------

  #send(bytes: Buffer, isOwed: boolean): void {
    if (this.#isEnded) return;
    this.#control.push({ bytes, isOwed });
    this.#controlCost += bytes.length + frameOverheadBytes;
    if (isOwed) this.#owedBytes += bytes.length + owedOverheadBytes;
    if (this.#owedBytes > maxOwedBytes || this.#controlCost > maxControlBytes) {
      return this.#breach("the peer asks for answers and does not take them");
    }
    this.#count();
    this.#transport.sender.pumpSoon();
  }

  get #hasTurns(): boolean {
    const { keptBytes } = this.#transport.sender.outbox;
    if (this.#fresh.length + this.#busy.length === 0 || keptBytes >= maxKeptBytes) return false;
    // Below the floor always, so that there is an acknowledgement to go on by.
    return keptBytes < floorBytes || this.#memory.mayHold(0);
  }

  #fill(batch: Batch): void {
    this.#addControl(batch);
    if (this.#hasTurns) this.#addTurns(batch);
    if (this.#transport.sender.outbox.keptBytes > maxKeptBytes + maxControlBytes) {
      this.#breach("the peer acknowledges nothing");
    }
    this.#count();
  }

  #addControl(batch: Batch): void {
    let owedBytes = 0;
    for (let next = this.#control.at(0); next; next = this.#control.at(0)) {
      const { bytes, isOwed } = next;
      if (bytes.length > batch.room.length - batch.at) break;
      if (bytes[0] === frame.finish) this.#finishNumber = this.#transport.sender.outbox.made + batch.frames;
      this.#control.shift();
      this.#controlCost -= bytes.length + frameOverheadBytes;
      if (isOwed) owedBytes += bytes.length + owedOverheadBytes;
      batch.at += bytes.copy(batch.room, batch.at);
      batch.frames++;
    }
    if (owedBytes > 0) this.#unacknowledged.push({ frames: this.#framesWith(batch), owedBytes });
  }

  /** How many frames there are once the batch is among them. */
  #framesWith(batch: Batch): number {
    return this.#transport.sender.outbox.made + batch.frames;
  }

  #onAcknowledged(): void {
    const { acknowledged } = this.#transport.sender.outbox;
    for (let next = this.#unacknowledged.at(0); next; next = this.#unacknowledged.at(0)) {
      if (next.frames > acknowledged) break;
      this.#unacknowledged.shift();
      this.#owedBytes -= next.owedBytes;
      next.stream?.acknowledged(next.streamBytes!);
    }
    this.#count();
    this.#endOnceFinished();
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
    if (filled > 0 && stream.isCounted) this.#countUnacknowledged(stream, filled, batch);
    if (stream.mayEnd && room.length - batch.at >= headerBytes) {
      this.#addHeader(batch, frame.end, 0, stream.id);
      stream.endSent();
      this.#forgetIfOver(stream);
    }
    stream.isQueued = stream.sendableBytes > 0 || stream.mayEnd;
    if (stream.isQueued) this.#busy.push(stream);
  }

  #countUnacknowledged(stream: Stream, streamBytes: number, batch: Batch): void {
    this.#unacknowledged.push({ frames: this.#framesWith(batch), owedBytes: 0, stream, streamBytes });
  }

  #addHeader(batch: Batch, type: number, length: number, id: number): void {
    writeHeader(batch.room, batch.at, type, length, id);
    batch.at += headerBytes + length;
    batch.frames++;
  }

  // --- its end -------------------------------------------------------------------------------------------

  #breach(reason: string): void {
    this.#end({ by: "protocol", reason }, "abandoned");
  }

  #finish(end: SessionEnd): void {
    if (this.state !== "open") return;
    this.#finishing = end;
    for (const stream of this.#streams.values()) stream.seal();
    this.#awaitProgress();
    this.#sayFinishOnceFlushed();
  }

  #awaitProgress(): void {
    const { receipts, sender } = this.#transport;
    const [acknowledged, processed] = [sender.outbox.acknowledged, receipts.processed];
    const review = () => {
      const isStuck = acknowledged === sender.outbox.acknowledged && processed === receipts.processed;
      if (isStuck) this.#endAsFinished();
      else this.#awaitProgress();
    };
    this.#cancelPatience = this.#clock.after(finishPatienceMs, () => this.#guard(review));
  }

  #sayFinishOnceFlushed(): void {
    if (!this.#finishing || this.#hasSaidFinish || this.#isEnded) return;
    for (const stream of this.#streams.values()) if (!stream.isFlushed) return;
    this.#hasSaidFinish = true;
    this.#send(encodeFinish(this.#finishing.by === "us" ? this.#finishing.reason : ""), false);
  }

  #onFinish(reason: string): void {
    if (this.#hasPeerFinished) throw new ProtocolError("a second `finish`");
    this.#hasPeerFinished = true;
    this.#finish({ by: "peer", reason });
    // It must count as processed before it is acknowledged, and before all ends.
    queueMicrotask(() =>
      this.#guard(() => {
        this.#transport.receipts.tellNow();
        this.#endOnceFinished();
      }),
    );
  }

  get #isFinishAcknowledged(): boolean {
    return this.#transport.sender.outbox.acknowledged > this.#finishNumber;
  }

  #endOnceFinished(): void {
    if (this.#hasPeerFinished && this.#isFinishAcknowledged) this.#endAsFinished();
  }

  #endAsFinished(): void {
    this.#end(this.#finishing!, "orderly");
  }

  #onCarrierEvent(event: CarrierEvent): void {
    // Once one side has said all, the other may have closed before its last word came.
    const isOver = this.#finishing && (this.#hasPeerFinished || this.#isFinishAcknowledged);
    if (event.is === "lost" && isOver) this.#endAsFinished();
    else this.onCarrier(event);
  }

  #end(end: SessionEnd, how: "orderly" | "abandoned"): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#cancelPatience?.();
    const reason = inWords(end);
    this.#transport.close(this.#finishNumber === Infinity ? encodeFinish(reason) : undefined);
    for (const stream of this.#streams.values()) {
      stream.linkEnded(reason, how === "orderly");
      if (stream.destroyed) this.#streams.delete(stream.id);
    }
    this.#remnants.clear();
    this.#unacknowledged.clear();
    this.#owedBytes = 0;
    this.#count();
    this.#control.clear();
    this.#fresh.clear();
    this.#busy.clear();
    this.onEnd(end);
  }
}
