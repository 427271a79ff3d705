/** The recording in README.md: the lines that are typed, and what is answered, are those of a run today. */
import { expect, setDefaultTimeout } from "bun:test";
import { readFileSync } from "node:fs";
import { labTest } from "./lab.ts";
import { linesIn, record, recording } from "./record.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Times, rates, ports, codes and ids are those of a run; so is by which way the two were linked, how often, and how slow it was. */
const ofTheWay =
  /^(?:linked|moved|punching|connecting to) |^ {2}the introducer carries it|^ *→|^our |^here: |^Nobody |^>$/;
function lasting(lines: readonly string[]): string[] {
  return lines
    .filter((line) => !ofTheWay.test(line) && line.trim() !== "")
    .map((line) => line.replace(/ in [\d.]+ s, .*\/s/, "").replace(/\S+@(?=203)/g, "CODE@"))
    .map((line) => line.replace(/[:(]\d+\b/g, "").replace(/(linked) +\d+ .*|in \S+ k?B out .*/, "$1"))
    .map((line) => line.trim().replace(/\s+/g, " "));
}

labTest(
  "the recording shows what a run shows",
  async () => {
    const { alice, bob } = await record();
    const drawn = readFileSync(recording, "utf8");
    expect(lasting(linesIn(drawn))).toEqual(lasting([...alice.lines, ...bob.lines]));
    for (const text of [
      "alice$ participant send photos",
      "bob$ participant receive ",
      "photos/beach.jpg",
      "● linked",
    ])
      expect(drawn).toContain(text);
    expect(drawn.length).toBeLessThan(40_000);
  },
  60_000,
);
