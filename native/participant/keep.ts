/**
 * Links that are to be there: each is made, and made again whenever it has ended, for as long as something wants it: the
 * user, or a forward. Owns the one keeper of each peer; knows no registration, and prints nothing. For participant.ts.
 */
import { printable, ToldError, UserError } from "../../protocol.ts";
import type { Link } from "../session/link.ts";

/** The pause before a link that was not made, or has ended, is sought again: doubled each time, half of it jitter. */
const minPauseMs = 500;
const maxPauseMs = 30_000;
/** A link that lasted this long was worth coming back to: the pause begins small again. */
const lastingMs = 30_000;

/** What it asks of a participant. */
export interface Links {
  /** What a peer is called, by whatever word names it now: ids change when it, or the introducer, comes back. */
  nameOf(word: string): string;
  /** Resolves once that peer is there; rejects at once when the signal says so. */
  waitFor(name: string, signal: AbortSignal): Promise<void>;
  linkWith(name: string): Link | undefined;
  connect(name: string): Promise<Link>;
  /** Resolves to the link as soon as there is one; rejects at once when the signal says so. */
  whenLinked(name: string, signal: AbortSignal): Promise<Link>;
}

export const notLinked = (name: string): string =>
  `not linked with ${printable(name)}; \`connect ${printable(name)}\` first`;

interface Keeper {
  /** Why the link is wanted, each once. */
  readonly wants: Set<string>;
  readonly over: AbortController;
  /** Settled with what becomes of the first try. */
  readonly first: Promise<void>;
}

export class Keep {
  readonly #links: Links;
  /** By the peer's name. */
  readonly #keepers = new Map<string, Keeper>();

  constructor(links: Links) {
    this.#links = links;
  }

  /** The link with that peer, as soon as there is one; rejects where none is kept, or no longer is. */
  async linked(word: string): Promise<Link> {
    const name = this.#links.nameOf(word);
    const keeper = this.#keepers.get(name);
    if (keeper) return this.#links.whenLinked(name, keeper.over.signal);
    throw new UserError(notLinked(name));
  }

  /**
   * From now on `want` wants a link with that peer. Resolves when there has been one; rejects with a {@link UserError} when
   * the first try fails, after which others follow all the same.
   */
  keep(word: string, want: string): Promise<void> {
    const name = this.#links.nameOf(word);
    let keeper = this.#keepers.get(name);
    if (!keeper) {
      const over = new AbortController();
      const { promise: first, resolve, reject } = Promise.withResolvers<void>();
      first.catch(() => {}); // a forward does not wait for it
      keeper = { wants: new Set(), over, first };
      this.#keepers.set(name, keeper);
      void this.#run(name, over.signal, resolve, reject);
    }
    keeper.wants.add(want);
    return keeper.first;
  }

  /** `want` does not want it any more: with the last one the link is kept no longer. What there is stays. */
  release(word: string, want: string): void {
    const keeper = this.#keepers.get(this.#links.nameOf(word));
    keeper?.wants.delete(want);
    if (keeper?.wants.size === 0) this.giveUp(word);
  }

  /** Nothing wants it any more; returns whether anything did. */
  giveUp(word: string): boolean {
    const name = this.#links.nameOf(word);
    this.#keepers
      .get(name)
      ?.over.abort(new ToldError(`a link with ${printable(name)} is not sought any more`));
    return this.#keepers.delete(name);
  }

  close(): void {
    for (const name of this.#keepers.keys()) this.giveUp(name);
  }

  async #run(
    name: string,
    signal: AbortSignal,
    resolve: () => void,
    reject: (error: unknown) => void,
  ): Promise<void> {
    signal.addEventListener("abort", () => reject(signal.reason));
    let pauseMs = minPauseMs;
    while (!signal.aborted) {
      const startedAt = performance.now();
      try {
        await this.#links.waitFor(name, signal);
        const link = this.#links.linkWith(name) ?? (await this.#links.connect(name));
        resolve();
        await link.ended;
      } catch (error) {
        reject(error); // what goes wrong later is told as it happens
        if (!(error instanceof UserError)) throw error;
      }
      const hasLasted = performance.now() - startedAt >= lastingMs;
      pauseMs = hasLasted ? minPauseMs : Math.min(maxPauseMs, pauseMs * 2);
      await pause(pauseMs * (0.5 + Math.random()), signal);
    }
  }
}

/** Ends early when the signal says so. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const end = () => resolve();
  const timer = setTimeout(end, ms);
  signal.addEventListener("abort", end);
  await promise;
  clearTimeout(timer);
  signal.removeEventListener("abort", end);
}
