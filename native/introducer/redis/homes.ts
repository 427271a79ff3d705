/**
 * Where rooms live, if several introducers share a Redis (7.0 or newer, or Valkey; a primary behind one URL, no cluster). A
 * room has one home: the introducer that holds its lease. Redis is asked when the first participant of a room comes. All
 * leases are renewed together. While Redis is away, rooms that are at home go on, and new ones are taken on trust. For
 * introducer.ts.
 *
 *   punch:home:R    the introducer that room R lives at, by its advertised address: for 8 s, unless renewed
 *   punch:live      hash: introducer → its counts, and when it last said them, by Redis's clock
 *   channel punch:all   what an operator says to everybody
 *
 * An introducer is named by its advertised address, so that it has its rooms again at once when it is started again.
 */
import { maxTextLength } from "../../../protocol.ts";
import { digestOf, RedisConnection } from "./connection.ts";

/** How long a lease lasts. One renewal may be missed, and the next one may be late. */
export const leaseMs = 8_000;
/** How long giving all leases back may take. */
const closeMs = 500;
/** So many rooms are handled by one script: Redis does nothing else meanwhile. */
const roomsPerScript = 500;
/** The most introducers that are listed, whatever is in Redis. */
const mostListed = 1_000;

const live = "punch:live";
const everybody = "punch:all";
const keyOf = (room: string) => `punch:home:${room}`;

const scripts = {
  /** For keys of rooms, and our address: who has each lease. We take those that nobody has. */
  claim: `local homes={}
for at,key in ipairs(KEYS) do
  local home=redis.call('GET',key)
  if not home or home==ARGV[1] then redis.call('SET',key,ARGV[1],'PX',${leaseMs}) home=ARGV[1] end
  homes[at]=home
end
return homes`,
  /** For keys of rooms, and our address: gives our leases back. */
  release: `for _,key in ipairs(KEYS) do if redis.call('GET',key)==ARGV[1] then redis.call('DEL',key) end end`,
  /** Writes our address and counts. Introducers that have not done so for an hour are forgotten. */
  beat: `local now=redis.call('TIME')[1]
redis.call('HSET','${live}',ARGV[1],now..' '..ARGV[2])
local all=redis.call('HGETALL','${live}')
for at=1,#all,2 do
  if now-(tonumber(all[at+1]:match('^%d+')) or 0)>3600 then redis.call('HDEL','${live}',all[at]) end
end`,
  /** All introducers that have written their counts within the time of a lease. */
  others: `local now,told=redis.call('TIME')[1],{}
local all=redis.call('HGETALL','${live}')
for at=1,#all,2 do
  local when,counts=all[at+1]:match('^(%d+) (.*)$')
  if when and now-when<=${leaseMs / 1000} then told[#told+1]=all[at]..' '..counts end
end
return told`,
};

/** One of the introducers that share the Redis. */
export interface Neighbour {
  /** HOST:PORT, as it advertises it. */
  address: string;
  participants: number;
  rooms: number;
  /** It gives ids above this one. */
  firstId: number;
}

/** Each introducer gives ids from a million of its own. So an id shows at which introducer its participant is. */
export const idsEach = 1_000_000;
const millions = 999_999;
export function randomFirstId(): number {
  return idsEach * (1 + Math.floor(Math.random() * millions));
}

/** What it needs of its introducer. */
export interface HomesOwner {
  /** Rooms in which somebody is here. */
  rooms(): Iterable<string>;
  counts(): Omit<Neighbour, "address">;
  /** A room that we took for ours lives at `address`. */
  movedOut(room: string, address: string): void;
  /** The operator of another introducer says something to everybody. */
  notice(text: string): void;
  /** Whether Redis is there. Called when that changes, and once at the start. */
  sharing(isShared: boolean, message: string): void;
}

