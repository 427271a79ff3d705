/**
 * Streams over the one sequence of frames of a session: what the peer says of them, and what is said to it. Owns the
 * streams, what is queued for them, and what they may hold of memory. It knows no carrier, and ends nothing but
 * streams. For native/session/session.ts.
 *
 * A stream is over for both sides when each has sent `end` or `reset`; `reset` is answered by `reset` unless the
 * receiver had ended. So both know how many are open, and a frame of a stream that is over is a breach.
 */
import { type Role } from "../../protocol.ts";
import { type Clock } from "./carrier.ts";
import { ControlQueue, maxControlBytes, maxOwedBytes } from "./control-queue.ts";
import { type Farewell } from "./farewell.ts";
import {
  decodeCredit,
  decodePurpose,
  decodeReason,
  decodeReset,
  encodeCredit,
  encodeOpen,
  encodeReset,
  frame,
  ProtocolError,
} from "./frame.ts";
import { floorBytes, type MemoryShare } from "./memory.ts";
import { OpeningPace } from "./opening-pace.ts";
import { type Batch, type FrameSource } from "./sender.ts";
import { type FrameTaker } from "./receiver.ts";
import { StreamTable } from "./stream-table.ts";
import { resetCodes, Stream, type StreamOwner } from "./stream.ts";
import { type Transport } from "./transport.ts";
import { WritingTurns } from "./writing-turns.ts";

/** What may wait for users, in all streams: the stream that exceeds it is reset. */
const maxUnreadBytes = 128 * 1024 * 1024;
/** Frames kept for the next carrier: with more, no data is framed, and users feel it. */
export const maxKeptBytes = 64 * 1024 * 1024;
/** What a stream costs of a turn of reading, in frames: an object, and whatever takes it. */
const openTurnFrames = 4;

export interface MultiplexerParts {
  role: Role;
  clock: Clock;
  transport: Transport;
  farewell: Farewell;
  memory: MemoryShare;
  onStream(stream: Stream, purpose: Record<string, unknown>): void;
  /** What the user of a stream threw. */
  onThrown(error: unknown): void;
  onFinish(reason: string): void;
  /** The peer has asked for too much. */
  onBreach(reason: string): void;
}

export class Multiplexer implements FrameSource, FrameTaker {
  readonly table: StreamTable;
  readonly control = new ControlQueue();
  readonly #parts: MultiplexerParts;
  readonly #turns: WritingTurns;
  readonly #pace: OpeningPace;
  readonly #streamOwner: StreamOwner;
  #unreadBytes = 0;

