/**
 * The lab: a network of real kernel NATs, and of NATs that are programs, without root. Hosts, NATs and firewalls are
 * network namespaces; between them lies the Internet of `internet-fixture.ts`, which gives every site its delay.
 *
 *   alice ─eth0── lan│nat│wan ═ TUN ═╗                ╔═ TUN ═ wan│nat│lan ──eth0─ bob
 *   carol ─eth0──────┘               ╠═ the Internet ═╣
 *                                    ║                ╚═ TUN ═ eth0─ introducer
 *
 *   await using lab = await Lab.create();
 *   const nat = await lab.nat("natA", { mapping: "sequential", owdMs: 20 });
 *   const alice = await lab.host("alice", { behind: nat });
 *   const introducer = await lab.host("introducer", { owdMs: 5 });
 *   const server = introducer.spawn([process.execPath, "server.ts"]);
 *
 * Addresses: sites 203.0.113.0/24 and 2001:db8:0:n::1, further ones of a NAT out of 192.0.2.0/24, LANs 192.168.n.0/24 and 2001:db8:1:n::/64 (no NAT66:
 * IPv6 is routed and filtered), LANs of firewalls out of 198.51.100.0/24.
 */
import type { test } from "bun:test";
import { testNeeding, unlessRequired } from "../needing-fixture.ts";
import { inTries, Places } from "../places-fixture.ts";
import type { InternetAnswer, InternetCommand, WanOptions } from "./internet-fixture.ts";
import { findObstacle, Namespaces } from "./namespaces.ts";
import {
  Firewall,
  type FirewallOptions,
  Host,
  type HostOptions,
  Lan,
  type Machine,
  Nat,
  type NatOptions,
  ProgramNat,
  type ProgramOptions,
  type Router,
} from "./machines.ts";
import { deviceQueue, type Mapping, type Unsolicited } from "./ruleset.ts";

export { Firewall, Host, Nat };
export type { FirewallOptions, HostOptions, Mapping, NatOptions, ProgramOptions, Unsolicited, WanOptions };

/** Why the lab can't run here, or undefined when it can. */
export const unavailable: string | undefined = findObstacle();
const obstacle = unlessRequired(unavailable);

/** `test` for tests that need the lab, and more: skipped where it can't run, failing there under REQUIRE_LAB=1. */
export function labTestNeeding(...obstacles: (string | undefined)[]): typeof test {
  return testNeeding(obstacle, ...obstacles);
}
export const labTest: typeof test = labTestNeeding();
/** For links whose packets must meet in time. */
export const raceTest: typeof test = inTries(labTest);

const maxSites = 250;
/** What waits for a limited access: a quarter of a megabyte is 40 ms at 50 Mbit/s. */
const defaultQueueBytes = 256 * 1024;

/** For the labs of concurrent tests. */
const places = new Places(3);

interface LabOptions {
  /** Gets every line of every set-up script. */
  log?: (line: string) => void;
  /** A file that gets a line for every packet. */
  trace?: string;
  /** For a test that mostly waits: it does not wait for a place, and takes none. */
  isIdle?: boolean;
}

export class Lab implements AsyncDisposable {
  readonly #namespaces: Namespaces;
  /** None if it is idle. */
  readonly #place: Disposable | undefined;
  readonly #internet: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #answers: PromiseWithResolvers<void>[] = [];
  #internetHasEnded = false;
  readonly #programs = new Set<Bun.Subprocess>();
  readonly #names = new Set<string>();
  #siteCount = 0;
  #lanCount = 0;
  #firewallCount = 0;
  #portCount = 0;
  #furtherCount = 0;

  /** Resolves once it is there, which of many at once may take its time. */
  static async create(options: LabOptions = {}): Promise<Lab> {
    if (unavailable !== undefined) throw new Error(`the lab can't run here: ${unavailable}`);
    const place = options.isIdle ? undefined : await places.take();
    const lab = new Lab(await Namespaces.create(options.log ?? (() => {})), place);
    if (options.trace !== undefined) await lab.command({ type: "trace", path: options.trace });
    return lab;
  }

  private constructor(namespaces: Namespaces, place: Disposable | undefined) {
    this.#namespaces = namespaces;
    this.#place = place;
    const fixture = `${import.meta.dir}/internet-fixture.ts`;
    const command = namespaces.enter([process.execPath, fixture]);
    this.#internet = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    void this.#readAnswers();
  }

