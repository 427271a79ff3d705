/**
 * Connecting to a host that may have several addresses, of both families: Happy Eyeballs. The next address is tried when the
 * last one has failed, or has not answered for a while; the first that accepts wins. Owns the descriptors of all attempts
 * until then. It may begin before anybody asks for it. For native/host/control.ts and participant.ts.
 *
 * RFC 8305 §4, §5 (interleaved families, connection attempt delay), RFC 6724 (the order of addresses).
 */
import {
  canonicalAddress,
  type Endpoint,
  formatEndpoint,
  type Place,
  splitEndpoint,
  UserError,
} from "../../protocol.ts";
import { SystemError } from "./libc.ts";
import { pollSockets, Socket } from "./socket.ts";

/** RFC 8305 §5: "RECOMMENDED". */
const attemptDelayMs = 250;
/** How long one address may take to accept. */
const connectTimeoutMs = 8_000;
/** So many addresses of one host are tried. */
const maxAddresses = 16;
const pollMs = 1;
/** What was begun longer ago may have been closed at the other end. */
const freshMs = 2_000;

/** Where to connect to, and from which port of ours; without one, from a free one. */
export interface Wanted extends Place {
  readonly localPort?: number | undefined;
  /** Once it aborts, nobody wants it any more: what is still open is closed. */
  readonly signal?: AbortSignal | undefined;
}

/** A connection from a local port that further sockets may share. Whoever has it owns the socket. */
export interface Connected {
  readonly socket: Socket;
  readonly port: number;
  readonly remote: Endpoint;
}

/** No address has accepted. `failures`: each of them, with the errno's name. */
export class Unreachable extends Error {
  readonly failures: readonly { remote: Endpoint; code: string }[];
  constructor(failures: readonly { remote: Endpoint; code: string }[]) {
    super(failures.map(({ remote, code }) => `${remote}: ${code}`).join("; "));
    this.failures = failures;
  }
}

interface Attempt extends Connected {
  readonly for: "write";
  readonly startedAt: number;
}

/** How long an earlier connection from the port that we shall connect from may take to close. */
const closingMs = 2_000;
const closingPollMs = 50;

/** The port that we shall connect from can't be had. */
class PortTaken extends UserError {
  /** Whether a connection from there, to the same address, is still open. It may be one of ours that closes. */
  readonly isConnected: boolean;
  constructor(port: number, code: string) {
    const next = "end that one, or give another port here and at the router";
    super(`another program of this host uses port ${port} (--port): ${next}`);
    this.isConnected = code === "EADDRNOTAVAIL";
  }
}
const takenCodes: ReadonlySet<string> = new Set(["EADDRINUSE", "EADDRNOTAVAIL"]);

/** All attempts to connect to one host. */
class Race {
  readonly #waiting: Endpoint[];
  readonly #failures: { remote: Endpoint; code: string }[] = [];
  readonly #localPort: number;
  readonly #signal: AbortSignal | undefined;
  #running: Attempt[] = [];
  #startedAt = -Infinity;

  constructor(remotes: readonly Endpoint[], localPort: number, signal: AbortSignal | undefined) {
    this.#waiting = remotes.slice(0, maxAddresses);
    this.#signal = signal;
    this.#localPort = localPort;
  }

