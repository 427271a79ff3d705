/**
 * Two introducers and a Redis, killed, stopped and started again at random, while participants behind NATs connect and
 * disconnect. `bun run bench storm [SECONDS [SEED]]`: 60 s unless told, and a seed that is printed.
 */
import { Lab } from "../lab/lab.ts";
import { People } from "../lab/people.ts";
import { storm } from "../lab/storm.ts";
import { isQuick, quick, table } from "./run.ts";

export async function bench([
  seconds = quick("60", "2"),
  seed = String(Date.now() % 2 ** 32),
]: string[]): Promise<void> {
  console.log(`seed ${seed}`);
  await using lab = await Lab.create();
  await using people = new People();
  const report = await storm(lab, people, Number(seconds), Number(seed), (line) => console.error(line));
  const { counts, connects, problems } = report;
  const rows = [...counts]
    .toSorted(([a], [b]) => a.localeCompare(b))
    .map(([what, count]) => [what, String(count)]);
  const longest = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
  console.log(
    table([["", "how often"], ["connect", String(connects)], ...rows, ["problems", String(problems.length)]]),
  );
  console.log(`
Longest: a connect until it linked or failed ${longest(report.slowestConnectMs)}, back after the introducer ${longest(report.slowestBackMs)}, all see the same
after the storm ${longest(report.slowestAgreementMs)}.`);
  for (const problem of problems) console.log(problem);
  // A quick one runs beside others: what comes too late then is nobody's fault.
  if (problems.length > 0 && !isQuick) process.exitCode = 1;
}
