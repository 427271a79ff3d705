/** A participant that says exactly what a test wants said. For the tests of the introducer and of its rooms. */
import net from "node:net";
import {
  encode,
  formatEndpoint,
  LineDecoder,
  parseToParticipant,
  protocolVersion,
  type Endpoint,
  type ToIntroducer,
  type ToParticipant,
} from "../protocol.ts";

export type MessageOf<T extends ToParticipant["type"]> = Extract<ToParticipant, { type: T }>;
export const at = (text: string) => text as Endpoint;
export const fingerprint = "ab".repeat(32);
/** The beginning of a SHA-256: an instance of that name and, of an instance, what others see of it. */
export const hash = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest("hex").slice(0, 16);

export function registration(name: string, room = "lobby"): Extract<ToIntroducer, { type: "register" }> {
  const own = [at("192.168.1.5:40000")];
  const instance = hash(name);
  const rest = { fingerprint, private: own, links: [] };
  return { type: "register", version: protocolVersion, name, room, instance, ...rest };
}

/** What a side says that has linked; without the peer, whom both sides name differently. */
export const linkedBy = (token: string) =>
  ({ type: "linked", token, route: "public", local: at("10.0.0.1:1"), remote: at("10.0.0.2:2") }) as const;

/** A participant made of nothing but a socket: it says exactly what a test wants said. */
export class Client implements Disposable {
  readonly seen: ToParticipant[] = [];
  readonly ended = Promise.withResolvers<void>();
  readonly #socket: net.Socket;
  readonly #decoder = new LineDecoder();
  #waiting: { wants: (message: ToParticipant) => boolean; resolve: (message: ToParticipant) => void }[] = [];
  #taken = new Set<ToParticipant>();
  answersPings = true;
  /** Told each message as it comes. */
  heard: (message: ToParticipant) => void = () => {};

  constructor(
    port: number,
    localAddress = "127.0.0.1",
    host = localAddress.includes(":") ? "::1" : "127.0.0.1",
  ) {
    this.#socket = net.connect({ port, host, localAddress, noDelay: true });
    this.#socket.on("data", (chunk) => {
      for (const line of this.#decoder.push(Buffer.from(chunk))) this.#receive(parseToParticipant(line));
    });
    this.#socket.on("error", () => {});
    this.#socket.on("close", () => this.ended.resolve());
    this.#socket.on("end", () => this.ended.resolve());
  }

  /** Its own, once it has heard something. */
  get endpoint(): Endpoint {
    return formatEndpoint(this.#socket.localAddress!, this.#socket.localPort!);
  }

  #receive(message: ToParticipant): void {
    this.seen.push(message);
    this.heard(message);
    if (message.type === "ping" && this.answersPings) this.send({ type: "pong", id: message.id });
    const index = this.#waiting.findIndex(({ wants }) => wants(message));
    if (index === -1) return;
    this.#taken.add(message);
    this.#waiting.splice(index, 1)[0]!.resolve(message);
  }

  /** The next message of that type that no one has waited for yet. */
  next<T extends ToParticipant["type"]>(type: T, wants = (_: MessageOf<T>) => true): Promise<MessageOf<T>> {
    const fits = (message: ToParticipant) => message.type === type && wants(message as MessageOf<T>);
    const early = this.seen.find((message) => !this.#taken.has(message) && fits(message));
    if (early) {
      this.#taken.add(early);
      return Promise.resolve(early as MessageOf<T>);
    }
    const { promise, resolve } = Promise.withResolvers<ToParticipant>();
    this.#waiting.push({ wants: fits, resolve });
    return promise as Promise<MessageOf<T>>;
  }

  send(message: ToIntroducer): void {
    this.raw(encode(message));
  }

  raw(bytes: string | Uint8Array): void {
    this.#socket.write(typeof bytes === "string" ? Buffer.from(bytes) : bytes);
  }

  end(): void {
    this.#socket.end();
  }

  pause(): void {
    this.#socket.pause();
  }

  /** Everything the introducer had to say to this client before this call has been read when it resolves. */
  async settled(): Promise<void> {
    const text = crypto.randomUUID();
    this.send({ type: "echo", text });
    await this.next("echo", (echo) => echo.text === text);
  }

  types(): string[] {
    return this.seen.map(({ type }) => type).filter((type) => type !== "ping");
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}
