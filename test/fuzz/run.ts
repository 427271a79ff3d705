/**
 * `bun run fuzz [SECONDS]`: gives each reader of strangers' bytes real samples changed at random, for so long in all, or
 * else a million inputs each. It prints its seed; with `--seed N` all inputs are the same again, and with
 * `--target NAME --input N` besides it is that input alone. Exit code 1 when a reader did what none may do.
 */
import { heapStats } from "bun:jsc";
import { parseArgs } from "node:util";
import { table } from "../bench/run.ts";
import { mutate, Random } from "./mutate.ts";
import { Broken, targets, type Target } from "./targets.ts";

const defaultInputs = 1_000_000;
/** No input may take more of the processor; one that does is tried again, for something else may have been collected. */
const mostMs = 100;
const tries = 3;
/** What a reader may hold on to in all, whatever it has read. */
const mostKeptBytes = 16 * 1024 * 1024;
/** Inputs between two looks at the clock. */
const batch = 256;

export interface Finding {
  target: string;
  input: number;
  what: string;
  bytes: Buffer;
}

export interface Result {
  target: string;
  inputs: number;
  refused: number;
  elapsedMs: number;
  slowestMs: number;
  keptBytes: number;
  finding: Finding | undefined;
}

/** The input of that number. */
export function inputOf(target: Target, seed: number, input: number): Buffer {
  const mixed = Number(Bun.hash.xxHash32(`${target.name} ${input}`, seed));
  return mutate(target.samples, new Random(mixed));
}

/** How much this thread had of the processor, since it had had `from`. */
export function threadMs(from: NodeJS.CpuUsage): number {
  const { user, system } = process.threadCpuUsage(from);
  return (user + system) / 1000;
}

/** Reads one input; returns how much of the processor that took, whether it was refused, and what must not have been. */
function read(target: Target, bytes: Buffer): { elapsedMs: number; isRefused: boolean; what?: string } {
  const from = process.threadCpuUsage();
  try {
    target.read(Buffer.from(bytes));
    return { elapsedMs: threadMs(from), isRefused: false };
  } catch (error) {
    const elapsedMs = threadMs(from);
    const isAllowed = !(error instanceof Broken) && target.mayThrow(error);
    return { elapsedMs, isRefused: true, ...(!isAllowed && { what: String(error) }) };
  }
}

/** The least of several times: what the input itself takes. */
function certainMs(target: Target, bytes: Buffer): number {
  return Math.min(...Array.from({ length: tries }, () => read(target, bytes).elapsedMs));
}

function keptBytes(): number {
  Bun.gc(true);
  return heapStats().heapSize + heapStats().extraMemorySize;
}

/** Gives a target inputs until there are as many as wanted, the time is over, or one does what it must not. */
export function fuzz(target: Target, seed: number, { inputs, ms }: { inputs: number; ms: number }): Result {
  const keptBefore = keptBytes(); // in a large program the collection that this takes is long
  const startedAt = performance.now();
  const name = target.name;
  const result: Result = {
    target: name,
    inputs: 0,
    refused: 0,
    elapsedMs: 0,
    slowestMs: 0,
    keptBytes: 0,
    finding: undefined,
  };
  while (result.inputs < inputs && !result.finding) {
    if (result.inputs % batch === 0 && performance.now() - startedAt >= ms) break;
    const input = result.inputs++;
    const bytes = inputOf(target, seed, input);
    const { elapsedMs, isRefused, what } = read(target, bytes);
    if (isRefused) result.refused++;
    if (what !== undefined) result.finding = { target: name, input, what, bytes };
    if (elapsedMs <= result.slowestMs) continue;
    result.slowestMs = elapsedMs > mostMs ? certainMs(target, bytes) : elapsedMs;
    if (result.slowestMs > mostMs)
      result.finding = { target: name, input, what: `took ${result.slowestMs.toFixed(0)} ms`, bytes };
  }
  result.elapsedMs = performance.now() - startedAt;
  result.keptBytes = keptBytes() - keptBefore;
  if (result.keptBytes > mostKeptBytes && !result.finding) {
    const what = `${result.keptBytes} bytes are still held`;
    result.finding = { target: name, input: result.inputs, what, bytes: Buffer.alloc(0) };
  }
  return result;
}

function report({ target, input, what, bytes }: Finding, seed: number): void {
  console.log(`\n${target}, input ${input}: ${what}`);
  console.log(`again: bun run fuzz --seed ${seed} --target ${JSON.stringify(target)} --input ${input}`);
  console.log(`${bytes.length} bytes, base64: ${bytes.toString("base64").slice(0, 4000)}`);
}

function row({ target, inputs, refused, elapsedMs, slowestMs, keptBytes: kept }: Result): string[] {
  const percent = `${((100 * refused) / Math.max(1, inputs)).toFixed(0)} %`;
  const kib = `${Math.max(0, kept / 1024).toFixed(0)} KiB`;
  return [
    target,
    String(inputs),
    percent,
    `${(elapsedMs / 1000).toFixed(1)} s`,
    `${slowestMs.toFixed(1)} ms`,
    kib,
  ];
}

const usage = `usage: bun run fuzz [SECONDS] [--seed N] [--target NAME [--input N]]
SECONDS: for so long in all, instead of a million inputs each
targets: ${targets.map(({ name }) => name).join(" | ")}`;

class UsageError extends Error {}

function numberOf(word: string | undefined): number | undefined {
  if (word === undefined) return undefined;
  if (!/^\d{1,10}$/.test(word)) throw new UsageError(`not a number: ${word}`);
  return Number(word);
}

function readArguments() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      seed: { type: "string" },
      target: { type: "string" },
      input: { type: "string" },
      help: { type: "boolean", short: "h" },
    },
  });
  const { target, help = false } = values;
  const wanted = targets.filter(({ name }) => target === undefined || name === target);
  if (wanted.length === 0) throw new UsageError(`no such target: ${target}`);
  const [seed, input, seconds] = [values.seed, values.input, positionals[0]].map(numberOf);
  if (input !== undefined && wanted.length > 1) throw new UsageError("--input: of which --target?");
  return { wanted, input, seconds, help, seed: seed ?? crypto.getRandomValues(new Uint32Array(1))[0]! };
}

function main(): number {
  let given: ReturnType<typeof readArguments>;
  try {
    given = readArguments();
  } catch (error) {
    console.error(`${(error as Error).message}\n${usage}`);
    return 2;
  }
  const { wanted, input, seed, help, seconds = Infinity } = given;
  if (help) {
    console.log(usage);
    return 0;
  }
  if (input !== undefined) {
    const [target] = wanted as [Target];
    const bytes = inputOf(target, seed, input);
    const { what = "nothing that it must not do", elapsedMs } = read(target, bytes);
    report({ target: target.name, input, what, bytes }, seed);
    console.log(`${elapsedMs.toFixed(1)} ms`);
    return 0;
  }
  const inputs = seconds === Infinity ? defaultInputs : Infinity;
  console.log(`seed ${seed}`);
  const results: Result[] = [];
  for (const target of wanted) {
    const ms = (seconds * 1000) / wanted.length;
    results.push(fuzz(target, seed, { inputs, ms }));
    const { finding } = results.at(-1)!;
    if (finding) report(finding, seed);
  }
  console.log(table([["", "inputs", "refused", "took", "slowest", "kept"], ...results.map(row)]));
  return results.some(({ finding }) => finding) ? 1 : 0;
}

if (import.meta.main) process.exit(main());
