/**
 * The C library: the only file that imports `bun:ffi`. Owns the symbol table. No pointer and no raw return value leaves it:
 * every call returns a checked number, or throws a {@link SystemError}. It holds no descriptor: socket.ts does. For
 * native/host/, native/secure/ and native/punch/.
 */
import { dlopen, ptr, read, toArrayBuffer, type FFIFunction, type Pointer } from "bun:ffi";
import { readFileSync } from "node:fs";
import { platform } from "./platform.ts";

/** A libc call that failed: `code` is the errno's name, such as `ECONNREFUSED`. */
export class SystemError extends Error {
  readonly code: string;
  readonly syscall: string;
  constructor(code: string, syscall: string) {
    super(`${syscall}: ${code}`);
    this.code = code;
    this.syscall = syscall;
  }
}

const symbols = {
  // int socket(int domain, int type, int protocol)
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  // int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
  setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
  // int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
  getsockopt: { args: ["i32", "i32", "i32", "ptr", "ptr"], returns: "i32" },
  // int bind(int fd, const struct sockaddr *address, socklen_t length)
  bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
  // int connect(int fd, const struct sockaddr *address, socklen_t length)
  connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
  // int listen(int fd, int backlog)
  listen: { args: ["i32", "i32"], returns: "i32" },
  // int getsockname(int fd, struct sockaddr *address, socklen_t *length)
  getsockname: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  // int getpeername(int fd, struct sockaddr *address, socklen_t *length)
  getpeername: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  // int poll(struct pollfd *fds, nfds_t count, int timeoutMs)
  poll: { args: ["ptr", "u64", "i32"], returns: "i32" },
  // int close(int fd)
  close: { args: ["i32"], returns: "i32" },
} as const satisfies Record<string, FFIFunction>;

const linuxSymbols = {
  // int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
  accept4: { args: ["i32", "ptr", "ptr", "i32"], returns: "i32" },
  // int fcntl(int fd, int command, ...): variadic arguments go where others do on x64 and arm64
  fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
  __errno_location: { args: [], returns: "ptr" },
} as const satisfies Record<string, FFIFunction>;

const darwinSymbols = {
  // int accept(int fd, struct sockaddr *address, socklen_t *length)
  accept: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  // int fcntl(int fd, int command, ...): Apple's arm64 passes variadic arguments on the stack, so six
  // arguments fill the registers there; on x64 the third is the one that counts, and it is the same value.
  fcntl: { args: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  __error: { args: [], returns: "ptr" },
} as const satisfies Record<string, FFIFunction>;

const supported: readonly string[] = ["linux-x64", "linux-arm64", "darwin-x64", "darwin-arm64"];

/** Bytes that hold any socket address (RFC 3493 §3.10). */
export const sockaddrBytes = 128;

const host = `${process.platform}-${process.arch}`;

function load() {
  if (!supported.includes(host)) {
    throw new Error(`this platform is not supported: ${host} (supported: ${supported.join(", ")})`);
  }
  const failures: string[] = [];
  for (const library of platform.libraries) {
    try {
      if (process.platform === "darwin") {
        const { symbols: c } = dlopen(library, { ...symbols, ...darwinSymbols });
        return { ...c, ...darwin(c), errnoAddress: c.__error };
      }
      const { symbols: c } = dlopen(library, { ...symbols, ...linuxSymbols });
      return { ...c, ...linux(c), errnoAddress: c.__errno_location };
    } catch (error) {
      failures.push(String(error));
    }
  }
  throw new Error(`the C library could not be loaded: ${failures.join("; ")}`);
}

// Linux takes both flags at creation, so that no descriptor leaks into a child between two calls.
const SOCK_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000;
/** linux/socket.h, linux/net.h */
const [AF_UNIX, SOCK_DGRAM] = [1, 2];

function linux(c: ReturnType<typeof dlopen<typeof symbols & typeof linuxSymbols>>["symbols"]) {
  return {
    newSocket: (family: number) => c.socket(family, platform.SOCK_STREAM | SOCK_NONBLOCK_CLOEXEC, 0),
    newDatagram: () => c.socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK_CLOEXEC, 0),
    acceptSocket: (fd: number) => c.accept4(fd, null, null, SOCK_NONBLOCK_CLOEXEC),
    duplicate: (fd: number) => c.fcntl(fd, platform.F_DUPFD_CLOEXEC, 0),
  };
}

