/**
 * A link, and the streams on it, as programs that use the library see them. Owns nothing: the link itself is in
 * native/session/. For participant.ts and native/participant/.
 */
import type { Duplex } from "node:stream";
import type { Endpoint, Route, UnlinkReason } from "../../protocol.ts";
import type { Link, LinkState, Purpose } from "../session/link.ts";
import { failedStream } from "../session/stream.ts";
import { pairOf, type StreamPair } from "../session/web-pair.ts";

/**
 * A stream of bytes on a link, to one use. `write` keeps what it is given until it was sent. `end()` ends our half only;
 * `for await` destroys the stream at its end, with what was not sent: `stream.iterator({ destroyOnReturn: false })` does
 * not. While the link has no connection it waits. An `error` is a StreamError that says why it was cut off, and by whom; it
 * never counts as unhandled.
 */
export interface PeerStream extends Duplex {
  /**
   * Cuts it off in both directions. What is not sent yet is dropped, and the peer's stream fails with the reason. `code`: one
   * of the resetCodes; 0, cancelled, if it is left out.
   */
  reset(reason: string, code?: number): void;
  /** Whether nothing comes or goes now, because the link has no connection. */
  readonly isWaiting: boolean;
}

/** Who is at the other end of a link. */
export interface Other {
  readonly name: string;
  /** SHA-256 of its certificate, 64 hex digits. */
  readonly fingerprint: string;
}

const known = new WeakMap<Link, PeerLink>();

/** The link itself: not for programs. */
export let linkOf: (one: PeerLink) => Link;

/** The one for that link. */
export function peerLink(link: Link, other: Other): PeerLink {
  const found = known.get(link) ?? new PeerLink(link, other);
  known.set(link, found);
  return found;
}

/**
 * The authenticated connection with one peer's program. It lives on when its connection breaks, and its streams wait then,
 * for as long as the option `keepMinutes` says.
 */
export class PeerLink {
  static {
    linkOf = (one) => one.#link;
  }
  readonly #link: Link;
  readonly #other: Other;

  constructor(link: Link, other: Other) {
    this.#link = link;
    this.#other = other;
  }

  get name(): string {
    return this.#other.name;
  }
  /** SHA-256 of the peer's certificate, 64 hex digits. */
  get fingerprint(): string {
    return this.#other.fingerprint;
  }
  /** How we got our end of the connection that it has, or had last. */
  get route(): Route {
    return this.#link.route;
  }
  get local(): Endpoint {
    return this.#link.local;
  }
  get remote(): Endpoint {
    return this.#link.remote;
  }
  /** `returning`: it has no connection now. `suspect`: its connection did not answer in time. */
  get state(): LinkState {
    return this.#link.state;
  }
  /** Whether it goes on, with or without a connection. */
  get isOpen(): boolean {
    return this.#link.isOpen;
  }
  /** The latest round trip, in ms; undefined before the first. */
  get roundTripMs(): number | undefined {
    return this.#link.session.roundTripMs;
  }
  /** Resolves, with the reason, when it has ended. */
  get ended(): Promise<UnlinkReason> {
    return this.#link.ended;
  }

  /**
   * Opens a stream for that use, a Node Duplex. The peer's handler for it is told the use, and what else is in `more` (at
   * most 4096 bytes of JSON). What is written before the peer has taken it waits, up to 256 KiB. If the link has ended, or
   * the peer takes no such streams, the stream has an `error`.
   */
  open(use: string, more: Purpose = {}): PeerStream {
    try {
      return this.#link.open(use, more);
    } catch (error) {
      return failedStream(error instanceof Error ? error.message : String(error));
    }
  }

  /** The same as Web streams. To cancel or abort one of the two cuts off both, and tells the peer the reason. */
  openPair(use: string, more: Purpose = {}): StreamPair {
    return pairOf(this.open(use, more));
  }

  /** Ends it on both sides. What was written before arrives first. Resolves once it has ended. */
  close(): Promise<void> {
    return this.#link.close("disconnected");
  }
}
