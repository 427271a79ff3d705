/**
 * One peer's life: what there is between us, and what is under way. It is one union with one writer, and what others
 * ask about a peer is derived from it. It begins and ends nothing. For native/participant/.
 *
 *   known ── introduced ──► introducing ── a channel is nominated ──► agreeing ── the peer has spoken ──► linked
 *     ▲                         │ no channel                             │ it has not                        │
 *     └─────────────────────────┴────────────────────────────────────────┴───────── the link has ended ◄─────┘
 *
 * A link without a channel is `returning`: the link itself says that. Introductions and agreements go on then, too.
 */
import type { FailureReason } from "../../protocol.ts";
import type { Encounter } from "../punch/encounter.ts";
import type { Channel } from "../secure/channel.ts";
import type { Link } from "../session/link.ts";
import type { TalkingLink } from "../uses/lines.ts";
import type { PeerState } from "./peer-events.ts";

/** A nominated channel, until the peer has said for which link it is or, on a channel of ours, has proved itself. */
export interface Agreement {
  readonly token: string;
  /** Ours, and what is to be a link with it, which is none to anyone until then. All of a peer are for the same. */
  readonly proposal?: { channel: Channel; talking: TalkingLink };
  /** Closes the channel, and tells nobody. */
  end(): void;
}

type Life =
  /** `failure`: why the latest attempt failed. */
  | { is: "known"; failure: FailureReason | undefined }
  | { is: "introducing"; introduction: Encounter }
  | { is: "agreeing"; agreements: readonly Agreement[]; introduction: Encounter | undefined }
  /** Another channel may be sought for the link, and agreed on. */
  | {
      is: "linked";
      talking: TalkingLink;
      agreements: readonly Agreement[];
      introduction: Encounter | undefined;
    };

interface LifeParts {
  talking: TalkingLink | undefined;
  introduction: Encounter | undefined;
  agreements: readonly Agreement[];
  failure: FailureReason | undefined;
}

function lifeOf({ talking, introduction, agreements, failure }: LifeParts): Life {
  if (talking) return { is: "linked", talking, agreements, introduction };
  if (agreements.length > 0) return { is: "agreeing", agreements, introduction };
  return introduction ? { is: "introducing", introduction } : { is: "known", failure };
}

export class PeerLife {
  #life: Life = { is: "known", failure: undefined };

  /** The single writer. */
  become(changed: Partial<LifeParts>): void {
    const { talking, introduction, agreements, failure } = this;
    this.#life = lifeOf({ talking, introduction, agreements, failure, ...changed });
  }

  /** Whether nothing but the introducer's list needs it. */
  get isIdle(): boolean {
    return this.#life.is === "known";
  }
  get talking(): TalkingLink | undefined {
    return this.#life.is === "linked" ? this.#life.talking : undefined;
  }
  get link(): Link | undefined {
    return this.talking?.link;
  }
  get introduction(): Encounter | undefined {
    return this.#life.is === "known" ? undefined : this.#life.introduction;
  }
  get agreements(): readonly Agreement[] {
    return this.#life.is === "agreeing" || this.#life.is === "linked" ? this.#life.agreements : [];
  }
  get failure(): FailureReason | undefined {
    return this.#life.is === "known" ? this.#life.failure : undefined;
  }

  get state(): PeerState {
    switch (this.#life.is) {
      case "linked":
        return this.#life.talking.link.state === "returning" ? "returning" : "linked";
      case "known":
        return this.#life.failure ? "failed" : "known";
      case "introducing":
        return "punching";
      case "agreeing":
        return "agreeing";
    }
  }
}
