/**
 * The machines of the lab, each a network namespace of its own: hosts, and between `lan` and `wan` the NATs
 * and firewalls. They know what they are made of; `lab.ts` plugs them in.
 */
import type { WanOptions } from "./internet-fixture.ts";
import type { Lab } from "./lab.ts";
import type { NatBehaviour } from "./nat-behaviour.ts";
import { detour, filterRules, type Mapping, natRules, type Unsolicited } from "./ruleset.ts";

/** Where something is attached: in a router's LAN, or else to the Internet with these properties. */
export interface Attachment extends Partial<WanOptions> {
  behind?: Router;
}
export interface FirewallOptions extends Partial<WanOptions> {
  /** Prefix of the LAN, such as `192.168.1.0/24`; the router has its first address. */
  lan?: string;
  unsolicited?: Unsolicited;
}
export interface NatOptions extends FirewallOptions, Attachment {
  mapping?: Mapping;
  /** Whether a LAN host reaches another one's mapping at the NAT's own public address. */
  hairpinning?: boolean;
  /** A NAT that is a program, and how it differs from `defaultBehaviour`; the other behaviours here are not its. */
  program?: ProgramOptions;
}
export interface ProgramOptions extends Partial<NatBehaviour> {
  /** External addresses it has; 1 unless told. */
  addressCount?: number;
}
export interface HostOptions extends Attachment {
  /** A chosen IPv4 address, in the LAN's prefix or public. */
  address?: string;
  ipv4?: boolean;
  ipv6?: boolean;
}

interface Addresses {
  ipv4?: string;
  ipv6?: string;
}
/** A prefix and who has which address in it. */
export class Lan {
  readonly length: number;
  readonly prefix6: string;
  readonly gateway: Required<Addresses>;
  readonly #base: number;
  readonly #base6: string;
  readonly #taken = new Set<string>();
  #last = 1;

