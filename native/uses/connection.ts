/**
 * One TCP connection joined to one stream, on either side of a forward. Owns the socket: whatever happens, the socket is
 * closed and the stream is over. It neither listens nor dials. For native/uses/forward.ts and serve.ts.
 *
 * A half-close of one becomes a half-close of the other, and a reset becomes a reset. If one end does not read, only the
 * other end of this connection has to wait: bytes wait in the kernel, and the stream gives its peer no more credit.
 */
import type { Duplex } from "node:stream";
import type { Socket, SocketHandler } from "bun";
import { resetCodes, StreamError } from "../session/stream.ts";

/** What a connection can be joined to: a stream of a link, or something that behaves like one. */
export interface Joinable extends Duplex {
  /** Whether its link has no carrier now: nothing comes or goes. */
  readonly isWaiting: boolean;
  /** Cuts it off in both directions, and tells the other side why. */
  reset(reason: string, code?: number): void;
}

const closedEarly = "the connection was closed before its time";

export class Connection {
  /** Bytes from the socket to the stream; and from the stream to the socket. */
  bytesIn = 0;
  bytesOut = 0;
  /** Called once, when socket and stream are over. An error says why they ended early. */
  onOver: (error?: Error) => void = () => {};
  /** If set: it is over without an error only when the socket has closed, too. */
  awaitsClose = false;
  #socket: Socket<Connection> | undefined;
  #stream: Joinable | undefined;
  /** What the socket has brought before there was a stream. It is never much, because the socket is paused. */
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

  /** Cuts both off, and tells the peer why. */
  reset(reason: string, code: number = resetCodes.cancelled): void {
    this.#stream?.reset(reason, code);
    this.fail(new StreamError(code, reason));
  }

  // --- from the socket -----------------------------------------------------------------------------------

  /** The socket is open. It is paused until there is a stream. */
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

  /**
   * After our FIN, Bun also reports the other side's FIN by this. Without ours, whoever has it has closed both ways (unix(7)):
   * what it said arrives, and only what is to be said to it has nowhere to go.
   */
  socketClosed(error?: Error): void {
    this.#isSocketClosed = true;
    if (error) return this.#resetOnceSent(`the connection broke: ${error.message}`);
    if (this.#unsent) return this.#resetOnceSent(closedEarly);
    if (!this.#hasSocketEnded) this.socketEnded();
    this.#overIfBothEnded();
  }

  /**
   * What the socket has brought in this turn of the event loop is sent at its end. So the reset comes after that: who answers
   * and breaks off at once has answered. What can't be sent then is dropped, as TCP does it.
   */
  #resetOnceSent(reason: string): void {
    setImmediate(() => this.reset(reason));
  }

  #toStream(chunk: Buffer): void {
    if (!this.#stream!.write(chunk)) this.#socket?.pause();
  }

  // --- to the socket -------------------------------------------------------------------------------------

  #toSocket(piece: Buffer): void {
    if (this.#isSocketClosed) return this.reset(closedEarly);
    this.bytesOut += piece.length;
    this.#send(piece);
    if (this.#unsent) this.#stream!.pause();
  }

  #send(piece: Buffer): void {
    const taken = Math.max(0, this.#socket?.write(piece) ?? 0);
    if (taken < piece.length) this.#unsent = piece.subarray(taken);
  }

  /** Sends a FIN. If the other side's FIN has come, nothing more is awaited. */
  #finishSocket(): void {
    if (this.#hasSocketEnded && !this.awaitsClose) this.#socket?.end();
    else this.#socket?.shutdown();
  }

  #streamEnded(): void {
    this.#hasStreamEnded = true;
    if (!this.#unsent && !this.#isSocketClosed) this.#finishSocket();
    this.#overIfBothEnded();
  }

  // --- its end -------------------------------------------------------------------------------------------

  #overIfBothEnded(): void {
    if (this.#isSocketClosed && this.#hasSocketEnded && this.#hasStreamEnded) this.#over();
  }

  /** Does nothing once both halves have ended: then only the socket has still to close. */
  #streamFailed(error?: Error): void {
    if (this.#hasSocketEnded && this.#hasStreamEnded) return;
    this.fail(error ?? new StreamError(resetCodes.cancelled, "the stream was cut off"));
  }

  protected fail(error: Error): void {
    if (this.#isOver) return;
    this.#over(error);
    if (this.#socket) this.cutOff(this.#socket, error);
  }

  /** Closes the socket, before its time. */
  protected cutOff(socket: Socket<Connection>, _error: Error): void {
    socket.terminate();
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
