/**
 * The participant: what it shows, its command line, and the real program on loopback, driven by lines on standard
 * input and read by its `--json` events.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import pc from "picocolors";
import type { Introducer } from "../introducer.ts";
import type { PeerRow } from "../native/participant/peer.ts";
import { readHostPort } from "../native/terminal/participant-arguments.ts";
import { renderNat } from "../native/terminal/participant-nat.ts";
import { tell } from "../native/terminal/participant-story.ts";
import { renderDetails, renderList } from "../native/terminal/participant-list.ts";
import type { NatReport, ParticipantEvent } from "../native/participant/events.ts";
import { defaultPort, encode, type Endpoint, maxLineBytes, type ToParticipant } from "../protocol.ts";
import { Driven, link, met, outcome, program, startIntroducer, states } from "./driven-fixture.ts";
import { freePort } from "./sockets-fixture.ts";

const at = (text: string) => text as Endpoint;
const plain = pc.createColors(false);

// --- the list --------------------------------------------------------------------------------------------

const known: PeerRow = {
  id: 2,
  name: "bob@home",
  state: "known",
  present: true,
  lastSeenAt: Date.now(),
  fingerprint: "ab".repeat(32),
  private: [at("192.168.1.20:40000")],
  mapping: "unknown",
  public: at("203.0.113.7:40000"),
};
const linked: PeerRow = {
  ...known,
  state: "linked",
  route: "public",
  local: at("192.168.1.20:50000"),
  remote: at("203.0.113.7:40000"),
  rttMs: 12.34,
  ageMs: 61_000,
  bytesIn: 1_500,
  bytesOut: 2_000_000,
};
const longest = at("[2001:db8:1111:2222:3333:4444:5555:6666]:54321");

/** The list, and what more there is with -v. */
const list = async (...all: Parameters<typeof renderList>) => (await renderList(...all)).join("");
const details = async (...all: Parameters<typeof renderDetails>) => (await renderDetails(...all)).join("");

test("the list shows every state, endpoint and measure of a peer", async () => {
  const shown = await list(
    [
      known,
      { ...known, id: 3, state: "punching" },
      { ...known, id: 4, state: "failed", reason: "no-candidate-answered" },
      { ...linked, id: 5, present: false },
    ],
    80,
    plain,
  );
  expect(shown).toMatchInlineSnapshot(`
    "           id name     private endpoint   link
                           public endpoint
    ○ known    2  bob@home 192.168.1.20:40000
                           203.0.113.7:40000
    ◌ punching 3  bob@home 192.168.1.20:40000
                           203.0.113.7:40000
    ✗ failed   4  bob@home 192.168.1.20:40000 no-candidate-answered
                           203.0.113.7:40000
    ● linked   -  bob@home 192.168.1.20:40000 public 12.3 ms 1m
                           203.0.113.7:40000  192.168.1.20:50000
                                              → 203.0.113.7:40000
                                              in 1.5 kB out 2.0 MB
                                              (last seen 0s ago)
    4 peers: 1 known, 1 punching, 1 failed, 1 linked"
  `);
});

test.each([
  ["IPv6", { ...linked, private: [longest, longest], public: longest, local: longest, remote: longest }],
  ["a long name", { ...linked, name: "x".repeat(64) }],
  ["wide characters", { ...linked, name: "日本語の名前はとても長いです🎉🎉🎉" }],
  ["combining characters", { ...linked, name: "e\u0301".repeat(32) }],
  ["big numbers", { ...linked, id: 2 ** 53 - 1, rttMs: 123_456.7, bytesIn: 2 ** 53, bytesOut: 999_999 }],
  ["ten private endpoints", { ...known, private: Array<Endpoint>(10).fill(longest) }],
  ["the longest reason", { ...known, state: "failed", reason: "authentication-failed" }],
] satisfies [string, PeerRow][])("the list fits in 80 columns with %s", async (_, row) => {
  const lines = (await list([row, known], 80, plain)).split("\n");
  expect(lines.filter((line) => Bun.stringWidth(line) > 80)).toEqual([]);
  expect(lines.join("")).not.toContain("…"); // cli-table3's mark where it cut something off
  expect(lines.join("")).not.toContain("\x1b");
});