function darwin(c: ReturnType<typeof dlopen<typeof symbols & typeof darwinSymbols>>["symbols"]) {
  const fcntl = (fd: number, command: number, value: number) =>
    c.fcntl(fd, command, value, value, value, value, value, value, value);
  const prepared = (fd: number): number => {
    if (fd < 0) return fd;
    fcntl(fd, platform.F_SETFL, platform.O_NONBLOCK);
    fcntl(fd, platform.F_SETFD, platform.FD_CLOEXEC);
    return fd;
  };
  return {
    newSocket: (family: number) => prepared(c.socket(family, platform.SOCK_STREAM, 0)),
    newDatagram: () => prepared(c.socket(AF_UNIX, SOCK_DGRAM, 0)),
    acceptSocket: (fd: number) => prepared(c.accept(fd, null, null)),
    duplicate: (fd: number) => fcntl(fd, platform.F_DUPFD_CLOEXEC, 0),
  };
}

let loaded: ReturnType<typeof load> | undefined;
const c = () => (loaded ??= load());

let canLoad: boolean | undefined;

/** A view of this process's own memory. The memory must stay as long as the view is used. */
export function memoryAt(address: number, bytes: number): Uint8Array {
  return new Uint8Array(toArrayBuffer(address as Pointer, 0, bytes));
}

/** Whether the functions of this file work here. */
export function isSupported(): boolean {
  if (canLoad !== undefined) return canLoad;
  try {
    requirePlatform();
    return (canLoad = true);
  } catch {
    return (canLoad = false);
  }
}

/** Loads the C library now. Throws one clear error where that is impossible. */
export function requirePlatform(): void {
  c();
}

/** errno must be read in the very next call: anything between may overwrite it. */
function unwrap(result: number, syscall: string): number {
  if (result >= 0) return result;
  const address = c().errnoAddress();
  const number = address === null ? 0 : read.i32(address, 0);
  throw new SystemError(errnoName(number), syscall);
}

export function errnoName(number: number): string {
  return platform.errno[number] ?? `errno ${number}`;
}

/** A non-blocking, close-on-exec TCP socket. */
export function socket(family: 4 | 6): number {
  return unwrap(c().newSocket(family === 4 ? platform.AF_INET : platform.AF_INET6), "socket");
}

/** The same, for connections by paths of this host. */
export function unixSocket(): number {
  return unwrap(c().newSocket(AF_UNIX), "socket");
}

