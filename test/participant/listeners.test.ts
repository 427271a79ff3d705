/** Who hears of events, and for how long; what a listener throws; and one who reads them slowly. */
import { expect, setDefaultTimeout, test } from "bun:test";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { Listeners } from "../../native/participant/listeners.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const said = (text: string): ParticipantEvent => ({ event: "said", peer: 2, name: "bob", text });
const textOf = (event: object): unknown => ("text" in event ? event.text : event);

/** All that waits has had its turn. */
const settled = () => new Promise<void>((resolve) => void setImmediate(resolve));

test("a listener hears what it has asked for, from then on, until it is taken away or its signal aborts", () => {
  const [all, heard]: [unknown[], string[]] = [[], []];
  const listeners = new Listeners((event) => all.push(event.event));
  listeners.emit(said("before"));
  const listen = (event: ParticipantEvent) => heard.push(String(textOf(event)));
  const over = new AbortController();
  const first = listeners.on("said", listen);
  listeners.on("said", listen, over.signal);
  listeners.on("said", listen, AbortSignal.abort());
  listeners.emit(said("by both"));
  listeners.emit({ event: "alone" });
  first[Symbol.dispose]();
  first[Symbol.dispose]();
  listeners.emit(said("by one"));
  over.abort();
  listeners.emit(said("by none"));
  expect(heard).toEqual(["by both", "by both", "by one"]);
  expect(all).toEqual(["said", "said", "alone", "said", "said"]);
});

test("what a listener throws, or rejects with later, is told as an error, and stops nobody", async () => {
  const [told, heard]: [string[], string[]] = [[], []];
  const listeners = new Listeners((event) => {
    if (event.event === "error") told.push(event.message);
    if (event.event === "error") throw new Error("it takes no error");
  });
  listeners.on("said", () => {
    throw new Error("a bug");
  });
  listeners.on("said", async () => {
    await settled();
    throw new Error("a later bug");
  });
  listeners.on("said", (event) => heard.push(String(textOf(event))));
  listeners.emit(said("hello"));
  expect([told, heard]).toEqual([["what listens to `said` threw: a bug"], ["hello"]]);
  await settled();
  await settled();
  expect(told).toEqual(["what listens to `said` threw: a bug", "what listens to `said` threw: a later bug"]);
});

test("events come one by one, from when they were asked for until the end", async () => {
  const listeners = new Listeners(undefined);
  listeners.emit(said("before"));
  const events = listeners.events();
  listeners.emit(said("one"));
  const all = Array.fromAsync(events, textOf);
  await settled();
  listeners.emit(said("two"));
  listeners.close();
  expect(await all).toEqual(["one", "two"]);
  expect(await Array.fromAsync(listeners.events())).toEqual([]);
});

test("who reads slowly misses the oldest, is told how many, and holds no more than a thousand", async () => {
  const listeners = new Listeners(undefined);
  const events = listeners.events();
  for (let count = 0; count < 50_000; count++) listeners.emit(said(String(count)));
  listeners.close();
  const all = await Array.fromAsync(events, textOf);
  expect(all.length).toBe(1_001);
  expect(all.slice(0, 2)).toEqual([{ event: "missed", events: 49_000 }, "49000"]);
  expect(all.at(-1)).toBe("49999");
});

test("who aborts it is thrown the reason, and nothing waits for him any more", async () => {
  const listeners = new Listeners(undefined);
  const over = new AbortController();
  const next = listeners.events(over.signal).next();
  await settled();
  over.abort(new Error("enough"));
  await expect(next).rejects.toThrow("enough");
  const early = listeners.events(AbortSignal.abort(new Error("too late")));
  await expect(early.next()).rejects.toThrow("too late");
  const left = listeners.events();
  listeners.emit(said("one"));
  for await (const event of left) if (textOf(event) === "one") break;
  expect((await left.next()).done).toBe(true);
});
