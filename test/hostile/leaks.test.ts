/** What strangers and members do leaves nothing behind in an introducer: of each kind of object there are as many as before. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { House } from "./house.ts";
import { dial, LineSocket, makeIdentity, Member, until, type Line } from "./wire.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const identity = makeIdentity();
const member = (port: number, name: string, from?: string) =>
  Member.join(port, { name, identity, ...(from !== undefined && { from }) });

const about = (one: Member, token?: string) => (line: Line) =>
  (line.peer?.id ?? line.peer) === one.id && (token === undefined || line.token === token);

/** Asks, fails the first round, and is linked by the second, in which both measure. */
async function linkLater(a: Member, b: Member): Promise<void> {
  a.say({ type: "connect", peer: b.id, relay: false });
  const { token: first } = await a.hears("punch", about(b));
  a.say({ type: "failed", peer: b.id, token: first, reason: "no-candidate-answered" });
  const { token } = await a.hears("measure", about(b));
  for (const one of [a, b]) one.say({ type: "measured", token });
  await Promise.all([a.hears("punch", about(b, token)), b.hears("punch", about(a, token))]);
  const report = { type: "linked", token, route: "public", local: "127.0.0.1:9", remote: "127.0.0.1:9" };
  a.say({ ...report, peer: b.id });
  b.say({ ...report, peer: a.id });
}

test.concurrent(
  "pairs that linked in a later round are forgotten while both are there",
  async () => {
    // What a token was told for may be reported until then, and a second more.
    await using house = await House.start({ limits: { punchDeadlineMs: 3000, relayOfferMs: 300 } });
    const all = await Promise.all(Array.from({ length: 24 }, (_, n) => member(house.port, `m${n}`)));
    const before = await house.heap();
    const pairs = all.flatMap((a, n) => all.slice(n + 1).map((b) => [a, b] as const));
    expect(pairs).toHaveLength(276);
    for (let n = 0; n < pairs.length; n += 40)
      await Promise.all(pairs.slice(n, n + 40).map(([a, b]) => linkLater(a, b)));
    // Of each are known its links, by whose leave it was asked for of late, and the ways of some peers.
    const most = before.maps + 3 * all.length + 10;
    await until("they are forgotten", async () => (await house.heap()).maps <= most);
    for (const one of all) one.cut();
  },
  testMs,
);

test.concurrent(
  "rooms that were visited while Redis was away are forgotten",
  async () => {
    await using house = await House.start({ redis: "redis://127.0.0.1:1" }); // where nothing listens
    const other = makeIdentity();
    /** One comes in; another that is refused never does. */
    const visit = async (n: number) => {
      const room = n.toString(16).padStart(64, "0");
      using visitor = await Member.join(house.port, { name: "eve", identity, lie: { room } });
      using refused = await Member.connect(house.port, { identity: other });
      await refused.register({ name: "eve", lie: { room } });
      await refused.hears("refused");
      visitor.close();
      await visitor.lines.over();
    };
    await visit(0);
    const gone = async () => (await house.heap()).connections === 0;
    await until("it has gone", gone);
    const before = await house.heap();
    for (let n = 1; n <= 400; n += 20) await Promise.all(Array.from({ length: 20 }, (_, i) => visit(n + i)));
    await until("all have gone", gone);
    await until("so have their rooms", async () => (await house.heap()).maps <= before.maps + 20);
  },
  testMs,
);

