import { describe, expect, setDefaultTimeout, test } from "bun:test";
import * as tls from "node:tls";
import { Channel } from "../../native/secure/channel.ts";
import { adopt } from "../../native/secure/tls.ts";
import { isAcknowledged } from "../../native/host/libc.ts";
import { connectShared, Socket } from "../../native/host/socket.ts";
import { encode, splitEndpoint, type Role } from "../../protocol.ts";
import { listening, loopback, noSocketLeft, until } from "../native-fixture.ts";
import {
  accepted,
  aliceIdentity,
  bobIdentity,
  channels,
  client,
  credentialsOf,
  nominationOn,
  purpose,
  rejection,
  securedAs,
  server,
  sideOf,
  token,
  Wire,
} from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const alices = credentialsOf(aliceIdentity);
const bobs = credentialsOf(bobIdentity);
const roles = ["controlling", "controlled"] as const satisfies Role[];

/** What a channel told whoever has it. */
function told(channel: Channel) {
  const seen = { nominations: [] as string[], bytes: 0, text: "", writtenAll: 0, ends: [] as string[] };
  channel.nomination.onNominated = (named) => seen.nominations.push(named);
  channel.onData = (chunk) => {
    seen.bytes += chunk.length;
    if (seen.text.length < 1_000) seen.text += chunk.toString("latin1");
  };
  channel.onWritten = () => seen.writtenAll++;
  channel.onClose = (reason) => seen.ends.push(reason);
  return seen;
}

/** Who keeps to no protocol but TLS, as client, and the channel of whoever accepted it. */
async function againstRogue() {
  using listener = listening();
  const { key, certificate: cert } = aliceIdentity;
  const { port } = splitEndpoint(listener.endpoint);
  const options = { host: "127.0.0.1", port, key, cert, rejectUnauthorized: false, allowHalfOpen: true };
  const rogue = tls.connect({ ...options, ALPNProtocols: [purpose] });
  rogue.on("error", () => {});
  const channel = new Channel(adopt(await accepted(listener.socket)), "listen", server, bobs);
  await securedAs(channel, bobIdentity);
  const nomination = nominationOn(rogue, aliceIdentity, bobIdentity);
  return { rogue, channel, nomination, seen: told(channel), [Symbol.dispose]: () => void rogue.destroy() };
}

// --- who is at the other end -------------------------------------------------------------------------------

