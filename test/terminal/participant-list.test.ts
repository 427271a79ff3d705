/** What the participant shows: the list, `nat`, and what happens. */
import { expect, setDefaultTimeout, test } from "bun:test";
import pc from "picocolors";
import type { PeerRow } from "../../native/participant/peer-events.ts";
import { renderNat } from "../../native/terminal/participant-nat.ts";
import { describe } from "../../native/terminal/participant-story.ts";
import { renderDetails, renderForwards, renderList } from "../../native/terminal/participant-list.ts";
import type { NatReport, ParticipantEvent } from "../../native/participant/events.ts";
import type { Endpoint } from "../../protocol.ts";
import { at } from "../participant/participant-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const plain = pc.createColors(false);

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

test("in 40 columns a peer is a block of lines, none of them cut", async () => {
  const shown = await list([linked, { ...known, id: 3, name: "👨‍👩‍👧‍👦".repeat(30) }], 40, plain);
  expect(shown).toMatchInlineSnapshot(`
    "● linked
      id 2
      name bob@home
      192.168.1.20:40000
      203.0.113.7:40000
      link public 12.3 ms 1m
      192.168.1.20:50000
      → 203.0.113.7:40000
      in 1.5 kB out 2.0 MB
    ○ known
      id 3
      name 👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦
      👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦👨‍👩‍👧‍👦
      192.168.1.20:40000
      203.0.113.7:40000
    2 peers: 1 linked, 1 known"
  `);
  expect(shown.split("\n").filter((line) => Bun.stringWidth(line) > 40)).toEqual([]);
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
  probes: [at("192.0.2.1:7001"), at("192.0.2.1:7002")],
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

test("`nat` says what it could not measure, and which ports may be blocked", () => {
  const shown = renderNat({ ...report, mapping: "unknown", scope: "global", isTranslated: true }, plain);
  expect(shown).toContain(
    "nothing answers at 192.0.2.1:7001, 192.0.2.1:7002. Does a firewall block these ports?",
  );
  expect(shown).toMatch(/hairpinning +can't tell\n/);
  expect(shown).toMatch(/no NAT +can't tell, since the mapping was not measured/);
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
    ...events.map((event) => describe(event, plain)),
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
    `registered as al (1) in room lobby, which is open to everyone: all there see these addresses\n  private 192.168.1.20:40000, ${longest}\n  public  203.0.113.7:40000`,
  ],
  [{ event: "peers", peers: [] }, "Nobody else is here yet."],
  [{ event: "peers", peers: [known] }, "here: bob@home (2). `connect bob@home` punches a hole"],
  [{ event: "peers", peers: [linked] }, "here: bob@home (2)"],
  [
    { event: "peers", peers: [known, { ...known, id: 3 }] },
    "here: bob@home (2), bob@home (3). `connect 2` punches a hole",
  ],
  [
    { event: "joined", ...bob, private: [], public: known.public, mapping: "unknown" },
    "bob (2) joined from 203.0.113.7:40000",
  ],
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
    { event: "postponed", ...bob, retryInMs: 12_345, reason: "60 are enough: wait 12 s" },
    "waiting 12 s before asking for bob (2) again: 60 are enough: wait 12 s",
  ],
  [
    { event: "failed", ...bob, reason: "no-candidate-answered", detail: "public 1.2.3.4:5: 7 attempts" },
    "failed to link with bob (2): none of the peer's endpoints answered (no-candidate-answered)\n  public 1.2.3.4:5: 7 attempts; a firewall may be in the way; `nat` tells what kind of NAT each of you is behind",
  ],
  [
    { event: "unlinked", ...bob, reason: "disconnected", detail: "" },
    "unlinked from bob (2): we disconnected",
  ],
  [
    { event: "unlinked", ...bob, peer: null, reason: "connection-lost", detail: "it was reset" },
    "unlinked from bob (not in the room): the connection broke, and no other one came about (it was reset)",
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
  expect(describe(event, plain)).toBe(text);
});

test("forwards show datagrams and drops where one is of UDP, and only there", () => {
  const tcp = { peer: "bob", open: 1, total: 2, bytesIn: 1_500, bytesOut: 2_000 };
  const web = { ...tcp, listen: "127.0.0.1:8080", target: "localhost:80" };
  const udp = { packetsIn: 118, packetsOut: 120, dropped: 3 };
  const game = { ...tcp, ...udp, listen: "127.0.0.1:27015/udp", target: "localhost:27015/udp" };
  const lines = (forwards: Parameters<typeof renderForwards>[0]) =>
    renderForwards(forwards, Infinity)
      .split("\n")
      .map((line) => line.trim());
  const heads = "listen peer target open total in out";
  const [head = "", row = ""] = lines([web]);
  expect(head.replaceAll(/ +/g, " ")).toBe(heads);
  expect(row).not.toContain("118");
  const [both = "", first = "", second = ""] = lines([web, game]);
  expect(both.replaceAll(/ +/g, " ")).toBe(`${heads} packets dropped`);
  expect(first.replaceAll(/ +/g, " ")).toBe(row.replaceAll(/ +/g, " "));
  expect(second).toMatch(/in 118 out 120 +3$/);
});