export class Homes {
  readonly #address: string;
  readonly #owner: HomesOwner;
  readonly #askMs: number;
  readonly #redis: RedisConnection;
  readonly #digests = Object.fromEntries(
    Object.entries(scripts).map(([name, script]) => [name, digestOf(script)]),
  ) as Record<keyof typeof scripts, string>;
  /** Rooms whose home is being asked for. Whoever comes meanwhile waits for the same answer. */
  readonly #asking = new Map<string, Promise<string>>();
  #isLeaving = false;

  /**
   * `address`: where participants are sent. `askMs`: how long Redis may take to say where a room lives. Throws what
   * `new URL` throws.
   */
  constructor(url: string, address: string, owner: HomesOwner, askMs: number) {
    this.#address = address;
    this.#owner = owner;
    this.#askMs = askMs;
    this.#redis = new RedisConnection(url, {
      scripts: Object.values(scripts),
      channel: everybody,
      received: (text) => this.#received(text),
      connected: () => this.#beat(),
      beat: () => this.#beat(),
      isThere: (isThere, message) => owner.sharing(isThere, message),
    });
  }

  get isShared(): boolean {
    return this.#redis.isThere;
  }

  /** Resolves to the address at which a room lives; to our own if Redis does not answer. Never rejects. */
  find(room: string): Promise<string> {
    const known = this.#asking.get(room);
    if (known) return known;
    const asked = this.#redis.tried.then(() => this.#claim([room]));
    const answer = Promise.race([asked, Bun.sleep(this.#askMs)]).then(
      (homes) => homes?.[0] ?? this.#address,
      () => this.#address,
    );
    const settled = answer.finally(() => this.#asking.delete(room));
    this.#asking.set(room, settled);
    return settled;
  }

  isOwn(address: string): boolean {
    return address === this.#address;
  }

  /** Gives the leases of these rooms back: nobody is in them any more. */
  release(rooms: Iterable<string>): Promise<void> {
    return this.#redis.attempt(() => this.#forAll("release", rooms, () => {}));
  }

  /** The other introducers. Rejects while Redis is away. */
  async others(): Promise<Neighbour[]> {
    const told = (await this.#script("others")) as string[];
    return told
      .slice(0, mostListed)
      .map(readNeighbour)
      .filter((one) => one !== undefined && !this.isOwn(one.address)) as Neighbour[];
  }

  /** Sends it to all at the other introducers. Resolves to how many introducers those are; rejects while Redis is away. */
  async broadcast(text: string): Promise<number> {
    const said = JSON.stringify({ by: this.#address, text });
    return Math.max(0, Number(await this.#redis.command("PUBLISH", [everybody, said])) - 1);
  }

  /** Gives all leases back, and takes no more. Resolves when that is done, after {@link closeMs} at the latest. */
  async leave(): Promise<void> {
    this.#isLeaving = true;
    const gone = Promise.all([
      this.release(this.#owner.rooms()),
      this.#redis.attempt(() => this.#redis.command("HDEL", [live, this.#address])),
    ]);
    await Promise.race([gone, Bun.sleep(closeMs)]);
  }

  async close(): Promise<void> {
    await this.leave();
    this.#redis.close();
  }

  async #claim(rooms: string[]): Promise<string[]> {
    return (await this.#script("claim", rooms.map(keyOf), [this.#address])) as string[];
  }

  /** Renews all leases. If somebody else has one, because we or Redis were away, our people are sent there. */
  async #beat(): Promise<void> {
    if (this.#isLeaving) return;
    const { participants, rooms, firstId } = this.#owner.counts();
    await this.#script("beat", [], [this.#address, `${participants} ${rooms} ${firstId}`]);
    await this.#forAll("claim", this.#owner.rooms(), (room, home) => {
      if (home !== this.#address) this.#owner.movedOut(room, home);
    });
  }

  async #forAll(
    script: "claim" | "release",
    rooms: Iterable<string>,
    each: (room: string, home: string) => void,
  ): Promise<void> {
    const all = [...rooms];
    for (let at = 0; at < all.length; at += roomsPerScript) {
      const some = all.slice(at, at + roomsPerScript);
      const homes = (await this.#script(script, some.map(keyOf), [this.#address])) as string[] | null;
      if (homes) for (const [index, room] of some.entries()) each(room, homes[index]!);
    }
  }

  #script(name: keyof typeof scripts, keys: string[] = [], args: string[] = []): Promise<unknown> {
    return this.#redis.command("EVALSHA", [this.#digests[name], String(keys.length), ...keys, ...args]);
  }

  #received(said: string): void {
    const { by, text } = readNotice(said) ?? {};
    if (text !== undefined && by !== this.#address) this.#owner.notice(text);
  }
}

/** Reads what was published, by anybody who can write to Redis. Undefined if no introducer says that. */
export function readNotice(said: string): { by: unknown; text: string } | undefined {
  let value: { by?: unknown; text?: unknown } | null;
  try {
    value = JSON.parse(said) as typeof value;
  } catch {
    return undefined;
  }
  const { by, text } = value ?? {};
  const isText = typeof text === "string" && text.length <= maxTextLength && text.isWellFormed();
  return isText ? { by, text } : undefined;
}

/** Undefined if no introducer of this version has written that. */
export function readNeighbour(told: string): Neighbour | undefined {
  const [, address, participants, rooms, firstId] =
    /^(\S{1,300}) (\d{1,9}) (\d{1,9}) (\d{1,12})$/.exec(told) ?? [];
  if (address === undefined) return undefined;
  return { address, participants: Number(participants), rooms: Number(rooms), firstId: Number(firstId) };
}