test("a wide terminal shows IPv6 endpoints whole", async () => {
  expect(await list([{ ...linked, public: longest, local: longest, remote: longest }], 140, plain)).toContain(
    `→ ${longest}`,
  );
});

const longName = "a-name-of-sixty-four-characters-".repeat(2);
const several: PeerRow[] = [
  { ...linked, name: longName },
  { ...linked, id: 3, private: [longest, longest], public: longest, local: longest, remote: longest },
  { ...known, id: 4, state: "failed", reason: "no-candidate-answered" },
];

test.each([120, 121, 140, 200, 250, Infinity])("in %d columns each peer has one line", async (columns) => {
  const lines = (await list(several, columns, plain)).split("\n");
  expect(lines.length).toBe(1 + several.length + 1);
  expect(lines.at(-1)).toBe("3 peers: 2 linked, 1 failed");
  expect(lines.filter((line) => Bun.stringWidth(line) > columns)).toEqual([]);
});

test("a name is whole wherever it fits, and in a pipe nothing is missing", async () => {
  expect(await list([several[0]!], 120, plain)).toContain(longName);
  expect(await list([{ ...known, name: "x".repeat(30) }], 80, plain)).toContain("x".repeat(30));
  const piped = await list(several, Infinity, plain);
  for (const text of [longName, `${longest}, ${longest}`, `→ ${longest}`, "in 1.5 kB out 2.0 MB"])
    expect(piped).toContain(text);
});

test("an empty list says what to do; colours only when asked for", async () => {
  expect(await list([], 80, plain)).toContain("--room");
  expect(await list([linked], 80, pc.createColors(true))).toContain("\x1b[32m● linked");
});

test("`list -v` adds what the table has no room for", async () => {
  const shown = await details(
    [
      { ...linked, carriers: 3, roundTripMs: 21 },
      { ...known, state: "untrusted", distrust: "its proof is wrong" },
    ],
    plain,
  );
  for (const text of ["3 so far", "21 ms from the introducer", linked.fingerprint, "in 1.5 kB out 2.0 MB"])
    expect(shown).toContain(text);
  expect(shown).toContain("distrust     its proof is wrong");
});

test("what is relayed, coming back or untrusted is told apart in the list", async () => {
  const rows: PeerRow[] = [
    { ...linked, route: "relay" },
    { ...linked, id: 3, state: "returning", route: "public" },
    { ...known, id: 4, state: "untrusted", distrust: "no proof" },
  ];
  const shown = await list(rows, 80, pc.createColors(true));
  expect(shown).toContain("\x1b[33mrelay 12.3 ms 1m");
  expect(shown).toContain("\x1b[33m◌ coming back");
  expect(shown).toContain("\x1b[31m✗ untrusted");
});

const report: NatReport = {
  ...{ mapping: "endpoint-independent", step: 0, isPreserved: true, dependsOn: "unknown" },
  ...{ observed: at("192.168.1.5:4000"), scope: "private", isTranslated: false },
  ...{ filtering: "let-in", hairpinning: false, ipv6: false, expected: [{ peer: "no NAT", way: "direct" }] },
};
test.each<[string, Partial<NatReport>, string, boolean]>([
  ["a LAN", {}, "The introducer is in your own network", false],
  ["this host", { scope: "loopback" }, "The introducer is on this host", false],
  ["the Internet", { scope: "global" }, "You are on the open Internet", true],
  ["the Internet, unmeasured", { scope: "global", filtering: undefined! }, "was not measured", true],
  ["a carrier's network", { scope: "private", isTranslated: true }, "You are behind a friendly NAT", true],
])("`nat` towards %s claims no more than it knows", (_, changes, sentence, hasTable) => {
  const shown = renderNat({ ...report, ...changes }, plain);
  expect(shown.split("\n")[0]).toContain(sentence);
  expect(shown.includes("peer's NAT")).toBe(hasTable);
});

