/**
 * The control channel: the TCP connection to the introducer. It is made by FFI, on a local port that further sockets can
 * share, and then handed to Bun. Owns its descriptor and its silence timer, and cuts what comes into messages. It never
 * decides what a message means, and prints nothing. For native/participant/registration.ts.
 *
 * RFC 5382 §5 (how long a NAT remembers a connection), RFC 9293 §3.8.4 (keepalive).
 */
import type { Socket as BunSocket } from "bun";
import {
  canonicalAddress,
  controlSilenceMs,
  encode,
  LineDecoder,
  parseToParticipant,
  Refusal,
  UserError,
  type Endpoint,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import { giveUpAfter, SystemError } from "./libc.ts";
import {
  type Connected,
  connectToFirst,
  resolve,
  takeBegun,
  Unreachable,
  type Wanted,
} from "./connecting.ts";
import { connectFrom, handOver, inWords, type Socket } from "./socket.ts";

/** TCP keepalive: it keeps the NAT's mapping, and notices when the mapping is gone. */
const keepaliveMs = 5_000;
/** While something that was sent is not acknowledged there is no keepalive: then it ends after so long. */
const unacknowledgedMs = 10_000;
/**
 * Bytes that may wait until the introducer reads: the longest `register`, and some hundred reports and answers. The kernel
 * holds at least as much beside them.
 */
const maxUnsentBytes = 256 * 1024;
/** How long the introducer may take to answer a `verify`. */
const verifyTimeoutMs = 3_000;

const noAnswer = "no answer";
const connectFailures: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to that network",
  ETIMEDOUT: noAnswer,
};

/** None of the addresses of a host may be visited. */
export class NotAdmitted extends UserError {}

/** One connection to the introducer. Its one user sets `onMessage` and `onClose` before the first `await`. */
export class ControlChannel {
  readonly remote: Endpoint;
  readonly port: number;
  onMessage: (message: ToParticipant) => void = () => {};
  /** Whether the network broke it, and not the introducer. */
  isBroken = false;
  readonly #decoder = new LineDecoder();
  readonly #silence: NodeJS.Timeout;
  /** What the kernel has not taken yet. */
  #unsent: Uint8Array[] = [];
  #unsentBytes = 0;
  #socket: BunSocket | undefined;
  #onClose: (reason: string) => void = () => {};
  /** Why it is closed; undefined while it is open. */
  #end: string | undefined;

