/**
 * The participant: registers with an introducer, learns who is in the room, and punches direct TCP connections
 * to the others (native/). Owns the control channel, what is known of each peer, the prompt and the list.
 * Never touches a descriptor after it was handed on, and never imports the introducer.
 *
 * RFC 5128 §3.4 (TCP hole punching), RFC 8445 (candidates, roles, nomination).
 */
import { lookup } from "node:dns/promises";
import { hostname, networkInterfaces, userInfo } from "node:os";
import * as readline from "node:readline";
import { parseArgs } from "node:util";
import type { Socket as BunSocket } from "bun";
import Table from "cli-table3";
import pc from "picocolors";
import { IdentityError, loadIdentity, type Identity } from "./native/identity.ts";
import { requirePlatform, SystemError } from "./native/libc.ts";
import { Credentials, LinkError, type EndedBy, type Link } from "./native/link.ts";
import { PunchPort, type Attempt, type Candidate, type Punch } from "./native/punch.ts";
import { connectShared } from "./native/socket.ts";
import {
  addressScope,
  canonicalAddress,
  controlSilenceMs,
  defaultPort,
  defaultRoom,
  encode,
  failureReasons,
  findByIdOrName,
  formatEndpoint,
  LineDecoder,
  maxCandidates,
  maxTextLength,
  mayOffer,
  nameProblem,
  parseToParticipant,
  printable,
  protocolVersion,
  punchDeadlineMs,
  Refusal,
  splitEndpoint,
  type Endpoint,
  type FailureReason,
  type Peer,
  type Route,
  type ToIntroducer,
  type ToParticipant,
} from "./protocol.ts";

/** How long one address of the introducer may take to accept, and then to answer `register`. */
const connectTimeoutMs = 8_000;
const registerTimeoutMs = 8_000;
/** How long the introducer may take to answer `connect` or `echo`. */
const answerTimeoutMs = 10_000;
/** The pause before coming back to a lost introducer: doubled each time, jittered so that a room does not return as one. */
const firstRejoinMs = 500;
const maxRejoinMs = 30_000;

// --- types -----------------------------------------------------------------------------------------------

/** Everything that happens, in the shape of the `--json` lines. `peer` is an id; endpoints are text. */
export type ParticipantEvent =
  | { event: "registered"; id: number; name: string; room: string; public: Endpoint; private: Endpoint[] }
  | { event: "peers"; peers: PeerRow[] }
  | { event: "joined"; peer: number; name: string; private: Endpoint[]; public: Endpoint }
  | { event: "left"; peer: number; name: string }
  | { event: "punching"; peer: number; name: string; role: string }
  | ({ event: "attempt"; peer: number; name: string } & Attempt)
  | {
      event: "linked";
      peer: number;
      name: string;
      route: Route;
      local: Endpoint;
      remote: Endpoint;
      /** Since our `connect`, or since the introducer asked us to punch. */
      elapsedMs: number;
    }
  | { event: "failed"; peer: number; name: string; reason: FailureReason; detail: string }
  | { event: "unlinked"; peer: number; name: string; reason: string }
  | { event: "said"; peer: number; name: string; text: string }
  | { event: "sent"; peer: number; name: string; rttMs: number }
  | { event: "pong"; peer: number; name: string; rttMs: number }
  | { event: "echo"; text: string; rttMs: number }
  | { event: "notice"; text: string }
  | { event: "introducer"; state: "lost" | "left" | "unreachable"; reason: string; retryInMs?: number }
  | { event: "error"; message: string };

/** One peer as the list shows it. */
export interface PeerRow {
  id: number;
  name: string;
  state: PeerState["is"];
  /** Whether the introducer still lists it. */
  present: boolean;
  private: Endpoint[];
  public: Endpoint;
  reason?: FailureReason;
  route?: Route;
  local?: Endpoint;
  remote?: Endpoint;
  rttMs?: number;
  ageMs?: number;
  bytesIn?: number;
  bytesOut?: number;
}

/** An error for the user: what went wrong and what to do next. */
export class UserError extends Error {}

type PeerState =
  | { is: "known" }
  /** We asked the introducer, or were asked: waiting for `punch`, then punching. */
  | { is: "punching"; since: number; token?: string; punch?: Punch }
  | { is: "linked"; link: Link }
  | { is: "failed"; reason: FailureReason };

interface PeerEntry {
  peer: Peer;
  present: boolean;
  state: PeerState;
  /** Those who wait for the end of the punch under way. */
  waiting: { resolve: (link: Link) => void; reject: (error: Error) => void }[];
}

interface Registration {
  id: number;
  public: Endpoint;
  private: Endpoint[];
  port: PunchPort;
}

type ControlState =
  | { is: "away" }
  | { is: "joining" }
  | { is: "registered"; registration: Registration }
  | { is: "lost"; timer: NodeJS.Timeout };

export interface ParticipantOptions {
  host: string;
  port: number;
  name: string;
  room: string;
  identity: Identity;
  onEvent: (event: ParticipantEvent) => void;
  /** Report every attempt of a punch as an `attempt` event. */
  verbose?: boolean;
}

// --- the control channel ---------------------------------------------------------------------------------

/** The connection to the introducer: made by FFI so that its local port can be shared, then handed to Bun. */
class ControlChannel {
  readonly remote: Endpoint;
  readonly port: number;
  onMessage: (message: ToParticipant) => void = () => {};
  onClose: (reason: string) => void = () => {};
  readonly #decoder = new LineDecoder();
  readonly #silence: NodeJS.Timeout;
  #unsent = new Uint8Array(0);
  #socket: BunSocket | undefined;
  #isClosed = false;

