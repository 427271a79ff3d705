/** Names bound to the certificate that was seen first, in a file that several programs share, and that may be any bytes. */
import { afterAll, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { StateError } from "../../native/host/state.ts";
import { KnownPeers } from "../../native/secure/known-peers.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const base = mkdtempSync(join(tmpdir(), "known-peers-"));
afterAll(() => rmSync(base, { recursive: true }));
let count = 0;
let folder = "";
let file = "";
let warnings: string[] = [];
beforeEach(() => {
  folder = join(base, String(count++), "state");
  file = join(folder, "known-peers");
  warnings = [];
});

const known = (room = "a room"): KnownPeers => {
  const one = new KnownPeers((message) => void warnings.push(message), folder);
  one.room = room;
  return one;
};
const [first, other, third] = ["11", "22", "33"].map((byte) => byte.repeat(32)) as [string, string, string];
const alice = { name: "alice", fingerprint: first };
const mallory = { name: "alice", fingerprint: other };

function refusal(): string {
  try {
    known();
    return "not refused";
  } catch (error) {
    if (!(error instanceof StateError)) throw error;
    return error.message;
  }
}

test("the first certificate of a name is the one, for the next program, too; a changed one is told with both", () => {
  expect([known().distrust(alice), known().meet(alice)]).toEqual([undefined, true]);
  const next = known();
  expect([next.distrust(alice), next.meet(alice), next.meet(mallory)]).toEqual([undefined, true, false]);
  const doubt = `its certificate is another one than was seen first: SHA256:${other}, and not SHA256:${first}; if alice says that this is right, \`forget alice\` (${file})`;
  expect(next.distrust(mallory)).toBe(doubt);
  next.distrust(mallory);
  expect(warnings).toEqual([`alice is not let in: ${doubt}`]); // once
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(readFileSync(file, "utf8")).not.toContain("a room");
});

test("who looks like a known name is no other one, and in another room nobody is known", () => {
  known().meet(alice);
  for (const name of ["Alice", "ALICE", "\u0430lice", "a\u200blice"])
    expect(known().distrust({ name, fingerprint: other })).toContain("another one than was seen first");
  expect(known().distrust({ name: "alice-2", fingerprint: other })).toBeUndefined();
  expect(known("another room").distrust(mallory)).toBeUndefined();
});

test("what is forgotten is bound anew", () => {
  const one = known();
  expect([one.forget("alice"), one.meet(alice), one.forget("ALICE")]).toEqual([false, true, true]);
  expect([one.distrust(mallory), one.meet(mallory), one.meet(alice)]).toEqual([undefined, true, false]);
  expect(known().fingerprintOf("alice")).toBe(other);
});

test("of two programs that bind a name at once, the first counts for both", () => {
  const [one, two] = [known(), known()];
  expect([one.fingerprintOf("alice"), two.fingerprintOf("alice")]).toEqual([undefined, undefined]);
  expect([one.meet(alice), two.meet(mallory)]).toEqual([true, false]);
  // As if both had looked before either wrote.
  appendFileSync(file, readFileSync(file, "utf8").replace(first, third));
  expect([one, two, known()].map((each) => each.fingerprintOf("alice"))).toEqual([first, first, first]);
  expect(two.forget("alice")).toBe(true);
  expect(one.fingerprintOf("alice")).toBeUndefined();
});

test.each([
  ["cut in a line", (whole: string) => whole.slice(0, -20), "line 2"],
  ["of bytes", () => "\u0000\u0001\n", "line 1"],
  ["with a name that nobody can have", (whole: string) => whole.replace("bob", "12"), "line 2"],
  ["with a fingerprint of another kind", (whole: string) => whole.replaceAll(first, "MD5:x"), "line 1"],
  ["too long", () => "x".repeat(1024 * 1024 + 1), "too many"],
])("a file %s is refused at the start, and never taken for one that binds nobody", (_, damage, says) => {
  known().meet(alice);
  known().meet({ ...alice, name: "bob" });
  writeFileSync(file, damage(readFileSync(file, "utf8")));
  const before = readFileSync(file, "utf8");
  expect(refusal()).toContain(file);
  expect(refusal()).toContain(says);
  expect(readFileSync(file, "utf8")).toBe(before);
});

linuxTest(
  "a link, a folder that others can write to, and one that can't be written are refused at the start",
  () => {
    known().meet(alice);
    const moved = join(folder, "moved");
    renameSync(file, moved);
    symlinkSync(moved, file);
    expect(refusal()).toContain("symbolic link");
    rmSync(file);
    renameSync(moved, file);
    chmodSync(folder, 0o777);
    expect(refusal()).toContain("chmod 700");
    chmodSync(folder, 0o700);
    folder = "/sys/tcp-hole-punching-test";
    expect(refusal()).toContain("set XDG_STATE_HOME");
  },
);

test("what happens to the file later sets no name free", () => {
  const one = known();
  one.meet(alice);
  renameSync(file, `${file}-moved`);
  mkdirSync(file);
  expect([one.fingerprintOf("alice"), one.meet({ name: "bob", fingerprint: third })]).toEqual([first, false]);
  expect(one.distrust(mallory)).toContain("another one");
  expect(warnings[0]).toBe(
    `${file} is a folder, not a file; move it away. Until then what was remembered before holds`,
  );
});
