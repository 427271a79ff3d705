/**
 * The streams of a session: which are open, which are only remembered, and which numbers are left. One side opens
 * streams with odd numbers, the other with even ones. Sends nothing. For native/session/multiplexer.ts.
 */
import { type Role } from "../../protocol.ts";
import { ProtocolError } from "./frame.ts";
import { type Stream } from "./stream.ts";

/** Streams that one side may have opened at once. Each costs the other as much as its credit. */
const maxStreams = 4096;
/** By so much all credits together may exceed the first credits. */
const maxGrowthBytes = 64 * 1024 * 1024;
/** A stream that is open, whatever it carries. */
const streamCostBytes = 4 * 1024;
/** A stream that we have reset and the peer has not: its number, and how much of its credit is left. */
const remnantCostBytes = 64;

export class StreamTable {
  readonly #streams = new Map<number, Stream>();
  /** Streams that we have reset and the peer has not: what the peer may still send on them. */
  readonly #remnants = new Map<number, number>();
  readonly #opened = { here: 0, there: 0 };
  #nextId: number;
  #highestPeerId = 0;
  #grownBytes = 0;

  constructor(role: Role) {
    this.#nextId = role === "controlling" ? 1 : 2;
  }

  /** Those that somebody here has opened or taken. */
  get all(): Iterable<Stream> {
    return this.#streams.values();
  }
  get inUse(): number {
    return this.#streams.size;
  }
  get remnants(): number {
    return this.#remnants.size;
  }
  get costBytes(): number {
    return this.#streams.size * streamCostBytes + this.#remnants.size * remnantCostBytes;
  }

  // --- numbers -------------------------------------------------------------------------------------------

  /** The number of the next stream that is opened here. Throws an Error if too many are open. */
  get nextId(): number {
    if (this.#opened.here >= maxStreams) throw new Error(`a link has at most ${maxStreams} streams at once`);
    return this.#nextId;
  }

  /** Throws a {@link ProtocolError} unless the peer may open a stream with that number. */
  checkOpen(id: number): void {
    if (id <= this.#highestPeerId || this.side(id) === "here")
      throw new ProtocolError(`a new stream with the number ${id}`);
    if (this.#opened.there >= maxStreams) throw new ProtocolError(`more than ${maxStreams} streams at once`);
  }

  /** Who opened the stream with that number. */
  side(id: number): "here" | "there" {
    return (id & 1) === (this.#nextId & 1) ? "here" : "there";
  }

  #wasOpen(id: number): boolean {
    return id > 0 && (this.side(id) === "here" ? id < this.#nextId : id <= this.#highestPeerId);
  }

  add(stream: Stream): void {
    const side = this.side(stream.id);
    this.#streams.set(stream.id, stream);
    this.#opened[side]++;
    if (side === "here") this.#nextId += 2;
    else this.#highestPeerId = stream.id;
  }

  // --- what the peer says of one -------------------------------------------------------------------------

  /** The stream; undefined if it is over here. Throws a {@link ProtocolError} if there never was one. */
  get(id: number): Stream | undefined {
    const stream = this.#streams.get(id);
    if (!stream && !this.#wasOpen(id))
      throw new ProtocolError(`a frame for stream ${id}, which never was open`);
    return stream;
  }

  isRemnant(id: number): boolean {
    return this.#remnants.has(id);
  }

  /** Bytes have come for it. If we had reset it, they were under way then. */
  receive(id: number, piece: Buffer, hasFinished: boolean): void {
    const stream = this.#streams.get(id);
    const allowed = stream ? undefined : this.#remnants.get(id);
    if (allowed === undefined && (!stream || stream.received.isOver))
      throw new ProtocolError(`bytes for stream ${id}, which is not open`);
    if (hasFinished) throw new ProtocolError("bytes after `finish`");
    const isAllowed = stream ? stream.received.receive(piece) : piece.length <= allowed!;
    if (!isAllowed) throw new ProtocolError(`more for stream ${id} than it has credit for`);
    if (!stream) this.#remnants.set(id, allowed! - piece.length);
  }

  // --- ends ----------------------------------------------------------------------------------------------

  forgetIfOver(stream: Stream): void {
    if (!stream.written.isOver || !stream.received.isOver || !this.#streams.delete(stream.id)) return;
    this.#opened[this.side(stream.id)]--;
    this.#grownBytes -= stream.received.grownBytes;
  }

  /** Nobody here has it any more. Until the peer has reset it, too, we remember how much the peer may still send. */
  abridge(stream: Stream): void {
    if (!this.#streams.delete(stream.id)) return;
    this.#remnants.set(stream.id, stream.received.allowedBytes);
    this.#grownBytes -= stream.received.grownBytes;
  }

  remnantOver(id: number): void {
    if (this.#remnants.delete(id)) this.#opened[this.side(id)]--;
  }

  /** The session has ended. What is left can still be read. */
  ended(stream: Stream): void {
    this.#streams.delete(stream.id);
  }

  clearRemnants(): void {
    this.#remnants.clear();
  }

  /** Whether credits may exceed the first ones by `bytes` more. If the answer is true, they count as taken. */
  mayGrow(bytes: number): boolean {
    if (this.#grownBytes + bytes > maxGrowthBytes) return false;
    this.#grownBytes += bytes;
    return true;
  }
}
