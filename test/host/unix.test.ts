/** Sockets at paths: whose they are, what they never replace, and what is left of them. */
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { close } from "../../native/host/libc.ts";
import { listenAtPath } from "../../native/host/unix.ts";
import { linuxDescribe } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

let folder: string;
beforeEach(() => void (folder = fs.mkdtempSync(join(tmpdir(), "unix-"))));
afterEach(() => fs.rmSync(folder, { recursive: true }));
const openDescriptors = () => fs.readdirSync("/proc/self/fd").length;

/** As a program that is killed leaves it: nobody listens, and the file stays. */
function leaveDead(path: string): void {
  const { taken } = listenAtPath(path, (fd) => fd);
  close(taken);
}

const codeOf = (path: string): string => {
  try {
    const { taken, remove } = listenAtPath(path, (fd) => fd);
    close(taken);
    remove();
    return "made";
  } catch (error) {
    return (error as { code?: string }).code ?? (error as Error).message;
  }
};

linuxDescribe("a socket at a path", () => {
  test("is its owner's alone, whatever umask says, and gone at the end", () => {
    const before = process.umask(0);
    const path = join(folder, "s");
    const { taken, remove } = listenAtPath(path, (fd) => fd);
    process.umask(before);
    const { mode } = fs.lstatSync(path);
    expect([fs.lstatSync(path).isSocket(), (mode & 0o7777).toString(8)]).toEqual([true, "600"]);
    close(taken);
    remove();
    expect(fs.readdirSync(folder)).toEqual([]);
  });

  test("never takes the place of anything", () => {
    const path = (name: string) => join(folder, name);
    fs.writeFileSync(path("file"), "precious");
    fs.mkdirSync(path("folder"));
    fs.symlinkSync(path("file"), path("link"));
    fs.symlinkSync(path("nowhere"), path("dangling"));
    using live = Bun.listen({ unix: path("live"), socket: { data() {} } });
    leaveDead(path("dead"));
    fs.symlinkSync(path("dead"), path("link-to-dead"));
    const before = openDescriptors();
    for (const name of ["file", "folder", "link", "dangling", "live", "link-to-dead"])
      expect([name, codeOf(path(name))]).toEqual([name, "EADDRINUSE"]);
    expect(codeOf(path("none/s"))).toBe("ENOENT");
    expect(codeOf(path("file/s"))).toBe("ENOTDIR");
    expect(codeOf(path("x".repeat(81)))).toBe("its name has at most 80 bytes, not 81");
    expect(openDescriptors()).toBe(before);
    expect(fs.readFileSync(path("file"), "utf8")).toBe("precious");
    expect(fs.readdirSync(folder).sort()).toEqual(
      ["dangling", "dead", "file", "folder", "link", "link-to-dead", "live"].sort(),
    );
    expect(live.unix).toBe(path("live"));
  });

  test("takes the place of one of ours at which nobody listens", () => {
    const path = join(folder, "s");
    leaveDead(path);
    expect(codeOf(path)).toBe("made");
    expect(fs.existsSync(path)).toBe(false);
  });

  test("is not removed if something else is there by then", () => {
    const path = join(folder, "s");
    const { taken, remove } = listenAtPath(path, (fd) => fd);
    fs.renameSync(path, join(folder, "moved"));
    fs.writeFileSync(path, "somebody else's");
    close(taken);
    remove();
    expect(fs.readFileSync(path, "utf8")).toBe("somebody else's");
  });

  test("is removed where it was made, also if the way there leads elsewhere by then", () => {
    const [way, elsewhere] = [join(folder, "way"), join(folder, "elsewhere")];
    for (const one of [way, elsewhere]) fs.mkdirSync(one);
    leaveDead(join(elsewhere, "s"));
    const { taken, remove } = listenAtPath(join(way, "s"), (fd) => fd);
    fs.renameSync(way, join(folder, "was-way"));
    fs.symlinkSync(elsewhere, way);
    close(taken);
    remove();
    expect(fs.readdirSync(join(folder, "was-way"))).toEqual([]);
    expect(fs.readdirSync(elsewhere)).toEqual(["s"]);
  });

  test("leaves nothing behind if its taker throws", () => {
    const before = openDescriptors();
    const take = () => {
      throw new Error("no");
    };
    expect(() => listenAtPath(join(folder, "s"), take)).toThrow("no");
    expect([openDescriptors(), fs.readdirSync(folder)]).toEqual([before, []]);
  });
});
