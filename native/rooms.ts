/**
 * What an introducer knows of rooms beyond who is connected to it. Pure: no socket, no output. For introducer.ts and
 * native/redis/.
 */

/** Names of those who have left, kept for their certificates: whoever comes back keeps its name. */
export class KeptNames {
  readonly #mostNames: number;
  readonly #keptMs: number;
  /** By room and name; the oldest first. */
  readonly #kept = new Map<string, { fingerprint: string; untilMs: number }>();

  constructor(mostNames: number, keptMs: number) {
    this.#mostNames = mostNames;
    this.#keptMs = keptMs;
  }

  keep(room: string, name: string, fingerprint: string): void {
    const key = keyOf(room, name);
    this.#kept.delete(key);
    this.#kept.set(key, { fingerprint, untilMs: performance.now() + this.#keptMs });
    this.#forget();
  }

  /** Whether nobody else had the name lately. */
  mayTake(room: string, name: string, fingerprint: string): boolean {
    this.#forget();
    const kept = this.#kept.get(keyOf(room, name));
    return kept === undefined || kept.fingerprint === fingerprint;
  }

  #forget(): void {
    const now = performance.now();
    for (const [key, { untilMs }] of this.#kept) {
      if (untilMs > now && this.#kept.size <= this.#mostNames) return;
      this.#kept.delete(key);
    }
  }
}

/** A name has no blank, so that no two pairs have the same key. */
function keyOf(room: string, name: string): string {
  return `${name} ${room}`;
}
