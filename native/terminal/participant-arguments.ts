/**
 * The participant's command line: its options, its commands and their help. For participant.ts.
 */
import { startedAs } from "../host/started.ts";
import { type Command, renderCommands } from "./command-line.ts";
import { hostname, userInfo } from "node:os";
import { basename } from "node:path";
import { AllowList } from "../uses/allow-list.ts";
import {
  parseForward,
  parseProxy,
  parseRemote,
  parsePipe,
  type PipeSpec,
  SpecError,
} from "../uses/target.ts";
import { parseLentRule } from "../uses/lent.ts";
import { readOptions, readRate, UsageError } from "./command-line.ts";
import { wordsProblem } from "../secure/words.ts";
import { defaultPort, defaultRoom, nameProblem, printable } from "../../protocol.ts";
import { help, options, readLocalPort, withoutPeer, withPaths } from "./participant-options.ts";
import { type Invitation, isSameRoom, readCode, readInvitation, readRoom } from "./invitation.ts";
import { keyOfEnvironment } from "./key-file.ts";
import { patternProblem } from "../uses/exclude.ts";
import { readVerb, refuseOptions, type Verb } from "./verbs.ts";
import { defaultKeepMinutes } from "../participant/events.ts";

export const commands = [
  { key: "s", word: "list", operands: "[-v]", what: "who is here, and whom you are linked with" },
  { key: "d", word: "connect", operands: "PEER ... [-v]", what: "punch holes (-v: tell every attempt)" },
  { key: "f", word: "say", operands: "PEER TEXT", what: "send TEXT over the link" },
  { key: "", word: "ping", operands: "PEER", what: "measure the link's round trip" },
  { key: "g", word: "disconnect", operands: "PEER", what: "end the link" },
  {
    key: "",
    word: "forward",
    operands: "[-D] [-R] SPEC",
    what: "as --forward; -D: as --socks; -R: as --remote",
  },
  {
    key: "",
    word: "unforward",
    operands: "[-R] LISTEN",
    what: "[BIND:]PORT (-R: [BIND:]PORT:PEER): no more",
  },
  { key: "", word: "forwards", operands: "", what: "what is forwarded" },
  { key: "", word: "allow", operands: "TARGET", what: "[HOST:]PORT that peers may reach through you" },
  { key: "", word: "disallow", operands: "TARGET", what: "take that back" },
  { key: "", word: "allow-listen", operands: "LISTEN", what: "[BIND:]PORT that peers may listen on here" },
  { key: "", word: "disallow-listen", operands: "LISTEN", what: "take that back" },
  { key: "", word: "forget", operands: "NAME", what: "with --remember: take another certificate for NAME" },
  { key: "", word: "allowed", operands: "", what: "what peers may reach" },
  { key: "", word: "send", operands: "PEER ... PATH ...", what: "send files and folders" },
  {
    key: "",
    word: "accept",
    operands: "OFFER [DIR]",
    what: "take what a peer offers, into DIR or this folder",
  },
  { key: "", word: "refuse", operands: "OFFER", what: "do not take it" },
  { key: "", word: "cancel", operands: "[TRANSFER]", what: "end what is sent or received; it goes on later" },
  {
    key: "",
    word: "received",
    operands: "[DIR]",
    what: "what has come in part, and goes on when sent again",
  },
  {
    key: "",
    word: "limit",
    operands: "[RATE]",
    what: "send no faster (none: as fast as can be)",
  },
  { key: "h", word: "echo", operands: "[TEXT]", what: "measure the introducer's round trip" },
  { key: "a", word: "leave", operands: "", what: "leave the introducer; links stay up" },
  { key: "", word: "join", operands: "", what: "come back to the introducer" },
  { key: "", word: "nat", operands: "", what: "what kind of NAT you are behind" },
  { key: "", word: "whoami", operands: "", what: "your name, id, endpoints and fingerprint" },
  { key: "", word: "help", aliases: ["?"], operands: "", what: "this (also ?)" },
  {
    key: "j",
    word: "quit",
    aliases: ["q", "exit"],
    operands: "",
    what: "end all links and the program (also q, exit)",
  },
] as const satisfies Command[];
export const commandHelp = `${renderCommands(commands)}\n\nPEER is an id or a name, as \`list\` shows them.`;

