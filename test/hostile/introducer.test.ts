/**
 * Introducers that mean ill, are late, or come and go, played by a script, against the participant's real program and
 * class: what they say must neither harm the user nor be taken for the truth.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { makeIdentity } from "../../native/secure/identity.ts";
import { distrust, openRoom, prove, secretRoom } from "../../native/secure/room.ts";
import { Participant } from "../../participant.ts";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import {
  encode,
  type Endpoint,
  LineDecoder,
  parseToIntroducer,
  type Peer,
  publicInstance,
  type ToIntroducer,
  type ToParticipant,
} from "../../protocol.ts";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

const test = testAtOnce(4);
setDefaultTimeout(testMs);

const at = (text: string) => text as Endpoint;
const identity = makeIdentity();

/** An introducer by hand: every line of every visitor is handed to the script, which may answer. */
class Scripted implements Disposable {
  readonly heard: ToIntroducer[] = [];
  readonly #server;
  #news = Promise.withResolvers<void>();

  constructor(answer: (message: ToIntroducer, say: (...messages: ToParticipant[]) => void) => void) {
    this.#server = Bun.listen<LineDecoder>({
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        open: (socket) => void (socket.data = new LineDecoder()),
        data: (socket, chunk) => {
          for (const line of socket.data.push(chunk)) {
            const message = parseToIntroducer(line);
            this.heard.push(message);
            answer(message, (...messages) => void socket.write(messages.map(encode).join("")));
          }
          this.#news.resolve();
          this.#news = Promise.withResolvers();
        },
      },
    });
  }

  get port(): number {
    return this.#server.port;
  }

  /** Resolves once a message of that type has come that fits. */
  async hears<T extends ToIntroducer["type"]>(
    type: T,
    fits: (message: Extract<ToIntroducer, { type: T }>) => boolean = () => true,
  ): Promise<Extract<ToIntroducer, { type: T }>> {
    type Wanted = Extract<ToIntroducer, { type: T }>;
    for (;;) {
      const found = this.heard.find((one): one is Wanted => one.type === type && fits(one as Wanted));
      if (found) return found;
      await this.#news.promise;
    }
  }

  [Symbol.dispose](): void {
    this.#server.stop(true);
  }
}

const registered: ToParticipant = {
  type: "registered",
  id: 1,
  name: "alice",
  room: "lobby",
  public: at("203.0.113.1:4000"),
  private: [],
  probePorts: [],
  alternates: [],
};
const bob: Peer = {
  id: 2,
  name: "bob",
  instance: "ab".repeat(8),
  fingerprint: "cd".repeat(32),
  private: [],
  public: at("127.0.0.1:9"), // never dialled by one who is not on loopback
  mapping: "unknown",
  since: 0,
};
const welcome = (...peers: Peer[]): ToParticipant[] => [registered, { type: "peers", peers, more: false }];
const round = (token: string, role: "controlling" | "controlled"): ToParticipant => ({
  type: "punch",
  peer: bob,
  role,
  token,
  startInMs: 0,
  way: "direct",
  round: 1,
  last: true,
  deadlineMs: 300,
});
const [first, second] = ["11".repeat(16), "22".repeat(16)] as const;

test("a late `failed` of an earlier punch does not end the next one", async () => {
  let asks = 0;
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(bob));
    if (message.type !== "connect") return;
    if (++asks === 1) say(round(first, "controlling"));
    else say({ type: "failed", peer: 2, token: first, reason: "peer-left" }, round(second, "controlling"));
  });
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  alice.type("connect bob");
  await house.hears("failed", ({ token }) => token === first);
  expect((await alice.next("failed")).reason).toBe("no-candidate-answered");
  alice.type("connect bob");
  await house.hears("failed", ({ token }) => token === second); // it was punched to its end
  expect((await alice.next("failed")).reason).toBe("no-candidate-answered");
});

