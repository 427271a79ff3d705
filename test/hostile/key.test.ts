/** An introducer with a key: whoever has not got it registers nowhere, with nobody's overheard proof, and costs little. */
import { afterAll, expect, setDefaultTimeout, setSystemTime, test } from "bun:test";
import { randomBytes } from "node:crypto";
import * as net from "node:net";
import { Introducer } from "../../introducer.ts";
import type { IntroducerEvent } from "../../native/introducer/events.ts";
import { maxSkewMs } from "../../native/introducer/access.ts";
import { until } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { hex, type Line, LineSocket, macOf } from "./wire.ts";

setDefaultTimeout(testMs);
const key = "gjec-p272-r0uw-hs8m";
const events: IntroducerEvent[] = [];
const onEvent = (event: IntroducerEvent) => void events.push(event);
const house = Introducer.start({ host: "127.0.0.1", port: 0, key, onEvent });
afterAll(() => house.stop());

const visit = (port = house.port) => new LineSocket(net.connect({ port, host: "127.0.0.1", noDelay: true }));

/** What somebody says of himself. */
const self = (own: object = {}): Line => ({
  ...{ type: "register", version: 2, name: `n${hex(4)}`, room: "lobby", instance: hex(8) },
  ...{ fingerprint: hex(32), private: [], links: [], ...own },
});

/** The proof by which that one, and nobody else, is let in. */
const proofOf = ({ fingerprint, room, instance }: Line, bound: string | number, by = key): string => {
  const parts = [fingerprint, room, instance, String(bound)] as string[];
  return macOf(Buffer.from(by), "tcp-hole-punching introducer", ...parts).toString("hex");
};

/** As one who has the key says it, at that moment. */
const proved = (one: Line, at = Date.now()): Line => ({ ...one, access: { at, proof: proofOf(one, at) } });

/** What the introducer answers to one line. */
async function answered(line: Line, visitor = visit()): Promise<Line> {
  visitor.say(line);
  return visitor.lines.next("an answer", ({ type }) => type === "registered" || type === "refused");
}

const wrong = { type: "refused", code: "key", message: "that is not the key of this introducer" };
const lacking = { type: "refused", code: "key", message: "this introducer is for those who have its key" };

test("whoever has the key is let in, in the lobby and in a private room", async () => {
  expect(await answered(proved(self()))).toMatchObject({ type: "registered" });
  expect(await answered(proved(self({ room: hex(32) })))).toMatchObject({ type: "registered" });
});

test.each([
  ["nothing to show", self(), lacking],
  [
    "a proof by another key",
    ((one) => ({ ...one, access: { at: 1, proof: proofOf(one, 1, "k") } }))(self()),
    wrong,
  ],
  ["any digits", self({ access: { at: Date.now(), proof: hex(32) } }), wrong],
  ["the empty key", ((one) => ({ ...one, access: { at: 1, proof: proofOf(one, 1, "") } }))(self()), wrong],
])("with %s it is refused, and the connection closed", async (_, line, refusal) => {
  using visitor = visit();
  expect(await answered(line as Line, visitor)).toMatchObject(refusal);
  await visitor.lines.over();
});

test("a proof is nobody else's: not another certificate's, room's, or program's", async () => {
  const one = self();
  const { access } = proved(one);
  for (const other of [{ fingerprint: hex(32) }, { room: hex(32) }, { instance: hex(8) }])
    expect(await answered({ ...one, ...other, access })).toMatchObject(wrong);
  expect(await answered({ ...one, access: { ...access, at: access.at + 1 } })).toMatchObject(wrong);
  expect(await answered({ ...one, access })).toMatchObject({ type: "registered" });
});

test("what was overheard lets in nobody: it was used, and the challenge is for who has the key", async () => {
  const line = proved(self());
  using alice = visit();
  expect(await answered(line, alice)).toMatchObject({ type: "registered" });
  using thief = visit();
  const { challenge } = await answered(line, thief);
  expect(challenge).toMatch(/^[0-9a-f]{32}$/);
  // The same again, now that there is a challenge: it is neither let in nor asked again.
  expect(await answered(line, thief)).toMatchObject(wrong);
  await thief.lines.over();
  expect(house.participants.filter(({ name }) => name === line.name)).toHaveLength(1);
  alice.say({ type: "echo", text: "still there" });
  await alice.hears("echo");
});

test("a challenge is for its own connection, and good for one who has the key and a wrong clock", async () => {
  const one = self();
  const late = () => proved(one, Date.now() - 2 * maxSkewMs);
  using visitor = visit();
  using other = visit();
  const { challenge } = await answered(late(), visitor);
  const { challenge: others } = await answered(late(), other);
  expect(challenge).not.toBe(others);
  const answer = (to: string): Line => ({ ...one, access: { at: 0, proof: proofOf(one, to) } });
  expect(await answered(answer(challenge), other)).toMatchObject(wrong);
  expect(await answered(answer(challenge), visitor)).toMatchObject({ type: "registered" });
  expect(await answered(proved(self(), Date.now() + 2 * maxSkewMs))).toHaveProperty("challenge");
});

test("a proof can't be kept for later: by then its moment is over", async () => {
  const line = proved(self());
  setSystemTime(Date.now() + maxSkewMs + 1_000);
  try {
    expect(await answered(line)).toHaveProperty("challenge");
  } finally {
    setSystemTime();
  }
});

test("who is not registered is neither relayed, verified nor introduced", async () => {
  for (const line of [
    { type: "relay", token: hex(16) },
    { type: "verify", token: hex(16) },
    { type: "connect", peer: 1 },
    { type: "echo", text: "hello" },
  ]) {
    using visitor = visit();
    visitor.say(line);
    expect(await visitor.hears("refused")).toMatchObject({ request: line.type });
    await visitor.lines.over();
  }
});

test("nothing of the key is in what the introducer tells its operator or a stranger", async () => {
  using visitor = visit();
  await answered(self(), visitor);
  await answered(proved(self()));
  expect(JSON.stringify([events, visitor.lines.all])).not.toContain(key.slice(0, 9));
});

test("a flood of wrong proofs leaves nothing behind, and those who have the key come in meanwhile", async () => {
  const before = house.stats.connections;
  for (let round = 0; round < 8; round++) {
    const flood = Array.from({ length: 25 }, async () => {
      using visitor = visit();
      await answered(self({ access: { at: Date.now(), proof: randomBytes(32).toString("hex") } }), visitor);
    });
    expect(await answered(proved(self()))).toMatchObject({ type: "registered" });
    await Promise.all(flood);
  }
  const refused = house.stats.refusals.find(({ code }) => code === "key")!;
  expect(refused.count).toBeGreaterThanOrEqual(200);
  await until("they are gone", () => house.stats.connections <= before + 8);
});
