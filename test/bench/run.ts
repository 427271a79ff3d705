/** `bun run bench NAME [ARGUMENTS]`: what is measured, each in a file of its own. */
import { cpus } from "node:os";

const benches = ["churn", "flood", "forward", "introducer", "link", "matrix", "start", "storm", "stream"];

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

if (import.meta.main) {
  const [name = "", ...args] = process.argv.slice(2);
  if (!benches.includes(name)) {
    console.error(`which bench? bun run bench ${benches.join(" | ")}`);
    process.exit(2);
  }
  const { bench } = (await import(`./${name}.ts`)) as { bench: (args: string[]) => Promise<void> };
  console.log(`${circumstances([name, ...args].join(" "))}\n`);
  await bench(args);
  process.exit();
}
