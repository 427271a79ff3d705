/**
 * The people of the lab: introducer and participants as real programs, started as users start them, each with
 * its own state folder, on hosts of a lab or on this one. What they report with `--json` can be waited for,
 * never longer than a deadline. Shared by tests, demo and benches.
 *
 *   await using people = new People();
 *   const introducer = await people.introducer(lab.host("introducer"));
 *   const alice = await people.participant("alice", host, introducer);
 *   alice.type("connect bob");
 *   const { route } = await alice.next("linked");
 */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { type Endpoint, formatEndpoint } from "../../protocol.ts";
import { until } from "../native-fixture.ts";
import { patienceMs } from "../patience-fixture.ts";
import type { Host } from "./lab.ts";

/** Where the programs are started: the repository. */
export const root = join(import.meta.dir, "../..");

/** Where a program can be started: a host of the lab, or this one. */
export type Place = Pick<Host, "name" | "address" | "spawn">;
export const thisHost: Place = {
  name: "this host",
  address: "127.0.0.1",
  spawn: (command, options) => Bun.spawn(command, options),
};

/** An event and when it happened: milliseconds since the epoch, by the program's word or when we read its line. */
export type Seen<Event> = Event & { at: number };
type Named = { event: string };
type OfKind<Event extends Named, Kind extends Event["event"]> = Seen<Extract<Event, { event: Kind }>>;

interface Waiting<Event> {
  wants: (event: Seen<Event>) => boolean;
  resolve: (event: Seen<Event>) => void;
  reject: (error: Error) => void;
}
type Running = Bun.Subprocess<"pipe", "pipe", "pipe">;

function isKind(kind: string, { event }: Named): boolean {
  return event === kind;
}

export function now(): number {
  return performance.timeOrigin + performance.now();
}

/** A program that reports JSON lines on stdout, each with its name in `event`. */
export class Program<Event extends Named> {
  readonly name: string;
  readonly process: Running;
  /** Everything it has reported. */
  readonly seen: Seen<Event>[] = [];
  onEvent: (event: Event) => void = () => {};
  readonly #taken = new Set<Seen<Event>>();
  readonly #waiting = new Set<Waiting<Event>>();
  #story = "";

  constructor(name: string, process: Running) {
    this.name = name;
    this.process = process;
    void this.#readEvents();
    void this.#readStory();
  }

  /** Types each command and the return key. */
  type(...commands: string[]): void {
    void this.process.stdin.write(commands.map((command) => `${command}\n`).join(""));
    void this.process.stdin.flush();
  }

  #isNext<Kind extends Event["event"]>(kind: Kind, where: (event: OfKind<Event, Kind>) => boolean) {
    return (event: Seen<Event>) =>
      isKind(kind, event) && !this.#taken.has(event) && where(event as OfKind<Event, Kind>);
  }

  /** Whether {@link next} would resolve at once. */
  hasNext<Kind extends Event["event"]>(kind: Kind, where: (event: OfKind<Event, Kind>) => boolean): boolean {
    return this.seen.some(this.#isNext(kind, where));
  }

  /** The first event of that kind that nobody has waited for yet. */
  next<Kind extends Event["event"]>(
    kind: Kind,
    where: (event: OfKind<Event, Kind>) => boolean = () => true,
    withinMs = patienceMs,
  ): Promise<OfKind<Event, Kind>> {
    type Wanted = OfKind<Event, Kind>;
    const wants = this.#isNext(kind, where);
    const early = this.seen.find(wants);
    if (early) {
      this.#taken.add(early);
      return Promise.resolve(early as Wanted);
    }
    const { promise, resolve, reject } = Promise.withResolvers<Seen<Event>>();
    const waiting: Waiting<Event> = { wants, resolve, reject };
    this.#waiting.add(waiting);
    const late = () => reject(this.#problem(`did not report \`${kind}\` within ${withinMs} ms`));
    const timer = setTimeout(late, withinMs);
    return promise.finally(() => {
      clearTimeout(timer);
      this.#waiting.delete(waiting);
    }) as Promise<Wanted>;
  }

  /** The events of that kind so far. */
  all<Kind extends Event["event"]>(kind: Kind): OfKind<Event, Kind>[] {
    return this.seen.filter((event) => isKind(kind, event)) as OfKind<Event, Kind>[];
  }

  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    this.process.kill(signal);
    await this.process.exited;
  }

  #problem(what: string): Error {
    const story = this.#story.trim().split("\n").slice(-12).join("\n  ");
    return new Error(`${this.name} ${what}; its story:\n  ${story}`);
  }

  async #readEvents(): Promise<void> {
    const utf8 = new TextDecoder();
    let text = "";
    for await (const chunk of this.process.stdout) {
      const at = now();
      const lines = (text + utf8.decode(chunk, { stream: true })).split("\n");
      text = lines.pop()!;
      for (const line of lines) this.#happened({ at, ...(JSON.parse(line) as Event) });
    }
    await this.process.exited;
    const { exitCode, signalCode } = this.process;
    for (const { reject } of this.#waiting) reject(this.#problem(`has ended (${signalCode ?? exitCode})`));
  }

  #happened(event: Seen<Event>): void {
    this.seen.push(event);
    const waiting = [...this.#waiting].find(({ wants }) => wants(event));
    if (waiting) {
      this.#taken.add(event);
      this.#waiting.delete(waiting);
      waiting.resolve(event);
    }
    this.onEvent(event);
  }

  async #readStory(): Promise<void> {
    const utf8 = new TextDecoder();
    for await (const chunk of this.process.stderr) this.#story += utf8.decode(chunk, { stream: true });
  }
}

