/**
 * From the `connect` command to the asker's link, between the real programs, against the floor that physics sets, through
 * pairs of real NATs, far and near. Nobody is told `--direct`, so a try that was relayed first is seen.
 *
 *   bun run bench link [DELAYS | NATS | MODE | TRIES | TRACE ...]
 *
 *   DELAYS   one way from alice, bob and the introducer to the middle of the Internet in ms: 40,10,20
 *   NATS     alice's and bob's: drop:icmp, sequential:drop; `natKinds` has them all
 *   MODE     settled: all that can be known is known, the endpoints are new; again: disconnected a moment ago
 *   TRIES    of each cell
 *   TRACE    a file that gets a line for every packet of the last cell: trace=/tmp/packets
 */
import { Lab, type NatOptions } from "../lab/lab.ts";
import { type IntroducerProgram, now, People, type ParticipantProgram } from "../lab/people.ts";
import { median, quick, table } from "./run.ts";

const natKinds: Readonly<Record<string, NatOptions>> = {
  drop: {},
  rst: { unsolicited: "reset" },
  icmp: { unsolicited: "icmp" },
  sequential: { mapping: "sequential" },
  "sequential-256": { mapping: "sequential-256" },
  random: { mapping: "random" },
};
const kept = ["drop", "rst", "icmp"];
const dependent = ["sequential:drop", "drop:sequential", "sequential:sequential-256", "random:drop"];
const usualDelays = ["5,5,5", "10,10,10", "20,20,20", "30,30,30", "40,10,20", "10,40,20", "100,20,40"];
/** The pairs with ports that are not kept are tried at this distance alone. */
const dependentDelays = "10,10,10";
const modes = ["settled", "again"] as const;
const usualTries = quick(20, 2);
/** Longer than a punch may take. */
const deadlineMs = 14_000;

type Mode = (typeof modes)[number];

interface Cell {
  delays: string;
  nats: string;
  tries: number;
  modes: readonly Mode[];
}

interface Try {
  ms: number;
  isRelayed: boolean;
}

/** What a cell is held against: by its floor, in ms. */
interface Goal {
  median(floorMs: number): number;
  worst(floorMs: number): number;
}

const keptGoal: Goal = { median: (ms) => 1.15 * ms + 15, worst: (ms) => 2 * ms + 50 };
const sequentialGoal: Goal = { ...keptGoal, median: (ms) => 1.3 * ms + 20 };
const randomGoal: Goal = { median: (ms) => 1.6 * ms, worst: () => Infinity };

function goalOf(nats: string): Goal {
  if (nats.includes("random")) return randomGoal;
  return nats.includes("sequential") ? sequentialGoal : keptGoal;
}

/** owd(A→I) + owd(I→B) + 1.5 RTT(A,B): the introduction, the crossing SYNs, the client's TLS. */
function floorOf(delays: string): number {
  const [a, b, introducer] = delays.split(",").map(Number) as [number, number, number];
  return a + introducer + (introducer + b) + 3 * (a + b);
}

// --- a cell ----------------------------------------------------------------------------------------------

async function link(from: ParticipantProgram, to: ParticipantProgram): Promise<Try> {
  const startedAt = now();
  from.type(`connect ${to.name}`);
  const [{ at, route }] = await Promise.all([
    from.next("linked", undefined, deadlineMs),
    to.next("linked", undefined, deadlineMs),
  ]);
  return { ms: at - startedAt, isRelayed: route === "relay" };
}

async function bothUnlinked(a: ParticipantProgram, b: ParticipantProgram): Promise<void> {
  await Promise.all([a.next("unlinked"), b.next("unlinked")]);
}

type Everyone = Record<"alice" | "bob", ParticipantProgram> & { introducer: IntroducerProgram };

/** New endpoints of both, whose mapping and distance all know: what was remembered of them is only a guess. */
async function settle({ alice, bob, introducer }: Everyone): Promise<void> {
  await Promise.all([alice.comesBack(), bob.comesBack()]);
  await Promise.all([alice, bob].map((one) => introducer.next("mapping", ({ id }) => id === one.id)));
  await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
}

async function measureSettled(everyone: Everyone): Promise<Try> {
  const { alice, bob } = everyone;
  await settle(everyone);
  const result = await link(alice, bob);
  alice.type(`disconnect ${bob.name}`);
  await bothUnlinked(alice, bob);
  return result;
}

/** Asks again in the moment in which our side has heard that the link has ended. */
async function measureAgain({ alice, bob }: Everyone): Promise<Try> {
  const ended = bob.next("unlinked");
  alice.type(`disconnect ${bob.name}`);
  await alice.next("unlinked");
  const [result] = await Promise.all([link(alice, bob), ended]);
  return result;
}

