/** Files between two sessions over carriers in memory, from one real folder into another. */
import { beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { newFolders, writeIn } from "../folders-fixture.ts";
import type { TransferOutcome, TransferProgress } from "../../native/uses/files.ts";
import { numbered, numberedFolder, pathProblem } from "../../native/uses/filename.ts";
import { encodeMessage, type Message } from "../../native/uses/message.ts";
import { receiveFiles, type Decision, type ReceiveOptions } from "../../native/uses/receive.ts";
import { collectFiles } from "../../native/uses/source-files.ts";
import { sendFiles } from "../../native/uses/send.ts";
import { until } from "../native-fixture.ts";
import { Linked } from "../session/linked-fixture.ts";
import { fingerprints, randomBytes, randomFrom } from "../session/memory-fixture.ts";
import { missing, testNeeding } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const { place, fresh } = newFolders("files-");
let source: string, target: string;
beforeEach(() => void ({ source, target } = fresh()));

const fixture = `${import.meta.dir}/files-fixture.ts`;
const sha256 = (bytes: Uint8Array) => Bun.SHA256.hash(bytes, "hex");
/** Descriptors of this process in our folders. Only Linux shows them: elsewhere always none. */
function openFiles(): string[] {
  if (process.platform !== "linux") return [];
  return fs.readdirSync("/proc/self/fd").filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`).startsWith(place);
    } catch {
      return false; // the descriptor that readdir itself used
    }
  });
}

function write(path: string, content: string | Uint8Array, mode = 0o644, at = 1_700_000_000_123): string {
  const full = writeIn(source, path, content);
  fs.chmodSync(full, mode);
  fs.utimesSync(full, new Date(at), new Date(at));
  return full;
}

/** Relative paths of all that is in the target folder. */
const inTarget = (): string[] =>
  fs
    .readdirSync(target, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(target.length + 1))
    .sort();

/** The same, without the name of the new folder that several things come in. */
const inNew = (): string[] =>
  inTarget()
    .map((path) => path.replace(/^from-alice-\d{4}-\d\d-\d\d-\d{6}\//, "NEW/"))
    .sort();

interface Transfer {
  sent: Promise<TransferOutcome>;
  received: Promise<TransferOutcome>;
  progress: Promise<TransferProgress>;
}

/** alice sends to bob, who puts it into the target folder. */
function transfer(
  link: Linked,
  paths: string[],
  decide: () => Decision | Promise<Decision> = () => ({ directory: target }),
  options: Partial<ReceiveOptions> = {},
): Transfer {
  const received = Promise.withResolvers<TransferOutcome>();
  const progress = Promise.withResolvers<TransferProgress>();
  received.promise.catch(() => {});
  link.onStream = (stream, purpose) =>
    received.resolve(
      receiveFiles(stream, purpose, {
        ...{ peer: fingerprints.alice, name: "alice", decide, onProgress: progress.resolve },
        ...options,
      }),
    );
  const sent = collectFiles(paths).then((collection) => sendFiles(link.alice, collection));
  sent.catch(() => {});
  return { sent, received: received.promise, progress: progress.promise };
}

async function both({ sent, received }: Transfer): Promise<TransferOutcome[]> {
  return Promise.all([sent, received]);
}

const outcome = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "done",
    (error: Error) => error.message,
  );

const end64 = "0".repeat(64);
const unnoted = { notes: [], noted: 0 };
const all = (files: number) => ({ files, failed: 0, failures: [], ...unnoted });
const none = (path: string, reason: string, bytes = 4) => ({
  ...{ files: 0, failed: 1, failures: [{ path, reason, bytes }] },
  ...unnoted,
});

describe("what arrives", () => {
  test("a folder: contents, relative paths, permissions and times, while carriers break", async () => {
    using link = new Linked();
    const contents: Record<string, Buffer> = {};
    for (let index = 0; index < 150; index++) {
      const path = `tree/${index % 7}/${index % 3}/file ${index}.bin`;
      contents[path] = randomBytes(randomFrom(index), index % 10 === 0 ? 300_000 + index : index);
      write(path, contents[path], index % 2 ? 0o640 : 0o755, 1_600_000_000_000 + index * 1_001);
    }
    const work = both(transfer(link, [join(source, "tree")], undefined, { executable: true }));
    expect(await link.shaken(work)).toBeGreaterThan(1);
    const [sent, received] = await work;
    expect([{ ...sent }, { ...received }]).toEqual([all(150), all(150)]);
    expect(inTarget()).toEqual(Object.keys(contents).sort());
    for (const [index, path] of Object.keys(contents).entries()) {
      const { mode, mtimeMs } = fs.statSync(join(target, path));
      expect(sha256(fs.readFileSync(join(target, path)))).toBe(sha256(contents[path]!));
      expect([mode & 0o777, Math.round(mtimeMs)]).toEqual([
        index % 2 ? 0o640 : 0o755,
        1_600_000_000_000 + index * 1_001,
      ]);
    }
    await until("no descriptor is left", () => openFiles().length === 0);
    await until("no stream is left", () => link.alice.streamCount + link.bob.streamCount === 0);
  });

  test("several paths, empty files, names of the world", async () => {
    using link = new Linked();
    const paths = [
      write("empty", ""),
      write("über 写真 👩‍👩‍👧.jpg", "x"),
      write("10:30.log", "y"),
      write("other/empty", "z"),
    ];
    const notes = [{ path: paths[3]!, note: "sent as empty (2)" }];
    expect(await both(transfer(link, paths))).toEqual([{ ...all(4), notes, noted: 1 }, all(4)]);
    const names = ["10:30.log", "empty", "empty (2)", "über 写真 👩‍👩‍👧.jpg"];
    expect(inNew()).toEqual(names.map((name) => `NEW/${name}`).sort());
  });

  test.each([
    [false, 0o644],
    [true, 0o755],
  ])("executable, where that was asked for: %j; the setuid bit never", async (executable, mode) => {
    using link = new Linked();
    await both(transfer(link, [write("tool", "x", 0o4755)], undefined, { executable }));
    expect(fs.statSync(join(target, "tool")).mode & 0o7777).toBe(mode);
  });

  test("what is no file is told, and not waited for", async () => {
    const tree = join(source, "tree");
    fs.mkdirSync(tree);
    expect(Bun.spawnSync(["mkfifo", join(tree, "fifo")]).exitCode).toBe(0);
    fs.symlinkSync("/nowhere", join(tree, "dangling"));
    fs.symlinkSync("..", join(tree, "loop"));
    write("tree/file", "x");
    const { files, skipped } = await collectFiles([tree]);
    expect(files.map(({ path }) => path)).toEqual(["tree/file"]);
    expect(skipped).toEqual([
      { path: "tree/dangling", reason: "it is a link that leads nowhere" },
      { path: "tree/fifo", reason: "it is a named pipe" },
      { path: "tree/loop", reason: "it is a link to a folder, .." },
    ]);
    expect(await outcome(collectFiles([join(source, "nothing")]))).toContain("nothing: it is not there");
  });
});

describe("an offer", () => {
  test("is refused with the reason", async () => {
    using link = new Linked();
    const { sent, received } = transfer(link, [write("photo.jpg", "x")], () => ({ refuse: "not now" }));
    expect([await outcome(sent), await outcome(received)]).toEqual([
      "the other side ended it: not now",
      "not now",
    ]);
    expect(inTarget()).toEqual([]);
  });

  test("taken back while somebody thinks about it", async () => {
    using link = new Linked();
    let isOver = false;
    const received = new Promise<string>((resolve) => {
      link.onStream = (stream, purpose) => {
        const decide = (_: unknown, signal: AbortSignal) => {
          signal.addEventListener("abort", () => (isOver = true));
          return new Promise<Decision>(() => {});
        };
        resolve(outcome(receiveFiles(stream, purpose, { peer: fingerprints.alice, decide })));
      };
    });
    const stream = link.alice.open({ use: "files", name: "x", files: 1, bytes: 1 });
    setImmediate(() => stream.reset("changed my mind"));
    expect(await received).toBe("the other side ended it: changed my mind");
    await until("whoever decides knows", () => isOver);
  });

  test("into a folder that is not there", async () => {
    using link = new Linked();
    const { sent, received } = transfer(link, [write("x", "x")], () => ({ directory: join(target, "no") }));
    const reason = "the folder for what comes: it is not there";
    expect([await outcome(sent), await outcome(received)]).toEqual([
      `the other side ended it: ${reason}`,
      reason,
    ]);
  });
});

describe("what is there already", () => {
  test("is never overwritten", async () => {
    using link = new Linked();
    fs.writeFileSync(join(target, "photo.jpg"), "mine");
    fs.symlinkSync("/etc/passwd", join(target, "photo (2).jpg"));
    await both(transfer(link, [write("photo.jpg", "theirs")]));
    expect(inTarget()).toEqual(["photo (2).jpg", "photo (3).jpg", "photo.jpg"]);
    expect(fs.readFileSync(join(target, "photo.jpg"), "utf8")).toBe("mine");
    expect(fs.readFileSync(join(target, "photo (3).jpg"), "utf8")).toBe("theirs");
  });

  test("the same file again is no second one, and is not sent", async () => {
    const path = write("photo.jpg", randomBytes(randomFrom(1), 500_000));
    for (const moved of [500_000, 0]) {
      using link = new Linked();
      const work = transfer(link, [path]);
      expect((await both(work)).map(({ files }) => files)).toEqual([1, 1]);
      expect((await work.progress).bytesMoved).toBe(moved);
      expect(inTarget()).toEqual(["photo.jpg"]);
    }
  });

  test("with the same size and time but other contents is kept beside", async () => {
    using link = new Linked();
    await both(transfer(link, [write("photo.jpg", "one")]));
    await both(transfer(link, [write("photo.jpg", "two")]));
    expect(inTarget()).toEqual(["photo (2).jpg", "photo.jpg"]);
    expect(fs.readFileSync(join(target, "photo (2).jpg"), "utf8")).toBe("two");
  });
});

describe("after an interruption", () => {
  /** Leaves a beginning in the target folder, and returns how much of it. */
  async function interrupted(path: string): Promise<number> {
    using link = new Linked({ bytesPerMs: 20_000 });
    const work = transfer(link, [path]);
    const progress = await work.progress;
    await until("a part has come", () => progress.bytesDone > 1_000_000);
    link.alice.abandon("gone");
    link.bob.abandon("gone");
    expect(await outcome(work.sent)).toContain("gone");
    expect(await outcome(work.received)).toContain("gone");
    await until("its descriptors are closed", () => openFiles().length === 0);
    const [part, ...others] = inTarget();
    expect([others, part]).toEqual([[], expect.stringMatching(/^big\.[0-9a-f]{24}\.part$/)]);
    return fs.statSync(join(target, part!)).size;
  }

  test("it goes on where it stopped", async () => {
    const bytes = randomBytes(randomFrom(1), 6_000_000);
    const path = write("big", bytes);
    const there = await interrupted(path);
    using link = new Linked();
    const work = transfer(link, [path]);
    expect((await both(work)).map(({ files }) => files)).toEqual([1, 1]);
    expect((await work.progress).bytesMoved).toBe(bytes.length - there);
    expect([inTarget(), sha256(fs.readFileSync(join(target, "big")))]).toEqual([["big"], sha256(bytes)]);
  });

  test("not behind a beginning that has changed", async () => {
    const bytes = randomBytes(randomFrom(1), 6_000_000);
    const path = write("big", bytes);
    await interrupted(path);
    const part = fs.openSync(join(target, inTarget()[0]!), "r+");
    fs.writeSync(part, Buffer.from("tampered"), 0, 8, 1000);
    fs.closeSync(part);
    using link = new Linked();
    const work = transfer(link, [path]);
    await both(work);
    expect((await work.progress).bytesMoved).toBe(bytes.length);
    expect([inTarget(), sha256(fs.readFileSync(join(target, "big")))]).toEqual([["big"], sha256(bytes)]);
  });

  test("a beginning that is a link or has another name is not written to", async () => {
    const path = write("big", randomBytes(randomFrom(1), 6_000_000));
    await interrupted(path);
    const part = join(target, inTarget()[0]!);
    const mine = join(source, "mine");
    for (const make of [fs.symlinkSync, fs.linkSync]) {
      fs.rmSync(part);
      fs.writeFileSync(mine, Buffer.concat([fs.readFileSync(path), Buffer.from("mine")]));
      make(mine, part);
      using link = new Linked();
      expect((await both(transfer(link, [path]))).map(({ files }) => files)).toEqual([1, 1]);
      expect(fs.readFileSync(mine).subarray(6_000_000).toString()).toBe("mine");
      fs.rmSync(join(target, "big"));
      fs.writeFileSync(part, "");
    }
  });

  test("by kill -9, again and again", async () => {
    const bytes = randomBytes(randomFrom(1), 60_000_000);
    const path = write("big", bytes);
    let atLeast = 0;
    for (const share of [0.2, 0.5, 0.8]) {
      const program = Bun.spawn([process.execPath, fixture, path, target], {
        stdout: "pipe",
        stderr: "inherit",
      });
      let text = "";
      for await (const chunk of program.stdout) {
        text += new TextDecoder().decode(chunk);
        if (text.split("\n").some((line) => Number(line) > share * bytes.length)) break;
      }
      program.kill("SIGKILL");
      await program.exited;
      const [name] = inTarget();
      const { size } = fs.statSync(join(target, name!));
      if (name === "big") break; // it was faster than we
      expect([inTarget().length, size]).toEqual([1, expect.any(Number)]);
      expect(size).toBeGreaterThan(atLeast);
      atLeast = size;
    }
    const last = Bun.spawn([process.execPath, fixture, path, target], { stdout: "pipe", stderr: "inherit" });
    const lines = (await new Response(last.stdout).text()).trim().split("\n");
    expect(JSON.parse(lines.at(-1)!)).toEqual({
      sent: all(1),
      received: all(1),
      moved: bytes.length - atLeast,
    });
    expect([inTarget(), sha256(fs.readFileSync(join(target, "big")))]).toEqual([["big"], sha256(bytes)]);
  });
});

describe("what goes wrong with a file is said on both sides", () => {
  /** Does something to the file once a part of it is sent. */
  async function meanwhile(change: (path: string) => void): Promise<TransferOutcome[]> {
    using link = new Linked({ bytesPerMs: 20_000 });
    const path = write("log", Buffer.alloc(4_000_000, "x"));
    const work = transfer(link, [path, write("other", "fine")]);
    const progress = await work.progress;
    await until("a part has come", () => progress.bytesDone > 500_000);
    change(path);
    return await both(work);
  }

  const noted = (note: string) => {
    const one = { files: 2, failed: 0, failures: [], notes: [{ path: "log", note }], noted: 1 };
    return [one, one];
  };
  const inLog = () =>
    fs.readFileSync(
      join(
        target,
        inTarget().find((path) => path.endsWith("log"))!,
      ),
      "utf8",
    );

  test("it grew: what was offered of it has come", async () => {
    const outcomes = await meanwhile((path) => fs.appendFileSync(path, "more"));
    expect(outcomes).toEqual(noted("it grew meanwhile: only its first 4.0 MB were sent"));
    expect([inNew(), inLog()]).toEqual([["NEW/log", "NEW/other"], "x".repeat(4_000_000)]);
  });

  test("it became another and longer: it was sent again", async () => {
    const outcomes = await meanwhile((path) => fs.writeFileSync(path, Buffer.alloc(5_000_000, "y")));
    expect(outcomes).toEqual(noted("it grew meanwhile: only its first 4.0 MB were sent"));
    expect(inLog()).toBe("y".repeat(4_000_000));
  });

  test("it shrank: it was sent again", async () => {
    const outcomes = await meanwhile((path) => fs.truncateSync(path, 10));
    expect([outcomes, inLog()]).toEqual([noted("it shrank meanwhile: it has 10 B now"), "x".repeat(10)]);
  });

  test("it was written to: it was sent again", async () => {
    const outcomes = await meanwhile((path) => fs.writeFileSync(path, Buffer.alloc(4_000_000, "y")));
    expect([outcomes, inLog()]).toEqual([[all(2), all(2)], "y".repeat(4_000_000)]);
  });

  test("it changes without end: it has failed", async () => {
    using link = new Linked({ bytesPerMs: 20_000 });
    const path = write("log", Buffer.alloc(4_000_000, "x"));
    const work = transfer(link, [path, write("other", "fine")]);
    let touched = 0;
    const touching = setInterval(() => fs.utimesSync(path, 1, ++touched), 1);
    const outcomes = await both(work).finally(() => clearInterval(touching));
    const failures = [{ path: "log", reason: "it keeps changing while it is being read", bytes: 4_000_000 }];
    expect(outcomes).toEqual(Array(2).fill({ files: 1, failed: 1, failures, ...unnoted }));
    const { bytesDone, bytesFailed } = await work.progress;
    expect([inNew(), bytesDone, bytesFailed]).toEqual([["NEW/other"], 4, 4_000_000]);
  });

  test("it was gone, or another, before its turn", async () => {
    using link = new Linked();
    const [gone, changed] = [write("gone", "x"), write("changed", "x")];
    const collection = await collectFiles([gone, changed, write("other", "fine")]);
    fs.rmSync(gone);
    fs.writeFileSync(changed, "y");
    const { received } = transfer(link, []);
    const sent = await sendFiles(link.alice, collection);
    const failures = [{ path: "gone", reason: "it is not there", bytes: 1 }];
    expect([sent, await received]).toEqual(Array(2).fill({ files: 2, failed: 1, failures, ...unnoted }));
    expect(inNew()).toEqual(["NEW/changed", "NEW/other"]);
  });

  test("a folder's name is taken by a file, or by a link that leads out: it is another one", async () => {
    fs.writeFileSync(join(target, "a"), "a file");
    const outside = join(source, "outside");
    fs.mkdirSync(outside);
    fs.symlinkSync(outside, join(target, "b"));
    for (const name of ["a", "b", "c"]) {
      using link = new Linked();
      write(`${name}/1`, "x");
      const outcomes = await both(transfer(link, [join(source, name)]));
      expect(outcomes.map((one) => ({ ...one }))).toEqual([all(1), all(1)]);
    }
    expect([inTarget(), fs.readdirSync(outside)]).toEqual([["a", "a (2)/1", "b", "b (2)/1", "c/1"], []]);
  });

  test("a folder in it has become a file, or a link that leads out", async () => {
    const link = new Linked();
    const outside = join(source, "outside");
    fs.mkdirSync(outside);
    for (const name of ["a", "b", "c"]) write(`tree/${name}/1`, "x");
    const place = () => {
      fs.mkdirSync(join(target, "tree"));
      return { directory: target };
    };
    // Another try finds the folder by its mark; meanwhile somebody was there.
    const stream = link.alice.open({ use: "files", name: "tree", files: 3, bytes: 3, listed: 3 });
    link.onStream = (stream, purpose) =>
      void receiveFiles(stream, purpose, { peer: fingerprints.alice, decide: place }).catch(() => {});
    for (const name of ["a", "b", "c"])
      stream.write(encodeMessage({ type: "listed", path: `tree/${name}/1` }));
    const head = end64;
    stream.write(
      encodeMessage({ type: "file", path: "tree/a/1", bytes: 1, mode: 0o644, modifiedMs: 5, head }),
    );
    stream.write(encodeMessage({ type: "from", bytes: 0 }));
    await until("it has begun", () => inTarget().some((path) => path.startsWith("tree (2)/a/")));
    link[Symbol.dispose]();
    await until("its descriptors are closed", () => openFiles().length === 0);
    fs.rmSync(join(target, "tree (2)/a"), { recursive: true });
    fs.writeFileSync(join(target, "tree (2)/a"), "a file");
    fs.symlinkSync(outside, join(target, "tree (2)/b"));
    using next = new Linked();
    const outcomes = await both(transfer(next, [join(source, "tree")]));
    const failures = [
      { path: "tree/a/1", reason: "a is not a folder", bytes: 1 },
      { path: "tree/b/1", reason: "b is a symbolic link", bytes: 1 },
      { path: "tree/a/", reason: "a is not a folder", bytes: 0 },
      { path: "tree/b/", reason: "b is a symbolic link", bytes: 0 },
    ];
    expect(outcomes).toEqual(Array(2).fill({ files: 1, failed: 4, failures, ...unnoted }));
    expect(inTarget()).toEqual(["tree (2)/a", "tree (2)/b", "tree (2)/c/1"]);
    expect(fs.readdirSync(outside)).toEqual([]);
  });

  const mount = (options: string) => [
    "sh",
    "-c",
    `mount -t tmpfs -o ${options} none "$2" && exec "$0" "$3" "$1" "$2"`,
  ];
  const mounting = ["unshare", "-Urm", ...mount("size=1m"), "true", "", place, ""];
  const unmountable =
    missing(["unshare"], "package util-linux") ??
    (Bun.spawnSync(mounting).success ? undefined : "nothing can be mounted in a user namespace here");

  testNeeding(unmountable).each([
    ["a disk that is too small", "size=1m", "the disk is too full: 1.0 MB are free, 3.0 MB are needed"],
    [
      "a folder that can't be written",
      "ro",
      none("big", "the disk is read-only", 3_000_000) as unknown as string,
    ],
  ])("%s", (_, options, reason) => {
    const path = write("big", Buffer.alloc(3_000_000));
    const command = [...mount(options), process.execPath, path, target, fixture];
    const { stdout, stderr } = Bun.spawnSync(["unshare", "-Urm", ...command]);
    expect(stderr.toString()).toBe("");
    const { sent, received } = JSON.parse(stdout.toString().trim().split("\n").at(-1)!);
    const cut = typeof reason === "string" ? "the other side ended it: " : "";
    expect([received, sent]).toEqual([reason, cut ? `${cut}${reason}` : reason]);
  });
});

describe("names from the peer", () => {
  test.each(["../x", "/etc/passwd", "./x"])("no folder of that name: %j", async (path) => {
    const { received } = await byHand([{ type: "file", path, bytes: 0, mode: 0o644, modifiedMs: 0 }]);
    expect(await outcome(received)).toContain(`the folder that is offered: ${pathProblem(path)}`);
    expect(fs.readdirSync(target)).toEqual([]);
  });

  test.each([
    ["a/../../x", "its path leaves the folder"],
    ["a//b", "its path leaves the folder"],
    ["a/", "its path leaves the folder"],
    ["", "its path leaves the folder"],
    [".", "its path leaves the folder"],
    ["a\0b", "its name has a zero byte"],
    ["x/".repeat(100) + "x", "it lies deeper than 64 folders"],
  ])("refused: %j", async (path, reason) => {
    expect(pathProblem(path)).toBe(reason);
    // And by the real receiver, said to a sender that is not ours.
    const { answers, received } = await byHand([
      { type: "file", path, bytes: 0, mode: 0o644, modifiedMs: 0 },
    ]);
    expect(answers).toContain(JSON.stringify({ type: "refused", reason }));
    expect({ ...(await received) }).toEqual(none(path, reason, 0));
    expect(fs.readdirSync(target)).toEqual([]);
  });

  const x64 = ".0123456789abcdef01234567";
  const long = "x".repeat(225);
  test.each([
    ["aux.c", "aux.c", "aux.c"],
    ["10:30.log", "10:30.log", "10:30.log"],
    ["trailing.", "trailing.", "trailing."],
    ["blank ", "blank ", "blank "],
    ["C:\\x", "C:\\x", "C:\\x"],
    [".bashrc", "_.bashrc", ".bashrc"],
    ["a\nb\u001b[2J", "a_b_[2J", "a_b_[2J"],
    ["photo\u202egpj.exe", "photo_gpj.exe", "photo_gpj.exe"],
    [`x${x64}.part`, `x${x64}.part_`, `x${x64}.part_`],
    [`x${x64}.folder.part`, `x${x64}.folder.part_`, `x${x64}.folder.part_`],
    ["x".repeat(255), "x".repeat(255), "x".repeat(255)],
    [`${long}${x64}.part`, `${long}${x64.slice(0, -1)}.part_`, `${long}${x64.slice(0, -1)}.part_`],
    ["é".repeat(200) + ".jpg", "é".repeat(125) + ".jpg", "é".repeat(125) + ".jpg"],
  ])("%j comes, and what it is called is told", async (path, alone, inFolder) => {
    const sent = { type: "file", bytes: 0, mode: 0o644, modifiedMs: 0 };
    const end = { type: "end", sha256: sha256(Buffer.alloc(0)) };
    const from = { type: "from", bytes: 0 };
    const one = await byHand([{ ...sent, path }, from, end], {}, [path]);
    expect([inTarget(), one.answers.includes(`"as":${JSON.stringify(alone)}`)]).toEqual([
      [alone],
      alone !== path,
    ]);
    fs.rmSync(join(target, alone));
    const { answers, received } = await byHand([{ ...sent, path: `d/${path}` }, from, end], {}, [
      `d/${path}`,
    ]);
    expect([inTarget(), answers.includes(`"as":${JSON.stringify(inFolder)}`)]).toEqual([
      [`d/${inFolder}`],
      inFolder !== path,
    ]);
    const notes = inFolder === path ? [] : [{ path: `d/${path}`, note: `stored as ${inFolder}` }];
    expect((await received).notes).toEqual(notes);
  });

  test("numbers go before the extension", () => {
    const names = ["photo.jpg", "archive.tar.gz", ".bashrc", "name"].map((name) => numbered(name, 2));
    expect(names).toEqual(["photo (2).jpg", "archive.tar (2).gz", ".bashrc (2)", "name (2)"]);
    const long = numbered("x".repeat(251) + ".jpg", 9_999);
    expect([long.length, long.slice(-12)]).toEqual([255, "x (9999).jpg"]);
    expect(numberedFolder("v1.2", 2)).toBe("v1.2 (2)");
  });
});

/** A sender whose lines are made by hand; all of them are sent at once. */
async function byHand(lines: (Message | string)[], offer: object = {}, odd: string[] = []) {
  using link = new Linked();
  const received = new Promise<TransferOutcome>((resolve) => {
    link.onStream = (stream, purpose) => {
      const work = receiveFiles(stream, purpose, {
        peer: fingerprints.alice,
        decide: () => ({ directory: target }),
      });
      work.catch(() => {});
      resolve(work);
    };
  });
  received.catch(() => {});
  const names = lines.flatMap((line) => (typeof line !== "string" && line.type === "file" ? [line] : []));
  const { files = 1 } = offer as { files?: number };
  const paths = names.slice(0, Math.min(files, 10)).map(({ path }) => ({ type: "listed", path }));
  const purpose = { use: "files", name: "x", files, bytes: 1000, things: paths.length || 1, ...offer };
  const listed = [...paths, ...odd.map((path) => ({ type: "odd", path }))];
  const stream = link.alice.open({ ...purpose, listed: listed.length });
  for (const path of listed) stream.write(encodeMessage(path));
  for (const line of lines)
    stream.write(typeof line === "string" ? line : encodeMessage({ head: end64, ...line }));
  stream.end();
  let answers = "";
  stream.on("data", (bytes) => (answers += bytes));
  await new Promise((resolve) => stream.on("close", resolve));
  await outcome(received);
  return { answers, received };
}

describe("a sender that does not keep to the protocol", () => {
  const file = { type: "file", path: "a", bytes: 4, mode: 0o644, modifiedMs: 0 };
  const from = { type: "from", bytes: 0 };
  const end = { type: "end", sha256: sha256(Buffer.from("data")) };
  const chunk = (text: string) => `{"type":"chunk","bytes":${text.length}}\n${text}`;

  test("one that does gets through", async () => {
    const { received } = await byHand([file, from, chunk("data"), end]);
    expect({ ...(await received) }).toEqual(all(1));
    expect(inTarget()).toEqual(["a"]);
  });

  test.each<[string, (Message | string)[], string]>([
    ["more bytes than the file has", [file, from, chunk("data+")], "bytes of no file"],
    ["fewer bytes than the file has", [file, from, chunk("dat"), end], "an end of no file"],
    ["bytes of no file", [chunk("data")], "bytes of no file"],
    ["goes on where nothing is", [file, { type: "from", bytes: 3 }], "it goes on where nothing is"],
    ["begins twice", [file, from, from], "bytes of no file"],
    ["more files than offered", [file, file], "more than was offered"],
    ["more bytes than offered", [{ ...file, bytes: 1001 }], "more than was offered"],
    ["fewer files than offered", [], "the sender ended before its time"],
    ["stops in the middle", [file, from, chunk("da")], "the sender ended before its time"],
    ["stops in the middle of a line", ['{"type":'], "it ended within a message"],
    ["no hash", [file, from, chunk("data"), { type: "end", sha256: "xyz" }], "sha256 must be"],
    ["a mode that is more", [{ ...file, mode: 0o4755 }], "mode must be"],
    ["no number", [{ ...file, bytes: "4" }], "bytes must be"],
    ["an unknown message", [{ type: "exec" }], "exec is not for a receiver"],
  ])("%s", async (_, lines, reason) => {
    const { received } = await byHand(lines);
    expect(await outcome(received)).toContain(reason);
    expect(inTarget().filter((name) => !name.endsWith(".part"))).toEqual([]);
    await until("no descriptor is left", () => openFiles().length === 0);
  });

  test("another hash than the bytes have", async () => {
    const { answers, received } = await byHand([file, from, chunk("date"), end]);
    expect(answers).toContain('{"type":"failed","reason":"its SHA-256 differs"}');
    expect({ ...(await received) }).toEqual(none("a", "its SHA-256 differs"));
    expect(inTarget()).toEqual([]);
  });

  test("too many files at once", async () => {
    const many = Array.from({ length: 70 }, (_, index) => ({ ...file, path: `${index}` }));
    const { received } = await byHand(many, { files: 100 });
    expect(await outcome(received)).toContain("too many files announced ahead");
  });

  test("the same file twice at once", async () => {
    const { received, answers } = await byHand([file, file, from, chunk("data"), end], { files: 2 });
    expect(answers).toContain("it is being received already");
    expect({ ...(await received) }).toMatchObject({ files: 1, failed: 1 });
  });

  test.each([{ name: 5 }, { files: 0 }, { files: 1e9 }, { bytes: -1 }, { bytes: 1.5 }])(
    "an offer of %j",
    async (offer) => {
      const { received } = await byHand([], offer);
      expect(await outcome(received)).toContain("must be");
    },
  );
});

describe("a receiver that does not keep to the protocol", () => {
  test.each([
    ["confirms what was not sent", '{"type":"accepted"}\n{"type":"received"}\n'],
    ["answers too often", '{"type":"accepted"}\n' + '{"type":"refused","reason":"no"}\n'.repeat(3)],
    [
      "has more than there is",
      '{"type":"accepted"}\n' + JSON.stringify({ type: "have", bytes: 9, sha256: end64 }) + "\n",
    ],
    ["talks raw", '{"type":"chunk","bytes":1}\nx'],
    ["says nothing sensible", "?\n"],
    ["has made what was not sent", '{"type":"accepted"}\n{"type":"made"}\n'],
    ["cancels what it has not accepted", '{"type":"cancelled","bytes":0}\n'],
    ["has more than all, and cancels", '{"type":"accepted"}\n{"type":"cancelled","bytes":2}\n'],
    ["cancels without a number", '{"type":"accepted"}\n{"type":"cancelled"}\n'],
  ])("%s", async (_, bytes) => {
    using link = new Linked();
    link.onStream = (stream) =>
      void stream
        .resume()
        .on("error", () => {})
        .write(bytes);
    const collection = await collectFiles([write("a", "x")]);
    expect(await outcome(sendFiles(link.alice, collection))).toContain("does not keep to the protocol");
  });

  test("ends before its time", async () => {
    using link = new Linked();
    link.onStream = (stream) => void stream.resume().end('{"type":"accepted"}\n');
    const collection = await collectFiles([write("a", "x")]);
    expect(await outcome(sendFiles(link.alice, collection))).toContain("the receiver ended before its time");
  });
});

describe("a peer that falls silent", () => {
  /** Tests need not wait as long as people do. */
  const maxSilenceMs = 400;
  const have = line({ type: "have", bytes: 0, sha256: sha256(Buffer.alloc(0)) });

  function line(message: Message): string {
    return encodeMessage(message).toString();
  }

  test.each([
    ["once it has accepted", ""],
    ["once it has said what it has", have],
    ["when it should take more", have],
  ])("a receiver, %s: the sender fails and says so", async (when, said) => {
    using link = new Linked();
    const told = Promise.withResolvers<string>();
    link.onStream = (stream) => {
      stream.on("error", ({ message }) => told.resolve(message)).write(line({ type: "accepted" }));
      stream.on("data", (piece: Buffer) => {
        if (!piece.includes('"type":"file"')) return;
        stream.write(said);
        if (when.includes("more")) stream.pause();
      });
    };
    const collection = await collectFiles([
      write("a", when.includes("more") ? Buffer.alloc(4_000_000) : "x"),
    ]);
    // Of so many bytes it may be writing some for another second.
    const failed = outcome(sendFiles(link.alice, collection, { maxSilenceMs }));
    expect(await failed).toMatch(/^the peer did nothing for \d s$/);
    expect(await told.promise).toContain("the peer did nothing");
  });

  test("a sender: the receiver gives the file up, and keeps what it has", async () => {
    using link = new Linked();
    const received = Promise.withResolvers<TransferOutcome>();
    link.onStream = (stream, purpose) =>
      received.resolve(
        receiveFiles(stream, purpose, {
          ...{ peer: fingerprints.alice, decide: () => ({ directory: target }), maxSilenceMs },
        }),
      );
    const stream = link.alice.open({ use: "files", name: "a", files: 1, bytes: 4 });
    stream.write(line({ type: "file", path: "a", bytes: 4, mode: 0o644, modifiedMs: 0, head: end64 }));
    stream.write(line({ type: "from", bytes: 0 }) + line({ type: "chunk", bytes: 1 }) + "d");
    expect(await outcome(received.promise)).toMatch(/^the peer did nothing for \d s$/);
    expect(inTarget()).toEqual([expect.stringMatching(/\.part$/)]);
    await until("no descriptor is left", () => openFiles().length === 0);
  });

  test("not one whose link is broken, however long", async () => {
    using link = new Linked({ bytesPerMs: 2_000 });
    const work = both(transfer(link, [write("a", Buffer.alloc(1_000_000))], undefined, { maxSilenceMs }));
    await until("a part has come", () => inTarget().length > 0);
    link.carriers.alice.cut();
    link.carriers.bob.cut();
    await Bun.sleep(5 * maxSilenceMs); // there is nothing that would tell it earlier
    link.reconnect();
    expect((await work).map((one) => ({ ...one }))).toEqual([all(1), all(1)]);
  });

  test("nor one that thinks about the offer", async () => {
    using link = new Linked();
    const { promise, resolve } = Promise.withResolvers<Decision>();
    const { sent } = transfer(link, [write("a", "x")], () => promise, { maxSilenceMs });
    await Bun.sleep(3 * maxSilenceMs); // the same
    resolve({ directory: target });
    expect({ ...(await sent) }).toEqual(all(1));
  });
});

describe("a folder that is sent is not what it was when it was offered", () => {
  test("nothing is sent by a link that has taken the place of a folder or of a file", async () => {
    using link = new Linked();
    const outside = `${target}-outside`;
    const at = new Date(1_700_000_000_123);
    for (const name of ["a/key", "b/key", "c/key"]) write(`tree/${name}`, "mine");
    fs.mkdirSync(outside);
    fs.writeFileSync(join(outside, "key"), "hers"); // of the same size and time
    fs.utimesSync(join(outside, "key"), at, at);
    const collection = await collectFiles([join(source, "tree")]);
    fs.rmSync(join(source, "tree/a"), { recursive: true });
    fs.symlinkSync(outside, join(source, "tree/a"));
    fs.rmSync(join(source, "tree/b/key"));
    fs.symlinkSync(join(outside, "key"), join(source, "tree/b/key"));
    const { received } = transfer(link, []);
    const failures = ["a", "b"].map((name) => ({
      ...{ path: `tree/${name}/key`, reason: "it is another one now", bytes: 4 },
    }));
    const sent = await sendFiles(link.alice, collection);
    expect([sent, await received]).toEqual(Array(2).fill({ files: 1, failed: 2, failures, ...unnoted }));
    expect(inTarget()).toEqual(["tree/c/key"]);
  });

  test("links lead to what is in it, and nowhere else", async () => {
    const outside = `${target}-outside`;
    fs.writeFileSync(outside, "a key");
    write("tree/file", "x");
    write("tree-2/file", "x");
    fs.symlinkSync("file", join(source, "tree/inside"));
    fs.symlinkSync(outside, join(source, "tree/outside"));
    fs.symlinkSync("../tree-2/file", join(source, "tree/beside"));
    fs.symlinkSync(join(source, "tree"), join(source, "named"));
    const reason = (to: string) => `it is a link that leads out, to ${to}`;
    for (const named of ["tree", "named/"]) {
      const { files, skipped } = await collectFiles([`${source}/${named}`]);
      const at = named.replace("/", "");
      expect(files.map(({ path }) => path)).toEqual([`${at}/file`, `${at}/inside`]);
      expect(skipped).toEqual([
        { path: `${at}/beside`, reason: reason("../tree-2/file") },
        { path: `${at}/outside`, reason: reason(outside) },
      ]);
    }
    // What it leads to is named, too.
    const both = await collectFiles([join(source, "tree"), join(source, "tree-2")]);
    expect(both.files.map(({ path }) => path)).toContain("tree/beside");
    // A link that was named itself has no more rights.
    for (const [name, why] of [
      ["tree/outside", reason(outside)],
      ["named", `it is a link to a folder, ${join(source, "tree")}`],
    ]) {
      const { things, skipped } = await collectFiles([join(source, name!)]);
      expect([things, skipped]).toEqual([0, [{ path: name!.replace("tree/", ""), reason: why! }]]);
    }
  });
});
