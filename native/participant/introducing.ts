/**
 * Being introduced to one peer: begins the introduction, hands it the introducer's messages, and declines what is not
 * wanted. Owns the tokens of its rounds. It knows no link: what comes of it goes to the peer. For
 * native/participant/peer.ts.
 */
import { type FailureReason, type Peer, type Takes, type ToParticipant } from "../../protocol.ts";
import type { Unasked } from "../punch/allowance.ts";
import {
  type Failure,
  Encounter,
  type MeasureMessage,
  type Nominated,
  type PunchMessage,
  type RelayMessage,
} from "../punch/encounter.ts";
import type { Channel } from "../secure/channel.ts";
import type { PeerLife } from "./life.ts";
import type { Listed } from "./listed.ts";
import type { Wanted } from "./wanted.ts";

/** So many tokens of earlier rounds are remembered, to tell a late `failed` from the answer to our `connect`. */
const maxPastTokens = 16;

export interface IntroducingOwner {
  /** Whether there can be no introduction. */
  readonly isDistrusted: boolean;
  /** Whether the attempts of all punches are told. */
  readonly isVerbose: boolean;
  /** Whether we wished for that peer when we registered; and the same, after which we don't any more. */
  isWished(): boolean;
  takeWish(): boolean;
  /** Admits an introduction that we did not ask for. Undefined if it is one too many. */
  admit(): Unasked | undefined;
  seen(peer: Peer): void;
  nominated(channel: Channel, nominated: Nominated): void;
  ended(failure: Failure | undefined): void;
}

export class Introducing {
  readonly #listed: Listed;
  readonly #life: PeerLife;
  readonly #wanted: Wanted;
  readonly #owner: IntroducingOwner;
  readonly #pastTokens: string[] = [];

  constructor(listed: Listed, life: PeerLife, wanted: Wanted, owner: IntroducingOwner) {
    this.#listed = listed;
    this.#life = life;
    this.#wanted = wanted;
    this.#owner = owner;
  }

  get #isVerbose(): boolean {
    return this.#owner.isVerbose || this.#wanted.isVerbose;
  }

  // --- our wish ------------------------------------------------------------------------------------------

  /** Undefined if there is no registration, or once we quit. */
  begin(unasked?: Unasked): Encounter | undefined {
    const { owner, peer } = this.#listed;
    const context = owner.context();
    if (!context || owner.hasQuit) return undefined;
    const introduction = new Encounter({
      ...{ context, peer, unasked },
      onRound: (round) => this.#onRound(round),
      onAttempt: (attempt) => {
        if (this.#isVerbose) this.#listed.emit({ event: "attempt", ...attempt });
      },
      onChannel: (channel, nominated) => this.#owner.nominated(channel, nominated),
      onEnd: (failure) => this.#owner.ended(failure),
    });
    this.#life.become({ introduction, failure: undefined });
    return introduction;
  }

  /** An introduction by which a link only lives on is not told. */
  #onRound(round: Pick<PunchMessage, "role" | "way" | "round">): void {
    if ((!this.#life.link && !this.#wanted.isQuiet) || this.#isVerbose)
      this.#listed.emit({ event: "punching", ...round });
  }

  /** Asks the introducer to introduce us. */
  ask(introduction: Encounter | undefined, mayRelay: boolean): void {
    if (introduction) this.#try(introduction, () => introduction.ask(mayRelay));
  }

  beginAndAsk(mayRelay: boolean): void {
    this.ask(this.begin(), mayRelay);
  }

  /** If something fails at once, such as for want of a descriptor, only the introduction ends. */
  #try(introduction: Encounter, work: () => void): void {
    try {
      work();
    } catch (error) {
      introduction.cancel("no-candidate-answered", `we could not try: ${inText(error)}`);
    }
  }

  // --- what the introducer orders ------------------------------------------------------------------------

  measure(message: MeasureMessage): void {
    if (this.#takes === "relayed" || this.#isStale(message)) return this.#listed.decline(message.token);
    const introduction = this.#of(message);
    introduction?.measure(message).catch((error: unknown) => {
      introduction.cancel("no-candidate-answered", `we could not measure: ${inText(error)}`);
    });
  }

  punch(message: PunchMessage): void {
    // Whoever takes a punch shows where it is: an introducer that orders one to who hides that is not obeyed.
    if (this.#takes === "relayed" || this.#isStale(message)) return this.#listed.decline(message.token);
    const introduction = this.#of(message);
    if (introduction) this.#try(introduction, () => introduction.punch(message));
  }

  relay(message: RelayMessage): void {
    if (this.#takes === "direct" || this.#isStale(message)) return this.#listed.decline(message.token);
    const introduction = this.#of(message);
    if (introduction) this.#try(introduction, () => introduction.relay(message));
  }

  get #takes(): Takes | undefined {
    return this.#listed.owner.context()?.takes;
  }

  /** Whoever asks is controlling. If that is us, this answers a `connect` that we have cancelled meanwhile. */
  #isStale({ role }: MeasureMessage | PunchMessage | RelayMessage): boolean {
    return !this.#life.introduction && role === "controlling" && !this.#owner.isWished();
  }

  /** A round's failure at the other side, or the answer to our `connect`. */
  failed({ token, reason }: ToParticipant & { type: "failed" }): void {
    const { introduction } = this.#life;
    const isAnswer = introduction?.isAsking && !this.#pastTokens.includes(token);
    if (isAnswer || introduction?.isOf(token)) {
      introduction.failed(reason, failureDetail(reason, this.#listed.peer));
    }
  }

  /** The introducer refused our `connect`. */
  refused({ message, retryInMs }: Pick<ToParticipant & { type: "refused" }, "message" | "retryInMs">): void {
    const { introduction } = this.#life;
    if (!introduction?.isAsking) return;
    // Not all at once who were told the same.
    const waitMs =
      retryInMs === undefined ? undefined : retryInMs + Math.round(Math.random() * Math.min(1000, retryInMs));
    if (waitMs === undefined || !introduction.askAgainIn(waitMs))
      return introduction.abort("refused", message);
    this.#listed.emit({ event: "postponed", retryInMs: waitMs, reason: message });
  }

  /** The introduction that a round belongs to; undefined if it was declined. */
  #of({ peer, token }: { peer: Peer; token: string }): Encounter | undefined {
    if (this.#owner.isDistrusted) return void this.#listed.decline(token);
    this.#owner.seen(peer);
    this.#pastTokens.push(token);
    this.#pastTokens.splice(0, this.#pastTokens.length - maxPastTokens);
    if (this.#life.introduction) return this.#life.introduction;
    if (this.#owner.takeWish()) return this.begin();
    const unasked = this.#owner.admit();
    return unasked ? this.begin(unasked) : void this.#listed.decline(token);
  }
}

const inText = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** What a user can do about a failure that the other side or the introducer told us of. */
function failureDetail(reason: FailureReason, peer: Peer): string {
  if (reason === "only-relayed") return "";
  if (reason !== "both-mappings-random") return "the peer's side gave up";
  return `the peer's mapping is ${peer.mapping}`;
}
