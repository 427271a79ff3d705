/** An introducer that says how long to wait: that is done, once, and told. */
import { expect, setDefaultTimeout, test } from "bun:test";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { Participant } from "../../participant.ts";
import { makeIdentity } from "../../native/secure/identity.ts";
import { Driven } from "../driven-fixture.ts";
import { type Line, LyingIntroducer, peerLine, peersLine, registered } from "../hostile/wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const wait = { type: "refused", code: "limit", message: "60 are enough: wait 1 s", request: "connect" };

/** Alice asks for bob, and is told to wait so often. */
async function asking(times: number) {
  let asked = 0;
  const house = await LyingIntroducer.listen((line: Line, visitor) => {
    if (line.type === "register") visitor.say(registered(line), peersLine(peerLine()));
    if (line.type !== "connect") return;
    if (++asked <= times) visitor.say({ ...wait, peer: 2, retryInMs: 200 });
    else visitor.say({ type: "failed", peer: 2, token: "ab".repeat(16), reason: "no-candidate-answered" });
  });
  const alice = new Driven(house.port, "alice");
  await alice.registered;
  alice.type("connect bob");
  const dispose = async () => {
    await alice[Symbol.asyncDispose]();
    house[Symbol.dispose]();
  };
  return { alice, asked: () => asked, [Symbol.asyncDispose]: dispose };
}

test("who is told how long to wait waits, says so, and asks once more", async () => {
  await using scene = await asking(1);
  const { retryInMs, reason } = await scene.alice.next("postponed");
  expect(reason).toBe(wait.message);
  expect(retryInMs).toBeGreaterThanOrEqual(200);
  expect(retryInMs).toBeLessThanOrEqual(400); // those who are told the same do not come at once
  expect((await scene.alice.next("failed")).reason).toBe("no-candidate-answered");
  expect(scene.asked()).toBe(2);
});

test("who is told to wait again is refused", async () => {
  await using scene = await asking(10);
  await scene.alice.next("postponed");
  expect(await scene.alice.next("failed")).toMatchObject({ reason: "refused", detail: wait.message });
  expect([scene.asked(), scene.alice.count("postponed")]).toEqual([2, 1]);
});

test("what waits can be given up", async () => {
  const postponed = Promise.withResolvers<void>();
  using house = await LyingIntroducer.listen((line: Line, visitor) => {
    if (line.type === "register") visitor.say(registered(line), peersLine(peerLine()));
    if (line.type === "connect") visitor.say({ ...wait, peer: 2, retryInMs: 30_000 });
  });
  const onEvent = ({ event }: ParticipantEvent) => event === "postponed" && postponed.resolve();
  const options = { host: "127.0.0.1", port: house.port, room: "lobby", identity: makeIdentity() };
  const alice = new Participant({ ...options, name: "alice", onEvent });
  await alice.join();
  const connecting = alice.connect("bob");
  connecting.catch(() => {});
  await postponed.promise;
  await alice.disconnect("bob").catch(() => {});
  await expect(connecting).rejects.toThrow("you cancelled it");
  await alice.quit();
  expect(house.heard.all.filter(({ type }) => type === "connect")).toHaveLength(1);
});
