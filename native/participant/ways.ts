/**
 * Which introducer we go to: the one that the user gave, or the one that our room lives at. Owns what is known of that one
 * from the last time. It opens the connection, and decides nothing about a registration. For
 * native/participant/registration.ts.
 */
import { defaultPort, type Endpoint, formatHostPort, type Place, UserError } from "../../protocol.ts";
import { ControlChannel } from "../host/control.ts";
import type { Gate } from "../punch/gate.ts";

/** So many introducers in a row may send us on. */
const maxMoves = 2;

/** Where our room lives, by the word of the introducer at `by`. */
interface Home {
  readonly place: Place;
  readonly by: Endpoint;
}

/**
 * Which introducer an attempt is at: the one that the user gave, the home that is known from the last time, or one that an
 * introducer has named in this attempt. `moves` counts those.
 */
export type Way = { is: "given" } | { is: "known"; home: Home } | { is: "named"; home: Home; moves: number };

export interface Given {
  readonly host: string;
  readonly port?: number;
  /** Our own port; without it, a free one. */
  readonly localPort?: number | undefined;
  /** The command that starts an introducer, for the message that there is none. */
  readonly startCommand: string;
}

export class Ways {
  readonly #given: Given;
  readonly #gate: Gate;
  /** Of our room, if it is another introducer than the one that was given. */
  #home: Home | undefined;

  constructor(given: Given, gate: Gate) {
    this.#given = given;
    this.#gate = gate;
  }

  /** What the user gave, as text. */
  get given(): string {
    const { host, port = defaultPort } = this.#given;
    return formatHostPort(host, port);
  }

  /** Where an attempt begins. */
  get first(): Way {
    return this.#home ? { is: "known", home: this.#home } : { is: "given" };
  }

  /** The connection by that way, and the way that it took: at a home that was known there may be nobody any more. */
  async open(way: Way, signal: AbortSignal): Promise<{ control: ControlChannel; way: Way }> {
    const { host, port = defaultPort, localPort, startCommand } = this.#given;
    if (way.is !== "given") {
      const { place, by } = way.home;
      const mayVisit = (endpoint: Endpoint) => this.#gate.admits(endpoint, by);
      try {
        return {
          control: await ControlChannel.open({ ...place, localPort, signal }, startCommand, mayVisit),
          way,
        };
      } catch (error) {
        if (way.is === "named" || !(error instanceof UserError)) throw error;
      }
    }
    return {
      control: await ControlChannel.open({ host, port, localPort, signal }, startCommand),
      way: { is: "given" },
    };
  }

  /** The introducer at `by` sends us on; undefined if that are too many. */
  sentOn(way: Way, { host, port }: Place, by: Endpoint): Way | undefined {
    const moves = way.is === "named" ? way.moves + 1 : 1;
    return moves > maxMoves ? undefined : { is: "named", home: { place: { host, port }, by }, moves };
  }

  /** We are registered by that way, or sent there later: the next attempt begins there. */
  keep(way: Way): void {
    this.#home = way.is === "given" ? undefined : way.home;
  }

  /** The next attempt begins at what the user gave. */
  forget(): void {
    this.#home = undefined;
  }
}
