/** Real clients and targets of UDP, for whatever carries datagrams. */
import { type SendResult, UdpSocket } from "../native/host/udp.ts";
import { until } from "./native-fixture.ts";
import { nextPorts } from "./sockets-fixture.ts";

/** A socket that keeps what came. Disposed of, it is closed. */
export class UdpClient implements Disposable {
  readonly got: Buffer[] = [];
  readonly #socket: UdpSocket;
  readonly #to: [port: number, address: string];

  constructor(port: number, address = "127.0.0.1", from = address) {
    this.#to = [port, address];
    this.#socket = UdpSocket.bind(from, 0, {
      datagram: (bytes) => void this.got.push(bytes),
      failed: () => {},
      drained: () => {},
      flooded: () => {},
    });
  }

  get port(): number {
    return this.#socket.port;
  }

  send(datagram: string | Buffer): SendResult {
    return this.#socket.send(Buffer.from(datagram), ...this.#to);
  }

  /** Asks again and again, as programs that use UDP do, until just that has come back. */
  async asks(question: string | Buffer): Promise<void> {
    const bytes = Buffer.from(question);
    const asking = setInterval(() => this.send(bytes), 250);
    this.send(bytes);
    await until(`${bytes.toString("latin1", 0, 40)} is answered`, () =>
      this.got.some((one) => one.equals(bytes)),
    ).finally(() => clearInterval(asking));
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }
}

export interface UdpTarget extends Disposable {
  port: number;
  got: { text: string; port: number; address: string }[];
  send(datagram: Buffer, port: number): void;
}

/** A target that answers each datagram with what `answer` makes of it; with nothing if that is undefined. */
export function udpTarget(
  answer: (bytes: Buffer, port: number) => Buffer | undefined = (bytes) => bytes,
  { address = "127.0.0.1", port = 0 } = {},
): UdpTarget {
  const got: UdpTarget["got"] = [];
  const socket = UdpSocket.bind(address, port, {
    datagram(bytes, from, sender) {
      got.push({ text: bytes.toString("latin1", 0, 100), port: from, address: sender });
      const answered = answer(bytes, from);
      if (answered) socket.send(answered, from, sender);
    },
    failed: () => {},
    drained: () => {},
    flooded: () => {},
  });
  return {
    port: socket.port,
    got,
    send: (datagram, to) => void socket.send(datagram, to, address),
    [Symbol.dispose]: () => socket.close(),
  };
}

/** A port of UDP that nobody has. */
export function freeUdpPort(address = "127.0.0.1"): number {
  for (;;) {
    const port = nextPorts(1);
    try {
      udpTarget(undefined, { address, port })[Symbol.dispose]();
      return port;
    } catch {
      // taken
    }
  }
}
