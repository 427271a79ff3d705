/**
 * A router on loopback that answers as a test says: late, wrongly, at length, or not at all. It opens no port; what a
 * real one does is in test/lab/portmap.test.ts.
 */
import { type Gateway, gatewayPorts } from "../../native/punch/gateway.ts";

type Datagrams = Bun.udp.Socket<"buffer">;
/** What it answers to a datagram, or to an HTTP request: one piece of bytes after the other, or nothing. */
type Answers<Question> = (question: Question) => Iterable<Uint8Array | string>;

export interface Request {
  line: string;
  /** `GetExternalIPAddress`, of a SOAP request. */
  action: string | undefined;
  body: string;
}

export interface Behaviour {
  /** To PCP and NAT-PMP; undefined: nobody listens there. */
  mapping?: Answers<Uint8Array<ArrayBuffer>>;
  /** To a search by SSDP. */
  search?: Answers<string>;
  /** To HTTP; the connection is then closed, unless `isOpen`. */
  http?: Answers<Request>;
  isOpen?: boolean;
}

export class FakeGateway implements Disposable {
  readonly gateway: Gateway;
  /** Where it answers HTTP. */
  readonly location: string;
  readonly datagrams: Uint8Array<ArrayBuffer>[] = [];
  readonly searches: string[] = [];
  readonly requests: Request[] = [];
  /** Where the last datagram of any kind came from. */
  client = { port: 0, address: "" };
  /** Where each of `datagrams` did. */
  readonly sources: { port: number; address: string }[] = [];
  readonly #sockets: Datagrams[] = [];
  readonly #http: Bun.TCPSocketListener;

  static async open(behaviour: Behaviour): Promise<FakeGateway> {
    const ports: Record<keyof typeof gatewayPorts, number> = { ...gatewayPorts };
    const fake = new FakeGateway(behaviour, ports);
    const { mapping, search } = behaviour;
    const mappingSocket = await fake.#listen((bytes) => {
      fake.datagrams.push(bytes);
      fake.sources.push(fake.client);
      return mapping?.(bytes) ?? [];
    });
    const searchSocket = await fake.#listen((bytes) => {
      fake.searches.push(bytes.toString());
      return search?.(bytes.toString()) ?? [];
    });
    ports.mappingPort = mappingSocket.port;
    ports.searchPort = searchSocket.port;
    Object.assign(fake.gateway, ports, { announcementPort: await freePort() });
    if (!mapping) mappingSocket.close();
    return fake;
  }

  private constructor(behaviour: Behaviour, ports: Omit<Gateway, "address" | "localAddress">) {
    this.gateway = { address: "127.0.0.1", localAddress: "127.0.0.1", ...ports };
    this.#http = listenHttp("127.0.0.1", behaviour, this.requests);
    this.location = `http://127.0.0.1:${this.#http.port}/`;
  }

  async #listen(answers: (bytes: Buffer<ArrayBuffer>) => Iterable<Uint8Array | string>): Promise<Datagrams> {
    const socket = await Bun.udpSocket({
      hostname: "127.0.0.1",
      socket: {
        data: (self, bytes, port, address) => {
          this.client = { port, address };
          for (const answer of answers(Buffer.from(bytes))) self.send(answer, port, address);
        },
        error: () => {},
      },
    });
    this.#sockets.push(socket);
    return socket;
  }

  /** Says that, from the right place, to whoever asked last, or `to` that one. */
  say(bytes: Uint8Array, to = this.sources.at(-1)!): void {
    this.#sockets[0]!.send(bytes, to.port, to.address);
  }

  [Symbol.dispose](): void {
    for (const socket of this.#sockets) if (!socket.closed) socket.close();
    this.#http.stop(true);
  }
}

async function freePort(): Promise<number> {
  const socket = await Bun.udpSocket({ hostname: "127.0.0.1" });
  const { port } = socket;
  socket.close();
  return port;
}

/** HTTP in the raw, so that it can be wrong. */
export function listenHttp(
  hostname: string,
  { http, isOpen }: Behaviour,
  requests: Request[],
): Bun.TCPSocketListener {
  const texts = new WeakMap<object, string>();
  return Bun.listen({
    hostname,
    port: 0,
    socket: {
      data(socket, bytes) {
        const text = (texts.get(socket) ?? "") + bytes.toString();
        texts.set(socket, text);
        const request = parseRequest(text);
        if (!request) return;
        requests.push(request);
        for (const piece of http?.(request) ?? []) socket.write(piece);
        if (!isOpen) socket.end();
      },
      error() {},
    },
  });
}

/** Undefined until it is complete. */
function parseRequest(text: string): Request | undefined {
  const [head, body] = text.split("\r\n\r\n", 2);
  if (body === undefined) return undefined;
  if (body.length < Number(/^content-length: (\d+)/im.exec(head!)?.[1] ?? 0)) return undefined;
  return { line: head!.split("\r\n")[0]!, action: /^soapaction: ".*#(\w+)"/im.exec(head!)?.[1], body };
}

export function httpAnswer(body: string, status = "200 OK"): string {
  return `HTTP/1.1 ${status}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
}
