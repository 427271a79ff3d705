/** How many introductions, and how many birthdays, others can make us take part in. */
import { describe, expect, test } from "bun:test";
import { UnaskedBudget, type Unasked } from "../../native/punch/allowance.ts";

const second = 1_000;
const minute = 60 * second;

/** A budget, and the clock it reads. */
function budget() {
  const clock = { now: 5 * minute };
  const unasked = new UnaskedBudget(() => clock.now);
  const admit = (peer: string): Unasked => {
    const admitted = unasked.admit(peer);
    if (!admitted) throw new Error(`${peer} was not admitted`);
    return admitted;
  };
  return { clock, unasked, admit };
}

describe("introductions that we did not ask for", () => {
  test("ten a minute by one peer, and the others are not in its way", () => {
    const { clock, unasked, admit } = budget();
    for (let count = 0; count < 10; count++) admit("mallory");
    expect(unasked.admit("mallory")).toBeUndefined();
    admit("bob");
    clock.now += minute - 1;
    expect(unasked.admit("mallory")).toBeUndefined();
    clock.now += 1;
    admit("mallory");
  });

  test("240 a minute by all, whatever they call themselves", () => {
    const { clock, unasked, admit } = budget();
    for (let count = 0; count < 240; count++) admit(`mallory ${count}`);
    expect(unasked.admit("bob")).toBeUndefined();
    clock.now += minute;
    admit("bob");
  });

  test("one that was refused does not count", () => {
    const { clock, unasked, admit } = budget();
    for (let count = 0; count < 10; count++) admit("mallory");
    clock.now += minute / 2;
    for (let count = 0; count < 100; count++) expect(unasked.admit("mallory")).toBeUndefined();
    clock.now += minute / 2;
    admit("mallory");
  });
});

describe("a birthday", () => {
  test("that failed at once is not followed by another with that peer for a minute", () => {
    const { clock, admit } = budget();
    expect(admit("mallory").mayTryBirthday(10 * second)).toBe(true);
    for (let count = 0; count < 5; count++) {
      clock.now += second;
      expect(admit("mallory").mayTryBirthday(10 * second)).toBe(false);
    }
    expect(admit("bob").mayTryBirthday(10 * second)).toBe(true);
    clock.now += minute;
    expect(admit("mallory").mayTryBirthday(10 * second)).toBe(true);
  });

  test("has three rounds, one after the other", () => {
    const { clock, admit } = budget();
    const introduction = admit("bob");
    expect(introduction.mayTryBirthday(10 * second)).toBe(true);
    clock.now += 7 * second;
    expect(introduction.mayTryBirthday(10 * second)).toBe(false); // the first still runs
    clock.now += 2 * second; // the peer's clock may be so much ahead
    expect(introduction.mayTryBirthday(10 * second)).toBe(true);
    clock.now += 10 * second;
    expect(introduction.mayTryBirthday(10 * second)).toBe(true);
    clock.now += 10 * second;
    expect(introduction.mayTryBirthday(10 * second)).toBe(false);
    expect(admit("bob").mayTryBirthday(10 * second)).toBe(false);
    clock.now += minute;
    expect(admit("bob").mayTryBirthday(10 * second)).toBe(true);
  });

  test("is never begun while another with that peer runs, however long", () => {
    const { clock, admit } = budget();
    expect(admit("bob").mayTryBirthday(5 * minute)).toBe(true);
    clock.now += 5 * minute - 1;
    expect(admit("bob").mayTryBirthday(second)).toBe(false);
    clock.now += 1;
    expect(admit("bob").mayTryBirthday(second)).toBe(true);
  });

  test("that led to a link is given back", () => {
    const { admit } = budget();
    for (let count = 0; count < 10; count++) {
      const introduction = admit("bob");
      expect(introduction.mayTryBirthday(10 * second)).toBe(true);
      introduction.linked();
    }
  });

  test("that led to a link counts among sixty a minute", () => {
    const { clock, admit } = budget();
    const tried = () =>
      Array.from({ length: 61 }, () => {
        const introduction = admit("bob");
        const isAllowed = introduction.mayTryBirthday(second);
        if (isAllowed) introduction.linked();
        return isAllowed;
      });
    // The first that is not allowed leads to no link, and is held against bob from then on.
    expect(tried()).toEqual([...Array<boolean>(60).fill(true), false]);
    clock.now += minute;
    expect(admit("bob").mayTryBirthday(second)).toBe(true);
  });

  test("of a short round is not followed at once", () => {
    const { clock, admit } = budget();
    const introduction = admit("mallory");
    expect(introduction.mayTryBirthday(500)).toBe(true);
    expect(introduction.mayTryBirthday(500)).toBe(false);
    clock.now += 400;
    expect(introduction.mayTryBirthday(500)).toBe(true);
  });

  test("six failed ones a minute with all", () => {
    const { clock, admit } = budget();
    const tried = () =>
      Array.from({ length: 40 }, (_, n) => admit(`${clock.now} ${n}`).mayTryBirthday(second));
    expect(tried().filter(Boolean).length).toBe(6);
    clock.now += minute;
    expect(tried().filter(Boolean).length).toBe(6);
  });
});
