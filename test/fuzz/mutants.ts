/**
 * `bun run mutate COUNT SEED [FILES…]`: breaks the program at random places, each time one: drops a statement or turns a
 * condition round. Then it runs the unit tests that belong to the file, in a copy of the repository. A break that no test
 * sees survives, and is printed: there a test is missing. Bounded in time, and the same breaks again for the same seed.
 */
import { cpSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { Random } from "./mutate.ts";

export const root = join(import.meta.dir, "..", "..");
const defaultFiles = ["introducer.ts", "native/introducer/", "native/participant/", "native/punch/"];
/** A test file may take so long, on a busy machine: of a break that makes it hang, that is what it takes to see it. */
const mostMs = 100_000;
/** So many test files run at once: most of their time they wait. */
const atOnce = 4;

/** One break: on that line, counted from 1, `was` became `is`. */
export interface Mutant {
  file: string;
  line: number;
  was: string;
  is: string;
  text: string;
}

export interface Verdict {
  mutant: Mutant;
  killedBy: string | undefined;
}

const opposite: Record<string, string> = {
  "===": "!==",
  "!==": "===",
  "<": ">=",
  ">=": "<",
  ">": "<=",
  "<=": ">",
  "&&": "||",
  "||": "&&",
};
const notDropped =
  /^(?:const|let|return|import|export|type|interface|case|default|declare|static|readonly|throw|[}\])#*/])\b/;

