/**
 * One TCP descriptor with one owner. Whoever makes a {@link Socket} closes it, or hands the descriptor on with
 * `release()`; both are final. Non-blocking: whether a connect has ended is asked with {@link pollSockets}.
 */
import { readFileSync } from "node:fs";
import { splitEndpoint, type Endpoint } from "../../protocol.ts";
import * as libc from "./libc.ts";
import { decodeSockaddr, encodeSockaddr } from "./sockaddr.ts";

export class Socket implements Disposable {
  readonly family: 4 | 6;
  #fd: number;
  #isFiltered = false;

  private constructor(fd: number, family: 4 | 6) {
    this.#fd = fd;
    this.family = family;
  }

  /** A new socket; throws {@link libc.SystemError} (EMFILE, EAFNOSUPPORT). */
  static open(family: 4 | 6): Socket {
    const socket = new Socket(libc.socket(family), family);
    const { IPPROTO_IPV6, IPV6_V6ONLY } = libc.platform;
    try {
      // Without it an IPv6 listener also takes the IPv4 port, which another socket of ours will want.
      if (family === 6) libc.setOption(socket.#fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
      return socket;
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  get fd(): number {
    if (this.#fd < 0) throw new Error("this socket is closed");
    return this.#fd;
  }

  get isOpen(): boolean {
    return this.#fd >= 0;
  }

  /** Lets other sockets, that say the same, share the local port. */
  shareport(): this {
    const { SOL_SOCKET, SO_REUSEADDR, SO_REUSEPORT } = libc.platform;
    libc.setOption(this.fd, SOL_SOCKET, SO_REUSEADDR, 1);
    libc.setOption(this.fd, SOL_SOCKET, SO_REUSEPORT, 1);
    return this;
  }

  /** Makes close() send RST, so that no TIME_WAIT holds the four-tuple and the next punch can use it at once. */
  closeAbortively(): this {
    libc.setOption(this.fd, libc.platform.SOL_SOCKET, libc.platform.SO_LINGER, 1, 0);
    return this;
  }

  noDelay(): this {
    libc.setOption(this.fd, libc.platform.IPPROTO_TCP, libc.platform.TCP_NODELAY, 1);
    return this;
  }

  /** Before connect: no window of it needs scaling. */
  clampWindow(): this {
    libc.clampWindow(this.fd);
    return this;
  }

  /** Before connect: both ends keep their segments short ({@link libc.clampSegments}). */
  clampSegments(): this {
    libc.clampSegments(this.fd);
    return this;
  }

  /** Once connected: whether the peer's SYN has come without window scaling ({@link libc.isUnscaled}). */
  get isUnscaled(): boolean {
    return libc.isUnscaled(this.fd);
  }

  /** Binds to a port on every address of the family; 0 lets the kernel choose. Returns the port. */
  bind(port: number): number {
    const address = this.family === 4 ? "0.0.0.0" : "::";
    libc.bind(this.fd, encodeSockaddr({ family: this.family, address, port }));
    return port || portOf(libc.localAddress(this.fd));
  }

  /** Starts connecting. True: connected already; false: in progress. */
  connect(remote: Endpoint): boolean {
    return libc.connect(this.fd, encodeSockaddr(splitEndpoint(remote)));
  }

  listen(backlog: number): void {
    libc.listen(this.fd, backlog);
  }

  /**
   * From now on nothing comes to this listener from these endpoints, of its own family: it is dropped, and not refused.
   * Where the kernel can't do that, nothing changes.
   */
  dropFrom(endpoints: readonly Endpoint[]): void {
    if (endpoints.length === 0 && !this.#isFiltered) return; // there is no filter to take away: ENOENT
    const isDone = libc.attachFilter(this.fd, endpoints.length === 0 ? [] : dropProgram(endpoints));
    this.#isFiltered = isDone && endpoints.length > 0;
  }

  accept(): Socket | undefined {
    const fd = libc.accept(this.fd);
    return fd === undefined ? undefined : new Socket(fd, this.family);
  }

  /** The outcome of a connect that poll said has ended: undefined for success, else the errno's name. */
  error(): string | undefined {
    return libc.pendingError(this.fd);
  }

  get local(): Endpoint {
    return decodeSockaddr(libc.localAddress(this.fd));
  }

  get remote(): Endpoint {
    return decodeSockaddr(libc.remoteAddress(this.fd));
  }

  /** Hands the descriptor to a new owner; this object is closed from then on. */
  release(): number {
    const fd = this.fd;
    this.#fd = -1;
    return fd;
  }

  /** Closes with RST. */
  abort(): void {
    try {
      this.closeAbortively();
    } finally {
      this.close();
    }
  }

  close(): void {
    if (this.#fd < 0) return;
    libc.close(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Classic BPF (linux/filter.h): what a segment's IP header, and its TCP header at 0, are asked. */
const bpf = { loadWord: 0x20, loadHalf: 0x28, jumpIfEqual: 0x15, give: 0x06, networkHeader: 0xfff00000 };
/** Where a source address stands in the header (RFC 791 §3.1, RFC 8200 §3). */
const sourceOffset = { 4: 12, 6: 8 };

/** Drops segments from those endpoints, and lets all others through. */
function dropProgram(endpoints: readonly Endpoint[]): libc.Instruction[] {
  const checks = endpoints.flatMap((endpoint): libc.Instruction[] => {
    const parts = splitEndpoint(endpoint);
    const sockaddr = encodeSockaddr(parts);
    const address = parts.family === 4 ? sockaddr.subarray(4, 8) : sockaddr.subarray(8, 24);
    const words = new DataView(address.buffer, address.byteOffset, address.byteLength);
    const at = bpf.networkHeader + sourceOffset[parts.family];
    const count = address.length / 4;
    // Two instructions a word, two for the port, one that drops: whoever differs goes on behind them.
    const size = 2 * count + 3;
    const compared = Array.from({ length: count }, (_, word): libc.Instruction[] => [
      [bpf.loadWord, 0, 0, at + 4 * word],
      [bpf.jumpIfEqual, 0, size - 2 * word - 2, words.getUint32(4 * word)],
    ]).flat();
    return [...compared, [bpf.loadHalf, 0, 0, 0], [bpf.jumpIfEqual, 0, 1, parts.port], [bpf.give, 0, 0, 0]];
  });
  return [...checks, [bpf.give, 0, 0, 0xffffffff]];
}

/**
 * Connects from a fresh local port that further sockets may share; the caller owns the result. For what needs to arrive
 * rather than to be fast: segments are short. Rejects with a
 * {@link libc.SystemError} (ECONNREFUSED, EHOSTUNREACH, …; ETIMEDOUT after `timeoutMs`).
 */
export async function connectShared(
  remote: Endpoint,
  timeoutMs: number,
): Promise<{ socket: Socket; port: number }> {
  const socket = Socket.open(splitEndpoint(remote).family);
  try {
    // Shared only after bind: with SO_REUSEPORT set, bind(0) may return a port that another program shares.
    const port = socket.bind(0);
    socket.shareport().noDelay().clampSegments();
    if (!socket.connect(remote)) await connectEnd(socket, timeoutMs);
    return { socket, port };
  } catch (error) {
    socket.close();
    throw error;
  }
}

/** The same from a port that is shared already. */
export async function connectFrom(port: number, remote: Endpoint, timeoutMs: number): Promise<Socket> {
  const socket = Socket.open(splitEndpoint(remote).family);
  try {
    socket.shareport().bind(port);
    if (!socket.connect(remote)) await connectEnd(socket, timeoutMs);
    return socket;
  } catch (error) {
    socket.close();
    throw error;
  }
}

/** A connected descriptor as an option of Bun.connect, which takes it although its types (1.4.5) do not list it. */
export function adoptable(fd: number): { unix: string } {
  return { fd } as unknown as { unix: string };
}

/**
 * Hands a connected socket to Bun, for good: when Bun does not take it, the descriptor is closed. Rejects with a
 * {@link libc.SystemError}, and nothing else.
 */
export async function handOver(
  socket: Socket,
  handlers: Bun.SocketHandler<undefined>,
): Promise<Bun.Socket<undefined>> {
  try {
    const connection = await Bun.connect<undefined>({ ...adoptable(socket.fd), socket: handlers });
    socket.release();
    return connection;
  } catch (error) {
    socket.close();
    throw systemError(error);
  }
}

/** Bun says ECONNREFUSED whatever it was that it could not do with a descriptor. */
function systemError(error: unknown): libc.SystemError {
  return error instanceof libc.SystemError ? error : new libc.SystemError("EBADF", "adopt");
}

async function connectEnd(socket: Socket, timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (pollSockets([{ socket, for: "write" }]).length === 0) {
    if (performance.now() >= deadline) throw new libc.SystemError("ETIMEDOUT", "connect");
    await Bun.sleep(1);
  }
  const failure = socket.error();
  if (failure !== undefined) throw new libc.SystemError(failure, "connect");
}

function portOf(sockaddr: Uint8Array): number {
  return (sockaddr[2]! << 8) | sockaddr[3]!;
}

export const closedThere = "the connection was closed at the peer's end";
const networkErrors: Readonly<Record<string, string>> = {
  ECONNRESET: "the connection was reset",
  EPIPE: closedThere,
  ETIMEDOUT: "the network delivered nothing any more",
  EHOSTUNREACH: "the host can no longer be reached",
  ENETUNREACH: "the network there can no longer be reached",
};

/** An error of a socket or of TLS in plain words. */
export function inWords(error: Error): string {
  const code = "code" in error && typeof error.code === "string" ? error.code : "";
  const complaint = /^error:[^:]*:SSL routines:[^:]*:(\w+)/.exec(error.message)?.[1];
  if (complaint) return `TLS refused: ${complaint.toLowerCase().replaceAll("_", " ")}`;
  return networkErrors[code] ?? error.message;
}

let pollEntries = new Int32Array(64);

/** Asks the kernel once, without waiting, which sockets can be read (accept) or written (connect has ended). */
export function pollSockets<T extends { socket: Socket; for: "read" | "write" }>(wanted: readonly T[]): T[] {
  if (pollEntries.length < wanted.length * 2) pollEntries = new Int32Array(wanted.length * 4);
  wanted.forEach((entry, index) => {
    pollEntries[2 * index] = entry.socket.fd;
    // struct pollfd is little-endian on all our platforms: events in the low half, revents in the high one.
    pollEntries[2 * index + 1] = entry.for === "read" ? libc.platform.POLLIN : libc.platform.POLLOUT;
  });
  if (libc.poll(pollEntries, wanted.length) === 0) return [];
  return wanted.filter((_, index) => pollEntries[2 * index + 1]! >>> 16 !== 0);
}

/** How many descriptors this process may have open; a cautious guess where the system doesn't say. */
export function descriptorLimit(): number {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
    return Number(soft ?? 256);
  } catch {
    return 256;
  }
}
