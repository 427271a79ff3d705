/**
 * Options and commands: how both programs read and list them. It runs none. For native/terminal/ and both programs.
 */
import { parseArgs, type ParseArgsOptionsConfig } from "node:util";
import manifest from "../../package.json" with { type: "json" };
import { maxTextLength, printable } from "../../protocol.ts";
import { completePath, hasOpenQuote, readPath } from "./paths.ts";

/** So many completions of a word are shown. */
const mostCompletions = 100;

/** The program's arguments are wrong: exit code 2. */
export class UsageError extends Error {}

/** A line is no command. The message says what is wrong with it. */
export class CommandError extends Error {}

/** One command: its letter ("" for none), its word, and the words that follow, such as `PEER TEXT`. */
export interface Command<Word extends string = string> {
  readonly key: string;
  readonly word: Word;
  /** Other words for it. */
  readonly aliases?: readonly string[];
  /**
   * In order. `NAME` is needed, `[NAME]` is not, `NAME ...` may be repeated, `[-v]` may stand anywhere. `TEXT` and `[TEXT]`
   * are the rest of the line. `PATH` and `[DIR]` are read as a shell reads them.
   */
  readonly operands: string;
  readonly what: string;
}

export interface CommandLine<Word extends string> {
  command: Word;
  words: string[];
  /** "" if there is none. */
  text: string;
  flags: string[];
}

export const version: string = manifest.version;

/** Reads the program's arguments. Throws a {@link UsageError}. `usage` says what the options need: `--name NAME`. */
export function readOptions<T extends ParseArgsOptionsConfig>(args: string[], options: T, usage = "") {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (!code?.startsWith("ERR_PARSE_ARGS")) throw error;
    throw new UsageError(optionProblem(message, options, usage));
  }
}

/** What is wrong with an option. Bun's own messages name it, but not what to type. */
function optionProblem(message: string, options: ParseArgsOptionsConfig, usage: string): string {
  const [, given = ""] = /^(?:Unknown option|Option) '([^ ,']+)/.exec(message) ?? [];
  if (message.startsWith("Unknown")) {
    const option = given.startsWith("-") ? given : `-${given}`;
    const meant = option.startsWith("--") && nearest(option.slice(2), Object.keys(options));
    return `there is no option ${printable(option)}${meant ? `; did you mean --${meant}?` : ""}`;
  }
  const isShort = !given.startsWith("--");
  const name = Object.keys(options).find((one) => one === given.slice(2) || options[one]!.short === given[1]);
  if (message.includes("does not take")) return `${isShort ? `--${name}` : given} takes no value`;
  const value = new RegExp(`--${name} (\\S+)`).exec(usage)?.[1] ?? "value";
  return `${given} needs ${/^[a-zA-Z]+$/.test(value) ? withArticle(value) : value} after it`;
}

const withArticle = (word: string) => `${/^[AEIO]/i.test(word) ? "an" : "a"} ${word}`;

/**
 * Which of the words was probably meant: the one with the fewest letters wrong, missing, too many, or in each other's
 * place. Undefined if that are too many for a word of that length.
 */
export function nearest(typed: string, words: Iterable<string>): string | undefined {
  const lower = typed.toLowerCase();
  let [best, fewest] = [undefined as string | undefined, Math.min(2, Math.floor(typed.length / 3))];
  for (const word of words) {
    const wrong = slips(lower, word.toLowerCase());
    if (wrong > fewest || (wrong === fewest && best !== undefined)) continue;
    [best, fewest] = [word, wrong];
  }
  return best;
}

/** So many letters must be changed, put in, taken out, or swapped with the next to make one word the other. */
function slips(a: string, b: string): number {
  let [before, row] = [[] as number[], Array.from({ length: b.length + 1 }, (_, at) => at)];
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const isSame = a[i - 1] === b[j - 1];
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (isSame ? 0 : 1));
      const isSwapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (isSwapped) next[j] = Math.min(next[j]!, before[j - 2]! + 1);
    }
    [before, row] = [row, next];
  }
  return row[b.length]!;
}

