/** Shares of what there is a fixed number of. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { FairShare } from "../../native/shares/fair-share.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** Takes as many as it gets. */
function greedy(share: FairShare, holder: string): (() => void)[] {
  const taken: (() => void)[] = [];
  for (let one = share.take(holder); one; one = share.take(holder)) taken.push(one);
  return taken;
}

test("one alone gets half, and those that come after it get less and less", () => {
  const share = new FairShare(512);
  const held = Array.from({ length: 4 }, (_, index) => greedy(share, `eve-${index}`).length);
  expect(held).toEqual([256, 128, 64, 32]);
});

test("with a small part, twenty that take all they can leave some", () => {
  const share = new FairShare(600, 1 / 8);
  for (let index = 0; index < 20; index++) greedy(share, `eve-${index}`);
  expect(greedy(share, "alice").length).toBeGreaterThan(5);
});

test("those that take in turn get equal parts", () => {
  const share = new FairShare(400);
  const counts = [0, 0, 0];
  for (let isTaken = true; isTaken;) {
    isTaken = false;
    for (const index of counts.keys()) {
      if (!share.take(`peer-${index}`)) continue;
      counts[index]!++;
      isTaken = true;
    }
  }
  expect(counts).toEqual([100, 100, 100]);
});

test("what is given back can be taken again, and is given back once", () => {
  const share = new FairShare(2);
  const [give] = greedy(share, "alice");
  expect(greedy(share, "alice")).toEqual([]);
  give!();
  give!();
  expect(share.total).toBe(0);
  expect(greedy(share, "bob")).toHaveLength(1);
});

test("there is one for the first, even of one", () => {
  expect(greedy(new FairShare(1), "alice")).toHaveLength(1);
});
