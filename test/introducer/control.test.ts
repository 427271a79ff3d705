/** `introducer ctl`: a service obeys by a socket with a path, as its prompt would, and nobody else's user can reach it. */
import { afterAll, expect, setDefaultTimeout, spyOn } from "bun:test";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { controlPath } from "../../native/terminal/control-path.ts";
import { readArguments } from "../../native/terminal/introducer-arguments.ts";
import { LineSocket } from "../hostile/wire.ts";
import { Client, registration } from "../client-fixture.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { freePort } from "../sockets-fixture.ts";
import { program } from "./introducer-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);
const place = mkdtempSync(join(tmpdir(), "control-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));
/** In place of /run/introducer. */
const env = { ...process.env, NO_COLOR: "1", RUNTIME_DIRECTORY: place };

/** An introducer as a service: nobody types anything. */
async function service(...args: string[]) {
  const port = freePort();
  const child = Bun.spawn([process.execPath, program, String(port), "--host", "127.0.0.1", ...args], {
    ...{ env, stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  });
  let told = "";
  const reading = (async () => {
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) told += text;
  })();
  await until("it listens, and takes commands", () => told.includes("participants type:"));
  const path = join(place, `${port}.sock`);
  const dispose = async () => {
    child.kill("SIGKILL");
    await reading;
  };
  return { child, port, path, told: () => told, [Symbol.asyncDispose]: dispose };
}

async function ctl(...args: string[]) {
  const child = Bun.spawn([process.execPath, program, "ctl", ...args], {
    env,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

const joined = async (port: number, name: string) => {
  const client = new Client(port);
  client.send(registration(name));
  await client.next("registered");
  return client;
};

// First, for it waits the longest.
test("what is no command there costs nothing, and commands go on", async () => {
  await using house = await service();
  const dial = () => new LineSocket(net.connect(house.path));
  using garbage = dial();
  garbage.raw("no JSON\n");
  expect(await garbage.lines.next("a code")).toEqual({ code: 2 } as never);
  await garbage.lines.over();
  using endless = dial();
  endless.raw(Buffer.alloc(70_000, "x"));
  await endless.lines.over();
  // Nine who say nothing: there is place for eight, and they are sent away after a while.
  const idle = Array.from({ length: 9 }, dial);
  await Promise.any(idle.map((one) => one.lines.over()));
  await Promise.all(idle.map((one) => one.lines.over()));
  expect((await ctl(String(house.port), "stats")).code).toBe(0);
});

test("it does what the prompt does, and says by its exit code whether it could", async () => {
  await using house = await service();
  const port = String(house.port);
  expect(statSync(house.path).mode & 0o777).toBe(0o600);
  using anna = await joined(house.port, "anna");
  const [list, stats, lines, wrong, unknown, elsewhere] = await Promise.all([
    ctl(port, "list"),
    ctl(port, "stats"),
    ctl(port, "list", "--json"),
    ctl(port, "tell", "bert", "hello"),
    ctl(port, "lst"),
    ctl(String(freePort()), "list"),
  ]);
  expect(list).toMatchObject({
    code: 0,
    out: expect.stringMatching(/anna[^]*1 participant in 1 room/),
    err: "",
  });
  expect(stats.out).toMatch(/^joins +1$/m);
  expect(JSON.parse(lines.out)).toMatchObject({ event: "participants", participants: [{ name: "anna" }] });
  expect(wrong).toEqual({
    code: 1,
    out: "",
    err: "error: nobody here is called bert; `list` shows who is\n",
  });
  expect(unknown.code).toBe(2);
  expect(unknown.err).toContain("there is no command lst; did you mean `list`?");
  expect(elsewhere.code).toBe(1);
  expect(elsewhere.err).toContain("no introducer takes commands at ");
  expect(elsewhere.err).toMatch(new RegExp(`with this port\\? There are: .*\`introducer ctl ${port} …\``));
  expect(await ctl(port, "tell", "anna", "two", "words")).toEqual({
    code: 0,
    out: "",
    err: "told anna (1)\n",
  });
  expect(await anna.next("notice")).toEqual({ type: "notice", text: "two words" });
  expect((await ctl(port, "broadcast", "--", "-5", "min")).err).toBe("told 1 participant\n");
  expect(await anna.next("notice")).toEqual({ type: "notice", text: "-5 min" });
});

test("limits are shown and set, and count at once", async () => {
  await using house = await service();
  const port = String(house.port);
  const [shown, none, noNumber] = await Promise.all([
    ctl(port, "limits"),
    ctl(port, "limits", "max-fun", "1"),
    ctl(port, "limits", "max-room"),
  ]);
  expect(shown.out).toMatch(/^max-connections +20000 +\d+ now$/m);
  const changeable = "max-connections, max-per-address, max-room, max-relays can";
  expect(none.err).toContain(`max-fun can't be changed now: ${changeable}`);
  expect([none.code, noNumber.code]).toEqual([1, 1]);
  expect(noNumber.err).toContain("max-room needs a number after it");
  using anna = await joined(house.port, "anna");
  expect((await ctl(port, "limits", "max-room", "1")).out).toMatch(/^max-room +1$/m);
  using bert = new Client(house.port);
  bert.send(registration("bert"));
  expect(await bert.next("refused")).toMatchObject({ code: "limit" });
  expect((await ctl(port, "limits", "max-connections", "1")).out).toMatch(/^max-connections +1 /m);
  using carl = new Client(house.port);
  expect(await carl.next("refused")).toMatchObject({
    message: expect.stringContaining("it takes 1 connections"),
  });
  anna.end();
});

test("where there is no folder for such sockets, one must be named", () => {
  expect(controlPath(7000, { RUNTIME_DIRECTORY: "/run/a:/run/b" })).toBe("/run/a/7000.sock");
  const uid = spyOn(process, "getuid").mockReturnValue(1000);
  const before = { ...process.env };
  try {
    const own = { XDG_RUNTIME_DIR: "/run/user/1000" };
    expect(controlPath(8000, own)).toBe("/run/user/1000/introducer/8000.sock");
    for (const name of ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"]) delete process.env[name];
    const needed = "`ctl` needs --control PATH here: XDG_RUNTIME_DIR is not set";
    expect(() => readArguments(["ctl", "list"])).toThrow(needed);
    uid.mockReturnValue(0);
    expect(readArguments(["ctl", "8000", "list"])).toMatchObject({ path: "/run/introducer/8000.sock" });
  } finally {
    uid.mockRestore();
    Object.assign(process.env, before);
  }
});

test("drain ends it in order, and leaves no socket", async () => {
  await using house = await service();
  using anna = await joined(house.port, "anna");
  const { code, err } = await ctl(String(house.port), "drain");
  expect([code, err]).toEqual([0, "sending 1 participant away; what is under way may take 10 s\n"]);
  expect(await anna.next("bye")).toMatchObject({ reason: "the operator ended the introducer" });
  expect(await house.child.exited).toBe(0);
  expect(existsSync(house.path)).toBe(false);
});

test("a dead socket is replaced; a living one, or something else, is left, and that is told", async () => {
  const path = join(place, "control");
  {
    await using killed = await service("--control", path);
    killed.child.kill("SIGKILL");
    await killed.child.exited;
  }
  expect(existsSync(path)).toBe(true);
  await using house = await service("--control", path);
  expect((await ctl("--control", path, "stats")).code).toBe(0);
  const file = join(place, "file");
  writeFileSync(file, "precious");
  await using second = await service("--control", path);
  await using third = await service("--control", file);
  await using none = await service("--control", "none");
  expect(second.told()).toContain(`can't be heard at ${path} (--control): something is there already`);
  expect(third.told()).toContain(`can't be heard at ${file} (--control): something is there already`);
  expect([second, third, none].map((one) => existsSync(one.path))).toEqual([false, false, false]);
  expect(await Bun.file(file).text()).toBe("precious");
  for (const one of [second, third, none]) one.child.kill("SIGTERM");
  await Promise.all([second.child.exited, third.child.exited, none.child.exited]);
  expect((await ctl("--control", path, "stats")).code).toBe(0);
  house.child.kill("SIGTERM");
  await house.child.exited;
  expect([existsSync(path), existsSync(file)]).toEqual([false, true]);
});