async function measure({ delays, nats, tries, modes: wanted }: Cell, trace?: string) {
  const [a, b, introducerMs] = delays.split(",").map(Number) as [number, number, number];
  const [natA, natB] = nats.split(":").map((kind) => natKinds[kind]!);
  await using lab = await Lab.create(trace === undefined ? {} : { trace });
  await using people = new People();
  const introducer = await people.introducer(await lab.host("introducer", { owdMs: introducerMs }));
  const join = async (name: string, owdMs: number, options: NatOptions) => {
    const behind = await lab.nat(`${name}-nat`, { owdMs, ...options });
    return people.participant(name, await lab.host(name, { behind }), introducer);
  };
  const [alice, bob] = await Promise.all([join("alice", a, natA!), join("bob", b, natB!)]);
  await Promise.all([alice.next("mapping"), bob.next("mapping")]);
  const results = new Map<Mode, Try[]>();
  for (const mode of wanted) {
    if (mode === "again") {
      await settle({ alice, bob, introducer });
      await link(alice, bob);
    }
    const one = mode === "again" ? measureAgain : measureSettled;
    const all: Try[] = [];
    while (all.length < tries) all.push(await one({ alice, bob, introducer }));
    results.set(mode, all);
  }
  return results;
}

// --- the table -------------------------------------------------------------------------------------------

const heading = ["NATs", "delays", "", "floor", "median", "goal", "worst", "goal", "relayed first", ""];

function row({ delays, nats }: Cell, mode: Mode, tries: Try[]): string[] {
  const [floorMs, goal] = [floorOf(delays), goalOf(nats)];
  const times = tries.map(({ ms }) => ms);
  const [middle, worst] = [median(times), Math.max(...times)];
  const relayed = tries.filter(({ isRelayed }) => isRelayed).length;
  const isMet = middle <= goal.median(floorMs) && worst <= goal.worst(floorMs) && relayed === 0;
  const limit = (ms: number) => (ms === Infinity ? "" : `≤ ${ms.toFixed(0)}`);
  return [
    ...[nats.replace(":", " – "), delays, mode, floorMs.toFixed(0)],
    ...[middle.toFixed(1), limit(goal.median(floorMs))],
    ...[worst.toFixed(1), limit(goal.worst(floorMs)), `${relayed} of ${tries.length}`, isMet ? "" : "missed"],
  ];
}

function cellsOf(words: string[]): Cell[] {
  const isDelays = (word: string) => /^\d+,\d+,\d+$/.test(word);
  const isNats = (word: string) =>
    word.split(":").length === 2 && word.split(":").every((one) => natKinds[one]);
  const isMode = (word: string): word is Mode => modes.some((mode) => mode === word);
  const isTries = (word: string) => /^[1-9]\d*$/.test(word);
  const strange = words.find((word) => ![isDelays, isNats, isMode, isTries].some((is) => is(word)));
  if (strange !== undefined) throw new Error(`not DELAYS, NATS, MODE or TRIES: ${strange}`);
  const [delays, nats, wanted] = [words.filter(isDelays), words.filter(isNats), words.filter(isMode)];
  const tries = Number(words.find(isTries) ?? usualTries);
  const allKept = kept.flatMap((a) => kept.map((b) => `${a}:${b}`));
  const someDelays = delays.length > 0 ? delays : quick(usualDelays, ["5,5,5"]);
  const natsAt = (one: string) => {
    if (nats.length > 0) return nats;
    return quick(
      [...allKept, ...(one === dependentDelays ? dependent : [])],
      ["drop:icmp", "sequential:drop"],
    );
  };
  return someDelays.flatMap((one) =>
    natsAt(one).map((pair) => ({
      delays: one,
      nats: pair,
      tries,
      modes: wanted.length > 0 ? wanted : modes,
    })),
  );
}

export async function bench(args: string[]): Promise<void> {
  const traceOption = "trace=";
  const trace = args.find((word) => word.startsWith(traceOption))?.slice(traceOption.length);
  const cells = cellsOf(args.filter((word) => !word.startsWith(traceOption)));
  const rows = [heading];
  for (const cell of cells) {
    for (const [mode, tries] of await measure(cell, trace)) {
      rows.push(row(cell, mode, tries));
      const all = tries.map(({ ms, isRelayed }) => `${Math.round(ms)}${isRelayed ? " by relay" : ""}`);
      console.error(`${cell.nats} ${cell.delays} ${mode}: ${all.join(", ")}`);
    }
  }
  const missed = rows.filter((one) => one.at(-1) === "missed").length;
  console.log(table(rows));
  console.log(`
Milliseconds from \`connect\` to the asker's \`linked\`; ${cells[0]!.tries} tries a cell, alice asks, no --direct. Delays: one
way from alice, bob and the introducer to the middle of the Internet. The floor is owd(A→I) + owd(I→B) + 1.5 RTT(A,B).
settled: from new endpoints, with all known of each other. again: in the moment after a \`disconnect\`.
${missed} of ${rows.length - 1} rows miss a goal.`);
}
