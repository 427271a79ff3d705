/**
 * Sizes in words. Pure. For all.
 */

/** `512 B`, `1.5 kB`, `2.0 MB`. */
export function bytes(count: number): string {
  if (count < 1000) return `${Math.round(count)} B`;
  const [value, unit] =
    count < 1e6 ? [count / 1e3, "kB"] : count < 1e9 ? [count / 1e6, "MB"] : [count / 1e9, "GB"];
  return `${value.toFixed(1)} ${unit}`;
}
