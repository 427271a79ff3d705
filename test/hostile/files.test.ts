/** Who sends files, by hand on the wire, and who else can write where they arrive: what neither may reach. */
import { afterAll, describe, expect, setDefaultTimeout, test as alone } from "bun:test";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Driven, homeOf, outcome, startIntroducer } from "../driven-fixture.ts";
import { frame, frameOf, Member, openFrame, RawLink, readReset, sha256, until } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";
import { isField, linuxTest } from "../needing-fixture.ts";
import { Places, testAtOnce } from "../places-fixture.ts";

/** Who races with us, and whose processor time is measured, is {@link alone}. */
const test = testAtOnce(4);
setDefaultTimeout(testMs);

const words = "of the files of strangers";
const room = ["--room", words];

const place = fs.mkdtempSync(join(tmpdir(), "hostile-files-"));
afterAll(() => fs.rmSync(place, { recursive: true, force: true }), 60_000); // thousands of files
let count = 0;
/** What is to be sent, where it goes, and where nothing may ever go. */
function newPlaces() {
  const around = join(place, String(++count));
  const [source, target, outside] = ["source", "in/target", "in/outside"].map((one) => join(around, one));
  const places = { source: source!, target: target!, outside: outside! };
  for (const folder of Object.values(places)) fs.mkdirSync(folder, { recursive: true });
  return places;
}

/** Relative paths of all that is in a folder, unfinished files left out. */
const filesIn = (folder: string): string[] =>
  fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory() && !entry.name.endsWith(".part"))
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort();

interface FileLine {
  path: string;
  bytes?: number;
  mode?: number;
  modifiedMs?: number;
  head?: string;
}
const line = (message: object): string => JSON.stringify(message) + "\n";
const fileLine = ({ path, bytes = 1, mode = 0o644, modifiedMs = 0, head = "0".repeat(64) }: FileLine) =>
  line({ type: "file", path, bytes, mode, modifiedMs, head });
/** All that follows `have`: the content and its end. */
const content = (text: string) =>
  line({ type: "from", bytes: 0 }) +
  line({ type: "chunk", bytes: text.length }) +
  text +
  line({ type: "end", sha256: sha256(text) });

/** Mallory, who is in the room, and linked with bob; each offer is a stream of hers. */
class Mallory implements Disposable {
  readonly link: RawLink;
  readonly #member: Member;
  #stream: number;

  static async meets(port: number, name = "mallory"): Promise<Mallory> {
    const member = await Member.join(port, { name, room: words });
    const link = await member.link("bob");
    await link.begin(openFrame(1, { use: "lines" }));
    return new Mallory(member, link);
  }

  private constructor(member: Member, link: RawLink) {
    [this.#member, this.link] = [member, link];
    this.#stream = link.firstStream;
  }

  /** What is not said is what it takes for files of those paths; returns the number of the stream. */
  offer(lie: object, listed: string[] = [], odd: string[] = []): number {
    const stream = (this.#stream += 2);
    const counts = { files: 1, bytes: 1, things: 1, listed: listed.length + odd.length };
    this.link.send(openFrame(stream, { use: "files", name: "x", ...counts, ...lie }));
    for (const path of listed) this.say(stream, line({ type: "listed", path }));
    for (const path of odd) this.say(stream, line({ type: "odd", path }));
    return stream;
  }

  say(stream: number, ...texts: string[]): void {
    for (const text of texts) this.link.send(frameOf(frame.data, text, stream));
  }

  heard(stream: number): string {
    return this.link.text.get(stream) ?? "";
  }

  /** One file under an offer of its own; resolves to what came of it. */
  async sends(path: string, more: Partial<FileLine> & { text?: string } = {}): Promise<string> {
    const { text = "x", mode } = more;
    const isOne = !path.includes("/");
    const stream = this.offer({ name: path, bytes: text.length }, isOne ? [] : [path]);
    this.say(stream, fileLine({ path, bytes: text.length, ...(mode !== undefined && { mode }) }));
    const over = this.link.hears(frame.reset, (one) => one.stream === stream);
    over.catch(() => {});
    const answered = until("an answer", () => /"(have|refused)"/.test(this.heard(stream)));
    const first = await Promise.race([answered, over]);
    if (first) return readReset(first).reason;
    const end = frameOf(frame.end, "", stream);
    if (this.heard(stream).includes('"refused"')) this.link.send(end);
    if (this.heard(stream).includes('"refused"')) return /"reason":"([^"]*)"/.exec(this.heard(stream))![1]!;
    this.say(stream, content(text));
    this.link.send(end);
    await until("it is over", () => /"(received|failed)"/.test(this.heard(stream)));
    return /"(received|failed)"/.exec(this.heard(stream))![1]!;
  }

