/**
 * The attackers' own programs, on the wire: a lying introducer, a room member, a linked peer, a stranger, a local user.
 * Nothing here is a class of the participant's or the introducer's, and nothing keeps to a rule that an attacker would
 * not: lines and frames are written by hand, so that what the real programs read is not what they themselves would
 * write. The formats are told in protocol.ts and native/secure/{room,channel}.ts, native/session/frame.ts; where those change, this does.
 *
 *   using house = new LyingIntroducer((line, visitor) => { if (line.type === "register") visitor.say(…) });
 *   const eve = await Member.join(port, { name: "eve", room: "the words" });  // by the real introducer
 *   eve.say({ type: "connect", peer: bob });
 *   const link = await RawLink.punch(await eve.hears("punch"), eve.identity); // TLS, both roles
 *   await link.begin();                                                       // the first flight, either role
 *   link.send(openFrame(link.firstStream, { use: "forward", host: "localhost", port: 80 }));
 *   const { payload } = await link.hears(frame.reset);
 */
import { createHash, createHmac, randomBytes, scrypt } from "node:crypto";
import * as net from "node:net";
import * as tls from "node:tls";
import { makeIdentity, type Identity } from "../../native/secure/identity.ts";
import { patienceMs } from "../patience-fixture.ts";

export { makeIdentity, type Identity };

/** A line of the control channel, as JSON.parse gives it: nothing is checked. */
export interface Line {
  type: string;
  /** A field may be anything, and a test says what it expects. */
  [field: string]: any;
}

export const hex = (bytes: number): string => randomBytes(bytes).toString("hex");
export const sha256 = (...parts: (string | Uint8Array)[]): string => {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
};

/** What has come, in order. {@link next} takes each once; {@link all} keeps them. */
export class Inbox<T> {
  readonly all: T[] = [];
  /** Nothing comes any more; why, if that is known. */
  ended: string | undefined;
  readonly #taken = new Set<T>();
  #news = Promise.withResolvers<void>();

  push(one: T): void {
    this.all.push(one);
    this.#wake();
  }

  end(reason: string): void {
    this.ended ??= reason;
    this.#wake();
  }