export const usage = `Usage: ${startedAs("participant")} [[WORDS@]HOST[:PORT]] [options]
       ${startedAs("participant")} send PATH …          → receive CODE [DIR]
       ${startedAs("participant")} share [HOST:]PORT …  → reach CODE [PORT …]

Verbs: \`send\` and \`share\` make a code and print the line that the other side
types. They go with whoever comes first and has the code. \`send\` and
\`receive\` end when all has arrived; \`share\` and \`reach\` on Ctrl-C. The
introducer is in INTRODUCER, or in --via HOST[:PORT]. \`reach\` listens on the
ports that are shared, on PORT, or on free ones. CODE is WORDS@HOST[:PORT]; -
asks for it. A host that is called like a verb is meant by --via HOST.

Without a verb it registers with the introducer at HOST (default port ${defaultPort};
also from INTRODUCER in the environment) and opens direct TCP connections to
others in the room. WORDS@HOST[:PORT] is an invitation: the room of --room
WORDS there.

Options:
  --name NAME     what others call you: one word (default: user@host; in the
                  lobby and with --only-relay one that says nothing of you)
  --via HOST      the introducer, in place of the first argument
  --room WORDS    the private room of those who know the WORDS, which the
                  introducer never learns (also from ROOM in the environment);
                  new: makes such words; -: asks for them without showing them
                  (default: ${defaultRoom}, open to everyone)
  --key FILE      the key of an introducer that is for those who have one (also
                  the key itself, in INTRODUCER_KEY, or in a code that holds
                  it: WORDS.KEY@HOST, or .KEY@HOST)
  --connect PEER  keep a link to PEER, from when it is there (PEER may be left
                  out where a private room has only one other person)
  -L, --forward [BIND:]PORT:PEER:[HOST:]PORT
                  listen on PORT here, and connect from PEER to HOST:PORT
                  (HOST: PEER's localhost; BIND: 127.0.0.1), as ssh -L;
                  PORT::PORT if PEER is left out; 8000-8010:PEER:8000-8010;
                  /PATH of a Unix socket in place of [BIND:]PORT, [HOST:]PORT;
                  PORT/udp at both ends for UDP
  -D, --socks [BIND:]PORT:PEER
                  a SOCKS5 proxy on PORT here, to what PEER allows, as ssh -D
  -R, --remote [BIND:]PORT:PEER:[HOST:]PORT
                  PEER listens on PORT there, and we connect to HOST:PORT from
                  here (HOST: localhost here; BIND: 127.0.0.1 there), as ssh -R
  --allow-listen [BIND:]PORT  where peers may listen here (PORT-PORT)
  --allow [HOST:]PORT  what peers may reach through you (* for any; PORT-PORT;
                  PORT/udp; /PATH of a Unix socket)
  --pipe PEER     join standard input and output to PEER's --pipe, or with
                  PEER:[HOST:]PORT to what PEER allows there, as ssh -W
  --send PATH …   with --connect PEER, or several: send all, then end (fails if
                  one accepts it and then does nothing for 60 s)
  --exclude PATTERN  send nothing of that: a name at any depth (*.tmp), or with
                  a / a path from the top (photos/raw); a / at the end means
                  folders only; * ? [ab] {a,b} as in a shell, ** also /
  --to N          with the verb send: to so many, one after the other
  --accept DIR    take the files that peers send, into DIR: a file as itself,
                  a folder or several things as a new folder
  --from PEER     with --accept: only what PEER sends
  --remember      bind each name that you use to the certificate that was seen
                  first, as ssh does: a changed one is refused. Without it a
                  name is a claim, which whoever has the WORDS can make
  --executable    received files may be executable, as they are at the sender's
                  (default: none is)
  --limit RATE    send files and pipes no faster: bytes a second of all together
                  (K, M, G: times 1024 and so on)
  --keep MINUTES  how long a link without a connection waits for the peer to
                  come back (default: ${defaultKeepMinutes}; 0: not at all)
  --wait SECONDS  for --connect, --send, --pipe and verbs: fail if there is no
                  link after so long
  --direct        never let the introducer relay a link
  --only-relay    hide where you are: peers are not told your addresses, nothing
                  but the introducer is dialled, and nothing listens here. It
                  sees you, and carries each link no faster than it allows
  --no-portmap    don't ask the router to open a port
  --port N        use port N of this host for the introducer and links, and tell
                  peers that the router forwards its port N to it: forward TCP
                  port N there by hand, where \`--nat\` says that none helps
  --nat           say what kind of NAT you are behind, and end
  --stay          go on when standard input ends (so do --forward, --socks,
                  --remote, --allow, --allow-listen and --accept)
  -v, --verbose   show every attempt of a punch
  -q, --quiet     print results and errors only
  --json          events as JSON lines on standard output
  -h, --help      this
  --version       which version this is

Commands, from a terminal or as lines on standard input (the letter works too):
${commandHelp}

Results and what peers say go to standard output, all else to standard error.
Without a terminal, commands run one after the other, and the program quits
when its input ends (exit code 1 if a command failed).

Exit codes: 0 done, 1 failed, 2 wrong usage.
128 + N: signal N came before it was done.`;

