/** Files between real programs on loopback: by option, by command, on a terminal, killed, and from a hostile peer. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { newFolders, writeIn } from "./folders-fixture.ts";
import { makeIdentity } from "../native/secure/identity.ts";
import { encodeChunk, encodeMessage } from "../native/uses/message.ts";
import { Participant, type Link, type Stream } from "../participant.ts";
import { Driven, homeOf, met, outcome, program, startIntroducer } from "./driven-fixture.ts";
import { randomBytes, randomFrom } from "./session/memory-fixture.ts";
import { until } from "./native-fixture.ts";
import { Pty } from "./pty-fixture.ts";
import { sha256 } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

const words = "of the tests of files";
const room = ["--room", words];
/** The hash of the first bytes of files that only say that they have some. */
const head = "0".repeat(64);

const { fresh } = newFolders("uses-files-");

/** The folders of one test, and what it has of them. */
function folders() {
  const { source, target } = fresh();
  return {
    ...{ source, target },
    write: (path: string, content: string | Uint8Array) => writeIn(source, path, content),
    read: (path: string) => fs.readFileSync(join(target, path), "utf8"),
    filesInNew: () => filesInNew(target),
  };
}

/** Relative paths of all files in a folder. */
const filesIn = (folder: string): string[] =>
  fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();

