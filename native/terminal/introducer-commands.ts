/**
 * What an operator's commands do, wherever they come from: the prompt, standard input, or `introducer ctl`. Owns nothing. For
 * native/terminal/introducer-prompt.ts and introducer-control.ts.
 */
import { stamps } from "../shares/clock.ts";
import { printable } from "../../protocol.ts";
import type { IntroducerEvent } from "../introducer/events.ts";
import { drainMs, type Limits } from "../introducer/limits.ts";
import type { Stats } from "../introducer/metrics.ts";
import { idsEach, type Neighbour } from "../introducer/redis/homes.ts";
import type { Participant } from "../introducer/rooms.ts";
import { CommandError, findByIdOrName, readCommand, UsageError } from "./command-line.ts";
import { commandHelp, commands, type LogFormat, readLimits } from "./introducer-arguments.ts";
import {
  describe,
  renderLimits,
  renderOthers,
  renderParticipants,
  renderStats,
  roomName,
} from "./introducer-tables.ts";
import { jsonPieces, timed } from "./table.ts";
import { type Colors, count } from "./text.ts";

/** Events that are printed even with --quiet. */
export const problems: ReadonlySet<IntroducerEvent["event"]> = new Set(["error", "warning"] as const);

/** What the commands need of the introducer. */
export interface Operated {
  readonly stats: Stats;
  names(): Iterable<string>;
  listed(): Promise<Participant[]>;
  /** The introducers that share a Redis with it; undefined where there is none, rejects while it is away. */
  others(): Promise<Neighbour[] | undefined>;
  /** Whether that participant could be told. */
  tell(text: string, id: number): Promise<boolean>;
  /** Resolves to how many participants were told. */
  broadcast(text: string): Promise<number>;
  /** The same at all others; resolves to how many those are, and rejects, likewise. */
  broadcastElsewhere(text: string): Promise<number | undefined>;
  /** From now on. */
  setLimits(limits: Partial<Limits>): void;
  /** Sends everyone away in order. */
  drain(reason: string): Promise<void>;
}

/** Where results and the story go. */
export interface Screen {
  readonly resultColors: Colors;
  readonly width: number;
  result(text: string): void;
  longResult(pieces: readonly string[]): void;
  story(text: string, isProblem?: boolean): void;
  error(message: string): void;
}

/** `quit`: it asks to end; `drained`: all that was under way is over. */
export type Outcome = "done" | "failed" | "quit" | "drained";

export class Commands {
  readonly #screen: Screen;
  readonly #isJson: boolean;
  readonly #log: LogFormat;
  readonly #flush: () => void;

  /** `flush`: called before anything is printed. */
  constructor(
    screen: Screen,
    { json, log }: { json: boolean; log: LogFormat },
    flush: () => void = () => {},
  ) {
    this.#screen = screen;
    this.#isJson = json;
    this.#log = log;
    this.#flush = flush;
  }

  /** Runs one line. */
  async run(line: string, introducer: Operated): Promise<Outcome> {
    try {
      const { command, words, text } = readCommand(commands, line);
      if (command === "quit") return "quit";
      if (command === "list") await this.#list(introducer);
      if (command === "stats") await this.#stats(introducer);
      if (command === "help") this.#screen.result(commandHelp);
      if (command === "broadcast") await this.#broadcast(introducer, text);
      if (command === "tell") await this.#tell(introducer, words[0]!, text);
      if (command === "limits") this.#limits(introducer, words);
      if (command === "drain") return await this.#drain(introducer);
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      this.#say({ event: "error", message: error.message });
      return "failed";
    }
    return "done";
  }

  async #list(introducer: Operated): Promise<void> {
    const participants = await introducer.listed();
    const { value: others, problem } = await tried(introducer.others());
    const { resultColors, width } = this.#screen;
    const pieces = this.#isJson
      ? await jsonPieces(
          { event: "participants", ...(others && { others }) },
          "participants",
          participants.map(forPrograms),
        )
      : await renderParticipants(participants, resultColors, stamps.now, width);
    if (!this.#isJson) pieces.push(...renderOthers(others));
    this.#flush();
    this.#screen.longResult(pieces);
    failIfIncomplete("other introducers may be missing", problem);
  }