  /** A NAT, netfilter's or a program; its IPv6 is routed behind a stateful filter. */
  async nat(name: string, options: NatOptions = {}): Promise<Nat> {
    const number = ++this.#lanCount;
    const lan = new Lan(options.lan ?? `192.168.${number}.0/24`, number);
    const nat = options.program
      ? new ProgramNat(this, name, options, lan, this.#furtherAddresses(options.program.addressCount))
      : new Nat(this, name, options, lan);
    await this.#addRouter(nat, options);
    return nat;
  }

  /** A stateful firewall without NAT: hosts behind it have global addresses, IPv4 and IPv6. */
  async firewall(name: string, options: FirewallOptions = {}): Promise<Firewall> {
    const prefix = options.lan ?? `198.51.100.${16 * this.#firewallCount++}/28`;
    const firewall = new Firewall(this, name, options, new Lan(prefix, ++this.#lanCount));
    await this.#addRouter(firewall, options);
    return firewall;
  }

  /** A host; without `behind` it is on the Internet itself, with a public address. */
  async host(name: string, options: HostOptions = {}): Promise<Host> {
    const host = new Host(this, name, options);
    const script = await this.#attach(host, "eth0", options);
    await this.script(`${this.#newNamespace(name, "")}${script}`);
    return host;
  }

  /** Runs a shell script in which `ip netns` knows every name. */
  script(text: string): Promise<string> {
    return this.#namespaces.script(text);
  }

  spawn<
    const In extends Bun.SpawnOptions.Writable = "ignore",
    const Out extends Bun.SpawnOptions.Readable = "pipe",
    const Err extends Bun.SpawnOptions.Readable = "inherit",
  >(
    namespace: string,
    command: string[],
    options?: Bun.SpawnOptions.SpawnOptions<In, Out, Err>,
  ): Bun.Subprocess<In, Out, Err> {
    const program = Bun.spawn<In, Out, Err>(this.#namespaces.enter(command, namespace), options);
    this.#programs.add(program);
    void program.exited.then(() => this.#programs.delete(program));
    return program;
  }

  /** Tells the Internet; throws when it refuses. */
  command(command: InternetCommand): Promise<void> {
    if (this.#internetHasEnded) return Promise.reject(new Error("the lab's Internet has ended"));
    const answer = Promise.withResolvers<void>();
    this.#answers.push(answer);
    void this.#internet.stdin.write(JSON.stringify(command) + "\n");
    void this.#internet.stdin.flush();
    return answer.promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const programs = [...this.#programs];
    for (const program of programs) program.kill("SIGKILL");
    this.#internet.kill("SIGKILL");
    await this.#namespaces[Symbol.asyncDispose]();
    await Promise.all([...programs, this.#internet].map((program) => program.exited));
    this.#place?.[Symbol.dispose]();
  }

  async #readAnswers(): Promise<void> {
    const utf8 = new TextDecoder();
    let text = "";
    for await (const chunk of this.#internet.stdout) {
      const lines = (text + utf8.decode(chunk, { stream: true })).split("\n");
      text = lines.pop()!;
      for (const line of lines) {
        const answer = JSON.parse(line) as InternetAnswer;
        if (answer.ok) this.#answers.shift()!.resolve();
        else this.#answers.shift()!.reject(new Error(`the lab's Internet: ${answer.error}`));
      }
    }
    this.#internetHasEnded = true;
    for (const answer of this.#answers) answer.reject(new Error("the lab's Internet has ended"));
  }

  async #addRouter(router: Router, options: NatOptions): Promise<void> {
    const { name, lan } = router;
    const attach = await this.#attach(router, "wan", options);
    const settings = `
      echo 1 >ipv4/ip_forward
      echo 1 >ipv6/conf/all/forwarding
      for conf in all default; do
        echo 0 >ipv4/conf/$conf/send_redirects
        echo 1 >ipv4/conf/$conf/accept_local
      done
      `;
    await this.script(`${this.#newNamespace(name, settings)}
ip -n ${name} -batch - <<END
link add lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0
addr add ${lan.gateway.ipv4}/${lan.length} dev lan
addr add ${lan.gateway.ipv6}/64 dev lan nodad
link set lan up
END
test ! -d /proc/sys/net/bridge || ip netns exec ${name} sh -c 'echo 0 | tee /proc/sys/net/bridge/bridge-nf-call-*' >/dev/null
${attach}
${router.setUp()}
${this.#delegate(router)}`);
    await router.start();
  }

  #furtherAddresses(count = 1): string[] {
    return Array.from({ length: count - 1 }, () => `192.0.2.${++this.#furtherCount}`);
  }

  #newNamespace(name: string, settings: string): string {
    return `
ip netns add ${name}
ip netns exec ${name} sh -e <<'END'
cd /proc/sys/net
${settings}
for conf in all default; do
  echo 0 >ipv4/conf/$conf/rp_filter
  echo 0 >ipv6/conf/$conf/accept_dad
  echo 0 >ipv6/conf/$conf/accept_ra
done
END
ip -n ${name} link set lo up
`;
  }

  /** Chooses the machine's addresses, tells the Internet, and returns the script that plugs it in. */
  async #attach(machine: Machine, device: string, options: HostOptions): Promise<string> {
    const { name } = machine;
    if (!/^[a-zA-Z][\w-]{0,30}$/.test(name) || this.#names.has(name)) throw new Error(`bad name: ${name}`);
    this.#names.add(name);
    const { behind } = options;
    const isHost = machine instanceof Host;
    const wants = { ipv4: options.ipv4 ?? true, ipv6: isHost ? (options.ipv6 ?? false) : true };
    if (behind) {
      const given = behind.lan.allocate(options.address);
      if (wants.ipv4) machine.addresses.ipv4 = given.ipv4;
      if (wants.ipv6) machine.addresses.ipv6 = given.ipv6;
      await machine.announce();
      return this.#plugIntoLan(machine, device, behind);
    }
    const site = ++this.#siteCount;
    if (site > maxSites) throw new Error("too many sites");
    if (wants.ipv4) machine.addresses.ipv4 = options.address ?? `203.0.113.${site}`;
    if (wants.ipv6) machine.addresses.ipv6 = `2001:db8:0:${site.toString(16)}::1`;
    const { owdMs = 0, loss = 0, jitterMs = 0, upMbits = 0, upQueueBytes = defaultQueueBytes } = options;
    const wan = { owdMs, loss, jitterMs, upMbits, upQueueBytes };
    await this.command({ type: "addSite", site: name, device: `site${site}`, ...wan });
    await machine.announce();
    return this.#plugIntoInternet(machine, device, `site${site}`);
  }

  #plugIntoInternet({ name, addresses }: Machine, device: string, tun: string): string {
    const { ipv4, ipv6 } = addresses;
    return `
ip link set dev ${tun} netns ${name} name ${device}
ip -n ${name} -batch - <<END
link set ${device} txqueuelen ${deviceQueue} up
${ipv4 === undefined ? "" : `addr add ${ipv4}/32 dev ${device}\nroute add default dev ${device}`}
${ipv6 === undefined ? "" : `addr add ${ipv6}/128 dev ${device} nodad\nroute add ::/0 dev ${device}`}
END
`;
  }

  #plugIntoLan({ name, addresses }: Machine, device: string, { name: router, lan }: Router): string {
    const { ipv4, ipv6 } = addresses;
    const port = `port${++this.#portCount}`;
    const isUp = (namespace: string, dev: string) =>
      `ip -n ${namespace} -o link show dev ${dev} | grep -q "LOWER_UP.* state UP"`;
    return `
ip link add ${device} netns ${name} type veth peer name ${port} netns ${router}
ip -n ${router} link set ${port} master lan up
ip -n ${name} -batch - <<END
link set ${device} up
${ipv4 === undefined ? "" : `addr add ${ipv4}/${lan.length} dev ${device}\nroute add default via ${lan.gateway.ipv4}`}
${ipv6 === undefined ? "" : `addr add ${ipv6}/64 dev ${device} nodad\nroute add ::/0 via ${lan.gateway.ipv6}`}
END
until ${isUp(name, device)} && ${isUp(router, port)} && ${isUp(router, "lan")}; do :; done
while ip -n ${router} -6 -o addr show dev lan tentative | grep -q .; do :; done
while ip -n ${name} -6 -o addr show dev ${device} tentative | grep -q .; do :; done
`;
  }

  /** The routers outside one must know that its IPv6 prefix is inside. */
  #delegate(router: Router): string {
    const lines: string[] = [];
    for (let inner = router; inner.behind; inner = inner.behind) {
      lines.push(`ip -n ${inner.behind.name} route add ${router.lan.prefix6} via ${inner.addresses.ipv6}`);
    }
    return lines.join("\n");
  }
}
