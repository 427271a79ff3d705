/**
 * Mapping probes: connections to further ports, which are told how they are seen, and say whose they are. It owns the probe
 * ports and the connections to them. For introducer.ts alone. RFC 5780 §4.3.
 */
import type { Socket } from "bun";
import {
  defaultPort,
  encode,
  type Endpoint,
  LineDecoder,
  parseToIntroducer,
  type Prediction,
  Refusal,
  splitEndpoint,
} from "../../protocol.ts";
import { type Shares, sourceOf } from "../shares/budget.ts";
import { byTurns } from "../shares/turns.ts";
import { type IntroducerEvent, type IntroducerOptions, ProbePortError } from "./events.ts";
import type { Guard } from "./guard.ts";
import type { Limits } from "./limits.ts";
import { Listener } from "../host/listener.ts";
import { listeningProblem } from "../host/listening-problem.ts";
import type { Metrics } from "./metrics.ts";
import { isNoPlace, observedEndpoint } from "./observe.ts";
import type { Sources } from "./sources.ts";
import type { Turns } from "./turns.ts";

/** How often a port that is taken is tried again. */
const retryMs = 1_000;
/** The most bytes of a probe: more than its one line. */
const maxProbeBytes = 256;

/** A connection to a probe port. */
interface Probe {
  observed: Endpoint;
  source: string;
  hasSpoken: boolean;
  untilMs: number;
}
type ProbeSocket = Socket<Probe | undefined>;

/** Who hears of them. */
interface Owner {
  readonly limits: Limits;
  readonly sources: Sources;
  readonly guard: Guard;
  readonly turns: Turns;
  readonly metrics: Metrics;
  /** A probe with that token has shown where the NAT stands, on the way to that peer. */
  probed(token: string, peer: number, stands: Prediction): void;
}

export class Probes {
  readonly #owner: Owner;
  readonly #shares: Shares;
  readonly #listeners: Listener<Probe | undefined>[] = [];
  /** Of ports that were taken. */
  readonly #retries: Timer[] = [];
  /** The oldest comes first, and is due first. */
  readonly #sockets = new Set<ProbeSocket>();
  #timer: Timer | undefined;

  /** Throws a {@link ProbePortError} if a port that was asked for can't be had. It can do without the default ones. */
  constructor(owner: Owner, options: IntroducerOptions, ownHost: string) {
    this.#owner = owner;
    this.#shares = owner.sources.probes;
    this.#listen(options, ownHost);
  }

  /** Where they are answered. */
  get ports(): number[] {
    return [...new Set(this.#listeners.map(({ port }) => port))];
  }

  #listen({ host, port = defaultPort, probePorts, alternate }: IntroducerOptions, ownHost: string): void {
    const ports = probePorts ?? (port === 0 ? [0, 0] : [port + 1, port + 2].filter((next) => next <= 65535));
    // A wildcard listener answers at the alternate address already.
    const hosts = [host ?? ownHost, ...(alternate !== undefined && host !== undefined ? [alternate] : [])];
    for (const probePort of ports) {
      const problem = this.#tryPort(probePort, hosts);
      if (problem === undefined) continue;
      const why = `no mapping probes on port ${probePort}: ${problem}`;
      if (probePorts) {
        this.stop();
        throw new ProbePortError(`${why} (choose others with --probe-ports)`);
      }
      const message = `${why}; trying again every second (or choose others with --probe-ports)`;
      this.#emit({ event: "warning", message });
      this.#retryAt(probePort, hosts);
    }
  }

  /** Listens at all these, or says why it can't. */
  #tryPort(port: number, hosts: readonly string[]): string | undefined {
    const listeners: Listener<Probe | undefined>[] = [];
    try {
      for (const hostname of hosts) listeners.push(this.#listenAt(hostname, port));
      this.#listeners.push(...listeners);
      return undefined;
    } catch (error) {
      for (const listener of listeners) listener.stop();
      return listeningProblem(error);
    }
  }

  /** The introducer that this one replaces may still be there. */
  #retryAt(port: number, hosts: readonly string[]): void {
    const timer = setInterval(() => {
      if (this.#tryPort(port, hosts) === undefined) clearInterval(timer);
    }, retryMs).unref();
    this.#retries.push(timer);
  }

  #emit(event: IntroducerEvent): void {
    this.#owner.guard.emit(event);
  }

