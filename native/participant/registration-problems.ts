/**
 * Why there is no registration, in words that say what to do. Pure. For native/participant/registration.ts and hearing.ts.
 */
import { type ToParticipant, UserError } from "../../protocol.ts";

/** A reason of the channel that does not say what to do. */
const endings: Readonly<Record<string, string>> = {
  "it closed the connection": "it closed the connection: is there an introducer at that port?",
};

const noIntroducer = { code: "no-introducer" } as const;

/** The connection has ended before there was one. */
export function unregistered(reason: string): UserError {
  return new UserError(`the introducer did not register us: ${endings[reason] ?? reason}`, noIntroducer);
}

/** Who hides where it is needs an introducer that relays. */
export function notRelayed(): UserError {
  return new UserError(
    "this introducer does not relay (--no-relay), so with --only-relay there can be no link: take another introducer",
  );
}

type Refused = Pick<ToParticipant & { type: "refused" }, "code" | "request" | "message">;

/** The introducer has refused `register`. One that is older does not know how to hide where somebody is. */
export function refused(refusal: Refused, isHiding = false): UserError {
  const text = refusalText(refusal);
  const isOld = isHiding && refusal.code === "bad-field";
  return new UserError(
    isOld
      ? `this introducer can't hide where you are, so it was not told: it must be updated (${text})`
      : text,
    { code: "refused" },
  );
}

export function refusalText({ request, message }: Omit<Refused, "code">): string {
  return `the introducer refused${request ? ` \`${request}\`` : ""}: ${message}`;
}

const refusedCode = { code: "refused" } as const;
const giveKey =
  "ask whoever runs it, and give it as --key FILE, in INTRODUCER_KEY, or in a code: WORDS.KEY@HOST";

/** It lets in only those who have its key. */
export function keyProblem(key: string | undefined): UserError {
  if (key === undefined)
    return new UserError(`the introducer is for those who have its key: ${giveKey}`, refusedCode);
  return new UserError(`the key is not the introducer's: ${giveKey}`, refusedCode);
}

/** What went wrong on the way to the introducer, for the user. */
export function joinError(error: unknown): UserError {
  if (error instanceof UserError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new UserError(`cannot reach the introducer: ${reason}`, { cause: error, ...noIntroducer });
}
