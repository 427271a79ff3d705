/**
 * Which stream sends next. Streams that have bytes take turns, and a stream that has just begun to send goes first.
 * Owns the order, never the bytes. For native/session/multiplexer.ts.
 */
import { frame, headerBytes, maxDataBytes, writeHeader } from "./frame.ts";
import { Queue } from "./resend.ts";
import { type Batch } from "./sender.ts";
import { type Stream } from "./stream.ts";

/**
 * Who begins to send with so much at most, and has no more, sends little, unless a quarter of what all sent lately was
 * its own.
 */
const littleBytes = 2 * 1024;
const latelyBytes = 64 * 1024;

/** What a stream may send before others have their turn, header included: one TLS record (RFC 8446 §5.1). */
const quantumBytes = 16 * 1024;

export interface TurnsOwner {
  /** So many bytes of it were framed, and that of streams that count them. */
  onCounted(stream: Stream, bytes: number, batch: Batch): void;
  onEnded(stream: Stream): void;
}

export class WritingTurns {
  readonly #owner: TurnsOwner;
  /** Streams that may send: those that have just begun to, and those that had a turn. */
  readonly #fresh = new Queue<Stream>();
  readonly #busy = new Queue<Stream>();
  /** Bytes of all streams so far; and when a stream that had much to send last had its turn. */
  #sentBytes = 0;
  #bulkAt = -Infinity;

  constructor(owner: TurnsOwner) {
    this.#owner = owner;
  }

  get length(): number {
    return this.#fresh.length + this.#busy.length;
  }

  /** Whether it has got in line now. */
  add(stream: Stream): boolean {
    if (stream.isQueued || (stream.written.sendableBytes === 0 && !stream.written.mayEnd)) return false;
    stream.isQueued = true;
    this.#fresh.push(stream);
    return true;
  }

  addTo(batch: Batch): void {
    const isAlone = this.length === 1;
    for (let turn = 0; batch.max - batch.at > headerBytes; turn++) {
      const fresh = this.#fresh.at(0);
      const stream = this.#next(turn);
      if (!stream) return;
      const { pendingBytes } = stream.written;
      this.#giveTurn(stream, batch, isAlone ? headerBytes + maxDataBytes : quantumBytes);
      if (stream === fresh && pendingBytes > 0 && pendingBytes <= littleBytes && this.#sendsLittle(stream))
        batch.hasLittle = true;
    }
  }

  /** Only where another one sends much: of a thousand that send little, none holds the others up. */
  #sendsLittle(stream: Stream): boolean {
    if (stream.isQueued || this.#sentBytes < latelyBytes) return false;
    if (this.#sentBytes - this.#bulkAt > latelyBytes) return false;
    return this.#sentLately(stream) < latelyBytes / 4;
  }

  /** How many of the latest {@link latelyBytes} of all streams were of that one, about: older ones count ever less. */
  #sentLately({ sent }: Stream): number {
    return sent.bytes * 2 ** ((sent.at - this.#sentBytes) / latelyBytes);
  }

  #countSent(stream: Stream, bytes: number): void {
    const { sent } = stream;
    sent.bytes = this.#sentLately(stream) + bytes;
    sent.at = this.#sentBytes += bytes;
  }

  /** The next stream: one that has just begun and one that had a turn, alternately. So nobody loses their turn. */
  #next(turn: number): Stream | undefined {
    const [first, second] = turn % 2 === 0 ? [this.#fresh, this.#busy] : [this.#busy, this.#fresh];
    return first.shift() ?? second.shift();
  }

  #giveTurn(stream: Stream, batch: Batch, bytes: number): void {
    const { room } = batch;
    const max = Math.min(batch.max - batch.at, bytes) - headerBytes;
    const filled = stream.written.fill(room, batch.at + headerBytes, max);
    if (filled > 0) this.#addHeader(batch, frame.data, filled, stream.id);
    if (filled > 0) this.#countSent(stream, filled);
    if (filled + stream.written.pendingBytes > quantumBytes) this.#bulkAt = this.#sentBytes;
    if (filled > 0 && stream.written.isCounted) this.#owner.onCounted(stream, filled, batch);
    if (stream.written.mayEnd && room.length - batch.at >= headerBytes) {
      this.#addHeader(batch, frame.end, 0, stream.id);
      stream.written.endSent();
      this.#owner.onEnded(stream);
    }
    stream.isQueued = stream.written.sendableBytes > 0 || stream.written.mayEnd;
    if (stream.isQueued) this.#busy.push(stream);
  }

  #addHeader(batch: Batch, type: number, length: number, id: number): void {
    writeHeader(batch.room, batch.at, type, length, id);
    batch.at += headerBytes + length;
    batch.frames++;
  }

  clear(): void {
    this.#fresh.clear();
    this.#busy.clear();
  }
}