/** A line for each command: its letter, its form, what it does. */
export function renderCommands(commands: readonly Command[]): string {
  const forms = commands.map(({ word, operands }) => `${word} ${operands}`);
  const width = Math.max(...forms.map(({ length }) => length));
  return commands
    .map(({ key, what }, index) => `  ${key.padEnd(2)} ${forms[index]!.padEnd(width)}  ${what}`)
    .join("\n");
}

function findCommand<Word extends string>(
  commands: readonly Command<Word>[],
  word: string,
): Command<Word> | undefined {
  const lower = word.toLowerCase();
  return commands.find((one) => [one.word, one.key || one.word, ...(one.aliases ?? [])].includes(lower));
}

/**
 * The line with `name` as its PEER, if the command wants one and none can be meant: nothing follows but flags, or the one
 * word of a text or path, which is nobody's name.
 */
export function withPeer(
  commands: readonly Command[],
  line: string,
  name: string,
  isSomebody: (word: string) => boolean,
): string {
  const [, command = "", first = "", more = ""] = /^\s*(\S+)\s*(\S*)\s*(\S*)/.exec(line) ?? [];
  const { operands = "" } = findCommand(commands, command) ?? {};
  if (!operands.startsWith("PEER") || isSomebody(first)) return line;
  const isOther = (/TEXT|PATH/.test(operands) && more === "") || first === "" || first.startsWith("-");
  return isOther ? line.replace(/\S+/, (word) => `${word} ${name}`) : line;
}

/** Reads a line as one of these commands. Throws a {@link CommandError} that says what is wrong. */
export function readCommand<Word extends string>(
  commands: readonly Command<Word>[],
  line: string,
): CommandLine<Word> {
  const [, first = "", rest = ""] = /^\s*(\S+)\s*([^]*?)\s*$/.exec(line) ?? [];
  const found = findCommand(commands, first);
  if (!found) {
    const meant = nearest(
      first,
      commands.flatMap(({ word, aliases = [] }) => [word, ...aliases]),
    );
    const advice = meant === undefined ? "`help` lists them" : `did you mean \`${meant}\`?`;
    throw new CommandError(`there is no command ${printable(first)}; ${advice}`);
  }
  return { command: found.word, ...readOperands(found, rest) };
}

const isPath = (operand: string | undefined) => operand === "PATH" || operand === "[DIR]";

/** The operands that are words, in order; `...` and flags are none. */
const wordOperands = (operands: string) => operands.split(" ").filter((one) => /^\[?[A-Z]+\]?$/.test(one));

function readOperands({ word, operands }: Command, rest: string): Omit<CommandLine<string>, "command"> {
  const form = `${word} ${operands}`.trim();
  const flagsHere = operands.split(" ").filter((one) => one.startsWith("[-"));
  const isText = (one: string) => one === "TEXT" || one === "[TEXT]";
  const names = wordOperands(operands).filter((one) => !isText(one));
  const text = wordOperands(operands).find(isText);
  const isMany = operands.includes("...");
  const words: string[] = [];
  const flags: string[] = [];
  let left = rest;
  while (left !== "" && (text === undefined || words.length < names.length)) {
    const operand = names[words.length] ?? (isMany ? names.at(-1) : undefined);
    const { paths: next, rest: after } = isPath(operand) ? readPath(left) : nextWord(left);
    left = after;
    if (flagsHere.includes(`[${next[0]}]`)) flags.push(next[0]!);
    else if (!isPath(operand) && next[0]!.startsWith("-"))
      throw new CommandError(`there is no option ${printable(next[0]!)}: ${form}`);
    else if (operand === undefined)
      throw new CommandError(`unexpected argument ${printable(next[0]!)}: ${form}`);
    else words.push(...next);
  }
  const missing = [...names, ...(text === undefined || left !== "" ? [] : [text])]
    .slice(words.length)
    .find((one) => !one.startsWith("["));
  if (missing !== undefined) throw new CommandError(`\`${word}\` needs ${withArticle(missing)}: ${form}`);
  if (names.some(isPath) && hasOpenQuote(rest)) throw new CommandError(`a quote is not closed: ${form}`);
  if (left.length > maxTextLength)
    throw new CommandError(`a text has at most ${maxTextLength} characters; this one has ${left.length}`);
  return { words, flags, text: left };
}

