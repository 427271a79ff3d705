/**
 * What a pipe is joined to on the user's side: an input and an output, mostly the standard ones. Owns the output once a
 * pipe has started. For participant.ts.
 */
import { closeSync, openSync, writev } from "node:fs";
import { Writable } from "node:stream";
import { without } from "./message.ts";
import { type Pipe } from "./pipe.ts";
import { resetCodes, StreamError } from "../session/stream.ts";
import { WhileOpen } from "./while-open.ts";

/** How long to wait if a non-blocking output is full. */
const fullOutputPauseMs = 1;

type WriteCallback = (error?: Error | null) => void;

/** What is sent, such as `Bun.stdin.stream()`; undefined: nothing. */
export type Input = AsyncIterable<Uint8Array> | undefined;

/**
 * Sends `input` over one pipe, and writes to `output` what `incoming` brings; without `incoming`, what the same pipe
 * brings. Resolves once each byte of both has arrived and is confirmed. Else it cuts both pipes off, tells the other
 * side, and rejects with a {@link StreamError} that says why.
 *
 * With `lingerMs`, the other end is a target that may close first, and then nobody has to end the input: what comes within
 * that time of the last is still sent.
 */
export async function runPipe(
  input: Input,
  output: Writable,
  sending: Pipe,
  { incoming, lingerMs }: { incoming?: Promise<Pipe>; lingerMs?: number } = {},
): Promise<void> {
  const received = incoming?.then((pipe) => drainTo(pipe.end(), output)) ?? drainTo(sending, output);
  if (incoming) sending.on("end", () => sending.confirm()).resume();
  const quiet = new Quiet(lingerMs);
  received.then(
    () => quiet.begin(),
    () => {},
  );
  try {
    await Promise.all([feedFrom(input, sending, quiet), received]);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    sending.reset(reason);
    void incoming?.then((pipe) => pipe.reset(reason));
    throw error;
  }
}

/** A time in which the input brings nothing, once the other end has closed. */
class Quiet {
  readonly #lingerMs: number | undefined;
  #hasBegun = false;
  #timer: NodeJS.Timeout | undefined;
  #end: (() => void) | undefined;

  constructor(lingerMs: number | undefined) {
    this.#lingerMs = lingerMs;
  }

  /** The other end has closed. */
  begin(): void {
    this.#hasBegun = this.#lingerMs !== undefined;
    this.#arm();
  }

  /** Resolves to `undefined` if the time passes before the promise has settled, else as the promise does. */
  async orQuiet<T>(promise: Promise<T>): Promise<T | undefined> {
    const { promise: ended, resolve } = Promise.withResolvers<undefined>();
    this.#end = () => resolve(undefined);
    this.#arm();
    return Promise.race([promise, ended]).finally(() => clearTimeout(this.#timer));
  }

  #arm(): void {
    clearTimeout(this.#timer);
    if (this.#hasBegun && this.#end) this.#timer = setTimeout(this.#end, this.#lingerMs);
  }
}

/** Resolves once the peer has confirmed all of the input. */
async function feedFrom(input: Input, pipe: Pipe, quiet: Quiet): Promise<void> {
  const whileOpen = new WhileOpen(pipe);
  const chunks = input?.[Symbol.asyncIterator]();
  for (;;) {
    const coming = chunks?.next() ?? Promise.resolve({ done: true as const, value: undefined });
    const next = await whileOpen.wait(quiet.orQuiet(coming));
    if (!next) coming.catch(() => {}); // nobody waits for it any more
    if (!next || next.done) break;
    if (pipe.write(next.value)) continue;
    await whileOpen.wait(new Promise<void>((drained) => void pipe.once("drain", drained)));
  }
  await whileOpen.wait(new Promise<void>((confirmed) => void pipe.once("finish", confirmed).end()));
}

/** Resolves once the output has taken all, and the peer was told so. */
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
      // Also called if the output has failed, and then before its `error`.
      output.end((error?: Error | null) => {
        if (error) return fail(error);
        pipe.confirm();
        resolve();
      });
    });
  });
}

/**
 * A descriptor as the output of a pipe. It loses no byte, reports EPIPE, and is closed at the end, so that its reader sees
 * the end while the program goes on. Nothing in the program may have used `process.stdout`: it keeps a duplicate of the
 * descriptor that can't be closed.
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
      // Another program that shares the descriptor has made it non-blocking.
      if (error) setTimeout(again, fullOutputPauseMs);
      else again();
    });
  }

  override _final(ended: WriteCallback): void {
    closeSync(this.#fd);
    // A socket must not get this number: a stray print would go into it. open() takes the lowest free number.
    if (this.#fd <= 2) openSync("/dev/null", "w");
    ended();
  }
}
