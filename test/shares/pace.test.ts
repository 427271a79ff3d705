/** How fast is sent: by a clock of its own, in which whoever waits has waited at once. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Pace } from "../../native/shares/pace.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** `sent`: how many bytes, and when. */
function scene(rate?: number) {
  const clock = { at: 1_000, now: () => clock.at, sleep: async (ms: number) => void (clock.at += ms) };
  const pace = new Pace(rate, clock);
  const sent: { at: number; bytes: number }[] = [];
  const send = async (bytes: number) => {
    for (let rest = bytes; rest > 0;) {
      await pace.ready();
      const slice = Math.min(rest, pace.slice);
      pace.spend(slice);
      sent.push({ at: clock.at, bytes: slice });
      rest -= slice;
    }
  };
  const within = (from: number, to: number) =>
    sent.filter(({ at }) => at >= from && at < to).reduce((sum, { bytes }) => sum + bytes, 0);
  return { clock, pace, sent, send, within };
}

test.each([1_024, 10_000, 100_000, 1e6, 50e6])("at %p bytes a second, evenly", async (rate) => {
  const { clock, send, within } = scene(rate);
  await Promise.all([send(3 * rate), send(2 * rate)]);
  expect((clock.at - 1_000) / 1_000).toBeWithin(4, 5.2);
  // In no tenth of a second more than its share, a burst and a slice.
  const most = rate / 10 + rate / 20 + Math.max(1_024, Math.min(rate / 20, 64 * 1_024));
  for (let at = 1_000; at < clock.at; at += 100) expect(within(at, at + 100)).toBeLessThanOrEqual(most);
});

test("without a limit nobody waits, and nothing is cut", () => {
  const { pace } = scene();
  pace.spend(1e12);
  expect([pace.ready(), pace.slice]).toEqual([undefined, Infinity]);
});

test("another limit holds from then on, without what was sent before", async () => {
  const { clock, pace, send } = scene(1_024);
  pace.spend(1e6);
  pace.bytesPerSecond = 1e6;
  await send(1e6);
  expect(clock.at).toBeLessThan(2_100);
  pace.bytesPerSecond = undefined;
  await send(1e9);
  expect(clock.at).toBeLessThan(2_100);
});

test("who has sent nothing for long may send no more at once than a burst", async () => {
  const { clock, send, within } = scene(100_000);
  clock.at += 3_600_000;
  await send(100_000);
  expect(within(3_601_000, 3_601_100)).toBeLessThanOrEqual(100_000 * (0.1 + 0.05 + 0.05));
});
