import { describe, expect, setDefaultTimeout, test } from "bun:test";
import * as libc from "../../native/host/libc.ts";
import { connectShared, pollSockets, Socket } from "../../native/host/socket.ts";
import { formatEndpoint, splitEndpoint, type Endpoint } from "../../protocol.ts";
import {
  listening,
  loopback,
  noSocketLeft,
  openSockets,
  refusing,
  unanswering,
  until,
} from "../native-fixture.ts";
import { linuxTest } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function errnoOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof libc.SystemError) return error.code;
    throw error;
  }
  return "success";
}

async function rejection(promise: Promise<unknown>): Promise<{ code: string; syscall: string }> {
  try {
    await promise;
  } catch (error) {
    if (!(error instanceof libc.SystemError)) throw error;
    return { code: error.code, syscall: error.syscall };
  }
  throw new Error("it did not fail");
}

const isReady = (socket: Socket, what: "read" | "write") =>
  pollSockets([{ socket, for: what, value: undefined }]).length > 0;

/** Starts a connect and waits for its end: undefined or the errno's name. */
async function connectOutcome(socket: Socket, remote: Endpoint): Promise<string | undefined> {
  const refusal = errnoOf(() => socket.connect(remote));
  if (refusal !== "success") return refusal;
  await until("the connect ends", () => isReady(socket, "write"));
  return socket.error();
}

async function acceptOne(listener: Socket): Promise<Socket> {
  await until("a connection waits", () => isReady(listener, "read"));
  return listener.accept()!;
}

/** A socket on `port`; 0 is a free one. */
function shared(port: number, family: 4 | 6 = 4): Socket {
  const socket = Socket.open(family).shareport();
  socket.bind(port);
  return socket;
}

// --- one port, many sockets --------------------------------------------------------------------------------

describe.each([4, 6] as const)("over IPv%d", (family) => {
  test("a listener and several connects share one port", async () => {
    await using _ = noSocketLeft();
    using one = listening(8, family);
    using two = listening(8, family);
    const first = await connectShared(one.endpoint, 5_000);
    using control = first.socket;
    using listener = shared(first.port, family);
    listener.listen(8);
    using dialled = shared(first.port, family);
    expect(await connectOutcome(dialled, two.endpoint)).toBeUndefined();
    using stranger = Socket.open(family);
    expect(await connectOutcome(stranger, loopback(first.port, family))).toBeUndefined();
    using atOne = await acceptOne(one.socket);
    using atTwo = await acceptOne(two.socket);
    using atListener = await acceptOne(listener);
    const own = loopback(first.port, family);
    expect([control.local, dialled.local, atListener.local]).toEqual([own, own, own]);
    expect([atOne.remote, atTwo.remote]).toEqual([own, own]);
    expect(atListener.remote).toBe(stranger.local);
  });

  test("a refused connect says so", async () => {
    await using _ = noSocketLeft();
    using socket = Socket.open(family);
    expect(await connectOutcome(socket, refusing(family))).toBe("ECONNREFUSED");
  });
});

test("an IPv6 listener leaves the IPv4 port to another socket", async () => {
  await using _ = noSocketLeft();
  using six = Socket.open(6).shareport();
  const endpoint = loopback(six.bind(0));
  six.listen(1);
  using early = Socket.open(4);
  expect(await connectOutcome(early, endpoint)).toBe("ECONNREFUSED");
  using four = shared(splitEndpoint(endpoint).port);
  four.listen(1);
  using client = Socket.open(4);
  expect(await connectOutcome(client, endpoint)).toBeUndefined();
  using accepted = await acceptOne(four);
  expect(accepted.remote).toBe(client.local);
  expect(isReady(six, "read")).toBe(false);
});

test("without shareport the port is taken, whichever side does not say it", () => {
  using sharing = Socket.open(4).shareport();
  const port = sharing.bind(0);
  using selfish = Socket.open(4);
  expect(errnoOf(() => selfish.bind(port))).toBe("EADDRINUSE");
  using alone = Socket.open(4);
  const taken = alone.bind(0);
  using late = Socket.open(4).shareport();
  expect(errnoOf(() => late.bind(taken))).toBe("EADDRINUSE");
  using agreeing = Socket.open(4).shareport();
  expect(errnoOf(() => agreeing.bind(port))).toBe("success");
});

test("every control connection gets a port of its own", async () => {
  await using _ = noSocketLeft();
  using introducer = listening(128);
  const all = await Promise.all(Array.from({ length: 100 }, () => connectShared(introducer.endpoint, 5_000)));
  const reported = all.map(({ port }) => port);
  const actual = all.map(({ socket }) => splitEndpoint(socket.local).port);
  for (const { socket } of all) socket.close();
  expect(reported).toEqual(actual);
  expect(new Set(reported).size).toBe(100);
});

// --- what the punch leans on -------------------------------------------------------------------------------

test("a connect to one's own endpoint succeeds, so it has to be recognised", async () => {
  await using _ = noSocketLeft();
  using socket = Socket.open(4).shareport();
  const own = loopback(socket.bind(0));
  expect(await connectOutcome(socket, own)).toBeUndefined();
  expect([socket.local, socket.remote]).toEqual([own, own]);
});

// Loopback delivers a SYN before connect() returns, so two of them only cross when one was dropped first.
linuxTest("two connects meet without any listener", async () => {
  await using _ = noSocketLeft();
  const hole = unanswering();
  using bob = shared(splitEndpoint(hole.endpoint).port);
  using alice = Socket.open(4).shareport();
  const aliceEndpoint = loopback(alice.bind(0));
  expect(alice.connect(hole.endpoint)).toBe(false);
  hole[Symbol.dispose]();
  expect(isReady(alice, "write")).toBe(false);
  expect(await connectOutcome(bob, aliceEndpoint)).toBeUndefined();
  await until("alice is connected", () => isReady(alice, "write"));
  expect(alice.error()).toBeUndefined();
  expect([alice.local, alice.remote]).toEqual([bob.remote, bob.local]);
});

