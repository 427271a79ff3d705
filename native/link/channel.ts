/**
 * TLS 1.3 with both certificates (RFC 8446), and JSON lines inside it, on one connected descriptor, which
 * {@link Channel} owns from the moment it is made. It never knows the introducer, prints, or decides who the peer
 * should be: whoever opened the channel compares the fingerprint. For native/punch/ and native/link/.
 */
import type * as net from "node:net";
import type * as tls from "node:tls";
import {
  encode,
  LineDecoder,
  parseToPeer,
  Refusal,
  type Endpoint,
  type Role,
  type Route,
  type ToPeer,
} from "../../protocol.ts";
import { isAcknowledged } from "../libc.ts";
import type { Socket } from "../socket.ts";
import type { Identity } from "./identity.ts";

/** How long an orderly end waits until all that was sent is acknowledged. */
const acknowledgeTimeoutMs = 1_000;
/** How often an ending channel asks for that. */
const ackPollMs = 2;
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
    const giveUpAt = performance.now() + acknowledgeTimeoutMs;
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
