/**
 * A port of the router's external address that leads to one of ours (RFC 6887, RFC 6886, UPnP IGD). It is asked for by PCP,
 * then by NAT-PMP, and by UPnP beside them. It is renewed at half its life, and when somebody doubts that it is there. It is
 * asked for anew when the router has lost it, and deleted at the end. Owns all sockets and timers for that, by its clients. It dials nobody, and says of candidates only
 * whether there is one. For native/participant/.
 *
 *   const mapping = new PortMapping({ internalPort, observed, onChange: (state) => … });
 *   await mapping.close();
 */
import type { Socket } from "node:dgram";
import { addressScope, formatEndpoint, splitEndpoint, type Endpoint } from "../../protocol.ts";
import {
  findGateway,
  type Gateway,
  type Grant,
  type MappingClient,
  type MappingProtocol,
  NoAddressError,
  pause,
  PortMapError,
  within,
} from "./gateway.ts";
import {
  decodeAnnouncement,
  type Epoch,
  hasLostState,
  NatPmpClient,
  PcpClient,
  silentAfterMs,
} from "./pcp.ts";
import { UpnpClient } from "./upnp.ts";

const defaultLifetimeS = 7_200;
/** For a shorter one we would have to ask all the time. */
const shortestLifetimeS = 8;
/** RFC 6887 §11.2.1: not more often. */
const shortestRenewalMs = 4_000;
/** How long all protocols together may take to answer. */
const answerDeadlineMs = 5_000;
const defaultAskAgainMs = { first: 30_000, most: 600_000 };
/** How long it may take to find and delete what earlier programs have left. */
const tidyDeadlineMs = 10_000;
/** How long deleting may take. */
const deleteDeadlineMs = 1_000;
/** RFC 6887 §14.1.3: so that not all hosts of a LAN ask at once when a router has started. */
const restartJitterMs = 5_000;
/** RFC 6887 §14.1, RFC 6886 §3.2.1: where a router announces to all hosts. */
const allHosts = "224.0.0.1";

export type PortMappingState =
  | { is: "asking" }
  /** `candidate`: the address that others see us at, with the port that the router has opened there. */
  | {
      is: "mapped";
      protocol: MappingProtocol;
      externalAddress: string;
      externalPort: number;
      /** As granted, in seconds; 0: until it is deleted. */
      lifetimeS: number;
      candidate: Endpoint;
    }
  /** There is another NAT beyond the router: its external address is private, empty, or not what others see. */
  | { is: "double-nat"; protocol: MappingProtocol; externalAddress: string }
  /** There is no router, or it does not answer, or it refuses; the reason is for people. */
  | { is: "unavailable"; reason: string }
  | { is: "closed" }
  /** Not asked for: the user says that the router forwards it to ours. */
  | { is: "forwarded"; candidate: Endpoint };

export interface PortMappingOptions {
  /** The TCP port of ours that others shall reach. */
  internalPort: number;
  /** The IPv4 endpoint at which the introducer sees us. */
  observed: Endpoint;
  /** Called with every new state, but never after `close()`. */
  onChange: (state: PortMappingState) => void;
  /** Asked for; 7200 s by default. */
  lifetimeS?: number;
  /** The default gateway, unless tests say where their router is. */
  gateway?: Gateway;
  /** A router that has refused, or was silent, is asked again no sooner: doubled each time, up to `most`. */
  askAgainMs?: { first: number; most: number };
}

interface Found {
  client: MappingClient;
  grant: Grant;
}

/** The grant of a router that has no external address. */
const ofNoAddress: Grant = { externalAddress: "", externalPort: 0, lifetimeS: 0 };
export const protocolNames: Record<MappingProtocol, string> = {
  pcp: "PCP",
  "nat-pmp": "NAT-PMP",
  upnp: "UPnP",
};

/** What a grant is worth, if others see us at `observed`. Pure. */
export function judgeGrant(protocol: MappingProtocol, grant: Grant, observed: Endpoint): PortMappingState {
  const { externalAddress, externalPort, lifetimeS } = grant;
  const { address } = splitEndpoint(observed);
  if (externalAddress !== address || addressScope(externalAddress) !== "global")
    return { is: "double-nat", protocol, externalAddress };
  const candidate = formatEndpoint(address, externalPort);
  return { is: "mapped", protocol, externalAddress, externalPort, lifetimeS, candidate };
}

/** How long a mapping lasts, as the router says, but not longer than `askedS`. Pure. */
export function lifetimeMs({ lifetimeS }: Grant, askedS: number): number {
  return Math.min(lifetimeS || askedS, askedS) * 1_000;
}

/**
 * How long to wait before renewing a mapping that ends in `leftMs`: half of that. If it fails, half of what is left then
 * (RFC 6887 §11.2.1). Pure.
 */
