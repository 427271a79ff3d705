/** What the tests of relayed channels share: the real introducer and an offer by it, and introducers by hand. */
import * as net from "node:net";
import { Introducer } from "../../introducer.ts";
import type { Limits } from "../../native/introducer/limits.ts";
import {
  encode,
  type Endpoint,
  LineDecoder,
  parseToParticipant,
  protocolVersion,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import { loopback, until } from "../native-fixture.ts";

/** A participant made of nothing but a socket. */
class Control implements Disposable {
  readonly seen: ToParticipant[] = [];
  readonly #socket: net.Socket;

  constructor(port: number, localAddress: string, name: string) {
    const decoder = new LineDecoder();
    this.#socket = net.connect({ port, host: "127.0.0.1", localAddress });
    this.#socket.on("error", () => {});
    this.#socket.on("data", (chunk) => {
      for (const line of decoder.push(Buffer.from(chunk))) this.seen.push(parseToParticipant(line));
    });
    const instance = name.length.toString(16).padStart(16, "0");
    const own = { name, room: "lobby", instance, fingerprint: "ab".repeat(32), private: [], links: [] };
    this.say({ type: "register", version: protocolVersion, ...own });
    this.say({ type: "mapping", mapping: "random" });
  }

  say(message: ToIntroducer): void {
    this.#socket.write(encode(message));
  }

  async next<T extends ToParticipant["type"]>(type: T): Promise<Extract<ToParticipant, { type: T }>> {
    type Wanted = Extract<ToParticipant, { type: T }>;
    const find = () => this.seen.find((one): one is Wanted => one.type === type);
    await until(`the introducer says ${type}`, () => find() !== undefined);
    return find()!;
  }

  [Symbol.dispose](): void {
    this.#socket.destroy();
  }
}

/** A real introducer that has offered a relay to two of its room. */
export async function relayOffer(limits: Partial<Limits> = {}) {
  const introducer = Introducer.start({ host: "127.0.0.1", port: 0, limits });
  const [a, b] = [
    new Control(introducer.port, "127.0.0.1", "a"),
    new Control(introducer.port, "127.0.0.2", "bb"),
  ];
  const [{ id }] = await Promise.all([b.next("registered"), a.next("joined")]);
  const isKnown = ({ type }: ToParticipant) => type === "updated";
  await until("their mappings are known", () => a.seen.some(isKnown) && b.seen.some(isKnown));
  a.say({ type: "connect", peer: id });
  const [{ token }] = await Promise.all([a.next("relay"), b.next("relay")]);
  return {
    introducer: loopback(introducer.port),
    token,
    async [Symbol.asyncDispose]() {
      a[Symbol.dispose]();
      b[Symbol.dispose]();
      await introducer.stop();
    },
  };
}

/** An introducer by hand: what it does with each connection, once the line with the token has come. */
export class Scripted implements Disposable {
  readonly visitors: net.Socket[] = [];
  readonly #server: net.Server;

  private constructor(answer: (visitor: net.Socket, line: string) => void) {
    this.#server = net.createServer({ noDelay: true, allowHalfOpen: true }, (visitor) => {
      this.visitors.push(visitor);
      visitor.on("error", () => {});
      visitor.once("data", (chunk) => answer(visitor, chunk.toString()));
    });
  }

  static async answering(answer: (visitor: net.Socket, line: string) => void): Promise<Scripted> {
    const scripted = new Scripted(answer);
    await new Promise<void>((resolve) => scripted.#server.listen(0, "127.0.0.1", resolve));
    return scripted;
  }

  get endpoint(): Endpoint {
    return loopback((this.#server.address() as net.AddressInfo).port);
  }

  [Symbol.dispose](): void {
    this.#server.close();
    for (const visitor of this.visitors) visitor.destroy();
  }
}

/** One that joins each two visitors, and hands the bytes of both on as `join` says. */
export function joining(join: (first: net.Socket, second: net.Socket) => void = copy): Promise<Scripted> {
  let waiting: net.Socket | undefined;
  return Scripted.answering((visitor) => {
    if (!waiting) waiting = visitor;
    else join(waiting, visitor);
  });
}

export const relaying = encode({ type: "relaying", rate: 1024 * 1024 });

/** As an honest introducer does. */
export function copy(first: net.Socket, second: net.Socket): void {
  for (const one of [first, second]) one.write(relaying);
  hand(first, second);
  hand(second, first);
}

export function hand(from: net.Socket, to: net.Socket): void {
  from.on("data", (chunk) => void to.write(chunk));
  from.on("end", () => to.end());
  from.on("close", () => to.destroySoon());
}
