/** What an offer lists, as its receiver reads it, and what may come of it. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  encodeOffer,
  listingOf,
  OfferCheck,
  offerOf,
  readOffer,
  storedName,
} from "../../native/uses/offer.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const files = (...paths: string[]) =>
  paths.map((path) =>
    path.endsWith("*") ? { path: path.slice(0, -1), bytes: 1, mode: 0o755 } : { path, bytes: 1, mode: 0o644 },
  );

/** Over the wire and back. */
async function offered(name: string, things: number, ...paths: string[]) {
  const all = files(...paths);
  const { purpose, messages } = encodeOffer(offerOf({ name, things, files: all, folders: [], bytes: 9 }));
  const queue = [...messages];
  const offer = await readOffer(JSON.parse(JSON.stringify(purpose)), async () => {
    const value = queue.shift();
    return value ? { value, done: false } : { value: undefined, done: true };
  });
  return { all, offer, messages, listing: listingOf(offer) };
}

const many = (count: number, path: (index: number) => string) =>
  Array.from({ length: count }, (_, index) => path(index));

test("one file that is not odd is told by its name alone", async () => {
  const { offer, messages } = await offered("photo.jpg", 1, "photo.jpg");
  expect([offer.paths, offer.odd, messages]).toEqual([["photo.jpg"], [], []]);
});

test("the first ten are listed, and how many more there are", async () => {
  const { listing, offer } = await offered("tree", 1, ...many(25, (index) => `tree/${index}`));
  expect(listing).toEqual({ paths: many(10, (index) => `tree/${index}`), more: 15, odd: [], moreOdd: 0 });
  expect(offer.name).toBe("tree");
});

test("each odd one is listed, a folder once", async () => {
  const paths = [
    "t/run*",
    "t/.git/config",
    "t/.git/hooks/x*",
    "t/-rf",
    "t/a\u200bb",
    "t/bunfig.toml",
    "t/$(x)",
    "t/x",
  ];
  const { listing } = await offered("t", 1, ...many(10, (index) => `t/${index}`), ...paths);
  expect(listing.odd).toEqual([
    { path: "t/run", why: "executable" },
    { path: "t/.git/", why: "hidden: its name begins with a dot" },
    { path: "t/.git/hooks/x", why: "executable" },
    { path: "t/-rf", why: "its name begins with a dash" },
    { path: "t/a\u200bb", why: "its name has unusual characters" },
    { path: "t/bunfig.toml", why: "Bun does what it says" },
    { path: "t/$(x)", why: "its name has unusual characters" },
  ]);
});

test("of very many odd ones a hundred are listed, and the others counted", async () => {
  const { listing, offer, all } = await offered("t", 1, ...many(250, (index) => `t/.${index}`));
  expect([listing.odd.length, listing.moreOdd]).toEqual([100, 150]);
  const check = new OfferCheck(offer);
  for (const { path, mode } of all) expect(check.next(path, mode)).toEqual({ isExecutable: false });
  expect(check.next("t/.one-more", 0o644)).toEqual({ problem: "the offer did not list it, and it is odd" });
});

test("what it is called is what its paths say, not what the sender says", async () => {
  const one = await offered("holiday.jpg", 1, "evil/a", "evil/b");
  const several = await offered("holiday.jpg", 2, "evil/a", "b");
  expect([one.offer.name, several.offer.name]).toEqual(["evil", "evil and 1 more"]);
});

test("whatever is offered may come, as it was said", async () => {
  const { offer, all } = await offered("t", 1, ...many(12, (index) => `t/${index}*`), "t/.git/x", "t/y");
  const check = new OfferCheck(offer);
  const expected = all.map(({ mode }) => ({ isExecutable: mode === 0o755 }));
  expect(all.map(({ path, mode }) => check.next(path, mode))).toEqual(expected);
});

describe("not what was not said", () => {
  test.each([
    ["another of the first ten", "t/other", 0o644, { problem: "it is not what was offered" }],
    ["one of the first ten in another case", "T/0", 0o644, { problem: "it is not what was offered" }],
    ["one of the first ten, executable: it is not so here", "t/0", 0o755, { isExecutable: false }],
  ])("%s", async (_, path, mode, expected) => {
    const { offer } = await offered("t", 1, ...many(12, (index) => `t/${index}`));
    expect(new OfferCheck(offer).next(path, mode)).toEqual(expected);
  });
});

test.each([
  [".bashrc", "_.bashrc"],
  ["..", "_.."],
  ["-rf", "_-rf"],
  ["BUNFIG.TOML", "_BUNFIG.TOML"],
  ["tsconfig.json", "_tsconfig.json"],
  ["a.b", "a.b"],
  ["a-b", "a-b"],
])("%j is stored as %j", (name, stored) => expect(storedName(name)).toBe(stored));
