/** The participant's command line. */
import { expect, setDefaultTimeout } from "bun:test";
import { readFileSync } from "node:fs";
import { canonicalWords, newRoomWords } from "../../native/secure/words.ts";
import {
  codeHints,
  invitationTo,
  isKept,
  linesForOthers,
  passedOn,
  readHostPort,
} from "../../native/terminal/invitation.ts";
import { type Arguments, readArguments, weakRoom } from "../../native/terminal/participant-arguments.ts";
import { defaultPort } from "../../protocol.ts";
import { Driven, outcome, program, spawn, startIntroducer } from "../driven-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

test.each([
  ["example.com", "example.com", defaultPort],
  ["example.com:8000", "example.com", 8000],
  ["192.0.2.1", "192.0.2.1", defaultPort],
  ["192.0.2.1:65535", "192.0.2.1", 65535],
  ["2001:DB8::1", "2001:db8::1", defaultPort],
  ["[2001:db8::1]", "2001:db8::1", defaultPort],
  ["[2001:db8::1]:1", "2001:db8::1", 1],
  ["::1", "::1", defaultPort],
])("%s is an introducer", (text, host, port) => {
  expect(readHostPort(text)).toEqual({ host, port });
});

test.each(["", " ", "a:0", "a:65536", "a:", ":7000", "a b", "a:x", "[::1", "1:2:3:4:5:6:7:8:9", "http://a"])(
  "%o is no introducer",
  (text) => {
    expect(() => readHostPort(text)).toThrow("is no introducer: give HOST");
  },
);

// --- invitations ---------------------------------------------------------------------------------------------

const made = newRoomWords();
/** Another last letter. */
const slip = made.slice(0, -1) + (made.endsWith("x") ? "y" : "x");

test.each([
  ["in HOST's place", [`${made}@h:8000`], {}, made, "h:8000"],
  ["with blanks, in capitals", [`${made.replaceAll("-", " ").toUpperCase()}@h`], {}, made, "h"],
  ["in INTRODUCER", [], { INTRODUCER: `${made}@h` }, made, "h"],
  ["INTRODUCER's room, but not for another HOST", ["g"], { INTRODUCER: `${made}@h` }, undefined, "g"],
  ["before the environment", [`${made}@h`], { INTRODUCER: "g", ROOM: "another" }, made, "h"],
  ["--room before the environment", ["--room", "mine"], { INTRODUCER: `${made}@h` }, "mine", "h"],
  ["the same room twice", [`${made}@h`, "--room", made.slice(0, -2)], {}, made, "h"],
  ["in ROOM", [], { ROOM: `${made}@h` }, made, "h"],
  ["in --room", ["--room", `${made}@h`], { INTRODUCER: "g" }, made, "h"],
  ["a verb's, in ROOM", ["receive"], { ROOM: `${made}@h` }, made, "h"],
  ["a verb's words, and a host elsewhere", ["reach", made], { INTRODUCER: "h", ROOM: "x" }, made, "h"],
  ["with the blanks around it", [` ${made}@h `], {}, made, "h"],
  ["a host with a name like a code's", ["good-cats-need-beds"], {}, undefined, "good-cats-need-beds"],
  ["in quotes", ["receive", `participant receive 'we two@h'`], {}, "we two", "h"],
  ["the whole line", ["receive", `bun run participant receive ${made}@h`], {}, made, "h"],
  ["not for who makes a code", ["send", "x"], { INTRODUCER: `${made}@h`, ROOM: made }, "new", "h"],
  ["words of one's own, with a dot", ["we.two@h"], {}, "we.two", "h"],
  ["with a key", ["receive", `${made}.${made}@h`], {}, made, "h"],
  ["a key, and no room", [`.${made}@h`], {}, undefined, "h"],
  ["a key for the lobby", [`lobby.${made}@h`], {}, undefined, "h"],
  ["words of one's own, with an @, in ROOM", ["h"], { ROOM: "we@home" }, "we@home", "h"],
  ["words of one's own, with an @", ["we @ home@[::1]:8000"], {}, "we @ home", "[::1]:8000"],
])("an invitation: %s", (_, args, environment, room, introducer) => {
  const read = withEnvironment(environment, () => readArguments(args)) as Arguments;
  expect(read.introducer).toBe(introducer);
  expect(read.room && canonicalWords(read.room)).toBe(room && canonicalWords(room));
});

