/**
 * TLS 1.3 with both certificates (RFC 8446), agreed on its purpose (RFC 7301), and JSON lines inside it, on one
 * connected descriptor, which {@link Channel} owns from the moment it is made. It never knows the introducer, prints,
 * or decides who the peer should be: whoever opened the channel compares the fingerprint. For native/punch/ and
 * native/link/.
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

/**
 * Which end of TLS we are, and what the connection may be for: the client offers purposes, the server takes one that it
 * expects and refuses the handshake where there is none. So neither end takes a connection for another, though several
 * programs show the same certificate. Offers are sent in clear: never a secret.
 */
export type Side =
  | { role: "controlling"; offers: readonly string[] }
  | { role: "controlled"; expects: (purpose: string) => boolean };

/** How a channel ended; `detail` is for the user, empty when it was simply closed. */
export interface ChannelEnd {
  is: "closed" | "connection-lost" | "protocol-error";
  detail: string;
}

const networkErrors: Readonly<Record<string, string>> = {
  ECONNRESET: "the connection was reset",
  EPIPE: "the connection was closed at the peer's end",
  ETIMEDOUT: "the network delivered nothing any more",
  EHOSTUNREACH: "the peer's host can no longer be reached",
  ENETUNREACH: "the peer's network can no longer be reached",
};

/** An error of a socket or of TLS in plain words. */
function inWords(error: Error): string {
  const code = "code" in error && typeof error.code === "string" ? error.code : "";
  const complaint = /^error:[^:]*:SSL routines:[^:]*:(\w+)/.exec(error.message)?.[1];
  if (complaint) return `TLS refused: ${complaint.toLowerCase().replaceAll("_", " ")}`;
  return networkErrors[code] ?? error.message;
}

/** TLS and lines on one connected descriptor. Closing sends RST (socket.ts, closeAbortively). */
export class Channel implements Disposable {
  readonly route: Route;
  readonly local: Endpoint;
  readonly remote: Endpoint;
  /** Resolves to the peer certificate's SHA-256 (64 hex digits) once TLS is up; rejects with the reason. */
  readonly secured: Promise<string>;
  onMessage: (message: ToPeer) => void = () => {};
  /** Called once. */
  onClose: (end: ChannelEnd) => void = () => {};
  /** Bytes inside TLS. */
  bytesIn = 0;
  bytesOut = 0;
  /** Owned by `#raw`, and valid until it is closed. */
  readonly #fd: number;
  readonly #side: Side;
  #purpose: string | undefined;
  readonly #raw: net.Socket;
  readonly #tls: tls.TLSSocket;
  readonly #decoder = new LineDecoder();
  #closed = false;
  #resetting: NodeJS.Timeout | undefined;

  /** Takes over the descriptor of `socket`. */
  constructor(socket: Socket, route: Route, side: Side, { context }: Credentials) {
    socket.closeAbortively().noDelay();
    this.local = socket.local;
    this.remote = socket.remote;
    this.route = route;
    this.#side = side;
    this.#fd = socket.release();
    this.#raw = netModule().connect({ fd: this.#fd } as unknown as net.NetConnectOpts);
    this.#raw.on("error", (error) => this.#end("connection-lost", inWords(error)));
    this.#tls = side.role === "controlling" ? this.#client(side, context) : this.#server(side, context);
    this.secured = this.#handshake();
    // A channel that is dropped before anybody waits for it must not count as an unhandled failure.
    this.secured.catch(() => {});
    this.#tls.on("data", (chunk: Buffer) => this.#read(chunk));
    this.#tls.on("error", (error: Error) => this.#end("connection-lost", inWords(error)));
    this.#tls.on("end", () => this.#resetOnceAcknowledged());
    this.#tls.on("close", () => this.#end());
  }

  get role(): Role {
    return this.#side.role;
  }

  /** What the connection is for: the server knows it once the client has spoken, the client once it is {@link secured}. */
  get purpose(): string | undefined {
    return this.#purpose;
  }

  get isOpen(): boolean {
    return !this.#closed;
  }

  send(message: ToPeer): void {
    if (this.#closed) return;
    if (this.#tls.writableLength > maxUnsentBytes) {
      return this.#end("connection-lost", "the peer does not read what we send");
    }
    const line = encode(message);
    this.bytesOut += Buffer.byteLength(line);
    this.#tls.write(line);
  }

  /** No more will be sent: the peer reads our FIN after it. */
  finish(): void {
    if (!this.#closed) this.#tls.end();
  }

  [Symbol.dispose](): void {
    this.#end();
  }

  #handshake(): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const refuse = (complaint: string) => {
      reject(new LinkError(complaint));
      this.#end("protocol-error", complaint);
    };
    this.#tls.once(this.role === "controlling" ? "secureConnect" : "secure", () => {
      const digest = this.#tls.getPeerCertificate()?.fingerprint256;
      if (this.#tls.getProtocol() !== "TLSv1.3" || !digest) refuse("no certificate was shown");
      else if (!this.#agree()) refuse("the other side did not say what it came for");
      else resolve(digest.replaceAll(":", "").toLowerCase());
    });
    this.#tls.once("close", () => reject(new LinkError("closed during the TLS handshake")));
    this.#tls.once("error", (error: Error) => reject(new LinkError(inWords(error))));
    return promise;
  }

  #client({ offers }: Side & { role: "controlling" }, secureContext: tls.SecureContext): tls.TLSSocket {
    const ALPNProtocols = [...offers];
    const { connect } = tlsModule();
    return connect({ socket: this.#raw, secureContext, rejectUnauthorized: false, ALPNProtocols });
  }

  #server({ expects }: Side & { role: "controlled" }, secureContext: tls.SecureContext): tls.TLSSocket {
    const { TLSSocket } = tlsModule();
    return new TLSSocket(this.#raw, {
      isServer: true,
      secureContext,
      requestCert: true,
      rejectUnauthorized: false,
      ALPNCallback: ({ protocols }) => (this.#purpose = protocols.find(expects)),
    });
  }

  /** A client may leave ALPN out, and the server is then never asked; a server may ignore it. */
  #agree(): boolean {
    const side = this.#side;
    const agreed = this.#tls.alpnProtocol || undefined;
    if (side.role === "controlling" && agreed && side.offers.includes(agreed)) this.#purpose = agreed;
    return agreed !== undefined && agreed === this.#purpose;
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
      this.#end("protocol-error", error.message);
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
      if (this.#closed || isAcknowledged(this.#fd) || performance.now() >= giveUpAt) this.#end();
    }, ackPollMs);
  }

  #end(is: ChannelEnd["is"] = "closed", detail = ""): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#resetting);
    this.#tls.destroy();
    this.#raw.destroy();
    this.onClose({ is, detail });
  }
}
