/** Forwards and pipes between real programs on loopback, with real clients and targets. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { open } from "node:fs/promises";
import type { Socket } from "node:net";
import { join } from "node:path";
import { Driven, homeOf, met, outcome, spawn, startIntroducer } from "./driven-fixture.ts";
import type { ForwardRow } from "../native/uses/forwards.ts";
import { randomBytes, randomFrom } from "./session/memory-fixture.ts";
import { until } from "./native-fixture.ts";
import { linuxTest } from "./needing-fixture.ts";
import { Pty, root } from "./pty-fixture.ts";
import { client, freePort, readAll, sha256, target } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);

/** A private room: in the lobby nothing may be opened to others. */
const room = ["--room", "of the tests of uses"];

/** All that a client gets for what it says. */
async function asked(port: number, says: Uint8Array | string): ReturnType<typeof readAll> {
  const socket = client(port);
  const reading = readAll(socket);
  socket.end(says);
  return reading;
}

/** Ends its half when the client has, after having sent back what it got. */
const echoing = (socket: Socket): void => void socket.pipe(socket);

// --- forwards --------------------------------------------------------------------------------------------

describe("a forward", () => {
  test(
    "by option: its connections wait for the peer, which may come later",
    async () => {
      await using server = await target(echoing);
      await using house = startIntroducer();
      const port = freePort();
      await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:${server.port}`);
      await alice.registered;
      expect(await alice.next("forwarding")).toMatchObject({
        listen: `127.0.0.1:${port}`,
        name: "bob",
        target: `localhost:${server.port}`,
      });
      const said = randomBytes(randomFrom(1), 2_000_000);
      const early = asked(port, said);
      await using bob = new Driven(house.port, "bob", ...room, "--allow", String(server.port), "--stay");
      expect(sha256((await early).bytes)).toBe(sha256(said));
      alice.type("forwards");
      const row = await forwardsOf(alice, ({ open }) => open === 0);
      expect(row).toEqual({
        listen: `127.0.0.1:${port}`,
        peer: "bob",
        target: `localhost:${server.port}`,
        open: 0,
        total: 1,
        bytesIn: said.length,
        bytesOut: said.length,
      });
      expect(bob.count("forward-refused") + alice.count("forward-refused")).toBe(0);
    },
    testMs,
  );

  test(
    "by command, taken back, and made again",
    async () => {
      await using server = await target(echoing);
      await using house = startIntroducer();
      await using alice = new Driven(house.port, "alice", ...room);
      await using bob = new Driven(house.port, "bob", ...room);
      await met(alice, bob);
      const port = freePort();
      bob.type(`allow 127.0.0.1:${server.port}`, "allowed");
      expect(await allowedOf(bob)).toEqual([`127.0.0.1:${server.port}`]);
      alice.type(`forward 127.0.0.1:${port}:bob:127.0.0.1:${server.port}`);
      await alice.next("linked");
      expect((await asked(port, "hello")).bytes.toString()).toBe("hello");

      const open = client(port);
      const cutOff = readAll(open);
      open.write("still here");
      await until("it is through", () => server.open.size === 1);
      alice.type(`unforward ${port}`);
      expect((await cutOff).error).toBe("ECONNRESET");
      expect((await asked(port, "hello")).error).toBe("ECONNREFUSED");
      alice.type(`unforward ${port}`, "forwards");
      expect((await alice.next("error")).message).toContain(`nothing is forwarded from 127.0.0.1:${port}`);
      expect(await nextOf(alice, "forwards")).toMatchObject({ forwards: [] });

      alice.type(`forward ${port}:bob:${server.port}`);
      await alice.next("forwarding", ({ target: to }) => to === `localhost:${server.port}`);
      expect((await asked(port, "again")).bytes.toString()).toBe("again");
    },
    testMs,
  );

  test(
    "to what is not allowed resets the client, and both sides are told",
    async () => {
      let connections = 0;
      await using server = await target((socket) => (connections++, socket.end()));
      await using house = startIntroducer();
      const port = freePort();
      await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:${server.port}`);
      await using bob = new Driven(house.port, "bob", ...room);
      await met(alice, bob);
      await alice.next("linked");
      const about = { target: `localhost:${server.port}` };
      expect((await asked(port, "hello")).error).toBe("ECONNRESET");
      const reason = `localhost:${server.port} is not allowed`;
      expect(await bob.next("forward-refused")).toMatchObject({ ...about, name: "alice", reason, by: "us" });
      const told = await alice.next("forward-refused");
      expect(told).toMatchObject({ ...about, name: "bob", by: "peer" });
      expect(told.reason).toContain(reason);

      bob.type(`allow ${server.port}`, `disallow ${server.port}`, `disallow ${server.port}`, "allowed");
      expect((await bob.next("error")).message).toContain("is not allowed anyway");
      expect(await allowedOf(bob)).toEqual([]);
      expect((await asked(port, "hello")).error).toBe("ECONNRESET");
      await bob.next("forward-refused");
      expect(connections).toBe(0);
    },
    testMs,
  );

  test(
    "tells once who uses what; to a peer that is gone it is reset at once, and says so",
    async () => {
      await using server = await target(echoing);
      await using house = startIntroducer();
      const port = freePort();
      await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:${server.port}`);
      await using bob = new Driven(house.port, "bob", ...room, "--allow", String(server.port), "--stay");
      await alice.next("linked");
      for (const text of ["one", "two"]) expect((await asked(port, text)).bytes.toString()).toBe(text);
      expect(await bob.next("used")).toMatchObject({ name: "alice", target: `localhost:${server.port}` });
      expect(bob.count("used")).toBe(1);

      bob.signal("SIGKILL");
      await alice.next("left");
      await alice.next("broken");
      // Well before the 30 s for which it waits for a peer that may come.
      expect((await asked(port, "three")).error).toBe("ECONNRESET");
      expect(await alice.next("forward-refused")).toMatchObject({ name: "bob", why: "no-link" });
    },
    testMs,
  );

  test("to a port where nobody listens resets the client, and both sides are told", async () => {
    await using house = startIntroducer();
    const [port, nobody] = [freePort(), freePort()];
    await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:127.0.0.1:${nobody}`);
    await using bob = new Driven(house.port, "bob", ...room, "--allow", "127.0.0.1:*", "--stay");
    await met(alice, bob);
    expect((await asked(port, "hello")).error).toBe("ECONNRESET");
    const reason = `127.0.0.1:${nobody}: nothing listens there (ECONNREFUSED)`;
    expect(await bob.next("forward-refused")).toMatchObject({ reason, why: "no-answer", by: "us" });
    expect((await alice.next("forward-refused")).reason).toContain(reason);
  });

  test(
    "carries halves, and resets as resets",
    async () => {
      const errors: (string | undefined)[] = [];
      await using server = await target((socket) => {
        void readAll(socket).then(({ bytes, error }) => {
          errors.push(error);
          if (bytes.toString() === "reset me") socket.resetAndDestroy();
          else socket.end(`${bytes.length} bytes`);
        });
      });
      await using house = startIntroducer();
      const port = freePort();
      await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:${server.port}`);
      await using bob = new Driven(house.port, "bob", ...room, "--allow", "*", "--stay");
      await met(alice, bob);
      // The answer comes behind our FIN, which must have gone through alone.
      expect(await asked(port, Buffer.alloc(1_000_000))).toMatchObject({
        bytes: Buffer.from("1000000 bytes"),
      });
      expect(await asked(port, "reset me")).toMatchObject({ error: "ECONNRESET" });
      const leaving = client(port);
      leaving.on("error", () => {}).write("x");
      await until("it is through", () => server.open.size === 1);
      leaving.resetAndDestroy();
      await until("the target knows", () => server.open.size === 0);
      expect(errors).toEqual([undefined, undefined, "ECONNRESET"]);
      expect(alice.count("forward-refused") + bob.count("forward-refused")).toBe(0);
    },
    testMs,
  );

  test(
    "has a thousand connections at once, and each gets its own answer",
    async () => {
      await using server = await target(echoing);
      await using house = startIntroducer();
      const port = freePort();
      await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:${server.port}`);
      await using bob = new Driven(house.port, "bob", ...room, "--allow", "*", "--stay");
      await met(alice, bob);
      const sockets = Array.from({ length: 1000 }, () => client(port));
      const answers = sockets.map(readAll);
      for (const [index, socket] of sockets.entries()) socket.write(`I am ${index}. `);
      await forwardsOf(alice, ({ open }) => open === 1000);
      await until("all are through", () => server.open.size === 1000);
      for (const socket of sockets) socket.end("Bye.");
      const got = (await Promise.all(answers)).map(({ bytes }) => bytes.toString());
      expect(got).toEqual(sockets.map((_, index) => `I am ${index}. Bye.`));
      await forwardsOf(alice, ({ open, total }) => open === 0 && total === 1000);
    },
    testMs,
  );

  test(
    "goes on when the peer's program is started anew",
    async () => {
      await using server = await target(echoing);
      await using house = startIntroducer();
      const port = freePort();
      const serving = [...room, "--allow", String(server.port), "--stay"];
      await using alice = new Driven(house.port, "alice", ...room, "-L", `${port}:bob:${server.port}`);
      {
        await using first = new Driven(house.port, "bob", ...serving);
        await met(alice, first);
        expect((await asked(port, "one")).bytes.toString()).toBe("one");
        first.signal("SIGKILL");
        await first.exited();
      }
      await using _ = new Driven(house.port, "bob", ...serving);
      await alice.next("unlinked");
      expect((await asked(port, "two")).bytes.toString()).toBe("two");
    },
    testMs,
  );

  test("where something listens already is refused, and the program with it", async () => {
    await using server = await target(echoing);
    await using house = startIntroducer();
    const { code, stderr } = await outcome([
      `127.0.0.1:${house.port}`,
      ...["--name", "alice", "-L", `${server.port}:bob:1`],
    ]);
    expect([code, stderr]).toEqual([
      1,
      expect.stringContaining(`can't listen on 127.0.0.1:${server.port}: a program listens there already`),
    ]);
  });
});

