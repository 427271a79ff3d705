import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type * as net from "node:net";
import { Channel } from "../../native/secure/channel.ts";
import { adopt } from "../../native/secure/tls.ts";
import { makeIdentity, type Identity } from "../../native/secure/identity.ts";
import { RelayAttempt, type RelayOptions } from "../../native/punch/relayed.ts";
import { alpnOf } from "../../native/punch/punch.ts";
import { connectShared } from "../../native/host/socket.ts";
import { encode, type Endpoint, type Role } from "../../protocol.ts";
import { listening, noSocketLeft, openSockets, refusing, unanswering, until } from "../native-fixture.ts";
import { copy, hand, joining, relaying, relayOffer, Scripted } from "./relay-fixture.ts";
import {
  aliceIdentity,
  bobIdentity,
  bondOf,
  closeBoth,
  credentialsOf,
  linkOn,
  securedAs,
  token,
} from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const carolIdentity = makeIdentity();

const patience = { connectMs: 1_000, offerMs: 1_000, handshakeMs: 1_500 };

/** One side's try, and all that came of it. */
class Try {
  readonly attempt: RelayAttempt;
  readonly channels: Channel[] = [];
  readonly failures: string[] = [];

  constructor(introducer: Endpoint, role: Role, changes: Partial<RelayOptions> = {}) {
    const [own, peer] = role === "controlling" ? [aliceIdentity, bobIdentity] : [bobIdentity, aliceIdentity];
    this.attempt = new RelayAttempt({
      ...{ introducer, role, token, alpn: alpnOf(changes.token ?? token) },
      bond: bondOf(own, peer),
      credentials: credentialsOf(own),
      onChannel: (channel) => this.channels.push(channel),
      onFailed: (reason) => this.failures.push(reason),
      ...changes,
    });
  }

  get isOver(): boolean {
    return this.channels.length + this.failures.length > 0;
  }

  async failure(): Promise<string> {
    await until("it has failed", () => this.isOver);
    expect([this.channels.length, this.failures.length]).toEqual([0, 1]);
    return this.failures[0]!;
  }
}

/** Both sides' tries, and their link once they have one. */
function both(introducer: Endpoint, changes: Partial<RelayOptions> = {}): { alice: Try; bob: Try } {
  return {
    alice: new Try(introducer, "controlling", changes),
    bob: new Try(introducer, "controlled", changes),
  };
}

async function expectLinked({ alice, bob }: { alice: Try; bob: Try }): Promise<void> {
  await until("both have a channel", () => alice.isOver && bob.isOver);
  expect([alice.failures, bob.failures]).toEqual([[], []]);
  const [a, b] = [alice.channels[0]!, bob.channels[0]!];
  expect([a.route, b.route, a.peer, b.peer]).toEqual([
    "relay",
    "relay",
    bobIdentity.fingerprint,
    aliceIdentity.fingerprint,
  ]);
  const links = await Promise.all([linkOn(a), linkOn(b)]);
  const texts = ["hello", "x".repeat(8_000)];
  await Promise.all(texts.flatMap((text) => links.map(({ lines }) => lines.say(text))));
  expect(links.map((story) => story.texts)).toEqual([texts, texts]);
  await closeBoth(...links);
  await until("both channels are closed", () => !a.isOpen && !b.isOpen);
  expect([alice.channels.length, bob.channels.length]).toEqual([1, 1]);
}

describe("by way of a real introducer", () => {
  test("both get a channel, and a link on it works", async () => {
    await using _ = noSocketLeft();
    await using offer = await relayOffer();
    await expectLinked(both(offer.introducer, { token: offer.token }));
  });

  test("the one who comes first waits for the other", async () => {
    await using _ = noSocketLeft();
    await using offer = await relayOffer();
    const before = openSockets().length;
    const bob = new Try(offer.introducer, "controlled", { token: offer.token });
    // Ours and the introducer's end of it.
    await until("bob is there", () => openSockets().length >= before + 2);
    expect(bob.isOver).toBe(false);
    await expectLinked({ alice: new Try(offer.introducer, "controlling", { token: offer.token }), bob });
  });

  test("who shows a token that was never given is refused", async () => {
    await using _ = noSocketLeft();
    await using offer = await relayOffer();
    const stranger = new Try(offer.introducer, "controlling", { token: "0".repeat(32) });
    expect(await stranger.failure()).toBe("token must be of a relay that is still open");
    await expectLinked(both(offer.introducer, { token: offer.token }));
  });

  test("a token is good for two", async () => {
    await using _ = noSocketLeft();
    await using offer = await relayOffer();
    const pair = both(offer.introducer, { token: offer.token });
    await until("both have a channel", () => pair.alice.isOver && pair.bob.isOver);
    const third = new Try(offer.introducer, "controlling", { token: offer.token });
    expect(await third.failure()).toBe("token must be of a relay that is still open");
    await expectLinked(pair);
  });

  test("where the other never comes there is no channel", async () => {
    await using _ = noSocketLeft();
    await using offer = await relayOffer({ relayOfferMs: 1_000 });
    const alice = new Try(offer.introducer, "controlling", { token: offer.token });
    expect(await alice.failure()).toBe("the other side did not come");
  });

  test("who is in the room and has another certificate is found out by both", async () => {
    await using _ = noSocketLeft();
    await using offer = await relayOffer();
    const { introducer, token: given } = offer;
    const alice = new Try(introducer, "controlling", { token: given });
    const carol = new Try(introducer, "controlled", {
      token: given,
      credentials: credentialsOf(carolIdentity),
    });
    expect(await alice.failure()).toBe("it showed another certificate than the peer's");
    await carol.failure();
  });
});

