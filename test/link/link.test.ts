import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import * as tls from "node:tls";
import { makeIdentity, type Identity } from "../../native/link/identity.ts";
import { Channel, Credentials, LinkError, type ChannelEnd, type Side } from "../../native/link/channel.ts";
import { Link } from "../../native/link/link.ts";
import { connectShared, type Socket } from "../../native/socket.ts";
import {
  encode,
  maxLineBytes,
  maxTextLength,
  splitEndpoint,
  type Role,
  type ToPeer,
  type UnlinkReason,
} from "../../protocol.ts";
import { listening, noSocketLeft, until } from "../native-fixture.ts";

const aliceIdentity = makeIdentity();
const bobIdentity = makeIdentity();
const alices = new Credentials(aliceIdentity);
const bobs = new Credentials(bobIdentity);

const purpose = "a link";
const client: Side = { role: "controlling", offers: [purpose] };
const server: Side = { role: "controlled", expects: (asked) => asked === purpose };
const sideOf = (role: Role): Side => (role === "controlling" ? client : server);

async function accepted(listener: Socket): Promise<Socket> {
  let socket: Socket | undefined;
  await until("a connection is accepted", () => (socket = listener.accept()) !== undefined);
  return socket!;
}

/** Two channels on one connection: Alice is the controlling side, the TLS client. */
async function channels(): Promise<[Channel, Channel]> {
  using listener = listening();
  const { socket } = await connectShared(listener.endpoint, 5_000);
  const alice = new Channel(socket, "public", client, alices);
  const bob = new Channel(await accepted(listener.socket), "listen", server, bobs);
  return [alice, bob];
}

/** What a link told its owner. */
interface Story {
  link: Link;
  said: string[];
  ends: { reason: UnlinkReason; detail?: string }[];
}

function listenTo(link: Link): Story {
  const story: Story = { link, said: [], ends: [] };
  link.onSaid = (text) => story.said.push(text);
  link.onClose = (reason, detail) => story.ends.push({ reason, ...(detail !== undefined && { detail }) });
  return story;
}

async function links(...timers: number[]): Promise<[Story, Story]> {
  const [a, b] = await channels();
  await Promise.all([a.secured, b.secured]);
  return [listenTo(new Link(a, ...timers)), listenTo(new Link(b, ...timers))];
}

async function rejection(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof LinkError) return error.message;
    throw error;
  }
  throw new Error("it did not fail");
}

