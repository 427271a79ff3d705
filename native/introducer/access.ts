/**
 * Who may register where the introducer has a key: whoever proves to have it, too. Each proof lets in once. One that is of
 * another time, or was used, gets a challenge: so clocks need not be right, and what was overheard lets nobody in. Owns the
 * proofs that were used and the challenges. For native/introducer/registration.ts.
 */
import { Refusal } from "../../protocol.ts";
import { type Access, accessProof, type Entrant } from "../shares/access.ts";
import { stamps } from "../shares/clock.ts";
import { isSameMac } from "../shares/mac.ts";
import { newToken, RegisterAgain, type Session } from "./session.ts";

/** How far the clocks may be apart. If it is more, registering takes one round trip more. */
export const maxSkewMs = 60_000;
/** Of proofs that were used. If there are more, registering takes one round trip more. Only who has the key can make any. */
const maxUsed = 10_000;

export class Gatekeeper {
  readonly #key: string;
  /** Until when each could be used again, by performance.now(). The oldest comes first. */
  readonly #used = new Map<string, number>();
  readonly #challenges = new WeakMap<Session, string>();

  constructor(key: string) {
    this.#key = key;
  }

  /** Throws a {@link Refusal} unless it has the key. */
  check(session: Session, entrant: Entrant & { readonly access?: Access }): void {
    const { access } = entrant;
    if (!access) throw new Refusal("key", "this introducer is for those who have its key");
    const challenge = this.#challenges.get(session);
    if (!isSameMac(access.proof, accessProof(this.#key, entrant, challenge ?? access.at)))
      throw new Refusal("key", "that is not the key of this introducer");
    if (challenge !== undefined || this.#isFirst(access)) return;
    const fresh = newToken();
    this.#challenges.set(session, fresh);
    const why = "the proof of the key is of another time, or was used already: prove it for this connection";
    throw new RegisterAgain("key", why, { challenge: fresh });
  }

  /** Whether a right proof is of now, and was not used. From now on it was. */
  #isFirst({ at, proof }: Access): boolean {
    const now = performance.now();
    for (const [old, untilMs] of this.#used) {
      if (untilMs > now) break;
      this.#used.delete(old);
    }
    const isOfNow = Math.abs(stamps.now - at) <= maxSkewMs;
    if (!isOfNow || this.#used.has(proof) || this.#used.size >= maxUsed) return false;
    this.#used.set(proof, now + 2 * maxSkewMs);
    return true;
  }
}
