/**
 * A listening socket that a flood of connections can't keep a program from everything else by. It owns the listening
 * descriptor; its connections belong to whoever gets them by `open`, and are to be closed by him.
 *
 * Bun accepts for as long as anybody is waiting to be accepted, and serves no other socket and no timer meanwhile: 15,000
 * accepted and closed at once held up all others for a second. It stops accepting when the listening socket has been
 * closed. So once many have been turned away at one go, that is done, and the socket made anew: who waited in the old
 * one's queue gets a RST, and the others are served before the next come. Up to 512 wait there (Bun's backlog), and
 * ending them takes the kernel some 50 ms: `sysctl net.core.somaxconn=64` makes that shorter.
 *
 * introducer.ts alone imports it. No FFI.
 */
import type { TCPSocketListener, TCPSocketListenOptions } from "bun";

/** Turned away at one go: each costs some 60 µs. */
const mostTurnedAway = 32;
/** How long until listening is tried again where that was not possible. */
const retryMs = 50;

export class Listener<Data> {
  readonly hostname: string;
  readonly port: number;
  readonly #options: TCPSocketListenOptions<Data>;
  readonly #onProblem: (message: string) => void;
  #listener: TCPSocketListener<Data> | undefined;
  #turnedAway = 0;
  #retryTimer: Timer | undefined;
  #isStopped = false;

  /**
   * Throws what `Bun.listen` throws, such as EADDRINUSE. `onProblem` hears why listening anew was not possible, for which
   * another attempt is made then.
   */
  constructor(options: TCPSocketListenOptions<Data>, onProblem: (message: string) => void) {
    this.#onProblem = onProblem;
    this.#listener = Bun.listen(options);
    this.hostname = this.#listener.hostname;
    this.port = this.#listener.port;
    this.#options = { ...options, port: this.port };
  }

  /** To be called for each connection that `open` closes at once. */
  turnedAway(): void {
    if (this.#turnedAway === 0) setImmediate(() => (this.#turnedAway = 0));
    if (++this.#turnedAway < mostTurnedAway || !this.#listener) return;
    this.#listener.stop();
    this.#listener = undefined;
    this.#listenAnew();
  }

  #listenAnew(): void {
    if (this.#isStopped) return;
    try {
      this.#listener = Bun.listen(this.#options);
    } catch (error) {
      const { code = String(error) } = error as { code?: string };
      this.#onProblem(`nobody can connect to port ${this.port} now: ${code}`);
      this.#retryTimer = setTimeout(() => this.#listenAnew(), retryMs);
    }
  }

  /** No more connections; those there are go on. */
  stop(): void {
    this.#isStopped = true;
    clearTimeout(this.#retryTimer);
    this.#listener?.stop();
    this.#listener = undefined;
  }
}
