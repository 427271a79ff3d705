/**
 * Inputs for the fuzzer: real samples, changed a little at random. Pure, and the same for the same seed, so that an input
 * is named by three numbers and need not be kept.
 */

/** A small fast generator (xorshift32, Marsaglia 2003); a state of 0 would stay 0. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0 || 1;
    for (let n = 0; n < 4; n++) this.next();
  }

  next(): number {
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state;
    return state >>> 0;
  }

  /** 0 to `limit` - 1. */
  below(limit: number): number {
    return limit <= 0 ? 0 : this.next() % limit;
  }

  of<T>(all: readonly T[]): T {
    return all[this.below(all.length)]!;
  }
}

/** Inputs longer than this are cut: a line, a frame and a datagram are all shorter, and so is what is above their limits. */
const maxInputBytes = 80 * 1024;
const mostChanges = 6;
const edgeBytes = [
  0x00, 0x01, 0x0a, 0x0d, 0x20, 0x22, 0x2c, 0x3a, 0x5b, 0x5d, 0x7b, 0x7d, 0x7f, 0x80, 0xc0, 0xff,
];
/** What parsers of text stumble over. */
const words = [
  "null", "true", "-1", "1e999", "9007199254740993", "4294967296", "0", "65536", '""', "{}", "[]", "[[[[", '{"a":', "\\u0000",
  "\\ud800", "\u202e", "\u2028", "\ud83d\ude00", "__proto__", "constructor", "toString", "type", "::ffff:127.0.0.1", "[::]:0",
  "127.0.0.1:1", "255.255.255.255:65535", "\n", "\r\n", "<", "&amp;", "&#x41;", "<!--", "http://", "%00", "//", "@",
].map((word) => new TextEncoder().encode(word)); // prettier-ignore

type Change = (bytes: Buffer, random: Random, samples: readonly Uint8Array[]) => Buffer;

function replace(bytes: Buffer, from: number, to: number, by: Uint8Array): Buffer {
  return Buffer.concat([bytes.subarray(0, from), by, bytes.subarray(to)]);
}

/** Where a part begins and ends; short parts are likelier. */
function part(bytes: Buffer, random: Random): [number, number] {
  const from = random.below(bytes.length + 1);
  const length = random.below(4) === 0 ? random.below(bytes.length - from + 1) : random.below(9);
  return [from, Math.min(bytes.length, from + length)];
}

function setByte(bytes: Buffer, random: Random, byte: number): Buffer {
  if (bytes.length > 0) bytes[random.below(bytes.length)] = byte;
  return bytes;
}

const changes: Change[] = [
  (bytes, random) => {
    if (bytes.length > 0) bytes[random.below(bytes.length)]! ^= 1 << random.below(8);
    return bytes;
  },
  (bytes, random) => setByte(bytes, random, random.of(edgeBytes)),
  (bytes, random) => setByte(bytes, random, random.below(256)),
  (bytes, random) => replace(bytes, ...part(bytes, random), new Uint8Array(0)),
  (bytes, random) => replace(bytes, ...part(bytes, random), random.of(words)),
  (bytes, random) => {
    const at = random.below(bytes.length + 1);
    return replace(bytes, at, at, bytes.subarray(...part(bytes, random)));
  },
  (bytes, random, samples) => {
    const other = Buffer.from(random.of(samples));
    return replace(bytes, ...part(bytes, random), other.subarray(...part(other, random)));
  },
  (bytes, random) => bytes.subarray(0, random.below(bytes.length + 1)),
  // A length, a port or a count: some number in there becomes another.
  (bytes, random) => {
    const digits = [...bytes.toString("latin1").matchAll(/\d+/g)];
    if (digits.length === 0) return bytes;
    const { index, 0: text } = random.of(digits);
    return replace(
      bytes,
      index,
      index + text.length,
      Buffer.from(String(random.next() >>> random.below(32))),
    );
  },
  // One of a kind becomes many of it: rarely, for it is slow.
  (bytes, random) => {
    if (random.below(64) > 0) return bytes;
    const [from, to] = part(bytes, random);
    const times = Math.min(1 << random.below(14), Math.floor(maxInputBytes / (to - from + 1)));
    return replace(bytes, from, to, Buffer.from(bytes.toString("latin1", from, to).repeat(times), "latin1"));
  },
];

/** The input of that number: a sample with one change or a few. */
export function mutate(samples: readonly Uint8Array[], random: Random): Buffer {
  let bytes: Buffer = Buffer.from(random.of(samples));
  for (let n = random.below(1 + random.below(mostChanges)); n >= 0; n--)
    bytes = random.of(changes)(bytes, random, samples);
  return bytes.subarray(0, maxInputBytes);
}
