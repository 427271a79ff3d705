/**
 * From a connected descriptor to a link: TLS 1.3 with both certificates (RFC 8446), JSON lines inside it,
 * keepalive and an orderly end. {@link Channel} owns the descriptor from the moment it is made;
 * {@link Link} is a channel that was nominated. Neither knows the introducer, prints, or decides who the
 * peer should be: whoever opened the channel compares the fingerprint.
 */
import type * as net from "node:net";
import type * as tls from "node:tls";
import {
  encode,
  LineDecoder,
  linkKeepaliveMs,
  linkSilenceMs,
  maxTextLength,
  parseToPeer,
  Refusal,
  type Endpoint,
  type Role,
  type Route,
  type ToPeer,
} from "../protocol.ts";
import { isAcknowledged } from "./libc.ts";
import type { Identity } from "./identity.ts";
import type { Socket } from "./socket.ts";

/** How long an orderly end waits for the peer's answer before it resets the connection. */
const byeTimeoutMs = 1_000;
/** How often an ending link asks whether all it sent has arrived. */
const ackPollMs = 2;
/** How long a `say` or `ping` waits for the peer's answer. */
const answerTimeoutMs = 10_000;

/** Bytes that may wait for a peer that does not read. */
const maxUnsentBytes = 16 * 1024 * 1024;

/** A message that did not arrive, or a link that ended; the text is for the user. */
export class LinkError extends Error {}

// Loaded at the first use, not with this file: with the credentials they are a third of a participant's start.
const netModule = () => process.getBuiltinModule("node:net");
const tlsModule = () => process.getBuiltinModule("node:tls");

/** What a TLS endpoint needs, made once, at the first use. */
export class Credentials {
  readonly #identity: Identity;
  #context: tls.SecureContext | undefined;

  constructor(identity: Identity) {
    this.#identity = identity;
  }

  get context(): tls.SecureContext {
    const { key, certificate: cert } = this.#identity;
    return (this.#context ??= tlsModule().createSecureContext({ key, cert, minVersion: "TLSv1.3" }));
  }
}

/** TLS and lines on one connected descriptor. Closing sends RST (socket.ts, closeAbortively). */
export class Channel implements Disposable {
  readonly route: Route;
  readonly local: Endpoint;
  readonly remote: Endpoint;
  readonly role: Role;
  /** Resolves to the peer certificate's SHA-256 (64 hex digits) once TLS is up; rejects with the reason. */
  readonly secured: Promise<string>;
  onMessage: (message: ToPeer) => void = () => {};
  /** Called once. An empty reason is an end without any error. */
  onClose: (reason: string) => void = () => {};
  /** Bytes inside TLS. */
  bytesIn = 0;
  bytesOut = 0;
  /** Owned by `#raw`, and valid until it is closed. */
  readonly #fd: number;
  readonly #raw: net.Socket;
  readonly #tls: tls.TLSSocket;
  readonly #decoder = new LineDecoder();
  #closed = false;
  #resetting: NodeJS.Timeout | undefined;

