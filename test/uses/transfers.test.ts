/** Transfers between two sessions over carriers in memory: how they end early, go on, and what is told of that. */
import { beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { newFolders, writeIn } from "../folders-fixture.ts";
import { Cancelled, TransferProgress, type TransferOutcome } from "../../native/uses/files.ts";
import { Folder } from "../../native/uses/folder.ts";
import { receiveFiles } from "../../native/uses/receive.ts";
import { sendFiles } from "../../native/uses/send.ts";
import { collectFiles } from "../../native/uses/source-files.ts";
import { keptDays, listUnfinished, sweep } from "../../native/uses/unfinished.ts";
import { encodeMessage } from "../../native/uses/message.ts";
import type { Stream } from "../../native/session/stream.ts";
import { until } from "../native-fixture.ts";
import { Linked } from "../session/linked-fixture.ts";
import { fingerprints, randomBytes, randomFrom } from "../session/memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const { fresh } = newFolders("transfers-");
let source: string, target: string;
beforeEach(() => void ({ source, target } = fresh()));

const write = (path: string, content: string | Uint8Array): string => writeIn(source, path, content);

/** Relative paths of all that is in the target folder; folders end in a slash. */
const inTarget = (): string[] =>
  fs
    .readdirSync(target, { recursive: true, withFileTypes: true })
    .map((one) => join(one.parentPath, one.name).slice(target.length + 1) + (one.isDirectory() ? "/" : ""))
    .sort();
const modeOf = (path: string): number => fs.statSync(join(target, path)).mode & 0o7777;
const big = (bytes = 6_000_000) => randomBytes(randomFrom(1), bytes);

class Running {
  readonly #cancels = { alice: new AbortController(), bob: new AbortController() };
  readonly sending: TransferProgress;
  receiving: TransferProgress | undefined;
  readonly sent: Promise<TransferOutcome>;
  readonly received: Promise<TransferOutcome>;

  /** `peer`: the certificate of the sender. */
  static async start(link: Linked, paths: string[], peer = fingerprints.alice): Promise<Running> {
    return new Running(link, await collectFiles(paths), peer);
  }

  private constructor(link: Linked, collection: Awaited<ReturnType<typeof collectFiles>>, peer: string) {
    const received = Promise.withResolvers<TransferOutcome>();
    link.onStream = (stream, purpose) =>
      received.resolve(
        receiveFiles(stream, purpose, {
          ...{ peer, name: "alice", signal: this.#cancels.bob.signal },
          decide: () => ({ directory: target }),
          onProgress: (progress) => (this.receiving = progress),
        }),
      );
    this.received = received.promise;
    this.sending = new TransferProgress({ files: collection.files.length, bytes: collection.bytes });
    const signal = this.#cancels.alice.signal;
    this.sent = sendFiles(link.alice, collection, { progress: this.sending, signal });
    for (const work of [this.sent, this.received]) work.catch(() => {});
  }

  cancel(who: "alice" | "bob"): void {
    this.#cancels[who].abort();
  }

  /** Resolves once so many bytes have come. */
  async has(bytes: number): Promise<void> {
    await until("a part has come", () => (this.receiving?.bytesDone ?? 0) >= bytes);
  }
}

const endOf = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "done",
    (error: Error) => (error instanceof Cancelled ? `cancelled by ${error.by}` : error.message),
  );

describe("a transfer that is cancelled", () => {
  test.each(["alice", "bob"] as const)(
    "by %s says on both sides what is there, and goes on behind it",
    async (who) => {
      const content = big();
      const path = write("big", content);
      let there: number;
      {
        using link = new Linked({ bytesPerMs: 20_000 });
        const running = await Running.start(link, [path]);
        await running.has(1_500_000);
        running.cancel(who);
        const [us, peer] = ["cancelled by us", "cancelled by peer"];
        expect([await endOf(running.sent), await endOf(running.received)]).toEqual(
          who === "alice" ? [us, peer] : [peer, us],
        );
        there = running.receiving!.bytesDone;
        const part = running.receiving!.keptAs!;
        expect([part, inTarget()]).toEqual([expect.stringMatching(/^big\.[0-9a-f]{24}\.part$/), [part]]);
        expect(fs.statSync(join(target, part)).size).toBe(there);
        expect([running.sending.bytesDone, link.alice.streamCount + link.bob.streamCount]).toEqual([
          there,
          0,
        ]);
        expect(await listUnfinished(target)).toMatchObject([{ name: "big", path: part, bytes: there }]);
      }
      using link = new Linked();
      // Its time and its sender's key are others now.
      fs.utimesSync(path, 1, 1);
      const again = await Running.start(link, [path], "b2".repeat(32));
      await Promise.all([again.sent, again.received]);
      expect(again.sending.bytesMoved).toBe(content.length - there);
      expect([inTarget(), content.equals(fs.readFileSync(join(target, "big")))]).toEqual([["big"], true]);
    },
  );

  test("while it is not accepted, is over at once", async () => {
    using link = new Linked();
    const cancel = new AbortController();
    const signals: AbortSignal[] = [];
    link.onStream = (stream, purpose) =>
      void receiveFiles(stream, purpose, {
        peer: fingerprints.alice,
        decide: (_, signal) => (signals.push(signal), new Promise(() => {})),
      }).catch(() => {});
    const sent = sendFiles(link.alice, await collectFiles([write("a", "x")]), { signal: cancel.signal });
    await until("it is offered", () => signals.length > 0);
    cancel.abort();
    expect(await endOf(sent)).toBe("cancelled by us");
    await until("the other side knows", () => signals[0]!.aborted);
  });

  test("by a peer that does not answer, ends all the same", async () => {
    using link = new Linked();
    const cancel = new AbortController();
    let reset = "";
    link.onStream = (stream) => {
      stream.write('{"type":"accepted"}\n');
      stream.resume().on("error", ({ message }) => (reset = message));
    };
    const progress = new TransferProgress({ files: 1, bytes: 1 });
    const sent = sendFiles(link.alice, await collectFiles([write("a", "x")]), {
      ...{ signal: cancel.signal, progress },
    });
    await until("it is accepted", () => progress.begun !== undefined);
    cancel.abort();
    expect(await endOf(sent)).toBe("cancelled by us");
    await until("it is told", () => reset === "the other side ended it: it was cancelled");
  });
});

test("a session that finishes in the middle of a write sends nothing behind its end", async () => {
  for (let turn = 0; turn < 20; turn++) {
    using link = new Linked({ bytesPerMs: 20_000 });
    let there = 0;
    const ended = new Promise<string>((resolve) => {
      link.onStream = (stream) => {
        link.bob.onEnd = (end) => resolve(end.by);
        stream.on("data", ({ length }: Buffer) => (there += length)).on("error", () => {});
      };
    });
    const stream = link.alice.open({ use: "x" });
    stream.on("error", () => {});
    const block = Buffer.alloc(300_000);
    const more = () => void stream.write(block, (error) => error ?? setImmediate(more));
    more();
    await until("some of it has come", () => there > 500_000);
    for (let soon = 0; soon < turn; soon++) await new Promise(setImmediate);
    link.alice.finish("quit");
    expect(await ended).toBe("peer");
  }
});

describe("what is unfinished", () => {
  /** Leaves a part of what is sent, and returns where it is. */
  async function cut(paths: string[], peer?: string): Promise<string> {
    using link = new Linked({ bytesPerMs: 20_000 });
    const running = await Running.start(link, paths, peer);
    await running.has(1_500_000);
    link.alice.abandon("gone");
    link.bob.abandon("gone");
    expect(await endOf(running.received)).toContain("gone");
    return running.receiving!.keptAs!;
  }

  test("of four senders with the same file is one, and none is left in the end", async () => {
    const path = write("big", big());
    const parts = new Set<string>();
    for (const key of ["1", "2", "3", "4"]) parts.add(await cut([path], key.repeat(64)));
    expect([parts.size, inTarget()]).toEqual([1, [...parts]]);
    using link = new Linked();
    const last = await Running.start(link, [path], "5".repeat(64));
    await Promise.all([last.sent, last.received]);
    expect([inTarget(), last.sending.bytesMoved < 5_000_000]).toEqual([["big"], true]);
  });

  test("of a folder is gone on with by another key, and not by another folder of that name", async () => {
    write("tree/big", big());
    write("tree/a", "one");
    expect(await cut([join(source, "tree")])).toBe("tree/");
    expect(await listUnfinished(target)).toMatchObject([{ name: "tree", path: "tree/" }]);
    const other = join(source, "other/tree");
    fs.mkdirSync(other, { recursive: true });
    fs.writeFileSync(join(other, "b"), "two");
    for (const path of [other, join(source, "tree")]) {
      using link = new Linked();
      const { sent, received } = await Running.start(link, [path], "b2".repeat(32));
      await Promise.all([sent, received]);
    }
    expect(inTarget()).toEqual(["tree (2)/", "tree (2)/b", "tree/", "tree/a", "tree/big"]);
  });

  test("does not go on with what only looks alike", async () => {
    const content = big();
    const path = write("big", content);
    const part = await cut([path]);
    const there = fs.statSync(join(target, part)).size;
    content[0]! ^= 1; // of the same size, and it begins with something else
    fs.writeFileSync(path, content);
    using link = new Linked();
    const again = await Running.start(link, [path]);
    await Promise.all([again.sent, again.received]);
    expect(again.sending.bytesMoved).toBe(content.length);
    expect([inTarget(), fs.statSync(join(target, part)).size]).toEqual([["big", part], there]);
  });

  test("goes after thirty days, and nothing else does", async () => {
    write("tree/big", big());
    write("tree/a", "one");
    const part = await cut([write("lone", big())]);
    await cut([join(source, "tree")]);
    const names = ["mine.part", "tree/mine.part", `linked.${"0".repeat(24)}.part`];
    for (const name of names) fs.writeFileSync(join(target, name), "mine");
    fs.linkSync(join(target, names[2]!), `${target}-link`);
    const before = inTarget();
    await using root = await Folder.open(target);
    await sweep(root, Date.now() + (keptDays - 1) * 86_400_000);
    expect(inTarget()).toEqual(before);
    await sweep(root, Date.now() + (keptDays + 1) * 86_400_000);
    expect(inTarget()).toEqual([...names, "tree/", "tree/a"].sort());
    expect(before).toContain(part);
  });

  test("stays for thirty days more when it is gone on with", async () => {
    write("tree/big", big());
    const tree = join(source, "tree");
    await cut([tree]);
    const mark = inTarget().find((name) => name.endsWith(".folder.part"))!;
    const recent = new Date(Date.now() - 86_400_000);
    fs.utimesSync(join(target, mark), recent, recent);
    await cut([tree]);
    expect(fs.statSync(join(target, mark)).mtimeMs).toBeGreaterThan(recent.getTime() + 80_000_000);
  });

  test("is taken over by another attempt of the same sender while the first still seems to live", async () => {
    const content = big();
    const path = write("big", content);
    using first = new Linked({ bytesPerMs: 20_000 });
    const stuck = await Running.start(first, [path]);
    await stuck.has(1_000_000);
    first.carriers.alice.cut();
    using second = new Linked();
    const again = await Running.start(second, [path]);
    await Promise.all([again.sent, again.received]);
    expect(await endOf(stuck.received)).toBe("another attempt goes on with it");
    expect([inTarget(), again.sending.bytesMoved < content.length]).toEqual([["big"], true]);
  });

  test("and so is a folder", async () => {
    write("tree/a", "one");
    write("tree/big", big());
    using first = new Linked({ bytesPerMs: 20_000 });
    const stuck = await Running.start(first, [join(source, "tree")]);
    await stuck.has(1_000_000);
    first.carriers.alice.cut();
    using second = new Linked();
    const again = await Running.start(second, [join(source, "tree")]);
    await Promise.all([again.sent, again.received]);
    expect(await endOf(stuck.received)).toBe("another attempt goes on with it");
    expect([inTarget(), again.sending.bytesMoved < 5_500_000]).toEqual([
      ["tree/", "tree/a", "tree/big"],
      true,
    ]);
  });
});

describe("folders", () => {
  test("arrive, empty ones too, with their rights, which our umask narrows", async () => {
    for (const [path, mode] of [
      ["tree", 0o755],
      ["tree/empty", 0o2777],
      ["tree/closed", 0o500],
      ["tree/closed/below", 0o700],
    ] as const) {
      fs.mkdirSync(join(source, path), { recursive: true });
      fs.chmodSync(join(source, path), mode);
    }
    fs.chmodSync(join(source, "tree/closed"), 0o700);
    write("tree/closed/a", "x");
    fs.chmodSync(join(source, "tree/closed"), 0o500);
    using link = new Linked();
    const umask = process.umask(0o027);
    try {
      const { sent, received } = await Running.start(link, [join(source, "tree")]);
      for (const one of await Promise.all([sent, received]))
        expect(one).toMatchObject({ files: 1, failed: 0 });
    } finally {
      process.umask(umask);
    }
    expect(inTarget()).toEqual([
      "tree/",
      "tree/closed/",
      "tree/closed/a",
      "tree/closed/below/",
      "tree/empty/",
    ]);
    const modes = ["tree", "tree/empty", "tree/closed", "tree/closed/below"].map(modeOf);
    expect(modes).toEqual([0o750, 0o750, 0o500, 0o700]);
    fs.chmodSync(join(source, "tree/closed"), 0o700);
    fs.chmodSync(join(target, "tree/closed"), 0o700);
  });

  test("one that is empty is all that is sent", async () => {
    fs.mkdirSync(join(source, "nothing"));
    using link = new Linked();
    const { sent, received } = await Running.start(link, [join(source, "nothing")]);
    await Promise.all([sent, received]);
    expect(inTarget()).toEqual(["nothing/"]);
  });
});

test("who does not take the answers to what it sends gets no more of them", async () => {
  using link = new Linked();
  let taken: Stream | undefined;
  const decide = () => ({ directory: target });
  link.onStream = (stream, purpose) => {
    if (purpose["use"] !== "files") return void stream.pipe(stream);
    taken = stream;
    receiveFiles(stream, purpose, { peer: fingerprints.alice, decide }).catch(() => {});
  };
  const stream = link.alice.open({ use: "files", name: "t", files: 1e6, bytes: 0, listed: 10 });
  stream.on("error", () => {});
  for (let index = 0; index < 10; index++)
    stream.write(encodeMessage({ type: "listed", path: `t/${index}` }));
  const head = "0".repeat(64);
  const file = encodeMessage({ type: "file", path: "..", bytes: 0, mode: 0o644, modifiedMs: 0, head });
  const some = Buffer.concat(Array<Buffer>(1_000).fill(file));
  let written = 0;
  const more = () => void (written++ < 500 && stream.write(some, more));
  more();
  await until("the answers wait", () => taken?.writableNeedDrain === true);
  // Meanwhile everything else goes on.
  const echo = link.alice.open({ use: "echo" });
  for (let round = 0; round < 200; round++) {
    echo.write("x");
    await new Promise((resolve) => void echo.once("data", resolve));
  }
  const answer = encodeMessage({ type: "refused", reason: "its path leaves the folder" }).length;
  expect(taken!.writableLength).toBeLessThan(taken!.writableHighWaterMark + 64 * 1024);
  expect(written * 1_000).toBeLessThan((3 * taken!.writableHighWaterMark) / answer);
  stream.reset("enough");
});

test("names that collide are told on both sides", async () => {
  using link = new Linked();
  fs.writeFileSync(join(target, "f.txt"), "mine");
  const one = await Running.start(link, [write("f.txt", "theirs")]);
  await Promise.all([one.sent, one.received]);
  expect([one.sending.storedAs, one.receiving!.storedAs]).toEqual(["f (2).txt", "f (2).txt"]);
  write("tree/a\u001bb", "one");
  write("tree/a_b", "two");
  using next = new Linked();
  const { sent, received } = await Running.start(next, [join(source, "tree")]);
  const notes = [{ path: "tree/a\u001bb", note: "stored as a_b" }];
  notes.push({ path: "tree/a_b", note: "stored as a_b (2)" });
  for (const outcome of await Promise.all([sent, received]))
    expect(outcome).toMatchObject({ notes, noted: 2 });
  expect(inTarget()).toEqual(["f (2).txt", "f.txt", "tree/", "tree/a_b", "tree/a_b (2)"]);
});

test("bytes count once the receiver has them", async () => {
  using link = new Linked({ bytesPerMs: 5_000 });
  const content = big(3_000_000);
  const running = await Running.start(link, [write("big", content)]);
  await until("it has begun", () => running.receiving !== undefined);
  let ahead = 0;
  for (let there = 0; there < content.length; await new Promise(setImmediate)) {
    there = running.receiving!.bytesDone;
    ahead = Math.max(ahead, running.sending.bytesDone - there);
  }
  expect(ahead).toBe(0);
  await Promise.all([running.sent, running.received]);
  expect(running.sending).toMatchObject({ bytesDone: content.length, bytesMoved: content.length });
});
