/**
 * Options and commands: how both programs read and list them. It runs none. For native/terminal/ and both programs.
 */
import { basename } from "node:path";
import { parseArgs, type ParseArgsOptionsConfig } from "node:util";
import manifest from "../../package.json" with { type: "json" };
import { maxTextLength, printable } from "../../protocol.ts";

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
   * In order. `NAME` is needed, `NAME ...` may be repeated, `[-v]` may stand anywhere. `TEXT` and `[TEXT]` are the rest of
   * the line.
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

/** The command that starts this program, for people: `bun run NAME`, or the name of the compiled file. */
export function startedAs(name: string): string {
  // A compiled program has a file system of its own: /$bunfs/, on Windows B:\~BUN\.
  const isCompiled = /\$bunfs|~BUN/.test(import.meta.path);
  return isCompiled ? basename(process.execPath) : `bun run ${name}`;
}

/** The same for the other program. */
export function otherStartedAs(name: string): string {
  return startedAs(name).startsWith("bun run ") ? `bun run ${name}` : name;
}

/** Reads the program's arguments. Throws a {@link UsageError}. */
export function readOptions<T extends ParseArgsOptionsConfig>(args: string[], options: T) {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const [, option] = /^Unknown option '([^]*?)'/.exec(message) ?? [];
    if (option !== undefined) throw new UsageError(`there is no option ${option}`);
    if (code?.startsWith("ERR_PARSE_ARGS")) throw new UsageError(message.replace(/\n[^]*/, ""));
    throw error;
  }
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

/** Reads a line as one of these commands. Throws a {@link CommandError} that says what is wrong. */
export function readCommand<Word extends string>(
  commands: readonly Command<Word>[],
  line: string,
): CommandLine<Word> {
  const [, first = "", rest = ""] = /^\s*(\S+)\s*([^]*?)\s*$/.exec(line) ?? [];
  const found = findCommand(commands, first);
  if (!found) throw new CommandError(`there is no command ${printable(first)}; \`help\` lists them`);
  return { command: found.word, ...readOperands(found, rest) };
}

function readOperands({ word, operands }: Command, rest: string): Omit<CommandLine<string>, "command"> {
  const form = `${word} ${operands}`.trim();
  const expected = operands.split(" ").filter(Boolean);
  const isOption = (one: string) => one.startsWith("[-");
  const names = expected.filter((one) => /^[A-Z]+$/.test(one) && one !== "TEXT");
  const text = expected.find((one) => one === "TEXT" || one === "[TEXT]");
  const words: string[] = [];
  const flags: string[] = [];
  let left = rest;
  while (left !== "" && (text === undefined || words.length < names.length)) {
    const [, next = "", after = ""] = /^(\S+)\s*([^]*)$/.exec(left) ?? [];
    left = after;
    if (expected.some((one) => isOption(one) && one === `[${next}]`)) flags.push(next);
    else if (next.startsWith("-")) throw new CommandError(`there is no option ${printable(next)}: ${form}`);
    else if (words.length === names.length && !expected.includes("..."))
      throw new CommandError(`unexpected argument ${printable(next)}: ${form}`);
    else words.push(next);
  }
  const missing = names[words.length] ?? (text === "TEXT" && left === "" ? text : undefined);
  const article = missing === "ID" ? "an" : "a";
  if (missing !== undefined) throw new CommandError(`\`${word}\` needs ${article} ${missing}: ${form}`);
  if (left.length > maxTextLength)
    throw new CommandError(`a text has at most ${maxTextLength} characters; this one has ${left.length}`);
  return { words, flags, text: left };
}

/** What the last word of a line may become: a command, or the name of a participant if one is expected. */
export function completions(commands: readonly Command[], names: Iterable<string>, line: string): string[] {
  const words = line.trimStart().split(/\s+/);
  const typed = words.at(-1) ?? "";
  if (words.length === 1) {
    return commands.map(({ word }) => word).filter((word) => word.startsWith(typed.toLowerCase()));
  }
  const operands = findCommand(commands, words[0]!)?.operands.split(" ") ?? [];
  const operand = operands.includes("...") ? operands[0] : operands[words.length - 2];
  if (operand !== "PEER" && operand !== "ID") return [];
  const fitting = new Set<string>();
  for (const name of names) {
    if (name.startsWith(typed) && printable(name) === name) fitting.add(name);
    if (fitting.size > mostCompletions) return []; // nobody reads so many, and to sort and show them takes long
  }
  return [...fitting].sort();
}
