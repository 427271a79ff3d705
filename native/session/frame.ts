/**
 * The frames that two participants exchange on a carrier, as bytes. Pure: no stream, no clock, no carrier.
 * For native/session/.
 *
 *   0        1                    4                         8
 *   ├ type u8 ┼ payload length u24 ┼ stream u32 (0: none) ┼ payload …        all big-endian
 *
 * Sequenced frames are counted by both sides and kept until they are acknowledged; whichever carrier brings number
 * n, it has the same bytes. Unsequenced ones (bit 7 set) belong to the carrier they came on:
 *
 *   open    1     a JSON object in one line: what the stream is for
 *   data    2     1 to 65,536 bytes
 *   credit  3     u32: so many more bytes may be sent
 *   end     4     the sender's half of the stream is over
 *   reset   5     u32 code, then the reason: the sender neither sends nor wants any more
 *   finish  6     the reason: the sender has no more for any stream
 *   ack     0x80  u64: frames processed
 *   ping    0x81  8 bytes, which `pong` repeats
 *   pong    0x82
 *   resume  0x83  hello: first on a carrier, from the side that nominated it
 *   resumed 0x84  hello: the answer
 *   start   0x85  u64: frames before the next sequenced one on this carrier
 *   rewind  0x86  u64: that was too many, what lacks will not come; begin again after so many
 *
 * A hello is version u8, status u8, epoch u32, session id (16 bytes), frames processed u64.
 */

export const linkVersion = 2;
export const headerBytes = 8;
/** Payload of one `data` frame. Pieces are handed on as they come, so this bounds no buffer, only a turn. */
export const maxDataBytes = 64 * 1024;
export const maxPurposeBytes = 4096;
const maxReasonBytes = 256;
export const sessionIdBytes = 16;
export const helloBytes = 14 + sessionIdBytes;
/** Far from what an epoch can reach by moving, and one more still fits in its u32. */
const maxEpoch = 0x7fff_ffff;

export const frame = {
  open: 1,
  data: 2,
  credit: 3,
  end: 4,
  reset: 5,
  finish: 6,
  ack: 0x80,
  ping: 0x81,
  pong: 0x82,
  resume: 0x83,
  resumed: 0x84,
  start: 0x85,
  rewind: 0x86,
} as const;
const unsequencedBit = 0x80;

/** How few and how many bytes of payload. What is not listed is no frame. */
const payloadBytes: Readonly<Record<number, readonly [min: number, max: number]>> = {
  [frame.open]: [2, maxPurposeBytes],
  [frame.data]: [1, maxDataBytes],
  [frame.credit]: [4, 4],
  [frame.end]: [0, 0],
  [frame.reset]: [4, 4 + maxReasonBytes],
  [frame.finish]: [0, maxReasonBytes],
  [frame.ack]: [8, 8],
  [frame.ping]: [8, 8],
  [frame.pong]: [8, 8],
  [frame.resume]: [helloBytes, helloBytes],
  [frame.resumed]: [helloBytes, helloBytes],
  [frame.start]: [8, 8],
  [frame.rewind]: [8, 8],
};

/** What `resume` says: whether the session may be begun where it is not known. */
export const resumeStatus = { known: 0, begin: 1 } as const;
/**
 * What `resumed` says. `old`: a carrier of that or a later epoch is in use or sought; the hello names the latest.
 * `unknown`: nobody here has that session. `over`: its user ended it while there was no way to say so. `lost`: it was given
 * up, because it had no carrier for too long.
 */
export const resumedStatus = {
  accepted: 0,
  unknown: 1,
  old: 2,
  version: 3,
  impossible: 4,
  over: 5,
  lost: 6,
} as const;
/** The session can't be resumed any more. */
export type Gone = "unknown" | "over" | "lost";

/** Bytes from the peer that no participant of this version sends; the text is for the user. */
export class ProtocolError extends Error {}

export interface Hello {
  version: number;
  status: number;
  epoch: number;
  /** 32 hex digits. */
  sessionId: string;
  /** Sequenced frames of the other side that were processed. */
  processed: number;
}

// --- encoding --------------------------------------------------------------------------------------------

export const isSequenced = (type: number): boolean => (type & unsequencedBit) === 0;

