/**
 * JSON lines with raw bytes between them, for streams that carry messages and contents. Pure. For native/uses/.
 *
 * A line is one JSON object in UTF-8, ended by LF. Its `type` names the message. After `{"type":"chunk","bytes":n}` come n
 * raw bytes. The decoder holds no more than one line. It hands raw bytes on as they come.
 */
import { Refusal } from "../../protocol.ts";

/** The longest line in bytes. A path of 4096 bytes fits, even if all of it is escaped. */
const maxMessageBytes = 32 * 1024;
/** The most raw bytes after one `chunk`. */
export const maxChunkBytes = 1024 * 1024;

/** A message. Its fields are not checked yet: {@link wholeNumber} and {@link text} do that. */
export type Message = { readonly type: string } & Readonly<Record<string, unknown>>;

export const encodeMessage = (message: Message): Buffer => Buffer.from(`${JSON.stringify(message)}\n`);

/** The line that comes before `bytes` raw bytes. */
export const encodeChunk = (bytes: number): Buffer => encodeMessage({ type: "chunk", bytes });

/** Makes messages and pieces of raw bytes out of chunks that may be cut anywhere. */
export class MessageDecoder {
  #held: Buffer[] = [];
  #heldBytes = 0;
  /** Raw bytes that are still to come. */
  #rawLeft = 0;

  /** Throws a {@link Refusal} for what no participant sends. Nothing may be pushed after that. */
  *push(bytes: Buffer): Generator<Message | Buffer, void> {
    let at = 0;
    while (at < bytes.length) {
      if (this.#rawLeft > 0) {
        const piece = bytes.subarray(at, at + this.#rawLeft);
        at += piece.length;
        this.#rawLeft -= piece.length;
        yield piece;
        continue;
      }
      const lf = bytes.indexOf(10, at);
      this.#hold(bytes.subarray(at, lf < 0 ? bytes.length : lf));
      if (lf < 0) return;
      at = lf + 1;
      const message = this.#takeMessage();
      if (message.type === "chunk") this.#rawLeft = wholeNumber(message, "bytes", maxChunkBytes, 1);
      else yield message;
    }
  }

  /** Whether what has come so far ends with a whole message. */
  get isBetween(): boolean {
    return this.#heldBytes === 0 && this.#rawLeft === 0;
  }

  #hold(bytes: Buffer): void {
    this.#heldBytes += bytes.length;
    if (this.#heldBytes >= maxMessageBytes) {
      throw new Refusal("too-long", `a line has less than ${maxMessageBytes} bytes`);
    }
    this.#held.push(Buffer.from(bytes));
    // If it comes byte by byte, the list of pieces would take more memory than the line.
    if (this.#held.length > 64) this.#held = [Buffer.concat(this.#held)];
  }

  #takeMessage(): Message {
    const line = Buffer.concat(this.#held);
    this.#held = [];
    this.#heldBytes = 0;
    let message: unknown;
    try {
      message = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(line));
    } catch {
      throw new Refusal("bad-line", "a line must be one JSON object");
    }
    if (typeof message !== "object" || message === null || !("type" in message)) {
      throw new Refusal("bad-line", "a line must be one JSON object with a type");
    }
    if (typeof message.type !== "string") throw new Refusal("bad-field", "type must be text");
    return message as Message;
  }
}

/** Throws a {@link Refusal} for anything but a whole number from `min` to `max`. */
export function wholeNumber(
  message: Readonly<Record<string, unknown>>,
  field: string,
  max = Number.MAX_SAFE_INTEGER,
  min = 0,
): number {
  const value = Object.hasOwn(message, field) ? message[field] : undefined;
  if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) return value;
  throw new Refusal("bad-field", `${field} must be a whole number from ${min} to ${max}`);
}

/** Throws a {@link Refusal} for anything but well-formed text of at most `maxLength` characters. */
export function text(message: Readonly<Record<string, unknown>>, field: string, maxLength: number): string {
  const value = Object.hasOwn(message, field) ? message[field] : undefined;
  if (typeof value === "string" && value.length <= maxLength && value.isWellFormed()) return value;
  throw new Refusal("bad-field", `${field} must be text of at most ${maxLength} characters`);
}

/** The chunks without the first `bytes` bytes of all of them together. */
export function without(chunks: readonly Buffer[], bytes: number): Buffer[] {
  const rest: Buffer[] = [];
  for (const chunk of chunks) {
    if (bytes < chunk.length) rest.push(chunk.subarray(bytes));
    bytes = Math.max(0, bytes - chunk.length);
  }
  return rest;
}