describe("a channel", () => {
  test("tells each side the other's certificate and endpoint", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await channels();
    expect([alice.peer, bob.peer]).toEqual([bobIdentity.fingerprint, aliceIdentity.fingerprint]);
    expect(await Promise.all([alice.secured, bob.secured])).toEqual([alice.peer, bob.peer]);
    expect([alice.local, alice.remote]).toEqual([bob.remote, bob.local]);
    expect([alice.role, bob.role]).toEqual(["controlling", "controlled"]);
    alice.destroy();
    bob.destroy();
  });

  test.each(roles)(
    "as %s side ends when closed during the handshake, without an unhandled rejection",
    async (role) => {
      await using _ = noSocketLeft();
      using listener = listening();
      const { socket } = await connectShared(listener.endpoint, 5_000);
      using silent = await accepted(listener.socket);
      const channel = new Channel(adopt(socket), "public", sideOf(role), alices);
      const { ends } = told(channel);
      channel.destroy();
      channel.destroy();
      expect([channel.isOpen, ends, silent.isOpen]).toEqual([false, [], true]); // no callback follows
      expect(await rejection(channel.secured)).toBe("closed during the TLS handshake");
      channel.write(Buffer.from("too late"));
      channel.nominate(token);
      expect(channel.queuedBytes).toBe(0);
    },
  );

  const plaintext: Record<string, string> = {
    "plain HTTP": "GET / HTTP/1.0\r\n\r\n",
    "our lines without TLS": encode({ type: "nominate", token: "0".repeat(32), proof: "0".repeat(64) }),
    zeros: "\0".repeat(100_000),
  };
  test.each(
    Object.entries(plaintext).flatMap(([what, bytes]) => roles.map((role) => [what, role, bytes] as const)),
  )("that meets %s as %s side ends with a reason, once", async (_what, role, bytes) => {
    await using _ = noSocketLeft();
    using stranger = Bun.listen({
      hostname: "127.0.0.1",
      port: 0,
      socket: { open: (one) => void one.write(bytes), data() {}, error() {} },
    });
    const { socket } = await connectShared(loopback(stranger.port), 5_000);
    const channel = new Channel(adopt(socket), "public", sideOf(role), alices);
    const { ends } = told(channel);
    expect(await rejection(channel.secured)).not.toBe("");
    await until("it is told", () => ends.length > 0);
    expect([channel.isOpen, ends.length, ends[0] !== ""]).toEqual([false, 1, true]);
  });

  test("without a certificate is not secured", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const { port } = splitEndpoint(listener.endpoint);
    const nobody = tls.connect({ host: "127.0.0.1", port, rejectUnauthorized: false });
    nobody.on("error", () => {});
    const channel = new Channel(adopt(await accepted(listener.socket)), "listen", server, bobs);
    expect(await rejection(channel.secured)).toBe("no certificate was shown");
    expect([channel.isOpen, channel.isRejected, channel.peer]).toEqual([false, true, ""]);
    nobody.destroy();
  });

  /** A channel as server, and what a client with that offer makes of it. */
  async function offered(ALPNProtocols: string[] | undefined) {
    using listener = listening();
    const { key, certificate: cert } = aliceIdentity;
    const { port } = splitEndpoint(listener.endpoint);
    const options = { host: "127.0.0.1", port, key, cert, rejectUnauthorized: false };
    const caller = tls.connect({ ...options, ...(ALPNProtocols && { ALPNProtocols }) });
    const knows = { isSecured: false };
    caller.on("secureConnect", () => (knows.isSecured = true)).on("error", () => {});
    const channel = new Channel(adopt(await accepted(listener.socket)), "listen", server, bobs);
    return { caller, channel, knows };
  }

  test.each([
    [[purpose], "accepted", true],
    [["another", purpose], "accepted", true],
    [["another"], "TLS refused: no application protocol", false],
    [undefined, "the other side did not say what it came for", undefined],
  ] as const)("for %j: %s, and the client knows (%p)", async (offers, expected, isSecured) => {
    await using _ = noSocketLeft();
    const { caller, channel, knows } = await offered(offers && [...offers]);
    const outcome = await channel.secured.then(
      () => "accepted",
      (error: Error) => error.message,
    );
    expect(outcome).toContain(expected);
    expect([channel.isOpen, channel.alpn]).toEqual(
      expected === "accepted" ? [true, purpose] : [false, undefined],
    );
    if (isSecured !== undefined) await until("the client knows", () => knows.isSecured || caller.destroyed);
    if (isSecured !== undefined) expect(knows.isSecured).toBe(isSecured);
    channel.destroy();
    caller.destroy();
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
    const { socket } = await connectShared(loopback(stranger.port), 5_000);
    const channel = new Channel(adopt(socket), "public", client, alices);
    expect(await rejection(channel.secured)).toBe("the other side did not say what it came for");
    expect(channel.isOpen).toBe(false);
    stranger.stop(true);
  });

  test("refuses a peer that can only do TLS 1.2", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const { key, certificate: cert } = aliceIdentity;
    const { port } = splitEndpoint(listener.endpoint);
    const options = { host: "127.0.0.1", port, key, cert, rejectUnauthorized: false };
    const old = tls.connect({ ...options, ALPNProtocols: [purpose], maxVersion: "TLSv1.2" });
    old.on("error", () => {});
    const channel = new Channel(adopt(await accepted(listener.socket)), "listen", server, bobs);
    expect(await rejection(channel.secured)).toBe("TLS refused: unsupported protocol");
    expect(channel.isOpen).toBe(false);
    old.destroy();
  });

  test("on a socket that was reset leaves the descriptor to its owner", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const { socket } = await connectShared(listener.endpoint, 5_000);
    using owned = await accepted(listener.socket);
    socket.closeAbortively().close();
    await until("the reset arrives", () => owned.error() === "ECONNRESET");
    expect(() => adopt(owned)).toThrow("getpeername: ENOTCONN");
    expect(owned.isOpen).toBe(true);
  });
});