export function writeHeader(to: Buffer, at: number, type: number, length: number, stream: number): void {
  to[at] = type;
  to[at + 1] = length >>> 16;
  to[at + 2] = length >>> 8;
  to[at + 3] = length;
  to[at + 4] = stream >>> 24;
  to[at + 5] = stream >>> 16;
  to[at + 6] = stream >>> 8;
  to[at + 7] = stream;
}

/** Bytes of the frame whose header is at `at`, header included. */
export function frameBytesAt(bytes: Buffer, at: number): number {
  return headerBytes + bytes.readUIntBE(at + 1, 3);
}

/** A frame of any type; that the payload fits it is the caller's. */
export function encodeFrame(type: number, payload: Uint8Array, stream = 0): Buffer {
  const encoded = emptyFrame(type, payload.length, stream);
  encoded.set(payload, headerBytes);
  return encoded;
}

/** A frame with a zeroed payload of `length` bytes behind its header. */
function emptyFrame(type: number, length: number, stream = 0): Buffer {
  const bytes = Buffer.alloc(headerBytes + length);
  writeHeader(bytes, 0, type, length, stream);
  return bytes;
}

export function encodeCredit(stream: number, bytes: number): Buffer {
  const encoded = emptyFrame(frame.credit, 4, stream);
  encoded.writeUInt32BE(bytes, headerBytes);
  return encoded;
}

/** For `ack`, `start`, `rewind`, and `ping`, whose eight bytes are a number, too. */
export function encodeCount(type: number, count: number): Buffer {
  const encoded = emptyFrame(type, 8);
  encoded.writeBigUInt64BE(BigInt(count), headerBytes);
  return encoded;
}

export function encodeReset(stream: number, code: number, reason: string): Buffer {
  const text = encodeReason(reason);
  const encoded = emptyFrame(frame.reset, 4 + text.length, stream);
  encoded.writeUInt32BE(code, headerBytes);
  encoded.set(text, headerBytes + 4);
  return encoded;
}

export function encodeFinish(reason: string): Buffer {
  return encodeFrame(frame.finish, encodeReason(reason));
}

/** Throws RangeError when the purpose takes more than {@link maxPurposeBytes}. */
export function encodeOpen(stream: number, purpose: object): Buffer {
  const text = Buffer.from(JSON.stringify(purpose));
  if (text.length > maxPurposeBytes) {
    throw new RangeError(
      `the purpose of a stream takes at most ${maxPurposeBytes} bytes, not ${text.length}`,
    );
  }
  return encodeFrame(frame.open, text, stream);
}

export function encodeHello(type: number, hello: Omit<Hello, "version">): Buffer {
  const encoded = emptyFrame(type, helloBytes);
  encoded[headerBytes] = linkVersion;
  encoded[headerBytes + 1] = hello.status;
  encoded.writeUInt32BE(hello.epoch, headerBytes + 2);
  encoded.write(hello.sessionId, headerBytes + 6, "hex");
  encoded.writeBigUInt64BE(BigInt(hello.processed), headerBytes + 6 + sessionIdBytes);
  return encoded;
}

/** Cut between two characters, so that what arrives is still text. */
function encodeReason(reason: string): Uint8Array {
  const bytes = new Uint8Array(maxReasonBytes);
  return bytes.subarray(0, new TextEncoder().encodeInto(reason, bytes).written);
}

// --- decoding --------------------------------------------------------------------------------------------

/** A u64 that counts frames. Throws a {@link ProtocolError} beyond 2^53, which takes 9 million years to send. */
export function decodeCount(payload: Buffer, at = 0): number {
  const count = payload.readUInt32BE(at) * 2 ** 32 + payload.readUInt32BE(at + 4);
  if (!Number.isSafeInteger(count)) throw new ProtocolError("a count of frames that nobody can have sent");
  return count;
}

/** Bytes a `credit` frame adds; never 0. */
export function decodeCredit(payload: Buffer): number {
  const bytes = payload.readUInt32BE(0);
  if (bytes === 0) throw new ProtocolError("a credit of nothing");
  return bytes;
}

export function decodeReset(payload: Buffer): { code: number; reason: string } {
  return { code: payload.readUInt32BE(0), reason: decodeReason(payload.subarray(4)) };
}

export const decodeReason = (payload: Buffer): string => payload.toString("utf8");

/** The purpose of a stream: any JSON object; whoever takes the stream checks what is in it. */
export function decodePurpose(payload: Buffer): Record<string, unknown> {
  let purpose: unknown;
  try {
    purpose = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
  } catch {
    throw new ProtocolError("the purpose of a stream is not JSON");
  }
  if (typeof purpose !== "object" || purpose === null || Array.isArray(purpose)) {
    throw new ProtocolError("the purpose of a stream is not a JSON object");
  }
  return purpose as Record<string, unknown>;
}

