/**
 * Asking the router by PCP (RFC 6887), and by its predecessor NAT-PMP (RFC 6886): one datagram each way, on one UDP port.
 * There are pure codecs, and a client for each. An answer counts only if it comes from the router's address and port to the
 * socket that asked; in PCP only with our nonce. For portmap.ts.
 *
 *   PCP MAP, both ways        version 2 | R, opcode 1 | reserved | result | lifetime u32
 *                             client address [16], or in answers epoch u32 and reserved [12]
 *                             nonce [12] | protocol u8 | reserved [3] | internal port u16 | external port u16
 *                             external address [16]
 *   NAT-PMP map, request      version 0 | opcode 2 (TCP) | reserved u16 | internal port u16 | external u16 | lifetime u32
 *                answer       version 0 | opcode 130 | result u16 | epoch u32 | internal u16 | external u16 | lifetime u32
 *   NAT-PMP address, request  version 0 | opcode 0
 *                answer       version 0 | opcode 128 | result u16 | epoch u32 | address [4]
 */
import {
  type Gateway,
  type Grant,
  type MappingClient,
  type MappingProtocol,
  NoAddressError,
  PortMapError,
  socketProblem,
} from "./gateway.ts";

/** A question is repeated after each of these pauses. A later answer still counts. */
const retryPausesMs = [250, 500, 1_000];
/** A router that has not answered by then counts as silent. */
export const silentAfterMs = retryPausesMs.reduce((sum, pauseMs) => sum + pauseMs);
/** RFC 6887 §7: longer ones are dropped. */
const maxPcpBytes = 1_100;
const pcpHeaderBytes = 24;
const pcpMapBytes = 60;
const pcpVersion = 2;
const natPmpVersion = 0;
const answerBit = 0x80;
const TCP = 6;
/** RFC 6886 §3.5: the router has no external address. */
const natPmpNetworkFailure = 3;

/** RFC 6887 §7.4. */
const pcpResults = [
  "SUCCESS",
  "UNSUPP_VERSION",
  "NOT_AUTHORIZED",
  "MALFORMED_REQUEST",
  "UNSUPP_OPCODE",
  "UNSUPP_OPTION",
  "MALFORMED_OPTION",
  "NETWORK_FAILURE",
  "NO_RESOURCES",
  "UNSUPP_PROTOCOL",
  "USER_EX_QUOTA",
  "CANNOT_PROVIDE_EXTERNAL",
  "ADDRESS_MISMATCH",
  "EXCESSIVE_REMOTE_PEERS",
];
/** RFC 6886 §3.5. */
const natPmpResults = [
  "success",
  "unsupported version",
  "not authorized",
  "network failure",
  "out of resources",
  "unsupported opcode",
];

export interface PcpMapRequest {
  /** 0: delete. */
  lifetimeS: number;
  /** Must be the source address of the datagram, or the router answers ADDRESS_MISMATCH (RFC 6887 §8.2). */
  clientAddress: string;
  /** 12 bytes. Whoever knows them may renew and delete the mapping. */
  nonce: Uint8Array;
  internalPort: number;
  /** The external port and address that we would like; 0 and 0.0.0.0 for any. */
  externalPort: number;
  externalAddress: string;
}
export type PcpAnswer =
  /** The router speaks NAT-PMP only (RFC 6887 Appendix A). */
  | { is: "nat-pmp" }
  | { is: "announce"; epochS: number }
  | { is: "refusal"; result: string; nonce?: Uint8Array }
  | ({ is: "map"; protocol: number; epochS: number } & Omit<PcpMapRequest, "clientAddress">);
export type NatPmpAnswer =
  | { is: "address"; epochS: number; address: string }
  | { is: "map"; epochS: number; internalPort: number; externalPort: number; lifetimeS: number }
  | { is: "refusal"; result: string; code: number };

/** The router's clock (seconds), and our own at the same moment (ms). */
export interface Epoch {
  epochS: number;
  atMs: number;
}

// --- codecs ----------------------------------------------------------------------------------------------

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** An IPv4 address as PCP writes it: IPv4-mapped (RFC 6887 §5). */
function mappedAddress(address: string): number[] {
  return [...new Uint8Array(10), 255, 255, ...address.split(".").map(Number)];
}

