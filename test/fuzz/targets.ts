/**
 * What is fuzzed: everything of ours that reads bytes of strangers. Each target takes any bytes, throws what its reader may
 * throw, and asserts what holds of what was accepted: to be written and read again unchanged, however it is cut, within
 * its bounds.
 */
import { isUtf8 } from "node:buffer";
import { existsSync } from "node:fs";
import { normalize } from "node:path";
import { nameHere, numbered, pathProblem, unfinished } from "../../native/uses/filename.ts";
import { reasonOf, sha256Of } from "../../native/uses/files.ts";
import { readOfferHead, storedName } from "../../native/uses/offer.ts";
import {
  decodeCount,
  decodeCredit,
  decodeHello,
  decodePurpose,
  decodeReset,
  encodeCount,
  encodeCredit,
  encodeFinish,
  encodeFrame,
  encodeHello,
  encodeOpen,
  encodeReset,
  frame,
  FrameDecoder,
  maxDataBytes,
  maxPurposeBytes,
  ProtocolError,
} from "../../native/session/frame.ts";
import { StateError } from "../../native/host/state.ts";
import { makeIdentity, parseIdentity } from "../../native/secure/identity.ts";
import { encodeChunk, encodeMessage, type Message, MessageDecoder } from "../../native/uses/message.ts";
import { DatagramReader } from "../../native/uses/flow.ts";
import { SocksError, SocksReader } from "../../native/uses/socks.ts";
import { readPurposeTarget } from "../../native/uses/target.ts";
import { readNeighbour, readNotice } from "../../native/introducer/redis/homes.ts";
import { decodeSockaddr, encodeSockaddr } from "../../native/host/sockaddr.ts";
import {
  encode,
  type Endpoint,
  LineDecoder,
  type LinkLine,
  maxLineBytes,
  parseEndpoint,
  parseLinkLine,
  parsePlace,
  parseToIntroducer,
  parseToParticipant,
  parseToPeer,
  type Peer,
  printable,
  Refusal,
  splitEndpoint,
  type ToIntroducer,
  type ToParticipant,
  type ToPeer,
} from "../../protocol.ts";
import { jsonLine } from "../../native/terminal/text.ts";

export interface Target {
  readonly name: string;
  readonly samples: readonly Uint8Array[];
  /** Reads the input; throws an {@link Broken} for what must never be, or what the reader throws. */
  read(input: Buffer): void;
  /** Whether the reader may throw that. */
  mayThrow(error: unknown): boolean;
}

/** A property that does not hold. */
export class Broken extends Error {}

function expectSame(what: string, a: unknown, b: unknown): void {
  const [left, right] = [JSON.stringify(a), JSON.stringify(b)];
  if (left === right) return;
  const short = (json = "nothing") => (json.length > 300 ? `${json.slice(0, 300)}… (${json.length})` : json);
  throw new Broken(`${what}: ${short(left)} became ${short(right)}`);
}

const bytesOf = (text: string) => new TextEncoder().encode(text);
const at = (text: string) => text as Endpoint;
const isRefusal = (error: unknown) => error instanceof Refusal;
const never = () => false;

// --- messages --------------------------------------------------------------------------------------------

const token = "00112233445566778899aabbccddeeff";
const fingerprint = "ab".repeat(32);
const ends = { local: at("192.168.1.5:40000"), remote: at("[2001:db8::7]:5000") };
const peer: Peer = {
  id: 7,
  name: "zoë",
  instance: "0011223344556677",
  fingerprint,
  proof: fingerprint,
  private: [at("192.168.1.5:40000"), at("[fd00::5]:40000")],
  public: at("203.0.113.7:40000"),
  otherPublic: at("[2001:db8::7]:40000"),
  mapped: at("203.0.113.7:40001"),
  mapping: "sequential",
  roundTripMs: 20,
  since: 1_700_000_000_000,
};
const own = { id: 7, name: "zoë", room: "lobby", public: peer.public, private: peer.private };
const schedule = { startInMs: 20, way: "predicted", round: 2, last: false, deadlineMs: 900 } as const;

/** One of each kind: a kind without a sample is a type error. */
type Samples<Union extends { type: string }> = { [M in Union as M["type"]]: M };

