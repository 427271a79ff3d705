/**
 * One flow-controlled stream of a session; to its user a Duplex (RFC 9113 §5.2 has the same rules). What its user wrote is
 * in written.ts until it is framed, and what the peer sent is in received.ts until it is read. It never sees a carrier.
 * Made by native/session/multiplexer.ts; for everything that uses a link.
 *
 * While a session has no carrier its streams wait, and nothing fails. `end()` ends our half only. An `error` is always a
 * {@link StreamError} with the reason. It never counts as unhandled, because a peer must not be able to end our program.
 */
import { Duplex } from "node:stream";
import { Credit, type CreditOwner } from "./credit.ts";
import { Received } from "./received.ts";
import { type WriteCallback, Written } from "./written.ts";

/** Bytes that the peer may send before we have read anything. It is the same on both sides, and not negotiated. */
export const firstCreditBytes = 256 * 1024;
/** Bytes that a user may write ahead before `write` returns false. */
const writableHighWaterMark = 256 * 1024;

/** Why a stream was cut off, as a number on the wire. A peer may send other numbers. */
export const resetCodes = {
  cancelled: 0,
  refused: 1,
  failed: 2,
  "too-much-unread": 3,
  "link-ended": 4,
  /** What it is for was allowed, and does not answer. */
  unreachable: 5,
  /** The same, and its host says so. */
  "nobody-listens": 6,
} as const;

/** A stream was cut off: by its user, by the peer, or because the link ended. */
export class StreamError extends Error {
  readonly code: number;
  /** Why, without who has done it. */
  readonly reason: string;
  constructor(code: number, reason: string, message = reason) {
    super(message);
    this.code = code;
    this.reason = reason;
  }
}

/** What a stream needs of its session. */
export interface StreamOwner extends CreditOwner {
  readonly hasCarrier: boolean;
  /** It has something that may be sent. */
  onReady(stream: Stream): void;
  /** All that its user wrote was framed. */
  onFlushed(): void;
  onCredit(stream: Stream, bytes: number): void;
  /** Its user has finished with it, maybe early. */
  onDestroyed(stream: Stream, code: number, reason: string): void;
  /** So many bytes more (or fewer) wait for users. Returns false if the whole session has too many. */
  onUnread(bytes: number): boolean;
  /** Its user threw an error. */
  onThrown(stream: Stream, error: unknown): void;
}

/** A stream of a link. What is marked "for the session" is not for its user. */
export class Stream extends Duplex {
  readonly id: number;
  /** For the session: both directions. */
  readonly written: Written;
  readonly received: Received;
  /** For the session: whether it waits for its turn. */
  isQueued = false;
  /** For writing-turns.ts: how much it has sent lately, when that many bytes of all streams were sent. */
  readonly sent = { bytes: 0, at: 0 };
  readonly #owner: StreamOwner;
  #reset: { code: number; reason: string } | undefined;

  constructor(owner: StreamOwner, id: number) {
    // 0: read() asks for more only when the user has taken everything, so that credit is given for what was read.
    super({ readableHighWaterMark: 0, writableHighWaterMark });
    this.#owner = owner;
    this.id = id;
    this.received = this.#newReceived();
    this.written = new Written(firstCreditBytes, {
      onReady: () => owner.onReady(this),
      onFlushed: () => owner.onFlushed(),
      guard: (work) => this.#guard(work),
    });
    this.on("error", () => {});
  }

  #newReceived(): Received {
    const owner = this.#owner;
    return new Received(new Credit(firstCreditBytes, owner), {
      hand: (piece) => this.push(piece),
      onCredit: (bytes) => owner.onCredit(this, bytes),
      onUnread: (bytes) => owner.onUnread(bytes),
      onTooMuch: () => this.reset("too much was sent that nobody reads", resetCodes["too-much-unread"]),
    });
  }

  /** Cuts it off in both directions. What is not sent yet is dropped, and the peer's stream fails with the reason. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#reset ??= { code, reason };
    this.destroy();
  }

  /** Whether there is no carrier now: nothing comes or goes. */
  get isWaiting(): boolean {
    return !this.#owner.hasCarrier;
  }

  /** For the session: whether nothing that was written is unsent. */
  get isFlushed(): boolean {
    const { mayEnd, pendingBytes } = this.written;
    return this.destroyed || (this.writableLength === 0 && pendingBytes === 0 && !mayEnd);
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, written: WriteCallback): void {
    this.#take([chunk], written);
  }
  override _writev(chunks: { chunk: Buffer }[], written: WriteCallback): void {
    this.#take(
      chunks.map(({ chunk }) => chunk),
      written,
    );
  }
  override _final(ended: WriteCallback): void {
    this.written.end(ended);
  }

  #take(chunks: Buffer[], written: WriteCallback): void {
    if (this.written.mayTake()) this.written.take(chunks, written);
    else written(new StreamError(resetCodes["link-ended"], "the link is ending"));
  }

  override _read(): void {
    this.received.read();
  }

  /** What listeners throw would else come out of whatever reads or writes the link, or end the program. */
  override emit(event: string | symbol, ...told: unknown[]): boolean {
    try {
      return super.emit(event, ...told);
    } catch (error) {
      this.#owner.onThrown(this, error);
      return true;
    }
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#owner.onThrown(this, error);
    }
  }

  // --- its end -------------------------------------------------------------------------------------------

  /** For the session: the peer's `end` has come. */
  endReceived(): void {
    this.received.endWith(() => void this.push(null));
  }

  /** For the session: the peer's `reset` has come. */
  resetReceived(code: number, reason: string): void {
    const why = reason || "no reason given";
    this.destroy(new StreamError(code, why, `the other side ended it: ${why}`));
  }

  /** For the session: nothing more is sent or comes. What came is still delivered if the end is an orderly one. */
  linkEnded(reason: string, isOrderly: boolean): void {
    if (this.destroyed) return;
    const error = new StreamError(resetCodes["link-ended"], `the link has ended: ${reason}`);
    const { isEmpty, hasLast } = this.received;
    const isRead = isEmpty && this.readableLength === 0 && (!hasLast || this.readableEnded);
    // A user that only writes would not learn of it otherwise.
    const isDeaf = this.written.hasWriter && this.readableFlowing === null;
    if (!isOrderly || isRead || isDeaf) return void this.destroy(error);
    this.received.endWith(() => void this.destroy(error));
    this.once("end", () => void (this.writableFinished || this.destroy(error)));
    this.written.close();
  }

  override _destroy(error: Error | null, destroyed: (error?: Error | null) => void): void {
    this.written.drop();
    this.received.drop();
    const { code, reason } = this.#reset ?? {
      code: error ? resetCodes.failed : resetCodes.cancelled,
      reason: error ? "it failed at the peer" : "the peer has done with it",
    };
    this.#owner.onDestroyed(this, code, reason);
    destroyed(error);
  }
}

/** A stream that has failed already: what is opened on a link that has ended. */
export function failedStream(reason: string): Stream {
  const nothing = () => {};
  const owner = {
    ...{ hasCarrier: false, nowMs: 0, roundTripMs: undefined, mayGrow: () => false, onUnread: () => true },
    ...{ onReady: nothing, onFlushed: nothing, onCredit: nothing, onDestroyed: nothing, onThrown: nothing },
  };
  return new Stream(owner, 0).destroy(new StreamError(resetCodes["link-ended"], reason));
}
