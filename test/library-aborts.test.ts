/** A program that gives up what it has begun: at each step, twice, or while something else goes on. Nothing is left of it. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { Client, registration } from "./client-fixture.ts";
import { startIntroducer } from "./driven-fixture.ts";
import { LyingIntroducer } from "./hostile/wire.ts";
import { noSocketLeft, openSockets, unanswering, until } from "./native-fixture.ts";
import { linuxTest } from "./needing-fixture.ts";
import { testMs } from "./patience-fixture.ts";
import { splitEndpoint } from "../protocol.ts";
import { makeIdentity } from "../native/secure/identity.ts";
import type { ParticipantEvent } from "../native/participant/events.ts";
import { Participant } from "../participant.ts";

setDefaultTimeout(testMs);

const reason = new Error("the user has changed his mind");

/** A signal that knows who listens to it. */
class Abort {
  readonly #controller = new AbortController();
  readonly signal = this.#controller.signal;
  readonly #listening = new Set<unknown>();

  constructor() {
    const { signal } = this;
    const [add, remove] = [signal.addEventListener, signal.removeEventListener];
    signal.addEventListener = (...given: unknown[]) => {
      this.#listening.add(given[1]);
      Reflect.apply(add, signal, given);
    };
    signal.removeEventListener = (...given: unknown[]) => {
      this.#listening.delete(given[1]);
      Reflect.apply(remove, signal, given);
    };
  }

  get listeners(): number {
    return this.#listening.size;
  }

  now(): void {
    this.#controller.abort(reason);
  }
}

function participant(port: number, name: string, room = "lobby") {
  const events: ParticipantEvent[] = [];
  const onEvent = (event: ParticipantEvent) => void events.push(event);
  const one = new Participant({ host: "127.0.0.1", port, name, room, identity: makeIdentity(), onEvent });
  return Object.assign(one, { heard: events });
}

const outcome = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "done",
    (error: unknown) => error,
  );

test("a signal that has aborted begins nothing", async () => {
  await using _ = noSocketLeft();
  await using house = startIntroducer();
  await using alice = participant(house.port, "alice");
  const before = openSockets().length;
  const abort = new Abort();
  abort.now();
  const { signal } = abort;
  const all = [alice.join({ signal }), alice.connect("bob", { signal, wait: true })];
  expect(await Promise.all(all.map(outcome))).toEqual([reason, reason]);
  expect([openSockets().length, abort.listeners, alice.state, alice.heard]).toEqual([before, 0, "away", []]);
});

/** How many SYNs to that port of 127.0.0.1 wait for their answer: /proc/net/tcp, state 02. */
function unansweredTo(port: number): number {
  const syn = ` 0100007F:${port.toString(16).toUpperCase().padStart(4, "0")} 02 `;
  return readFileSync("/proc/net/tcp", "utf8").split(syn).length - 1;
}

linuxTest("before its SYN is answered, `join` is given up, with its socket", async () => {
  await using _ = noSocketLeft();
  using silent = unanswering();
  const { port } = splitEndpoint(silent.endpoint);
  await using alice = participant(port, "alice");
  const abort = new Abort();
  const joining = outcome(alice.join({ signal: abort.signal }));
  await until("its SYN has left", () => unansweredTo(port) === 1);
  abort.now();
  expect(await joining).toBe(reason);
  // It is closed soon, and not after 8 s as by itself: within so many turns, however long each takes.
  for (let turn = 0; turn < 100 && unansweredTo(port) > 0; turn++) await Bun.sleep(1);
  expect(unansweredTo(port)).toBe(0);
  expect([abort.listeners, alice.state]).toEqual([0, "away"]);
});

/** An introducer that takes `register`, and says nothing. */
async function silentIntroducer() {
  const registered = Promise.withResolvers<void>();
  const house = await LyingIntroducer.listen((line) => line.type === "register" && registered.resolve());
  return Object.assign(house, { registered: registered.promise });
}