export const shownRoom =
  "other users of this host can read the room's words (ps): give them in ROOM, or - in their place, which asks";
export const shownKey =
  "other users of this host can read the introducer's key (ps): give it as --key FILE, or in INTRODUCER_KEY";
export const weakRoom =
  "such words can be found by trying, by whoever runs the introducer: those of --room new can not";

/** What may be given in place of a room's words. */
export const newRoom = "new";
export const askedRoom = "-";

export interface Arguments {
  introducer: string | undefined;
  name: string;
  /** Undefined for the lobby; {@link askedRoom} if the user has to be asked. */
  room: string | undefined;
  /** The arguments that have the room's words or the introducer's key, where others can see them; `option`: what is before it. */
  secrets: { option: string; text: string; what: "words" | "key" }[];
  /** The introducer's. One from a code is in the codes that we make, too. */
  key: { text: string; isPassedOn: boolean } | undefined;
  keyFile: string | undefined;
  verb: Verb | undefined;
  connect: string[];
  forward: string[];
  socks: string[];
  remote: string[];
  allow: string[];
  allowListen: string[];
  pipe: PipeSpec | undefined;
  send: string[];
  exclude: string[];
  accept: string | undefined;
  /** Whose files --accept takes; undefined: everyone's. */
  from: string | undefined;
  /** Whether names are bound to certificates. */
  remember: boolean;
  executable: boolean;
  /** Bytes a second that files and pipes may take. */
  limit: number | undefined;
  keepMinutes: number;
  /** How long a peer is waited for; undefined: for ever. */
  waitMs: number | undefined;
  direct: boolean;
  onlyRelay: boolean;
  portMapping: boolean;
  /** The port of --port. */
  localPort: number | undefined;
  nat: boolean;
  stay: boolean;
  verbose: boolean;
  quiet: boolean;
  json: boolean;
}

export function readArguments(args: string[]): Arguments | "help" | "version" {
  const { values, positionals } = readOptions(withPaths(args.map(withoutPeer), process.env), options, usage);
  if (values.help || (positionals[0] === help && positionals.length === 1)) return "help";
  if (values.version) return "version";
  const { verb, code } = readVerb(positionals, values.to) ?? {};
  if (verb) refuseOptions(verb, Object.keys(values));
  const place = readPlace(values, verb ? undefined : positionals[0], verb, code);
  const isOpen = place.room === undefined || place.room === defaultRoom;
  const onlyRelay = values["only-relay"] ?? false;
  if (onlyRelay) refuseDirect(values);
  // The name of a host may say where it is.
  const name = values.name ?? defaultName(isOpen || onlyRelay);
  const problem = nameProblem(name);
  if (problem) throw new UsageError(`--name ${problem}`);
  if (verb && isOpen)
    throw new UsageError(`\`${verb.is}\` needs a private room: the lobby is open to everyone`);
  const links = readLinks(values, isOpen);
  const isAwaited = verb || links.connect.length > 0 || links.pipe;
  if (values.wait !== undefined && !isAwaited)
    throw new UsageError("--wait needs somebody to wait for: --connect, --send, --pipe or a verb");
  return {
    ...place,
    room: place.room === defaultRoom ? undefined : place.room,
    verb,
    name,
    ...links,
    keyFile: values.key,
    remember: readRemember(values.remember, isOpen),
    ...readSwitches(values),
    limit: values.limit === undefined ? undefined : readRate("--limit", values.limit),
    keepMinutes: readKeep(values.keep),
    waitMs: readWait(values.wait),
    onlyRelay,
    localPort: readPort(values.port),
    stay: values.stay ?? isService(values, verb),
  };
}