  /** Takes over the descriptor of `socket`. */
  constructor(socket: Socket, route: Route, role: Role, credentials: Credentials) {
    const { context } = credentials;
    const { connect, TLSSocket } = tlsModule();
    socket.closeAbortively().noDelay();
    this.local = socket.local;
    this.remote = socket.remote;
    this.route = route;
    this.role = role;
    this.#fd = socket.release();
    this.#raw = netModule().connect({ fd: this.#fd } as unknown as net.NetConnectOpts);
    this.#raw.on("error", (error) => this.#end(error.message));
    this.#tls =
      role === "controlling"
        ? connect({ socket: this.#raw, secureContext: context, rejectUnauthorized: false })
        : new TLSSocket(this.#raw, {
            isServer: true,
            secureContext: context,
            requestCert: true,
            rejectUnauthorized: false,
          });
    this.secured = this.#handshake();
    // A channel that is dropped before anybody waits for it must not count as an unhandled failure.
    this.secured.catch(() => {});
    this.#tls.on("data", (chunk: Buffer) => this.#read(chunk));
    this.#tls.on("error", (error: Error) => this.#end(error.message));
    this.#tls.on("end", () => this.#resetOnceAcknowledged());
    this.#tls.on("close", () => this.#end(""));
  }

  get isOpen(): boolean {
    return !this.#closed;
  }

  send(message: ToPeer): void {
    if (this.#closed) return;
    if (this.#tls.writableLength > maxUnsentBytes) return this.#end("the peer does not read what we send");
    const line = encode(message);
    this.bytesOut += Buffer.byteLength(line);
    this.#tls.write(line);
  }

  /** No more will be sent: the peer reads our FIN after it. */
  finish(): void {
    if (!this.#closed) this.#tls.end();
  }

  [Symbol.dispose](): void {
    this.#end("");
  }

  #handshake(): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    this.#tls.once(this.role === "controlling" ? "secureConnect" : "secure", () => {
      const digest = this.#tls.getPeerCertificate()?.fingerprint256;
      if (this.#tls.getProtocol() !== "TLSv1.3" || !digest) reject(new LinkError("no certificate was shown"));
      else resolve(digest.replaceAll(":", "").toLowerCase());
    });
    this.#tls.once("close", () => reject(new LinkError("closed during the TLS handshake")));
    this.#tls.once("error", (error: Error) => reject(new LinkError(error.message)));
    return promise;
  }

  #read(chunk: Buffer): void {
    this.bytesIn += chunk.length;
    try {
      for (const line of this.#decoder.push(chunk)) {
        if (this.#closed) return;
        this.onMessage(parseToPeer(line));
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#end(`the peer sent what is not in the protocol: ${error.message}`);
    }
  }

  /**
   * The peer has finished. A NAT takes a RST that is ahead of the last ACK for a forgery (RFC 5961 §3.2), keeps the
   * dead connection, and drops the SYNs of the next punch between the same endpoints: so everything we sent must
   * have been acknowledged first.
   */
  #resetOnceAcknowledged(): void {
    const giveUpAt = performance.now() + byeTimeoutMs;
    this.#resetting ??= setInterval(() => {
      if (this.#closed || isAcknowledged(this.#fd) || performance.now() >= giveUpAt) this.#end("");
    }, ackPollMs);
  }

  #end(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#resetting);
    this.#tls.destroy();
    this.#raw.destroy();
    this.onClose(reason);
  }
}

/** An answer that is waited for: `heard` or `pong`. */
interface Waiting {
  resolve: (elapsedMs: number) => void;
  reject: (error: LinkError) => void;
  sentAt: number;
  timer: NodeJS.Timeout;
}

/** Who ended a link: this side, the peer, or neither (it broke). */
export type EndedBy = "us" | "peer" | "network";
type LinkState = { is: "open" } | { is: "closing"; by: "us" | "peer"; reason: string } | { is: "closed" };

/** The authenticated, nominated connection to a peer. */
export class Link {
  readonly openedAt = Date.now();
  /** The last measured round trip. */
  rttMs: number | undefined;
  onSaid: (text: string) => void = () => {};
  /** Called once, with why the link ended. */
  onClose: (reason: string, by: EndedBy) => void = () => {};
  readonly #channel: Channel;
  readonly #waiting = new Map<number, Waiting>();
  readonly #ended = Promise.withResolvers<void>();
  readonly #keepalive: NodeJS.Timeout;
  readonly #silence: NodeJS.Timeout;
  #nextId = 1;
  #state: LinkState = { is: "open" };

  constructor(channel: Channel, keepaliveMs = linkKeepaliveMs, silenceMs = linkSilenceMs) {
    this.#channel = channel;
    channel.onMessage = (message) => this.#receive(message);
    channel.onClose = (reason) => this.#end(reason || "the connection was closed at the peer's end");
    this.#keepalive = setInterval(() => this.ping().catch(() => {}), keepaliveMs);
    this.#silence = setTimeout(() => this.#end(`nothing heard for ${silenceMs / 1000} s`), silenceMs);
    // The round trip is for the user's list; a link that ends meanwhile is told by onClose.
    this.ping().catch(() => {});
  }