describe("what a user can't mean", () => {
  test.each([
    [["-L", "80"], "a forward is [BIND:]PORT:PEER:[HOST:]PORT"],
    [["-L", "80:bob:99999"], "99999 is not a port"],
    [["--allow", "10.0.0.0/33:80", ...room], "/33 is no prefix length"],
    [["--pipe", "bob:x"], "x is not a port"],
  ])("%j", async (options, message) => {
    const { code, stderr } = await outcome(["127.0.0.1:1", ...options]);
    expect([code, stderr]).toEqual([2, expect.stringContaining(message)]);
  });
});

// --- the open lobby --------------------------------------------------------------------------------------

describe("in the open lobby", () => {
  test.each([
    ["--allow", "22"],
    ["--accept", "."],
  ])("%s is refused", async (option, value) => {
    for (const lobby of [[], ["--room", "lobby"]]) {
      const { code, stdout, stderr } = await outcome(["127.0.0.1:1", option, value, ...lobby]);
      expect([code, stdout]).toEqual([2, ""]);
      expect(stderr).toContain(`${option} would let anyone in`);
    }
  });

  test("the commands are refused, too, and an offer is", async () => {
    await using house = startIntroducer();
    await using alice = new Driven(house.port, "alice", "--stay");
    await using bob = new Driven(house.port, "bob");
    await met(alice, bob);
    alice.type("allow 22", "accept 1", "allowed");
    for (const command of ["allow", "accept"]) {
      expect((await alice.next("error")).message).toContain(`\`${command}\` is refused: in the open lobby`);
    }
    expect(await allowedOf(alice)).toEqual([]);
    bob.type("connect alice", `send alice ${import.meta.path}`);
    expect((await bob.next("transfer-failed")).reason).toContain("it takes no files in the open lobby");
    const port = freePort();
    bob.type(`forward ${port}:alice:22`);
    await bob.next("forwarding");
    expect((await asked(port, "hello")).error).toBe("ECONNRESET");
    expect((await bob.next("forward-refused")).reason).toContain("is not allowed");
  });
});

