/**
 * What is written to sessions. It owns the lines that wait for the end of the tick and the bytes that wait for a slow
 * reader, and says when they are too many; who reads too slowly is its session's business. For native/introducer/session.ts
 * and introducer.ts.
 */
import type { Socket } from "bun";
import type { Shares } from "../shares/budget.ts";
import type { Guard, Served } from "./guard.ts";
import type { Limits } from "./limits.ts";
import type { Sources } from "./sources.ts";

/** With more bytes than this, they are written at once, and not at the end of the tick. */
const flushBytes = 64 * 1024;

/** Whose output it is. */
export interface Writer extends Served {
  readonly socket: Pick<Socket, "write">;
  /** Who shares its shares. */
  readonly source: string;
  /** Too much waits for it. */
  overflowed(): void;
}

/** What is written within one tick goes in one system call for each session. */
export class Outbox {
  readonly #guard: Guard;
  readonly #unsent: Shares;
  readonly #unsentBytes: number;
  #waiting: Output[] = [];

  constructor(guard: Guard, limits: Limits, sources: Sources) {
    this.#guard = guard;
    this.#unsent = sources.unsent;
    this.#unsentBytes = limits.unsentBytes;
  }

  /** How many have something to write at the end of the tick. */
  get size(): number {
    return this.#waiting.length;
  }

  put(output: Output): void {
    if (this.#waiting.push(output) === 1) setImmediate(() => this.#flushAll());
  }

  #flushAll(): void {
    const outputs = this.#waiting;
    this.#waiting = [];
    for (const output of outputs) this.#guard.serve(output.writer, () => output.flush());
  }

  count(source: string, more: number): void {
    if (more < 0) this.#unsent.remove(source, -more);
    else if (more > 0) this.#unsent.add(source, more);
  }

  isTooMuch(source: string, bytes: number): boolean {
    return bytes > this.#unsentBytes || this.#unsent.isUsedUp() || this.#unsent.isOver(source);
  }
}

/** What one session is still to be sent. */
export class Output {
  readonly writer: Writer;
  readonly #outbox: Outbox;
  /** Written at the end of the tick. */
  #text = "";
  /** What the kernel has not taken. */
  #unsent: Uint8Array[] | undefined = undefined;
  #unsentBytes = 0;

  constructor(writer: Writer, outbox: Outbox) {
    this.writer = writer;
    this.#outbox = outbox;
  }

  get hasUnsent(): boolean {
    return this.#unsent !== undefined;
  }

  write(text: string): void {
    if (this.#text === "") this.#outbox.put(this);
    this.#text += text;
    if (this.#text.length >= flushBytes) this.flush();
  }

  /** The last text. It is written with the next flush. */
  end(text: string): void {
    this.#text += text;
  }

  flush(): void {
    const text = this.#text;
    if (text === "") return;
    this.#text = "";
    const written = this.#unsent === undefined ? this.writer.socket.write(text) : 0;
    if (written < 0 || written === Buffer.byteLength(text)) return;
    const rest = Buffer.from(text).subarray(written);
    (this.#unsent ??= []).push(rest);
    this.#count(this.#unsentBytes + rest.length);
    if (!this.#outbox.isTooMuch(this.writer.source, this.#unsentBytes)) return;
    this.forget();
    this.writer.overflowed();
  }

  /** The kernel takes more again; returns whether it has taken all. */
  sendRest(): boolean {
    const unsent = this.#unsent;
    if (!unsent) return true;
    // A single part is not copied, or a slow reader would have it copied each time.
    const bytes = unsent.length === 1 ? unsent[0]! : Buffer.concat(unsent);
    const rest = bytes.subarray(Math.max(0, this.writer.socket.write(bytes)));
    this.#unsent = rest.length > 0 ? [rest] : undefined;
    this.#count(rest.length);
    return rest.length === 0;
  }

  /** Nothing more can be sent. */
  forget(): void {
    this.#text = "";
    this.#unsent = undefined;
    this.#count(0);
  }

  #count(bytes: number): void {
    this.#outbox.count(this.writer.source, bytes - this.#unsentBytes);
    this.#unsentBytes = bytes;
  }
}