test("a punch is cancelled by `disconnect`, before and after the introducer's word", async () => {
  let late: (() => void) | undefined;
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(bob));
    if (message.type === "connect") late = () => say(round(first, "controlling"));
  });
  await using impatient = participant(house.port);
  await impatient.participant.join();
  const asked = impatient.participant.connect("bob");
  asked.catch(() => {}); // looked at below
  await house.hears("connect");
  await impatient.participant.disconnect("bob");
  await expect(asked).rejects.toThrow("you cancelled it");
  late?.();
  // The word that comes too late is declined, so that the peer is told.
  expect(await house.hears("failed", ({ token }) => token === first)).toMatchObject({
    reason: "refused-by-peer",
  });
  expect(impatient.events.filter(({ event }) => event === "punching")).toEqual([]);
  expect(impatient.events.filter(({ event }) => event === "failed")).toMatchObject([{ reason: "cancelled" }]);
});

test("a failure is told once, with its reason and what to do", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(bob));
    if (message.type === "connect") say(round(first, "controlling"));
  });
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  alice.type("connect bob");
  await alice.next("failed");
  alice.endInput();
  expect(await alice.exited()).toBe(1);
  expect(alice.count("error")).toBe(0);
  const told = (await alice.stderr).split("\n").filter((line) => line.includes("failed to link"));
  expect(told).toHaveLength(1);
  expect(await alice.stderr).toContain("`nat` tells what kind of NAT each of you is behind");
});

test("nothing of a single candidate is told to the introducer", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(bob));
    if (message.type === "connect") say(round(first, "controlling"));
  });
  await using alice = new Driven(house.port, "alice");
  await alice.registered;
  alice.type("connect bob");
  const report = await house.hears("failed");
  expect(Object.keys(report).sort()).toEqual(["peer", "reason", "token", "type"]);
});

/** The class itself, for what the program's prompt would never do. */
function participant(port: number) {
  const events: ParticipantEvent[] = [];
  const options = { host: "127.0.0.1", port, name: "alice", room: openRoom("lobby"), identity };
  const one = new Participant({ ...options, onEvent: (event) => void events.push(event) });
  return { participant: one, events, [Symbol.asyncDispose]: () => one.quit() };
}

test("join, leave and join again at once: each settles, and the last one counts", async () => {
  let visits = 0;
  using house = new Scripted((message, say) => {
    if (message.type === "register" && ++visits > 1) say(...welcome());
  });
  await using alice = participant(house.port);
  const early = alice.participant.join();
  alice.participant.leave();
  await expect(early).rejects.toThrow("we left");
  const unanswered = alice.participant.join();
  await house.hears("register");
  alice.participant.leave();
  await expect(unanswered).rejects.toThrow("we left");
  await alice.participant.join();
  expect(alice.participant.state === "registered").toBe(true);
  expect(alice.events.filter(({ event }) => event === "registered")).toHaveLength(1);
});

test("`leave` and `quit` are not undone by a join that was under way", async () => {
  let answerLate: (() => void) | undefined;
  using house = new Scripted((message, say) => {
    if (message.type === "register") answerLate = () => say(...welcome(bob));
  });
  await using alice = participant(house.port);
  const joining = alice.participant.join();
  joining.catch(() => {}); // looked at below
  await house.hears("register");
  await alice.participant.quit();
  answerLate?.();
  await expect(joining).rejects.toThrow("this participant has quit");
  await expect(alice.participant.join()).rejects.toThrow("has quit");
  expect({ rows: alice.participant.peers.rows, events: alice.events }).toEqual({ rows: [], events: [] });
});

test("an introduction during `quit` is declined", async () => {
  let order: (() => void) | undefined;
  using house = new Scripted((message, say) => {
    if (message.type === "register") {
      say(...welcome(bob));
      order = () => say(round(first, "controlled"));
    }
  });
  await using alice = participant(house.port);
  await alice.participant.join();
  order?.();
  const quitting = alice.participant.quit();
  await quitting;
  expect(alice.events.filter(({ event }) => event === "linked" || event === "punching")).toEqual([]);
});