  [Symbol.dispose](): void {
    this.link[Symbol.dispose]();
    this.#member[Symbol.dispose]();
  }
}

/** The house, bob who takes all, and mallory. */
async function met(...options: string[]) {
  const places = newPlaces();
  const house = startIntroducer();
  const bob = new Driven(house.port, "bob", ...room, "--accept", places.target, ...options);
  await bob.registered;
  const mallory = await Mallory.meets(house.port);
  return {
    ...{ house, bob, mallory },
    ...places,
    async [Symbol.asyncDispose]() {
      mallory[Symbol.dispose]();
      await bob[Symbol.asyncDispose]();
      await house[Symbol.asyncDispose]();
    },
  };
}

/** One bob for all who are cut off, one after the other. */
let cut: ReturnType<typeof met> | undefined;
const turns = new Places(1);
async function cutting() {
  const turn = await turns.take();
  const { mallory, target } = await (cut ??= met());
  return { mallory, target, [Symbol.dispose]: () => turn[Symbol.dispose]() };
}
afterAll(async () => (await cut)?.[Symbol.asyncDispose]());

describe("a sender", () => {
  test(
    "reaches nothing outside of the folder",
    async () => {
      await using all = await met();
      const { target, outside } = all;
      const paths = [
        "../x",
        "../outside/x",
        "/etc/x",
        `${outside}/x`,
        "a/../../b",
        "a/../../outside/x",
        "a/..",
        "",
      ];
      paths.push("..", ".", "./../x", "x\0", "\0/x", "a/\0/../../../x", "//x", "~/x\n");
      for (const path of paths) expect([path, await all.mallory.sends(path)]).not.toEqual([path, "received"]);
      // Among several things, too.
      for (const path of paths) {
        const stream = all.mallory.offer({ things: 2, files: 2, bytes: 2 }, [path, path]);
        all.mallory.say(stream, fileLine({ path }), fileLine({ path }));
      }
      // A backslash is a character like any other here.
      for (const path of ["honest", "..\\x", "a\\..\\..\\x"])
        expect(await all.mallory.sends(path)).toBe("received");
      const inside = ["_..\\x", "a\\..\\..\\x", "honest"];
      expect([filesIn(target), filesIn(outside)]).toEqual([inside, []]);
      expect(fs.readdirSync(join(target, "..")).sort()).toEqual(["outside", "target"]);
    },
    testMs,
  );

  test(
    "leaves nothing that is hidden, an option or a setting at the top, and it is told",
    async () => {
      await using all = await met();
      const { target } = all;
      const names = [".bashrc", "-rf", "bunfig.toml", "BunFig.toml", "tsconfig.json", ".env"];
      for (const name of names) {
        expect(await all.mallory.sends(name)).toBe("received");
        const odd = [{ path: name, why: expect.any(String) }];
        const told = { what: name, storedAs: `_${name}`, paths: [name], more: 0, odd };
        expect(await all.bob.next("transferring")).toMatchObject(told);
        expect(await all.bob.next("transferred")).toMatchObject({ what: name, storedAs: `_${name}` });
      }
      expect(await all.mallory.sends(".ssh/keys")).toBe("the offer did not list it, and it is odd");
      const stream = all.mallory.offer({}, ["-folder/.hidden"], ["-folder/"]);
      all.mallory.say(stream, fileLine({ path: "-folder/.hidden" }));
      await until("it may come", () => all.mallory.heard(stream).includes('"have"'));
      all.mallory.say(stream, content("x"));
      all.mallory.link.send(frameOf(frame.end, "", stream));
      await all.bob.next("transferred", ({ storedAs }) => storedAs === "_-folder");
      expect(filesIn(target)).toEqual([...names.map((name) => `_${name}`), "_-folder/.hidden"].sort());
    },
    testMs,
  );

  test(
    "brings nothing that its offer did not list",
    async () => {
      await using all = await met();
      const { target } = all;
      const listed = Array.from({ length: 10 }, (_, index) => `photos/${index}.jpg`);
      const later = [
        "photos/.git/hooks/post-checkout",
        "other/x",
        "photos",
        "photos/-rf",
        "photos/bunfig.toml",
      ];
      const stream = all.mallory.offer({ files: 17, bytes: 17 }, listed, ["photos/.told/"]);
      const sent = ["photos/.vimrc", ...listed.slice(1), ...later, "photos/.told/x", "photos/ten.jpg"];
      for (const path of sent) all.mallory.say(stream, fileLine({ path, mode: 0o777 }));
      const taken = [...listed.slice(1), "photos/.told/x", "photos/ten.jpg"];
      const { said } = { said: () => all.mallory.heard(stream) };
      await until("all are answered", () => said().split("\n").length - 1 === 1 + sent.length);
      for (const _ of taken) all.mallory.say(stream, content("x"));
      all.mallory.link.send(frameOf(frame.end, "", stream));
      const { files, failures } = await all.bob.next("transferred");
      expect([files, failures.map(({ path }) => path)]).toEqual([taken.length, ["photos/.vimrc", ...later]]);
      expect(filesIn(target)).toEqual([...taken].sort());
      for (const path of taken) expect(fs.statSync(join(target, path)).mode & 0o111).toBe(0);
    },
    testMs,
  );

  test(
    "mixes nothing with what is there",
    async () => {
      await using all = await met();
      const { target } = all;
      for (const name of ["src", "src (2)", "from-mallory"]) fs.mkdirSync(join(target, name));
      fs.writeFileSync(join(target, "src/main.ts"), "mine");
      for (const path of ["src/main.ts", "src/node_modules/x"])
        expect(await all.mallory.sends(path)).toBe("received");
      expect(filesIn(target)).toEqual(["src (3)/main.ts", "src (4)/node_modules/x", "src/main.ts"]);
      expect(fs.readFileSync(join(target, "src/main.ts"), "utf8")).toBe("mine");
    },
    testMs,
  );

  test(
    "overwrites nothing by names that are alike to a file system",
    async () => {
      await using all = await met();
      const { target } = all;
      const names = ["Photo.jpg", "photo.jpg", "PHOTO.JPG", "u\u0308ber", "\u00fcber", "photo.jpg"];
      for (const [index, name] of names.entries())
        expect(await all.mallory.sends(name, { text: `the text ${index}` })).toBe("received");
      const texts = filesIn(target).map((name) => fs.readFileSync(join(target, name), "utf8"));
      expect(texts.sort()).toEqual(names.map((_, index) => `the text ${index}`));
    },
    testMs,
  );

  test(
    "gives nobody the rights of its owner, nor to be executed, nor to be written by others",
    async () => {
      await using all = await met();
      const { target } = all;
      for (const mode of [0o4755, 0o2755, 0o1777, 0o100644, -1])
        expect(await all.mallory.sends("setuid", { mode })).toContain("mode must be");
      for (const mode of [0o777, 0o111, 0o666])
        expect(await all.mallory.sends(`m${mode.toString(8)}`, { mode })).toBe("received");
      expect(filesIn(target)).toEqual(["m111", "m666", "m777"]);
      for (const name of filesIn(target)) expect(fs.statSync(join(target, name)).mode & 0o7133).toBe(0);
    },
    testMs,
  );

  test.each<[string, object, string[], string[], string]>([
    ["more paths than an offer may list", { files: 1_000_000, listed: 1_000_000 }, [], [], "listed must be"],
    ["no paths", { files: 2, bytes: 2 }, [], [], "an offer must list its first 10 paths"],
    ["fewer paths than files", { files: 7, things: 7, bytes: 7 }, ["a", "b"], [], "must list its first 10"],
    ["paths of no folder", { files: 2, bytes: 2 }, ["a/x", "b/x"], [], "begin with its name"],
    ["a folder that leads out", { files: 1 }, ["../x"], [], "its path leaves the folder"],
    ["more odd ones than files", { moreOdd: 2 }, [], [], "moreOdd must be"],
    [
      "paths without end",
      { files: 20, things: 20, listed: 30 },
      Array.from({ length: 30 }, () => "x".repeat(4_000)),
      [],
      "lists too much",
    ],
    ["more bytes than offered", { name: "big", bytes: 1 }, [], [], "more than was offered"],
  ])("that offers %s is cut off", async (_, lie, listed, odd, reason) => {
    using scene = await cutting();
    const { mallory, target } = scene;
    const stream = mallory.offer(lie, listed, odd);
    mallory.say(stream, fileLine({ path: "big", bytes: 2 }));
    const reset = await mallory.link.hears(frame.reset, (one) => one.stream === stream);
    expect(readReset(reset).reason).toContain(reason);
    expect(filesIn(target).filter((path) => !path.startsWith("honest"))).toEqual([]);
  });

  test(
    "keeps nobody's memory with offers that never end, nor others from offering",
    async () => {
      await using all = await met();
      const long = Array.from({ length: 10 }, (_, index) => `${index}/`.padEnd(4_000, "x"));
      for (let index = 0; index < 60; index++)
        all.mallory.offer({ files: 10, things: 10, listed: 110 }, long);
      for (let refused = 0; refused < 60 - 32; refused++)
        expect(readReset(await all.mallory.link.hears(frame.reset)).reason).toBe(
          "too many offers wait already",
        );
      using carol = await Mallory.meets(all.house.port, "carol");
      expect(await carol.sends("hers")).toBe("received");
    },
    testMs,
  );

  test(
    "has so many under way at once, and others have theirs",
    async () => {
      await using all = await met();
      const { target } = all;
      for (let index = 0; index < 40; index++) {
        const stream = all.mallory.offer({ name: `held ${index}` });
        all.mallory.say(stream, fileLine({ path: `held ${index}` }), line({ type: "from", bytes: 0 }));
      }
      const refused = await all.mallory.link.hears(frame.reset);
      expect(readReset(refused).reason).toMatch(/^too many (files are being received|offers wait) already$/);
      using carol = await Mallory.meets(all.house.port, "carol");
      expect(await carol.sends("hers")).toBe("received");
      const parts = () => fs.readdirSync(target).filter((name) => name.endsWith(".part"));
      await until("all of them have begun", () => parts().length === 32);
    },
    testMs,
  );
});

