/**
 * The operator's prompt: prints events as log lines or JSON, and runs commands on what it is given. For introducer.ts.
 */
import { stamps } from "../shares/clock.ts";
import { startedAs, otherStartedAs } from "../host/started.ts";
import { History } from "./history.ts";
import type { Terminal } from "./terminal.ts";
import { CommandError, complete, findByIdOrName, readCommand } from "./command-line.ts";
import { jsonPieces, timed } from "./table.ts";
import { count } from "./text.ts";
import {
  addressScope,
  canonicalAddress,
  defaultPort,
  formatEndpoint,
  printable,
  UserError,
} from "../../protocol.ts";
import { type IntroducerEvent, MetricsPortError, ProbePortError } from "../introducer/events.ts";
import type { Stats } from "../introducer/metrics.ts";
import { idsEach, type Neighbour } from "../introducer/redis/homes.ts";
import type { Participant } from "../introducer/rooms.ts";
import { publicAddress } from "../introducer/observe.ts";
import { describe, renderOthers, renderParticipants, renderStats, roomName } from "./introducer-tables.ts";
import {
  type Arguments,
  commandHelp,
  commands,
  type LogFormat,
  parsePort,
  proposedPorts,
} from "./introducer-arguments.ts";

/** Events that are printed even with --quiet. */
const problems: ReadonlySet<IntroducerEvent["event"]> = new Set(["error", "warning"] as const);

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
}

