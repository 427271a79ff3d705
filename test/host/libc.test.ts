import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import * as libc from "../../native/host/libc.ts";
import { platform, platforms } from "../../native/host/platform.ts";
import { encodeSockaddr } from "../../native/host/sockaddr.ts";
import { unreadAt, until } from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const { SystemError } = libc;

function failure(run: () => unknown): { code: string; syscall: string; message: string } {
  try {
    run();
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    const { code, syscall, message } = error;
    return { code, syscall, message };
  }
  throw new Error("the call succeeded");
}

// --- errno -----------------------------------------------------------------------------------------------

// From each kernel's errno.h: the ones the program decides by.
test.each([
  ["EBADF", 9, 9],
  ["EAGAIN", 11, 35],
  ["EINVAL", 22, 22],
  ["EMFILE", 24, 24],
  ["EAFNOSUPPORT", 97, 47],
  ["EADDRINUSE", 98, 48],
  ["EADDRNOTAVAIL", 99, 49],
  ["ENETUNREACH", 101, 51],
  ["ECONNABORTED", 103, 53],
  ["ECONNRESET", 104, 54],
  ["EISCONN", 106, 56],
  ["ENOTCONN", 107, 57],
  ["ETIMEDOUT", 110, 60],
  ["ECONNREFUSED", 111, 61],
  ["EHOSTUNREACH", 113, 65],
  ["EALREADY", 114, 37],
  ["EINPROGRESS", 115, 36],
])("%s is %d on Linux and %d on macOS", (name, linux, darwin) => {
  const numberOf = (errno: Record<number, string>) =>
    Object.entries(errno)
      .filter(([, its]) => its === name)
      .map(([number]) => Number(number));
  expect(numberOf(platforms.linux.errno)).toEqual([linux]);
  expect(numberOf(platforms.darwin.errno)).toEqual([darwin]);
});

test("the errno names are this host's", () => {
  const known: Record<string, number> = constants.errno;
  for (const [number, name] of Object.entries<string>(platform.errno)) {
    // os.constants is libuv's choice of names; the few it leaves out are in the table above or never met.
    if (name in known) expect([name, Number(number)]).toEqual([name, known[name]!]);
    expect(libc.errnoName(Number(number))).toBe(name);
  }
});

test("an errno without a name is shown as its number", () => {
  expect(libc.errnoName(4095)).toBe("errno 4095");
});

// --- failures --------------------------------------------------------------------------------------------

const loopback = encodeSockaddr({ family: 4, address: "127.0.0.1", port: 9 });
const calls: Record<string, (fd: number) => unknown> = {
  setsockopt: (fd) => libc.setOption(fd, platform.SOL_SOCKET, platform.SO_REUSEADDR, 1),
  getsockopt: (fd) => libc.pendingError(fd),
  bind: (fd) => libc.bind(fd, loopback),
  connect: (fd) => libc.connect(fd, loopback),
  listen: (fd) => libc.listen(fd, 1),
  accept: (fd) => libc.accept(fd),
  getsockname: (fd) => libc.localAddress(fd),
  getpeername: (fd) => libc.remoteAddress(fd),
  fcntl: (fd) => libc.duplicate(fd),
};

test.each(Object.entries(calls))("%s of a descriptor that is none says so", (syscall, call) => {
  expect(failure(() => call(-1))).toEqual({ code: "EBADF", syscall, message: `${syscall}: EBADF` });
});