const toIntroducer: Samples<ToIntroducer> = {
  register: {
    type: "register",
    version: 2,
    name: "zoë",
    room: "lobby",
    instance: peer.instance,
    fingerprint,
    private: peer.private,
    proof: fingerprint,
    links: [{ peer: peer.instance, route: "public" }],
    direct: true,
    mapping: "sequential",
    wants: ["bob", "zoë"],
  },
  verify: { type: "verify", token },
  relay: { type: "relay", token },
  probe: { type: "probe", token, peer: 7, step: -1 },
  connect: { type: "connect", peer: 7, relay: false },
  linked: { type: "linked", peer: 7, token, route: "birthday", ...ends },
  unlinked: { type: "unlinked", peer: 7, reason: "peer-restarted" },
  failed: { type: "failed", peer: 7, token, reason: "timed-out" },
  mapping: { type: "mapping", mapping: "sequential", prediction: { endpoint: peer.public, step: 2 } },
  mapped: { type: "mapped", endpoint: peer.public },
  measured: { type: "measured", token, prediction: { endpoint: peer.public, step: -1 } },
  "connect-back": { type: "connect-back" },
  echo: { type: "echo", text: "Grüße 👋" },
  pong: { type: "pong", id: 3 },
  rename: { type: "rename", name: "alice", proof: "ab".repeat(32) },
  update: { type: "update", private: peer.private },
};

const toParticipant: Samples<ToParticipant> = {
  registered: {
    type: "registered",
    ...own,
    probePorts: [7001, 7002],
    alternates: [at("203.0.113.8:7001")],
    probeToken: token,
    verify: { endpoint: at("[2001:db8::1]:7000"), token },
    relay: { rate: 1024, total: 4096 },
    roundTripMs: 23,
  },
  observed: { type: "observed", endpoint: peer.public },
  peers: { type: "peers", peers: [peer, peer], more: false },
  joined: { type: "joined", peer },
  updated: { type: "updated", id: 7, mapping: "random", mapped: null, roundTripMs: 3 },
  left: { type: "left", id: 7 },
  renamed: { type: "renamed", name: "alice" },
  measure: { type: "measure", peer, role: "controlling", token, way: "fresh" },
  punch: {
    type: "punch",
    peer,
    role: "controlling",
    token,
    ...schedule,
    own: { endpoint: peer.public, step: 1 },
    theirs: { endpoint: peer.public, step: 256 },
  },
  relay: { type: "relay", peer, role: "controlled", token },
  elsewhere: { type: "elsewhere", host: "two.example.org", port: 7000 },
  relaying: { type: "relaying", rate: 1048576 },
  filtering: { type: "filtering", filtering: "dropped", elsewhere: "let-in" },
  failed: { type: "failed", peer: 7, token, reason: "peer-left" },
  notice: { type: "notice", text: "back at noon" },
  echo: { type: "echo", text: "hello" },
  ping: { type: "ping", id: 1 },
  refused: {
    type: "refused",
    code: "limit",
    message: "wait 3 s",
    request: "connect",
    peer: 7,
    name: "zoë-2",
  },
  bye: { type: "bye", reason: "the introducer was stopped", retryInMs: 700 },
};

const toPeer: Samples<ToPeer> = {
  nominate: { type: "nominate", token, proof: "0".repeat(64) },
  nominated: { type: "nominated", proof: "0".repeat(64) },
};

const linkLines: Samples<LinkLine> = {
  say: { type: "say", id: 1, text: "hello" },
  heard: { type: "heard", id: 1 },
  ping: { type: "ping", id: 2 },
  pong: { type: "pong", id: 2 },
};

const text = new TextDecoder();

/** What is accepted is written and read again, and is the same. */
function messages<Union extends ToIntroducer | ToParticipant | ToPeer | LinkLine>(
  name: string,
  samples: Samples<Union>,
  parse: (line: string) => Union,
): Target {
  return {
    name,
    samples: Object.values<Union>(samples).map((sample) => bytesOf(encode(sample).trimEnd())),
    read(input) {
      const message = parse(text.decode(input));
      const line = encode(message);
      expectSame("a message read again", message, parse(line.trimEnd()));
      if (/\\ud[89a-f]/.test(line)) throw new Broken("half a character was accepted");
    },
    mayThrow: isRefusal,
  };
}

// --- lines and frames ------------------------------------------------------------------------------------

