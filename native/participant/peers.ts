/**
 * Who is in the room, as programs that use the library see it. Owns nothing. For participant.ts.
 *
 * A peer is meant by its name, or by its id while it is in the room; "" means the only other one.
 */
import type { Abortable } from "../shares/abort.ts";
import { printable, UserError } from "../../protocol.ts";
import { idOf, type PeerWord } from "./meant.ts";
import type { Membership } from "./membership.ts";
import { type PeerLink, peerLink } from "./peer-link.ts";
import type { PeerRow } from "./peer-events.ts";
import type { Roster } from "./roster.ts";

export class Peers {
  readonly #roster: Roster;
  readonly #membership: Membership;

  constructor(roster: Roster, membership: Membership) {
    this.#roster = roster;
    this.#membership = membership;
  }

  /** All of them, in the order of their ids, with what is known of each. Made by turns with all else. */
  list(): Promise<PeerRow[]> {
    return this.#roster.listed();
  }

  /** The same, at once: for rooms that are not large. */
  get rows(): PeerRow[] {
    return this.#roster.rows;
  }

  /** The names of those that are here, and of those that have left and are still linked. */
  *names(): Generator<string, void> {
    for (const { name } of this.#roster) yield name;
  }

  /** The name of the one that is meant, if it is here. Any other word is a name itself. */
  nameOf(peer: PeerWord): string {
    return this.#roster.nameOf(String(peer));
  }

  /** The id of the one that has that name; null if it is not in the room. */
  idOf(name: string): number | null {
    return idOf(this.#roster, name);
  }

  /** The link with that peer, while there is one. */
  link(peer: PeerWord): PeerLink | undefined {
    const found = this.#roster.linked(String(peer));
    return found?.link && peerLink(found.link, found);
  }

  /**
   * Forgets the certificate that was bound to that name (the option `known`): the next one that comes by it counts. Rejects if
   * none was.
   */
  async forget(name: string): Promise<void> {
    if (!this.#membership.forget(name))
      throw new UserError(`no certificate is remembered for ${printable(name)} in this room`);
    this.#roster.judgeAnew();
  }

  /** How many links are up. */
  get linkCount(): number {
    return this.#roster.links.length;
  }

  /**
   * Resolves once exactly one peer that is here is meant. Rejects while several are: `ambiguous-peer`; and when we quit:
   * `has-quit`.
   */
  waitFor(peer: PeerWord, { signal }: Abortable = {}): Promise<void> {
    return this.#roster.waits.for(String(peer), signal);
  }

  /** Resolves to the link with that peer as soon as there is one; asks for none. Rejects when we quit: `has-quit`. */
  async whenLinked(peer: PeerWord, { signal }: Abortable = {}): Promise<PeerLink> {
    return this.#roster.waits.until(() => this.link(peer), signal);
  }
}