  /** Resolves to the winner. Closes all others. */
  async run(): Promise<Connected> {
    try {
      for (;;) {
        this.#signal?.throwIfAborted();
        this.#startNext();
        const winner = this.#look();
        if (winner) return winner;
        if (this.#running.length > 0) await Bun.sleep(pollMs);
        else if (this.#waiting.length === 0) throw new Unreachable(this.#failures);
      }
    } finally {
      for (const { socket } of this.#running) socket.close();
    }
  }

  /** Starts the next one if it is its turn. What fails at once lets another one start. */
  #startNext(): void {
    const isDue = () => this.#running.length === 0 || performance.now() - this.#startedAt >= attemptDelayMs;
    while (this.#waiting.length > 0 && isDue()) this.#start(this.#waiting.shift()!);
  }

  #start(remote: Endpoint): void {
    this.#startedAt = performance.now();
    let socket: Socket | undefined;
    try {
      socket = Socket.open(splitEndpoint(remote).family);
      // After bind: with SO_REUSEPORT set, bind(0) may return a port that another program shares.
      const port = this.#localPort === 0 ? socket.bind(0) : socket.shareport().bind(this.#localPort);
      socket.shareport().noDelay().clampSegments(2).connect(remote);
      this.#running.push({ socket, port, remote, for: "write", startedAt: this.#startedAt });
    } catch (error) {
      socket?.close();
      if (!(error instanceof SystemError)) throw error;
      if (this.#localPort !== 0 && takenCodes.has(error.code))
        throw new PortTaken(this.#localPort, error.code);
      this.#failures.push({ remote, code: error.code });
    }
  }

  /** The one that has connected; those that have failed are closed. */
  #look(): Connected | undefined {
    const ended = new Set(pollSockets(this.#running));
    for (const attempt of this.#running) {
      const isLate = performance.now() - attempt.startedAt >= connectTimeoutMs;
      if (!ended.has(attempt) && !isLate) continue;
      this.#running = this.#running.filter((one) => one !== attempt);
      const code = ended.has(attempt) ? attempt.socket.error() : "ETIMEDOUT";
      if (code === undefined) return attempt;
      attempt.socket.close();
      this.#failures.push({ remote: attempt.remote, code });
    }
    return undefined;
  }
}

/** The families by turns, beginning with that of the first; within each the order stays (RFC 8305 §4). Pure. */
export function interleaved(remotes: readonly Endpoint[]): Endpoint[] {
  const family = (remote: Endpoint) => splitEndpoint(remote).family;
  const first = remotes.filter((one) => family(one) === family(remotes[0]!));
  const others = remotes.filter((one) => !first.includes(one));
  const longest = Math.max(first.length, others.length);
  return Array.from({ length: longest }, (_, index) => [first[index], others[index]])
    .flat()
    .filter((one) => one !== undefined);
}

/** The addresses of a host, in the system's order. Rejects with a {@link UserError} if there is none. */
export async function resolve(host: string, port: number): Promise<Endpoint[]> {
  const literal = canonicalAddress(host);
  if (literal) return [formatEndpoint(literal.address, port)];
  if (host.trim() === "") throw new UserError("the introducer's host is empty: give a name or an IP address");
  try {
    const { lookup } = process.getBuiltinModule("node:dns/promises");
    const found = await lookup(host, { all: true });
    return interleaved(found.map(({ address }) => formatEndpoint(address, port)));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code !== "ENOTFOUND" && code !== undefined)
      throw new UserError(`the name ${host} can't be looked up now (${code}): is there a network?`);
    throw new UserError(`there is no host called ${host}: check the spelling, or give an IP address`);
  }
}

/**
 * Connects to the first that accepts. Rejects with {@link Unreachable}, or with a {@link UserError} if the local port can't
 * be had.
 */
export async function connectToFirst(
  remotes: readonly Endpoint[],
  localPort = 0,
  signal?: AbortSignal,
): Promise<Connected> {
  const untilMs = performance.now() + closingMs;
  for (;;) {
    try {
      return await new Race(remotes, localPort, signal).run();
    } catch (error) {
      const mayClose = error instanceof PortTaken && error.isConnected;
      if (!mayClose || performance.now() >= untilMs) throw error;
    }
    await Bun.sleep(closingPollMs);
  }
}

// --- before anybody asks for it --------------------------------------------------------------------------

/** What has been begun, and not been asked for yet. */
let begun: (Wanted & { connecting: Promise<Connected> }) | undefined;

/**
 * Begins to connect, because somebody will probably ask for that soon. What fails is told whoever asks. What nobody has
 * asked for soon is closed.
 */
export function beginConnecting(wanted: Wanted | undefined): void {
  if (!wanted) return;
  const { host, port, localPort } = wanted;
  const connecting = resolve(host, port).then((remotes) => connectToFirst(remotes, localPort));
  const mine = { host, port, localPort, connecting };
  mine.connecting.catch(() => {});
  begun = mine;
  setTimeout(() => begun === mine && drop(), freshMs).unref();
}

/** What was begun, if that is what is wanted now. Anything else is closed. */
export function takeBegun({ host, port, localPort }: Wanted): Promise<Connected> | undefined {
  if (begun?.host !== host || begun.port !== port || begun.localPort !== localPort) return drop();
  const { connecting } = begun;
  begun = undefined;
  return connecting;
}

function drop(): undefined {
  begun?.connecting.then(({ socket }) => socket.close()).catch(() => {});
  begun = undefined;
}
