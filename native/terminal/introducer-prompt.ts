/**
 * The operator's prompt: prints events as log lines or JSON, and runs commands on what it is given. For introducer.ts.
 */
import { startedAs, otherStartedAs } from "../host/started.ts";
import { History } from "./history.ts";
import type { Terminal } from "./terminal.ts";
import { complete } from "./command-line.ts";
import { timed } from "./table.ts";
import { count } from "./text.ts";
import {
  addressScope,
  canonicalAddress,
  defaultPort,
  formatEndpoint,
  printable,
  UserError,
} from "../../protocol.ts";
import { type IntroducerEvent, ProbePortError } from "../introducer/events.ts";
import { publicAddress } from "../introducer/observe.ts";
import { Commands, forPrograms, type Operated, problems } from "./introducer-commands.ts";
import { describe } from "./introducer-tables.ts";
import {
  type Arguments,
  commands,
  type LogFormat,
  parsePort,
  proposedPorts,
} from "./introducer-arguments.ts";

/** The operator's side: events as log lines or JSON, and the commands. */
export class Prompt {
  readonly #terminal: Terminal;
  readonly #isJson: boolean;
  readonly #log: LogFormat;
  readonly #isVerbose: boolean;
  readonly #commands: Commands;
  /** The lines of this turn of the event loop. */
  #told: string[] = [];
  #failures = 0;

  constructor(terminal: Terminal, { json, log, verbose }: Pick<Arguments, "json" | "log" | "verbose">) {
    this.#terminal = terminal;
    this.#isJson = json;
    this.#log = log;
    this.#isVerbose = verbose;
    this.#commands = new Commands(terminal, { json, log }, () => this.flush());
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
        const outcome = await this.#run(line, introducer);
        if (outcome !== "quit") return outcome === "drained";
        const question = `end the introducer for ${here()}? [y/N] `;
        return (
          isAlone() || (await this.#terminal.ask(question, (answer) => /^y(es)?$/i.test(answer))) === true
        );
      },
      complete: (line) => complete(commands, introducer.names(), line),
      reasonToStay: () => (isAlone() ? undefined : `${here()} here`),
    });
  }

  /** Runs one line. Returns whether it asks to end, or has ended everything. */
  async #run(line: string, introducer: Operated): Promise<"quit" | "drained" | undefined> {
    const outcome = await this.#commands.run(line, introducer);
    if (outcome === "failed") this.#failures++;
    return outcome === "quit" || outcome === "drained" ? outcome : undefined;
  }
}

export function askPort(terminal: Terminal): Promise<number | undefined> {
  return terminal.ask(`Port [${defaultPort}]: `, (answer) => {
    const port = answer === "" ? defaultPort : parsePort(answer);
    if (port === undefined) terminal.error("a port is a number from 1 to 65535");
    return port;
  });
}

/** What a participant types to come here. */
export function invitation({ host, port }: { host: string; port: number }, hasKey = false): string {
  const command = `participants type:  ${otherStartedAs("participant")}${hasKey ? " --key FILE" : ""}`;
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
  if (error instanceof UserError || error instanceof ProbePortError) return message;
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
