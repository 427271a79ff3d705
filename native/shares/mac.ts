/**
 * What proves that somebody knows a key: HMAC-SHA-256 over parts (RFC 2104), and how two are compared. Pure. Anything may
 * import it.
 */

/** HMAC-SHA-256 over the parts, each preceded by its length: 64 hex digits. */
export function macOf(key: string | Uint8Array, parts: readonly (string | Uint8Array)[]): string {
  const mac = new Bun.CryptoHasher("sha256", key);
  for (const part of parts) {
    const bytes = typeof part === "string" ? Buffer.from(part) : part;
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    mac.update(length).update(bytes);
  }
  return mac.digest("hex");
}

/** In constant time. */
export function isSameMac(shown: string, expected: string): boolean {
  const { timingSafeEqual } = process.getBuiltinModule("node:crypto");
  const [a, b] = [Buffer.from(shown), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}
