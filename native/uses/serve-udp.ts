/**
 * The serving end of UDP forwards: a socket for each flow, which reaches only what the {@link AllowList} permits, and takes
 * only what comes from there. Owns that socket until the flow is over. native/uses/udp.ts is the other end. For
 * native/uses/services.ts.
 *
 * Nobody knows at which of its addresses a target answers. The first is tried, and the next one if the port is closed there.
 * If it is closed at all of them, both sides are told once, and the flow goes on: something may listen there later.
 */
import { formatHostPort, Refusal } from "../../protocol.ts";
import { UdpSocket } from "../host/udp.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { FairShare } from "../shares/fair-share.ts";
import { descriptors, type Holder } from "./descriptors.ts";
import { dialProblems } from "./dialling.ts";
import { endSilent, Flow } from "./flow.ts";
import {
  permittedAddresses,
  type Refused,
  type Served,
  type ServeOptions,
  serving,
  Unserved,
} from "./serve.ts";
import { Spout } from "./spout.ts";
import { formatTarget, type UdpTarget } from "./target.ts";

/** Flows of all peers; one peer alone gets a third. */
const places = new FairShare(1_024, 1 / 2);
/** By peer. Whoever has its share gives up its own, and is not refused: it may have given them up already. */
const flowsOf = new Map<string, Set<Flow>>();
/** They say something about one datagram, and nothing about the target. */
const passing: ReadonlySet<string> = new Set(["EMSGSIZE", "ENOBUFS", "EAGAIN", "EPERM"]);

export interface ServeUdpOptions extends ServeOptions {
  silenceMs?: number;
  /** The target can't be reached, though its flow goes on. */
  onRefused(target: string, refused: Refused): void;
}

/** Joins the stream to the target that its purpose names, or resets it with the reason. */
export async function serveUdp(
  stream: Stream,
  purpose: Record<string, unknown>,
  options: ServeUdpOptions,
): Promise<Served> {
  return serving(stream, purpose, async (wanted) => {
    if (wanted.kind !== "udp") throw new Refusal("bad-field", "kind must be udp");
    let reached: Reached | undefined;
    const holder: Holder = {
      of: options.peer,
      isWaiting: () => stream.isWaiting,
      giveUp: (reason) => (reached?.flow.end(reason), reached !== undefined),
    };
    const free = takenBy(holder) ?? (endSilent(flowsOf.get(options.peer)) ? takenBy(holder) : undefined);
    if (!free) throw new Unserved("no-answer", `${formatTarget(wanted)}: too many flows are open for you`);
    reached = new Reached(wanted, options, free);
    reached.flow.join(stream); // what comes while a name is looked up is not kept for long
    try {
      reached.begin(await permittedAddresses(wanted, options));
    } catch (error) {
      reached.close();
      throw error;
    }
  });
}

/** Takes what a flow needs of the shares. Returns what gives it back; undefined if that peer has its share. */
function takenBy(holder: Holder): (() => void) | undefined {
  const place = places.take(holder.of);
  const socket = place && descriptors().take(holder);
  if (socket) return () => (place(), socket());
  place?.();
  return undefined;
}

/** The socket of one flow. */
class Reached {
  readonly flow: Flow;
  readonly #target: UdpTarget;
  readonly #options: ServeUdpOptions;
  readonly #free: () => void;
  /** To the target; what comes while there is no socket waits in it. */
  readonly #out = new Spout((datagram) => this.#send(datagram));
  /** How many of the target's were dropped, because too many came at once. */
  #flooded = 0;
  #addresses: readonly string[] = [];
  /** Which of the addresses is tried. */
  #at = 0;
  #socket: UdpSocket | undefined;
  /** How many were sent in vain since something came from the target. */
  #refusals = 0;
  /** What was sent last to an address that may be the wrong one. */
  #unanswered: Buffer | undefined;

  constructor(target: UdpTarget, options: ServeUdpOptions, free: () => void) {
    this.#target = target;
    this.#options = options;
    this.#free = free;
    this.flow = new Flow(
      { arrived: (datagram) => this.#toTarget(datagram), over: () => this.close() },
      options.silenceMs,
    );
    flowsOf.set(options.peer, (flowsOf.get(options.peer) ?? new Set()).add(this.flow));
  }

  /** Throws an {@link Unserved} if there is no way to any of them. */
  begin(addresses: readonly string[]): void {
    this.#addresses = addresses;
    if (!this.flow.isOver) this.#connect();
  }

  close(): void {
    this.#socket?.close();
    this.#socket = undefined;
    this.#out.close();
    const { peer } = this.#options;
    if (flowsOf.get(peer)?.delete(this.flow) && flowsOf.get(peer)!.size === 0) flowsOf.delete(peer);
    this.#free();
  }

  /** To the first address from here on to which there is a way. */
  #connect(): void {
    let unserved: Unserved | undefined;
    for (const _ of this.#addresses) {
      const address = this.#addresses[this.#at]!;
      try {
        this.#socket = UdpSocket.connect(address, this.#target.port, {
          datagram: (datagram) => this.#fromTarget(datagram),
          failed: (code) => this.#failed(code),
          drained: () => this.#out.pump(),
          flooded: () => void this.#flooded++,
        });
        return this.#out.pump();
      } catch (error) {
        const { code = String(error) } = error as NodeJS.ErrnoException;
        unserved ??= new Unserved("no-answer", this.#told(code), this.#problem(code));
        this.#toNext();
      }
    }
    throw unserved!;
  }

  #toNext(): void {
    this.#at = (this.#at + 1) % this.#addresses.length;
  }

  #toTarget(datagram: Buffer): void {
    this.#out.push(datagram);
    this.flow.tellDropped(this.#out.dropped + this.#flooded);
  }

  /** False: the socket takes none now, or there is none. */
  #send(datagram: Buffer): boolean {
    const result = this.#socket?.send(datagram) ?? "full";
    if (result === "full") return false;
    if (this.#refusals < this.#addresses.length - 1) this.#unanswered = datagram;
    if (result !== "sent") queueMicrotask(() => this.#failed(result));
    return true;
  }

  #fromTarget(datagram: Buffer): void {
    this.#refusals = 0;
    this.#unanswered = undefined;
    this.flow.send(datagram);
  }

  /** The target is tried at its next address. Once all have refused, that is told. */
  #failed(code: string): void {
    if (passing.has(code) || !this.#socket) return;
    const [again, problem] = [this.#unanswered, this.#problem(code)];
    this.#unanswered = undefined;
    this.#refusals++;
    if (this.#addresses.length > 1) this.#reconnect();
    if (again) this.#socket?.send(again);
    if (this.#refusals !== this.#addresses.length) return;
    if (code === "ECONNREFUSED") this.flow.tellRefused();
    this.#options.onRefused(formatTarget(this.#target), { reason: problem, why: "no-answer" });
  }

  #reconnect(): void {
    this.#socket?.close();
    this.#socket = undefined;
    this.#toNext();
    try {
      this.#connect();
    } catch (error) {
      if (!(error instanceof Unserved)) throw error;
      this.flow.end(error.told, resetCodes.unreachable);
    }
  }

  /** For our user; and for the peer, who is told no address. */
  #problem(code: string): string {
    return `${formatHostPort(this.#addresses[this.#at]!, this.#target.port)}: ${dialProblems[code] ?? code}`;
  }
  #told(code: string): string {
    return `${formatTarget(this.#target)}: ${dialProblems[code] ?? code}`;
  }
}
