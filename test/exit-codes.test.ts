/**
 * The exit code is a promise: every use of the participant with every way in which it can end, by the real programs. 0 done,
 * 1 failed, 2 wrong usage, 128 + signal. What is told with it is in the tests of each use.
 */
import { afterAll, describe, expect, setDefaultTimeout } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { homeOf, spawn, startIntroducer } from "./driven-fixture.ts";
import { newRoomWords } from "../native/secure/words.ts";
import { UsageError } from "../native/terminal/command-line.ts";
import { readArguments } from "../native/terminal/participant-arguments.ts";
import { until } from "./native-fixture.ts";
import { client, freePort, readAll, target } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);
const folder = mkdtempSync(join(tmpdir(), "exit-codes-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const file = join(folder, "a file");
writeFileSync(file, "x".repeat(100_000));
const words = newRoomWords();

/** A program, with what it has told so far. */
function start(name: string, port: number, args: string[], input?: string) {
  const environment = { XDG_STATE_HOME: homeOf(name), INTRODUCER: `127.0.0.1:${port}`, ROOM: words };
  const child = spawn([...args, "--name", name], environment, homeOf(name));
  const told = { out: "", err: "" };
  const read = async (stream: typeof child.stdout, to: "out" | "err") => {
    for await (const text of stream.pipeThrough(new TextDecoderStream())) told[to] += text;
  };
  void read(child.stdout, "out");
  void read(child.stderr, "err");
  if (input !== undefined) {
    child.stdin.write(input);
    child.stdin.end();
  }
  return Object.assign(child, {
    told,
    tells: (text: string) => until(text, () => (told.out + told.err).includes(text)),
  });
}

/** Each use: what alice types, with an input if it needs one, and whether somebody waits for its end. */
const uses: Record<string, { args: (port: number) => string[]; input?: string; isAwaited: boolean }> = {
  send: { args: () => ["send", file], isAwaited: true },
  receive: { args: () => ["receive"], isAwaited: true },
  share: { args: (port) => ["share", String(port)], isAwaited: false },
  reach: { args: () => ["reach"], isAwaited: false },
  "--send": { args: () => ["--connect", "bob", "--send", file], isAwaited: true },
  "--pipe": { args: () => ["--pipe", "bob"], input: "something", isAwaited: true },
  "--pipe to a target": { args: (port) => ["--pipe", `bob:${port}`], input: "something", isAwaited: true },
  "-L": { args: (port) => ["-L", `${freePort()}:bob:${port}`], isAwaited: false },
  "-D": { args: () => ["-D", `${freePort()}:bob`], isAwaited: false },
  "-R": { args: (port) => ["-R", `${freePort()}:bob:${port}`], isAwaited: false },
  "--allow-listen": { args: () => ["--allow-listen", "9000"], isAwaited: false },
  "--allow": { args: (port) => ["--allow", String(port)], isAwaited: false },
  "--accept": { args: () => ["--accept", folder], isAwaited: false },
  "--connect": { args: () => ["--connect", "bob"], input: "", isAwaited: true },
  "--stay": { args: () => ["--stay"], isAwaited: false },
};
const names = Object.keys(uses);
const awaited = names.filter((name) => uses[name]!.isAwaited);

test("wrong usage: 2", async () => {
  for (const use of names)
    expect(() => readArguments(["h", "--room", words, ...uses[use]!.args(80), "--nonsense"])).toThrow(
      UsageError,
    );
  const alice = start("alice", 1, ["--stay", "--nonsense"], "");
  expect(await alice.exited).toBe(2);
});

test.each([...awaited, "--nat"])("%s, no introducer: 1", async (use) => {
  const alice = start("alice", freePort(), uses[use]?.args(80) ?? [use], uses[use]?.input ?? "");
  expect(await alice.exited).toBe(1);
});

const signals = [
  ["SIGINT", 130],
  ["SIGTERM", 143],
] as const;
/** Each use with one of them, and each of them with uses of both kinds; with the others: signals.test.ts. */
const stopped = names.map((use, index) => [use, ...signals[index % 2]!] as const);

test.each(stopped)("%s, waiting for the other side, and %s", async (use, signal, code) => {
  await using house = startIntroducer();
  const { args, input, isAwaited } = uses[use]!;
  const alice = start("alice", house.port, [...args(80), "-v"], input);
  await alice.tells("registered");
  alice.kill(signal);
  expect(await alice.exited).toBe(isAwaited ? code : 0);
});

test.each(awaited)("%s, nobody comes within --wait: 1", async (use) => {
  await using house = startIntroducer();
  const { args, input } = uses[use]!;
  const alice = start("alice", house.port, [...args(80), "--wait", "0.5"], input);
  expect(await alice.exited).toBe(1);
});

describe("done: 0", () => {
  test("send and receive", async () => {
    await using house = startIntroducer();
    const alice = start("alice", house.port, ["send", file]);
    await alice.tells(" receive ");
    const [, code = ""] = / receive (\S+)/.exec(alice.told.err)!;
    const bob = start("bob", house.port, ["receive", code]);
    expect(await Promise.all([alice.exited, bob.exited])).toEqual([0, 0]);
  });

  test("a pipe, a pipe to a target, a link, a script", async () => {
    await using server = await target((socket) => void socket.resume().end("bye"));
    await using house = startIntroducer();
    const bob = start("bob", house.port, ["--allow", String(server.port)]);
    await bob.tells("registered");
    const piped = start("alice", house.port, ["--pipe", `bob:${server.port}`], "hello");
    expect(await piped.exited).toBe(0);
    const linked = start("carol", house.port, ["--connect", "bob"], "");
    expect(await linked.exited).toBe(0);
    const script = start("dave", house.port, [], "list\nwhoami\nquit\n");
    expect(await script.exited).toBe(0);
    const [one, other] = [
      start("erin", house.port, ["--pipe", "frank"], "a"),
      start("frank", house.port, ["--pipe", "erin"], "b"),
    ];
    expect(await Promise.all([one.exited, other.exited])).toEqual([0, 0]);
    bob.kill("SIGTERM");
    expect(await bob.exited).toBe(0);
  });

  test("--nat, --help, --version", async () => {
    await using house = startIntroducer();
    for (const args of [["--nat"], ["--help"], ["--version"]])
      expect([args, await start("alice", house.port, args, "").exited]).toEqual([args, 0]);
  });
});

describe("refused: 1", () => {
  test("--send, whom the other refuses; a pipe to what is not allowed, and to where nobody listens", async () => {
    await using house = startIntroducer();
    const bob = start("bob", house.port, ["--stay", "--allow", "1"]);
    await bob.tells("registered");
    const sending = start("alice", house.port, ["--connect", "bob", "--send", file], "");
    await bob.tells("offers a file");
    bob.stdin.write("refuse 1\n");
    await bob.stdin.flush();
    expect(await sending.exited).toBe(1);
    for (const port of [2, 1]) {
      const piped = start("carol", house.port, ["--pipe", `bob:${port}`], "x");
      expect([port, await piped.exited]).toEqual([port, 1]);
    }
    bob.kill("SIGTERM");
    await bob.exited;
  });

  test("a script of which a line fails", async () => {
    await using house = startIntroducer();
    const alice = start("alice", house.port, [], "list\nping nobody\nlist\n");
    expect(await alice.exited).toBe(1);
  });
});

describe("the peer is gone: 1", () => {
  test("--send, receive, --pipe", async () => {
    await using house = startIntroducer();
    mkdirSync(join(folder, "gone"), { recursive: true });
    const bob = start("bob", house.port, ["--stay"]);
    await bob.tells("registered");
    const sending = start("alice", house.port, ["--connect", "bob", "--send", file, "--keep", "0"], "");
    await bob.tells("offers a file");
    bob.kill("SIGKILL");
    expect(await sending.exited).toBe(1);
    const [one, other] = [
      start("carol", house.port, ["--pipe", "dave", "--keep", "0"]),
      start("dave", house.port, ["--pipe", "carol", "--keep", "0"]),
    ];
    await one.tells("linked with");
    other.kill("SIGKILL");
    expect(await one.exited).toBe(1);
  });
});

test("the reader of the output is gone: 1", async () => {
  await using house = startIntroducer();
  const environment = { XDG_STATE_HOME: homeOf("alice"), INTRODUCER: `127.0.0.1:${house.port}`, ROOM: words };
  const script = `{ yes whoami | "$0" "$@"; echo "code $?" >&2; } | head -c 10`;
  const command = ["sh", "-c", script, process.execPath, join(import.meta.dir, "..", "participant.ts")];
  const shell = Bun.spawn(command, {
    env: { PATH: process.env.PATH, ...environment },
    stdout: "ignore",
    stderr: "pipe",
  });
  expect(await shell.stderr.text()).toContain("code 1");
});

test("a connection through a forward that is used: the service goes on, and ends with 0", async () => {
  await using server = await target((socket) => void socket.pipe(socket));
  await using house = startIntroducer();
  const port = freePort();
  const alice = start("alice", house.port, ["-L", `${port}:bob:${server.port}`]);
  const bob = start("bob", house.port, ["--allow", String(server.port)]);
  await alice.tells("forwarding");
  const socket = client(port);
  const reading = readAll(socket);
  socket.end("hello");
  expect((await reading).bytes.toString()).toBe("hello");
  for (const one of [alice, bob]) one.kill("SIGINT");
  expect(await Promise.all([alice.exited, bob.exited])).toEqual([0, 0]);
});
