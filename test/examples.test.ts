/** The programs of test/examples/, which people copy: each is run, by two or three at once, over loopback. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startIntroducer } from "./driven-fixture.ts";
import { until } from "./native-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { root } from "./pty-fixture.ts";

setDefaultTimeout(testMs);

const examples = join(import.meta.dir, "examples");
const state = mkdtempSync(join(tmpdir(), "examples-"));
afterAll(() => rmSync(state, { recursive: true, force: true }));

/** One of them that runs; what it prints is awaited. */
class Example implements AsyncDisposable {
  said = "";
  readonly #child: ReturnType<typeof Example.start>;
  readonly #stderr: Promise<string>;
  readonly #read: Promise<void>;

  private static start(file: string, args: string[]) {
    const env = { PATH: process.env.PATH, XDG_STATE_HOME: state };
    const command = [process.execPath, join(examples, file), "127.0.0.1", ...args];
    return Bun.spawn(command, { cwd: root, env, stdin: "pipe", stdout: "pipe", stderr: "pipe" });
  }

  constructor(file: string, ...args: string[]) {
    this.#child = Example.start(file, args);
    this.#stderr = this.#child.stderr.text();
    this.#read = this.#listen();
  }

  async #listen(): Promise<void> {
    for await (const piece of this.#child.stdout.pipeThrough(new TextDecoderStream())) this.said += piece;
  }

  type(line: string): void {
    this.#child.stdin.write(`${line}\n`);
    void this.#child.stdin.flush();
  }

  async says(text: string): Promise<void> {
    await until(`it says ${text}`, () => this.said.includes(text), testMs / 2);
  }

  /** Resolves to its exit code, and what it has said on standard error. */
  async ends(): Promise<[number, string]> {
    void this.#child.stdin.end();
    await this.#read;
    return [await this.#child.exited, await this.#stderr];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

test("each is short enough to be read, and none is left out here", () => {
  const files = readdirSync(examples);
  expect(files.sort()).toEqual(["chat.ts", "clipboard.ts", "game.ts"]);
  const lines = files.map((file) => readFileSync(join(examples, file), "utf8").trimEnd().split("\n").length);
  expect(Math.max(...lines)).toBeLessThanOrEqual(60);
});

test.concurrent("the chat: what one says all others read, and who ends goes in order", async () => {
  await using house = startIntroducer();
  const port = String(house.port);
  await using alice = new Example("chat.ts", port, "alice");
  await until("alice is there", () => house.introducer.participants.length === 1, testMs / 2);
  await using bob = new Example("chat.ts", port, "bob");
  await Promise.all([alice.says("bob is here\n"), bob.says("alice is here\n")]);
  await using carol = new Example("chat.ts", port, "carol");
  await Promise.all([alice.says("carol is here\n"), bob.says("carol is here\n")]);
  alice.type("hello, all");
  await Promise.all([bob.says("alice: hello, all\n"), carol.says("alice: hello, all\n")]);
  bob.type("bye");
  expect(await bob.ends()).toEqual([0, ""]);
  await Promise.all([alice.says("bob: bye\nbob has gone\n"), carol.says("bob: bye\nbob has gone\n")]);
  expect(await Promise.all([alice.ends(), carol.ends()])).toEqual([
    [0, ""],
    [0, ""],
  ]);
});

test.concurrent(
  "the clipboard: what is copied here is there, also for who comes later, and the latest counts",
  async () => {
    await using house = startIntroducer();
    const port = String(house.port);
    const files = ["a", "b"].map((name) => join(state, name));
    const holds = (text: string) => () => files.every((file) => readFileSync(file, "utf8") === text);
    await using alice = new Example("clipboard.ts", port, "alice", files[0]!);
    await until("alice is there", () => house.introducer.participants.length === 1, testMs / 2);
    writeFileSync(files[0]!, "copied before bob came");
    writeFileSync(files[1]!, "");
    await using bob = new Example("clipboard.ts", port, "bob", files[1]!);
    await bob.says("alice has copied 22 characters\n");
    writeFileSync(files[1]!, "and now by bob");
    await alice.says("bob has copied 14 characters\n");
    await until("both have it", holds("and now by bob"), testMs / 2);
    expect(await Promise.all([alice.ends(), bob.ends()])).toEqual([
      [0, ""],
      [0, ""],
    ]);
  },
);

test.concurrent("the game: two race, agree who has won, and end by themselves", async () => {
  await using house = startIntroducer();
  const port = String(house.port);
  await using alice = new Example("game.ts", port, "alice");
  await using bob = new Example("game.ts", port, "bob", "alice");
  expect(await Promise.all([alice.ends(), bob.ends()])).toEqual([
    [0, ""],
    [0, ""],
  ]);
  expect([
    ["I have won\n", "alice has won\n"],
    ["bob has won\n", "I have won\n"],
  ]).toContainEqual([alice.said, bob.said]);
});
