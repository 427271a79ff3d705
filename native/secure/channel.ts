/**
 * TLS 1.3 with certificates on both sides (RFC 8446) and an ALPN protocol (RFC 7301), on one connected descriptor. A
 * {@link Channel} owns the descriptor. First it carries one line each way: one side nominates it (RFC 8445 §8.1.1), and
 * both prove that they are of one room. From then on it is a session's carrier. It knows no introducer and prints nothing.
 * It does not decide who the peer should be: whoever opened the channel compares the fingerprint, and says what must be
 * proved. For native/punch/ and native/participant/.
 */
import type * as net from "node:net";
import type * as tls from "node:tls";
import { encode, type Endpoint, parseToPeer, Refusal, type Role, type Route } from "../../protocol.ts";
import { isAcknowledged, limitUnsent, tuneForCarrier } from "../host/libc.ts";
import { closedThere, inWords, type Socket } from "../host/socket.ts";
import { type Carrier, LinkError } from "../session/carrier.ts";
import { type Identity, makeRun, readShown, type Shown } from "./identity.ts";
import { type Bond, isBondProved, isRunSealed, proveBond, sealRun } from "./room.ts";

/** How long an orderly end waits for the peer's end; then, until all that was sent is acknowledged. */
const finishTimeoutMs = 1_000;
const acknowledgeTimeoutMs = 1_000;
/** How often an ending channel asks whether all is acknowledged. */
const ackPollMs = 2;
/** The longest nomination, and the longest answer to one. */
const maxNominationBytes = 256;
const openingBrace = "{".charCodeAt(0);
/** How long the answer may take. The other side answers as soon as the nomination comes. */
const proofTimeoutMs = 5_000;
/** RFC 5705 §4: this use has a label of its own. */
const exporter = { bytes: 32, label: "EXPORTER-tcp-hole-punching-link-2" };
/**
 * Bytes that wait in the kernel delay every small frame behind them. So only as many wait as the path takes in
 * {@link unsentMs}. The rate is measured over `sample`. On a fast path fewer bytes would only wake us more often.
 */
const unsentMs = 5;
const unsentBytes = { least: 16 * 1024, first: 256 * 1024, most: 4 * 1024 * 1024 };
const maxBatchBytes = 64 * 1024;
const sample = { bytes: 256 * 1024, ms: 100 };
/** With a longer pause between two writes, there was nothing to send. */
const idleMs = 20;

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
export interface Connection {
  readonly raw: net.Socket;
  /** `raw` owns it. It is valid until `raw` is closed. */
  readonly fd: number;
  readonly local: Endpoint;
  readonly remote: Endpoint;
}

/** Takes over the descriptor of `socket`. Throws a SystemError if it was reset meanwhile: then the caller still owns it. */
export function adopt(socket: Socket): Connection {
  socket.closeAbortively().noDelay();
  const { local, remote } = socket;
  const fd = socket.release();
  // Otherwise the peer's FIN would close our half at once, and what is not sent yet would be lost.
  const options = { fd, allowHalfOpen: true } as unknown as net.NetConnectOpts;
  return { raw: netModule().connect(options), fd, local, remote };
}

/** TLS on one connected descriptor. Closing sends RST (socket.ts, closeAbortively). */
export class Channel implements Carrier {
  readonly route: Route;
  readonly local: Endpoint;
  readonly remote: Endpoint;
  /** Resolves to the SHA-256 of the peer's certificate (64 hex digits) once TLS is up. Rejects with a {@link LinkError}. */
  readonly secured: Promise<string>;
  /** The same, once `secured` has resolved; "" before. */
  peer = "";
  /** Resolves when it is closed. From then on the same two endpoints can be used again. */
  readonly closed: Promise<void>;
  /** What both ends must prove. Whoever has compared the certificate sets it before the nomination. */
  bond: Bond | undefined;
  /** The peer has nominated this channel, and its proof is right. What follows comes as data after this returns. */
  onNominated: (token: string) => void = () => {};
  /**
   * The peer has answered our nomination: it has proved itself. Before that nothing is handed on. And only a first write
   * is sent, unless the peer's certificate has proved it already ({@link isProved}).
   */
  onProved: () => void = () => {};
  onData: (chunk: Buffer) => void = () => {};
  onWritten: () => void = () => {};
  /** Called once, with the reason in plain words. */
  onClose: (reason: string) => void = () => {};
  readonly #fd: number;
  readonly #side: Side;
  readonly #raw: net.Socket;
  readonly #tls: tls.TLSSocket;
  readonly #rate = new Rate();
  /** Whether it was closed because the other end did not say or show what it must. */
  isRejected = false;
  #alpn: string | undefined;
  #run: Shown["run"];
  /** Whether the peer's key in TLS is sealed for its program in our room. Then we need not wait for its answer. */
  #isSealed = false;
  /** What has come of the peer's line. Undefined once the peer has proved itself by it. */
  #line: Buffer | undefined = Buffer.alloc(0);
  #unproved: NodeJS.Timeout | undefined;
  #isClosed = false;
  readonly #whenClosed = Promise.withResolvers<void>();
  #closing: NodeJS.Timeout | undefined;
  #giveUp: NodeJS.Timeout | undefined;

