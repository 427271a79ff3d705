/**
 * A listening socket that does not stop the program when many connect at once. Owns the listening descriptor. Each
 * connection belongs to whoever gets it by `open`, and must be closed there. For introducer.ts.
 *
 * Bun accepts as long as anybody waits to be accepted, and meanwhile serves no socket and no timer: 15,000 connections that
 * were accepted and closed held up all others for a second. It stops accepting when its descriptor is closed. So after some
 * connections that descriptor is closed. A second descriptor of the same socket keeps the queue, and nobody in it is lost.
 * Once the others have been served, Bun gets the second one. This does not work on Windows.
 */
import type { TCPSocketListener, TCPSocketListenOptions } from "bun";
import { close, duplicate, isSupported, SystemError } from "../host/libc.ts";

/** So many are accepted in one go. Each takes some 50 µs. */
const mostAtOnce = 8;
/** If listening was not possible, it is tried again after so long. */
const retryMs = 50;

/** Bun 1.4.5 shows the descriptor of a listener, and can listen with a given one. bun-types has neither. */
type Descriptor<Data> = TCPSocketListener<Data> & { fd: number };

export class Listener<Data> {
  readonly hostname: string;
  readonly port: number;
  readonly #options: TCPSocketListenOptions<Data>;
  readonly #onProblem: (message: string) => void;
  #listener: TCPSocketListener<Data> | undefined;
  /** The second descriptor of the listening socket, while nobody is accepted. */
  #resting: number | undefined;
  #timer: Timer | undefined;
  /** Accepted in this go. */
  #accepted = 0;

  /**
   * Throws what `Bun.listen` throws, such as EADDRINUSE. `onProblem` gets the reason if nobody can be accepted. Another
   * attempt follows by itself.
   */
  constructor(options: TCPSocketListenOptions<Data>, onProblem: (message: string) => void) {
    const { open } = options.socket;
    const counted: typeof open = (socket) => {
      const opened = open?.(socket); // it may close the connection: then a descriptor is free
      this.#count();
      return opened;
    };
    this.#options = { ...options, socket: { ...options.socket, open: counted } };
    this.#onProblem = onProblem;
    this.#listener = Bun.listen(this.#options);
    this.hostname = this.#listener.hostname;
    this.port = this.#listener.port;
  }

  #count(): void {
    if (this.#accepted === 0) setImmediate(() => this.#goIsOver());
    if (++this.#accepted >= mostAtOnce && isSupported()) this.#rest();
  }

  #rest(): void {
    if (!this.#listener) return;
    try {
      this.#resting = duplicate((this.#listener as Descriptor<Data>).fd);
    } catch (error) {
      // Nothing more can be accepted now, by this program or by any.
      if (error instanceof SystemError && ["EMFILE", "ENFILE"].includes(error.code)) return;
      throw error;
    }
    this.#listener.stop();
    this.#listener = undefined;
  }

  #goIsOver(): void {
    this.#accepted = 0;
    this.#goOn();
  }

  #goOn(): void {
    if (this.#resting === undefined) return;
    const options: TCPSocketListenOptions<Data> & { fd: number } = { ...this.#options, fd: this.#resting };
    try {
      this.#listener = Bun.listen(options);
      this.#resting = undefined;
    } catch (error) {
      const { code = String(error) } = error as { code?: string };
      this.#onProblem(`nobody can connect to port ${this.port} now: ${code}`);
      this.#timer = setTimeout(() => this.#goOn(), retryMs);
    }
  }

  /** Accepts no more connections. Those that are there go on. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#listener?.stop();
    this.#listener = undefined;
    if (this.#resting !== undefined) close(this.#resting);
    this.#resting = undefined;
  }
}
