/**
 * Rooms that several introducers share through one Redis (7.0 or newer, or Valkey; a primary behind one URL, no cluster).
 * Tells the others of ours, and keeps whom they have in our rooms, in the order in which Redis had it. It waits for Redis
 * nowhere where a participant would: while that is away, rooms are what is here, and guests stay as they were. For
 * introducer.ts alone.
 */
import { nameSkeleton, type Peer, type PeerChange } from "../../../protocol.ts";
import { tryTake, type Bucket } from "../../shares/budget.ts";
import { byTurns } from "../../shares/turns.ts";
import type { Answer, Answers, Guest, Letter, Occupant, Question, Rooms, RoomsOwner } from "../rooms.ts";
import { digestOf, RedisConnection } from "./connection.ts";
import {
  answerStart,
  channelOf,
  everyone,
  inbox,
  liveKey,
  prefixOf,
  readAnswer,
  readChange,
  readLetter,
  readQuestion,
  readValue,
  roomKeys,
  roomOf,
  scripts,
  storedKeys,
  valueOf,
  writeAnswer,
  writeQuestion,
  type Asked,
} from "./records.ts";

/** How long guests count as there after Redis has come back: their introducers may be back later than we. */
const graceMs = 6_000;
/** How long a participant who is the first in a room waits to see who is there elsewhere. */
const openMs = 1_000;
/** How long the end may take. */
const closeMs = 500;
/** How long answers to a question are waited for, and how many questions of all others are answered: so many at once, and a second. */
const askMs = 1_000;
const questionBurst = 20;
const questionsPerSecond = 5;
/** Guests of one room, and answers' participants, that are kept in mind, whatever is in Redis. */
const mostGuests = 10_000;
const mostListed = 200_000;
/**
 * Ids are drawn: a count that Redis keeps would begin anew with it, and so give some twice. Whoever has just left is
 * not taken for somebody else either.
 */
const mostId = 1e9;
/** Rooms looked after by one script: Redis does nothing else meanwhile. */
const roomsPerScript = 500;

const unknown = -1;

/** One room, as we see it. */
interface View {
  readonly own: Map<number, Occupant>;
  /** The names of those of ours of whom Redis may know, by their ids: also of who has left while it was away. */
  readonly told: Map<number, string>;
  readonly guests: Map<number, Guest>;
  /** {@link unknown} before the first snapshot; 0 where Redis knows of nobody. */
  version: number;
  /** Changes that come while a snapshot is under way. */
  waiting: string[] | undefined;
  opening: Promise<void> | undefined;
}

/** A question of ours under way. */
interface Asking {
  /** By introducer, as far as they have come. */
  readonly answers: Map<string, Answer>;
  /** How many have answered in full, and of how many; unknown until Redis says so. */
  whole: number;
  expected: number;
  done: () => void;
}

const nobody: ReadonlyMap<number, Guest> = new Map<number, Guest>();

/** Makes a guest what it is now, and returns what has changed. */
function update(guest: Guest, now: Guest): PeerChange {
  const change: PeerChange = {};
  for (const field of ["otherPublic", "mapping", "roundTripMs"] as const) {
    if (guest.peer[field] !== now.peer[field]) Object.assign(change, { [field]: now.peer[field] });
  }
  if (guest.peer.mapped !== now.peer.mapped) change.mapped = now.peer.mapped ?? null;
  guest.peer = now.peer;
  guest.hasMeasured = now.hasMeasured;
  guest.position = now.position;
  guest.roundTripMs = now.roundTripMs;
  guest.json = "";
  return change;
}

/** Whether nobody of ours is in it or about to be, and Redis knows so. */
function isUnused({ own, told, opening }: View): boolean {
  return own.size === 0 && told.size === 0 && opening === undefined;
}

function isSameProgram(a: Peer, b: Peer): boolean {
  return a.instance === b.instance && a.fingerprint === b.fingerprint;
}