  /** The first that fits and that nobody has taken yet; rejects when it can't come any more. */
  async next(what: string, fits: (one: T) => boolean = () => true): Promise<T> {
    const giveUpAt = performance.now() + patienceMs;
    for (;;) {
      const found = this.all.find((one) => !this.#taken.has(one) && fits(one));
      if (found !== undefined) {
        this.#taken.add(found);
        return found;
      }
      const leftMs = giveUpAt - performance.now();
      if (this.ended !== undefined || leftMs <= 0) {
        const came = this.all.slice(-20).map((one) => Bun.inspect(one).slice(0, 300));
        throw new Error(`${what} never came (${this.ended ?? "too late"}); what did: ${came.join(" ")}`);
      }
      await Promise.race([this.#news.promise, Bun.sleep(leftMs)]);
    }
  }

  /** Resolves once nothing comes any more, to the reason. */
  async over(): Promise<string> {
    const giveUpAt = performance.now() + patienceMs;
    while (this.ended === undefined) {
      if (performance.now() > giveUpAt) throw new Error("it was never closed");
      await Promise.race([this.#news.promise, Bun.sleep(100)]);
    }
    return this.ended;
  }

  #wake(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }
}

/** A TCP connection that speaks lines, or whatever bytes it likes. */
export class LineSocket implements Disposable {
  readonly socket: net.Socket;
  /** The lines that came; one that is no JSON has the type `not JSON`. */
  readonly lines = new Inbox<Line>();
  /** Bytes that came, read or not cut into lines yet. */
  bytes = 0;
  /** Until it is set, what comes is cut into lines. */
  onBytes: ((chunk: Buffer) => void) | undefined;
  #held = Buffer.alloc(0);

  constructor(socket: net.Socket, onLine: (line: Line) => void = () => {}) {
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.bytes += chunk.length;
      if (this.onBytes) return this.onBytes(chunk);
      this.#held = Buffer.concat([this.#held, chunk]);
      for (let lf = this.#held.indexOf(10); lf >= 0 && !this.onBytes; lf = this.#held.indexOf(10)) {
        const line = parsed(this.#held.toString("utf8", 0, lf));
        this.#held = this.#held.subarray(lf + 1);
        this.lines.push(line);
        onLine(line);
      }
    });
    socket.on("error", (error) => this.lines.end(String(error)));
    socket.on("end", () => this.lines.end("it ended the connection"));
    socket.on("close", () => this.lines.end("closed"));
  }

  /** What came behind the lines that were cut. */
  takeHeld(): Buffer {
    const held = this.#held;
    this.#held = Buffer.alloc(0);
    return held;
  }

  say(...messages: object[]): void {
    this.raw(messages.map((one) => JSON.stringify(one) + "\n").join(""));
  }

  /** Any bytes, such as no JSON, half a line, or a line without an end. */
  raw(bytes: string | Uint8Array): void {
    this.socket.write(bytes);
  }

  async hears(type: string, fits: (line: Line) => boolean = () => true): Promise<Line> {
    return this.lines.next(`\`${type}\``, (line) => line.type === type && fits(line));
  }

  stopReading(): void {
    this.socket.pause();
  }

  goOnReading(): void {
    this.socket.resume();
  }

  /** FIN, after what was written. */
  close(): void {
    this.socket.end();
  }

  /** RST, now. */
  cut(): void {
    this.socket.resetAndDestroy();
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

function parsed(text: string): Line {
  try {
    return JSON.parse(text) as Line;
  } catch {
    return { type: "not JSON", text };
  }
}

// --- the lying introducer ------------------------------------------------------------------------------------

/**
 * Listens, hands each line of each visitor to the script, and does what the script says. A script that answers
 * `register` with {@link registered} and `peers` is taken for an introducer.
 */
export class LyingIntroducer implements Disposable {
  readonly visitors: LineSocket[] = [];
  /** Of all visitors, in the order in which they came. */
  readonly heard = new Inbox<Line>();
  port = 0;
  readonly #server: net.Server;

  /** `await LyingIntroducer.listen(…)`: the port is known by then. */
  private constructor(
    script: (line: Line, visitor: LineSocket) => void,
    onVisit: (visitor: LineSocket) => void,
  ) {
    this.#server = net.createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      const visitor = new LineSocket(socket, (line) => {
        this.heard.push(line);
        script(line, visitor);
      });
      this.visitors.push(visitor);
      onVisit(visitor);
    });
  }

  static async listen(
    script: (line: Line, visitor: LineSocket) => void = () => {},
    onVisit: (visitor: LineSocket) => void = () => {},
    host = "127.0.0.1",
  ): Promise<LyingIntroducer> {
    const house = new LyingIntroducer(script, onVisit);
    house.port = await listenOn(house.#server, host);
    return house;
  }

  /**
   * Those who have registered. A visitor may have come for nothing: a program connects before it is ready to register, and
   * anew if that took it 2 s.
   */
  get guests(): LineSocket[] {
    return this.visitors.filter(({ lines }) => lines.all.some(({ type }) => type === "register"));
  }

  async hears(type: string, fits: (line: Line) => boolean = () => true): Promise<Line> {
    return this.heard.next(`\`${type}\``, (line) => line.type === type && fits(line));
  }

  [Symbol.dispose](): void {
    this.#server.close();
    for (const { socket } of this.visitors) socket.destroy();
  }
}

/** What an introducer answers a `register` with, but for what a lie changes. */
export function registered(register: Line, lie: object = {}): Line {
  return {
    type: "registered",
    id: 1,
    name: register.name,
    room: register.room,
    public: "203.0.113.1:4000",
    private: [],
    probePorts: [],
    alternates: [],
    ...lie,
  };
}

export const peersLine = (...peers: object[]): Line => ({ type: "peers", peers, more: false });

/** A peer that is not there, but for what a lie changes; with a `key` it is believed to be of that room. */
export function peerLine(lie: Line | object = {}, key?: Uint8Array): Line {
  const peer = {
    id: 2,
    name: "bob",
    instance: "ab".repeat(8),
    fingerprint: "cd".repeat(32),
    private: [],
    public: "127.0.0.1:9",
    mapping: "unknown",
    since: 0,
    ...lie,
  };
  return { ...peer, ...(key && { proof: memberProof(key, peer) }) } as unknown as Line;
}

export function punchLine(peer: object, lie: object = {}): Line {
  return {
    type: "punch",
    peer,
    role: "controlled",
    token: hex(16),
    startInMs: 0,
    way: "direct",
    round: 1,
    last: true,
    deadlineMs: 2_000,
    ...lie,
  };
}

// --- the room ------------------------------------------------------------------------------------------------

interface RoomKey {
  id: string;
  key: Uint8Array;
}
const roomKeys = new Map<string, Promise<RoomKey>>();

/** What the words of a private room come to: its id for the introducer, and the members' key. That takes a while, once. */
export function roomKey(words: string): Promise<RoomKey> {
  const known = roomKeys.get(words) ?? derived(words);
  roomKeys.set(words, known);
  return known;
}

async function derived(words: string): Promise<RoomKey> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  const cost = { N: 2 ** 15, r: 8, p: 1, maxmem: 64 * 1024 * 1024 };
  scrypt(words, "tcp-hole-punching room, protocol 2", 64, cost, (error, derived) =>
    error ? reject(error) : resolve(derived),
  );
  const bytes = await promise;
  return { id: bytes.toString("hex", 0, 32), key: bytes.subarray(32) };
}

/** HMAC-SHA-256 over parts, each with its length as u32. */
export function macOf(key: Uint8Array, ...parts: (string | Uint8Array)[]): Buffer {
  const mac = createHmac("sha256", key);
  for (const part of parts) {
    const bytes = Buffer.from(part as string);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    mac.update(length).update(bytes);
  }
  return mac.digest();
}

export interface Shown {
  fingerprint: string;
  name: string;
  /** As others see it. */
  instance: string;
}

export const memberProof = (key: Uint8Array, { fingerprint, name, instance }: Shown): string =>
  macOf(key, "member", fingerprint, name, instance).toString("hex");

/** What both ends of a connection in the lobby prove to have. */
export const lobbyKey: Uint8Array = createHash("sha256").update("tcp-hole-punching lobby").digest();

/** What the side with that role shows on one TLS connection, of which both ends `exported` the same. */
export const bondProof = (
  key: Uint8Array,
  exported: Uint8Array,
  prover: "controlling" | "controlled",
  controlling: Shown,
  controlled: Shown,
): string => {
  const parts = [controlling, controlled].flatMap((one) => [one.fingerprint, one.name, one.instance]);
  return macOf(key, "connection", exported, prover, ...parts).toString("hex");
};

/** What the certificate of a member's run says of its key (DER). */
export const runSeal = (
  key: Uint8Array,
  publicKey: Uint8Array,
  { fingerprint, name, instance }: Shown,
): string => macOf(key, "run", publicKey, fingerprint, name, instance).toString("hex");

/** What others see of the secret that a program registers with. */
export const shownInstance = (instance: string): string => sha256(instance).slice(0, instance.length);

// --- the room member -----------------------------------------------------------------------------------------

export interface MemberOptions {
  name: string;
  /** The words of a private room; without them the lobby. */
  room?: string;
  identity?: Identity;
  /** Over what is registered. */
  lie?: object;
  from?: string;
}

/** A participant by hand: a control connection, and an identity to be linked with. */
export class Member extends LineSocket {
  readonly identity: Identity;
  name = "";
  /** As others see it; and the secret of which that is the hash. */
  instance = "";
  readonly secret = hex(8);
  /** The room's id and key; no key in the lobby. */
  room: { id: string; key?: Uint8Array } = { id: "lobby" };
  id = 0;
  /** Who has connected to the one host candidate that it offers, unless a lie offers others. */
  arrivals: Inbox<net.Socket> | undefined;
  #door: Bait | undefined;

  private constructor(socket: net.Socket, identity: Identity) {
    super(socket, (line) => line.type === "ping" && this.say({ type: "pong", id: line.id }));
    this.identity = identity;
  }

  /** Connects, and says nothing yet. */
  static async connect(port: number, { identity = makeIdentity(), from }: Partial<MemberOptions> = {}) {
    return new Member(await dial("127.0.0.1", port, from), identity);
  }

  /** Registers with the introducer at 127.0.0.1; resolves once that has said who else is there. */
  static async join(port: number, options: MemberOptions): Promise<Member> {
    if (options.room !== undefined) await roomKey(options.room); // before: who has connected must register soon
    const member = await Member.connect(port, options);
    if (options.lie === undefined || !("private" in options.lie)) await member.#listen();
    await member.register(options);
    const answer = await member.hears("registered");
    await member.hears("peers", ({ more }) => !more);
    // Else the introducer waits a while for it before each introduction.
    member.say({ type: "mapping", mapping: "endpoint-independent" });
    [member.id, member.name] = [answer.id, answer.name];
    return member;
  }

  /** To be dialled there: a participant that finds nobody at our public endpoint closes its own listener. */
  async #listen(): Promise<void> {
    const arrivals = (this.arrivals = new Inbox<net.Socket>());
    this.#door = await Bait.listen("127.0.0.1", (socket) => arrivals.push(socket));
  }

  async register({ name, room, lie }: MemberOptions): Promise<void> {
    if (room !== undefined) this.room = await roomKey(room);
    this.name = name;
    this.instance = shownInstance(this.secret);
    const { fingerprint } = this.identity;
    const { id, key } = this.room;
    this.say({
      type: "register",
      version: 2,
      name,
      room: id,
      instance: this.secret,
      fingerprint,
      private: this.#door ? [`127.0.0.1:${this.#door.port}`] : [],
      links: [],
      ...(key && { proof: memberProof(key, { fingerprint, name, instance: this.instance }) }),
      ...lie,
    });
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    this.#door?.[Symbol.dispose]();
  }

  /** The peer of that name, as the introducer has told of it. */
  async seen(name: string): Promise<Line> {
    const of = ({ type, peers, peer }: Line): Line | undefined =>
      type === "peers" ? peers.find((one: Line) => one.name === name) : type === "joined" ? peer : undefined;
    const before = this.lines.all.map(of).findLast((peer) => peer?.name === name);
    return before ?? (await this.hears("joined", ({ peer }) => peer.name === name)).peer;
  }

  /** Asks to be linked with them, is introduced, and punches: TLS is up, and nothing else was said. */
  async link(name: string): Promise<RawLink> {
    this.say({ type: "connect", peer: (await this.seen(name)).id });
    return this.punch(await this.hears("punch"));
  }

  /** Punches as told, and tells the introducer, to which the introduction is then over. */
  async punch(punch: Line): Promise<RawLink> {
    const { id, public: remote } = punch.peer;
    const { identity, name, instance, room, arrivals } = this;
    // On a busy machine the first round may be over before we have come to it.
    const latest = () => this.lines.all.findLast(({ type, peer }) => type === "punch" && peer.id === id)!;
    const link = await RawLink.punch(punch, { identity, name, instance, room, arrivals, latest });
    const { token } = link;
    this.say({ type: "linked", peer: id, token, route: "public", local: "127.0.0.1:9", remote });
    return link;
  }
}

// --- a link, by hand -----------------------------------------------------------------------------------------

/** Types of frames (native/session/frame.ts). */
export const frame = {
  open: 1,
  data: 2,
  credit: 3,
  end: 4,
  reset: 5,
  finish: 6,
  ack: 0x80,
  ping: 0x81,
  pong: 0x82,
  resume: 0x83,
  resumed: 0x84,
  start: 0x85,
  rewind: 0x86,
} as const;

export interface Frame {
  type: number;
  stream: number;
  payload: Buffer;
}

/** type u8, payload length u24, stream u32, payload. `length` may lie. */
export function frameOf(
  type: number,
  payload: string | Uint8Array = "",
  stream = 0,
  length?: number,
): Buffer {
  const bytes = Buffer.from(payload as string);
  const header = Buffer.alloc(8);
  header[0] = type;
  header.writeUIntBE(length ?? bytes.length, 1, 3);
  header.writeUInt32BE(stream, 4);
  return Buffer.concat([header, bytes]);
}

export function countFrame(type: number, count: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64BE(BigInt(count));
  return frameOf(type, payload);
}

export const openFrame = (stream: number, purpose: object): Buffer =>
  frameOf(frame.open, JSON.stringify(purpose), stream);

export function creditFrame(stream: number, bytes: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(bytes);
  return frameOf(frame.credit, payload, stream);
}

export function resetFrame(stream: number, code: number, reason: string): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(code);
  return frameOf(frame.reset, Buffer.concat([payload, Buffer.from(reason)]), stream);
}

