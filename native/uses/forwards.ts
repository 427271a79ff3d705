/**
 * The forwards that the user has made: where each listens, and what it carries. Owns them. For native/uses/services.ts.
 */
import { UserError } from "../../protocol.ts";
import type { Link } from "../session/link.ts";
import type { Traffic } from "./flow.ts";
import { Forward, type WhyRefused } from "./forward.ts";
import { RemoteForward } from "./remote.ts";
import { UdpForward } from "./udp.ts";
import {
  formatListen,
  type ForwardSpec,
  formatTarget,
  type Listen,
  parseListen,
  parseProxy,
  type RemoteSpec,
  type Target,
} from "./target.ts";

/** A forward that was made or taken back: where it listens, and whose link it wants. */
export interface Forwarding {
  listen: string;
  peer: string;
}

/** A forward as the table shows it. */
export interface ForwardRow {
  listen: string;
  peer: string;
  target: string;
  open: number;
  total: number;
  bytesIn: number;
  bytesOut: number;
  /** Of UDP: datagrams, and how many of them were dropped, here or by the peer. */
  packetsIn?: number;
  packetsOut?: number;
  dropped?: number;
  /** If the peer is to listen: whether it does. */
  remote?: RemoteForward["is"];
}

export interface ForwardsOptions {
  /** The link with that peer, as soon as it carries something. Rejects if none is being made, or the peer is gone. */
  liveLink: (peer: string) => Link | Promise<Link>;
  /** A connection to that target of the peer did not get through. */
  onRefused: (peer: string, target: string, reason: string, why: WhyRefused) => void;
  /** A peer listens for us, or does not. */
  onListening: (peer: string, listen: string, target: string) => void;
  onListenRefused: (peer: string, listen: string, reason: string, why: WhyRefused) => void;
  /** Our own target did not answer what came by the peer's listener. */
  onUnanswered: (peer: string, target: string, reason: string) => void;
  onProblem: (message: string) => void;
}

/** One for each port. */
interface Made extends Forwarding {
  target: string;
  forwards: AnyForward[];
}

type AnyForward = Forward | UdpForward | RemoteForward;

const atPeer = (listen: Listen, peer: string): string => `${formatListen(listen)} at ${peer}`;

export class Forwards {
  readonly #options: ForwardsOptions;
  /** By where they listen. */
  readonly #made = new Map<string, Made>();

  constructor(options: ForwardsOptions) {
    this.#options = options;
  }

  /** Listens at once, on all of its ports or on none. Port 0 listens on a free one. Throws a {@link UserError}. */
  make(spec: ForwardSpec): Forwarding & { target: string } {
    const { peer, target, ports } = spec;
    const forwards: (Forward | UdpForward)[] = [];
    try {
      for (let index = 0; index < ports; index++) forwards.push(this.#forward(spec, index));
    } catch (error) {
      for (const forward of forwards) forward.close();
      const others = ports > 1 ? `; so none of ${formatListen(spec.listen, ports)} is forwarded` : "";
      throw new UserError(`${error instanceof Error ? error.message : String(error)}${others}`);
    }
    const made = {
      listen: formatListen(forwards[0]!.listen, ports),
      peer,
      target: formatTarget(target, ports),
    };
    this.#made.set(made.listen, { ...made, forwards });
    return made;
  }

  /** Closes what {@link make} has opened there: `[BIND:]PORT`, all of a range. */
  takeBack(text: string): Forwarding {
    if (this.#made.has(text)) return this.#takeBack(text);
    const { listen, ports } = parseListen(text);
    return this.#takeBack(formatListen(listen, ports));
  }

  #takeBack(at: string): Forwarding {
    const made = this.#made.get(at);
    if (!made) throw new UserError(`nothing is forwarded from ${at}; \`forwards\` shows what is`);
    for (const forward of made.forwards) forward.close();
    this.#made.delete(at);
    return { listen: at, peer: made.peer };
  }

  /** Has the peer listen, as soon as there is a link. */
  makeRemote({ listen, peer, target }: RemoteSpec): Forwarding {
    const at = atPeer(listen, peer);
    if (this.#made.has(at)) throw new UserError(`${at} is forwarded already`);
    const [text, to] = [formatListen(listen), formatTarget(target)];
    const { liveLink, onListening, onListenRefused, onUnanswered } = this.#options;
    const forward = new RemoteForward({
      ...{ listen, target, link: () => liveLink(peer) },
      onListening: () => onListening(peer, text, to),
      onRefused: (reason, why) => onListenRefused(peer, text, reason, why),
      onUnanswered: (reason) => onUnanswered(peer, to, reason),
    });
    this.#made.set(at, { listen: at, peer, target: to, forwards: [forward] });
    return { listen: at, peer };
  }

  /** Closes what {@link makeRemote} has opened: `[BIND:]PORT:PEER`. */
  takeBackRemote(text: string): Forwarding {
    const { listen, peer } = parseProxy(text);
    return this.#takeBack(atPeer(listen, peer));
  }

  /** The forward to which a peer's listener belongs. */
  byToken(token: unknown): RemoteForward | undefined {
    const all = [...this.#made.values()].flatMap(({ forwards }) => forwards);
    return all.find((one) => one instanceof RemoteForward && one.owns(token)) as RemoteForward | undefined;
  }

  get rows(): ForwardRow[] {
    return [...this.#made.values()].map(({ listen, peer, target, forwards }) => {
      const all = (count: (forward: AnyForward) => number) =>
        forwards.reduce((sum, one) => sum + count(one), 0);
      return {
        ...{ listen, peer, target },
        open: all(({ open }) => open),
        total: all(({ total }) => total),
        bytesIn: all(({ bytesIn }) => bytesIn),
        bytesOut: all(({ bytesOut }) => bytesOut),
        ...trafficOf(forwards),
        ...(forwards[0] instanceof RemoteForward && { remote: forwards[0].is }),
      };
    });
  }

  close(): void {
    for (const { forwards } of this.#made.values()) for (const forward of forwards) forward.close();
    this.#made.clear();
  }

  /** The forward of one of the ports. */
  #forward({ listen, peer, target }: ForwardSpec, index: number): Forward | UdpForward {
    const { liveLink, onProblem, onRefused } = this.#options;
    const to = shifted(target, index);
    const at = shifted(listen, index);
    const options = {
      link: () => liveLink(peer),
      onProblem,
      onRefused: (wanted: Target, reason: string, why: WhyRefused) =>
        onRefused(peer, formatTarget(wanted), reason, why),
    };
    if (to.kind !== "udp") return new Forward({ ...options, listen: at, target: to });
    if (at.kind !== "udp") throw new Error(`${formatListen(at)} is no port of UDP`);
    return new UdpForward({ ...options, listen: at, target: to });
  }
}

/** With the port that is so many further; port 0 stays. */
function shifted<T extends object>(end: T, by: number): T {
  return "port" in end && typeof end.port === "number" && end.port > 0
    ? { ...end, port: end.port + by }
    : end;
}

/** What only forwards of UDP count; nothing for others. */
function trafficOf(
  forwards: readonly AnyForward[],
): Pick<ForwardRow, "packetsIn" | "packetsOut" | "dropped"> {
  const all = forwards.flatMap((forward) => (forward instanceof UdpForward ? [forward.traffic] : []));
  if (all.length === 0) return {};
  const sum = (count: (traffic: Traffic) => number) => all.reduce((total, one) => total + count(one), 0);
  return {
    packetsIn: sum(({ packetsIn }) => packetsIn),
    packetsOut: sum(({ packetsOut }) => packetsOut),
    dropped: sum(({ dropped }) => dropped),
  };
}
