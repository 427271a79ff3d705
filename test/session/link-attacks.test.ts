/** What a peer can do to a link that keeps to TLS, and to no other rule. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import * as tls from "node:tls";
import { Channel } from "../../native/secure/channel.ts";
import { adopt } from "../../native/secure/tls.ts";
import {
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
  isSequenced,
  resumeStatus,
} from "../../native/session/frame.ts";
import { firstCreditBytes } from "../../native/session/stream.ts";
import { encode, maxLineBytes, maxTextLength, splitEndpoint, type LinkLine } from "../../protocol.ts";
import { listening, noSocketLeft, until } from "../native-fixture.ts";
import {
  accepted,
  aliceIdentity,
  bobIdentity,
  credentialsOf,
  linkOn,
  hasEnded,
  purpose,
  rejection,
  nominationOn,
  securedAs,
  server,
  type Story,
} from "./story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const lines = 1;
const ourLines = (messages: LinkLine[]) => Buffer.from(messages.map(encode).join(""));

/** The controlling side by hand: TLS and frames, and no rule kept but those that a test wants kept. */
class Rogue implements Disposable {
  readonly socket: tls.TLSSocket;
  readonly frames: { type: number; stream: number; payload: Buffer }[] = [];
  /** What came on the stream of lines, and what may be sent on it. */
  text = "";
  credit = firstCreditBytes;
  isClosed = false;
  /** Whether it acknowledges what comes. */
  acknowledges = true;
  processed = 0;

  constructor(port: number) {
    const { key, certificate: cert } = aliceIdentity;
    const options = { host: "127.0.0.1", port, key, cert, rejectUnauthorized: false };
    this.socket = tls.connect({ ...options, ALPNProtocols: [purpose] });
    const decoder = new FrameDecoder({
      onPiece: (_stream, piece, _at, isLast) => {
        this.text += piece.toString();
        if (isLast) this.processed++;
      },
      onFrame: (type, stream, payload) => this.#onFrame(type, stream, Buffer.from(payload)),
    });
    let hasAnswer = false;
    this.socket.on("data", (chunk: Buffer) => {
      const before = this.processed;
      const lf = hasAnswer ? -1 : chunk.indexOf(10);
      hasAnswer ||= lf >= 0;
      if (hasAnswer) decoder.push(chunk.subarray(lf + 1));
      if (this.acknowledges && this.processed > before) this.send(encodeCount(frame.ack, this.processed));
    });
    this.socket.on("error", () => {}).on("close", () => (this.isClosed = true));
  }

  #onFrame(type: number, stream: number, payload: Buffer): void {
    this.frames.push({ type, stream, payload });
    if (isSequenced(type)) this.processed++;
    if (type === frame.credit && stream === lines) this.credit += payload.readUInt32BE(0);
  }

  send(...frames: Buffer[]): void {
    this.socket.write(Buffer.concat(frames));
  }

  /** The nomination, and a new session with its stream of lines, in one flight. */
  begin(...more: Buffer[]): void {
    const [status, epoch, sessionId, processed] = [resumeStatus.begin, 1, "5e".repeat(16), 0];
    this.send(
      Buffer.from(nominationOn(this.socket, aliceIdentity, bobIdentity)),
      encodeHello(frame.resume, { status, epoch, sessionId, processed }),
      encodeCount(frame.start, 0),
      encodeOpen(lines, { use: "lines" }),
      ...more,
    );
  }

  say(...messages: LinkLine[]): void {
    this.send(encodeFrame(frame.data, ourLines(messages), lines));
  }

  has(type: number): boolean {
    return this.frames.some((one) => one.type === type);
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}

async function againstRogue(...more: Buffer[]): Promise<{ rogue: Rogue; bob: Story } & Disposable> {
  using listener = listening();
  const rogue = new Rogue(splitEndpoint(listener.endpoint).port);
  const side = new Channel(
    adopt(await accepted(listener.socket)),
    "listen",
    server,
    credentialsOf(bobIdentity),
  );
  const fingerprint = await securedAs(side, bobIdentity);
  const bob = linkOn(side, { keepMs: 0, fingerprint });
  rogue.begin(...more);
  return { rogue, bob: await bob, [Symbol.dispose]: () => rogue[Symbol.dispose]() };
}