  /** Takes over the connection. */
  constructor({ raw, fd, local, remote }: Connection, route: Route, side: Side, { context }: Credentials) {
    this.local = local;
    this.remote = remote;
    this.route = route;
    this.closed = this.#whenClosed.promise;
    this.#side = side;
    this.#fd = fd;
    this.#raw = raw;
    this.#raw.on("error", (error) => this.#end(inWords(error)));
    this.#tls = side.role === "controlling" ? this.#client(side, context) : this.#server(side, context);
    this.secured = this.#handshake();
    // If nobody waits for it, its failure must not count as unhandled.
    this.secured.catch(() => {});
    this.#tls.on("data", (chunk: Buffer) => this.#guard(() => this.#read(chunk)));
    this.#tls.on("error", (error: Error) => this.#end(inWords(error)));
    this.#tls.on("end", () => this.#closeOnceAcknowledged());
    this.#tls.on("close", () => this.#end(closedThere));
  }

  get role(): Role {
    return this.#side.role;
  }

  /** The ALPN protocol. The server knows it once the client has spoken, the client once it is {@link secured}. */
  get alpn(): string | undefined {
    return this.#alpn;
  }

  get isOpen(): boolean {
    return !this.#isClosed;
  }

  /** Not 0 while the peer has not proved itself. */
  get queuedBytes(): number {
    return Math.max(this.#tls.writableLength, this.isProved || this.#isClosed ? 0 : 1);
  }

  /** Whether the peer has proved, by its line or by its key, that it is the program of our room that we mean. */
  get isProved(): boolean {
    return this.#line === undefined || this.#isSealed;
  }

  get batchBytes(): number {
    return this.#rate.batchBytes;
  }

  /** Tells the peer to keep this channel, and to close all others of that punch. */
  nominate(token: string): void {
    if (this.#isClosed) return;
    this.#isSealed = this.bond !== undefined && this.#run !== undefined && isRunSealed(this.bond, this.#run);
    this.#tls.write(encode({ type: "nominate", token, proof: this.#proof() }));
    this.#unproved = setTimeout(() => this.reject("it did not prove to be of the room"), proofTimeoutMs);
    this.#tune();
  }

  write(bytes: Buffer): void {
    if (this.#isClosed) return;
    this.#rate.begin(bytes.length);
    this.#tls.write(bytes, this.#written);
    this.#rate.isFull = this.#tls.writableLength > 0;
  }

  pause(): void {
    this.#tls.pause();
  }

  resume(): void {
    this.#tls.resume();
  }

  finish(): void {
    if (this.#isClosed) return;
    this.#silence();
    this.#tls.resume(); // else the peer's end would never be read
    this.#tls.end();
    this.#giveUp ??= setTimeout(() => this.#end(""), finishTimeoutMs);
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

  #handshake(): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const refuse = (reason: string) => {
      reject(new LinkError(reason));
      this.reject(reason);
    };
    this.#tls.once(this.role === "controlling" ? "secureConnect" : "secure", () => {
      const shown = this.#tls.getPeerCertificate(true);
      if (this.#tls.getProtocol() !== "TLSv1.3" || !shown?.raw) return refuse("no certificate was shown");
      if (!this.#agree()) return refuse("the other side did not say what it came for");
      const read = readShown(shown.raw, shown.issuerCertificate?.raw);
      if (!read) return refuse("its certificates can't be read");
      [this.peer, this.#run] = [read.fingerprint, read.run];
      resolve(this.peer);
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
      ALPNCallback: ({ protocols }) => (this.#alpn = protocols.find(expects)),
    });
  }

  /** Checked by us, because a client may leave ALPN out, and a server may ignore it. */
  #agree(): boolean {
    const side = this.#side;
    const agreed = this.#tls.alpnProtocol || undefined;
    if (side.role === "controlling" && agreed && side.offers.includes(agreed)) this.#alpn = agreed;
    return agreed !== undefined && agreed === this.#alpn;
  }

  #read(chunk: Buffer): void {
    if (this.#isClosed) return;
    if (this.#line === undefined) return this.onData(chunk);
    const lf = chunk.indexOf(10);
    const end = lf < 0 ? chunk.length : lf + 1;
    const isOther = this.#line.length === 0 && chunk[0] !== openingBrace;
    if (isOther || this.#line.length + end > maxNominationBytes)
      return this.reject("it sent no nomination first");
    this.#line = Buffer.concat([this.#line, chunk.subarray(0, end)]);
    if (lf < 0) return;
    this.#introduced(this.#line.toString());
    const rest = chunk.subarray(end);
    if (rest.length > 0 && !this.#isClosed) this.onData(rest);
  }

  /** The peer's one line: its nomination, or its answer to ours. */
  #introduced(line: string): void {
    try {
      const message = parseToPeer(line);
      if (!this.#isBound(message.proof)) return this.reject("its proof that it is of the room is wrong");
      if (message.type === "nominate") this.#nominated(message.token);
      else this.#answered();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.reject(`its nomination is none: ${error.message}`);
    }
  }

  #nominated(token: string): void {
    if (this.role === "controlling") return this.reject("it nominated what is ours to nominate");
    this.#line = undefined;
    this.onNominated(token);
    if (this.#isClosed) return;
    // Before anything that the session writes.
    this.#tls.write(encode({ type: "nominated", proof: this.#proof() }));
    this.#tune();
  }

  #answered(): void {
    if (this.#unproved === undefined) return this.reject("it answered what nobody had said");
    clearTimeout(this.#unproved);
    this.#line = undefined;
    this.onProved();
    if (!this.#isClosed && this.#tls.writableLength === 0) this.onWritten();
  }

  #proof(): string {
    if (!this.bond) throw new Error("a nomination without anything to prove");
    return proveBond(this.bond, this.role, "self", this.#exported());
  }

  #isBound(proof: string): boolean {
    return this.bond !== undefined && isBondProved(this.bond, this.role, this.#exported(), proof);
  }

  /** These bytes are the same at both ends of this connection, and differ from those of any other connection. */
  #exported(): Uint8Array {
    return this.#tls.exportKeyingMaterial(exporter.bytes, exporter.label, Buffer.alloc(0));
  }

  #tune(): void {
    if (this.#isClosed) return;
    this.#guard(() => {
      tuneForCarrier(this.#fd);
      limitUnsent(this.#fd, unsentBytes.first);
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
  readonly #written = (): void => {
    if (this.#isClosed || this.#tls.writableLength > 0) return;
    const unsent = this.#rate.end();
    if (unsent !== undefined) this.#guard(() => limitUnsent(this.#fd, unsent));
    this.onWritten();
  };

  /** No callback is called any more. */
  #silence(): void {
    this.onNominated = this.onProved = this.onData = this.onWritten = this.onClose = () => {};
  }

  /**
   * The peer has finished. Closing sends RST, and a RST that overtakes our last ACK looks forged to a NAT (RFC 5961
   * §3.2). The NAT would keep the dead connection, and drop the SYNs of the next punch between the same endpoints. So
   * we close only once all that we sent has been acknowledged.
   */
  #closeOnceAcknowledged(): void {
    if (this.#isClosed) return; // `end` also comes after we have destroyed it
    const giveUpAt = performance.now() + acknowledgeTimeoutMs;
    this.#closing ??= setInterval(() => {
      const isDone = this.#isClosed || (this.#tls.writableLength === 0 && isAcknowledged(this.#fd));
      if (isDone || performance.now() >= giveUpAt) this.#end(closedThere);
    }, ackPollMs);
  }

  #end(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#closing);
    clearTimeout(this.#giveUp);
    clearTimeout(this.#unproved);
    this.#tls.destroy();
    this.#raw.destroy();
    this.#whenClosed.resolve();
    this.onClose(reason);
  }
}

/**
 * How fast the connection takes what is written. It is measured while the kernel is full, from one moment at which it took
 * the last byte to the next. How fast the kernel takes bytes while it has room says nothing about the path.
 */
class Rate {
  batchBytes = maxBatchBytes;
  /** Whether the latest write has to wait. */
  isFull = false;
  #sinceMs: number | undefined;
  #lastMs = 0;
  #bytes = 0;
  #unsentBytes = unsentBytes.first;

  begin(bytes: number): void {
    if (performance.now() - this.#lastMs > idleMs) this.#sinceMs = undefined;
    this.#bytes += bytes;
  }

  /** The kernel has taken all. Returns how many bytes may wait unsent from now on, if that changes. */
  end(): number | undefined {
    const now = (this.#lastMs = performance.now());
    if (!this.isFull) return undefined;
    const tookMs = now - (this.#sinceMs ?? now);
    if (this.#sinceMs !== undefined && this.#bytes < sample.bytes && tookMs < sample.ms) return undefined;
    const wantedBytes = (unsentMs * this.#bytes) / tookMs;
    this.#sinceMs = now;
    this.#bytes = 0;
    return tookMs > 0 ? this.#limit(wantedBytes) : undefined;
  }

  #limit(wantedBytes: number): number | undefined {
    const { least, most } = unsentBytes;
    const limit = Math.min(most, Math.max(least, 2 ** Math.round(Math.log2(wantedBytes))));
    if (limit === this.#unsentBytes) return undefined;
    this.batchBytes = Math.min(maxBatchBytes, Math.max(least, limit / 2));
    return (this.#unsentBytes = limit);
  }
}
