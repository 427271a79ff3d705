/**
 * One tree of user, mount and network namespaces, kept by a holder process. It is ours alone: its `ip netns`
 * names live in its own /run, so no name can meet another lab's, and all of it is gone with the holder. The
 * holder ends when its stdin does, so also when the test process is killed, and takes every process in
 * the namespaces with it.
 */
import { patienceMs } from "../patience-fixture.ts";

/** At the end it kills all that is in its user namespace: programs of hosts may have started others. */
const holderScript = `
set -e
trap '' INT TERM HUP
mount -t tmpfs lab /run
ip link set lo up
echo ready
cat >/dev/null
set +e
own=$(readlink /proc/self/ns/user | tr -dc 0-9)
for round in 1 2 3; do
  kill -9 $(find /proc/[0-9]*/ns/user -maxdepth 0 -lname "user:?$own?" | cut -d/ -f3 | grep -vx $$)
done 2>/dev/null
`;

/** Everything the lab asks of the machine, tried once. */
const probeScript = `
try() { "$@" || { echo "($*)" >&2; exit 1; }; }
try mount -t tmpfs lab /run
try ip netns add probe
try ip tuntap add dev probe mode tun
try ip link add lan type bridge
try ip link add eth0 type veth peer name port0
try nft -f - <<EOF
table inet probe {
  chain forwarding {
    type filter hook forward priority filter
    ct state established accept
    reject with tcp reset
  }
}
table ip probe {
  chain translating {
    type nat hook postrouting priority srcnat
    oifname "probe" meta l4proto tcp snat to 192.0.2.1 : numgen inc mod 2 map { 0 : 1, 1 : 2 }
    oifname "probe" masquerade fully-random
  }
}
EOF
`;

/** Why the lab can't run here, or undefined when it can. */
export function findObstacle(): string | undefined {
  if (process.platform !== "linux") return `it needs Linux, this is ${process.platform}`;
  const missing = ["unshare", "nsenter", "ip", "nft"].filter((program) => Bun.which(program) === null);
  if (missing.length > 0)
    return `not installed: ${missing.join(", ")} (packages util-linux, iproute2, nftables)`;
  const probe = Bun.spawnSync(["unshare", "-Urmn", "sh", "-ec", probeScript], { timeout: patienceMs });
  if (probe.success) return undefined;
  const said = probe.stderr.toString().trim().replaceAll("\n", " ");
  return said || `the probe script ended with ${probe.signalCode ?? probe.exitCode}`;
}

export class Namespaces implements AsyncDisposable {
  readonly #holder: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #log: (line: string) => void;

  static async create(log: (line: string) => void): Promise<Namespaces> {
    const command = ["unshare", "-Urmn", "sh", "-c", holderScript, `tcp-hole-punching-lab-${process.pid}`];
    const holder = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
    const { value } = await holder.stdout.getReader().read();
    if (value === undefined) throw new Error(`the holder failed: ${await holder.stderr.text()}`);
    return new Namespaces(holder, log);
  }

  private constructor(holder: Bun.Subprocess<"pipe", "pipe", "pipe">, log: (line: string) => void) {
    this.#holder = holder;
    this.#log = log;
  }

  /** The process that keeps the namespaces. */
  get pid(): number {
    return this.#holder.pid;
  }

  /** The command that becomes `command` inside: nsenter replaces itself, so the process id stays. */
  enter(command: string[], namespace?: string): string[] {
    const pid = this.#holder.pid;
    const net = namespace === undefined ? "--net" : `--net=/proc/${pid}/root/run/netns/${namespace}`;
    return ["nsenter", `--target=${pid}`, "--user", "--preserve-credentials", net, ...command];
  }

  /** Runs a shell script where `ip netns` knows our names; throws with what it said when a line of it fails. */
  async script(text: string): Promise<string> {
    for (const line of text.trim().split("\n")) this.#log(line);
    const { pid } = this.#holder;
    const enter = ["nsenter", `--target=${pid}`, "--user", "--mount", "--net", "--preserve-credentials"];
    const shell = Bun.spawn([...enter, "sh", "-e"], {
      stdin: Buffer.from(text),
      stdout: "pipe",
      stderr: "pipe",
      timeout: patienceMs,
    });
    const [stdout, stderr, code] = await Promise.all([
      shell.stdout.text(),
      shell.stderr.text(),
      shell.exited,
    ]);
    if (code !== 0) throw new Error(`lab script failed (${code}): ${stderr.trim()}\n${text}`);
    return stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#holder.stdin.end();
    await this.#holder.exited;
  }
}
