/**
 * The descriptors that the connections of forwards and pipes hold, of which a program has a fixed number: at most half
 * of them, in equal parts where they get scarce, and only a few for peers whose link has been broken for a while. Owns
 * the count and one timer; each socket is its connection's, which closes it when told. For native/uses/serve.ts and
 * forward.ts.
 */
import { descriptorLimit } from "../host/socket.ts";

/** The rest is for files, for punching (half of a small limit), and for the control channel to come back. */
const part = 1 / 2;
/** How long a break may last before it costs connections. */
const breakMs = 10_000;
/** What waits on for a link that may come back, such as a shell: of one peer, and the part of all. */
const maxWaitingOfOne = 16;
const waitingPart = 1 / 4;
const sweepMs = 1_000;

export interface Holder {
  /** Whose part it is of. */
  readonly of: string;
  /** Whether its link has no channel now. */
  isWaiting(): boolean;
  /** To close its socket at once. False: it can't, or need not. */
  giveUp(reason: string): boolean;
}

interface Held {
  readonly holder: Holder;
  /** performance.now(); undefined while it does not wait. */
  waitingSince: number | undefined;
}

export class Descriptors {
  readonly #max: number;
  /** By whose they are; the oldest first. */
  readonly #held = new Map<string, Set<Held>>();
  #total = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(limit: number) {
    this.#max = Math.max(1, Math.floor(limit * part));
  }

  /**
   * One more: what gives it back once the socket is closed; undefined when that peer has its part. One alone gets half,
   * n get one of n + 1 parts each; who had more before others came gives up his newest for them.
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

  /** From whoever has most, and more than so many. */
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

/** Those of this program: its limit is one, whatever runs in it. */
export function descriptors(): Descriptors {
  return (ofProgram ??= new Descriptors(descriptorLimit()));
}
