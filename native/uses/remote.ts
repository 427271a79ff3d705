/**
 * The asking end of a forward as `ssh -R` makes it: the peer listens, and what connects there is joined to a target of ours.
 * It asks anew with each link, and now and then while the peer refuses. native/uses/lent.ts is the other end. For
 * native/uses/forwards.ts.
 *
 *   we        {"use":"listen","bind":…,"port":…,"token":…}      the purpose of a stream that stays open
 *   the peer  {"type":"listening"}                               on it, once it listens; or it resets the stream
 *   the peer  {"use":"accepted","token":…}                       the purpose of a stream for each connection
 *
 * Only the peer that was asked knows the token. The listener ends with the first stream.
 */
import { canonicalAddress } from "../../protocol.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";
import { Connection } from "./connection.ts";
import { dial, type Place, type Undialled } from "./dialling.ts";
import { type StreamOpener, whyRefused, type WhyRefused } from "./forward.ts";
import { MessageDecoder } from "./message.ts";
import { NameError, namesOfAll } from "./names.ts";
import { type ListenPort, localhostAddresses, type StreamTarget } from "./target.ts";

/** The pause before the peer is asked again: doubled each time, whatever the peer does. */
const minPauseMs = 1_000;
const maxPauseMs = 10_000;
/** After it has listened for so long, the pause begins with the shortest again. */
const lastingMs = 30_000;

export interface RemoteOptions {
  listen: ListenPort;
  target: StreamTarget;
  /** The link, as soon as one carries something. */
  link: () => StreamOpener | Promise<StreamOpener>;
  /** The peer listens. */
  onListening: () => void;
  /** The peer does not; told once for each reason. */
  onRefused: (reason: string, why: WhyRefused) => void;
  /** The target did not answer. */
  onUnanswered: (failed: string) => void;
}

/** `asking`: until there is a link and an answer. `refused`: it is asked again after a while. `wake` ends a pause. */
type State =
  | { is: "asking"; token?: string; stream?: Stream; wake?: () => void }
  | { is: "listening"; token: string; stream: Stream }
  | { is: "refused"; wake: () => void }
  | { is: "closed" };

export class RemoteForward {
  total = 0;
  readonly #options: RemoteOptions;
  readonly #open = new Set<Connection>();
  #bytes = { in: 0, out: 0 };
  #state: State = { is: "asking" };
  #toldReason: string | undefined;

  /** It begins once the caller has seen to the link. */
  constructor(options: RemoteOptions) {
    this.#options = options;
    setImmediate(() => void this.#run());
  }

  get is(): State["is"] {
    return this.#state.is;
  }
  get open(): number {
    return this.#open.size;
  }
  /** Bytes from the peer's clients to our target, and back. */
  get bytesIn(): number {
    return this.#open.values().reduce((sum, { bytesOut }) => sum + bytesOut, this.#bytes.in);
  }
  get bytesOut(): number {
    return this.#open.values().reduce((sum, { bytesIn }) => sum + bytesIn, this.#bytes.out);
  }

  /** Whether the peer was given that token, and may still use it. */
  owns(token: unknown): boolean {
    return "token" in this.#state && this.#state.token === token;
  }

  /** The peer listens no more, and what is open is cut off. */
  close(): void {
    const state = this.#state;
    this.#state = { is: "closed" };
    if ("stream" in state) state.stream?.destroy();
    if ("wake" in state) state.wake?.();
    for (const connection of this.#open) connection.reset("the forward was taken back");
  }

  async #run(): Promise<void> {
    let pauseMs = minPauseMs / 2;
    while (!this.#isClosed) {
      this.#state = { is: "asking" };
      const link = await this.#linked();
      const askedAt = performance.now();
      const refused = link && !this.#isClosed ? await this.#ask(link) : undefined;
      if (this.#isClosed) return;
      if (refused) this.#refused(refused);
      const hasLasted = performance.now() - askedAt >= lastingMs;
      pauseMs = hasLasted ? minPauseMs : Math.min(maxPauseMs, pauseMs * 2);
      await this.#pause(pauseMs, refused ? "refused" : "asking");
    }
  }

  get #isClosed(): boolean {
    return this.#state.is === "closed";
  }

  /** Undefined if no link is sought now. */
  async #linked(): Promise<StreamOpener | undefined> {
    try {
      return await this.#options.link();
    } catch {
      return undefined; // why there is none is told where links are made
    }
  }

