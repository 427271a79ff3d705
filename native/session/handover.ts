/**
 * Which carrier a session goes by: what the two sides say of it, and which offer outranks which. Owns the epoch, and
 * whether the peer has the session at all. It moves nothing itself. For native/session/transport.ts.
 *
 * Either side may offer a carrier, on which it speaks first:
 *
 *   resume (epoch, processed) ►     a higher epoch outranks a lower one; of two equal ones, the session's controlling
 *   ◄ resumed (epoch, processed)    side's. Then each says, before its next sequenced frame:
 *   start n ►          ◄ start n    as many as were put on older carriers while they live, else as were acknowledged
 *
 * Frame n came already: what is repeated is skipped. It did not: this carrier is not read until an older one has
 * brought what lacks; when none can, `rewind`. Each side may send on whichever carrier it likes, for all are read.
 */
import { type Role } from "../../protocol.ts";
import { type CarrierSet, type CarrierState } from "./carrier-state.ts";
import { type Clock } from "./carrier.ts";
import { encodeHello, frame, ProtocolError, resumedStatus, resumeStatus, type Hello } from "./frame.ts";

/** A carrier that is told `old` may be offered anew, with a higher epoch; no peer of ours needs more. */
const maxOffers = 4;

/** What comes of it. */
export interface Moves {
  moveTo(state: CarrierState, processed: number): void;
  /** Another one is newer, that the peer offered. */
  setOld(state: CarrierState, putUntil: number): void;
  acknowledged(count: number): void;
  lost(state: CarrierState, reason: string): void;
  /** Nothing more is read of it; it closes once what was written has gone. */
  dismiss(state: CarrierState): void;
  /** `unknown`: the peer does not know the session. `over`: it has ended there. */
  refused(status: "unknown" | "over"): void;
}

export interface HandoverParts {
  sessionId: string;
  role: Role;
  clock: Clock;
  carriers: CarrierSet;
  moves: Moves;
  /** Frames of the peer that have come, and frames that were ever made here. */
  processed: () => number;
  made: () => number;
  /** Whether nothing was sent on any carrier yet. */
  isFirst: () => boolean;
  write: (state: CarrierState, bytes: Buffer) => void;
}

export class Handover {
  /** Whether the peer is known to have the session. */
  isConfirmed: boolean;
  readonly #parts: HandoverParts;
  /** The highest that either side has used, as far as we know; and whether it was ours. */
  #epoch = { number: 0, isOurs: false };

  constructor(parts: HandoverParts) {
    this.#parts = parts;
    // Whoever begins the session can't know before the peer's word; the other has it by the peer's word.
    this.isConfirmed = parts.role === "controlled";
  }

  offer(state: CarrierState): void {
    const { clock, isFirst, moves } = this.#parts;
    this.#epoch = { number: this.#epoch.number + 1, isOurs: true };
    state.epoch = this.#epoch.number;
    state.offers++;
    state.sinceMs = clock.now();
    const status = this.isConfirmed ? resumeStatus.known : resumeStatus.begin;
    this.#sayHello(state, frame.resume, status, state.epoch);
    // The peer can't have anything of a session that begins: its word need not be waited for. A later carrier's must,
    // for the first may have brought that the peer has it.
    if (!this.isConfirmed && isFirst()) moves.moveTo(state, 0);
  }

  #sayHello(state: CarrierState, type: number, status: number, epoch: number): void {
    const { sessionId, processed, write } = this.#parts;
    write(state, encodeHello(type, { status, epoch, sessionId, processed: processed() }));
  }

  /** The peer's offer. */
  consider(state: CarrierState, { epoch, processed }: Hello): void {
    const { made, moves, role } = this.#parts;
    if (processed > made()) {
      this.#sayHello(state, frame.resumed, resumedStatus.impossible, epoch);
      moves.dismiss(state);
      throw new ProtocolError("a resumption after more than was ever sent");
    }
    const { number, isOurs } = this.#epoch;
    const yields = epoch === number && isOurs && role === "controlled";
    if (epoch <= number && !yields) {
      return this.#sayHello(state, frame.resumed, resumedStatus.old, number);
    }
    this.#epoch = { number: epoch, isOurs: false };
    state.epoch = epoch;
    state.isConfirmed = true;
    this.#sayHello(state, frame.resumed, resumedStatus.accepted, epoch);
    moves.moveTo(state, processed);
  }

  considerAnew(state: CarrierState, hello: Hello): void {
    if (state.is !== "refused" || hello.sessionId !== this.#parts.sessionId) {
      throw new ProtocolError("`resume` on a carrier in use");
    }
    this.consider(state, hello);
  }

  /** The peer's answer to an offer of ours. */
  answered(state: CarrierState, hello: Hello): void {
    if (state.offers === 0 || state.isConfirmed) {
      throw new ProtocolError("an answer to what was not asked");
    }
    switch (hello.status) {
      case resumedStatus.accepted:
        return this.#confirmed(state, hello);
      case resumedStatus.old:
        return this.#outranked(state, hello.epoch);
      case resumedStatus.unknown:
        return this.#parts.moves.refused("unknown");
      case resumedStatus.over:
        return this.#parts.moves.refused("over");
      default:
        throw new ProtocolError(`a refusal to resume (${hello.status})`);
    }
  }

  #confirmed(state: CarrierState, { epoch, sessionId, processed }: Hello): void {
    const { carriers, moves } = this.#parts;
    if (epoch !== state.epoch || sessionId !== this.#parts.sessionId) {
      throw new ProtocolError("an answer for another carrier");
    }
    this.isConfirmed = state.isConfirmed = true;
    if (state.is !== "offered") return moves.acknowledged(processed);
    // Ours came to be after the peer had offered the better one, and may have brought frames meanwhile.
    if (carriers.current && carriers.current.epoch > epoch) moves.setOld(state, 0);
    else moves.moveTo(state, processed);
  }

  /** The peer knows of a carrier that outranks ours. If we don't, it may never come here: ours is offered anew. */
  #outranked(state: CarrierState, epoch: number): void {
    const { carriers, moves } = this.#parts;
    const isSettled = carriers.current !== undefined && carriers.current.epoch >= epoch;
    if (isSettled || state.is !== "offered" || state.offers === maxOffers) {
      return moves.lost(state, "another carrier is in use");
    }
    this.#epoch = { ...this.#epoch, number: Math.max(this.#epoch.number, epoch) };
    this.offer(state);
  }
}
