/**
 * TUN devices of Linux, and what it takes to serve several of them and stdin in one loop that never sleeps too
 * long: the fixtures that are links and boxes of the lab run on it. It opens, its caller reads, writes and closes.
 */
import { CString, dlopen, read } from "bun:ffi";

/** More than the MTU of a TUN device (1500). */
export const slotBytes = 2048;
const POLLIN = 1;

const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const TUNSETIFF = 0x400454ca;
const IFF_TUN_NO_PI = 0x1001;
const PR_SET_TIMERSLACK = 29;

export const libc = dlopen("libc.so.6", {
  /** int open(const char *pathname, int flags) */
  open: { args: ["ptr", "i32"], returns: "i32" },
  /** int ioctl(int fd, unsigned long request, void *argument) */
  ioctl: { args: ["i32", "u64", "ptr"], returns: "i32" },
  /** ssize_t read(int fd, void *buffer, size_t count) */
  read: { args: ["i32", "ptr", "u64"], returns: "i32" },
  /** ssize_t write(int fd, const void *buffer, size_t count) */
  write: { args: ["i32", "ptr", "u64"], returns: "i32" },
  /** int ppoll(struct pollfd *fds, nfds_t nfds, const struct timespec *timeout, const sigset_t *sigmask) */
  ppoll: { args: ["ptr", "u64", "ptr", "ptr"], returns: "i32" },
  /** int prctl(int option, unsigned long value) */
  prctl: { args: ["i32", "u64"], returns: "i32" },
  /** char *strerror(int errno) */
  strerror: { args: ["i32"], returns: "ptr" },
  /** int *__errno_location(void) */
  __errno_location: { args: [], returns: "ptr" },
} as const).symbols;

/** The descriptor behind the TUN device of that name, which is made if there is none; one packet a read. */
export function openTun(device: string): number {
  const fd = libc.open(Buffer.from("/dev/net/tun\0"), O_RDWR | O_NONBLOCK);
  if (fd < 0) throw new Error(`open /dev/net/tun: ${errorText()}`);
  const request = Buffer.alloc(40); // struct ifreq
  request.write(device);
  request.writeUInt16LE(IFF_TUN_NO_PI, 16);
  if (libc.ioctl(fd, TUNSETIFF, request) < 0) throw new Error(`TUNSETIFF ${device}: ${errorText()}`);
  return fd;
}

/** The default lets every wake-up be 50 µs late. */
export function wakeInTime(): void {
  libc.prctl(PR_SET_TIMERSLACK, 1);
}

/** Waits until one of these descriptors can be read, or that long; says which can, in their order. */
export class Poll {
  /** struct pollfd[] */
  readonly #fds: Int32Array;
  readonly #timeout = new BigInt64Array(2);

  constructor(fds: readonly number[]) {
    this.#fds = new Int32Array(fds.flatMap((fd) => [fd, POLLIN]));
  }

  wait(waitNs: number): void {
    this.#timeout[0] = BigInt(Math.floor(waitNs / 1e9));
    this.#timeout[1] = BigInt(Math.floor(waitNs % 1e9));
    libc.ppoll(this.#fds, this.#fds.length / 2, this.#timeout, null);
  }

  /** Whether that one has something to say, be it its end. */
  isReady(index: number): boolean {
    return this.#fds[2 * index + 1]! >> 16 !== 0;
  }
}

function errorText(): string {
  const location = libc.__errno_location();
  if (location === null) return "unknown error";
  const text = libc.strerror(read.i32(location));
  return text === null ? "unknown error" : new CString(text).toString();
}
