/**
 * Every kind of NAT against every other: whether the real programs link, and how long it takes from the `connect`
 * command until both have the link. `bun run bench matrix [N [PAIR ...]]`: N tries a pair.
 */
import { Lab, type Host } from "../lab/lab.ts";
import { now, People, type IntroducerProgram, type ParticipantProgram } from "../lab/people.ts";
import { behind, behindFirewall, behindTwo, loaded, open, type Side } from "../lab/sides.ts";
import { median } from "./run.ts";

/** One-way delay of each site, so 20 ms between any two. */
const owdMs = 10;
/** Longer than a punch may take. */
const deadlineMs = 14_000;

/** `isDependent`: its ports change with the destination; `isRandom`: and can't be predicted. */
interface Kind {
  name: string;
  side: Side;
  isDependent?: boolean;
  isRandom?: boolean;
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
  },
  { name: "random", side: behind({ owdMs, mapping: "random" }), isDependent: true, isRandom: true },
];

interface Cell {
  /** Of those that linked. */
  timesMs: number[];
  reasons: string[];
}

/** Until both have the link, or the diagnosis. */
async function link(from: ParticipantProgram, to: ParticipantProgram): Promise<number | string> {
  const startedAt = now();
  from.type(`connect ${to.name}`);
  const failed = new AbortController();
  const linked = Promise.all([from, to].map((one) => one.next("linked", () => true, deadlineMs)));
  const failure = from.next("failed", () => !failed.signal.aborted, deadlineMs);
  const outcome = await Promise.race([linked, failure]).catch((error: unknown) => String(error));
  failed.abort();
  linked.catch(() => {});
  failure.catch(() => {});
  if (typeof outcome === "string") return "no answer";
  if (!Array.isArray(outcome)) return outcome.reason;
  from.type(`disconnect ${to.name}`);
  await Promise.all([from, to].map((one) => one.next("unlinked")));
  return Math.max(...outcome.map(({ at }) => at)) - startedAt;
}

async function tryPair(
  people: People,
  introducer: IntroducerProgram,
  hosts: [Host, Host],
  tries: number,
): Promise<Cell> {
  const room = crypto.randomUUID();
  const pair = await Promise.all([
    people.participant("alice", hosts[0], introducer, ["--room", room]),
    people.participant("bob", hosts[1], introducer, ["--room", room]),
  ]);
  const [alice, bob] = pair;
  await Promise.all(pair.map((one) => one.next("mapping")));
  const cell: Cell = { timesMs: [], reasons: [] };
  for (let index = 0; index < tries; index++) {
    if (index > 0) await Promise.all(pair.map((one) => one.comesBack()));
    await Promise.all([alice.knowsMapping(bob), bob.knowsMapping(alice)]);
    const [from, to] = index % 2 === 0 ? [alice, bob] : [bob, alice];
    const outcome = await link(from, to);
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

/** Arguments: the tries a pair; then, to try some pairs only, their names such as `sequential/random`. */
export async function bench([word = "10", ...wanted]: string[]): Promise<void> {
  const tries = Number(word);
  if (!Number.isInteger(tries) || tries < 1) throw new RangeError(`not a number of tries: ${word}`);
  await using lab = await Lab.create();
  await using people = new People();
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const hosts: [Host, Host][] = [];
  for (const [index, { side }] of kinds.entries()) {
    hosts.push([await side(lab, `a${index}`), await side(lab, `b${index}`)]);
  }

  const startedAt = now();
  const cells = kinds.map((): Cell[] => []);
  for (const [row, a] of kinds.entries()) {
    for (const [column, b] of kinds.entries()) {
      if (column > row || (wanted.length > 0 && !wanted.includes(`${a.name}/${b.name}`))) continue;
      const cell = await tryPair(people, introducer, [hosts[row]![0], hosts[column]![1]], tries);
      cells[row]![column] = cell;
      console.error(
        `${a.name} ↔ ${b.name}: ${cellText(cell, tries)} (${cell.timesMs.map(Math.round).join(" ")})`,
      );
    }
  }

  const pairs = kinds.flatMap((a, row) =>
    kinds.flatMap((b, column) => {
      const cell = cells[row]![column];
      return cell ? [{ a, b, cell }] : [];
    }),
  );
  if (wanted.length > 0) {
    for (const { a, b, cell } of pairs) {
      const worst = Math.max(...cell.timesMs).toFixed(0);
      console.log(
        `${a.name} ↔ ${b.name}: ${cell.timesMs.length} of ${tries} linked, median ${median(cell.timesMs).toFixed(0)} ms, worst ${worst} ms`,
      );
    }
    return;
  }
  const possible = pairs.filter(({ a, b }) => isPossible(a, b));
  const failures = possible.reduce((sum, { cell }) => sum + cell.reasons.length, 0);
  const all = possible.flatMap(({ cell }) => cell.timesMs);
  console.log(`|  | ${kinds.map(({ name }) => name).join(" | ")} |`);
  console.log(`| --- | ${kinds.map(() => "---:").join(" | ")} |`);
  for (const [row, { name }] of kinds.entries()) {
    console.log(
      `| ${name} | ${kinds.map((_, column) => cellText(cells[row]![column], tries)).join(" | ")} |`,
    );
  }
  console.log(`
${tries} tries a pair, either side asking in turn, each after both have left and come back (new endpoints); the
median from \`connect\` until both have the link, with 20 ms one way between any two. A lone time: all linked.
Possible in theory: ${possible.length} pairs, ${possible.length * tries} tries; ${failures} of them failed, ${possible.filter(({ cell }) => cell.reasons.length > 0).length} pairs with a failure.
Slowest link: ${Math.max(...all).toFixed(0)} ms; ${((now() - startedAt) / 60_000).toFixed(1)} minutes in all.`);
}
