/**
 * A listening socket that a crowd at the door can't keep a program from everything else by. It owns the listening
 * descriptor; its connections belong to whoever gets them by `open`, and are to be closed by him.
 *
 * Bun accepts for as long as anybody is waiting to be accepted, and serves no other socket and no timer meanwhile: 15,000
 * accepted and closed at once held up all others for a second. It stops accepting when its listening socket has been
 * closed. So once several have been accepted at one go, that is done with one descriptor while another keeps the socket and
 * its queue, where nobody is lost, and Bun gets that one when the others have been served. Not so on Windows.
 *
 * introducer.ts alone imports it.
 */
import type { TCPSocketListener, TCPSocketListenOptions } from "bun";
import { close, duplicate, isSupported, SystemError } from "../host/libc.ts";

/** Accepted at one go: each costs some 50 µs. */
const mostAtOnce = 8;
/** How long until listening is tried again where that was not possible. */
const retryMs = 50;

/** Bun 1.4.5 has a listener's descriptor, and listens with one that is given; bun-types know of neither. */
type Descriptor<Data> = TCPSocketListener<Data> & { fd: number };

export class Listener<Data> {
  readonly hostname: string;
  readonly port: number;
  readonly #options: TCPSocketListenOptions<Data>;
  readonly #onProblem: (message: string) => void;
  #listener: TCPSocketListener<Data> | undefined;
  /** Of the listening socket while nobody is accepted. */
  #resting: number | undefined;
  #timer: Timer | undefined;
  /** At this go. */
  #accepted = 0;

  /**
   * Throws what `Bun.listen` throws, such as EADDRINUSE. `onProblem` hears why nobody can be accepted, for which another
   * attempt is made then.
   */
  constructor(options: TCPSocketListenOptions<Data>, onProblem: (message: string) => void) {
    const { open } = options.socket;
    const counted: typeof open = (socket) => {
      const opened = open?.(socket); // which may close it, and a descriptor is free
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
      // Nor can more be accepted, by this program or by any.
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

  /** No more connections; those there are go on. */
  stop(): void {
    clearTimeout(this.#timer);
    this.#listener?.stop();
    this.#listener = undefined;
    if (this.#resting !== undefined) close(this.#resting);
    this.#resting = undefined;
  }
}
