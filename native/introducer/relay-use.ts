/**
 * Who was relayed how much, by certificate: an operator sees whom it costs. Owns what is over; what is under way is told by
 * whoever asks. For native/introducer/relay.ts.
 */
import type { Peer } from "../../protocol.ts";

/** Bytes both ways of all links of one certificate, under the name that it had last. */
export interface RelayUse {
  name: string;
  fingerprint: string;
  bytes: number;
}

/** So many certificates are remembered: if there are more, the one with the fewest bytes is forgotten. */
const maxRemembered = 1_000;
/** So many are shown: those with the most bytes. */
const mostShown = 10;

type User = Pick<Peer, "name" | "fingerprint">;

export class RelayUses {
  readonly #over = new Map<string, RelayUse>();

  add(users: readonly User[], bytes: number): void {
    if (bytes === 0) return;
    for (const user of users) count(this.#over, user, bytes);
    while (this.#over.size > maxRemembered) this.#over.delete(least(this.#over.values()));
  }

  /** The most first. */
  read(underWay: Iterable<{ users: readonly User[]; bytes: number }>): RelayUse[] {
    const all = new Map(this.#over);
    for (const { users, bytes } of underWay) for (const user of users) count(all, user, bytes);
    return [...all.values()].sort((a, b) => b.bytes - a.bytes).slice(0, mostShown);
  }
}

function count(all: Map<string, RelayUse>, { name, fingerprint }: User, bytes: number): void {
  all.set(fingerprint, { name, fingerprint, bytes: bytes + (all.get(fingerprint)?.bytes ?? 0) });
}

function least(uses: Iterable<RelayUse>): string {
  let found: RelayUse | undefined;
  for (const use of uses) if (!found || use.bytes < found.bytes) found = use;
  return found?.fingerprint ?? "";
}
