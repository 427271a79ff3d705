/**
 * What forwards, pipes and files cost over loopback, between the real programs: iperf3 and nginx directly, by a forward,
 * by `ssh -L` and by two bare hops in Bun; a pipe against `cat | nc`; a file against scp. The contenders take turns.
 * `bun run bench forward [ROUNDS [GIB]]`.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { noNginx, Nginx } from "../lab/nginx.ts";
import { People, root, thisHost, type IntroducerProgram, type ParticipantProgram } from "../lab/people.ts";
import { noSshd, Sshd } from "../lab/sshd.ts";
import { freePort } from "../sockets-fixture.ts";
import { median, quick, table } from "./run.ts";

/** Of each measure in each round. */
const seconds = quick(2, 1);
const connectionCounts = quick([1, 32, 1000], [1]);
/** What iperf3 sends: for that time, or so much. */
const amount = quick(["-t", `${seconds}`], ["-n", "8M"]);
/** A server of iperf3 serves one client at a time, and sees the end of the last a moment after us. */
const busyPauseMs = 50;
const busyDeadlineMs = 5_000;
const room = ["--room", "of-the-bench"];
const cipher = ["-c", "aes128-gcm@openssh.com"];

/** A way to a port: the port on this side of it. */
interface Contender {
  name: string;
  iperf: number;
  http: number;
}
type Measure = (contender: Contender) => Promise<number>;

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
  async bare(port: number): Promise<number> {
    for (let hop = 0; hop < 2; hop++) {
      const program = this.start([process.execPath, `${import.meta.dir}/copy-fixture.ts`, String(port)]);
      const { value } = await program.stdout.getReader().read();
      port = Number(new TextDecoder().decode(value));
    }
    return port;
  }

  async ssh(sshd: Sshd, ports: number[]): Promise<number[]> {
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
    this.start(["ssh", ...options, "-N", ...specs, "bob@127.0.0.1"]);
    await connectable(listen.at(-1)!); // iperf3, behind the first one, takes everybody for a client
    return listen;
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
      if (report.end?.sum_received) return report.end.sum_received.bits_per_second / 1e9;
      if (!report.error?.includes("busy") || performance.now() > deadline)
        throw new Error(`iperf3: ${report.error}`);
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
    return Number(/Requests\/sec:\s+([\d.]+)/.exec(report)![1]);
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

const goals: Record<string, number> = {
  "iperf3, Gbit/s": 1.3,
  "iperf3 -R, Gbit/s": 1.3,
  "new connections/s": 2.2,
};

/** Every contender once in every round, so that what else the machine does meets all of them. */
async function compete(contenders: Contender[], rounds: number): Promise<string[][]> {
  const rows = [["", ...contenders.map(({ name }) => name), "÷ ssh -L", "goal", "÷ two hops"]];
  for (const [name, digits, measure] of measures) {
    const results = contenders.map((): number[] => []);
    for (let round = 0; round < rounds; round++) {
      for (const [index, contender] of contenders.entries()) results[index]!.push(await measure(contender));
    }
    const medians = results.map(median);
    const [, ours, ssh, bare] = medians as [number, number, number, number];
    const ratios = [(ours / ssh).toFixed(2), `≥ ${(goals[name] ?? 1).toFixed(1)}`, (ours / bare).toFixed(2)];
    rows.push([name, ...medians.map((value) => value.toFixed(digits)), ...ratios]);
    console.error(
      `${name}: ${results.map((all) => all.map((one) => one.toFixed(digits)).join(" ")).join(" | ")}`,
    );
    if (name.startsWith("requests/s, 1 "))
      rows.push([
        "  so added latency, µs",
        ...medians.map((one) => (1e6 / one - 1e6 / medians[0]!).toFixed(0)),
        "",
        "",
        "",
      ]);
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
  const [iperfSsh, httpSsh] = await ways.ssh(sshd, [iperf, nginx.port]);
  const contenders = [
    { name: "direct", iperf, http: nginx.port },
    { name: "forward", iperf: iperfHere, http: httpHere },
    { name: "ssh -L", iperf: iperfSsh!, http: httpSsh! },
    { name: "two hops", iperf: await ways.bare(iperf), http: await ways.bare(nginx.port) },
  ];
  const before = [alice, bob].map(residentMb);
  console.log(table(await compete(contenders, rounds)));
  const after = [alice, bob].map(residentMb);
  const memory = before.map((mb, index) => `${mb.toFixed(0)} → ${after[index]!.toFixed(0)}`);
  console.log(`\nmemory of the two programs before and after, MB: ${memory.join(", ")}\n`);
  const rows = await pipes(people, introducer, gib);
  console.log(table([...rows, await files(people, introducer, sshd, gib)]));
  console.log(`
Medians of ${rounds} rounds of ${seconds} s, the contenders taking turns. ssh -L with AES-128-GCM; two hops: two processes
in Bun that do nothing but copy, without encryption. nginx serves 1000 bytes, wrk asks on one thread.`);
}
