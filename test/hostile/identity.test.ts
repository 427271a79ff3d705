/** Another user of the same machine, who would have us be somebody else, wait, or show our room's words. */
import { expect, test } from "bun:test";
import { chmodSync, chownSync, mkdtempSync, renameSync, rmSync, symlinkSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadIdentity } from "../../native/link/identity.ts";
import { testNeeding } from "../needing-fixture.ts";
import { program } from "../driven-fixture.ts";
import { LyingIntroducer, run } from "./wire.ts";

const isRoot = process.getuid?.() === 0;
const needsRoot = isRoot ? undefined : "root, to give files to another user";
const nobody = 65534;

/** A state folder with an identity in it. */
class State implements Disposable {
  readonly base = mkdtempSync(join(tmpdir(), `identity-hostile-${process.pid}-`));
  readonly folder = join(this.base, "tcp-hole-punching");
  readonly file = join(this.folder, "identity.pem");
  readonly identity = loadIdentity(this.folder);

  /** What the program says of it, which must not connect to anyone. */
  async refusal(): Promise<string> {
    using house = await LyingIntroducer.listen();
    const { code, stdout, stderr } = await run(
      this.base,
      [process.execPath, program, `127.0.0.1:${house.port}`, "--name", "alice"],
      { env: { XDG_STATE_HOME: this.base } },
    );
    expect({ code, stdout, visits: house.visitors.length }).toEqual({ code: 1, stdout: "", visits: 0 });
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
    "holds a key, but others can write to it (mode 0777); run: chmod 700",
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
