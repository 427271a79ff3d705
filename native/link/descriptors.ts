/**
 * The descriptors that the connections of forwards and pipes hold, of which a program has a fixed number: at most half
 * of them, in fair shares, and only a few for peers whose link has been broken for a while. Owns the count and one timer; each
 * socket is its connection's, which must close it when told. For native/link/serve.ts and forward.ts.
 */
import { descriptorLimit } from "../socket.ts";
import { FairShare } from "./share.ts";

/** The rest is for files, for punching (half of a small limit), and for the control channel to come back. */
const part = 1 / 2;
/** How long a break may last before it costs connections. */
const breakMs = 10_000;
/** What waits on for a link that may come back, such as a shell: of one peer, and the part of all. */
const maxWaitingOfOne = 16;
const waitingPart = 1 / 4;
const sweepMs = 1_000;

export interface Holder {
  /** Whose share it is of. */
  readonly of: string;
  /** Whether its link has no channel now. */
  isWaiting(): boolean;
  /** To close its socket. */
  giveUp(reason: string): void;
}

interface Held {
  readonly holder: Holder;
  /** performance.now(); undefined while it does not wait. */
  waitingSince: number | undefined;
}

export class Descriptors {
  readonly #share: FairShare;
  readonly #max: number;
  /** The oldest first. */
  readonly #held = new Set<Held>();
  #timer: NodeJS.Timeout | undefined;

  constructor(limit: number) {
    this.#max = Math.max(1, Math.floor(limit * part));
    this.#share = new FairShare(this.#max);
  }

  /** One more: what gives it back once the socket is closed; undefined when that peer has its share. */
  take(holder: Holder): (() => void) | undefined {
    const give = this.#share.take(holder.of);
    if (!give) return undefined;
    const held: Held = { holder, waitingSince: undefined };
    this.#held.add(held);
    this.#timer ??= setInterval(() => this.#sweep(), sweepMs).unref();
    return () => {
      give();
      this.#held.delete(held);
      if (this.#held.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
    };
  }

  #sweep(): void {
    const now = performance.now();
    const kept = new Map<string, number>();
    let total = 0;
    for (const held of [...this.#held]) {
      const { holder } = held;
      held.waitingSince = holder.isWaiting() ? (held.waitingSince ?? now) : undefined;
      if (held.waitingSince === undefined || now - held.waitingSince < breakMs) continue;
      const ofOne = kept.get(holder.of) ?? 0;
      if (ofOne >= maxWaitingOfOne || total >= this.#max * waitingPart) {
        holder.giveUp("the link has been broken for too long");
        continue;
      }
      kept.set(holder.of, ofOne + 1);
      total++;
    }
  }
}

let ofProgram: Descriptors | undefined;

/** Those of this program: its limit is one, whatever runs in it. */
export function descriptors(): Descriptors {
  return (ofProgram ??= new Descriptors(descriptorLimit()));
}
