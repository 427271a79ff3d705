/**
 * What a stream of a link carries, and what it costs, each against a floor in the same run: over loopback against bare
 * TLS and bare TCP with the same writes; a small stream beside a bulk one against the path's own round trip; a long fat
 * path against iperf3; by relay against direct; moving from one to the other; memory. Two processes, the real path:
 * channels on adopted descriptors, a session, its streams. Rivals take turns in every round.
 */
import { readFileSync } from "node:fs";
import type { Endpoint } from "../../protocol.ts";
import { Lab, unavailable } from "../lab/lab.ts";
import { People, thisHost, type Place } from "../lab/people.ts";
import { Ends } from "./ends.ts";
import { median, quick, table } from "./run.ts";
import { freePort } from "../sockets-fixture.ts";

const [mib, gib] = [1024 ** 2, 1024 ** 3];
/** A relay that is no bottleneck. */
const relayOptions = ["--relay-rate", "99G", "--relay-total", "99G"];

const loopback = {
  ...{ rounds: quick(7, 1), bytes: quick(gib, 16 * mib), warmUpBytes: quick(gib / 4, 4 * mib) },
  goal: 0.9,
};
const small = {
  ...{ rounds: quick(3, 1), owdMs: 20, upMbits: 50, bytes: quick(24, 3) * mib, goal: 2 },
  ...{ settleMs: quick(1_000, 200), times: quick(40, 4) },
};
const fat = { rounds: quick(3, 1), owdMs: 50, bytes: quick(96, 4) * mib, goal: 1 };
const move = {
  ...{ rounds: quick(3, 1), owdMs: 50, introducerMs: 10, upMbits: 100 },
  ...{ bytes: quick(48, 12) * mib, phaseMs: quick(1_200, 200) },
};
const memory = {
  ...{ warmUpBytes: quick(gib, 16 * mib), bytes: quick(10e9, 64e6), periodMs: quick(100, 20), streams: 32 },
  awayMs: quick(1_500, 200),
};

const times = (value: number) => `${value.toFixed(2)} ×`;
const milliseconds = (value: number) => `${value.toFixed(1)} ms`;
const mebibytes = (value: number) => `${value.toFixed(0)} MiB`;
const gigabits = (bytes: number, elapsedMs: number) => (bytes * 8) / elapsedMs / 1e6;

/** The middle one of what the rounds gave: rivals of one round had the same machine. */
function medianRatio(ours: number[], floor: number[]): number {
  return median(ours.map((one, round) => one / floor[round]!));
}

// --- over loopback ---------------------------------------------------------------------------------------

interface Rival {
  name: string;
  ends: Ends;
  streams: number;
  /** By way of an introducer on this host; connected once. */
  isRelayed?: true;
  goal?: string;
  gigabits: number[];
  /** Processor time of the two ends for a gigabyte. */
  busyMs: number[];
}

async function run({ ends, streams, isRelayed, ...rival }: Rival, isWarmUp: boolean): Promise<void> {
  if (!isRelayed) await ends.dial();
  const bytes = isWarmUp ? loopback.warmUpBytes : loopback.bytes;
  const busyMs = () => ends.sender.busyMs + ends.taker.busyMs;
  const from = busyMs();
  const elapsedMs = await ends.send(bytes, streams);
  if (isWarmUp) return;
  rival.gigabits.push(gigabits(bytes, elapsedMs));
  rival.busyMs.push(((busyMs() - from) * gib) / bytes);
}

