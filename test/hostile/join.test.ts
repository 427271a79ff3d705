/** An introducer that goes, or talks, before a participant has registered: whoever waits is told, and it comes back. */
import { expect, setDefaultTimeout } from "bun:test";
import { Participant } from "../../participant.ts";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { secretRoom } from "../../native/secure/room.ts";
import { Driven, outcome } from "../driven-fixture.ts";
import {
  type LineSocket,
  LyingIntroducer,
  makeIdentity,
  peerLine,
  peersLine,
  registered,
  until,
} from "./wire.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);

const words = "k7xq-m2vp-9dfa-w4tz";
const room = await secretRoom(words);
const identity = makeIdentity();

function participant(port: number, of: ConstructorParameters<typeof Participant>[0]["room"] = room) {
  const events: ParticipantEvent[] = [];
  const onEvent = (event: ParticipantEvent) => void events.push(event);
  const me = new Participant({ host: "127.0.0.1", port, name: "alice", room: of, identity, onEvent });
  return { me, events };
}

const settled = (joining: Promise<void>): Promise<string> =>
  joining.then(
    () => "joined",
    (error: Error) => error.message,
  );

// --- while the words are made a room of ----------------------------------------------------------------------

const early: Record<string, [(visitor: LineSocket) => void, string]> = {
  "ends the connection": [(visitor) => visitor.close(), "it closed the connection"],
  "resets the connection": [(visitor) => visitor.cut(), "reset"],
  "says bye, and why": [(visitor) => visitor.say({ type: "bye", reason: "no place" }), "no place"],
  "refuses, and why": [
    (visitor) => visitor.say({ type: "refused", code: "bad-version", message: "it is of version 9" }),
    "it is of version 9",
  ],
  "offers another name": [
    (visitor) => visitor.say({ type: "refused", code: "name-taken", message: "taken", name: "alice-2" }),
    "taken",
  ],
  "says that we are registered": [
    (visitor) => visitor.say(registered({ type: "register", name: "alice", room: room.id }), peersLine()),
    "it said `registered` before we had registered",
  ],
  "says what is no message": [
    (visitor) => visitor.raw("HTTP/1.1 400 Bad Request\r\n\r\n"),
    "not in the protocol",
  ],
};

test.each(Object.entries(early))(
  "an introducer that %s before we have registered",
  async (_what, [act, why]) => {
    const { promise, resolve } = Promise.withResolvers<typeof room>();
    using house = await LyingIntroducer.listen(() => {}, act);
    const { me } = participant(house.port, promise);
    const joining = settled(me.join());
    await until("it has come", () => house.visitors.length > 0);
    house.visitors[0]!.socket.resume();
    expect(await joining).toContain(why);
    resolve(room); // it is over, so nothing more is said
    await me.quit();
    expect(house.heard.all).toEqual([]);
  },
);

test.each([0, 10, 40, 80])(
  "the program whose introducer leaves %d ms after it came ends, and says why",
  async (delayMs) => {
    using house = await LyingIntroducer.listen(
      () => {},
      (visitor) => void setTimeout(() => visitor.close(), delayMs),
    );
    const { code, stderr } = await outcome([`127.0.0.1:${house.port}`, "--name", "alice", "--room", words]);
    expect([code, stderr]).toEqual([1, expect.stringContaining("it closed the connection")]);
  },
);

test("a participant that was registered comes back, whenever the introducer left it", async () => {
  let visits = 0;
  using house = await LyingIntroducer.listen(
    (line, visitor) => line.type === "register" && visitor.say(registered(line), peersLine()),
    (visitor) => {
      visits++;
      if (visits > 1 && visits < 4) visitor.cut();
    },
  );
  const { me, events } = participant(house.port);
  await me.join();
  house.visitors[0]!.cut();
  await until("it is registered again", () => visits >= 4 && me.state === "registered");
  const states = events.flatMap((one) => (one.event === "introducer" ? [one.state] : []));
  expect(states[0]).toBe("lost");
  expect(new Set(states.slice(1))).toEqual(new Set(["unreachable"])); // once for each reason
  await me.quit();
});

// --- come back at once ---------------------------------------------------------------------------------------

test("an introducer that has everyone back at once is not flooded by them", async () => {
  const cameAt: number[] = [];
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type !== "register") return;
    cameAt.push(performance.now());
    visitor.say(registered(line), peersLine(), { type: "bye", reason: "again", retryInMs: 0 });
  });
  await using alice = new Driven(house.port, "alice");
  const pauses: number[] = [];
  for (let round = 0; round < 4; round++)
    pauses.push((await alice.next("introducer", ({ state }) => state === "lost")).retryInMs!);
  // Half a second, doubled each time; half of it is jitter.
  expect(pauses.map((ms, round) => ms >= 250 * 2 ** round)).toEqual([true, true, true, true]);
  // And it came no earlier than it said; a timer may be early by less than that.
  const early = cameAt.slice(1, 4).map((at, round) => at - cameAt[round]! < pauses[round]! - 5);
  expect(early).toEqual([false, false, false]);
});

// --- little that makes much ----------------------------------------------------------------------------------

test("a line of 41 bytes does not have the whole room told again", async () => {
  const peers = Array.from({ length: 500 }, (_, index) =>
    peerLine({ id: 2 + index, name: `peer-${index}`, instance: index.toString(16).padStart(16, "0") }),
  );
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type !== "register" || house.guests.length > 1) return;
    visitor.say(
      registered(line),
      ...peers.map((one) => ({ type: "peers", peers: [one], more: true })),
      peersLine(),
    );
    for (let count = 0; count < 100; count++) visitor.say(peersLine());
  });
  await using alice = new Driven(house.port, "alice");
  const { reason } = await alice.next("introducer", ({ state }) => state === "lost");
  expect([reason, alice.count("peers")]).toEqual(["it listed the room twice", 1]);
});

test("an introducer that registers us again and again does so once", async () => {
  using house = await LyingIntroducer.listen((line, visitor) => {
    if (line.type === "register")
      visitor.say(registered(line), registered(line), registered(line), peersLine());
  });
  const { code, stdout, stderr } = await outcome([`127.0.0.1:${house.port}`, "--name", "alice", "--json"]);
  expect([code, stdout.match(/"event":"registered"/g)?.length]).toEqual([1, 1]);
  expect(stdout + stderr).toContain("it registered us twice");
});
