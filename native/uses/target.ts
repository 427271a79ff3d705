/**
 * Where streams may lead: how a target on the peer's side is written, and which targets a participant allows. Pure: it
 * looks up no name, and dials nothing. For native/uses/ and native/terminal/.
 *
 *   target   [HOST:]PORT                      HOST: a name or an address; without it, localhost
 *   forward  [BIND:]PORT:[PEER]:[HOST:]PORT   listens on BIND, without it on 127.0.0.1
 *   pipe     [PEER] or [PEER]:[HOST:]PORT     without PEER: to the only other one of the room
 *   rule     [HOST:]PORT                      `*` for either; a network (10.0.0.0/8) for HOST
 *
 * A rule with an address or a network allows only what the peer asks for by address. A rule with a name allows only what it
 * asks for by that name. `*` allows both. So no name is looked up that no rule allows.
 *
 * IPv6 addresses and networks stand in brackets. A peer whose name has a colon is named by its id.
 */
import type { BlockList } from "node:net";
import { defaultGateways } from "../host/routes.ts";
import { addressScope, canonicalAddress, Refusal, formatHostPort } from "../../protocol.ts";

/** The longest name (RFC 1035 §2.3.4), without the final dot. */
const maxHostLength = 253;
/** The most rules of one list. Each is looked at for each stream. */
const maxRules = 256;
const defaultBind = "127.0.0.1";
/** `localhost` is never looked up: no name server can change it (RFC 6761 §6.3). */
export const localhostAddresses: readonly string[] = ["127.0.0.1", "::1"];

/** What a user wrote can't be read. The message says why, and what could be written. */
export class SpecError extends Error {}

/** A TCP service as the serving side sees it. The host is a name in lower case or a canonical address. */
export interface Target {
  host: string;
  port: number;
}

export interface Listen {
  /** An address of this host. */
  bind: string;
  port: number;
}

export interface ForwardSpec {
  listen: Listen;
  /** The peer's name or id, as written. */
  peer: string;
  target: Target;
}

export interface PipeSpec {
  peer: string;
  /** If undefined: the peer's standard input and output. */
  target?: Target;
}

// --- reading ---------------------------------------------------------------------------------------------

export const formatTarget = ({ host, port }: Target): string => formatHostPort(host, port);

/** The parts between colons, without brackets. Throws if brackets do not match. */
function splitParts(text: string): string[] {
  const parts = [...text.matchAll(/(?<=^|:)(?:\[[^[\]]*\]|[^:[\]]*)(?=:|$)/g)].map(([part]) => part);
  if (parts.join(":") !== text || text.startsWith("::")) {
    throw new SpecError(`${text}: parts are separated by colons, IPv6 addresses in brackets`);
  }
  return parts.map((part) => (part.startsWith("[") ? part.slice(1, -1) : part));
}

const isPort = (text: string): boolean => /^[1-9]\d{0,4}$/.test(text) && Number(text) <= 65535;

