/** The real program on loopback, driven by lines on standard input and read by its `--json` events. */
import { expect, setDefaultTimeout } from "bun:test";
import { join } from "node:path";
import { Driven, link, met, program, startIntroducer, states } from "../driven-fixture.ts";
import { until } from "../native-fixture.ts";
import { knownLinks } from "./participant-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { type Endpoint, splitEndpoint } from "../../protocol.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

/** By a relay, which is taken on a busy machine, an end has another address, and a link that replaces it or moves is told. */
const direct = ["--direct"];

test("a mesh of programs that all connect to all at once has each link once", async () => {
  await using house = startIntroducer();
  const names = Array.from({ length: 8 }, (_, index) => `p${index}`);
  const programs = names.map((name) => new Driven(house.port, name, ...direct));
  try {
    await met(...programs);
    for (const one of programs) {
      one.type(`connect ${names.filter((name) => name !== one.name).join(" ")}`, "echo");
    }
    await Promise.all(programs.map((one) => one.next("echo"))); // `connect` has ended for all
    await knownLinks(house.introducer, names.length, names.length - 1);
    for (const one of programs) {
      const wrong = one.events.filter(({ event }) => ["unlinked", "failed", "error"].includes(event));
      expect([one.name, one.count("linked"), wrong]).toEqual([one.name, names.length - 1, []]);
    }
  } finally {
    await Promise.all(programs.map((one) => one[Symbol.asyncDispose]()));
  }
});

test("two participants meet, link, talk, part, link again and quit", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", ...direct);
  const self = await alice.registered;
  expect(self).toMatchObject({ name: "alice", room: "lobby" });
  expect(self.private).toContain(self.public);
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);

  const [ours, theirs] = await link(alice, bob);
  expect([ours.local, ours.remote]).toEqual([theirs.remote, theirs.local]);
  const addressOf = (endpoint: Endpoint) => splitEndpoint(endpoint).address;
  expect(self.private.map(addressOf)).toContain(addressOf(ours.local));

  const saidAt = performance.now();
  alice.type("say bob hello   there", "PING bob", "h how far", "S");
  bob.type("f alice ça va? 日本");
  expect(await bob.next("said")).toMatchObject({ name: "alice", text: "hello   there" });
  expect(await alice.next("said")).toMatchObject({ name: "bob", text: "ça va? 日本" });
  const roundTripsMs = [(await alice.next("sent")).rttMs, (await alice.next("pong")).rttMs];
  expect(Math.max(...roundTripsMs)).toBeLessThan(performance.now() - saidAt);
  expect(await alice.next("echo")).toMatchObject({ text: "how far" });
  const { peers } = await alice.next("peers");
  expect(peers).toMatchObject([
    { name: "bob", state: "linked", route: ours.route, local: ours.local, remote: ours.remote },
  ]);
  expect(Object.keys(peers[0]!)).toEqual(
    expect.arrayContaining(["rttMs", "ageMs", "bytesIn", "bytesOut", "private", "public"]),
  );

  alice.type("disconnect bob", "connect bob", "say bob again");
  await Promise.all([alice.next("unlinked"), bob.next("unlinked")]);
  expect(await bob.next("said")).toMatchObject({ text: "again" });
  alice.type("quit");
  expect(await alice.exited()).toBe(0);
  expect(await bob.next("unlinked")).toMatchObject({ reason: "peer-quit" });
  await bob.next("left");
  bob.endInput();
  expect(await bob.exited()).toBe(0);
  expect(await bob.stderr).toContain("alice (1) left");
});

test("both asking at the same moment make one link", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  for (let round = 1; round <= 5; round++) {
    alice.type("connect bob");
    bob.type("connect alice");
    await Promise.all([alice.next("linked"), bob.next("linked")]);
    alice.type("say bob over", "disconnect bob");
    await bob.next("said");
    await Promise.all([alice.next("unlinked"), bob.next("unlinked")]);
    bob.type("echo"); // so that its `connect`, had it been too late, has been answered
    await bob.next("echo");
    expect({ a: alice.count("linked"), b: bob.count("linked") }).toEqual({ a: round, b: round });
  }
});

