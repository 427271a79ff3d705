/** Paths as a person gives them at the prompt: typed, pasted, dragged, completed. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { type Command, CommandError, complete, readCommand } from "../../native/terminal/command-line.ts";
import { completePath } from "../../native/terminal/paths.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const folder = mkdtempSync(join(tmpdir(), "paths-test-"));
const before = process.cwd();
beforeAll(() => {
  for (const file of ["a.jpg", "b.jpg", "c d.jpg", "it's", "[1].txt", ".hidden", "odd\x1b[2J", "日本"])
    writeFileSync(join(folder, file), "");
  mkdirSync(join(folder, "photos of mum"));
  writeFileSync(join(folder, "photos of mum", "one.jpg"), "");
  process.chdir(folder);
});
afterAll(() => {
  process.chdir(before);
  rmSync(folder, { recursive: true, force: true });
});

const commands = [
  { key: "", word: "send", operands: "PEER PATH ...", what: "" },
  { key: "", word: "accept", operands: "OFFER [DIR]", what: "" },
] as const satisfies Command[];

test.each([
  ["send bob a.jpg b.jpg", ["bob", "a.jpg", "b.jpg"]],
  ["send bob 'c d.jpg'", ["bob", "c d.jpg"]],
  ['send bob "c d.jpg"  a.jpg ', ["bob", "c d.jpg", "a.jpg"]],
  ["send bob c\\ d.jpg", ["bob", "c d.jpg"]],
  ["send bob 'it'\\''s'", ["bob", "it's"]],
  [`send bob "it's"`, ["bob", "it's"]],
  ["send bob *.jpg", ["bob", "a.jpg", "b.jpg", "c d.jpg"]],
  ["send bob '*.jpg'", ["bob", "*.jpg"]],
  ["send bob \\*.jpg", ["bob", "*.jpg"]],
  ["send bob photos*/*.jpg", ["bob", "photos of mum/one.jpg"]],
  ["send bob 'photos of mum'/*", ["bob", "photos of mum/one.jpg"]],
  ["send bob \\[1].*", ["bob", "[1].txt"]],
  ["send bob *.png", ["bob", "*.png"]],
  ["send bob nowhere/*", ["bob", "nowhere/*"]],
  ["send bob ~/x", ["bob", `${homedir()}/x`]],
  ["send bob '~/x'", ["bob", "~/x"]],
  ["send bob -v", ["bob", "-v"]],
  ["accept 3", ["3"]],
  ["accept 3 'photos of mum'", ["3", "photos of mum"]],
])("%s", (line, words) => {
  expect(readCommand(commands, line).words).toEqual(words);
});

test("a pattern below another folder keeps that folder", () => {
  expect(readCommand(commands, `send bob ${folder}/*.jpg`).words.slice(1)).toEqual(
    ["a.jpg", "b.jpg", "c d.jpg"].map((one) => join(folder, one)),
  );
});

test.each([
  ["send bob", "`send` needs a PATH: send PEER PATH ..."],
  ["send bob 'c d.jpg", "a quote is not closed: send PEER PATH ..."],
  ["accept", "`accept` needs an OFFER: accept OFFER [DIR]"],
  ["accept 3 a b", "unexpected argument b: accept OFFER [DIR]"],
])("%s is none", (line, message) => {
  expect(() => readCommand(commands, line)).toThrow(new CommandError(message));
});

test.each([
  ["", ["[1].txt", "a.jpg", "b.jpg", "c d.jpg", "it's", "photos of mum/", "日本"]],
  [".", [".hidden "]],
  ["c", ["c\\ d.jpg "]],
  ["'c", ["'c d.jpg' "]],
  ["it", ["it\\'s "]],
  ["ph", ["photos\\ of\\ mum/"]],
  ["photos\\ of\\ mum/", ["photos\\ of\\ mum/one.jpg "]],
  ["'photos of mum/o", ["'photos of mum/one.jpg' "]],
  ["a.jpg b", ["b.jpg "]],
  ["zz", []],
  ["nowhere/", []],
])("Tab after send bob %s", (typed, words) => {
  const offered = complete(commands, ["bob"], `send bob ${typed}`).words;
  expect(offered.length > 1 ? offered.map((one) => one.replaceAll("\\", "").trimEnd()) : offered).toEqual(
    words,
  );
});

test("Tab knows whether a peer or a path is next", () => {
  expect(complete(commands, ["bob", "bert"], "send b").words).toEqual(["bert ", "bob "]);
  expect(complete(commands, ["bob"], "accept 3 ph")).toEqual({ words: ["photos\\ of\\ mum/"], typed: "ph" });
  expect(complete(commands, ["bob"], "accept 3")).toEqual({ words: [], typed: "3" });
});

test("a folder of thousands offers nothing, rather than all", () => {
  const many = join(folder, "many");
  mkdirSync(many);
  for (let index = 0; index < 150; index++) writeFileSync(join(many, `file-${index}`), "");
  expect(completePath("many/file-").words).toEqual([]);
  expect(completePath("many/file-14").words).toHaveLength(11);
  rmSync(many, { recursive: true });
});
