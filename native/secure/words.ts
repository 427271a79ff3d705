/**
 * A room's words, as people write and tell them: how new ones are made, which ways of writing them are the same, what a
 * slip in them looks like, and whether others could guess them. Knows no key. Pure but for the letters of new words. For
 * native/secure/, native/terminal/ and participant.ts.
 */
import { defaultRoom, roomProblem } from "../../protocol.ts";

/** 32 letters and digits that are not easily confused: 5 bits each. No 1, i, l; an o is a 0. */
const alphabet = "023456789abcdefghjkmnpqrstuvwxyz";
const letterCount = 16;
/** Fewer bits than that can be tried by whoever knows the room's id, although each guess costs him a scrypt. */
const strongBits = 40;

/**
 * New words, of 80 random bits and a letter that shows slips: `k7xq-m2vp-9dfa-w4tz-6`. One of them is a digit, so that
 * they look unlike a sentence.
 */
export function newRoomWords(): string {
  for (;;) {
    const random = crypto.getRandomValues(new Uint8Array(letterCount));
    const letters = Array.from(random, (byte) => alphabet[byte % alphabet.length]!).join("");
    if (/\d/.test(letters)) return `${grouped(letters)}-${checkLetter(letters)}`;
  }
}

const grouped = (letters: string) => letters.match(/.{4}/g)!.join("-");

/**
 * The letters as digits of a polynomial over GF(32), x⁵ + x² + 1: each wrong letter, and each two that have changed
 * places, make another check letter.
 */
function checkLetter(letters: string): string {
  const timesX = (value: number) => (value << 1) ^ (value & 16 ? 0b100101 : 0);
  const sum = [...letters].reduce((value, letter) => timesX(value) ^ alphabet.indexOf(letter), 0);
  return alphabet[timesX(sum)]!;
}

/** The parts of words of ours, as they were meant: in lower case, with 0 for o. */
function groupsOf(words: string): string[] {
  const meant = words.normalize("NFKC").toLowerCase().replaceAll("o", "0");
  return meant.split(/[\s\p{Pd}_]+/u).filter(Boolean);
}

/** The letters of new words, without the check letter; undefined if they are words of another kind, or have a slip. */
function madeLetters(words: string): string | undefined {
  const groups = groupsOf(words);
  const all = groups.join("");
  const letters = all.slice(0, letterCount);
  if (letters.length < letterCount || [...all].some((one) => !alphabet.includes(one))) return undefined;
  // Without the check letter they must have the form, or any sixteen letters would be ours.
  const isUnchecked = all === letters && groups.join("-") === grouped(letters);
  return isUnchecked || all === letters + checkLetter(letters) ? letters : undefined;
}

/** Whether it is four groups of four and one letter, or nearly: as new words look with a slip. */
export function looksMade(words: string): boolean {
  if (madeLetters(words) !== undefined) return true;
  const groups = groupsOf(words);
  const last = groups.pop();
  const isNearly = groups.reduce((off, { length }) => off + Math.abs(length - 4), 0) <= 1;
  const isOf = /^[\d\p{L}\s\p{Pd}_]+$/u.test(words) && /\d/.test(words);
  return isOf && isNearly && last?.length === 1 && groups.length >= 3 && groups.length <= 5;
}

/**
 * The words in the one form that the room's key is made of: case, blanks for dashes, and o for 0 make no difference in new
 * words. In words of one's own everything does but how accents are typed.
 */
export function canonicalWords(words: string): string {
  const letters = madeLetters(words);
  return letters === undefined ? words.normalize("NFC") : grouped(letters);
}

/** Whether they are words as {@link newRoomWords} makes them, without a slip. */
export const isMadeWords = (words: string): boolean => madeLetters(words) !== undefined;

/** `WORDS.KEY`, or `.KEY`: the words of a room, and the key of an introducer, which looks like new words. */
export function splitKey(text: string): { words?: string; key?: string } {
  const dot = text.lastIndexOf(".");
  const [words, key] = [text.slice(0, Math.max(0, dot)), text.slice(dot + 1)];
  if (dot < 0 || !looksMade(key)) return { words: text };
  return { ...(words !== "" && { words }), key };
}

/** Why no room can have these words; undefined if one can. It never repeats them. */
export function wordsProblem(words: string): string | undefined {
  if (words === defaultRoom) return undefined;
  const problem = roomProblem(words);
  if (problem !== undefined) return problem;
  if (!looksMade(words) || madeLetters(words) !== undefined) return undefined;
  return "has a typing mistake in its words: compare them, letter by letter, with the other side's";
}

/** Whether others could find the words by trying. A rough guess from below, for words that people make up. */
export function areWeak(words: string): boolean {
  const pieces = new Set(words.toLowerCase().match(/\p{L}+|\p{N}+|[^\p{L}\p{N}\s]/gu));
  let bits = 0;
  for (const piece of pieces) bits += bitsOf(piece);
  return bits < strongBits;
}

/** A word out of a few thousand, or as much as its letters hold; two bits a letter if it is long. */
function bitsOf(piece: string): number {
  const different = new Set(piece).size;
  if (!/\p{L}/u.test(piece)) return Math.min(piece.length, different) * 3.3;
  return Math.min(different * 4.7, Math.max(11, piece.length * 2));
}
