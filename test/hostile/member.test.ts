/**
 * A room member with a good certificate and bad intentions, by hand on the wire, against real participants: it must not
 * reach the program beside its own link, nor a user who was not told of it.
 */
import { afterAll, describe, expect, setDefaultTimeout, test as alone } from "bun:test";
import { makeIdentity } from "../../native/secure/identity.ts";
import type { PeerLink as Link } from "../../native/participant/peer-link.ts";
import { programMemory } from "../../native/session/memory.ts";
import { Participant, type Stream } from "../../participant.ts";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import {
  countFrame,
  creditFrame,
  frame,
  frameOf,
  helloFrame,
  Member,
  openFrame,
  type RawLink,
  readReset,
  resetFrame,
  until,
} from "./wire.ts";
import { testMs } from "../patience-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";

/** What counts turns of this program has it {@link alone}. */
const test = testAtOnce(8);
setDefaultTimeout(testMs);

const room = "k7xq-m2vp-9dfa-w4tz";

type EventOf<E extends ParticipantEvent["event"]> = Extract<ParticipantEvent, { event: E }>;

/** A participant in this process, as a program has it. */
class Program extends Participant {
  readonly heard: ParticipantEvent[];

  constructor(port: number, name: string, onEvent: (event: ParticipantEvent) => void = () => {}) {
    const events: ParticipantEvent[] = [];
    super({
      ...{ host: "127.0.0.1", port, name, room, portMapping: false, direct: true },
      identity: makeIdentity(),
      onEvent: (event) => (events.push(event), onEvent(event)),
    });
    this.heard = events;
  }

  told<E extends ParticipantEvent["event"]>(kind: E): EventOf<E>[] {
    return this.heard.filter((one): one is EventOf<E> => one.event === kind);
  }
}

/** Bob, who is real, and Eve, who is not, in one room. */
async function meeting(onEvent?: (event: ParticipantEvent) => void) {
  const house = startIntroducer();
  const bob = new Program(house.port, "bob", onEvent);
  await bob.join();
  const eve = await Member.join(house.port, { name: "eve", room });
  await bob.peers.waitFor("eve");
  return {
    ...{ house, bob, eve },
    async [Symbol.asyncDispose]() {
      eve[Symbol.dispose]();
      await bob.quit();
      await house[Symbol.asyncDispose]();
    },
  };
}

/** The same, and carol, with whom bob is linked; he keeps streams of that name. */
async function meetingCarol() {
  const scene = await meeting();
  const { house, bob } = scene;
  bob.onStream("kept", () => {});
  const carol = new Program(house.port, "carol");
  await carol.join();
  await bob.peers.waitFor("carol");
  await bob.connect("carol");
  return {
    ...scene,
    async [Symbol.asyncDispose]() {
      await carol.quit();
      await scene[Symbol.asyncDispose]();
    },
  };
}

const lines = openFrame(1, { use: "lines" });
const linesSay = (text: string) =>
  frameOf(frame.data, `${JSON.stringify({ type: "say", id: 1, text })}\n`, 1);
const hello = (link: RawLink) => [
  helloFrame(frame.resume, { sessionId: link.sessionId }),
  countFrame(frame.start, 0),
];

/** JSON of a purpose that no participant sends. */
const oddPurposes: [what: string, json: string][] = [
  ["a use that is an object with toString", '{"use":{"toString":"x"}}'],
  ["a use that is an object with toString and valueOf", '{"use":{"toString":{},"valueOf":1}}'],
  ["a use that is a list of lists", `{"use":${"[".repeat(1_500)}${"]".repeat(1_500)}}`],
  ["a use that is null", '{"use":null}'],
  ["no use", "{}"],
  ["a use that is a method of every object", '{"use":"__proto__"}'],
  ["a prototype", '{"__proto__":{"use":"echo"},"use":"constructor"}'],
  ["a use as long as fits", JSON.stringify({ use: "u".repeat(4_000) })],
  ["half a character", '{"use":"\\ud800"}'],
  ["escapes for the terminal", '{"use":"\\u001b[2J\\u001b]0;x\\u0007"}'],
];

