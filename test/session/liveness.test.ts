/** When a carrier looks dead, is dead, and is asked: with a clock of the test's. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { CarrierState } from "../../native/session/carrier-state.ts";
import { FrameDecoder } from "../../native/session/frame.ts";
import { Liveness } from "../../native/session/liveness.ts";
import { carrierPair, TestClock } from "./memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

function watched() {
  const clock = new TestClock();
  const facts = { isAckDue: false, isDeaf: false, pingsDue: 0 };
  const liveness = new Liveness({
    clock,
    isAckDue: () => facts.isAckDue,
    isDeaf: () => facts.isDeaf,
    onPingDue: () => facts.pingsDue++,
  });
  const decoder = new FrameDecoder({ onPiece: () => {}, onFrame: () => {} });
  const state = new CarrierState(carrierPair(clock).alice, decoder, "current", clock.now());
  return { clock, facts, liveness, state };
}

test("nothing is due: it lives, however long it is silent", async () => {
  const { clock, liveness, state } = watched();
  await clock.advance(3_600_000);
  expect(liveness.judge(state)).toEqual({ is: "alive", quietMs: 0 });
});

test.each([
  ["at once", undefined, 2_000],
  ["on a long way: four round trips", 1_000, 4_000],
] as const)("an answer is due, %s: it looks dead, then is dead after five times that", async (_, rtt, ms) => {
  const { clock, facts, liveness, state } = watched();
  liveness.roundTripMs = rtt;
  facts.isAckDue = true;
  const verdicts: string[] = [];
  for (const atMs of [ms - 1, ms, 5 * ms - 1, 5 * ms]) {
    await clock.advance(atMs - clock.now());
    verdicts.push(liveness.judge(state).is);
  }
  expect(verdicts).toEqual(["alive", "looks-dead", "looks-dead", "dead"]);
  liveness.heard(state);
  expect(liveness.judge(state).is).toBe("alive");
});

test("who does not listen can't judge: while held, and while nothing is read", async () => {
  const { clock, facts, liveness, state } = watched();
  facts.isAckDue = facts.isDeaf = true;
  await clock.advance(60_000);
  expect(liveness.judge(state).is).toBe("alive");
  facts.isDeaf = false;
  state.incoming.reading = "held";
  expect(liveness.judge(state).is).toBe("alive");
  state.incoming.reading = "in-sequence";
  expect(liveness.judge(state).is).toBe("dead");
});

test("an idle one is asked after 15 s, once; only the pong of that ping is a round trip", async () => {
  const { clock, facts, liveness, state } = watched();
  await clock.advance(14_999);
  liveness.keepAlive(state);
  expect(facts.pingsDue).toBe(0);
  await clock.advance(1);
  liveness.keepAlive(state);
  liveness.keepAlive(state);
  expect([facts.pingsDue, liveness.takePing(state) !== undefined, liveness.takePing(state)]).toEqual([
    1,
    true,
    undefined,
  ]);
  await clock.advance(70);
  liveness.ponged(state, 2);
  expect(liveness.roundTripMs).toBeUndefined();
  liveness.ponged(state, 1);
  expect(liveness.roundTripMs).toBe(70);
});

test("one that died after a silence is asked twice as often, but not oftener than every 3 s", async () => {
  const { clock, facts, liveness, state } = watched();
  await clock.advance(8_000);
  liveness.asked(state);
  liveness.shortenKeepalive(state);
  liveness.heard(state);
  await clock.advance(3_999);
  liveness.keepAlive(state);
  expect(facts.pingsDue).toBe(0);
  await clock.advance(1);
  liveness.keepAlive(state);
  expect(facts.pingsDue).toBe(1);
});
