/**
 * Sends on the current carrier: frames that must be repeated, new frames, and unsequenced ones beside them. Owns what
 * is kept until it is acknowledged, and the turns of writing. It chooses no carrier and closes none. For
 * native/session/transport.ts and its parts.
 */
import { type CarrierSet, type CarrierState } from "./carrier-state.ts";
import { type Edge } from "./edge.ts";
import { encodeCount, encodeFrame, frame, ProtocolError } from "./frame.ts";
import { type Liveness } from "./liveness.ts";
import { type Receipts } from "./receipts.ts";
import { blockBytes, ResendBuffer } from "./resend.ts";

/** Bytes written before others of this program have their turn. */
const turnBytes = 512 * 1024;

/** A write that is being put together: frames go to `room` from `at` on. */
export interface Batch {
  readonly room: Buffer;
  at: number;
  /** Sequenced frames in it. */
  frames: number;
}

/** Where new frames come from. */
export interface FrameSource {
  /** Whether {@link fill} would add frames. */
  readonly hasFrames: boolean;
  fill(batch: Batch): void;
}

export interface SenderParts {
  edge: Edge;
  carriers: CarrierSet;
  source: FrameSource;
  receipts: Receipts;
  liveness: Liveness;
}

export class Sender {
  readonly outbox = new ResendBuffer();
  /** Of all carriers, frames and repetitions included. */
  bytesOut = 0;
  readonly #parts: SenderParts;
  #turnBytes = 0;
  #isYielding = false;
  #willPump = false;

  constructor(parts: SenderParts) {
    this.#parts = parts;
  }

  get isAckDue(): boolean {
    return this.outbox.acknowledged < this.outbox.made;
  }

  /** What must be sent in this turn of the event loop goes out together. */
  pumpSoon(): void {
    if (this.#willPump) return;
    this.#willPump = true;
    this.#parts.edge.soon(() => {
      this.#willPump = false;
      this.pump();
    });
  }

  pump(): void {
    const { carriers } = this.#parts;
    let { current } = carriers;
    while (current && !this.#isYielding && current.carrier.queuedBytes === 0) {
      if (this.#turnBytes >= turnBytes) return this.#yield();
      const written = this.#writeNext(current);
      this.#turnBytes = written === 0 ? 0 : this.#turnBytes + written;
      if (written === 0) return;
      current = carriers.current;
    }
  }

  #yield(): void {
    this.#isYielding = true;
    setImmediate(() => {
      this.#isYielding = false;
      this.#turnBytes = 0;
      this.#parts.edge.guard(() => this.pump());
    });
  }

  /** Returns how much it was. */
  #writeNext(current: CarrierState): number {
    const isBehind = this.outbox.next < this.outbox.made;
    const hasFrames = isBehind || this.#parts.source.hasFrames;
    const owed = this.#takeOwed(current, hasFrames);
    if (hasFrames && !isBehind) return this.#assemble(current, owed);
    const owedBytes = owed.length > 0 ? this.write(current, Buffer.concat(owed)) : 0;
    return isBehind ? owedBytes + this.write(current, this.outbox.resend()!) : owedBytes;
  }

  #assemble(current: CarrierState, owed: Buffer[]): number {
    const room = this.outbox.reserve(Math.min(blockBytes, current.carrier.batchBytes));
    const batch: Batch = { room, at: 0, frames: 0 };
    for (const bytes of owed) batch.at += bytes.copy(room, batch.at);
    const owedBytes = batch.at;
    this.#parts.source.fill(batch);
    if (this.#parts.edge.isClosed) return 0;
    if (batch.frames === 0) return owed.length > 0 ? this.write(current, Buffer.concat(owed)) : 0;
    if (!this.isAckDue) this.#parts.liveness.asked(current);
    this.outbox.commit(room, owedBytes, batch.at, batch.frames);
    return this.write(current, room.subarray(0, batch.at));
  }

  /** The unsequenced frames that are due. */
  #takeOwed(current: CarrierState, isWriting: boolean): Buffer[] {
    const { outgoing } = current;
    const owed: Buffer[] = [];
    if (outgoing.mustStart) {
      outgoing.mustStart = false;
      outgoing.firstStart ??= this.outbox.next;
      owed.push(encodeCount(frame.start, this.outbox.next));
    }
    const ack = this.#parts.receipts.take(isWriting);
    if (ack) owed.push(ack);
    if (outgoing.pong) owed.push(encodeFrame(frame.pong, outgoing.pong));
    outgoing.pong = undefined;
    const ping = this.#parts.liveness.takePing(current);
    if (ping) owed.push(ping);
    return owed;
  }

  write({ carrier }: CarrierState, bytes: Buffer): number {
    this.bytesOut += bytes.length;
    carrier.write(bytes);
    return bytes.length;
  }

  /** Only the latest ping is answered, once a write has room. So a flood of pings queues nothing. */
  pong({ outgoing }: CarrierState, payload: Buffer): void {
    outgoing.pong = Buffer.from(payload);
    this.pumpSoon();
  }

  /** `start` comes before the next sequenced frame. */
  start({ outgoing }: CarrierState): void {
    outgoing.mustStart = true;
  }

  /** Whether the peer has more than we knew. */
  acknowledged(count: number): boolean {
    const { next, acknowledged } = this.outbox;
    this.outbox.acknowledge(count);
    const { current } = this.#parts.carriers;
    // An old carrier delivered what this one was about to repeat, and the peer counts what comes on this one.
    if (this.outbox.next !== next && current) this.start(current);
    return this.outbox.acknowledged !== acknowledged;
  }

  /** The peer may ask for it once a carrier, or it could make us send for ever. */
  grantRewind({ outgoing }: CarrierState, count: number): void {
    const { firstStart, hasRewound } = outgoing;
    if (firstStart === undefined || count >= firstStart || hasRewound)
      throw new ProtocolError("a needless `rewind`");
    outgoing.hasRewound = true;
  }

  rewind(state: CarrierState): void {
    this.outbox.rewind();
    this.start(state);
    this.pump();
  }

  /** What is owed, and `last`, a sequenced frame, where the peer can still take it. */
  sayLast(current: CarrierState, last: Buffer | undefined): void {
    for (const owed of this.#takeOwed(current, true)) this.write(current, owed);
    if (last && this.outbox.next === this.outbox.made) this.write(current, last);
  }
}
