/** Who is kept linked, and why; with real programs in test/keep.test.ts. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Keep, type Links } from "../../native/participant/keep.ts";
import type { Link } from "../../native/session/link.ts";
import { ToldError, UserError } from "../../protocol.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** A room in which bob has the id 2 and is there; whoever else is called waits for ever. */
class Room implements Links {
  readonly asked: string[] = [];
  link: Link | undefined;
  /** What a connect comes to. */
  outcome = Promise.withResolvers<Link>();

  nameOf(word: string): string {
    return word === "2" ? "bob" : word;
  }

  waitFor(name: string, signal: AbortSignal): Promise<void> {
    return name === "bob" ? Promise.resolve() : this.#never(signal);
  }

  linkWith(): Link | undefined {
    return this.link;
  }

  connect(name: string): Promise<Link> {
    this.asked.push(name);
    return this.outcome.promise;
  }

  whenLinked(_: string, signal: AbortSignal): Promise<Link> {
    return this.link ? Promise.resolve(this.link) : this.#never(signal);
  }

  async whenOver(_: string, link: Link): Promise<void> {
    await link.ended;
  }

  #never(signal: AbortSignal): Promise<never> {
    return new Promise((_, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason as Error));
    });
  }
}

/** A link that a test can end. */
function link(): { link: Link; end: () => void } {
  const ended = Promise.withResolvers<"peer-disconnected">();
  return { link: { ended: ended.promise } as unknown as Link, end: () => ended.resolve("peer-disconnected") };
}

/** All that waits has had its turn. */
const settled = () => new Promise<void>((resolve) => void setImmediate(resolve));

test("many want the link of one peer, by its name or its id: it is asked for once, and all have it", async () => {
  const room = new Room();
  const keep = new Keep(room);
  const all = ["bob", "2", "bob"].map((word, n) => keep.keep(word, `want ${n}`));
  await settled();
  expect(room.asked).toEqual(["bob"]);
  room.outcome.resolve(link().link);
  expect(await Promise.all(all)).toEqual([undefined, undefined, undefined]);
  keep.close();
});

test("the first failure is told, and another try follows; it is over when the last want is", async () => {
  const room = new Room();
  const keep = new Keep(room);
  const first = keep.keep("bob", "one");
  keep.keep("bob", "other").catch(() => {});
  room.outcome.reject(new UserError("no link with bob"));
  await expect(first).rejects.toThrow("no link with bob");
  await settled();
  room.outcome = Promise.withResolvers();
  await until("it is tried again", () => room.asked.length === 2);
  keep.release("bob", "one");
  expect(keep.giveUp("2")).toBe(true); // the other one's
  expect(keep.giveUp("bob")).toBe(false);
});

test("who asks for a link has it while it is kept, and is refused when it is not", async () => {
  const room = new Room();
  const keep = new Keep(room);
  const had = link();
  room.link = had.link;
  await keep.keep("bob", "a forward");
  expect(await keep.linked("2")).toBe(had.link);
  keep.release("bob", "a forward");
  room.link = undefined;
  had.end();
  await expect(keep.linked("bob")).rejects.toThrow("not linked with bob; `connect bob` first");
});

test("who waits for a link that is given up is told", async () => {
  const room = new Room();
  const keep = new Keep(room);
  const first = keep.keep("carol", "a forward");
  const waiting = keep.linked("carol");
  await settled();
  keep.close();
  await expect(first).rejects.toThrow("a link with carol is not sought any more");
  await expect(waiting).rejects.toThrow("a link with carol is not sought any more");
});

test("an introducer that is lost in the first attempt is no failure yet: there is one more", async () => {
  const room = new Room();
  const keep = new Keep(room);
  let outcome = "none yet";
  const told = (how: string) => () => void (outcome = how);
  const kept = keep.keep("bob", "a pipe").then(told("linked"), told("failed"));
  for (const attempt of [1, 2]) {
    await until(`attempt ${attempt}`, () => room.asked.length === attempt);
    expect(outcome).toBe("none yet");
    const { outcome: asked } = room;
    room.outcome = Promise.withResolvers();
    asked.reject(new ToldError("no link with bob", { code: "introducer-lost" }));
    await settled();
  }
  await kept;
  expect(outcome).toBe("failed");
  keep.close();
});