test("a `join` that fails during an outage goes on trying, until `leave`", async () => {
  await using alice = await (async () => {
    await using house = startIntroducer();
    const one = participant(house.port);
    await one.participant.join();
    return one;
  })();
  while (!alice.events.some(({ event }) => event === "introducer")) await Bun.sleep(1);
  await expect(alice.participant.join()).rejects.toThrow("cannot reach the introducer");
  const isTrying = (event: ParticipantEvent) => event.event === "introducer" && event.state === "unreachable";
  while (!alice.events.some(isTrying)) await Bun.sleep(1);
  alice.participant.leave();
  expect(alice.participant.state === "registered").toBe(false);
});

test("`--connect` of a name that two bear is an error, not an endless wait", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(bob, { ...bob, id: 3, instance: "ef".repeat(8) }));
  });
  await using alice = new Driven(house.port, "alice", "--connect", "bob");
  alice.endInput();
  expect((await alice.next("error")).message).toBe("bob is ambiguous: use one of the ids 2, 3");
  expect(await alice.exited()).toBe(1);
});

test("what takes more than a second is announced", async () => {
  let answer: (() => void) | undefined;
  using house = new Scripted((message, say) => {
    if (message.type === "register") answer = () => say(...welcome());
  });
  await using alice = new Driven(house.port, "alice", "--connect", "bob");
  await house.hears("register");
  expect(await alice.next("waiting")).toMatchObject({
    for: "introducer",
    text: `connecting to 127.0.0.1:${house.port}`,
  });
  answer!();
  expect(await alice.next("waiting")).toMatchObject({ for: "peer", text: "waiting for bob to join" });
  alice.signal("SIGTERM");
  expect(await alice.exited()).toBe(143); // the link that was asked for has not come
});

test("a registration that does not last does not shorten the pause before the next one", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(), { type: "bye", reason: "go away" });
  });
  await using alice = participant(house.port);
  await alice.participant.join();
  const pauses = () =>
    alice.events.flatMap((event) => (event.event === "introducer" ? [event.retryInMs ?? 0] : []));
  while (pauses().length < 3) await Bun.sleep(1);
  alice.participant.leave();
  // Doubled each time and jittered by half: the third is longer than the first can be.
  expect(pauses()[2]!).toBeGreaterThan(500);
});

test("no pause before coming back is longer than the longest, and a room does not return as one", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(), { type: "bye", reason: "go away" });
  });
  const pauses = await Promise.all(
    Array.from({ length: 20 }, async () => {
      await using alice = participant(house.port);
      await alice.participant.join();
      for (;;) {
        for (const event of alice.events) if (event.event === "introducer") return event.retryInMs ?? 0;
        await Bun.sleep(1);
      }
    }),
  );
  expect(Math.max(...pauses)).toBeLessThanOrEqual(500);
  expect(Math.min(...pauses)).toBeGreaterThanOrEqual(250);
  expect(new Set(pauses).size).toBeGreaterThan(1);
});

test("an introducer that would have us called by somebody else's name is not obeyed", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register")
      say({ type: "refused", code: "name-taken", message: "taken", request: "register", name: "bob-2" });
  });
  await using alice = new Driven(house.port, "alice");
  expect((await alice.next("error")).message).toContain("the introducer refused `register`: taken");
  expect(await alice.exited()).toBe(1);
  expect(house.heard.map(({ type }) => type)).toEqual(["register"]);
});

test("an introducer that finds every name taken is left after some of them", async () => {
  let number = 1;
  using house = new Scripted((message, say) => {
    if (message.type !== "register") return;
    const name = `alice-${++number}`;
    say({ type: "refused", code: "name-taken", message: "taken", request: "register", name });
  });
  await using alice = new Driven(house.port, "alice");
  expect(await alice.exited()).toBe(1);
  expect(house.heard.length).toBe(8);
});

test("an introducer that says when to come back is come back to then", async () => {
  using house = new Scripted((message, say) => {
    if (message.type !== "register") return;
    say(...welcome());
    say({ type: "bye", reason: "restarting", retryInMs: 1234 });
  });
  await using alice = new Driven(house.port, "alice");
  expect(await alice.next("introducer")).toMatchObject({ reason: "restarting", retryInMs: 1234 });
  await alice.next("registered");
  await alice.next("registered");
});