/** What a reader makes of chunks, and why it gave up. */
function outcome(chunks: Buffer[], push: (chunk: Buffer, seen: string[]) => void): string[] {
  const seen: string[] = [];
  try {
    for (const chunk of chunks) push(chunk, seen);
  } catch (error) {
    if (!(error instanceof Refusal) && !(error instanceof ProtocolError)) throw error;
    seen.push(`then: ${error.message}`);
  }
  return seen;
}

/** In places that the input itself names, so that they are the same the next time. */
function cut(input: Buffer): Buffer[] {
  const chunks: Buffer[] = [];
  for (let from = 0; from < input.length;) {
    const to = from + 1 + (input[from]! % 11) * (chunks.length < 64 ? 1 : 4096);
    chunks.push(Buffer.from(input.subarray(from, to)));
    from = to;
  }
  return chunks;
}

const lines: Target = {
  name: "line decoder",
  samples: [
    bytesOf(Object.values<ToParticipant>(toParticipant).map(encode).join("")),
    bytesOf(Object.values<ToIntroducer>(toIntroducer).map(encode).join("").replaceAll("\n", "\r\n")),
    bytesOf("x".repeat(maxLineBytes - 2) + "\n" + "y".repeat(100)),
  ],
  read(input) {
    const read = (chunks: Buffer[]) => {
      const decoder = new LineDecoder();
      return outcome(chunks, (chunk, seen) => {
        for (const line of decoder.push(chunk)) seen.push(line);
        if (decoder.pendingBytes > maxLineBytes) throw new Broken(`${decoder.pendingBytes} bytes held`);
      });
    };
    expectSame("lines, however they are cut", read([input]), read(cut(input)));
  },
  mayThrow: never,
};

const hello = { status: 1, epoch: 2, sessionId: token, processed: 3 };

function readFrame(type: number, payload: Buffer): unknown {
  if (payload.length > maxPurposeBytes) throw new Broken(`a payload of ${payload.length} bytes was held`);
  if (type === frame.open) {
    const purpose = decodePurpose(payload);
    if (!isUtf8(payload)) throw new Broken("a purpose that is no text was accepted");
    return purpose;
  }
  if (type === frame.credit) return decodeCredit(payload);
  if (type === frame.reset) return decodeReset(payload);
  if (type === frame.resume || type === frame.resumed) return decodeHello(payload);
  if (payload.length === 8) return decodeCount(payload);
  return payload.toString("hex");
}

const frames: Target = {
  name: "frame decoder",
  samples: [
    encodeOpen(1, { for: "lines", name: "zoë" }),
    encodeFrame(frame.data, Buffer.alloc(300, "abc"), 3),
    encodeCredit(5, 65_536),
    encodeFrame(frame.end, Buffer.alloc(0), 7),
    encodeReset(9, 2, "no"),
    encodeFinish("bye"),
    Buffer.concat([encodeCount(frame.ack, 2 ** 32 + 1), encodeCount(frame.ping, 5), encodeCredit(1, 1)]),
    Buffer.concat([encodeHello(frame.resume, hello), encodeCount(frame.start, 0), encodeOpen(2, {})]),
    encodeHello(frame.resumed, hello),
    encodeCount(frame.rewind, 3),
    // Of such as are longer than they may be, what decides that: nothing of them may be held.
    encodeFrame(frame.open, Buffer.alloc(maxPurposeBytes + 1, "{"), 1).subarray(0, 300),
    encodeFrame(frame.data, Buffer.alloc(maxDataBytes + 1), 1).subarray(0, 300),
  ],
  read(input) {
    const read = (chunks: Buffer[]) => {
      const pieces: Buffer[] = [];
      let bytes = 0;
      let seenNow: string[] = [];
      const decoder = new FrameDecoder({
        onPiece(stream, piece, position, isLast) {
          if (position + piece.length > maxDataBytes) throw new Broken("a data frame beyond its bound");
          if (position !== bytes) throw new Broken(`a piece at ${position}`);
          pieces.push(Buffer.from(piece));
          bytes = isLast ? 0 : bytes + piece.length;
          if (isLast) seenNow.push(`data ${stream} ${Buffer.concat(pieces.splice(0)).toString("hex")}`);
        },
        onFrame: (type, stream, payload) =>
          void seenNow.push(`${type} ${stream} ${JSON.stringify(readFrame(type, payload))}`),
      });
      return outcome(chunks, (chunk, seen) => {
        seenNow = seen;
        decoder.push(chunk);
      });
    };
    expectSame("frames, however they are cut", read([input]), read(cut(input)));
  },
  mayThrow: never,
};

