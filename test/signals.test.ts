/** What a signal ends with: whoever has asked for a result and has not got it must not go on as if he had. */
import { afterAll, describe, expect, setDefaultTimeout } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Driven, homeOf, met, spawn, startIntroducer } from "./driven-fixture.ts";
import { until } from "./native-fixture.ts";
import { missing, testNeeding } from "./needing-fixture.ts";
import { Pty, root } from "./pty-fixture.ts";
import { freePort } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(3);

const room = ["--room", "of the tests of signals"];
const signals = [
  ["SIGINT", 130],
  ["SIGTERM", 143],
  ["SIGHUP", 129],
] as const;
setDefaultTimeout(testMs);
const folder = mkdtempSync(join(tmpdir(), "signals-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const file = join(folder, "big");
writeFileSync(file, "something");

/** A program whose story can be waited for. */
function started(port: number, name: string, ...options: string[]) {
  const child = spawn([`127.0.0.1:${port}`, "--name", name, ...room, ...options], {
    XDG_STATE_HOME: homeOf(name),
  });
  let story = "";
  void (async () => {
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) story += text;
  })();
  return Object.assign(child, {
    shows: (text: string) => until(text, () => story.includes(text)),
  });
}

/** An introducer that takes everybody and says nothing. */
async function silent() {
  const { promise: asked, resolve: hear } = Promise.withResolvers<void>();
  // It connects before it is loaded: only who has said something can take a signal.
  const server = createServer((socket) => void socket.on("error", () => {}).on("data", () => hear()));
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  return { port: (server.address() as AddressInfo).port, asked, [Symbol.dispose]: () => server.close() };
}

describe.each(signals)("%s before the result is there ends with it:", (signal, code) => {
  test("--send, whose offer waits for an answer", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await using alice = new Driven(house.port, "alice", ...room, "--connect", "bob", "--send", file);
    await bob.next("offered");
    alice.signal(signal);
    expect(await alice.exited()).toBe(code);
  });

  test("both ends of a pipe", async () => {
    await using house = startIntroducer();
    await using alice = started(house.port, "alice", "--pipe", "bob");
    await using bob = started(house.port, "bob", "--pipe", "alice");
    alice.stdin.write("a part of it");
    await alice.stdin.flush();
    expect((await bob.stdout.getReader().read()).value?.length).toBe("a part of it".length);
    bob.kill(signal);
    expect(await bob.exited).toBe(code);
    expect(await alice.exited).toBe(1);

    await using carol = started(house.port, "carol", "--pipe", "dave");
    await using dave = started(house.port, "dave", "--pipe", "carol");
    carol.stdin.write("a part of it");
    await carol.stdin.flush();
    await dave.stdout.getReader().read();
    carol.kill(signal);
    expect(await carol.exited).toBe(code);
    expect(await dave.exited).toBe(1);
  });
});

describe("so does any signal:", () => {
  const [signal, code] = signals[1];

  test.each([
    ["--send", ["--connect", "bob", "--send", file]],
    ["--connect, in a script", ["--connect", "bob"]],
    ["--pipe", ["--pipe", "bob"]],
  ])("%s, whose peer is not there", async (_, options) => {
    await using house = startIntroducer();
    await using alice = started(house.port, "alice", ...options);
    await alice.shows("registered");
    alice.kill(signal);
    expect(await alice.exited).toBe(code);
  });

  test("--nat, without an answer", async () => {
    using introducer = await silent();
    await using alice = started(introducer.port, "alice", "--nat");
    await introducer.asked;
    alice.kill(signal);
    expect(await alice.exited).toBe(code);
  });

  test("a line of a script", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await using alice = new Driven(house.port, "alice", ...room);
    await met(alice, bob);
    alice.type("connect bob", `send bob ${file}`);
    await bob.next("offered");
    alice.signal(signal);
    expect(await alice.exited()).toBe(code);
  });
});

describe("a service that is told to end has not failed:", () => {
  const [signal] = signals[1];

  test.each([[["--stay"]], [["--allow", "80"]], [["-L", `${freePort()}:bob:80`]], [["--accept", folder]]])(
    "%j",
    async (options) => {
      await using house = startIntroducer();
      await using alice = started(house.port, "alice", ...options);
      await alice.shows("registered");
      alice.kill(signal);
      expect(await alice.exited).toBe(0);
      using introducer = await silent();
      await using early = started(introducer.port, "alice", ...options);
      await introducer.asked;
      early.kill(signal);
      expect(await early.exited).toBe(0);
    },
  );

  test("a script that has all it asked for", async () => {
    await using house = startIntroducer();
    await using _ = new Driven(house.port, "alice", ...room);
    await using bob = new Driven(house.port, "bob", ...room, "--connect", "alice");
    await bob.next("linked");
    bob.type("say alice hello");
    await bob.next("sent");
    bob.signal(signal);
    expect(await bob.exited()).toBe(0);
  });

  test("--send with --stay, once it is sent", async () => {
    await using house = startIntroducer();
    const target = mkdtempSync(join(folder, "target-"));
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    const options = ["--connect", "bob", "--send", file, "--stay"];
    await using alice = new Driven(house.port, "alice", ...room, ...options);
    await alice.next("transferred");
    alice.type("list");
    await alice.next("peers");
    alice.signal(signal);
    expect(await alice.exited()).toBe(0);
    expect(bob.count("transferred")).toBe(1);
  });

  test.each(signals)("a prompt, by %s, also while a peer is waited for", async (signal) => {
    await using house = startIntroducer();
    const command = [process.execPath, "participant.ts", `127.0.0.1:${house.port}`, "--name", "alice"];
    await using alice = new Pty([...command, "--connect", "bob"], { XDG_STATE_HOME: homeOf("alice") });
    await alice.shows("> ");
    process.kill(alice.pid, signal);
    expect(await alice.exited).toBe(0);
  });
});

const noBash = missing(["bash"], "package bash");
(noBash === undefined ? test : testNeeding(noBash))(
  "Ctrl-C in a shell does not reach what comes after &&",
  async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await bob.registered;
    const environment = { HISTFILE: "", XDG_STATE_HOME: homeOf("alice") };
    await using shell = new Pty(["bash", "--norc", "--noprofile", "-i"], environment);
    await shell.shows("shell$ ");
    const send = `'${process.execPath}' run --silent --cwd '${root}' participant 127.0.0.1:${house.port}`;
    const options = `--name alice --room '${room[1]}' --connect bob --send '${file}'`;
    shell.type(`${send} ${options} && echo re""moved\r`);
    await bob.next("offered");
    await shell.answers("\x03", "shell$ ");
    expect(shell.screen).not.toContain("removed");
    await shell.answers('echo "exit"=$?\r', /exit=130\r/);
  },
);

test("who gives no introducer to send by has sent nothing", async () => {
  const command = [process.execPath, "participant.ts", "--connect", "bob", "--send", file];
  for (const key of ["\x03", "\x04"]) {
    await using alice = new Pty(command, { XDG_STATE_HOME: homeOf("alice") });
    await alice.shows("Introducer (HOST, HOST:PORT, or an invitation): ");
    alice.type(key);
    expect(await alice.exited).toBe(1);
  }
});
