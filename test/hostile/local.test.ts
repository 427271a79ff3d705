/** Another user of the same machine, who would have us be somebody else, wait, or show our room's words. */
import { expect, setDefaultTimeout, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadIdentity } from "../../native/secure/identity.ts";
import { linuxTest, testNeeding } from "../needing-fixture.ts";
import { Pty } from "../pty-fixture.ts";
import { program } from "../driven-fixture.ts";
import { LyingIntroducer, peersLine, registered, roomKey, run } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const isRoot = process.getuid?.() === 0;
const needsRoot = isRoot ? undefined : "root, to give files to another user";
const nobody = 65534;

/** A state folder with an identity in it. */
class State implements Disposable {
  readonly base = mkdtempSync(join(tmpdir(), `identity-hostile-${process.pid}-`));
  readonly folder = join(this.base, "tcp-hole-punching");
  readonly file = join(this.folder, "identity.pem");
  readonly identity = loadIdentity(this.folder);

  /** What the program says of it, which must not say a line to anyone. It may connect before it has read the file. */
  async refusal(): Promise<string> {
    using house = await LyingIntroducer.listen();
    const { code, stdout, stderr } = await run(
      this.base,
      [process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice"],
      { env: { XDG_STATE_HOME: this.base } },
    );
    expect({ code, stdout, said: house.heard.all.length }).toEqual({ code: 1, stdout: "", said: 0 });
    return stderr;
  }

  [Symbol.dispose](): void {
    rmSync(this.base, { recursive: true, force: true });
  }
}

const unfit: Record<string, [(state: State) => void | Promise<void>, string]> = {
  "is a FIFO, which would be waited for": [
    async ({ base, file }) => {
      rmSync(file);
      await run(base, ["mkfifo", "-m", "600", file]);
    },
    "is no regular file; move it away",
  ],
  "is a symbolic link to a whole one": [
    ({ file, base }) => {
      const elsewhere = join(base, "elsewhere.pem");
      renameSync(file, elsewhere);
      symlinkSync(elsewhere, file);
    },
    "is a symbolic link; put the file itself in its place",
  ],
  "is a device": [
    ({ file }) => {
      rmSync(file);
      symlinkSync("/dev/zero", file);
    },
    "is a symbolic link",
  ],
  "has no end, nearly": [({ file }) => truncateSync(file, 2 ** 40), "too many for what it should hold"],
  "is in a folder that others can write to": [
    ({ folder }) => chmodSync(folder, 0o777),
    "must be yours alone, but others can write to it (mode 0777); run: chmod 700",
  ],
};

test.each(Object.entries(unfit))("an identity.pem that %s is not taken", async (_what, [spoil, why]) => {
  using state = new State();
  await spoil(state);
  const said = await state.refusal();
  expect(said).toContain(state.folder);
  expect(said).toContain(why);
});

testNeeding(needsRoot)(
  "another user's identity.pem is not taken, nor one in another user's folder",
  async () => {
    using file = new State();
    chownSync(file.file, nobody, nobody);
    expect(await file.refusal()).toContain(`${file.file} belongs to another user (65534, and this is 0)`);
    using folder = new State();
    chownSync(folder.folder, nobody, nobody);
    expect(await folder.refusal()).toContain(
      `${folder.folder} belongs to another user (65534, and this is 0)`,
    );
  },
);

test("one of ours, in a folder that others can look at, is taken", async () => {
  using state = new State();
  chmodSync(state.folder, 0o755);
  expect(loadIdentity(state.folder)).toEqual(state.identity);
});

// --- the words of a room -------------------------------------------------------------------------------------

const words = "the words of this test";

/** What other users see of that process's command line. */
const shownOf = (pid: number): string => readFileSync(`/proc/${pid}/cmdline`, "utf8");

async function welcoming() {
  return LyingIntroducer.listen(
    (line, visitor) => line.type === "register" && visitor.say(registered(line), peersLine()),
  );
}

linuxTest.each([[["--room", words]], [[`--room=${words}`]]])(
  "other users don't see the words of %j",
  async (room) => {
    using house = await welcoming();
    using state = new State();
    await using child = Bun.spawn(
      [process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice", "--json", ...room],
      { env: { XDG_STATE_HOME: state.base }, cwd: state.base, stdin: "pipe", stdout: "pipe", stderr: "pipe" },
    );
    await house.hears("register");
    expect(shownOf(child.pid)).not.toContain(words);
    expect(shownOf(child.pid)).toContain("--room");
    child.stdin.end();
    const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
    expect(await child.exited).toBe(0);
    expect(stdout).toContain('"event":"registered"');
    expect(stdout).not.toContain(words);
    expect(stderr).not.toContain(words);
    expect(stdout).not.toContain('"event":"warning"');
  },
);

linuxTest("who shows the words by what started the program is warned of it, once", async () => {
  using house = await welcoming();
  using state = new State();
  const command = `'${process.execPath}' '${program}' 127.0.0.1:${house.port} --name alice --room '${words}'; exit $?`;
  const { code, stderr } = await run(state.base, ["/bin/sh", "-c", command], {
    env: { XDG_STATE_HOME: state.base },
  });
  expect(code).toBe(0);
  expect(stderr.match(/can read the room's words/g)).toHaveLength(1);
  expect(stderr).not.toContain(words);
});

linuxTest("nobody is warned who gives the words in the environment", async () => {
  using house = await welcoming();
  using state = new State();
  const env = { XDG_STATE_HOME: state.base, ROOM: words };
  const command = [process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice"];
  const { code, stdout, stderr } = await run(state.base, command, { env });
  expect([code, stderr.includes("--room"), (stdout + stderr).includes(words)]).toEqual([0, false, false]);
  expect((await house.hears("register")).room).toBe((await roomKey(words)).id);
});

test("--room - asks for the words, and shows nothing of them", async () => {
  using house = await welcoming();
  using state = new State();
  const command = [process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice", "--room", "-"];
  await using alice = new Pty(command, { XDG_STATE_HOME: state.base, ROOM: undefined });
  await alice.shows("Words of the room (not shown): ");
  alice.type("lobby\r");
  await alice.shows("a room must have words of its own here");
  alice.type(`${words}x\x7f\r`);
  await alice.shows("in a private room");
  expect(alice.screen).not.toContain("words of this");
  expect((await house.hears("register")).room).toBe((await roomKey(words)).id);
  await alice.answers("list\r", "Nobody else is in the room");
  alice.type("quit\r");
  expect(await alice.exited).toBe(0);
});

test("--room - without a terminal is refused", async () => {
  using state = new State();
  const command = [process.execPath, program, "127.0.0.1:1", "--name", "alice", "--room", "-"];
  const { code, stderr } = await run(state.base, command, { env: { XDG_STATE_HOME: state.base } });
  expect([code, stderr]).toEqual([2, expect.stringContaining("there is no terminal: give them in ROOM")]);
});
