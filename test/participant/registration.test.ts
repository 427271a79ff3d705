/** The registration alone, against an introducer that says what a test has it say: a real connection, and no peer. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { Membership } from "../../native/participant/membership.ts";
import { Backoff, Registration, type RegistrationOwner } from "../../native/participant/registration.ts";
import {
  type Line,
  type LineSocket,
  LyingIntroducer,
  peerLine,
  peersLine,
  registered,
} from "../hostile/wire.ts";
import { aliceIdentity } from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

type Script = (line: Line, visitor: LineSocket) => void;
const welcome: Script = (line, visitor) => {
  if (line.type === "register") visitor.say(registered(line), peersLine());
};

/** A registration that notes what it tells its owner. */
async function scripted(script: Script) {
  const house = await LyingIntroducer.listen(script);
  const events: ParticipantEvent[] = [];
  const told: string[] = [];
  let changed = Promise.withResolvers<void>();
  const note = (text: string) => {
    told.push(text);
    changed.resolve();
    changed = Promise.withResolvers();
  };
  const owner: RegistrationOwner = {
    emit: (event) => void events.push(event),
    links: () => [],
    wants: () => [],
    listed: (peers, hasMoved) => note(`listed ${peers.length}${hasMoved ? ", moved" : ""}`),
    said: ({ type }) => note(`said ${type}`),
    refused: ({ request }) => note(`refused ${request}`),
    situationChanged: () => {},
    registered: () => note("registered"),
    lost: (reason) => note(`lost: ${reason}`),
  };
  const membership = new Membership(aliceIdentity, "alice", "lobby");
  const options = { host: "127.0.0.1", port: house.port, portMapping: false, startCommand: "start" };
  const registration = new Registration(options, membership, owner);
  const tells = async (text: string) => {
    while (!told.includes(text)) await changed.promise;
  };
  const dispose = async () => {
    await registration.quit();
    house[Symbol.dispose]();
  };
  const all = { house, events, told, tells, owner, membership, registration };
  return Object.assign(all, { [Symbol.asyncDispose]: dispose });
}

const problem = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => "none",
    (error: Error) => error.message,
  );