export interface HelloFields {
  version?: number;
  /** Of `resume`: 1 begins a session, 0 goes on with it. Of `resumed`: 0 agrees. */
  status?: number;
  epoch?: number;
  /** 32 hex digits. */
  sessionId: string;
  processed?: number;
}

export function helloFrame(type: number, hello: HelloFields): Buffer {
  const { version = 2, status = 1, epoch = 1, sessionId, processed = 0 } = hello;
  const payload = Buffer.alloc(30);
  payload[0] = version;
  payload[1] = status;
  payload.writeUInt32BE(epoch, 2);
  payload.write(sessionId, 6, "hex");
  payload.writeBigUInt64BE(BigInt(processed), 22);
  return frameOf(type, payload);
}

export const readHello = (payload: Buffer) => ({
  version: payload[0]!,
  status: payload[1]!,
  epoch: payload.readUInt32BE(2),
  sessionId: payload.toString("hex", 6, 22),
  processed: Number(payload.readBigUInt64BE(22)),
});

/** The code and the text of a `reset`. */
export const readReset = ({ payload }: Frame) => ({
  code: payload.readUInt32BE(0),
  reason: payload.toString("utf8", 4),
});

/** Names the punch in clear (ALPN). */
export const alpnOf = (token: string): string => `${sha256("punch", token).slice(0, 32)}.punch`;

