/** What is remembered of networks: a guess for the same one, in a file that nobody else reads, and that may be any bytes. */
import { afterAll, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Networks } from "../../native/participant/networks.ts";
import type { MappingBehaviour } from "../../native/punch/mapping.ts";
import type { Endpoint } from "../../protocol.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const base = mkdtempSync(join(tmpdir(), "networks-"));
afterAll(() => rmSync(base, { recursive: true }));
let count = 0;
let folder = "";
let file = "";
beforeEach(() => {
  folder = join(base, String(count++), "state");
  file = join(folder, "networks.json");
});

const at = (localAddress: string, remote = "203.0.113.1:7000") => ({
  localAddress,
  remote: remote as Endpoint,
});
const home = at("192.168.1.5");
const sequential: MappingBehaviour = {
  mapping: "sequential",
  step: 2,
  isPreserved: false,
  dependsOn: "port",
};
const kept: MappingBehaviour = {
  mapping: "endpoint-independent",
  step: 0,
  isPreserved: true,
  dependsOn: "unknown",
};

test("what was measured at a network is the guess there, for the next program, too, and nowhere else", () => {
  new Networks(folder).learn(home, sequential);
  const next = new Networks(folder);
  expect(next.guess(home)).toEqual(sequential);
  expect(next.guess(at("192.168.1.5", "203.0.113.1:7001"))).toEqual(sequential); // the same introducer
  expect(next.guess(at("192.168.1.6"))).toBeUndefined();
  expect(next.guess(at("192.168.1.5", "203.0.113.2:7000"))).toBeUndefined();
  next.learn(home, kept);
  expect(new Networks(folder).guess(home)).toEqual(kept);
});

test("what could not be measured is not learnt", () => {
  const networks = new Networks(folder);
  networks.learn(home, { ...kept, mapping: "unknown" });
  expect(existsSync(file)).toBe(false);
});

test("the file is our own alone, says nothing of where we were, and is bounded", () => {
  const networks = new Networks(folder);
  for (let one = 0; one < 100; one++) networks.learn(at(`10.0.0.${one}`), sequential);
  expect([statSync(file).mode & 0o777, statSync(folder).mode & 0o777]).toEqual([0o600, 0o700]);
  expect(readFileSync(file, "utf8")).not.toMatch(/10\.0\.0|203\.0\.113/);
  expect([networks.guess(at("10.0.0.99")), networks.guess(at("10.0.0.0"))]).toEqual([sequential, undefined]);
  expect(JSON.parse(readFileSync(file, "utf8")).networks).toHaveLength(64);
  expect(readdirSync(folder)).toEqual(["networks.json"]);
});

const entry = { network: "x", ...sequential };
test.each([
  ["nothing", ""],
  ["no JSON", "{"],
  ["null", "null"],
  ["another version", JSON.stringify({ version: 2, networks: [] })],
  ["no list", JSON.stringify({ version: 1, networks: {} })],
  [
    "entries of all kinds",
    JSON.stringify({ version: 1, networks: [null, 7, [], {}, { ...entry, step: 1e9 }] }),
  ],
  ["too long", JSON.stringify({ version: 1, networks: [], rest: "x".repeat(100_000) })],
  ["bytes", "\u0000\uffff".repeat(99)],
])("a file with %s is none, and is written anew", (_, text) => {
  mkdirSync(folder, { recursive: true });
  writeFileSync(file, text, { mode: 0o600 });
  const networks = new Networks(folder);
  expect(networks.guess(home)).toBeUndefined();
  networks.learn(home, sequential);
  expect(networks.guess(home)).toEqual(sequential);
});

test("a link in its place is replaced, and what it leads to stays", () => {
  mkdirSync(folder, { recursive: true });
  const other = join(folder, "other");
  writeFileSync(other, "mine");
  symlinkSync(other, file);
  new Networks(folder).learn(home, sequential);
  expect([readFileSync(other, "utf8"), new Networks(folder).guess(home)]).toEqual(["mine", sequential]);
  rmSync(other);
  renameSync(file, other);
  symlinkSync(other, file);
  expect(new Networks(folder).guess(home)).toBeUndefined();
});

test("where nothing can be kept, nothing is, and nothing fails", () => {
  const places = ["/dev/null/state", "/proc/1/state", join(base, "not\0possible")];
  mkdirSync(folder, { recursive: true });
  chmodSync(folder, 0o500);
  for (const place of [...places, ...(process.geteuid?.() === 0 ? [] : [folder])]) {
    const networks = new Networks(place);
    networks.learn(home, sequential);
    expect(networks.guess(home)).toBeUndefined();
  }
});