test("escape sequences from the network stay harmless", async () => {
  const evil = "\x1b]0;owned\x07\u009b2J\u202e\r\n";
  const events: ParticipantEvent[] = [
    { event: "said", peer: 2, name: evil, text: evil },
    { event: "notice", text: evil },
    { event: "error", message: evil },
    { event: "failed", peer: 2, name: evil, reason: "timed-out", detail: evil },
    { event: "unlinked", peer: 2, name: evil, reason: "connection-lost", detail: evil },
    { event: "waiting", for: "peer", text: evil },
    { event: "echo", text: evil, rttMs: 1 },
    { event: "introducer", state: "lost", reason: evil },
    { event: "registered", id: 1, name: evil, room: "private", public: known.public, private: [] },
    { event: "peers", peers: [{ ...known, name: evil }] },
  ];
  const shown = [
    ...events.map((event) => tell(event, plain)),
    await list([{ ...known, name: evil }], 80, plain),
  ];
  for (const text of shown) expect(text).not.toMatch(/[^\P{C}\n]/u);
});

const bob = { peer: 2, name: "bob" };
test.each<[ParticipantEvent, string]>([
  [
    {
      event: "registered",
      id: 1,
      name: "al",
      room: "lobby",
      public: known.public,
      private: [...known.private, longest],
    },
    `registered as al (1) in room lobby, which is open to everyone\n  private 192.168.1.20:40000, ${longest}\n  public  203.0.113.7:40000`,
  ],
  [{ event: "peers", peers: [] }, "Nobody else is here yet."],
  [{ event: "peers", peers: [known] }, "here: bob@home (2). `connect bob@home` punches a hole"],
  [{ event: "peers", peers: [linked] }, "here: bob@home (2)"],
  [
    { event: "peers", peers: [known, { ...known, id: 3 }] },
    "here: bob@home (2), bob@home (3). `connect 2` punches a hole",
  ],
  [{ event: "joined", ...bob, private: [], public: known.public }, "bob (2) joined from 203.0.113.7:40000"],
  [{ event: "left", ...bob }, "bob (2) left"],
  [
    { event: "punching", ...bob, role: "controlling", way: "direct", round: 1 },
    "punching towards bob (2), controlling, direct, round 1",
  ],
  [
    {
      event: "attempt",
      ...bob,
      atMs: 1.25,
      localPort: 40000,
      remote: known.public,
      route: "public",
      outcome: "ECONNREFUSED",
    },
    "       1.3 ms  :40000 → 203.0.113.7:40000 public: ECONNREFUSED",
  ],
  [
    {
      event: "linked",
      ...bob,
      route: "listen",
      local: at("10.0.0.1:1"),
      remote: known.public,
      elapsedMs: 61.23,
    },
    "linked with bob (2) by listen: 10.0.0.1:1 → 203.0.113.7:40000, 61.2 ms",
  ],
  [
    { event: "failed", ...bob, reason: "no-candidate-answered", detail: "public 1.2.3.4:5: 7 attempts" },
    "failed to link with bob (2): none of the peer's endpoints answered (no-candidate-answered)\n  public 1.2.3.4:5: 7 attempts; `nat` tells what kind of NAT you are behind",
  ],
  [
    { event: "unlinked", ...bob, reason: "disconnected", detail: "" },
    "unlinked from bob (2): we disconnected",
  ],
  [
    { event: "unlinked", ...bob, peer: null, reason: "connection-lost", detail: "it was reset" },
    "unlinked from bob (not in the room): the connection broke (it was reset)",
  ],
  [{ event: "waiting", for: "peer", text: "waiting for bob to join" }, "waiting for bob to join …"],
  [{ event: "said", ...bob, text: "hi" }, "<bob> hi"],
  [{ event: "sent", ...bob, rttMs: 2 }, "bob (2) has it after 2.0 ms"],
  [{ event: "pong", ...bob, rttMs: 3 }, "bob (2) answered after 3.0 ms"],
  [{ event: "echo", text: "x", rttMs: 4 }, "the introducer answered after 4.0 ms: x"],
  [{ event: "echo", text: "", rttMs: 4 }, "the introducer answered after 4.0 ms"],
  [{ event: "notice", text: "soon" }, "[introducer] soon"],
  [
    { event: "introducer", state: "lost", reason: "gone", retryInMs: 1234 },
    "introducer lost: gone; trying again in 1.2 s",
  ],
  [{ event: "introducer", state: "left", reason: "bye" }, "introducer left: bye"],
  [{ event: "error", message: "no" }, "error: no"],
])("%o is told", (event, text) => {
  expect(tell(event, plain)).toBe(text);
});

