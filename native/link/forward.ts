/**
 * Both ends of a forward (`ssh -L`): a listener whose connections become streams, and the side that dials what its
 * {@link AllowList} permits. Neither knows a participant: the owner brings the link, and tells the user. For whoever
 * uses a link.
 *
 * A stream's purpose is `{"use":"forward","host":…,"port":…}`; its bytes are the connection's. A target that is not
 * allowed or does not answer resets the stream with the reason, and with it the client's connection.
 */
import { lookup } from "node:dns/promises";
import type { TCPSocketListener } from "bun";
import { canonicalAddress, Refusal } from "../../protocol.ts";
import { Connection, connectionHandlers, type Joinable } from "./connection.ts";
import { resetCodes, StreamError, type Stream } from "./stream.ts";
import {
  AllowList,
  formatHostPort,
  formatTarget,
  localhostAddresses,
  readPurposeTarget,
  type Listen,
  type Target,
} from "./target.ts";

/** How long a client's connection waits for the link. */
const linkPatienceMs = 30_000;
/** How long a target may take to accept, all of its addresses together. */
const dialPatienceMs = 10_000;
/** Bun cannot give up an attempt, so the kernel's own patience (2 min) holds a descriptor for each. */
const maxDialling = 2_048;

/** What opens streams: a session. */
export interface StreamOpener {
  open(purpose: object): Stream;
}

export interface ForwardOptions {
  /** Port 0: the kernel chooses. */
  listen: Listen;
  target: Target;
  /** The link, as soon as there is one. */
  link: () => Promise<StreamOpener>;
  /** A connection did not get through; the reason is the peer's, or that there was no link. */
  onRefused?: (reason: string) => void;
  patienceMs?: number;
}

/** The listening side. It listens from its making on, until {@link close}. */
export class Forward {
  readonly target: Target;
  readonly listen: Listen;
  /** Connections so far. */
  total = 0;
  readonly #listener: TCPSocketListener<Connection>;
  readonly #options: ForwardOptions;
  readonly #open = new Set<Connection>();
  #bytes = { in: 0, out: 0 };

  /** Throws an Error when it can't listen there. */
  constructor(options: ForwardOptions) {
    const { bind, port } = options.listen;
    this.#options = options;
    this.target = options.target;
    try {
      this.#listener = Bun.listen<Connection>({
        hostname: bind,
        port,
        allowHalfOpen: true,
        socket: { ...connectionHandlers, open: (socket) => this.#opened(socket) },
      });
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      throw new Error(`can't listen on ${formatHostPort(bind, port)}: ${code ?? error}`, { cause: error });
    }
    this.listen = { bind, port: this.#listener.port };
  }