  constructor(prefix: string, number: number) {
    const [address = "", length] = prefix.split("/");
    this.length = Number(length);
    this.#base = address.split(".").reduce((value, byte) => value * 256 + Number(byte), 0);
    if (!(this.length >= 8 && this.length <= 29) || !(this.#base >= 0)) throw new Error(`bad LAN: ${prefix}`);
    this.#base6 = `2001:db8:1:${number.toString(16)}::`;
    this.prefix6 = `${this.#base6}/64`;
    this.gateway = this.#at(1);
    this.#taken.add(this.gateway.ipv4);
  }

  /** The next free addresses, or the chosen IPv4 one with the next IPv6 one. */
  allocate(chosen?: string): Required<Addresses> {
    let next = this.#at(++this.#last);
    while (chosen === undefined && this.#taken.has(next.ipv4)) next = this.#at(++this.#last);
    const given = chosen === undefined ? next : { ...next, ipv4: chosen };
    if (this.#taken.has(given.ipv4)) throw new Error(`${given.ipv4} is taken`);
    this.#taken.add(given.ipv4);
    return given;
  }

  #at(index: number): Required<Addresses> {
    const value = this.#base + index;
    const bytes = [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
    return { ipv4: bytes.join("."), ipv6: this.#base6 + index.toString(16) };
  }
}

/** Anything with a namespace of its own. */
export abstract class Machine {
  readonly name: string;
  readonly behind: Router | undefined;
  readonly addresses: Addresses = {};
  protected readonly lab: Lab;

  constructor(lab: Lab, name: string, { behind }: Attachment) {
    this.lab = lab;
    this.name = name;
    this.behind = behind;
  }

  /** Its own IPv4 address; a router's is that of its WAN. */
  get address(): string {
    if (this.addresses.ipv4 === undefined) throw new Error(`${this.name} has no IPv4 address`);
    return this.addresses.ipv4;
  }

  get address6(): string | undefined {
    return this.addresses.ipv6;
  }

  /** The IPv4 address that the Internet sees. */
  get publicAddress(): string {
    return this.behind instanceof Nat ? this.behind.publicAddress : this.address;
  }

  /** The name of the site it is at. */
  get site(): string {
    return this.behind?.site ?? this.name;
  }

  /** Starts a program here. The process is the program itself, so a signal to it reaches the program. */
  spawn<
    const In extends Bun.SpawnOptions.Writable = "ignore",
    const Out extends Bun.SpawnOptions.Readable = "pipe",
    const Err extends Bun.SpawnOptions.Readable = "inherit",
  >(command: string[], options?: Bun.SpawnOptions.SpawnOptions<In, Out, Err>): Bun.Subprocess<In, Out, Err> {
    return this.lab.spawn(this.name, command, options);
  }

  /** Runs a program to its end and returns its stdout; throws with its stderr when it fails. */
  async run(command: string[]): Promise<string> {
    const program = this.spawn(command, { stdout: "pipe", stderr: "pipe" });
    const [stdout, stderr, code] = await Promise.all([
      program.stdout.text(),
      program.stderr.text(),
      program.exited,
    ]);
    if (code !== 0) throw new Error(`${this.name}: ${command.join(" ")} failed (${code}): ${stderr.trim()}`);
    return stdout;
  }

  /**
   * Changes delay, loss or jitter of the site it is at. Packets under way stay as they are and are not
   * overtaken, so a shorter delay shows when they are through.
   */
  setWan(options: Partial<WanOptions>): Promise<void> {
    return this.lab.command({ type: "setSite", site: this.site, ...options });
  }

  /** Tells the Internet which global addresses are at this site. */
  async announce(): Promise<void> {
    const { ipv4, ipv6 } = this.addresses;
    const isGlobal = this.publicAddressIsOwn && ipv4 !== undefined;
    for (const address of [isGlobal ? ipv4 : undefined, ipv6]) {
      if (address !== undefined) await this.lab.command({ type: "route", address, site: this.site });
    }
  }

  private get publicAddressIsOwn(): boolean {
    return !(this.behind instanceof Nat);
  }
}

export class Host extends Machine {}

export abstract class Router extends Machine {
  readonly lan: Lan;
  protected readonly unsolicited: Unsolicited;

  constructor(lab: Lab, name: string, options: NatOptions, lan: Lan) {
    super(lab, name, options);
    this.lan = lan;
    this.unsolicited = options.unsolicited ?? "drop";
  }

  /** The script that makes it what it is, once its interfaces are there. */
  setUp(): string {
    return `ip netns exec ${this.name} nft -f - <<END\n${this.rules()}\nEND\n`;
  }

  /** Starts what it needs besides the kernel. */
  async start(): Promise<void> {}

  /** What connection tracking remembers, for debugging. */
  conntrack(): Promise<string> {
    return this.run(["sh", "-c", "cat /proc/net/nf_conntrack 2>/dev/null || conntrack -L"]);
  }

  /** Forgets every connection and mapping, as a restart does. */
  async flush(): Promise<void> {
    await this.run([process.execPath, `${import.meta.dir}/conntrack-flush-fixture.ts`]);
  }

  protected rules(): string {
    return filterRules(this.unsolicited);
  }
}

export class Firewall extends Router {}

export class Nat extends Router {
  mapping: Mapping;
  readonly hairpinning: boolean;

  constructor(lab: Lab, name: string, options: NatOptions, lan: Lan) {
    super(lab, name, options, lan);
    this.mapping = options.mapping ?? "endpoint-independent";
    this.hairpinning = options.hairpinning ?? false;
  }

  protected override rules(): string {
    return super.rules() + natRules(this.mapping, this.address);
  }

  override setUp(): string {
    if (!this.hairpinning) return super.setUp();
    // Table 100 before the local one: for the LAN, and (`iif lo`) for our own RST or ICMP answer to it.
    const lines = ["rule add pref 10 lookup local", "rule del pref 0"];
    for (const iif of ["lan", "lo"]) lines.push(`rule add pref 5 iif ${iif} lookup 100`);
    return `ip -n ${this.name} -batch - <<END\n${lines.join("\n")}\nEND\n${this.#hairpin()}\n${super.setUp()}`;
  }

  /** Behaves differently from now on, as after an update or in another mode; the mappings are gone. */
  async changeMapping(mapping: Mapping): Promise<void> {
    this.mapping = mapping;
    await this.lab.script(`ip netns exec ${this.name} nft flush ruleset\n${super.setUp()}`);
    await this.flush();
  }

  /** Takes another WAN address, as with a new PPPoE or DHCP lease; the mappings are gone with the old one. */
  async changeAddress(ipv4: string): Promise<void> {
    if (this.behind) throw new Error(`${this.name} has no public address of its own`);
    const old = this.address;
    this.addresses.ipv4 = ipv4;
    await this.lab.command({ type: "unroute", address: old });
    await this.lab.script(`ip -n ${this.name} -batch - <<END
addr del ${old}/32 dev wan
addr add ${ipv4}/32 dev wan
route replace default dev wan
END
${this.#hairpin()}
ip netns exec ${this.name} nft flush ruleset
${super.setUp()}`);
    await this.announce();
    await this.flush();
  }

  /**
   * With hairpinning, what the LAN sends to our own public address leaves by the WAN, translated like
   * everything else; the Internet sends it back, and it comes in like any packet from outside.
   */
  #hairpin(): string {
    if (!this.hairpinning) return "";
    const gateway = this.behind ? `via ${this.behind.lan.gateway.ipv4}` : "";
    return `ip -n ${this.name} route replace ${this.address} ${gateway} dev wan table 100`;
  }
}

/** A NAT that is a program (`nat.ts`): all IPv4 goes through it. Its IPv6 is routed and filtered like any NAT's. */
export class ProgramNat extends Nat {
  readonly #behaviour: Partial<NatBehaviour>;
  readonly #furtherAddresses: readonly string[];
  #program: Bun.Subprocess<"pipe", "pipe", "inherit"> | undefined;

  constructor(lab: Lab, name: string, options: NatOptions, lan: Lan, furtherAddresses: readonly string[]) {
    super(lab, name, options, lan);
    const { addressCount, ...behaviour } = options.program ?? {};
    this.#behaviour = behaviour;
    this.#furtherAddresses = furtherAddresses;
    if (this.behind && furtherAddresses.length > 0) throw new Error(`${name} can't have several addresses`);
  }

  override setUp(): string {
    return `ip -n ${this.name} -batch - <<END\n${detour(this.lan.gateway.ipv4)}\nEND\n${super.setUp()}`;
  }

  override async start(): Promise<void> {
    const addresses = [this.address, ...this.#furtherAddresses].join(",");
    const fixture = `${import.meta.dir}/nat-fixture.ts`;
    const command = [process.execPath, fixture, addresses, JSON.stringify(this.#behaviour)];
    this.#program = this.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    await this.#hear("ready");
  }

  override async announce(): Promise<void> {
    await super.announce();
    for (const address of this.#furtherAddresses)
      await this.lab.command({ type: "route", address, site: this.site });
  }

  override async flush(): Promise<void> {
    void this.#program?.stdin.write("forget\n");
    void this.#program?.stdin.flush();
    await this.#hear("forgotten");
  }

  override changeAddress(): Promise<void> {
    return Promise.reject(new Error(`${this.name} is a program, which keeps its address`));
  }

  protected override rules(): string {
    return filterRules(this.unsolicited, "meta nfproto ipv4 accept");
  }

  async #hear(word: string): Promise<void> {
    if (!this.#program) throw new Error(`${this.name} was never started`);
    const reader = this.#program.stdout.getReader();
    const { value } = await reader.read();
    reader.releaseLock();
    const said = new TextDecoder().decode(value).trim();
    if (said !== word) throw new Error(`${this.name}: the program said "${said}", not "${word}"`);
  }
}
