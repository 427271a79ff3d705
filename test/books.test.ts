/** The three books: their commands are ones that the programs take, and what they name is there. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../package.json" with { type: "json" };
import * as participantOptions from "../native/terminal/participant-options.ts";
import * as introducer from "../native/terminal/introducer-arguments.ts";
import * as participant from "../native/terminal/participant-arguments.ts";
import { benches } from "./bench/run.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const root = join(import.meta.dir, "..");
const books = ["README.md", "native/README.md", "test/README.md"];
const textOf = (book: string) => readFileSync(join(root, book), "utf8");
const readme = textOf("README.md");

/** Blocks of code in one of these languages; "" for blocks without one. */
function blocks(text: string, languages: string[]): string[] {
  const all = [...text.matchAll(/^```(\w*)\n([^]*?)^```$/gm)];
  return all.filter(([, language = ""]) => languages.includes(language)).map(([, , code = ""]) => code);
}

/** A shell's words of one simple command; quotes are taken away. */
const words = (command: string) =>
  (command.match(/(?:'[^']*'|[^\s'])+/g) ?? []).map((one) => one.replaceAll("'", ""));

/** Environment variables before a command, and the command. */
function split(command: string): { env: Record<string, string>; args: string[] } {
  const all = words(command);
  const first = all.findIndex((word) => !/^[A-Z_]+=/.test(word));
  const env = all.slice(0, first).map((word) => word.split("=", 2) as [string, string]);
  return { env: Object.fromEntries(env), args: all.slice(first) };
}

/** Each command that a user types, of Bun and of ours: in blocks, in pipes, in ssh's options, and within sentences. */
function commandsOf(text: string): string[] {
  const shell = blocks(text, ["sh"]).join("");
  const prompt = /^\w*\$ /;
  const screens = blocks(text, [""]).flatMap((block) => block.split("\n"));
  const typed = screens.filter((line) => prompt.test(line)).map((line) => line.replace(prompt, ""));
  const proxies = blocks(text, ["ssh_config"]).flatMap((block) => block.match(/(?<=ProxyCommand ).*/g) ?? []);
  const lines = [...shell.split("\n"), ...typed, ...proxies];
  const inSentences = [...text.matchAll(/`((?:bun|participant|introducer) [^`]*)`/g)].map(
    ([, command = ""]) => command,
  );
  return [...lines, ...inSentences].flatMap((line) => {
    const bare = line.replace(/\s#.*/, "").replaceAll("\n", " ");
    return bare
      .split(/\s(?:\||&&|;)\s/)
      .map((part) => part.trim())
      .filter((part) => /^(?:[A-Z_]+=\S+ )*(?:bun|participant|introducer)(?: |$)/.test(part));
  });
}

const all = books.flatMap((book) => commandsOf(textOf(book)).map((command) => [book, command] as const));
const programs = { introducer: introducer.readArguments, participant: participant.readArguments };
/** What the README has both sides set before its uses. */
const exported = { INTRODUCER: "gjec-p272-r0uw-hs8m-z@HOST" };

/** Reads a program's arguments as it would, with that environment; throws what it would say. */
function read(name: keyof typeof programs, args: string[], env: Record<string, string>): unknown {
  const [before, added] = [{ ...process.env }, { ...exported, ...env }];
  Object.assign(process.env, added);
  try {
    return programs[name](args.filter((one) => one !== "…"));
  } finally {
    for (const key of Object.keys(added)) delete process.env[key];
    Object.assign(process.env, before);
  }
}

test("the books have commands", () => {
  expect(all.filter(([book]) => book === "README.md").length).toBeGreaterThan(15);
});

test.each(all)("%s: %s can be run", (_book, command) => {
  const { env, args } = split(command);
  const [first = "", ...rest] = args;
  if (first === "participant" || first === "introducer")
    return expect(() => read(first, rest, env)).not.toThrow();
  if (rest[0] !== "run") {
    // Bun's own commands, and a file: it must be there.
    const file = rest.find((one) => one.endsWith(".ts"));
    if (file !== undefined && !file.includes("CLONE")) expect(existsSync(join(root, file))).toBe(true);
    return expect(
      ["build", "install", "link", "test", "check", "fmt"].includes(rest[0]!) || file !== undefined,
    ).toBe(true);
  }
  const script = rest.findIndex(
    (one, index) => index > 0 && !one.startsWith("--") && rest[index - 1] !== "--cwd",
  );
  const [name = "", ...given] = rest.slice(script);
  expect(Object.keys(manifest.scripts)).toContain(name);
  if (name === "introducer" || name === "participant") expect(() => read(name, given, env)).not.toThrow();
  if (name === "bench" && given[0] !== undefined && !["NAME", "--quick"].includes(given[0]))
    expect(benches).toContain(given[0]);
});

test("an option that there is not would be noticed", () => {
  expect(() => read("participant", ["--no-such"], {})).toThrow("there is no option --no-such");
});

test("each option that the README names in a sentence is one of a program's", () => {
  const named = [...readme.matchAll(/`(--[a-z-]+)/g)].map(([, option = ""]) => option.slice(2));
  const known = [...Object.keys(introducer.options), ...Object.keys(participantOptions.options)];
  expect(named.filter((option) => !known.includes(option) && option !== "no-")).toEqual([]);
});

test.each(books)("%s names files that are there", (book) => {
  const text = textOf(book).replaceAll("CLONE/", "");
  const named = [
    ...text.matchAll(/(?<![\w./-])(?:\.\.\/)?((?:\.?[\w-]+\/)*\w[\w.-]*\.(?:ts|md|service))(?![\w-])/g),
  ];
  const isThere = (path: string) => ["", "native"].some((base) => existsSync(join(root, base, path)));
  expect(named.map(([, path = ""]) => path).filter((path) => !isThere(path))).toEqual([]);
});

test("native/README.md names what stands where it says", () => {
  const named = [...textOf("native/README.md").matchAll(/`#?(\w+)`[^`()]{0,3}[(,]\s*([\w/]+\.ts)\)/g)];
  expect(named.length).toBeGreaterThan(5);
  const fileOf = (path: string) => (existsSync(join(root, path)) ? path : `native/${path}`);
  const isIn = (name: string, path: string) => readFileSync(join(root, fileOf(path)), "utf8").includes(name);
  expect(named.filter(([, name = "", path = ""]) => !isIn(name, path)).map(([whole]) => whole)).toEqual([]);
});

test("the README is for users, and no longer than they read", () => {
  expect(readme.trimEnd().split("\n").length).toBeLessThanOrEqual(200);
});
