/**
 * One sequence of frames each way, over carriers that come and go: each frame arrives once, in order, whatever
 * carriers break. Frames that were not acknowledged are kept, and go on at their byte on the next carrier. Owns the
 * carriers, what is kept, the timers of acknowledging and of life. It knows no stream and never seeks a carrier: its
 * owner is told when one is needed, and brings it. For native/session/session.ts.
 *
 * Moving to another carrier (either side may offer one, on which it speaks first):
 *
 *   resume (epoch, processed) ►     a higher epoch outranks a lower one; of two equal ones, the session's controlling
 *   ◄ resumed (epoch, processed)    side's. Then each says, before its next sequenced frame:
 *   start n ►          ◄ start n    as many as were put on older carriers while they live, else as were acknowledged
 *
 * Frame n came already: what is repeated is skipped. It did not: this carrier is not read until an older one has
 * brought what lacks; when none can, `rewind`. Each side may send on whichever carrier it likes, for all are read.
 */
import { type Role } from "../../protocol.ts";
import { Attachment } from "./carrier-state.ts";
import { type Carrier, type CarrierEvent, type Clock, type Offer } from "./carrier.ts";
import {
  decodeCount,
  decodeHello,
  encodeCount,
  encodeFrame,
  encodeHello,
  frame,
  FrameDecoder,
  headerBytes,
  helloBytes,
  isSequenced,
  ProtocolError,
  resumedStatus,
  resumeStatus,
  type Hello,
} from "./frame.ts";
import { blockBytes, ResendBuffer } from "./resend.ts";

/** Bytes written before others of this program have their turn. */
const turnBytes = 512 * 1024;
/** Sequenced frames read in one turn of the event loop; what costs more than reading it counts as several. */
const turnFrames = 256;
/** Of larger ones a read of the connection brings only few, so that they need no turns. */
const smallFrameBytes = 1024;
/** The longest that a peer which asks for too much is not read at a time: well below what looks dead. */
const maxRestMs = 250;
/** The peer learns that its frames came after so many bytes, or so much time; sooner if anything else is sent. */
const ackBytes = 512 * 1024;
const ackDelayMs = 20;
/** An idle carrier is asked for a sign of life: NATs forget, and the peer's death is noticed by it. */
const keepaliveMs = { most: 15_000, least: 3_000 };
/** A carrier looks dead when an answer has been due for so long, and for so many round trips. */
const patience = { leastMs: 2_000, roundTrips: 4 };
/** It is given up after so many times that. */
const givenUpAfter = 5;
const tickMs = 250;
/** Without progress, how long a carrier waits for what an older one should bring. */
const holdMs = 1_000;
/** An old carrier is read so long beside its successor. */
const oldMs = 10_000;
/** An offer without an answer is given up. */
const offerTimeoutMs = 5_000;
/** A carrier that is told `old` may be offered anew, with a higher epoch; no peer of ours needs more. */
const maxOffers = 4;

/** Carriers kept at once: a peer that brings more loses the oldest. */
const maxCarriers = 8;

/** A write that is being put together: frames go to `room` from `at` on. */
export interface Batch {
  readonly room: Buffer;
  at: number;
  /** Sequenced frames in it. */
  frames: number;
}

/** Who sends and receives by it. */
export interface FrameOwner {
  /** The next bytes of a stream; the next frame. */
  onPiece(stream: number, piece: Buffer): void;
  onFrame(type: number, stream: number, payload: Buffer): void;
  /** Whether {@link fill} would add frames. */
  readonly hasFrames: boolean;
  fill(batch: Batch): void;
  onAcknowledged(): void;
  onEvent(event: CarrierEvent): void;
  /** The peer does not know the session any more. */
  onOver(reason: string): void;
  /** Whatever was thrown here, by us or by the owner: nothing can follow. A {@link ProtocolError} is the peer's. */
  onThrown(error: unknown): void;
}

export interface CarriersOptions {
  sessionId: string;
  role: Role;
  clock: Clock;
  owner: FrameOwner;
}

