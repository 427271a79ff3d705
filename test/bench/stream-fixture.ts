/**
 * One end of what `bench stream` compares, as a program: bytes by bare TCP, by bare TLS with the link's credentials, or
 * by a stream of a session over channels, direct ones and relayed ones. Started as `KIND send` or `KIND take`; commands
 * come as JSON lines on standard input, and what became of them goes out as JSON lines.
 *
 * A stream begins with its head: one byte, what is wanted, and eight, how many bytes follow.
 */
import { once } from "node:events";
import * as net from "node:net";
import * as readline from "node:readline";
import type { Duplex } from "node:stream";
import * as tls from "node:tls";
import { judgeOffer, readOffer, refuseOffer, type Offer } from "../../native/session/carrier.ts";
import { Channel } from "../../native/secure/channel.ts";
import { adopt, Credentials, type Side } from "../../native/secure/tls.ts";
import { resumedStatus } from "../../native/session/frame.ts";
import { makeIdentity } from "../../native/secure/identity.ts";
import { RelayAttempt } from "../../native/punch/relayed.ts";
import type { Bond } from "../../native/secure/room.ts";
import { Session } from "../../native/session/session.ts";
import { connectShared, pollSockets, Socket } from "../../native/host/socket.ts";
import {
  encode,
  LineDecoder,
  parseToParticipant,
  protocolVersion,
  splitEndpoint,
  type Endpoint,
  type ToParticipant,
} from "../../protocol.ts";

export type Kind = "tcp" | "tls" | "link";

export type EndCommand =
  /** The sender dials the taker. `move`: beside the connection that there is, which it replaces. */
  | { type: "dial"; to: Endpoint; move?: true }
  /** Both go to the introducer, and are relayed; the sender asks. */
  | { type: "relay"; introducer: Endpoint; room: string }
  /** So many bytes in all, in so many streams at once, in writes of {@link writeBytes}. */
  | { type: "send"; bytes: number; streams: number }
  /** So many round trips of one byte, each begun `pauseMs` after the last; fewer when what is sent beside them ends. */
  | { type: "ask"; times: number; pauseMs: number }
  /** Endless bulk; once it is under way, so many events on another stream, one each `everyMs`. Then the bulk ends. */
  | { type: "beside"; times: number; everyMs: number; settleMs: number }
  /** The taker forgets the longest time without a byte. */
  | { type: "watch" }
  /** The sender's connection breaks; session and streams are to outlive it. */
  | { type: "drop" }
  /** What the session keeps until it is acknowledged. */
  | { type: "kept" };

export type EndEvent =
  | { event: "listening"; port: number }
  | { event: "connected" }
  /** `elapsedMs`: until the taker had all. */
  | { event: "sent"; elapsedMs: number }
  | { event: "asked"; roundTripsMs: number[] }
  /** At the taker: how late each event came, and how many bytes of the bulk from the first to the last. */
  | { event: "late"; lateMs: number[]; bulkBytes: number; elapsedMs: number }
  /** At the sender: `dialMs` from dialling to the end of the handshake, `moveMs` from there. */
  | { event: "moved"; gapMs: number; dialMs: number; moveMs: number }
  /** Since `watch`: the longest time without a byte. */
  | { event: "watched"; silenceMs: number }
  | { event: "dropped" }
  | { event: "kept"; bytes: number };

const writeBytes = 64 * 1024;
const headBytes = 9;
/**
 * `take`: a byte when all have come. `echo`: each at once. `marks`: one for each write that begins with a 1. `events`: how
 * late each record of {@link eventBytes} is, which begins with the time that it was written at.
 */
const wants = { take: 1, echo: 2, marks: 3, events: 4 } as const;
const eventBytes = 100;
/** Nobody else talks to these programs. */
const purpose = "bench";
const token = "0".repeat(32);
const acceptPeriodMs = 2;

const [kind = "link", role = "take"] = process.argv.slice(2) as [Kind?, ("send" | "take")?];
const identity = makeIdentity();
const credentials = new Credentials(identity);

function tell(event: EndEvent): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

function head(want: number, bytes: number): Buffer {
  const encoded = Buffer.alloc(headBytes, want);
  encoded.writeBigUInt64BE(BigInt(bytes), 1);
  return encoded;
}

// --- taking ----------------------------------------------------------------------------------------------

/** When bytes came, of all streams. */
const watched = { lastAt: 0, silenceMs: 0 };

