/**
 * TLS 1.3 with certificates on both sides (RFC 8446) and an ALPN protocol (RFC 7301), on one connected descriptor. A
 * {@link SecureSocket} owns the descriptor, and knows what the other end has shown. It does not decide who the peer should
 * be, and reads no byte of what comes after the handshake. For native/secure/channel.ts and native/punch/.
 */
import type * as net from "node:net";
import type * as tls from "node:tls";
import type { Endpoint, Role } from "../../protocol.ts";
import { inWords, type Socket } from "../host/socket.ts";
import { LinkError } from "../session/carrier.ts";
import { type Identity, makeRun, readShown, type Shown } from "./identity.ts";
import { type Bond, sealRun } from "./room.ts";

/** RFC 5705 §4: this use has a label of its own. */
const exporter = { bytes: 32, label: "EXPORTER-tcp-hole-punching-link-2" };

// Loaded at the first use: together with the credentials they take a third of the time that a participant needs to start.
const netModule = () => process.getBuiltinModule("node:net");
const tlsModule = () => process.getBuiltinModule("node:tls");

/** Key and certificates of a TLS endpoint, made once, at the first use. */
export class Credentials {
  readonly #identity: Identity;
  readonly #seal: Pick<Bond, "key" | "self"> | undefined;
  #context: tls.SecureContext | undefined;

  /** With `seal`, our certificate shows who we are in that room: see {@link sealRun}. */
  constructor(identity: Identity, seal?: Pick<Bond, "key" | "self">) {
    this.#identity = identity;
    this.#seal = seal;
  }

  /** Who we are has changed: what is made from now on shows that. */
  reseal(): void {
    this.#context = undefined;
  }

  /** Makes them now: at the first use there is somebody who waits. */
  prepare(): void {
    void this.context;
  }

  get context(): tls.SecureContext {
    return (this.#context ??= this.#make());
  }

  #make(): tls.SecureContext {
    const seal = this.#seal;
    const { key, certificate: cert } = seal
      ? makeRun(this.#identity, (publicKey) => sealRun(seal.key, seal.self, publicKey))
      : this.#identity;
    return tlsModule().createSecureContext({ key, cert, minVersion: "TLSv1.3" });
  }
}

/**
 * Which end of TLS we are, and which ALPN protocols the connection may have. The client offers some. The server takes one
 * that it expects, or refuses the handshake. So neither end mistakes a connection for another one, though several programs
 * may show the same certificate. Offers are sent in clear, so they are never secrets.
 */
export type Side =
  | { role: "controlling"; offers: readonly string[] }
  | { role: "controlled"; expects: (alpn: string) => boolean };

/** A connected descriptor that Node reads and writes. Closing it sends RST. */
export interface AdoptedSocket {
  readonly raw: net.Socket;
  /** `raw` owns it. It is valid until `raw` is closed. */
  readonly fd: number;
  readonly local: Endpoint;
  readonly remote: Endpoint;
}

/** Takes over the descriptor of `socket`. Throws a SystemError if it was reset meanwhile: then the caller still owns it. */
export function adopt(socket: Socket): AdoptedSocket {
  socket.closeAbortively().noDelay();
  const { local, remote } = socket;
  const fd = socket.release();
  // Otherwise the peer's FIN would close our half at once, and what is not sent yet would be lost.
  const options = { fd, allowHalfOpen: true } as unknown as net.NetConnectOpts;
  return { raw: netModule().connect(options), fd, local, remote };
}

/** What a net.Socket of Bun is made of: one of `Bun.connect`. */
interface Handle {
  reload?(options: { socket: { drain(): void } }): void;
}

/**
 * Bun (1.4.5) also hands what comes to the socket below TLS, which drops it: that takes a copy of each read, and leaves as
 * much garbage. A socket without a handler for data is spared. Not if TLS itself reads by that socket's events.
 */
function dropCiphertext(below: net.Socket): void {
  const { _handle } = below as net.Socket & { _handle?: Handle | null };
  if (below.listenerCount("data") === 0) _handle?.reload?.({ socket: { drain() {} } });
}

export interface SecureSocketOwner {
  /** The other end has not shown what it must. */
  refused(reason: string): void;
  /** The connection has failed. May be called more than once. */
  failed(reason: string): void;
}

export class SecureSocket {
  readonly connection: AdoptedSocket;
  /** Carries what follows the handshake. */
  readonly stream: tls.TLSSocket;
  /** Resolves to the SHA-256 of the peer's certificate (64 hex digits) once TLS is up. Rejects with a {@link LinkError}. */
  readonly secured: Promise<string>;
  /** What the other end has shown, once `secured` has resolved. */
  shown: Shown | undefined;
  /** The server knows it once the client has spoken, the client once it is {@link secured}. */
  alpn: string | undefined;
  /** Of a client: from the connection to `secured`. */
  handshakeMs: number | undefined;
  readonly #side: Side;
  readonly #owner: SecureSocketOwner;

