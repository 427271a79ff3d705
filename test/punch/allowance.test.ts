/** How many introductions, and how many birthdays, others can make us take part in. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { UnaskedBudget, type Unasked } from "../../native/punch/allowance.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const second = 1_000;
const minute = 60 * second;

/** Everyone has one of his own. */
const addressOf = (peer: string) => {
  const digest = new Bun.CryptoHasher("sha256").update(peer).digest();
  return `203.${digest[0]}.${digest[1]}.${digest[2]}`;
};

/** A budget, and the clock it reads. */
function budget() {
  const clock = { now: 5 * minute };
  const unasked = new UnaskedBudget(() => clock.now);
  const admit = (peer: string, address = addressOf(peer)): Unasked => {
    const admitted = unasked.admit(peer, address);
    if (!admitted) throw new Error(`${peer} was not admitted`);
    return admitted;
  };
  const isAdmitted = (peer: string, address = addressOf(peer)) => unasked.admit(peer, address) !== undefined;
  return { clock, unasked, admit, isAdmitted };
}

describe("introductions that we did not ask for", () => {
  test("ten a minute by one peer, and the others are not in its way", () => {
    const { clock, isAdmitted, admit } = budget();
    for (let count = 0; count < 10; count++) admit("mallory");
    expect(isAdmitted("mallory")).toBe(false);
    admit("bob");
    clock.now += minute - 1;
    expect(isAdmitted("mallory")).toBe(false);
    clock.now += 1;
    admit("mallory");
  });

  test("240 a minute by all, whatever they call themselves", () => {
    const { clock, isAdmitted } = budget();
    const tried = () => Array.from({ length: 1000 }, (_, n) => isAdmitted(`${clock.now} ${n}`));
    expect(tried().filter(Boolean).length).toBe(240);
    clock.now += minute;
    expect(tried().filter(Boolean).length).toBe(240);
  });

  /** Who asks again and again, until nothing more is let in. */
  const greedy = {
    "six peers at one address that link and end": { peers: 6, addresses: 1, links: true },
    "40 peers at one address that never link": { peers: 40, addresses: 1, links: false },
    "30 peers at 30 addresses that link and end": { peers: 30, addresses: 30, links: true },
    "64 peers of one IPv6 site": { peers: 64, addresses: 64, links: true, site: true },
    "endless new names at one address": { peers: 2000, addresses: 1, links: true },
  };
  test.each(Object.entries(greedy))("after %s a newcomer is let in, and let in again", (_, attack) => {
    const { unasked, admit, clock } = budget();
    const at = (n: number) => {
      const which = n % attack.addresses;
      return "site" in attack ? `2001:db8:1:${which.toString(16)}::1` : `203.0.113.${which}`;
    };
    for (let n = 0; n < 4 * Math.max(500, attack.peers); n++) {
      clock.now += 1;
      const admitted = unasked.admit(`mallory ${n % attack.peers}`, at(n));
      if (attack.links) admitted?.linked(true);
    }
    for (let count = 0; count < 3; count++) admit("bob", "198.51.100.7").linked(true);
    for (let count = 0; count < 3; count++) admit("carol", "2001:db8:2::1");
  });

  test("who shares the address of six that link and end is let in, too", () => {
    const { unasked, admit } = budget();
    for (let n = 0; n < 480; n++) unasked.admit(`mallory ${n % 6}`, "203.0.113.1")?.linked(true);
    admit("bob", "203.0.113.1").linked(true);
    admit("bob", "203.0.113.1").linked(true);
  });

  test("one who is alone may link and end 200 times a minute", () => {
    const { admit } = budget();
    for (let count = 0; count < 200; count++) admit("bob").linked(true);
  });

  test("one that was refused does not count", () => {
    const { clock, isAdmitted, admit } = budget();
    for (let count = 0; count < 10; count++) admit("mallory");
    clock.now += minute / 2;
    for (let count = 0; count < 100; count++) expect(isAdmitted("mallory")).toBe(false);
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
      introduction.linked(true);
    }
  });

  test("that led to a link counts among sixty a minute", () => {
    const { clock, admit } = budget();
    const tried = () =>
      Array.from({ length: 61 }, () => {
        const introduction = admit("bob");
        const isAllowed = introduction.mayTryBirthday(second);
        if (isAllowed) introduction.linked(true);
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