/** The IPv4 address in 16 bytes; undefined when it is IPv6. */
function unmappedAddress(bytes: Uint8Array): string | undefined {
  const isMapped = bytes.subarray(0, 12).every((byte, index) => byte === (index < 10 ? 0 : 255));
  return isMapped ? bytes.subarray(12, 16).join(".") : undefined;
}

/** A deletion suggests no port and the unspecified IPv4 address (RFC 6887 §15.1, erratum 3621). */
export function encodePcpMap(request: PcpMapRequest): Uint8Array {
  const isDeletion = request.lifetimeS === 0;
  const bytes = new Uint8Array(pcpMapBytes);
  const view = viewOf(bytes);
  bytes.set([pcpVersion, 1]);
  view.setUint32(4, request.lifetimeS);
  bytes.set(mappedAddress(request.clientAddress), 8);
  bytes.set(request.nonce, 24);
  view.setUint8(36, TCP);
  view.setUint16(40, request.internalPort);
  view.setUint16(42, isDeletion ? 0 : request.externalPort);
  bytes.set(mappedAddress(isDeletion ? "0.0.0.0" : request.externalAddress), 44);
  return bytes;
}

/** Undefined if it is no answer, or no answer to what we ask (RFC 6887 §8.3). */
export function decodePcp(bytes: Uint8Array): PcpAnswer | undefined {
  const view = viewOf(bytes);
  if (bytes.length >= 4 && bytes[0] === natPmpVersion && bytes[1]! & answerBit) return { is: "nat-pmp" };
  if (bytes.length < pcpHeaderBytes || bytes.length > maxPcpBytes || bytes.length % 4 !== 0) return undefined;
  if (bytes[0] !== pcpVersion) return undefined;
  const [opcode, code] = [bytes[1]! ^ answerBit, bytes[3]!];
  if (opcode > 1) return undefined;
  const nonce = bytes.length < pcpMapBytes ? undefined : bytes.slice(24, 36);
  if (code !== 0)
    return { is: "refusal", result: pcpResults[code] ?? `result ${code}`, ...(nonce && { nonce }) };
  const epochS = view.getUint32(8);
  if (opcode === 0) return { is: "announce", epochS };
  const externalAddress = nonce && unmappedAddress(bytes.subarray(44, 60));
  if (!nonce || externalAddress === undefined) return undefined;
  return {
    is: "map",
    epochS,
    nonce,
    externalAddress,
    lifetimeS: view.getUint32(4),
    protocol: view.getUint8(36),
    internalPort: view.getUint16(40),
    externalPort: view.getUint16(42),
  };
}

export const natPmpAddressRequest = new Uint8Array([natPmpVersion, 0]);

/** Lifetime 0 deletes; then the external port must be 0, too (RFC 6886 §3.4). */
export function encodeNatPmpMap(internalPort: number, externalPort: number, lifetimeS: number): Uint8Array {
  const bytes = new Uint8Array(12);
  const view = viewOf(bytes);
  bytes.set([natPmpVersion, 2]);
  view.setUint16(4, internalPort);
  view.setUint16(6, lifetimeS === 0 ? 0 : externalPort);
  view.setUint32(8, lifetimeS);
  return bytes;
}

/** Undefined if it is no answer, or no answer to what we ask. */
export function decodeNatPmp(bytes: Uint8Array): NatPmpAnswer | undefined {
  const view = viewOf(bytes);
  // RFC 6886 §3.5: a router without NAT-PMP may answer with another version.
  if (bytes.length < 8 || bytes[0] !== natPmpVersion || !(bytes[1]! & answerBit)) return undefined;
  const code = view.getUint16(2);
  if (code !== 0) return { is: "refusal", result: natPmpResults[code] ?? `result ${code}`, code };
  const [opcode, epochS] = [bytes[1]! ^ answerBit, view.getUint32(4)];
  if (opcode === 0 && bytes.length === 12)
    return { is: "address", epochS, address: bytes.subarray(8).join(".") };
  if (opcode !== 2 || bytes.length !== 16) return undefined;
  return {
    is: "map",
    epochS,
    internalPort: view.getUint16(8),
    externalPort: view.getUint16(10),
    lifetimeS: view.getUint32(12),
  };
}