describe("what a stream says it is for", () => {
  test.each(oddPurposes)(
    "%s: the stream is refused; the link, other links and the program go on",
    async (_, json) => {
      await using scene = await meeting();
      const { house, bob, eve } = scene;
      await using carol = new Program(house.port, "carol");
      carol.onStream("echo", (stream) => void stream.pipe(stream));
      await carol.join();
      await bob.peers.waitFor("carol");
      await bob.connect("carol");
      using link = await eve.link("bob");
      await link.begin(lines, frameOf(frame.open, json, 3));
      expect(readReset(await link.hears(frame.reset, ({ stream }) => stream === 3)).code).toBe(1);
      link.send(linesSay("still here"));
      await link.reads(1, '{"type":"heard","id":1}\n');
      expect(await bob.ping("carol")).toBeGreaterThan(0);
      expect(bob.told("unlinked")).toEqual([]);
    },
  );

  test.each([
    ["no JSON", "{]"],
    ["no object", "[1]"],
    ["no UTF-8", Buffer.from([0x7b, 0xff, 0x7d])],
    ["a number beyond all", "1e999"],
  ] as const)("%s: the link has ended, `protocol-error`, and nothing else", async (_, payload) => {
    await using scene = await meeting();
    const { bob, eve } = scene;
    using link = await eve.link("bob");
    await link.begin(lines, frameOf(frame.open, payload, 3));
    await until("it is told", () => bob.told("unlinked").length > 0);
    expect(bob.told("unlinked")).toMatchObject([{ name: "eve", reason: "protocol-error" }]);
    expect(bob.peers.link("eve")).toBeUndefined();
    using again = await eve.link("bob");
    await again.begin(lines, linesSay("anew"));
    await again.reads(1, '{"type":"heard","id":1}\n');
  });

  test("the program of the command line takes no harm either", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", "--room", room);
    await bob.registered;
    using eve = await Member.join(house.port, { name: "eve", room });
    using link = await eve.link("bob");
    await link.begin(lines, frameOf(frame.open, oddPurposes[0]![1], 3), linesSay("still here"));
    expect(await bob.next("said")).toMatchObject({ name: "eve", text: "still here" });
  });
});

describe("what is thrown by whoever takes a stream", () => {
  const throwers: [how: string, take: (stream: Stream) => void | Promise<void>][] = [
    [
      "at once",
      () => {
        throw new Error("a bug");
      },
    ],
    ["later, by an asynchronous one", async () => Promise.reject(new Error("a bug"))],
    [
      "at what it reads",
      (stream) =>
        void stream.on("data", () => {
          throw new Error("a bug");
        }),
    ],
    [
      "at what it has written",
      (stream) =>
        void stream.write("x", () => {
          throw new Error("a bug");
        }),
    ],
  ];
  test.each(throwers)("%s: that stream is reset, an error is told, the link lives", async (_, take) => {
    await using scene = await meeting();
    const { bob, eve } = scene;
    bob.onStream("game", take);
    using link = await eve.link("bob");
    // In the first flight, too: there it ended the link before it was one.
    await link.begin(lines, openFrame(3, { use: "game" }), frameOf(frame.data, "move", 3));
    expect(readReset(await link.hears(frame.reset, ({ stream }) => stream === 3))).toEqual({
      code: 2,
      reason: "it failed at the peer",
    });
    link.send(openFrame(5, { use: "game" }), frameOf(frame.data, "move", 5), linesSay("still here"));
    expect(readReset(await link.hears(frame.reset, ({ stream }) => stream === 5)).code).toBe(2);
    await link.reads(1, '{"type":"heard","id":1}\n');
    const errors = bob.told("error").map(({ message }) => message);
    expect(errors).toHaveLength(2);
    expect(errors[0]).toContain("of eve failed here: a bug");
    expect(bob.told("unlinked")).toEqual([]);
  });

  test("by onEvent at any event: it is told as an error, and all goes on", async () => {
    await using scene = await meeting((event) => {
      if (event.event !== "error") throw new Error("a bug");
    });
    const { bob, eve } = scene;
    using link = await eve.link("bob");
    await link.begin(lines, linesSay("still here"));
    await link.reads(1, '{"type":"heard","id":1}\n');
    expect(bob.told("error").map(({ message }) => message)).toContain(
      "what listens to `linked` threw: a bug",
    );
    expect(bob.peers.link("eve")).toBeDefined();
  });
});