/** Of all streams but those of events. */
let bulkBytes = 0;
/** What two processes of one machine agree on. */
const wallMs = () => performance.timeOrigin + performance.now();

/** How late events come. */
class Events {
  readonly #lateMs: number[] = [];
  #rest = Buffer.alloc(0);
  #bulkFrom = 0;
  #from = 0;

  take(body: Buffer): void {
    const all = Buffer.concat([this.#rest, body]);
    let at = 0;
    for (; all.length - at >= eventBytes; at += eventBytes) this.#one(all.readDoubleBE(at));
    this.#rest = Buffer.from(all.subarray(at));
  }

  #one(sentMs: number): void {
    if (this.#lateMs.length === 0) [this.#from, this.#bulkFrom] = [wallMs(), bulkBytes];
    this.#lateMs.push(wallMs() - sentMs);
  }

  tell(): void {
    const [elapsedMs, bytes] = [wallMs() - this.#from, bulkBytes - this.#bulkFrom];
    tell({ event: "late", lateMs: this.#lateMs, bulkBytes: bytes, elapsedMs });
  }
}

/** Does what the heads of one stream want. */
class Taker {
  readonly #stream: Duplex;
  #head = Buffer.alloc(0);
  #want = 0;
  #total = 0;
  #at = 0;
  readonly #events = new Events();

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on("data", (chunk: Buffer) => this.#take(chunk));
    stream.on("end", () => {
      if (this.#want === wants.events) this.#events.tell();
      stream.end();
    });
    stream.on("error", () => {});
  }

  #take(chunk: Buffer): void {
    const now = performance.now();
    watched.silenceMs = Math.max(watched.silenceMs, now - watched.lastAt);
    watched.lastAt = now;
    const body = this.#want === 0 ? this.#readHead(chunk) : chunk;
    if (this.#want === wants.echo) this.#stream.write(Buffer.from(body));
    if (this.#want === wants.marks) this.#answerMarks(body);
    if (this.#want === wants.events) return this.#events.take(body);
    bulkBytes += body.length;
    this.#at += body.length;
    if (this.#want === 0 || this.#want === wants.echo || this.#at < this.#total) return;
    this.#stream.write(head(0, 0).subarray(0, 1));
    this.#head = Buffer.alloc(0);
    this.#want = this.#at = 0;
  }

  #readHead(chunk: Buffer): Buffer {
    const lacking = headBytes - this.#head.length;
    this.#head = Buffer.concat([this.#head, chunk.subarray(0, lacking)]);
    if (this.#head.length < headBytes) return Buffer.alloc(0);
    this.#want = this.#head[0]!;
    this.#total = Number(this.#head.readBigUInt64BE(1));
    return chunk.subarray(lacking);
  }

  #answerMarks(body: Buffer): void {
    const first = (writeBytes - (this.#at % writeBytes)) % writeBytes;
    for (let at = first; at < body.length; at += writeBytes) {
      if (body[at] === 1) this.#stream.write(body.subarray(at, at + 1));
    }
  }
}

// --- connections -----------------------------------------------------------------------------------------

/** Of a link. */
let session: Session | undefined;
/** Of bare TCP or TLS. */
let bare: Duplex | undefined;
let dialledAt = 0;
let securedAt = 0;

function hold(made: Session): Session {
  session = made;
  made.onStream = (stream) => void new Taker(stream);
  made.onCarrier = (event) => {
    if (event.is === "lost") tell({ event: "dropped" });
    if (event.is !== "moved") return;
    const moveMs = performance.now() - securedAt;
    tell({ event: "moved", gapMs: event.gapMs, dialMs: securedAt - dialledAt, moveMs });
  };
  return made;
}

/** What both ends prove: that they are in one room, with these certificates. */
function bondWith(fingerprint: string): Bond {
  const member = (one: string) => ({ fingerprint: one, name: "", instance: "" });
  return { key: new Uint8Array(32), self: member(identity.fingerprint), peer: member(fingerprint) };
}

/** The sender's channel, nominated: it begins a session, or takes one further. */
function speak(channel: Channel): void {
  if (!session) hold(new Session({ role: "controlling", peer: channel.peer }));
  session!.attach(channel);
  tell({ event: "connected" });
}

/** The taker's. */
function listenTo(channel: Channel): void {
  channel.onClose = () => {};
  const offered = (offer: Offer) => {
    const judged = judgeOffer(offer, session, channel.peer);
    if (judged === "refuse") return refuseOffer(offer, resumedStatus.unknown);
    const { sessionId } = offer.hello;
    if (judged === "begin") {
      session?.abandon("replaced");
      hold(new Session({ role: "controlled", peer: channel.peer, id: sessionId }));
    }
    session!.accept(offer);
    tell({ event: "connected" });
  };
  readOffer(channel, offered, (reason) => console.error(reason));
}

async function dial(to: Endpoint): Promise<void> {
  dialledAt = performance.now();
  const { address: host, port } = splitEndpoint(to);
  if (kind === "link") {
    const { socket } = await connectShared(to, 5_000);
    const side: Side = { role: "controlling", offers: [purpose] };
    const channel = new Channel(adopt(socket), "public", side, credentials);
    await channel.secured;
    securedAt = performance.now();
    channel.nomination.bond = bondWith(channel.peer);
    channel.nominate(token);
    return speak(channel);
  }
  const { promise, resolve } = Promise.withResolvers<void>();
  const { key, certificate: cert } = identity;
  const options = { host, port, key, cert, minVersion: "TLSv1.3", rejectUnauthorized: false } as const;
  bare?.destroy();
  bare = kind === "tls" ? tls.connect(options, resolve) : net.connect({ host, port }, resolve);
  bare.on("error", (error) => console.error(error));
  await promise;
  tell({ event: "connected" });
}

function listen(): void {
  const { key, certificate: cert } = identity;
  const options = { key, cert, minVersion: "TLSv1.3", requestCert: true, rejectUnauthorized: false } as const;
  const take = (socket: Duplex) => void new Taker(socket);
  if (kind === "link") return listenForLinks();
  const server = kind === "tls" ? tls.createServer(options, take) : net.createServer(take);
  server.listen(0, () => tell({ event: "listening", port: (server.address() as net.AddressInfo).port }));
}

function listenForLinks(): void {
  const listener = Socket.open(4);
  const port = listener.bind(0);
  listener.listen(16);
  setInterval(() => {
    if (pollSockets([{ socket: listener, for: "read" }]).length === 0) return;
    const socket = listener.accept();
    if (!socket) return;
    const side: Side = { role: "controlled", expects: (asked) => asked === purpose };
    const channel = new Channel(adopt(socket), "listen", side, credentials);
    void channel.secured.then((fingerprint) => (channel.nomination.bond = bondWith(fingerprint)));
    channel.nomination.onNominated = () => listenTo(channel);
  }, acceptPeriodMs);
  tell({ event: "listening", port });
}

// --- the relay -------------------------------------------------------------------------------------------

/** Registers as one whose NAT cannot be dug through, so that a relay is offered at once. */
async function relay(introducer: Endpoint, room: string): Promise<void> {
  const { address: hostname, port } = splitEndpoint(introducer);
  const decoder = new LineDecoder();
  const data = (control: Bun.Socket, chunk: Buffer) => {
    for (const line of decoder.push(chunk)) obey(control, introducer, parseToParticipant(line));
  };
  const control = await Bun.connect({ hostname, port, socket: { data } });
  control.write(
    encode({
      type: "register",
      version: protocolVersion,
      name: `${role}-${process.pid}`, // the introducer keeps a name for its certificate
      room,
      instance: identity.fingerprint.slice(0, 16),
      fingerprint: identity.fingerprint,
      private: [],
      links: [],
    }) + encode({ type: "mapping", mapping: "random" }),
  );
}

function obey(control: Bun.Socket, introducer: Endpoint, message: ToParticipant): void {
  if (message.type === "ping") control.write(encode({ type: "pong", id: message.id }));
  if (message.type === "refused" || message.type === "failed") console.error(message);
  if (message.type === "peers" && role === "send") {
    for (const { id } of message.peers) control.write(encode({ type: "connect", peer: id }));
  }
  if (message.type === "registered" && role === "take") tell({ event: "connected" });
  if (message.type !== "relay") return;
  new RelayAttempt({
    introducer,
    token: message.token,
    role: message.role,
    alpn: purpose,
    bond: bondWith(message.peer.fingerprint),
    credentials,
    onChannel: (channel) => (role === "send" ? speak(channel) : listenTo(channel)),
    onFailed: (reason) => console.error(reason),
  });
}

// --- sending ---------------------------------------------------------------------------------------------

/** Writes that shall begin with a 1: how a round trip is asked for on bare TLS. */
let marksAsked = 0;
let onMark: (() => void) | undefined;
/** The bytes that are sent beside them, and with which they end. */
let bulk: Promise<void> | undefined;

async function fill(stream: Duplex, bytes: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const isMarked = stream === bare;
  let awaited = 1;
  const answered = (chunk: Buffer) => {
    for (const byte of chunk) {
      if (byte === 1) onMark?.();
      else if (--awaited === 0) resolve();
    }
  };
  stream.on("data", answered);
  stream.write(head(isMarked ? wants.marks : wants.take, bytes));
  const [plain, marked] = [Buffer.alloc(writeBytes), Buffer.alloc(writeBytes)];
  marked[0] = 1;
  let left = bytes;
  const write = (): void => {
    while (left > 0) {
      const block = marksAsked > 0 ? marked : plain;
      if (block === marked) marksAsked--;
      const part = left < writeBytes ? block.subarray(0, left) : block;
      left -= part.length;
      if (!stream.write(part)) return void stream.once("drain", write);
    }
  };
  write();
  await promise;
  stream.off("data", answered);
}

async function send(bytes: number, streams: number): Promise<void> {
  const opened = Array.from({ length: streams }, () => bare ?? session!.open({ for: "bytes" }));
  const from = performance.now();
  const all = Promise.all(opened.map((stream) => fill(stream, Math.ceil(bytes / streams))));
  await (bulk = all.then(() => {}));
  bulk = undefined;
  tell({ event: "sent", elapsedMs: performance.now() - from });
  if (!bare) for (const stream of opened) stream.end();
}

async function ask(times: number, pauseMs: number): Promise<void> {
  const roundTripsMs: number[] = [];
  const stream = bare ? undefined : session!.open({ for: "echo" });
  stream?.write(head(wants.echo, 0));
  stream?.on("data", () => onMark?.());
  const one = Buffer.alloc(1, 1);
  let isOver = false;
  void bulk?.then(() => ((isOver = true), onMark?.()));
  for (let count = 0; count < times && !isOver; count++) {
    await Bun.sleep(pauseMs);
    const { promise, resolve } = Promise.withResolvers<void>();
    const from = performance.now();
    onMark = resolve;
    if (stream) stream.write(one);
    else marksAsked++;
    await promise;
    if (!isOver) roundTripsMs.push(performance.now() - from);
  }
  onMark = undefined;
  marksAsked = 0;
  stream?.end();
  tell({ event: "asked", roundTripsMs });
}

/** Never ends by itself. */
function pour(): Duplex {
  const bulk = session!.open({ use: "bytes" });
  const part = Buffer.alloc(writeBytes);
  const write = (): void => {
    while (bulk.write(part));
  };
  bulk.on("drain", write).on("error", () => {});
  bulk.write(head(wants.take, Number.MAX_SAFE_INTEGER));
  write();
  return bulk;
}

async function beside(times: number, everyMs: number, settleMs: number): Promise<void> {
  const bulk = pour();
  await Bun.sleep(settleMs); // what is measured is bulk under way
  const events = session!.open({ use: "events" });
  events.resume().write(head(wants.events, 0));
  for (let count = 0; count < times; count++) {
    await Bun.sleep(everyMs);
    const one = Buffer.alloc(eventBytes);
    one.writeDoubleBE(wallMs());
    events.write(one);
  }
  events.end();
  await once(events, "end");
  bulk.destroy();
}

// --- commands --------------------------------------------------------------------------------------------

async function run(command: EndCommand): Promise<void> {
  switch (command.type) {
    case "dial":
      if (!command.move) {
        session?.abandon("over");
        session = undefined;
      }
      return dial(command.to);
    case "relay":
      return relay(command.introducer, command.room);
    case "send":
      return send(command.bytes, command.streams);
    case "ask":
      return ask(command.times, command.pauseMs);
    case "beside":
      return beside(command.times, command.everyMs, command.settleMs);
    case "watch":
      tell({ event: "watched", silenceMs: watched.silenceMs });
      watched.lastAt = performance.now();
      watched.silenceMs = 0;
      return;
    case "drop":
      return (session!.carrier as Channel).reject("dropped");
    case "kept":
      return tell({ event: "kept", bytes: session!.outstandingBytes });
  }
}

if (role === "take") listen();
for await (const line of readline.createInterface({ input: process.stdin })) {
  void run(JSON.parse(line) as EndCommand);
}
process.exit();
