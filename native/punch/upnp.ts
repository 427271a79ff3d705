/**
 * Asking the router by UPnP. SSDP finds its description. The description names its WAN connection (IGD 1 and 2). SOAP asks
 * that for a port. There are pure codecs and the client. It talks to the gateway alone, and believes it alone: an answer
 * must come from the gateway's address, and a URL must lead there. It follows no redirect, uses no proxy, and reads at most
 * 64 KiB. XML is searched by regular expressions that are linear in its length: nothing in it is expanded or fetched. For
 * portmap.ts. UPnP Device Architecture 1.1, WANIPConnection:1 and :2.
 */
import { canonicalAddress, printable } from "../../protocol.ts";
import { takenPorts } from "../host/taken-ports.ts";
import {
  type Gateway,
  type Grant,
  type MappingClient,
  NoAddressError,
  PortMapError,
  socketProblem,
  within,
} from "./gateway.ts";

/** How often the search is repeated. Datagrams get lost, and a router may take up to a second (MX). */
const searchPeriodMs = 500;
/** How long to wait for another description, if one leads nowhere: MX and a round trip. */
const nextAnswerMs = 1_200;
/** How long one request may take, body included. */
const requestDeadlineMs = 3_000;
const maxBodyBytes = 64 * 1024;
/** No router has more WAN connections than that in its description. */
const maxConnections = 4;
/** After so many descriptions that lead nowhere, no more are tried. */
const maxDescriptions = 4;
/** So many of a router's mappings are looked at, for those that earlier programs of ours have left. */
const maxEntries = 128;
/** How often we try, with another external port or by another action. */
const maxTries = 5;
/** Another external port is drawn from these, if ours is taken. */
const drawnPorts = { first: 10_000, last: 60_000 };
const multicastAddress = "239.255.255.250";
const searchTargets = [
  "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
  "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
];
/** By this our mappings are known, to people and to us. */
const description = "tcp-hole-punching";

/** Faults after which we ask differently (WANIPConnection:2 §2.5.16, UPnP Device Architecture 1.1 §3.2.2). */
const faults = {
  invalidAction: 401,
  conflictInMappingEntry: 718,
  onlyPermanentLeases: 725,
  conflictWithOther: 729,
};

export interface WanConnection {
  serviceType: string;
  controlUrl: URL;
}
type Fields = Record<string, string | number>;

// --- codecs ----------------------------------------------------------------------------------------------

export function encodeSearch(target: string, host: string): string {
  return `M-SEARCH * HTTP/1.1\r\nHOST: ${host}\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ${target}\r\n\r\n`;
}

/** The location of the router's description in an answer to the search; undefined if it is not at the gateway. */
export function parseSearchAnswer(answer: string, gateway: string): URL | undefined {
  if (!/^HTTP\/1\.[01] 200\b/.test(answer)) return undefined;
  if (!/^st:[ \t]*urn:schemas-upnp-org:device:InternetGatewayDevice:\d/im.test(answer)) return undefined;
  const location = /^location:[ \t]*(\S+)/im.exec(answer)?.[1];
  return location === undefined ? undefined : gatewayUrl(location, gateway);
}

/** The URL; undefined unless it is plain HTTP to the gateway's own address. */
function gatewayUrl(text: string, gateway: string, base?: URL): URL | undefined {
  const url = URL.parse(text, base?.href);
  const isGateways = url?.protocol === "http:" && url.hostname === gateway && url.port !== "0";
  return isGateways && url.username === "" && url.password === "" ? url : undefined;
}

/** The text of the first element of that name, with any prefix; undefined if there is none. */
export function elementText(xml: string, name: string): string | undefined {
  const element = new RegExp(`<(?:[\\w-]+:)?${name}(?:\\s[^<>]*)?>([^<]*)</`, "i").exec(xml);
  return element ? unescape(element[1]!.trim()) : undefined;
}

const entities: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };

/** Replaces the five entities that XML itself defines. A document's own entities stay as they are. */
function unescape(text: string): string {
  return text.replace(/&(amp|lt|gt|quot|apos);/g, (_, name: string) => entities[name]!);
}

/**
 * The WAN connections that a description offers at the gateway: IGD 2 before 1, IP before PPP. Its URLs are relative to
 * `URLBase`, or else to its own location (UPnP Device Architecture 1.0 §2.1).
 */
