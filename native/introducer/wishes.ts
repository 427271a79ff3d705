/**
 * Who wants to be introduced to whom as soon as that one registers. A wish is said in `register`. It is fulfilled at once if
 * somebody of that name is in the room, and else kept for a while: for no longer than whoever wishes stays. Owns the wishes
 * that are kept. What an introduction costs is for others. For
 * native/introducer/registration.ts.
 */
import { Refusal } from "../../protocol.ts";
import type { Guard } from "./guard.ts";
import type { Limits } from "./limits.ts";
import type { Member } from "./session.ts";

/** As with `connect`: throws a {@link Refusal}. */
type Ask = (asker: Member, target: Member) => void;
type WishLimits = Pick<Limits, "wishKeptMs" | "wishesPerName">;

export class Wishes {
  readonly #limits: WishLimits;
  readonly #guard: Pick<Guard, "serve">;
  readonly #ask: Ask;
  readonly #now: () => number;
  /** Whom each waits for. */
  readonly #names = new Map<Member, string[]>();
  /** By room, and by the name that is wished for: who wishes, and until when. The first to wish comes first. */
  readonly #rooms = new Map<string, Map<string, Map<Member, number>>>();

  constructor(
    limits: WishLimits,
    guard: Pick<Guard, "serve">,
    ask: Ask,
    now: () => number = () => performance.now(),
  ) {
    this.#limits = limits;
    this.#guard = guard;
    this.#ask = ask;
    this.#now = now;
  }

  /** Fulfils what others have wished of somebody who has registered, and what it wishes itself. */
  registered(member: Member, wants: readonly string[], room: Iterable<Member>): void {
    const { name } = member.peer;
    for (const [asker, untilMs] of this.#take(member.room, name))
      if (untilMs > this.#now()) this.#introduce(asker, member);
    const wanted = new Set(wants);
    wanted.delete(name);
    if (wanted.size === 0) return;
    for (const target of room) if (wanted.delete(target.peer.name)) this.#introduce(member, target);
    for (const absent of wanted) this.#keep(member, absent);
  }

  /** It has left: it wishes for nobody any more. */
  forget(member: Member): void {
    const names = this.#rooms.get(member.room);
    for (const name of this.#names.get(member) ?? []) {
      const askers = names?.get(name);
      askers?.delete(member);
      if (askers?.size === 0) names?.delete(name);
    }
    if (names?.size === 0) this.#rooms.delete(member.room);
    this.#names.delete(member);
  }

  /** It costs what a `connect` costs, and is refused like one. */
  #introduce(asker: Member, target: Member): void {
    const { session } = asker;
    this.#guard.serve(session, () => {
      try {
        this.#ask(asker, target);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        session.refuse(error, { request: "connect", peer: target.peer.id });
      }
    });
  }

  #keep(member: Member, name: string): void {
    const { wishKeptMs, wishesPerName } = this.#limits;
    const names = this.#rooms.get(member.room) ?? new Map<string, Map<Member, number>>();
    const askers = names.get(name) ?? new Map<Member, number>();
    for (const [asker, untilMs] of askers) if (untilMs <= this.#now()) askers.delete(asker);
    // Whoever comes must not be introduced to a crowd. The others see it in their list, and ask.
    if (askers.size >= wishesPerName) return;
    this.#names.set(member, [...(this.#names.get(member) ?? []), name]);
    askers.set(member, this.#now() + wishKeptMs);
    this.#rooms.set(member.room, names.set(name, askers));
  }

  #take(room: string, name: string): Map<Member, number> {
    const names = this.#rooms.get(room);
    const askers = names?.get(name) ?? new Map<Member, number>();
    names?.delete(name);
    if (names?.size === 0) this.#rooms.delete(room);
    return askers;
  }

  /** How many are kept. */
  get size(): number {
    let count = 0;
    for (const names of this.#rooms.values()) for (const askers of names.values()) count += askers.size;
    return count;
  }
}