  async #stats(introducer: Operated): Promise<void> {
    const { value: others, problem } = await tried(introducer.others());
    const { stats } = introducer;
    if (this.#isJson) this.#json({ event: "stats", stats, ...(others && { others }) });
    else this.#screen.result([renderStats(stats), ...renderOthers(others)].join("\n"));
    failIfIncomplete("other introducers may be missing", problem);
  }

  async #broadcast(introducer: Operated, text: string): Promise<void> {
    const participants = await introducer.broadcast(text);
    const { value: introducers, problem } = await tried(introducer.broadcastElsewhere(text));
    this.#say({ event: "told", participants, ...(introducers !== undefined && { introducers }) });
    failIfIncomplete("those at other introducers may not have been told", problem);
  }

  async #tell(introducer: Operated, word: string, text: string): Promise<void> {
    const found = findByIdOrName(await introducer.listed(), word);
    if (typeof found === "string") throw new CommandError((await whereElse(introducer, word)) ?? found);
    const who = `${printable(found.name)} (${found.id})`;
    if (!(await introducer.tell(text, found.id))) throw new CommandError(`${who} was not told: it has left`);
    this.#say({ event: "told", participants: 1, id: found.id, name: found.name });
  }

  #limits(introducer: Operated, [name, value]: string[]): void {
    if (name !== undefined) {
      if (!changeable.includes(name))
        throw new CommandError(`${printable(name)} can't be changed now: ${changeable.join(", ")} can`);
      if (value === undefined) throw new CommandError(`${name} needs a number after it`);
      introducer.setLimits(readLimit(name, value));
    }
    const { limits } = introducer.stats;
    if (this.#isJson) this.#json({ event: "limits", limits });
    else this.#screen.result(renderLimits(introducer.stats));
  }

  async #drain(introducer: Operated): Promise<Outcome> {
    const here = count(introducer.stats.participants, "participant");
    this.#screen.story(`sending ${here} away; what is under way may take ${drainMs / 1000} s`);
    await introducer.drain("the operator ended the introducer");
    return "drained";
  }

  /** Prints the outcome of a command; as JSON where programs read. */
  #say(event: IntroducerEvent): void {
    const isProblem = problems.has(event.event);
    if (this.#isJson) this.#json(event);
    this.#flush();
    if (this.#log === "json") this.#screen.story(timed(event), isProblem);
    else if (isProblem) this.#screen.error(describe(event));
    else if (!this.#isJson) this.#screen.story(printable(describe(event)));
  }

  #json(event: object): void {
    this.#flush();
    this.#screen.result(timed(event));
  }
}

/** The limits that can be changed while it runs, by the names of their options. */
const changeable = ["max-connections", "max-per-address", "max-room", "max-relays"];

function readLimit(name: string, value: string): Partial<Limits> {
  try {
    return readLimits({ [name]: value });
  } catch (error) {
    if (error instanceof UsageError) throw new CommandError(error.message);
    throw error;
  }
}

/** A private room's id is cut: whoever has all of it can try words against it. */
export const forPrograms = <T extends object>(shown: T): T =>
  "room" in shown && typeof shown.room === "string" ? { ...shown, room: roomName(shown.room) } : shown;

/** The answer of other introducers. `problem`: why they can't be asked. */
async function tried<T>(asked: Promise<T>): Promise<{ value?: T; problem?: string }> {
  try {
    return { value: await asked };
  } catch (error) {
    return { problem: `Redis: ${error instanceof Error ? error.message : String(error)}` };
  }
}

/** Says which other introducer gives out such an id; undefined if none does. */
async function whereElse(introducer: Operated, word: string): Promise<string | undefined> {
  const id = /^\d+$/.test(word) ? Number(word) : 0;
  const { value: others = [] } = await tried(introducer.others());
  const other = others?.find(({ firstId }) => id > firstId && id <= firstId + idsEach);
  return other && `${word} is not here: tell it at ${printable(other.address)}`;
}

/** Throws if the other introducers could not be asked. */
function failIfIncomplete(what: string, problem: string | undefined): void {
  if (problem !== undefined) throw new CommandError(`${what}: ${problem}`);
}
