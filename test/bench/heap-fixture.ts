/** Loaded before a program that a bench looks into: at SIGUSR2 it collects its garbage and says what is left. */
import { heapStats } from "bun:jsc";
import { renameSync, writeFileSync } from "node:fs";

export interface Heap {
  heapBytes: number;
  objects: number;
  /** The most frequent kinds of them. */
  kinds: Record<string, number>;
}

const file = process.env.HEAP_FILE!;
process.on("SIGUSR2", () => {
  Bun.gc(true);
  const { heapSize: heapBytes, objectCount: objects, objectTypeCounts } = heapStats();
  const kinds = Object.entries(objectTypeCounts).sort(([, a], [, b]) => b - a);
  const heap: Heap = { heapBytes, objects, kinds: Object.fromEntries(kinds.slice(0, 20)) };
  writeFileSync(`${file}.new`, JSON.stringify(heap));
  renameSync(`${file}.new`, file); // whole, or not yet
});