export function decodeHello(payload: Buffer): Hello {
  const epoch = payload.readUInt32BE(2);
  if (epoch > maxEpoch) throw new ProtocolError(`carrier number ${epoch}`);
  return {
    version: payload[0]!,
    status: payload[1]!,
    epoch,
    sessionId: payload.toString("hex", 6, 6 + sessionIdBytes),
    processed: decodeCount(payload, 6 + sessionIdBytes),
  };
}

/** Who reads the frames of one carrier. A ProtocolError that it throws comes out of {@link FrameDecoder.push}. */
export interface FrameReader {
  /** The next bytes of a `data` frame, `at` of which went before. */
  onPiece(stream: number, piece: Buffer, at: number, isLast: boolean): void;
  /** Any other frame. */
  onFrame(type: number, stream: number, payload: Buffer): void;
}

/**
 * Frames out of chunks that are cut anywhere. Payloads of `data` are handed on as subarrays and never put together,
 * so that no more than a header and {@link maxPurposeBytes} are ever held here.
 */
export class FrameDecoder {
  readonly #reader: FrameReader;
  readonly #header = Buffer.alloc(headerBytes);
  #headerLength = 0;
  #type = 0;
  #stream = 0;
  #length = 0;
  /** Bytes of the payload that were seen. */
  #at = 0;
  #payload: Buffer | undefined;
  #isStopped = false;

  constructor(reader: FrameReader) {
    this.#reader = reader;
  }

  /** Called by the reader: {@link push} returns after this frame, with what is left of its chunk. */
  stop(): void {
    this.#isStopped = true;
  }

  /** Throws a {@link ProtocolError}; nothing can follow it. Returns what a stopped decoder has not read. */
  push(chunk: Buffer): Buffer | undefined {
    this.#isStopped = false;
    let at = 0;
    while (at < chunk.length && !this.#isStopped) {
      if (this.#headerLength < headerBytes) at = this.#readHeader(chunk, at);
      if (this.#headerLength < headerBytes) return undefined;
      const end = Math.min(chunk.length, at + this.#length - this.#at);
      if (this.#type === frame.data) {
        if (end > at) this.#readPiece(chunk.subarray(at, end));
      } else this.#readPayload(chunk.subarray(at, end));
      at = end;
    }
    return at < chunk.length ? chunk.subarray(at) : undefined;
  }

  #readHeader(chunk: Buffer, at: number): number {
    let [header, from] = [chunk, at];
    if (this.#headerLength > 0 || chunk.length - at < headerBytes) {
      const taken = chunk.copy(this.#header, this.#headerLength, at, at + headerBytes - this.#headerLength);
      this.#headerLength += taken;
      at += taken;
      if (this.#headerLength < headerBytes) return at;
      [header, from] = [this.#header, 0];
    } else at += headerBytes;
    this.#headerLength = headerBytes;
    this.#type = header[from]!;
    this.#length = (header[from + 1]! << 16) | (header[from + 2]! << 8) | header[from + 3]!;
    this.#stream = header.readUInt32BE(from + 4);
    this.#at = 0;
    this.#checkLength();
    return at;
  }

  #checkLength(): void {
    const bounds = payloadBytes[this.#type];
    if (!bounds) throw new ProtocolError(`a frame of unknown type ${this.#type}`);
    if (this.#length < bounds[0] || this.#length > bounds[1]) {
      throw new ProtocolError(`a frame of type ${this.#type} with ${this.#length} bytes`);
    }
  }

  #readPiece(piece: Buffer): void {
    const at = this.#at;
    this.#at += piece.length;
    const isLast = this.#at === this.#length;
    if (isLast) this.#headerLength = 0;
    this.#reader.onPiece(this.#stream, piece, at, isLast);
  }

  #readPayload(piece: Buffer): void {
    let payload = piece;
    if (piece.length < this.#length) {
      payload = this.#payload ??= Buffer.alloc(this.#length);
      payload.set(piece, this.#at);
    }
    this.#at += piece.length;
    if (this.#at < this.#length) return;
    this.#headerLength = 0;
    this.#payload = undefined;
    this.#reader.onFrame(this.#type, this.#stream, payload);
  }
}
