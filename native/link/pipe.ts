/**
 * Pipes: bytes of standard input and output over a link, where success means that the peer has confirmed every one.
 * A {@link Pipe} is a stream of which `finish` means just that. Owns the stream; the ends are the owner's. For whoever
 * uses a link.
 *
 * The purpose `{"use":"pipe"}` is for the peer's own standard output; each side opens one for what it sends, so that
 * neither has to be first. With `host` and `port` it is for that target, both ways on one stream. On the stream:
 *
 *   {"type":"chunk","bytes":n} and n bytes
 *   {"type":"end","bytes":n}        no more follow: it were n in all
 *   {"type":"received","bytes":n}   answers `end` once all are where they belong: in the pipe, the file, the terminal,
 *                                   or with a target that has closed without an error
 */
import { closeSync, openSync, write } from "node:fs";
import { Duplex, Writable } from "node:stream";
import { Refusal } from "../../protocol.ts";
import { Connection, type Joinable } from "./connection.ts";
import { serveForward, type Served, type ServeOptions } from "./forward.ts";
import {
  encodeChunk,
  encodeMessage,
  maxChunkBytes,
  MessageDecoder,
  wholeNumber,
  type Message,
} from "./message.ts";
import { resetCodes, StreamError, type Stream } from "./stream.ts";
import { type Target } from "./target.ts";

/** How long a full output that does not block is left alone. */
const fullOutputPauseMs = 1;

/** What a stream is opened with. */
export const pipePurpose = (target?: Target): object => ({ use: "pipe", ...target });

type WriteCallback = (error?: Error | null) => void;

/** Bytes over a stream, both ways. `finish` and the callback of `end` come when the peer has confirmed every byte. */
export class Pipe extends Duplex implements Joinable {
  /** Bytes of the user, without what goes around them. */
  bytesIn = 0;
  bytesOut = 0;
  readonly #stream: Stream;
  readonly #decoder = new MessageDecoder();
  /** Called when our `end` is confirmed. */
  #onConfirmed: WriteCallback | undefined;
  #isConfirmed = false;
  #hasEnd = false;
  #hasConfirmed = false;

