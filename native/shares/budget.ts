/**
 * What one client may take: so much at once and then so much a second, and no more than its share of what there is
 * for all. It owns no clock and no timer, and knows neither sessions nor messages.
 *
 * For introducer.ts, native/introducer/relay.ts, native/introducer/redis/ and native/punch/. No FFI.
 */
import { Refusal } from "../../protocol.ts";

/** How many shares of an address an IPv6 /48 has. */
export const siteShares = 4;

/** So many at once, then so many a second. */
export interface Bucket {
  tokens: number;
  at: number;
}

export function fill(bucket: Bucket, burst: number, perSecond: number, now: number): void {
  bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1000) * perSecond);
  bucket.at = now;
}

export function take(bucket: Bucket, burst: number, perSecond: number, now: number): boolean {
  fill(bucket, burst, perSecond, now);
  if (bucket.tokens < 1) return false;
  bucket.tokens -= 1;
  return true;
}

/** Seconds until such a bucket gives one again: 0 when it does now. */
export function waitSeconds(bucket: Bucket, perMinute: number, now: number): number {
  fill(bucket, perMinute, perMinute / 60, now);
  return bucket.tokens >= 1 ? 0 : Math.ceil(((1 - bucket.tokens) * 60) / perMinute);
}

/** When such a bucket will be as full as it gets. */
export function fullAt({ tokens, at }: Bucket, perMinute: number): number {
  return tokens >= perMinute ? at : at + ((perMinute - tokens) * 60_000) / perMinute;
}

export function waitRefusal(why: string, seconds: number): Refusal {
  return new Refusal("limit", `${why}: wait ${seconds} s`);
}

/** The part of an address that one subscriber holds: of IPv6 a whole /64. */
export function subscriber(address: string): string {
  if (!address.includes(":")) return address;
  const [head = "", tail = ""] = address.split("::");
  const [front, back] = [head.split(":").filter(Boolean), tail.split(":").filter(Boolean)];
  const zeros = Array<string>(8 - front.length - back.length).fill("0");
  return [...front, ...zeros, ...back].slice(0, 4).join(":");
}

/** The /48 of an IPv6 subscriber, which a single site may hold (RFC 6177 §2), and 65,536 subscribers with it. */
export function siteOf(subscriber: string): string | undefined {
  return subscriber.includes(":") ? `${subscriber.split(":", 3).join(":")}/48` : undefined;
}

/** Whether one has `share` of these places, or its site {@link siteShares} times that. */
export function hasShare(own: string, places: Iterable<{ subscriber: string }>, share: number): boolean {
  const site = siteOf(own);
  const prefix = site?.replace("/48", ":");
  let [ofOwn, ofSite] = [0, 0];
  for (const { subscriber: other } of places) {
    if (other === own) ofOwn += 1;
    if (prefix !== undefined && other.startsWith(prefix)) ofSite += 1;
  }
  return ofOwn >= share || ofSite >= share * siteShares;
}

/** Where a program of this host comes from unless it chooses: 127.0.0.1 or ::1, not all of 127.0.0.0/8. */
export function isOwnHost(subscriber: string): boolean {
  return subscriber === "127.0.0.1" || subscriber === "0:0:0:0";
}

/**
 * The most that one may have of what is there for all: a part of what is left, so that whoever has none always finds
 * some. Of n greedy ones each gets 1/(n + 4), and as much as four of them have is left.
 */
export function fairShare(all: number, used: number): number {
  return Math.max(1, Math.floor((all - used) / 4));
}

/**
 * How much of something each subscriber has, and all together: a number of connections, bytes that are held. It counts
 * also what has been given beyond the share, until that is taken back.
 */
export class Shares {
  total = 0;
  readonly #all: number;
  readonly #each: number;
  readonly #ownHostShares: number;
  readonly #amounts = new Map<string, number>();

  /** `each`: the most a subscriber ever gets, however much is left; our own host so many times that. */
  constructor(all: number, each: number, ownHostShares: number) {
    this.#all = all;
    this.#each = each;
    this.#ownHostShares = ownHostShares;
  }

  of(key: string): number {
    return this.#amounts.get(key) ?? 0;
  }