/** A TLS client that keeps to no protocol, and the link of whoever accepted it. */
class Rogue implements Disposable {
  readonly socket: tls.TLSSocket;
  /** Bytes that came. */
  received = "";
  constructor(port: number, { key, certificate }: Identity) {
    this.socket = tls.connect({
      host: "127.0.0.1",
      port,
      key,
      cert: certificate,
      rejectUnauthorized: false,
      ALPNProtocols: [purpose],
    });
    this.socket.on("data", (chunk: Buffer) => (this.received += chunk.toString()));
    this.socket.on("error", () => {});
  }
  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

async function againstRogue(...timers: number[]): Promise<[Rogue, Story]> {
  using listener = listening();
  const rogue = new Rogue(splitEndpoint(listener.endpoint).port, aliceIdentity);
  const channel = new Channel(await accepted(listener.socket), "listen", server, bobs);
  await channel.secured;
  return [rogue, listenTo(new Link(channel, ...timers))];
}

// --- channel -----------------------------------------------------------------------------------------------

describe("a channel", () => {
  test("tells each side the other's certificate and endpoint", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await channels();
    expect(await Promise.all([alice.secured, bob.secured])).toEqual([
      bobIdentity.fingerprint,
      aliceIdentity.fingerprint,
    ]);
    expect([alice.local, alice.remote]).toEqual([bob.remote, bob.local]);
    alice[Symbol.dispose]();
    bob[Symbol.dispose]();
  });

  test.each(["controlling", "controlled"] as const)(
    "as %s side ends when disposed of during the handshake, without an unhandled rejection",
    async (role) => {
      await using _ = noSocketLeft();
      using listener = listening();
      const { socket } = await connectShared(listener.endpoint, 5_000);
      using silent = await accepted(listener.socket);
      const channel = new Channel(socket, "public", sideOf(role), alices);
      const ends: string[] = [];
      channel.onClose = ({ is }) => ends.push(is);
      channel[Symbol.dispose]();
      channel[Symbol.dispose]();
      expect([channel.isOpen, ends, silent.isOpen]).toEqual([false, ["closed"], true]);
      expect(await rejection(channel.secured)).toBe("closed during the TLS handshake");
      channel.send({ type: "ping", id: 1 });
      expect(channel.bytesOut).toBe(0);
    },
  );

  const plaintext: Record<string, string> = {
    "plain HTTP": "GET / HTTP/1.0\r\n\r\n",
    "our lines without TLS": encode({ type: "nominate", token: "0".repeat(32) }),
    zeros: "\0".repeat(100_000),
  };
  test.each(
    Object.entries(plaintext).flatMap(([what, bytes]) =>
      (["controlling", "controlled"] as const).map((role) => [what, role, bytes] as const),
    ),
  )("that meets %s as %s side ends with a reason", async (_what, role, bytes) => {
    await using _ = noSocketLeft();
    using server = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      socket: { open: (stranger) => void stranger.write(bytes), data() {}, error() {} },
    });
    const { socket } = await connectShared(`127.0.0.1:${server.port}` as Channel["remote"], 5_000);
    const channel = new Channel(socket, "public", sideOf(role), alices);
    const ended = Promise.withResolvers<ChannelEnd>();
    channel.onClose = ended.resolve;
    expect(await rejection(channel.secured)).not.toBe("");
    await ended.promise;
    expect(channel.isOpen).toBe(false);
  });

  test("without a certificate is not secured", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const client = tls.connect({
      host: "127.0.0.1",
      port: splitEndpoint(listener.endpoint).port,
      rejectUnauthorized: false,
    });
    client.on("error", () => {});
    const channel = new Channel(await accepted(listener.socket), "listen", server, bobs);
    expect(await rejection(channel.secured)).toBe("no certificate was shown");
    channel[Symbol.dispose]();
    client.destroy();
  });

  /** A channel as server, and what a client with that offer makes of it. */
  async function offered(ALPNProtocols: string[] | undefined) {
    using listener = listening();
    const { key, certificate: cert } = aliceIdentity;
    const { port } = splitEndpoint(listener.endpoint);
    const options = { host: "127.0.0.1", port, key, cert, rejectUnauthorized: false };
    const client = tls.connect({ ...options, ...(ALPNProtocols && { ALPNProtocols }) });
    const told = { isSecured: false };
    client.on("secureConnect", () => (told.isSecured = true)).on("error", () => {});
    const channel = new Channel(await accepted(listener.socket), "listen", server, bobs);
    return { client, channel, told };
  }

  test.each([
    [[purpose], "accepted", true],
    [["another", purpose], "accepted", true],
    [["another"], "TLS refused: no application protocol", false],
    [undefined, "the other side did not say what it came for", undefined],
  ] as const)("for %j: %s, and the client knows (%p)", async (offers, expected, isSecured) => {
    await using _ = noSocketLeft();
    const { client, channel, told } = await offered(offers && [...offers]);
    const outcome = await channel.secured.then(
      () => "accepted",
      (error: Error) => error.message,
    );
    expect(outcome).toContain(expected);
    expect([channel.isOpen, channel.purpose]).toEqual(
      expected === "accepted" ? [true, purpose] : [false, undefined],
    );
    if (isSecured !== undefined) await until("the client knows", () => told.isSecured || client.destroyed);
    if (isSecured !== undefined) expect(told.isSecured).toBe(isSecured);
    channel[Symbol.dispose]();
    client.destroy();
  });

  test("as client takes no server that does not answer its offer", async () => {
    await using _ = noSocketLeft();
    const { key, certificate: cert } = bobIdentity;
    using stranger = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      tls: { key, cert },
      socket: { data() {}, error() {} },
    });
    const { socket } = await connectShared(`127.0.0.1:${stranger.port}` as Channel["remote"], 5_000);
    const channel = new Channel(socket, "public", client, alices);
    expect(await rejection(channel.secured)).toBe("the other side did not say what it came for");
    expect(channel.isOpen).toBe(false);
    stranger.stop(true);
  });

  test("refuses a peer that can only do TLS 1.2", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const { key, certificate } = aliceIdentity;
    const client = tls.connect({
      host: "127.0.0.1",
      port: splitEndpoint(listener.endpoint).port,
      key,
      cert: certificate,
      maxVersion: "TLSv1.2",
      rejectUnauthorized: false,
    });
    client.on("error", () => {});
    const channel = new Channel(await accepted(listener.socket), "listen", server, bobs);
    expect(await rejection(channel.secured)).not.toBe("");
    channel[Symbol.dispose]();
    client.destroy();
  });

  test("on a socket that was reset leaves the descriptor to its owner", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const { socket } = await connectShared(listener.endpoint, 5_000);
    using owned = await accepted(listener.socket);
    socket.closeAbortively().close();
    await until("the reset arrives", () => owned.error() === "ECONNRESET");
    expect(() => new Channel(owned, "listen", server, bobs)).toThrow("getpeername: ENOTCONN");
    expect(owned.isOpen).toBe(true);
  });
});

