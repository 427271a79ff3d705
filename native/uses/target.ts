/**
 * Where streams may lead: how a target on the peer's side is written. Pure: it looks up no name, and dials nothing. For
 * native/uses/ and native/terminal/.
 *
 *   target   [HOST:]PORT or /PATH             HOST: a name or an address; without it, localhost. PATH: of a socket (unix(7))
 *   forward  [BIND:]PORT:[PEER]:[HOST:]PORT   listens on BIND, without it on 127.0.0.1; PORT-PORT for as many on both sides;
 *                                             /PATH at either end
 *   remote   as a forward                     the peer listens
 *   proxy    [BIND:]PORT:[PEER]               listens as a forward, and clients say by SOCKS5 where they want to go
 *   pipe     [PEER] or [PEER]:[HOST:]PORT     without PEER: to the only other one of the room
 *
 * A port is one of TCP, and PORT/udp one of UDP. A forward has the same at both ends.
 *
 * IPv6 addresses and networks stand in brackets. A peer whose name has a colon is named by its id.
 */
import { maxUnixPathBytes } from "../host/sockaddr.ts";
import { canonicalAddress, Refusal, formatHostPort } from "../../protocol.ts";

/** The longest name (RFC 1035 §2.3.4), without the final dot. */
const maxHostLength = 253;
/** A forward of several ports listens on all of them, with two descriptors each. */
export const maxForwardedPorts = 128;
const defaultBind = "127.0.0.1";
/** `localhost` is never looked up: no name server can change it (RFC 6761 §6.3). */
export const localhostAddresses: readonly string[] = ["127.0.0.1", "::1"];

/** What a user wrote can't be read. The message says why, and what could be written. */
export class SpecError extends Error {}

export type Transport = "tcp" | "udp";

/** A service as the serving side sees it. The host is a name in lower case or a canonical address. */
interface Service<Kind extends Transport> {
  kind: Kind;
  host: string;
  port: number;
}
export type TcpTarget = Service<"tcp">;
export type UdpTarget = Service<"udp">;
/** A socket that is a file of the serving side's host. */
export interface UnixTarget {
  kind: "unix";
  path: string;
}
export type HostTarget = TcpTarget | UdpTarget;
/** What takes a stream of bytes. */
export type StreamTarget = TcpTarget | UnixTarget;
export type Target = HostTarget | UnixTarget;

/** Where each client wants to go: it says so by SOCKS5. */
export interface Proxied {
  kind: "socks";
}

export interface ListenPort {
  kind: Transport;
  /** An address of this host. */
  bind: string;
  port: number;
}
export type Listen = ListenPort | UnixTarget;

export interface ForwardSpec {
  listen: Listen;
  /** The peer's name or id, as written. */
  peer: string;
  target: Target | Proxied;
  /** How many ports in a row there are, from those of `listen` and `target`. */
  ports: number;
}

/** A forward as `ssh -R` makes it: the peer listens. */
export interface RemoteSpec {
  listen: ListenPort;
  peer: string;
  target: StreamTarget;
}

/** Ports in a row. */
export interface Ports {
  first: number;
  last: number;
}

export interface PipeSpec {
  peer: string;
  /** If undefined: the peer's standard input and output. */
  target?: StreamTarget;
}

// --- reading ---------------------------------------------------------------------------------------------

/** The target of a proxy, as it is shown. */
export const proxied = "SOCKS5";
const suffixes: Readonly<Record<Transport, string>> = { tcp: "", udp: "/udp" };

/** `HOST:PORT`, or `HOST:PORT-PORT` of several ports, or the path. */
export function formatTarget(target: Target | Proxied, ports = 1): string {
  if (target.kind === "socks") return proxied;
  if (target.kind === "unix") return target.path;
  return formatHostPort(target.host, formatPorts(target.port, ports, target.kind));
}

export function formatListen(listen: Listen, ports = 1): string {
  if (listen.kind === "unix") return listen.path;
  return formatHostPort(listen.bind, formatPorts(listen.port, ports, listen.kind));
}

/** The parts between colons, without brackets. Throws if brackets do not match. */
export function splitParts(text: string): string[] {
  const parts = [...text.matchAll(/(?<=^|:)(?:\[[^[\]]*\]|[^:[\]]*)(?=:|$)/g)].map(([part]) => part);
  if (parts.join(":") !== text || text.startsWith("::")) {
    throw new SpecError(`${text}: parts are separated by colons, IPv6 addresses in brackets`);
  }
  return parts.map((part) => (part.startsWith("[") ? part.slice(1, -1) : part));
}

/** `8000`, or `8000-8010` of several; with `/udp` those of UDP. */
export const formatPorts = (first: number | "*", ports: number, kind: Transport): string =>
  (first === "*" || ports === 1 ? String(first) : `${first}-${first + ports - 1}`) + suffixes[kind];

const isPort = (text: string): boolean => /^[1-9]\d{0,4}$/.test(text) && Number(text) <= 65535;

