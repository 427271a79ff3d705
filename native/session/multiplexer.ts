/**
 * The streams over the one sequence of frames of a session: reads frames for them, and makes frames of what they have to
 * send. Owns the streams, what is queued for them, and their share of memory. It knows no carrier, and ends nothing but
 * streams. For native/session/session.ts.
 *
 * A stream is over for both sides once each has sent `end` or `reset`. A `reset` is answered by `reset`, unless the
 * receiver had ended already. So both sides know how many are open. A frame of a stream that is over breaks the
 * protocol.
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

/** Bytes that may wait for users, in all streams. The stream that exceeds it is reset. */
const maxUnreadBytes = 128 * 1024 * 1024;
/** Bytes of frames that are kept until they are acknowledged. With more, no data is framed, and users have to wait. */
export const maxKeptBytes = 64 * 1024 * 1024;
/** A new stream counts as so many frames of a reading turn: it costs an object, and what takes it. */
const openTurnFrames = 4;

export interface MultiplexerParts {
  role: Role;
  clock: Clock;
  transport: Transport;
  farewell: Farewell;
  memory: MemoryShare;
  onStream(stream: Stream, purpose: Record<string, unknown>): void;
  /** The user of a stream threw an error. */
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

  /** Throws an Error if too many are open, and a RangeError if the purpose is too long. */
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
        // The peer is told only that. The error itself is told here.
        stream.reset("it failed at the peer", resetCodes.failed);
        onThrown(error);
      },
    };
  }

  #streamDestroyed(stream: Stream, code: number, reason: string): void {
    if (this.#isEnded) return this.table.ended(stream);
    if (stream.written.isOver && stream.received.isOver) return;
    const isTheirs = this.table.side(stream.id) === "there";
    if (isTheirs && code === resetCodes.refused) this.#pace.refused();
    const isMuch = isTheirs && this.control.owedBytes > maxOwedBytes / 2;
    this.send(encodeReset(stream.id, code, isMuch ? "" : reason), isTheirs);
    stream.written.isOver = true;
    if (stream.received.isOver) this.#forgetIfOver(stream);
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

  /** Returns false if that is too much. */
  #unread(bytes: number): boolean {
    this.#unreadBytes += bytes;
    this.#count();
    return bytes <= 0 || (this.#unreadBytes <= maxUnreadBytes && this.#parts.memory.mayHold(0));
  }

  /** What is held has changed. After the end only what users have not read yet is held. */
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
        if (stream?.written.isOver === false && !stream.written.addCredit(decodeCredit(payload)))
          throw new ProtocolError(`absurd credit for stream ${id}`);
        return;
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
    if (farewell.state === "ending") stream.written.seal(stream.writableLength);
    if (!memory.mayHold(0)) return stream.reset("the other side has no memory left", resetCodes.refused);
    onStream(stream, purpose);
  }

  #onStreamEnd(stream: Stream | undefined, id: number): void {
    if (!stream || stream.received.isOver) throw new ProtocolError(`the end of stream ${id}, which is over`);
    stream.received.isOver = true;
    this.#forgetIfOver(stream);
    stream.endReceived();
  }

  #onStreamReset(stream: Stream, { code, reason }: { code: number; reason: string }): void {
    stream.received.isOver = true;
    if (!stream.written.isOver) this.send(encodeReset(stream.id, resetCodes.cancelled, ""), true);
    stream.written.isOver = true;
    this.#forgetIfOver(stream);
    stream.resetReceived(code, reason);
    this.#parts.farewell.sayOnceFlushed();
  }

  // --- sending -------------------------------------------------------------------------------------------

  /** Queues a frame before the data of streams. `isOwed`: the peer has made us send it. */
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
    // Below the floor it is always allowed: else nothing would be acknowledged, and nothing would go on.
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

  /** What is written from now on is no longer sent. */
  seal(): void {
    for (const stream of this.table.all) stream.written.seal(stream.writableLength);
  }

  get isFlushed(): boolean {
    for (const stream of this.table.all) if (!stream.isFlushed) return false;
    return true;
  }

  /** Ends all streams. After an orderly end, what has come can still be read. */
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
