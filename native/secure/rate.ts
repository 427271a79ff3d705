/**
 * How fast a connection takes what is written, and how much should wait in the kernel. It is measured while the kernel is
 * full, from one moment at which it took the last byte to the next. How fast the kernel takes bytes while it has room says
 * nothing about the path. Sets no option of a socket. For native/secure/channel.ts.
 */

/**
 * Bytes that wait in the kernel delay every small frame behind them. So only as many wait as the path takes in
 * {@link unsentMs}. The rate is measured over `sample`. On a fast path fewer bytes would only wake us more often.
 */
const unsentMs = 5;
export const unsentBytes = { min: 16 * 1024, first: 256 * 1024, max: 4 * 1024 * 1024 };
/**
 * Bun sends eight records of TLS (RFC 8446 §5.1) at once, and loopback has segments of 65,483 bytes. So this, with 22 bytes
 * for each record, is one `send` and two full segments. One byte more would be another segment, and another wake-up there.
 */
const maxBatchBytes = 2 * 65_483 - 8 * 22;
/** What waits behind a write is late. So it is less while the rate is not known. */
const firstBatchBytes = 64 * 1024;
const sample = { bytes: 256 * 1024, ms: 100 };
/** With a longer pause between two writes, there was nothing to send. */
const idleMs = 20;

export class Rate {
  batchBytes = firstBatchBytes;
  /** Whether the latest write has to wait. */
  isFull = false;
  #sinceMs: number | undefined;
  #lastMs = 0;
  #bytes = 0;
  #unsentBytes = unsentBytes.first;

  begin(bytes: number): void {
    if (performance.now() - this.#lastMs > idleMs) this.#sinceMs = undefined;
    this.#bytes += bytes;
  }

  /** The kernel has taken all. Returns how many bytes may wait unsent from now on, if that changes. */
  end(): number | undefined {
    const now = (this.#lastMs = performance.now());
    if (!this.isFull) return undefined;
    const tookMs = now - (this.#sinceMs ?? now);
    if (this.#sinceMs !== undefined && this.#bytes < sample.bytes && tookMs < sample.ms) return undefined;
    const wantedBytes = (unsentMs * this.#bytes) / tookMs;
    this.#sinceMs = now;
    this.#bytes = 0;
    return tookMs > 0 ? this.#limit(wantedBytes) : undefined;
  }

  #limit(wantedBytes: number): number | undefined {
    const { min, max } = unsentBytes;
    const limit = Math.min(max, Math.max(min, 2 ** Math.round(Math.log2(wantedBytes))));
    this.batchBytes = Math.min(maxBatchBytes, Math.max(min, limit / 2));
    if (limit === this.#unsentBytes) return undefined;
    return (this.#unsentBytes = limit);
  }
}
