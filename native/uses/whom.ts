/**
 * For whom something is: a peer by its name, which is a claim, or by its certificate, which it must prove. Pure. For
 * native/uses/ and native/terminal/.
 *
 *   whom   NAME                 whoever is called so; whatever the case
 *          SHA256:HEX           whoever has the certificate with that fingerprint, as `whoami` shows it
 *
 * Behind a rule it stands after the first @: `22@alice`. Of a path after the first @ in its last part.
 */
import { nameProblem } from "../../protocol.ts";
import { SpecError } from "./target.ts";

/** A peer, as its link has shown it. */
export interface Shown {
  readonly name: string;
  readonly fingerprint: string;
}

const fingerprintPattern = /^sha256:([0-9a-f]{64})$/i;

/** As it is shown and typed. */
export const shownFingerprint = (fingerprint: string): string => `SHA256:${fingerprint}`;

/** The fingerprint in it; undefined if it is a name. */
export function fingerprintIn(whom: string): string | undefined {
  return fingerprintPattern.exec(whom)?.[1]?.toLowerCase();
}

/** What is wrong with it; undefined if nothing is. */
export function whomProblem(whom: string): string | undefined {
  if (/^sha256:/i.test(whom))
    return fingerprintIn(whom) === undefined ? "SHA256: is followed by 64 hex digits" : undefined;
  const problem = nameProblem(whom);
  return problem && `a name ${problem}`;
}

/** Whether that peer is meant, as far as it says itself. */
export function isCalled(whom: string, { name, fingerprint }: Shown): boolean {
  return (
    (fingerprintIn(whom) ?? whom.toLowerCase()) === (fingerprintIn(whom) ? fingerprint : name.toLowerCase())
  );
}

/** A rule, and for whom it is; undefined: for everyone. */
export function splitWhom(text: string): { rule: string; whom: string | undefined } {
  const at = text.indexOf("@", text.startsWith("/") ? text.lastIndexOf("/") : 0);
  return at < 0 ? { rule: text, whom: undefined } : { rule: text.slice(0, at), whom: text.slice(at + 1) };
}

/** Reads a rule, with for whom it is. Throws a {@link SpecError}. */
export function readForWhom<Rule extends { text: string; whom?: string | undefined }>(
  whole: string,
  parse: (rule: string) => Rule,
): Rule {
  const { rule, whom } = splitWhom(whole);
  const parsed = parse(rule);
  if (whom === undefined) return parsed;
  const problem = whomProblem(whom);
  if (problem) throw new SpecError(`${whole}: who may reach it is said behind the @: ${problem}`);
  const fingerprint = fingerprintIn(whom);
  const shown = fingerprint === undefined ? whom : shownFingerprint(fingerprint);
  return { ...parsed, text: `${parsed.text}@${shown}`, whom: shown };
}
