/** That the attackers' programs can talk to the real ones at all: else their attacks would prove nothing. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import {
  frame,
  frameOf,
  LyingIntroducer,
  Member,
  openFrame,
  peersLine,
  RawLink,
  registered,
  run,
} from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(testMs);

const words = "k7xq-m2vp-9dfa-w4tz";

test.each([["lobby"], [words]])(
  "a member by hand links with a participant in %s, and says a word",
  async (room) => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", "--room", room);
    await bob.registered;
    using eve = await Member.join(house.port, { name: "eve", ...(room !== "lobby" && { room }) });
    using link = await eve.link("bob");
    const line = JSON.stringify({ type: "say", id: 7, text: "by hand" }) + "\n";
    await link.begin(openFrame(1, { use: "lines" }), frameOf(frame.data, line, 1));
    await bob.next("linked", ({ name }) => name === "eve");
    expect(await bob.next("said")).toMatchObject({ name: "eve", text: "by hand" });
    await link.reads(1, '{"type":"heard","id":7}\n');
  },
);

test("a member by hand is linked with by a participant that asks, and takes its stream", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", "--room", words);
  await bob.registered;
  using eve = await Member.join(house.port, { name: "eve", room: words });
  await bob.seen("eve");
  bob.type("connect eve");
  using link = await eve.punch(await eve.hears("punch"));
  await link.begin();
  await bob.next("linked", ({ name }) => name === "eve");
  bob.type("say eve hello");
  const { stream } = await link.hears(frame.open);
  await link.reads(stream, '"text":"hello"');
});

test("a member by hand links by the relay", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", "--room", words);
  await bob.registered;
  using eve = await Member.join(house.port, { name: "eve", room: words });
  eve.say({ type: "connect", peer: (await eve.seen("bob")).id });
  await eve.hears("punch");
  using link = await RawLink.relayed(house.port, await eve.hears("relay"), eve);
  await link.begin();
  expect(await bob.next("linked", ({ name }) => name === "eve")).toMatchObject({ route: "relay" });
});

test("an introducer by hand is taken for one", async () => {
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type === "register") visitor.say(registered(line), peersLine());
  });
  await using alice = new Driven(house.port, "alice");
  expect((await alice.registered).name).toBe("alice");
  house.guests[0]!.say({ type: "echo", text: "unasked" });
  house.guests[0]!.raw("no JSON at all\n");
  await house.hears("register", () => house.guests.length === 2); // it comes back
});

test("a local user's child has the descriptors that it was given", async () => {
  const { stdout } = await run("/", ["/bin/sh", "-c", "ulimit -n; pwd"], { ulimit: 123 });
  expect(stdout).toBe("123\n/\n");
});
