/** What another program gets from the class `Participant`: real ones, over loopback. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { Duplex } from "node:stream";
import { makeIdentity } from "../native/secure/identity.ts";
import { HolePunchError, Participant, type Progress, type Stream, StreamError } from "../participant.ts";
import type { ParticipantEvent } from "../native/participant/events.ts";
import { startIntroducer } from "./driven-fixture.ts";
import { noSocketLeft } from "./native-fixture.ts";
import { root } from "./pty-fixture.ts";
import { client, freePort, readAll, sha256, target } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";

setDefaultTimeout(testMs);

const state = mkdtempSync(join(tmpdir(), "library-"));
afterAll(() => rmSync(state, { recursive: true, force: true }));

function run(...command: string[]) {
  const env = { PATH: process.env.PATH, XDG_STATE_HOME: state };
  return Bun.spawn([process.execPath, ...command], { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
}

/** In a private room. */
function participant(port: number, name: string) {
  const events: ParticipantEvent[] = [];
  const one = new Participant({
    ...{ host: "127.0.0.1", port, name, room: "of the library" },
    identity: makeIdentity(),
    onEvent: (event) => void events.push(event),
  });
  return Object.assign(one, { heard: events });
}

async function linked(port: number) {
  const [alice, bob] = [participant(port, "alice"), participant(port, "bob")];
  await Promise.all([alice.join(), bob.join()]);
  await alice.peers.waitFor("bob");
  return { alice, bob, link: await alice.connect("bob") };
}

const all = async (stream: AsyncIterable<Uint8Array>): Promise<Buffer> =>
  Buffer.concat(await Array.fromAsync(stream));

test("importing it prints nothing, takes no signal, and keeps no program alive", async () => {
  const code = `
    const before = process.eventNames().join();
    const { Participant } = await import("./participant.ts");
    await import("./introducer.ts");
    new Participant({ host: "127.0.0.1", name: "idle", room: "lobby" });
    if (process.eventNames().join() !== before) throw new Error(process.eventNames().join());`;
  await using child = run("-e", code);
  expect(await Promise.all([child.exited, child.stdout.text(), child.stderr.text()])).toEqual([0, "", ""]);
});

test("once it has quit it keeps no program alive", async () => {
  await using house = startIntroducer();
  const code = `
    import { Participant } from "./participant.ts";
    const me = new Participant({ host: "127.0.0.1", port: ${house.port}, name: "brief", room: "lobby" });
    await me.join();
    await me.quit();
    setTimeout(() => console.log("something goes on"), 4_000).unref();`;
  await using child = run("-e", code);
  expect(await Promise.all([child.exited, child.stdout.text(), child.stderr.text()])).toEqual([0, "", ""]);
});

describe("streams", () => {
  test("each finds whoever takes its use, and says who the peer is and what else it was opened with", async () => {
    await using _ = noSocketLeft();
    await using house = startIntroducer();
    const { alice, bob, link } = await linked(house.port);
    const taken = Promise.withResolvers<object>();
    bob.onStream("shout/1", async (stream, { name, fingerprint, purpose }) => {
      taken.resolve({ name, fingerprint, purpose });
      for await (const piece of stream.iterator({ destroyOnReturn: false }))
        stream.write(String(piece).toUpperCase());
      stream.end("!");
    });
    const stream = link.open("shout/1", { language: "en" });
    stream.end("hello");
    expect(String(await all(stream))).toBe("HELLO!");
    expect(await taken.promise).toEqual({
      name: "alice",
      fingerprint: alice.self!.fingerprint,
      purpose: { use: "shout/1", language: "en" },
    });
    const other = link.open("shout/2");
    const [error] = (await once(other, "error")) as [Error];
    expect(error.message).toContain("nobody takes streams for shout/2 here");
    await Promise.all([alice.quit(), bob.quit()]);
  });

  test("either side opens them, many at once", async () => {
    await using _ = noSocketLeft();
    await using house = startIntroducer();
    const { alice, bob } = await linked(house.port);
    const echo = (stream: Stream) => void stream.pipe(stream);
    alice.onStream("echo", echo);
    bob.onStream("echo", echo);
    const links = [await alice.peers.whenLinked("bob"), await bob.peers.whenLinked("alice")];
    const echoed = links.flatMap((link) =>
      Array.from({ length: 50 }, async (_, index) => {
        const bytes = Buffer.alloc(20_000 + index, index);
        const stream = link.open("echo");
        stream.end(bytes);
        expect(sha256(await all(stream))).toBe(sha256(bytes));
      }),
    );
    await Promise.all(echoed);
    await Promise.all([alice.quit(), bob.quit()]);
  });

  test("are Web streams by Duplex.toWeb", async () => {
    await using house = startIntroducer();
    const { alice, bob, link } = await linked(house.port);
    bob.onStream("gzip", async (stream) => {
      const { readable, writable } = Duplex.toWeb(stream);
      await readable.pipeThrough(new CompressionStream("gzip")).pipeTo(writable);
    });
    const bytes = Buffer.alloc(1_000_000, "again and again ");
    const { readable, writable } = Duplex.toWeb(link.open("gzip"));
    const sending = new Response(bytes).body!.pipeTo(writable as WritableStream<Uint8Array>);
    const zipped = new Uint8Array(await new Response(readable as ReadableStream<Uint8Array>).arrayBuffer());
    await sending;
    expect(zipped.length).toBeLessThan(10_000);
    expect(sha256(Bun.gunzipSync(zipped))).toBe(sha256(bytes));
    await Promise.all([alice.quit(), bob.quit()]);
  });
});

