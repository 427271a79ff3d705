/** The line that is being typed: pastes, the search, what was typed in earlier runs, and the terminal given back. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Introducer } from "../../introducer.ts";
import { History } from "../../native/terminal/history.ts";
import { Keys, pasted } from "../../native/terminal/keys.ts";
import { cursorPosition } from "../../native/terminal/text.ts";
import { linuxTest } from "../needing-fixture.ts";
import { Pty, root } from "../pty-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const folder = mkdtempSync(join(tmpdir(), "line-editor-test-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

// --- pure ------------------------------------------------------------------------------------------------

/** What comes out of these chunks, and what the line shows. */
async function typed(chunks: string[], history: string[] = []): Promise<{ keys: string; shown: string[] }> {
  const line = {
    history,
    line: "typed",
    shown: [] as string[],
    show(text: string, prompt = "> ") {
      this.line = text;
      this.shown.push(prompt + text);
    },
  };
  const filter = new Keys(line);
  for (const chunk of chunks) filter.write(Buffer.from(chunk));
  filter.end();
  return { keys: await new Response(filter as never).text(), shown: line.shown };
}

const paste = (text: string) => `\x1b[200~${text}\x1b[201~`;

test.each([
  ["one line", ["say bob hi\r"], "say bob hi\r"],
  ["a paste", [paste("say bob hi")], "say bob hi"],
  ["a paste with its line end", [paste("say bob hi\n")], "say bob hi"],
  ["three lines", [paste("list\r\nnat\r\nquit\r\n"), "\r"], "list nat quit\r"],
  ["a paste in pieces", [...("ab" + paste("x\ny\n") + "c")], "abx yc"],
  ["marks in what is pasted", [paste("\x1b[200~a\x1b[31mb\x07\x03")], "[200~a[31mb"],
  ["a paste that never ends", ["\x1b[200~abc\n"], "abc"],
])("%s", async (_, chunks, keys) => {
  expect((await typed(chunks)).keys).toBe(keys);
});

test("pasted control characters do nothing", () => {
  expect(pasted("a\tb\x00\x1b\x7f\x9b31mc")).toBe("a b31mc");
});

test("a key that begins like a paste passes on by itself", async () => {
  const filter = new Keys({ history: [], line: "", show: () => {} });
  const first = new Promise<string>((resolve) => filter.once("data", (key) => resolve(String(key))));
  filter.write("\x1b");
  expect(await first).toBe("\x1b");
});

const past = ["ping bob", "connect bob", "say anna hi", "connect anna"];
test.each([
  ["the newest that has it", "\x12bob", "(search) bob: ping bob"],
  ["again: the one before", "\x12bob\x12", "(search) bob: connect bob"],
  ["more letters", "\x12an", "(search) an: say anna hi"],
  ["none", "\x12zz", "(search: nothing) zz: "],
  ["a letter taken back", "\x12bobx\x7f", "(search) bob: ping bob"],
  ["Ctrl-C: what was there", "\x12bob\x03", "> typed"],
  ["Right: to be changed", "\x12bob\x1b[C", "> ping bob"],
])("search: %s", async (_, keys, shown) => {
  expect((await typed([keys], past)).shown.at(-1)).toBe(shown);
});

test("a search that is over lets keys through", async () => {
  expect((await typed(["\x12bob\r", "x"], past)).keys).toBe("\rx");
});

test.each([
  ["abc", { cols: 3, rows: 0 }],
  ["👨‍👩‍👧‍👦x", { cols: 3, rows: 0 }],
  ["e\u0301e\u0301", { cols: 2, rows: 0 }],
  ["x".repeat(10), { cols: 0, rows: 1 }],
  ["x".repeat(9) + "日", { cols: 2, rows: 1 }],
])("%s ends there on a screen of ten columns", (text, place) => {
  expect(cursorPosition(text, 10)).toEqual(place);
});

// --- the file --------------------------------------------------------------------------------------------

test("lines outlive the program, for their user only; no line twice; none that begins with a blank", () => {
  const first = new History("tests", folder);
  for (const line of ["list", "ping bob", " secret", "list", "list"]) first.add(line);
  expect(new History("tests", folder).lines).toEqual(["list", "ping bob"]);
  expect(statSync(join(folder, "tests-history")).mode & 0o777).toBe(0o600);
});

