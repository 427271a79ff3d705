/**
 * A room as a secret that the introducer never learns. The words of `--room` give an id, which the introducer sees, and a
 * key, by which members prove to each other that they know the words. A proof in `register` decides who is listed. A proof
 * on each connection decides who is linked. Pure. Knows no socket, no peer's life, and not how words are written
 * (words.ts). For participant.ts, native/secure/ and native/punch/.
 *
 * RFC 7914 (scrypt), RFC 2104 (HMAC), RFC 5705 and 8446 §7.5 (exporters).
 */

import type { Shown } from "./identity.ts";
import { isSameMac, macOf } from "../shares/mac.ts";
import { canonicalWords, wordsProblem } from "./words.ts";
import { defaultRoom, UserError, type Peer, type Role } from "../../protocol.ts";

/** RFC 7914 §2. Memory is 128·N·r = 32 MiB. To try one guess at the words costs as much as an honest start. */
const cost = { N: 2 ** 15, r: 8, p: 1, maxmem: 64 * 1024 * 1024 };
/** Fixed: all who know the words must get the same id, and the words are all that they share. */
const salt = "tcp-hole-punching room, protocol 2";
const idBytes = 32;
const keyBytes = 32;
/** The key of connections in an open room. It keeps nobody out, but it is no private room's key. */
const openKey = new Bun.CryptoHasher("sha256").update("tcp-hole-punching lobby").digest();

export interface Room {
  /** The words, as the user knows them. */
  words: string;
  /** What the introducer sees. */
  id: string;
  /** Undefined in an open room: there is nothing to prove. */
  key: Uint8Array | undefined;
  /** The key that both ends of a connection prove to have, also in an open room. */
  bondKey: Uint8Array;
}

/** A room that anyone may enter: the introducer sees its name. */
export function openRoom(words: string): Room {
  return { words, id: words, key: undefined, bondKey: openKey };
}

/** Id and key of those words. Takes some 70 ms in another thread. */
function derive(words: string): Promise<Buffer> {
  const { scrypt } = process.getBuiltinModule("node:crypto");
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  scrypt(words, salt, idBytes + keyBytes, cost, (error, derived) =>
    error ? reject(error) : resolve(derived),
  );
  return promise;
}

/** What has been begun, and not been asked for yet. */
let begun: { words: string; derived: Promise<Buffer> } | undefined;

/** Begins what {@link secretRoom} does with the same words. What fails is told there. */
export function beginRoom(words: string | undefined): void {
  if (words === undefined || wordsProblem(words) !== undefined || words === defaultRoom) return;
  const canonical = canonicalWords(words);
  begun = { words: canonical, derived: derive(canonical) };
  begun.derived.catch(() => {});
}

/** The private room with these words. */
export async function secretRoom(words: string): Promise<Room> {
  const canonical = canonicalWords(words);
  const deriving = begun?.words === canonical ? begun.derived : derive(canonical);
  begun = undefined;
  const derived = await deriving;
  const key = derived.subarray(idBytes);
  return { words, id: derived.toString("hex", 0, idBytes), key, bondKey: key };
}

/** The room with these words. Throws a {@link UserError} if there can be none. */
export function roomOf(words: string): Room | Promise<Room> {
  const problem = wordsProblem(words);
  if (problem) throw new UserError(`a room ${problem}`);
  return words === defaultRoom ? openRoom(words) : secretRoom(words);
}

export type Member = Pick<Peer, "fingerprint" | "name" | "instance">;

const partsOf = ({ fingerprint, name, instance }: Member) => [fingerprint, name, instance];

/** The proof in `register`. It is static and travels in clear, so it decides only who is listed. */
export function prove(key: Uint8Array, member: Member): string {
  return macOf(key, ["member", ...partsOf(member)]);
}

/** Why a peer does not count as one of the room; undefined if it does. In an open room everyone does. */
export function distrust({ key }: Room, peer: Member & { proof?: string | undefined }): string | undefined {
  if (!key) return undefined;
  if (peer.proof === undefined) return "it has no proof that it knows the room's words";
  return isSameMac(peer.proof, prove(key, peer))
    ? undefined
    : "its proof that it knows the room's words is wrong";
}

/**
 * The seal in the certificate of a run: it says that this key belongs to this program in this room. Whoever has shown
 * in TLS that it has the key is that program, even before it has sent a line.
 */
export function sealRun(key: Uint8Array, member: Member, publicKey: Uint8Array): string {
  return macOf(key, ["run", publicKey, ...partsOf(member)]);
}

export function isRunSealed({ key, peer }: Bond, { publicKey, seal }: NonNullable<Shown["run"]>): boolean {
  return isSameMac(seal, sealRun(key, peer, publicKey));
}

/** What the two ends of a connection must agree on: the room's key, who we are, and who the peer is. */
export interface Bond {
  key: Uint8Array;
  self: Member;
  peer: Member;
}

/**
 * The proof of one side on one TLS connection: the room, both programs and this very connection belong together. `role`
 * is ours; `by` says whose proof it is. `exported` is the same at both ends. Another connection, or the other role, has
 * another proof.
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

/** Whether `shown` is the proof that the other side must give. `role` is ours. */
export function isBondProved(bond: Bond, role: Role, exported: Uint8Array, shown: string): boolean {
  return isSameMac(shown, proveBond(bond, role, "peer", exported));
}
