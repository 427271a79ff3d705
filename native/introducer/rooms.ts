/**
 * What an introducer knows of rooms beyond who is connected to it: whom other introducers have in them, where some share
 * their rooms, and whose name was whose lately. {@link LocalRooms} are those of one introducer alone; native/introducer/redis/ has
 * those of several. Pure: no socket, no output. For introducer.ts and native/introducer/redis/.
 */
import {
  defaultRoom,
  nameSkeleton,
  type Endpoint,
  type Peer,
  type PeerChange,
  type Prediction,
  type Route,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import { Shares } from "../shares/budget.ts";

/** Somebody in a room, whichever introducer has the connection. */
export interface Occupant {
  readonly peer: Peer;
  readonly room: string;
  /** Whether its `mapping` has come. */
  readonly hasMeasured: boolean;
  readonly takesRelay: boolean;
  /** Where its NAT, which counts, stood when last measured. */
  readonly position: Prediction | undefined;
}

/** One whose connection another introducer has: the same object as long as it is there. */
export interface Guest extends Occupant {
  peer: Peer;
  readonly introducer: string;
  readonly observed: Endpoint;
  /** Who shares its shares. */
  readonly subscriber: string;
  hasMeasured: boolean;
  position: Prediction | undefined;
  /** With the way from its introducer to here. */
  roundTripMs: number | undefined;
  /** {@link peer} as JSON, made when first needed. */
  json: string;
}

/**
 * What one introducer tells another of an introduction between its participant `from` and the other's `to`, which the
 * asker's introducer runs and numbers. `order`: say this to yours. `report`: this is what ours said.
 */
export type Letter = { from: number; to: number } & (
  { is: "order"; introduction: number; lastsMs: number; message: Order } | { is: "report"; message: Report }
);
export type Order = Extract<ToParticipant, { type: "measure" | "punch" | "relay" | "failed" }>;
export type Report = Extract<ToIntroducer, { type: "linked" | "failed" | "measured" }>;

/** A participant as an operator sees it: with the peers it is linked with, by which route, and the bytes relayed. */
export type Participant = Peer & {
  room: string;
  linked: number[];
  links: { id: number; route: Route; relayedBytes?: number }[];
  punching: number[];
  /** Where it is registered, if not at the introducer that was asked. */
  introducer?: Endpoint;
};

/** What an operator wants of all introducers that share the rooms; each answers for its own participants. */
export type Question =
  | { about: "count" }
  | { about: "list" }
  /** Tells them all, or the one of that id. */
  | { about: "notice"; text: string; to?: number };
export interface Answer {
  /** Where the introducer is. */
  place: Endpoint;
  /** How many there are, or have been told. */
  count: number;
  participants: Participant[];
}
/** What came of a question; `problem` says who may be missing. */
export interface Answers {
  all: Answer[];
  problem?: string;
}

/** Whom rooms tell what happens elsewhere. None of it throws. */
export interface RoomsOwner {
  joined(guest: Guest): void;
  changed(guest: Guest, change: PeerChange): void;
  left(guest: Guest, reason: string): void;
  /** One of ours can't stay as it is: its name or id is another's, or it has come to another introducer. */
  displaced(id: number, reason: string): void;
  received(letter: Letter): void;
  /** What another introducer's operator wants; undefined where that can't be told. */
  answer(question: Question): Promise<Answer | undefined>;
  /** That guest can't be told anything now. */
  undelivered(guest: Guest): void;
  /** Whether the rooms are shared now; said when that changes, and once at the start. */
  sharing(isShared: boolean, message: string): void;
}

/** The rooms of an introducer, as far as it does not have their participants itself. Nothing here waits or throws. */
export interface Rooms {
  /** An id for one of ours that nobody has. */
  nextId(room: string): number;
  /** What resolves once it is known who is in a room elsewhere, or has taken too long; undefined where nothing is to be waited for. */
  open(room: string): Promise<void> | undefined;
  /** By their ids. */
  guests(room: string): ReadonlyMap<number, Guest>;
  /** One of ours is there, or has changed; in the place of a guest, if it has come from another introducer. */
  put(own: Occupant, replaced?: Guest): void;
  remove(own: Occupant): void;
  /** Whether letters go anywhere now. */
  readonly isShared: boolean;
  send(guest: Guest, letter: Letter): void;
  /** Asks all other introducers; resolves when all have answered, or soon. */
  ask(question: Question): Promise<Answers>;
  /** Resolves once the others know that we are gone, or soon. */
  close(): Promise<void>;
}

const nobody: ReadonlyMap<number, Guest> = new Map<number, Guest>();

/** The rooms of one introducer alone: nobody is elsewhere. */
export class LocalRooms implements Rooms {
  readonly isShared = false;
  #lastId = 0;

  nextId(): number {
    return ++this.#lastId;
  }
  open(): undefined {}
  guests(): ReadonlyMap<number, Guest> {
    return nobody;
  }
  put(): void {}
  remove(): void {}
  send(): void {}
  async ask(): Promise<Answers> {
    return { all: [] };
  }
  async close(): Promise<void> {}
}

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
