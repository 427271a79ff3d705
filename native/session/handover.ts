/**
 * Which carrier a session uses: what the two sides say about that, and which offer outranks which. Owns the epoch, and
 * whether the peer knows the session at all. It moves nothing itself. For native/session/transport.ts.
 *
 * Either side may offer a carrier, on which it speaks first:
 *
 *   resume (epoch, processed) ►     a higher epoch outranks a lower one; of two equal ones, the session's controlling
 *   ◄ resumed (epoch, processed)    side's. Then each says, before its next sequenced frame:
 *   start n ►          ◄ start n    as many as were put on older carriers while they live, else as were acknowledged
 *
 * If frame n has come already, what is repeated is skipped. If not, this carrier is not read until an older one has brought
 * what is missing; if none can, we say `rewind`. Each side may send on any carrier, because all are read.
 */
import { type Role } from "../../protocol.ts";
import { type CarrierSet, type CarrierState } from "./carrier-state.ts";
import { type Clock } from "./carrier.ts";
import {
  encodeHello,
  frame,
  type Gone,
  type Hello,
  ProtocolError,
  resumedStatus,
  resumeStatus,
} from "./frame.ts";

/** A carrier that was refused as `old` may be offered again with a higher epoch, so often. */
const maxOffers = 4;

/** What follows from the peer's frame. */
export interface Moves {
  moveTo(state: CarrierState, processed: number): void;
  /** The peer has offered a newer one. */
  setOld(state: CarrierState, putUntil: number): void;
  acknowledged(count: number): void;
  lost(state: CarrierState, reason: string): void;
  /** Nothing more is read of it; it closes once what was written has gone. */
  dismiss(state: CarrierState): void;
  /** `unknown`: the peer does not know the session. `over`: it has ended there. */
  refused(status: Gone): void;
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
  /** Whether we know that the peer has the session. */
  isConfirmed: boolean;
  readonly #parts: HandoverParts;
  /** The highest that either side has used, as far as we know; and whether it was ours. */
  #epoch = { number: 0, isOurs: false };

  constructor(parts: HandoverParts) {
    this.#parts = parts;
    // The side that begins the session does not know it before the peer answers. The other side does.
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
    // A session that begins need not wait for the peer's answer: the peer has nothing of it. On a later carrier we must
    // wait, because an earlier one may have brought something.
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
      case resumedStatus.lost:
        return this.#parts.moves.refused("lost");
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
    // Ours was accepted after the peer had offered the better one. It may have brought frames meanwhile.
    if (carriers.current && carriers.current.epoch > epoch) moves.setOld(state, 0);
    else moves.moveTo(state, processed);
  }

  /** The peer knows a carrier that outranks ours. If we don't know it, it may never come here, so ours is offered again. */
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
