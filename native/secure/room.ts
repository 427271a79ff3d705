/**
 * A room as a secret that the introducer never learns: from the words of `--room` come the id that it sees and the key
 * with which members prove to each other that they know the words: in `register`, which decides who is listed, and on
 * each connection, which decides who is linked. Pure but for the random words of a new room; knows no socket and no
 * peer's life. For participant.ts, native/secure/ and native/punch/.
 *
 * RFC 7914 (scrypt), RFC 2104 (HMAC), RFC 5705 and 8446 §7.5 (exporters).
 */

import type { Shown } from "./identity.ts";
import { defaultRoom, roomProblem, UserError, type Peer, type Role } from "../../protocol.ts";

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
/** Of an open room, for its connections: it keeps nobody out, but is no private room's. */
const openKey = new Bun.CryptoHasher("sha256").update("tcp-hole-punching lobby").digest();

export interface Room {
  /** The words, as the user knows them. */
  words: string;
  /** What the introducer sees. */
  id: string;
  /** Undefined in an open room: there is nothing to prove. */
  key: Uint8Array | undefined;
  /** What both ends of a connection prove to have, in an open room, too. */
  bondKey: Uint8Array;
}

/** A room that anyone may enter: the introducer sees its name. */
export function openRoom(words: string): Room {
  return { words, id: words, key: undefined, bondKey: openKey };
}

/** The room of those who know the words. Takes some 70 ms of another thread. */
export async function secretRoom(words: string): Promise<Room> {
  const { scrypt } = process.getBuiltinModule("node:crypto");
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  scrypt(words.normalize("NFC"), salt, idBytes + keyBytes, cost, (error, derived) =>
    error ? reject(error) : resolve(derived),
  );
  const derived = await promise;
  const key = derived.subarray(idBytes);
  return { words, id: derived.toString("hex", 0, idBytes), key, bondKey: key };
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

export type Member = Pick<Peer, "fingerprint" | "name" | "instance">;

/** HMAC-SHA-256 over parts, each with its length: 64 hex digits. */
function macOf(key: Uint8Array, parts: readonly (string | Uint8Array)[]): string {
  const mac = new Bun.CryptoHasher("sha256", key);
  for (const part of parts) {
    const bytes = typeof part === "string" ? Buffer.from(part) : part;
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    mac.update(length).update(bytes);
  }
  return mac.digest("hex");
}

function isSame(shown: string, expected: string): boolean {
  const { timingSafeEqual } = process.getBuiltinModule("node:crypto");
  const [a, b] = [Buffer.from(shown), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}

const partsOf = ({ fingerprint, name, instance }: Member) => [fingerprint, name, instance];

/** What others shall believe of a member. It is static and travels in clear: it decides who is listed, and no more. */
export function prove(key: Uint8Array, member: Member): string {
  return macOf(key, ["member", ...partsOf(member)]);
}

/** Why a peer is not believed to be of the room, or undefined. In an open room everyone is believed. */
export function distrust({ key }: Room, peer: Member & { proof?: string | undefined }): string | undefined {
  if (!key) return undefined;
  if (peer.proof === undefined) return "it has no proof that it knows the room's words";
  return isSame(peer.proof, prove(key, peer))
    ? undefined
    : "its proof that it knows the room's words is wrong";
}

/**
 * What a member says in the certificate of its run: that this key is of this program in this room. Whoever has shown in
 * TLS to have the key is that program, before it has said a word.
 */
export function sealRun(key: Uint8Array, member: Member, publicKey: Uint8Array): string {
  return macOf(key, ["run", publicKey, ...partsOf(member)]);
}

export function isRunSealed({ key, peer }: Bond, { publicKey, seal }: NonNullable<Shown["run"]>): boolean {
  return isSame(seal, sealRun(key, peer, publicKey));
}

/** What the two ends of a connection must agree on: the room's key, and whom each takes itself and the other for. */
export interface Bond {
  key: Uint8Array;
  self: Member;
  peer: Member;
}

/**
 * What the side with that role shows on one TLS connection, of which both ends `exported` the same bytes: that room, both
 * programs and this very connection belong together. Neither another connection's nor the other role's is the same.
 */
export function proveBond(
  { key, self, peer }: Bond,
  role: Role,
  by: "self" | "peer",
  exported: Uint8Array,
): string {
  const [controlling, controlled] = role === "controlling" ? [self, peer] : [peer, self];
  const prover: Role = (by === "self") === (role === "controlling") ? "controlling" : "controlled";
  return macOf(key, ["connection", exported, prover, ...partsOf(controlling), ...partsOf(controlled)]);
}

/** Whether the other side of that connection, on which we have that role, has shown what it must. */
export function isBondProved(bond: Bond, role: Role, exported: Uint8Array, shown: string): boolean {
  return isSame(shown, proveBond(bond, role, "peer", exported));
}