const other = newRoomWords();
test.each([
  ["of a code", [`a.${made}@h`], { INTRODUCER_KEY: other }, made, true],
  ["of a code without its introducer", ["reach", `${made}.${other}`], { INTRODUCER: "h" }, other, true],
  ["of the room's words", ["h"], { ROOM: `a.${made}` }, made, true],
  ["of INTRODUCER, for who makes a code", ["send", "x"], { INTRODUCER: `a.${made}@h` }, made, true],
  ["of INTRODUCER_KEY", ["h"], { INTRODUCER_KEY: ` ${made}\n` }, made, false],
  [
    "of INTRODUCER_KEY before INTRODUCER",
    [],
    { INTRODUCER_KEY: made, INTRODUCER: `.${other}@h` },
    made,
    false,
  ],
  ["not of another introducer", ["g"], { INTRODUCER: `a.${made}@h` }, undefined, undefined],
])("the introducer's key: %s", (_, args, environment, key, isPassedOn) => {
  const read = withEnvironment(environment, () => readArguments(args)) as Arguments;
  expect<unknown>([read.key?.text, read.key?.isPassedOn]).toEqual([key, isPassedOn]);
});

test("a key is among what is hidden, and a code of ours has it only if it came in one", () => {
  const read = readArguments([`.${made}@h`, "--room", "we two"]) as Arguments;
  expect(read.secrets.map(({ option, text, what }) => [option, text, what])).toEqual([
    ["", `.${made}@h`, "key"],
    ["--room", "we two", "words"],
  ]);
  expect(invitationTo("a", "h", passedOn(read.key))).toBe(`a.${made}@h`);
  const kept = withEnvironment({ INTRODUCER_KEY: made }, () => readArguments(["h"])) as Arguments;
  expect(invitationTo("a", "h", passedOn(kept.key))).toBe("a@h");
  expect(codeHints("h", isKept(kept.key))).toContain("the introducer's key is not in it");
});

test.each([
  ["a typing mistake", [`${slip}@h`], "the room before the @ has a typing mistake", {}],
  ["a typing mistake in --room", ["h", "--room", slip], "--room has a typing mistake", {}],
  ["a typing mistake in ROOM", ["receive"], "before the @ has a typing mistake", { ROOM: `${slip}@h` }],
  ["a typing mistake in the key", [`a.${slip}@h`], "key, after the dot, has a typing mistake", {}],
  ["a code and its key, cut off", [`${made}.${made}`], "a code without its introducer", {}],
  ["two introducers", ["receive", `${made}@h`, "--via", "g"], "one introducer at a time, not h and g", {}],
  ["two rooms", [`${made}@h`, "--room", "another"], "another room than the invitation", {}],
])("an invitation is refused at once: %s", async (_, args, message, environment) => {
  const { code, stdout, stderr } = await outcome(args, environment);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr).not.toContain(slip);
});

test("words that could be guessed are warned of in one line", async () => {
  await using house = startIntroducer();
  const { stderr } = await outcome([`127.0.0.1:${house.port}`], { ROOM: "password" });
  expect(stderr.split("\n").filter((line) => line.startsWith("warning"))).toEqual([`warning: ${weakRoom}`]);
  const strong = await outcome([`127.0.0.1:${house.port}`], { ROOM: made });
  expect(strong.stderr).not.toContain("warning");
});

test.each([
  [[], `CODE --connect alice`],
  [["--connect", "bob"], "CODE --name bob"],
  [["--allow", "8000", "--allow", "10.0.0.1:22"], "CODE -L 8000:alice:8000 -L 22:alice:10.0.0.1:22"],
  [
    ["-R", "9000:bob:80", "-R", "*:9001:bob:80"],
    "CODE --name bob --allow-listen 9000 --allow-listen 0.0.0.0:9001",
  ],
  [["-D", "1080:bob"], "CODE --name bob --allow HOST:PORT"],
  [["--allow", "53/udp", "--allow", "nas:9/udp"], "CODE -L 53/udp:alice:53/udp -L 9/udp:alice:nas:9/udp"],
  [
    ["-L", "53/udp:bob:53/udp", "-L", "1/udp:bob:nas:1/udp"],
    "CODE --name bob --allow 53/udp --allow nas:1/udp",
  ],
  [["--allow", "8000-8010"], "CODE -L 8000-8010:alice:8000-8010"],
  [["-L", "9000-9001:bob:8000-8001"], "CODE --name bob --allow 8000-8001"],
  [["--allow", "10.0.0.0/8:22", "--allow", "*"], "CODE --connect alice"],
  [["-L", "8080:bob:8000", "-L", "2222:bob:[::1]:22"], "CODE --name bob --allow 8000 --allow [::1]:22"],
  [["-L", "1:bob:1", "-L", "2:carol:2"], "CODE --name bob --allow 1\nCODE --name carol --allow 2"],
  [["--pipe", "bob"], "CODE --name bob --pipe alice"],
  [["--pipe", "bob:22"], "CODE --name bob --allow 22"],
  [["--connect", "bob", "--send", "photos"], "CODE --name bob --accept ."],
  [["--accept", "in"], "CODE --connect alice --send PATH"],
  [["--accept", "in", "--from", "bob"], "CODE --name bob --connect alice --send PATH"],
  [["--allow", "22@bob", "--allow", "80"], "CODE --name bob -L 22:alice:22 -L 80:alice:80"],
  [["--allow", `22@SHA256:${"ab".repeat(32)}`], "CODE -L 22:alice:22"],
  [
    ["--allow", "22@bob", "--allow", "80@carol"],
    "CODE --name bob -L 22:alice:22\nCODE --name carol -L 80:alice:80",
  ],
  [["--name", "o'neill", "--connect", "b$b"], "CODE --name 'b$b'"],
  [["--name", "o'neill"], "CODE --connect 'o'\\''neill'"],
])("the other side of %o types %s", (args, lines) => {
  const part = readArguments(["h", "--room", "new", "--name", "alice", ...args]) as Arguments;
  const typed = linesForOthers("CODE", part).join("\n");
  expect(typed.replaceAll("bun run participant ", "")).toBe(lines);
});

