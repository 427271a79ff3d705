/** Files in the state folder: whoever else can change one, or put another in its place, does not have it read or written. */
import { afterAll, expect, setDefaultTimeout } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from "node:fs";
import { symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { orNone, StateError, StateFile } from "../../native/host/state.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const base = mkdtempSync(join(tmpdir(), "state-"));
afterAll(() => rmSync(base, { recursive: true }));

function refusal(use: () => unknown): string {
  try {
    return `not refused: ${use()}`;
  } catch (error) {
    if (!(error instanceof StateError)) throw error;
    return error.message;
  }
}

const text = "x".repeat(10);
/** What is in the file's place, and what is said of it. */
const places: [what: string, says: string, make: (file: string) => void][] = [
  [
    "a link",
    "symbolic link",
    (file) => (writeFileSync(`${file}-other`, text, { mode: 0o600 }), symlinkSync(`${file}-other`, file)),
  ],
  ["a FIFO", "no regular file", (file) => Bun.spawnSync(["mkfifo", "-m", "600", file])],
  ["a folder", "folder", (file) => mkdirSync(file, { mode: 0o700 })],
  ["too long", "too many", (file) => writeFileSync(file, "y".repeat(101), { mode: 0o600 })],
  ["readable for others", "chmod 600", (file) => writeFileSync(file, text, { mode: 0o604 })],
];

linuxTest.each(places)("%s is neither read nor added to, and stays", (what, says, make) => {
  const folder = join(base, what.replaceAll(" ", "-"));
  mkdirSync(folder, { mode: 0o700 });
  const file = new StateFile(folder, "file", 100);
  make(file.path);
  const before = statSync(file.path).size;
  // Opening a FIFO to write, which nobody reads, fails before it is looked at.
  for (const use of [() => file.read(), () => file.append("more")])
    expect(refusal(use)).toMatch(what === "a FIFO" ? /no regular file|ENXIO/ : says);
  expect(orNone(() => file.read())).toBeUndefined();
  expect(statSync(file.path).size).toBe(before);
});

linuxTest("in a folder that others can write to nothing is read or added", () => {
  const folder = join(base, "shared");
  mkdirSync(folder);
  const file = new StateFile(folder, "file", 100);
  file.append("one\n");
  chmodSync(folder, 0o777);
  expect(refusal(() => file.read())).toContain("chmod 700");
  expect(refusal(() => file.append("two\n"))).toContain("chmod 700");
  chmodSync(folder, 0o700);
  expect(file.read()).toBe("one\n");
});

linuxTest("what is made is ours alone, the first to create it wins, and no draft is left", () => {
  const folder = join(base, "new", "folder");
  const file = new StateFile(folder, "file", 100);
  expect(file.read()).toBeUndefined();
  const umask = process.umask(0);
  file.create("first");
  process.umask(umask);
  file.create("second");
  expect(readFileSync(file.path, "utf8")).toBe("first");
  file.replace("third");
  file.append(" and more");
  expect(file.read()).toBe("third and more");
  expect([statSync(folder).mode & 0o777, statSync(file.path).mode & 0o777]).toEqual([0o700, 0o600]);
  expect(readdirSync(folder)).toEqual(["file"]);
});
