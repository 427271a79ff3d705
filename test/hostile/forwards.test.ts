/** What a room member must not reach, learn or use up through a participant that allows it something. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { readdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { Driven, homeOf, program, startIntroducer } from "../driven-fixture.ts";
import { describeNeeding } from "../needing-fixture.ts";
import { Bait, frame, limitedTo, Member, openFrame, readReset, resetFrame, until } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);

const words = "k7xq-m2vp-9dfa-w4tz";

/** eve, in bob's room and linked with him; bob allows what the rules say. */
async function insider(...rules: string[]) {
  const house = startIntroducer();
  const options = rules.flatMap((rule) => ["--allow", rule]);
  const bob = new Driven(house.port, "bob", "--room", words, "--stay", ...options);
  await bob.registered;
  const eve = await Member.join(house.port, { name: "eve", room: words });
  const link = await eve.link("bob");
  await link.begin(openFrame(1, { use: "lines" }));
  await bob.next("linked");
  let next = 1;
  return {
    ...{ house, bob, eve, link },
    /** Asks for a target; resolves to why it was refused, or to "reached" once the service has said something. */
    async ask(host: string, port: number, use = "forward", more: object = {}): Promise<string> {
      const stream = (next += 2);
      link.send(openFrame(stream, { use, host, port, ...more }));
      const answer = await link.frames.next(
        `an answer for ${host}`,
        ({ type, stream: of }) => of === stream && (type === frame.reset || type === frame.data),
      );
      return answer.type === frame.data ? "reached" : readReset(answer).reason;
    },
    async [Symbol.asyncDispose]() {
      link[Symbol.dispose]();
      eve[Symbol.dispose]();
      await bob[Symbol.asyncDispose]();
      await house[Symbol.asyncDispose]();
    },
  };
}

const greeting = (host = "127.0.0.1", port = 0) => Bait.listen(host, (socket) => socket.end("welcome"), port);

