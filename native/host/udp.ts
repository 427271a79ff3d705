/**
 * One UDP socket with one owner, who closes it. Sends whole datagrams, or says why not; nothing waits here. Prints nothing.
 * For native/uses/.
 */
import type { udp } from "bun";
import { canonicalAddress } from "../../protocol.ts";
import { isSupported, setOption, SystemError } from "./libc.ts";
import { platform } from "./platform.ts";

/** The longest datagram that fits into an IPv4 packet: 65,535 bytes without both headers (RFC 768, RFC 791 §3.1). */
export const maxDatagramBytes = 65_507;
/** What may wait in the kernel while this program does something else. It gives less where its administrator says so. */
const unreadBytes = 1024 * 1024;
/** So many are taken before others of this program have their turn: else whoever sends enough would have all of it. */
const mostInTurn = 1_024;
/** An ephemeral port of this host can be the very port that is to be reached, if nobody listens there. */
const mostTries = 8;

export interface UdpHandler {
  /** `bytes` are the taker's own. */
  datagram(bytes: Buffer, port: number, address: string): void;
  /** One was dropped, because too many came at once. */
  flooded(): void;
  /** An earlier datagram did not arrive. `code`: such as ECONNREFUSED, if the port is closed there. */
  failed(code: string): void;
  /** It takes datagrams again. */
  drained(): void;
}

/** `full`: it takes none now, and will be drained. Else: an errno name. */
export type SendResult = "sent" | "full" | (string & {});

/** Where to; none for a socket that is connected. */
type To = [port: number, address: string] | [];

type AnySocket = udp.Socket<"buffer"> | udp.ConnectedSocket<"buffer">;
/** The descriptor, which bun-types do not know. */
type Descriptor = { readonly fd: number };

export class UdpSocket implements Disposable {
  readonly port: number;
  readonly #socket: AnySocket;

  private constructor(socket: AnySocket) {
    this.#socket = socket;
    this.port = socket.port;
    if (!isSupported()) return;
    const { fd } = socket as unknown as Descriptor;
    try {
      setOption(fd, platform.SOL_SOCKET, platform.SO_RCVBUF, unreadBytes);
    } catch (error) {
      if (!(error instanceof SystemError)) throw error; // macOS: it is more than may be had
    }
  }

  /** Takes what comes from anywhere. Port 0: the kernel chooses. Throws what Bun throws, such as EADDRINUSE. */
  static bind(hostname: string, port: number, handler: UdpHandler): UdpSocket {
    return new UdpSocket(made(Bun.udpSocket({ hostname, port, socket: callbacks(handler) })));
  }

  /** Takes only what comes from there, and learns whether it is refused there. Throws as {@link bind}. */
  static connect(address: string, port: number, handler: UdpHandler): UdpSocket {
    const refused: UdpSocket[] = [];
    try {
      for (;;) {
        const socket = UdpSocket.#connectOnce(address, port, handler);
        if (socket.port !== port) return socket;
        refused.push(socket); // until another port is found
        if (refused.length >= mostTries) throw new SystemError("EADDRINUSE", "connect");
      }
    } finally {
      for (const socket of refused) socket.close();
    }
  }

  static #connectOnce(address: string, port: number, handler: UdpHandler): UdpSocket {
    const hostname = address.includes(":") ? "::" : "0.0.0.0";
    return new UdpSocket(
      made(
        Bun.udpSocket({
          hostname,
          connect: { hostname: address, port },
          socket: callbacks({
            ...handler,
            // Before it is connected, for a moment, it takes what comes from anywhere.
            datagram: (bytes, from, sender) => {
              const isPeer = sender === address || canonicalAddress(sender)?.address === address;
              if (from === port && isPeer) handler.datagram(bytes, from, sender);
            },
          }),
        }),
      ),
    );
  }

  send(datagram: Uint8Array, ...to: To): SendResult {
    const result = this.#sendOnce(datagram, to);
    return result === "ECONNREFUSED" ? this.#sendOnce(datagram, to) : result; // an earlier one was
  }

  #sendOnce(datagram: Uint8Array, to: To): SendResult {
    try {
      const isSent = (this.#socket.send as (datagram: Uint8Array, ...to: To) => boolean)(datagram, ...to);
      return isSent ? "sent" : "full";
    } catch (error) {
      return codeOf(error);
    }
  }

  close(): void {
    if (!this.#socket.closed) this.#socket.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Bun makes it at once where an address is given, and says so by a promise. */
function made<T>(promise: Promise<T>): T {
  const socket = Bun.peek(promise);
  if (socket instanceof Promise) {
    void socket.then((late: unknown) => (late as udp.Socket<"buffer">).close());
    throw new Error("a socket is made of an address only");
  }
  return socket;
}

function callbacks(handler: UdpHandler) {
  let inTurn = 0;
  return {
    data: (_: unknown, bytes: Buffer, port: number, address: string) => {
      if (inTurn === 0) setImmediate(() => (inTurn = 0));
      if (++inTurn > mostInTurn) handler.flooded();
      else handler.datagram(bytes, port, address);
    },
    drain: () => handler.drained(),
    // Bun 1.4.5 gives the error alone, and its types say that the socket comes before it.
    error: (...given: unknown[]) => handler.failed(codeOf(given.find((one) => one instanceof Error))),
  };
}

function codeOf(error: unknown): string {
  const { code, message } = (error ?? {}) as { code?: string; message?: string };
  return code ?? message ?? "unknown";
}