// --- saying ------------------------------------------------------------------------------------------------

describe("a link", () => {
  test("carries what is said both ways, in order, and says that it was heard", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links();
    const texts = Array.from({ length: 200 }, (_, index) => `${index} äöü 🦊 \n"\\`);
    const answers = await Promise.all(
      texts.flatMap((text) => [alice.link.say(text), bob.link.say(text.toUpperCase())]),
    );
    expect(bob.said).toEqual(texts);
    expect(alice.said).toEqual(texts.map((text) => text.toUpperCase()));
    expect(answers.every((elapsedMs) => elapsedMs > 0)).toBe(true);
    await Promise.all([alice.link.close("disconnected"), bob.link.close("disconnected")]);
  });

  test("measures the round trip, and counts its bytes alike on both sides", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links();
    const elapsedMs = await alice.link.ping();
    expect(alice.link.rttMs).toBe(elapsedMs);
    expect(elapsedMs).toBeGreaterThan(0);
    await until("the other side's first ping was answered", () => bob.link.rttMs !== undefined);
    await until("all bytes are in", () => alice.link.bytesOut === bob.link.bytesIn);
    expect(bob.link.bytesOut).toBe(alice.link.bytesIn);
    await alice.link.close("disconnected");
  });

  test("carries the longest text", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links();
    const longest = "\u0001".repeat(maxTextLength); // six bytes a character once it is JSON
    await alice.link.say(longest);
    expect(bob.said).toEqual([longest]);
    await bob.link.close("disconnected");
  });

  test("survives that the nomination is said again", async () => {
    await using _ = noSocketLeft();
    const [a, b] = await channels();
    await Promise.all([a.secured, b.secured]);
    const bob = listenTo(new Link(b));
    a.send({ type: "nominate", token: "0".repeat(32) });
    const alice = listenTo(new Link(a));
    await alice.link.say("still here");
    expect(bob.said).toEqual(["still here"]);
    await alice.link.close("disconnected");
  });
});

// --- the orderly end ---------------------------------------------------------------------------------------

