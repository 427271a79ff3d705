/** Transfers between real programs: what both sides say when they end early, wait, lack room, or leave something out. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { newFolders, writeIn } from "./folders-fixture.ts";
import { Driven, homeOf, outcome, program, spawn, startIntroducer } from "./driven-fixture.ts";
import { until } from "./native-fixture.ts";
import { missing, testNeeding } from "./needing-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(3);
const room = ["--room", "of the tests of transfers"];
setDefaultTimeout(testMs);

const { place, fresh } = newFolders("transfers-real-");

/** So that it is still under way when the test has seen that it is. */
const slowly = ["--limit", "10M"];
const bigBytes = 24_000_000;

/** The folders of one test, and what it has of them. */
function folders() {
  const { source, target } = fresh();
  const write = (path: string, content: string | Uint8Array): string => writeIn(source, path, content);
  /** A file that takes no room here. */
  const sparse = (bytes = bigBytes): string => {
    const path = write("big", "");
    fs.truncateSync(path, bytes);
    return path;
  };
  const part = () => fs.readdirSync(target).find((name) => name.endsWith(".part"));
  /** How much of a file has come. */
  const there = () => fs.statSync(join(target, part() ?? "none"), { throwIfNoEntry: false })?.size ?? 0;
  const isPart = () => until("a part is there", () => there() > 2_000_000);
  return { source, target, write, sparse, part, there, isPart };
}

const share = (left: { bytesThere: number; bytes: number }) => left.bytesThere / left.bytes;
const send = (...paths: string[]) => ["--connect", "bob", ...paths.flatMap((path) => ["--send", path])];

/** A program that tells its story, and whose story can be waited for. */
function telling(port: number, name: string, ...options: string[]) {
  const args = [`127.0.0.1:${port}`, "--name", name, ...room, ...options];
  const child = spawn(args, { XDG_STATE_HOME: homeOf(name), NO_COLOR: "1" });
  let story = "";
  void (async () => {
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) story += text;
  })();
  const shows = async (text: string | RegExp) => {
    const isThere = () => (typeof text === "string" ? story.includes(text) : text.test(story));
    await until(String(text), isThere).catch((error) => {
      throw new Error(`${String(error)} in\n${story}`);
    });
    return story;
  };
  return Object.assign(child, { shows });
}

describe("who cancels says the same on both sides, and the same command goes on", () => {
  test.each([
    ["alice", "SIGINT", 130],
    ["alice", "SIGHUP", 129],
    ["bob", "SIGINT", 0],
    ["bob", "cancel", undefined],
  ] as const)("%s by %s", async (who, how, code) => {
    const { target, sparse, part, there, isPart } = folders();
    await using house = startIntroducer();
    const path = sparse();
    const sending = (...how: string[]) =>
      new Driven(house.port, "alice", ...room, ...send(path), "--stay", ...how);
    const receiving = () => new Driven(house.port, "bob", ...room, "--accept", target);
    const all = { alice: sending(...slowly), bob: receiving() };
    try {
      await isPart();
      if (how !== "cancel") all[who].signal(how);
      else all[who].type("cancel 99", "cancel");
      const [told, heard] = [
        await all.alice.next("transfer-cancelled"),
        await all.bob.next("transfer-cancelled"),
      ];
      expect([told.bytesThere, heard.keptAs]).toEqual([heard.bytesThere, part()!]);
      expect(there()).toBe(heard.bytesThere);
      expect([told.by, heard.by]).toEqual(who === "alice" ? ["us", "peer"] : ["peer", "us"]);
      if (how !== "cancel") expect(await all[who].exited()).toBe(code!);
      else
        expect((await all[who].next("error")).message).toMatch(
          /^there is no transfer 99; under way: \d+ \(big\)$/,
        );
      expect(share(told)).toBeLessThan(1);
      for (const one of [all.alice, all.bob]) expect(one.count("transfer-failed")).toBe(0);
      expect(
        all.bob.events.filter((one) => one.event === "unlinked" && one.reason === "protocol-error"),
      ).toEqual([]);
      const before = there();
      await Promise.all(Object.values(all).map((one) => one[Symbol.asyncDispose]()));
      fs.truncateSync(path, bigBytes);
      [all.bob, all.alice] = [receiving(), sending()];
      const { bytes, bytesMoved } = await all.alice.next("transferred");
      expect([bytes, bytes - bytesMoved]).toEqual([bigBytes, before]);
      expect(fs.readdirSync(target)).toEqual(["big"]);
    } finally {
      await Promise.all(Object.values(all).map((one) => one[Symbol.asyncDispose]()));
    }
  });

  test("at a prompt's command, of the one that is sending", async () => {
    const { target, sparse, isPart } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    await bob.registered;
    await using alice = telling(house.port, "alice", ...send(sparse()), ...slowly);
    await alice.shows("sending big, 24.0 MB, to bob");
    await isPart();
    alice.kill("SIGINT");
    const { bytesThere, bytes } = await bob.next("transfer-cancelled");
    const percent = Math.floor((bytesThere / bytes) * 100);
    expect(await alice.exited).toBe(130);
    await alice.shows(`cancelled big; the same command goes on at ${percent} %`);
  });
});