/** The same, without the name of the new folder that several things come in. */
const filesInNew = (target: string): string[] =>
  filesIn(target).map((path) => path.replace(/^from-(alice|mallory)-\d{4}-\d\d-\d\d-\d{6}\//, "NEW/"));

describe("to several", () => {
  test("by option or command: each gets all, and who did not is named", async () => {
    const { target, write } = folders();
    await using house = startIntroducer();
    const both = ["bob", "carol"].map((name) => join(target, name));
    await using bob = new Driven(house.port, "bob", ...room, "--accept", both[0]!);
    await using carol = new Driven(house.port, "carol", ...room, "--accept", both[1]!);
    await using dave = new Driven(house.port, "dave", ...room, "--stay");
    await met(bob, carol, dave);
    const photo = write("photo.jpg", "a photo");
    const options = ["--connect", "bob", "--connect", "carol", "--send", photo];
    await using alice = new Driven(house.port, "alice", ...room, ...options);
    expect(await alice.exited()).toBe(0);
    expect(both.map(filesIn)).toEqual([["photo.jpg"], ["photo.jpg"]]);
    await using eve = new Driven(house.port, "eve", ...room);
    await met(eve, bob, carol, dave);
    eve.type("connect bob carol dave", `send bob dave carol ${write("other", "x")}`);
    const { offer } = await dave.next("offered");
    dave.type(`refuse ${offer}`);
    expect((await eve.next("error")).message).toBe(
      "not all of it has arrived at dave; all of it has at bob, carol",
    );
    eve.type(`send bob carol ${join(target, "nothing")}`);
    expect((await eve.next("error")).message).toBe(`${join(target, "nothing")}: it is not there`);
    eve.endInput();
    expect(await eve.exited()).toBe(1);
    expect(both.map(filesIn)).toEqual([
      ["other", "photo.jpg"],
      ["other", "photo.jpg"],
    ]);
  });
});

describe("by option", () => {
  test("--send and --accept: a folder and a file arrive, and the sender ends with 0", async () => {
    const { source, target, write, read, filesInNew } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    const [folder, photo] = [join(source, "tree"), write("photo.jpg", randomBytes(randomFrom(1), 3_000_000))];
    write("tree/a/1", "one");
    write("tree/b", "two");
    const send = ["--connect", "bob", "--send", folder, photo];
    await using alice = new Driven(house.port, "alice", ...room, ...send);
    const about = { name: "alice", direction: "receiving", what: "tree and 1 more" };
    expect(await bob.next("transferring")).toMatchObject({ ...about, bytes: 3_000_006 });
    expect(await bob.next("transferred")).toMatchObject({
      ...about,
      ...{ files: 3, failed: 0, failures: [], bytes: 3_000_006, elapsedMs: expect.any(Number) },
    });
    expect(await alice.exited()).toBe(0);
    expect(await alice.next("transferred")).toMatchObject({ name: "bob", direction: "sending", files: 3 });
    expect(filesInNew()).toEqual(["NEW/photo.jpg", "NEW/tree/a/1", "NEW/tree/b"]);
    const [into = ""] = fs.readdirSync(target);
    expect(sha256(fs.readFileSync(join(target, into, "photo.jpg")))).toBe(sha256(fs.readFileSync(photo)));
    expect([read(`${into}/tree/a/1`), read(`${into}/tree/b`)]).toEqual(["one", "two"]);
  });

  test("what is there already keeps its name, and what is the same is not there twice", async () => {
    const { target, write, read } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    await bob.registered;
    const photo = write("photo.jpg", "mine");
    fs.writeFileSync(join(target, "photo.jpg"), "another's");
    const send = [`127.0.0.1:${house.port}`, "--name", "alice", ...room, "--connect", "bob", "--send", photo];
    for (let again = 0; again < 2; again++) {
      const { code, stderr } = await outcome(send, { XDG_STATE_HOME: homeOf("alice") });
      expect([code, stderr]).toEqual([0, expect.stringContaining("sent photo.jpg as photo (2).jpg: 1 file")]);
      expect(filesIn(target)).toEqual(["photo (2).jpg", "photo.jpg"]);
    }
    expect([read("photo.jpg"), read("photo (2).jpg")]).toEqual(["another's", "mine"]);
  });

  test("a file that fails is told on both sides, and makes the exit code 1", async () => {
    const { source, target, write, filesInNew } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    await bob.registered;
    const deep = "d/".repeat(70) + "x";
    write(deep, "x");
    const send = ["--connect", "bob", "--send", write("good", "x"), "--send", join(source, "d")];
    await using alice = new Driven(house.port, "alice", ...room, ...send);
    expect(await alice.exited()).toBe(1);
    for (const one of [alice, bob]) {
      const { files, failures, bytes } = await one.next("transferred");
      const first = { path: deep, reason: "it lies deeper than 64 folders", bytes: 1 };
      expect([files, bytes, failures[0]]).toEqual([1, 1, first]);
    }
    expect(filesInNew()).toEqual(["NEW/good"]);
    expect(alice.count("error")).toBe(0);
  });

  test.each([
    [[], 0o600],
    [["--executable"], 0o700],
  ])("a program comes with the rights that %j gives it, and each offer lists it", async (options, rights) => {
    const { target, write } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target, ...options);
    await bob.registered;
    const tool = write("tool", "#!/bin/sh");
    fs.chmodSync(tool, 0o700);
    await using alice = new Driven(house.port, "alice", ...room, "--connect", "bob", "--send", tool);
    const odd = [{ path: "tool", why: "executable" }];
    expect(await bob.next("transferring")).toMatchObject({
      paths: ["tool"],
      more: 0,
      odd,
      storedAs: "tool",
    });
    expect(await alice.exited()).toBe(0);
    expect(fs.statSync(join(target, "tool")).mode & 0o777).toBe(rights);
  });

  test("without --accept and without anybody to ask it is refused", async () => {
    const { write } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room);
    await bob.registered;
    const send = ["--connect", "bob", "--send", write("x", "x")];
    await using alice = new Driven(house.port, "alice", ...room, ...send);
    expect((await alice.next("transfer-failed")).reason).toContain(
      "nobody is there to accept it (--accept DIR)",
    );
    expect(await alice.exited()).toBe(1);
  });
});

