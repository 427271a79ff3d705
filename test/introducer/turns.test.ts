/** What a source is charged for, and when it has to wait: without sockets, as fast as the clock goes. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { defaultLimits } from "../../native/introducer/limits.ts";
import type { Session } from "../../native/introducer/session.ts";
import { Sources } from "../../native/introducer/sources.ts";
import { Turns } from "../../native/introducer/turns.ts";
import { toil } from "../native-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const [one, other] = ["203.0.113.1", "203.0.113.2"];

function makeTurns() {
  const outbox = { size: 0 };
  const limits = { ...defaultLimits, ownHostShares: 1 };
  const sources = new Sources(limits);
  const reader = { limits, sources, outbox, guard: {}, line() {}, relayed() {}, ended() {}, tooMuch() {} };
  const turns = new Turns(reader as unknown as ConstructorParameters<typeof Turns>[0]);
  const isOver = (source: string) => turns.isOver({ source } as Session, performance.now());
  return { turns, outbox, isOver };
}

type Made = ReturnType<typeof makeTurns>;
const session = { source: one } as Session;

/** Each is done at once, and takes next to no time: what makes a source wait is what is said to have been spent. */
test.each<[string, number, (made: Made) => void]>([
  ["connections are accepted", 300, ({ turns }) => void turns.accepts(one)],
  ["reads do nothing", 1500, ({ turns }) => turns.charge(session, () => {})],
  [
    "reads have us write to many",
    10,
    ({ turns, outbox }) => turns.charge(session, () => (outbox.size += 200)),
  ],
  ["changes have us write to many", 10, ({ turns }) => turns.chargeWrites(one, 200)],
  ["relayed reads are not paid for", 1500, ({ turns }) => turns.chargeRelayed(session, () => 0, 0)],
  ["relayed bytes come in tiny segments", 10, ({ turns }) => turns.chargeRelayed(session, () => 1, 2)],
])("a source has to wait when many %s, and no other has", (_, times, act) => {
  const made = makeTurns();
  expect(made.isOver(one)).toBe(false);
  for (let n = 0; n < times; n++) act(made);
  expect([made.isOver(one), made.isOver(other)]).toEqual([true, false]);
});

test("relayed bytes pay for themselves", () => {
  const { turns, isOver } = makeTurns();
  for (let n = 0; n < 1500; n++) turns.chargeRelayed(session, () => 1, 0);
  expect(isOver(one)).toBe(false);
});

test("what takes long once is not all charged to whose read it was", () => {
  const { turns, isOver } = makeTurns();
  turns.charge(session, () => toil(100));
  turns.chargeRelayed(session, () => (toil(100), 0), 0);
  expect(isOver(one)).toBe(false);
});

test("what costs a little is forgotten soon", () => {
  const { turns } = makeTurns();
  for (let n = 0; n < 300; n++) turns.accepts(one);
  const soon = performance.now() + 400; // e times less after 250 ms
  expect(turns.isOver(session, soon)).toBe(false);
});

test("who is closed and says much is not read any more", () => {
  const { turns } = makeTurns();
  let pauses = 0;
  const socket = { pause: () => void pauses++ };
  const closed = () => ({ source: one, socket, heardAt: performance.now() }) as unknown as Session;
  turns.receiveNothing(closed());
  expect(pauses).toBe(0);
  for (let n = 0; n < 100; n++) turns.receiveNothing(closed());
  expect(pauses).toBeGreaterThan(0);
});
