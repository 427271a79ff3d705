/** As a service: started before the introducer, and watched by a service manager. */
import { dlopen, ptr } from "bun:ffi";
import { expect, setDefaultTimeout } from "bun:test";
import { mkdtempSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Introducer } from "../introducer.ts";
import { ServiceManager } from "../native/host/service.ts";
import { Driven, outcome, startIntroducer } from "./driven-fixture.ts";
import { LyingIntroducer } from "./hostile/wire.ts";
import { until } from "./native-fixture.ts";
import { linuxTest } from "./needing-fixture.ts";
import { freePort } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { testAtOnce } from "./places-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);

// --- before the introducer -------------------------------------------------------------------------------

test("what is to stay waits for the introducer for as long as it takes", async () => {
  const port = freePort();
  await using alice = new Driven(port, "alice", "--stay");
  expect(await alice.next("introducer")).toMatchObject({
    state: "unreachable",
    retryInMs: expect.any(Number),
  });
  await using house = startIntroducer(port);
  await alice.registered;
  expect(house.introducer.participants.map(({ name }) => name)).toEqual(["alice"]);
  expect([alice.count("introducer"), alice.count("error")]).toEqual([1, 0]);
});

test("what does not change is said once, however often it is tried", async () => {
  let visits = 0;
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type !== "register") return;
    visits++;
    visitor.say({ type: "refused", code: "limit", message: "the room is full", request: "register" });
  });
  await using alice = new Driven(house.port, "alice", "--stay");
  await until("it has tried several times", () => visits >= 4);
  expect(alice.events.map(({ event }) => event)).toEqual(["introducer"]);
});

test("what is to do one thing fails at once, or after --wait", async () => {
  const introducer = `127.0.0.1:${freePort()}`;
  const connect = [introducer, "--name", "alice", "--connect", "bob"];
  const at = performance.now();
  const [now, later] = await Promise.all([outcome(connect), outcome([...connect, "--wait", "2"])]);
  expect([now.code, later.code]).toEqual([1, 1]);
  expect(now.stderr).toContain("cannot reach the introducer");
  expect(later.stderr).toContain("not registered with the introducer within 2 s (--wait)");
  expect(performance.now() - at).toBeGreaterThanOrEqual(2_000);
});

test("what is to do one thing waits for a place where all are taken", async () => {
  await using introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits: { roomSize: 2 } });
  const { port } = introducer;
  await using bob = new Driven(port, "bob", "--stay");
  await using carol = new Driven(port, "carol", "--stay");
  await Promise.all([bob.registered, carol.registered]);
  await using alice = new Driven(port, "alice", "--connect", "bob");
  alice.endInput();
  const { reason } = await alice.next("introducer");
  expect(reason).toContain("the room is full");
  carol.type("quit");
  await alice.next("linked");
  expect(await alice.exited()).toBe(0);
});

test("who waits for an introducer can be told to end", async () => {
  await using alice = new Driven(freePort(), "alice", "--stay");
  await alice.next("introducer");
  alice.signal("SIGTERM");
  expect(await alice.exited()).toBe(0);
});

// --- a service manager -----------------------------------------------------------------------------------

/** Where a service manager listens: datagrams to a path. */
class Manager implements Disposable {
  readonly heard: string[] = [];
  readonly path: string;
  readonly #folder = mkdtempSync(join(tmpdir(), "service-manager-"));
  readonly #fd: number;
  readonly #timer: Timer;

  constructor() {
    this.path = join(this.#folder, "notify");
    const { symbols: c } = dlopen("libc.so.6", {
      socket: { args: ["i32", "i32", "i32"], returns: "i32" },
      bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
    });
    this.#fd = c.socket(1, 2 | 0o4000, 0);
    const address = Buffer.from(`\x01\0${this.path}\0`);
    if (c.bind(this.#fd, ptr(address), address.length) !== 0) throw new Error("it could not listen");
    const buffer = Buffer.alloc(4096);
    this.#timer = setInterval(() => {
      try {
        for (;;) this.heard.push(buffer.toString("utf8", 0, readSync(this.#fd, buffer)));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      }
    }, 5);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    rmSync(this.#folder, { recursive: true });
  }
}

linuxTest("a service manager hears that we are ready, alive, and ending", async () => {
  using manager = new Manager();
  const env = { NOTIFY_SOCKET: manager.path, WATCHDOG_USEC: "20000" };
  const service = new ServiceManager(env);
  service.ready("registered as bob");
  service.ready("registered as bob");
  await until("it has heard that", () => manager.heard.length >= 3);
  service.stopping();
  await until("it has heard the end", () => manager.heard.includes("STOPPING=1"));
  const [first, ...rest] = manager.heard;
  expect(first).toBe("READY=1\nSTATUS=registered as bob");
  expect(new Set(rest)).toEqual(new Set(["WATCHDOG=1", "STOPPING=1"]));
});

linuxTest("whose watchdog it is not, or who has no manager, says nothing", async () => {
  using manager = new Manager();
  const others = { NOTIFY_SOCKET: manager.path, WATCHDOG_USEC: "2000", WATCHDOG_PID: "1" };
  for (const env of [others, { NOTIFY_SOCKET: "" }, { NOTIFY_SOCKET: "/nowhere/at/all" }, {}]) {
    const service = new ServiceManager(env);
    service.ready("ready");
    service.stopping();
  }
  await until("it has heard one", () => manager.heard.includes("STOPPING=1"));
  expect(manager.heard).toEqual(["READY=1\nSTATUS=ready", "STOPPING=1"]);
});

linuxTest(
  "the programs are ready when they have registered, and when they listen",
  async () => {
    using manager = new Manager();
    const before = process.env.NOTIFY_SOCKET;
    expect(before).toBeUndefined();
    const port = freePort();
    const env = { ...process.env, NOTIFY_SOCKET: manager.path };
    await using introducer = Bun.spawn(
      [process.execPath, join(import.meta.dir, "../introducer.ts"), `${port}`],
      {
        ...{ env, stdin: "ignore", stdout: "ignore", stderr: "ignore" },
      },
    );
    await until("the introducer is ready", () => manager.heard.some((one) => one.startsWith("READY=1")));
    const state = mkdtempSync(join(tmpdir(), "service-"));
    const args = [`127.0.0.1:${port}`, "--name", "bob", "--stay"];
    await using participant = Bun.spawn(
      [process.execPath, join(import.meta.dir, "../participant.ts"), ...args],
      {
        ...{ env: { ...env, XDG_STATE_HOME: state }, stdin: "ignore", stdout: "ignore", stderr: "ignore" },
      },
    );
    await until("the participant is ready", () =>
      manager.heard.includes("READY=1\nSTATUS=registered as bob"),
    );
    participant.kill("SIGTERM");
    introducer.kill("SIGTERM");
    await Promise.all([participant.exited, introducer.exited]);
    const ends = () => manager.heard.filter((one) => one === "STOPPING=1").length;
    await until("both ends are heard", () => ends() === 2);
    rmSync(state, { recursive: true });
  },
  testMs,
);