/** A socket for datagrams to a path of this host. On Linux a path that begins with a zero byte is no file (unix(7)). */
export function datagramsTo(path: Uint8Array): number {
  const fd = unwrap(c().newDatagram(), "socket");
  try {
    unwrap(c().connect(fd, ptr(Uint8Array.of(AF_UNIX, 0, ...path)), 2 + path.length), "connect");
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

export function setOption(fd: number, level: number, name: number, ...values: number[]): void {
  const value = new Int32Array(values);
  unwrap(c().setsockopt(fd, level, name, ptr(value), value.byteLength), "setsockopt");
}

/** SO_ERROR: the errno's name, or undefined. Reading it clears it. */
export function pendingError(fd: number): string | undefined {
  const value = new Int32Array(1);
  const length = new Uint32Array([4]);
  unwrap(c().getsockopt(fd, platform.SOL_SOCKET, platform.SO_ERROR, ptr(value), ptr(length)), "getsockopt");
  return value[0] === 0 ? undefined : errnoName(value[0]!);
}

/** The first bytes of an option's value; undefined where the kernel does not give it. */
export function getOption(fd: number, level: number, name: number, bytes: number): DataView | undefined {
  const value = new DataView(new ArrayBuffer(bytes));
  const length = new Uint32Array([bytes]);
  return c().getsockopt(fd, level, name, ptr(value.buffer), ptr(length)) < 0 ? undefined : value;
}

/** Whether the peer's kernel has acknowledged all that was written. */
export function isAcknowledged(fd: number): boolean {
  const { level, name, offset } = platform.unacknowledged;
  const value = getOption(fd, level, name, offset + 4);
  // A descriptor that is closed already has nothing left to wait for.
  return value === undefined || value.getInt32(offset, true) === 0;
}

/** How many segments with data have come by a connection; undefined where the kernel does not say. */
export function segmentsReceived(fd: number): number | undefined {
  if (!isSupported() || !platform.segmentsReceived) return undefined;
  const { level, name, offset } = platform.segmentsReceived;
  return getOption(fd, level, name, offset + 4)?.getUint32(offset, true);
}

/** The round trip of a connection in ms, as its handshake has shown it; undefined where the kernel does not say. */
export function handshakeRoundTripMs(fd: number): number | undefined {
  if (!isSupported() || !platform.roundTrip) return undefined;
  const { level, name, offset } = platform.roundTrip;
  const microseconds = getOption(fd, level, name, offset + 4)?.getUint32(offset, true);
  // 0: a segment of the handshake was lost and repeated.
  return microseconds ? microseconds / 1000 : undefined;
}

/** The largest window that can be announced without scaling (RFC 7323 §2.2). */
const largestUnscaled = 65_535;
/** TCP_INFO (linux/tcp.h): the options that both SYNs had, and the bit of window scaling in them. */
const agreed = { name: 11, offset: 5, scaling: 4 };

/**
 * Whether the peer's SYN came without window scaling, on systems where that matters. After a simultaneous open Linux then
 * still scales the windows that it announces, which RFC 7323 §2.2 forbids. The peer takes a window of 64 KiB for 512 bytes
 * or less.
 */
export function isUnscaled(fd: number): boolean {
  const { IPPROTO_TCP, TCP_WINDOW_CLAMP } = platform;
  if (TCP_WINDOW_CLAMP === undefined) return false;
  const info = getOption(fd, IPPROTO_TCP, agreed.name, agreed.offset + 1);
  return info !== undefined && (info.getUint8(agreed.offset) & agreed.scaling) === 0;
}

/** Call it before connect: the windows that are announced need no scaling. */
export function clampWindow(fd: number): void {
  const { IPPROTO_TCP, TCP_WINDOW_CLAMP } = platform;
  if (TCP_WINDOW_CLAMP !== undefined) setOption(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, largestUnscaled);
}

/**
 * Every path of IPv6 carries packets of 1280 bytes (RFC 8200 §5). This is that, without the headers of IPv6 and TCP. Some
 * paths lose longer packets silently, so that path MTU discovery never notices (RFC 2923 §2.1).
 */
const safeSegmentBytes = 1_220;
/** Every host takes packets of 576 bytes (RFC 1122 §3.3.3). Tunnels in tunnels carry them where 1280 are too many. */
const minSegmentBytes = 536;

/** How much is known of the path: it carries all; long packets are lost; those of {@link safeSegmentBytes}, too. */
export type SegmentClamp = 0 | 1 | 2;

/** Call it before connect: neither end sends longer segments than that. */
export function clampSegments(fd: number, clamp: SegmentClamp): void {
  const bytes = [undefined, safeSegmentBytes, minSegmentBytes][clamp];
  if (bytes !== undefined) setOption(fd, platform.IPPROTO_TCP, platform.TCP_MAXSEG, bytes);
}

/** A carrier ends when nothing was acknowledged for so long. With the kernel's own rounding that is 5 s at most. */
const userTimeoutMs = 4_000;
/** What Linux gives a socket by its own tuning. It gives more if asked, and if `net.core.wmem_max` allows it. */
const carrierBufferBytes = 4 * 1024 * 1024;

let mayAskForBuffer: boolean | undefined;

/** Whether SO_SNDBUF can be as large as the kernel's own tuning makes it. If not, it is better left alone. */
function hasBuffer(): boolean {
  try {
    return Number(readFileSync("/proc/sys/net/core/wmem_max", "utf8")) >= carrierBufferBytes;
  } catch {
    return false;
  }
}

/** The connection ends once what was sent is not acknowledged for so long; where the kernel can do that. */
export function giveUpAfter(fd: number, ms: number): void {
  const { IPPROTO_TCP, TCP_USER_TIMEOUT } = platform;
  if (TCP_USER_TIMEOUT !== undefined) setOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, ms);
}

/** Sets the options of a connection that carries much: a dead peer is noticed, and a long fat path is filled. */
export function tuneForCarrier(fd: number): void {
  const { SOL_SOCKET, SO_SNDBUF } = platform;
  giveUpAfter(fd, userTimeoutMs);
  // The kernel doubles what is asked for, so a path of 100 ms carries twice as much as by its own tuning.
  if ((mayAskForBuffer ??= hasBuffer())) setOption(fd, SOL_SOCKET, SO_SNDBUF, carrierBufferBytes);
}

/** One instruction of a classic BPF program: struct sock_filter (linux/filter.h), 8 bytes. */
export type Instruction = readonly [code: number, ifTrue: number, ifFalse: number, value: number];

/**
 * Filters what comes to a socket or a listener by `program`; an empty program takes the filter away. Returns false where
 * the kernel has no filters.
 */
export function attachFilter(fd: number, program: readonly Instruction[]): boolean {
  const { SOL_SOCKET, SO_ATTACH_FILTER, SO_DETACH_FILTER } = platform;
  if (SO_ATTACH_FILTER === undefined || SO_DETACH_FILTER === undefined) return false;
  if (program.length === 0) {
    setOption(fd, SOL_SOCKET, SO_DETACH_FILTER, 0);
    return true;
  }
  const code = new DataView(new ArrayBuffer(8 * program.length));
  program.forEach(([operation, ifTrue, ifFalse, value], index) => {
    code.setUint16(8 * index, operation, true);
    code.setUint8(8 * index + 2, ifTrue);
    code.setUint8(8 * index + 3, ifFalse);
    code.setUint32(8 * index + 4, value, true);
  });
  // struct sock_fprog: how many instructions, and their address.
  const head = new DataView(new ArrayBuffer(16));
  head.setUint16(0, program.length, true);
  head.setBigUint64(8, BigInt(ptr(code.buffer)), true);
  unwrap(c().setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, ptr(head.buffer), 16), "setsockopt");
  return true;
}