export function parseDescription(xml: string, location: URL): WanConnection[] {
  const gateway = location.hostname;
  const base = gatewayUrl(elementText(xml, "URLBase") || location.href, gateway, location);
  const connections: WanConnection[] = [];
  for (const piece of xml.split(/<service>/i).slice(1)) {
    const [service = ""] = piece.split(/<\/service>/i, 1);
    const serviceType = elementText(service, "serviceType") ?? "";
    if (!/^urn:schemas-upnp-org:service:WAN(IP|PPP)Connection:[12]$/.test(serviceType)) continue;
    const controlUrl = base && gatewayUrl(elementText(service, "controlURL") ?? "", gateway, base);
    if (controlUrl) connections.push({ serviceType, controlUrl });
  }
  const version = ({ serviceType }: WanConnection) => Number(serviceType.at(-1));
  return connections
    .sort((a, b) => version(b) - version(a) || a.serviceType.localeCompare(b.serviceType))
    .slice(0, maxConnections);
}

/** A mapping of the router's, of whomever it is. */
export interface Entry {
  externalPort: number;
  internalPort: number;
  internalClient: string;
}

/**
 * A mapping that a program of ours on `host` has made, and that does not end by itself; undefined if it is another. Pure.
 */
export function parseLeftBehind(xml: string, host: string): Entry | undefined {
  const text = (name: string) => elementText(xml, name);
  const [externalPort, internalPort] = [
    parsePort(text("NewExternalPort")),
    parsePort(text("NewInternalPort")),
  ];
  const internalClient = text("NewInternalClient");
  const isOurs = text("NewPortMappingDescription") === description && internalClient === host;
  const isPermanent = text("NewLeaseDuration") === "0";
  const isLikeOurs = text("NewProtocol") === "TCP" && (text("NewRemoteHost") ?? "") === "";
  if (!isOurs || !isPermanent || !isLikeOurs || !externalPort || !internalPort) return undefined;
  return { externalPort, internalPort, internalClient };
}

/** A SOAP request for that action. */
export function encodeAction(serviceType: string, action: string, fields: Fields): string {
  const body = Object.entries(fields)
    .map(([name, value]) => `<${name}>${Bun.escapeHTML(String(value))}</${name}>`)
    .join("");
  return `<?xml version="1.0"?>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:${action} xmlns:u="${serviceType}">${body}</u:${action}></s:Body></s:Envelope>\r\n`;
}

/** The number of a SOAP fault (UPnP Device Architecture 1.1 §3.2.2); undefined if it is no fault. */
export function parseFault(xml: string): number | undefined {
  const code = elementText(xml, "errorCode") ?? "";
  return /^\d{3}$/.test(code) ? Number(code) : undefined;
}

function parsePort(text: string | undefined): number | undefined {
  const port = /^\d{1,5}$/.test(text ?? "") ? Number(text) : 0;
  return port >= 1 && port <= 65_535 ? port : undefined;
}

// --- asking ----------------------------------------------------------------------------------------------

/** The router has refused an action. */
class Fault extends PortMapError {
  readonly code: number;

  constructor(action: string, code: number, text: string | undefined) {
    super(printable(`${action}: ${text ? `${text.slice(0, 100)} ` : ""}(${code})`));
    this.code = code;
  }
}

interface Answer {
  status: number;
  body: string;
}

/** One HTTP exchange on a connection of its own. Not `fetch`, because that uses HTTP_PROXY. */
async function exchange(
  url: URL,
  signal: AbortSignal,
  { headers = {}, body = "" }: { headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const method = body === "" ? "GET" : "POST";
  const length = body === "" ? {} : { "Content-Length": String(Buffer.byteLength(body)) };
  return within(requestDeadlineMs, signal, (deadline) => {
    if (deadline.aborted) throw new PortMapError("not asked");
    const options = {
      method,
      agent: false,
      signal: deadline,
      headers: { ...headers, ...length, Connection: "close" },
    };
    const { request } = process.getBuiltinModule("node:http"); // it takes 5 ms to load, and few routers need it
    const asking = request(url, options, (response) => {
      const chunks: Buffer[] = [];
      let bytes = 0;
      response.on("data", (chunk: Buffer) => {
        chunks.push(chunk);
        bytes += chunk.length;
        if (bytes <= maxBodyBytes) return;
        reject(new PortMapError(`it says more than ${maxBodyBytes / 1024} KiB`));
        asking.destroy();
      });
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString("utf8") }),
      );
      response.on("error", (error) => reject(socketProblem(error)));
      response.on("close", () => reject(new PortMapError("it ended in mid-answer")));
    });
    asking.on("error", (error) => reject(socketProblem(error)));
    asking.end(body);
    return promise;
  });
}

/**
 * Searches by multicast and by unicast, until the gateway names a description that was not tried. Rejects on abort with a
 * {@link PortMapError}.
 */
