/** What is left out of what is sent. */
import { beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { linkSync, mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { Exclusion, patternProblem } from "../../native/uses/exclude.ts";
import { collectFiles } from "../../native/uses/source-files.ts";
import { newFolders, writeIn } from "../folders-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const { fresh } = newFolders("exclude-");
let source: string;
beforeEach(() => void ({ source } = fresh()));

const paths = ["photos/a.jpg", "photos/raw/b.jpg", "photos/raw/x/c.tmp", "photos/.git/d", "raw"];
test.each([
  ["*.tmp", ["photos/raw/x/c.tmp"]],
  ["raw", ["photos/raw/b.jpg", "photos/raw/x/c.tmp", "raw"]],
  ["raw/", ["photos/raw/b.jpg", "photos/raw/x/c.tmp"]],
  ["photos/raw", ["photos/raw/b.jpg", "photos/raw/x/c.tmp"]],
  ["/photos/*.jpg", ["photos/a.jpg"]],
  ["./photos/*.jpg", ["photos/a.jpg"]],
  ["photos/**/*.jpg", ["photos/a.jpg", "photos/raw/b.jpg"]],
  ["a/*.jpg", []],
  ["[ab].jpg", ["photos/a.jpg", "photos/raw/b.jpg"]],
  ["{a,c}.*", ["photos/a.jpg", "photos/raw/x/c.tmp"]],
  ["?aw", ["photos/raw/b.jpg", "photos/raw/x/c.tmp", "raw"]],
  [".*", ["photos/.git/d"]],
  ["RAW", []],
])("%s leaves out %j", (pattern, left) => {
  expect(patternProblem(pattern)).toBeUndefined();
  const exclusion = new Exclusion([pattern]);
  expect(paths.filter((path) => exclusion.covers(path))).toEqual(left);
});

test("of a real tree nothing of it is sent: not by a link either, nor what the user has named himself", async () => {
  for (const path of ["tree/a", "tree/keys/secret", "tree/keys/deep/x", "tree/b.tmp", "c.tmp", "d"])
    writeIn(source, path, path);
  const at = (path: string) => join(source, path);
  symlinkSync("keys/secret", at("tree/by-link"));
  symlinkSync("a", at("tree/other"));
  linkSync(at("tree/a"), at("tree/hard"));
  mkdirSync(at("tree/keys/empty"));
  const exclusion = new Exclusion(["keys/", "*.tmp"]);
  const found = await collectFiles([at("tree"), at("c.tmp"), at("d")], exclusion);
  expect(found.files.map(({ path }) => path)).toEqual(["tree/a", "tree/hard", "tree/other", "d"]);
  expect([found.folders.map(({ path }) => path), found.bytes, found.things]).toEqual([["tree"], 19, 2]);
  const reason = "it is a link to what is left out, keys/secret";
  expect(found.skipped).toEqual([{ path: "tree/by-link", reason }]);
  // Named by a link, the folder is called as the link is.
  symlinkSync("tree", at("linked"));
  const named = await collectFiles([`${at("linked")}/`], new Exclusion(["linked/keys"]));
  expect(named.skipped.map(({ path }) => path)).toEqual(["linked/by-link"]);
});