// --- a private room, and an introducer that would like to be in it ------------------------------------------

const words = "k7xq-m2vp-9dfa-w4tz";
const [room, elsewhere] = await Promise.all([secretRoom(words), secretRoom("another")]);
const honest: Peer = { ...bob, proof: prove(room.key!, bob) };
const lies: Record<string, Peer> = {
  "no proof": bob,
  "a proof of another room": { ...bob, proof: prove(elsewhere.key!, bob) },
  "its own fingerprint under a member's name": { ...honest, fingerprint: "ee".repeat(32) },
  "a member's proof under another name": { ...honest, name: "carol" },
  "a member's proof for another program": { ...honest, instance: "cd".repeat(8) },
  "a made-up proof": { ...bob, proof: "0".repeat(64) },
};

test.each(Object.entries(lies))("%s: shown as untrusted, never dialled, never let in", async (_, liar) => {
  const order = (role: "controlling" | "controlled"): ToParticipant => ({
    ...(round(first, role) as ToParticipant & { type: "punch" }),
    peer: { ...liar, public: at("203.0.113.9:4000") },
  });
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(liar), order("controlled"));
    if (message.type === "connect") say(order("controlling"));
  });
  await using alice = new Driven(house.port, "alice", "--room", words, "--verbose");
  await alice.registered;
  expect(await house.hears("failed", ({ token }) => token === first)).toMatchObject({
    reason: "refused-by-peer",
  });
  alice.type(`connect ${liar.id}`, "list");
  const { message } = await alice.next("error");
  expect(message).toStartWith(`${liar.name} is not trusted: `);
  expect(message).toContain("proof that it knows the room's words");
  const { peers } = await alice.next("peers", (event) => event.peers.length > 0);
  expect(peers.map(({ state }) => state)).toEqual(["untrusted"]);
  expect(alice.count("attempt")).toBe(0);
  expect(house.heard.some(({ type }) => type === "connect")).toBe(false);
});

test("a wish for a name is none for whoever pretends to have it", async () => {
  const liar = lies["its own fingerprint under a member's name"]!;
  const order = { ...(round(first, "controlling") as ToParticipant & { type: "punch" }), peer: liar };
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome(liar), order);
  });
  await using alice = new Driven(
    house.port,
    "alice",
    "--room",
    words,
    "--verbose",
    "--connect",
    liar.name,
    "--stay",
  );
  expect((await house.hears("register")).wants).toEqual([liar.name]);
  await house.hears("failed", ({ token, reason }) => token === first && reason === "refused-by-peer");
  expect(alice.count("attempt")).toBe(0);
});

test("a member with the right proof is known beside one that lies about the same name", async () => {
  using house = new Scripted((message, say) => {
    const liar = lies["its own fingerprint under a member's name"]!;
    if (message.type === "register") say(...welcome(honest, { ...liar, id: 3 }));
  });
  await using alice = new Driven(house.port, "alice", "--room", words);
  await alice.registered;
  alice.type("list");
  const { peers } = await alice.next("peers", (event) => event.peers.length > 0);
  expect(peers.map(({ id, state }) => [id, state])).toEqual([
    [2, "known"],
    [3, "untrusted"],
  ]);
});

test("the introducer never sees the words, and ours is the proof that others can check", async () => {
  using house = new Scripted((message, say) => {
    if (message.type === "register") say(...welcome());
  });
  await using alice = new Driven(house.port, "alice", "--room", words);
  const { room: shown } = await alice.registered;
  expect(shown).toBe("private");
  const { proof, fingerprint, name, instance, room: id } = await house.hears("register");
  expect(id).toBe(room.id);
  expect(JSON.stringify(house.heard)).not.toContain(words);
  const asSeen = { fingerprint, name, instance: publicInstance(instance), proof };
  expect(distrust(room, asSeen)).toBeUndefined();
  expect(distrust(elsewhere, asSeen)).toContain("wrong");
});
