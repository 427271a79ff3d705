/**
 * The participant's prompt: prints events, and runs commands on what it is given. For participant.ts.
 */
import { existsSync } from "node:fs";
import type { PeerRow } from "../participant/peer-events.ts";
import type { Peers } from "../participant/peers.ts";
import type {
  ConnectOptions,
  Forwarded,
  ForwardOptions,
  Keeper,
  SendOptions,
} from "../participant/public.ts";
import { notRegistered } from "../participant/refused.ts";
import type { Uses } from "../participant/uses.ts";
import type { TransferOutcome } from "../uses/files.ts";
import type { ForwardRow } from "../uses/forwards.ts";
import type { SourceFiles } from "../uses/source-files.ts";
import type { ForwardSpec } from "../uses/target.ts";
import { wordsProblem } from "../secure/words.ts";
import { defaultRoom, printable, ToldError, UserError } from "../../protocol.ts";
import { Terminal } from "./terminal.ts";
import { readCommand, readRate, UsageError, withPeer } from "./command-line.ts";
import { jsonPieces, timed } from "./table.ts";
import { bytes } from "./text.ts";
import type { NatReport, ParticipantEvent, Self } from "../participant/events.ts";
import type { Unfinished } from "../uses/unfinished.ts";
import { renderDetails, renderForwards, renderList, renderUnfinished } from "./participant-list.ts";
import { renderSelf, describe } from "./participant-story.ts";
import { renderNat } from "./participant-nat.ts";
import { type Invitation, readCode, readHostPort, readInvitation, readRoom } from "./invitation.ts";
import { type Arguments, askedRoom, commandHelp, commands, newRoom } from "./participant-arguments.ts";

/** What the commands need of the participant. */
export interface Commanded {
  readonly self: Self | undefined;
  readonly isPrivate: boolean;
  readonly peers: Peers;
  readonly uses: Uses;
  connect(peer: string, options: ConnectOptions): Promise<unknown>;
  keep(peer: string): Keeper;
  disconnect(peer: string): Promise<"linked" | "kept">;
  say(peer: string, text: string): Promise<unknown>;
  ping(peer: string): Promise<unknown>;
  echo(text: string): Promise<unknown>;
  join(): Promise<void>;
  leave(): Promise<void>;
  nat(): Promise<NatReport>;
  forward(spec: string | ForwardSpec, options?: ForwardOptions): Promise<Forwarded>;
  unforward(listen: string, options?: Pick<ForwardOptions, "remote">): Promise<void>;
  allow(rule: string): Promise<string>;
  send(peer: string, paths: readonly string[] | SourceFiles, options?: SendOptions): Promise<TransferOutcome>;
}

/** What a command acts on. */
export interface Commandable {
  participant: Commanded;
}

const ofForwards = [
  ...(["forward", "unforward", "forwards", "allow", "disallow", "allowed"] as const),
  ...(["allow-listen", "disallow-listen"] as const),
];
type ForwardCommand = (typeof ofForwards)[number];
type UseCommand = "accept" | "refuse" | "received" | "cancel" | "limit";
const isOfForwards = (command: ForwardCommand | UseCommand): command is ForwardCommand =>
  ofForwards.some((one) => one === command);

/** Results, on standard output: events that answer a command, or what a peer has said. */
const results: ReadonlySet<ParticipantEvent["event"]> = new Set(["said", "pong", "echo"] as const);

/** Events that are printed even with --quiet, on standard error. */
const problems: ReadonlySet<ParticipantEvent["event"]> = new Set([
  "forward-refused",
  "listen-refused",
  "transfer-failed",
  "transfer-waiting",
  "skipped",
  "failed",
  "error",
  "warning",
  "absent",
  "alone",
  "introducer",
] as const);

const isProblem = (event: ParticipantEvent): boolean =>
  problems.has(event.event) || (event.event === "transferred" && event.failed > 0);

