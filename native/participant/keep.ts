/**
 * Links that are kept: each is made, and made again whenever it has ended, as long as the user or a forward wants it.
 * Owns one keeper for each peer. Knows no registration, and prints nothing. For participant.ts.
 */
import { printable, ToldError, UserError } from "../../protocol.ts";
import type { Link } from "../session/link.ts";
import { notLinked } from "./refused.ts";

/** The pause before a link that failed or has ended is made again: doubled each time, half of it random. */
const minPauseMs = 500;
const maxPauseMs = 30_000;
/** An introducer that is lost during the first attempt is waited for so long, and then there is one more. */
const introducerBackMs = 15_000;
/** After a link that lasted so long, the pause begins with the shortest again. */
const lastingMs = 30_000;

/** What it needs of a participant. */
export interface Links {
  /** The name of the peer that a word means now. Ids change when the peer or the introducer comes back. */
  nameOf(word: string): string;
  /** Resolves once that peer is there. Rejects if the signal aborts. */
  waitFor(name: string, signal: AbortSignal): Promise<void>;
  linkWith(name: string): Link | undefined;
  connect(name: string): Promise<Link>;
  /** Resolves to the link as soon as there is one. Rejects if the signal aborts. */
  whenLinked(name: string, signal: AbortSignal): Promise<Link>;
  /** Resolves once it has ended, or the name is another's. */
  whenOver(name: string, link: Link, signal: AbortSignal): Promise<void>;
}

interface Keeper {
  /** Who wants the link, each once. */
  readonly wants: Set<string>;
  readonly over: AbortController;
  /** Settled with the outcome of the first attempt. */
  readonly first: Promise<void>;
}

export class Keep {
  readonly #links: Links;
  /** By the peer's name, in small letters: no two peers differ by that. "" is the only other one. */
  readonly #keepers = new Map<string, Keeper>();

  constructor(links: Links) {
    this.#links = links;
  }

  /** The link with that peer, as soon as there is one. Rejects if none is kept, or no longer. */
  async linked(word: string): Promise<Link> {
    const name = this.#links.nameOf(word);
    const keeper = this.#find(word);
    if (keeper) return this.#links.whenLinked(name, keeper.over.signal);
    throw notLinked(name);
  }

  /**
   * From now on `want` wants a link with that peer. Resolves once there is one. Rejects with a {@link UserError} if the
   * first attempt fails; others follow all the same.
   */
  keep(word: string, want: string): Promise<void> {
    const name = this.#links.nameOf(word);
    let keeper = this.#find(word);
    if (!keeper) {
      const over = new AbortController();
      const { promise: first, resolve, reject } = Promise.withResolvers<void>();
      first.catch(() => {}); // a forward does not wait for it
      keeper = { wants: new Set(), over, first };
      this.#keepers.set(name.toLowerCase(), keeper);
      void this.#run(name, over.signal, resolve, reject);
    }
    keeper.wants.add(want);
    return keeper.first;
  }

  /** `want` no longer wants it. Once nothing wants the link it is not made again; a link that is there stays. */
  release(word: string, want: string): void {
    const keeper = this.#find(word);
    keeper?.wants.delete(want);
    if (keeper?.wants.size === 0) this.giveUp(word);
  }

  /** Stops keeping it, whoever wanted it. Returns whether anything did. */
  giveUp(word: string): boolean {
    const keeper = this.#find(word);
    const name = this.#links.nameOf(word);
    keeper?.over.abort(
      new ToldError(`a link with ${printable(name)} is not sought any more`, { code: "cancelled" }),
    );
    for (const [key, one] of this.#keepers) if (one === keeper) this.#keepers.delete(key);
    return keeper !== undefined;
  }

  close(): void {
    for (const name of this.#keepers.keys()) this.giveUp(name);
  }

  /** Who was kept before anybody was here, without a name, has one now. */
  #find(word: string): Keeper | undefined {
    const known = this.#keepers.get(this.#links.nameOf(word).toLowerCase());
    return known ?? (word === "" ? this.#keepers.get("") : undefined);
  }

  async #run(
    word: string,
    signal: AbortSignal,
    resolve: () => void,
    reject: (error: unknown) => void,
  ): Promise<void> {
    let [name, pauseMs] = [word, minPauseMs];
    let giveUp: NodeJS.Timeout | undefined;
    signal.addEventListener("abort", () => {
      clearTimeout(giveUp);
      reject(signal.reason);
    });
    while (!signal.aborted) {
      const startedAt = performance.now();
      try {
        await this.#links.waitFor(name, signal);
        name ||= this.#links.nameOf(""); // others may come
        const link = this.#links.linkWith(name) ?? (await this.#links.connect(name));
        clearTimeout(giveUp);
        resolve();
        await this.#links.whenOver(name, link, signal);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        const isExcused = error.code === "introducer-lost" && giveUp === undefined;
        if (isExcused) giveUp = setTimeout(() => reject(error), introducerBackMs);
        else reject(error); // what goes wrong later is told as it happens
      }
      const hasLasted = performance.now() - startedAt >= lastingMs;
      pauseMs = hasLasted ? minPauseMs : Math.min(maxPauseMs, pauseMs * 2);
      await pause(pauseMs * (0.5 + Math.random()), signal);
    }
  }
}

/** Waits. Ends early if the signal aborts. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const end = () => resolve();
  const timer = setTimeout(end, ms);
  signal.addEventListener("abort", end);
  await promise;
  clearTimeout(timer);
  signal.removeEventListener("abort", end);
}