  private constructor(remote: Endpoint, port: number) {
    this.remote = remote;
    this.port = port;
    this.#silence = setTimeout(
      () => this.#broken(`nothing heard from it for ${controlSilenceMs / 1000} s`),
      controlSilenceMs,
    );
  }

  /**
   * Connects to that address of the host that `mayVisit` admits and that accepts first. Rejects with a {@link UserError}; its
   * text contains `startCommand`, the command that starts an introducer.
   */
  static async open(
    wanted: Wanted,
    startCommand: string,
    mayVisit?: (remote: Endpoint) => boolean,
  ): Promise<ControlChannel> {
    let channel: ControlChannel | undefined;
    try {
      const { socket, port: localPort, remote } = await connect(wanted, mayVisit);
      channel = new ControlChannel(remote, localPort);
      await channel.#adopt(socket);
      return channel;
    } catch (error) {
      channel?.close("it can't be used");
      const failures = failuresOf(error, channel?.remote);
      if (!failures) throw error;
      const firewall = failures.includes(noAnswer)
        ? `, and does a firewall there let TCP port ${wanted.port} in`
        : "";
      const next = `Is it running (\`${startCommand} ${wanted.port}\`) and is that its address${firewall}?`;
      throw new UserError(`cannot reach the introducer at ${failures}. ${next}`, {
        cause: error,
        code: "no-introducer",
      });
    }
  }

  async #adopt(socket: Socket): Promise<void> {
    giveUpAfter(socket.fd, unacknowledgedMs);
    await handOver(socket, {
      open: (opened) => {
        this.#socket = opened;
        // When our address or the NAT's has changed, the introducer's host answers a keepalive probe with RST.
        opened.setKeepAlive(true, keepaliveMs);
      },
      data: (_, chunk) => this.#read(chunk),
      drain: () => this.#flush(),
      end: () => this.close("it closed the connection"),
      close: (_, error) => (error ? this.#broken(inWords(error)) : this.close("it closed the connection")),
      error: (_, error) => this.#broken(inWords(error)),
    });
  }

  /** The address that our host uses towards the introducer. */
  get localAddress(): string | undefined {
    const address = this.#socket?.localAddress;
    return address === undefined ? undefined : canonicalAddress(address)?.address;
  }

  /** Does nothing once the channel is closed. */
  send(message: ToIntroducer): void {
    if (this.#isClosed) return;
    const bytes = new TextEncoder().encode(encode(message));
    this.#unsent.push(bytes);
    this.#unsentBytes += bytes.length;
    // With more than one, the kernel is full: `drain` says when it takes more.
    if (this.#unsent.length === 1) this.#flush();
    if (this.#unsentBytes > maxUnsentBytes) this.#giveUp("it does not read what we send");
  }

  /** Called once, with a reason for people. Called at once if the channel is closed already. */
  set onClose(told: (reason: string) => void) {
    this.#onClose = told;
    if (this.#end !== undefined) told(this.#end);
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#end = reason;
    clearTimeout(this.#silence);
    this.#socket?.end();
    this.#onClose(reason);
  }

  get #isClosed(): boolean {
    return this.#end !== undefined;
  }

  #broken(reason: string): void {
    this.isBroken = true;
    this.#giveUp(reason);
  }

  /** Closes without waiting for bytes that can't be sent. */
  #giveUp(reason: string): void {
    this.close(reason);
    this.#socket?.terminate();
  }

  #flush(): void {
    if (this.#isClosed || this.#unsentBytes === 0) return;
    const all = this.#unsent.length === 1 ? this.#unsent[0]! : Buffer.concat(this.#unsent);
    const written = Math.max(0, this.#socket?.write(all) ?? 0);
    this.#unsentBytes -= written;
    this.#unsent = written < all.length ? [all.subarray(written)] : [];
  }

  #read(chunk: Uint8Array): void {
    this.#silence.refresh();
    try {
      for (const line of this.#decoder.push(chunk)) {
        if (!this.#isClosed) this.onMessage(parseToParticipant(line));
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.close(
        `it sent what is not in the protocol (${error.message}): is that an introducer of this version?`,
      );
    }
  }
}

function connect(wanted: Wanted, mayVisit: ((remote: Endpoint) => boolean) | undefined): Promise<Connected> {
  return (mayVisit ? undefined : takeBegun(wanted)) ?? connectAnew(wanted, mayVisit);
}

async function connectAnew(
  { host, port, localPort, signal }: Wanted,
  mayVisit: (remote: Endpoint) => boolean = () => true,
): Promise<Connected> {
  const remotes = (await resolve(host, port)).filter(mayVisit);
  if (remotes.length > 0) return connectToFirst(remotes, localPort, signal);
  throw new NotAdmitted(`no introducer may send us to ${host} port ${port}, or not this often`);
}

/** Which addresses failed, and why; undefined if it is another error. */
function failuresOf(error: unknown, connected: Endpoint | undefined): string | undefined {
  const isLate = error instanceof SystemError && connected !== undefined;
  const failures = isLate ? [{ remote: connected, code: error.code }] : undefined;
  const all = error instanceof Unreachable ? error.failures : failures;
  return all?.map(({ remote, code }) => `${remote}: ${connectFailures[code] ?? code}`).join("; ");
}

/**
 * Sends one line from the shared port in the introducer's other address family, so that it sees our endpoint there. The
 * introducer says whether the line has come. Does nothing on a host without that family.
 */
export async function verify(port: number, introducer: Endpoint, token: string): Promise<void> {
  try {
    using socket = await connectFrom(port, introducer, verifyTimeoutMs);
    const { promise, resolve: done } = Promise.withResolvers<void>();
    const handlers = { data: () => done(), end: () => done(), close: () => done(), error: () => done() };
    const connection = await handOver(socket.closeAbortively(), handlers);
    const timer = setTimeout(done, verifyTimeoutMs);
    connection.write(encode({ type: "verify", token }));
    await promise;
    clearTimeout(timer);
    connection.terminate();
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
  }
}
