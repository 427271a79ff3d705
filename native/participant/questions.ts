/**
 * Questions to the introducer: an echo, and a connection to us from outside. Owns those who wait for the answers. Knows no
 * registration: its owner says what has come, and when nothing can come any more. For native/participant/situation.ts.
 */
import { type ToIntroducer, type ToParticipant, UserError } from "../../protocol.ts";

/** How long the introducer may take to answer. */
export const answerTimeoutMs = 10_000;

const silent = `the introducer did not answer within ${answerTimeoutMs / 1000} s; \`leave\` and \`join\` connect anew`;

type Filtered = ToParticipant & { type: "filtering" };
/** Messages that answer these questions. */
export type Answer = ToParticipant & { type: "echo" | "filtering" };

export class Questions {
  readonly #send: (message: ToIntroducer) => void;
  /** Those who wait, in the order of the answers. */
  #echoes: { resolve: (text: string) => void; reject: (error: Error) => void }[] = [];
  #filtered: ((answer: Filtered | undefined) => void) | undefined;

  constructor(send: (message: ToIntroducer) => void) {
    this.#send = send;
  }

  /** Resolves to the text that came back. */
  async echo(text: string): Promise<string> {
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    const timer = setTimeout(() => reject(new UserError(silent)), answerTimeoutMs);
    this.#echoes.push({ resolve, reject });
    this.#send({ type: "echo", text });
    return promise.finally(() => clearTimeout(timer));
  }

  /** Asks the introducer to connect to us. Undefined if it does not answer. One at a time. */
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

  /** No more answers can come. */
  close(reason: string): void {
    for (const { reject } of this.#echoes.splice(0)) reject(new UserError(`no answer: ${reason}`));
    this.#filtered?.(undefined);
  }
}
