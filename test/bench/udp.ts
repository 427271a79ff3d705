/**
 * What forwards of UDP cost: the round trip of a datagram of 100 bytes, alone and beside bulk on the same link, against the
 * path's own; and what iperf3 loses over loopback at 50 Mbit/s. Between the real programs. `bun run bench udp [ROUNDS]`.
 */
import { Lab, unavailable, type Host } from "../lab/lab.ts";
import type { ForwardRow } from "../../native/uses/forwards.ts";
import { type ParticipantProgram, People, thisHost, type Place } from "../lab/people.ts";
import { freePort } from "../sockets-fixture.ts";
import { median, quick, table } from "./run.ts";

const fixture = `${import.meta.dir}/udp-fixture.ts`;
const mib = 1024 ** 2;
const room = ["--room", "of-the-udp-bench"];
const path = { owdMs: 20, upMbits: 50 };
const beside = { times: quick(60, 4), bytes: quick(48, 2) * mib, settleMs: quick(1_500, 200), goal: 2 };
/** Of iperf3; datagrams as long as it makes them by itself, and as long as a path takes whole. */
const iperf = { seconds: quick(5, 1), rate: "50M", lengths: ["32K", "1200"] };

interface Asked {
  took: number[];
  lost: number;
}

/** Runs a program to its end; returns what it printed. */
async function output(place: Place, command: string[]): Promise<string> {
  const program = place.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  const said = await program.stdout.text();
  if ((await program.exited) !== 0) throw new Error(`${command.join(" ")} failed: ${said}`);
  return said;
}

const run = async (place: Place, ...args: (string | number)[]): Promise<unknown> =>
  JSON.parse(await output(place, [process.execPath, fixture, ...args.map(String)]));

// --- beside bulk -----------------------------------------------------------------------------------------

interface Way {
  name: string;
  address: string;
  port: number;
  isBesideBulk: boolean;
  goal: string;
  medianMs: number[];
  worstMs: number[];
  lost: number;
  megabits: number[];
}

async function measure(alice: Host, way: Way, bulkPort: number): Promise<void> {
  const bulk = way.isBesideBulk ? run(alice, "bulk", bulkPort, beside.bytes) : undefined;
  if (bulk) await Bun.sleep(beside.settleMs); // what is measured is bulk under way
  const { took, lost } = (await run(alice, "ask", way.address, way.port, beside.times)) as Asked;
  way.medianMs.push(median(took));
  way.worstMs.push(Math.max(...took));
  way.lost += lost;
  if (bulk) way.megabits.push((beside.bytes * 8) / 1000 / ((await bulk) as number));
}

async function besideBulk(rounds: number): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const wan = { owdMs: path.owdMs / 2, upMbits: path.upMbits };
  const [alice, bob] = [await lab.host("alice", wan), await lab.host("bob", wan)];
  const introducer = await people.introducer(await lab.host("introducer", { owdMs: 5 }));
  const [udp, tcp] = [freePort(), freePort()];
  const server = bob.spawn([process.execPath, fixture, "serve", String(udp), String(tcp)], {
    ...({ stdin: "ignore", stdout: "pipe", stderr: "inherit" } as const),
  });
  await server.stdout.getReader().read();
  const rules = ["--allow", `${udp}/udp`, "--allow", `${tcp}`, "--stay"];
  await people.participant("bob", bob, introducer, [...room, ...rules]);
  const specs = ["-L", `${udp}/udp:bob:${udp}/udp`, "-L", `${tcp}:bob:${tcp}`];
  const program = await people.participant("alice", alice, introducer, [...room, ...specs]);
  await program.next("linked");
  const way = (name: string, address: string, isBesideBulk: boolean, goal = ""): Way => ({
    ...{ name, address, port: udp, isBesideBulk, goal, medianMs: [], worstMs: [], lost: 0, megabits: [] },
  });
  const ways = [
    way("the path's own", bob.address, false),
    way("by a forward", "127.0.0.1", false),
    way("by a forward, beside bulk", "127.0.0.1", true, `≤ ${beside.goal.toFixed(2)} ×`),
    way("the path's, beside that bulk", bob.address, true),
  ];
  for (let round = 0; round < rounds; round++) for (const one of ways) await measure(alice, one, tcp);
  server.kill();
  const [own] = ways as [Way];
  const head = [`100 bytes, ${path.upMbits} Mbit/s, ${path.owdMs} ms one way`, "round trip", "worst"];
  const rows = ways.map(({ name, medianMs, worstMs, lost, goal, megabits }) => [
    name,
    `${median(medianMs).toFixed(1)} ms`,
    `${Math.max(...worstMs).toFixed(1)} ms`,
    `${median(medianMs.map((one, round) => one / own.medianMs[round]!)).toFixed(2)} ×`,
    goal,
    `${lost} of ${rounds * beside.times}`,
    megabits.length > 0 ? `${median(megabits).toFixed(1)} Mbit/s` : "",
  ]);
  console.log(table([[...head, "÷ the path's", "goal", "lost", "bulk"], ...rows]));
  console.log(`
Medians of ${rounds} rounds of ${beside.times} round trips, one each 25 ms; the bulk is ${beside.bytes / mib} MiB by a forward of TCP on the same link. The
path's queue holds 256 KiB.
`);
}