test("what is left out is told before, and is no failure", async () => {
  const { source, target, write } = folders();
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
  await bob.registered;
  write("tree/file", "x");
  fs.mkdirSync(join(source, "tree/empty"));
  for (let index = 0; index < 14; index++)
    fs.symlinkSync("/etc/hostname", join(source, `tree/out ${String(index).padStart(2, "0")}`));
  fs.writeFileSync(Buffer.concat([Buffer.from(`${source}/tree/`), Buffer.from([0xff, 0x61])]), "no UTF-8");
  expect(Bun.spawnSync(["mkfifo", join(source, "tree/pipe")]).exitCode).toBe(0);
  await using alice = new Driven(house.port, "alice", ...room, ...send(join(source, "tree")));
  const { skipped, what } = await alice.next("skipped");
  expect(await alice.exited()).toBe(0);
  const kinds = alice.events.map(({ event }) => event);
  expect(kinds.indexOf("skipped")).toBeLessThan(kinds.indexOf("transferring"));
  expect([what, skipped.length]).toEqual(["tree", 16]);
  expect(skipped.map(({ reason }) => reason)).toContain("its name is no UTF-8");
  expect(skipped.find(({ path }) => path === "tree/pipe")?.reason).toBe("it is a named pipe");
  expect(await bob.next("transferred")).toMatchObject({ files: 1, failed: 0 });
  expect(fs.readdirSync(join(target, "tree")).sort()).toEqual(["empty", "file"]);
  const args = [`127.0.0.1:${house.port}`, "--name", "carol", ...room, "-q", ...send(join(source, "tree"))];
  const { code, stderr } = await outcome(args, { XDG_STATE_HOME: homeOf("carol"), NO_COLOR: "1" });
  expect([code, stderr]).toEqual([
    0,
    expect.stringMatching(/^not sent of tree:\n(  tree\/.*\n){10}  and 6 more\n$/),
  ]);
});

test.each([
  [["missing"], /missing: it is not there/],
  [["link"], /^error: nothing to send: link: it is a link that leads out, to \/etc\/hostname/],
])("%j is looked at before anything else", async (names, reason) => {
  const { source } = folders();
  fs.symlinkSync("/etc/hostname", join(source, "link"));
  const { code, stderr } = await outcome(
    ["127.0.0.1:1", ...room, ...send(...names.map((name) => join(source, name)))],
    { NO_COLOR: "1" },
  );
  expect([code, stderr]).toEqual([1, expect.stringMatching(reason)]);
});