/** Between the participant and the user: prints events, runs commands. */
export class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;
  /** Whether standard output belongs to a pipe. Then results are part of the story. */
  readonly #isPipe: boolean;

  /** Whether no relay is wanted. */
  readonly #isDirect: boolean;

  constructor(terminal: Terminal, options: { isJson: boolean; isPipe: boolean; isDirect: boolean }) {
    this.#terminal = terminal;
    this.#isJson = options.isJson;
    this.#isPipe = options.isPipe;
    this.#isDirect = options.isDirect;
  }

  event(event: ParticipantEvent): void {
    if (this.#isJson) this.#json(event);
    if (event.event === "error") return this.#terminal.error(event.message);
    const isResult = !this.#isJson && !this.#isPipe && results.has(event.event);
    const text = describe(
      event,
      isResult ? this.#terminal.resultColors : this.#terminal.storyColors,
      this.#isDirect,
    );
    if (text === undefined) return;
    if (isResult) this.#terminal.result(text);
    else this.#terminal.story(text, isProblem(event));
  }

  /** Runs one line. Rejects with what is wrong with it. */
  async run(line: string, { participant }: Commandable): Promise<void> {
    const { command, words, text, flags } = readCommand(commands, addressed(line, participant));
    const [peer = ""] = words;
    switch (command) {
      case "list":
        return this.#list(await participant.peers.list(), flags.includes("-v"));
      case "connect":
        return connectAll(words, flags.includes("-v"), participant);
      case "say":
        return void (await participant.say(peer, text));
      case "ping":
        return void (await participant.ping(peer));
      case "disconnect":
        return this.#disconnect(peer, participant);
      case "echo":
        return void (await participant.echo(text));
      case "leave":
        return participant.leave();
      case "join":
        return participant.join();
      case "nat":
        return this.nat(await participant.nat());
      case "whoami":
        return this.#whoami(participant);
      case "help":
        return this.#isJson ? this.#terminal.story(commandHelp) : this.#terminal.result(commandHelp);
      case "quit":
        return; // whoever reads the lines ends
      case "forget":
        await participant.peers.forget(peer);
        return this.#terminal.story(`the next certificate that comes by the name ${printable(peer)} counts`);
      case "send":
        return sendToSome(words, participant);
      default:
        return isOfForwards(command)
          ? this.#forward(command, words[0] ?? "", flags, participant)
          : this.#use(command, words, participant);
    }
  }

  /** Forwards, and what peers may do here. */
  async #forward(
    command: ForwardCommand,
    first: string,
    flags: string[],
    participant: Commanded,
  ): Promise<void> {
    const { uses } = participant;
    switch (command) {
      case "forward":
        if (flags.length > 1) throw new UserError("`forward` takes one of -D and -R");
        return void (await participant.forward(first, {
          ...{ socks: flags.includes("-D"), remote: flags.includes("-R") },
        }));
      case "unforward":
        await participant.unforward(first, { remote: flags.includes("-R") });
        return this.#terminal.story(`nothing is forwarded from ${first} any more`);
      case "forwards":
        return this.#forwards(uses.forwards);
      case "allow":
        return this.#terminal.story(
          `peers may reach ${await participant.allow(first)} through you from now on`,
        );
      case "disallow":
        await uses.disallow(first);
        return this.#terminal.story(`peers may reach ${first} no more; what is open stays open`);
      case "allow-listen":
        return this.#terminal.story(`peers may listen on ${await uses.allowListen(first)} here from now on`);
      case "disallow-listen":
        await uses.disallowListen(first);
        return this.#terminal.story(`peers may listen on ${first} here no more`);
      case "allowed":
        return this.#allowed(uses.allowed, uses.allowedToListen);
    }
  }

  /** Files and pipes. */
  async #use(command: UseCommand, words: string[], { uses }: Commanded): Promise<void> {
    const [first = ""] = words;
    switch (command) {
      case "accept":
        return uses.accept(first, words[1] ?? ".");
      case "refuse":
        return uses.refuse(first);
      case "received":
        return this.#unfinished(await uses.unfinished(words[0]));
      case "limit":
        return this.#limit(first, uses);
      case "cancel":
        return uses.cancel(words[0]);
    }
  }

  /** Shows the limit, or sets it. */
  #limit(text: string, uses: Uses): void {
    if (text !== "") uses.bytesPerSecond = text === "none" ? undefined : readRate("limit", text, UserError);
    const rate = uses.bytesPerSecond;
    const how = rate === undefined ? "as fast as can be" : `at ${bytes(rate)}/s at most`;
    this.#terminal.story(`files and pipes are sent ${how}`, true);
  }

  nat(report: NatReport): void {
    if (!this.#isJson) this.#terminal.result(renderNat(report, this.#terminal.resultColors));
  }

  /** Ends the link, also one that is still being made. */
  async #disconnect(peer: string, participant: Commanded): Promise<void> {
    if ((await participant.disconnect(peer)) === "kept")
      this.#terminal.story(`a link with ${printable(peer)} is not sought any more`);
  }

  async #list(rows: readonly PeerRow[], isVerbose: boolean): Promise<void> {
    if (this.#isJson) return this.#terminal.longResult(await jsonPieces({ event: "peers" }, "peers", rows));
    const { width, resultColors: colors } = this.#terminal;
    this.#terminal.longResult(await renderList(rows, width, colors));
    if (isVerbose && rows.length > 0) this.#terminal.longResult(await renderDetails(rows, colors));
  }

  #forwards(rows: ForwardRow[]): void {
    if (this.#isJson) return this.#json({ event: "forwards", forwards: rows });
    this.#terminal.result(renderForwards(rows, this.#terminal.width));
  }

  #unfinished(unfinished: readonly Unfinished[]): void {
    if (this.#isJson) return this.#json({ event: "unfinished", unfinished });
    this.#terminal.result(renderUnfinished(unfinished, this.#terminal.width));
  }

  #allowed(allowed: readonly string[], listen: readonly string[]): void {
    if (this.#isJson) return this.#json({ event: "allowed", allowed, listen });
    const lines = [...allowed, ...listen.map((one) => `listen on ${one}`)];
    this.#terminal.result(
      lines.length > 0 ? lines.join("\n") : "nothing: peers can reach nothing through you",
    );
  }

  #whoami({ self }: Commanded): void {
    if (!self) throw notRegistered();
    if (this.#isJson) return this.#json({ event: "whoami", ...self });
    this.#terminal.result(renderSelf(self, this.#terminal.resultColors));
  }

  #json(event: object): void {
    this.#terminal.result(timed(event));
  }
}

