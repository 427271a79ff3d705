/**
 * Who hides where it is (--only-relay): what the others of its room, and a lying introducer, must not learn or have it do.
 * A raw member records every byte that it is told. 127.0.0.9 is where another raw one hides.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { Driven, outcome, startIntroducer } from "../driven-fixture.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import {
  Bait,
  dial,
  type LineSocket,
  LyingIntroducer,
  Member,
  peerLine,
  peersLine,
  punchLine,
  registered,
} from "./wire.ts";

const test = testAtOnce(3);
setDefaultTimeout(testMs);
const words = "the words of who hides";
const relay = { rate: 1_000_000, total: 2_000_000 };
const told = ({ lines }: Member) => JSON.stringify(lines.all);
/** Where it is. A port is a whole number, for ids and fingerprints hold any four digits now and then. */
const place = /127\.0\.0\.9|\b7f00:0*9\b|(?<![\w.])(?:7777|400[012])(?![\w.])/;

test("no room member learns the address, whatever the hiding one says itself, and only a relay is offered", async () => {
  await using house = startIntroducer();
  using eve = await Member.join(house.port, { name: "eve", room: words });
  const lie = { private: undefined, forwarded: 7777, mapping: "endpoint-independent" };
  using hiding = await Member.join(house.port, { name: "hiding", room: words, from: "127.0.0.9", lie });
  const shows = [
    { type: "update", private: ["127.0.0.9:4000"] },
    { type: "update", private: ["127.0.0.1:4000"] },
    { type: "mapped", endpoint: "127.0.0.9:4001" },
    { type: "mapping", mapping: "sequential", prediction: { endpoint: "127.0.0.1:4002", step: 1 } },
  ];
  for (const said of [lie, ...shows]) expect(JSON.stringify(said)).toMatch(place);
  hiding.say(...shows, { type: "connect", peer: eve.id, early: true });
  const { peer } = await eve.hears("relay");
  await hiding.hears("relay");
  eve.say({ type: "connect", peer: hiding.id });
  using late = await Member.join(house.port, { name: "late", room: words });
  late.say({ type: "connect", peer: hiding.id });
  await late.hears("relay");
  eve.say({ type: "echo", text: "that is all" });
  await eve.hears("echo");
  for (const one of [eve, late]) {
    expect(told(one)).toContain('"name":"hiding"');
    expect(told(one)).not.toMatch(place);
    expect(one.lines.all.filter(({ type }) => type === "punch" || type === "measure")).toEqual([]);
  }
  // But by whoever runs the introducer.
  expect(house.introducer.participants.find(({ id }) => id === hiding.id)?.public).toStartWith("127.0.0.9:");
  const shown = [peer.public, peer.private, peer.mapped, peer.roundTripMs];
  expect(shown).toEqual(["[100::1]:9", [], undefined, undefined]);
});

test("the real program says nothing of where it is, takes no punch, and listens nowhere", async () => {
  using bait = await Bait.listen("127.0.0.1");
  const bob = peerLine({ public: `127.0.0.1:${bait.port}`, private: [`127.0.0.1:${bait.port}`] });
  using house = await LyingIntroducer.listen((line, visitor) => {
    const verify = { endpoint: `[::1]:${bait.port}`, token: bob.instance.repeat(2) };
    const own = { relay, probePorts: [bait.port], verify };
    if (line.type === "register") visitor.say(registered(line, own), peersLine(bob));
    // All that an introducer could have it send, also in answer to its own question.
    if (line.type !== "connect" && line.type !== "register") return;
    for (const way of ["direct", "birthday", "predicted"]) {
      visitor.say({ type: "measure", peer: bob, token: "ab".repeat(16), way });
      visitor.say(punchLine(bob, { way }), punchLine(bob, { way, role: "controlling" }));
    }
  });
  await using alice = new Driven(house.port, "alice", "--only-relay", "--verbose");
  await alice.registered;
  expect(await alice.next("hidden")).toMatchObject(relay);
  alice.type("nat", "connect bob");
  expect((await alice.next("error")).message).toBe(
    "with --only-relay nothing is measured: no link of yours depends on it",
  );
  const register = await house.hears("register");
  expect(register).not.toHaveProperty("private");
  // Of each introduction one round was declined, and those that came beside it.
  for (let declined = 0; declined < 12; declined++)
    expect((await house.hears("failed")).reason).toBe("refused-by-peer");
  const isHers = ({ lines }: LineSocket) => lines.all.some(({ type }) => type === "register");
  const { remotePort } = house.visitors.find(isHers)!.socket;
  const dialled = await dial("127.0.0.1", remotePort!).catch((error: { code: string }) => error.code);
  expect(dialled).toBe("ECONNREFUSED");
  expect([bait.total, alice.events.filter(({ event }) => event === "attempt")]).toEqual([0, []]);
  expect(house.heard.all.filter(({ type }) => type === "verify" || type === "probe")).toEqual([]);
  expect(JSON.stringify(house.heard.all)).not.toMatch(/127\.0\.0\.1|\[::1\]/);
});

test("an introducer that can't keep it for itself is not told, and one that does not relay is of no use", async () => {
  using old = await LyingIntroducer.listen((line, visitor) => {
    const message = "private must be a list of at most 10 items";
    if (line.private === undefined)
      visitor.say({ type: "refused", code: "bad-field", message, request: line.type });
  });
  using direct = await LyingIntroducer.listen((line, visitor) => visitor.say(registered(line), peersLine()));
  const join = (port: number) => outcome([`127.0.0.1:${port}`, "--only-relay", "-q", "--connect", "bob"]);
  const [first, second] = await Promise.all([join(old.port), join(direct.port)]);
  expect([first.code, second.code]).toEqual([1, 1]);
  expect(first.stderr).toStartWith(
    "error: this introducer can't hide where you are, so it was not told: it must be updated (",
  );
  expect(second.stderr).toBe(
    "error: this introducer does not relay (--no-relay), so with --only-relay there can be no link: take another introducer\n",
  );
});