/** The carriers of a session, and its sequence of frames. */
export class Carriers {
  /** Bytes of all carriers, frames and repetitions included. */
  bytesIn = 0;
  bytesOut = 0;
  /** Carriers that frames were sent on. */
  soFar = 0;
  /** The latest measured. */
  roundTripMs: number | undefined;
  /** Whether the peer is known to have the session. */
  isConfirmed: boolean;
  readonly #sessionId: string;
  readonly #role: Role;
  readonly #clock: Clock;
  readonly #owner: FrameOwner;
  readonly #attachments = new Set<Attachment>();
  /** Frames are sent on it; all attachments are read. */
  #current: Attachment | undefined;
  /** The highest that either side has used, as far as we know; and whether it was ours. */
  #epoch = 0;
  #isOurEpoch = false;
  #keepaliveMs = keepaliveMs.most;
  #gapSinceMs: number | undefined;
  #isClosed = false;
  #cancelTick: (() => void) | undefined;
  // sending
  readonly #outbox = new ResendBuffer();
  #turnBytes = 0;
  #isYielding = false;
  #willPump = false;
  #pings = 0;
  // receiving
  /** Those of this turn; and what ends the rest under way. */
  #turnFrames = 0;
  #cancelRest: (() => void) | undefined;
  #processed = 0;
  /** Bytes of the next frame that were handed on, by whichever carrier. */
  #partial = 0;
  #ackSent = 0;
  #unackedBytes = 0;
  #mustAck = false;
  #cancelAck: (() => void) | undefined;

  constructor({ sessionId, role, clock, owner }: CarriersOptions) {
    this.#sessionId = sessionId;
    this.#role = role;
    this.#clock = clock;
    this.#owner = owner;
    // Whoever begins the session can't know before the peer's word; the other has it by the peer's word.
    this.isConfirmed = role === "controlled";
  }

  get current(): Carrier | undefined {
    return this.#current?.carrier;
  }
  get framesMade(): number {
    return this.#outbox.made;
  }
  get framesAcknowledged(): number {
    return this.#outbox.acknowledged;
  }
  get framesProcessed(): number {
    return this.#processed;
  }
  get keptBytes(): number {
    return this.#outbox.keptBytes;
  }

  // --- coming and going ----------------------------------------------------------------------------------

  /** A carrier on which this side speaks first. */
  attach(carrier: Carrier): void {
    this.#guard(() => this.#offer(this.#adopt(carrier, "offered")));
  }

