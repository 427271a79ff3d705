/**
 * The options of the participant, and a first look at them, before what reads them is loaded: which introducer is probably
 * meant. If it is another, only some work was in vain. For native/terminal/ and participant.ts.
 */
import { parseArgs } from "node:util";
import { parseHostPort } from "../../protocol.ts";
import type { Wanted } from "../host/connecting.ts";

/** Words that a command line may begin with in place of an introducer. */
export const verbs = ["send", "receive", "share", "reach"] as const;
export const help = "help";

export const options = {
  name: { type: "string" },
  room: { type: "string" },
  via: { type: "string" },
  port: { type: "string" },
  key: { type: "string" },
  connect: { type: "string", multiple: true },
  forward: { type: "string", short: "L", multiple: true },
  socks: { type: "string", short: "D", multiple: true },
  remote: { type: "string", short: "R", multiple: true },
  allow: { type: "string", multiple: true },
  "allow-listen": { type: "string", multiple: true },
  pipe: { type: "string" },
  send: { type: "string", multiple: true },
  exclude: { type: "string", multiple: true },
  to: { type: "string" },
  accept: { type: "string" },
  from: { type: "string" },
  remember: { type: "boolean" },
  executable: { type: "boolean" },
  limit: { type: "string" },
  keep: { type: "string" },
  wait: { type: "string" },
  direct: { type: "boolean" },
  "only-relay": { type: "boolean" },
  "no-portmap": { type: "boolean" },
  nat: { type: "boolean" },
  stay: { type: "boolean" },
  verbose: { type: "boolean", short: "v" },
  quiet: { type: "boolean", short: "q" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
  version: { type: "boolean" },
} as const;

/** A port of ours that others may be told of: what a peer dials below 1024 is refused. 0 if it is none. */
export function readLocalPort(text: string): number {
  const port = /^\d{4,5}$/.test(text) ? Number(text) : 0;
  return port >= 1024 && port <= 65535 ? port : 0;
}

/** `--connect` and `--pipe` may stand alone: then the only other one of the room is meant. */
export function withoutPeer(arg: string, index: number, args: readonly string[]): string {
  const next = args[index + 1];
  const isAlone = next === undefined || (next.startsWith("-") && next !== "-");
  return isAlone && ["--connect", "--pipe"].includes(arg) ? `${arg}=` : arg;
}

/**
 * The arguments with `--send` before each of its paths: it takes all words that follow, as a shell gives them. If no
 * introducer is named before, and none is in `env`, the word after the first path is one.
 */
export function withPaths(
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): string[] {
  const all: string[] = [];
  let isNamed = Boolean(env.INTRODUCER) || args.some((arg) => /^--via(=|$)/.test(arg));
  let isPath = false;
  for (let index = 0; index < args.length; index++) {
    const arg = args[index]!;
    if (arg === "--") return [...all, ...args.slice(index)];
    if (arg.startsWith("-") && arg !== "-") {
      isPath = /^--send(=|$)/.test(arg);
      all.push(arg, ...(takesNext(arg) ? args.slice(++index, index + 1) : []));
    } else {
      all.push(...(isPath && isNamed ? ["--send", arg] : [arg]));
      isNamed = true;
    }
  }
  return all;
}

/** Whether the next argument is the value of this option. */
const takesNext = (arg: string): boolean =>
  Object.entries(options).some(
    ([name, option]) =>
      option.type === "string" && (arg === `--${name}` || ("short" in option && arg === `-${option.short}`)),
  );

/** The introducer that is probably meant. Undefined if there is none, or if the arguments are wrong. */
export function likelyIntroducer(
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): Wanted | undefined {
  try {
    const { values, positionals } = parseArgs({
      args: withPaths(args.map(withoutPeer), env),
      options,
      allowPositionals: true,
    });
    if (values.help || values.version) return undefined;
    const [first = "", code = ""] = positionals;
    const isCoded = (first === "receive" || first === "reach") && code.includes("@");
    const isVerb = [...verbs, help].includes(first);
    const place = (isCoded ? code : isVerb ? "" : first) || values.via || env.INTRODUCER;
    const introducer = place ? parseHostPort(place.slice(place.lastIndexOf("@") + 1)) : undefined;
    const localPort = values.port === undefined ? undefined : readLocalPort(values.port);
    return introducer && localPort !== 0 ? { ...introducer, ...(localPort && { localPort }) } : undefined;
  } catch {
    return undefined; // what is wrong is said by who reads it
  }
}
