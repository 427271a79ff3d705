/**
 * Whether somebody who is listed is still there. Whose host lost power, or whose NAT forgot the connection, is listed until
 * the silence is noticed, a minute later. So whoever stands in the way of another is asked at once, and is gone if nothing
 * comes from it. It owns what was asked last of whom. For introducer.ts and native/introducer/registration.ts.
 */
import type { Guard } from "./guard.ts";
import type { Member } from "./session.ts";

/** An answer may take two round trips and this: on most hosts a lost packet is sent again within that time. */
const answerMs = 250;
/** The same for one who is in nobody's way but its own: it may be busy, and loses its place if we are wrong. */
export const patientAnswerMs = 2_000;
/** The longest round trip that is waited for, and what is assumed of one not measured yet. */
const maxRoundTripMs = 1_000;
const unknownRoundTripMs = 500;
/** Who has answered is not asked again so soon, however many want to know. */
const answerHoldsMs = 1_000;

type Question =
  { is: "asked"; at: number; answer: PromiseWithResolvers<void> } | { is: "answered"; at: number };

export class Presence {
  readonly #guard: Guard;
  readonly #questions = new WeakMap<Member, Question>();

  constructor(guard: Guard) {
    this.#guard = guard;
  }

  /** One that is not there leaves soon. Does nothing while it is asked, or has answered lately. */
  ask(member: Member, answerWithinMs = answerMs): void {
    if (!this.#known(member)) void this.isThere(member, answerWithinMs);
  }

  /** Resolves to whether it is there. One that is not has left by then. */
  async isThere(member: Member, answerWithinMs = answerMs): Promise<boolean> {
    const { session } = member;
    const question = this.#ask(member);
    if (question.is === "answered" || session.isOver) return !session.isOver;
    const roundTripMs = Math.min(maxRoundTripMs, member.roundTripMs ?? unknownRoundTripMs);
    const late = Promise.withResolvers<void>();
    const leftMs = question.at + 2 * roundTripMs + answerWithinMs - performance.now();
    const timer = setTimeout(late.resolve, Math.max(0, leftMs));
    await Promise.race([question.answer.promise, late.promise]);
    clearTimeout(timer);
    // Whatever it has said shows that it is there. Its answer may wait behind more that is to be read.
    if (session.heardAt < question.at && !session.isOver)
      this.#guard.serve(session, () =>
        session.dismiss("it did not answer when it was asked whether it is there"),
      );
    if (!session.isOver) this.#answered(member);
    return !session.isOver;
  }

  #ask(member: Member): Question {
    const known = this.#known(member);
    if (known) return known;
    const question: Question = { is: "asked", at: performance.now(), answer: Promise.withResolvers() };
    this.#questions.set(member, question);
    member.session.ping();
    member.session.flush();
    return question;
  }

  /** What was asked of it and still holds. */
  #known(member: Member): Question | undefined {
    const question = this.#questions.get(member);
    const isOld = question?.is === "answered" && performance.now() - question.at >= answerHoldsMs;
    return isOld ? undefined : question;
  }

  /** It has answered a ping. */
  ponged(member: Member, id: number): void {
    this.#answered(member);
    member.session.pong(id);
  }

  #answered(member: Member): void {
    const question = this.#questions.get(member);
    if (question?.is !== "asked") return;
    this.#questions.set(member, { is: "answered", at: performance.now() });
    question.answer.resolve();
  }
}
