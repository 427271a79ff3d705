/**
 * The lab's own eyes: plain blocking sockets, one command a process.
 *
 *   serve PORT...                        listens on IPv4 and IPv6, answers each connection with what it sees
 *   connect TIMEOUT_MS LOCAL_PORT TO...  connects to one endpoint after the other from that one local port
 *                                        (0: any), keeps all open, prints an `Attempt` a line
 */
import { dlopen, ptr, read } from "bun:ffi";

export interface Attempt {
  /** `connected`, or why not: an errno, ETIMEDOUT also when TIMEOUT_MS is over. */
  outcome: string;
  /** How long connect() took. */
  elapsedMs: number;
  /** Our address and port as the server saw them; `hello` where the peer is a probe too. */
  observed?: string;
}

/** What `connect` sends, so that two of them that meet hear each other. */
export const greeting = "hello\n";

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM = 1;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;
const errnoNames: Record<number, string> = {
  13: "EACCES",
  98: "EADDRINUSE",
  99: "EADDRNOTAVAIL",
  101: "ENETUNREACH",
  104: "ECONNRESET",
  110: "ETIMEDOUT",
  111: "ECONNREFUSED",
  113: "EHOSTUNREACH",
  115: "ETIMEDOUT", // EINPROGRESS: SO_SNDTIMEO is over
};

function openLibc() {
  return dlopen("libc.so.6", {
    /** int socket(int domain, int type, int protocol) */
    socket: { args: ["i32", "i32", "i32"], returns: "i32" },
    /** int setsockopt(int fd, int level, int name, const void *value, socklen_t length) */
    setsockopt: { args: ["i32", "i32", "i32", "ptr", "u32"], returns: "i32" },
    /** int bind(int fd, const struct sockaddr *address, socklen_t length) */
    bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
    /** int connect(int fd, const struct sockaddr *address, socklen_t length) */
    connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
    /** ssize_t send(int fd, const void *buffer, size_t length, int flags) */
    send: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
    /** ssize_t recv(int fd, void *buffer, size_t length, int flags) */
    recv: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
    /** int inet_pton(int family, const char *text, void *address) */
    inet_pton: { args: ["i32", "ptr", "ptr"], returns: "i32" },
    /** int *__errno_location(void) */
    __errno_location: { args: [], returns: "ptr" },
  } as const).symbols;
}

/** Tries `to` (`203.0.113.7,40000` or `2001:db8::7,40000`) from `localPort`. */
function attempt(timeoutMs: number, localPort: number, to: string): Attempt {
  const libc = openLibc();
  const [address = "", port = ""] = to.split(",");
  const family = address.includes(":") ? AF_INET6 : AF_INET;
  const sockaddr = (text: string, number: number) => {
    const bytes = Buffer.alloc(family === AF_INET6 ? 28 : 16);
    bytes.writeUInt16LE(family, 0);
    bytes.writeUInt16BE(number, 2);
    libc.inet_pton(family, Buffer.from(`${text}\0`), bytes.subarray(family === AF_INET6 ? 8 : 4));
    return bytes;
  };
  const timeval = new BigInt64Array([
    BigInt(Math.floor(timeoutMs / 1000)),
    BigInt((timeoutMs % 1000) * 1000),
  ]);
  const errnoAt = libc.__errno_location()!;
  const local = sockaddr(family === AF_INET6 ? "::" : "0.0.0.0", localPort);
  const remote = sockaddr(address, Number(port));

  const fd = libc.socket(family, SOCK_STREAM, 0);
  libc.setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, new Int32Array([1]), 4);
  libc.setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, timeval, 16);
  libc.setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, timeval, 16);
  const bound = localPort === 0 ? 0 : libc.bind(fd, ptr(local), local.length);
  const startNs = Bun.nanoseconds();
  const result = bound < 0 ? bound : libc.connect(fd, ptr(remote), remote.length);
  const errno = read.i32(errnoAt);
  const elapsedMs = (Bun.nanoseconds() - startNs) / 1e6;
  if (result < 0) return { outcome: errnoNames[errno] ?? `errno ${errno}`, elapsedMs };
  const line = Buffer.alloc(100, greeting);
  libc.send(fd, line, greeting.length, 0);
  const length = libc.recv(fd, line, line.length, 0);
  const observed = line.toString("utf8", 0, Math.max(0, length)).trim();
  return { outcome: "connected", elapsedMs, ...(observed === "" ? {} : { observed }) };
}

function serve(port: number): void {
  const open = (socket: Bun.Socket) => {
    socket.write(`${socket.remoteAddress.replace("::ffff:", "")},${socket.remotePort}\n`);
  };
  Bun.listen({ hostname: "::", port, socket: { open, data() {} } });
}

if (import.meta.main) {
  const [command, ...args] = process.argv.slice(2);
  if (command === "serve") {
    for (const port of args) serve(Number(port));
    console.log("listening");
  } else {
    const [timeoutMs, localPort, ...targets] = args;
    for (const to of targets) console.log(JSON.stringify(attempt(Number(timeoutMs), Number(localPort), to)));
  }
}
