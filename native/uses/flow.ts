/**
 * A flow of datagrams (RFC 768) over one stream of a link, as both ends of a UDP forward have it. Owns what waits to be sent,
 * and ends after a silence. It has no socket. For native/uses/udp.ts and serve-udp.ts.
 *
 * On the stream each datagram is whole, behind its length:
 *
 *   length u16 ≤ 65,507, datagram      one datagram, which may be empty
 *   65,534, count u32                  so many were dropped before they could be sent
 *   65,535                             the target has refused what came last; only the serving end says so
 *
 * Late is worse than lost. What can't be framed waits for 50 ms at most, and so does all else if the peer has not acknowledged
 * what was sent by 50 ms after it usually does: more would only be late.
 */
import { maxDatagramBytes } from "../host/udp.ts";
import { Queue } from "../session/resend.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { LateQueue, maxWaitMs } from "./late-queue.ts";

/** A flow ends after so long without a datagram, either way. It is what NATs allow at least, too (RFC 4787 REQ-5). */
const silenceMs = 60_000;
/** Datagrams that are written together: the turn of a stream. */
const maxWriteBytes = 16 * 1024;
const lengthBytes = 2;
const notices = { dropped: 65_534, refused: 65_535 };
const countBytes = 4;
/** How long an acknowledgement takes as long as nobody knows; and what is never late, for a busy machine takes as long. */
const firstMs = 1_000;
const leastMs = 50;
/** How much a later acknowledgement counts against what is usual, and an earlier one. */
const usual = { later: 1 / 8, earlier: 1 / 2 };

export interface FlowOwner {
  arrived(datagram: Buffer): void;
  /** The peer says that the target has refused what came last. Without it, saying so is a fault of the peer. */
  refused?(): void;
  /** Called once. */
  over(error?: Error): void;
}

/** Counts of datagrams. `in`: from the peer. */
export interface Traffic {
  packetsIn: number;
  packetsOut: number;
  bytesIn: number;
  bytesOut: number;
  /** Dropped here, or by the peer. */
  dropped: number;
}

type State =
  /** There is no link yet. */
  { is: "waiting" } | { is: "open"; stream: Stream; isWriting: boolean } | { is: "over" };

export class Flow {
  /** When a datagram came last, by performance.now(); either way. */
  heardAtMs = performance.now();
  readonly #owner: FlowOwner;
  readonly #silenceMs: number;
  readonly #queue = new LateQueue();
  readonly #reader: DatagramReader;
  readonly #traffic: Traffic = { packetsIn: 0, packetsOut: 0, bytesIn: 0, bytesOut: 0, dropped: 0 };
  readonly #sent = new SentLedger();
  #state: State = { is: "waiting" };
  /** How many were dropped after they had come from the peer. */
  #droppedLater = 0;
  /** What the peer has been told, and is to be told. */
  #owed = { dropped: 0, isRefused: false };
  #timer: NodeJS.Timeout | undefined;
  readonly #silence: NodeJS.Timeout;