describe("a sender of folders", () => {
  const folderLine = (path: string, mode = 0o755) => line({ type: "folder", path, mode });

  test(
    "makes none outside, none that is hidden and was not told, and none with more rights",
    async () => {
      await using all = await met();
      const { target } = all;
      const bad = ["../x", "/etc/x", "t/../../x", "t/..", "t/.", "t//x", "other", "t/\0", "t/.git", "t/-rf"];
      const stream = all.mallory.offer({ files: 1, folders: bad.length + 3, bytes: 1 }, ["t/a"]);
      all.mallory.say(stream, fileLine({ path: "t/a" }));
      await until("it may come", () => all.mallory.heard(stream).includes('"have"'));
      all.mallory.say(stream, content("x"));
      for (const path of bad) all.mallory.say(stream, folderLine(path, 0o777));
      for (const path of ["t/open", "t/b\u001bc", "t"]) all.mallory.say(stream, folderLine(path, 0o777));
      all.mallory.link.send(frameOf(frame.end, "", stream));
      const { failures, failed } = await all.bob.next("transferred");
      expect([failed, failures.map(({ path }) => path)]).toEqual([
        bad.length + 1,
        [...bad, "t/b\u001bc"].map((path) => `${path}/`),
      ]);
      expect(fs.readdirSync(join(target, "..")).sort()).toEqual(["outside", "target"]);
      expect(fs.readdirSync(join(target, "t")).sort()).toEqual(["a", "open"]);
      for (const path of ["t", "t/open"])
        expect(fs.statSync(join(target, path)).mode & 0o7777).toBe(0o777 & ~process.umask());
    },
    testMs,
  );

  test(
    "changes no rights of what a link leads to, or of what was there",
    async () => {
      await using all = await met();
      const { target, outside } = all;
      fs.chmodSync(outside, 0o700);
      fs.mkdirSync(join(target, "t"), { mode: 0o700 });
      const stream = all.mallory.offer({ files: 1, folders: 3, bytes: 1 }, ["t/a"]);
      all.mallory.say(stream, fileLine({ path: "t/a" }), line({ type: "from", bytes: 0 }));
      await until("it has begun", () => fs.existsSync(join(target, "t (2)")));
      fs.symlinkSync(outside, join(target, "t (2)/link"));
      for (const path of ["t/link", "t/link/below", "t"]) all.mallory.say(stream, folderLine(path, 0o777));
      await until("all are answered", () => all.mallory.heard(stream).includes('"made"'));
      expect(all.mallory.heard(stream).match(/"unmade","reason":"link is a symbolic link"/g)).toHaveLength(2);
      expect([outside, join(target, "t")].map((path) => fs.statSync(path).mode & 0o777)).toEqual([
        0o700, 0o700,
      ]);
      expect(filesIn(outside)).toEqual([]);
    },
    testMs,
  );

  test.each<[string, object, string[]]>([
    ["more than it has offered", { folders: 1 }, [folderLine("t"), folderLine("t/x")]],
    ["a mode that is more", { folders: 1 }, [folderLine("t", 0o4755)]],
    ["none at all, and no files", { files: 0, folders: 0 }, []],
    ["more than anybody has", { folders: 1e6 }, []],
    ["again, before anything", {}, [line({ type: "again", bytes: 1 })]],
    [
      "again, twice",
      {},
      [
        fileLine({ path: "t/a" }) + line({ type: "from", bytes: 0 }),
        line({ type: "again", bytes: 1 }) + line({ type: "again", bytes: 1 }),
      ],
    ],
    [
      "again, and longer",
      {},
      [fileLine({ path: "t/a" }) + line({ type: "from", bytes: 0 }) + line({ type: "again", bytes: 2 })],
    ],
    [
      "again, and more than it said then",
      { bytes: 9 },
      [
        fileLine({ path: "t/a", bytes: 9 }) + line({ type: "from", bytes: 0 }),
        line({ type: "again", bytes: 1 }) + line({ type: "chunk", bytes: 2 }) + "xx",
      ],
    ],
    ["no head", {}, [line({ type: "file", path: "t/a", bytes: 1, mode: 0o644, modifiedMs: 0 })]],
    ["what a receiver says", {}, [line({ type: "cancelled", bytes: 1 })]],
  ])("that sends %s is cut off", async (_, lie, lines) => {
    using scene = await cutting();
    const { mallory, target } = scene;
    const stream = mallory.offer(lie, ["t/a"]);
    mallory.say(stream, ...lines);
    const reset = await mallory.link.hears(frame.reset, (one) => one.stream === stream);
    expect(readReset(reset).reason).not.toBe("");
    expect(await mallory.sends("honest")).toBe("received");
    expect(filesIn(target).filter((path) => !path.startsWith("honest"))).toEqual([]);
  });
});

