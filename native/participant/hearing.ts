/**
 * Steps 3 and 5: what the introducer says while we are registered, and to whom it goes. Owns nothing. For participant.ts.
 */
import { type Peer, printable, type Route } from "../../protocol.ts";
import type { ParticipantEvent } from "./events.ts";
import { byId } from "./meant.ts";
import type { Naming } from "./naming.ts";
import type { Refused, RegistrationOwner, RoomMessage } from "./registration.ts";
import { refusalText } from "./registration-problems.ts";
import type { Roster } from "./roster.ts";
import type { Situation } from "./situation.ts";

export class Hearing implements RegistrationOwner {
  readonly emit: (event: ParticipantEvent) => void;
  readonly #roster: Roster;
  readonly #naming: Naming;
  /** Ends the connection to an introducer that breaks the rules. */
  readonly #close: (reason: string) => void;

  constructor(
    roster: Roster,
    naming: Naming,
    emit: (event: ParticipantEvent) => void,
    close: (reason: string) => void,
  ) {
    this.emit = emit;
    this.#roster = roster;
    this.#naming = naming;
    this.#close = close;
  }

  links(): { peer: string; route: Route }[] {
    return this.#roster.links;
  }

  wants(): string[] {
    return this.#roster.wishes.names;
  }

  listed(peers: readonly Peer[], hasMoved: boolean): void {
    this.#roster.list(peers, hasMoved);
  }

  registered(): void {
    this.#roster.waits.wake();
    this.#naming.look();
  }

  situationChanged(): void {
    for (const peer of this.#roster) peer.networkChanged(false);
  }

  lost(reason: string): void {
    this.#naming.stop();
    for (const peer of this.#roster) peer.introducerLost(reason);
    this.#roster.waits.wake();
  }

  said(message: RoomMessage, situation: Situation): void {
    this.#hear(message, situation);
    this.#naming.look(); // whoever had the name that we want may be gone
  }

  #hear(message: RoomMessage, situation: Situation): void {
    const roster = this.#roster;
    switch (message.type) {
      case "joined":
        return roster.joined(message.peer);
      case "updated":
        // Our own row changes too: it says how far the introducer is.
        if (message.id !== situation.context.id) return roster.updated(message);
        if (message.roundTripMs !== undefined) situation.roundTripMs = message.roundTripMs;
        return;
      case "left":
        return roster.left(message.id);
      case "measure":
        return roster.remember(message.peer)?.introducing.measure(message);
      case "punch":
        return roster.remember(message.peer)?.introducing.punch(message);
      case "relay":
        return roster.remember(message.peer)?.introducing.relay(message);
      case "failed":
        return byId(roster, message.peer)?.introducing.failed(message);
      case "renamed":
        return this.#renamed(message.name);
      case "filtering":
      case "echo":
        return situation.questions.answered(message);
      case "notice":
        return this.emit({ event: "notice", text: message.text });
    }
  }

  #renamed(name: string): void {
    const was = this.#naming.renamed(name);
    if (was === undefined) this.#close(`it calls us ${printable(name)}, for which we have not asked`);
    else this.emit({ event: "named", name, was });
  }

  /** It goes to whoever asked. */
  refused(message: Refused, situation: Situation | undefined): void {
    const { request, code, peer } = message;
    const text = refusalText(message);
    if (request === "rename") return this.#naming.refused();
    if (request === "echo" || request === "connect-back") return situation?.questions.refused(request, text);
    if (request === "connect" && peer !== undefined)
      return byId(this.#roster, peer)?.introducing.refused(message);
    // A peer that left while our report was on its way: there is nobody to tell.
    if (code !== "unknown-peer") this.emit({ event: "error", message: text });
  }
}