  #listenAt(hostname: string, port: number): Listener<Probe | undefined> {
    const socket = {
      open: (one: ProbeSocket) => this.#open(one),
      data: (one: ProbeSocket, chunk: Uint8Array) => this.#receive(one, chunk),
      error: (one: ProbeSocket, error: Error) => {
        this.#owner.guard.report(error, one.data?.observed);
        one.terminate();
      },
      close: (one: ProbeSocket) => this.#closed(one),
    };
    return new Listener({ hostname, port, socket }, (message) => this.#emit({ event: "warning", message }));
  }

  #open(socket: ProbeSocket): void {
    const observed = observedEndpoint(socket);
    const probe = observed && !isNoPlace(observed) ? this.#take(observed) : undefined;
    if (!probe) {
      this.#owner.metrics.turnedAway();
      return void socket.terminate();
    }
    socket.data = probe;
    this.#sockets.add(socket);
    socket.setNoDelay(true);
    this.#timer ??= setTimeout(() => this.#lookAtOldest(), this.#owner.limits.measureMs);
    socket.write(encode({ type: "observed", endpoint: probe.observed }));
  }

  /** A probe seen at that endpoint; undefined if its source has as many as it may have. */
  #take(observed: Endpoint): Probe | undefined {
    const source = sourceOf(splitEndpoint(observed).address);
    if (!this.#owner.turns.accepts(source) || this.#shares.isOver(source, 1) || this.#shares.isUsedUp(1))
      return undefined;
    this.#shares.add(source);
    const untilMs = performance.now() + this.#owner.limits.measureMs;
    return { observed, source, hasSpoken: false, untilMs };
  }

  /** Closes probes that are too old. A timeout of Bun's comes up to 4 s late, and never if the client sends something. */
  #lookAtOldest(): void {
    this.#timer = undefined;
    for (const socket of this.#sockets) {
      const leftMs = socket.data!.untilMs - performance.now();
      if (leftMs > 0) {
        this.#timer = setTimeout(() => this.#lookAtOldest(), Math.ceil(leftMs));
        return;
      }
      socket.terminate();
    }
  }

  #receive(socket: ProbeSocket, chunk: Uint8Array): void {
    const { data: probe } = socket;
    if (!probe) return;
    if (probe.hasSpoken) socket.terminate();
    this.#owner.turns.charge(probe, () => this.#read(probe, chunk));
  }

  /** Its first line says whose it is. A line in pieces, or a bad one, is ignored. If more comes, it is closed. */
  #read(probe: Probe, chunk: Uint8Array): void {
    if (probe.hasSpoken) return;
    probe.hasSpoken = true;
    if (chunk.length > maxProbeBytes) return;
    try {
      const [line] = new LineDecoder().push(chunk);
      const message = line === undefined ? undefined : parseToIntroducer(line);
      if (message?.type !== "probe") return;
      this.#owner.probed(message.token, message.peer, { endpoint: probe.observed, step: message.step });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }

  #closed(socket: ProbeSocket): void {
    if (!socket.data) return;
    this.#sockets.delete(socket);
    this.#shares.remove(socket.data.source);
  }

  /** No more of them. */
  stop(): void {
    for (const timer of this.#retries) clearInterval(timer);
    for (const listener of this.#listeners) listener.stop();
  }

  async end(): Promise<void> {
    await byTurns(this.#sockets, (probe) => probe.terminate());
    clearTimeout(this.#timer);
  }
}