  /** A carrier on which the peer has spoken. */
  accept({ carrier, hello, rest }: Offer): void {
    this.#guard(() => {
      const attachment = this.#adopt(carrier, "refused");
      this.bytesIn += rest.reduce((sum, { length }) => sum + length, headerBytes + helloBytes);
      this.#consider(attachment, hello);
      attachment.rest.push(...rest);
      this.#readOn(attachment);
    });
  }

  /** Every edge: whoever calls from outside must not be thrown at, nor anything else of the program. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (!this.#isClosed) this.#owner.onThrown(error);
    }
  }

  #after(delayMs: number, then: () => void): () => void {
    return this.#clock.after(delayMs, () => this.#guard(then));
  }

  #soon(then: () => void): void {
    queueMicrotask(() => this.#guard(then));
  }

  #adopt(carrier: Carrier, is: Attachment["is"]): Attachment {
    const decoder = new FrameDecoder({
      onPiece: (stream, piece, at, isLast) => this.#onPiece(attachment, stream, piece, at, isLast),
      onFrame: (type, stream, payload) => this.#onFrame(attachment, type, stream, payload),
    });
    const attachment = new Attachment(carrier, decoder, is, this.#clock.now());
    const oldest = [...this.#attachments].find((other) => other !== this.#current);
    if (oldest && this.#attachments.size >= maxCarriers) this.#drop(oldest);
    this.#attachments.add(attachment);
    carrier.onData = (chunk) => this.#guard(() => this.#read(attachment, chunk));
    carrier.onWritten = () => this.#guard(() => this.#pump());
    carrier.onClose = (reason) => this.#guard(() => this.#lost(attachment, reason));
    this.#cancelTick ??= this.#after(tickMs, () => this.#tick());
    return attachment;
  }

  #offer(attachment: Attachment): void {
    attachment.epoch = ++this.#epoch;
    attachment.offers++;
    attachment.sinceMs = this.#clock.now();
    this.#isOurEpoch = true;
    const status = this.isConfirmed ? resumeStatus.known : resumeStatus.begin;
    this.#sayHello(attachment, frame.resume, status, attachment.epoch);
    // The peer can't have anything of a session that begins: its word need not be waited for. A later carrier's must,
    // for the first may have brought that the peer has it.
    if (!this.isConfirmed && this.soFar === 0) this.#moveTo(attachment, 0);
  }

  #sayHello(attachment: Attachment, type: number, status: number, epoch: number): void {
    const sessionId = this.#sessionId;
    this.#write(attachment, encodeHello(type, { status, epoch, sessionId, processed: this.#processed }));
  }

  #consider(attachment: Attachment, { epoch, processed }: Hello): void {
    if (processed > this.#outbox.made) {
      this.#sayHello(attachment, frame.resumed, resumedStatus.impossible, epoch);
      this.#detach(attachment);
      attachment.carrier.finish();
      throw new ProtocolError("a resumption after more than was ever sent");
    }
    const yields = epoch === this.#epoch && this.#isOurEpoch && this.#role === "controlled";
    if (epoch <= this.#epoch && !yields) {
      return this.#sayHello(attachment, frame.resumed, resumedStatus.old, this.#epoch);
    }
    this.#epoch = attachment.epoch = epoch;
    this.#isOurEpoch = false;
    attachment.isConfirmed = true;
    this.#sayHello(attachment, frame.resumed, resumedStatus.accepted, epoch);
    this.#moveTo(attachment, processed);
  }

  #onResumed(attachment: Attachment, hello: Hello): void {
    if (attachment.offers === 0 || attachment.isConfirmed) {
      throw new ProtocolError("an answer to what was not asked");
    }
    switch (hello.status) {
      case resumedStatus.accepted:
        return this.#confirmed(attachment, hello);
      case resumedStatus.old:
        return this.#outranked(attachment, hello.epoch);
      case resumedStatus.unknown:
        return this.#owner.onOver("peer-restarted");
      case resumedStatus.over:
        return this.#owner.onOver("disconnected");
      default:
        throw new ProtocolError(`a refusal to resume (${hello.status})`);
    }
  }

  #confirmed(attachment: Attachment, { epoch, sessionId, processed }: Hello): void {
    if (epoch !== attachment.epoch || sessionId !== this.#sessionId) {
      throw new ProtocolError("an answer for another carrier");
    }
    this.isConfirmed = attachment.isConfirmed = true;
    if (attachment.is !== "offered") return this.#acknowledged(processed);
    // Ours came to be after the peer had offered the better one, and may have brought frames meanwhile.
    if (this.#current && this.#current.epoch > epoch) this.#setOld(attachment, 0);
    else this.#moveTo(attachment, processed);
  }

  /** The peer knows of a carrier that outranks ours. If we don't, it may never come here: ours is offered anew. */
  #outranked(attachment: Attachment, epoch: number): void {
    const isSettled = this.#current !== undefined && this.#current.epoch >= epoch;
    if (isSettled || attachment.is !== "offered" || attachment.offers === maxOffers) {
      return this.#lost(attachment, "another carrier is in use");
    }
    this.#epoch = Math.max(this.#epoch, epoch);
    this.#offer(attachment);
  }

  /** From now on frames are sent on that one. */
  #moveTo(attachment: Attachment, processed: number): void {
    const old = this.#current;
    const gapMs = this.#gapMs();
    this.#acknowledged(processed);
    // `start` names our own count, for an acknowledgement on an old carrier may have overtaken `resume`.
    if (!old || this.#looksDead(old)) this.#outbox.rewind();
    if (old) this.#setOld(old, this.#outbox.next);
    const isFirst = this.soFar === 0;
    if (attachment.is !== "old") this.soFar++;
    this.#current = attachment;
    this.#gapSinceMs = undefined;
    attachment.is = "current";
    attachment.mustStart = true;
    // Those sent on an old carrier may be lost with it.
    this.#mustAck = this.#processed > 0;
    this.#ping(attachment);
    this.#retireOld();
    if (!isFirst) this.#owner.onEvent({ is: "moved", carrier: attachment.carrier, gapMs });
    this.#pump();
  }

  #setOld(attachment: Attachment, putUntil: number): void {
    attachment.is = "old";
    attachment.sinceMs = this.#clock.now();
    attachment.putUntil = putUntil;
  }

  /** Old ones go when the newer one brings frames, and all that was put on them has arrived. */
  #retireOld(): void {
    if (this.#attachments.size < 2 || this.#current?.reading !== "in-sequence") return;
    for (const attachment of this.#attachments) {
      if (attachment.is === "old" && this.#outbox.acknowledged >= attachment.putUntil) this.#drop(attachment);
    }
  }

  #drop(attachment: Attachment): void {
    this.#detach(attachment);
    attachment.carrier.destroy();
  }

  #detach(attachment: Attachment): void {
    const { carrier, decoder } = attachment;
    this.#attachments.delete(attachment);
    decoder.stop();
    carrier.onData = carrier.onWritten = carrier.onClose = () => {};
  }

  #lost(attachment: Attachment, reason: string): void {
    if (!this.#attachments.has(attachment)) return;
    const sinceMs = this.#dueSince(attachment) ?? this.#clock.now();
    this.#drop(attachment);
    if (this.#current === attachment) {
      this.#current = undefined;
      this.#gapSinceMs = sinceMs;
      this.#shortenKeepalive(attachment);
      const heir = [...this.#attachments].findLast((other) => other.is === "old" && !this.#looksDead(other));
      if (heir) this.#moveTo(heir, 0);
    }
    this.#rewindWhatWaitsInVain();
    // Spare buffers are of no use until there is a carrier.
    if (this.#attachments.size === 0) this.#outbox.trim();
    if (this.#isClosed || this.#current || [...this.#attachments].some(({ is }) => is === "offered")) return;
    this.#owner.onEvent({ is: "lost", reason });
  }

  /** Says `last`, a sequenced frame, where the peer can still take it, and closes all carriers. */
  close(last: Buffer | undefined): void {
    this.#isClosed = true;
    this.#cancelRest?.();
    this.#cancelTick?.();
    this.#cancelAck?.();
    const current = this.#current;
    this.#current = undefined;
    if (current) {
      try {
        for (const owed of this.#takeOwed(current, true)) this.#write(current, owed);
        if (last && this.#outbox.next === this.#outbox.made) this.#write(current, last);
      } catch {
        // It may be what threw, and ends us.
      }
      this.#detach(current);
      current.carrier.finish();
    }
    for (const attachment of this.#attachments) this.#drop(attachment);
  }

  // --- life ----------------------------------------------------------------------------------------------

  #tick(): void {
    this.#cancelTick = undefined;
    for (const attachment of [...this.#attachments]) this.#review(attachment);
    if (this.#outbox.keptBytes === 0) this.#outbox.trim();
    if (this.#isClosed || this.#attachments.size === 0) return;
    this.#cancelTick ??= this.#after(tickMs, () => this.#tick());
  }

  #review(attachment: Attachment): void {
    const now = this.#clock.now();
    const ageMs = now - attachment.sinceMs;
    if (attachment.reading === "held" && now - attachment.heldAtMs >= holdMs) this.#rewind(attachment);
    switch (attachment.is) {
      case "offered":
        if (ageMs >= offerTimeoutMs) this.#lost(attachment, "the peer did not answer on it");
        return;
      case "refused":
      case "old":
        if (ageMs >= oldMs) this.#drop(attachment);
        return;
      case "current":
        return this.#reviewLife(attachment, now);
    }
  }

  #reviewLife(attachment: Attachment, now: number): void {
    const dueSinceMs = this.#dueSince(attachment);
    if (dueSinceMs === undefined) {
      if (now - attachment.heardAtMs >= this.#keepaliveMs) this.#ping(attachment);
      return;
    }
    const quietMs = now - dueSinceMs;
    if (quietMs >= givenUpAfter * this.#patienceMs) {
      return this.#lost(attachment, `the peer has not been heard for ${Math.round(quietMs / 1000)} s`);
    }
    const isSought = [...this.#attachments].some(({ is }) => is === "offered");
    if (quietMs < this.#patienceMs || isSought || now - attachment.toldDeadAtMs < this.#patienceMs) return;
    attachment.toldDeadAtMs = now;
    this.#shortenKeepalive(attachment);
    this.#owner.onEvent({ is: "looks-dead", quietMs });
  }

  /** Silent for a while, then dead: a NAT on the way has forgotten it, and shall not forget the next one. */
  #shortenKeepalive({ askedAtMs, heardAtMs }: Attachment): void {
    const [idleMs, { least }] = [askedAtMs - heardAtMs, keepaliveMs];
    if (idleMs >= least) this.#keepaliveMs = Math.max(least, Math.min(this.#keepaliveMs, idleMs / 2));
  }

  get #patienceMs(): number {
    return Math.max(patience.leastMs, patience.roundTrips * (this.roundTripMs ?? 0));
  }

  /** Since when an answer has been due; undefined when none is, or we do not listen. */
  #dueSince(attachment: Attachment): number | undefined {
    const isDue = attachment.ping !== undefined || this.#outbox.acknowledged < this.#outbox.made;
    if (!isDue || attachment.reading === "held" || this.#cancelRest) return undefined;
    return Math.max(attachment.heardAtMs, attachment.askedAtMs);
  }

  #looksDead(attachment: Attachment): boolean {
    const dueSinceMs = this.#dueSince(attachment);
    return dueSinceMs !== undefined && this.#clock.now() - dueSinceMs >= this.#patienceMs;
  }

  #gapMs(): number {
    const now = this.#clock.now();
    if (this.#gapSinceMs !== undefined) return now - this.#gapSinceMs;
    const current = this.#current;
    return current && this.#looksDead(current) ? now - this.#dueSince(current)! : 0;
  }

  /** Measures the round trip, unless that is under way. */
  ping(): void {
    if (this.#current) this.#ping(this.#current);
  }

  #ping(attachment: Attachment): void {
    if (attachment.ping || attachment.mustPing) return;
    attachment.mustPing = true;
    this.pumpSoon();
  }

  // --- receiving -----------------------------------------------------------------------------------------

  #read(attachment: Attachment, chunk: Buffer): void {
    this.bytesIn += chunk.length;
    attachment.heardAtMs = this.#clock.now();
    attachment.rest.push(chunk);
    this.#readRest(attachment);
    // What is read later, in case of a rest or a hold, must not change with the chunk.
    const { rest } = attachment;
    for (let i = 0; i < rest.length; i++)
      if (rest[i]!.buffer === chunk.buffer) rest[i] = Buffer.from(rest[i]!);
    // Nothing newer has come of it: whichever speaks first goes on.
    if (!this.#current && attachment.is === "old" && this.#attachments.has(attachment)) {
      this.#moveTo(attachment, 0);
    }
  }

  #readRest(attachment: Attachment): void {
    while (attachment.reading !== "held" && !this.#cancelRest && this.#attachments.has(attachment)) {
      const chunk = attachment.rest.shift();
      if (!chunk) break;
      const rest = attachment.decoder.push(chunk);
      if (rest) attachment.rest.unshift(rest);
    }
    if (attachment.reading === "held") this.#rewindWhatWaitsInVain();
  }

  /** Whether a sequenced frame on this carrier counts: not while its `start` is awaited. */
  #isInSequence({ reading, is }: Attachment): boolean {
    if (is === "offered") throw new ProtocolError("frames before it agreed to resume");
    if (reading === "unstarted" && is !== "refused") throw new ProtocolError("frames before `start`");
    return reading === "in-sequence" && is !== "refused";
  }

  #onPiece(attachment: Attachment, stream: number, piece: Buffer, at: number, isLast: boolean): void {
    if (!this.#isInSequence(attachment)) return;
    const end = at + piece.length;
    if (attachment.position === this.#processed && end > this.#partial) {
      const fresh = at < this.#partial ? piece.subarray(this.#partial - at) : piece;
      this.#partial = end;
      this.#unackedBytes += fresh.length;
      if (this.#attachments.size > 1) this.#releaseHeld();
      this.#owner.onPiece(stream, fresh);
    }
    if (isLast && end < smallFrameBytes) this.spend(1);
    if (isLast) this.#frameRead(attachment);
  }

  #onFrame(attachment: Attachment, type: number, stream: number, payload: Buffer): void {
    if (!isSequenced(type)) return this.#onUnsequenced(attachment, type, payload);
    if (!this.#isInSequence(attachment)) return;
    this.spend(1);
    if (attachment.position === this.#processed) this.#owner.onFrame(type, stream, payload);
    this.#frameRead(attachment);
  }

  #frameRead(attachment: Attachment): void {
    if (this.#isClosed || attachment.position++ < this.#processed) return;
    this.#processed++;
    this.#partial = 0;
    if (this.#unackedBytes >= ackBytes) this.ackNow();
    else this.#cancelAck ??= this.#after(ackDelayMs, () => this.ackNow());
    if (this.#attachments.size > 1) this.#releaseHeld();
  }

  /** What was read has cost as much as so many frames. */
  spend(frames: number): void {
    if (this.#turnFrames === 0) setImmediate(() => (this.#turnFrames = 0));
    this.#turnFrames += frames;
    if (this.#turnFrames >= turnFrames) this.rest(0);
  }

  /** Nothing is read for so long, and at least until others of the program have had their turn. */
  rest(forMs: number): void {
    if (this.#isClosed) return;
    if (this.#cancelRest && forMs === 0) return;
    this.#cancelRest?.();
    for (const { carrier, decoder } of this.#attachments) {
      decoder.stop();
      carrier.pause();
    }
    const goOn = () => this.#guard(() => this.#goOn());
    if (forMs > 0) this.#cancelRest = this.#clock.after(Math.min(forMs, maxRestMs), goOn);
    else {
      const immediate = setImmediate(goOn);
      this.#cancelRest = () => clearImmediate(immediate);
    }
  }

  #goOn(): void {
    this.#cancelRest = undefined;
    this.#turnFrames = 0;
    for (const attachment of [...this.#attachments]) {
      if (attachment.reading === "held") continue;
      attachment.heardAtMs = this.#clock.now();
      this.#readOn(attachment);
    }
  }

  /**
   * First what waits here: a carrier that is resumed and paused again in the same turn would go on to read, and keep all
   * that comes (a TLSSocket of Bun 1.4.5).
   */
  #readOn(attachment: Attachment): void {
    this.#readRest(attachment);
    const isRead = this.#attachments.has(attachment) && attachment.reading !== "held";
    if (isRead && !this.#cancelRest) attachment.carrier.resume();
  }

  /** Tells the peer how far we are, with the next write. */
  ackNow(): void {
    this.#cancelAck?.();
    this.#cancelAck = undefined;
    if (this.#processed === this.#ackSent) return;
    this.#mustAck = true;
    this.pumpSoon();
  }

  #onUnsequenced(attachment: Attachment, type: number, payload: Buffer): void {
    if (type === frame.resumed) return this.#onResumed(attachment, decodeHello(payload));
    if (type === frame.resume) return this.#onOfferedAnew(attachment, decodeHello(payload));
    if (attachment.is === "offered") throw new ProtocolError("frames before it agreed to resume");
    if (attachment.is === "refused") return; // sent before the peer knew
    switch (type) {
      case frame.ack:
        return this.#acknowledged(decodeCount(payload));
      case frame.start:
        return this.#onStart(attachment, decodeCount(payload));
      case frame.rewind:
        return this.#onRewind(attachment, decodeCount(payload));
      case frame.ping:
        // The latest is answered, once a write has room for it: a flood of them queues nothing.
        attachment.pong = Buffer.from(payload);
        return this.pumpSoon();
      case frame.pong:
        return this.#onPong(attachment, decodeCount(payload));
    }
  }

  #onOfferedAnew(attachment: Attachment, hello: Hello): void {
    if (attachment.is !== "refused" || hello.sessionId !== this.#sessionId) {
      throw new ProtocolError("`resume` on a carrier in use");
    }
    this.#consider(attachment, hello);
  }

  #onPong(attachment: Attachment, number: number): void {
    if (attachment.ping?.number !== number) return;
    this.roundTripMs = this.#clock.now() - attachment.ping.sentAtMs;
    attachment.ping = undefined;
  }

  #acknowledged(count: number): void {
    const { next, acknowledged } = this.#outbox;
    this.#outbox.acknowledge(count);
    if (this.#outbox.acknowledged === acknowledged) return;
    // An old carrier delivered what this one was about to repeat, and the peer counts what comes on this one.
    if (this.#outbox.next !== next && this.#current) this.#current.mustStart = true;
    this.#retireOld();
    this.#owner.onAcknowledged();
    this.pumpSoon();
  }

  #onStart(attachment: Attachment, position: number): void {
    const mustWait = position > this.#processed;
    if (mustWait && attachment.reading !== "unstarted")
      throw new ProtocolError("a `start` after what never came");
    attachment.position = position;
    attachment.reading = mustWait ? "held" : "in-sequence";
    if (!mustWait) return this.#retireOld();
    attachment.heldAtMs = this.#clock.now();
    attachment.decoder.stop();
    attachment.carrier.pause();
  }

  #releaseHeld(): void {
    for (const attachment of this.#attachments) {
      if (attachment.reading !== "held") continue;
      attachment.heldAtMs = this.#clock.now();
      // Not from within the reading of another one.
      if (attachment.position <= this.#processed) this.#soon(() => this.#release(attachment, "in-sequence"));
    }
  }

  #release(attachment: Attachment, reading: "in-sequence" | "discarding"): void {
    if (attachment.reading !== "held" || !this.#attachments.has(attachment)) return;
    attachment.reading = reading;
    attachment.heardAtMs = this.#clock.now();
    this.#retireOld();
    if (!this.#cancelRest) this.#readOn(attachment); // else it is read when that is over
  }

  /** A held carrier waits for an older one; without any it would wait for ever. */
  #rewindWhatWaitsInVain(): void {
    for (const held of [...this.#attachments]) {
      const brings = ({ epoch, is, reading }: Attachment) =>
        epoch < held.epoch && (is === "current" || is === "old") && reading !== "discarding";
      if (held.reading === "held" && ![...this.#attachments].some(brings)) this.#rewind(held);
    }
  }

  #rewind(attachment: Attachment): void {
    if (attachment.position <= this.#processed) return this.#release(attachment, "in-sequence");
    this.#write(attachment, encodeCount(frame.rewind, this.#processed));
    this.#release(attachment, "discarding");
  }

  #onRewind(attachment: Attachment, count: number): void {
    const { firstStart, hasRewound } = attachment;
    if (firstStart === undefined || count >= firstStart || hasRewound)
      throw new ProtocolError("a needless `rewind`");
    attachment.hasRewound = true;
    this.#acknowledged(count);
    if (attachment !== this.#current) return; // it will hear of the newer one
    this.#outbox.rewind();
    attachment.mustStart = true;
    this.#pump();
  }

  // --- sending -------------------------------------------------------------------------------------------

  /** What is to be sent in this turn of the event loop goes out together. */
  pumpSoon(): void {
    if (this.#willPump) return;
    this.#willPump = true;
    this.#soon(() => {
      this.#willPump = false;
      this.#pump();
    });
  }

  #pump(): void {
    let current = this.#current;
    while (current && !this.#isYielding && current.carrier.queuedBytes === 0) {
      if (this.#turnBytes >= turnBytes) return this.#yield();
      const written = this.#writeNext(current);
      this.#turnBytes = written === 0 ? 0 : this.#turnBytes + written;
      if (written === 0) return;
      current = this.#current;
    }
  }

  #yield(): void {
    this.#isYielding = true;
    setImmediate(() => {
      this.#isYielding = false;
      this.#turnBytes = 0;
      this.#guard(() => this.#pump());
    });
  }

  /** Returns how much it was. */
  #writeNext(current: Attachment): number {
    const isBehind = this.#outbox.next < this.#outbox.made;
    const hasFrames = isBehind || this.#owner.hasFrames;
    const owed = this.#takeOwed(current, hasFrames);
    if (!hasFrames) return owed.length > 0 ? this.#write(current, Buffer.concat(owed)) : 0;
    if (!isBehind) return this.#assemble(current, owed);
    const owedBytes = owed.length > 0 ? this.#write(current, Buffer.concat(owed)) : 0;
    return owedBytes + this.#write(current, this.#outbox.resend()!);
  }

  #assemble(current: Attachment, owed: Buffer[]): number {
    const room = this.#outbox.reserve(Math.min(blockBytes, current.carrier.batchBytes));
    const batch: Batch = { room, at: 0, frames: 0 };
    for (const bytes of owed) batch.at += bytes.copy(room, batch.at);
    const owedBytes = batch.at;
    this.#owner.fill(batch);
    if (this.#isClosed) return 0;
    if (batch.frames === 0) return owed.length > 0 ? this.#write(current, Buffer.concat(owed)) : 0;
    if (this.#outbox.acknowledged === this.#outbox.made) current.askedAtMs = this.#clock.now();
    this.#outbox.commit(room, owedBytes, batch.at, batch.frames);
    return this.#write(current, room.subarray(0, batch.at));
  }

  /** The unsequenced frames that are due. With anything else, an acknowledgement costs next to nothing. */
  #takeOwed(current: Attachment, isWriting: boolean): Buffer[] {
    const owed: Buffer[] = [];
    if (current.mustStart) {
      current.mustStart = false;
      current.firstStart ??= this.#outbox.next;
      owed.push(encodeCount(frame.start, this.#outbox.next));
    }
    if (this.#mustAck || (isWriting && this.#processed > this.#ackSent)) owed.push(this.#takeAck());
    if (current.pong) owed.push(encodeFrame(frame.pong, current.pong));
    current.pong = undefined;
    if (current.mustPing) owed.push(this.#takePing(current));
    return owed;
  }

  #takeAck(): Buffer {
    this.#mustAck = false;
    this.#ackSent = this.#processed;
    this.#unackedBytes = 0;
    this.#cancelAck?.();
    this.#cancelAck = undefined;
    return encodeCount(frame.ack, this.#processed);
  }

  #takePing(current: Attachment): Buffer {
    const nowMs = this.#clock.now();
    if (this.#dueSince(current) === undefined) current.askedAtMs = nowMs;
    current.mustPing = false;
    current.ping = { number: ++this.#pings, sentAtMs: nowMs };
    return encodeCount(frame.ping, this.#pings);
  }

  #write({ carrier }: Attachment, bytes: Buffer): number {
    this.bytesOut += bytes.length;
    carrier.write(bytes);
    return bytes.length;
  }
}
