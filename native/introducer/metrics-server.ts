/**
 * Shows metrics to everybody who can connect, over HTTP/1.1 (RFC 9112), one request a connection: `/metrics`, and `/healthz`
 * for whoever balances or restarts. Not by Bun's own server, which takes as many connections as there are descriptors. A port
 * that is taken is tried again. Owns the listening socket and its readers. For introducer.ts.
 */
import { listeningProblem } from "../host/listening-problem.ts";

/** Readers of the metrics: so many at once, for so long, and so many bytes of each. They must not use up descriptors. */
const maxReaders = 16;
const readerDeadlineMs = 5_000;
const maxRequestBytes = 8 * 1024;

/** One connection: a request, an answer, and its end. */
interface Reader {
  request: string;
  /** What the kernel has not taken of the answer yet; undefined while there is no answer. */
  unsent: Uint8Array | undefined;
  deadline: NodeJS.Timeout;
}

/** What is shown, and who hears of what goes wrong. */
interface Shown {
  page(): string;
  /** Why nobody else should be sent to this introducer; undefined if all is well. */
  illness(): string | undefined;
  /** What `page` threw: the reader is told nothing of it. */
  mistake(error: unknown): void;
  warn(message: string): void;
}

/** How often a port that is taken is tried again. */
const retryMs = 1_000;

export class MetricsServer {
  readonly #shown: Shown;
  #server: Bun.TCPSocketListener<Reader> | undefined;
  readonly #retry: Timer | undefined;
  /** The oldest first. If there are too many, the oldest is closed: a normal reader is gone at once. */
  readonly #readers = new Set<Bun.Socket<Reader>>();

  constructor(hostname: string, port: number, shown: Shown) {
    this.#shown = shown;
    const problem = this.#listen(hostname, port);
    if (problem === undefined) return;
    const where = `no metrics on ${hostname} port ${port}: ${problem}`;
    shown.warn(`${where}; trying again every second (or choose another with --metrics)`);
    this.#retry = setInterval(() => {
      if (this.#listen(hostname, port) === undefined) clearInterval(this.#retry);
    }, retryMs).unref();
  }

  /** Returns why it can't. */
  #listen(hostname: string, port: number): string | undefined {
    const socket: Bun.SocketHandler<Reader> = {
      open: (one) => this.#opened(one),
      data: (one, chunk) => this.#read(one, chunk),
      drain: (one) => this.#write(one),
      close: (one) => this.#closed(one),
      error: (one) => void one.terminate(),
    };
    try {
      this.#server = Bun.listen<Reader>({ hostname, port, socket });
      return undefined;
    } catch (error) {
      return listeningProblem(error);
    }
  }

  /** Undefined while there is none. */
  get port(): number | undefined {
    return this.#server?.port;
  }

  stop(): void {
    clearInterval(this.#retry);
    this.#server?.stop(true);
  }

  #opened(socket: Bun.Socket<Reader>): void {
    const deadline = setTimeout(() => socket.terminate(), readerDeadlineMs);
    socket.data = { request: "", unsent: undefined, deadline };
    const [oldest] = this.#readers;
    if (oldest && this.#readers.size >= maxReaders) oldest.terminate();
    this.#readers.add(socket);
  }

  #closed(socket: Bun.Socket<Reader>): void {
    clearTimeout(socket.data.deadline);
    this.#readers.delete(socket);
  }

  #read(socket: Bun.Socket<Reader>, chunk: Buffer): void {
    const reader = socket.data;
    if (reader.unsent) return; // only one request is answered
    reader.request += chunk.toString("latin1", 0, maxRequestBytes);
    const isWhole = reader.request.includes("\r\n\r\n");
    if (!isWhole && reader.request.length < maxRequestBytes) return;
    reader.unsent = new TextEncoder().encode(isWhole ? this.#answer(reader.request) : tooLarge);
    this.#write(socket);
  }

  #write(socket: Bun.Socket<Reader>): void {
    const reader = socket.data;
    if (!reader.unsent) return;
    const written = socket.write(reader.unsent);
    reader.unsent = reader.unsent.subarray(Math.max(0, written));
    if (reader.unsent.length === 0) socket.end();
  }

  #answer(request: string): string {
    const [method, target = ""] = request.split(" ", 2);
    const path = URL.parse(target, "http://introducer")?.pathname;
    if (path !== "/metrics" && path !== "/healthz")
      return answer("404 Not Found", "see /metrics and /healthz\n");
    if (method !== "GET") return answer("405 Method Not Allowed", "GET only\n");
    if (path === "/healthz") return health(this.#shown.illness());
    try {
      return answer("200 OK", this.#shown.page(), "text/plain; version=0.0.4; charset=utf-8");
    } catch (error) {
      this.#shown.mistake(error);
      return answer("500 Internal Server Error", "an error in the introducer\n");
    }
  }
}

function answer(status: string, body: string, type = "text/plain; charset=utf-8"): string {
  const length = Buffer.byteLength(body);
  const head = [`HTTP/1.1 ${status}`, `content-type: ${type}`, `content-length: ${length}`];
  return `${head.join("\r\n")}\r\nconnection: close\r\n\r\n${body}`;
}

const health = (illness: string | undefined) =>
  illness === undefined ? answer("200 OK", "ok\n") : answer("503 Service Unavailable", `${illness}\n`);

const tooLarge = answer("431 Request Header Fields Too Large", "too much\n");
