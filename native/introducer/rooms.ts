/**
 * What an introducer knows of rooms beyond who is in them: whose name was whose lately. Pure: no socket, no output. For
 * introducer.ts and native/terminal/.
 */
import { defaultRoom, nameSkeleton, type Peer, type Route } from "../../protocol.ts";
import { Shares } from "../shares/budget.ts";

/** A participant as an operator sees it: with the peers it is linked with, by which route, and the bytes relayed. */
export type Participant = Peer & {
  room: string;
  linked: number[];
  links: { id: number; route: Route; relayedBytes?: number }[];
  punching: number[];
};

/** A room that words open: its id is a hash of them, and who is of it is shown by proofs, which participants judge. */
export function isSecretRoom(room: string): boolean {
  return /^[0-9a-f]{64}$/.test(room);
}

export interface KeptNamesLimits {
  /** Of one room, and of those who came from one address. */
  keptNames: number;
  keptNamesPerAddress: number;
  /** Rooms that have such names, beside the lobby: who invents rooms must not make us keep without end. */
  keptNamesRooms: number;
  nameKeptMs: number;
}

/** Whose name was whose in one room. */
interface RoomNames {
  readonly shares: Shares;
  /** By what a name looks like; the oldest first. */
  readonly names: Map<string, { fingerprint: string; subscriber: string; untilMs: number }>;
}

/**
 * Names of those who have left, kept for their certificates: whoever comes back keeps its name. Each room has a list of
 * its own, in which each address has a share: what is too much is not kept, whatever was is. Secret rooms have none.
 */
export class KeptNames {
  readonly #limits: KeptNamesLimits;
  readonly #rooms = new Map<string, RoomNames>();

  constructor(limits: KeptNamesLimits) {
    this.#limits = limits;
  }

  keep(room: string, name: string, fingerprint: string, subscriber: string): void {
    const kept = isSecretRoom(room) ? undefined : this.#room(room);
    if (!kept) return;
    const looks = nameSkeleton(name);
    release(kept, looks);
    const { shares, names } = kept;
    if (shares.isOver(subscriber, 1) || shares.isUsedUp(1)) return;
    shares.add(subscriber);
    names.set(looks, { fingerprint, subscriber, untilMs: performance.now() + this.#limits.nameKeptMs });
  }

  /** Whether nobody else had the name lately. */
  mayTake(room: string, name: string, fingerprint: string): boolean {
    this.#forget(room);
    const kept = this.#rooms.get(room)?.names.get(nameSkeleton(name));
    return kept === undefined || kept.fingerprint === fingerprint;
  }

  /** Undefined where there are too many others. */
  #room(room: string): RoomNames | undefined {
    this.#forget(room);
    const known = this.#rooms.get(room);
    if (known) return known;
    const { keptNames, keptNamesPerAddress, keptNamesRooms } = this.#limits;
    if (this.#rooms.size >= keptNamesRooms) for (const one of [...this.#rooms.keys()]) this.#forget(one);
    const others = this.#rooms.size - Number(this.#rooms.has(defaultRoom));
    if (room !== defaultRoom && others >= keptNamesRooms) return undefined;
    // A program of our own host has no more names than others: there is no reason to keep thousands.
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
  shares.remove(kept.subscriber);
}