/** Throws if not all files have arrived at those. What is missing there has been told already. */
export function notWholeAt(names: readonly string[]): void {
  if (names.length > 0)
    throw new ToldError(`not all of it has arrived at ${names.map(printable).join(", ")}`);
}

/** Sends to all of them at once. Throws if it has not arrived whole at each, and says at whose. */
export async function sendToAll(
  peers: readonly string[],
  send: (peer: string) => Promise<{ failed: number }>,
) {
  const failed: string[] = [];
  const work = peers.map(async (peer) => {
    try {
      if ((await send(peer)).failed > 0) failed.push(peer);
    } catch (error) {
      failed.push(peer);
      throw error;
    }
  });
  const sent = everyone(work);
  if (peers.length === 1) return sent.then(() => notWholeAt(failed));
  const problem = await sent.catch((error: Error) => error);
  if (problem && !(problem instanceof UserError)) throw problem;
  if (failed.length === 0) return;
  if (failed.length === peers.length && problem && !(problem instanceof ToldError)) throw problem;
  const why = problem && !(problem instanceof ToldError) ? `: ${problem.message}` : "";
  const whole = peers.filter((peer) => !failed.includes(peer));
  const others = whole.length > 0 ? `; all of it has at ${whole.map(printable).join(", ")}` : "";
  throw new UserError(`not all of it has arrived at ${failed.map(printable).join(", ")}${others}${why}`);
}

/** `send PEER … PATH …`: the first word is a peer, and so is each that follows, as long as it is one, and no file. */
async function sendToSome(words: readonly string[], participant: Commanded): Promise<void> {
  const isPeer = (word: string, index: number) =>
    index === 0 || (isSomebody(word, participant) && !existsSync(word));
  const last = words.findIndex((word, index) => !isPeer(word, index));
  const count = last < 0 ? words.length - 1 : last;
  const paths = words.slice(count);
  await sendToAll([...new Set(words.slice(0, count))], (peer) => participant.send(peer, paths));
}

function isSomebody(word: string, { peers }: Commanded): boolean {
  const meant = peers.nameOf(word).toLowerCase();
  return word !== "" && [...peers.names()].some((name) => name.toLowerCase() === meant);
}

