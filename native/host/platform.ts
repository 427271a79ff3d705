/**
 * What differs between the kernels: the constants of the C library, and the names of its errors. Values only. For
 * native/host/.
 */

/** What differs between the kernels. Linux x64 and arm64 agree in all of it. */
export interface Platform {
  libraries: readonly string[];
  errnoSymbol: "__errno_location" | "__error";
  /** BSD sockaddrs begin with their own length. */
  sockaddrHasLength: boolean;
  AF_INET: number;
  AF_INET6: number;
  SOCK_STREAM: number;
  SOL_SOCKET: number;
  SO_REUSEADDR: number;
  SO_REUSEPORT: number;
  SO_ERROR: number;
  SO_LINGER: number;
  IPPROTO_TCP: number;
  TCP_NODELAY: number;
  TCP_MAXSEG: number;
  /** Bytes that may wait unsent before a descriptor counts as writable. */
  TCP_NOTSENT_LOWAT: number;
  /** After so many ms without acknowledgement a connection ends (RFC 5482); undefined where there is no such option. */
  TCP_USER_TIMEOUT: number | undefined;
  /** The largest window that is announced, in bytes; undefined where it is not needed (libc.ts, isUnscaled). */
  TCP_WINDOW_CLAMP: number | undefined;
  SO_SNDBUF: number;
  SO_RCVBUF: number;
  /** Whether we choose a buffer's size, or the kernel; undefined where it can't be given back to the kernel. */
  SO_BUF_LOCK: number | undefined;
  SO_ATTACH_FILTER: number | undefined;
  SO_DETACH_FILTER: number | undefined;
  /** An option, and the offset of an int in its value: 0 once the peer's kernel has all that we sent. */
  unacknowledged: { level: number; name: number; offset: number };
  segmentsReceived: { level: number; name: number; offset: number } | undefined;
  roundTrip: { level: number; name: number; offset: number } | undefined;
  IPPROTO_IPV6: number;
  IPV6_V6ONLY: number;
  F_DUPFD_CLOEXEC: number;
  F_SETFD: number;
  FD_CLOEXEC: number;
  F_SETFL: number;
  O_NONBLOCK: number;
  POLLIN: number;
  POLLOUT: number;
  errno: Readonly<Record<number, string>>;
}