// --- the nomination ----------------------------------------------------------------------------------------

describe("a nomination", () => {
  test("is told once, and what follows is data, whatever it looks like", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await channels();
    const seen = told(bob);
    alice.nominate(token);
    const again = encode({ type: "nominate", token: "f".repeat(32), proof: "0".repeat(64) });
    await until("bob has proved himself", () => alice.nomination.isProved);
    alice.write(Buffer.from(again));
    await until("it has come", () => seen.bytes === again.length);
    expect([seen.nominations, seen.text, seen.ends]).toEqual([[token], again, []]);
    alice.destroy();
    bob.destroy();
  });

  test("and bytes behind it in the same write: they come as data, after it", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, channel, nomination, seen } = scene;
    const order: string[] = [];
    channel.nomination.onNominated = () => {
      order.push("nominated");
      channel.onData = (chunk) => order.push(chunk.toString()); // as a session does, which takes it over
    };
    rogue.write(`${nomination}\0\n{"not":"ours"}`);
    await until("all has come", () => order.length === 2);
    expect([order, seen.ends]).toEqual([["nominated", '\0\n{"not":"ours"}'], []]);
    channel.destroy();
  });

  test("of which the bytes come one by one is one", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, channel, nomination, seen } = scene;
    for (const byte of `${nomination}and data`) {
      await new Promise<void>((sent) => rogue.write(byte, () => sent()));
    }
    await until("all has come", () => seen.text === "and data");
    expect(seen.nominations).toEqual([token]);
    channel.destroy();
  });

  test("that closes the channel keeps what followed it to itself", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, channel, nomination, seen } = scene;
    channel.nomination.onNominated = () => channel.reject("it was nominated for something else");
    rogue.write(`${nomination}data`);
    await until("it is closed", () => seen.ends.length > 0);
    expect([seen.bytes, seen.ends, channel.isRejected]).toEqual([
      0,
      ["it was nominated for something else"],
      true,
    ]);
  });

  const bad: Record<string, [string | Uint8Array, string]> = {
    "a line without end": ["x".repeat(257), "it sent no nomination first"],
    "a line that is too long": [`{"type":"nominate","token":"${token}","x":"${"x".repeat(256)}"}\n`, "first"],
    "a megabyte without a line": [new Uint8Array(1 << 20), "it sent no nomination first"],
    "an empty line": ["\n", "it sent no nomination first"],
    "no object": ["hello\n", "it sent no nomination first"],
    "no JSON": ["{hello\n", "its nomination is none: a line must be one JSON object"],
    "no UTF-8": [
      new Uint8Array([0x7b, 0xfe, 0x0a]),
      "its nomination is none: a line must be one JSON object",
    ],
    "another message": ['{"type":"say","id":1,"text":"x"}\n', "its nomination is none: type must be one of"],
    "no token": ['{"type":"nominate"}\n', "its nomination is none: token must be"],
    "a frame": [new Uint8Array([0x83, 0, 0, 30, 0, 0, 0, 0]), "it sent no nomination first"],
    "no proof": [`{"type":"nominate","token":"${token}"}\n`, "its nomination is none: proof must be"],
    "a proof of something else": [
      encode({ type: "nominate", token, proof: "0".repeat(64) }),
      "its proof that it is of the room is wrong",
    ],
    "an answer": [
      encode({ type: "nominated", proof: "0".repeat(64) }),
      "its proof that it is of the room is wrong",
    ],
  };
  test.each(Object.entries(bad))(
    "that is %s closes the channel, with the reason",
    async (_what, [bytes, why]) => {
      await using _ = noSocketLeft();
      using scene = await againstRogue();
      const { rogue, channel, seen } = scene;
      rogue.write(bytes);
      await until("it is closed", () => seen.ends.length > 0);
      expect(seen).toMatchObject({ nominations: [], bytes: 0, ends: [expect.stringContaining(why)] });
      expect([channel.isOpen, channel.isRejected]).toEqual([false, true]);
    },
  );
});

// --- a carrier ---------------------------------------------------------------------------------------------

