/**
 * The terminal: its pure parts, and the two real programs on a real one, under a real shell where jobs matter.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout } from "bun:test";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import {
  type Command,
  CommandError,
  completions,
  readCommand,
  nearest,
  readOptions,
  withPeer,
  renderCommands,
  UsageError,
} from "../../native/terminal/command-line.ts";
import { type Cell, renderRows, renderTable } from "../../native/terminal/table.ts";
import { colorsFor, shorten, wrap } from "../../native/terminal/text.ts";
import manifest from "../../package.json" with { type: "json" };
import { maxTextLength } from "../../protocol.ts";
import { isWritable } from "../../native/host/descriptor.ts";
import { until } from "../native-fixture.ts";
import { Pty, root } from "../pty-fixture.ts";
import { describeNeeding, linuxTest, onWindows } from "../needing-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

const folder = mkdtempSync(join(tmpdir(), "terminal-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const family = "👨‍👩‍👧‍👦"; // seven code points, joined by ZWJ to one character of two columns

// --- text and tables -------------------------------------------------------------------------------------

test.each([
  ["abc", 3, ["abc"]],
  ["abcd", 3, ["abc", "d"]],
  ["日本語", 5, ["日本", "語"]],
  [family.repeat(3), 5, [family.repeat(2), family]],
  ["e\u0301e\u0301e\u0301", 2, ["e\u0301e\u0301", "e\u0301"]],
  ["🇩🇪🇫🇷", 3, ["🇩🇪", "🇫🇷"]],
])("%s in %i columns", (text, width, lines) => {
  expect(wrap(text, width)).toEqual(lines);
});

test("what is one character to the eye is never cut in two", () => {
  expect(shorten(family.repeat(3), 5)).toBe(`${family.repeat(2)}…`);
  expect(shorten(family.repeat(3), 6)).toBe(family.repeat(3));
  expect(shorten(family.repeat(3), 4)).toBe(`${family}…`);
});

const columns = [
  { head: "id" },
  { head: "name", least: 6, isCut: true },
  { head: "where", least: 5 },
  { head: "more", optional: 2 },
  { head: "most", optional: 1 },
];
const rows: Cell[][] = [
  [["1"], ["a name that is long"], ["one", "line each"], ["more here"], ["and here"]],
  [["2"], ["b"], ["x".repeat(12)], [""], [""]],
];

test("a table that fits, or goes into a pipe, is shown whole", () => {
  const whole = renderTable(columns, rows, Infinity);
  expect(whole).toMatchInlineSnapshot(`
    "id name                where        more      most
    1  a name that is long one          more here and here
                           line each
    2  b                   xxxxxxxxxxxx"
  `);
  expect(renderTable(columns, rows, 54)).toBe(whole);
});

test("what does not fit goes in this order: columns that can be missed, then the widest", () => {
  expect(renderTable(columns, rows, 53)).not.toContain("more here");
  expect(renderTable(columns, rows, 45)).toContain("a name that is long one          and here");
  expect(renderTable(columns, rows, 20)).toMatchInlineSnapshot(`
    "id name     where
    1  a name … one
                line eac
                h
    2  b        xxxxxxxx
                xxxx"
  `);
});

test.each([15, 16, 17, 20, 25, 33, 40, 47, 80])("a table is at most %i columns wide", (width) => {
  const wide: Cell[] = [["12"], [family.repeat(20)], ["🇩🇪❤️👍🏽日本".repeat(5)], ["x"], ["y"]];
  const lines = renderTable(columns, [...rows, wide], width).split("\n");
  expect(lines.filter((line) => Bun.stringWidth(line) > width)).toEqual([]);
});

test.each([15, 16, 20, 33, 47, 80, Infinity])(
  "in %i columns a table of many rows looks like a small one",
  async (width) => {
    const two = columns.with(1, { head: "name\nof it", least: 6, isCut: true });
    const wide: Cell[] = [["12"], [family.repeat(20)], ["🇩🇪❤️👍🏽日本".repeat(5)], ["x"], ["y"]];
    const paint = (text: string) => `\x1b[31m${text}\x1b[39m`;
    const red: Cell[] = [[{ text: "3", paint }], [{ text: "red as blood", paint }], ["a", "b"], [""], [""]];
    const all = [...rows, wide, red];
    const pieces = await renderRows(two, all, (row) => row, width);
    expect(pieces).toHaveLength(1 + all.length);
    expect(pieces.join("")).toBe(`${renderTable(two, all, width)}\n`);
  },
);

test("while a table of many rows is made, everything else has its turn", async () => {
  let turns = 0;
  const turn = () => void (++turns, (timer = setImmediate(turn)));
  let timer = setImmediate(turn);
  const many = Array.from({ length: 2000 }, (_, index) => [[String(index)], ["name"], ["here"], [""], [""]]);
  await renderRows(columns, many, (row) => row, 80);
  clearImmediate(timer);
  expect(turns).toBeGreaterThan(5);
});

test("colours only on a terminal, and not where NO_COLOR is set", () => {
  const before = { ...process.env };
  const red = (isTTY?: boolean) => colorsFor({ ...(isTTY !== undefined && { isTTY }) }).red("x");
  try {
    Object.assign(process.env, { NO_COLOR: "", TERM: "xterm" });
    expect([red(true), red(false), red()]).toEqual(["\x1b[31mx\x1b[39m", "x", "x"]);
    process.env.NO_COLOR = "1";
    expect(red(true)).toBe("x");
    Object.assign(process.env, { NO_COLOR: "", TERM: "dumb" });
    expect(red(true)).toBe("x");
  } finally {
    for (const name of ["NO_COLOR", "TERM"]) {
      if (before[name] === undefined) delete process.env[name];
      else process.env[name] = before[name];
    }
  }
});

// --- reading command lines -------------------------------------------------------------------------------

const commands = [
  { key: "s", word: "list", operands: "", what: "" },
  { key: "d", word: "connect", operands: "PEER ... [-v]", what: "" },
  { key: "f", word: "say", operands: "PEER TEXT", what: "" },
  { key: "", word: "ping", operands: "PEER", what: "" },
  { key: "h", word: "echo", operands: "[TEXT]", what: "" },
  { key: "j", word: "quit", aliases: ["q", "exit"], operands: "", what: "" },
] as const satisfies Command[];

test.each([
  ["list", { command: "list", words: [], flags: [], text: "" }],
  ["  S  ", { command: "list", words: [], flags: [], text: "" }],
  ["EXIT", { command: "quit", words: [], flags: [], text: "" }],
  ["connect a b", { command: "connect", words: ["a", "b"], flags: [], text: "" }],
  ["connect -v a", { command: "connect", words: ["a"], flags: ["-v"], text: "" }],
  ["say bob  two   words ", { command: "say", words: ["bob"], flags: [], text: "two   words" }],
  ["f bob -v is text", { command: "say", words: ["bob"], flags: [], text: "-v is text" }],
  ["echo", { command: "echo", words: [], flags: [], text: "" }],
  ["echo -x y", { command: "echo", words: [], flags: [], text: "-x y" }],
] as const)("%o is a command", (line, read) => {
  expect(readCommand<string>(commands, line)).toEqual({
    ...read,
    words: [...read.words],
    flags: [...read.flags],
  });
});

test.each([
  ["dance", "there is no command dance; `help` lists them"],
  ["conect bob", "there is no command conect; did you mean `connect`?"],
  ["sya bob hi", "there is no command sya; did you mean `say`?"],
  ["pnig", "there is no command pnig; did you mean `ping`?"],
  ["x", "there is no command x; `help` lists them"],
  [`${"x".repeat(60_000)}`, `there is no command ${"x".repeat(60_000)}; \`help\` lists them`],
  ["\x1b[2J", "there is no command \ufffd[2J; `help` lists them"],
  ["list all", "unexpected argument all: list"],
  ["ping", "`ping` needs a PEER: ping PEER"],
  ["ping a b", "unexpected argument b: ping PEER"],
  ["ping -x", "there is no option -x: ping PEER"],
  ["connect -v", "`connect` needs a PEER: connect PEER ... [-v]"],
  ["connect a --fast", "there is no option --fast: connect PEER ... [-v]"],
  ["say", "`say` needs a PEER: say PEER TEXT"],
  ["say bob", "`say` needs a TEXT: say PEER TEXT"],
  ["quit now", "unexpected argument now: quit"],
  [
    `echo ${"x".repeat(maxTextLength + 1)}`,
    `a text has at most ${maxTextLength} characters; this one has 8193`,
  ],
])("%o is none", (line, message) => {
  expect(() => readCommand(commands, line)).toThrow(new CommandError(message));
});

test.each([
  ["", ["list", "connect", "say", "ping", "echo", "quit"]],
  ["CO", ["connect"]],
  ["ping b", ["bert", "bob"]],
  ["f bo", ["bob"]],
  ["say bob b", []],
  ["connect bob b", ["bert", "bob"]],
  ["echo b", []],
  ["dance b", []],
])("Tab after %o offers %o", (line, words) => {
  expect(completions(commands, ["bob", "bert", "anna", "b\x1b[2J", "bob"], line)).toEqual(words);
});

test.each([
  ["ping", "ping bob"],
  ["connect -v", "connect bob -v"],
  ["connect anna", "connect anna"],
  ["connect bbo", "connect bbo"],
  ["say hello", "say bob hello"],
  ["say", "say bob"],
  ["say anna", "say anna"],
  ["say nobody hello", "say nobody hello"],
  ["say anna hello", "say anna hello"],
  ["  f  hello", "  f bob  hello"],
  ["list", "list"],
  ["dance", "dance"],
])("where only bob is meant, %o is %o", (line, full) => {
  expect(withPeer(commands, line, "bob", (word) => word === "anna")).toBe(full);
});

test("the help has a line for each", () => {
  expect(renderCommands(commands).split("\n")[1]).toBe("  d  connect PEER ... [-v]  ".trimEnd() + "  ");
});

test.each([
  [["--nmae", "x"], "there is no option --nmae; did you mean --name?"],
  [["--conect"], "there is no option --conect; did you mean --connect?"],
  [["--nonsense"], "there is no option --nonsense"],
  [["-x"], "there is no option -x"],
  [["-vx"], "there is no option -x"],
  [["--name"], "--name needs a NAME after it"],
  [["--name", "--nat"], "--name needs a NAME after it"],
  [["--offer", "-v"], "--offer needs an OFFER after it"],
  [["-L"], "-L needs [BIND:]PORT:PEER after it"],
  [["-L", "-v"], "-L needs [BIND:]PORT:PEER after it"],
  [["--connect"], "--connect needs a value after it"],
  [["--nat=1"], "--nat takes no value"],
  [["--verbose=1"], "--verbose takes no value"],
])("of the options %o it is said: %s", (args, message) => {
  const options = {
    name: { type: "string" },
    connect: { type: "string" },
    offer: { type: "string" },
    forward: { type: "string", short: "L" },
    nat: { type: "boolean" },
    verbose: { type: "boolean", short: "v" },
  } as const;
  const help = "--name NAME  x\n -L, --forward [BIND:]PORT:PEER\n  --offer OFFER  y";
  expect(readOptions(["--name", "x", "y"], options)).toMatchObject({
    values: { name: "x" },
    positionals: ["y"],
  });
  expect(() => readOptions(args, options, help)).toThrow(new UsageError(message));
});

test.each([
  ["recieve", "receive"],
  ["Sned", "send"],
  ["shar", "share"],
  ["hlep", "help"],
  ["s", undefined],
  ["list", undefined],
  ["introducer.example", undefined],
])("%s was meant to be %o", (typed, word) => {
  expect(nearest(typed, ["send", "receive", "share", "reach", "help"])).toBe(word);
});

// --- the two programs ------------------------------------------------------------------------------------

const programs = ["introducer", "participant"] as const;
type Program = (typeof programs)[number];
let house: Introducer;
beforeAll(() => {
  house = Introducer.start({ host: "127.0.0.1", port: 0 });
});
afterAll(() => house.stop());

const environment = { PATH: process.env.PATH, XDG_STATE_HOME: folder };
const bun = process.execPath;

/** What both programs need to start: an introducer listens anywhere, a participant goes to ours. */
function startArguments(program: Program): string[] {
  return program === "participant"
    ? [`127.0.0.1:${house.port}`, "--name", "alice"]
    : [String(freePort()), "--host", "127.0.0.1", "--probe-ports", "none"];
}

