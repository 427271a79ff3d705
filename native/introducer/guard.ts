/**
 * What guards the introducer from its own mistakes: each costs the session that is served, and nobody else, and does not go
 * unseen. It owns what was thrown while something is served, and whom events are told to. For introducer.ts and
 * native/introducer/.
 */
import type { Endpoint } from "../../protocol.ts";
import type { IntroducerEvent } from "./events.ts";

/** Whom a mistake costs something. */
export interface Served {
  readonly observed: Endpoint;
  /** Ends it, whatever state it is in. */
  fail(): void;
}

/** What was thrown while something was served. */
interface Mistake {
  readonly error: unknown;
}
const none: Mistake = { error: undefined };

export class Guard {
  readonly #onEvent: (event: IntroducerEvent) => void;
  /** Of what is being served now; undefined while nothing is. */
  #mistake: Mistake | undefined = undefined;

  constructor(onEvent: (event: IntroducerEvent) => void) {
    this.#onEvent = onEvent;
  }

  /**
   * Does what serves a session, or nobody in particular. Whatever is done in a callback, a timer or a promise goes
   * through here: what it throws is our mistake, and costs that session and nobody else.
   */
  serve(session: Served | undefined, work: () => void): void {
    const outer = this.#mistake;
    this.#mistake = none;
    try {
      work();
    } catch (error) {
      this.#mistake = { error };
    }
    const { error } = this.#mistake;
    const isMistaken = this.#mistake !== none;
    this.#mistake = outer;
    if (isMistaken) this.failed(session, error);
  }

  failed(session: Served | undefined, error: unknown): void {
    this.report(error, session?.observed);
    session?.fail();
  }

  /** The listener may throw. Then what is under way is still done to its end, and counts as a mistake afterwards. */
  emit(event: IntroducerEvent): void {
    try {
      this.#onEvent(event);
    } catch (error) {
      if (this.#mistake) this.#mistake = { error };
      else this.report(error);
    }
  }

  report(error: unknown, address?: Endpoint): void {
    const message = error instanceof Error ? error.message : String(error);
    try {
      this.#onEvent({ event: "error", ...(address !== undefined && { address }), message });
    } catch {
      // whoever can't hear of an error can't be told of that either
    }
  }
}