export function renewalPauseMs(leftMs: number): number {
  return Math.max(shortestRenewalMs, leftMs / 2);
}

export class PortMapping {
  readonly #options: PortMappingOptions;
  readonly #lifetimeS: number;
  readonly #stop = new AbortController();
  readonly #running: Promise<void>;
  readonly #answered = Promise.withResolvers<void>();
  /** All clients that have asked: each may have been granted something. */
  #asked: MappingClient[] = [];
  #state: PortMappingState = { is: "asking" };
  /** Settled once somebody wants to know whether it is still there. */
  #doubted = Promise.withResolvers<void>();
  #closing: Promise<void> | undefined;

  /** Starts asking. */
  constructor(options: PortMappingOptions) {
    this.#options = options;
    this.#lifetimeS = options.lifetimeS ?? defaultLifetimeS;
    this.#running = this.#run();
  }

  get state(): PortMappingState {
    return this.#state;
  }

  /** Resolves once the state is no longer the first `asking`. */
  get answered(): Promise<void> {
    return this.#answered.promise;
  }

  /** There should be a direct way by it, and there is none: the router is asked again, as soon as that may be. */
  doubt(): void {
    this.#doubted.resolve();
  }

  /** Deletes the mapping. Resolves when that is done, after a second at the latest. */
  close(): Promise<void> {
    return (this.#closing ??= this.#end());
  }

  async #end(): Promise<void> {
    this.#state = { is: "closed" };
    this.#answered.resolve();
    this.#stop.abort();
    await this.#running;
    await this.#unmap();
  }

