/** A room's words: which ways of writing them are the same, which slips are seen, and which could be guessed. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { roomOf } from "../../native/secure/room.ts";
import { areWeak, canonicalWords, newRoomWords, wordsProblem } from "../../native/secure/words.ts";
import { UserError } from "../../protocol.ts";
import { randomFrom } from "../session/memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const alphabet = "023456789abcdefghjkmnpqrstuvwxyz";
const all = Array.from({ length: 200 }, newRoomWords);
const typo = "has a typing mistake in its words: compare them, letter by letter, with the other side's";

test("new words are four groups of four and a letter, and differ each time", () => {
  for (const words of all) expect(words).toMatch(/^([02-9a-hjkmnp-z]{4}-){4}[02-9a-hjkmnp-z]$/);
  expect(new Set(all).size).toBe(all.length);
  expect(all.filter((words) => wordsProblem(words) !== undefined)).toEqual([]);
  expect(all.filter(areWeak)).toEqual([]);
});

test("they are the same in capitals, with blanks, with o for 0, without dashes, and without the check letter", () => {
  for (const words of all) {
    const same = [
      ...[words.toUpperCase(), words.replaceAll("-", " "), words.replaceAll("0", "o").replaceAll("-", "  ")],
      ...[` ${words.replaceAll("0", "O")} `, words.replaceAll("-", ""), words.replaceAll("-", "\u2013")],
      words.slice(0, -2),
    ];
    for (const written of same) expect([written, wordsProblem(written)]).toEqual([written, undefined]);
    expect(new Set([words, ...same].map(canonicalWords))).toEqual(new Set([words.slice(0, -2)]));
  }
});

test("each wrong letter, and each two that changed places, are a typing mistake", () => {
  for (const words of all.slice(0, 20)) {
    for (let at = 0; at < words.length; at++) {
      if (words[at] === "-") continue;
      // Words with no digit at all look like a sentence.
      const wrong = [...alphabet, "1", "i", "l"].map((one) => words.slice(0, at) + one + words.slice(at + 1));
      for (const slip of wrong.filter((one) => one !== words && /\d/.test(one)))
        expect([slip, wordsProblem(slip)]).toEqual([slip, typo]);
      const next = words[at + 1] === "-" ? at + 2 : at + 1;
      if (next >= words.length || words[next] === words[at]) continue;
      const swapped = [...words];
      [swapped[at], swapped[next]] = [words[next]!, words[at]!];
      expect([swapped.join(""), wordsProblem(swapped.join(""))]).toEqual([swapped.join(""), typo]);
    }
    // One is missing, there is one too many, a whole group is missing. Without a digit they look like a sentence.
    const slips = [words.slice(1), `${words.slice(0, 5)}x${words.slice(5)}`, words.slice(5)];
    for (const slip of slips.filter((one) => /\d/.test(one)))
      expect([slip, wordsProblem(slip)]).toEqual([slip, typo]);
  }
});

test("a room of a mistyped word is refused, and the words are not repeated", () => {
  expect(() => roomOf("k7xq-m2vp-9dfa-w4tz-2")).toThrow(new UserError(`a room ${typo}`));
});

test.each([
  ...[
    "correct horse battery staple",
    "team-2024-alpha-omega",
    "42",
    "correcthorsebatte",
    "we are all here a",
  ],
  ...["make your team work x", "room-a", "a-1", "2024-01-01", "k7xq.m2vp/9dfa!w4tz 1", "lobby"],
])("%o are words of one's own, taken as they are", (words) => {
  expect(wordsProblem(words)).toBeUndefined();
  expect(canonicalWords(words)).toBe(words);
});

test.each([
  "password",
  "hunter2",
  "our secret words",
  "aaaaaaaaaaaaaaaaaaaaaaaa",
  "12345678901234567890",
  "bob",
])("%o could be guessed", (words) => expect(areWeak(words)).toBe(true));

test.each([
  "correct horse battery staple",
  "correcthorsebatterystaple",
  "8f3b9c27d1e4a6052b7c",
  "Grüße aus Köln am Rhein",
])("%o could hardly be guessed", (words) => expect(areWeak(words)).toBe(false));

test("whatever is written, the form of which the key is made is the same when it is written so again", () => {
  const fraction = randomFrom(7);
  const random = (below: number) => Math.floor(fraction() * below);
  const letters = [..."abo01il z-_ -\u2013O@ß\u0301é\uff10", ...all[0]!];
  for (let times = 0; times < 20_000; times++) {
    const written = Array.from({ length: random(24) }, () => letters[random(letters.length)]).join("");
    const canonical = canonicalWords(written);
    expect([written, canonicalWords(canonical)]).toEqual([written, canonical]);
    wordsProblem(written); // throws nothing
    areWeak(written);
  }
});
