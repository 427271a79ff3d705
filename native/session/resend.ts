/**
 * What was framed and not yet acknowledged: numbered, kept as it was sent, sent again on another carrier. Owns the
 * buffers that frames are assembled in, and uses them again once the peer has all of what is in them. Never writes
 * to a carrier. For native/session/sender.ts; its queue for native/session/.
 */
import { frameBytesAt, ProtocolError } from "./frame.ts";

/** The most bytes of one write to a carrier; and the size of a buffer. */
export const blockBytes = 128 * 1024;
/** The smallest reservation: any frame but `data` fits in it. */
const minReservedBytes = 8 * 1024;
/** Buffers kept for reuse, 16 MiB. */
const maxPooledBlocks = 128;
/** What a run costs besides its bytes: objects. */
const runOverheadBytes = 128;

/** A queue from whose head it is cheap to take. */
export class Queue<T> {
  #items: (T | undefined)[] = [];
  #head = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }
  at(index: number): T | undefined {
    return this.#items[this.#head + index];
  }
  push(item: T): void {
    this.#items.push(item);
  }
  shift(): T | undefined {
    if (this.length === 0) return undefined;
    const item = this.#items[this.#head];
    this.#items[this.#head++] = undefined;
    if (this.#head >= 64 && this.#head * 2 >= this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }
  clear(): void {
    this.#items = [];
    this.#head = 0;
  }
}

interface Block {
  readonly bytes: Buffer;
  /** Bytes given out for frames. */
  used: number;
  /** Runs in it that are not acknowledged. */
  runs: number;
  /** Whether it may be used again. Not once something of it was sent twice: an old carrier may still hold one copy. */
  isReusable: boolean;
}

/** Sequenced frames that were assembled for one write. */
interface Run {
  readonly bytes: Buffer;
  /** The number of its first frame. */
  readonly first: number;
  readonly frames: number;
  readonly block: Block;
}

function newBlock(): Block {
  return { bytes: Buffer.allocUnsafeSlow(blockBytes), used: 0, runs: 0, isReusable: true };
}

/** The sending side of a session's sequence. */
export class ResendBuffer {
  readonly #runs = new Queue<Run>();
  readonly #pool: Block[] = [];
  #block: Block | undefined;
  /** Runs that were put on the current carrier, or on older ones that it continues. */
  #sentRuns = 0;
  #made = 0;
  #acknowledged = 0;
  #keptBytes = 0;
  #acknowledgedBytes = 0;

  /** Frames that have a number. */
  get made(): number {
    return this.#made;
  }
  get acknowledged(): number {
    return this.#acknowledged;
  }
  /** How many bytes were acknowledged, of all frames so far. */
  get acknowledgedBytes(): number {
    return this.#acknowledgedBytes;
  }
  /** What is kept, in bytes, with what keeping it costs. */
  get keptBytes(): number {
    return this.#keptBytes;
  }
  /** What is not acknowledged, in bytes. */
  get unacknowledgedBytes(): number {
    return this.#keptBytes - this.#runs.length * runOverheadBytes;
  }
  /** The number of the frame that is sent next. */
  get next(): number {
    const run = this.#runs.at(this.#sentRuns);
    return run ? Math.max(run.first, this.#acknowledged) : this.#made;
  }

  /** Room for the frames of one write: `bytes`, seldom less. {@link commit} it, or do not use it. */
  reserve(bytes: number): Buffer {
    if (!this.#block || blockBytes - this.#block.used < minReservedBytes) {
      this.#block = this.#pool.pop() ?? newBlock();
    }
    const { bytes: all, used } = this.#block;
    return all.subarray(used, Math.min(blockBytes, used + Math.max(bytes, minReservedBytes)));
  }

  /** `frames` sequenced frames were written to `room` at `from` to `to`, and count as sent. */
  commit(room: Buffer, from: number, to: number, frames: number): void {
    const block = this.#block!;
    const bytes = room.subarray(from, to);
    block.used += to;
    block.runs++;
    this.#runs.push({ bytes, first: this.#made, frames, block });
    this.#sentRuns++;
    this.#made += frames;
    this.#keptBytes += bytes.length + runOverheadBytes;
  }

  /** The peer has processed so many frames. Throws a {@link ProtocolError} if so many were never sent. */
  acknowledge(count: number): void {
    if (count > this.#made) throw new ProtocolError("it acknowledges what was never sent");
    if (count <= this.#acknowledged) return;
    this.#acknowledged = count;
    for (let run = this.#runs.at(0); run && run.first + run.frames <= count; run = this.#runs.at(0)) {
      this.#runs.shift();
      if (this.#sentRuns > 0) this.#sentRuns--;
      this.#keptBytes -= run.bytes.length + runOverheadBytes;
      this.#acknowledgedBytes += run.bytes.length;
      this.#release(run.block);
    }
  }

  /** From now on all that is not acknowledged is sent again. */
  rewind(): void {
    this.#sentRuns = 0;
  }

  /** The next frames to send again, in one buffer that must not be changed; undefined if all were sent. */
  resend(): Buffer | undefined {
    const run = this.#runs.at(this.#sentRuns);
    if (!run) return undefined;
    this.#sentRuns++;
    run.block.isReusable = false;
    let at = 0;
    for (let number = run.first; number < this.#acknowledged; number++) at += frameBytesAt(run.bytes, at);
    return run.bytes.subarray(at);
  }

  /** Gives the spare buffers back to the process. */
  trim(): void {
    this.#pool.length = 0;
  }

  #release(block: Block): void {
    if (--block.runs > 0) return;
    if (block !== this.#block) this.#recycle(block);
    else if (block.isReusable) block.used = 0;
  }

  #recycle(block: Block): void {
    if (!block.isReusable || this.#pool.length >= maxPooledBlocks) return;
    block.used = 0;
    this.#pool.push(block);
  }
}
