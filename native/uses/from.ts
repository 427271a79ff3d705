/**
 * Who has opened a stream. A type only. For participant.ts, native/participant/ and native/uses/.
 */
import type { Link, Purpose } from "../session/link.ts";

/** The peer that has opened a stream, and the purpose of the stream. */
export interface From {
  /** Its id, as long as it is in the room. */
  id: number;
  name: string;
  fingerprint: string;
  purpose: Purpose;
  /** The link of the stream, while it is known. */
  link?: Link | undefined;
}
