/**
 * Reads all carriers of a session, and hands on each sequenced frame once and in order, whichever carrier brings it. A
 * carrier that is ahead of the others is held until they have brought what is missing, or is asked to `rewind`. It
 * chooses no carrier and closes none. For native/session/transport.ts.
 */
import { type CarrierSet, CarrierState, type Incoming } from "./carrier-state.ts";
import { type Carrier } from "./carrier.ts";
import { type Edge } from "./edge.ts";
import { encodeCount, frame, FrameDecoder, isSequenced, ProtocolError } from "./frame.ts";
import { type Liveness } from "./liveness.ts";
import { type ReadingTurns } from "./reading-turns.ts";
import { type Receipts } from "./receipts.ts";

/** Of larger ones a read of the connection brings only few, so that they need no turns. */
const smallFrameBytes = 1024;
/** How long a carrier waits, without progress, for what an older one should bring. */
const holdMs = 1_000;

/** Gets what has come. */
export interface FrameTaker {
  /** The next bytes of a stream; the next frame. */
  onPiece(stream: number, piece: Buffer): void;
  onFrame(type: number, stream: number, payload: Buffer): void;
}

export interface ReceiverParts {
  edge: Edge;
  carriers: CarrierSet;
  taker: FrameTaker;
  receipts: Receipts;
  turns: ReadingTurns;
  liveness: Liveness;
  onUnsequenced(state: CarrierState, type: number, payload: Buffer): void;
  /** A carrier is in sequence now. Older ones may be useless from now on. */
  onInSequence(): void;
  write(state: CarrierState, bytes: Buffer): void;
}

export class Receiver {
  /** Of all carriers, frames and repetitions included. */
  bytesIn = 0;
  readonly #parts: ReceiverParts;
  /** Bytes of the next frame that were handed on, whichever carrier brought them. */
  #partial = 0;

  constructor(parts: ReceiverParts) {
    this.#parts = parts;
  }

  /** What is to be known of a carrier; nothing of it is read yet. */
  state(carrier: Carrier, is: CarrierState["is"]): CarrierState {
    const decoder = new FrameDecoder({
      onPiece: (stream, piece, at, isLast) => this.#onPiece(state, stream, piece, at, isLast),
      onFrame: (type, stream, payload) => this.#onFrame(state, type, stream, payload),
    });
    const state = new CarrierState(carrier, decoder, is, this.#parts.edge.clock.now());
    return state;
  }

  read(state: CarrierState, chunk: Buffer): void {
    const { rest } = state.incoming;
    this.bytesIn += chunk.length;
    this.#parts.liveness.heard(state);
    rest.push(chunk);
    this.#readRest(state);
    // Copied: what is read later must not change with the chunk.
    for (let i = 0; i < rest.length; i++)
      if (rest[i]!.buffer === chunk.buffer) rest[i] = Buffer.from(rest[i]!);
  }

  #readRest(state: CarrierState): void {
    const { carriers, turns } = this.#parts;
    const { incoming, decoder } = state;
    while (incoming.reading !== "held" && !turns.isPaused && carriers.all.has(state)) {
      const chunk = incoming.rest.shift();
      if (!chunk) break;
      const rest = decoder.push(chunk);
      if (rest) incoming.rest.unshift(rest);
    }
    if (incoming.reading === "held") this.rewindWhatWaitsInVain();
  }

