/**
 * The introducer's real program as an operator starts it, seen from outside, for benches that come from many addresses:
 * they run in a network namespace of their own, where 10.99.0.0/16 and 2001:db8::/48 are this host's, because
 * 127.0.0.1 has as many shares as it likes.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isQuick, quick } from "./run.ts";

/** Where it listens: nobody else does in that namespace. */
export const introducerPort = 7000;
export const probePort = introducerPort + 1;
const metricsPort = 9100;
/** Set where a bench has run itself again, to whether it goes before all else in this machine. */
const mark = "BENCH_NAMESPACE";
const isFirst = () => process.env[mark] === "first";
/** A kernel's clock tick, in which /proc tells processor time (USER_HZ). */
const clockTickMs = 10;

/** Of that many, each in a /24 or /64 of its own only where there are more than 250. */
export const address4 = (net: number, index: number) =>
  `10.99.${net + Math.floor(index / 250)}.${1 + (index % 250)}`;
export const address6 = (index: number) => `2001:db8:0:${index.toString(16)}::1`;

const isPossible = async (...command: string[]) =>
  (await Bun.$`${[...command, "true"]}`.nothrow().quiet()).exitCode === 0;

/**
 * Runs a bench again where it has those addresses; returns whether this was not there yet. As root it goes before all else
 * in this machine, and {@link Program} before all but it: then nothing measured is the scheduler's, and whoever is started
 * by {@link behind} gets what processor time those two leave.
 */
export async function runInNamespace(name: string, args: string[]): Promise<boolean> {
  if (process.env[mark]) return false;
  const script = `ip link set lo up && ip route add local 10.99.0.0/16 dev lo &&
    ip -6 route add local 2001:db8::/48 dev lo && echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind && exec "$@"`;
  const unshare = ["unshare", "-Urn", "sh", "-c", script, "sh"];
  if (!(await isPossible(...unshare))) {
    console.log(`this host can't make a network namespace: ${unshare.slice(0, 2).join(" ")}, ip`);
    process.exit(1);
  }
  const first = ["chrt", "--fifo", "2"];
  // A quick one would stand in the way of those beside it.
  const goesFirst = !isQuick && (await isPossible(...first));
  const command = [...(goesFirst ? first : []), ...unshare];
  const env = { ...process.env, [mark]: goesFirst ? "first" : "equal" };
  const run = [
    ...command,
    process.execPath,
    `${import.meta.dir}/run.ts`,
    name,
    ...args,
    ...quick([], ["--quick"]),
  ];
  process.exitCode = await Bun.spawn(run, { env, stdio: ["ignore", "inherit", "inherit"] }).exited;
  return true;
}

/** How to start what shall have only the time that is left; a quick run leaves none to start in. */
export const behind = () => (isFirst() ? ["chrt", "--other", "0"] : quick(["nice", "-n", "19"], []));

export class Program implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), "bench-introducer-"));
  /** Where heap-fixture.ts tells of it. */
  readonly heapFile = join(this.#folder, "heap");
  readonly #process: Bun.Subprocess;

  private constructor(args: string[], preload: string | undefined) {
    const file = join(import.meta.dir, "..", "..", "introducer.ts");
    const before = isFirst() ? ["chrt", "--fifo", "1"] : [];
    const service = [String(introducerPort), "--log", "json", "--metrics", String(metricsPort)];
    const stderr = Bun.file(join(this.#folder, "log"));
    const load = preload === undefined ? [] : ["--preload", `${import.meta.dir}/${preload}`];
    const command = [...before, process.execPath, ...load, file, ...service, ...args];
    const env = { ...process.env, HEAP_FILE: this.heapFile };
    this.#process = Bun.spawn(command, { env, stdio: ["ignore", "ignore", stderr] });
  }

  /** As its systemd unit starts it; its log goes into a file. `preload`: a file of this folder that is loaded before it. */
  static async start(args: string[] = [], preload?: string): Promise<Program> {
    const program = new Program(args, preload);
    while ((await program.metrics().catch(() => undefined)) === undefined) {
      if (program.#process.exitCode !== null) throw new Error(program.log);
      await Bun.sleep(10);
    }
    return program;
  }

  get pid(): number {
    return this.#process.pid;
  }

  get log(): string {
    return readFileSync(join(this.#folder, "log"), "utf8");
  }

  /** Processor time so far, of user and system. */
  get busyMs(): number {
    const fields = readFileSync(`/proc/${this.pid}/stat`, "utf8").split(") ")[1]!.split(" ");
    return (Number(fields[11]) + Number(fields[12])) * clockTickMs;
  }

  /** What it shows to Prometheus, by name and labels. */
  async metrics(): Promise<Map<string, number>> {
    const text = await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text();
    const samples = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
    return new Map(samples.map((line) => [line.replace(/ \S+$/, ""), Number(/\S+$/.exec(line)![0])]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    rmSync(this.#folder, { recursive: true });
  }
}
