import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { judgeOffer, LinkError, refuseOffer } from "../../native/session/carrier.ts";
import { Channel } from "../../native/secure/channel.ts";
import { adopt } from "../../native/secure/tls.ts";
import { resumedStatus } from "../../native/session/frame.ts";
import { StreamError } from "../../native/session/stream.ts";
import { maxTextLength } from "../../protocol.ts";
import { listening, noSocketLeft, until } from "../native-fixture.ts";
import {
  accepted,
  aliceIdentity,
  anotherChannel,
  beginLink,
  bobIdentity,
  closeBoth,
  credentialsOf,
  hasEnded,
  linkOn,
  links,
  offerOn,
  rejection,
  securedAs,
  server,
  type Story,
  Wire,
} from "./story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

// --- saying ------------------------------------------------------------------------------------------------

describe("a link", () => {
  test("carries what is said both ways, in order, and says that it was heard", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 200 }, (_, index) => `${index} äöü 🦊 \n"\\`);
    const answers = await Promise.all(
      texts.flatMap((text) => [alice.lines.say(text), bob.lines.say(text.toUpperCase())]),
    );
    expect(bob.texts).toEqual(texts);
    expect(alice.texts).toEqual(texts.map((text) => text.toUpperCase()));
    expect(answers.every((elapsedMs) => elapsedMs > 0)).toBe(true);
    await closeBoth(alice, bob);
  });

  test("measures the round trip, and counts its bytes alike on both sides", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const from = performance.now();
    const rttMs = await alice.lines.ping();
    expect(rttMs).toBeWithin(Number.MIN_VALUE, performance.now() - from + Number.EPSILON);
    const [a, b] = [alice.link.session, bob.link.session];
    await until("both have measured", () => a.roundTripMs !== undefined && b.roundTripMs !== undefined);
    await until("all bytes are in", () => a.bytesOut === b.bytesIn && b.bytesOut === a.bytesIn);
    expect(a.roundTripMs).toBeGreaterThan(0);
    await closeBoth(alice, bob);
  });

  test("carries the longest text", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const longest = "\u0001".repeat(maxTextLength); // six bytes a character once it is JSON
    await alice.lines.say(longest);
    expect(bob.texts).toEqual([longest]);
    await closeBoth(alice, bob);
  });

  test("does not come to a standstill when both sides say more than the stream takes at once", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 500 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    await Promise.all(texts.flatMap((text) => [alice.lines.say(text), bob.lines.say(text)]));
    expect([alice.texts, bob.texts]).toEqual([texts, texts]);
    await closeBoth(alice, bob);
  });

  test("lets so many texts wait for their answer, and no more", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const waiting = Array.from({ length: 1024 }, (_, n) => alice.lines.say(`${n}`));
    expect(await rejection(alice.lines.say("one more"))).toBe(
      "1024 texts already wait for the peer's answer",
    );
    await Promise.all(waiting);
    await alice.lines.say("there is room again");
    expect(bob.texts.length).toBe(1025);
    await closeBoth(alice, bob);
  });

  test("carries streams, and refuses those that nobody takes with the reason", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    bob.takesStreams = true;
    const stream = alice.link.open("a test", { path: ["ä", 1] });
    stream.end("hello");
    await until("bob has it", () => bob.streams.length > 0);
    expect(bob.streams[0]!.purpose).toEqual({ use: "a test", path: ["ä", 1] });
    let text = "";
    for await (const chunk of bob.streams[0]!.stream) text += chunk;
    expect(text).toBe("hello");
    bob.takesStreams = false;
    const unwanted = alice.link.open("nothing");
    const errors: unknown[] = [];
    unwanted.on("error", (error) => errors.push(error));
    await until("it is refused", () => errors.length > 0);
    expect(errors[0]).toBeInstanceOf(StreamError);
    expect(errors[0]).toMatchObject({
      code: 1,
      message: "the other side ended it: nobody takes streams here",
    });
    await closeBoth(alice, bob);
    expect(() => alice.link.open("a test")).toThrow(LinkError);
  });
});

// --- the orderly end ---------------------------------------------------------------------------------------