/** PEER may be left out where a private room has only one other person. */
function addressed(line: string, participant: Commanded): string {
  const only = participant.isPrivate ? participant.peers.nameOf("") : "";
  if (only === "") return line;
  return withPeer(commands, line, only, (word) => isSomebody(word, participant));
}

/** Connects to all of them at once. Who types that wants a new link. */
async function connectAll(words: string[], isVerbose: boolean, participant: Commanded): Promise<void> {
  const connect = async (word: string) => {
    const link = participant.peers.link(word);
    if (link) throw new UserError(`already linked with ${printable(link.name)}`);
    return participant.connect(word, { verbose: isVerbose });
  };
  await everyone(words.map(connect));
}

/** Waits for all, then rejects with whatever failed. */
async function everyone(all: Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(all)).filter((one) => one.status === "rejected");
  const reasons: unknown[] = failed.map(({ reason }) => reason);
  const unexpected = reasons.find((reason) => !(reason instanceof UserError));
  if (unexpected !== undefined) throw unexpected;
  const untold = reasons.filter((one) => !(one instanceof ToldError)) as UserError[];
  if (untold.length > 0) throw new UserError([...new Set(untold.map(({ message }) => message))].join("; "));
  if (reasons.length > 0) throw reasons[0];
}

export function isQuit(line: string): boolean {
  try {
    return readCommand(commands, line).command === "quit";
  } catch {
    return false;
  }
}

/** Asks until the words can be those of a private room. Undefined if the user gives up. */
async function askRoom(terminal: Terminal): Promise<Partial<Invitation> | undefined> {
  if (!terminal.isInteractive)
    throw new UsageError("--room - asks for the words, and there is no terminal: give them in ROOM");
  return terminal.askSecret("Words of the room (not shown): ", (answer) => {
    const room = tried(terminal, () => readRoom(answer.trim()));
    const words = room?.words ?? "";
    const isOther = [defaultRoom, newRoom, askedRoom].includes(words);
    const problem = isOther ? "must have words of its own here" : wordsProblem(words);
    if (room && problem) terminal.error(`a room ${problem}`);
    return problem ? undefined : room;
  });
}

/** What a user has answered; undefined if it can't be, which the user is told. */
function tried<T>(terminal: Terminal, read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    terminal.error(error.message);
    return undefined;
  }
}

/** Asks for a code without showing it. Without a terminal it is the first line of standard input. */
async function askCode(terminal: Terminal): Promise<Partial<Invitation> | undefined> {
  if (!terminal.isInteractive) {
    for await (const line of terminal.lines()) return readCode(line.trim());
    throw new UsageError("no code has come by standard input: give it there, or after the verb");
  }
  return terminal.askSecret("Code (not shown): ", (answer) => tried(terminal, () => readCode(answer.trim())));
}

/** Asks for what the command line has left to be asked for. Returns whether the user has answered. */
export async function askMissing(options: Arguments, terminal: Terminal): Promise<boolean> {
  if (options.room === askedRoom) {
    const { is } = options.verb ?? {};
    const asked = await (is === "receive" || is === "reach" ? askCode(terminal) : askRoom(terminal));
    if (asked?.words === undefined) return false;
    options.room = asked.words;
    options.introducer = asked.introducer ?? options.introducer;
    takeKey(options, asked);
  }
  if (options.introducer !== undefined) return true;
  const place = await askIntroducer(terminal);
  options.introducer = place?.introducer;
  options.room ??= place?.words;
  takeKey(options, place);
  return place !== undefined;
}

/** The key of what was typed, unless another one was given. */
function takeKey(options: Arguments, { key }: Partial<Invitation> = {}): void {
  if (key !== undefined) options.key ??= { text: key, isPassedOn: true };
}

/** Asks until the answer can be an introducer, or an invitation. Undefined if the user gives up. */
async function askIntroducer(terminal: Terminal): Promise<Invitation | undefined> {
  if (!terminal.isInteractive)
    throw new UsageError("which introducer? Give HOST[:PORT] (a verb: --via HOST), or set INTRODUCER");
  return terminal.ask("Introducer (HOST, HOST:PORT, or an invitation): ", (answer) => {
    if (answer === "") return undefined;
    return tried(terminal, () => {
      const invitation = readInvitation(answer);
      readHostPort(invitation.introducer);
      return invitation;
    });
  });
}
