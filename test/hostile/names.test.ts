/** Names that look like somebody else's, or like the program's own words: nobody is taken for another by one. */
import { expect, test } from "bun:test";
import { nameProblem, nameSkeleton } from "../../protocol.ts";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import { LyingIntroducer, Member, peerLine, peersLine, registered } from "./wire.ts";

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
