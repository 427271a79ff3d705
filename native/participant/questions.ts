/**
 * What we ask the introducer and wait for an answer to: an echo, and to be connected to from outside. Owns those who wait.
 * Knows no registration: whoever owns this says what came, and when nothing can come any more. For
 * native/participant/situation.ts.
 */
import { type ToIntroducer, type ToParticipant, UserError } from "../../protocol.ts";

/** How long the introducer may take to answer. */
export const answerTimeoutMs = 10_000;

type Filtered = ToParticipant & { type: "filtering" };
/** What may be the answer to something here. */
export type Answer = ToParticipant & { type: "echo" | "filtering" };

export class Questions {
  readonly #send: (message: ToIntroducer) => void;
  /** In the order in which they are answered. */
  #echoes: { resolve: (text: string) => void; reject: (error: Error) => void }[] = [];
  #filtered: ((answer: Filtered | undefined) => void) | undefined;

  constructor(send: (message: ToIntroducer) => void) {
    this.#send = send;
  }

  /** Resolves to the text that came back. */
  async echo(text: string): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const timer = setTimeout(() => reject(new UserError("the introducer did not answer")), answerTimeoutMs);
    this.#echoes.push({ resolve, reject });
    this.#send({ type: "echo", text });
    return promise.finally(() => clearTimeout(timer));
  }

  /** Asks the introducer to connect to us; undefined when it does not answer. One at a time. */
  connectBack(): Promise<Filtered | undefined> {
    const { promise, resolve } = Promise.withResolvers<Filtered | undefined>();
    const timer = setTimeout(() => resolve(undefined), answerTimeoutMs);
    this.#filtered = resolve;
    this.#send({ type: "connect-back" });
    return promise.finally(() => {
      clearTimeout(timer);
      this.#filtered = undefined;
    });
  }

  answered(answer: Answer): void {
    if (answer.type === "echo") this.#echoes.shift()?.resolve(answer.text);
    else this.#filtered?.(answer);
  }

  refused(request: "echo" | "connect-back", text: string): void {
    if (request === "echo") this.#echoes.shift()?.reject(new UserError(text));
    else this.#filtered?.(undefined);
  }

  /** Nothing is answered any more. */
  close(reason: string): void {
    for (const { reject } of this.#echoes.splice(0)) reject(new UserError(`no answer: ${reason}`));
    this.#filtered?.(undefined);
  }
}
