/**
 * Frames that go before the data of streams, and what becomes free as the peer acknowledges. Owns the count of what the
 * peer makes us send by its own frames, and has not acknowledged. For native/session/multiplexer.ts.
 */
import { Queue } from "./resend.ts";
import { type Batch } from "./sender.ts";
import { type Stream } from "./stream.ts";

/** What our own users make us queue: streams that are opened and reset. */
export const maxControlBytes = 32 * 1024 * 1024;
/**
 * Bytes of resets and credit that the peer makes us send, until it has acknowledged them. More is an attack: 4096 streams
 * that are refused at once take a third of it, with short reasons from the half on.
 */
export const maxOwedBytes = 1024 * 1024;
/** What a waiting frame costs besides its bytes: an object. And what an owed one costs, until it is acknowledged. */
const frameOverheadBytes = 200;
const owedOverheadBytes = 64;

/** `isOwed`: the peer has made us send it. */
interface ControlFrame {
  readonly bytes: Buffer;
  readonly isOwed: boolean;
  readonly onFramed: ((number: number) => void) | undefined;
}

/** What becomes free when so many frames are acknowledged. */
interface Unacknowledged {
  readonly frames: number;
  readonly owedBytes: number;
  /** The stream of the bytes, if it counts them. */
  readonly stream?: Stream;
  readonly streamBytes?: number;
}

export class ControlQueue {
  readonly #waiting = new Queue<ControlFrame>();
  readonly #unacknowledged = new Queue<Unacknowledged>();
  #costBytes = 0;
  #owedBytes = 0;

  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }
  get costBytes(): number {
    return this.#costBytes;
  }
  get owedBytes(): number {
    return this.#owedBytes;
  }
  /** Whether it is too much: the peer is an attacker, or can't be served any more. */
  get isTooMuch(): boolean {
    return this.#owedBytes > maxOwedBytes || this.#costBytes > maxControlBytes;
  }

  /** `onFramed` is called with its number. */
  push(bytes: Buffer, isOwed: boolean, onFramed?: (number: number) => void): void {
    this.#waiting.push({ bytes, isOwed, onFramed });
    this.#costBytes += bytes.length + frameOverheadBytes;
    if (isOwed) this.#owedBytes += bytes.length + owedOverheadBytes;
  }

  /** Adds as many as there is room for. `made`: how many frames there were before this batch. */
  addTo(batch: Batch, made: number): void {
    let owedBytes = 0;
    for (let next = this.#waiting.at(0); next; next = this.#waiting.at(0)) {
      const { bytes, isOwed, onFramed } = next;
      if (bytes.length > batch.room.length - batch.at) break;
      onFramed?.(made + batch.frames);
      this.#waiting.shift();
      this.#costBytes -= bytes.length + frameOverheadBytes;
      if (isOwed) owedBytes += bytes.length + owedOverheadBytes;
      batch.at += bytes.copy(batch.room, batch.at);
      batch.frames++;
    }
    if (owedBytes > 0) this.#unacknowledged.push({ frames: made + batch.frames, owedBytes });
  }

  /** The stream is told once so many frames are acknowledged. */
  await(frames: number, stream: Stream, streamBytes: number): void {
    this.#unacknowledged.push({ frames, owedBytes: 0, stream, streamBytes });
  }

  acknowledged(frames: number): void {
    for (let next = this.#unacknowledged.at(0); next; next = this.#unacknowledged.at(0)) {
      if (next.frames > frames) break;
      this.#unacknowledged.shift();
      this.#owedBytes -= next.owedBytes;
      next.stream?.written.acknowledged(next.streamBytes!);
    }
  }

  clear(): void {
    this.#waiting.clear();
    this.#unacknowledged.clear();
    this.#owedBytes = this.#costBytes = 0;
  }
}
