/** What was found by attacks of all kinds, each small: a lying introducer, a room member, a stranger, a local user. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Driven } from "../driven-fixture.ts";
import { LyingIntroducer, peersLine, registered } from "./wire.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(60_000);

test("an introducer that registers us under another name is left, and that name is told to nobody", async () => {
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type === "register") visitor.say(registered(line, { name: "root" }), peersLine());
  });
  await using alice = new Driven(house.port, "alice");
  expect((await alice.next("error")).message).toContain("it calls us root, not alice");
  expect(await alice.exited()).toBe(1);
  expect(alice.count("registered")).toBe(0);
});
