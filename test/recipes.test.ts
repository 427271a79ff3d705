/**
 * The recipes of README.md, as they stand there: each side types its lines in a shell, with the real programs on loopback,
 * and sees what the book shows. Numbers, codes and ports may be others.
 */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { newRoomWords } from "../native/secure/words.ts";
import { startIntroducer } from "./driven-fixture.ts";
import { thisHost } from "./lab/people.ts";
import { noSshd, Sshd } from "./lab/sshd.ts";
import { until } from "./native-fixture.ts";
import { testNeeding } from "./needing-fixture.ts";
import { client, freePort, readAll } from "./sockets-fixture.ts";
import { patienceMs, testMs } from "./patience-fixture.ts";

/** Several programs on a busy machine. */
setDefaultTimeout(testMs);

const root = join(import.meta.dir, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");
const place = mkdtempSync(join(tmpdir(), "recipes-"));
afterAll(() => rmSync(place, { recursive: true, force: true }));

/** The commands, as `bun link` would make them. */
const commands = join(place, "bin");
mkdirSync(commands);
for (const name of ["participant", "introducer"]) symlinkSync(join(root, `${name}.ts`), join(commands, name));

/** The code that stands in the book. */
const code = "gjec-p272-r0uw-hs8m-z@HOST";
const [, recipes = ""] = /\n## Recipes\n([^]*?)\n## /.exec(readme)!;
const titles = [...recipes.matchAll(/^### (.*)$/gm)].map(([, title = ""]) => title);

/** A recipe: what each side types, and what it then sees; the other blocks by their language. */
function recipe(title: string) {
  const start = recipes.indexOf(`### ${title}\n`);
  const [text = ""] = recipes.slice(start + 1).split("\n### ", 1);
  const blocks = [...text.matchAll(/^```(\w*)\n([^]*?)^```$/gm)];
  const screen = blocks.find(([, language]) => language === "")![2]!;
  const side = (who: string) => {
    const own = new RegExp(`^${who}\\$ [^]*?(?=^\\w+\\$ (?<!^${who}\\$ )|(?![^]))`, "gm");
    const lines = (own.exec(screen)?.[0] ?? "").trimEnd().split("\n");
    const typed = lines.filter((line) => line.startsWith(`${who}$ `));
    return {
      typed: typed.map((line) => line.slice(who.length + 2)),
      seen: lines.filter((line) => !typed.includes(line)),
    };
  };
  const block = (language: string) => blocks.find(([, one]) => one === language)![2]!;
  return { alice: side("alice"), bob: side("bob"), block };
}

/** Numbers, sizes, codes and new names are those of the run. */
function pattern(line: string): RegExp {
  const literal = line
    .replaceAll(code, "CODE")
    .replace(/from-\S+(?=:)/, "FROM")
    .replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
    .replace(/\d+(\\\.\d+)*(?: [kMG]?B\b|\b)/g, "[\\d.]+(?: [kMG]?B)?")
    .replace("CODE", "\\S+@[\\d.:]+")
    .replace("FROM", "from-\\S+");
  return new RegExp(`^${literal}$`, "m");
}

type Shell = Bun.Subprocess<"ignore", "pipe", "pipe">;

/** A shell in which one side types its lines. */
class Screen implements AsyncDisposable {
  text = "";
  readonly folder: string;
  readonly #child: Shell;
  readonly #read: Promise<unknown>;

  constructor(recipeOf: string, who: string, typed: string, environment: Record<string, string>) {
    this.folder = folderOf(recipeOf, who);
    this.#child = Bun.spawn(["/bin/sh", "-c", /[|&]/.test(typed) ? typed : `exec ${typed}`], {
      cwd: this.folder,
      env: {
        PATH: `${commands}:${dirname(process.execPath)}:${process.env.PATH}`,
        HOME: this.folder,
        USER: who,
        ...environment,
      },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    const read = async (stream: Shell["stdout"]) => {
      for await (const chunk of stream.pipeThrough(new TextDecoderStream())) this.text += chunk;
    };
    this.#read = Promise.all([read(this.#child.stdout), read(this.#child.stderr)]);
  }

  /** Waits until all those lines have been seen. */
  async sees(lines: readonly string[]): Promise<void> {
    for (const line of lines)
      await until(line, () => pattern(line).test(this.text), patienceMs).catch(() => {
        throw new Error(`${line}\nis not in:\n${this.text}`);
      });
  }

  /** The code that it has printed. */
  get code(): string {
    return / {2}participant \w+ (\S+@\S+)\n/.exec(this.text)![1]!;
  }

  /** As Ctrl-C: all that runs in it. */
  interrupt(): void {
    process.kill(-this.#child.pid, "SIGINT");
  }

  async exited(): Promise<number> {
    await this.#read;
    return this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      process.kill(-this.#child.pid, "SIGKILL");
    } catch {
      // all of it has ended
    }
    await this.#child.exited;
  }
}

function folderOf(title: string, who: string): string {
  const folder = join(place, title.replace(/\W+/g, "-"), who);
  mkdirSync(folder, { recursive: true });
  return folder;
}

function web(text: string): Disposable & { port: number } {
  const server = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response(text) });
  return { port: server.port!, [Symbol.dispose]: () => void server.stop(true) };
}

/** alice's photos, and what they are. */
function photos(title: string): Record<string, string> {
  const files = { "photos/beach.jpg": "b".repeat(300_000), "photos/lake.jpg": "l".repeat(120_000) };
  mkdirSync(join(folderOf(title, "alice"), "photos"));
  for (const [path, text] of Object.entries(files)) writeFileSync(join(folderOf(title, "alice"), path), text);
  return files;
}

type Run = (title: string) => Promise<void>;

/** Files arrive, and both screens show it. */
const sendFiles: Run = async (title) => {
  await using house = startIntroducer();
  const { alice, bob } = recipe(title);
  const files = { ...photos(title), "movie.mp4": "m".repeat(240_000) };
  writeFileSync(join(folderOf(title, "alice"), "movie.mp4"), files["movie.mp4"]);
  await using sends = new Screen(title, "alice", alice.typed[0]!, at(house));
  await sends.sees(alice.seen.slice(0, 2));
  await using receives = new Screen(title, "bob", bob.typed[0]!.replace(code, sends.code), {});
  expect([await sends.exited(), await receives.exited()]).toEqual([0, 0]);
  await sends.sees(alice.seen);
  await receives.sees(bob.seen);
  const [into = ""] = readdirSync(join(receives.folder, "Downloads"));
  for (const [path, text] of Object.entries(files))
    expect(readFileSync(join(receives.folder, "Downloads", into, path), "utf8")).toBe(text);
};

const webServer: Run = async (title) => {
  await using house = startIntroducer();
  using server = web("hello from alice");
  const { alice, bob } = recipe(title);
  const typed = alice.typed[0]!.replace("8000", String(server.port));
  await using shares = new Screen(title, "alice", typed, at(house));
  await shares.sees(alice.seen);
  await using reaches = new Screen(title, "bob", bob.typed[0]!.replace(code, shares.code), {});
  await reaches.sees(bob.seen);
  const [url = ""] = /^http:\S+/m.exec(reaches.text)!;
  expect(await (await fetch(url)).text()).toBe("hello from alice");
  for (const one of [reaches, shares]) one.interrupt();
  expect([await reaches.exited(), await shares.exited()]).toEqual([0, 0]);
};

const ssh: Run = async (title) => {
  await using house = startIntroducer();
  await using sshd = await Sshd.start(thisHost);
  const room = { INTRODUCER: `${newRoomWords()}@${at(house).INTRODUCER}` };
  const there = (text: string) => text.replaceAll("22", String(sshd.port));
  const { alice, bob, block } = recipe(title);
  await using serves = new Screen(title, "bob", there(bob.typed[0]!), room);
  await serves.sees(bob.seen.map(there));
  const config = join(folderOf(title, "alice"), "config");
  writeFileSync(config, there(block("ssh_config")));
  const key = sshd.clientOptions.slice(2).join(" ");
  const typed = alice.typed[0]!.replace(/^ssh /, `ssh -F ${config} ${key} -l bob `);
  await using logsIn = new Screen(title, "alice", `${typed} 'id -un; exit 3'`, { ...room, SHELL: "/bin/sh" });
  expect([await logsIn.exited(), logsIn.text]).toEqual([3, "bob\n"]);
};

const pipe: Run = async (title) => {
  await using house = startIntroducer();
  const room = { INTRODUCER: `${newRoomWords()}@${at(house).INTRODUCER}` };
  const { alice, bob } = recipe(title);
  const files = photos(title);
  await using receives = new Screen(title, "bob", bob.typed[0]!, room);
  await using sends = new Screen(title, "alice", alice.typed[0]!, room);
  expect([await sends.exited(), await receives.exited()]).toEqual([0, 0]);
  await sends.sees(alice.seen);
  await receives.sees(bob.seen);
  for (const [path, text] of Object.entries(files))
    expect(readFileSync(join(receives.folder, path), "utf8")).toBe(text);
};

/** All but systemd itself, which is done by hand as the unit says. */
const service: Run = async (title) => {
  await using house = startIntroducer();
  using server = web("hello from bob");
  const { alice, bob } = recipe(title);
  const room = `${newRoomWords()}@${at(house).INTRODUCER}`;
  const [copies = "", writes = "", starts = ""] = bob.typed;
  expect(starts).toBe("systemctl --user enable --now participant && loginctl enable-linger");
  const installs = `${copies} && ${writes}`.replace("CLONE", root).replace(code, room);
  await using installed = new Screen(title, "bob", installs, {});
  expect([await installed.exited(), installed.text]).toEqual([0, ""]);
  const unit = readFileSync(join(installed.folder, ".config/systemd/user/participant.service"), "utf8");
  const setting = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(unit)![1]!;
  const file = setting("EnvironmentFile").replace("%h", installed.folder);
  const typed = `set -a; . ${file} && exec ${setting("ExecStart")}`.replaceAll("8000", String(server.port));
  await using serves = new Screen(title, "bob", typed, {});
  await serves.sees(["peers may reach localhost:22 through you: `-L 22:bob:22`"]);

  const port = freePort();
  const there = (text: string) => text.replace("8080", String(port)).replaceAll("8000", String(server.port));
  await using forwards = new Screen(title, "alice", there(alice.typed[0]!), { INTRODUCER: room });
  await forwards.sees(alice.seen);
  const socket = client(port);
  const reading = readAll(socket);
  socket.write("GET / HTTP/1.1\r\nHost: bob\r\nConnection: close\r\n\r\n");
  expect((await reading).bytes.toString()).toEndWith("hello from bob");
  for (const one of [serves, forwards]) one.interrupt();
  expect([await serves.exited(), await forwards.exited()]).toEqual([0, 0]);
};

const at = ({ port }: { port: number }) => ({ INTRODUCER: `127.0.0.1:${port}` });

const runs: Record<string, [run: Run, obstacle?: string | undefined]> = {
  "Send files": [sendFiles],
  "Show a web server": [webServer],
  "ssh, with no port open to the world": [ssh, noSshd],
  "A pipe, which ends with 0 only when every byte is confirmed": [pipe],
  "Keep it running": [service],
};

test("each recipe is run here", () => expect(titles).toEqual(Object.keys(runs)));

for (const [title, [run, obstacle]] of Object.entries(runs)) testNeeding(obstacle)(title, () => run(title));