  /** What a subscriber may have now. */
  most(subscriber: string): number {
    const share = Math.min(this.#each, fairShare(this.#all, this.total));
    return isOwnHost(subscriber) ? share * this.#ownHostShares : share;
  }

  /** Whether with so much `more` there is more than there may be. */
  isUsedUp(more = 0): boolean {
    return this.total + more > this.#all;
  }

  /** Whether with so much `more` a subscriber has more than its share, or its site has more than {@link siteShares}. */
  isOver(subscriber: string, more = 0): boolean {
    const most = this.most(subscriber);
    if (this.of(subscriber) + more > most) return true;
    const site = siteOf(subscriber);
    return site !== undefined && this.of(site) + more > most * siteShares;
  }

  /** Whether a subscriber, or its site, has so much beyond what it may have. */
  isBeyond(subscriber: string, excess: number): boolean {
    const most = this.most(subscriber);
    if (this.of(subscriber) >= most + excess) return true;
    const site = siteOf(subscriber);
    return site !== undefined && this.of(site) >= most * siteShares + excess;
  }

  add(subscriber: string, amount = 1): void {
    this.total += amount;
    for (const key of [subscriber, siteOf(subscriber)]) {
      if (key !== undefined) this.#amounts.set(key, this.of(key) + amount);
    }
  }

  remove(subscriber: string, amount = 1): void {
    this.total -= amount;
    for (const key of [subscriber, siteOf(subscriber)]) {
      if (key === undefined) continue;
      const rest = this.of(key) - amount;
      if (rest > 0) this.#amounts.set(key, rest);
      else this.#amounts.delete(key);
    }
  }
}

/**
 * What each subscriber has used of late of something that comes back by itself, such as processor time: what was used
 * counts e times less after each window. Whoever has used more than its fair share has to wait.
 */
export class Usage {
  readonly #all: number;
  readonly #least: number;
  readonly #windowMs: number;
  readonly #ownHostShares: number;
  readonly #used = new Map<string, Bucket>();
  readonly #total: Bucket = { tokens: 0, at: 0 };

  /** `all` in one window is there for all; `least` of it has each, however many others there are. */
  constructor(all: number, least: number, windowMs: number, ownHostShares: number) {
    this.#all = all;
    this.#least = least;
    this.#windowMs = windowMs;
    this.#ownHostShares = ownHostShares;
  }

  spend(subscriber: string, amount: number, now: number): void {
    this.#decay(this.#total, now).tokens += amount;
    for (const key of [subscriber, siteOf(subscriber)]) {
      if (key === undefined) continue;
      let used = this.#used.get(key);
      if (!used) this.#used.set(key, (used = { tokens: 0, at: now }));
      this.#decay(used, now).tokens += amount;
    }
  }

  isOver(subscriber: string, now: number): boolean {
    const rest = this.#all - this.#decay(this.#total, now).tokens;
    return this.#isMore(subscriber, Math.max(this.#least, rest / 4), now);
  }

  #isMore(subscriber: string, share: number, now: number): boolean {
    const most = isOwnHost(subscriber) ? share * this.#ownHostShares : share;
    if (this.of(subscriber, now) > most) return true;
    const site = siteOf(subscriber);
    return site !== undefined && this.of(site, now) > most * siteShares;
  }

  /** Whether a subscriber has used more than everyone may, or its site. */
  isBusy(subscriber: string, now: number): boolean {
    return this.#isMore(subscriber, this.#least, now);
  }

  /** Whether a subscriber has used so much of late, or its site {@link siteShares} times that. */
  hasUsed(subscriber: string, amount: number, now: number): boolean {
    if (this.of(subscriber, now) >= amount) return true;
    const site = siteOf(subscriber);
    return site !== undefined && this.of(site, now) >= amount * siteShares;
  }

  /** Forgets those who have used next to nothing of late. */
  tick(now: number): void {
    for (const [key, used] of this.#used) {
      if (this.#decay(used, now).tokens < this.#least / 100) this.#used.delete(key);
    }
  }

  /** Of how many it is known that they have used something. */
  get size(): number {
    return this.#used.size;
  }

  /** How much a subscriber has used of late. */
  of(key: string, now: number): number {
    const used = this.#used.get(key);
    return used ? this.#decay(used, now).tokens : 0;
  }

  #decay(used: Bucket, now: number): Bucket {
    used.tokens *= Math.exp((used.at - now) / this.#windowMs);
    used.at = now;
    return used;
  }
}
