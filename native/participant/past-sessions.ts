/**
 * The sessions that have ended here, for peers that have not heard of it and want to go on with one. A peer may have left the
 * room and been forgotten meanwhile, so they are kept beside the peers. Owns them. For native/participant/.
 */
import type { UnlinkReason } from "../../protocol.ts";
import { type Gone } from "../session/frame.ts";

/** Of all peers together. Of an older one a peer is told that it is unknown here. */
const maxSessions = 256;

interface Past {
  fingerprint: string;
  gone: Gone;
}

export class PastSessions {
  readonly #byId = new Map<string, Past>();

  add(id: string, fingerprint: string, reason: UnlinkReason): void {
    const gone = reason === "connection-lost" ? "lost" : "over";
    this.#byId.delete(id);
    this.#byId.set(id, { fingerprint, gone });
    const [oldest] = this.#byId.keys();
    if (this.#byId.size > maxSessions) this.#byId.delete(oldest!);
  }

  /** What has become of a session with the program of that certificate. */
  goneOf(id: string, fingerprint: string): Gone {
    const past = this.#byId.get(id);
    return past?.fingerprint === fingerprint ? past.gone : "unknown";
  }
}
