/**
 * A link: a channel that was nominated, with texts, keepalive and an orderly end. Owns its channel. It never knows
 * the introducer and never prints. For native/punch/ and participant.ts.
 */
import {
  linkKeepaliveMs,
  linkSilenceMs,
  maxTextLength,
  unlinkReasons,
  type ByeReason,
  type Endpoint,
  type Route,
  type ToPeer,
  type UnlinkReason,
} from "../../protocol.ts";
import { LinkError, type Channel, type ChannelEnd } from "./channel.ts";

/** How long an orderly end waits for the peer's answer before it resets the connection. */
const byeTimeoutMs = 1_000;
/** How long a `say` or `ping` waits for the peer's answer. */
const answerTimeoutMs = 10_000;

/** An answer that is waited for: `heard` or `pong`. */
interface Waiting {
  resolve: (elapsedMs: number) => void;
  reject: (error: LinkError) => void;
  sentAt: number;
  timer: NodeJS.Timeout;
}

/** Why we may end a link, which is also what the peer is told. */
export type CloseReason = Exclude<ByeReason, "answer">;
type LinkState =
  { is: "open" } | { is: "closing"; by: "us" | "peer"; reason: UnlinkReason } | { is: "closed" };

/** What the peer's `bye` means to us. */
const peersReasons: Readonly<Record<ByeReason, UnlinkReason>> = {
  disconnected: "peer-disconnected",
  quit: "peer-quit",
  replaced: "replaced",
  answer: "peer-disconnected", // to nothing that we said: it has ended the link all the same
};

/** The authenticated, nominated connection to a peer. */
export class Link {
  readonly openedAt = Date.now();
  /** The last measured round trip. */
  rttMs: number | undefined;
  onSaid: (text: string) => void = () => {};
  /** Called once, with why the link ended; `detail` is for our own user. */
  onClose: (reason: UnlinkReason, detail?: string) => void = () => {};
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
    channel.onClose = (end) => this.#channelEnded(end);
    this.#keepalive = setInterval(() => this.ping().catch(() => {}), keepaliveMs);
    const silent = `nothing heard for ${silenceMs / 1000} s`;
    this.#silence = setTimeout(() => this.#end("peer-silent", silent), silenceMs);
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
  async close(reason: CloseReason): Promise<void> {
    if (this.isOpen) this.#closing("us", reason, reason);
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
        // The side that began has now seen all that the peer sent, and closes; the other answers.
        if (this.isOpen) {
          this.#closing("peer", peersReasons[message.reason], "answer");
          this.#channel.finish();
        } else if (this.#endsByUs && message.reason !== "answer") {
          this.#channel.send({ type: "bye", reason: "answer" });
          this.#channel.finish();
        }
        return;
      case "nominate":
        return; // said again by a peer that is sure; it changes nothing
    }
  }

  #closing(by: "us" | "peer", reason: UnlinkReason, tellPeer: ByeReason): void {
    this.#state = { is: "closing", by, reason };
    this.#channel.send({ type: "bye", reason: tellPeer });
    const timer = setTimeout(() => this.#end("connection-lost"), byeTimeoutMs);
    void this.#ended.promise.then(() => clearTimeout(timer));
  }

  #answered(id: number): void {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    waiting.resolve(performance.now() - waiting.sentAt);
  }

  #channelEnded({ is, detail }: ChannelEnd): void {
    if (is === "protocol-error") return this.#end("protocol-error", detail);
    this.#end("connection-lost", detail || "the connection was closed at the peer's end");
  }

  /** `broken` is the reason unless an orderly end was under way. */
  #end(broken: UnlinkReason, brokenDetail?: string): void {
    if (this.#state.is === "closed") return;
    const isOrderly = this.#state.is === "closing";
    const reason = this.#state.is === "closing" ? this.#state.reason : broken;
    const detail = isOrderly ? undefined : brokenDetail;
    const told = unlinkReasons[reason] + (detail === undefined ? "" : `: ${detail}`);
    this.#state = { is: "closed" };
    clearInterval(this.#keepalive);
    clearTimeout(this.#silence);
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(new LinkError(`the link ended before the peer answered: ${told}`));
    }
    this.#waiting.clear();
    this.#channel[Symbol.dispose]();
    this.#ended.resolve();
    this.onClose(reason, detail);
  }
}