async function findDescription(
  gateway: Gateway,
  tried: ReadonlySet<string>,
  signal: AbortSignal,
): Promise<URL> {
  const { promise, resolve, reject } = Promise.withResolvers<URL>();
  promise.catch(() => {}); // it may be rejected before anyone waits for it
  const receive = (bytes: Buffer, from: string) => {
    const location = from === gateway.address && parseSearchAnswer(bytes.toString("latin1"), gateway.address);
    if (location && !tried.has(location.href)) resolve(location);
  };
  const socket = await openSearch(gateway.localAddress, receive);
  const send = () => {
    for (const address of [multicastAddress, gateway.address]) {
      for (const target of searchTargets) {
        try {
          const host = `${address}:${gateway.searchPort}`;
          socket.send(encodeSearch(target, host), gateway.searchPort, address);
        } catch {
          // The ICMP error of an earlier datagram to any address, or there is no multicast here.
        }
      }
    }
  };
  const timer = setInterval(send, searchPeriodMs);
  const abort = () => reject(new PortMapError("no answer"));
  signal.addEventListener("abort", abort);
  try {
    if (signal.aborted) abort();
    else send();
    return await promise;
  } finally {
    clearInterval(timer);
    signal.removeEventListener("abort", abort);
    socket.close();
  }
}

/** A socket bound to the local address, so that multicast leaves by the same interface. */
async function openSearch(
  local: string,
  receive: (bytes: Buffer, from: string) => void,
): Promise<Bun.udp.Socket<"buffer">> {
  try {
    const socket = await Bun.udpSocket({
      hostname: local,
      socket: {
        data: (_, bytes, __, from) => receive(bytes, from),
        error: () => {}, // ICMP errors; without this, Bun prints them
      },
    });
    socket.setMulticastInterface(local);
    return socket;
  } catch (error) {
    throw socketProblem(error);
  }
}

export class UpnpClient implements MappingClient {
  readonly protocol = "upnp";
  readonly #gateway: Gateway;
  readonly #internalPort: number;
  #connection: WanConnection | undefined;
  /** Whether the last `map` has failed. Then the connection is searched for anew. */
  #hasFailed = false;
  #externalPort: number;
  /** A mapping of that port may exist. */
  #mayExist = false;
  /** The router's mappings end by being deleted only. */
  #isPermanent = false;

  constructor(gateway: Gateway, internalPort: number) {
    this.#gateway = gateway;
    this.#internalPort = internalPort;
    this.#externalPort = internalPort;
  }

