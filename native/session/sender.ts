/**
 * Sends on the current carrier: frames that must be repeated, new frames, and unsequenced ones beside them. Owns what
 * is kept until it is acknowledged, and the turns of writing. It chooses no carrier and closes none. For
 * native/session/transport.ts and its parts.
 */
import { type CarrierSet, type CarrierState } from "./carrier-state.ts";
import { type Edge } from "./edge.ts";
import { encodeCount, encodeFrame, frame, ProtocolError } from "./frame.ts";
import { type Liveness } from "./liveness.ts";
import { CarrierPace } from "./pace.ts";
import { type Receipts } from "./receipts.ts";
import { blockBytes, ResendBuffer } from "./resend.ts";

/** Bytes written before others of this program have their turn. */
const turnBytes = 512 * 1024;
/** With so much on the way, bulk is. */
const bulkBytes = 16 * 1024;

/** A write that is being put together: frames go to `room` from `at` on. */
export interface Batch {
  readonly room: Buffer;
  at: number;
  /** Data of streams goes no further; other frames may. */
  readonly max: number;
  /** Sequenced frames in it. */
  frames: number;
  /** Whether it has something of a stream that sends little. */
  hasLittle: boolean;
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
  /** Of the carrier that was written to last. */
  #paced: { state: CarrierState | undefined; pace: CarrierPace } = {
    state: undefined,
    pace: new CarrierPace(Infinity),
  };
  #cancelWait: (() => void) | undefined;
  #turnBytes = 0;
  #isYielding = false;
  #willPump = false;

  constructor(parts: SenderParts) {
    this.#parts = parts;
  }

  get #nowMs(): number {
    return this.#parts.edge.clock.now();
  }

  get isAckDue(): boolean {
    return this.outbox.acknowledged < this.outbox.made;
  }

  /**
   * What must be sent in this turn of the event loop goes out together, from all connections that are read in it: each write
   * of its own would cost a TLS record, a call of the kernel, and the same at the peer.
   */
  pumpSoon(): void {
    if (this.#willPump) return;
    this.#willPump = true;
    this.#parts.edge.endOfTurn(() => {
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

  #paceOf(state: CarrierState): CarrierPace {
    if (this.#paced.state !== state) this.#paced = { state, pace: new CarrierPace(state.carrier.maxRate) };
    return this.#paced.pace;
  }

  /** Whether sequenced frames may be written now. If not, they are once they may. */
  #mayWrite(current: CarrierState): boolean {
    const { edge, liveness } = this.#parts;
    const pace = this.#paceOf(current);
    const waitMs = pace.waitMs(this.#nowMs);
    if (waitMs === 0) {
      if (pace.takePing(this.#nowMs)) liveness.ping(current);
      return true;
    }
    this.#cancelWait ??= edge.after(waitMs, () => {
      this.#cancelWait = undefined;
      this.pump();
    });
    return false;
  }

  /** Returns how much it was. */
  #writeNext(current: CarrierState): number {
    const hasAny = this.outbox.next < this.outbox.made || this.#parts.source.hasFrames;
    const hasFrames = hasAny && this.#mayWrite(current);
    const isBehind = hasFrames && this.outbox.next < this.outbox.made;
    const owed = this.#takeOwed(current, hasFrames);
    if (hasFrames && !isBehind) return this.#assemble(current, owed);
    const owedBytes = owed.length > 0 ? this.write(current, Buffer.concat(owed)) : 0;
    return isBehind ? owedBytes + this.write(current, this.outbox.resend()!) : owedBytes;
  }

  #assemble(current: CarrierState, owed: Buffer[]): number {
    const pace = this.#paceOf(current);
    const bytes = pace.batchBytes(Math.min(blockBytes, current.carrier.batchBytes), this.#nowMs);
    const room = this.outbox.reserve(bytes);
    const batch: Batch = { room, at: 0, max: Math.min(room.length, bytes), frames: 0, hasLittle: false };
    for (const bytes of owed) batch.at += bytes.copy(room, batch.at);
    const owedBytes = batch.at;
    this.#parts.source.fill(batch);
    if (this.#parts.edge.isClosed) return 0;
    if (batch.frames === 0) return owed.length > 0 ? this.write(current, Buffer.concat(owed)) : 0;
    if (!this.isAckDue) {
      this.#parts.liveness.asked(current);
      pace.begin(this.outbox.acknowledgedBytes, this.#nowMs);
    }
    const onTheWay = this.outbox.unacknowledgedBytes;
    if (batch.hasLittle && onTheWay >= bulkBytes) pace.beside(onTheWay, this.#nowMs);
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

  write(state: CarrierState, bytes: Buffer): number {
    this.bytesOut += bytes.length;
    if (state === this.#paced.state) this.#paced.pace.wrote(bytes.length, this.#nowMs);
    state.carrier.write(bytes);
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

  /** A round trip on that one was measured. */
  measured(state: CarrierState, roundTripMs: number): void {
    if (state !== this.#parts.carriers.current) return;
    this.#paceOf(state).measured(roundTripMs, this.outbox.unacknowledgedBytes, this.#nowMs);
  }

  /** Whether the peer has more than we knew. */
  acknowledged(count: number): boolean {
    const { next, acknowledged } = this.outbox;
    this.outbox.acknowledge(count);
    const { current } = this.#parts.carriers;
    // An old carrier delivered what this one was about to repeat, and the peer counts what comes on this one.
    if (this.outbox.next !== next && current) this.start(current);
    this.#paced.pace.acknowledged(this.outbox.acknowledgedBytes, this.#nowMs);
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

  /** Nothing is written later. */
  stop(): void {
    this.#cancelWait?.();
  }

  /** What is owed, and `last`, a sequenced frame, where the peer can still take it. */
  sayLast(current: CarrierState, last: Buffer | undefined): void {
    for (const owed of this.#takeOwed(current, true)) this.write(current, owed);
    if (last && this.outbox.next === this.outbox.made) this.write(current, last);
  }
}
