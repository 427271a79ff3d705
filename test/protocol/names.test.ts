/** Names, how one of them is found, and text that is safe to print. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { isNumberedName, maxNameLength, nameProblem, numberedName, printable } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test.each([
  ["plain", "alice", undefined],
  ["with digits", "pc-2", undefined],
  ["accented", "Zoë", undefined],
  ["emoji", "🦊", undefined],
  ["longest", "a".repeat(maxNameLength), undefined],
  ["empty", "", "1 to 64"],
  ["too long", "a".repeat(maxNameLength + 1), "1 to 64"],
  ["number", "7", "number"],
  ["number with zeros", "007", "number"],
  ["blank", "a b", "one word"],
  ["no-break space", "a\u00a0b", "one word"],
  ["tab", "a\tb", "one word"],
  ["line feed at the end", "alice\n", "one word"],
  ["escape sequence", "\x1b[31mred", "one word"],
  ["C1 control", "\x9b31m", "one word"],
  ["delete", "a\x7f", "one word"],
  ["bidi override", "a\u202eb", "one word"],
  ["zero-width space", "a\u200bb", "one word"],
  ["byte order mark", "\ufeffa", "one word"],
  ["private use", "\ue000", "one word"],
  ["lone surrogate", "\ud800", "one word"],
] satisfies [string, string, string | undefined][])("name: %s", (_what, name, problem) => {
  if (problem === undefined) expect(nameProblem(name)).toBeUndefined();
  else expect(nameProblem(name)).toContain(problem);
});

test("a numbered name is the name and a number, cut where it would be too long, and never in mid-character", () => {
  const long = "x".repeat(maxNameLength);
  const emoji = "🦊".repeat(maxNameLength / 2);
  expect([numberedName("bob", 2), numberedName("bob-2", 2)]).toEqual(["bob-2", "bob-2-2"]);
  expect(numberedName(long, 17)).toBe(`${"x".repeat(maxNameLength - 3)}-17`);
  expect(numberedName(emoji, 17)).toBe(`${"🦊".repeat(maxNameLength / 2 - 2)}-17`);
  for (const name of ["bob", "bob-2", long, emoji]) {
    expect(nameProblem(numberedName(name, 17))).toBeUndefined();
    expect(isNumberedName(numberedName(name, 17), name)).toBe(true);
  }
});

test.each([
  ["bob", "bob"],
  ["bob-", "bob"],
  ["bob-0", "bob"],
  ["bob-02", "bob"],
  ["bob-2-3", "bob"],
  ["bo-2", "bob"],
  ["eve-2", "bob"],
  ["bob-9999999", "bob"],
])("%s is no numbered name of %s", (name, wanted) => {
  expect(isNumberedName(name, wanted)).toBe(false);
});

test.each([
  ["plain text", "hello, world", "hello, world"],
  ["other scripts", "Ζωή 漢字 עברית", "Ζωή 漢字 עברית"],
  ["emoji", "🦊", "🦊"],
  ["emoji that joiners make one", "👨‍👩‍👧‍👦 👩🏽‍💻 ❤️‍🔥", "👨‍👩‍👧‍👦 👩🏽‍💻 ❤️‍🔥"],
  ["joiners between anything else", "a\u200db\u200d🦊\u200d", "a\ufffdb\ufffd🦊\ufffd"],
  ["ESC sequence", "\x1b[2Jgone", "\ufffd[2Jgone"],
  ["title sequence", "\x1b]0;root#\x07", "\ufffd]0;root#\ufffd"],
  ["C1 CSI", "\x9b31mred", "\ufffd31mred"],
  ["NUL, backspace, delete", "a\0\b\x7f", "a\ufffd\ufffd\ufffd"],
  ["CR and LF", "a\r\nb", "a\ufffd\ufffdb"],
  ["tab", "a\tb", "a b"],
  ["bidi override", "a\u202eb\u202c", "a\ufffdb\ufffd"],
  ["bidi isolate", "a\u2066b\u2069", "a\ufffdb\ufffd"],
  ["right-to-left mark", "a\u200fb", "a\ufffdb"],
  ["zero-width space and byte order mark", "\u200b\ufeff", "\ufffd\ufffd"],
  ["line and paragraph separators", "a\u2028b\u2029c", "a\ufffdb\ufffdc"],
  ["private use", "\ue000", "\ufffd"],
  ["unassigned", "\u0378", "\ufffd"],
  ["tag characters beyond the BMP", "a\u{e0041}b", "a\ufffdb"],
])("printable: %s", (_what, text, expected) => {
  expect(printable(text)).toBe(expected);
});
