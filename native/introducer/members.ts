/**
 * Who is in which room here, and what a room is told of it. It owns the members by id and by room, and the changes that are
 * still to be told. Whether somebody may come in is for native/introducer/admission.ts. For introducer.ts and
 * native/introducer/.
 */
import { changedPeer, encode, type PeerChange, Refusal } from "../../protocol.ts";
import { byTurns } from "../shares/turns.ts";
import type { Guard } from "./guard.ts";
import { lineAbout } from "./lines.ts";
import type { Member } from "./session.ts";

/** Changes of a participant within this time are told in one `updated`. */
const updateDelayMs = 50;
const nobody: ReadonlySet<Member> = new Set<Member>();

export class Members {
  readonly #guard: Guard;
  readonly #byId = new Map<number, Member>();
  readonly #rooms = new Map<string, Set<Member>>();
  readonly #changed = new Map<Member, PeerChange>();
  #changeTimer: Timer | undefined;

  constructor(guard: Guard) {
    this.#guard = guard;
  }

  get size(): number {
    return this.#byId.size;
  }
  get rooms(): ReadonlyMap<string, ReadonlySet<Member>> {
    return this.#rooms;
  }

  get(id: number): Member | undefined {
    return this.#byId.get(id);
  }
  values(): MapIterator<Member> {
    return this.#byId.values();
  }

  in(room: string): ReadonlySet<Member> {
    return this.#rooms.get(room) ?? nobody;
  }

  inRoom(room: string, id: number): Member | undefined {
    const member = this.#byId.get(id);
    return member?.room === room ? member : undefined;
  }

  /** The other participant of the same room: nobody learns whether an id exists elsewhere. */
  neighbour(member: Member, id: number): Member {
    if (id === member.peer.id) throw new Refusal("self", "that is you");
    const other = this.inRoom(member.room, id);
    if (!other) throw new Refusal("unknown-peer", `there is no ${id} in your room`);
    return other;
  }

  /** From now on it is known by its id. Its room hears of it by {@link show}. */
  add(member: Member): void {
    this.#byId.set(member.peer.id, member);
  }

  /** Its room is told that it is there. */
  show(member: Member): void {
    const { room } = member;
    sendTo(this.in(room), lineAbout(member, { type: "joined" }));
    const members = this.#rooms.get(room);
    if (members) members.add(member);
    else this.#rooms.set(room, new Set([member]));
  }

  /** Takes it out of its room; {@link tellLeft} tells the room. Returns whether it was there. */
  remove(member: Member): boolean {
    if (!this.#byId.delete(member.peer.id)) return false;
    const members = this.#rooms.get(member.room);
    members?.delete(member);
    if (members?.size === 0) this.#rooms.delete(member.room);
    return true;
  }

  tellLeft({ room, peer: { id } }: Member): void {
    sendTo(this.in(room), encode({ type: "left", id }));
  }

  /** Its room is told soon. */
  change(member: Member, change: PeerChange): void {
    member.peer = changedPeer(member.peer, change);
    member.json = "";
    this.#changeTimer ??= setTimeout(() => this.#tellChanges(), updateDelayMs);
    this.#changed.set(member, { ...this.#changed.get(member), ...change });
  }

  #tellChanges(): void {
    this.#changeTimer = undefined;
    const perRoom = new Map<string, string>();
    const changed = [...this.#changed];
    this.#changed.clear();
    for (const [{ session, peer, room }, change] of changed) {
      if (!this.#byId.has(peer.id)) continue;
      this.#guard.serve(session, () => {
        const line = encode({ type: "updated", id: peer.id, ...change });
        perRoom.set(room, (perRoom.get(room) ?? "") + line);
      });
    }
    for (const [room, lines] of perRoom) this.#guard.serve(undefined, () => sendTo(this.in(room), lines));
  }

  /** Says something to those, by turns. Resolves to how many could be told. */
  async notify(text: string, members: Iterable<Member>): Promise<number> {
    const line = encode({ type: "notice", text });
    let told = 0;
    await byTurns(members, ({ session }) => {
      if (session.isOver) return;
      told += 1;
      this.#guard.serve(session, () => {
        session.write(line);
        session.flush(); // now, or they would all be flushed in one turn
      });
    });
    return told;
  }

  stop(): void {
    clearTimeout(this.#changeTimer);
  }
}

function sendTo(members: Iterable<Member>, lines: string): void {
  for (const { session } of members) session.write(lines);
}
