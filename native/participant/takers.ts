/**
 * Who takes the streams that peers open, by their use. Owns that table, and tells of code that threw at a stream: the link
 * itself goes on. Reads no byte of a stream. For participant.ts.
 */
import { printable } from "../../protocol.ts";
import type { Purpose } from "../session/link.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { Gathering } from "../uses/gather.ts";
import type { From } from "../uses/from.ts";

/** So many characters of a use are shown. */
const maxUseLength = 256;

/** `peer`: the peer itself, with the link that it has then. */
export type Taker = (stream: Stream, from: From, peer: Peer) => void | Promise<void>;
type Peer = Omit<From, "purpose">;

export class Takers {
  readonly #takers = new Map<string, Taker>();
  /** Errors thrown by takers, by peer. */
  readonly #thrown = new Gathering();
  readonly #report: (message: string) => void;

  /** `report`: tells the user. */
  constructor(report: (message: string) => void) {
    this.#report = report;
  }

  /** It is the only one for that use, until what this returns is disposed of, or another one takes its place. */
  set(use: string, take: Taker): Disposable {
    this.#takers.set(use, take);
    return { [Symbol.dispose]: () => void (this.#takers.get(use) === take && this.#takers.delete(use)) };
  }

  /** Hands a stream to its taker. A stream for an unknown use is refused. */
  give(peer: Peer, stream: Stream, purpose: Purpose): void {
    const { id, name, fingerprint, link } = peer;
    const use = String(purpose["use"]).slice(0, maxUseLength);
    const take = this.#takers.get(use);
    if (!take) return stream.reset(`nobody takes streams for ${printable(use)} here`, resetCodes.refused);
    // A taker may be asynchronous, whatever its type says.
    const taking = async () => take(stream, { id, name, fingerprint, purpose, link }, peer);
    void taking().catch((error: unknown) => {
      stream.reset("it failed at the peer", resetCodes.failed);
      this.threw(name, use, error);
    });
  }

  /** Code that was given a stream of that peer has thrown an error. */
  threw(peer: string, what: string, error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    const message = `${printable(what)} of ${printable(peer)} failed here: ${text}`;
    this.#thrown.add(peer, (more) =>
      this.#report(more > 0 ? `${message}; and ${more} other${more === 1 ? "" : "s"} like it` : message),
    );
  }
}