test("a handler that throws, now or later, resets its stream alone, and may be taken away", async () => {
  await using house = startIntroducer();
  const { alice, bob, link } = await linked(house.port);
  const told = () => bob.heard.flatMap((event) => (event.event === "error" ? [event.message] : []));
  const reasonOf = async (stream: Stream) => String((await once(stream.resume(), "error"))[0]);
  bob.onStream("now", () => {
    throw new Error("a bug");
  });
  bob.onStream("later", async (stream) => {
    await once(stream.resume(), "end");
    throw new Error("a later bug");
  });
  bob.onStream("in a listener", (stream) => {
    stream.on("data", () => {
      throw new Error("a listener's bug");
    });
  });
  const good = link.open("good");
  expect(await reasonOf(good)).toContain("nobody takes streams for good here");
  const opened = bob.onStream("good", (stream, from) => void stream.resume().end(from.link.name));
  for (const use of ["now", "later", "in a listener"]) {
    const stream = link.open(use);
    stream.end("some");
    expect(await reasonOf(stream)).toContain("it failed at the peer");
  }
  expect(told()).toEqual([
    "now of alice failed here: a bug",
    "later of alice failed here: a later bug",
    "a stream of alice failed here: a listener's bug",
  ]);
  expect([link.isOpen, String(await all(link.open("good").end()))]).toEqual([true, "alice"]);
  opened[Symbol.dispose]();
  expect(await reasonOf(link.open("good"))).toContain("nobody takes streams for good here");
  await Promise.all([alice.quit(), bob.quit()]);
});

test("on a link that has ended, a stream and a pair have failed already, and nothing throws", async () => {
  await using house = startIntroducer();
  const { alice, bob, link } = await linked(house.port);
  const { ended } = await bob.peers.whenLinked("alice");
  await link.close();
  expect([await link.ended, await ended, link.isOpen]).toEqual(["disconnected", "peer-disconnected", false]);
  const [error] = (await once(link.open("game"), "error")) as [Error];
  expect([error.message, error instanceof StreamError]).toEqual(["the link has ended", true]);
  const { readable, writable } = link.openPair("game");
  await expect(new Response(readable).text()).rejects.toThrow("the link has ended");
  await expect(writable.close()).rejects.toThrow();
  await Promise.all([alice.quit(), bob.quit()]);
});

test("forwards, pipes, files and links that are kept, as a program has them", async () => {
  await using _ = noSocketLeft();
  await using house = startIntroducer();
  await using server = await target((socket) => void socket.pipe(socket));
  await using alice = participant(house.port, "alice");
  await using bob = participant(house.port, "bob");
  const [from, to] = [join(state, "from"), join(state, "to")];
  await Bun.write(from, Buffer.alloc(3_000_000, "some "));
  await bob.accept(to, { from: "alice" });
  // Before anybody is there: it is for who comes.
  const forwarded = await alice.forward(`${freePort()}:bob:${server.port}`);
  using keeper = alice.keep("bob");
  await Promise.all([alice.join(), bob.join()]);
  expect(await bob.allow(String(server.port))).toBe(`localhost:${server.port}`);
  await keeper.first;
  const socket = client(Number(forwarded.listen.split(":")[1]));
  socket.end("through it");
  expect(String((await readAll(socket)).bytes)).toBe("through it");
  const { sending } = await alice.pipe("bob", { target: String(server.port) });
  sending.end("and by a pipe");
  expect(String(await all(sending))).toBe("and by a pipe");
  const progress: Progress[] = [];
  const sent = await alice.send("bob", [from], { onProgress: (one) => progress.push(one) });
  expect(sent).toMatchObject({ files: 1, failed: 0 });
  expect(progress.at(-1)).toEqual({ files: 1, filesDone: 1, bytes: 3_000_000, bytesDone: 3_000_000 });
  expect(sha256(readFileSync(join(to, "from")))).toBe(sha256(readFileSync(from)));
  const over = AbortSignal.abort(new Error("not now"));
  await expect(alice.send("bob", [from], { signal: over })).rejects.toThrow("not now");
  expect([alice.uses.forwards.length, alice.uses.transfers, bob.uses.allowed.length]).toEqual([1, [], 1]);
  const until = new AbortController();
  await alice.forward(`${freePort()}:bob:${server.port}`, { signal: until.signal });
  expect(alice.uses.forwards.length).toBe(2);
  until.abort();
  expect(alice.uses.forwards.map(({ listen }) => listen)).toEqual([forwarded.listen]);
  forwarded[Symbol.dispose]();
  forwarded[Symbol.dispose]();
  expect(alice.uses.forwards).toEqual([]);
  keeper[Symbol.dispose]();
  expect(alice.peers.link("bob")?.isOpen).toBe(true);
  expect(await alice.disconnect("bob")).toBe("linked");
});

