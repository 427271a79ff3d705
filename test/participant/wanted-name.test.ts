/** When the wanted name is asked for: by a clock of the test's own, with no introducer. */
import { afterEach, beforeEach, expect, jest, setDefaultTimeout, test } from "bun:test";
import { Membership } from "../../native/participant/membership.ts";
import { Naming } from "../../native/participant/naming.ts";
import type { RemotePeer } from "../../native/participant/peer.ts";
import type { ToIntroducer } from "../../protocol.ts";
import { aliceIdentity } from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

beforeEach(() => void jest.useFakeTimers());
afterEach(() => void jest.useRealTimers());

/** Alice is called alice-2, and who has her name is here. */
async function renamed() {
  const membership = new Membership(aliceIdentity, "alice", "lobby");
  await membership.room();
  expect(membership.rename("alice-2")).toBe(true);
  const holder = { name: "Alice", isPresent: true }; // it only looks like it
  const asked: ToIntroducer[] = [];
  const naming = new Naming(membership, {
    peers: [holder] as unknown as RemotePeer[],
    send: (message) => void asked.push(message),
  });
  const pass = (ms: number) => void jest.advanceTimersByTime(ms);
  return { membership, holder, naming, asked, pass };
}

test("not while somebody has it; once that one has left, within half a second, and once", async () => {
  const { holder, naming, asked, pass } = await renamed();
  naming.look();
  pass(60_000);
  expect(asked).toEqual([]);
  holder.isPresent = false;
  naming.look();
  naming.look();
  pass(500);
  expect(asked).toEqual([{ type: "rename", name: "alice" }]);
  pass(60_000);
  expect(asked).toHaveLength(1);
});

test("not if somebody else was faster", async () => {
  const { holder, naming, asked, pass } = await renamed();
  holder.isPresent = false;
  naming.look();
  holder.isPresent = true;
  naming.look();
  pass(60_000);
  expect(asked).toEqual([]);
});

test("at once when who was a moment faster leaves, though our request was refused after we saw that one", async () => {
  const { holder, naming, asked, pass } = await renamed();
  holder.isPresent = false;
  naming.look();
  pass(500);
  expect(asked).toHaveLength(1);
  holder.isPresent = true;
  naming.look();
  naming.refused();
  holder.isPresent = false;
  naming.look();
  pass(500);
  expect(asked).toHaveLength(2);
});

test("again after half a minute where it is kept for one who has left, or when another who has it leaves", async () => {
  const { holder, naming, asked, pass } = await renamed();
  holder.isPresent = false;
  naming.look();
  pass(500);
  naming.refused();
  naming.look(); // as at all that the introducer says
  pass(30_000);
  expect(asked).toHaveLength(1);
  pass(2_000);
  expect(asked).toHaveLength(2);
  naming.refused();
  holder.isPresent = true;
  naming.look();
  holder.isPresent = false;
  naming.look();
  pass(500);
  expect(asked).toHaveLength(3);
});

test("not once it is ours, nor when we are not registered any more", async () => {
  const { membership, holder, naming, asked, pass } = await renamed();
  holder.isPresent = false;
  expect(naming.renamed("mallory")).toBeUndefined();
  naming.look();
  naming.stop();
  pass(60_000);
  expect([naming.renamed("alice"), membership.name]).toEqual(["alice-2", "alice"]);
  naming.look();
  pass(60_000);
  expect([asked, naming.renamed("alice")]).toEqual([[], undefined]);
});
