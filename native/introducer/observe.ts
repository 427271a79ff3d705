/**
 * Where a participant is, as the introducer sees it: its observed endpoint, which address of this host it may reach, and
 * what an unsolicited SYN to it meets. For introducer.ts, native/introducer/ and native/terminal/. RFC 5382 §4.3, RFC 5780.
 */
import { closeSync, openSync } from "node:fs";
import { connect } from "node:net";
import { networkInterfaces } from "node:os";
import type { Socket } from "bun";
import {
  addressScope,
  canonicalAddress,
  type Endpoint,
  type EndpointParts,
  type Filtering,
  formatEndpoint,
  scopeOf,
  splitEndpoint,
} from "../../protocol.ts";
import type { Member } from "./session.ts";

/**
 * How long a connection back may take. By RFC 5382 §4.3 a NAT holds an unsolicited SYN for 6 s; a silent one never
 * answers.
 */
export const connectBackMs = 3000;

/** The errors on Linux for a RST, and for the ICMP errors of RFC 1122 §4.2.3.9 and RFC 4443 §3.1. */
const refusalErrors: ReadonlySet<string> = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EHOSTDOWN",
  "ENETDOWN",
  "ENONET",
  "ENOPROTOOPT",
  "EACCES",
]);

/** What an attempt to connect shows of the filtering there; undefined if it failed for a reason on our side. */
export function filteringOf(code: string | undefined): Filtering | undefined {
  if (code === undefined) return "let-in";
  if (code === "ETIMEDOUT") return "dropped";
  return refusalErrors.has(code) ? "refused" : undefined;
}

/** Bun also says ECONNREFUSED if no descriptor is free. */
function hasDescriptor(): boolean {
  try {
    closeSync(openSync(process.execPath, "r"));
    return true;
  } catch {
    return false;
  }
}

/** Connects to an endpoint, from that address, only to see what comes back. Undefined if it could not be tried. */
export function tryConnect(
  { address, port }: EndpointParts,
  localAddress?: string,
): Promise<Filtering | undefined> {
  const { promise, resolve } = Promise.withResolvers<Filtering | undefined>();
  const socket = connect({ host: address, port, ...(localAddress !== undefined && { localAddress }) });
  const timer = setTimeout(() => resolve("dropped"), connectBackMs);
  socket.once("connect", () => resolve(filteringOf(undefined)));
  socket.on("error", ({ code = "unknown" }: NodeJS.ErrnoException) =>
    resolve(hasDescriptor() ? filteringOf(code) : undefined),
  );
  return promise.finally(() => {
    clearTimeout(timer);
    socket.destroy();
  });
}

/** The endpoint that we see of a client; undefined if it is gone already. */
export function observedEndpoint(socket: Socket<unknown>): Endpoint | undefined {
  const address = canonicalAddress(socket.remoteAddress ?? "")?.address;
  return address === undefined ? undefined : formatEndpoint(address, socket.remotePort);
}

/** Whether it came by an address that means nothing elsewhere, such as a link-local one. Its peers can't use it. */
export function isNoPlace(observed: Endpoint): boolean {
  return scopeOf(observed) === "unusable";
}

/** All addresses of this host; none if the system can't say it now. */
export function ownAddresses(): { family: 4 | 6; address: string }[] {
  try {
    const all = Object.values(networkInterfaces()).flatMap((list) => list ?? []);
    return all.flatMap(({ address }) => canonicalAddress(address) ?? []);
  } catch {
    return []; // out of descriptors
  }
}

/** The one of these addresses, of that family, that a participant seen at `observed` can probably reach. */
export function reachable(
  own: ReturnType<typeof ownAddresses>,
  observed: Endpoint,
  family: 4 | 6,
): string | undefined {
  const scope = scopeOf(observed);
  const scopes = scope === "private" ? ["private", "global"] : [scope];
  const fitting = own.filter((one) => one.family === family);
  const ranked = scopes.flatMap((wanted) => fitting.filter((one) => addressScope(one.address) === wanted));
  return ranked[0]?.address;
}

/** Whether an endpoint is at a participant's own address. Nobody is sent to any other. */
export function isAt(endpoint: Endpoint, { observed }: Member): boolean {
  return splitEndpoint(endpoint).address === splitEndpoint(observed).address;
}

/** The address by which participants most probably reach this host. */
function likelyAddress(): string {
  const rank = ({ address, family }: { address: string; family: 4 | 6 }) =>
    ["global4", "private4", "global6", "private6"].indexOf(addressScope(address) + family);
  const ranked = ownAddresses()
    .filter((one) => rank(one) >= 0)
    .sort((a, b) => rank(a) - rank(b));
  return ranked[0]?.address ?? "127.0.0.1";
}

/** The address of an introducer that listens on `host`. */
export function publicAddress(host: string): string {
  const { address = "::" } = canonicalAddress(host) ?? {};
  return address === "::" || address === "0.0.0.0" ? likelyAddress() : address;
}
