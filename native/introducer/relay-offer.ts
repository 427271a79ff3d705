/**
 * The relay of one introduction. It is offered once it has been wanted for a while, never before there has been a direct
 * round, and only once. It owns the offer's token, and who has said to be linked by it. Relays themselves are in
 * native/introducer/relay.ts. For native/introducer/introduction.ts and introductions.ts. No clock and no timer of its own.
 */
import { type FailureReason, relayAfterMs } from "../../protocol.ts";
import type { IntroductionOwner } from "./introduction-owner.ts";
import type { Asking } from "./quotas.ts";
import type { Member } from "./session.ts";
import { type Due, notScheduled } from "./wheel.ts";

type State =
  | { is: "unwanted" | "wanted" | "due" | "refused" }
  /** `linkedAt`: when both had said that they are linked by it. */
  | { is: "offered"; token: string; linked: Set<Member>; linkedAt: number | undefined };

/** What it needs of all introductions. */
export interface OfferIndex {
  readonly owner: IntroductionOwner;
  /** In ms, from any moment on. */
  now(): number;
  /** It is to be made by {@link RelayOffer.due} in so many ms, or no more. */
  relayIn(offer: RelayOffer, ms: number): void;
  noRelay(offer: RelayOffer): void;
  /** Both have been told that token, and can say that they are linked by it. */
  told(token: string, a: Member, b: Member): void;
}

export class RelayOffer implements Due {
  slot = notScheduled;
  readonly #asking: Asking;
  readonly #index: OfferIndex;
  /** Whether there has been a direct round. */
  readonly #hasPunched: () => boolean;
  readonly #onToken: (token: string) => void;
  #state: State = { is: "unwanted" };

  constructor(
    index: OfferIndex,
    asking: Asking,
    hasPunched: () => boolean,
    onToken: (token: string) => void,
  ) {
    this.#index = index;
    this.#asking = asking;
    this.#hasPunched = hasPunched;
    this.#onToken = onToken;
  }

  /** Empty until it is offered. */
  get token(): string {
    return this.#state.is === "offered" ? this.#state.token : "";
  }

  /** When both had said that they are linked by it. */
  get linkedAt(): number | undefined {
    return this.#state.is === "offered" ? this.#state.linkedAt : undefined;
  }

  want(): void {
    if (this.#state.is !== "unwanted") return;
    this.#state = { is: "wanted" };
    this.#index.relayIn(this, relayAfterMs);
  }

  /** It has been wanted for a while. */
  due(): void {
    this.#state = { is: "due" };
    if (this.#hasPunched()) this.#index.owner.serve(this.#asking.asker, () => this.make());
  }

  /** A direct round has begun. */
  punched(): void {
    if (this.#state.is === "due") this.make();
  }

  /** Offers it to both, if it is wanted. `why`: there is no direct way. Returns whether it could be. */
  make(why?: FailureReason): boolean {
    if (this.#state.is !== "wanted" && this.#state.is !== "due") return false;
    const { owner, told } = this.#index;
    const { asker: a, target: b } = this.#asking;
    this.end();
    this.#state = { is: "refused" };
    const token = owner.offerRelay(a, b);
    if (token === undefined) return false;
    this.#state = { is: "offered", token, linked: new Set(), linkedAt: undefined };
    this.#onToken(token);
    told(token, a, b);
    const offer = { type: "relay", token, ...(why && { why }) } as const;
    owner.show(a, b, { ...offer, role: "controlling" });
    owner.show(b, a, { ...offer, role: "controlled" });
    return true;
  }

  /** One of the two has said that it is linked by it. */
  linked(member: Member): void {
    if (this.#state.is !== "offered") return;
    this.#state.linked.add(member);
    if (this.#state.linked.size === 2) this.#state.linkedAt ??= this.#index.now();
  }

  /**
   * Both are linked directly. Who did not ask may have been linked before the offer came, and takes it for a new wish of the
   * other: it would wait for that one.
   */
  withdraw(): void {
    if (this.token !== "") this.#index.owner.withdrawRelay(this.token);
  }

  /** It is waited for no more. */
  end(): void {
    this.#index.noRelay(this);
  }
}
