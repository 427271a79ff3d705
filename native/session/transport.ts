/**
 * One sequence of frames in each direction, over carriers that come and go. Each frame arrives once and in order, even
 * if carriers break: frames that are not acknowledged are kept, and go on at their byte on the next carrier. Owns the
 * carriers, and which one is current. handover.ts decides that, sender.ts sends, receiver.ts reads, liveness.ts judges
 * what is alive. It knows no stream and seeks no carrier: its owner is told when one is needed, and brings it. For
 * native/session/session.ts.
 */
import { type Role } from "../../protocol.ts";
import { type CarrierSet, CarrierState } from "./carrier-state.ts";
import { type Carrier, type CarrierEvent, type Offer } from "./carrier.ts";
import { type Edge } from "./edge.ts";
import {
  decodeCount,
  decodeHello,
  frame,
  type Gone,
  headerBytes,
  helloBytes,
  ProtocolError,
} from "./frame.ts";
import { Handover, type Moves } from "./handover.ts";
import { Liveness } from "./liveness.ts";
import { ReadingTurns } from "./reading-turns.ts";
import { Receipts } from "./receipts.ts";
import { type FrameTaker, Receiver } from "./receiver.ts";
import { type FrameSource, Sender } from "./sender.ts";

const tickMs = 250;
/** An old carrier is read for so long beside its successor. */
const oldMs = 10_000;
/** An offer without an answer is given up after so long. */
const offerTimeoutMs = 5_000;
/** So many carriers are kept at once. If a peer brings more, the oldest is closed. */
const maxCarriers = 8;

/** What sends and receives by it. */
export interface TransportOwner extends FrameSource, FrameTaker {
  onAcknowledged(): void;
  onEvent(event: CarrierEvent): void;
  /** The peer does not go on with the session. */
  onRefused(status: Gone): void;
}

export interface TransportOptions {
  sessionId: string;
  role: Role;
  /** Whatever is thrown here, by us or by the owner, ends there. A {@link ProtocolError} is the peer's. */
  edge: Edge;
  owner: TransportOwner;
}

/** The current carrier: none yet; one; none since the last was lost; or none for good. */
type Way = { is: "none" } | { is: "on"; state: CarrierState } | { is: "lost"; sinceMs: number };

export class Transport implements CarrierSet {
  readonly all = new Set<CarrierState>();
  /** Carriers that frames were sent on. */
  soFar = 0;
  readonly turns: ReadingTurns;
  readonly receipts: Receipts;
  readonly sender: Sender;
  readonly receiver: Receiver;
  readonly liveness: Liveness;
  readonly handover: Handover;
  readonly #owner: TransportOwner;
  readonly #edge: Edge;
  #way: Way = { is: "none" };
  #cancelTick: (() => void) | undefined;

  constructor({ sessionId, role, edge, owner }: TransportOptions) {
    const [carriers, { clock }] = [this, edge];
    this.#owner = owner;
    this.#edge = edge;
    const onDue = () => this.sender.pumpSoon();
    const receipts = (this.receipts = new Receipts(edge, onDue));
    const turns = (this.turns = new ReadingTurns(
      edge,
      () => this.receiver.pauseAll(),
      () => this.receiver.resumeAll(),
    ));
    const liveness = (this.liveness = new Liveness({
      clock,
      isAckDue: () => this.sender.isAckDue,
      isDeaf: () => turns.isPaused,
      onPingDue: onDue,
    }));
    const sender = (this.sender = new Sender({ edge, carriers, source: owner, receipts, liveness }));
    const write = (state: CarrierState, bytes: Buffer) => void sender.write(state, bytes);
    this.receiver = new Receiver({
      ...{ edge, carriers, taker: owner, receipts, turns, liveness, write },
      onUnsequenced: (state, type, payload) => this.#onUnsequenced(state, type, payload),
      onInSequence: () => this.#retireOld(),
    });
    this.handover = new Handover({
      ...{ sessionId, role, clock, carriers, write, moves: this.#moves() },
      processed: () => receipts.processed,
      made: () => sender.outbox.made,
      isFirst: () => this.soFar === 0,
    });
  }

  get current(): CarrierState | undefined {
    return this.#way.is === "on" ? this.#way.state : undefined;
  }

  get #isSought(): boolean {
    return [...this.all].some(({ is }) => is === "offered");
  }

