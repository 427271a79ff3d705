/**
 * What comes of being introduced to one peer: a link or none. Tells the user and the introducer what becomes of the link.
 * Who wanted it is in wanted.ts, nominated channels are in agreements.ts, the search for another channel in seeking.ts. For
 * native/participant/peer.ts.
 */
import { type FailureReason, failureReasons, printable, type Role, ToldError } from "../../protocol.ts";
import type { Failure, Nominated } from "../punch/encounter.ts";
import type { Channel } from "../secure/channel.ts";
import type { LinkCarrier, LinkEnd, LinkOwner } from "../session/link.ts";
import { type TalkingLink, talkingLink } from "../uses/lines.ts";
import { Agreements } from "./agreements.ts";
import type { PeerLife } from "./life.ts";
import type { Listed } from "./listed.ts";
import type { PastSessions } from "./past-sessions.ts";
import type { Seeking } from "./seeking.ts";
import type { Wanted } from "./wanted.ts";

/** Reasons that are of the way, and not of what happened beside. */
const ofTheWay: ReadonlySet<FailureReason> = new Set([
  "no-candidate-answered",
  "both-mappings-random",
  "handshake-cut",
  "timed-out",
] as const);

export interface LinkingOwner extends Pick<LinkOwner, "stream" | "threw"> {
  readonly past: PastSessions;
  /** How long a link is kept without a channel. */
  readonly keepMs: number;
  /** The link has no channel, or one that looks dead. */
  silent(): void;
  /** There is a link now, or no longer, or an attempt has failed. */
  changed(): void;
  /** Asks for a new introduction. */
  askAnew(): void;
}

export class Linking {
  readonly #listed: Listed;
  readonly #life: PeerLife;
  readonly #wanted: Wanted;
  readonly #seeking: Seeking;
  readonly #owner: LinkingOwner;
  readonly #agreements: Agreements;
  /** Why there is no direct way, as far as a user has been told. */
  #why: FailureReason | undefined;

  constructor(listed: Listed, life: PeerLife, wanted: Wanted, seeking: Seeking, owner: LinkingOwner) {
    this.#listed = listed;
    this.#life = life;
    this.#wanted = wanted;
    this.#seeking = seeking;
    this.#owner = owner;
    this.#agreements = new Agreements(listed, life, wanted, {
      past: owner.past,
      newLink: (channel, role, isAsked, id) => this.#newLink(channel, role, isAsked, id),
      linked: (talking, channel, nominated) => this.#linked(talking, channel, nominated),
      failed: (reason, detail) => this.failed(reason, detail),
      askAnew: () => owner.askAnew(),
    });
  }

  nominated(channel: Channel, nominated: Nominated): void {
    this.#why = nominated.why;
    this.#agreements.nominated(channel, nominated);
  }

  /** The introduction has ended. `isTheirs`: the peer had asked for it. */
  introduced(failure: Failure | undefined, isTheirs: boolean): void {
    const { isQuiet } = this.#wanted;
    if (failure) this.#wanted.takePredecessor();
    this.#life.become({ introduction: undefined });
    if (failure && this.#life.link?.route === "relay") this.#stillRelayed(failure);
    if (this.#life.link || !failure || isQuiet) return this.#seeking.again();
    if (this.#life.agreements.length > 0) return;
    // Whoever waits has only joined it. The peer may have had its link, and left it to an offer that came too late.
    if (isTheirs && failure.reason === "relay-failed" && this.#wanted.isWaitedFor)
      return this.#owner.askAnew();
    this.failed(failure.reason, failure.detail);
  }

  #stillRelayed({ reason, detail }: Failure): void {
    if (reason === this.#why || !ofTheWay.has(reason)) return;
    this.#why = reason;
    this.#listed.emit({ event: "still-relayed", reason, detail });
  }

  /** No link came about. */
  failed(reason: FailureReason, detail: string): void {
    this.#life.become({ failure: reason });
    const reject = this.#wanted.takeWaiting();
    this.#listed.emit({ event: "failed", reason, detail });
    const name = printable(this.#listed.peer.name);
    reject(new ToldError(`no link with ${name}: ${failureReasons[reason]} (${reason})`, { code: reason }));
    this.#owner.changed();
  }

  // --- a link --------------------------------------------------------------------------------------------

  /** Until it is {@link #linked}, the link is only proposed. */
  #newLink(channel: Channel, role: Role, isAsked: boolean, id: string | undefined): TalkingLink {
    const { keepMs, stream, threw } = this.#owner;
    const owner = {
      ...{ stream, threw },
      broken: (reason: string) =>
        this.#life.link ? this.#broken(reason) : this.#agreements.unproved(reason),
      looksDead: () => {
        this.#seeking.soon();
        this.#owner.silent();
      },
      moved: (other: LinkCarrier, gapMs: number) => this.#moved(other, gapMs),
      ended: (end: LinkEnd) =>
        this.#life.link ? this.#unlinked(end) : this.#agreements.unproved(end.detail),
    };
    const onText = (text: string) => this.#listed.emit({ event: "said", text });
    const { fingerprint } = this.#listed.peer;
    return talkingLink(channel, { role, fingerprint, keepMs, isAsked, owner, onText }, id);
  }

  #linked(talking: TalkingLink, channel: Channel, { token, elapsedMs }: Nominated): void {
    this.#life.become({ talking });
    const { route, local, remote } = channel;
    // First, or what the user does about it could reach the introducer before it.
    this.#tellLinked(channel, token);
    this.#listed.emit({ event: "linked", route, local, remote, ...this.#relayed(channel), elapsedMs });
    this.#wanted.linked(talking.link);
    this.#owner.changed();
    this.#seeking.direct();
  }

  #moved(channel: LinkCarrier, gapMs: number): void {
    const { route, local, remote } = channel;
    this.#seeking.rest();
    this.#listed.emit({ event: "moved", route, local, remote, ...this.#relayed(channel), gapMs });
    const token = this.#agreements.took(channel);
    if (token !== undefined) this.#tellLinked(channel, token);
    this.#seeking.direct();
  }

  /** What a user is told of a relayed link. */
  #relayed({ route, maxRate }: LinkCarrier): { hidden?: true; limit?: number; why?: FailureReason } {
    const hidden = this.#listed.mayBeDirect ? {} : ({ hidden: true } as const);
    if (route !== "relay") return hidden;
    return { ...hidden, limit: maxRate, ...(this.#why && { why: this.#why }) };
  }

  #tellLinked({ route, local, remote }: LinkCarrier, token: string): void {
    this.#listed.tell({ type: "linked", peer: this.#listed.peer.id, token, route, local, remote });
  }

  #broken(reason: string): void {
    this.#listed.emit({ event: "broken", reason });
    this.#owner.silent();
    this.#seeking.soon();
  }

  #unlinked({ reason, detail }: LinkEnd): void {
    if (this.#life.link) this.#agreements.linkEnded(this.#life.link, reason);
    this.#life.become({ talking: undefined });
    this.#seeking.rest();
    // First, or what the user does about it could reach the introducer before it.
    this.#listed.tell({ type: "unlinked", peer: this.#listed.peer.id, reason });
    this.#listed.emit({ event: "unlinked", reason, detail });
    this.#owner.changed();
  }
}
