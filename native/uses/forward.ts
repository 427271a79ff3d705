/**
 * The listening end of a forward (`ssh -L`): a listener whose connections become streams. native/uses/serve.ts is the other
 * end. It knows no participant: its owner brings the link, and tells the user. For native/uses/services.ts.
 *
 * The purpose of a stream is `{"use":"forward","host":…,"port":…}`, or that of native/uses/socks.ts or remote.ts. Its bytes
 * are those of the connection. If the target is not allowed, or does not answer, the stream is reset with the reason, and so
 * is the client's connection. The same where there is no link, or none that carries anything, for a while.
 */
import type { Socket } from "bun";
import { Connection, connectionHandlers } from "./connection.ts";
import { Listener } from "../host/listener.ts";
import { listeningProblem, pathProblem } from "../host/listening-problem.ts";
import { listenAtPath } from "../host/unix.ts";
import { descriptors, type Holder } from "./descriptors.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";
import { otherProtocol, SocksConnection, SocksError } from "./socks.ts";
import { formatListen, type Listen, type Proxied, type StreamTarget } from "./target.ts";

/** How long a client's connection waits for the link. */
const linkPatienceMs = 30_000;
/** What opens streams: a session. */
export interface StreamOpener {
  open(purpose: object): Stream;
}

/** Why a connection of a forward did not get through. */
export type WhyRefused = "not-allowed" | "no-answer" | "no-link";

/** The same, of the code with which the peer has reset a stream; undefined if that was for another reason. */
export function whyRefused(code: number): WhyRefused | undefined {
  if (code === resetCodes.refused) return "not-allowed";
  return code === resetCodes.unreachable || code === resetCodes["nobody-listens"] ? "no-answer" : undefined;
}

/** It can't listen there. */
export class ListenError extends Error {}

/** The target of a listener that a peer has asked for: the peer knows it by the token. */
export interface Accepted {
  kind: "accepted";
  token: string;
}

export interface ForwardOptions {
  /** Port 0: the kernel chooses. */
  listen: Listen;
  target: StreamTarget | Proxied | Accepted;
  /** The link, as soon as one carries something. Not a promise if it does, so that a connection need not wait. */
  link: () => StreamOpener | Promise<StreamOpener>;
  /** A connection did not get through. */
  onRefused?: (target: StreamTarget, reason: string, why: WhyRefused) => void;
  /** Nobody can connect now, or others can. */
  onProblem?: (message: string) => void;
  patienceMs?: number;
  /** In whose share its connections are counted, a peer's fingerprint. Without it they are our own user's. */
  holder?: string;
}

/** The `use` of its streams. */
type Use = "forward" | "socks" | "accepted";

/** The listening end. It listens until {@link close}. */
export class Forward {
  readonly listen: Listen;
  /** Connections so far. */
  total = 0;
  readonly #listener: Listener<Connection>;
  readonly #options: ForwardOptions;
  #removeFile = () => {};
  /** Each with what gives its descriptor back. */
  readonly #open = new Map<Connection, () => void>();
  #bytes = { in: 0, out: 0 };
  #hasHeardOther = false;

