/**
 * What forwards, pipes and files cost over loopback, between the real programs: iperf3 and nginx directly, by a forward,
 * by `ssh -L`, by two bare hops in Bun and by hyperdht; a pipe against `cat | nc`; a file against scp. The contenders take
 * turns. `bun run bench forward [ROUNDS [GIB]]`.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noNginx, Nginx } from "../lab/nginx.ts";
import { People, root, thisHost, type IntroducerProgram, type ParticipantProgram } from "../lab/people.ts";
import { noSshd, Sshd } from "../lab/sshd.ts";
import { freePort } from "../sockets-fixture.ts";
import { processorMs } from "./crowd.ts";
import { HyperDht } from "./hyperdht.ts";
import { median, quick, table } from "./run.ts";

/** Of each measure in each round. */
const seconds = quick(2, 1);
const connectionCounts = quick([1, 32, 1000], [1]);
/** What iperf3 sends: for that time, or so much. */
const amount = quick(["-t", `${seconds}`], ["-n", "8M"]);
/** A server of iperf3 serves one client at a time, and sees the end of the last a moment after us: then it is asked again. */
const busyPauseMs = 50;
const busyDeadlineMs = 10_000;
const room = ["--room", "of-the-bench"];
const cipher = ["-c", "aes128-gcm@openssh.com"];

/** A way to a port: the port on this side of it. */
interface Contender {
  name: string;
  iperf: number;
  http: number;
  /** The programs that it consists of, those that they have started included. */
  programs: readonly number[];
}
/** `count`: how many requests that were. */
interface Measured {
  value: number;
  count?: number;
}
type Measure = (contender: Contender) => Promise<Measured>;

// --- the ways --------------------------------------------------------------------------------------------

class Ways implements AsyncDisposable {
  readonly #programs: Bun.Subprocess[] = [];

  start(command: string[]): Bun.Subprocess<"ignore", "pipe", "ignore"> {
    const program = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "ignore" });
    this.#programs.push(program);
    return program;
  }

  async iperf(port: number): Promise<void> {
    const program = this.start(["iperf3", "-s", "-B", "127.0.0.1", "-p", `${port}`, "--forceflush"]);
    const reader = program.stdout.getReader();
    await reader.read();
    const drain = async (): Promise<void> => ((await reader.read()).done ? undefined : drain());
    void drain();
  }

  /** Two processes one after the other, as a forward has them. */
  async bare(port: number, programs: number[]): Promise<number> {
    for (let hop = 0; hop < 2; hop++) {
      const program = this.start([process.execPath, `${import.meta.dir}/copy-fixture.ts`, String(port)]);
      programs.push(program.pid);
      const { value } = await program.stdout.getReader().read();
      port = Number(new TextDecoder().decode(value));
    }
    return port;
  }

  async ssh(sshd: Sshd, ports: number[]): Promise<{ ports: number[]; program: number }> {
    const listen = ports.map(() => freePort());
    const specs = ports.flatMap((port, index) => ["-L", `127.0.0.1:${listen[index]}:127.0.0.1:${port}`]);
    const options = [
      ...sshd.clientOptions,
      ...cipher,
      "-o",
      "ExitOnForwardFailure=yes",
      "-p",
      `${sshd.port}`,
    ];
    const { pid: program } = this.start(["ssh", ...options, "-N", ...specs, "bob@127.0.0.1"]);
    await connectable(listen.at(-1)!); // iperf3, behind the first one, takes everybody for a client
    return { ports: listen, program };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const program of this.#programs) program.kill();
    await Promise.all(this.#programs.map(({ exited }) => exited));
  }
}

/** Resolves once somebody listens there. */
async function connectable(port: number): Promise<void> {
  for (;;) {
    const options = { hostname: "127.0.0.1", port, socket: { data() {} } };
    const socket = await Bun.connect(options).catch(() => undefined);
    if (socket) return void socket.end();
    await Bun.sleep(20);
  }
}

