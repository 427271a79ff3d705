/** What strangers and members do leaves nothing behind in an introducer: of each kind of object there are as many as before. */
import { expect, test } from "bun:test";
import { House } from "./house.ts";
import { makeIdentity, Member, until, type Line } from "./wire.ts";

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

test("pairs that linked in a later round are forgotten while both are there", async () => {
  await using house = await House.start();
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
}, 30_000);

test("rooms that were visited while Redis was away are forgotten", async () => {
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
}, 30_000);
