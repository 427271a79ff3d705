/**
 * What the peer sends on a stream, until its user reads it: never more than the credit that was given. For
 * native/session/stream.ts.
 */
import { type Credit } from "./credit.ts";
import { Unread } from "./unread.ts";

export interface ReceivedOwner {
  /** Hands it to the user. Returns whether the user wants more. */
  hand(piece: Buffer): boolean;
  /** The peer may send so much more. */
  onCredit(bytes: number): void;
  /** So many bytes more (or fewer) wait for users. Returns false if that is too much. */
  onUnread(bytes: number): boolean;
  onTooMuch(): void;
}

export class Received {
  /** For the session: whether the peer's `end` or `reset` has come. */
  isOver = false;
  readonly #owner: ReceivedOwner;
  readonly #credit: Credit;
  readonly #unread = new Unread();
  /** Whether the user has asked for more than has come. */
  #user: "waits" | "has-enough" | "gone" = "has-enough";
  /** What is done once all that came is read. */
  #last: (() => void) | undefined;

  constructor(credit: Credit, owner: ReceivedOwner) {
    this.#owner = owner;
    this.#credit = credit;
  }

  /** What the peer may still send; and what of that exceeds the first credit. */
  get allowedBytes(): number {
    return this.#credit.allowedBytes;
  }
  get grownBytes(): number {
    return this.#credit.grownBytes;
  }
  /** Whether all that came was handed to the user; and whether nothing more comes. */
  get isEmpty(): boolean {
    return this.#unread.isEmpty;
  }
  get hasLast(): boolean {
    return this.#last !== undefined;
  }

  /** False: the peer has sent more than it may. */
  receive(piece: Buffer): boolean {
    if (!this.#credit.spend(piece.length)) return false;
    if (this.#user === "waits") this.#hand(piece);
    else if (this.#user !== "gone") this.#keep(piece);
    return true;
  }

  #keep(piece: Buffer): void {
    const before = this.#unread.costBytes;
    this.#unread.push(piece);
    if (!this.#owner.onUnread(this.#unread.costBytes - before)) this.#owner.onTooMuch();
  }

  /** Nothing more comes. `last` is called once all is read. */
  endWith(last: () => void): void {
    this.#last ??= last;
    if (this.#user === "waits") this.read();
  }

  /** The user wants what has come. */
  read(): void {
    if (this.#user !== "gone") this.#user = "waits";
    while (this.#user === "waits") {
      const piece = this.#unread.shift();
      if (!piece) return this.#last?.();
      this.#owner.onUnread(-piece.buffer.byteLength);
      this.#hand(piece);
    }
  }

  #hand(piece: Buffer): void {
    const wantsMore = this.#owner.hand(piece);
    if (this.#user === "gone") return;
    this.#user = wantsMore ? "waits" : "has-enough";
    const granted = this.isOver ? 0 : this.#credit.consume(piece.length);
    if (granted > 0) this.#owner.onCredit(granted);
  }

  /** Nobody reads any more. */
  drop(): void {
    const { costBytes } = this.#unread;
    this.#user = "gone";
    this.#unread.clear();
    this.#owner.onUnread(-costBytes);
  }
}
