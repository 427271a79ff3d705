/**
 * One secured connection to a peer: a {@link SecureSocket}, on which one line each way nominates it. From then on it is a
 * session's carrier. It knows no introducer and prints nothing. It does not decide who the peer should be: whoever opened
 * the channel compares the fingerprint, and says what must be proved. For native/punch/ and native/participant/.
 */
import type { Endpoint, Role, Route } from "../../protocol.ts";
import { isAcknowledged, limitUnsent, tuneForCarrier } from "../host/libc.ts";
import { closedThere, inWords } from "../host/socket.ts";
import { closeInOrder } from "../host/tcp.ts";
import type { Carrier } from "../session/carrier.ts";
import { Nomination } from "./nomination.ts";
import { Rate, unsentBytes } from "./rate.ts";
import { type AdoptedSocket, type Credentials, SecureSocket, type Side } from "./tls.ts";

/** How long an orderly end waits for the peer's end; then, until all that was sent is acknowledged. */
const finishTimeoutMs = 1_000;
const acknowledgeTimeoutMs = 1_000;
/** How often an ending channel asks whether all is acknowledged. */
const ackPollMs = 2;

/** Closing sends RST (socket.ts, closeAbortively), unless both ends have finished. */
export class Channel implements Carrier {
  readonly route: Route;
  readonly nomination: Nomination;
  /** Resolves when it is closed. From then on the same two endpoints can be used again. */
  readonly closed: Promise<void>;
  onData: (chunk: Buffer) => void = () => {};
  onWritten: () => void = () => {};
  /** Called once, with the reason in plain words. */
  onClose: (reason: string) => void = () => {};
  /** Set by whoever has it relayed. */
  maxRate = Infinity;
  /** Whether it was closed because the other end did not say or show what it must. */
  isRejected = false;
  readonly #socket: SecureSocket;
  readonly #rate = new Rate();
  /** What ends it, while it ends. */
  readonly #timers: NodeJS.Timeout[] = [];
  /** Called when it is closed; undefined from then on. */
  #whenClosed: (() => void) | undefined;