describe("a fresh socket", () => {
  test.each([
    ["accept", "EINVAL"],
    ["getpeername", "ENOTCONN"],
  ])("refuses %s with %s", (syscall, code) => {
    const fd = libc.socket(4);
    try {
      expect(failure(() => calls[syscall]!(fd))).toMatchObject({ code, syscall });
    } finally {
      libc.close(fd);
    }
  });

  test("has no pending error, and is gone once closed", () => {
    const fd = libc.socket(4);
    expect(libc.pendingError(fd)).toBeUndefined();
    libc.close(fd);
    expect(failure(() => libc.pendingError(fd)).code).toBe("EBADF");
  });

  linuxTest.each([4, 6] as const)("of IPv%d neither blocks nor is inherited by children", (family) => {
    const fd = libc.socket(family);
    const flags = /flags:\s+([0-7]+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"))?.[1];
    libc.close(fd);
    const [nonBlocking, closeOnExec] = [0o4000, 0o2000000];
    expect(parseInt(flags!, 8) & (nonBlocking | closeOnExec)).toBe(nonBlocking | closeOnExec);
  });
});

test("a listener where nobody waits accepts nothing, and what it accepts does not block", () => {
  const listener = libc.socket(4);
  const client = libc.socket(4);
  try {
    libc.bind(listener, encodeSockaddr({ family: 4, address: "127.0.0.1", port: 0 }));
    libc.listen(listener, 1);
    expect(libc.accept(listener)).toBeUndefined();
    libc.connect(client, libc.localAddress(listener));
    const accepted = libc.accept(listener);
    expect(accepted).toBeNumber();
    expect(libc.remoteAddress(accepted!)).toEqual(libc.localAddress(client));
    if (process.platform === "linux") {
      const flags = /flags:\s+([0-7]+)/.exec(readFileSync(`/proc/self/fdinfo/${accepted}`, "utf8"))?.[1];
      expect(parseInt(flags!, 8) & 0o2004000).toBe(0o2004000);
    }
    libc.close(accepted!);
  } finally {
    libc.close(listener);
    libc.close(client);
  }
});

const unread = (port: number) => unreadAt(port)[0] ?? 0;

linuxTest(
  "little waits to be read of a connection that says little, and much again of one that shall",
  async () => {
    const opened = Promise.withResolvers<Bun.Socket & { fd: number }>();
    const open = (socket: Bun.Socket) => {
      socket.pause();
      libc.limitUnread((socket as Bun.Socket & { fd: number }).fd, 64 * 1024);
      opened.resolve(socket as Bun.Socket & { fd: number });
    };
    const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { open, data() {} } });
    const { port } = listener;
    const chunk = new Uint8Array(256 * 1024);
    const fill = (socket: Bun.Socket) => {
      while (socket.write(chunk) === chunk.length);
    };
    const client = await Bun.connect({ hostname: "127.0.0.1", port, socket: { data() {}, drain: fill } });
    const accepted = await opened.promise;
    fill(client);
    await until("some waits", () => unread(port) > 16 * 1024);
    expect(unread(port)).toBeLessThan(150 * 1024);
    libc.unlimitUnread(accepted.fd, 1024 * 1024);
    await until("more waits", () => unread(port) > 150 * 1024);
    client.terminate();
    accepted.terminate();
    listener.stop();
  },
);

test("polling nothing finds nothing", () => {
  expect(libc.poll(new Int32Array(0), 0)).toBe(0);
});

// --- platforms -------------------------------------------------------------------------------------------

const libcPath = join(import.meta.dir, "../../native/host/libc.ts");

test.each(["win32-x64", "freebsd-x64", "linux-riscv64"])(
  "%s is refused in one clear sentence",
  async (host) => {
    const [platform, arch] = host.split("-");
    const program = `
    Object.defineProperty(process, "platform", { value: ${JSON.stringify(platform)} });
    Object.defineProperty(process, "arch", { value: ${JSON.stringify(arch)} });
    const libc = await import(${JSON.stringify(libcPath)});
    for (const use of [() => libc.requirePlatform(), () => libc.socket(4)]) {
      try { use(); console.log("it went on"); } catch (error) { console.log(error.message); }
    }`;
    const child = Bun.spawn([process.execPath, "-e", program], { stdout: "pipe", stderr: "pipe" });
    const sentence = `this platform is not supported: ${host} (supported: linux-x64, linux-arm64, darwin-x64, darwin-arm64)\n`;
    expect(await new Response(child.stdout).text()).toBe(sentence.repeat(2));
    expect(await child.exited).toBe(0);
  },
);

test("this platform is supported", () => {
  expect(() => libc.requirePlatform()).not.toThrow();
});
