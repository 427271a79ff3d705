/**
 * Tests that need more than Bun: where that is missing they are skipped and each says why, in its name, so that
 * `bun test -t 'skipped: '` loads every file and runs nothing.
 */
import { describe, test } from "bun:test";

type Obstacle = string | undefined;

const withReason = (label: string, reason: string) => `${label} (skipped: ${reason})`;

/** Names the programs that are not in PATH, and the packages that have them; undefined when all are. */
export function missing(programs: readonly string[], packages: string): Obstacle {
  const absent = programs.filter((one) => Bun.which(one) === null);
  return absent.length === 0 ? undefined : `not installed: ${absent.join(", ")} (${packages})`;
}

/** With REQUIRE_LAB=1, as in CI, an obstacle is none: what needs to be without it fails. */
export function unlessRequired(obstacle: Obstacle): Obstacle {
  return process.env.REQUIRE_LAB === "1" ? undefined : obstacle;
}

/** `test`, or one that skips, with the first obstacle there is. */
export function testNeeding(...obstacles: Obstacle[]): typeof test {
  const reason = obstacles.find((one) => one !== undefined);
  if (reason === undefined) return test;
  const skip = (label: string, ...rest: [never]) => test.skip(withReason(label, reason), ...rest);
  const each =
    (rows: never) =>
    (label: string, ...rest: [never]) =>
      test.skip.each(rows)(withReason(label, reason), ...rest);
  const concurrent = Object.assign(skip.bind(undefined), { each });
  return Object.assign(skip, { each, concurrent }) as unknown as typeof test;
}

/** `describe`, or one that skips. */
export function describeNeeding(obstacle: Obstacle): (label: string, body: () => void) => void {
  if (obstacle === undefined) return describe;
  return (label, body) => describe.skip(withReason(label, obstacle), body);
}

/** Whether this is `bun run field`: what is repeated is repeated more often then. */
export const isField = process.env.FIELD === "1";
/** For what takes minutes: it is left out of the plain suite. */
export const long: Obstacle = isField ? undefined : "long: `bun run field`";
export const longTest = testNeeding(long);

const notLinux = process.platform === "linux" ? undefined : "only on Linux";
/** For what only Linux has or does. */
export const linuxTest = testNeeding(notLinux);
export const linuxDescribe = describeNeeding(notLinux);
/** Of what a Windows has not: shells, jobs, modes of files. */
export const onWindows = process.platform === "win32" ? "not on Windows" : undefined;