// Values: Linux include/uapi/asm-generic/{socket,errno,fcntl,poll}.h; macOS sys/{socket,errno,fcntl,poll}.h.
export const platforms = {
  linux: {
    libraries: ["libc.so.6", "libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1"],
    errnoSymbol: "__errno_location",
    sockaddrHasLength: false,
    AF_INET: 2,
    AF_INET6: 10,
    SOCK_STREAM: 1,
    SOL_SOCKET: 1,
    SO_REUSEADDR: 2,
    SO_REUSEPORT: 15,
    SO_ERROR: 4,
    SO_LINGER: 13,
    IPPROTO_TCP: 6,
    TCP_NODELAY: 1,
    TCP_MAXSEG: 2,
    TCP_NOTSENT_LOWAT: 25,
    TCP_USER_TIMEOUT: 18,
    TCP_WINDOW_CLAMP: 10,
    SO_SNDBUF: 7,
    SO_RCVBUF: 8,
    SO_BUF_LOCK: 72,
    SO_ATTACH_FILTER: 26,
    SO_DETACH_FILTER: 27,
    unacknowledged: { level: 6, name: 11, offset: 24 }, // TCP_INFO, tcpi_unacked
    segmentsReceived: { level: 6, name: 11, offset: 152 }, // TCP_INFO, tcpi_data_segs_in (Linux 4.6)
    roundTrip: { level: 6, name: 11, offset: 68 }, // TCP_INFO, tcpi_rtt
    IPPROTO_IPV6: 41,
    IPV6_V6ONLY: 26,
    F_DUPFD_CLOEXEC: 1030,
    F_SETFD: 2,
    FD_CLOEXEC: 1,
    F_SETFL: 4,
    O_NONBLOCK: 0o4000,
    POLLIN: 1,
    POLLOUT: 4,
    errno: {
      1: "EPERM",
      2: "ENOENT",
      4: "EINTR",
      9: "EBADF",
      11: "EAGAIN",
      13: "EACCES",
      20: "ENOTDIR",
      22: "EINVAL",
      23: "ENFILE",
      24: "EMFILE",
      30: "EROFS",
      32: "EPIPE",
      91: "EPROTOTYPE",
      92: "ENOPROTOOPT",
      97: "EAFNOSUPPORT",
      98: "EADDRINUSE",
      99: "EADDRNOTAVAIL",
      100: "ENETDOWN",
      101: "ENETUNREACH",
      103: "ECONNABORTED",
      104: "ECONNRESET",
      105: "ENOBUFS",
      106: "EISCONN",
      107: "ENOTCONN",
      110: "ETIMEDOUT",
      111: "ECONNREFUSED",
      112: "EHOSTDOWN",
      113: "EHOSTUNREACH",
      114: "EALREADY",
      115: "EINPROGRESS",
    },
  },
  darwin: {
    libraries: ["libSystem.B.dylib"],
    errnoSymbol: "__error",
    sockaddrHasLength: true,
    AF_INET: 2,
    AF_INET6: 30,
    SOCK_STREAM: 1,
    SOL_SOCKET: 0xffff,
    SO_REUSEADDR: 0x0004,
    SO_REUSEPORT: 0x0200,
    SO_ERROR: 0x1007,
    SO_LINGER: 0x1080, // SO_LINGER_SEC: plain SO_LINGER counts clock ticks there
    IPPROTO_TCP: 6,
    TCP_NODELAY: 1,
    TCP_MAXSEG: 2,
    TCP_NOTSENT_LOWAT: 0x201,
    TCP_USER_TIMEOUT: undefined,
    TCP_WINDOW_CLAMP: undefined,
    SO_SNDBUF: 0x1001,
    SO_RCVBUF: 0x1002,
    SO_BUF_LOCK: undefined,
    SO_ATTACH_FILTER: undefined,
    SO_DETACH_FILTER: undefined,
    unacknowledged: { level: 0xffff, name: 0x1024, offset: 0 }, // SO_NWRITE
    segmentsReceived: undefined,
    roundTrip: undefined,
    IPPROTO_IPV6: 41,
    IPV6_V6ONLY: 27,
    F_DUPFD_CLOEXEC: 67,
    F_SETFD: 2,
    FD_CLOEXEC: 1,
    F_SETFL: 4,
    O_NONBLOCK: 0x0004,
    POLLIN: 1,
    POLLOUT: 4,
    errno: {
      1: "EPERM",
      2: "ENOENT",
      4: "EINTR",
      9: "EBADF",
      13: "EACCES",
      20: "ENOTDIR",
      22: "EINVAL",
      23: "ENFILE",
      24: "EMFILE",
      30: "EROFS",
      32: "EPIPE",
      41: "EPROTOTYPE",
      35: "EAGAIN",
      36: "EINPROGRESS",
      37: "EALREADY",
      47: "EAFNOSUPPORT",
      48: "EADDRINUSE",
      49: "EADDRNOTAVAIL",
      50: "ENETDOWN",
      51: "ENETUNREACH",
      53: "ECONNABORTED",
      54: "ECONNRESET",
      55: "ENOBUFS",
      56: "EISCONN",
      57: "ENOTCONN",
      60: "ETIMEDOUT",
      61: "ECONNREFUSED",
      64: "EHOSTDOWN",
      65: "EHOSTUNREACH",
    },
  },
} as const satisfies Record<string, Platform>;

export const platform: Platform = platforms[process.platform === "darwin" ? "darwin" : "linux"];