describe("by command", () => {
  test("send, accept and refuse, as lines on standard input", async () => {
    const { write } = folders();
    await using house = startIntroducer();
    await using alice = new Driven(house.port, "alice", ...room);
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await met(alice, bob);
    const path = write("photo.jpg", "a photo");
    alice.type("connect bob", `send bob ${path}`);
    const first = await bob.next("offered");
    const listed = { paths: ["photo.jpg"], more: 0, odd: [], moreOdd: 0 };
    expect(first).toMatchObject({ name: "alice", what: "photo.jpg", files: 1, bytes: 7, ...listed });
    bob.type(`refuse ${first.offer}`);
    expect((await alice.next("transfer-failed")).reason).toBe("it is not wanted");
    alice.type(`send bob ${path}`);
    const second = await bob.next("offered");
    bob.type(`accept ${second.offer}`, `accept ${second.offer}`);
    expect((await bob.next("error")).message).toBe(`there is no offer ${second.offer}; waiting: none`);
    await Promise.all([alice, bob].map((one) => one.next("transferred")));
    expect(fs.readFileSync(join(homeOf("bob"), "photo.jpg"), "utf8")).toBe("a photo");
    alice.type("send bob", "send bob /not/there", "send nobody /etc/hostname");
    // With two words the first is a name.
    for (const reason of ["send", "it is not there", "nobody here is called nobody"])
      expect((await alice.next("error")).message).toContain(reason);
  });

  test("an offer that is taken back can be accepted no more", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await bob.registered;
    await using mallory = await Hostile.meets(house.port, "bob");
    const taken = mallory.offer("x", 1, 1);
    const { offer } = await bob.next("offered");
    taken.reset("I have changed my mind");
    await mallory.ping("bob"); // by then the reset has arrived
    bob.type(`accept ${offer}`);
    expect((await bob.next("error")).message).toBe(`there is no offer ${offer}; waiting: none`);
  });
});

describe("on a terminal", () => {
  /** In a folder of its own, so that `accept` puts files there. */
  function atTerminal(target: string, port: number, name: string, ...options: string[]): Pty {
    const command = [process.execPath, program, `127.0.0.1:${port}`, "--name", name, ...room, ...options];
    return new Pty(["sh", "-c", 'cd "$0" && exec "$@"', target, ...command], {
      XDG_STATE_HOME: homeOf(name),
    });
  }

  test("an offer is asked about, and answered by its number", async () => {
    const { source, target, write } = folders();
    await using house = startIntroducer();
    await using bob = atTerminal(target, house.port, "bob");
    await bob.shows("our mapping: ");
    await using alice = new Driven(house.port, "alice", ...room, "--connect", "bob", "--stay");
    await alice.next("linked");
    alice.type(`send bob ${write("photo.jpg", Buffer.alloc(3_100_000))}`);
    await bob.shows("alice offers photo.jpg, 3.1 MB: accept 1 | refuse 1");
    await bob.answers("refuse 1\r", "> ");
    expect((await alice.next("transfer-failed")).reason).toBe("it is not wanted");
    alice.type(`send bob ${join(source, "photo.jpg")}`);
    await bob.shows("alice offers photo.jpg, 3.1 MB: accept 2 | refuse 2");
    await bob.answers("accept 2\r", /received photo.jpg: 1 file, 3.1 MB in .*, SHA-256 compared/);
    await alice.next("transferred");
    expect(filesIn(target)).toEqual(["photo.jpg"]);
  });

  test("what an offer lists is seen before it is accepted", async () => {
    const { source, target, write } = folders();
    await using house = startIntroducer();
    await using bob = atTerminal(target, house.port, "bob");
    await bob.shows("our mapping: ");
    await using alice = new Driven(house.port, "alice", ...room, "--connect", "bob", "--stay");
    await alice.next("linked");
    for (let index = 0; index < 12; index++) write(`tree/${index}`, "x");
    write("tree/.git/config", "x");
    fs.chmodSync(write("tree/run", "x"), 0o755);
    fs.mkdirSync(join(target, "tree"));
    alice.type(`send bob ${join(source, "tree")}`);
    await bob.shows("alice offers tree (14 files), 14 B: accept 1 | refuse 1");
    await bob.shows(/  tree\/\.git\/config\r?\n  tree\/0\r?\n[^]*  and 4 more/);
    await bob.shows(
      /odd.*: tree\/\.git\/: hidden: its name begins with a dot[^]*odd.*: tree\/run: executable/,
    );
    await bob.answers("accept 1\r", "received tree as tree (2): 14 files");
    expect(filesIn(join(target, "tree (2)"))).toHaveLength(14);
    expect(fs.statSync(join(target, "tree (2)/run")).mode & 0o111).toBe(0);
    const one = write(".profile", "x");
    alice.type(`send bob ${one}`);
    await bob.shows(
      /alice offers \.profile, 1 B: accept 3[^]*odd.*: \.profile: hidden[^]*stored as _\.profile/,
    );
  });

  test("the line of progress stays above the prompt, and does not tear what is being typed", async () => {
    const { target } = folders();
    await using house = startIntroducer();
    await using bob = atTerminal(target, house.port, "bob", "--accept", target);
    await bob.shows("our mapping: ");
    await using mallory = await Hostile.meets(house.port, "bob");
    const stream = mallory.offer("slow", 1, 1000);
    stream.write(
      encodeMessage({ type: "file", path: "slow", bytes: 1000, mode: 0o644, modifiedMs: 0, head }),
    );
    stream.write(encodeMessage({ type: "from", bytes: 0 }));
    await bob.shows("receiving slow, 1.0 kB, from mallory");
    const typed = "say mallory a line that is long enough to be torn";
    bob.type(typed);
    const half = Buffer.alloc(500, "x");
    stream.write(Buffer.concat([encodeChunk(500), half]));
    const line = String.raw`slow from mallory: 50 % of 1\.0 kB, [\d.]+ k?B/s, \d+s left`;
    // Drawn twice: each time it goes up to where the last one was, and draws the prompt below with what is typed.
    const drawn = `\\r?\\n\\x1b\\[1G\\x1b\\[0J> ${typed}\\x1b\\[\\d+G`;
    await bob.shows(new RegExp(`${line}${drawn}[^]*\\x1b\\[1A\\x1b\\[1G\\x1b\\[0J${line}${drawn}`));
    stream.write(Buffer.concat([encodeChunk(500), half]));
    stream.end(encodeMessage({ type: "end", sha256: sha256(Buffer.alloc(1000, "x")) }));
    await bob.shows("received slow: 1 file");
    // No line of progress is left, and what was typed is still there.
    await bob.shows(
      new RegExp(`SHA-256 compared[^]*\\x1b\\[1A\\x1b\\[1G\\x1b\\[0J[^%]*> ${typed}\\x1b\\[\\d+G$`),
    );
    await bob.answers("\r", "mallory (2) has it after");
  });
});