  get route(): Route {
    return this.#channel.route;
  }
  get local(): Endpoint {
    return this.#channel.local;
  }
  get remote(): Endpoint {
    return this.#channel.remote;
  }
  get bytesIn(): number {
    return this.#channel.bytesIn;
  }
  get bytesOut(): number {
    return this.#channel.bytesOut;
  }
  get isOpen(): boolean {
    return this.#state.is === "open";
  }

  get #endsByUs(): boolean {
    return this.#state.is === "closing" && this.#state.by === "us";
  }

  /** Resolves when the peer's program has the text; rejects with a {@link LinkError} when that can't be known. */
  say(text: string): Promise<number> {
    // The peer would refuse it, and end the link.
    if (text.length > maxTextLength || !text.isWellFormed()) {
      return Promise.reject(new LinkError(`a text has at most ${maxTextLength} characters of valid Unicode`));
    }
    return this.#ask((id) => ({ type: "say", id, text }));
  }

  /** Resolves to the round trip in milliseconds. */
  async ping(): Promise<number> {
    this.rttMs = await this.#ask((id) => ({ type: "ping", id }));
    return this.rttMs;
  }

  /** Ends the link on both sides; resolves when it has ended. Whatever was sent before arrives first. */
  async close(reason: string): Promise<void> {
    if (this.isOpen) this.#closing("us", reason, reason.slice(0, 200).toWellFormed() || "closed");
    await this.#ended.promise;
  }

  #ask(message: (id: number) => ToPeer): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    if (!this.isOpen) {
      reject(new LinkError("the link has ended"));
      return promise;
    }
    const id = this.#nextId++;
    const timer = setTimeout(() => {
      this.#waiting.delete(id);
      reject(new LinkError(`no answer within ${answerTimeoutMs / 1000} s`));
    }, answerTimeoutMs);
    this.#waiting.set(id, { resolve, reject, sentAt: performance.now(), timer });
    this.#channel.send(message(id));
    return promise;
  }

  #receive(message: ToPeer): void {
    this.#silence.refresh();
    switch (message.type) {
      case "say":
        this.#channel.send({ type: "heard", id: message.id });
        return this.onSaid(message.text);
      case "ping":
        return this.#channel.send({ type: "pong", id: message.id });
      case "heard":
      case "pong":
        return this.#answered(message.id);
      case "bye":
        // The side that began has now seen all that the peer sent, and closes; the other answers, with no reason.
        if (this.isOpen) {
          this.#closing("peer", message.reason, "");
          this.#channel.finish();
        } else if (this.#endsByUs && message.reason) {
          this.#channel.send({ type: "bye", reason: "" });
          this.#channel.finish();
        }
        return;
      case "nominate":
        return; // said again by a peer that is sure; it changes nothing
    }
  }

  #closing(by: "us" | "peer", reason: string, tellPeer: string): void {
    this.#state = { is: "closing", by, reason };
    this.#channel.send({ type: "bye", reason: tellPeer });
    const timer = setTimeout(() => this.#end(""), byeTimeoutMs);
    void this.#ended.promise.then(() => clearTimeout(timer));
  }

  #answered(id: number): void {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    waiting.resolve(performance.now() - waiting.sentAt);
  }

  /** `broken` is the reason unless an orderly end was under way. */
  #end(broken: string): void {
    if (this.#state.is === "closed") return;
    const { reason, by } =
      this.#state.is === "closing" ? this.#state : { reason: broken, by: "network" as const };
    this.#state = { is: "closed" };
    clearInterval(this.#keepalive);
    clearTimeout(this.#silence);
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(new LinkError(`the link ended before the peer answered: ${reason}`));
    }
    this.#waiting.clear();
    this.#channel[Symbol.dispose]();
    this.#ended.resolve();
    this.onClose(reason, by);
  }
}