// --- the command line ------------------------------------------------------------------------------------

test.each([
  ["example.com", "example.com", defaultPort],
  ["example.com:8000", "example.com", 8000],
  ["192.0.2.1", "192.0.2.1", defaultPort],
  ["192.0.2.1:65535", "192.0.2.1", 65535],
  ["2001:DB8::1", "2001:db8::1", defaultPort],
  ["[2001:db8::1]", "2001:db8::1", defaultPort],
  ["[2001:db8::1]:1", "2001:db8::1", 1],
  ["::1", "::1", defaultPort],
])("%s is an introducer", (text, host, port) => {
  expect(readHostPort(text)).toEqual({ host, port });
});

test.each(["", " ", "a:0", "a:65536", "a:", ":7000", "a b", "a:x", "[::1", "1:2:3:4:5:6:7:8:9", "http://a"])(
  "%o is no introducer",
  (text) => {
    expect(() => readHostPort(text)).toThrow("is no introducer: give HOST");
  },
);

test("--help prints the usage on stdout", async () => {
  const { code, stdout, stderr } = await outcome(["--help"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toContain("Usage: bun run participant [HOST[:PORT]]");
  expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
});

test.each([
  ["an unknown option", ["--nonsense"], "--nonsense"],
  ["a name of two words", ["h", "--name", "two words"], "--name must be one word"],
  ["a number as a name", ["h", "--name", "12"], "--name must not be a number"],
  ["two introducers", ["one", "two"], "one introducer at a time, not one two"],
  ["a bad port", ["host:99999"], "port 1 to 65535"],
  ["no introducer and no terminal", [], "Give HOST[:PORT], or set INTRODUCER"],
])("wrong usage: %s", async (_, args, message) => {
  const { code, stdout, stderr } = await outcome(args);
  expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr).toContain("--help");
});

test("an introducer that can't be reached, from INTRODUCER, is one clear error", async () => {
  const { port, ...gone } = startIntroducer();
  await gone[Symbol.asyncDispose]();
  const { code, stdout, stderr } = await outcome(["--json"], { INTRODUCER: `127.0.0.1:${port}` });
  expect(code).toBe(1);
  expect(stderr).toBe(
    `error: cannot reach the introducer at 127.0.0.1:${port}: connection refused. Is it running ` +
      `(\`bun run introducer ${port}\`) and is that its address?\n`,
  );
  expect(JSON.parse(stdout)).toMatchObject({ event: "error" });
});

test("a file in place of the identity is a clear error", async () => {
  const { code, stderr } = await outcome(["127.0.0.1:1"], { XDG_STATE_HOME: program });
  expect(code).toBe(1);
  expect(stderr).toStartWith("error: ");
  expect(stderr).not.toContain("    at ");
});

test("a home that can't be written to is a warning", async () => {
  await using house = startIntroducer();
  const { code, stderr } = await outcome([`127.0.0.1:${house.port}`], { XDG_STATE_HOME: "/sys" });
  expect(code).toBe(0);
  expect(stderr).toStartWith("warning: cannot make /sys/tcp-hole-punching/identity.pem (E");
});

test("a mesh of programs that all connect to all at once has each link once", async () => {
  await using house = startIntroducer();
  const names = Array.from({ length: 8 }, (_, index) => `p${index}`);
  const programs = names.map((name) => new Driven(house.port, name));
  try {
    await met(...programs);
    for (const one of programs) {
      one.type(`connect ${names.filter((name) => name !== one.name).join(" ")}`, "echo");
    }
    await Promise.all(programs.map((one) => one.next("echo"))); // `connect` has ended for all
    await knownLinks(house.introducer, names.length, names.length - 1);
    for (const one of programs) {
      const told = [one.count("linked"), one.count("unlinked"), one.count("failed"), one.count("error")];
      expect([one.name, ...told]).toEqual([one.name, names.length - 1, 0, 0, 0]);
    }
  } finally {
    await Promise.all(programs.map((one) => one[Symbol.asyncDispose]()));
  }
}, 20_000);

// --- linking ---------------------------------------------------------------------------------------------

test("two participants meet, link, talk, part, link again and quit", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  const self = await alice.registered;
  expect(self).toMatchObject({ name: "alice", room: "lobby" });
  expect(self.private).toContain(self.public);
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);

  const [ours, theirs] = await link(alice, bob);
  expect([ours.route, theirs.route].filter((route) => route === "listen").length).toBeLessThan(2);
  expect([ours.local, ours.remote]).toEqual([theirs.remote, theirs.local]);
  expect(self.private).toContain(ours.local);

  alice.type("say bob hello   there", "PING bob", "h how far", "S");
  bob.type("f alice ça va? 日本");
  expect(await bob.next("said")).toMatchObject({ name: "alice", text: "hello   there" });
  expect(await alice.next("said")).toMatchObject({ name: "bob", text: "ça va? 日本" });
  expect((await alice.next("sent")).rttMs).toBeGreaterThan(0);
  expect((await alice.next("pong")).rttMs).toBeGreaterThan(0);
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
  await using alice = new Driven(house.port, "alice", "--room", "some words");
  await using first = new Driven(house.port, "twin", "--room", "some words");
  await met(alice, first);
  await using second = new Driven(house.port, "twin", "--room", "some words");
  const { name } = await second.registered;
  expect(name).toBe("twin-2");
  expect((await second.next("warning")).message).toBe(
    "twin is somebody else in this room: others call you twin-2 there",
  );
  await alice.next("joined", (event) => event.name === "twin-2");
  alice.type("connect twin-2", "connect twin");
  const linked = [await alice.next("linked"), await alice.next("linked")].map((event) => event.name);
  expect(linked).toEqual(["twin-2", "twin"]);
  second.type("whoami");
  second.type("say twin-2 hi");
  expect((await second.next("error")).message).toContain("that is yourself");
});