export class RedisRooms implements Rooms {
  /** Another one for every run, so that nobody's leavings are taken for ours. */
  readonly #name = crypto.randomUUID().slice(0, 8);
  readonly #owner: RoomsOwner;
  readonly #redis: RedisConnection;
  readonly #digests = Object.fromEntries(
    Object.entries(scripts).map(([name, script]) => [name, digestOf(script)]),
  ) as typeof scripts;
  readonly #views = new Map<string, View>();
  /** The rooms whose changes come by the connection under way. */
  #heard = new Set<string>();
  #graceUntil = 0;
  readonly #ownIds = new Set<number>();
  readonly #asking = new Map<number, Asking>();
  #lastAsked = 0;
  readonly #questions: Bucket = { tokens: questionBurst, at: performance.now() };

  /** Throws what `new URL` throws; whether Redis is there is told later. */
  constructor(url: string, owner: RoomsOwner) {
    this.#owner = owner;
    this.#redis = new RedisConnection(url, {
      scripts: Object.values(scripts),
      channels: () => this.#channels(),
      received: (text, channel) => this.#received(text, channel),
      connected: () => this.#connected(),
      beat: () => this.#beat(false),
      lost: () => this.#forgetUnused(),
      isThere: (isThere, message) => owner.sharing(isThere, message),
    });
  }

  get isShared(): boolean {
    return this.#redis.isThere;
  }

  nextId(room: string): number {
    for (;;) {
      const id = 1 + Math.floor(Math.random() * mostId);
      if (!this.#ownIds.has(id) && !this.guests(room).has(id)) return id;
    }
  }

  open(room: string): Promise<void> | undefined {
    const known = this.#views.get(room);
    if (known) return known.opening;
    const [own, told, guests] = [
      new Map<number, Occupant>(),
      new Map<number, string>(),
      new Map<number, Guest>(),
    ];
    const view: View = { own, told, guests, version: unknown, waiting: undefined, opening: undefined };
    this.#views.set(room, view);
    const looked = this.#redis.tried.then(() => this.#redis.attempt(() => this.#look(room, view)));
    view.opening = Promise.race([looked, Bun.sleep(openMs)]).then(() => {
      view.opening = undefined;
      setImmediate(() => this.#forgetIfUnused(room)); // nobody may have come in
    });
    return view.opening;
  }

  guests(room: string): ReadonlyMap<number, Guest> {
    return this.#views.get(room)?.guests ?? nobody;
  }

  put(own: Occupant, replaced?: Guest): void {
    const view = this.#views.get(own.room);
    if (!view) return;
    view.own.set(own.peer.id, own);
    this.#ownIds.add(own.peer.id);
    if (replaced) this.#drop(view, replaced.peer.id, "it registered anew");
    void this.#redis.attempt(() => this.#put(own, replaced));
  }

  remove({ room, peer }: Occupant): void {
    this.#ownIds.delete(peer.id);
    const view = this.#views.get(room);
    if (!view?.own.delete(peer.id)) return;
    void this.#redis.attempt(() => this.#untell(room, view, peer.id));
    this.#forgetIfUnused(room);
  }

  send(guest: Guest, letter: Letter): void {
    this.#redis.command("PUBLISH", [inbox(guest.introducer), JSON.stringify(letter)]).then(
      (receivers) => receivers === 0 && this.#owner.undelivered(guest),
      () => this.#owner.undelivered(guest),
    );
  }

  async ask(question: Question): Promise<Answers> {
    const { promise, resolve: done } = Promise.withResolvers<void>();
    const asking: Asking = { answers: new Map(), whole: 0, expected: Infinity, done };
    const number = ++this.#lastAsked;
    this.#asking.set(number, asking);
    const text = writeQuestion({ by: this.#name, number, question });
    this.#redis.command("PUBLISH", [everyone, text]).then(
      // We hear it, too.
      (receivers) => this.#answered(asking, Number(receivers) - 1),
      done,
    );
    await Promise.race([promise, Bun.sleep(askMs)]);
    this.#asking.delete(number);
    const all = [...asking.answers.values()];
    const missing = asking.expected - asking.whole;
    if (missing <= 0) return { all };
    const who =
      missing === Infinity
        ? "Redis does not answer"
        : `${missing} of ${asking.expected} others did not answer`;
    return { all, problem: this.isShared ? who : "the other introducers can't be reached now" };
  }

  #answered(asking: Asking, expected: number): void {
    asking.expected = expected;
    if (asking.whole >= expected) asking.done();
  }

  async close(): Promise<void> {
    const leaving = this.#redis.attempt(() => this.#redis.command("DEL", [liveKey(this.#name)]));
    await Promise.race([leaving, Bun.sleep(closeMs)]);
    this.#redis.close();
  }

  #script(name: keyof typeof scripts, keys: string[], args: string[] = []): Promise<unknown> {
    return this.#redis.command("EVALSHA", [this.#digests[name], String(keys.length), ...keys, ...args]);
  }

  // --- the connection ------------------------------------------------------------------------------------

  #channels(): string[] {
    this.#heard = new Set(this.#views.keys());
    return [inbox(this.#name), everyone, ...this.#heard.values().map(channelOf)];
  }

  async #connected(): Promise<void> {
    if (this.#views.size > 0) this.#graceUntil = performance.now() + graceMs;
    await this.#beat(true);
  }

  async #beat(isFirst: boolean): Promise<void> {
    const rooms = [...this.#views.keys()];
    let isAnew = isFirst;
    for (let at = 0; at === 0 || at < rooms.length; at += roomsPerScript) {
      const some = rooms.slice(at, at + roomsPerScript);
      const keys = [liveKey(this.#name), ...some.flatMap(storedKeys)];
      const [wasAlive, ...versions] = (await this.#script("beat", keys)) as [number, ...string[]];
      if (at === 0) isAnew ||= wasAlive === 0;
      await Promise.all(some.map((room, index) => this.#keepUp(room, Number(versions[index]), isAnew)));
    }
    if (performance.now() < this.#graceUntil) return;
    const isGraceOver = this.#graceUntil > 0;
    this.#graceUntil = 0;
    if (isGraceOver) await Promise.all([...this.#views].map(([room, view]) => this.#sync(room, view)));
    await this.#reap();
  }

  async #keepUp(room: string, version: number, isAnew: boolean): Promise<void> {
    const view = this.#views.get(room);
    if (!view) return;
    const left = [...view.told.keys()].filter((id) => !view.own.has(id)); // while Redis was away
    await Promise.all(left.map((id) => this.#untell(room, view, id)));
    if (isUnused(view)) return this.#forget(room);
    if (!this.#heard.has(room)) return this.#look(room, view);
    if (isAnew) await Promise.all([...view.own.values()].map((own) => this.#put(own)));
    if (isAnew || version > view.version) await this.#sync(room, view);
  }

  /** Without Redis nobody is elsewhere, and there are no beats by which to forget. */
  #forgetIfUnused(room: string): void {
    const view = this.#views.get(room);
    if (!view || this.#redis.isThere || !isUnused(view)) return;
    this.#views.delete(room);
    this.#heard.delete(room);
  }

  #forgetUnused(): void {
    for (const room of this.#views.keys()) this.#forgetIfUnused(room);
  }

  async #forget(room: string): Promise<void> {
    this.#views.delete(room);
    if (this.#heard.delete(room)) await this.#redis.unsubscribe(channelOf(room));
  }

  /** Removes those whose introducer is gone: whoever notices first does it for all. */
  async #reap(): Promise<void> {
    const guests = [...this.#views.values()].flatMap((view) => [...view.guests.values()]);
    const owners = [...new Set(guests.map(({ introducer }) => introducer))];
    if (owners.length === 0) return;
    const alive = (await this.#redis.command("MGET", owners.map(liveKey))) as (string | null)[];
    for (const owner of owners.filter((_, index) => alive[index] === null)) {
      const rooms = new Set(guests.filter(({ introducer }) => introducer === owner).map(({ room }) => room));
      const reap = (room: string) =>
        this.#script("reap", [...roomKeys(room), liveKey(owner)], [prefixOf(owner)]);
      await Promise.all([...rooms].map(reap));
    }
  }

  // --- ours ----------------------------------------------------------------------------------------------

  async #put(own: Occupant, replaced?: Guest): Promise<void> {
    const { room, peer } = own;
    const [id, before] = [String(peer.id), String(replaced?.peer.id ?? "")];
    const args = [id, valueOf(this.#name, own), nameSkeleton(peer.name), prefixOf(this.#name), before];
    this.#views.get(room)?.told.set(peer.id, nameSkeleton(peer.name));
    const taken = await this.#script("put", roomKeys(room), args);
    if (taken === "" || this.#views.get(room)?.own.get(peer.id) !== own) return;
    this.#owner.displaced(peer.id, `its ${String(taken)} is somebody else's in the room`);
  }

  /** Takes one who has left out of Redis. */
  async #untell(room: string, { told }: View, id: number): Promise<void> {
    const name = told.get(id);
    if (name === undefined) return;
    await this.#script("remove", roomKeys(room), [String(id), name]);
    told.delete(id);
  }

  // --- theirs --------------------------------------------------------------------------------------------

  #received(text: string, channel: string): void {
    if (channel === inbox(this.#name)) return this.#receivedOwn(text);
    if (channel === everyone) {
      const asked = readQuestion(text);
      return asked && this.#answer(asked);
    }
    const room = roomOf(channel);
    const view = this.#views.get(room);
    if (view?.waiting) view.waiting.push(text);
    else if (view) this.#apply(room, view, text);
  }

  #receivedOwn(text: string): void {
    // An answer may come in hundreds of parts at once, of which each takes as long as a thousand letters.
    if (text.startsWith(answerStart)) return void byTurns([text], (part) => this.#receivedAnswer(part));
    const letter = readLetter(text);
    if (letter) this.#owner.received(letter);
  }

  #receivedAnswer(text: string): void {
    const answer = readAnswer(text);
    const asking = answer && this.#asking.get(answer.number);
    if (!asking) return;
    const { by, place, count, participants, more } = answer;
    const known = asking.answers.get(by) ?? { place, count, participants: [] };
    asking.answers.set(by, known);
    if (known.participants.length < mostListed) known.participants.push(...participants);
    if (more) return;
    asking.whole += 1;
    this.#answered(asking, asking.expected);
  }

  /** Whatever anybody who can write to Redis asks: not too often. */
  #answer({ by, number, question }: Asked): void {
    if (by === this.#name || !tryTake(this.#questions, questionBurst, questionsPerSecond, performance.now()))
      return;
    void this.#redis.attempt(async () => {
      const answer = await this.#owner.answer(question);
      const sent: Promise<unknown>[] = [];
      await byTurns(answer ? writeAnswer(this.#name, number, answer) : [], (part) => {
        const one = this.#redis.command("PUBLISH", [inbox(by), part]);
        one.catch(() => {}); // until all are waited for
        sent.push(one);
      });
      await Promise.all(sent);
    });
  }

  #apply(room: string, view: View, text: string): void {
    const change = readChange(text);
    // What came before the first snapshot, or the last one, is in it.
    if (!change || view.version === unknown || change.version <= view.version) return;
    if (change.version > view.version + 1) {
      void this.#redis.attempt(() => this.#sync(room, view)); // one was lost
      return;
    }
    view.version = change.version;
    if (change.sign === "+") this.#set(room, view, change.id, change.value);
    else this.#gone(view, Number(change.id), change.sign === "!");
  }

  #set(room: string, view: View, id: string, value: string): void {
    const now = value.startsWith(prefixOf(this.#name)) ? undefined : readValue(room, id, value);
    if (!now) return;
    this.#addWay(now);
    const known = view.guests.get(now.peer.id);
    if (known?.introducer === now.introducer) return this.#owner.changed(known, update(known, now));
    // Participants tell a program by its instance: of one that has come anew the old id has to go first.
    for (const { peer } of [...view.guests.values()])
      if (peer.id === now.peer.id || isSameProgram(peer, now.peer)) this.#drop(view, peer.id, "it came anew");
    if (view.guests.size >= mostGuests) return;
    view.guests.set(now.peer.id, now);
    this.#owner.joined(now);
  }

  /** Redis is taken to be as far from its introducer as from us: to start with ours, it has to be told so much earlier. */
  #addWay(guest: Guest): void {
    guest.peer.viaMs = Math.round(this.#redis.roundTripMs);
    if (guest.roundTripMs !== undefined) guest.roundTripMs += 2 * guest.peer.viaMs;
  }

  #gone(view: View, id: number, hasMoved: boolean): void {
    const own = view.own.get(id);
    if (!own) return this.#drop(view, id, hasMoved ? "it registered anew" : "it left its introducer");
    if (hasMoved) return this.#owner.displaced(id, "it registered anew at another introducer");
    void this.#redis.attempt(() => this.#put(own)); // they took us for dead
  }

  #drop(view: View, id: number, reason: string): void {
    const guest = view.guests.get(id);
    if (!guest) return;
    view.guests.delete(id);
    this.#owner.left(guest, reason);
  }

  /** First hear, then look: so nothing is missed between. */
  async #look(room: string, view: View): Promise<void> {
    if (this.#views.get(room) !== view) return; // whoever wanted to know is gone
    if (!this.#heard.has(room)) {
      this.#heard.add(room);
      await this.#redis.subscribe([channelOf(room)]);
    }
    await Promise.all([...view.own.values()].map((own) => this.#put(own)));
    await this.#sync(room, view);
  }

  /** Makes what we know of a room what Redis has of it. */
  async #sync(room: string, view: View): Promise<void> {
    if (view.waiting) return; // it is under way
    view.waiting = [];
    try {
      const [version, flat] = (await this.#script("snapshot", storedKeys(room))) as [string, string[]];
      const there = new Map(
        Array.from({ length: flat.length / 2 }, (_, at) => [flat[2 * at]!, flat[2 * at + 1]!]),
      );
      view.version = Number(version);
      await this.#compare(room, view, there);
    } finally {
      const waiting = view.waiting;
      view.waiting = undefined;
      for (const text of waiting) this.#apply(room, view, text);
    }
  }

  async #compare(room: string, view: View, there: Map<string, string>): Promise<void> {
    const isMissing = (id: number) => !there.has(String(id));
    if (performance.now() >= this.#graceUntil)
      for (const id of [...view.guests.keys()].filter(isMissing)) this.#drop(view, id, "it is gone");
    for (const [id, value] of there) this.#set(room, view, id, value);
    const ours = [...there].filter(([, value]) => value.startsWith(prefixOf(this.#name)));
    for (const [id, value] of ours.filter(([id]) => !view.own.has(Number(id)))) {
      // It left while Redis was away.
      const name = nameSkeleton(readValue(room, id, value)?.peer.name ?? "");
      await this.#script("remove", roomKeys(room), [id, name]);
    }
    for (const own of [...view.own.values()].filter(({ peer }) => isMissing(peer.id))) await this.#put(own);
  }
}
