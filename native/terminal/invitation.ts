/**
 * An invitation: one word that says which room and where, `WORDS[.KEY]@HOST[:PORT]`, where KEY is the introducer's; and the
 * line that the other side types to do its part. Pure. For native/terminal/ and participant.ts.
 */
import { otherStartedAs } from "../host/started.ts";
import { canonicalWords, isMadeWords, looksMade, splitKey, wordsProblem } from "../secure/words.ts";
import {
  formatListen,
  formatTarget,
  parseForward,
  parseProxy,
  parseRemote,
  type PipeSpec,
} from "../uses/target.ts";
import { addressScope, canonicalAddress, parseHostPort, type Place, printable } from "../../protocol.ts";
import { fingerprintIn, splitWhom } from "../uses/whom.ts";
import { UsageError } from "./command-line.ts";

/** What stands before the code in the line that the other side has printed. */
const wholeLine = /^(?:bun run )?\S*participant\S*\s+(?:receive|reach)\s+/;

export interface Invitation {
  /** Undefined if only the introducer was given. */
  words?: string;
  introducer: string;
  /** The introducer's. */
  key?: string;
}

/** Reads `[WORDS[.KEY]@]HOST[:PORT]`. Throws a {@link UsageError} if the words have a slip; the host is not looked at. */
export function readInvitation(copied: string): Invitation {
  const text = copied.trim();
  const at = text.lastIndexOf("@");
  // A code that was cut off must not be looked up as a host's name.
  const { words: cut = "", key } = splitKey(text);
  if (at < 0 && (key !== undefined || (/\d/.test(cut) && looksMade(cut))))
    throw new UsageError("that is a code without its introducer: WORDS@HOST[:PORT]");
  if (at < 0) return { introducer: text };
  return { ...readWords(text.slice(0, at), "the room before the @"), introducer: text.slice(at + 1) };
}

/** Reads `WORDS`, `WORDS.KEY` or `.KEY`. */
function readWords(text: string, what: string): Omit<Invitation, "introducer"> {
  const { words, key } = splitKey(text);
  const problem = words === undefined ? undefined : wordsProblem(words);
  if (problem !== undefined) throw new UsageError(`${what} ${problem}`);
  if (key !== undefined && !isMadeWords(key))
    throw new UsageError("the introducer's key, after the dot, has a typing mistake: copy the code again");
  return { ...(words !== undefined && { words }), ...(key !== undefined && { key }) };
}

/** Reads the code of a verb: an invitation, or words that were made, without their introducer. */
export function readCode(copied: string): Partial<Invitation> {
  const text = copied
    .trim()
    .replace(wholeLine, "")
    .replace(/^'(.*)'$/, "$1");
  if (text.includes("@")) return readInvitation(text);
  const code = readWords(text, "the code");
  if (!looksMade(code.words ?? ""))
    throw new UsageError("that is no code: one looks like gjec-p272-r0uw-hs8m-z@HOST");
  return code;
}

/** Reads a room's words, or a whole invitation of new words in their place. */
export function readRoom(text: string): Partial<Invitation> {
  const at = text.lastIndexOf("@");
  const isWhole = at > 0 && looksMade(splitKey(text.slice(0, at)).words ?? "");
  return isWhole
    ? readInvitation(text)
    : splitKey(text).key === undefined
      ? { words: text }
      : readWords(text, "the room");
}

/** As {@link parseHostPort}; throws a {@link UsageError} for what it can't read. */
export function readHostPort(text: string): Place {
  const place = parseHostPort(text);
  if (!place)
    throw new UsageError(`"${printable(text)}" is no introducer: give HOST or HOST:PORT, port 1 to 65535`);
  return place;
}

/** Whether both are words of one room. */
export const isSameRoom = (a: string, b: string): boolean => canonicalWords(a) === canonicalWords(b);