test("several peers at once", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob");
  await using carol = new Driven(house.port, "carol");
  await met(alice, bob, carol);
  bob.type("connect carol alice");
  carol.type("connect alice bob");
  alice.type("connect bob carol");
  await Promise.all(
    [alice, bob, carol].map(async (one) => [await one.next("linked"), await one.next("linked")]),
  );
  for (const one of [alice, bob, carol]) {
    one.type("list");
    const { peers } = await one.next("peers");
    expect(peers.map(({ state }) => state)).toEqual(["linked", "linked"]);
  }
});

test("`connect PEER -v` tells every attempt, and only then", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  alice.type("connect bob -v");
  expect(await alice.next("attempt")).toMatchObject({ name: "bob", outcome: "started" });
  await Promise.all([alice.next("linked"), bob.next("linked")]);
  alice.type("connect -v");
  expect((await alice.next("error")).message).toContain("`connect` needs a PEER");
});

test("a PEER that can't be meant is a clear error", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  const { id } = await alice.registered;
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  const complaint = async (line: string) => {
    alice.type(line);
    return (await alice.next("error")).message;
  };
  expect(await complaint("connect nobody")).toBe("nobody here is called nobody; `list` shows who is");
  expect(await complaint("connect nobody 99")).toContain("nobody here is called 99");
  expect(await complaint("connect alice")).toContain("that is yourself");
  expect(await complaint(`connect ${id}`)).toContain("that is yourself");
  expect(await complaint("connect bob")).toBe("already linked with bob");
  expect(await complaint("ping")).toContain("`ping` needs a PEER");
  expect(await complaint("say bob")).toContain("`say` needs a TEXT");
  expect(await complaint(`say bob ${"x".repeat(8193)}`)).toContain("at most 8192 characters");
  expect(await complaint("dance")).toContain("there is no command dance");
  expect(await complaint("join")).toContain("already registered");
  alice.endInput();
  expect(await alice.exited()).toBe(1); // some commands failed
});

test("a second one of a name is told so, is called otherwise, and is believed and linked by that", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--room", "some words of this test");
  await using first = new Driven(house.port, "twin", "--room", "some words of this test");
  await met(alice, first);
  await using second = new Driven(house.port, "twin", "--room", "some words of this test");
  const { name } = await second.registered;
  expect(name).toBe("twin-2");
  expect(await second.next("name-taken")).toMatchObject({ name: "twin-2", was: "twin" });
  await alice.next("joined", (event) => event.name === "twin-2");
  alice.type("connect twin-2", "connect twin");
  const linked = [await alice.next("linked"), await alice.next("linked")].map((event) => event.name);
  expect(linked).toEqual(["twin-2", "twin"]);
  second.type("whoami");
  expect(await second.next("whoami" as "echo")).toMatchObject({ name: "twin-2", room: "private" });
  second.type("say twin-2 hi");
  expect((await second.next("error")).message).toContain("that is yourself");
});

test("whoever was called otherwise comes back by that name, and has the one it wanted once that is free", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using first = new Driven(house.port, "twin");
  await met(alice, first);
  await using second = new Driven(house.port, "twin");
  await second.registered;
  await link(alice, Object.assign(second, { name: "twin-2" }));
  second.type("leave"); // else it asks for that name as soon as it is free
  await alice.next("left", ({ name }) => name === "twin-2");
  first.endInput();
  await first.exited();
  await until("nobody has the name", () => house.introducer.participants.length === 1);
  second.type("join");
  expect((await second.next("registered")).name).toBe("twin-2");
  expect(await second.next("named")).toMatchObject({ name: "twin", was: "twin-2" });
  await alice.next("renamed", ({ name }) => name === "twin");
  alice.type("say twin still you");
  expect(await second.next("said")).toMatchObject({ text: "still you" });
  expect(second.count("unlinked")).toBe(0);
});