  async map(lifetimeS: number, signal: AbortSignal): Promise<Grant> {
    // After a restart the router may listen at another port.
    if (!this.#connection || this.#hasFailed) this.#connection = await this.#find(signal);
    this.#hasFailed = true;
    const externalAddress = await readExternalAddress(this.#connection, signal);
    if (externalAddress === "") throw new NoAddressError();
    const granted = await this.#add(this.#connection, lifetimeS, signal);
    this.#hasFailed = false;
    return { externalAddress, ...granted };
  }

  async unmap(signal: AbortSignal): Promise<void> {
    if (!this.#connection || !this.#mayExist) return;
    this.#mayExist = false;
    const mapping = { NewRemoteHost: "", NewExternalPort: this.#externalPort, NewProtocol: "TCP" };
    await act(this.#connection, "DeletePortMapping", mapping, signal);
  }

  /** A port that somebody of this host has is a running program's, and stays. */
  async tidy(signal: AbortSignal): Promise<void> {
    const connection = this.#connection;
    if (!connection || !this.#isPermanent) return;
    const left = await this.#leftBehind(connection, signal);
    const taken = left.size === 0 ? new Set() : takenPorts();
    for (const [externalPort, { internalPort }] of left) {
      if (taken.has(internalPort) || externalPort === this.#externalPort) continue;
      const mapping = { NewRemoteHost: "", NewExternalPort: externalPort, NewProtocol: "TCP" };
      await act(connection, "DeletePortMapping", mapping, signal);
    }
  }

  /** By their external ports. They are numbered from 0; the router refuses the number after the last. */
  async #leftBehind(connection: WanConnection, signal: AbortSignal): Promise<Map<number, Entry>> {
    const found = new Map<number, Entry>();
    for (let index = 0; index < maxEntries; index++) {
      const question = { NewPortMappingIndex: index };
      const answer = await act(connection, "GetGenericPortMappingEntry", question, signal).catch(
        (error: unknown) => {
          if (!(error instanceof Fault)) throw error;
        },
      );
      if (answer === undefined) break;
      const entry = parseLeftBehind(answer, this.#gateway.localAddress);
      if (entry) found.set(entry.externalPort, entry);
    }
    return found;
  }

  /**
   * A router may be several devices, or announce one that is gone. So if a description leads nowhere, the next is
   * tried.
   */
  async #find(signal: AbortSignal): Promise<WanConnection> {
    const tried = new Set<string>();
    const next = (stop: AbortSignal) => findDescription(this.#gateway, tried, stop);
    for (let location = await next(signal); ;) {
      try {
        return await readConnection(location, signal);
      } catch (failure) {
        if (!(failure instanceof PortMapError) || tried.add(location.href).size >= maxDescriptions)
          throw failure;
        location = await within(nextAnswerMs, signal, next).catch(() => Promise.reject(failure));
      }
    }
  }

  async #add(
    connection: WanConnection,
    lifetimeS: number,
    signal: AbortSignal,
  ): Promise<Omit<Grant, "externalAddress">> {
    let lease = lifetimeS;
    let isAny = connection.serviceType.endsWith("WANIPConnection:2");
    for (let triesLeft = maxTries; ; triesLeft--) {
      try {
        const externalPort = await this.#addOnce(connection, isAny, lease, signal);
        this.#isPermanent = lease === 0;
        return { externalPort, lifetimeS: lease };
      } catch (error) {
        if (!(error instanceof Fault) || triesLeft <= 1) throw error;
        if (error.code === faults.onlyPermanentLeases && lease !== 0) lease = 0;
        else if (error.code === faults.invalidAction && isAny) isAny = false;
        else if (error.code === faults.conflictInMappingEntry || error.code === faults.conflictWithOther)
          this.#externalPort = drawPort();
        else throw error;
      }
    }
  }

  /** AddAnyPortMapping lets the router choose where our port is taken. */
  async #addOnce(
    connection: WanConnection,
    isAny: boolean,
    lease: number,
    signal: AbortSignal,
  ): Promise<number> {
    const had = this.#mayExist;
    this.#mayExist = true;
    const fields = {
      NewRemoteHost: "",
      NewExternalPort: this.#externalPort,
      NewProtocol: "TCP",
      NewInternalPort: this.#internalPort,
      NewInternalClient: this.#gateway.localAddress,
      NewEnabled: 1,
      NewPortMappingDescription: description,
      NewLeaseDuration: lease,
    };
    try {
      const answer = await act(connection, isAny ? "AddAnyPortMapping" : "AddPortMapping", fields, signal);
      if (isAny) this.#externalPort = parsePort(elementText(answer, "NewReservedPort")) ?? this.#externalPort;
      return this.#externalPort;
    } catch (error) {
      // Refused: if there is a mapping of that port, it is not ours to delete.
      if (error instanceof Fault) this.#mayExist = had;
      throw error;
    }
  }
}

/** The connection that a description offers. Of several, the first that is up. */
async function readConnection(location: URL, signal: AbortSignal): Promise<WanConnection> {
  const { status, body } = await exchange(location, signal);
  if (status !== 200) throw new PortMapError(`its description: HTTP status ${status}`);
  const connections = parseDescription(body, location);
  const last = connections.pop();
  if (!last) throw new PortMapError("its description has no WAN connection at its own address");
  for (const connection of connections) {
    const address = await readExternalAddress(connection, signal).catch(() => "");
    if (address !== "") return connection;
  }
  return last;
}

/** The body of the answer. Rejects with a {@link Fault} if the router refuses. */
async function act(
  { serviceType, controlUrl }: WanConnection,
  action: string,
  fields: Fields,
  signal: AbortSignal,
): Promise<string> {
  const headers = { "Content-Type": 'text/xml; charset="utf-8"', SOAPAction: `"${serviceType}#${action}"` };
  const question = { headers, body: encodeAction(serviceType, action, fields) };
  const { status, body } = await exchange(controlUrl, signal, question);
  if (status === 200) return body;
  throw new Fault(action, parseFault(body) ?? status, elementText(body, "errorDescription"));
}

/** The router's external IPv4 address; "" if it has none. */
async function readExternalAddress(connection: WanConnection, signal: AbortSignal): Promise<string> {
  const answer = await act(connection, "GetExternalIPAddress", {}, signal);
  const address = canonicalAddress(elementText(answer, "NewExternalIPAddress") ?? "");
  return address?.family === 4 && address.address !== "0.0.0.0" ? address.address : "";
}

function drawPort(): number {
  const { first, last } = drawnPorts;
  return first + Math.floor(Math.random() * (last - first + 1));
}
