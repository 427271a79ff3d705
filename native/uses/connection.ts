/**
 * One TCP connection joined to one stream, on either side of a forward. Owns the socket from its making on: whatever
 * happens, the socket is closed, and the stream is over. It neither listens nor dials. For native/uses/forward.ts.
 *
 * A half-close is carried as one, a reset as one. Whoever does not read stops only the other end of this connection:
 * pieces wait in the kernel, and the stream gives its peer no more credit.
 */
import type { Duplex } from "node:stream";
import type { Socket, SocketHandler } from "bun";
import { resetCodes, StreamError } from "../session/stream.ts";

/** What a connection can be joined to: a stream of a link, or what has the same manners. */
export interface Joinable extends Duplex {
  /** Whether its link has no carrier now, so that nothing comes or goes. */
  readonly isWaiting: boolean;
  /** Cuts it off, both ways, and tells the other side why. */
  reset(reason: string, code?: number): void;
}

export class Connection {
  /** From the client or target to the stream, and the other way. */
  bytesIn = 0;
  bytesOut = 0;
  /** Called once, when socket and stream are over; the error says why if it was before their time. */
  onOver: (error?: Error) => void = () => {};
  /** Whether it is over without an error only if the other end, too, has seen both halves end. */
  awaitsClose = false;
  #socket: Socket<Connection> | undefined;
  #stream: Joinable | undefined;
  /** What the socket has brought before there was a stream. The kernel's buffer is its bound: the socket is paused. */
  readonly #early: Buffer[] = [];
  /** What the socket has not taken yet. */
  #unsent: Buffer | undefined;
  #hasSocketEnded = false;
  #isSocketClosed = false;
  #hasStreamEnded = false;
  #isOver = false;

  get isOver(): boolean {
    return this.#isOver;
  }

  join(stream: Joinable): void {
    this.#stream = stream;
    stream.on("data", (piece: Buffer) => this.#toSocket(piece));
    stream.on("drain", () => this.#socket?.resume());
    stream.on("end", () => this.#streamEnded());
    stream.on("error", (error) => this.#streamFailed(error));
    stream.on("close", () => this.#streamFailed());
    for (const chunk of this.#early.splice(0)) this.#toStream(chunk);
    if (this.#hasSocketEnded) stream.end();
    else if (!stream.writableNeedDrain) this.#socket?.resume();
  }

  /** Both are cut off, and the peer is told why. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#stream?.reset(reason, code);
    this.#fail(new StreamError(code, reason));
  }

  // --- from the socket -----------------------------------------------------------------------------------

  /** The socket, paused until there is a stream. */
  socketOpened(socket: Socket<Connection>): void {
    this.#socket = socket;
    if (this.#isOver) socket.terminate();
    else if (!this.#stream) socket.pause();
  }

  socketBrought(chunk: Buffer): void {
    this.bytesIn += chunk.length;
    if (this.#stream) this.#toStream(chunk);
    else this.#early.push(chunk);
  }

  socketDrained(): void {
    const unsent = this.#unsent;
    if (!unsent) return;
    this.#unsent = undefined;
    this.#send(unsent);
    if (this.#unsent) return;
    if (this.#hasStreamEnded) this.#finishSocket();
    else this.#stream?.resume();
  }

  socketEnded(): void {
    this.#hasSocketEnded = true;
    this.#stream?.end();
    this.#overIfBothEnded();
  }

  /** After our FIN this is how the other's is told, too. */
  socketClosed(error?: Error): void {
    this.#isSocketClosed = true;
    if (error) return this.reset(`the connection broke: ${error.message}`);
    if (!this.#hasStreamEnded || this.#unsent) return this.reset("the connection was closed before its time");
    if (!this.#hasSocketEnded) this.socketEnded();
    this.#overIfBothEnded();
  }

  #toStream(chunk: Buffer): void {
    if (!this.#stream!.write(chunk)) this.#socket?.pause();
  }

  // --- to the socket -------------------------------------------------------------------------------------

  #toSocket(piece: Buffer): void {
    this.bytesOut += piece.length;
    this.#send(piece);
    if (this.#unsent) this.#stream!.pause();
  }

  #send(piece: Buffer): void {
    const taken = Math.max(0, this.#socket?.write(piece) ?? 0);
    if (taken < piece.length) this.#unsent = piece.subarray(taken);
  }

  /** A FIN; and where the other's has come, there is nothing more to wait for. */
  #finishSocket(): void {
    if (this.#hasSocketEnded && !this.awaitsClose) this.#socket?.end();
    else this.#socket?.shutdown();
  }

  #streamEnded(): void {
    this.#hasStreamEnded = true;
    if (!this.#unsent) this.#finishSocket();
    this.#overIfBothEnded();
  }

  // --- its end -------------------------------------------------------------------------------------------

  #overIfBothEnded(): void {
    if (this.#isSocketClosed && this.#hasSocketEnded && this.#hasStreamEnded) this.#over();
  }

  /** Once both halves have ended, what is left to do is the socket's alone. */
  #streamFailed(error?: Error): void {
    if (this.#hasSocketEnded && this.#hasStreamEnded) return;
    this.#fail(error ?? new StreamError(resetCodes.cancelled, "the stream was cut off"));
  }

  #fail(error: Error): void {
    if (this.#isOver) return;
    this.#over(error);
    this.#socket?.terminate();
  }

  #over(error?: Error): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#early.length = 0;
    this.#unsent = undefined;
    this.onOver(error);
  }
}

/** What Bun's sockets call; their `data` is the connection. */
export const connectionHandlers: SocketHandler<Connection> = {
  open: (socket) => socket.data.socketOpened(socket),
  data: (socket, chunk) => socket.data.socketBrought(chunk),
  drain: (socket) => socket.data.socketDrained(),
  end: (socket) => socket.data.socketEnded(),
  close: (socket, error) => socket.data.socketClosed(error),
  // `close` follows, with the same error.
  error: () => {},
};
