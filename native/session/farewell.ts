/**
 * How a session ends. In an orderly end each side says `finish` once all that its users wrote is framed. A side closes
 * once it has the other's `finish`, and the acknowledgement of its own. Owns the session's state, and the timeout of an
 * end that makes no progress. For native/session/session.ts and multiplexer.ts.
 */
import { type Edge } from "./edge.ts";
import { encodeFinish, type Gone, ProtocolError } from "./frame.ts";

/** An orderly end is given up after so long without progress. */
const finishPatienceMs = 5_000;

/**
 * Why a session ended. `us`, `peer`: who said so, and what. `restart`: the peer's program does not know it any more. `loss`:
 * the peer had given it up. `protocol`: a breach of it, or a failure of our own.
 */
export type SessionEnd = { by: "us" | "peer" | "protocol"; reason: string } | { by: "restart" | "loss" };

/** What it means that the peer does not go on with a session. */
export const endsOf: Readonly<Record<Gone, SessionEnd>> = {
  unknown: { by: "restart" },
  over: { by: "peer", reason: "disconnected" },
  lost: { by: "loss" },
};

/** The reason as users of streams are told it. */
export function inWords(end: SessionEnd): string {
  if ("reason" in end) return end.reason;
  return end.by === "restart" ? "peer-restarted" : "connection-lost";
}

/** `finish`: ours, or its number once it has one. */
type State =
  { is: "open" } | { is: "ending"; end: SessionEnd; finish: "unsaid" | "said" | number } | { is: "ended" };

export interface FarewellOwner {
  readonly edge: Edge;
  /** Whether all that users wrote is framed. */
  isFlushed(): boolean;
  /** `onFramed` learns its number. */
  say(finish: Buffer, onFramed: (number: number) => void): void;
  /** Frames of ours that were acknowledged, and of the peer's that have come. */
  progress(): { acknowledged: number; processed: number };
  acknowledgeNow(): void;
  /** An orderly end. */
  onOver(end: SessionEnd): void;
}

export class Farewell {
  readonly #owner: FarewellOwner;
  #state: State = { is: "open" };
  #hasPeerFinished = false;
  #cancelPatience: (() => void) | undefined;

  constructor(owner: FarewellOwner) {
    this.#owner = owner;
  }

  /** `ending`: one side has said that it ends; what is written from now on is not sent any more. */
  get state(): "open" | "ending" | "ended" {
    return this.#state.is;
  }
  /** Whether nothing more may come of the peer. */
  get hasPeerFinished(): boolean {
    return this.#hasPeerFinished;
  }
  /** Whether our `finish` has a number, and is not to be said again. */
  get isFramed(): boolean {
    return this.#state.is === "ending" && typeof this.#state.finish === "number";
  }
  get #isAcknowledged(): boolean {
    const finish = this.#state.is === "ending" ? this.#state.finish : undefined;
    return typeof finish === "number" && this.#owner.progress().acknowledged > finish;
  }

  begin(end: SessionEnd): void {
    this.#state = { is: "ending", end, finish: "unsaid" };
    this.#awaitProgress();
  }

  #awaitProgress(): void {
    const before = this.#owner.progress();
    this.#cancelPatience = this.#owner.edge.after(finishPatienceMs, () => {
      const { acknowledged, processed } = this.#owner.progress();
      if (acknowledged === before.acknowledged && processed === before.processed) this.#over();
      else this.#awaitProgress();
    });
  }

  sayOnceFlushed(): void {
    const state = this.#state;
    if (state.is !== "ending" || state.finish !== "unsaid" || !this.#owner.isFlushed()) return;
    state.finish = "said";
    const reason = state.end.by === "us" ? state.end.reason : "";
    this.#owner.say(encodeFinish(reason), (number) => (state.finish = number));
  }

  /** The peer's `finish` has come. */
  peerFinished(): void {
    if (this.#hasPeerFinished) throw new ProtocolError("a second `finish`");
    this.#hasPeerFinished = true;
    // It must count as processed before it is acknowledged, and before all ends.
    this.#owner.edge.soon(() => {
      this.#owner.acknowledgeNow();
      this.endOnceFinished();
    });
  }

  endOnceFinished(): void {
    if (this.#hasPeerFinished && this.#isAcknowledged) this.#over();
  }

  /** There is no carrier. If one side has said all, the other may have closed before its last frame came. */
  endIfSaid(): boolean {
    const isOver = this.#state.is === "ending" && (this.#hasPeerFinished || this.#isAcknowledged);
    if (isOver) this.#over();
    return isOver;
  }

  #over(): void {
    if (this.#state.is === "ending") this.#owner.onOver(this.#state.end);
  }

  ended(): void {
    this.#state = { is: "ended" };
    this.#cancelPatience?.();
  }
}