/** What goes on until it is ended. */
const serving = ["forward", "socks", "remote", "allow", "allow-listen", "accept"] as const;

function isService(values: Values, verb: Verb | undefined): boolean {
  if (verb) return verb.is === "share" || verb.is === "reach";
  return serving.some((option) => values[option] !== undefined);
}

function readSwitches({ executable = false, direct = false, nat = false, ...values }: Values) {
  const { verbose = false, quiet = false, json = false } = values;
  return { executable, direct, nat, portMapping: !values["no-portmap"], verbose, quiet, json };
}

/** What wants a direct way, or tells others how to come here. */
function refuseDirect({ direct, port, nat }: Values): void {
  const other = direct ? "--direct" : port !== undefined ? "--port" : nat ? "--nat" : undefined;
  if (other) throw new UsageError(`--only-relay hides where you are, so ${other} does not go with it`);
}

type Values = ReturnType<typeof readOptions<typeof options>>["values"];

/** Whom the options want links with, and what for. */
function readLinks(values: Values, isOpen: boolean) {
  const { allow = [], forward = [], socks = [], remote = [], send = [], exclude = [], accept, from } = values;
  if (from !== undefined && accept === undefined)
    throw new UsageError("--from says whose files --accept DIR takes: give both");
  const { "allow-listen": allowListen = [] } = values;
  const opening = { "--allow": allow, "--remote": remote, "--allow-listen": allowListen };
  const [opens = accept !== undefined && "--accept"] =
    Object.entries(opening).find(([, all]) => all.length > 0) ?? [];
  if (opens && isOpen) {
    throw new UsageError(
      `${opens} would let anyone in, because the lobby is open to everyone: use a private room (--room WORDS)`,
    );
  }
  for (const rule of allow) read("--allow", rule, (text) => new AllowList().add(text));
  for (const rule of allowListen) read("--allow-listen", rule, parseLentRule);
  if (values.pipe !== undefined && values.json)
    throw new UsageError("--pipe has standard output for itself: leave --json out");
  const connect = values.connect ?? (values.send ? [""] : []);
  for (const pattern of exclude) {
    const problem = patternProblem(pattern);
    if (problem) throw new UsageError(`--exclude ${problem}`);
  }
  const forwards = [
    ...forward.map((spec) => read("--forward", spec, parseForward)),
    ...socks.map((spec) => read("--socks", spec, parseProxy)),
    ...remote.map((spec) => read("--remote", spec, parseRemote)),
  ];
  const pipe = values.pipe === undefined ? undefined : read("--pipe", values.pipe, parsePipe);
  const peers = [...connect, ...forwards.map(({ peer }) => peer), ...(pipe ? [pipe.peer] : [])];
  if (isOpen && peers.includes(""))
    throw new UsageError("in the lobby it must be said which PEER is meant: anyone may be there");
  return { connect, forward, socks, remote, allow, allowListen, pipe, send, exclude, accept, from };
}

/**
 * Which introducer and which room: an argument goes before the environment. `send` and `share` make a room, unless an
 * argument says otherwise; `receive` and `reach` ask for one that is said nowhere.
 */