  constructor(owner: FlowOwner, maxSilenceMs = silenceMs) {
    this.#owner = owner;
    this.#silenceMs = maxSilenceMs;
    this.#reader = new DatagramReader({
      datagram: (datagram) => this.#arrived(datagram),
      dropped: (count) => void (this.#traffic.dropped += count),
      refused: owner.refused && (() => owner.refused?.()),
    });
    // Looked at more often than needed, which costs less than a timer for each datagram.
    this.#silence = setInterval(() => this.#endIfSilent(), maxSilenceMs / 8).unref();
  }

  get traffic(): Traffic {
    return { ...this.#traffic, dropped: this.#traffic.dropped + this.#queue.dropped };
  }

  get isOver(): boolean {
    return this.#state.is === "over";
  }

  join(stream: Stream): void {
    this.#state = { is: "open", stream, isWriting: false };
    stream.on("data", (piece: Buffer) => this.#read(piece));
    stream.on("error", (error) => this.#over(error));
    for (const event of ["end", "close"]) stream.on(event, () => this.end("the other end has ended it"));
    stream.written.countAcknowledged((bytes) => {
      this.#sent.acknowledged(bytes, performance.now());
      this.#pump();
    });
    this.#pump();
  }

  /** Sends it to the peer, soon or not at all. */
  send(datagram: Buffer): void {
    if (this.isOver) return;
    this.heardAtMs = performance.now();
    // By IPv6 it may be 20 bytes longer. The peer would take that for a fault of ours.
    if (datagram.length > maxDatagramBytes) this.#queue.dropped++;
    else this.#queue.push(datagram, this.heardAtMs);
    this.#pump();
  }

  /** Tells the peer that so many, in all, were dropped after they had come from it. */
  tellDropped(count: number): void {
    if (count === this.#droppedLater) return;
    this.#droppedLater = count;
    this.#pump();
  }

  /** Tells the peer that the target has refused what came last. */
  tellRefused(): void {
    this.#owed.isRefused = true;
    this.#pump();
  }

  end(reason: string, code: number = resetCodes.cancelled): void {
    if (this.#state.is === "open") this.#state.stream.reset(reason, code);
    this.#over();
  }

  // --- to the peer ---------------------------------------------------------------------------------------

  #pump(): void {
    const state = this.#state;
    if (state.is === "over") return;
    const nowMs = performance.now();
    if (state.is === "waiting" || state.isWriting || state.stream.isWaiting || this.#sent.isLate(nowMs))
      return this.#dropInTime();
    const written = this.#take(nowMs);
    if (!written) return;
    state.isWriting = true;
    this.#sent.add(written.length, nowMs);
    state.stream.write(written, () => {
      state.isWriting = false;
      this.#pump();
    });
  }

  /** What waits too long is dropped, also if nothing else happens. */
  #dropInTime(): void {
    if (this.#queue.length === 0 || this.#timer) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#queue.next(performance.now());
      this.#pump();
    }, maxWaitMs);
  }

  /** What is to be written next; undefined if there is nothing. */
  #take(nowMs: number): Buffer | undefined {
    const datagrams: Buffer[] = [];
    let bytes = 0;
    for (;;) {
      const next = this.#queue.next(nowMs);
      if (!next || (bytes > 0 && bytes + next.length > maxWriteBytes)) break;
      datagrams.push(this.#queue.shift()!);
      bytes += lengthBytes + next.length;
      this.#traffic.packetsOut++;
      this.#traffic.bytesOut += next.length;
    }
    const owed = this.#takeOwed();
    if (datagrams.length === 0 && owed.length === 0) return undefined;
    const written = Buffer.allocUnsafe(owed.length + bytes);
    let at = owed.copy(written);
    for (const datagram of datagrams) {
      at = written.writeUInt16BE(datagram.length, at);
      at += datagram.copy(written, at);
    }
    return written;
  }

  #takeOwed(): Buffer {
    const all = this.#queue.dropped + this.#droppedLater;
    const dropped = all - this.#owed.dropped;
    if (dropped === 0 && !this.#owed.isRefused) return nothing;
    const owed = Buffer.alloc(dropped > 0 ? 2 * lengthBytes + countBytes : lengthBytes);
    const end = this.#owed.isRefused ? owed.writeUInt16BE(notices.refused) : 0;
    if (dropped > 0) owed.writeUInt32BE(dropped, owed.writeUInt16BE(notices.dropped, end));
    this.#owed = { dropped: all, isRefused: false };
    return owed.subarray(0, end + (dropped > 0 ? lengthBytes + countBytes : 0));
  }

  // --- from the peer -------------------------------------------------------------------------------------

  #read(piece: Buffer): void {
    if (this.isOver) return;
    const problem = this.#reader.read(piece);
    if (problem !== undefined) this.end(problem, resetCodes.failed);
  }

  #arrived(datagram: Buffer): void {
    if (this.isOver) return;
    this.heardAtMs = performance.now();
    this.#traffic.packetsIn++;
    this.#traffic.bytesIn += datagram.length;
    this.#owner.arrived(datagram);
  }

  // --- its end -------------------------------------------------------------------------------------------

  #endIfSilent(): void {
    if (performance.now() - this.heardAtMs >= this.#silenceMs) this.end("nothing has come for a while");
  }

  #over(error?: Error): void {
    if (this.isOver) return;
    this.#state = { is: "over" };
    clearTimeout(this.#timer);
    clearInterval(this.#silence);
    this.#queue.clear();
    this.#owner.over(error);
  }
}

/** Ends the flow that was silent for longest, first of those that are not to be kept. False if there is none. */
export function endSilent(all: Iterable<Flow> = [], isKept = (_: Flow) => false): boolean {
  const flows = [...all];
  const others = flows.filter((flow) => !isKept(flow));
  const [oldest] = (others.length > 0 ? others : flows).sort((a, b) => a.heardAtMs - b.heardAtMs);
  oldest?.end("others need a flow, too");
  return oldest !== undefined;
}

const nothing = Buffer.alloc(0);

/** When what was written was sent, until it is acknowledged. */
class SentLedger {
  readonly #unacknowledged = new Queue<{ upTo: number; atMs: number }>();
  #bytes = 0;
  /** How long it usually takes. */
  #usualMs: number | undefined;

  add(bytes: number, atMs: number): void {
    this.#bytes += bytes;
    this.#unacknowledged.push({ upTo: this.#bytes, atMs });
  }

  acknowledged(bytes: number, nowMs: number): void {
    for (;;) {
      const oldest = this.#unacknowledged.at(0);
      if (!oldest || oldest.upTo > bytes) return;
      this.#unacknowledged.shift();
      const tookMs = nowMs - oldest.atMs;
      this.#usualMs ??= tookMs;
      this.#usualMs += (tookMs - this.#usualMs) * (tookMs > this.#usualMs ? usual.later : usual.earlier);
    }
  }

  /** Whether the oldest should have been acknowledged by now. */
  isLate(nowMs: number): boolean {
    const oldest = this.#unacknowledged.at(0);
    return (
      oldest !== undefined && nowMs - oldest.atMs > Math.max(leastMs, this.#usualMs ?? firstMs) + maxWaitMs
    );
  }
}

export interface ReaderTaker {
  datagram(datagram: Buffer): void;
  dropped(count: number): void;
  /** Undefined: it may not be said. */
  refused: (() => void) | undefined;
}

/** What is being read, and how much of it there is already. */
interface Part {
  is: "length" | "count" | "datagram";
  length: number;
  kept?: Buffer;
  has: number;
}

/** Takes datagrams out of a stream's pieces. Keeps one at most. */
export class DatagramReader {
  readonly #taker: ReaderTaker;
  #part: Part = { is: "length", length: lengthBytes, has: 0 };

  constructor(taker: ReaderTaker) {
    this.#taker = taker;
  }

  /** Returns what is wrong, once something is. */
  read(piece: Buffer): string | undefined {
    for (let rest = piece; ;) {
      const { is, length, has } = this.#part;
      const taken = rest.subarray(0, length - has);
      const whole = this.#whole(taken);
      if (!whole) return undefined;
      rest = rest.subarray(taken.length);
      const problem = this.#next(is, whole);
      if (problem !== undefined) return problem;
    }
  }

  /** The part, if nothing of it is missing now. What came in one piece is not copied. */
  #whole(taken: Buffer): Buffer | undefined {
    const part = this.#part;
    if (part.has === 0 && taken.length === part.length) return taken;
    part.kept ??= Buffer.allocUnsafe(part.length);
    part.has += taken.copy(part.kept, part.has);
    return part.has === part.length ? part.kept : undefined;
  }

  #next(is: Part["is"], bytes: Buffer): string | undefined {
    const begin = (next: Part["is"], length: number) => void (this.#part = { is: next, length, has: 0 });
    if (is !== "length") {
      begin("length", lengthBytes);
      if (is === "datagram") this.#taker.datagram(bytes);
      else this.#taker.dropped(bytes.readUInt32BE());
      return undefined;
    }
    const length = bytes.readUInt16BE();
    begin("length", lengthBytes);
    if (length === notices.refused && this.#taker.refused) this.#taker.refused();
    else if (length === notices.dropped) begin("count", countBytes);
    else if (length <= maxDatagramBytes) begin("datagram", length);
    else return `a datagram has at most ${maxDatagramBytes} bytes, not ${length}`;
    return undefined;
  }
}