describe("the first flight", () => {
  test("brings no stream before `linked` was told and the link is there", async () => {
    for (let i = 0; i < 5; i++) {
      await using scene = await meeting();
      const { bob, eve } = scene;
      const seen = Promise.withResolvers<{ isTold: boolean; link: Link | undefined }>();
      bob.onStream("game", (stream, from) => {
        stream.resume();
        seen.resolve({ isTold: bob.told("linked").length === 1, link: bob.peers.link(from.name) });
      });
      using link = await eve.link("bob");
      await link.begin(lines, openFrame(3, { use: "game" }));
      expect(await seen.promise).toEqual({ isTold: true, link: bob.peers.link("eve") });
      expect(bob.peers.link("eve")).toBeDefined();
    }
  });
});

describe("a channel that was nominated, and says nothing yet", () => {
  async function agreeing(onEvent?: (event: ParticipantEvent) => void) {
    const scene = await meeting(onEvent);
    const { bob, eve } = scene;
    const streams: Stream[] = [];
    bob.onStream("game", (stream) => void streams.push(stream));
    const link = await eve.link("bob");
    link.send(link.nominationLine());
    await until("bob has it", () => bob.peers.rows[0]?.state === "agreeing");
    const speak = () => link.send(...hello(link), lines, openFrame(3, { use: "game" }));
    const dispose = async () => (link[Symbol.dispose](), scene[Symbol.asyncDispose]());
    return { ...scene, link, speak, streams, [Symbol.asyncDispose]: dispose };
  }

  /** It was closed, and what is said on it comes to nothing. */
  async function isClosed({ bob, link, speak, streams }: Awaited<ReturnType<typeof agreeing>>) {
    speak();
    await link.frames.over();
    expect([bob.told("linked"), streams, bob.peers.linkCount]).toEqual([[], [], 0]);
  }

  test("is in the list, and becomes a link when it speaks", async () => {
    await using scene = await agreeing();
    const { bob, speak, streams } = scene;
    expect(bob.peers.rows).toMatchObject([{ name: "eve", state: "agreeing", present: true }]);
    speak();
    await until("it is a link", () => streams.length > 0);
    expect(bob.peers.rows).toMatchObject([{ state: "linked" }]);
  });

  test("is ended by disconnect", async () => {
    await using scene = await agreeing();
    await scene.bob.disconnect("eve");
    await isClosed(scene);
    expect(scene.bob.told("failed")).toMatchObject([{ name: "eve", reason: "cancelled" }]);
  });

  test("is ended when its peer leaves the introducer, and no link is there that no list shows", async () => {
    await using scene = await agreeing();
    scene.eve.close();
    await until("she has left", () => scene.bob.told("left").length > 0);
    await isClosed(scene);
    expect(scene.bob.told("failed")).toMatchObject([{ reason: "peer-left" }]);
    expect(scene.bob.peers.rows).toEqual([]);
  });

  test("is ended by leave", async () => {
    await using scene = await agreeing();
    scene.bob.leave();
    await isClosed(scene);
  });

  test("is ended by quit: no link and no stream comes after it", async () => {
    await using scene = await agreeing();
    await scene.bob.quit();
    await isClosed(scene);
  });

  test("outlives the introducer, and stays in the list", async () => {
    await using scene = await agreeing();
    const { house, bob, speak, streams } = scene;
    await house[Symbol.asyncDispose]();
    await until("it is lost", () => bob.told("introducer").length > 0);
    expect(bob.peers.rows).toMatchObject([{ name: "eve", state: "agreeing" }]);
    speak();
    await until("it is a link", () => streams.length > 0);
    expect(bob.peers.rows).toMatchObject([{ name: "eve", state: "linked" }]);
    await bob.disconnect("eve");
  });

  test("is closed after a while, and told; what waits for the link is told, too", async () => {
    await using scene = await agreeing();
    const waiting = scene.bob.connect("eve");
    waiting.catch(() => {});
    await scene.link.frames.over();
    await expect(waiting).rejects.toThrow("timed-out");
    const detail = "the peer did not say which link it is for";
    expect(scene.bob.told("failed")).toMatchObject([{ reason: "timed-out", detail }]);
    expect(scene.bob.peers.rows).toMatchObject([{ state: "failed" }]);
  });
});

