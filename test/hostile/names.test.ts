/** Names that look like somebody else's, or like the program's own words: nobody is taken for another by one. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { nameProblem, nameSkeleton } from "../../protocol.ts";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import { LyingIntroducer, Member, peerLine, peersLine, registered, roomKey } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** What eve may call herself beside a bob. */
const alike: Record<string, string> = {
  "in another case": "Bob",
  "with a Cyrillic о": "b\u043eb",
  "with a Cyrillic В": "\u0412ob",
  "with a Greek ο": "b\u03bfb",
  "with a full-width b": "\uff42ob",
  "with a mathematical b": "\u{1d41b}ob",
  "with a zero": "b0b",
  "with an accent": "bo\u0301b",
  "with a Hangul filler": "bob\u3164",
  "with an empty Braille pattern": "bob\u2800",
  "with a variation selector": "bob\ufe0f",
  "with a combining grapheme joiner": "b\u034fob",
  "with a Khmer vowel that is not shown": "bo\u17b4b",
};

test.each(Object.entries(alike))("who calls herself bob %s is given another name", async (_what, name) => {
  await using house = startIntroducer();
  using bob = await Member.join(house.port, { name: "bob" });
  using eve = await Member.connect(house.port);
  await eve.register({ name });
  const answer = await eve.hears("refused");
  // Some are none at all; for the others there is one with a number.
  if (answer.code === "name-taken") expect(nameSkeleton(answer.name)).not.toBe(nameSkeleton("bob"));
  else expect(answer).toMatchObject({ code: "bad-field", message: expect.stringContaining("name must") });
  expect(bob.lines.all.filter(({ type }) => type === "joined")).toEqual([]);
});

test("names that are somebody's own stay apart", async () => {
  await using house = startIntroducer();
  const names = [
    "bob",
    "rob",
    "bobby",
    "bob-2",
    "боб",
    "мама",
    "папа",
    "日本",
    "日木",
    "zoë",
    "\u{1f984}",
    "\u{1f40e}",
  ];
  const members = await Promise.all(names.map((name) => Member.join(house.port, { name })));
  expect(members.map(({ name }) => name)).toEqual(names);
  for (const member of members) member.close();
});

test.each([
  "\u0435rror",
  "Not\u0456ce",
  "\uff45rror",
  "error\ufe0f",
  "n\u043etice",
  "a11",
  "e\u0301rror",
  "\u041ce",
])("%p is one of the program's own words", (name) => {
  expect(nameProblem(name)).toBe("must not be one of the program's own words");
});

test.each([["\u3164"], ["\u2800\u2800"], ["\ufe0f"]])("%p is no name: nothing is seen of it", (name) => {
  expect(nameProblem(name)).toMatch(/^must (have something that can be seen|be one word)/);
});

test("who asks for a peer is not linked with one that looks like it", async () => {
  using house = await LyingIntroducer.listen((line, visitor) => {
    const bobs = [peerLine({ id: 2 }), peerLine({ id: 3, name: "b\u043eb", instance: "12".repeat(8) })];
    if (line.type === "register") visitor.say(registered(line), peersLine(...bobs));
  });
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  alice.type("connect bob", "connect 2");
  expect((await alice.next("error")).message).toBe("bob is ambiguous: use one of the ids 2, 3");
  expect(await house.hears("connect")).toMatchObject({ peer: 2 });
});

test("an introducer can't give us a name for which we have not asked", async () => {
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type !== "register") return;
    if (line.name === "alice")
      visitor.say({ type: "refused", code: "name-taken", message: "", name: "alice-2" });
    else visitor.say(registered(line), peersLine(peerLine()), { type: "renamed", name: "mallory" });
  });
  await using alice = new Driven(house.port, "alice");
  const { reason } = await alice.next("introducer", ({ state }) => state === "lost");
  expect(reason).toBe("it calls us mallory, for which we have not asked");
  expect(await house.hears("register", ({ name }) => name === "alice-2")).toBeDefined();
  expect(alice.count("named")).toBe(0);
});

test("a peer that gets another name must prove by it that it is of the room, or counts as nobody", async () => {
  const words = "7k2m-9qxw-4tz8-vbnc";
  const { key } = await roomKey(words);
  const [bob, proved] = [peerLine({}, key), peerLine({ name: "carol" }, key)];
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type === "register") visitor.say(registered(line), peersLine(bob));
    if (line.type === "echo") visitor.say({ type: "echo", text: line.text });
    if (line.type === "echo" && line.text === "lie") visitor.say({ type: "updated", id: 2, name: "dora" });
    if (line.type === "echo" && line.text === "truth")
      visitor.say({ type: "updated", id: 2, name: "carol", proof: proved.proof });
  });
  await using alice = new Driven(house.port, "alice", "--room", words);
  await alice.registered;
  alice.type("echo truth");
  expect(await alice.next("renamed")).toMatchObject({ name: "carol", was: "bob" });
  alice.type("list", "echo lie");
  expect(await alice.next("peers")).toMatchObject({ peers: [{ name: "carol", state: "known" }] });
  expect(await alice.next("renamed")).toMatchObject({ name: "dora", was: "carol" });
  alice.type("list", "connect dora");
  expect(await alice.next("peers")).toMatchObject({ peers: [{ name: "dora", state: "untrusted" }] });
  expect((await alice.next("error")).message).toContain("not trusted");
  expect(house.heard.all.filter(({ type }) => type === "connect")).toEqual([]);
});