/** The operator's side: events as log lines or JSON, and the commands. */
export class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;
  readonly #log: LogFormat;
  readonly #isVerbose: boolean;
  /** The lines of this turn of the event loop. */
  #told: string[] = [];
  #failures = 0;

  constructor(terminal: Terminal, { json, log, verbose }: Pick<Arguments, "json" | "log" | "verbose">) {
    this.#terminal = terminal;
    this.#isJson = json;
    this.#log = log;
    this.#isVerbose = verbose;
  }

  event(event: IntroducerEvent): void {
    const isProblem = problems.has(event.event);
    if (event.event === "ignored" && !this.#isVerbose && !this.#isJson) return;
    if (this.#terminal.isQuiet && !this.#isJson && !isProblem) return;
    if (this.#told.length === 0) setImmediate(() => this.flush());
    this.#told.push(this.#isJson || this.#log === "json" ? timed(forPrograms(event)) : this.#logLine(event));
    if (isProblem || this.#terminal.isInteractive) this.flush(isProblem);
  }

  #logLine(event: IntroducerEvent): string {
    const time = this.#terminal.storyColors.dim(new Date().toTimeString().slice(0, 8));
    return `${time} ${printable(describe(event))}`;
  }

  /** Writes the lines of one turn by one system call. In a flood, a call for each line would be a quarter of all work. */
  flush(isProblem = false): void {
    if (this.#told.length === 0) return;
    const text = this.#told.join("\n");
    this.#told = [];
    if (this.#isJson) this.#terminal.result(text);
    else this.#terminal.story(text, isProblem);
  }

  /** Runs commands until the operator ends it. Resolves to the exit code. */
  async runCommands(introducer: Operated): Promise<number> {
    const terminal = this.#terminal;
    if (terminal.isInteractive) {
      terminal.story("`help` shows the commands");
      await this.#converse(introducer);
      return 0;
    }
    try {
      for await (const line of terminal.lines()) {
        if (line.trim() !== "" && (await this.#run(line, introducer))) return this.#failures > 0 ? 1 : 0;
        await terminal.whenRead();
      }
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      terminal.error(error.message);
    }
    return new Promise<never>(() => {}); // a service has /dev/null as standard input, so its end means nothing
  }

  #converse(introducer: Operated): Promise<void> {
    const here = () => count(introducer.stats.participants, "participant");
    const isAlone = () => introducer.stats.participants === 0;
    return this.#terminal.converse({
      prompt: "introducer> ",
      history: new History("introducer"),
      onLine: async (line) => {
        if (!(await this.#run(line, introducer))) return false;
        const question = `end the introducer for ${here()}? [y/N] `;
        return (
          isAlone() || (await this.#terminal.ask(question, (answer) => /^y(es)?$/i.test(answer))) === true
        );
      },
      complete: (line) => complete(commands, introducer.names(), line),
      reasonToStay: () => (isAlone() ? undefined : `${here()} here`),
    });
  }

  /** Runs one line. Returns whether it asks to end. */
  async #run(line: string, introducer: Operated): Promise<boolean> {
    try {
      const { command, words, text } = readCommand(commands, line);
      if (command === "quit") return true;
      if (command === "list") await this.#list(introducer);
      if (command === "stats") await this.#stats(introducer);
      if (command === "help") this.#terminal.result(commandHelp);
      if (command === "broadcast") await this.#broadcast(introducer, text);
      if (command === "tell") await this.#tell(introducer, words[0]!, text);
    } catch (error) {
      if (!(error instanceof CommandError)) throw error;
      this.#failures++;
      this.#say({ event: "error", message: error.message });
    }
    return false;
  }

  async #list(introducer: Operated): Promise<void> {
    const participants = await introducer.listed();
    const { value: others, problem } = await tried(introducer.others());
    const { resultColors, width } = this.#terminal;
    const pieces = this.#isJson
      ? await jsonPieces(
          { event: "participants", ...(others && { others }) },
          "participants",
          participants.map(forPrograms),
        )
      : await renderParticipants(participants, resultColors, stamps.now, width);
    if (!this.#isJson) pieces.push(...renderOthers(others));
    this.flush();
    this.#terminal.longResult(pieces);
    failIfIncomplete("other introducers may be missing", problem);
  }

  async #stats(introducer: Operated): Promise<void> {
    const { value: others, problem } = await tried(introducer.others());
    const { stats } = introducer;
    if (this.#isJson) this.#json({ event: "stats", stats, ...(others && { others }) });
    else this.#terminal.result([renderStats(stats), ...renderOthers(others)].join("\n"));
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

  /** Prints the outcome of a command; as JSON where programs read. */
  #say(event: IntroducerEvent): void {
    const isProblem = problems.has(event.event);
    if (this.#isJson) this.#json(event);
    this.flush();
    if (this.#log === "json") this.#terminal.story(timed(event), isProblem);
    else if (isProblem) this.#terminal.error(describe(event));
    else if (!this.#isJson) this.#terminal.story(printable(describe(event)));
  }

  #json(event: object): void {
    this.flush();
    this.#terminal.result(timed(event));
  }
}

const forPrograms = <T extends object>(shown: T): T =>
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

export function askPort(terminal: Terminal): Promise<number | undefined> {
  return terminal.ask(`Port [${defaultPort}]: `, (answer) => {
    const port = answer === "" ? defaultPort : parsePort(answer);
    if (port === undefined) terminal.error("a port is a number from 1 to 65535");
    return port;
  });
}

/** What a participant types to come here. */
export function invitation({ host, port }: { host: string; port: number }): string {
  const command = `participants type:  ${otherStartedAs("participant")}`;
  if (canonicalAddress(host) === undefined) return `${command} ${host}:${port}`;
  const address = publicAddress(host);
  const scope = addressScope(address);
  const hint = {
    global: "",
    unusable: "",
    loopback: `\n${address} can be reached from this host only`,
    private: `\n${address} is a private address: from elsewhere, use the public one that leads to TCP port ${port} here`,
  }[scope];
  return `${command} ${formatEndpoint(address, port)}${hint}`;
}

/** The next port after a taken one that is free now; undefined if there is none near. */
function freePortAfter(taken: number, hostname: string): number | undefined {
  const last = Math.min(65535, taken + proposedPorts);
  for (let port = taken + 1; port <= last; port++) {
    try {
      Bun.listen({ hostname, port, socket: { data() {} } }).stop(true);
      return port;
    } catch {
      // taken as well
    }
  }
  return undefined;
}

export function listenProblem(error: unknown, host: string | undefined, port: number): string {
  const { code, message } = error as { code?: string; message: string };
  const command = startedAs("introducer");
  if (error instanceof ProbePortError || error instanceof MetricsPortError) return message;
  if (code === "EADDRINUSE") {
    const free = freePortAfter(port, host ?? "::");
    return `port ${port} is taken by another program; choose another${free === undefined ? "" : `: ${command} ${free}`}`;
  }
  if (code === "EACCES")
    return `port ${port} needs more rights; choose one from 1024 on: ${command} ${defaultPort}`;
  if (code === "EADDRNOTAVAIL")
    return `this host has no address ${host}; leave --host out to listen on all it has`;
  return `can't listen on ${host ?? "any address"} port ${port}: ${message}`;
}