/** Lets so many bytes wait unsent in the kernel. */
export function limitUnsent(fd: number, bytes: number): void {
  setOption(fd, platform.IPPROTO_TCP, platform.TCP_NOTSENT_LOWAT, bytes);
}

/**
 * Lets so many bytes wait to be read, and as much again of what the kernel needs to keep them. By its own tuning megabytes
 * would wait, and handing over thousands of tiny segments would then take 2 ms. Call it after connecting: else windows are
 * announced without scaling for good (tcp_select_initial_window). Does nothing to a connection that is over.
 */
export function limitUnread(fd: number, bytes: number): void {
  try {
    setOption(fd, platform.SOL_SOCKET, platform.SO_RCVBUF, bytes);
  } catch (error) {
    if (!(error instanceof SystemError && error.code === "EINVAL")) throw error; // macOS: it has been reset
  }
}

/** Undoes {@link limitUnread}: the kernel tunes again. Where it can't, `bytes` may wait. */
export function unlimitUnread(fd: number, bytes: number): void {
  const { SOL_SOCKET, SO_BUF_LOCK } = platform;
  limitUnread(fd, bytes);
  try {
    if (SO_BUF_LOCK !== undefined) setOption(fd, SOL_SOCKET, SO_BUF_LOCK, 0);
  } catch (error) {
    if (!(error instanceof SystemError && error.code === "ENOPROTOOPT")) throw error; // before Linux 5.14
  }
}

export function bind(fd: number, sockaddr: Uint8Array): void {
  unwrap(c().bind(fd, ptr(sockaddr), sockaddr.length), "bind");
}

/** Starts connecting. Returns true if it is connected already, false if it is in progress. */
export function connect(fd: number, sockaddr: Uint8Array): boolean {
  try {
    unwrap(c().connect(fd, ptr(sockaddr), sockaddr.length), "connect");
    return true;
  } catch (error) {
    if (error instanceof SystemError && error.code === "EINPROGRESS") return false;
    throw error;
  }
}

export function listen(fd: number, backlog: number): void {
  unwrap(c().listen(fd, backlog), "listen");
}

/** The next accepted descriptor; undefined if none waits. */
export function accept(fd: number): number | undefined {
  try {
    return unwrap(c().acceptSocket(fd), "accept");
  } catch (error) {
    // ECONNABORTED: the peer reset it while it waited in the queue. The next one may be good.
    if (error instanceof SystemError && error.code === "ECONNABORTED") return accept(fd);
    if (error instanceof SystemError && error.code === "EAGAIN") return undefined;
    throw error;
  }
}

/** Another descriptor of the same socket. It is closed on exec. */
export function duplicate(fd: number): number {
  return unwrap(c().duplicate(fd), "fcntl");
}

export function localAddress(fd: number): Uint8Array {
  const address = new Uint8Array(sockaddrBytes);
  const length = new Uint32Array([sockaddrBytes]);
  unwrap(c().getsockname(fd, ptr(address), ptr(length)), "getsockname");
  return address.subarray(0, length[0]);
}

export function remoteAddress(fd: number): Uint8Array {
  const address = new Uint8Array(sockaddrBytes);
  const length = new Uint32Array([sockaddrBytes]);
  unwrap(c().getpeername(fd, ptr(address), ptr(length)), "getpeername");
  return address.subarray(0, length[0]);
}

/** poll(2) over `count` entries of struct pollfd (8 bytes: fd, events, revents). Nothing else runs while it waits. */
export function poll(entries: Int32Array, count: number, waitMs = 0): number {
  if (count === 0) return 0;
  try {
    return unwrap(c().poll(ptr(entries), count, waitMs), "poll");
  } catch (error) {
    if (error instanceof SystemError && error.code === "EINTR") return 0;
    throw error;
  }
}

export function close(fd: number): void {
  // After EINTR, POSIX does not say whether it is closed. On Linux and macOS it is, so it is never closed twice.
  c().close(fd);
}
