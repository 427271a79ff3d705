/**
 * A port of the router's external address for one of ours, for as long as it is wanted (RFC 6887, RFC 6886, UPnP IGD):
 * asked for by PCP, then NAT-PMP, and by UPnP beside them; renewed at half its life, made anew when the router has lost
 * it, and deleted at the end. Owns every socket and timer of that, through the clients that it asks by. It dials
 * nobody, and decides nothing about candidates but whether there is one. For participant.ts.
 *
 *   const mapping = new PortMapping({ internalPort, observed, onChange: (state) => … });
 *   await mapping.close();
 */
import { createSocket, type Socket } from "node:dgram";
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
/** Shorter ones would have us ask all the time. */
const shortestLifetimeS = 8;
/** RFC 6887 §11.2.1: not more often than that. */
const shortestRenewalMs = 4_000;
/** What is not answered by then, by any protocol, is not answered. */
const answerDeadlineMs = 5_000;
/** What the end may take. */
const deleteDeadlineMs = 1_000;
/** RFC 6887 §14.1.3: so that the hosts of a LAN do not all come at once to a router that has just started. */
const restartJitterMs = 5_000;
/** RFC 6887 §14.1, RFC 6886 §3.2.1: what a router says to all hosts. */
const allHosts = "224.0.0.1";

export type PortMappingState =
  | { is: "asking" }
  /** `candidate`: the address that others see us at, with the port that the router has opened there. */
  | {
      is: "mapped";
      protocol: MappingProtocol;
      externalAddress: string;
      externalPort: number;
      /** As granted; 0: until it is deleted. */
      lifetimeS: number;
      candidate: Endpoint;
    }
  /** Another NAT is behind the router: its external address is private, empty, or not what others see. */
  | { is: "double-nat"; protocol: MappingProtocol; externalAddress: string }
  /** No router, none that answers, or refused; in words. */
  | { is: "unavailable"; reason: string }
  | { is: "closed" };

export interface PortMappingOptions {
  /** The TCP port of ours that is to be reached. */
  internalPort: number;
  /** What the introducer sees of us, IPv4. */
  observed: Endpoint;
  /** Called with every new state; never after `close()` was. */
  onChange: (state: PortMappingState) => void;
  /** Asked for; 7200 s by default. */
  lifetimeS?: number;
  /** The default gateway, unless tests say where their router is. */
  gateway?: Gateway;
}

interface Found {
  client: MappingClient;
  grant: Grant;
}

/** What a router without an address is taken to grant. */
const ofNoAddress: Grant = { externalAddress: "", externalPort: 0, lifetimeS: 0 };
export const protocolNames: Record<MappingProtocol, string> = {
  pcp: "PCP",
  "nat-pmp": "NAT-PMP",
  upnp: "UPnP",
};

/** What a grant is worth to one whom others see at `observed`. Pure. */
export function judgeGrant(protocol: MappingProtocol, grant: Grant, observed: Endpoint): PortMappingState {
  const { externalAddress, externalPort, lifetimeS } = grant;
  const { address } = splitEndpoint(observed);
  if (externalAddress !== address || addressScope(externalAddress) !== "global")
    return { is: "double-nat", protocol, externalAddress };
  const candidate = formatEndpoint(address, externalPort);
  return { is: "mapped", protocol, externalAddress, externalPort, lifetimeS, candidate };
}

/** How long a mapping lasts, by the router's word, but not longer than `askedS`. Pure. */
export function lifetimeMs({ lifetimeS }: Grant, askedS: number): number {
  return Math.min(lifetimeS || askedS, askedS) * 1_000;
}

/**
 * When to renew, `leftMs` before a mapping ends: at half of that, and if nothing comes of it at half of what is left
 * then (RFC 6887 §11.2.1). Pure.
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
  /** Whoever has been asked, for they may all have granted something. */
  #asked: MappingClient[] = [];
  #state: PortMappingState = { is: "asking" };
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

  /** Resolves once the state is no longer `asking`, for the first time. */
  get answered(): Promise<void> {
    return this.#answered.promise;
  }

  /** Deletes what there is; resolves when that is done, after a second at the latest. */
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
    while (!signal.aborted) {
      const found = await this.#search(gateway);
      if (found && this.#accept(found)) await this.#keep(gateway, found);
      if (signal.aborted) return; // the end deletes
      await this.#unmap();
      if (this.#state.is !== "mapped") return;
      this.#become({ is: "asking" });
    }
  }

  // --- the first mapping ---------------------------------------------------------------------------------

  /** Whoever grants first; undefined when none does, and then the state says why. */
  async #search(gateway: Gateway): Promise<Found | undefined> {
    const { internalPort } = this.#options;
    try {
      return await within(answerDeadlineMs, this.#stop.signal, (signal) => {
        const pcp = this.#ask(new PcpClient(gateway, internalPort), signal);
        // By NAT-PMP only where PCP is refused or not heard: one router may grant both.
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

  /** Whether the grant is worth keeping; the state tells. */
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

  /** Renews it until it is lost (the state is still `mapped` then), worth nothing any more, or no longer wanted. */
  async #keep(gateway: Gateway, found: Found): Promise<void> {
    const { signal } = this.#stop;
    using announcements = new Announcements(gateway);
    let { grant } = found;
    let heardAt = performance.now();
    const endsAt = () => heardAt + lifetimeMs(grant, this.#lifetimeS);
    for (;;) {
      const epoch = grant.epochS === undefined ? undefined : { epochS: grant.epochS, atMs: heardAt };
      await announcements.restart(epoch, renewalPauseMs(endsAt() - performance.now()), signal);
      if (signal.aborted) return;
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

  /** Whatever anyone has granted, also those who came second. */
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

/** What each has failed for, in words; anything else that was thrown is a bug. */
function reasonsOf(failures: unknown[]): string {
  const messages = failures.map((failure) => {
    if (!(failure instanceof PortMapError)) throw failure;
    return failure.message;
  });
  return messages.join("; ");
}

/**
 * Hears when the router says that it has started anew. Anyone in the LAN could say so: it only makes us ask the
 * router earlier. Where the port can't be had, the next renewal finds out.
 */
class Announcements implements Disposable {
  readonly #socket: Socket;
  #onEpoch: (epochS: number) => void = () => {};

  constructor({ address, localAddress, announcementPort }: Gateway) {
    const socket = createSocket({ type: "udp4", reuseAddr: true });
    this.#socket = socket;
    socket.on("error", () => {});
    socket.on("message", (bytes, from) => {
      const epochS = from.address === address ? decodeAnnouncement(bytes) : undefined;
      if (epochS !== undefined) this.#onEpoch(epochS);
    });
    // Bound to the group, so that no datagram to our own address gets in.
    socket.bind({ port: announcementPort, address: allHosts }, () => {
      try {
        socket.addMembership(allHosts, localAddress);
      } catch {
        // no multicast here
      }
    });
  }

  /** Resolves on abort, after `ms`, or earlier once the router has lost what it held at `since`. */
  async restart(since: Epoch | undefined, ms: number, signal: AbortSignal): Promise<void> {
    const lost = Promise.withResolvers<void>();
    this.#onEpoch = (epochS) => {
      if (since && hasLostState(since, { epochS, atMs: performance.now() })) lost.resolve();
    };
    await within(ms, signal, async (ended) => {
      await Promise.race([
        pause(ms, ended),
        lost.promise.then(() => pause(Math.random() * restartJitterMs, ended)),
      ]);
    });
  }

  [Symbol.dispose](): void {
    this.#onEpoch = () => {};
    this.#socket.close();
  }
}
