/**
 * One TCP descriptor with one owner. Whoever makes a {@link Socket} closes it, or hands the descriptor on by `release()`.
 * Both are final. Sockets do not block: {@link pollSockets} tells whether a connect has ended. Prints nothing. For
 * native/host/, native/secure/, native/punch/ and native/uses/.
 */
import { readFileSync } from "node:fs";
import { splitEndpoint, type Endpoint } from "../../protocol.ts";
import * as libc from "./libc.ts";
import { platform } from "./platform.ts";
import { decodeSockaddr, encodeSockaddr } from "./sockaddr.ts";
import * as tcp from "./tcp.ts";

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
    const { IPPROTO_IPV6, IPV6_V6ONLY } = platform;
    try {
      // Without it an IPv6 listener also takes the IPv4 port, and another socket of ours needs that one.
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

  /** Lets other sockets share the local port, if they call this, too. */
  shareport(): this {
    const { SOL_SOCKET, SO_REUSEADDR, SO_REUSEPORT } = platform;
    libc.setOption(this.fd, SOL_SOCKET, SO_REUSEADDR, 1);
    libc.setOption(this.fd, SOL_SOCKET, SO_REUSEPORT, 1);
    return this;
  }

  /** Makes close() send RST. So there is no TIME_WAIT, and the next punch can use the four-tuple at once. */
  closeAbortively(): this {
    libc.setOption(this.fd, platform.SOL_SOCKET, platform.SO_LINGER, 1, 0);
    return this;
  }

  noDelay(): this {
    libc.setOption(this.fd, platform.IPPROTO_TCP, platform.TCP_NODELAY, 1);
    return this;
  }

  /** Call it before connect: no window that is announced needs scaling. */
  clampWindow(): this {
    libc.clampWindow(this.fd);
    return this;
  }

  /** Call it before connect: no ICMP error ends the connect, if the other end calls {@link reachDeaf}. */
  ignoreUnreachable(): this {
    if (this.family === 4) tcp.ignoreUnreachable(this.fd);
    return this;
  }

  /** Call it before connect or listen: what is sent reaches a socket that ignores ICMP errors. */
  reachDeaf(): this {
    if (this.family === 4) tcp.reachDeaf(this.fd);
    return this;
  }

  /** Once connected: undoes both. */
  hearAll(): this {
    if (this.family === 4) tcp.hearAll(this.fd);
    return this;
  }

  /** Call it before connect: both ends send short segments ({@link libc.clampSegments}). */
  clampSegments(clamp: libc.SegmentClamp): this {
    libc.clampSegments(this.fd, clamp);
    return this;
  }

  /** Once connected: whether the peer's SYN came without window scaling ({@link libc.isUnscaled}). */
  get isUnscaled(): boolean {
    return libc.isUnscaled(this.fd);
  }

  /** Binds to a port on every address of the family; 0 lets the kernel choose. Returns the port. */
  bind(port: number): number {
    const address = this.family === 4 ? "0.0.0.0" : "::";
    libc.bind(this.fd, encodeSockaddr({ family: this.family, address, port }));
    return port || portOf(libc.localAddress(this.fd));
  }

  /** Starts connecting. Returns true if it is connected already, false if it is in progress. */
  connect(remote: Endpoint): boolean {
    return libc.connect(this.fd, encodeSockaddr(splitEndpoint(remote)));
  }

  listen(backlog: number): void {
    libc.listen(this.fd, backlog);
  }

  /**
   * The kernel drops, without an answer, what these endpoints send to this listener. They are of its own family. Nothing
   * changes where the kernel can't do that.
   */
  dropFrom(endpoints: readonly Endpoint[]): void {
    if (endpoints.length === 0 && !this.#isFiltered) return; // taking away no filter is ENOENT
    const isDone = libc.attachFilter(this.fd, endpoints.length === 0 ? [] : dropProgram(endpoints));
    this.#isFiltered = isDone && endpoints.length > 0;
  }

  accept(): Socket | undefined {
    const fd = libc.accept(this.fd);
    return fd === undefined ? undefined : new Socket(fd, this.family);
  }

  /** The outcome of a connect that has ended: undefined for success, else the errno's name. */
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

/** Classic BPF (linux/filter.h). The TCP header is at 0, the IP header at `networkHeader`. */
const bpf = { loadWord: 0x20, loadHalf: 0x28, jumpIfEqual: 0x15, give: 0x06, networkHeader: 0xfff00000 };
/** Where the source address stands in the IP header (RFC 791 §3.1, RFC 8200 §3). */
const sourceOffset = { 4: 12, 6: 8 };

/** A program that drops segments from those endpoints, and lets all others through. */
function dropProgram(endpoints: readonly Endpoint[]): libc.Instruction[] {
  const checks = endpoints.flatMap((endpoint): libc.Instruction[] => {
    const parts = splitEndpoint(endpoint);
    const sockaddr = encodeSockaddr(parts);
    const address = parts.family === 4 ? sockaddr.subarray(4, 8) : sockaddr.subarray(8, 24);
    const words = new DataView(address.buffer, address.byteOffset, address.byteLength);
    const at = bpf.networkHeader + sourceOffset[parts.family];
    const count = address.length / 4;
    // Two instructions a word, two for the port, one that drops. A segment that differs jumps behind them.
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
 * Connects from a fresh local port that further sockets may share. The caller owns the result. Segments are short: what
 * goes here must arrive, and need not be fast. Rejects with a {@link libc.SystemError}: ECONNREFUSED, EHOSTUNREACH, …, or
 * ETIMEDOUT after `timeoutMs`.
 */
export async function connectShared(
  remote: Endpoint,
  timeoutMs: number,
): Promise<{ socket: Socket; port: number }> {
  const socket = Socket.open(splitEndpoint(remote).family);
  try {
    // After bind: with SO_REUSEPORT set, bind(0) may return a port that another program shares.
    const port = socket.bind(0);
    socket.shareport().noDelay().clampSegments(2); // its bytes are few, or not fast
    if (!socket.connect(remote)) await connectEnd(socket, timeoutMs);
    return { socket, port };
  } catch (error) {
    socket.close();
    throw error;
  }
}

/** As {@link connectShared}, from a port that is shared already. */
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

/** A connected descriptor as an option of Bun.connect. Bun 1.4.5 takes it, though its types do not list it. */
export function adoptable(fd: number): { unix: string } {
  return { fd } as unknown as { unix: string };
}

/**
 * Hands a connected socket to Bun, for good. If Bun does not take it, the descriptor is closed. Rejects only with a
 * {@link libc.SystemError}.
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

/** Bun says ECONNREFUSED whatever has failed with a descriptor. */
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
  const reason = /^error:[^:]*:SSL routines:[^:]*:(\w+)/.exec(error.message)?.[1];
  if (reason) return `TLS refused: ${reason.toLowerCase().replaceAll("_", " ")}`;
  return networkErrors[code] ?? error.message;
}

let pollEntries = new Int32Array(64);

/**
 * Returns the sockets that can be read (accept) or written (connect has ended) now. Waits for the first so long at most, in
 * whole ms, and nothing else runs meanwhile.
 */
export function pollSockets<T extends { socket: Socket; for: "read" | "write" }>(
  wanted: readonly T[],
  waitMs = 0,
): T[] {
  if (pollEntries.length < wanted.length * 2) pollEntries = new Int32Array(wanted.length * 4);
  wanted.forEach((entry, index) => {
    pollEntries[2 * index] = entry.socket.fd;
    // struct pollfd is little-endian on all our platforms: events in the low half, revents in the high one.
    pollEntries[2 * index + 1] = entry.for === "read" ? platform.POLLIN : platform.POLLOUT;
  });
  if (libc.poll(pollEntries, wanted.length, waitMs) === 0) return [];
  return wanted.filter((_, index) => pollEntries[2 * index + 1]! >>> 16 !== 0);
}

/** How many descriptors this process may have open. A low guess where the system doesn't say. */
export function descriptorLimit(): number {
  try {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
    return Number(soft ?? 256);
  } catch {
    return 256;
  }
}
