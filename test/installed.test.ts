/** The commands that `bun link` gives, and the source started from elsewhere: names, folders, and the library by its name. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import manifest from "../package.json" with { type: "json" };
import { startIntroducer } from "./driven-fixture.ts";
import { run } from "./hostile/wire.ts";
import { testNeeding } from "./needing-fixture.ts";
import { until } from "./native-fixture.ts";
import { testMs } from "./patience-fixture.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(testMs);

const root = join(import.meta.dir, "..");
const bun = process.execPath;
const place = mkdtempSync(join(tmpdir(), "installed-test-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));

/** Bun's own folder of a user who has linked the clone. */
const environment = {
  BUN_INSTALL: join(place, "bun"),
  HOME: place,
  XDG_STATE_HOME: join(place, "state"),
  PATH: `${join(place, "bun/bin")}:${process.env.PATH}`,
};
beforeAll(async () => {
  expect(await run(root, [bun, "link"], { env: environment })).toMatchObject({ code: 0 });
});

test.each(["participant", "introducer"])("%s is a command, and calls itself so", async (program) => {
  for (const question of ["help", "--help"]) {
    const { code, stdout } = await run(place, [program, question], { env: environment });
    expect([code, stdout]).toEqual([0, expect.stringContaining(`Usage: ${program} [`)]);
  }
  const { stdout } = await run(place, [program, "--version"], { env: environment });
  expect(stdout).toBe(`${manifest.version}\n`);
});

function folder(name: string): string {
  mkdirSync(join(place, name), { recursive: true });
  return join(place, name);
}

/** One sends from a folder, and the other one types what that prints, in another folder. Returns what has arrived there. */
async function sent(
  from: string,
  command: string,
  to: string,
  adapt = (line: string) => line,
): Promise<string> {
  await using house = startIntroducer();
  writeFileSync(join(folder(from), "note.txt"), `from ${from}`);
  const shell = (text: string, cwd: string) =>
    Bun.spawn(["/bin/sh", "-c", text], { cwd, env: environment, stdio: ["ignore", "pipe", "pipe"] });
  const sender = shell(
    `cd . && ${command} send note.txt --via 127.0.0.1:${house.port}; exit $?`,
    folder(from),
  );
  let told = "";
  void (async () => {
    for await (const chunk of sender.stderr.pipeThrough(new TextDecoderStream())) told += chunk;
  })();
  await until(`a line for the other side; ${told}`, () => /\n {2}.* receive .*\n/.test(told));
  const line = /\n {2}(.* receive .*)\n/.exec(told)![1]!;
  const receiver = shell(`cd . && ${adapt(line)}; exit $?`, folder(to));
  expect([await receiver.exited, await sender.exited]).toEqual([0, 0]);
  return readFileSync(join(place, to, "note.txt"), "utf8");
}

test("the very line that is printed is typed in another folder, and files are those of the folders", async () => {
  expect(await sent("here", "participant", "there")).toBe("from here");
});

// Elsewhere nothing tells what folder that was.
testNeeding(process.platform === "linux" ? undefined : "no /proc")(
  "so they are with `bun run --cwd`, and below the clone",
  async () => {
    const command = `${bun} run --cwd ${root} --silent participant`;
    const adapt = (line: string) => line.replace("bun run participant", command);
    expect(await sent("a", command, "b", adapt)).toBe("from a");
    const { stderr } = await run(join(root, "test"), [bun, "run", "--silent", "participant", "send", "x y"], {
      env: { ...environment, INTRODUCER: "127.0.0.1:1" },
    });
    expect(stderr).toContain("x y");
    const there = await run(
      join(root, "test"),
      [bun, "run", "--silent", "participant", "send", "README.md"],
      {
        env: { ...environment, INTRODUCER: "127.0.0.1:1" },
      },
    );
    expect(there.stderr).toContain("cannot reach the introducer");
  },
  testMs,
);

test("the library can be imported by name", async () => {
  const project = folder("project");
  writeFileSync(join(project, "package.json"), '{ "name": "mine" }');
  expect(await run(project, [bun, "link", manifest.name], { env: environment })).toMatchObject({ code: 0 });
  const lines = [
    `import { Participant } from "${manifest.name}/participant";`,
    `import { Introducer } from "${manifest.name}/introducer";`,
    "console.log(Participant.name, Introducer.name);",
  ];
  writeFileSync(join(project, "mine.ts"), lines.join("\n"));
  const { stdout, stderr } = await run(project, [bun, "mine.ts"], { env: environment });
  expect([stdout, stderr]).toEqual(["Participant Introducer\n", ""]);
});