  /** Takes over the connection. */
  constructor(connection: AdoptedSocket, route: Route, side: Side, credentials: Credentials) {
    this.route = route;
    const { promise, resolve } = Promise.withResolvers<void>();
    [this.closed, this.#whenClosed] = [promise, resolve];
    const socket = (this.#socket = new SecureSocket(connection, side, credentials, {
      refused: (reason) => this.reject(reason),
      failed: (reason) => this.#end(reason),
    }));
    this.nomination = this.#newNomination();
    socket.stream.on("data", (chunk: Buffer) => this.#guard(() => this.#read(chunk)));
    socket.stream.on("end", () => this.#closeOnceAcknowledged());
    socket.stream.on("close", () => this.#end(closedThere));
  }

  #newNomination(): Nomination {
    const channel = this;
    const { role } = this;
    const { stream } = this.#socket;
    return new Nomination({
      role,
      get isOpen() {
        return channel.isOpen;
      },
      exported: () => this.#socket.exported(),
      send: (line) => {
        stream.write(line);
        this.#tune();
      },
      answered: () => {
        if (this.isOpen && stream.writableLength === 0) this.onWritten();
      },
      reject: (reason) => this.reject(reason),
    });
  }

  get role(): Role {
    return this.#socket.role;
  }
  get local(): Endpoint {
    return this.#socket.connection.local;
  }
  get remote(): Endpoint {
    return this.#socket.connection.remote;
  }
  /** Resolves to the SHA-256 of the peer's certificate once TLS is up. Rejects with a {@link LinkError}. */
  get secured(): Promise<string> {
    return this.#socket.secured;
  }
  /** The same, once `secured` has resolved; "" before. */
  get peer(): string {
    return this.#socket.shown?.fingerprint ?? "";
  }
  /** How long TLS took, which is a round trip and a little; undefined for the server, and before it is {@link secured}. */
  get handshakeMs(): number | undefined {
    return this.#socket.handshakeMs;
  }
  get alpn(): string | undefined {
    return this.#socket.alpn;
  }
  get isOpen(): boolean {
    return this.#whenClosed !== undefined;
  }
  /** Not 0 while the peer has not proved itself. */
  get queuedBytes(): number {
    return Math.max(this.#socket.stream.writableLength, this.nomination.isProved || !this.isOpen ? 0 : 1);
  }
  get batchBytes(): number {
    return this.#rate.batchBytes;
  }

  /** Tells the peer to keep this channel, and to close all others of that punch. */
  nominate(token: string): void {
    if (this.isOpen) this.nomination.say(token, this.#socket.shown?.run);
  }

  write(bytes: Buffer): void {
    if (!this.isOpen) return;
    const { stream } = this.#socket;
    this.#rate.begin(bytes.length);
    stream.write(bytes, () => this.#written());
    this.#rate.isFull = stream.writableLength > 0;
  }

  pause(): void {
    this.#socket.stream.pause();
  }

  resume(): void {
    this.#socket.stream.resume();
  }

  finish(): void {
    if (!this.isOpen) return;
    this.#silence();
    this.resume(); // else the peer's end would never be read
    this.#socket.stream.end();
    this.#timers.push(setTimeout(() => this.#end(""), finishTimeoutMs));
  }

  /** Closes it before it becomes a carrier: the other end is not the peer, or breaks the protocol. */
  reject(reason: string): void {
    this.isRejected = true;
    this.#end(reason);
  }

  destroy(): void {
    this.#silence();
    this.#end("");
  }

  #read(chunk: Buffer): void {
    if (!this.isOpen) return;
    const rest = this.nomination.isOver ? chunk : this.nomination.read(chunk);
    if (rest && rest.length > 0 && this.isOpen) this.onData(rest);
  }

  #tune(): void {
    const { fd } = this.#socket.connection;
    if (!this.isOpen) return;
    this.#guard(() => {
      tuneForCarrier(fd);
      limitUnsent(fd, unsentBytes.first);
    });
  }

  /** An error, such as for a descriptor that is gone, ends this connection and nothing else. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#end(error instanceof Error ? inWords(error) : String(error));
    }
  }

  /** Also called for pending writes after `destroy`, when the number of the descriptor may be another socket's. */
  #written(): void {
    const { connection, stream } = this.#socket;
    if (!this.isOpen || stream.writableLength > 0) return;
    const unsent = this.#rate.end();
    if (unsent !== undefined) this.#guard(() => limitUnsent(connection.fd, unsent));
    this.onWritten();
  }

  /** No callback is called any more. */
  #silence(): void {
    this.onData = this.onWritten = this.onClose = () => {};
    this.nomination.onNominated = this.nomination.onProved = () => {};
  }

  /**
   * The peer has finished. We close only once all that we sent has been acknowledged, and send no RST: it would meet the
   * next SYN between the same endpoints at a NAT, and delete its mapping. Or it would overtake our last ACK and look forged
   * (RFC 5961 §3.2), and the NAT would keep the dead connection.
   */
  #closeOnceAcknowledged(): void {
    if (!this.isOpen) return; // `end` also comes after we have destroyed it
    const { connection, stream } = this.#socket;
    this.#guard(() => closeInOrder(connection.fd));
    const giveUpAt = performance.now() + acknowledgeTimeoutMs;
    const look = () => {
      const isDone = stream.writableLength === 0 && isAcknowledged(connection.fd);
      if (isDone || performance.now() >= giveUpAt) this.#end(closedThere);
    };
    this.#timers.push(setInterval(look, ackPollMs));
  }

  #end(reason: string): void {
    const whenClosed = this.#whenClosed;
    if (!whenClosed) return;
    this.#whenClosed = undefined;
    for (const timer of this.#timers) clearTimeout(timer);
    this.nomination.stop();
    this.#socket.destroy();
    whenClosed();
    this.onClose(reason);
  }
}
