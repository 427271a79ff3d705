/**
 * Rooms: how an operator sees a participant, which rooms are private, and which names are kept for those who have left.
 * Pure: no socket, no output. For introducer.ts and native/terminal/.
 */
import { defaultRoom, nameSkeleton, type Peer, type Route } from "../../protocol.ts";
import { Shares } from "../shares/budget.ts";
import type { Limits } from "./limits.ts";

/** A participant as an operator sees it: with the peers it is linked with, by which route, and the bytes relayed. */
export type Participant = Peer & {
  room: string;
  linked: number[];
  links: { id: number; route: Route; relayedBytes?: number }[];
  punching: number[];
};

/** A private room: its id is a hash of its words. Participants themselves judge who is in it, by proofs. */
export function isSecretRoom(room: string): boolean {
  return /^[0-9a-f]{64}$/.test(room);
}

type KeptLimits = Pick<Limits, "keptNames" | "keptNamesPerAddress" | "keptNamesRooms" | "nameKeptMs">;

/** The kept names of one room. */
interface RoomNames {
  readonly shares: Shares;
  /** By what a name looks like. The oldest comes first. */
  readonly names: Map<string, { fingerprint: string; source: string; untilMs: number }>;
}

/**
 * Names of those who have left. A name is kept for its certificate, so that whoever comes back gets it again. Each room
 * has a list, and each address a share of it. A name beyond the share is not kept; a name that is kept stays. Private
 * rooms have no list.
 */
export class KeptNames {
  readonly #limits: KeptLimits;
  readonly #rooms = new Map<string, RoomNames>();

  constructor(limits: KeptLimits) {
    this.#limits = limits;
  }

  keep(room: string, name: string, fingerprint: string, source: string): void {
    const kept = isSecretRoom(room) ? undefined : this.#room(room);
    if (!kept) return;
    const looks = nameSkeleton(name);
    release(kept, looks);
    const { shares, names } = kept;
    if (shares.isOver(source, 1) || shares.isUsedUp(1)) return;
    shares.add(source);
    names.set(looks, { fingerprint, source, untilMs: performance.now() + this.#limits.nameKeptMs });
  }

  /** Whether the name is free: nobody with another certificate had it lately. */
  mayTake(room: string, name: string, fingerprint: string): boolean {
    this.#forget(room);
    const kept = this.#rooms.get(room)?.names.get(nameSkeleton(name));
    return kept === undefined || kept.fingerprint === fingerprint;
  }

  /** The list of a room; undefined if there are too many lists. */
  #room(room: string): RoomNames | undefined {
    this.#forget(room);
    const known = this.#rooms.get(room);
    if (known) return known;
    const { keptNames, keptNamesPerAddress, keptNamesRooms } = this.#limits;
    if (this.#rooms.size >= keptNamesRooms) for (const one of [...this.#rooms.keys()]) this.#forget(one);
    const others = this.#rooms.size - Number(this.#rooms.has(defaultRoom));
    if (room !== defaultRoom && others >= keptNamesRooms) return undefined;
    // Our own host gets no more than others here: nobody needs thousands of kept names.
    const fresh: RoomNames = { shares: new Shares(keptNames, keptNamesPerAddress, 1), names: new Map() };
    this.#rooms.set(room, fresh);
    return fresh;
  }

  #forget(room: string): void {
    const now = performance.now();
    const kept = this.#rooms.get(room);
    for (const [name, { untilMs }] of kept?.names ?? []) {
      if (untilMs > now) return;
      release(kept!, name);
    }
    this.#rooms.delete(room);
  }
}

function release({ shares, names }: RoomNames, name: string): void {
  const kept = names.get(name);
  if (!kept) return;
  names.delete(name);
  shares.remove(kept.source);
}
