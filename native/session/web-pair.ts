/**
 * Web streams of a stream of a link. Owns nothing: both halves are of that one stream. For native/participant/ and participant.ts.
 *
 * `close()` of the writable ends our half, and the readable goes on. To `cancel` the readable or `abort` the writable resets
 * the whole stream: both halves fail, here and at the peer, which is told the reason. (A reset frame is for both directions.)
 */
import type { Duplex } from "node:stream";
import { resetCodes, StreamError } from "./stream.ts";

/** The two halves of a stream, as the Streams Standard (https://streams.spec.whatwg.org) has them. */
export interface StreamPair {
  readonly readable: ReadableStream<Uint8Array>;
  /** What is written may be changed once `write` has resolved: by then it was copied, and there was room for it. */
  readonly writable: WritableStream<Uint8Array>;
}

/** What it needs of a stream. */
type PairedStream = Duplex & { reset(reason: string): void };

/** So much is copied at once. A larger piece is written when the stream has taken it. */
const maxCopiedBytes = 16 * 1024;

/** The same stream, as a pair of Web streams. Either the pair is used, or the stream itself. */
export function pairOf(stream: PairedStream): StreamPair {
  return { readable: readableOf(stream), writable: writableOf(stream) };
}

const inWords = (reason: unknown): string =>
  reason instanceof Error ? reason.message : reason === undefined ? "cancelled" : String(reason);

const cutOff = (stream: PairedStream): Error =>
  stream.errored ?? new StreamError(resetCodes.cancelled, "the stream was cut off");

function onClosed(stream: PairedStream, told: () => void): void {
  if (stream.closed) told();
  else stream.once("close", told);
}

function readableOf(stream: PairedStream): ReadableStream<Uint8Array> {
  const pieces = stream.iterator({ destroyOnReturn: false });
  return new ReadableStream<Uint8Array>(
    {
      start: (controller) => {
        onClosed(stream, () => !stream.readableEnded && controller.error(cutOff(stream)));
      },
      // It reads only what somebody waits for, so that credit is given for no more.
      pull: async (controller) => {
        const { value, done } = await pieces.next();
        if (done) controller.close();
        else controller.enqueue(value as Uint8Array);
      },
      cancel: (reason) => stream.reset(inWords(reason)),
    },
    { highWaterMark: 0 },
  );
}

function writableOf(stream: PairedStream): WritableStream<Uint8Array> {
  return new WritableStream<Uint8Array>({
    start: (controller) => {
      onClosed(stream, () => !stream.writableFinished && controller.error(cutOff(stream)));
    },
    write: (piece) => {
      if (!(piece instanceof Uint8Array)) throw noBytes(stream);
      const isSmall = piece.byteLength <= maxCopiedBytes;
      if (isSmall && !stream.writableNeedDrain) return void stream.write(Buffer.from(piece));
      return settled((done) => stream.write(piece, done));
    },
    close: () => settled((done) => stream.end(done)),
    abort: (reason) => stream.reset(inWords(reason)),
  });
}

/** The writable fails of it, so nobody could end the stream any more. */
function noBytes(stream: PairedStream): TypeError {
  stream.reset("it failed at the peer");
  return new TypeError("a stream takes pieces of Uint8Array");
}

function settled(work: (done: (error?: Error | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => work((error) => (error ? reject(error) : resolve())));
}
