/**
 * The door: who may connect, and the sessions of those who have. It owns the listening socket and the
 * sessions. What they say is none of its business. For introducer.ts alone.
 */
import { defaultPort, Refusal, splitEndpoint } from "../../protocol.ts";
import { type Shares, siteShares, sourceOf } from "../shares/budget.ts";
import { byTurns } from "../shares/turns.ts";
import { isSupported, limitUnread } from "../host/libc.ts";
import { Listener } from "../host/listener.ts";
import { isNoPlace, observedEndpoint } from "./observe.ts";
import { closeGraceMs, type ClientSocket, Session, type SessionOwner } from "./session.ts";
import type { Sources } from "./sources.ts";
import type { Turns } from "./turns.ts";

/** What waits to be read of a connection: some lines. */
export const unreadBytes = 64 * 1024;
/** Connections of one source, beyond those that it may have, that are told why they are closed. */
const refusedAtOnce = 8;

/** Who serves the sessions. */
interface Owner extends SessionOwner {
  readonly sources: Sources;
  readonly turns: Turns;
  receive(session: Session, chunk: Uint8Array): void;
  drained(session: Session): void;
  /** It will send no more. */
  ended(session: Session): void;
  closed(session: Session, reason: string): void;
}

export class Door {
  readonly #owner: Owner;
  readonly #listener: Listener<Session | undefined>;
  readonly #sessions = new Set<Session>();
  readonly #shares: Shares;
  #allGone: (() => void) | undefined;

  /** Throws what `Bun.listen` throws. */
  constructor(owner: Owner, host: string | undefined, port = defaultPort) {
    this.#owner = owner;
    this.#shares = owner.sources.connections;
    this.#listener = this.#listen(host, port);
  }

  get host(): string {
    return this.#listener.hostname;
  }
  get port(): number {
    return this.#listener.port;
  }
  /** How many are connected. */
  get size(): number {
    return this.#sessions.size;
  }

  #listen(host: string | undefined, port: number): Listener<Session | undefined> {
    if (host !== undefined) return this.#listenAt(host, port);
    try {
      return this.#listenAt("::", port);
    } catch (error) {
      const { code } = error as { code?: string };
      if (code === "EADDRINUSE" || code === "EACCES") throw error;
      return this.#listenAt("0.0.0.0", port); // a kernel without IPv6
    }
  }

  #listenAt(hostname: string, port: number): Listener<Session | undefined> {
    const { guard } = this.#owner;
    const serve = ({ data: session }: { data: Session | undefined }, work: (session: Session) => void) => {
      if (session) guard.serve(session, () => work(session));
    };
    const socket = {
      open: (one: ClientSocket) => {
        guard.serve(undefined, () => this.#open(one));
        if (!one.data) one.terminate();
      },
      data: (one: ClientSocket, chunk: Uint8Array) =>
        serve(one, (session) => this.#owner.receive(session, chunk)),
      drain: (one: ClientSocket) => serve(one, (session) => this.#owner.drained(session)),
      end: (one: ClientSocket) => serve(one, (session) => this.#owner.ended(session)),
      error: (one: ClientSocket, error: Error) => guard.failed(one.data, error),
      close: (one: ClientSocket, error?: Error) => {
        if (one.data) this.#closed(one.data, error?.message ?? "it closed the connection");
      },
    } as Bun.SocketHandler<Session | undefined>;
    return new Listener({ hostname, port, allowHalfOpen: true, socket }, (message) =>
      guard.emit({ event: "warning", message }),
    );
  }

  #open(socket: ClientSocket): void {
    const observed = observedEndpoint(socket);
    if (!observed) return;
    const source = sourceOf(splitEndpoint(observed).address);
    const most = this.#shares.most(source);
    // Even a refused connection costs something until it is closed, so a flood gets no answer.
    const isFlood =
      this.#shares.isBeyond(source, refusedAtOnce) ||
      this.#sessions.size >= 1.1 * this.#owner.limits.sessions;
    if (isFlood || !this.#owner.turns.accepts(source)) return this.#owner.metrics.turnedAway();
    const session = new Session(socket, observed, this.#owner, performance.now());
    socket.data = session;
    if (isSupported()) limitUnread(socket.fd, unreadBytes);
    socket.setNoDelay(true); // a `punch` held back by Nagle's algorithm would spoil the simultaneous start
    this.#sessions.add(session);
    this.#shares.add(source);
    this.#owner.guard.serve(session, () => this.#admit(session, most));
  }

  /** `most`: as many as its source might have before it came. */
  #admit(session: Session, most: number): void {
    const { observed, source } = session;
    const { sessions, sessionsPerAddress } = this.#owner.limits;
    const now = most < sessionsPerAddress ? " while the introducer is this full" : "";
    const { address } = splitEndpoint(observed);
    const enough = `${most} connections an address (${siteShares} times that an IPv6 /48) are enough${now}: close others first`;
    const full = `the introducer is full: it takes ${sessions} connections; come back later`;
    const noPlace = `you come by ${address}, a link-local address that peers can't use: take another way to the introducer`;
    if (isNoPlace(observed)) session.refuse(new Refusal("bad-field", noPlace));
    else if (this.#shares.isUsedUp()) session.refuse(new Refusal("limit", full));
    else if (this.#shares.isOver(source)) session.refuse(new Refusal("limit", enough));
  }

  #closed(session: Session, reason: string): void {
    if (!session.end()) return;
    this.#sessions.delete(session);
    this.#owner.wheel.remove(session);
    this.#shares.remove(session.source);
    this.#owner.closed(session, reason);
    if (this.#sessions.size === 0) this.#allGone?.();
  }

  /** By turns. */
  close(sessions: Iterable<Session>, reason: string): Promise<void> {
    return byTurns(sessions, (session) => {
      if (session.isGone) return;
      if (session.relayed) session.socket.terminate();
      else this.#owner.guard.serve(session, () => session.close(reason));
    });
  }

  /** Nobody else comes in. */
  stopListening(): void {
    this.#listener.stop();
  }

  /** Tells everyone why. */
  async tellEnd(reason: string): Promise<void> {
    const sessions = [...this.#sessions];
    await byTurns(sessions, (session) => {
      if (!session.isOver) session.silence({ type: "bye", reason });
    });
    await this.close(sessions, reason);
  }

  /** Resolves once all have gone, or soon. */
  async end(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#allGone = resolve;
    const timeout = setTimeout(resolve, closeGraceMs);
    if (this.#sessions.size > 0) await promise;
    clearTimeout(timeout);
  }

  /** Waits for nobody any more. */
  terminate(): void {
    for (const { socket } of this.#sessions) socket.terminate();
  }
}