describe("where nobody has accepted yet", () => {
  test("that is said, with -q, too", async () => {
    const { target, write } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await using alice = telling(house.port, "alice", "-q", ...send(write("photo", "x")));
    const { offer } = await bob.next("offered");
    expect(await alice.shows("photo")).toBe("waiting for bob to accept photo, 1 B\n");
    bob.type(`accept ${offer} ${join(target, "new/folder")}`);
    expect(await alice.exited).toBe(0);
    expect(fs.readdirSync(join(target, "new/folder"))).toEqual(["photo"]);
  });

  test("and nobody can any more, it is refused at once", async () => {
    const { write } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await using alice = new Driven(house.port, "alice", ...room, ...send(write("photo", "x")), "--stay");
    await bob.next("offered");
    bob.endInput();
    const refusal = { by: "peer", refused: true, reason: "nobody is there to accept it (--accept DIR)" };
    expect(await alice.next("transfer-failed")).toMatchObject(refusal);
    await using carol = new Driven(house.port, "carol", ...room, ...send(write("photo", "x")));
    expect(await carol.next("transfer-failed")).toMatchObject(refusal);
    expect(await carol.exited()).toBe(1);
  });

  test("it can be taken back, and the other side is told", async () => {
    const { write } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await using alice = new Driven(house.port, "alice", ...room, ...send(write("photo", "x")));
    const { offer } = await bob.next("offered");
    alice.signal("SIGINT");
    expect(await bob.next("offer-withdrawn")).toMatchObject({ offer, name: "alice", what: "photo" });
    expect(await alice.exited()).toBe(130);
  });
});

describe("--accept DIR", () => {
  test("makes DIR", async () => {
    const { target, write } = folders();
    await using house = startIntroducer();
    const folder = join(target, "a/b");
    await using bob = new Driven(house.port, "bob", ...room, "--accept", folder);
    await bob.registered;
    await using alice = new Driven(house.port, "alice", ...room, ...send(write("photo", "x")));
    expect(await alice.exited()).toBe(0);
    expect(fs.readdirSync(folder)).toEqual(["photo"]);
  });

  test("says at the start why it can't", async () => {
    const { write } = folders();
    const file = write("file", "x");
    const { code, stderr } = await outcome(["127.0.0.1:1", ...room, "--accept", file], { NO_COLOR: "1" });
    expect([code, stderr]).toEqual([1, `error: files can't be put into ${file}: it is not a folder\n`]);
  });

  test("takes only what --from sends", async () => {
    const { target, write } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target, "--from", "Alice");
    await bob.registered;
    bob.endInput();
    const path = write("photo", "x");
    await using carol = new Driven(house.port, "carol", ...room, ...send(path));
    expect((await carol.next("transfer-failed")).reason).toContain("it takes files of Alice only (--from)");
    await using alice = new Driven(house.port, "alice", ...room, ...send(path));
    expect(await alice.exited()).toBe(0);
    expect(await outcome(["127.0.0.1:1", ...room, "--from", "alice"])).toMatchObject({ code: 2 });
  });
});

const mounting = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0"', place];
const unmountable =
  missing(["unshare"], "package util-linux") ??
  (Bun.spawnSync(mounting).success ? undefined : "nothing can be mounted in a user namespace here");

const mountTest = unmountable === undefined ? test : testNeeding(unmountable);

/** bob, whose folder is a disk of that size; `folder`: where we see it. */
async function onDisk(port: number, size: string, target: string, options = ["--accept", target]) {
  const mount = `mount -t tmpfs -o size=${size} none "$0" && cd "$0" && exec "$@"`;
  const args = [`127.0.0.1:${port}`, "--name", "bob", ...room, ...options, "--json"];
  const command = ["unshare", "-Urm", "sh", "-c", mount, target, process.execPath, program, ...args];
  const env = { PATH: process.env["PATH"], XDG_STATE_HOME: homeOf("bob") };
  const bob = Bun.spawn(command, { env, stdout: "pipe", stderr: "ignore", stdin: "pipe" });
  let told = "";
  void (async () => {
    for await (const text of bob.stdout.pipeThrough(new TextDecoderStream())) told += text;
  })();
  const says = (text: string) => until(text, () => told.includes(text));
  await says('"registered"');
  return Object.assign(bob, { says, folder: `/proc/${bob.pid}/root${target}` });
}

mountTest("a disk without room is told on both sides before anything is sent", async () => {
  const { target, write } = folders();
  await using house = startIntroducer();
  await using bob = await onDisk(house.port, "2m", target);
  const reason = "the disk is too full: 2.1 MB are free, 3.0 MB are needed";
  const big = write("big", Buffer.alloc(3_000_000));
  await using alice = new Driven(house.port, "alice", ...room, ...send(big));
  const failed = await alice.next("transfer-failed");
  expect([failed.reason, failed.by, failed.bytesThere]).toEqual([reason, "peer", 0]);
  expect([await alice.exited(), alice.count("transferring")]).toEqual([1, 0]);
  await bob.says(reason);
  await using again = new Driven(house.port, "alice", ...room, ...send(write("small", "x")));
  expect(await again.exited()).toBe(0);
});

