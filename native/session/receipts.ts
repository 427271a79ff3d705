/**
 * How many of the peer's frames have come, and when the peer is told. Owns the timer of acknowledging. Writes nothing. For
 * native/session/receiver.ts and sender.ts.
 */
import { type Edge } from "./edge.ts";
import { encodeCount, frame } from "./frame.ts";

/** Frames are acknowledged after so many bytes or so much time; sooner if anything else is sent. */
const ackBytes = 512 * 1024;
const ackDelayMs = 20;

export class Receipts {
  readonly #edge: Edge;
  /** An acknowledgement is due now. */
  readonly #onDue: () => void;
  #processed = 0;
  #toldFrames = 0;
  #untoldBytes = 0;
  #isDue = false;
  #cancelAck: (() => void) | undefined;

  constructor(edge: Edge, onDue: () => void) {
    this.#edge = edge;
    this.#onDue = onDue;
  }

  /** How many frames have come completely, each counted once. */
  get processed(): number {
    return this.#processed;
  }

  countBytes(bytes: number): void {
    this.#untoldBytes += bytes;
  }

  countFrame(): void {
    this.#processed++;
    if (this.#untoldBytes >= ackBytes) this.tellNow();
    else this.#cancelAck ??= this.#edge.after(ackDelayMs, () => this.#timeIsUp());
  }

  /**
   * The timer is not stopped where another write has told already: in a quick exchange each frame would cost a timer. So the
   * next frame may be told sooner than it must.
   */
  #timeIsUp(): void {
    this.#cancelAck = undefined;
    this.tellNow();
  }

  /** Tells the peer how far we are, with the next write. */
  tellNow(): void {
    if (this.#processed === this.#toldFrames) return;
    this.#isDue = true;
    this.#onDue();
  }

  /** What was told on another carrier may be lost with it. */
  tellAgain(): void {
    this.#isDue = this.#processed > 0;
  }

  /** The acknowledgement, if one is due. Together with another frame it costs next to nothing. */
  take(isWriting: boolean): Buffer | undefined {
    if (!this.#isDue && !(isWriting && this.#processed > this.#toldFrames)) return undefined;
    this.#isDue = false;
    this.#toldFrames = this.#processed;
    this.#untoldBytes = 0;
    return encodeCount(frame.ack, this.#processed);
  }

  stop(): void {
    this.#cancelAck?.();
    this.#cancelAck = undefined;
  }
}
