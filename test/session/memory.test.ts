/** What all links of a program may keep together, counted in bytes. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { floorBytes, MemoryBudget, type MemoryOwner, type MemoryShare } from "../../native/session/memory.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const megabyte = 1024 * 1024;
const totalBytes = 64 * megabyte;

interface Holder extends MemoryOwner {
  share: MemoryShare;
  isGone: boolean;
  isWanted: boolean;
  isGivenUp: boolean;
}

function holderOf(budget: MemoryBudget, isGone = false, isWanted = true): Holder {
  const holder: Omit<Holder, "share"> = {
    ...{ isGone, isWanted, isGivenUp: false },
    giveUp() {
      holder.isGivenUp = true;
      share.close();
    },
  };
  const share = budget.share(holder);
  return Object.assign(holder, { share });
}

/** Takes as long as it may. */
function takeAll({ share }: Holder): number {
  let held = 0;
  while (share.mayHold(64 * 1024)) share.hold((held += 64 * 1024));
  return share.heldBytes;
}

test("one alone has half; of greedy ones each has half of what is left, and whoever comes next the floor", () => {
  const budget = new MemoryBudget(totalBytes);
  const held = Array.from({ length: 40 }, () => takeAll(holderOf(budget)));
  expect(held[0]! / megabyte).toBeCloseTo(32, 0);
  expect(held[1]! / megabyte).toBeCloseTo(16, 0);
  expect(Math.min(...held)).toBeGreaterThan(0.9 * floorBytes);
  expect(budget.heldBytes).toBeLessThan(totalBytes + 40 * floorBytes);
});

test("what is given back is there for others, and who is closed holds nothing", () => {
  const budget = new MemoryBudget(totalBytes);
  const [first, second] = [holderOf(budget), holderOf(budget)];
  takeAll(first);
  const before = takeAll(second);
  first.share.close();
  first.share.hold(5 * megabyte);
  expect(takeAll(second)).toBeGreaterThan(before);
  second.share.close();
  expect(budget.heldBytes).toBe(0);
});

test("floors that exceed it cost those who are gone: first whom nobody wants, of several the largest", () => {
  const budget = new MemoryBudget(4 * megabyte);
  const here = holderOf(budget);
  const wanted = holderOf(budget, true);
  const [small, large] = [holderOf(budget, true, false), holderOf(budget, true, false)];
  wanted.share.hold(megabyte);
  small.share.hold(megabyte / 2);
  large.share.hold(megabyte);
  here.share.hold(megabyte);
  expect([wanted, small, large, here].map(({ isGivenUp }) => isGivenUp)).toEqual([
    false,
    false,
    false,
    false,
  ]);
  here.share.hold(1.5 * megabyte);
  expect([wanted, small, large, here].map(({ isGivenUp }) => isGivenUp)).toEqual([false, false, true, false]);
  here.share.hold(4 * megabyte);
  expect([wanted, small, large, here].map(({ isGivenUp }) => isGivenUp)).toEqual([true, true, true, false]);
});

test("thousands of links that hold nothing are bounded, too", () => {
  const budget = new MemoryBudget(totalBytes);
  const gone = Array.from({ length: 5_000 }, () => holderOf(budget, true, false));
  expect(budget.heldBytes).toBeLessThanOrEqual(totalBytes);
  expect(gone.filter(({ isGivenUp }) => !isGivenUp).length).toBeLessThan(1_100);
});
