/**
 * Every kind of NAT against every other: whether the real programs link, and how long it takes from the `connect`
 * command until both have the link. `bun run bench matrix [N [programs | PAIR ...]]`: N tries a pair; `programs`: the
 * kinds that netfilter can't be, each against those that it can.
 */
import { Lab, type Host, type ProgramOptions } from "../lab/lab.ts";
import { now, People, type IntroducerProgram, type ParticipantProgram } from "../lab/people.ts";
import {
  behind,
  behindFirewall,
  behindProgram,
  behindTwo,
  introducerOfTwo,
  loaded,
  open,
  programKinds,
  type Side,
} from "../lab/sides.ts";
import { isQuick, median, quick } from "./run.ts";

/** One-way delay of each site, so 20 ms between any two. */
const owdMs = 10;
/** Longer than a punch may take. */
const deadlineMs = 14_000;
/** In this time a neighbour opens twenty connections, more than are dialled by prediction. */
const busyRestMs = 2_000;

/** `isDependent`: its ports change with the destination; `isRandom`: and can't be predicted. */
interface Kind {
  name: string;
  side: Side;
  isDependent?: boolean;
  isRandom?: boolean;
  /** Whether it goes on by itself: what was measured when the pair met is old then. */
  isBusy?: boolean;
}

const kinds: Kind[] = [
  { name: "open host", side: open({ owdMs }) },
  { name: "firewall", side: behindFirewall({ owdMs }) },
  { name: "kept, drop", side: behind({ owdMs }) },
  { name: "kept, RST", side: behind({ owdMs, unsolicited: "reset" }) },
  { name: "kept, ICMP", side: behind({ owdMs, unsolicited: "icmp" }) },
  { name: "kept, two levels", side: behindTwo({}, { owdMs }) },
  { name: "sequential", side: behind({ owdMs, mapping: "sequential" }), isDependent: true },
  {
    name: "sequential, busy",
    side: loaded(behind({ owdMs, mapping: "sequential" })),
    isDependent: true,
    isBusy: true,
  },
  { name: "random", side: behind({ owdMs, mapping: "random" }), isDependent: true, isRandom: true },
];

/** Of a quick run: one with each way. */
const quickKinds = ["kept, drop", "sequential", "random"];

const programs = Object.entries<ProgramOptions>(programKinds).map(([name, program]): Kind => {
  const { mapping = "endpoint-independent", allocation, pooling } = program;
  const isDependent = mapping !== "endpoint-independent" && allocation !== "overloading";
  const isCounted = typeof allocation === "object" && "step" in allocation && pooling !== "arbitrary";
  return { name, side: behindProgram(program, { owdMs }), isDependent, isRandom: isDependent && !isCounted };
});

interface Cell {
  /** Of those that linked. */
  timesMs: number[];
  reasons: string[];
}

/** Until both have the link, or the diagnosis. */
async function link(from: ParticipantProgram, to: ParticipantProgram): Promise<number | string> {
  const startedAt = now();
  from.type(`connect ${to.name}`);
  // Whoever waits on must not take what the next try waits for.
  const over = new AbortController();
  const isWanted = () => !over.signal.aborted;
  const linked = Promise.all([from, to].map((one) => one.next("linked", isWanted, deadlineMs)));
  const failure = from.next("failed", isWanted, deadlineMs);
  const outcome = await Promise.race([linked, failure]).catch((error: unknown) => String(error));
  over.abort();
  linked.catch(() => {});
  failure.catch(() => {});
  if (typeof outcome === "string") return "no answer";
  if (!Array.isArray(outcome)) return outcome.reason;
  from.type(`disconnect ${to.name}`);
  await Promise.all([from, to].map((one) => one.next("unlinked")));
  return Math.max(...outcome.map(({ at }) => at)) - startedAt;
}

/** Whether both know how each other's NAT maps; one that has no port left can't measure. */
async function meet(a: ParticipantProgram, b: ParticipantProgram, isAnew: boolean): Promise<boolean> {
  try {
    if (isAnew) await Promise.all([a.comesBack(), b.comesBack()]);
    await Promise.all([a.knowsMapping(b), b.knowsMapping(a)]);
    return true;
  } catch {
    return false;
  }
}

async function tryPair(
  people: People,
  introducer: IntroducerProgram,
  hosts: [Host, Host],
  tries: number,
  restMs: number,
): Promise<Cell> {
  const room = crypto.randomUUID();
  const pair = await Promise.all([
    people.participant("alice", hosts[0], introducer, ["--room", room, "--direct"]),
    people.participant("bob", hosts[1], introducer, ["--room", room, "--direct"]),
  ]);
  const [alice, bob] = pair;
  await Promise.all(pair.map((one) => one.next("mapping")));
  const cell: Cell = { timesMs: [], reasons: [] };
  for (let index = 0; index < tries; index++) {
    const [from, to] = index % 2 === 0 ? [alice, bob] : [bob, alice];
    const isReady = await meet(alice, bob, index > 0);
    if (isReady) await Bun.sleep(restMs);
    const outcome = isReady ? await link(from, to) : "not measured";
    if (typeof outcome === "number") cell.timesMs.push(outcome);
    else cell.reasons.push(outcome);
  }
  await Promise.all(pair.map((one) => one.kill()));
  return cell;
}

