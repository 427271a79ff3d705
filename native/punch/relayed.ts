/**
 * A channel by way of the introducer. Each side opens a TCP connection to the introducer's port and shows a token, and
 * the introducer joins the two. Inside is TLS between the two sides, as on any other channel, so the introducer sees
 * nothing but bytes. Owns its descriptor until the channel is nominated. For native/punch/encounter.ts.
 */
import {
  encode,
  parseToParticipant,
  Refusal,
  relayOfferMs,
  type Endpoint,
  type FailureReason,
  type Role,
} from "../../protocol.ts";
import { SystemError } from "../host/libc.ts";
import { connectShared, type Socket } from "../host/socket.ts";
import { Channel } from "../secure/channel.ts";
import { adopt, type AdoptedSocket, type Credentials, type Side } from "../secure/tls.ts";
import type { Bond } from "../secure/room.ts";

/** How long the introducer may take to accept, the peer to come to it, and then the peer for TLS and its nomination. */
const defaultPatience = { connectMs: 5_000, offerMs: relayOfferMs, handshakeMs: 8_000 };
/** The longest answer of the introducer: one short line. */
const maxAnswerBytes = 1024;

export interface RelayOptions {
  introducer: Endpoint;
  /** A connection there that was made before. The attempt owns it from now on. */
  reserved?: Reservation | undefined;
  token: string;
  role: Role;
  /** The ALPN protocol (RFC 7301) that both ends use for it: derived from the token, as that of a punch. */
  alpn: string;
  /** Whose certificate the peer must show, and what both must prove. */
  bond: Bond;
  credentials: Credentials;
  patience?: typeof defaultPatience;
  /**
   * One of these two is called, once, unless it is aborted before: with the nominated channel, or with why there is
   * none.
   */
  onChannel(channel: Channel): void;
  onFailed(detail: string, reason: FailureReason): void;
}

/** A connection to the introducer on which nothing was sent yet; undefined if none could be made. Never rejects. */
export type Reservation = Promise<Socket | undefined>;

export async function reserve(introducer: Endpoint): Reservation {
  try {
    return (await connectShared(introducer, defaultPatience.connectMs)).socket;
  } catch {
    return undefined;
  }
}

/** One attempt to be relayed. */
export class RelayAttempt {
  readonly #options: RelayOptions;
  readonly #patience: typeof defaultPatience;
  #connection: AdoptedSocket | undefined;
  #channel: Channel | undefined;
  #timer: NodeJS.Timeout;
  #isOver = false;

  constructor(options: RelayOptions) {
    this.#options = options;
    this.#patience = options.patience ?? defaultPatience;
    const { connectMs, offerMs } = this.#patience;
    this.#timer = setTimeout(() => this.#fail("the peer did not come to the relay"), connectMs + offerMs);
    void this.#connect().catch(() => this.#fail("the relay could not be used"));
  }

  /** Does nothing once it is over. */
  abort(): void {
    if (this.#end()) this.#close();
  }

  async #connect(): Promise<void> {
    try {
      const { reserved, introducer } = this.#options;
      const socket = (await reserved) ?? (await connectShared(introducer, this.#patience.connectMs)).socket;
      if (this.#isOver) return socket.close();
      try {
        this.#connection = adopt(socket);
      } finally {
        if (socket.isOpen) socket.close();
      }
      this.#ask(this.#connection);
    } catch (error) {
      this.#fail(`the relay could not be reached: ${error instanceof SystemError ? error.code : error}`);
    }
  }

  #ask({ raw }: AdoptedSocket): void {
    let answer = Buffer.alloc(0);
    const onClose = () => this.#fail("the relay closed the connection");
    const onData = (chunk: Buffer) => {
      answer = Buffer.concat([answer, chunk]);
      const lf = answer.indexOf(10);
      if (lf < 0 && answer.length <= maxAnswerBytes) return;
      raw.off("data", onData).off("end", onClose).off("close", onClose).off("error", onClose);
      // The peer's first bytes may have come already. Unless TLS finds them in a paused socket, the handshake hangs.
      raw.pause();
      if (lf + 1 < answer.length) raw.unshift(answer.subarray(lf + 1));
      this.#answered(answer.toString("utf8", 0, lf));
    };
    raw.on("data", onData).once("end", onClose).once("close", onClose).once("error", onClose);
    raw.write(encode({ type: "relay", token: this.#options.token }));
  }

  #answered(line: string): void {
    if (this.#isOver) return;
    try {
      const message = parseToParticipant(line);
      if (message.type === "relaying") return this.#secure(message.rate);
      this.#fail(message.type === "refused" ? message.message : `the relay said ${message.type}`);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#fail(`the relay's answer is none: ${error.message}`);
    }
  }

  #secure(rate: number): void {
    const { role, token, alpn, bond, credentials } = this.#options;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#fail("the peer did not shake hands"), this.#patience.handshakeMs);
    const side: Side =
      role === "controlling" ? { role, offers: [alpn] } : { role, expects: (one) => one === alpn };
    const channel = new Channel(this.#connection!, "relay", side, credentials);
    this.#channel = channel;
    channel.maxRate = rate;
    channel.nomination.bond = bond;
    channel.onClose = (reason) => this.#fail(reason);
    channel.nomination.onNominated = (named) => {
      if (named === token && role === "controlled") this.#nominated(channel);
      else channel.reject("it was nominated for something else");
    };
    channel.secured
      .then((shown) => {
        if (shown !== bond.peer.fingerprint)
          return channel.reject("it showed another certificate than the peer's");
        if (role === "controlled" || this.#isOver) return;
        channel.nominate(token);
        this.#nominated(channel);
      })
      .catch((error: unknown) => this.#fail(String(error)));
  }

  #nominated(channel: Channel): void {
    if (channel.peer !== this.#options.bond.peer.fingerprint) return channel.reject("it is not the peer");
    if (this.#end()) this.#options.onChannel(channel);
  }

  #fail(detail: string): void {
    if (!this.#end()) return;
    this.#close();
    const reason = this.#channel?.isRejected ? "authentication-failed" : "relay-failed";
    this.#options.onFailed(detail, reason);
  }

  /** Ends it. Returns whether it had not ended before. */
  #end(): boolean {
    if (this.#isOver) return false;
    clearTimeout(this.#timer);
    this.#isOver = true;
    return true;
  }

  #close(): void {
    if (this.#channel) this.#channel.destroy();
    else this.#connection?.raw.destroy();
  }
}