async function overLoopback(): Promise<void> {
  await using people = new People();
  const introducer = await people.introducer(thisHost, freePort(), undefined, relayOptions);
  await using tcp = new Ends("tcp");
  await using tls = new Ends("tls");
  await using link = new Ends("link");
  await using relayed = new Ends("link");
  await relayed.relayBy(introducer.endpoint);
  const rival = (name: string, ends: Ends, streams = 1): Rival => ({
    ...{ name, ends, streams },
    ...(ends === relayed && { isRelayed: true }),
    ...(ends === link && { goal: `≥ ${times(loopback.goal)}` }),
    ...{ gigabits: [], busyMs: [] },
  });
  const [bareTcp, bareTls, direct] = [
    rival("bare TCP", tcp),
    rival("bare TLS", tls),
    rival("link, 1 stream", link),
  ];
  const others = [rival("link, 32 streams", link, 32), rival("link, 1,000 streams", link, 1000)];
  const byRelay = rival("link by relay, 1 stream", relayed);
  const rivals = [bareTcp, bareTls, direct, ...others, byRelay];
  for (let round = 0; round <= loopback.rounds; round++) {
    for (const one of rivals) await run(one, round === 0);
  }
  const rows = rivals.map((one) => [
    one.name,
    `${median(one.gigabits).toFixed(1)} Gbit/s`,
    `${Math.max(...one.gigabits).toFixed(1)}`,
    times(medianRatio(one.gigabits, bareTls.gigabits)),
    one.goal ?? "",
    times(medianRatio(one.gigabits, bareTcp.gigabits)),
    `${median(one.busyMs).toFixed(0)} ms/GiB`,
  ]);
  console.log(
    table([["loopback", "median", "best", "÷ bare TLS", "goal", "÷ bare TCP", "processor"], ...rows]),
  );
  console.log(`
By relay against direct: ${times(medianRatio(byRelay.gigabits, direct.gigabits))}; three processes share ${navigator.hardwareConcurrency} cores.
1 GiB in writes of 64 KiB, until the other process has all; medians of ${loopback.rounds} rounds, of ratios too.
Processor: both ends together, of their processor time.
`);
}

// --- a small stream beside a bulk one ----------------------------------------------------------------------

interface Beside {
  name: string;
  ends: Ends;
  /** Of the bulk. */
  streams: number;
  goal: string;
  medianMs: number[];
  worstMs: number[];
  megabits: number[];
}

async function besideBulk({ ends, streams, ...found }: Beside): Promise<void> {
  await ends.dial();
  const sent = ends.send(small.bytes, streams);
  await Bun.sleep(small.settleMs); // what is measured is bulk under way
  const roundTripsMs = await ends.ask(small.times, small.owdMs);
  found.medianMs.push(median(roundTripsMs));
  found.worstMs.push(Math.max(...roundTripsMs));
  found.megabits.push(gigabits(small.bytes, await sent) * 1000);
}

async function beside(): Promise<void> {
  await using lab = await Lab.create();
  const { owdMs, upMbits, goal } = small;
  const alice = await lab.host("alice", { owdMs: owdMs / 2, upMbits });
  const bob = await lab.host("bob", { owdMs: owdMs / 2, upMbits });
  await using link = new Ends("link", alice, bob);
  await using tls = new Ends("tls", alice, bob);
  const rival = (name: string, ends: Ends, streams = 1): Beside => ({
    ...{ name, ends, streams, goal: ends === link ? `≤ ${times(goal)}` : "" },
    ...{ medianMs: [], worstMs: [], megabits: [] },
  });
  const rivals = [
    rival("beside a bulk stream", link),
    rival("beside 8 of them", link, 8),
    rival("the same in one bare TLS", tls),
  ];
  const ownMs: number[] = [];
  for (let round = 0; round < small.rounds; round++) {
    await link.dial();
    ownMs.push(median(await link.ask(small.times / 2, 0)));
    for (const one of rivals) await besideBulk(one);
  }
  const rows = rivals.map((one) => [
    one.name,
    milliseconds(median(one.medianMs)),
    milliseconds(median(one.worstMs)),
    times(medianRatio(one.medianMs, ownMs)),
    one.goal,
    `${median(one.megabits).toFixed(1)} Mbit/s`,
  ]);
  const head = [`1 byte, ${upMbits} Mbit/s, ${owdMs} ms one way`, "round trip", "worst"];
  console.log(
    table([
      [...head, "÷ the path's", "goal", "bulk"],
      ["the path's own", milliseconds(median(ownMs)), "", times(1), "", ""],
      ...rows,
    ]),
  );
  const congestion = readFileSync("/proc/sys/net/ipv4/tcp_congestion_control", "utf8").trim();
  console.log(`
Medians of ${small.rounds} rounds of up to ${small.times} round trips while ${small.bytes / mib} MiB are sent. The path's queue holds 256 KiB, the
congestion control is ${congestion}. Bare TLS: the byte is in the next of the same writes of 64 KiB.
`);
}