const datagrams: Target = {
  name: "datagram reader",
  samples: [
    Buffer.from([0, 3, 97, 98, 99, 0, 0, 0, 1, 100]),
    Buffer.from([255, 255, 255, 254, 0, 0, 0, 7, 0, 2, 1, 2]),
    Buffer.concat([Buffer.from([255, 227]), Buffer.alloc(70_000, "x")]),
  ],
  read(input) {
    const read = (chunks: Buffer[]) => {
      const seen: string[] = [];
      const reader = new DatagramReader({
        datagram: (bytes) => void seen.push(bytes.toString("hex")),
        dropped: (count) => void seen.push(`dropped ${count}`),
        refused: () => void seen.push("refused"),
      });
      for (const chunk of chunks) {
        const problem = reader.read(chunk);
        if (problem !== undefined) return [...seen, `then: ${problem}`];
      }
      return seen;
    };
    expectSame("datagrams, however they are cut", read([input]), read(cut(input)));
  },
  mayThrow: never,
};

const socks: Target = {
  name: "clients of SOCKS5",
  samples: [
    Buffer.from([5, 1, 0, 5, 1, 0, 3, 9, ...Buffer.from("localhost"), 0, 80, ...Buffer.from("GET /")]),
    Buffer.from([5, 2, 2, 0, 5, 1, 0, 1, 127, 0, 0, 1, 31, 144]),
    Buffer.from([5, 1, 0, 5, 1, 0, 4, ...Buffer.alloc(15), 1, 1, 187]),
  ],
  read(input) {
    const read = (chunks: readonly Uint8Array[]): string[] => {
      const said: string[] = [];
      const reader = new SocksReader((answer) => said.push(answer.toHex()));
      for (const [index, chunk] of chunks.entries()) {
        try {
          const request = reader.push(Buffer.from(chunk));
          if (!request) continue;
          readPurposeTarget({ ...request.target });
          const rest = Buffer.concat([request.rest, ...chunks.slice(index + 1)]);
          return [...said, JSON.stringify(request.target), rest.toHex()];
        } catch (error) {
          if (!(error instanceof SocksError)) throw error;
          return [...said, error.answer.toHex(), error.message];
        }
      }
      return said;
    };
    expectSame("SOCKS5, however it is cut", read([input]), read(cut(input)));
  },
  mayThrow: never,
};

// --- files and pipes -------------------------------------------------------------------------------------

const sha256 = "cd".repeat(32);
const uses: Target = {
  name: "files and pipes",
  samples: [
    Buffer.concat([
      encodeMessage({ type: "file", path: "photos/zoë (2).jpg", bytes: 300, mode: 0o644, modifiedMs: 1 }),
      encodeMessage({ type: "from", bytes: 100 }),
      encodeChunk(200),
      Buffer.alloc(200, "abc\n"),
      encodeMessage({ type: "end", sha256 }),
    ]),
    encodeMessage({ type: "have", bytes: 100, sha256, name: "photos", files: 3 }),
    encodeMessage({ type: "failed", reason: "it is gone", host: "[::1]", port: 8000 }),
  ],
  read(input) {
    const read = (chunks: Buffer[]) => {
      const decoder = new MessageDecoder();
      let raw = "";
      const seen = outcome(chunks, (chunk, seenNow) => {
        for (const part of decoder.push(chunk))
          if (Buffer.isBuffer(part)) raw += part.toString("latin1");
          else seenNow.push(JSON.stringify(part), ...readUse(part));
      });
      return [...seen, raw];
    };
    expectSame("messages, however they are cut", read([input]), read(cut(input)));
  },
  mayThrow: never,
};

/** Whether it is one name, which a disk takes, a terminal does not obey, and no unfinished file has. */
function mayBeStored(name: string): boolean {
  const isOne = name !== "" && name !== "." && name !== ".." && !/[\/\p{Cc}]/u.test(name);
  return isOne && Buffer.byteLength(name) <= 255 && unfinished(name) === undefined;
}

