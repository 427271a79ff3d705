/**
 * The listening end of a forward (`ssh -L`): a listener whose connections become streams. native/uses/serve.ts is the other
 * end. It knows no participant: its owner brings the link, and tells the user. For native/uses/services.ts.
 *
 * The purpose of a stream is `{"use":"forward","host":…,"port":…}`. Its bytes are those of the connection. If the target is
 * not allowed, or does not answer, the stream is reset with the reason, and so is the client's connection. The same where
 * there is no link, or none that carries anything, for a while.
 */
import { formatHostPort } from "../../protocol.ts";
import type { Socket } from "bun";
import { Connection, connectionHandlers } from "./connection.ts";
import { Listener } from "../host/listener.ts";
import { listeningProblem } from "../host/listening-problem.ts";
import { descriptors } from "./descriptors.ts";
import { resetCodes, StreamError, type Stream } from "../session/stream.ts";
import { type Listen, type Target } from "./target.ts";

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
  return code === resetCodes.unreachable ? "no-answer" : undefined;
}

export interface ForwardOptions {
  /** Port 0: the kernel chooses. */
  listen: Listen;
  target: Target;
  /** The link, as soon as one carries something. Not a promise if it does, so that a connection need not wait. */
  link: () => StreamOpener | Promise<StreamOpener>;
  /** A connection did not get through. */
  onRefused?: (reason: string, why: WhyRefused) => void;
  /** Nobody can connect now, or others can. */
  onProblem?: (message: string) => void;
  patienceMs?: number;
}

/** The listening end. It listens until {@link close}. */
export class Forward {
  readonly target: Target;
  readonly listen: Listen;
  /** Connections so far. */
  total = 0;
  readonly #listener: Listener<Connection>;
  readonly #options: ForwardOptions;
  /** Each with what gives its descriptor back. */
  readonly #open = new Map<Connection, () => void>();
  #bytes = { in: 0, out: 0 };

  /** Throws an Error if it can't listen there. */
  constructor(options: ForwardOptions) {
    const { bind, port } = options.listen;
    this.#options = options;
    this.target = options.target;
    try {
      const socket = { ...connectionHandlers, open: (one: Socket<Connection>) => this.#opened(one) };
      const problem = (message: string) => options.onProblem?.(message);
      this.#listener = new Listener({ hostname: bind, port, allowHalfOpen: true, socket }, problem);
    } catch (error) {
      const isTaken = (error as NodeJS.ErrnoException).code === "EADDRINUSE";
      const why = `${listeningProblem(error)}${isTaken ? "; choose another port" : ""}`;
      throw new Error(`can't listen on ${formatHostPort(bind, port)}: ${why}`, { cause: error });
    }
    this.listen = { bind, port: this.#listener.port };
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
    for (const connection of this.#open.keys()) connection.reset("the forward was taken back");
  }

  #opened(socket: Socket<Connection>): void {
    const connection = new Connection();
    socket.data = connection;
    const { bind, port } = this.listen;
    // Connections to this port are the user's own. They are not given up for those of peers.
    const of = `listener ${formatHostPort(bind, port)}`;
    const free = descriptors().take({ of, isWaiting: () => false, giveUp: () => false });
    if (!free) return void socket.terminate();
    connection.onOver = (error) => this.#over(connection, error);
    this.#open.set(connection, free);
    this.total++;
    const link = this.#options.link();
    if (link instanceof Promise) void this.#joinLater(connection, link);
    else this.#join(connection, link);
    connection.socketOpened(socket);
  }

  #join(connection: Connection, link: StreamOpener): void {
    try {
      if (!connection.isOver) connection.join(link.open({ use: "forward", ...this.target }));
    } catch (error) {
      this.#noLink(connection, error);
    }
  }

  async #joinLater(connection: Connection, link: Promise<StreamOpener>): Promise<void> {
    const { patienceMs = linkPatienceMs } = this.#options;
    try {
      this.#join(connection, await within(patienceMs, link, `none came within ${patienceMs / 1000} s`));
    } catch (error) {
      this.#noLink(connection, error);
    }
  }

  #noLink(connection: Connection, error: unknown): void {
    if (connection.isOver) return;
    const reason = error instanceof Error ? error.message : String(error);
    connection.reset(reason);
    this.#options.onRefused?.(reason, "no-link");
  }

  #over(connection: Connection, error: Error | undefined): void {
    this.#open.get(connection)?.();
    this.#open.delete(connection);
    this.#bytes.out += connection.bytesIn;
    this.#bytes.in += connection.bytesOut;
    const why = error instanceof StreamError ? whyRefused(error.code) : undefined;
    if (why !== undefined) this.#options.onRefused?.((error as StreamError).reason, why);
  }
}

function sum<T>(all: Iterable<T>, count: (one: T) => number): number {
  let total = 0;
  for (const one of all) total += count(one);
  return total;
}

async function within<T>(patienceMs: number, promise: Promise<T>, reason: string): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(reason)), patienceMs);
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
