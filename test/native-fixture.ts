/** What the tests of native/ share: waiting for conditions, and counting this process's descriptors. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { Socket } from "../native/host/socket.ts";
import { patienceMs } from "./patience-fixture.ts";
import { formatEndpoint, type Endpoint } from "../protocol.ts";

/** The sockets this process holds, by inode. Only Linux shows them: elsewhere always none. */
export function openSockets(): string[] {
  if (process.platform !== "linux") return [];
  return readdirSync("/proc/self/fd")
    .map((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        return ""; // the descriptor that readdir itself used
      }
    })
    .filter((target) => target.startsWith("socket:"))
    .sort();
}

/** Of each connection to that port of 127.0.0.1, accepted or not, how many bytes wait to be read: /proc/net/tcp, state 01. */
export function unreadAt(port: number): number[] {
  const local = `: 0100007F:${port.toString(16).toUpperCase().padStart(4, "0")} `;
  const lines = readFileSync("/proc/net/tcp", "utf8").split("\n");
  return lines
    .filter((line) => line.includes(local))
    .flatMap((line) => / 01 [0-9A-F]+:([0-9A-F]+) /.exec(line)?.slice(1) ?? [])
    .map((bytes) => parseInt(bytes, 16));
}

/** Keeps this program from all else for so long. */
export function toil(ms: number): void {
  const from = performance.now();
  while (performance.now() - from < ms);
}

/** Resolves once `isTrue`; throws, saying what was awaited, when that takes absurdly long. */
export async function until(what: string, isTrue: () => boolean, mostMs = patienceMs): Promise<void> {
  const giveUpAt = performance.now() + mostMs;
  while (!isTrue()) {
    if (performance.now() > giveUpAt) throw new Error(`never happened: ${what}`);
    await Bun.sleep(1);
  }
}

/** How many look now, and what there was before the first of them began. */
let looking = 0;
let before = new Set<string>();

/**
 * Disposed of, it waits until all sockets made since have been closed. Of tests that run at once the last one looks, for all
 * of them: a socket does not say whose it is.
 */
export function noSocketLeft(): AsyncDisposable {
  if (looking++ === 0) before = new Set(openSockets());
  return {
    async [Symbol.asyncDispose]() {
      if (--looking > 0) return;
      const known = before;
      const isClean = () => openSockets().every((socket) => known.has(socket));
      await until("all sockets of the test are closed", isClean);
    },
  };
}

export const loopback = (port: number, family: 4 | 6 = 4): Endpoint =>
  formatEndpoint(family === 4 ? "127.0.0.1" : "::1", port);

/** A listener on a free port. Never accepting is how a stranger stays silent. */
export function listening(
  backlog = 64,
  family: 4 | 6 = 4,
): Disposable & { socket: Socket; endpoint: Endpoint } {
  const socket = Socket.open(family);
  const port = socket.bind(0);
  socket.shareport().listen(backlog);
  return { socket, endpoint: loopback(port, family), [Symbol.dispose]: () => socket.close() };
}

/** An endpoint where nobody listens. */
export function refusing(family: 4 | 6 = 4): Endpoint {
  using closed = listening(1, family);
  return closed.endpoint;
}

/** The same, held for as long as the test takes: no fresh port of ours or of others can be that one. */
export function reserved(): Disposable & { endpoint: Endpoint } {
  const socket = Socket.open(4);
  const endpoint = loopback(socket.bind(0));
  return { endpoint, [Symbol.dispose]: () => socket.close() };
}

/** A listener whose queue is full, so that Linux drops every further SYN, as a filtering NAT does. */
export function unanswering(): Disposable & { socket: Socket; endpoint: Endpoint } {
  const listener = listening(0);
  const queued = Socket.open(4);
  queued.connect(listener.endpoint);
  return {
    ...listener,
    [Symbol.dispose]() {
      queued.close();
      listener.socket.close();
    },
  };
}
