/**
 * From the `connect` command to a link that both sides can use, between the real programs, against what physics
 * asks for, through pairs of NATs that drop, that refuse, and that must be guessed. From before the command is
 * written to the asker's standard input until the later one has the link, by the `at` of its event.
 */
import { Lab, type Nat, type NatOptions } from "../lab/lab.ts";
import { now, People, Program, type ParticipantProgram } from "../lab/people.ts";
import { formatEndpoint } from "../../protocol.ts";
import { median, quick, table } from "./run.ts";

const oneWayDelaysMs = quick([20, 60], [20]);
const tries = quick(24, 1);
const floorTries = quick(12, 1);
/** How far ahead the moment lies at which both sides of a bare open start. */
const signalMs = 30;
const fixture = `${import.meta.dir}/simultaneous-open-fixture.ts`;

interface Pair {
  name: string;
  nats: [NatOptions, NatOptions];
  /** Median to physical limit. */
  goal: number;
  /** Whether the external ports are known beforehand, as a bare open needs them. */
  isKept: boolean;
}

const pairs: Pair[] = [
  { name: "both drop", nats: [{}, {}], goal: 1.1, isKept: true },
  {
    name: "both refuse (RST)",
    nats: [{ unsolicited: "reset" }, { unsolicited: "reset" }],
    goal: 1.5,
    isKept: true,
  },
  {
    name: "both refuse (ICMP)",
    nats: [{ unsolicited: "icmp" }, { unsolicited: "icmp" }],
    goal: 1.5,
    isKept: true,
  },
  { name: "birthday", nats: [{ mapping: "random" }, {}], goal: 2, isKept: false },
];

interface Result {
  coldMs: number;
  timesMs: number[];
  /** Of bare simultaneous opens, and how many of them never came about. */
  floorMs: number[];
  floorFailures: number;
}

// --- ours ------------------------------------------------------------------------------------------------

async function link(from: ParticipantProgram, to: ParticipantProgram): Promise<number> {
  const startedAt = now();
  from.type(`connect ${to.name}`);
  const both = await Promise.all([
    from.next("linked", undefined, 12_000),
    to.next("linked", undefined, 12_000),
  ]);
  from.type(`disconnect ${to.name}`);
  await Promise.all([from.next("unlinked"), to.next("unlinked")]);
  return Math.max(...both.map(({ at }) => at)) - startedAt;
}

/** The first try of fresh programs, then the others, each from new endpoints, either side asking in turn. */
async function measure(lab: Lab, [natA, natB]: [Nat, Nat], owdMs: number): Promise<[number, number[]]> {
  await using people = new People();
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const alice = await people.participant("alice", await lab.host("alice", { behind: natA }), introducer);
  const bob = await people.participant("bob", await lab.host("bob", { behind: natB }), introducer);
  await Promise.all([alice.next("mapping"), bob.next("mapping")]);
  const times: number[] = [];
  while (times.length <= tries) {
    if (times.length > 0) await Promise.all([alice.comesBack(), bob.comesBack()]);
    await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
    times.push(await (times.length % 2 === 0 ? link(alice, bob) : link(bob, alice)));
  }
  return [times[0]!, times.slice(1)];
}

// --- the floor -------------------------------------------------------------------------------------------

type FloorEvent = { event: "port"; port: number } | { event: "opened"; elapsedMs: number | null };

/** Bare simultaneous opens through the same NATs: until the later side has the other's byte. */
async function floor(lab: Lab, nats: [Nat, Nat]): Promise<(number | null)[]> {
  const sides = await Promise.all(
    nats.map(async (nat, index) => {
      const host = await lab.host(`bare${index}`, { behind: nat });
      const stdio = { stdin: "pipe", stdout: "pipe", stderr: "pipe" } as const;
      return new Program<FloorEvent>(host.name, host.spawn([process.execPath, fixture], stdio));
    }),
  );
  const results: (number | null)[] = [];
  for (let count = 0; count < floorTries; count++) {
    const ports = await Promise.all(sides.map((side) => side.next("port")));
    const endpoints = ports.map(({ port }, index) => formatEndpoint(nats[index]!.address, port));
    const startAt = now() + signalMs;
    for (const [index, side] of sides.entries()) side.type(`${endpoints[1 - index]} ${startAt}`);
    const opened = await Promise.all(sides.map((side) => side.next("opened")));
    const times = opened.map(({ elapsedMs }) => elapsedMs);
    results.push(times.some((time) => time === null) ? null : Math.max(...times.map(Number)));
  }
  await Promise.all(sides.map((side) => side.kill()));
  return results;
}

// --- the table -------------------------------------------------------------------------------------------

async function measurePair({ nats: [a, b], isKept }: Pair, delayMs: number): Promise<Result> {
  await using lab = await Lab.create();
  const owdMs = delayMs / 2;
  const nats: [Nat, Nat] = [await lab.nat("natA", { owdMs, ...a }), await lab.nat("natB", { owdMs, ...b })];
  const [coldMs, timesMs] = await measure(lab, nats, owdMs);
  const floors = isKept ? await floor(lab, nats) : [];
  const floorMs = floors.filter((one) => one !== null);
  return { coldMs, timesMs, floorMs, floorFailures: floors.length - floorMs.length };
}

export async function bench(): Promise<void> {
  const ms = (value: number) => value.toFixed(1);
  const ratio = (value: number) => `${value.toFixed(2)} ×`;
  const rows = [
    [
      "NATs",
      "one way",
      "limit",
      "cold",
      "median",
      "worst",
      "median ÷ limit",
      "goal",
      "bare open",
      "÷ 1.5 RTT",
    ],
  ];
  for (const delayMs of oneWayDelaysMs) {
    for (const pair of pairs) {
      // owd(A → I) + owd(I → B) + RTT(A, B) for TCP + RTT(A, B) for TLS 1.3
      const limitMs = delayMs + delayMs + 2 * (2 * delayMs);
      const { coldMs, timesMs, floorMs, floorFailures } = await measurePair(pair, delayMs);
      const bare = floorMs.length > 0 ? median(floorMs) : undefined;
      rows.push([
        pair.name,
        ms(delayMs),
        ms(limitMs),
        ms(coldMs),
        ms(median(timesMs)),
        ms(Math.max(...timesMs)),
        ratio(median(timesMs) / limitMs),
        `≤ ${ratio(pair.goal)}`,
        bare === undefined ? "" : `${ms(bare)}${floorFailures > 0 ? ` (${floorFailures} never)` : ""}`,
        bare === undefined ? "" : ratio(bare / (3 * delayMs)),
      ]);
      const all = timesMs.map(Math.round).join(" ");
      console.error(`${pair.name}, ${delayMs} ms: ${all}; bare ${floorMs.map(Math.round).join(" ")}`);
    }
  }
  console.log(table(rows));
  console.log(`
Milliseconds. Cold: the first try of programs just started. Then ${tries} tries, for each of which both have left and
come back, so that all endpoints are new; either side asks in turn. The limit is owd(A→I) + owd(I→B) + 2·RTT(A,B):
an introduction, TCP, TLS 1.3. Bare open: ${floorTries} simultaneous opens through the same NATs with known endpoints, both
started by a signal, without introducer and TLS, until both have a byte: 1.5 RTT at the least.`);
}
