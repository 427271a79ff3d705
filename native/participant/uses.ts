/**
 * What links are used for now, as programs that use the library see it. Owns nothing. For participant.ts.
 */
import type { ForwardRow } from "../uses/forwards.ts";
import type { Services } from "../uses/services.ts";
import type { SourceFiles } from "../uses/source-files.ts";
import type { Transfer } from "../uses/transfers.ts";
import type { Unfinished } from "../uses/unfinished.ts";

export class Uses {
  readonly #services: Services;

  constructor(services: Services) {
    this.#services = services;
  }

  /** What is forwarded from this host, with what went through. */
  get forwards(): ForwardRow[] {
    return this.#services.forwards;
  }

  /** What peers may reach through us, in canonical form. */
  get allowed(): readonly string[] {
    return this.#services.allowed;
  }

  /** Where peers may listen here, in canonical form. */
  get allowedToListen(): readonly string[] {
    return this.#services.allowedToListen;
  }

  /** Lets peers listen here, on `[BIND:]PORT`. Resolves to it in canonical form. Rejects in the lobby: `open-room`. */
  async allowListen(rule: string): Promise<string> {
    return this.#services.allowListen(rule);
  }

  /** Peers may not listen there any more, and what listens is closed. Rejects if it was not allowed. */
  async disallowListen(rule: string): Promise<void> {
    this.#services.disallowListen(rule);
  }

  /** How fast files and pipes are sent, all together: bytes a second. Undefined: as fast as can be. */
  get bytesPerSecond(): number | undefined {
    return this.#services.pace.bytesPerSecond;
  }
  set bytesPerSecond(limit: number | undefined) {
    this.#services.pace.bytesPerSecond = limit;
  }

  /** What is being sent and received. Its numbers change while it goes on. */
  get transfers(): readonly Transfer[] {
    return this.#services.transfers.list;
  }

  /** Peers may not reach it any more; what is open stays open. Rejects if it was not allowed. */
  async disallow(rule: string): Promise<void> {
    this.#services.disallow(rule);
  }

  /** Takes an offer, by the number of its `offered` event, into that folder. Rejects if there is no room: then it stays. */
  async accept(offer: string | number, folder: string): Promise<void> {
    return this.#services.transfers.accept(String(offer), folder);
  }

  async refuse(offer: string | number): Promise<void> {
    this.#services.transfers.refuse(String(offer));
  }

  /** From now on there is nobody who could answer an offer. */
  nobodyAnswers(): void {
    this.#services.transfers.nobodyAnswers();
  }

  /** Cancels that transfer, by its id, or the only one. Resolves once it is over. */
  async cancel(transfer?: string | number): Promise<void> {
    return this.#services.transfers.cancel(transfer === undefined ? undefined : String(transfer));
  }

  /** What there is of these paths now, to be sent later. Rejects for one that is not there. */
  async look(paths: readonly string[]): Promise<SourceFiles> {
    return this.#services.transfers.look(paths);
  }

  /** What has come in part and is left in that folder: without one, in the folder that takes files without asking. */
  async unfinished(folder?: string): Promise<Unfinished[]> {
    return this.#services.transfers.unfinished(folder);
  }
}
