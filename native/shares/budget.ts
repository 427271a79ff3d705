/**
 * Budgets. A bucket gives so much at once, then so much a second. Shares keep one source from taking what there is for
 * all. A source is an address, or in IPv6 a /64; a /48 is a site. Owns no clock and no timer, and knows no session and no
 * message. Anything may import it.
 */
import { maxRetryInMs, Refusal } from "../../protocol.ts";

/** A site (an IPv6 /48) may have so many times what one source may. */
export const siteShares = 4;

/** A token bucket. `at`: the time in ms that `tokens` is of. */
export interface Bucket {
  tokens: number;
  at: number;
}

export function refill(bucket: Bucket, burst: number, perSecond: number, now: number): void {
  bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1000) * perSecond);
  bucket.at = now;
}

export function tryTake(bucket: Bucket, burst: number, perSecond: number, now: number): boolean {
  refill(bucket, burst, perSecond, now);
  if (bucket.tokens < 1) return false;
  bucket.tokens -= 1;
  return true;
}

/** Seconds until this bucket gives one again; 0 if it does now. */
export function waitSeconds(bucket: Bucket, perMinute: number, now: number): number {
  refill(bucket, perMinute, perMinute / 60, now);
  return bucket.tokens >= 1 ? 0 : Math.ceil(((1 - bucket.tokens) * 60) / perMinute);
}

/** When this bucket will be full, in ms. */
export function fullAt({ tokens, at }: Bucket, perMinute: number): number {
  return tokens >= perMinute ? at : at + ((perMinute - tokens) * 60_000) / perMinute;
}

/** It may be asked for again later. */
export class WaitRefusal extends Refusal {
  readonly retryInMs: number;
  constructor(why: string, seconds: number) {
    super("limit", `${why}: wait ${seconds} s`);
    this.retryInMs = Math.min(maxRetryInMs, seconds * 1000);
  }
}

/** The source that an address belongs to: an IPv4 address itself, of IPv6 the whole /64. */
export function sourceOf(address: string): string {
  if (!address.includes(":")) return address;
  const [head = "", tail = ""] = address.split("::");
  const [front, back] = [head.split(":").filter(Boolean), tail.split(":").filter(Boolean)];
  const zeros = Array<string>(8 - front.length - back.length).fill("0");
  return [...front, ...zeros, ...back].slice(0, 4).join(":");
}

/** The /48 of an IPv6 source: one site may hold it, and 65,536 sources with it (RFC 6177 §2). Undefined for IPv4. */
export function siteOf(source: string): string | undefined {
  return source.includes(":") ? `${source.split(":", 3).join(":")}/48` : undefined;
}

/** Whether a source has `share` of these places, or its site has {@link siteShares} times that. */
export function hasShare(source: string, places: Iterable<{ source: string }>, share: number): boolean {
  const site = siteOf(source);
  const prefix = site?.replace("/48", ":");
  let [ofSource, ofSite] = [0, 0];
  for (const { source: other } of places) {
    if (other === source) ofSource += 1;
    if (prefix !== undefined && other.startsWith(prefix)) ofSite += 1;
  }
  return ofSource >= share || ofSite >= share * siteShares;
}

/** Whether a program of this host comes from there by default: 127.0.0.1 or ::1, not all of 127.0.0.0/8. */
export function isOwnHost(source: string): boolean {
  return source === "127.0.0.1" || source === "0:0:0:0";
}

/**
 * The most that one source may have: a quarter of what is left. So there is always some for a source that has none.
 * With n greedy sources, each ends up with 1/(n + 4) of all, and 4/(n + 4) stays free.
 */
export function fairShare(all: number, used: number): number {
  return Math.max(1, Math.floor((all - used) / 4));
}

/**
 * How much of something each source has, and all together: connections, or bytes that are held. What was given beyond a
 * share is counted too, until it is given back.
 */
export class Shares {
  total = 0;
  #all: number;
  #each: number;
  readonly #ownHostShares: number;
  readonly #amounts = new Map<string, number>();

  /** `each`: the most a source ever gets, however much is left. Our own host gets `ownHostShares` times that. */
  constructor(all: number, each: number, ownHostShares: number) {
    this.#all = all;
    this.#each = each;
    this.#ownHostShares = ownHostShares;
  }