test.each([
  ["127.0.0.1:7000", "127.0.0.1"],
  ["localhost", "localhost"],
  ["[::1]", "::1"],
])("a line with %s says that it is for this host alone", (introducer, host) => {
  expect(codeHints(introducer)).toContain(`from another host, ${host} must be`);
  for (const far of ["introducer.example", "192.168.1.2:7000"]) expect(codeHints(far)).toBe("");
});

test("--room new says the whole line, which works, also with --quiet; --json has no words", async () => {
  await using house = startIntroducer();
  const at = `127.0.0.1:${house.port}`;
  await using bob = new Driven(house.port, "bob", "--room", "new", "--quiet", "--allow", "9", "--stay");
  await bob.registered;
  bob.signal("SIGTERM");
  await bob.exited();
  const line = /^ {2}bun run participant (\S+@\S+) -L 9:bob:9$/m.exec(await bob.stderr);
  expect(line?.[1]).toEndWith(`@${at}`);
  expect(JSON.stringify(bob.events)).not.toContain(line![1]!.split("@")[0]!);
});

test("an invitation leads into the room, and nobody reads it in the command line", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", "--room", made, "--stay");
  await bob.registered;
  const invitation = `${made.toUpperCase().replaceAll("-", " ")}@127.0.0.1:${house.port}`;
  await using alice = spawn([invitation, "--name", "alice", "--stay"]);
  await bob.seen("alice");
  if (process.platform === "linux")
    expect(readFileSync(`/proc/${alice.pid}/cmdline`, "utf8")).not.toContain(invitation.slice(0, 4));
  alice.kill();
});

// --- wrong usage ---------------------------------------------------------------------------------------------

function withEnvironment<T>(added: Record<string, string | undefined>, work: () => T): T {
  const before = { ...process.env };
  Object.assign(process.env, added);
  try {
    return work();
  } finally {
    for (const key of Object.keys(added)) delete process.env[key];
    Object.assign(process.env, before);
  }
}

test("--help prints the usage on stdout", async () => {
  const { code, stdout, stderr } = await outcome(["--help"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain("Usage: bun run participant [[WORDS@]HOST[:PORT]]");
  expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
});

test.each([
  ["an unknown option", ["--nonsense"], "--nonsense"],
  ["a name of two words", ["h", "--name", "two words"], "--name must be one word"],
  ["a number as a name", ["h", "--name", "12"], "--name must not be a number"],
  ["two introducers", ["one", "two"], "one introducer at a time, and nothing after it"],
  ["a bad port", ["host:99999"], "port 1 to 65535"],
  ["no introducer and no terminal", [], "Give HOST[:PORT] (a verb: --via HOST), or set INTRODUCER"],
])("wrong usage: %s", async (_, args, message) => {
  const { code, stdout, stderr } = await outcome(args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr).toContain("--help");
});

test("an introducer that can't be reached, from INTRODUCER, is one clear error", async () => {
  const { port, ...gone } = startIntroducer();
  await gone[Symbol.asyncDispose]();
  const { code, stdout, stderr } = await outcome(["--json"], { INTRODUCER: `127.0.0.1:${port}` });
  expect(code).toBe(1);
  expect(stderr).toBe(
    `error: cannot reach the introducer at 127.0.0.1:${port}: connection refused. Is it running ` +
      `(\`bun run introducer ${port}\`) and is that its address?\n`,
  );
  expect(JSON.parse(stdout)).toMatchObject({ event: "error" });
});

test("a file in place of the identity is a clear error", async () => {
  const { code, stderr } = await outcome(["127.0.0.1:1"], { XDG_STATE_HOME: program });
  expect(code).toBe(1);
  expect(stderr).toStartWith("error: ");
  expect(stderr).not.toContain("    at ");
});

test("a home that can't be written to is a warning", async () => {
  await using house = startIntroducer();
  const { code, stderr } = await outcome([`127.0.0.1:${house.port}`], { XDG_STATE_HOME: "/sys" });
  expect(code).toBe(0);
  expect(stderr).toStartWith("warning: cannot make /sys/tcp-hole-punching/identity.pem (E");
});
