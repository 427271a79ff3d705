/**
 * What a pipe is joined to on a user's side: an input to send and an output to fill, mostly the standard ones. Owns the
 * output from the start of a pipe on. For whoever uses a link.
 */
import { closeSync, openSync, writev } from "node:fs";
import { Writable } from "node:stream";
import { without } from "./message.ts";
import { type Pipe } from "./pipe.ts";
import { resetCodes, StreamError } from "../session/stream.ts";
import { WhileOpen } from "./while-open.ts";

/** How long a full output that does not block is left alone. */
const fullOutputPauseMs = 1;

type WriteCallback = (error?: Error | null) => void;

/** What is sent; undefined: nothing. `Bun.stdin.stream()` is one. */
export type Input = AsyncIterable<Uint8Array> | undefined;

/**
 * Sends `input` over one pipe and what another brings to `output`; without `incoming`, what the same one brings.
 * Resolves when every byte of both is where it belongs, and is known to be; rejects with a {@link StreamError} that says
 * why not, and then both pipes are cut off, the other side being told.
 */
export async function runPipe(
  input: Input,
  output: Writable,
  sending: Pipe,
  incoming?: Promise<Pipe>,
): Promise<void> {
  const received = incoming?.then((pipe) => drainTo(pipe.end(), output)) ?? drainTo(sending, output);
  if (incoming) sending.on("end", () => sending.confirm()).resume();
  try {
    await Promise.all([feedFrom(input, sending), received]);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    sending.reset(reason);
    void incoming?.then((pipe) => pipe.reset(reason));
    throw error;
  }
}

/** Resolves when the peer has confirmed all of it. */
async function feedFrom(input: Input, pipe: Pipe): Promise<void> {
  const whileOpen = new WhileOpen(pipe);
  const chunks = input?.[Symbol.asyncIterator]();
  for (;;) {
    const next = await whileOpen.wait(
      chunks?.next() ?? Promise.resolve({ done: true as const, value: undefined }),
    );
    if (next.done) break;
    if (pipe.write(next.value)) continue;
    await whileOpen.wait(new Promise<void>((drained) => void pipe.once("drain", drained)));
  }
  await whileOpen.wait(new Promise<void>((confirmed) => void pipe.once("finish", confirmed).end()));
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
      // Called when it has failed, too, and then before its `error`.
      output.end((error?: Error | null) => {
        if (error) return fail(error);
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
    this.#write([chunk], written);
  }
  override _writev(chunks: { chunk: Buffer }[], written: WriteCallback): void {
    this.#write(
      chunks.map(({ chunk }) => chunk),
      written,
    );
  }

  #write(chunks: readonly Buffer[], written: WriteCallback): void {
    writev(this.#fd, chunks, (error, count) => {
      if (error && error.code !== "EAGAIN") return written(error);
      const rest = error ? chunks : without(chunks, count);
      if (rest.length === 0) return written();
      const again = () => this.#write(rest, written);
      // Somebody has made it non-blocking, for all that share it.
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
