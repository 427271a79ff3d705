/**
 * SOCKS5 (RFC 1928) as a forward speaks it with its clients: CONNECT without authentication, and nothing else. Owns what a
 * client has said before its connection is joined to a stream. No name is looked up here: the peer does it. For
 * native/uses/forward.ts and serve.ts.
 *
 *   client   05 n methods…                  we         05 00, or 05 ff if the client can't do without authentication
 *   client   05 01 00 type address port     the peer   05 00 00 01 0.0.0.0 0 on the stream, once it has connected
 *                                           we         05 why 00 01 0.0.0.0 0 if the stream was reset before
 *
 * The purpose of the stream is `{"use":"socks","host":…,"port":…}`. What follows is as with a forward.
 */
import type { Socket } from "bun";
import { Refusal } from "../../protocol.ts";
import { resetCodes, StreamError } from "../session/stream.ts";
import { Connection } from "./connection.ts";
import { readPurposeTarget, type TcpTarget } from "./target.ts";

/** How long a client may take to say what it wants. */
const defaultPatienceMs = 10_000;
const version = 5;
const commandConnect = 1;
/** RFC 1928 §5: the kinds of address. */
const [ipv4, domain, ipv6] = [1, 3, 4];

/** RFC 1928 §6: the field REP. */
const replies = {
  connected: 0,
  failed: 1,
  "not-allowed": 2,
  "no-network": 3,
  unreachable: 4,
  refused: 5,
  "no-such-command": 7,
  "no-such-address": 8,
} as const;

/** Where it has connected from is the peer's own affair, and no client needs it: BND.ADDR and BND.PORT are 0. */
const reply = (why: keyof typeof replies): Buffer =>
  Buffer.from([version, replies[why], 0, ipv4, 0, 0, 0, 0, 0, 0]);

/** What the peer sends before all else. */
export const connected = reply("connected");

/** What a client is told if its stream was reset by that code before. */
const whyReset: Readonly<Record<number, keyof typeof replies>> = {
  [resetCodes.refused]: "not-allowed",
  [resetCodes.unreachable]: "unreachable",
  [resetCodes["nobody-listens"]]: "refused",
  [resetCodes["link-ended"]]: "no-network",
};

/** The message of an error where the client takes this for something else. */
export const otherProtocol = "it does not speak SOCKS5";

/** A client has said what can't be done. */
export class SocksError extends Error {
  /** What it is told. */
  readonly answer: Buffer;
  constructor(answer: Buffer, message: string) {
    super(message);
    this.answer = answer;
  }
}

/** How long the greeting is; undefined if more of it must come. */
function greetingLength(bytes: Buffer): number | undefined {
  if (bytes.length > 0 && bytes[0] !== version) throw new SocksError(Buffer.alloc(0), otherProtocol);
  const length = 2 + (bytes[1] ?? 0);
  if (bytes.length < 2 || bytes.length < length) return undefined;
  if (bytes.subarray(2, length).includes(0)) return length;
  throw new SocksError(Buffer.from([version, 0xff]), "it wants to be authenticated, which is not done here");
}

/** Where it wants to go, and how long that was; undefined if more of it must come. */
function readRequest(bytes: Buffer): { target: TcpTarget; length: number } | undefined {
  if (bytes.length < 5) return undefined;
  const [said, command, , kind, size] = bytes as unknown as number[];
  if (said !== version) throw new SocksError(reply("failed"), otherProtocol);
  if (command !== commandConnect)
    throw new SocksError(reply("no-such-command"), `it wants command ${command} of SOCKS5`);
  if (kind !== ipv4 && kind !== domain && kind !== ipv6)
    throw new SocksError(reply("no-such-address"), `it has an address of kind ${kind}`);
  const [start, end] = kind === domain ? [5, 5 + size!] : [4, kind === ipv4 ? 8 : 20];
  if (bytes.length < end + 2) return undefined;
  const host = hostOf(kind, bytes.subarray(start, end));
  try {
    const target = readPurposeTarget({ host, port: bytes.readUInt16BE(end) }) as TcpTarget;
    return { target, length: end + 2 };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    throw new SocksError(reply("unreachable"), `it wants to go where nobody can: ${error.message}`);
  }
}

function hostOf(kind: number, address: Buffer): string {
  if (kind === domain) return address.toString("latin1");
  if (kind === ipv4) return address.join(".");
  return Array.from({ length: 8 }, (_, at) => address.readUInt16BE(2 * at).toString(16)).join(":");
}

/** Reads what a client says. It holds less than a greeting or a request, 262 bytes. */
export class SocksReader {
  readonly #say: (answer: Buffer) => void;
  #isGreeted = false;
  #held: Buffer = Buffer.alloc(0);

  /** `say`: tells the client something. */
  constructor(say: (answer: Buffer) => void) {
    this.#say = say;
  }

  /** Where the client wants to go, once it has said that, and what came behind. Throws a {@link SocksError}. */
  push(chunk: Buffer): { target: TcpTarget; rest: Buffer } | undefined {
    this.#held = Buffer.concat([this.#held, chunk]);
    if (!this.#isGreeted) {
      const length = greetingLength(this.#held);
      if (length === undefined) return undefined;
      this.#say(Buffer.from([version, 0]));
      this.#isGreeted = true;
      this.#held = this.#held.subarray(length);
    }
    const request = readRequest(this.#held);
    return request && { target: request.target, rest: this.#held.subarray(request.length) };
  }
}

/** The connection of a client. Once, it asks for a stream by `onTarget`; then it is as any other. */
export class SocksConnection extends Connection {
  readonly #onTarget: (target: TcpTarget) => void;
  readonly #timer: Timer;
  #socket: Socket<Connection> | undefined;
  /** Undefined once it has said all. */
  #reader: SocksReader | undefined = new SocksReader((answer) => void this.#socket?.write(answer));

  constructor(onTarget: (target: TcpTarget) => void, patienceMs = defaultPatienceMs) {
    super();
    this.#onTarget = onTarget;
    const late = `it did not say within ${patienceMs / 1000} s what it wants`;
    this.#timer = setTimeout(() => this.fail(new SocksError(Buffer.alloc(0), late)), patienceMs).unref();
  }

  override socketOpened(socket: Socket<Connection>): void {
    this.#socket = socket;
    super.socketOpened(socket);
    if (!this.isOver) socket.resume();
  }

  override socketBrought(chunk: Buffer): void {
    if (!this.#reader || this.isOver) return super.socketBrought(chunk);
    try {
      const said = this.#reader.push(chunk);
      if (!said) return;
      clearTimeout(this.#timer);
      this.#reader = undefined;
      this.#socket?.pause();
      if (said.rest.length > 0) super.socketBrought(said.rest);
      this.#onTarget(said.target);
    } catch (error) {
      if (!(error instanceof SocksError)) throw error;
      this.fail(error);
    }
  }

  override socketEnded(): void {
    if (!this.#reader) return super.socketEnded();
    this.fail(new SocksError(Buffer.alloc(0), "it went away before it said what it wants"));
  }

  /** Whoever has not been told that it is connected is told why not. */
  protected override cutOff(socket: Socket<Connection>, error: Error): void {
    clearTimeout(this.#timer);
    const answer = this.bytesOut > 0 ? undefined : answerTo(error);
    if (answer) socket.end(answer);
    else super.cutOff(socket, error);
  }
}

function answerTo(error: Error): Buffer | undefined {
  if (error instanceof SocksError) return error.answer.length > 0 ? error.answer : undefined;
  return reply((error instanceof StreamError && whyReset[error.code]) || "failed");
}
