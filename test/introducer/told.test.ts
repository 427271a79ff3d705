import { expect, setDefaultTimeout, test } from "bun:test";
import { ToldTokens } from "../../native/introducer/told.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("each of the two may say it once, of the other, and nobody else", () => {
  const told = new ToldTokens(1000);
  told.add("t", "anna", "bert", 0);
  expect([
    told.take("t", "mallory", "anna", 1),
    told.take("t", "anna", "mallory", 1),
    told.take("u", "anna", "bert", 1),
    told.take("t", "anna", "bert", 1),
    told.take("t", "anna", "bert", 1),
    told.take("t", "bert", "anna", 999),
  ]).toEqual([false, false, false, true, false, true]);
});

test("a token is forgotten after its time", () => {
  const told = new ToldTokens(1000);
  told.add("t", "anna", "bert", 0);
  told.add("u", "anna", "bert", 500);
  expect([told.take("t", "anna", "bert", 1000), told.take("u", "anna", "bert", 1000)]).toEqual([false, true]);
});