describe("close", () => {
  test("ends both sides, telling who and why, once", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links();
    await Promise.all([alice.link.close("quit"), alice.link.close("disconnected")]);
    await until("bob has heard", () => bob.ends.length > 0);
    expect(alice.ends).toEqual([{ reason: "quit" }]);
    expect(bob.ends).toEqual([{ reason: "peer-quit" }]);
    await Promise.all([alice.link.close("disconnected"), bob.link.close("disconnected")]);
    expect([alice.ends.length, bob.ends.length, alice.link.isOpen, bob.link.isOpen]).toEqual([
      1,
      1,
      false,
      false,
    ]);
    expect(await rejection(alice.link.say("too late"))).toBe("the link has ended");
    expect(await rejection(alice.link.ping())).toBe("the link has ended");
  });

  // A megabyte does not fit into the socket at once, so closing too early would lose some of it.
  test("comes after everything said before", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links();
    const texts = Array.from({ length: 150 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    const heard = Promise.allSettled(texts.map((text) => alice.link.say(text)));
    await alice.link.close("disconnected");
    expect((await heard).every(({ status }) => status === "fulfilled")).toBe(true);
    expect(bob.said).toEqual(texts);
    await until("bob has heard the end", () => bob.ends.length > 0);
    expect(bob.ends).toEqual([{ reason: "peer-disconnected" }]);
  });

  test.each([1, 2, 3, 4, 5])("from both sides at once loses nothing either said (%d)", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links();
    const texts = Array.from({ length: 150 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    const heard = texts.flatMap((text) => [alice.link.say(text), bob.link.say(text)]);
    const settled = Promise.allSettled(heard);
    await Promise.all([alice.link.close("disconnected"), bob.link.close("disconnected")]);
    expect([bob.said.length, alice.said.length]).toEqual([150, 150]);
    expect([alice.ends, bob.ends]).toEqual([[{ reason: "disconnected" }], [{ reason: "disconnected" }]]);
    await settled;
  });

  test("that crosses the peer's is answered, and waits for the peer's FIN", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue();
    using _rogue = rogue;
    const closing = bob.link.close("disconnected");
    rogue.socket.write(encode({ type: "bye", reason: "quit" }));
    await until("bob answers", () => rogue.received.endsWith(encode({ type: "bye", reason: "answer" })));
    rogue.socket.end();
    await closing;
    expect(bob.ends).toEqual([{ reason: "disconnected" }]);
  });

  test("resolves although the peer never answers", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue();
    using _rogue = rogue;
    await bob.link.close("disconnected");
    expect(bob.ends).toEqual([{ reason: "disconnected" }]);
    expect(rogue.received).toEndWith(encode({ type: "bye", reason: "disconnected" }));
  });

  test("resolves although the peer has stopped reading", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue();
    using _rogue = rogue;
    rogue.socket.pause();
    const unheard = Array.from({ length: 1_000 }, () => bob.link.say("x".repeat(maxTextLength)));
    const settled = Promise.allSettled(unheard);
    await bob.link.close("disconnected");
    expect((await settled).every(({ status }) => status === "rejected")).toBe(true);
    expect(bob.ends).toEqual([{ reason: "disconnected" }]);
  });
});

// --- broken ends -------------------------------------------------------------------------------------------