  // --- coming and going ----------------------------------------------------------------------------------

  /** A carrier on which this side speaks first. */
  attach(carrier: Carrier): void {
    this.#edge.guard(() => this.handover.offer(this.#adopt(carrier, "offered")));
  }

  /** A carrier on which the peer has spoken. */
  accept({ carrier, hello, rest }: Offer): void {
    this.#edge.guard(() => {
      const state = this.#adopt(carrier, "refused");
      this.receiver.bytesIn += rest.reduce((sum, { length }) => sum + length, headerBytes + helloBytes);
      this.handover.consider(state, hello);
      state.incoming.rest.push(...rest);
      this.receiver.readOn(state);
    });
  }

  #adopt(carrier: Carrier, is: CarrierState["is"]): CarrierState {
    const [edge, state] = [this.#edge, this.receiver.state(carrier, is)];
    const oldest = [...this.all].find((other) => other !== this.current);
    if (oldest && this.all.size >= maxCarriers) this.#drop(oldest);
    this.all.add(state);
    carrier.onData = (chunk) => edge.guard(() => this.#read(state, chunk));
    carrier.onWritten = () => edge.guard(() => this.sender.pump());
    carrier.onClose = (reason) => edge.guard(() => this.#lost(state, reason));
    this.#cancelTick ??= edge.after(tickMs, () => this.#tick());
    return state;
  }

  #read(state: CarrierState, chunk: Buffer): void {
    this.receiver.read(state, chunk);
    // The newer one has not been agreed on. Whichever carrier speaks first goes on.
    if (!this.current && state.is === "old" && this.all.has(state)) this.#moveTo(state, 0);
  }

  #moves(): Moves {
    return {
      moveTo: (state, processed) => this.#moveTo(state, processed),
      setOld: (state, putUntil) => this.#setOld(state, putUntil),
      acknowledged: (count) => this.#acknowledged(count),
      lost: (state, reason) => this.#lost(state, reason),
      dismiss: (state) => {
        this.#detach(state);
        state.carrier.finish();
      },
      refused: (status) => this.#owner.onRefused(status),
    };
  }

  /** From now on frames are sent on that one. */
  #moveTo(state: CarrierState, processed: number): void {
    const { current: old, sender } = this;
    const gapMs = this.#gapMs();
    this.#acknowledged(processed);
    // `start` has our own count: an acknowledgement on an old carrier may have overtaken `resume`.
    if (!old || this.liveness.judge(old).is !== "alive") sender.outbox.rewind();
    if (old) this.#setOld(old, sender.outbox.next);
    const isFirst = this.soFar === 0;
    if (state.is !== "old") this.soFar++;
    this.#way = { is: "on", state };
    state.is = "current";
    sender.start(state);
    this.receipts.tellAgain();
    this.liveness.ping(state);
    this.#retireOld();
    if (!isFirst) this.#owner.onEvent({ is: "moved", carrier: state.carrier, gapMs });
    sender.pump();
  }

  /** For how long no frames could be sent. */
  #gapMs(): number {
    const [way, now] = [this.#way, this.#edge.clock.now()];
    if (way.is === "none") return 0;
    if (way.is === "lost") return now - way.sinceMs;
    const { is, quietMs } = this.liveness.judge(way.state);
    return is === "alive" ? 0 : quietMs;
  }

  #setOld(state: CarrierState, putUntil: number): void {
    state.is = "old";
    state.sinceMs = this.#edge.clock.now();
    state.putUntil = putUntil;
  }

  /** Closes old carriers once the newer one brings frames, and all that was put on the old ones has arrived. */
  #retireOld(): void {
    if (this.all.size < 2 || this.current?.incoming.reading !== "in-sequence") return;
    const { acknowledged } = this.sender.outbox;
    for (const state of this.all) if (state.is === "old" && acknowledged >= state.putUntil) this.#drop(state);
  }

  #drop(state: CarrierState): void {
    this.#detach(state);
    state.carrier.destroy();
  }

  #detach(state: CarrierState): void {
    const { carrier, decoder } = state;
    this.all.delete(state);
    decoder.stop();
    carrier.onData = carrier.onWritten = carrier.onClose = () => {};
  }

  #lost(state: CarrierState, reason: string): void {
    if (!this.all.has(state)) return;
    const sinceMs = this.liveness.dueSince(state) ?? this.#edge.clock.now();
    this.#drop(state);
    if (this.current === state) this.#inherit(state, sinceMs);
    this.receiver.rewindWhatWaitsInVain();
    // Spare buffers are of no use until there is a carrier.
    if (this.all.size === 0) this.sender.outbox.trim();
    if (this.#edge.isClosed || this.current || this.#isSought) return;
    this.#owner.onEvent({ is: "lost", reason });
  }

  /** An old one goes on, if there is one that lives. */
  #inherit(lost: CarrierState, sinceMs: number): void {
    this.#way = { is: "lost", sinceMs };
    this.liveness.shortenKeepalive(lost);
    const isAlive = (other: CarrierState) => this.liveness.judge(other).is === "alive";
    const heir = [...this.all].findLast((other) => other.is === "old" && isAlive(other));
    if (heir) this.#moveTo(heir, 0);
  }

  /** Sends `last`, a sequenced frame, if the peer can still take it, and closes all carriers. */
  close(last: Buffer | undefined): void {
    const { current } = this;
    this.#edge.close();
    this.turns.stop();
    this.receipts.stop();
    this.sender.stop();
    this.#cancelTick?.();
    this.#way = { is: "none" };
    if (current) {
      try {
        this.sender.sayLast(current, last);
      } catch {
        // This carrier may be the one that threw.
      }
      this.#detach(current);
      current.carrier.finish();
    }
    for (const state of this.all) this.#drop(state);
  }

  // --- what comes beside the sequence --------------------------------------------------------------------

  #onUnsequenced(state: CarrierState, type: number, payload: Buffer): void {
    if (type === frame.resumed) return this.handover.answered(state, decodeHello(payload));
    if (type === frame.resume) return this.handover.considerAnew(state, decodeHello(payload));
    if (state.is === "offered") throw new ProtocolError("frames before it agreed to resume");
    if (state.is === "refused") return; // it was sent before the peer knew that
    switch (type) {
      case frame.ack:
        return this.#acknowledged(decodeCount(payload));
      case frame.start:
        return this.receiver.start(state, decodeCount(payload));
      case frame.rewind:
        return this.#onRewind(state, decodeCount(payload));
      case frame.ping:
        return this.sender.pong(state, payload);
      case frame.pong:
        return this.#onPong(state, decodeCount(payload));
    }
  }

  #onPong(state: CarrierState, number: number): void {
    const roundTripMs = this.liveness.ponged(state, number);
    if (roundTripMs !== undefined) this.sender.measured(state, roundTripMs);
  }

  #acknowledged(count: number): void {
    if (!this.sender.acknowledged(count)) return;
    this.#retireOld();
    this.#owner.onAcknowledged();
    this.sender.pumpSoon();
  }

  #onRewind(state: CarrierState, count: number): void {
    this.sender.grantRewind(state, count);
    this.#acknowledged(count);
    // Another one will hear of the newer one.
    if (state === this.current) this.sender.rewind(state);
  }

  // --- what time brings ----------------------------------------------------------------------------------

  #tick(): void {
    this.#cancelTick = undefined;
    for (const state of [...this.all]) this.#review(state);
    const { outbox } = this.sender;
    if (outbox.keptBytes === 0) outbox.trim();
    if (this.#edge.isClosed || this.all.size === 0) return;
    this.#cancelTick ??= this.#edge.after(tickMs, () => this.#tick());
  }

  #review(state: CarrierState): void {
    const ageMs = this.#edge.clock.now() - state.sinceMs;
    this.receiver.rewindIfHeldForLong(state);
    switch (state.is) {
      case "offered":
        if (ageMs >= offerTimeoutMs) this.#lost(state, "the peer did not answer on it");
        return;
      case "refused":
      case "old":
        if (ageMs >= oldMs) this.#drop(state);
        return;
      case "current":
        return this.#reviewLife(state);
    }
  }

  #reviewLife(state: CarrierState): void {
    const { is, quietMs } = this.liveness.judge(state);
    if (is === "alive") return this.liveness.keepAlive(state);
    if (is === "dead") {
      return this.#lost(state, `the peer has not been heard for ${Math.round(quietMs / 1000)} s`);
    }
    if (this.#isSought || !this.liveness.mayTellDead(state)) return;
    this.#owner.onEvent({ is: "looks-dead", quietMs });
  }
}