  /** Whether a sequenced frame on this carrier counts: not while its `start` is awaited. */
  #isInSequence({ is, incoming: { reading } }: CarrierState): boolean {
    if (is === "offered") throw new ProtocolError("frames before it agreed to resume");
    if (reading === "unstarted" && is !== "refused") throw new ProtocolError("frames before `start`");
    return reading === "in-sequence" && is !== "refused";
  }

  #onPiece(state: CarrierState, stream: number, piece: Buffer, at: number, isLast: boolean): void {
    if (!this.#isInSequence(state)) return;
    const { receipts, taker, turns } = this.#parts;
    const end = at + piece.length;
    if (state.incoming.position === receipts.processed && end > this.#partial) {
      const fresh = at < this.#partial ? piece.subarray(this.#partial - at) : piece;
      this.#partial = end;
      receipts.countBytes(fresh.length);
      this.#releaseHeld();
      taker.onPiece(stream, fresh);
    }
    if (isLast && end < smallFrameBytes) turns.spend(1);
    if (isLast) this.#frameRead(state);
  }

  #onFrame(state: CarrierState, type: number, stream: number, payload: Buffer): void {
    if (!isSequenced(type)) return this.#parts.onUnsequenced(state, type, payload);
    if (!this.#isInSequence(state)) return;
    const { receipts, taker, turns } = this.#parts;
    turns.spend(1);
    if (state.incoming.position === receipts.processed) taker.onFrame(type, stream, payload);
    this.#frameRead(state);
  }

  #frameRead({ incoming }: CarrierState): void {
    const { edge, receipts } = this.#parts;
    if (edge.isClosed || incoming.position++ < receipts.processed) return;
    this.#partial = 0;
    receipts.countFrame();
    this.#releaseHeld();
  }

  // --- pausing and going on ------------------------------------------------------------------------------

  pauseAll(): void {
    for (const { carrier, decoder } of this.#parts.carriers.all) {
      decoder.stop();
      carrier.pause();
    }
  }

  resumeAll(): void {
    for (const state of [...this.#parts.carriers.all]) {
      if (state.incoming.reading === "held") continue;
      this.#parts.liveness.heard(state);
      this.readOn(state);
    }
  }

  /**
   * First reads what waits here. If a carrier were resumed and paused again in one turn, it would go on reading and
   * keep all that comes (a TLSSocket of Bun 1.4.5).
   */
  readOn(state: CarrierState): void {
    this.#readRest(state);
    const isRead = this.#parts.carriers.all.has(state) && state.incoming.reading !== "held";
    if (isRead && !this.#parts.turns.isPaused) state.carrier.resume();
  }

  /** What comes next on it has that number. */
  start({ carrier, decoder, incoming }: CarrierState, position: number): void {
    const mustWait = position > this.#parts.receipts.processed;
    if (mustWait && incoming.reading !== "unstarted")
      throw new ProtocolError("a `start` after what never came");
    incoming.position = position;
    incoming.reading = mustWait ? "held" : "in-sequence";
    if (!mustWait) return this.#parts.onInSequence();
    incoming.heldAtMs = this.#parts.edge.clock.now();
    decoder.stop();
    carrier.pause();
  }

  #releaseHeld(): void {
    const { carriers, edge, receipts } = this.#parts;
    if (carriers.all.size < 2) return;
    for (const state of carriers.all) {
      const { incoming } = state;
      if (incoming.reading !== "held") continue;
      incoming.heldAtMs = edge.clock.now();
      // Later: another one is being read now.
      if (incoming.position <= receipts.processed) edge.soon(() => this.#release(state, "in-sequence"));
    }
  }

  #release(state: CarrierState, reading: Incoming["reading"]): void {
    const { carriers, liveness, turns } = this.#parts;
    if (state.incoming.reading !== "held" || !carriers.all.has(state)) return;
    state.incoming.reading = reading;
    liveness.heard(state);
    this.#parts.onInSequence();
    if (!turns.isPaused) this.readOn(state); // else it is read after the pause
  }

  /** A held carrier waits for an older one. If there is none, it would wait for ever. */
  rewindWhatWaitsInVain(): void {
    const all = [...this.#parts.carriers.all];
    for (const held of all) {
      const brings = ({ epoch, is, incoming }: CarrierState) =>
        epoch < held.epoch && (is === "current" || is === "old") && incoming.reading !== "discarding";
      const isAlone = () => ![...this.#parts.carriers.all].some(brings);
      if (held.incoming.reading === "held" && isAlone()) this.#rewind(held);
    }
  }

  rewindIfHeldForLong(state: CarrierState): void {
    const { reading, heldAtMs } = state.incoming;
    if (reading === "held" && this.#parts.edge.clock.now() - heldAtMs >= holdMs) this.#rewind(state);
  }

  #rewind(state: CarrierState): void {
    const { processed } = this.#parts.receipts;
    if (state.incoming.position <= processed) return this.#release(state, "in-sequence");
    this.#parts.write(state, encodeCount(frame.rewind, processed));
    this.#release(state, "discarding");
  }
}