// --- loss ------------------------------------------------------------------------------------------------

interface Report {
  error?: string;
  end?: { sum?: { packets: number; lost_packets: number; jitter_ms: number; bits_per_second: number } };
}

/** How many datagrams either program has dropped so far, as late. */
async function dropped(alice: ParticipantProgram): Promise<number> {
  alice.type("forwards");
  const { forwards } = (await alice.next("forwards" as "error")) as unknown as { forwards: ForwardRow[] };
  return forwards.reduce((sum, row) => sum + (row.dropped ?? 0), 0);
}

async function lossOf(port: number, length: string, ...options: string[]): Promise<string[]> {
  const amount = ["-u", "-b", iperf.rate, "-t", String(iperf.seconds), "-l", length];
  const command = ["iperf3", "-c", "127.0.0.1", "-p", String(port), ...amount, "-J", ...options];
  for (;;) {
    const program = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
    const { error, end } = JSON.parse(await program.stdout.text()) as Report;
    // A server of iperf3 serves one client at a time, and sees the end of the last a moment after us.
    if (error?.includes("busy")) await Bun.sleep(50);
    else if (!end?.sum) throw new Error(`iperf3: ${error}`);
    else {
      const { packets, lost_packets: lost, jitter_ms: jitterMs, bits_per_second: bits } = end.sum;
      return [`${lost} of ${packets}`, `${(bits / 1e6).toFixed(1)} Mbit/s`, `${jitterMs.toFixed(2)} ms`];
    }
  }
}

async function loss(rounds: number): Promise<void> {
  if (!Bun.which("iperf3")) return console.log("loss: skipped, not installed: iperf3\n");
  await using people = new People();
  const [there, here] = [freePort(), freePort()];
  const server = Bun.spawn(["iperf3", "-s", "-B", "127.0.0.1", "-p", String(there), "--forceflush"], {
    ...({ stdin: "ignore", stdout: "pipe", stderr: "ignore" } as const),
  });
  const reader = server.stdout.getReader();
  await reader.read();
  const drain = async (): Promise<void> => ((await reader.read()).done ? undefined : drain());
  void drain();
  const introducer = await people.introducer(thisHost, freePort());
  const rules = ["--allow", `${there}/udp`, "--allow", `${there}`, "--stay"];
  await people.participant("bob", thisHost, introducer, [...room, ...rules]);
  // iperf3 also talks over TCP, to a port of the same number.
  const specs = ["-L", `${here}/udp:bob:${there}/udp`, "-L", `${here}:bob:${there}`];
  const alice = await people.participant("alice", thisHost, introducer, [...room, ...specs]);
  await alice.next("linked");
  const rows: string[][] = [];
  for (let round = 0; round < rounds; round++)
    for (const length of iperf.lengths)
      for (const [direction, ...options] of [["to the peer"], ["from the peer", "-R"]] as string[][]) {
        const what = `${length}, ${direction}`;
        rows.push([`direct, ${what}`, ...(await lossOf(there, length, ...options)), "", ""]);
        const before = await dropped(alice);
        const lost = await lossOf(here, length, ...options);
        rows.push([`by a forward, ${what}`, ...lost, `${(await dropped(alice)) - before}`, "0"]);
      }
  server.kill();
  console.log(
    table([
      [`iperf3 -u -b ${iperf.rate}, loopback`, "lost", "arrived", "jitter", "of which late", "goal"],
      ...rows,
    ]),
  );
}

export async function bench([roundsText = quick("3", "1")]: string[]): Promise<void> {
  const rounds = Number(roundsText);
  if (unavailable !== undefined) console.log(`beside bulk: skipped, ${unavailable}\n`);
  else await besideBulk(rounds);
  await loss(rounds);
}