describe("who goes on with what somebody else has sent", () => {
  const text = "the text of a file that alice has sent in part, and mallory has not";
  const head = sha256(text);
  const have = (said: string) => /"have","bytes":(\d+),"sha256":"(\w+)"/.exec(said)!.slice(1);

  /** Offers the file, and returns what bob says that he has of it. */
  async function asks(mallory: Mallory, file: FileLine): Promise<[stream: number, have: string[]]> {
    const stream = mallory.offer({ name: file.path, bytes: file.bytes });
    mallory.say(stream, fileLine(file));
    await until("he says what he has", () => /"(have|refused)"/.test(mallory.heard(stream)));
    return [stream, /"have"/.test(mallory.heard(stream)) ? have(mallory.heard(stream)) : []];
  }

  test(
    "learns of no file whose beginning it does not know",
    async () => {
      await using all = await met();
      const { target } = all;
      fs.writeFileSync(join(target, "diary"), text);
      const bytes = text.length;
      const nothing = ["0", sha256("")];
      expect((await asks(all.mallory, { path: "diary", bytes }))[1]).toEqual(nothing);
      expect((await asks(all.mallory, { path: "diary", bytes: bytes - 1, head }))[1]).toEqual(nothing);
      expect((await asks(all.mallory, { path: "diary", bytes, head }))[1]).toEqual([
        String(bytes),
        sha256(text),
      ]);
    },
    testMs,
  );

  test(
    "takes nothing from a transfer that goes on, and spoils nothing by a lie about what it has",
    async () => {
      await using all = await met();
      const { target } = all;
      using carol = await Mallory.meets(all.house.port, "carol");
      const whole = Buffer.alloc(200_000, "x").toString();
      const file = { path: "big", bytes: whole.length, head: sha256(whole.slice(0, 65_536)) };
      const [stream] = await asks(carol, file);
      const first = whole.slice(0, 100_000);
      carol.say(stream, line({ type: "from", bytes: 0 }) + line({ type: "chunk", bytes: first.length }));
      for (let at = 0; at < first.length; at += 10_000) carol.say(stream, first.slice(at, at + 10_000));
      expect((await asks(all.mallory, file))[1]).toEqual([]);
      // Carol breaks off; Mallory, who knows how it begins, goes on behind it, with something else.
      carol.link.send(frameOf(frame.reset, Buffer.alloc(4), stream));
      const { bytesThere } = await all.bob.next("transfer-cancelled");
      const [again, there] = await asks(all.mallory, file);
      expect(there[0]).toBe(String(bytesThere));
      all.mallory.say(again, line({ type: "from", bytes: bytesThere }));
      const rest = "y".repeat(10_000);
      for (let left = whole.length - bytesThere; left > 0; left -= rest.length) {
        const piece = rest.slice(0, left);
        all.mallory.say(again, line({ type: "chunk", bytes: piece.length }) + piece);
      }
      all.mallory.say(again, line({ type: "end", sha256: sha256(whole) }));
      await until("it is compared", () => all.mallory.heard(again).includes('"failed"'));
      expect(all.mallory.heard(again)).toContain("its SHA-256 differs");
      expect(filesIn(target)).toEqual([]);
    },
    testMs,
  );

  test(
    "comes into no folder of somebody else, whatever name and mark it gives",
    async () => {
      await using all = await met();
      const { target } = all;
      using carol = await Mallory.meets(all.house.port, "carol");
      const digest = "d".repeat(64);
      const stream = carol.offer({ files: 2, bytes: 2, digest }, ["photos/a", "photos/b"]);
      carol.say(stream, fileLine({ path: "photos/a" }) + content("x"));
      await until("one is there", () => carol.heard(stream).includes('"received"'));
      carol.link.send(frameOf(frame.reset, Buffer.alloc(4), stream));
      await all.bob.next("transfer-cancelled");
      const mark = fs.readdirSync(target).find((name) => name.endsWith(".folder.part"))!;
      // A file of hers is no mark, by name or by content.
      fs.mkdirSync(join(target, "mine"));
      const { dev, ino } = fs.statSync(join(target, "mine"), { bigint: true });
      const forged = JSON.stringify({
        offered: "photos",
        digest: "e".repeat(64),
        sender: "",
        name: "mine",
        id: `${dev}:${ino}`,
      });
      for (const path of [mark, "photos.0123456789abcdef01234567.folder.part"]) {
        expect(await all.mallory.sends(path, { text: forged })).toBe("received");
        expect(fs.readdirSync(target)).toContain(`${path}_`);
      }
      for (const lie of ["", "e".repeat(64), "d".repeat(63)]) {
        const one = all.mallory.offer({ files: 2, bytes: 2, digest: lie }, ["photos/a", "photos/evil"]);
        all.mallory.say(one, fileLine({ path: "photos/a" }), fileLine({ path: "photos/evil" }));
        await until("it may come", () => all.mallory.heard(one).split('"have"').length === 3);
        all.mallory.say(one, content("y"), content("y"));
        all.mallory.link.send(frameOf(frame.end, "", one));
        await all.bob.next("transferred", ({ what }) => what === "photos");
      }
      expect(fs.readdirSync(join(target, "photos"))).toEqual(["a"]);
      expect([
        fs.readFileSync(join(target, "photos/a"), "utf8"),
        fs.readdirSync(join(target, "mine")),
      ]).toEqual(["x", []]);
    },
    testMs,
  );
});

