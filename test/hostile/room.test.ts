/** Who is in a room, and who is meant: members that leave, come back, or know other words; with the real programs. */
import { expect, setDefaultTimeout } from "bun:test";
import { Driven, link, met, startIntroducer } from "../driven-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

const words = "k7xq-m2vp-9dfa-w4tz";

test("a peer that is not in the room any more is not meant by its old id", async () => {
  const house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  await using bob = new Driven(house.port, "bob");
  const { id } = await bob.registered;
  await met(alice, bob);
  await link(alice, bob);
  bob.type("leave");
  await alice.next("left");
  await house[Symbol.asyncDispose]();
  await using again = startIntroducer(house.port);
  await alice.next("registered");
  await using carol = new Driven(again.port, "carol");
  expect((await carol.registered).id).toBe(id);
  await alice.next("joined", ({ name }) => name === "carol");
  alice.type(`say ${id} secret`, "say bob hello");
  expect((await alice.next("error")).message).toContain("not linked with carol");
  expect(await bob.next("said")).toMatchObject({ text: "hello" });
  expect(await alice.next("sent")).toMatchObject({ name: "bob", peer: null });
  expect(carol.count("said")).toBe(0);
});

test("a name of the program's own words is refused", async () => {
  for (const name of ["introducer", "error", "Notice"]) {
    await using child = Bun.spawn([process.execPath, "participant.ts", "127.0.0.1:1", "--name", name], {
      cwd: `${import.meta.dir}/../..`,
      stderr: "pipe",
    });
    expect(await child.exited).toBe(2);
    expect(await child.stderr.text()).toContain("must not be one of the program's own words");
  }
});

test("those who know the words link; who knows others is not seen", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--room", words);
  await using bob = new Driven(house.port, "bob", "--room", words);
  await using eve = new Driven(house.port, "eve", "--room", "guess");
  await met(alice, bob);
  await eve.registered;
  await link(alice, bob);
  alice.type("say bob between us");
  expect(await bob.next("said")).toMatchObject({ text: "between us" });
  eve.type("connect bob");
  expect((await eve.next("error")).message).toContain("nobody here is called bob");
});

test("--room new makes words, and says what to tell others", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--room", "new");
  await alice.registered;
  alice.type("quit");
  await alice.exited();
  const invitation = new RegExp(`bun run participant (\\S+)@127.0.0.1:${house.port} --connect alice\n`);
  const made = invitation.exec(await alice.stderr)?.[1] ?? "";
  expect(made).toMatch(/^(\w{4}-){4}\w$/);
  await using again = new Driven(house.port, "alice", "--room", made);
  await using bob = new Driven(house.port, "bob", "--room", made);
  await met(again, bob);
  await link(again, bob);
});

test("the lobby says that it is open to everyone; the words of a private room are not printed", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob", "--room", words);
  for (const one of [alice, bob]) {
    await one.registered;
    one.type("quit");
    await one.exited();
  }
  expect(await alice.stderr).toContain("in room lobby, which is open to everyone");
  expect(await bob.stderr).toContain("in a private room");
  expect(await bob.stderr).not.toContain(words);
});

test("a peer that came back as another program often leaves no row behind", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  for (let round = 0; round < 3; round++) {
    await using bob = new Driven(house.port, "bob", "--connect", "alice");
    if (round > 0) await alice.next("unlinked", ({ reason }) => reason === "peer-restarted");
    await alice.next("linked");
    bob.signal("SIGKILL");
    await alice.next("left");
  }
  await using bob = new Driven(house.port, "bob");
  await bob.registered;
  await alice.next("unlinked", ({ reason }) => reason === "peer-restarted");
  alice.type("list");
  const isList = ({ peers }: { peers: unknown[] }) => peers.length > 0;
  expect((await alice.next("peers", isList)).peers.map(({ name, state }) => [name, state])).toEqual([
    ["bob", "known"],
  ]);
});
