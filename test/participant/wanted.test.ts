/** Who wants a link with a peer's program. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Wanted } from "../../native/participant/wanted.ts";
import type { Link } from "../../native/session/link.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const linkCalled = (name: string) => ({ name }) as unknown as Link;

test("all who wait get the link, and the next one none of it", async () => {
  const wanted = new Wanted();
  const both = [wanted.wait(), wanted.wait({ isVerbose: true })];
  expect([wanted.isWaitedFor, wanted.isVerbose]).toEqual([true, true]);
  const link = linkCalled("the link");
  wanted.linked(link);
  expect(await Promise.all(both)).toEqual([link, link]);
  expect(wanted.isWaitedFor).toBe(false);
});

test("who asks again when it has failed does not get the old answer", async () => {
  const wanted = new Wanted();
  const first = wanted.wait();
  const reject = wanted.takeWaiting();
  const second = wanted.wait();
  reject(new Error("the old answer"));
  await expect(first).rejects.toThrow("the old answer");
  const link = linkCalled("the link");
  wanted.linked(link);
  expect(await second).toBe(link);
});

test("an earlier program's link is asked after once, and only while nobody wants this program", () => {
  const wanted = new Wanted();
  const predecessor = linkCalled("the earlier one");
  wanted.askAfter(predecessor);
  expect(wanted.isQuiet).toBe(true);
  expect([wanted.takePredecessor(), wanted.takePredecessor()]).toEqual([predecessor, undefined]);
  wanted.askAfter(predecessor);
  void wanted.wait();
  expect([wanted.isQuiet, wanted.takePredecessor()]).toEqual([false, undefined]);
});
