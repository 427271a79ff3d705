/**
 * How late small things come beside bulk: an event of 100 bytes each 20 ms on one stream, beside another stream of the
 * same link that always has more to send. Directly, and by relay at its limits, against the path's own delay.
 */
import type { WanOptions } from "../lab/internet-fixture.ts";
import { Lab, unavailable } from "../lab/lab.ts";
import { People } from "../lab/people.ts";
import { Ends } from "./ends.ts";
import { median, quick, table } from "./run.ts";

const everyMs = 20;
const times = quick(300, 10);
/** What is measured is bulk under way: by then TCP has found out what the path takes. */
const settleMs = quick(4_000, 300);
const rounds = quick(3, 1);
/** From a side, and from the introducer, to the middle of the Internet. */
const owdMs = { side: 10, introducer: 5 };
/** Above the path's delay, of nine events in ten. */
const goalMs = 50;
const kib = 1024;

interface Way {
  name: string;
  /** Of both sides. */
  wan: Partial<WanOptions>;
  /** Options of the introducer, by which it goes; undefined: directly. */
  relay?: string[];
  /** Links that have as much to send, of which one is measured. */
  links?: number;
  hasGoal: boolean;
}

const fast = { upMbits: 50 };
const total = ["--relay-total", "1M"];
const ways: Way[] = [
  { name: "direct, 50 Mbit/s", wan: fast, hasGoal: true },
  { name: "direct, 10 Mbit/s", wan: { upMbits: 10 }, hasGoal: true },
  { name: "- with jitter", wan: { ...fast, jitterMs: 15 }, hasGoal: false },
  { name: "- with loss", wan: { ...fast, loss: 0.005 }, hasGoal: false },
  { name: "relayed, 1 MiB/s", wan: fast, relay: [], hasGoal: true },
  { name: "relayed, 64 KiB/s", wan: fast, relay: ["--relay-rate", "64K"], hasGoal: true },
  { name: "relayed, with 3 others by 1 MiB/s", wan: fast, relay: total, links: 4, hasGoal: true },
  { name: "- jitter by relay", wan: { ...fast, jitterMs: 15 }, relay: [], hasGoal: false },
  { name: "- loss by relay", wan: { ...fast, loss: 0.005 }, relay: [], hasGoal: false },
];

interface Found {
  pathMs: number;
  medianMs: number[];
  p90Ms: number[];
  worstMs: number[];
  /** Bytes a second. */
  bulk: number[];
}

function percentile(values: number[], part: number): number {
  return values.toSorted((a, b) => a - b)[Math.ceil(values.length * part) - 1]!;
}

async function measure({ wan, relay, links = 1 }: Way, found: Found): Promise<void> {
  await using lab = await Lab.create();
  await using people = new People();
  await using stack = new AsyncDisposableStack();
  const alice = await lab.host("alice", { owdMs: owdMs.side, ...wan });
  const bob = await lab.host("bob", { owdMs: owdMs.side, ...wan });
  const server = relay && (await lab.host("introducer", { owdMs: owdMs.introducer }));
  const introducer = server && (await people.introducer(server, undefined, undefined, relay));
  const all = Array.from({ length: links }, () => stack.use(new Ends("link", alice, bob)));
  for (const ends of all) await (introducer ? ends.relayBy(introducer.endpoint) : ends.dial());
  const [first] = await Promise.all(all.map((ends) => ends.beside(times, everyMs, settleMs)));
  const { lateMs, bulkBytes, elapsedMs } = first!;
  found.pathMs = 2 * owdMs.side + (introducer ? 2 * owdMs.introducer : 0);
  found.medianMs.push(median(lateMs));
  found.p90Ms.push(percentile(lateMs, 0.9));
  found.worstMs.push(Math.max(...lateMs));
  found.bulk.push((bulkBytes * 1000) / elapsedMs);
}

/** All ways, or those whose names contain one of these. */
export async function bench(names: string[]): Promise<void> {
  if (unavailable !== undefined) return console.log(`skipped: ${unavailable}`);
  const ms = (value: number) => `${value.toFixed(0)} ms`;
  const rows = [["an event each 20 ms beside bulk", "path", "median", "p90", "goal", "worst", "bulk"]];
  const measured = quick(ways, [ways[0]!, ways.find(({ links }) => links !== undefined)!]);
  for (const way of measured) {
    if (names.length > 0 && !names.some((name) => way.name.includes(name))) continue;
    const found: Found = { pathMs: 0, medianMs: [], p90Ms: [], worstMs: [], bulk: [] };
    for (let round = 0; round < rounds; round++) await measure(way, found);
    const { pathMs, medianMs, p90Ms, worstMs, bulk } = found;
    rows.push([
      way.name,
      ms(pathMs),
      ...[medianMs, p90Ms].map((each) => ms(median(each))),
      way.hasGoal ? `≤ ${ms(pathMs + goalMs)}` : "",
      ms(median(worstMs)),
      `${(median(bulk) / kib).toFixed(0)} KiB/s`,
    ]);
  }
  console.log(table(rows));
  console.log(`
One way, ${times} events of 100 bytes a round, medians of ${rounds} rounds. The path's queue holds 256 KiB. Jitter: up to 15 ms at
each side. Loss: half a percent at each side.
`);
}