// --- a long fat path ---------------------------------------------------------------------------------------

/** Bits a second that arrived, in Gbit/s. */
async function iperf(from: Place, to: Place, bytes: number): Promise<number> {
  const stdio = { stdin: "ignore", stdout: "pipe", stderr: "pipe" } as const;
  const server = to.spawn(["iperf3", "-s", "-1", "--forceflush"], stdio);
  for await (const chunk of server.stdout) if (new TextDecoder().decode(chunk).includes("listening")) break;
  const client = from.spawn(["iperf3", "-c", to.address, "-n", String(bytes), "-J"], stdio);
  const said = await new Response(client.stdout).text();
  await Promise.all([client.exited, server.exited]);
  const { end } = JSON.parse(said) as { end?: { sum_received?: { bits_per_second: number } } };
  if (!end?.sum_received) throw new Error(`iperf3 failed: ${said}`);
  return end.sum_received.bits_per_second / 1e9;
}

async function overFatPath(): Promise<void> {
  if (!Bun.which("iperf3")) return console.log("the long fat path: skipped, iperf3 is not installed\n");
  await using lab = await Lab.create();
  const alice = await lab.host("alice", { owdMs: fat.owdMs / 2 });
  const bob = await lab.host("bob", { owdMs: fat.owdMs / 2 });
  await using link = new Ends("link", alice, bob);
  await using tls = new Ends("tls", alice, bob);
  const found: Record<"link" | "tls" | "iperf3", number[]> = { link: [], tls: [], iperf3: [] };
  for (let round = 0; round < fat.rounds; round++) {
    for (const [name, ends] of [["link", link] as const, ["tls", tls] as const]) {
      await ends.dial();
      found[name].push(gigabits(fat.bytes, await ends.send(fat.bytes)));
    }
    found.iperf3.push(await iperf(alice, bob, fat.bytes));
  }
  const row = (name: string, list: number[], goal = "") => [
    name,
    `${(median(list) * 1000).toFixed(0)} Mbit/s`,
    times(medianRatio(list, found.iperf3)),
    goal,
  ];
  console.log(
    table([
      [`${2 * fat.owdMs} ms round trip, ${fat.bytes / mib} MiB`, "median", "÷ iperf3", "goal"],
      row("iperf3", found.iperf3),
      row("bare TLS", found.tls),
      row("link, 1 stream", found.link, `≥ ${times(fat.goal)}`),
    ]),
  );
  console.log(
    `\nMedians of ${fat.rounds} rounds, slow start included; packets go through one process in JavaScript.\n`,
  );
}

// --- moving --------------------------------------------------------------------------------------------------

interface Moved {
  dialMs: number;
  moveMs: number;
  gapMs: number;
  silenceMs: number;
  usualMs: number;
}

/** From relay to direct while bytes flow. */
async function moveOnce(ends: Ends, introducer: Endpoint): Promise<Moved> {
  await ends.relayBy(introducer);
  const sent = ends.send(move.bytes);
  await Bun.sleep(move.phaseMs); // what is measured is bulk under way
  await ends.silenceMs();
  await Bun.sleep(move.phaseMs);
  const usualMs = await ends.silenceMs();
  await ends.dial(true);
  const [ours, theirs] = await Promise.all([ends.sender.next("moved"), ends.taker.next("moved")]);
  await Bun.sleep(move.phaseMs);
  const silenceMs = await ends.silenceMs();
  await sent;
  const gapMs = Math.max(ours.gapMs, theirs.gapMs);
  return { dialMs: ours.dialMs, moveMs: ours.moveMs, gapMs, silenceMs, usualMs };
}

