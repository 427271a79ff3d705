/**
 * Two processes with a link between them, or bare TCP or TLS: a sender and a taker (stream-fixture.ts). For test/bench/.
 */
import { readFileSync } from "node:fs";
import { type Endpoint, formatEndpoint } from "../../protocol.ts";
import { type Place, Program, thisHost } from "../lab/people.ts";
import type { EndCommand, EndEvent, Kind } from "./stream-fixture.ts";

const fixture = `${import.meta.dir}/stream-fixture.ts`;
/** Longest that one measurement may take; it takes seconds. */
const deadlineMs = 60_000;
/** Linux counts processor time in these (USER_HZ). */
const clockTickMs = 10;

class End extends Program<EndEvent> {
  constructor(place: Place, kind: Kind, role: "send" | "take") {
    const stdio = { stdin: "pipe", stdout: "pipe", stderr: "pipe" } as const;
    super(`${kind} ${role}`, place.spawn([process.execPath, fixture, kind, role], stdio));
  }

  tell(command: EndCommand): void {
    this.type(JSON.stringify(command));
  }

  /** Processor time so far, of all its threads. */
  get busyMs(): number {
    const stat = readFileSync(`/proc/${this.process.pid}/stat`, "utf8").split(") ")[1]!.split(" ");
    return (Number(stat[11]) + Number(stat[12])) * clockTickMs;
  }

  get residentMib(): number {
    const status = readFileSync(`/proc/${this.process.pid}/status`, "utf8");
    return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)![1]) / 1024;
  }
}

/** A sender and a taker. */
export class Ends implements AsyncDisposable {
  readonly sender: End;
  readonly taker: End;
  #endpoint: Endpoint | undefined;

  constructor(kind: Kind, from: Place = thisHost, to: Place = from) {
    this.sender = new End(from, kind, "send");
    this.taker = new End(to, kind, "take");
    void this.taker.next("listening").then(({ port }) => {
      this.#endpoint = formatEndpoint(to.address, port);
    });
  }

  /** A connection for the next measurements, or one that the link moves to. */
  async dial(move?: true): Promise<void> {
    while (!this.#endpoint) await Bun.sleep(10); // the period of the looks
    this.sender.tell({ type: "dial", to: this.#endpoint, ...(move && { move }) });
    await this.sender.next("connected");
  }

  async relayBy(introducer: Endpoint): Promise<void> {
    const room = `bench ${this.sender.process.pid}`;
    this.taker.tell({ type: "relay", introducer, room });
    await this.taker.next("connected");
    this.sender.tell({ type: "relay", introducer, room });
    await this.sender.next("connected");
  }

  /** How long it takes until all has come. */
  async send(bytes: number, streams = 1): Promise<number> {
    this.sender.tell({ type: "send", bytes, streams });
    return (await this.sender.next("sent", undefined, deadlineMs)).elapsedMs;
  }

  /** How late each of so many events comes beside endless bulk. */
  async beside(times: number, everyMs: number, settleMs: number): Promise<EndEvent & { event: "late" }> {
    this.sender.tell({ type: "beside", times, everyMs, settleMs });
    return await this.taker.next("late", undefined, deadlineMs);
  }

  async ask(times: number, pauseMs: number): Promise<number[]> {
    this.sender.tell({ type: "ask", times, pauseMs });
    return (await this.sender.next("asked", undefined, deadlineMs)).roundTripsMs;
  }

  /** The longest time without a byte since the last look. */
  async silenceMs(): Promise<number> {
    this.taker.tell({ type: "watch" });
    return (await this.taker.next("watched")).silenceMs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.sender.kill(), this.taker.kill()]);
  }
}
