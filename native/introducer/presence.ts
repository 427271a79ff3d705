/**
 * Whether somebody who is listed is still there. Whose host lost power, or whose NAT forgot the connection, is listed until
 * the silence is noticed, a minute later. So whoever stands in the way of another is asked at once, and is gone if nothing
 * comes from it. It owns what was asked last of whom. For introducer.ts and native/introducer/registration.ts.
 */
import type { Guard } from "./guard.ts";
import type { Member } from "./session.ts";

/** An answer may take two round trips and this: on most hosts a lost packet is sent again within that time. */
const answerMs = 250;
/** The same for one who may be busy, and loses its place if we are wrong: it is in nobody's way, or was heard just now. */
const patientAnswerMs = 2_000;
/** The same for another program of whoever has just come: a hundred that are started at once are all busy. */
const siblingAnswerMs = 5_000;
/** Who has said nothing for so long was not heard just now. */
const quietMs = 1_000;
/** The longest round trip that is waited for, and what is assumed of one not measured yet. */
const maxRoundTripMs = 1_000;
const unknownRoundTripMs = 500;
/** A timer that is so late says that this process had no processor: the answer may have come. */
const stalledMs = 100;
/** Who has answered is not asked again sooner, however many want to know: its answers are lines, and cost it its share. */
const askedEveryMs = 250;

type Question =
  { is: "asked"; at: number; answer: PromiseWithResolvers<void> } | { is: "answered"; at: number };

const isQuiet = ({ session }: Member): boolean => performance.now() - session.heardAt >= quietMs;

export class Presence {
  readonly #guard: Guard;
  readonly #questions = new WeakMap<Member, Question>();

  constructor(guard: Guard) {
    this.#guard = guard;
  }

  /** One that is in nobody's way, and not there, leaves soon. Does nothing while it is asked, or has just answered. */
  ask(member: Member, answerWithinMs = patientAnswerMs): void {
    const question = this.#questions.get(member);
    const isDue = question?.is !== "asked" && this.#pauseMs(question) <= 0;
    if (isDue) void this.isThere(member, answerWithinMs);
  }

  /** The same for another program of the same certificate as one that has come. */
  askSibling(member: Member): void {
    this.ask(member, siblingAnswerMs);
  }

  /** The same for one that somebody wants to meet. Does nothing if it has said something in the last second. */
  askIfQuiet(member: Member): void {
    if (isQuiet(member)) this.ask(member);
  }

  /** Resolves to whether it is there: it has said something since this was asked. One that is not has left by then. */
  async isThere(
    member: Member,
    answerWithinMs = isQuiet(member) ? answerMs : patientAnswerMs,
  ): Promise<boolean> {
    const { session } = member;
    const since = performance.now();
    const pauseMs = this.#pauseMs(this.#questions.get(member));
    if (pauseMs > 0) await Bun.sleep(pauseMs);
    const before = this.#questions.get(member);
    if (session.isOver || (before?.is === "answered" && before.at >= since)) return !session.isOver;
    const question = before?.is === "asked" ? before : this.#begin(member);
    const roundTripMs = Math.min(maxRoundTripMs, member.roundTripMs ?? unknownRoundTripMs);
    const patienceMs = 2 * roundTripMs + answerWithinMs;
    for (let lateAt = question.at + patienceMs; ; lateAt = performance.now() + patienceMs) {
      const late = Promise.withResolvers<void>();
      const timer = setTimeout(late.resolve, Math.max(0, lateAt - performance.now()));
      await Promise.race([question.answer.promise, late.promise]);
      clearTimeout(timer);
      // Who comes back late itself has not listened meanwhile.
      if (performance.now() - lateAt < stalledMs) break;
    }
    // Whatever it has said shows that it is there. Its answer may wait behind more that is to be read.
    if (session.heardAt < question.at && !session.isOver)
      this.#guard.serve(session, () => session.dismiss("it did not answer when asked whether it is there"));
    if (!session.isOver) this.#answered(member);
    return !session.isOver;
  }

  /** How long it is not to be asked again. */
  #pauseMs(question: Question | undefined): number {
    return question?.is === "answered" ? question.at + askedEveryMs - performance.now() : 0;
  }

  #begin(member: Member): Question & { is: "asked" } {
    const question = { is: "asked", at: performance.now(), answer: Promise.withResolvers<void>() } as const;
    this.#questions.set(member, question);
    member.session.ping();
    return question;
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