describe("a transfer that was killed goes on behind what is there", () => {
  const size = 24 * 1024 * 1024;
  const some = 6 * 1024 * 1024;

  /** Kills one of the two once a part of that file is there, starts it again, and looks at what is sent then. */
  async function killed(victim: "alice" | "bob", name = "big"): Promise<void> {
    const { source, target, write } = folders();
    await using house = startIntroducer();
    const block = randomBytes(randomFrom(9), 1024 * 1024);
    const path = write(name, Buffer.concat(Array<Buffer>(size / block.length).fill(block)));
    const send = ["--connect", "bob", "--send", join(source, name.split("/")[0]!), "--stay"];
    const folder = name.slice(0, name.lastIndexOf("/") + 1);
    const sending = (...how: string[]) => new Driven(house.port, "alice", ...room, ...send, ...how);
    const receiving = () => new Driven(house.port, "bob", ...room, "--accept", target);
    // So that it is still under way when we have seen that it is.
    const all = { alice: sending("--limit", "8M"), bob: receiving() };
    try {
      const isPart = (one: string) => /[0-9a-f]{24}\.part$/.test(one) && one.startsWith(folder);
      const part = () => filesIn(target).find(isPart);
      const there = () => fs.statSync(join(target, part() ?? "none"), { throwIfNoEntry: false })?.size ?? 0;
      await until("a part is there", () => there() > some);
      all[victim].signal("SIGKILL");
      await all[victim].exited();
      // Nothing half-written has its name; beside a folder is its mark.
      expect(filesIn(target).filter((one) => !/^tree\.[0-9a-f]{24}\.folder\.part$/.test(one))).toEqual([
        part()!,
      ]);
      if (victim === "bob") {
        await all.alice[Symbol.asyncDispose]();
        all.bob = receiving();
      }
      all.alice = sending();
      const before = there();
      await all.alice.next("transferred", ({ files }) => files === 1);
      await all.bob.next("transferred");
      all.alice.type("list");
      const { peers } = await all.alice.next("peers", (event) =>
        event.peers.some(({ bytesOut }) => !!bytesOut),
      );
      const sent = peers.find(({ name }) => name === "bob")!.bytesOut!;
      expect(before).toBeGreaterThan(some);
      expect(sent).toBeLessThan(size - before + 2 * 1024 * 1024);
      expect(filesIn(target)).toEqual([name]);
      const [is, was] = [join(target, name), path].map((one) => sha256(fs.readFileSync(one)));
      expect(is).toBe(was!);
    } finally {
      await Promise.all(Object.values(all).map((one) => one[Symbol.asyncDispose]()));
    }
  }

  test("its sender", () => killed("alice"));
  test("its receiver", () => killed("bob"));
  test("its sender, of a folder", () => killed("alice", "tree/below/big"));
});

