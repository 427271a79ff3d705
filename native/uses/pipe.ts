/**
 * Pipes: bytes of standard input and output over a link. Success means that the peer has confirmed each byte: a
 * {@link Pipe} emits `finish` only then. Owns the stream, and knows nothing of what it is joined to. For native/uses/
 * and participant.ts.
 *
 * The purpose `{"use":"pipe"}` is for the peer's standard output. Each side opens a stream for what it sends, so
 * neither has to be first. With `host` and `port` it is for that target, in both directions on one stream. On the
 * stream:
 *
 *   {"type":"chunk","bytes":n} and n bytes
 *   {"type":"end","bytes":n}        no more bytes follow: there were n in all
 *   {"type":"received","bytes":n}   the answer to `end`, once all bytes have arrived: in the pipe, the file or the terminal,
 *                                   or at a target that has closed without an error
 */
import { Duplex } from "node:stream";
import { Refusal } from "../../protocol.ts";
import { type Joinable } from "./connection.ts";
import {
  encodeChunk,
  encodeMessage,
  maxChunkBytes,
  MessageDecoder,
  wholeNumber,
  type Message,
} from "./message.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";
import { type StreamTarget } from "./target.ts";
import { Pace } from "../shares/pace.ts";

/** Bytes that a user may write ahead before `write` returns false. */
const writableHighWaterMark = 256 * 1024;

/** The purpose of a pipe's stream. */
export const pipePurpose = (target?: StreamTarget): object => ({ use: "pipe", ...target });

type WriteCallback = (error?: Error | null) => void;

/**
 * Bytes over a stream, in both directions. `finish` and the callback of `end` come once the peer has confirmed each
 * byte.
 */
export class Pipe extends Duplex implements Joinable {
  /** Bytes of the user, without the lines between them. */
  bytesIn = 0;
  bytesOut = 0;
  readonly #stream: Stream;
  readonly #pace: Pace;
  readonly #decoder = new MessageDecoder();
  /** Called when the stream takes more. */
  #onDrained: WriteCallback | undefined;
  /** Called when our `end` is confirmed. */
  #onConfirmed: WriteCallback | undefined;
  #isConfirmed = false;
  #hasEnd = false;
  #hasConfirmed = false;

  constructor(stream: Stream, pace = new Pace()) {
    // What it holds counts as read from the stream, so it must hold little. No autoDestroy: our answer follows `end`.
    super({ readableHighWaterMark: 0, writableHighWaterMark, autoDestroy: false });
    this.#stream = stream;
    this.#pace = pace;
    this.on("error", () => {});
    stream.on("data", (bytes: Buffer) => this.#receive(bytes));
    stream.on("end", () => this.#streamEnded());
    stream.on("drain", () => this.#drained());
    // First `finish` and `end`, if they were due before the stream ended.
    stream.on("error", (error) => setImmediate(() => this.destroy(error)));
    stream.on("close", () => setImmediate(() => this.destroy()));
  }

  get isWaiting(): boolean {
    return this.#stream.isWaiting;
  }

  /** Cuts it off in both directions, and tells the peer why. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#stream.reset(reason, code);
    this.destroy();
  }

  /** Tells the peer that all of its bytes have arrived. Called after its end. */
  confirm(): void {
    if (this.#hasConfirmed || !this.#hasEnd || this.destroyed) return;
    this.#hasConfirmed = true;
    this.#stream.write(encodeMessage({ type: "received", bytes: this.bytesIn }));
    this.#endStream();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, written: WriteCallback): void {
    if (this.#pace.bytesPerSecond !== undefined) return void this.#writePaced(chunk, written);
    for (let at = 0; at < chunk.length; at += maxChunkBytes)
      this.#writePart(chunk.subarray(at, at + maxChunkBytes));
    if (this.#stream.writableNeedDrain) this.#onDrained = written;
    else written();
  }

  #writePart(part: Buffer): void {
    this.bytesOut += part.length;
    this.#stream.write(encodeChunk(part.length));
    this.#stream.write(part);
    this.#pace.spend(part.length);
  }

  async #writePaced(chunk: Buffer, written: WriteCallback): Promise<void> {
    for (let at = 0; at < chunk.length && !this.destroyed;) {
      await this.#pace.ready();
      if (this.destroyed) break;
      const part = chunk.subarray(at, at + Math.min(maxChunkBytes, this.#pace.slice));
      at += part.length;
      this.#writePart(part);
      if (this.#stream.writableNeedDrain)
        await new Promise<void>((drained) => (this.#onDrained = () => drained()));
    }
    written();
  }

  override _final(confirmed: WriteCallback): void {
    this.#onConfirmed = confirmed;
    this.#stream.write(encodeMessage({ type: "end", bytes: this.bytesOut }));
    this.#endStream();
  }

  override _read(): void {
    this.#stream.resume();
  }

  override _destroy(error: Error | null, destroyed: WriteCallback): void {
    this.#stream.destroy();
    const confirmed = this.#onConfirmed;
    this.#onConfirmed = undefined;
    confirmed?.(error ?? new StreamError(resetCodes.cancelled, "the pipe was cut off"));
    destroyed(error);
  }

  #drained(): void {
    const drained = this.#onDrained;
    this.#onDrained = undefined;
    drained?.();
  }

  #endStream(): void {
    if (this.#hasConfirmed && (this.#onConfirmed || this.#isConfirmed)) this.#stream.end();
  }

  #receive(bytes: Buffer): void {
    try {
      for (const part of this.#decoder.push(bytes)) {
        if (Buffer.isBuffer(part)) this.#receivePiece(part);
        else this.#receiveMessage(part);
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#stream.reset(error.message, resetCodes.failed);
      this.destroy(
        new StreamError(resetCodes.failed, `the peer does not keep to the protocol: ${error.message}`),
      );
    }
  }

  #receivePiece(piece: Buffer): void {
    if (this.#hasEnd) throw new Refusal("bad-line", "bytes after the end");
    this.bytesIn += piece.length;
    if (!this.push(piece)) this.#stream.pause();
  }

  #receiveMessage(message: Message): void {
    const bytes = wholeNumber(message, "bytes");
    if (message.type === "end" && !this.#hasEnd && bytes === this.bytesIn) {
      this.#hasEnd = true;
      this.push(null);
      this.#stream.resume();
    } else if (message.type === "received" && this.#onConfirmed && bytes === this.bytesOut) {
      this.#isConfirmed = true;
      const confirmed = this.#onConfirmed;
      this.#onConfirmed = undefined;
      confirmed();
    } else throw new Refusal("bad-line", `${message.type} of ${bytes} bytes is not what comes next`);
  }

  #streamEnded(): void {
    if (this.#isConfirmed && this.#hasEnd) return;
    this.destroy(new StreamError(resetCodes.failed, "the peer ended before it had confirmed every byte"));
  }
}
