/**
 * The participant's verbs: one thing to do with whoever comes first and has the code, and what the other side types. It
 * does none. Pure. For native/terminal/ and participant.ts.
 *
 *   send PATH …            receive CODE [DIR]
 *   share [HOST:]PORT …    reach CODE [PORT …]
 */
import { otherStartedAs, startedAs } from "../host/started.ts";
import type { ParticipantEvent } from "../participant/events.ts";
import { maxShared } from "../uses/shared.ts";
import { AllowList } from "../uses/allow-list.ts";
import { parseTargets, SpecError, type HostTarget } from "../uses/target.ts";
import { printable } from "../../protocol.ts";
import { nearest, UsageError } from "./command-line.ts";
import { help, verbs } from "./participant-options.ts";

/** `to`: so many, one after the other. `ports`: where to listen, in the order of the targets; the rest listen on the ports that they have there. */
export type Verb =
  | { is: "send"; paths: string[]; to: number }
  | { is: "receive"; into: string }
  | { is: "share"; targets: HostTarget[] }
  | { is: "reach"; ports: number[] };

/** What the other side types after it. */
const answers = { send: "receive", share: "reach" } as const;

/** The options that fit verbs; the others say what else to do. */
const fitting = [
  "name",
  "room",
  "via",
  "key",
  "wait",
  "keep",
  "limit",
  "direct",
  "only-relay",
  "no-portmap",
  "port",
  "executable",
  "verbose",
  "quiet",
  "json",
];
const fittingSend = ["exclude", "to"];

/** What whoever only wants one thing done need not know. */
const noise: ReadonlySet<ParticipantEvent["event"]> = new Set([
  ...(["registered", "peers", "joined", "left", "renamed", "named", "name-taken"] as const),
  ...(["mapping", "port-mapping", "punching", "forwarding"] as const),
]);

/** Whether a person is not told of that event, because it is about the way and not about the errand. */
export function isNoise(event: ParticipantEvent, { verb, verbose, json }: ForNoise): boolean {
  const isTheEnd = event.event === "unlinked" && (event.reason === "quit" || event.reason === "peer-quit");
  return verb !== undefined && !verbose && !json && (isTheEnd || noise.has(event.event));
}

interface ForNoise {
  verb: Verb | undefined;
  verbose: boolean;
  json: boolean;
}

/** Reads the words of a command line as a verb, and its code. Undefined if they begin with none. */
export function readVerb(
  words: readonly string[],
  to?: string,
): { verb: Verb; code?: string | undefined } | undefined {
  const [first = "", ...rest] = words;
  if (to !== undefined && first !== "send") throw new UsageError("--to N goes with `send PATH …` alone");
  switch (first) {
    case "send":
      return { verb: { is: "send", paths: needed(rest, "a PATH: `send PATH …`"), to: readCount(to) } };
    case "receive": {
      const [code, into = ".", ...more] = rest;
      if (more.length > 0)
        throw new UsageError(`\`receive CODE [DIR]\` takes one folder, not also ${more.join(" ")}`);
      return { verb: { is: "receive", into }, code };
    }
    case "share":
      return { verb: { is: "share", targets: readTargets(needed(rest, "a PORT: `share [HOST:]PORT …`")) } };
    case "reach": {
      const [code, ...ports] = rest;
      return { verb: { is: "reach", ports: ports.map(readPort) }, code };
    }
  }
  if (rest.length === 0) return undefined;
  // What follows may be a code, which is not repeated.
  const meant = nearest(first, [...verbs, help]);
  if (meant === undefined) throw new UsageError("one introducer at a time, and nothing after it but options");
  throw new UsageError(`there is no verb \`${printable(first)}\`; did you mean \`${meant}\`?`);
}

function readCount(text = "1"): number {
  if (/^[1-9]\d{0,2}$/.test(text)) return Number(text);
  throw new UsageError(`--to takes how many get it, from 1 to 999, not ${printable(text)}`);
}

function needed(words: string[], what: string): string[] {
  if (words.length === 0) throw new UsageError(`it needs ${what}`);
  return words;
}

function readTargets(words: readonly string[]): HostTarget[] {
  try {
    for (const word of words) new AllowList().add(word);
    const targets = words.flatMap(parseTargets);
    if (targets.length <= maxShared) return targets;
    throw new UsageError(`at most ${maxShared} ports can be shared`);
  } catch (error) {
    if (error instanceof SpecError) throw new UsageError(`share ${error.message}`);
    throw error;
  }
}

function readPort(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (port < 1 || port > 65535)
    throw new UsageError(`\`reach CODE [PORT]\`: ${printable(text)} is no port to listen on (1 to 65535)`);
  return port;
}

/** Throws if an option was given that does not fit. */
export function refuseOptions({ is }: Verb, given: readonly string[]): void {
  const other = given.find(
    (option) => !fitting.includes(option) && !(is === "send" && fittingSend.includes(option)),
  );
  if (other !== undefined)
    throw new UsageError(`--${other} does not go with \`${is}\`, which does one thing`);
}

/** What the other side types, if we are the one who makes the code. */
export function answerTo({ is }: Verb, invitation: string): string | undefined {
  if (is !== "send" && is !== "share") return undefined;
  return `${otherStartedAs("participant")} ${answers[is]} ${invitation}`;
}

/** What a host was perhaps meant to be, if there is none of that name. */
export function meantBy(host: string): string | undefined {
  const meant = /^\w+$/.test(host) ? nearest(host, [...verbs, help]) : undefined;
  return meant && `\`${startedAs("participant")} ${meant}\``;
}