/** Whose end of a connection it is: a {@link Member}, or as much of one as is to be shown. */
export interface Bearer {
  identity: Identity;
  name?: string;
  /** As others see it. */
  instance?: string;
  /** Without a key: the lobby. */
  room?: { key?: Uint8Array };
  /** Connections of whoever dials it. */
  arrivals?: Inbox<net.Socket> | undefined;
  /** It dials no more once that is so. */
  isOver?: () => boolean;
  /** Of whoever waits to be dialled: the round that the other side is in by now. */
  latest?: () => Line;
}

/**
 * One connection to a participant, with TLS on it: as client (`controlling`) or server. It acknowledges what comes
 * unless told not to, and counts what it sends, since the frames of a carrier are numbered.
 */
export class RawLink implements Disposable {
  readonly tls: tls.TLSSocket;
  /** What is proved: the room's key, and both. A lie changes them before {@link begin}. */
  bond: { key: Uint8Array; self: Shown; peer: Shown };
  readonly role: "controlling" | "controlled";
  readonly token: string;
  readonly frames = new Inbox<Frame>();
  /** The payloads of `data`, by stream. */
  readonly text = new Map<number, string>();
  /** SHA-256 of the certificate of the identity that was shown. */
  peer = "";
  sessionId = hex(16);
  /** Whether what comes is acknowledged; and how many sequenced frames have come. */
  acknowledges = true;
  processed = 0;
  /** Keep `data` payloads in {@link frames} and {@link text}; off for floods. */
  keeps = true;
  /** The line that came first: the nomination, or on the controlling side the answer to ours. */
  readonly nomination = Promise.withResolvers<Line>();
  #held: Buffer = Buffer.alloc(0);
  #awaitsLine = true;
  /** Answers to what has come before we said anything: our line must be first. Undefined once it was said. */
  #owed: Buffer[] | undefined = [];

