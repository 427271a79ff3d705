/**
 * Debian's miniupnpd as the router of a NAT of the lab: a real program that opens ports by PCP, NAT-PMP and UPnP, in
 * the NAT's own namespace and tables. It refuses to open anything on a WAN address that it takes for reserved, so that
 * a NAT with an address of its own moves to {@link publicAddress}.
 *
 *   await using router = await MiniUpnpd.start(lab, nat, ["pcp"]);
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { MappingProtocol } from "../../native/punch/gateway.ts";
import type { Lab, Nat } from "./lab.ts";
import { missing, unlessRequired } from "../needing-fixture.ts";
import { patienceMs } from "../patience-fixture.ts";
import { labTestNeeding } from "./lab.ts";

/** An address of the Internet that miniupnpd opens ports on. */
export const publicAddress = "11.2.2.2";
const obstacle = missing(["miniupnpd"], "package miniupnpd-nftables");
/** `labTest` for tests that need the router too. */
export const routerTest = labTestNeeding(unlessRequired(obstacle));

/** The first byte of a datagram to port 5351 is the version, by which both protocols can be told apart. */
const versions = { "nat-pmp": 0, pcp: 2 } as const;

/** miniupnpd writes its rules into chains that others jump to. */
function rules(speaks: readonly MappingProtocol[]): string {
  const unspoken = (["nat-pmp", "pcp"] as const).filter((one) => !speaks.includes(one));
  const deaf = unspoken.map((one) => `iifname "lan" udp dport 5351 @th,64,8 ${versions[one]} drop`);
  const open = 'iifname "lan" udp dport 1900 accept';
  return `
table inet filtering {
  chain opened {
  }
}
insert rule inet filtering forwarding jump opened
${[...deaf, open].map((rule) => `insert rule inet filtering incoming ${rule}`).join("\n")}
table inet opening {
  chain towards {
  }
  chain back {
  }
  chain prerouting {
    type nat hook prerouting priority dstnat
    jump towards
  }
  chain postrouting {
    type nat hook postrouting priority srcnat
    jump back
  }
}
`;
}

function settings(speaks: readonly MappingProtocol[], leases: string): string {
  const isSpoken = (...some: MappingProtocol[]) => (some.some((one) => speaks.includes(one)) ? "yes" : "no");
  return `
ext_ifname=wan
listening_ip=lan
enable_natpmp=${isSpoken("pcp", "nat-pmp")}
enable_upnp=${isSpoken("upnp")}
secure_mode=yes
min_lifetime=4
system_uptime=no
upnp_table_name=filtering
upnp_nat_table_name=opening
upnp_forward_chain=opened
upnp_nat_chain=towards
upnp_nat_postrouting_chain=back
lease_file=${leases}
uuid=5a1d6c52-8f0e-4d3a-9b7f-2f6f0c1d9e44
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`;
}

export class MiniUpnpd implements AsyncDisposable {
  readonly #nat: Nat;
  readonly #speaks: readonly MappingProtocol[];
  readonly #folder = mkdtempSync(join(tmpdir(), "tcp-hole-punching-router-"));
  #running: Bun.Subprocess<"ignore", "ignore", "pipe"> | undefined;
  #startedAt = 0;
  #starts = 0;

  /** Resolves once it listens to those protocols, and is deaf to the others. */
  static async start(lab: Lab, nat: Nat, speaks: readonly MappingProtocol[]): Promise<MiniUpnpd> {
    if (obstacle !== undefined) throw new Error(`no real router here: ${obstacle}`);
    if (!nat.behind) await nat.changeAddress(publicAddress);
    const router = new MiniUpnpd(nat, speaks);
    await lab.script(`ip netns exec ${nat.name} nft -f - <<'END'\n${rules(speaks)}\nEND\n`);
    await router.#start();
    return router;
  }

  private constructor(nat: Nat, speaks: readonly MappingProtocol[]) {
    this.#nat = nat;
    this.#speaks = speaks;
  }

  get #leases(): string {
    return join(this.#folder, `leases-${this.#starts}`);
  }

  get uptimeMs(): number {
    return performance.now() - this.#startedAt;
  }

  /** What it has opened: `TCP:external:address:internal:end:name`, the end in seconds since the epoch, a line. */
  async leases(): Promise<string[]> {
    const file = Bun.file(this.#leases);
    const text = (await file.exists()) ? await file.text() : "";
    return text.split("\n").filter((line) => line !== "");
  }

  /** Resolves once it has so many. It writes them down after it has answered. */
  async has(count: number): Promise<void> {
    const giveUpAt = performance.now() + patienceMs;
    for (let leases = await this.leases(); leases.length !== count; leases = await this.leases()) {
      if (performance.now() > giveUpAt) throw new Error(`not ${count} leases but ${leases.join(", ")}`);
      await Bun.sleep(10);
    }
  }

  /** As after a power cut: whatever was open is closed and forgotten. */
  async restart(): Promise<void> {
    await this.#stop();
    await this.forget();
    await this.#start();
  }

  /** Whatever was open is closed, and it does not notice that. */
  async forget(): Promise<void> {
    const chains = ["filtering opened", "opening towards", "opening back"];
    for (const chain of chains) await this.#nat.run(["nft", "flush", "chain", "inet", ...chain.split(" ")]);
  }

  async #start(): Promise<void> {
    this.#starts++;
    const configuration = join(this.#folder, "configuration");
    writeFileSync(configuration, settings(this.#speaks, this.#leases));
    writeFileSync(this.#leases, "");
    // -d: in the foreground, and it says when it listens.
    const command = ["miniupnpd", "-d", "-f", configuration, "-P", join(this.#folder, "pid")];
    this.#startedAt = performance.now();
    const running = this.#nat.spawn(command, { stdin: "ignore", stdout: "ignore", stderr: "pipe" });
    this.#running = running;
    const story: string[] = [];
    const listening = Promise.withResolvers<void>();
    const late = () => listening.reject(new Error(`miniupnpd did not start: ${story.join("")}`));
    const timer = setTimeout(late, patienceMs);
    const word = this.#speaks.includes("upnp") ? "HTTP listening" : "Listening for NAT-PMP/PCP";
    void (async () => {
      for await (const chunk of running.stderr.pipeThrough(new TextDecoderStream())) {
        story.push(chunk);
        if (story.join("").includes(word)) listening.resolve();
      }
      late();
    })();
    await listening.promise.finally(() => clearTimeout(timer));
  }

  async #stop(): Promise<void> {
    this.#running?.kill("SIGKILL");
    await this.#running?.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stop();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