// --- what is measured ------------------------------------------------------------------------------------

async function run(command: string[]): Promise<string> {
  const program = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [out, problem, code] = await Promise.all([
    program.stdout.text(),
    program.stderr.text(),
    program.exited,
  ]);
  if (code !== 0) throw new Error(`${command.join(" ")}: ${problem || out}`);
  return out;
}

/** What a program says that tells its errors there, too. */
async function ended(command: string[]): Promise<string> {
  const program = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  return program.stdout.text();
}

interface Iperf {
  error?: string;
  end?: { sum_received?: { bits_per_second: number } };
}

/** Gbit/s, by the receiver's word. */
function throughput(...options: string[]): Measure {
  return async ({ iperf }) => {
    const command = ["iperf3", "-c", "127.0.0.1", "-p", `${iperf}`, ...amount, "-J", ...options];
    const deadline = performance.now() + busyDeadlineMs;
    for (;;) {
      const report = JSON.parse(await ended(command)) as Iperf;
      const { sum_received: received } = report.end ?? {};
      if (received) return { value: received.bits_per_second / 1e9 };
      if (performance.now() > deadline) throw new Error(`iperf3: ${report.error}`);
      await Bun.sleep(busyPauseMs);
    }
  };
}

/** Requests a second. */
function requests(connections: number, ...options: string[]): Measure {
  return async ({ http }) => {
    const load = ["wrk", "-t1", `-c${connections}`, `-d${seconds}s`, "--timeout", "20s", ...options];
    const report = await run([...load, `http://127.0.0.1:${http}/`]);
    const errors = /Socket errors: .*|Non-2xx.*/.exec(report)?.[0];
    if (errors) console.error(`${load.join(" ")}: ${errors}`);
    const [value = 0, count = 0] = [/Requests\/sec:\s+([\d.]+)/, /(\d+) requests in/].map((pattern) =>
      Number(pattern.exec(report)![1]),
    );
    return { value, count };
  };
}

const measures: [name: string, digits: number, measure: Measure][] = [
  ["iperf3, Gbit/s", 2, throughput()],
  ["iperf3 -R, Gbit/s", 2, throughput("-R")],
  ...connectionCounts.map((count): [string, number, Measure] => [
    `requests/s, ${count} kept`,
    0,
    requests(count),
  ]),
  ["new connections/s", 0, requests(32, "-H", "Connection: close")],
];

const goals: Record<string, number> = { "new connections/s": 1.1 };
const maxLatencyUs = 80;

/** What one contender has done in all rounds; microseconds of processor that a request takes of its programs. */
interface Results {
  values: number[];
  microseconds: number[];
}

function descendants(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").match(/\d+/g) ?? [];
  return [pid, ...children.flatMap((child) => descendants(Number(child)))];
}

const busyMs = ({ programs }: Contender): number =>
  programs.flatMap(descendants).reduce((sum, pid) => sum + processorMs(pid), 0);

/**
 * Every contender once in every round, so that what else the machine does meets all of them. One round before does not
 * count: what is written in JavaScript is compiled while it runs.
 */
async function takeTurns(contenders: Contender[], rounds: number, measure: Measure): Promise<Results[]> {
  const results = contenders.map((): Results => ({ values: [], microseconds: [] }));
  for (let round = quick(-1, 0); round < rounds; round++) {
    for (const [index, contender] of contenders.entries()) {
      const beforeMs = busyMs(contender);
      const { value, count } = await measure(contender);
      if (round < 0) continue;
      results[index]!.values.push(value);
      if (count) results[index]!.microseconds.push(((busyMs(contender) - beforeMs) * 1000) / count);
    }
  }
  return results;
}

const latencies = (medians: number[]): string[] =>
  medians.map((one) => (1e6 / one - 1e6 / medians[0]!).toFixed(0));