/** What every reader of such a message makes of it. */
function readUse(message: Message): string[] {
  const path = typeof message.path === "string" ? message.path : "x";
  if (pathProblem(path) === undefined) {
    if (!normalize(`/folder/${path}`).startsWith("/folder/")) throw new Broken(`${path} leaves the folder`);
    for (const name of path.split("/"))
      for (const stored of [nameHere(name), nameHere(storedName(name)), numbered(nameHere(name), 9_999)])
        if (!mayBeStored(stored)) throw new Broken(`${JSON.stringify(stored)}, of ${JSON.stringify(name)}`);
  }
  return [readOfferHead, sha256Of, reasonOf, readPurposeTarget].map((read) => {
    try {
      return JSON.stringify(read(message));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      return error.message;
    }
  });
}

// --- records in Redis ------------------------------------------------------------------------------------

const records: Target = {
  name: "records in Redis",
  samples: ["203.0.113.7:7000 12 3 5000000", JSON.stringify({ by: "203.0.113.7:7000", text: "at noon" })].map(
    bytesOf,
  ),
  read(input) {
    const words = text.decode(input);
    const read = readNeighbour(words);
    if (read) {
      const { address, participants, rooms, firstId } = read;
      const again = readNeighbour([address, participants, rooms, firstId].join(" "));
      expectSame("an introducer read again", read, again);
      parsePlace(address);
    }
    const said = readNotice(words);
    if (said) expectSame("a notice read again", said, readNotice(JSON.stringify(said)));
  },
  mayThrow: never,
};

// --- addresses -------------------------------------------------------------------------------------------

const sockaddrs: Target = {
  name: "sockaddr",
  samples: ["203.0.113.7:40000", "[2001:db8::7]:65535", "[::ffff:10.0.0.1]:1", "127.0.0.1:80"].map((one) =>
    encodeSockaddr(splitEndpoint(parseEndpoint(one)!)),
  ),
  read(input) {
    const padded = Buffer.alloc(128); // what the kernel is given to write to
    input.copy(padded);
    const endpoint = decodeSockaddr(padded);
    expectSame("an endpoint read again", endpoint, decodeSockaddr(encodeSockaddr(splitEndpoint(endpoint))));
  },
  mayThrow: (error) => error instanceof RangeError && /not an endpoint|address family/.test(error.message),
};