  private constructor(remote: Endpoint, port: number) {
    this.remote = remote;
    this.port = port;
    this.#silence = setTimeout(
      () => this.close(`nothing heard from it for ${controlSilenceMs / 1000} s`),
      controlSilenceMs,
    );
  }

  /** Connects to the first address of `host` that accepts; rejects with a {@link UserError}. */
  static async open(host: string, port: number): Promise<ControlChannel> {
    const remotes = await resolve(host, port);
    const failures: string[] = [];
    for (const remote of remotes) {
      try {
        const { socket, port: localPort } = await connectShared(remote, connectTimeoutMs);
        const channel = new ControlChannel(remote, localPort);
        await channel.#adopt(socket.release());
        return channel;
      } catch (error) {
        if (!(error instanceof SystemError)) throw error;
        failures.push(`${remote}: ${connectFailures[error.code] ?? error.code}`);
      }
    }
    throw new UserError(
      `cannot reach the introducer at ${failures.join("; ")}. Is it running (\`bun run introducer ${port}\`) and is that its address?`,
    );
  }

  async #adopt(fd: number): Promise<void> {
    // Bun's types do not list `fd`, which Bun.connect takes (bun-types 1.4.5).
    const adopted = { fd } as unknown as { unix: string };
    await Bun.connect({
      ...adopted,
      socket: {
        open: (socket) => void (this.#socket = socket),
        data: (_, chunk) => this.#read(chunk),
        drain: () => this.#write(new Uint8Array(0)),
        end: () => this.close("it closed the connection"),
        close: (_, error) => this.close(error?.message ?? "it closed the connection"),
        error: (_, error) => this.close(error.message),
      },
    });
  }

  /** The address that our host uses towards the introducer. */
  get localAddress(): string | undefined {
    const address = this.#socket?.localAddress;
    return address === undefined ? undefined : canonicalAddress(address)?.address;
  }

  send(message: ToIntroducer): void {
    this.#write(new TextEncoder().encode(encode(message)));
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#silence);
    this.#socket?.end();
    this.onClose(reason);
  }

  #write(bytes: Uint8Array): void {
    if (this.#isClosed) return;
    this.#unsent = this.#unsent.length === 0 ? new Uint8Array(bytes) : Buffer.concat([this.#unsent, bytes]);
    const written = this.#socket?.write(this.#unsent) ?? 0;
    this.#unsent = this.#unsent.slice(Math.max(0, written));
  }

  #read(chunk: Uint8Array): void {
    this.#silence.refresh();
    try {
      for (const line of this.#decoder.push(chunk)) {
        if (!this.#isClosed) this.onMessage(parseToParticipant(line));
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.close(
        `it sent what is not in the protocol (${error.message}): is that an introducer of this version?`,
      );
    }
  }
}

const connectFailures: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to that network",
  ETIMEDOUT: "no answer",
};

async function resolve(host: string, port: number): Promise<Endpoint[]> {
  const literal = canonicalAddress(host);
  if (literal) return [formatEndpoint(literal.address, port)];
  try {
    const found = await lookup(host, { all: true });
    return found.map(({ address }) => formatEndpoint(address, port));
  } catch {
    throw new UserError(`there is no host called ${host}: check the spelling, or give an IP address`);
  }
}

/** Our host candidates: every address of this host with the shared port, the one in use first. */
export function hostCandidates(inUse: string | undefined, port: number, overLoopback: boolean): Endpoint[] {
  const addresses = Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .map(({ address }) => canonicalAddress(address.replace(/%.*$/, ""))?.address)
    .filter((address) => address !== undefined);
  const wanted = new Set([...(inUse === undefined ? [] : [inUse]), ...addresses]);
  const usable = [...wanted].filter((address) => {
    const scope = addressScope(address);
    return (
      scope === "private" || scope === "global" || (scope === "loopback" && overLoopback && address === inUse)
    );
  });
  return usable.slice(0, maxCandidates).map((address) => formatEndpoint(address, port));
}

// --- the participant -------------------------------------------------------------------------------------

/** One participant in one room. Every event goes to `onEvent`; every method rejects with a {@link UserError}. */
export class Participant {
  readonly options: ParticipantOptions;
  readonly #instance = crypto.getRandomValues(new Uint8Array(8)).toHex();
  readonly #credentials: Credentials;
  /** By instance and fingerprint: ids change when a participant or the introducer comes back. */
  readonly #entries = new Map<string, PeerEntry>();
  #control: ControlChannel | undefined;
  #state: ControlState = { is: "away" };
  #rejoinMs = firstRejoinMs;
  #echoes: { resolve: (text: string) => void; reject: (error: Error) => void }[] = [];
  #joining: { resolve: () => void; reject: (error: Error) => void } | undefined;
  #snapshot: Peer[] = [];
  /** Resolved, and made anew, whenever a peer is seen. */
  #arrival = Promise.withResolvers<void>();

  constructor(options: ParticipantOptions) {
    this.options = options;
    this.#credentials = new Credentials(options.identity);
  }

  get isRegistered(): boolean {
    return this.#state.is === "registered";
  }