  /** Connections that are open. */
  get open(): number {
    return this.#open.size;
  }
  /** From clients to the peer. */
  get bytesOut(): number {
    return sum(this.#open, (connection) => connection.bytesIn) + this.#bytes.out;
  }
  get bytesIn(): number {
    return sum(this.#open, (connection) => connection.bytesOut) + this.#bytes.in;
  }

  /** Listens no more, and cuts off the connections that are open. */
  close(): void {
    this.#listener.stop();
    for (const connection of this.#open) connection.reset("the forward was taken back");
  }

  #opened(socket: Bun.Socket<Connection>): void {
    const connection = new Connection();
    socket.data = connection;
    connection.onOver = (error) => this.#over(connection, error);
    connection.socketOpened(socket);
    this.#open.add(connection);
    this.total++;
    void this.#join(connection);
  }

  async #join(connection: Connection): Promise<void> {
    const { link, patienceMs = linkPatienceMs } = this.#options;
    try {
      const opener = await within(patienceMs, link(), `there was no link for ${patienceMs / 1000} s`);
      if (!connection.isOver) connection.join(opener.open({ use: "forward", ...this.target }));
    } catch (error) {
      connection.reset(error instanceof Error ? error.message : String(error), resetCodes.refused);
    }
  }

  #over(connection: Connection, error: Error | undefined): void {
    this.#open.delete(connection);
    this.#bytes.out += connection.bytesIn;
    this.#bytes.in += connection.bytesOut;
    const isRefused = error instanceof StreamError && error.code === resetCodes.refused;
    if (isRefused) this.#options.onRefused?.(error.message);
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

// --- the serving side ------------------------------------------------------------------------------------

/** Addresses of a name; throws when it has none. */
export type Resolve = (name: string) => Promise<string[]>;

const resolveBySystem: Resolve = async (name) =>
  (await lookup(name, { all: true })).map(({ address }) => address);

export interface ServeOptions {
  allow: AllowList;
  resolve?: Resolve;
}

/** How a stream of a peer fared. */
export interface Served {
  /** Canonical, or as much of it as could be read. */
  target: string;
  /** Why the stream was refused; undefined: it is joined to the target. */
  refused?: string;
}

/**
 * Joins the stream to the target that its purpose names, or resets it with the reason. The target's name is resolved
 * once, here, and the address that is dialled is the one that was checked.
 */
export async function serveForward(
  stream: Joinable,
  purpose: Record<string, unknown>,
  options: ServeOptions,
  connection = new Connection(),
): Promise<Served> {
  let target = "?";
  try {
    const wanted = readPurposeTarget(purpose);
    target = formatTarget(wanted);
    await dial(await permittedAddresses(wanted, options), wanted.port, connection);
    if (stream.destroyed) connection.reset("the client went away");
    else connection.join(stream);
    return { target };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    stream.reset(error.message, resetCodes.refused);
    return { target, refused: error.message };
  }
}

async function permittedAddresses(target: Target, { allow, resolve }: ServeOptions): Promise<string[]> {
  if (!allow.mayPermit(target)) throw new Refusal("limit", `${formatTarget(target)} is not allowed`);
  const addresses = await addressesOf(target.host, resolve ?? resolveBySystem);
  const permitted = allow.permitted(target, addresses);
  if (permitted.length > 0) return permitted;
  const others = canonicalAddress(target.host) ? "" : ` at ${addresses.slice(0, 4).join(", ")}`;
  throw new Refusal("limit", `${formatTarget(target)}${others} is not allowed`);
}

async function addressesOf(host: string, resolve: Resolve): Promise<string[]> {
  if (canonicalAddress(host)) return [host];
  if (host === "localhost") return [...localhostAddresses];
  const found = await resolve(host).catch((error: NodeJS.ErrnoException) => {
    throw new Refusal("limit", `${host} can't be resolved (${error.code ?? error.message})`);
  });
  const addresses = found.map((text) => canonicalAddress(text)?.address).filter((one) => one !== undefined);
  if (addresses.length === 0) throw new Refusal("limit", `${host} has no address`);
  return [...new Set(addresses)];
}

let dialling = 0;

/** Connects to the first address that accepts; a {@link Refusal} says why none did. */
async function dial(addresses: readonly string[], port: number, connection: Connection): Promise<void> {
  let problem = "";
  for (const address of addresses) {
    const failed = await dialOne(address, port, connection, dialPatienceMs / addresses.length);
    if (failed === undefined) return;
    problem ||= `${formatHostPort(address, port)}: ${failed}`;
  }
  throw new Refusal("limit", problem);
}

/** Resolves to why it failed. */
async function dialOne(
  hostname: string,
  port: number,
  connection: Connection,
  patienceMs: number,
): Promise<string | undefined> {
  if (dialling >= maxDialling) return "too many connections are being opened";
  // An attempt that is given up must not touch the connection, which another attempt may have by then.
  let isGivenUp = false;
  const { promise: late, resolve: giveUp } = Promise.withResolvers<string>();
  const timer = setTimeout(() => {
    isGivenUp = true;
    giveUp(`no answer within ${Math.ceil(patienceMs / 1000)} s`);
  }, patienceMs);
  const open = (socket: Bun.Socket<Connection>) => {
    if (isGivenUp || isSelfConnected(socket)) {
      socket.data = new Connection();
      socket.terminate();
    } else connection.socketOpened(socket);
  };
  dialling++;
  const attempt = Bun.connect<Connection>({
    ...{ hostname, port, allowHalfOpen: true, data: connection },
    socket: { ...connectionHandlers, open },
  })
    .then((socket) => (socket.data === connection ? undefined : "ECONNREFUSED"))
    .catch((error: NodeJS.ErrnoException) => error.code ?? error.message)
    .finally(() => dialling--);
  return Promise.race([attempt, late]).finally(() => clearTimeout(timer));
}

/** With nobody listening, a port of the ephemeral range can connect to itself. */
function isSelfConnected({ localPort, remotePort, localAddress, remoteAddress }: Bun.Socket<Connection>) {
  return localPort === remotePort && localAddress === remoteAddress;
}