describe("a hostile sender", () => {
  test("gets nothing outside of the folder, and no name that misleads", async () => {
    const { source, target, filesInNew } = folders();
    await using house = startIntroducer();
    fs.symlinkSync(source, join(target, "out"));
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    await bob.registered;
    await using mallory = await Hostile.meets(house.port, "bob");
    const names = [
      ...["../escaped", "a/../../escaped", "/etc/escaped", "", ".", "..", "a//b", "a/", "./a"],
      ...["C:\\escaped", "..\\escaped", "a\u0000b", "line\nbreak", "tab\t"],
      ...["\u202egpj.exe", "\u001b[2J", "trailing.", "blank ", "y/".repeat(80) + "y"],
      ...[`.${"a".repeat(24)}.part`],
    ];
    const stream = mallory.offer("many", names.length + 1, names.length + 1, names.slice(0, 10));
    for (const path of [...names, "honest"]) {
      stream.write(encodeMessage({ type: "file", path, bytes: 1, mode: 0o777, modifiedMs: 0, head }));
    }
    await mallory.hears((said) => said.includes('"have"')); // of the only one that may come
    stream.write(encodeMessage({ type: "from", bytes: 0 }));
    stream.write(Buffer.concat([encodeChunk(1), Buffer.from("x")]));
    stream.end(encodeMessage({ type: "end", sha256: sha256(Buffer.from("x")) }));
    const { files, failed, failures } = await bob.next("transferred");
    expect([files, failed]).toEqual([1, names.length]);
    expect(failures.map(({ path }) => path)).toEqual(names);
    expect(mallory.said.match(/"refused"/g)).toHaveLength(names.length);
    expect([filesInNew().sort(), filesIn(source)]).toEqual([["NEW/honest", "out"], []]);
  });

  test.each<[string, (mallory: Hostile) => void]>([
    ["offers what is no number", ({ link }) => link.open("files", { name: "x", files: "many", bytes: 1 })],
    ["offers a negative size", (mallory) => mallory.offer("x", 1, -1)],
    ["offers more files than there can be", (mallory) => mallory.offer("x", 1e9, 1)],
    ["sends more than it has announced", (mallory) => mallory.sends("x", 1, Buffer.alloc(100))],
    [
      "wants a file that takes its owner's rights",
      (mallory) => {
        const rights = { mode: 0o4755, modifiedMs: 0, head };
        mallory.offer("x", 1, 1).write(encodeMessage({ type: "file", path: "x", bytes: 1, ...rights }));
      },
    ],
    ["sends no JSON", (mallory) => mallory.offer("x", 1, 1).write("hello\n")],
    ["never ends its line", (mallory) => mallory.offer("x", 1, 1).write("x".repeat(40_000))],
  ])("that %s is cut off, and harms nobody else", async (_, attack) => {
    const { target, read } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    await bob.registered;
    await using mallory = await Hostile.meets(house.port, "bob");
    attack(mallory);
    mallory.sends("honest", 4, Buffer.from("here"));
    await bob.next("transferred", ({ files }) => files === 1);
    const whole = filesIn(target).filter((name) => !name.endsWith(".part"));
    expect([whole, read("honest")]).toEqual([["honest"], "here"]);
    expect(bob.count("unlinked")).toBe(0);
  });

  test("that lies about the content leaves nothing behind", async () => {
    const { target } = folders();
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
    await bob.registered;
    await using mallory = await Hostile.meets(house.port, "bob");
    mallory.sends("lie", 4, Buffer.from("here"), "0".repeat(64));
    const failures = [{ path: "lie", reason: "its SHA-256 differs" }];
    expect(await bob.next("transferred")).toMatchObject({ files: 0, failed: 1, failures });
    expect(filesIn(target)).toEqual([]);
  });

  test("that offers without end, and nine friends who do, are refused before the list is full of it", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", ...room, "--stay");
    await bob.registered;
    await using mallory = await Hostile.meets(house.port, "bob");
    const friends = [mallory];
    for (let number = 1; number < 10; number++)
      friends.push(await Hostile.meets(house.port, "bob", `mallory-${number}`));
    for (const friend of friends) {
      for (let offer = 0; offer < 20; offer++) friend.offer(`x${offer}`, 1, 1);
      await friend.hears((said) => said.includes("too many offers wait already"));
    }
    await using carol = await Hostile.meets(house.port, "bob", "carol");
    carol.offer("mine", 1, 1);
    await bob.next("offered", ({ what }) => what === "mine");
    const isOfFirst = (one: (typeof bob.events)[number]) => one.event === "offered" && one.name === "mallory";
    expect(bob.events.filter(isOfFirst)).toHaveLength(8);
    for (const friend of friends.slice(1)) await friend[Symbol.asyncDispose]();
    bob.type("whoami");
    await bob.next("whoami" as "echo");
  });
});

