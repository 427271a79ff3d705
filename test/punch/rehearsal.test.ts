/** The punch of a program with itself: what it gives to its user, and that nothing is left of it. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { rehearse } from "../../native/punch/rehearsal.ts";
import type { Channel } from "../../native/secure/channel.ts";
import { noSocketLeft } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { aliceIdentity, credentialsOf } from "../session/story-fixture.ts";

setDefaultTimeout(testMs);

test("a rehearsal gives the controlling side's channel to its user, once, and closes it", async () => {
  await using _ = noSocketLeft();
  const self = { fingerprint: aliceIdentity.fingerprint, name: "alice", instance: "0".repeat(16) };
  const given: Channel[] = [];
  // It is given up soon, for nobody waits for it: a busy machine may need another one.
  while (given.length === 0)
    await rehearse(credentialsOf(aliceIdentity), self, (channel) => given.push(channel));
  expect(given.map(({ role, isOpen }) => [role, isOpen])).toEqual([["controlling", false]]);
});