  constructor(socket: net.Socket, { role, token, peer }: Line, who: Bearer) {
    const { identity, name = "", instance = "", room } = who;
    [this.role, this.token] = [role, token];
    const self = { fingerprint: identity.fingerprint, name, instance };
    this.bond = { key: room?.key ?? lobbyKey, self, peer: peer as Shown };
    this.nomination.promise.catch(() => {});
    const { key, certificate: cert } = identity;
    const common = { key, cert, minVersion: "TLSv1.3" as const, rejectUnauthorized: false };
    this.tls =
      role === "controlling"
        ? tls.connect({ ...common, socket, ALPNProtocols: [alpnOf(token)] })
        : new tls.TLSSocket(socket, {
            ...common,
            isServer: true,
            requestCert: true,
            ALPNCallback: ({ protocols }) => protocols.find((one) => one === alpnOf(token)),
          });
    this.tls.on("data", (chunk: Buffer) => this.#read(chunk));
    this.tls.on("error", (error) => this.#over(String(error)));
    this.tls.on("end", () => this.#over("it ended the connection"));
    this.tls.on("close", () => this.#over("closed"));
    socket.on("error", (error) => this.#over(String(error)));
  }

  /** Waits to be dialled, or dials where a `punch` says the peer is, until TLS is up with somebody. */
  static async punch(punch: Line, who: Bearer): Promise<RawLink> {
    return who.arrivals ? RawLink.#accepted(punch, who, who.arrivals) : RawLink.#dialled(punch, who);
  }

  /** Of those who come, some were for an earlier punch, and never say a word. */
  static async #accepted(punch: Line, who: Bearer, arrivals: Inbox<net.Socket>): Promise<RawLink> {
    const { promise, resolve, reject } = Promise.withResolvers<RawLink>();
    let isOver = false;
    const giveUp = setTimeout(() => reject(new Error("nobody came for that punch")), patienceMs);
    const next = async (): Promise<void> => {
      const socket = await arrivals.next("a connection", () => !isOver);
      void next().catch(() => {});
      const link = new RawLink(socket, who.latest?.() ?? punch, who);
      await link.secured();
      if (isOver) link[Symbol.dispose]();
      else resolve(link);
    };
    next().catch(() => {});
    return promise.finally(() => {
      isOver = true;
      clearTimeout(giveUp);
    });
  }

  static async #dialled(punch: Line, who: Bearer): Promise<RawLink> {
    const all: string[] = [punch.peer.public, ...punch.peer.private];
    const target = all.find((one) => one.startsWith("127.0.0.1:")) ?? all[0]!;
    const port = Number(target.slice(target.lastIndexOf(":") + 1));
    const giveUpAt = performance.now() + patienceMs;
    for (;;) {
      try {
        // The participant listens while it punches, and only then.
        const link = new RawLink(await dial("127.0.0.1", port), punch, who);
        await link.secured();
        return link;
      } catch (error) {
        if (performance.now() > giveUpAt || who.isOver?.()) throw error;
        await Bun.sleep(5);
      }
    }
  }

  /** By way of the introducer, as its `relay` said; the other side must come, too. */
  static async relayed(port: number, relay: Line, who: Bearer): Promise<RawLink> {
    const way = new LineSocket(await dial("127.0.0.1", port));
    way.say({ type: "relay", token: relay.token });
    // From this line on the bytes are TLS.
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    way.lines.next("an answer").then((line) => {
      if (line.type === "relaying") resolve();
      else reject(new Error(JSON.stringify(line)));
    }, reject);
    await promise;
    way.socket.removeAllListeners("data").pause();
    const held = way.takeHeld();
    if (held.length > 0) way.socket.unshift(held);
    const link = new RawLink(way.socket, relay, who);
    await link.secured();
    return link;
  }

  /** Resolves once TLS is up; rejects when it does not come to that. */
  async secured(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.tls.once(this.role === "controlling" ? "secureConnect" : "secure", resolve);
    this.tls.once("close", () => reject(new Error("closed during the TLS handshake")));
    this.tls.once("error", reject);
    await promise;
    // Its own, by which that of its run is issued.
    const shown = this.tls.getPeerCertificate(true);
    const { fingerprint256 = "" } = shown.issuerCertificate ?? shown;
    this.peer = fingerprint256.replaceAll(":", "").toLowerCase();
  }

  /** Streams that this side opens have odd numbers where it is controlling, else even ones. */
  get firstStream(): number {
    return this.role === "controlling" ? 1 : 2;
  }

  /**
   * The first flight: a new session. The controlling side nominates this connection and says hello; the other waits for
   * that and agrees. From then on frames can be sent; `more` goes with it in the same write.
   */
  async begin(...more: Buffer[]): Promise<void> {
    if (this.role === "controlling") {
      const hello = helloFrame(frame.resume, { sessionId: this.sessionId });
      return this.send(this.nominationLine(), hello, countFrame(frame.start, 0), ...more);
    }
    const { payload } = await this.hears(frame.resume); // the nomination came before it
    const { sessionId, epoch } = readHello(payload);
    this.sessionId = sessionId;
    this.send(
      this.answerLine(),
      helloFrame(frame.resumed, { status: 0, epoch, sessionId }),
      countFrame(frame.start, 0),
      ...more,
    );
  }

  /** What comes before all frames. */
  nominationLine(token = this.token, proof = this.proof()): Buffer {
    return Buffer.from(JSON.stringify({ type: "nominate", token, proof }) + "\n");
  }

  /** The same, of the controlled side. */
  answerLine(proof = this.proof()): Buffer {
    return Buffer.from(JSON.stringify({ type: "nominated", proof }) + "\n");
  }

  /** Ours; or the one that the other side should show. */
  proof(prover: "controlling" | "controlled" = this.role): string {
    const { key, self, peer } = this.bond;
    const exported = this.tls.exportKeyingMaterial(32, "EXPORTER-tcp-hole-punching-link-2", Buffer.alloc(0));
    const both: [Shown, Shown] = this.role === "controlling" ? [self, peer] : [peer, self];
    return bondProof(key, exported, prover, ...both);
  }

  send(...frames: (Buffer | string)[]): void {
    this.tls.write(this.#withOwed(frames));
  }

  /** The same, and resolves once the kernel has it. */
  async sent(...frames: Buffer[]): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.tls.write(this.#withOwed(frames), () => resolve());
    await promise;
  }

  #withOwed(frames: (Buffer | string)[]): Buffer {
    const all = [...frames, ...(this.#owed ?? [])].map((one) => Buffer.from(one as string));
    this.#owed = undefined;
    return Buffer.concat(all);
  }

  #answer(one: Buffer): void {
    if (this.#owed) this.#owed.push(one);
    else this.send(one);
  }

  async hears(type: number, fits: (one: Frame) => boolean = () => true): Promise<Frame> {
    return this.frames.next(`a frame of type ${type}`, (one) => one.type === type && fits(one));
  }

  /** Resolves once the stream has brought that text. */
  async reads(stream: number, text: string): Promise<void> {
    while (!this.text.get(stream)?.includes(text)) {
      await this.hears(frame.data, (one) => one.stream === stream);
    }
  }

  /** RST, now. */
  cut(): void {
    this.tls.destroy();
  }

  #read(chunk: Buffer): void {
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    if (this.#awaitsLine) {
      const lf = this.#held.indexOf(10);
      if (lf < 0) return;
      this.#awaitsLine = false;
      this.nomination.resolve(parsed(this.#held.toString("utf8", 0, lf)));
      this.#held = this.#held.subarray(lf + 1);
    }
    const before = this.processed;
    let at = 0;
    while (this.#held.length - at >= 8) {
      const length = this.#held.readUIntBE(at + 1, 3);
      if (this.#held.length - at < 8 + length) break;
      const [type, stream] = [this.#held[at]!, this.#held.readUInt32BE(at + 4)];
      this.#frame({ type, stream, payload: this.#held.subarray(at + 8, at + 8 + length) });
      at += 8 + length;
    }
    this.#held = this.#held.subarray(at);
    if (this.acknowledges && this.processed > before) this.#answer(countFrame(frame.ack, this.processed));
  }

  #frame(one: Frame): void {
    if (one.type < 0x80) this.processed++;
    if (one.type === frame.ping && this.acknowledges) this.#answer(frameOf(frame.pong, one.payload));
    if (!this.keeps) return;
    if (one.type === frame.data)
      this.text.set(one.stream, (this.text.get(one.stream) ?? "") + one.payload.toString());
    this.frames.push(one);
  }

  #over(reason: string): void {
    this.frames.end(reason);
    this.nomination.reject(new Error(`no nomination came: ${reason}`));
  }

  [Symbol.dispose](): void {
    this.tls.destroy();
  }
}

// --- the stranger --------------------------------------------------------------------------------------------

/** A TCP connection, from that address where one is given (any 127.x.y.z is ours). */
export async function dial(host: string, port: number, from?: string): Promise<net.Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<net.Socket>();
  const options = { host, port, allowHalfOpen: true, noDelay: true, ...(from && { localAddress: from }) };
  const socket = net.connect(options);
  socket.once("connect", () => resolve(socket));
  socket.on("error", reject); // later ones, too: whoever has the socket looks at its end
  return promise;
}

/** A TCP service that counts who comes: what must not be reached. */
export class Bait implements Disposable {
  port = 0;
  /** Connections so far. */
  total = 0;
  readonly open = new Set<net.Socket>();
  readonly #server: net.Server;

  private constructor(onVisit: (socket: net.Socket) => void) {
    this.#server = net.createServer({ allowHalfOpen: true }, (socket) => {
      this.total++;
      this.open.add(socket);
      socket.on("error", () => {}).on("close", () => this.open.delete(socket));
      onVisit(socket);
    });
  }

  static async listen(host = "127.0.0.1", onVisit: (socket: net.Socket) => void = () => {}, port = 0) {
    const bait = new Bait(onVisit);
    bait.port = await listenOn(bait.#server, host, port);
    return bait;
  }

  [Symbol.dispose](): void {
    this.#server.close();
    for (const socket of this.open) socket.destroy();
  }
}

async function listenOn(server: net.Server, host: string, port = 0): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen({ host, port, backlog: 511 }, resolve);
  await promise;
  return (server.address() as net.AddressInfo).port;
}

// --- the local user ------------------------------------------------------------------------------------------

/**
 * Runs a command in a folder, with no environment but PATH and what is given, and reads what it says. With `ulimit` it
 * has so many descriptors. It is killed after {@link patienceMs}; `code` is then null.
 */
export async function run(
  folder: string,
  command: string[],
  { env = {}, stdin = "", ulimit }: { env?: Record<string, string>; stdin?: string; ulimit?: number } = {},
): Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }> {
  const limited = ulimit === undefined ? command : limitedTo(ulimit, command);
  await using child = Bun.spawn(limited, {
    cwd: folder,
    env: { PATH: process.env.PATH ?? "", ...env },
    stdin: new Blob([stdin]),
    stdout: "pipe",
    stderr: "pipe",
    timeout: patienceMs,
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  await child.exited;
  return { code: child.exitCode, signal: child.signalCode as NodeJS.Signals | null, stdout, stderr };
}

/** The command, with so many descriptors. */
export const limitedTo = (descriptors: number, command: string[]): string[] => [
  "/bin/sh",
  "-c",
  `ulimit -n ${descriptors}; exec "$@"`,
  "sh",
  ...command,
];

/** Resolves once it is true. */
export async function until(
  what: string,
  isTrue: () => boolean | Promise<boolean>,
  mostMs = patienceMs,
): Promise<void> {
  const giveUpAt = performance.now() + mostMs;
  while (!(await isTrue())) {
    if (performance.now() > giveUpAt) throw new Error(`never happened: ${what}`);
    await Bun.sleep(2);
  }
}
