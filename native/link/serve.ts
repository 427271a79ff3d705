/**
 * The serving end of forwards and pipes: dials what its {@link AllowList} permits, and joins it to the stream. A name
 * is resolved here and once, and the address that is dialled is the one that was checked. For whoever uses a link.
 */
import { lookup } from "node:dns/promises";
import { canonicalAddress, Refusal } from "../../protocol.ts";
import { Connection, connectionHandlers, type Joinable } from "./connection.ts";
import { Pipe } from "./pipe.ts";
import { resetCodes, type Stream } from "./stream.ts";
import {
  AllowList,
  formatHostPort,
  formatTarget,
  localhostAddresses,
  readPurposeTarget,
  type Target,
} from "./target.ts";

/** How long a target may take to accept, all of its addresses together. */
const dialPatienceMs = 10_000;
/** Bun cannot give up an attempt, so the kernel's own patience (2 min) holds a descriptor for each. */
const maxDialling = 2_048;

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

/** As `serveForward`, for a pipe to a target: what arrives is confirmed once the target has closed without an error. */
export async function servePipe(
  stream: Stream,
  purpose: Record<string, unknown>,
  options: ServeOptions,
): Promise<Served> {
  const pipe = new Pipe(stream);
  const connection = new Connection();
  connection.awaitsClose = true;
  connection.onOver = (error) => void (error ?? pipe.confirm());
  return serveForward(pipe, purpose, options, connection);
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
    if (isGivenUp || (socket.localPort === port && isSelfConnected(socket))) {
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