  /** From now on there is so much. What was given is not taken back. */
  resize(all: number, each: number): void {
    this.#all = all;
    this.#each = each;
  }

  of(key: string): number {
    return this.#amounts.get(key) ?? 0;
  }

  /** The most that a source may have now. */
  most(source: string): number {
    const share = Math.min(this.#each, fairShare(this.#all, this.total));
    return isOwnHost(source) ? share * this.#ownHostShares : share;
  }

  /** Whether `more` would go beyond what there is for all. */
  isUsedUp(more = 0): boolean {
    return this.total + more > this.#all;
  }

  /** Whether with `more` the source would have more than its share, or its site more than {@link siteShares} shares. */
  isOver(source: string, more = 0): boolean {
    const most = this.most(source);
    if (this.of(source) + more > most) return true;
    const site = siteOf(source);
    return site !== undefined && this.of(site) + more > most * siteShares;
  }

  /** Whether a source, or its site, has at least `excess` more than it may have. */
  isBeyond(source: string, excess: number): boolean {
    const most = this.most(source);
    if (this.of(source) >= most + excess) return true;
    const site = siteOf(source);
    return site !== undefined && this.of(site) >= most * siteShares + excess;
  }

  add(source: string, amount = 1): void {
    this.total += amount;
    for (const key of [source, siteOf(source)]) {
      if (key !== undefined) this.#amounts.set(key, this.of(key) + amount);
    }
  }

  remove(source: string, amount = 1): void {
    this.total -= amount;
    for (const key of [source, siteOf(source)]) {
      if (key === undefined) continue;
      const rest = this.of(key) - amount;
      if (rest > 0) this.#amounts.set(key, rest);
      else this.#amounts.delete(key);
    }
  }
}

/**
 * What each source has used lately of something that comes back by itself, such as processor time. What was used counts
 * e times less after each window. A source that has used more than its fair share has to wait.
 */
export class Usage {
  readonly #all: number;
  readonly #min: number;
  readonly #windowMs: number;
  readonly #ownHostShares: number;
  readonly #used = new Map<string, Bucket>();
  readonly #total: Bucket = { tokens: 0, at: 0 };

  /** `all`: what there is in one window. `min`: what each source has of it, however many others there are. */
  constructor(all: number, min: number, windowMs: number, ownHostShares: number) {
    this.#all = all;
    this.#min = min;
    this.#windowMs = windowMs;
    this.#ownHostShares = ownHostShares;
  }

  spend(source: string, amount: number, now: number): void {
    this.#decay(this.#total, now).tokens += amount;
    for (const key of [source, siteOf(source)]) {
      if (key === undefined) continue;
      let used = this.#used.get(key);
      if (!used) this.#used.set(key, (used = { tokens: 0, at: now }));
      this.#decay(used, now).tokens += amount;
    }
  }

  isOver(source: string, now: number): boolean {
    const rest = this.#all - this.#decay(this.#total, now).tokens;
    return this.#isMore(source, Math.max(this.#min, rest / 4), now);
  }

  #isMore(source: string, share: number, now: number): boolean {
    const most = isOwnHost(source) ? share * this.#ownHostShares : share;
    if (this.of(source, now) > most) return true;
    const site = siteOf(source);
    return site !== undefined && this.of(site, now) > most * siteShares;
  }

  /** Whether a source, or its site, has used more than what each has for certain. */
  isBusy(source: string, now: number): boolean {
    return this.#isMore(source, this.#min, now);
  }

  /** Whether a source has used `amount` lately, or its site {@link siteShares} times that. */
  hasUsed(source: string, amount: number, now: number): boolean {
    if (this.of(source, now) >= amount) return true;
    const site = siteOf(source);
    return site !== undefined && this.of(site, now) >= amount * siteShares;
  }

  /** Forgets the sources that have used next to nothing lately. */
  tick(now: number): void {
    for (const [key, used] of this.#used) {
      if (this.#decay(used, now).tokens < this.#min / 100) this.#used.delete(key);
    }
  }

  /** How many sources and sites are remembered. */
  get size(): number {
    return this.#used.size;
  }

  /** How much a source, or a site, has used lately. */
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
