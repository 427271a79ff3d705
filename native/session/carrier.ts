/**
 * What a session needs of a connection, and the first frame on one: which session it is for. Pure: the connection is
 * somebody else's. For native/session/, and for whoever makes carriers.
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
 * An ordered, authenticated byte pipe to the peer, with no other bytes in it than the session's. The session that it
 * was attached to owns it from then on, and takes its three callbacks over. None of them is called from within a call
 * to it, nor after {@link destroy}.
 */
export interface Carrier {
  /** SHA-256 of the certificate that the peer has shown, 64 hex digits. */
  readonly peer: string;
  /**
   * Bytes taken that the kernel has not taken yet. Only when there are none does the session write again, but for its
   * hello. Not 0, either, while the peer has not proved itself, and nothing comes till then.
   */
  readonly queuedBytes: number;
  /** How many bytes one write should have, at most 64 KiB: what the connection takes in a few milliseconds. */
  readonly batchBytes: number;
  /** The chunk stays as it is until its receiver returns; whoever keeps some of it copies it. */
  onData: (chunk: Buffer) => void;
  /** {@link queuedBytes} is 0 again. */
  onWritten: () => void;
  /** Called once: nothing comes or goes any more. */
  onClose: (reason: string) => void;
  /** The bytes do not change until they are written. */
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
  /** It is kept, but another one should be sought. Said again while that has not helped. */
  | { is: "looks-dead"; quietMs: number }
  /** Frames go by another one now. `gapMs`: how long nothing went; 0 when the old one was alive. */
  | { is: "moved"; carrier: Carrier; gapMs: number };

/** Time, so that tests can make it. */
export interface Clock {
  /** Milliseconds that only grow. */
  now(): number;
  /** Calls `then` once; what it returns takes that back. */
  after(delayMs: number, then: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  after(delayMs, then) {
    const timer = setTimeout(then, delayMs);
    return () => clearTimeout(timer);
  },
};

/** The first frame of a carrier that the peer nominated. The carrier is paused. */
export interface Offer<C extends Carrier = Carrier> {
  carrier: C;
  hello: Hello;
  /** What came behind it. */
  rest: Buffer[];
}

/**
 * Waits for the peer's first frame. One that is no offer, or of another version of the protocol, closes the carrier
 * and gives the reason; its `onClose` and any deadline are the caller's.
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
      // Also what whoever was told throws: it costs this carrier, and nothing else of the program.
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

/** Says no, and closes the carrier. */
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
 * What to do with an offer, for the holder of the one session with that peer, or of none: let the session accept it;
 * begin another one (what is held is over: the peer's program has restarted); or refuse it, for its session is not
 * known here (our program has restarted). When both sides begin one at a time, the lower id is the one that stays.
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

/** A message that did not arrive, or a link that ended; the text is for the user. */
export class LinkError extends Error {}
