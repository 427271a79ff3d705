/** What the whole program sends to one address, whoever asks for it. */
import { describe, expect, setDefaultTimeout } from "bun:test";
import { Targets } from "../../native/punch/targets.ts";
import type { Endpoint } from "../../protocol.ts";
import { testAtOnce } from "../places-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const test = testAtOnce(8);
const at = (text: string) => text as Endpoint;
const second = 1_000;
const minute = 60 * second;
const victim = at("203.0.113.1:4000");

function program() {
  const clock = { now: 5 * minute };
  const targets = new Targets(() => clock.now);
  /** How many of so many attempts are made at once. */
  const attempts = (wanted: number, endpoint = (_: number) => victim) =>
    Array.from({ length: wanted }, (_, n) => targets.attempt(endpoint(n))).filter((waitMs) => waitMs === 0)
      .length;
  const birthday = (endpoint = victim, isAsked = true) =>
    targets.birthday(endpoint, { isAsked, before: undefined, lastsMs: second });
  return { clock, targets, attempts, birthday };
}

test("sockets at once: half of all descriptors, of which what others ask for leaves half to us", () => {
  const targets = new Targets(() => 0, 200);
  const entered = (isAsked: boolean) =>
    Array.from({ length: 300 }, (_, n) => at(`203.0.${n % 250}.1:4000`)).filter((one) =>
      targets.enter(one, isAsked),
    );
  const unasked = entered(false);
  expect(unasked.length).toBe(50);
  const asked = entered(true);
  expect(asked.length).toBe(50);
  for (const endpoint of [...unasked, ...asked]) targets.leave(endpoint);
  expect(entered(true).length).toBe(100);
});

describe("endpoints that peers claim", () => {
  const claimed = (n: number) => at(`192.168.${n >> 8}.${n & 255}:4000`);
  const claims = (targets: Targets, seenAt: (n: number) => Endpoint, wanted = 2_000) =>
    Array.from({ length: wanted }, (_, n) => targets.claim(claimed(n), seenAt(n))).filter(Boolean).length;

  test("half of all a minute for one who names many, and a newcomer's are dialled all the same", () => {
    const { clock, targets } = program();
    expect(claims(targets, () => victim)).toBe(360);
    expect(claims(targets, () => victim, 360)).toBe(360); // known ones cost nothing
    expect(claims(targets, () => at("198.51.100.7:5000"), 10)).toBe(10);
    clock.now += minute;
    expect(claims(targets, () => victim)).toBe(360);
  });

  test("720 a minute, whoever is said to name them", () => {
    const { targets } = program();
    expect(claims(targets, (n) => at(`203.0.${n % 250}.1:${4000 + n}`))).toBeLessThanOrEqual(720);
    expect(claims(targets, (n) => at(`198.51.${n % 250}.1:${4000 + n}`))).toBeLessThan(720);
  });
});

describe("attempts", () => {
  test("a thousand at one address, all its ports together, and then 17 a second", () => {
    const { clock, attempts } = program();
    const anyPort = (n: number) => at(`203.0.113.1:${1024 + n}`);
    expect(attempts(10_000, anyPort)).toBeWithin(1_000, 1_100);
    clock.now += 10 * second;
    expect(attempts(10_000)).toBeWithin(100, 200);
    clock.now += 10 * minute;
    expect(attempts(10_000)).toBeWithin(1_000, 1_100);
  });

  test("four times as many where a peer has shown its certificate", () => {
    const { attempts, targets } = program();
    targets.authenticated(at("203.0.113.1:50000"));
    expect(attempts(10_000)).toBeWithin(4_000, 4_200);
  });

  test("one that is shot at takes nothing from others", () => {
    const { attempts } = program();
    attempts(10_000);
    expect(attempts(100, () => at("198.51.100.7:5000"))).toBe(100);
  });

  test("at ever more addresses ever fewer, an IPv6 /64 being one, and a /48 four", () => {
    const { attempts } = program();
    const host = (n: number) => at(`[2001:db8:0:1::${(n + 1).toString(16)}]:4000`);
    expect(attempts(3_000, host)).toBeWithin(1_000, 1_100);
    const network = (n: number) => at(`[2001:db8:5:${(n % 999).toString(16)}::1]:4000`);
    expect(attempts(20_000, network)).toBeLessThan(3_300);
    const everywhere = (n: number) => at(`203.0.${n % 200}.1:4000`);
    expect(attempts(100_000, everywhere)).toBeLessThan(200 * 70);
  });
});

describe("birthdays", () => {
  test("two a minute at one address, whoever is said to be there", () => {
    const { clock, birthday, targets } = program();
    const tried = () =>
      Array.from({ length: 5 }, (_, n) => birthday(at(`203.0.113.1:${5000 + n}`), n % 2 === 0));
    expect(tried().filter(Boolean).length).toBe(2);
    clock.now += minute;
    expect(tried().filter(Boolean).length).toBe(2);
    targets.authenticated(victim);
    expect(tried().filter(Boolean).length).toBe(4);
  });

  test("those that led to a link there do not count", () => {
    const { birthday, targets } = program();
    for (let count = 0; count < 20; count++) targets.authenticated(victim, birthday()!);
    const elsewhere = birthday(at("198.51.100.7:5000"))!;
    targets.authenticated(victim, elsewhere);
    expect(elsewhere.birthday.hasLinked).toBe(false);
  });

  test("twelve a minute that we asked for", () => {
    const { birthday } = program();
    const tried = Array.from({ length: 40 }, (_, n) => birthday(at(`203.0.${n}.1:4000`)));
    expect(tried.filter(Boolean).length).toBe(12);
    expect(birthday(at("198.51.100.7:5000"), false)).toBeDefined(); // counted otherwise
  });

  test("have three rounds one after the other, and another address is another birthday", () => {
    const { clock, targets } = program();
    const rest = { isAsked: true, lastsMs: second };
    let before = targets.birthday(victim, { ...rest, before: undefined });
    expect(targets.birthday(victim, { ...rest, before })).toBeUndefined();
    for (let round = 2; round <= 3; round++) {
      clock.now += second;
      expect((before = targets.birthday(victim, { ...rest, before }))).toBeDefined();
    }
    clock.now += second;
    expect(targets.birthday(victim, { ...rest, before })).toBeUndefined();
    expect(targets.birthday(at("198.51.100.7:5000"), { ...rest, before })).toBeDefined();
  });
});
