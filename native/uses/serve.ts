/**
 * The serving end of forwards and pipes: dials what its {@link AllowList} permits, and joins it to the stream. A name
 * is looked up once, on this side, and only the addresses that were checked are dialled. The peer learns no address
 * that it has not named itself. For native/uses/services.ts.
 */
import { canonicalAddress, Refusal, formatHostPort } from "../../protocol.ts";
import { Connection, connectionHandlers, type Joinable } from "./connection.ts";
import { descriptors, type Holder } from "./descriptors.ts";
import { NameError, Names } from "./names.ts";
import type { WhyRefused } from "./forward.ts";
import { Pipe } from "./pipe.ts";
import { FairShare } from "../shares/fair-share.ts";
import { resetCodes, type Stream } from "../session/stream.ts";
import { AllowList, formatTarget, localhostAddresses, readPurposeTarget, type Target } from "./target.ts";

/** How long all addresses of a target together may take to accept. */
const dialPatienceMs = 10_000;
/** Attempts at once. Bun can't give up an attempt, so each holds a descriptor until the kernel does (2 min). */
const dialling = new FairShare(2_048, 1 / 8);

/** One for the whole program, as its resolver is. */
const namesOfAll = new Names();

export interface ServeOptions {
  allow: AllowList;
  /** The fingerprint of the peer that has opened the stream. What it takes is counted by it. */
  peer: string;
  names?: Names;
}

/**
 * A stream is not served. The message is for our user. `told` is for the peer: it has no address that the peer did not
 * name.
 */
class Unserved extends Error {
  readonly told: string;
  readonly why: WhyRefused;

  constructor(why: WhyRefused, told: string, message: string = told) {
    super(message);
    this.why = why;
    this.told = told;
  }
}

/** Why a stream of a peer was refused. */
export interface Refused {
  reason: string;
  why: WhyRefused;
}

/** What became of a stream of a peer. */
export interface Served {
  /** The target in canonical form, or as much of it as could be read. */
  target: string;
  /** Undefined if it is joined to the target. */
  refused?: Refused;
}

/**
 * Joins the stream to the target that its purpose names, or resets it with the reason.
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
    const holder = { of: options.peer, isWaiting: () => stream.isWaiting };
    await dial(await permittedAddresses(wanted, options), wanted, connection, holder);
    if (stream.destroyed) connection.reset("the client went away");
    else connection.join(stream);
    return { target };
  } catch (error) {
    if (!(error instanceof Unserved || error instanceof NameError || error instanceof Refusal)) throw error;
    const { told, why } = error instanceof Unserved ? error : { told: error.message, why: whyNamed(error) };
    stream.reset(told, why === "no-answer" ? resetCodes.unreachable : resetCodes.refused);
    return { target, refused: { reason: error.message, why } };
  }
}

/** A name that has no address may be allowed; a purpose that can't be read is not. */
const whyNamed = (error: Error): WhyRefused => (error instanceof NameError ? "no-answer" : "not-allowed");

/**
 * As {@link serveForward}, for a pipe to a target. What arrives is confirmed once the target has closed without an
 * error.
 */
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

async function permittedAddresses(
  target: Target,
  { allow, peer, names = namesOfAll }: ServeOptions,
): Promise<string[]> {
  const refused = `${formatTarget(target)} is not allowed`;
  if (!allow.mayPermit(target)) throw new Unserved("not-allowed", refused);
  const { host, port } = target;
  if (host === "localhost") return permittedOf([...localhostAddresses]);
  if (canonicalAddress(host)) return permittedOf([host]);
  const addresses = await names.addresses(host, peer, allow.names(target));
  const rule = formatHostPort(addresses[0]!, port);
  return permittedOf(addresses, `${refused} at ${addresses.slice(0, 4).join(", ")} (\`--allow ${rule}\`)`);

  function permittedOf(all: readonly string[], reason = refused): string[] {
    const permitted = allow.permitted(target, all);
    if (permitted.length === 0) throw new Unserved("not-allowed", refused, reason);
    return permitted;
  }
}

/** Why nothing could be reached, in words. */
const dialProblems: Record<string, string> = {
  ECONNREFUSED: "nothing listens there (ECONNREFUSED)",
  EHOSTUNREACH: "no way leads there (EHOSTUNREACH)",
  ENETUNREACH: "no way leads there (ENETUNREACH)",
  ETIMEDOUT: "no answer (ETIMEDOUT)",
};

/** Connects to the first address that accepts. Throws an {@link Unserved} if none does. */
async function dial(
  addresses: readonly string[],
  target: Target,
  connection: Connection,
  holder: Omit<Holder, "giveUp">,
): Promise<void> {
  let unserved: Unserved | undefined;
  for (const address of addresses) {
    const patienceMs = dialPatienceMs / addresses.length;
    const failed = await dialOne(address, target.port, connection, patienceMs, holder);
    if (failed === undefined) return;
    const reason = dialProblems[failed] ?? failed;
    unserved ??= new Unserved(
      "no-answer",
      `${formatTarget(target)}: ${reason}`,
      `${formatHostPort(address, target.port)}: ${reason}`,
    );
  }
  throw unserved!;
}

/** Resolves to undefined if it is connected, else to the reason. */
async function dialOne(
  hostname: string,
  port: number,
  connection: Connection,
  patienceMs: number,
  holder: Omit<Holder, "giveUp">,
): Promise<string | undefined> {
  let attempt: "under-way" | "open" | "given-up" = "under-way";
  const reset = (reason: string) => (attempt === "open" && connection.reset(reason), attempt === "open");
  const free = takenBy({ ...holder, giveUp: reset });
  if (!free) return "too many connections are open for you";
  const { promise: late, resolve: giveUp } = Promise.withResolvers<string>();
  const timer = setTimeout(() => {
    attempt = "given-up";
    giveUp(`no answer within ${Math.ceil(patienceMs / 1000)} s`);
  }, patienceMs);
  // An attempt that was given up must not touch the connection: another attempt may use it by then.
  const mayOpen = () => attempt !== "given-up" && ((attempt = "open"), true);
  const connected = connectOnce(hostname, port, connection, free, mayOpen);
  return Promise.race([connected, late]).finally(() => clearTimeout(timer));
}

async function connectOnce(
  hostname: string,
  port: number,
  connection: Connection,
  free: Taken,
  mayOpen: () => boolean,
): Promise<string | undefined> {
  const open = (socket: Bun.Socket<Connection>) => {
    const isOurs = socket.localPort === port && isSelfConnected(socket);
    if (!isOurs && mayOpen()) return connection.socketOpened(socket);
    socket.data = new Connection();
    socket.terminate();
  };
  const close = (socket: Bun.Socket<Connection>, error?: Error) => {
    free.socket();
    socket.data.socketClosed(error);
  };
  try {
    const socket = await Bun.connect<Connection>({
      ...{ hostname, port, allowHalfOpen: true, data: connection },
      socket: { ...connectionHandlers, open, close },
    });
    return socket.data === connection ? undefined : "ECONNREFUSED";
  } catch (error) {
    free.socket();
    const { code, message } = error as NodeJS.ErrnoException;
    return code ?? message;
  } finally {
    free.attempt();
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