  constructor(parts: MultiplexerParts) {
    const { clock, role, transport } = parts;
    this.#parts = parts;
    this.table = new StreamTable(role);
    this.#pace = new OpeningPace(clock, (forMs) => transport.turns.pause(forMs));
    this.#streamOwner = this.#ownStreams();
    this.#turns = new WritingTurns({
      onCounted: (stream, bytes, batch) => {
        const { made } = transport.sender.outbox;
        this.control.await(made + batch.frames, stream, bytes);
      },
      onEnded: (stream) => this.#forgetIfOver(stream),
    });
  }

  /** What is kept in memory for the session. */
  get heldBytes(): number {
    return this.#parts.memory.heldBytes;
  }
  get #isEnded(): boolean {
    return this.#parts.farewell.state === "ended";
  }
  get #keptBytes(): number {
    return this.#parts.transport.sender.outbox.keptBytes;
  }

  /** Throws an Error when too many are open, and a RangeError when the purpose is too long. */
  open(purpose: object): Stream {
    const id = this.table.nextId;
    const encoded = encodeOpen(id, purpose);
    const stream = this.#add(id);
    this.send(encoded, false);
    return stream;
  }

  #add(id: number): Stream {
    const stream = new Stream(this.#streamOwner, id);
    this.table.add(stream);
    this.#count();
    return stream;
  }

  #ownStreams(): StreamOwner {
    const { clock, transport, farewell, onThrown } = this.#parts;
    return {
      get nowMs() {
        return clock.now();
      },
      get roundTripMs() {
        return transport.liveness.roundTripMs;
      },
      get hasCarrier() {
        return transport.current !== undefined;
      },
      onReady: (stream) => this.#turns.add(stream) && transport.sender.pumpSoon(),
      onFlushed: () => farewell.sayOnceFlushed(),
      onCredit: (stream, bytes) => this.send(encodeCredit(stream.id, bytes), true),
      onDestroyed: (stream, code, reason) => this.#streamDestroyed(stream, code, reason),
      mayGrow: (bytes) => this.table.mayGrow(bytes),
      onUnread: (bytes) => this.#unread(bytes),
      onThrown: (stream, error) => {
        // The peer hears no more than that; what it was is told here.
        stream.reset("it failed at the peer", resetCodes.failed);
        onThrown(error);
      },
    };
  }

  #streamDestroyed(stream: Stream, code: number, reason: string): void {
    if (this.#isEnded) return this.table.ended(stream);
    if (stream.isOverHere && stream.isOverThere) return;
    const isTheirs = this.table.side(stream.id) === "there";
    if (isTheirs && code === resetCodes.refused) this.#pace.refused();
    const isMuch = isTheirs && this.control.owedBytes > maxOwedBytes / 2;
    this.send(encodeReset(stream.id, code, isMuch ? "" : reason), isTheirs);
    stream.isOverHere = true;
    if (stream.isOverThere) this.#forgetIfOver(stream);
    else {
      this.table.abridge(stream);
      this.#count();
    }
    this.#parts.farewell.sayOnceFlushed();
  }

  #forgetIfOver(stream: Stream): void {
    this.table.forgetIfOver(stream);
    this.#count();
  }

  /** False: that is too much. */
  #unread(bytes: number): boolean {
    this.#unreadBytes += bytes;
    this.#count();
    return bytes <= 0 || (this.#unreadBytes <= maxUnreadBytes && this.#parts.memory.mayHold(0));
  }

  /** What is held has changed. After the end, that is what users have not read yet. */
  #count(): void {
    const { memory } = this.#parts;
    if (this.#isEnded && this.#unreadBytes === 0) return memory.close();
    if (this.#isEnded) return memory.hold(this.#unreadBytes);
    memory.hold(this.#keptBytes + this.control.costBytes + this.#unreadBytes + this.table.costBytes);
  }

  // --- receiving -----------------------------------------------------------------------------------------

  onPiece(id: number, piece: Buffer): void {
    this.table.receive(id, piece, this.#parts.farewell.hasPeerFinished);
  }

  onFrame(type: number, id: number, payload: Buffer): void {
    if (type === frame.open) return this.#onOpen(id, payload);
    if (type === frame.finish) return this.#parts.onFinish(decodeReason(payload));
    const stream = this.table.get(id);
    if (this.table.isRemnant(id)) return type === frame.credit ? undefined : this.table.remnantOver(id);
    switch (type) {
      case frame.credit:
        return stream?.isOverHere === false ? this.#onCredit(stream, decodeCredit(payload)) : undefined;
      case frame.end:
        return this.#onStreamEnd(stream, id);
      case frame.reset:
        return stream && this.#onStreamReset(stream, decodeReset(payload));
    }
  }

  #onOpen(id: number, payload: Buffer): void {
    const { farewell, memory, onStream, transport } = this.#parts;
    if (farewell.hasPeerFinished) throw new ProtocolError("a new stream after `finish`");
    this.table.checkOpen(id);
    const purpose = decodePurpose(payload);
    const stream = this.#add(id);
    transport.turns.spend(openTurnFrames);
    this.#pace.opened();
    if (farewell.state === "ending") stream.seal();
    if (!memory.mayHold(0)) return stream.reset("the other side has no memory left", resetCodes.refused);
    onStream(stream, purpose);
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
    if (!stream.isOverHere) this.send(encodeReset(stream.id, resetCodes.cancelled, ""), true);
    stream.isOverHere = true;
    this.#forgetIfOver(stream);
    stream.receiveReset(code, reason);
    this.#parts.farewell.sayOnceFlushed();
  }

  // --- sending -------------------------------------------------------------------------------------------

  /** A frame ahead of the data of streams. `isOwed`: the peer has made us say it. */
  send(bytes: Buffer, isOwed: boolean, onFramed?: (number: number) => void): void {
    if (this.#isEnded) return;
    this.control.push(bytes, isOwed, onFramed);
    if (this.control.isTooMuch)
      return this.#parts.onBreach("the peer asks for answers and does not take them");
    this.#count();
    this.#parts.transport.sender.pumpSoon();
  }

  get #hasTurns(): boolean {
    const keptBytes = this.#keptBytes;
    if (this.#turns.length === 0 || keptBytes >= maxKeptBytes) return false;
    // Below the floor always, so that there is an acknowledgement to go on by.
    return keptBytes < floorBytes || this.#parts.memory.mayHold(0);
  }

  get hasFrames(): boolean {
    return !this.control.isEmpty || this.#hasTurns;
  }

  fill(batch: Batch): void {
    this.control.addTo(batch, this.#parts.transport.sender.outbox.made);
    if (this.#hasTurns) this.#turns.addTo(batch);
    if (this.#keptBytes > maxKeptBytes + maxControlBytes)
      this.#parts.onBreach("the peer acknowledges nothing");
    this.#count();
  }

  onAcknowledged(): void {
    this.control.acknowledged(this.#parts.transport.sender.outbox.acknowledged);
    this.#count();
    this.#parts.farewell.endOnceFinished();
  }

  // --- its end -------------------------------------------------------------------------------------------

  /** What is written from now on is not sent any more. */
  seal(): void {
    for (const stream of this.table.all) stream.seal();
  }

  get isFlushed(): boolean {
    for (const stream of this.table.all) if (!stream.isFlushed) return false;
    return true;
  }

  /** Every stream is over, or has only what came left to be read if the end is orderly. */
  end(reason: string, isOrderly: boolean): void {
    for (const stream of this.table.all) {
      stream.linkEnded(reason, isOrderly);
      if (stream.destroyed) this.table.ended(stream);
    }
    this.table.clearRemnants();
    this.control.clear();
    this.#turns.clear();
    this.#count();
  }

  destroyAll(): void {
    for (const stream of this.table.all) stream.destroy();
  }
}