/** A peer who writes what no program of ours would, over a link like any other. */
class Hostile implements AsyncDisposable {
  /** All that came back, on any stream. */
  said = "";
  readonly link: Link;
  readonly #participant: Participant;

  static async meets(port: number, peer: string, name = "mallory"): Promise<Hostile> {
    const identity = makeIdentity();
    const mallory = new Participant({ host: "127.0.0.1", port, name, room: words, identity });
    await mallory.join();
    await mallory.peers.waitFor(peer);
    return new Hostile(mallory, await mallory.connect(peer));
  }

  private constructor(participant: Participant, link: Link) {
    this.#participant = participant;
    this.link = link;
  }

  /** Resolves once the peer has all that was sent before. */
  ping(peer: string): Promise<number> {
    return this.#participant.ping(peer);
  }

  /** Of several things, with the paths that it lists; or of one file, with none. */
  offer(name: string, files: number, bytes: number, paths: string[] = []): Stream {
    const counts = { things: Math.max(1, paths.length), listed: paths.length };
    const stream = this.link.open("files", { name, files, bytes, ...counts });
    for (const path of paths) stream.write(encodeMessage({ type: "listed", path }));
    stream.on("data", (piece: Buffer) => (this.said += piece));
    stream.on("error", ({ message }) => (this.said += message));
    return stream;
  }

  /** One file, said in one go. */
  sends(path: string, bytes: number, content: Buffer, digest = sha256(content)): void {
    const stream = this.offer(path, 1, bytes);
    stream.write(encodeMessage({ type: "file", path, bytes, mode: 0o644, modifiedMs: 0, head }));
    stream.write(encodeMessage({ type: "from", bytes: 0 }));
    stream.write(Buffer.concat([encodeChunk(content.length), content]));
    stream.end(encodeMessage({ type: "end", sha256: digest }));
  }

  async hears(isIt: (said: string) => boolean): Promise<void> {
    await until("it is answered", () => isIt(this.said));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#participant.quit();
  }
}