describe("close", () => {
  test.each([
    ["disconnected", "peer-disconnected"],
    ["quit", "peer-quit"],
    ["replaced", "replaced"],
  ] as const)("as %s ends both sides, telling who and why (%s), once", async (reason, peers) => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    await Promise.all([alice.link.close(reason), alice.link.close("disconnected")]);
    await until("bob has heard", hasEnded(bob));
    expect(alice.ends).toEqual([{ reason, detail: "" }]);
    expect(bob.ends).toEqual([{ reason: peers, detail: "" }]);
    expect(await Promise.all([alice.link.ended, bob.link.ended])).toEqual([reason, peers]);
    await closeBoth(alice, bob);
    expect([alice.ends.length, bob.ends.length, alice.link.isOpen, bob.link.isOpen]).toEqual([
      1,
      1,
      false,
      false,
    ]);
    expect(await rejection(alice.lines.say("too late"))).toBe("the link has ended");
    expect(await rejection(alice.lines.ping())).toBe("the link has ended");
  });

  // A megabyte does not fit into the socket at once, so closing too early would lose some of it.
  test("comes after everything said before", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 150 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    const heard = Promise.allSettled(texts.map((text) => alice.lines.say(text)));
    await alice.link.close("disconnected");
    expect((await heard).every(({ status }) => status === "fulfilled")).toBe(true);
    expect(bob.texts).toEqual(texts);
    await until("bob has heard the end", hasEnded(bob));
    expect(bob.ends).toEqual([{ reason: "peer-disconnected", detail: "" }]);
  });

  test.each([1, 2, 3, 4, 5])("from both sides at once loses nothing either said (%d)", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 150 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    const heard = texts.flatMap((text) => [alice.lines.say(text), bob.lines.say(text)]);
    const settled = Promise.allSettled(heard);
    await closeBoth(alice, bob);
    const ours: Story["ends"] = [{ reason: "disconnected", detail: "" }];
    expect([alice.ends, bob.ends]).toEqual([ours, ours]);
    await until("all has been read", () => bob.texts.length + alice.texts.length === 300);
    await settled;
  });
});

// --- channels come and go ----------------------------------------------------------------------------------

const minute = 60_000;

/** Random bytes on a stream of the link, until told to end; both hashes, once it is over. */
function transfer(from: Story, to: Story) {
  to.takesStreams = true;
  const [written, read] = [new Bun.CryptoHasher("sha256"), new Bun.CryptoHasher("sha256")];
  const course = { bytes: 0, isOver: false };
  const stream = from.link.open("a test");
  const block = crypto.getRandomValues(new Uint8Array(60_000));
  const more = (): void => {
    while (!course.isOver) {
      written.update(block);
      if (!stream.write(block)) return void stream.once("drain", more);
    }
    stream.end();
  };
  more();
  const hashes = (async () => {
    await until("the stream is there", () => to.streams.length > 0);
    for await (const chunk of to.streams[0]!.stream) {
      read.update(chunk as Buffer);
      course.bytes += (chunk as Buffer).length;
    }
    return [written.digest("hex"), read.digest("hex")];
  })();
  return { course, hashes };
}

