/** What this program uses of its host, and how much it may: for whoever shows that. Owns nothing. For native/introducer/. */
import { readdirSync, readFileSync, statSync } from "node:fs";

export interface ProcessUse {
  /** Of the processor, since the start. */
  processorMs: number;
  /** Undefined if the system can't say it now, because no descriptor is free. */
  residentBytes: number | undefined;
  /** Open now, and how many may be: undefined where there is no /proc, or no descriptor is free to look. */
  descriptors: { open: number; most: number } | undefined;
}

export function processUse(): ProcessUse {
  const { user, system } = process.cpuUsage();
  return {
    processorMs: (user + system) / 1000,
    residentBytes: attempt(() => process.memoryUsage.rss()),
    descriptors: attempt(() => ({ open: openDescriptors(), most: mostDescriptors() })),
  };
}

/** Since Linux 6.2 the size of that folder is their number. To list thousands takes long. */
function openDescriptors(): number {
  return statSync("/proc/self/fd").size || readdirSync("/proc/self/fd").length;
}

function mostDescriptors(): number {
  const [, soft = ""] = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "latin1")) ?? [];
  return soft === "" ? Infinity : Number(soft);
}

function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}