describe("a peer that", () => {
  test("keeps to the protocol is served", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    const asked: LinkLine[] = [
      { type: "heard", id: 999 }, // answers to what was never asked
      { type: "pong", id: 999 },
      { type: "say", id: 7, text: "fine" },
      { type: "ping", id: 7 },
    ];
    rogue.say(...asked);
    const answers: LinkLine[] = [
      { type: "heard", id: 7 },
      { type: "pong", id: 7 },
    ];
    await until("it is answered", () => rogue.text === answers.map(encode).join(""));
    expect([bob.texts, bob.ends]).toEqual([["fine"], []]);
    const unanswered = rejection(bob.lines.say("are you there?"));
    await until("the rogue has it", () => rogue.text.includes("are you there?"));
    rogue.socket.end();
    expect(await unanswered).toBe(
      "the link ended before the peer answered: the connection was closed at the peer's end",
    );
    expect(bob.ends).toEqual([
      { reason: "connection-lost", detail: "the connection was closed at the peer's end" },
    ]);
  });

  const text = (bytes: string | Uint8Array) => encodeFrame(frame.data, Buffer.from(bytes as string), lines);
  const breaches: Record<string, [Buffer, string]> = {
    "a frame of unknown type": [encodeFrame(7, Buffer.alloc(4)), "a frame of unknown type 7"],
    "a frame that is too long": [
      encodeFrame(frame.ping, Buffer.alloc(9)),
      "a frame of type 129 with 9 bytes",
    ],
    "bytes for a stream that is not there": [encodeFrame(frame.data, Buffer.alloc(1), 3), "stream 3"],
    "a stream with our number": [encodeOpen(2, { use: "lines" }), "a new stream with the number 2"],
    "its second first frame": [
      encodeHello(frame.resume, { status: 1, epoch: 2, sessionId: "5e".repeat(16), processed: 0 }),
      "in use",
    ],
    "an acknowledgement of what was never sent": [encodeCount(frame.ack, 1_000), "never sent"],
    "no JSON": [text("hello\n"), "a line must be one JSON object"],
    "no object": [text("[1]\n"), "a line must be one JSON object"],
    "an unknown message": [text('{"type":"open-door"}\n'), "type must be one of"],
    "a message of the other protocol": [text('{"type":"echo","text":"x"}\n'), "type must be one of"],
    "a nomination on the link": [
      text(encode({ type: "nominated", proof: "0".repeat(64) })),
      "type must be one of",
    ],
    "a missing field": [text('{"type":"say","id":1}\n'), "text must be text of at most"],
    "a text that is too long": [
      text(`{"type":"say","id":1,"text":"${"x".repeat(maxTextLength + 1)}"}\n`),
      "text must be text of at most",
    ],
    "no UTF-8": [text(new Uint8Array([0x22, 0xff, 0xfe, 0x0a])), "a line must be UTF-8"],
    "a line without end": [text("x".repeat(maxLineBytes)), `a line must have at most ${maxLineBytes} bytes`],
  };
  describe.each(Object.entries(breaches))("sends %s", (_what, [bytes, complaint]) => {
    test.each(["later", "in one flight with the nomination"] as const)(
      "%s: the link ends, with the reason",
      async (when) => {
        await using _ = noSocketLeft();
        const say = (what: string) => text(encode({ type: "say", id: 1, text: what }));
        const sent = [say("before"), bytes, say("after")];
        using scene = await againstRogue(...(when === "later" ? [] : sent));
        const { rogue, bob } = scene;
        if (when === "later") rogue.send(...sent);
        await until("bob's link ends", hasEnded(bob));
        expect(bob.ends).toEqual([{ reason: "protocol-error", detail: expect.stringContaining(complaint) }]);
        expect(bob.texts).not.toContain("after"); // nothing more is read
        await until("it is closed", () => rogue.isClosed);
        if (when === "later") expect(bob.texts).toEqual(["before"]);
      },
    );
  });

  test.each([
    ["ends", encodeFrame(frame.end, Buffer.alloc(0), lines)],
    ["resets", encodeReset(lines, 0, "enough")],
  ])("%s its lines, on which alone it could answer: the link ends, with the reason", async (_how, bytes) => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    const unanswered = rejection(bob.lines.say("are you there?"));
    rogue.send(text(encode({ type: "say", id: 1, text: "before" })), bytes);
    expect(await unanswered).toEndWith("its stream of lines is over, and the link is not");
    expect([bob.texts, bob.ends]).toEqual([
      ["before"],
      [{ reason: "protocol-error", detail: "its stream of lines is over, and the link is not" }],
    ]);
  });

  test("opens a second stream of lines: it is refused with the reason, and the first goes on", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    rogue.send(encodeOpen(3, { use: "lines" }), encodeOpen(5, {}));
    await until(
      "both are refused",
      () => rogue.frames.filter(({ type }) => type === frame.reset).length === 2,
    );
    const resets = rogue.frames.filter(({ type }) => type === frame.reset);
    expect(resets.map(({ stream, payload }) => [stream, decodeReset(payload)])).toEqual([
      [3, { code: 1, reason: "there is a stream of lines already" }],
      [5, { code: 1, reason: "it does not say in text what it is for" }],
    ]);
    rogue.say({ type: "say", id: 1, text: "still here" });
    await until("bob hears the first", () => bob.texts.length > 0);
    expect(bob.ends).toEqual([]);
  });

  test("asks without end and takes no answers is not read any more, until it takes them", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    const pings = ourLines(Array.from({ length: 1_000 }, (_, id) => ({ type: "ping", id })));
    let sent = 0;
    const flood = () => {
      for (; rogue.credit >= pings.length; rogue.credit -= pings.length, sent += 1_000)
        rogue.send(encodeFrame(frame.data, pings, lines));
    };
    let [credit, quietSince] = [0, performance.now()];
    const isStuck = () => {
      flood();
      if (rogue.credit !== credit) [credit, quietSince] = [rogue.credit, performance.now()];
      return performance.now() - quietSince > 300;
    };
    await until("it gets no more credit", isStuck);
    // As many as its credit for our answers allows, as many as may wait, and what it was allowed to send.
    expect(sent * 21).toBeLessThan(4 * firstCreditBytes);
    expect(bob.link.session.outstandingBytes).toBeLessThan(2 * firstCreditBytes);
    expect([bob.ends, rogue.text.length <= firstCreditBytes]).toEqual([[], true]);
    const stuck = sent;
    rogue.send(encodeCredit(lines, 1 << 30));
    await until("it is served again", () => (flood(), sent >= 200_000));
    expect(sent).toBeGreaterThan(stuck);
    await until("all are answered", () => rogue.text.length >= (sent / 1_000) * pings.length);
    expect(bob.ends).toEqual([]);
  });

  test("asks without end and acknowledges no answer makes us keep little, and is not read any more", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    rogue.acknowledges = false;
    rogue.send(encodeCredit(lines, 1 << 30));
    const pings = ourLines(Array.from({ length: 1_000 }, (_, id) => ({ type: "ping", id })));
    let [sent, stuckAt, quietSince] = [0, -1, performance.now()];
    await until(
      "it gets no more credit",
      () => {
        for (; rogue.credit >= pings.length; rogue.credit -= pings.length, sent += 1_000)
          rogue.send(encodeFrame(frame.data, pings, lines));
        if (sent !== stuckAt) [stuckAt, quietSince] = [sent, performance.now()];
        return sent > 100_000 || performance.now() - quietSince > 500;
      },
      testMs,
    );
    expect(sent).toBeLessThan(100_000);
    expect(bob.link.session.heldBytes).toBeLessThan(3 * 1024 * 1024);
    rogue.acknowledges = true;
    rogue.send(encodeCount(frame.ack, rogue.processed));
    await until("all are answered", () => rogue.text.length >= (sent / 1_000) * pings.length);
    expect(bob.ends).toEqual([]);
  });

  test("sends a million pings of its channel and reads nothing costs nothing", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    await until("the link is begun", () => rogue.has(frame.resumed));
    const before = bob.link.session.bytesIn;
    rogue.socket.pause();
    const pings = Buffer.concat(Array.from({ length: 10_000 }, (_, n) => encodeCount(frame.ping, n)));
    for (let round = 0; round < 100; round++) rogue.send(pings);
    const { session } = bob.link;
    let mostQueued = 0;
    await until("all have come", () => {
      mostQueued = Math.max(mostQueued, session.carrier?.queuedBytes ?? 0);
      return session.bytesIn - before >= 100 * pings.length;
    });
    expect([mostQueued < 64 * 1024, session.outstandingBytes, bob.ends]).toEqual([true, 0, []]);
    rogue.socket.resume();
    rogue.say({ type: "say", id: 1, text: "still here" });
    await until("it is heard", () => bob.texts.length > 0);
  });

  test.concurrent.each([true, false])(
    "never answers the end, and acknowledges it: %p: it comes nevertheless",
    async (acknowledges) => {
      await using _ = noSocketLeft();
      using scene = await againstRogue();
      const { rogue, bob } = scene;
      rogue.acknowledges = acknowledges;
      await bob.link.close("disconnected");
      expect(bob.ends).toEqual([{ reason: "disconnected", detail: "" }]);
      await until("the rogue was told", () => rogue.has(frame.finish));
      const told = rogue.frames.find(({ type }) => type === frame.finish);
      expect(told!.payload.toString()).toBe("disconnected");
    },
    testMs,
  );

  test.concurrent("breaks the channel at the end does not change why it ended", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    rogue.acknowledges = false;
    const closing = bob.link.close("disconnected");
    await until("the rogue was told", () => rogue.has(frame.finish));
    rogue.socket.destroy();
    await closing;
    expect(bob.ends).toEqual([{ reason: "disconnected", detail: "" }]);
  });

  test.concurrent("ends it with a reason of its own is quoted", async () => {
    await using _ = noSocketLeft();
    using scene = await againstRogue();
    const { rogue, bob } = scene;
    rogue.send(encodeFinish("\u001b[2J no more of you"));
    await until("bob's link ends", hasEnded(bob));
    expect(bob.ends).toEqual([{ reason: "peer-disconnected", detail: "\u001b[2J no more of you" }]);
  });

  test.concurrent(
    "has stopped reading does not keep the link from being closed",
    async () => {
      await using _ = noSocketLeft();
      using scene = await againstRogue();
      const { rogue, bob } = scene;
      await until("the link is begun", () => rogue.has(frame.resumed));
      rogue.socket.pause();
      const unheard = Array.from({ length: 1_000 }, () => bob.lines.say("x".repeat(maxTextLength)));
      const settled = Promise.allSettled(unheard);
      await bob.link.close("disconnected");
      expect((await settled).every(({ status }) => status === "rejected")).toBe(true);
      expect(bob.ends).toEqual([{ reason: "disconnected", detail: "" }]);
    },
    testMs,
  );
});
