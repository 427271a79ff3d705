/**
 * Lines to and from participants: what a refusal can name of a bad line, and lines that show a peer, whose JSON is made
 * once. Pure: no socket, no clock. For introducer.ts and native/introducer/.
 */
import {
  addressScope,
  type Endpoint,
  maxLineBytes,
  mayOffer,
  type Peer,
  protocolVersion,
  Refusal,
  splitEndpoint,
  type ToParticipant,
} from "../../protocol.ts";
import type { Member } from "./session.ts";

type Without<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

/** A message that shows a peer, without that peer. */
export type About = Without<Extract<ToParticipant, { peer: Peer }>, "peer">;

/** Type, version and peer of a line, which may be any text. */
export function peek(line: string): { type?: string; version?: number; peer?: number } {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return {};
  }
  const { type, version, peer } = (value ?? {}) as Record<string, unknown>;
  return {
    ...(typeof type === "string" && { type: type.slice(0, 64).toWellFormed() }),
    ...(typeof version === "number" && { version }),
    ...(Number.isSafeInteger(peer) && Number(peer) >= 1 && { peer: Number(peer) }),
  };
}

/** Checked first: another version may have other fields. */
export function refuseOtherVersion(line: string): void {
  const { type, version = protocolVersion } = peek(line);
  if (type !== "register" || version === protocolVersion) return;
  const older = version < protocolVersion ? "participant" : "introducer";
  const message = `you speak protocol version ${version}, this introducer version ${protocolVersion}: update the ${older}`;
  throw new Refusal("bad-version", message, true);
}

/** The candidates that others may learn, without duplicates; and those that they may not. */
export function sortCandidates(candidates: Endpoint[], observed: Endpoint): [Endpoint[], Endpoint[]] {
  const allowed: Endpoint[] = [];
  const ignored: Endpoint[] = [];
  for (const candidate of new Set(candidates)) {
    if (mayOffer(candidate, observed)) allowed.push(candidate);
    else if (addressScope(splitEndpoint(candidate).address) !== "loopback") ignored.push(candidate);
    else throw new Refusal("bad-field", `private: ${candidate} is a loopback address, useless to a peer`);
  }
  return [allowed, ignored];
}

function jsonOf(member: Member): string {
  return (member.json ||= JSON.stringify(member.peer));
}

/** The line of a message that shows a peer. */
export function lineAbout(member: Member, message: About): string {
  return `${JSON.stringify(message).slice(0, -1)},"peer":${jsonOf(member)}}\n`;
}

/** A room's snapshot in lines of at most {@link maxLineBytes}. */
export function snapshot(others: Iterable<Member>): string {
  const parts: string[][] = [[]];
  let bytes = 0;
  for (const other of others) {
    const json = jsonOf(other);
    const size = Buffer.byteLength(json) + 1;
    if (bytes + size > maxLineBytes - 64) {
      parts.push([]);
      bytes = 0;
    }
    bytes += size;
    parts.at(-1)!.push(json);
  }
  const line = (part: string[], index: number) =>
    `{"type":"peers","peers":[${part.join(",")}],"more":${index < parts.length - 1}}\n`;
  return parts.map(line).join("");
}