async function moving(): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  const server = await lab.host("introducer", { owdMs: move.introducerMs });
  const introducer = await people.introducer(server, undefined, undefined, relayOptions);
  const { upMbits } = move;
  const alice = await lab.host("alice", { owdMs: move.owdMs / 2, upMbits });
  const bob = await lab.host("bob", { owdMs: move.owdMs / 2, upMbits });
  const found: Moved[] = [];
  for (let round = 0; round < move.rounds; round++) {
    await using ends = new Ends("link", alice, bob);
    found.push(await moveOnce(ends, introducer.endpoint));
  }
  const row = (name: string, of: (one: Moved) => number) => [
    name,
    milliseconds(median(found.map(of))),
    milliseconds(Math.max(...found.map(of))),
  ];
  console.log(
    table([
      [`relay → direct, ${upMbits} Mbit/s, ${2 * move.owdMs} ms round trip`, "median", "worst"],
      row("TCP and TLS of the new channel", ({ dialMs }) => dialMs),
      row("the move, from there", ({ moveMs }) => moveMs),
      row("gapMs as both sides report it", ({ gapMs }) => gapMs),
      row("longest time without a byte, around it", ({ silenceMs }) => silenceMs),
      row("- in as long a time before", ({ usualMs }) => usualMs),
    ]),
  );
  console.log(`\n${move.rounds} moves under a running transfer, make before break.\n`);
}

// --- memory ------------------------------------------------------------------------------------------------

async function inMemory(): Promise<void> {
  await using ends = new Ends("link");
  const both = [ends.sender, ends.taker];
  await ends.dial();
  await ends.send(memory.warmUpBytes);
  const warm = both.map((end) => end.residentMib);
  const most = [0, 0];
  const look = setInterval(() => {
    for (const [index, end] of both.entries()) most[index] = Math.max(most[index]!, end.residentMib);
  }, memory.periodMs);
  const elapsedMs = await ends.send(memory.bytes);
  clearInterval(look);
  const after = both.map((end) => end.residentMib);
  await ends.dial();
  const sent = ends.send(memory.warmUpBytes * quick(1, 16), memory.streams);
  await Bun.sleep(memory.periodMs);
  ends.sender.tell({ type: "drop" });
  await Promise.all([ends.sender.next("dropped"), ends.taker.next("dropped")]);
  await Bun.sleep(memory.awayMs); // in which writers write on
  ends.sender.tell({ type: "kept" });
  const { bytes: kept } = await ends.sender.next("kept");
  const away = both.map((end) => end.residentMib);
  await ends.dial(true);
  await sent;
  const row = (name: string, [sender, taker]: number[]) => [name, mebibytes(sender!), mebibytes(taker!)];
  console.log(
    table([
      ["resident", "sender", "taker"],
      row(`after ${memory.warmUpBytes / gib} GiB`, warm),
      row(`most during 10 GB (${gigabits(memory.bytes, elapsedMs).toFixed(1)} Gbit/s)`, most),
      row("after them", after),
      row(`without a carrier for ${memory.awayMs / 1000} s, ${memory.streams} writers`, away),
    ]),
  );
  console.log(`
Without a carrier ${(kept / mib).toFixed(1)} MiB were kept for the next one (at most 64): nothing more is framed, and a stream takes
256 KiB before its writer has to wait.
`);
}

// --- all of it ---------------------------------------------------------------------------------------------

const parts: Record<string, { needsLab: boolean; measure: () => Promise<void> }> = {
  loopback: { needsLab: false, measure: overLoopback },
  beside: { needsLab: true, measure: beside },
  fat: { needsLab: true, measure: overFatPath },
  move: { needsLab: true, measure: moving },
  memory: { needsLab: false, measure: inMemory },
};

/** All parts, or those that are named. */
export async function bench(names: string[]): Promise<void> {
  for (const [name, { needsLab, measure }] of Object.entries(parts)) {
    if (names.length > 0 && !names.includes(name)) continue;
    if (needsLab && unavailable !== undefined) console.log(`${name}: skipped, ${unavailable}\n`);
    else await measure();
  }
}
