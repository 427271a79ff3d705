/**
 * The one line that each side of a channel sends first. One side nominates the channel (RFC 8445 §8.1.1), the other
 * answers, and both prove that they are of one room. Owns what has come of the peer's line. Closes nothing itself. For
 * native/secure/channel.ts.
 */
import { encode, parseToPeer, Refusal, type Role } from "../../protocol.ts";
import type { Shown } from "./identity.ts";
import { type Bond, isBondProved, isRunSealed, proveBond } from "./room.ts";

/** The longest nomination, and the longest answer to one. */
const maxNominationBytes = 256;
const openingBrace = "{".charCodeAt(0);
/** How long the answer may take. The other side answers as soon as the nomination comes. */
const proofTimeoutMs = 5_000;

export interface NominationOwner {
  readonly role: Role;
  readonly isOpen: boolean;
  /** The same bytes at both ends of this connection, and at no other. */
  exported(): Uint8Array;
  /** Sends our one line. */
  send(line: string): void;
  /** The peer's answer is right: it has proved itself. */
  answered(): void;
  /** The other end is not the peer, or breaks the protocol. */
  reject(reason: string): void;
}

export class Nomination {
  /** What both ends must prove. Whoever has compared the certificate sets it before the nomination. */
  bond: Bond | undefined;
  /** The peer has nominated this channel, and its proof is right. What follows comes as data after this returns. */
  onNominated: (token: string) => void = () => {};
  /**
   * The peer has answered our nomination: it has proved itself. Before that nothing is handed on. And only a first write
   * is sent, unless the peer's certificate has proved it already ({@link isProved}).
   */
  onProved: () => void = () => {};
  readonly #owner: NominationOwner;
  /** What has come of the peer's line. Undefined once the peer has proved itself by it. */
  #line: Buffer | undefined = Buffer.alloc(0);
  /** Whether the peer's key in TLS is sealed for its program in our room. Then we need not wait for its answer. */
  #isSealed = false;
  #timeout: NodeJS.Timeout | undefined;

  constructor(owner: NominationOwner) {
    this.#owner = owner;
  }

  /** Whether the peer has proved, by its line or by its key, that it is the program of our room that we mean. */
  get isProved(): boolean {
    return this.isOver || this.#isSealed;
  }
  /** Whether the peer's line has come, and is right. */
  get isOver(): boolean {
    return this.#line === undefined;
  }

  /** Tells the peer to keep this channel, and to close all others of that punch. */
  say(token: string, run: Shown["run"]): void {
    this.#isSealed = this.bond !== undefined && run !== undefined && isRunSealed(this.bond, run);
    this.#owner.send(encode({ type: "nominate", token, proof: this.#proof() }));
    const late = () => this.#owner.reject("it did not prove to be of the room");
    this.#timeout = setTimeout(late, proofTimeoutMs);
  }

  /** Reads the peer's line. Returns what came after it. */
  read(chunk: Buffer): Buffer | undefined {
    const before = this.#line ?? Buffer.alloc(0);
    const lf = chunk.indexOf(10);
    const end = lf < 0 ? chunk.length : lf + 1;
    const isOther = before.length === 0 && chunk[0] !== openingBrace;
    if (isOther || before.length + end > maxNominationBytes)
      return void this.#owner.reject("it sent no nomination first");
    this.#line = Buffer.concat([before, chunk.subarray(0, end)]);
    if (lf < 0) return undefined;
    this.#readLine(this.#line.toString());
    return chunk.subarray(end);
  }

  #readLine(line: string): void {
    try {
      const message = parseToPeer(line);
      if (!this.#isBound(message.proof))
        return this.#owner.reject("its proof that it is of the room is wrong");
      if (message.type === "nominate") this.#nominated(message.token);
      else this.#answered();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#owner.reject(`its nomination is none: ${error.message}`);
    }
  }

  #nominated(token: string): void {
    if (this.#owner.role === "controlling")
      return this.#owner.reject("it nominated what is ours to nominate");
    this.#line = undefined;
    this.onNominated(token);
    if (!this.#owner.isOpen) return;
    // Before anything that the session writes.
    this.#owner.send(encode({ type: "nominated", proof: this.#proof() }));
  }

  #answered(): void {
    if (this.#timeout === undefined) return this.#owner.reject("it answered what nobody had said");
    this.stop();
    this.#line = undefined;
    this.onProved();
    this.#owner.answered();
  }

  #proof(): string {
    if (!this.bond) throw new Error("a nomination without anything to prove");
    return proveBond(this.bond, this.#owner.role, "self", this.#owner.exported());
  }

  #isBound(proof: string): boolean {
    const { role } = this.#owner;
    return this.bond !== undefined && isBondProved(this.bond, role, this.#owner.exported(), proof);
  }

  stop(): void {
    clearTimeout(this.#timeout);
  }
}
