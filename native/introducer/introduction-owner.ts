/**
 * What introductions need of the sessions, and of the relays: a type alone, as introducer.ts makes it. For
 * native/introducer/.
 */
import type { Refusal, ToParticipant } from "../../protocol.ts";
import type { IntroducerEvent } from "./events.ts";
import type { Limits } from "./limits.ts";
import type { About } from "./lines.ts";
import type { Outcome, OutcomeWay } from "./metrics.ts";
import type { Member } from "./session.ts";

/** What the introductions need of the sessions. */
export interface IntroductionOwner {
  readonly limits: Limits;
  /** Whether there are probe ports, so that participants can say how their NATs map. */
  canMeasure(): boolean;
  send(member: Member, message: ToParticipant): void;
  /** Sends a message that shows `about`. */
  show(member: Member, about: Member, message: About): void;
  /** The token of a relay between the two, where there can be one. */
  offerRelay(a: Member, b: Member): string | undefined;
  /** Nobody is to come for that relay any more; one that both have come for goes on. */
  withdrawRelay(token: string): void;
  /** Refuses a `connect` that has been accepted before. */
  refuse(member: Member, refusal: Refusal, peer: number): void;
  emit(event: IntroducerEvent): void;
  /** Does what serves a member: what fails in it costs that one only. Of nobody, it costs nobody. */
  serve(member: Member | undefined, work: () => void): void;
  /** Nothing has been heard of it, though a round has failed. */
  silent(member: Member): void;
  /** An introduction has ended. */
  count(outcome: Outcome, way: OutcomeWay, elapsedMs: number): void;
}
