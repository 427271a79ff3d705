/**
 * The listening end of a UDP forward: each address that sends to it has a flow of its own, which is one stream.
 * native/uses/serve-udp.ts is the other end. It knows no participant: its owner brings the link, and tells the user. For
 * native/uses/forwards.ts.
 *
 * The purpose of a stream is `{"use":"udp","kind":"udp","host":…,"port":…}`; native/uses/flow.ts says what is on it.
 *
 * Anyone who can send to the port can write any source address. So flows are limited, in all and how many begin in a second,
 * and the one that was silent for longest makes room, first those that were never answered.
 */
import { formatHostPort } from "../../protocol.ts";
import { UdpSocket } from "../host/udp.ts";
import { StreamError } from "../session/stream.ts";
import { type Bucket, tryTake } from "../shares/budget.ts";
import { FairShare } from "../shares/fair-share.ts";
import { endSilent, Flow, type Traffic } from "./flow.ts";
import {
  cantListen,
  type ForwardOptions,
  inTime,
  type StreamOpener,
  type WhyRefused,
  whyRefused,
} from "./forward.ts";
import { dialProblems } from "./dialling.ts";
import { Spout } from "./spout.ts";
import { formatListen, formatTarget, type ListenPort, type UdpTarget } from "./target.ts";

/** Flows of all forwards of this program; one forward alone gets a third. */
const places = new FairShare(1_024, 1 / 2);
/** New flows of one forward: a resolver has one for each question. */
const newFlows = { burst: 200, perSecond: 200 };
/** After a flow was refused, none begins for so long: what is not allowed, or has no link, would be asked for each datagram. */
const refusedMs = 1_000;
/** The same reason is told again after so long. */
const toldMs = 60_000;

export interface UdpForwardOptions extends Omit<ForwardOptions, "listen" | "target" | "onRefused"> {
  listen: ListenPort;
  target: UdpTarget;
  /** Told once, until something arrives. */
  onRefused?: (target: UdpTarget, reason: string, why: WhyRefused) => void;
  silenceMs?: number;
}

interface Source {
  /** To it. */
  readonly out: Spout;
  readonly flow: Flow;
  /** Gives its place back. */
  readonly free: () => void;
}

/** The listening end. It listens until {@link close}. */
export class UdpForward {
  readonly target: UdpTarget;
  readonly listen: ListenPort;
  /** Flows so far. */
  total = 0;
  readonly #options: UdpForwardOptions;
  readonly #socket: UdpSocket;
  /** By where the datagrams come from. */
  readonly #sources = new Map<string, Source>();
  readonly #budget: Bucket = { tokens: newFlows.burst, at: performance.now() };
  /** Of flows that are over, and what had no flow. */
  readonly #past: Traffic = { packetsIn: 0, packetsOut: 0, bytesIn: 0, bytesOut: 0, dropped: 0 };
  #refusedUntilMs = 0;
  /** What the user was told last, and when; undefined once something has arrived. */
  #told: { why: WhyRefused; atMs: number } | undefined;