mountTest("who is asked is told that there is no room, and can choose another folder", async () => {
  const { source, target, write } = folders();
  await using house = startIntroducer();
  await using bob = await onDisk(house.port, "2m", target, ["--stay"]);
  const big = write("big", Buffer.alloc(3_000_000));
  await using alice = new Driven(house.port, "alice", ...room, ...send(big));
  await bob.says('"lacking":"the disk is too full: 2.1 MB are free, 3.0 MB are needed"');
  const types = (line: string) => (bob.stdin.write(`${line}\n`), bob.stdin.flush());
  await types("accept 1");
  await bob.says("3.0 MB are needed; `accept 1 DIR` puts it elsewhere");
  await types(`accept 1 ${source}/elsewhere`);
  expect(await alice.exited()).toBe(0);
  expect(fs.readdirSync(join(source, "elsewhere"))).toEqual(["big"]);
});

mountTest("a disk that fills meanwhile is told, and what has come goes on later", async () => {
  const { target, sparse } = folders();
  await using house = startIntroducer();
  await using bob = await onDisk(house.port, "64m", target);
  const path = sparse(50_000_000);
  const part = () => fs.readdirSync(bob.folder).find((name) => name.endsWith(".part"));
  const size = () => fs.statSync(join(bob.folder, part() ?? "none"), { throwIfNoEntry: false })?.size ?? 0;
  const filler = join(bob.folder, "filler");
  {
    await using alice = new Driven(house.port, "alice", ...room, ...send(path), ...slowly);
    await until("a part is there", () => size() > 2_000_000);
    expect(() => fs.writeFileSync(filler, Buffer.alloc(64 * 1024 * 1024))).toThrow("ENOSPC");
    const { files, failures } = await alice.next("transferred");
    const reason = "the disk is full; what has come of it is kept";
    expect([files, failures]).toEqual([0, [{ path: "big", reason, bytes: 50_000_000 }]]);
    expect(await alice.exited()).toBe(1);
  }
  const kept = size();
  fs.rmSync(filler);
  await using alice = new Driven(house.port, "alice", ...room, ...send(path));
  const { bytes, bytesMoved } = await alice.next("transferred");
  expect([bytes - bytesMoved, kept > 0, fs.readdirSync(bob.folder)]).toEqual([kept, true, ["big"]]);
});

test("a send that fails says why, with -q, too", async () => {
  const { source, target, write } = folders();
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
  await bob.registered;
  const deep = "d/".repeat(70);
  for (let index = 0; index < 12; index++) write(`${deep}${index}`, "x".repeat(index));
  const args = [`127.0.0.1:${house.port}`, "--name", "alice", ...room, "-q", ...send(join(source, "d"))];
  const { code, stderr } = await outcome(args, { XDG_STATE_HOME: homeOf("alice"), NO_COLOR: "1" });
  const lines = stderr.trimEnd().split("\n");
  expect([code, lines.length, lines.at(-1)]).toEqual([1, 12, expect.stringMatching(/^  and \d+ more$/)]);
  const reason = "it lies deeper than 64 folders";
  expect(lines.slice(1, 3)).toEqual([11, 10].map((name) => `  ${deep}${name}: ${reason}`));
});

test("what is unfinished is listed, until it has come", async () => {
  const { source, target, sparse, isPart } = folders();
  await using house = startIntroducer();
  await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
  await bob.registered;
  await using alice = new Driven(house.port, "alice", ...room, ...send(sparse()), ...slowly);
  await alice.next("transferring");
  await isPart();
  alice.signal("SIGINT");
  const { keptAs: path, bytesThere: bytes } = await bob.next("transfer-cancelled");
  bob.type("received", `received ${source}`, "received /not/there");
  const atMs = expect.any(Number) as unknown as number;
  const listed = await bob.next("unfinished" as "echo");
  expect(listed as object).toMatchObject({ unfinished: [{ name: "big", path, bytes, atMs }] });
  expect((await bob.next("unfinished" as "echo")) as object).toMatchObject({ unfinished: [] });
  expect((await bob.next("error")).message).toBe("/not/there: it is not there");
});