/** Two ends of a nominated channel. */
async function carriers() {
  const wire = await Wire.between("alice");
  const seen = { alice: told(wire.alice), bob: told(wire.bob) };
  wire.nominate();
  await until(
    "both have proved themselves",
    () => seen.bob.nominations.length > 0 && wire.alice.nomination.isProved,
  );
  seen.alice.writtenAll = seen.bob.writtenAll = 0;
  return { wire, alice: wire.alice, bob: wire.bob, seen };
}

describe("a channel as carrier", () => {
  test("says how much waits, and when nothing does any more", async () => {
    await using _ = noSocketLeft();
    const { wire, alice, bob, seen } = await carriers();
    wire.silence();
    const { onWritten } = alice;
    const waiting: number[] = [];
    alice.onWritten = () => (waiting.push(alice.queuedBytes), onWritten());
    const bytes = 48 << 20; // more than kernels take
    alice.write(Buffer.alloc(bytes));
    expect(alice.queuedBytes).toBeGreaterThan(0);
    bob.write(Buffer.from("hello")); // it is written meanwhile, and told
    await until("it is written", () => seen.bob.writtenAll === 1);
    expect([bob.queuedBytes, alice.queuedBytes > 0, waiting]).toEqual([0, true, []]);
    wire.resume();
    await until("all is there", () => seen.bob.bytes === bytes);
    await until("it is told", () => waiting.length > 0);
    expect([alice.queuedBytes, waiting]).toEqual([0, [0]]);
    alice.destroy();
    bob.destroy();
  });

  test("calls nobody from within a call to it", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, seen } = await carriers();
    const within: string[] = [];
    let call: string | undefined;
    const notice = (what: string) => call && within.push(`${what} within ${call}`);
    for (const channel of [alice, bob]) {
      const { onData, onWritten, onClose } = channel;
      channel.onData = (chunk) => (notice("onData"), onData(chunk));
      channel.onWritten = () => (notice("onWritten"), onWritten());
      channel.onClose = (reason) => (notice("onClose"), onClose(reason));
    }
    const during = (name: string, work: () => void) => {
      call = name;
      work();
      call = undefined;
    };
    during("pause", () => bob.pause());
    during("write", () => alice.write(Buffer.from("hello")));
    await until("it is written", () => seen.alice.writtenAll > 0);
    during("resume", () => bob.resume());
    await until("it has come", () => seen.bob.text === "hello");
    during("finish", () => alice.finish());
    during("destroy", () => bob.destroy());
    expect(within).toEqual([]);
  });

  test("hands nothing on while it is paused, and all of it in order afterwards", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, seen } = await carriers();
    bob.pause();
    const lines = Array.from({ length: 2_000 }, (_, n) => `${n};`);
    for (const line of lines) alice.write(Buffer.from(line));
    await until("all is taken", () => alice.queuedBytes === 0 && seen.alice.writtenAll > 0);
    const text = lines.join("");
    // It has crossed the network by then: the other way is open, and comes behind it.
    bob.write(Buffer.from("so far"));
    await until("alice has that", () => seen.alice.text === "so far");
    expect(seen.bob.bytes).toBe(0);
    let got = "";
    bob.onData = (chunk) => {
      got += chunk.toString();
      bob.pause(); // a chunk at a time
      setImmediate(() => bob.resume());
    };
    bob.resume();
    await until("all has come", () => got.length >= text.length);
    expect(got).toBe(text);
    alice.destroy();
    bob.destroy();
  });

  test("finishes when all has arrived, with no callback, though megabytes were waiting", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, seen } = await carriers();
    const bytes = 8 << 20;
    const digest = new Bun.CryptoHasher("sha256");
    bob.onData = (chunk) => {
      seen.bob.bytes += chunk.length;
      digest.update(chunk);
    };
    const sent = Buffer.alloc(bytes, "0123456789abcdef\n");
    alice.write(sent);
    alice.finish();
    await until("bob has all, and the end", () => seen.bob.ends.length > 0);
    expect(seen.bob).toMatchObject({ bytes, ends: ["the connection was closed at the peer's end"] });
    expect(digest.digest("hex")).toBe(new Bun.CryptoHasher("sha256").update(sent).digest("hex"));
    await until("alice's end is closed", () => !alice.isOpen);
    expect([seen.alice.ends, seen.alice.writtenAll]).toEqual([[], 0]);
  });

  test("finishes within a second or so though the peer reads nothing", async () => {
    await using _ = noSocketLeft();
    const { wire, alice, bob, seen } = await carriers();
    wire.silence();
    alice.write(Buffer.alloc(32 << 20));
    alice.finish();
    expect(alice.isOpen).toBe(true);
    await until("it has given up", () => !alice.isOpen);
    expect(seen.alice.ends).toEqual([]);
    bob.destroy();
    wire.cut();
  });

  test("that is finished does not hear what the peer still sends", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, seen } = await carriers();
    alice.finish();
    bob.write(Buffer.alloc(1 << 20));
    await until("both are closed", () => !alice.isOpen && !bob.isOpen);
    expect([seen.alice.bytes, seen.alice.ends, seen.bob.ends.length]).toEqual([0, [], 1]);
  });

  test("that is destroyed calls nobody any more, also for what was written before", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, seen } = await carriers();
    alice.write(Buffer.alloc(16 << 20));
    bob.write(Buffer.alloc(1 << 20));
    alice.destroy();
    // Its descriptor's number is somebody else's soon; what comes late must not touch that.
    const successors = Array.from({ length: 20 }, () => Socket.open(4));
    await until("bob has heard", () => seen.bob.ends.length > 0);
    await new Promise((turn) => setImmediate(turn));
    expect(seen.alice).toMatchObject({ bytes: 0, writtenAll: 0, ends: [] });
    expect([alice.queuedBytes >= 0, alice.isOpen]).toEqual([true, false]);
    alice.pause();
    alice.resume();
    alice.write(Buffer.from("too late"));
    alice.finish();
    alice.destroy();
    for (const socket of successors) expect(socket.isOpen).toBe(true);
    for (const socket of successors) socket.close();
  });

  test("tells of a reset in plain words, once", async () => {
    await using _ = noSocketLeft();
    const { wire, alice, bob, seen } = await carriers();
    wire.cut();
    await until("both have heard", () => seen.alice.ends.length > 0 && seen.bob.ends.length > 0);
    expect([seen.alice.ends, seen.bob.ends]).toEqual([
      ["the connection was reset"],
      ["the connection was reset"],
    ]);
    expect([alice.isOpen, bob.isOpen]).toEqual([false, false]);
  });

  test("whose peer says FIN closes, once all that it had to say is acknowledged", async () => {
    await using _ = noSocketLeft();
    const { wire, alice, bob, seen } = await carriers();
    bob.write(Buffer.alloc(3 << 20));
    alice.write(Buffer.from("last words"));
    await until("they have come", () => seen.bob.text === "last words");
    wire.fin("alice");
    await until("bob's end has ended", () => seen.bob.ends.length > 0);
    expect(seen.bob.ends).toEqual(["the connection was closed at the peer's end"]);
    await until("alice's has too", () => seen.alice.ends.length > 0);
    expect(seen.alice.bytes).toBe(3 << 20);
    expect([alice.isOpen, bob.isOpen]).toEqual([false, false]);
  });

  // A RST ahead of the last ACK is taken for a forgery by NATs (RFC 5961 §3.2).
  test("says RST only after the peer's kernel has acknowledged all", async () => {
    await using _ = noSocketLeft();
    using listener = listening();
    const { socket } = await connectShared(listener.endpoint, 5_000);
    const connection = adopt(socket);
    const alice = new Channel(connection, "public", client, alices);
    const bob = new Channel(adopt(await accepted(listener.socket)), "listen", server, bobs);
    await Promise.all([securedAs(alice, aliceIdentity), securedAs(bob, bobIdentity)]);
    const seen = told(bob);
    alice.nominate(token);
    const states: boolean[] = [];
    const destroy = connection.raw.destroy.bind(connection.raw);
    connection.raw.destroy = (error) => {
      states.push(isAcknowledged(connection.fd));
      return destroy(error);
    };
    alice.write(Buffer.alloc(4 << 20));
    alice.finish();
    await until("bob has heard", () => seen.ends.length > 0);
    await alice.closed;
    expect([seen.bytes, states[0]]).toEqual([4 << 20, true]);
  });
});
