/**
 * Which TCP ports programs of this host have, also for a connection only. On Linux the kernel says it (proc(5),
 * /proc/net/tcp). Owns nothing. For native/punch/.
 */
import { existsSync, readFileSync } from "node:fs";

/**
 * The local ports in a table of the kernel's, of sockets that a program still has: what is closing has no inode. Pure.
 *
 *     sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
 *      0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 …
 */
export function parseTable(table: string): number[] {
  const rows = table.matchAll(/^\s*\d+: [0-9A-F]+:([0-9A-F]{4})(?: +\S+){7} +(\d+)/gm);
  return [...rows].filter(([, , inode]) => inode !== "0").map(([, port = ""]) => parseInt(port, 16));
}

/** A set that has every port where the kernel does not say it. */
export function takenPorts(): { has(port: number): boolean } {
  try {
    const tables = ["tcp", ...(existsSync("/proc/net/tcp6") ? ["tcp6"] : [])];
    return new Set(tables.flatMap((one) => parseTable(readFileSync(`/proc/net/${one}`, "latin1"))));
  } catch {
    return { has: () => true };
  }
}