describe("a link goes on", () => {
  test.each(["alice", "bob"] as const)(
    "over a second channel that %s brings, before the first is closed: without a gap, under a running transfer",
    async (by) => {
      await using _ = noSocketLeft();
      const linked = await links(minute);
      const { alice, bob, first } = linked;
      const before = alice.link.local;
      const { course, hashes } = transfer(alice, bob);
      await until("it runs", () => course.bytes > 1 << 20);
      const second = await anotherChannel(linked, by);
      await until("both have moved", () => alice.events.length > 0 && bob.events.length > 0);
      expect([alice.events, bob.events]).toEqual([["moved without a gap"], ["moved without a gap"]]);
      const moved = course.bytes;
      await until("it still runs", () => course.bytes > moved + (1 << 20));
      course.isOver = true;
      const [written, read] = await hashes;
      expect(read).toBe(written!);
      await until("the first is closed", () => !first.alice.isOpen && !first.bob.isOpen);
      expect([alice.link.local, alice.link.remote, alice.link.local === before]).toEqual([
        second.alice.local,
        second.alice.remote,
        false,
      ]);
      expect(alice.link.route).toBe(second.alice.route);
      expect(alice.link.session.carriersSoFar).toBe(2);
      await closeBoth(alice, bob);
    },
  );

  test.each(["alice", "bob"] as const)(
    "after a break, on a channel that %s brings: what was said meanwhile arrives, once and in order",
    async (by) => {
      await using _ = noSocketLeft();
      const linked = await links(minute);
      const { alice, bob, first } = linked;
      await alice.lines.say("before");
      first.cut();
      await until("both know", () => alice.link.state === "returning" && bob.link.state === "returning");
      const heard = [..."abcdef"].flatMap((text) => [alice.lines.say(text), bob.lines.say(text)]);
      expect([alice.link.isOpen, alice.ends, alice.texts]).toEqual([true, [], []]);
      await anotherChannel(linked, by);
      await Promise.all(heard);
      expect([alice.texts, bob.texts]).toEqual([[..."abcdef"], ["before", ..."abcdef"]]);
      const events = ["broken: the connection was reset", "moved after a gap"];
      expect([alice.events, bob.events]).toEqual([events, events]);
      expect([alice.link.state === "returning", bob.link.state === "returning"]).toEqual([false, false]);
      await closeBoth(alice, bob);
    },
  );

  test("after many breaks, also in the middle of coming back, and no byte is lost or comes twice", async () => {
    await using _ = noSocketLeft();
    const linked = await links(minute);
    const { alice, bob, first } = linked;
    const { course, hashes } = transfer(alice, bob);
    let wire = first;
    for (let round = 0; round < 20; round++) {
      const bytes = course.bytes;
      await until("it runs", () => course.bytes > bytes);
      wire.cut();
      if (round % 3 === 0) {
        // One that breaks before it is known to be there.
        const inVain = await Wire.between("alice");
        const { alice: ours, bob: theirs } = inVain.nominate();
        const offer = offerOn(theirs);
        alice.link.attach(ours);
        if (round % 2 === 0) bob.link.accept(await offer);
        inVain.cut();
        await offer.catch(() => {});
      }
      wire = await anotherChannel(linked, round % 2 === 0 ? "alice" : "bob");
    }
    course.isOver = true;
    const [written, read] = await hashes;
    expect(read).toBe(written!);
    expect([alice.ends, bob.ends]).toEqual([[], []]);
    await closeBoth(alice, bob);
  });

  test.concurrent(
    "when its channel has fallen silent: another is sought beside it, and what comes late changes nothing",
    async () => {
      await using _ = noSocketLeft();
      const linked = await links(minute);
      const { alice, bob, first } = linked;
      await alice.lines.say("before");
      first.silence();
      const heard = alice.lines.say("into the void");
      await until("it looks dead", () => alice.link.state === "suspect");
      expect([alice.events[0], alice.link.state === "returning", bob.texts]).toEqual([
        "looks dead",
        false,
        ["before"],
      ]);
      await anotherChannel(linked);
      await heard;
      expect(alice.events.at(-1)).toBe("moved after a gap");
      expect([alice.link.state === "suspect", bob.texts]).toEqual([false, ["before", "into the void"]]);
      first.resume();
      await bob.lines.say("still here");
      expect([alice.texts, bob.texts.length, alice.ends, bob.ends]).toEqual([["still here"], 2, [], []]);
      await closeBoth(alice, bob);
    },
  );

  test.concurrent("when its channel only seemed dead", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, first } = await links(minute);
    await alice.lines.say("before");
    first.silence();
    const heard = alice.lines.say("after");
    await until("it looks dead", () => alice.link.state === "suspect");
    first.resume();
    await heard;
    expect([bob.texts, alice.ends, bob.ends]).toEqual([["before", "after"], [], []]);
    await closeBoth(alice, bob);
  });
});