  /** Throws a {@link ListenError} if it can't listen there. */
  constructor(options: ForwardOptions) {
    this.#options = options;
    const { listen } = options;
    try {
      const socket = { ...connectionHandlers, open: (one: Socket<Connection>) => this.#opened(one) };
      const problem = (message: string) => options.onProblem?.(message);
      const common = { allowHalfOpen: true, socket };
      if (listen.kind === "unix") {
        const listenBy = (fd: number) => new Listener({ ...common, fd }, problem);
        const { taken, remove } = listenAtPath(listen.path, listenBy);
        this.#listener = taken;
        this.#removeFile = remove;
      } else this.#listener = new Listener({ ...common, hostname: listen.bind, port: listen.port }, problem);
    } catch (error) {
      throw cantListen(listen, error);
    }
    this.listen = listen.kind === "unix" ? listen : { ...listen, port: this.port };
  }

  /** Where it listens; 0 if that is a path. */
  get port(): number {
    return this.#listener.port;
  }

  /** Connections that are open. */
  get open(): number {
    return this.#open.size;
  }
  /** Bytes from clients to the peer. */
  get bytesOut(): number {
    return sum(this.#open.keys(), (connection) => connection.bytesIn) + this.#bytes.out;
  }
  get bytesIn(): number {
    return sum(this.#open.keys(), (connection) => connection.bytesOut) + this.#bytes.in;
  }

  /** Stops listening, and cuts off the connections that are open. */
  close(): void {
    this.#listener.stop();
    this.#removeFile();
    for (const connection of this.#open.keys()) connection.reset("the forward was taken back");
  }

  #opened(socket: Socket<Connection>): void {
    const { target } = this.#options;
    const connection: Connection =
      target.kind === "socks"
        ? new SocksConnection((wanted) => this.#begin(connection, wanted, "socks"))
        : new Connection();
    socket.data = connection;
    const free = descriptors().take(this.#holderOf(connection));
    if (!free) return void socket.terminate();
    this.#open.set(connection, free);
    this.total++;
    connection.onOver = (error) => this.#over(connection, error);
    if (target.kind !== "socks")
      this.#begin(connection, target, target.kind === "accepted" ? "accepted" : "forward");
    connection.socketOpened(socket);
  }

  /** Connections to the user's own ports are not given up for those of peers. */
  #holderOf(connection: Connection): Holder {
    const { holder } = this.#options;
    if (holder === undefined)
      return { of: `listener ${formatListen(this.listen)}`, isWaiting: () => false, giveUp: () => false };
    return { of: holder, isWaiting: () => false, giveUp: (reason) => (connection.reset(reason), true) };
  }

  /** Opens its stream, as soon as there is a link. */
  #begin(connection: Connection, target: StreamTarget | Accepted, use: Use): void {
    connection.onOver = (error) => this.#over(connection, error, target);
    const link = this.#options.link();
    if (link instanceof Promise) void this.#joinLater(connection, target, use, link);
    else this.#join(connection, target, use, link);
  }

  #join(connection: Connection, target: StreamTarget | Accepted, use: Use, link: StreamOpener): void {
    try {
      if (!connection.isOver) connection.join(link.open({ use, ...target }));
    } catch (error) {
      this.#noLink(connection, target, error);
    }
  }

  async #joinLater(
    connection: Connection,
    target: StreamTarget | Accepted,
    use: Use,
    link: Promise<StreamOpener>,
  ): Promise<void> {
    try {
      this.#join(connection, target, use, await inTime(link, this.#options.patienceMs));
    } catch (error) {
      this.#noLink(connection, target, error);
    }
  }

  #noLink(connection: Connection, target: StreamTarget | Accepted, error: unknown): void {
    if (connection.isOver) return;
    const reason = error instanceof Error ? error.message : String(error);
    connection.reset(reason, resetCodes["link-ended"]);
    if (target.kind !== "accepted") this.#options.onRefused?.(target, reason, "no-link");
  }

  #over(connection: Connection, error: Error | undefined, target?: StreamTarget | Accepted): void {
    this.#open.get(connection)?.();
    this.#open.delete(connection);
    this.#bytes.out += connection.bytesIn;
    this.#bytes.in += connection.bytesOut;
    if (error instanceof SocksError && error.message === otherProtocol) this.#heardOther();
    const why = error instanceof StreamError ? whyRefused(error.code) : undefined;
    if (why !== undefined && target && target.kind !== "accepted")
      this.#options.onRefused?.(target, (error as StreamError).reason, why);
  }

  /** Told once: a program that is set wrongly tries again and again. */
  #heardOther(): void {
    const at = formatListen(this.listen);
    if (!this.#hasHeardOther)
      this.#options.onProblem?.(
        `a client of the SOCKS5 proxy at ${at} was sent away: ${otherProtocol}; set it to socks5h://${at}`,
      );
    this.#hasHeardOther = true;
  }
}

/** It says why nothing can be listened for there, and what to do. */
export const cantListen = (listen: Listen, error: unknown): ListenError =>
  new ListenError(`can't listen on ${formatListen(listen)}: ${whyNot(error, listen)}`, { cause: error });

function whyNot(error: unknown, { kind }: Listen): string {
  if (kind === "unix") return pathProblem(error);
  const isTaken = (error as NodeJS.ErrnoException).code === "EADDRINUSE";
  return `${listeningProblem(error)}${isTaken ? "; choose another port" : ""}`;
}

function sum<T>(all: Iterable<T>, count: (one: T) => number): number {
  let total = 0;
  for (const one of all) total += count(one);
  return total;
}

/** Settles as the link does, or rejects after a while. */
export async function inTime<T>(link: Promise<T>, patienceMs = linkPatienceMs): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`none came within ${patienceMs / 1000} s`)), patienceMs);
  return Promise.race([link, late]).finally(() => clearTimeout(timer));
}