  /** The only place where the state changes, but for the end. */
  #become(state: PortMappingState): void {
    if (this.#state.is === "closed" || Bun.deepEquals(this.#state, state)) return;
    this.#state = state;
    this.#answered.resolve();
    this.#options.onChange(state);
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop;
    const gateway = this.#options.gateway ?? (await findGateway(signal));
    if (!gateway) return this.#become({ is: "unavailable", reason: "no default gateway" });
    const { first, most } = this.#options.askAgainMs ?? defaultAskAgainMs;
    let againMs = first;
    while (!signal.aborted) {
      const askedAt = performance.now();
      const found = await this.#search(gateway);
      if (found && this.#accept(found))
        await Promise.all([this.#keep(gateway, found), this.#tidy(found.client)]);
      if (signal.aborted) return; // the end deletes
      await this.#unmap();
      if (this.#state.is === "mapped") {
        againMs = first;
        this.#become({ is: "asking" });
        continue;
      }
      await this.#doubts(askedAt + againMs, signal);
      againMs = Math.min(2 * againMs, most);
    }
  }

  /** Resolves once there is a doubt, but no sooner than at `notBefore` (performance.now), or on abort. */
  async #doubts(notBefore: number, signal: AbortSignal): Promise<void> {
    const aborted = Promise.withResolvers<void>();
    signal.addEventListener("abort", () => aborted.resolve(), { once: true });
    if (signal.aborted) return;
    await Promise.race([this.#doubted.promise, aborted.promise]);
    await pause(Math.max(0, notBefore - performance.now()), signal);
    if (!signal.aborted) this.#doubted = Promise.withResolvers();
  }

  // --- the first mapping ---------------------------------------------------------------------------------

  /** The first protocol that grants. Undefined if none does; then the state says why. */
  async #search(gateway: Gateway): Promise<Found | undefined> {
    const { internalPort } = this.#options;
    try {
      return await within(answerDeadlineMs, this.#stop.signal, (signal) => {
        const pcp = this.#ask(new PcpClient(gateway, internalPort), signal);
        // NAT-PMP only if PCP is refused or not answered: a router might grant both.
        const isWanted = Promise.race([
          pcp.then(() => false).catch(() => true),
          pause(silentAfterMs, signal).then(() => !signal.aborted),
        ]);
        const natPmp = isWanted.then((isSo) => {
          if (!isSo) throw new PortMapError("NAT-PMP: not asked");
          return this.#ask(new NatPmpClient(gateway, internalPort), signal);
        });
        return Promise.any([pcp, natPmp, this.#ask(new UpnpClient(gateway, internalPort), signal)]);
      });
    } catch (error) {
      const failures: unknown[] = error instanceof AggregateError ? error.errors : [error];
      this.#become({ is: "unavailable", reason: reasonsOf(failures) });
      return undefined;
    }
  }

  async #ask(client: MappingClient, signal: AbortSignal): Promise<Found> {
    this.#asked.push(client);
    try {
      return { client, grant: await client.map(this.#lifetimeS, signal) };
    } catch (error) {
      if (error instanceof NoAddressError) return { client, grant: ofNoAddress };
      if (!(error instanceof PortMapError)) throw error;
      throw new PortMapError(`${protocolNames[client.protocol]}: ${error.message}`, { cause: error });
    }
  }

  /** Sets the state by a grant. Returns whether the grant is worth keeping. */
  #accept({ client, grant }: Found): boolean {
    const { lifetimeS } = grant;
    const isTooShort = lifetimeS !== 0 && lifetimeS < shortestLifetimeS;
    this.#become(
      isTooShort
        ? { is: "unavailable", reason: `${protocolNames[client.protocol]}: it grants ${lifetimeS} s only` }
        : judgeGrant(client.protocol, grant, this.#options.observed),
    );
    return this.#state.is === "mapped";
  }

  // --- its life ------------------------------------------------------------------------------------------

  /** Renews it until it is lost (then the state is still `mapped`), is worth nothing any more, or is no longer wanted. */
  async #keep(gateway: Gateway, found: Found): Promise<void> {
    const { signal } = this.#stop;
    using announcements = new Announcements(gateway);
    let { grant } = found;
    let heardAt = performance.now();
    let askedAt = heardAt;
    const endsAt = () => heardAt + lifetimeMs(grant, this.#lifetimeS);
    for (;;) {
      const epoch = grant.epochS === undefined ? undefined : { epochS: grant.epochS, atMs: heardAt };
      await within(renewalPauseMs(endsAt() - performance.now()), signal, (ended) =>
        Promise.race([announcements.restart(epoch, ended), this.#doubts(askedAt + shortestRenewalMs, ended)]),
      );
      if (signal.aborted) return;
      askedAt = performance.now();
      try {
        grant = await within(answerDeadlineMs, signal, (one) => found.client.map(this.#lifetimeS, one));
      } catch (error) {
        if (!(error instanceof PortMapError)) throw error;
        if (signal.aborted || performance.now() >= endsAt()) return;
        continue;
      }
      if (!this.#accept({ ...found, grant })) return;
      heardAt = performance.now();
    }
  }

  /** Deletes what earlier programs of ours have left open for ever. */
  async #tidy(client: MappingClient): Promise<void> {
    try {
      await within(tidyDeadlineMs, this.#stop.signal, async (signal) => client.tidy?.(signal));
    } catch (error) {
      if (!(error instanceof PortMapError)) throw error; // it is for tidiness only
    }
  }

  /** Deletes all that was granted, also by a protocol that came second. */
  async #unmap(): Promise<void> {
    const asked = this.#asked.splice(0);
    const { signal } = new AbortController();
    const endings = asked.map((client) =>
      within(deleteDeadlineMs, signal, (one) => client.unmap(one)).catch((error: unknown) => {
        if (!(error instanceof PortMapError)) throw error; // a silent router: it forgets by itself
      }),
    );
    await Promise.all(endings);
  }
}

/** Why each has failed, in words. Throws anything that is not a {@link PortMapError}: it is a bug. */
function reasonsOf(failures: unknown[]): string {
  const messages = failures.map((failure) => {
    if (!(failure instanceof PortMapError)) throw failure;
    return failure.message;
  });
  return messages.join("; ");
}

/**
 * Hears when the router announces that it has started anew. Anyone in the LAN could forge that, and it only makes us
 * ask the router earlier. If the port is taken, the next renewal finds out.
 */
class Announcements implements Disposable {
  readonly #socket: Socket;
  #onEpoch: (epochS: number) => void = () => {};

  constructor({ address, localAddress, announcementPort }: Gateway) {
    const { createSocket } = process.getBuiltinModule("node:dgram");
    const socket = createSocket({ type: "udp4", reuseAddr: true });
    this.#socket = socket;
    socket.on("error", () => {});
    socket.on("message", (bytes, from) => {
      const epochS = from.address === address ? decodeAnnouncement(bytes) : undefined;
      if (epochS !== undefined) this.#onEpoch(epochS);
    });
    // Bound to the group: a datagram to our own address does not get in.
    socket.bind({ port: announcementPort, address: allHosts }, () => {
      try {
        socket.addMembership(allHosts, localAddress);
      } catch {
        // no multicast here
      }
    });
  }

  /** Resolves on abort, or once the router has lost what it held at `since`. */
  async restart(since: Epoch | undefined, signal: AbortSignal): Promise<void> {
    const lost = Promise.withResolvers<void>();
    signal.addEventListener("abort", () => lost.resolve(), { once: true });
    if (signal.aborted) return;
    this.#onEpoch = (epochS) => {
      if (since && hasLostState(since, { epochS, atMs: performance.now() })) lost.resolve();
    };
    await lost.promise;
    await pause(Math.random() * restartJitterMs, signal);
  }

  [Symbol.dispose](): void {
    this.#onEpoch = () => {};
    this.#socket.close();
  }
}