const endpoints: Target = {
  name: "endpoints, text",
  samples: [
    "203.0.113.7:40000",
    "[2001:db8::7]:40000",
    "[::ffff:1.2.3.4]:5",
    "[fe80::1]:1",
    "1.2.3.4:65535",
  ].map(bytesOf),
  read(input) {
    const words = text.decode(input);
    const endpoint = parseEndpoint(words);
    if (endpoint !== undefined) expectSame("an endpoint read again", endpoint, parseEndpoint(endpoint));
    if (/[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/u.test(printable(words)))
      throw new Broken("what is printable moves the cursor");
    expectSame("a line of JSON read again", { words }, JSON.parse(jsonLine({ words })));
  },
  mayThrow: never,
};

// --- the identity's file ---------------------------------------------------------------------------------

const identity = makeIdentity();
const pem = (kind: string, der: string) => `-----BEGIN ${kind}-----\n${der}\n-----END ${kind}-----\n`;
const derOf = (block: string) => Buffer.from(block.replace(/-----[^-]+-----|\s/g, ""), "base64");

/** The file as text; its certificate and its key as DER, put back into one that is otherwise right. */
const identityFile: Target = {
  name: "identity, text",
  samples: [bytesOf(identity.key + identity.certificate), bytesOf(identity.certificate + identity.key)],
  read: (input) => void parseIdentity("identity.pem", text.decode(input)),
  mayThrow: (error) => error instanceof StateError,
};
const certificates: Target = {
  name: "identity, DER of certificate",
  samples: [derOf(identity.certificate)],
  read: (input) =>
    void parseIdentity("identity.pem", identity.key + pem("CERTIFICATE", input.toString("base64"))),
  mayThrow: (error) => error instanceof StateError,
};
const keys: Target = {
  name: "identity, DER of key",
  samples: [derOf(identity.key)],
  read: (input) =>
    void parseIdentity("identity.pem", pem("PRIVATE KEY", input.toString("base64")) + identity.certificate),
  mayThrow: (error) => error instanceof StateError,
};

// --- routers ---------------------------------------------------------------------------------------------

interface Pcp {
  decodePcp(bytes: Uint8Array): unknown;
  decodeNatPmp(bytes: Uint8Array): unknown;
  decodeAnnouncement(bytes: Uint8Array): unknown;
}
interface Upnp {
  parseSearchAnswer(answer: string, gateway: string): URL | undefined;
  parseDescription(xml: string, location: URL): { controlUrl: URL }[];
  parseFault(xml: string): number | undefined;
  elementText(xml: string, name: string): string | undefined;
}

const hex = (digits: string) => Buffer.from(digits.replaceAll(" ", ""), "hex");
const gateway = "192.168.1.1";

function pcpTarget({ decodePcp, decodeNatPmp, decodeAnnouncement }: Pcp): Target {
  return {
    name: "PCP and NAT-PMP",
    samples: [
      hex(
        `02810000 00001c20 0000012c 000000000000000000000000 00112233445566778899aabb 06000000 9c409c41
        00000000000000000000ffffcb007107`.replaceAll(/\s/g, ""),
      ),
      hex("02810008 00001c20 0000012c 000000000000000000000000 00112233445566778899aabb 06000000 9c40 9c41"),
      hex("02800000 00000000 0000012c 000000000000000000000000"),
      hex("0080 0000 0000012c cb007107"),
      hex("0082 0000 0000012c 9c40 9c41 00001c20"),
      hex("0082 0003 0000012c"),
    ],
    read(input) {
      decodePcp(input);
      decodeNatPmp(input);
      decodeAnnouncement(input);
    },
    mayThrow: never,
  };
}

function upnpTarget({ parseSearchAnswer, parseDescription, parseFault, elementText }: Upnp): Target {
  const device = "urn:schemas-upnp-org:device:InternetGatewayDevice:2";
  const service = "urn:schemas-upnp-org:service:WANIPConnection:2";
  const onlyGateway = (url: URL | undefined) => {
    if (url && (url.hostname !== gateway || url.protocol !== "http:")) throw new Broken(`asks ${url}`);
  };
  return {
    name: "UPnP",
    samples: [
      `HTTP/1.1 200 OK\r\nST: ${device}\r\nLOCATION: http://${gateway}:5000/rootDesc.xml\r\n\r\n`,
      `<?xml version="1.0"?><root><URLBase>http://${gateway}:5000/</URLBase><device><serviceList><service>
<serviceType>${service}</serviceType><controlURL>/ctl/IPConn</controlURL></service></serviceList></device></root>`,
      `<s:Envelope><s:Body><s:Fault><detail><UPnPError><errorCode>718</errorCode><errorDescription>Conflict
</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`,
      `<u:GetExternalIPAddressResponse><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:GetExternalIPAddressResponse>`,
    ].map(bytesOf),
    read(input) {
      const words = text.decode(input);
      onlyGateway(parseSearchAnswer(words, gateway));
      const connections = parseDescription(words, new URL(`http://${gateway}:5000/rootDesc.xml`));
      for (const { controlUrl } of connections) onlyGateway(controlUrl);
      parseFault(words);
      elementText(words, "NewExternalIPAddress");
    },
    mayThrow: never,
  };
}

/** Where this version of the program has it. */
async function load<Module>(path: string): Promise<Module | undefined> {
  const file = `${import.meta.dir}/../../${path}`;
  return existsSync(file) ? ((await import(file)) as Module) : undefined;
}

const pcp = await load<Pcp>("native/punch/pcp.ts");
const upnp = await load<Upnp>("native/punch/upnp.ts");

export const targets: readonly Target[] = [
  lines,
  messages("to the introducer", toIntroducer, parseToIntroducer),
  messages("to a participant", toParticipant, parseToParticipant),
  messages("to a peer", toPeer, parseToPeer),
  messages("lines of a link", linkLines, parseLinkLine),
  frames,
  datagrams,
  socks,
  uses,
  records,
  sockaddrs,
  endpoints,
  identityFile,
  certificates,
  keys,
  ...(pcp ? [pcpTarget(pcp)] : []),
  ...(upnp ? [upnpTarget(upnp)] : []),
];
