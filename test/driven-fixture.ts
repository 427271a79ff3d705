/**
 * The participant's real program on loopback, driven by lines on standard input and read by its `--json` events. For
 * the tests of this folder.
 */
import { afterAll, expect } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Introducer } from "../introducer.ts";
import { patienceMs, testMs } from "./patience-fixture.ts";
import type { ParticipantEvent } from "../native/participant/events.ts";

export type EventOf<E extends ParticipantEvent["event"]> = Extract<ParticipantEvent, { event: E }>;
export const program = join(import.meta.dir, "..", "participant.ts");
const root = join(import.meta.dir, "..");
export const states = mkdtempSync(join(tmpdir(), "participant-test-"));
afterAll(() => rmSync(states, { recursive: true, force: true }));

export function spawn(args: string[], environment: Record<string, string> = {}, cwd = root) {
  const env = { PATH: process.env.PATH, XDG_STATE_HOME: states, ...environment };
  return Bun.spawn([process.execPath, program, ...args], {
    env,
    cwd,
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** Runs the program without any input. */
export async function outcome(args: string[], environment: Record<string, string> = {}) {
  await using child = spawn(args, environment);
  child.stdin.end();
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, stdout, stderr };
}

/** The folder that a participant of that name runs in, and keeps its identity in. */
export function homeOf(name: string): string {
  const folder = join(states, name);
  mkdirSync(folder, { recursive: true });
  return folder;
}

/** So long an event is waited for: it may take several starts, and must be named before the test's time is over. */
const nextMs = (patienceMs + testMs) / 2;

/** A participant with `--json`: `next` waits for an event that nobody has waited for yet, and says so if none comes. */
export class Driven implements AsyncDisposable {
  name: string;
  readonly events: ParticipantEvent[] = [];
  readonly stderr: Promise<string>;
  /** The first time. */
  readonly registered: Promise<EventOf<"registered">>;
  readonly #child: ReturnType<typeof spawn>;
  readonly #read: Promise<void>;
  readonly #taken = new Set<ParticipantEvent>();
  #news = Promise.withResolvers<void>();
  #isOver = false;

  constructor(port: number, name: string, ...options: string[]) {
    this.name = name;
    const home = homeOf(name);
    const args = [`127.0.0.1:${port}`, "--name", name, "--json", ...options];
    this.#child = spawn(args, { XDG_STATE_HOME: home }, home);
    this.stderr = this.#child.stderr.text();
    this.#read = this.#readEvents();
    this.registered = this.next("registered").then(async (event) => (await this.next("peers"), event));
    this.registered.catch(() => {}); // a test that expects it to fail does not wait for it
  }

  /** Anything on stdout that is no JSON line fails the test here. */
  async #readEvents(): Promise<void> {
    let held = "";
    for await (const chunk of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (held + chunk).split("\n");
      held = lines.pop()!;
      this.events.push(...lines.map((line) => JSON.parse(line) as ParticipantEvent));
      this.#wake();
    }
    this.#isOver = true;
    this.#wake();
    await this.#child.exited;
    if (this.#child.signalCode !== "SIGKILL") expect(held).toBe("");
  }

  #wake(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }

  /** Resolves to what `look` finds, once it finds something. */
  async #until<T>(what: string, look: () => T | undefined): Promise<T> {
    let isLate = false;
    const late = setTimeout(() => ((isLate = true), this.#wake()), nextMs);
    try {
      for (;;) {
        const found = look();
        if (found !== undefined) return found;
        if (this.#isOver || isLate)
          throw new Error(
            `${this.name} ${isLate ? "goes on" : "ended"} without ${what}:\n${JSON.stringify(this.events, null, 1)}`,
          );
        await this.#news.promise;
      }
    } finally {
      clearTimeout(late);
    }
  }

  async next<E extends ParticipantEvent["event"]>(
    kind: E,
    wants: (event: EventOf<E>) => boolean = () => true,
  ): Promise<EventOf<E>> {
    const fits = (event: ParticipantEvent): event is EventOf<E> =>
      event.event === kind && !this.#taken.has(event) && wants(event as EventOf<E>);
    return this.#until(`\`${kind}\``, () => {
      const found = this.events.find(fits);
      if (found) this.#taken.add(found);
      return found;
    });
  }

  /** Resolves once a peer of that name was shown. */
  async seen(name: string): Promise<void> {
    const shows = (event: ParticipantEvent) =>
      (event.event === "joined" && event.name === name) ||
      (event.event === "peers" && event.peers.some((peer) => peer.name === name));
    await this.#until(`having seen ${name}`, () => this.events.find(shows));
  }

  get pid(): number {
    return this.#child.pid;
  }

  count(kind: ParticipantEvent["event"]): number {
    return this.events.filter(({ event }) => event === kind).length;
  }

  type(...lines: string[]): void {
    this.#child.stdin.write(lines.map((line) => line + "\n").join(""));
    void this.#child.stdin.flush();
  }

  endInput(): void {
    void this.#child.stdin.end();
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  async exited(): Promise<number> {
    await this.#read;
    return this.#child.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

export function startIntroducer(port = 0) {
  const introducer = Introducer.start({ host: "127.0.0.1", port });
  return {
    introducer,
    port: introducer.port,
    [Symbol.asyncDispose]: () => introducer.stop("the test is over"),
  };
}

/** Resolves once all are registered and see each other. */
export async function met(...all: Driven[]): Promise<void> {
  await Promise.all(all.map((one) => one.registered));
  for (const one of all) {
    for (const { name } of all) if (name !== one.name) await one.seen(name);
  }
}

export async function link(a: Driven, b: Driven) {
  a.type(`connect ${b.name}`);
  return Promise.all([
    a.next("linked", ({ name }) => name === b.name),
    b.next("linked", ({ name }) => name === a.name),
  ]);
}
