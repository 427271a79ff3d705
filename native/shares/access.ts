/**
 * The key of an introducer that is somebody's: how a participant proves in `register` that it has it, without a round trip
 * more. The proof is bound to a certificate, a room and a program, and to the moment or to the introducer's challenge. The
 * key itself is never sent. Pure but for the clock. For the introducer and the participant.
 */
import type { ToIntroducer } from "../../protocol.ts";
import { stamps } from "./clock.ts";
import { macOf } from "./mac.ts";

type Register = ToIntroducer & { type: "register" };
export type Access = NonNullable<Register["access"]>;
/** Whom a proof lets in, and nobody else. */
export type Entrant = Pick<Register, "fingerprint" | "room" | "instance">;

/** `bound`: the moment in ms since the epoch, or a challenge. */
export function accessProof(
  key: string,
  { fingerprint, room, instance }: Entrant,
  bound: number | string,
): string {
  return macOf(key, ["tcp-hole-punching introducer", fingerprint, room, instance, String(bound)]);
}

/** What `register` shows; with the challenge, where the introducer has made one on this connection. */
export function accessBy(key: string, entrant: Entrant, challenge: string | undefined): Access {
  const at = Math.round(stamps.now);
  return { at, proof: accessProof(key, entrant, challenge ?? at) };
}
