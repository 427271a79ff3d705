/**
 * Connections back: what an unsolicited SYN meets at a participant's own observed endpoint, and never anywhere else.
 * Owns those under way. For introducer.ts. RFC 5382 §4.3.
 */
import {
  canonicalAddress,
  type EndpointParts,
  type Filtering,
  Refusal,
  splitEndpoint,
} from "../../protocol.ts";
import { type Shares, WaitRefusal } from "../shares/budget.ts";
import type { Guard } from "./guard.ts";
import type { Limits } from "./limits.ts";
import { connectBackMs, tryConnect } from "./observe.ts";
import { spendIntroduction } from "./quotas.ts";
import type { Member } from "./session.ts";
import type { Sources } from "./sources.ts";

export class ConnectBacks {
  readonly #guard: Guard;
  readonly #limits: Limits;
  readonly #shares: Shares;
  readonly #underWay = new Set<Member>();
  readonly #alternate: string | undefined;

  /** `alternate`: another address of this host, which is tried, too. */
  constructor(guard: Guard, limits: Limits, sources: Sources, alternate: string | undefined) {
    this.#guard = guard;
    this.#limits = limits;
    this.#shares = sources.connectBacks;
    this.#alternate = alternate;
  }

  /** Throws a {@link Refusal} if there are too many. Each also counts as an introduction. */
  begin(member: Member): void {
    if (this.#underWay.has(member))
      throw new Refusal("limit", "one connection back at a time: wait for `filtering`");
    const { connectBacks: most, connectBacksPerAddress: each } = this.#limits;
    if (this.#shares.isUsedUp(1) || this.#shares.isOver(member.source, 1)) {
      const enough = `${most} connections back at once, ${each} to one address, are enough`;
      throw new WaitRefusal(enough, connectBackMs / 1000);
    }
    spendIntroduction(member, this.#limits, performance.now());
    this.#underWay.add(member);
    this.#shares.add(member.source);
    const over = (tell: () => void) => this.#guard.serve(member.session, () => this.#over(member, tell));
    this.#try(splitEndpoint(member.observed)).then(
      (met) => over(() => tellWhatItMet(member, met)),
      (error: unknown) =>
        over(() => {
          throw error;
        }),
    );
  }

  #over(member: Member, tell: () => void): void {
    this.#underWay.delete(member);
    this.#shares.remove(member.source);
    tell();
  }

  /** What a SYN from here meets there, and one from the alternate address, where there is one of that family. */
  async #try(observed: EndpointParts): Promise<(Filtering | undefined)[]> {
    const alternate = this.#alternate && canonicalAddress(this.#alternate);
    const isElsewhere = alternate && alternate.family === observed.family;
    return Promise.all([
      tryConnect(observed),
      isElsewhere ? tryConnect(observed, alternate.address) : undefined,
    ]);
  }
}

function tellWhatItMet({ session }: Member, [filtering, elsewhere]: (Filtering | undefined)[]): void {
  if (filtering) return session.send({ type: "filtering", filtering, ...(elsewhere && { elsewhere }) });
  const busy = "the introducer can't connect back now: try again later";
  session.refuse(new Refusal("limit", busy), { request: "connect-back" });
}
