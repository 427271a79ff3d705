/**
 * The introducer's command line: its options, its limits and commands, and their help. For introducer.ts.
 */
import { startedAs } from "../host/started.ts";
import { type Command, CommandError, readCommand, renderCommands } from "./command-line.ts";
import { siteShares } from "../shares/budget.ts";
import { nearest, readOptions, readRate, UsageError } from "./command-line.ts";
import { redisUrlProblem } from "../introducer/redis/connection.ts";
import {
  canonicalAddress,
  defaultPort,
  maxProbePorts,
  parseEndpoint,
  parsePlace,
  splitEndpoint,
} from "../../protocol.ts";
import {
  defaultLimits,
  drainMs,
  minRoomShare,
  type Limits,
  limitsHelp,
  mostInRoom,
  roomLimits,
} from "../introducer/limits.ts";
import type { IntroducerOptions } from "../introducer/events.ts";
import { ownAddresses } from "../introducer/observe.ts";
import { keyOfEnvironment } from "./key-file.ts";
import { type ControlArguments, controlPath } from "./control-path.ts";
import { amount } from "./introducer-tables.ts";

const logFormats = ["text", "json"] as const;

export type LogFormat = (typeof logFormats)[number];

/** Of a port that is nobody's: all from 9100 to 9999 are given to exporters of Prometheus. */
const defaultMetrics = "127.0.0.1:17000";

/** If a port is taken, so many after it are tried, to propose a free one. */
export const proposedPorts = 100;

/** A limit with its unit. The unit is in its name. */
function quantity(name: string, value: number): string {
  if (/bytes/i.test(name)) return amount(value);
  if (!name.endsWith("Ms")) return String(value);
  return value < 1000 ? `${value} ms` : `${value / 1000} s`;
}

/** The limits that have no option. */
function renderFurtherLimits(): string {
  const rows = limitsHelp(quantity).flatMap(({ head, lines }) =>
    lines.map((line, index) => `  ${(index === 0 ? head : "").padEnd(15)}${line}`),
  );
  return rows.join("\n");
}

export const commands = [
  { key: "s", word: "list", operands: "", what: "who is here" },
  { key: "", word: "stats", operands: "", what: "what has been going on" },
  { key: "", word: "broadcast", operands: "TEXT", what: "say something to everyone" },
  { key: "", word: "tell", operands: "ID TEXT", what: "say something to one participant" },
  { key: "", word: "limits", operands: "[NAME] [NUMBER]", what: "how much there is; sets one until it ends" },
  { key: "", word: "drain", operands: "", what: "end in order: participants are told to come back" },
  { key: "", word: "help", aliases: ["?"], operands: "", what: "this (also ?)" },
  { key: "j", word: "quit", aliases: ["q", "exit"], operands: "", what: "end the introducer (also q, exit)" },
] as const satisfies Command[];
export const commandHelp = `${renderCommands(commands)}\n\nID is an id or a name, as \`list\` shows them.`;

export const usage = `Usage: ${startedAs("introducer")} [PORT] [options]
       ${startedAs("introducer")} ctl [PORT] COMMAND [--control PATH] [--json]

Tells participants about each other so that they can link by TCP hole punching.

  PORT               1 to 65535; without it you are asked on a terminal,
                     otherwise ${defaultPort}

Options:
  --host ADDR        listen on this address only (default: all of this host's)
  --probe-ports A,B  further ports, where participants measure how their
                     NAT maps (default: the next two; none: no measuring)
  --alternate ADDR   a second address of this host, for finer measuring
  --no-relay         relay no links
  --relay-rate N     bytes a second of one relayed link, each way
                     (default: 1M; K, M, G: times 1024 and so on)
  --relay-total N    bytes a second of all relayed links (default: 16M)
  --redis URL        share the work with other introducers: each room lives at
                     one of them, and this Redis says at which (redis://HOST,
                     or rediss://HOST for TLS; also from REDIS_URL)
  --advertise HOST[:PORT]  the address to which participants of the rooms
                     that live here are sent (default: the likeliest address
                     of this host, and PORT)
  --key FILE         let in only those who have this key, too; a FILE that is
                     not there is made, with a new one (also the key itself,
                     in INTRODUCER_KEY)
  --max-connections N  connections in all (default: ${defaultLimits.sessions})
  --max-per-address N  of one IPv4 address or IPv6 /64 (default: ${defaultLimits.sessionsPerAddress}); a /48
                     has ${siteShares} times that
  --max-room N       participants of one room (default: ${defaultLimits.roomSize}), a quarter of
                     them, or ${minRoomShare}, from one address
  --max-relays N     relayed links (default: ${defaultLimits.relays}), a quarter of them of one
                     address
  --metrics [[ADDR:]PORT]  numbers for Prometheus, at /metrics there, and
                     whether all is well at /healthz (default: ${defaultMetrics})
  -v, --verbose      tell also which endpoints of participants are ignored
  -q, --quiet        print results, errors and warnings only
  --control PATH     the socket of \`ctl\`, for its own user alone (default:
                     PORT.sock in /run/introducer or, if not of root, in
                     $XDG_RUNTIME_DIR/introducer; none: no socket)
  --log text|json    how events are written to standard error (default: text)
  --json             events as JSON lines on standard output, not as a log
  -h, --help         this
  --version          which version this is

Commands, from a terminal or as lines on standard input (the letter works too):
${commandHelp}

\`ctl\` says a command to an introducer that runs on this host at PORT, and prints
what its prompt prints. Its exit code is 1 if that failed.

Further limits. Whoever goes beyond one is told so, or has to wait:
${renderFurtherLimits()}
Of what all share, one address gets at most a quarter of what is still free.

Results go to standard output, all else to standard error. Without a terminal,
the program goes on when its input ends. After \`quit\` the exit code is 1 if a
command failed.

SIGTERM ends it in order: participants are told to come back, and introductions
and relayed links under way may take ${drainMs / 1000} s more. SIGINT, or a second SIGTERM,
ends it at once.

Exit codes: 0 done, 1 failed, 2 wrong usage.`;

