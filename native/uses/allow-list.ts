/**
 * Which targets a participant allows its peers. Pure: it looks up no name, and dials nothing. For native/uses/ and
 * native/terminal/.
 *
 *   rule     [HOST:]PORT                      `*` for either; a network (10.0.0.0/8) for HOST; PORT-PORT for PORT
 *
 *            /PATH                            a socket of this host (unix(7)). No other rule allows one
 *
 *            RULE@WHOM                        the same, and only for that peer (whom.ts)
 *
 * A port is one of TCP, and PORT/udp one of UDP. A rule for one is none for the other.
 *
 * A rule with an address or a network allows only what the peer asks for by address. A rule with a name allows only what it
 * asks for by that name. `*` allows both. So no name is looked up that no rule allows.
 */
import type { BlockList } from "node:net";
import { defaultGateways } from "../host/routes.ts";
import { addressScope, canonicalAddress, formatHostPort } from "../../protocol.ts";
import {
  formatPorts,
  localhostAddresses,
  type Ports,
  readHost,
  readPath,
  readKind,
  readPorts,
  SpecError,
  splitParts,
  type HostTarget,
  type Transport,
} from "./target.ts";
import { readForWhom } from "./whom.ts";

/** The most rules of one list. Each is looked at for each stream. */
const maxRules = 256;

/** One list for each family: Node takes 127.0.0.1 for ::ffff:127.0.0.1, and ::/0 would contain that. */
type Networks = Partial<Record<Family, BlockList>>;
const anyPort: Ports = { first: 1, last: 65535 };
const newNetworks = (): BlockList => new (process.getBuiltinModule("node:net").BlockList)();
/**
 * `*`: any address but a delicate one, by any name. A name: its addresses, if peers ask by that name. Networks: addresses in
 * them; of a wide one none that is delicate.
 */
type RuleHost = "*" | { name: string } | { networks: Networks; isWide?: boolean };

interface Common {
  /** In canonical spelling. */
  readonly text: string;
  /** For whom it is; undefined: for everyone. */
  readonly whom?: string | undefined;
}

interface Rule extends Common {
  readonly kind: Transport;
  readonly host: RuleHost;
  readonly ports: Ports;
}

/** A socket of this host, by its path. */
interface PathRule extends Common {
  readonly kind: "unix";
  readonly path: string;
}

const parseRule = (whole: string): Rule | PathRule => readForWhom(whole, parsePlace);

function parsePlace(text: string): Rule | PathRule {
  if (text.startsWith("/")) return { text: readPath(text, text).path, kind: "unix", path: text };
  const parts = splitParts(text);
  if (parts.length < 1 || parts.length > 2) {
    throw new SpecError(
      `${text}: what is allowed is [HOST:]PORT, such as 22, 8000-8010, 10.0.0.0/8:443 or *:80`,
    );
  }
  const { kind, text: port } = readKind(parts.at(-1)!);
  const ports = port === "*" ? anyPort : readPorts(port, text);
  const [host, spelling] = readRuleHost(parts.length === 1 ? "localhost" : parts[0]!, text);
  const shown = formatPorts(port === "*" ? port : ports.first, ports.last - ports.first + 1, kind);
  return { text: formatHostPort(spelling, shown), kind, host, ports };
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
 * where a cloud keeps its machines' passwords, or the router's own page; or where what is sent reaches many.
 */
function isDelicate(address: string, routers: readonly string[]): boolean {
  return addressScope(address) === "unusable" || address === "fd00:ec2::254" || routers.includes(address);
}

function permits(
  { host }: Rule,
  target: HostTarget,
  address: string,
  routers: () => readonly string[],
): boolean {
  if (host === "*") return !isDelicate(address, routers());
  if ("name" in host) return host.name === target.host && !isOurs(address);
  // Connecting to the unspecified address means this host, on Linux.
  if (isUnspecified(address) || !contains(host.networks, address)) return false;
  return !host.isWide || !isDelicate(address, routers());
}

const isUnspecified = (address: string): boolean => address === "0.0.0.0" || address === "::";

/** Whether the peer has asked by address, or for localhost. */
const isAddress = ({ host }: HostTarget): boolean =>
  host === "localhost" || canonicalAddress(host) !== undefined;

/** What peers may reach through us. At first that is nothing. */
export class AllowList {
  #rules: (Rule | PathRule)[] = [];
  readonly #routers: () => readonly string[];

  /** `routers`: the addresses of this host's routers. */
  constructor(routers: () => readonly string[] = defaultGateways) {
    this.#routers = routers;
  }

  /** What of it is for one peer. `is`: whether that is whom the user means. */
  for(is: (whom: string) => boolean): AllowList {
    if (this.#rules.every(({ whom }) => whom === undefined)) return this;
    const own = new AllowList(this.#routers);
    own.#rules = this.#rules.filter(({ whom }) => whom === undefined || is(whom));
    return own;
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
  mayPermit(target: HostTarget): boolean {
    return this.#rulesFor(target).some(
      ({ host }) => host === "*" || ("networks" in host ? isAddress(target) : host.name === target.host),
    );
  }

  /** Whether a rule names this name itself. */
  names(target: HostTarget): boolean {
    return this.#rulesFor(target).some(
      ({ host }) => host !== "*" && "name" in host && host.name === target.host,
    );
  }

  /** Those of the target's addresses (canonical) that may be dialled. */
  permitted(target: HostTarget, addresses: readonly string[]): string[] {
    const rules = this.#rulesFor(target);
    return addresses.filter((address) => rules.some((rule) => permits(rule, target, address, this.#routers)));
  }

  permitsPath(path: string): boolean {
    return this.#rules.some((rule) => rule.kind === "unix" && rule.path === path);
  }

  #rulesFor({ kind, port }: HostTarget): Rule[] {
    return this.#rules.filter(
      (rule): rule is Rule =>
        rule.kind !== "unix" && rule.kind === kind && rule.ports.first <= port && port <= rule.ports.last,
    );
  }
}