/** What it was rejected with, as `code: message`. */
const rejected = async (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "nothing went wrong",
    (error: unknown) => (error instanceof HolePunchError ? `${error.code}: ${error.message}` : String(error)),
  );

test("every method rejects with a HolePunchError that says why, by a code too; none throws", async () => {
  await using house = startIntroducer();
  await using alice = participant(house.port, "alice");
  const says = async (work: Promise<unknown>, ...parts: string[]) => {
    const told = await rejected(work);
    for (const part of parts) expect(told).toContain(part);
  };
  await says(alice.connect("bob"), "no-such-peer: nobody here is called bob");
  await says(alice.leave(), "not-registered: ");
  await says(alice.echo("hello"), "not-registered: ");
  await says(alice.nat(), "not-registered: ");
  await alice.join();
  await says(alice.join(), "not-possible: already registered");
  await says(alice.connect("alice"), "no-such-peer: that is yourself");
  for (const work of [alice.say("bob", "hello"), alice.ping("bob"), alice.disconnect("bob")])
    await says(work, "no-such-peer: nobody here is called bob");
  await says(alice.send("bob", [import.meta.path]), "no-such-peer: nobody here is called bob");
  await says(alice.forward("what"), "not-possible: what: a forward is");
  await says(alice.unforward("1"), "not-possible: nothing is forwarded");
  await says(alice.allow("what:is:that"), "not-possible: ");
  await says(alice.accept(import.meta.path), "not-possible: files can't be put into");
  await says(alice.uses.disallow("22"), "not-possible: ");
  await says(alice.uses.refuse(1), "not-possible: there is no offer 1");
  const waiting = [rejected(alice.connect("bob", { wait: true })), rejected(alice.peers.whenLinked("bob"))];
  await alice.quit();
  for (const why of [...waiting, rejected(alice.join()), rejected(alice.forward("8080:bob:80"))])
    expect(await why).toBe("has-quit: this participant has quit");
  expect(() => new Participant({ host: "127.0.0.1", name: "alice", room: "" })).toThrow("a room must have");
  await using other = new Participant({ host: "127.0.0.1", port: freePort(), name: "alice", room: "lobby" });
  await says(other.join(), "no-introducer: cannot reach the introducer at 127.0.0.1:", "refused");
  await says(other.allow("22"), "open-room: ");
});

test("nothing that does not compile is waved through, but in test/types.ts", async () => {
  const globs = ["*.ts", "native/**/*.ts", "test/**/*.ts"].map((glob) => new Bun.Glob(glob));
  const files = globs.flatMap((glob) => [...glob.scanSync({ cwd: root })]);
  const waving = new RegExp("@ts-(expect-" + "error|ignore|nocheck)");
  const found = files.filter((file) => waving.test(readFileSync(join(root, file), "utf8")));
  expect(found).toEqual(["test/types.ts"]);
});

test("the program in the README is run as it stands there: who asks is greeted, and ends by itself", async () => {
  await using house = startIntroducer();
  const readme = await Bun.file(join(root, "README.md")).text();
  const [, text = ""] = /^```ts\n([^]*?)^```$/m.exec(readme)!;
  const file = join(mkdtempSync(join(tmpdir(), "library-test-")), "greeting.ts");
  await Bun.write(file, text.replace("tcp-hole-punching/participant", join(root, "participant.ts")));
  const program = [file, "127.0.0.1", String(house.port)];
  await using bob = run(...program, "bob");
  await using alice = run(...program, "alice", "bob");
  expect(await Promise.all([alice.stdout.text(), alice.stderr.text()])).toEqual(["hello, alice\n", ""]);
  expect([await alice.exited, bob.exitCode]).toEqual([0, null]);
  rmSync(dirname(file), { recursive: true });
});