describe("a registration", () => {
  test("is there with the last part of the list, and not before", async () => {
    await using all = await scripted((line, visitor) => {
      if (line.type !== "register") return;
      visitor.say(
        registered(line),
        { type: "peers", peers: [peerLine()], more: true },
        { type: "notice", text: "wait" },
      );
    });
    const { registration, house, told } = all;
    const joined = registration.join();
    expect(registration.is).toBe("joining");
    expect(registration.situation).toBeUndefined();
    await all.tells("said notice");
    expect(registration.is).toBe("joining");
    expect(registration.situation?.context.public as string).toBe("203.0.113.1:4000");
    expect(() => registration.settled).toThrow("not registered");
    expect(await problem(registration.join())).toBe("already on the way to the introducer");
    house.visitors[0]!.say(peersLine(peerLine({ id: 3 })));
    await joined;
    expect(registration.is).toBe("registered");
    expect(await problem(registration.join())).toBe("already registered with the introducer");
    expect(told).toEqual(["said notice", "listed 2", "registered"]);
  });

  test("that is refused before there has been one leaves us away; `leave` ends a way that has begun", async () => {
    await using all = await scripted((line, visitor) => {
      if (line.type === "register" && all.house.visitors.length === 1)
        visitor.say({ type: "refused", code: "bad-field", message: "full" });
    });
    const { registration } = all;
    expect(await problem(registration.join())).toBe("the introducer refused: full");
    expect(registration.is).toBe("away");
    const joining = problem(registration.join());
    await all.house.hears("register");
    await all.house.hears("register");
    registration.leave("we left");
    expect(await joining).toBe("we left");
    expect(registration.is).toBe("away");
    await all.house.visitors[1]!.lines.over(); // it is closed
  });

  test("that is lost is sought again by itself; what an earlier one still says is nothing", async () => {
    await using all = await scripted(welcome);
    const { registration, house, events, told } = all;
    await registration.join();
    const before = registration.situation;
    house.visitors[0]!.say({ type: "bye", reason: "maintenance", retryInMs: 700 });
    await all.tells("lost: maintenance");
    expect(registration.is).toBe("lost");
    expect(registration.situation).toBeUndefined();
    const lost = events.find((one) => one.event === "introducer");
    expect(lost).toMatchObject({ state: "lost", reason: "maintenance", retryInMs: 700 });
    house.visitors[0]!.say({ type: "notice", text: "from the grave" });
    await registration.join(); // no need to wait
    expect(registration.situation).not.toBe(before!);
    expect(told).not.toContain("said notice");
  });

  test("at another public address than the last one says so", async () => {
    const addresses = ["203.0.113.1:4000", "203.0.113.1:5000", "203.0.113.2:4000"];
    await using all = await scripted((line, visitor) => {
      if (line.type === "register") visitor.say(registered(line, { public: addresses.shift() }), peersLine());
    });
    for (let n = 0; n < 3; n++) {
      await all.registration.join();
      all.registration.leave("on");
    }
    expect(all.told.filter((one) => one.startsWith("listed"))).toEqual([
      "listed 0",
      "listed 0",
      "listed 0, moved",
    ]);
  });

  test("whose list was too much for its owner is none", async () => {
    await using all = await scripted(welcome);
    all.owner.listed = () => all.registration.close("it names more peers than a room can have");
    expect(await problem(all.registration.join())).toContain("it names more peers than a room can have");
    expect(all.registration.is).toBe("away");
    expect(all.told).not.toContain("registered");
  });

  test("hands on refusals of what others have asked, and a second list ends it", async () => {
    await using all = await scripted(welcome);
    await all.registration.join();
    all.house.visitors[0]!.say({
      type: "refused",
      request: "connect",
      code: "limit",
      message: "no",
      peer: 7,
    });
    await all.tells("refused connect");
    expect(all.registration.is).toBe("registered");
    all.house.visitors[0]!.say(peersLine());
    await all.tells("lost: it listed the room twice");
    expect(all.registration.is).toBe("lost");
  });
});

describe("a name that somebody else has", () => {
  const taken = (name: string) => ({
    type: "refused",
    request: "register",
    code: "name-taken",
    message: "it is taken",
    name,
  });

  test("is ours with a number, also the next time", async () => {
    const names: string[] = [];
    await using all = await scripted((line, visitor) => {
      if (line.type !== "register") return;
      names.push(String(line.name));
      if (line.name === "alice") visitor.say(taken("alice-2"));
      else welcome(line, visitor);
    });
    await all.registration.join();
    all.registration.leave("on");
    await all.registration.join();
    expect(names).toEqual(["alice", "alice-2", "alice-2"]);
    expect(all.membership.name).toBe("alice-2");
  });

  test.each([
    ["of another kind is not taken", () => "mallory", 1],
    ["is not looked for without end", (n: number) => `alice-${n + 1}`, 8],
  ])("and that in its place, %s", async (_, next, tries) => {
    let asked = 0;
    await using all = await scripted((line, visitor) => {
      if (line.type === "register") visitor.say(taken(next(++asked)));
    });
    expect(await problem(all.registration.join())).toBe("the introducer refused `register`: it is taken");
    expect(asked).toBe(tries);
  });
});

describe("the pause before coming back", () => {
  test("doubles to 8 s, half of it jitter, and begins anew with what has lasted", () => {
    const backoff = new Backoff();
    for (const most of [500, 1_000, 2_000, 4_000, 8_000, 8_000]) {
      const pause = backoff.next();
      expect(pause).toBeGreaterThanOrEqual(most / 2);
      expect(pause).toBeLessThanOrEqual(most);
    }
    backoff.reset();
    expect(backoff.next()).toBeLessThanOrEqual(500);
  });

  test("is what the introducer asks for, once, but never shorter than ours", () => {
    const backoff = new Backoff();
    backoff.askedMs = 20_000;
    expect(backoff.next()).toBe(20_000);
    expect(backoff.next()).toBeLessThanOrEqual(1_000);
    backoff.askedMs = 1;
    expect(backoff.next()).toBeGreaterThanOrEqual(1_000);
  });
});