/** Frames behind the first flight, the stream of lines being 1. `ends`: that the link has; else it lives. */
const absurdities: [what: string, ends: boolean, frames: (link: RawLink) => Buffer[]][] = [
  ["a second hello", true, hello],
  [
    "an answer to a hello that nobody said",
    true,
    (link) => [helloFrame(frame.resumed, { ...link, status: 0 })],
  ],
  ["a nomination again", true, (link) => [link.nominationLine()]],
  ["an unknown type", true, () => [frameOf(9)]],
  ["an unknown unsequenced type", true, () => [frameOf(0xff, "12345678")]],
  ["a frame of 16 MiB", true, () => [frameOf(frame.data, "x", 1, 0xff_ffff)]],
  ["an open without a payload", true, () => [frameOf(frame.open, "", 3)]],
  ["an open of stream 0", true, () => [openFrame(0, { use: "x" })]],
  ["an open of stream 4294967295", false, () => [openFrame(0xffff_ffff, { use: "x" })]],
  ["an open with a number of ours", true, () => [openFrame(2, { use: "x" })]],
  ["an open twice", true, () => [openFrame(3, { use: "x" }), openFrame(3, { use: "x" })]],
  ["a second stream of lines", false, () => [openFrame(3, { use: "lines" })]],
  ["data for no stream", true, () => [frameOf(frame.data, "x", 77)]],
  ["data without a byte", true, () => [frameOf(frame.data, "", 1)]],
  [
    "data beyond all credit",
    true,
    () =>
      Array(5)
        .fill(frameOf(frame.data, Buffer.alloc(65_536), 3))
        .toSpliced(0, 0, openFrame(3, { use: "kept" })),
  ],
  ["credit of nothing", true, () => [creditFrame(1, 0)]],
  ["credit of 4 GiB", true, () => [creditFrame(1, 0xffff_ffff)]],
  ["credit that sums up to more than 2 GiB", true, () => Array(3).fill(creditFrame(1, 0x4000_0000))],
  ["credit of three bytes", true, () => [frameOf(frame.credit, "123", 1)]],
  ["an end with a payload", true, () => [frameOf(frame.end, "x", 1)]],
  [
    "an end twice",
    true,
    () => [openFrame(3, { use: "kept" }), frameOf(frame.end, "", 3), frameOf(frame.end, "", 3)],
  ],
  ["a reset of nothing", true, () => [resetFrame(9, 0, "")]],
  [
    "a reset with half a character",
    false,
    () => [openFrame(3, { use: "kept" }), frameOf(frame.reset, Buffer.from([0, 0, 0, 9, 0xf0, 0x9f]), 3)],
  ],
  ["a reset of the lines", true, () => [resetFrame(1, 0, "")]],
  ["the end of the lines", true, () => [frameOf(frame.end, "", 1)]],
  ["finish, then data", true, () => [frameOf(frame.finish, ""), frameOf(frame.data, "x", 1)]],
  ["finish, then an open", true, () => [frameOf(frame.finish, "quit"), openFrame(3, { use: "x" })]],
  ["finish twice", true, () => [frameOf(frame.finish, ""), frameOf(frame.finish, "")]],
  ["an acknowledgement of what was never sent", true, () => [countFrame(frame.ack, 1e9)]],
  ["an acknowledgement of 2^64 - 1", true, () => [frameOf(frame.ack, Buffer.alloc(8, 0xff))]],
  ["an acknowledgement that goes back", false, () => [countFrame(frame.ack, 0)]],
  ["a pong that nobody asked for", false, () => [countFrame(frame.pong, 7)]],
  ["a pong of 2^64 - 1", true, () => [frameOf(frame.pong, Buffer.alloc(8, 0xff))]],
  ["a ping of noise", false, () => [frameOf(frame.ping, Buffer.alloc(8, 0xff))]],
  ["a start after what never came", true, () => [countFrame(frame.start, 1e6)]],
  ["a rewind for nothing", true, () => [countFrame(frame.rewind, 0)]],
  ["a line that is no JSON", true, () => [frameOf(frame.data, "no JSON\n", 1)]],
  ["a line of nothing but brackets", true, () => [frameOf(frame.data, `${"[".repeat(4_000)}\n`, 1)]],
  [
    "a line without an end",
    true,
    () => [
      frameOf(frame.data, Buffer.alloc(65_536, "x"), 1),
      frameOf(frame.data, Buffer.alloc(65_536, "x"), 1),
    ],
  ],
  ["a line of an unknown type", true, () => [frameOf(frame.data, '{"type":"toString"}\n', 1)]],
  [
    "a text that is an object",
    true,
    () => [frameOf(frame.data, '{"type":"say","id":1,"text":{"toString":1}}\n', 1)],
  ],
  ["an answer to what was not said", false, () => [frameOf(frame.data, '{"type":"heard","id":99}\n', 1)]],
  [
    "a purpose whose fields are odd",
    false,
    () => [
      openFrame(3, { use: "forward", host: { toString: 1 }, port: "0x50" }),
      openFrame(5, { use: "pipe", host: [], port: -1 }),
      openFrame(7, { use: "files", name: { toString: 1 }, files: 1e308, bytes: -1 }),
    ],
  ],
];