export class IntroducerProgram extends Program<IntroducerEvent> {
  readonly endpoint: Endpoint;

  constructor(name: string, process: Running, endpoint: Endpoint) {
    super(name, process);
    this.endpoint = endpoint;
  }
}

export class ParticipantProgram extends Program<ParticipantEvent> {
  get #registration() {
    const registered = this.all("registered").at(-1);
    if (!registered) throw new Error(`${this.name} has not registered`);
    return registered;
  }

  get id(): number {
    return this.#registration.id;
  }
  /** What the introducer saw. */
  get public(): Endpoint {
    return this.#registration.public;
  }
  get private(): Endpoint[] {
    return this.#registration.private;
  }

  /** Resolves once that one is in our list. */
  async sees(other: ParticipantProgram): Promise<void> {
    const isListed = () => this.all("peers").some(({ peers }) => peers.some(({ id }) => id === other.id));
    const isIt = ({ peer }: { peer: number }) => peer === other.id;
    // Who has just registered is told of the others after that, by either of the two.
    await until(`${this.name} sees ${other.name}`, () => isListed() || this.hasNext("joined", isIt));
    if (!isListed()) await this.next("joined", isIt);
  }

  /** Resolves once it has left, come back from a new port, and measured how its NAT maps that. */
  async comesBack(): Promise<void> {
    this.type("leave");
    await this.next("introducer", ({ state }) => state === "left");
    this.type("join");
    const { at } = await this.next("registered");
    await this.next("mapping", (event) => event.at >= at);
  }

  /** Resolves once we know how that one's NAT maps, and how far it is from the introducer. */
  async knowsMapping(other: ParticipantProgram): Promise<void> {
    type Measured = { mapping: string; roundTripMs?: number };
    const isMeasured = ({ mapping, roundTripMs }: Measured) =>
      mapping !== "unknown" && roundTripMs !== undefined;
    const lists = this.all("peers").map(({ at, peers }) => ({
      at,
      row: peers.find(({ id }) => id === other.id),
    }));
    const joined = this.all("joined").map((event) => ({ at: event.at, row: event }));
    const seen = [...lists, ...joined.filter(({ row }) => row.peer === other.id)].sort((a, b) => a.at - b.at);
    const row = seen.findLast((one) => one.row !== undefined)?.row;
    if (row && isMeasured(row)) return;
    await this.next("updated", (event) => event.peer === other.id && isMeasured(event));
  }
}

/** Starts people, and ends them all. */
export class People implements AsyncDisposable {
  readonly #state = mkdtempSync(join(tmpdir(), "tcp-hole-punching-people-"));
  readonly #programs: Running[] = [];

  /** Resolves once it listens. Its address is that of its host. */
  async introducer(
    place: Place,
    port = 7000,
    onEvent?: (event: IntroducerEvent) => void,
    options: string[] = [],
  ): Promise<IntroducerProgram> {
    const running = this.#start(place, "introducer", ["introducer.ts", String(port), "--json", ...options]);
    const program = new IntroducerProgram("introducer", running, formatEndpoint(place.address, port));
    if (onEvent) program.onEvent = onEvent;
    await program.next("listening");
    return program;
  }

  /** Resolves once it has registered and knows who else is there. */
  async participant(
    name: string,
    place: Place,
    { endpoint }: { endpoint: Endpoint },
    options: string[] = [],
    onEvent?: (event: ParticipantEvent) => void,
    file = "participant.ts",
  ): Promise<ParticipantProgram> {
    const command = [file, endpoint, "--name", name, "--json", ...options];
    const program = new ParticipantProgram(name, this.#start(place, name, command));
    if (onEvent) program.onEvent = onEvent;
    await program.next("registered");
    await program.next("peers");
    return program;
  }

  /** The XDG_STATE_HOME of whoever has that name; gone when we are. */
  stateOf(name: string): string {
    return join(this.#state, name);
  }

  #start(place: Place, name: string, command: string[]): Running {
    const { INTRODUCER: _, ...env } = process.env;
    // Each host has one of its own: of introducers that share one, only the last takes commands there.
    const commands = this.stateOf(`commands at ${place.name}`);
    mkdirSync(commands, { recursive: true });
    const running = place.spawn([process.execPath, ...command], {
      cwd: root,
      env: { ...env, XDG_STATE_HOME: this.stateOf(name), RUNTIME_DIRECTORY: commands },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    this.#programs.push(running);
    return running;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const program of this.#programs) program.kill("SIGKILL");
    await Promise.all(this.#programs.map(({ exited }) => exited));
    rmSync(this.#state, { recursive: true, force: true });
  }
}
