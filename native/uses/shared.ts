/**
 * What one side shares with the other: `participant share` says on a stream of its own which targets may be reached, and
 * `participant reach` listens for each. No byte follows. Pure. For native/terminal/.
 *
 *   {"use":"shared","targets":[{"host":…,"port":…}, …]}     the purpose; the stream ends at once
 */
import { Refusal } from "../../protocol.ts";
import { readPurposeTarget, type HostTarget } from "./target.ts";

/** All of them must fit into a purpose, with the longest names. */
export const maxShared = 12;

export const sharedPurpose = (targets: readonly HostTarget[]) => ({ use: "shared", targets });

/** The targets that the purpose of a stream names. Throws a {@link Refusal}. */
export function readShared({ targets }: Record<string, unknown>): HostTarget[] {
  if (!Array.isArray(targets) || targets.length < 1 || targets.length > maxShared)
    throw new Refusal("bad-field", `targets must be a list of 1 to ${maxShared}`);
  return targets.map((target: unknown) => {
    if (typeof target !== "object" || target === null)
      throw new Refusal("bad-field", "a target is an object");
    const read = readPurposeTarget(target as Record<string, unknown>);
    if (read.kind === "unix") throw new Refusal("bad-field", "a target must have a port");
    return read;
  });
}