// --- introducers by hand -----------------------------------------------------------------------------------

describe("an introducer that", () => {
  const answers: Record<string, [string | Uint8Array | ((visitor: net.Socket) => void), RegExp]> = {
    refuses: [
      encode({ type: "refused", code: "limit", message: "the relay is full", request: "relay" }),
      /^the relay is full$/,
    ],
    "says something else": [encode({ type: "ping", id: 1 }), /^the relay said ping$/],
    "talks nonsense at once": ["HTTP/1.1 200 OK\r\n\r\n", /^the relay's answer is none: a line must be/],
    "sends no UTF-8": [new Uint8Array([0xff, 0xfe, 0x0a]), /^the relay's answer is none: /],
    "sends an empty line": ["\n", /^the relay's answer is none: /],
    "sends a line without end": ["x".repeat(1025), /^the relay's answer is none: /],
    "sends megabytes": [new Uint8Array(8 << 20), /^the relay's answer is none: /],
    "hangs up": [(visitor) => visitor.end(), /^the relay closed the connection$/],
    resets: [(visitor) => visitor.resetAndDestroy(), /^the relay closed the connection$/],
    "hangs up in the middle of its line": [(visitor) => visitor.end('{"type":"rel'), /^the relay closed the/],
    "says `relaying`, and then nonsense": [
      `${relaying}HTTP/1.1 200 OK\r\n\r\n`,
      /^TLS refused: wrong version/,
    ],
    "says `relaying` and hangs up": [(visitor) => visitor.end(relaying), /reset|closed/],
    "says `relaying` and resets": [
      (visitor) => visitor.write(relaying, () => visitor.resetAndDestroy()),
      /reset|closed/,
    ],
    ...Object.fromEntries(
      ["null", "0", "-1", "0.5", "1e999", '"1M"', "{}"].map((rate) => [
        `relays at ${rate} bytes a second`,
        [`{"type":"relaying","rate":${rate}}\n`, /^the relay's answer is none: rate must be /] as const,
      ]),
    ),
    "does not say how fast it relays": ['{"type":"relaying"}\n', /: rate must be /],
    "says `relaying` twice": [relaying + relaying, /^TLS refused: wrong version/],
  };
  const rows = Object.entries(answers).flatMap(([what, [answer, reason]]) =>
    (["controlling", "controlled"] as const)
      // A TLS client does not listen before it has spoken: that is waited for below.
      .filter((role) => role === "controlled" || !/nonsense$|twice$/.test(what))
      .map((role) => [what, role, answer, reason] as const),
  );
  test.each(rows)("%s is no way for a %s side", async (_what, role, answer, reason) => {
    await using _ = noSocketLeft();
    const lines: string[] = [];
    using scripted = await Scripted.answering((visitor, line) => {
      lines.push(line);
      if (typeof answer === "function") answer(visitor);
      else visitor.write(answer);
    });
    const side = new Try(scripted.endpoint, role);
    expect(await side.failure()).toMatch(reason);
    expect(lines).toEqual([encode({ type: "relay", token })]);
    await until("it is closed", () => scripted.visitors.every(({ destroyed }) => destroyed));
  });

  test("refuses connections is no way", async () => {
    await using _ = noSocketLeft();
    const side = new Try(refusing(), "controlling");
    expect(await side.failure()).toBe("the relay could not be reached: ECONNREFUSED");
  });

  test("hands the peer's first words on with its own is fine", async () => {
    await using _ = noSocketLeft();
    // Alice, who comes first, speaks first; Bob gets that with `relaying`, in one read.
    using scripted = await joining((first, second) => {
      first.write(relaying);
      first.once("data", (hello: Buffer) => {
        second.write(Buffer.concat([Buffer.from(relaying), hello]));
        hand(first, second);
        hand(second, first);
      });
    });
    const alice = new Try(scripted.endpoint, "controlling");
    await until("alice is there", () => scripted.visitors.length === 1);
    const bob = new Try(scripted.endpoint, "controlled");
    await expectLinked({ alice, bob });
  });

  test("answers byte by byte is fine", async () => {
    await using _ = noSocketLeft();
    using scripted = await joining(async (first, second) => {
      for (const byte of relaying) {
        for (const one of [first, second]) await new Promise<void>((sent) => one.write(byte, () => sent()));
      }
      hand(first, second);
      hand(second, first);
    });
    await expectLinked(both(scripted.endpoint));
  });

  test.each(["controlling", "controlled"] as const)(
    "joins somebody else to a %s side is found out",
    async (role) => {
      await using _ = noSocketLeft();
      using scripted = await joining();
      const side = new Try(scripted.endpoint, role);
      const other = role === "controlling" ? "controlled" : "controlling";
      const bond = bondOf(carolIdentity, role === "controlling" ? aliceIdentity : bobIdentity);
      const credentials = credentialsOf(carolIdentity);
      const carol = new Try(scripted.endpoint, other, { credentials, bond });
      expect(await side.failure()).toBe("it showed another certificate than the peer's");
      await until("carol's is over", () => carol.isOver);
      // A TLS client has nominated before it hears that its certificate is not welcome.
      for (const channel of carol.channels) await until("it is closed", () => !channel.isOpen);
    },
  );

  test("joins the peer's other connection, which is for another link, is found out", async () => {
    await using _ = noSocketLeft();
    using scripted = await joining();
    const alice = new Try(scripted.endpoint, "controlling");
    const bob = new Try(scripted.endpoint, "controlled", { token: "f".repeat(32) });
    expect(await alice.failure()).toContain("TLS refused");
    expect(await bob.failure()).toContain("TLS refused: no application protocol");
  });

  test("gives both the same role links nobody", async () => {
    await using _ = noSocketLeft();
    using scripted = await joining();
    const [alice, bob] = [
      new Try(scripted.endpoint, "controlling"),
      new Try(scripted.endpoint, "controlling"),
    ];
    expect(await alice.failure()).toContain("TLS refused");
    await bob.failure();
  });

  test("is in league with a peer that nominates something else links nobody", async () => {
    await using _ = noSocketLeft();
    using scripted = await joining();
    const bob = new Try(scripted.endpoint, "controlled");
    const mallory = await connect(scripted.endpoint, aliceIdentity);
    await securedAs(mallory, aliceIdentity);
    mallory.nominate("f".repeat(32));
    expect(await bob.failure()).toBe("it was nominated for something else");
    await until("it is closed", () => !mallory.isOpen);
  });

  test("is in league with a server that nominates links nobody", async () => {
    await using _ = noSocketLeft();
    using scripted = await joining();
    let isMine = true;
    const alice = new Try(scripted.endpoint, "controlling", {
      onChannel: (channel) => (isMine &&= channel.role === "controlling") && alice.channels.push(channel),
    });
    const { socket } = await connectShared(scripted.endpoint, 5_000);
    const connection = adopt(socket);
    connection.raw.write(encode({ type: "relay", token }));
    connection.raw.once("data", (chunk: Buffer) => {
      connection.raw.pause();
      if (chunk.length > relaying.length) connection.raw.unshift(chunk.subarray(relaying.length));
      const side = { role: "controlled", expects: () => true } as const;
      const mallory = new Channel(connection, "relay", side, credentialsOf(bobIdentity));
      // The first that comes.
      securedAs(mallory, bobIdentity).then(
        () => mallory.nominate(token),
        () => {},
      );
    });
    await until("alice's is over", () => alice.isOver);
    // She takes the channel that she nominates herself, and what came before is no link's.
    for (const channel of alice.channels) channel.destroy();
    expect(isMine).toBe(true);
  });
});

/** A client that has come by the relay and is secured. */
async function connect(introducer: Endpoint, identity: Identity): Promise<Channel> {
  const { socket } = await connectShared(introducer, 5_000);
  const connection = adopt(socket);
  connection.raw.write(encode({ type: "relay", token }));
  const answer = Promise.withResolvers<void>();
  connection.raw.once("data", () => answer.resolve());
  await answer.promise;
  connection.raw.pause();
  const side = { role: "controlling", offers: [alpnOf(token)] } as const;
  return new Channel(connection, "relay", side, credentialsOf(identity));
}

// --- the end of patience -----------------------------------------------------------------------------------

test("silence is waited for so long, and not longer: of the network, the introducer, the peer", async () => {
  await using _ = noSocketLeft();
  using hole = unanswering();
  using silent = await Scripted.answering(() => {});
  using mute = await Scripted.answering((visitor) => void visitor.write(relaying));
  using early = await Scripted.answering((visitor) => void visitor.write(`${relaying}too early`));
  using joined = await joining();
  const unreachable = new Try(hole.endpoint, "controlling", { patience });
  const unanswered = new Try(silent.endpoint, "controlling", { patience });
  const unspoken = [
    new Try(mute.endpoint, "controlling", { patience }),
    new Try(mute.endpoint, "controlled", { patience }),
    new Try(early.endpoint, "controlling", { patience }),
  ];
  const connecting = connect(joined.endpoint, aliceIdentity);
  const unnominated = new Try(joined.endpoint, "controlled", { patience });
  const idle = await connecting;
  await idle.secured;
  const tries = [unreachable, ...unspoken, unnominated, unanswered];
  await until("all is over", () => tries.every(({ isOver }) => isOver));
  expect(tries.map(({ failures }) => failures)).toEqual([
    ["the relay could not be reached: ETIMEDOUT"],
    ["the peer did not shake hands"],
    ["the peer did not shake hands"],
    ["the peer did not shake hands"],
    ["the peer did not shake hands"],
    ["the peer did not come to the relay"],
  ]);
  await until("the idle one is closed", () => !idle.isOpen);
});

describe("aborted", () => {
  /** Nothing is told, then or later, and all is closed. */
  async function expectNothing(side: Try, before: string[]): Promise<void> {
    side.attempt.abort();
    side.attempt.abort();
    // A connect that nobody answers is waited for.
    await until("all is closed", () => openSockets().every((socket) => before.includes(socket)));
    expect([side.channels, side.failures]).toEqual([[], []]);
  }

  test.each(["controlling", "controlled"] as const)("as %s side before it is connected", async (role) => {
    await using _ = noSocketLeft();
    using listener = listening();
    const before = openSockets();
    await expectNothing(new Try(listener.endpoint, role), before);
  });

  test("while nobody answers its SYN", async () => {
    using hole = unanswering();
    const before = openSockets();
    const side = new Try(hole.endpoint, "controlling", { patience });
    await until("it connects", () => openSockets().length > before.length);
    await expectNothing(side, before);
  });

  test.each(["controlling", "controlled"] as const)(
    "as %s side while it waits for the answer",
    async (role) => {
      await using _ = noSocketLeft();
      using silent = await Scripted.answering(() => {});
      const before = openSockets();
      const side = new Try(silent.endpoint, role);
      let isClosed = false;
      await until("it has asked", () => silent.visitors.length > 0 && silent.visitors[0]!.bytesRead > 0);
      silent.visitors[0]!.on("close", () => (isClosed = true));
      await expectNothing(side, before);
      await until("the introducer knows", () => isClosed);
    },
  );

  test.each(["controlling", "controlled"] as const)("as %s side while TLS is under way", async (role) => {
    await using _ = noSocketLeft();
    using mute = await Scripted.answering((visitor) => void visitor.write(relaying));
    const before = openSockets();
    const side = new Try(mute.endpoint, role);
    if (role === "controlling") await until("it speaks", () => (mute.visitors[0]?.bytesRead ?? 0) > 100);
    else await until("it is told", () => (mute.visitors[0]?.bytesWritten ?? 0) > 0);
    await expectNothing(side, before);
  });

  test("once the peer is there and has nominated nothing yet", async () => {
    await using _ = noSocketLeft();
    using joined = await joining();
    const before = openSockets();
    const bob = new Try(joined.endpoint, "controlled");
    const alice = await connect(joined.endpoint, aliceIdentity);
    await alice.secured;
    await expectNothing(bob, before);
    expect(alice.isOpen).toBe(false);
  });

  test("once there is a channel it is left alone", async () => {
    await using _ = noSocketLeft();
    using joined = await joining(copy);
    const pair = both(joined.endpoint);
    await until("both have a channel", () => pair.alice.isOver && pair.bob.isOver);
    pair.alice.attempt.abort();
    pair.bob.attempt.abort();
    await expectLinked(pair);
  });
});
