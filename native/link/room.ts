/**
 * A room as a secret that the introducer never learns: from the words of `--room` come the id that it sees and the key
 * with which members prove to each other that they know the words. Pure but for the random words of a new room;
 * knows no socket and no peer's life. For participant.ts and native/link/.
 *
 * RFC 7914 (scrypt), RFC 2104 (HMAC).
 */

import { defaultRoom, roomProblem, UserError, type Peer } from "../../protocol.ts";

/** RFC 7914 §2; memory is 128·N·r = 32 MiB. A guess at somebody's words costs as much as one honest start. */
const cost = { N: 2 ** 15, r: 8, p: 1, maxmem: 64 * 1024 * 1024 };
/** Fixed: all who know the words must come to the same id, and nothing else is known to all of them. */
const salt = "tcp-hole-punching room, protocol 2";
const idBytes = 32;
const keyBytes = 32;
/** 32 letters and digits that are not taken for each other: 5 bits each. */
const alphabet = "023456789abcdefghjkmnpqrstuvwxyz";
const newWordCount = 4;
const newWordLength = 4;

export interface Room {
  /** The words, as the user knows them. */
  words: string;
  /** What the introducer sees. */
  id: string;
  /** Undefined in an open room: there is nothing to prove. */
  key: Uint8Array | undefined;
}

/** A room that anyone may enter: the introducer sees its name. */
export function openRoom(words: string): Room {
  return { words, id: words, key: undefined };
}

/** The room of those who know the words. Takes some 70 ms of another thread. */
export async function secretRoom(words: string): Promise<Room> {
  const { scrypt } = process.getBuiltinModule("node:crypto");
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  scrypt(words.normalize("NFC"), salt, idBytes + keyBytes, cost, (error, derived) =>
    error ? reject(error) : resolve(derived),
  );
  const derived = await promise;
  return { words, id: derived.toString("hex", 0, idBytes), key: derived.subarray(idBytes) };
}

/** The room of those words; throws a {@link UserError} for what can be none. */
export function roomOf(words: string): Room | Promise<Room> {
  const problem = roomProblem(words);
  if (problem) throw new UserError(`a room ${problem}`);
  return words === defaultRoom ? openRoom(words) : secretRoom(words);
}

/** New words, of 80 random bits: `k7xq-m2vp-9dfa-w4tz`. */
export function newRoomWords(): string {
  const random = crypto.getRandomValues(new Uint8Array(newWordCount * newWordLength));
  const letters = [...random].map((byte) => alphabet[byte % alphabet.length]!);
  return Array.from({ length: newWordCount }, (_, word) =>
    letters.slice(word * newWordLength, (word + 1) * newWordLength).join(""),
  ).join("-");
}

type Member = Pick<Peer, "fingerprint" | "name" | "instance">;

/** HMAC-SHA-256 over what others shall believe of a member, each part with its length: 64 hex digits. */
export function prove(key: Uint8Array, { fingerprint, name, instance }: Member): string {
  const mac = new Bun.CryptoHasher("sha256", key);
  for (const part of ["member", fingerprint, name, instance]) {
    const bytes = Buffer.from(part);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    mac.update(length).update(bytes);
  }
  return mac.digest("hex");
}

/** Why a peer is not believed to be of the room, or undefined. In an open room everyone is believed. */
export function distrust({ key }: Room, peer: Member & { proof?: string | undefined }): string | undefined {
  if (!key) return undefined;
  if (peer.proof === undefined) return "it has no proof that it knows the room's words";
  const { timingSafeEqual } = process.getBuiltinModule("node:crypto");
  const expected = Buffer.from(prove(key, peer));
  const shown = Buffer.from(peer.proof);
  const isRight = shown.length === expected.length && timingSafeEqual(shown, expected);
  return isRight ? undefined : "its proof that it knows the room's words is wrong";
}
