/**
 * Connections to what is on this side of a link, or beyond it. Each holds its share of descriptors and attempts until it is
 * closed. It decides nothing: who may reach what was checked before. For native/uses/.
 */
import { close } from "../host/libc.ts";
import { adoptable } from "../host/socket.ts";
import { connectToPath } from "../host/unix.ts";
import { Connection, connectionHandlers, type Joinable } from "./connection.ts";
import { descriptors, type Holder } from "./descriptors.ts";
import { FairShare } from "../shares/fair-share.ts";

/** How long all addresses of a target together may take to accept. */
const dialPatienceMs = 10_000;
/** Attempts at once. Bun can't give up an attempt, so each holds a descriptor until the kernel does (2 min). */
const dialling = new FairShare(2_048, 1 / 8);

/** Why nothing could be reached, in words. */
export const dialProblems: Readonly<Record<string, string>> = {
  ECONNREFUSED: "nothing listens there (ECONNREFUSED)",
  EHOSTUNREACH: "no way leads there (EHOSTUNREACH)",
  ENETUNREACH: "no way leads there (ENETUNREACH)",
  ETIMEDOUT: "no answer (ETIMEDOUT)",
  ENOENT: "there is no such socket (ENOENT)",
  EAGAIN: "too many wait there already (EAGAIN)",
  EACCES: "it is not ours to use (EACCES)",
};

/** Where a socket can be connected to: an address and port, or the path of a socket. */
export type Place = { hostname: string; port: number } | { unix: string };

/** Why nothing could be reached. */
export interface Undialled {
  place: Place;
  /** In words. */
  reason: string;
  isRefused: boolean;
}

/** What is to be joined. */
export interface Wanted {
  stream: Joinable;
  /** Whose socket becomes the one that connects. */
  connection: Connection;
  /** In whose share it is counted: a peer's fingerprint. */
  of: string;
  /** What the client gets once it is connected. */
  first?: Buffer | undefined;
}

/**
 * Connects to the first place that accepts, and joins that to the stream in the same moment: so the socket need not be
 * paused. Resolves to undefined, or to why the first of the places did not accept.
 */
export async function dial(places: readonly Place[], wanted: Wanted): Promise<Undialled | undefined> {
  let first: Undialled | undefined;
  for (const place of places) {
    const failed = await dialOne(place, dialPatienceMs / places.length, wanted);
    if (failed === undefined) return undefined;
    first ??= { place, reason: dialProblems[failed] ?? failed, isRefused: failed === "ECONNREFUSED" };
  }
  return first;
}

/** Resolves to undefined if it is connected, else to the reason. */
async function dialOne(place: Place, patienceMs: number, wanted: Wanted): Promise<string | undefined> {
  const { connection, stream, of } = wanted;
  let attempt: "under-way" | "open" | "given-up" = "under-way";
  const reset = (reason: string) => (attempt === "open" && connection.reset(reason), attempt === "open");
  const free = takenBy({ of, isWaiting: () => stream.isWaiting, giveUp: reset });
  if (!free) return "too many connections are open for you";
  const { promise: late, resolve: giveUp } = Promise.withResolvers<string>();
  const timer = setTimeout(() => {
    attempt = "given-up";
    giveUp(`no answer within ${Math.ceil(patienceMs / 1000)} s`);
  }, patienceMs);
  // An attempt that was given up must not touch the connection: another attempt may use it by then.
  const mayJoin = () => attempt !== "given-up" && ((attempt = "open"), join(wanted), true);
  const connected = connectOnce(place, connection, free, mayJoin);
  return Promise.race([connected, late]).finally(() => clearTimeout(timer));
}

function join({ stream, connection, first }: Wanted): void {
  if (stream.destroyed) return connection.reset("the client went away");
  if (first) stream.write(first);
  connection.join(stream);
}

async function connectOnce(
  place: Place,
  connection: Connection,
  free: Taken,
  mayJoin: () => boolean,
): Promise<string | undefined> {
  const open = (socket: Bun.Socket<Connection>) => {
    const isOurs = "port" in place && socket.localPort === place.port && isSelfConnected(socket);
    if (!isOurs && mayJoin()) return connection.socketOpened(socket);
    socket.data = new Connection();
    socket.terminate();
  };
  const close = (socket: Bun.Socket<Connection>, error?: Error) => {
    free.socket();
    socket.data.socketClosed(error);
  };
  try {
    const handlers = { ...connectionHandlers, open, close };
    const options = { allowHalfOpen: true, data: connection, socket: handlers };
    const socket = await ("unix" in place
      ? byDescriptor(connectToPath(place.unix), options)
      : Bun.connect<Connection>({ ...options, ...place }));
    return socket.data === connection ? undefined : "ECONNREFUSED";
  } catch (error) {
    free.socket();
    const { code, message } = error as NodeJS.ErrnoException;
    return code ?? message;
  } finally {
    free.attempt();
  }
}

type Options = Omit<Bun.UnixSocketOptions<Connection>, "unix">;

async function byDescriptor(fd: number, options: Options): Promise<Bun.Socket<Connection>> {
  try {
    return await Bun.connect<Connection>({ ...options, ...adoptable(fd) });
  } catch (error) {
    close(fd);
    throw error;
  }
}

interface Taken {
  attempt: () => void;
  socket: () => void;
}

/** Takes what an attempt needs of the shares. Returns what gives it back; undefined if that peer has its share. */
function takenBy(holder: Holder): Taken | undefined {
  const attempt = dialling.take(holder.of);
  const socket = attempt && descriptors().take(holder);
  if (socket) return { attempt, socket };
  attempt?.();
  return undefined;
}

/** Whether it has connected to itself. That can happen in the ephemeral range, if nobody listens on the port. */
function isSelfConnected({ localPort, remotePort, localAddress, remoteAddress }: Bun.Socket<Connection>) {
  return localPort === remotePort && localAddress === remoteAddress;
}