/** A name, other than localhost, that this host's own list gives a loopback address: as a rebinding name server would. */
const loopbackName = readFileSync("/etc/hosts", "utf8")
  .split("\n")
  .map((line) => line.replace(/#.*/, "").trim().split(/\s+/))
  .flatMap(([address, ...names]) => (address?.startsWith("127.") ? names : []))
  .find((name) => !name.includes("localhost"));
const whereNamed = describeNeeding(loopbackName ? undefined : "/etc/hosts names no other loopback address");

describe("the descriptors of a participant", () => {
  /** bob, with few of them, and what he allows to be reached. */
  async function tight(descriptors: number) {
    const house = startIntroducer();
    const bait = await Bait.listen("127.0.0.1", (socket) => void socket.write("welcome"));
    const args = [`127.0.0.1:${house.port}`, "--name", "bob", "--room", words, "--allow", String(bait.port)];
    const child = Bun.spawn(limitedTo(descriptors, [process.execPath, program, ...args, "--stay"]), {
      cwd: homeOf("bob"),
      env: { PATH: process.env.PATH ?? "", XDG_STATE_HOME: homeOf("bob") },
      stdio: ["ignore", "ignore", "ignore"],
    });
    return {
      ...{ house, bait },
      open: () => readdirSync(`/proc/${child.pid}/fd`).length,
      async [Symbol.asyncDispose]() {
        child.kill("SIGKILL");
        await child.exited;
        bait[Symbol.dispose]();
        await house[Symbol.asyncDispose]();
      },
    };
  }

  async function linked(port: number, name: string) {
    const member = await Member.join(port, { name, room: words });
    const link = await member.link("bob");
    await link.begin(openFrame(1, { use: "lines" }));
    let next = 1;
    return {
      /** Gives all of them back. */
      reset(): void {
        for (let id = 3; id <= next; id += 2) link.send(resetFrame(id, 0, ""));
      },
      /** Opens so many forwards; resolves, once each was answered, to how many got through. */
      async forwards(count: number, port: number): Promise<number> {
        const ids = Array.from({ length: count }, () => (next += 2));
        link.send(...ids.map((id) => openFrame(id, { use: "forward", host: "127.0.0.1", port })));
        const answers = ids.map((id) =>
          link.frames.next(
            `an answer on ${id}`,
            ({ type, stream }) => stream === id && (type === frame.reset || type === frame.data),
          ),
        );
        return (await Promise.all(answers)).filter(({ type }) => type === frame.data).length;
      },
      [Symbol.dispose]() {
        link[Symbol.dispose]();
        member[Symbol.dispose]();
      },
    };
  }

  test(
    "are not held by forwards of those who are gone",
    async () => {
      await using scene = await tight(256);
      const { bait, house } = scene;
      {
        using eve = await linked(house.port, "eve");
        using mallory = await linked(house.port, "mallory");
        expect(await eve.forwards(60, bait.port)).toBe(60);
        expect(await mallory.forwards(30, bait.port)).toBe(30);
      }
      // A break that lasts: what may come back, such as a shell, goes on, and no more than that.
      await until("few are left", () => bait.open.size <= 32);
      using carol = await linked(house.port, "carol");
      expect(await carol.forwards(32, bait.port)).toBe(32);
    },
    testMs,
  );

  test(
    "are not taken by one member's forwards: others get theirs",
    async () => {
      await using scene = await tight(256);
      const { bait, house } = scene;
      using eve = await linked(house.port, "eve");
      expect(await eve.forwards(64, bait.port)).toBe(64);
      eve.reset();
      await until("what was given back is free", () => bait.open.size === 0);
      expect(await eve.forwards(400, bait.port)).toBe(64);
      using mallory = await linked(house.port, "mallory");
      expect(await mallory.forwards(400, bait.port)).toBe(42);
      using carol = await linked(house.port, "carol");
      expect(await carol.forwards(32, bait.port)).toBe(32); // of which eve has given some
      await until("eve's have been closed", () => bait.open.size === 128 && scene.open() < 128 + 64);
    },
    testMs,
  );

  test("are not taken by twelve members' forwards either", async () => {
    await using scene = await tight(256);
    const { bait, house } = scene;
    const all: Disposable[] = [];
    for (let number = 1; number <= 12; number++) {
      const eve = await linked(house.port, `eve-${number}`);
      all.push(eve);
      expect(await eve.forwards(70, bait.port)).toBe(Math.floor(128 / (number + 1)));
    }
    using carol = await linked(house.port, "carol");
    expect(await carol.forwards(9, bait.port)).toBe(9);
    await until("the others' have been closed", () => bait.open.size <= 128);
    for (const one of all) one[Symbol.dispose]();
  }, 60_000);
});

describe("a room member", () => {
  test("reaches what is allowed, by its address and as localhost, and nothing beside it", async () => {
    using bait = await greeting();
    using secret = await greeting();
    await using scene = await insider(String(bait.port));
    for (const use of ["forward", "socks", "pipe"]) {
      const reached = await Promise.all(
        ["localhost", "127.0.0.1"].map((host) => scene.ask(host, bait.port, use)),
      );
      expect(reached).toEqual(["reached", "reached"]);
      for (const host of ["localhost", "127.0.0.1", "127.0.0.2", "0.0.0.0", "::", "::ffff:127.0.0.1"])
        expect(await scene.ask(host, secret.port, use)).toEndWith(`:${secret.port} is not allowed`);
    }
    for (const host of ["127.0.0.2", "0.0.0.0", "::", "::ffff:127.0.0.2", "::127.0.0.1"])
      expect(await scene.ask(host, bait.port)).toEndWith(`:${bait.port} is not allowed`);
    expect([bait.total, secret.total]).toEqual([6, 0]);
  });

  test("reaches no socket by its path but the one that is allowed, and no other program by that one", async () => {
    const folder = homeOf("sockets");
    const reached: string[] = [];
    const serve = (name: string) =>
      Bun.listen({
        unix: join(folder, name),
        socket: { data() {}, open: (socket) => (reached.push(name), void socket.end("welcome")) },
      });
    using _open = serve("open");
    using _secret = serve("secret");
    symlinkSync(join(folder, "secret"), join(folder, "link"));
    await using scene = await insider("*:*", join(folder, "open"));
    for (const use of ["forward", "socks", "pipe"]) {
      const ask = (path: unknown) => scene.ask("localhost", 1, use, { kind: "unix", path });
      expect(await ask(join(folder, "open"))).toBe("reached");
      for (const name of ["secret", "link"]) {
        const path = join(folder, name);
        expect(await ask(path)).toBe(`${path} is not allowed`);
      }
      const odd = [`${folder}/./secret`, `${folder}/x/../secret`, `${folder}//secret`, "secret", "", null, 7];
      for (const path of odd) expect(await ask(path)).toBe("path must be the whole path of a socket");
    }
    expect(reached).toEqual(["open", "open", "open"]);
  });

  test("reaches no IPv4 address by a rule for IPv6, nor the other way", async () => {
    using four = await greeting();
    using six = await greeting("::1", four.port);
    for (const [rule, hosts] of [
      ["[::/0]", ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0.0.0.0"]],
      ["[::ffff:127.0.0.1]", ["::1", "::"]],
      ["0.0.0.0/0", ["::1", "::"]],
    ] as const) {
      await using scene = await insider(`${rule}:${four.port}`);
      for (const host of hosts)
        expect(await scene.ask(host, four.port)).toEndWith(`:${four.port} is not allowed`);
    }
    expect([four.total, six.total]).toEqual([0, 0]);
  });

  whereNamed("by a name", () => {
    const name = loopbackName!;

    test("that no rule names learns nothing of it: it is not looked up", async () => {
      using bait = await greeting();
      for (const rule of [
        `${bait.port}`,
        `127.0.0.1:${bait.port}`,
        `10.0.0.0/8:${bait.port}`,
        "other.example:*",
      ]) {
        await using scene = await insider(rule);
        // A name that resolves, and one that does not: the answers differ in nothing.
        for (const host of [name, "nowhere.invalid"])
          expect(await scene.ask(host, bait.port)).toBe(`${host}:${bait.port} is not allowed`);
      }
      expect(bait.total).toBe(0);
    });

    test("that a rule names does not reach a loopback address behind it, nor learns that address", async () => {
      using bait = await greeting();
      await using scene = await insider(`${name}:${bait.port}`);
      expect(await scene.ask(name, bait.port)).toBe(`${name}:${bait.port} is not allowed`);
      const told = await scene.bob.next("forward-refused");
      expect(told.reason).toContain("127."); // our own user is told what to write
      expect(told.reason).toContain("--allow");
      expect(bait.total).toBe(0);
    });

    test("reaches a loopback address where a rule says that address, too", async () => {
      using bait = await greeting();
      await using scene = await insider(`${name}:${bait.port}`, `127.0.0.0/8:${bait.port}`);
      expect(await scene.ask(name, bait.port)).toBe("reached");
    });

    test("is not told the address at which nobody answered", async () => {
      const nobody = await greeting();
      nobody[Symbol.dispose]();
      await using scene = await insider(`${name}:${nobody.port}`, `127.0.0.0/8:${nobody.port}`);
      expect(await scene.ask(name, nobody.port)).toBe(
        `${name}:${nobody.port}: nothing listens there (ECONNREFUSED)`,
      );
    });
  });
});
