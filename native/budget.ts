/**
 * What one client may take: so much at once and then so much a second, and no more than its share of what there is
 * for all. It owns no clock and no timer, and knows neither sessions nor messages.
 *
 * Only introducer.ts and native/relay.ts import it. No FFI.
 */
import { Refusal } from "../protocol.ts";

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

/** How many of something each subscriber has, and all together. */
export class Shares {
  total = 0;
  readonly #counts = new Map<string, number>();

  of(key: string): number {
    return this.#counts.get(key) ?? 0;
  }

  /** Returns how many it has now. */
  add(key: string): number {
    const count = this.of(key) + 1;
    this.#counts.set(key, count);
    this.total += 1;
    return count;
  }

  remove(key: string): void {
    const count = this.of(key);
    if (count > 1) this.#counts.set(key, count - 1);
    else this.#counts.delete(key);
    this.total -= 1;
  }
}