/**
 * Whether the router has lost its mappings between two answers: its clock went back, or did not run as ours did
 * (RFC 6887 §8.5; RFC 6886 §3.6 is less strict).
 */
export function hasLostState(before: Epoch, now: Epoch): boolean {
  const clientS = (now.atMs - before.atMs) / 1_000;
  const serverS = now.epochS - before.epochS;
  if (serverS < -1) return true;
  return clientS + 2 < serverS - serverS / 16 || serverS + 2 < clientS - clientS / 16;
}

// --- asking ----------------------------------------------------------------------------------------------

interface Question<T> {
  packets: (localAddress: string) => Uint8Array[];
  /** Undefined for an answer to something else. Throws a {@link PortMapError} for a refusal. */
  accept: (answer: Uint8Array) => T | undefined;
}

/** Asks, and asks again after each pause, until an answer comes or the signal aborts. */
async function ask<T>(gateway: Gateway, { packets, accept }: Question<T>, signal: AbortSignal): Promise<T> {
  if (signal.aborted) throw new PortMapError("not asked");
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  promise.catch(() => {}); // it may be rejected before anyone waits for it
  const receive = (bytes: Uint8Array, port: number, address: string) => {
    // Between bind and connect the kernel takes datagrams from anyone.
    if (address !== gateway.address || port !== gateway.mappingPort) return;
    try {
      const answer = accept(bytes);
      if (answer !== undefined) resolve(answer);
    } catch (error) {
      reject(error);
    }
  };
  const socket = await openTo(gateway, receive, (error) => reject(socketProblem(error)));
  const pauses = retryPausesMs.values();
  let timer: NodeJS.Timeout | undefined;
  const send = () => {
    try {
      for (const packet of packets(socket.address.address)) socket.send(packet);
    } catch (error) {
      return reject(socketProblem(error));
    }
    const { value: pauseMs } = pauses.next();
    if (pauseMs !== undefined) timer = setTimeout(send, pauseMs);
  };
  const abort = () => reject(new PortMapError("no answer"));
  signal.addEventListener("abort", abort);
  try {
    if (signal.aborted) abort();
    else send();
    return await promise;
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
    socket.close();
  }
}

/** Sends it once, and waits for no answer. */
async function send(gateway: Gateway, { packets }: Question<unknown>): Promise<void> {
  const socket = await openTo(
    gateway,
    () => {},
    () => {},
  );
  try {
    for (const packet of packets(socket.address.address)) socket.send(packet);
  } catch (error) {
    throw socketProblem(error);
  } finally {
    socket.close();
  }
}

type Receive = (bytes: Uint8Array, port: number, address: string) => void;

/** A connected socket: the kernel drops what others send, and says if nothing listens there. */
async function openTo(
  { address, mappingPort }: Gateway,
  receive: Receive,
  onError: (error: unknown) => void,
): Promise<Bun.udp.ConnectedSocket<"buffer">> {
  try {
    return await Bun.udpSocket({
      connect: { hostname: address, port: mappingPort },
      socket: {
        data: (_, bytes, port, from) => receive(bytes, port, from),
        // Bun 1.4.5 calls error(error), where its types say error(socket, error).
        error: (...words: unknown[]) => onError(words.at(-1)),
      },
    });
  } catch (error) {
    throw socketProblem(error);
  }
}

/** What the router may hold for us. `unanswered`: we have asked, and it has not answered. */
type Held = "nothing" | "unanswered" | "granted";

/** What both protocols have in common. They differ in their questions, and in the answers that they accept. */
abstract class DatagramClient implements MappingClient {
  abstract readonly protocol: MappingProtocol;
  protected readonly internalPort: number;
  protected suggested = { externalAddress: "0.0.0.0", externalPort: 0 };
  readonly #gateway: Gateway;
  #held: Held = "nothing";