describe("frames that no participant sends", () => {
  /** One bob for all of them. Made by who comes first: a hook would keep other tests from running beside. */
  let made: ReturnType<typeof meetingCarol> | undefined;
  afterAll(async () => (await made)?.[Symbol.asyncDispose]());

  test.each(absurdities)("%s", async (what, ends, frames) => {
    const { house, bob } = await (made ??= meetingCarol());
    const name = `eve-${absurdities.findIndex(([one]) => one === what)}`;
    using eve = await Member.join(house.port, { name, room });
    using link = await eve.link("bob");
    await link.begin(lines);
    await until("it is a link", () => bob.told("linked").some((one) => one.name === name));
    link.send(...frames(link));
    const ended = () => bob.told("unlinked").filter((one) => one.name === name);
    if (ends) {
      await until("it has ended", () => ended().length > 0);
      expect(ended()).toMatchObject([{ reason: "protocol-error" }]);
      expect(bob.peers.link(name)).toBeUndefined();
    } else {
      link.send(linesSay("still here"));
      await link.reads(1, '{"type":"heard","id":1}\n');
      expect(ended()).toEqual([]);
    }
    expect(await bob.ping("carol")).toBeGreaterThan(0);
    expect(bob.told("error")).toEqual([]);
  });
});

const flood = (first: number, many: number, purpose: object) =>
  Buffer.concat(
    Array.from({ length: many }, (_, i) => [
      openFrame(first + 2 * i, purpose),
      frameOf(frame.end, "", first + 2 * i),
    ]).flat(),
  );

describe("a flood of streams", () => {
  test("that are refused is a line a second, and none is left out of the count", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", "--room", room, "--allow", "1");
    await bob.registered;
    using eve = await Member.join(house.port, { name: "eve", room });
    using link = await eve.link("bob");
    const startedAt = performance.now();
    await link.begin(lines, flood(3, 400, { use: "forward", host: "localhost", port: 2 }));
    await until(
      "all are refused",
      () => link.frames.all.filter(({ type }) => type === frame.reset).length === 400,
    );
    const told = () => bob.events.filter((one) => one.event === "forward-refused");
    await until(
      "all are told or counted",
      () => told().reduce((sum, { more = 0 }) => sum + 1 + more, 0) === 400,
    );
    expect(told().length).toBeLessThan(12 + (performance.now() - startedAt) / 1000);
  });

  test("of offers that are taken back at once is told so far, and then at a pace", async () => {
    await using house = startIntroducer();
    await using bob = new Driven(house.port, "bob", "--room", room, "--stay");
    await bob.registered;
    using eve = await Member.join(house.port, { name: "eve", room });
    using link = await eve.link("bob");
    await link.begin(lines);
    const purpose = { use: "files", name: "x", files: 1, bytes: 1, things: 1, listed: 1, moreOdd: 0 };
    const line = `${JSON.stringify({ type: "listed", path: "x" })}\n`;
    const startedAt = performance.now();
    const told = () => bob.events.filter((one) => one.event === "offered").length;
    const wasReset = (id: number) =>
      link.frames.all.some(({ type, stream }) => type === frame.reset && stream === id);
    for (let id = 3; id < 603; id += 2) {
      const before = told();
      link.send(openFrame(id, purpose), frameOf(frame.data, line, id));
      await until("it is told or refused", () => told() > before || wasReset(id));
      if (!wasReset(id)) link.send(resetFrame(id, 0, ""));
    }
    link.send(linesSay("the last"));
    await bob.next("said");
    expect(told()).toBeGreaterThanOrEqual(100);
    expect(told()).toBeLessThanOrEqual(129 + 2 * ((performance.now() - startedAt) / 1000));
  });

  test("whose handler throws is gathered, too", async () => {
    await using scene = await meeting();
    const { bob, eve } = scene;
    bob.onStream("game", () => {
      throw new Error("a bug");
    });
    using link = await eve.link("bob");
    const startedAt = performance.now();
    await link.begin(lines, flood(3, 1_000, { use: "game" }));
    await until(
      "all are reset",
      () => link.frames.all.filter(({ type }) => type === frame.reset).length === 1_000,
    );
    await until("it is told", () => bob.told("error").some(({ message }) => /others like it/.test(message)));
    expect(bob.told("error").length).toBeLessThan(12 + (performance.now() - startedAt) / 1000);
  });
});