test("a four-tuple closed abortively can be used again at once, many times", async () => {
  await using _ = noSocketLeft();
  using listener = listening();
  using hold = Socket.open(4).shareport();
  const port = hold.bind(0);
  for (let round = 0; round < 20; round++) {
    using socket = shared(port).closeAbortively();
    expect(await connectOutcome(socket, listener.endpoint)).toBeUndefined();
    using accepted = (await acceptOne(listener.socket)).closeAbortively();
    expect(accepted.remote).toBe(loopback(port));
  }
});

test("an abortive close resets the other end", async () => {
  await using _ = noSocketLeft();
  using listener = listening();
  using client = Socket.open(4).closeAbortively();
  await connectOutcome(client, listener.endpoint);
  using accepted = await acceptOne(listener.socket);
  expect(accepted.error()).toBeUndefined();
  client.close();
  await until("the reset arrives", () => isReady(accepted, "read"));
  expect(accepted.error()).toBe("ECONNRESET");
  expect(errnoOf(() => accepted.remote)).toBe("ENOTCONN");
});

test("poll names the ready sockets and no others, also of many", async () => {
  await using _ = noSocketLeft();
  using quiet = listening();
  using asked = listening();
  using client = Socket.open(4);
  await connectOutcome(client, asked.endpoint);
  const crowd = Array.from({ length: 200 }, () => listening());
  const wanted = [quiet, ...crowd, asked].map(({ socket }, value) => ({
    socket,
    for: "read" as const,
    value,
  }));
  try {
    await until("the connection waits", () => isReady(asked.socket, "read"));
    expect(pollSockets(wanted).map(({ value }) => value)).toEqual([201]);
  } finally {
    for (const listener of crowd) listener[Symbol.dispose]();
  }
});

test("accept finds nobody while nobody waits", () => {
  using listener = listening();
  expect(listener.socket.accept()).toBeUndefined();
});

// --- ownership ---------------------------------------------------------------------------------------------

test("closing twice, or disposing after closing, closes nothing else", () => {
  const socket = Socket.open(4);
  const { fd } = socket;
  socket.close();
  using next = Socket.open(4);
  expect(next.fd).toBe(fd); // the kernel gives the lowest number again: a second close would hit it
  socket.close();
  socket[Symbol.dispose]();
  expect(errnoOf(() => next.error())).toBe("success");
  expect(socket.isOpen).toBe(false);
  expect(() => socket.fd).toThrow("this socket is closed");
});

test("a released descriptor stays open and is no longer ours", () => {
  const socket = Socket.open(4);
  const { fd } = socket;
  expect(socket.release()).toBe(fd);
  socket.close();
  using next = Socket.open(4);
  expect(next.fd).not.toBe(fd);
  expect(socket.isOpen).toBe(false);
  expect(() => socket.release()).toThrow("this socket is closed");
  expect(() => socket.listen(1)).toThrow("this socket is closed");
  libc.close(fd);
});

// --- connectShared -----------------------------------------------------------------------------------------

test("connectShared refused: the errno, and no socket left", async () => {
  await using _ = noSocketLeft();
  expect(await rejection(connectShared(refusing(), 5_000))).toEqual({
    code: "ECONNREFUSED",
    syscall: "connect",
  });
});

linuxTest("connectShared unanswered: ETIMEDOUT, and no socket left", async () => {
  using hole = unanswering();
  await using _ = noSocketLeft();
  expect(await rejection(connectShared(hole.endpoint, 50))).toEqual({
    code: "ETIMEDOUT",
    syscall: "connect",
  });
});

linuxTest("connectShared to an address the kernel refuses at once leaves no socket", async () => {
  await using _ = noSocketLeft();
  const broadcast = "255.255.255.255:9" as Endpoint;
  expect((await rejection(connectShared(broadcast, 5_000))).syscall).toBe("connect");
});

linuxTest("the count of sockets can see a leak", () => {
  const before = openSockets().length;
  using _socket = Socket.open(4);
  expect(openSockets().length).toBe(before + 1);
});

linuxTest(
  "a listener that drops from one endpoint hears all others",
  async () => {
    for (const address of ["127.0.0.1", "::1"]) {
      const family = address === "::1" ? 6 : 4;
      using listener = Socket.open(family);
      const port = listener.bind(0);
      listener.listen(8);
      const [dropped, other] = [Socket.open(family), Socket.open(family)];
      using _ = dropped;
      using __ = other;
      const barred = formatEndpoint(address, dropped.bind(0));
      const near = formatEndpoint(address, 1);
      const ipv4 = formatEndpoint("203.0.113.1", 1);
      listener.dropFrom(family === 4 ? [ipv4, near, barred] : [near, barred]);
      other.bind(0);
      for (const one of [dropped, other]) one.connect(formatEndpoint(address, port));
      await until("the other is let in", () => pollSockets([{ socket: other, for: "write" }]).length === 1);
      expect(other.error()).toBeUndefined();
      expect(pollSockets([{ socket: dropped, for: "write" }])).toEqual([]); // neither let in nor refused
      listener.dropFrom([]);
      listener.dropFrom([]); // another punch ends, and there is nothing to take away any more
      await until(
        "it is let in by its next SYN",
        () => pollSockets([{ socket: dropped, for: "write" }]).length === 1,
      );
      expect(dropped.error()).toBeUndefined();
    }
  },
  10_000,
);