async function compete(contenders: Contender[], rounds: number): Promise<string[][]> {
  const rows = [["", ...contenders.map(({ name }) => name), "÷ ssh -L", "goal", "÷ two hops"]];
  for (const [name, digits, measure] of measures) {
    const results = await takeTurns(contenders, rounds, measure);
    const told = results.map(({ values }) => values.map((one) => one.toFixed(digits)));
    console.error(`${name}: ${told.map((all) => all.join(" ")).join(" | ")}`);
    const medians = results.map(({ values }) => median(values));
    const ratios = ([, ours, ssh, bare]: number[]) =>
      [ours! / ssh!, ours! / bare!].map((one) => one.toFixed(2));
    const [toSsh = "", toBare = ""] = ratios(medians);
    const goal = `≥ ${(goals[name] ?? 1).toFixed(1)}`;
    rows.push([name, ...medians.map((value) => value.toFixed(digits)), toSsh, goal, toBare]);
    if (name.startsWith("requests/s, 1 "))
      rows.push(["  so added latency, µs", ...latencies(medians), "", `≤ ${maxLatencyUs}`, ""]);
    if (results[0]!.microseconds.length === 0) continue;
    const taken = results.map(({ microseconds }) => median(microseconds));
    const [cpuToSsh = "", cpuToBare = ""] = ratios(taken);
    const shown = taken.map((one, index) => (index === 0 ? "" : one.toFixed(0)));
    rows.push(["  µs of processor each", ...shown, cpuToSsh, "", cpuToBare]);
  }
  return rows;
}

// --- pipes and files -------------------------------------------------------------------------------------

async function timed(work: () => Promise<unknown>, bytes: number): Promise<number> {
  const startedAt = performance.now();
  await work();
  return bytes / 1e6 / ((performance.now() - startedAt) / 1000);
}

async function shell(script: string, env: Record<string, string | undefined> = {}): Promise<void> {
  const program = Bun.spawn(["bash", "-c", script], {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ["ignore", "inherit", "pipe"],
  });
  const [problem, code] = [await program.stderr.text(), await program.exited];
  if (code !== 0) throw new Error(`${script}: ${problem}`);
}

/** A program of ours as a shell writes it, with a state folder of its own. */
function ours(people: People, { endpoint }: IntroducerProgram, name: string, ...options: string[]): string {
  const command = [process.execPath, "participant.ts", endpoint, "--name", name, ...room, "-q", ...options];
  return `XDG_STATE_HOME=${people.stateOf(name)} ${command.join(" ")}`;
}

/** MB/s with starting and linking, which is what a user waits for. */
async function pipes(people: People, introducer: IntroducerProgram, gib: number): Promise<string[][]> {
  const bytes = gib * 2 ** 30;
  const source = `head -c ${bytes} /dev/zero`;
  const sink = `test $(wc -c) = ${bytes}`;
  const pipe = (from: string, to: string) => `${from} & ${to}; both=$?; wait $! && exit $both`;
  const byUs = pipe(
    `${source} | ${ours(people, introducer, "carol", "--pipe", "dave")}`,
    `${ours(people, introducer, "dave", "--pipe", "carol")} < /dev/null | ${sink}`,
  );
  const port = freePort();
  const byNc = pipe(`nc -l 127.0.0.1 ${port} | ${sink}`, `sleep 0.1; ${source} | nc -N 127.0.0.1 ${port}`);
  const rows = [["MB/s, with the start", "ours", "theirs"]];
  const nc = Bun.which("nc") ? (await timed(() => shell(byNc), bytes)).toFixed(0) : "nc is missing";
  rows.push([`a pipe of ${gib} GiB, cat | nc`, (await timed(() => shell(byUs), bytes)).toFixed(0), nc]);
  return rows;
}