  /** Throws an Error if it can't listen there. */
  constructor(options: UdpForwardOptions) {
    const { listen } = options;
    this.#options = options;
    this.target = options.target;
    try {
      this.#socket = UdpSocket.bind(listen.bind, listen.port, {
        datagram: (bytes, from, address) => this.#brought(bytes, from, address),
        failed: () => {}, // a client has gone, and its silence ends its flow
        drained: () => this.#drained(),
        flooded: () => void this.#past.dropped++,
      });
    } catch (error) {
      throw cantListen(listen, error);
    }
    this.listen = { ...listen, port: this.#socket.port };
  }

  /** Flows that are open. */
  get open(): number {
    return this.#sources.size;
  }

  get traffic(): Traffic {
    const all = { ...this.#past };
    for (const { out } of this.#sources.values()) all.dropped += out.dropped;
    for (const { flow } of this.#sources.values()) add(all, flow.traffic);
    return all;
  }

  get bytesIn(): number {
    return this.traffic.bytesIn;
  }
  get bytesOut(): number {
    return this.traffic.bytesOut;
  }

  /** Stops listening, and ends all flows. */
  close(): void {
    this.#socket.close();
    for (const { flow } of this.#sources.values()) flow.end("the forward was taken back");
  }

  #brought(bytes: Buffer, port: number, address: string): void {
    const from = formatHostPort(address, port);
    const flow = this.#sources.get(from)?.flow ?? this.#begin(from, port, address);
    if (flow) flow.send(bytes);
    else this.#past.dropped++;
  }

  /** Undefined if there may be none now. */
  #begin(from: string, port: number, address: string): Flow | undefined {
    const nowMs = performance.now();
    if (nowMs < this.#refusedUntilMs) return undefined;
    if (!tryTake(this.#budget, newFlows.burst, newFlows.perSecond, nowMs)) return undefined;
    const place = () => places.take(formatListen(this.listen));
    const free = place() ?? (this.#makeRoom() ? place() : undefined);
    if (!free) return undefined;
    const { silenceMs } = this.#options;
    const out = new Spout((datagram) => this.#send(datagram, port, address));
    const flow: Flow = new Flow(
      {
        arrived: (datagram) => this.#arrived(out, datagram),
        refused: () => this.#tell(`${formatTarget(this.target)}: ${dialProblems.ECONNREFUSED}`, "no-answer"),
        over: (error) => this.#over(from, error),
      },
      silenceMs,
    );
    this.#sources.set(from, { flow, out, free });
    this.total++;
    const link = this.#options.link();
    if (link instanceof Promise) void this.#joinLater(flow, link);
    else this.#join(flow, link);
    return flow.isOver ? undefined : flow;
  }

  #makeRoom(): boolean {
    return endSilent(
      [...this.#sources.values()].map(({ flow }) => flow),
      ({ traffic }) => traffic.packetsIn > 0,
    );
  }

  #join(flow: Flow, link: StreamOpener): void {
    try {
      if (!flow.isOver) flow.join(link.open({ use: "udp", ...this.target }));
    } catch (error) {
      this.#noLink(flow, error);
    }
  }

  async #joinLater(flow: Flow, link: Promise<StreamOpener>): Promise<void> {
    try {
      this.#join(flow, await inTime(link, this.#options.patienceMs));
    } catch (error) {
      this.#noLink(flow, error);
    }
  }

  #noLink(flow: Flow, error: unknown): void {
    if (flow.isOver) return;
    this.#refuse(error instanceof Error ? error.message : String(error), "no-link");
    flow.end("there is no link");
  }

  #arrived(out: Spout, datagram: Buffer): void {
    this.#told = undefined;
    out.push(datagram);
  }

  /** False: the socket takes none now. */
  #send(datagram: Buffer, port: number, address: string): boolean {
    const result = this.#socket.send(datagram, port, address);
    if (result !== "sent" && result !== "full") this.#past.dropped++;
    return result !== "full";
  }

  #drained(): void {
    for (const { out } of this.#sources.values()) out.pump();
  }

  #over(from: string, error: Error | undefined): void {
    const source = this.#sources.get(from);
    if (!source) return;
    this.#sources.delete(from);
    source.free();
    source.out.close();
    add(this.#past, source.flow.traffic);
    this.#past.dropped += source.out.dropped;
    const why = error instanceof StreamError ? whyRefused(error.code) : undefined;
    if (why !== undefined) this.#refuse((error as StreamError).reason, why);
  }

  #refuse(reason: string, why: WhyRefused): void {
    this.#refusedUntilMs = performance.now() + refusedMs;
    this.#tell(reason, why);
  }

  #tell(reason: string, why: WhyRefused): void {
    const atMs = performance.now();
    if (this.#told?.why === why && atMs - this.#told.atMs < toldMs) return;
    this.#told = { why, atMs };
    this.#options.onRefused?.(this.target, reason, why);
  }
}

function add(sum: Traffic, more: Traffic): void {
  for (const key of Object.keys(sum) as (keyof Traffic)[]) sum[key] += more[key];
}