export function parsePort(text: string): number | undefined {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65535 ? port : undefined;
}

const meant = (word: string) =>
  nearest(word, ["help"]) ? `; did you mean \`${startedAs("introducer")} help\`?` : "";

export interface Arguments extends IntroducerOptions {
  log: LogFormat;
  keyFile: string | undefined;
  /** Where commands of `ctl` are heard; undefined: where the port says; "none". */
  control: string | undefined;
  json: boolean;
  verbose: boolean;
  quiet: boolean;
}

export const options = {
  host: { type: "string" },
  "probe-ports": { type: "string" },
  alternate: { type: "string" },
  "no-relay": { type: "boolean" },
  "relay-rate": { type: "string" },
  "relay-total": { type: "string" },
  redis: { type: "string" },
  advertise: { type: "string" },
  key: { type: "string" },
  control: { type: "string" },
  "max-connections": { type: "string" },
  "max-per-address": { type: "string" },
  "max-room": { type: "string" },
  "max-relays": { type: "string" },
  metrics: { type: "string" },
  log: { type: "string" },
  verbose: { type: "boolean", short: "v" },
  quiet: { type: "boolean", short: "q" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

export function readArguments(args: string[]): Arguments | ControlArguments | "help" | "version" {
  const { values, positionals } = readOptions(args.map(withoutPort), options, usage);
  if (values.help || (positionals[0] === "help" && positionals.length === 1)) return "help";
  if (values.version) return "version";
  if (positionals[0] === "ctl") return readControl(positionals.slice(1), values);
  const [word, ...more] = positionals;
  const port = word === undefined ? undefined : parsePort(word);
  if (more.length > 0) throw new UsageError(`one port at a time, not also ${more[0]}`);
  if (word !== undefined && port === undefined)
    throw new UsageError(`the port must be a number from 1 to 65535, not ${word}${meant(word)}`);
  const { host, alternate, json = false, verbose = false, quiet = false, "probe-ports": ports } = values;
  const { metrics, log = "text", key: keyFile } = values;
  const key = keyFile === undefined ? keyOfEnvironment() : undefined;
  return {
    ...(port !== undefined && { port }),
    ...(host !== undefined && { host }),
    ...(ports !== undefined && { probePorts: readProbePorts(ports) }),
    ...(alternate !== undefined && { alternate: readAlternate(alternate) }),
    ...readRelay(values),
    ...readSharing(values),
    ...(metrics !== undefined && { metrics: readMetrics(metrics) }),
    ...(key !== undefined && { key }),
    keyFile,
    control: values.control,
    limits: readLimits(values),
    log: readLogFormat(log),
    json,
    ...{ verbose, quiet },
  };
}

/** Reads what follows `ctl`: `[PORT] COMMAND`. A wrong command is told here, and not by the introducer. */
function readControl(words: string[], values: { control?: string; json?: boolean }): ControlArguments {
  const other = Object.keys(values).find((option) => option !== "control" && option !== "json");
  if (other !== undefined) throw new UsageError(`--${other} does not go with \`ctl\``);
  const { control, json = false } = values;
  const port = parsePort(words[0] ?? "");
  const line = words.slice(port === undefined ? 0 : 1).join(" ");
  if (line === "") throw new UsageError("`ctl` needs a COMMAND, such as list");
  try {
    if (readCommand(commands, line).command === "quit")
      throw new UsageError("`ctl drain` ends it in order; a service is ended by its manager");
  } catch (error) {
    if (error instanceof CommandError) throw new UsageError(error.message);
    throw error;
  }
  const path = control ?? controlPath(port ?? defaultPort);
  if (path === undefined) throw new UsageError("`ctl` needs --control PATH here: XDG_RUNTIME_DIR is not set");
  return { path, isDefault: control === undefined, line, json };
}

/** It must be ours: participants are sent there. */
function readAlternate(text: string): string {
  const address = canonicalAddress(text)?.address;
  if (address === undefined) throw new UsageError(`--alternate must be an IP address, not ${text}`);
  if (!ownAddresses().some((own) => own.address === address))
    throw new UsageError(`--alternate must be an address of this host, and ${address} is none`);
  return address;
}

function readSharing({ redis = process.env.REDIS_URL || undefined, advertise }: SharingValues) {
  const problem = redis === undefined ? undefined : redisUrlProblem(redis);
  if (problem !== undefined) throw new UsageError(`the URL of --redis (or REDIS_URL) is wrong: ${problem}`);
  if (advertise !== undefined && !parsePlace(advertise))
    throw new UsageError(`--advertise takes HOST or HOST:PORT, not ${advertise}`);
  if (advertise !== undefined && redis === undefined)
    throw new UsageError("--advertise is for one of several introducers (--redis)");
  return { ...(redis !== undefined && { redis }), ...(advertise !== undefined && { advertise }) };
}

interface SharingValues {
  redis?: string;
  advertise?: string;
}

function readLogFormat(text: string): LogFormat {
  const format = logFormats.find((one) => one === text);
  if (format === undefined) throw new UsageError(`--log takes ${logFormats.join(" or ")}, not ${text}`);
  return format;
}

/** `--metrics` may stand alone. */
const withoutPort = (arg: string, index: number, args: readonly string[]): string =>
  arg === "--metrics" && (args[index + 1] ?? "-").startsWith("-") ? `${arg}=${defaultMetrics}` : arg;

/** `17000`, `0.0.0.0:17000`. Without an address, only this host can read it. */
function readMetrics(text: string): { hostname: string; port: number } {
  const endpoint = parseEndpoint(/^\d+$/.test(text) ? `127.0.0.1:${text}` : text);
  if (endpoint === undefined)
    throw new UsageError(`--metrics takes a port, or an address and a port such as [::1]:17000, not ${text}`);
  const { address: hostname, port } = splitEndpoint(endpoint);
  return { hostname, port };
}

function readCount(option: string, text: string, most: number): number {
  const number = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (number < 1 || number > most)
    throw new UsageError(`${option} takes a number from 1 to ${most}, not ${text}`);
  return number;
}

export function readLimits(values: {
  "max-connections"?: string;
  "max-per-address"?: string;
  "max-room"?: string;
  "max-relays"?: string;
}): Partial<Limits> {
  const { "max-connections": all, "max-per-address": each, "max-room": room, "max-relays": links } = values;
  const relays = links === undefined ? undefined : readCount("--max-relays", links, 1_000_000);
  const size = room === undefined ? undefined : readCount("--max-room", room, mostInRoom);
  return {
    ...(all !== undefined && { sessions: readCount("--max-connections", all, 1_000_000) }),
    ...(each !== undefined && { sessionsPerAddress: readCount("--max-per-address", each, 1_000_000) }),
    ...(size !== undefined && roomLimits(size)),
    ...(relays !== undefined && { relays, relaysPerAddress: Math.ceil(relays / 4) }),
  };
}

interface RelayValues {
  "no-relay"?: boolean;
  "relay-rate"?: string;
  "relay-total"?: string;
  "max-relays"?: string;
}

function readRelay(values: RelayValues) {
  const { "no-relay": isOff = false, "relay-rate": rate, "relay-total": total, "max-relays": most } = values;
  if (isOff && (rate ?? total ?? most) !== undefined)
    throw new UsageError("--no-relay leaves nothing for --relay-rate, --relay-total or --max-relays");
  return {
    ...(isOff && { relay: false }),
    ...(rate !== undefined && { relayRate: readRate("--relay-rate", rate) }),
    ...(total !== undefined && { relayTotal: readRate("--relay-total", total) }),
  };
}

function readProbePorts(text: string): number[] {
  if (text === "none") return [];
  const ports = text.split(",").map(parsePort);
  if (ports.includes(undefined) || ports.length > maxProbePorts || new Set(ports).size < ports.length) {
    throw new UsageError(
      `--probe-ports takes up to ${maxProbePorts} different ports such as 7001,7002, or none; not ${text}`,
    );
  }
  return ports.filter((port) => port !== undefined);
}