describe("a link without a channel", () => {
  const detail = "the connection was reset";

  test("ends at once where it is not kept, and what was not answered is told", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, first } = await links(0);
    first.silence();
    const unanswered = rejection(alice.lines.say("are you there?"));
    first.cut();
    expect(await unanswered).toBe(`the link ended before the peer answered: ${detail}`);
    await until("bob's ends, too", hasEnded(bob));
    const lost: Story["ends"] = [{ reason: "connection-lost", detail }];
    expect([alice.ends, bob.ends, alice.events, bob.events]).toEqual([lost, lost, [], []]);
  });

  test("ends when it does not come back in time", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, first } = await links(150);
    const stream = alice.link.open("a test");
    const errors: Error[] = [];
    stream.on("error", (error) => errors.push(error));
    first.cut();
    await until("both have ended", () => alice.ends.length + bob.ends.length === 2);
    const lost: Story["ends"] = [
      { reason: "connection-lost", detail: "it did not come back within 0.0025 min" },
    ];
    expect([alice.ends, bob.ends]).toEqual([lost, lost]);
    expect(alice.events).toEqual([`broken: ${detail}`]);
    await until("its streams have failed", () => errors.length > 0);
    expect(errors[0]!.message).toContain("the link has ended");
  });

  test("that nobody here asked for is not kept for long, unless somebody uses it", async () => {
    await using _ = noSocketLeft();
    const hour = 3_600_000;
    const unasked = { isAsked: false, unwantedKeepMs: 100 };
    const [idle, used] = [await links(hour, unasked), await links(hour, unasked)];
    used.bob.takesStreams = true;
    const stream = used.alice.link.open("a test");
    await until("it is taken", () => used.bob.streams.length > 0);
    used.first.cut();
    await until("it is broken", () => used.bob.events.length > 0);
    idle.first.cut();
    await until("the idle one has ended", hasEnded(idle.bob));
    expect(idle.bob.ends).toEqual([
      { reason: "connection-lost", detail: `it did not come back within ${100 / 60_000} min` },
    ]);
    expect([used.bob.ends, idle.alice.ends]).toEqual([[], []]);
    stream.destroy();
    for (const { link } of [idle.alice, used.alice, used.bob]) link.abandon("quit", "the test is over");
  });

  test("that only owes answers is not kept for long, though it was asked for", async () => {
    await using _ = noSocketLeft();
    const { alice, bob, first } = await links(3_600_000, { isAsked: true, unwantedKeepMs: 100 });
    bob.stream = (stream) => {
      first.silence(); // nobody acknowledges what follows
      stream.reset("nobody takes streams here");
    };
    alice.link.open("a test");
    await until("bob owes an answer", () => bob.link.session.owedBytes > 0);
    first.cut();
    await until("it has ended", hasEnded(bob));
    expect([bob.ends[0]!.reason, alice.ends]).toEqual(["connection-lost", []]);
    alice.link.abandon("quit", "the test is over");
  });

  test("that came back in time is kept for as long as its channel lives", async () => {
    await using _ = noSocketLeft();
    const keepMs = 500;
    const linked = await links(keepMs);
    const { alice, bob, first } = linked;
    const ready = await Wire.between("alice"); // it has no time for TLS
    first.cut();
    await until("both know", () => alice.link.state === "returning" && bob.link.state === "returning");
    await anotherChannel(linked, "alice", ready);
    const backAt = performance.now();
    await until("it could have been given up", () => performance.now() > backAt + 2 * keepMs);
    expect(await alice.lines.ping()).toBeGreaterThan(0);
    expect([alice.ends, bob.ends]).toEqual([[], []]);
    await closeBoth(alice, bob);
  });

  test("is closed at once, and the peer that comes back is told that it is over", async () => {
    await using _ = noSocketLeft();
    const linked = await links(minute);
    const { alice, bob, first } = linked;
    first.cut();
    await until("both know", () => alice.link.state === "returning" && bob.link.state === "returning");
    const unheard = rejection(alice.lines.say("too late"));
    await alice.link.close("disconnected");
    expect(alice.ends).toEqual([{ reason: "disconnected", detail: "" }]);
    expect(await unheard).toStartWith("the link ended before the peer answered");
    await anotherChannel(linked, "bob");
    await until("bob knows", hasEnded(bob));
    expect(bob.ends).toEqual([{ reason: "peer-restarted", detail: "" }]);
  });

  test.each([
    ["knows nothing of it any more", resumedStatus.unknown, { reason: "peer-restarted", detail: "" }],
    ["has ended it", resumedStatus.over, { reason: "peer-disconnected", detail: "" }],
    [
      "has given it up",
      resumedStatus.lost,
      { reason: "connection-lost", detail: "the peer had given it up" },
    ],
  ] as const)("ends when the peer's program %s", async (_what, status, end) => {
    await using _ = noSocketLeft();
    const { alice, bob, first } = await links(minute);
    await alice.lines.say("before"); // so that it is known to be no new link
    const stream = alice.link.open("a test");
    const errors: Error[] = [];
    stream.on("error", (error) => errors.push(error));
    first.cut();
    await until("alice knows", () => alice.link.state === "returning");
    const { alice: ours, bob: theirs } = (await Wire.between("alice")).nominate();
    const offer = offerOn(theirs);
    alice.link.attach(ours);
    const offered = await offer;
    expect(judgeOffer(offered, undefined, aliceIdentity.fingerprint)).toBe("refuse");
    refuseOffer(offered, status);
    await until("alice's link has ended", hasEnded(alice));
    expect(alice.ends).toEqual([end]);
    await until("its streams have failed", () => errors.length > 0);
    bob.link.abandon("peer-restarted", "");
  });
});