  /** Takes over the connection. */
  constructor(connection: AdoptedSocket, side: Side, { context }: Credentials, owner: SecureSocketOwner) {
    this.connection = connection;
    this.#side = side;
    this.#owner = owner;
    const failed = (error: Error) => owner.failed(inWords(error));
    connection.raw.on("error", failed);
    this.stream = side.role === "controlling" ? this.#client(side, context) : this.#server(side, context);
    this.secured = this.#handshake();
    // If nobody waits for it, its failure must not count as unhandled.
    this.secured.catch(() => {});
    this.stream.on("error", failed);
  }

  #client({ offers }: Side & { role: "controlling" }, secureContext: tls.SecureContext): tls.TLSSocket {
    const [socket, ALPNProtocols] = [this.connection.raw, [...offers]];
    return tlsModule().connect({ socket, secureContext, rejectUnauthorized: false, ALPNProtocols });
  }

  #server({ expects }: Side & { role: "controlled" }, secureContext: tls.SecureContext): tls.TLSSocket {
    const { TLSSocket } = tlsModule();
    return new TLSSocket(this.connection.raw, {
      isServer: true,
      secureContext,
      requestCert: true,
      rejectUnauthorized: false,
      ALPNCallback: ({ protocols }) => (this.alpn = protocols.find(expects)),
    });
  }

  #handshake(): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const isClient = this.#side.role === "controlling";
    const startedAt = performance.now();
    this.stream.once(isClient ? "secureConnect" : "secure", () => {
      if (isClient) this.handshakeMs = performance.now() - startedAt;
      dropCiphertext(this.connection.raw);
      const shown = this.#readShown();
      if (typeof shown !== "string") return resolve((this.shown = shown).fingerprint);
      reject(new LinkError(shown));
      this.#owner.refused(shown);
    });
    this.stream.once("close", () => reject(new LinkError("closed during the TLS handshake")));
    this.stream.once("error", (error: Error) => reject(new LinkError(inWords(error))));
    return promise;
  }

  /** What the other end has shown, or why that is not enough. */
  #readShown(): Shown | string {
    const certificate = this.stream.getPeerCertificate(true);
    if (this.stream.getProtocol() !== "TLSv1.3" || !certificate?.raw) return "no certificate was shown";
    if (!this.#agree()) return "the other side did not say what it came for";
    return readShown(certificate.raw, certificate.issuerCertificate?.raw) ?? "its certificates can't be read";
  }

  /** Checked by us, because a client may leave ALPN out, and a server may ignore it. */
  #agree(): boolean {
    const agreed = this.stream.alpnProtocol || undefined;
    if (this.#side.role === "controlling" && agreed && this.#side.offers.includes(agreed)) this.alpn = agreed;
    return agreed !== undefined && agreed === this.alpn;
  }

  get role(): Role {
    return this.#side.role;
  }

  /** These bytes are the same at both ends of this connection, and differ from those of any other connection. */
  exported(): Uint8Array {
    return this.stream.exportKeyingMaterial(exporter.bytes, exporter.label, Buffer.alloc(0));
  }

  destroy(): void {
    this.stream.destroy();
    this.connection.raw.destroy();
  }
}
