/**
 * One connection of a client, and who it is once it has registered. A session owns its socket, its life, its output and its
 * pings. It decides nothing about rooms, introductions and relays. For introducer.ts and native/introducer/.
 *
 *   new ⇄ entering → member → silenced → closing → gone
 *
 * Any of them may go to a later one at once. One end of a relayed link stays new: it never registers.
 */
import type { Socket } from "bun";
import { stamps } from "../shares/clock.ts";
import { type Bucket, sourceOf, WaitRefusal } from "../shares/budget.ts";
import { type Due, notScheduled, type Wheel } from "./wheel.ts";
import type { RelayEnd } from "./relayed.ts";
import {
  encode,
  type Endpoint,
  type LineDecoder,
  type Peer,
  type Prediction,
  Refusal,
  type RefusalCode,
  type Route,
  splitEndpoint,
  type Takes,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import type { Guard, Served } from "./guard.ts";
import type { Limits } from "./limits.ts";
import type { Metrics } from "./metrics.ts";
import { type Outbox, Output, type Writer } from "./output.ts";

/** Of a token's 32 hex digits. */
const tokenBytes = 16;
/** How long a closed session may take to read its last line; closing at once would send a RST that eats it. */
export const closeGraceMs = 1500;
/** So many round trips are measured at once after registering. The shortest counts. */
const firstPings = 3;
/** How long answers may take after this process had no processor, and so neither asked nor listened. */
const answerMs = 2_000;

/** Refusals for mistakes of the sender. For the others it can't help: something has changed meanwhile. */
const badLineCodes: ReadonlySet<RefusalCode> = new Set<RefusalCode>([
  "bad-line",
  "unknown-type",
  "bad-field",
  "already-registered",
]);

export type MessageOf<T extends ToIntroducer["type"]> = Extract<ToIntroducer, { type: T }>;

/** It may register again on the same connection, with what it is told. */
export class RegisterAgain extends Refusal {
  readonly told: { name: string } | { challenge: string };
  constructor(code: RefusalCode, message: string, told: RegisterAgain["told"]) {
    super(code, message);
    this.told = told;
  }
}

/** What a participant says of a link. The peer may have come back with another id since it was last told. */
export interface Link {
  route: Route;
  /** Undefined for one that it said when it registered. That counts only if the other says so, too. */
  id: number | undefined;
}

/** Bun 1.4.5 has a socket's descriptor, of which bun-types don't know. */
export type ClientSocket = Socket<Session | undefined> & { fd: number };

/** What a session needs of the introducer. */
export interface SessionOwner {
  readonly limits: Limits;
  readonly guard: Guard;
  readonly outbox: Outbox;
  readonly wheel: Wheel;
  readonly metrics: Metrics;
  /** It is over: nothing more is read of it, and it is in no room any more. */
  leave(session: Session, reason: string): void;
  /** How long the way to it takes, there and back, has changed. */
  measured(member: Member, roundTripMs: number): void;
}

type Life =
  /** It may have registered, or be one end of a relayed link, until then. */
  | { is: "new"; untilMs: number }
  /** It waits to be registered, until it is known where its room is. */
  | { is: "entering"; untilMs: number }
  | { is: "member" }
  /** Its last line has been written: it hears nothing more, and is closed soon. */
  | { is: "silenced" }
  /** It has been closed by us, and its socket may take until then to be closed by the client. */
  | { is: "closing"; untilMs: number }
  /** Its socket is closed. */
  | { is: "gone" };

/** What has been read of a session, and may be read: native/introducer/turns.ts alone writes here. */
export interface Input {
  readonly lines: Bucket;
  /** Of a line that is not whole. */
  decoder: LineDecoder | undefined;
  /** Read, but more than it may say now: while there is any, its socket is paused. */
  held: Uint8Array | undefined;
  /** Of both. */
  heldBytes: number;
  /** How many TCP segments had come when that was last looked at. */
  segments: number;
  hasEnded: boolean;
}

/** One connection. Small on purpose: what an idle participant doesn't need is made when needed. */
export class Session implements Served, Writer, Due {
  readonly socket: ClientSocket;
  /** Kept from `open`: a closed socket has no remote address. */
  readonly observed: Endpoint;
  /** Who shares its shares: {@link sourceOf} of its address. */
  readonly source: string;
  readonly input: Input;
  /** Who it is, from its registration on, also when it has left. */
  member: Member | undefined = undefined;
  /** Set if it is one end of a relayed link, and no control connection. */
  relayed: RelayEnd<Session> | undefined = undefined;
  /** When it is looked at next: native/introducer/wheel.ts. */
  slot = notScheduled;
  heardAt: number;
  readonly #owner: SessionOwner;
  readonly #output: Output;
  #life: Life;
  #badLines = 0;

  constructor(socket: ClientSocket, observed: Endpoint, owner: SessionOwner, now: number) {
    this.socket = socket;
    this.observed = observed;
    this.source = sourceOf(splitEndpoint(observed).address);
    const { messageBurst, registerDeadlineMs } = owner.limits;
    const lines = { tokens: messageBurst, at: now };
    this.input = {
      lines,
      decoder: undefined,
      held: undefined,
      heldBytes: 0,
      segments: 0,
      hasEnded: false,
    };
    this.heardAt = now;
    this.#owner = owner;
    this.#output = new Output(this, owner.outbox);
    this.#life = { is: "new", untilMs: now + registerDeadlineMs };
    owner.wheel.put(this, now + registerDeadlineMs);
  }

  /** Alone writes its life. What is gone stays gone. */
  #become(life: Life): void {
    if (this.#life.is === "gone") return;
    this.#life = life;
    if (life.is === "closing") this.#owner.wheel.put(this, life.untilMs);
  }

  /** Whether it is told nothing more, and what it says counts no more. */
  get isOver(): boolean {
    const { is } = this.#life;
    return is === "silenced" || is === "closing" || is === "gone";
  }

  get isGone(): boolean {
    return this.#life.is === "gone";
  }

  get isEntering(): boolean {
    return this.#life.is === "entering";
  }

  /** It waits to be registered. */
  enter(): void {
    if (this.#life.is === "new") this.#become({ ...this.#life, is: "entering" });
  }

  /** It waits no longer; returns whether it still may be registered. */
  entered(): boolean {
    if (this.#life.is !== "entering") return false;
    this.#become({ ...this.#life, is: "new" });
    return true;
  }

  /** It has registered. */
  join(peer: Peer, room: string, takes: Takes, roundTripMs?: number): Member {
    const member = new Member(this, peer, room, takes, roundTripMs);
    this.member = member;
    this.#become({ is: "member" });
    return member;
  }

  send(message: ToParticipant): void {
    this.write(encode(message));
  }

  /** What is written within one tick goes in one system call. */
  write(lines: string): void {
    if (!this.isOver) this.#output.write(lines);
  }

  flush(): void {
    this.#output.flush();
  }

  /** The kernel takes more again. */
  sendRest(): void {
    if (this.#output.sendRest() && this.#life.is === "closing") this.socket.shutdown();
  }

  get hasUnsent(): boolean {
    return this.#output.hasUnsent;
  }

  refuse(refusal: Refusal, of: { request?: string; peer?: number } = {}): void {
    if (this.isOver) return;
    const { code, fatal } = refusal;
    const { badLines } = this.#owner.limits;
    if (badLineCodes.has(code)) this.#badLines += 1;
    const isWorn = this.#badLines >= badLines;
    const message = isWorn ? `${refusal.message}; ${badLines} lines like that are enough` : refusal.message;
    const again = refusal instanceof RegisterAgain ? refusal.told : undefined;
    const retry = refusal instanceof WaitRefusal ? { retryInMs: refusal.retryInMs } : {};
    this.send({ type: "refused", code, message, ...of, ...again, ...retry });
    this.#owner.metrics.refused(code);
    const id = this.member?.peer.id;
    const own = { ...(id !== undefined && { id }), address: this.observed };
    this.#owner.guard.emit({ event: "refused", ...own, code, message });
    if (isWorn || fatal || (!this.member && !again)) this.close(`refused: ${message}`);
  }

  /** Tells it the last that it hears: nothing of all others who leave before it is closed. */
  silence(message: ToParticipant): void {
    this.#output.end(encode(message));
    this.#become({ is: "silenced" });
  }

  /** Ends it after its last line has been sent. */
  close(reason: string): void {
    this.#output.flush();
    this.#become({ is: "closing", untilMs: performance.now() + closeGraceMs });
    this.#owner.leave(this, reason);
    if (!this.#output.hasUnsent) this.socket.shutdown();
  }

  /** Its last words, and why it is closed. */
  dismiss(reason: string, retryInMs?: number): void {
    this.silence({ type: "bye", reason, ...(retryInMs !== undefined && { retryInMs }) });
    this.close(reason);
  }

  overflowed(): void {
    this.#become({ is: "silenced" });
    // Later, because whoever writes may be walking through the room.
    const drop = () => {
      this.#become({ is: "closing", untilMs: performance.now() });
      this.#owner.leave(this, "it reads too slowly");
      this.socket.terminate();
    };
    queueMicrotask(() => this.#owner.guard.serve(this, drop));
  }

  /** Something was thrown while it was served: our mistake ends it. */
  fail(): void {
    if (this.isGone) return;
    if (this.isOver || this.relayed) return void this.socket.terminate();
    this.#owner.guard.serve(undefined, () => this.dismiss("an error in the introducer"));
    if (!this.isOver) this.socket.terminate();
  }

  /** Its socket is closed; returns whether that is new. */
  end(): boolean {
    if (this.isGone) return false;
    this.#become({ is: "gone" });
    this.#output.forget();
    return true;
  }

  due(now: number): void {
    if (this.isGone) return; // meanwhile
    this.#owner.guard.serve(this, () => this.#tick(now));
    if (!this.isGone) this.#owner.wheel.put(this, this.#dueAt);
  }

  #tick(now: number): void {
    const { registerDeadlineMs: deadline } = this.#owner.limits;
    const life = this.#life;
    if (life.is === "member") this.member!.tick(now, this.#owner);
    else if (!("untilMs" in life) || now < life.untilMs) return;
    else if (life.is === "closing") this.socket.terminate();
    else if (!this.relayed)
      this.refuse(new Refusal("not-registered", `register within ${deadline / 1000} s of connecting`, true));
  }

  /** When there is something to do for it, at the latest. */
  get #dueAt(): number {
    const life = this.#life;
    if (life.is === "member") return this.member!.dueAt(this.#owner);
    if (!("untilMs" in life) || (this.relayed && life.is !== "closing")) return Infinity;
    return life.untilMs;
  }

  /** Begins to measure how long the way to it takes. */
  ping(): void {
    this.member?.ping(performance.now(), this.#owner);
  }

  /** Answers our ping. */
  pong(id: number): void {
    const roundTripMs = this.member?.pong(id, this.#owner);
    if (roundTripMs !== undefined) this.#owner.measured(this.member!, roundTripMs);
  }
}

/** Somebody who has registered: what is known of it, and what it has asked for. */
export class Member {
  readonly session: Session;
  peer: Peer;
  readonly room: string;
  readonly takes: Takes;
  /** {@link peer} as JSON, made when first needed: a room's snapshot is made of them. */
  json = "";
  introductions: Bucket | undefined = undefined;
  /** By the peer's public instance, which stays when its id changes. */
  links: Map<string, Link> | undefined = undefined;
  /** Once its `mapping` has come: where its NAT stood when it was last measured, if the NAT counts ports. */
  measured: { position: Prediction | undefined } | undefined = undefined;
  /** What `verify` has to repeat, and `probe`. */
  readonly tokens: { verify?: string; probe?: string } = {};
  /** When it registered, by performance.now(). */
  readonly #joinedMs = performance.now();
  #ping: { id: number; sentAt: number; answeredId: number; roundTripMs: number | undefined } = {
    id: 0,
    sentAt: 0,
    answeredId: 0,
    roundTripMs: undefined,
  };

  /** `roundTripMs`: as the handshake has shown it. */
  constructor(session: Session, peer: Peer, room: string, takes: Takes, roundTripMs?: number) {
    this.#ping.roundTripMs = roundTripMs;
    this.session = session;
    this.peer = peer;
    this.room = room;
    this.takes = takes;
  }

  get observed(): Endpoint {
    return this.session.observed;
  }
  get source(): string {
    return this.session.source;
  }
  /** When it registered, by the clock as it is now. */
  get since(): number {
    return Math.round(stamps.of(this.#joinedMs));
  }
  get roundTripMs(): number | undefined {
    return this.#ping.roundTripMs;
  }

  tick(now: number, owner: SessionOwner): void {
    const { silenceMs, pingMs } = owner.limits;
    if (now >= this.#silentAt(owner))
      this.session.dismiss(`nothing was heard from it for ${silenceMs / 1000} s`);
    else if (now - this.#ping.sentAt >= pingMs) this.ping(now, owner);
  }

  dueAt(owner: SessionOwner): number {
    return Math.min(this.#silentAt(owner), this.#ping.sentAt + owner.limits.pingMs);
  }

  /** When it has said nothing for too long. Who has not listened itself asks first. */
  #silentAt({ limits, wheel }: SessionOwner): number {
    return Math.max(this.session.heardAt + limits.silenceMs, wheel.backAt + answerMs);
  }

  ping(now: number, owner: SessionOwner): void {
    this.#ping.sentAt = now;
    owner.wheel.put(this.session, this.dueAt(owner));
    this.session.send({ type: "ping", id: ++this.#ping.id });
  }

  /** Takes the answer to a ping; returns the round trip, in whole ms, if that has changed. */
  pong(id: number, owner: SessionOwner): number | undefined {
    const ping = this.#ping;
    if (id !== ping.id || ping.answeredId >= ping.id) return undefined;
    const now = performance.now();
    ping.answeredId = ping.id;
    ping.roundTripMs = Math.min(now - ping.sentAt, ping.roundTripMs ?? Infinity);
    if (ping.id < firstPings) return void this.ping(now, owner);
    const roundTripMs = Math.round(ping.roundTripMs);
    return this.peer.roundTripMs === roundTripMs ? undefined : roundTripMs;
  }
}

/** For many tokens at once: thousands a second are made. */
const randomBytes = Buffer.alloc(256 * tokenBytes);
let randomAt = randomBytes.length;

export function newToken(): string {
  if (randomAt === randomBytes.length) {
    crypto.getRandomValues(randomBytes);
    randomAt = 0;
  }
  return randomBytes.toString("hex", randomAt, (randomAt += tokenBytes));
}