// --- pipes -----------------------------------------------------------------------------------------------

/** A program with standard streams of its own, and what became of it. */
function piping(port: number, name: string, to: string, ...options: string[]) {
  const args = [`127.0.0.1:${port}`, "--name", name, ...room, "--pipe", to, ...options];
  const child = spawn(args, { XDG_STATE_HOME: homeOf(name) });
  const ended = async () => {
    const [stdout, stderr] = await Promise.all([child.stdout.bytes(), child.stderr.text()]);
    return { code: await child.exited, stdout, stderr };
  };
  return Object.assign(child, { ended });
}

describe("a pipe", () => {
  test(
    "carries any bytes both ways, says nothing on standard output, and tells at its end",
    async () => {
      await using house = startIntroducer();
      await using alice = piping(house.port, "alice", "bob");
      await using bob = piping(house.port, "bob", "alice");
      const [there, back] = [randomBytes(randomFrom(1), 5_000_001), randomBytes(randomFrom(2), 3_000_000)];
      const ends = [alice.ended(), bob.ended()] as const;
      alice.stdin.write(there);
      alice.stdin.end();
      bob.stdin.write(back);
      bob.stdin.end();
      const [a, b] = await Promise.all(ends);
      expect([a.code, b.code, sha256(a.stdout), sha256(b.stdout)]).toEqual([
        0,
        0,
        sha256(back),
        sha256(there),
      ]);
      for (const { stderr } of [a, b]) expect(stderr).toMatch(/sent \S+ MB, received \S+ MB.*: confirmed/);
    },
    testMs,
  );

  test(
    "one half may end long before the other",
    async () => {
      await using house = startIntroducer();
      await using alice = piping(house.port, "alice", "bob", "-q");
      await using bob = piping(house.port, "bob", "alice", "-q");
      alice.stdin.write("question");
      alice.stdin.end();
      expect(await bob.stdout.text()).toBe("question"); // its end is there while bob goes on
      bob.stdin.write("answer");
      bob.stdin.end();
      expect(await alice.stdout.text()).toBe("answer");
      expect(await Promise.all([alice.exited, bob.exited])).toEqual([0, 0]);
      expect(await Promise.all([alice.stderr.text(), bob.stderr.text()])).toEqual(["", ""]);
    },
    testMs,
  );

  test(
    "ends with the reason on both sides when its reader goes away",
    async () => {
      await using house = startIntroducer();
      await using alice = piping(house.port, "alice", "bob", "-q");
      const command = [process.execPath, "participant.ts", `127.0.0.1:${house.port}`, "--name", "bob"];
      const shell = `{ ${[...command, ...room.map((word) => `'${word}'`)].join(" ")} -q --pipe alice; echo "exit $?" >&2; } | head -c 10`;
      await using bob = Bun.spawn(["sh", "-c", shell], {
        cwd: root,
        env: { PATH: process.env.PATH, XDG_STATE_HOME: homeOf("bob") },
        stdio: ["pipe", "pipe", "pipe"],
      });
      // More than the pipe and every buffer on the way holds.
      Promise.resolve(alice.stdin.write(Buffer.alloc(8_000_000, "x"))).catch(() => {}); // it goes away, too
      const told = await alice.ended();
      const reason = "whoever read the output has gone away (EPIPE)";
      expect([told.code, told.stderr]).toEqual([1, expect.stringContaining(reason)]);
      expect(await bob.stdout.text()).toBe("x".repeat(10));
      expect(await bob.stderr.text()).toMatch(/gone away \(EPIPE\)[^]*exit 1/);
    },
    testMs,
  );

  linuxTest(
    "to a closed standard output is a failure, and nothing is confirmed",
    async () => {
      await using house = startIntroducer();
      await using alice = piping(house.port, "alice", "bob", "-q");
      alice.stdin.write("what would be lost");
      alice.stdin.end();
      const command = [
        process.execPath,
        "participant.ts",
        `127.0.0.1:${house.port}`,
        "--name",
        "bob",
        ...room,
      ];
      await using bob = Bun.spawn(["sh", "-c", 'exec "$0" "$@" >&-', ...command, "-q", "--pipe", "alice"], {
        cwd: root,
        env: { PATH: process.env.PATH, XDG_STATE_HOME: homeOf("bob") },
        stdio: ["ignore", "pipe", "pipe"],
      });
      expect(await bob.stderr.text()).toBe(
        "error: standard output is closed, so nothing could be written there\n",
      );
      expect(await bob.exited).toBe(1);
      alice.kill("SIGTERM");
      expect((await alice.ended()).code).toBe(143);
    },
    testMs,
  );

  test(
    "to a target ends when that has closed, on a terminal and from an input that stays open",
    async () => {
      await using server = await target((socket) => socket.end("bye"));
      await using house = startIntroducer();
      await using bob = new Driven(house.port, "bob", ...room, "--allow", String(server.port), "--stay");
      await bob.registered;
      await using alice = piping(house.port, "alice", `bob:${server.port}`, "-q");
      const { code, stdout } = await alice.ended();
      expect([code, Buffer.from(stdout).toString()]).toEqual([0, "bye"]);
      const command = [process.execPath, "participant.ts", `127.0.0.1:${house.port}`, "--name", "carol"];
      await using carol = new Pty([...command, ...room, "-q", "--pipe", `bob:${server.port}`], {
        XDG_STATE_HOME: homeOf("carol"),
      });
      expect(await carol.exited).toBe(0);
      await carol.shows("bye"); // what was on the way when it ended comes, too
    },
    testMs,
  );

  test(
    "draws on the terminal's standard error how it goes, and tells it at the end",
    async () => {
      await using house = startIntroducer();
      await using bob = piping(house.port, "bob", "alice", "-q");
      bob.stdin.end();
      const fifo = join(homeOf("alice"), "fifo");
      Bun.spawnSync(["mkfifo", fifo]);
      const command = [
        process.execPath,
        "participant.ts",
        `127.0.0.1:${house.port}`,
        "--name",
        "alice",
        ...room,
      ];
      await using alice = new Pty(
        ["sh", "-c", '"$@" < "$0" > /dev/null; echo "exit $?"', fifo, ...command, "--pipe", "bob"],
        { XDG_STATE_HOME: homeOf("alice") },
      );
      const input = await open(fifo, "w");
      await input.writeFile(Buffer.alloc(3_000_000));
      await alice.shows(/sent 3\.0 MB, received 0 B, \S+ [kM]?B\/s, \d+s\r?\n/);
      await input.close();
      expect((await bob.stdout.bytes()).length).toBe(3_000_000);
      await alice.shows(/sent 3\.0 MB, received 0 B, .*: confirmed\r?\n[^]*exit 0/);
    },
    testMs,
  );

  test(
    "fails when the peer is killed before it has confirmed",
    async () => {
      await using house = startIntroducer();
      await using alice = piping(house.port, "alice", "bob", "--keep", "0");
      await using bob = piping(house.port, "bob", "alice");
      alice.stdin.write("all of it");
      alice.stdin.end();
      const reader = bob.stdout.getReader();
      expect(Buffer.from((await reader.read()).value!).toString()).toBe("all of it");
      bob.kill("SIGKILL");
      expect((await alice.ended()).code).toBe(1);
    },
    testMs,
  );

  test(
    "to a target of the peer",
    async () => {
      let targets = 0;
      await using server = await target((socket) => (targets++, echoing(socket)));
      await using house = startIntroducer();
      await using bob = new Driven(house.port, "bob", ...room, "--allow", String(server.port), "--stay");
      await bob.registered;
      await using alice = piping(house.port, "alice", `bob:${server.port}`, "-q");
      // The kernel and the program hold all of it when the target is over: nothing is confirmed before it is written.
      const said = randomBytes(randomFrom(3), 300_000);
      alice.stdin.write(said);
      alice.stdin.end();
      await until("it is through", () => targets === 1 && server.open.size === 0);
      const { code, stdout, stderr } = await alice.ended();
      expect([code, sha256(stdout), stderr]).toEqual([0, sha256(said), ""]);
      await using carol = piping(house.port, "carol", "bob:1", "-q");
      const refused = await carol.ended();
      expect([refused.code, refused.stdout.length]).toEqual([1, 0]);
      expect(refused.stderr).toContain("bob does not let us reach localhost:1");
      expect(await bob.next("forward-refused")).toMatchObject({ name: "carol", target: "localhost:1" });
    },
    testMs,
  );

  test(
    "by the peer's id, too",
    async () => {
      await using house = startIntroducer();
      await using bob = piping(house.port, "bob", "alice", "-q");
      await using watcher = new Driven(house.port, "watcher", ...room, "--connect", "bob");
      const { peer: id } = await watcher.next("linked");
      await using alice = piping(house.port, "alice", String(id), "-q");
      alice.stdin.write("to a number");
      alice.stdin.end();
      bob.stdin.end();
      expect(await bob.stdout.text()).toBe("to a number");
      expect(await Promise.all([alice.exited, bob.exited])).toEqual([0, 0]);
    },
    testMs,
  );

  test(
    "to one that has none is refused, with what would do",
    async () => {
      await using house = startIntroducer();
      await using bob = new Driven(house.port, "bob", ...room);
      await bob.registered;
      await using alice = piping(house.port, "alice", "bob", "-q");
      const { code, stderr } = await alice.ended();
      expect([code, stderr]).toEqual([
        1,
        expect.stringContaining("it was not started with --pipe and your name"),
      ]);
    },
    testMs,
  );
});

// --- what they have in common ----------------------------------------------------------------------------

/** An event that answers a command, and is no `ParticipantEvent`. */
function nextOf(one: Driven, kind: string): Promise<Record<string, unknown>> {
  return one.next(kind as "error") as unknown as Promise<Record<string, unknown>>;
}

async function allowedOf(one: Driven): Promise<unknown> {
  return (await nextOf(one, "allowed"))["allowed"];
}

/** Asks for the table until its one row is so. */
async function forwardsOf(one: Driven, isSo: (row: ForwardRow) => boolean): Promise<ForwardRow> {
  for (;;) {
    one.type("forwards");
    const { forwards } = (await nextOf(one, "forwards")) as { forwards: ForwardRow[] };
    if (isSo(forwards[0]!)) return forwards[0]!;
  }
}
