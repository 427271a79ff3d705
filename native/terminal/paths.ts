/**
 * Paths as they are typed, pasted, or dragged into a terminal: quotes, backslashes, `~`, patterns, and what Tab makes of
 * them. It reads folders, and owns nothing. For native/terminal/.
 *
 * POSIX.1-2017 Shell Command Language §2.2 (quoting), §2.6.1 (tilde expansion), §2.13 (patterns).
 */
import { readdirSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { printable } from "../../protocol.ts";

/** So many entries of a folder are offered. Nobody reads more. */
const maxCompletions = 100;
/** What a shell would not leave as it is. */
const special = /[\s'"\\*?[\]{}~!$&;|<>()`#]/g;

/** A word as it was typed, and what it means. */
interface Word {
  /** Without quotes. */
  text: string;
  /** The same for `Bun.Glob`, in which quoted characters mean themselves; undefined if it is no pattern. */
  pattern: string | undefined;
  /** The quote that is still open. */
  open: string;
  /** Where it ends in what was read. */
  end: number;
}

/** Reads the first word. It ends at a blank that is not quoted. */
function firstWord(typed: string): Word {
  let [text, pattern, open, isPattern, at] = ["", "", "", false, 0];
  const add = (char: string, isQuoted: boolean) => {
    text += char;
    pattern += isQuoted ? char.replace(/[*?[\]{}!\\]/g, "\\$&") : char;
    isPattern ||= !isQuoted && /[*?[{]/.test(char);
  };
  for (; at < typed.length; at++) {
    const char = typed[at]!;
    const next = typed[at + 1];
    if (open === "" && /\s/.test(char)) break;
    if (char === open) open = "";
    else if (open === "" && (char === "'" || char === '"')) open = char;
    else if (char === "\\" && open !== "'" && next !== undefined && (open === "" || /["\\$`]/.test(next)))
      add(typed[++at]!, true);
    else add(char, open !== "");
  }
  if (/^~(\/|$)/.test(typed)) [text, pattern] = [homedir() + text.slice(1), homedir() + pattern.slice(1)];
  return { text, pattern: isPattern ? pattern : undefined, open, end: at };
}

/** The first path of what was typed, and the rest. A pattern is all that it fits, or itself if that is nothing. */
export function readPath(typed: string): { paths: string[]; rest: string } {
  const { text, pattern, end } = firstWord(typed);
  const rest = typed.slice(end).trimStart();
  if (pattern === undefined) return { paths: [text], rest };
  // A glob is looked for below a folder: the longest one that is no pattern itself.
  let folder = dirname(pattern);
  while (/[*?[{\\]/.test(folder)) folder = dirname(folder);
  const below = folder === "." ? pattern : pattern.slice(folder === "/" ? 1 : folder.length + 1);
  try {
    const found = [...new Bun.Glob(below).scanSync({ cwd: resolve(folder), onlyFiles: false })].sort();
    if (found.length > 0)
      return { paths: found.map((one) => (folder === "." ? one : join(folder, one))), rest };
  } catch {
    // a folder that is not there, or can't be read: whoever opens the path says so
  }
  return { paths: [text], rest };
}

/** Whether a quote was opened and not closed. */
export const hasOpenQuote = (typed: string): boolean => lastWord(typed).word.open !== "";

function lastWord(typed: string): { word: Word; start: number } {
  for (let start = 0; ;) {
    while (/\s/.test(typed[start] ?? "")) start++;
    const word = firstWord(typed.slice(start));
    if (start + word.end >= typed.length) return { word, start };
    start += word.end;
  }
}

/** What the last path may become, as a person would type it, and what of it was typed. */
export function completePath(typed: string): { words: string[]; typed: string } {
  const { word, start } = lastWord(typed);
  const raw = typed.slice(start);
  const slash = word.text.lastIndexOf("/") + 1;
  const name = word.text.slice(slash);
  const offered: string[] = [];
  try {
    for (const entry of readdirSync(word.text.slice(0, slash) || ".", { withFileTypes: true })) {
      const isHidden = entry.name.startsWith(".") && !name.startsWith(".");
      if (!entry.name.startsWith(name) || isHidden || printable(entry.name) !== entry.name) continue;
      offered.push(entry.name + (entry.isDirectory() ? "/" : " "));
      if (offered.length > maxCompletions) return { words: [], typed: raw };
    }
  } catch {
    // not a folder, or not ours to read
  }
  const before = raw.slice(0, raw.lastIndexOf("/") + 1) || word.open;
  const quote = (one: string) => {
    if (word.open !== "") return one.replace(/ $/, `${word.open} `);
    return one.slice(0, -1).replace(special, "\\$&") + one.slice(-1);
  };
  return { words: offered.sort().map((one) => before + quote(one)), typed: raw };
}
