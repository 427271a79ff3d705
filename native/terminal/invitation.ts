/**
 * An invitation: one word that says which room and where, `WORDS@HOST[:PORT]`; and the line that the other side types to
 * do its part. Pure. For native/terminal/ and participant.ts.
 */
import { otherStartedAs } from "../host/started.ts";
import { canonicalWords, looksMade, wordsProblem } from "../secure/words.ts";
import { formatTarget, parseForward, type PipeSpec } from "../uses/target.ts";
import { addressScope, canonicalAddress, parseHostPort, type Place, printable } from "../../protocol.ts";
import { UsageError } from "./command-line.ts";

/** What stands before the code in the line that the other side has printed. */
const wholeLine = /^(?:bun run )?\S*participant\S*\s+(?:receive|reach)\s+/;

export interface Invitation {
  /** Undefined if only the introducer was given. */
  words?: string;
  introducer: string;
}

/** Reads `[WORDS@]HOST[:PORT]`. Throws a {@link UsageError} if the words have a slip; the host is not looked at. */
export function readInvitation(copied: string): Invitation {
  const text = copied.trim();
  const at = text.lastIndexOf("@");
  // A code that was cut off must not be looked up as a host's name.
  if (at < 0 && /\d/.test(text) && looksMade(text))
    throw new UsageError("that is a code without its introducer: WORDS@HOST[:PORT]");
  if (at < 0) return { introducer: text };
  const words = text.slice(0, at);
  const problem = wordsProblem(words);
  if (problem !== undefined) throw new UsageError(`the room before the @ ${problem}`);
  return { words, introducer: text.slice(at + 1) };
}

/** Reads the code of a verb: an invitation, or words that were made, without their introducer. */
export function readCode(copied: string): Partial<Invitation> {
  const text = copied
    .trim()
    .replace(wholeLine, "")
    .replace(/^'(.*)'$/, "$1");
  if (text.includes("@")) return readInvitation(text);
  const problem = wordsProblem(text);
  if (problem !== undefined) throw new UsageError(`the code ${problem}`);
  if (!looksMade(text)) throw new UsageError("that is no code: one looks like gjec-p272-r0uw-hs8m-z@HOST");
  return { words: text };
}

/** Reads a room's words, or a whole invitation of new words in their place. */
export function readRoom(text: string): Partial<Invitation> {
  const at = text.lastIndexOf("@");
  return at > 0 && looksMade(text.slice(0, at)) ? readInvitation(text) : { words: text };
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

/** A line more, if what others would type leads them to their own host. */
export function localHint(introducer: string): string {
  const host = parseHostPort(introducer)?.host ?? "";
  const isLocal = host === "localhost" || (canonicalAddress(host) && addressScope(host) === "loopback");
  return isLocal ? `\n  (from another host, ${host} must be this host's name or address)` : "";
}

export const invitationTo = (words: string, introducer: string): string => quoted(`${words}@${introducer}`);

/** What one side was told to do, as far as the other side's line depends on it. */
export interface OwnPart {
  name: string;
  connect: readonly string[];
  forward: readonly string[];
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
  if (part.pipe) named.push(part.pipe.peer);
  if (part.from !== undefined) named.push(part.from);
  const peers = named.length > 0 ? [...new Set(named)] : [""];
  return peers.map((peer) => {
    const name = peer === "" ? [] : ["--name", quoted(peer)];
    return [otherStartedAs("participant"), invitation, ...name, ...flagsFor(peer, part)].join(" ");
  });
}

function flagsFor(peer: string, { name, connect, forward, allow, pipe, send, accept }: OwnPart): string[] {
  const us = quoted(name);
  const flags: string[] = [];
  const wanted = forward.map(parseForward).filter((spec) => spec.peer === peer);
  const targets = wanted.map(({ target }) => formatTarget(target));
  if (pipe?.peer === peer && pipe.target) targets.push(formatTarget(pipe.target));
  for (const target of new Set(targets)) flags.push("--allow", target.replace(/^localhost:/, ""));
  if (pipe?.peer === peer && !pipe.target) flags.push("--pipe", us);
  if (send.length > 0) flags.push("--accept", ".");
  for (const rule of allow) {
    // Whole networks and any port have no one place to listen for.
    const [, host = "", port = ""] = /^(?:([^*/]+):)?(\d+)$/.exec(rule) ?? [];
    if (port !== "") flags.push("-L", `${port}:${us}:${host === "" ? "" : `${host}:`}${port}`);
  }
  if (accept !== undefined) flags.push("--connect", us, "--send", "PATH");
  else if (flags.length === 0 && connect.length === 0) flags.push("--connect", us);
  return flags;
}
