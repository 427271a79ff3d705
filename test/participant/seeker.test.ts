/** How often a peer can make us ask the introducer, by what it says of itself and by what it cuts: by a clock of the test's. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { type Clock, Seeker } from "../../native/participant/seeker.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

/** A seeker whose time passes when the test says so, and when it sought. */
class Sought {
  readonly at: number[] = [];
  #now = 0;
  readonly #timers = new Set<{ work: () => void; at: number }>();
  readonly seeker: Seeker;

  constructor() {
    const clock: Clock = {
      now: () => this.#now,
      wake: (work, ms) => {
        const timer = { work, at: this.#now + ms };
        this.#timers.add(timer);
        return () => this.#timers.delete(timer);
      },
    };
    this.seeker = new Seeker(() => void this.at.push(this.#now), clock);
  }

  pass(ms: number): void {
    const until = this.#now + ms;
    for (;;) {
      const [first] = [...this.#timers].toSorted((a, b) => a.at - b.at);
      if (!first || first.at > until) break;
      this.#timers.delete(first);
      this.#now = first.at;
      first.work();
    }
    this.#now = until;
  }

  /** How long it takes until it seeks. */
  wait(): number {
    const [from, before] = [this.#now, this.at.length];
    for (let n = 0; n < 100_000 && this.at.length === before; n++) this.pass(1);
    return this.at[before]! - from;
  }
}

test("a peer that changes without end is asked for at once, and then every three seconds", () => {
  const sought = new Sought();
  sought.seeker.want("direct", true);
  sought.seeker.hurry(true);
  sought.pass(0);
  expect(sought.at).toEqual([0]);
  for (let ms = 0; ms < 10_000; ms++) {
    sought.seeker.hurry(true);
    sought.pass(1);
  }
  // The pause of 2.5 s or more that the first change has begun may be over half a second before the three.
  const gaps = sought.at.slice(1).map((at, index) => at - sought.at[index]!);
  expect([Math.max(...gaps) <= 3_500, sought.at.length <= 6]).toEqual([true, true]);
});

test("a second change puts off nothing that the first has planned", () => {
  for (const [isFirst, soonMs] of [
    [true, 0],
    [false, 1_500],
  ] as const) {
    const sought = new Sought();
    sought.seeker.want("direct", isFirst);
    sought.seeker.hurry(isFirst);
    sought.seeker.hurry(isFirst); // as when we are registered anew, and our mapping is another
    expect(sought.wait()).toBe(soonMs);
  }
});

/** Pauses are jittered by half. */
function expectPauses(waits: number[], pauses: number[]): void {
  for (const [n, ms] of pauses.entries()) {
    expect(waits[n]).toBeGreaterThanOrEqual(ms / 2 - 1);
    expect(waits[n]).toBeLessThanOrEqual(1.5 * ms + 1);
  }
}

test("what is found and lost without end is sought at once, and then after growing pauses", () => {
  const sought = new Sought();
  const waits: number[] = [];
  for (let n = 0; n < 9; n++) {
    sought.seeker.want("soon", true);
    waits.push(sought.wait());
    sought.seeker.rest();
  }
  expectPauses(waits, [0, 250, 500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
});

test("what has lasted is sought at once, and what was lost before that is forgotten", () => {
  const sought = new Sought();
  const waits: number[] = [];
  for (const lastedMs of [1, 1, 10_000, 1]) {
    sought.seeker.want("soon", true);
    waits.push(sought.wait());
    sought.seeker.rest();
    sought.pass(lastedMs);
  }
  sought.seeker.want("soon", true);
  waits.push(sought.wait());
  expectPauses(waits, [0, 250, 500, 0, 250]);
});

test("a direct way is sought at leisure, whatever was lost before", () => {
  const sought = new Sought();
  sought.seeker.want("soon", true);
  sought.wait();
  sought.seeker.rest();
  sought.seeker.want("direct", true);
  const first = sought.wait();
  sought.seeker.again();
  const second = sought.wait();
  sought.seeker.again();
  expectPauses([first, second, sought.wait()], [5_000, 5_000, 10_000]);
});

test("an attempt that fails is followed by others, ever more seldom", () => {
  const sought = new Sought();
  sought.seeker.want("soon", true);
  const waits = [sought.wait()];
  for (let n = 0; n < 6; n++) {
    sought.seeker.again();
    waits.push(sought.wait());
  }
  expectPauses(waits, [0, 250, 500, 1_000, 2_000, 2_000, 2_000]);
});

test("the other side asks a little later, and only while something is wanted", () => {
  const sought = new Sought();
  sought.seeker.hurry(false);
  sought.seeker.again();
  sought.pass(100_000);
  expect([sought.at, sought.seeker.wanted]).toEqual([[], undefined]);
  sought.seeker.want("soon", false);
  sought.seeker.want("soon", true); // changes nothing
  expect([sought.wait(), sought.seeker.wanted]).toEqual([1_500, "soon"]);
  sought.seeker.rest();
  sought.pass(100_000);
  expect(sought.at).toHaveLength(1);
});

test("who could not ask does so later, and a change at the peer makes it soon again", () => {
  const sought = new Sought();
  sought.seeker.want("soon", true);
  expectPauses([sought.wait(), sought.wait(), sought.wait()], [0, 250, 250]);
  for (let n = 0; n < 4; n++) sought.seeker.again();
  expectPauses([sought.wait()], [2_000]);
  sought.seeker.hurry(true);
  expect(sought.wait()).toBe(0);
  expectPauses([sought.wait()], [250]);
});