function nextWord(left: string): { paths: [string]; rest: string } {
  const [, next = "", rest = ""] = /^(\S+)\s*([^]*)$/.exec(left) ?? [];
  return { paths: [next], rest };
}

/** What Tab makes of a line: what its last word may become, and what of that was typed. */
export function complete(
  commands: readonly Command[],
  names: Iterable<string>,
  line: string,
): { words: string[]; typed: string } {
  if (isPath(operandAt(commands, line))) {
    const operands = findCommand(commands, line.trim().split(/\s/)[0]!)!.operands;
    const before = wordOperands(operands).findIndex(isPath) + 1;
    const [skipped = ""] = new RegExp(`^\\s*(?:\\S+\\s+){${before}}`).exec(line) ?? [];
    return completePath(line.slice(skipped.length));
  }
  const words = completions(commands, names, line).map((word) => `${word} `);
  return { words, typed: /\S*$/.exec(line)![0] };
}

/** Which operand the last word of a line is. */
function operandAt(commands: readonly Command[], line: string): string | undefined {
  const words = line.trimStart().split(/\s+/);
  const { operands = "" } = (words.length > 1 && findCommand(commands, words[0]!)) || {};
  const all = wordOperands(operands);
  return all[words.length - 2] ?? (operands.includes("...") || isPath(all.at(-1)) ? all.at(-1) : undefined);
}

/** What the last word of a line may become: a command, or the name of a participant if one is expected. */
export function completions(commands: readonly Command[], names: Iterable<string>, line: string): string[] {
  const words = line.trimStart().split(/\s+/);
  const typed = words.at(-1) ?? "";
  if (words.length === 1) {
    return commands.map(({ word }) => word).filter((word) => word.startsWith(typed.toLowerCase()));
  }
  const operand = operandAt(commands, line);
  if (operand !== "PEER" && operand !== "ID") return [];
  const fitting = new Set<string>();
  for (const name of names) {
    if (name.startsWith(typed) && printable(name) === name) fitting.add(name);
    if (fitting.size > mostCompletions) return []; // nobody reads so many, and to sort and show them takes long
  }
  return [...fitting].sort();
}

/** The participant a user meant by an id or a name; a string is the reason it can't be said. */
export function findByIdOrName<T extends { id: number; name: string }>(
  all: Iterable<T>,
  word: string,
): T | string {
  const list = [...all];
  const byId = /^\d+$/.test(word) ? list.find((one) => one.id === Number(word)) : undefined;
  if (byId) return byId;
  const byName = list.filter((one) => one.name === word);
  if (byName.length === 1) return byName[0]!;
  if (byName.length === 0) return `nobody here is called ${printable(word)}; \`list\` shows who is`;
  return `${printable(word)} is ambiguous: use one of the ids ${byName.map((one) => one.id).join(", ")}`;
}

/** Bytes a second: `65536`, `64K`, `1M`. At least 1K: a TLS handshake must get through. */
export function readRate(option: string, text: string, Problem: new (message: string) => Error = UsageError) {
  const [, digits = "", unit = ""] = /^(\d{1,12})([KMG]?)$/i.exec(text) ?? [];
  const bytes = Number(digits) * 1024 ** " KMG".indexOf(unit.toUpperCase() || " ");
  if (bytes >= 1024) return bytes;
  throw new Problem(`${option} takes bytes a second from 1K, such as 65536 or 1M, not ${printable(text)}`);
}