  /** Resolves at the end: to why the peer refused, or to undefined if the link has ended. */
  async #ask(link: StreamOpener): Promise<StreamError | undefined> {
    const token = crypto.getRandomValues(new Uint8Array(16)).toHex();
    const { bind, port } = this.#options.listen;
    const { promise, resolve } = Promise.withResolvers<StreamError | undefined>();
    try {
      const stream = link.open({ use: "listen", bind, port, token });
      this.#state = { is: "asking", token, stream };
      const decoder = new MessageDecoder();
      stream.on("data", (bytes: Buffer) => this.#heard(decoder, bytes, token, stream));
      stream.on("end", () => stream.destroy());
      stream.on("error", (error: StreamError) => resolve(isNoAnswer(error) ? undefined : error));
      stream.on("close", () => resolve(undefined));
    } catch {
      return undefined; // the link has ended
    }
    return promise;
  }

  #heard(decoder: MessageDecoder, bytes: Buffer, token: string, stream: Stream): void {
    try {
      for (const message of decoder.push(bytes)) {
        if (Buffer.isBuffer(message) || message.type !== "listening" || this.#state.is !== "asking")
          throw new Error("the peer does not keep to the protocol");
        this.#state = { is: "listening", token, stream };
        this.#toldReason = undefined;
        this.#options.onListening();
      }
    } catch (error) {
      stream.reset(error instanceof Error ? error.message : String(error), resetCodes.failed);
    }
  }

  #refused({ code, reason }: StreamError): void {
    if (this.#toldReason === reason) return;
    this.#toldReason = reason;
    this.#options.onRefused(reason, whyRefused(code) ?? "no-answer");
  }

  async #pause(ms: number, is: "asking" | "refused"): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#state = { is, wake: resolve };
    const timer = setTimeout(resolve, ms).unref();
    await promise;
    clearTimeout(timer);
  }

  // --- connections ---------------------------------------------------------------------------------------

  /** A connection that the peer has accepted. `peer`: its fingerprint, by which what it takes is counted. */
  async accept(stream: Stream, peer: string): Promise<void> {
    const connection = new Connection();
    this.#open.add(connection);
    this.total++;
    connection.onOver = () => this.#over(connection);
    const failed = await this.#dial(stream, connection, peer);
    if (failed === undefined) return;
    connection.reset("nobody answers there");
    // What our target is called is not the peer's affair.
    stream.reset(
      "nobody answers there",
      failed.isRefused ? resetCodes["nobody-listens"] : resetCodes.unreachable,
    );
    this.#options.onUnanswered(failed.reason);
  }

  async #dial(
    stream: Stream,
    connection: Connection,
    peer: string,
  ): Promise<Pick<Undialled, "reason" | "isRefused"> | undefined> {
    try {
      return await dial(await placesOf(this.#options.target), { stream, connection, of: peer });
    } catch (error) {
      if (!(error instanceof NameError)) throw error;
      return { reason: error.message, isRefused: false };
    }
  }

  #over(connection: Connection): void {
    if (!this.#open.delete(connection)) return;
    this.#bytes.in += connection.bytesOut;
    this.#bytes.out += connection.bytesIn;
  }
}

/** Where our own user's target is. Rejects with a {@link NameError}. */
async function placesOf(target: StreamTarget): Promise<Place[]> {
  if (target.kind === "unix") return [{ unix: target.path }];
  const { host, port } = target;
  const at = (hostname: string): Place => ({ hostname, port });
  if (host === "localhost") return localhostAddresses.map(at);
  if (canonicalAddress(host)) return [at(host)];
  return (await namesOfAll.addresses(host, "ourselves", true)).map(at);
}

/** The link has ended, or the peer ends it or has taken the listener back: what it says when asked again counts. */
const isNoAnswer = ({ code }: StreamError): boolean =>
  code === resetCodes["link-ended"] || code === resetCodes.cancelled;