/** `PORTS/udp`: ports of UDP. */
export function readKind(text: string): { kind: Transport; text: string } {
  const [, ports = text, kind = "tcp"] = /^(.*)\/(tcp|udp)$/.exec(text) ?? [];
  return { kind: kind as Transport, text: ports };
}

function readPort(text: string, whole: string): number {
  if (isPort(text)) return Number(text);
  throw new SpecError(`${whole}: ${text} is not a port (1 to 65535)`);
}

/** Reads PORT or PORT-PORT. Throws a {@link SpecError}. */
export function readPorts(text: string, whole: string): Ports {
  const [first = "", last = first] = text.split(/-(.*)/, 2);
  const ports = { first: readPort(first, whole), last: readPort(last, whole) };
  if (ports.first <= ports.last) return ports;
  throw new SpecError(`${whole}: ${text} must begin with the lower port, as ${last}-${first}`);
}

/** A name in lower case, or a canonical address; undefined if it is neither. */
function canonicalHost(text: string): string | undefined {
  const address = canonicalAddress(text);
  if (address) return address.address;
  const name = text.toLowerCase().replace(/\.$/, "");
  // All that a resolver takes for a name, and nothing that looks like an option, a zone or a path.
  const isName = name.length <= maxHostLength && /^[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$/.test(name);
  return isName && !name.includes("..") ? name : undefined;
}

/** What is wrong with the path of a socket; undefined if nothing is. One and the same path is written in one way only. */
function pathProblem(path: string): string | undefined {
  const bytes = new TextEncoder().encode(path).length;
  if (bytes > maxUnixPathBytes)
    return `the path of a socket has at most ${maxUnixPathBytes} bytes, not ${bytes}`;
  if (/^(\/(?!\.{0,2}(\/|$))[^/\p{C}]+)+$/u.test(path)) return undefined;
  return "the path of a socket is a whole one, such as /run/docker.sock";
}

const isPath = (text: string): boolean => text.startsWith("/");

/** Throws a {@link SpecError}. */
export function readPath(path: string, whole: string): UnixTarget {
  const problem = pathProblem(path);
  if (problem !== undefined) throw new SpecError(`${whole}: ${problem}`);
  return { kind: "unix", path };
}

export function readHost(text: string, whole: string): string {
  const host = canonicalHost(text);
  if (host === undefined) throw new SpecError(`${whole}: ${text} is neither a host name nor an address`);
  return host;
}

function readTarget(parts: readonly string[], whole: string): Target {
  if (parts.length === 1 && isPath(parts[0]!)) return readPath(parts[0]!, whole);
  const [host, last] = parts.length === 1 ? ["localhost", parts[0]!] : [parts[0]!, parts[1]!];
  const { kind, text } = readKind(last);
  return { kind, host: readHost(host, whole), port: readPort(text, whole) };
}

export function readBind(bind: string, whole: string): string {
  const address = bind === "*" ? "0.0.0.0" : bind === "localhost" ? defaultBind : bind;
  const canonical = canonicalAddress(address)?.address;
  if (canonical !== undefined) return canonical;
  throw new SpecError(`${whole}: ${bind} is not an address of this host to listen on (* for all)`);
}

/** One end of a forward: ports in a row, or a path. */
type End = { kind: Transport; host: string; ports: Ports } | UnixTarget;

function readEnd(parts: readonly string[], whole: string, readPlace: typeof readHost, place: string): End {
  if (parts.length === 1 && isPath(parts[0]!)) return readPath(parts[0]!, whole);
  const { kind, text } = readKind(parts.at(-1)!);
  const host = readPlace(parts.length === 1 ? place : parts[0]!, whole);
  return { kind, host, ports: readPorts(text, whole) };
}

/** How many of the parts say where it listens. With four, a number in front is the port: no address is just a number. */
function listenParts(parts: readonly string[]): number {
  if (isPath(parts[0]!)) return 1;
  return parts.length === 5 || (parts.length === 4 && !/^[\d-]+(\/|$)/.test(parts[0]!)) ? 2 : 1;
}

/** Reads `[BIND:]PORT:PEER:[HOST:]PORT`, or with a path for either end; throws a {@link SpecError}. */
export function parseForward(text: string): ForwardSpec {
  const parts = splitParts(text);
  const peerAt = listenParts(parts);
  const targetParts = parts.slice(peerAt + 1);
  if (targetParts.length < 1 || targetParts.length > 2) {
    throw new SpecError(`${text}: a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80`);
  }
  const here = readEnd(parts.slice(0, peerAt), text, readBind, defaultBind);
  const there = readEnd(targetParts, text, readHost, "localhost");
  if ((here.kind === "udp") !== (there.kind === "udp"))
    throw new SpecError(`${text}: one end is UDP and the other is not: write /udp after both ports`);
  return {
    listen: here.kind === "unix" ? here : { kind: here.kind, bind: here.host, port: here.ports.first },
    peer: parts[peerAt]!,
    target: there.kind === "unix" ? there : { kind: there.kind, host: there.host, port: there.ports.first },
    ports: countPorts(here, there, text),
  };
}

const portsOf = (end: End): number => (end.kind === "unix" ? 1 : end.ports.last - end.ports.first + 1);

/** Reads `[HOST:]PORT`, or PORT-PORT for one target each; throws a {@link SpecError}. */
export function parseTargets(text: string): HostTarget[] {
  const parts = splitParts(text);
  const end = parts.length > 2 ? undefined : readEnd(parts, text, readHost, "localhost");
  if (!end || end.kind === "unix")
    throw new SpecError(`${text}: a target is [HOST:]PORT, such as 8000 or nas:80`);
  const { kind, host, ports } = end;
  return Array.from({ length: portsOf(end) }, (_, at) => ({ kind, host, port: ports.first + at }));
}

/** Reads `[BIND:]PORT:PEER:[HOST:]PORT` where the peer listens, or a path for the target; throws a {@link SpecError}. */
export function parseRemote(text: string): RemoteSpec {
  const { listen, peer, target, ports } = parseForward(text);
  if (listen.kind !== "tcp" || ports > 1 || target.kind === "udp" || target.kind === "socks")
    throw new SpecError(`${text}: a peer listens on one port of TCP`);
  return { listen, peer, target };
}

/** How many ports there are on both sides. */
function countPorts(here: End, there: End, whole: string): number {
  const [count, others] = [here, there].map(portsOf) as [number, number];
  if (count !== others)
    throw new SpecError(`${whole}: ${count} here and ${others} there: both must have as many ports`);
  if (count <= maxForwardedPorts) return count;
  throw new SpecError(`${whole}: at most ${maxForwardedPorts} ports in a row can be forwarded, not ${count}`);
}

/** Reads `[BIND:]PORT`, PORT-PORT, or a path; throws a {@link SpecError}. */
export function parseListen(text: string): { listen: Listen; ports: number } {
  const parts = splitParts(text);
  if (parts.length > 2) throw new SpecError(`${text}: what listens is [BIND:]PORT, such as 8080`);
  const end = readEnd(parts, text, readBind, defaultBind);
  if (end.kind === "unix") return { listen: end, ports: 1 };
  return { listen: { kind: end.kind, bind: end.host, port: end.ports.first }, ports: portsOf(end) };
}

/** Reads `[BIND:]PORT` or PORT-PORT of TCP, where peers may listen; throws a {@link SpecError}. */
export function parseListenRule(text: string): { listen: ListenPort; ports: number } {
  const { listen, ports } = parseListen(text);
  if (listen.kind === "tcp") return { listen, ports };
  throw new SpecError(`${text}: peers may listen on [BIND:]PORT of TCP, such as 9000`);
}

/** Reads `[BIND:]PORT:PEER`, or PORT alone; throws a {@link SpecError}. */
export function parseProxy(text: string): ForwardSpec {
  const parts = splitParts(text);
  const peerAt = parts.length === 3 ? 2 : 1;
  if (parts.length > 3) throw new SpecError(`${text}: a SOCKS5 proxy is [BIND:]PORT:PEER, such as 1080:bob`);
  const end = readEnd(parts.slice(0, peerAt), text, readBind, defaultBind);
  if (end.kind === "udp" || portsOf(end) > 1)
    throw new SpecError(`${text}: a SOCKS5 proxy listens on one port of TCP`);
  const listen: Listen = end.kind === "unix" ? end : { kind: "tcp", bind: end.host, port: end.ports.first };
  return { listen, peer: parts[peerAt] ?? "", target: { kind: "socks" }, ports: 1 };
}

/** Reads `PEER` or `PEER:[HOST:]PORT`; throws a {@link SpecError}. */
export function parsePipe(text: string): PipeSpec {
  const [peer, ...target] = splitParts(text);
  if (peer === undefined || target.length > 2) {
    throw new SpecError(`${text}: a pipe is PEER or PEER:[HOST:]PORT, such as bob or bob:22`);
  }
  if (target.length === 0) return { peer };
  const read = readTarget(target, text);
  if (read.kind === "udp")
    throw new SpecError(`${text}: a pipe is one stream of bytes, and UDP is none: a forward carries it (-L)`);
  return { peer, target: read };
}

/** The target that the purpose of a stream names; TCP unless `kind` is another. Throws a {@link Refusal}. */
export function readPurposeTarget({ kind = "tcp", host, port, path }: Record<string, unknown>): Target {
  if (kind === "unix") {
    if (typeof path === "string" && pathProblem(path) === undefined) return { kind, path };
    throw new Refusal("bad-field", "path must be the whole path of a socket");
  }
  if (kind !== "tcp" && kind !== "udp") throw new Refusal("bad-field", "kind must be tcp, udp or unix");
  const canonical = typeof host === "string" ? canonicalHost(host) : undefined;
  if (canonical === undefined) throw new Refusal("bad-field", "host must be a host name or an address");
  if (typeof port !== "number" || !isPort(String(port))) {
    throw new Refusal("bad-field", "port must be a whole number from 1 to 65535");
  }
  return { kind, host: canonical, port };
}