/** One room's story, in which as much goes wrong as goes well; in the end all have left, in every way there is. */
async function story(house: House, n: number): Promise<void> {
  const { port } = house;
  const room = n.toString(16).padStart(64, "f");
  /** Of its own, so that no story waits for what others have used up. */
  const address = (host: number) => `127.0.${n}.${host}`;
  const join = (name: string, from: string) => Member.join(port, { name, identity, from, lie: { room } });
  const [anna, bert] = await Promise.all([join("anna", address(2)), join("bert", address(3))]);
  const carl = await join("carl", address(2));
  const report = { type: "linked", route: "public", local: "127.0.0.1:9", remote: "127.0.0.1:9" };
  await linkLater(anna, bert);
  // Links by a later round, fails, and is asked for again; somebody is left alone while he punches.
  anna.say({ type: "unlinked", peer: bert.id, reason: "disconnected" });
  bert.say({ type: "connect", peer: carl.id });
  const { token } = await carl.hears("punch", about(bert));
  carl.say({ type: "failed", peer: bert.id, token, reason: "refused-by-peer" });
  await bert.hears("failed", about(carl));
  carl.say({ type: "connect", peer: anna.id });
  await anna.hears("punch", about(carl));
  carl.cut();
  await anna.hears("failed", about(carl));
  // What can be had besides.
  anna.say({ type: "connect-back" });
  await anna.hears("filtering");
  const { probeToken } = anna.lines.all.find(({ type }) => type === "registered")!;
  const probes = [{ type: "probe", token: probeToken, peer: bert.id, step: 1 }, { type: "probe" }, undefined];
  for (const probe of probes) {
    const one = new LineSocket(await dial("127.0.0.1", house.probePorts[0]!));
    await one.hears("observed");
    if (probe) one.say(probe);
    one.close();
  }
  // Relays: one that is taken, one that nobody comes for, and one for which somebody comes alone.
  for (const one of [anna, bert]) one.say({ type: "mapping", mapping: "random" });
  await bert.hears("updated", ({ id, mapping }) => id === anna.id && mapping === "random");
  await anna.hears("updated", ({ id, mapping }) => id === bert.id && mapping === "random");
  for (const comers of [2, 1, 0]) {
    anna.say({ type: "connect", peer: bert.id });
    const [relay] = await Promise.all([anna.hears("relay", about(bert)), bert.hears("relay", about(anna))]);
    const dialled = Array.from({ length: comers }, () => dial("127.0.0.1", port, address(2)));
    const ends = (await Promise.all(dialled)).map((socket) => new LineSocket(socket));
    for (const end of ends) end.say({ type: "relay", token: relay.token });
    if (comers === 2) {
      await Promise.all(ends.map((end) => end.hears("relaying")));
      for (const one of [anna, bert]) {
        const peer = one === anna ? bert.id : anna.id;
        one.say({ ...report, peer, token: relay.token, route: "relay" });
      }
    } else {
      anna.say({ type: "failed", peer: bert.id, token: relay.token, reason: "no-candidate-answered" });
      await bert.hears("failed", about(anna));
    }
    for (const end of ends) end.cut();
  }
  // Who never gets in.
  const strange = [{ type: "relay", token: "0".repeat(32) }, { type: "verify", token: "0".repeat(32) }, {}];
  for (const line of strange) {
    const stranger = new LineSocket(await dial("127.0.0.1", port, address(4)));
    stranger.say(line);
    await stranger.lines.over();
    stranger.cut();
  }
  const half = new LineSocket(await dial("127.0.0.1", port, address(4)));
  half.raw('{"type":"regis');
  half.cut();
  anna.close();
  bert.cut();
  await anna.lines.over();
}

test.concurrent(
  "members, pairs, relays, probes and failures leave nothing behind",
  async () => {
    // What a token was told for may be reported until then, and a second more.
    const limits = { punchDeadlineMs: 3000, relayOfferMs: 2000 };
    await using house = await House.start({ probePorts: [0], limits });
    const stories = 36;
    const isEmpty = async () => {
      const { connections, relays } = await house.heap();
      return connections === 0 && relays === 0;
    };
    const before = await house.heap();
    const atOnce = 6;
    for (let n = 0; n < stories; n += atOnce)
      await Promise.all(Array.from({ length: atOnce }, (_, one) => story(house, n + one)));
    await until("all have gone", isEmpty);
    const kinds = ["objects", "maps", "sets", "arrays"] as const;
    // Less than one of a kind for each story: what is left is of nobody's doing.
    await until(
      "nothing is left of them",
      async () => {
        const now = await house.heap();
        return kinds.every((kind) => now[kind] - before[kind] < stories);
      },
      testMs,
    );
  },
  60_000,
);
