/**
 * What the user says to one peer: texts and pings by the stream of lines of its link. Owns nothing. For
 * native/participant/peer.ts.
 */
import { maxTextLength, printable, UserError } from "../../protocol.ts";
import { LinkError } from "../session/carrier.ts";
import type { TalkingLink } from "../uses/lines.ts";
import type { PeerLife } from "./life.ts";
import type { Listed } from "./listed.ts";

/** So many characters of a text are repeated where it was not sent. */
const maxQuoted = 40;

export class Talk {
  readonly #listed: Listed;
  readonly #life: PeerLife;

  constructor(listed: Listed, life: PeerLife) {
    this.#listed = listed;
    this.#life = life;
  }

  /** The link. If there is none, throws what the user can do. */
  linkFor(command: string): TalkingLink {
    const { talking } = this.#life;
    if (talking) return talking;
    const next = command === "disconnect" ? "" : `; \`connect ${this.#name}\` first`;
    throw new UserError(`not linked with ${this.#name}${next}`, { code: "not-linked" });
  }

  get #name(): string {
    return printable(this.#listed.peer.name);
  }

  /** Resolves to the round trip once the peer's program has the text. */
  async say(text: string): Promise<number> {
    const { lines } = this.linkFor("say");
    const characters = [...text];
    const start = characters.length > maxQuoted ? `${characters.slice(0, maxQuoted).join("")}…` : text;
    const quoted = `"${printable(start)}"`;
    if (text.length > maxTextLength || !text.isWellFormed())
      throw new UserError(
        `not sent: a text has at most ${maxTextLength} characters of valid Unicode: ${quoted}`,
      );
    const rttMs = await answered(lines.say(text), `not confirmed by ${this.#name}: ${quoted}`);
    this.#listed.emit({ event: "sent", rttMs });
    return rttMs;
  }

  /** Resolves to the link's round trip. */
  async ping(): Promise<number> {
    const { lines } = this.linkFor("ping");
    const rttMs = await answered(lines.ping(), `no answer from ${this.#name}`);
    this.#listed.emit({ event: "pong", rttMs });
    return rttMs;
  }
}

async function answered(answer: Promise<number>, otherwise: string): Promise<number> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof LinkError)) throw error;
    throw new UserError(`${otherwise}: ${error.message}`, { code: "not-confirmed" });
  }
}