test("while it registers, `join` is given up, and may be tried again", async () => {
  await using _ = noSocketLeft();
  using silent = await silentIntroducer();
  await using alice = participant(silent.port, "alice");
  const abort = new Abort();
  const joining = outcome(alice.join({ signal: abort.signal, wants: ["bob"] }));
  await silent.registered;
  abort.now();
  expect(await joining).toBe(reason);
  expect([abort.listeners, alice.state]).toEqual([0, "away"]);
  const again = outcome(alice.join());
  await until("it has come again", () => silent.heard.all.length === 2);
  expect(silent.heard.all.map(({ wants }) => wants)).toEqual([["bob"], undefined]);
  await alice.leave();
  expect(String(await again)).toContain("we left");
});

test("who quits while it joins, and again, ends once; what waits is told", async () => {
  await using _ = noSocketLeft();
  using silent = await silentIntroducer();
  const alice = participant(silent.port, "alice");
  const joining = outcome(alice.join());
  await silent.registered;
  const events = Array.fromAsync(alice.events(), ({ event }) => event);
  await Promise.all([alice.quit(), alice[Symbol.asyncDispose]()]);
  await alice.quit();
  expect(await joining).toMatchObject({ code: "has-quit" });
  expect([alice.state, await events]).toEqual(["quit", []]);
});

test("in a punch, `connect` is given up once nobody waits for it, with the sockets of the punch", async () => {
  await using _ = noSocketLeft();
  await using house = startIntroducer();
  using bob = new Client(house.port);
  bob.send(registration("bob"));
  await bob.next("registered");
  bob.send({ type: "mapping", mapping: "endpoint-independent" });
  await using alice = participant(house.port, "alice");
  await alice.join();
  await until("she has measured", () => alice.heard.some(({ event }) => event === "mapping"));
  const before = openSockets().length;
  const [first, second] = [new Abort(), new Abort()];
  const connecting = [first, second].map(({ signal }) =>
    outcome(alice.connect("bob", { signal, wait: true })),
  );
  await bob.next("punch");
  await until("it punches", () => openSockets().length > before);
  first.now();
  expect(await connecting[0]!).toBe(reason);
  expect(alice.heard.some(({ event }) => event === "failed")).toBe(false);
  second.now();
  expect(await connecting[1]!).toBe(reason);
  expect(alice.heard.findLast(({ event }) => event === "failed")).toMatchObject({ reason: "cancelled" });
  await until("its sockets are closed", () => openSockets().length <= before);
  expect([first.listeners, second.listeners]).toEqual([0, 0]);
});

test("once it is linked, a signal ends nothing; what waits for an answer or a peer is given up", async () => {
  await using _ = noSocketLeft();
  await using house = startIntroducer();
  await using alice = participant(house.port, "alice", "of those who abort");
  await using bob = participant(house.port, "bob", "of those who abort");
  await Promise.all([alice.join(), bob.join()]);
  const abort = new Abort();
  const { signal } = abort;
  const link = await alice.connect("bob", { signal, wait: true });
  using keeper = alice.keep("bob", { signal });
  await keeper.first;
  const waiting = [
    alice.connect("carol", { signal, wait: true }),
    alice.peers.waitFor("carol", { signal }),
    alice.peers.whenLinked("carol", { signal }),
    alice.pipe("carol", { signal }),
    Array.fromAsync(alice.events({ signal })),
  ].map(outcome);
  alice.on("said", () => {}, { signal });
  await bob.peers.whenLinked("alice");
  abort.now();
  expect(await Promise.all(waiting)).toEqual(waiting.map(() => reason));
  expect([link.isOpen, abort.listeners]).toEqual([true, 0]);
  const late = [alice.say("bob", "hello", { signal }), alice.ping("bob", { signal }), alice.nat({ signal })];
  expect(await Promise.all(late.map(outcome))).toEqual([reason, reason, reason]);
  expect(abort.listeners).toBe(0);
  await alice.say("bob", "this alone was said");
  expect(bob.heard.flatMap((event) => (event.event === "said" ? [event.text] : []))).toEqual([
    "this alone was said",
  ]);
});
