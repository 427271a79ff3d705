import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  fairShare,
  hasShare,
  Shares,
  siteShares,
  sourceOf,
  tryTake,
  Usage,
  waitSeconds,
} from "../../native/shares/budget.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const mallory = sourceOf("198.51.100.7");
const anna = sourceOf("203.0.113.7");
/** Subscribers of one /48. */
const inSite = (index: number) => sourceOf(`2001:db8:7:${index.toString(16)}::1`);

test("a bucket gives its burst at once, and then what comes in", () => {
  const bucket = { tokens: 2, at: 0 };
  const taken = [0, 0, 0, 500, 1000].map((now) => tryTake(bucket, 2, 1, now));
  expect(taken).toEqual([true, true, false, false, true]);
  expect(waitSeconds({ tokens: 0, at: 0 }, 60, 250)).toBe(1);
  expect(waitSeconds({ tokens: 0, at: 0 }, 60, 1000)).toBe(0);
});

test("of IPv6, a /64 is one source", () => {
  expect(["2001:db8::1", "2001:db8:0:0:ffff::9", "2001:db8:0:1::1", "10.0.0.1"].map(sourceOf)).toEqual([
    "2001:db8:0:0",
    "2001:db8:0:0",
    "2001:db8:0:1",
    "10.0.0.1",
  ]);
});

describe("shares", () => {
  test("an address gets no more than its own, however much is left", () => {
    const shares = new Shares(1000, 3, 1);
    shares.add(mallory, 3);
    expect([shares.isOver(mallory), shares.isOver(mallory, 1), shares.isOver(anna, 1)]).toEqual([
      false,
      true,
      false,
    ]);
    shares.remove(mallory);
    expect(shares.isOver(mallory, 1)).toBe(false);
  });

  test("however many are greedy, whoever comes next finds some left", () => {
    const shares = new Shares(1000, 1000, 1);
    const greedy = Array.from({ length: 64 }, (_, index) => sourceOf(`198.51.100.${index}`));
    for (let isAny = true; isAny;) {
      isAny = false;
      for (const one of greedy) {
        if (shares.isOver(one, 1)) continue;
        shares.add(one);
        isAny = true;
      }
    }
    expect(shares.total).toBeLessThan(1000 - 3 * fairShare(1000, shares.total));
    expect(shares.isOver(anna, shares.most(anna))).toBe(false);
    expect(shares.most(anna)).toBeGreaterThan(10);
  });

  test("a /48 with 65,536 sources gets four shares", () => {
    const shares = new Shares(1_000_000, 10, 1);
    let given = 0;
    for (let index = 0; index < 1000; index++) {
      if (shares.isOver(inSite(index), 1)) continue;
      shares.add(inSite(index));
      given++;
    }
    expect(given).toBe(10 * siteShares);
    expect(shares.isOver(sourceOf("2001:db8:8::1"), 1)).toBe(false);
    for (let index = 0; index < given; index++) shares.remove(inSite(index));
    expect(shares.isOver(inSite(5), 1)).toBe(false);
  });

  test("a /48 that asks from ever new sources is beyond its shares like an address", () => {
    const shares = new Shares(1_000_000, 10, 1);
    for (let index = 0; index < 10 * siteShares; index++) shares.add(inSite(index));
    expect([shares.isBeyond(inSite(999), 0), shares.isBeyond(inSite(999), 1)]).toEqual([true, false]);
    expect(shares.isBeyond(sourceOf("2001:db8:8::1"), 0)).toBe(false);
  });

  test("places are counted by the address and by the /48", () => {
    const places = Array.from({ length: 2 * siteShares }, (_, index) => ({ source: inSite(index) }));
    expect([hasShare(inSite(999), places, 2), hasShare(inSite(999), places, 3)]).toEqual([true, false]);
    expect(hasShare(sourceOf("2001:db8:70::1"), places, 2)).toBe(false);
    expect(hasShare(mallory, [{ source: mallory }], 1)).toBe(true);
  });

  test("what is used up is so for everybody; our own host has as many shares as it is given", () => {
    const shares = new Shares(10, 10, Infinity);
    shares.add("127.0.0.1", 10);
    expect([shares.isOver("127.0.0.1"), shares.isUsedUp(), shares.isUsedUp(1)]).toEqual([false, false, true]);
    const most = ["::1", "127.0.0.2", "::2"].map((address) => new Shares(10, 2, 3).most(sourceOf(address)));
    expect(most).toEqual([6, 2, 6]); // ::2 shares a /64 with ::1
  });
});

describe("usage", () => {
  test("who has used a quarter of what is left waits until that is forgotten", () => {
    const usage = new Usage(100, 1, 1000, 1);
    usage.spend(mallory, 30, 0);
    expect([usage.isOver(mallory, 0), usage.isOver(anna, 0)]).toEqual([true, false]);
    expect(usage.isOver(mallory, 1000)).toBe(false);
  });

  test("from however many addresses it is used, everybody has a little", () => {
    const usage = new Usage(100, 1, 1000, 1);
    for (let index = 0; index < 200; index++) usage.spend(sourceOf(`198.51.100.${index}`), 1.5, 0);
    expect(usage.isOver(sourceOf("198.51.100.3"), 0)).toBe(true);
    usage.spend(anna, 0.9, 0);
    expect(usage.isOver(anna, 0)).toBe(false);
  });

  test("the sources of a /48 use it together", () => {
    const usage = new Usage(100, 1, 1000, 1);
    for (let index = 0; index < 90; index++) usage.spend(inSite(index), 1, 0);
    expect([usage.isOver(inSite(1000), 0), usage.isOver(anna, 0)]).toEqual([true, false]);
    expect([usage.hasUsed(inSite(1000), 1, 0), usage.hasUsed(anna, 1, 0)]).toEqual([true, false]);
  });

  test("it forgets who has used nothing of late, and what that was", () => {
    const usage = new Usage(100, 1, 1000, 1);
    usage.spend(mallory, 50, 0);
    usage.tick(10_000);
    expect(usage.of(mallory, 10_000)).toBe(0);
  });
});
