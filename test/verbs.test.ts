/** `send` and `receive`, `share` and `reach`: two real programs on loopback, of which one types what the other prints. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { whatToOpen } from "../native/terminal/verb-run.ts";
import { type Arguments, readArguments } from "../native/terminal/participant-arguments.ts";
import { homeOf, outcome, program, spawn, startIntroducer, states } from "./driven-fixture.ts";
import { until } from "./native-fixture.ts";
import { Pty } from "./pty-fixture.ts";
import { client, freePort, readAll, target } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);

/** A program with a verb, in a folder of its own; what it prints is there as it comes. */
class Said implements AsyncDisposable {
  stdout = "";
  stderr = "";
  readonly folder: string;
  readonly #child: ReturnType<typeof spawn>;

  constructor(who: string, args: string[], environment: Record<string, string> = {}, input?: string) {
    this.folder = homeOf(who);
    this.#child = spawn(args, { XDG_STATE_HOME: this.folder, ...environment }, this.folder);
    if (input !== undefined) this.#child.stdin.write(input);
    void this.#child.stdin.end();
    for (const stream of ["stdout", "stderr"] as const) void this.#read(stream);
  }

  async #read(stream: "stdout" | "stderr"): Promise<void> {
    for await (const chunk of this.#child[stream].pipeThrough(new TextDecoderStream())) this[stream] += chunk;
  }

  /** The words of the line that the other side types, after the program's name. */
  async answer(): Promise<string[]> {
    await until("it prints what the other side types", () =>
      / {2}bun run participant .*\n/.test(this.stderr),
    );
    return / {2}bun run participant (.*)\n/.exec(this.stderr)![1]!.split(" ");
  }