  constructor(gateway: Gateway, internalPort: number) {
    this.#gateway = gateway;
    this.internalPort = internalPort;
  }

  async map(lifetimeS: number, signal: AbortSignal): Promise<Grant> {
    if (this.#held === "nothing" && !signal.aborted) this.#held = "unanswered";
    const grant = await ask(this.#gateway, this.question(lifetimeS), signal);
    this.#held = "granted";
    if (grant.externalPort === 0 || grant.lifetimeS === 0) throw new PortMapError("it grants nothing");
    this.suggested = { externalAddress: grant.externalAddress, externalPort: grant.externalPort };
    return grant;
  }

  async unmap(signal: AbortSignal): Promise<void> {
    const held = this.#held;
    this.#held = "nothing";
    if (held === "unanswered") await send(this.#gateway, this.question(0));
    if (held === "granted") await ask(this.#gateway, this.question(0), signal);
  }

  /** Lifetime 0 deletes. */
  protected abstract question(lifetimeS: number): Question<Grant>;

  /** The router has refused. What it had granted before may still be there. */
  protected refuse(error: PortMapError): never {
    if (this.#held === "unanswered") this.#held = "nothing";
    throw error;
  }
}

export class PcpClient extends DatagramClient {
  readonly protocol = "pcp";
  readonly #nonce = crypto.getRandomValues(new Uint8Array(12));

  protected question(lifetimeS: number): Question<Grant> {
    const mapping = { lifetimeS, nonce: this.#nonce, internalPort: this.internalPort, ...this.suggested };
    return {
      packets: (clientAddress) => [encodePcpMap({ clientAddress, ...mapping })],
      accept: (bytes) => this.#accept(bytes),
    };
  }

  #accept(bytes: Uint8Array): Grant | undefined {
    const answer = decodePcp(bytes);
    if (!answer || answer.is === "announce") return undefined;
    if (answer.is === "nat-pmp") return this.refuse(new PortMapError("the router speaks NAT-PMP only"));
    if (answer.nonce && !Buffer.from(answer.nonce).equals(this.#nonce)) return undefined;
    if (answer.is === "refusal") return this.refuse(new PortMapError(answer.result));
    const { protocol, internalPort, externalAddress, externalPort, lifetimeS, epochS } = answer;
    if (protocol !== TCP || internalPort !== this.internalPort) return undefined;
    return { externalAddress, externalPort, lifetimeS, epochS };
  }
}

export class NatPmpClient extends DatagramClient {
  readonly protocol = "nat-pmp";

  /** Two questions: the answer to the first does not name the external address. */
  protected question(lifetimeS: number): Question<Grant> {
    const map = encodeNatPmpMap(this.internalPort, this.suggested.externalPort, lifetimeS);
    let externalAddress = lifetimeS === 0 ? "" : undefined;
    let mapped: Omit<Grant, "externalAddress"> | undefined;
    const accept = (bytes: Uint8Array): Grant | undefined => {
      const answer = decodeNatPmp(bytes);
      if (answer?.is === "refusal") return this.#refuse(answer);
      if (answer?.is === "address") externalAddress = answer.address;
      if (answer?.is === "map" && answer.internalPort === this.internalPort) {
        const { externalPort, lifetimeS, epochS } = answer;
        mapped = { externalPort, lifetimeS, epochS };
      }
      return externalAddress !== undefined && mapped ? { externalAddress, ...mapped } : undefined;
    };
    return { packets: () => (lifetimeS === 0 ? [map] : [natPmpAddressRequest, map]), accept };
  }

  #refuse({ result, code }: NatPmpAnswer & { is: "refusal" }): never {
    return this.refuse(code === natPmpNetworkFailure ? new NoAddressError() : new PortMapError(result));
  }
}

/** The router's clock in an announcement to all hosts, of either protocol (RFC 6887 §14.1, RFC 6886 §3.2.1). */
export function decodeAnnouncement(bytes: Uint8Array): number | undefined {
  const answer = bytes[0] === natPmpVersion ? decodeNatPmp(bytes) : decodePcp(bytes);
  return answer?.is === "announce" || answer?.is === "address" ? answer.epochS : undefined;
}