  /** The list, in the order of the ids. */
  get rows(): PeerRow[] {
    return [...this.#entries.values()].sort((a, b) => a.peer.id - b.peer.id).map(rowOf);
  }

  /** Registers with the introducer; resolves once the room's list is there. */
  async join(): Promise<void> {
    if (this.#state.is === "registered") throw new UserError("already registered with the introducer");
    if (this.#state.is === "joining") throw new UserError("already on the way to the introducer");
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    this.#state = { is: "joining" };
    try {
      await this.#register();
    } catch (error) {
      if (this.#isJoining()) this.#state = { is: "away" };
      throw error;
    }
  }

  /** Leaves the introducer; links stay. */
  leave(): void {
    if (this.#state.is === "away")
      throw new UserError("not registered with an introducer; `join` comes back");
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    this.#lose("we left", { is: "away" });
    this.#emit({ event: "introducer", state: "left", reason: "links stay up; `join` comes back" });
  }

  /** Ends all links in order, and leaves. */
  async quit(): Promise<void> {
    for (const entry of this.#entries.values()) {
      if (entry.state.is === "punching") this.#abandon(entry, "peer-left", "we are leaving");
    }
    await Promise.all(this.#links().map(({ link }) => link.close("the peer quit")));
    if (this.#state.is === "lost") clearTimeout(this.#state.timer);
    this.#lose("we quit", { is: "away" });
  }

  /** Punches towards a peer, or joins the punch that is under way; resolves to the link. */
  connect(word: string): Promise<Link> {
    const entry = this.#find(word);
    if (entry.state.is === "linked") throw new UserError(`already linked with ${printable(entry.peer.name)}`);
    const { promise, resolve, reject } = Promise.withResolvers<Link>();
    if (entry.state.is !== "punching") {
      if (this.#state.is !== "registered")
        throw new UserError("not registered with the introducer; `join` first");
      if (!entry.present) throw new UserError(`${printable(entry.peer.name)} has left the room`);
      this.#ask(entry);
    }
    entry.waiting.push({ resolve, reject });
    return promise;
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(word: string, text: string): Promise<void> {
    const { link, peer } = this.#linked(word);
    const rttMs = await delivered(peer, link.say(text));
    this.#emit({ event: "sent", peer: peer.id, name: peer.name, rttMs });
  }

  async ping(word: string): Promise<void> {
    const { link, peer } = this.#linked(word);
    const rttMs = await delivered(peer, link.ping());
    this.#emit({ event: "pong", peer: peer.id, name: peer.name, rttMs });
  }

  async disconnect(word: string): Promise<void> {
    const { link } = this.#linked(word);
    await link.close("disconnected");
  }

  /** Measures the round trip to the introducer. */
  async echo(text: string): Promise<void> {
    if (!this.isRegistered) throw new UserError("not registered with the introducer; `join` first");
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const startedAt = performance.now();
    const timer = setTimeout(() => reject(new UserError("the introducer did not answer")), answerTimeoutMs);
    this.#echoes.push({ resolve, reject });
    this.#control?.send({ type: "echo", text });
    try {
      const answer = await promise;
      this.#emit({ event: "echo", text: answer, rttMs: performance.now() - startedAt });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Resolves once `word` names exactly one peer that is there. */
  async waitFor(word: string): Promise<void> {
    const isThere = () => {
      const found = findByIdOrName(this.#here(), word);
      return typeof found !== "string" && found.entry.present;
    };
    while (!isThere()) await this.#arrival.promise;
  }

  // --- registration --------------------------------------------------------------------------------------

  async #register(): Promise<void> {
    const { host, port, name, room, identity } = this.options;
    const control = await ControlChannel.open(host, port);
    if (!this.#isJoining()) return control.close("no longer wanted");
    this.#control = control;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timer = setTimeout(() => control.close("it did not answer `register`"), registerTimeoutMs);
    this.#joining = { resolve, reject };
    control.onMessage = (message) => this.#receive(control, message);
    control.onClose = (reason) => this.#closed(control, reason);
    const overLoopback = addressScope(splitEndpoint(control.remote).address) === "loopback";
    control.send({
      type: "register",
      version: protocolVersion,
      name,
      room,
      instance: this.#instance,
      fingerprint: identity.fingerprint,
      private: hostCandidates(control.localAddress, control.port, overLoopback),
    });
    await promise.finally(() => clearTimeout(timer));
  }

  /** Asked through a method, because it changes while we wait. */
  #isJoining(): boolean {
    return this.#state.is === "joining";
  }

  #closed(control: ControlChannel, reason: string): void {
    if (this.#control !== control) return;
    if (!this.#joining) return this.#lose(reason, undefined);
    const { reject } = this.#joining;
    this.#joining = undefined;
    this.#lose(reason, { is: "away" });
    reject(new UserError(`the introducer did not register us: ${reason}`));
  }

  /** The control channel is gone. `next` is the state to be in; undefined means: come back by ourselves. */
  #lose(reason: string, next: ControlState | undefined): void {
    const control = this.#control;
    this.#control = undefined;
    this.#joining?.reject(new UserError(reason));
    this.#joining = undefined;
    this.#state = next ?? this.#rejoinLater(reason);
    control?.close(reason);
    for (const { reject } of this.#echoes.splice(0)) reject(new UserError(`no answer: ${reason}`));
    for (const [key, entry] of this.#entries) {
      entry.present = false;
      // A punch that has its token goes on by itself; one that waits for it can't begin.
      if (entry.state.is === "punching" && !entry.state.punch) this.#failed(entry, "introducer-lost", reason);
      if (entry.state.is !== "linked" && entry.state.is !== "punching") this.#entries.delete(key);
    }
  }

  #rejoinLater(reason: string, state: "lost" | "unreachable" = "lost"): ControlState {
    const retryInMs = Math.round(this.#rejoinMs * (0.5 + Math.random()));
    this.#rejoinMs = Math.min(maxRejoinMs, this.#rejoinMs * 2);
    this.#emit({ event: "introducer", state, reason, retryInMs });
    const timer = setTimeout(() => {
      this.join().catch((error: unknown) => {
        if (!(error instanceof UserError)) throw error;
        if (this.#state.is === "away") this.#state = this.#rejoinLater(error.message, "unreachable");
      });
    }, retryInMs);
    return { is: "lost", timer };
  }

  // --- what the introducer says --------------------------------------------------------------------------

  #receive(control: ControlChannel, message: ToParticipant): void {
    if (this.#control !== control) return;
    switch (message.type) {
      case "registered":
        return this.#registered(control, message);
      case "peers":
        return this.#peers(message.peers, message.more);
      case "joined":
        return this.#joined(message.peer);
      case "updated":
        // Our own row changes too; the list is of the others.
        return void (message.peer.instance === this.#instance || this.#remember(message.peer));
      case "left":
        return this.#left(message.id);
      case "punch":
        return this.#punch(message);
      case "failed":
        return this.#peerFailed(message);
      case "notice":
        return this.#emit({ event: "notice", text: message.text });
      case "echo":
        return this.#echoes.shift()?.resolve(message.text);
      case "ping":
        return control.send({ type: "pong", id: message.id });
      case "refused":
        return this.#refused(message);
      case "bye":
        return control.close(message.reason);
    }
  }

  #registered(control: ControlChannel, message: ToParticipant & { type: "registered" }): void {
    const registration = {
      id: message.id,
      public: message.public,
      private: message.private,
      port: new PunchPort(control.port, this.#credentials),
    };
    this.#state = { is: "registered", registration };
    this.#snapshot = [];
    this.#rejoinMs = firstRejoinMs;
    const { id, name, room, private: candidates } = message;
    this.#emit({ event: "registered", id, name, room, public: message.public, private: candidates });
  }

  #peers(peers: Peer[], more: boolean): void {
    this.#snapshot.push(...peers);
    if (more) return;
    for (const peer of this.#snapshot) this.#remember(peer);
    this.#snapshot = [];
    this.#emit({ event: "peers", peers: this.rows });
    this.#joining?.resolve();
    this.#joining = undefined;
  }

  #joined(peer: Peer): void {
    const entry = this.#remember(peer);
    if (entry.peer !== peer) return;
    this.#emit({
      event: "joined",
      peer: peer.id,
      name: peer.name,
      private: peer.private,
      public: peer.public,
    });
  }

  /** Stores the newest that is known of a peer, and tells a new introducer of the link that we already have. */
  #remember(peer: Peer): PeerEntry {
    const key = `${peer.instance} ${peer.fingerprint}`;
    const entry = this.#entries.get(key) ?? { peer, present: false, state: { is: "known" }, waiting: [] };
    this.#entries.set(key, entry);
    // A session that has not timed out yet may be listed beside the one that replaced it.
    if (entry.present && peer.id < entry.peer.id) return entry;
    const isNew = !entry.present || entry.peer.id !== peer.id;
    entry.peer = peer;
    entry.present = true;
    this.#arrival.resolve();
    this.#arrival = Promise.withResolvers();
    if (isNew && entry.state.is === "linked") this.#reportLink(entry, entry.state.link);
    return entry;
  }

  #left(id: number): void {
    for (const [key, entry] of this.#entries) {
      if (entry.peer.id !== id || !entry.present) continue;
      entry.present = false;
      this.#emit({ event: "left", peer: id, name: entry.peer.name });
      if (entry.state.is === "punching") this.#abandon(entry, "peer-left", "it left the introducer");
      if (entry.state.is !== "linked") this.#entries.delete(key);
    }
  }

  #refused(message: ToParticipant & { type: "refused" }): void {
    const text = `the introducer refused${message.request ? ` \`${message.request}\`` : ""}: ${message.message}`;
    if (this.#joining) {
      const { reject } = this.#joining;
      this.#joining = undefined;
      this.#lose("refused", { is: "away" });
      return reject(new UserError(text));
    }
    if (message.request === "echo") return this.#echoes.shift()?.reject(new UserError(text));
    const entry = this.#byId(message.peer);
    if (message.request === "connect" && entry?.state.is === "punching" && !entry.state.punch) {
      this.#setState(entry, { is: "known" });
      for (const { reject } of entry.waiting.splice(0)) reject(new UserError(text));
      return;
    }
    // A peer that left while our report was on its way: there is nobody to tell.
    if (message.code !== "unknown-peer") this.#emit({ event: "error", message: text });
  }

  // --- punching ------------------------------------------------------------------------------------------

  #ask(entry: PeerEntry): void {
    const state: PeerState = { is: "punching", since: performance.now() };
    this.#setState(entry, state);
    this.#control?.send({ type: "connect", peer: entry.peer.id });
    setTimeout(() => {
      if (entry.state === state) this.#failed(entry, "timed-out", "the introducer did not answer");
    }, answerTimeoutMs);
  }

  #punch(message: ToParticipant & { type: "punch" }): void {
    if (this.#state.is !== "registered") return;
    const { registration } = this.#state;
    const entry = this.#remember(message.peer);
    const { peer, state } = entry;
    if (state.is === "punching" && state.token === message.token) return;
    // Only a peer that no longer has our link asks for another one.
    if (state.is === "linked") void state.link.close("the peer asks for a new link");
    if (state.is === "punching") state.punch?.abort("timed-out", "a newer introduction replaced this one");
    const since = state.is === "punching" && !state.punch ? state.since : performance.now();
    const candidates = candidatesOf(peer, registration);
    this.#emit({ event: "punching", peer: peer.id, name: peer.name, role: message.role });
    const punch = registration.port.punch({
      role: message.role,
      token: message.token,
      fingerprint: peer.fingerprint,
      candidates,
      startInMs: message.startInMs,
      deadlineMs: punchDeadlineMs,
      isReachable: isReachable(registration, peer),
      onLinked: (link) => this.#linkUp(entry, link, performance.now() - since),
      onFailed: (reason, detail) => this.#punchFailed(entry, message.token, reason, detail),
      onAttempt: (attempt) => {
        if (this.options.verbose)
          this.#emit({ event: "attempt", peer: peer.id, name: peer.name, ...attempt });
      },
    });
    this.#setState(entry, { is: "punching", since, token: message.token, punch });
  }

  #linkUp(entry: PeerEntry, link: Link, elapsedMs: number): void {
    this.#setState(entry, { is: "linked", link });
    const { peer } = entry;
    link.onSaid = (text) => this.#emit({ event: "said", peer: entry.peer.id, name: entry.peer.name, text });
    link.onClose = (reason, by) => this.#linkDown(entry, link, reason, by);
    const { route, local, remote } = link;
    this.#emit({ event: "linked", peer: peer.id, name: peer.name, route, local, remote, elapsedMs });
    this.#reportLink(entry, link);
    for (const { resolve } of entry.waiting.splice(0)) resolve(link);
  }

  #reportLink(entry: PeerEntry, { route, local, remote }: Link): void {
    if (entry.present) this.#control?.send({ type: "linked", peer: entry.peer.id, route, local, remote });
  }

  #linkDown(entry: PeerEntry, link: Link, reason: string, by: EndedBy): void {
    const { peer, present } = entry;
    const told =
      by === "us" ? reason : by === "peer" ? `ended by the peer: ${reason || "no reason given"}` : reason;
    this.#emit({ event: "unlinked", peer: peer.id, name: peer.name, reason: told });
    if (present) this.#control?.send({ type: "unlinked", peer: peer.id, reason: told });
    if (entry.state.is !== "linked" || entry.state.link !== link) return;
    this.#setState(entry, { is: "known" });
    if (!present) this.#forget(entry);
  }

  /** Our punch ended without a link: the introducer hears it, and tells the peer. */
  #punchFailed(entry: PeerEntry, token: string, reason: FailureReason, detail: string): void {
    if (entry.state.is !== "punching" || entry.state.token !== token) return;
    const { peer, present } = entry;
    if (present)
      this.#control?.send({ type: "failed", peer: peer.id, token, reason, detail: detail.slice(0, 1024) });
    this.#failed(entry, reason, detail);
  }

  #peerFailed(message: ToParticipant & { type: "failed" }): void {
    const entry = this.#byId(message.peer);
    if (entry?.state.is !== "punching" || entry.state.token !== message.token) return;
    this.#abandon(entry, message.reason, `the peer gave up: ${message.detail}`);
  }

  /** Ends a punch that is under way, or that is still waiting for the introducer. */
  #abandon(entry: PeerEntry, reason: FailureReason, detail: string): void {
    if (entry.state.is !== "punching") return;
    const { punch } = entry.state;
    if (punch) punch.abort(reason, detail);
    else this.#failed(entry, reason, detail);
  }

  #failed(entry: PeerEntry, reason: FailureReason, detail: string): void {
    const { peer } = entry;
    this.#setState(entry, { is: "failed", reason });
    this.#emit({ event: "failed", peer: peer.id, name: peer.name, reason, detail });
    const error = new UserError(
      `no link with ${printable(peer.name)}: ${failureReasons[reason]} (${reason})`,
    );
    for (const { reject } of entry.waiting.splice(0)) reject(error);
    if (!entry.present) this.#forget(entry);
  }

  // --- looking things up ---------------------------------------------------------------------------------

  /** The only writer of a peer's state. */
  #setState(entry: PeerEntry, state: PeerState): void {
    entry.state = state;
  }

  #forget(entry: PeerEntry): void {
    for (const [key, value] of this.#entries) if (value === entry) this.#entries.delete(key);
  }

  #byId(id: number | undefined): PeerEntry | undefined {
    return [...this.#entries.values()].find(({ peer, present }) => present && peer.id === id);
  }

  #here(): { id: number; name: string; entry: PeerEntry }[] {
    return [...this.#entries.values()].map((entry) => ({ id: entry.peer.id, name: entry.peer.name, entry }));
  }

  #find(word: string): PeerEntry {
    const found = findByIdOrName(this.#here(), word);
    if (typeof found !== "string") return found.entry;
    const own = this.#state.is === "registered" ? String(this.#state.registration.id) : undefined;
    if (word === own || word === this.options.name)
      throw new UserError("that is yourself; `list` shows the others");
    throw new UserError(found);
  }

  #linked(word: string): { link: Link; peer: Peer } {
    const { state, peer } = this.#find(word);
    if (state.is === "linked") return { link: state.link, peer };
    throw new UserError(`not linked with ${printable(peer.name)}; \`connect ${printable(word)}\` first`);
  }

  #links(): { link: Link; peer: Peer }[] {
    return [...this.#entries.values()].flatMap(({ state, peer }) =>
      state.is === "linked" ? [{ link: state.link, peer }] : [],
    );
  }

  #emit(event: ParticipantEvent): void {
    this.options.onEvent(event);
  }
}

/** A link's answer; a {@link LinkError} becomes what the user reads. */
async function delivered(peer: Peer, answer: Promise<number>): Promise<number> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    throw new UserError(`not delivered to ${printable(peer.name)}: ${error.message}`);
  }
}

/** Whether no NAT stands before us: we have the public address ourselves, or share it with the peer. */
function isReachable(own: { public: Endpoint; private: readonly Endpoint[] }, peer: Peer): boolean {
  const address = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  return own.private.includes(own.public) || address(own.public) === address(peer.public);
}

/** The candidates to punch at: what the peer's own addresses can be, and never an endpoint of ours. */
function candidatesOf(peer: Peer, { public: observed, port }: Registration): Candidate[] {
  const ours = new Set(hostCandidates(splitEndpoint(observed).address, port.port, true));
  const overLoopback = addressScope(splitEndpoint(observed).address) === "loopback";
  const isUsable = (endpoint: Endpoint) => {
    const scope = addressScope(splitEndpoint(endpoint).address);
    return !ours.has(endpoint) && scope !== "unusable" && (scope !== "loopback" || overLoopback);
  };
  const privates = peer.private.filter(
    (endpoint) => endpoint !== peer.public && mayOffer(endpoint, peer.public),
  );
  return [
    ...privates.map((endpoint) => ({ endpoint, route: "private" as const })),
    { endpoint: peer.public, route: "public" as const },
  ].filter(({ endpoint }) => isUsable(endpoint));
}

function rowOf({ peer, present, state }: PeerEntry): PeerRow {
  const row = {
    id: peer.id,
    name: peer.name,
    state: state.is,
    present,
    private: peer.private,
    public: peer.public,
  };
  if (state.is === "failed") return { ...row, reason: state.reason };
  if (state.is !== "linked") return row;
  const { route, local, remote, rttMs, openedAt, bytesIn, bytesOut } = state.link;
  const measured = rttMs === undefined ? {} : { rttMs };
  return { ...row, route, local, remote, ageMs: Date.now() - openedAt, bytesIn, bytesOut, ...measured };
}

// --- rendering -------------------------------------------------------------------------------------------

type Colors = ReturnType<typeof pc.createColors>;

const stateLabels: Record<PeerState["is"], (c: Colors) => string> = {
  linked: (c) => c.green("● linked"),
  punching: (c) => c.yellow("◌ punching"),
  known: (c) => c.dim("○ known"),
  failed: (c) => c.red("✗ failed"),
};

const borders = ["top", "top-mid", "top-left", "top-right", "bottom", "bottom-mid", "bottom-left"];
const rules = ["bottom-right", "left", "left-mid", "mid", "mid-mid", "right", "right-mid", "middle"];
const noBorders = Object.fromEntries([...borders, ...rules].map((place) => [place, ""]));

/** The list in `columns` columns, of which it needs 80: wider, endpoints are broken less often. */
export function renderList(rows: PeerRow[], columns: number, c: Colors): string {
  if (rows.length === 0)
    return "Nobody else is in the room. Others join with the same introducer and --room.";
  const spare = Math.max(0, columns - 80);
  const endpointWidth = 21 + Math.min(26, Math.floor(spare / 2)); // 21 is an IPv4 endpoint, 47 one of IPv6
  const linkWidth = 24 + Math.min(26, Math.floor(spare / 2));
  const widths = [10, 5, 14, endpointWidth, linkWidth];
  const table = new Table({
    head: ["", "id", "name", "private endpoint\npublic endpoint", "link"],
    colWidths: widths.map((width) => width + 1),
    chars: noBorders,
    style: { head: [], border: [], "padding-left": 0, "padding-right": 1 },
  });
  for (const row of rows) {
    const [first = "none", ...others] = row.private;
    const more = others.length > 0 ? [`+${others.length} more`] : [];
    const host = [first, ...more].map((line) => wrapped(line, endpointWidth)).join("\n");
    table.push([
      stateLabels[row.state](c),
      wrapped(String(row.id), 5),
      c.bold(wrapped(printable(row.name), 14)),
      `${c.dim(host)}\n${wrapped(row.public, endpointWidth)}`,
      wrapped(linkCell(row), linkWidth),
    ]);
  }
  return table.toString().replace(/ +$/gm, "");
}

function linkCell(row: PeerRow): string {
  if (row.state === "failed") return row.reason ?? "";
  if (row.state !== "linked") return "";
  const rtt = row.rttMs === undefined ? "" : ` ${ms(row.rttMs)}`;
  const lines = [
    `${row.route}${rtt} ${age(row.ageMs ?? 0)}`,
    `${row.local}`,
    `→ ${row.remote}`,
    `in ${bytes(row.bytesIn ?? 0)} out ${bytes(row.bytesOut ?? 0)}`,
    ...(row.present ? [] : ["(not in the room)"]),
  ];
  return lines.join("\n");
}

function wrapped(text: string, width: number): string {
  return Bun.wrapAnsi(text, width, { hard: true, wordWrap: false, trim: false });
}

/** `42s`, `7m`, `3h`, `2d`. */
function age(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  return seconds < 86_400 ? `${Math.floor(seconds / 3600)}h` : `${Math.floor(seconds / 86_400)}d`;
}

/** `512 B`, `1.5 kB`, `2.0 MB`. */
function bytes(count: number): string {
  if (count < 1000) return `${count} B`;
  const [value, unit] =
    count < 1e6 ? [count / 1e3, "kB"] : count < 1e9 ? [count / 1e6, "MB"] : [count / 1e9, "GB"];
  return `${value.toFixed(1)} ${unit}`;
}

const ms = (value: number) => `${value.toFixed(1)} ms`;

/** What an event says to a person; undefined for what only programs want. */
export function tell(event: ParticipantEvent, c: Colors): string | undefined {
  const who = "name" in event && "peer" in event ? `${c.bold(printable(event.name))} (${event.peer})` : "";
  switch (event.event) {
    case "registered":
      return (
        `${c.green("registered")} as ${c.bold(printable(event.name))} (${event.id}) in room ${printable(event.room)}\n` +
        `  private ${event.private.join(", ") || "none"}\n  public  ${event.public}`
      );
    case "peers":
      return tellPeers(event.peers);
    case "joined":
      return `${who} joined from ${event.public}`;
    case "left":
      return `${who} left`;
    case "punching":
      return `${c.yellow("punching")} towards ${who}, ${event.role}`;
    case "attempt":
      return c.dim(
        `  ${event.atMs.toFixed(1).padStart(8)} ms  :${event.localPort} → ${event.remote} ${event.route}: ${printable(event.outcome)}`,
      );
    case "linked":
      return `${c.green("linked")} with ${who} by ${event.route}: ${event.local} → ${event.remote}, ${ms(event.elapsedMs)}`;
    case "failed":
      return `${c.red("failed")} to link with ${who}: ${failureReasons[event.reason]} (${event.reason})\n  ${c.dim(printable(event.detail))}`;
    case "unlinked":
      return `${c.yellow("unlinked")} from ${who}: ${printable(event.reason)}`;
    case "said":
      return `${c.cyan(printable(event.name))}: ${printable(event.text)}`;
    case "sent":
      return c.dim(`${printable(event.name)} has it after ${ms(event.rttMs)}`);
    case "pong":
      return `${who} answered after ${ms(event.rttMs)}`;
    case "echo":
      return `the introducer answered after ${ms(event.rttMs)}${event.text && `: ${printable(event.text)}`}`;
    case "notice":
      return `${c.magenta("introducer")}: ${printable(event.text)}`;
    case "introducer": {
      const next =
        event.retryInMs === undefined ? "" : `; trying again in ${(event.retryInMs / 1000).toFixed(1)} s`;
      return `${c.yellow(`introducer ${event.state}`)}: ${printable(event.reason)}${next}`;
    }
    case "error":
      return `${c.red("error")}: ${printable(event.message)}`;
  }
}

function tellPeers(rows: PeerRow[]): string {
  const here = rows.filter(({ present }) => present);
  if (here.length === 0) return "Nobody else is here yet.";
  const names = here.map(({ name, id }) => `${printable(name)} (${id})`).join(", ");
  const next = here.find(({ state }) => state === "known" || state === "failed");
  return `here: ${names}${next ? `. \`connect ${printable(next.name)}\` punches a hole` : ""}`;
}

/** One JSON line, in which nothing is left that a terminal would obey. */
function jsonLine(event: ParticipantEvent): string {
  const escape = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(event).replace(/[\p{C}\u2028\u2029]/gu, (char) =>
    char.split("").map(escape).join(""),
  );
}

// --- the prompt ------------------------------------------------------------------------------------------

const commands = [
  ["s", "list", "", "who is here, and whom you are linked with"],
  ["d", "connect", "PEER ...", "punch a hole to each PEER (an id or a name)"],
  ["f", "say", "PEER TEXT", "send TEXT over the link"],
  ["", "ping", "PEER", "measure the link's round trip"],
  ["g", "disconnect", "PEER", "end the link"],
  ["h", "echo", "[TEXT]", "measure the introducer's round trip"],
  ["a", "leave", "", "leave the introducer; links stay up"],
  ["", "join", "", "come back to the introducer"],
  ["j", "quit", "", "end all links and the program"],
  ["", "help", "", "this"],
] as const;
type Command = (typeof commands)[number][1];

const commandHelp = commands
  .map(([key, word, operands, what]) => `  ${key.padEnd(2)} ${`${word} ${operands}`.padEnd(20)} ${what}`)
  .join("\n");

function readCommand(line: string): { command: Command; rest: string } {
  const [, word = "", rest = ""] = /^\s*(\S+)\s*([^]*?)\s*$/.exec(line) ?? [];
  const lower = word.toLowerCase();
  const found = commands.find(([key, name]) => lower === name || (key !== "" && lower === key));
  if (!found) throw new UserError(`there is no command ${printable(word)}; \`help\` lists them`);
  return { command: found[1], rest };
}

