/**
 * The default gateway: the router that our packets to the Internet go to first. And what each protocol asks of it: a
 * port of its external address that leads to one of ours. Owns no descriptor, prints nothing. For portmap.ts, pcp.ts
 * and upnp.ts.
 */
import { readFile } from "node:fs/promises";
import { canonicalAddress, formatEndpoint } from "../../protocol.ts";
import { parseRouteTable, sourceTowards } from "../host/routes.ts";

/** How long `route` may take. It is used where the kernel has no file of the routes. */
const routeTimeoutMs = 1_000;

export interface Gateway {
  /** IPv4, as the route has it. */
  address: string;
  /** Our own address on the way to it. */
  localAddress: string;
  /** The port for PCP and NAT-PMP. */
  mappingPort: number;
  /** The port at which its announcements to all hosts arrive. */
  announcementPort: number;
  /** The port for SSDP. */
  searchPort: number;
}
/** RFC 6887 §19.1, §19.2; UPnP Device Architecture 1.1 §1.3.2. */
export const gatewayPorts = { mappingPort: 5351, announcementPort: 5350, searchPort: 1900 } as const;

export type MappingProtocol = "pcp" | "nat-pmp" | "upnp";

/** What the router says it has opened. */
export interface Grant {
  /** Its external address, as it says. */
  externalAddress: string;
  externalPort: number;
  /** In seconds; 0: until it is deleted. */
  lifetimeS: number;
  /** Seconds since the router last lost its mappings (RFC 6887 §8.5), if the protocol says it. */
  epochS?: number;
}

/** One protocol towards one router, for one of our ports. Every call opens what it needs and closes it. */
export interface MappingClient {
  readonly protocol: MappingProtocol;
  /** Asks for a mapping, or renews the one there is. Rejects with a {@link PortMapError}, at the latest on abort. */
  map(lifetimeS: number, signal: AbortSignal): Promise<Grant>;
  /** Deletes what may exist, even if no answer has come to `map`. Rejects as `map` does. */
  unmap(signal: AbortSignal): Promise<void>;
  /**
   * Once granted: deletes what earlier programs of this host have left at the router, if it would stay there for ever. Rejects
   * as `map` does.
   */
  tidy?(signal: AbortSignal): Promise<void>;
}

/** Why there is no mapping by this protocol. */
export class PortMapError extends Error {}

/** The router has no external address. Another protocol would give the same answer. */
export class NoAddressError extends PortMapError {
  constructor() {
    super("the router has no public address");
  }
}

/** An error of a socket of Node's or Bun's, in words. */
export function socketProblem(error: unknown): PortMapError {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const words: Record<string, string> = { ECONNREFUSED: "nothing listens there", ABORT_ERR: "no answer" };
  return new PortMapError(words[code] ?? (code || String(error)), { cause: error });
}

/** The gateway in what `route -n get default` prints on macOS. Pure. */
export function parseRouteAnswer(answer: string): string | undefined {
  const gateway = /^\s*gateway:\s+(\S+)\s*$/m.exec(answer)?.[1];
  const address = gateway === undefined ? undefined : canonicalAddress(gateway);
  return address?.family === 4 ? address.address : undefined;
}

/** The default gateway for IPv4; undefined where there is none. */
export async function findGateway(signal: AbortSignal): Promise<Gateway | undefined> {
  const address =
    process.platform === "linux"
      ? parseRouteTable(await readFile("/proc/net/route", "utf8").catch(() => ""))
      : parseRouteAnswer(await askForRoute(signal));
  if (address === undefined) return undefined;
  const localAddress = await sourceTowards(formatEndpoint(address, gatewayPorts.mappingPort));
  if (localAddress === undefined) return undefined;
  return { address, localAddress, ...gatewayPorts };
}

async function askForRoute(signal: AbortSignal): Promise<string> {
  try {
    const command = ["/sbin/route", "-n", "get", "default"];
    const program = Bun.spawn(command, { stdout: "pipe", stderr: "ignore", timeout: routeTimeoutMs, signal });
    return await program.stdout.text();
  } catch {
    return ""; // there is no such program, or it was stopped
  }
}

/** Runs `work` with a signal. It aborts after `ms`, when `outer` aborts, and once `work` has ended. */
export async function within<T>(
  ms: number,
  outer: AbortSignal,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const abort = () => controller.abort();
  const timer = setTimeout(abort, ms);
  outer.addEventListener("abort", abort);
  if (outer.aborted) abort();
  try {
    return await work(controller.signal);
  } finally {
    clearTimeout(timer);
    outer.removeEventListener("abort", abort);
    abort();
  }
}

/** Resolves after `ms`, or at once on abort. The signal says which. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => resolve());
  if (signal.aborted) resolve();
  return promise.finally(() => clearTimeout(timer));
}