describe("a program that", () => {
  test("connects in its handler of `failed` gets the new answer, not the old failure", async () => {
    await using house = startIntroducer();
    let again: Promise<unknown> | undefined;
    const bob: Program = new Program(house.port, "bob", ({ event }) => {
      if (event === "failed") again = bob.connect("eve").catch((error: unknown) => error);
    });
    await using _ = bob;
    await bob.join();
    using eve = await Member.join(house.port, { name: "eve", room });
    await bob.peers.waitFor("eve");
    const first = bob.connect("eve");
    first.catch(() => {});
    const { peer, token } = await eve.hears("punch");
    eve.say({ type: "failed", peer: peer.id, token, reason: "refused-by-peer" });
    await expect(first).rejects.toThrow("refused-by-peer");
    using link = await eve.punch(await eve.hears("punch"));
    await link.begin();
    expect(await again).toBe(bob.peers.link("eve")!);
  });

  test("names nobody it knows is rejected, not thrown at; after quit, whoever waits is, too", async () => {
    await using house = startIntroducer();
    await using bob = new Program(house.port, "bob");
    await bob.join();
    const calls = [
      () => bob.say("nobody", "x"),
      () => bob.ping("nobody"),
      () => bob.disconnect("nobody"),
      () => bob.connect("nobody"),
    ];
    for (const call of calls) await expect(call()).rejects.toThrow("nobody here is called nobody");
    const waits = [bob.peers.waitFor("carol"), bob.peers.whenLinked("carol"), bob.peers.waitFor("dave")];
    const outcome = Promise.allSettled(waits);
    await bob.quit();
    expect((await outcome).map(({ status }) => status)).toEqual(["rejected", "rejected", "rejected"]);
    await expect(bob.peers.waitFor("carol")).rejects.toThrow("has quit");
    await expect(bob.peers.whenLinked("carol")).rejects.toThrow("has quit");
  });
});

describe("another link has its turns beside", () => {
  alone("a flood of pings, acknowledgements, credit and texts takes no turn from another link", async () => {
    await using scene = await meetingCarol();
    const { bob, eve } = scene;
    using link = await eve.link("bob");
    link.keeps = false;
    await link.begin(lines);
    const floods = [
      Array(4_000).fill(frameOf(frame.ping, "12345678")),
      Array(4_000).fill(countFrame(frame.ack, 0)),
      Array(1_000).fill(creditFrame(1, 1)),
      Array(200).fill(linesSay("x")),
    ];
    for (const one of floods) {
      link.send(...(one as Buffer[]));
      expect(await bob.ping("carol")).toBeGreaterThan(0);
    }
    const said = () => bob.told("said").filter(({ name }) => name === "eve");
    await until("all was read", () => said().length === 200);
    expect(bob.peers.link("eve")).toBeDefined();
  });

  alone(
    "a flood of streams of five members: it takes few turns from others, and little memory, also when they are gone",
    async () => {
      await using scene = await meetingCarol();
      const { house, bob } = scene;
      let [turn, most, taken] = [0, 0, 0];
      const turns = setInterval(() => (turn = 0), 0);
      bob.onStream("game", (stream) => {
        taken++;
        most = Math.max(most, ++turn);
        stream.reset("x".repeat(256), 1);
      });
      const before = programMemory.heldBytes;
      const links: RawLink[] = [];
      for (let i = 0; i < 5; i++) {
        const eve = await Member.join(house.port, { name: `eve-${i}`, room });
        const link = await eve.link("bob");
        link.acknowledges = link.keeps = false;
        await link.begin(lines);
        links.push(link);
        link.send(flood(3, 20_000, { use: "game" }));
      }
      await until("all have been refused many", () => taken > 5 * 400);
      for (let i = 0; i < 20; i++) await bob.ping("carol");
      clearInterval(turns);
      // A turn of the loop reads each link at most twice.
      expect(most).toBeLessThan(5 * 2 * 40);
      expect(taken).toBeLessThan(5 * 4_000);
      for (const link of links) link.cut();
      await until("bob knows", () => bob.told("broken").length === 5);
      expect(programMemory.heldBytes - before).toBeLessThan(5 * 1.5 * 1024 * 1024);
    },
  );
});