/** Where text goes: results on stdout, the story on stderr, both above the line being typed. */
class Terminal {
  readonly isInteractive = process.stdin.isTTY === true && process.stderr.isTTY === true;
  readonly #isJson: boolean;
  readonly #out = pc.createColors(usesColor(process.stdout));
  readonly #err = pc.createColors(usesColor(process.stderr));
  #prompt: readline.Interface | undefined;

  constructor(isJson: boolean) {
    this.#isJson = isJson;
  }

  event(event: ParticipantEvent): void {
    if (this.#isJson) this.#print(process.stdout, jsonLine(event));
    const text = tell(event, this.#err);
    if (text !== undefined) this.#print(process.stderr, text);
  }

  list(rows: PeerRow[]): void {
    if (this.#isJson) this.#print(process.stdout, jsonLine({ event: "peers", peers: rows }));
    else this.#print(process.stdout, renderList(rows, process.stdout.columns ?? 80, this.#out));
  }

  help(): void {
    this.#print(this.#isJson ? process.stderr : process.stdout, commandHelp);
  }

  /** Asks for one line; undefined when the user would rather not say. */
  async ask(question: string): Promise<string | undefined> {
    const asking = readline.createInterface({ input: process.stdin, output: process.stderr });
    const { promise, resolve } = Promise.withResolvers<string | undefined>();
    const giveUp = () => {
      process.stderr.write("\n");
      resolve(undefined);
    };
    asking.once("SIGINT", giveUp).once("close", giveUp);
    asking.question(question, resolve);
    const answer = await promise;
    asking.removeListener("close", giveUp).close();
    return answer;
  }

  /** Reads commands, which run beside each other. Resolves when the user quits. */
  async converse(onLine: (line: string) => void): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const prompt = readline.createInterface({ input: process.stdin, output: process.stderr, prompt: "> " });
    this.#prompt = prompt;
    prompt.on("line", (line) => {
      if (isQuit(line)) return resolve();
      if (line.trim() !== "") onLine(line);
      prompt.prompt();
    });
    prompt.once("SIGINT", resolve).once("close", resolve);
    prompt.prompt();
    await promise;
    this.close();
  }

  close(): void {
    this.#erasePrompt();
    const prompt = this.#prompt;
    this.#prompt = undefined;
    prompt?.close();
  }

  #print(stream: NodeJS.WriteStream, text: string): void {
    this.#erasePrompt();
    stream.write(text + "\n");
    this.#prompt?.prompt(true);
  }

  #erasePrompt(): void {
    if (!this.#prompt) return;
    readline.moveCursor(process.stderr, 0, -this.#prompt.getCursorPos().rows);
    readline.cursorTo(process.stderr, 0);
    readline.clearScreenDown(process.stderr);
    // Untyped but public in Node and Bun: where the cursor was. Left as it is, drawing the prompt anew would
    // begin that many rows higher, over the text printed meanwhile.
    (this.#prompt as { prevRows?: number }).prevRows = 0;
  }
}

function usesColor(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== "dumb";
}

async function run(line: string, participant: Participant, terminal: Terminal): Promise<void> {
  const { command, rest } = readCommand(line);
  const [, peer = "", text = ""] = /^(\S*)\s*([^]*)$/.exec(rest) ?? [];
  const needed = () => {
    if (peer === "") throw new UserError(`\`${command}\` needs a PEER: an id or a name; \`list\` shows them`);
    return peer;
  };
  switch (command) {
    case "list":
      return terminal.list(participant.rows);
    case "connect":
      needed();
      return void (await everyone(rest.split(/\s+/).map(async (word) => participant.connect(word))));
    case "say":
      if (needed() && text === "") throw new UserError("`say` needs a TEXT: say PEER TEXT");
      return participant.say(peer, bounded(text));
    case "ping":
      return participant.ping(needed());
    case "disconnect":
      return participant.disconnect(needed());
    case "echo":
      return participant.echo(bounded(rest));
    case "leave":
      return participant.leave();
    case "join":
      return participant.join();
    case "help":
      return terminal.help();
    case "quit":
      return; // the one who reads the lines ends
  }
}

/** Waits for all, then rejects with whatever failed. */
async function everyone(all: Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(all)).filter((one) => one.status === "rejected");
  const reasons: unknown[] = failed.map(({ reason }) => reason);
  const unexpected = reasons.find((reason) => !(reason instanceof UserError));
  if (unexpected !== undefined) throw unexpected;
  if (reasons.length > 0) throw new UserError(reasons.map((one) => (one as UserError).message).join("; "));
}

function bounded(text: string): string {
  if (text.length <= maxTextLength) return text;
  throw new UserError(`a text has at most ${maxTextLength} characters; this one has ${text.length}`);
}

// --- main ------------------------------------------------------------------------------------------------

const usage = `Usage: bun run participant [HOST[:PORT]] [options]

Registers with the introducer at HOST (default port ${defaultPort}; also from INTRODUCER in the
environment) and opens direct TCP connections to others in the same room.

Options:
  --name NAME     what others call you: one word (default: user@host)
  --room ROOM     who sees whom; an unguessable name is a private room (default: ${defaultRoom})
  --connect PEER  punch a hole to PEER as soon as it is there
  --stay          go on when standard input ends
  -v, --verbose   show every attempt of a punch
  --json          events as one JSON object per line on stdout; the story on stderr
  -h, --help      this

Commands, from a terminal or as lines on standard input (the letter works too):
${commandHelp}

Without a terminal the commands run one after the other, and the end of the input quits
(exit code 1 if a command failed).

Exit codes: 0 done, 1 failed, 2 wrong usage.`;

class UsageError extends Error {}

interface Arguments {
  introducer: string | undefined;
  name: string;
  room: string;
  connect: string[];
  stay: boolean;
  verbose: boolean;
  json: boolean;
}

function readArguments(args: string[]): Arguments | "help" {
  const { values, positionals } = parseCommandLine(args);
  if (values.help) return "help";
  if (positionals.length > 1) throw new UsageError(`one introducer at a time, not ${positionals.join(" ")}`);
  const name = values.name ?? defaultName();
  const problem = nameProblem(name);
  if (problem) throw new UsageError(`--name ${problem}`);
  return {
    introducer: positionals[0] ?? (process.env.INTRODUCER || undefined),
    name,
    room: values.room ?? defaultRoom,
    connect: values.connect ?? [],
    stay: values.stay ?? false,
    verbose: values.verbose ?? false,
    json: values.json ?? false,
  };
}

function parseCommandLine(args: string[]) {
  try {
    return parseArgs({
      args,
      allowPositionals: true,
      options: {
        name: { type: "string" },
        room: { type: "string" },
        connect: { type: "string", multiple: true },
        stay: { type: "boolean" },
        verbose: { type: "boolean", short: "v" },
        json: { type: "boolean" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function defaultName(): string {
  const user = process.env.USER || process.env.LOGNAME || userName() || "someone";
  return `${user}@${hostname()}`.replace(/[\s\p{C}]+/gu, "-").slice(0, 64);
}

/** Undefined for a user id without an account, as containers have. */
function userName(): string | undefined {
  try {
    return userInfo().username;
  } catch {
    return undefined;
  }
}

/** `host`, `host:port`, `1.2.3.4:port`, `2001:db8::1`, `[2001:db8::1]:port`. */
export function readHostPort(text: string): { host: string; port: number } {
  const bare = canonicalAddress(text.replace(/^\[(.*)\]$/, "$1"));
  if (bare) return { host: bare.address, port: defaultPort };
  const match = /^(?:\[([^\]]+)\]|([^\s:/[\]]+))(?::(\d{1,5}))?$/.exec(text);
  const port = Number(match?.[3] ?? defaultPort);
  if (!match || port < 1 || port > 65535) {
    throw new UsageError(`"${printable(text)}" is no introducer: give HOST or HOST:PORT, port 1 to 65535`);
  }
  return { host: match[1] ?? match[2]!, port };
}

function isQuit(line: string): boolean {
  try {
    return readCommand(line).command === "quit";
  } catch {
    return false;
  }
}

function checkPlatform(): void {
  try {
    requirePlatform();
  } catch (error) {
    throw new UserError(error instanceof Error ? error.message : String(error));
  }
}

async function main(): Promise<number> {
  const options = readArguments(process.argv.slice(2));
  if (options === "help") {
    process.stdout.write(usage + "\n");
    return 0;
  }
  checkPlatform();
  const terminal = new Terminal(options.json);
  const question = "Introducer (HOST or HOST:PORT): ";
  if (options.introducer === undefined && !terminal.isInteractive)
    throw new UsageError("which introducer? Give HOST[:PORT], or set INTRODUCER");
  const introducer = options.introducer ?? (await terminal.ask(question));
  if (introducer === undefined) return 0;
  const participant = new Participant({
    ...readHostPort(introducer),
    name: options.name,
    room: options.room,
    identity: loadIdentity(),
    verbose: options.verbose,
    onEvent: (event) => terminal.event(event),
  });
  const stopped = Promise.withResolvers<number>();
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.once(signal, () => stopped.resolve(0));
  process.stdout.on("error", () => stopped.resolve(1)); // whoever read the output is gone
  process.stderr.on("error", () => {});
  const code = await Promise.race([live(participant, terminal, options), stopped.promise]);
  terminal.close();
  await participant.quit();
  return code;
}

/** Joins, then obeys until the user or the input ends. Resolves to the exit code. */
async function live(participant: Participant, terminal: Terminal, options: Arguments): Promise<number> {
  let failures = 0;
  const attempt = async (work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      failures++;
      terminal.event({ event: "error", message: error.message });
    }
  };
  await attempt(() => participant.join());
  if (failures > 0) return 1;
  const connectTo = async (peer: string) => {
    await participant.waitFor(peer);
    await participant.connect(peer);
  };
  const connecting = Promise.all(options.connect.map((peer) => attempt(() => connectTo(peer))));
  const onLine = (line: string) => attempt(() => run(line, participant, terminal));
  if (terminal.isInteractive) {
    await terminal.converse((line) => void onLine(line));
    return 0;
  }
  await connecting;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (isQuit(line)) return failures > 0 ? 1 : 0;
    if (line.trim() !== "") await onLine(line);
  }
  if (options.stay) await new Promise<never>(() => {});
  return failures > 0 ? 1 : 0;
}

if (import.meta.main) {
  try {
    process.exitCode = await main();
  } catch (error) {
    if (![UsageError, UserError, IdentityError].some((kind) => error instanceof kind)) throw error;
    const hint = error instanceof UsageError ? "`--help` shows the usage.\n" : "";
    process.stderr.write(`error: ${printable((error as Error).message)}\n${hint}`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  }
  // process.exit() drops what a slow reader of a pipe has not taken yet.
  await new Promise<void>((resolve) => process.stdout.end(() => resolve()));
  process.exit();
}
