import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { adopt, Channel, LinkError } from "../../native/link/channel.ts";
import { StreamError } from "../../native/link/stream.ts";
import { maxTextLength } from "../../protocol.ts";
import { listening, noSocketLeft, until } from "../native-fixture.ts";
import {
  accepted,
  aliceIdentity,
  bobIdentity,
  closeBoth,
  credentialsOf,
  linkOn,
  links,
  server,
  type Story,
} from "./story-fixture.ts";

async function rejection(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof LinkError) return error.message;
    throw error;
  }
  throw new Error("it did not fail");
}

const hasEnded = (story: Story) => () => story.ends.length > 0;

// --- saying ------------------------------------------------------------------------------------------------

describe("a link", () => {
  test("carries what is said both ways, in order, and says that it was heard", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 200 }, (_, index) => `${index} äöü 🦊 \n"\\`);
    const answers = await Promise.all(
      texts.flatMap((text) => [alice.link.say(text), bob.link.say(text.toUpperCase())]),
    );
    expect(bob.texts).toEqual(texts);
    expect(alice.texts).toEqual(texts.map((text) => text.toUpperCase()));
    expect(answers.every((elapsedMs) => elapsedMs > 0)).toBe(true);
    await closeBoth(alice, bob);
  });

  test("measures the round trip, and counts its bytes alike on both sides", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    expect(await alice.link.ping()).toBeGreaterThan(0);
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
    await alice.link.say(longest);
    expect(bob.texts).toEqual([longest]);
    await closeBoth(alice, bob);
  });

  test("does not come to a standstill when both sides say more than the stream takes at once", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 500 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    await Promise.all(texts.flatMap((text) => [alice.link.say(text), bob.link.say(text)]));
    expect([alice.texts, bob.texts]).toEqual([texts, texts]);
    await closeBoth(alice, bob);
  });

  test("lets so many texts wait for their answer, and no more", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const waiting = Array.from({ length: 1024 }, (_, n) => alice.link.say(`${n}`));
    expect(await rejection(alice.link.say("one more"))).toBe("1024 texts already wait for the peer's answer");
    await Promise.all(waiting);
    await alice.link.say("there is room again");
    expect(bob.texts.length).toBe(1025);
    await closeBoth(alice, bob);
  });

  test("carries streams, and refuses those that nobody takes with the reason", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    bob.takesStreams = true;
    const stream = alice.link.open({ use: "a test", path: ["ä", 1] });
    stream.end("hello");
    await until("bob has it", () => bob.streams.length > 0);
    expect(bob.streams[0]!.purpose).toEqual({ use: "a test", path: ["ä", 1] });
    let text = "";
    for await (const chunk of bob.streams[0]!.stream) text += chunk;
    expect(text).toBe("hello");
    bob.takesStreams = false;
    const unwanted = alice.link.open({ use: "nothing" });
    const errors: unknown[] = [];
    unwanted.on("error", (error) => errors.push(error));
    await until("it is refused", () => errors.length > 0);
    expect(errors[0]).toBeInstanceOf(StreamError);
    expect(errors[0]).toMatchObject({
      code: 1,
      message: "the peer cut the stream off: nobody takes streams here",
    });
    await closeBoth(alice, bob);
    expect(() => alice.link.open({ use: "a test" })).toThrow(LinkError);
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
    expect(await rejection(alice.link.say("too late"))).toBe("the link has ended");
    expect(await rejection(alice.link.ping())).toBe("the link has ended");
  });

  // A megabyte does not fit into the socket at once, so closing too early would lose some of it.
  test("comes after everything said before", async () => {
    await using _ = noSocketLeft();
    const { alice, bob } = await links();
    const texts = Array.from({ length: 150 }, (_, index) => `${index}`.padEnd(maxTextLength, "."));
    const heard = Promise.allSettled(texts.map((text) => alice.link.say(text)));
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
    const heard = texts.flatMap((text) => [alice.link.say(text), bob.link.say(text)]);
    const settled = Promise.allSettled(heard);
    await closeBoth(alice, bob);
    expect([bob.texts.length, alice.texts.length]).toEqual([150, 150]);
    const ours: Story["ends"] = [{ reason: "disconnected", detail: "" }];
    expect([alice.ends, bob.ends]).toEqual([ours, ours]);
    await settled;
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
  expect(await side.secured).toBe(aliceIdentity.fingerprint);
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