test("whoever was called otherwise comes back by that name, even when the one it wanted has become free", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using first = new Driven(house.port, "twin");
  await met(alice, first);
  await using second = new Driven(house.port, "twin");
  await second.registered;
  await link(alice, Object.assign(second, { name: "twin-2" }));
  first.endInput();
  await first.exited();
  second.type("leave", "join");
  expect((await second.next("registered")).name).toBe("twin-2");
  alice.type("say twin-2 still you");
  expect(await second.next("said")).toMatchObject({ text: "still you" });
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

// --- the prompt ------------------------------------------------------------------------------------------

test("on a terminal, what happens does not tear the line being typed", async () => {
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob");
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
  expect(told.map((part) => part.replace(/\r?\n[^]*/, ""))).toEqual([
    "punching towards bob (1), controlled, direct, round 1",
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

// --- the introducer comes and goes -----------------------------------------------------------------------

test("`leave` keeps the link, `join` makes it known again", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice");
  await using bob = new Driven(house.port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  alice.type("leave", "say bob still here", "list", "echo", "leave");
  await bob.next("left");
  expect(await bob.next("said")).toMatchObject({ text: "still here" });
  bob.type("say alice me too");
  expect(await alice.next("said")).toMatchObject({ text: "me too" });
  expect((await alice.next("peers")).peers).toMatchObject([{ name: "bob", state: "linked", present: false }]);
  expect((await alice.next("error")).message).toContain("`join` first");
  expect((await alice.next("error")).message).toContain("`join` comes back");
  alice.type("join");
  await alice.next("peers", ({ peers }) => peers[0]?.present === true);
  const { id } = await alice.next("registered");
  await bob.next("joined", ({ peer }) => peer === id);
  await knownLinks(house.introducer, 2);
  expect({ a: alice.count("linked"), b: bob.count("linked") }).toEqual({ a: 1, b: 1 });
});

/** Resolves once the introducer's list has so many participants that say they are linked. */
async function knownLinks(introducer: Introducer, count: number, each = 1): Promise<void> {
  while (introducer.participants.filter(({ linked }) => linked.length === each).length !== count)
    await Bun.sleep(5);
}

test("links outlive the introducer, and a new one hears of them", async () => {
  const first = startIntroducer();
  const { port } = first;
  await using alice = new Driven(port, "alice");
  await using bob = new Driven(port, "bob");
  await met(alice, bob);
  await link(alice, bob);
  await first[Symbol.asyncDispose]();
  await Promise.all([alice, bob].map((one) => one.next("introducer", ({ state }) => state === "lost")));
  alice.type("say bob without it");
  expect(await bob.next("said")).toMatchObject({ text: "without it" });
  bob.type("connect nobody");
  expect((await bob.next("error")).message).toContain("nobody");
  await using second = startIntroducer(port);
  await Promise.all([alice.next("registered"), bob.next("registered")]);
  await knownLinks(second.introducer, 2);
  alice.type("say bob with it");
  expect(await bob.next("said")).toMatchObject({ text: "with it" });
  expect({ a: alice.count("linked"), b: bob.count("linked") }).toEqual({ a: 1, b: 1 });
});

// --- the end ---------------------------------------------------------------------------------------------

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

// --- an introducer that means ill ------------------------------------------------------------------------

/** An introducer that answers whatever comes with these bytes, and hangs up on all but the last of the visits. */
function hostile(answer: () => string, visits = 1) {
  const server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      data: (socket) => {
        socket.write(answer());
        if (--visits > 0) socket.end();
      },
    },
  });
  return { port: server.port, [Symbol.dispose]: () => server.stop(true) };
}

test.each([
  ["another protocol", "HTTP/1.1 400 Bad Request\r\n\r\n", "not in the protocol"],
  ["a line without end", "x".repeat(maxLineBytes + 1), "not in the protocol"],
  ["a field of the wrong type", '{"type":"registered","id":"1"}\n', "not in the protocol"],
  [
    "a refusal",
    encode({ type: "refused", code: "limit", message: "full \x1b[2J" }),
    "refused: full \ufffd[2J",
  ],
  ["an end", encode({ type: "bye", reason: "maintenance" }), "maintenance"],
])("an introducer that says %s", async (_, bytes, message) => {
  using house = hostile(() => bytes);
  const { code, stdout, stderr } = await outcome([`127.0.0.1:${house.port}`]);
  expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
  expect(stderr).toContain(message);
  expect(stderr).not.toContain("    at ");
  expect(stderr).not.toContain("trying again"); // it does not
});

/** What an introducer says that answers no mapping probes. */
const noProbes = { probePorts: [], alternates: [] };

test("an introducer that is lost while we register is tried again", async () => {
  const hello: ToParticipant[] = [
    {
      type: "registered",
      id: 1,
      name: "alice",
      room: "r",
      public: at("127.0.0.1:4000"),
      private: [],
      ...noProbes,
    },
    { type: "peers", peers: [], more: false },
  ];
  const visits = [hello.map(encode).join(""), encode(hello[0]!), hello.map(encode).join("")];
  using house = hostile(() => visits.shift() ?? "", 3);
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  await alice.next("introducer", ({ state }) => state === "lost");
  await alice.next("registered");
  await alice.next("introducer", ({ state }) => state === "unreachable");
  await alice.next("registered");
  await alice.next("peers");
});

test("an introducer can't make us punch at our own host", async () => {
  let connections = 0;
  using victim = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { open: () => void connections++, data: () => {} },
  });
  const local = at(`127.0.0.1:${victim.port}`);
  const fields = { mapping: "unknown" as const, since: 0 };
  const peer = { id: 2, name: "eve", instance: "ab".repeat(8), fingerprint: "cd".repeat(32), ...fields };
  const lines: ToParticipant[] = [
    // We look as if we came from elsewhere, so loopback can't be the peer's.
    {
      type: "registered",
      id: 1,
      name: "alice",
      room: "r",
      public: at("203.0.113.1:4000"),
      private: [],
      ...noProbes,
    },
    { type: "peers", peers: [], more: false },
    {
      type: "punch",
      peer: { ...peer, private: [local, at("10.255.255.254:9999")], public: local },
      role: "controlled",
      token: "ef".repeat(16),
      startInMs: 0,
      way: "direct",
      round: 1,
      last: true,
      deadlineMs: 5_000,
    },
  ];
  using house = hostile(() => lines.map(encode).join(""));
  await using alice = new Driven(house.port, "alice", "--verbose");
  await alice.next("attempt", ({ remote }) => remote === "10.255.255.254:9999");
  alice.type("quit");
  await alice.exited();
  const remotes = alice.events.flatMap((event) => (event.event === "attempt" ? [event.remote] : []));
  expect({ connections, others: remotes.filter((remote) => remote !== "10.255.255.254:9999") }).toEqual({
    connections: 0,
    others: [],
  });
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

/** So many are linked two by two when their introducer ends, and have so long to be back at the next. */
const crowd = 12;
const backWithinMs = 10_000;

test.each([
  ["killed", "SIGKILL", null],
  ["ended in order", "SIGTERM", 0],
] as const)(
  "an introducer is %s and started again: links live, all come back, and everyone's id is told right",
  async (_, signal, exitCode) => {
    const port = freePort();
    const start = () => {
      const file = join(import.meta.dir, "..", "introducer.ts");
      const args = [String(port), "--host", "127.0.0.1", "--probe-ports", "none", "--json"];
      return Bun.spawn([process.execPath, file, ...args], { stdin: "pipe", stdout: "pipe" });
    };
    await using first = start();
    await first.stdout.getReader().read();
    await using everyone = new AsyncDisposableStack();
    const people = Array.from({ length: crowd }, (_, n) => everyone.use(new Driven(port, `person-${n}`)));
    await met(...people);
    const isEven = (_: unknown, n: number) => n % 2 === 0;
    await Promise.all(people.filter(isEven).map((one, n) => link(one, people[2 * n + 1]!)));
    const before = await Promise.all(people.map(async (one) => (await one.registered).id));
    first.kill(signal);
    await first.exited;
    expect(first.exitCode).toBe(exitCode);
    await Promise.all(people.map((one) => one.next("introducer")));
    await using second = start();
    const isAgain = (one: Driven) => (event: ParticipantEvent) => event !== one.events.find(isRegistered);
    const again = Promise.all(people.map((one) => one.next("registered", isAgain(one))));
    const back = await Promise.race([again, Bun.sleep(backWithinMs)]);
    if (!back) throw new Error(`somebody is not back after ${backWithinMs} ms`);
    const after = Object.fromEntries(back.map(({ name, id }) => [name, id]));
    expect(before.toSorted()).toEqual(Object.values(after).toSorted()); // so an old one is mostly another's now
    for (const one of people) {
      const others = people.filter((other) => other !== one).map(({ name }) => [name, after[name]]);
      let told: unknown[] = [];
      while (!Bun.deepEquals(told, others.toSorted())) {
        one.type("list");
        const { peers } = await one.next("peers");
        told = peers
          .filter(({ present }) => present)
          .map(({ name, id }) => [name, id])
          .toSorted();
      }
    }
    for (const [n, one] of people.entries()) {
      const other = people[isEven(one, n) ? n + 1 : n - 1]!;
      one.type(`say ${other.name} still here`);
      expect(await other.next("said")).toMatchObject({ name: one.name, text: "still here" });
    }
    expect(people.map((one) => one.count("unlinked"))).toEqual(people.map(() => 0));
    expect(second.exitCode).toBeNull();
  },
  40_000,
);

const isRegistered = ({ event }: ParticipantEvent) => event === "registered";

/** A port that is free now. */
