/**
 * What the methods of a participant take and give. Types only. For participant.ts and native/terminal/.
 */
import type { Purpose } from "../session/link.ts";
import type { Abortable } from "../shares/abort.ts";
import type { Pipe } from "../uses/pipe.ts";
import type { PeerLink, PeerStream } from "./peer-link.ts";

/** Away: it has not joined, or has left. Lost: it was registered, and comes back by itself. */
export type ParticipantState = "away" | "joining" | "registered" | "lost" | "quit";

export interface JoinOptions extends Abortable {
  /** Who is punched towards at once, or as soon as it registers; at most 8. */
  wants?: readonly string[] | undefined;
}

export interface ConnectOptions extends Abortable {
  /** Whether it first waits until the peer is here. */
  wait?: boolean;
  /** Whether each attempt is an `attempt` event. */
  verbose?: boolean;
}

export interface SendOptions extends Abortable {
  /** Whether it waits for a link that is kept. */
  wait?: boolean;
  /** Called about four times a second while it goes on, and at its end. */
  onProgress?: ((progress: Progress) => void) | undefined;
}

export interface ForwardOptions extends Abortable {
  /** Whether the link is kept, as long as the forward is there (true). */
  keep?: boolean;
  /** Whether it is a SOCKS5 proxy to whatever the peer allows, `[BIND:]PORT:PEER`. */
  socks?: boolean;
  /** Whether the peer listens, where it allows that: `[BIND:]PORT:PEER:[HOST:]PORT`, with a target of ours. */
  remote?: boolean;
}

export interface PipeOptions extends Abortable {
  /** What is reached there, `[HOST:]PORT`, if the peer allows it. Without it: the pipe that the peer makes with us. */
  target?: string | undefined;
}

/** Who has opened a stream, and what for. */
export interface StreamFrom {
  /** Its id, as long as it is in the room. */
  readonly peer: number;
  readonly name: string;
  /** SHA-256 of its certificate, 64 hex digits. */
  readonly fingerprint: string;
  readonly link: PeerLink;
  /** What it was opened with: `use`, and whatever else the peer has said. It is the peer's word: check it. */
  readonly purpose: Purpose;
}
export type StreamHandler = (stream: PeerStream, from: StreamFrom) => void | Promise<void>;

/** A wish for the link with one peer, until it is disposed of. A link that is there by then stays. */
export interface Keeper extends Disposable {
  /** Resolves with the first link. Rejects if the first attempt fails; others follow all the same. */
  readonly first: Promise<void>;
}

/** A port of this host that leads to what a peer reaches, until it is disposed of. */
export interface Forwarded extends Disposable {
  /** Where it listens, such as `127.0.0.1:8080`. */
  readonly listen: string;
  readonly peer: string;
}

/** Our ends of a pipe. Without a target the peer opens `incoming` for what it sends. */
export interface PipeEnds {
  readonly sending: Pipe;
  readonly incoming?: Promise<Pipe>;
}

/** How far a transfer is. What the receiver had already counts, too. */
export interface Progress {
  readonly files: number;
  readonly filesDone: number;
  readonly bytes: number;
  readonly bytesDone: number;
}
