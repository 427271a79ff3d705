/** Two people who want to find each other: real programs on loopback, with names mistyped, left out, or not there. */
import { expect, setDefaultTimeout } from "bun:test";
import { makeIdentity } from "../native/secure/identity.ts";
import { newRoomWords } from "../native/secure/words.ts";
import { Participant } from "../participant.ts";
import { client, freePort, readAll } from "./sockets-fixture.ts";
import { Driven, met, outcome, spawn, startIntroducer } from "./driven-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

/** Two of them only wait. */
const test = testAtOnce(5);
const room = ["--room", newRoomWords()];
setDefaultTimeout(testMs);

// First, for it only waits.
test("--wait ends whatever waits for somebody, with 1 and why", async () => {
  await using house = startIntroducer();
  const uses = [
    ["--connect", "bob"],
    ["--pipe", "bob"],
    ["--connect", "bob", "--send", import.meta.path],
    ["--connect", "bob", "--stay"],
  ];
  const all = uses.map(async (args) => {
    const words = newRoomWords();
    const own = { host: "127.0.0.1", port: house.port, identity: makeIdentity() };
    await using carol = new Participant({ ...own, name: "carol", room: words });
    await carol.join();
    // Far longer than a start takes, which counts.
    return await outcome([`127.0.0.1:${house.port}`, "--room", words, "-q", "--wait", "8", ...args]);
  });
  // After 5 s it was told, too, that he is not here.
  const stderr = expect.stringMatching(/(^|\n)error: bob did not come within 8 s \(--wait\); here: carol\n$/);
  expect(await Promise.all(all)).toEqual(uses.map(() => ({ code: 1, stdout: "", stderr })) as never);
});

/** All that it has told when that text is among it. */
async function tells({ stderr }: ReturnType<typeof spawn>, text: string): Promise<string> {
  let told = "";
  for await (const chunk of stderr.pipeThrough(new TextDecoderStream())) {
    told += chunk;
    if (told.includes(text)) return told;
  }
  throw new Error(`${JSON.stringify(text)} is not in ${JSON.stringify(told)}`);
}

test("who is not there is told with who is, also with -q; who is alone, that nobody has used the words", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--stay");
  await bob.registered;
  const at = `127.0.0.1:${house.port}`;
  await using alone = spawn([at, "--room", newRoomWords(), "-q", "--name", "eve", "--stay"]);
  await using alice = spawn([at, ...room, "-q", "--name", "alice", "--pipe", "bbo:22"]);
  const other = newRoomWords();
  await using carol = new Driven(house.port, "carol", "--room", other, "--stay");
  await carol.registered;
  await using late = spawn(["receive", `${other}@${at}`]);
  expect(await tells(alice, "\n")).toBe("bbo is not here; here: bob\n");
  expect(await tells(alone, "\n")).toBe(
    "nobody else has used these words: does the other side have the same, and this introducer?\n",
  );
  await tells(late, "here: carol; but the code may be used up: ask for another\n");
  expect(bob.count("alone")).toBe(0);
});

test("a name is found in whatever case it is written", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "Bob", ...room, "--stay");
  await bob.registered;
  await using alice = new Driven(house.port, "alice", ...room, "--connect", "bOB");
  expect(await alice.next("linked")).toMatchObject({ name: "Bob" });
  alice.type("say BOB hello");
  expect(await bob.next("said")).toMatchObject({ name: "alice", text: "hello" });
});

test("nobody need be named where there is only one other", async () => {
  await using house = startIntroducer();
  const at = `127.0.0.1:${house.port}`;
  await using bob = spawnWith("from bob", [at, ...room, "--name", "bob", "--pipe", "-q"]);
  await using alice = spawnWith("from alice", [at, ...room, "--name", "alice", "-q", "--pipe"]);
  const ends = [alice, bob].map(async ({ stdout, stderr, exited }) =>
    Promise.all([exited, stdout.text(), stderr.text()]),
  );
  expect(await Promise.all(ends)).toEqual([
    [0, "from bob", ""],
    [0, "from alice", ""],
  ]);
});

test("nor at the prompt; in the lobby it must", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--stay");
  await using alice = new Driven(house.port, "alice", ...room);
  await met(alice, bob);
  alice.type("connect", "say hello", "ping", "disconnect");
  expect(await bob.next("said")).toMatchObject({ name: "alice", text: "hello" });
  expect(await alice.next("pong")).toMatchObject({ name: "bob" });
  expect(await alice.next("unlinked")).toMatchObject({ name: "bob" });
  await using dave = new Driven(house.port, "dave", "--stay");
  await using carol = new Driven(house.port, "carol");
  await met(carol, dave);
  carol.type("connect");
  expect((await carol.next("error")).message).toContain("needs a PEER");
});

function spawnWith(input: string, args: string[]) {
  const child = spawn(args);
  child.stdin.write(input);
  child.stdin.end();
  return child;
}

test("what is sent, and what is forwarded, goes to the only other one", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--accept", "in", "--stay");
  await bob.registered;
  await using alice = new Driven(house.port, "alice", ...room, "--send", import.meta.path);
  expect(await alice.next("transferred")).toMatchObject({ name: "bob", what: "meeting.test.ts" });
  expect(await alice.exited()).toBe(0);
  const port = freePort();
  const at = `127.0.0.1:${house.port}`;
  await using carol = spawn([at, ...room, "-L", `${port}::9`]);
  await tells(carol, `:${port} → whoever is here → localhost:9\n`);
  expect((await readAll(client(port))).error).toBe("ECONNRESET");
  expect(await bob.next("forward-refused")).toMatchObject({ target: "localhost:9" });
});

test("and it must be said who is meant where there are several, or anyone may be", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--stay");
  await using carol = new Driven(house.port, "carol", ...room, "--stay");
  await met(bob, carol);
  const at = `127.0.0.1:${house.port}`;
  const several = await outcome([at, ...room, "--connect"]);
  expect(several.code).toBe(1);
  expect(several.stderr).toContain("error: several are here, so say which one you mean: bob, carol\n");
  const lobby = await outcome([at, "--pipe"]);
  expect(lobby.code).toBe(2);
  expect(lobby.stderr).toContain("in the lobby it must be said which PEER is meant");
});

test("who wants a link with itself is told so, and waits for nobody", async () => {
  await using house = startIntroducer();
  const at = `127.0.0.1:${house.port}`;
  const told =
    "error: Bob is what you are called yourself here: say whom you mean, as others call themselves\n";
  const { code, stderr } = await outcome([at, ...room, "-q", "--name", "bob", "--connect", "Bob"]);
  expect({ code, stderr }).toEqual({ code: 1, stderr: told });
  await using forwarding = spawn([at, ...room, "-q", "--name", "bob", "-L", `${freePort()}:Bob:9`]);
  expect(await tells(forwarding, "\n")).toBe(told);
});

test.each([
  ["0", "--wait takes seconds, more than 0, not 0"],
  ["soon", "--wait takes seconds, more than 0, not soon"],
])("--wait %s is refused", async (text, message) => {
  const { code, stderr } = await outcome(["h", "--connect", "bob", "--wait", text]);
  expect(code).toBe(2);
  expect(stderr).toContain(message);
});
