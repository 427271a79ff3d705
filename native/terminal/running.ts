/**
 * A participant's program that runs: what its parts share, and how long they wait. Owns nothing. For native/terminal/ and
 * participant.ts.
 */
import type { ParticipantEvent } from "../participant/events.ts";
import type { Keep } from "../participant/keep.ts";
import type { Taker } from "../participant/takers.ts";
import type { Link } from "../session/link.ts";
import type { Services } from "../uses/services.ts";
import { printable, UserError } from "../../protocol.ts";
import type { Arguments } from "./participant-arguments.ts";
import type { Commanded, Prompt } from "./participant-prompt.ts";
import type { Terminal } from "./terminal.ts";

/** Who is alone in a private room for so long is told. */
const aloneAfterMs = 10_000;

/** What the program wants of the participant. */
export interface Driven extends Commanded {
  readonly hasQuit: boolean;
  readonly isRegistered: boolean;
  join(wants?: readonly string[]): Promise<void>;
  readonly linkCount: number;
  waitFor(peer: string): Promise<void>;
  whenLinked(peer: string): Promise<Link>;
  onStream(use: string, take: Taker): void;
  linkWith(peer: string): Link | undefined;
  connect(peer: string, isVerbose?: boolean): Promise<Link>;
}

/** A program that runs: what its parts share. */
export interface Running {
  participant: Driven;
  uses: Services;
  keep: Keep;
  /** Resolved once we have been registered. */
  joined: PromiseWithResolvers<void>;
  prompt: Prompt;
  terminal: Terminal;
  options: Arguments;
  /** To the room that was made here. */
  invitation?: string;
  /** Whether the user has ended it: what fails from now on need not be told. */
  isOver?: boolean;
  /** Gets all events, too. */
  heard?: (event: ParticipantEvent) => void;
}

/** Passes on what comes within the time of --wait. Else rejects with why it has not come. */
export async function inTime<T>(
  { participant, options }: Running,
  peer: string,
  work: Promise<T>,
): Promise<T> {
  const { waitMs } = options;
  if (waitMs === undefined) return work;
  return within(waitMs, work, () => whyNot(participant, peer, `within ${waitMs / 1000} s (--wait)`));
}

/** Joins the room. An introducer that is not there yet is waited for within the time of --wait; by what stays for ever. */
export async function joinInTime(running: Running, wants: readonly string[] = []): Promise<void> {
  const { participant, options } = running;
  const joining = participant.join(wants);
  if (options.waitMs === undefined) return joining;
  const late = () => `the introducer was not there within ${options.waitMs! / 1000} s (--wait)`;
  await within(options.waitMs, joining, late);
}

/** Passes on what comes within that time. Else rejects with why it has not come. */
async function within<T>(ms: number, work: Promise<T>, why: () => string | Promise<string>): Promise<T> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(resolve, ms);
  const come = await Promise.race([work.then((value) => ({ value })), late]).finally(() =>
    clearTimeout(timer),
  );
  if (come) return come.value;
  work.catch(() => {});
  throw new UserError(await why());
}

async function whyNot(participant: Driven, peer: string, time: string): Promise<string> {
  const rows = await participant.listed();
  const here = rows.flatMap(({ name, present, state }) => (present && state !== "untrusted" ? [name] : []));
  const meant = participant.nameOf(peer);
  if (here.includes(meant))
    return `there was no link with ${printable(meant)} ${time}; \`--nat\` on both sides tells what is between you`;
  const others = here.length > 0 ? `; here: ${here.slice(0, 10).map(printable).join(", ")}` : "";
  return peer === "" ? `nobody came ${time}` : `${printable(peer)} did not come ${time}${others}`;
}

/** After a while alone in a private room, the words may be others than the other side's. */
export function tellIfAlone({ participant, prompt, terminal, invitation, options }: Running): void {
  if (invitation !== undefined || !participant.isPrivate) return;
  const look = () => {
    const names = [...participant.names()];
    if (!participant.isRegistered) return;
    if (names.length === 0) return prompt.event({ event: "alone" });
    // Who has a code waits for what the other side does.
    const isIdle = options.verb && participant.linkCount === 0;
    if (isIdle)
      terminal.story(
        `here: ${names.map(printable).join(", ")}; but the code may be used up: ask for another`,
      );
  };
  setTimeout(look, aloneAfterMs).unref();
}
