/** Folders by their descriptors, while others exchange what their paths lead to. */
import { afterAll, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Folder, type Hold, withName } from "../../native/uses/folder.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const place = fs.mkdtempSync(join(tmpdir(), "folder-"));
afterAll(() => fs.rmSync(place, { recursive: true, force: true }));
let count = 0;
let path: string;
beforeEach(() => fs.mkdirSync((path = join(place, String(++count)))));

const openFolders = () =>
  fs.readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(place);
    } catch {
      return false; // the descriptor that readdir itself used
    }
  });

/** As where a folder can't be had by its descriptor. */
const byPath: Hold = (_, path) => path;

describe.each<[string, Hold | undefined]>([
  ["by descriptor", undefined],
  ["by path", byPath],
])("%s", (_, hold) => {
  test("what lacks is made, what is there is entered, and no descriptor is left", async () => {
    {
      await using root = await Folder.open(path, hold);
      expect(await root.walk(["a", "b"], false)).toBeUndefined();
      await using made = await root.walk(["a", "b"], true);
      await using found = await root.walk(["a", "b"], false);
      fs.writeFileSync(found!.at("file"), "x");
      expect([await made!.id(), fs.readdirSync(join(path, "a/b"))]).toEqual([await found!.id(), ["file"]]);
    }
    if (process.platform === "linux") expect(openFolders()).toEqual([]);
  });

  test("a link and a file are no folders, whatever they lead to", async () => {
    await using root = await Folder.open(path, hold);
    fs.mkdirSync(join(path, "real"));
    fs.symlinkSync("real", join(path, "link"));
    fs.writeFileSync(join(path, "file"), "");
    for (const makes of [false, true]) {
      for (const [name, reason] of [
        ["link", "link is a symbolic link"],
        ["file", "file is not a folder"],
      ])
        await expect(root.walk([name!, "x"], makes)).rejects.toThrow(reason!);
    }
    expect(fs.readdirSync(join(path, "real"))).toEqual([]);
  });

  test("a new one has a name that nothing has", async () => {
    await using root = await Folder.open(path, hold);
    fs.writeFileSync(join(path, "a"), "");
    fs.symlinkSync("/nowhere", join(path, "a (2)"));
    const names = [await root.makeNew("a"), await root.makeNew("a"), await root.makeNew("b.c")];
    expect(names).toEqual(["a (3)", "a (4)", "b.c"]);
  });

  test("a free number is found without trying all", async () => {
    await using root = await Folder.open(path, hold);
    for (let number = 1; number <= 300; number++) fs.writeFileSync(join(path, String(number)), "");
    let tried = 0;
    const named = (number: number) => (tried++, String(number));
    expect([await root.nextFree(named, 1), tried]).toEqual([301, expect.any(Number)]);
    expect(tried).toBeLessThan(30);
    expect(await root.nextFree((number) => (number < 9_999 ? "1" : "9999"), 1)).toBe(9_999);
    expect(await root.nextFree(() => "1", 1)).toBe(10_000); // none
  });
});

test("what is done in it is done in it, though its path leads elsewhere by now", async () => {
  const outside = join(path, "outside");
  fs.mkdirSync(outside);
  fs.mkdirSync(join(path, "in"));
  await using folder = await Folder.open(join(path, "in"));
  await using below = await folder.walk(["below"], true);
  for (const name of ["in/below", "in"]) {
    fs.renameSync(join(path, name), join(path, `${name}-moved`));
    fs.symlinkSync(outside, join(path, name));
  }
  fs.writeFileSync(below!.at("file"), "x");
  await using deeper = await below!.walk(["deeper"], true);
  fs.writeFileSync(deeper!.at("file"), "x");
  expect(fs.readdirSync(outside)).toEqual([]);
  const found = fs.readdirSync(join(path, "in-moved/below-moved"), { recursive: true }).sort();
  expect(found).toEqual(["deeper", "deeper/file", "file"]);
});

test("a name that the disk does not take becomes a portable one, and no other error does that", async () => {
  const disk = (code: string) => async (name: string) => {
    if (/[:?]|[. ]$/.test(name)) throw Object.assign(new Error(code), { code });
    return name;
  };
  expect(await withName("10:30?.log", disk("EINVAL"))).toBe("10_30_.log");
  expect(await withName("end. ", disk("EINVAL"))).toBe("end._");
  expect(await withName("plain", disk("EINVAL"))).toBe("plain");
  expect(withName("10:30", disk("EACCES"))).rejects.toThrow("EACCES");
});
