/**
 * A participant's program that runs: what its parts share, and how long they wait. Owns nothing. For native/terminal/ and
 * participant.ts.
 */
import type { ParticipantEvent } from "../participant/events.ts";
import type { PeerLink, PeerStream } from "../participant/peer-link.ts";
import type {
  ConnectOptions,
  JoinOptions,
  ParticipantState,
  PipeEnds,
  PipeOptions,
  StreamFrom,
  StreamHandler,
} from "../participant/public.ts";
import { printable, UserError } from "../../protocol.ts";
import type { Arguments } from "./participant-arguments.ts";
import type { Commanded, Prompt } from "./participant-prompt.ts";
import type { Terminal } from "./terminal.ts";

/** Who is alone in a private room for so long is told. */
const aloneAfterMs = 10_000;

/** What the program wants of the participant. */
export interface Driven extends Commanded {
  readonly state: ParticipantState;
  join(options?: JoinOptions): Promise<void>;
  onStream(use: string, handler: StreamHandler): Disposable;
  serve(stream: PeerStream, from: StreamFrom): Promise<void>;
  connect(peer: string, options?: ConnectOptions): Promise<PeerLink>;
  accept(folder: string, options: { from: string | undefined }): Promise<void>;
  pipe(peer: string, options: PipeOptions): Promise<PipeEnds>;
  quit(): Promise<void>;
}

/** A program that runs: what its parts share. */
export interface Running {
  participant: Driven;
  prompt: Prompt;
  terminal: Terminal;
  options: Arguments;
  /** When it began, by performance.now(): the time of --wait counts from there. */
  startedAt: number;
  /** To the room that was made here. */
  invitation?: string;
  /** Whether the user has ended it: what fails from now on need not be told. */
  isOver?: boolean;
  /** Gets all events, too. */
  heard?: (event: ParticipantEvent) => void;
}

type Timed = Pick<Running, "participant" | "options" | "startedAt">;

/** Passes on what comes within the time of --wait. Else rejects with why it has not come. */
export async function inTime<T>(running: Timed, peer: string, work: Promise<T>): Promise<T> {
  const { participant, options } = running;
  const { waitMs } = options;
  if (waitMs === undefined) return work;
  const why = () => whyNot(participant, peer, `within ${waitMs / 1000} s (--wait)`);
  return within(leftMs(running, waitMs), work, why);
}

/** What is left of the time of --wait. */
function leftMs({ startedAt }: Timed, waitMs: number): number {
  return Math.max(0, waitMs - (performance.now() - startedAt));
}

/** Joins the room. An introducer that is not there yet is waited for within the time of --wait; by what stays for ever. */
export async function joinInTime(running: Timed, wants: readonly string[] = []): Promise<void> {
  const { participant, options } = running;
  const joining = participant.join({ wants });
  if (options.waitMs === undefined) return joining;
  const late = () => `not registered with the introducer within ${options.waitMs! / 1000} s (--wait)`;
  await within(leftMs(running, options.waitMs), joining, late);
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
  const rows = await participant.peers.list();
  const here = rows.flatMap(({ name, present, state }) => (present && state !== "untrusted" ? [name] : []));
  const meant = participant.peers.nameOf(peer);
  if (here.includes(meant))
    return `there was no link with ${printable(meant)} ${time}; \`--nat\` on both sides tells what is between you`;
  const others = here.length > 0 ? `; here: ${here.slice(0, 10).map(printable).join(", ")}` : "";
  return peer === "" ? `nobody came ${time}` : `${printable(peer)} did not come ${time}${others}`;
}

/** After a while alone in a private room, the words may be others than the other side's. */
export function tellIfAlone({ participant, prompt, terminal, invitation, options }: Running): void {
  if (invitation !== undefined || !participant.isPrivate) return;
  const look = () => {
    const names = [...participant.peers.names()];
    if (participant.state !== "registered") return;
    if (names.length === 0) return prompt.event({ event: "alone" });
    // Who has a code waits for what the other side does.
    const isIdle = options.verb && participant.peers.linkCount === 0;
    if (isIdle)
      terminal.story(
        `here: ${names.map(printable).join(", ")}; but the code may be used up: ask for another`,
      );
  };
  setTimeout(look, aloneAfterMs).unref();
}