test("--connect waits for its peer, and the commands wait for the link", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--connect", "bob");
  alice.type("say bob first");
  alice.endInput();
  await alice.registered;
  await using bob = new Driven(house.port, "bob");
  expect(await bob.next("said")).toMatchObject({ name: "alice", text: "first" });
  expect(await alice.exited()).toBe(0);
});

test("on a terminal, what happens does not tear the line being typed", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...direct);
  await bob.registered;
  let screen = "";
  let news = Promise.withResolvers<void>();
  const decoder = new TextDecoder();
  const data = (_: unknown, chunk: Uint8Array) => {
    screen += decoder.decode(chunk, { stream: true });
    news.resolve();
    news = Promise.withResolvers();
  };
  const shows = async (text: string) => {
    while (!screen.includes(text)) await news.promise;
  };
  await using child = Bun.spawn([process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice"], {
    env: { PATH: process.env.PATH, XDG_STATE_HOME: join(states, "alice"), NO_COLOR: "1", TERM: "xterm" },
    terminal: { cols: 80, rows: 24, data },
  });
  await shows("our mapping: "); // the last that is told of the start
  const typed = `say bob ${"x".repeat(170)}END`; // three rows
  child.terminal?.write(typed);
  await shows("END");
  screen = "";
  bob.type("connect alice", "say alice one", "say alice two", "disconnect alice");
  await shows("unlinked");
  bob.type("quit");
  await shows("bob (1) left");
  const redrawn = `> ${typed}`;
  while (!/left[^]*END\x1b\[24G$/.test(screen)) await news.promise;
  const told = screen.split("\x1b[2A\x1b[1G\x1b[0J").slice(1);
  const lines = told.map((part) => part.replace(/\r?\n[^]*/, ""));
  const isRound = (line: string) => line.startsWith("punching towards bob (1), controlled, ");
  expect(lines.some(isRound)).toBe(true);
  expect(lines.filter((line) => !isRound(line))).toEqual([
    expect.stringContaining("linked with bob (1)"),
    "<bob> one",
    "<bob> two",
    "unlinked from bob (1): the peer disconnected",
    "bob (1) left",
  ]);
  for (const part of told) {
    expect(part.replace(/\x1b\[\d*[GJ]|\r|\n/g, "")).toEndWith(redrawn);
    expect(part).not.toMatch(/\x1b\[\d*A/); // up again would overwrite what was told
  }
  child.terminal?.write("\x03\x03"); // the first clears the line
  expect(await child.exited).toBe(0);
});

test("the end of the input quits once the running command is done; with --stay it does not", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--stay");
  alice.endInput();
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  bob.type("connect alice", "say alice all of it");
  bob.endInput();
  expect(await bob.exited()).toBe(0);
  expect(await alice.next("said")).toMatchObject({ text: "all of it" });
  expect(await alice.next("unlinked")).toMatchObject({ reason: "peer-quit" });
  alice.signal("SIGTERM");
  expect(await alice.exited()).toBe(0);
});

test.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)("%s ends the program in order", async (signal) => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  bob.signal(signal);
  expect(await bob.exited()).toBe(0);
  expect(await alice.next("unlinked")).toMatchObject({ reason: "peer-quit" });
  await alice.next("left");
});

test("what a peer that vanished never heard is said", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--keep", "0");
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  bob.signal("SIGSTOP");
  alice.type("list", "say bob are you there?");
  await alice.next("peers");
  bob.signal("SIGKILL");
  expect((await alice.next("error")).message).toMatch(
    /^not confirmed by bob: "are you there\?": the link ended /,
  );
  await alice.next("unlinked");
  await alice.next("left");
  alice.type("say bob hello?");
  expect((await alice.next("error")).message).toContain("nobody here is called bob");
});

test("a room is out of sight of another", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", "--room", "one");
  await using bob = new Driven(house.port, "bob", "--room", "two");
  await Promise.all([alice.registered, bob.registered]);
  alice.type("connect bob");
  expect((await alice.next("error")).message).toContain("nobody here is called bob");
  expect(bob.count("joined")).toBe(0);
});