/** For a shell: as it is, or in quotes. */
function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A line more, if what others would type leads them to their own host; and if the introducer's key is not in it. */
export function codeHints(introducer: string, isKeyMissing = false): string {
  const host = parseHostPort(introducer)?.host ?? "";
  const isLocal = host === "localhost" || (canonicalAddress(host) && addressScope(host) === "loopback");
  const local = isLocal ? `\n  (from another host, ${host} must be this host's name or address)` : "";
  const key = isKeyMissing
    ? "\n  (the introducer's key is not in it: to be given there as --key FILE, or in INTRODUCER_KEY)"
    : "";
  return local + key;
}

/** The introducer's key, as the user has it. */
type OwnKey = { readonly text: string; readonly isPassedOn: boolean } | undefined;
/** The key that goes into the codes that we make; and whether there is one that does not. */
export const passedOn = (key: OwnKey): string | undefined => (key?.isPassedOn ? key.text : undefined);
export const isKept = (key: OwnKey): boolean => key?.isPassedOn === false;

/** `key`: the introducer's, if it is to be passed on. */
export const invitationTo = (words: string, introducer: string, key?: string): string =>
  quoted(`${words}${key === undefined ? "" : `.${key}`}@${introducer}`);

/** What one side was told to do, as far as the other side's line depends on it. */
export interface OwnPart {
  name: string;
  connect: readonly string[];
  forward: readonly string[];
  socks: readonly string[];
  remote: readonly string[];
  allow: readonly string[];
  pipe: PipeSpec | undefined;
  send: readonly string[];
  accept: string | undefined;
  from: string | undefined;
}

/**
 * What the other side types: a line for each peer that was named here, with the name that it must have, and whatever
 * fits what is done here.
 */
export function linesForOthers(invitation: string, part: OwnPart): string[] {
  const named = [...part.connect, ...part.forward.map((spec) => parseForward(spec).peer)];
  named.push(...part.socks.map((spec) => parseProxy(spec).peer));
  named.push(...part.remote.map((spec) => parseRemote(spec).peer));
  if (part.pipe) named.push(part.pipe.peer);
  const whoms = [part.from, ...part.allow.map((rule) => splitWhom(rule).whom)];
  for (const whom of whoms) if (whom !== undefined && !fingerprintIn(whom)) named.push(whom);
  const peers = named.length > 0 ? [...new Set(named)] : [""];
  return peers.map((peer) => {
    const name = peer === "" ? [] : ["--name", quoted(peer)];
    return [otherStartedAs("participant"), invitation, ...name, ...flagsFor(peer, part)].join(" ");
  });
}

function flagsFor(
  peer: string,
  { name, connect, forward, socks, remote, allow, pipe, send, accept }: OwnPart,
): string[] {
  const us = quoted(name);
  const flags: string[] = [];
  const wanted = forward.map(parseForward).filter((spec) => spec.peer === peer);
  const targets = wanted.map(({ target, ports }) => formatTarget(target, ports));
  if (pipe?.peer === peer && pipe.target) targets.push(formatTarget(pipe.target));
  if (socks.some((spec) => parseProxy(spec).peer === peer)) targets.push("HOST:PORT");
  for (const target of new Set(targets)) flags.push("--allow", target.replace(/^localhost:/, ""));
  for (const { listen } of remote.map(parseRemote).filter((spec) => spec.peer === peer))
    flags.push("--allow-listen", formatListen(listen).replace(/^127\.0\.0\.1:/, ""));
  if (pipe?.peer === peer && !pipe.target) flags.push("--pipe", us);
  if (send.length > 0) flags.push("--accept", ".");
  for (const { rule, whom } of allow.map(splitWhom)) {
    if (whom !== undefined && peer !== "" && whom !== peer) continue;
    // Whole networks and any port have no one place to listen for.
    const [, host = "", port = ""] = /^(?:([^*/]+):)?(\d+(?:-\d+)?(?:\/udp)?)$/.exec(rule) ?? [];
    if (port !== "") flags.push("-L", `${port}:${us}:${host === "" ? "" : `${host}:`}${port}`);
  }
  if (accept !== undefined) flags.push("--connect", us, "--send", "PATH");
  else if (flags.length === 0 && connect.length === 0) flags.push("--connect", us);
  return flags;
}
