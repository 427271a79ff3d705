/**
 * How an introducer ends in order: everyone is told to come back, each once no introduction of his is under way. It
 * owns how far that is. For introducer.ts alone.
 *
 *   open → counting → waiting ⇄ dismissing → over
 */
import { byTurns } from "../shares/turns.ts";
import type { Guard } from "./guard.ts";
import { drainMs } from "./limits.ts";
import type { Members } from "./members.ts";
import type { Member, Session } from "./session.ts";

/** The pause before participants come back: a random one for each, so that they do not come all at once. */
const minRetryInMs = 500;
const maxRetryInMs = 3000;

/** The pause after which one that is sent away comes back. */
export function retryInMs(): number {
  return Math.round(minRetryInMs + Math.random() * (maxRetryInMs - minRetryInMs));
}

/** What it ends. */
interface Owner {
  readonly guard: Guard;
  readonly members: Members;
  isPunching(member: Member): boolean;
  /** Relayed links under way or offered, and whether one is offered and still to be taken. */
  relays(): { size: number; isAwaited: boolean } | undefined;
  /** By turns. */
  close(sessions: Iterable<Session>, reason: string): Promise<void>;
  /** Its rooms may live elsewhere from now on. */
  leaveRooms(): Promise<void>;
  stopListening(): void;
}

type State =
  | { is: "open" }
  | { is: "counting" | "waiting" | "dismissing"; reason: string; untilMs: number }
  | { is: "over"; reason?: string };

export class Drain {
  readonly #owner: Owner;
  readonly #over = Promise.withResolvers<void>();
  #state: State = { is: "open" };

  constructor(owner: Owner) {
    this.#owner = owner;
  }

  /** Why nobody is registered any more; undefined while everybody is. */
  get reason(): string | undefined {
    return "reason" in this.#state ? this.#state.reason : undefined;
  }

  #become(state: State): void {
    if (this.#state.is !== "over") this.#state = state;
    if (state.is === "over") this.#over.resolve();
  }

  /** Resolves once introductions and relayed links are over, or after {@link drainMs}. */
  async begin(reason: string): Promise<void> {
    const { guard, members, isPunching } = this.#owner;
    const draining = { reason, untilMs: performance.now() + drainMs };
    this.#become({ is: "counting", ...draining });
    const participants = members.size;
    let punching = 0;
    await byTurns(members.values(), (member) => void (punching += Number(isPunching(member))));
    const relays = this.#owner.relays()?.size ?? 0;
    guard.emit({ event: "draining", reason, participants, punching, relays });
    await this.#owner.leaveRooms(); // first, so that who is sent away finds its room free elsewhere
    this.#become({ is: "waiting", ...draining });
    this.tick();
    await this.#over.promise;
  }

  /** Waits no longer for what is still under way. */
  end(): void {
    const { reason } = this;
    this.#become({ is: "over", ...(reason !== undefined && { reason }) });
  }

  /** Sends away whoever waits for nothing here. All are silenced first, so that nobody hears of the others' leaving. */
  tick(): void {
    if (this.#state.is !== "waiting") return;
    const { reason, untilMs } = this.#state;
    this.#become({ ...this.#state, is: "dismissing" });
    const { guard, members, isPunching } = this.#owner;
    const isLate = performance.now() >= untilMs;
    const leaving: Session[] = [];
    const dismiss = (member: Member) => {
      const { session } = member;
      if (session.isOver || (!isLate && isPunching(member))) return;
      session.silence({ type: "bye", reason, retryInMs: retryInMs() });
      leaving.push(session);
    };
    void byTurns(members.values(), (member) => guard.serve(member.session, () => dismiss(member)))
      .then(() => this.#owner.close(leaving, reason))
      .then(() => this.#dismissed(isLate));
  }

  #dismissed(isLate: boolean): void {
    if (this.#state.is !== "dismissing") return;
    this.#become({ ...this.#state, is: "waiting" });
    const relays = this.#owner.relays();
    const isPunching = this.#owner.members.size > 0 || relays?.isAwaited;
    // Who is to be relayed still has to connect. Everyone else shall find the next introducer at this port.
    if (!isPunching) this.#owner.stopListening();
    if (isLate || (!isPunching && (relays?.size ?? 0) === 0)) this.end();
  }
}
