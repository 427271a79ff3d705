/**
 * A listening socket that does not stop the program when many connect at once. Owns the listening descriptor. Each
 * connection belongs to whoever gets it by `open`, and must be closed there. For native/introducer/ and native/uses/.
 *
 * Bun accepts as long as anybody waits to be accepted, and meanwhile serves no socket and no timer: 15,000 connections that
 * were accepted and closed held up all others for a second. It stops accepting when its descriptor is closed. So after some
 * connections that descriptor is closed. A second descriptor of the same socket keeps the queue, and nobody in it is lost.
 * Once the others have been served, Bun gets the second one. This does not work on Windows.
 *
 * The same where the program has no descriptor left. accept(2) fails then, and who waits to be accepted stays: Bun would ask
 * again at once, and for ever. One descriptor is kept for that moment; it becomes the second one of the socket.
 */
import { closeSync, openSync } from "node:fs";
import { devNull } from "node:os";
import type { TCPSocketListener, TCPSocketListenOptions } from "bun";
import { close, duplicate, isSupported, SystemError } from "./libc.ts";

/** So many are accepted in one go. Each takes some 50 µs. */
const mostAtOnce = 8;
/** If listening was not possible, it is tried again after so long. */
const retryMs = 50;
/** How often it is looked whether a descriptor is left. */
const watchMs = 1_000;
const noneLeft = "no descriptor is left (EMFILE): raise the limit, as `ulimit -n` does";

/** Bun 1.4.5 shows the descriptor of a listener, and can listen with a given one. bun-types has neither. */
type Descriptor<Data> = TCPSocketListener<Data> & { fd: number };

/** A socket that listens already, of whatever kind. It is the listener's from then on. */
type Given<Data> = Pick<TCPSocketListenOptions<Data>, "socket" | "allowHalfOpen"> & { fd: number };

export class Listener<Data> {
  readonly hostname: string;
  /** 0 if it is no socket of TCP. */
  readonly port: number;
  readonly #options: TCPSocketListenOptions<Data>;
  readonly #onProblem: (message: string) => void;
  #listener: TCPSocketListener<Data> | undefined;
  /** The second descriptor of the listening socket, while nobody is accepted. */
  #resting: number | undefined;
  #timer: Timer | undefined;
  /** Accepted in this go. */
  #accepted = 0;
  /** Kept for the moment when none is left; undefined in that moment. */
  #spare: number | undefined;
  readonly #watch: Timer;

  /**
   * Throws what `Bun.listen` throws, such as EADDRINUSE. `onProblem` gets the reason if nobody can be accepted. Another
   * attempt follows by itself.
   */
  constructor(given: TCPSocketListenOptions<Data> | Given<Data>, onProblem: (message: string) => void) {
    const options = given as TCPSocketListenOptions<Data>;
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
    this.port = this.#listener.port ?? 0;
    this.#spare = openSpare();
    this.#watch = setInterval(() => this.#restIfNoneLeft(), watchMs).unref();
  }

  get #place(): string {
    return this.port === 0 ? "a socket" : `port ${this.port}`;
  }

  #count(): void {
    if (this.#accepted === 0) setImmediate(() => this.#goIsOver());
    if (++this.#accepted >= mostAtOnce && isSupported()) this.#rest();
  }

  #rest(): void {
    if (!this.#listener) return;
    this.#resting = tryDuplicate((this.#listener as Descriptor<Data>).fd) ?? this.#bySpare(this.#listener);
    if (this.#resting === undefined) return;
    this.#listener.stop();
    this.#listener = undefined;
  }

  /** The second descriptor of the socket where only the spare one is left. */
  #bySpare(listener: TCPSocketListener<Data>): number | undefined {
    if (this.#spare === undefined) return undefined;
    closeSync(this.#spare);
    this.#spare = undefined;
    this.#onProblem(`nobody can connect to ${this.#place} now: ${noneLeft}`);
    this.#timer = setTimeout(() => this.#goOn(), retryMs);
    return tryDuplicate((listener as Descriptor<Data>).fd);
  }

  #restIfNoneLeft(): void {
    if (!this.#listener || !isSupported()) return;
    const free = tryDuplicate((this.#listener as Descriptor<Data>).fd);
    if (free === undefined) this.#rest();
    else close(free);
  }

  #goIsOver(): void {
    this.#accepted = 0;
    this.#goOn();
    this.#restIfNoneLeft();
  }

  #goOn(): void {
    if (this.#resting === undefined) return;
    clearTimeout(this.#timer);
    this.#spare ??= openSpare();
    const forNext = this.#spare === undefined ? undefined : tryDuplicate(this.#resting);
    if (forNext === undefined) {
      this.#timer = setTimeout(() => this.#goOn(), retryMs);
      return;
    }
    close(forNext);
    const options: TCPSocketListenOptions<Data> & { fd: number } = { ...this.#options, fd: this.#resting };
    try {
      this.#listener = Bun.listen(options);
      this.#resting = undefined;
    } catch (error) {
      const { code = String(error) } = error as { code?: string };
      this.#onProblem(`nobody can connect to ${this.#place} now (${code}); it is tried again`);
      this.#timer = setTimeout(() => this.#goOn(), retryMs);
    }
  }

  /** Accepts no more connections. Those that are there go on. */
  stop(): void {
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
    if (this.#spare !== undefined) closeSync(this.#spare);
    this.#spare = undefined;
    this.#listener?.stop();
    this.#listener = undefined;
    if (this.#resting !== undefined) close(this.#resting);
    this.#resting = undefined;
  }
}

/** Undefined if no descriptor is left. */
function tryDuplicate(fd: number): number | undefined {
  try {
    return duplicate(fd);
  } catch (error) {
    if (error instanceof SystemError && ["EMFILE", "ENFILE"].includes(error.code)) return undefined;
    throw error;
  }
}

/** Undefined if no descriptor is left. */
function openSpare(): number | undefined {
  try {
    return openSync(devNull, "r");
  } catch {
    return undefined;
  }
}