function readPort(text: string, whole: string): number {
  if (isPort(text)) return Number(text);
  throw new SpecError(`${whole}: ${text} is not a port (1 to 65535)`);
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

function readHost(text: string, whole: string): string {
  const host = canonicalHost(text);
  if (host === undefined) throw new SpecError(`${whole}: ${text} is neither a host name nor an address`);
  return host;
}

function readTarget(parts: readonly string[], whole: string): Target {
  const [host, port] = parts.length === 1 ? ["localhost", parts[0]!] : [parts[0]!, parts[1]!];
  return { host: readHost(host, whole), port: readPort(port, whole) };
}

function readListen(parts: readonly string[], whole: string): Listen {
  const [bind, port] = parts.length === 1 ? [defaultBind, parts[0]!] : [parts[0]!, parts[1]!];
  const address = bind === "*" ? "0.0.0.0" : bind === "localhost" ? defaultBind : bind;
  const canonical = canonicalAddress(address)?.address;
  if (canonical === undefined) {
    throw new SpecError(`${whole}: ${bind} is not an address of this host to listen on (* for all)`);
  }
  return { bind: canonical, port: readPort(port, whole) };
}

/** Reads `[HOST:]PORT`; throws a {@link SpecError}. */
export function parseTarget(text: string): Target {
  const parts = splitParts(text);
  if (parts.length > 2) throw new SpecError(`${text}: a target is [HOST:]PORT, such as 8000 or nas:80`);
  return readTarget(parts, text);
}

/** Reads `[BIND:]PORT:PEER:[HOST:]PORT`; throws a {@link SpecError}. */
export function parseForward(text: string): ForwardSpec {
  const parts = splitParts(text);
  if (parts.length < 3 || parts.length > 5) {
    throw new SpecError(`${text}: a forward is [BIND:]PORT:PEER:[HOST:]PORT, such as 8080:bob:80`);
  }
  // With four parts, a number in front is the port: no address to listen on is just a number.
  const listenParts = parts.length === 5 || (parts.length === 4 && !/^\d+$/.test(parts[0]!)) ? 2 : 1;
  return {
    listen: readListen(parts.slice(0, listenParts), text),
    peer: parts[listenParts]!,
    target: readTarget(parts.slice(listenParts + 1), text),
  };
}

/** Reads `[BIND:]PORT`; throws a {@link SpecError}. */
export function parseListen(text: string): Listen {
  const parts = splitParts(text);
  if (parts.length === 1 || parts.length === 2) return readListen(parts, text);
  throw new SpecError(`${text}: what listens is [BIND:]PORT, such as 8080`);
}

/** Reads `PEER` or `PEER:[HOST:]PORT`; throws a {@link SpecError}. */
export function parsePipe(text: string): PipeSpec {
  const [peer, ...target] = splitParts(text);
  if (peer === undefined || target.length > 2) {
    throw new SpecError(`${text}: a pipe is PEER or PEER:[HOST:]PORT, such as bob or bob:22`);
  }
  return { peer, ...(target.length > 0 && { target: readTarget(target, text) }) };
}

/** The target that the purpose of a stream names. Throws a {@link Refusal}. */
export function readPurposeTarget({ host, port }: Record<string, unknown>): Target {
  const canonical = typeof host === "string" ? canonicalHost(host) : undefined;
  if (canonical === undefined) throw new Refusal("bad-field", "host must be a host name or an address");
  if (typeof port !== "number" || !isPort(String(port))) {
    throw new Refusal("bad-field", "port must be a whole number from 1 to 65535");
  }
  return { host: canonical, port };
}

// --- allowing --------------------------------------------------------------------------------------------

/** One list for each family: Node takes 127.0.0.1 for ::ffff:127.0.0.1, and ::/0 would contain that. */
type Networks = Partial<Record<Family, BlockList>>;
const newNetworks = (): BlockList => new (process.getBuiltinModule("node:net").BlockList)();
/**
 * `*`: any address but a delicate one, by any name. A name: its addresses, if peers ask by that name. Networks: addresses in
 * them; of a wide one none that is delicate.
 */
type RuleHost = "*" | { name: string } | { networks: Networks; isWide?: boolean };

interface Rule {
  /** In canonical spelling. */
  readonly text: string;
  readonly host: RuleHost;
  readonly port: number | "*";
}

function parseRule(text: string): Rule {
  const parts = splitParts(text);
  if (parts.length < 1 || parts.length > 2) {
    throw new SpecError(`${text}: what is allowed is [HOST:]PORT, such as 22, 10.0.0.0/8:443 or *:80`);
  }
  const port = parts.at(-1) === "*" ? "*" : readPort(parts.at(-1)!, text);
  const [host, spelling] = readRuleHost(parts.length === 1 ? "localhost" : parts[0]!, text);
  return { text: formatHostPort(spelling, port), host, port };
}

function readRuleHost(text: string, whole: string): [host: RuleHost, spelling: string] {
  if (text === "*") return ["*", "*"];
  const [start = "", prefix] = text.split(/\/(.*)/, 2);
  const host = readHost(start, whole);
  const address = canonicalAddress(host);
  if (prefix !== undefined && !address) throw new SpecError(`${whole}: ${text} is not a network`);
  if (host === "localhost") return [{ networks: networksOf(localhostAddresses) }, host];
  if (!address) return [{ name: host }, host];
  if (prefix === undefined && isUnspecified(host))
    throw new SpecError(
      `${whole}: ${host} is no address that can be reached; 127.0.0.1 or [::1] is this host`,
    );
  if (prefix === undefined) return [{ networks: networksOf([host]) }, host];
  const bits = Number(prefix);
  if (!/^\d{1,3}$/.test(prefix) || bits > (address.family === 4 ? 32 : 128)) {
    throw new SpecError(`${whole}: /${prefix} is no prefix length of an IPv${address.family} network`);
  }
  const networks = newNetworks();
  networks.addSubnet(host, bits, familyOf(host));
  return [{ networks: { [familyOf(host)]: networks }, isWide: bits < 8 }, `${host}/${bits}`];
}

function networksOf(addresses: readonly string[]): Networks {
  const networks: Networks = {};
  for (const address of addresses) {
    const family = familyOf(address);
    (networks[family] ??= newNetworks()).addAddress(address, family);
  }
  return networks;
}

type Family = "ipv4" | "ipv6";
const familyOf = (address: string): Family => (address.includes(":") ? "ipv6" : "ipv4");

function contains(networks: Networks, address: string): boolean {
  const family = familyOf(address);
  return networks[family]?.check(address, family) ?? false;
}

/**
 * Whether it is an address of this host. Whoever controls a name could point it there, so only a rule for addresses
 * opens it.
 */
function isOurs(address: string): boolean {
  const scope = addressScope(address);
  return scope === "loopback" || scope === "unusable";
}

/**
 * Whether only a rule that names it opens it: an address of the link (RFC 3927, RFC 4291 §2.5.6), among which are those
 * where a cloud keeps its machines' passwords, or the router's own page.
 */
function isDelicate(address: string, routers: readonly string[]): boolean {
  return /^169\.254\.|^fe[89ab].:|^fd00:ec2::254$/.test(address) || routers.includes(address);
}

function permits({ host }: Rule, target: Target, address: string, routers: () => readonly string[]): boolean {
  if (host === "*") return !isDelicate(address, routers());
  if ("name" in host) return host.name === target.host && !isOurs(address);
  // Connecting to the unspecified address means this host, on Linux.
  if (isUnspecified(address) || !contains(host.networks, address)) return false;
  return !host.isWide || !isDelicate(address, routers());
}

const isUnspecified = (address: string): boolean => address === "0.0.0.0" || address === "::";

/** Whether the peer has asked by address, or for localhost. */
const isAddress = ({ host }: Target): boolean => host === "localhost" || canonicalAddress(host) !== undefined;

/** What peers may reach through us. At first that is nothing. */
export class AllowList {
  #rules: Rule[] = [];
  readonly #routers: () => readonly string[];

  /** `routers`: the addresses of this host's routers. */
  constructor(routers = defaultGateways) {
    this.#routers = routers;
  }

  /** Adds a rule that a user wrote, and returns it in canonical form. Throws a {@link SpecError}. */
  add(text: string): string {
    const rule = parseRule(text);
    if (this.#rules.some((one) => one.text === rule.text)) return rule.text;
    if (this.#rules.length >= maxRules) throw new SpecError(`at most ${maxRules} targets can be allowed`);
    this.#rules.push(rule);
    return rule.text;
  }

  /** Takes a rule away. Returns whether there was one. Throws a {@link SpecError}. Open connections go on. */
  remove(text: string): boolean {
    const canonical = parseRule(text).text;
    const before = this.#rules.length;
    this.#rules = this.#rules.filter((one) => one.text !== canonical);
    return this.#rules.length < before;
  }

  /** The rules in canonical form. */
  get rules(): string[] {
    return this.#rules.map(({ text }) => text);
  }

  /** Whether any address of the target could be allowed. If not, its name is not looked up. */
  mayPermit(target: Target): boolean {
    return this.#rulesFor(target).some(
      ({ host }) => host === "*" || ("networks" in host ? isAddress(target) : host.name === target.host),
    );
  }

  /** Whether a rule names this name itself. */
  names(target: Target): boolean {
    return this.#rulesFor(target).some(
      ({ host }) => host !== "*" && "name" in host && host.name === target.host,
    );
  }

  /** Those of the target's addresses (canonical) that may be dialled. */
  permitted(target: Target, addresses: readonly string[]): string[] {
    const rules = this.#rulesFor(target);
    return addresses.filter((address) => rules.some((rule) => permits(rule, target, address, this.#routers)));
  }

  #rulesFor({ port }: Target): Rule[] {
    return this.#rules.filter((rule) => rule.port === "*" || rule.port === port);
  }
}
