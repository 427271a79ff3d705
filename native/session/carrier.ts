/**
 * What a session needs of a connection, and the first frame on it, which says for which session it is. Owns no connection.
 * For native/session/, native/secure/ and native/participant/.
 */
import {
  decodeHello,
  encodeHello,
  frame,
  FrameDecoder,
  type Hello,
  linkVersion,
  ProtocolError,
  resumedStatus,
  resumeStatus,
} from "./frame.ts";

/**
 * An ordered, authenticated byte pipe to the peer. It carries only the bytes of one session. Once it is attached, the
 * session owns it and sets its three callbacks. None of them is called during a call to it, nor after {@link destroy}.
 */
export interface Carrier {
  /** SHA-256 of the certificate that the peer has shown, 64 hex digits. */
  readonly peer: string;
  /**
   * Bytes written that the kernel has not taken yet. Except for its hello, the session writes only when it is 0. It is
   * not 0 while the peer has not proved itself; nothing comes before that.
   */
  readonly queuedBytes: number;
  /** How many bytes one write should have: what the connection takes in a few ms, at most 128 KiB. */
  readonly batchBytes: number;
  /** Bytes a second that go on each way, as a relay says; Infinity for any other connection. */
  readonly maxRate: number;
  /** The chunk is valid until the callback returns. Whoever keeps some of it copies it. */
  onData: (chunk: Buffer) => void;
  /** {@link queuedBytes} is 0 again. */
  onWritten: () => void;
  /** Called once: nothing comes or goes any more. */
  onClose: (reason: string) => void;
  /** The caller must not change the bytes until they are written. */
  write(bytes: Buffer): void;
  /** No `onData` until {@link resume}. */
  pause(): void;
  resume(): void;
  /** Closes once the peer's kernel has all that was written, or has not taken it for a second. No callback follows. */
  finish(): void;
  /** Closes now; what was not sent is lost. No callback follows. */
  destroy(): void;
}

/** What the owner of a session is told of its carriers. */
export type CarrierEvent =
  /** There is none any more: streams wait. */
  | { is: "lost"; reason: string }
  /** It is kept, but another one should be sought. Told again while that has not helped. */
  | { is: "looks-dead"; quietMs: number }
  /** Frames go by another carrier now. `gapMs`: for how long none went; 0 if the old one was alive. */
  | { is: "moved"; carrier: Carrier; gapMs: number };

/** Time, which tests can replace. */
export interface Clock {
  /** Milliseconds that only grow. */
  now(): number;
  /** Calls `then` once. Returns what cancels it. */
  after(delayMs: number, then: () => void): () => void;
  /** Calls `then` once all that is ready in this turn of the event loop, on whatever socket, has been read. */
  endOfTurn(then: () => void): void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  after(delayMs, then) {
    const timer = setTimeout(then, Math.max(0, delayMs)); // what is late is below 0, of which Bun warns
    return () => clearTimeout(timer);
  },
  endOfTurn: (then) => void setImmediate(then),
};

/** The first frame of a carrier that the peer nominated. The carrier is paused. */
export interface Offer<C extends Carrier = Carrier> {
  carrier: C;
  hello: Hello;
  /** What has come after it. */
  rest: Buffer[];
}

/**
 * Waits for the peer's first frame. If it is no offer, or of another version of the protocol, the carrier is closed and the
 * reason is told. The caller handles `onClose`, and any deadline.
 */
export function readOffer<C extends Carrier>(
  carrier: C,
  onOffer: (offer: Offer<C>) => void,
  onRefused: (reason: string) => void,
): void {
  let hello: Hello | undefined;
  const rest: Buffer[] = [];
  const decoder = new FrameDecoder({
    onPiece: () => refuseType(frame.data),
    onFrame(type, _stream, payload) {
      if (type !== frame.resume) refuseType(type);
      hello = decodeHello(payload);
      decoder.stop();
    },
  });
  const read = (chunk: Buffer): Hello | undefined => {
    const unread = decoder.push(chunk);
    if (unread) rest.push(unread);
    return hello;
  };
  carrier.onData = (chunk) => {
    if (hello) return void rest.push(chunk);
    try {
      const heard = read(chunk);
      if (heard) offered({ carrier, hello: heard, rest }, onOffer, onRefused);
    } catch (error) {
      // Also what a callback throws: only this carrier ends.
      carrier.destroy();
      if (!(error instanceof ProtocolError)) return onRefused(`we failed at what the peer sent: ${error}`);
      onRefused(`the peer did not say which link it is for, but sent ${error.message}`);
    }
  };
}

function offered<C extends Carrier>(
  offer: Offer<C>,
  onOffer: (offer: Offer<C>) => void,
  onRefused: (reason: string) => void,
): void {
  const { carrier, hello } = offer;
  if (hello.version !== linkVersion) {
    refuseOffer(offer, resumedStatus.version);
    return onRefused(`the peer speaks version ${hello.version} of the link, not ${linkVersion}`);
  }
  carrier.pause();
  onOffer(offer);
}

function refuseType(type: number): never {
  throw new ProtocolError(`a frame of type ${type} first`);
}

/** Refuses the offer, and closes the carrier. */
export function refuseOffer({ carrier, hello }: Offer, status: number): void {
  const { epoch, sessionId } = hello;
  carrier.write(encodeHello(frame.resumed, { status, epoch, sessionId, processed: 0 }));
  carrier.finish();
}

/** What {@link judgeOffer} needs to know of a session. */
export interface KnownSession {
  readonly id: string;
  readonly state: "open" | "ending" | "ended";
  /** Whether the peer is known to have it, too. */
  readonly isConfirmed: boolean;
}

/**
 * What to do with an offer. `held` is the one session with that peer, if there is one. `resume`: the session accepts
 * it. `begin`: begin another session, because the peer's program has restarted. `refuse`: its session is not known
 * here, because our program has restarted. If both sides begin a session at once, the one with the lower id stays.
 */
export function judgeOffer(
  { hello, carrier }: Offer,
  held: KnownSession | undefined,
  fingerprint: string,
): "resume" | "begin" | "refuse" {
  if (carrier.peer !== fingerprint) return "refuse";
  const live = held?.state === "ended" ? undefined : held;
  if (live?.id === hello.sessionId) return "resume";
  if (hello.status !== resumeStatus.begin || hello.processed !== 0) return "refuse";
  return live && !live.isConfirmed && live.id < hello.sessionId ? "refuse" : "begin";
}

/** A message did not arrive, or a link has ended. The text is for the user. */
export class LinkError extends Error {}