test(
  "a sender that cancels in the middle, and goes on all the same, is not heard any more",
  async () => {
    await using all = await met();
    const { target } = all;
    const stream = all.mallory.offer({ name: "a", bytes: 4 });
    all.mallory.say(
      stream,
      line({ type: "cancel" }).repeat(3),
      fileLine({ path: "a", bytes: 4 }),
      content("data"),
    );
    const other = all.mallory.offer({ name: "b", bytes: 4 });
    all.mallory.say(other, fileLine({ path: "b", bytes: 4 }) + line({ type: "from", bytes: 0 }));
    all.mallory.say(other, line({ type: "chunk", bytes: 4 }) + "da", "ta");
    all.mallory.say(other, line({ type: "cancel" }), line({ type: "end", sha256: sha256("data") }));
    const cancelled = (what: string) => all.bob.next("transfer-cancelled", (one) => one.what === what);
    await cancelled("a");
    expect(await cancelled("b")).toMatchObject({ by: "peer", bytesThere: 4, bytes: 4 });
    expect(await all.mallory.sends("honest")).toBe("received");
    expect(filesIn(target)).toEqual(["honest"]);
    expect(all.bob.count("unlinked")).toBe(0);
  },
  testMs,
);

describe("a local user who can write to the folder", () => {
  /** Exchanges a folder with a link that leads outside, again and again, until it is killed; says how often. */
  const swapper = `
    const fs = require("node:fs");
    const [name, outside] = process.argv.slice(1);
    const [aside, link] = [name + " aside", name + " link"];
    fs.symlinkSync(outside, link);
    let swaps = 0;
    const told = setInterval(() => console.log(swaps), 10);
    (function swap() {
      for (let turn = 0; turn < 100; turn++) {
        try {
          fs.renameSync(name, aside);
          try {
            fs.renameSync(link, name);
            swaps++;
            fs.renameSync(name, link);
          } catch {} // it has just been made anew
          fs.renameSync(aside, name);
        } catch {
          try {
            fs.renameSync(name, name + " " + swaps + "." + turn);
          } catch {}
          try {
            fs.renameSync(aside, name);
          } catch {}
        }
      }
      setImmediate(swap);
    })();`;

  /** One who does so with that name; resolves once it does, and `swaps` to how often it did in the end. */
  async function swapping(name: string, outside: string) {
    const command = [process.execPath, "-e", swapper, name, outside];
    const local = Bun.spawn(command, { stdout: "pipe", stderr: "inherit" });
    let said = "";
    const reading = (async () => {
      for await (const text of local.stdout.pipeThrough(new TextDecoderStream())) said += text;
    })();
    await until("it has begun", () => said.includes("\n"));
    return {
      swaps: () => Number(said.trim().split("\n").at(-1)),
      async [Symbol.asyncDispose]() {
        local.kill("SIGKILL");
        await reading;
      },
    };
  }

  alone.each(["photos", "photos/summer"])(
    "gets no file outside by exchanging %s for a link, however often",
    async (swapped) => {
      const { source, target, outside } = newPlaces();
      await using house = startIntroducer();
      await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
      await bob.registered;
      for (let index = 0; index < (isField ? 800 : 200); index++) {
        const path = join(source, "photos/summer", String(index));
        fs.mkdirSync(join(path, ".."), { recursive: true });
        fs.writeFileSync(path, String(index));
      }
      const send = ["--connect", "bob", "--send", join(source, "photos")];
      await using alice = new Driven(house.port, "alice", ...room, ...send);
      await until("it is there", () => fs.existsSync(join(target, swapped)));
      alice.signal("SIGSTOP"); // not all may be there before the other one has begun
      await using local = await swapping(join(target, swapped), outside);
      const before = local.swaps();
      alice.signal("SIGCONT");
      await bob.next("transferred");
      await alice.exited();
      await until("it goes on, so it did meanwhile", () => local.swaps() > before + 25);
      expect(filesIn(outside)).toEqual([]);
    },
    testMs,
  );

  alone(
    "gets none by exchanging the folder itself between files",
    async () => {
      await using all = await met();
      const { target, outside } = all;
      await using local = await swapping(target, outside);
      for (let index = 0; index < 150 || local.swaps() <= 10; index++)
        await all.mallory.sends(`file ${index}`);
      expect(filesIn(outside)).toEqual([]);
    },
    testMs,
  );

  test(
    "gets no file written through a link in the place of a part, or of the mark of a folder",
    async () => {
      await using all = await met();
      const { target, outside } = all;
      const mine = join(outside, "mine");
      fs.writeFileSync(mine, "mine");
      const stream = all.mallory.offer({ files: 2, bytes: 3 }, ["tree/a", "tree/b"]);
      const begun = line({ type: "from", bytes: 0 }) + line({ type: "chunk", bytes: 1 }) + "x";
      all.mallory.say(stream, fileLine({ path: "tree/a", bytes: 2 }), begun);
      const parts = (folder: string) => fs.readdirSync(folder).filter((name) => name.endsWith(".part"));
      // In order: a reset could overtake the byte, and what has none is not kept.
      all.mallory.say(stream, line({ type: "cancel" }));
      await until("he has it", () => all.mallory.heard(stream).includes('"cancelled"'));
      all.mallory.link.send(frameOf(frame.reset, Buffer.alloc(4), stream));
      expect(await all.bob.next("transfer-cancelled")).toMatchObject({ bytesThere: 1 });
      for (const folder of [target, join(target, "tree")])
        for (const name of parts(folder)) {
          fs.rmSync(join(folder, name));
          fs.symlinkSync(mine, join(folder, name));
        }
      const again = all.mallory.offer({ files: 2, bytes: 3 }, ["tree/a", "tree/b"]);
      for (const [name, text] of [
        ["a", "xx"],
        ["b", "x"],
      ] as const)
        all.mallory.say(again, fileLine({ path: `tree/${name}`, bytes: text.length }) + content(text));
      all.mallory.link.send(frameOf(frame.end, "", again));
      expect(await all.bob.next("transferred")).toMatchObject({ files: 2 });
      expect([filesIn(outside), fs.readFileSync(mine, "utf8")]).toEqual([["mine"], "mine"]);
    },
    testMs,
  );

  test(
    "gets nothing sent by links in a folder that is sent, and who sends is told",
    async () => {
      const { source, target, outside } = newPlaces();
      await using house = startIntroducer();
      await using bob = new Driven(house.port, "bob", ...room, "--accept", target);
      await bob.registered;
      const key = join(outside, "key");
      fs.writeFileSync(key, "a private key");
      const tree = join(source, "tree");
      fs.mkdirSync(join(tree, "sub"), { recursive: true });
      fs.writeFileSync(join(tree, "file"), "a file");
      fs.symlinkSync(key, join(tree, "absolute"));
      fs.symlinkSync("../../../in/outside/key", join(tree, "sub/relative"));
      fs.symlinkSync("../file", join(tree, "sub/inside"));
      const send = [
        `127.0.0.1:${house.port}`,
        "--name",
        "alice",
        ...room,
        "--connect",
        "bob",
        "--send",
        tree,
      ];
      const { code, stderr } = await outcome(send, { XDG_STATE_HOME: homeOf("alice") });
      const { failed, files } = await bob.next("transferred");
      expect([code, files, failed]).toEqual([0, 2, 0]);
      for (const path of ["tree/absolute", "tree/sub/relative"])
        expect(stderr).toContain(`${path}: it is a link that leads out, to `);
      expect(filesIn(target)).toEqual(["tree/file", "tree/sub/inside"]);
      expect(fs.readFileSync(join(target, "tree/sub/inside"), "utf8")).toBe("a file");
    },
    testMs,
  );
});

linuxTest(
  "a sender of many of one name has bob work as their number grows, and no more",
  async () => {
    await using all = await met();
    /** Ticks of the processor: what else goes on here takes none of them. */
    const worked = () => {
      const stat = fs.readFileSync(`/proc/${all.bob.pid}/stat`, "utf8");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return Number(fields[11]) + Number(fields[12]);
    };
    const ticks: number[] = [];
    for (const many of [100, 700]) {
      const before = worked();
      const same = Array.from({ length: 10 }, () => "same");
      const stream = all.mallory.offer({ things: many, files: many, bytes: many }, same);
      for (let index = 0; index < many; index++) {
        all.mallory.say(stream, fileLine({ path: "same", modifiedMs: index * 1000 }) + content("x"));
        if (index % 32 === 31)
          await until("they are there", () => all.mallory.heard(stream).split('"received"').length > index);
      }
      all.mallory.link.send(frameOf(frame.end, "", stream));
      expect(await all.bob.next("transferred")).toMatchObject({ files: many });
      ticks.push(worked() - before);
    }
    // Seven times as many. Had each to try all names before it, it would be 14 or 22 times the work.
    expect(ticks[1]! / ticks[0]!).toBeLessThan(10);
  },
  testMs,
);