/** All ways to break one line of code that stands at the beginning of a statement or not. */
function breaksOf(line: string, before: string): string[] {
  const code = line.trim();
  if (/^(?:\/[/*]|\*|import |export (?:type|interface) |type )/.test(code)) return [];
  const breaks: string[] = [];
  for (const { 0: found, 1: operator, index } of code.matchAll(/ (===|!==|<=|>=|<|>|&&|\|\|) /g))
    breaks.push(code.slice(0, index) + ` ${opposite[operator!]} ` + code.slice(index + found.length));
  const condition = /^((?:\} else )?if \()(.*)(\) (?:return|throw|continue|break|this|\{).*)$/.exec(code);
  if (condition) breaks.push(`${condition[1]}!(${condition[2]})${condition[3]}`);
  const isWhole = /^[\w(].*;(?: \/\/.*)?$/.test(code) && /^$|[;{}]$|^\/\/|\*\/$/.test(before.trim());
  if (isWhole && !notDropped.test(code) && !/^(?:readonly )?[\w?]+\??: /.test(code)) breaks.push(";");
  return breaks;
}

const transpiler = new Bun.Transpiler({ loader: "ts" });

function transpiled(text: string): string | undefined {
  try {
    return transpiler.transformSync(text);
  } catch {
    return undefined;
  }
}

/** Every break of a file that changes what is run. */
export function mutantsOf(file: string, source: string): Mutant[] {
  const lines = source.split("\n");
  const whole = transpiled(source);
  return lines.flatMap((line, index) =>
    breaksOf(line, lines[index - 1] ?? "").flatMap((is) => {
      const text = lines.with(index, is).join("\n");
      const result = transpiled(text);
      if (result === undefined || result === whole) return [];
      return [{ file, line: index + 1, was: line.trim(), is, text }];
    }),
  );
}

/** What a file imports of ours. */
async function importsOf(file: string): Promise<string[]> {
  const source = Bun.file(join(root, file));
  const text = (await source.exists()) ? await source.text() : ""; // what a test imports in a string may be nowhere
  return [...text.matchAll(/(?:from|import\() ?"(\.[^"]+\.ts)"/g)].map(([, path]) =>
    join(dirname(file), path!),
  );
}

/** Whose tests also belong to a place, besides those of its own folder and those that import the file. */
const alsoOf: Record<string, string[]> = {
  "native/introducer": [
    "test/faults.test.ts",
    "test/hostile/leaks.test.ts",
    "test/hostile/relay.test.ts",
    "test/hostile/room.test.ts",
  ],
  "native/punch": [
    "test/participant/",
    "test/hostile/lying-introducer.test.ts",
    "test/hostile/stranger.test.ts",
  ],
  "native/participant": [
    "test/keep.test.ts",
    "test/uses.test.ts",
    "test/hostile/introducer.test.ts",
    "test/hostile/lying-introducer.test.ts",
    "test/hostile/member.test.ts",
    "test/hostile/trust.test.ts",
  ],
  "native/shares": ["test/introducer/", "test/punch/"],
};

/** The tests that belong to a source, the likeliest first: that of its name, what imports it, and its folder's. */
export async function testsOf(source: string): Promise<string[]> {
  const [, folder = basename(source, ".ts")] = source.split("/");
  const own = [`test/${folder}/`, ...(alsoOf[`native/${folder}`] ?? [])];
  const sameName = `test/${folder}/${basename(source, ".ts")}.test.ts`;
  const ranked: [rank: number, test: string][] = [];
  for (const test of new Bun.Glob("test/**/*.test.ts").scanSync({ cwd: root })) {
    if (/^test\/(?:lab|fuzz|bench)\//.test(test)) continue;
    const imports = (await importsOf(test)).includes(source);
    const place = own.findIndex((one) => test.startsWith(one));
    if (test === sameName) ranked.push([0, test]);
    else if (place === 0) ranked.push([imports ? 1 : 2, test]);
    else if (imports || place > 0) ranked.push([3, test]);
  }
  return ranked.toSorted(([a, x], [b, y]) => a - b || (x < y ? -1 : 1)).map(([, test]) => test);
}

/** A copy of the repository that is gone at the end. */
export function copyOf(): Disposable & { path: string } {
  const path = mkdtempSync(join(tmpdir(), "mutants-"));
  for (const name of readdirSync(root)) {
    if (name === "node_modules") symlinkSync(join(root, name), join(path, name));
    else if (name !== ".git") cpSync(join(root, name), join(path, name), { recursive: true });
  }
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

/** Runs that test file there, or one test of it. Returns the first that fails; "" when it took too long or did not begin. */
async function failing(cwd: string, file: string, only?: string): Promise<string | undefined> {
  const command = [process.execPath, "test", "--bail=1", `./${file}`];
  if (only !== undefined) command.push("-t", `^${only.replaceAll(" > ", " ").replace(/[^\w ]/g, ".")}$`);
  const stdio = { stdin: "ignore", stdout: "ignore", stderr: "pipe" } as const;
  await using child = Bun.spawn(command, { cwd, ...stdio, timeout: mostMs, killSignal: "SIGKILL" });
  const text = await child.stderr.text();
  if ((await child.exited) === 0) return undefined;
  return /^\(fail\) (.*?)(?: \[[\d.]+m?s\])?$/m.exec(text)?.[1] ?? "";
}

/** The likeliest alone, for it mostly is enough; then {@link atOnce} at a time. */
function turnsOf(tests: string[]): string[][] {
  const [first, ...others] = tests;
  const turns = first === undefined ? [] : [[first]];
  for (let at = 0; at < others.length; at += atOnce) turns.push(others.slice(at, at + atOnce));
  return turns;
}

/**
 * Breaks the copy, runs the tests until one sees it, and mends the copy again. A test sees the break if it fails, fails again
 * alone, and passes once the copy is mended. Else it may have been the machine, or the test.
 */
export async function judge(path: string, mutant: Mutant, tests: string[]): Promise<Verdict> {
  const file = join(path, mutant.file);
  const whole = await Bun.file(join(root, mutant.file)).text();
  try {
    for (const some of turnsOf(tests)) {
      writeFileSync(file, mutant.text);
      const names = await Promise.all(some.map((test) => failing(path, test)));
      for (const [at, name] of names.entries()) {
        if (name === undefined) continue;
        const [test, only] = [some[at]!, name === "" ? undefined : name];
        writeFileSync(file, mutant.text);
        if (only !== undefined && (await failing(path, test, only)) === undefined) continue;
        writeFileSync(file, whole);
        if ((await failing(path, test, only)) !== undefined) continue;
        return { mutant, killedBy: only ?? `${test}, which never ended or did not begin` };
      }
    }
    return { mutant, killedBy: undefined };
  } finally {
    writeFileSync(file, whole);
  }
}

export function sourcesOf(names: string[]): string[] {
  const sources = names.flatMap((name) =>
    name.endsWith("/")
      ? [...new Bun.Glob(`${name}**/*.ts`).scanSync({ cwd: root })]
      : [relative(root, join(root, name))],
  );
  return sources.toSorted();
}

/** So many different breaks of these files. */
export async function someMutants(count: number, seed: number, sources: string[]): Promise<Mutant[]> {
  const texts = await Promise.all(sources.map((file) => Bun.file(join(root, file)).text()));
  const all = sources.flatMap((file, n) => mutantsOf(file, texts[n]!));
  const random = new Random(seed);
  return Array.from(
    { length: Math.min(count, all.length) },
    () => all.splice(random.below(all.length), 1)[0]!,
  );
}

const usage = `usage: bun run mutate COUNT SEED [FILES…]
FILES: sources, or folders that end in /; without any: ${defaultFiles.join(" ")}`;

async function main([count = "", seed = "", ...names]: string[]): Promise<number> {
  if (!/^[1-9]\d*$/.test(count) || !/^\d+$/.test(seed)) {
    console.error(usage);
    return 2;
  }
  const sources = sourcesOf(names.length > 0 ? names : defaultFiles);
  using copy = copyOf();
  const survivors: Mutant[] = [];
  let judged = 0;
  for (const mutant of await someMutants(Number(count), Number(seed), sources)) {
    const { killedBy } = await judge(copy.path, mutant, await testsOf(mutant.file));
    judged += 1;
    const { file, line, was, is } = mutant;
    console.log(
      `${file}:${line}: ${was} → ${is}\n  ${killedBy === undefined ? "survives" : `seen by: ${killedBy}`}`,
    );
    if (killedBy === undefined) survivors.push(mutant);
  }
  const percent = ((100 * survivors.length) / Math.max(1, judged)).toFixed(1);
  console.log(`${survivors.length} of ${judged} survive: ${percent} %`);
  for (const { file, line, was, is } of survivors) console.log(`${file}:${line}: ${was} → ${is}`);
  return 0;
}

if (import.meta.main) process.exit(await main(process.argv.slice(2)));
