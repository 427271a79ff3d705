/**
 * The descriptors that connections of forwards and pipes hold. A program has a fixed number of descriptors. These
 * connections get at most half of them, in equal shares if they are scarce, and only a few if the link of their peer has
 * been broken for a while. Owns the count and one timer. A connection owns its socket, and closes it when told. For
 * native/uses/serve.ts and forward.ts.
 */
import { descriptorLimit } from "../host/socket.ts";

/** The rest is for files, for punching (which may take half of a small limit), and for the control channel. */
const part = 1 / 2;
/** How long a link may be broken before connections are given up. */
const breakMs = 10_000;
/** So many connections, such as shells, still wait for the link to come back: of one peer, and as a part of all. */
const maxWaitingOfOne = 16;
const waitingPart = 1 / 4;
const sweepMs = 1_000;

export interface Holder {
  /** In whose share it is counted: a peer's fingerprint. */
  readonly of: string;
  /** Whether its link has no channel now. */
  isWaiting(): boolean;
  /** Closes its socket at once. Returns false if it can't, or need not. */
  giveUp(reason: string): boolean;
}

interface Held {
  readonly holder: Holder;
  /** performance.now(); undefined while it does not wait. */
  waitingSince: number | undefined;
}

export class Descriptors {
  readonly #max: number;
  /** By peer; the oldest first. */
  readonly #held = new Map<string, Set<Held>>();
  #total = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(limit: number) {
    this.#max = Math.max(1, Math.floor(limit * part));
  }

  /**
   * Takes one more. Returns what gives it back once the socket is closed; undefined if that peer has its share. Of n peers
   * each gets a share of 1/(n + 1). A peer that had more before others came gives up its newest ones for them.
   */
  take(holder: Holder): (() => void) | undefined {
    const own = this.#held.get(holder.of);
    const holders = this.#held.size + (own ? 0 : 1);
    if ((own?.size ?? 0) >= Math.max(1, Math.floor(this.#max / (holders + 1)))) return undefined;
    if (this.#total >= this.#max && !this.#takeFromRichest((own?.size ?? 0) + 1)) return undefined;
    const held: Held = { holder, waitingSince: undefined };
    const all = this.#held.get(holder.of) ?? new Set();
    this.#held.set(holder.of, all.add(held));
    this.#total++;
    this.#timer ??= setInterval(() => this.#sweep(), sweepMs).unref();
    return () => this.#give(held);
  }

  #give(held: Held): void {
    const { of } = held.holder;
    const all = this.#held.get(of);
    if (!all?.delete(held)) return;
    this.#total--;
    if (all.size === 0) this.#held.delete(of);
    if (this.#total > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Takes one from the peer that has most, if it has more than `min`. */
  #takeFromRichest(min: number): boolean {
    const [richest] = [...this.#held.values()].sort((a, b) => b.size - a.size);
    if (!richest || richest.size <= min) return false;
    for (const held of [...richest].reverse()) {
      if (!held.holder.giveUp("others need a connection, too")) continue;
      this.#give(held);
      return true;
    }
    return false;
  }

  #sweep(): void {
    const now = performance.now();
    let total = 0;
    for (const all of [...this.#held.values()]) {
      let kept = 0;
      for (const held of [...all]) {
        held.waitingSince = held.holder.isWaiting() ? (held.waitingSince ?? now) : undefined;
        if (held.waitingSince === undefined || now - held.waitingSince < breakMs) continue;
        if (kept >= maxWaitingOfOne || total >= this.#max * waitingPart)
          held.holder.giveUp("the link has been broken for too long");
        else (total++, kept++);
      }
    }
  }
}

let ofProgram: Descriptors | undefined;

/** The descriptors of this program. All participants in one program share its limit. */
export function descriptors(): Descriptors {
  return (ofProgram ??= new Descriptors(descriptorLimit()));
}
