/**
 * Two people behind a NAT each: alice, who has a forward to each port of bob's that is named, at the same port. And what
 * scenarios start on their hosts.
 */
import { randomFillSync } from "node:crypto";
import { createReadStream, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Host, Lab } from "../lab.ts";
import { type IntroducerProgram, type ParticipantProgram, People, root } from "../people.ts";
import { apart, owdMs, type Hosts, type Layout } from "../sides.ts";

export const room = ["--room", "7k2m-9qxw-4tz8-vbnc"];
const mebibyte = 1024 * 1024;

export class Village implements AsyncDisposable {
  readonly lab: Lab;
  readonly people = new People();
  readonly hosts: Hosts;
  /** Gone with the village. */
  readonly folder = mkdtempSync(join(tmpdir(), "field-"));

  static async create(layout: Layout = apart()): Promise<Village> {
    const lab = await Lab.create();
    return new Village(lab, await layout(lab));
  }

  private constructor(lab: Lab, hosts: Hosts) {
    this.lab = lab;
    this.hosts = hosts;
  }

  /** Starts the introducer, bob who allows these ports, and alice who forwards to them. Resolves once they are linked. */
  async link(ports: (number | string)[]): Promise<Linked> {
    const introducer = await this.introducer();
    const allowed = ports.flatMap((port) => ["--allow", String(port)]);
    const forwards = ports.flatMap((port) => ["-L", `${port}:bob:${port}`]);
    const { people, hosts } = this;
    const bob = await people.participant("bob", hosts.bob, introducer, [...room, ...allowed, "--stay"]);
    const alice = await people.participant("alice", hosts.alice, introducer, [
      ...room,
      ...forwards,
      "--stay",
    ]);
    await alice.next("linked", () => true, 20_000);
    return { introducer, alice, bob };
  }

  async introducer(): Promise<IntroducerProgram> {
    return this.people.introducer(await this.lab.host("introducer", { owdMs }));
  }

  /** The participant with a verb, or whatever other arguments, as its user starts it. */
  participant(host: Host, name: string, args: string[], env: Record<string, string> = {}) {
    const { INTRODUCER: _, ...inherited } = process.env;
    return host.spawn([process.execPath, join(root, "participant.ts"), ...args], {
      cwd: this.folder,
      env: { ...inherited, XDG_STATE_HOME: this.people.stateOf(name), ...env },
      ...({ stdin: "ignore", stdout: "pipe", stderr: "pipe" } as const),
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.people[Symbol.asyncDispose]();
    await this.lab[Symbol.asyncDispose]();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

interface Linked {
  introducer: IntroducerProgram;
  alice: ParticipantProgram;
  bob: ParticipantProgram;
}

/** A file of random bytes. */
export async function randomFile(path: string, bytes: number): Promise<string> {
  const writer = Bun.file(path).writer();
  const block = Buffer.alloc(mebibyte);
  for (let left = bytes; left > 0; left -= block.length) {
    writer.write(randomFillSync(block).subarray(0, left));
    await writer.flush();
  }
  await writer.end();
  return path;
}

export function sha256OfFile(path: string): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  return new Promise((resolve, reject) => {
    createReadStream(path, { highWaterMark: mebibyte })
      .on("data", (chunk) => void hash.update(chunk))
      .on("error", reject)
      .on("end", () => resolve(hash.digest("hex")));
  });
}

/** What a giving verb prints for the other side: its arguments. */
export async function printedLine(stderr: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<string[]> {
  let told = "";
  for await (const chunk of stderr.pipeThrough(new TextDecoderStream(), { preventCancel: true })) {
    const line = / {2}(?:bun run )?participant (.*)\n/.exec((told += chunk))?.[1];
    if (line !== undefined) return line.split(" ");
  }
  throw new Error(`no line for the other side: ${told}`);
}

export const seconds = (sinceMs: number) => `${((performance.now() - sinceMs) / 1000).toFixed(1)} s`;

/** As `until`, for what takes a program to find out. */
export async function eventually(
  what: string,
  isTrue: () => Promise<boolean>,
  withinMs = 20_000,
): Promise<void> {
  const giveUpAt = performance.now() + withinMs;
  while (!(await isTrue())) {
    if (performance.now() > giveUpAt) throw new Error(`never happened: ${what}`);
    await Bun.sleep(100);
  }
}