test("a file that is too long is cut, one that is no file is left alone", () => {
  const file = join(folder, "long-history");
  writeFileSync(file, Array.from({ length: 5000 }, (_, index) => `line ${index}\n`).join(""), {
    mode: 0o600,
  });
  expect(new History("long", folder).lines).toHaveLength(1000);
  expect(readFileSync(file, "utf8").split("\n")).toHaveLength(1001);
  const elsewhere = join(folder, "elsewhere");
  symlinkSync(elsewhere, join(folder, "linked-history"));
  new History("linked", folder).add("list");
  expect(existsSync(elsewhere)).toBe(false);
  mkdirSync(join(folder, "odd-history"));
  const odd = new History("odd", folder);
  odd.add("list");
  expect(odd.lines).toEqual(["list"]);
});

test("a folder that can't be written is no problem", () => {
  const file = join(folder, "a file");
  writeFileSync(file, "");
  const history = new History("tests", file);
  history.add("list");
  expect(history.lines).toEqual(["list"]);
  chmodSync(file, 0o600);
});

test("what is under way is drawn above the line that is typed, and not above one that was entered", async () => {
  const script = `const { Terminal } = await import("./native/terminal/terminal.ts");
    const { History } = await import("./native/terminal/history.ts");
    const terminal = new Terminal();
    const onLine = (line) => void terminal.result("got " + line);
    const rest = { complete: () => ({ words: [], typed: "" }), reasonToStay: () => undefined };
    void terminal.converse({ prompt: "> ", history: new History("none", undefined), onLine, ...rest });
    terminal.status(["under way"]);`;
  await using pty = new Pty([process.execPath, "-e", script]);
  await pty.shows(/under way\r\n[^]*> /);
  await pty.answers("one", "one");
  await pty.answers("\r", "got one");
  const [entered = ""] = pty.screen.split("\r\n");
  expect(entered).toContain("> one");
  expect(entered).not.toContain("under way");
});

// --- on a terminal ---------------------------------------------------------------------------------------

let house: Introducer;
beforeAll(() => void (house = Introducer.start({ host: "127.0.0.1", port: 0 })));
afterAll(() => house.stop());

const environment = { XDG_STATE_HOME: join(folder, "state") };
const start = () =>
  new Pty(
    [process.execPath, join(root, "participant.ts"), `127.0.0.1:${house.port}`, "--name", "alice"],
    environment,
  );

describe("the participant's prompt", () => {
  test("pasted lines run when Enter confirms them, as one; the next run knows them", async () => {
    await using first = start();
    await first.shows("mapping: ");
    await first.answers(paste("dance\nquit\n"), "dance quit");
    await first.answers("\r", "there is no command dance");
    first.type("quit\r");
    expect(await first.exited).toBe(0);
    await using second = start();
    await second.shows("mapping: ");
    await second.answers("\x12dan", "(search) dan: dance quit");
    await second.answers("\r", "there is no command dance");
    await second.answers("\x1b[A", "> dance quit");
    second.type("\x03\x03");
    expect(await second.exited).toBe(0);
  });

  test("a narrower window: what was drawn is erased where the terminal has wrapped it", async () => {
    await using pty = start();
    await pty.shows("mapping: ");
    await pty.answers("x".repeat(60), "x".repeat(60));
    pty.resize(40);
    await pty.shows(/\x1b\[1A[^]*x{60}/);
  });

  linuxTest.each(["SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU", "SIGVTALRM", "SIGPROF"] as const)(
    "%s ends it, and the terminal is as it was",
    async (signal) => {
      const shell = `sh -c 'echo "pid $$"; exec "$0" "$@"' "$0" "$@"; echo "code $?"; stty -a | grep -cw -- -icanon`;
      const command = [
        process.execPath,
        join(root, "participant.ts"),
        `127.0.0.1:${house.port}`,
        "--name",
        "alice",
      ];
      await using pty = new Pty(["sh", "-c", shell, ...command], environment);
      await pty.shows("mapping: ");
      const [, pid = ""] = /pid (\d+)/.exec(pty.screen) ?? [];
      process.kill(Number(pid), signal);
      await pty.shows(/code \d+\r\n\d\r/);
      const [, code, isRaw] = /code (\d+)\r\n(\d)\r/.exec(pty.screen)!;
      expect({ died: Number(code) > 128, isRaw }).toEqual({ died: true, isRaw: "0" });
    },
  );
});