function readPlace({ room, via }: Values, host: string | undefined, verb?: Verb, code?: string) {
  const given = [
    { option: "", text: code === askedRoom ? undefined : code, parse: readCode },
    { option: "", text: host, parse: readInvitation },
    { option: "--via", text: via, parse: readInvitation },
    { option: "--room", text: room, parse: readRoom },
  ].flatMap(({ option, text, parse }) => (text === undefined ? [] : [{ option, text, ...parse(text) }]));
  const hosts = given.flatMap(({ introducer }) => introducer ?? []);
  if (hosts.length > 1) throw new UsageError(`one introducer at a time, not ${hosts.join(" and ")}`);
  const [named, other] = given.filter(({ words }) => words !== undefined);
  if (named && other && !isSameRoom(named.words!, other.words!))
    throw new UsageError("--room names another room than the invitation: leave --room out");
  const ofRoom: Partial<Invitation> = process.env.ROOM ? readRoom(process.env.ROOM) : {};
  const ofHost = process.env.INTRODUCER ? readInvitation(process.env.INTRODUCER) : undefined;
  const elsewhere = ofRoom.words ?? (hosts.length > 0 ? undefined : ofHost?.words);
  const isMaking = verb?.is === "send" || verb?.is === "share";
  const unnamed = isMaking ? newRoom : code === askedRoom ? code : (elsewhere ?? (verb && askedRoom));
  const words = named?.words ?? unnamed;
  const problem = words === undefined ? undefined : wordsProblem(words);
  if (problem !== undefined) throw new UsageError(`${named ? "--room" : "the room"} ${problem}`);
  const passedOn = given.find(({ key }) => key !== undefined)?.key ?? ofRoom.key;
  const ofOwn = passedOn === undefined ? keyOfEnvironment() : undefined;
  const key = passedOn ?? ofOwn ?? (hosts.length > 0 ? undefined : ofHost?.key);
  return {
    introducer: hosts[0] ?? (named ? undefined : ofRoom.introducer) ?? ofHost?.introducer,
    room: words,
    secrets: given.flatMap(secretsOf),
    key: key === undefined ? undefined : { text: key, isPassedOn: ofOwn === undefined },
  };
}

function secretsOf({ option, text, words, key }: Partial<Invitation> & { option: string; text: string }) {
  const isSecret = words !== undefined && ![defaultRoom, newRoom, askedRoom].includes(words);
  return [
    ...(isSecret ? [{ option, text, what: "words" as const }] : []),
    ...(key === undefined ? [] : [{ option, text, what: "key" as const }]),
  ];
}

function read<T>(option: string, text: string, parse: (text: string) => T): T {
  try {
    return parse(text);
  } catch (error) {
    if (error instanceof SpecError) throw new UsageError(`${option} ${error.message}`);
    throw error;
  }
}

function readWait(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const seconds = /^\d{1,7}(\.\d+)?$/.test(text) ? Number(text) : 0;
  // setTimeout takes at most 2^31 ms.
  if (!(seconds > 0 && seconds <= 2_000_000))
    throw new UsageError(`--wait takes seconds, more than 0, not ${printable(text)}`);
  return seconds * 1000;
}

function readRemember(wanted = false, isOpen: boolean): boolean {
  if (wanted && isOpen)
    throw new UsageError(
      "--remember is for a private room: in the lobby nobody proves a name (--room WORDS)",
    );
  return wanted;
}

function readPort(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const port = readLocalPort(text);
  if (port === 0) throw new UsageError(`--port takes a port from 1024 to 65535, not ${printable(text)}`);
  return port;
}

function readKeep(text: string | undefined): number {
  if (text === undefined) return defaultKeepMinutes;
  const minutes = /^\d{1,5}(\.\d+)?$/.test(text) ? Number(text) : NaN;
  // setTimeout takes at most 2^31 ms.
  if (!(minutes <= 30_000)) throw new UsageError(`--keep takes minutes from 0 to 30000, not ${text}`);
  return minutes;
}

/** In the lobby, strangers need not know who we are and what our machine is called. */
function defaultName(isOpen: boolean): string {
  if (isOpen) return `guest-${crypto.getRandomValues(new Uint8Array(3)).toHex()}`;
  const user = process.env.USER || process.env.LOGNAME || userName() || "someone";
  return `${user}@${hostname()}`.replace(/[\s\p{C}]+/gu, "-").slice(0, 64);
}

/** Undefined if the user id has no account, as in containers. */
function userName(): string | undefined {
  try {
    // Bun takes the name from the environment only. If it is not there, the home folder usually has it.
    const { username, homedir } = userInfo();
    return username === "unknown" ? basename(homedir) : username;
  } catch {
    return undefined;
  }
}