  constructor(stream: Stream) {
    // What it holds counts as taken from the stream, so that it holds little; and our own last word follows `end`.
    super({ readableHighWaterMark: 0, autoDestroy: false });
    this.#stream = stream;
    this.on("error", () => {});
    stream.on("data", (bytes: Buffer) => this.#receive(bytes));
    stream.on("end", () => this.#streamEnded());
    stream.on("error", (error) => this.destroy(error));
    stream.on("close", () => this.destroy());
  }

  /** Cuts it off, both ways; the peer is told why. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#stream.reset(reason, code);
    this.destroy();
  }

  /** All that came, and it has ended, is where it belongs. */
  confirm(): void {
    if (this.#hasConfirmed || !this.#hasEnd || this.destroyed) return;
    this.#hasConfirmed = true;
    this.#stream.write(encodeMessage({ type: "received", bytes: this.bytesIn }));
    this.#endStream();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, written: WriteCallback): void {
    this.bytesOut += chunk.length;
    for (let at = 0; at < chunk.length; at += maxChunkBytes) {
      const part = chunk.subarray(at, at + maxChunkBytes);
      this.#stream.write(encodeChunk(part.length));
      const isLast = at + part.length === chunk.length;
      this.#stream.write(part, isLast ? (error) => written(error) : undefined);
    }
    if (chunk.length === 0) written();
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

// --- the ends --------------------------------------------------------------------------------------------

/** What is sent; undefined: nothing. `Bun.stdin.stream()` is one. */
export type Input = AsyncIterable<Uint8Array> | undefined;

/**
 * Sends `input` over one pipe and what another (or the same) brings to `output`. Resolves when every byte of both is
 * where it belongs, and is known to be; rejects with a {@link StreamError} that says why not, and then both pipes are
 * cut off, the other side being told.
 */
export async function runPipe(
  input: Input,
  output: Writable,
  sending: Pipe,
  receiving: Pipe | Promise<Pipe>,
): Promise<void> {
  const received = Promise.resolve(receiving).then(async (pipe) => {
    if (pipe !== sending) pipe.end();
    await drainTo(pipe, output);
  });
  if (receiving !== sending) sending.on("end", () => sending.confirm()).resume();
  try {
    await Promise.all([feedFrom(input, sending), received]);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    sending.reset(reason);
    void Promise.resolve(receiving).then((pipe) => pipe.reset(reason));
    throw error;
  }
}

/** Resolves when the peer has confirmed all of it. */
async function feedFrom(input: Input, pipe: Pipe): Promise<void> {
  const { promise: closed, reject } = Promise.withResolvers<never>();
  pipe.once("error", reject);
  pipe.once("close", () => reject(new StreamError(resetCodes.cancelled, "the pipe was cut off")));
  closed.catch(() => {});
  const chunks = input?.[Symbol.asyncIterator]();
  for (;;) {
    const next = await Promise.race([chunks?.next() ?? { done: true as const, value: undefined }, closed]);
    if (next.done) break;
    await Promise.race([
      new Promise<void>((written) => void pipe.write(next.value, () => written())),
      closed,
    ]);
  }
  await Promise.race([new Promise<void>((confirmed) => void pipe.once("finish", confirmed).end()), closed]);
}

/** Resolves when the output has all of it, and the peer was told so. */
function drainTo(pipe: Pipe, output: Writable): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: NodeJS.ErrnoException) => {
      const isGone = error.code === "EPIPE";
      const reason = isGone
        ? "whoever read the output has gone away (EPIPE)"
        : `its output failed: ${error.message}`;
      reject(new StreamError(resetCodes.failed, reason));
    };
    output.on("error", fail);
    output.on("drain", () => pipe.resume());
    pipe.on("data", (piece: Buffer) => void (output.write(piece) || pipe.pause()));
    pipe.on("error", reject);
    pipe.on("close", () => reject(new StreamError(resetCodes.cancelled, "the pipe was cut off")));
    pipe.on("end", () => {
      output.end(() => {
        pipe.confirm();
        resolve();
      });
    });
  });
}

/**
 * A descriptor as the output of a pipe: exact, EPIPE reported, and closed at its end, so that its reader learns of it
 * while the program goes on. Bun's `process.stdout` keeps a duplicate of its own that can't be closed: nobody may have
 * touched it.
 */
export class DescriptorOutput extends Writable {
  readonly #fd: number;

  constructor(fd: number) {
    super({ highWaterMark: 256 * 1024 });
    this.#fd = fd;
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, written: WriteCallback): void {
    write(this.#fd, chunk, (error, count) => {
      if (error && error.code !== "EAGAIN") return written(error);
      const rest = error ? chunk : chunk.subarray(count);
      if (rest.length === 0) return written();
      // Somebody has made it non-blocking, for all that share it.
      const again = () => this._write(rest, "utf8", written);
      if (error) setTimeout(again, fullOutputPauseMs);
      else again();
    });
  }

  override _final(ended: WriteCallback): void {
    closeSync(this.#fd);
    // The number must not be given to a socket, into which a stray print would go. The lowest that is free is taken.
    if (this.#fd <= 2) openSync("/dev/null", "w");
    ended();
  }
}

// --- the serving side ------------------------------------------------------------------------------------

/** As `serveForward`, for a pipe to a target: what arrives is confirmed once the target has closed without an error. */
export async function servePipe(
  stream: Stream,
  purpose: Record<string, unknown>,
  options: ServeOptions,
): Promise<Served> {
  const pipe = new Pipe(stream);
  const connection = new Connection();
  connection.onOver = (error) => void (error ?? pipe.confirm());
  return serveForward(pipe, purpose, options, connection);
}