test("a channel for another link is refused, and harms neither", async () => {
  await using _ = noSocketLeft();
  const { alice, bob } = await links(minute);
  const wire = await Wire.between("alice");
  const { alice: ours, bob: theirs } = wire.nominate();
  const offer = offerOn(theirs);
  const other = beginLink(ours, { keepMs: minute });
  bob.link.accept(await offer);
  await until("the other link has ended", hasEnded(other));
  expect(other.ends).toEqual([{ reason: "peer-restarted", detail: "" }]);
  await until("its channel is closed", () => !ours.isOpen && !theirs.isOpen);
  await alice.lines.say("still here");
  expect([bob.texts, bob.events]).toEqual([["still here"], []]);
  await closeBoth(alice, bob);
});

test("a channel that is brought to a link which has ended is closed", async () => {
  await using _ = noSocketLeft();
  const { alice, bob } = await links(minute);
  await closeBoth(alice, bob);
  const wire = await Wire.between("alice");
  alice.link.attach(wire.nominate().alice);
  await until("it is closed", () => !wire.alice.isOpen && !wire.bob.isOpen);
});

// --- the peer's process --------------------------------------------------------------------------------------

function spawnPeer(endpoint: string) {
  return Bun.spawn([process.execPath, join(import.meta.dir, "link-fixture.ts"), endpoint], {
    stdin: new Blob([JSON.stringify(aliceIdentity)]),
    stdout: "pipe",
    stderr: "inherit",
  });
}

/** The link with such a process. */
async function linkWithProcess(keepMs = 0) {
  using listener = listening();
  const child = spawnPeer(listener.endpoint);
  const side = new Channel(
    adopt(await accepted(listener.socket)),
    "listen",
    server,
    credentialsOf(bobIdentity),
  );
  const bob = linkOn(side, { keepMs, fingerprint: aliceIdentity.fingerprint });
  expect(await securedAs(side, bobIdentity)).toBe(aliceIdentity.fingerprint);
  return { child, bob: await bob };
}

test("a process whose link was closed ends by itself: no timer, no descriptor holds it", async () => {
  await using _ = noSocketLeft();
  const { child, bob } = await linkWithProcess();
  await until("the peer has spoken", () => bob.texts.length > 0);
  await bob.link.close("quit");
  expect(await new Response(child.stdout).text()).toBe("heard\npeer-quit\n");
  expect(await child.exited).toBe(0);
});

test("a peer whose process is killed: the connection is lost, and what was said is told as unanswered", async () => {
  await using _ = noSocketLeft();
  const { child, bob } = await linkWithProcess();
  try {
    await until("the peer has spoken", () => bob.texts.length > 0);
    await bob.lines.say("welcome");
    child.kill("SIGKILL");
    const unanswered = rejection(bob.lines.say("are you there?"));
    expect(await unanswered).toStartWith("the link ended before the peer answered");
    // The kernel resets when bytes were left unread, and says FIN when none were.
    const detail = expect.stringMatching(/^the connection was (reset|closed at the peer's end)$/);
    expect(bob.ends).toEqual([{ reason: "connection-lost", detail }]);
  } finally {
    child.kill("SIGKILL");
    await child.exited;
  }
});

test("a peer whose process is stopped looks dead, and when it goes on the link does, too", async () => {
  await using _ = noSocketLeft();
  const { child, bob } = await linkWithProcess(minute);
  try {
    await until("the peer has spoken", () => bob.texts.length > 0);
    await bob.lines.say("welcome");
    child.kill("SIGSTOP");
    const heard = bob.lines.say("are you there?");
    await until("it looks dead", () => bob.events.length > 0);
    expect([bob.events, bob.link.state === "suspect", bob.link.state === "returning"]).toEqual([
      ["looks dead"],
      true,
      false,
    ]);
    child.kill("SIGCONT");
    await heard;
    await bob.link.close("quit");
    expect(await child.exited).toBe(0);
  } finally {
    child.kill("SIGKILL");
    await child.exited;
  }
});