function start(program: Program, ...args: string[]): Pty {
  return new Pty([bun, join(root, `${program}.ts`), ...startArguments(program), ...args], environment);
}

/** Runs a program without any input. */
async function outcome(program: Program, args: string[]) {
  await using child = Bun.spawn([bun, join(root, `${program}.ts`), ...args], {
    env: environment,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, stdout, stderr };
}

describe.each(programs)("the %s", (program) => {
  test("--help fits 80 columns, names how it was started; --version is the package's", async () => {
    const help = await outcome(program, ["--help"]);
    expect(help).toMatchObject({ code: 0, stderr: "" });
    expect(help.stdout).toStartWith(`Usage: bun run ${program} [`);
    expect(help.stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
    expect(help.stdout).toContain("Exit codes: 0 done, 1 failed, 2 wrong usage.");
    const version = await outcome(program, ["--version"]);
    expect(version).toEqual({ code: 0, stderr: "", stdout: `${manifest.version}\n` });
  });

  test("wrong usage is told the same way", async () => {
    const result = await outcome(program, ["--nonsense"]);
    const stderr = "error: there is no option --nonsense; see --help\n";
    expect(result).toEqual({ code: 2, stdout: "", stderr });
  });

  test.each(["--help", "--version"])("%s on a full disk: exit code 1, and why", async (option) => {
    if (process.platform !== "linux") return;
    const full = openSync("/dev/full", "w");
    await using child = Bun.spawn([bun, join(root, `${program}.ts`), option], {
      stdout: full,
      stderr: "pipe",
    });
    closeSync(full);
    expect(await child.stderr.text()).toBe(
      "error: cannot write to standard output: no space is left on the disk (ENOSPC)\n",
    );
    expect(await child.exited).toBe(1);
  });

  test("Tab completes, Ctrl-C clears a half-typed line, and on an empty one quits", async () => {
    await using pty = start(program);
    await pty.shows("> ");
    await pty.answers("he\t", "help ");
    await pty.answers("\r", "end");
    await pty.answers("?\r", "quit");
    await pty.answers("dance\r", "error: there is no command dance; `help` lists them");
    await pty.answers("quit now", "quit now");
    await pty.answers("\x03", /> \x1b\[\d+G$/);
    await pty.answers("list extra\r", "error: unexpected argument extra: list");
    pty.type("\x03");
    expect(await pty.exited).toBe(0);
  });

  test("a terminal that is gone ends it", async () => {
    await using pty = start(program);
    await pty.shows("> ");
    pty.hangUp();
    // The introducer takes no SIGHUP: 128 + 1.
    expect(await pty.exited).toBe(program === "participant" ? 0 : 129);
  });

  test.each(["quit", "q", "exit", "j", "\x04"])("%o ends it", async (word) => {
    await using pty = start(program);
    await pty.shows("> ");
    pty.type(`${word}\r`);
    expect(await pty.exited).toBe(0);
  });

  test("nobody reads: no command runs ahead of its reader, and SIGTERM ends it and tells the loss", async () => {
    const fifo = join(folder, `${program} unread`);
    expect(Bun.spawnSync(["mkfifo", fifo]).exitCode).toBe(0);
    const unread = openSync(fifo, "r+");
    await using child = Bun.spawn([bun, join(root, `${program}.ts`), ...startArguments(program)], {
      env: environment,
      stdin: "pipe",
      stdout: unread,
      stderr: "pipe",
    });
    child.stdin.write("help\n".repeat(1000) + "dance\n");
    await child.stdin.flush();
    await until("its output is full", () => !isWritable(unread));
    child.kill("SIGTERM");
    const told = await child.stderr.text();
    expect(told).toMatch(/error: nobody read standard output: \d{1,2} lines dropped\n$/);
    expect(told).not.toContain("dance");
    expect(await child.exited).toBe(program === "participant" ? 143 : 0);
    closeSync(unread);
  });

  test("who reads late gets all of it", async () => {
    const command = [bun, join(root, `${program}.ts`), ...startArguments(program)];
    // What is waited for is time: so late is the reader.
    await using shell = Bun.spawn(
      ["sh", "-c", '"$0" "$@" | { sleep 1.5; grep -c "^  s   *list"; }', ...command],
      {
        env: environment,
        stdin: new Blob([`${"help\n".repeat(500)}quit\n`]),
        stdout: "pipe",
        stderr: "ignore",
      },
    );
    expect(await shell.stdout.text()).toBe("500\n");
  });

  linuxTest("its output stays as it was for others who write there", async () => {
    const fifo = join(folder, `${program} shared`);
    expect(Bun.spawnSync(["mkfifo", fifo]).exitCode).toBe(0);
    const shared = openSync(fifo, "r+");
    const flags = () => /flags:\t(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${shared}`, "utf8"))?.[1];
    const before = flags();
    const whole = [...startArguments(program), "--quiet"];
    for (const args of [["--help"], ["--nonsense"], whole]) {
      const child = Bun.spawn([bun, join(root, `${program}.ts`), ...args], {
        env: environment,
        stdin: new Blob(["quit\n"]),
        stdout: shared,
        stderr: shared,
      });
      await child.exited;
      expect(flags()).toBe(before);
    }
    closeSync(shared);
  });

  test("whoever read it is gone: exit code 1, and why", async () => {
    const command = [bun, join(root, `${program}.ts`), ...startArguments(program)];
    await using shell = Bun.spawn(["sh", "-c", '("$0" "$@"; echo "exit $?" >&2) | true', ...command], {
      env: environment,
      stdin: "pipe",
      stdout: "ignore",
      stderr: "pipe",
    });
    const ask = setInterval(() => {
      try {
        shell.stdin.write("help\n");
        Promise.resolve(shell.stdin.flush()).catch(() => {});
      } catch {
        // It has ended: what it said of that is looked at below.
      }
    }, 20);
    expect(await shell.stderr.text()).toEndWith(
      "error: cannot write to standard output: whoever read it is gone (EPIPE)\nexit 1\n",
    );
    clearInterval(ask);
  });
});

test("the participant's --nat on a full disk ends with 1 and a word", async () => {
  if (process.platform !== "linux") return;
  const full = openSync("/dev/full", "w");
  const command = [bun, join(root, "participant.ts"), `127.0.0.1:${house.port}`, "--nat"];
  await using child = Bun.spawn(command, { env: environment, stdout: full, stderr: "pipe" });
  closeSync(full);
  expect(await child.stderr.text()).toEndWith(
    "error: cannot write to standard output: no space is left on the disk (ENOSPC)\n",
  );
  expect(await child.exited).toBe(1);
});

test("with links up a second Ctrl-C is needed; the first says so", async () => {
  await using alice = start("participant");
  await alice.shows("mapping: ");
  await using bob = start("participant", "--name", "bob");
  await bob.shows("mapping: ");
  await alice.shows("bob (");
  await alice.answers("connect b\t", "connect bob ");
  await alice.answers("\r", "linked with bob");
  await alice.answers("say bob hi\r", "has it after");
  await bob.shows("<alice> hi");
  await alice.answers("\x03", "1 link up; Ctrl-C again ends it");
  alice.type("\x03\x03"); // the second one for the case that the first comes too late after the one before
  expect(await alice.exited).toBe(0);
  await bob.shows("alice");
});

test("the introducer asks before it sends participants away", async () => {
  const port = freePort();
  await using pty = new Pty(
    [bun, join(root, "introducer.ts"), String(port), "--host", "127.0.0.1"],
    environment,
  );
  await pty.shows("> ");
  await using alice = new Pty(
    [bun, join(root, "participant.ts"), `127.0.0.1:${port}`, "--name", "alice"],
    environment,
  );
  await alice.shows("mapping: ");
  await pty.answers("tell alice be careful\r", "told alice (1)");
  await alice.shows("[introducer] be careful");
  await pty.answers("j\r", "end the introducer for 1 participant? [y/N] ");
  await pty.answers("\r", "introducer> ");
  await pty.answers("\x03", "1 participant here; Ctrl-C again ends it");
  await pty.answers("list\r", "1 participant in 1 room, 0 links");
  await pty.answers("quit\r", "? [y/N] ");
  pty.type("y\r");
  expect(await pty.exited).toBe(0);
  await alice.shows("the operator ended the introducer");
});

test.each([
  ["what is under way is drawn", false],
  ["but not over the screen of whoever wants it quiet, such as an ssh that goes by a pipe", true],
])("%s", async (_, isQuiet) => {
  const script = `const { Terminal } = await import("./native/terminal/terminal.ts");
    const terminal = new Terminal();
    terminal.isQuiet = ${isQuiet};
    terminal.status(["under way"]);
    terminal.error("and it ends");`;
  await using pty = new Pty([bun, "-e", script], environment);
  await pty.shows("and it ends");
  expect(pty.screen.includes("under way")).toBe(!isQuiet);
});

test("an empty or wrong answer is asked for again; Ctrl-C and Ctrl-D give up", async () => {
  const participant = [bun, join(root, "participant.ts"), "--name", "alice"];
  await using asked = new Pty(participant, environment);
  await asked.shows("Introducer (HOST, ");
  await asked.answers("\r", /\n[^]*Introducer \(HOST/);
  await asked.answers("a b\r", /error: "a b" is no introducer[^]*Introducer \(HOST/);
  await asked.answers(`127.0.0.1:${house.port}\r`, "registered");
  await using given = new Pty(participant, environment);
  await given.shows("Introducer");
  given.type("\x03");
  expect(await given.exited).toBe(0);
  const introducer = [bun, join(root, "introducer.ts"), "--host", "127.0.0.1"];
  await using operator = new Pty(introducer, environment);
  await operator.shows("Port [7000]: ");
  await operator.answers("70000\r", /error: a port is a number from 1 to 65535[^]*Port \[7000\]/);
  operator.type("\x04");
  expect(await operator.exited).toBe(0);
});

test("a taken port proposes the next one that is free", async () => {
  const port = freePort();
  const listen = (one: number) => Bun.listen({ hostname: "127.0.0.1", port: one, socket: { data() {} } });
  const taken = [listen(port), listen(port + 1)];
  const { code, stderr } = await outcome("introducer", [String(port), "--host", "127.0.0.1"]);
  for (const one of taken) one.stop(true);
  const [, proposed] = /choose another: bun run introducer (\d+)\n$/.exec(stderr) ?? [];
  expect(code).toBe(1);
  expect(Number(proposed)).toBeGreaterThan(port + 1);
  listen(Number(proposed)).stop(true); // free indeed
});

test("--alternate must be an address of this host", async () => {
  const { code, stderr } = await outcome("introducer", ["7000", "--alternate", "192.0.2.1"]);
  expect({ code, stderr }).toEqual({
    code: 2,
    stderr: "error: --alternate must be an address of this host, and 192.0.2.1 is none; see --help\n",
  });
});

test("--quiet: results and errors only", async () => {
  const { port } = house;
  const command = [bun, join(root, "participant.ts"), `127.0.0.1:${port}`, "--name", "quiet", "--quiet"];
  await using child = Bun.spawn(command, { env: environment, stdin: "pipe", stdout: "pipe", stderr: "pipe" });
  child.stdin.write("whoami\nping nobody\nquit\n");
  await child.stdin.end();
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect(stdout).toMatch(
    /^quiet \(\d+\) in room lobby, which is open to everyone: all there see these addresses\n  private [^]*\n  fingerprint  [0-9a-f]{64}\n$/,
  );
  expect(stderr).toBe("error: nobody here is called nobody; `list` shows who is\n");
  expect(await child.exited).toBe(1);
});

// --- jobs ------------------------------------------------------------------------------------------------

const shells = ["bash --norc --noprofile -i", "sh -i"].filter((shell) => Bun.which(shell.split(" ")[0]!));

/** A shell on a terminal, and how it says that a job was stopped. */
async function interactive(shell: string): Promise<Pty> {
  const pty = new Pty(shell.split(" "), { ...environment, ENV: "", HISTFILE: "" });
  await pty.shows("shell$ ");
  return pty;
}

/** The one program that a shell has started. */
function childOf(pid: number): number {
  const children = `/proc/${pid}/task/${pid}/children`;
  const found = existsSync(children)
    ? readFileSync(children, "utf8")
    : Bun.spawnSync(["pgrep", "-P", String(pid)]).stdout.toString();
  return Number(found.trim());
}

/** Both programs as single files, made once. */
let built: Promise<number[]> | undefined;
const build = () =>
  (built ??= Promise.all(
    programs.map((program) => {
      const command = [
        bun,
        "build",
        "--compile",
        join(root, `${program}.ts`),
        "--outfile",
        join(folder, program),
      ];
      return Bun.spawn(command, { stdout: "ignore", stderr: "ignore" }).exited;
    }),
  ));

function jobsUnder(shell: string): void {
  beforeAll(async () => expect(await build()).toEqual([0, 0]));

  const ways = programs.flatMap((program) => [
    [`bun ${program}.ts`, program] as const,
    [`bun run ${program}`, program] as const,
    [`${folder}/${program}`, program] as const,
  ]);

  test.each(ways)(
    "%s is stopped by Ctrl-Z, continued by fg, and its keyboard lives",
    async (command, program) => {
      await using pty = await interactive(shell);
      await pty.answers(`${command} ${startArguments(program).join(" ")}\r`, /> \x1b\[\d+G/);
      for (let turn = 1; turn <= 2; turn++) {
        await pty.answers("dance", "dance");
        await pty.answers("\x1a", /Stopped[^]*shell\$ $/);
        await pty.answers("stty -a | grep -cw -- -icanon\r", /[\r\n]0\r/); // the shell has a cooked terminal
        await pty.answers("fg\r", "> dance"); // still there
        await pty.answers("\r", "there is no command dance");
      }
      await pty.answers("\x03", "shell$ ");
      await pty.answers("jobs; echo the end of $((6 * 7))\r", /[\r\n]the end of 42\r/);
      expect(pty.screen).not.toContain("Stopped");
    },
  );

  test("started in the background it waits for fg, stopped by the terminal", async () => {
    await using pty = await interactive(shell);
    pty.type(`bun participant.ts ${startArguments("participant").join(" ")} &\r`);
    await pty.shows("registered");
    for (pty.screen = ""; !pty.screen.includes("Stopped");) await pty.answers("jobs\r", "shell$ ");
    await pty.answers("stty -a | grep -cw -- -icanon\r", /[\r\n]0\r/);
    await pty.answers("fg\r", "> ");
    await pty.answers("dance\r", "there is no command dance");
    await pty.answers("\x03", "shell$ ");
  });

  test("stopped by a signal to it alone, the whole job stops, and comes back", async () => {
    await using pty = await interactive(shell);
    const command = `${folder}/participant ${startArguments("participant").join(" ")}`;
    await pty.answers(`${command}\r`, /> \x1b\[\d+G/);
    process.kill(childOf(pty.pid), "SIGTSTP");
    await pty.shows(/Stopped[^]*shell\$ $/);
    await pty.answers("stty -a | grep -cw -- -icanon\r", /[\r\n]0\r/);
    await pty.answers("fg\r", /participant[^]*> /);
    await pty.answers("dance\r", "there is no command dance");
    await pty.answers("\x03", "shell$ ");
  });
}
for (const shell of shells) describeNeeding(onWindows)(`under ${shell}`, () => jobsUnder(shell));

test("without a shell that could continue it, Ctrl-Z stops nothing", async () => {
  await using pty = start("participant");
  await pty.shows("> ");
  await pty.answers("dance\x1a", "dance");
  await pty.answers("\r", "there is no command dance");
  pty.type("\x03");
  expect(await pty.exited).toBe(0);
});