/** Random ports can only be guessed from a fixed one, and nobody can guess both. */
function isPossible(a: Kind, b: Kind): boolean {
  return !(a.isRandom && b.isDependent) && !(b.isRandom && a.isDependent);
}

function cellText(cell: Cell | undefined, tries: number): string {
  if (!cell) return "";
  const count = cell.timesMs.length;
  if (count === 0) return [...new Set(cell.reasons)].join(", ");
  const time = `${median(cell.timesMs).toFixed(0)} ms`;
  return count === tries ? time : `${count}/${tries}, ${time}`;
}

/** What is tried: every row with every column, as far as it `isWanted`. */
interface Plan {
  rows: Kind[];
  columns: Kind[];
  isWanted: (row: Kind, column: Kind) => boolean;
}
type Pair = { row: Kind; column: Kind; cell: Cell };

function plan(wanted: string[]): Plan {
  if (wanted[0] === "programs") return { rows: programs, columns: kinds, isWanted: () => true };
  if (wanted.length === 0) {
    const some = isQuick ? kinds.filter(({ name }) => quickKinds.includes(name)) : kinds;
    return { rows: some, columns: some, isWanted: (a, b) => kinds.indexOf(b) <= kinds.indexOf(a) };
  }
  const isWanted = (a: Kind, b: Kind) => wanted.includes(`${a.name}/${b.name}`);
  const every = [...kinds, ...programs];
  return {
    rows: every.filter((a) => every.some((b) => isWanted(a, b))),
    columns: every.filter((b) => every.some((a) => isWanted(a, b))),
    isWanted,
  };
}

async function tryAll({ rows, columns, isWanted }: Plan, tries: number): Promise<Pair[]> {
  await using lab = await Lab.create();
  await using people = new People();
  const introducer = await introducerOfTwo(lab, people, { owdMs });
  const hosts = async (of: Kind[], letter: string) => {
    const made = new Map<Kind, Host>();
    for (const [index, kind] of of.entries()) made.set(kind, await kind.side(lab, `${letter}${index}`));
    return made;
  };
  const [rowHosts, columnHosts] = [await hosts(rows, "a"), await hosts(columns, "b")];
  const pairs: Pair[] = [];
  for (const row of rows) {
    for (const column of columns.filter((one) => isWanted(row, one))) {
      const pair: [Host, Host] = [rowHosts.get(row)!, columnHosts.get(column)!];
      const restMs = row.isBusy || column.isBusy ? busyRestMs : 0;
      const cell = await tryPair(people, introducer, pair, tries, restMs);
      pairs.push({ row, column, cell });
      const times = cell.timesMs.map(Math.round).join(" ");
      console.error(`${row.name} ↔ ${column.name}: ${cellText(cell, tries)} (${times})`);
    }
  }
  return pairs;
}

function pairText({ row, column, cell: { timesMs, reasons } }: Pair, tries: number): string {
  const why = Object.entries(Object.groupBy(reasons, (reason) => reason))
    .map(([reason, all]) => `, ${all!.length} × ${reason}`)
    .join("");
  const linked = `${row.name} ↔ ${column.name}: ${timesMs.length} of ${tries} linked${why}`;
  if (timesMs.length === 0) return linked;
  return `${linked}, median ${median(timesMs).toFixed(0)} ms, worst ${Math.max(...timesMs).toFixed(0)} ms`;
}

function tableText({ rows, columns }: Plan, pairs: Pair[], tries: number): string {
  const line = (...cells: string[]) => `| ${cells.join(" | ")} |`;
  const cellOf = (row: Kind, column: Kind) =>
    pairs.find((pair) => pair.row === row && pair.column === column)?.cell;
  return [
    line("", ...columns.map(({ name }) => name)),
    line("---", ...columns.map(() => "---:")),
    ...rows.map((row) => line(row.name, ...columns.map((column) => cellText(cellOf(row, column), tries)))),
  ].join("\n");
}

/**
 * Arguments: the tries a pair; then `programs`, or, to try some pairs only, their names such as `sequential/random`.
 */
export async function bench([word = quick("10", "1"), ...wanted]: string[]): Promise<void> {
  const tries = Number(word);
  if (!Number.isInteger(tries) || tries < 1) throw new RangeError(`not a number of tries: ${word}`);
  const startedAt = now();
  const planned = plan(wanted);
  const pairs = await tryAll(planned, tries);
  if (wanted.length > 0 && wanted[0] !== "programs") {
    for (const pair of pairs) console.log(pairText(pair, tries));
    return;
  }
  const possible = pairs.filter(({ row, column }) => isPossible(row, column));
  const failures = possible.reduce((sum, { cell }) => sum + cell.reasons.length, 0);
  const all = possible.flatMap(({ cell }) => cell.timesMs);
  console.log(tableText(planned, pairs, tries));
  console.log(`
${tries} tries a pair, either side asking in turn, each after both have left and come back, with a busy NAT ${busyRestMs / 1000} s later; the
median from \`connect\` until both have the link, with 20 ms one way between any two. A lone time: all linked.
Possible in theory: ${possible.length} pairs, ${possible.length * tries} tries; ${failures} of them failed, ${possible.filter(({ cell }) => cell.reasons.length > 0).length} pairs with a failure.
Slowest link: ${Math.max(...all).toFixed(0)} ms; ${((now() - startedAt) / 60_000).toFixed(1)} minutes in all.`);
}