  async says(text: string): Promise<void> {
    await until(`${text} in ${this.stderr}`, () => this.stderr.includes(text));
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  get exited(): Promise<number> {
    return this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

const at = ({ port }: { port: number }) => ({ INTRODUCER: `127.0.0.1:${port}` });
let made = 0;
const newcomer = () => `verb-${++made}`;

// First, for it only waits.
test("--wait ends a verb that nobody answers, with 1 and why", async () => {
  await using house = startIntroducer();
  // Far longer than a start takes, which counts.
  const { code, stderr } = await outcome(["share", "8000", "--wait", "8"], at(house));
  expect(code).toBe(1);
  expect(stderr).toEndWith("error: nobody came within 8 s (--wait)\n");
});

describe("send and receive", () => {
  test("end when all is there; neither side has named the other, nor an introducer twice", async () => {
    await using house = startIntroducer();
    const from = homeOf(newcomer());
    mkdirSync(join(from, "photos"));
    writeFileSync(join(from, "photos/one.jpg"), "one");
    writeFileSync(join(from, "two.txt"), "two");
    await using sender = new Said(from.slice(states.length + 1), ["send", "photos", "two.txt"], at(house));
    await using receiver = new Said(newcomer(), await sender.answer());
    expect([await sender.exited, await receiver.exited]).toEqual([0, 0]);
    const [folder = ""] = /from-\S+/.exec(receiver.stderr) ?? [];
    expect(readFileSync(join(receiver.folder, folder, "photos/one.jpg"), "utf8")).toBe("one");
    expect(readFileSync(join(receiver.folder, folder, "two.txt"), "utf8")).toBe("two");
    expect(sender.stderr + receiver.stderr).not.toMatch(/warning|registered|punching|unlinked/);
  });

  test("into a folder, by a code on standard input; nobody can read it in the command line", async () => {
    await using house = startIntroducer();
    const from = newcomer();
    writeFileSync(join(homeOf(from), "two.txt"), "two");
    await using sender = new Said(from, ["send", "two.txt", "--via", at(house).INTRODUCER]);
    const [verb = "", code = ""] = await sender.answer();
    expect(verb).toBe("receive");
    await using receiver = new Said(newcomer(), ["receive", "-", "in"], {}, `${code.toUpperCase()}\n`);
    expect([await sender.exited, await receiver.exited]).toEqual([0, 0]);
    expect(readFileSync(join(receiver.folder, "in/two.txt"), "utf8")).toBe("two");
  });

  test("with words of one's own, which are printed only if they were in the command line", async () => {
    await using house = startIntroducer();
    const from = newcomer();
    writeFileSync(join(homeOf(from), "two.txt"), "two");
    const words = "our very own words";
    await using sender = new Said(from, ["send", "two.txt", "--room", words], at(house));
    await sender.says(`  bun run participant receive '${words}@${at(house).INTRODUCER}'\n`);
    await using hiding = new Said(newcomer(), ["receive", "-"], {}, `${words}@${at(house).INTRODUCER}\n`);
    expect([await sender.exited, await hiding.exited]).toEqual([0, 0]);
    expect(hiding.stderr).not.toContain(words);
  });

  test("asked for unseen, they are not printed at all", async () => {
    await using house = startIntroducer();
    const folder = homeOf(newcomer());
    writeFileSync(join(folder, "two.txt"), "two");
    const command = [process.execPath, program, "send", join(folder, "two.txt"), "--room", "-"];
    await using pty = new Pty(command, { XDG_STATE_HOME: folder, ...at(house) });
    await pty.shows("Words of the room (not shown): ");
    await pty.answers("our very own words\r", "bun run participant receive -");
    await pty.shows(`(it asks for the code: WORDS@${at(house).INTRODUCER})`);
    expect(pty.screen).not.toContain("our very own words");
  });

  test("a path that is not there is told before there is a code", async () => {
    const { code, stderr } = await outcome(["send", "nowhere.txt"], { INTRODUCER: "127.0.0.1:1" });
    expect(code).toBe(1);
    expect(stderr).toContain("nowhere.txt");
    expect(stderr).not.toContain("receive");
  });

  test("whoever receives may break off and come again; then it goes with that one", async () => {
    await using house = startIntroducer();
    const from = newcomer();
    const bytes = 20 * 1024 * 1024;
    writeFileSync(join(homeOf(from), "big"), new Uint8Array(bytes));
    // So that it is still under way when we have seen that it is.
    await using sender = new Said(from, ["send", "big", "--limit", "10M"], at(house));
    const answer = await sender.answer();
    const to = newcomer();
    await using first = new Said(to, answer);
    await first.says("receiving big");
    first.signal("SIGKILL");
    await using second = new Said(to, answer);
    expect(await second.exited).toBe(0);
    expect(await sender.exited).toBe(0);
    expect(readFileSync(join(second.folder, "big")).length).toBe(bytes);
  });

  test("--to: two get it, whoever they are, without what --exclude names, and then it ends", async () => {
    await using house = startIntroducer();
    const from = homeOf(newcomer());
    mkdirSync(join(from, "photos"));
    for (const name of ["one.jpg", "two.tmp"]) writeFileSync(join(from, "photos", name), name);
    const args = ["send", "photos", "--exclude", "*.tmp", "--to", "2"];
    await using sender = new Said(from.slice(states.length + 1), args, at(house));
    const answer = await sender.answer();
    // Of the same name: the second comes once the first is gone, or is called otherwise.
    const receivers = [newcomer(), newcomer()].map((who) => new Said(who, [...answer, "in"]));
    expect(await Promise.all([sender, ...receivers].map((one) => one.exited))).toEqual([0, 0, 0]);
    for (const { folder } of receivers) {
      const [name = ""] = readdirSync(join(folder, "in"));
      expect([name, readdirSync(join(folder, "in", name))]).toEqual(["photos", ["one.jpg"]]);
    }
    expect(sender.stderr).toContain("waiting for 1 other, until Ctrl-C");
  });

  test("Ctrl-C ends either with 130, and the receiver is told that nothing comes", async () => {
    await using house = startIntroducer();
    const from = newcomer();
    writeFileSync(join(homeOf(from), "two.txt"), "two");
    await using sender = new Said(from, ["send", "two.txt"], at(house));
    await sender.answer();
    sender.signal("SIGINT");
    expect(await sender.exited).toBe(130);
  });
});

describe("share and reach", () => {
  test("listen on the same port, or a free one, and say what to open; end on Ctrl-C", async () => {
    await using house = startIntroducer();
    await using server = await target((socket) => void socket.pipe(socket));
    await using other = await target((socket) => void socket.end("other"));
    const free = freePort();
    await using sharer = new Said(
      newcomer(),
      ["share", String(server.port), `127.0.0.1:${other.port}`],
      at(house),
    );
    await using reacher = new Said(newcomer(), [...(await sharer.answer()), String(free)]);
    await until("it says what to open", () => reacher.stdout.split("\n").length === 3);
    const [first = "", second = ""] = reacher.stdout.split("\n");
    expect(first).toBe(`http://127.0.0.1:${free}/`);
    await sharer.says(` can reach localhost:${server.port}, 127.0.0.1:${other.port} now, until Ctrl-C\n`);
    // The port itself is taken here, by the server.
    const ports = [first, second].map((url) => Number(new URL(url).port));
    expect(ports[1]).not.toBe(other.port);
    const socket = client(ports[0]!);
    const echoed = readAll(socket);
    socket.end("hello");
    expect((await echoed).bytes.toString()).toBe("hello");
    expect((await readAll(client(ports[1]!))).bytes.toString()).toBe("other");
    reacher.signal("SIGINT");
    expect(await reacher.exited).toBe(0);
    await sharer.says("waiting for the other side to come again");
    sharer.signal("SIGINT");
    expect(await sharer.exited).toBe(0);
  });

  test("only whoever came first reaches anything; when the sharer ends, reach ends with 1", async () => {
    await using house = startIntroducer();
    await using server = await target((socket) => void socket.end("hello"));
    const ports = [freePort(), freePort()];
    const args = ["share", String(server.port), "--name", "sharer"];
    await using sharer = new Said(newcomer(), args, at(house));
    const answer = await sharer.answer();
    await using first = new Said(newcomer(), [...answer, String(ports[0])]);
    await first.says("is here now");
    const code = answer[1]!;
    // A member that asks for a link by itself, and for the port.
    await using second = new Said(newcomer(), [code, "-L", `${ports[1]}:sharer:${server.port}`]);
    await second.says("linked with sharer");
    expect(await readAll(client(ports[1]!))).toMatchObject({ error: "ECONNRESET" });
    await second.says("sharer does not let us reach");
    expect((await readAll(client(ports[0]!))).bytes.toString()).toBe("hello");
    sharer.signal("SIGTERM");
    expect([await sharer.exited, await first.exited]).toEqual([0, 1]);
    expect(first.stderr).toContain("error: the other side has ended it");
    second.signal("SIGKILL");
  });

  test("more ports than are shared are refused", async () => {
    await using house = startIntroducer();
    await using sharer = new Said(newcomer(), ["share", "9"], at(house));
    const { code, stderr } = await outcome([...(await sharer.answer()), "1234", "1235"]);
    expect(code).toBe(1);
    expect(stderr).toContain("error: only 1 port is shared there, and not 2\n");
  });

  test.each([
    [22, "ssh -p 2222 127.0.0.1"],
    [8443, "https://127.0.0.1:2222/"],
    [5432, "127.0.0.1:2222"],
    [8000, "http://127.0.0.1:2222/"],
  ])("port %i is opened by %s", (port, text) => expect(whatToOpen({ kind: "tcp", port }, 2222)).toBe(text));
});

test.each([
  ["send", "reach", "no port is shared there, but files are sent: type `receive` in place of `reach`"],
  ["share", "receive", "nothing is sent there, but ports are shared: type `reach` in place of `receive`"],
])("a code of `%s` with `%s` is told what to type", async (giving, taking, message) => {
  await using house = startIntroducer();
  const from = newcomer();
  writeFileSync(join(homeOf(from), "8000"), "a file");
  await using giver = new Said(from, [giving, "8000"], at(house));
  await using taker = new Said(newcomer(), [taking, (await giver.answer())[1]!]);
  expect(await taker.exited).toBe(1);
  expect(taker.stderr).toContain(`error: ${message}\n`);
  expect(existsSync(join(taker.folder, "8000"))).toBe(false);
});

test.each([[["share", "8000", "--via", "127.0.0.1:1"]], [["reach", "a word@127.0.0.1:1"]]])(
  "%o ends at once where there is no introducer",
  async (args) => {
    const { code, stderr } = await outcome(args);
    expect(code).toBe(1);
    expect(stderr).toContain("error: cannot reach the introducer at 127.0.0.1:1");
  },
);

describe("the command line", () => {
  test.each([
    ["send", "it needs a PATH: `send PATH …`"],
    ["share", "it needs a PORT: `share [HOST:]PORT …`"],
    ["share http", "share http: http is not a port (1 to 65535)"],
    ["share *:80", "share *:80: * is neither a host name nor an address"],
    ["recieve x@h", "there is no verb `recieve`; did you mean `receive`?"],
    ["one two", "one introducer at a time, and nothing after it but options"],
    ["k7xq-m2vp-9dfa-w4tz", "that is a code without its introducer"],
    ["receive photos", "that is no code: one looks like"],
    ["receive k7xq-m2vp-9dfa-w4tz-2", "the code has a typing mistake"],
    ["receive k7xq-m2vp-9dfa-w4tz-2@h", "the room before the @ has a typing mistake"],
    ["reach a@h 99999", "99999 is no port to listen on (1 to 65535)"],
    ["receive a@h in more", "takes one folder, not also more"],
    ["send x --allow 22", "--allow does not go with `send`, which does one thing"],
    ["send x --room lobby", "`send` needs a private room"],
    ["h --via g", "one introducer at a time, not h and g"],
    ["h --wait 5", "--wait needs somebody to wait for"],
  ])("refused: %s", (line, message) => {
    expect(() => readArguments(line.split(" "))).toThrow(message);
  });

  test.each([
    [["send", "a", "b", "--via", "h:1"], { is: "send", paths: ["a", "b"], to: 1 }, "h:1", "new"],
    [["receive", "w@h"], { is: "receive", into: "." }, "h", "w"],
    [["receive", "w@h", "in"], { is: "receive", into: "in" }, "h", "w"],
    [["reach", "-"], { is: "reach", ports: [] }, undefined, "-"],
    [["reach"], { is: "reach", ports: [] }, undefined, "-"],
    [
      ["share", "nas:80", "--via", "h"],
      { is: "share", targets: [{ kind: "tcp", host: "nas", port: 80 }] },
      "h",
      "new",
    ],
    [
      ["send", "a", "--room", "my own words", "--via", "h"],
      { is: "send", paths: ["a"], to: 1 },
      "h",
      "my own words",
    ],
    [["--via", "send"], undefined, "send", undefined],
    [["send:7000"], undefined, "send:7000", undefined],
  ])("%o", (args, verb, introducer, room) => {
    const read = readArguments(args) as Arguments;
    expect([read.verb, read.introducer, read.room]).toEqual([verb as Arguments["verb"], introducer, room]);
  });

  test("`help` is the help, and a host that is none may have been meant as that", async () => {
    for (const program of ["help", "--help"]) expect(readArguments([program])).toBe("help");
    const { code, stderr } = await outcome(["hlep"]);
    expect(code).toBe(1);
    expect(stderr).toEndWith("; did you mean `bun run participant help`?\n");
  });
});
