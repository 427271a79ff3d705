/**
 * `bun run bench NAME [ARGUMENTS]`: what is measured, each in a file of its own. With `--quick` by the smallest numbers,
 * which mean nothing: it shows that a bench still runs to its end; without a name, that all of them do.
 */
import { cpus } from "node:os";

export const benches = [
  "churn",
  "cold",
  "events",
  "flood",
  "forward",
  "introducer",
  "link",
  "matrix",
  "start",
  "storm",
  "stream",
  "udp",
];
const quickOption = "--quick";
export const isQuick = process.argv.includes(quickOption);
/** How many run beside each other then: they wait, half of the time. */
const atOnce = 3;
/** The longest that one may take; they take seconds, and a busy machine is no fault. */
const quickDeadlineMs = 300_000;

/** A number of a bench, and the smallest that it works with. */
export const quick = <T>(usual: T, smallest: T): T => (isQuick ? smallest : usual);

/** The middle one, or the mean of the two in the middle. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length / 2;
  return (sorted[Math.ceil(half) - 1]! + sorted[Math.floor(half)]!) / 2;
}

/** Columns as wide as their widest cell, the first to the left, the others to the right. */
export function table(rows: string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const pad = (cell: string, column: number) =>
    column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!);
  return rows.map((row) => row.map(pad).join("   ")).join("\n");
}

/** Command line, machine and version: what a number means nothing without. */
export function circumstances(name: string): string {
  const processors = cpus();
  return [
    `bun run bench ${name}`,
    `${processors.length} × ${processors[0]?.model ?? "unknown processor"}, ${process.platform} ${process.arch}`,
    `Bun ${Bun.version}, ${new Date().toISOString().slice(0, 10)}`,
  ].join("\n");
}

/** All of them, each in a process of its own, some at a time; returns the names of those that failed. */
async function runAllQuickly(): Promise<string[]> {
  // As in tests: what a bench, or a program that it starts, does not catch ends that.
  const env = { ...process.env, BUN_INSPECT_PRELOAD: `${import.meta.dir}/../uncaught-program-fixture.ts` };
  const left = [...benches];
  const failed: string[] = [];
  const worker = async () => {
    for (let name = left.shift(); name !== undefined; name = left.shift()) {
      const startedAt = performance.now();
      const command = [process.execPath, import.meta.path, name, quickOption];
      const child = Bun.spawn(command, {
        env,
        stdio: ["ignore", "pipe", "pipe"],
        timeout: quickDeadlineMs,
      });
      const said = Promise.all([child.stdout.text(), child.stderr.text()]);
      const hasFailed = (await child.exited) !== 0;
      if (hasFailed) failed.push(name);
      // What it has started may still hold its output open.
      if (hasFailed) console.error(((await Promise.race([said, Bun.sleep(1_000)])) ?? []).join("\n"));
      const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
      console.log(
        `bench ${name}: ${hasFailed ? `FAILED (${child.signalCode ?? child.exitCode})` : "ok"}, ${seconds} s`,
      );
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return failed;
}

if (import.meta.main) {
  const [name = "", ...args] = process.argv.slice(2).filter((word) => word !== quickOption);
  if (name === "" && isQuick) process.exit((await runAllQuickly()).length > 0 ? 1 : 0);
  if (!benches.includes(name)) {
    console.error(`which bench? bun run bench ${benches.join(" | ")}, or bun run bench ${quickOption}`);
    process.exit(2);
  }
  const { bench } = (await import(`./${name}.ts`)) as { bench: (args: string[]) => Promise<void> };
  console.log(`${circumstances([name, ...args, ...quick([], [quickOption])].join(" "))}\n`);
  await bench(args);
  process.exit();
}