describe("a link breaks", () => {
  test("when the connection is closed, and what was not answered is told", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue();
    const unanswered = rejection(bob.link.say("are you there?"));
    await until("the rogue has it", () => rogue.received.includes("are you there?"));
    rogue.socket.end();
    expect(await unanswered).toBe(
      "the link ended before the peer answered: the connection broke: the connection was closed at the peer's end",
    );
    expect(bob.ends).toEqual([
      { reason: "connection-lost", detail: "the connection was closed at the peer's end" },
    ]);
    rogue[Symbol.dispose]();
  });

  test("when the peer neither answers nor speaks for the time of silence", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue(20, 120);
    using _rogue = rogue;
    const unanswered = rejection(bob.link.say("are you there?"));
    expect(await unanswered).toEndWith("nothing heard for 0.12 s");
    expect(bob.ends).toEqual([{ reason: "peer-silent", detail: "nothing heard for 0.12 s" }]);
    expect(rogue.received.split('"type":"ping"').length - 1).toBeGreaterThanOrEqual(2);
  });

  test("not while keepalives are answered, however long nobody speaks", async () => {
    await using _ = noSocketLeft();
    const [alice, bob] = await links(10, 200);
    const start = alice.link.bytesIn;
    const pong = encode({ type: "pong", id: 10 }).length;
    // Sixty answers at one every 10 ms are three times the silence that would have ended it.
    await until("many keepalives went by", () => alice.link.bytesIn - start > 60 * 2 * pong);
    expect([alice.ends, bob.ends]).toEqual([[], []]);
    await alice.link.close("disconnected");
  });

  const lines: Record<string, [string | Uint8Array, string]> = {
    "no JSON": ["hello\n", "a line must be one JSON object"],
    "no object": ["[1]\n", "a line must be one JSON object"],
    "an unknown message": ['{"type":"open-door"}\n', "type must be one of"],
    "a message of the other protocol": ['{"type":"echo","text":"x"}\n', "type must be one of"],
    "a missing field": ['{"type":"say","id":1}\n', "text must be text of at most"],
    "a text that is too long": [
      `{"type":"say","id":1,"text":"${"x".repeat(maxTextLength + 1)}"}\n`,
      "text must be text of at most",
    ],
    "no UTF-8": [new Uint8Array([0x22, 0xff, 0xfe, 0x0a]), "a line must be UTF-8"],
    "a line without end": ["x".repeat(maxLineBytes), `a line must have at most ${maxLineBytes} bytes`],
  };
  test.each(Object.entries(lines))(
    "when the peer sends %s, with the reason",
    async (_what, [bytes, complaint]) => {
      await using _ = noSocketLeft();
      const [rogue, bob] = await againstRogue();
      using _rogue = rogue;
      rogue.socket.write(bytes);
      await until("bob's link ends", () => bob.ends.length > 0);
      expect(bob.ends).toEqual([{ reason: "protocol-error", detail: expect.stringContaining(complaint) }]);
    },
  );

  test("not by answers to what was never asked", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue();
    using _rogue = rogue;
    const never: ToPeer[] = [
      { type: "heard", id: 999 },
      { type: "pong", id: 999 },
      { type: "say", id: 7, text: "fine" },
    ];
    rogue.socket.write(never.map(encode).join(""));
    await until("bob heard", () => bob.said.length > 0);
    expect([bob.said, bob.ends]).toEqual([["fine"], []]);
    await until("the rogue is told", () => rogue.received.includes(encode({ type: "heard", id: 7 })));
  });

  test("nothing more of a peer is read once it broke the protocol", async () => {
    await using _ = noSocketLeft();
    const [rogue, bob] = await againstRogue();
    using _rogue = rogue;
    const say = (text: string) => encode({ type: "say", id: 1, text });
    rogue.socket.write(`${say("before")}nonsense\n${say("after")}`);
    await until("bob's link ends", () => bob.ends.length > 0);
    expect(bob.said).toEqual(["before"]);
  });
});

// --- the peer's process --------------------------------------------------------------------------------------

function spawnPeer(endpoint: string) {
  return Bun.spawn([process.execPath, join(import.meta.dir, "link-fixture.ts"), endpoint], {
    stdin: new Blob([JSON.stringify(aliceIdentity)]),
    stdout: "pipe",
    stderr: "inherit",
  });
}

test("a process whose link was closed ends by itself: no timer, no descriptor holds it", async () => {
  await using _ = noSocketLeft();
  using listener = listening();
  const child = spawnPeer(listener.endpoint);
  const channel = new Channel(await accepted(listener.socket), "listen", server, bobs);
  await channel.secured;
  const bob = listenTo(new Link(channel));
  await until("the peer has spoken", () => bob.said.length > 0);
  await bob.link.close("quit");
  expect(await new Response(child.stdout).text()).toBe("heard\npeer-quit\n");
  expect(await child.exited).toBe(0);
});

describe.each([
  // The kernel resets when bytes were left unread, and says FIN when none were.
  ["SIGKILL", "connection-lost", /^the connection was (reset|closed at the peer's end)$/],
  ["SIGSTOP", "peer-silent", /^nothing heard for 0.5 s$/],
] as const)("a peer whose process gets %s", (signal, reason, detail) => {
  test("is noticed", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const child = spawnPeer(listener.endpoint);
    const channel = new Channel(await accepted(listener.socket), "listen", server, bobs);
    expect(await channel.secured).toBe(aliceIdentity.fingerprint);
    const bob = listenTo(new Link(channel, 50, 500));
    try {
      await until("the peer has spoken", () => bob.said.length > 0);
      await bob.link.say("welcome");
      child.kill(signal);
      const unanswered = rejection(bob.link.say("are you there?"));
      expect(await unanswered).toStartWith("the link ended before the peer answered");
      expect(bob.ends).toEqual([{ reason, detail: expect.stringMatching(detail) }]);
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
  });
});
