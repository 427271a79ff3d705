/** The operator's table. */
import { expect, setDefaultTimeout, test } from "bun:test";
import picocolors from "picocolors";
import { at, fingerprint, hash } from "../client-fixture.ts";
import { rendered } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

test("the table fits 80 columns, with the longest of everything and without colour", async () => {
  const some = {
    instance: hash("anna"),
    fingerprint,
    mapping: "unknown" as const,
    since: 0,
    linked: [2, 3, 4, 5, 6, 7, 8],
    links: [],
    punching: [12345, 12346],
  };
  const ipv4 = {
    private: [at("192.168.178.123:54321"), at("10.0.0.1:1")],
    public: at("203.113.113.123:54321"),
  };
  const ipv6 = at("[2001:db8:1234:5678:9abc:def0:1234:5678]:40000");
  const table = await rendered(
    [
      { id: 1, name: "anna", room: "lobby", ...some, ...ipv4 },
      {
        id: 99_999,
        name: "日".repeat(64),
        room: "a room ".repeat(18),
        ...some,
        private: [ipv6],
        public: ipv6,
      },
    ],
    picocolors.createColors(false),
    180_000,
  );
  expect(Math.max(...table.split("\n").map((line) => Bun.stringWidth(line)))).toBeLessThanOrEqual(80);
  expect(table).toMatch(/^[^\p{Cc}]*$/mu);
  for (const text of [
    "anna",
    "lobby",
    "192.168.178.123:54321",
    "203.113.113.123:54321",
    "+1",
    "12345",
    "3m",
  ]) {
    expect(table).toContain(text);
  }
});

test("a wide table has one line a participant; in a pipe nothing is cut", async () => {
  const one = {
    id: 1,
    name: "n".repeat(64),
    room: "a room ".repeat(18).trim(),
    instance: "ab".repeat(8),
    fingerprint: "cd".repeat(32),
    mapping: "endpoint-independent" as const,
    since: 0,
    linked: Array.from({ length: 9 }, (_, index) => index + 2),
    links: [],
    punching: [],
    private: [at("192.168.178.123:54321"), at("10.0.0.1:1")],
    public: at("203.113.113.123:54321"),
  };
  const show = (width: number) =>
    rendered([one, { ...one, id: 2 }], picocolors.createColors(false), 180_000, width);
  for (const width of [120, 160]) {
    const lines = (await show(width)).split("\n");
    expect(lines.length).toBe(4);
    expect(lines.filter((line) => Bun.stringWidth(line) > width)).toEqual([]);
    expect(lines[1]).toContain("endpoint-independent");
  }
  expect(await show(80)).toMatch(/endpoint-\s/);
  const piped = await show(Infinity);
  for (const text of [one.name, one.room, "192.168.178.123:54321, 10.0.0.1:1", "2, 3, 4, 5, 6, 7, 8, 9, 10"])
    expect(piped).toContain(text);
  expect(piped).toEndWith("2 participants in 1 room, 9 links");
});

test("the table tells which links are relayed, and how much has gone that way", async () => {
  const one = {
    id: 1,
    name: "anna",
    room: "lobby",
    instance: hash("anna"),
    fingerprint,
    mapping: "random" as const,
    since: 0,
    linked: [2, 3, 4],
    links: [
      { id: 2, route: "relay" as const, relayedBytes: 1_572_864 },
      { id: 3, route: "relay" as const },
      { id: 4, route: "public" as const },
    ],
    punching: [],
    private: [at("10.0.0.1:1")],
    public: at("203.113.113.123:54321"),
  };
  for (const width of [80, 160, Infinity]) {
    const table = await rendered([one], picocolors.createColors(false), 0, width);
    for (const text of ["2 relayed 1.5 MiB", "3 relayed 0 B"])
      expect(table.replace(/\s+/g, " ")).toContain(text);
    expect(table).toEndWith("1 participant in 1 room, 2 links, 1 relayed");
    const widest = Math.max(...table.split("\n").map((line) => Bun.stringWidth(line)));
    expect(widest).toBeLessThanOrEqual(width);
  }
});