async function files(
  people: People,
  introducer: IntroducerProgram,
  sshd: Sshd,
  gib: number,
): Promise<string[]> {
  const bytes = gib * 2 ** 30;
  const folder = mkdtempSync(join(tmpdir(), "bench-"));
  try {
    await shell(
      `head -c ${bytes} /dev/zero | openssl enc -aes-128-ctr -pass pass:x -nosalt 2>/dev/null > ${folder}/file; sync`,
    );
    const receiver = await people.participant("erin", thisHost, introducer, [...room, "--accept", folder]);
    const send = ours(people, introducer, "frank", "--connect", "erin", "--send", `${folder}/file`);
    const byUs = await timed(() => shell(send), bytes);
    const options = [...sshd.clientOptions, ...cipher, "-P", `${sshd.port}`, "-q"].join(" ");
    const byScp = await timed(
      () => shell(`scp ${options} ${folder}/file bob@127.0.0.1:copied && sync ${sshd.folder}/copied`),
      bytes,
    );
    await receiver.kill("SIGTERM");
    return [`a file of ${gib} GiB, scp and sync`, byUs.toFixed(0), byScp.toFixed(0)];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Megabytes that are resident. */
function residentMb({ process: { pid } }: ParticipantProgram): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;
}

// --- the tables ------------------------------------------------------------------------------------------

export async function bench([
  roundsText = quick("3", "1"),
  gibText = quick("2", "0.03125"),
]: string[]): Promise<void> {
  const obstacle = noSshd ?? noNginx ?? (Bun.which("iperf3") ? undefined : "not installed: iperf3");
  if (obstacle) throw new Error(`skipped: ${obstacle}`);
  const [rounds, gib] = [Number(roundsText), Number(gibText)];
  await using people = new People();
  await using ways = new Ways();
  await using sshd = await Sshd.start(thisHost);
  await using nginx = await Nginx.start(thisHost);
  const iperf = freePort();
  await ways.iperf(iperf);

  const introducer = await people.introducer(thisHost, freePort());
  const [iperfHere, httpHere] = [freePort(), freePort()];
  const forwards = ["-L", `${iperfHere}:bob:${iperf}`, "-L", `${httpHere}:bob:${nginx.port}`];
  const bob = await people.participant("bob", thisHost, introducer, [...room, "--allow", "*", "--stay"]);
  const alice = await people.participant("alice", thisHost, introducer, [...room, ...forwards]);
  await alice.next("linked");
  const ssh = await ways.ssh(sshd, [iperf, nginx.port]);
  const hops: number[] = [];
  await using rival = await HyperDht.start([iperf, nginx.port]);
  const way = (name: string, [iperf, http]: number[], ...programs: number[]): Contender => ({
    ...{ name, iperf: iperf!, http: http!, programs },
  });
  const contenders = [
    way("direct", [iperf, nginx.port]),
    way("forward", [iperfHere, httpHere], alice.process.pid, bob.process.pid),
    way("ssh -L", ssh.ports, ssh.program, sshd.pid),
    way("two hops", [await ways.bare(iperf, hops), await ways.bare(nginx.port, hops)], ...hops),
    ...(typeof rival.ports === "string" ? [] : [way("hyperdht", rival.ports, ...rival.programs)]),
  ];
  const before = [alice, bob].map(residentMb);
  console.log(table(await compete(contenders, rounds)));
  const after = [alice, bob].map(residentMb);
  const memory = before.map((mb, index) => `${mb.toFixed(0)} → ${after[index]!.toFixed(0)}`);
  console.log(`\nmemory of the two programs before and after, MB: ${memory.join(", ")}\n`);
  const rows = await pipes(people, introducer, gib);
  console.log(table([...rows, await files(people, introducer, sshd, gib)]));
  if (typeof rival.ports === "string") console.log(`\nwithout hyperdht: ${rival.ports}`);
  console.log(`
Medians of ${rounds} rounds of ${seconds} s, the contenders taking turns. ssh -L with AES-128-GCM; two hops: two processes
in Bun that do nothing but copy, without encryption; hyperdht: a stream of it for each connection, as holesail has. nginx
serves 1000 bytes, wrk asks on one thread. Processor: of all programs of a way, for a request.`);
}
