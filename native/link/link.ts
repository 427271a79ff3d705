/**
 * A link: a channel that was nominated, with texts, keepalive and an orderly end. Owns its channel. It never knows
 * the introducer and never prints. For native/punch/ and participant.ts.
 */
import {
  linkKeepaliveMs,
  linkSilenceMs,
  maxTextLength,
  type Endpoint,
  type Route,
  type ToPeer,
} from "../../protocol.ts";
import { LinkError, type Channel } from "./channel.ts";

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
